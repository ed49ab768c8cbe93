"""From order and residency to a schedule: addresses for every stay of a tensor in the scratchpad, and the steps.

A `Stay` is a tensor with the moments (positions in the order) at which it is needed, from one fetch (or from where it is computed)
to the last use before it leaves. Stays that share a moment must not share an address: a packing problem. Where no packing is
found, a stay is broken in two at the least cost, the tensor leaving between two uses, until one is; at the end every
stay is a single moment, where what one operator needs stands side by side. So there always is a schedule, and what it costs more
than the residency promised is seen from its account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from ..packing import Item, pack
from .problem import Fetch, Free, Run, Schedule, Spill, Step
from .search import Move
from .space import Space, bits

Pack = Callable[[Sequence["Stay"], int], "list[int] | int"]  # addresses in units, or which stay found no place
NODES = 20_000 # of the packer's search, for one set of stays
ROUNDS = 12  # orders that first fit tries, of each of three kinds
MENDS = 24   # breaks that are tried to be undone


class Stay(Struct, frozen=True):
    """A tensor in the scratchpad, needed at these moments."""

    tensor: int
    units: int
    uses: tuple[int, ...]

    @property
    def first(self) -> int:
        return self.uses[0]

    @property
    def last(self) -> int:
        return self.uses[-1]


def stays_of(space: Space, moves: Sequence[Move]) -> list[Stay]:
    """What an order with its evictions says about residency: tensors leave right behind the last use before their eviction."""
    uses: dict[int, list[int]] = {}
    found = []
    for moment, move in enumerate(moves):
        for t in bits(move.evicted):
            found.append(Stay(t, space.units[t], tuple(uses.pop(t))))
        for t in bits(space.need[move.operator]):
            uses.setdefault(t, []).append(moment)
    return found + [Stay(t, space.units[t], tuple(moments)) for t, moments in uses.items()]


# --- packing ---------------------------------------------------------------------------------------------------------------


def conflicts(stays: Sequence[Stay]) -> list[list[int]]:
    """For each stay those that share a moment with it."""
    found: list[list[int]] = [[] for _ in stays]
    active: list[int] = []
    for number in sorted(range(len(stays)), key=lambda n: stays[n].first):
        active = [other for other in active if stays[other].last >= stays[number].first]
        for other in active:
            found[number].append(other)
            found[other].append(number)
        active.append(number)
    return found


def first_fit(stays: Sequence[Stay], order: Iterable[int], room: int, met: Sequence[Sequence[int]]) -> list[int] | int:
    """Each stay in turn at the lowest address that is free throughout; or the first that found none."""
    addresses = [-1] * len(stays)
    for number in order:
        units = stays[number].units
        address = 0
        for begin, end in sorted([(addresses[o], addresses[o] + stays[o].units) for o in met[number] if addresses[o] >= 0]):
            if begin - address >= units:
                break
            if end > address:
                address = end
        if address + units > room:
            return number
        addresses[number] = address
    return addresses


def by_size(stays: Sequence[Stay], room: int) -> list[int] | int:
    """TFLite's linear arena: first fit by decreasing size."""
    return first_fit(stays, sorted(range(len(stays)), key=lambda n: (-stays[n].units, stays[n].first)), room, conflicts(stays))


def by_many_orders(stays: Sequence[Stay], room: int) -> list[int] | int:
    """First fit in some orders; what finds no place goes to the front of the next one."""
    numbers, met = range(len(stays)), conflicts(stays)
    failed = 0
    for key in (lambda n: (-stays[n].units, stays[n].first), lambda n: (stays[n].first, -stays[n].last),
                lambda n: (-stays[n].units * (stays[n].last - stays[n].first + 1), n)):
        order = sorted(numbers, key=key)
        for _ in range(ROUNDS):
            found = first_fit(stays, order, room, met)
            if isinstance(found, list):
                return found
            failed = found
            if order[0] == found:
                break
            order.remove(found)
            order.insert(0, found)
    return failed


def by_search(stays: Sequence[Stay], room: int) -> list[int] | int:
    """First fit in some orders, and where that fails the packer's search, limited by nodes so that the answer is always the same."""
    found = by_many_orders(stays, room)
    if isinstance(found, list):
        return found
    packing = pack([Item(stay.first, stay.last + 1, stay.units) for stay in stays], room, nodes=NODES)
    return list(packing.offsets) if packing.verdict == "packed" else found


# --- breaking what does not fit ----------------------------------------------------------------------------------------------


def place(space: Space, stays: list[Stay], packer: Pack = by_search) -> tuple[list[Stay], list[int]]:
    """Stays with addresses (in units); some are broken where the packing found no place."""
    whole = stays
    while True:
        found = packer(stays, space.room)
        if isinstance(found, list):
            break
        stays = broken(space, stays, found)
    return (stays, found) if len(stays) == len(whole) else _mended(space, stays, found, packer)


