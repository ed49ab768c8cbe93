"""Quantized operators of the domain com.microsoft: the QLinear family, products of integers that give floats, packed weights.

Values are dequantized exactly as integers less their zero point, computed with in float32 and rounded once, half to even; sums of
products are exact in int32. Weights of a few bits are unpacked into one element a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...ir.dims import ceildiv
from ...ir.graph import Node
from ...ir.ops.shape import Concat, Take
from ...ir.types import F32, I16, I32, I64, U8, DType, dtype_named
from ...library import expand, leaky_relu, mean, slice_axis, softmax, transpose
from .context import Context, Operators
from .contraction import matmul
from .contrib_layers import channels_first, channels_last
from .neural import average_pool, max_pool
from .quantization import dequantize_linear, dynamic_quantize_linear, matmul_integer, qlinear_conv, quantize_linear, saturated
from .recurrent import LSTM, Cell, Kind, run_layer


def _number(c: Context, x: Node) -> Node:
    """A scale or zero point of one element as a scalar."""
    return c.reshape(x, ()) if x.rank and x.shape == (1,) * x.rank else x


def dequantized(c: Context, x: Node, scale: Node, zero_point: Node | None) -> Node:
    return dequantize_linear(c, x, _number(c, scale), None if zero_point is None else _number(c, zero_point))


def _quantized(c: Context, value: Node, zero_point: Node | None, dtype: DType) -> Node:
    """A float in units of the scale as an integer: the zero point is added before the rounding."""
    if zero_point is not None:
        value = c.apply("add", value, c.cast(_number(c, zero_point), value.dtype))
    return saturated(c, c.scalar("round", value), dtype)


# --- element by element ----------------------------------------------------------------------------------------------


def _difference(c: Context, x: Node, zero_point: Node | None) -> Node:
    whole = c.cast(x, I32)
    return c.cast(whole if zero_point is None else c.apply("sub", whole, c.cast(_number(c, zero_point), I32)), F32)


def qlinear_add(c: Context, a: Node, a_scale: Node, a_zero_point: Node | None, b: Node, b_scale: Node, b_zero_point: Node | None,
                scale: Node, zero_point: Node | None = None) -> Node:
    parts = [c.apply("mul", _difference(c, x, point), c.apply("div", _number(c, own), _number(c, scale)))
             for x, own, point in ((a, a_scale, a_zero_point), (b, b_scale, b_zero_point))]
    return _quantized(c, c.apply("add", *parts), zero_point, a.dtype)


def qlinear_mul(c: Context, a: Node, a_scale: Node, a_zero_point: Node | None, b: Node, b_scale: Node, b_zero_point: Node | None,
                scale: Node, zero_point: Node | None = None) -> Node:
    factor = c.apply("div", c.apply("mul", _number(c, a_scale), _number(c, b_scale)), _number(c, scale))
    product = c.apply("mul", _difference(c, a, a_zero_point), _difference(c, b, b_zero_point))
    return _quantized(c, c.apply("mul", product, factor), zero_point, a.dtype)


def _requantized(c: Context, value: Node, scale: Node, zero_point: Node | None, dtype: DType) -> Node:
    return _quantized(c, c.apply("div", value, _number(c, scale)), zero_point, dtype)


def qlinear_sigmoid(c: Context, x: Node, x_scale: Node, x_zero_point: Node | None, y_scale: Node,
                    y_zero_point: Node | None = None) -> Node:
    return _requantized(c, c.scalar("sigmoid", dequantized(c, x, x_scale, x_zero_point)), y_scale, y_zero_point, x.dtype)


def qlinear_leaky_relu(c: Context, x: Node, x_scale: Node, x_zero_point: Node | None, y_scale: Node,
                       y_zero_point: Node | None = None, *, alpha: float = 0.01) -> Node:
    return _requantized(c, leaky_relu(c.b, dequantized(c, x, x_scale, x_zero_point), alpha), y_scale, y_zero_point, x.dtype)


def qlinear_softmax(c: Context, x: Node, x_scale: Node, x_zero_point: Node | None, y_scale: Node, y_zero_point: Node | None = None, *,
                    opset: int, axis: int = -1) -> Node:
    """Steps of the result are counted in whole ones: floor(1 / scale) of them make up 1."""
    place = c.axis(axis, x.rank)
    values = dequantized(c, x, x_scale, None)  # the zero point moves all alike
    if opset < 13:                             # over all axes from this one on
        width: Any = 1
        for size in x.shape[place:]:
            width = width * size
        weights = c.reshape(softmax(c.b, c.reshape(values, (*x.shape[:place], width)), place), x.shape)
    else:
        weights = softmax(c.b, values, place)
    steps = c.scalar("floor", c.apply("div", c.constant(1, F32), _number(c, y_scale)))
    return _quantized(c, c.apply("mul", weights, steps), y_zero_point, x.dtype)


def qlinear_concat(c: Context, y_scale: Node, y_zero_point: Node, *operands: Node, axis: int) -> Node:
    """Operands come in threes: a tensor, its scale, its zero point."""
    if len(operands) % 3 or not operands:
        c.fail(f"takes a tensor, a scale and a zero point each, found {len(operands)} inputs")
    parts = [_requantized(c, dequantized(c, x, scale, point), y_scale, y_zero_point, y_zero_point.dtype)
             for x, scale, point in zip(operands[::3], operands[1::3], operands[2::3])]
    return c.b.add(Concat(c.axis(axis, parts[0].rank)), *parts)


def qlinear_where(c: Context, condition: Node, x: Node, x_scale: Node, x_zero_point: Node, y: Node, y_scale: Node, y_zero_point: Node,
                  z_scale: Node, z_zero_point: Node) -> Node:
    sides = [_requantized(c, dequantized(c, value, scale, point), z_scale, z_zero_point, z_zero_point.dtype)
             for value, scale, point in ((x, x_scale, x_zero_point), (y, y_scale, y_zero_point))]
    return c.apply("select", condition, *sides)


# --- pools and convolutions ------------------------------------------------------------------------------------------


def _channels_first(c: Context, build: Callable[[Node], Node], x: Node, last: int) -> Node:
    """What is built on [batch, channels, *spatial], for either place of the channels."""
    return channels_last(c, build(channels_first(c, x))) if last else build(x)


def qlinear_average_pool(c: Context, x: Node, x_scale: Node, x_zero_point: Node | None, y_scale: Node,
                         y_zero_point: Node | None = None, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
                         channels_last: int = 0, count_include_pad: int = 0, pads: Sequence[int] | None = None,
                         strides: Sequence[int] | None = None) -> Node:
    def build(x: Node) -> Node:
        pooled = average_pool(c, dequantized(c, x, x_scale, x_zero_point), kernel_shape=kernel_shape, auto_pad=auto_pad,
                              ceil_mode=ceil_mode, count_include_pad=count_include_pad, pads=pads, strides=strides)
        return _requantized(c, pooled, y_scale, y_zero_point, x.dtype)
    return _channels_first(c, build, x, channels_last)


def qlinear_global_average_pool(c: Context, x: Node, x_scale: Node, x_zero_point: Node, y_scale: Node, y_zero_point: Node, *,
                                channels_last: int = 0) -> Node:
    def build(x: Node) -> Node:
        value = mean(c.b, dequantized(c, x, x_scale, x_zero_point), tuple(range(2, x.rank)), keep=True)
        return _requantized(c, value, y_scale, y_zero_point, x.dtype)
    return _channels_first(c, build, x, channels_last)


def nhwc_max_pool(c: Context, x: Node, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
                  dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Node:
    y = max_pool(c, channels_first(c, x), kernel_shape=kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations, pads=pads,
                 strides=strides)
    return channels_last(c, y if isinstance(y, Node) else y[0])


def qlinear_conv_anywhere(c: Context, x: Node, x_scale: Node, x_zero_point: Node, w: Node, w_scale: Node, w_zero_point: Node,
                          y_scale: Node, y_zero_point: Node, bias: Node | None = None, *, auto_pad: str = "NOTSET",
                          channels_last: int = 0, dilations: Sequence[int] | None = None, group: int = 1,
                          kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None,
                          strides: Sequence[int] | None = None) -> Node:
    """The standard's, also with the channels last."""
    def build(x: Node) -> Node:
        return qlinear_conv(c, x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias, auto_pad=auto_pad,
                            dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads, strides=strides)
    return _channels_first(c, build, x, channels_last)


