"""Blocks of contractions (compiler/tiles.py, compiler/lowering/contraction.py): sums in parts, several places of a matrix read
at a time, prefetches. For a machine with tiny caches, so that small matrices take every way; against the interpreter of
graphs, as machine code and in the loop interpreter, which checks bounds, races and what nothing wrote."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.comparing import assert_close, assert_identical
from tests.compiled import QUIET, compiled, run_compiled, target_of
from tilewright import library as lib
from tilewright.backends.llvm.backend import LlvmBackend
from tilewright.build import fill_segment
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, product, symbol
from tilewright.ir.errors import ParseError, VerifyError
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import Kernel, Prefetch, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.loop_verify import verify_kernel, verify_program
from tilewright.ir.ops.compute import Conv, Dot
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, F16, F32, F64, DType
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes
from tilewright.runtime.executable import Executable
from tilewright.tiles import Blocks, choose_blocks, choose_tile, panel_columns

CAPS = Caps(vector_bits=128, vector_registers=16, level1_bytes=1024, level2_bytes=4096)
TARGET = replace(target_of("cpu"), level1_bytes=1024, level2_bytes=4096)


def matrix_product(left: tuple[DimLike, ...], right: tuple[DimLike, ...], dtype: DType = F32, known: bool = False,
                   residual: bool = False) -> Graph:
    """left @ right with batch axes, where `known` of a constant right operand; with an epilogue that reads the left operand
    once more where it is `residual`."""
    b = Builder()
    x = b.add(Param("x", dtype, left))
    params = [x]
    if known:
        sizes = [n for n in right if isinstance(n, int)]
        w: Node = lib.constant(b, numbers(np.random.default_rng(9), tuple(sizes), dtype))
    else:
        w = b.add(Param("w", dtype, right))
        params.append(w)
    batch = tuple(range(len(left) - 2))
    y = b.add(Dot((len(left) - 1,), (len(right) - 2,), batch, batch), x, w)
    if residual:
        y = lib.apply(b, "max", lib.apply(b, "add", y, x), lib.constant(b, -3.0, dtype))
    return Graph("product", params, [y])


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Small integers, of which sums are exact."""
    return rng.integers(-1 if dtype.bits == 16 else -4, 2 if dtype.bits == 16 else 5, shape).astype(dtype.numpy)


def inputs_of(graph: Graph, sizes: dict[str, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [numbers(rng, tuple(n if isinstance(n, int) else sizes[str(n)] for n in p.shape), p.dtype) for p in graph.params]


def lowered(graph: Graph) -> Program:
    return lower_program(run_passes(graph, Options(), CAPS, QUIET)[0], CAPS)[0]


def compiled_for_tiny_caches(graph: Graph, threads: int) -> Executable:
    backend = LlvmBackend(TARGET)
    program, _ = lower_program(run_passes(graph, Options(), backend.capabilities, QUIET)[0], backend.capabilities)
    code = backend.compile(program)
    return Executable.from_object(code.object_code, fill_segment(program), symbol=code.symbol, threads=threads)


def agree(graph: Graph, inputs: list[np.ndarray], loops: bool = True) -> None:
    expected = evaluate_graph(graph, inputs)
    for threads in (1, 2):
        assert_identical(run_compiled(compiled_for_tiny_caches(graph, threads), inputs), expected, signed_zeros=False)
    if loops:
        program = lowered(graph)
        verify_program(program)
        assert_identical(run_program(program, inputs), expected, signed_zeros=False)


def allocations(program: Program) -> set[str]:
    return {s.buffer.name for kernel in program.kernels() for s in walk(kernel.body) if hasattr(s, "buffer")
            and not isinstance(s.buffer, str)}


def prefetches(program: Program) -> int:
    return sum(isinstance(s, Prefetch) for kernel in program.kernels() for s in walk(kernel.body))


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(7, 150, 9), (13, 73, 33), (30, 129, 17), (6, 64, 16)])
def test_sums_in_parts(rows: int, depth: int, columns: int, dtype: DType) -> None:
    graph = matrix_product((rows, depth), (depth, columns), dtype)
    agree(graph, inputs_of(graph, {}))


