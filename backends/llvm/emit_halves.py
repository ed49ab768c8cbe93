"""float16 and bfloat16: between their bits and float32, without a library call.

float16 goes through F16C where the target has it; else, and for bfloat16 always, through integer arithmetic on the bits.
Guarantees: rounding to nearest even with subnormals, NaN stays NaN (quieted), infinity stays.
Sources: F. Giesen, "float_to_half_fast3_rtne" (public domain) for the float16 rounding by a magic addition.
"""

from __future__ import annotations

from tilewright.backends.llvm.emit_text import Function, Value, mangled, shaped, splat_text
from tilewright.ir.types import F16, F32, DType


class Bits:
    """Emits integer and float instructions on `lanes` 32-bit elements; plain integers become constants."""

    def __init__(self, code: Function, lanes: int) -> None:
        self.code = code
        self.lanes = lanes
        self.integer = shaped("i32", lanes)
        self.float = shaped("float", lanes)
        self.half = shaped("i16", lanes)

    def constant(self, operand: str | int) -> str:
        return operand if isinstance(operand, str) else splat_text(str(operand), "i32", self.lanes)

    def op(self, name: str, left: str, right: str | int) -> str:
        return self.code.pure(f"{name} {self.integer} {left}, {self.constant(right)}")

    def test(self, condition: str, left: str, right: str | int) -> str:
        return self.code.pure(f"icmp {condition} {self.integer} {left}, {self.constant(right)}")

    def choose(self, mask: str, left: str | int, right: str | int) -> str:
        kind = self.integer
        return self.code.pure(f"select {shaped('i1', self.lanes)} {mask}, {kind} {self.constant(left)}, "
                              f"{kind} {self.constant(right)}")

    def as_float(self, text: str) -> str:
        return self.code.pure(f"bitcast {self.integer} {text} to {self.float}")

    def as_bits(self, text: str) -> str:
        return self.code.pure(f"bitcast {self.float} {text} to {self.integer}")

    def widen(self, text: str) -> str:
        return self.code.pure(f"zext {self.half} {text} to {self.integer}")

    def narrow(self, text: str) -> str:
        return self.code.pure(f"trunc {self.integer} {text} to {self.half}")


def widen_half(code: Function, value: Value) -> Value:
    """A float16 or bfloat16 as the float32 that equals it."""
    bits = Bits(code, value.lanes)
    if value.dtype != F16:
        text = bits.as_float(bits.op("shl", bits.widen(value.text), 16))
    elif code.module.options.has_half:
        half = shaped("half", value.lanes)
        narrow = code.pure(f"bitcast {bits.half} {value.text} to {half}")
        text = code.pure(f"fpext {half} {narrow} to {bits.float}")
    else:
        text = _expand_float16(bits, value.text)
    return Value(text, F32, value.lanes)


def _expand_float16(bits: Bits, text: str) -> str:
    """Moves exponent and fraction into place and scales by 2^112, which normalises subnormals; then infinity and sign."""
    wide = bits.widen(text)
    magnitude = bits.op("and", wide, 0x7FFF)
    placed = bits.as_float(bits.op("shl", magnitude, 13))
    scale = splat_text("0x46F0000000000000", "float", bits.lanes)
    scaled = bits.as_bits(bits.code.pure(f"fmul {bits.float} {placed}, {scale}"))
    special = bits.op("or", scaled, 0x7F800000)
    finite = bits.choose(bits.test("ult", magnitude, 0x7C00), scaled, special)
    sign = bits.op("shl", bits.op("and", wide, 0x8000), 16)
    return bits.as_float(bits.op("or", finite, sign))


def round_half(code: Function, value: Value, dtype: DType) -> Value:
    """A float32 rounded to float16 or bfloat16."""
    bits = Bits(code, value.lanes)
    if dtype != F16:
        text = _round_bfloat16(bits, value.text)
    elif code.module.options.has_half:
        half, wide = shaped("half", value.lanes), value.text
        if not value.lanes:
            # LLVM moves a scalar fptrunc past copysign and then merges it with one from float64, which is a library call.
            wide = code.call_pure("llvm.arithmetic.fence.f32", "float", ("float", wide))
        narrow = code.pure(f"fptrunc {bits.float} {wide} to {half}")
        text = code.pure(f"bitcast {half} {narrow} to {bits.half}")
    else:
        text = _round_float16(bits, value.text)
    return Value(text, dtype, value.lanes)


def _round_bfloat16(bits: Bits, text: str) -> str:
    """Adds just under half of the last place kept, more when that place is odd; a NaN keeps its upper half, quieted."""
    whole = bits.as_bits(text)
    odd = bits.op("and", bits.op("lshr", whole, 16), 1)
    rounded = bits.op("lshr", bits.op("add", bits.op("add", whole, 0x7FFF), odd), 16)
    quiet = bits.op("or", bits.op("lshr", whole, 16), 0x40)
    kind = bits.float
    is_nan = bits.code.pure(f"fcmp uno {kind} {text}, {text}")
    return bits.narrow(bits.choose(is_nan, quiet, rounded))


def _round_float16(bits: Bits, text: str) -> str:
    whole = bits.as_bits(text)
    magnitude = bits.op("and", whole, 0x7FFFFFFF)
    odd = bits.op("and", bits.op("lshr", magnitude, 13), 1)
    rebased = bits.op("add", bits.op("add", magnitude, 0xFFF - (112 << 23)), odd)
    normal = bits.op("lshr", rebased, 13)
    # Adding 0.5 shifts the fraction of a subnormal result into the low bits, rounded by the addition itself.
    anchor = splat_text("0x3FE0000000000000", "float", bits.lanes)
    moved = bits.as_bits(bits.code.pure(f"fadd {bits.float} {bits.as_float(magnitude)}, {anchor}"))
    small = bits.op("sub", moved, 0x3F000000)
    special = bits.choose(bits.test("ugt", magnitude, 0x7F800000), 0x7E00, 0x7C00)
    finite = bits.choose(bits.test("ult", magnitude, 113 << 23), small, normal)
    result = bits.choose(bits.test("uge", magnitude, 0x47800000), special, finite)
    sign = bits.op("and", bits.op("lshr", whole, 16), 0x8000)
    return bits.narrow(bits.op("or", result, sign))


def narrow_double_odd(code: Function, value: Value) -> Value:
    """A float64 as a float32 rounded to odd: rounding that once more to float16 rounds as if once."""
    lanes = value.lanes
    bits = Bits(code, lanes)
    double, mask = shaped("double", lanes), shaped("i1", lanes)
    nearest = code.pure(f"fptrunc {double} {value.text} to {bits.float}")
    back = code.pure(f"fpext {bits.float} {nearest} to {double}")
    name = f"llvm.fabs.{mangled('double', lanes)}"
    above = code.pure(f"fcmp ogt {double} {code.call_pure(name, double, (double, back))}, "
                      f"{code.call_pure(name, double, (double, value.text))}")
    whole = bits.as_bits(nearest)
    truncated = bits.op("add", whole, code.pure(f"sext {mask} {above} to {bits.integer}"))
    inexact = code.pure(f"fcmp one {double} {back}, {value.text}")
    odd = bits.op("or", truncated, code.pure(f"zext {mask} {inexact} to {bits.integer}"))
    return Value(bits.as_float(odd), F32, lanes)
