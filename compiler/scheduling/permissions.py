"""What the operator of a node may share: operands that its result may lie over, whether it only concatenates, whether it is cheap.

A result may lie over an operand of as many bytes that is read element by element: each element just where the one of the result that lies
there is made. In a fused group that is an operand all of whose uses lead to the result through elementwise nodes. A concatenation lays its
operands one behind the other where the axes before its own have one element each. Sizes are those of the tensors given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir.graph import Graph, Node
from ..ir.ops.compute import Bitcast, Cast, Elementwise
from ..ir.ops.control import Const, Fusion, Param
from ..ir.ops.shape import Broadcast, Concat, Reshape
from ..ir.types import TensorType

POINTWISE = (Elementwise, Cast, Bitcast)


def permissions(node: Node, operands: Sequence[int], sizes: Sequence[int], outputs: Sequence[int], leading: int) -> dict[str, Any]:
    """Fields of the `Operator` of a node. `sizes`: bytes of tensors; `leading`: elements along the axes before that of a concatenation."""
    if len(outputs) != 1:
        return {}
    pointwise = [n for n in range(len(node.inputs)) if _is_pointwise(node, n)]
    over = tuple(dict.fromkeys(operands[n] for n in pointwise if sizes[operands[n]] == sizes[outputs[0]] > 0
                               and all(m in pointwise for m in range(len(operands)) if operands[m] == operands[n])))
    return {"in_place": over, "light": is_light(node), "concat": isinstance(node.op, Concat) and leading == 1}


def _is_pointwise(node: Node, number: int) -> bool:
    """Whether an operand is read element by element."""
    if not isinstance(node.op, Fusion):
        return isinstance(node.op, POINTWISE)
    body = node.op.body
    users = _users(body)
    pending, seen = list(users.get(body.params[number], ())), set[Node]()
    if not pending or body.params[number] in body.results:
        return False
    while pending:
        here = pending.pop()
        if here in seen:
            continue
        seen.add(here)
        if not isinstance(here.op, POINTWISE) or not (here in body.results or users.get(here)):
            return False
        pending += users.get(here, ())
    return True


def _users(body: Graph) -> dict[Node, list[Node]]:
    found: dict[Node, list[Node]] = {}
    for node in body.nodes():
        for value in node.inputs:
            found.setdefault(value, []).append(node)
    return found


def is_light(node: Node) -> bool:
    """Elementwise, from operands and constants of one element."""
    if not isinstance(node.op, Fusion):
        return isinstance(node.op, POINTWISE)
    return all(isinstance(inner.op, (*POINTWISE, Param)) or _is_number(inner) for inner in node.op.body.nodes())


def concatenated(node: Node) -> tuple[int, ...]:
    """Of a node that does nothing but lay operands one behind the other, which they are, in that order; else none."""
    if not isinstance(node.op, Fusion) or len(node.op.body.results) != 1:
        return ()
    body = node.op.body
    result = _viewed(body.results[0])
    if not isinstance(result.op, Concat):
        return ()
    parts = [_viewed(part) for part in result.inputs]
    leading = result.shape[:result.op.axis]
    if any(axis != 1 for axis in leading) or any(part not in body.params for part in parts):
        return ()
    return tuple(body.params.index(part) for part in parts)


def _viewed(node: Node) -> Node:
    while isinstance(node.op, Reshape):
        node = node.inputs[0]
    return node


def _is_number(node: Node) -> bool:
    """One element, however often it is repeated."""
    while isinstance(node.op, Broadcast):
        node = node.inputs[0]
    return isinstance(node.op, Const) and isinstance(node.type, TensorType) and all(axis == 1 for axis in node.type.shape)
