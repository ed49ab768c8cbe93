"""Programs that must fail: an index outside of an axis is an error at run time, before and after every pass, on every backend.

A pass may drop what no result depends on, and a failure with it. So a program counts only where its results would be others for other
places in range: then whatever compiles it has to notice, because there is no right result.

Guarantees: says so of no program whose failure hangs on rounding. Ops that take places but stand not in `PLACES` are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.errors import IndexFailure, TilewrightError
from ..ir.graph import Graph, Node, Op
from ..ir.interp import bind_shapes, evaluate_node
from ..ir.ops.shape import GatherND, ScatterAlong, ScatterND, Take, TakeAlong
from .shadow import shadow
from .shadow_values import Array

DRAWS = 3


def _axis_size(op: Any, x: Array, places: Array) -> Array:
    return np.full(places.shape, x.shape[op.axis])


def _leading_sizes(op: Any, x: Array, places: Array) -> Array:
    return np.broadcast_to(np.asarray(x.shape[:places.shape[-1]]), places.shape)


# op -> how many places the axis has that each index chooses from; the second operand holds the indices
PLACES: Mapping[type[Op], Callable[[Any, Array, Array], Array]] = {
    Take: _axis_size, TakeAlong: _axis_size, ScatterAlong: _axis_size, GatherND: _leading_sizes, ScatterND: _leading_sizes,
}


def must_fail(graph: Graph, inputs: Sequence[Array], precision: str, tf32: bool = False) -> bool:
    """Whether an index leaves its axis, without any doubt, and the results hang on it."""
    values: dict[int, Any] = {id(p): a for p, a in zip(graph.params, inputs, strict=True)}
    binding = bind_shapes(graph, inputs)
    nodes = [node for node in graph.nodes() if id(node) not in values]
    for number, node in enumerate(nodes):
        try:
            values[id(node)] = evaluate_node(node, [values[id(i)] for i in node.inputs], binding)
        except TilewrightError as error:
            return isinstance(error, IndexFailure) and type(node.op) in PLACES and _decides(graph, nodes[number:], values, binding) \
                and shadow(Graph("places", graph.params, [node.inputs[1]]), inputs, precision=precision, tf32=tf32).results[0].bound is None
    return False


def _decides(graph: Graph, nodes: Sequence[Node], values: Mapping[int, Any], binding: Mapping[str, int]) -> bool:
    """Whether the results differ for different places in range instead of the wrong ones of the first node."""
    first, rng = nodes[0], np.random.default_rng(0)
    found: set[bytes] = set()
    for _ in range(DRAWS):
        made = dict(values)
        for node in nodes:
            operands = [made[id(i)] for i in node.inputs]
            try:
                if node is first:
                    operands[1] = _in_range(PLACES[type(node.op)](node.op, operands[0], operands[1]), operands[1], rng)
                made[id(node)] = evaluate_node(node, operands, binding)
            except (TilewrightError, ValueError):
                return False  # no place is in range, or it fails again
        found.add(b"".join(np.asarray(made[id(r)]).tobytes() for r in graph.results))
    return len(found) > 1


def _in_range(sizes: Array, places: Array, rng: np.random.Generator) -> Array:
    wrong = (places < 0) | (places >= sizes)
    return np.where(wrong, rng.integers(0, sizes), places).astype(places.dtype)
