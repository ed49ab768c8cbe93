"""The matrices of Winograd's fast convolutions, exact, and how a product with one is computed in few steps.

F(m, r) gives m neighbouring results of a convolution with r taps from n = m + r - 1 products instead of m * r:
y = A [(G w) * (B x)], with `*` element by element (Winograd, Arithmetic Complexity of Computations, 1980; for networks
Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308). It is Toom and Cook's product of
polynomials: G and A evaluate at n - 1 points and at infinity, B is the transpose of the interpolation. Here G takes the
divisions of the interpolation, so A and B hold sums of powers of two where the points are such powers.

Along several axes the matrices are applied one axis after the other.

Error: a result differs from the exact one by at most `amplification` times (C + 2 n) units of roundoff times the sum of
|x| |w| over the largest window, to first order, where C products are summed (Barabasz, Anderson, Soodhalter and Gregg,
Error Analysis and Improving the Accuracy of Winograd Convolution, arXiv 1803.10986, whose advice the points follow: few,
small, with their reciprocals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import TypeVar

import numpy as np
from msgspec import Struct

HALF = Fraction(1, 2)
# the finite points by their number; infinity comes to them
POINTS: dict[int, tuple[Fraction | int, ...]] = {
    1: (0,), 2: (0, 1), 3: (0, 1, -1), 4: (0, 1, -1, HALF), 5: (0, 1, -1, HALF, -2), 6: (0, 1, -1, HALF, -HALF, -2),
    7: (0, 1, -1, 2, -2, HALF, -HALF),
}
MOST_POINTS = max(POINTS) + 1

Rows = tuple[tuple[float, ...], ...]
Value = TypeVar("Value")


class Winograd(Struct, frozen=True):
    """F(m, r) along one axis: `output` is A [m, n], `weights` G [n, r], `input` B [n, n]; all exact in float32 but G."""

    results: int
    taps: int
    output: Rows
    weights: Rows
    input: Rows

    @property
    def points(self) -> int:
        """n, the elements that a tile reads and the products it takes."""
        return self.results + self.taps - 1

    @property
    def amplification(self) -> float:
        """How much larger than a plain sum's the terms are that cancel."""
        of_input, of_weights = (np.abs(matrix).sum(1) for matrix in (self.input, self.weights))
        return float((np.abs(self.output) * of_input * of_weights).sum(1).max())


@lru_cache(maxsize=64)
def winograd(results: int, taps: int) -> Winograd:
    """F(results, taps), which has at most `MOST_POINTS` points; F(1, 1) is the identity."""
    if results == taps == 1:
        return Winograd(1, 1, ((1.0,),), ((1.0,),), ((1.0,),))
    finite = [Fraction(p) for p in POINTS[results + taps - 2]]
    others = [[q for q in finite if q != p] for p in finite]
    infinity = [Fraction(0)] * (taps - 1) + [Fraction(1)]
    output = [[*(p**i for p in finite), Fraction(i == results - 1)] for i in range(results)]
    weights = [[p**k / prod(p - q for q in rest) for k in range(taps)] for p, rest in zip(finite, others)]
    interpolation = [[*_with_roots(rest), Fraction(0)] for rest in others]
    return Winograd(results, taps, _floats(output), _floats([*weights, infinity]), _floats([*interpolation, _with_roots(finite)]))


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients, lowest first, of the monic polynomial with these roots."""
    found = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *found], [*(root * c for c in found), Fraction(0)]
        found = [a - b for a, b in zip(shifted, scaled)]
    return found


def _floats(rows: Sequence[Sequence[Fraction]]) -> Rows:
    return tuple(tuple(float(v) for v in row) for row in rows)


def apply_rows(rows: Rows, values: Sequence[Value], combine: Callable[[Sequence[tuple[float, Value]]], Value]) -> list[Value]:
    """The products of the rows with the values. `combine` sums (factor, value) pairs. Rows of opposite points share the sum
    of their equal and of their opposite terms."""
    found: dict[int, Value] = {}
    for first, row in enumerate(rows):
        for second in range(first + 1, len(rows)):
            other = rows[second]
            if first in found or second in found or any(abs(a) != abs(b) for a, b in zip(row, other)):
                continue
            equal = [(a, v) for a, b, v in zip(row, other, values) if a and a == b]
            opposite = [(a, v) for a, b, v in zip(row, other, values) if a and a != b]
            if len(equal) + len(opposite) < 3 or not equal or not opposite:
                continue
            same, different = combine(equal), combine(opposite)
            found[first] = combine([(1.0, same), (1.0, different)])
            found[second] = combine([(1.0, same), (-1.0, different)])
        if first not in found:
            found[first] = combine([(a, v) for a, v in zip(row, values) if a])
    return [found[i] for i in range(len(rows))]


def in_order(terms: Sequence[tuple[float, Value]]) -> list[tuple[float, Value]]:
    """The terms of a sum in the order in which they are added: first one that needs no product."""
    return sorted(terms, key=lambda term: term[0] != 1)


def count_steps(rows: Rows) -> int:
    """The additions and multiply-adds that `apply_rows` takes for one vector."""
    total = 0

    def combine(terms: Sequence[tuple[float, int]]) -> int:
        nonlocal total
        total += max(len(terms) - 1, 0) + all(abs(factor) != 1 for factor, _ in terms)
        return 0

    apply_rows(rows, [0] * len(rows[0]), combine)
    return total
