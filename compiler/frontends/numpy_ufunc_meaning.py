"""The meaning of NumPy's ufuncs in the IR: EMIT maps a ufunc to what builds its result.

Operands come cast to the dtypes of NumPy's loop and broadcast to one shape; results are cast to the loop's by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .. import library
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Bitcast
from ..ir.ops.control import Param, While
from ..ir.types import BOOL, F64, I32, I64, U64, DType, dtype_of

Emit: TypeAlias = Callable[..., Any]
DTYPES_BY_BITS = {16: dtype_of("i16"), 32: I32, 64: I64}


def plain(name: str, on_bool: str = "") -> Emit:
    """The IR's function of that name; `on_bool` names the one for bool operands."""

    def emit(b: Builder, *operands: Node) -> Node:
        chosen = on_bool if on_bool and operands[0].dtype.is_bool else name
        return library.scalar(b, chosen, *operands)

    return emit


def _identity_emit(b: Builder, x: Node) -> Node:
    return x


def _unless_integer(name: str) -> Emit:
    return lambda b, x: library.scalar(b, name, x) if x.dtype.is_float else x


def _test(name: str, otherwise: bool) -> Emit:
    def emit(b: Builder, x: Node) -> Node:
        return library.scalar(b, name, x) if x.dtype.is_float else library.full(b, otherwise, BOOL, x.shape)

    return emit


def _truth(b: Builder, x: Node) -> Node:
    return library.cast(b, x, BOOL)


def _logical(name: str) -> Emit:
    return lambda b, *xs: library.scalar(b, name, *(_truth(b, x) for x in xs))


def _like(b: Builder, value: Any, x: Node) -> Node:
    return library.full(b, value, x.dtype, x.shape)


def _compare(name: str) -> Emit:
    """Comparison; NumPy compares int64 with uint64 by value, which no common dtype can."""

    def emit(b: Builder, x: Node, y: Node) -> Node:
        if x.dtype == y.dtype:
            return library.scalar(b, name, x, y)
        signed_left = x.dtype.is_signed
        signed = x if signed_left else y
        below = library.scalar(b, "lt", signed, _like(b, 0, signed))
        plain_answer = library.scalar(b, name, library.cast(b, x, U64), library.cast(b, y, U64))
        answer = name == "ne" or name in (("lt", "le") if signed_left else ("gt", "ge"))
        return library.scalar(b, "select", below, library.full(b, answer, BOOL, x.shape), plain_answer)

    return emit


def _isfinite(b: Builder, x: Node) -> Node:
    if not x.dtype.is_float:
        return library.full(b, True, BOOL, x.shape)
    either = library.scalar(b, "or", library.scalar(b, "isnan", x), library.scalar(b, "isinf", x))
    return library.scalar(b, "not", either)


def _signbit(b: Builder, x: Node) -> Node:
    if x.dtype.is_float:
        x = b.add(Bitcast(DTYPES_BY_BITS[x.dtype.bits]), x)
    return library.scalar(b, "lt", x, _like(b, 0, x))


def _absolute(b: Builder, x: Node) -> Node:
    return x if x.dtype.kind in "bu" else library.scalar(b, "abs", x)


def _reciprocal(b: Builder, x: Node) -> Node:
    one = _like(b, 1, x)
    if x.dtype.is_float:
        return library.scalar(b, "div", one, x)
    unit = library.scalar(b, "eq", library.scalar(b, "abs", x) if x.dtype.is_signed else x, one)
    return library.scalar(b, "select", unit, x, _like(b, 0, x))


def _scaled(factor: float) -> Emit:
    return lambda b, x: library.scalar(b, "mul", x, _like(b, factor, x))


def _heaviside(b: Builder, x: Node, middle: Node) -> Node:
    zero = _like(b, 0, x)
    side = library.scalar(b, "select", library.scalar(b, "lt", x, zero), zero, _like(b, 1, x))
    side = library.scalar(b, "select", library.scalar(b, "eq", x, zero), middle, side)
    return library.scalar(b, "select", library.scalar(b, "isnan", x), x, side)


