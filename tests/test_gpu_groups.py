"""Products of four warps on Hopper (wgmma) in a pipeline, against the interpreter of graphs: in the loop interpreter, which copies as early
as it may, and as CUDA source in the emulation, which copies as late as it may, reads operands as descriptors say and faults where a wait
or a fence is missing."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
from msgspec.structs import replace

from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.emulated import emulate
from tests.lowering_checks import lowered_for_gpu
from tests.test_gpu_contraction import integer_products, products
from tests.test_gpu_floats8 import product_of
from tests.test_gpu_quantized import layer
from tilewright import library as lib
from tilewright.backends.cuda.backend import CudaBackend, capabilities_of
from tilewright.backends.cuda.emit import emit_module
from tilewright.backends.cuda.emit_pipeline import multiplying_registers
from tilewright.backends.cuda.emulate import EmulationError
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, evaluate, symbol
from tilewright.ir.errors import CompileError, IndexFailure, VerifyError
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import Alloc, For, MatmulTile, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.loop_verify import verify_kernel
from tilewright.ir.ops.compute import FLOATS8, PackedDot
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Launch, Program
from tilewright.ir.types import BF16, F16, F32, I8, I32, U8, DType, TensorType
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.passes.fuse import fuse
from tilewright.tiles import group_panel_columns, group_tile

pytestmark = needs_compiler

HOPPER = capabilities_of("sm_90a")
lowered = partial(lowered_for_gpu, architecture="sm_90a")


def tiles(program: Program) -> list[tuple[int, ...]]:
    """Of each kernel that multiplies tiles the rows and columns of a block; of warps that multiply alone 0."""
    found = []
    for kernel in program.kernels():
        made = [s for s in walk(kernel.body) if isinstance(s, MatmulTile)]
        sums = [s.buffer.shape for s in walk(kernel.body) if isinstance(s, Alloc) and s.buffer.space == "fragment"]
        found += [(sums[0][0] * sums[0][1], sums[0][2]) if s.grouped else (0,) for s in made[:1]]
    return found


def whole_numbers(dtype: DType, *shape: int) -> np.ndarray:
    return np.random.default_rng(6).integers(-2, 3, shape).astype(dtype.numpy)


# one graph a tile, by the number of multiprocessors: rounds that are no whole number, fewer and more of them than there are stages; edges on
# both sides, several tiles on both
CASES = [(1, (128, 256), products(F16, [(130, 136, 400)])), (2, (128, 128), products(BF16, [(100, 456, 192)])),
         (4, (64, 128), products(BF16, [(66, 320, 136)]))]


def product_of_floats8(dtype: DType) -> tuple[Graph, list[np.ndarray]]:
    """Of an open number of rows."""
    graph = product_of(dtype, dtype, symbol("M"), 272, 136)
    return graph, [np.random.default_rng(3).integers(-4, 5, shape).astype(dtype.numpy) for shape in ((66, 272), (272, 136))]


def quantized(left: DType) -> tuple[Graph, list[np.ndarray]]:
    """A layer, whose weights are packed at compile time."""
    shape = np.iinfo(left.numpy)
    return layer(left, U8, 66, 400, 200, True), [np.random.default_rng(5).integers(shape.min, shape.max, (66, 400), left.numpy)]


# bytes of each kind, with rounds of 128 steps that are not whole
BYTES = [(4, (64, 128), integer_products([(66, 272, 136)], U8, I8)), (1, (128, 256), integer_products([(66, 144, 200)], I8, I8)),
         (2, (128, 128), product_of_floats8(FLOATS8[0])), (2, (128, 128), product_of_floats8(FLOATS8[1])),
         (4, (64, 128), quantized(U8)), (4, (64, 128), quantized(I8))]


@pytest.mark.parametrize("cases", [CASES, BYTES], ids=["16 bits", "bytes"])
def test_products(cases: list[tuple[int, tuple[int, int], tuple[Graph, list[np.ndarray]]]]) -> None:
    programs = [lowered(graph, multiprocessors) for multiprocessors, _, (graph, _) in cases]
    emulated = EmulatedPrograms(programs, architecture="sm_90a")
    for number, (program, (_, tile, (graph, values))) in enumerate(zip(programs, cases, strict=True)):
        assert set(tiles(program)) == {tile}
        np.testing.assert_array_equal(emulated.run(number, values)[0], evaluate_graph(graph, values)[0])


@pytest.mark.parametrize("case", [products(F16, [(66, 328, 136)]), integer_products([(66, 144, 136)], U8, I8)], ids=["f16", "bytes"])
def test_in_the_interpreter(case: tuple[Graph, list[np.ndarray]]) -> None:
    graph, values = case
    program = lowered(graph, 4)
    assert tiles(program) == [(64, 128)]
    np.testing.assert_array_equal(run_program(program, values)[0], evaluate_graph(graph, values)[0])


@pytest.mark.parametrize("rows", [symbol("M", 0, 512), symbol("M")])
def test_open_sizes(rows: DimLike) -> None:
    b = Builder()
    x = b.add(Param("x", BF16, (2, rows, 136)))
    graph = Graph("rows", [x], [lib.matmul(b, x, lib.constant(b, whole_numbers(BF16, 2, 136, 240)))])
    program = lowered(graph, 1)
    emulated = EmulatedPrograms([program], architecture="sm_90a")
    assert len(program.kernels()) == 1 and tiles(program) != [(0,)]  # the constant lies in squares
    for count in (0, 1, 129):
        values = [whole_numbers(BF16, 2, count, 136)]
        np.testing.assert_array_equal(emulated.run(0, values)[0], evaluate_graph(graph, values)[0])


def test_where_they_are_chosen() -> None:
    """For sm_90a alone; nor where the source serves later architectures as well, or rows do not lie in pieces of 16 bytes."""
    assert [name for name in ("sm_80", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_120") if capabilities_of(name).has_group_products] == ["sm_90a"]
    assert CudaBackend("sm_90a").capabilities.has_group_products and not CudaBackend("sm_90a", ("sm_100",)).capabilities.has_group_products
    assert tiles(lowered(integer_products([(128, 264, 136)], U8, I8)[0], 1)) == [(0,)]
    assert tiles(lowered(products(F16, [(128, 140, 136)])[0], 1)) == [(0,)]
    assert tiles(lowered(products(F32, [(128, 256, 136)])[0], 1)) == []


@pytest.mark.parametrize("columns, rows, tile", [
    (8192, 8192, (128, 256)), (2048, 2048, (128, 256)), (1024, 1024, (64, 128)), (1280, 1024, (128, 128)), (2048, 1024, (128, 128)),
    (512, 512, None), (4096, 64, None), (4096, symbol("M"), (128, 128)), (symbol("N", 256), 64 * 132, (128, 128))])
def test_tiles(columns: DimLike, rows: DimLike, tile: tuple[int, int] | None) -> None:
    assert group_tile(columns, rows, HOPPER) == tile
    assert group_panel_columns(columns, rows, 1024, BF16, HOPPER) == (tile and tile[1])


def test_small_sides_go_another_way() -> None:
    """Where an attention may be made of them, above all."""
    for columns, steps, caps in ((128, 4096, HOPPER), (4096, 128, HOPPER), (symbol("N"), 4096, HOPPER), (4096, 4096, capabilities_of("sm_90"))):
        assert group_panel_columns(columns, 8192, steps, F16, caps) is None


# --- panels in squares ---


def test_squares_refuse_what_they_cannot_be() -> None:
    lhs, fitting = TensorType(F16, (5, 24)), TensorType(F16, (2, 64, 16))
    assert PackedDot(0, 20, square=8).infer(lhs, fitting) == TensorType(F16, (5, 20))
    for op, rhs, message in ((PackedDot(0, 20, square=8), TensorType(F16, (2, 64, 12)), "whole squares"),
                             (PackedDot(0, 20, square=8), TensorType(F16, (2, 20, 16)), "whole squares"),
                             (PackedDot(0, 20, square=8), TensorType(F16, (2, 16, 16)), "do not fit"),
                             (PackedDot(0, 20), fitting, "do not fit")):
        with pytest.raises(CompileError, match=message):
            op.infer(lhs, rhs)


def test_squares_of_words_take_whole_words() -> None:
    """A depth that is not known to be a multiple of a word's elements was accepted: its last word was multiplied by more than there is."""
    op, words, n = PackedDot(0, 13, step=4, square=4), TensorType(I32, (2, 4, 8)), symbol("N", 1, 4)
    assert op.infer(TensorType(I8, (5, 4 * n)), words) == TensorType(I32, (5, 13))
    for depth in (9, symbol("N", 1, 16), 4 * n - 1):
        with pytest.raises(CompileError, match="do not fit"):
            op.infer(TensorType(I8, (5, depth)), words)


