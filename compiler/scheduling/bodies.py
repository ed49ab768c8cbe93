"""Addresses for stays of tensors in the scratchpad: what hangs together is one rigid body, and bodies are packed.

A `Stay` is a tensor with the moments (positions in the order) at which it is needed, from one fetch (or from where it is computed)
to the last use before it leaves. Two things tie stays together. What an operator takes as one lies side by side throughout
(`joined`), which must be; and a result may lie where an operand ends (`in_place`), which saves room: it is tried for all that can, then
for those that have no room otherwise. Where what must be cannot be, since a tensor would have to lie in two places, the answer says
which stay to part.

Packing is first fit in some orders, then the packer's search, in which a body that is no rectangle takes its bounding box.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from msgspec import Struct

from ..ir.errors import CompileError
from ..packing import Item, pack
from .space import Space, bits

NODES = 20_000  # of the packer's search, for one set of stays
ROUNDS = 12     # orders that first fit tries, of each of three kinds


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


class Apart(Struct, frozen=True):
    """A stay (by number) that must be two, with so many uses in the first."""

    stay: int
    uses: int


class Body(Struct):
    """Stays (by number) with their offsets from the lowest; `overlays`: pairs of them of which the second lies over the first."""

    offsets: dict[int, int]
    overlays: set[tuple[int, int]]


# --- what hangs together -------------------------------------------------------------------------------------------------------


def bodies_of(space: Space, stays: Sequence[Stay], everywhere: bool = True) -> list[Body] | Apart:
    """The bodies, by their first stay; results lie over operands `everywhere` that they can, or where they must."""
    whole = [Body({number: 0}, set()) for number in range(len(stays))]
    if not space.aliased:
        return whole
    there = {(stay.tensor, moment): number for number, stay in enumerate(stays) for moment in stay.uses}
    begun: dict[int, int] = {}  # when a tensor is there first; that is when its operator runs
    for stay in stays:
        begun[stay.tensor] = min(stay.first, begun.get(stay.tensor, stay.first))
    runs = sorted((begun[next(t for t in operator.outputs if space.units[t])], number)
                  for number, operator in enumerate(space.problem.operators) if space.over[number] or operator.joined)
    for moment, operator in runs:
        for group in space.problem.operators[operator].joined:
            members = [there[t, moment] for t in group if space.units[t]]
            for left, right in pairwise(members):
                if not _tie(stays, whole, left, right, stays[left].units, False):
                    return _parted(space, stays, members, moment)
    for moment, operator in runs:
        if not everywhere and sum(stay.units for stay in stays if stay.first <= moment <= stay.last) <= space.room:
            continue
        for operand in bits(space.over[operator]):
            number = there[operand, moment]
            result = there[space.problem.operators[operator].outputs[0], moment]
            if stays[number].last == moment and _tie(stays, whole, number, result, 0, True):
                break
    return [body for number, body in enumerate(whole) if min(body.offsets) == number]


def _tie(stays: Sequence[Stay], whole: list[Body], one: int, other: int, distance: int, overlay: bool) -> bool:
    """The second stay lies so many units above the first, from now on; False where that cannot be, and nothing is changed."""
    first, second = whole[one], whole[other]
    shift = first.offsets[one] + distance - second.offsets[other]
    overlays = first.overlays | second.overlays | ({(one, other)} if overlay else set())
    if first is second:
        return shift == 0 and not overlay
    moved = {number: offset + shift for number, offset in second.offsets.items()}
    for a, low in first.offsets.items():
        for b, begin in moved.items():
            if stays[a].first <= stays[b].last and stays[b].first <= stays[a].last and low < begin + stays[b].units \
                    and begin < low + stays[a].units and (a, b) not in overlays and (b, a) not in overlays:
                return False
    lowest = min(0, *moved.values())
    body = Body({n: offset - lowest for n, offset in (*first.offsets.items(), *moved.items())}, overlays)
    for number in body.offsets:
        whole[number] = body
    return True


def _parted(space: Space, stays: Sequence[Stay], members: Sequence[int], moment: int) -> Apart:
    """The cheapest stay of those to be joined at a moment, parted before it, or behind it where it begins there."""
    choices = [n for n in members if len(stays[n].uses) > 1]
    if not choices:
        names = ", ".join(space.problem.tensors[stays[n].tensor].name for n in members)
        raise CompileError(f"one operator wants {names} side by side, and the same tensors otherwise")
    number = min(choices, key=lambda n: (space.bytes[stays[n].tensor] * (1 if space.stored >> stays[n].tensor & 1 else 2), n))
    place = stays[number].uses.index(moment)
    return Apart(number, place or 1)


# --- first fit -----------------------------------------------------------------------------------------------------------------


class Shapes:
    """Bodies with what first fit needs of them; `met[a]`: bodies b with the differences (address of a less that of b) that overlap."""

    def __init__(self, stays: Sequence[Stay], bodies: Sequence[Body]) -> None:
        self.stays, self.bodies = stays, bodies
        self.height = [max(offset + stays[n].units for n, offset in body.offsets.items()) for body in bodies]
        self.first = [min(stays[n].first for n in body.offsets) for body in bodies]
        self.last = [max(stays[n].last for n in body.offsets) for body in bodies]
        self.met: list[list[tuple[int, int, int]]] = [[] for _ in bodies]
        belongs = {n: (number, offset) for number, body in enumerate(bodies) for n, offset in body.offsets.items()}
        active: list[int] = []
        for n in sorted(range(len(stays)), key=lambda n: stays[n].first):
            active = [other for other in active if stays[other].last >= stays[n].first]
            here, offset = belongs[n]
            for other in active:
                there, below = belongs[other]
                if here != there:
                    low, high = below - offset - stays[n].units, below - offset + stays[other].units
                    self.met[here].append((there, low, high))
                    self.met[there].append((here, -high, -low))
            active.append(n)

    def fit(self, order: Iterable[int], room: int) -> list[int] | int:
        """Each body in turn at the lowest address that is free throughout; or the first that found none."""
        addresses = [-1] * len(self.bodies)
        for number in order:
            address = 0
            for begin, end in sorted([(addresses[o] + low, addresses[o] + high) for o, low, high in self.met[number] if addresses[o] >= 0]):
                if begin >= address:
                    break
                if end > address:
                    address = end
            if address + self.height[number] > room:
                return number
            addresses[number] = address
        return addresses

    def spread(self, addresses: Sequence[int]) -> list[int]:
        """Addresses of stays, from those of bodies."""
        found = [0] * len(self.stays)
        for body, address in zip(self.bodies, addresses):
            for number, offset in body.offsets.items():
                found[number] = address + offset
        return found

    def largest(self, number: int) -> int:
        """The stay of a body that stands for it."""
        return max(self.bodies[number].offsets, key=lambda n: (self.stays[n].units, -n))


def by_size(space: Space, stays: Sequence[Stay]) -> list[int] | int | Apart:
    """TFLite's planner of arenas: first fit by decreasing size."""
    bodies = bodies_of(space, stays)
    if isinstance(bodies, Apart):
        return bodies
    shapes = Shapes(stays, bodies)
    found = shapes.fit(sorted(range(len(bodies)), key=lambda n: (-shapes.height[n], shapes.first[n])), space.room)
    return shapes.spread(found) if isinstance(found, list) else shapes.largest(found)


