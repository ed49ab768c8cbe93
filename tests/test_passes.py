"""Every pass on random graphs: the meaning stays, the result verifies, and a second run changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from comparing import assert_close, assert_identical
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright import library
from tilewright.backends.reference import PLAIN
from tilewright.fuzz.generate import random_graph, random_inputs
from tilewright.ir.errors import InternalError
from tilewright.ir.graph import Builder, Constant, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Elementwise
from tilewright.ir.ops.control import Composite, Const, MakeTuple, Param
from tilewright.ir.parser import parse
from tilewright.ir.rewrite import rewrite_graph, rewrite_until_stable
from tilewright.ir.types import ARRAY_DTYPES, F32
from tilewright.ir.verify import verify
from tilewright.options import Environment, Options
from tilewright.passes.canonicalize import canonicalize
from tilewright.passes.decompose import decompose
from tilewright.passes.eliminate_dead import eliminate_dead
from tilewright.passes.fold_constants import fold_constants
from tilewright.passes.fold_scales import fold_scales
from tilewright.passes.forward_scales import forward_scales
from tilewright.passes.inline_control import inline_control
from tilewright.pipeline import run_passes

STRICT = Options(precision="strict")
PASSES: tuple[Callable[[Graph, Options], Graph], ...] = (
    canonicalize, fold_constants, decompose, inline_control, eliminate_dead, fold_scales, forward_scales)


def simplify(graph: Graph, options: Options) -> Graph:
    """All passes, until nothing changes."""
    while True:
        before = graph
        for run in PASSES:
            graph = run(graph, options)
        if graph is before:
            return graph


@pytest.mark.parametrize("run", [*PASSES, simplify], ids=lambda f: f.__name__)
@settings(max_examples=60)
@given(seed=st.integers(0, 10**9), special=st.booleans())
def test_strict_passes_keep_every_bit(run: Callable[[Graph, Options], Graph], seed: int, special: bool) -> None:
    graph = random_graph(seed, 14, ARRAY_DTYPES)
    after = run(graph, STRICT)
    verify(after)
    assert run(after, STRICT) is after
    arrays, _ = random_inputs(graph, np.random.default_rng(seed), special)
    # the sign of a zero that a reduction gives is free, so that a sum over one element may be that element
    assert_identical(evaluate_graph(after, arrays), evaluate_graph(graph, arrays), signed_zeros=False)


@settings(max_examples=100)
@given(seed=st.integers(0, 10**9))
def test_default_passes_keep_results_up_to_rounding(seed: int) -> None:
    graph = random_graph(seed, 14)
    after = simplify(graph, Options())
    arrays, _ = random_inputs(graph, np.random.default_rng(seed))
    assert_close(evaluate_graph(after, arrays), evaluate_graph(graph, arrays))


def test_parameters_stay_when_unused() -> None:
    graph = parse("graph @g(%x: f32[2], %y: f32[2]) -> (r) {\n  %0: i32[2] = const [1, 2]\n  return %0\n}\n")
    assert simplify(graph, STRICT).params == graph.params


def test_equal_nodes_merge_but_not_zeros_of_two_signs() -> None:
    graph = parse("graph @g(%x: f32[]) -> (a, b, c) {\n  %0: f32[] = exp %x\n  %1: f32[] = exp %x\n  %2: f32[] = const 0.0\n"
                  "  %3: f32[] = const -0.0\n  %4: f32[] = add %0, %1\n  return %4, %2, %3\n}\n")
    merged = canonicalize(graph, STRICT)
    assert merged.results[0].inputs[0] is merged.results[0].inputs[1]
    assert merged.results[1] is not merged.results[2]


@pytest.mark.parametrize("case", sorted((Path(__file__).parent / "golden" / "eliminate_dead").glob("*.ir")), ids=lambda path: path.stem)
def test_the_pipeline_computes_nothing_that_no_body_reads(case: Path) -> None:
    graph = parse(case.read_text().partition("// expected")[0])
    environment = Environment(debug=0, dump=None, verify=2, backend="llvm", cache_directory=None)
    after, _ = run_passes(graph, Options(), PLAIN, environment)
    assert "exp" not in str(after) and "exp" in str(graph)


def test_a_failing_check_is_not_folded_away() -> None:
    graph = parse("graph @g() -> (r) {\n  %0: f32[2] = const [1.0, 2.0]\n  %1: i64[] = const 5\n"
                  "  %2: f32[] = take %0, %1 {axis=0}\n  return %2\n}\n")
    assert simplify(graph, STRICT).results[0].op.spelling == "take"


def test_large_repeated_constants_stay_repeated() -> None:
    b = Builder()
    graph = Graph("g", [], [library.full(b, 2, F32, (512, 512))])
    assert fold_constants(graph, STRICT) is graph


def test_large_constants_fold_where_they_do_not_grow() -> None:
    b = Builder()
    weights = library.constant(b, np.ones((300, 200), np.float32))
    folded = fold_constants(Graph("g", [], [library.transpose(b, weights, (1, 0))]), STRICT)
    assert isinstance(folded.results[0].op, Const) and folded.results[0].shape == (200, 300)
    outer = library.apply(b, "add", library.expand(b, library.constant(b, np.arange(500.0)), (0,)),
                          library.expand(b, library.constant(b, np.arange(500.0)), (1,)))
    assert not isinstance(fold_constants(Graph("g", [], [outer]), STRICT).results[0].op, Const)


def test_decompose_keeps_the_labels_asked_for() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (4, 8)))
    graph = Graph("g", [x], [library.gelu(b, library.softmax(b, x, 1))])
    labels = [n.op.label for n in decompose(graph, STRICT, keep={"softmax"}).nodes() if isinstance(n.op, Composite)]
    assert labels == ["softmax"]
    verify(decompose(graph, STRICT), "primitive")


def test_a_pass_that_changes_a_type_is_caught() -> None:
    graph = parse("graph @g(%x: f32[2]) -> (r) {\n  %0: f32[2] = neg %x\n  return %0\n}\n")
    with pytest.raises(InternalError, match="wrong_pass: neg of type f32\\[2\\] was replaced by const of type i64"):
        rewrite_graph(graph, lambda b, node, inputs: b.add(Const(Constant(np.arange(3)))), "wrong_pass")


def test_a_pass_that_never_ends_is_caught() -> None:
    graph = parse("graph @g(%x: f32[2]) -> (r) {\n  %0: f32[2] = neg %x\n  return %0\n}\n")
    other = {"neg": "abs", "abs": "neg"}
    with pytest.raises(InternalError, match="endless: still changing graph g after"):
        rewrite_until_stable(graph, lambda b, node, inputs: b.add(Elementwise(other[node.op.spelling]), *inputs), "endless")


def test_several_results_are_a_tuple_that_needs_no_projection() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (2,)))
    inner = b.add(Param("a", F32, (2,)))
    body = Graph("two", [inner], [library.scalar(b, "neg", inner), library.scalar(b, "abs", inner)])
    graph = Graph("g", [x], library.results_of(b, b.add(Composite("two", body), x)))
    opened = decompose(graph, STRICT)
    assert [n.op.spelling for n in opened.nodes()] == ["param", "neg", "abs"]
    assert not any(isinstance(n.op, MakeTuple) for n in opened.nodes())
