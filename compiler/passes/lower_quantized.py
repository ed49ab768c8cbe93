"""Contractions of dequantized operands become contractions of integers.

A `dot` or `conv` whose operands are both `dequantize` of bytes, moved or padded on the way, is the integers' exact sum of
products times both scales (Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, 2018): one multiplication for each element of the result instead of one for each product. Scales may differ from
row to row and from column to column, but not along the contraction; zero points may differ anywhere. What follows (bias,
activation, `quantize`) is computed with the sum in registers (`passes/fuse.py`), without divisions and without bytes that
nothing keeps (`passes/requantize.py`).

Left as they are: contractions that the target has no instruction for, depthwise ones, those of one column or of few steps, where
nothing is gained, convolutions of which Winograd's algorithm saves more, those whose sum might not fit into int32, and those with
a constant scale that is not finite or constant scales whose product is not.

Contract: bounded and finite. The sum is exact where the float one rounds for each term, so both are within the rounding of the terms;
a scale that is infinite at run time meets the sum, not each term. `precision="strict"` forbids it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, product
from ..ir.errors import Loc
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Conv, Dot
from ..ir.ops.shape import Broadcast, Pad, Reshape, Slice, Transpose
from ..ir.rewrite import rewrite_graph, uniform_value
from ..ir.types import F32, I8, I32, U8
from ..library import apply, cast, constant, reshape, transpose
from ..library_quantized import BYTES, difference, is_dequantize, may_scale_by_place
from ..options import Options
from .pack_integers import gain_of_integers
from .requantize import multiply_by_reciprocals, requantize
from .taps import tap_by_tap
from .winograd import gain_of_tiles, known_array

LEAST_DEPTH = 8  # steps of a contraction that are worth their requantization
SPARED = 1.2      # times as fast as the model of Winograd's tiles says, measured with 24 to 96 channels, are floats that stay floats
FEW_CHANNELS = 8  # below which an odd number of them would be padded by much


class Form(Struct, frozen=True):
    """Bytes, and what they are less and times: `zero_point` and `scale` have the rank of the bytes, with sizes of 1."""

    value: Node
    scale: Node
    zero_point: Node | None

    @property
    def largest(self) -> int:
        """The greatest magnitude of the bytes less their zero point."""
        return 128 if self.value.dtype == I8 and self.zero_point is None else 255


def lower_quantized(graph: Graph, options: Options, caps: Caps) -> Graph:
    """See the module's text."""
    if options.precision == "strict" or not caps.has_pairs and not caps.has_quads:
        return graph
    if not any(is_dequantize(node) for node in graph.nodes()):
        return graph

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if not _is_float_contraction(node):
            return None
        left, right = (form_of(b, x) for x in inputs)
        if left is None or right is None or _reason(node, left, right, options, caps):
            weights = _known_floats(b, right) if isinstance(node.op, Conv) and right is not None else None
            return None if weights is None else b.add(node.op, inputs[0], weights)
        if isinstance(node.op, Dot):
            return _of_dot(b, node.op, left, right)
        assert isinstance(node.op, Conv)
        return _of_conv(b, node.op, left, right)

    if options.precision == "default":
        graph = multiply_by_reciprocals(graph, "lower_quantized")
    return requantize(rewrite_graph(graph, visit, "lower_quantized"), "lower_quantized")


def left_as_floats(graph: Graph, options: Options, caps: Caps) -> list[tuple[Loc, str]]:
    """Contractions of a graph, as imported, that have a dequantized operand and are computed in floats nevertheless: where they come
    from, and why."""
    found, b = [], Builder()
    for node in graph.nodes():
        if not _is_float_contraction(node):
            continue
        left, right = (form_of(b, x) for x in node.inputs)
        if left is None and right is None:
            continue
        if options.precision == "strict":
            reason = 'precision="strict" asks for the sum of floats'
        elif not caps.has_pairs and not caps.has_quads:
            reason = "the target has no instruction that multiplies narrow integers"
        elif left is None or right is None:
            reason = f"its {'left' if left is None else 'right'} operand is not made of bytes by `dequantize`"
        else:
            reason = _reason(node, left, right, options, caps)
        if reason:
            found.append((node.loc, reason))
    return found


def _is_float_contraction(node: Node) -> bool:
    return isinstance(node.op, (Dot, Conv)) and node.op.result is None and node.dtype == F32


def _reason(node: Node, left: Form, right: Form, options: Options, caps: Caps) -> str:
    """Why a contraction of dequantized operands stays one of floats; nothing where it does not."""
    depth = bounds(_depth(node))[1]
    if not (may_meet_sums(left.scale) and may_meet_sums(right.scale)):
        return "a scale is not finite"
    if problem := _product_of_scales(left.scale, right.scale):
        return problem
    if depth < LEAST_DEPTH:
        return f"a sum of {depth} products is not worth its conversion"
    if depth * left.largest * right.largest >= 2 ** 31:
        return "its sums might not fit into int32"
    if isinstance(node.op, Dot):
        columns = product(n for a, n in enumerate(node.inputs[1].shape) if a not in node.op.rhs_contract + node.op.rhs_batch)
        if columns == 1:
            return "one column is a sum over rows, which memory limits"
        contracted = ((left, node.op.lhs_contract), (right, node.op.rhs_contract))
        return _VARIES if any(form.scale.shape[a] != 1 for form, axes in contracted for a in axes) else ""
    return _reason_of_conv(node, left, right, options, caps)


