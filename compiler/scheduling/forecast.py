"""What is still to be paid, at least: a lower bound for what remains of a schedule, for best-first search and as a bound of its own.

A tensor crosses an operator if it exists before and is read after it in every order. Where what an operator needs and
what crosses it exceed the room, some of the latter must be off the chip meanwhile: the cheapest set that frees enough is a
bound. Operators that no tensor crosses twice are added up. Sound for every order, since only relations that all orders share are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from .space import NEVER, Space, State, bits

FEW = 10  # tensors of which all sets are tried; above, parts of tensors may leave, which bounds from below


class Forecast:
    """The bound for what remains until `goal` is done, for the states of one search."""

    def __init__(self, space: Space, goal: int, start: int = 0) -> None:
        self.space = space
        self.known: dict[tuple[int, int, int, int], int] = {}
        self.rows: list[tuple[int, int, int]] = []  # operator, what crosses it, excess in units
        priced = []
        for o in bits(goal & ~start):
            crossing = space.crossing(o)
            excess = space.least_units[o] + space.total(crossing) - space.rooms[o]
            if excess > 0 and crossing:
                priced.append((self._least(o, crossing, space.stored, excess), o, crossing, excess))
        taken = 0
        for _, o, crossing, excess in sorted(priced, reverse=True):
            if not crossing & taken:
                taken |= crossing
                self.rows.append((o, crossing, excess))

    def remaining(self, state: State) -> int:
        """No way from here to the goal costs less."""
        done, resident, clean = state
        total = 0
        for o, crossing, excess in self.rows:
            if done >> o & 1:
                continue
            away = crossing & ~resident & self.space.made(done)
            missing = excess - self.space.total(away) if away else excess
            if missing > 0:
                total += self._least(o, crossing & ~away, (clean | self.space.stored) & crossing, missing)
        return total

    def after(self, goal: int) -> int:
        """What is paid behind the goal at least, whatever the state in which it is reached: by tensors that none of it touches."""
        made = self.space.made(goal)
        return sum(self._least(o, crossing, self.space.stored & crossing, excess) for o, crossing, excess in self.rows
                   if not goal >> o & 1 and not crossing & made)

    def _least(self, operator: int, candidates: int, clean: int, missing: int) -> int:
        """The cost of the cheapest set of candidates that frees that many units."""
        key = (operator, candidates, clean & candidates, missing)
        found = self.known.get(key)
        if found is None:
            space = self.space
            rows = [(space.units[t], space.bytes[t] * (1 if clean >> t & 1 else 2)) for t in bits(candidates)]
            found = self.known[key] = cheapest(rows, missing)
        return found


def cheapest(rows: Sequence[tuple[int, int]], missing: int) -> int:
    """(units, cost) rows: the least cost of rows with that many units in all, or a bound from below where there are many rows."""
    if sum(units for units, _ in rows) < missing:
        return NEVER >> 8  # cannot be: the operator does not fit
    if len(rows) > FEW:
        cost = 0.0
        for units, price in sorted(rows, key=lambda row: row[1] / row[0]):
            part = min(1.0, missing / units)
            cost += part * price
            missing -= units
            if missing <= 0:
                break
        return int(cost)
    return min(sum(price for _, price in chosen) for count in range(1, len(rows) + 1) for chosen in combinations(rows, count)
               if sum(units for units, _ in chosen) >= missing)