def by_search(space: Space, stays: Sequence[Stay]) -> list[int] | int | Apart:
    """First fit in some orders, and where that fails the packer's search, limited by nodes so that the answer is always the same."""
    failed = 0
    for everywhere in (True, False) if any(space.over) else (True,):
        bodies = bodies_of(space, stays, everywhere)
        if isinstance(bodies, Apart):
            return bodies
        shapes = Shapes(stays, bodies)
        found = by_many_orders(shapes, space.room)
        if isinstance(found, list):
            return shapes.spread(found)
        failed = shapes.largest(found) if everywhere else failed
        items = [Item(shapes.first[n], shapes.last[n] + 1, shapes.height[n]) for n in range(len(bodies))]
        packing = pack(items, space.room, nodes=NODES)
        if packing.verdict == "packed":
            return shapes.spread(packing.offsets)
    return failed


def by_many_orders(shapes: Shapes, room: int) -> list[int] | int:
    """First fit in some orders; what finds no place goes to the front of the next one."""
    numbers = range(len(shapes.bodies))
    failed = 0
    for key in (lambda n: (-shapes.height[n], shapes.first[n]), lambda n: (shapes.first[n], -shapes.last[n]),
                lambda n: (-shapes.height[n] * (shapes.last[n] - shapes.first[n] + 1), n)):
        order = sorted(numbers, key=key)
        for _ in range(ROUNDS):
            found = shapes.fit(order, room)
            if isinstance(found, list):
                return found
            failed = found
            if order[0] == found:
                break
            order.remove(found)
            order.insert(0, found)
    return failed
