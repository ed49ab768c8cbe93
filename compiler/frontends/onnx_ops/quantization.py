"""ONNX operators with scales and zero points: composites, exact sums of products of integers, and arithmetic.

Quantized values are 8- and 16-bit integers (and int32 for biases). A scale is one number, one for each place of an
axis, or one for each block along it. Later passes recognise these forms and make integer kernels of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.dims import DimLike, ceildiv
from ...ir.graph import Node
from ...ir.types import F32, I32, U8, DType
from ...library import broadcast, reduce, slice_axis
from ...library_quantized import BYTES, QUANTIZED, dequantize, difference, quantize
from ...library_quantized import saturated as limited
from .context import Context, Operators
from .contraction import matmul_into
from .narrow import converted, is_integer, limits_of
from .neural import conv_into


def _spread(c: Context, parameter: Node, x: Node, axis: int, block_size: int) -> Node:
    """A scale or zero point so that it broadcasts against x."""
    if parameter.rank == 0 or parameter.shape == (1,):
        return c.reshape(parameter, ())
    place = c.axis(axis, x.rank)
    if parameter.rank == 1 and not block_size:
        return c.reshape(parameter, [parameter.shape[0] if a == place else 1 for a in range(x.rank)])
    if not block_size or parameter.rank != x.rank:
        c.fail(f"the scale {parameter.type} does not fit {x.type} along axis {axis}, block_size {block_size}")
    blocks: DimLike = parameter.shape[place]
    if blocks != ceildiv(x.shape[place], block_size):
        c.fail(f"{blocks} blocks of {block_size} do not cover axis {axis} of {x.type}")
    wide = c.reshape(parameter, (*parameter.shape[:place + 1], 1, *parameter.shape[place + 1:]))
    wide = broadcast(c.b, wide, (*parameter.shape[:place + 1], block_size, *parameter.shape[place + 1:]))
    flat = c.reshape(wide, (*parameter.shape[:place], blocks * block_size, *parameter.shape[place + 1:]))
    return slice_axis(c.b, flat, place, 0, x.shape[place])


def _fitted(c: Context, x: Node, scale: Node, zero_point: Node | None, axis: int) -> tuple[Node, Node, Node | None]:
    """x, scale and zero point that broadcast; sizes along the axis that are not proved equal are checked at run time."""
    spread = _spread(c, scale, x, axis, 0)
    if spread.rank:
        x = c.refine(x, [n if m == 1 else m for n, m in zip(x.shape, spread.shape)])
    point = None if zero_point is None else _spread(c, zero_point, x, axis, 0)
    if point is not None and point.rank:
        point = c.refine(point, [m if m == 1 else n for n, m in zip(x.shape, point.shape)])
    return x, spread, point


def saturated(c: Context, x: Node, dtype: DType) -> Node:
    """A float rounded already, limited to the dtype's range."""
    if not is_integer(dtype):
        c.fail(f"a zero point gives the result its dtype, which must be an integer, found {dtype}")
    if not dtype.is_stored:
        return limited(c.b, x, dtype)
    least, greatest = limits_of(dtype)
    return c.cast(c.apply("min", c.apply("max", x, c.like(least, x)), c.like(greatest, x)), dtype)


def quantize_linear(c: Context, x: Node, scale: Node, zero_point: Node | None = None, *, axis: int = 1,
                    block_size: int = 0, output_dtype: int = 0, precision: int = 0, saturate: int = 1) -> Node:
    """saturate(round(x / scale) + zero point), rounding half to even."""
    if zero_point is not None:
        dtype = zero_point.dtype
    else:
        dtype = c.dtype(output_dtype) if output_dtype else U8
    if not dtype.is_stored and (not dtype.is_integer or dtype.bits > 16):
        c.unsupported(f"quantizing to {dtype} is not supported; integers of up to 16 bits, float8 and float4 are")
    if dtype in QUANTIZED and not block_size and not precision and x.dtype == scale.dtype == F32:
        x, spread, point = _fitted(c, x, scale, zero_point, axis)
        return quantize(c.b, x, spread, point, dtype)
    wide = c.dtype(precision) if precision else scale.dtype if scale.dtype.is_float and scale.dtype.bits >= 32 else F32
    scaled = c.apply("div", c.cast(x, wide), c.cast(_spread(c, scale, x, axis, block_size), wide))
    if not is_integer(dtype):
        return converted(c.b, scaled, dtype, bool(saturate))       # whose zero point can only be zero
    whole = c.scalar("round", scaled)
    if zero_point is not None:
        whole = c.apply("add", whole, c.cast(_spread(c, zero_point, x, axis, block_size), wide))
    return saturated(c, whole, dtype)


def dequantize_linear(c: Context, x: Node, scale: Node, zero_point: Node | None = None, *, axis: int = 1,
                      block_size: int = 0, output_dtype: int = 0) -> Node:
    """(x - zero point) * scale, the difference exact in int32; the zero point of a float8 can only be zero."""
    if not is_integer(x.dtype) and not x.dtype.is_stored:
        c.unsupported(f"dequantizing {x.dtype} is not supported")
    if x.dtype in BYTES and not block_size and not output_dtype:
        x, spread, point = _fitted(c, x, scale, zero_point, axis)
        return dequantize(c.b, x, spread, point)
    whole = c.cast(x, I32 if is_integer(x.dtype) else F32)
    if zero_point is not None and is_integer(x.dtype):
        whole = c.apply("sub", whole, c.cast(_spread(c, zero_point, x, axis, block_size), I32))
    dtype = c.dtype(output_dtype) if output_dtype else scale.dtype
    factor = c.wide(_spread(c, scale, x, axis, block_size))
    return c.cast(c.apply("mul", c.cast(whole, factor.dtype), factor), dtype)