def test_matrices_that_nothing_packs() -> None:
    """An operand that is no constant is copied as it is, where its rows are whole pieces of 16 bytes; of bytes it is packed."""
    def kernels(graph: Graph) -> list[str]:
        return [k.name for k in lowered(graph, 1).kernels()]

    assert len(kernels(products(F16, [(128, 136, 136)])[0])) == 1
    assert len(kernels(products(F16, [(128, 136, 140)])[0])) > 1
    assert len(kernels(integer_products([(128, 144, 144)], U8, I8)[0])) > 1
    assert len(kernels(weighted(128, 320, 256)[0])) == 1 and "copy_bulk" in PIPELINE


@pytest.mark.parametrize("caps", [Caps(), capabilities_of("sm_80"), HOPPER])
def test_no_other_kernel_takes_squares(caps: Caps) -> None:
    b = Builder()
    x, w = b.add(Param("x", F32, (5, 24))), b.add(Param("w", F32, (2, 64, 16)))
    with pytest.raises(CompileError, match="no kernel of this target takes .* in squares of 8"):
        lower_program(fuse(Graph("squares", [x, w], [b.add(PackedDot(0, 20, square=8), x, w)]), Options()), caps)


# --- the pipeline ---



def weighted(m: int, k: int, n: int) -> tuple[Graph, np.ndarray]:
    """A product with weights that are packed at compile time, so that the copy engine brings their panels."""
    b = Builder()
    x = b.add(Param("x", F16, (m, k)))
    return Graph("weighted", [x], [lib.matmul(b, x, lib.constant(b, whole_numbers(F16, k, n)))]), whole_numbers(F16, m, k)


