"""Small nests of serial loops whose iterations meet in memory: what schedules must see.

A nest stores to a buffer and reads the same buffer some iterations away: before, behind, along an axis, across rows, backwards, at
a multiple, or beyond what it stores. Whether its loops may be vectorized, fused, reordered, divided among threads, and what becomes
of the iterations that do not fill a block, hangs on these distances, strides and extents, so they are drawn together: strides are
extents of loops around or one beside, distances are small. Large kernels (`generate_kernels.py`) seldom have both such a pair
of accesses and a schedule that would matter to it.

Guarantees: the same generator gives the same kernel; `verify_kernel` accepts it; all loops are serial; no index leaves its buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir.dims import DimLike, Symbol
from ..ir.graph import Node
from ..ir.loop import Buffer, For, If, IndexValue, Kernel, Literal, Load, Stmt, Store, loop_variable, variable_size
from ..ir.ops.compute import Elementwise
from ..ir.types import INDEX, DType
from .generate_kernels import combines_on
from .kernel_edits import node
from .kernel_values import COMPARE, USUAL, Values

EXTENTS = (2, 3, 3, 4, 5, 5, 7, 8, 9, 10, 17)
MOST_ITERATIONS = 300
DISTANCES = (0, 0, 1, 1, 1, 2, 3)
NUMBERS = tuple(d for d in USUAL if not d.is_bool)


def random_nest(rng: np.random.Generator) -> Kernel:
    """One nest of up to three loops, or two one after the other over the same buffers."""
    return _Nests(Values(rng)).kernel()


class _Nests:
    def __init__(self, values: Values) -> None:
        self.values = values
        self.one, self.chance = values.one, values.chance
        self.symbols: tuple[Symbol, ...] = (Symbol("N", self.one((0, 1, 2)), None),) if self.chance(0.25) else ()
        self.extents = self.drawn_extents()
        self.dtype: DType = self.one(NUMBERS)
        self.room = self.one((0, 1, 1, 2, 3))  # by which the buffers are longer than the loops
        self.strides = self.drawn_strides()  # of positions in flat buffers

    def kernel(self) -> Kernel:
        flat = self.chance(0.6)
        shape = self.flat_shape() if flat else tuple(n + self.room for n in self.extents)
        buffers = [Buffer("x", self.dtype, shape, "in"), Buffer("y", self.dtype, shape, "inout")]
        if self.chance(0.3):
            buffers.append(Buffer("z", self.dtype, shape, "inout"))
        body = [self.nest(buffers, "ijk", flat)]
        if self.chance(0.3):
            body.append(self.nest(buffers, "abc", flat))
        return Kernel("fuzz", tuple(buffers), self.symbols, tuple(body))

    def drawn_extents(self) -> tuple[DimLike, ...]:
        """Of one to three loops, few enough iterations; one of them may be symbolic."""
        found: list[DimLike] = []
        count = 1
        for _ in range(self.one((1, 1, 2, 2, 2, 3))):
            extent = self.one([n for n in EXTENTS if n * count <= MOST_ITERATIONS] or [2])
            if found and self.chance(0.25) and isinstance(found[0], int):
                extent = found[0] if found[0] * count <= MOST_ITERATIONS else extent
            count *= extent
            found.append(extent)
        if self.symbols:
            found[int(self.values.rng.integers(len(found)))] = variable_size(self.symbols[0])
        return tuple(found)

    # --- places ---

    def flat_shape(self) -> tuple[DimLike]:
        """Room for every position in any order of the loops."""
        return (self.position(self.extents, self.room + 1),)

    def drawn_strides(self) -> list[DimLike]:
        """Rows that are as long as the loop over them, longer, or as long as the loop around."""
        widths = [n + self.one((0, 0, self.room)) for n in self.extents]
        outer, inner = self.extents[0], self.extents[-1]
        if outer != inner and self.chance(0.5):
            widths[-1] = outer
        strides: list[DimLike] = [1]
        for width in widths[:0:-1]:
            strides.insert(0, strides[0] * width)
        return strides

    def position(self, variables: Sequence[DimLike], distance: int) -> DimLike:
        place: DimLike = distance
        for variable, stride in zip(variables, self.strides):
            place = place + variable * stride
        return place

    def places(self, variables: list[DimLike], flat: bool) -> tuple[DimLike, ...]:
        """An index some iterations away from that of the iteration, along the last axis of it or all."""
        if flat:
            return (self.position(variables, min(self.one(DISTANCES), self.room)),)
        far = [min(self.one(DISTANCES), self.room) for _ in variables]
        if self.chance(0.5):
            far[:-1] = [0] * (len(far) - 1)
        return tuple(v + d for v, d in zip(variables, far))

    def other_order(self, variables: list[DimLike]) -> list[DimLike]:
        """The variables as they are; one backwards; two exchanged; one at its begin or at half the pace."""
        draw, at = self.values.rng.random(), int(self.values.rng.integers(len(variables)))
        found = list(variables)
        if draw < 0.12:
            found[at] = self.extents[at] - 1 - variables[at]
        elif draw < 0.2 and len(found) > 1 and self.extents[0] == self.extents[-1]:
            found[0], found[-1] = found[-1], found[0]
        elif draw < 0.3:
            found[at] = 0
        elif draw < 0.36:
            found[at] = variables[at] // 2
        return found

    # --- statements ---

    def nest(self, buffers: Sequence[Buffer], names: str, flat: bool) -> For:
        loops = [For(loop_variable(name, extent), extent, "serial", ()) for name, extent in zip(names, self.extents)]
        variables = [variable_size(loop.symbol) for loop in loops]
        targets = [b for b in buffers if b.space == "inout"]
        body: list[Stmt] = []
        for target in targets if self.chance(0.7) else [self.one(targets)]:
            body.append(self.store(target, buffers, variables, flat))
        if self.chance(0.15):
            size = self.one(variables)
            condition = node(Elementwise(self.one(COMPARE)), node(IndexValue(size)), node(Literal(self.one(EXTENTS) // 2, INDEX)))
            body[-1:] = [If(condition, (body[-1],))]
        inner = tuple(body)
        for loop in reversed(self.values.shuffled(loops) if self.chance(0.2) else loops):
            inner = (For(loop.symbol, loop.extent, loop.kind, inner),)
        made = inner[0]
        assert isinstance(made, For)
        return made

    def store(self, target: Buffer, buffers: Sequence[Buffer], variables: list[DimLike], flat: bool) -> Store:
        """A store of a function of other elements, or one that combines."""
        combine = self.one(combines_on(self.dtype)) if self.chance(0.3) else ""
        towards = self.other_order(variables) if combine or self.chance(0.1) else variables
        where = self.places(towards, flat)
        value = self.load(buffers[0] if self.chance(0.7) else self.one(buffers), variables, flat)
        for _ in range(self.one((1, 1, 2)) if not combine or self.chance(0.2) else 0):
            source = target if self.chance(0.7) else self.one(buffers)
            pair = [value, self.load(source, variables, flat)]
            value = node(Elementwise(self.values.function_of_two(self.dtype)), *self.values.shuffled(pair))
        return Store(target.name, where, value, combine)

    def load(self, source: Buffer, variables: list[DimLike], flat: bool) -> Node:
        return node(Load(source.name, self.places(self.other_order(variables), flat), source.dtype))
