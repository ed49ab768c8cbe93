"""Dependence: which accesses of a kernel may meet, and which are shown to lie apart.

The test is conservative: two accesses are taken to meet unless their indices are shown to differ. An index is a rest, plus
factors times variables that differ from one iteration to the next. A difference of two is never zero where its range
leaves zero out (Banerjee's test), or the range of what is left of it modulo one of its factors does: rows lie apart, and
so do the columns of any rows. Sizes may be symbolic; that a loop has iterations where something in it runs is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from msgspec import Struct

from .dims import (
    Atom,
    Composed,
    Dim,
    DimLike,
    Monomial,
    Symbol,
    add_all,
    bounds,
    divides,
    exact_quotient,
    sample,
    size_of,
    size_of_terms,
    substitute,
    symbol,
    symbols_of,
)
from .graph import Node
from .loop import Alloc, For, If, Let, Load, Stmt, Store, While, blocks_of, expression_nodes, expressions_of
from .loop_proofs import Known, linear_factor, prove_nonnegative

MOST_VALUES = 64  # of a symbol that are tried


class Access(Struct, frozen=True):
    """A load (`how` 'load'), a store ('store') or a combining store (the function's name) of the buffer of that name."""

    buffer: str
    index: tuple[DimLike, ...]
    how: str


def accesses_of(statements: Sequence[Stmt], stored: set[str] | None = None) -> list[Access]:
    """Accesses to memory that is not allocated by the statements and that is stored to: by them, or `stored`."""
    own = {s.buffer.name for s in statements if isinstance(s, Alloc)}
    shared = (stored_buffers(statements) if stored is None else stored) - own
    found: list[Access] = []
    for statement in statements:
        for root in expressions_of(statement):
            found.extend(access for access in _loads(root) if access.buffer in shared)
        if isinstance(statement, Store) and statement.buffer in shared:
            found.append(Access(statement.buffer, statement.index, statement.combine or "store"))
    return found


def reached(body: Sequence[Stmt]) -> list[Stmt]:
    """Every statement but those in loops without iterations, outer before inner, in order."""
    found: list[Stmt] = []
    stack = list(reversed(body))
    while stack:
        statement = stack.pop()
        found.append(statement)
        if isinstance(statement, (For, While, If)) and not (isinstance(statement, For) and statement.extent == 0):
            for block in reversed(blocks_of(statement)):
                stack.extend(reversed(block))
    return found


@lru_cache(maxsize=1024)  # one schedule asks for the same expressions again and again
def _loads(root: Node) -> tuple[Access, ...]:
    return tuple(Access(node.op.buffer, node.op.index, "load") for node in expression_nodes(root) if isinstance(node.op, Load))


def stored_buffers(statements: Iterable[Stmt]) -> set[str]:
    return {s.buffer for s in statements if isinstance(s, Store)}


def conflicts(accesses: Sequence[Access], others: Sequence[Access]) -> Iterator[tuple[Access, Access]]:
    """Pairs of accesses to one buffer where one of them stores."""
    for first, second in itertools.product(accesses, others):
        if first.buffer == second.buffer and not first.how == second.how == "load":
            yield first, second


# An index is a rest plus terms (factor, least, greatest): each factor times a number of its own between these; `greatest`
# is None where it is not known.
_Term = tuple[DimLike, int, DimLike | None]


class _Block(Struct, frozen=True):
    """A loop over blocks, the last of which may be shorter, and one within a block: size*outer + inner runs below `extent`."""

    outer: str
    inner: str
    size: int
    extent: DimLike


class Ranges(Struct, frozen=True):
    """Least and greatest value of variables, and which of them run together."""

    ends: dict[str, tuple[int, DimLike | None]]
    blocks: tuple[_Block, ...] = ()


def ranges_of(statements: Sequence[Stmt], varying: Sequence[str] = ()) -> Ranges:
    """Least and greatest value of the loop variables and index lets that the statements bind, fixed but for `varying`."""
    bound = inner_variables(statements)
    names = {*varying, *(variable.name for variable, _ in bound)}
    found: dict[str, tuple[int, DimLike | None]] = {}
    blocks: list[_Block] = []
    for variable, extent in bound:
        least = variable.lower if extent is None else 0
        fixed = isinstance(extent, int) or extent is not None and not any(s.name in names for s in symbols_of(extent))
        greatest = extent - 1 if fixed else variable.upper  # type: ignore[operator]  # fixed: there is an extent
        other = found.get(variable.name, (least, greatest))
        found[variable.name] = (min(least, other[0]), greatest if greatest == other[1] else None)
        block = None if fixed or extent is None else _block(variable.name, extent)
        if block is not None and not any(s.name in names for s in symbols_of(block.extent)):
            blocks.append(block)
    once = [variable.name for variable, _ in bound]
    return Ranges(found, tuple(b for b in blocks if once.count(b.inner) == 1 and once.count(b.outer) <= 1))


def _block(inner: str, extent: DimLike) -> _Block | None:
    """The block whose inner loop has an extent such as min(8, n - 8*outer)."""
    atom = extent.terms[0][0][0][0] if isinstance(extent, Dim) and extent.terms[0][0] else None
    if not isinstance(atom, Composed) or atom.kind != "min" or extent != size_of(atom):
        return None
    for size, rest in ((atom.left, atom.right), (atom.right, atom.left)):
        if not isinstance(size, int):
            continue
        for outer in symbols_of(rest):
            if outer.lower >= 0 and linear_factor(rest, outer) == -size:
                return _Block(outer.name, inner, size, substitute(rest, {outer.name: 0}))
    return None


class _Form(Struct, frozen=True):
    """An index as rest + factors of variables + products of other things that vary (`others`)."""

    rest: DimLike
    factors: dict[str, DimLike]
    others: tuple[_Term, ...]

    def terms(self, ranges: Ranges, but: Sequence[str] = ()) -> list[_Term]:
        factors = {name: factor for name, factor in self.factors.items() if name not in but}
        whole: list[_Term] = []
        for block in ranges.blocks:
            if block.outer in factors and block.inner in factors and self.walks(block):
                del factors[block.outer]
                whole.append((factors.pop(block.inner), 0, block.extent - 1))
        return [*((factor, *ranges.ends[name]) for name, factor in factors.items()), *whole, *self.others]

    def walks(self, block: _Block) -> bool:
        """Whether the index goes on from one block to the next."""
        step = self.factors.get(block.inner, 0)
        return step != 0 and self.factors.get(block.outer, 0) == step * block.size


def _form(size: DimLike, variables: Ranges) -> _Form | None:
    """The size by what is known of the variables; None where something in it may be negative without a limit."""
    if isinstance(size, int):
        return _Form(size, {}, ())
    parts: dict[Monomial, list[tuple[Monomial, int]]] = {(): []}
    for monomial, coefficient in size.terms:
        varying = tuple((atom, power) for atom, power in monomial if _varies(atom, variables))
        fixed = tuple(item for item in monomial if item not in varying) if varying else monomial
        parts.setdefault(varying, []).append((fixed, coefficient))
    rest = size_of_terms(parts.pop(()))
    factors: dict[str, DimLike] = {}
    others: list[_Term] = []
    for varying, terms in parts.items():
        (atom, power), *more = varying
        if not more and power == 1 and isinstance(atom, Symbol):
            factors[atom.name] = size_of_terms(terms)
            continue
        low, high = bounds(Dim(((varying, 1),)))
        if isinstance(low, float):
            return None
        others.append((size_of_terms(terms), low, None if isinstance(high, float) else high))
    return _Form(rest, factors, tuple(others))


def _varies(atom: Atom, variables: Ranges) -> bool:
    if isinstance(atom, Symbol):
        return atom.name in variables.ends
    return any(s.name in variables.ends for s in symbols_of(atom.left, atom.right))


def never_zero(rest: DimLike, plus: Sequence[_Term], minus: Sequence[_Term]) -> bool:
    """Whether rest + plus - minus is shown to differ from 0: by its range, or by the range of what is left of it modulo one
    of the factors, or the number that divides one whatever the sizes (4 of 4*N, where N may be 0)."""
    terms = [*plus, *minus]
    static = isinstance(rest, int) and all(isinstance(n, int) for factor, _, most in terms for n in (factor, most))
    # the accesses exist only where the loops around them have iterations
    facts = () if static else tuple(most for _, _, most in terms if most is not None and bounds(most)[0] < 0)
    factors = [factor for factor, _, _ in terms]
    contents = [math.gcd(*(c for _, c in factor.terms)) for factor in factors if isinstance(factor, Dim)]
    moduli = list(dict.fromkeys([0, *factors, *(n for n in contents if n > 1)]))
    unlikely = []  # what does not hold for one choice of sizes is tried last for all
    for side, added, taken in ((rest, plus, minus), (0 - rest, minus, plus)):
        some = None if static else (sample(side), _sampled(added), _sampled(taken))
        for modulus in moduli:
            if some is not None and not _between(*some, sample(modulus), ()):
                unlikely.append((side, added, taken, modulus))
            elif _between(side, added, taken, modulus, facts):
                return True
    return any(_between(*sides, facts) for sides in unlikely)


def _between(rest: DimLike, plus: Sequence[_Term], minus: Sequence[_Term], modulus: DimLike,
             facts: tuple[DimLike, ...]) -> bool:
    """Whether the sum, or what is left of it modulo the modulus, is shown to lie between 0 and the modulus (0: none)."""
    if modulus == 0:
        return _positive(_least(rest, plus, minus, facts), facts)
    if _sign(modulus, facts) < 0:
        modulus = 0 - modulus
    rest = rest % modulus if isinstance(rest, int) and isinstance(modulus, int) else _divided(rest, modulus)
    plus = [term for term in plus if not _multiple(term[0], modulus)]
    minus = [term for term in minus if not _multiple(term[0], modulus)]
    return (_positive(_least(rest, plus, minus, facts), facts)
            and _positive(_least(modulus - rest, minus, plus, facts), facts))


def _least(rest: DimLike, plus: Sequence[_Term], minus: Sequence[_Term], facts: tuple[DimLike, ...]) -> DimLike | None:
    """The least value of the sum, None where it is not known."""
    parts = [rest]
    for sense, terms in ((1, plus), (-1, minus)):
        for factor, least, most in terms:
            sign = _sign(factor, facts) * sense
            end = least if sign > 0 else most
            if sign == 0 or end is None:
                return None
            parts.append(factor * end * sense)
    return add_all(parts)


def _sampled(terms: Sequence[_Term]) -> list[_Term]:
    return [(sample(factor), least, None if most is None else sample(most)) for factor, least, most in terms]


def _positive(size: DimLike | None, facts: tuple[DimLike, ...]) -> bool:
    """Whether the size is shown to be at least 1 where the facts are not negative."""
    if size is None or isinstance(size, int):
        return size is not None and size >= 1
    if bounds(size)[0] >= 1:
        return True
    # m*n - n with m >= 1 is (m' + 1)*n - n with m' >= 0, whose bounds show more
    from_least = {s.name: symbol(s.name) + s.tight[0] for s in symbols_of(size, *facts) if s.tight[0] > 0}
    for fact in facts:  # and so N*N - 1 where N - 1 is known not to be negative
        least = [(s, fact - size_of(s)) for s in symbols_of(fact)]
        from_least |= {s.name: symbol(s.name) - rest for s, rest in least if isinstance(rest, int) and -rest > max(s.tight[0], 0)}
    known = Known((), tuple(substitute(fact, from_least) for fact in facts))
    return prove_nonnegative(substitute(size, from_least) - 1, known)


def _sign(size: DimLike, facts: tuple[DimLike, ...]) -> int:
    """1 where the size is shown not to be negative, -1 where it is shown not to be positive, else 0."""
    low, high = (size, size) if isinstance(size, int) else bounds(size)
    if low >= 0 or _positive(size, facts):
        return 1
    return -1 if high <= 0 or _positive(0 - size, facts) else 0


def _multiple(size: DimLike, modulus: DimLike) -> bool:
    """Whether the size is shown to be a multiple of the modulus."""
    if isinstance(modulus, int):
        return divides(modulus, size)
    return _divided(size, modulus) == 0


def _divided(size: DimLike, modulus: DimLike) -> DimLike:
    """The size less a multiple of the modulus: what long division by its leading term leaves."""
    for _ in range(8):
        if isinstance(size, int) or isinstance(modulus, int):
            break
        quotient = exact_quotient(Dim(size.terms[:1]), Dim(modulus.terms[:1]))
        if quotient is None:
            break
        size = size - quotient * modulus
    return size


def extents_around(statements: Sequence[Stmt]) -> list[DimLike]:
    """Of the loops around everything in these statements, outer first."""
    found = []
    while len(statements) == 1 and isinstance(statements[0], For):
        found.append(statements[0].extent)
        statements = statements[0].body
    return found


def sizes_where(extents: Iterable[DimLike], given: Iterable[Symbol]) -> dict[str, DimLike]:
    """Those of the given sizes that can have one value only where loops of these extents run. An index does not show the variable of
    a loop of at most one iteration, nor so that there is one: N is 1 in a loop over an N of at most 1."""
    names = {size.name for size in given}
    found: dict[str, DimLike] = {}
    for extent in extents:
        if isinstance(extent, int) or bounds(extent)[1] > 1:
            continue
        for size in symbols_of(extent):
            low, high = size.tight
            if size.name not in names or not isinstance(high, int) or high - low >= MOST_VALUES:
                continue
            values = [v for v in range(low, high + 1) if bounds(substitute(extent, {size.name: v}))[1] >= 1]
            if len(values) == 1:
                found[size.name] = values[0]
    return found


def lie_apart(first: Access, ranges: Ranges, second: Access, other: Ranges) -> bool:
    """Whether two accesses never meet, each at any value of its own variables."""
    for a, b in zip(first.index, second.index) if len(first.index) == len(second.index) else ():
        left, right = _form(a, ranges), _form(b, other)
        if left is not None and right is not None and never_zero(right.rest - left.rest, right.terms(other), left.terms(ranges)):
            return True
    return False


def lie_apart_later(first: Access, second: Access, loop: For, ranges: Ranges) -> bool:
    """Whether an access in one iteration never meets another in a later one; `ranges` of what the body binds."""
    name, most = loop.symbol.name, loop.extent - 1
    known = Ranges({**ranges.ends, name: (0, most)}, ranges.blocks)
    for a, b in zip(first.index, second.index) if len(first.index) == len(second.index) else ():
        left = _form(a, known)
        right = left if a is b else _form(b, known)
        if left is None or right is None:
            continue
        early, late = left.factors.get(name, 0), right.factors.get(name, 0)
        steps: list[_Term] = [(late, 1, most)] if late != 0 else []
        if early != late:
            steps.append((late - early, 0, most))
        done = [name]
        for block in ranges.blocks:
            if block.outer == name and early == late and left.walks(block) and right.walks(block):
                steps = [(left.factors[block.inner], 1, block.extent - 1)]  # from anywhere in a block into a later one
                done.append(block.inner)
                break
        if never_zero(right.rest - left.rest, [*steps, *right.terms(known, done)], left.terms(known, done)):
            return True
    return False


def inner_variables(statements: Sequence[Stmt]) -> list[tuple[Symbol, DimLike | None]]:
    """Loop variables with extents, and index lets (extent None), that the statements bind, outer first."""
    found: list[tuple[Symbol, DimLike | None]] = []
    for statement in statements:
        match statement:
            case For(symbol=variable, extent=extent):
                found.append((variable, extent))
            case Let(symbol=variable) if variable is not None:
                found.append((variable, None))
    return found
