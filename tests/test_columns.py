"""Reductions down columns (compiler/lowering/columns.py) against the interpreter of graphs, as machine code and in the loop
interpreter, which checks bounds and races."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.comparing import assert_identical
from tests.compiled import QUIET, compiled, run_compiled
from tilewright import library as lib
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import Alloc, For, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.compute import Reduce
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Iota
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, BOOL, F16, F32, F64, I8, I32, U64, DType
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

CAPS = Caps(vector_bits=128, vector_registers=16)


def reduction(kind: str, shape: tuple[DimLike, ...], axes: tuple[int, ...], dtype: DType = F32, epilogue: bool = True) -> Graph:
    """Of 2 * x, and a bias for each column where an epilogue is asked for: exact on small integers."""
    b = Builder()
    x = b.add(Param("x", dtype, shape))
    bias = b.add(Param("bias", dtype, shape[-1:]))
    arithmetic = dtype is not BOOL
    made = b.add(Reduce(kind, axes), lib.apply(b, "add", x, x) if arithmetic else x)
    if arithmetic and epilogue:
        made = lib.apply(b, "max", made, lib.broadcast(b, bias, made.shape))
    return Graph("reduction", [x, bias], [made])


def inputs_of(graph: Graph, shape: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    least = 0 if graph.params[0].dtype.numpy.kind in "ub" else -2
    return [rng.integers(least, 3, s).astype(p.dtype.numpy) for p, s in zip(graph.params, (shape, shape[-1:]))]


def lowered(graph: Graph) -> Program:
    return lower_program(run_passes(graph, Options(), CAPS, QUIET)[0], CAPS)[0]


def goes_down_columns(program: Program) -> bool:
    return any(isinstance(s, Alloc) and s.buffer.space == "local" for kernel in program.kernels() for s in walk(kernel.body))


def named(shape: tuple[int, ...], symbolic: bool) -> tuple[DimLike, ...]:
    return tuple(symbol(f"s{a}") for a in range(len(shape))) if symbolic else shape


KINDS = st.sampled_from([("sum", F32), ("sum", F64), ("sum", I8), ("max", F32), ("min", I32), ("prod", U64), ("sum", F16),
                         ("max", BF16), ("and", BOOL), ("or", BOOL)])
SHAPES = st.sampled_from([((70, 5), (0,)), ((39, 64), (0,)), ((2, 61, 17), (1,)), ((7, 9, 33), (0, 1)), ((40, 3, 35), (0,)),
                          ((0, 9), (0,)), ((33, 0), (0,)), ((35, 1), (0,)), ((34, 1100), (0,)), ((3, 50, 2, 20), (1, 2)),
                          ((5, 3, 11, 24), (0, 2))])


@pytest.mark.slow
@settings(max_examples=60)
@given(KINDS, SHAPES, st.booleans(), st.integers(0, 3))
def test_natively(kind: tuple[str, DType], case: tuple[tuple[int, ...], tuple[int, ...]], symbolic: bool, seed: int) -> None:
    shape, axes = case
    graph = reduction(kind[0], named(shape, symbolic), axes, kind[1])
    inputs = inputs_of(graph, shape, seed)
    assert_identical(run_compiled(compiled(graph), inputs), evaluate_graph(graph, inputs), signed_zeros=False)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape, axes", [((70, 5), (0,)), ((2, 37, 9), (1,)), ((7, 6, 21), (0, 1)), ((34, 1100), (0,))])
def test_as_loops(shape: tuple[int, ...], axes: tuple[int, ...], symbolic: bool) -> None:
    graph = reduction("sum", named(shape, symbolic), axes)
    inputs = inputs_of(graph, shape)
    program = lowered(graph)
    verify_program(program)
    assert goes_down_columns(program)
    loops = [s for kernel in program.kernels() for s in walk(kernel.body) if isinstance(s, For)]
    assert any(loop.kind == "parallel" for loop in loops) and any(loop.kind == "vector" for loop in loops)
    assert_identical(run_program(program, inputs), evaluate_graph(graph, inputs), signed_zeros=False)


@pytest.mark.parametrize("shape, axes", [((50, 3), (0,)), ((9, 400), (0,)), ((400, 300), (1,))])
def test_left_alone(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Few elements, few rows, and rows."""
    assert not goes_down_columns(lowered(reduction("sum", shape, axes, epilogue=False)))


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape, axes", [((300, 1), (0,)), ((333, 3), (0,)), ((2, 300, 3), (1,)), ((3, 90, 7), (0, 1)),
                                         ((400, 8), (0,)), ((337, 2), (0,))])
