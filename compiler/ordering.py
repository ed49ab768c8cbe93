"""The order of a program's launches for the least arena, and whether a limit on its bytes can be met.

Launches are kept in their order unless another one is found that needs clearly less memory: neighbours find their operands in the
caches. Assumes launches without control flow and static sizes; others stay as they are. Guarantees that every launch stands
behind those whose results it reads, and a launch that stores over a value behind all that read it. The search is limited by states
and not by time, so equal programs get equal orders.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from .ir.dims import is_static, symbols_of
from .ir.errors import CompileError
from .lowering.lower import Draft, Drafted, Drafts, Placement
from .lowering.memory import ALIGNMENT, Arena, assign_offsets
from .scheduling.heuristics import least_peak, peak_of
from .scheduling.problem import INPUT, LARGEST, VALUE, Operator, Problem, Tensor, make_problem
from .scheduling.space import Space, bits

LEAST_GAIN = 1 / 32    # of the arena, for which the order is changed
STATES = 2000          # of the search between two cuts: some 20 ms
Key = tuple[str, int]  # of a spot: its space, and its number or which storage


class Crowd(Struct, frozen=True):
    """A launch, by its position, and values with their bytes that are alive beside what it touches: in `every` order, or in the best."""

    launch: int
    beside: tuple[str, ...]
    every: bool


class Arrangement(Struct, frozen=True):
    """`order`: positions of the launches. `peak`: bytes alive at once at most in this order; `bound`: no order has fewer.
    `largest`: what a single launch touches, at most, and which that is. `crowd`: where the bound is met."""

    order: tuple[int, ...]
    peak: int
    bound: int
    largest: tuple[int, int]
    crowd: Crowd


def arrange(drafts: Drafts, most: int) -> Arrangement | None:
    """The order of least peak; the one that there is where no other can do with `most` bytes. None where there is none to choose."""
    launches = _launches(drafts)
    if not launches:
        return None
    problem = _problem_of(launches)
    space = Space(problem, LARGEST, ALIGNMENT)
    names = [int(operator.name) for operator in problem.operators]
    largest = max((units * ALIGNMENT, names[o]) for o, units in enumerate(space.need_units))
    before = peak_of(space, sorted(range(len(names)), key=names.__getitem__))
    bound, fullest = max((units + space.total(space.crossing[o]), o) for o, units in enumerate(space.need_units))
    crowd = Crowd(names[fullest], _bytes_of(space, space.crossing[fullest]), True)
    as_drafted = tuple(range(len(names)))
    if bound * ALIGNMENT > most or bound == before:
        return Arrangement(as_drafted, before * ALIGNMENT, bound * ALIGNMENT, largest, crowd)
    found = least_peak(space, STATES)
    order = as_drafted if found.units >= before else tuple(names[o] for o in found.order)
    if found.bound > bound:
        crowd = _crowd_of(space, found.order, names)
    return Arrangement(order, min(found.units, before) * ALIGNMENT, max(found.bound, bound) * ALIGNMENT, largest, crowd)


def _crowd_of(space: Space, order: Sequence[int], names: Sequence[int]) -> Crowd:
    """Where an order needs most."""
    best, done, alive = (-1, -1, 0), 0, 0
    for o in order:
        best = max(best, (space.total(alive | space.need[o]), o, alive & ~space.need[o]), key=lambda row: row[0])
        done |= 1 << o
        alive = space.read_later(alive | space.need[o], o, done)
    return Crowd(names[best[1]], _bytes_of(space, best[2]), False)


def _bytes_of(space: Space, tensors: int) -> tuple[str, ...]:
    return tuple(f"{space.problem.tensors[t].name} {space.bytes[t]}" for t in bits(tensors))


def place_least(made: Drafted, limit: int = 0) -> Placement:
    """Offsets for all values, in the order of the launches or in one that needs less; `limit`: bytes that the arena may have, 0 for
    any. CompileError where it cannot, or was not found to, keep to it."""
    arena = assign_offsets(made.storages)
    most = int(arena.size * (1 - LEAST_GAIN)) if isinstance(arena.size, int) else 0
    if limit and isinstance(arena.size, int) and arena.size > limit:
        most = max(most, limit)
    arrangement = arrange(made.drafts, most)
    if arrangement is None:
        _check_limit(made, arena, None, limit)
        return Placement(made.drafts, arena)
    drafts, launches = made.drafts, _launches(made.drafts)
    if arrangement.peak <= most:
        lives = [(storage.first, storage.last, storage.offset) for storage in made.storages]
        other = [launches[number] for number in arrangement.order]
        _set_lifetimes(other)
        smaller = assign_offsets(made.storages)
        if isinstance(smaller.size, int) and smaller.size <= most:
            drafts, arena = [*other], smaller
        else:
            for storage, life in zip(made.storages, lives):
                storage.first, storage.last, storage.offset = life
    _check_limit(made, arena, arrangement, limit)
    return Placement(drafts, arena, arrangement.bound)


def _launches(drafts: Drafts) -> list[Draft]:
    """The launches; none where there is control flow, or where sizes are open."""
    found = [draft for draft in drafts if isinstance(draft, Draft)]
    static = all(spot.storage is None or is_static(spot.storage.size) for draft in found for spot in draft.spots)
    return found if static and len(found) == len(drafts) else []


def _set_lifetimes(drafts: Sequence[Draft]) -> None:
    """From the first launch that touches a storage to the last one."""
    seen: set[int] = set()
    for number, draft in enumerate(drafts):
        for spot in draft.spots:
            if spot.storage is not None:
                if id(spot.storage) not in seen:
                    spot.storage.first = number
                    seen.add(id(spot.storage))
                spot.storage.last = number


def _check_limit(made: Drafted, arena: Arena, arrangement: Arrangement | None, limit: int) -> None:
    if not limit:
        return
    if not isinstance(arena.size, int):
        names = ", ".join(sorted({symbol.name for symbol in symbols_of(arena.size)}))
        raise CompileError(f"{made.name}: the memory of a call depends on {names}, so that no limit can be promised",
                           hint="fix the sizes: --dims NAME=SIZE, or tw.from_onnx(path, dims={...})")
    if arena.size <= limit:
        return
    if arrangement is None:
        raise CompileError(f"{made.name}: needs {arena.size} bytes between its kernels, but max_memory is {limit}")
    needed, number = arrangement.largest
    draft = made.drafts[number]
    if needed > limit and isinstance(draft, Draft):
        parts = {id(s.storage): s.storage for s in draft.spots if s.storage is not None}.values()
        bytes_of = ", ".join(f"{storage.label} {storage.size}" for storage in parts)
        raise CompileError(f"{made.name}: kernel {draft.kernel.name} alone needs {needed} bytes, but max_memory is {limit}",
                           loc=draft.kernel.loc, hint=f"its operands and results between kernels: {bytes_of}; no order needs less "
                           f"than {max(needed, arrangement.bound)}")
    if arrangement.bound > limit:
        crowd = arrangement.crowd
        kernel = made.drafts[crowd.launch].kernel  # type: ignore[union-attr]  # an arrangement has no control flow
        beside = f"{', '.join(crowd.beside) or 'nothing'} beside its operands and results"
        proof = (f"kernel {kernel.name} has {beside}, whatever comes first" if crowd.every
                 else f"all orders were compared; the best is fullest at kernel {kernel.name}, with {beside}")
        raise CompileError(f"{made.name}: in every order {arrangement.bound} bytes are alive at once, but max_memory is {limit}",
                           loc=kernel.loc, hint=f"{proof}; give at least {arrangement.bound}")
    raise CompileError(f"{made.name}: found no order of its kernels that needs less than {arena.size} bytes, but max_memory is {limit}",
                       hint=f"none is known to be impossible down to {arrangement.bound}; give {arena.size}")


def _problem_of(launches: Sequence[Draft]) -> Problem:
    """A storage takes its place from the launch that first stores to it to the last one that needs it; each further time that one is
    stored to is a tensor without bytes, and so is what must only come before. Memory of callers takes no place."""
    tensors: list[Tensor] = []

    def tensor(size: int, kind: str = VALUE, name: str = "") -> int:
        tensors.append(Tensor(name, size, kind))
        return len(tensors) - 1

    whole: dict[Key, int] = {}          # the tensor of a spot
    present: dict[Key, int] = {}        # that of what it holds
    readers: dict[int, list[int]] = {}  # launches that read it
    inputs: list[list[int]] = [[] for _ in launches]
    outputs: list[list[int]] = [[] for _ in launches]
    for number, launch in enumerate(launches):
        stored: dict[Key, tuple[int, str]] = {}
        for buffer, spot in zip(launch.kernel.buffers, launch.spots):
            key = ("workspace", id(spot.storage)) if spot.storage is not None else (spot.space, spot.number)
            if buffer.space != "in":
                stored[key] = (int(spot.storage.size), spot.storage.label) if spot.storage is not None else (0, "")
            elif key not in present:
                whole[key] = present[key] = tensor(0, INPUT)
            if key in present:
                inputs[number] += [whole[key], present[key]]
                readers.setdefault(present[key], []).append(number)
        for key, (size, label) in stored.items():
            for reader in readers.get(present.get(key, -1), ()):
                if reader != number:
                    outputs[reader].append(tensor(0))
                    inputs[number].append(outputs[reader][-1])
            fresh = tensor(size if key not in whole else 0, name=label)
            whole.setdefault(key, fresh)
            present[key] = fresh
            outputs[number].append(fresh)
    rows = (Operator(str(n), tuple(dict.fromkeys(inputs[n])), tuple(outputs[n])) for n in range(len(launches)))
    return make_problem("launches", tensors, rows, ())
