"""Operators of the domain com.microsoft on floats: activations, normalizations, fused products, inverses.

They are what exporters and the optimizer of ONNX Runtime write into models. Each means what ONNX Runtime computes; float16 and
bfloat16 are normalized in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ir.graph import Builder, Graph, Node
from ...ir.ops.compute import ArgReduce
from ...ir.ops.control import Param, Scan
from ...ir.ops.shape import Concat, Iota, Take, TakeAlong
from ...ir.types import I32, I64, DType
from ...library import broadcast, expand, gelu, gelu_tanh, hard_sigmoid, leaky_relu, mean, reduce, slice_axis, swish, transpose
from .context import Context, Operators
from .contraction import gemm, matmul
from .neural import conv, layer_normalization, rms_normalization
from .shape import gather, trilu

# --- activations -----------------------------------------------------------------------------------------------------


def gelu_(c: Context, x: Node) -> Node:
    return gelu(c.b, x)


def bias_gelu(c: Context, x: Node, bias: Node) -> Node:
    return gelu(c.b, c.apply("add", x, bias))


def fast_gelu(c: Context, x: Node, bias: Node | None = None) -> Node:
    return gelu_tanh(c.b, x if bias is None else c.apply("add", x, bias))


def quick_gelu(c: Context, x: Node, *, alpha: float = 1.702) -> Node:
    return swish(c.b, x, alpha)


def bias_split_gelu(c: Context, x: Node, bias: Node) -> Node:
    """Of x + bias along the last axis: the first half times the gelu of the second."""
    total = c.apply("add", x, bias)
    if not total.rank:
        c.fail(f"needs a last axis, found {total.type}")
    width, last = total.shape[-1], total.rank - 1
    if isinstance(width, int) and width % 2:
        c.fail(f"needs an even last axis, found {total.type}")
    left, right = (slice_axis(c.b, total, last, start, width // 2) for start in (0, width // 2))
    return c.scalar("mul", left, gelu(c.b, right))


def bias_add(c: Context, x: Node, bias: Node, skip: Node) -> Node:
    return c.apply("add", c.apply("add", x, bias), skip)


def _clip(c: Context, x: Node, low: float, high: float) -> Node:
    return c.apply("min", c.apply("max", x, c.like(low, x)), c.like(high, x))


# name -> how to build it from its parameters, and their defaults
ACTIVATIONS: dict[str, tuple[tuple[float, ...], Callable[..., Node]]] = {
    "Relu": ((), lambda c, x: c.apply("max", x, c.like(0, x))),
    "Tanh": ((), lambda c, x: c.scalar("tanh", x)),
    "Sigmoid": ((), lambda c, x: c.scalar("sigmoid", x)),
    "LeakyRelu": ((0.01,), lambda c, x, alpha: leaky_relu(c.b, x, alpha)),
    "HardSigmoid": ((0.2, 0.5), lambda c, x, alpha, beta: hard_sigmoid(c.b, x, alpha, beta)),
    "Clip": ((-float("inf"), float("inf")), _clip),
}


def _activated(c: Context, x: Node, activation: str, parameters: Sequence[float]) -> Node:
    if not activation:
        return x
    defaults, build = ACTIVATIONS[c.choice(activation, "activation", tuple(ACTIVATIONS))]
    if len(parameters) > len(defaults):
        c.fail(f"{activation} takes {len(defaults)} parameters, found {len(parameters)}")
    return build(c, x, *parameters, *defaults[len(parameters):])


# --- normalizations --------------------------------------------------------------------------------------------------


def skip_layer_normalization(c: Context, x: Node, skip: Node, gamma: Node, beta: Node | None = None, bias: Node | None = None, *,
                             epsilon: float = 1e-12) -> tuple[Node | None, ...]:
    """Of x + skip + bias; the sum is the fourth output."""
    total = c.apply("add", x, skip) if bias is None else bias_add(c, x, bias, skip)
    made = layer_normalization(c, total, gamma, beta, axis=-1, epsilon=epsilon)
    y, average, deviation = made if isinstance(made, tuple) else (made, None, None)
    return y, average, deviation, total


def simplified_layer_normalization(c: Context, x: Node, scale: Node, *, axis: int = -1, epsilon: float = 1e-5,
                                   stash_type: int = 1) -> tuple[Node | None, ...]:
    """x / sqrt(mean of squares + epsilon) * scale, and the inverse of that root where it is used."""
    y = rms_normalization(c, x, scale, axis=axis, epsilon=epsilon, stash_type=stash_type)
    if not c.wants(1):
        return y, None
    wide = c.cast(x, c.dtype(stash_type)) if x.dtype.bits < c.dtype(stash_type).bits else x
    return y, _inverse_root(c, wide, tuple(range(c.axis(axis, x.rank), x.rank)), epsilon)


def _inverse_root(c: Context, x: Node, axes: Sequence[int], epsilon: float) -> Node:
    squares = mean(c.b, c.scalar("mul", x, x), axes, keep=True)
    return c.apply("div", c.like(1, x), c.scalar("sqrt", c.apply("add", squares, c.like(epsilon, x))))


def skip_simplified_layer_normalization(c: Context, x: Node, skip: Node, gamma: Node, bias: Node | None = None, *,
                                        epsilon: float = 1e-12) -> tuple[Node | None, ...]:
    total = c.apply("add", x, skip) if bias is None else bias_add(c, x, bias, skip)
    y = rms_normalization(c, total, gamma, axis=-1, epsilon=epsilon)
    deviation = _inverse_root(c, c.wide(total), (total.rank - 1,), epsilon) if c.wants(2) else None
    return y, None, deviation, total


def embed_layer_normalization(c: Context, input_ids: Node, segment_ids: Node | None, word_embedding: Node, position_embedding: Node,
                              segment_embedding: Node | None, gamma: Node, beta: Node, mask: Node | None = None,
                              position_ids: Node | None = None, *, epsilon: float = 1e-12,
                              mask_index_type: int = 0) -> tuple[Node | None, ...]:
    """The sum of the embeddings of words, places and segments, normalized; the number of ones in each row of the mask; the sum."""
    if input_ids.rank != 2:
        c.fail(f"input 'input_ids' must be [batch, length], found {input_ids.type}")
    batch, length = input_ids.shape
    places = c.b.add(Iota(I64, (1, length), 1)) if position_ids is None else position_ids
    total = c.apply("add", gather(c, word_embedding, input_ids), gather(c, position_embedding, places))
    if segment_ids is not None:
        if segment_embedding is None:
            c.fail("segment_ids are given without a segment_embedding")
        total = c.apply("add", total, gather(c, segment_embedding, segment_ids))
    made = layer_normalization(c, total, gamma, beta, axis=-1, epsilon=epsilon)
    y = made[0] if isinstance(made, tuple) else made
    if mask is None:
        return y, c.full(0, I32, (batch,)), total
    ones = c.cast(c.apply("eq", mask, c.like(1, mask)), I32)
    return y, reduce(c.b, "sum", ones, (1,)), total


# --- products --------------------------------------------------------------------------------------------------------


def _turned(c: Context, x: Node, transposed: int, batch_transposed: int) -> Node:
    """x for a product: its first axis moved behind the batch, then its last two exchanged. Vectors stay."""
    if x.rank < 2:
        return x
    order = list(range(x.rank))
    if batch_transposed:
        order = [*order[1:-1], order[0], order[-1]]
    if transposed:
        order[-2:] = order[:-3:-1]
    return transpose(c.b, x, order)


def fused_matmul(c: Context, a: Node, b: Node, *, alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0,
                 transBatchB: int = 0) -> Node:
    product = matmul(c, _turned(c, a, transA, transBatchA), _turned(c, b, transB, transBatchB))
    return product if alpha == 1.0 else c.apply("mul", product, c.like(alpha, product))


def fused_gemm(c: Context, a: Node, b: Node, addend: Node | None = None, *, activation: str = "", activation_alpha: float | None = None,
               activation_beta: float | None = None, activation_gamma: float | None = None, alpha: float = 1.0, beta: float = 1.0,
               transA: int = 0, transB: int = 0) -> Node:
    y = gemm(c, a, b, addend, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return _activated(c, y, activation, [p for p in (activation_alpha, activation_beta, activation_gamma) if p is not None])


def fused_conv(c: Context, x: Node, w: Node, bias: Node | None = None, addend: Node | None = None, *, activation: str = "",
               activation_params: Sequence[float] = (), auto_pad: str = "NOTSET", dilations: Sequence[int] | None = None, group: int = 1,
               kernel_shape: Sequence[int] | None = None, pads: Sequence[int] | None = None,
               strides: Sequence[int] | None = None) -> Node:
    y = conv(c, x, w, bias, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads, strides=strides)
    return _activated(c, y if addend is None else c.apply("add", y, addend), activation, activation_params)


def channels_first(c: Context, x: Node) -> Node:
    """[batch, *spatial, channels] -> [batch, channels, *spatial]."""
    return transpose(c.b, x, (0, x.rank - 1, *range(1, x.rank - 1)))


def channels_last(c: Context, x: Node) -> Node:
    """[batch, channels, *spatial] -> [batch, *spatial, channels]."""
    return transpose(c.b, x, (0, *range(2, x.rank), 1))


def nhwc_conv(c: Context, x: Node, w: Node, bias: Node | None = None, *, auto_pad: str = "NOTSET",
              dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
              pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Node:
    """The weight is laid out as for Conv."""
    if x.rank < 3:
        c.fail(f"needs a tensor [batch, *spatial, channels], found {x.type}")
    y = conv(c, channels_first(c, x), w, bias, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
             pads=pads, strides=strides)
    return channels_last(c, y)


# --- inverses --------------------------------------------------------------------------------------------------------


def inverse(c: Context, x: Node) -> Node:
    """By elimination in [x, 1], each column from its greatest element on; a singular matrix gives infinities or NaN."""
    if x.rank < 2:
        c.fail(f"needs matrices, found {x.type}")
    dtype: DType = x.dtype
    size = x.shape[-1]
    x = c.wide(c.refine(x, (*x.shape[:-2], size, size)))
    if size == 0:
        return c.cast(x, dtype)
    row, column = (c.b.add(Iota(I64, (size, size), axis)) for axis in (0, 1))
    unit = broadcast(c.b, c.cast(c.scalar("eq", row, column), x.dtype), x.shape)
    rows = c.b.add(Concat(x.rank - 1), x, unit)
    step = _elimination_step(c, rows)
    done = c.b.add(Scan(step, 1, 1, size), rows, c.b.add(Iota(I64, (size,), 0)))
    return c.cast(slice_axis(c.b, done, x.rank - 1, size, size), dtype)


def _elimination_step(c: Context, rows: Node) -> Graph:
    """Column k becomes that of the unit matrix."""
    b = Builder(c.b.loc)
    inner = c.within(b)
    state, k = (b.add(Param(label, dtype, shape)) for label, dtype, shape in (("rows", rows.dtype, rows.shape), ("k", I64, ())))
    rank, size = state.rank, state.shape[-2]
    numbers = b.add(Iota(I64, (*state.shape[:-2], size), rank - 2))
    column = b.add(Take(rank - 1), state, k)                                     # [..., size]
    waiting = inner.apply("ge", numbers, k)
    chosen = b.add(ArgReduce("max", rank - 2), inner.apply("select", waiting, inner.scalar("abs", column), inner.like(-1, column)))
    chosen = expand(b, chosen, (rank - 2, rank - 1))                             # [..., 1, 1]
    pivot_row = b.add(TakeAlong(rank - 2), state, broadcast(b, chosen, (*state.shape[:-2], 1, state.shape[-1])))
    place = expand(b, numbers, (rank - 1,))
    own_row = expand(b, b.add(Take(rank - 2), state, k), (rank - 2,))
    swapped = inner.apply("select", inner.apply("eq", place, chosen), own_row, state)
    pivot_row = inner.apply("div", pivot_row, expand(b, b.add(Take(rank - 1), pivot_row, k), (rank - 1,)))
    factors = expand(b, b.add(Take(rank - 1), swapped, k), (rank - 1,))
    cleared = inner.apply("sub", swapped, inner.apply("mul", factors, pivot_row))
    return Graph("step", (state, k), (inner.apply("select", inner.apply("eq", place, k), pivot_row, cleared),))


OPS: Operators = {
    "BiasAdd": bias_add, "BiasGelu": bias_gelu, "BiasSplitGelu": bias_split_gelu, "EmbedLayerNormalization": embed_layer_normalization,
    "FastGelu": fast_gelu, "FusedConv": fused_conv, "FusedGemm": fused_gemm, "FusedMatMul": fused_matmul, "Gelu": gelu_,
    "Inverse": inverse, "NhwcConv": nhwc_conv, "QuickGelu": quick_gelu, "SimplifiedLayerNormalization": simplified_layer_normalization,
    "SkipLayerNormalization": skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": skip_simplified_layer_normalization, "TransposeMatMul": fused_matmul, "Trilu": trilu,
}
# ONNX Runtime writes this one into the standard's own domain
STANDARD: Operators = {"SimplifiedLayerNormalization": simplified_layer_normalization}
