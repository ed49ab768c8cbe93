"""The right operand of a contraction in panels of a few vectors of columns, made of ordinary ops (pad, reshape, transpose).

Guarantees: `[*batch, K, N]` becomes `[*batch, ceil(N / tile), K, tile]` with zeros past N.
"""

from __future__ import annotations

import numpy as np

from ..ir.dims import DimLike, bounds, ceildiv, divides
from ..ir.graph import Builder, Constant, Node
from ..ir.loop_gpu import group_steps, square_of
from ..ir.ops.control import Const, Param
from ..ir.ops.shape import Concat
from ..library import pad, reshape, slice_axis, transpose
from .winograd import known_array


def pack_columns(b: Builder, matrix: Node, batch: int, tile: int) -> Node:
    """[*batch, K, N] -> [*batch, ceil(N / tile), K, tile], zeros past N. Where the last panel may not be full it is made apart, so
    that all others are read where they lie and not from a copy with zeros beside it."""
    width = matrix.shape[batch + 1]
    others = ceildiv(width, tile) - 1
    if bounds(others)[1] < 2 or divides(tile, width) or bounds(width)[0] < 1 or is_known(matrix):
        return _panels(b, matrix, batch, others + 1, tile)
    last = slice_axis(b, matrix, batch + 1, others * tile, (width - 1) % tile + 1)
    return b.add(Concat(batch), _panels(b, slice_axis(b, matrix, batch + 1, 0, others * tile), batch, others, tile),
                 _panels(b, last, batch, 1, tile))


def _panels(b: Builder, matrix: Node, batch: int, panels: DimLike, tile: int) -> Node:
    depth, width = matrix.shape[batch], matrix.shape[batch + 1]
    zeros = [0] * matrix.rank
    padded = pad(b, matrix, zeros, [*zeros[:-1], panels * tile - width])
    split = reshape(b, padded, (*matrix.shape[:batch], depth, panels, tile))
    axes = list(range(batch))
    return transpose(b, split, [*axes, batch + 1, batch, batch + 2])


def pack_squares(b: Builder, matrix: Node, batch: int, tile: int, by_columns: bool = False) -> Node:
    """[*batch, K, N] -> [*batch, ceil(N / tile), K, tile] in squares (`PackedDot.square`), zeros past N, and past K up to whole rows of the
    left operand of a product of four warps. `by_columns`: the last axis of a square goes down."""
    depth, width = matrix.shape[batch:]
    steps, square = group_steps(matrix.dtype), square_of(matrix.dtype.bytes)
    parts, panels = ceildiv(depth, steps), ceildiv(width, tile)
    zeros = [0] * batch
    padded = pad(b, matrix, [*zeros, 0, 0], [*zeros, parts * steps - depth, panels * tile - width])
    apart = reshape(b, padded, (*matrix.shape[:batch], parts * (steps // square), square, panels, tile // square, square))
    order = (2, 0, 3, 4, 1) if by_columns else (2, 0, 3, 1, 4)
    squares = transpose(b, apart, [*range(batch), *(batch + axis for axis in order)])
    return reshape(b, squares, (*matrix.shape[:batch], panels, parts * steps, tile))


def lengthened(b: Builder, x: Node, axis: int, by: DimLike) -> Node:
    """Zeros at the end of an axis."""
    array = known_array(x) if by != 0 else None
    if array is not None and isinstance(by, int):
        return b.add(Const(Constant(np.pad(array, [(0, by if a == axis else 0) for a in range(x.rank)]))))
    return pad(b, x, [0] * x.rank, [by if a == axis else 0 for a in range(x.rank)]) if by != 0 else x


def rows_of_squares(b: Builder, panels: Node, square: int, by_columns: bool, depth: DimLike) -> Node:
    """Panels in squares -> the first `depth` rows of the same panels in C order; `by_columns` as `panels_of_squares` takes it."""
    *lead, steps, tile = panels.shape
    assert isinstance(tile, int)
    apart = reshape(b, panels, (*lead, ceildiv(steps, square), tile // square, square, square))
    order = (0, 3, 1, 2) if by_columns else (0, 2, 1, 3)
    rows = reshape(b, transpose(b, apart, [*range(len(lead)), *(len(lead) + axis for axis in order)]), panels.shape)
    return slice_axis(b, rows, len(lead), 0, depth)


def squares_of_words(b: Builder, panels: Node) -> Node:
    """[.., K, tile] words in squares, in which columns lie one after another."""
    *lead, depth, tile = panels.shape
    square, outer = square_of(panels.dtype.bytes), range(panels.rank - 2)
    apart = reshape(b, panels, (*lead, depth // square, square, tile))
    return reshape(b, transpose(b, apart, [*outer, *(panels.rank - 2 + axis for axis in (0, 2, 1))]), panels.shape)


def is_known(node: Node) -> bool:
    """Whether a node is a constant, moved or not: packing is folded then."""
    while len(node.inputs) == 1:
        node = node.inputs[0]
    return not node.inputs and not isinstance(node.op, Param)
