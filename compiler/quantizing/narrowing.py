"""Integers of weights so small that the products of four of them with bytes add up within 16 bits.

CPUs that add the products of two neighbouring bytes within 16 bits (pmaddubsw) can add those of two words of four bytes there, too,
before a wider sum takes them (`passes/pack_integers.py`): of eight channels that follow one another, the first two and the fifth and
sixth meet in one place, and the other four in another. Bytes within 64 fit by twos always, by fours nearly always; where they do
not, the four are moved towards zero by as few steps as it takes. Of weights that are rounded to nearest that concerns some in
a thousand, whose error is far below that of rounding all others.

Guarantees: positive ones of the four add up to at most 128, and so do negative ones; four that do already are kept.
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Array

MOST = 32767 // 255  # that the weights of one sign may add up to
CHANNELS = 8         # of two words


def narrowed(integers: Array, channels: int) -> Array:
    """[groups, channels * taps, N] with sums that fit; as it is where channels do not fill pairs of words."""
    if channels == 0 or channels % CHANNELS:
        return integers
    groups, depth, width = integers.shape
    apart = integers.reshape(groups, channels // CHANNELS, 2, 2, 2, depth // channels, width)
    together = np.ascontiguousarray(np.moveaxis(apart, (2, 4), (-2, -1)))  # a word and a byte of its half, last
    fours = together.reshape(-1, 4)
    for sign in (1, -1):
        _lower(fours, sign)
    moved = np.moveaxis(together, (-2, -1), (2, 4))
    return np.ascontiguousarray(moved).reshape(integers.shape)


def _lower(fours: Array, sign: int) -> None:
    """Moves the positive ones (of this sign) of each four towards zero, one step at a time each in turn, until they fit."""
    large = np.flatnonzero(np.maximum(sign * fours, 0).sum(1) > MOST)
    while large.size:
        values = sign * fours[large]
        moved = values - (values > 0)
        # of the last steps only as many as it takes: those of the largest
        surplus = np.maximum(values, 0).sum(1) - MOST
        rank = np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1, kind="stable")
        fours[large] = sign * np.where(rank < surplus[:, np.newaxis], moved, values)
        large = large[np.maximum(sign * fours[large], 0).sum(1) > MOST]
