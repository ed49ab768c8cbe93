"""Rows on a GPU: a warp or a block works on one row, its threads side by side along it.

Takes the body of a parallel loop over rows whose loops along the row are vector loops (so that iterations are shown to be independent
but for what they combine). Each becomes a thread loop with strides of as many threads as share the row; what it combines is collected
by shuffles. What stands between such loops is cheap, and each thread computes it for itself. A thread takes several neighbouring
elements at a time where they are loaded together (`gpu_vectors.py`). What several loops read at the same places stays in registers of
the thread, where these are few: memory is read once.

Guarantees: the values of the body, with combinations in another order, as vector loops allow. A body of another form is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from ..ir.dims import DimLike, Symbol, bounds, ceildiv, divides, size_of, substitute, symbols_of
from ..ir.graph import Node, Op
from ..ir.loop import (
    Alloc,
    Buffer,
    Collect,
    For,
    If,
    IndexValue,
    Let,
    Literal,
    Load,
    Local,
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
from ..ir.ops.compute import Elementwise
from ..ir.types import BOOL, INDEX, DType, TensorType
from .gpu_vectors import lanes_of, vector_loop

THREADS = 256
WARP = 32
MOST_KEPT = 32  # elements that a thread keeps
SHORT_ROW, NARROW_ROW, LONG_ROW = 8, 64, 2048  # from these many elements on 8 threads, a warp and a block take a row
IDENTITIES: dict[str, int | float] = {"add": 0, "mul": 1}


class Names(Struct):
    """Names that a kernel has not used."""

    taken: set[str]

    def fresh(self, stem: str) -> str:
        name, number = stem, 2
        while name in self.taken:
            name, number = f"{stem}{number}", number + 1
        self.taken.add(name)
        return name


class _Segment(Struct):
    """What threads do between two collections. `resets` run also where there is no row."""

    resets: list[Stmt] = field(default_factory=list)
    body: list[Stmt] = field(default_factory=list)


class _Read(Struct, frozen=True):
    """What a loop along the row reads for its element `ELEMENT`, of so many that threads take `lanes` at a time."""

    buffer: str
    index: tuple[DimLike, ...]
    dtype: DType
    extent: DimLike
    lanes: int


ELEMENT = Symbol("element")


def _reads(loop: For, lanes: int) -> dict[_Read, Load]:
    """The loads that each iteration of a loop along the row makes, at places that nothing in its body decides."""
    if not all(isinstance(s, (Let, Store, Prefetch)) for s in loop.body):
        return {}
    bound = {s.name for s in loop.body if isinstance(s, Let)}
    found: dict[_Read, Load] = {}
    for node in (n for s in loop.body for root in expressions_of(s) for n in expression_nodes(root)):
        load = node.op
        if isinstance(load, Load) and loop.symbol in symbols_of(*load.index) and not bound & {s.name for s in symbols_of(*load.index)}:
            index = tuple(substitute(size, {loop.symbol.name: size_of(ELEMENT)}) for size in load.index)
            found[_Read(load.buffer, index, load.dtype, loop.extent, lanes)] = load
    return found


def width_of_row(body: Sequence[Stmt]) -> int:
    """The threads that share a row: 1 where rows are too short."""
    extents = [s.extent for s in body if isinstance(s, For) and s.kind == "vector"]
    if not extents:
        return 1
    most = min(bounds(extent)[1] for extent in extents)
    least = max(bounds(extent)[0] for extent in extents)
    if least >= LONG_ROW:
        return THREADS
    if most < SHORT_ROW:
        return 1
    return SHORT_ROW if most < NARROW_ROW else WARP


def distribute_row(loop: For, name_of: Names, aligned: Mapping[str, Buffer]) -> For | None:
    """The parallel loop over rows as blocks of threads; None where its body has another form. `aligned`: parameters that begin at a
    multiple of 16 bytes."""
    width = width_of_row(loop.body)
    if width == 1 or not _has_form(loop):
        return None
    return _Row(loop, width, name_of, aligned).lower()


def _has_form(loop: For) -> bool:
    """Whether the body is allocations of single registers, lets, stores and vector loops, and registers are each set to what changes
    no combination, combined by one loop, and then only read."""
    registers: dict[str, Buffer] = {}
    given: dict[str, Node] = {}
    combined: set[str] = set()
    stored = {s.buffer for s in walk(loop.body) if isinstance(s, Store)}
    for statement in loop.body:
        read = {n.op.buffer for s in walk([statement]) for root in expressions_of(s) for n in expression_nodes(root)
                if isinstance(n.op, Load)}
        if any(name in registers and name not in combined or name in stored and name not in registers for name in read):
            return False
        match statement:
            case Alloc(buffer=buffer) if buffer.space == "register" and not buffer.shape:
                registers[buffer.name] = buffer
            case Store(buffer=name, combine="") if name in registers:
                if name in given:
                    return False
                given[name] = statement.value
            case Store(buffer=name, combine=combine):
                if combine or name in registers:
                    return False
            case For(kind="vector"):
                kinds = {(s.buffer, s.combine) for s in walk(statement.body) if isinstance(s, Store) and s.buffer in registers}
                names = {name for name, _ in kinds}
                if len(names) != len(kinds) or names & combined or not all(
                        name in given and _is_identity(given[name], combine) for name, combine in kinds):
                    return False
                if any(isinstance(s, Alloc) and s.buffer.space != "register" for s in walk(statement.body)):
                    return False
                combined |= names
            case Let() | Prefetch():
                pass
            case _:
                return False
    return bool(combined)


def _is_identity(value: Node, combine: str) -> bool:
    """Whether combining with the literal changes nothing."""
    if not isinstance(value.op, Literal) or not combine:
        return False
    dtype, number = value.op.dtype, value.op.value
    if combine in IDENTITIES:
        return number == IDENTITIES[combine]
    if combine in ("max", "min"):
        return number == (dtype.lowest if combine == "max" else dtype.highest)
    return dtype.is_bool and number is (combine == "and")


class _Row:
    """One loop over rows."""

    def __init__(self, loop: For, width: int, names: Names, aligned: Mapping[str, Buffer]) -> None:
        self.loop = loop
        self.aligned = aligned
        self.width = width
        self.rows = THREADS // width
        self.names = names
        blocks = ceildiv(loop.extent, self.rows)
        self.blocks = blocks
        self.block = loop_variable(names.fresh("block"), blocks)
        self.thread = loop_variable(names.fresh("thread"), THREADS)
        self.step = names.fresh("step")
        at = variable_size(self.thread)
        self.lane: DimLike = at % width if width < THREADS else at
        self.row: DimLike = variable_size(self.block) * self.rows + (at // width if width < THREADS else 0)
        self.registers: dict[str, Buffer] = {}
        loops = [s for s in loop.body if isinstance(s, For)]
        reads = Counter(read for s in loops for read in _reads(s, lanes_of(s, aligned, width, self._scalars())))
        self.shared = self._kept([read for read, count in reads.items() if count > 1])
        self.kept: dict[_Read, Buffer] = {}
        self.lets: list[Let] = []
        self.done: list[Stmt] = []
        self.segment = _Segment()

    def lower(self) -> For:
        for statement in self.loop.body:
            self.statement(statement)
        self.flush()
        allocated = [Alloc(buffer) for buffer in (*self.registers.values(), *self.kept.values())]
        return For(self.block, self.blocks, "block", (*allocated, *self.done))

    def statement(self, statement: Stmt) -> None:
        match statement:
            case Alloc(buffer=buffer):
                self.registers[buffer.name] = replace(buffer, shape=(THREADS,))
            case Let():
                self.lets.append(statement)
            case Store(buffer=name) if name in self.registers:
                self.segment.resets.append(statement)
            case Store():
                first = _compare("eq", self.lane, 0)
                self.segment.body.append(If(first, (statement,)))
            case For():
                self.along(statement)

    def _scalars(self) -> dict[str, Buffer]:
        """The registers of the row's body."""
        return {s.buffer.name: s.buffer for s in self.loop.body if isinstance(s, Alloc)}

    def _rounds(self, extent: DimLike, lanes: int) -> DimLike:
        """Times that a thread takes some elements of a row."""
        return ceildiv(extent // lanes if lanes > 1 else extent, self.width)

    def _kept(self, reads: Sequence[_Read]) -> set[_Read]:
        """Those of which a thread keeps its elements, as many as there is room for."""
        room, found = MOST_KEPT, set()
        for read in reads:
            rounds = self._rounds(read.extent, read.lanes)
            if isinstance(rounds, int) and rounds * read.lanes <= room:
                room -= rounds * read.lanes
                found.add(read)
        return found

    def _with_kept(self, loop: For, lanes: int, step: Symbol) -> For:
        """The loop with what stays in registers read from there, stored there first where no earlier loop did."""
        first: list[Stmt] = []
        places: dict[tuple[str, tuple[DimLike, ...]], Load] = {}
        rounds = self._rounds(loop.extent, lanes)
        for read, load in _reads(loop, lanes).items():
            if read not in self.shared:
                continue
            at = variable_size(step) * lanes + (size_of(loop.symbol) % lanes if lanes > 1 else 0)
            place = (variable_size(self.thread), at)
            if read not in self.kept:
                assert isinstance(rounds, int)
                self.kept[read] = Buffer(self.names.fresh("kept"), load.dtype, (THREADS, rounds * lanes), "register")
                first.append(Store(self.kept[read].name, place, Node(load, (), TensorType(load.dtype, ()))))
            places[load.buffer, load.index] = Load(self.kept[read].name, place, load.dtype)

        def change(op: Op) -> Op:
            return places.get((op.buffer, op.index), op) if isinstance(op, Load) else op

        body = map_statements(loop.body, lambda size: size, change, lambda name, index: (name, index))
        return replace(loop, body=(*first, *body)) if places else loop

    def along(self, loop: For) -> None:
        """A loop along the row, an element a thread at a time, and the collection of what it combines."""
        lanes = lanes_of(loop, self.aligned, self.width, self.registers)
        count = loop.extent // lanes if lanes > 1 else loop.extent
        rounds = self._rounds(loop.extent, lanes)
        step = loop_variable(self.step, rounds)
        given, loop = loop, self._with_kept(loop, lanes, step)
        place = variable_size(step) * self.width + self.lane
        inner: tuple[Stmt, ...] = (Let(loop.symbol.name, _index(place), loop.symbol), *loop.body)
        if lanes > 1:
            inner = (vector_loop(loop, lanes, place, loop.symbol.name),)
        if not divides(self.width, count):
            inner = (If(_compare("lt", place, count), inner),)
        self.segment.body.append(For(step, rounds, "serial" if loop is given else "unrolled", inner))
        found = {s.buffer: s.combine for s in walk(loop.body) if isinstance(s, Store) and s.buffer in self.registers}
        if found:
            self.flush()
            self.done += [Collect(name, combine, self.width) for name, combine in found.items()]

    def flush(self) -> None:
        """Ends what threads do without one another."""
        segment, self.segment = self.segment, _Segment()
        if not segment.body and not segment.resets:
            return
        body = tuple(segment.body)
        row = Let(self.loop.symbol.name, _index(self.row), self.loop.symbol)
        inner: tuple[Stmt, ...] = (row, *self.needed(body), *body)
        if not divides(self.rows, self.loop.extent):
            inner = (If(_compare("lt", self.row, self.loop.extent), inner),)
        self.done.append(For(self.thread, THREADS, "thread", self.own((*segment.resets, *inner))))

    def needed(self, body: Sequence[Stmt]) -> list[Stmt]:
        """The lets that the statements use, each with those that it uses itself."""
        wanted = _names_in(body)
        found: list[Stmt] = []
        for let in reversed(self.lets):
            if let.name in wanted:
                found.insert(0, let)
                wanted |= _names_in([let])
        return found

    def own(self, body: Sequence[Stmt]) -> tuple[Stmt, ...]:
        """The statements with each register that of the thread."""
        place = (variable_size(self.thread),)

        def change(op: Op) -> Op:
            return Load(op.buffer, place, op.dtype) if isinstance(op, Load) and op.buffer in self.registers else op

        return map_statements(body, lambda size: size, change, lambda name, index: (name, place if name in self.registers else index))


def _names_in(body: Sequence[Stmt]) -> set[str]:
    """Names of lets and variables in expressions and sizes."""
    found: set[str] = set()
    for statement in walk(body):
        sizes: list[DimLike] = []
        match statement:
            case For(extent=extent):
                sizes.append(extent)
            case Store(index=index):
                sizes += index
            case _:
                pass
        for root in expressions_of(statement):
            for node in expression_nodes(root):
                match node.op:
                    case Local(variable=name):
                        found.add(name)
                    case Load(index=index):
                        sizes += index
                    case IndexValue(size=size):
                        sizes.append(size)
                    case _:
                        pass
        found |= {s.name for s in symbols_of(*sizes)}
    return found


def _index(size: DimLike) -> Node:
    return Node(IndexValue(size), (), TensorType(INDEX, ()))


def _compare(function: str, a: DimLike, b: DimLike) -> Node:
    return Node(Elementwise(function), (_index(a), _index(b)), TensorType(BOOL, ()))
