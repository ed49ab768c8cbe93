"""Symbolic sizes: the normal form against plain integers, for every binding within the bounds."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir import dims
from tilewright.ir.dims import (
    Dim,
    DimLike,
    add_all,
    bounds,
    compare,
    dim_min,
    divides,
    evaluate,
    parse_dim,
    sample,
    size_of_terms,
    substitute,
    symbol,
)
from tilewright.ir.errors import CompileError

SYMBOLS: dict[str, DimLike] = {
    "A": symbol("A", 0, 5), "B": symbol("B", 1, 9, 3), "C": symbol("C", 2, 8, 2), "N": symbol("N", 1, 4)}
VALUES = {"A": range(6), "B": (3, 6, 9), "C": (2, 4, 6, 8), "N": range(1, 5)}
BINDINGS = [dict(zip(VALUES, values)) for values in itertools.product(*VALUES.values())]

Meaning = Callable[[dict[str, int]], int]
Expression = tuple[DimLike, Meaning]


def positive() -> st.SearchStrategy[Expression]:
    """Divisors: numbers and sizes that are never zero."""
    return st.one_of(
        st.integers(1, 12).map(lambda n: (n, lambda _: n)),
        st.sampled_from("BCN").map(lambda s: (SYMBOLS[s], lambda b: b[s])),
        st.tuples(st.sampled_from("BCN"), st.integers(1, 4)).map(lambda p: (SYMBOLS[p[0]] * p[1], lambda b: b[p[0]] * p[1])),
        st.tuples(st.sampled_from("AB"), st.integers(1, 4)).map(lambda p: (SYMBOLS[p[0]] + p[1], lambda b: b[p[0]] + p[1])))


def combine(children: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    both = st.tuples(children, children)
    divided = st.tuples(children, positive())
    return st.one_of(
        both.map(lambda p: (p[0][0] + p[1][0], lambda b: p[0][1](b) + p[1][1](b))),
        both.map(lambda p: (p[0][0] - p[1][0], lambda b: p[0][1](b) - p[1][1](b))),
        both.map(lambda p: (p[0][0] * p[1][0], lambda b: p[0][1](b) * p[1][1](b))),
        both.map(lambda p: (dim_min(p[0][0], p[1][0]), lambda b: min(p[0][1](b), p[1][1](b)))),
        both.map(lambda p: (dims.dim_max(p[0][0], p[1][0]), lambda b: max(p[0][1](b), p[1][1](b)))),
        divided.map(lambda p: (p[0][0] // p[1][0], lambda b: p[0][1](b) // p[1][1](b))),
        divided.map(lambda p: (p[0][0] % p[1][0], lambda b: p[0][1](b) % p[1][1](b))),
        divided.map(lambda p: (dims.ceildiv(p[0][0], p[1][0]), lambda b: -(-p[0][1](b) // p[1][1](b)))))


EXPRESSIONS: st.SearchStrategy[Expression] = st.recursive(st.one_of(
    st.integers(-7, 20).map(lambda n: (n, lambda _: n)),
    st.sampled_from(sorted(SYMBOLS)).map(lambda s: (SYMBOLS[s], lambda b: b[s]))), combine, max_leaves=7)


@settings(max_examples=600)
@given(EXPRESSIONS)
def test_the_normal_form_means_the_same_integer(expression: Expression) -> None:
    size, meaning = expression
    for binding in BINDINGS:
        assert evaluate(size, binding) == meaning(binding), binding


@settings(max_examples=400)
@given(EXPRESSIONS)
def test_bounds_and_divisors_hold(expression: Expression) -> None:
    size, meaning = expression
    values = [meaning(b) for b in BINDINGS]
    low, high = bounds(size)
    assert low <= min(values) and max(values) <= high
    for divisor in range(1, 13):
        if divides(divisor, size):
            assert all(v % divisor == 0 for v in values)


@settings(max_examples=300)
@given(EXPRESSIONS, EXPRESSIONS)
def test_comparisons_hold(left: Expression, right: Expression) -> None:
    order = compare(left[0], right[0])
    signs = {(left[1](b) > right[1](b)) - (left[1](b) < right[1](b)) for b in BINDINGS}
    assert order is None or signs == {order}
    if dims.provably_at_most(left[0], right[0]):
        assert 1 not in signs
    if left[0] == right[0]:
        assert signs == {0} and hash(left[0]) == hash(right[0])


@settings(max_examples=400)
@given(EXPRESSIONS)
def test_text_reads_back(expression: Expression) -> None:
    assert parse_dim(str(expression[0]), SYMBOLS) == expression[0]
    assert pickle.loads(pickle.dumps(expression[0])) == expression[0]


@settings(max_examples=200)
@given(EXPRESSIONS, st.sampled_from(BINDINGS), st.sampled_from(sorted(SYMBOLS)))
def test_substitution_in_two_steps_is_substitution_in_one(expression: Expression, binding: dict[str, int], first: str) -> None:
    part = substitute(expression[0], {first: binding[first]})
    assert first not in {s.name for s in dims.symbols_of(part)}
    assert evaluate(part, binding) == expression[1](binding)


@settings(max_examples=200)
@given(EXPRESSIONS, EXPRESSIONS, EXPRESSIONS)
def test_sums_and_products_have_one_form(a: Expression, b: Expression, c: Expression) -> None:
    x, y, z = a[0], b[0], c[0]
    assert x + y == y + x and x * y == y * x
    assert (x + y) + z == x + (y + z)
    assert x * (y + z) == x * y + x * z
    assert x - x == 0


A, B, C, N = (SYMBOLS[s] for s in "ABCN")
D = symbol("D")


@pytest.mark.parametrize(("size", "text"), [
    (B * 4 // 4, "B"), ((B * 4 + 3) // 4, "B"), (B * 4 % 4, "0"), (B % 3, "0"), (C % 2, "0"), (D // 2 // 3, "(D // 6)"),
    ((B * C) // C, "B"), ((B * C) % C, "0"), (dim_min(A, A + 1), "A"), (dim_min(B, 100), "B"),
    (dims.dim_max(A, 0), "A"), (A % 6, "A"), (A // 6, "0"), ((2 * A) // 4, "(A // 2)"), (A - A + 3, "3"), ((A + 8) // 4, "(A // 4) + 2"),
])
def test_what_simplifies(size: DimLike, text: str) -> None:
    assert str(size) == text


@given(EXPRESSIONS, st.integers(-5, 5))
def test_an_integer_beside_a_size_leaves_its_form_normal(expression: Expression, number: int) -> None:
    size = expression[0]
    for made in (size + number, size - number, number - size, size * number, -size if isinstance(size, Dim) else size):
        if isinstance(made, Dim):
            assert made == add_all([size_of_terms([term]) for term in reversed(made.terms)])
    assert (size + number) - number == size
    assert not isinstance(size, Dim) or number - size == -(size - number)


@given(EXPRESSIONS)
def test_a_sample_is_within_the_bounds(expression: Expression) -> None:
    size = expression[0]
    low, high = bounds(size)
    assert low <= sample(size) <= high


def test_sizes_refuse_to_be_numbers() -> None:
    with pytest.raises(CompileError, match="not known at compile time"):
        bool(A)
    with pytest.raises(CompileError, match="is no Python integer"):
        range(A)  # type: ignore[arg-type]
    with pytest.raises(CompileError, match="needs a binding for B"):
        evaluate(A + B, {"A": 1})


@pytest.mark.parametrize("arguments", [("B", 5, 3), ("B", -1), ("B", 0, None, 0), ("B", 1, 3, 8), ("", 0), ("a b",), ("in",), ("min",)])
def test_declarations_that_hold_no_size(arguments: tuple) -> None:
    with pytest.raises(CompileError):
        symbol(*arguments)


def test_one_possible_size_is_a_number() -> None:
    assert symbol("B", 4, 4) == 4
    assert symbol("B", 5, 12, 8) == 8


@pytest.mark.parametrize("text", ["", "A +", "A / 2", "f(A)", "min(A)", "1.5", "True", "A ** 2", "Q", "lambda: 1", "A if B else C",
                                  "+".join(["A"] * 100_000), "(" * 1000, "A // 0", "A % (0)"])
def test_text_that_is_no_size(text: str) -> None:
    with pytest.raises(CompileError):
        parse_dim(text, SYMBOLS)


def test_products_of_sums_do_not_explode() -> None:
    size: DimLike = 1
    with pytest.raises(CompileError, match="more than 4096 terms"):
        for place in range(40):
            size = size * (symbol(f"S{place}", 1) + 1)
