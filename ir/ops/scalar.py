"""The scalar functions: one table that serves tensors (elementwise) and the bodies of kernels alike.

A row: name, arity, type rule, NumPy meaning, commutative, identity. Meaning, for all backends:
- Integers wrap. Float arithmetic is IEEE 754 in the dtype of the operands, one rounding a function (float16 and
  bfloat16 compute in float32 and round once). Subnormals are kept.
- `floordiv` and `mod` round towards minus infinity as Python's; an integer divided by zero gives 0 (as NumPy does), and
  the least integer by -1 gives itself. `rem` has the sign of the dividend (C's fmod).
- `shl` by the width or more gives 0; `shr` by the width or more gives 0, or -1 for a negative number. A negative
  distance counts as one past the width.
- `max` and `min` return NaN when either is NaN; `fmax` and `fmin` return the other operand.
- `pow` of integers wraps; a negative exponent gives 0 except for the bases 1 and -1 (and 0 to a negative power gives 0).
- `select(c, a, b)` is a where c is true, else b.
- Comparison with NaN is false, but `ne` true. `sign` of NaN is NaN, of either zero 0.0.
- `round` is half to even.
- `dot_pairs(a, b, c)` takes a and b as two signed 16-bit integers each (the lower half first) and gives the sum of their
  products and c; `dot_quads` likewise four bytes each, unsigned ones of a and signed ones of b; `dot_quads_saturating` first adds
  the products of two neighbours each, limited to 16 bits. `add_byte_pairs` takes c as two 16-bit integers, and adds to each the
  products of two neighbouring bytes, limited to 16 bits; that sum wraps in 16 bits. `widen_pairs` makes two signed 16-bit
  integers of two signed bytes. All other sums wrap in 32 bits. They are what CPUs have instructions for (pmaddwd, vpdpbusd, pmaddubsw).
- `dot_bfloats(a, b, c)` takes a and b as words of two bfloat16 and adds to c the product of the upper halves, then that of the lower
  ones, each as a fused multiply-add in float32, to nearest even. Subnormal operands count as zeros, and so do results at each step
  that are less than the least normal number when rounded to 24 bits (vdpbf16ps, as Intel's manual states it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from msgspec import Struct

from ..errors import CompileError
from ..types import BOOL, F32, I16, I32, U32, DType

LEAST_ROUNDED_TO_NORMAL = 2.0**-126 - 2.0**-151  # by 24 bits, with an exponent as low as it takes


class ScalarFunction(Struct, frozen=True):
    """`rule`: which dtypes it takes and gives, a key of RULES. `identity`: e with f(x, e) = x, where there is one."""

    name: str
    arity: int
    rule: str
    numpy: Callable[..., Any]
    commutative: bool = False
    identity: float | None = None


def _same(dtypes: Sequence[DType], name: str) -> DType:
    if any(d != dtypes[0] for d in dtypes):
        raise CompileError(f"{name}: dtypes differ: {' vs '.join(map(str, dtypes))}")
    return dtypes[0]


def _need(allowed: bool, name: str, dtype: DType, what: str) -> DType:
    if not allowed:
        raise CompileError(f"{name}: needs {what}, found {dtype}")
    return dtype


def _rule_numeric(dtypes: Sequence[DType], name: str) -> DType:
    dtype = _same(dtypes, name)
    return _need(not dtype.is_bool, name, dtype, "a number")


def _rule_float(dtypes: Sequence[DType], name: str) -> DType:
    dtype = _same(dtypes, name)
    return _need(dtype.is_float, name, dtype, "a float")


def _rule_any(dtypes: Sequence[DType], name: str) -> DType:
    return _same(dtypes, name)


def _rule_bits(dtypes: Sequence[DType], name: str) -> DType:
    dtype = _same(dtypes, name)
    return _need(not dtype.is_float, name, dtype, "an integer or bool")


def _rule_integer(dtypes: Sequence[DType], name: str) -> DType:
    dtype = _same(dtypes, name)
    return _need(dtype.is_integer, name, dtype, "an integer")


def _rule_compare(dtypes: Sequence[DType], name: str) -> DType:
    _same(dtypes, name)
    return BOOL


def _rule_test(dtypes: Sequence[DType], name: str) -> DType:
    _rule_float(dtypes, name)
    return BOOL


def _rule_select(dtypes: Sequence[DType], name: str) -> DType:
    _need(dtypes[0].is_bool, name, dtypes[0], "a bool condition")
    return _same(dtypes[1:], name)


def _rule_words(dtypes: Sequence[DType], name: str) -> DType:
    for dtype in dtypes:
        _need(dtype == I32, name, dtype, "words of i32")
    return I32


def _rule_bfloats(dtypes: Sequence[DType], name: str) -> DType:
    for dtype, wanted in zip(dtypes, (U32, U32, F32)):
        _need(dtype == wanted, name, dtype, "two words of u32 and an f32")
    return F32


def _rule_widen(dtypes: Sequence[DType], name: str) -> DType:
    _need(dtypes[0] == I16, name, dtypes[0], "words of i16")
    return I32


RULES: dict[str, Callable[[Sequence[DType], str], DType]] = {
    "numeric": _rule_numeric, "float": _rule_float, "any": _rule_any, "bits": _rule_bits, "integer": _rule_integer,
    "compare": _rule_compare, "test": _rule_test, "select": _rule_select,
    "words": _rule_words, "widen": _rule_widen, "bfloats": _rule_bfloats,
}
OTHER_RESULTS = ("compare", "test", "widen")  # rules that give another dtype than the operands have


def _floordiv(a: Any, b: Any) -> Any:
    if np.issubdtype(a.dtype, np.integer):
        zero = b == 0
        least = (b == -1) if np.issubdtype(a.dtype, np.signedinteger) else np.zeros_like(zero)
        safe = np.where(zero | least, np.ones_like(b), b)
        return np.where(zero, np.zeros_like(a), np.where(least, _wrapping_negative(a), np.floor_divide(a, safe)))
    return np.floor_divide(a, b)


def _wrapping_negative(a: Any) -> Any:
    return (np.zeros_like(a) - a).astype(a.dtype)


def _mod(a: Any, b: Any) -> Any:
    if np.issubdtype(a.dtype, np.integer):
        zero = b == 0
        special = zero | (b == -1) if np.issubdtype(a.dtype, np.signedinteger) else zero
        return np.where(special, np.zeros_like(a), np.remainder(a, np.where(special, np.ones_like(b), b)))
    return np.remainder(a, b)


def _rem(a: Any, b: Any) -> Any:
    if np.issubdtype(a.dtype, np.integer):
        zero = b == 0
        special = zero | (b == -1) if np.issubdtype(a.dtype, np.signedinteger) else zero
        return np.where(special, np.zeros_like(a), np.fmod(a, np.where(special, np.ones_like(b), b)))
    return np.fmod(a, b)


def _shl(a: Any, b: Any) -> Any:
    width = a.dtype.itemsize * 8
    past = (b >= width) | (b < 0)
    return np.where(past, np.zeros_like(a), np.left_shift(a, np.where(past, np.zeros_like(b), b)))


def _shr(a: Any, b: Any) -> Any:
    width = a.dtype.itemsize * 8
    past = (b >= width) | (b < 0)
    return np.right_shift(a, np.where(past, np.full_like(b, width - 1), b)) if np.issubdtype(
        a.dtype, np.signedinteger) else np.where(past, np.zeros_like(a), np.right_shift(
            a, np.where(past, np.zeros_like(b), b)))


def _pow(a: Any, b: Any) -> Any:
    if not np.issubdtype(a.dtype, np.integer):
        return np.power(a, b)
    negative = b < 0
    magnitude = np.power(a, np.where(negative, np.zeros_like(b), b))
    if not np.issubdtype(a.dtype, np.signedinteger):
        return magnitude
    odd = (b & 1) == 1
    one = np.ones_like(a)
    unit = np.where(a == 1, one, np.where(a == -1, np.where(odd, -one, one), np.zeros_like(a)))
    return np.where(negative, unit, magnitude)


_ERF = np.frompyfunc(math.erf, 1, 1)


def _erf(a: Any) -> Any:
    return np.asarray(_ERF(np.asarray(a, dtype=np.float64)), dtype=np.float64).astype(a.dtype)


def _select(c: Any, a: Any, b: Any) -> Any:
    return np.where(c, a, b)


def _fma(a: Any, b: Any, c: Any) -> Any:
    """One rounding. float64 goes through exact fractions, element by element; narrower floats through float64."""
    return np.asarray(_FMA_EXACT(a, b, c), dtype=a.dtype) if a.dtype.itemsize > 4 else _fma_to_odd(a, b, c).astype(a.dtype)


def _fma_to_odd(a: Any, b: Any, c: Any) -> Any:
    """Of floats of at most 32 bits, in float64: what is not exact has the neighbour whose last bit is 1."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    # the error of the sum (Knuth, Two-Sum); rounding to odd makes the second rounding see what the first one lost
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    bits = np.asarray(total).view(np.int64)  # new memory, and of no axes where the operands have none
    inexact = np.isfinite(total) & (lost != 0) & ((bits & 1) == 0)
    outwards = (lost > 0) == (total > 0)
    return np.where(inexact, bits + np.where(outwards, 1, -1), bits).view(np.float64)


