"""Calls in unusual ways: all give the same, and a runtime that goes wrong in one of them is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.fuzz import native
from tilewright.fuzz.calls import LAYOUTS, check_calls, reversed_inputs
from tilewright.fuzz.keys import QUIET
from tilewright.fuzz.subject import Failure
from tilewright.ir.errors import ArgumentError
from tilewright.pipeline import run_passes

X = np.arange(24, dtype=np.float32).reshape(4, 6)


def compiled(function: Callable[..., Any], *inputs: np.ndarray) -> Any:
    specs = tuple(tw.spec(a.shape, str(a.dtype)) for a in inputs)
    return tw.compile(function, args=specs, options=tw.Options(cache=False, threads=1))


def check(executable: Any, *inputs: np.ndarray, seeds: int = 4) -> None:
    result = compiled_results(executable(*inputs))
    for seed in range(seeds):
        others = [np.flip(a).copy() if a.ndim else a for a in inputs]
        check_calls(executable, [a.copy() for a in inputs], result, np.random.default_rng(seed), others)


def compiled_results(result: Any) -> tuple[np.ndarray, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("function, inputs", [
    (lambda x: (x[::-1] + x, x.sum(axis=1)), (X,)),
    (lambda x, y: (np.cumsum(x @ y, axis=0), x > 3), (X, X.T.copy())),
    (lambda x: x * 2, (np.array(3, np.float32),)),
    (lambda x: (x + 1, x.sum(axis=0)), (np.zeros((0, 3), np.int64),)),
    (lambda x: np.where(x, 1, 2), (X > 5,)),
], ids=["two results", "matrices", "no axes", "no elements", "bools"])
def test_calls_that_are_right(function: Callable[..., Any], inputs: tuple[np.ndarray, ...]) -> None:
    check(compiled(function, *inputs), *inputs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_keep_the_values(name: str) -> None:
    for array in (X, np.zeros((0, 3), np.int16), np.array(2.0), X > 3, X[0]):
        changed = LAYOUTS[name](array)
        assert changed.shape == array.shape and changed.ndim == array.ndim
        np.testing.assert_array_equal(changed, array)
    assert name in ("of the other byte order", "misaligned") or not LAYOUTS[name](X).flags.c_contiguous
    assert name != "misaligned" or not LAYOUTS[name](X).flags.aligned


class Runtime:
    """`x[::-1] + 1` in NumPy, behind the calls of an executable, with one fault."""

    def __init__(self, fault: str, threads: int = 1) -> None:
        self.fault, self.threads = fault, threads
        self.kept = np.zeros_like(X)

    def with_threads(self, threads: int) -> Runtime:
        return Runtime(self.fault, threads)

    def __call__(self, x: np.ndarray, out: tuple[np.ndarray, ...] | None = None) -> np.ndarray:
        target = np.empty_like(X) if out is None else out[0]
        if not target.flags.writeable and self.fault != "writes to what is read-only":
            raise ArgumentError("read-only")
        if self.fault == "changes its input" and x.flags.writeable and out is None and x.flags.c_contiguous:
            x[0, 0] += 1
        if self.fault == "reads with wrong strides" and not x.flags.c_contiguous:
            x = np.ascontiguousarray(x).T.reshape(x.shape)
        if self.fault == "writes into what it reads":
            target.flags.writeable = True
            for row in range(4):
                target[row] = x[3 - row] + 1
            return target
        values = x[::-1] + 1
        if self.fault == "leaves the last row to nobody" and self.threads == 2:
            values, target = values[:3], target
            target[:3] = values
            return target
        if self.fault == "keeps state":
            values, self.kept = values + (self.kept.sum() != 0) * 1, values
        if self.fault == "gives another array" and out is not None:
            return values
        if target.flags.writeable:
            target[...] = values
        return target


@pytest.mark.parametrize("fault", ["changes its input", "reads with wrong strides", "writes into what it reads", "leaves the last row to nobody",
                                   "keeps state", "gives another array", "writes to what is read-only"])
def test_faults_are_seen(fault: str) -> None:
    with pytest.raises(Failure, match="call in runtime"):
        for seed in range(6):
            check_calls(Runtime(fault), [X.copy()], [X[::-1] + 1], np.random.default_rng(seed), [X + 1])  # type: ignore[arg-type]
    check_calls(Runtime(""), [X.copy()], [X[::-1] + 1], np.random.default_rng(0), [X + 1])  # type: ignore[arg-type]


def test_loops_that_might_not_end_get_no_other_inputs() -> None:
    caps = native.caps_of("cpu:x86-64-v3", False)

    def others(function: Callable[..., Any]) -> list[np.ndarray] | None:
        graph = run_passes(tw.trace(function, args=(tw.spec((3,), "float32"),)), tw.Options(), caps, QUIET)[0]
        return reversed_inputs(native.lowered(graph, caps), [X[0, :3]])

    assert others(lambda x: tw.while_loop(lambda s: s[0][0] < 9, lambda s: (s[0] * 2,), (x,))[0]) is None
    found = others(lambda x: np.cumsum(x))
    assert found is not None
    np.testing.assert_array_equal(found[0], X[0, 2::-1])
