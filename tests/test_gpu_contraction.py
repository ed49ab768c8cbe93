"""Matrix products on a GPU's matrix units, against the interpreter of graphs: in the loop interpreter, and as CUDA source in the emulation.

All products of a test are results of one graph, so that their kernels are one source.
"""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import GPU, QUIET
from tests.lowering_checks import lowered_for_gpu as lowered
from tilewright import library as lib
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, ceildiv, symbol
from tilewright.ir.errors import ArgumentError, CompileError
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import MatmulTile, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.compute import Dot, PackedDot
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, F16, F32, F64, I8, I32, U8, DType
from tilewright.lowering.gpu_contraction import gpu_tile
from tilewright.lowering.gpu_tiles import plain_tile
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes
from tilewright.runtime import cuda_array
from tilewright.runtime.buffer import TensorInfo
from tilewright.tiles import gpu_panel_columns

# rows, steps, columns: whole tiles, edges on each side, one row, one step, steps that 16 bytes do not hold, several stages, few columns
SIZES = [(64, 64, 64), (70, 72, 70), (1, 40, 33), (33, 1, 64), (5, 37, 9), (130, 200, 96), (32, 160, 2), (65, 8, 129)]


def products(dtype: DType, sizes: list[tuple[int, int, int]]) -> tuple[Graph, list[np.ndarray]]:
    """Products with small whole numbers, so that sums are exact in any order; with a bias and a maximum behind each."""
    b = Builder()
    rng = np.random.default_rng(1)
    params, results, values = [], [], []
    for number, (m, k, n) in enumerate(sizes):
        shapes = ((m, k), (k, n), (n,))
        x, w, bias = (b.add(Param(f"{name}{number}", dtype, shape)) for name, shape in zip("xwb", shapes))
        total = lib.apply(b, "add", lib.matmul(b, x, w), bias)
        results.append(lib.apply(b, "max", total, lib.constant(b, -2.0, dtype)))
        params += [x, w, bias]
        values += [rng.integers(-2, 3, shape).astype(dtype.numpy) for shape in shapes]
    return Graph("products", params, results), values


def check(graph: Graph, values: list[np.ndarray], count: int, multiprocessors: int | None = None) -> Program:
    program = lowered(graph, multiprocessors)
    on_units = [k for k in program.kernels() if any(isinstance(s, MatmulTile) for s in walk(k.body))]
    assert len(on_units) == count
    expected = evaluate_graph(graph, values)
    for found in (run_program(program, values), EmulatedPrograms([program]).run(0, values)):
        for x, y in zip(expected, found, strict=True):
            np.testing.assert_array_equal(y, x)
    return program




@needs_compiler
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_products_of_every_kind_of_size(dtype: DType) -> None:
    sizes = SIZES if dtype == F16 else SIZES[1:4]
    graph, values = products(dtype, sizes)
    check(graph, values, len(sizes))


def test_batches_and_open_sizes() -> None:
    b = Builder()
    x = b.add(Param("x", F16, (symbol("B"), symbol("M"), 24)))
    y = b.add(Param("y", F16, (symbol("B"), 24, symbol("N", 1))))
    graph = Graph("batched", [x, y], [lib.matmul(b, x, y)])
    program = lowered(graph)
    rng = np.random.default_rng(2)
    for batch, m, n in ((2, 35, 40), (1, 1, 1), (3, 0, 5), (0, 4, 4)):
        values = [rng.integers(-2, 3, shape).astype(np.float16) for shape in ((batch, m, 24), (batch, 24, n))]
        np.testing.assert_array_equal(run_program(program, values)[0], evaluate_graph(graph, values)[0])


def test_open_depth() -> None:
    b = Builder()
    x, y = b.add(Param("x", F16, (5, symbol("K", 1)))), b.add(Param("y", F16, (symbol("K", 1), 6)))
    graph = Graph("deep", [x, y], [lib.matmul(b, x, y)])
    program = lowered(graph)
    rng = np.random.default_rng(3)
    for depth in (1, 31, 32, 75):
        values = [rng.integers(-2, 3, shape).astype(np.float16) for shape in ((5, depth), (depth, 6))]
        np.testing.assert_array_equal(run_program(program, values)[0], evaluate_graph(graph, values)[0])


