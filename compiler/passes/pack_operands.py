"""Contractions into the form that lowering has register tiles for.

`dot` becomes `packed_dot` and `conv` becomes `packed_conv`: the left operand as rows that are contiguous along the
contraction, the right one cut into panels of a few vectors of columns (`compiler/lowering/contraction.py`). The packing
is made of ordinary ops (pad, reshape, transpose), so that constant folding packs weights at compile time and fusion
makes one kernel of it otherwise. Convolutions with explicit padding or input dilation get it from `pad` and
`update_slice`; grouped ones stay direct. Dots with a single column become a multiplication and a sum over rows.

Contract: reassoc. Afterwards no conv or reduce_window has padding or input dilation.
"""

from __future__ import annotations

from ..ir.caps import Caps
from ..ir.dims import DimLike, ceildiv, product
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Conv, Dot, PackedConv, PackedDot, ReduceWindow, accumulator_dtype, reduction_identity
from ..ir.ops.shape import UpdateSlice
from ..ir.rewrite import rewrite_graph
from ..library import apply, broadcast, full, pad, reduce, reshape, transpose
from ..options import Options
from ..tiles import panel_columns


def pack_operands(graph: Graph, options: Options, caps: Caps) -> Graph:
    """See the module's text."""
    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        match node.op:
            case Dot() as op if 0 in (*node.shape, *(inputs[0].shape[a] for a in op.lhs_contract)):
                return full(b, 0, node.dtype, node.shape)  # nothing to sum, or nowhere to put it
            case Dot() as op:
                return _pack_dot(b, op, inputs[0], inputs[1], caps)
            case Conv() as op:
                return _pack_conv(b, op, inputs[0], inputs[1], caps)
            case ReduceWindow() as op if any(p != (0, 0) for p in op.padding):
                value = reduction_identity(op.kind, inputs[0].dtype)
                padded = pad(b, inputs[0], [p[0] for p in op.padding], [p[1] for p in op.padding], value)
                plain = ReduceWindow(op.kind, op.window, op.strides, ((0, 0),) * inputs[0].rank, op.dilation)
                return b.add(plain, padded)
        return None

    return rewrite_graph(graph, visit, "pack_operands", bodies=True)


def _pack_dot(b: Builder, op: Dot, lhs: Node, rhs: Node, caps: Caps) -> Node | None:
    free_left = [a for a in range(lhs.rank) if a not in op.lhs_batch + op.lhs_contract]
    free_right = [a for a in range(rhs.rank) if a not in op.rhs_batch + op.rhs_contract]
    batch = tuple(lhs.shape[a] for a in op.lhs_batch)
    rows = tuple(lhs.shape[a] for a in free_left)
    columns = tuple(rhs.shape[a] for a in free_right)
    depth = product(lhs.shape[a] for a in op.lhs_contract)
    left = reshape(b, transpose(b, lhs, [*op.lhs_batch, *free_left, *op.lhs_contract]), (*batch, *rows, depth))
    width = product(columns)
    right = reshape(b, transpose(b, rhs, [*op.rhs_batch, *op.rhs_contract, *free_right]), (*batch, depth, width))
    if width == 1 or not lhs.dtype.is_float:
        return _sum_of_products(b, left, right, len(batch), rows, columns) if width == 1 else None
    tile = panel_columns(width, product(rows), accumulator_dtype(lhs.dtype), caps)
    packed = pack_columns(b, right, len(batch), tile)
    value = b.add(PackedDot(len(batch), width), left, packed)
    return reshape(b, value, (*batch, *rows, *columns))


def _sum_of_products(b: Builder, left: Node, right: Node, batch: int, rows: tuple[DimLike, ...],
                     columns: tuple[DimLike, ...]) -> Node:
    """One column: the products of each row with it, summed."""
    ones = (1,) * len(rows)
    row = reshape(b, right, (*right.shape[:batch], *ones, right.shape[batch]))
    products = apply(b, "mul", left, broadcast(b, row, left.shape))
    total = reduce(b, "sum", products, (left.rank - 1,))
    return reshape(b, total, (*left.shape[:-1], *columns))


def pack_columns(b: Builder, matrix: Node, batch: int, tile: int) -> Node:
    """[*batch, K, N] -> [*batch, ceil(N / tile), K, tile], zeros past N."""
    depth, width = matrix.shape[batch], matrix.shape[batch + 1]
    panels = ceildiv(width, tile)
    zeros = [0] * matrix.rank
    padded = pad(b, matrix, zeros, [*zeros[:-1], panels * tile - width])
    split = reshape(b, padded, (*matrix.shape[:batch], depth, panels, tile))
    axes = list(range(batch))
    return transpose(b, split, [*axes, batch + 1, batch, batch + 2])


def _pack_conv(b: Builder, op: Conv, x: Node, w: Node, caps: Caps) -> Node | None:
    if not op.channels_last:
        return None
    rank = len(op.strides)
    if any(e != 1 for e in op.input_dilation):
        x = _spread(b, x, op.input_dilation)
    low = [0, *(p[0] for p in op.padding), 0]
    high = [0, *(p[1] for p in op.padding), 0]
    x = pad(b, x, low, high)
    plain = ((0, 0),) * rank
    if op.groups != 1:
        return b.add(Conv(op.strides, plain, op.dilation, (1,) * rank, op.groups, True), x, w)
    kernel, channels, out = w.shape[:-2], w.shape[-2], w.shape[-1]
    assert isinstance(out, int)
    taps = product(kernel)
    if taps == 1 and all(s == 1 for s in op.strides):
        return _pack_dot(b, Dot((x.rank - 1,), (0,)), x, reshape(b, w, (channels, out)), caps)
    tile = panel_columns(out, product(x.shape[:-1]), accumulator_dtype(x.dtype), caps)
    packed = pack_columns(b, reshape(b, w, (taps * channels, out)), 0, tile)
    sizes = tuple(int(k) for k in kernel)
    return b.add(PackedConv(sizes, op.strides, op.dilation, out), x, packed)


def _spread(b: Builder, x: Node, dilation: tuple[int, ...]) -> Node:
    """Zeros between the elements along the spatial axes of a channels-last tensor."""
    steps = (1, *dilation, 1)
    shape = tuple((n - 1) * e + 1 for n, e in zip(x.shape, steps))
    zeros = full(b, 0, x.dtype, shape)
    return b.add(UpdateSlice((0,) * x.rank, steps), zeros, x)
