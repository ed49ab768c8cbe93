"""Contractions of narrow integers into the form that lowering has instructions for.

A CPU multiplies several narrow integers side by side and adds the products in one instruction: two of 16 bits (pmaddwd), or four
bytes, unsigned ones with signed ones (vpdpbusd). So the right operand is packed in panels whose elements are words of two or
four consecutive steps of the contraction, and the left one stays as it lies, in i16 or u8. Weights of 8 bits stay bytes: two
to a word of 16 bits, which the kernel widens.

A GPU's matrix units take signed bytes on the left as well, as they are.

Where there is an instruction for bytes and the right operand is i8, a left operand that is a difference of u8 and a zero point
(or i8, which is u8 less 128) is multiplied as u8, and the zero point times the sums of the columns subtracted: int32 wraps, so
that is exact. An instruction that adds the products of two neighbours within 16 bits (pmaddubsw) serves where the weights are known
and so small that no such sum is cut off: |a| + |b| <= 128 for neighbours of one sign. Where that holds for the four weights that
two words have in a place, their products are added in 16 bits, and widened together: one multiplication less of four. All
else is multiplied as i16.

Assumes a `dot` or `conv` with `result` i32. Guarantees the same integers. Contract: exact.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, ceildiv, product
from ..ir.graph import Array, Builder, Constant, Node
from ..ir.loop_gpu import group_steps, square_of
from ..ir.ops.compute import Bitcast, Cast, Conv, Elementwise, PackedConv, PackedDot
from ..ir.ops.control import Const
from ..ir.ops.shape import Broadcast, Pad, Reshape, Slice, Transpose
from ..ir.types import I8, I16, I32, U8, DType
from ..library import apply, broadcast, cast, constant, reduce, reshape, slice_axis, transpose
from ..tiles import gpu_panel_columns, group_panel_columns, may_stay_plain, panel_columns
from .pack_windows import missing_channels, padded_on_the_way, square_columns, unit_columns, with_channels
from .panels import lengthened, pack_columns, squares_of_words
from .winograd import known_array

# of an instruction's products over those of float32, with panels and tiles as they are
NARROW = 2  # words whose products are added in 16 bits, where these fit, before the sum takes them: more need too many registers
GAINS = {"pairs": 1.4, "byte_pairs": 1.85, "byte_words": 2.2, "quads": 3.5}


class _Left(Struct, frozen=True):
    """A left operand as it is multiplied: in u8 or i16; what it stands for is that less the `zero_point` (i32, one number)."""

    value: Node
    zero_point: Node | None = None

    @property
    def step(self) -> int:
        return 4 if self.value.dtype in (U8, I8) else 2


def packed_integers(b: Builder, left: Node, right: Node, batch: int, caps: Caps) -> Node:
    """[*batch, *rows, K] times [*batch, K, N], both of narrow integers -> i32 [*batch, *rows, N]."""
    right = _narrowed(b, right)
    operand = _left_operand(b, left, right, batch, caps, str(I8) in caps.matrix_units)
    step, depth, width = operand.step, right.shape[batch], right.shape[batch + 1]
    missing = ceildiv(depth, step) * step - depth
    x = lengthened(b, operand.value, left.rank - 1, missing)
    rows = product(left.shape[batch:-1])
    grouped = group_panel_columns(width, rows, depth, I8, caps) if step == 4 else None
    if grouped is not None:
        whole = ceildiv(depth, group_steps(I8)) * group_steps(I8)
        words = packed_words(b, lengthened(b, right, batch, whole - depth), batch, rows, step, caps, grouped)
        squares = PackedDot(batch, width, step=step, square=square_of(I32.bytes))
        return _with_zero_point(b, b.add(squares, x, squares_of_words(b, words)), operand, left, right, batch)
    if step == 4 and right.dtype == I8 and may_stay_plain(width, depth, I8, caps) and known_array(right) is None:
        matrix = reshape(b, right, (*right.shape[:batch], 1, depth, width))
        return _with_zero_point(b, b.add(PackedDot(batch, width, step=step), operand.value, matrix), operand, left, right, batch)
    tile = gpu_panel_columns(width, rows, I8, caps) if caps.is_gpu and step == 4 else None
    longer = lengthened(b, right, batch, missing)
    packed = packed_words(b, longer, batch, rows, step, caps, tile)
    saturates = step == 4 and not caps.has_quads
    narrow = _words_in_16_bits(longer, batch, longer.shape[batch] // step) if saturates else 1
    total = b.add(PackedDot(batch, width, step=step, saturates=saturates, narrow=narrow), x, packed)
    return _with_zero_point(b, total, operand, left, right, batch)


def _with_zero_point(b: Builder, total: Node, operand: _Left, left: Node, right: Node, batch: int) -> Node:
    """The product of what the left operand stands for, made of the one of its bytes."""
    if operand.zero_point is None:
        return total
    shape = (*right.shape[:batch], *[1] * (left.rank - 1 - batch), right.shape[-1])
    return _less_zero_point(b, total, operand.zero_point, reshape(b, _sums(b, right, (batch,)), shape))


def packed_integer_conv(b: Builder, op: Conv, x: Node, w: Node, caps: Caps) -> Node:
    """A channels-last convolution of narrow integers without padding and input dilation, several channels a group."""
    *kernel, channels, out = w.shape
    assert isinstance(out, int)
    w = _narrowed(b, w)
    tile = unit_columns(op, x, w, I8, caps)
    operand = _left_operand(b, x, w, w.rank - 2, caps, tile is not None)
    step, groups = operand.step, op.groups
    tile = tile if step == 4 else None
    missing = ceildiv(channels, step) * step - channels if tile is None else missing_channels(channels, I8)
    value = with_channels(b, operand.value, groups, missing)
    depth, of_group = product((*kernel, channels + missing)), out // groups
    matrices = reshape(b, lengthened(b, w, w.rank - 2, missing), (depth, groups, of_group))
    matrices = transpose(b, matrices, [1, 0, 2]) if groups != 1 else reshape(b, matrices, (depth, of_group))
    grouped = square_columns(op, x, w, I8, caps) if step == 4 else None
    if grouped is not None:
        matrices, tile = lengthened(b, matrices, 0, ceildiv(depth, group_steps(I8)) * group_steps(I8) - depth), grouped
    packed = packed_words(b, matrices, int(groups != 1), product(x.shape[:-1]), step, caps, tile)
    sizes, saturates = tuple(int(k) for k in kernel), step == 4 and not caps.has_quads
    made = PackedConv(sizes, op.strides, op.dilation, out, groups, step, saturates)
    if grouped is not None:
        made, packed = replace(made, square=square_of(I32.bytes)), squares_of_words(b, packed)
    if saturates:
        words = (channels + missing) // step * (sizes[-1] if made.is_joined else 1)
        made = replace(made, narrow=_words_in_16_bits(matrices, int(groups != 1), words))
    total = padded_on_the_way(b, made, value, packed, caps)
    if operand.zero_point is None:
        return total
    return _less_zero_point(b, total, operand.zero_point, _sums(b, w, tuple(range(w.rank - 1))))


def _narrowed(b: Builder, right: Node) -> Node:
    """Known weights that fit into bytes as bytes: those with a zero point are differences in 16 bits."""
    array = known_array(right) if right.dtype == I16 else None
    limits = np.iinfo(np.int8)
    if array is None or not limits.min <= array.min(initial=0) <= array.max(initial=0) <= limits.max:
        return right
    return b.add(Const(Constant(array.astype(np.int8))))


def _sums(b: Builder, right: Node, axes: tuple[int, ...]) -> Node:
    """The sums of integers along axes. Those of known weights are added up here: as wide as the sums the weights would be too large
    to become a constant on the way."""
    array = known_array(right)
    if array is None:
        return reduce(b, "sum", cast(b, right, I32), axes)
    return b.add(Const(Constant(array.sum(axes, dtype=np.int32))))


def _less_zero_point(b: Builder, total: Node, zero_point: Node, sums: Node) -> Node:
    surplus = apply(b, "mul", broadcast(b, sums, sums.shape), broadcast(b, zero_point, sums.shape))
    return apply(b, "sub", total, broadcast(b, surplus, total.shape))


def packed_words(b: Builder, right: Node, batch: int, rows: DimLike, step: int, caps: Caps, tile: int | None = None) -> Node:
    """[*batch, K, N] of integers in panels [*batch, ceil(N / tile), K / step, tile] of words."""
    held = I8 if right.dtype == I8 else I16
    word, bits = (I32, 8) if step == 4 else (I16, 8) if held == I8 else (I32, 16)
    depth, width = right.shape[batch] // step, right.shape[batch + 1]
    tile = panel_columns(width, rows, I32, caps, depth) if tile is None else tile
    known = known_array(right)
    if known is not None:  # joined here: wide integers of each part would be too large to become constants on the way
        split = known.astype(np.int64).reshape(*known.shape[:batch], known.shape[batch] // step, step, known.shape[-1])
        parts = np.moveaxis(split, batch + 1, 0)
        joined = sum(((part & (1 << bits) - 1) << place * bits for place, part in enumerate(parts)), start=np.int64(0))
        return pack_columns(b, b.add(Const(Constant(np.asarray(joined).astype(word.numpy)))), batch, tile)
    apart = reshape(b, cast(b, right, held), (*right.shape[:batch], depth, step, width))
    mask = constant(b, (1 << bits) - 1, word)
    words: Node | None = None
    for place in range(step):
        part = cast(b, reshape(b, slice_axis(b, apart, batch + 1, place, 1), (*right.shape[:batch], depth, width)), word)
        if place + 1 < step:
            part = apply(b, "and", part, mask)
        if place > 0:
            part = apply(b, "shl", part, constant(b, place * bits, word))
        words = part if words is None else apply(b, "or", words, part)
    assert words is not None
    return pack_columns(b, words, batch, tile)


def _left_operand(b: Builder, left: Node, right: Node, axis: int, caps: Caps, signed: bool = False) -> _Left:
    """How the left operand is multiplied with the right one, of which that axis is contracted; `signed`: the target multiplies signed bytes
    as well."""
    if right.dtype == I8 and (caps.has_quads or caps.has_byte_pairs and _are_small(right, axis)):
        found = _as_bytes(b, left, signed)
        if found is not None:
            return found
    return _Left(cast(b, left, I16))


def _are_small(weights: Node, axis: int) -> bool:
    """Whether the products of two neighbours along the axis with any bytes add up within 16 bits."""
    array = known_array(weights)
    if array is None:
        return False
    whole = np.moveaxis(array, axis, 0).astype(np.int32)
    whole = np.concatenate([whole, np.zeros((len(whole) % 2, *whole.shape[1:]), np.int32)])
    most = 32767 // 255
    return all(int((part[::2] + part[1::2]).max(initial=0)) <= most for part in (np.maximum(whole, 0), np.maximum(-whole, 0)))


def _words_in_16_bits(matrices: Node, batch: int, words: DimLike) -> int:
    """Of how many words [*batch, 4 * words, N] the products with any bytes add up within 16 bits, as `add_byte_pairs` adds them; a
    divisor of `words`."""
    array = known_array(matrices)
    fits = array is not None and isinstance(words, int) and words % NARROW == 0 and _fit_16_bits(array, batch)
    return NARROW if fits else 1


def _fit_16_bits(array: Array, batch: int) -> bool:
    """Whether the products of any bytes with weights [*batch, K, N] add up within 16 bits where NARROW words are added in them."""
    words = array.shape[batch] // (4 * NARROW)
    apart = array.astype(np.int32).reshape(*array.shape[:batch], words, NARROW, 2, 2, array.shape[-1])
    return all(int(np.maximum(part, 0).sum((batch + 1, batch + 3)).max(initial=0)) <= 32767 // 255 for part in (apart, -apart))


def gain_of_integers(weights: Node, axis: int, caps: Caps) -> float:
    """How much faster products of bytes with these weights are than float32's, of which that axis is contracted (measured)."""
    if caps.has_quads:
        return GAINS["quads"]
    if not caps.has_byte_pairs or weights.dtype != I8 or not _are_small(weights, axis):
        return GAINS["pairs"]
    array = known_array(weights)
    assert array is not None
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    return GAINS["byte_words" if len(rows) % (4 * NARROW) == 0 and _fit_16_bits(rows, 0) else "byte_pairs"]


