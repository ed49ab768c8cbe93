"""What many elements are divided by (compiler/passes/share_divisors.py), against the interpreter of graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.compiled import compiled, run_compiled
from tests.kernel_checks import traced
from tilewright.ir.graph import Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Elementwise
from tilewright.options import Options
from tilewright.passes.decompose import decompose
from tilewright.passes.share_divisors import share_divisors

Array = np.ndarray
RNG = np.random.default_rng(0)


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def normalized(x: Any) -> Any:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True))


def deviation(x: Any) -> Any:
    return x / (np.sqrt((x * x).mean(axis=0)) + 1e-6)


def graph_of(function: Callable[..., Any], *arrays: Array, symbolic: bool = False) -> Graph:
    return decompose(traced(function, arrays, symbolic), Options())


def quotients(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes() if isinstance(n.op, Elementwise) and n.op.function == "div"]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [softmax, normalized, deviation])
def test_one_quotient_a_row(function: Callable[..., Any], dtype: str, symbolic: bool) -> None:
    x = RNG.standard_normal((7, 33)).astype(dtype)
    graph = graph_of(function, x, symbolic=symbolic)
    shared = share_divisors(graph, Options())
    whole = graph.results[0].shape
    assert [n for n in quotients(graph) if n.shape == whole] and not [n for n in quotients(shared) if n.shape == whole]
    expected, found = (evaluate_graph(g, [x])[0] for g in (graph, shared))
    assert (np.abs(found - expected) <= 2 * np.spacing(np.abs(expected))).all()
    assert quotients(share_divisors(shared, Options())) == quotients(shared)


@pytest.mark.parametrize("function", [softmax, normalized, deviation])
def test_special_values(function: Callable[..., Any]) -> None:
    """Rows of zeros, of infinities and NaN, the largest and the smallest numbers: the same values as by division."""
    x = RNG.standard_normal((9, 33)).astype(np.float32)
    x[1], x[2, 3], x[3, 4], x[4, 5], x[5] = 0, np.inf, -np.inf, np.nan, -np.inf
    x[6], x[7], x[8] = x[6] * np.float32(1e38), x[7] * np.float32(1e-20), x[8] * np.float32(1e-42)
    for rows in (x, x[:1], x[1:2], x[6:], x[:, :1], x[:0]):
        rows = np.ascontiguousarray(rows)
        graph = graph_of(function, rows)
        with np.errstate(all="ignore"):
            expected = evaluate_graph(graph, [rows])[0] if rows.size else np.empty_like(rows)
            shared = evaluate_graph(share_divisors(graph, Options()), [rows])[0] if rows.size else expected
        np.testing.assert_allclose(shared, expected, rtol=3e-7, atol=3e-45)
        found = run_compiled(compiled(graph, threads=1), [rows])[0]
        assert (np.isfinite(found) == np.isfinite(expected)).all() and (np.isnan(found) == np.isnan(expected)).all()
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("function", [
    lambda x: x / x.sum(axis=-1, keepdims=True), lambda x: x / x.max(axis=-1, keepdims=True), lambda x: x / np.sqrt(x * x + 1),
    lambda x: x / (np.sqrt((x * x).sum(axis=-1, keepdims=True)) - 1), lambda x: x / (np.sqrt((x * x).sum(axis=-1, keepdims=True)) + 1e30),
    lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True), lambda x: np.floor(normalized(x)), lambda x: normalized(x) < 1])
def test_what_stays(function: Callable[..., Any]) -> None:
    """Divisors that may be anything, those of one element each, and what decisions rest on."""
    graph = graph_of(function, RNG.standard_normal((4, 9)).astype(np.float32))
    whole = [n for n in quotients(graph) if n.shape == (4, 9)]
    assert len([n for n in quotients(share_divisors(graph, Options())) if n.shape == (4, 9)]) == len(whole) > 0


@pytest.mark.parametrize("precision", ["plain", "strict"])
def test_precision(precision: str) -> None:
    graph = graph_of(softmax, RNG.standard_normal((4, 9)).astype(np.float32))
    assert share_divisors(graph, Options(precision=precision)) is graph
    half = graph_of(normalized, RNG.standard_normal((4, 9)).astype(np.float16))
    assert len(quotients(share_divisors(half, Options()))) == len(quotients(half))
