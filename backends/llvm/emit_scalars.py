"""The scalar functions of `ir/ops/scalar.py`, casts and bitcasts, as LLVM IR on scalars and vectors alike.

Guarantees: exactly the meaning that `ir/ops/scalar.py` and `Cast` state, on every input: wrapping integers, division by zero and
the least integer by -1, shifts past the width, NaN in `max`, saturating float to integer. float16 and bfloat16 compute in float32
and round once. Nothing is contracted, and no fast-math flag is set.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence

import numpy as np

from tilewright.backends.llvm.emit_halves import narrow_double_odd, round_half, widen_half
from tilewright.backends.llvm.emit_math_calls import call_math
from tilewright.backends.llvm.emit_text import (
    MEMORY_TYPES,
    SCALAR_TYPES,
    Function,
    Value,
    literal_text,
    mangled,
    shaped,
    splat_text,
)
from tilewright.backends.llvm.emit_words import WORD_EMITTERS
from tilewright.ir.errors import InternalError
from tilewright.ir.types import BOOL, F16, F32, F64, I32, INDEX, DType

# scalar function -> function of MATH, where one computes the other
MATH_NAMES = {name: name for name in (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "cbrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "floor", "ceil", "trunc", "atan2", "hypot", "fma",
)} | {"pow": "pow", "mod": "floor_mod", "rem": "fmod", "floordiv": "floor_divide", "round": "round_even"}
COMPARISONS = {"eq": ("oeq", "eq"), "ne": ("une", "ne"), "lt": ("olt", "lt"), "le": ("ole", "le"), "gt": ("ogt", "gt"),
               "ge": ("oge", "ge")}
INDEX_TESTS: dict[str, Callable[[int, int], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
WRAPPING = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}
FLOATING = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}


def literal(value: int | float | bool, dtype: DType, lanes: int = 0) -> Value:
    return Value(splat_text(literal_text(value, dtype), SCALAR_TYPES[dtype.name], lanes), dtype, lanes)


def spread(code: Function, value: Value, lanes: int) -> Value:
    """The value in every one of `lanes` lanes; a value that varies already is returned as it is."""
    if value.lanes == lanes:
        return value
    if value.lanes:
        raise InternalError(f"llvm backend: a value of {value.lanes} lanes where {lanes} are computed")
    return Value(spread_text(code, SCALAR_TYPES[value.dtype.name], value.text, lanes), value.dtype, lanes)


def spread_text(code: Function, element: str, text: str, lanes: int) -> str:
    """The scalar in every lane of a vector."""
    if not text.startswith("%"):
        return splat_text(text, element, lanes)
    kind = shaped(element, lanes)
    first = code.pure(f"insertelement {kind} poison, {element} {text}, i64 0")
    return code.pure(f"shufflevector {kind} {first}, {kind} poison, <{lanes} x i32> zeroinitializer")


def choose(code: Function, mask: str, left: Value, right: Value) -> Value:
    """`left` where the mask (i1, in as many lanes) is set."""
    kind = left.type
    text = code.pure(f"select {shaped('i1', left.lanes)} {mask}, {kind} {left.text}, {kind} {right.text}")
    return Value(text, left.dtype, left.lanes)


def emit_scalar(code: Function, name: str, operands: Sequence[Value]) -> Value:
    """The scalar function on operands of which some may vary; the result varies when one does."""
    lanes = max([operand.lanes for operand in operands])
    if lanes:
        operands = [operand if operand.lanes == lanes else spread(code, operand, lanes) for operand in operands]
    if name in WORD_EMITTERS:
        return WORD_EMITTERS[name](code, list(operands))
    folded = fold_index(name, operands)
    if folded is not None:
        return folded
    if name == "select":
        return choose(code, operands[0].text, operands[1], operands[2])
    dtype = operands[0].dtype
    if not dtype.is_float:
        return _emit_integer(code, name, operands)
    if dtype.bits > 16:
        return _emit_float(code, name, operands)
    wide = _emit_float(code, name, [widen_half(code, operand) for operand in operands])
    return wide if wide.dtype.is_bool else round_half(code, wide, dtype)


def fold_index(name: str, operands: Sequence[Value]) -> Value | None:
    """The value where constants decide it: comparisons of positions, and `and`, `or` of bools. What an unrolled loop guards with
    them is then emitted only where it can run."""
    left, right = operands[0], operands[-1]
    if len(operands) != 2 or left.lanes:
        return None
    if left.dtype == INDEX and left.is_constant and right.is_constant and name in INDEX_TESTS:
        return literal(INDEX_TESTS[name](int(left.text), int(right.text)), BOOL)
    if left.dtype.is_bool and name in ("and", "or") and (left.is_constant or right.is_constant):
        known, other = (left, right) if left.is_constant else (right, left)
        return other if (known.text == "true") == (name == "and") else known
    return None


# ---- floats: float32 and float64 ----


def _emit_float(code: Function, name: str, operands: Sequence[Value]) -> Value:
    first = operands[0]
    dtype, lanes, kind = first.dtype, first.lanes, first.type
    texts = tuple([operand.text for operand in operands])
    if name in FLOATING:
        return Value(code.pure(f"{FLOATING[name]} {kind} {texts[0]}, {texts[1]}"), dtype, lanes)
    if name in COMPARISONS:
        return Value(code.pure(f"fcmp {COMPARISONS[name][0]} {kind} {texts[0]}, {texts[1]}"), BOOL, lanes)
    if name == "fma" and code.module.options.has_fma:
        return Value(_intrinsic(code, "fma", dtype, lanes, texts), dtype, lanes)
    if name in FLOAT_EMITTERS:
        return FLOAT_EMITTERS[name](code, list(operands))
    if name in MATH_NAMES:
        text = call_math(code, MATH_NAMES[name], SCALAR_TYPES[dtype.name], lanes, texts)
        return Value(text, dtype, lanes)
    raise InternalError(f"llvm backend: no code for the scalar function {name} on {dtype}")


def _intrinsic(code: Function, name: str, dtype: DType, lanes: int, texts: Sequence[str]) -> str:
    element = SCALAR_TYPES[dtype.name]
    kind = shaped(element, lanes)
    return code.call_pure(f"llvm.{name}.{mangled(element, lanes)}", kind, *((kind, text) for text in texts))


def _float_test(code: Function, condition: str, left: Value, right: Value) -> str:
    return code.pure(f"fcmp {condition} {left.type} {left.text}, {right.text}")


def _float_extreme(condition: str, propagate: bool) -> Callable[[Function, list[Value]], Value]:
    """`select(a > b, a, b)` is one maxps, which gives b when either is NaN or both are zero; the rest mends NaN."""

    def emit(code: Function, operands: list[Value]) -> Value:
        a, b = operands
        if propagate and b.is_constant and not a.is_constant:
            a, b = b, a
        if not propagate and a.is_constant:
            a, b = b, a
        best = choose(code, _float_test(code, condition, a, b), a, b)
        if not propagate and b.is_constant and not _literal_nan(b):
            number = _literal_number(b)
            if condition == "ogt":
                return Value(best.text, best.dtype, best.lanes, number, None if a.greatest is None else max(a.greatest, number))
            return Value(best.text, best.dtype, best.lanes, None if a.least is None else min(a.least, number), number)
        if propagate:
            if a.is_constant:                         # literals are numbers, see _literal_nan
                return best if not _literal_nan(a) else a
            return choose(code, _float_test(code, "uno", a, a), a, best)
        return choose(code, _float_test(code, "uno", b, b), a, best)

    return emit


def _literal_bits(value: Value) -> int:
    """The bits of the float64 that a literal equals."""
    return int(value.text[value.text.index("0x") + 2:].rstrip(")"), 16)


def _literal_nan(value: Value) -> bool:
    return _literal_bits(value) & 0x7FFFFFFFFFFFFFFF > 0x7FF0000000000000


def _literal_number(value: Value) -> float:
    number: float = struct.unpack("<d", _literal_bits(value).to_bytes(8, "little"))[0]
    return number


def _float_sign(code: Function, operands: list[Value]) -> Value:
    x, = operands
    zero = literal(0.0, x.dtype, x.lanes)
    # NaN compares false three times and so stays; either zero gives 0.0.
    result = choose(code, _float_test(code, "oeq", x, zero), zero, x)
    result = choose(code, _float_test(code, "olt", x, zero), literal(-1.0, x.dtype, x.lanes), result)
    return choose(code, _float_test(code, "ogt", x, zero), literal(1.0, x.dtype, x.lanes), result)


def _float_intrinsic(name: str) -> Callable[[Function, list[Value]], Value]:
    def emit(code: Function, operands: list[Value]) -> Value:
        first = operands[0]
        text = _intrinsic(code, name, first.dtype, first.lanes, [operand.text for operand in operands])
        return Value(text, first.dtype, first.lanes)

    return emit


def _float_isinf(code: Function, operands: list[Value]) -> Value:
    x, = operands
    magnitude = Value(_intrinsic(code, "fabs", x.dtype, x.lanes, [x.text]), x.dtype, x.lanes)
    return Value(_float_test(code, "oeq", magnitude, literal(float("inf"), x.dtype, x.lanes)), BOOL, x.lanes)


FLOAT_EMITTERS: dict[str, Callable[[Function, list[Value]], Value]] = {
    "max": _float_extreme("ogt", True),
    "min": _float_extreme("olt", True),
    "fmax": _float_extreme("ogt", False),
    "fmin": _float_extreme("olt", False),
    "neg": lambda code, x: Value(code.pure(f"fneg {x[0].type} {x[0].text}"), x[0].dtype, x[0].lanes),
    "abs": _float_intrinsic("fabs"),
    "sqrt": _float_intrinsic("sqrt"),
    "copysign": _float_intrinsic("copysign"),
    "sign": _float_sign,
    "isnan": lambda code, x: Value(_float_test(code, "uno", x[0], x[0]), BOOL, x[0].lanes),
    "isinf": _float_isinf,
}


# ---- integers and bool ----


def _emit_integer(code: Function, name: str, operands: Sequence[Value]) -> Value:
    first = operands[0]
    if name in WRAPPING:
        return _integer_op(code, WRAPPING[name], first, operands[1])
    if name in COMPARISONS:
        return Value(_integer_test(code, COMPARISONS[name][1], first, operands[1]), BOOL, first.lanes)
    if name in INTEGER_EMITTERS:
        return INTEGER_EMITTERS[name](code, list(operands))
    raise InternalError(f"llvm backend: no code for the scalar function {name} on {first.dtype}")


def _integer_op(code: Function, instruction: str, left: Value, right: Value) -> Value:
    return Value(code.pure(f"{instruction} {left.type} {left.text}, {right.text}"), left.dtype, left.lanes)


def _integer_test(code: Function, condition: str, left: Value, right: Value) -> str:
    if condition not in ("eq", "ne"):
        condition = ("s" if left.dtype.is_signed else "u") + condition
    return code.pure(f"icmp {condition} {left.type} {left.text}, {right.text}")


def _like(x: Value, number: int) -> Value:
    return literal(number, x.dtype, x.lanes)


def _integer_extreme(condition: str) -> Callable[[Function, list[Value]], Value]:
    def emit(code: Function, operands: list[Value]) -> Value:
        return choose(code, _integer_test(code, condition, *operands), *operands)

    return emit


def _safe_divisor(code: Function, b: Value) -> tuple[Value, list[str]]:
    """A divisor that cannot trap, with the tests that say where it stands for 0 and (signed) for -1."""
    tests = [_integer_test(code, "eq", b, _like(b, 0))]
    if b.dtype.is_signed:
        tests.append(_integer_test(code, "eq", b, _like(b, -1)))
    for test in tests:
        b = choose(code, test, _like(b, 1), b)
    return b, tests


def _integer_floordiv(code: Function, operands: list[Value]) -> Value:
    a, b = operands
    safe, tests = _safe_divisor(code, b)
    if not a.dtype.is_signed:
        return choose(code, tests[0], _like(a, 0), _integer_op(code, "udiv", a, safe))
    quotient = _integer_op(code, "sdiv", a, safe)
    rest = _integer_op(code, "sub", a, _integer_op(code, "mul", quotient, safe))
    below = _floor_correction(code, rest, safe)
    lower = _integer_op(code, "sub", quotient, _like(a, 1))
    quotient = choose(code, below, lower, quotient)
    quotient = choose(code, tests[1], _integer_op(code, "sub", _like(a, 0), a), quotient)
    return choose(code, tests[0], _like(a, 0), quotient)


def _floor_correction(code: Function, rest: Value, divisor: Value) -> str:
    """Where truncation rounded up: a rest that is not zero and has another sign than the divisor."""
    unequal = _integer_test(code, "ne", rest, _like(rest, 0))
    opposite = _integer_test(code, "lt", _integer_op(code, "xor", rest, divisor), _like(rest, 0))
    mask = shaped("i1", rest.lanes)
    return code.pure(f"and {mask} {unequal}, {opposite}")


def _integer_rem(code: Function, operands: list[Value]) -> Value:
    a, b = operands
    safe, tests = _safe_divisor(code, b)
    rest = _integer_op(code, "srem" if a.dtype.is_signed else "urem", a, safe)
    for test in tests:
        rest = choose(code, test, _like(a, 0), rest)
    return rest


def _integer_mod(code: Function, operands: list[Value]) -> Value:
    a, b = operands
    if not a.dtype.is_signed:
        return _integer_rem(code, operands)
    safe, tests = _safe_divisor(code, b)
    rest = _integer_op(code, "srem", a, safe)
    rest = choose(code, _floor_correction(code, rest, safe), _integer_op(code, "add", rest, safe), rest)
    for test in tests:
        rest = choose(code, test, _like(a, 0), rest)
    return rest


def _unsigned_test(code: Function, condition: str, left: Value, right: Value) -> str:
    return code.pure(f"icmp u{condition} {left.type} {left.text}, {right.text}")


def _integer_shl(code: Function, operands: list[Value]) -> Value:
    a, b = operands
    past = _unsigned_test(code, "ge", b, _like(b, a.dtype.bits))        # a negative distance is past it, too
    shifted = _integer_op(code, "shl", a, choose(code, past, _like(b, 0), b))
    return choose(code, past, _like(a, 0), shifted)


def _integer_shr(code: Function, operands: list[Value]) -> Value:
    a, b = operands
    past = _unsigned_test(code, "ge", b, _like(b, a.dtype.bits))
    if a.dtype.is_signed:
        return _integer_op(code, "ashr", a, choose(code, past, _like(b, a.dtype.bits - 1), b))
    shifted = _integer_op(code, "lshr", a, choose(code, past, _like(b, 0), b))
    return choose(code, past, _like(a, 0), shifted)


def _integer_pow(code: Function, operands: list[Value]) -> Value:
    """A product for each bit of the exponent. A negative one gives 0, but for the bases 1 and -1."""
    a, b = operands
    call = code.pure(f"call {a.type} @{_power_helper(code, a)}({a.type} {a.text}, {b.type} {b.text})")
    result = Value(call, a.dtype, a.lanes)
    if not a.dtype.is_signed:
        return result
    odd = _integer_test(code, "ne", _integer_op(code, "and", b, _like(b, 1)), _like(b, 0))
    unit = choose(code, _integer_test(code, "eq", a, _like(a, -1)),
                  choose(code, odd, _like(a, -1), _like(a, 1)), _like(a, 0))
    unit = choose(code, _integer_test(code, "eq", a, _like(a, 1)), _like(a, 1), unit)
    return choose(code, _integer_test(code, "lt", b, _like(b, 0)), unit, result)


def _power_helper(code: Function, value: Value) -> str:
    """The name of a function that raises to an exponent taken as unsigned, by a loop over its bits in all lanes at once."""
    element, lanes, kind = SCALAR_TYPES[value.dtype.name], value.lanes, value.type
    name = f"tw_integer_power_{mangled(element, lanes)}"
    if name in code.module.helpers:
        return name
    mask = shaped("i1", lanes)
    one, zero = splat_text("1", element, lanes), splat_text("0", element, lanes)
    any_left = [f"%any = icmp ne i{lanes} %packed, 0"] if lanes else ["%any = or i1 %left, false"]
    pack = [f"%packed = bitcast {mask} %left to i{lanes}"] if lanes else []
    code.module.helpers[name] = "\n".join([
        f"define internal {kind} @{name}({kind} %base, {kind} %exponent) nounwind noinline {{",
        "entry:", "br label %loop", "loop:",
        f"%b = phi {kind} [ %base, %entry ], [ %b2, %loop ]",
        f"%e = phi {kind} [ %exponent, %entry ], [ %e2, %loop ]",
        f"%r = phi {kind} [ {one}, %entry ], [ %r2, %loop ]",
        f"%bit = and {kind} %e, {one}",
        f"%odd = icmp ne {kind} %bit, {zero}",
        f"%more = mul {kind} %r, %b",
        f"%r2 = select {mask} %odd, {kind} %more, {kind} %r",
        f"%b2 = mul {kind} %b, %b",
        f"%e2 = lshr {kind} %e, {one}",
        f"%left = icmp ne {kind} %e2, {zero}",
        *pack, *any_left,
        "br i1 %any, label %loop, label %done", "done:", f"ret {kind} %r2", "}"])
    return name


def _integer_abs(code: Function, operands: list[Value]) -> Value:
    x, = operands
    if not x.dtype.is_signed:
        return x
    return choose(code, _integer_test(code, "lt", x, _like(x, 0)), _integer_op(code, "sub", _like(x, 0), x), x)


def _integer_sign(code: Function, operands: list[Value]) -> Value:
    x, = operands
    positive = choose(code, _integer_test(code, "eq", x, _like(x, 0)), _like(x, 0), _like(x, 1))
    if not x.dtype.is_signed:
        return positive
    return choose(code, _integer_test(code, "lt", x, _like(x, 0)), _like(x, -1), positive)


def _integer_not(code: Function, operands: list[Value]) -> Value:
    x, = operands
    return _integer_op(code, "xor", x, literal(True, BOOL, x.lanes) if x.dtype.is_bool else _like(x, -1))


INTEGER_EMITTERS: dict[str, Callable[[Function, list[Value]], Value]] = {
    "max": _integer_extreme("gt"),
    "min": _integer_extreme("lt"),
    "floordiv": _integer_floordiv,
    "mod": _integer_mod,
    "rem": _integer_rem,
    "shl": _integer_shl,
    "shr": _integer_shr,
    "pow": _integer_pow,
    "neg": lambda code, x: _integer_op(code, "sub", _like(x[0], 0), x[0]),
    "abs": _integer_abs,
    "sign": _integer_sign,
    "not": _integer_not,
}


# ---- between dtypes ----


def emit_cast(code: Function, value: Value, dtype: DType) -> Value:
    """`Cast`: floats round to nearest even, float to integer saturates, to bool is `!= 0`, integers wrap."""
    source = value.dtype
    if source == dtype:
        return value
    if source.is_float and source.bits == 16:
        return emit_cast(code, widen_half(code, value), dtype)
    if dtype.is_bool:
        if source.is_float:
            return Value(_float_test(code, "une", value, literal(0.0, source, value.lanes)), BOOL, value.lanes)
        return Value(_integer_test(code, "ne", value, _like(value, 0)), BOOL, value.lanes)
    if dtype.is_float:
        return _cast_to_float(code, value, dtype)
    if source.is_float:
        name = "fptosi" if dtype.is_signed else "fptoui"
        return _saturate(code, value, dtype, name)
    return _resize(code, value, dtype)


def _cast_to_float(code: Function, value: Value, dtype: DType) -> Value:
    source, lanes = value.dtype, value.lanes
    if dtype.bits == 16 and source == F32:
        return round_half(code, value, dtype)
    if dtype == F16 and source == F64:
        return round_half(code, narrow_double_odd(code, value), dtype)
    if dtype.bits == 16:                              # NumPy converts to float32 first, as do we
        return round_half(code, _cast_to_float(code, value, F32), dtype)
    target = shaped(SCALAR_TYPES[dtype.name], lanes)
    if source.is_float:
        instruction = "fpext" if dtype.bits > source.bits else "fptrunc"
    else:
        instruction = "sitofp" if source.is_signed and not source.is_bool else "uitofp"
    return Value(code.pure(f"{instruction} {value.type} {value.text} to {target}"), dtype, lanes)


def _saturate(code: Function, value: Value, dtype: DType, name: str) -> Value:
    """llvm.fpto[su]i.sat: NaN gives 0."""
    if dtype.bits < 32 and _is_within(value, dtype):
        whole = code.pure(f"fptosi {value.type} {value.text} to {shaped('i32', value.lanes)}")
        return _resize(code, Value(whole, I32, value.lanes), dtype)
    if value.lanes and dtype.bits < 32:
        return _saturate_narrow(code, value, dtype)
    element, source = SCALAR_TYPES[dtype.name], SCALAR_TYPES[value.dtype.name]
    symbol = f"llvm.{name}.sat.{mangled(element, value.lanes)}.{mangled(source, value.lanes)}"
    return Value(code.call_pure(symbol, shaped(element, value.lanes), (value.type, value.text)), dtype, value.lanes)


def _is_within(value: Value, dtype: DType) -> bool:
    """Whether a float is known to be a number in the range of an integer dtype."""
    limits = np.iinfo(dtype.numpy)
    return value.least is not None and value.greatest is not None and value.least >= limits.min and value.greatest <= limits.max


def _saturate_narrow(code: Function, value: Value, dtype: DType) -> Value:
    """Within the limits as a float, which has them exactly, and by way of 32 bits: LLVM would take vectors apart."""
    kind, lanes, limits = value.type, value.lanes, np.iinfo(dtype.numpy)
    text = value.text
    for test, bound in (("olt", int(limits.min)), ("ogt", int(limits.max)), ("uno", 0)):
        other = literal(float(bound), value.dtype, lanes).text
        outside = code.pure(f"fcmp {test} {kind} {text}, {other}")
        text = code.pure(f"select {shaped('i1', lanes)} {outside}, {kind} {other}, {kind} {text}")
    whole = code.pure(f"fptosi {kind} {text} to {shaped('i32', lanes)}")
    return _resize(code, Value(whole, I32, lanes), dtype)


def _resize(code: Function, value: Value, dtype: DType) -> Value:
    source = value.dtype
    bits = 1 if source.is_bool else source.bits
    if bits == dtype.bits:
        return Value(value.text, dtype, value.lanes)
    if bits > dtype.bits:
        instruction = "trunc"
    else:
        instruction = "sext" if source.is_signed and not source.is_bool else "zext"
    target = shaped(SCALAR_TYPES[dtype.name], value.lanes)
    return Value(code.pure(f"{instruction} {value.type} {value.text} to {target}"), dtype, value.lanes)


def emit_bitcast(code: Function, value: Value, dtype: DType) -> Value:
    """The same bits; the 16-bit floats are held as bits already."""
    source, target = value.type, shaped(SCALAR_TYPES[dtype.name], value.lanes)
    text = value.text if source == target else code.pure(f"bitcast {source} {value.text} to {target}")
    return Value(text, dtype, value.lanes)


def to_memory(code: Function, value: Value) -> str:
    """The value as memory holds it."""
    if not value.dtype.is_bool:
        return value.text
    return code.pure(f"zext {value.type} {value.text} to {shaped(MEMORY_TYPES['bool'], value.lanes)}")


def from_memory(code: Function, text: str, dtype: DType, lanes: int) -> Value:
    """What a load gave, as a value."""
    if not dtype.is_bool:
        return Value(text, dtype, lanes)
    kind = shaped(MEMORY_TYPES["bool"], lanes)
    return Value(code.pure(f"icmp ne {kind} {text}, {splat_text('0', 'i8', lanes)}"), BOOL, lanes)


# ---- combining ----


def identity_of(combine: str, dtype: DType, lanes: int) -> Value:
    """The value that a combining store leaves everything unchanged with: -0.0 for a float sum (0.0 + -0.0 is 0.0)."""
    if combine == "add":
        number: int | float | bool = -0.0 if dtype.is_float else 0
    elif combine == "mul":
        number = 1
    elif combine in ("max", "min"):
        number = dtype.lowest if combine == "max" else dtype.highest
    elif combine == "and":
        number = True if dtype.is_bool else -1
    else:
        number = False if dtype.is_bool else 0
    return literal(number, dtype, lanes)


def emit_combine(code: Function, combine: str, old: Value, new: Value) -> Value:
    """What a combining store writes. For bool, `add` is or and `mul` is and, as for NumPy's bool arithmetic."""
    if old.dtype.is_bool and combine in ("add", "max"):
        combine = "or"
    elif old.dtype.is_bool and combine in ("mul", "min"):
        combine = "and"
    return emit_scalar(code, combine, [old, new])


def halve_lanes(code: Function, combine: str, value: Value, lanes: int) -> Value:
    """The lanes combined, halves against each other while there are an even number of them and more than `lanes`."""
    while value.lanes > lanes and value.lanes % 2 == 0:
        half = value.lanes // 2
        parts = []
        for start in (0, half):
            order = ", ".join(f"i32 {start + lane}" for lane in range(half))
            text = code.pure(f"shufflevector {value.type} {value.text}, {value.type} poison, <{half} x i32> <{order}>")
            parts.append(Value(text, value.dtype, half))
        value = emit_combine(code, combine, *parts)
    return value


def reduce_lanes(code: Function, combine: str, value: Value) -> Value:
    """All lanes combined into one: halves against each other while they are even, the rest one by one."""
    element = SCALAR_TYPES[value.dtype.name]
    value = halve_lanes(code, combine, value, 1)
    lanes = [Value(code.pure(f"extractelement {value.type} {value.text}, i64 {lane}"), value.dtype)
             for lane in range(value.lanes)]
    result = lanes[0]
    for lane in lanes[1:]:
        result = emit_combine(code, combine, result, lane)
    assert SCALAR_TYPES[result.dtype.name] == element
    return result

