"""Checks that kernels and programs keep the rules of the loop level. Changes nothing; raises VerifyError.

What holds for a kernel that passes:
- Every buffer, variable and symbol is declared before it is used, with one declaration in scope; a size names symbols
  exactly as they are declared, bounds included (so that what their bounds prove holds).
- Every expression is made of scalar functions, casts, literals, loads, lets and sizes; each type is the one that its op
  infers; what is stored, loaded and combined has the buffer's dtype; an index has one size an axis, or a single one.
- Loops have a legal kind at a legal place (`ir/loop.py`): parallel only outermost, no vector loop in another, static
  unrolled extents, lanes a power of two or three times one, nothing in a vector loop branches or loops by its variable.
- Register buffers have static shapes and are indexed by constants, unrolled and vector variables only; those of a block first by
  the variable of a thread, or of a warp for fragments.
- Blocks hold threads and warps at legal places (`loop_gpu.py`); between these nothing stores.
- `in` parameters are not stored to; what one thread alone stores to local memory no other outermost statement reads.

What it does not check, since data may decide it: indices within buffers, initialisation, independence of iterations.
`loop_proofs.unproved_indices` reports the indices that bounds and guards do not settle; `loop_interp` checks all of it when run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from msgspec import Struct, field
from msgspec.structs import replace

from .dims import INFINITY, Dim, DimLike, Symbol, bounds, product, substitute, symbols_of
from .errors import CompileError, VerifyError
from .graph import Node
from .loop import (
    ACCESS,
    COMBINES,
    GPU_KINDS,
    GPU_SPACES,
    LOOP_KINDS,
    PIPELINE,
    SPACES,
    Alloc,
    Buffer,
    Check,
    Collect,
    Commit,
    CopyAsync,
    CopyBulk,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Literal,
    Load,
    Local,
    MatmulTile,
    Prefetch,
    Stmt,
    Store,
    Wait,
    While,
    expression_nodes,
    expressions_of,
    walk,
)
from .loop_gpu import block_rule, collective_rule, kernel_rule, private_rule
from .loop_text import first_line, format_place
from .ops.compute import Bitcast, Cast, Elementwise
from .ops.scalar import result_dtype
from .program import Branch, Fetch, Free, Launch, Loop, Place, Program, Repeat, Reserve, Spill, Step
from .residency import verify_residency
from .types import INDEX, TensorType

MAX_NESTING = 64
SEGMENT_ALIGNMENT = 64
MAX_LANES = 1024


def verify_kernel(kernel: Kernel) -> None:
    """Raises VerifyError for the first rule that the kernel breaks."""
    _KernelVerifier(kernel).verify()


class _Variable(Struct, frozen=True):
    """A name that expressions or sizes may use. `symbol`: as sizes name it; `node_type`: as a let's value."""

    what: str
    symbol: Symbol | None = None
    value: TensorType | None = None
    loop_kind: str = ""


class _Scope(Struct):
    """What a statement sees. `lanes`: in a vector loop, the variables and buffers that differ between its iterations."""

    buffers: dict[str, Buffer]
    variables: dict[str, _Variable]
    depth: int = 0
    vector: str = ""
    lanes: frozenset[str] = frozenset()
    lane_buffers: frozenset[str] = frozenset()
    parallel: bool = False
    first_thread: bool = False
    level: str = ""  # the innermost loop around that divides work on a GPU
    private: frozenset[str] = frozenset()  # registers of the threads or warps of a block

    def inner(self) -> _Scope:
        return replace(self, buffers=dict(self.buffers), variables=dict(self.variables), depth=self.depth + 1)


