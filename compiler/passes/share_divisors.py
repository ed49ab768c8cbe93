"""Divides once what many elements are divided by: x / b becomes x * (1 / b), where b is the same along an axis.

A core multiplies several times as often as it divides. Taken are divisors that lie far from the ends of the range, or are 0, infinite
or NaN, so that special values stay: square roots, those plus a number, the sums of exponentials whose largest is 1, as in layer
norm and softmax, and numbers that the result of a contraction is divided by, as scores of attention are.

Contract: bounded, by 2 units in the last place. Quotients that decisions rest on (rounding to whole numbers, comparing) are left as
they are. `precision="plain"` and `"strict"` forbid all of it.
"""

from __future__ import annotations

from ..ir.dims import product
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Cast, Conv, Dot, Elementwise, Reduce
from ..ir.ops.shape import Broadcast, Reshape
from ..ir.rewrite import rewrite_graph, uniform_value
from ..ir.types import F32, F64
from ..library import broadcast, constant, scalar
from ..options import Options

FAR = 2.0**64   # numbers up to here, and their reciprocals, are normal
DECISIONS = frozenset({"floor", "ceil", "round", "trunc", "sign", "mod", "rem", "floordiv", "eq", "ne", "lt", "le", "gt", "ge"})


def share_divisors(graph: Graph, options: Options) -> Graph:
    """See the module's text."""
    if options.precision != "default":
        return graph
    divisors = {node: divisor for node in graph.nodes() if _is(node, "div") and (divisor := _divisor(node)) is not None}
    if not divisors:
        return graph
    decisive = find_decisive(graph)

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if node not in divisors or node in decisive:
            return None
        moves, value = [], inputs[1]
        while isinstance(value.op, (Broadcast, Reshape)):
            moves.append(value.op)
            value = value.inputs[0]
        reciprocal = scalar(b, "div", broadcast(b, constant(b, 1, value.dtype), value.shape), value)
        for op in reversed(moves):
            reciprocal = b.add(op, reciprocal)
        return scalar(b, "mul", inputs[0], reciprocal)

    return rewrite_graph(graph, visit, "share_divisors")


def _is(node: Node, function: str) -> bool:
    return isinstance(node.op, Elementwise) and node.op.function == function


def _divisor(node: Node) -> Node | None:
    """What the elements of a quotient are divided by, fewer numbers than there are quotients; None where those might be too large
    or too small to have reciprocals."""
    found = _unmoved(node.inputs[1])
    if node.dtype not in (F32, F64) or product(found.shape) == product(node.shape):
        return None
    return found if _is_root(found) or _is_sum_of_exponentials(found) or _is_scale(node, found) else None


def _unmoved(node: Node) -> Node:
    while isinstance(node.op, (Broadcast, Reshape)):
        node = node.inputs[0]
    return node


def _is_root(node: Node) -> bool:
    """A square root, or one plus a number that is not negative, nor large."""
    if _is(node, "add"):
        for root, number in (node.inputs, node.inputs[::-1]):
            value = uniform_value(number)
            if value is not None and _is(_unmoved(root), "sqrt"):
                return 0 <= float(value) <= 1
    return _is(node, "sqrt")


def _is_sum_of_exponentials(node: Node) -> bool:
    """The sum of exp(x - m) where m is the largest x: at least 1."""
    if not isinstance(node.op, Reduce) or node.op.kind != "sum" or not _is(node.inputs[0], "exp"):
        return False
    difference = node.inputs[0].inputs[0]
    if not _is(difference, "sub"):
        return False
    x, largest = difference.inputs[0], _unmoved(difference.inputs[1])
    return (isinstance(largest.op, Reduce) and largest.op.kind == "max" and largest.op.axes == node.op.axes
            and largest.inputs[0] is x)


def _is_scale(node: Node, divisor: Node) -> bool:
    """Whether the result of a contraction is divided by a number with an exact enough reciprocal."""
    value = uniform_value(divisor)
    return value is not None and isinstance(node.inputs[0].op, (Conv, Dot)) and 1 / FAR <= abs(float(value)) <= FAR


def find_decisive(graph: Graph) -> set[Node]:
    """The nodes that a decision rests on."""
    found: set[Node] = set()
    for node in reversed(graph.nodes()):
        decides = isinstance(node.op, Cast) and not node.dtype.is_float
        if decides or node in found or isinstance(node.op, Elementwise) and node.op.function in DECISIONS:
            found.update((node, *node.inputs))
    return found
