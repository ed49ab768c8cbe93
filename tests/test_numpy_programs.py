"""The twenty NumPy functions of the benchmarks, as machine code, against NumPy: sizes symbolic and specialized, one thread
and two, and what happens at the next call with other ranks, dtypes and sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from benchmarks.numpy_peers import leaves
from benchmarks.numpy_programs import PROGRAMS, Program

OPTIONS = tw.Options(threads=1, cache=False)
BY_NAME = {program.name: program for program in PROGRAMS}
CASES = [(program, dtype) for program in PROGRAMS for dtype in (("float32", "float64") if program.takes_floats else ("float32",))]

# Of the largest value of each result. Sums are taken in another order and functions such as exp are off by one unit in the
# last place; both give a few units, which these leave room for.
TOLERANCE = {"float32": 5e-6, "float64": 5e-15}
# Where rounding is amplified, by how much more.
AMPLIFIED = {
    "moving_statistics": 40,  # differences of running sums over a whole row, and a quotient by a small deviation
    "correlation": 4,         # two sums over all rows, one behind the other
    "drawdown": 4,            # a running sum under an exponential
    "n_body": 4,              # the power -1.5 of a small distance
}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_code")]


def specialized(program: Program, inputs: Sequence[np.ndarray]) -> Any:
    return tw.compile(program.function, args=[tw.spec(a.shape, str(a.dtype)) for a in inputs], options=OPTIONS)


def check(program: Program, found: Any, expected: Any) -> None:
    for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if ours.dtype.kind in "biu":
            np.testing.assert_array_equal(ours, theirs)
        elif ours.size:
            tolerance = TOLERANCE[str(ours.dtype)] * AMPLIFIED.get(program.name, 1)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * float(np.abs(theirs).max()))


def same_bits(found: Any, expected: Any) -> None:
    for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(("program", "dtype"), CASES, ids=[f"{p.name}-{dtype}" for p, dtype in CASES])
def test_program(program: Program, dtype: str) -> None:
    inputs = program.inputs(dtype, small=True)
    before = [a.copy() for a in inputs]
    expected = program.function(*inputs)
    dynamic = tw.compile(program.function, options=OPTIONS)
    check(program, dynamic(*inputs), expected)
    fixed = specialized(program, inputs)
    check(program, fixed(*inputs), expected)
    for executable in (dynamic.executables[0], fixed):
        same_bits(executable.with_threads(2)(*inputs), executable(*inputs))
    for array, copy in zip(inputs, before):
        np.testing.assert_array_equal(array, copy)


# Sizes that a trace may not take for granted: ones, and sizes that are equal in the first call and differ in the second.
SIZES: list[tuple[str, list[dict[str, int]]]] = [
    ("layer_norm", [{"rows": 5, "n": 5}, {"rows": 5, "n": 6}, {"rows": 1, "n": 5}, {"rows": 5, "n": 1}, {"rows": 1, "n": 1}]),
    ("attention", [{"batch": 4, "heads": 4, "n": 4, "depth": 4}, {"batch": 2, "heads": 3, "n": 5, "depth": 4},
                   {"batch": 1, "heads": 1, "n": 1, "depth": 4}, {"batch": 1, "heads": 2, "n": 7, "depth": 1}]),
    ("pairwise_distances", [{"n": 6, "m": 6, "features": 6}, {"n": 6, "m": 7, "features": 2}, {"n": 1, "m": 5, "features": 3},
                            {"n": 5, "m": 1, "features": 1}]),
    ("cross_entropy", [{"rows": 8, "classes": 8}, {"rows": 8, "classes": 9}, {"rows": 1, "classes": 3}, {"rows": 3, "classes": 1}]),
    ("k_means_step", [{"n": 9, "features": 9, "centres": 9}, {"n": 10, "features": 4, "centres": 3}, {"n": 5, "features": 1, "centres": 1}]),
    ("logistic_step", [{"n": 6, "features": 6}, {"n": 7, "features": 3}, {"n": 1, "features": 3}, {"n": 5, "features": 1}]),
    ("heat", [{"height": 12, "width": 12}, {"height": 5, "width": 9}, {"height": 3, "width": 3}, {"height": 2, "width": 7}]),
    ("robust_summary", [{"rows": 12, "n": 12}, {"rows": 2, "n": 13}, {"rows": 1, "n": 40}, {"rows": 3, "n": 1}]),
    ("n_body", [{"n": 3}, {"n": 4}, {"n": 1}]),
    ("gaussian_blur", [{"height": 8, "width": 8}, {"height": 3, "width": 9}, {"height": 1, "width": 5}, {"height": 1, "width": 1}]),
]


@pytest.mark.parametrize(("name", "sizes"), SIZES, ids=[name for name, _ in SIZES])
def test_other_sizes_give_numpy_results(name: str, sizes: list[dict[str, int]]) -> None:
    program = BY_NAME[name]
    compiled = tw.compile(program.function, options=OPTIONS)
    for number, chosen in enumerate([*sizes, *sizes]):  # the second round meets whatever the first compiled
        inputs = program.inputs("float32", small=True, seed=number, **chosen)
        check(program, compiled(*inputs), program.function(*inputs))
    compiled_once = len(compiled.executables)
    inputs = program.inputs("float32", small=True, seed=99, **sizes[0])
    check(program, compiled(*inputs), program.function(*inputs))
    assert len(compiled.executables) == compiled_once <= len(sizes)


def test_new_ranks_and_dtypes_compile_anew_and_new_sizes_do_not() -> None:
    program = BY_NAME["softmax"]
    compiled = tw.compile(program.function, options=OPTIONS)
    rng = np.random.default_rng(0)
    count = 0
    for dtype in ("float32", "float64"):
        for rank in (1, 2, 3):
            count += 1
            for size in (5, 4, 7):
                x = rng.standard_normal((size, 3, 6)[:rank]).astype(dtype)
                check(program, compiled(x), program.function(x))
                assert len(compiled.executables) == count


def test_broadcast_of_one_is_another_program() -> None:
    def centred(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x - y) * (x + y)

    compiled = tw.compile(centred, options=OPTIONS)
    rng = np.random.default_rng(1)
    for shapes in (((4, 5), (4, 5)), ((4, 1), (4, 5)), ((1, 5), (4, 5)), ((4, 5), (1, 1)), ((1, 1), (1, 1)), ((3, 2), (3, 2)), ((6, 1), (1, 6))):
        x, y = (rng.standard_normal(shape) for shape in shapes)
        np.testing.assert_array_equal(compiled(x, y), centred(x, y))
    with pytest.raises(ValueError, match="x_1 vs y_1 on axis -1"):
        compiled(np.ones((3, 4)), np.ones((3, 5)))


# --- code that fusion must not make grow -----------------------------------------------------------------------------


def smoothed(x: np.ndarray) -> np.ndarray:
    for _ in range(12):
        x = 0.25 * x[:-2] + 0.5 * x[1:-1] + 0.25 * x[2:]
    return x


def differences(x: np.ndarray) -> np.ndarray:
    for _ in range(6):
        y = np.exp(-x * x)
        x = y[1:, 1:] - y[:-1, 1:] + y[1:, :-1] - y[:-1, :-1]
    return x


@pytest.mark.parametrize(("function", "shape"), [(smoothed, (100,)), (differences, (20, 30))], ids=["smoothed", "differences"])
def test_stencils_behind_one_another_stay_small(function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> None:
    """Computed in place, the last of 12 three-point stencils reads 3**12 expressions."""
    x = np.random.default_rng(2).standard_normal(shape)
    compiled = tw.compile(function, options=OPTIONS)
    # float64, twelve rounds of sums in another order
    np.testing.assert_allclose(compiled(x), function(x), rtol=1e-13, atol=1e-14)
    assert 3 <= len(compiled.executables[0].kernels) <= 12
    assert len(compiled.executables[0].object_code) < 100_000
