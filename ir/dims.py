"""Symbolic sizes in an immutable normal form.

A size is a Python `int` where it is known and a `Dim` where it is not; a `Dim` is never constant, so `isinstance(d,
int)` decides. A `Dim` is a polynomial with integer coefficients over atoms: named symbols, and `a // b`, `a % b`,
`min(a, b)` that did not simplify. Equal polynomials over equal atoms are structurally equal and hash alike.
Division and modulo round towards minus infinity, as Python's do; divisors are positive.

Guarantees: every operation returns a normal form that denotes the same integer for each binding of the symbols within
their bounds; comparisons answer `None` where the bounds do not decide. Sizes do not wrap: `plan` in compiled code
refuses bindings that would leave 63 bits.
"""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from msgspec import Struct

from .errors import CompileError

INFINITY = math.inf
CACHED = 1 << 16  # results kept of each of the pure functions below: the same sizes come back all the time
MOST_TERMS = 4096
MOST_SEEN_THROUGH = 1024  # terms that bounds look at behind the atoms of one size
RESERVED = frozenset({"min", "inf", "nan", "true", "false", "none"})
Bound = int | float


class Symbol(Struct, frozen=True, cache_hash=True):
    """A named size with bounds (inclusive; `upper` None: unbounded) and a known divisor."""

    name: str
    lower: int = 0
    upper: int | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or keyword.iskeyword(self.name) or self.name in RESERVED:
            raise CompileError(f"dim name {self.name!r} is not an identifier, or has a meaning of its own in text")
        if self.lower < 0 or self.multiple_of < 1 or self.tight[1] < self.tight[0]:
            raise CompileError(f"dim {self.name}: bounds {self.lower}..{self.upper} % {self.multiple_of} hold no size")

    @property
    def tight(self) -> tuple[int, Bound]:
        """The least and the greatest size within the bounds that the divisor divides."""
        step = self.multiple_of
        return -(-self.lower // step) * step, INFINITY if self.upper is None else self.upper // step * step

    def declaration(self) -> str:
        """`B`, `B: 1..64` or `B: 0.. % 8`: as the head of a graph spells it."""
        plain = self.lower == 0 and self.upper is None and self.multiple_of == 1
        if plain:
            return self.name
        upper = "" if self.upper is None else str(self.upper)
        step = "" if self.multiple_of == 1 else f" % {self.multiple_of}"
        return f"{self.name}: {self.lower}..{upper}{step}"

    def text(self) -> str:
        return self.name


class Composed(Struct, frozen=True, cache_hash=True):
    """An atom that is not a symbol: `kind` is 'floordiv', 'mod' or 'min' of two sizes."""

    kind: str
    left: DimLike
    right: DimLike

    def text(self) -> str:
        if self.kind == "min":
            return f"min({format_dim(self.left)}, {format_dim(self.right)})"
        sign = "//" if self.kind == "floordiv" else "%"
        return f"({_group(self.left)} {sign} {_group(self.right)})"


Atom = Symbol | Composed
Monomial = tuple[tuple[Atom, int], ...]


class Dim(Struct, frozen=True, cache_hash=True):
    """A symbolic size: a non-constant polynomial in normal form. Build it with `symbol` and arithmetic."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: DimLike) -> DimLike:
        if isinstance(other, Dim):
            return _sum(self, other)
        return _shifted(self, int(other))

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return Dim(tuple([(m, -c) for m, c in self.terms]))

    def __sub__(self, other: DimLike) -> DimLike:
        if isinstance(other, Dim):
            return _from_terms([*self.terms, *[(m, -c) for m, c in other.terms]])
        return _shifted(self, -int(other))

    def __rsub__(self, other: int) -> DimLike:
        return _shifted(-self, int(other))

    def __mul__(self, other: DimLike) -> DimLike:
        if not isinstance(other, Dim):
            return _scaled(self, int(other))
        return _product(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: DimLike) -> DimLike:
        return _floordiv(self, other)

    def __rfloordiv__(self, other: DimLike) -> DimLike:
        return _floordiv(other, self)

    def __mod__(self, other: DimLike) -> DimLike:
        return _mod(self, other)

    def __rmod__(self, other: DimLike) -> DimLike:
        return _mod(other, self)

    def __bool__(self) -> bool:
        raise CompileError(f"the size {self} is not known at compile time, so it has no truth value",
                           hint="bind it (dims={...}) or use tw.cond on a traced value")

    def __index__(self) -> int:
        raise CompileError(f"the size {self} is not known at compile time, so it is no Python integer",
                           hint="bind it (dims={...}), or use a function that takes its shape from an array (zeros_like)")

    def __str__(self) -> str:
        return _render(self.terms)

    __repr__ = __str__


DimLike = int | Dim


def symbol(name: str, lower: int = 0, upper: int | None = None, multiple_of: int = 1) -> DimLike:
    """A named size, `lower <= size <= upper` and divisible by `multiple_of`. Raises CompileError on empty bounds."""
    declared = Symbol(name, lower, upper, multiple_of)
    least, most = declared.tight
    return least if least == most else size_of(declared)


def is_static(size: DimLike) -> bool:
    return isinstance(size, int)


def format_dim(size: DimLike) -> str:
    return str(size)


def symbols_of(*sizes: DimLike) -> tuple[Symbol, ...]:
    """The symbols that occur, by name, each once."""
    if len(sizes) == 1:
        return () if isinstance(sizes[0], int) else _symbols_in(sizes[0])
    found = {symbol.name: symbol for size in sizes if not isinstance(size, int) for symbol in _symbols_in(size)}
    return tuple([found[name] for name in sorted(found)])


def substitute(size: DimLike, binding: Mapping[str, DimLike]) -> DimLike:
    """The size with symbols replaced; a full binding to integers gives an integer."""
    if isinstance(size, int) or not binding:
        return size
    total: DimLike = 0
    for monomial, coefficient in size.terms:
        product: DimLike = coefficient
        for atom, power in monomial:
            if isinstance(atom, Symbol):
                value = binding.get(atom.name)
                if value is None:
                    value = Dim(((((atom, 1),), 1),))
            else:
                value = _compose(atom.kind, substitute(atom.left, binding), substitute(atom.right, binding))
            for _ in range(power):
                product = product * value
        total = total + product
    return total


def evaluate(size: DimLike, binding: Mapping[str, int]) -> int:
    """The integer that a full binding gives; CompileError names a symbol that is not bound."""
    result = substitute(size, binding)
    if isinstance(result, int):
        return result
    missing = ", ".join(s.name for s in symbols_of(result))
    raise CompileError(f"the size {size} needs a binding for {missing}")


@lru_cache(maxsize=CACHED)
def bounds(size: DimLike) -> tuple[Bound, Bound]:
    """Inclusive lower and upper bound over all bindings within the symbols' bounds."""
    low, high = _interval(size)
    expanded = _without_floordiv(size)
    if expanded is not size:
        other_low, other_high = _interval(expanded)
        low, high = max(low, other_low), min(high, other_high)
    if isinstance(size, Dim) and any(isinstance(a, Composed) for monomial, _ in size.terms for a, _ in monomial):
        low, high = max(low, _lower(size, 4)), min(high, -_lower(-size, 4))
    return low, high


def _lower(size: DimLike, depth: int) -> Bound:
    """A lower bound that sees through atoms: x - min(a, b) is at least x - a, and x - x // 3 at least 2 * x / 3."""
    best = _interval(size)[0]
    if isinstance(size, int) or depth == 0:
        return best
    # Each atom is seen through in every order: what would take too long is left at a weaker bound.
    atoms = sum(len(monomial) == 1 and isinstance(monomial[0][0], Composed) for monomial, _ in size.terms)
    while depth > 0 and atoms ** depth * len(size.terms) > MOST_SEEN_THROUGH:
        depth -= 1
    if depth == 0:
        return best
    for monomial, coefficient in size.terms:
        atom = monomial[0][0] if len(monomial) == 1 and monomial[0][1] == 1 else None
        if not isinstance(atom, Composed):
            continue
        rest = size - Dim(((monomial, coefficient),))
        if atom.kind == "min" and coefficient < 0:
            for side in (atom.left, atom.right):
                best = max(best, _lower(rest + coefficient * side, depth - 1))
        elif atom.kind == "floordiv" and isinstance(atom.right, int):
            least = atom.left if coefficient < 0 else atom.left - (atom.right - 1)
            scaled = _lower(atom.right * rest + coefficient * least, depth - 1)
            best = max(best, scaled if math.isinf(scaled) else -(-int(scaled) // atom.right))
        elif atom.kind == "mod" and coefficient < 0 and _interval(atom.left)[0] >= 0:
            best = max(best, _lower(rest + coefficient * atom.left, depth - 1))
    return best


def _without_floordiv(size: DimLike) -> DimLike:
    """n * (x // n) written as x - x % n, which has the tighter bounds beside terms in x."""
    if isinstance(size, int):
        return size
    result: DimLike = 0
    found = False
    for monomial, coefficient in size.terms:
        atom = monomial[0][0] if len(monomial) == 1 and monomial[0][1] == 1 else None
        if isinstance(atom, Composed) and atom.kind == "floordiv" and isinstance(atom.right, int) \
                and coefficient % atom.right == 0:
            found = True
            result = result + (atom.left - _mod(atom.left, atom.right)) * (coefficient // atom.right)
        else:
            result = result + Dim(((monomial, coefficient),)) if monomial else result + coefficient
    return result if found else size


def _interval(size: DimLike) -> tuple[Bound, Bound]:
    if isinstance(size, int):
        return size, size
    low: Bound = 0
    high: Bound = 0
    for monomial, coefficient in size.terms:
        a: Bound = 1
        b: Bound = 1
        for atom, power in monomial:
            c, d = _atom_bounds(atom)
            for _ in range(power):
                if a >= 0 and c >= 0:  # as most are
                    a, b = a * c, _multiply(b, d)
                else:
                    products = [_multiply(x, y) for x in (a, b) for y in (c, d)]
                    a, b = min(products), max(products)
        a, b = a * coefficient, b * coefficient
        low, high = (low + a, high + b) if coefficient > 0 else (low + b, high + a)
    return low, high


def divides(divisor: int, size: DimLike) -> bool:
    """True when the size is proved to be a multiple of the divisor."""
    return _known_divisor(size) % divisor == 0 if not isinstance(size, int) else size % divisor == 0


def compare(left: DimLike, right: DimLike) -> int | None:
    """-1, 0 or 1 where the bounds decide the order for all bindings, else None."""
    difference = left - right
    if isinstance(difference, int):
        return (difference > 0) - (difference < 0)
    low, high = bounds(difference)
    if low > 0:
        return 1
    if high < 0:
        return -1
    return None


def provably_equal(left: DimLike, right: DimLike) -> bool:
    return left == right


@lru_cache(maxsize=CACHED)
def provably_at_most(left: DimLike, right: DimLike) -> bool:
    """True when left <= right is shown for all bindings."""
    return sample(left) <= sample(right) and bounds(right - left)[0] >= 0


@lru_cache(maxsize=CACHED)
def sample(size: DimLike) -> int:
    """The size for a certain binding, the same for all sizes: what does not hold for it need not be proved."""
    if isinstance(size, int):
        return size
    total = 0
    for monomial, coefficient in size.terms:
        for atom, power in monomial:
            coefficient *= _sample_atom(atom) ** power
        total += coefficient
    return total


def dim_min(left: DimLike, right: DimLike) -> DimLike:
    return _compose("min", left, right)


def dim_max(left: DimLike, right: DimLike) -> DimLike:
    return left + right - dim_min(left, right)


def ceildiv(size: DimLike, divisor: DimLike) -> DimLike:
    return (size + divisor - 1) // divisor


def product(sizes: Iterable[DimLike]) -> DimLike:
    total: DimLike = 1
    for size in sizes:
        total = total * size
    return total


def row_major_strides(shape: Sequence[DimLike]) -> tuple[DimLike, ...]:
    """How many elements a step along each axis passes, in C order."""
    strides: list[DimLike] = []
    total: DimLike = 1
    for size in reversed(shape):
        strides.append(total)
        total = total * size
    return tuple(reversed(strides))


def add_all(sizes: Iterable[DimLike]) -> DimLike:
    """The sum, put into normal form once."""
    sizes = list(sizes)
    if all(isinstance(size, int) for size in sizes):
        return sum(sizes)
    return _from_terms([term for size in sizes for term in _terms(size)])


def exact_quotient(left: DimLike, right: DimLike) -> DimLike | None:
    """q with q * right == left for all bindings where it is found, else None. `right` is taken to be positive."""
    if isinstance(right, int):
        if right == 0 or not divides(right, left):
            return None
        quotient = left // right
        return quotient if quotient * right == left else None
    return _exact_quotient(left, right)


def parse_dim(text: str, symbols: Mapping[str, DimLike]) -> DimLike:
    """Reads what `str(dim)` prints: + - * // % min over integers and the given names."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise CompileError(f"{text[:80]!r} is not a size") from None
    try:
        return _parse_node(tree, symbols, text)
    except RecursionError:
        raise CompileError(f"{text[:80]!r}... nests too deep to be read as a size") from None


# ---------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=CACHED)
def _sum(left: Dim, right: Dim) -> DimLike:
    return _from_terms([*left.terms, *right.terms])


@lru_cache(maxsize=CACHED)
def _product(left: Dim, right: Dim) -> DimLike:
    if len(left.terms) * len(right.terms) > MOST_TERMS:
        raise CompileError(f"a size has more than {MOST_TERMS} terms", hint="bind some of its symbols (dims={...})")
    return _from_terms([(_times(m, n), c * d) for m, c in left.terms for n, d in right.terms])


@lru_cache(maxsize=CACHED)
def _symbols_in(size: Dim) -> tuple[Symbol, ...]:
    found: dict[str, Symbol] = {}
    stack: list[DimLike] = [size]
    while stack:
        part = stack.pop()
        if isinstance(part, int):
            continue
        for monomial, _ in part.terms:
            for atom, _ in monomial:
                if isinstance(atom, Symbol):
                    found[atom.name] = atom
                else:
                    stack.extend((atom.left, atom.right))
    return tuple([found[name] for name in sorted(found)])


def _terms(size: DimLike) -> Iterable[tuple[Monomial, int]]:
    if isinstance(size, Dim):
        return size.terms
    return (((), int(size)),) if size else ()


@lru_cache(maxsize=CACHED)
def _atom_key(atom: Atom) -> tuple[int, str]:
    return (0 if isinstance(atom, Symbol) else 1, atom.text())


@lru_cache(maxsize=CACHED)
def _monomial_key(monomial: Monomial) -> tuple[int, list[tuple[tuple[int, str], int]]]:
    return (-sum(p for _, p in monomial), [(_atom_key(a), p) for a, p in monomial])


def _times(left: Monomial, right: Monomial) -> Monomial:
    if not left or not right:
        return left or right
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple([(atom, powers[atom]) for atom in sorted(powers, key=_atom_key)])


def _from_terms(terms: Iterable[tuple[Monomial, int]]) -> DimLike:
    total: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, 0) + coefficient
    if 0 in total.values():
        total = {m: c for m, c in total.items() if c}
    if not total:
        return 0
    if Composed in [type(atom) for monomial in total for atom, _ in monomial]:
        for monomial, coefficient in total.items():
            undone = _undo_exact_division(monomial, coefficient)
            if undone is not None:
                return _from_terms([*((m, c) for m, c in total.items() if m != monomial), *_terms(undone)])
        whole = _recombine(total) if len(total) > 1 else None
        if whole is not None:
            return _from_terms(whole)
    if len(total) > 1:
        return Dim(tuple([(monomial, total[monomial]) for monomial in sorted(total, key=_monomial_key)]))
    (monomial, coefficient), = total.items()
    return Dim(((monomial, coefficient),)) if monomial else coefficient


def _shifted(size: Dim, number: int) -> Dim:
    """The size plus an integer. The other terms keep their form and place: the constant stands last."""
    if number == 0:
        return size
    *others, (monomial, constant) = size.terms
    if monomial:
        return Dim((*size.terms, ((), number)))
    return Dim((*others, ((), constant + number)) if constant + number else tuple(others))


def _scaled(size: Dim, factor: int) -> DimLike:
    """The size times an integer. A quotient among its atoms may come out even for it."""
    if factor == 1:
        return size
    terms = [(m, c * factor) for m, c in size.terms]
    if factor == 0 or Composed in [type(atom) for monomial, _ in terms for atom, _ in monomial]:
        return _from_terms(terms)
    return Dim(tuple(terms))


def _undo_exact_division(monomial: Monomial, coefficient: int) -> DimLike | None:
    """d * (a // d) -> a where d is known to divide a, for any multiple of it and any other factors beside it."""
    for position, (atom, power) in enumerate(monomial):
        if not (isinstance(atom, Composed) and atom.kind == "floordiv" and isinstance(atom.right, int)):
            continue
        if coefficient % atom.right == 0 and divides(atom.right, atom.left):
            rest = monomial[:position] + (((atom, power - 1),) if power > 1 else ()) + monomial[position + 1:]
            return _from_terms([(rest, coefficient // atom.right)]) * atom.left
    return None


def _recombine(total: dict[Monomial, int]) -> list[tuple[Monomial, int]] | None:
    """The terms with f * (x % n) + f * n * (x // n) replaced by f * x, where that occurs; None where it does not."""
    for monomial, coefficient in total.items():
        for position, (atom, power) in enumerate(monomial):
            if power != 1 or not isinstance(atom, Composed) or atom.kind != "mod":
                continue
            factor = Dim(((monomial[:position] + monomial[position + 1:], coefficient),))
            needed = list(_terms(factor * atom.right * _floordiv(atom.left, atom.right)))
            if needed and all(total.get(m) == c for m, c in needed):
                rest = [(m, c) for m, c in total.items() if m != monomial and (m, c) not in needed]
                return [*rest, *_terms(factor * atom.left)]
    return None


def size_of(atom: Atom) -> Dim:
    """The atom as a size."""
    return Dim(((((atom, 1),), 1),))


def size_of_terms(terms: Sequence[tuple[Monomial, int]]) -> DimLike:
    """The sum of terms that stand in the order of a size in normal form."""
    if not terms:
        return 0
    return terms[0][1] if len(terms) == 1 and not terms[0][0] else Dim(tuple(terms))


def _compose(kind: str, left: DimLike, right: DimLike) -> DimLike:
    if kind == "floordiv":
        return _floordiv(left, right)
    if kind == "mod":
        return _mod(left, right)
    order = compare(left, right)
    if order is not None:
        return left if order <= 0 else right
    if provably_at_most(left, right):
        return left
    if provably_at_most(right, left):
        return right
    first, second = sorted((left, right), key=format_dim)
    return size_of(Composed("min", first, second))


def _split_by(size: Dim, divisor: int) -> tuple[DimLike, DimLike]:
    """size = divisor * quotient + rest, taking out the terms whose coefficient (or known divisor) allows it."""
    quotient: list[tuple[Monomial, int]] = []
    rest: list[tuple[Monomial, int]] = []
    for monomial, coefficient in size.terms:
        whole, left = divmod(coefficient, divisor)
        if whole:
            quotient.append((monomial, whole))
        if left:
            rest.append((monomial, left))
    return _from_terms(quotient), _from_terms(rest)


def _check_divisor(divisor: DimLike) -> None:
    if bounds(divisor)[1] < 1:
        raise CompileError(f"a size is divided by {divisor}, which is never positive; divisors are" if isinstance(divisor, Dim)
                           else f"a size is divided by {divisor}; divisors are positive")


def _exact_quotient(left: DimLike, right: Dim) -> DimLike | None:
    """left / right where right is one monomial that divides every term of left."""
    if len(right.terms) != 1:
        return 1 if left == right else None
    (monomial, coefficient), = right.terms
    quotient: list[tuple[Monomial, int]] = []
    for other, other_coefficient in _terms(left):
        powers = dict(other)
        for atom, power in monomial:
            powers[atom] = powers.get(atom, 0) - power
        if other_coefficient % coefficient or any(p < 0 for p in powers.values()):
            return None
        kept = tuple((a, p) for a, p in powers.items() if p)
        quotient.append((kept, other_coefficient // coefficient))
    return _from_terms(quotient)


@lru_cache(maxsize=CACHED)
def _floordiv(left: DimLike, right: DimLike) -> DimLike:
    _check_divisor(right)
    if isinstance(right, Dim):
        exact = _exact_quotient(left, right) if bounds(right)[0] > 0 else None
        if exact is not None:
            return exact
        if bounds(left)[0] >= 0 and compare(left, right) == -1:
            return 0
        return size_of(Composed("floordiv", left, right))
    if isinstance(left, int):
        return left // right
    if right == 1:
        return left
    whole, rest = _split_by(left, right)
    if isinstance(rest, int):
        return whole + rest // right
    low, high = bounds(rest)
    if low >= 0 and high < right:
        return whole
    common = math.gcd(_content(rest), right)
    if common > 1:
        return whole + _floordiv(_divide_content(rest, common), right // common)
    inner = _single_atom(rest)
    if isinstance(inner, Composed) and inner.kind == "floordiv" and isinstance(inner.right, int):
        return whole + _floordiv(inner.left, inner.right * right)
    return whole + size_of(Composed("floordiv", rest, right))


@lru_cache(maxsize=CACHED)
def _mod(left: DimLike, right: DimLike) -> DimLike:
    _check_divisor(right)
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    if isinstance(right, int):
        if divides(right, left):
            return 0
        assert isinstance(left, Dim)
        _, rest = _split_by(left, right)
        if isinstance(rest, int):
            return rest % right
        low, high = bounds(rest)
        if low >= 0 and high < right:
            return rest
        return size_of(Composed("mod", rest, right))
    if bounds(right)[0] > 0 and _exact_quotient(left, right) is not None:
        return 0
    if bounds(left)[0] >= 0 and compare(left, right) == -1:
        return left
    return size_of(Composed("mod", left, right))


def _single_atom(size: DimLike) -> Atom | None:
    if isinstance(size, Dim) and len(size.terms) == 1:
        (monomial, coefficient), = size.terms
        if coefficient == 1 and len(monomial) == 1 and monomial[0][1] == 1:
            return monomial[0][0]
    return None


def _content(size: Dim) -> int:
    return math.gcd(*(c for _, c in size.terms))


def _divide_content(size: Dim, divisor: int) -> DimLike:
    return _from_terms([(m, c // divisor) for m, c in size.terms])


@lru_cache(maxsize=CACHED)
def _known_divisor(size: DimLike) -> int:
    if isinstance(size, int):
        return abs(size)
    result = 0
    for monomial, coefficient in size.terms:
        factor = abs(coefficient)
        for atom, power in monomial:
            if isinstance(atom, Symbol):
                factor *= atom.multiple_of ** power
        result = math.gcd(result, factor)
    return result


def _sample_atom(atom: Atom) -> int:
    if isinstance(atom, Symbol):
        least, most = atom.tight
        some = least + 3 * atom.multiple_of
        return some if some <= most else least
    left, right = sample(atom.left), sample(atom.right)
    if atom.kind == "min":
        return min(left, right)
    return left // max(right, 1) if atom.kind == "floordiv" else left % max(right, 1)


@lru_cache(maxsize=CACHED)
def _atom_bounds(atom: Atom) -> tuple[Bound, Bound]:
    if isinstance(atom, Symbol):
        return atom.tight
    left_low, left_high = bounds(atom.left)
    right_low, right_high = bounds(atom.right)
    if atom.kind == "min":
        return min(left_low, right_low), min(left_high, right_high)
    right_low = max(right_low, 1)
    if atom.kind == "mod":
        return 0, min(right_high - 1, left_high if left_low >= 0 else INFINITY)
    quotients = [_divide(x, y) for x in (left_low, left_high) for y in (right_low, right_high)]
    return min(quotients), max(quotients)


def _divide(x: Bound, y: Bound) -> Bound:
    if math.isinf(x):
        return x if not math.isinf(y) else (0 if x > 0 else x)
    if math.isinf(y):
        return 0 if x >= 0 else -1
    return int(x) // int(y)


def _multiply(x: Bound, y: Bound) -> Bound:
    return 0 if x == 0 or y == 0 else x * y


def _group(size: DimLike) -> str:
    text = format_dim(size)
    simple = isinstance(size, int) and size >= 0 or _single_atom(size) is not None
    return text if simple else f"({text})"


@lru_cache(maxsize=CACHED)
def _render(terms: tuple[tuple[Monomial, int], ...]) -> str:
    parts: list[str] = []
    for monomial, coefficient in terms:
        factors = [atom.text() for atom, power in monomial for _ in range(power)]
        magnitude = abs(coefficient)
        if magnitude != 1 or not factors:
            factors.insert(0, str(magnitude))
        text = "*".join(factors)
        if not parts:
            parts.append(text if coefficient > 0 else f"-{text}")
        else:
            parts.append(f"{'+' if coefficient > 0 else '-'} {text}")
    return " ".join(parts)


def _parse_node(tree: ast.expr, symbols: Mapping[str, DimLike], text: str) -> DimLike:
    """Recursion follows the nesting of one size; the caller turns its end into an error."""
    match tree:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            if name not in symbols:
                raise CompileError(f"unknown dim {name!r} in {text!r}; declared are {', '.join(symbols) or 'none'}")
            return symbols[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_parse_node(operand, symbols, text)
        case ast.Call(func=ast.Name(id="min"), args=[first, second], keywords=[]):
            return dim_min(_parse_node(first, symbols, text), _parse_node(second, symbols, text))
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _parse_node(left, symbols, text), _parse_node(right, symbols, text)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.FloorDiv():
                    return a // b
                case ast.Mod():
                    return a % b
    raise CompileError(f"{text!r} is not a size: use + - * // % min over integers and dim names")
