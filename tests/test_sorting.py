"""Sorting (compiler/lowering/sorting.py) against the interpreter of graphs, as machine code and in the loop interpreter, which
checks bounds and races."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.comparing import assert_identical
from tests.compiled import QUIET, compiled, run_compiled
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import For, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.compute import ArgSort, Sort
from tilewright.ir.ops.control import Param
from tilewright.ir.types import ARRAY_DTYPES, F32, DType
from tilewright.lowering.lower import lower_program
from tilewright.lowering.sorting import SHORT
from tilewright.options import Options
from tilewright.passes.share_sorts import share_sorts
from tilewright.pipeline import run_passes

CAPS = Caps(vector_bits=128, vector_registers=16)
DTYPES = st.sampled_from(ARRAY_DTYPES)


def sorts(shape: tuple[DimLike, ...], axis: int, dtype: DType = F32, descending: bool = False) -> Graph:
    """Of two arrays: places that sort the same one would be used for its values too."""
    b = Builder()
    x, y = (b.add(Param(name, dtype, shape)) for name in "xy")
    return Graph("sorts", [x, y], [b.add(Sort(axis, descending), x), b.add(ArgSort(axis, descending), y)])


def values(dtype: DType, shape: tuple[int, ...], seed: int, few: bool) -> np.ndarray:
    """Random bits, NaNs of all kinds and infinities among them, or few different values with zeros of both signs."""
    rng = np.random.default_rng(seed)
    if few:
        small = rng.integers(0 if dtype.numpy.kind in "ub" else -2, 3, shape).astype(dtype.numpy)
        return np.where(rng.random(shape) < 0.5, -small, small) if dtype.is_float else small
    if dtype.is_bool:
        return rng.random(shape) < 0.5
    count = int(np.prod(shape))
    found = np.frombuffer(rng.bytes(count * dtype.bytes), dtype.numpy).reshape(shape).copy()
    if dtype.is_float:
        for special in (np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0):
            found[rng.random(shape) < 0.04] = special
    return found


def named(shape: tuple[int, ...], symbolic: bool) -> tuple[DimLike, ...]:
    return tuple(symbol(f"s{a}") for a in range(len(shape))) if symbolic else shape


SHAPES = st.sampled_from([((3, 7), 1), ((3, 70), 1), ((70, 5), 0), ((2, 45, 3), 1), ((5, 4), 0), ((0, 50), 1), ((50, 0), 0), ((3, 0), 1),
                          ((1,), 0), ((300,), 0), ((2, SHORT), 1), ((2, SHORT + 1), 1), ((2, 3, 1000), 2)])


@pytest.mark.slow
@settings(max_examples=80)
@given(DTYPES, SHAPES, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 5))
def test_natively(dtype: DType, case: tuple[tuple[int, ...], int], descending: bool, symbolic: bool, few: bool, seed: int) -> None:
    shape, axis = case
    graph = sorts(named(shape, symbolic), axis, dtype, descending)
    inputs = [values(dtype, shape, seed, few)] * 2
    with np.errstate(invalid="ignore"):
        expected = evaluate_graph(graph, inputs)
    executable = compiled(graph, threads=2)
    assert_identical(run_compiled(executable, inputs), expected)
    assert_identical(run_compiled(executable, [inputs[0].copy()] * 2), expected)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape, axis", [((2, 9), 1), ((2, 60), 1), ((60, 2), 0), ((9, 2, 2), 0)])
def test_as_loops(shape: tuple[int, ...], axis: int, symbolic: bool) -> None:
    graph = sorts(named(shape, symbolic), axis)
    inputs = [values(F32, shape, 3, few=False)] * 2
    program = lower_program(run_passes(graph, Options(), CAPS, QUIET)[0], CAPS)[0]
    verify_program(program)
    for kernel in program.kernels():
        assert any(isinstance(s, For) and s.kind == "parallel" for s in walk(kernel.body)), kernel.name
        in_vectors = any(isinstance(s, For) and s.kind == "vector" for s in walk(kernel.body))
        assert in_vectors == (axis == len(shape) - 1), kernel.name
    assert_identical(run_program(program, inputs), evaluate_graph(graph, inputs))


def test_digits_that_all_share_and_sorted_rows() -> None:
    rows = np.stack([np.arange(500), np.arange(500)[::-1], np.full(500, 7), np.arange(500) << 40, np.arange(500) - 250])
    graph = sorts(rows.shape, 1, next(d for d in ARRAY_DTYPES if d.name == "i64"))
    assert_identical(run_compiled(compiled(graph), [rows] * 2), evaluate_graph(graph, [rows] * 2))


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape, axis", [((2, 9), 1), ((3, 60), 1), ((60, 2), 0), ((0, 50), 1), ((3, 0), 1), ((1,), 0), ((2, 45, 3), 1)])
@pytest.mark.parametrize("few", [False, True])
def test_what_is_sorted_once(shape: tuple[int, ...], axis: int, symbolic: bool, few: bool) -> None:
    """Values, places and ranks of one array take one sort; descending ranks are no inverse."""
    b = Builder()
    x = b.add(Param("x", F32, named(shape, symbolic)))
    places = b.add(ArgSort(axis), x)
    results = [places, b.add(Sort(axis), x), b.add(ArgSort(axis), places), b.add(ArgSort(axis), b.add(ArgSort(axis, True), x)),
               b.add(Sort(axis, True), x), b.add(ArgSort(axis, True), places)]
    graph = Graph("ranks", [x], results)
    after = share_sorts(graph, Options())
    assert share_sorts(after, Options()) is after
    assert sum(isinstance(n.op, (Sort, ArgSort)) for n in after.nodes()) == 3
    inputs = [values(F32, shape, 5, few)]
    assert_identical(evaluate_graph(after, inputs), evaluate_graph(graph, inputs))
    assert_identical(run_compiled(compiled(graph), inputs), evaluate_graph(graph, inputs))