WEIGHTED, VALUES = weighted(128, 320, 256)
PROGRAM = lowered(WEIGHTED, 1)
KERNEL, = PROGRAM.kernels()
PIPELINE = format_kernel(KERNEL)


def test_text_and_rules() -> None:
    assert format_kernel(parse_kernel(PIPELINE)) == PIPELINE
    for old, new, message in (
            ("f32[8, 16, 256] fragment", "f32[8, 32, 256] fragment", "expected 4 warps or a multiple, 16 rows"),
            ("f16[512, 64] shared", "f16[512, 72] shared", "expected 16 bits, bytes or tf32, rows of 128 bytes"),
            ("f16[256, 256] shared", "f16[256, 264] shared", "expected whole ones"),
            ("pipeline(4)", "pipeline(2)", "has 2 stages, expected 3 to 8"),
            ("pipeline(4)", "serial", "a loop is parallel"),
            ("block(1)", "block", "has no number of blocks, and the kernel 1 pipelines"),
            ("k0 % 4", "k0 % 3", "expected places that repeat every 4 rounds"),
            (" in 0..5 pipeline(4)", " in 0..t0 pipeline(4)", "has the extent t0, expected one that is the same for all blocks"),
            (" pipeline(4)", "", "matmul_group stands outside of a pipeline|copy_bulk"),
            ("for %c in 0..128 thread", "for %c in 0..64 thread", "has other statements than copy_bulk, a thread loop of 128"),
            ("copy_bulk %right", "copy_bulk %left", "multiplies %right, which it does not copy"),
            ("16384*k0], 16384", "16384*k0], 16383", "copy_bulk of 32766 bytes, expected a multiple of 16")):
        assert old in PIPELINE
        with pytest.raises(CompileError, match=message):
            verify_kernel(parse_kernel(PIPELINE.replace(old, new)))


