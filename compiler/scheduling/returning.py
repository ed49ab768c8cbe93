"""What must come back between operators that every order runs one after the other: a bound on the excess bytes of any schedule.

While an operator runs, what it does not need itself has only the room that it leaves. What later operators read, up to another
one behind it, is then there, or fetched meanwhile, or made meanwhile from tensors of which the same is true. So the tensors that are
there or fetched separate what was made before from those readers, whichever operators the order runs in between: the least
separator, less what the room can keep, is a bound on the bytes fetched (a minimum cut: Ford and Fulkerson, Flows in Networks,
section I.5). The room is a price on units that stay there, a Lagrange multiplier.

Fetches between the operators of a chain happen at different times, so their bounds add up. A tensor is written once for all of them:
that cost is shared out between them, to each what its flow takes of it. The chain is the best for fetches alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from .space import NEVER, Space, bits

LOOKED_AT = 100  # operators that may stand in a chain, those that leave the least room
FOLLOWERS = 16   # operators that are tried behind one


class Supply(Struct, frozen=True):
    """Tensors from which what some operators read can come. `demanded` are read by them, `sinks` can not be made any more, all others are
    made from `made_of`."""

    demanded: list[int]
    made_of: dict[int, list[int]]
    sinks: set[int]


def returning(space: Space) -> int:
    """No schedule moves fewer bytes beyond the compulsory ones."""
    rows = range(len(space.before))
    looked_at = sorted((o for o in rows if space.above[o] and space.below[o]), key=lambda o: _left(space, o))[:LOOKED_AT]
    unwritten = [0] * len(space.bytes)
    looked_at.sort(key=lambda o: space.above[o].bit_count())
    alone = {o: least for o in looked_at if (least := _between(space, o, -1, unwritten)[0])}
    best: dict[int, tuple[int, int]] = {}  # bytes fetched behind an operator at least, and the next of its chain
    for o, least in reversed(alone.items()):
        best[o] = least, -1
        followers = sorted((other for other in best if space.below[o] >> other & 1), key=lambda other: -best[other][0])
        for other in followers[:FOLLOWERS]:
            if best[other][0] + least > best[o][0]:
                best[o] = max(best[o], (best[other][0] + _between(space, o, other, unwritten)[0], other))
    return _along(space, best) if best else 0


def _along(space: Space, best: Mapping[int, tuple[int, int]]) -> int:
    """The bound of the best chain, with what is written for it."""
    writing = [0 if space.stored >> t & 1 else size for t, size in enumerate(space.bytes)]
    total, first = 0, max(best, key=lambda o: best[o][0])
    while first >= 0:
        last = best[first][1]
        least, flow = _between(space, first, last, writing)
        for t, taken in flow.items():
            writing[t] -= max(0, taken - space.bytes[t])
        total += least
        first = last
    unit = math.gcd(*space.bytes)  # all that moves is a sum of tensors
    return -(-total // unit) * unit if unit else 0


def _left(space: Space, operator: int) -> int:
    return space.rooms[operator] - space.least_units[operator]


def _between(space: Space, first: int, last: int, writing: Sequence[int]) -> tuple[int, dict[int, int]]:
    """Bytes fetched at least after one operator and up to another (-1: the end), with those of `writing` for each tensor fetched;
    and the cost of each tensor that this takes."""
    supply = _supply(space, first, last)
    left = _left(space, first)
    size = max((-(-space.bytes[t] // space.units[t]) for t in bits(space.made(space.all))), default=0)  # bytes of a unit
    best: tuple[int, dict[int, int]] = 0, {}
    for price in (0, size, 2 * size) if left and supply.sinks else (0,):
        cost = {t: space.bytes[t] + writing[t] if space.units[t] > left else min(space.bytes[t] + writing[t], price * space.units[t])
                for t in {*supply.made_of, *supply.sinks}}
        value, flow = separated(cost, supply)
        best = max(best, (value - price * left, flow), key=lambda row: row[0])
    return best


def _supply(space: Space, first: int, last: int) -> Supply:
    """What the operators after the first and up to the last read and do not make themselves. Not what the first needs, which is there, nor
    inputs that may not have been read before."""
    surely = space.below[first] & (space.all if last < 0 else space.above[last] | 1 << last)
    before = space.above[first] | 1 << first
    producer = space.problem.producer

    def separating(tensors: int) -> list[int]:
        return [t for t in bits(tensors & ~space.need[first])
                if (space.consumers[t] & before if producer[t] < 0 else not surely >> producer[t] & 1)]

    read = 0
    for o in bits(surely):
        read |= space.inputs[o]
    supply = Supply(separating(read), {}, set())
    waiting = list(supply.demanded)
    while waiting:
        t = waiting.pop()
        if t not in supply.made_of and t not in supply.sinks:
            if producer[t] < 0 or before >> producer[t] & 1:
                supply.sinks.add(t)
            else:
                supply.made_of[t] = separating(space.inputs[producer[t]])
                waiting += supply.made_of[t]
    return supply


def separated(cost: Mapping[int, int], supply: Supply) -> tuple[int, dict[int, int]]:
    """The least cost of tensors on all ways from what is demanded to a sink, and the flow through each that proves it: shortest
    augmenting paths (Edmonds and Karp, Theoretical Improvements in Algorithmic Efficiency for Network Flow Problems, 1972)."""
    source, sink = -1, -2  # tensors are entered at 2 t and left at 2 t + 1
    rest: dict[int, dict[int, int]] = {}

    def connect(one: int, other: int, most: int) -> None:
        rest.setdefault(one, {})[other] = most
        rest.setdefault(other, {}).setdefault(one, 0)

    def connect_all(one: int, others: Iterable[int]) -> None:
        for t in others:
            connect(one, 2 * t, NEVER)

    connect_all(source, supply.demanded)
    for t, most in cost.items():
        connect(2 * t, 2 * t + 1, most)
        connect_all(2 * t + 1, supply.made_of.get(t, ()))
    for t in supply.sinks:
        connect(2 * t + 1, sink, NEVER)
    value = 0
    while (path := _path(rest, source, sink)) is not None:
        pushed = min(rest[one][other] for one, other in path)
        for one, other in path:
            rest[one][other] -= pushed
            rest[other][one] += pushed
        value += pushed
    return value, {t: rest[2 * t + 1][2 * t] for t in cost}


def _path(rest: Mapping[int, Mapping[int, int]], source: int, sink: int) -> list[tuple[int, int]] | None:
    """The shortest path on which something is left."""
    origin, waiting = {source: source}, deque([source])
    while waiting and sink not in origin:
        here = waiting.popleft()
        for other, most in rest.get(here, {}).items():
            if most and other not in origin:
                origin[other] = here
                waiting.append(other)
    if sink not in origin:
        return None
    path = [(origin[sink], sink)]
    while path[-1][0] != source:
        path.append((origin[path[-1][0]], path[-1][0]))
    return path