# --- products --------------------------------------------------------------------------------------------------------


def matmul_integer16(c: Context, a: Node, b: Node) -> Node:
    """Exact products of int16, which are summed up in int32."""
    if {a.dtype, b.dtype} != {I16}:
        c.unsupported(f"operands of int16 are supported, found {a.type} and {b.type}")
    return matmul_integer(c, a, b)


def matmul_integer_to_float(c: Context, a: Node, b: Node, a_scale: Node, b_scale: Node, a_zero_point: Node | None = None,
                            b_zero_point: Node | None = None, bias: Node | None = None) -> Node:
    total = matmul_integer(c, a, b, None if a_zero_point is None else _number(c, a_zero_point), b_zero_point)
    factor = c.apply("mul", _number(c, a_scale), _number(c, b_scale))
    y = c.apply("mul", c.cast(total, factor.dtype), factor)
    return y if bias is None else c.apply("add", y, bias)


def dynamic_quantize_matmul(c: Context, a: Node, b: Node, b_scale: Node, b_zero_point: Node | None = None,
                            bias: Node | None = None) -> Node:
    """The first operand in uint8 over the range that it has."""
    values, scale, point = dynamic_quantize_linear(c, a)
    return matmul_integer_to_float(c, values, b, scale, b_scale, point, b_zero_point, bias)


