"""Sizes and indices as C++ expressions, in 32 bits where bounds show that nothing wraps there, else in 64.

Guarantees: the text computes the size exactly wherever the symbols lie within their bounds. A quotient or remainder of what may be
negative rounds towards minus infinity, by a function of the device header.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from tilewright.ir.dims import Atom, Composed, DimLike, Symbol, bounds, dim_min, size_of

MOST_INT = 2**31 - 1


class Text(Struct, frozen=True):
    """A C++ expression; `binds`: how tightly, of ATOM, PRODUCT and so on. `wide`: it is a `long long`, not an `int`."""

    text: str
    binds: int
    wide: bool = False


# how tightly C++ binds an expression, loosest first
SELECT, OR, AND, BIT_OR, BIT_XOR, BIT_AND, EQUAL, COMPARE, SHIFT, SUM, PRODUCT, UNARY, ATOM = range(13)


def within(text: Text, least: int) -> str:
    """The expression as an operand of one that binds so tightly."""
    return text.text if text.binds >= least else f"({text.text})"


def wide(text: Text) -> Text:
    """The expression in 64 bits."""
    if text.wide:
        return text
    if text.text.isdecimal():
        return Text(text.text + "ll", ATOM, True)
    return Text(f"(long long){within(text, UNARY)}", UNARY, True)


def magnitude(size: DimLike) -> float:
    """The greatest absolute value that the size may have."""
    low, high = bounds(size)
    return max(abs(low), abs(high))


def is_narrow(size: DimLike) -> bool:
    """Whether a variable of this size is an `int`."""
    return magnitude(size) <= MOST_INT


def emit_size(size: DimLike, name: Callable[[Symbol], Text]) -> Text:
    """The size; `name` spells a symbol."""
    if isinstance(size, int):
        if abs(size) <= MOST_INT:
            return Text(str(size), ATOM if size >= 0 else UNARY)
        return Text(f"{size}ll", ATOM if size >= 0 else UNARY, True)
    terms = [(_term(monomial, coefficient, name), coefficient) for monomial, coefficient in size.terms]
    if len(terms) == 1:
        return terms[0][0]
    # one that is wide comes first: what follows is then added in 64 bits
    terms.sort(key=lambda term: (term[1] < 0, not term[0].wide))
    total = sum(_term_magnitude(monomial, coefficient) for monomial, coefficient in size.terms)
    first = terms[0][0]
    if total > MOST_INT and not first.wide:
        first = wide(first)
    text = within(first, SUM)
    for term, _ in terms[1:]:
        text += f" - {within(Text(term.text[1:], term.binds), PRODUCT)}" if term.text.startswith("-") else f" + {within(term, SUM)}"
    return Text(text, SUM, first.wide or any(t.wide for t, _ in terms))


def _term_magnitude(monomial: tuple[tuple[Atom, int], ...], coefficient: int) -> float:
    total: float = abs(coefficient)
    for atom, power in monomial:
        total *= magnitude(_as_size(atom)) ** power
    return total


def _as_size(atom: Atom) -> DimLike:
    if isinstance(atom, Symbol):
        return size_of(atom)
    if atom.kind == "min":
        return dim_min(atom.left, atom.right)
    return atom.left // atom.right if atom.kind == "floordiv" else atom.left % atom.right


def _term(monomial: tuple[tuple[Atom, int], ...], coefficient: int, name: Callable[[Symbol], Text]) -> Text:
    """A product; one that is negative begins with its sign."""
    factors = [_atom(atom, name) for atom, power in monomial for _ in range(power)]
    sign = "-" if coefficient < 0 else ""
    if not factors:
        return Text(str(coefficient), ATOM if coefficient >= 0 else UNARY, abs(coefficient) > MOST_INT)
    if abs(coefficient) != 1:
        factors.append(Text(str(abs(coefficient)), ATOM, abs(coefficient) > MOST_INT))
    if len(factors) == 1:
        return Text(sign + within(factors[0], UNARY), UNARY, factors[0].wide) if sign else factors[0]
    factors.sort(key=lambda factor: not factor.wide)
    if _term_magnitude(monomial, coefficient) > MOST_INT and not factors[0].wide:
        factors[0] = wide(factors[0])
    text = within(factors[0], PRODUCT) + "".join(f" * {within(factor, UNARY)}" for factor in factors[1:])
    return Text(sign + text, PRODUCT, factors[0].wide)


def _atom(atom: Atom, name: Callable[[Symbol], Text]) -> Text:
    if isinstance(atom, Symbol):
        return name(atom)
    assert isinstance(atom, Composed)
    left, right = emit_size(atom.left, name), emit_size(atom.right, name)
    either = left.wide or right.wide
    if atom.kind == "min":
        if either:
            left, right = wide(left), wide(right)
        return Text(f"tw_min({left.text}, {right.text})", ATOM, either)
    if bounds(atom.left)[0] >= 0 and bounds(atom.right)[0] >= 0:
        sign = "/" if atom.kind == "floordiv" else "%"
        return Text(f"{within(left, PRODUCT)} {sign} {within(right, UNARY)}", PRODUCT, either)
    if either:
        left, right = wide(left), wide(right)
    return Text(f"tw_{atom.kind}({left.text}, {right.text})", ATOM, either)
