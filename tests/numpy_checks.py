"""What the tests of the NumPy front end share: run a function on NumPy and on its traced graph, and compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.frontends.argument_trees import flatten
from tilewright.frontends.from_numpy import spec, trace_call, trace_specs
from tilewright.ir.interp import evaluate_graph

TOLERANCE = {np.dtype(np.float16): 2e-3, np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-12}


def values(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Small values of the dtype, with negative ones where it has them."""
    random = np.random.default_rng(seed + 7 * len(shape) + sum(shape))
    kind = np.dtype(dtype)
    if kind == np.bool_:
        return random.random(shape) > 0.4
    if kind.kind in "iu":
        return random.integers(-9 if kind.kind == "i" else 0, 10, shape).astype(kind)
    return random.normal(size=shape).astype(kind)


def copied(arrays: tuple[Any, ...]) -> list[Any]:
    return [a.copy() if isinstance(a, np.ndarray) else a for a in arrays]


def assert_same(found: Any, expected: Any, loose: float = 1.0) -> None:
    """Equal structure, dtypes and shapes; values within the dtype's tolerance."""
    left, left_structure = flatten(found)
    right, right_structure = flatten(expected)
    assert str(left_structure) == str(right_structure)
    for one, other in zip(left, right):
        x, y = np.asarray(one.value), np.asarray(other.value)
        assert x.dtype == y.dtype, f"dtype {x.dtype}, expected {y.dtype}"
        assert x.shape == y.shape, f"shape {x.shape}, expected {y.shape}"
        if x.dtype.kind in "biu":
            np.testing.assert_array_equal(x, y)
        else:
            tolerance = loose * TOLERANCE.get(x.dtype, 2e-2)
            np.testing.assert_allclose(x.astype(np.float64), y.astype(np.float64), rtol=tolerance, atol=tolerance, equal_nan=True)


def run_static(function: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
    specs = [spec(a.shape, a.dtype) if isinstance(a, np.ndarray) else a for a in arrays]
    traced = trace_specs(function, specs)
    return traced.pack(evaluate_graph(traced.graph, [a for a in arrays if isinstance(a, np.ndarray)]))


def run_symbolic(function: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
    traced = trace_call(function, arrays)
    assert traced.matches(arrays)
    return traced.pack(evaluate_graph(traced.graph, traced.arrays(arrays)))


def check(function: Callable[..., Any], *arrays: Any, loose: float = 1.0, symbolic: bool = True) -> None:
    """The function gives the same on NumPy, as a graph of static sizes and as a graph of symbolic sizes."""
    with np.errstate(all="ignore"):
        expected = function(*copied(arrays))
    assert_same(run_static(function, arrays), expected, loose)
    if symbolic:
        assert_same(run_symbolic(function, arrays), expected, loose)
