"""Numbers in units of a scale: the composites `quantize` and `dequantize`, and products of narrow integers.

A quantized value q stands for (q - zero point) * scale. Scales and zero points are values that broadcast against q: one number,
one for each place of an axis, or one for each of several blocks where the axis is split. The pass `lower_quantized` claims
`dequantize` before contractions; elsewhere both are opened into their arithmetic.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .ir.dims import bounds, product
from .ir.graph import Builder, Node
from .ir.ops.compute import Bitcast, Conv
from .ir.ops.control import Composite, Param
from .ir.types import F32, I8, I16, I32, U8, DType, TensorType, Type
from .library import apply, cast, composite, constant, like, scalar

BYTES = (I8, U8)
QUANTIZED = (*BYTES, I16)  # what a composite takes or gives
STORED_BITS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}
LEAST_CHANNELS = 64  # of a convolution that are worth a product of their own for each tap of the kernel
MOST_TAPS = 16


def _quantize(b: Builder, x: Node, scale: Node, *zero_point: Node, dtype: DType) -> Node:
    whole = scalar(b, "round", apply(b, "div", x, scale))
    if zero_point:
        whole = apply(b, "add", whole, cast(b, zero_point[0], x.dtype))
    return saturated(b, whole, dtype)


def quantize(b: Builder, x: Node, scale: Node, zero_point: Node | None, dtype: DType) -> Node:
    """saturate(round(x / scale) + zero point), rounding half to even; NaN gives the least value. x and the scale are floats of one
    dtype."""
    return composite(b, "quantize", _quantize, x, scale, *([] if zero_point is None else [zero_point]), dtype=dtype)


def saturated(b: Builder, x: Node, dtype: DType) -> Node:
    """A float that is whole already, limited to the range of an integer dtype; NaN gives its least value."""
    limits = np.iinfo(dtype.numpy)
    return cast(b, apply(b, "fmin", apply(b, "fmax", x, like(b, int(limits.min), x)), like(b, int(limits.max), x)), dtype)


def _dequantize(b: Builder, q: Node, scale: Node, *zero_point: Node) -> Node:
    whole = cast(b, q, I32)
    if zero_point:
        whole = apply(b, "sub", whole, cast(b, zero_point[0], I32))
    factor = scale if scale.dtype.bits >= 32 else cast(b, scale, F32)
    return cast(b, apply(b, "mul", cast(b, whole, factor.dtype), factor), scale.dtype)


def dequantize(b: Builder, q: Node, scale: Node, zero_point: Node | None = None) -> Node:
    """(q - zero point) * scale in the dtype of the scale; the difference is exact in int32."""
    return composite(b, "dequantize", _dequantize, q, scale, *([] if zero_point is None else [zero_point]))


def widened(b: Builder, q: Node) -> Node:
    """Integers that are only stored, in the lowest bits of a byte, as int8 or uint8; others as they are."""
    bits = STORED_BITS.get(q.dtype.name)
    if bits is None:
        return q
    code = b.add(Bitcast(U8), q)
    if q.dtype.name.startswith("u"):
        return apply(b, "and", code, constant(b, (1 << bits) - 1, U8))
    top = b.add(Bitcast(I8), apply(b, "shl", code, constant(b, 8 - bits, U8)))  # the sign is brought to the top of the byte, and back
    return apply(b, "shr", top, constant(b, 8 - bits, I8))


@lru_cache(maxsize=256)
def _meaning(op: str, types: tuple[Type, ...], dtype: DType | None) -> str:
    """The fingerprint of the body that the composite has for operands of these types."""
    b = Builder()
    x, scale, *point = (b.add(Param(f"x{i}", t.dtype, t.shape)) for i, t in enumerate(types) if isinstance(t, TensorType))
    made = dequantize(b, x, scale, *point) if dtype is None else quantize(b, x, scale, point[0] if point else None, dtype)
    assert isinstance(made.op, Composite)
    return made.op.body.fingerprint


def is_quantize(node: Node) -> bool:
    """Whether a node is `quantize`: by its body, since a label alone promises nothing."""
    if not isinstance(node.op, Composite) or node.op.label != "quantize" or not isinstance(node.type, TensorType):
        return False
    fits = 2 <= len(node.inputs) <= 3 and node.dtype in QUANTIZED
    return fits and node.op.body.fingerprint == _meaning("quantize", tuple(x.type for x in node.inputs), node.dtype)


def is_dequantize(node: Node) -> bool:
    """Whether a node is `dequantize`, by its body."""
    if not isinstance(node.op, Composite) or node.op.label != "dequantize" or not 2 <= len(node.inputs) <= 3:
        return False
    return node.op.body.fingerprint == _meaning("dequantize", tuple(x.type for x in node.inputs), None)


def difference(b: Builder, q: Node, zero_point: Node | None) -> Node:
    """Bytes less their zero point, which broadcasts against them: narrow integers that are multiplied exactly."""
    return q if zero_point is None else apply(b, "sub", cast(b, q, I16), cast(b, zero_point, I16))


def may_scale_by_place(op: Conv, x: TensorType, w: TensorType) -> bool:
    """Whether a convolution of bytes may have a scale for each place of its input: one that is worth a product for each tap."""
    _, kernel, channels, _, _ = op.parts(x, w)
    few = bounds(channels)[0] < LEAST_CHANNELS or bounds(product(kernel))[1] > MOST_TAPS
    return op.groups == 1 and all(n == 1 for n in op.input_dilation) and not few
