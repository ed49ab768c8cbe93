"""Divide and conquer: a good order is cut where little is alive, and each part is searched for itself, seam by seam.

At a seam the operators done are fixed, and the best states of the memory go on into the next part (budgets at the seams: which tensors
stay, and at what cost so far), and beside them that of the known way: the result is never worse than it. Rounds shift the seams
and start from what was found, until nothing is gained or time runs out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from msgspec import Struct

from .search import End, Limits, Move, search
from .space import Space, bits, cuts

ENDS = 24             # states that a seam hands on
STATES = 6_000        # of the search of a part
SIZES = (12, 20, 32, 16, 44, 24)  # operators in a part, round by round


def seams(space: Space, order: Sequence[int], size: int, shift: int) -> list[int]:
    """Sets of operators done, along the order: about every `size` operators the place where least is alive; and every cut."""
    done, alive, prefix = 0, [], []
    for o in order:
        done |= 1 << o
        prefix.append(done)
        alive.append(space.total(sum(1 << t for t in bits(space.made(done)) if space.consumers[t] & ~done)))
    fixed = set(cuts(space))
    found, last = [], -1 + shift
    for place, goal in enumerate(prefix):
        if goal in fixed:
            found.append(goal)
            last = place
        elif place - last >= size:
            window = range(max(last + 1, place - size // 2), place + 1)
            last = min(window, key=lambda n: alive[n])
            if not found or prefix[last] != found[-1]:
                found.append(prefix[last])
    return sorted({*found, space.all}, key=int.bit_count)


def replay(space: Space, moves: Sequence[Move]) -> dict[int, End]:
    """For each set of operators done on a way: how it was reached."""
    state, cost = (0, 0, 0), 0
    found = {}
    for number, move in enumerate(moves, 1):
        cost += space.price(state, move.operator, move.evicted)
        state = space.after(state, move.operator, move.evicted)
        found[state[0]] = End(cost, state, 0, tuple(moves[:number]))
    return found


class Round(Struct, frozen=True):
    """A way that is better than all before, or none; and the states that were looked at."""

    way: End | None
    states: int


def along(space: Space, known: End, goals: Sequence[int], deadline: float) -> tuple[End, int] | None:
    """The best way found from seam to seam, the known one among them, and the states looked at; None when time ran out."""
    order = [move.operator for move in known.moves]
    passed = replay(space, known.moves)
    fronts = [End(0, (0, 0, 0), 0, ())]
    states = 0
    for goal in goals:
        starts = [(e.cost, e.state) for e in fronts]
        wanted = 1 if goal == space.all else ENDS
        free = search(space, goal, starts, Limits(deadline, STATES), None, wanted)
        ordered = search(space, goal, starts, Limits(deadline, STATES), order, max(1, wanted // 4))
        states += free.states + ordered.states
        if time.monotonic() > deadline:
            return None
        rows = [End(e.cost, e.state, 0, fronts[e.start].moves + e.moves) for e in (*free.ends, *ordered.ends)] + [passed[goal]]
        fronts = sorted({e.state: e for e in sorted(rows, key=lambda e: -e.cost)}.values(), key=lambda e: e.cost)
    return fronts[0], states


def improve(space: Space, ways: Sequence[End], deadline: float) -> Iterator[Round]:
    """Round by round from each of the ways given in turn, until nothing is gained in a round of all sizes or time runs out."""
    best = min((way.cost for way in ways), default=0)
    for way in ways:
        idle = turn = 0
        while idle < len(SIZES) and way.cost:
            size = SIZES[turn % len(SIZES)]
            order = [move.operator for move in way.moves]
            found = along(space, way, seams(space, order, size, turn % 3 * size // 3), deadline)
            if found is None:
                return
            turn += 1
            idle = 0 if found[0].cost < way.cost else idle + 1
            way, states = found
            yield Round(way if way.cost < best else None, states)
            best = min(best, way.cost)
