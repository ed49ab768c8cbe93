"""Removes operands of composites, fusions and control flow that no body reads.

Nodes that no result needs are in no graph; what is left to remove is what only bodies know to be unused. Params of the
outermost graph stay: they are its signature.
Guarantees: every capture of a composite, fusion, `if`, `while` and `scan` is read by one of its bodies.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..ir.graph import Builder, Graph, Node, Op, attribute_names
from ..ir.ops.control import Composite, Fusion, If, Scan, While
from ..ir.rewrite import rewrite_until_stable
from ..options import Options


def eliminate_dead(graph: Graph, options: Options) -> Graph:
    """The graph without captures that nothing reads."""
    return rewrite_until_stable(graph, _visit, "eliminate_dead", bodies=True)


def _visit(builder: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
    op = node.op
    fixed = _first_capture(op)
    bodies = {name: body for name in attribute_names(type(op)) if isinstance(body := getattr(op, name), Graph)}
    if fixed is None or not bodies:
        return None
    skipped = 1 if isinstance(op, If) else 0  # the condition is no operand of the bodies
    used = [_reads(body) for body in bodies.values()]
    keep = [i for i in range(len(inputs) - skipped) if i < fixed or any(i in u for u in used)]
    if len(keep) == len(inputs) - skipped:
        return None
    changed = {name: _with_params(body, keep) for name, body in bodies.items()}
    return builder.add(replace(op, **changed), *inputs[:skipped], *(inputs[skipped + i] for i in keep))


def _first_capture(op: Op) -> int | None:
    """How many of the bodies' operands are no captures; None for an op that has no bodies."""
    match op:
        case Composite() | Fusion() | If():
            return 0
        case While(count=count):
            return count
        case Scan(states=states, scanned=scanned):
            return states + scanned
    return None


def _reads(body: Graph) -> set[int]:
    """The positions of the params that some node or result of the body reads."""
    read = {id(i) for node in body.nodes() for i in node.inputs} | {id(r) for r in body.results}
    return {position for position, p in enumerate(body.params) if id(p) in read}


def _with_params(body: Graph, keep: list[int]) -> Graph:
    return Graph(body.name, [body.params[i] for i in keep], body.results, body.result_names)
