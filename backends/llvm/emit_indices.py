"""Sizes and indices (`ir/dims.py`) as 64-bit arithmetic, each part as far outside the loops as its symbols allow.

What it does: keeps a stack of scopes, one for each place where symbols are bound (the function's entry, a loop's body, a `let`).
A polynomial is split by the innermost scope that its terms need; outer parts are emitted once, at the end of that scope's block,
which dominates all that is inside. A pointer is a chain of such sums, so an inner loop adds only its own part.
Assumes: symbols hold values within their bounds, and divisors are positive where they are evaluated at all.
Guarantees: the hoisted arithmetic has no effect and cannot trap: a divisor that is not provably positive is raised to 1 (it
may be evaluated before a loop that would not have run). Symbols bound to integers (unrolled loops) are folded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from msgspec import Struct

from tilewright.backends.llvm.emit_scalars import spread_text
from tilewright.backends.llvm.emit_text import Block, Function, shaped, splat_text
from tilewright.ir.dims import (
    Atom,
    Composed,
    Dim,
    DimLike,
    Monomial,
    Symbol,
    bounds,
    divides,
    size_of,
    size_of_terms,
    substitute,
    symbols_of,
)
from tilewright.ir.errors import InternalError
from tilewright.ir.loop_proofs import linear_factor

Terms = tuple[tuple[Monomial, int], ...]
NARROW = 2**31 - 1


@lru_cache(maxsize=65536)
def names_of(size: DimLike) -> tuple[str, ...]:
    return tuple(symbol.name for symbol in symbols_of(size))


@lru_cache(maxsize=65536)
def atom_names(atom: Atom) -> tuple[str, ...]:
    return (atom.name,) if isinstance(atom, Symbol) else tuple({*names_of(atom.left), *names_of(atom.right)})


@lru_cache(maxsize=65536)
def monomial_names(monomial: Monomial) -> tuple[str, ...]:
    return tuple(dict.fromkeys([name for atom, _ in monomial for name in atom_names(atom)]))


class Binding(Struct):
    """What a symbol stands for: `value`, an integer or an i64 operand, bound in scope `depth`. `lanes`: `value` is a vector.
    `chunk`: lane l of a vector loop of so many is at value + l, and value is a multiple of their number."""

    value: int | str
    depth: int
    lanes: int = 0
    chunk: int = 0


class Scope:
    """A block where symbols were bound, with what was computed there."""

    __slots__ = ("block", "cache")

    def __init__(self, block: Block) -> None:
        self.block = block
        self.cache: dict[object, str] = {}


class Place(Struct, frozen=True):
    """Where an access goes, for all lanes of a vector loop. `kind`: 'uniform' (one place), 'contiguous' (lane l at + l), 'strided'
    (lane l at + l * stride), 'lanes' (each its own). For all but 'lanes', `constant` and `terms` give the first lane's offset."""

    kind: str
    constant: int
    terms: Terms
    stride: int | str = 0


