"""Order, residency and addresses at once, by best-first search: for small problems, where the best residency has no packing.

A state says which operators ran, where every tensor in the scratchpad lies, and which are off the chip too. Before an operator
runs, any tensors may leave (also ones that it reads, to come back elsewhere), then what it needs is placed, its result over an operand
where that is allowed. Every schedule can be pushed down until each tensor lies on others or on the ground, so addresses are sums of sizes
of tensors; where some must lie side by side, all addresses are tried. Costs are charged as in `search`: both transfers when a tensor
leaves. Exact where it runs to its end; it says nothing where it does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import combinations, pairwise

from msgspec import Struct

from .bodies import Stay
from .forecast import Forecast
from .search import Limits
from .space import NEVER, Space, bits

Places = tuple[tuple[int, int], ...]  # tensor, address in units; by tensor
Key = tuple[int, Places, int]         # operators done, places, clean tensors
MOST_ADDRESSES = 96                   # sums of sizes; more are too many to try
MOST_RESIDENT = 10                    # tensors of which all sets may leave


class Step(Struct, frozen=True):
    """An operator ran: where all lay then, what had left for it (a bit set), and which operand was overwritten (-1: none)."""

    operator: int
    places: dict[int, int]
    evicted: int
    over: int


class Addressed(Struct, frozen=True):
    """The best schedule there is: its excess bytes, the order, and the stays with their addresses."""

    cost: int
    order: tuple[int, ...]
    stays: list[Stay]
    addresses: list[int]


def search_addressed(space: Space, limits: Limits) -> Addressed | None:
    """The best schedule below `limits.cost`, or None: too many states, sums or tensors, no time, or there is none."""
    sums = addresses_of(space)
    if sums is None:
        return None
    forecast = Forecast(space, space.all)
    start: Key = (0, (), 0)
    best: dict[Key, int] = {start: 0}
    origin: dict[Key, tuple[Key, Step]] = {}
    heap: list[tuple[int, int, int, Key]] = [(0, 0, 0, start)]
    count = 0
    while heap:
        _, _, _, key = heappop(heap)
        if key[0] == space.all:
            return _described(space, key, origin, best[key])
        if len(best) > limits.states or time.monotonic() > limits.deadline or len(key[1]) > MOST_RESIDENT:
            return None
        for operator in space.ready(key[0], space.all):
            for cost, following, step in _steps(space, sums, key, operator, limits.cost - best[key]):
                total = best[key] + cost
                if total >= best.get(following, NEVER):
                    continue
                hoped = total + forecast.remaining((following[0], sum(1 << t for t, _ in following[1]), following[2]))
                if hoped < limits.cost:
                    best[following] = total
                    origin[following] = (key, step)
                    count += 1
                    heappush(heap, (hoped, -following[0].bit_count(), count, following))
    return None


def addresses_of(space: Space) -> list[int] | None:
    """All sums of sizes that lie in the scratchpad; a size may count more than once, since a tensor may lie on what lay on itself."""
    if any(o.joined for o in space.problem.operators):
        return list(range(space.room)) if space.room <= MOST_ADDRESSES else None
    sizes = {units for units in space.units if units}
    found, new = {0}, [0]
    while new:
        address = new.pop()
        for units in sizes:
            if address + units < space.room and address + units not in found:
                found.add(address + units)
                new.append(address + units)
        if len(found) > MOST_ADDRESSES:
            return None
    return sorted(found)


def _steps(space: Space, sums: list[int], key: Key, operator: int, room_for_cost: int) -> Iterator[tuple[int, Key, Step]]:
    """An operator runs: cost, what is then, and how."""
    done, places, clean = key
    resident = sum(1 << t for t, _ in places)
    for number in range(len(places) + 1):
        for leaving in combinations(places, number):
            evicted = sum(1 << t for t, _ in leaving)
            cost = space.total_bytes(evicted) + space.total_bytes(evicted & ~clean)
            if cost >= room_for_cost:
                continue
            state = (done, resident & ~evicted, clean | evicted)
            left = {t: a for t, a in places if not evicted >> t & 1}
            for over in (-1, *bits(space.over[operator])):
                returning = over >= 0 and bool(space.consumers[over] & ~done & ~(1 << operator))
                gone = 1 << over if returning else 0
                total = cost + space.price(state, operator, gone)
                if total < room_for_cost:
                    following, after, clean_after = space.after(state, operator, gone)
                    for placed in _placed(space, sums, left, operator, over):
                        kept = tuple(sorted((t, a) for t, a in placed.items() if after >> t & 1))
                        yield total, (following, kept, clean_after), Step(operator, placed, evicted, over)


def _placed(space: Space, sums: list[int], left: dict[int, int], operator: int, over: int) -> Iterator[dict[int, int]]:
    """All ways to place what an operator needs and is not there, its first result over an operand or not."""
    row = space.problem.operators[operator]
    wanted = [t for t in bits(space.need[operator]) if t not in left]
    units = sum(space.units[t] for t in left) + sum(space.units[t] for t in wanted)
    if units - (space.saved[operator] if over >= 0 else 0) > space.rooms[operator]:
        return
    first = row.outputs[0] if over >= 0 else -1
    for placed in _placements(space, sums, left, [t for t in wanted if t != first]):
        if over >= 0:
            placed = {**placed, first: placed[over]}
        if all(placed[a] + space.units[a] == placed[b] for group in row.joined for a, b in pairwise(group)):
            yield placed


def _placements(space: Space, sums: list[int], places: dict[int, int], wanted: list[int]) -> Iterator[dict[int, int]]:
    """All ways to place these tensors beside those that lie there."""
    if not wanted:
        yield places
        return
    units = space.units[wanted[0]]
    for address in sums:
        if address + units <= space.room and all(a + space.units[t] <= address or address + units <= a for t, a in places.items()):
            yield from _placements(space, sums, {**places, wanted[0]: address}, wanted[1:])


def _described(space: Space, key: Key, origin: dict[Key, tuple[Key, Step]], cost: int) -> Addressed:
    """The stays of a way: a new one wherever a tensor was placed."""
    path = []
    while key in origin:
        key, step = origin[key]
        path.append(step)
    path.reverse()
    open_stays: dict[int, tuple[int, list[int]]] = {}
    stays, addresses = [], []

    def close(t: int) -> None:
        address, uses = open_stays.pop(t)
        stays.append(Stay(t, space.units[t], tuple(uses)))
        addresses.append(address)

    for moment, step in enumerate(path):
        for t in bits(step.evicted):
            close(t)
        for t in bits(space.need[step.operator]):
            open_stays.setdefault(t, (step.places[t], []))[1].append(moment)
        if step.over >= 0:
            close(step.over)
    for t in list(open_stays):
        close(t)
    return Addressed(cost, tuple(step.operator for step in path), stays, addresses)
