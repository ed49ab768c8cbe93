"""Vector math as LLVM IR: every elementary function, on scalars and vectors, without a call to any library.

What it does: `emit_math(builder, "exp", x)` appends the instructions that compute the function in every lane of `x`: float, double,
half, or a vector of them; lanes of i16 are bfloat16 (llvmlite has no such type). `MATH` is the table of functions. half and bfloat16
are computed in float32 and rounded once. The functions are in `math_exponential.py`, `math_trigonometric.py`,
`math_division.py` and `math_fused.py`, written with the operators of `lanes.py`; the sources of their algorithms stand there.
Assumes: the builder stands at the end of an open block of a function whose rounding is to nearest and which keeps subnormals.
Guarantees: the only functions named are LLVM intrinsics that select to instructions on a target that has what `MathOptions` says;
C99 special values; subnormals kept; the error in `Function.ulps`, measured in float32 with FMA by `benchmarks/exhaustive_math.py`
(sqrt, exp, log, sin, cos, tanh, erf, sigmoid: all inputs; the other functions of one operand: every 257th), and sampled otherwise by
`tests/test_math.py` (float64, two operands, targets without FMA). Straight-line code, except exp (results that are not normal: a block
of their own), sin, cos, tan (arguments beyond 2^16, float64 2^20: a block that is jumped over), float64's fma without the
instruction (products near the ends of the range: likewise) and fmod, floor_mod, floor_divide (a loop): after these the builder stands
in a new block, so a caller that needs the current block for a phi must read it after the call.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from msgspec import Struct

from tilewright.backends.llvm import math_division as division
from tilewright.backends.llvm import math_exponential as exponential
from tilewright.backends.llvm import math_trigonometric as trigonometric
from tilewright.backends.llvm.lanes import FLOAT, Lanes, MathOptions
from tilewright.backends.llvm.math_fused import fused

HALF = ir.HalfType()
BFLOAT16_BITS = ir.IntType(16)


class Function(Struct, frozen=True):
    """One row of `MATH`: operands, the expansion, and the largest error in units in the last place (float32, float64)."""

    operands: int
    expand: Callable[..., Lanes]
    ulps: tuple[float, float] = (0.5, 0.5)


def via_double(expand: Callable[..., Lanes]) -> Callable[..., Lanes]:
    """The float64 expansion, for float32 operands too: the result is correctly rounded but for about one in 2^28."""

    def expanded(*operands: Lanes) -> Lanes:
        if not operands[0].is_single:
            return expand(*operands)
        return expand(*(operand.widen() for operand in operands)).narrow()

    return expanded


def power(x: Lanes, y: Lanes) -> Lanes:
    if not x.is_single:
        return exponential.pow_double(x, y)
    return exponential.pow_double(x.widen(), y.widen(), for_single=True).narrow()


fmod = via_double(division.fmod)


def floor_mod(x: Lanes, y: Lanes) -> Lanes:
    return division.floor_mod_from(y, fmod(x, y))[1]


def floor_divide(x: Lanes, y: Lanes) -> Lanes:
    return division.floor_divide_from(x, y, fmod(x, y))


MATH: dict[str, Function] = {
    # one instruction, or its equal
    "sqrt": Function(1, Lanes.sqrt),
    "fabs": Function(1, Lanes.absolute),
    "floor": Function(1, Lanes.floor),
    "ceil": Function(1, Lanes.ceil),
    "trunc": Function(1, Lanes.truncate),
    "round_even": Function(1, Lanes.round_even),
    "copysign": Function(2, Lanes.with_sign_of),
    "fma": Function(3, fused),
    # exponentials and logarithms
    "exp": Function(1, exponential.exp, (1.05, 1.1)),
    "exp2": Function(1, exponential.exp2, (1.1, 1.2)),
    "expm1": Function(1, exponential.expm1, (1.5, 2.0)),
    "log": Function(1, exponential.log, (0.95, 0.9)),
    "log2": Function(1, exponential.log2, (0.9, 0.9)),
    "log10": Function(1, exponential.log10, (0.8, 0.8)),
    "log1p": Function(1, exponential.log1p, (1.0, 1.0)),
    "sigmoid": Function(1, exponential.sigmoid, (2.5, 2.5)),
    # trigonometric
    "sin": Function(1, trigonometric.sin, (1.6, 1.0)),
    "cos": Function(1, trigonometric.cos, (1.6, 1.0)),
    "tan": Function(1, trigonometric.tan, (3.2, 2.5)),
    "asin": Function(1, trigonometric.asin, (2.4, 2.4)),
    "acos": Function(1, trigonometric.acos, (1.3, 1.3)),
    "atan": Function(1, trigonometric.atan, (2.3, 2.3)),
    "atan2": Function(2, trigonometric.atan2, (2.5, 2.5)),
    # hyperbolic
    "sinh": Function(1, exponential.sinh, (2.3, 2.5)),
    "cosh": Function(1, exponential.cosh, (1.6, 1.6)),
    "tanh": Function(1, exponential.tanh, (2.6, 2.6)),
    "asinh": Function(1, via_double(exponential.asinh), (0.51, 2.0)),
    "acosh": Function(1, via_double(exponential.acosh), (0.51, 2.6)),
    "atanh": Function(1, via_double(exponential.atanh), (0.51, 2.0)),
    # powers
    "pow": Function(2, power, (0.51, 1.3)),
    "cbrt": Function(1, via_double(exponential.cbrt), (0.51, 0.6)),
    "hypot": Function(2, via_double(exponential.hypot), (0.51, 1.3)),
    # the error function
    "erf": Function(1, exponential.erf, (1.4, 1.4)),
    "erfc": Function(1, via_double(exponential.erfc), (0.51, 3.0)),
    # remainders: exact (floor_divide: NumPy's bits)
    "fmod": Function(2, fmod, (0.0, 0.0)),
    "floor_mod": Function(2, floor_mod),
    "floor_divide": Function(2, floor_divide),
}


def emit_math(builder: ir.IRBuilder, name: str, *operands: ir.Value, options: MathOptions | None = None) -> ir.Value:
    """Appends the function `name` of `MATH` of `operands`, all of one type, and returns the result, of that type."""
    function = MATH[name]
    if len(operands) != function.operands:
        raise TypeError(f"{name}: takes {function.operands} operands, found {len(operands)}")
    kinds = {str(operand.type) for operand in operands}
    if len(kinds) != 1:
        raise TypeError(f"{name}: operands of one type, found {', '.join(sorted(kinds))}")
    lanes = [Lanes(builder, options or MathOptions(), operand) for operand in operands]
    element = lanes[0].element
    if element == HALF:
        return half_from_float32(function.expand(*(float32_from_half(lane) for lane in lanes))).value
    if element == BFLOAT16_BITS:
        return bfloat16_from_float32(function.expand(*(float32_from_bfloat16(lane) for lane in lanes))).value
    if not lanes[0].is_float:
        raise TypeError(f"{name}: operands of float, double, half or i16 (bfloat16), found {operands[0].type}")
    return function.expand(*lanes).value


# ---- the narrow formats ----


def float32_from_bfloat16(x: Lanes) -> Lanes:
    return (x.resize(32) << 16).as_float()


def bfloat16_from_float32(x: Lanes) -> Lanes:
    """Rounded to nearest even on the bits; a NaN stays one (quiet)."""
    bits = x.bits()
    rounded = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    return x.is_nan().select((bits >> 16) | 0x40, rounded).resize(16)


def float32_from_half(x: Lanes) -> Lanes:
    if x.options.has_half:
        return x.new(x.builder.fpext(x.value, x.shaped(FLOAT)))
    bits = x.new(x.builder.bitcast(x.value, x.shaped(BFLOAT16_BITS))).resize(32)
    magnitude = bits & 0x7FFF
    # The product with 2^112 moves the exponent's bias, and normalizes subnormals, exactly.
    moved = (magnitude << 13).as_float() * 2.0**112
    special = ((magnitude << 13) | 0x7F800000).as_float()
    result = (magnitude > 0x7BFF).select(special, moved)
    return (result.bits() | ((bits & 0x8000) << 16)).as_float()


def half_from_float32(x: Lanes) -> Lanes:
    """Rounded once to nearest even. Without F16C: the sum with a power of two rounds at the last place of the result."""
    if x.options.has_half:
        return x.new(x.builder.fptrunc(x.value, x.shaped(HALF)))
    magnitude = x.absolute()
    bits = magnitude.bits()
    normal = ((bits + 0xFFF + ((bits >> 13) & 1)) >> 13) - (112 << 10)
    subnormal = (magnitude + 0.5).bits() - 0x3F000000               # 0.5 has the last place 2^-24, that of subnormal halves
    result = (magnitude < 2.0**-14).select(subnormal, normal)
    result = (magnitude >= 65520.0).select(0x7C00, result)
    result = x.is_nan().select(0x7E00, result)
    result = (result | ((x.bits() >> 16) & 0x8000)).resize(16)
    return x.new(x.builder.bitcast(result.value, x.shaped(HALF)))