def _mended(space: Space, stays: list[Stay], addresses: list[int], packer: Pack) -> tuple[list[Stay], list[int]]:
    """Breaks undone, dearest first, where all still finds a place: some were made for what others solved."""
    tried = set[tuple[int, int]]()
    while len(tried) < MENDS:
        rows = sorted((-space.bytes[a.tensor], a.tensor, a.last) for a in stays if (a.tensor, a.last) not in tried)
        joined = None
        for _, tensor, last in rows:
            here = next(s for s in stays if s.tensor == tensor and s.last == last)
            behind = min((s for s in stays if s.tensor == tensor and s.first > last), key=lambda s: s.first, default=None)
            if behind is None or len(tried) >= MENDS:
                continue
            tried.add((tensor, last))
            whole = [s for s in stays if s is not here and s is not behind] + [Stay(tensor, here.units, here.uses + behind.uses)]
            found = packer(whole, space.room)
            if isinstance(found, list):
                joined = whole, found
                break
        if joined is None:
            break
        stays, addresses = joined
    return stays, addresses


def broken(space: Space, stays: list[Stay], failed: int) -> list[Stay]:
    """The stays with one broken that meets the failed one, where that costs least for the room that it gives."""
    spilled = _spilled(space, stays)
    here = stays[failed]
    best: tuple[float, int, int] | None = None
    for number, stay in enumerate(stays):
        if stay.first > here.last or here.first > stay.last:
            continue
        for place, (left, right) in enumerate(zip(stay.uses, stay.uses[1:])):
            if number != failed and (right <= here.first or left >= here.last):
                continue
            cost = space.bytes[stay.tensor] * (1 if stay.tensor in spilled else 2)
            freed = stay.units * (right - left - 1) or 0.01
            row = (cost / min(freed, 4 * stay.units), number, place)
            best = row if best is None or row < best else best
    if best is None:  # all that meet the failed one are single moments: break any that is not
        number = next(n for n, stay in enumerate(stays) if len(stay.uses) > 1)
        best = (0.0, number, 0)
    _, number, place = best
    stay = stays[number]
    parts = [Stay(stay.tensor, stay.units, stay.uses[:place + 1]), Stay(stay.tensor, stay.units, stay.uses[place + 1:])]
    return stays[:number] + parts + stays[number + 1:]


def _spilled(space: Space, stays: Iterable[Stay]) -> set[int]:
    """Tensors that are off the chip at some time anyway."""
    seen, found = set[int](), set(bits(space.stored))
    for stay in stays:
        (found if stay.tensor in seen else seen).add(stay.tensor)
    return found


# --- steps -----------------------------------------------------------------------------------------------------------------


def steps_of(space: Space, order: Sequence[int], stays: Sequence[Stay], addresses: Sequence[int], alignment: int) -> Schedule:
    """The schedule. Fetches stand before the operator that needs them, spills and frees right behind the last use."""
    problem = space.problem
    steps: list[Step] = []
    base = _fixed_places(space, steps, alignment)
    starting: dict[int, list[int]] = {}
    ending: dict[int, list[int]] = {}
    for number, stay in enumerate(stays):
        starting.setdefault(stay.first, []).append(number)
        ending.setdefault(stay.last, []).append(number)
    last_stay = _last(stays)
    stored = {t for t in range(len(problem.tensors)) if problem.producer[t] < 0}
    for moment, operator in enumerate(order):
        here = {stays[n].tensor: (base + addresses[n]) * alignment for n in starting.get(moment, ())}
        outputs = problem.operators[operator].outputs
        steps += [Fetch(t, address) for t, address in here.items() if t not in outputs]
        steps.append(Run(operator, tuple(here.get(t, 0) for t in outputs)))
        for t in outputs:
            if t in problem.results:
                steps.append(Spill(t))
                stored.add(t)
        for n in ending.get(moment, ()):
            t = stays[n].tensor
            if t not in stored and last_stay[t] > moment:
                steps.append(Spill(t))
                stored.add(t)
            steps.append(Free(t))
    return Schedule(tuple(steps))


def _last(stays: Sequence[Stay]) -> dict[int, int]:
    found: dict[int, int] = {}
    for stay in stays:
        found[stay.tensor] = max(stay.last, found.get(stay.tensor, -1))
    return found


def _fixed_places(space: Space, steps: list[Step], alignment: int) -> int:
    """Fetches what is pinned and what takes no place; returns the units below the rest."""
    problem = space.problem
    pinned = set(problem.pinned)
    base = 0
    read = {t for operator in problem.operators for t in operator.inputs}
    for t, tensor in enumerate(problem.tensors):
        if t in pinned:
            steps.append(Fetch(t, base * alignment))
            base += -(-tensor.bytes // alignment)
        elif t in read and not space.units[t] and problem.producer[t] < 0:
            steps.append(Fetch(t, 0))
    return base
