"""From order and residency to a schedule: addresses for every stay of a tensor in the scratchpad, and the steps.

Stays that share a moment must not share an address: a packing problem (`bodies.py`). Where no packing is found, a stay is broken in
two at the least cost, the tensor leaving between two uses, until one is; at the end every stay is a single moment, where what one
operator needs stands side by side. So there always is a schedule, and what it costs more than the residency promised is seen from its
account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .bodies import Apart, Stay, by_search
from .problem import Fetch, Free, Run, Schedule, Spill, Step
from .search import Move
from .space import Space, bits

Pack = Callable[[Space, Sequence[Stay]], "list[int] | int | Apart"]  # addresses in units, or which stay found no place
MENDS = 24   # breaks that are tried to be undone


def stays_of(space: Space, moves: Sequence[Move]) -> list[Stay]:
    """What an order with its evictions says about residency: tensors leave right behind the last use before their eviction."""
    uses: dict[int, list[int]] = {}
    found = []
    for moment, move in enumerate(moves):
        overwritten = move.evicted & space.inputs[move.operator]
        for t in bits(move.evicted & ~overwritten):
            found.append(Stay(t, space.units[t], tuple(uses.pop(t))))
        for t in bits(space.need[move.operator]):
            uses.setdefault(t, []).append(moment)
        for t in bits(overwritten):
            found.append(Stay(t, space.units[t], tuple(uses.pop(t))))
    return found + [Stay(t, space.units[t], tuple(moments)) for t, moments in uses.items()]


# --- breaking what does not fit ----------------------------------------------------------------------------------------------


def place(space: Space, stays: list[Stay], packer: Pack = by_search) -> tuple[list[Stay], list[int]]:
    """Stays with addresses (in units); some are broken where the packing found no place."""
    whole = stays
    while True:
        found = packer(space, stays)
        if isinstance(found, list):
            break
        stays = parted(stays, found.stay, found.uses) if isinstance(found, Apart) else broken(space, stays, found)
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
            found = packer(space, whole)
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
    return parted(stays, number, place + 1)


def parted(stays: list[Stay], number: int, uses: int) -> list[Stay]:
    """The stays with one in two parts, so many uses in the first."""
    stay = stays[number]
    parts = [Stay(stay.tensor, stay.units, stay.uses[:uses]), Stay(stay.tensor, stay.units, stay.uses[uses:])]
    return stays[:number] + parts + stays[number + 1:]


def _spilled(space: Space, stays: Iterable[Stay]) -> set[int]:
    """Tensors that are off the chip at some time anyway."""
    seen, found = set[int](), set(bits(space.stored))
    for stay in stays:
        (found if stay.tensor in seen else seen).add(stay.tensor)
    return found


# --- steps -----------------------------------------------------------------------------------------------------------------


def steps_of(space: Space, order: Sequence[int], stays: Sequence[Stay], addresses: Sequence[int], alignment: int) -> Schedule:
    """The schedule. Fetches stand before the operator that needs them, spills and frees right behind the last use; what its operator
    overwrites is spilled before that, and not freed."""
    problem = space.problem
    steps: list[Step] = []
    base = fixed_places(space, steps, alignment)
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
        begins = {addresses[n] for n in starting.get(moment, ()) if outputs[:1] == (stays[n].tensor,) and stays[n].units}
        overwritten = {n for n in ending.get(moment, ())
                       if addresses[n] in begins and stays[n].tensor in problem.operators[operator].in_place}
        leaving = [n for n in ending.get(moment, ()) if stays[n].tensor not in stored and last_stay[stays[n].tensor] > moment]
        steps += [Spill(stays[n].tensor) for n in leaving if n in overwritten]
        steps.append(Run(operator, tuple(here.get(t, 0) for t in outputs)))
        for t in outputs:
            if t in problem.results:
                steps.append(Spill(t))
                stored.add(t)
        steps += [Spill(stays[n].tensor) for n in leaving if n not in overwritten and stays[n].tensor not in stored]
        stored.update(stays[n].tensor for n in leaving)
        steps += [Free(stays[n].tensor) for n in ending.get(moment, ()) if n not in overwritten]
    return Schedule(tuple(steps))


def _last(stays: Sequence[Stay]) -> dict[int, int]:
    found: dict[int, int] = {}
    for stay in stays:
        found[stay.tensor] = max(stay.last, found.get(stay.tensor, -1))
    return found


def fixed_places(space: Space, steps: list[Step], alignment: int) -> int:
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
