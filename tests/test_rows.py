"""Kernels along rows (compiler/lowering/rows.py, extremes.py, special.py): row buffers and short rows where sizes are symbolic,
places of extremes, running sums side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernel_checks import check_kernels
from tilewright.ir.loop import Alloc, walk
from tilewright.lowering.rows import ROW_BUFFER_BYTES, SHORT_ROW
from tilewright.lowering.special import ROWS

RNG = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def energies(x: Any, y: Any) -> Any:
    """Of all pairs: rows that may be short, with something computed for each."""
    apart = x[:, None, :] - y[None, :, :]
    return np.log((apart * apart).sum(axis=-1) + 1) * 3


@pytest.mark.parametrize("shape", [(3, 1), (5, SHORT_ROW - 1), (70, SHORT_ROW), (2, 37), (130, 3), (2, 3, 5), (1, 40), (9, 2, 1)])
def test_softmax_of_any_size(shape: tuple[int, ...]) -> None:
    program = check_kernels(softmax, normal(*shape), symbolic=True)
    assert any(isinstance(s, Alloc) and s.buffer.space == "local" for kernel in program.kernels() for s in walk(kernel.body))


def test_rows_that_no_buffer_holds() -> None:
    for size in (ROW_BUFFER_BYTES // 4, ROW_BUFFER_BYTES // 4 + 1):
        x = normal(3, size)
        check_kernels(softmax, x, symbolic=True, as_loops=False)
        check_kernels(softmax, x, symbolic=False, as_loops=False)


def test_square_rows_that_are_read_as_columns_too() -> None:
    """What is kept of a row, or is one value for each row, is computed anew where it is read at another place."""
    def weighted(x: Any) -> Any:
        e = np.exp(x)
        return e / e.sum(axis=-1, keepdims=True) * np.transpose(e)

    for symbolic in (False, True):
        check_kernels(weighted, normal(9, 9), symbolic=symbolic)


@pytest.mark.parametrize("shape", [(4, 1), (5, 3), (33, 6)])
def test_not_a_number_in_short_rows(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    x[0, 0], x[1, 0], x[2, 0] = np.nan, np.inf, -np.inf
    check_kernels(softmax, x, symbolic=True)


@pytest.mark.parametrize("n, m, features", [(1, 1, 1), (3, 70, 3), (2, 65, 20), (7, 1, 4)])
def test_rows_of_all_pairs(n: int, m: int, features: int) -> None:
    for symbolic in (False, True):
        check_kernels(energies, normal(n, features), normal(m, features), symbolic=symbolic)


# --- places of extremes ----------------------------------------------------------------------------------------------


def places(x: Any) -> Any:
    return x.argmax(axis=-1), x.argmin(axis=-1), x.argmax(axis=0), x.argmin(axis=0)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape, dtype", [((3, 50), np.float32), ((40, 7), np.int8), ((1, 1), np.float32), ((5, 16), np.bool_),
                                          ((2, 3, 33), np.float64), ((4, 35), np.uint16), ((5, 18), np.int64)])
def test_places_of_extremes(shape: tuple[int, ...], dtype: Any, symbolic: bool) -> None:
    """Few different values: the first of equal ones is found."""
    check_kernels(places, RNG.integers(0, 4, shape).astype(dtype), symbolic=symbolic)


@pytest.mark.parametrize("symbolic", [False, True])
def test_places_of_special_values(symbolic: bool) -> None:
    x = normal(9, 40)
    x[0, 7] = x[0, 9] = x[1, 39] = x[2, 0] = np.nan
    x[3], x[4] = np.inf, -np.inf
    x[5, 1::2], x[5, ::2] = 0.0, -0.0
    x[6, 11:] = np.nan
    x[7] = np.nan
    check_kernels(places, x, symbolic=symbolic)


# --- running sums ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape", [(1, 9), (ROWS, 6), (2 * ROWS + 1, 7), (3, 2, 4), (2, ROWS + 1, 1), (7,), (0, 4), (5, 0)])
def test_running_sums(shape: tuple[int, ...], symbolic: bool) -> None:
    def running(x: Any) -> Any:
        return np.cumsum(x, axis=-1), np.cumprod(x[..., ::-1], axis=-1), np.maximum.accumulate(x, axis=0)

    check_kernels(running, RNG.integers(-2, 3, shape).astype(np.float32), symbolic=symbolic and 0 not in shape)


# --- to narrow integers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [np.float32, np.float64])
def test_casts_saturate(source: Any) -> None:
    targets = (np.int8, np.uint8, np.int16, np.uint16, np.int32)
    near = [limit + d for t in targets for limit in (int(np.iinfo(t).min), int(np.iinfo(t).max)) for d in (-1, -0.5, 0, 0.5, 1)]
    x = np.array([*near, -0.5, -0.0, 1e30, -1e30, np.nan, -np.nan, np.inf, -np.inf, *range(-300, 300, 7)], source)
    check_kernels(lambda x: tuple(x.astype(t) for t in targets), x, symbolic=False)