def may_meet_sums(scale: Node) -> bool:
    """Whether a scale may multiply a sum instead of each term: none that is known to be infinite or NaN."""
    array = known_array(scale)
    return array is None or bool(np.isfinite(array).all())


def _product_of_scales(left: Node, right: Node) -> str:
    """What is known to be wrong with the product of two scales: times a sum of zero an infinite one would be no number, and one below the
    least normal number would have lost digits."""
    known = [np.abs(a, dtype=np.float64) for a in map(known_array, (left, right)) if a is not None]
    limits = np.finfo(np.float32)
    if math.prod(a.max(initial=0) for a in known) > limits.max:
        return "its scales are too large to be multiplied"
    if math.prod(a.min(initial=1, where=a > 0) for a in known) < limits.tiny:
        return "its scales are too small to be multiplied"
    return ""


_VARIES = "a scale varies along the contraction"


def _reason_of_conv(node: Node, left: Form, right: Form, options: Options, caps: Caps) -> str:
    assert isinstance(node.op, Conv)
    op = node.op
    _, _, _, channels, _ = op.parts(node.inputs[0].tensor, node.inputs[1].tensor)
    on_units = str(I8) in caps.matrix_units
    if channels == 1 and (op.groups != 1 or not on_units) or not isinstance(channels, int):
        return "a depthwise convolution has too few products for each element"
    if channels % 2 and channels < FEW_CHANNELS and not on_units:
        return f"{channels} channels do not fill words of the integers"
    out = _result_axis(op, right)
    if left.scale.shape[-1 if op.channels_last else 1] != 1 or any(n != 1 for a, n in enumerate(right.scale.shape) if a != out):
        return _VARIES
    if _varies_by_place(left):
        if left.zero_point is not None or right.zero_point is not None:
            return "a scale differs from place to place, and there is a zero point"
        if not may_scale_by_place(op, node.inputs[0].tensor, node.inputs[1].tensor):
            return "a scale differs from place to place, and the products of a tap are too few"
    if op.groups != 1 and right.scale.shape[out] not in (1, right.value.shape[out]):
        return _VARIES
    if _has_faster_floats(node, right, options, caps):
        return "Winograd's algorithm saves more products than integers are faster"
    return ""


def _result_axis(op: Conv, weights: Form) -> int:
    """The axis of the weights along which their scale may vary: channels of the result."""
    return weights.value.rank - 1 if op.channels_last else 0


def _varies_by_place(left: Form) -> bool:
    """Whether the scale of a convolution's input differs not only between the parts of a batch."""
    return any(n != 1 for n in left.scale.shape[1:])


def _depth(node: Node) -> DimLike:
    """Products that an element of the result is the sum of."""
    x, w = node.inputs
    if isinstance(node.op, Dot):
        return product(x.shape[a] for a in node.op.lhs_contract)
    assert isinstance(node.op, Conv)
    _, kernel, _, channels, _ = node.op.parts(x.tensor, w.tensor)
    return product((*kernel, channels))


def _has_faster_floats(node: Node, weights: Form, options: Options, caps: Caps) -> bool:
    """Whether an algorithm that floats alone have saves more products than integers are faster."""
    if not isinstance(node.op, Conv) or known_array(weights.value) is None:
        return False
    op, (x, result) = node.op, (node.inputs[0].shape, node.shape)
    _, kernel, _, channels, out = op.parts(node.inputs[0].tensor, node.inputs[1].tensor)
    if not op.channels_last:
        x, result = (x[0], *x[2:], x[1]), (result[0], *result[2:], result[1])
    sizes = tuple(int(n) for n in (*kernel, channels, out))  # they are those of a constant
    axis = node.inputs[1].rank - 2 if op.channels_last else 1
    return gain_of_tiles(op, x, result, sizes, options, caps) * SPARED > gain_of_integers(weights.value, axis, caps)


def _known_floats(b: Builder, weights: Form) -> Node | None:
    """What known bytes stand for, as a constant: four times as large, so that folding leaves it, but Winograd's algorithm needs it."""
    value, scale = known_array(weights.value), known_array(weights.scale)
    point = None if weights.zero_point is None else known_array(weights.zero_point)
    if value is None or scale is None or (point is None) != (weights.zero_point is None):
        return None
    whole = value.astype(np.int32) if point is None else value.astype(np.int32) - point.astype(np.int32)
    with np.errstate(all="ignore"):
        return constant(b, whole.astype(np.float32) * scale)