def test_long_contractions_are_summed_in_parts_and_short_ones_are_not() -> None:
    assert "sums" in allocations(lowered(matrix_product((30, 150), (150, 40))))
    assert "sums" not in allocations(lowered(matrix_product((30, 60), (60, 40))))
    assert prefetches(lowered(matrix_product((30, 60), (60, 40)))) > 0


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("known", [False, True])
def test_several_places_at_a_time(rows: int, known: bool) -> None:
    graph = matrix_product((rows, 301), (301, 40), known=known)
    agree(graph, inputs_of(graph, {}))


@pytest.mark.parametrize("dtype", [F32, F64, F16], ids=str)
@pytest.mark.parametrize(("rows", "depth", "columns"), [(7, 301, 48), (8, 128, 41), (8, 1000, 12), (9, 257, 33), (12, 190, 64)])
def test_two_tiles_meet_each_part_of_a_panel(rows: int, depth: int, columns: int, dtype: DType) -> None:
    graph = matrix_product((rows, depth), (depth, columns), dtype, known=True)
    agree(graph, inputs_of(graph, {}), loops=dtype != F64 or rows in {7, 8})  # two elements at a time: slow to interpret
    program = lowered(graph)
    assert "sums" in allocations(program) and prefetches(program) > 0


def test_eight_rows_are_two_tiles_where_one_has_too_few_accumulators() -> None:
    wide = Caps(vector_bits=512, vector_registers=32)
    for caps, rows, size in ((Caps(), 8, (4, 24)), (Caps(), 7, (4, 24)), (Caps(), 6, (6, 16)), (Caps(), 4, (4, 24)), (wide, 8, (8, 48))):
        panel = panel_columns(4096, rows, F32, caps, 4096)
        tile = choose_tile(panel, rows, F32, caps)
        blocks = choose_blocks(1, rows, 4096, 4096, tile, F32, caps)
        assert (tile.rows, tile.columns) == size
        assert (blocks.in_order, blocks.rows, blocks.streams) == ((True, 2, 1) if tile.rows < rows else (False, 1, 4))
    assert panel_columns(64, 8, F32, Caps(), 64) == 16  # near: all panels stay in the cache anyway


def test_the_left_operand_is_turned_for_several_rows_only() -> None:
    assert len(lowered(matrix_product((4, 301), (301, 40), known=True)).kernels()) == 2
    assert len(lowered(matrix_product((1, 301), (301, 40), known=True)).kernels()) == 1
    assert len(lowered(matrix_product((4, 30), (30, 40), known=True)).kernels()) == 1


@pytest.mark.parametrize("rows", [1, 4, 20])
def test_the_epilogue_may_read_the_left_operand(rows: int) -> None:
    size = 260 if rows < 20 else 100
    graph = matrix_product((rows, size), (size, size), residual=True)
    agree(graph, inputs_of(graph, {}))


@pytest.mark.parametrize("sizes", [{"m": 0, "k": 5, "n": 7}, {"m": 1, "k": 1, "n": 1}, {"m": 9, "k": 0, "n": 4}, {"m": 5, "k": 64, "n": 0},
                                   {"m": 31, "k": 200, "n": 65}, {"m": 6, "k": 128, "n": 16}])
def test_symbolic_sizes(sizes: dict[str, int]) -> None:
    m, k, n = symbol("m"), symbol("k"), symbol("n")
    graph = matrix_product((m, k), (k, n))
    agree(graph, inputs_of(graph, sizes))


@given(data=st.data())
@settings(max_examples=25)
def test_any_sizes(data: st.DataObject) -> None:
    draw = data.draw
    batch = draw(st.sampled_from([(), (), (1,), (3,), (2, 2)]))
    m, k, n = draw(st.integers(1, 40)), draw(st.integers(1, 300)), draw(st.integers(1, 70))
    names = {"M": m, "K": k, "N": n}
    shown = [symbol(name, 1) if draw(st.booleans()) else size for name, size in names.items()]
    graph = matrix_product((*batch, shown[0], shown[1]), (*batch, shown[1], shown[2]))
    agree(graph, inputs_of(graph, names), loops=m * k * n * int(product(batch)) < 60_000)


