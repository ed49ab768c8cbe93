"""What is still to be paid, at least: a lower bound for what remains of a schedule, for best-first search and as a bound of its own.

A tensor crosses an operator if it exists before and is read after it in every order. Where what an operator needs and
what crosses it exceed the room, some of the latter must be off the chip meanwhile: the cheapest set that frees enough is a
bound. Operators are added up: a tensor that crosses several costs at one of them, and is away for nothing at the others. Sound for every
order, since only relations that all orders share are used.
"""

from __future__ import annotations

from collections.abc import Sequence

from .space import NEVER, Space, State, bits

SUMS = 500  # of units that are told apart


class Forecast:
    """The bound for what remains until `goal` is done, for the states of one search."""

    def __init__(self, space: Space, goal: int, start: int = 0) -> None:
        self.space = space
        self.known: dict[tuple[int, int, int, int], int] = {}
        self.rows: list[tuple[int, int, int]] = []  # operator, what crosses it and costs there, units of that which must leave
        priced = []
        for o in bits(goal & ~start):
            crossing = space.crossing[o]
            excess = space.least_units[o] + space.total(crossing) - space.rooms[o]
            if excess > 0 and crossing:
                priced.append((self._least(o, crossing, space.stored, excess), o, crossing, excess))
        taken = 0
        for _, o, crossing, excess in sorted(priced, reverse=True):
            excess -= space.total(crossing & taken)
            if excess > 0:
                self.rows.append((o, crossing & ~taken, excess))
                taken |= crossing

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


def cheapest(rows: Sequence[tuple[int, int]], missing: int, grain: int = 1) -> int:
    """(units, cost) rows: the least cost of rows with that many units in all. Knapsack by lists of sums (Nemhauser and Ullmann, Discrete
    Dynamic Programming and Capital Allocation, 1969); where there are too many, units are rounded up to a coarser grain, which bounds from
    below."""
    wanted = -(-missing // grain)
    sums = {0: 0}  # the least cost of so many units
    for units, price in rows:
        more = dict(sums)
        for freed, cost in sums.items():
            there = min(wanted, freed - -units // grain)
            if cost + price < more.get(there, NEVER):
                more[there] = cost + price
        sums, least = {}, NEVER
        for freed in sorted(more, reverse=True):
            if more[freed] < least:
                sums[freed] = least = more[freed]
        if len(sums) > SUMS:
            return cheapest(rows, missing, 4 * grain)
    return sums.get(wanted, NEVER >> 8)  # that: can not be, the operator does not fit
