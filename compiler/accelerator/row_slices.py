"""A fused group for some of the rows of its result: which operands it needs the same rows of, and the group for that many.

Rows are along the first axis of the result that has more than one element, so that rows that follow one another lie one behind the
other in memory. A group has them where each of its operations makes a row from rows of the same number, and from whole operands that
are the same for all rows; what crosses rows (a reduction along them, a window, a transpose that moves them behind another axis) has
none. Sizes are numbers. Guarantees: rows of the result are computed by the same operations on the same elements, however many at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from ..ir.dims import DimLike, product
from ..ir.graph import Builder, Graph, Node, Op
from ..ir.ops.compute import ArgReduce, Bitcast, Cast, Elementwise, PackedConv, PackedDot, Reduce
from ..ir.ops.control import Fusion, Param
from ..ir.ops.shape import Broadcast, Concat, Pad, Reshape, Slice, Transpose
from ..ir.types import TensorType

STRATEGIES = ("contraction", "attention", "rows", "elements")
WHOLE = -1  # instead of an axis: of an operand that all rows need


class Rows(Struct, frozen=True):
    """`extent`: rows of the result; `operands`: for each operand of the node, whether only the same rows of it are needed. `axes`: of the
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
            elif operand.shape[axis] != extent or axes.setdefault(operand, axis) != axis:
                return None
    if not isinstance(extent, int) or any(param in axes and axes[param] != row_axis(param) for param in body.params):
        return None
    return Rows(node, extent, tuple(param in axes for param in body.params), axes)


def row_axis(node: Node) -> int:
    """The first axis of more than one element."""
    return next((axis for axis, size in enumerate(node.shape) if size != 1), WHOLE)


def with_rows(rows: Rows, count: int) -> Node:
    """The node for so many rows, on parameters."""
    node, axes = rows.node, rows.axes
    assert isinstance(node.op, Fusion)
    inside, outside = Builder(node.loc), Builder(node.loc)
    made: dict[Node, Node] = {}
    for inner in node.op.body.nodes():
        op = _with_rows(inner.op, axes[inner], count) if inner in axes else inner.op
        made[inner] = inside.add(op, *(made[i] for i in inner.inputs), loc=inner.loc)
    body = Graph(node.op.body.name, [made[p] for p in node.op.body.params], [made[r] for r in node.op.body.results])
    params = [outside.add(Param(f"x{number}", p.dtype, p.shape)) for number, p in enumerate(body.params)]
    return outside.add(replace(node.op, body=body), *params, loc=node.loc)


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
        case Pad(low, high) if low[axis] == high[axis] == 0:
            return axis, WHOLE
        case Slice(start, size, step) if start[axis] == 0 and step[axis] == 1 and size[axis] == node.inputs[0].shape[axis]:
            return (axis,)
        case PackedDot(batch, symmetric=False) if axis < len(node.shape) - 1:
            return axis, axis if axis < batch else WHOLE
        case PackedConv(kernel=kernel, strides=strides) if axis < len(node.shape) - 1:
            return (axis, WHOLE) if axis == 0 or kernel[axis - 1] == strides[axis - 1] == 1 else None
    return None


def _reshaped(x: Node, node: Node, axis: int) -> tuple[int, ...] | None:
    for before in range(len(x.shape)):
        if x.shape[before] == node.shape[axis] and product(x.shape[:before]) == product(node.shape[:axis]):
            return (before,)
    return None


def _with_rows(op: Op, axis: int, count: int) -> Op:
    """What a node's attributes say of its rows."""
    match op:
        case Param(shape=shape) | Broadcast(shape) | Reshape(shape):
            return replace(op, shape=_changed(shape, axis, count))
        case Slice(size=size):
            return replace(op, size=_changed(size, axis, count))
    return op


def _changed(shape: tuple[DimLike, ...], axis: int, count: int) -> tuple[DimLike, ...]:
    return (*shape[:axis], count, *shape[axis + 1:])


def row_bytes(type: TensorType, extent: int) -> int:
    """Bytes of a row of a tensor that has so many."""
    return int(product(type.shape)) * type.dtype.bytes // extent
