"""A kernel that is being changed, for mutators: places in random order, and changes of one part of an expression."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from ..ir.dims import DimLike, bounds, product
from ..ir.graph import Node
from ..ir.loop import (
    For,
    If,
    Kernel,
    Let,
    Load,
    Store,
    expression_nodes,
    expressions_of,
    names_of,
)
from .kernel_edits import (
    Copying,
    Scope,
    Spot,
    copied,
    edited,
    fresh_name,
    is_fuel,
    replaced,
    spots,
    with_expressions,
)
from .kernel_values import Values

EXTENTS = (1, 1, 2, 3, 4)


class Draft(Struct):
    """A kernel to change, where its statements stand, and what to draw from."""

    kernel: Kernel
    values: Values
    donor: Kernel | None = None
    places: list[Spot] = []

    def spots(self, *kinds: type) -> list[Spot]:
        """Places of statements of these kinds that may be changed, in random order."""
        if not self.places:
            self.places = spots(self.kernel)
        found = [s for s in self.places if s.statement is not None and isinstance(s.statement, kinds) and not is_fuel(s.statement)]
        return self.values.shuffled(found)

    def gaps(self) -> list[Spot]:
        """Places where a statement may be put, in random order."""
        if not self.places:
            self.places = spots(self.kernel)
        return self.values.shuffled(self.places)

    def fresh(self, stem: str) -> str:
        return fresh_name(stem, names_of(self.kernel))


Mutator = Callable[[Draft], Kernel | None]


def parts_of(draft: Draft, spot: Spot, wanted: Callable[[Node], bool]) -> tuple[int, Node] | None:
    """The number of an expression of the statement, and a node of it."""
    assert spot.statement is not None
    found = [(k, n) for k, root in enumerate(expressions_of(spot.statement)) for n in expression_nodes(root)
             if wanted(n) and not (isinstance(n.op, Load) and n.op.buffer.startswith("fuel"))]
    return draft.values.one(found) if found else None


def with_part(draft: Draft, wanted: Callable[[Node], bool], new: Callable[[Scope, Node], Node | None]) -> Kernel | None:
    """A node of some expression replaced."""
    for spot in draft.spots(Store, Let, If)[:6]:
        found = parts_of(draft, spot, wanted)
        if found is None or spot.statement is None:
            continue
        number, old = found
        made = new(spot.scope, old)
        if made is None or made.dtype != old.dtype:
            continue
        roots = list(expressions_of(spot.statement))
        roots[number] = replaced(roots[number], old, made)
        return edited(draft.kernel, spot, (with_expressions(spot.statement, roots),))
    return None


def kept_inside(scope: Scope, name: str, index: tuple[DimLike, ...]) -> tuple[DimLike, ...]:
    """The index with each part modulo its axis where that is known to have elements."""
    buffer = scope.buffers.get(name)
    if buffer is None:
        return index
    shape = buffer.shape if len(index) == len(buffer.shape) else (product(buffer.shape),)
    return tuple(i if scope.inside(i, n) or bounds(n)[0] < 1 else i % n for i, n in zip(index, shape))


def with_extent(loop: For, extent: DimLike) -> For:
    """The loop with another extent, and bounds of its variable that follow."""
    new, = copied([replace(loop, extent=extent)], Copying())
    assert isinstance(new, For)
    return new
