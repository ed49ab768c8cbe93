"""Ops with loops of their own: running sums and scatter. (Sorting stands in `sorting.py`.)"""

from __future__ import annotations

from ..ir.dims import DimLike
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, Stmt, Store
from ..ir.ops.compute import COMBINE, Cumulative, accumulator_dtype, reduction_identity
from ..ir.ops.shape import ScatterAlong, ScatterND
from .elements import Loops, Nest, around, nest
from .inline import Index, Inliner, flatten_index, loop_symbol

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
    """Runs along the axis; other axes are independent, the last of them a vector loop."""
    loops, index = _axes(inliner, x.shape, op.axis)
    size = x.shape[op.axis]
    dtype = accumulator_dtype(x.dtype)
    running = Buffer(inliner.names.fresh("running"), dtype, (), "register")
    step, k = loop_symbol(inliner.names.fresh("k"), size)
    index[op.axis] = size - 1 - k if op.reverse else k
    place = flatten_index(index, x.shape)
    inside = inliner.inner()
    value = inside.cast(inside.load(x, tuple(index)), dtype)
    total = inside.scalar(COMBINE[op.kind], inside.load(running, ()), value)
    update = Store(running.name, (), total)
    store = Store(out.name, (place,), inside.cast(inside.load(running, ()), x.dtype))
    round_body: tuple[Stmt, ...] = (store, update) if op.exclusive else (update, store)
    start = Store(running.name, (), inliner.literal(reduction_identity(op.kind, dtype), dtype))
    body: tuple[Stmt, ...] = (Alloc(running), start, For(step, size, "serial", round_body))
    if loops and op.axis != len(x.shape) - 1:
        return nest(loops, body, lanes, inliner.names)
    return around(loops, body, inliner.names)


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