def test_where_pipelines_stand() -> None:
    lines = PIPELINE.splitlines()
    start = next(number for number, line in enumerate(lines) if "pipeline(4)" in line)
    end = next(number for number in range(start, len(lines)) if lines[number] == "    }")
    loop, bulk = lines[start:end + 1], next(line for line in lines if "copy_bulk" in line)
    for made, message in (
            ([*lines[:start], "for %r in 0..2 {", *loop, "}", *lines[end + 1:]], "pipeline k0 stands in a block loop or inside of another"),
            ([*lines[:start], "for %k0 in 0..5 {", bulk, "}", *lines[end + 1:]], "copy_bulk stands outside of a pipeline"),
            ([*lines[:start], "for %k0 in 0..5 thread {", bulk, "}", *lines[end + 1:]], "copy_bulk stands in a thread loop, expected a pipeline")):
        with pytest.raises(VerifyError, match=message):
            verify_kernel(parse_kernel("\n".join(made) + "\n"))


def test_one_pipeline_a_kernel() -> None:
    again = re.sub("%(left|right|sums)", r"%\1_again", PIPELINE)
    with pytest.raises(VerifyError, match="the kernel 2 pipelines, 2 outermost statements, expected"):
        verify_kernel(replace(KERNEL, body=KERNEL.body + parse_kernel(again).body))


def test_copies_that_run_ahead_are_seen_in_the_interpreter() -> None:
    """Two stages too few in memory give what the next rounds have brought."""
    def run(old: str, new: str) -> np.ndarray:
        assert old in PIPELINE
        broken = parse_kernel(PIPELINE.replace(old, new))
        steps = tuple(replace(s, kernel=broken) if isinstance(s, Launch) else s for s in PROGRAM.steps)
        return run_program(replace(PROGRAM, steps=steps), [VALUES])[0]

    assert (run("k0 % 4", "k0 % 2") != evaluate_graph(WEIGHTED, [VALUES])[0]).any()
    with pytest.raises(VerifyError, match="%right is outside axis 0"):
        run("copy_bulk %right[64*(k0 % 4), 0]", "copy_bulk %right[64*(k0 % 4) + 64, 0]")


MUTANTS = [  # of the emitted text, and what the emulation says of each
    ("no wait for the copies", "tw_mbarrier_wait(&filled[stage], phase);", "", "yet to fill|nothing has stored"),
    ("the wrong phase of copies", "tw_mbarrier_wait(&filled[stage], phase);",
     "tw_mbarrier_wait(&filled[stage], phase ^ 1);", "yet to fill|nothing has stored|can go on"),
    ("a phase that each tile begins anew", "tw_mbarrier_wait(&filled[stage], phase);",
     "tw_mbarrier_wait(&filled[stage], k0 / 4 & 1);", "yet to fill|race|can go on"),
    ("no wait for the products", "tw_mbarrier_wait(&emptied[stage], phase ^ 1);", "", "race|yet to fill"),
    ("released before it was read", "tw_wgmma_wait(1);", "", "yet to fill|race|was changed while a product was reading it"),
    ("a tile's last stage is kept", "    if (threadIdx.x % 32 == 0) tw_mbarrier_arrive(&emptied[(stage + 3) % 4]);\n    {", "    {",
     "can go on"),
    ("no fence behind the copies", "tw_async_proxy_fence();", "", "without tw_async_proxy_fence"),
    ("announced before the copies came", "tw_copy_async_wait(2);", "tw_copy_async_wait(3);", "yet to fill|race"),
    ("the last rounds are not announced", "last < 2", "last < 1", "can go on|while asynchronous copies are under way"),
    ("too few bytes", "tw_mbarrier_expect(&filled[stage], 16384);", "tw_mbarrier_expect(&filled[stage], 16368);",
     "can go on|yet to fill"),
    ("a barrier for too many", "tw_mbarrier_init(&filled[stage], 129);", "tw_mbarrier_init(&filled[stage], 130);", "can go on"),
    ("no wait at last", "tw_wgmma_wait(0);", "", "under way|yet to fill|race|was changed while a product was reading it"),
]


