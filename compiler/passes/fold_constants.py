"""Evaluates what is known at compile time.

A node whose operands are constants (or constants repeated by a broadcast) becomes a constant, by the op's own meaning,
where its size is known and it takes little more room than what it is made from. What fails when evaluated (an index out
of range) stays and fails at run time. What repeats or counts (`broadcast`, `iota`) stays as it is: as an op it costs
nothing; what computes equal elements becomes one element and a broadcast.

Guarantees: the results are those of the interpreter, bit for bit; bodies are folded too. Assumes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.errors import TilewrightError
from ..ir.graph import Builder, Constant, Graph, Node, Op, attribute_names
from ..ir.ops.compute import Cast, Conv, Dot, Elementwise, PackedConv, PackedDot
from ..ir.ops.control import Const, Get, MakeTuple, Param
from ..ir.ops.shape import Broadcast, Iota
from ..ir.rewrite import rewrite_graph, uniform_value
from ..ir.types import TensorType
from ..options import Options

SMALL_BYTES = 64 * 1024  # a result up to this size is folded, whatever it is made from
GROWTH = 2  # a larger result may take this many times the room of its operands
LARGEST_BYTES = 1 << 30
MOST_PRODUCTS = 1 << 28  # contractions beyond this many multiplications stay


def fold_constants(graph: Graph, options: Options) -> Graph:
    """The graph with everything known evaluated, bodies included."""
    def visit(builder: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        value = folded_value(node, inputs)
        return None if value is None else _constant(builder, value, isinstance(node.op, Elementwise | Cast))

    return rewrite_graph(graph, visit, "fold_constants", bodies=True)


def _constant(builder: Builder, value: np.ndarray, computed: bool) -> Node:
    """The array as a constant. What was computed and is one element throughout becomes that element, repeated.

    What was only moved stays an array, since its layout was asked for (packed weights).
    """
    node = builder.add(Const(Constant(value)))
    element = uniform_value(node) if computed and value.size > 1 else None
    if element is None:
        return node
    return builder.add(Broadcast(value.shape), builder.add(Const(Constant(np.asarray(element)))))


def folded_value(node: Node, inputs: tuple[Node, ...]) -> np.ndarray | None:
    """The value of the node's op on these operands where it is known and worth keeping, else None."""
    op = node.op
    if op.effect or isinstance(op, Const | Param | MakeTuple | Get | Broadcast | Iota) or _has_body(op):
        return None
    if not isinstance(node.type, TensorType) or not node.type.is_static or node.type.dtype.kind == "x":
        return None
    if not _is_worth_it(op, node.type, inputs):
        return None
    arrays = [_known_array(x) for x in inputs]
    if any(a is None for a in arrays):
        return None
    try:
        value = op.evaluate(arrays, {})
    except TilewrightError:
        return None
    array = np.asarray(value)
    if array.dtype != node.type.dtype.numpy or array.shape != node.type.static_shape:
        return None
    return np.array(array, order="C")


def _has_body(op: Op) -> bool:
    return any(isinstance(getattr(op, name), Graph) for name in attribute_names(type(op)))


def _is_worth_it(op: Op, type: TensorType, inputs: tuple[Node, ...]) -> bool:
    count = int(np.prod(type.static_shape, dtype=object))
    size = count * type.dtype.bytes
    room = sum(_constant_bytes(x) for x in inputs)
    if size > max(SMALL_BYTES, min(GROWTH * room, LARGEST_BYTES)):
        return False
    if isinstance(op, Dot | Conv | PackedDot | PackedConv):
        weights = inputs[1].tensor
        return weights.is_static and count * int(np.prod(weights.static_shape, dtype=object)) <= MOST_PRODUCTS
    return True


def _constant_bytes(node: Node) -> int:
    """What the node's constant takes in memory; a repeated one is counted once."""
    source = node.inputs[0] if isinstance(node.op, Broadcast) else node
    return int(source.op.value.array.nbytes) if isinstance(source.op, Const) else 0


def _known_array(node: Node) -> Any:
    """The value of a constant, of a repeated constant (without a copy), or of a count; None elsewhere."""
    match node.op:
        case Const(value):
            return value.array
        case Broadcast() if isinstance(node.inputs[0].op, Const) and node.tensor.is_static:
            return np.broadcast_to(node.inputs[0].op.value.array, node.tensor.static_shape)
        case Iota() if node.tensor.is_static:
            return node.op.evaluate((), {})
    return None
