"""Ranges of activations: a histogram that grows with what it sees, and how the range to quantize is read off it.

`Histogram` keeps counts in bins of equal width, a power of two, around 0. Where a value lies beyond the last bin, the width
doubles and pairs of bins become one, so that values are met once, in any order, and nothing is stored.

Choices: the range of all values; the range of a share of them (percentile); the least squared error of quantizing (Sung et
al., Resiliency of deep neural networks under quantization, 2015); the least divergence of the clipped distribution from its
quantized form (Migacz, 8-bit inference with TensorRT, 2017). Every range holds 0, which must be exact: padding writes it.

Assumes finite values. Guarantees: the same counts, and so the same range, in whatever order values come, but for those at an edge.
"""

from __future__ import annotations

import numpy as np

from ..ir.errors import ArgumentError
from ..ir.graph import Array

HALF = 4096          # bins on either side of 0
SHRINKS = 64         # ranges that are tried on a side
LEVELS = 128         # of the quantized distribution in `entropy`


class Histogram:
    """Counts of values; `low` and `high` are the extremes met, 0 where none was."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * HALF, np.int64)
        self.exponent: int | None = None   # bins are 2^exponent wide
        self.low = 0.0
        self.high = 0.0
        self.total = 0
        self.squares = 0.0

    def add(self, values: Array) -> None:
        """Counts an array of finite numbers."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        self.low, self.high = (min(self.low, low), max(self.high, high)) if self.total else (low, high)
        self.total += values.size
        flat = values.reshape(-1)
        self.squares += float(np.square(flat, dtype=np.float64).sum())
        self._widen(max(-low, high))
        # float32 holds the power of two but for the smallest; what is added makes cutting towards 0 the floor
        power = np.ldexp(1.0, -(self.exponent or 0))
        places = (flat * (power if power > 1e30 else np.float32(power)) + np.float32(HALF)).astype(np.int32)
        self.counts += np.bincount(places.clip(0, 2 * HALF - 1), minlength=2 * HALF)

    def _widen(self, largest: float) -> None:
        """Makes bins wide enough for a value of that size."""
        needed = int(np.frexp(largest)[1]) - int(np.log2(HALF)) if largest > 0 else -140
        if self.exponent is None:
            self.exponent = needed
            return
        while self.exponent < needed:
            pairs = self.counts.reshape(HALF, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[HALF // 2:HALF // 2 + HALF] = pairs
            self.exponent += 1

    @property
    def middles(self) -> Array:
        """The middle of each bin."""
        return np.asarray(np.ldexp(np.arange(-HALF, HALF) + 0.5, self.exponent or 0))

    @property
    def mean_square(self) -> float:
        return self.squares / self.total if self.total else 0.0


def grid_of(low: float, high: float, levels: tuple[int, int], symmetric: bool) -> tuple[float, int]:
    """Scale and zero point of the integers from levels[0] to levels[1] for a range, which is widened to hold 0."""
    least, greatest = levels
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        return _positive(max(-low, high) / greatest), 0
    scale = _positive((high - low) / (greatest - least))
    return scale, int(np.clip(np.round(least - low / scale), least, greatest))


def _positive(scale: float) -> float:
    """A float32 that is positive and normal: a range of nothing needs any."""
    return float(np.float32(scale)) if scale > np.finfo(np.float32).tiny else 1.0


def error_of(histogram: Histogram, scale: float, point: int, levels: tuple[int, int]) -> float:
    """The mean squared error of quantizing what was counted, as bins tell."""
    if not histogram.total:
        return 0.0
    used = np.flatnonzero(histogram.counts)
    values = histogram.middles[used]
    kept = (np.clip(np.round(values / scale) + point, *levels) - point) * scale
    return float(histogram.counts[used] @ (values - kept) ** 2) / histogram.total


def choose_range(histogram: Histogram, method: str, levels: tuple[int, int], symmetric: bool, percentile: float) -> tuple[float, float]:
    """The range to quantize, by one of the methods of `recipes.RANGES`."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "min-max" or not histogram.total or low == high:
        return low, high
    if method == "percentile":
        return _percentile(histogram, percentile, low, high)
    if method == "mean squared error":
        return _least_error(histogram, levels, symmetric, low, high)
    if method == "entropy":
        return _entropy(histogram, low, high)
    raise ArgumentError(f"calibration: no method {method!r} to choose a range")


def _percentile(histogram: Histogram, percentile: float, low: float, high: float) -> tuple[float, float]:
    """The share of values within, half of the others on each side; of values of one sign all others on the far side."""
    one_sided = low == 0 or high == 0
    outside = (1 - percentile / 100) * histogram.total / (1 if one_sided else 2)
    below = np.cumsum(histogram.counts)
    above = np.cumsum(histogram.counts[::-1])[::-1]
    width = np.ldexp(1.0, histogram.exponent or 0)
    first = int(np.argmax(below > outside))
    last = 2 * HALF - 1 - int(np.argmax((above > outside)[::-1]))
    return max(low, min((first - HALF) * width, 0.0)), min(high, max((last + 1 - HALF) * width, 0.0))


def _least_error(histogram: Histogram, levels: tuple[int, int], symmetric: bool, low: float, high: float) -> tuple[float, float]:
    """Ends are drawn in by turns until neither gains; both together where the range is symmetric."""
    shares = np.linspace(1.0, 1 / SHRINKS, SHRINKS)

    def error(least: float, greatest: float) -> float:
        return error_of(histogram, *grid_of(least, greatest, levels, symmetric), levels)

    if symmetric:
        best = min(shares, key=lambda share: error(low * share, high * share))
        return low * float(best), high * float(best)
    ends = [low, high]
    for _ in range(3):
        before = list(ends)
        ends[0] = min((low * float(share) for share in shares), key=lambda end: error(end, ends[1])) if low else low
        ends[1] = min((high * float(share) for share in shares), key=lambda end: error(ends[0], end)) if high else high
        if ends == before:
            break
    return ends[0], ends[1]


def _entropy(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """The size of the range whose quantized distribution diverges least from the clipped one; bins of both signs are one."""
    sizes = histogram.counts[HALF:] + histogram.counts[:HALF][::-1]
    last = int(np.flatnonzero(sizes)[-1]) + 1
    candidates = np.unique(np.linspace(min(LEVELS, last), last, SHRINKS).astype(np.int64))
    best = min(candidates, key=lambda end: (_divergence(sizes, int(end)), -end))
    size = float(best) * float(np.ldexp(1.0, histogram.exponent or 0))
    return max(low, -size), min(high, size)


def _divergence(sizes: Array, end: int) -> float:
    """Kullback-Leibler, of counts clipped to the first `end` bins from those in `LEVELS` steps spread over the bins used."""
    clipped = sizes[:end].astype(np.float64)
    kept = clipped.copy()
    clipped[-1] += sizes[end:].sum()
    step = np.minimum(np.arange(end) * LEVELS // end, LEVELS - 1)
    used = clipped > 0
    totals = np.bincount(step, kept, LEVELS)
    places = np.bincount(step, used, LEVELS)
    spread = np.where(used, (totals / np.maximum(places, 1))[step], 0.0)
    if not spread.sum():
        return float("inf")
    p, q = clipped[used] / clipped.sum(), spread[used] / spread.sum()
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-12))))