def test_faults_of_pipelines() -> None:
    """In one block that takes all four tiles, of six rounds each."""
    graph, x = weighted(66, 328, 200)
    program = lowered(graph, 4)
    module = emit_module(program, "sm_90a")
    source = module.source.replace("t0 += 8", "t0 += 1")
    assert source != module.source
    made, = (k for k in module.kernels.values() if "packed_dot" in k.name)
    start = source.index("extern \"C\" __global__ void __launch_bounds__(256, 2)")
    text, texts = source[start:], []
    for number, (name, old, new, _) in enumerate(MUTANTS):
        assert old in text, name
        texts.append(text.replace(old, new).replace(made.name, f"mutant{number}"))
    emulated = emulate("\n".join([source, *texts]))
    packed, output = np.zeros(2 * 384 * 128, np.float16), np.full(66 * 200, np.nan, np.float16)
    emulated.launch(made.name, 1, made.threads, [x, packed, output], shared_bytes=made.shared_bytes)
    assert not output.any()  # all tiles were stored: the panels are zeros
    for number, (name, _, _, message) in enumerate(MUTANTS):
        with pytest.raises(EmulationError, match=message):
            emulated.launch(f"mutant{number}", 1, made.threads, [x, packed, output], shared_bytes=made.shared_bytes)
            pytest.fail(f"{name}: no fault")


@pytest.mark.parametrize("blocks", [1, 3, 4, 5])
def test_blocks_take_tiles_in_turns(blocks: int) -> None:
    """Six tiles: of one block, of so many that the last have fewer, and of more than there are multiprocessors."""
    graph, x = weighted(130, 200, 200)
    program = lowered(graph, 6)
    kernel, = program.kernels()
    loop, = kernel.body
    assert tiles(program) == [(64, 128)] and isinstance(loop, For) and (loop.extent, loop.lanes) == (6, 12)
    fewer = replace(kernel, body=(replace(loop, lanes=blocks),))
    program = replace(program, steps=tuple(replace(s, kernel=fewer) if isinstance(s, Launch) else s for s in program.steps))
    assert [k.grid for k in emit_module(program, "sm_90a").kernels.values()] == [blocks]
    found, expected = EmulatedPrograms([program], architecture="sm_90a").run(0, [x])[0], evaluate_graph(graph, [x])[0]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(run_program(program, [x])[0], expected)


@pytest.mark.parametrize("rows", [0, 1, 66, 130])
def test_blocks_of_an_open_size(rows: int) -> None:
    """No more of them than tiles."""
    b = Builder()
    x = b.add(Param("x", BF16, (symbol("M"), 136)))
    graph = Graph("rows", [x], [lib.matmul(b, x, lib.constant(b, whole_numbers(BF16, 136, 240)))])
    program = lowered(graph, 2)
    emulated = EmulatedPrograms([program], architecture="sm_90a")
    values = [whole_numbers(BF16, rows, 136)]
    np.testing.assert_array_equal(emulated.run(0, values)[0], evaluate_graph(graph, values)[0])
    grid, = (k.grid for k in emulated.modules[0].kernels.values())
    assert evaluate(grid, {"M": rows}) == min(2, 2 * -(-rows // 128))


def test_a_check_behind_a_product_goes_on_with_the_next_element() -> None:
    """A thread that ended would keep its warp from the next tile, and the copies of that from the block's end."""
    graph, x = weighted(130, 200, 200)
    program = lowered(graph, 1)
    kernel, = program.kernels()
    text, pair = format_kernel(kernel), "        for %pair in"
    row = re.search(r"let (%row1): .* = (index\(.*\))", text)
    assert text.count(pair) == 1 and "block(1)" in text and row is not None
    for limit in (130, 129):
        check = f'check lt({row[2]}, index({limit})), -1, "row", {row[2]}, index({limit})'.replace("pair", "0")
        checked = parse_kernel(text.replace(pair, f"        {check}\n{pair}"))
        steps = tuple(replace(s, kernel=checked) if isinstance(s, Launch) else s for s in program.steps)
        emulated = EmulatedPrograms([replace(program, steps=steps)], architecture="sm_90a")
        assert "continue;" in emulated.modules[0].source
        if limit == 130:
            np.testing.assert_array_equal(emulated.run(0, [x])[0], evaluate_graph(graph, [x])[0])
        else:
            with pytest.raises(IndexFailure, match="row: found 129, expected 129"):
                emulated.run(0, [x])


@pytest.mark.parametrize("blocks, multiplying, registers", [(1, 256, 200), (2, 128, 160)])
def test_registers(blocks: int, multiplying: int, registers: int) -> None:
    """All that a block has are given to some thread, and no more."""
    assert multiplying_registers(blocks, multiplying) == registers
    assert registers * multiplying + 96 * 128 <= 65536 // blocks
