"""Checks a packing by its definition, pair by pair. Shares no code with what finds packings."""

from __future__ import annotations

from collections.abc import Sequence

from .packer import Item


def fault_of(items: Sequence[Item], offsets: Sequence[int], capacity: int) -> str:
    """What is wrong with the offsets, in words; empty where nothing is."""
    if len(items) != len(offsets):
        return f"{len(items)} items, but {len(offsets)} offsets"
    for number, (item, offset) in enumerate(zip(items, offsets)):
        if offset < 0 or offset + item.size > capacity:
            return f"item {number} at {offset} with {item.size} bytes leaves the capacity of {capacity}"
        if offset % item.alignment:
            return f"item {number} at {offset} is not at a multiple of {item.alignment}"
    by_begin = sorted(range(len(items)), key=lambda number: items[number].lower)
    alive: list[int] = []
    for number in by_begin:
        item, offset = items[number], offsets[number]
        alive = [other for other in alive if items[other].upper > item.lower]
        for other in alive:
            if offset < offsets[other] + items[other].size and offsets[other] < offset + item.size:
                return f"items {min(number, other)} and {max(number, other)} are alive together at {item.lower} and share bytes"
        alive.append(number)
    return ""
