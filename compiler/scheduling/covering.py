"""Replacement for an order of operators, as a covering problem: which stays between two uses end early, so that at each operator enough
room is left, at the least cost.

Greedy by room for the price, what turned out superfluous taken back; then again without each choice in turn, as long as that gains
(ruin and recreate: Schrimpf et al., Record Breaking Optimization Results Using the Ruin and Recreate Principle, 2000). Not exact, unlike
`heuristics.best_for_order`, but quick where very many sets of tensors might leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from msgspec import Struct

from .search import Move
from .space import Space, bits

TRIED = 400  # choices that are taken back


class Gap(Struct, frozen=True):
    """A tensor between two uses: the operator before which it may leave, by its place in the order, and the tight moments that gain by it,
    from one to before another."""

    tensor: int
    place: int
    first: int
    last: int


class _Cover:
    """The gaps of an order, and what each tight moment lacks."""

    def __init__(self, space: Space, order: Sequence[int]) -> None:
        self.space = space
        spans, lacking = stays(space, order)
        tight = [moment for moment, units in enumerate(lacking) if units > 0]
        self.lacking = [lacking[moment] for moment in tight]
        before = [0] * (len(order) + 1)  # tight moments before each
        for moment in range(len(order)):
            before[moment + 1] = before[moment] + (lacking[moment] > 0)
        rows = [Gap(t, begin, before[begin], before[end]) for t, begin, end in spans]
        self.gaps = [gap for gap in rows if gap.first < gap.last]

    def price(self, number: int, written: Collection[int]) -> int:
        """Of one more gap, where those tensors are written off the chip for others."""
        t = self.gaps[number].tensor
        return self.space.bytes[t] * (1 if self.space.stored >> t & 1 or t in written else 2)

    def cost(self, taken: set[int]) -> int:
        tensors = {self.gaps[n].tensor for n in taken}
        return (sum(self.space.bytes[self.gaps[n].tensor] for n in taken)
                + sum(self.space.bytes[t] for t in tensors if not self.space.stored >> t & 1))

    def covered(self, kept: set[int], without: int) -> set[int] | None:
        """Gaps that make enough room, those kept among them as far as they are needed; None where that can not be."""
        taken = set(kept)
        lacking = list(self.lacking)
        for n in taken:
            self.free(lacking, n, 1)
        written = {self.gaps[n].tensor for n in taken}
        while any(units > 0 for units in lacking):
            best, chosen = 0.0, -1
            for n, gap in enumerate(self.gaps):
                if n in taken or n == without:
                    continue
                units = self.space.units[gap.tensor]
                gain = sum(min(units, missing) for missing in lacking[gap.first:gap.last] if missing > 0)
                if gain and gain / self.price(n, written) > best:
                    best, chosen = gain / self.price(n, written), n
            if chosen < 0:
                return None
            taken.add(chosen)
            written.add(self.gaps[chosen].tensor)
            self.free(lacking, chosen, 1)
        uses = Counter(self.gaps[n].tensor for n in taken)
        several = {t for t, count in uses.items() if count > 1}
        for n in sorted(taken, key=lambda n: -self.price(n, several)):
            gap = self.gaps[n]
            if all(missing + self.space.units[gap.tensor] <= 0 for missing in lacking[gap.first:gap.last]):
                taken.remove(n)
                self.free(lacking, n, -1)
        return taken

    def free(self, lacking: list[int], number: int, times: int) -> None:
        gap = self.gaps[number]
        for moment in range(gap.first, gap.last):
            lacking[moment] -= times * self.space.units[gap.tensor]


def stays(space: Space, order: Sequence[int]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """(tensor, from, to) for the moments at which it is kept for a later use, and the units that each moment lacks with all kept."""
    spans: list[tuple[int, int, int]] = []
    used: dict[int, int] = {}
    lacking: list[int] = []
    done = alive = 0
    for moment, operator in enumerate(order):
        lacking.append(space.during(done, operator, alive) - space.rooms[operator])
        for t in bits(space.need[operator]):
            if t in used and moment > used[t] + 1:
                spans.append((t, used[t] + 1, moment))
            used[t] = moment
        done |= 1 << operator
        alive = space.read_later(alive | space.need[operator], operator, done)
    return spans, lacking


def covering(space: Space, order: Sequence[int], most: int = TRIED) -> tuple[int, tuple[Move, ...]] | None:
    """A good replacement for an order, with its cost; None where none was found. So many choices are taken back at most."""
    cover = _Cover(space, order)
    best = cover.covered(set(), -1)
    if best is None:
        return None
    cost, tried, gained = cover.cost(best), 0, True
    while gained and tried < most:
        gained = False
        for n in sorted(best, key=lambda n: -space.bytes[cover.gaps[n].tensor]):
            tried += 1
            other = cover.covered(best - {n}, n) if tried <= most and n in best else None
            if other is not None and cover.cost(other) < cost:
                best, cost, gained = other, cover.cost(other), True
    evicted = [0] * len(order)
    for n in best:
        evicted[cover.gaps[n].place] |= 1 << cover.gaps[n].tensor
    return cost, tuple(Move(operator, gone) for operator, gone in zip(order, evicted))
