"""How a contraction reads its left operand: plain rows of a matrix, the windows of a convolution, or the panels themselves.

Assumes a `packed_dot` or `packed_conv`. Guarantees that the flat address of an element is the base of its row plus the offset of
its step.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ..ir.dims import DimLike, exact_quotient, product
from ..ir.graph import Node, Op
from ..ir.ops.compute import PackedConv, PackedDot
from ..ir.ops.weight_only import WeightOnlyDot
from .inline import Index, flatten_index, unflatten_index


class Operand(Struct, frozen=True):
    """The left operand as the tile reads it: element (row, step), and the loops over the contraction.

    `steps`: extents of the loops over the contraction, outer first. `read(bases, at)` is the flat address for a row
    whose base address is given; `base(row)` that base. `panel(at)` the position along the packed operand's second axis.
    `run`: rows that lie `distance` apart each, counted from a multiple of it (0: nothing is known). A step is `words` words of `step`
    elements that lie beside one another. `before`: how far padding reaches before what is there, which bases count in.
    """

    rows: DimLike
    steps: tuple[DimLike, ...]
    base: Callable[[DimLike], DimLike]
    offset: Callable[[Index], DimLike]
    panel: Callable[[Index], DimLike]
    run: DimLike = 0
    distance: DimLike = 0
    step: int = 1
    words: int = 1
    before: DimLike = 0

    def element(self, at: DimLike) -> DimLike:
        """How far from its base the element for a step lies, of the steps that words are made of; rows of panels have no such order."""
        *outer, last = unflatten_index(at, (*self.steps[:-1], self.steps[-1] * self.step * self.words))
        return self.offset((*outer, 0)) + last


def groups_of(op: Op) -> int:
    """Groups of channels, each with its own part of the right operand."""
    return op.groups if isinstance(op, PackedConv) else 1


def batch_axes(op: Op) -> int:
    """Leading axes along which the right operand differs, too."""
    return op.batch if isinstance(op, PackedDot) else 0


def contracted(node: Node) -> DimLike:
    """Steps of a contraction: products that an element of its result is the sum of."""
    depth = node.inputs[0].shape[-1]
    if not isinstance(node.op, PackedConv):
        return depth
    channels = exact_quotient(depth, node.op.groups)
    assert channels is not None
    return product(node.op.kernel) * channels


def window_places(node: Node, row: DimLike) -> list[DimLike]:
    """Where the window of a row begins along each axis that is padded, counted from the padding."""
    op = node.op
    if not isinstance(op, PackedConv):
        return []
    places = unflatten_index(row, node.shape[:-1])[1:]
    return [place * stride for place, stride, pair in zip(places, op.strides, op.padding) if pair != (0, 0)]


def tap_places(node: Node, at: DimLike) -> list[tuple[DimLike, DimLike]]:
    """How much further the element for a step lies along each of those axes, less the padding, and the axis' size."""
    op, x = node.op, node.inputs[0]
    if not isinstance(op, PackedConv):
        return []
    taps = unflatten_index(at, (*op.kernel, x.shape[-1] // op.groups))[:-1]
    return [(tap * dilation - low, size) for tap, dilation, (low, high), size in zip(taps, op.dilation, op.padding, x.shape[1:])
            if (low, high) != (0, 0)]


def row_operand(node: Node, batch: Index, group: DimLike = 0) -> Operand:
    """How the rows of a contraction are read: plain rows of a matrix, or the windows of a convolution."""
    match node.op:
        case PackedDot(symmetric=True):
            return _panel_operand(node, batch)
        case PackedDot(batch=count, step=step, narrow=words):
            shape = node.inputs[0].shape
            rows, depth = product(shape[count:-1]), shape[-1]
            start = flatten_index(batch, shape[:count]) * rows * depth
            steps = node.inputs[1].shape[-2] // words
            return Operand(rows, (steps,), lambda row: start + row * depth, lambda at: at[0] * step * words, lambda at: at[0] * words,
                           step=step, words=words)
        case WeightOnlyDot():
            *lead, depth = node.inputs[0].shape
            return Operand(product(lead), (depth,), lambda row: row * depth, lambda at: at[0], lambda at: at[0])
        case PackedConv():
            return _window_operand(node, group)
    raise AssertionError(f"{node.op.spelling} is no contraction")


def _panel_operand(node: Node, batch: Index) -> Operand:
    """The rows of a symmetric product: columns of the packed operand, whose steps lie near one another."""
    *grid, panels, depth, width = node.inputs[1].shape
    start = flatten_index(batch, grid) * panels

    def base(row: DimLike) -> DimLike:
        return (start + row // width) * depth * width + row % width

    return Operand(node.shape[-1], (depth,), base, lambda at: at[0] * width, lambda at: at[0])


def _window_operand(node: Node, group: DimLike) -> Operand:
    op, x = node.op, node.inputs[0]
    assert isinstance(op, PackedConv)
    channels = x.shape[-1] // op.groups  # of one group
    words = channels // op.step
    strides = [product(x.shape[a + 1:]) for a in range(x.rank)]
    out = node.shape[:-1]

    before = sum((low * w for (low, _), w in zip(op.padding, strides[1:])), start=0)

    def base(row: DimLike) -> DimLike:
        n, *spatial = unflatten_index(row, out)
        start = n * strides[0] + group * channels - before
        return start + sum((i * s * w for i, s, w in zip(spatial, op.strides, strides[1:])), start=0)

    # taps along the last axis lie beside one another: with dilation 1 they and all channels are one loop
    taps = (*op.kernel[:-1], op.kernel[-1] * words // op.narrow) if op.is_joined else (*op.kernel, words // op.narrow)
    steps = [d * w for d, w in zip(op.dilation[:-1], strides[1:-2])] + (
        [op.step * op.narrow] if op.is_joined else [op.dilation[-1] * strides[-2], op.step * op.narrow])

    def offset(at: Index) -> DimLike:
        return sum((i * s for i, s in zip(at, steps, strict=True)), start=0)

    distance = strides[-2] * op.strides[-1]
    return Operand(product(out), taps, base, offset, lambda at: flatten_index(at, taps) * op.narrow, out[-1], distance, op.step, op.narrow,
                   before)
