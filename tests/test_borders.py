"""Arrays whose borders are repeated along one axis and then along the next: parts put side by side within others become one
kernel (passes/fuse.py), which stores each at its place (lowering/elements.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tilewright as tw
from tests.comparing import assert_identical

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
