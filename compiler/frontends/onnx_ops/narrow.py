"""The narrow formats of quantized models: float8 in its forms, float4, and integers of 4 and 2 bits.

The IR only stores them. What a float holds is looked up in a table of 256, an integer is widened by shifts; a value is brought into them by
arithmetic on its bits.

Guarantees: each conversion gives the bits that ml_dtypes gives, rounding half to even: past the greatest number there is that
number with `saturate`, else the format's infinity or NaN, as the standard's tables say. Integers wrap, after floats lost their
fraction.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from ...ir.graph import Array, Builder, Node
from ...ir.ops.compute import Bitcast
from ...ir.ops.shape import Take
from ...ir.types import F32, F64, I32, I64, U8, DType, dtype_named
from ...library import apply, cast, constant, like, scalar
from ...library_quantized import STORED_BITS, widened


class Format(Struct, frozen=True):
    """A narrow float: bits of the mantissa, the least exponent of a normal number, codes of the greatest number, of what
    lies beyond it and of NaN, whether the sign of a zero is kept."""

    mantissa: int
    least: int
    greatest: int
    beyond: int
    nan: int
    signed_zero: bool = True
    sign: int = 0x80


FORMATS = {
    "f8e4m3fn": Format(3, -6, 0x7E, 0x7F, 0x7F),
    "f8e4m3fnuz": Format(3, -7, 0x7F, 0x80, 0x80, False),
    "f8e5m2": Format(2, -14, 0x7B, 0x7C, 0x7E),
    "f8e5m2fnuz": Format(2, -15, 0x7F, 0x80, 0x80, False),
    # no infinity and no NaN: NaN gives the zero with a sign
    "f4e2m1": Format(1, 0, 0x7, 0x7, 0x8, True, 0x8),
}
E8M0 = dtype_named("f8e8m0")
ROUND_MODES = ("up", "down", "nearest")


def limits_of(dtype: DType) -> tuple[int, int]:
    """The least and the greatest number of an integer dtype."""
    if not dtype.is_stored:
        return int(np.iinfo(dtype.numpy).min), int(np.iinfo(dtype.numpy).max)
    every = _every_value(dtype)
    return int(every.min()), int(every.max())


def is_integer(dtype: DType) -> bool:
    return dtype.is_integer or dtype.name in STORED_BITS


def converted(b: Builder, x: Node, dtype: DType, saturate: bool = True, round_mode: str = "up") -> Node:
    """A cast from or to a dtype that is only stored, or any other one."""
    if x.dtype == dtype:
        return x
    if x.dtype.is_stored:
        x = _read(b, x)
    if not dtype.is_stored:
        return cast(b, x, dtype)
    if dtype.name in STORED_BITS:
        bits = cast(b, cast(b, x, I64), U8)
        mask = like(b, (1 << STORED_BITS[dtype.name]) - 1, bits)
        return b.add(Bitcast(dtype), apply(b, "and", bits, mask))
    wide = x if x.dtype == F64 else cast(b, x, F32)
    code = _exponent_code(b, wide, saturate, round_mode) if dtype == E8M0 else _code(b, wide, FORMATS[dtype.name], saturate)
    return b.add(Bitcast(dtype), cast(b, code, U8))


def _read(b: Builder, x: Node) -> Node:
    """Stored values as int32 or float32, which hold all of them."""
    if x.dtype.name in STORED_BITS:
        return cast(b, widened(b, x), I32)
    return b.add(Take(0), constant(b, _every_value(x.dtype)), b.add(Bitcast(U8), x))


def _every_value(dtype: DType) -> Array:
    """What each byte holds."""
    every = np.arange(256, dtype=np.uint8).view(dtype.numpy)
    return every.astype(np.int32 if dtype.name in STORED_BITS else np.float32)


def _code(b: Builder, x: Node, form: Format, saturate: bool) -> Node:
    """The code of a float, as an integer as wide as the float is."""
    whole, width, bias = (I64, 52, 1023) if x.dtype == F64 else (I32, 23, 127)

    def number(n: int) -> Node:
        return constant(b, n, whole)

    # far enough past the greatest number, so that infinity needs no case of its own
    size = apply(b, "min", scalar(b, "abs", x), like(b, 2.0 ** 20, x))
    exponent = apply(b, "sub", apply(b, "shr", b.add(Bitcast(whole), size), number(width)), number(bias))
    exponent = apply(b, "max", exponent, number(form.least))
    # in units of the last place, a power of two
    unit = apply(b, "shl", apply(b, "add", exponent, number(bias - form.mantissa)), number(width))
    count = cast(b, scalar(b, "round", scalar(b, "div", size, b.add(Bitcast(x.dtype), unit))), whole)
    # every power of two past the least exponent starts 2^mantissa codes later; rounding up carries into the exponent
    code = scalar(b, "add", count, apply(b, "shl", apply(b, "sub", exponent, number(form.least)), number(form.mantissa)))
    past = number(form.greatest if saturate else form.beyond)
    code = apply(b, "select", apply(b, "gt", code, number(form.greatest)), past, code)
    negative = apply(b, "lt", b.add(Bitcast(whole), x), number(0))
    if not form.signed_zero:
        negative = scalar(b, "and", negative, apply(b, "ne", code, number(0)))
    signed = apply(b, "select", negative, apply(b, "or", code, number(form.sign)), code)
    return apply(b, "select", scalar(b, "isnan", x), number(form.nan), signed)


def _exponent_code(b: Builder, x: Node, saturate: bool, round_mode: str) -> Node:
    """A power of two, by its exponent: the sign is lost, NaN and infinity are 255."""
    bits = b.add(Bitcast(I32), cast(b, x, F32))

    def number(n: int) -> Node:
        return constant(b, n, I32)

    exponent = apply(b, "and", apply(b, "shr", bits, number(23)), number(255))
    fraction = apply(b, "and", bits, number((1 << 23) - 1))
    if round_mode == "up":
        more = apply(b, "gt", fraction, number(0))
    elif round_mode == "down":
        more = apply(b, "lt", fraction, number(0))
    else:
        # half goes up, but for the subnormals, whose half goes down
        more = scalar(b, "or", apply(b, "gt", fraction, number(1 << 22)),
                      scalar(b, "and", apply(b, "eq", fraction, number(1 << 22)), apply(b, "gt", exponent, number(0))))
    top = apply(b, "lt", exponent, number(254 if saturate else 255))
    return scalar(b, "add", exponent, cast(b, scalar(b, "and", more, top), I32))



