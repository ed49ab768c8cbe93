"""What bounds, loop extents, guards and checks prove of sizes: that they are not negative, that indices lie within their axes.

Sound and incomplete: what is not shown may hold. The cost is bounded. Assumes kernels that pass `verify_kernel`, and sizes within their
declared bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from .dims import Composed, Dim, DimLike, Monomial, Symbol, bounds, product, size_of, substitute, symbols_of
from .graph import Node
from .loop import (
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
    Stmt,
    Store,
    While,
    expression_nodes,
    expressions_of,
)
from .loop_text import first_line
from .ops.compute import Elementwise
from .types import INDEX


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
                    found.append(UnprovedIndex(name, axis, i, n, first_line(statement)))
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
