"""Kernels of parallel loops as kernels of blocks and threads, for targets that divide work so.

`grid_steps` makes the loops of a nest one parallel loop, as many of them as are independent. `on_grid` runs last over a whole program:
each iteration of a parallel loop becomes a thread, unless the kernel says already what blocks and threads do. What a thread
allocates stays its own; what is too large for that, or has an open size, is a part of scratch memory in the workspace, and as many
threads as that has room for take the iterations in turns.

Guarantees: the program computes what it did; each kernel consists of block loops. Vector loops become serial ones, in which
combining stores keep the order of iterations, but for those that `gpu_vectors` makes.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, Symbol, bounds, ceildiv, dim_max, divides, product, substitute, symbols_of
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
    While,
    loop_variable,
    map_statements,
    names_of,
    variable_size,
    walk,
)
from ..ir.loop_verify import verify_kernel
from ..ir.ops.compute import Elementwise
from ..ir.program import Branch, Launch, Loop, Place, Program, Repeat, Step
from ..ir.schedule import Schedule, apply_schedule
from ..ir.schedule import Step as Primitive
from ..ir.types import BOOL, INDEX, TensorType
from .gpu_rows import Names, distribute_row
from .gpu_vectors import BYTES, lanes_of_nest, vector_nest

MOST_OWN_BYTES = 1024       # of memory that a thread allocates for itself
SCRATCH_BYTES = 1 << 26     # that threads share evenly where they need more
FEWEST_TURNS = 128          # threads that take iterations in turns where their memory has an open size
TURNS = 4                   # short iterations of a thread, where there are many
BLOCKS_A_MULTIPROCESSOR = 8
VECTOR_THREADS = 128        # of a multiprocessor that are left where each takes several neighbouring iterations
ALIGNMENT = 256


def grid_steps(kernel: Kernel) -> Schedule:
    """Steps that make the loops of each outermost nest one parallel loop, as many of them as are independent."""
    steps: list[Primitive] = []
    for statement in kernel.body:
        if isinstance(statement, For) and statement.kind == "serial":
            chain = _chain(statement)
            for depth in range(len(chain), 0, -1):
                # one after the other: each loop is shown to be independent before its variable becomes a quotient
                tried = (Primitive("parallelize", (chain[0],)), *([Primitive("fuse", tuple(chain[:depth]))] if depth > 1 else []))
                try:
                    kernel = apply_schedule(kernel, tried)
                except ScheduleError:
                    continue
                steps += tried
                break
    return tuple(steps)


def _chain(loop: For) -> list[str]:
    """The loops that hold nothing but the next one, whose extents do not depend on one another."""
    names = [loop.symbol.name]
    while len(loop.body) == 1 and isinstance(loop.body[0], For) and loop.body[0].kind == "serial":
        loop = loop.body[0]
        if any(s.name in names for s in symbols_of(loop.extent)):
            break
        names.append(loop.symbol.name)
    return names


class _Scratch(Struct):
    """Memory of the workspace that a kernel's threads share evenly: a parameter, and its size."""

    buffer: Buffer
    bytes: DimLike


