"""Evaluates what is known at compile time.

A node whose operands are constants (or constants repeated by a broadcast) becomes a constant, by the op's own meaning,
where its size is known and it takes little more room than what it is made from. What fails when evaluated (an index out
of range) stays and fails at run time. What repeats or counts (`broadcast`, `iota`) stays as it is: as an op it costs
nothing; what computes equal elements becomes one element and a broadcast.

Guarantees: the results are those of the interpreter, bit for bit; bodies are folded too. Assumes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..ir.errors import TilewrightError
from ..ir.graph import Builder, Constant, Graph, Node, Op, attribute_names
from ..ir.ops.compute import Cast, Conv, Dot, Elementwise, PackedConv, PackedDot
from ..ir.ops.control import Const, Get, MakeTuple, Param
from ..ir.ops.shape import Broadcast, Iota, Pad, Reshape, Transpose
from ..ir.rewrite import rewrite_graph, uniform_value
from ..ir.types import TensorType
from ..options import Options

MOVEMENT = (Transpose, Reshape, Pad)
KNOWN = (Const, Iota)
UNFOLDED = (*KNOWN, Param, MakeTuple, Get, Broadcast)
SMALL_BYTES = 64 * 1024  # a result up to this size is folded, whatever it is made from
GROWTH = 2  # a larger result may take this many times the room of its operands
LARGEST_BYTES = 1 << 30
MOST_PRODUCTS = 1 << 28  # contractions beyond this many multiplications stay


def fold_constants(graph: Graph, options: Options) -> Graph:
    """The graph with everything known evaluated, bodies included. Large operands of contractions that are only moved stay: they
    are packed next, and would be moved twice."""
    return _Folding(graph, (Dot, Conv)).run()


def fold_packed(graph: Graph, options: Options) -> Graph:
    """The same once operands are packed: nothing stays."""
    return _Folding(graph, ()).run()


class _Folding:
    """`moved`: new nodes that only move a large constant, and their value, which may be a view of it. They become constants where
    something else reads them, so that a chain of movements (packing) copies and digests once; `patient` are ops that wait."""

    def __init__(self, graph: Graph, patient: tuple[type[Op], ...]) -> None:
        self.graph = graph
        self.patient = patient
        self.outermost = {id(node) for node in graph.nodes()}
        self.moved: dict[Node, np.ndarray] = {}
        self.settled: dict[Node, Node] = {}

    def run(self) -> Graph:
        folded = rewrite_graph(self.graph, self._visit, "fold_constants", bodies=True)
        if not self.moved:
            return folded
        folded = rewrite_graph(folded, self._settle, "fold_constants")
        results = [self._constant_of(Builder(r.loc), r) if r in self.moved else r for r in folded.results]
        return folded if results == list(folded.results) else Graph(folded.name, folded.params, results, folded.result_names)

    def _visit(self, builder: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        value = folded_value(node, inputs, self.moved)
        if value is None:
            return None
        if isinstance(node.op, MOVEMENT) and value.nbytes > SMALL_BYTES and id(node) in self.outermost:
            made = builder.add(node.op, *inputs)
            self.moved[made] = value
            return made
        return _constant(builder, np.array(value, order="C"), isinstance(node.op, Elementwise | Cast))

    def _settle(self, builder: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if node in self.moved or isinstance(node.op, self.patient) or not any(i in self.moved for i in node.inputs):
            return None
        settled = [self._constant_of(builder, old) if old in self.moved else new for old, new in zip(node.inputs, inputs)]
        return builder.add(node.op, *settled, loc=node.loc)

    def _constant_of(self, builder: Builder, node: Node) -> Node:
        if node not in self.settled:
            self.settled[node] = _constant(builder, np.array(self.moved[node], order="C"), False)
        return builder.keep(self.settled[node])


def _constant(builder: Builder, value: np.ndarray, computed: bool) -> Node:
    """The array as a constant. What was computed and is one element throughout becomes that element, repeated.

    What was only moved stays an array, since its layout was asked for (packed weights).
    """
    node = builder.add(Const(Constant(value)))
    element = uniform_value(node) if computed and value.size > 1 else None
    if element is None:
        return node
    return builder.add(Broadcast(value.shape), builder.add(Const(Constant(np.asarray(element)))))


def folded_value(node: Node, inputs: tuple[Node, ...], moved: Mapping[Node, np.ndarray]) -> np.ndarray | None:
    """The value of the node's op on these operands where it is known and worth keeping, else None. It may be a view."""
    op = node.op
    if op.effect or isinstance(op, UNFOLDED) or any(x not in moved and not _is_known(x) for x in inputs) or _has_body(op):
        return None
    if not isinstance(node.type, TensorType) or not node.type.is_static or node.type.dtype.kind == "x":
        return None
    if not _is_worth_it(op, node.type, inputs, moved):
        return None
    arrays = [moved[x] if x in moved else _known_array(x) for x in inputs]
    if any(a is None for a in arrays):
        return None
    try:
        value = op.evaluate(arrays, {})
    except TilewrightError:
        return None
    array = np.asarray(value)
    if array.dtype != node.type.dtype.numpy or array.shape != node.type.static_shape:
        return None
    return array


def _has_body(op: Op) -> bool:
    return any(isinstance(getattr(op, name), Graph) for name in attribute_names(type(op)))


def _is_worth_it(op: Op, type: TensorType, inputs: tuple[Node, ...], moved: Mapping[Node, np.ndarray]) -> bool:
    count = math.prod(type.static_shape)
    size = count * type.dtype.bytes
    room = sum(moved[x].nbytes if x in moved else _constant_bytes(x) for x in inputs)
    if size > max(SMALL_BYTES, min(GROWTH * room, LARGEST_BYTES)):
        return False
    if isinstance(op, Dot | Conv | PackedDot | PackedConv):
        weights = inputs[1].tensor
        return weights.is_static and count * math.prod(weights.static_shape) <= MOST_PRODUCTS
    return True


def _constant_bytes(node: Node) -> int:
    """What the node's constant takes in memory; a repeated one is counted once."""
    source = node.inputs[0] if isinstance(node.op, Broadcast) else node
    return int(source.op.value.array.nbytes) if isinstance(source.op, Const) else 0


def _is_known(node: Node) -> bool:
    """Whether `_known_array` may give a value, which it may have to compute."""
    return isinstance(node.op, KNOWN) or isinstance(node.op, Broadcast) and isinstance(node.inputs[0].op, Const)


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
