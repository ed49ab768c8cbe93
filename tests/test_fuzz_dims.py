"""Sizes as a subject of fuzzing: text, mutators, reduction, and claims that Python's integers contradict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright.fuzz import dims
from tilewright.fuzz.dims import DimCase, DimSubject, bindings_of, computed, parts_of, with_part
from tilewright.fuzz.reduce import reduced
from tilewright.fuzz.subject import Failure, Refused
from tilewright.ir import dims as arithmetic
from tilewright.ir.dims import Symbol, bounds, symbol
from tilewright.ir.errors import CompileError

SUBJECT = DimSubject()
EVERYTHING = frozenset(SUBJECT.mutators())


def cases(count: int, seed: int = 0) -> list[DimCase]:
    rng = np.random.default_rng(seed)
    found = list(SUBJECT.seeds())
    while len(found) < count:
        made = SUBJECT.mutate_program(found[int(rng.integers(len(found)))], rng, None, EVERYTHING)
        found.append(SUBJECT.generate(rng) if made is None or rng.random() < 0.5 else made[0])
        if rng.random() < 0.2:
            found[-1] = SUBJECT.mutate_passes(found[-1], rng, None)[0]
    return found


def test_no_claim_is_contradicted() -> None:
    right = 0
    for case in cases(400):
        try:
            SUBJECT.check(case, False)
            right += 1
        except Refused:
            continue
    assert right > 300


def test_text_reads_back() -> None:
    for case in cases(100):
        assert SUBJECT.parse(SUBJECT.format(case)) == case


@pytest.mark.parametrize("text", ["", "left = 1\nright = 2\n", "left = n\nright = 1\nseed = 0", "left = 1 +\nright = 1\nseed = 0", "what",
                                  "left = 1 ** 2\nright = 1\nseed = 0", "n: 3..2 % 1\nleft = 1\nright = 1\nseed = 0"])
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(CompileError):
        SUBJECT.parse(text)


def test_bindings_lie_within_the_bounds() -> None:
    declared = (Symbol("A", 3, 17, 4), Symbol("B", 5, None, 2))
    found = list(bindings_of(DimCase(declared, "A", "B")))
    assert {b["A"] for b in found} <= {4, 8, 12, 16} and {4, 16} <= {b["A"] for b in found}
    assert all(b["B"] >= 6 and b["B"] % 2 == 0 for b in found)


def test_parts_are_replaced_by_number() -> None:
    expression = ("+", ("*", "A", 2), ("-", "B", 3))
    for position, part in enumerate(parts_of(expression)):
        assert with_part(expression, position, part) == expression
        assert 99 in list(parts_of(with_part(expression, position, 99)))


def broken_bounds(size: Any) -> tuple[float, float]:
    low, high = bounds(size)
    return low, high if isinstance(size, int) or high == float("inf") else high - 1


@pytest.mark.parametrize("name, broken", [
    ("bounds", broken_bounds),
    ("divides", lambda divisor, size: divisor == 2),
    ("compare", lambda left, right: -1),
    ("provably_at_most", lambda left, right: True),
    ("provably_equal", lambda left, right: True),
    ("exact_quotient", lambda left, right: left),
    ("prove_nonnegative", lambda size: True),
    ("linear_factor", lambda size, declared: 1),
    ("ceildiv", lambda size, divisor: size // divisor),
    ("dim_min", lambda left, right: left),
    ("dim_max", lambda left, right: right),
    ("substitute", lambda size, binding: size),
    ("parse_dim", lambda text, symbols: 7),
])
def test_a_wrong_claim_is_seen(name: str, broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dims, name, broken)
    with pytest.raises(Failure, match="in dims"):
        for case in cases(300):
            try:
                SUBJECT.check(case, False)
            except Refused:
                continue


def test_wrong_arithmetic_is_seen_and_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """d * (a // d) taken for a, whatever a is."""
    monkeypatch.setattr(arithmetic, "divides", lambda divisor, size: True)
    for function in (arithmetic._floordiv, arithmetic._mod, arithmetic.bounds):
        function.cache_clear()
    try:
        for case in cases(400):
            try:
                SUBJECT.check(case, False)
            except Refused:
                continue
            except Failure as failure:
                small, again = reduced(SUBJECT, case, failure, lambda c: SUBJECT.check(c, False), 5.0)
                assert again.signature == failure.signature and SUBJECT.size(small) <= SUBJECT.size(case)
                assert SUBJECT.size(small) <= 8
                return
        pytest.fail("nothing was found")
    finally:
        for function in (arithmetic._floordiv, arithmetic._mod, arithmetic.bounds):
            function.cache_clear()


def test_python_is_the_reference() -> None:
    binding = {"A": 7}
    assert computed(("ceildiv", "A", 2), binding) == 4 and computed(("//", ("-", 0, "A"), 2), binding) == -4
    assert computed(("%", ("-", 0, "A"), 4), binding) == 1 and computed(("max", "A", ("min", 9, 8)), binding) == 8
    with pytest.raises(ZeroDivisionError):
        computed(("//", 1, ("-", "A", 7)), binding)


def test_a_divisor_that_is_never_positive_is_refused() -> None:
    """Found by this subject: the bounds of such a quotient divided by zero."""
    n = symbol("n", 0, None)
    for divisor in (n // 8 - n, -n, 0 * n - 3):
        with pytest.raises(CompileError, match="divisors are"):
            (n + 1) // divisor
        with pytest.raises(CompileError, match="divisors are"):
            (n + 1) % divisor
