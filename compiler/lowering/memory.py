"""Offsets in one arena for values with lifetimes.

Static sizes: best fit by decreasing size over the values whose lifetimes overlap (Pisarchyk and Lee, Efficient Memory
Management for Deep Neural Net Inference, 2020), which is optimal or close to it for the lifetimes of inference graphs.
Symbolic sizes: values share a slot when their lifetimes are disjoint and one's size is proved to be at most the other's;
offsets are then sums of slot sizes, which `plan` computes once the sizes are known.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ..ir.dims import DimLike, bounds, ceildiv, dim_max, is_static, provably_at_most

ALIGNMENT = 64


class Storage(Struct, eq=False):
    """Memory for one value: its bytes, and the first and last step (inclusive) at which it must be intact."""

    label: str
    size: DimLike
    first: int
    last: int
    offset: DimLike = 0

    def overlaps(self, other: Storage) -> bool:
        return self.first <= other.last and other.first <= self.last


def aligned(size: DimLike) -> DimLike:
    return ceildiv(size, ALIGNMENT) * ALIGNMENT


def assign_offsets(storages: Sequence[Storage]) -> DimLike:
    """Sets every storage's offset; returns the bytes of the arena."""
    if all(is_static(s.size) for s in storages):
        return _pack_static(storages)
    return _pack_symbolic(storages)


def _pack_static(storages: Sequence[Storage]) -> int:
    placed: list[Storage] = []
    total = 0
    order = sorted(range(len(storages)), key=lambda i: (-int(storages[i].size), storages[i].first, i))
    for position in order:
        storage = storages[position]
        size = int(aligned(storage.size))
        busy = sorted((int(o.offset), int(o.offset) + int(aligned(o.size))) for o in placed if o.overlaps(storage))
        best, best_gap, end = None, None, 0
        for start, stop in busy:
            gap = start - end
            if gap >= size and (best_gap is None or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, stop)
        storage.offset = end if best is None else best
        total = max(total, int(storage.offset) + size)
        placed.append(storage)
    return total


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
