"""Products of activations, floats or bytes, with weights of a few bits, as the passes `weight_only` and `narrow_products` make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ..dims import ceildiv, product
from ..errors import CompileError
from ..graph import Array, Binding, Op, Sample
from ..types import BF16, F16, F32, I8, I32, U8, TensorType, Type
from .shape import tensor_operand

WORD = 32  # bits
CODE_BITS = (2, 4, 8)
FLOATS = (F32, F16, BF16)  # of activations and scales
POINTS = (U8, I8, F32)  # of zero points
BYTE_CODES = (2, 4)  # bits of codes that meet bytes: products of two neighbours add up within 16 bits


def step_of_place(place: int, bits: int) -> int:
    """Which step of a word its code number `place` belongs to, counted from the lowest bits on.

    Four neighbouring steps lie at one place of the word's four bytes each: what is left of a word after a shift and a mask are four
    steps that follow one another, as instructions on bytes take them.
    """
    byte, part = divmod(place, 8 // bits)
    return part * 4 + byte


def codes_of_words(words: Array, bits: int) -> Array:
    """[panels, words, tile] -> [panels, words * 32 / bits, tile]: the codes of each word by their steps."""
    count = WORD // bits
    shifts = np.empty(count, np.uint32)
    shifts[[step_of_place(place, bits) for place in range(count)]] = np.arange(0, WORD, bits)
    codes = words.view(np.uint32)[:, :, None, :] >> shifts[:, None] & np.uint32((1 << bits) - 1)
    return codes.reshape(words.shape[0], words.shape[1] * count, words.shape[2])


def words_of_codes(codes: Array, bits: int) -> Array:
    """The inverse: codes [panels, steps, tile], a multiple of 32 / bits steps, as words."""
    panels, steps, tile = codes.shape
    count = WORD // bits
    words = np.zeros((panels, steps // count, tile), np.uint32)
    for place in range(count):
        words |= codes[:, step_of_place(place, bits)::count, :].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def sums_fit(bits: int, group: int, zero: int) -> bool:
    """Whether an int32 holds the sum of a group of codes, and that of their zeros, times signed bytes."""
    return group * 128 * (abs(zero) + (1 << bits)) < 1 << 31


class WeightOnlyDot(Op, frozen=True):
    """Matmul with weights that are kept as codes of `bits` bits, with a scale for each `group` of steps of a column.

    lhs [*rows, K] float, words [ceil(N / tile), G * group * bits / 32, tile] i32, scales [ceil(N / tile), G, tile] float, and zero
    points like the scales or none -> [*rows, N] in the dtype of lhs, N = `columns`, G = ceil(K / group). A word holds 32 / bits
    steps of one column, in the order of `step_of_place`. The weight of a code is (code - `zero` - zero point) * scale; the sum of
    products is a float32 in any order. A group's sum may be taken of the codes, less the zero times the sum of the group's
    activations, and then scaled: so sums are as exact as those of the codes, and where lhs has an infinity, a row may be NaN. It may also
    be taken of activations that are rounded to multiples of 2**-21 of the greatest power of two within the group: that much of
    their greatest one is what the sum of its products alone may miss by. Codes past K and columns past N have no part in the result.

    lhs may be i8, with codes of 2 or 4 bits, a K that is G * group and a zero so small that an int32 holds the sum of a group (`sums_fit`):
    the result is f32 then, and the sum of a group exact.
    """

    name: ClassVar[str] = "weight_only_dot"
    columns: int
    bits: int
    group: int
    zero: int = 0

    def infer(self, *types: Type) -> Type:
        if not 3 <= len(types) <= 4:
            raise CompileError(f"weight_only_dot: takes 3 or 4 operands, found {len(types)}")
        lhs, words, scales, *points = (tensor_operand(self, t, i) for i, t in enumerate(types))
        if self.bits not in CODE_BITS or self.group < 1 or self.group * self.bits % WORD:
            raise CompileError(f"weight_only_dot: groups of {self.group} codes of {self.bits} bits do not fill words of {WORD} bits")
        bytewise = lhs.dtype == I8 and self.bits in BYTE_CODES and sums_fit(self.bits, self.group, self.zero)
        fits = (lhs.dtype in FLOATS or bytewise) and scales.dtype in FLOATS
        if not fits or words.dtype != I32 or any(p.dtype not in POINTS for p in points):
            raise CompileError(f"weight_only_dot: needs floats of at most 32 bits, words i32 and zero points u8, i8 or f32, or "
                               f"i8 and codes of {' or '.join(map(str, BYTE_CODES))} bits whose sums fit 32 bits, "
                               f"found {', '.join(map(str, types))} and groups of {self.group} codes of {self.bits} bits less {self.zero}")
        depth = lhs.shape[-1] if lhs.rank else 0
        good = words.rank == scales.rank == 3 and isinstance(depth, int) and depth >= 1 and self.columns >= 1
        good = good and words.is_static and words.shape[2] != 0
        if good:
            groups = ceildiv(depth, self.group)
            panels = ceildiv(self.columns, words.shape[2])
            good = not bytewise or depth == groups * self.group
            good = good and words.shape[:2] == (panels, groups * self.group * self.bits // WORD)
            good = good and all(t.shape == (panels, groups, words.shape[2]) for t in (scales, *points))
        if not good:
            raise CompileError(f"weight_only_dot: {', '.join(map(str, types))} do not fit columns {self.columns}, "
                               f"bits {self.bits}, group {self.group}")
        return TensorType(F32 if bytewise else lhs.dtype, (*lhs.shape[:-1], self.columns))

    def weights(self, depth: int, words: Array, scales: Array, *points: Array) -> Array:
        """The weights [K, N] in float32."""
        codes = codes_of_words(words, self.bits).astype(np.float32) - np.float32(self.zero)
        spread = [np.repeat(np.asarray(a).astype(np.float32), self.group, axis=1) for a in (scales, *points)]
        with np.errstate(all="ignore"):
            dense = (codes - spread[1] if points else codes) * spread[0]
        rows: Array = np.moveaxis(dense, 1, 0).reshape(dense.shape[1], dense.shape[0] * dense.shape[2])[:depth, :self.columns]
        return rows

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        lhs = inputs[0]
        rows = lhs.reshape(int(product(lhs.shape[:-1])), lhs.shape[-1]).astype(np.float32)
        with np.errstate(all="ignore"):
            value = rows @ self.weights(lhs.shape[-1], *inputs[1:])
            result: Array = value.reshape(*lhs.shape[:-1], self.columns).astype(np.float32 if lhs.dtype == np.int8 else lhs.dtype)
        return result

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        def sample(op: WeightOnlyDot, lhs: TensorType, tile: int, *points: TensorType) -> Sample:
            depth = lhs.shape[-1]
            assert isinstance(depth, int)
            panels, groups = -(-op.columns // tile), -(-depth // op.group)
            words = TensorType(I32, (panels, groups * op.group * op.bits // WORD, tile))
            return Sample(op, (lhs, words, TensorType(F32, (panels, groups, tile)), *points))

        return (sample(cls(11, 4, 8, 8), TensorType(F32, (3, 20)), 8),
                sample(cls(5, 8, 4), TensorType(F32, (1, 2, 11)), 8, TensorType(U8, (1, 3, 8))),
                sample(cls(20, 2, 16), TensorType(F16, (1, 16)), 16, TensorType(F32, (2, 1, 16))),
                sample(cls(11, 4, 8, 8), TensorType(I8, (3, 24)), 8),
                sample(cls(20, 2, 16), TensorType(I8, (1, 32)), 16, TensorType(U8, (2, 2, 16))))