def _fma_exact(a: float, b: float, c: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        # what the sum of an infinite or undefined product and c gives; the sign of a finite product is what counts
        product = a * b if not (math.isfinite(a) and math.isfinite(b)) else 0.0
        return product + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return math.copysign(0.0, a) * math.copysign(1.0, b) + c if a == 0 or b == 0 else 0.0
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


_FMA_EXACT = np.frompyfunc(lambda a, b, c: _fma_exact(float(a), float(b), float(c)), 3, 1)


def _sigmoid(a: Any) -> Any:
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1 / (1 + e), e / (1 + e)).astype(a.dtype)


def _not(a: Any) -> Any:
    return np.logical_not(a) if a.dtype == np.bool_ else np.invert(a)


def _parts(words: Any, dtype: str) -> Any:
    """What words hold, along a new last axis, as int32."""
    parts = np.ascontiguousarray(words).reshape(-1).view(np.dtype(dtype))
    return parts.reshape(*words.shape, words.dtype.itemsize // parts.dtype.itemsize).astype(np.int32)


def _dot_pairs(a: Any, b: Any, c: Any) -> Any:
    return np.sum(_parts(a, "<i2") * _parts(b, "<i2"), axis=-1, dtype=np.int32) + c


def _dot_quads(a: Any, b: Any, c: Any) -> Any:
    return np.sum(_parts(a, "u1") * _parts(b, "i1"), axis=-1, dtype=np.int32) + c


def _dot_quads_saturating(a: Any, b: Any, c: Any) -> Any:
    products = _parts(a, "u1") * _parts(b, "i1")
    return np.clip(products[..., ::2] + products[..., 1::2], -32768, 32767).sum(axis=-1, dtype=np.int32) + c


def _add_byte_pairs(a: Any, b: Any, c: Any) -> Any:
    products = _parts(a, "u1") * _parts(b, "i1")
    low, high = np.moveaxis(np.clip(products[..., ::2] + products[..., 1::2], -32768, 32767) + _parts(c, "<i2"), -1, 0)
    return (high << 16) | (low & 0xFFFF)


def _flushed(x: Any, least: float = 2.0**-126) -> Any:
    return np.where(np.abs(x) < least, np.copysign(np.float32(0), x), x).astype(np.float32)


def _dot_bfloats(a: Any, b: Any, c: Any) -> Any:
    total = _flushed(c)
    for shift in (0, 16):  # the upper halves, then the lower ones
        x, y = (np.asarray((word << np.uint32(shift)) & np.uint32(0xFFFF0000)).view(np.float32) for word in (a, b))
        total = _flushed(_fma_to_odd(_flushed(x), _flushed(y), total), LEAST_ROUNDED_TO_NORMAL)
    return total


def _widen_pairs(a: Any) -> Any:
    low, high = np.moveaxis(_parts(a, "i1"), -1, 0)
    return (high << 16) | (low & 0xFFFF)


def _neg(a: Any) -> Any:
    return np.negative(a)


SCALARS: dict[str, ScalarFunction] = {row.name: row for row in (
    ScalarFunction("add", 2, "numeric", np.add, True, 0),
    ScalarFunction("sub", 2, "numeric", np.subtract, identity=0),
    ScalarFunction("mul", 2, "numeric", np.multiply, True, 1),
    ScalarFunction("div", 2, "float", np.true_divide, identity=1),
    ScalarFunction("floordiv", 2, "numeric", _floordiv),
    ScalarFunction("mod", 2, "numeric", _mod),
    ScalarFunction("rem", 2, "numeric", _rem),
    ScalarFunction("pow", 2, "numeric", _pow, identity=1),
    ScalarFunction("max", 2, "any", np.maximum, True),
    ScalarFunction("min", 2, "any", np.minimum, True),
    ScalarFunction("fmax", 2, "float", np.fmax, True),
    ScalarFunction("fmin", 2, "float", np.fmin, True),
    ScalarFunction("atan2", 2, "float", np.arctan2),
    ScalarFunction("hypot", 2, "float", np.hypot, True),
    ScalarFunction("copysign", 2, "float", np.copysign),
    ScalarFunction("and", 2, "bits", np.bitwise_and, True),
    ScalarFunction("or", 2, "bits", np.bitwise_or, True),
    ScalarFunction("xor", 2, "bits", np.bitwise_xor, True),
    ScalarFunction("shl", 2, "integer", _shl),
    ScalarFunction("shr", 2, "integer", _shr),
    ScalarFunction("eq", 2, "compare", np.equal, True),
    ScalarFunction("ne", 2, "compare", np.not_equal, True),
    ScalarFunction("lt", 2, "compare", np.less),
    ScalarFunction("le", 2, "compare", np.less_equal),
    ScalarFunction("gt", 2, "compare", np.greater),
    ScalarFunction("ge", 2, "compare", np.greater_equal),
    ScalarFunction("neg", 1, "numeric", _neg),
    ScalarFunction("abs", 1, "numeric", np.abs),
    ScalarFunction("sign", 1, "numeric", np.sign),
    ScalarFunction("not", 1, "bits", _not),
    ScalarFunction("exp", 1, "float", np.exp),
    ScalarFunction("exp2", 1, "float", np.exp2),
    ScalarFunction("expm1", 1, "float", np.expm1),
    ScalarFunction("log", 1, "float", np.log),
    ScalarFunction("log2", 1, "float", np.log2),
    ScalarFunction("log10", 1, "float", np.log10),
    ScalarFunction("log1p", 1, "float", np.log1p),
    ScalarFunction("sqrt", 1, "float", np.sqrt),
    ScalarFunction("cbrt", 1, "float", np.cbrt),
    ScalarFunction("sin", 1, "float", np.sin),
    ScalarFunction("cos", 1, "float", np.cos),
    ScalarFunction("tan", 1, "float", np.tan),
    ScalarFunction("asin", 1, "float", np.arcsin),
    ScalarFunction("acos", 1, "float", np.arccos),
    ScalarFunction("atan", 1, "float", np.arctan),
    ScalarFunction("sinh", 1, "float", np.sinh),
    ScalarFunction("cosh", 1, "float", np.cosh),
    ScalarFunction("tanh", 1, "float", np.tanh),
    ScalarFunction("asinh", 1, "float", np.arcsinh),
    ScalarFunction("acosh", 1, "float", np.arccosh),
    ScalarFunction("atanh", 1, "float", np.arctanh),
    ScalarFunction("erf", 1, "float", _erf),
    ScalarFunction("sigmoid", 1, "float", _sigmoid),
    ScalarFunction("floor", 1, "float", np.floor),
    ScalarFunction("ceil", 1, "float", np.ceil),
    ScalarFunction("trunc", 1, "float", np.trunc),
    ScalarFunction("round", 1, "float", np.rint),
    ScalarFunction("isnan", 1, "test", np.isnan),
    ScalarFunction("isinf", 1, "test", np.isinf),
    ScalarFunction("fma", 3, "float", _fma),
    ScalarFunction("select", 3, "select", _select),
    ScalarFunction("dot_pairs", 3, "words", _dot_pairs),
    ScalarFunction("dot_quads", 3, "words", _dot_quads),
    ScalarFunction("dot_quads_saturating", 3, "words", _dot_quads_saturating),
    ScalarFunction("add_byte_pairs", 3, "words", _add_byte_pairs),
    ScalarFunction("dot_bfloats", 3, "bfloats", _dot_bfloats),
    ScalarFunction("widen_pairs", 1, "widen", _widen_pairs),
)}


def scalar_function(name: str) -> ScalarFunction:
    try:
        return SCALARS[name]
    except KeyError:
        raise CompileError(f"unknown scalar function {name!r}") from None


def result_dtype(name: str, dtypes: Sequence[DType]) -> DType:
    """The dtype that the function gives; CompileError where arity or dtypes do not fit."""
    function = scalar_function(name)
    if len(dtypes) != function.arity:
        raise CompileError(f"{name}: takes {function.arity} operands, found {len(dtypes)}")
    return RULES[function.rule](dtypes, name)


def evaluate_scalar(name: str, arrays: Sequence[Any]) -> Any:
    """The function on NumPy arrays of equal shape; float16 and bfloat16 compute in float32 and round once."""
    function = scalar_function(name)
    dtype = arrays[-1].dtype
    narrow = dtype.itemsize == 2 and not np.issubdtype(dtype, np.integer) and dtype != np.bool_
    with np.errstate(all="ignore"):
        if narrow:
            wide = [a.astype(np.float32) if a.dtype == dtype else a for a in arrays]
            value = np.asarray(function.numpy(*wide))
            return value if function.rule in OTHER_RESULTS else value.astype(dtype)
        value = np.asarray(function.numpy(*arrays))
    if function.rule in OTHER_RESULTS:
        return value
    return value if value.dtype == dtype else value.astype(dtype)
