"""Vector loops of a thread: what its iterations touch side by side is moved together, by arrays of the thread's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from tilewright.ir.dims import DimLike
from tilewright.ir.loop import For, Load, Store, expression_nodes, expressions_of
from tilewright.ir.loop_vectors import first_neighbour

Place = tuple[str, tuple[DimLike, ...]]  # a buffer and an index


class Part(Struct, frozen=True):
    """Neighbouring elements of a parameter: the array that holds them, and the first one's index."""

    name: str
    first: DimLike
    is_loaded: bool


def vector_parts(loop: For, spaces: Mapping[str, str], fresh: Callable[[str], str]) -> dict[Place, Part]:
    """Of the accesses of a loop those that are made together: loads of inputs, and stores that combine with nothing. `spaces`: of the
    kernel's parameters."""
    loads = [(n.op.buffer, n.op.index) for s in loop.body for root in expressions_of(s) for n in expression_nodes(root)
             if isinstance(n.op, Load) and spaces.get(n.op.buffer) == "in"]
    stores = [(s.buffer, s.index) for s in loop.body if isinstance(s, Store) and s.buffer in spaces and not s.combine]
    parts: dict[Place, Part] = {}
    for place in dict.fromkeys((*loads, *stores)):
        first = first_neighbour(place[1], loop)
        if first is not None:
            parts[place] = Part(fresh(place[0]), first, place in loads)
    return parts
