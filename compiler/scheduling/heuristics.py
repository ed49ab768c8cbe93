"""Orders and replacement that are instant: the order of least peak, Belady's rule, and the baselines that others would use.

There are two kinds of baselines, each with the default order and with that of least peak. Those that COSMA compares itself with place
tensors as the operators come (`linear.py`), with Belady's rule (what is needed last leaves first) or what costs least at the moment.
The stronger ones know the future: replacement by Belady's rule or the best there is for the order, then a plan of all addresses as
TFLite's planner makes it (by decreasing size, `placing.by_size`); where it overflows, tensors leave between uses as `placing.place`
chooses. Every baseline is a schedule that the checker accepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from msgspec import Struct

from .bodies import by_size
from .linear import RULES, linear_schedule
from .placing import place, stays_of, steps_of
from .problem import Schedule
from .search import End, Limits, Move, relaxed
from .space import NEVER, Space, bits, cuts

LINEAR, PLANNED = "linear", "planned"
PEAK_STATES = 20_000  # sets of operators that the exact order of least peak may look at between two cuts
ORDER_STATES = 5_000  # states of the best replacement for an order, between two cuts
PEAK_WIDTH = 16       # of the beam where that is not enough


class Peak(Struct, frozen=True):
    """An order and the units that it needs at most at once; `bound`: no order needs less."""

    order: tuple[int, ...]
    units: int
    bound: int


class Baseline(Struct, frozen=True):
    """`kind`: LINEAR (addresses as the operators come) or PLANNED (addresses from a plan of the whole)."""

    name: str
    kind: str
    schedule: Schedule


def least_peak(space: Space, states: int = PEAK_STATES) -> Peak:
    """The order of least peak, exact from cut to cut where few sets of operators come into question, else a good one; never
    worse than the default order."""
    order: list[int] = []
    peak = bound = max(space.least_units, default=0)
    done = 0
    for goal in cuts(space):
        part = list(bits(goal & ~done))
        known = peak_of(space, part, done)
        reached = known
        if known > peak:  # else nothing is gained by another order
            found, whole = _least_peak(space, done, goal, peak, known, states, NEVER)
            if not whole:
                found, _ = _least_peak(space, done, goal, peak, known, NEVER, PEAK_WIDTH)
            if found is not None:
                part, reached = found
            bound = max(bound, reached) if whole else bound
        order += part
        peak = max(peak, reached)
        done = goal
    return Peak(tuple(order), peak, bound)


def peak_of(space: Space, order: Sequence[int], done: int = 0) -> int:
    """The units that an order needs at most at once, where nothing leaves."""
    lived, peak = _live(space, done), 0
    for operator in order:
        peak = max(peak, space.during(done, operator, lived))
        done |= 1 << operator
        lived = space.read_later(lived | space.need[operator], operator, done)
    return peak


def _live(space: Space, done: int) -> int:
    """Tensors that exist with those operators done, and are still read."""
    made = space.made(done)
    return sum(1 << t for t in bits(made) if space.consumers[t] & ~done)


def _least_peak(space: Space, start: int, goal: int, free: int, known: int, states: int,
                width: int) -> tuple[tuple[list[int], int] | None, bool]:
    """The order below a known peak, best first by peak, from one set of operators done to another; with a width, level by level.
    None: there is none. And whether that is so for certain: not where states ran out, or with a width.

    A peak up to `free` is as good as none, since it is reached elsewhere anyway.
    """
    origin: dict[int, tuple[int, int]] = {start: (-1, -1)}
    best = {start: free}
    live = {start: _live(space, start)}
    heap = [(free, 0, start)]
    level: list[tuple[int, int, int]] = []
    while heap or level:
        if not heap:
            heap, level = sorted(level)[:width], []
        peak, _, done = heappop(heap)
        if done == goal:
            order = []
            while origin[done][0] >= 0:
                done, operator = origin[done]
                order.append(operator)
            return (order[::-1], peak), width == NEVER
        if peak > best[done]:
            continue
        if len(best) > states:
            return None, False
        for operator, following, lived, new in _peak_steps(space, done, goal, peak, live[done]):
            if new < best.get(following, known):
                best[following], origin[following], live[following] = new, (done, operator), lived
                if width < NEVER:
                    level.append((new, space.total(lived), following))
                else:
                    heappush(heap, (new, -following.bit_count(), following))
    return None, width == NEVER


def _peak_steps(space: Space, done: int, goal: int, peak: int, lived: int) -> list[tuple[int, int, int, int]]:
    """What can run next: operator, operators done then, what lives then, the peak; one alone where that is never worse."""
    found = []
    before = space.total(lived)
    for operator in space.ready(done, goal):
        following = done | 1 << operator
        during = lived | space.need[operator]
        after = space.read_later(during, operator, following)
        row = (operator, following, after, max(peak, space.during(done, operator, lived)))
        if row[3] == peak and space.total(after) <= before:
            return [row]
        found.append(row)
    return found


def belady(space: Space, order: Sequence[int]) -> tuple[Move, ...]:
    """Replacement for an order: while room is missing, the tensor that is needed last leaves."""
    state = (0, 0, 0)
    place = {o: moment for moment, o in enumerate(order)}
    moves = []
    for operator in order:
        done, resident, _ = state
        need = space.need[operator]
        excess = space.during(done, operator, resident) - space.rooms[operator]
        rows = sorted(((min(place[o] for o in bits(space.consumers[t] & ~done)), t) for t in bits(resident & ~need)), reverse=True)
        evicted = 0
        for _, t in rows:
            if excess <= 0:
                break
            evicted |= 1 << t
            excess -= space.units[t]
        if excess > 0:  # nothing else is there: the result is written over an operand that returns later
            evicted |= 1 << max(bits(space.over[operator]), key=lambda t: -space.price(state, operator, 1 << t))
        moves.append(Move(operator, evicted))
        state = space.after(state, operator, evicted)
    return tuple(moves)


def best_for_order(space: Space, order: Sequence[int]) -> End | None:
    """The best replacement for an order, not regarding addresses; None: too many states."""
    found = relaxed(space, Limits(states=ORDER_STATES), order)
    return found.ends[0] if found.ends else None


class Ordered(Struct, frozen=True):
    """An order by name, with the best replacement for it where that was found."""

    name: str
    order: tuple[int, ...]
    best: End | None


def known_orders(space: Space, peak: Peak) -> list[Ordered]:
    default = tuple(range(len(space.need)))
    return [Ordered(name, order, best_for_order(space, order)) for name, order in (("default order", default), ("least peak", peak.order))]


def baselines(space: Space, alignment: int, orders: Sequence[Ordered]) -> list[Baseline]:
    """The schedules that others would make."""
    found = []
    for row in orders:
        order = row.order
        for rule in RULES:
            found.append(Baseline(f"{row.name}, {RULES[rule]}, linear arena", LINEAR, linear_schedule(space, order, rule, alignment)))
        for name, moves in (("Belady", belady(space, order)), ("best replacement", row.best.moves if row.best is not None else None)):
            if moves is not None:
                stays, addresses = place(space, stays_of(space, moves), by_size)
                schedule = steps_of(space, order, stays, addresses, alignment)
                found.append(Baseline(f"{row.name}, {name}, planned arena", PLANNED, schedule))
    return found