def _logaddexp(exponential: str, rest: Callable[[Builder, Node], Node], equal: float) -> Emit:
    """max + log(1 + exp(-|x - y|)); equal operands (also infinities) add log 2."""

    def emit(b: Builder, x: Node, y: Node) -> Node:
        difference = library.scalar(b, "sub", x, y)
        distance = library.scalar(b, "neg", library.scalar(b, "abs", difference))
        tail = rest(b, library.scalar(b, exponential, distance))
        tail = library.scalar(b, "select", library.scalar(b, "eq", x, y), _like(b, equal, x), tail)
        return library.scalar(b, "add", library.scalar(b, "max", x, y), tail)

    return emit


def _log2_of_one_more(b: Builder, x: Node) -> Node:
    return library.scalar(b, "mul", library.scalar(b, "log1p", x), _like(b, 1.4426950408889634, x))


def _divmod(b: Builder, x: Node, y: Node) -> tuple[Node, Node]:
    return library.scalar(b, "floordiv", x, y), library.scalar(b, "mod", x, y)


def _modf(b: Builder, x: Node) -> tuple[Node, Node]:
    whole = library.scalar(b, "trunc", x)
    part = library.scalar(b, "sub", x, whole)
    part = library.scalar(b, "select", library.scalar(b, "isinf", x), _like(b, 0, x), part)
    return library.scalar(b, "copysign", part, x), whole


def _power(b: Builder, x: Node, y: Node) -> Node:
    return library.scalar(b, "pow", x, y)


def _two_to(b: Builder, exponent: Node, dtype: DType) -> Node:
    """2 ** exponent exactly, for int64 exponents of normal float64 range."""
    biased = library.scalar(b, "add", exponent, _like(b, 1023, exponent))
    bits = library.scalar(b, "shl", biased, _like(b, 52, exponent))
    return library.cast(b, b.add(Bitcast(F64), bits), dtype)


def _ldexp(b: Builder, x: Node, exponent: Node) -> Node:
    """x * 2 ** exponent in three exact steps of float64 (each power in range), rounded once."""
    wide = library.cast(b, x, F64)
    left = library.cast(b, exponent, I64)
    left = library.scalar(b, "max", library.scalar(b, "min", left, _like(b, 3000, left)), _like(b, -3000, left))
    for _ in range(3):
        step = library.scalar(b, "max", library.scalar(b, "min", left, _like(b, 1000, left)), _like(b, -1000, left))
        wide = library.scalar(b, "mul", wide, _two_to(b, step, F64))
        left = library.scalar(b, "sub", left, step)
    return library.cast(b, wide, x.dtype)


def _frexp(b: Builder, x: Node) -> tuple[Node, Node]:
    """Mantissa in [0.5, 1) and exponent, through the bits of float64 (subnormals are scaled up first)."""
    wide = library.cast(b, x, F64)
    magnitude = library.scalar(b, "abs", wide)
    small = library.scalar(b, "lt", magnitude, _like(b, 2.0**-1022, wide))
    scaled = library.scalar(b, "select", small, library.scalar(b, "mul", wide, _like(b, 2.0**60, wide)), wide)
    bits = b.add(Bitcast(I64), scaled)
    field = library.scalar(b, "and", library.scalar(b, "shr", bits, _like(b, 52, bits)), _like(b, 0x7FF, bits))
    shift = library.scalar(b, "select", small, _like(b, 60, bits), _like(b, 0, bits))
    exponent = library.scalar(b, "sub", library.scalar(b, "sub", field, _like(b, 1022, bits)), shift)
    kept = library.scalar(b, "and", bits, _like(b, ~(0x7FF << 52), bits))
    mantissa = b.add(Bitcast(F64), library.scalar(b, "or", kept, _like(b, 1022 << 52, bits)))
    odd = library.scalar(b, "or", library.scalar(b, "isnan", wide), library.scalar(b, "isinf", wide))
    odd = library.scalar(b, "or", odd, library.scalar(b, "eq", wide, _like(b, 0.0, wide)))
    mantissa = library.scalar(b, "select", odd, wide, mantissa)
    exponent = library.scalar(b, "select", odd, _like(b, 0, bits), exponent)
    return library.cast(b, mantissa, x.dtype), library.cast(b, exponent, I32)