def dynamic_quantize_linear(c: Context, x: Node) -> tuple[Node, Node, Node]:
    """uint8 over the range of the data, 0 included."""
    axes = tuple(range(x.rank))
    zero, top = c.like(0, x), c.like(255, x)
    high = c.apply("max", reduce(c.b, "max", x, axes), zero)
    low = c.apply("min", reduce(c.b, "min", x, axes), zero)
    scale = c.scalar("div", c.scalar("sub", high, low), top)
    flat = c.apply("eq", scale, zero)      # all zero: any scale will do
    divisor = c.scalar("select", flat, c.like(1, x), scale)
    start = c.scalar("div", c.scalar("neg", low), divisor)
    point = c.scalar("round", c.scalar("min", c.scalar("max", start, zero), top))
    whole = c.apply("add", c.scalar("round", c.apply("div", x, divisor)), point)
    return saturated(c, whole, U8), scale, c.cast(point, U8)


def _shifted(c: Context, x: Node, zero_point: Node | None, row: bool = False) -> Node:
    """Bytes less their zero point; a vector of zero points belongs to the rows (or the columns)."""
    if zero_point is not None and zero_point.rank == 1 and zero_point.shape != (1,):
        zero_point = c.reshape(zero_point, (*zero_point.shape, 1)) if row else zero_point
    elif zero_point is not None and zero_point.rank <= 1:
        zero_point = c.reshape(zero_point, ())
    return difference(c.b, x, zero_point)


def matmul_integer(c: Context, a: Node, b: Node, a_zero_point: Node | None = None,
                   b_zero_point: Node | None = None) -> Node:
    return matmul_into(c, _shifted(c, a, a_zero_point, row=True), _shifted(c, b, b_zero_point), I32)


def qlinear_matmul(c: Context, a: Node, a_scale: Node, a_zero_point: Node, b: Node, b_scale: Node, b_zero_point: Node,
                   y_scale: Node, y_zero_point: Node) -> Node:
    total = matmul_integer(c, a, b, a_zero_point, b_zero_point)
    left = c.reshape(a_scale, (*a_scale.shape, 1)) if a_scale.rank == 1 and a_scale.shape != (1,) else a_scale
    factor = c.apply("div", c.apply("mul", c.wide(left), c.wide(b_scale)), c.wide(y_scale))
    if factor.rank == 1 and factor.shape == (1,):
        factor = c.reshape(factor, ())
    scaled = c.scalar("round", c.apply("mul", c.cast(total, F32), factor))
    point = c.cast(y_zero_point if y_zero_point.shape != (1,) else c.reshape(y_zero_point, ()), F32)
    return saturated(c, c.apply("add", scaled, point), y_zero_point.dtype)


def _shifted_weight(c: Context, w: Node, zero_point: Node | None) -> Node:
    """w - zero point; a vector of zero points belongs to the output channels."""
    if zero_point is not None and zero_point.rank and zero_point.shape != (1,):
        zero_point = c.reshape(zero_point, (zero_point.shape[0], *[1] * (w.rank - 1)))
    return _shifted(c, w, zero_point)


def conv_integer(c: Context, x: Node, w: Node, x_zero_point: Node | None = None, w_zero_point: Node | None = None, *,
                 auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
                 kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None,
                 strides: Sequence[int] | None = None) -> Node:
    """Padding is the zero point."""
    return conv_into(c, _shifted(c, x, x_zero_point), _shifted_weight(c, w, w_zero_point), I32, auto_pad, dilations, group, kernel_shape,
                     pads, strides)


def qlinear_conv(c: Context, x: Node, x_scale: Node, x_zero_point: Node, w: Node, w_scale: Node, w_zero_point: Node,
                 y_scale: Node, y_zero_point: Node, bias: Node | None = None, *, auto_pad: str = "NOTSET",
                 dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
                 pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Node:
    """The exact sum with its int32 bias, scaled and rounded once."""
    total = conv_integer(c, x, w, x_zero_point, w_zero_point, auto_pad=auto_pad, dilations=dilations, group=group,
                         kernel_shape=kernel_shape, pads=pads, strides=strides)
    ones = [1] * (x.rank - 2)
    if bias is not None:
        total = c.apply("add", total, c.reshape(bias, (1, bias.shape[0], *ones)))
    scales = [c.reshape(s, ()) if s.shape == (1,) else s for s in (c.wide(x_scale), c.wide(w_scale), c.wide(y_scale))]
    if scales[1].rank == 1:
        scales[1] = c.reshape(scales[1], (1, scales[1].shape[0], *ones))
    factor = c.apply("div", c.apply("mul", scales[0], scales[1]), scales[2])
    scaled = c.scalar("round", c.apply("mul", c.cast(total, F32), factor))
    point = c.cast(c.reshape(y_zero_point, ()), F32)
    return saturated(c, c.apply("add", scaled, point), y_zero_point.dtype)


OPS: Operators = {
    "ConvInteger": conv_integer, "QLinearConv": qlinear_conv,
    "DequantizeLinear": dequantize_linear, "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer, "QLinearMatMul": qlinear_matmul, "QuantizeLinear": quantize_linear,
}