def qgemm(c: Context, a: Node, a_scale: Node, a_zero_point: Node, b: Node, b_scale: Node, b_zero_point: Node,
          addend: Node | None = None, y_scale: Node | None = None, y_zero_point: Node | None = None, *, alpha: float = 1.0,
          transA: int = 0, transB: int = 0) -> Node:
    """The exact sum with its int32 addend, scaled: a float, or an integer where the result has a scale."""
    a, b = transpose(c.b, a, (1, 0)) if transA else a, transpose(c.b, b, (1, 0)) if transB else b
    total = matmul_integer(c, a, b, _number(c, a_zero_point), _number(c, b_zero_point))
    if addend is not None:
        total = c.apply("add", total, addend)
    factor = c.apply("mul", c.apply("mul", c.constant(alpha, F32), _number(c, a_scale)), _number(c, b_scale))
    if y_scale is None:
        return c.apply("mul", c.cast(total, F32), factor)
    scaled = c.scalar("round", c.apply("mul", c.cast(total, F32), c.apply("div", factor, _number(c, y_scale))))
    dtype = a.dtype if y_zero_point is None else y_zero_point.dtype
    return _quantized(c, scaled, y_zero_point, dtype)


# FP4 in units of its greatest number, and NF4 (Dettmers et al. 2023, QLoRA, appendix E)
FP4 = [sign * n / 12 for sign in (1, -1) for n in (0, 0.0625, 8, 12, 4, 6, 2, 3)]
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
BNB4 = {0: FP4, 1: NF4}
PACKED = {2: dtype_named("uint2"), 4: dtype_named("uint4"), 8: U8}


