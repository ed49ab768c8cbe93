"""Edges of register tiles (compiler/lowering/contraction.py): the last tile begins earlier and stores its own rows only.

Against the interpreter of graphs, as machine code and in the loop interpreter, which checks bounds and races: rows fewer than a
tile, a tile, and some more; columns that no panel divides; results within a border; operands that the epilogue reads and replaces;
infinities and NaN, which stay in their row."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tests.comparing import assert_identical
from tests.compiled import QUIET, run_compiled, target_of
from tilewright import library as lib
from tilewright.backends.llvm.backend import LlvmBackend
from tilewright.build import fill_segment
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import For, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.ops.compute import Dot
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Pad
from tilewright.ir.parser import parse
from tilewright.ir.program import Program
from tilewright.ir.types import F32, F64, I32, DType
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes
from tilewright.runtime.executable import Executable

BACKEND = LlvmBackend(target_of("cpu"))
CAPS = BACKEND.capabilities
ROWS = (1, 2, 3, 5, 7, 8, 11, 12, 13, 14, 15, 16, 17, 23, 29, 41)


def product_of(rows: DimLike, depth: int, columns: int, dtype: DType = F32, border: bool = False, residual: bool = False) -> Graph:
    """max(x @ w + bias, -3), plus a value where it is `residual`, within a border of ones."""
    b = Builder()
    rng = np.random.default_rng(3)
    shape = (2, rows, 3, depth) if border else (rows, depth)
    x = b.add(Param("x", dtype, shape))
    w = lib.constant(b, rng.integers(-3, 4, (depth, columns)).astype(dtype.numpy))
    bias = lib.constant(b, rng.integers(-3, 4, columns).astype(dtype.numpy))
    params = [x]
    y = lib.apply(b, "add", b.add(Dot((len(shape) - 1,), (0,), (), ()), x, w), bias)
    y = lib.apply(b, "max", y, lib.constant(b, -3, dtype))
    if residual:
        params.append(b.add(Param("z", dtype, y.shape)))
        y = lib.apply(b, "add", y, lib.apply(b, "neg", params[-1]))
    if border:
        y = b.add(Pad((0, 1, 2, 0), (0, 1, 2, 0)), y, lib.constant(b, 1, dtype))
    return Graph("edges", params, [y])


def inputs_of(graph: Graph, rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(rows)
    shapes = [tuple(n if isinstance(n, int) else rows for n in p.shape) for p in graph.params]
    return [rng.integers(-4, 5, shape).astype(p.dtype.numpy) for p, shape in zip(graph.params, shapes)]


def program_of(graph: Graph) -> Program:
    return lower_program(run_passes(graph, Options(), CAPS, QUIET)[0], CAPS)[0]


def executable_of(program: Program, threads: int) -> Executable:
    code = BACKEND.compile(program)
    return Executable.from_object(code.object_code, fill_segment(program), symbol=code.symbol, threads=threads)


@pytest.mark.parametrize("dtype", [F32, F64, I32], ids=str)
@pytest.mark.parametrize(("columns", "border", "residual"), [
    (1, False, False), (8, False, False), (13, False, True), (24, True, False), (37, True, True)])
def test_rows_of_every_number(dtype, columns, border, residual):
    graph = product_of(symbol("rows", 1), 5, columns, dtype, border, residual)
    program = program_of(graph)
    executables = [executable_of(program, threads) for threads in (1, 2)]
    for rows in ROWS:
        inputs = inputs_of(graph, rows)
        expected = evaluate_graph(graph, inputs)
        for executable in executables:
            assert_identical(run_compiled(executable, inputs), expected, signed_zeros=False)
        if rows in (1, 5, 17):
            assert_identical(run_program(program, inputs), expected, signed_zeros=False)


@pytest.mark.parametrize("rows", ROWS)
def test_rows_that_are_known(rows):
    graph = product_of(rows, 6, 20)
    program, inputs = program_of(graph), inputs_of(graph, rows)
    expected = evaluate_graph(graph, inputs)
    assert_identical(run_compiled(executable_of(program, 1), inputs), expected, signed_zeros=False)
    assert_identical(run_program(program, inputs), expected, signed_zeros=False)


def test_a_row_keeps_its_infinities_and_has_the_same_bits_in_any_tile():
    rng = np.random.default_rng(1)
    graph = product_of(symbol("rows", 1), 50, 24)
    executable = executable_of(program_of(graph), 1)
    x = rng.standard_normal((41, 50)).astype(np.float32)
    x[7, 3], x[20, 5], x[40, 0] = np.nan, np.inf, -np.inf
    whole = run_compiled(executable, [x])[0]
    assert np.isnan(whole[7]).all() and not np.isfinite(whole[20]).all()
    assert np.isfinite(np.delete(whole, [7, 20, 40], axis=0)).all()
    for rows in ROWS:
        assert_identical(run_compiled(executable, [x[:rows]]), [whole[:rows]])


def test_one_loop_over_the_contraction_serves_whole_tiles_and_edges():
    program = program_of(product_of(symbol("rows", 5), 64, 48))  # never few, for which there are lower tiles
    kernel = next(k for k in program.kernels() if "dot" in k.name)
    sums = [s for s in walk(kernel.body) if isinstance(s, For) and s.kind == "serial" and str(s.extent) == "k"]
    assert len(sums) == 1, format_kernel(kernel)


@pytest.mark.parametrize(("width", "columns"), [(1, 3), (2, 5), (4, 9), (6, 13), (12, 25), (20, 41)])
def test_panels_that_were_not_packed_for_the_target(width: int, columns: int) -> None:
    """The text of a graph may hold panels of any width; vectors divide it."""
    panels = -(-columns // width)
    graph = parse(f"""graph @g(%x: f32[7, 10], %p: f32[{panels}, 10, {width}]) -> (a) {{
  %0: f32[7, {columns}] = packed_dot %x, %p {{columns={columns}, batch=0}}
  return %0
}}
""")
    rng = np.random.default_rng(0)
    x, p = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((7, 10), (panels, 10, width)))
    np.testing.assert_array_equal(tw.compile(graph)(x, p), (x @ np.concatenate(list(p), axis=1))[:, :columns])
