"""Joined elementwise kernels (compiler/passes/siblings.py): which are joined, and that results stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernel_checks import check_kernels, program_of, traced

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    found = RNG.standard_normal(shape).astype(np.float32)
    if found.size > 8:
        found.reshape(-1)[[1, 3, 5]] = np.nan, np.inf, -0.0
    return found


def waves(x: Any, y: Any) -> Any:
    shared = np.exp(x) * y
    return np.sin(shared), np.cos(shared) + x, shared > 1


def steps(x: Any, y: Any) -> Any:
    """What several results read is no result itself."""
    inside = x * x + y * y <= 4
    return np.where(inside, x * x - y, x), np.where(inside, 2 * x * y, y), (x > y) + inside


def count(function: Any, *arrays: np.ndarray, symbolic: bool = False) -> int:
    return len(program_of(traced(function, arrays, symbolic)).kernels())


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 3, 35), (0, 4), (129,)])
@pytest.mark.parametrize("function", [waves, steps])
def test_results_over_one_shape(function: Any, shape: tuple[int, ...], symbolic: bool) -> None:
    program = check_kernels(function, floats(*shape), floats(*shape), symbolic=symbolic)
    assert len(program.kernels()) == (0 if 0 in shape and not symbolic else 1)


@pytest.mark.parametrize("symbolic", [False, True])
def test_indices_that_are_computed(symbolic: bool) -> None:
    def sampled(image: Any, y: Any, x: Any) -> Any:
        top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
        return (image[top, left] * (y - top) + image[top + 1, left] * (x - left)).astype(np.float32)

    image = RNG.standard_normal((9, 11)).astype(np.float32)
    y, x = RNG.uniform(0, 7, (6, 21)), RNG.uniform(0, 10, (6, 21))
    program = check_kernels(sampled, image, y, x, symbolic=symbolic)
    assert len(program.kernels()) == 1


def test_what_is_read_elsewhere_is_not_joined() -> None:
    def turned(x: Any, y: Any) -> Any:
        wave = np.exp(x) / y
        return wave, np.sin(wave[::-1]) + x

    check_kernels(turned, floats(6, 9), floats(6, 9), symbolic=False)
    assert count(turned, floats(6, 9), floats(6, 9)) == 2


def test_no_cycle_through_another_kernel() -> None:
    def centred(x: Any) -> Any:
        wave = np.exp(x) / 3
        total = np.sort(wave, axis=1)[:, :1]
        return wave, np.sin(x) * total

    check_kernels(centred, RNG.standard_normal((6, 9)).astype(np.float32), symbolic=False)
    assert count(centred, floats(6, 9)) >= 3


def test_no_cycle_through_what_was_joined() -> None:
    """first -> sort -> fourth and second -> sort -> third: either pair may be joined with the other's end, not both."""
    def crossed(x: Any, y: Any) -> Any:
        first, second = np.exp(x), np.exp(y)
        third = np.sin(x) + np.sort(second, axis=1)
        fourth = np.sin(y) + np.sort(first, axis=1)
        return first, second, third, fourth

    x, y = (RNG.standard_normal((4, 50)).astype(np.float32) for _ in range(2))
    check_kernels(crossed, x, y, symbolic=True)


def test_other_shapes_and_other_arrays_stay_apart() -> None:
    assert count(lambda x, y: (np.exp(x), np.exp(y)), floats(4, 5), floats(4, 5)) == 1  # one kernel for two launches
    assert count(lambda x, y: (np.exp(x), np.sin(x[:2]), np.tanh(y)), floats(4, 5), floats(4, 5)) == 3
