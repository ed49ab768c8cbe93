"""Takes constant factors before contractions into their weights.

A value that is multiplied or divided by a number (the six of a hard swish, the half of a gelu) and then only moved, summed, and
multiplied or divided by others on its way to contractions with constant weights, need not be: the weights hold the factor.

Contract: reassoc, and finite, since a sum without the factor may overflow where one with it does not, or the other way round.
Weights that would no longer be finite or normal leave the factor where it is. `precision="plain"` and `"strict"` forbid it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from ..ir.graph import Array, Builder, Constant, Graph, Node
from ..ir.ops.compute import Conv, Dot, Elementwise, Reduce
from ..ir.ops.control import Const
from ..ir.ops.shape import Broadcast, Pad, Reshape, Slice, Transpose
from ..ir.rewrite import rewrite_graph, uniform_value
from ..ir.types import F32, F64
from ..options import Options
from .fold_scales import scaled_weights
from .winograd import known_array

MOST_FACTOR = 2.0 ** 20  # or its reciprocal; what is far from one may be there to keep values from overflowing
MOST_STEPS = 64  # nodes between a factor and the contractions that take it


def forward_scales(graph: Graph, options: Options) -> Graph:
    """See the module's text."""
    if options.precision != "default" or not any(isinstance(node.op, (Conv, Dot)) for node in graph.nodes()):
        return graph
    users, order = graph.users(), {node: i for i, node in enumerate(graph.nodes())}
    results = set(graph.results)
    dropped: dict[Node, int] = {}  # which operand stays
    factors: dict[Node, list[float]] = {}
    weights: dict[Node, Array] = {}
    for node in graph.nodes():
        found = _factor(node)
        ends = _ends(node, users, order, results) if found is not None else None
        if found is None or not ends:
            continue
        kept, factor = found
        made = {end: _scaled(end, [*factors.get(end, ()), factor]) for end in ends}
        if any(array is None for array in made.values()):
            continue
        dropped[node] = kept
        for end, array in made.items():
            factors.setdefault(end, []).append(factor)
            weights[end] = array  # type: ignore[assignment]  # none is None

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if node in dropped:
            return inputs[dropped[node]]
        if node in weights:
            return b.add(node.op, inputs[0], b.add(Const(Constant(weights[node]))))
        return None

    return rewrite_graph(graph, visit, "forward_scales") if dropped else graph


def _factor(node: Node) -> tuple[int, float] | None:
    """The operand that a node multiplies or divides by a number, and the factor, not rounded to the dtype."""
    if not isinstance(node.op, Elementwise) or node.op.function not in ("mul", "div") or node.dtype not in (F32, F64):
        return None
    divides = node.op.function == "div"
    for kept, other in ((0, 1), (1, 0))[:1 if divides else 2]:
        value = uniform_value(node.inputs[other])
        if value is not None and uniform_value(node.inputs[kept]) is None:
            factor = float(value)
            if not 1 / MOST_FACTOR <= abs(factor) <= MOST_FACTOR:
                return None
            return kept, 1 / factor if divides else factor
    return None


def _ends(start: Node, users: Mapping[Node, Sequence[Node]], order: Mapping[Node, int], results: set[Node]) -> list[Node] | None:
    """The contractions where a factor of this node ends, None where it reaches anything else than them."""
    scaled, seen = {start}, {start}
    ends: list[Node] = []
    queue: list[tuple[int, Node]] = [(order[start], start)]
    while queue:
        _, node = heapq.heappop(queue)
        if node is not start:
            if isinstance(node.op, (Conv, Dot)) and node.inputs[1] not in scaled:
                ends.append(node)
                continue
            if not _is_linear(node, scaled):
                return None
            scaled.add(node)
        if node in results or len(scaled) > MOST_STEPS:
            return None
        for user in users[node]:
            if user not in seen:
                seen.add(user)
                heapq.heappush(queue, (order[user], user))
    return ends


def _is_linear(node: Node, scaled: set[Node]) -> bool:
    """Whether a factor of the scaled operands is one of the node."""
    match node.op:
        case Reshape() | Transpose() | Broadcast() | Slice() | Reduce(kind="sum"):
            return True
        case Pad():
            fill = uniform_value(node.inputs[1])
            return node.inputs[0] in scaled and fill is not None and float(fill) == 0
        case Elementwise("mul"):
            return sum(i in scaled for i in node.inputs) == 1
        case Elementwise("div"):
            return node.inputs[1] not in scaled
        case Elementwise("add" | "sub"):
            return all(i in scaled for i in node.inputs)
    return False


def _scaled(node: Node, factors: Sequence[float]) -> Array | None:
    """The weights of a contraction with all factors; None where they cannot hold them."""
    known = known_array(node.inputs[1])
    return None if known is None else scaled_weights(known, np.array([prod(factors)]), 0)


__all__ = ["forward_scales"]
