"""A fused group for some of the rows of its result: which rows of which operands it needs, and the group for these.

Rows are along the first axis of the result that has more than one element, so that rows that follow one another lie one behind the
other in memory. A group has them where each of its operations makes a row from rows of the same number or from those that a window
reaches, and from whole operands that are the same for all rows; what crosses all rows (a reduction along them, a transpose that moves them
behind another axis) has none. Sizes are numbers. Guarantees: rows of the result are computed by the same operations on the same
elements, however many at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from ..ir.dims import DimLike, product
from ..ir.graph import Builder, Graph, Node, Op
from ..ir.ops.compute import ArgReduce, Bitcast, Cast, Conv, Elementwise, PackedConv, PackedDot, Reduce, ReduceWindow
from ..ir.ops.control import Fusion, Param
from ..ir.ops.shape import Broadcast, Concat, Pad, Reshape, Slice, Transpose
from ..ir.types import TensorType

STRATEGIES = ("contraction", "attention", "rows", "elements")
WHOLE = -1  # instead of an axis: of an operand that all rows need
Span = tuple[int, int]  # a row and the one behind the last


class Rows(Struct, frozen=True):
    """`extent`: rows of the result; `operands`: for each operand of the node, whether only some rows of it are needed. `axes`: of the
    nodes of the body that have rows, the axis along which."""

    node: Node
    extent: int
    operands: tuple[bool, ...]
    axes: Mapping[Node, int]


def rows_of(node: Node) -> Rows | None:
    """The rows of a group with one result; None where it has none."""
    if not isinstance(node.op, Fusion) or node.op.strategy not in STRATEGIES or len(node.op.body.results) != 1:
        return None
    body = node.op.body
    result = body.results[0]
    first = row_axis(result)
    if first == WHOLE:
        return None
    extent = result.shape[first]
    axes, whole = {result: first}, set[Node]()
    for inner in reversed(body.nodes()):
        if inner in whole:
            whole.update(inner.inputs)
        if inner not in axes:
            continue
        operands = _operand_axes(inner, axes[inner])
        if inner in whole or operands is None and not isinstance(inner.op, Param):
            return None
        for operand, axis in zip(inner.inputs, operands or ()):
            if axis == WHOLE:
                whole.add(operand)
            elif not isinstance(operand.shape[axis], int) or axes.setdefault(operand, axis) != axis:
                return None
    if not isinstance(extent, int) or any(param in axes and axes[param] != row_axis(param) for param in body.params):
        return None
    return Rows(node, extent, tuple(param in axes for param in body.params), axes)


def row_axis(node: Node) -> int:
    """The first axis of more than one element."""
    return next((axis for axis, size in enumerate(node.shape) if size != 1), WHOLE)


def spans_of(rows: Rows, span: Span) -> dict[Node, Span] | None:
    """The rows of each node of the body that those of the result need; None where two readers of a node need others, or none of it."""
    assert isinstance(rows.node.op, Fusion)
    body = rows.node.op.body
    found = {body.results[0]: span}
    for inner in reversed(body.nodes()):
        if inner not in rows.axes:
            continue
        for operand, axis in zip(inner.inputs, _operand_axes(inner, rows.axes[inner]) or ()):
            if axis != WHOLE:
                begin, end = _reached(inner, rows.axes[inner], found[inner])
                needed = max(0, begin), min(end, int(operand.shape[axis]))
                if needed[0] >= needed[1] or found.setdefault(operand, needed) != needed:
                    return None
    return found


def with_rows(rows: Rows, spans: Mapping[Node, Span]) -> Node:
    """The node for these rows, on parameters."""
    node = rows.node
    assert isinstance(node.op, Fusion)
    inside, outside = Builder(node.loc), Builder(node.loc)
    made: dict[Node, Node] = {}
    for inner in node.op.body.nodes():
        op = _with_rows(inner, rows.axes[inner], spans) if inner in rows.axes else inner.op
        made[inner] = inside.add(op, *(made[i] for i in inner.inputs), loc=inner.loc)
    body = Graph(node.op.body.name, [made[p] for p in node.op.body.params], [made[r] for r in node.op.body.results])
    params = [outside.add(Param(f"x{number}", p.dtype, p.shape)) for number, p in enumerate(body.params)]
    return outside.add(replace(node.op, body=body), *params, loc=node.loc)


def has_windows(rows: Rows) -> bool:
    """Whether some rows need others than those of the same number."""
    return any(isinstance(inner.op, (Pad, PackedConv, Conv, ReduceWindow)) for inner in rows.axes)


def alike(rows: Rows, spans: Mapping[Node, Span]) -> tuple[object, ...]:
    """Equal where the groups for some rows are equal."""
    padded = (Pad, Conv, ReduceWindow)
    return tuple((end - begin, _with_rows(inner, rows.axes[inner], spans) if isinstance(inner.op, padded) else None)
                 for inner, (begin, end) in spans.items())


def _operand_axes(node: Node, axis: int) -> tuple[int, ...] | None:
    """The axis of each operand along which a result has its rows along `axis`; None where rows of the result need others."""
    match node.op:
        case Elementwise() | Cast() | Bitcast():
            return (axis,) * len(node.inputs)
        case Broadcast():
            x = node.inputs[0]
            before = axis - (len(node.shape) - len(x.shape))
            return (WHOLE if before < 0 or x.shape[before] == 1 else before,)
        case Reshape():
            return _reshaped(node.inputs[0], node, axis)
        case Transpose(perm):
            return (perm[axis],)
        case Reduce(axes=axes):
            return ([a for a in range(len(node.inputs[0].shape)) if a not in axes][axis],)
        case ArgReduce(axis=gone):
            return (axis + (gone <= axis),)
        case Concat(axis=along) if along != axis:
            return (axis,) * len(node.inputs)
        case Pad(low, high) if isinstance(low[axis], int) and isinstance(high[axis], int):
            return axis, WHOLE
        case Slice(start, size, step) if start[axis] == 0 and step[axis] == 1 and size[axis] == node.inputs[0].shape[axis]:
            return (axis,)
        case PackedDot(batch, symmetric=False) if axis < len(node.shape) - 1:
            return axis, axis if axis < batch else WHOLE
        case PackedConv(padding=()) if axis < len(node.shape) - 1:
            return axis, WHOLE
        case Conv(channels_last=True, input_dilation=spread) if axis < len(node.shape) - 1 and set(spread) == {1}:
            return axis, WHOLE
        case ReduceWindow():
            return (axis,)
    return None


def _reshaped(x: Node, node: Node, axis: int) -> tuple[int, ...] | None:
    for before in range(len(x.shape)):
        if x.shape[before] == node.shape[axis] and product(x.shape[:before]) == product(node.shape[:axis]):
            return (before,)
    return None


def _window(node: Node, axis: int) -> tuple[int, int, int]:
    """How many rows a window reaches over, from one to the next, and how many of padding lie before the first."""
    match node.op:
        case PackedConv(kernel=kernel, strides=strides, dilation=dilation) if axis:
            return (kernel[axis - 1] - 1) * dilation[axis - 1] + 1, strides[axis - 1], 0
        case Conv(strides=strides, padding=padding, dilation=dilation) if axis:
            size = node.inputs[1].shape[axis - 1]
            assert isinstance(size, int)
            return (size - 1) * dilation[axis - 1] + 1, strides[axis - 1], padding[axis - 1][0]
        case ReduceWindow(window=window, strides=strides, padding=padding, dilation=dilation):
            return (window[axis] - 1) * dilation[axis] + 1, strides[axis], padding[axis][0]
        case Pad(low=low):
            return 1, 1, int(low[axis])
    return 1, 1, 0


def _reached(node: Node, axis: int, span: Span) -> Span:
    """The rows of an operand that rows of a node are made of, some of which may lie in the padding."""
    reach, stride, before = _window(node, axis)
    return span[0] * stride - before, (span[1] - 1) * stride + reach - before


def _with_rows(node: Node, axis: int, spans: Mapping[Node, Span]) -> Op:
    """What a node's attributes say of its rows."""
    op, (begin, end) = node.op, spans[node]
    match op:
        case Param(shape=shape) | Broadcast(shape) | Reshape(shape):
            return replace(op, shape=_changed(shape, axis, end - begin))
        case Slice(size=size):
            return replace(op, size=_changed(size, axis, end - begin))
    reached, there = _reached(node, axis, (begin, end)), spans.get(node.inputs[0], (0, 0)) if node.inputs else (0, 0)
    low, high = there[0] - reached[0], reached[1] - there[1]
    match op:
        case Pad():
            return replace(op, low=_changed(op.low, axis, low), high=_changed(op.high, axis, high))
        case ReduceWindow():
            return replace(op, padding=(*op.padding[:axis], (low, high), *op.padding[axis + 1:]))
        case Conv() if axis:
            return replace(op, padding=(*op.padding[:axis - 1], (low, high), *op.padding[axis:]))
    return op


def _changed(shape: tuple[DimLike, ...], axis: int, count: int) -> tuple[DimLike, ...]:
    return (*shape[:axis], count, *shape[axis + 1:])


def row_bytes(type: TensorType, extent: int) -> int:
    """Bytes of a row of a tensor that has so many."""
    return int(product(type.shape)) * type.dtype.bytes // extent
