"""Scalar expressions of the loop IR as C++ expressions over the device header.

A value of float16 or bfloat16 is a `float` that holds such a value, rounded after each function that may leave the type; only
memory has the types of 16 bits. Integers wrap: signed sums and products are computed unsigned. Values of dtype index are `int` or
`long long`, whichever their text says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from tilewright.backends.cuda.emit_sizes import (
    AND,
    ATOM,
    BIT_AND,
    BIT_OR,
    BIT_XOR,
    COMPARE,
    EQUAL,
    OR,
    PRODUCT,
    SELECT,
    SUM,
    UNARY,
    Text,
    wide,
    within,
)
from tilewright.ir.types import BF16, F16, F32, F64, I8, I16, I32, I64, INDEX, U8, U16, U32, U64, DType

C_TYPES: dict[str, str] = {
    "bool": "bool", "i8": "signed char", "i16": "short", "i32": "int", "i64": "long long", "u8": "unsigned char",
    "u16": "unsigned short", "u32": "unsigned int", "u64": "unsigned long long", "f16": "tw_float16", "bf16": "tw_bfloat16",
    "f32": "float", "f64": "double", "index": "long long",
}
ROUNDING: dict[DType, str] = {F16: "tw_round_float16", BF16: "tw_round_bfloat16"}
# functions of floats whose result is always one of the operands or a small whole number: nothing to round
EXACT = frozenset({"neg", "abs", "sign", "max", "min", "fmax", "fmin", "copysign", "floor", "ceil", "trunc", "round", "select"})
ARITHMETIC = {"add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT)}
COMPARISONS = {"eq": ("==", EQUAL), "ne": ("!=", EQUAL), "lt": ("<", COMPARE), "le": ("<=", COMPARE), "gt": (">", COMPARE),
               "ge": (">=", COMPARE)}
BITS = {"and": ("&", BIT_AND), "or": ("|", BIT_OR), "xor": ("^", BIT_XOR)}
TRUTHS = {"and": ("&&", AND), "or": ("||", OR), "xor": ("!=", EQUAL)}
WORD = re.compile(r"^(\d{3,})(u|ll|ull|)$")  # a literal of bits, which is read best by its digits of 16
WHOLE = 2**31    # floats below that are spelled without an exponent where they are whole numbers
UNSIGNED = {32: "unsigned int", 64: "unsigned long long"}


def memory_type(dtype: DType) -> str:
    """The C++ type of an element in memory."""
    return C_TYPES.get(dtype.name, "unsigned char")


def value_type(dtype: DType) -> str:
    """The C++ type of a value."""
    return "float" if dtype in ROUNDING else memory_type(dtype)


def loaded(text: str, dtype: DType) -> Text:
    """A value from an element of memory."""
    return Text(f"tw_to_float({text})" if dtype in ROUNDING else text, ATOM, dtype == INDEX)


def stored(value: Text, dtype: DType) -> str:
    """An element of memory from a value. One that is rounded to the element's type last is converted once."""
    if dtype not in ROUNDING:
        return value.text
    name, text = "float16" if dtype == F16 else "bfloat16", value.text
    rounding = f"tw_round_{name}("
    if text.startswith(rounding) and _is_one_call(text):
        text = text[len(rounding):-1]
    return f"tw_to_{name}({text})"


