"""Identities: each is checked on random values, NaN, infinities and zeros of both signs included, as its contract says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from comparing import assert_identical

from tilewright import library
from tilewright.ir.errors import CompileError
from tilewright.ir.graph import Builder, Constant, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Elementwise
from tilewright.ir.ops.control import Const, Param
from tilewright.ir.ops.shape import Broadcast
from tilewright.ir.parser import parse
from tilewright.ir.rewrite import ALLOWED, CONTRACTS, Rule, RuleSet, build, call, is_literal, rewrite_graph, variables_of
from tilewright.ir.types import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, U32, DType
from tilewright.options import Options
from tilewright.passes.canonicalize import RULES, STRUCTURAL, canonicalize

GOLDEN = Path(__file__).parent / "golden" / "canonicalize"
SHAPE = (64,)
DTYPES = {"f": (F32, F64, F16, BF16), "i": (I32, I64, I8), "u": (U8, U32), "b": (BOOL,)}
CASES = [(rule, dtype) for rule in RULES.rules for kind in rule.kinds for dtype in DTYPES[kind]]
# constants that fulfil the conditions that rules put on theirs
CONSTANTS = (2.0, 3.0, 0.5, 1.0, -1.0, -4.0, 0.25)


def values(dtype: DType, seed: int, finite: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype.is_bool:
        return rng.integers(0, 2, SHAPE).astype(bool)
    if not dtype.is_float:
        limits = np.iinfo(dtype.numpy)
        array = rng.integers(limits.min, limits.max, SHAPE, dtype=dtype.numpy, endpoint=True)
        array[:6] = [limits.min, limits.max, 0, 1, 2, 3]
        return rng.permutation(array)
    array = (rng.standard_normal(SHAPE) * 10.0 ** rng.integers(-3, 3, SHAPE)).astype(dtype.numpy)
    array[:6] = [0.0, -0.0, 1.0, -1.0, 2.0, float(np.float16(65504))]
    if not finite:
        array[6:10] = [np.nan, np.inf, -np.inf, np.nan]
    return rng.permutation(array)


def constants_for(dtype: DType, seed: int) -> tuple[float, ...]:
    """The constants in some order, as whole numbers for integers."""
    constants = tuple(np.random.default_rng(seed).permutation(CONSTANTS))
    if dtype.kind in "iu":
        return tuple(abs(round(c * 4)) if dtype.kind == "u" else round(c * 4) for c in constants)
    return constants


def sides(rule: Rule, dtype: DType, constants: tuple[float, ...]) -> tuple[Graph, Graph | None]:
    """The left side as a graph, and the graph that applying the rule to it gives."""
    b = Builder()
    nodes: dict[str, Node] = {}
    params: list[Node] = []
    for variable in variables_of(rule.before):
        if variable.is_constant:
            value = np.asarray(constants[len(nodes) % len(constants)]).astype(dtype.numpy)
            nodes[variable.name] = b.add(Broadcast(SHAPE), b.add(Const(Constant(value))))
            continue
        params.append(b.add(Param(variable.name, BOOL if variable.is_condition else dtype, SHAPE)))
        nodes[variable.name] = params[-1]
    logical = rule.before.function in ("eq", "ne", "lt", "le", "gt", "ge", "not")
    root = build(b, rule.before, nodes, BOOL if logical and dtype.is_float else dtype, SHAPE)
    assert isinstance(root.op, Elementwise)
    replaced = rule.apply(b, root.op, root.inputs, "any")
    return Graph("before", params, [root]), None if replaced is None else Graph("after", params, [replaced])


@pytest.fixture(autouse=True)
def every_contract_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALLOWED, "any", frozenset(CONTRACTS))


@pytest.mark.parametrize(("rule", "dtype"), CASES, ids=[f"{r.name}-{d}" for r, d in CASES])
def test_both_sides_agree_as_the_contract_says(rule: Rule, dtype: DType) -> None:
    applied = 0
    for seed in range(6):
        before, after = sides(rule, dtype, constants_for(dtype, seed))
        if after is None:
            continue
        applied += 1
        assert after != before, "the rule changes nothing"
        finite = dtype.is_float and rule.contract == "finite"
        inputs = [values(p.dtype, seed * 7 + i, finite) for i, p in enumerate(before.params)]
        found, expected = evaluate_graph(after, inputs)[0], evaluate_graph(before, inputs)[0]
        if not dtype.is_float or rule.contract == "exact" or found.dtype == bool:
            assert_identical([found], [expected])
        else:
            assert_near(rule, dtype, found, expected)
    assert applied, "the rule never applied"


@pytest.mark.parametrize("rule", RULES.rules, ids=lambda rule: rule.name)
def test_every_rule_fires_in_its_pass(rule: Rule) -> None:
    """On a graph of its own left side, by name: a rule that an earlier one always forestalls would be dead."""
    assert rule.kinds and set(rule.kinds) <= set(DTYPES)
    cases = [(dtype, seed) for kind in rule.kinds for dtype in DTYPES[kind] for seed in range(6)]
    assert any(fires(rule, dtype, seed) for dtype, seed in cases)


def fires(rule: Rule, dtype: DType, seed: int) -> bool:
    before, _ = sides(rule, dtype, constants_for(dtype, seed))
    fired: Counter[str] = Counter()
    after = canonicalize(before, Options(), fired)
    return fired[rule.name] > 0 and after != before


def test_every_simplification_fires_in_a_golden_file() -> None:
    fired: Counter[str] = Counter()
    for path in sorted(GOLDEN.glob("*.ir")):
        canonicalize(parse(path.read_text().partition("// expected")[0]), Options(), fired)
    assert {simplify.__name__ for row in STRUCTURAL.values() for simplify in row} <= set(fired)


def assert_near(rule: Rule, dtype: DType, found: np.ndarray, expected: np.ndarray) -> None:
    """NaN and infinities where they are expected; else within the bound (a few units for reordered arithmetic)."""
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite])
    units = rule.bound or (0 if rule.contract == "finite" else 4)
    precision = {"f16": 2.0 ** -10, "bf16": 2.0 ** -7, "f32": 2.0 ** -23, "f64": 2.0 ** -52}[dtype.name]
    smallest = {"f16": 2.0 ** -14, "bf16": 2.0 ** -126, "f32": 2.0 ** -126, "f64": 2.0 ** -1022}[dtype.name]
    np.testing.assert_allclose(ours[finite], theirs[finite], rtol=units * precision, atol=4 * smallest)


def test_a_wrong_identity_would_be_caught() -> None:
    wrong = Rule("wrong", "exact", lambda x, y: ((x + y) - y, x), "f")
    with pytest.raises(AssertionError):
        test_both_sides_agree_as_the_contract_says(wrong, F32)


def test_a_sign_of_zero_would_be_caught() -> None:
    wrong = Rule("wrong", "exact", lambda x: (x + 0, x), "f")
    with pytest.raises(AssertionError):
        test_both_sides_agree_as_the_contract_says(wrong, F32)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Rule("up", "exact", lambda x: (x + x, x * 2 + 0)), "is no cheaper"),
    (lambda: Rule("swap", "exact", lambda x, y: (x + y, y + x)), "is no cheaper"),
    (lambda: Rule("loose", "nearly", lambda x: (x + 0, x)), "contract 'nearly'"),
    (lambda: Rule("unbounded", "bounded", lambda x: (x + 0, x)), "bound 0"),
    (lambda: Rule("plain", "exact", lambda x: (x, x)), "is no call"),
    (lambda: call("add", 1), "is no scalar function of 1 operands"),
    (lambda: RuleSet((RULES.rules[0], RULES.rules[0])), "two rules have one name"),
])
def test_rules_that_may_not_be(make, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        make()


def run(text: str, precision: str = "default") -> tuple[Graph, Counter[str]]:
    fired: Counter[str] = Counter()
    return canonicalize(parse(text), Options(precision=precision), fired), fired


def expression(dtype: str, line: str, constant: str = "") -> str:
    return (f"graph @g(%x: {dtype}[4], %y: {dtype}[4]) -> (r) {{\n{constant}  %9: {dtype}[4] = {line}\n  return %9\n}}\n")


def literal(dtype: str, value: str) -> str:
    return f"  %0: {dtype}[] = const {value}\n  %1: {dtype}[4] = broadcast %0 {{shape=(4,)}}\n"


def test_strict_keeps_what_changes_a_float() -> None:
    text = expression("f32", "add %x, %1", literal("f32", "0.0"))
    graph, fired = run(text)
    assert graph.results[0] is graph.params[0] and fired == {"add_zero": 1}
    graph, fired = run(text, "strict")
    assert graph.results[0].op == Elementwise("add") and not fired
    graph, fired = run(expression("i32", "add %1, %x", literal("i32", "0")), "strict")
    assert graph.results[0] is graph.params[0] and fired == {"add_zero": 1}


def test_finite_rules_serve_integers_only() -> None:
    assert run(expression("f32", "sub %x, %x"))[0].results[0].op == Elementwise("sub")
    assert run(expression("i32", "sub %x, %x"))[1] == {"sub_self": 1}
    compared = "graph @g(%x: {0}[4], %y: {0}[4]) -> (r) {{\n  %0: bool[4] = lt %x, %y\n  %1: bool[4] = not %0\n  return %1\n}}\n"
    assert run(compared.format("f32"))[1] == {}
    assert run(compared.format("i32"))[1] == {"not_lt": 1}


def test_rounding_by_a_large_constant_stays() -> None:
    text = expression("f32", "add %3, %5", literal("f32", "12582912.0") + "  %3: f32[4] = add %x, %1\n  %4: f32[] = const -12582912.0\n"
                      "  %5: f32[4] = broadcast %4 {shape=(4,)}\n")
    assert run(text)[1] == {}


def test_literals_are_told_apart_by_bits_and_kind() -> None:
    b = Builder()
    for value, dtype, matching in ((0.0, F32, [0, 0.0]), (-0.0, F32, [-0.0]), (1, I32, [1]), (True, BOOL, [True]), (255, U8, [255])):
        node = library.full(b, value, dtype, (3,))
        for candidate in (0, 0.0, -0.0, 1, True, False, 255, 300, 0.5, -1):
            expected = any(candidate == m and type(candidate) is type(m) and np.signbit(float(candidate)) == np.signbit(float(m))
                           for m in matching)
            if dtype.is_float or isinstance(candidate, int):
                assert is_literal(node, candidate) == expected, (value, dtype, candidate)


def test_an_unchanged_graph_is_the_same_object() -> None:
    graph = parse(expression("f32", "mul %x, %y"))
    assert rewrite_graph(graph, lambda b, node, inputs: None, "nothing") is graph
    assert canonicalize(graph, Options()) is graph


def test_every_rule_can_be_printed() -> None:
    for rule in RULES.rules:
        assert rule.name in str(rule) and rule.contract in str(rule)
