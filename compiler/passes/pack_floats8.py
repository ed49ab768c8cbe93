"""Products of float8 values (e4m3, e5m2) stay products of bytes where a target's matrix units multiply these.

The formats are those of Micikevicius et al., FP8 formats for deep learning, 2022. The IR only stores them: a value is looked up in a
table of what each byte holds, cast and multiplied by one scale perhaps. Where both operands of a contraction are made so, of one format,
their bytes are multiplied, sums in float32, and scales multiply the result. A known operand of floats counts as well where that format
holds each of its numbers.

Assumes a `dot` of floats. Contract: bounded. Products are exact and float32 sums of them reordered; a scale is multiplied by once, and not
each term.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import ceildiv, product
from ..ir.graph import Builder, Constant, Node
from ..ir.loop_gpu import group_steps, square_of
from ..ir.ops.compute import FLOATS8, Bitcast, Cast, Dot, Elementwise, PackedDot
from ..ir.ops.control import Const
from ..ir.ops.shape import Broadcast, Reshape, Take, Transpose
from ..ir.types import F32, F64, I8, U8, DType
from ..library import apply, broadcast, cast, reshape, transpose
from ..tiles import gpu_panel_columns, group_panel_columns, may_stay_plain
from .pack_integers import packed_words
from .panels import lengthened, squares_of_words
from .winograd import known_array

STEP = 4   # bytes of a word of the right operand


class Narrow(Struct, frozen=True):
    """Values of float8, and the one number that they are multiplied by."""

    value: Node
    scale: Node | None = None


def packed_floats8(b: Builder, op: Dot, lhs: Node, rhs: Node, caps: Caps) -> Node | None:
    """The product [*batch, *rows, *columns] of two operands of float8; None where they are not, or the target has no units for them."""
    formats = [dtype for dtype in FLOATS8 if str(dtype) in caps.matrix_units]
    if op.result is not None or lhs.dtype == F64:
        return None
    for dtype in formats:
        left, right = (_narrow(b, x, dtype) for x in (lhs, rhs))
        if left is not None and right is not None and not (known_array(lhs) is not None and known_array(rhs) is not None):
            return _product(b, op, left, right, lhs.dtype, caps)
    return None


def _product(b: Builder, op: Dot, left: Narrow, right: Narrow, dtype: DType, caps: Caps) -> Node:
    x, w = left.value, right.value
    rows = [a for a in range(x.rank) if a not in op.lhs_batch + op.lhs_contract]
    columns = [a for a in range(w.rank) if a not in op.rhs_batch + op.rhs_contract]
    grid, high, wide = tuple(x.shape[a] for a in op.lhs_batch), tuple(x.shape[a] for a in rows), tuple(w.shape[a] for a in columns)
    depth, width = product(x.shape[a] for a in op.lhs_contract), product(wide)
    x = reshape(b, transpose(b, x, [*op.lhs_batch, *rows, *op.lhs_contract]), (*grid, product(high), depth))
    matrices = reshape(b, transpose(b, w, [*op.rhs_batch, *op.rhs_contract, *columns]), (*grid, depth, width))
    grouped = group_panel_columns(width, product(high), depth, left.value.dtype, caps)
    if grouped is None and may_stay_plain(width, depth, left.value.dtype, caps) and known_array(w) is None:
        total = b.add(PackedDot(len(grid), width, step=STEP), x, reshape(b, matrices, (*grid, 1, depth, width)))
        return _scaled(b, reshape(b, total, (*grid, *high, *wide)), left, right, dtype)
    batch, missing = len(grid), ceildiv(depth, STEP) * STEP - depth
    if missing != 0:
        x = b.add(Bitcast(left.value.dtype), lengthened(b, b.add(Bitcast(U8), x), batch + 1, missing))
    if grouped is not None:
        missing = ceildiv(depth, group_steps(I8)) * group_steps(I8) - depth
    tile = gpu_panel_columns(width, product(high), left.value.dtype, caps) if grouped is None else grouped
    words = packed_words(b, lengthened(b, b.add(Bitcast(I8), matrices), batch, missing), batch, product(high), STEP, caps, tile)
    words = words if grouped is None else squares_of_words(b, words)
    op_in_bytes = PackedDot(batch, width, step=STEP, square=1 if grouped is None else square_of(words.dtype.bytes))
    return _scaled(b, reshape(b, b.add(op_in_bytes, x, words), (*grid, *high, *wide)), left, right, dtype)


def _scaled(b: Builder, total: Node, left: Narrow, right: Narrow, dtype: DType) -> Node:
    """The sums with the scales of both operands, as numbers of the product's dtype."""
    for scale in (left.scale, right.scale):
        if scale is not None:
            total = apply(b, "mul", total, broadcast(b, reshape(b, scale, ()), total.shape))
    return cast(b, total, dtype)


def _narrow(b: Builder, x: Node, dtype: DType) -> Narrow | None:
    """The bytes of that format that a value is made of."""
    array = known_array(x)
    if array is not None:
        return _of_constant(b, array, dtype)
    match x.op:
        case Take(0):
            table, places = known_array(x.inputs[0]), x.inputs[1]
            while isinstance(places.op, Cast) and places.inputs[0].dtype.is_integer:
                places = places.inputs[0]
            held = isinstance(places.op, Bitcast) and places.inputs[0].dtype == dtype
            every = np.arange(256, dtype=np.uint8).view(dtype.numpy).astype(np.float32)
            if table is not None and held and table.shape == every.shape and np.array_equal(table, every, equal_nan=True):
                return Narrow(places.inputs[0])
        case Cast() if x.inputs[0].dtype.is_float and x.inputs[0].dtype.bits <= F32.bits:
            inner = _narrow(b, x.inputs[0], dtype)
            return inner if inner is None or inner.scale is None else None  # a scaled value may be rounded
        case Reshape() | Transpose():
            inner = _narrow(b, x.inputs[0], dtype)
            return None if inner is None else Narrow(b.add(x.op, inner.value), inner.scale)
        case Elementwise("mul") if x.dtype == F32:
            for value, factor in (x.inputs, x.inputs[::-1]):
                scale = factor.inputs[0] if isinstance(factor.op, Broadcast) else factor
                inner = _narrow(b, value, dtype) if product(scale.shape) == 1 else None
                if inner is not None and inner.scale is None:
                    return Narrow(inner.value, scale)
    return None


def _of_constant(b: Builder, array: np.ndarray, dtype: DType) -> Narrow | None:
    with np.errstate(all="ignore"):
        narrow = array.astype(dtype.numpy)
        exact = np.array_equal(narrow.astype(array.dtype), array)
    return Narrow(b.add(Const(Constant(narrow)))) if exact else None


__all__ = ["packed_floats8"]