def test_rows_of_few_elements_side_by_side(shape: tuple[int, ...], axes: tuple[int, ...], symbolic: bool) -> None:
    """As loops and as machine code; where sizes are symbolic, few and many columns, rows and no element by one program."""
    graph = reduction("sum", named(shape, symbolic), axes)
    inputs = inputs_of(graph, shape)
    program = lowered(graph)
    verify_program(program)
    if shape[-1] > 1:
        assert goes_down_columns(program)
    assert_identical(run_program(program, inputs), evaluate_graph(graph, inputs), signed_zeros=False)
    general = compiled(graph, threads=2)
    others = [(*shape[:-1], columns) for columns in (1, 2, 9, 70, 0)] + [(*shape[:-2], 5, shape[-1])] if symbolic else []
    for sizes in (shape, *others):
        inputs = inputs_of(graph, sizes)
        assert_identical(run_compiled(general, inputs), evaluate_graph(graph, inputs), signed_zeros=False)


@pytest.mark.parametrize("symbolic", [False, True])
def test_rows_that_depend_on_their_column_or_place_are_not_joined(symbolic: bool) -> None:
    """A factor for each column, one for each row, and the number of the column."""
    shape = named((400, 3), symbolic)
    b = Builder()
    x, row, column = b.add(Param("x", F32, shape)), b.add(Param("row", F32, shape[1:])), b.add(Param("column", F32, (shape[0], 1)))
    terms = [lib.apply(b, "mul", x, lib.broadcast(b, y, shape)) for y in (row, column, b.add(Iota(F32, shape, 1)))]
    graph = Graph("factors", [x, row, column], [b.add(Reduce("sum", (0,)), term) for term in terms])
    rng = np.random.default_rng(3)
    inputs = [rng.integers(-2, 3, s).astype(np.float32) for s in ((400, 3), (3,), (400, 1))]
    assert_identical(run_compiled(compiled(graph), inputs), evaluate_graph(graph, inputs), signed_zeros=False)


@pytest.mark.parametrize("columns", [20, 300, 1024, 2500])
def test_the_bits_do_not_depend_on_threads_sizes_or_blocks(columns: int) -> None:
    rng = np.random.default_rng(columns)
    x, bias = rng.standard_normal((137, columns)).astype(np.float32), np.full(columns, -1e9, np.float32)
    expected = run_compiled(compiled(reduction("sum", x.shape, (0,))), [x, bias])
    assert_identical(run_compiled(compiled(reduction("sum", x.shape, (0,)), threads=2), [x, bias]), expected)
    general = compiled(reduction("sum", (symbol("N"), symbol("C")), (0,)), threads=2)
    assert_identical(run_compiled(general, [x, bias]), expected)
    wide = np.tile(x, 3)
    full, = run_compiled(general, [wide, np.full(3 * columns, -1e9, np.float32)])
    assert_identical([full[columns:2 * columns]], expected)


@pytest.mark.parametrize("kind", ["max", "min", "sum"])
def test_not_a_number_and_infinities(kind: str) -> None:
    x = np.random.default_rng(1).standard_normal((45, 20)).astype(np.float32)
    x[7, ::4], x[11, 1::5], x[44, 2::5], x[13, 3::5] = np.nan, np.inf, -np.inf, -np.inf
    x[12, 3::5] = np.inf
    graph = reduction(kind, x.shape, (0,), epilogue=False)
    inputs = [x, np.zeros(20, np.float32)]
    with np.errstate(invalid="ignore"):
        expected, = evaluate_graph(graph, inputs)
    # sums in another order
    np.testing.assert_allclose(run_compiled(compiled(graph), inputs)[0], expected, rtol=1e-5)
