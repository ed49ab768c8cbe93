"""Chooses channels-last for convolutional parts of a graph, and moves transposes to where they are free.

Every convolution becomes channels-last: its rows are then contiguous along the contraction and its columns are vectors
of channels. A value that a convolution made, and whatever is computed from it by ops that do not care (elementwise,
pad, windows, reductions, concat, slice, reshapes of the spatial axes, resampling by take along one), stays channels-last; the transpose
back is made once, where an op that reads a particular order needs it. Weights are transposed here and folded later.

Contract: exact. Cost: one transpose at each border of a convolutional region, in exchange for none inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir.dims import DimLike
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Bitcast, Cast, Conv, Elementwise, Reduce, ReduceWindow
from ..ir.ops.shape import Broadcast, Concat, Pad, Reshape, Slice, Take, Transpose
from ..ir.types import TensorType
from ..library import broadcast, reshape, transpose
from ..options import Options


def choose_layout(graph: Graph, options: Options) -> Graph:
    """See the module's text."""
    if not any(isinstance(n.op, Conv) and not n.op.channels_last for n in graph.nodes()):
        return graph
    return _Layout(graph).run()


def _to_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def _to_first(rank: int) -> list[int]:
    return [0, rank - 1, *range(1, rank - 1)]


class _Layout:
    """`plain` and `last` hold the forms of each old node that exist so far in the new graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.b = Builder()
        self.plain: dict[Node, Node] = {}
        self.last: dict[Node, Node] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes():
            self.b.loc = node.loc
            made = self._channels_last(node)
            if made is not None:
                self.last[node] = made
            elif node not in self.plain:
                inputs = tuple(self.as_plain(i) for i in node.inputs)
                self.plain[node] = self.b.add(node.op, *inputs, loc=node.loc)
        results = [self.as_plain(r) for r in self.graph.results]
        return Graph(self.graph.name, [self.plain[p] for p in self.graph.params], results, self.graph.result_names)

    def as_plain(self, node: Node) -> Node:
        if node not in self.plain:
            self.plain[node] = move_axes(self.b, self.last[node], _to_first(node.rank))
        return self.plain[node]

    def as_last(self, node: Node) -> Node:
        if node not in self.last:
            self.last[node] = move_axes(self.b, self.plain[node], _to_last(node.rank))
        return self.last[node]

    def _wanted(self, node: Node) -> bool:
        """Whether one of the operands of the same rank exists channels-last only."""
        return any(i in self.last and i not in self.plain and i.rank == node.rank for i in node.inputs)

    def _channels_last(self, node: Node) -> Node | None:
        b = self.b
        if isinstance(node.op, Conv) and not node.op.channels_last:
            old = node.op
            kernel = move_axes(b, self.as_plain(node.inputs[1]), [*range(2, node.rank), 1, 0])
            conv = Conv(old.strides, old.padding, old.dilation, old.input_dilation, old.groups, True, old.result)
            return b.add(conv, self.as_last(node.inputs[0]), kernel, loc=node.loc)
        if not any(i in self.last for i in node.inputs) or not isinstance(node.type, TensorType):
            return None
        match node.op:
            case Elementwise() | Cast() | Bitcast() if self._wanted(node):
                return b.add(node.op, *(self.as_last(i) for i in node.inputs), loc=node.loc)
            case Reduce() as op:
                return self._reduce(node, op)
            case Reshape():
                return self._reshape(node)
        if not self._wanted(node):
            return None
        order = _to_last(node.rank)
        match node.op:
            case Concat(axis):
                return b.add(Concat(order.index(axis)), *(self.as_last(i) for i in node.inputs), loc=node.loc)
            case Pad(low, high):
                return b.add(Pad(_permuted(low, order), _permuted(high, order)), self.as_last(node.inputs[0]),
                             self.as_plain(node.inputs[1]), loc=node.loc)
            case Slice(start, size, step):
                return b.add(Slice(_permuted(start, order), _permuted(size, order), _permuted(step, order)),
                             self.as_last(node.inputs[0]), loc=node.loc)
            case ReduceWindow(kind, sizes, strides, padding, dilation):
                window = ReduceWindow(kind, _permuted(sizes, order), _permuted(strides, order),
                                      _permuted(padding, order), _permuted(dilation, order))
                return b.add(window, self.as_last(node.inputs[0]), loc=node.loc)
            case Take(axis) if node.inputs[1].rank == 1:
                return b.add(Take(order.index(axis)), self.as_last(node.inputs[0]), self.as_plain(node.inputs[1]),
                             loc=node.loc)
            case Broadcast(shape):
                return broadcast(b, self.as_last(node.inputs[0]), _permuted(shape, order))
        return None

    def _reshape(self, node: Node) -> Node | None:
        """A reshape of the spatial axes alone, as resampling by whole factors has them."""
        x = node.inputs[0]
        if x in self.plain or node.rank < 3 or node.shape[:2] != x.shape[:2]:
            return None
        return reshape(self.b, self.last[x], _permuted(node.shape, _to_last(node.rank)))

    def _reduce(self, node: Node, op: Reduce) -> Node | None:
        """A reduction of a channels-last value that keeps the order of what is left; its result is plain."""
        x = node.inputs[0]
        if x in self.plain or x not in self.last:
            return None
        order = _to_last(x.rank)
        kept = [a for a in order if a not in op.axes]
        if kept != sorted(kept):
            return None
        axes = tuple(sorted(order.index(a) for a in op.axes))
        self.plain[node] = self.b.add(Reduce(op.kind, axes), self.last[x], loc=node.loc)
        return None


def _permuted(values: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    return tuple(values[a] for a in order)


def move_axes(b: Builder, x: Node, perm: Sequence[int]) -> Node:
    """A transpose, made a reshape where only axes of size 1 move, and moved before a broadcast or constant it meets."""
    shape: list[DimLike] = [x.shape[p] for p in perm]
    moving = [p for p in perm if x.shape[p] != 1]
    if moving == sorted(moving):
        return reshape(b, x, shape)
    match x.op:
        case Transpose(before):
            return move_axes(b, x.inputs[0], [before[p] for p in perm])
        case Broadcast():
            source = x.inputs[0]
            full = reshape(b, source, (*(1 for _ in range(x.rank - source.rank)), *source.shape))
            return broadcast(b, move_axes(b, full, perm), shape)
    return transpose(b, x, perm)


__all__ = ["choose_layout", "move_axes"]