class _KernelVerifier:
    """One kernel. Recursion follows the nesting of blocks, which is limited."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.statement: Stmt | None = None
        self.first_thread_buffers: set[str] = set()
        self.divided_buffers: set[str] = set()

    def fail(self, message: str, hint: str = "") -> NoReturn:
        notes: tuple[str, ...] = ()
        if self.statement is not None:
            notes = ("in: " + first_line(self.statement),)
        raise VerifyError(f"kernel {self.kernel.name}: {message}", loc=self.kernel.loc, notes=notes, hint=hint)

    def verify(self) -> None:
        scope = _Scope({}, {})
        for symbol in self.kernel.symbols:
            self.bind(scope, symbol.name, _Variable("symbol", symbol))
        for buffer in self.kernel.buffers:
            if buffer.space not in ACCESS:
                self.fail(f"parameter %{buffer.name} has access {buffer.space!r}, expected {', '.join(ACCESS)}")
            if buffer.dtype == INDEX:
                self.fail(f"parameter %{buffer.name} has dtype index, which has no arrays outside a kernel")
            self.declare(scope, buffer)
        self.block(scope, self.kernel.body)
        self.statement = None
        broken = kernel_rule(self.kernel)
        if broken:
            self.fail(broken)

    # --- names ---

    def bind(self, scope: _Scope, name: str, variable: _Variable) -> None:
        if name in scope.variables:
            self.fail(f"{variable.what} {name} hides a {scope.variables[name].what} of the same name",
                      hint="inner names must differ from all outer ones")
        scope.variables[name] = variable

    def declare(self, scope: _Scope, buffer: Buffer) -> None:
        if not buffer.name or buffer.name in scope.buffers:
            self.fail(f"buffer name {buffer.name!r} {'is declared twice' if buffer.name else 'is empty'}")
        for size in buffer.shape:
            self.size(scope, size)
            if bounds(size)[1] < 0:
                self.fail(f"buffer %{buffer.name} has the negative size {size}")
            if buffer.space == "register" and not isinstance(size, int):
                self.fail(f"register buffer %{buffer.name} has the size {size}, expected a static one")
        scope.buffers[buffer.name] = buffer

    def size(self, scope: _Scope, size: DimLike) -> None:
        """Every symbol is in scope and is the one declared there."""
        if isinstance(size, bool) or not isinstance(size, (int, Dim)):
            self.fail(f"{size!r} of type {type(size).__name__} is no size")
        for symbol in symbols_of(size):
            known = scope.variables.get(symbol.name)
            if known is None or known.symbol is None:
                self.fail(f"size {size} names {symbol.name}, which is {'no size' if known else 'not declared'} here")
            if known.symbol != symbol:
                self.fail(f"size {size} takes {symbol.declaration()}, declared is {known.symbol.declaration()}")

    def differs(self, scope: _Scope, size: DimLike) -> bool:
        """Whether the size may differ between the iterations of the vector loop around."""
        return bool(scope.lanes) and any(s.name in scope.lanes for s in symbols_of(size))

    def value_differs(self, scope: _Scope, root: Node) -> bool:
        if not scope.vector:
            return False
        for node in expression_nodes(root):
            match node.op:
                case IndexValue(size=size) if self.differs(scope, size):
                    return True
                case Load(buffer=name, index=index):
                    if name in scope.lane_buffers or any(self.differs(scope, i) for i in index):
                        return True
                case Local(variable=name) if name in scope.lanes:
                    return True
        return False

    # --- statements ---

    def block(self, outer: _Scope, body: Sequence[Stmt]) -> None:
        scope = outer.inner()
        if scope.depth > MAX_NESTING:
            self.fail(f"blocks nest deeper than {MAX_NESTING} levels")
        for statement in body:
            self.statement = statement
            if scope.depth == 1:
                self.outermost(scope, statement)
            for root in expressions_of(statement):
                self.expression(scope, root)
            self.check_statement(scope, statement)

    def outermost(self, scope: _Scope, statement: Stmt) -> None:
        """Which threads run it, and whether another thread misses what it stores to local memory."""
        parallel = isinstance(statement, For) and statement.kind in ("parallel", "block")
        stored = {s.buffer for s in walk([statement]) if isinstance(s, Store)}
        parameters = {b.name for b in self.kernel.buffers}
        divided = self.divided_buffers and sorted(
            self.divided_buffers & ({name for name, _ in _loads([statement])} | _combined([statement])))
        if divided:
            self.fail(f"%{divided[0]} is read, but each thread has stored only its part in a parallel loop before",
                      hint="allocate it within the loop, or use a parameter and another kernel")
        if parallel:
            self.divided_buffers |= stored - parameters
        if not parallel and stored & parameters:
            self.first_thread_buffers |= stored - parameters
        elif parallel and self.first_thread_buffers:
            missed = sorted(self.first_thread_buffers & {name for name, _ in _loads([statement])})
            if missed:
                self.fail(f"parallel loop reads %{missed[0]}, which only the first thread has stored to",
                          hint="store to it in a statement that stores to no parameter: every thread runs that")

    def check_statement(self, scope: _Scope, statement: Stmt) -> None:
        broken = block_rule(statement, scope.level, scope.depth)
        if broken:
            self.fail(broken)
        match statement:
            case For():
                self.loop(scope, statement)
            case While(condition=condition, body=body):
                self.condition(scope, condition, "while")
                self.block(scope, body)
            case If(condition=condition, then=then, otherwise=otherwise):
                self.condition(scope, condition, "if")
                self.block(scope, then)
                self.block(scope, otherwise)
            case Let(name=name, value=value, symbol=symbol):
                self.let(scope, name, value, symbol)
            case Alloc(buffer=buffer):
                if buffer.space not in (*SPACES, *GPU_SPACES):
                    self.fail(f"alloc of %{buffer.name} in {buffer.space!r}, expected {' or '.join((*SPACES, *GPU_SPACES))}")
                self.declare(scope, buffer)
                if scope.level == "block" and buffer.space in ("register", "fragment"):
                    scope.private |= {buffer.name}
                if scope.vector:
                    scope.lane_buffers |= {buffer.name}
            case Store():
                self.store(scope, statement)
            case Check(condition=condition, code=code, found=found, expected=expected):
                self.condition(scope, condition, "check")
                if code >= 0:
                    self.fail(f"check has the status {code}, expected a negative one (csrc/abi.h)")
                for what, root in (("found", found), ("expected", expected)):
                    if not root.dtype.is_integer:
                        self.fail(f"check reports {what} of dtype {root.dtype}, expected an integer")
            case Prefetch(buffer=name, index=index):
                if self.access(scope, name, index).space == "register":
                    self.fail(f"prefetch of %{name}, which is no memory but registers")
            case Collect() | MatmulTile() | CopyAsync() | CopyBulk() | Commit() | Wait():
                self.collective(scope, statement)
            case _:
                self.fail(f"{type(statement).__name__} is no statement")

    def condition(self, scope: _Scope, root: Node, what: str) -> None:
        if not root.dtype.is_bool:
            self.fail(f"condition of {what} is {root.dtype}, expected bool")
        if what != "check" and self.value_differs(scope, root):
            self.fail(f"condition of {what} depends on the variable {scope.vector} of the vector loop around it",
                      hint="use select, or a loop extent that ends where the condition does")

    def loop(self, scope: _Scope, loop: For) -> None:
        name = loop.symbol.name
        if loop.kind not in (kinds := (*LOOP_KINDS, *GPU_KINDS, PIPELINE)):
            self.fail(f"loop {name} is {loop.kind!r}, expected one of {', '.join(kinds)}")
        if loop.kind == "parallel" and scope.depth != 1:
            self.fail(f"parallel loop {name} stands inside another statement, expected the outermost level")
        if loop.kind == "vector":
            if scope.vector:
                self.fail(f"vector loop {name} stands inside the vector loop {scope.vector}")
            whole = loop.lanes // 3 if loop.lanes % 3 == 0 else loop.lanes
            if not 1 <= loop.lanes <= MAX_LANES or whole & (whole - 1):
                self.fail(f"vector loop {name} has {loop.lanes} lanes, expected a power of two, or three times one, up to {MAX_LANES}")
        elif loop.lanes < 0 or loop.lanes and loop.kind not in ("block", PIPELINE):
            self.fail(f"{loop.kind} loop {name} has {loop.lanes} lanes, expected none")
        self.size(scope, loop.extent)
        if loop.kind == "unrolled" and not isinstance(loop.extent, int):
            self.fail(f"unrolled loop {name} has the extent {loop.extent}, expected a static one")
        if self.differs(scope, loop.extent):
            self.fail(f"extent {loop.extent} of loop {name} depends on the variable {scope.vector} of the vector loop around it")
        self.loop_bounds(loop)
        inner = scope.inner()
        self.bind(inner, name, _Variable("loop variable", loop.symbol, None, loop.kind))
        inner.parallel = scope.parallel or loop.kind == "parallel"
        inner.level = loop.kind if loop.kind in GPU_KINDS else scope.level
        if loop.kind == "warp":
            self.stored_operands(loop)
        if loop.kind == "vector":
            inner.vector, inner.lanes, inner.lane_buffers = name, frozenset({name}), frozenset()
        inner.depth = scope.depth
        self.block(inner, loop.body)

    def stored_operands(self, loop: For) -> None:
        """Warps are not in step: what one multiplies no other may store to meanwhile."""
        stored = {s.buffer for s in walk(loop.body) if isinstance(s, Store)}
        for statement in walk(loop.body):
            if isinstance(statement, MatmulTile) and stored & {statement.left, statement.right}:
                self.fail(f"warp loop {loop.symbol.name} multiplies parts of a buffer that it stores to")

    def loop_bounds(self, loop: For) -> None:
        """The symbol's bounds hold every value that the extent provably reaches."""
        symbol, low = loop.symbol, bounds(loop.extent)[0]
        if low > 0 and symbol.lower > 0:
            self.fail(f"loop {symbol.name} begins at 0, but is declared {symbol.declaration()}")
        if symbol.upper is not None and low - 1 > symbol.upper:
            self.fail(f"loop {symbol.name} runs to at least {low - 1}, but is declared {symbol.declaration()}")
        if low > 1 and symbol.multiple_of != 1:
            self.fail(f"loop {symbol.name} takes the value 1, but is declared {symbol.declaration()}")

    def let(self, scope: _Scope, name: str, value: Node, symbol: Symbol | None) -> None:
        if symbol is not None and (symbol.name != name or value.dtype != INDEX):
            self.fail(f"let %{name} of {value.dtype} has the symbol {symbol.name}; a let in sizes is an index of the same name")
        self.bind(scope, name, _Variable("let", symbol, value.tensor))
        if self.value_differs(scope, value):
            scope.lanes |= {name}

    def store(self, scope: _Scope, store: Store) -> None:
        buffer = self.access(scope, store.buffer, store.index)
        if buffer.space == "in":
            self.fail(f"%{store.buffer} is an input and cannot be stored to")
        if store.value.dtype != buffer.dtype:
            self.fail(f"store of {store.value.dtype} to %{store.buffer}, expected {buffer.dtype}")
        if store.atomic and (not store.combine or buffer.space in ("register", "local", "fragment")):
            self.fail(f"atomic store to %{store.buffer}, expected one that combines, to a parameter or shared memory")
        if store.stream and (store.combine or buffer.space in (*SPACES, *GPU_SPACES)):
            self.fail(f"stream to %{store.buffer}, expected a plain store to a parameter")
        if store.combine and store.combine not in COMBINES:
            self.fail(f"store combines by {store.combine!r}, expected one of {', '.join(COMBINES)}")
        if store.combine:
            try:
                result_dtype(store.combine, [buffer.dtype, buffer.dtype])
            except CompileError as error:
                self.fail(f"store to %{store.buffer}: {error.message}")

    def access(self, scope: _Scope, name: str, index: tuple[DimLike, ...]) -> Buffer:
        buffer = scope.buffers.get(name)
        if buffer is None:
            self.fail(f"buffer %{name} is not declared here; declared are {', '.join(scope.buffers) or 'none'}")
        if len(index) not in (1, len(buffer.shape)):
            self.fail(f"index of %{name} has {len(index)} sizes, expected {len(buffer.shape)} (one an axis) or a single one")
        for size in index:
            self.size(scope, size)
        private = name in scope.private
        if private:
            broken = private_rule(buffer, index, scope.level, {n: v.loop_kind for n, v in scope.variables.items()})
            if broken:
                self.fail(broken)
        for size in index[1:] if private else index:
            if buffer.space == "register":
                for symbol in symbols_of(size):
                    kind = scope.variables[symbol.name].loop_kind
                    if kind not in ("unrolled", "vector"):
                        self.fail(f"register buffer %{name} is indexed by {symbol.name} ({kind or 'not a'} loop variable), "
                                  "expected constants, unrolled and vector variables", "allocate it as local")
        return buffer

    def collective(self, scope: _Scope, statement: Collect | MatmulTile | CopyAsync | CopyBulk | Commit | Wait) -> None:
        """What the threads of a block do together: its operands are declared, and fit."""
        buffers: list[Buffer] = []
        match statement:
            case Collect(buffer=name):
                buffers = [self.known(scope, name)]
            case MatmulTile(accumulator=name, left=left, left_index=rows, right=right, right_index=columns):
                buffers = [self.known(scope, name), self.access(scope, left, rows), self.access(scope, right, columns)]
            case CopyAsync() | CopyBulk():
                name, index, source, place = statement.buffer, statement.index, statement.source, statement.source_index
                if isinstance(statement, CopyAsync) and statement.condition is not None:
                    self.condition(scope, statement.condition, "copy_async")
                buffers = [self.access(scope, name, index), self.access(scope, source, place)]
        broken = collective_rule(statement, buffers)
        if broken:
            self.fail(broken)

    def known(self, scope: _Scope, name: str) -> Buffer:
        if name not in scope.buffers:
            self.fail(f"buffer %{name} is not declared here; declared are {', '.join(scope.buffers) or 'none'}")
        return scope.buffers[name]

    # --- expressions ---

    def expression(self, scope: _Scope, root: Node) -> None:
        for node in expression_nodes(root):
            op = node.op
            match op:
                case Load(buffer=name, index=index, dtype=dtype):
                    buffer = self.access(scope, name, index)
                    if dtype != buffer.dtype:
                        self.fail(f"load of {dtype} from %{name}, expected {buffer.dtype}")
                case Local(variable=name, dtype=dtype):
                    known = scope.variables.get(name)
                    if known is None or known.value is None:
                        self.fail(f"%{name} is {'no let' if known else 'not bound'} here")
                    if known.value.dtype != dtype:
                        self.fail(f"%{name} is taken as {dtype}, but is {known.value.dtype}")
                case IndexValue(size=size):
                    self.size(scope, size)
                case Literal():
                    self.literal(op)
                case Elementwise() | Cast() | Bitcast():
                    pass
                case _:
                    self.fail(f"{op.spelling} is no part of a kernel's expressions")
            try:
                inferred = op.infer(*(i.type for i in node.inputs))
            except CompileError as error:
                self.fail(error.message)
            if inferred != node.type or node.tensor.shape:
                self.fail(f"{op.spelling} has the type {node.type}, expected {inferred}")

    def literal(self, op: Literal) -> None:
        value, dtype = op.value, op.dtype
        kind = type(value)
        if dtype.is_bool:
            fits = kind is bool
        elif dtype.is_float:
            fits = kind in (int, float)
        else:
            fits = kind is int and dtype.lowest <= value <= dtype.highest
        if not fits:
            self.fail(f"literal {value!r} is no value of {dtype}")


