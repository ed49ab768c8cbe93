"""Moves what a loop computes anew each round from its captures alone to before the loop.

A node of the body of a `while` or `scan` that depends on captures and constants only has the same value in every round.
It becomes a further capture. This is what packs the weights of a recurrent layer once instead of once a step.

Only nodes that cannot fail and whose result is no larger than what they read, or that a contraction reads, are moved:
moving a broadcast out would trade a free view for memory. Contract: exact.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import PackedConv, PackedDot
from ..ir.ops.control import Const, If, Param, Scan, While
from ..ir.ops.shape import Broadcast, GatherND, Iota, Pad, Reshape, SizeOf, Slice, Take, TakeAlong, Transpose
from ..ir.rewrite import rewrite_graph
from ..ir.types import TensorType
from ..library import inline
from ..options import Options

MAY_FAIL = (Take, TakeAlong, GatherND)
# what stays inside when nothing but movement would leave
MOVEMENT = (Broadcast, Iota, SizeOf, Reshape, Transpose, Slice, Pad)


def hoist_invariants(graph: Graph, options: Options) -> Graph:
    """See the module's text. Nested loops are left by one level an application; inner ones come first. Nothing leaves an `if`."""
    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        match node.op:
            case Scan() as op:
                first = op.states + op.scanned
                body, moved = _split(hoist_invariants(op.body, options), first)
                if not moved.results and body is op.body:
                    return None
                made = inline(b, moved, inputs[first:])
                return b.add(replace(op, body=body), *inputs, *made)
            case While() as op:
                body, moved = _split(hoist_invariants(op.body, options), op.count)
                if not moved.results and body is op.body:
                    return None
                made = inline(b, moved, inputs[op.count:])
                condition = _with_params(op.condition, body.params[len(op.condition.params):])
                return b.add(replace(op, body=body, condition=condition), *inputs, *made)
            case If() as op:  # whose branches may hold loops
                then, other = hoist_invariants(op.then_body, options), hoist_invariants(op.else_body, options)
                if then is not op.then_body or other is not op.else_body:
                    return b.add(replace(op, then_body=then, else_body=other), *inputs)
        return None

    return rewrite_graph(graph, visit, "hoist_invariants")


def _with_params(graph: Graph, params: Sequence[Node]) -> Graph:
    return Graph(graph.name, (*graph.params, *params), graph.results, graph.result_names) if params else graph


def _split(body: Graph, first_capture: int) -> tuple[Graph, Graph]:
    """The body with invariant values as further params, and a graph that computes them from the captures."""
    captures = body.params[first_capture:]
    invariant: set[Node] = set(captures)
    for node in body.nodes():
        movable = not node.op.effect and not isinstance(node.op, (Param, *MAY_FAIL)) and isinstance(node.type, TensorType)
        if movable and (isinstance(node.op, Const) or node.inputs and all(i in invariant for i in node.inputs)):
            invariant.add(node)
    leaving = [n for n in body.nodes() if n in invariant and not isinstance(n.op, (Param, Const))
               and any(u not in invariant and _worth_it(n, u) for u in body.users()[n])]
    moved = Graph(body.name, captures, leaving)
    if not leaving:
        return body, moved
    b = Builder()
    values: dict[Node, Node] = {p: b.keep(p) for p in body.params}
    fresh = []
    for number, node in enumerate(leaving):
        label = f"invariant{len(body.params) + number}"
        values[node] = b.add(Param(label, node.dtype, node.shape), loc=node.loc)
        fresh.append(values[node])
    for node in body.nodes():
        if node not in values and not (node in invariant and not isinstance(node.op, Const) and _only_feeds(node, values)):
            values[node] = b.add(node.op, *(values[i] for i in node.inputs), loc=node.loc)
    results = [values[r] for r in body.results]
    return Graph(body.name, (*body.params, *fresh), results, body.result_names), moved


def _only_feeds(node: Node, values: dict[Node, Node]) -> bool:
    """Whether an operand was left out because everything that needs it moves: then so is this node."""
    return any(i not in values for i in node.inputs)


def _worth_it(node: Node, user: Node) -> bool:
    if isinstance(user.op, (PackedDot, PackedConv)):
        return True
    return not isinstance(node.op, MOVEMENT)
