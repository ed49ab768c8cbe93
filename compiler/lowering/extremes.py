"""Places of extremes along the last axis: first the extreme of a row, then the first place that has it.

Both loops run in vectors along the row, where one that carries value and place together would read across rows. NaN is the
extreme of a row that has one: the second loop then looks for NaN. Zeros of both signs are equal, so that the first is found.

Taken where the operand is read from memory: it is read twice.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.dims import DimLike, bounds
from ..ir.graph import Graph, Node
from ..ir.loop import Alloc, Buffer, For, Stmt, Store
from ..ir.ops.compute import COMBINE, ArgReduce, reduction_identity
from ..ir.schedule import Step
from ..ir.types import I32, I64, DType
from .elements import Loops, Nest, around, fitting_lanes
from .inline import Inliner, Names, flatten_index, loop_symbol

FEW_VECTORS = 2  # rows that are shorter are compared element by element


def lower_extremes(body: Graph, buffers: Mapping[Node, Buffer], out: Buffer, names: Names, lanes: int) -> Nest | None:
    """The loop nest of a group that is such a place and nothing else; None for others."""
    node = body.results[0]
    if not isinstance(node.op, ArgReduce) or node.inputs[0] not in buffers:
        return None
    x, size = node.inputs[0], node.inputs[0].shape[node.op.axis]
    if node.op.axis != x.rank - 1 or x.dtype.is_bool or bounds(size)[1] < FEW_VECTORS * lanes:
        return None
    inliner = Inliner(buffers, names)
    axes = [(*loop_symbol(names.fresh("i"), n), n) for n in node.shape]
    row = tuple(at for _, at, _ in axes)
    vectors: list[Step] = []

    def reduce(kind: str, dtype: DType, term: str) -> Node:
        """A reduction along the row, of the elements or of the places of those that equal the extreme."""
        accumulator = Buffer(names.fresh(term), dtype, (), "register")
        identity = inliner.literal(reduction_identity(kind, dtype), dtype)
        variable, k = loop_symbol(names.fresh("k"), size)
        vectors.append(Step("vectorize", (variable.name, fitting_lanes(lanes, size), True)))
        inside = inliner.inner()
        value = inside.latch(inside.value(x, (*row, k)))
        if term == "place":
            hit = inside.scalar("eq", value, extreme)
            if x.dtype.is_float:
                hit = inside.scalar("or", hit, inside.scalar("isnan", value))
            value = inside.scalar("select", hit, inside.cast(inside.index(k), dtype), identity)
        inside.block.append(Store(accumulator.name, (), value, COMBINE[kind]))
        inliner.block += [Alloc(accumulator), Store(accumulator.name, (), identity), For(variable, size, "serial", tuple(inside.block))]
        return inliner.latch(inliner.load(accumulator, ()))

    extreme = reduce(node.op.kind, x.dtype, "extreme")
    place = inliner.cast(reduce("min", _counter(size), "place"), I64)
    body_of_row: list[Stmt] = [*inliner.block, Store(out.name, (flatten_index(row, node.shape),), place)]
    loops: Loops = [(s, n) for s, _, n in axes if n != 1]
    return around(loops, tuple(body_of_row), names, tuple(vectors))


def _counter(size: DimLike) -> DType:
    """The narrower type that counts all places."""
    return I32 if bounds(size)[1] <= 1 << 31 else I64
