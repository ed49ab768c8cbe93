"""Offsets in one arena for values with lifetimes.

Static sizes: the best of several greedy packings, and where that is above the most that is alive at once, an exact search
(`tilewright.packing`) that lowers it or proves that it is least. The search is limited by nodes and not by time, so that equal
programs get equal offsets; what it takes is a small part of a compilation.
Symbolic sizes: values share a slot when their lifetimes are disjoint and one's size is proved to be at most the other's;
offsets are then sums of slot sizes, which `plan` computes once the sizes are known.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ..ir.dims import DimLike, bounds, ceildiv, dim_max, is_static, provably_at_most
from ..packing import Item, pack_least

ALIGNMENT = 64
SEARCH = 2_000_000  # nodes of the search times values, as a node takes time in proportion to them: some 20 to 60 ms


class Storage(Struct, eq=False):
    """Memory for one value: its bytes, and the first and last step (inclusive) at which it must be intact."""

    label: str
    size: DimLike
    first: int
    last: int
    offset: DimLike = 0

    @property
    def end(self) -> int:
        """The first step at which its memory may be given to another value."""
        return self.last + 1

    def overlaps(self, other: Storage) -> bool:
        return self.first < other.end and other.first < self.end


def aligned(size: DimLike) -> DimLike:
    return ceildiv(size, ALIGNMENT) * ALIGNMENT


class Arena(Struct, frozen=True):
    """Its bytes, and of static sizes a number of bytes that no arena for these lifetimes is smaller than."""

    size: DimLike
    bound: int | None


def assign_offsets(storages: Sequence[Storage]) -> Arena:
    """Sets every storage's offset."""
    if all(is_static(s.size) for s in storages):
        return _pack_static(storages)
    return Arena(_pack_symbolic(storages), None)


def _pack_static(storages: Sequence[Storage]) -> Arena:
    real = [storage for storage in storages if int(storage.size) > 0]  # what has no bytes may lie anywhere
    items = [Item(storage.first, storage.end, int(aligned(storage.size)) // ALIGNMENT) for storage in real]
    packing = pack_least(items, nodes=SEARCH // max(len(items), 1))
    for storage, offset in zip(real, packing.offsets):
        storage.offset = offset * ALIGNMENT
    return Arena(packing.height * ALIGNMENT, packing.bound * ALIGNMENT)


def _pack_symbolic(storages: Sequence[Storage]) -> DimLike:
    slots: list[tuple[DimLike, list[Storage]]] = []
    for storage in sorted(storages, key=lambda s: s.first):
        size = storage.size  # compared as it is: alignment keeps the order, and its bounds cost far more
        for position, (room, tenants) in enumerate(slots):
            if any(t.overlaps(storage) for t in tenants):
                continue
            fits = provably_at_most(size, room)
            if fits or provably_at_most(room, size):
                larger = room if fits else size
                slots[position] = (larger, [*tenants, storage])
                break
        else:
            slots.append((size, [storage]))
    offset: DimLike = 0
    for room, tenants in slots:
        for tenant in tenants:
            tenant.offset = offset
        # what a branch that is not taken would need may be less than nothing
        offset = offset + aligned(room if bounds(room)[0] >= 0 else dim_max(room, 0))
    return offset


def lower_bound(storages: Sequence[Storage]) -> int:
    """The most bytes alive at any one step: no arena can be smaller. Static sizes only."""
    steps = sorted({s.first for s in storages})
    return max((sum(int(aligned(s.size)) for s in storages if s.first <= at <= s.last) for at in steps), default=0)