def _of_dot(b: Builder, op: Dot, left: Form, right: Form) -> Node:
    total = b.add(Dot(op.lhs_contract, op.rhs_contract, op.lhs_batch, op.rhs_batch, I32), *_differences(b, left, right))
    free_left = [a for a in range(left.value.rank) if a not in op.lhs_contract + op.lhs_batch]
    free_right = [a for a in range(right.value.rank) if a not in op.rhs_contract + op.rhs_batch]
    scales = []
    for form, batch, free, before, behind in ((left, op.lhs_batch, free_left, 0, len(free_right)),
                                              (right, op.rhs_batch, free_right, len(free_left), 0)):
        contracted = [a for a in range(form.value.rank) if a not in (*batch, *free)]
        moved = transpose(b, form.scale, [*batch, *free, *contracted])
        sizes = moved.shape
        scales.append(reshape(b, moved, (*sizes[:len(batch)], *[1] * before, *sizes[len(batch):len(batch) + len(free)], *[1] * behind)))
    return _scaled(b, total, *scales)


def _of_conv(b: Builder, op: Conv, left: Form, right: Form) -> Node:
    out = _result_axis(op, right)
    of_columns: list[DimLike] = [1] * left.value.rank
    of_columns[-1 if op.channels_last else 1] = right.scale.shape[out]
    columns = reshape(b, right.scale, of_columns)
    if _varies_by_place(left):
        return apply(b, "mul", tap_by_tap(b, op, left.value, left.scale, right.value), columns)
    integers = Conv(op.strides, op.padding, op.dilation, op.input_dilation, op.groups, op.channels_last, I32)
    total = b.add(integers, *_differences(b, left, right))
    return _scaled(b, total, reshape(b, left.scale, (left.scale.shape[0], *[1] * (total.rank - 1))), columns)


def _differences(b: Builder, *forms: Form) -> list[Node]:
    return [difference(b, form.value, form.zero_point) for form in forms]


def _scaled(b: Builder, total: Node, left: Node, right: Node) -> Node:
    return apply(b, "mul", cast(b, total, F32), apply(b, "mul", left, right))


# --- operands --------------------------------------------------------------------------------------------------------


def form_of(b: Builder, node: Node) -> Form | None:
    """The bytes that a float is made of, where they are moved as it is; None where it is made of something else."""
    if is_dequantize(node):
        value, scale, *points = node.inputs
        if value.dtype not in BYTES or scale.dtype != F32:
            return None
        point = _of_rank(b, points[0], value.rank) if points and uniform_value(points[0]) != 0 else None
        return Form(value, _of_rank(b, scale, value.rank), point)
    match node.op:
        case Transpose() | Reshape() | Broadcast() | Slice():
            inner = form_of(b, node.inputs[0])
            return None if inner is None else _moved(b, node, inner)
        case Pad() if uniform_value(node.inputs[1]) == 0:
            inner = form_of(b, node.inputs[0])
            return None if inner is None else _padded(b, node, inner)
    return None


def _of_rank(b: Builder, x: Node, rank: int) -> Node:
    return reshape(b, x, (*[1] * (rank - x.rank), *x.shape))


def _moved(b: Builder, node: Node, inner: Form) -> Form | None:
    """What moved bytes are less and times; the axes along which that varies must stay axes of their own."""
    parameters = [x for x in (inner.scale, inner.zero_point) if x is not None]
    found: list[Node] = []
    for x in parameters:
        match node.op:
            case Transpose(perm):
                found.append(transpose(b, x, perm))
            case Reshape():
                shape = _reshaped(x.shape, inner.value.shape, node.shape)
                if shape is None:
                    return None
                found.append(reshape(b, x, shape))
            case Broadcast():
                found.append(_of_rank(b, x, node.rank))
            case Slice(start, _, step):
                varies = [n != 1 for n in x.shape]
                found.append(b.add(Slice(tuple(first if v else 0 for first, v in zip(start, varies)),
                                         tuple(n if v else 1 for n, v in zip(node.shape, varies)),
                                         tuple(stride if v else 1 for stride, v in zip(step, varies))), x))
    return Form(b.add(node.op, inner.value), found[0], found[1] if len(found) > 1 else None)


def _reshaped(sizes: Sequence[DimLike], old: Sequence[DimLike], new: Sequence[DimLike]) -> list[DimLike] | None:
    """The shape of a parameter beside a reshaped value; None where an axis along which it varies is split or joined."""
    shape: list[DimLike] = [1] * len(new)
    for axis, n in enumerate(sizes):
        if n == 1:
            continue
        place = next((k for k, m in enumerate(new) if m == old[axis] and product(new[:k]) == product(old[:axis])), None)
        if place is None:
            return None
        shape[place] = n
    return shape


def _padded(b: Builder, node: Node, inner: Form) -> Form | None:
    """Zeros as bytes: the zero point, which must be one number."""
    assert isinstance(node.op, Pad)
    point = inner.zero_point
    if any(n != 1 and bounds(width)[1] > 0 for widths in (node.op.low, node.op.high) for n, width in zip(inner.scale.shape, widths)):
        return None
    if point is not None and product(point.shape) != 1:
        return None
    fill = reshape(b, point, ()) if point is not None else None
    dtype = inner.value.dtype
    assert dtype in (I8, U8)
    value = b.add(node.op, inner.value, cast(b, node.inputs[1], dtype) if fill is None else cast(b, fill, dtype))
    return Form(value, inner.scale, point)
