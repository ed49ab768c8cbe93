"""Convolutions on a GPU: `packed_conv` in panels that a block takes, and for matrix units with channels that are copied together.

Matrix units multiply windows as rows of a matrix (implicit GEMM; Chetlur et al., cuDNN: Efficient Primitives for Deep Learning, 2014,
section 3), whose parts are copied into shared memory 4, 8 or 16 bytes at a time. So the channels of a group are lengthened to a multiple
of 4 bytes, and of 8 where there are more; the added ones meet weights of zero. Such copies bring zeros past the edge as well, so zeros
around the operand are not written.

Assumes channels-last operands, with their padding written, and no input dilation. Contract: reassoc.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, divides, product
from ..ir.graph import Builder, Node
from ..ir.loop_gpu import PIECE_BYTES, square_of
from ..ir.ops.compute import Conv, PackedConv, accumulator_dtype
from ..ir.ops.shape import Pad
from ..ir.rewrite import uniform_value
from ..ir.types import F32, DType, TensorType
from ..library import pad, reshape, transpose
from ..tiles import PLAIN_GPU_PANELS, gpu_panel_columns, group_panel_columns, takes_windows
from .panels import lengthened, pack_columns, pack_squares, rows_of_squares
from .tf32 import rounded_to_tf32, with_rounded_operands

LEAST_GROUP_COLUMNS = 128  # of a convolution by four warps at a time
LEAST_BYTES, USUAL_BYTES = 4, 8  # of channels that are copied together


def packed_conv_on_gpu(b: Builder, op: Conv, x: Node, w: Node, caps: Caps) -> Node:
    """A convolution of floats x [N, *spatial, C] with w [*kernel, C / groups, O], several channels a group or one group."""
    *kernel, channels, out = w.shape
    assert isinstance(out, int)
    grouped, tile = square_columns(op, x, w, x.dtype, caps), unit_columns(op, x, w, x.dtype, caps)
    sizes, tf32 = tuple(int(k) for k in kernel), "left" if x.dtype == F32 and (grouped or tile) is not None else ""
    w = rounded_to_tf32(b, w) if tf32 else w
    if grouped is not None:
        squares = pack_squares(b, reshape(b, w, (product((*kernel, channels)), out)), 0, grouped, tf32 != "")
        made = PackedConv(sizes, op.strides, op.dilation, out, square=square_of(x.dtype.bytes), tf32=tf32)
        return padded_on_the_way(b, made, x, squares, caps)
    if tile is not None:
        by = missing_channels(channels, x.dtype)
        x, w, channels = with_channels(b, x, op.groups, by), lengthened(b, w, w.rank - 2, by), channels + by
    else:
        tile = gpu_panel_columns(out // op.groups, _rows(op, x, w), accumulator_dtype(x.dtype), caps) or PLAIN_GPU_PANELS[-1]
    matrices = reshape(b, w, (product((*kernel, channels)), op.groups, out // op.groups))
    matrices = transpose(b, matrices, [1, 0, 2]) if op.groups != 1 else reshape(b, matrices, (matrices.shape[0], out))
    made = PackedConv(sizes, op.strides, op.dilation, out, op.groups, tf32=tf32)
    return padded_on_the_way(b, made, x, pack_columns(b, matrices, int(op.groups != 1), tile), caps)


def padded_on_the_way(b: Builder, op: PackedConv, x: Node, w: Node, caps: Caps) -> Node:
    """The convolution; where matrix units take it, zeros around x need not be written, but are what copies bring past its edge."""
    if isinstance(x.op, Pad) and takes_windows(op, x.tensor, w.tensor, caps) and uniform_value(x.inputs[1]) == 0:
        pairs = tuple(zip(x.op.low, x.op.high))
        widths = [width for pair in pairs for width in pair]
        if pairs[0] == pairs[-1] == (0, 0) and all(isinstance(width, int) and width >= 0 for width in widths) and any(widths):
            return b.add(replace(op, padding=pairs[1:-1]), x.inputs[0], w)
    return b.add(op, x, w)


def for_target(b: Builder, op: PackedConv, x: Node, w: Node, caps: Caps) -> Node | None:
    """What was packed for another target, where this one does not take it so: with padding written, panels in no squares, and operands of
    tf32 rounded before."""
    if op.square > 1 and (not caps.has_group_products or op.tf32 and not takes_windows(op, x.tensor, w.tensor, caps)):
        w = rows_of_squares(b, w, op.square, op.by_columns, product(op.kernel) * x.shape[-1] // (op.groups * op.step))
        made = b.add(replace(op, square=1), x, w)
        return for_target(b, replace(op, square=1), x, w, caps) or made
    if not (op.padding or op.tf32) or takes_windows(op, x.tensor, w.tensor, caps):
        return None
    x = pad(b, x, [0, *(low for low, _ in op.padding), 0], [0, *(high for _, high in op.padding), 0]) if op.padding else x
    plain = replace(op, padding=())
    return with_rounded_operands(b, plain, x, w) if op.tf32 else b.add(plain, x, w)


def unit_columns(op: Conv, x: Node, w: Node, dtype: DType, caps: Caps) -> int | None:
    """Columns of a panel where matrix units take the convolution as one of `dtype`; None where they do not."""
    channels, out = w.shape[-2:]
    if not caps.is_gpu or str(dtype) not in caps.matrix_units or not isinstance(channels, int) or not isinstance(out, int):
        return None
    return gpu_panel_columns(out // op.groups, _rows(op, x, w), dtype, caps)


def square_columns(op: Conv, x: Node, w: Node, dtype: DType, caps: Caps) -> int | None:
    """Columns of a panel in squares where products of four warps take the convolution as one of `dtype`; None where they do not. Channels
    are copied 16 bytes at a time; of images whose sizes are open threads that multiply know better where windows begin."""
    *kernel, channels, out = w.shape
    if not caps.has_group_products or op.groups != 1 or not divides(PIECE_BYTES // dtype.bytes, channels):
        return None
    if not all(isinstance(n, int) for n in x.shape[1:-1]):
        return None
    return group_panel_columns(out, _rows(op, x, w), product((*kernel, channels)), dtype, caps, LEAST_GROUP_COLUMNS)


def missing_channels(channels: DimLike, dtype: DType) -> int:
    """By how many channels a group has to be longer for matrix units."""
    assert isinstance(channels, int)
    whole = (LEAST_BYTES if channels * dtype.bytes <= LEAST_BYTES else USUAL_BYTES) // dtype.bytes
    return -channels % whole


def with_channels(b: Builder, x: Node, groups: int, by: DimLike) -> Node:
    """The operand with so many more channels at the end of each group, which multiply zeros: any number that a padding around it holds will
    do."""
    if by == 0:
        return x
    if groups == 1 and isinstance(x.op, Pad) and (x.dtype.is_integer or uniform_value(x.inputs[1]) == 0):
        return b.add(Pad(x.op.low, (*x.op.high[:-1], x.op.high[-1] + by)), *x.inputs)
    *lead, channels = x.shape
    apart = lengthened(b, reshape(b, x, (*lead, groups, channels // groups)), x.rank, by)
    return reshape(b, apart, (*lead, channels + groups * by))


def _rows(op: Conv, x: Node, w: Node) -> DimLike:
    """Positions of the result."""
    made = replace(op, padding=((0, 0),) * len(op.strides)).infer(x.type, w.type)
    assert isinstance(made, TensorType)
    return product(made.shape[:-1])