class Indices:
    """Bindings and scopes of one function."""

    def __init__(self, code: Function) -> None:
        self.code = code
        self.scopes = [Scope(code.entry)]
        self.bindings: dict[str, Binding] = {}
        self.integers: dict[str, int] = {}
        self.varying_names: set[str] = set()  # what differs between the lanes of the vector loop
        self.resolved: dict[object, tuple[int, Terms]] = {}

    # ---- binding ----

    def push_scope(self) -> int:
        """A scope at the current block; returns its depth."""
        self.scopes.append(Scope(self.code.block))
        return len(self.scopes) - 1

    def pop_scopes(self, depth: int) -> None:
        """Leaves `depth` scopes."""
        del self.scopes[depth:]

    def bind(self, name: str, value: int | str, lanes: int = 0, chunk: int = 0) -> Binding | None:
        """Binds a symbol in the innermost scope and returns what it stood for before."""
        before = self.bindings.get(name)
        self.bind_to(name, Binding(value, len(self.scopes) - 1, lanes, chunk))
        return before

    def bind_to(self, name: str, binding: Binding) -> None:
        self.bindings[name] = binding
        self.integers.pop(name, None)
        self.varying_names.discard(name)
        if binding.lanes or binding.chunk:
            self.varying_names.add(name)
        elif isinstance(binding.value, int):
            self.integers[name] = binding.value

    def restore(self, name: str, before: Binding | None) -> None:
        if before is not None:
            self.bind_to(name, before)
            return
        del self.bindings[name]
        self.integers.pop(name, None)
        self.varying_names.discard(name)

    def binding(self, name: str) -> Binding:
        found = self.bindings.get(name)
        if found is None:
            raise InternalError(f"llvm backend: the symbol {name} is not bound here; bound are "
                                f"{', '.join(self.bindings) or 'none'}")
        return found

    def is_varying(self, size: DimLike) -> bool:
        """Whether lanes of the vector loop see different values."""
        if isinstance(size, int):
            return False
        return not self.varying_names.isdisjoint(names_of(size))

    # ---- polynomials with the integers put in ----

    def resolve(self, size: DimLike) -> tuple[int, Terms]:
        """The constant and the other terms, with symbols that are bound to integers replaced."""
        if isinstance(size, int):
            return size, ()
        integers = self.integers
        names = [name for name in names_of(size) if name in integers] if integers else []
        key = (size, tuple([(name, integers[name]) for name in names]))
        found = self.resolved.get(key)
        if found is None:
            found = self.resolved[key] = _resolve(size, {name: integers[name] for name in names})
        return found

    def substituted(self, size: DimLike) -> DimLike:
        """The size with integers put in, in normal form: an integer where they decide it."""
        if isinstance(size, int) or not self.integers:
            return size
        known = {name: self.integers[name] for name in names_of(size) if name in self.integers}
        return substitute(size, known) if known else size

    def depth_of(self, monomial: Monomial) -> int:
        depth = 0
        for name in monomial_names(monomial):
            found = self.bindings.get(name)
            if found is None:
                found = self.binding(name)
            if found.depth > depth:
                depth = found.depth
        return depth

    def depth_of_terms(self, terms: Terms) -> int:
        return max([self.depth_of(monomial) for monomial, _ in terms], default=0)

    def by_depth(self, terms: Terms) -> tuple[int, Terms, Terms]:
        """The depth of the terms, those that lie outside of it, and those that do not."""
        if len(terms) == 1:
            return self.depth_of(terms[0][0]), (), terms
        depths = [self.depth_of(monomial) for monomial, _ in terms]
        depth = max(depths)
        if min(depths) == depth:
            return depth, (), terms
        return (depth, tuple([term for term, found in zip(terms, depths) if found < depth]),
                tuple([term for term, found in zip(terms, depths) if found == depth]))

    # ---- scalars ----

    def uniform(self, size: DimLike) -> str:
        """The value as an i64 operand; for a vector loop's variable, that of its first lane."""
        constant, terms = self.resolve(size)
        return self.total(constant, terms)

    def total(self, constant: int, terms: Terms) -> str:
        if not terms:
            return str(constant)
        text = self.sum_of(terms)
        return self.add(text, str(constant), self.code.block) if constant else text

    def add(self, left: str, right: str, block: Block) -> str:
        if _is_number(left) and _is_number(right):
            return str(int(left) + int(right))
        return self.code.pure(f"add i64 {left}, {right}", block)

    def multiply(self, left: str, right: str, block: Block) -> str:
        if _is_number(left) and _is_number(right):
            return str(int(left) * int(right))
        if left == "1" or right == "1":
            return right if left == "1" else left
        return self.code.pure(f"mul i64 {left}, {right}", block)

    def sum_of(self, terms: Terms) -> str:
        """The sum, each term in its scope."""
        depth, outer, inner = self.by_depth(terms)
        scope = self.scopes[depth]
        found = scope.cache.get(terms)
        if found is not None:
            return found
        text = self.sum_of(outer) if outer else ""
        for monomial, coefficient in inner:
            part = self.multiply(self.monomial(monomial), str(coefficient), scope.block)
            text = self.add(text, part, scope.block) if text else part
        scope.cache[terms] = text
        return text

    def monomial(self, monomial: Monomial) -> str:
        """The product of atoms, those of outer scopes multiplied there."""
        depth = self.depth_of(monomial)
        scope = self.scopes[depth]
        found = scope.cache.get(monomial)
        if found is not None:
            return found
        depths = [(self.depth_of(((atom, 1),)), atom, power) for atom, power in monomial]
        outer = tuple((atom, power) for level, atom, power in depths if level < depth)
        text = self.monomial(outer) if outer else ""
        for level, atom, power in depths:
            if level == depth:
                value = self.atom(atom, scope)
                for _ in range(power):
                    text = self.multiply(text, value, scope.block) if text else value
        scope.cache[monomial] = text
        return text

    def atom(self, atom: Atom, scope: Scope) -> str:
        if isinstance(atom, Symbol):
            found = self.binding(atom.name)
            if found.lanes:
                raise InternalError(f"llvm backend: {atom.name} differs between lanes where one value is needed")
            return str(found.value)
        block, code = scope.block, self.code
        left, right = self.uniform_at(atom.left, scope), self.uniform_at(atom.right, scope)
        if atom.kind == "min":
            smaller = code.pure(f"icmp slt i64 {left}, {right}", block)
            return code.pure(f"select i1 {smaller}, i64 {left}, i64 {right}", block)
        right = self.positive(atom.right, right, block)
        is_division = atom.kind == "floordiv"
        if bounds(atom.left)[0] >= 0:
            return code.pure(f"{'udiv' if is_division else 'urem'} i64 {left}, {right}", block)
        rest = code.pure(f"srem i64 {left}, {right}", block)
        below = code.pure(f"icmp slt i64 {rest}, 0", block)
        if not is_division:
            raised = code.pure(f"add i64 {rest}, {right}", block)
            return code.pure(f"select i1 {below}, i64 {raised}, i64 {rest}", block)
        quotient = code.pure(f"sdiv i64 {left}, {right}", block)
        return code.pure(f"add i64 {quotient}, {code.pure(f'sext i1 {below} to i64', block)}", block)

    def uniform_at(self, size: DimLike, scope: Scope) -> str:
        """Like `uniform`, with the addition of the constant in the scope's block, where the result is used."""
        constant, terms = self.resolve(size)
        if not terms:
            return str(constant)
        text = self.sum_of(terms)
        return self.add(text, str(constant), scope.block) if constant else text

    def positive(self, size: DimLike, text: str, block: Block) -> str:
        """A divisor that is at least 1 whenever it is evaluated."""
        if bounds(size)[0] >= 1:
            return text
        small = self.code.pure(f"icmp slt i64 {text}, 1", block)
        return self.code.pure(f"select i1 {small}, i64 1, i64 {text}", block)

    # ---- pointers ----

    def pointer(self, base: str, element: str, constant: int, terms: Terms) -> str:
        """base + the offset in elements. The constant goes last, where it becomes a displacement. (A place in registers is none, so
        it is named once a function.)"""
        text = self.outer_pointer(base, element, terms) if terms else base
        block = self.code.entry if text.startswith("%register") else None
        return self.code.pure(f"getelementptr {element}, ptr {text}, i64 {constant}", block) if constant else text

    def outer_pointer(self, base: str, element: str, terms: Terms) -> str:
        depth, outer, inner = self.by_depth(terms)
        scope = self.scopes[depth]
        key = (base, element, terms)
        found = scope.cache.get(key)
        if found is not None:
            return found
        start = self.outer_pointer(base, element, outer) if outer else base
        text = self.code.pure(f"getelementptr {element}, ptr {start}, i64 {self.sum_of(inner)}", scope.block)
        scope.cache[key] = text
        return text

    # ---- vectors ----

    def place(self, size: DimLike, by_chunk: bool = False) -> Place:
        """How the lanes' offsets follow from the first one's. `by_chunk`: also where that holds within each chunk of lanes alone, as of
        parts of a row that are whole chunks; what is uniform may then differ between chunks."""
        constant, terms = self.resolve(size)
        if not self.is_varying(size):
            return Place("uniform", constant, terms)
        first_lane = constant
        chunk: Binding | None = None
        strides: list[tuple[Monomial, int]] = []
        kept: list[tuple[Monomial, int]] = []
        for monomial, coefficient in terms:
            if self.varying_names.isdisjoint(monomial_names(monomial)):
                kept.append((monomial, coefficient))
                continue
            varying = [(atom, power) for atom, power in monomial if self._atom_varies(atom)]
            atom, power = varying[0]
            symbol, step = self._step_in_chunk(atom, by_chunk)
            if len(varying) > 1 or power > 1 or symbol is None:
                return Place("lanes", constant, terms)
            chunk = self.bindings[symbol.name]
            rest = tuple(factor for factor in monomial if factor[0] != atom)
            if step:
                strides.append((rest, coefficient))
            if not isinstance(chunk.value, int):
                kept.append((monomial, coefficient))
            elif isinstance(atom, Composed):
                known, others = self.resolve(substitute(size_of(atom), {symbol.name: chunk.value}) * size_of_terms([(rest, coefficient)]))
                first_lane += known
                kept += others
            elif not rest:
                first_lane += coefficient * chunk.value
            elif chunk.value:
                kept.append((rest, coefficient * chunk.value))
        if chunk is None:  # what varied fell away
            return Place("uniform", constant, terms)
        stride = self._stride(strides)
        first = _merged(kept) if isinstance(chunk.value, int) else tuple(kept)
        if stride == 0:
            return Place("uniform", first_lane, first)
        return Place("contiguous" if stride == 1 else "strided", first_lane, first, stride)

    def _step_in_chunk(self, atom: Atom, by_chunk: bool) -> tuple[Symbol | None, int]:
        """The variable of the vector loop where the atom is that, or a quotient or remainder that divides no chunk; and by how much it
        grows from lane to lane."""
        if isinstance(atom, Symbol):
            return (atom if self.bindings[atom.name].chunk else None), 1
        if not by_chunk or atom.kind == "min" or not isinstance(atom.right, int):
            return None, 0
        varying = [symbol for symbol in symbols_of(atom.left) if symbol.name in self.varying_names]
        lanes = self.bindings[varying[0].name].chunk if len(varying) == 1 else 0
        if not lanes or atom.right % lanes or linear_factor(atom.left, varying[0]) != 1:
            return None, 0
        starts_whole = divides(lanes, self.substituted(atom.left - size_of(varying[0])))
        return (varying[0] if starts_whole else None), int(atom.kind == "mod")

    def _atom_varies(self, atom: Atom) -> bool:
        return not self.varying_names.isdisjoint(atom_names(atom))

    def _stride(self, terms: list[tuple[Monomial, int]]) -> int | str:
        constant = sum(coefficient for monomial, coefficient in terms if not monomial)
        others = tuple(term for term in terms if term[0])
        return self.total(constant, others) if others else constant

    def varying(self, size: DimLike, lanes: int) -> str:
        """The value in each lane, <lanes x i64>."""
        return self.varying_terms(*self.resolve(size), lanes)

    def varying_terms(self, constant: int, terms: Terms, lanes: int) -> str:
        kind = shaped("i64", lanes)
        plain = tuple(term for term in terms if not any(self._atom_varies(atom) for atom, _ in term[0]))
        total = spread_text(self.code, "i64", self.total(constant, plain), lanes)
        for monomial, coefficient in terms:
            if (monomial, coefficient) in plain:
                continue
            product = splat_text(str(coefficient), "i64", lanes)
            for atom, power in monomial:
                value = self._varying_atom(atom, lanes)
                for _ in range(power):
                    product = value if product == splat_text("1", "i64", lanes) else self.code.pure(
                        f"mul {kind} {product}, {value}")
            total = self.code.pure(f"add {kind} {total}, {product}")
        return total

    def _varying_atom(self, atom: Atom, lanes: int) -> str:
        kind = shaped("i64", lanes)
        if isinstance(atom, Composed):
            if self._atom_varies(atom):
                return self._varying_composed(atom, lanes)
            return spread_text(self.code, "i64", self.uniform_at_current(atom), lanes)
        found = self.binding(atom.name)
        if found.lanes:
            return str(found.value)
        first = spread_text(self.code, "i64", str(found.value), lanes)
        if not found.chunk:
            return first
        steps = "<" + ", ".join(f"i64 {lane}" for lane in range(lanes)) + ">"
        return self.code.pure(f"add {kind} {first}, {steps}")

    def uniform_at_current(self, atom: Atom) -> str:
        return self.monomial(((atom, 1),))

    def _varying_composed(self, atom: Composed, lanes: int) -> str:
        """Division by a constant of small non-negative numbers is done in 32 bits, where vectors have a high product."""
        code, kind = self.code, shaped("i64", lanes)
        left, right = self.varying(atom.left, lanes), self.varying(atom.right, lanes)
        mask = shaped("i1", lanes)
        if atom.kind == "min":
            smaller = code.pure(f"icmp slt {kind} {left}, {right}")
            return code.pure(f"select {mask} {smaller}, {kind} {left}, {kind} {right}")
        low, high = bounds(atom.left)
        one = splat_text("1", "i64", lanes)
        if bounds(atom.right)[0] < 1:
            small = code.pure(f"icmp slt {kind} {right}, {one}")
            right = code.pure(f"select {mask} {small}, {kind} {one}, {kind} {right}")
        is_division = atom.kind == "floordiv"
        instruction = "udiv" if is_division else "urem"
        if low >= 0 and high <= NARROW and isinstance(atom.right, int):
            narrow = shaped("i32", lanes)
            text = code.pure(f"trunc {kind} {left} to {narrow}")
            text = code.pure(f"{instruction} {narrow} {text}, {splat_text(str(atom.right), 'i32', lanes)}")
            return code.pure(f"zext {narrow} {text} to {kind}")
        if low >= 0:
            return code.pure(f"{instruction} {kind} {left}, {right}")
        rest = code.pure(f"srem {kind} {left}, {right}")
        below = code.pure(f"icmp slt {kind} {rest}, {splat_text('0', 'i64', lanes)}")
        if not is_division:
            raised = code.pure(f"add {kind} {rest}, {right}")
            return code.pure(f"select {mask} {below}, {kind} {raised}, {kind} {rest}")
        quotient = code.pure(f"sdiv {kind} {left}, {right}")
        return code.pure(f"add {kind} {quotient}, {code.pure(f'sext {mask} {below} to {kind}')}")


