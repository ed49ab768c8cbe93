"""Operators of com.microsoft that take rows of quantized tables: GatherBlockQuantized and QEmbedLayerNormalization.

Rows of a table's first axis are taken of what is computed of the whole table, which the pass `narrow_tables` turns around. Meaning:
ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

import numpy as np

from ...ir.dims import DimLike, ceildiv
from ...ir.graph import Node
from ...ir.ops.control import Const
from ...ir.ops.shape import Take
from ...ir.types import I64, U8
from ...library import slice_axis
from .context import Context, Operators
from .contrib_layers import embed_layer_normalization
from .contrib_quantized import PACKED, dequantized, unpacked
from .narrow import is_integer
from .quantization import dequantize_linear


def gather_block_quantized(c: Context, data: Node, indices: Node, scales: Node, zero_points: Node | None = None, *, bits: int = 4,
                           block_size: int = 128, gather_axis: int = 0, quantize_axis: int = 1) -> Node:
    """Gather of (data - zero point) * scale, with a scale for each block along an axis; zeros where an index is outside.

    uint8 holds 8 / bits numbers a byte along the last axis, from the lowest bits on, about 2 ** (bits - 1) where no zero points are given.
    """
    taken, along = c.axis(gather_axis, data.rank, "gather_axis"), c.axis(quantize_axis, data.rank, "quantize_axis")
    if data.dtype == U8:
        data, zero_points = _unpacked_table(c, data, scales, zero_points, bits, taken, along)
    elif not data.dtype.is_stored or not is_integer(data.dtype) and zero_points is not None:
        c.fail(f"data must be uint8, int4 or uint4, or float8 or float4 without zero points, found {data.type}")
    if block_size < 0 or block_size & block_size - 1 or not block_size and is_integer(data.dtype):
        c.fail(f"block_size must be a power of two, found {block_size}")
    length = data.shape[along]
    if not block_size and not isinstance(length, int):
        c.unsupported(f"one block of the open size {length}")
    block_size = block_size or c.positive(int(length), f"the size of axis {along}")
    for parameter in (scales, zero_points):
        if parameter is not None:
            _check_blocks(c, parameter, data, along, block_size)
    places, inside = _places(c, indices, data.shape[taken])

    def rows(x: Node) -> Node:
        return c.b.add(Take(taken), x, places)

    if taken in (0, along):
        value = rows(dequantize_linear(c, data, scales, zero_points, axis=along, block_size=block_size))
    else:
        scales = c.broadcast_to(scales, [n if a == along else data.shape[a] for a, n in enumerate(scales.shape)])
        points = None if zero_points is None else rows(zero_points)
        moved = along if along < taken else along + indices.rank - 1
        value = dequantize_linear(c, rows(data), rows(scales), points, axis=moved, block_size=block_size)
    if inside is None:
        return value
    inside = c.reshape(inside, (*indices.shape, *[1] * (data.rank - taken - 1)))
    return c.apply("select", inside, value, c.like(0, value))


def _unpacked_table(c: Context, data: Node, scales: Node, zero_points: Node | None, bits: int, taken: int, along: int) -> tuple[Node, Node]:
    """The numbers and zero points that bytes hold."""
    if bits not in PACKED:
        c.fail(f"bits must be 2, 4 or 8, found {bits}")
    if taken or not along or along != data.rank - 1:
        c.fail(f"bytes are gathered along the first axis and quantized along the last, found axes {taken} and {along} of {data.type}")
    if zero_points is None:
        return _codes(c, data, bits), c.full(1 << bits - 1, U8, scales.shape)
    points = _codes(c, zero_points, bits)
    count: DimLike = scales.shape[-1] if scales.rank else 0
    if not points.rank or points.shape[-1] != ceildiv(count, 8 // bits) * (8 // bits):
        c.fail(f"the zero points {zero_points.type} do not fit {count} blocks of {bits} bits")
    return _codes(c, data, bits), slice_axis(c.b, points, points.rank - 1, 0, count)


def _codes(c: Context, x: Node, bits: int) -> Node:
    """[..., bytes] -> [..., numbers]; constants become arrays of as many bits, which the compiled program packs in its own way."""
    if not isinstance(x.op, Const):
        return unpacked(c, x, bits)
    array = x.op.value.array
    parts = array[..., np.newaxis] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)
    return c.constant(parts.reshape(*array.shape[:-1], array.shape[-1] * (8 // bits)), PACKED[bits])


def _check_blocks(c: Context, parameter: Node, data: Node, along: int, block_size: int) -> None:
    """A parameter has a place for each block, and for each place of other axes; one place serves all where data are floats."""
    expected = [ceildiv(n, block_size) if a == along else n for a, n in enumerate(data.shape)]
    shared = not is_integer(data.dtype)
    if parameter.rank != data.rank or any(m != n and not (shared and m == 1 and a != along)
                                          for a, (m, n) in enumerate(zip(parameter.shape, expected))):
        c.fail(f"scales and zero points of {data.type} in blocks of {block_size} along axis {along} need the shape "
               f"({', '.join(map(str, expected))}), found {parameter.type}")


def _places(c: Context, indices: Node, extent: DimLike) -> tuple[Node, Node | None]:
    """Indices within an axis, negative ones counted from its end, and where they were so, unless all are known to be."""
    value = c.value(indices)
    if value is not None and value.dtype != object and isinstance(extent, int) and ((value >= -extent) & (value < extent)).all():
        return c.constant(np.where(value < 0, value + extent, value).astype(np.int64)), None
    wide, size, zero = c.cast(indices, I64), c.reshape(c.sizes_value([extent]), ()), c.constant(0, I64)
    wrapped = c.apply("select", c.apply("lt", wide, zero), c.apply("add", wide, size), wide)
    inside = c.apply("and", c.apply("ge", wrapped, zero), c.apply("lt", wrapped, size))
    return c.apply("select", inside, wrapped, zero), inside


def q_embed_layer_normalization(
        c: Context, input_ids: Node, segment_ids: Node | None, word_embedding: Node, position_embedding: Node,
        segment_embedding: Node | None, gamma: Node, beta: Node, mask: Node | None, word_scale: Node, position_scale: Node,
        segment_scale: Node | None, gamma_scale: Node, beta_scale: Node, word_zero_point: Node, position_zero_point: Node,
        segment_zero_point: Node | None, gamma_zero_point: Node, beta_zero_point: Node, *,
        epsilon: float = 1e-12) -> tuple[Node | None, ...]:
    """EmbedLayerNormalization of dequantized tables, gamma and beta, without the sum of the embeddings as a result."""
    segments = None
    if segment_ids is not None:
        if segment_embedding is None or segment_scale is None or segment_zero_point is None:
            c.fail("segment_ids need a segment_embedding with its scale and zero point")
        segments = dequantized(c, segment_embedding, segment_scale, segment_zero_point)
    words, positions = (dequantized(c, *parts) for parts in
                        ((word_embedding, word_scale, word_zero_point), (position_embedding, position_scale, position_zero_point)))
    factor, shift = (dequantized(c, *parts) for parts in ((gamma, gamma_scale, gamma_zero_point), (beta, beta_scale, beta_zero_point)))
    return embed_layer_normalization(c, input_ids, segment_ids, words, positions, segments, factor, shift, mask, epsilon=epsilon)[:2]


OPS: Operators = {"GatherBlockQuantized": gather_block_quantized, "QEmbedLayerNormalization": q_embed_layer_normalization}
