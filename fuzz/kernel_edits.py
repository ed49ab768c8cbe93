"""Reading and changing kernels of the loop IR: where statements stand, what they see, and copies of them elsewhere.

A `Spot` is a place in a block, with the `Scope` of names that a statement there may use. `edited` puts other statements
there; `copied` copies statements with other sizes, buffers and names, so that they fit in somewhere else.

Assumes kernels that `verify_kernel` accepts. Guarantees well-formed trees; whether what comes out is well-typed, and what
it computes, is the caller's concern. Randomness comes from the generator that is passed alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from ..ir.dims import DimLike, bounds, evaluate, product, substitute
from ..ir.graph import Node, Op
from ..ir.loop import (
    Alloc,
    Buffer,
    Check,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Literal,
    Load,
    Local,
    Prefetch,
    Stmt,
    Store,
    While,
    blocks_of,
    expression_nodes,
    loop_variable,
    map_expression,
    names_of,
    variable_size,
    walk,
)
from ..ir.loop_proofs import Known, condition_facts, prove_nonnegative
from ..ir.ops.compute import Elementwise
from ..ir.types import I32, DType

FUEL = "fuel"          # begins the names of counters that end while loops: nothing else touches these
WHILE_ROUNDS = 8
UNKNOWN_ROUNDS = 16    # what is reckoned for an extent that data decides

Path = tuple[tuple[int, int], ...]


def node(op: Op, *inputs: Node) -> Node:
    return Node(op, inputs, op.infer(*(i.type for i in inputs)))


# --- where statements stand ------------------------------------------------------------------------------------------


class Scope(Struct):
    """What a statement sees. `loops`: those around it, outer first; `values`: dtypes of lets; `sizes`: what may stand in an
    index: loop variables, index lets and symbols; `known`: what holds there; `fresh`: buffers that have values, or that a
    statement before stores to; `first`: what the first index into some buffers must be."""

    buffers: dict[str, Buffer] = field(default_factory=dict)
    values: dict[str, DType] = field(default_factory=dict)
    sizes: dict[str, DimLike] = field(default_factory=dict)
    loops: tuple[For, ...] = ()
    lets: dict[str, DimLike] = field(default_factory=dict)
    known: Known = Known()
    fresh: frozenset[str] = frozenset()
    first: dict[str, DimLike] = field(default_factory=dict)

    @property
    def vector(self) -> For | None:
        return next((loop for loop in self.loops if loop.kind == "vector"), None)

    def inner(self) -> Scope:
        return replace(self, buffers=dict(self.buffers), values=dict(self.values), sizes=dict(self.sizes), lets=dict(self.lets))

    def inside(self, size: DimLike, extent: DimLike) -> bool:
        """Whether the index is shown to lie in 0 .. extent - 1; quickly, so not all that could be shown is."""
        low, high = bounds(size)
        if isinstance(extent, int) and isinstance(high, int):
            return low >= 0 and high < extent
        return prove_nonnegative(size, self.known) and prove_nonnegative(extent - 1 - size, self.known)


class Spot(Struct, frozen=True):
    """The place before statement number `position` of a block; `path`: the statements around it, outer first, by number,
    with the block of each that leads on. `statement`: what stands there, None at the end."""

    path: Path
    position: int
    statement: Stmt | None
    scope: Scope


def spots(kernel: Kernel) -> list[Spot]:
    """Every place where a statement stands, outer before inner."""
    scope = Scope({b.name: b for b in kernel.buffers}, {}, {s.name: variable_size(s) for s in kernel.symbols})
    ready = frozenset(b.name for b in kernel.buffers if b.space != "out")
    return list(_spots(kernel.body, (), replace(scope, fresh=ready)))


def _spots(body: Sequence[Stmt], path: Path, outer: Scope) -> Iterator[Spot]:
    scope = outer.inner()
    for position, statement in enumerate((*body, None)):
        yield Spot(path, position, statement, scope.inner())
        if statement is None:
            return
        for number, block in enumerate(blocks_of(statement)):
            yield from _spots(block, (*path, (position, number)), _entered(scope, statement, number))
        _passed(scope, statement)


def _entered(scope: Scope, statement: Stmt, number: int) -> Scope:
    inner = scope.inner()
    match statement:
        case For(symbol=variable, extent=extent):
            inner.sizes[variable.name] = variable_size(variable)
            inner.loops = (*scope.loops, statement)
            inner.known = Known((*scope.known.loops, (variable, extent)), scope.known.facts)
        case If(condition=condition) if number == 0:
            inner.known = Known(scope.known.loops, (*scope.known.facts, *condition_facts(condition, scope.lets)))
    return inner


def _passed(scope: Scope, statement: Stmt) -> None:
    """What the statements after it see."""
    scope.fresh |= {s.buffer for s in walk([statement]) if isinstance(s, Store)}
    match statement:
        case Alloc(buffer=buffer):
            scope.buffers[buffer.name] = buffer
            scope.fresh -= {buffer.name}
        case Let(name=name, value=value, symbol=variable):
            scope.values[name] = value.dtype
            if variable is not None:
                scope.sizes[name] = scope.lets[name] = variable_size(variable)
        case Check(condition=condition):
            scope.known = Known(scope.known.loops, (*scope.known.facts, *condition_facts(condition, scope.lets)))


def rebuilt(statement: Stmt, blocks: Sequence[tuple[Stmt, ...]]) -> Stmt:
    """The statement with other blocks."""
    match statement:
        case For() | While():
            return replace(statement, body=blocks[0])
        case If():
            return replace(statement, then=blocks[0], otherwise=blocks[1])
    return statement


def changed_block(body: tuple[Stmt, ...], path: Path, change: Callable[[tuple[Stmt, ...]], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
    """The statements with another block at the path."""
    if not path:
        return change(body)
    position, number = path[0]
    blocks = list(blocks_of(body[position]))
    blocks[number] = changed_block(blocks[number], path[1:], change)
    return (*body[:position], rebuilt(body[position], blocks), *body[position + 1:])


def edited(kernel: Kernel, spot: Spot, new: Sequence[Stmt], removed: int = 1) -> Kernel:
    """The kernel with `new` instead of the `removed` statements from the spot on."""
    def change(block: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        return (*block[:spot.position], *new, *block[spot.position + removed:])

    return replace(kernel, body=changed_block(kernel.body, spot.path, change))


def block_from(kernel: Kernel, spot: Spot) -> tuple[Stmt, ...]:
    """The statements from the spot to the end of its block."""
    block = kernel.body
    for position, number in spot.path:
        block = blocks_of(block[position])[number]
    return block[spot.position:]


# --- expressions -----------------------------------------------------------------------------------------------------


def with_expressions(statement: Stmt, roots: Sequence[Node]) -> Stmt:
    """The statement with other expressions, in the order of `expressions_of`."""
    match statement:
        case While() | If():
            return replace(statement, condition=roots[0])
        case Let() | Store():
            return replace(statement, value=roots[0])
        case Check():
            return replace(statement, condition=roots[0], found=roots[1], expected=roots[2])
    return statement


def replaced(root: Node, old: Node, new: Node) -> Node:
    """The expression with one node replaced wherever it occurs; both have one dtype."""
    done: dict[int, Node] = {}
    for part in expression_nodes(root):
        inputs = tuple(done[id(i)] for i in part.inputs)
        same = all(a is b for a, b in zip(inputs, part.inputs))
        done[id(part)] = new if part is old else part if same else Node(part.op, inputs, part.type, part.loc)
    return done[id(root)]


# --- names and copies ------------------------------------------------------------------------------------------------


def fresh_name(stem: str, taken: set[str]) -> str:
    """A name that is not taken, which it is from now on."""
    stem = stem.rstrip("0123456789_") or "v"
    found = next(n for n in itertools.chain([stem], (f"{stem}{k}" for k in itertools.count(2))) if n not in taken)
    taken.add(found)
    return found


class Copying(Struct):
    """How statements are copied. `sizes`: what stands for variables in sizes; `values` and `buffers`: other names of lets
    and buffers; `taken`: names that are not free, None to keep those that the statements bind; `index`: what becomes of
    an index into the buffer of that (new) name."""

    sizes: dict[str, DimLike] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)
    taken: set[str] | None = None
    index: Callable[[str, tuple[DimLike, ...]], tuple[DimLike, ...]] | None = None

    def inner(self) -> Copying:
        return replace(self, sizes=dict(self.sizes), values=dict(self.values), buffers=dict(self.buffers))

    def name(self, old: str) -> str:
        return old if self.taken is None else fresh_name(old, self.taken)

    def access(self, buffer: str, index: tuple[DimLike, ...]) -> tuple[str, tuple[DimLike, ...]]:
        buffer = self.buffers.get(buffer, buffer)
        index = tuple(substitute(i, self.sizes) for i in index)
        return buffer, index if self.index is None else self.index(buffer, index)

    def op(self, op: Op) -> Op:
        match op:
            case Load(buffer=buffer, index=index, dtype=dtype):
                return Load(*self.access(buffer, index), dtype)
            case IndexValue(size=size):
                return IndexValue(substitute(size, self.sizes))
            case Local(variable=variable, dtype=dtype) if variable in self.values:
                return Local(self.values[variable], dtype)
        return op


def copied(body: Sequence[Stmt], how: Copying) -> tuple[Stmt, ...]:
    """The statements copied; loop variables get the bounds that their new extents give them."""
    how = how.inner()
    return tuple(_copied(statement, how) for statement in body)


def _copied(statement: Stmt, how: Copying) -> Stmt:
    done: dict[Node, Node] = {}

    def value(root: Node) -> Node:
        return map_expression(root, how.op, done)

    match statement:
        case For(symbol=variable, extent=extent, body=body):
            extent = substitute(extent, how.sizes)
            new = loop_variable(how.name(variable.name), extent)
            inner = how.inner()
            inner.sizes[variable.name] = variable_size(new)
            return replace(statement, symbol=new, extent=extent, body=copied(body, inner))
        case While(condition=condition, body=body):
            return While(value(condition), copied(body, how))
        case If(condition=condition, then=then, otherwise=otherwise):
            return If(value(condition), copied(then, how), copied(otherwise, how))
        case Let(name=name, value=root, symbol=symbol):
            root, how.values[name] = value(root), how.name(name)
            if symbol is not None:
                symbol = replace(symbol, name=how.values[name])
                how.sizes[name] = variable_size(symbol)
            return Let(how.values[name], root, symbol)
        case Alloc(buffer=buffer):
            how.buffers[buffer.name] = how.name(buffer.name)
            return Alloc(replace(buffer, name=how.buffers[buffer.name],
                                 shape=tuple(substitute(n, how.sizes) for n in buffer.shape)))
        case Store(buffer=buffer, index=index, value=root):
            buffer, index = how.access(buffer, index)
            return replace(statement, buffer=buffer, index=index, value=value(root))
        case Check(condition=condition, found=found, expected=expected):
            return replace(statement, condition=value(condition), found=value(found), expected=value(expected))
        case Prefetch(buffer=buffer, index=index):
            return Prefetch(*how.access(buffer, index))
    raise AssertionError(f"{type(statement).__name__} stands in kernels of a GPU, which are not mutated")


# --- work ------------------------------------------------------------------------------------------------------------


def statements_in(kernel: Kernel) -> int:
    return sum(1 for _ in walk(kernel.body))


def work_of(body: Sequence[Stmt], sizes: Mapping[str, int], least: Mapping[str, int] | None = None) -> int:
    """About how many statements run, at most. `least`: the sizes with 0 for each loop variable."""
    least = sizes if least is None else least
    total = 0
    for statement in body:
        rounds = 1
        inner = (sizes, least)
        match statement:
            case For(symbol=variable, extent=extent):
                rounds = max(0, evaluate(extent, sizes), evaluate(extent, least))
                inner = ({**sizes, variable.name: max(rounds - 1, 0)}, {**least, variable.name: 0})
            case While():
                rounds = WHILE_ROUNDS
            case Let(name=name, symbol=variable) if variable is not None:
                sizes = {**sizes, name: UNKNOWN_ROUNDS if variable.upper is None else variable.upper}
                least = {**least, name: variable.lower}
        # in a loop without iterations sizes may have no value: it may be over quotients by its extent
        total += 1 + (sum(rounds * work_of(block, *inner) for block in blocks_of(statement)) if rounds else 0)
    return total


def largest_allocation(kernel: Kernel, sizes: Mapping[str, int]) -> float:
    """Elements of the largest buffer that the kernel allocates."""
    shapes = [s.buffer.shape for s in walk(kernel.body) if isinstance(s, Alloc)]
    return max((bounds(substitute(product(shape), sizes))[1] for shape in shapes), default=0)


def with_fuel(kernel: Kernel) -> Kernel:
    """The kernel with each while loop ended after some rounds at the latest, so that no mutant runs for ever."""
    from_here = names_of(kernel)

    def block(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        found: list[Stmt] = []
        for statement in body:
            new = rebuilt(statement, [block(b) for b in blocks_of(statement)])
            found.extend(fueled(new, from_here) if isinstance(new, While) and not _has_fuel(new) else (new,))
        return tuple(found)

    return replace(kernel, body=block(kernel.body))


def fueled(loop: While, taken: set[str]) -> tuple[Stmt, ...]:
    """The loop with a counter of its own."""
    name = fresh_name(FUEL, taken)
    memory = Buffer(name, I32, (1,), "local")

    def number(value: int) -> Node:
        return node(Literal(value, I32))

    left = node(Elementwise("gt"), node(Load(name, (0,), I32)), number(0))
    return (Alloc(memory), Store(name, (0,), number(WHILE_ROUNDS)),
            While(node(Elementwise("and"), loop.condition, left), (*loop.body, Store(name, (0,), number(-1), "add"))))


def _has_fuel(loop: While) -> bool:
    return any(isinstance(s, Store) and s.buffer.startswith(FUEL) for s in loop.body)


def is_fuel(statement: Stmt) -> bool:
    """Whether the statement is part of what ends a while loop."""
    match statement:
        case Alloc(buffer=buffer):
            return buffer.name.startswith(FUEL)
        case Store(buffer=name):
            return name.startswith(FUEL)
    return False

