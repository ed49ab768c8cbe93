"""Checks that kernels and programs keep the rules of the loop level. Changes nothing; raises VerifyError.

What holds for a kernel that passes:
- Every buffer, variable and symbol is declared before it is used, with one declaration in scope; a size names symbols
  exactly as they are declared, bounds included (so that what their bounds prove holds).
- Every expression is made of scalar functions, casts, literals, loads, lets and sizes; each type is the one that its op
  infers; what is stored, loaded and combined has the buffer's dtype; an index has one size an axis, or a single one.
- Loops have a legal kind at a legal place (`ir/loop.py`): parallel only outermost, no vector loop in another, static
  unrolled extents, lanes a power of two, nothing in a vector loop branches or loops by its variable.
- Register buffers have static shapes and are indexed by constants, unrolled and vector variables only; those of a block first by
  the variable of a thread, or of a warp for fragments.
- Blocks hold threads and warps at legal places (`loop_gpu.py`); between these nothing stores.
- `in` parameters are not stored to; what one thread alone stores to local memory no other outermost statement reads.

What it does not check, since data may decide it: indices within buffers, initialisation, independence of iterations.
`unproved_indices` reports the indices that bounds and guards do not settle; `loop_interp` checks all of it when run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from msgspec import Struct, field
from msgspec.structs import replace

from .dims import INFINITY, Composed, Dim, DimLike, Monomial, Symbol, bounds, product, size_of, substitute, symbols_of
from .errors import CompileError, VerifyError
from .graph import Node
from .loop import (
    ACCESS,
    COMBINES,
    GPU_KINDS,
    GPU_SPACES,
    LOOP_KINDS,
    SPACES,
    Alloc,
    Buffer,
    Check,
    Collect,
    Commit,
    CopyAsync,
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
from .loop_gpu import block_rule, collective_rule, private_rule
from .loop_text import format_place, format_statements
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
            notes = ("in: " + _first_line(self.statement),)
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
            case Collect() | MatmulTile() | CopyAsync() | Commit() | Wait():
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
        if loop.kind not in (*LOOP_KINDS, *GPU_KINDS):
            self.fail(f"loop {name} is {loop.kind!r}, expected one of {', '.join((*LOOP_KINDS, *GPU_KINDS))}")
        if loop.kind == "parallel" and scope.depth != 1:
            self.fail(f"parallel loop {name} stands inside another statement, expected the outermost level")
        if loop.kind == "vector":
            if scope.vector:
                self.fail(f"vector loop {name} stands inside the vector loop {scope.vector}")
            if not 1 <= loop.lanes <= MAX_LANES or loop.lanes & (loop.lanes - 1):
                self.fail(f"vector loop {name} has {loop.lanes} lanes, expected a power of two up to {MAX_LANES}")
        elif loop.lanes:
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

    def collective(self, scope: _Scope, statement: Collect | MatmulTile | CopyAsync | Commit | Wait) -> None:
        """What the threads of a block do together: its operands are declared, and fit."""
        buffers: list[Buffer] = []
        match statement:
            case Collect(buffer=name):
                buffers = [self.known(scope, name)]
            case MatmulTile(accumulator=name, left=left, left_index=rows, right=right, right_index=columns):
                buffers = [self.known(scope, name), self.access(scope, left, rows), self.access(scope, right, columns)]
            case CopyAsync(buffer=name, index=index, source=source, source_index=place):
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


def _first_line(statement: Stmt) -> str:
    """The statement's own line; one that is broken may have none."""
    try:
        return format_statements([statement]).split("\n", 1)[0]
    except (CompileError, AttributeError, TypeError, ValueError):
        return type(statement).__name__


def _combined(body: Sequence[Stmt]) -> set[str]:
    return {s.buffer for s in walk(body) if isinstance(s, Store) and s.combine}


def _loads(body: Sequence[Stmt]) -> Iterator[tuple[str, tuple[DimLike, ...]]]:
    for statement in walk(body):
        for root in expressions_of(statement):
            for node in expression_nodes(root):
                if isinstance(node.op, Load):
                    yield node.op.buffer, node.op.index


# --- what bounds and guards prove ------------------------------------------------------------------------------------


class Known(Struct, frozen=True):
    """What holds at a statement: `loops` around it (variable, extent), outer first; `facts`: sizes that are >= 0."""

    loops: tuple[tuple[Symbol, DimLike], ...] = ()
    facts: tuple[DimLike, ...] = ()


NOTHING = Known()


