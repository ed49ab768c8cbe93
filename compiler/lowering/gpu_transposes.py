"""Elements read across memory on a GPU: through tiles in shared memory, so that neighbouring threads read and store neighbours.

A nest of independent loops stores one after another along its last loop, while what it loads lies so along another one. A block takes a
square of the two: first threads read along the one into shared memory, then they store along the other. Rows of the square are one
element longer, so that its columns lie in different banks.

Guarantees: the elements and values of the nest. One of another form is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..ir.dims import DimLike, bounds, ceildiv, divides, product, symbols_of
from ..ir.errors import ScheduleError
from ..ir.graph import Node, Op
from ..ir.loop import (
    Alloc,
    Buffer,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    expression_nodes,
    expressions_of,
    loop_variable,
    map_statements,
    names_of,
    variable_size,
)
from ..ir.loop_proofs import linear_factor
from ..ir.ops.compute import Elementwise
from ..ir.schedule import Step, apply_schedule
from ..ir.types import BOOL, INDEX, TensorType
from .gpu_rows import Names
from .inline import unflatten_index

SIDE = 32
THREADS = 256
LEAST_SIDE = 16   # iterations of both loops from which on a square is worth it
MOST_TILES = 4    # of loads across memory


class _Crossing(Struct):
    """The loops of a nest, outer first; `read` and `stored` are the numbers of those along which it loads and stores."""

    loops: list[For]
    body: tuple[Stmt, ...]
    loads: list[Load]
    read: int
    stored: int


def in_squares(kernel: Kernel) -> Kernel:
    """The kernel with each outermost nest that reads across memory as blocks of squares."""
    names = Names(names_of(kernel))
    body: list[Stmt] = []
    for statement in kernel.body:
        found = _crossing(statement, kernel) if isinstance(statement, For) and statement.kind == "serial" else None
        body.append(statement if found is None else _Squares(found, names).lower())
    return kernel if all(a is b for a, b in zip(body, kernel.body)) else replace(kernel, body=tuple(body))


def _crossing(statement: For, kernel: Kernel) -> _Crossing | None:
    """How a nest crosses memory, where it does."""
    loops, body = [statement], statement.body
    while len(body) == 1 and isinstance(body[0], For) and body[0].kind == "serial":
        loops.append(body[0])
        body = body[0].body
    store = body[-1]
    if len(loops) < 2 or not isinstance(store, Store) or store.combine or not all(isinstance(s, Let) for s in body[:-1]):
        return None
    inputs = {b.name for b in kernel.buffers if b.space == "in"}
    loads = list(dict.fromkeys(n.op for s in body for root in expressions_of(s) for n in expression_nodes(root) if isinstance(n.op, Load)))
    variables = {loop.symbol.name for loop in loops} | {s.name for s in kernel.symbols}
    if any(load.buffer not in inputs for load in loads) or any(
            s.name in {loop.symbol.name for loop in loops} for loop in loops for s in symbols_of(loop.extent)):
        return None
    stored = next((n for n, loop in enumerate(loops) if _step(store.index, loop) == 1), None)
    if stored is None:
        return None
    across: dict[int, list[Load]] = {}
    for load in loads:
        if {s.name for i in load.index for s in symbols_of(i)} <= variables and _step(load.index, loops[stored]) not in (0, 1):
            along = next((n for n, loop in enumerate(loops) if n != stored and _step(load.index, loop) == 1), None)
            if along is not None and min(bounds(loops[n].extent)[1] for n in (along, stored)) >= LEAST_SIDE:
                across.setdefault(along, []).append(load)
    if len(across) != 1:
        return None
    (read, found), = across.items()
    names = [loop.symbol.name for loop in loops]
    tried = (Step("parallelize", (names[0],)), Step("fuse", tuple(names)))
    try:  # independent loops may run in any order
        apply_schedule(replace(kernel, body=(statement,)), tried)
    except ScheduleError:
        return None
    return _Crossing(loops, body, found, read, stored) if len(found) <= MOST_TILES else None


def _step(index: Sequence[DimLike], loop: For) -> DimLike | None:
    """How far apart neighbouring iterations of a loop are; None where that is no one distance."""
    return linear_factor(index[0], loop.symbol) if len(index) == 1 else None


class _Squares:
    """One nest."""

    def __init__(self, found: _Crossing, names: Names) -> None:
        self.found, self.names = found, names
        self.read, self.stored = found.loops[found.read], found.loops[found.stored]
        self.tiles = [(load, Buffer(names.fresh("square"), load.dtype, (SIDE, SIDE + 1), "shared")) for load in found.loads]

    def lower(self) -> For:
        others = [loop for loop in self.found.loops if loop is not self.read and loop is not self.stored]
        shape = (*(loop.extent for loop in others), ceildiv(self.read.extent, SIDE), ceildiv(self.stored.extent, SIDE))
        block = loop_variable(self.names.fresh("block"), product(shape))
        parts = unflatten_index(variable_size(block), shape)
        lets: list[Stmt] = [Let(loop.symbol.name, _index(part), loop.symbol) for loop, part in zip(others, parts)]
        corners = []
        for label, part, extent in zip(("down", "across"), parts[len(others):], shape[len(others):]):
            corner = loop_variable(self.names.fresh(label), extent)
            lets.append(Let(corner.name, _index(part), corner))
            corners.append(variable_size(corner) * SIDE)
        bring = self._threads(corners, True, lambda at_read, at_stored: tuple(
            Store(tile.name, (at_stored, at_read), Node(load, (), TensorType(load.dtype, ()))) for load, tile in self.tiles))
        send = self._threads(corners, False, self._body)
        return For(block, product(shape), "block", (*lets, *(Alloc(tile) for _, tile in self.tiles), bring, send))

    def _threads(self, corners: Sequence[DimLike], reading: bool, make: object) -> For:
        """All threads go through the square, neighbours along the loop that is read or stored along."""
        assert callable(make)
        thread, turn = loop_variable(self.names.fresh("thread"), THREADS), loop_variable(self.names.fresh("turn"), SIDE * SIDE // THREADS)
        fast = variable_size(thread) % SIDE
        slow = variable_size(thread) // SIDE + variable_size(turn) * (THREADS // SIDE)
        at_read, at_stored = (fast, slow) if reading else (slow, fast)
        body: tuple[Stmt, ...] = make(at_read, at_stored)
        for loop, corner, at in ((self.stored, corners[1], at_stored), (self.read, corners[0], at_read)):
            body = (Let(loop.symbol.name, _index(corner + at), loop.symbol), *body)
            if not divides(SIDE, loop.extent):
                inside = Node(Elementwise("lt"), (_index(corner + at), _index(loop.extent)), TensorType(BOOL, ()))
                body = (If(inside, body),)
        return For(thread, THREADS, "thread", (For(turn, SIDE * SIDE // THREADS, "unrolled", body),))

    def _body(self, at_read: DimLike, at_stored: DimLike) -> tuple[Stmt, ...]:
        """The body of the nest with what lies in the squares read from there."""
        places = {load: Load(tile.name, (at_stored, at_read), load.dtype) for load, tile in self.tiles}

        def change(op: Op) -> Op:
            return places.get(op, op) if isinstance(op, Load) else op

        return map_statements(self.found.body, lambda size: size, change, lambda name, index: (name, index))


def _index(size: DimLike) -> Node:
    return Node(IndexValue(size), (), TensorType(INDEX, ()))


__all__ = ["in_squares"]