def _nextafter(b: Builder, x: Node, y: Node) -> Node:
    whole = DTYPES_BY_BITS[x.dtype.bits]
    bits = b.add(Bitcast(whole), x)
    zero = library.scalar(b, "eq", x, _like(b, 0.0, x))
    up = library.scalar(b, "gt", y, x)
    away = library.scalar(b, "eq", up, library.scalar(b, "gt", x, _like(b, 0.0, x)))
    one = _like(b, 1, bits)
    moved = library.scalar(b, "select", away, library.scalar(b, "add", bits, one), library.scalar(b, "sub", bits, one))
    least = library.scalar(b, "copysign", b.add(Bitcast(x.dtype), one), y)
    value = library.scalar(b, "select", zero, least, b.add(Bitcast(x.dtype), moved))
    value = library.scalar(b, "select", library.scalar(b, "eq", x, y), y, value)
    unordered = library.scalar(b, "or", library.scalar(b, "isnan", x), library.scalar(b, "isnan", y))
    return library.scalar(b, "select", unordered, library.scalar(b, "add", x, y), value)


def _spacing(b: Builder, x: Node) -> Node:
    """The distance to the next number away from zero, with the sign of x."""
    outward = library.scalar(b, "copysign", _like(b, math.inf, x), x)
    distance = library.scalar(b, "sub", _nextafter(b, x, outward), x)
    odd = library.scalar(b, "or", library.scalar(b, "isnan", x), library.scalar(b, "isinf", x))
    return library.scalar(b, "select", odd, _like(b, math.nan, x), distance)


def _gcd(b: Builder, x: Node, y: Node) -> Node:
    """Euclid's algorithm on all elements at once, until every remainder is zero."""
    states = [_absolute(b, x), _absolute(b, y)]
    inner, test = Builder(b.loc), Builder(b.loc)
    params = [inner.add(Param(label, x.dtype, x.shape)) for label in ("a", "b")]
    first, second = params
    zero = _like(inner, 0, second)
    done = library.scalar(inner, "eq", second, zero)
    rest = library.scalar(inner, "mod", first, second)
    results = [library.scalar(inner, "select", done, first, second), library.scalar(inner, "select", done, second, _absolute(inner, rest))]
    watched = [test.add(Param(label, x.dtype, x.shape)) for label in ("a", "b")]
    more = library.scalar(test, "ne", watched[1], _like(test, 0, watched[1]))
    more = library.reduce(test, "or", more, range(x.rank))
    op = While(Graph("gcd_more", watched, [more]), Graph("gcd_step", params, results), 2)
    return library.results_of(b, b.add(op, *states))[0]


def _lcm(b: Builder, x: Node, y: Node) -> Node:
    divisor = _gcd(b, x, y)
    zero = _like(b, 0, x)
    quotient = library.scalar(b, "floordiv", _absolute(b, x), divisor)
    value = _absolute(b, library.scalar(b, "mul", quotient, y))
    return library.scalar(b, "select", library.scalar(b, "eq", divisor, zero), zero, value)