@needs_compiler
def test_what_is_not_finite_stays_in_its_rows_and_columns() -> None:
    graph, values = products(F16, [(40, 72, 40)])
    values[0][3, 71], values[0][39, 0], values[1][5, 39] = np.nan, np.inf, -np.inf
    program = lowered(graph)
    with np.errstate(invalid="ignore"):
        expected, = evaluate_graph(graph, values)
    for found in (run_program(program, values), EmulatedPrograms([program]).run(0, values)):
        np.testing.assert_array_equal(found[0], expected)


def test_sums_are_of_float32() -> None:
    """More than 2048 ones: float16 would stop counting."""
    b = Builder()
    x, y = b.add(Param("x", F16, (1, 2112))), b.add(Param("y", F16, (2112, 16)))
    graph = Graph("ones", [x, y], [lib.matmul(b, x, y)])
    ones = [np.ones((1, 2112), np.float16), np.ones((2112, 16), np.float16)]
    np.testing.assert_array_equal(run_program(lowered(graph), ones)[0], np.full((1, 16), 2112, np.float16))


def test_float32_is_not_computed_with_fewer_bits() -> None:
    b = Builder()
    x, y = b.add(Param("x", F32, (64, 64))), b.add(Param("y", F32, (64, 64)))
    program = lowered(Graph("plain", [x, y], [lib.matmul(b, x, y)]))
    assert not any(isinstance(s, MatmulTile) for k in program.kernels() for s in walk(k.body))


def integer_products(sizes: list[tuple[int, int, int]], left: DType, right: DType) -> tuple[Graph, list[np.ndarray]]:
    b = Builder()
    rng = np.random.default_rng(4)
    params, results, values = [], [], []
    for number, (m, k, n) in enumerate(sizes):
        x, w = b.add(Param(f"x{number}", left, (m, k))), b.add(Param(f"w{number}", right, (k, n)))
        results.append(b.add(Dot((1,), (0,), result=I32), x, w))
        params += [x, w]
        values += [rng.integers(np.iinfo(t.numpy).min, np.iinfo(t.numpy).max, shape, dtype=t.numpy, endpoint=True)
                   for t, shape in ((left, (m, k)), (right, (k, n)))]
    return Graph("integers", params, results), values


@needs_compiler
@pytest.mark.parametrize("left", [U8, I8])
def test_products_of_bytes(left: DType) -> None:
    sizes = [(40, 128, 70), (33, 80, 64), (1, 5, 9), (65, 67, 32)]
    graph, values = integer_products(sizes if left == U8 else sizes[1:3], left, I8)
    check(graph, values, len(graph.results))


@needs_compiler
@pytest.mark.parametrize("dtype", [F16, U8, I8])
def test_matrices_at_run_time_are_read_as_they_are(dtype: DType) -> None:
    """One kernel a product: edges of rows and columns, steps that 16 bytes of the left operand do not hold, steps cut into parts."""
    sizes = {F16: [(5, 150, 272)], U8: [(5, 150, 272), (33, 1440, 144)], I8: [(20, 144, 160)]}[dtype]
    graph, values = products(F16, sizes) if dtype == F16 else integer_products(sizes, dtype, I8)
    program = check(graph, values, len(sizes))
    assert len(program.kernels()) == len(sizes) + (dtype == U8)  # whose last product has its parts added up
    if dtype != U8:
        high, values = products(F16, [(70, 160, 144)]) if dtype == F16 else integer_products([(70, 160, 144)], I8, I8)
        check(high, values, 1, multiprocessors=1)  # tiles of 128 x 128


def test_batches_of_matrices_that_are_read_as_they_are() -> None:
    b = Builder()
    x, w = b.add(Param("x", I8, (symbol("B"), symbol("M"), 144))), b.add(Param("w", I8, (symbol("B"), 144, 160)))
    graph = Graph("batched", [x, w], [b.add(Dot((2,), (1,), (0,), (0,), result=I32), x, w)])
    program, rng = lowered(graph), np.random.default_rng(5)
    assert len(program.kernels()) == 1
    for batch, m in ((2, 3), (1, 0)):
        values = [rng.integers(-128, 128, shape).astype(np.int8) for shape in ((batch, m, 144), (batch, 144, 160))]
        np.testing.assert_array_equal(run_program(program, values)[0], evaluate_graph(graph, values)[0])


