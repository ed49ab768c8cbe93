"""What mutators and simplifiers of graphs are made of: replacing values, adapting types, exchanging sizes, and the limits that
every graph must keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from msgspec.structs import replace

from .. import library
from ..cost import contraction_depth, count
from ..ir.dims import Dim, DimLike, bounds, substitute
from ..ir.errors import TilewrightError
from ..ir.graph import Builder, Graph, Node, Op, attribute_names
from ..ir.ops.compute import Cast
from ..ir.ops.control import Const, Param, While
from ..ir.ops.shape import Broadcast, Reshape
from ..ir.types import I64, TensorType
from ..ir.verify import verify

T = TypeVar("T")
MOST_NODES = 60
MOST_ELEMENTS = 8192
MOST_RESULTS = 6
MOST_WORK = 48_000  # weighted operations: the loop interpreter takes some thirty microseconds for each
MOST_PRODUCTS = 300_000  # of contractions; where these are more than `MOST_WORK`, machine code alone computes them
COUNTERS = range(-8, 9)  # what a `while` may begin to count with
Make = Callable[[Builder, Node, Mapping[int, Node]], Node]


def acceptable(graph: Graph) -> bool:
    """Small enough, with loops that end, and true to the rules of the IR."""
    nodes = graph.nodes()
    if not 0 < len(graph.results) <= MOST_RESULTS or len(nodes) > MOST_NODES:
        return False
    if not all(small(n.tensor.shape) for n in nodes if isinstance(n.type, TensorType)) or not all(map(_ends, nodes)):
        return False
    try:
        verify(graph)
        return work_of(nodes, contractions=False) <= MOST_WORK and work_of(nodes) <= MOST_PRODUCTS
    except TilewrightError:
        return False


def work_of(nodes: Sequence[Node], contractions: bool = True) -> float:
    """Weighted operations at the largest sizes, with those of contractions or without."""
    return sum(bounds(count(n)[2])[1] for n in nodes
               if isinstance(n.type, TensorType) and (contractions or contraction_depth(n) is None))


def small(shape: Sequence[DimLike]) -> bool:
    return math.prod(float(bounds(n)[1]) for n in shape) <= MOST_ELEMENTS


def _ends(node: Node) -> bool:
    """Whether whole numbers that a loop begins with are as near to its end as generators make them."""
    if not isinstance(node.op, While):
        return True
    counters = [x for x in node.inputs[:node.op.count] if isinstance(x.type, TensorType) and x.dtype == I64 and not x.rank]
    return bool(counters) and all(isinstance(x.op, Const) and int(x.op.value.array) in COUNTERS for x in counters)


def tensors(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes() if isinstance(node.type, TensorType)]


def chosen(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def rebuilt(graph: Graph, changes: Mapping[int, Make], more: Sequence[Node] = ()) -> Graph:
    """The graph with some values replaced for all who read them: `changes[id(node)]` makes the new one of the old, which may
    read any value that stands before. `more`: new params."""
    builder = Builder()
    values: dict[int, Node] = {}
    for node in graph.nodes():
        if isinstance(node.op, Param):
            made = builder.keep(node)
        else:
            made = builder.add(node.op, *(values[id(i)] for i in node.inputs), loc=node.loc)
        values[id(node)] = made
        change = changes.get(id(node))
        if change is not None:
            values[id(node)] = adapted(builder, change(builder, made, values), node.tensor)
    used = [p for p in more if p not in graph.params]
    return Graph(graph.name, [*graph.params, *used], [values[id(r)] for r in graph.results], graph.result_names)


def before(graph: Graph, node: Node, values: Mapping[int, Node]) -> list[Node]:
    """Tensors that a change of `node` may read, as they are in the new graph."""
    found = []
    for other in graph.nodes():
        if other is node:
            break
        if isinstance(other.type, TensorType):
            found.append(values[id(other)])
    return found


def adapted(b: Builder, x: Node, wanted: TensorType) -> Node:
    """The value cast, cut and broadcast to a type."""
    x = x if x.dtype == wanted.dtype else b.add(Cast(wanted.dtype), x)
    while x.rank > wanted.rank:
        x = b.add(Reshape(x.shape[1:]), _first(b, x, 0))
    if x.rank < wanted.rank:
        x = b.add(Reshape((*[1] * (wanted.rank - x.rank), *x.shape)), x)
    for axis, size in enumerate(wanted.shape):
        if x.shape[axis] != size:
            x = _first(b, x, axis)
    return x if x.shape == wanted.shape else b.add(Broadcast(wanted.shape), x)


def _first(b: Builder, x: Node, axis: int) -> Node:
    """The first place of an axis; zero where it has none."""
    if x.shape[axis] == 1:
        return x
    if bounds(x.shape[axis])[0] < 1:
        high = [int(a == axis) for a in range(x.rank)]
        x = library.pad(b, x, [0] * x.rank, high)
    return library.slice_axis(b, x, axis, 0, 1)


def with_sizes(graph: Graph, binding: Mapping[str, int], numbers: Mapping[int, DimLike]) -> Graph:
    """The graph with symbols bound and numbers in shapes and attributes that hold sizes exchanged. Raises where that does not
    fit together."""
    def size(n: Any) -> Any:
        if isinstance(n, Dim):
            return substitute(n, binding)
        return numbers.get(n, n) if isinstance(n, int) and not isinstance(n, bool) else n

    def change(op: Op) -> Op:
        changes: dict[str, Any] = {}
        for name in attribute_names(type(op)):
            value = getattr(op, name)
            if isinstance(value, Graph):
                changes[name] = rewritten(value)
            elif name in ("shape", "size", "length", "columns"):
                changes[name] = tuple(map(size, value)) if isinstance(value, tuple) else size(value)
            elif isinstance(value, Dim):
                changes[name] = size(value)
            elif isinstance(value, tuple) and any(isinstance(n, Dim) for n in value):
                changes[name] = tuple(size(n) if isinstance(n, Dim) else n for n in value)
        return replace(op, **changes) if changes else op

    def rewritten(part: Graph) -> Graph:
        builder = Builder()
        values: dict[int, Node] = {}
        for node in part.nodes():
            values[id(node)] = builder.add(change(node.op), *(values[id(i)] for i in node.inputs), loc=node.loc)
        return Graph(part.name, [values[id(p)] for p in part.params], [values[id(r)] for r in part.results], part.result_names)

    return rewritten(graph)
