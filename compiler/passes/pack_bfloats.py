"""Contractions with constant weights that are bfloat16: two steps to a word, half of the bytes.

A weight is a bfloat16 where the lower half of its float32 is zero: that is found by the values, so it does not matter whether a graph
says bfloat16 or holds floats that were rounded to it. Words of two steps lie in panels as those of integers do
(`passes/pack_integers.py`). With a left operand in float32 each half of a word becomes a float by a shift or a mask, which is exact:
the very products of the float32 contraction, and half of its memory. Where the left operand is bfloat16, too, and the target has an
instruction for pairs of these (vdpbf16ps), it is read as that.

A contraction in bfloat16 is one of float32 here, whose operands are widened and whose result is rounded: that is what bfloat16 means
in contractions, and conversions are done once for an element and not once for a product.

Contract: reassoc; where the instruction serves, subnormal numbers count as zeros (not under `strict`).
"""

from __future__ import annotations

import numpy as np

from ..ir.caps import Caps
from ..ir.dims import product
from ..ir.graph import Array, Builder, Node
from ..ir.ops.compute import Cast, Conv, PackedConv, PackedDot
from ..ir.ops.shape import Pad, Reshape, Transpose
from ..ir.rewrite import uniform_value
from ..ir.types import BF16, F32
from ..library import cast, constant, pad
from ..tiles import panel_columns
from .panels import pack_columns
from .winograd import known_array

LEAST_WEIGHTS = 1 << 17  # that are worth words without an instruction: fewer lie in a cache of their core anyway
LEAST_OF_PAIRS = 1 << 9  # that are worth them with one, which takes half as many steps
SOME = 64                # weights that are looked at before all are


def widened(b: Builder, x: Node) -> Node:
    """A bfloat16 as float32; of a constant a constant."""
    array = known_array(x)
    return cast(b, x, F32) if array is None else constant(b, array.astype(np.float32))


def packed_bfloats(b: Builder, left: Node, right: Node, batch: int, caps: Caps) -> Node | None:
    """[*batch, *rows, K] times [*batch, K, N] in float32, where the right one is such a constant; None elsewhere."""
    left = _left(b, left, caps)
    array = _bfloats(right, left, caps)
    if array is None:
        return None
    depth, width = array.shape[batch:]
    x = pad(b, left, [0] * left.rank, [*[0] * (left.rank - 1), depth % 2])
    array = np.pad(array, [*[(0, 0)] * batch, (0, depth % 2), (0, 0)])
    tile = panel_columns(width, product(left.shape[batch:-1]), F32, caps, -(-depth // 2))
    packed = pack_columns(b, constant(b, _words(array)), batch, tile)
    return b.add(PackedDot(batch, width, step=2), x, packed)


def packed_bfloat_conv(b: Builder, op: Conv, x: Node, w: Node, tile: int, caps: Caps) -> Node | None:
    """A channels-last convolution without groups, padding and input dilation, of an even number of channels, likewise."""
    *kernel, channels, _ = w.shape
    x = _left(b, x, caps)
    array = _bfloats(w, x, caps)
    if array is None or not isinstance(channels, int) or channels % 2:
        return None
    words = _words(array.reshape(-1, array.shape[-1]))
    packed = pack_columns(b, constant(b, words), 0, tile)
    sizes = tuple(int(k) for k in kernel)
    return b.add(PackedConv(sizes, op.strides, op.dilation, array.shape[-1], step=2), x, packed)


def _bfloats(weights: Node, left: Node, caps: Caps) -> Array | None:
    """A constant in float32 whose values are bfloat16, and which are worth words beside such a left operand."""
    least = LEAST_OF_PAIRS if left.dtype == BF16 else LEAST_WEIGHTS
    if caps.is_gpu or left.dtype not in (F32, BF16) or weights.dtype != F32 or not weights.tensor.is_static:
        return None
    if int(product(weights.shape)) < least:
        return None
    array = known_array(weights)
    if array is None:
        return None
    bits = np.ascontiguousarray(array).view(np.uint32)
    return None if (bits.reshape(-1)[:SOME] & 0xFFFF).any() or (bits & 0xFFFF).any() else array


def _words(array: Array) -> Array:
    """[.., K, N] -> [.., K / 2, N]: two steps, the first one in the lower half."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    words: Array = bits[..., ::2, :] >> np.uint32(16) | bits[..., 1::2, :]
    return words


def _left(b: Builder, x: Node, caps: Caps) -> Node:
    """The left operand as the target multiplies it with words: bfloat16 where it is that and there is an instruction."""
    return _narrow(b, x) if caps.has_bf16 and is_made_of_bfloats(x) else x


def is_made_of_bfloats(x: Node) -> bool:
    """Whether a float32 is a bfloat16, moved as it is."""
    match x.op:
        case Cast():
            return x.inputs[0].dtype == BF16
        case Reshape() | Transpose():
            return is_made_of_bfloats(x.inputs[0])
        case Pad():
            return uniform_value(x.inputs[1]) == 0 and is_made_of_bfloats(x.inputs[0])
    return False


def _narrow(b: Builder, x: Node) -> Node:
    """The bfloat16 that such a float32 was made of."""
    match x.op:
        case Cast():
            return x.inputs[0]
        case Pad():
            return b.add(x.op, _narrow(b, x.inputs[0]), constant(b, 0, BF16))
    return b.add(x.op, _narrow(b, x.inputs[0]))