def test_matrices_of_bytes_are_refused_where_no_units_read_them() -> None:
    b = Builder()
    x, w = b.add(Param("x", I8, (4, 144))), b.add(Param("w", I8, (1, 144, 160)))
    graph = Graph("plain", [x, w], [b.add(PackedDot(0, 160, step=4), x, w)])
    fused, _ = run_passes(graph, Options(), Caps(), QUIET)
    with pytest.raises(CompileError, match=r"no kernel of this target takes i8\[1, 144, 160\] that is no words"):
        lower_program(fused, Caps())
    with pytest.raises(CompileError, match="dtypes differ|do not fit"):
        PackedDot(0, 160, step=2).infer(x.tensor, w.tensor)


def test_high_tiles_where_there_is_work_for_all_multiprocessors() -> None:
    """What large matrices get, at a size that the emulation runs."""
    graph, values = products(F16, [(130, 136, 140)])
    program = check(graph, values, 1, multiprocessors=1)
    assert {k.body[0].body[-1].extent for k in program.kernels() if any(isinstance(s, MatmulTile) for s in walk(k.body))} == {8}


@pytest.mark.parametrize("rows, columns, panel, tile", [
    (symbol("M"), 4096, 128, (64, 128)),            # any number: wide panels, and tiles that few rows do not leave empty
    (symbol("M"), 768, 64, (64, 64)),               # too few columns for all multiprocessors, unless there are many rows
    (symbol("M", 0, 64), 4096, 64, (64, 64)),       # few by their bound
    (symbol("M", 0, 8192), 4096, 128, (128, 128)),  # many by their bound
    (4096, symbol("N"), 128, (128, 128)), (symbol("M"), symbol("N"), 64, (64, 64))])
def test_tiles_of_open_sizes(rows: DimLike, columns: DimLike, panel: int, tile: tuple[int, int]) -> None:
    assert gpu_panel_columns(columns, rows, F16, GPU) == panel
    b, panels = Builder(), ceildiv(columns, panel)
    product = b.add(PackedDot(0, columns), b.add(Param("x", F16, (rows, 512))), b.add(Param("w", F16, (panels, 512, panel))))
    found = gpu_tile(product, product, GPU)
    assert found is not None and (found.rows, found.columns) == tile
    assert found.parts == 1


@pytest.mark.parametrize("rows, high", [(symbol("M"), 64), (4096, 128), (symbol("M", 0, 16), 16)])
def test_plain_tiles_of_open_sizes(rows: DimLike, high: int) -> None:
    b = Builder()
    product = b.add(PackedDot(0, 4096), b.add(Param("x", F32, (rows, 512))), b.add(Param("w", F32, (64, 512, 64))))
    found = plain_tile(product, GPU)
    assert found is not None and found.rows == high


@pytest.mark.parametrize("rows, tile", [(8, (16, 64)), (3136, (16, 64)), (8192, (64, 256)), (65536, (128, 256))])
def test_threads_of_plain_tiles(rows: int, tile: tuple[int, int]) -> None:
    """Where tiles are low there are fewer threads, not fewer rows of each."""
    b = Builder()
    product = b.add(PackedDot(0, 64), b.add(Param("x", F32, (rows, 64))), b.add(Param("w", F32, (1, 64, 64))))
    found = plain_tile(product, GPU)
    assert found is not None and (found.rows, found.threads) == tile and found.own_rows >= 4


@pytest.mark.parametrize("shared, rows, stages", [(166912, 256, 2), (101376, 256, 1), (49152, 128, 1)])
def test_plain_tiles_fit_into_shared_memory(shared: int, rows: int, stages: int) -> None:
    b = Builder()
    product = b.add(PackedDot(0, 8), b.add(Param("x", F64, (65536, 64))), b.add(Param("w", F64, (1, 64, 8))))
    found = plain_tile(product, replace(GPU, shared_bytes=shared))
    assert found is not None and (found.rows, found.stages) == (rows, stages)


def test_tensors_that_16_bytes_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of 16 bytes from elsewhere would end the process's context."""
    class Tensor:
        def __init__(self, address: int) -> None:
            self.__cuda_array_interface__ = {"typestr": "<f2", "shape": (8,), "data": (address, False), "version": 3}

    monkeypatch.setattr(cuda_array._cuda, "device_of", lambda address: 0)
    info = TensorInfo("x", np.dtype(np.float16), (8,))
    assert cuda_array.import_tensor("x", info, Tensor(4096), 0).address == 4096
    with pytest.raises(ArgumentError, match="the tensor begins 2 bytes after a multiple of 16"):
        cuda_array.import_tensor("x", info, Tensor(4098), 0)
