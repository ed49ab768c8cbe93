"""Neighbouring iterations of one thread of a GPU, so that it loads and stores 16 bytes at a time.

A loop whose iterations are independent, and store one element after another of each result, is taken `lanes` iterations a thread as
a vector loop. What it loads beside one another comes in as few loads; what else it loads, element by element. Assumes that the
parameters named begin at multiples of 16 bytes. Guarantees: the elements and values of the loop; iterations in which something hangs
on more than expressions, loads and stores are left alone.

What an iteration adds up in loops that are the same for all of them, as windows do, becomes as many sums, and each statement of those
loops a vector loop (`lanes_of_nest`, `vector_nest`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from msgspec.structs import replace

from ..ir.dims import Composed, DimLike, Symbol, bounds, dim_min, divides, exact_quotient, size_of, symbols_of
from ..ir.graph import Op
from ..ir.loop import (
    Alloc,
    Buffer,
    For,
    IndexValue,
    Let,
    Load,
    Prefetch,
    Stmt,
    Store,
    expression_nodes,
    expressions_of,
    loop_variable,
    map_statements,
    variable_size,
    walk,
)
from ..ir.loop_proofs import linear_factor
from ..ir.loop_vectors import first_neighbour

BYTES = 16     # of an access
MOST_LANES = 8


def lanes_of(loop: For, parameters: Mapping[str, Buffer], threads: int, registers: Container[str] = ()) -> int:
    """Iterations of the loop for a thread to take at a time, at least 1, that leave as many threads as there are of them. `parameters`:
    the aligned ones; `registers`: those of a thread, with which the loop may combine."""
    return _lanes(loop, parameters, threads, registers) if all(isinstance(s, (Let, Store, Prefetch)) for s in loop.body) else 1


def lanes_of_nest(loop: For, parameters: Mapping[str, Buffer], threads: int) -> int:
    """The same for iterations with loops and scalars of their own, where all that differs between iterations lies side by side."""
    if not any(isinstance(s, (Alloc, For)) for s in loop.body):
        return lanes_of(loop, parameters, threads)
    lanes = _lanes(loop, parameters, threads, _own(loop)) if _is_nest(loop.body, loop.symbol) else 1
    apart = any(vector.symbol in symbols_of(*load.index) and first_neighbour(load.index, vector) is None
                for vector in (_vectors(loop, lanes) if lanes > 1 else ()) for load in _loads(vector))
    return 1 if apart else lanes


def _vectors(loop: For, lanes: int) -> list[For]:
    """The vector loops that it is made of."""
    made = vector_nest(loop, lanes, size_of(Symbol("first")), lambda: "lane")
    return [s for s in walk(made) if isinstance(s, For) and s.kind == "vector"]


def _own(loop: For) -> frozenset[str]:
    return frozenset(s.buffer.name for s in walk(loop.body) if isinstance(s, Alloc))


def _is_nest(body: Sequence[Stmt], variable: Symbol) -> bool:
    """Whether scalars are allocated, then loops that the variable does not decide and stores follow one another, and at last lets and
    stores, none of which a loop needs."""
    named = False
    for statement in body:
        match statement:
            case Let():
                named = True
            case Store() | Prefetch():
                pass
            case Alloc(buffer=buffer) if buffer.shape == () and not named:
                pass
            case For(kind="serial" | "unrolled", extent=extent, body=inner) if not named and variable not in symbols_of(extent):
                if not _is_nest(inner, variable):
                    return False
            case _:
                return False
    return True


def _lanes(loop: For, parameters: Mapping[str, Buffer], threads: int, registers: Container[str]) -> int:
    loads = _loads(loop)
    stores = [s for s in walk(loop.body) if isinstance(s, Store) and s.buffer not in registers]
    read = {load.buffer for load in loads}
    if any(s.combine or s.atomic or s.buffer not in parameters or s.buffer in read for s in stores):
        return 1
    places = [(x.buffer, x.index) for x in loads] + [(x.buffer, x.index) for x in stores]
    touched = [parameters[name] for name, index in places if name in parameters and any(
        s.name == loop.symbol.name for s in symbols_of(*index))]
    lanes = min(MOST_LANES, max((BYTES // buffer.dtype.bytes for buffer in touched), default=1))
    while lanes > 1 and not (divides(lanes, loop.extent) and bounds(loop.extent)[1] >= lanes * threads):
        lanes //= 2
    if lanes == 1:
        return 1
    vectors = _vectors(loop, lanes)
    if stores:
        wide = all(first_neighbour(s.index, made) is not None for made in vectors for s in made.body
                   if isinstance(s, Store) and s.buffer not in registers)
    else:
        wide = any(load.buffer in parameters and first_neighbour(load.index, made) is not None for made in vectors for load in _loads(made))
    return lanes if wide else 1


def _loads(loop: For) -> list[Load]:
    return [n.op for s in walk(loop.body) for root in expressions_of(s) for n in expression_nodes(root) if isinstance(n.op, Load)]


def vector_nest(loop: For, lanes: int, first: DimLike, fresh: Callable[[], str]) -> tuple[Stmt, ...]:
    """The iterations from `first` times `lanes` on: what lies between their loops as vector loops, and their scalars as arrays. `fresh`:
    names of variables."""
    own = _own(loop)

    def spread(body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        made: list[Stmt] = []
        together: list[Stmt] = []
        for statement in (*body, None):
            if isinstance(statement, (Let, Store, Prefetch)):
                together.append(statement)
                continue
            if together:
                made.append(vector_loop(replace(loop, body=tuple(together)), lanes, first, fresh(), own))
                together = []
            match statement:
                case Alloc(buffer=buffer):
                    made.append(Alloc(replace(buffer, shape=(lanes,))))
                case For(body=inner):
                    made.append(replace(statement, body=spread(inner)))
        return tuple(made)

    return spread(loop.body)


def vector_loop(loop: For, lanes: int, first: DimLike, name: str, own: Container[str] = ()) -> For:
    """The iterations from `first` times `lanes` on as a vector loop over a new variable. `own`: scalars that are arrays."""
    variable = loop_variable(name, lanes)
    known: dict[str, DimLike] = {loop.symbol.name: first * lanes + variable_size(variable)}
    body: list[Stmt] = []

    def size(old: DimLike) -> DimLike:
        return _replaced(old, known, variable, lanes)

    def place(buffer: str, index: tuple[DimLike, ...]) -> tuple[str, tuple[DimLike, ...]]:
        return buffer, (variable_size(variable),) if buffer in own else tuple(map(size, index))

    def change(op: Op) -> Op:
        match op:
            case Load(buffer=buffer, index=index):
                return Load(*place(buffer, index), op.dtype)
            case IndexValue(size=old):
                return IndexValue(size(old))
        return op

    for statement in loop.body:
        if isinstance(statement, Prefetch):
            continue
        made, = map_statements([statement], size, change, place)
        if isinstance(made, Let) and made.symbol is not None and isinstance(made.value.op, IndexValue):
            known[made.symbol.name] = made.value.op.size  # so that what it hangs on is seen
        body.append(made)
    return For(variable, lanes, "vector", tuple(body), lanes)


def _replaced(size: DimLike, known: Mapping[str, DimLike], lane: Symbol, lanes: int) -> DimLike:
    """The size with symbols replaced. Of a size that is a multiple of `lanes` plus the lane, divided by such a multiple, the lane is all of
    the remainder's last part and none of the quotient's."""
    if isinstance(size, int):
        return size
    total: DimLike = 0
    for monomial, coefficient in size.terms:
        term: DimLike = coefficient
        for atom, power in monomial:
            made: DimLike = size_of(atom)
            if isinstance(atom, Symbol):
                made = known.get(atom.name, made)
            elif any(s.name in known for s in symbols_of(atom.left, atom.right)):
                made = _composed(atom, known, lane, lanes)
            for _ in range(power):
                term = term * made
        total = total + term
    return total


def _composed(atom: Composed, known: Mapping[str, DimLike], lane: Symbol, lanes: int) -> DimLike:
    left, right = (_replaced(part, known, lane, lanes) for part in (atom.left, atom.right))
    if atom.kind == "min":
        return dim_min(left, right)
    if linear_factor(left, lane) == 1 and divides(lanes, right):
        begin, whole = exact_quotient(left - size_of(lane), lanes), exact_quotient(right, lanes)
        if begin is not None and whole is not None:
            return begin // whole if atom.kind == "floordiv" else begin % whole * lanes + size_of(lane)
    return left // right if atom.kind == "floordiv" else left % right


__all__ = ["lanes_of", "lanes_of_nest", "vector_loop", "vector_nest"]
