"""What witnesses share: a program as machine code, compared with NumPy or with the interpreter.

Imported by path (a witness is run as a script, its folder comes first), with whatever `tilewright` is on the path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import tilewright as tw
from tilewright.backends.cuda.emulated_programs import EmulatedPrograms
from tilewright.driver import compile_graph
from tilewright.fuzz.native import make_emulation
from tilewright.gpu.compiling import source_of
from tilewright.ir.errors import CompileError
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.parser import parse
from tilewright.options import read_environment


def differs(function: Callable[..., Any], *arrays: np.ndarray, specs: Sequence[Any] | None = None, threads: int = 1,
            precision: str = "default", tolerance: float = 0.0) -> bool:
    """Whether the compiled function gives another result than the plain one. `specs`: where sizes are symbolic."""
    given = specs or [tw.spec(array.shape, str(array.dtype)) for array in arrays]
    options = tw.Options(cache=False, threads=threads, precision=precision)
    executable = tw.compile(function, args=tuple(given), options=options)
    with np.errstate(all="ignore"):
        expected = function(*arrays)
    return is_wrong(executable(*arrays), expected, tolerance)


def graph_differs(text: str, *arrays: np.ndarray, constants: dict[str, Any] | None = None, threads: int = 1,
                  precision: str = "default", tolerance: float = 0.0) -> bool:
    """Whether the graph, written as text, gives another result as machine code than in the interpreter. `constants`: those that
    the text names, by digest."""
    graph = parse(text, constants)
    with np.errstate(all="ignore"):
        expected = evaluate_graph(graph, arrays)
    executable = compile_graph(graph, "cpu", tw.Options(cache=False, threads=threads, precision=precision))
    return is_wrong(executable(*arrays), expected, tolerance)


def device_differs(text: str, *arrays: np.ndarray, target: str = "cuda:sm_80") -> bool:
    """Whether the graph's kernels for a GPU, in the loop interpreter or emulated, give another result than the graph or break a rule."""
    graph = parse(text)
    with np.errstate(all="ignore"):
        expected = evaluate_graph(graph, arrays)
        program = source_of(graph, target, tw.Options(), read_environment())[0]
        try:
            interpreted = run_program(program, arrays)
            make_emulation()
            emulated = EmulatedPrograms([program], architecture=target.partition(":")[2]).run(0, arrays)
        except CompileError:  # what the emulation and the interpreter raise for kernels that are at fault
            return True
    return is_wrong(interpreted, expected) or is_wrong(emulated, expected)


def is_wrong(found: Any, expected: Any, tolerance: float = 0.0) -> bool:
    """Bits compared: a zero has a sign, any NaN is every NaN. `tolerance`: what floats may be off by, relative to the largest."""
    pairs = list(zip(_listed(found), _listed(expected), strict=True))
    return any(_array_wrong(np.asarray(a), np.asarray(b), tolerance) for a, b in pairs)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _array_wrong(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return True
    if found.dtype.kind in "biu":
        return not np.array_equal(found, expected)
    nan = np.isnan(found) & np.isnan(expected)
    if tolerance:
        wide, right = found.astype(np.float64), expected.astype(np.float64)
        bound = tolerance * np.max(np.abs(right), initial=1.0, where=np.isfinite(right))
        with np.errstate(invalid="ignore"):
            return not bool((nan | (wide == right) | (np.abs(wide - right) <= bound)).all())
    bits = f"u{found.dtype.itemsize}"
    same = np.ascontiguousarray(found).view(bits) == np.ascontiguousarray(expected).view(bits)
    return not bool((nan | same.reshape(found.shape)).all())


def small_integers(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Numbers from -8 to 8, for which sums and products are exact."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


__all__ = ["compile_graph", "device_differs", "differs", "evaluate_graph", "graph_differs", "is_wrong", "np", "parse", "small_integers",
           "tw"]