def _as_bytes(b: Builder, x: Node, signed: bool) -> _Left | None:
    """The operand as u8, or as i8 where that may be, and a zero point; None where it is neither bytes nor a difference of bytes and one
    number."""
    if x.dtype == U8 or signed and x.dtype == I8:
        return _Left(x)
    if x.dtype == I8:
        flipped = apply(b, "xor", b.add(Bitcast(U8), x), constant(b, 128, U8))
        return _Left(flipped, constant(b, 128, I32))
    match x.op:
        case Reshape() | Transpose():
            inner = _as_bytes(b, x.inputs[0], signed)
            return None if inner is None else _Left(b.add(x.op, inner.value), inner.zero_point)
        case Pad() as op if _is_zero(x.inputs[1]):
            inner = _as_bytes(b, x.inputs[0], signed)
            if inner is None:
                return None
            held = inner.value.dtype
            fill = constant(b, 0, held) if inner.zero_point is None else cast(b, inner.zero_point, held)
            return _Left(b.add(op, inner.value, fill), inner.zero_point)
        case Elementwise("sub"):
            for dtype in (U8, I8) if signed else (U8,):
                value, point = (_bytes_of(operand, dtype) for operand in x.inputs)
                is_whole = value is not None and value.dtype == dtype and value.shape == x.shape
                if value is not None and is_whole and point is not None and product(point.shape) == 1:
                    return _Left(value, _one_number(b, point))
        case Cast():
            for dtype in (U8, I8) if signed else (U8,):
                value = _bytes_of(x, dtype)
                if value is not None:
                    return _Left(value)
    return None


