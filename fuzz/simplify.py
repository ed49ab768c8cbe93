"""Simpler graphs, for the reduction of what fails: one result, params and operands in place of values, smaller sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..ir.errors import TilewrightError
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.control import Const, Param
from ..ir.types import TensorType
from .rebuild import MOST_RESULTS, acceptable, rebuilt, with_sizes


def simpler(graph: Graph) -> Iterator[Graph]:
    """Well-typed graphs with less in them, the boldest first: one result, values in place of what computes them, params in
    place of values, constants of zeros, smaller sizes, no symbols."""
    for candidate in _simpler(graph):
        if candidate is not None and acceptable(candidate):
            yield candidate


def _tried(make: Callable[[], Graph | None]) -> Graph | None:
    try:
        return make()
    except TilewrightError:
        return None


def _simpler(graph: Graph) -> Iterator[Graph | None]:
    if len(graph.results) > 1:
        for result in graph.results:
            yield _trimmed(Graph(graph.name, graph.params, [result]))
    trimmed = _trimmed(graph)
    if len(trimmed.params) < len(graph.params):
        yield trimmed
    nodes = [n for n in reversed(graph.nodes()) if isinstance(n.type, TensorType) and not isinstance(n.op, Param)]
    for node in nodes:
        if node.inputs or not isinstance(node.op, Const):
            yield _tried(lambda node=node: _trimmed(_as_param(graph, node)))  # type: ignore[misc]
    for node in nodes:
        for operand in node.inputs:
            if operand.type == node.type:
                yield _tried(lambda node=node, operand=operand: _trimmed(  # type: ignore[misc]
                    rebuilt(graph, {id(node): lambda b, x, values: values[id(operand)]})))
    if graph.results and graph.results[0].inputs:
        operands = [i for r in graph.results for i in r.inputs if isinstance(i.type, TensorType)]
        if operands:
            yield _tried(lambda: _trimmed(Graph(graph.name, graph.params, operands[:MOST_RESULTS])))
    for old in graph.symbols:
        yield _tried(lambda old=old: with_sizes(graph, {old.name: max(old.lower, old.multiple_of, 1)}, {}))  # type: ignore[misc]
    for number in sorted({n for p in graph.params for n in p.shape if isinstance(n, int) and n > 1}, reverse=True):
        for less in (1, 2, number // 2, number - 1):
            if less < number:
                yield _tried(lambda number=number, less=less: with_sizes(graph, {}, {number: less}))  # type: ignore[misc]


def _trimmed(graph: Graph) -> Graph:
    """Without params that nothing needs."""
    reached = set(Graph(graph.name, (), graph.results).nodes())
    return Graph(graph.name, [p for p in graph.params if p in reached], graph.results, graph.result_names)


def _as_param(graph: Graph, node: Node) -> Graph:
    """The node replaced by a parameter of its type."""
    labels = {p.op.label for p in graph.params if isinstance(p.op, Param)}
    label = next(f"y{i}" for i in range(len(labels) + 1) if f"y{i}" not in labels)
    param = Builder().add(Param(label, node.dtype, node.shape))
    return rebuilt(graph, {id(node): lambda b, x, values: param}, [param])