def _is_number(text: str) -> bool:
    return not text.startswith("%")


def _merged(terms: list[tuple[Monomial, int]]) -> Terms:
    total: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, 0) + coefficient
    return tuple((monomial, coefficient) for monomial, coefficient in total.items() if coefficient)


def _resolve(size: DimLike, integers: dict[str, int]) -> tuple[int, Terms]:
    """Puts integers in, term by term: normalising a whole size again costs far more."""
    if isinstance(size, int):
        return size, ()
    constant = 0
    total: dict[Monomial, int] = {}
    for term, factor in size.terms:
        for monomial, coefficient in _resolve_term(term, factor, integers) if integers else ((term, factor),):
            if monomial:
                total[monomial] = total.get(monomial, 0) + coefficient
            else:
                constant += coefficient
    return constant, tuple((monomial, coefficient) for monomial, coefficient in total.items() if coefficient)


def _resolve_term(monomial: Monomial, coefficient: int, integers: dict[str, int]) -> Sequence[tuple[Monomial, int]]:
    """One term with integers put in; several where an atom becomes a sum."""
    kept: list[tuple[Atom, int]] = []
    sums: list[Dim] = []
    for atom, power in monomial:
        if isinstance(atom, Symbol):
            value: DimLike | None = integers.get(atom.name)
        else:
            names = tuple(name for name in atom_names(atom) if name in integers)
            value = _substituted(atom, names, tuple(integers[name] for name in names)) if names else None
        if value is None:
            kept.append((atom, power))
        elif isinstance(value, int):
            coefficient *= value ** power
        else:
            sums.extend([value] * power)
    if not sums:
        return ((tuple(kept), coefficient),)
    product: DimLike = coefficient
    for factor in (Dim(((tuple(kept), 1),)) if kept else 1, *sums):
        product = product * factor
    return ((((), product),) if product else ()) if isinstance(product, int) else product.terms


@lru_cache(maxsize=65536)
def _substituted(atom: Atom, names: tuple[str, ...], values: tuple[int, ...]) -> DimLike:
    return substitute(Dim(((((atom, 1),), 1),)), dict(zip(names, values)))
