"""Random well-typed kernels: nests of loops of any kind over buffers of one to three axes, of static or symbolic sizes.

A kernel is a sequence of phases, each of which computes a buffer from those that are ready: an elementwise nest, a
reduction into memory, a chain where each element takes the one before, a scatter by data, a stage in local memory, an
update under a condition, a loop that data ends. The phases stand side by side, run by one thread; or within one loop
over rows, which may be parallel; or each is a parallel nest with a result of its own.

Guarantees: the same generator gives the same kernel; `verify_kernel` accepts it; no element is read that nothing has
stored to, no index leaves its buffer, and what runs in parallel or in vectors touches nothing in common, for every
binding of the symbols within their bounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from ..ir.dims import DimLike, Symbol, bounds
from ..ir.errors import CompileError
from ..ir.graph import Node
from ..ir.loop import (
    COMBINES,
    Alloc,
    Buffer,
    Check,
    For,
    If,
    Kernel,
    Let,
    Literal,
    Load,
    Local,
    Prefetch,
    Stmt,
    Store,
    While,
    loop_variable,
    variable_size,
)
from ..ir.loop_proofs import Known
from ..ir.ops.compute import Cast, Elementwise, reduction_identity
from ..ir.ops.scalar import result_dtype
from ..ir.types import ARRAY_DTYPES, I32, I64, INDEX, DType
from .kernel_edits import Scope, fresh_name, fueled, node
from .kernel_values import USUAL, Values

STATIC = (1, 2, 2, 3, 3, 4, 5, 8)
REDUCTION = {"add": "sum", "mul": "prod", "max": "max", "min": "min", "and": "and", "or": "or"}
LANES = (1, 2, 4, 8)
ERROR_INDEX = -1


def random_kernel(rng: np.random.Generator, phases: int = 3) -> Kernel:
    """A kernel of up to `phases` phases."""
    return _Growth(Values(rng), phases).kernel()


def combines_on(dtype: DType) -> list[str]:
    """The combining stores that the dtype has."""
    found = []
    for name in COMBINES:
        try:
            result_dtype(name, [dtype, dtype])
        except CompileError:
            continue
        found.append(name)
    return found


class _Block(Struct):
    """Statements being written, and what the next one sees. Within a loop over rows: how many, and the variable, which is the first index
    of all that rows store to."""

    scope: Scope
    body: list[Stmt] = field(default_factory=list)
    rows: DimLike | None = None
    row: DimLike | None = None


class _Growth:
    def __init__(self, values: Values, phases: int) -> None:
        self.values = values
        self.one, self.chance = values.one, values.chance
        self.phases = 1 + int(values.rng.integers(phases))
        self.taken: set[str] = set()
        self.symbols: list[Symbol] = []
        self.buffers: list[Buffer] = []
        self.sizes: list[DimLike] = []

    # --- the whole ---

    def kernel(self) -> Kernel:
        for name, lower, upper in (("N", 0, None), ("M", 1, 9))[:int(self.values.rng.integers(3))]:
            self.symbols.append(Symbol(name, lower, upper))
            self.taken.add(name)
        self.sizes = [self.one(STATIC), self.one(STATIC), *map(variable_size, self.symbols)]
        form = self.one(("flat", "rows", "rows", "apart"))
        rows = self.one(self.sizes) if form == "rows" else None
        for _ in range(int(self.values.rng.integers(1, 4))):
            self.parameter("in", rows)
        for _ in range(int(self.values.rng.integers(0, 2))):
            self.parameter("inout", rows)
        scope = Scope({b.name: b for b in self.buffers}, {}, {s.name: variable_size(s) for s in self.symbols})
        scope.fresh = frozenset(b.name for b in self.buffers)
        block = _Block(scope)
        if rows is None:
            for _ in range(self.phases):
                self.apart(block) if form == "apart" else self.phase(block)
        else:
            self.over_rows(block, rows)
        return Kernel("fuzz", tuple(self.buffers), tuple(self.symbols), tuple(block.body))

    def dtype(self) -> DType:
        return self.one(ARRAY_DTYPES if self.chance(0.15) else USUAL)

    def shape(self, rows: DimLike | None, most: int = 3) -> tuple[DimLike, ...]:
        inner = tuple(self.one(self.sizes) for _ in range(int(self.values.rng.integers(1, most + (rows is None)))))
        return inner if rows is None else (rows, *inner)

    def parameter(self, access: str, rows: DimLike | None) -> Buffer:
        with_rows = rows if access != "in" or self.chance(0.6) else None
        name = fresh_name({"in": "x", "out": "y", "inout": "z"}[access], self.taken)
        self.buffers.append(Buffer(name, self.dtype(), self.shape(with_rows), access))
        return self.buffers[-1]

    def over_rows(self, block: _Block, rows: DimLike) -> None:
        """One loop over rows that holds all phases."""
        loop = self.loop("r", rows, self.one(("parallel", "parallel", "serial", "unrolled")))
        inner = self.entered(block, loop)
        inner.rows, inner.row = rows, variable_size(loop.symbol)
        inner.scope.first.update({b.name: inner.row for b in self.buffers if b.space == "inout"})
        for _ in range(self.phases):
            self.phase(inner)
        block.body.append(replace(loop, body=tuple(inner.body)))

    def apart(self, block: _Block) -> None:
        """A phase that may be a parallel nest: its result is read by no other phase."""
        before = block.scope.fresh
        first = len(block.body)
        target = self.parameter("out", None)
        block.scope.buffers[target.name] = target
        readable = {b.name for b in self.buffers if b.space == "in"}
        block.scope.fresh = frozenset(readable)
        self.elementwise(block, target) if self.chance(0.6) else self.reduction(block, target)
        for position in range(first, len(block.body)):
            loop = block.body[position]
            if isinstance(loop, For) and loop.kind == "serial" and self.chance(0.7) and len(block.body) == first + 1:
                block.body[position] = replace(loop, kind="parallel")
        block.scope.fresh = before

    def phase(self, block: _Block) -> None:
        forms = (self.elementwise, self.elementwise, self.reduction, self.reduction, self.chain, self.scatter, self.staged,
                 self.guarded, self.repeated)
        target = self.target(block)
        form = self.one(forms)
        form(block, target)
        block.scope.fresh |= {target.name}
        if self.chance(0.1):
            self.hint(block)

    def target(self, block: _Block) -> Buffer:
        """What the next phase computes: a new result, one that is updated, or memory of the block."""
        draw = self.values.rng.random()
        known = [b for b in block.scope.buffers.values()
                 if b.space in ("inout", "out", "local") and b.name in block.scope.fresh and self.owned(block, b)]
        if known and draw < 0.3:
            return self.one(known)
        if draw < 0.5:
            shape = tuple(self.one(STATIC) for _ in range(int(self.values.rng.integers(1, 3))))
            memory = Buffer(fresh_name("t", self.taken), self.dtype(), shape, "local")
            block.body.append(Alloc(memory))
        else:
            memory = self.parameter("out", block.rows)
            if block.row is not None:  # other rows have not been computed, or by another thread
                block.scope.first[memory.name] = block.row
        block.scope.buffers[memory.name] = memory
        return memory

    def owned(self, block: _Block, buffer: Buffer) -> bool:
        """Whether rows do not share it."""
        return block.rows is None or buffer.space == "local" or (len(buffer.shape) > 1 and buffer.shape[0] == block.rows)

    # --- loops ---

    def loop(self, stem: str, extent: DimLike, kind: str = "serial") -> For:
        if kind == "unrolled" and not isinstance(extent, int):
            kind = "serial"
        name = fresh_name(stem, self.taken)
        return For(loop_variable(name, extent), extent, kind, (), self.one(LANES) if kind == "vector" else 0)

    def entered(self, block: _Block, *loops: For) -> _Block:
        """A block within the loops."""
        scope = block.scope.inner()
        for loop in loops:
            scope.sizes[loop.symbol.name] = variable_size(loop.symbol)
            scope.loops = (*scope.loops, loop)
            scope.known = Known((*scope.known.loops, (loop.symbol, loop.extent)), scope.known.facts)
        return _Block(scope, [], block.rows, block.row)

    def nest(self, block: _Block, target: Buffer, vectors: bool = True) -> tuple[list[For], tuple[DimLike, ...]]:
        """Loops over the target, in any order, and the index that walks it."""
        whole = block.rows is None or target.space == "local"
        shape = target.shape if whole else target.shape[1:]
        loops = [self.loop(self.one("ijk"), extent) for extent in shape]
        own = tuple(variable_size(loop.symbol) for loop in loops)
        index = own if whole or block.row is None else (block.row, *own)
        loops = loops if self.chance(0.7) else self.values.shuffled(loops)
        marked = [replace(loop, kind="unrolled") if isinstance(loop.extent, int) and self.chance(0.1) else loop for loop in loops]
        if vectors and marked and self.chance(0.35) and block.scope.vector is None:
            marked[-1] = replace(marked[-1], kind="vector", lanes=self.one(LANES))
        return marked, index

    @staticmethod
    def closed(loops: Sequence[For], body: Sequence[Stmt]) -> Stmt:
        inner = tuple(body)
        for loop in reversed(loops):
            inner = (replace(loop, body=inner),)
        return inner[0]

    def reading(self, block: _Block, target: Buffer, index: tuple[DimLike, ...], dtype: DType, update: bool) -> Node:
        """An expression that reads of the target at most the element at the index."""
        scope = replace(block.scope, fresh=block.scope.fresh - {target.name})
        value = self.values.expression(scope, dtype, self.one((1, 1, 2, 2, 3)))
        if not update or target.dtype != dtype:
            return value
        old = node(Load(target.name, index, target.dtype))
        return old if self.chance(0.1) else node(Elementwise(self.values.function_of_two(dtype)), old, value)

    # --- phases ---

    def elementwise(self, block: _Block, target: Buffer) -> None:
        """Every element from others, or from what it was."""
        update = target.name in block.scope.fresh
        loops, index = self.nest(block, target)
        inner = self.entered(block, *loops)
        dtype = target.dtype
        if self.chance(0.3):
            name = fresh_name("v", self.taken)
            value = self.reading(inner, target, index, self.dtype(), False)
            inner.body.append(Let(name, value))
            inner.scope.values[name] = value.dtype
        stream = target.space == "out" and self.chance(0.05)
        inner.body.append(Store(target.name, index, self.reading(inner, target, index, dtype, update), "", stream))
        block.body.append(self.closed(loops, inner.body))

    def reduction(self, block: _Block, target: Buffer) -> None:
        """Every element is filled, then combined with the values of one or two more loops."""
        combine = self.one(combines_on(target.dtype))
        identity = reduction_identity(REDUCTION[combine], target.dtype) if combine in REDUCTION and not (
            combine in ("and", "or") and not target.dtype.is_bool) else 0
        first, index = self.nest(block, target)
        if target.name not in block.scope.fresh or self.chance(0.5):
            initial = node(Literal(identity, target.dtype)) if self.chance(0.8) else self.values.literal(target.dtype)
            block.body.append(self.closed(first, [Store(target.name, index, initial)]))
        loops, index = self.nest(block, target, vectors=False)
        more = [self.loop("k", self.one(self.sizes)) for _ in range(int(self.values.rng.integers(1, 3)))]
        loops = [*loops, *more] if self.chance(0.6) else self.values.shuffled([*loops, *more])
        if self.chance(0.4) and block.scope.vector is None:
            at = int(self.values.rng.integers(len(loops)))
            loops[at] = replace(loops[at], kind="vector", lanes=self.one(LANES))
        elif self.chance(0.2) and isinstance(loops[-1].extent, int):
            loops[-1] = replace(loops[-1], kind="unrolled")
        inner = self.entered(block, *loops)
        value = self.reading(inner, target, index, target.dtype, False)
        block.body.append(self.closed(loops, [Store(target.name, index, value, combine)]))

    def chain(self, block: _Block, target: Buffer) -> None:
        """Each element of the last axis from the one before."""
        self.elementwise(block, target)
        block.scope.fresh |= {target.name}
        length = target.shape[-1]
        if bounds(length)[0] < 1:
            return
        loops, index = self.nest(block, target, vectors=False)
        last = index[-1]
        steps = [replace(x, extent=length - 1, symbol=loop_variable(x.symbol.name, length - 1), kind="serial")
                 if str(variable_size(x.symbol)) == str(last) and not isinstance(last, int) else x for x in loops]
        stepping = next((x for x in steps if str(variable_size(x.symbol)) == str(last)), None)
        if isinstance(last, int) or stepping is None:
            return
        place = variable_size(stepping.symbol)
        inner = self.entered(block, *steps)
        before = node(Load(target.name, (*index[:-1], place), target.dtype))
        value = self.reading(inner, target, index, target.dtype, False)
        value = node(Elementwise(self.values.function_of_two(target.dtype)), before, value)
        block.body.append(self.closed(steps, [Store(target.name, (*index[:-1], place + 1), value)]))

    def scatter(self, block: _Block, target: Buffer) -> None:
        """Elements that data chooses."""
        self.elementwise(block, target)
        length = target.shape[-1]
        if not isinstance(length, int) or not self.owned(block, target):
            return
        loop = self.loop("s", self.one(self.sizes))
        inner = self.entered(block, loop)
        name = fresh_name("at", self.taken)
        scope = replace(inner.scope, fresh=inner.scope.fresh - {target.name})
        data = node(Cast(INDEX), self.values.expression(scope, self.one((I32, I64)), 1))
        low = node(Elementwise("max"), data, node(Literal(0, INDEX)))
        place = node(Elementwise("min"), low, node(Literal(length - 1, INDEX)))
        at = Symbol(name, 0, length - 1)
        inner.body.append(Let(name, place, at))
        if self.chance(0.4):
            here = node(Local(name, INDEX))
            inner.body.append(Check(node(Elementwise("lt"), here, node(Literal(length, INDEX))), ERROR_INDEX, "scatter", here,
                                    node(Literal(length, INDEX))))
        rest = [self.values.position(inner.scope, n) for n in target.shape[:-1]]
        if block.rows is not None and target.space != "local" and rest:
            rest[0] = block.row
        if any(r is None for r in rest):
            return
        index = (*(r for r in rest if r is not None), variable_size(at))
        combine = self.one(["", *combines_on(target.dtype)])
        inner.scope.fresh = scope.fresh
        inner.body.append(Store(target.name, index, self.values.expression(inner.scope, target.dtype, 1), combine))
        block.body.append(self.closed([loop], inner.body))

    def staged(self, block: _Block, target: Buffer) -> None:
        """Values are put into memory of their own, and taken out in another order."""
        loops, index = self.nest(block, target)
        space = "register" if all(x.kind in ("unrolled", "vector") for x in loops) and self.chance(0.5) else "local"
        whole = block.rows is None or target.space == "local"
        shape = target.shape if whole else target.shape[1:]
        if not all(isinstance(n, int) for n in shape):
            return self.elementwise(block, target)
        memory = Buffer(fresh_name("t", self.taken), self.dtype(), shape, space)
        own = index if whole else index[1:]
        inner = self.entered(block, *loops)
        block.body.append(Alloc(memory))
        value = self.reading(inner, target, index, memory.dtype, False)
        block.body.append(self.closed(loops, [Store(memory.name, own, value)]))
        block.scope.buffers[memory.name] = memory
        if space == "local":
            block.scope.fresh |= {memory.name}
            return self.elementwise(block, target)
        loops = [replace(x, symbol=replace(x.symbol, name=fresh_name("u", self.taken))) for x in loops]
        again = {str(n): variable_size(x.symbol) for n, x in zip(self.axes_of(loops, shape), loops)}
        own = tuple(again.get(str(n), n) for n in range(len(shape)))
        load = node(Load(memory.name, own, memory.dtype))
        index = own if whole or block.row is None else (block.row, *own)
        value = load if memory.dtype == target.dtype else node(Cast(target.dtype), load)
        block.body.append(self.closed(loops, [Store(target.name, index, value)]))

    @staticmethod
    def axes_of(loops: Sequence[For], shape: tuple[DimLike, ...]) -> list[int]:
        """For each loop the axis that it walks: the first one of its extent that no other loop walks."""
        free = list(range(len(shape)))
        found = []
        for loop in loops:
            axis = next(a for a in free if shape[a] == loop.extent)
            free.remove(axis)
            found.append(axis)
        return found

    def guarded(self, block: _Block, target: Buffer) -> None:
        """What is there is changed where a condition holds."""
        self.elementwise(block, target)
        loops, index = self.nest(block, target, vectors=False)
        inner = self.entered(block, *loops)
        scope = replace(inner.scope, fresh=inner.scope.fresh - {target.name})
        condition = self.values.provable(scope) if self.chance(0.2) else self.values.condition(scope)
        inner.scope.fresh |= {target.name}
        stores = [Store(target.name, index, self.reading(inner, target, index, target.dtype, True),
                        self.one(["", *combines_on(target.dtype)])) for _ in range(2)]
        choice = If(condition, (stores[0],), (stores[1],) if self.chance(0.4) else ())
        block.body.append(self.closed(loops, [choice]))

    def repeated(self, block: _Block, target: Buffer) -> None:
        """A loop that data ends."""
        self.elementwise(block, target)
        loops, index = self.nest(block, target, vectors=False)
        if self.chance(0.5):
            return
        inner = self.entered(block, *loops)
        inner.scope.fresh |= {target.name}
        old = node(Load(target.name, index, target.dtype))
        limit = self.values.literal(target.dtype)
        change = Store(target.name, index, self.reading(inner, target, index, target.dtype, True))
        rounds = While(node(Elementwise("lt"), old, limit), (change,))
        block.body.append(self.closed(loops, fueled(rounds, self.taken)))

    def hint(self, block: _Block) -> None:
        """A prefetch, wherever it points."""
        names = [b for b in block.scope.buffers.values() if b.space != "register"]
        buffer = self.one(names)
        index = tuple(self.one([0, 1, *block.scope.sizes.values()]) for _ in buffer.shape)
        block.body.append(Prefetch(buffer.name, index))
