"""Kernels that differ only in numbers become one kernel that is given the numbers.

Layers of one kind differ in their extents, strides and scalar constants. Two kernels are alike when all else agrees:
statements, expressions, and every number that the machine code is better for knowing. Those are extents of unrolled and
short vector loops, whether a vector loop has a rest, what divides, what a vector or unrolled variable is multiplied
with, and shapes of register buffers. Of a set of kernels that are alike one is kept; where their numbers differ it has
a symbol, and each launch passes its own number (a float as its bits).

Guarantees: each launch computes what it did before, to the bit; a kernel that is like no other stays the same object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..ir.dims import (
    Atom,
    DimLike,
    Monomial,
    Symbol,
    bounds,
    dim_min,
    divides,
    size_of,
    size_of_terms,
    substitute,
    symbols_of,
)
from ..ir.graph import Node
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
    expression_nodes,
    expressions_of,
    walk,
)
from ..ir.loop_gpu import block_loops
from ..ir.ops.compute import Bitcast, Cast, Elementwise
from ..ir.program import Branch, Launch, Loop, Program, Repeat, Step
from ..ir.types import F32, U32
from .kernels import free_symbols

SHORT_LOOP = 64     # a vector loop of at most this extent keeps it: the backend may spell it out
Number = DimLike | float
Skeleton = Any      # nested tuples that are equal for kernels that are alike


def share_kernels(program: Program) -> Program:
    """The program with one kernel for each set of kernels that are alike."""
    similar: dict[Skeleton, list[Kernel]] = {}
    for kernel in program.kernels():
        if block_loops(kernel):
            continue  # what divides work among blocks and threads is made for its numbers
        similar.setdefault(_outline(kernel), []).append(kernel)
    alike: dict[Skeleton, list[tuple[Kernel, _Reader]]] = {}
    for kernel in (kernel for members in similar.values() if len(members) > 1 for kernel in members):
        reader = _Reader(kernel)
        alike.setdefault(reader.skeleton, []).append((kernel, reader))
    replaced: dict[int, tuple[Kernel, dict[str, DimLike]]] = {}
    for members in alike.values():
        if len(members) > 1:
            general = _Generalized(members[0][0], [reader for _, reader in members])
            for (kernel, _), values in zip(members, general.values):
                replaced[id(kernel)] = (general.kernel, values)
    return replace(program, steps=_with_kernels(program.steps, replaced)) if replaced else program


def _with_kernels(steps: Sequence[Step], replaced: dict[int, tuple[Kernel, dict[str, DimLike]]]) -> tuple[Step, ...]:
    def renewed(step: Step) -> Step:
        match step:
            case Launch(kernel=old, sizes=sizes) if id(old) in replaced:
                kernel, values = replaced[id(old)]
                binding = {s.name: size for s, size in zip(old.symbols, sizes)}
                given = (values[s.name] if s.name in values else size_of(s) for s in kernel.symbols)
                return replace(step, kernel=kernel, sizes=tuple(substitute(size, binding) for size in given))
            case Repeat():
                return replace(step, steps=_with_kernels(step.steps, replaced))
            case Loop():
                return replace(step, condition_steps=_with_kernels(step.condition_steps, replaced),
                               steps=_with_kernels(step.steps, replaced))
            case Branch():
                return replace(step, then=_with_kernels(step.then, replaced), otherwise=_with_kernels(step.otherwise, replaced))
        return step

    return tuple(map(renewed, steps))


def _outline(kernel: Kernel) -> Skeleton:
    """What kernels that are alike have in common at first sight: a part of the skeleton that costs little."""
    return (tuple((buffer.name, buffer.dtype, buffer.space) for buffer in kernel.buffers),
            tuple((_form(s), *(x.op if isinstance(x.op, Elementwise) else type(x.op)
                               for root in expressions_of(s) for x in expression_nodes(root)))
                  for s in walk(kernel.body)))


def _form(statement: Stmt) -> Skeleton:
    """What a statement is, without its parts."""
    match statement:
        case For():
            return statement.kind, statement.lanes, statement.extent if _stays(statement) else None, _has_rest(statement)
        case Alloc(buffer):
            return buffer
        case Store():
            return statement.buffer, statement.combine, statement.stream
    return type(statement)


def _stays(loop: For) -> bool:
    """Whether the extent stays a number in the code."""
    return loop.kind == "unrolled" or loop.extent == 1 or loop.kind == "vector" and bounds(loop.extent)[1] <= SHORT_LOOP


def _has_rest(loop: For) -> bool:
    return loop.kind == "vector" and not divides(loop.lanes, loop.extent)


class _Variable(Struct):
    """A loop variable or let. `fixed`: what it is multiplied with stays a number in the code."""

    number: int
    symbol: Symbol
    fixed: bool


class _Walk:
    """Goes through a kernel and makes it again with `number` in the place of each number that may be passed, and
    `variable` in that of each variable; on the way it writes down the skeleton. (Sizes are made again only if `makes`.)"""

    def __init__(self, kernel: Kernel, number: Callable[[Number], Number], variable: Callable[[int, Symbol], Symbol],
                 makes: bool) -> None:
        self.number, self.variable, self.makes = number, variable, makes
        self.variables: dict[str, _Variable] = {}
        self.count = 0
        self.in_vector = False
        self.seen: dict[Node, int] = {}
        self.nodes: dict[Node, Node] = {}
        parts = [self.buffer(buffer) for buffer in kernel.buffers]
        self.buffers = tuple(buffer for _, buffer in parts)
        written, self.body = self.block(kernel.body)
        self.skeleton = (tuple(skeleton for skeleton, _ in parts), written)

    # --- statements --------------------------------------------------------------------------------------------------

    def block(self, body: Sequence[Stmt]) -> tuple[Skeleton, tuple[Stmt, ...]]:
        made = [self.statement(statement) for statement in body]
        return tuple(skeleton for skeleton, _ in made), tuple(statement for _, statement in made)

    def statement(self, s: Stmt) -> tuple[Skeleton, Stmt]:
        match s:
            case For():
                return self.loop(s)
            case Let():
                skeleton, value = self.expression(s.value)
                if s.symbol is None:
                    return (Let, s.name, skeleton), replace(s, value=value)
                found = self.bind(s.symbol, self.in_vector)
                return (Let, found.number, skeleton), replace(s, value=value, symbol=found.symbol)
            case Alloc(buffer):
                return (Alloc, buffer), s
            case Store():
                where, index = self.sizes(s.index)
                skeleton, value = self.expression(s.value)
                return (Store, s.buffer, s.combine, s.stream, where, skeleton), replace(s, index=index, value=value)
            case Prefetch(buffer, index):
                where, index = self.sizes(index)
                return (Prefetch, buffer, where), Prefetch(buffer, index)
            case Check():
                what = [self.expression(x) for x in (s.condition, s.found, s.expected)]
                (_, condition), (_, found_value), (_, expected) = what
                return ((Check, s.code, s.message, *(skeleton for skeleton, _ in what)),
                        replace(s, condition=condition, found=found_value, expected=expected))
            case If():
                skeleton, condition = self.expression(s.condition)
                (first, then), (second, otherwise) = self.block(s.then), self.block(s.otherwise)
                return (If, skeleton, first, second), If(condition, then, otherwise)
            case While():
                skeleton, condition = self.expression(s.condition)
                inner, body = self.block(s.body)
                return (While, skeleton, inner), While(condition, body)
        raise AssertionError(f"{type(s).__name__} stands in kernels of a GPU, which are not shared")

    def loop(self, s: For) -> tuple[Skeleton, Stmt]:
        vector = s.kind == "vector"
        skeleton, extent = (s.extent, s.extent) if _stays(s) else self.size(s.extent)
        found = self.bind(s.symbol, vector or s.kind == "unrolled")
        before, self.in_vector = self.in_vector, self.in_vector or vector
        inner, body = self.block(s.body)
        self.in_vector = before
        return (For, found.number, s.kind, s.lanes, skeleton, _has_rest(s), inner), For(found.symbol, extent, s.kind, body, s.lanes)

    def bind(self, symbol: Symbol, fixed: bool) -> _Variable:
        self.count += 1
        found = self.variables[symbol.name] = _Variable(self.count, self.variable(self.count, symbol), fixed)
        return found

    def buffer(self, buffer: Buffer) -> tuple[Skeleton, Buffer]:
        skeleton, shape = self.sizes(buffer.shape)
        return (buffer.name, buffer.dtype, buffer.space, skeleton), replace(buffer, shape=shape)

    # --- expressions -------------------------------------------------------------------------------------------------

    def expression(self, root: Node) -> tuple[Skeleton, Node]:
        skeletons = []
        for node in expression_nodes(root, self.seen):
            inputs = tuple([self.nodes[x] for x in node.inputs])
            skeleton, made = self.node(node, inputs)
            skeletons.append((skeleton, tuple([self.seen[x] for x in node.inputs])))
            self.nodes[node] = made
            self.seen[node] = len(self.seen)
        return (tuple(skeletons), self.seen[root]), self.nodes[root]

    def node(self, node: Node, inputs: tuple[Node, ...]) -> tuple[Skeleton, Node]:
        match node.op:
            case Load(buffer, index, dtype):
                where, index = self.sizes(index)
                return (Load, buffer, where), Node(Load(buffer, index, dtype), (), node.type, node.loc)
            case IndexValue(size):
                skeleton, made = self.size(size)
                return (IndexValue, skeleton), Node(IndexValue(made), (), node.type, node.loc)
            case Literal(value, dtype) if dtype == F32:
                found = self.number(float(value))
                if isinstance(found, float):
                    return Literal, node
                bits = Node(IndexValue(found), (), IndexValue(found).infer(), node.loc)
                word = Node(Cast(U32), (bits,), Cast(U32).infer(bits.type), node.loc)
                return Literal, Node(Bitcast(F32), (word,), node.type, node.loc)
            case Local(name) if name in self.variables:
                return (Local, self.variables[name].number), node
        return node.op, node if inputs == node.inputs else Node(node.op, inputs, node.type, node.loc)

    # --- sizes -------------------------------------------------------------------------------------------------------

    def sizes(self, sizes: Sequence[DimLike]) -> tuple[Skeleton, tuple[DimLike, ...]]:
        made = [self.size(size) for size in sizes]
        return tuple(skeleton for skeleton, _ in made), tuple(size for _, size in made)

    def size(self, size: DimLike, fixed: bool = False) -> tuple[Skeleton, DimLike]:
        """A sum of products of variables, each with a factor that may be passed unless it is `fixed`."""
        if isinstance(size, int):
            skeleton, total = self.factor(size, fixed)
            return (((), skeleton),), total
        factors: dict[Skeleton, list[tuple[Monomial, int]]] = {(): []}
        products: dict[Skeleton, tuple[DimLike, bool]] = {(): (1, fixed)}
        alike: dict[Skeleton, list[Monomial]] = {}
        for monomial, coefficient in size.terms:
            place: Skeleton = ()
            bound: Monomial = ()
            product: DimLike = 1
            free = []
            stays = fixed
            for atom, power in monomial:
                if not self.is_bound(atom):
                    free.append((atom, power))
                    continue
                skeleton, made, atom_stays = self.atom(atom, fixed)
                bound = (*bound, (atom, power))
                place, stays = (*place, (skeleton, power)), stays or atom_stays
                if self.makes:
                    product = _times(product, made, power)
            if len(place) > 1:
                place = tuple(sorted(place, key=_order))
            others = alike.setdefault(place, [])  # what differs in numbers alone is no less another product
            if bound not in others:
                others.append(bound)
            if others[0] != bound:
                place = (*place, others.index(bound))
            factors.setdefault(place, []).append((tuple(free), coefficient))
            products[place] = (product, stays)
        total = 0
        written = []
        for place in sorted(factors, key=_order) if len(factors) > 1 else factors:
            product, stays = products[place]
            skeleton, factor = self.factor(size_of_terms(factors[place]), stays)
            written.append((place, skeleton))
            total = total + product * factor if self.makes else size
        return tuple(written), total

    def factor(self, factor: DimLike, stays: bool) -> tuple[Skeleton, DimLike]:
        low = factor if isinstance(factor, int) else bounds(factor)[0]
        if stays or low < 0 and not isinstance(factor, int):
            return factor, factor
        sign = -1 if low < 0 else 1
        found = self.number(factor * sign)
        assert not isinstance(found, float)
        return sign, found * sign

    def atom(self, atom: Atom, fixed: bool) -> tuple[Skeleton, DimLike, bool]:
        """What is written down of it, the atom made again, and whether factors of it stay."""
        if isinstance(atom, Symbol):
            found = self.variables[atom.name]
            return found.number, size_of(found.symbol), found.fixed
        stays = any(self.variables[s.name].fixed for s in symbols_of(atom.left, atom.right) if s.name in self.variables)
        divided = fixed or stays or atom.kind != "min"
        (first, left), (second, right) = self.size(atom.left, divided), self.size(atom.right, divided)
        if not self.makes:
            return (atom.kind, first, second), 0, stays
        made = dim_min(left, right) if atom.kind == "min" else left // right if atom.kind == "floordiv" else left % right
        return (atom.kind, first, second), made, stays

    def is_bound(self, atom: Atom) -> bool:
        if isinstance(atom, Symbol):
            return atom.name in self.variables
        return any(s.name in self.variables for s in symbols_of(atom.left, atom.right))


def _times(product: DimLike, factor: DimLike, power: int) -> DimLike:
    for _ in range(power):
        product = factor if product == 1 else product * factor
    return product


def _order(skeleton: Skeleton) -> list[int]:
    """An order of skeletons in which names play no part."""
    if not isinstance(skeleton, tuple):
        return [skeleton] if isinstance(skeleton, int) else []
    order = [len(skeleton)]
    for part in skeleton:
        if isinstance(part, int):
            order.append(part)
        else:
            order += _order(part)
    return order


class _Reader:
    """The skeleton of a kernel, its numbers in order, and the symbols of its variables."""

    def __init__(self, kernel: Kernel) -> None:
        self.numbers: list[Number] = []
        self.symbols: dict[int, Symbol] = {}
        self.skeleton = _Walk(kernel, self.number, self.variable, makes=False).skeleton

    def number(self, value: Number) -> Number:
        self.numbers.append(value)
        return value

    def variable(self, number: int, symbol: Symbol) -> Symbol:
        self.symbols[number] = symbol
        return symbol


class _Generalized:
    """One kernel for kernels that are alike, and for each of them what its new symbols stand for."""

    def __init__(self, kernel: Kernel, readers: Sequence[_Reader]) -> None:
        self.readers = readers
        self.taken = {s.name for s in (*kernel.symbols, *readers[0].symbols.values())}
        self.found: dict[tuple[Number, ...], Symbol] = {}
        self.values: list[dict[str, DimLike]] = [{} for _ in readers]
        self.position = 0
        made = _Walk(kernel, self.number, self.variable, makes=True)
        self.kernel = replace(kernel, buffers=made.buffers, body=made.body, symbols=free_symbols(made.buffers, made.body))

    def number(self, value: Number) -> Number:
        row = tuple(reader.numbers[self.position] for reader in self.readers)
        self.position += 1
        if all(_same(other, value) for other in row):
            return value
        key = tuple(map(_passed, row))
        if key not in self.found:
            self.found[key] = self.fresh(key)
            for values, size in zip(self.values, key):
                values[self.found[key].name] = size
        return size_of(self.found[key])

    def fresh(self, row: tuple[DimLike, ...]) -> Symbol:
        """A symbol whose bounds hold every number of a row."""
        name = f"size{len(self.found)}"
        while name in self.taken:
            name += "_"
        lows, highs = zip(*map(bounds, row))
        return Symbol(name, int(min(lows)), None if max(highs) == math.inf else int(max(highs)), math.gcd(*map(_divisor, row)))

    def variable(self, number: int, symbol: Symbol) -> Symbol:
        """The variable with bounds that hold it in each of the kernels."""
        found = [reader.symbols[number] for reader in self.readers]
        if all(other == symbol for other in found):
            return symbol
        uppers = [s.upper for s in found if s.upper is not None]
        return Symbol(symbol.name, min(s.lower for s in found), max(uppers) if len(uppers) == len(found) else None,
                      math.gcd(*(s.multiple_of for s in found)))


def _same(left: Number, right: Number) -> bool:
    return left == right and type(left) is type(right) and (not isinstance(left, float) or _passed(left) == _passed(right))


def _passed(number: Number) -> DimLike:
    """What a launch passes: a size as it is, a float as its bits."""
    return int.from_bytes(F32.numpy.type(number).tobytes(), "little") if isinstance(number, float) else number


def _divisor(size: DimLike) -> int:
    """A number that divides the size, as far as vector loops care."""
    if isinstance(size, int):
        return size
    return next(d for d in (SHORT_LOOP, 32, 16, 8, 4, 2, 1) if divides(d, size))


__all__ = ["share_kernels"]
