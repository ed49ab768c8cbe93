"""Order, residency and addresses at once, by best-first search: for small problems, where the best residency has no packing.

A state says which operators ran, where every tensor in the scratchpad lies, and which are off the chip too. Before an operator
runs, any tensors may leave (also ones that it reads, to come back elsewhere), then what it needs is placed. Every schedule can be
pushed down until each tensor lies on others or on the ground, so addresses are sums of sizes of tensors. Costs are charged as in
`search`: both transfers when a tensor leaves. Exact where it runs to its end; it says nothing where it does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import combinations

from msgspec import Struct

from .forecast import Forecast
from .placing import Stay
from .search import Limits
from .space import NEVER, Space, bits

Places = tuple[tuple[int, int], ...]  # tensor, address in units; by tensor
Key = tuple[int, Places, int]         # operators done, places, clean tensors
MOST_ADDRESSES = 96                   # sums of sizes; more are too many to try
MOST_RESIDENT = 10                    # tensors of which all sets may leave


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
    origin: dict[Key, tuple[Key, int, int]] = {}
    heap: list[tuple[int, int, int, Key]] = [(0, 0, 0, start)]
    count = 0
    while heap:
        _, _, _, key = heappop(heap)
        if key[0] == space.all:
            return _described(space, key, origin, best[key])
        if len(best) > limits.states or time.monotonic() > limits.deadline or len(key[1]) > MOST_RESIDENT:
            return None
        for operator in space.ready(key[0], space.all):
            for cost, following, evicted in _steps(space, sums, key, operator, limits.cost - best[key]):
                total = best[key] + cost
                if total >= best.get(following, NEVER):
                    continue
                hoped = total + forecast.remaining((following[0], sum(1 << t for t, _ in following[1]), following[2]))
                if hoped < limits.cost:
                    best[following] = total
                    origin[following] = (key, operator, evicted)
                    count += 1
                    heappush(heap, (hoped, -following[0].bit_count(), count, following))
    return None


def addresses_of(space: Space) -> list[int] | None:
    """All sums of sizes that lie in the scratchpad; a size may count more than once, since a tensor may lie on what lay on itself."""
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


def _steps(space: Space, sums: list[int], key: Key, operator: int, room_for_cost: int) -> Iterator[tuple[int, Key, int]]:
    """An operator runs: cost, what is then, and what left for it."""
    done, places, clean = key
    resident = sum(1 << t for t, _ in places)
    for number in range(len(places) + 1):
        for leaving in combinations(places, number):
            evicted = sum(1 << t for t, _ in leaving)
            cost = space.total_bytes(evicted) + space.total_bytes(evicted & ~clean)
            if cost >= room_for_cost:
                continue
            kept = resident & ~evicted
            if space.total(kept | space.need[operator]) > space.rooms[operator]:
                continue
            left = {t: a for t, a in places if not evicted >> t & 1}
            following, after, clean_after = space.after((done, resident, clean | evicted), operator, evicted)
            for placed in _placements(space, sums, left, list(bits(space.need[operator] & ~kept))):
                yield cost, (following, tuple(sorted((t, a) for t, a in placed.items() if after >> t & 1)), clean_after), evicted


def _placements(space: Space, sums: list[int], places: dict[int, int], wanted: list[int]) -> Iterator[dict[int, int]]:
    """All ways to place these tensors beside those that lie there."""
    if not wanted:
        yield places
        return
    units = space.units[wanted[0]]
    for address in sums:
        if address + units <= space.room and all(a + space.units[t] <= address or address + units <= a for t, a in places.items()):
            yield from _placements(space, sums, {**places, wanted[0]: address}, wanted[1:])


def _described(space: Space, key: Key, origin: dict[Key, tuple[Key, int, int]], cost: int) -> Addressed:
    """The stays of a way: a new one wherever a tensor was placed."""
    path = []
    while key in origin:
        before, operator, evicted = origin[key]
        path.append((before, operator, evicted, key))
        key = before
    path.reverse()
    open_stays: dict[int, tuple[int, list[int]]] = {}
    stays, addresses = [], []

    def close(t: int) -> None:
        address, uses = open_stays.pop(t)
        stays.append(Stay(t, space.units[t], tuple(uses)))
        addresses.append(address)

    for moment, (before, operator, evicted, after) in enumerate(path):
        for t in bits(evicted):
            close(t)
        places = _during(space, before, operator, evicted, after)
        for t in bits(space.need[operator]):
            open_stays.setdefault(t, (places[t], []))[1].append(moment)
    for t in list(open_stays):
        close(t)
    return Addressed(cost, tuple(operator for _, operator, _, _ in path), stays, addresses)


def _during(space: Space, before: Key, operator: int, evicted: int, after: Key) -> dict[int, int]:
    """Where all lay while the operator ran. What died with it is in no state: any free places do, as when they were found."""
    places = {t: a for t, a in before[1] if not evicted >> t & 1} | dict(after[1])
    wanted = [t for t in bits(space.need[operator]) if t not in places]
    return next(iter(_placements(space, addresses_of(space) or [], places, wanted)))


__all__ = ["Addressed", "search_addressed"]
