"""tw.cond, tw.while_loop and tw.scan: the same on plain arrays and traced, nested, with captures; and their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy_checks import assert_same, check, values

import tilewright.frontends.from_numpy as tw
from tilewright.ir.errors import CompileError
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.control import If, Scan, While

X, Y = values(4, 3), values(3, seed=2)


def newton(x: Any) -> Any:
    """Square roots, until all are close."""

    def more(state: Any) -> Any:
        root, _ = state
        return np.any(np.abs(root * root - x) > 1e-5 * x)

    def step(state: Any) -> Any:
        root, count = state
        return (root + x / root) / 2, count + 1

    return tw.while_loop(more, step, (np.ones_like(x), 0))


def recurrent(xs: Any, w: Any, u: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = np.tanh(x @ w + h @ u)
        return h, h * 2

    return tw.scan(step, np.zeros_like(xs[0] @ w), xs)


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "cond": (lambda x: tw.cond(x.sum() > 0, lambda v: v * 2, lambda v: v - 1, x), (X,)),
    "cond_false": (lambda x: tw.cond(x.sum() > 1e9, lambda v: v * 2, lambda v: v - 1, x), (X,)),
    "cond_captures": (lambda x, y: tw.cond(np.any(x > 9), lambda: x + y, lambda: x * y[0]), (X, Y)),
    "cond_tree": (
        lambda x: tw.cond(x[0, 0] > 0, lambda d: {"a": d["v"], "b": [d["v"] + 1]}, lambda d: {"a": -d["v"], "b": [d["v"]]}, {"v": x}),
        (X,),
    ),
    "cond_number": (lambda x: tw.cond(x[0, 0] > 0, lambda: x.sum(), lambda: 0.0) + x, (X,)),
    "cond_concrete": (lambda x: tw.cond(True, lambda v: v * 2, lambda v: v - 1, x), (X,)),
    "cond_nested": (lambda x: tw.cond(x.sum() > 0, lambda: tw.cond(x[0, 0] > 0, lambda: x + 1, lambda: x + 2), lambda: x * x.sum()), (X,)),
    "newton": (newton, (np.abs(X) + 1,)),
    "while_concrete": (lambda x: tw.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 2), (0, x))[1], (X,)),
    "while_rows": (
        lambda x: tw.while_loop(
            lambda s: s[0] < x.shape[0], lambda s: (s[0] + 1, s[1] + x[s[0]]), (np.int64(0) * x[0, 0].astype(int), x[0])
        )[1],
        (X,),
    ),
    "while_in_place": (lambda x: _filled(x), (X,)),
    "recurrent": (recurrent, (X, values(3, 5), values(5, 5))),
    "scan_reverse": (lambda x: tw.scan(lambda s, v: (s + v, s), x[0], x, reverse=True), (X,)),
    "scan_tree": (lambda x: tw.scan(lambda s, v: (s + v["a"], {"sum": v["a"] + v["b"]}), np.zeros_like(x[0]), {"a": x, "b": x * 2}), (X,)),
    "scan_length": (lambda x: tw.scan(lambda s, _: (s * 2, s[0]), x, None, length=3), (X,)),
    "scan_number": (lambda x: tw.scan(lambda s, v: (s + v.sum(), s), 0.0, x)[0], (X,)),
    "scan_capture": (lambda x, y: tw.scan(lambda s, v: (s * y + v, None), np.ones_like(y), x)[0], (X, Y)),
    "scan_of_scan": (
        lambda x: tw.scan(lambda s, row: (s + tw.scan(lambda c, v: (c * 0.5 + v, None), row[0], row)[0], s), x[0, 0], x),
        (X,),
    ),
    "scan_constant": (lambda x: tw.scan(lambda s, k: (s * k, s), x, np.arange(3, dtype=np.float32)), (X,)),
    "scan_writes": (lambda x: tw.scan(lambda s, v: _write(s, v), np.zeros_like(x[0]), x), (X,)),
}


def _filled(x: Any) -> Any:
    def step(state: Any) -> Any:
        i, out = state
        out[i] = x[i] * 2
        out[i, 0] += 1
        return i + 1, out

    start = x[0, 0].astype(np.int64) * 0
    return tw.while_loop(lambda s: s[0] < 3, step, (start, np.zeros_like(x)))[1]


def _write(state: Any, v: Any) -> Any:
    state[0] = v[0]
    state[1:] += v[1:]
    return state, state * 2


@pytest.mark.parametrize("name", CASES)
def test_control_flow_agrees_with_numpy(name: str) -> None:
    function, arrays = CASES[name]
    if name in ("newton", "scan_number", "cond_number"):
        _check_traced(function, arrays)
    else:
        check(function, *arrays, loose=4)


def _check_traced(function: Callable[..., Any], arrays: tuple[Any, ...]) -> None:
    """Python numbers in the state are arrays in the result, of NumPy's dtype."""
    traced = tw.trace_call(function, arrays)
    found = traced.pack(evaluate_graph(traced.graph, list(arrays)))
    expected = tw.map_leaves(function(*arrays), np.asarray)
    assert_same(found, expected, loose=4)