def _bitcount(b: Builder, x: Node) -> Node:
    """The set bits of |x|, bit by bit."""
    bits = _absolute(b, x)
    one = _like(b, 1, x)
    unsigned = library.cast(b, bits, dtype_of(f"u{x.dtype.bits}"))
    total: Node | None = None
    for place in range(x.dtype.bits):
        moved = library.scalar(b, "shr", unsigned, _like(b, place, unsigned))
        bit = library.scalar(b, "and", moved, library.cast(b, one, unsigned.dtype))
        total = bit if total is None else library.scalar(b, "add", total, bit)
    assert total is not None
    return total


EMIT: dict[np.ufunc, Emit] = {
    np.add: plain("add", "or"), np.subtract: plain("sub"), np.multiply: plain("mul", "and"), np.divide: plain("div"),
    np.floor_divide: plain("floordiv"), np.remainder: plain("mod"), np.fmod: plain("rem"), np.divmod: _divmod,
    np.power: _power, np.float_power: _power, np.negative: plain("neg"), np.positive: _identity_emit,
    np.absolute: _absolute, np.fabs: _absolute, np.sign: plain("sign"), np.heaviside: _heaviside,
    np.rint: plain("round"), np.floor: _unless_integer("floor"), np.ceil: _unless_integer("ceil"),
    np.trunc: _unless_integer("trunc"), np.conjugate: _identity_emit,
    np.exp: plain("exp"), np.exp2: plain("exp2"), np.expm1: plain("expm1"), np.log: plain("log"),
    np.log2: plain("log2"), np.log10: plain("log10"), np.log1p: plain("log1p"), np.sqrt: plain("sqrt"),
    np.cbrt: plain("cbrt"), np.square: lambda b, x: library.scalar(b, "mul", x, x), np.reciprocal: _reciprocal,
    np.sin: plain("sin"), np.cos: plain("cos"), np.tan: plain("tan"), np.arcsin: plain("asin"),
    np.arccos: plain("acos"), np.arctan: plain("atan"), np.arctan2: plain("atan2"), np.hypot: plain("hypot"),
    np.sinh: plain("sinh"), np.cosh: plain("cosh"), np.tanh: plain("tanh"), np.arcsinh: plain("asinh"),
    np.arccosh: plain("acosh"), np.arctanh: plain("atanh"),
    np.degrees: _scaled(180 / math.pi), np.rad2deg: _scaled(180 / math.pi),
    np.radians: _scaled(math.pi / 180), np.deg2rad: _scaled(math.pi / 180),
    np.logaddexp: _logaddexp("exp", plain("log1p"), math.log(2)),
    np.logaddexp2: _logaddexp("exp2", _log2_of_one_more, 1.0),
    np.equal: _compare("eq"), np.not_equal: _compare("ne"), np.less: _compare("lt"), np.less_equal: _compare("le"),
    np.greater: _compare("gt"), np.greater_equal: _compare("ge"),
    np.logical_and: _logical("and"), np.logical_or: _logical("or"), np.logical_xor: _logical("xor"),
    np.logical_not: _logical("not"),
    np.maximum: plain("max"), np.minimum: plain("min"),
    np.fmax: lambda b, x, y: library.scalar(b, "fmax" if x.dtype.is_float else "max", x, y),
    np.fmin: lambda b, x, y: library.scalar(b, "fmin" if x.dtype.is_float else "min", x, y),
    np.bitwise_and: plain("and"), np.bitwise_or: plain("or"), np.bitwise_xor: plain("xor"), np.invert: plain("not"),
    np.left_shift: plain("shl"), np.right_shift: plain("shr"),
    np.isfinite: _isfinite, np.isinf: _test("isinf", False), np.isnan: _test("isnan", False), np.signbit: _signbit,
    np.copysign: plain("copysign"), np.nextafter: _nextafter, np.spacing: _spacing, np.modf: _modf,
    np.ldexp: _ldexp, np.frexp: _frexp, np.gcd: _gcd, np.lcm: _lcm,
}  # fmt: skip
if hasattr(np, "bitwise_count"):
    EMIT[np.bitwise_count] = _bitcount
