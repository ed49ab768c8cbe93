"""A problem as bit sets and arrays: what searches, bounds and baselines compute with.

Operators and tensors are bits of integers. Sizes are counted in units of the alignment, costs in bytes. Tensors that take no
place are left out, and so are pinned ones: the room is what these leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy

from .problem import VALUE, Problem, rounded

State = tuple[int, int, int]  # operators done, tensors in the scratchpad, those of them that are off the chip too
NEVER = 1 << 62               # a cost that nothing has


def bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Space:
    """A problem as bit sets and arrays. `rooms` gives each operator units of room of its own, where a placement asks for that."""

    def __init__(self, problem: Problem, budget: int, alignment: int, rooms: Mapping[int, int] | None = None) -> None:
        self.problem = problem
        pinned = set(problem.pinned)
        self.pinned_units = sum(rounded(problem.tensors[t].bytes, alignment) for t in pinned) // alignment
        self.room = budget // alignment - self.pinned_units
        self.rooms = [self.room - (rooms or {}).get(o, 0) for o in range(len(problem.operators))]
        self.units = [0 if t in pinned else rounded(x.bytes, alignment) // alignment for t, x in enumerate(problem.tensors)]
        self.bytes = [0 if t in pinned else x.bytes for t, x in enumerate(problem.tensors)]
        placed = sum(1 << t for t in range(len(self.units)) if self.units[t])  # what takes no place is always there
        self.inputs = [sum(1 << t for t in o.inputs) & placed for o in problem.operators]
        self.outputs = [sum(1 << t for t in o.outputs) & placed for o in problem.operators]
        self.need = [a | b for a, b in zip(self.inputs, self.outputs)]
        self.need_units = [self.total(mask) for mask in self.need]
        self.over = [self._over(number) for number in range(len(problem.operators))]
        self.saved = [self.units[o.outputs[0]] if over else 0 for o, over in zip(problem.operators, self.over)]
        self.least_units = [need - saved for need, saved in zip(self.need_units, self.saved)]
        self.aliased = any(self.over) or any(o.joined for o in problem.operators)
        self.consumers = [sum(1 << o for o in readers) for readers in problem.consumers]
        self.before = [sum(1 << p for p in {problem.producer[t] for t in o.inputs} if p >= 0) for o in problem.operators]
        self.all = (1 << len(problem.operators)) - 1
        for one, other in [*self._twins(), *self._late()]:
            self.before[other] |= 1 << one
        self.stored = sum(1 << t for t, x in enumerate(problem.tensors) if x.kind != VALUE) | sum(1 << t for t in problem.results)
        self.kept = [self._kept(number) for number in range(len(problem.operators))]
        self.above, self.below = self._relations()
        self._made: dict[int, int] = {}
        self._crossing: list[int] | None = None

    def _twins(self) -> Iterator[tuple[int, int]]:
        """Operators of which one may as well run before the other: they read the same, and the same read their only results of one size."""
        last: dict[tuple[object, ...], int] = {}
        joined = {t for o in self.problem.operators for group in o.joined for t in group}
        for number, o in enumerate(self.problem.operators):
            if len(o.outputs) == 1 and o.outputs[0] not in joined:
                t = o.outputs[0]
                kind = (o.inputs, o.in_place, o.joined, self.problem.tensors[t].bytes, t in self.problem.results, self.problem.consumers[t],
                        tuple(t in self.problem.operators[c].in_place for c in self.problem.consumers[t]))
                if kind in last:
                    yield last[kind], number
                last[kind] = number

    def _late(self) -> Iterator[tuple[int, int]]:
        """Operators without operands may as well wait for all that every reader of their results waits for: beside what is there when the
        first of these runs, it finds room for its operands and its results."""
        joined = {t for o in self.problem.operators for group in o.joined for t in group}
        kept = joined.union(self.problem.results)
        above, _ = self._relations()
        for number, o in enumerate(self.problem.operators):
            readers = {c for t in o.outputs for c in self.problem.consumers[t]}
            alike = len({self.problem.consumers[t] for t in o.outputs}) == 1
            if alike and readers and not self.inputs[number] and not self.before[number] and not kept.intersection(o.outputs):
                common = self.all
                for reader in readers:
                    common &= above[reader]
                yield from ((other, number) for other in bits(common) if other < number)

    def _over(self, operator: int) -> int:
        """Operands that the first result may lie over, large enough to hold it."""
        row = self.problem.operators[operator]
        return sum(1 << t for t in row.in_place if self.units[t] >= self.units[row.outputs[0]] > 0)

    def _kept(self, operator: int) -> tuple[int, int]:
        """Units of the results that are read again, and what it costs to let all of them leave and come back."""
        kept = [t for t in bits(self.outputs[operator]) if self.consumers[t]]
        return sum(self.units[t] for t in kept), sum(self.bytes[t] * (1 if self.stored >> t & 1 else 2) for t in kept)

    def _relations(self) -> tuple[list[int], list[int]]:
        """For each operator those that every order runs before it, and those after it."""
        count = len(self.before)
        above, below = [0] * count, [0] * count
        for o in range(count):
            for p in bits(self.before[o]):
                above[o] |= above[p] | 1 << p
        for o in range(count - 1, -1, -1):
            for p in bits(self.before[o]):
                below[p] |= below[o] | 1 << o
        return above, below

    def related(self, one: int, other: int) -> bool:
        """Whether all orders run them in the same order."""
        return bool((self.above[one] | self.below[one]) >> other & 1)

    def ordered(self, one: int, other: int) -> Space:
        """The same with one operator before another that it stands in no relation to."""
        found = copy(self)
        found._crossing = None
        found.before, found.above, found.below = list(self.before), list(self.above), list(self.below)
        found.before[other] |= 1 << one
        up, down = self.above[one] | 1 << one, self.below[other] | 1 << other
        for o in bits(down):
            found.above[o] |= up
        for o in bits(up):
            found.below[o] |= down
        return found

    @property
    def crossing(self) -> list[int]:
        """For each operator the tensors that exist before it and are read after it in every order, and that it does not need itself."""
        if self._crossing is None:
            order = sorted(range(len(self.before)), key=lambda o: self.above[o].bit_count())
            known, later = [0] * len(order), [0] * len(order)
            for o in order:
                for p in bits(self.before[o]):
                    known[o] |= known[p] | self.need[p]
            for o in reversed(order):
                for p in bits(self.before[o]):
                    later[p] |= later[o] | self.inputs[o]
            self._crossing = [known[o] & later[o] & ~self.need[o] for o in range(len(order))]
        return self._crossing

    def made(self, done: int) -> int:
        """Tensors that those operators computed or read."""
        found = self._made.get(done)
        if found is None:
            found = 0
            for o in bits(done):
                found |= self.need[o]
            self._made[done] = found
        return found

    def total(self, mask: int) -> int:
        units = self.units
        count = 0
        while mask:
            low = mask & -mask
            count += units[low.bit_length() - 1]
            mask ^= low
        return count

    def total_bytes(self, mask: int) -> int:
        return sum(self.bytes[t] for t in bits(mask))

    def dying(self, done: int, operator: int) -> bool:
        """Whether the result may lie over an operand that is not read again."""
        return any(not self.consumers[t] & ~done & ~(1 << operator) for t in bits(self.over[operator]))

    def during(self, done: int, operator: int, there: int) -> int:
        """Units taken while an operator runs beside what is there, where its result lies over an operand if one dies."""
        return self.beside(done, operator, there, self.total(there))

    def beside(self, done: int, operator: int, there: int, taken: int) -> int:
        """The same where it is known how many units are taken by what is there."""
        units = taken + self.total(self.need[operator] & ~there)
        return units - self.saved[operator] if self.over[operator] and self.dying(done, operator) else units

    def price(self, state: State, operator: int, evicted: int) -> int:
        """Bytes for evictions before an operator: out unless it is off the chip too, and back. Operands among them are overwritten."""
        away = self.inputs[operator] & ~state[1]  # fetched for this operator: they are off the chip
        return self.total_bytes(evicted) + self.total_bytes(evicted & ~(state[2] | away))

    def ready(self, done: int, goal: int) -> list[int]:
        """The operators that can run next; nothing behind one that did not run is looked at."""
        found = []
        rest = goal & ~done
        while rest:
            low = rest & -rest
            o = low.bit_length() - 1
            if not self.before[o] & ~done:
                found.append(o)
            rest &= ~(low | self.below[o])
        return found

    def after(self, state: State, operator: int, evicted: int) -> State:
        """The state when the operator has run; operands among the evicted were overwritten by its result."""
        done, resident, clean = state
        done |= 1 << operator
        fetched = self.inputs[operator] & ~resident
        resident = (resident & ~evicted | self.need[operator]) & ~(evicted & self.inputs[operator])
        resident = self.read_later(resident, operator, done)
        return done, resident, (clean | fetched | self.stored) & resident

    def read_later(self, lived: int, operator: int, done: int) -> int:
        """What still lives behind an operator, which is done with those before it: only what it needed can have died."""
        for t in bits(self.need[operator]):
            if not self.consumers[t] & ~done:
                lived &= ~(1 << t)
        return lived


def cuts(space: Space) -> list[int]:
    """Operators done (bit sets) that every order comes through: up to each operator that stands in a relation to all others."""
    found = {space.above[o] | 1 << o for o in range(len(space.before)) if space.above[o] | space.below[o] | 1 << o == space.all}
    return sorted({*found, space.all}, key=int.bit_count)