def test_bodies_become_graphs_with_captures() -> None:
    def function(x: Any, y: Any) -> Any:
        a = tw.cond(x[0] > 0, lambda v: v + y, lambda v: v - 1, x)
        b = tw.while_loop(lambda s: s.sum() < 10, lambda s: s + np.abs(y) + 1, a)
        return tw.scan(lambda s, v: (s + v * y, s), b, np.ones((3, 1), np.float32))

    vector = tw.spec(("n",), "float32")
    graph = tw.trace(function, (vector, vector))
    found = {type(n.op) for n in graph.nodes()}
    assert {If, While, Scan} <= found
    x, y = values(5), values(5, seed=4)
    assert_same(evaluate_graph(graph, [x, y]), function(x, y), loose=4)


def test_a_size_can_be_the_length_of_a_scan() -> None:
    graph = tw.trace(lambda x: tw.scan(lambda s, _: (s + 1, s), 0.0, None, length=x.shape[0])[1], (tw.spec(("n",), "float32"),))
    np.testing.assert_array_equal(evaluate_graph(graph, [np.zeros(4, np.float32)])[0], [0.0, 1.0, 2.0, 3.0])


def test_plain_values_just_run() -> None:
    state = np.zeros(2)
    result = tw.while_loop(lambda s: s[0] < 3, lambda s: _bump(s), state)
    assert result[0] == 3 and state[0] == 0
    last, ys = tw.scan(lambda s, x: (s + x, s), 0, np.arange(4))
    assert last == 6 and ys.tolist() == [0, 0, 1, 3]
    assert tw.cond(np.bool_(False), lambda: 1, lambda: 2) == 2


def _bump(state: Any) -> Any:
    state += 1
    return state


ERRORS: dict[str, tuple[Callable[..., Any], str]] = {
    "sides of different structure": (lambda x: tw.cond(x[0] > 0, lambda: x, lambda: (x, x)), "different structures"),
    "sides of different shape": (lambda x: tw.cond(x[0] > 0, lambda: x, lambda: x[0]), "different types for result"),
    "sides of different dtype": (lambda x: tw.cond(x[0] > 0, lambda: x, lambda: x.astype(np.float64)), "astype"),
    "condition with many values": (lambda x: tw.cond(x > 0, lambda: x, lambda: x), "reduce it with np.any or np.all"),
    "state changes shape": (lambda x: tw.while_loop(lambda s: s.sum() < 3, lambda s: s[:2], x), "keeps its shape"),
    "state changes dtype": (lambda x: tw.while_loop(lambda s: s.sum() < 3, lambda s: s * np.float64(2), x), "astype(float32)"),
    "state changes structure": (lambda x: tw.while_loop(lambda s: s.sum() < 3, lambda s: (s, s), x), "same structure"),
    "condition of no truth value": (lambda x: tw.while_loop(lambda s: s > 0, lambda s: s, x), "reduce it with np.any"),
    "scan without pair": (lambda x: tw.scan(lambda s, v: s + v, x[0], x), "must return (state, result)"),
    "scan over a scalar": (lambda x: tw.scan(lambda s, v: (s, v), x, x[0]), "no axis to go along"),
    "scan of different lengths": (lambda x: tw.scan(lambda s, v: (s, None), x[0], (x, x[1:])), "differ in length"),
    "scan without length": (lambda x: tw.scan(lambda s, v: (s, None), x, None), "give length="),
    "write to the outside": (lambda x: _writes_outside(x), "return the changed one"),
    "leak to the outside": (lambda x: _leaks(x), "return it from the body"),
}


def _writes_outside(x: Any) -> Any:
    y = x.copy()

    def body() -> Any:
        y[0] = 1
        return y

    return tw.cond(x[0] > 0, body, lambda: y)


def _leaks(x: Any) -> Any:
    kept = []
    tw.scan(lambda s, v: (s, kept.append(v * 2)), x[0], x)
    return kept[0] + 1


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_line_and_the_way_out(name: str) -> None:
    function, text = ERRORS[name]
    with pytest.raises(CompileError) as caught:
        tw.trace(function, (tw.spec((3,), "float32"),))
    message = str(caught.value)
    assert text in message
    assert "test_control_flow.py:" in message