def _combined(body: Sequence[Stmt]) -> set[str]:
    return {s.buffer for s in walk(body) if isinstance(s, Store) and s.combine}


def _loads(body: Sequence[Stmt]) -> Iterator[tuple[str, tuple[DimLike, ...]]]:
    for statement in walk(body):
        for root in expressions_of(statement):
            for node in expression_nodes(root):
                if isinstance(node.op, Load):
                    yield node.op.buffer, node.op.index


# --- programs --------------------------------------------------------------------------------------------------------


def verify_program(program: Program) -> None:
    """Raises VerifyError for the first rule that the program or one of its kernels breaks."""
    _ProgramVerifier(program).verify()


class _ProgramVerifier(Struct):
    """One program. Recursion follows the nesting of steps, which is limited."""

    program: Program
    declared: dict[str, Symbol] = field(default_factory=dict)

    def fail(self, message: str, hint: str = "") -> NoReturn:
        raise VerifyError(f"program {self.program.name}: {message}", hint=hint)

    def verify(self) -> None:
        program = self.program
        for symbol in program.symbols:
            if symbol.name in self.declared:
                self.fail(f"symbol {symbol.name} is declared twice")
            self.declared[symbol.name] = symbol
        for what, items in (("input", program.inputs), ("output", program.outputs)):
            names = [name for name, _ in items]
            if len(set(names)) != len(names):
                self.fail(f"{what} names are not distinct: {', '.join(names)}")
            for name, type in items:
                for size in type.shape:
                    self.size(size, f"{what} {name}", self.declared)
        plain = {s.name for _, t in program.inputs for d in t.shape for s in symbols_of(d) if str(d) == s.name}
        for name in self.declared:
            if name not in plain:
                self.fail(f"symbol {name} is no plain size of an input, so that no call binds it")
        self.size(program.workspace_bytes, "workspace", self.declared)
        self.constants()
        kernels = program.kernels()
        names = [k.name for k in kernels]
        for kernel in kernels:
            if names.count(kernel.name) > 1:
                self.fail(f"{names.count(kernel.name)} different kernels are called {kernel.name}",
                          "share equal ones (kernel_key), number the others")
            verify_kernel(kernel)
        self.steps(program.steps, self.declared, 1)
        if program.scratchpad is not None:
            verify_residency(program)

    def size(self, size: DimLike, what: str, symbols: Mapping[str, Symbol]) -> None:
        for symbol in symbols_of(size):
            if symbols.get(symbol.name) != symbol:
                known = symbols.get(symbol.name)
                found = f"declared is {known.declaration()}" if known else "which is not declared"
                self.fail(f"{what}: size {size} takes {symbol.declaration()}, {found}")

    def constants(self) -> None:
        end = 0
        for offset, constant in sorted(self.program.constants, key=lambda item: item[0]):
            size = int(constant.array.nbytes)
            if offset % SEGMENT_ALIGNMENT:
                self.fail(f"constant at {offset}: expected a multiple of {SEGMENT_ALIGNMENT}")
            if offset < end:
                self.fail(f"constant at {offset} begins before the one before it ends, at {end}")
            end = offset + size
        if end > self.program.constants_bytes:
            self.fail(f"constants end at {end}, but the segment has {self.program.constants_bytes} bytes")

    def steps(self, steps: Sequence[Step], symbols: Mapping[str, Symbol], depth: int) -> None:
        if depth > MAX_NESTING:
            self.fail(f"steps nest deeper than {MAX_NESTING} levels")
        for step in steps:
            match step:
                case Launch():
                    self.launch(step, symbols)
                case Repeat(symbol=symbol, extent=extent, steps=body):
                    self.size(extent, f"repeat {symbol.name}", symbols)
                    if symbol.name in symbols:
                        self.fail(f"repeat {symbol.name} hides a symbol of the same name")
                    self.steps(body, {**symbols, symbol.name: symbol}, depth + 1)
                case Loop(condition_steps=first, condition=condition, steps=body):
                    self.steps(first, symbols, depth + 1)
                    self.place(condition, 1, False, "condition of a loop", symbols)
                    self.steps(body, symbols, depth + 1)
                case Branch(condition=condition, then=then, otherwise=otherwise):
                    self.place(condition, 1, False, "condition of a branch", symbols)
                    self.steps(then, symbols, depth + 1)
                    self.steps(otherwise, symbols, depth + 1)
                case Fetch(source=place, bytes=size) | Spill(target=place, bytes=size):
                    self.transfer(step)
                    self.place(place, size, isinstance(step, Spill), type(step).__name__.lower(), symbols)
                case Free() | Reserve():
                    self.transfer(step)
                case _:
                    self.fail(f"{type(step).__name__} is no step")

    def transfer(self, step: Step) -> None:
        if self.program.scratchpad is None:
            self.fail(f"{type(step).__name__.lower()}: there is no scratchpad")

    def launch(self, launch: Launch, symbols: Mapping[str, Symbol]) -> None:
        kernel = launch.kernel
        where = f"launch {kernel.name}"
        if len(launch.places) != len(kernel.buffers):
            self.fail(f"{where}: {len(launch.places)} places for {len(kernel.buffers)} buffers")
        if len(launch.sizes) != len(kernel.symbols):
            self.fail(f"{where}: {len(launch.sizes)} sizes for {len(kernel.symbols)} symbols")
        binding: dict[str, DimLike] = {}
        for symbol, size in zip(kernel.symbols, launch.sizes):
            self.size(size, where, symbols)
            low, high = bounds(size)
            if high < symbol.lower or (symbol.upper is not None and low > symbol.upper):
                self.fail(f"{where}: size {size} is outside {symbol.declaration()}")
            binding[symbol.name] = size
        for buffer, place in zip(kernel.buffers, launch.places):
            needed = substitute(product(buffer.shape), binding) * buffer.dtype.bytes
            self.place(place, needed, buffer.space != "in", f"{where}: %{buffer.name}", symbols)
            if bounds(place.offset % buffer.dtype.bytes)[0] > 0:
                self.fail(f"{where}: %{buffer.name} of {buffer.dtype} lies at {place.offset}, expected a multiple of "
                          f"{buffer.dtype.bytes}")

    def place(self, place: Place, needed: DimLike, stored: bool, what: str, symbols: Mapping[str, Symbol]) -> None:
        program = self.program
        self.size(place.offset, what, symbols)
        ends = {"input": program.inputs, "output": program.outputs}
        if place.space in ends:
            if not 0 <= place.number < len(ends[place.space]):
                self.fail(f"{what}: {place.space} {place.number} does not exist; there are {len(ends[place.space])}")
            type = ends[place.space][place.number][1]
            room = product(type.shape) * type.dtype.bytes
        elif place.space in ("constant", "workspace", "scratchpad"):
            if place.number:
                self.fail(f"{what}: {place.space} has no number, found {place.number}")
            scratchpad = 0 if program.scratchpad is None else program.scratchpad.bytes
            room = {"constant": program.constants_bytes, "workspace": program.workspace_bytes, "scratchpad": scratchpad}[place.space]
        else:
            self.fail(f"{what}: {place.space!r} is no space; expected input, output, constant, workspace or scratchpad")
        if stored and place.space in ("input", "constant"):
            self.fail(f"{what} is stored to, but lies in {format_place(place)}")
        if bounds(place.offset)[1] < 0:
            self.fail(f"{what}: offset {place.offset} is negative")
        high = bounds(room - place.offset - needed)[1]
        if high < 0 and high != -INFINITY:
            self.fail(f"{what} takes {needed} bytes from {format_place(place)} on, which has {room}")