def matmul_n_bits(c: Context, a: Node, b: Node, scales: Node, zero_points: Node | None = None, g_idx: Node | None = None,
                  bias: Node | None = None, *, K: int, N: int, block_size: int, accuracy_level: int = 0, bits: int = 4,
                  weight_prepacked: int = 0) -> Node:
    """a w^T, w [N, K] in blocks along K with a scale and a zero point each, or with those of the block that g_idx names for a place.
    `accuracy_level` allows less, which is not used.
    """
    if bits not in PACKED or weight_prepacked:
        c.unsupported("weights of 2, 4 and 8 bits are supported; prepacked weights are not")
    c.positive(block_size, "block_size")
    blocks = -(-K // block_size)
    weight = slice_axis(c.b, unpacked(c, c.reshape(b, (N, blocks * block_size * bits // 8)), bits), 1, 0, K)
    scales = c.reshape(scales, (N, blocks))
    if zero_points is None:
        points = c.full(1 << bits - 1, U8, (N, blocks))
    elif zero_points.dtype.is_float:
        points = c.reshape(zero_points, (N, blocks))
    else:
        width = ceildiv(blocks * bits, 8)
        points = slice_axis(c.b, unpacked(c, c.reshape(zero_points, (N, width)), bits), 1, 0, blocks)
    if g_idx is not None:
        c.check_rank("g_idx", g_idx, 1)
        places = slice_axis(c.b, c.cast(g_idx, I64), 0, 0, K)
        scales, points, block_size = c.b.add(Take(1), scales, places), c.b.add(Take(1), points, places), 1
    if points.dtype.is_float:
        offset = c.apply("sub", c.cast(weight, scales.dtype), _spread(c, points, block_size, K))
        weights = c.apply("mul", offset, _spread(c, scales, block_size, K))
    else:
        weights = dequantize_linear(c, weight, scales, points, axis=1, block_size=block_size)
    y = matmul(c, a, transpose(c.b, c.cast(weights, a.dtype), (1, 0)))
    return y if bias is None else c.apply("add", y, bias)


def matmul_bnb4(c: Context, a: Node, b: Node, absmax: Node, *, K: int, N: int, block_size: int, quant_type: int, training_mode: int = 0,
                transB: int = 1) -> Node:
    """a w^T, or a w where transB is 0. w [N, K] is looked up by codes of 4 bits, the first of a byte in its upper half, and scaled in
    blocks that run on from row to row.
    """
    if quant_type not in BNB4:
        c.fail(f"quant_type must be 0 (FP4) or 1 (NF4), found {quant_type}")
    values = c.constant(np.array(BNB4[quant_type], np.float32))
    count = c.positive(N, "N") * c.positive(K, "K")
    blocks = ceildiv(count, c.positive(block_size, "block_size"))
    pairs = c.reshape(b, (ceildiv(count, 2), 1))
    halves = c.apply("and", c.apply("shr", pairs, c.constant(np.array([4, 0], np.uint8))), c.constant(15, U8))
    codes = slice_axis(c.b, c.reshape(halves, (ceildiv(count, 2) * 2,)), 0, 0, count)
    scales = _spread(c, c.reshape(c.wide(absmax), (1, blocks)), block_size, count)
    flat = c.apply("mul", c.b.add(Take(0), values, c.cast(codes, I64)), c.reshape(scales, (count,)))
    weights = c.reshape(c.cast(flat, a.dtype), (N, K))
    return matmul(c, a, transpose(c.b, weights, (1, 0)) if transB else weights)


def _spread(c: Context, x: Node, block_size: int, width: int) -> Node:
    """[rows, blocks] -> [rows, width]: each number as often as its block is long."""
    rows, blocks = x.shape
    wide = c.broadcast_to(expand(c.b, x, (2,)), (rows, blocks, block_size))
    return slice_axis(c.b, c.reshape(wide, (rows, blocks * block_size)), 1, 0, width)


def unpacked(c: Context, x: Node, bits: int) -> Node:
    """[rows, bytes] -> [rows, elements], the first element of a byte in its lowest bits."""
    if bits == 8:
        return x
    rows, count = x.shape
    shifts = c.constant(np.arange(0, 8, bits, dtype=np.uint8))
    parts = c.apply("and", c.apply("shr", expand(c.b, x, (2,)), shifts), c.constant((1 << bits) - 1, U8))
    return c.reshape(parts, (rows, count * (8 // bits)))


# --- DynamicQuantizeLSTM ---------------------------------------------------------------------------------------------


def _through_uint8(c: Context, x: Node) -> Node:
    """What is left of x in uint8 over the range that it has."""
    return dequantize_linear(c, *dynamic_quantize_linear(c, x))


def dynamic_quantize_lstm(c: Context, x: Node, w: Node, r: Node, bias: Node | None, sequence_lens: Node | None, initial_h: Node | None,
                          initial_c: Node | None, peepholes: Node | None, w_scale: Node, w_zero_point: Node, r_scale: Node,
                          r_zero_point: Node, *, activations: Sequence[str] | None = None,
                          activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
                          clip: float | None = None, direction: str = "forward", hidden_size: int | None = None,
                          input_forget: int = 0) -> tuple[Node | None, ...]:
    """LSTM with integer weights [directions, inputs, 4 hidden]; the input and each state are quantized as they come."""
    def step(cell: Cell, steps: Node, states: Sequence[Node]) -> tuple[Node, ...]:
        h, memory = states
        return LSTM.step(cell, steps, (_through_uint8(c.within(cell.b), h), memory))

    kind = Kind(LSTM.gates, LSTM.states, LSTM.activations, step)
    w, r = (transpose(c.b, _per_direction(c, *given), (0, 2, 1)) for given in
            ((w, w_scale, w_zero_point), (r, r_scale, r_zero_point)))
    return run_layer(c, kind, _through_uint8(c, x), w, r, bias, sequence_lens, (initial_h, initial_c), peepholes,
                     activations=activations, activation_alpha=activation_alpha, activation_beta=activation_beta, clip=clip,
                     direction=direction, hidden_size=hidden_size, layout=0, input_forget=input_forget)


def _per_direction(c: Context, w: Node, scale: Node, zero_point: Node) -> Node:
    """The weight as floats; scale and zero point are [directions] or [directions, 4 hidden]."""
    c.check_rank("W or R", w, 3)
    for parameter in (scale, zero_point):
        c.check_rank("scale or zero point", parameter, 1, 2)
    scale, zero_point = (c.reshape(p, (p.shape[0], 1, *(p.shape[1:] or (1,)))) for p in (scale, zero_point))
    whole = c.apply("sub", c.cast(w, I32), c.cast(zero_point, I32))
    return c.apply("mul", c.cast(whole, scale.dtype), scale)


OPS: Operators = {
    "DequantizeLinear": dequantize_linear, "DynamicQuantizeLSTM": dynamic_quantize_lstm,
    "DynamicQuantizeMatMul": dynamic_quantize_matmul, "MatMulBnb4": matmul_bnb4, "MatMulInteger16": matmul_integer16,
    "MatMulIntegerToFloat": matmul_integer_to_float, "MatMulNBits": matmul_n_bits, "NhwcMaxPool": nhwc_max_pool,
    "QGemm": qgemm, "QLinearAdd": qlinear_add, "QLinearAveragePool": qlinear_average_pool, "QLinearConcat": qlinear_concat,
    "QLinearConv": qlinear_conv_anywhere, "QLinearGlobalAveragePool": qlinear_global_average_pool,
    "QLinearLeakyRelu": qlinear_leaky_relu, "QLinearMul": qlinear_mul, "QLinearSigmoid": qlinear_sigmoid,
    "QLinearSoftmax": qlinear_softmax, "QLinearWhere": qlinear_where, "QuantizeLinear": quantize_linear,
}