class UnprovedIndex(Struct, frozen=True):
    """An access whose index is not shown to lie in 0 .. size - 1 of the axis; `statement` is its line."""

    buffer: str
    axis: int
    index: DimLike
    size: DimLike
    statement: str

    def __str__(self) -> str:
        return f"%{self.buffer} axis {self.axis}: {self.index} is not shown to lie in 0..{self.size} in: {self.statement}"


def unproved_indices(kernel: Kernel) -> tuple[UnprovedIndex, ...]:
    """The indices that bounds, loop extents, guards and checks do not settle. An empty answer is a proof; the kernel
    must pass `verify_kernel`, and the bounds of its symbols must hold."""
    found: list[UnprovedIndex] = []
    buffers = {b.name: b for b in kernel.buffers}
    _unproved(kernel.body, Known(), buffers, {}, found)
    return tuple(found)


def _unproved(body: Sequence[Stmt], known: Known, outer: Mapping[str, Buffer], outer_lets: Mapping[str, DimLike],
              found: list[UnprovedIndex]) -> None:
    buffers, lets = dict(outer), dict(outer_lets)
    for statement in body:
        accesses = [(n.op.buffer, n.op.index) for root in expressions_of(statement) for n in expression_nodes(root)
                    if isinstance(n.op, Load)]
        if isinstance(statement, Store):
            accesses.append((statement.buffer, statement.index))
        for name, index in accesses:
            shape = buffers[name].shape if len(index) == len(buffers[name].shape) else (product(buffers[name].shape),)
            for axis, (i, n) in enumerate(zip(index, shape, strict=True)):
                if not (prove_nonnegative(i, known) and prove_nonnegative(n - 1 - i, known)):
                    found.append(UnprovedIndex(name, axis, i, n, _first_line(statement)))
        match statement:
            case For(symbol=symbol, extent=extent, body=inner):
                _unproved(inner, Known((*known.loops, (symbol, extent)), known.facts), buffers, lets, found)
            case While(body=inner):
                _unproved(inner, known, buffers, lets, found)
            case If(condition=condition, then=then, otherwise=otherwise):
                _unproved(then, Known(known.loops, (*known.facts, *condition_facts(condition, lets))), buffers, lets, found)
                _unproved(otherwise, known, buffers, lets, found)
            case Check(condition=condition):
                known = Known(known.loops, (*known.facts, *condition_facts(condition, lets)))
            case Alloc(buffer=buffer):
                buffers[buffer.name] = buffer
            case Let(name=name, symbol=symbol) if symbol is not None:
                lets[name] = size_of(symbol)


def condition_facts(condition: Node, lets: Mapping[str, DimLike]) -> list[DimLike]:
    """Sizes that are >= 0 where the condition holds."""
    facts: list[DimLike] = []
    stack = [condition]
    while stack:
        node = stack.pop()
        function = node.op.function if isinstance(node.op, Elementwise) else ""
        if function == "and" and node.dtype.is_bool:
            stack.extend(node.inputs)
        if function not in ("lt", "le", "gt", "ge", "eq"):
            continue
        left, right = (_as_size(x, lets) for x in node.inputs)
        if left is None or right is None:
            continue
        if function in ("gt", "ge"):
            left, right = right, left
        facts.append(right - left - (1 if function in ("lt", "gt") else 0))
        if function == "eq":
            facts.append(left - right)
    return facts


def _as_size(node: Node, lets: Mapping[str, DimLike]) -> DimLike | None:
    match node.op:
        case IndexValue(size=size):
            return size
        case Literal(value=value, dtype=dtype) if dtype == INDEX:
            return int(value)
        case Local(variable=name):
            return lets.get(name)
    return None


def prove_nonnegative(size: DimLike, known: Known = NOTHING, depth: int = 4) -> bool:
    """True when the size is shown to be >= 0 wherever `known` holds. Sound, incomplete, of bounded cost."""
    if bounds(size)[0] >= 0:
        return True
    if isinstance(size, int):
        return False
    if _least(size, known.loops, 8):
        return True
    cases = _split_minimum(size) if depth else None
    if cases is not None:
        test = any if cases[0] else all
        return test(prove_nonnegative(part, known, depth - 1) for part in cases[1])
    if any(_least(size - factor * fact, known.loops, 6) for fact in known.facts for factor in _scales(size, fact)):
        return True
    # a statement in a loop runs only where the loop's extent is past its variable
    return any(_least(size - (extent - 1 - size_of(s)), known.loops, 6) for s, extent in known.loops)


