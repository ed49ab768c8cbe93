"""Mutators of graphs for what compilers get wrong between kernels: which memory holds a value, who still reads it, and which
kernels are one.

Most values of a small program never are in memory: they are fused into who reads them. Here they are made to be, are read at
several places at once, and stand beside others that are nearly equal.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import library
from ..ir.dims import DimLike, bounds
from ..ir.errors import TilewrightError
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Cumulative, Elementwise, Sort
from ..ir.ops.control import Param, While
from ..ir.ops.scalar import SCALARS
from ..ir.ops.shape import Concat
from ..ir.types import TensorType
from .rebuild import MOST_RESULTS, chosen, rebuilt, tensors

MOST_COPIED = 6  # nodes of the part that a twin is a copy of


def stored(b: Builder, rng: np.random.Generator, x: Node) -> Node:
    """A value of the same type that a kernel of its own computes from this one, which so is in memory; itself without an axis."""
    axes = [a for a, n in enumerate(x.shape) if bounds(n)[0] >= 1]
    if not axes or x.dtype.is_bool:
        return x
    axis = chosen(rng, axes)
    if rng.random() < 0.3:
        return b.add(Sort(axis, bool(rng.integers(2))), x)
    return b.add(Cumulative(chosen(rng, ("max", "min", "sum")), axis, False, bool(rng.integers(2))), x)


def apart(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """Values pass through kernels of their own: what was fused lies in memory, lives on and dies."""
    nodes = [n for n in tensors(graph) if n.rank and not n.dtype.is_bool]
    if not nodes:
        return None
    taken = [chosen(rng, nodes) for _ in range(int(rng.integers(1, 4)))]
    return rebuilt(graph, {id(node): lambda b, x, values: stored(b, rng, x) for node in taken})


def with_itself(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value meets itself in another order: each element of the result reads several of one array, which may die there."""
    nodes = [n for n in tensors(graph) if n.rank]
    if not nodes:
        return None

    def make(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        x = stored(b, rng, x) if rng.random() < 0.6 else x
        pair = [x, reordered(b, rng, x)]
        if rng.random() < 0.5:
            pair.reverse()
        function = "xor" if x.dtype.is_bool else chosen(rng, ("add", "sub", "max"))
        made = library.scalar(b, function, *pair)
        return stored(b, rng, made) if rng.random() < 0.6 else made

    return rebuilt(graph, {id(chosen(rng, nodes)): make})


def reordered(b: Builder, rng: np.random.Generator, x: Node) -> Node:
    """The elements of a value with an axis in another order: backwards, rotated, or exchanged with one of its extent."""
    axis = int(rng.integers(x.rank))
    size: DimLike = x.shape[axis]
    same = [a for a, n in enumerate(x.shape) if n == size and a != axis]
    if same and rng.random() < 0.5:
        order = list(range(x.rank))
        other = chosen(rng, same)
        order[axis], order[other] = other, axis
        return library.transpose(b, x, order)
    least = bounds(size)[0]
    if least < 2 or rng.random() < 0.5:
        return x if least < 1 else library.slice_axis(b, x, axis, size - 1, size, -1)
    cut = int(rng.integers(1, int(least)))
    return b.add(Concat(axis), library.slice_axis(b, x, axis, cut, size - cut), library.slice_axis(b, x, axis, 0, cut))


# --- nearly equal parts ------------------------------------------------------------------------------------------------


def twin(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A part of the program is there twice, with one difference: what tells kernels, and what is kept of them, apart."""
    ends = [n for n in tensors(graph) if n.inputs]
    if not ends:
        return None
    end = chosen(rng, ends)
    part = _part(graph, end)
    varied = chosen(rng, part)
    own = rng.random() < 0.6  # params of its own, so that nothing is computed once for both
    builder = Builder()
    values: dict[int, Node] = {}
    for node in graph.nodes():
        builder.keep(node)
        values[id(node)] = node
    params = list(graph.params)
    for node in part:
        operands = []
        for operand in node.inputs:
            if own and isinstance(operand.op, Param) and values[id(operand)] is operand:
                values[id(operand)] = _param(builder, operand.tensor, params)
            operands.append(values[id(operand)])
        values[id(node)] = _varied(builder, rng, node, operands) if node is varied else builder.add(node.op, *operands)
    made = values[id(end)]
    if not isinstance(made.type, TensorType) or made in graph.results:
        return None
    used = set(Graph("part", (), [made]).nodes())
    kept = [p for p in params if p in graph.params or p in used]
    return Graph(graph.name, kept, [*graph.results, made][-MOST_RESULTS:])


def _part(graph: Graph, end: Node) -> list[Node]:
    """The nodes next before `end` that are no params, and itself, in the order of the graph."""
    waiting = [end]
    found: list[Node] = []
    while waiting and len(found) < MOST_COPIED:
        node = waiting.pop(0)
        if node not in found and node.inputs:
            found.append(node)
            waiting.extend(node.inputs)
    return [node for node in graph.nodes() if node in found]


def _param(b: Builder, wanted: TensorType, params: list[Node]) -> Node:
    """A new param of that type, which `params` has from then on."""
    taken = {p.op.label for p in params if isinstance(p.op, Param)}
    label = next(name for name in (f"x{i}" for i in range(len(taken), 2 * len(taken) + 2)) if name not in taken)
    params.append(b.add(Param(label, wanted.dtype, wanted.shape)))
    return params[-1]


def _varied(b: Builder, rng: np.random.Generator, node: Node, operands: list[Node]) -> Node:
    """The node with operands of one type in another order, or with another scalar function."""
    if isinstance(node.op, While):  # what it counts with decides when it ends
        return b.add(node.op, *operands)
    if isinstance(node.op, Elementwise) and rng.random() < 0.4:
        row = SCALARS[node.op.function]
        names = [f.name for f in SCALARS.values() if f.arity == row.arity and f.rule == row.rule and f is not row]
        try:
            made = b.add(Elementwise(chosen(rng, names)), *operands) if names else None
        except TilewrightError:
            made = None  # not for this dtype
        if made is not None and made.type == node.type:
            return made
    if len(operands) > 1 and isinstance(operands[-1].type, TensorType) and operands[-1].type == operands[-2].type:
        operands[-2:] = operands[:-3:-1]
    return b.add(node.op, *operands)


MEMORY = (apart, with_itself, twin)