def _bytes_of(x: Node, dtype: DType) -> Node | None:
    """The bytes of that dtype that a wider integer was made of."""
    is_spread = isinstance(x.op, (Broadcast, Reshape))
    while isinstance(x.op, (Broadcast, Reshape)):
        x = x.inputs[0]
    if isinstance(x.op, Const):
        array = x.op.value.array
        limits = np.iinfo(dtype.numpy)
        fits = array.size == 1 and limits.min <= int(array.reshape(-1)[0]) <= limits.max
        return x if fits else None
    if isinstance(x.op, Cast) and x.inputs[0].dtype == dtype and (not is_spread or product(x.shape) == 1):
        return x.inputs[0]
    return None


def _one_number(b: Builder, x: Node) -> Node:
    return cast(b, reshape(b, x, ()), I32)


def _is_zero(x: Node) -> bool:
    return isinstance(x.op, Const) and bool(np.all(x.op.value.array == 0))


def largest(x: Node) -> int:
    """A bound of the magnitude of narrow integers: of what they are made of, where that says more than their dtype."""
    return max(map(abs, _range(x)))


def _range(x: Node) -> tuple[int, int]:
    limits = np.iinfo(x.dtype.numpy)
    whole = int(limits.min), int(limits.max)
    found = whole
    match x.op:
        case Const(value):
            found = int(value.array.min(initial=0)), int(value.array.max(initial=0))
        case Cast() if x.inputs[0].dtype.is_integer:
            found = _range(x.inputs[0])
        case Reshape() | Transpose() | Broadcast() | Slice():
            found = _range(x.inputs[0])
        case Elementwise("sub"):
            (low, high), (least, most) = map(_range, x.inputs)
            found = low - most, high - least
        case Pad():
            (low, high), (least, most) = map(_range, x.inputs)
            found = min(low, least), max(high, most)
    return found if whole[0] <= found[0] and found[1] <= whole[1] else whole  # what may wrap is anything
