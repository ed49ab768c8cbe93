"""Which accesses of a vector loop touch neighbouring elements: those that a GPU's thread makes with few wide loads and stores."""

from __future__ import annotations

from .dims import DimLike, divides, size_of, symbols_of
from .loop import For, Let, walk
from .loop_proofs import linear_factor


def first_neighbour(index: tuple[DimLike, ...], loop: For) -> DimLike | None:
    """The element that the first iteration touches, where the others touch the following ones and it is a multiple of `lanes`; None where
    that is not shown."""
    if len(index) != 1 or linear_factor(index[0], loop.symbol) != 1:
        return None
    first = index[0] - size_of(loop.symbol)
    own = {s.name for s in walk(loop.body) if isinstance(s, Let)}
    return first if divides(loop.lanes, first) and not any(s.name in own for s in symbols_of(first)) else None


__all__ = ["first_neighbour"]
