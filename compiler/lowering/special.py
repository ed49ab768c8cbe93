"""Ops with loops of their own: running sums and scatter. (Sorting stands in `sorting.py`.)"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ..ir.dims import DimLike, bounds, ceildiv, dim_min, divides, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, If, Stmt, Store
from ..ir.ops.compute import COMBINE, Cumulative, accumulator_dtype, reduction_identity
from ..ir.ops.shape import ScatterAlong, ScatterND
from .elements import Loops, Nest, around, nest
from .inline import Index, Inliner, flatten_index, loop_symbol

ROWS = 4     # that run side by side
COLUMNS = 4  # vectors of them that do

SCATTER = {"set": "", "add": "add", "mul": "mul", "min": "min", "max": "max"}


def _axes(inliner: Inliner, shape: Index, without: int) -> tuple[Loops, list[DimLike]]:
    """Loops over all axes but one, and the index with a placeholder 0 on that one."""
    loops: Loops = []
    index: list[DimLike] = []
    for axis, size in enumerate(shape):
        symbol, at = loop_symbol(inliner.names.fresh("i"), 1 if axis == without else size)
        index.append(0 if axis == without else at)
        if axis != without and size != 1:
            loops.append((symbol, size))
    return loops, index


def lower_cumulative(op: Cumulative, x: Buffer, out: Buffer, inliner: Inliner, lanes: int) -> Nest:
    """Runs along the axis; other axes are independent: where one of them is the last it is a vector loop, and otherwise some
    rows run side by side, since each step of one waits for the step before."""
    if op.axis == len(x.shape) - 1 and bounds(product(x.shape[:-1]))[1] >= ROWS:
        return _rows_side_by_side(op, x, out, inliner)
    loops, index = _axes(inliner, x.shape, op.axis)
    body = tuple(_run(op, x, out, inliner, [tuple(index)]))
    if loops and op.axis != len(x.shape) - 1:
        return nest(loops, body, lanes * COLUMNS, inliner.names)
    return around(loops, body, inliner.names)


def _rows_side_by_side(op: Cumulative, x: Buffer, out: Buffer, inliner: Inliner) -> Nest:
    """The rows of the last axis in blocks of ROWS, and one by one where they do not fill a block."""
    rows, size = product(x.shape[:-1]), x.shape[-1]
    op, x, out = replace(op, axis=1), replace(x, shape=(rows, size)), replace(out, shape=(rows, size))
    block, at_block = loop_symbol(inliner.names.fresh("block"), ceildiv(rows, ROWS))
    first = at_block * ROWS
    whole = tuple(_run(op, x, out, inliner, [(first + row, 0) for row in range(ROWS)]))
    rest, at_rest = loop_symbol(inliner.names.fresh("row"), dim_min(ROWS, rows - first))
    single = For(rest, dim_min(ROWS, rows - first), "serial", tuple(_run(op, x, out, inliner, [(first + at_rest, 0)])))
    body: tuple[Stmt, ...] = whole
    if not divides(ROWS, rows):
        full = inliner.scalar("le", inliner.index(first + ROWS), inliner.index(rows))
        body = (If(full, whole, (single,)),)
    return around([(block, ceildiv(rows, ROWS))] if block.upper != 0 else [], body, inliner.names)


def _run(op: Cumulative, x: Buffer, out: Buffer, inliner: Inliner, starts: Sequence[Index]) -> list[Stmt]:
    """Running sums (or their like) from some places on, whose index is 0 along the axis."""
    size, dtype = x.shape[op.axis], accumulator_dtype(x.dtype)
    running = [Buffer(inliner.names.fresh("running"), dtype, (), "register") for _ in starts]
    identity = inliner.literal(reduction_identity(op.kind, dtype), dtype)
    found: list[Stmt] = [Alloc(buffer) for buffer in running]
    found += [Store(buffer.name, (), identity) for buffer in running]
    step, k = loop_symbol(inliner.names.fresh("k"), size)
    inside = inliner.inner()
    body: list[Stmt] = []
    for buffer, start in zip(running, starts):
        index = (*start[:op.axis], size - 1 - k if op.reverse else k, *start[op.axis + 1:])
        total = inside.scalar(COMBINE[op.kind], inside.load(buffer, ()), inside.cast(inside.load(x, index), dtype))
        update = Store(buffer.name, (), total)
        store = Store(out.name, (flatten_index(index, x.shape),), inside.cast(inside.load(buffer, ()), x.dtype))
        body += (store, update) if op.exclusive else (update, store)
    return [*found, For(step, size, "serial", tuple(body))]


# --- scatter ---------------------------------------------------------------------------------------------------------


def lower_scatter(node: Node, indices: Buffer, updates: Buffer, target: Buffer, inliner: Inliner) -> Nest:
    """Updates in C order on one thread: the order decides when two meet at one place."""
    op = node.op
    assert isinstance(op, (ScatterND, ScatterAlong))
    axes = [(*loop_symbol(inliner.names.fresh("i"), n), n) for n in updates.shape]
    index = tuple(at for _, at, _ in axes)
    inside = inliner.inner()
    if isinstance(op, ScatterND):
        depth = int(indices.shape[-1])
        grid = index[:len(indices.shape) - 1]
        places = [inside.checked(node, inside.load(indices, (*grid, k)), target.shape[k]) for k in range(depth)]
        place: Index = (*places, *index[len(grid):])
    else:
        found = inside.checked(node, inside.load(indices, index), target.shape[op.axis])
        place = (*index[:op.axis], found, *index[op.axis + 1:])
    combine = SCATTER[op.kind]
    inside.block.append(Store(target.name, (flatten_index(place, target.shape),), inside.load(updates, index), combine))
    body: tuple[Stmt, ...] = tuple(inside.block)
    for symbol, _, size in reversed(axes):
        body = (For(symbol, size, "serial", body),)
    return around([], body, inliner.names)
