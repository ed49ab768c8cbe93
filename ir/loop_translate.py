"""A kernel as a Python function: its source, and the faults that it reports. `loop_interp.py` runs it and says what is checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from msgspec import Struct, field

from .dims import Atom, DimLike, Symbol, symbols_of
from .errors import CompileError, IndexFailure, Loc, RuntimeFailure, VerifyError
from .graph import Node
from .loop import (
    INDEPENDENT_KINDS,
    PIPELINE,
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
from .loop_gpu_interp import add_products, collect, copy_bulk, finish_copies
from .loop_scalars import bitcast_caller, cast_caller, scalar_caller
from .loop_text import format_statements
from .ops.compute import Bitcast, Cast, Elementwise
from .types import INDEX, DType

INDEX_ERRORS = (-1, -9)  # TW_ERROR_INDEX and TW_ERROR_INDEX_UNSIGNED of csrc/abi.h
MAX_PYTHON_NESTING = 14  # CPython refuses more than 20 nested loops in one function


# --- faults ----------------------------------------------------------------------------------------------------------


class _Faults(Struct, frozen=True):
    """Raises what a running kernel finds. `places`: the statement at each number that generated code passes. (It does not hold the
    kernel, with which the code that holds this is kept.)"""

    name: str
    loc: Loc
    places: list[Stmt] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def _fail(self, message: str, place: int) -> NoReturn:
        line = format_statements([self.places[place]]).split("\n", 1)[0]
        raise VerifyError(f"kernel {self.name}: {message}", loc=self.loc, notes=(f"in: {line}",))

    def outside(self, place: int, buffer: str, axis: int, index: int, size: int) -> NoReturn:
        self._fail(f"index {index} of %{buffer} is outside axis {axis} of {size}", place)

    def unset(self, place: int, buffer: str, element: int) -> NoReturn:
        self._fail(f"element {element} of %{buffer} is read, but nothing has stored to it", place)

    def race(self, place: int, buffer: str, element: int, loop: str, first: int, second: int) -> NoReturn:
        self._fail(f"iterations {first} and {second} of loop {loop} touch element {element} of %{buffer} and one stores to it",
                   place)

    def crossing(self, place: int, buffer: str, element: int, mask: int, other: int) -> NoReturn:
        second = min(i for i in range(64) if other >> i & 1)
        first = min(i for i in range(64) if mask >> i & 1 and i != second)
        self._fail(f"threads {second} and {first} touch element {element} of %{buffer} without a barrier between and one "
                   "stores to it", place)

    def bounds(self, place: int, name: str, value: int, symbol: Symbol) -> NoReturn:
        declared = symbol.declaration() if symbol != Symbol(symbol.name) else f"{name}: 0.."
        self._fail(f"{name} is {value}, but is declared {declared}", place)

    def check(self, number: int, found: Any, expected: Any) -> NoReturn:
        check = self.checks[number]
        error = IndexFailure if check.code in INDEX_ERRORS else RuntimeFailure
        raise error(f"{check.message}: found {int(found)}, expected {int(expected)}", loc=self.loc)


class _ProductFaults(Struct, frozen=True):
    """Raises what the product of two tiles finds."""

    faults: _Faults
    place: int

    def outside(self, buffer: str, axis: int, index: int, size: int) -> NoReturn:
        self.faults.outside(self.place, buffer, axis, index, size)

    def unset(self, buffer: str, element: int) -> NoReturn:
        self.faults.unset(self.place, buffer, element)


# --- translation -----------------------------------------------------------------------------------------------------


class Mode(Struct, frozen=True):
    """What generated code checks. `unset`: for each parameter, whether elements may be uninitialised at the start."""

    checked: bool
    threads: bool
    unset: tuple[bool, ...]


class _Open(Struct):
    """A parallel or vector loop around the statement being translated."""

    number: int
    loop: For
    stored: frozenset[str]


class _Memory(Struct):
    """A buffer in scope: `name` in generated code, and how deep in `open` loops it was allocated."""

    buffer: Buffer
    name: str
    level: int
    parameter: bool
    unset: bool
    stored: bool


class Translator:
    """Writes the function of one kernel. Recursion follows the nesting of blocks.

    In generated code `m3` is the memory of buffer 3, `g3` which of its elements are set, `w3_5`, `k3_5` and `r3_5` the
    first store, its kind and the first load of each element in the present run of loop 5 (as times), `a3_5` the last
    store, `t3` and `u3` the threads that stored and loaded; `b5` and `s5` the time at which the run of loop 5 began and
    the time of its present iteration; `v_x` variables.
    """

    def __init__(self, kernel: Kernel, mode: Mode) -> None:
        self.kernel = kernel
        self.mode = mode
        self.faults = _Faults(kernel.name, kernel.loc)
        self.lines: list[str] = []
        self.indent = 1
        self.nesting = 0
        self.count = itertools.count()
        self.globals: dict[str, Any] = {"faults": self.faults, "np": np}
        self.constants: dict[tuple[str, Any], str] = {}
        self.open: list[_Open] = []
        self.memory: dict[str, _Memory] = {}
        self.lets: dict[str, Symbol] = {}
        self.loop_numbers = itertools.count()
        self.marked: list[tuple[For, int]] = []
        self.warp: For | None = None  # the last one met

    def emit(self, line: str) -> None:
        self.lines.append(" " * self.indent + line)

    def fresh(self) -> str:
        return f"e{next(self.count)}"

    def constant(self, key: tuple[str, Any], value: Any) -> str:
        if key not in self.constants:
            self.constants[key] = f"c{len(self.constants)}"
            self.globals[self.constants[key]] = value
        return self.constants[key]

    def translate(self) -> Callable[..., None]:
        numbers = [next(self.count) for _ in self.kernel.buffers]
        stored = _stored(self.kernel.body)
        for buffer, number, unset in zip(self.kernel.buffers, numbers, self.mode.unset):
            self.memory[buffer.name] = _Memory(buffer, str(number), 0, True, unset and self.mode.checked,
                                               buffer.name in stored)
            self.emit(f"m{number}, g{number}, t{number}, u{number} = memories[{len(self.memory) - 1}]")
        for symbol in self.kernel.symbols:
            self.emit(f"v_{symbol.name} = sizes[{symbol.name!r}]")
        self.emit("clock = [1]")
        self.emit("copies, groups = [], []")
        for memory in list(self.memory.values()):
            self.shape(memory)
            self.shadows(memory, self.kernel.body)
        self.block(self.kernel.body, self.mode.threads)
        source = "def run(memories, sizes, threads):\n" + "\n".join(self.lines) + "\n"
        exec(compile(source, f"<kernel {self.kernel.name}>", "exec"), self.globals)
        function: Callable[..., None] = self.globals["run"]
        return function

    def threads_of(self, statement: Stmt) -> str:
        """The threads that run an outermost statement as a mask T, and who of them may touch what they stored to: X."""
        parameters = {b.name for b in self.kernel.buffers}
        stores = any(isinstance(s, Store) and s.buffer in parameters for s in walk([statement]))
        divided = isinstance(statement, For) and statement.kind in ("parallel", "block")
        return "T = X = 1" if stores or divided else "T, X = (1 << threads) - 1, 0"

    # --- memory ---

    def shape(self, memory: _Memory) -> None:
        for axis, size in enumerate(memory.buffer.shape):
            if not isinstance(size, int):
                self.emit(f"n{memory.name}_{axis} = {self.size(size)}")
        self.emit(f"n{memory.name} = {' * '.join(self.extent(memory, a) for a in range(len(memory.buffer.shape))) or '1'}")

    def extent(self, memory: _Memory, axis: int) -> str:
        size = memory.buffer.shape[axis]
        return str(size) if isinstance(size, int) else f"n{memory.name}_{axis}"

    def shadows(self, memory: _Memory, scope: Sequence[Stmt]) -> None:
        """Fresh records for each parallel or vector loop in the scope that stores to the buffer."""
        if not self.mode.checked:
            return
        if memory.stored:
            for loop in walk(scope):
                if isinstance(loop, For) and loop.kind in INDEPENDENT_KINDS and memory.buffer.name in _stored(loop.body):
                    records = "a" if self.private(memory, loop) else "wkr"
                    number = self.number(loop)
                    for record in records:
                        self.emit(f"{record}{memory.name}_{number} = [0] * n{memory.name}")

    def number(self, loop: For) -> int:
        for known, number in self.marked:
            if known is loop:
                return number
        self.marked.append((loop, len(self.marked)))
        return len(self.marked) - 1

    def private(self, memory: _Memory, loop: For) -> bool:
        """Whether each thread has the buffer for itself."""
        return loop.kind in ("parallel", "block") and not memory.parameter

    # --- statements ---

    def block(self, body: Sequence[Stmt], divided: bool = False) -> None:
        """`divided`: among threads, as outermost statements are."""
        memory, lets = dict(self.memory), dict(self.lets)
        for position, statement in enumerate(body):
            if divided:
                self.emit(self.threads_of(statement))
            self.statement(statement, body[position + 1:])
        if not body:
            self.emit("pass")
        self.memory, self.lets = memory, lets

    def statement(self, statement: Stmt, rest: Sequence[Stmt]) -> None:
        self.faults.places.append(statement)
        values = [] if isinstance(statement, While) else self.values(expressions_of(statement))
        match statement:
            case For():
                self.nested(lambda: self.loop(statement))
            case While():
                self.nested(lambda: self.while_loop(statement))
            case If(then=then, otherwise=otherwise):
                self.emit(f"if {values[0]}:")
                self.inside(then)
                if otherwise:
                    self.emit("else:")
                    self.inside(otherwise)
            case Let(name=name, symbol=symbol):
                self.emit(f"v_{self.variable(name)} = {values[0]}")
                if symbol is not None:
                    self.lets[name] = symbol
            case Alloc(buffer=buffer):
                self.alloc(buffer, rest)
            case Store():
                self.store(statement, values[0])
            case Prefetch():
                self.emit("pass")
            case Check():
                self.emit(f"if not {values[0]}: faults.check({len(self.faults.checks)}, {values[1]}, {values[2]})")
                self.faults.checks.append(statement)
            case Collect() | MatmulTile() | CopyAsync() | CopyBulk() | Commit() | Wait():
                self.collective(statement, values)

    def collective(self, statement: Collect | MatmulTile | CopyAsync | CopyBulk | Commit | Wait, values: Sequence[str]) -> None:
        """What the threads of a block do together."""
        place = len(self.faults.places) - 1
        match statement:
            case Collect(buffer=name, combine=combine, width=width):
                memory = self.memory[name]
                call = self.constant(("call", (combine, memory.buffer.dtype.name)), scalar_caller(combine, memory.buffer.dtype))
                unset = self.constant(("unset", (place,)), lambda element: self.faults.unset(place, name, element))
                helper = self.constant(("helper", "collect"), collect)
                self.emit(f"{helper}({self.pair(memory)}, {memory.buffer.shape}, {width}, {call}, {unset})")
            case MatmulTile():
                self.products(statement, place)
            case CopyAsync(buffer=name, index=index, source=source, source_index=origin, count=count):
                if values:
                    self.emit(f"if not {values[0]}:")
                    for k in range(count):
                        memory = self.memory[name]
                        self.indent += 1
                        target = self.element(memory, (*index[:-1], index[-1] + k))
                        self.check_store(memory, target, "")
                        self.emit(f"copies.append(({self.pair(memory)}, {target}, 0))")
                        if memory.unset:
                            self.emit(f"g{memory.name}[{target}] = 0")
                        self.indent -= 1
                    self.emit("else:")
                self.indent += len(values)
                for k in range(count):
                    element = self.element(self.memory[source], (*origin[:-1], origin[-1] + k))
                    self.check_set(self.memory[source], element)
                    self.check_load(self.memory[source], element)
                    memory = self.memory[name]
                    target = self.element(memory, (*index[:-1], index[-1] + k))
                    self.check_store(memory, target, "")
                    self.emit(f"copies.append(({self.pair(memory)}, {target}, m{self.memory[source].name}[{element}]))")
                    if memory.unset:
                        self.emit(f"g{memory.name}[{target}] = 0")
                self.indent -= len(values)
            case CopyBulk(buffer=name, index=index, source=source, source_index=origin, count=count):
                ends = []
                for memory, at in ((self.memory[name], index), (self.memory[source], origin)):
                    flat = _position(at, memory.buffer.shape)
                    self.element(memory, (flat + count - 1,))
                    ends += [self.pair(memory), self.element(memory, (flat,))]
                unset = self.constant(("unset", (place,)), lambda element: self.faults.unset(place, source, element))
                target, first, read, begin = ends
                self.emit(f"{self.constant(('helper', 'copy_bulk'), copy_bulk)}(({target}), {first}, ({read}), {begin}, {count}, {unset})")
            case Commit():
                self.emit("groups.append(copies[:]); copies.clear()")
            case Wait(groups=left):
                self.emit(f"{self.constant(('helper', 'finish_copies'), finish_copies)}(groups, {left})")

    def products(self, statement: MatmulTile, place: int) -> None:
        """The products of a warp's tile; the fragment is that of the warp loop around."""
        warp = self.warp
        assert warp is not None
        parts = []
        for name, index in ((statement.left, statement.left_index), (statement.right, statement.right_index)):
            memory = self.memory[name]
            first = ", ".join(map(self.size, index))
            extents = ", ".join(self.extent(memory, axis) for axis in range(2))
            parts.append(f"({self.pair(memory)}, ({extents}), ({first}), {name!r})")
        memory = self.memory[statement.accumulator]
        fault = self.constant(("products", (place,)), _ProductFaults(self.faults, place))
        self.emit(f"{self.constant(('helper', 'add_products'), add_products)}(({self.pair(memory)}, {memory.buffer.shape}, "
                  f"v_{warp.symbol.name}, {statement.accumulator!r}), {parts[0]}, {parts[1]}, {statement.depth}, "
                  f"{statement.grouped}, {(statement.bits, statement.zero)}, {statement.tf32!r}, {fault})")

    def pair(self, memory: _Memory) -> str:
        """A buffer's elements, and which are set where that is followed."""
        return f"m{memory.name}, {f'g{memory.name}' if memory.unset else None}"

    def variable(self, name: str) -> str:
        """Lets may have names that are no identifiers."""
        return name if name.isidentifier() else "_" + name.encode().hex()

    def inside(self, body: Sequence[Stmt]) -> None:
        self.indent += 1
        self.block(body)
        self.indent -= 1

    def nested(self, write: Callable[[], None]) -> None:
        """One loop deeper; in a function of its own where Python's limit on nested loops is near."""
        self.nesting += 1
        if self.nesting % MAX_PYTHON_NESTING == 0:
            name = f"inner{next(self.count)}"
            self.emit(f"def {name}():")
            self.indent += 1
            write()
            self.indent -= 1
            self.emit(f"{name}()")
        else:
            write()
        self.nesting -= 1

    def loop(self, loop: For) -> None:
        name, place = loop.symbol.name, len(self.faults.places) - 1
        extent = self.size(loop.extent)
        counter = f"v_{name}"
        if self.mode.checked and not isinstance(loop.extent, int):
            self.check_last(loop, extent, place)
        if loop.kind == PIPELINE:
            return self.pipeline(loop, extent, counter)
        marked = loop.kind in INDEPENDENT_KINDS
        if loop.kind == "warp":
            self.warp = loop
        if loop.kind == "block":
            self.emit("copies.clear(); groups.clear()")
        if marked and self.mode.checked:
            number = self.number(loop)
            self.open.append(_Open(number, loop, frozenset(_stored(loop.body))))
            self.emit(f"b{number} = clock[0]; x{number} = {extent}; clock[0] += max(x{number}, 0)")
        self.emit(f"for {counter} in range({extent}):")
        self.indent += 1
        if marked and self.mode.checked:
            self.emit(f"s{self.open[-1].number} = b{self.open[-1].number} + {counter}")
        if loop.kind == "parallel" and self.mode.threads:
            self.emit(f"T = X = 1 << ({counter} * threads // ({extent}))")
        self.block(loop.body)
        self.indent -= 1
        if marked and self.mode.checked:
            self.open.pop()

    def pipeline(self, loop: For, extent: str, counter: str) -> None:
        """Copies run as far ahead as they may."""
        ahead = self.fresh()
        self.emit(f"for {ahead} in range(-{loop.lanes}, {extent}):")
        self.indent += 1
        self.emit(f"{counter} = {ahead}")
        self.emit(f"if {counter} >= 0:")
        self.inside(loop.body[-1:])
        self.emit(f"{counter} += {loop.lanes}")
        self.emit(f"if {counter} < {extent}:")
        self.inside(loop.body[:-1])
        self.emit("groups.append(copies[:]); copies.clear()")
        self.emit(f"{self.constant(('helper', 'finish_copies'), finish_copies)}(groups, 0)")
        self.indent -= 1

    def check_last(self, loop: For, extent: str, place: int) -> None:
        """The symbol's bounds hold all values of the variable: normal forms and proofs rely on them."""
        symbol = loop.symbol
        if symbol.upper is not None:
            key = self.constant(("symbol", symbol), symbol)
            self.emit(f"if {extent} - 1 > {symbol.upper}: faults.bounds({place}, {symbol.name!r}, {extent} - 1, {key})")

    def while_loop(self, statement: While) -> None:
        self.emit("while True:")
        self.indent += 1
        condition, = self.values((statement.condition,))
        self.emit(f"if not {condition}: break")
        self.block(statement.body)
        self.indent -= 1

    def alloc(self, buffer: Buffer, rest: Sequence[Stmt]) -> None:
        name = str(next(self.count))
        memory = _Memory(buffer, name, len(self.open), False, self.mode.checked, buffer.name in _stored(rest))
        self.memory[buffer.name] = memory
        dtype = self.constant(("dtype", buffer.dtype.name), buffer.dtype.numpy)
        self.shape(memory)
        self.emit(f"m{name} = np.zeros(n{name}, {dtype})")
        if self.mode.checked:
            self.emit(f"g{name} = bytearray(n{name})")
        self.shadows(memory, rest)

    def store(self, store: Store, value: str) -> None:
        memory = self.memory[store.buffer]
        if memory.buffer.dtype == INDEX and store.combine:
            old = f"int(m{memory.name}[{{}}])"
        else:
            old = f"m{memory.name}[{{}}]"
        element = self.element(memory, store.index)
        if store.combine:
            self.check_set(memory, element)
            call = self.constant(("call", (store.combine, memory.buffer.dtype.name)),
                                 scalar_caller(store.combine, memory.buffer.dtype))
            value = f"{call}({old.format(element)}, {value})"
        self.check_store(memory, element, f"atomic {store.combine}" if store.atomic else store.combine)
        self.emit(f"m{memory.name}[{element}] = {value}")
        if memory.unset:
            self.emit(f"g{memory.name}[{element}] = 1")

    # --- accesses ---

    def element(self, memory: _Memory, index: tuple[DimLike, ...]) -> str:
        """The position in C order as an expression without effect, its bounds checked."""
        place, name, shape = len(self.faults.places) - 1, memory.buffer.name, memory.buffer.shape
        flat = len(index) != len(shape)
        position = ""
        for axis, size in enumerate(index):
            extent = f"n{memory.name}" if flat else self.extent(memory, axis)
            text = self.size(size)
            if not isinstance(size, int):
                variable = self.fresh()
                self.emit(f"{variable} = {text}")
                text = variable
            length = None if flat else shape[axis]
            if not (isinstance(size, int) and isinstance(length, int) and 0 <= size < length):
                self.emit(f"if not 0 <= {text} < {extent}: faults.outside({place}, {name!r}, {axis}, {text}, {extent})")
            position = text if not position else f"({position}) * {extent} + {text}"
        if position.isidentifier() or position.isdigit():
            return position
        variable = self.fresh()
        self.emit(f"{variable} = {position or '0'}")
        return variable

    def check_set(self, memory: _Memory, element: str) -> None:
        if memory.unset:
            place = len(self.faults.places) - 1
            self.emit(f"if not g{memory.name}[{element}]: faults.unset({place}, {memory.buffer.name!r}, {element})")

    def levels(self, memory: _Memory) -> list[_Open]:
        """The parallel and vector loops whose iterations share the buffer and which store to it."""
        return [o for o in self.open[memory.level:] if memory.buffer.name in o.stored]

    def race(self, memory: _Memory, element: str, o: _Open) -> str:
        """The complaint of two iterations of a loop; `{0}` is the other one."""
        place, n = len(self.faults.places) - 1, o.number
        return f"faults.race({place}, {memory.buffer.name!r}, {element}, {o.loop.symbol.name!r}, {{0}} - b{n}, s{n} - b{n})"

    def check_load(self, memory: _Memory, element: str) -> None:
        if not self.mode.checked:
            return
        place, label = len(self.faults.places) - 1, memory.buffer.name
        for o in self.levels(memory):
            n, key, race = o.number, f"{memory.name}_{o.number}", self.race(memory, element, o)
            store = f"{'a' if self.private(memory, o.loop) else 'w'}{key}[{element}]"
            self.emit(f"if b{n} <= {store} < s{n}: {race.format(store)}")
            if not self.private(memory, o.loop):
                self.emit(f"if r{key}[{element}] < b{n}: r{key}[{element}] = s{n}")
        if self.mode.threads and memory.parameter:
            x = memory.name
            if memory.stored:
                self.emit(f"if t{x}[{element}] & ~X: faults.crossing({place}, {label!r}, {element}, T, t{x}[{element}] & ~X)")
            self.emit(f"u{x}[{element}] |= T")

    def check_store(self, memory: _Memory, element: str, combine: str) -> None:
        """Also for the load within a combining store, which is no load of its own here: its order is free."""
        if not self.mode.checked:
            return
        place, label = len(self.faults.places) - 1, memory.buffer.name
        for o in self.levels(memory):
            n, key, race = o.number, f"{memory.name}_{o.number}", self.race(memory, element, o)
            if self.private(memory, o.loop):
                last = f"a{key}[{element}]"
                if combine:
                    self.emit(f"if b{n} <= {last} < s{n}: {race.format(last)}")
                self.emit(f"{last} = s{n}")
                continue
            first, kind, load = (f"{record}{key}[{element}]" for record in "wkr")
            free = combine and o.loop.kind == "vector" or combine.startswith("atomic")
            allowed = f" and {kind} != {combine!r}" if free else ""
            self.emit(f"if b{n} <= {first} < s{n}{allowed}: {race.format(first)}")
            self.emit(f"if b{n} <= {load} < s{n}: {race.format(load)}")
            self.emit(f"if {first} < b{n}: {first} = s{n}; {kind} = {combine!r}")
            self.emit(f"elif {kind} != {combine!r}: {kind} = 'both'")
        if self.mode.threads and memory.parameter:
            x = memory.name
            both = f"(t{x}[{element}] | u{x}[{element}])"
            self.emit(f"if {both} & ~X: faults.crossing({place}, {label!r}, {element}, T, {both} & ~X)")
            self.emit(f"t{x}[{element}] |= T")

    # --- expressions ---

    def values(self, roots: Sequence[Node]) -> list[str]:
        """Code that computes the expressions, each node once; gives the text of each root's value."""
        texts: dict[int, str] = {}
        for root in roots:
            for node in expression_nodes(root):
                if id(node) not in texts:
                    texts[id(node)] = self.value(node, [texts[id(i)] for i in node.inputs])
        return [texts[id(r)] for r in roots]

    def value(self, node: Node, operands: list[str]) -> str:
        op = node.op
        match op:
            case Literal(value=value, dtype=dtype):
                return self.literal(value, dtype)
            case Local(variable=name):
                return f"v_{self.variable(name)}"
            case IndexValue(size=size):
                text = self.size(size)
            case Load(buffer=name, index=index):
                memory = self.memory[name]
                element = self.element(memory, index)
                self.check_set(memory, element)
                self.check_load(memory, element)
                text = f"int(m{memory.name}[{element}])" if memory.buffer.dtype == INDEX else f"m{memory.name}[{element}]"
            case Elementwise(function=function):
                call = self.constant(("call", (function, node.inputs[-1].dtype.name)),
                                     scalar_caller(function, node.inputs[-1].dtype))
                text = f"{call}({', '.join(operands)})"
            case Cast(dtype=dtype):
                source = node.inputs[0].dtype
                text = f"{self.constant(('cast', (source.name, dtype.name)), cast_caller(source, dtype))}({operands[0]})"
            case Bitcast(dtype=dtype):
                source = node.inputs[0].dtype
                text = f"{self.constant(('bits', (source.name, dtype.name)), bitcast_caller(source, dtype))}({operands[0]})"
            case _:
                raise CompileError(f"{op.spelling} is no part of a kernel's expressions")
        variable = self.fresh()
        self.emit(f"{variable} = {text}")
        return variable

    def literal(self, value: int | float | bool, dtype: DType) -> str:
        if dtype.is_bool:
            return str(bool(value))
        if dtype == INDEX:
            return f"({int(value)})"
        with np.errstate(all="ignore"):
            element = np.asarray(value, dtype=np.float64 if dtype.is_float else dtype.numpy).astype(dtype.numpy)
        return self.constant(("literal", (dtype.name, element.tobytes())), element[()])

    def size(self, size: DimLike) -> str:
        """A size as Python, after a check that the index lets in it lie within their bounds."""
        if isinstance(size, int):
            return str(size)
        if self.mode.checked and self.lets:
            for symbol in symbols_of(size):
                if symbol.name in self.lets:
                    self.check_let(symbol)
        return _python(size)

    def check_let(self, symbol: Symbol) -> None:
        name, place = f"v_{symbol.name}", len(self.faults.places) - 1
        tests = [f"{symbol.lower} <= {name}" + ("" if symbol.upper is None else f" <= {symbol.upper}")]
        if symbol.multiple_of != 1:
            tests.append(f"{name} % {symbol.multiple_of} == 0")
        key = self.constant(("symbol", symbol), symbol)
        self.emit(f"if not ({' and '.join(tests)}): faults.bounds({place}, {symbol.name!r}, {name}, {key})")


def _position(index: tuple[DimLike, ...], shape: tuple[DimLike, ...]) -> DimLike:
    """The place of an element in C order."""
    if len(index) != len(shape):
        return index[0]
    place: DimLike = 0
    for i, n in zip(index, shape):
        place = place * n + i
    return place


def _python(size: DimLike) -> str:
    if isinstance(size, int):
        return f"({size})"
    terms = ("*".join([str(c), *(_python_atom(a) for a, power in m for _ in range(power))]) for m, c in size.terms)
    return f"({' + '.join(terms)})"


def _python_atom(atom: Atom) -> str:
    if isinstance(atom, Symbol):
        return f"v_{atom.name}"
    left, right = _python(atom.left), _python(atom.right)
    if atom.kind == "min":
        return f"min({left}, {right})"
    return f"({left} {'//' if atom.kind == 'floordiv' else '%'} {right})"


def _stored(body: Sequence[Stmt]) -> set[str]:
    return {s.buffer for s in walk(body) if isinstance(s, (Store, CopyAsync, CopyBulk))}
