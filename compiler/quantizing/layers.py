"""Finds the layers of a graph, contractions with constant weights, and shows each as products of matrices.

A layer is a `Dot` or `Conv` whose right operand is a constant, which transposes and reshapes may stand behind. Numerics see
every layer in one form, whatever its axes are called: weights [groups, K, N], of each group a matrix of N output channels and
as deep as the contraction, and an input [groups, rows, K]. `Layer` translates to and from that form.

A *table*, a matrix whose rows are taken (an embedding), is a layer too where that is asked for: its rows are the N columns of weights,
as if it were multiplied with rows of an identity. It has no input that could be quantized.

Assumes a graph as it was imported or traced, before passes. Guarantees that labels are unique, and that what is no layer
although it contracts constants is listed with a reason: constants on the left, batches of weights, transposed convolutions,
dtypes other than float32, bodies of composites and of control flow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from ..ir.errors import UNKNOWN
from ..ir.graph import Array, Builder, Constant, Graph, Node
from ..ir.ops.compute import Cast, Conv, Dot, window_view
from ..ir.ops.control import Const
from ..ir.ops.shape import Broadcast, Reshape, Slice, Take, Transpose
from ..ir.rewrite import rewrite_graph
from ..ir.types import F32
from ..library_quantized import may_scale_by_place

ROWS = 4096  # rows of a layer's input that a sample gives at most, evenly spread
MOST_NODES = 64  # that weights are computed of
COMPUTED = (Broadcast, Cast, Slice)  # of constants, what graphs have weights of
_ONNX_NODE = re.compile(r"node '(?P<name>.*)' \(\w+\)$")


class Left(Struct, frozen=True, eq=False):
    """A contraction of a constant that is no layer, and why; `place` as of `Layer`."""

    place: int
    label: str
    location: str
    kind: str
    shape: tuple[int, ...]
    digest: str
    reason: str


class Layer(Struct, frozen=True, eq=False):
    """A contraction of `node.inputs[0]` with a constant. `reader`: the node that reads the constant, itself or a movement before
    it. `order`: the axes of the constant in the order in which the operand has them, without axes of size 1 that reshapes drop; None
    where reshapes do more: then arrays are laid out as the operand (`as_operand`). `place`: in the order in which nodes are computed."""

    place: int
    label: str
    location: str
    node: Node
    reader: Node
    constant: Constant
    operand: Array
    order: tuple[int, ...] | None

    @property
    def kind(self) -> str:
        return "table" if self.is_table else "dot" if isinstance(self.node.op, Dot) else "conv"

    @property
    def is_table(self) -> bool:
        return isinstance(self.node.op, Take)

    @property
    def source(self) -> Node:
        """What the layer reads beside its constant."""
        return self.node.inputs[1 if self.is_table else 0]

    @property
    def as_operand(self) -> bool:
        return self.order is None

    # --- the axes of the operand

    @property
    def _contracted(self) -> tuple[int, ...]:
        """Axes of the operand that are summed over, in the order in which K runs."""
        op = self.node.op
        if isinstance(op, Dot):
            return op.rhs_contract
        if isinstance(op, Take):
            return (1,)
        assert isinstance(op, Conv)
        rank = self.operand.ndim
        return (rank - 2, *range(rank - 2)) if op.channels_last else tuple(range(1, rank))

    @property
    def _free(self) -> tuple[int, ...]:
        return tuple(a for a in range(self.operand.ndim) if a not in self._contracted)

    @property
    def groups(self) -> int:
        return self.node.op.groups if isinstance(self.node.op, Conv) else 1

    @property
    def depth(self) -> int:
        """K: how many products an element of the result sums."""
        return int(np.prod([self.operand.shape[a] for a in self._contracted], dtype=np.int64))

    @property
    def width(self) -> int:
        """Output channels of all groups."""
        return int(np.prod([self.operand.shape[a] for a in self._free], dtype=np.int64))

    @property
    def can_group(self) -> bool:
        """Whether scales may change along the contraction, which then is one axis."""
        return isinstance(self.node.op, (Dot, Take)) and len(self._contracted) == 1

    def _stored_axis(self, axis: int) -> int:
        """Where an axis of the operand lies in the stored constant."""
        return axis if self.order is None else self.order[axis]

    @property
    def _whole_order(self) -> tuple[int, ...]:
        """The order, and behind it the axes of the constant that the operand has not."""
        assert self.order is not None
        return (*self.order, *(a for a in range(self.constant.array.ndim) if a not in self.order))

    @property
    def contracted_axis(self) -> int:
        """The first axis of the operand that is contracted, the only one where `can_group`."""
        return self._contracted[0]

    @property
    def group_axis(self) -> int:
        """The same axis of the stored constant."""
        return self._stored_axis(self.contracted_axis)

    @property
    def channel_axes(self) -> tuple[int, ...]:
        return tuple(sorted(self._stored_axis(a) for a in self._free))

    @property
    def result_shape(self) -> tuple[int, ...]:
        """The shape in which a number for each output channel broadcasts against the result."""
        op = self.node.op
        if isinstance(op, Dot):
            return tuple(self.operand.shape[a] for a in self._free)
        assert isinstance(op, Conv)
        return (self.width,) if op.channels_last else (self.width, *[1] * (self.node.rank - 2))

    # --- weights

    def matrix(self) -> Array:
        """The weights in float32 as [groups, K, N]."""
        return self.to_matrix(self.operand)

    def to_matrix(self, operand: Array) -> Array:
        contracted = self._contracted
        depth = int(np.prod([operand.shape[a] for a in contracted], dtype=np.int64))
        rows = operand.transpose(*contracted, *self._free).reshape(depth, self.groups, self.width // self.groups)
        return np.ascontiguousarray(rows.transpose(1, 0, 2))

    def stored(self, matrix: Array) -> Array:
        """What is [groups, K, N], or has size 1 or K / group in place of K, as the constant is laid out."""
        sizes = [self.operand.shape[a] for a in self._contracted]
        if matrix.shape[1] != self.depth or self.depth == 1:
            sizes = [1] * (len(sizes) - 1) + [matrix.shape[1]]
        free = [self.operand.shape[a] for a in self._free]
        wide = matrix.transpose(1, 0, 2).reshape(*sizes, *free)
        operand = wide.transpose(*np.argsort((*self._contracted, *self._free)).tolist())
        if self.order is None:
            return np.ascontiguousarray(operand)
        wide = operand.reshape(*operand.shape, *[1] * (self.constant.array.ndim - operand.ndim))
        return np.ascontiguousarray(wide.transpose(*np.argsort(self._whole_order).tolist()))

    def as_read(self, stored: Array) -> Array:
        """What is laid out as the constant, as the contraction reads it."""
        if self.order is None:
            return stored
        moved = stored.transpose(*self._whole_order)
        return np.ascontiguousarray(moved.reshape(moved.shape[:len(self.order)]))

    # --- inputs

    @property
    def channels(self) -> int:
        """Channels of the input, which smoothing has factors for."""
        if isinstance(self.node.op, Dot):
            return self.depth
        return self.groups * int(self.operand.shape[self._contracted[0]])

    def row_channels(self) -> Array:
        """[groups, K]: which channel of the input each row of weights belongs to."""
        if isinstance(self.node.op, Dot):
            return np.arange(self.depth)[np.newaxis]
        per_group = self.operand.shape[self._contracted[0]]
        places = np.arange(self.depth) // max(self.depth // max(per_group, 1), 1)
        return np.asarray(places[np.newaxis] + per_group * np.arange(self.groups)[:, np.newaxis])

    def channel_shape(self) -> tuple[int, ...]:
        """The shape in which factors of channels broadcast against the input; sizes of the contraction at their axes."""
        op, rank = self.node.op, self.source.rank
        shape = [1] * rank
        if isinstance(op, Dot):
            for ours, theirs in zip(op.lhs_contract, op.rhs_contract):
                shape[ours] = self.operand.shape[theirs]
            if list(op.lhs_contract) != sorted(op.lhs_contract):
                raise AssertionError("smoothing needs contracted axes in order")
            return tuple(shape)
        assert isinstance(op, Conv)
        shape[-1 if op.channels_last else 1] = self.channels
        return tuple(shape)

    @property
    def row_axes(self) -> tuple[int, ...]:
        """The axes of the input over which a range of its own is taken: the contracted ones of a dot; the channels of a convolution,
        where a scale for each place is worth it, else all but the batch."""
        op = self.node.op
        if isinstance(op, Dot):
            return tuple(sorted(op.lhs_contract))
        assert isinstance(op, Conv)
        if may_scale_by_place(op, self.source.tensor, self.node.inputs[1].tensor):
            return (self.source.rank - 1 if op.channels_last else 1,)
        return tuple(range(1, self.source.rank))

    @property
    def can_smooth(self) -> bool:
        op = self.node.op
        return isinstance(op, Conv) or isinstance(op, Dot) and len(op.lhs_contract) == 1

    def channels_last(self, x: Array) -> Array:
        """The input as [places, channels]."""
        op = self.node.op
        if isinstance(op, Dot):
            return self._dot_rows(x, op)
        assert isinstance(op, Conv)
        moved = x if op.channels_last else np.moveaxis(x, 1, -1)
        return moved.reshape(-1, self.channels) if self.channels else moved.reshape(0, 0)

    def _dot_rows(self, x: Array, op: Dot) -> Array:
        free = [a for a in range(x.ndim) if a not in op.lhs_contract]
        return x.transpose(*free, *op.lhs_contract).reshape(-1, self.depth) if self.depth else np.zeros((0, 0), x.dtype)

    @property
    def reading(self) -> tuple[Any, ...]:
        """What `rows` depends on besides the input: layers of one input with equal ones see the same rows."""
        op = self.node.op
        if isinstance(op, Dot):
            return op.lhs_contract
        assert isinstance(op, Conv)
        taps = self.operand.shape[:-2] if op.channels_last else self.operand.shape[2:]
        return taps, op.strides, op.padding, op.dilation, op.groups, op.channels_last

    def rows(self, x: Array, most: int = ROWS) -> Array:
        """The input as [groups, rows, K], what the weights are multiplied with: windows of a convolution, its padding with zeros.
        Of more than `most` rows only some, evenly spread."""
        op = self.node.op
        if isinstance(op, Dot):
            rows = self._dot_rows(x, op)
            return np.ascontiguousarray(rows[_spread(len(rows), most)][np.newaxis])
        assert isinstance(op, Conv)
        plain = np.moveaxis(x, -1, 1) if op.channels_last else x
        padded = np.pad(plain, ((0, 0), (0, 0), *op.padding))
        taps = self.operand.shape[:-2] if op.channels_last else self.operand.shape[2:]
        windows = window_view(padded, taps, op.strides, op.dilation)
        rank = len(taps)
        places = (windows.shape[0], *windows.shape[2:2 + rank])
        chosen = np.unravel_index(_spread(int(np.prod(places)), most), places)
        first, *others = chosen
        rows = np.moveaxis(windows, 1, -1)[(first, *others)]  # [rows, *taps, channels]
        rows = np.moveaxis(rows, -1, 1)
        split = rows.reshape(len(rows), self.groups, self.depth)
        return np.ascontiguousarray(split.transpose(1, 0, 2))


def _spread(count: int, most: int) -> Array:
    """At most so many of the places 0..count, evenly spread."""
    return np.arange(count) if count <= most else (np.arange(most) * (count / most)).astype(np.int64)


# --- finding ---------------------------------------------------------------------------------------------------------


def with_constants(graph: Graph) -> Graph:
    """The graph with weights that are casts or parts of a constant, or one number repeated, as the constants that they stand for. The same
    graph where there are none."""

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if not isinstance(node.op, (Dot, Conv)):
            return None
        chain: list[Node] = []
        value = inputs[1]
        while isinstance(value.op, (Transpose, Reshape, *COMPUTED)) and value.tensor.is_static and value.inputs[0].dtype.is_float:
            chain.append(value)
            value = value.inputs[0]
        computed = next((i for i, x in enumerate(chain) if isinstance(x.op, COMPUTED)), None)
        if computed is None or not isinstance(value.op, Const):
            return None
        array = value.op.value.array
        for move in reversed(chain[computed:]):
            array = np.asarray(move.op.evaluate([array], {}))
        weights = b.add(Const(Constant(np.ascontiguousarray(array))))
        for move in reversed(chain[:computed]):
            weights = b.add(move.op, weights, loc=move.loc)
        return b.add(node.op, inputs[0], weights)

    return rewrite_graph(graph, visit, "quantize")


def find_layers(graph: Graph, tables: bool = False) -> tuple[tuple[Layer, ...], tuple[Left, ...]]:
    """The layers of a graph in the order in which they are computed, with `tables` or without, and the contractions of constants that
    are none."""
    layers: list[Layer] = []
    left: list[Left] = []
    taken: dict[str, int] = {}
    for place, node in enumerate(graph.nodes()):
        table = _table_of(node)
        if table is not None:
            label, location = _named(node, taken)  # also where it is not asked for: labels are the same then
            if tables:
                layers.append(Layer(place, label, location, node, node, table, table.array, (0, 1)))
            continue
        if not isinstance(node.op, (Dot, Conv)):
            left += [_left(place, inner, taken, f"it is inside a {node.op.spelling}") for inner in _contractions_inside(node)]
            continue
        found = _constant_of(node.inputs[1])
        if found is None:
            if _constant_of(node.inputs[0]) is not None:
                left.append(_left(place, node, taken, "its constant is the left operand"))
            elif _is_made_of_bytes(node.inputs[1]):
                left.append(_left(place, node, taken, "its weights are quantized already"))
            continue
        reason = _reason_against(node)
        if not reason and not np.isfinite(found[1]).all():
            reason = "its weights are not all finite"
        if reason:
            left.append(_left(place, node, taken, reason))
            continue
        constant, operand, order, moves = found
        label, location = _named(node, taken)
        layers.append(Layer(place, label, location, node, moves[-1] if moves else node, constant, operand, order))
    return tuple(layers), tuple(left)


def _table_of(node: Node) -> Constant | None:
    """The constant matrix of finite numbers that the node takes rows of; None where it is no such node."""
    if not isinstance(node.op, Take) or node.op.axis != 0:
        return None
    operand = node.inputs[0].op
    if not isinstance(operand, Const) or operand.value.dtype != F32 or operand.value.array.ndim != 2 or not operand.value.array.size:
        return None
    return operand.value if np.isfinite(operand.value.array).all() else None


def _reason_against(node: Node) -> str:
    op = node.op
    if node.inputs[0].dtype != F32:
        return f"it computes in {node.inputs[0].dtype}"
    if any(n == 0 for n in node.inputs[1].shape):
        return "its weights are empty"
    if isinstance(op, Dot) and op.lhs_batch:
        return "it has a batch of weights"
    if isinstance(op, Conv) and any(n != 1 for n in op.input_dilation):
        return "it is a transposed convolution"
    return ""


def _constant_of(node: Node) -> tuple[Constant, Array, tuple[int, ...] | None, list[Node]] | None:
    """The constant behind an operand, the operand's value, the order of its axes (`Layer.order`), and what moved them, the last movement
    first."""
    moves: list[Node] = []
    while isinstance(node.op, (Transpose, Reshape)):
        moves.append(node)
        node = node.inputs[0]
    if not isinstance(node.op, Const):
        return None
    constant = node.op.value
    value = constant.array
    order: tuple[int, ...] | None = tuple(range(constant.array.ndim))
    for move in reversed(moves):
        before, value = value.shape, np.asarray(move.op.evaluate([value], {}))
        if order is not None:
            kept = move.op.perm if isinstance(move.op, Transpose) else _kept_axes(before, value.shape)
            order = None if kept is None else tuple(order[a] for a in kept)
    return constant, value, order, moves


def _is_made_of_bytes(node: Node) -> bool:
    """Whether an operand is computed of few constants, matrices of bytes among them."""
    seen, waiting = {node}, [node]
    while waiting and len(seen) <= MOST_NODES:
        inner = waiting.pop()
        if not isinstance(inner.op, Const) and not inner.inputs:
            return False
        fresh = [x for x in inner.inputs if x not in seen]
        seen.update(fresh)
        waiting += fresh
    return not waiting and any(isinstance(x.op, Const) and x.rank > 1 and x.dtype.bytes == 1 and not x.dtype.is_bool for x in seen)


def _kept_axes(before: tuple[int, ...], after: tuple[int, ...]) -> list[int] | None:
    """The axes that a reshape leaves as they are, where it only drops some of size 1; None where it does more."""
    found: list[int] = []
    axis = 0
    for size in after:
        while axis < len(before) and before[axis] != size and before[axis] == 1:
            axis += 1
        if axis == len(before) or before[axis] != size:
            return None
        found.append(axis)
        axis += 1
    return found if all(size == 1 for size in before[axis:]) else None


def _contractions_inside(node: Node) -> Iterator[Node]:
    """Contractions of constants in the bodies of a node, at any depth, constants that are given to a body among them."""
    waiting: list[tuple[Node, frozenset[Node]]] = [(node, frozenset())]
    while waiting:
        outer, known = waiting.pop()
        for body in _bodies(outer):
            given = outer.inputs[len(outer.inputs) - len(body.params):]
            inside = frozenset(param for param, value in zip(body.params, given) if _is_constant(value, known))
            for inner in body.nodes():
                if _bodies(inner):
                    waiting.append((inner, inside))
                elif isinstance(inner.op, (Dot, Conv)) and any(_is_constant(operand, inside) for operand in inner.inputs):
                    yield inner


def _is_constant(node: Node, known: frozenset[Node]) -> bool:
    while isinstance(node.op, (Transpose, Reshape, Slice)):
        node = node.inputs[0]
    return isinstance(node.op, Const) or node in known


def _bodies(node: Node) -> list[Graph]:
    return [value for name in node.op.__struct_fields__ if isinstance(value := getattr(node.op, name), Graph)]


def _left(place: int, node: Node, taken: dict[str, int], reason: str) -> Left:
    label, location = _named(node, taken)
    operand = next(filter(None, map(_constant_of, reversed(node.inputs))), None)
    constant = None if operand is None else operand[0]
    return Left(place, label, location, "dot" if isinstance(node.op, Dot) else "conv", () if constant is None else constant.array.shape,
                "" if constant is None else constant.digest, reason)


def _named(node: Node, taken: dict[str, int]) -> tuple[str, str]:
    """A label that no other layer has, and the place that it comes from."""
    location = str(node.loc) if node.loc != UNKNOWN else node.op.spelling
    match = _ONNX_NODE.search(location)
    plain = match["name"] if match is not None and match["name"] else location
    taken[plain] = taken.get(plain, 0) + 1
    return plain if taken[plain] == 1 else f"{plain}#{taken[plain]}", location


def sources(layers: Sequence[Layer]) -> tuple[dict[str, str], tuple[Node, ...]]:
    """For each layer the label of the first one that reads the same value, and those values once each."""
    first: dict[Node, str] = {}
    shared = {layer.label: first.setdefault(layer.source, layer.label) for layer in layers}
    return shared, tuple(first)