def on_grid(program: Program, caps: Caps) -> Program:
    """The program with kernels of blocks and threads."""
    mapped: dict[int, tuple[Kernel, list[_Scratch]]] = {}
    base = -(-program.workspace_bytes // ALIGNMENT) * ALIGNMENT if isinstance(program.workspace_bytes, int) else \
        ceildiv(program.workspace_bytes, ALIGNMENT) * ALIGNMENT
    needed: list[DimLike] = [0]
    aligned = _aligned_parameters(program)

    def launch(step: Launch, around: dict[str, DimLike]) -> Launch:
        if id(step.kernel) not in mapped:
            mapped[id(step.kernel)] = _Grid(step.kernel, caps, aligned[id(step.kernel)]).kernel()
        kernel, scratch = mapped[id(step.kernel)]
        sizes = {s.name: n for s, n in zip(step.kernel.symbols, step.sizes)}
        places, offset = list(step.places), base
        for part in scratch:
            places.append(Place("workspace", 0, offset))
            offset = offset + ceildiv(substitute(part.bytes, sizes), ALIGNMENT) * ALIGNMENT
        if scratch:
            needed[0] = dim_max(needed[0], substitute(offset - base, around))
        return replace(step, kernel=kernel, places=tuple(places))

    def steps(body: Sequence[Step], around: dict[str, DimLike]) -> tuple[Step, ...]:
        return tuple(one(step, around) for step in body)

    def one(step: Step, around: dict[str, DimLike]) -> Step:
        match step:
            case Launch():
                return launch(step, around)
            case Repeat(symbol=symbol, extent=extent):
                last = {symbol.name: dim_max(extent - 1, 0)}
                return replace(step, steps=steps(step.steps, {**around, **last}))
            case Loop():
                return replace(step, condition_steps=steps(step.condition_steps, around), steps=steps(step.steps, around))
            case Branch():
                return replace(step, then=steps(step.then, around), otherwise=steps(step.otherwise, around))
        return step

    made = steps(program.steps, {})
    workspace = program.workspace_bytes if needed[0] == 0 else base + needed[0]
    return replace(program, steps=made, workspace_bytes=workspace)


def _aligned_parameters(program: Program) -> dict[int, dict[str, Buffer]]:
    """Of each kernel, by its id, the parameters that begin at a multiple of 16 bytes in every launch. Inputs, outputs, constants and the
    workspace do."""
    found: dict[int, dict[str, Buffer]] = {}
    for launch in program.launches():
        known = found.setdefault(id(launch.kernel), {b.name: b for b in launch.kernel.buffers})
        for buffer, place in zip(launch.kernel.buffers, launch.places, strict=True):
            if not divides(BYTES, place.offset):
                known.pop(buffer.name, None)
    return found


class _Grid:
    """One kernel. `aligned`: parameters that begin at a multiple of 16 bytes."""

    def __init__(self, kernel: Kernel, caps: Caps, aligned: dict[str, Buffer]) -> None:
        self.old = kernel
        self.caps = caps
        self.aligned = aligned
        self.names = Names(names_of(kernel))
        self.scratch: list[_Scratch] = []

    def kernel(self) -> tuple[Kernel, list[_Scratch]]:
        before: list[Stmt] = []
        body: list[Stmt] = []
        for statement in self.old.body:
            match statement:
                case For(kind="block"):
                    body.append(statement if len(self.aligned) == len(self.old.buffers) else _by_elements(statement))
                case For(kind="parallel"):
                    body.append(self._divided(statement, tuple(before)))
                case Alloc() | Let():
                    before.append(statement)  # each thread does it anew
                case _ if _stores_parameter(statement, self.old):
                    body.append(self._divided(For(Symbol(self.names.fresh("once"), 0, 0), 1, "parallel", (statement,)), tuple(before)))
                case _:
                    before.append(statement)
        if not body:
            body.append(self._divided(For(Symbol(self.names.fresh("once"), 0, 0), 1, "parallel", tuple(before)), ()))
        made = replace(self.old, body=tuple(body), buffers=(*self.old.buffers, *(part.buffer for part in self.scratch)))
        verify_kernel(made)
        return made, self.scratch

    def _divided(self, loop: For, before: tuple[Stmt, ...]) -> For:
        """A parallel loop as blocks of threads, an iteration a thread."""
        row = None if before else distribute_row(loop, self.names, self.aligned)
        if row is not None:
            return row
        body = (*before, *_serial(loop.body))
        large = [s.buffer for s in walk(body) if isinstance(s, Alloc) and _is_large(s.buffer)]
        if large:
            return self._in_turns(loop, body, large)
        lanes = lanes_of_nest(replace(loop, body=body), self.aligned, VECTOR_THREADS * self.caps.multiprocessors)
        if lanes > 1:
            first = loop_variable(self.names.fresh("first"), loop.extent // lanes)
            body = vector_nest(replace(loop, body=body), lanes, variable_size(first), lambda: self.names.fresh("lane"))
            loop = replace(loop, symbol=first, extent=loop.extent // lanes, body=body)
        threads = self._threads(loop.extent)
        turns = self._turns(loop.extent, threads, body)
        count = ceildiv(loop.extent, threads * turns)
        block, thread, place = self._place(count, threads)
        if turns == 1:
            return For(block, count, "block", (For(thread, threads, "thread", self._iteration(loop, place, body, loop.extent)),))
        turn = loop_variable(self.names.fresh("turn"), turns)
        at = (variable_size(block) * turns + variable_size(turn)) * threads + variable_size(thread)
        inner = For(turn, turns, "unrolled", self._iteration(loop, at, body, loop.extent))
        return For(block, count, "block", (For(thread, threads, "thread", (inner,)),))

    def _turns(self, extent: DimLike, threads: int, body: Sequence[Stmt]) -> int:
        """Iterations of a thread, neighbours taking neighbours each time: several, where there are enough and each is short, so that
        more of memory is under way at a time."""
        enough = bounds(extent)[0] >= TURNS * threads * self.caps.multiprocessors * BLOCKS_A_MULTIPROCESSOR
        return TURNS if enough and all(isinstance(s, (Let, Store)) or isinstance(s, For) and s.kind == "vector" for s in body) else 1

    def _threads(self, extent: DimLike) -> int:
        """Threads of a block: fewer where there would be too few blocks for all multiprocessors."""
        most = bounds(extent)[1]
        threads = 256
        while threads > self.caps.threads_per_warp and most < threads * self.caps.multiprocessors:
            threads //= 2
        return threads

    def _place(self, blocks: DimLike, threads: int) -> tuple[Symbol, Symbol, DimLike]:
        """The variables of blocks and threads, and the number of a thread among all."""
        block, thread = loop_variable(self.names.fresh("block"), blocks), loop_variable(self.names.fresh("thread"), threads)
        return block, thread, variable_size(block) * threads + variable_size(thread)

    def _iteration(self, loop: For, place: DimLike, body: tuple[Stmt, ...], extent: DimLike) -> tuple[Stmt, ...]:
        """The body for the iteration at a place, where there is one."""
        let = Let(loop.symbol.name, _index(place), loop.symbol)
        if bounds(place)[1] < bounds(extent)[0]:
            return (let, *body)
        inside = Node(Elementwise("lt"), (_index(place), _index(extent)), TensorType(BOOL, ()))
        return (If(inside, (let, *body)),)

    def _in_turns(self, loop: For, body: tuple[Stmt, ...], large: list[Buffer]) -> For:
        """A limited number of threads, each with its own part of scratch memory."""
        own: DimLike = 0
        for buffer in large:
            own = own + product(buffer.shape) * buffer.dtype.bytes
        width = self.caps.threads_per_warp
        fitting = SCRATCH_BYTES // max(own, 1) // width * width if isinstance(own, int) else FEWEST_TURNS
        most = bounds(loop.extent)[1]
        threads = int(max(width, min(fitting, width * self.caps.multiprocessors, -(-most // width) * width)))
        block, thread, place = self._place(threads // width, width)
        renamed: dict[str, tuple[Buffer, Buffer]] = {}
        for buffer in large:
            count = product(buffer.shape)
            part = Buffer(self.names.fresh(f"{buffer.name}_of_threads"), buffer.dtype, (threads * count,), "out")
            self.scratch.append(_Scratch(part, threads * count * buffer.dtype.bytes))
            renamed[buffer.name] = (buffer, part)
        rounds = ceildiv(loop.extent, threads)
        turn = loop_variable(self.names.fresh("turn"), rounds)
        at = variable_size(turn) * threads + place
        inner = self._iteration(loop, at, _moved(body, renamed, place), loop.extent)
        turns = For(turn, rounds, "serial", inner)
        return For(block, threads // width, "block", (For(thread, width, "thread", (turns,)),))


def _by_elements(statement: Stmt) -> Stmt:
    """The statement without vector loops, for parameters that begin anywhere."""
    match statement:
        case For(kind="vector", body=body):
            return replace(statement, kind="unrolled", lanes=0, body=tuple(map(_by_elements, body)))
        case For(body=body) | While(body=body):
            return replace(statement, body=tuple(map(_by_elements, body)))
        case If(then=then, otherwise=otherwise):
            return replace(statement, then=tuple(map(_by_elements, then)), otherwise=tuple(map(_by_elements, otherwise)))
    return statement


def _is_large(buffer: Buffer) -> bool:
    """Whether a thread has no room for it."""
    size = product(buffer.shape) * buffer.dtype.bytes
    if not isinstance(size, int):
        return True
    return size > MOST_OWN_BYTES and buffer.space == "local" and buffer.dtype != INDEX  # of which there are no parameters


def _stores_parameter(statement: Stmt, kernel: Kernel) -> bool:
    parameters = {b.name for b in kernel.buffers}
    return any(isinstance(s, Store) and s.buffer in parameters for s in walk([statement]))


def _index(size: DimLike) -> Node:
    return Node(IndexValue(size), (), TensorType(INDEX, ()))


def _serial(body: Sequence[Stmt]) -> tuple[Stmt, ...]:
    """The statements of one thread: it has no vectors."""
    made: list[Stmt] = []
    for statement in body:
        match statement:
            case For(kind=kind):
                serial = "serial" if kind in ("vector", "parallel") else kind
                made.append(replace(statement, kind=serial, lanes=0, body=_serial(statement.body)))
            case If(then=then, otherwise=otherwise):
                made.append(replace(statement, then=_serial(then), otherwise=_serial(otherwise)))
            case While():
                made.append(replace(statement, body=_serial(statement.body)))
            case Alloc(buffer=buffer) if buffer.space == "register":
                made.append(Alloc(replace(buffer, space="local")) if buffer.shape else statement)
            case Store(stream=True):
                made.append(replace(statement, stream=False))
            case _:
                made.append(statement)
    return tuple(made)


def _moved(body: tuple[Stmt, ...], renamed: dict[str, tuple[Buffer, Buffer]], thread: DimLike) -> tuple[Stmt, ...]:
    """The statements with the large allocations in scratch memory, at the part of the thread."""
    def access(name: str, index: tuple[DimLike, ...]) -> tuple[str, tuple[DimLike, ...]]:
        if name not in renamed:
            return name, index
        old, part = renamed[name]
        place: DimLike = 0
        if len(index) == len(old.shape):
            for i, n in zip(index, old.shape):
                place = place * n + i
        else:
            place, = index
        return part.name, (thread * product(old.shape) + place,)

    def change(op: Op) -> Op:
        if isinstance(op, Load) and op.buffer in renamed:
            name, index = access(op.buffer, op.index)
            return Load(name, index, op.dtype)
        return op

    def without(statements: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        kept: list[Stmt] = []
        for s in statements:
            match s:
                case Alloc(buffer=buffer) if buffer.name in renamed:
                    continue
                case For(body=inner) | While(body=inner):
                    kept.append(replace(s, body=without(inner)))
                case If(then=then, otherwise=otherwise):
                    kept.append(replace(s, then=without(then), otherwise=without(otherwise)))
                case _:
                    kept.append(s)
        return tuple(kept)

    return without(map_statements(body, lambda size: size, change, access))


__all__ = ["grid_steps", "on_grid"]
