"""Packing: items that are alive for a given time get offsets, and two that are alive together share no byte.

`pack` answers for a capacity: offsets, a proof that none exist, or that neither was found in time. `pack_least` looks for the least
capacity, and says how near it came. Assumes nothing of the items: what makes no sense is an ArgumentError that names the item.
Guarantees: offsets are valid (the search is native, csrc/solver/; `checker.py` is there to distrust it), "impossible" is proven by
exhaustion, and limits of nodes instead of seconds make the answer a function of the arguments. A limit of 0 takes what is instant:
the best of several greedy packings. Ctrl-C ends a search with KeyboardInterrupt.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from ..ir.errors import ArgumentError
from ._solver import fit, fit_greedily, lower_bound

LARGEST = 2**60  # of moments, capacities, and all sizes together: sums of them stay within 64 bits
UNLIMITED = 2**62
Verdict = Literal["packed", "impossible", "unknown"]


class Item(Struct, frozen=True):
    """Alive from the moment `lower` until just before `upper`; `size` bytes at a multiple of `alignment`."""

    lower: int
    upper: int
    size: int
    alignment: int = 1


class Packing(Struct, frozen=True):
    """`offsets` of the items in their order, none unless packed; `height` is what they take, and `bound` what any packing takes,
    for which there is a proof. `nodes` counts places of the search tree."""

    verdict: Verdict
    offsets: tuple[int, ...]
    height: int
    bound: int
    nodes: int

    @property
    def proven(self) -> bool:
        """Whether nothing is left open: a least packing, or none."""
        return self.verdict == "impossible" or (self.verdict == "packed" and self.height == self.bound)


def pack(items: Sequence[Item], capacity: int, *, seconds: float = math.inf, nodes: int = UNLIMITED) -> Packing:
    """Offsets within the capacity, or a proof that there are none, or neither within the limits."""
    rows = _checked(items)
    capacity = _whole(capacity, "capacity", 1)
    _check_limits(seconds, nodes)
    return _fit(_Rows(rows), capacity, nodes, seconds)


def pack_least(items: Sequence[Item], *, seconds: float = math.inf, nodes: int = UNLIMITED) -> Packing:
    """Offsets that take as little as is found within the limits, and a proven bound below which nothing is possible.

    Half of what is left of the limits goes into each capacity tried: first the bound, which mostly suffices, then by bisection.
    """
    rows = _Rows(_checked(items))
    _check_limits(seconds, nodes)
    end = time.monotonic() + seconds
    best = _greedily(rows)
    bound = target = lowest = best.bound  # nothing below `lowest` is left to try
    left, spent = nodes, 0
    while lowest < best.height and left > 0 and (remaining := end - time.monotonic()) > 0:
        found = _fit(rows, target, (left + 1) // 2, remaining / 2)
        left, spent = left - max(found.nodes, 1), spent + found.nodes
        if found.verdict == "packed":
            best = found
        else:
            lowest = rows.up(target + 1)
        if found.verdict == "impossible":
            bound = max(bound, lowest)
        target = max(lowest, rows.down((lowest + best.height) // 2))
    return Packing("packed", best.offsets, best.height, bound, spent)


# --- in units of what divides every offset ------------------------------------------------------------------------------------


class _Rows:
    """Items as the solver takes them. Every offset that matters is a sum of sizes, rounded up to alignments: `step` divides it."""

    def __init__(self, rows: list[tuple[int, int, int, int]]) -> None:
        self.rows = rows
        self.unit = unit = math.gcd(*(alignment for _, _, _, alignment in rows)) or 1
        sizes = math.gcd(*(size for _, _, size, _ in rows)) or 1
        self.step = math.gcd(sizes, *(alignment for _, _, _, alignment in rows if sizes % alignment))
        self.rounded = [(lower, upper, -(-size // unit) * unit, alignment) for lower, upper, size, alignment in rows]

    def within(self, capacity: int) -> list[tuple[int, int, int, int]]:
        """Where the capacity is a multiple of `unit`, as all offsets are, so may sizes be: the same packings, a better bound."""
        return self.rounded if capacity % self.unit == 0 else self.rows

    def up(self, capacity: int) -> int:
        return -(-capacity // self.step) * self.step

    def down(self, capacity: int) -> int:
        return capacity // self.step * self.step

    def height(self, offsets: Sequence[int]) -> int:
        return max((offset + row[2] for offset, row in zip(offsets, self.rows)), default=0)


def _fit(rows: _Rows, capacity: int, nodes: int, seconds: float) -> Packing:
    verdict, offsets, spent = fit(rows.within(capacity), capacity, nodes if seconds > 0 else 0, min(seconds, 1e9))
    height = rows.height(offsets) if verdict == "packed" else 0
    bound = lower_bound(rows.rows)
    match verdict:
        case "packed":
            return Packing("packed", tuple(offsets), height, min(bound, height), spent)
        case "impossible":
            return Packing("impossible", (), 0, max(bound, capacity + 1), spent)
        case _:
            return Packing("unknown", (), 0, bound, spent)


def _greedily(rows: _Rows) -> Packing:
    offsets = fit_greedily(rows.rows)
    return Packing("packed", tuple(offsets), rows.height(offsets), lower_bound(rows.rows), 0)


# --- arguments -------------------------------------------------------------------------------------------------------------


def _checked(items: Sequence[Item]) -> list[tuple[int, int, int, int]]:
    rows = []
    total = 0
    for number, item in enumerate(items):
        where = f"item {number}: "
        lower, upper = _whole(item.lower, where + "lower", -LARGEST), _whole(item.upper, where + "upper", -LARGEST)
        if lower >= upper:
            raise ArgumentError(f"{where}it is alive from {lower} to {upper}, expected upper > lower",
                                hint="upper is the first moment at which it is no longer alive")
        size, alignment = _whole(item.size, where + "size", 1), _whole(item.alignment, where + "alignment", 1)
        rows.append((lower, upper, size, alignment))
        total += size + alignment
    if total > LARGEST:
        raise ArgumentError(f"packing: the sizes and alignments of {len(rows)} items sum to {total}, expected at most {LARGEST}")
    return rows


def _whole(value: int, what: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{what} is {value!r}, expected a whole number") from None
    if not least <= number <= LARGEST:
        raise ArgumentError(f"{what} is {number}, expected {least} to {LARGEST}")
    return number


def _check_limits(seconds: float, nodes: int) -> None:
    if not seconds >= 0:
        raise ArgumentError(f"time limit is {seconds} seconds, expected 0 or more", hint="0 takes what is instant")
    if nodes < 0:
        raise ArgumentError(f"limit is {nodes} nodes, expected 0 or more", hint="0 takes what is instant")