def _is_one_call(text: str) -> bool:
    """Whether the first parenthesis of an expression ends with it."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == ")" and depth == 0:
            return place == len(text) - 1
    return False


def emit_literal(value: int | float | bool, dtype: DType) -> Text:
    """A constant of the dtype."""
    if dtype.is_bool:
        return Text("true" if value else "false", ATOM)
    if dtype.is_float:
        return _float_literal(float(value), dtype)
    number = int(value)
    ending = {I64: "ll", INDEX: "ll", U32: "u", U64: "ull"}.get(dtype, "")
    if number == -2**63:
        return Text("-9223372036854775807ll - 1", SUM, True)
    if number == -2**31 and dtype == I32:
        return Text("-2147483647 - 1", SUM)
    text = f"{number}{ending}"
    if dtype in (I8, I16, U8, U16):
        return Text(f"({C_TYPES[dtype.name]}){text}", UNARY)
    return Text(text, ATOM if number >= 0 else UNARY, dtype == INDEX)


def _float_literal(value: float, dtype: DType) -> Text:
    with np.errstate(all="ignore"):
        number = np.asarray(value, np.float64).astype(dtype.numpy)
        exact = number.astype(np.float64 if dtype == F64 else np.float32)[()]
    ending = "" if dtype == F64 else "f"
    if math.isnan(exact):
        bits = "double_from_bits(0x7ff8000000000000ll)" if dtype == F64 else "float_from_bits(0x7fc00000)"
        return Text(f"tw_{bits}", ATOM)
    sign = "-" if math.copysign(1.0, exact) < 0 else ""
    if math.isinf(exact):
        return Text(f"{sign}TW_INFINITY_F{64 if dtype == F64 else 32}", UNARY if sign else ATOM)
    text = f"{abs(float(exact)):.1f}" if exact == int(exact) and abs(exact) < WHOLE else str(abs(exact))
    if "." not in text and "e" not in text:
        text += ".0"
    return Text(f"{sign}{text}{ending}", UNARY if sign else ATOM)


def emit_function(name: str, dtype: DType, operands: Sequence[Text]) -> Text:
    """A scalar function on values; `dtype` is that of its last operand."""
    if name in COMPARISONS:
        return _binary(COMPARISONS[name], operands)
    if name == "select":
        condition, a, b = operands
        if dtype == INDEX and a.wide != b.wide:
            a, b = wide(a), wide(b)
        return Text(f"{within(condition, OR)} ? {within(a, OR)} : {within(b, OR)}", SELECT, a.wide)
    if name in BITS:
        return _bitwise(name, dtype, operands)
    if name == "not":
        sign = "!" if dtype.is_bool else "~"
        return _narrowed(Text(f"{sign}{within(operands[0], UNARY)}", UNARY, operands[0].wide), dtype)
    if name in ARITHMETIC or name == "neg" or name == "div":
        return _arithmetic(name, dtype, operands)
    values = [wide(o) for o in operands] if dtype == INDEX else operands
    result = Text(f"tw_{name}({', '.join(v.text for v in values)})", ATOM, dtype == INDEX)
    return result if name in EXACT or name in ("isnan", "isinf") else _rounded(result, dtype)


def _binary(operator: tuple[str, int], operands: Sequence[Text], is_wide: bool = False) -> Text:
    sign, binds = operator
    left, right = operands
    return Text(f"{within(left, binds)} {sign} {within(right, binds + 1)}", binds, is_wide)


def _rounded(value: Text, dtype: DType) -> Text:
    return Text(f"{ROUNDING[dtype]}({value.text})", ATOM) if dtype in ROUNDING else value


def _narrowed(value: Text, dtype: DType) -> Text:
    """C++ computes with narrow integers as int: back to the type."""
    if dtype in (I8, I16, U8, U16):
        return Text(f"({C_TYPES[dtype.name]}){within(value, UNARY)}", UNARY)
    return value


def _bitwise(name: str, dtype: DType, operands: Sequence[Text]) -> Text:
    if dtype.is_bool:
        sign, binds = TRUTHS[name]
        left, right = operands
        # && in || is clearer in parentheses, and compilers warn without them
        least = UNARY if binds == OR and any(o.binds == AND for o in operands) else binds
        return Text(f"{within(left, least)} {sign} {within(right, max(least, binds + 1))}", binds)
    sign, binds = BITS[name]
    if dtype == INDEX and operands[0].wide != operands[1].wide:
        operands = [wide(o) for o in operands]
    left, right = (replace(o, text=WORD.sub(lambda found: f"{int(found[1]):#x}{found[2]}", o.text)) for o in operands)
    text = f"{within(left, UNARY)} {sign} {within(right, UNARY)}"
    return _narrowed(Text(text, binds, left.wide), dtype)


def _arithmetic(name: str, dtype: DType, operands: Sequence[Text]) -> Text:
    if dtype == INDEX:
        operands = [wide(operands[0]), *operands[1:]]
    if name == "neg":
        negative = Text(f"-{within(operands[0], ATOM)}", UNARY, dtype == INDEX)
        if dtype.is_float or dtype == INDEX:
            return negative
        return _narrowed(negative, dtype) if dtype.bits < 32 else Text(f"tw_neg({operands[0].text})", ATOM)
    operator = ("/", PRODUCT) if name == "div" else ARITHMETIC[name]
    if dtype.is_float or dtype in (U32, U64, INDEX):
        return _rounded(_binary(operator, operands, dtype == INDEX), dtype)
    # signed sums wrap when computed unsigned; a product of two u16 would leave int
    unsigned = UNSIGNED[64 if dtype.bits == 64 else 32]
    left, right = operands
    if dtype.bits < 32 and not (dtype == U16 and name == "mul"):
        return _narrowed(_binary(operator, operands), dtype)
    text = f"({unsigned}){within(left, UNARY)} {operator[0]} ({unsigned}){within(right, UNARY)}"
    return Text(f"({C_TYPES[dtype.name]})({text})", UNARY)


def emit_cast(value: Text, source: DType, target: DType) -> Text:
    """A value of one dtype as one of another."""
    if source == target:
        return value
    if target.is_bool:
        return Text(f"{within(value, EQUAL + 1)} != 0", EQUAL)
    if target in ROUNDING:
        inner = value if source.is_float else Text(f"(float){within(value, UNARY)}", UNARY)
        return Text(f"{ROUNDING[target]}({inner.text})", ATOM)
    if source.is_float and target.is_integer:
        return Text(f"tw_cast_{'i64' if target == INDEX else target.name}({value.text})", ATOM, target == INDEX)
    if source in ROUNDING and target == F32:
        return value
    if {source, target} == {INDEX, I64}:
        return wide(value)
    return Text(f"({value_type(target)}){within(value, UNARY)}", UNARY, target == INDEX)


def emit_bitcast(value: Text, source: DType, target: DType) -> Text:
    """The bits of a value as one of another dtype of the same width."""
    if source == target:
        return value
    whole = {8: I8, 16: I16, 32: I32, 64: I64}[source.bits]
    if source in ROUNDING:
        value = Text(f"tw_bits_of_{'float16' if source == F16 else 'bfloat16'}({value.text})", ATOM)
    elif source.is_float:
        value = Text(f"tw_bits_of({value.text})", ATOM)
    if target in ROUNDING:
        value = value if source in ROUNDING or source == I16 else Text(f"(short){within(value, UNARY)}", UNARY)
        return Text(f"tw_{'float16' if target == F16 else 'bfloat16'}_from_bits({value.text})", ATOM)
    if target.is_float:
        value = value if source.is_float or source == whole else Text(f"({C_TYPES[whole.name]}){within(value, UNARY)}", UNARY)
        return Text(f"tw_{'double' if target == F64 else 'float'}_from_bits({value.text})", ATOM)
    if target == INDEX:
        return wide(value) if source in (I64, INDEX) else Text(f"(long long){within(value, UNARY)}", UNARY, True)
    return Text(f"({memory_type(target)}){within(value, UNARY)}", UNARY)


def emit_combined(combine: str, dtype: DType, old: Text, new: Text) -> Text:
    """What a combining store leaves."""
    return emit_function(combine, dtype, [old, new])

