"""The whole method: bounds, instant schedules, moved operators, divide and conquer beside the search that proves; the best is always kept.

`solve` gives a schedule that the checker accepted, with a lower bound on the bytes of any schedule. The bound is that of the
problem without addresses, from `search` where it ran to its end, else from `forecast` or `returning`: `proven` says so only where the
schedule moves no byte more. Ctrl-C and the time limit give the best so far. With a time limit of zero only what is instant is tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from msgspec import Struct

from ..ir.errors import CompileError
from . import divide, moving
from .addressed import search_addressed
from .aliasing import separate
from .beyond import NOTHING, Allowed, changed
from .bodies import Stay, by_search, by_size
from .checker import Account, check
from .deciding import decided
from .feedback import strained, tightened
from .forecast import Forecast
from .heuristics import Baseline, Peak, baselines, belady, known_orders, least_peak
from .placing import place, stays_of, steps_of
from .problem import LARGEST, Problem, Schedule, rounded
from .returning import returning
from .search import End, Found, Limits, Move, Relaxed, beam, relaxed
from .slicing import PREFIX
from .space import NEVER, Space

SMALL = 20_000     # states that a first search may take between two cuts
BEAM_WIDTH = 8
BESIDE = 3         # states of the search that proves for one of divide and conquer beside it: about as long
ADDRESSED = 300_000  # states of the search with addresses
FEEDBACKS = 8         # searches with less room where packing failed
SHARE_MOVED = 0.2    # of the time left, for orders in which operators are moved
SHARE_BEAM = 0.1     # of the time left then
SHARE_DIVIDED = 0.6  # of the time left, for divide and conquer and the search beside it
SHARE_DECIDED = 0.2  # of the time left then, for orders that nothing better can have, before the search goes on alone
CHOSEN = ", for the slices and repetitions chosen"  # of a bound: others might need less

Progress = Callable[[str, int, int], None]  # what is being done, excess bytes of the best so far, bound
Change = Callable[[Problem, int, int, Allowed], Problem]  # what becomes of a problem by what is allowed, for a budget and an alignment


class Solution(Struct):
    """`problem` is what the schedule is of: the one given, or what became of it by what is allowed. `account` is the checker's. `bound`:
    excess bytes that no schedule goes below. `peak`: bytes that the problem needs to be scheduled without excess, if packing is perfect,
    and a bound for it. `proven_by` names what proved the bound that is reached. `compared`: the schedules of the baselines, of the
    problem `plain`."""

    problem: Problem
    schedule: Schedule
    account: Account
    bound: int
    proven_by: str
    method: str
    largest: int
    peak: int
    peak_bound: int
    baselines: list[tuple[str, Account]]
    compared: list[Schedule]
    plain: Problem
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def proven(self) -> bool:
        return self.account.excess <= self.bound

    @property
    def gap(self) -> int:
        return max(0, self.account.excess - self.bound)


def working_set(problem: Problem, alignment: int) -> tuple[int, int]:
    """The largest operator: bytes of its operands and results in whole units, with pinned tensors, a result over an operand where
    it may lie there; and which it is (-1: none)."""
    pinned = set(problem.pinned)
    base = sum(rounded(problem.tensors[t].bytes, alignment) for t in pinned)
    units = [rounded(tensor.bytes, alignment) for tensor in problem.tensors]
    sizes = [sum(units[t] for t in {*o.inputs, *o.outputs} - pinned) for o in problem.operators]
    for number, o in enumerate(problem.operators):
        if any(units[t] >= units[o.outputs[0]] for t in o.in_place if t not in pinned):
            sizes[number] -= units[o.outputs[0]]  # where an operand holds it
    return max(((size + base, number) for number, size in enumerate(sizes)), default=(base, -1))


def check_budget(problem: Problem, budget: int, alignment: int) -> None:
    """CompileError where no schedule can exist, naming the operator that proves it."""
    if alignment < 1 or alignment & alignment - 1 or alignment > 1 << 20:
        raise CompileError(f"alignment: found {alignment}, expected a power of two up to {1 << 20}")
    if not 0 < budget <= LARGEST:
        raise CompileError(f"the scratchpad has {budget} bytes, expected 1 to {LARGEST}")
    needed, number = working_set(problem, alignment)
    usable = budget // alignment * alignment
    if needed > usable:
        operator = problem.operators[number]
        parts = [f"{problem.tensors[t].name} {problem.tensors[t].bytes}" for t in (*operator.inputs, *operator.outputs)]
        beside = f", beside {len(problem.pinned)} parameters that stay," if problem.pinned else ""
        raise CompileError(f"operator {operator.name} needs {needed} bytes at once{beside} but the scratchpad has {usable}",
                           hint=f"operands and results with their bytes: {', '.join(parts)}; give at least {needed}")


def solve(problem: Problem, budget: int, alignment: int = 64, seconds: float = 10.0, progress: Progress | None = None,
          allowed: Allowed = NOTHING, compared: Problem | None = None, change: Change = changed) -> Solution:
    """The best schedule found in the time; CompileError where there is none. Baselines are schedules of the problem `compared` (else of the
    one given) by whole operators that share nothing, and so is the answer where nothing better was found with what is allowed.
    `change` does what is allowed."""
    if not seconds >= 0:  # nor is what is no number
        raise CompileError(f"the time limit is {seconds} seconds, expected 0 or more", hint="0 takes what is instant")
    plain = separate(problem if compared is None else compared)
    began = time.monotonic()
    check_budget(plain if allowed == NOTHING else problem, budget if allowed == NOTHING else LARGEST, alignment)
    works = [] if budget < working_set(plain, alignment)[0] else [_Work(plain, budget, alignment, began + seconds, progress, True)]
    if allowed != NOTHING:
        most = change(problem, budget, alignment, allowed)
        if not works or working_set(most, alignment)[0] <= budget:
            check_budget(most, budget, alignment)
            works.append(_Work(most, budget, alignment, began + seconds, progress, False))
    interrupted = False
    try:
        for work in works:
            if min(other.excess for other in works) > 0:
                work.instant()
            else:  # nothing can be gained: what is needed is told all the same
                work.peak = least_peak(work.space)
        for work in reversed(works) if seconds > 0 else ():
            if min(other.excess for other in works) > work.bound:
                work.go_on()
    except KeyboardInterrupt:
        if all(work.best is None for work in works):
            raise
        interrupted = True
    rich = works[-1]
    if rich.bound and (allowed.recompute and change is not changed or any(t.name.startswith(PREFIX) for t in rich.problem.tensors)):
        rich.prover += CHOSEN
    return _answer(works, alignment, interrupted, time.monotonic() - began)


def _answer(works: list[_Work], alignment: int, interrupted: bool, seconds: float) -> Solution:
    """The best of what was found; bounds are those of the problem in which most is allowed, which is the last."""
    work, rich = min((w for w in works if w.best is not None), key=lambda w: w.excess), works[-1]
    assert work.best is not None
    account, schedule, method = work.best
    pinned = rich.space.pinned_units * alignment
    baselines = [row for w in works for row in w.baselines]
    return Solution(work.problem, schedule, account, min(rich.bound, account.excess), rich.prover, method,
                    working_set(rich.problem, alignment)[0], rich.peak.units * alignment + pinned, rich.peak.bound * alignment + pinned,
                    baselines, [schedule for w in works for schedule in w.compared], works[0].problem, interrupted, seconds)


class _Work:
    """The best schedule and the best bound while they are being improved."""

    def __init__(self, problem: Problem, budget: int, alignment: int, deadline: float, progress: Progress | None, compare: bool) -> None:
        self.compare = compare and not any(o.joined for o in problem.operators)
        self.problem, self.budget, self.alignment = problem, budget, alignment
        self.deadline, self.progress = deadline, progress
        self.space = Space(problem, budget, alignment)
        self.peak = Peak((), 0, 0)
        self.best: tuple[Account, Schedule, str] | None = None
        self.bound, self.prover = 0, "no bytes below the compulsory ones"
        self.baselines: list[tuple[str, Account]] = []
        self.compared: list[Schedule] = []
        self.ways: list[End] = []  # orders with evictions, without addresses
        self.search: Relaxed | None = None

    # --- keeping ---

    @property
    def excess(self) -> int:
        return NEVER if self.best is None else self.best[0].excess

    def done(self) -> bool:
        return self.best is not None and self.best[0].excess <= self.bound

    def tell(self, doing: str) -> None:
        if self.progress is not None and self.best is not None:
            self.progress(doing, self.best[0].excess, self.bound)

    def keep(self, schedule: Schedule, method: str) -> Account:
        account = check(self.problem, schedule, self.budget, self.alignment)
        if self.best is None or account.excess < self.best[0].excess:
            self.best = account, schedule, method
            self.tell(method)
        return account

    def keep_bound(self, bound: int, prover: str) -> None:
        if bound > self.bound:
            self.bound, self.prover = bound, prover
            self.tell(prover)

    def keep_way(self, moves: tuple[Move, ...], method: str) -> list[Stay]:
        """Places a way and keeps the schedule if it is the best; what its stays became."""
        order = [move.operator for move in moves]
        stays = placed = stays_of(self.space, moves)
        for packer in (by_search, by_size):
            placed, addresses = place(self.space, stays, packer)
            self.keep(steps_of(self.space, order, placed, addresses, self.alignment), method)
            if self.done():
                break
        return placed

    # --- what is tried ---

    def instant(self) -> None:
        """Orders, replacement rules, baselines and bounds that take no time worth speaking of."""
        space = self.space
        default = tuple(range(len(space.need)))
        self.keep_way(belady(space, default), "default order, Belady")
        self.keep_bound(Forecast(space, space.all).remaining((0, 0, 0)), "what crosses operators")
        self.keep_bound(returning(space), "what must come back")
        self.peak = least_peak(space)
        orders = known_orders(space, self.peak)
        for baseline in baselines(space, self.alignment, orders) if self.compare else ():
            self.keep_baseline(baseline)
        for row in orders:
            if row.best is not None and not self.done():
                self.ways.append(row.best)
                self.keep_way(row.best.moves, f"{row.name}, best replacement")

    def keep_baseline(self, baseline: Baseline) -> None:
        self.baselines.append((baseline.name, self.keep(baseline.schedule, baseline.name)))
        self.compared.append(baseline.schedule)

    def go_on(self) -> None:
        """Until the bound is reached or time is up."""
        for way, method in self.better_ways():
            self.ways.append(way)
            self.keep_way(way.moves, method)
            if self.done():
                return
        self.prove()
        self.feed_back(SMALL)

    def feed_back(self, states: int) -> None:
        """Again with less room where the best way found was not placed, as long as that promises fewer bytes: a search of so many states,
        or another replacement for the same order."""
        rooms: dict[int, int] = {}
        way = min(self.ways, key=lambda way: way.cost, default=None)
        for _ in range(FEEDBACKS):
            if way is None or self.done() or way.cost >= self.excess or time.monotonic() > self.deadline:
                return
            rooms = tightened(rooms, strained(self.space, way.moves, self.keep_way(way.moves, "search, packed")), self.space)
            tight = Space(self.problem, self.budget, self.alignment, rooms)
            ends = relaxed(tight, Limits(self.deadline, states, self.excess)).ends if states else []
            order = [move.operator for move in way.moves]
            way = next(iter(ends), None) or next(moving.improve(tight, order, self.deadline), None)

    def better_ways(self) -> Iterator[tuple[End, str]]:
        """Quick ones first; a search that proves at once where the problem is small."""
        if self.done():
            return
        found = relaxed(self.space, self.limits(SMALL), progress=self.tell_searching)
        yield from self.found(found)
        if self.done():
            return
        yield from self.moved()
        self.feed_back(0)
        if self.done() or self.least <= self.bound:
            return
        until = time.monotonic() + SHARE_BEAM * (self.deadline - time.monotonic())
        beams = beam(self.space, self.space.all, [(0, (0, 0, 0))], BEAM_WIDTH, Limits(until))
        yield from ((end, "beam") for end in beams[:1])
        yield from self.divided()

    def moved(self) -> Iterator[tuple[End, str]]:
        """Operators moved in the orders known."""
        until = time.monotonic() + SHARE_MOVED * (self.deadline - time.monotonic())
        orders = [tuple(move.operator for move in way.moves) for way in sorted(self.ways, key=lambda way: way.cost)]
        for order in dict.fromkeys((self.peak.order, tuple(range(len(self.space.need))), *orders)):
            for way in moving.improve(self.space, order, until):
                if way.cost < self.least:
                    yield way, "operators moved"
                if self.least <= self.bound:
                    return

    def divided(self) -> Iterator[tuple[End, str]]:
        """Divide and conquer, and beside it the search that proves, which often is the first to end."""
        self.search, states = Relaxed(self.space), SMALL
        until = time.monotonic() + SHARE_DIVIDED * (self.deadline - time.monotonic())
        for part in divide.improve(self.space, sorted(self.ways, key=lambda way: way.cost), until):
            if part.way is not None:
                yield part.way, "divide and conquer"
            states += BESIDE * part.states
            yield from self.found(self.search.go_on(self.limits(states), self.tell_searching))
            if self.done() or self.least <= self.bound:
                return

    @property
    def least(self) -> int:
        """What the best way costs, not regarding addresses."""
        return min((way.cost for way in self.ways), default=NEVER)

    def limits(self, states: int) -> Limits:
        """Of a search for what is cheaper than all ways known."""
        return Limits(self.deadline, states, self.least)

    def tell_searching(self, cost: int) -> None:
        self.tell("search")

    def found(self, found: Found) -> list[tuple[End, str]]:
        """Keeps the bound of a search; what it found."""
        self.keep_bound(found.bound, "search without addresses")
        return [(end, "search") for end in found.ends]

    def prove(self) -> None:
        """The search with all the time that is left, begun anew where orders are decided first."""
        if not self.done():
            self.place_too()
        if self.done() or self.least <= self.bound:
            return
        now = time.monotonic()
        space = decided(self.space, self.least, now + SHARE_DECIDED * (self.deadline - now)) if self.least < NEVER else self.space
        if self.search is None or space is not self.space:
            self.search = Relaxed(space)
        for end, method in self.found(self.search.go_on(self.limits(NEVER), self.tell_searching)):
            self.keep_way(end.moves, method)

    def place_too(self) -> None:
        """Addresses in the search, where the residency that is best without them was not placed."""
        assert self.best is not None
        found = search_addressed(self.space, Limits(self.deadline, ADDRESSED, self.best[0].excess + 1))
        if found is not None:
            self.keep_bound(found.cost, "search with addresses")
            self.keep(steps_of(self.space, found.order, found.stays, found.addresses, self.alignment), "search with addresses")
