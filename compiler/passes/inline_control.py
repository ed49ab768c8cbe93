"""Removes control flow that is decided at compile time.

`if` with a constant condition, or with two equal sides, becomes the body that runs; a `while` whose condition is the
constant false, or a `scan` of no step, gives its initial states.

Guarantees: the meaning is unchanged; bodies are treated too.
"""

from __future__ import annotations

from ..ir.dims import bounds
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.control import Const, If, Scan, While
from ..ir.rewrite import rewrite_until_stable
from ..library import full, inline
from ..options import Options

Replacement = Node | tuple[Node, ...] | None


def inline_control(graph: Graph, options: Options) -> Graph:
    """The graph without decided control flow."""
    return rewrite_until_stable(graph, _visit, "inline_control", bodies=True)


def _visit(builder: Builder, node: Node, inputs: tuple[Node, ...]) -> Replacement:
    match node.op:
        case If(then_body, else_body):
            condition = inputs[0].op
            if isinstance(condition, Const):
                return _results(inline(builder, then_body if condition.value.array else else_body, inputs[1:]))
            if then_body.fingerprint == else_body.fingerprint:
                return _results(inline(builder, then_body, inputs[1:]))
        case While(condition=condition_body, count=count):
            result = condition_body.results[0].op
            if isinstance(result, Const) and not result.value.array:
                return _results(inputs[:count])
        case Scan(body, states, length=length) if bounds(length)[1] <= 0:
            stacked = (full(builder, 0, x.dtype, (length, *x.shape)) for x in body.results[states:])
            return _results((*inputs[:states], *stacked))
    return None


def _results(values: tuple[Node, ...]) -> Replacement:
    return values[0] if len(values) == 1 else values
