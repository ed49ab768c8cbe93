"""What replaces a part of an array or the state of a loop: windows (compiler/lowering/elements.py), kernels that write over an
operand (in_place.py), and loops whose states exchange their memory (lower.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tests.kernel_checks import check_kernels, program_of, traced
from tilewright.ir.loop import Kernel, Store, walk

RNG = np.random.default_rng(0)


def integers(*shape: int) -> np.ndarray:
    return RNG.integers(-9, 9, shape).astype(np.float32)


def stores(kernels: tuple[Kernel, ...]) -> int:
    return sum(isinstance(s, Store) for kernel in kernels for s in walk(kernel.body))


def inner(x: Any) -> Any:
    x = x.copy()
    x[1:-1, 1:-1] = x[2:, 1:-1] + x[:-2, 1:-1]
    return x


def corner(x: Any) -> Any:
    x = x.copy()
    x[2:, :3] *= 2
    return x


def strided(x: Any) -> Any:
    x = x.copy()
    x[::2, 1::3] = 7
    return x


def nothing(x: Any) -> Any:
    x = x.copy()
    x[1:1, :] = 7
    return x


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape", [(3, 3), (40, 21)])
@pytest.mark.parametrize("function", [inner, corner, strided, nothing])
def test_windows(function: Any, shape: tuple[int, ...], symbolic: bool) -> None:
    check_kernels(function, integers(*shape), symbolic=symbolic)


def test_each_element_is_written_once() -> None:
    program = check_kernels(inner, integers(12, 12), symbolic=False)
    assert len(program.kernels()) == 1
    assert stores(program.kernels()) == 5  # the window, and a slab on each side


def test_what_stays_in_place_is_not_copied() -> None:
    def twice(x: Any) -> Any:
        x = np.sort(x, axis=0)
        x[1:, :] = 0.0
        return np.sort(x, axis=1)

    program = check_kernels(twice, integers(9, 30), symbolic=False)
    over, = (kernel for kernel in program.kernels() if "update_slice" in kernel.name)
    assert over.name.endswith("in_place") and stores((over,)) == 1


def test_a_window_that_is_put_back_is_no_kernel() -> None:
    def added(x: Any, y: Any) -> Any:
        x = x.copy()
        x[1:, :] += y
        return x

    assert len(program_of(traced(added, (integers(5, 6), integers(4, 6)), False)).kernels()) == 1
    check_kernels(added, integers(5, 6), integers(4, 6), symbolic=False)


@pytest.mark.parametrize("shape, rounds", [((3, 5), 3), ((40, 41), 0), ((40, 41), 1), ((40, 41), 2), ((40, 41), 3)])
def test_loops_over_arrays(shape: tuple[int, ...], rounds: int) -> None:
    """States that change places, one that stays and one that is counted; large ones are not copied each round."""
    def exchanged(x: Any, y: Any, n: Any) -> Any:
        def more(state: Any) -> Any:
            return state[0] < n

        def step(state: Any) -> Any:
            count, a, b, c = state
            return count + 1, b + c, a * 2, c

        return tw.while_loop(more, step, (np.int64(0), x, y, x - y))

    check_kernels(exchanged, integers(*shape), integers(*shape), np.array(rounds), symbolic=rounds == 3)


@pytest.mark.parametrize("outer, inner_rounds", [(0, 2), (1, 1), (2, 3)])
def test_loops_in_loops(outer: int, inner_rounds: int) -> None:
    def nested(x: Any, n: Any, m: Any) -> Any:
        def rows(state: Any) -> Any:
            count, a = state
            b = tw.while_loop(lambda s: s[0] < m, lambda s: (s[0] + 1, s[1] + a), (np.int64(0), a))[1]
            return count + 1, b - x

        return tw.while_loop(lambda s: s[0] < n, rows, (np.int64(0), x))[1]

    check_kernels(nested, integers(40, 40), np.array(outer), np.array(inner_rounds), symbolic=False)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("widths", [((2, 1), (0, 3)), ((0, 0), (1, 0)), ((5, 5), (4, 4))])
def test_repeated_edges(widths: tuple[tuple[int, int], ...], symbolic: bool) -> None:
    check_kernels(lambda x: np.pad(x, widths, mode="edge"), integers(3, 5), symbolic=symbolic)
