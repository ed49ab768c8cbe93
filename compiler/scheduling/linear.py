"""A linear arena with replacement: the schedules that COSMA compares itself with, for a fixed order of operators.

TensorFlow Lite's arena gives a tensor the smallest gap that holds it among what is alive, else the place behind all (`SimpleMemoryArena`);
it knows neither a capacity nor eviction. In a scratchpad tensors are placed like that as the operators come, and where there is no gap,
tensors leave: by Belady's rule the one that is needed last, again and again until there is a gap (`belady`), or those that cost
least for the gap that they leave together (`least`, a decision that is best for this moment alone). Tensors do not move while they are
there. Where operands themselves leave no gap for a result, the cheapest of them leave and return elsewhere.

Every schedule is complete and within the room, as long as each operator is; what fragmentation costs is in its account.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

from .placing import fixed_places
from .problem import Fetch, Free, Run, Schedule, Spill, Step
from .space import Space, bits

RULES = {"belady": "Belady", "least": "least at the moment"}
FEW = 8       # operands of which all sets may move
FEW_PLACED = 4  # tensors that are placed in all orders when operands move

Places = dict[int, int]  # tensor -> address in units


def linear_schedule(space: Space, order: Sequence[int], rule: str, alignment: int) -> Schedule:
    """The schedule of an order by one of RULES."""
    arena = _Arena(space, order, rule, alignment)
    for operator in order:
        arena.run(operator)
    return Schedule(tuple(arena.steps))


class _Arena:
    """The scratchpad while the operators come."""

    def __init__(self, space: Space, order: Sequence[int], rule: str, alignment: int) -> None:
        self.space, self.rule, self.alignment = space, rule, alignment
        self.moment = {o: moment for moment, o in enumerate(order)}
        self.steps: list[Step] = []
        self.base = fixed_places(space, self.steps, alignment)
        self.places: Places = {}
        self.off_chip = {t for t in range(len(space.units)) if space.problem.producer[t] < 0}
        self.done = 0

    def run(self, operator: int) -> None:
        space, row = self.space, self.space.problem.operators[operator]
        wanted = [t for t in (*row.inputs, *row.outputs) if space.units[t]]
        coming = [t for t in wanted if t not in self.places]
        for t in coming:
            if not self.place(t, set(wanted)):
                self.rearrange(wanted, coming)
                break
        self.steps += [Fetch(t, self.address(t)) for t in coming if t not in row.outputs]
        self.steps.append(Run(operator, tuple(self.address(t) if space.units[t] else 0 for t in row.outputs)))
        self.done |= 1 << operator
        for t in row.outputs:
            if t in space.problem.results:
                self.spill(t)
        for t in wanted:
            if not space.consumers[t] & ~self.done:
                self.steps.append(Free(t))
                del self.places[t]

    def address(self, tensor: int) -> int:
        return (self.base + self.places[tensor]) * self.alignment

    def place(self, tensor: int, wanted: set[int]) -> bool:
        """A place for the tensor, others leaving for it where needed; False: what the operator itself wants leaves no gap."""
        units = self.space.units[tensor]
        while True:
            address = gap(self.places, self.space, units)
            if address is not None:
                self.places[tensor] = address
                return True
            leaving = self.next_to_leave(units, wanted)
            if not leaving:
                return False
            for t in leaving:
                self.evict(t)

    def next_to_leave(self, units: int, wanted: set[int]) -> list[int]:
        others = [t for t in self.places if t not in wanted]
        if self.rule == "belady":
            return [max(others, key=lambda t: (self.next_use(t), t))] if others else []
        starts = {0, self.space.room - units}
        for t, address in self.places.items():
            starts |= {address + self.space.units[t], address - units}
        best: tuple[int, int, list[int]] | None = None
        for start in starts:
            if not 0 <= start <= self.space.room - units:
                continue
            met = [t for t, a in self.places.items() if a < start + units and start < a + self.space.units[t]]
            if not wanted.intersection(met):
                row = (sum(map(self.price, met)), start, met)
                best = row if best is None or row[:2] < best[:2] else best
        return [] if best is None else best[2]

    def next_use(self, tensor: int) -> int:
        return min(self.moment[o] for o in bits(self.space.consumers[tensor] & ~self.done))

    def price(self, tensor: int) -> int:
        return self.space.bytes[tensor] * (1 if tensor in self.off_chip else 2)

    def rearrange(self, wanted: list[int], coming: list[int]) -> None:
        """All others leave, and of the operands the cheapest set for which there are places; all of them, where many are there."""
        for t in [t for t in self.places if t not in wanted]:
            self.evict(t)
        for t in coming:
            self.places.pop(t, None)
        there = list(self.places)
        sets = [s for count in range(len(there)) for s in combinations(there, count)] if len(there) <= FEW else []
        for moving in [*sorted(sets, key=lambda s: (sum(map(self.price, s)), s)), tuple(there)]:
            found = self.arranged({t: a for t, a in self.places.items() if t not in moving}, [*moving, *coming])
            if found is not None:
                for t in moving:
                    self.evict(t)
                coming[:0] = moving
                self.places = found
                return
        raise AssertionError("an operator that fits alone was given no place")

    def arranged(self, places: Places, coming: Sequence[int]) -> Places | None:
        """Places for those that come, beside those that stay."""
        units = self.space.units
        orders = permutations(coming) if len(coming) <= FEW_PLACED else [sorted(coming, key=lambda t: -units[t])]
        for order in orders:
            found = dict(places)
            for t in order:
                address = gap(found, self.space, units[t])
                if address is None:
                    break
                found[t] = address
            else:
                return found
        return None

    def evict(self, tensor: int) -> None:
        if tensor not in self.off_chip:
            self.spill(tensor)
        self.steps.append(Free(tensor))
        del self.places[tensor]

    def spill(self, tensor: int) -> None:
        self.steps.append(Spill(tensor))
        self.off_chip.add(tensor)


def gap(places: Places, space: Space, units: int) -> int | None:
    """The smallest gap between tensors that is large enough, else the place behind all, if it is within the room."""
    best: tuple[int, int] | None = None
    behind = 0
    for begin, end in sorted((a, a + space.units[t]) for t, a in places.items()):
        if begin - behind >= units and (best is None or begin - behind < best[0]):
            best = begin - behind, behind
        behind = max(behind, end)
    if best is not None:
        return best[1]
    return behind if behind + units <= space.room else None
