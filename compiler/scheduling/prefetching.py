"""Transfers beside computing: a schedule whose fetches begin a launch earlier, and whose spills have a launch more to end.

What an operator needs is fetched right before it by the searches, which count bytes; nothing can be computed meanwhile. Here the value
comes before the operator that runs before that one, and what is spilled keeps its bytes for one operator more, wherever all values
still find a place, with banks of its own for what moves beside an operator: a bank serves one at a time.

Assumes a schedule that the checker accepted, whose operators overwrite nothing. Guarantees one that the checker accepts too, with the
same operators in the same order and the same bytes moved; how many packings are tried is limited, so that equal schedules give equal
ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ..packing import Item, pack
from .checker import check
from .problem import Fetch, Free, Problem, Run, Schedule, Step, rounded

ATTEMPTS = 60  # packings that are tried
NODES = 5_000  # of the packer's search, for each


class Stay(Struct):
    """A tensor in the scratchpad between two steps, whose moments are twice their positions; `begin` or `end` may be moved."""

    tensor: int
    begin: int
    end: int


class Move(Struct, frozen=True):
    """What would make room for overlap: a stay that begins or ends at another moment."""

    stay: int
    begin: int
    end: int
    bytes: int


def overlapped(problem: Problem, schedule: Schedule, budget: int, alignment: int, banks: int) -> Schedule:
    """The schedule with as many transfers beside computing as find a place; the same one where none does."""
    if banks == 1 or any(operator.in_place or operator.joined for operator in problem.operators):
        return schedule
    stays = _stays_of(problem, schedule)
    moves = sorted(_moves_of(problem, schedule, stays), key=lambda move: (-move.bytes, move.begin, move.stay))
    search = _Search(problem, stays, budget // alignment, alignment, rounded(-(-budget // banks), alignment) // alignment)
    search.take(moves)
    if search.offsets is None:
        return schedule
    found = _steps_of(problem, schedule, stays, search.stays, [offset * alignment for offset in search.offsets])
    before, after = check(problem, schedule, budget, alignment), check(problem, found, budget, alignment)
    return found if after.moved == before.moved else schedule


class _Search:
    """The moves taken so far, with offsets for all stays. `bank`: its units; the last bank may be shorter."""

    def __init__(self, problem: Problem, stays: Sequence[Stay], room: int, alignment: int, bank: int) -> None:
        self.bank = bank
        self.moved: set[int] = set()
        self.units = [rounded(problem.tensors[stay.tensor].bytes, alignment) // alignment for stay in stays]
        self.room = room
        self.stays = [Stay(stay.tensor, stay.begin, stay.end) for stay in stays]
        self.offsets: tuple[int, ...] | None = None
        self.attempts = ATTEMPTS

    def take(self, moves: Sequence[Move]) -> None:
        """All of them where there is room, else those of each half."""
        pending = [list(moves)]
        while pending and self.attempts:
            some = pending.pop()
            if not some or self.try_moves(some):
                continue
            if len(some) > 1:
                middle = len(some) // 2
                pending += [some[middle:], some[:middle]]

    def try_moves(self, moves: Sequence[Move]) -> bool:
        self.attempts -= 1
        tried = [Stay(stay.tensor, stay.begin, stay.end) for stay in self.stays]
        for move in moves:
            stay = tried[move.stay]
            stay.begin, stay.end = min(stay.begin, move.begin), max(stay.end, move.end)
        moved = self.moved | {move.stay for move in moves}
        items = [Item(stay.begin, stay.end, rounded(units, self.bank), self.bank) if number in moved else Item(stay.begin, stay.end, units)
                 for number, (stay, units) in enumerate(zip(tried, self.units))]
        packing = pack(items, rounded(self.room, self.bank) if moved else self.room, nodes=NODES)
        if packing.verdict != "packed" or any(o + units > self.room for o, units in zip(packing.offsets, self.units)):
            return False
        self.stays, self.offsets, self.moved = tried, packing.offsets, moved
        return True


def _stays_of(problem: Problem, schedule: Schedule) -> list[Stay]:
    """Every stay of a tensor that takes a place."""
    found: list[Stay] = []
    present: dict[int, Stay] = {}
    for position, step in enumerate(schedule.steps):
        come: tuple[int, ...] = ()
        match step:
            case Fetch(tensor=tensor):
                come = (tensor,)
            case Run(operator=operator):
                come = problem.operators[operator].outputs
            case Free(tensor=tensor) if tensor in present:
                present.pop(tensor).end = 2 * position
        for tensor in come:
            if problem.tensors[tensor].bytes:
                present[tensor] = Stay(tensor, 2 * position, 2 * len(schedule.steps))
                found.append(present[tensor])
    return found


def _moves_of(problem: Problem, schedule: Schedule, stays: Sequence[Stay]) -> list[Move]:
    """Fetches to before the operator that runs before them, and ends behind spills to after the next operator."""
    steps = schedule.steps
    runs = [position for position, step in enumerate(steps) if isinstance(step, Run)]
    begins = {(stay.tensor, stay.begin): number for number, stay in enumerate(stays)}
    ends = {(stay.tensor, stay.end): number for number, stay in enumerate(stays)}
    found = []
    ran = 0                        # operators so far
    touched: dict[int, int] = {}   # where a tensor was last spilled or freed
    for position, step in enumerate(steps):
        if isinstance(step, Run):
            ran += 1
            continue
        tensor, last, moment = step.tensor, runs[ran - 1] if ran else -1, 2 * position
        size, before = problem.tensors[tensor].bytes, touched.get(tensor, -1)
        if isinstance(step, Fetch):
            if (tensor, moment) in begins and before < last and tensor not in problem.pinned:
                found.append(Move(begins[tensor, moment], 2 * last - 1, 0, size))
            continue
        if isinstance(step, Free) and (tensor, moment) in ends and before > last and ran < len(runs):
            beyond = runs[ran + 1] if ran + 1 < len(runs) else len(steps)
            if not any(isinstance(later, Fetch) and later.tensor == tensor for later in steps[position:beyond]):
                found.append(Move(ends[tensor, moment], 2 * len(steps), 2 * runs[ran] + 1, size))
        touched[tensor] = position
    return found


def _steps_of(problem: Problem, schedule: Schedule, before: Sequence[Stay], after: Sequence[Stay], addresses: Sequence[int]) -> Schedule:
    """The steps in the order of their moments, at the new addresses."""
    begins = {(stay.tensor, stay.begin): number for number, stay in enumerate(before)}
    ends = {(stay.tensor, stay.end): number for number, stay in enumerate(before)}
    rows: list[tuple[int, Step]] = []
    for position, step in enumerate(schedule.steps):
        moment = 2 * position
        if isinstance(step, Fetch) and (step.tensor, moment) in begins:
            number = begins[step.tensor, moment]
            rows.append((after[number].begin, Fetch(step.tensor, addresses[number])))
        elif isinstance(step, Run):
            places = (begins.get((t, moment)) for t in problem.operators[step.operator].outputs)
            rows.append((moment, Run(step.operator, tuple(0 if number is None else addresses[number] for number in places))))
        elif isinstance(step, Free) and (step.tensor, moment) in ends:
            rows.append((after[ends[step.tensor, moment]].end, step))
        else:
            rows.append((moment, step))
    rows.sort(key=lambda row: (row[0], not isinstance(row[1], Free)))
    return Schedule(tuple(step for _, step in rows))
