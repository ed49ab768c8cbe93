"""Arrays whose borders are repeated along one axis and then along the next, and padded arrays that are put beside others: parts
put side by side within others become one kernel (passes/fuse.py), which stores each at its place (lowering/elements.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tilewright as tw
from tests.comparing import assert_identical
from tests.kernel_checks import check_kernels

OPTIONS = tw.Options(threads=2, cache=False)
MODES = ("edge", "reflect", "wrap", "symmetric")


def kernels(compiled: Callable[..., object]) -> int:
    executable = compiled.executables[0] if hasattr(compiled, "executables") else compiled
    return len(executable.kernels)  # type: ignore[attr-defined]  # compiled with args


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [2, ((1, 3), (0, 2))])
def test_a_padded_image_is_one_kernel(mode: str, width: object) -> None:
    def padded(x: np.ndarray) -> np.ndarray:
        return np.pad(x, width, mode=mode)  # type: ignore[call-overload,no-any-return]  # mode is a str

    general = tw.compile(padded, options=OPTIONS)
    for shape in ((20, 13), (5, 70), (4, 4)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        x[2, 1], x[-1, -1] = np.nan, np.inf
        static = tw.compile(padded, args=(tw.spec(shape, "float32"),), options=OPTIONS)
        for compiled in (general, static):
            assert_identical([compiled(x)], [padded(x)])
        assert kernels(static) == 1


@pytest.mark.parametrize("symbolic", [False, True])
def test_other_readers(symbolic: bool) -> None:
    """Three axes; what is computed and then padded; and a padded array that is read elsewhere too."""
    def several(x: np.ndarray) -> tuple[np.ndarray, ...]:
        grown = np.concatenate([x[:1], x * 2, x[-1:]], axis=0)
        return (np.pad(np.stack([x, x + 1]), 1, mode="edge"), np.pad(np.abs(x), 2, mode="edge")[1:, 1:],
                np.concatenate([grown[:, :1], grown], axis=1), np.concatenate([grown, grown], axis=1) + 1)

    x = np.random.default_rng(2).integers(-9, 9, (9, 21)).astype(np.float32)
    args = None if symbolic else (tw.spec(x.shape, "float32"),)
    compiled = tw.compile(several, args=args, options=OPTIONS)
    assert_identical(list(compiled(x)), list(several(x)))


def beside(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.pad(x, ((1, 0), (2, 3)), constant_values=-1)[None], np.pad(x * 2, ((0, 1), (5, 0)))[None],
                           np.pad(x, ((1, 0), (0, 5)))[None]])


def below(x: np.ndarray) -> np.ndarray:
    return np.concatenate([np.pad(x, ((1, 2), (0, 0))), x, np.pad(np.exp(x), ((0, 1), (0, 0)), constant_values=7)])


def padded_parts(x: np.ndarray) -> np.ndarray:
    """Parts of what is padded, which is put beside more."""
    return np.concatenate([np.pad(np.concatenate([x, x + 1]), ((0, 2), (0, 5))), np.pad(x, ((1, 0), (1, 4)))])


def widened(x: np.ndarray) -> np.ndarray:
    """What a padded array is put beside is itself put between copies of its borders."""
    return np.pad(np.concatenate([np.pad(x, ((0, 1), (0, 0))), x]), ((0, 0), (1, 1)), mode="edge")


def read_elsewhere(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """What is padded is a result, put in twice, or read by another as well."""
    first, second, third = (np.pad(x + i, ((1, 0), (0, 5))) for i in range(3))
    return first, np.concatenate([np.pad(x, ((1, 0), (5, 0))), first]), np.concatenate([second, second]), np.concatenate([third, first]), third * 2


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("function", [beside, below, padded_parts, read_elsewhere])
@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (0, 4), (4, 0)], ids=str)
def test_what_is_padded_is_stored_at_its_place_beside_others(
        function: Callable[..., object], shape: tuple[int, int], symbolic: bool) -> None:
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    x[x > 1.5], x[x < -1.5] = np.nan, np.inf
    check_kernels(function, x, symbolic=symbolic)


@pytest.mark.parametrize("symbolic", [False, True])
def test_readers_compute_what_padded_parts_are_put_beside(symbolic: bool) -> None:
    check_kernels(widened, np.random.default_rng(3).standard_normal((3, 7)).astype(np.float32), symbolic=symbolic)


@pytest.mark.parametrize("function", [beside, below])
def test_what_is_padded_is_no_kernel_of_its_own(function: Callable[..., object]) -> None:
    assert len(check_kernels(function, np.ones((3, 7), np.float32), symbolic=False).kernels()) == 1