def _scales(size: DimLike, fact: DimLike) -> list[int]:
    """1, and the factors with which a symbol of the fact, taken off the size, cancels the same symbol there."""
    found = {1}
    for symbol in symbols_of(fact):
        there, here = linear_factor(size, symbol), linear_factor(fact, symbol)
        if isinstance(there, int) and isinstance(here, int) and here and there // here > 0 and there % here == 0:
            found.add(there // here)
    return sorted(found)


def _least(size: DimLike, loops: tuple[tuple[Symbol, DimLike], ...], depth: int) -> bool:
    """Replaces parts by ones that are no greater until bounds show the whole to be >= 0."""
    size = _undo_divisions(size)
    if bounds(size)[0] >= 0:
        return True
    if isinstance(size, int) or depth == 0:
        return False
    cases = _split_minimum(size)
    if cases is not None:
        negative, parts = cases
        test = any if negative else all
        return test(_least(part, loops, depth - 1) for part in parts)
    for position in range(len(loops) - 1, -1, -1):
        symbol, extent = loops[position]
        factor = linear_factor(size, symbol)
        if factor is None or (isinstance(factor, int) and factor == 0):
            continue
        low, high = bounds(factor)
        if low >= 0:
            return _least(substitute(size, {symbol.name: 0}), loops[:position], depth)
        if high <= 0:
            return _least(substitute(size, {symbol.name: extent - 1}), loops[:position], depth)
    smaller = _drop_modulo(size)
    return smaller is not None and _least(smaller, loops, depth - 1)


def linear_factor(size: DimLike, symbol: Symbol) -> DimLike | None:
    """f with size = f * symbol + rest, neither containing the symbol; None where it is not linear in it."""
    if isinstance(size, int):
        return 0
    total: DimLike = 0
    for monomial, coefficient in size.terms:
        power = 0
        for atom, count in monomial:
            if atom == symbol:
                power = count
            elif isinstance(atom, Composed) and any(s.name == symbol.name for s in symbols_of(atom.left, atom.right)):
                return None
        if power > 1:
            return None
        if power == 1:
            total = total + _monomial_size(tuple((a, p) for a, p in monomial if a != symbol), coefficient)
    return total


def _monomial_size(monomial: Monomial, coefficient: int) -> DimLike:
    return Dim(((monomial, coefficient),)) if monomial else coefficient


def _without(monomial: Monomial, position: int) -> Monomial:
    atom, power = monomial[position]
    return monomial[:position] + (((atom, power - 1),) if power > 1 else ()) + monomial[position + 1:]


def _undo_divisions(size: DimLike) -> DimLike:
    """r * (a // r) as a - a % r, whose bounds are tighter than those of the quotient alone."""
    if isinstance(size, int):
        return size
    for monomial, coefficient in size.terms:
        for position, (atom, _) in enumerate(monomial):
            if not isinstance(atom, Composed) or atom.kind != "floordiv":
                continue
            rest = _without(monomial, position)
            others = size - _monomial_size(monomial, coefficient)
            whole = atom.left - atom.left % atom.right
            if isinstance(atom.right, int) and coefficient % atom.right == 0:
                return _undo_divisions(others + _monomial_size(rest, coefficient // atom.right) * whole)
            divisor = symbols_of(atom.right)
            at = next((k for k, (a, _) in enumerate(rest) if divisor and a == divisor[0]), None)
            if at is not None and str(atom.right) == divisor[0].name:
                return _undo_divisions(others + _monomial_size(_without(rest, at), coefficient) * whole)
    return size


def _split_minimum(size: Dim) -> tuple[bool, tuple[DimLike, DimLike]] | None:
    """The size with min(a, b) as a and as b, and whether one of the two suffices (it is subtracted)."""
    for monomial, coefficient in size.terms:
        for position, (atom, power) in enumerate(monomial):
            if not isinstance(atom, Composed) or atom.kind != "min" or power != 1:
                continue
            factor = _monomial_size(_without(monomial, position), coefficient)
            low, high = bounds(factor)
            if low >= 0 or high <= 0:
                others = size - _monomial_size(monomial, coefficient)
                return high <= 0, (others + factor * atom.left, others + factor * atom.right)
    return None


def _drop_modulo(size: Dim) -> DimLike | None:
    """The size with one a % r as 0 where it is added and as r - 1 where it is subtracted."""
    for monomial, coefficient in size.terms:
        for position, (atom, power) in enumerate(monomial):
            if not isinstance(atom, Composed) or atom.kind != "mod" or power != 1:
                continue
            factor = _monomial_size(_without(monomial, position), coefficient)
            low, high = bounds(factor)
            others = size - _monomial_size(monomial, coefficient)
            if low >= 0:
                return others
            if high <= 0:
                return others + factor * (atom.right - 1)
    return None


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
