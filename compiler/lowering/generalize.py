"""One microkernel for all shapes: the sizes of a matrix product become arguments of its kernel.

Kernels of contractions differ in their register tile, dtypes and epilogue; the sizes of the matrices need not be part of
the code. The group is rebuilt with a symbol for each axis (`b0..` batch, `m0..` rows, `n` columns, `k` depth) and each
width of a border (`p0..`), so that layers which differ only in sizes are compiled once and launched with their own.

Axes of size 1 stay as they are, since broadcasts depend on them, and a size that its tile divides keeps that knowledge,
which saves the code for the edge. A group with an epilogue that moves elements is left specialized.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..ir.dims import DimLike, bounds, ceildiv, divides, symbol
from ..ir.graph import Builder, Graph, Node, Op
from ..ir.ops.compute import Bitcast, Cast, Elementwise, PackedDot
from ..ir.ops.control import Const, Param
from ..ir.ops.shape import Broadcast, Pad, Reshape
from ..tiles import Tile

Shape = tuple[DimLike, ...]


def generalize(body: Graph, core: Node, tile: Tile) -> tuple[Graph, dict[str, DimLike]] | None:
    """The group with symbolic sizes and what each symbol stands for here; None where the group does not allow it."""
    if not isinstance(core.op, PackedDot):
        return None
    values: dict[str, DimLike] = {}
    shapes = _assign_shapes(body, core, _core_shape(core, core.op, tile, values), tile, values)
    if shapes is None:
        return None
    b = Builder()
    made: dict[Node, Node] = {}
    for node in body.nodes():
        shape = shapes[node]
        op: Op = node.op
        match node.op:
            case Param() | Broadcast() | Reshape():
                op = replace(node.op, shape=shape)
            case PackedDot():
                op = replace(node.op, columns=shape[-1])
            case Pad(low, high):
                padding = _paddings((*low, *high), values)
                op = Pad(tuple(padding[n] for n in low), tuple(padding[n] for n in high))
        made[node] = b.add(op, *(made[i] for i in node.inputs), loc=node.loc)
        if made[node].shape != shape:
            return None
    return Graph(body.name, [made[p] for p in body.params], [made[r] for r in body.results], body.result_names), values


def _named(name: str, size: DimLike, factor: int, values: dict[str, DimLike]) -> DimLike:
    if size == 1:
        return 1
    values[name] = size
    least = 1 if bounds(size)[0] >= 1 else 0
    return symbol(name, least, None, factor if factor > 1 and divides(factor, size) else 1)


def _paddings(sizes: Shape, values: dict[str, DimLike]) -> dict[DimLike, DimLike]:
    """Symbols for the widths of borders, one for those that are equal."""
    found: dict[DimLike, DimLike] = {0: 0}
    for size in sizes:
        if size not in found:
            name = f"p{len(found) - 1}"
            values[name] = size
            found[size] = symbol(name, 1 if bounds(size)[0] >= 1 else 0)
    return found


def _core_shape(core: Node, op: PackedDot, tile: Tile, values: dict[str, DimLike]) -> Shape:
    """The symbols of the result's axes."""
    batch = [_named(f"b{a}", n, 1, values) for a, n in enumerate(core.shape[:op.batch])]
    lead = core.shape[op.batch:-1]
    alone = sum(n != 1 for n in lead) == 1  # only then does a multiple of the tile show in one symbol
    columns = _named("n", core.shape[-1], tile.columns, values)
    if op.symmetric:
        return (*batch, columns, columns)
    rows = [_named(f"m{a}", n, tile.rows if alone else 1, values) for a, n in enumerate(lead)]
    return (*batch, *rows, columns)


def _assign_shapes(body: Graph, core: Node, core_shape: Shape, tile: Tile,
                   values: dict[str, DimLike]) -> dict[Node, Shape] | None:
    """The shape that each node gets, from the result down; None where two users of a node disagree or an op is not one
    whose operands' shapes follow."""
    result = body.results[0]
    found: dict[Node, Shape] = {}
    stack: list[tuple[Node, Shape | None]] = []
    match result.op:
        case Pad(low, high):
            x, fill = result.inputs
            inner = _spread(core_shape, core.shape, x.shape)
            if inner is None:
                return None
            padding = _paddings((*low, *high), values)
            found[result] = tuple(padding[a] + n + padding[b] for a, n, b in zip(low, inner, high))
            stack += [(x, inner), (fill, ())]
        case _:
            stack.append((result, _spread(core_shape, core.shape, result.shape)))
    while stack:
        node, shape = stack.pop()
        if shape is None or found.get(node, shape) != shape:
            return None
        if node in found:
            continue
        found[node] = shape
        if node is core:
            if shape != core_shape:
                return None
            assert isinstance(core.op, PackedDot)
            depth = _named("k", node.inputs[1].shape[-2], core.op.narrow, values)
            panels = (*shape[:core.op.batch], ceildiv(shape[-1], tile.columns), depth, tile.columns)
            stack.append((node.inputs[0], panels if core.op.symmetric else (*shape[:-1], depth * core.op.step)))
            stack.append((node.inputs[1], panels))
            continue
        match node.op:
            case Elementwise() | Cast() | Bitcast():
                stack.extend((i, shape) for i in node.inputs)
            case Broadcast():
                source = node.inputs[0].shape
                tail = shape[len(shape) - len(source):]
                stack.append((node.inputs[0], tuple(1 if n == 1 else m for n, m in zip(source, tail))))
            case Reshape():
                stack.append((node.inputs[0], _spread(shape, node.shape, node.inputs[0].shape)))
            case Const():
                if shape != node.shape:
                    return None
            case Param():
                pass
            case _:
                return None
    return found if all(n in found for n in body.nodes()) else None


def _spread(new: Shape, old: Shape, other: Shape) -> Shape | None:
    """The new sizes of a shape that differs from `old` in axes of size 1 only."""
    kept = [m for m, n in zip(new, old) if n != 1]
    if [n for n in old if n != 1] != [n for n in other if n != 1]:
        return None
    sizes = iter(kept)
    return tuple(1 if n == 1 else next(sizes) for n in other)