@pytest.mark.parametrize(("rows", "depth"), [(3, 300), (20, 150)])
def test_what_is_not_finite_stays_in_its_place(rows: int, depth: int) -> None:
    graph = matrix_product((rows, depth), (depth, 24))
    x, w = inputs_of(graph, {})
    x[1, 7], x[2, depth - 1], w[5, 3] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        expected = evaluate_graph(graph, [x, w])[0]
    found, = run_compiled(compiled_for_tiny_caches(graph, 1), [x, w])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("caps", [Caps(), CAPS, Caps(vector_bits=512, vector_registers=32, level2_bytes=1 << 20)], ids=["avx2", "tiny", "avx512"])
def test_blocks_fit_the_memory_they_are_meant_for(caps: Caps, dtype: DType) -> None:
    for rows, depth, columns in ((100, 500, 300), (2048, 2048, 2048), (64, 1000, 10)):
        panel = panel_columns(columns, rows, dtype, caps, depth)
        tile = choose_tile(panel, rows, dtype, caps)
        blocks = choose_blocks(1, rows, columns, depth, tile, dtype, caps)
        steps = blocks.depth if blocks.depth != 0 else depth
        assert isinstance(steps, int) and isinstance(blocks.rows, int)
        assert steps <= 72 or steps * panel * dtype.bytes <= 2.3 * caps.level1_bytes
        assert blocks.rows == 1 or blocks.rows * tile.rows * steps * dtype.bytes <= caps.level2_bytes // 2


def test_rows_of_a_tile_divide_rows_that_lie_evenly() -> None:
    assert [choose_tile(8, 1152, F32, Caps(), None, run).rows for run in (96, 90, 0, symbol("w", 1))] == [12, 10, 10, 10]
    assert [choose_tile(16, 1200, F32, Caps(), None, run).rows for run in (96, 75, 0)] == [6, 5, 6]
    assert [choose_tile(8, symbol("n", 1), F32, Caps(), None, run).rows for run in (96, 90, 0, symbol("w", 1))] == [12, 10, 10, 10]


@pytest.mark.parametrize("shape, out, strides", [((1, 9, 25, 3), 8, (2, 2)), ((2, 6, 14, 4), 8, (1, 1)), ((1, 5, 26, 3), 12, (1, 2)),
                                                 ((1, 4, 7, 5), 24, (1, 1))])
def test_convolutions_of_even_and_uneven_rows(shape: tuple[int, ...], out: int, strides: tuple[int, int]) -> None:
    b = Builder()
    x, w = b.add(Param("x", F32, shape)), b.add(Param("w", F32, (3, 3, shape[-1], out)))
    graph = Graph("g", [x, w], [b.add(Conv(strides, ((0, 0), (0, 0)), (1, 1), (1, 1), 1, True), x, w)])
    inputs = inputs_of(graph, {})
    assert_close(run_compiled(compiled(graph), inputs), evaluate_graph(graph, inputs))


def test_blocks_leave_enough_for_threads_to_share() -> None:
    tile = choose_tile(16, 128, F32, Caps())
    assert choose_blocks(1, 128, 384, 384, tile, F32, Caps()) == Blocks(13, 3, 0, 1)
    assert choose_blocks(12, 128, 128, 32, tile, F32, Caps()).panels == 8


PREFETCHING = """\
kernel @ahead[n](%x: in f32[n], %y: out f32[n]) {
  for %i in 0..n parallel {
    prefetch %x[i + 16]
    %y[i] = load %x[i]
  }
}
"""


def test_a_prefetch_is_text_and_changes_nothing() -> None:
    kernel = parse_kernel(PREFETCHING)
    assert format_kernel(kernel) == PREFETCHING
    verify_kernel(kernel)


@pytest.mark.parametrize(("before", "after", "message"), [
    ("%x[i + 16]", "%z[0]", "no buffer %z is known here"),
    ("%x[i + 16]", "%x", "expected '['"),
])
def test_a_prefetch_names_a_buffer(before: str, after: str, message: str) -> None:
    with pytest.raises(ParseError, match=message.replace("[", r"\[")):
        parse_kernel(PREFETCHING.replace(before, after))


def test_registers_are_not_prefetched() -> None:
    text = PREFETCHING.replace("    prefetch %x[i + 16]\n", "    alloc %r: f32[4] register\n    prefetch %r[0]\n")
    kernel: Kernel = parse_kernel(text)
    with pytest.raises(VerifyError, match="prefetch of %r, which is no memory but registers"):
        verify_kernel(kernel)
