"""Order and residency by best-first search, without addresses: the least excess bytes where it runs to its end, else a bound.

A state says which operators ran, which tensors that are still needed lie in the scratchpad, and which of these are also off the
chip (clean). Operators run one after another; before one runs, what it reads is fetched, and what must make room is evicted.
Three arguments keep this exact. Fetching and evicting as late as possible costs nothing. A tensor that is evicted while it is
needed has to be fetched again, so both transfers are charged when it leaves, and fetching is free. One state is as good as
another with the same operators done if the second can be reached from it by evictions, spills and fetches at the difference in
cost (`dominated`). An operator that lessens what is needed, and costs nothing, runs at once (`_safe`).

Tensors that take as much, cost as much and are read by the same operators are interchangeable: one choice among them is tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush

from msgspec import Struct

from .forecast import Forecast
from .space import NEVER, Space, State, bits, cuts

MOST_EVICTIONS = 4000         # choices of what makes room for one operator
REMEMBERED = 64               # states with the same operators done that a new one is compared with


class Limits(Struct, frozen=True):
    """When a search gives up: at a moment of `time.monotonic`, after so many states, or above a cost that is known to be reached."""

    deadline: float = float("inf")
    states: int = NEVER
    cost: int = NEVER


class Move(Struct, frozen=True):
    """An operator runs, after these tensors (a bit set) made room; its operands among them are overwritten by its result."""

    operator: int
    evicted: int


class End(Struct, frozen=True):
    """A state in which the goal is done, which of the starts it was reached from, and how."""

    cost: int
    state: State
    start: int
    moves: tuple[Move, ...]


class Found(Struct):
    """`ends`: cheapest first. `missing`: nothing cheaper than this was left out (NEVER: nothing at all); so no way costs less
    than `bound`."""

    ends: list[End]
    missing: int
    states: int

    @property
    def bound(self) -> int:
        return min(self.missing, self.ends[0].cost if self.ends else NEVER)


def search(space: Space, goal: int, starts: Sequence[tuple[int, State]], limits: Limits, order: Sequence[int] | None = None,
           ends: int = 1, progress: Callable[[int], None] | None = None) -> Found:
    """The cheapest ways from the starts (with their costs) to states in which exactly `goal` is done; up to `ends` of them,
    none as good as another. With an `order`, operators run in it."""
    run = _Run(space, goal, starts, limits, order)
    run.go_on(ends, progress)
    return Found(run.found, run.missing, len(run.states))


def beam(space: Space, goal: int, starts: Sequence[tuple[int, State]], width: int, limits: Limits) -> list[End]:
    """Good ways, fast: of all states with as many operators done, the `width` best go on. Empty when time ran out."""
    run = _Run(space, goal, starts, limits, None)
    while run.heap and -run.heap[0][1] < goal.bit_count():
        if time.monotonic() > limits.deadline:
            return []
        level = min(-row[1] for row in run.heap)
        here = sorted((row for row in run.heap if -row[1] == level), key=lambda row: (row[0], space.total(run.states[row[2]][1])))
        run.heap = [row for row in run.heap if -row[1] != level]
        kept = 0
        for _, _, index in here:
            cost = run.costs[index]
            if kept < width and run.best[run.states[index]] == cost and not run.dominated(cost, run.states[index]):
                kept += 1
                run.expand(cost, index)
        run.settled.clear()
    return [run.end(run.costs[index], index) for _, _, index in sorted(run.heap)]


class _Run:
    """One search while it runs: the states met, how each was reached, and the heap of those to go on from."""

    def __init__(self, space: Space, goal: int, starts: Sequence[tuple[int, State]], limits: Limits, order: Sequence[int] | None) -> None:
        self.space, self.goal, self.limits = space, goal, limits
        self.forecast = Forecast(space, goal, starts[0][1][0])
        self.place = None if order is None else {o: i for i, o in enumerate(order)}
        self.states: list[State] = []
        self.costs: list[int] = []
        self.origin: list[tuple[int, Move]] = []
        self.heap: list[tuple[int, int, int]] = []
        self.best: dict[State, int] = {}
        self.settled: dict[int, list[tuple[int, int, int]]] = {}
        self.popped = 0
        self.curtailed = NEVER  # the cost of a state of which not all successors were made
        self.found: list[End] = []
        for number, (cost, state) in enumerate(starts):
            self.push(cost, state, ~number, Move(-1, 0))

    @property
    def missing(self) -> int:
        return min(self.heap[0][0] if self.heap else NEVER, self.curtailed, self.limits.cost)

    def go_on(self, ends: int, progress: Callable[[int], None] | None) -> bool:
        """Best first until so many ends are found; whether all there are, or that many, were before a limit was met."""
        while self.heap and len(self.found) < ends:
            if len(self.states) > self.limits.states or time.monotonic() > self.limits.deadline:
                return False
            popped = self.pop()
            if popped is None:
                continue
            cost, index = popped
            if progress is not None and self.popped % 1024 == 0:
                progress(cost)
            if self.states[index][0] == self.goal:
                self.found.append(self.end(cost, index))
            else:
                self.expand(cost, index)
        return True

    def push(self, cost: int, state: State, parent: int, move: Move) -> None:
        if self.best.get(state, cost + 1) <= cost:
            return
        hoped = cost + self.forecast.remaining(state)
        if hoped >= self.limits.cost:
            return
        self.best[state] = cost
        self.states.append(state)
        self.origin.append((parent, move))
        self.costs.append(cost)
        heappush(self.heap, (hoped, -state[0].bit_count(), len(self.states) - 1))

    def pop(self) -> tuple[int, int] | None:
        _, _, index = heappop(self.heap)
        self.popped += 1
        cost = self.costs[index]
        state = self.states[index]
        if self.best[state] < cost or self.dominated(cost, state):
            return None
        return cost, index

    def end(self, cost: int, index: int) -> End:
        state, moves = self.states[index], []
        while index >= 0:
            index, move = self.origin[index]
            moves.append(move)
        return End(cost, state, ~index, tuple(reversed(moves[:-1])))

    def dominated(self, cost: int, state: State) -> bool:
        """A settled state with the same operators done reaches this one for the difference in cost."""
        done, resident, clean = state
        known = self.settled.setdefault(done, [])
        total = self.space.total_bytes
        for other_cost, other_resident, other_clean in known:
            left = other_resident & ~resident
            if other_cost + total(left) + total((left | resident & other_resident & clean) & ~other_clean) <= cost:
                return True
        if len(known) < REMEMBERED:
            known.append((cost, resident, clean))
        return False

    def expand(self, cost: int, index: int) -> None:
        space, state = self.space, self.states[index]
        done, resident, _ = state
        taken = space.total(resident)
        ready = space.ready(done, self.goal)
        if self.place is not None:
            ready = [min(ready, key=self.place.__getitem__)]
        else:
            safe = next((o for o in ready if self._safe(state, o, taken)), None) if len(ready) > 1 else None
            ready = ready if safe is None else [safe]
        for operator in ready:
            excess = space.beside(done, operator, resident, taken) - space.rooms[operator]
            if excess <= 0:
                self.push(cost, space.after(state, operator, 0), index, Move(operator, 0))
                continue
            for evicted in self._choices(state, operator, excess, cost):
                dearer = cost + space.price(state, operator, evicted)
                self.push(dearer, space.after(state, operator, evicted), index, Move(operator, evicted))

    def _choices(self, state: State, operator: int, excess: int, cost: int) -> Iterator[int]:
        """What may leave before an operator, an operand among it that its result is written over and that returns later."""
        space = self.space
        others = state[1] & ~space.need[operator]
        yield from self._evictions(others, excess, state, cost)
        if space.over[operator] and not space.dying(state[0], operator):
            excess -= space.saved[operator]
            for t in bits(space.over[operator]):
                rest = self._evictions(others, excess, state, cost) if excess > 0 else (0,)
                yield from (evicted | 1 << t for evicted in rest)

    def _safe(self, state: State, operator: int, taken: int) -> bool:
        """Running it now is never worse: all it reads is there, nothing makes room, and its results take and cost no more than
        any of the operands that die with it."""
        space = self.space
        done, resident, clean = state
        rest, later = space.inputs[operator], ~(done | 1 << operator)
        if rest & ~resident:
            return False
        units, cost = space.kept[operator]
        freed, least = 0, NEVER if units else cost
        while rest and units:
            low = rest & -rest
            rest ^= low
            t = low.bit_length() - 1
            if not space.consumers[t] & later:
                freed += space.units[t]
                least = min(least, space.bytes[t] if clean & low else 2 * space.bytes[t])
        return units <= freed and cost <= least and space.beside(done, operator, resident, taken) <= space.rooms[operator]

    def _evictions(self, candidates: int, excess: int, state: State, cost: int) -> Iterator[int]:
        """Sets of tensors that make enough room, none of which could be left out."""
        space = self.space
        groups: dict[tuple[int, int, int], list[int]] = {}
        for t in bits(candidates):
            price = space.bytes[t] * (1 if state[2] >> t & 1 else 2)
            groups.setdefault((space.units[t], price, space.consumers[t] & ~state[0]), []).append(t)
        rows = sorted(groups.items(), key=lambda row: -row[0][0])
        rest = [0] * (len(rows) + 1)
        for number in range(len(rows) - 1, -1, -1):
            rest[number] = rest[number + 1] + rows[number][0][0] * len(rows[number][1])
        if rest[0] < excess:
            return
        count = 0
        stack = [(0, excess, 0, NEVER, cost)]  # row, what is missing, chosen, smallest chosen, cost with these
        while stack:
            number, missing, chosen, smallest, dearer = stack.pop()
            if missing <= 0:
                if smallest > -missing:
                    count += 1
                    yield chosen
                    if count >= MOST_EVICTIONS:
                        self.curtailed = min(self.curtailed, cost)
                        return
                continue
            if number == len(rows) or rest[number] < missing:
                continue
            (units, price, _), members = rows[number]
            mask = 0
            stack.append((number + 1, missing, chosen, smallest, dearer))
            for taken, tensor in enumerate(members, 1):
                mask |= 1 << tensor
                if dearer + taken * price >= self.limits.cost:
                    break
                stack.append((number + 1, missing - taken * units, chosen | mask, min(smallest, units), dearer + taken * price))
                if missing - taken * units <= 0:
                    break


def relaxed(space: Space, limits: Limits, order: Sequence[int] | None = None, progress: Callable[[int], None] | None = None) -> Found:
    """The whole problem; where a limit is met before a cut, from the states there that were found."""
    return Relaxed(space, order).go_on(limits, progress, whole=False)


class Relaxed:
    """The search of the whole problem, from one cut that every order comes through to the next; at each, all states that are not worse.
    It goes on where a limit ended it."""

    def __init__(self, space: Space, order: Sequence[int] | None = None, ends: int = 512) -> None:
        self.space, self.order, self.most = space, order, ends
        self.forecast = Forecast(space, space.all)
        self.goals = cuts(space)[::-1]
        self.ends = [End(0, (0, 0, 0), 0, ())]
        self.missing, self.states = NEVER, 0
        self.run: _Run | None = None

    def go_on(self, limits: Limits, progress: Callable[[int], None] | None = None, whole: bool = True) -> Found:
        """As far as the limits let it: states are counted from one cut to the next, the deadline and the cost may change each time. Ends
        are those of the whole problem, none before it is through."""
        while self.goals:
            goal = self.goals[-1]
            rest = self.forecast.after(goal)
            here = Limits(limits.deadline, limits.states, limits.cost - rest)
            if self.run is None:
                self.run = _Run(self.space, goal, [(e.cost, e.state) for e in self.ends], here, self.order)
            run, run.limits = self.run, here
            through = run.go_on(1 if goal == self.space.all else self.most, progress)
            missing = min(self.missing, run.missing + rest)
            if not run.found or whole and not through:
                return Found([], missing, self.states + len(run.states))
            self.ends = [End(e.cost, e.state, 0, self.ends[e.start].moves + e.moves) for e in run.found]
            self.missing, self.run = missing, None
            self.states += len(run.states)
            self.goals.pop()
        return Found(self.ends, self.missing, self.states)
