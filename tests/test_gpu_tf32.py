"""Products of float32 whose operands may be rounded to tf32: the option, what rounding means, and kernels on matrix units against that.

Operands are small whole numbers with something less than half a unit of tf32 added: rounded they are those numbers, and sums are exact.
"""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.testing import assert_array_equal

import tilewright as tw
from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.emulated import emulate
from tests.lowering_checks import GPU, QUIET, lowered_for_gpu
from tests.test_gpu_convolution import CASES, Case, convolutions
from tilewright import library as lib
from tilewright.backends.cuda.backend import capabilities_of
from tilewright.backends.cuda.emit import emit_module
from tilewright.backends.cuda.emulate import EmulationError
from tilewright.gpu.compiling import standalone_source
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.errors import CompileError
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import MATMULS, Alloc, MatmulTile, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.ops.compute import Conv, Dot, PackedConv, PackedDot, round_to_tf32
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Pad
from tilewright.ir.printer import format_graph
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, F16, F32, F64, TensorType
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.passes import pack_operands as packing
from tilewright.passes.fuse import fuse
from tilewright.passes.pack_operands import pack_operands
from tilewright.pipeline import run_passes

TF32 = Options(matmul_precision="tf32")
Values = list[np.ndarray]


def near_whole(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers that are whole once they are rounded to tf32."""
    whole = rng.integers(-4, 5, shape).astype(np.float32)
    return whole * (1 + np.float32(2.0**-12) * rng.uniform(-0.95, 1, shape).astype(np.float32))


def matrices(*sizes: tuple[int, int, int], seed: int = 1) -> tuple[Graph, Values]:
    """Products with a bias and a maximum behind each; rows, steps, columns."""
    b, rng = Builder(), np.random.default_rng(seed)
    params, results, values = [], [], Values()
    for number, (m, k, n) in enumerate(sizes):
        shapes = ((m, k), (k, n), (n,))
        x, w, bias = (b.add(Param(f"{name}{number}", F32, shape)) for name, shape in zip("xwb", shapes))
        results.append(lib.apply(b, "max", lib.apply(b, "add", lib.matmul(b, x, w), bias), lib.constant(b, -2.0, F32)))
        params += [x, w, bias]
        values += [*(near_whole(shape, rng) for shape in shapes[:2]), rng.integers(-2, 3, n).astype(np.float32)]
    return Graph("products", params, results), values


def on_units(program: Program) -> int:
    """Launches of kernels that multiply on units."""
    return sum(any(isinstance(s, MatmulTile) and s.tf32 != "" for s in walk(launch.kernel.body)) for launch in program.launches())


def meaning(graph: Graph, values: Values) -> list[np.ndarray]:
    """What the graph is once its products are marked, which is where rounding has its meaning."""
    marked = pack_operands(graph, TF32, GPU)
    assert any(isinstance(node.op, PackedDot) and node.op.tf32 != "" for node in marked.nodes())
    return [np.asarray(value) for value in evaluate_graph(marked, values)]


def check(graph: Graph, values: Values, count: int, multiprocessors: int | None = None, emulate: bool = True) -> Program:
    program = lowered_for_gpu(graph, multiprocessors, options=TF32)
    assert on_units(program) == count
    expected = meaning(graph, values)
    for found in (run_program(program, values), *([EmulatedPrograms([program]).run(0, values)] if emulate else [])):
        for x, y in zip(expected, found, strict=True):
            assert_array_equal(y, x)
    return program


def test_rounding_is_to_nearest_and_away_from_zero() -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.standard_normal(500), rng.standard_normal(100) * 2.0**-128, [0.0, -0.0, 2.0**-149, 2.0**-136]]).astype(np.float32)
    tie = np.float32([1 + 2.0**-11, -1 - 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-137])
    x = np.concatenate([x, tie, np.nextafter(tie, np.float32(0))])
    wide = x.astype(np.float64)
    unit = 2.0 ** (np.maximum(np.floor(np.log2(np.abs(wide), where=wide != 0, out=np.full(x.shape, -126.0))), -126) - 10)
    expected = np.copysign(np.floor(np.abs(wide) / unit + 0.5) * unit, wide)
    found = round_to_tf32(x)
    assert found.dtype == np.float32 and not (found.view(np.uint32) & 0x1FFF).any()
    assert_array_equal(found, expected)
    assert_array_equal(np.signbit(found), np.signbit(x))
    assert_array_equal(round_to_tf32(found), found)
    largest = np.finfo(np.float32).max
    special = np.float32([np.inf, -np.inf, largest, -largest, np.nan, (2 - 2.0**-10) * 2.0**127])
    assert_array_equal(round_to_tf32(special), [np.inf, -np.inf, np.inf, -np.inf, np.nan, (2 - 2.0**-10) * 2.0**127])
    assert np.isnan(round_to_tf32(np.uint32([0x7F800001, 0xFFFFFFFF]).view(np.float32))).all()


def test_the_option() -> None:
    assert Options().matmul_precision == "float32"
    assert TF32.code_key() != Options().code_key()
    with pytest.raises(CompileError, match="matmul_precision 'bf16' is not one of float32, tf32"):
        Options(matmul_precision="bf16")


def test_only_products_of_float32_are_rounded_and_only_where_allowed() -> None:
    b = Builder()
    pairs = [[b.add(Param(f"{name}{dtype}", dtype, (64, 64))) for name in "xw"] for dtype in (F32, F64, F16, BF16)]
    row = b.add(Param("row", F32, (64,)))
    results = [*(lib.matmul(b, x, w) for x, w in pairs), lib.matmul(b, pairs[0][0], row), lib.matmul(b, *[pairs[0][0]] * 2)]
    graph = Graph("mixed", [*(p for pair in pairs for p in pair), row], results)

    def rounded(options: Options, caps: Caps) -> int:
        return sum(isinstance(n.op, PackedDot) and n.op.tf32 != "" for n in pack_operands(graph, options, caps).nodes())

    assert rounded(TF32, GPU) == rounded(Options(precision="strict", matmul_precision="tf32"), GPU) == 2
    assert rounded(Options(), GPU) == rounded(TF32, Caps()) == 0
    assert format_graph(run_passes(graph, TF32, Caps(), QUIET)[0]) == format_graph(run_passes(graph, Options(), Caps(), QUIET)[0])
    again = pack_operands(pack_operands(graph, TF32, GPU), TF32, GPU)
    assert format_graph(again) == format_graph(pack_operands(graph, TF32, GPU))


@needs_compiler
def test_products_of_every_kind_of_size() -> None:
    """Whole tiles and edges on each side, one row, one step, steps that 16 bytes do not hold, few columns, matrices read as they are."""
    graph, values = matrices((64, 64, 64), (70, 72, 70), (1, 40, 33), (33, 1, 64), (5, 37, 9), (130, 100, 96), (32, 80, 2), (5, 150, 272))
    check(graph, values, 8)


@needs_compiler
def test_high_tiles_and_parts_of_steps() -> None:
    graph, values = matrices((130, 136, 140))
    program = check(graph, values, 1, multiprocessors=1)
    assert {k.body[0].body[-1].extent for k in program.kernels()} == {8}  # warps of 128 x 128
    facts, = (launch.facts for launch in program.launches())
    assert facts is not None and facts.choice.details == ("operands rounded to tf32",) and facts.contract == "bounded"
    graph, values = matrices((33, 1440, 144))
    assert len(check(graph, values, 1).kernels()) == 2  # the second one adds up parts


def test_batches_and_open_sizes() -> None:
    b, rng = Builder(), np.random.default_rng(3)
    batch, m, k, n = symbol("B"), symbol("M"), symbol("K", 1), symbol("N", 1)
    x, y, z = (b.add(Param(name, F32, shape)) for name, shape in (("x", (batch, m, 24)), ("y", (batch, 24, n)), ("z", (n, k))))
    total = lib.matmul(b, x, y)
    graph = Graph("batched", [x, y, z], [total, lib.matmul(b, total, z)])
    program = lowered_for_gpu(graph, options=TF32)
    assert on_units(program) == 2
    for sizes in ((2, 35, 31, 40), (1, 1, 1, 1), (3, 0, 4, 5), (0, 4, 4, 4)):
        shapes = ((sizes[0], sizes[1], 24), (sizes[0], 24, sizes[3]), (sizes[3], sizes[2]))
        values = [near_whole(shape, rng) for shape in shapes]
        for x, y in zip(meaning(graph, values), run_program(program, values), strict=True):
            assert_array_equal(y, x)


def test_constants_gates_borders_and_pointwise_convolutions() -> None:
    b, rng = Builder(), np.random.default_rng(4)
    x, image = b.add(Param("x", F32, (70, 40))), b.add(Param("image", F32, (1, 20, 9, 5)))
    w, kernel = (lib.constant(b, near_whole(shape, rng)) for shape in ((40, 50), (33, 20, 1, 1)))
    dense = lib.matmul(b, x, w)
    gate = lib.broadcast(b, lib.constant(b, rng.integers(1, 3, 40).astype(np.float32)), (70, 40))
    gated = lib.matmul(b, lib.apply(b, "mul", x, gate), w)
    padded = b.add(Pad((1, 0), (2, 0)), lib.matmul(b, lib.apply(b, "neg", x), w), lib.constant(b, 0.0, F32))
    pointwise = b.add(Conv((1, 1), ((0, 0),) * 2, (1, 1), (1, 1)), image, kernel)
    graph = Graph("layers", [x, image], [dense, gated, padded, pointwise])
    values = [near_whole((70, 40), rng), near_whole((1, 20, 9, 5), rng)]
    program = lowered_for_gpu(graph, options=TF32)
    assert on_units(program) == 4
    whole = [np.rint(v) for v in values]
    for found, expected in zip(run_program(program, values), evaluate_graph(_with_whole_constants(graph), whole), strict=True):
        assert_array_equal(found, expected)


def _with_whole_constants(graph: Graph) -> Graph:
    b, made = Builder(), dict[Node, Node]()
    for node in graph.nodes():
        value = getattr(node.op, "value", None)
        made[node] = node if not node.inputs and value is None else \
            lib.constant(b, np.rint(value.array)) if value is not None else b.add(node.op, *(made[i] for i in node.inputs))
    return Graph(graph.name, graph.params, [made[r] for r in graph.results])


@needs_compiler
def test_what_is_not_finite_stays_in_its_rows_and_columns() -> None:
    graph, values = matrices((40, 72, 40))
    values[0][3, 71], values[0][39, 0], values[1][5, 39] = np.nan, np.inf, -np.inf
    values[0][7, 3:4] = np.uint32([0x7F800001]).view(np.float32)  # a NaN by a bit that units do not read
    values[0][9, 3], values[1][3] = np.finfo(np.float32).max, 1.0
    with np.errstate(all="ignore"):
        expected, = meaning(graph, values)
        program = lowered_for_gpu(graph, options=TF32)
        for found in (run_program(program, values), EmulatedPrograms([program]).run(0, values)):
            assert_array_equal(found[0], expected)
    assert np.isnan(expected[[3, 7]]).all() and np.isposinf(expected[9, :39]).all()


@needs_compiler
def test_any_numbers_within_the_bound_of_a_sum() -> None:
    """Two roundings of operands are not in the difference: the meaning has them too. What is left are those of a sum of float32."""
    rng = np.random.default_rng(5)
    graph, values = matrices((70, 200, 136))
    values = [rng.standard_normal(v.shape).astype(np.float32) for v in values]
    program, (expected,) = lowered_for_gpu(graph, options=TF32), meaning(graph, values)
    sizes = round_to_tf32(np.abs(values[0])).astype(np.float64) @ round_to_tf32(np.abs(values[1])) + np.abs(values[2])
    for found in (run_program(program, values), EmulatedPrograms([program]).run(0, values)):
        assert (np.abs(found[0] - expected.astype(np.float64)) <= 202 * 2.0**-24 * sizes).all()
    exact = values[0].astype(np.float64) @ values[1] + values[2]
    apart = np.abs(expected - np.maximum(exact, -2.0))
    assert (apart <= (2.0**-10 + 2.0**-21) * sizes).all() and apart.max() > 202 * 2.0**-24 * sizes.max()


def packed(panel: int) -> Graph:
    b = Builder()
    x, w = b.add(Param("x", F32, (5, 20))), b.add(Param("w", F32, (-(-40 // panel), 20, panel)))
    return Graph("packed", [x, w], [b.add(PackedDot(0, 40, tf32="both"), x, w)])


@pytest.mark.parametrize("panel, caps", [(16, GPU), (40, GPU), (16, Caps()), (32, GPU)])
def test_what_no_unit_multiplies_is_rounded_by_other_operations(panel: int, caps: Caps) -> None:
    """Panels that no block takes, and CPUs. The text goes there and back."""
    graph, rng = packed(panel), np.random.default_rng(6)
    assert "tf32=both" in format_graph(graph)
    assert format_graph(tw.parse(format_graph(graph))) == format_graph(graph)
    program = lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0]
    assert on_units(program) == (panel == 32)
    values = [rng.standard_normal(p.tensor.static_shape).astype(np.float32) for p in graph.params]
    values[0][0, :2] = np.uint32([0x7F800001, 0x7F7FFFFF]).view(np.float32)
    values[1][0, 0, :2] = np.inf
    # sums of 20 products of about 1 in another order: 20 * 2**-24 of each, which cancel at most to a tenth
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(run_program(program, values)[0], evaluate_graph(graph, values)[0], rtol=1e-5, atol=1e-6)


def test_errors() -> None:
    for caps in (GPU, Caps()):
        with pytest.raises(CompileError, match=r"no kernel of this target takes f32\[3, 20, 16\] rounded to tf32"):
            lower_program(fuse(packed(16), Options(), caps.is_gpu), caps)
    lhs, rhs = TensorType(F32, (5, 8)), TensorType(F32, (2, 8, 16))
    for op, *types in ((PackedDot(0, 19, tf32="both"), *(TensorType(F64, t.shape) for t in (lhs, rhs))),
                       (PackedDot(0, 19, square=4, tf32="both"), lhs, rhs), (PackedDot(0, 19, tf32="right"), lhs, rhs), (PackedDot(0, 19, True, tf32="both"), rhs, rhs)):
        with pytest.raises(CompileError, match="to tf32, expected 'both' or 'left' of f32"):
            op.infer(*types)


def test_a_matrix_times_itself_and_the_emulated_target() -> None:
    graph, _ = matrices((20, 24, 36))
    found = tw.compile(graph, target="cuda:emulated", options=Options(matmul_precision="tf32", cache=False))
    assert "tw_mma_m16n8k8_tf32" in found.source()
    b = Builder()
    x = b.add(Param("x", F32, (200, 140)))
    gram = Graph("gram", [x], [b.add(Dot((0,), (0,)), x, x)])
    check(gram, [near_whole((200, 140), np.random.default_rng(7))], 1, emulate=False)


def test_a_standalone_source_expects_what_is_rounded() -> None:
    graph, _ = matrices((8, 24, 40))
    expected = {}
    for options in (TF32, Options()):
        made = standalone_source(graph, "cuda:sm_80", options, QUIET, "model.data")
        expected[options.matmul_precision] = np.frombuffer(made.data, np.float32)[-8 * 40:].reshape(8, 40)
    rng = np.random.default_rng(0)
    values = [rng.normal(0, 1, p.tensor.static_shape).astype(np.float32) for p in graph.params]
    assert_array_equal(expected["tf32"], meaning(graph, values)[0])
    assert_array_equal(expected["float32"], evaluate_graph(graph, values)[0])
    assert (expected["tf32"] != expected["float32"]).any()


# --- convolutions ---


@needs_compiler
def test_convolutions() -> None:
    """Of every kind, and by four warps: what is around the operand is rounded to zeros."""
    rng = np.random.default_rng(11)
    squares = [Case((2, 16, 6, 7), (3, 3), 136, padding=(1, 1)), Case((4, 20, 11, 11), (3, 3), 144, strides=2)]
    for cases, count, multiprocessors, architecture in ((CASES, 13, None, "sm_80"), (squares, 2, 1, "sm_90a")):
        graph = convolutions(cases, F32)
        program = lowered_for_gpu(graph, multiprocessors, architecture, TF32)
        assert on_units(program) == count  # a transposed one is four
        values = [near_whole(p.tensor.static_shape, rng) for p in graph.params]
        expected = evaluate_graph(graph, [np.rint(x) for x in values])
        for found in (run_program(program, values), EmulatedPrograms([program], architecture=architecture).run(0, values)):
            for number, (x, y) in enumerate(zip(expected, found, strict=True)):
                assert_array_equal(y, x, str(number))
    words = [word for word in MATMULS for kernel in program.kernels() if f" {word} " in format_kernel(kernel)]
    assert words == ["matmul_group_tf32"] * 2


@pytest.mark.parametrize("caps", [GPU, Caps(), capabilities_of("sm_90a")])
@pytest.mark.parametrize("square, tile", [(1, 32), (1, 16), (4, 8)])
def test_convolutions_that_no_unit_takes(caps: Caps, square: int, tile: int) -> None:
    op = PackedConv((2, 3), (1, 1), (1, 1), 13, square=square, padding=((0, 0), (1, 1)), tf32="left")
    b, rng = Builder(), np.random.default_rng(12)
    x, w = b.add(Param("x", F32, (2, 5, 6, 3))), b.add(Param("w", F32, (-(-13 // tile), 18 if square == 1 else 20, tile)))
    graph = Graph("packed", [x, w], [b.add(op, x, w)])
    fused = run_passes(graph, Options(), caps, QUIET)[0]
    values = [rng.standard_normal(p.tensor.static_shape).astype(np.float32) for p in graph.params]
    # sums of 18 products in another order, some near 0: 18 * 2**-24 of terms of up to 10
    np.testing.assert_allclose(run_program(lower_program(fused, caps)[0], values)[0], evaluate_graph(graph, values)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(CompileError, match="to tf32, expected 'left' of f32"):
        replace(op, tf32="both").infer(x.tensor, w.tensor)


# --- products of four warps ---


def weighted(m: DimLike, k: int, n: int) -> tuple[Graph, np.ndarray]:
    """A product with weights, which are rounded and laid in squares at compile time; and those weights, rounded."""
    b, w = Builder(), near_whole((k, n), np.random.default_rng(8))
    x = b.add(Param("x", F32, (m, k)))
    return Graph("weighted", [x], [lib.apply(b, "max", lib.matmul(b, x, lib.constant(b, w)), lib.constant(b, -9.0, F32))]), np.rint(w)


@needs_compiler
def test_products_of_four_warps() -> None:
    """Each tile, by the number of multiprocessors: rounds of 32 steps that are not whole, more of them than stages, edges on both sides,
    an open number of rows."""
    cases = [(1, (128, 256), 130, 136, 400), (2, (128, 128), 100, 232, 192), (4, (64, 128), 66, 200, 136),
             (1, (128, 128), symbol("M"), 132, 136)]
    programs = []
    for multiprocessors, tile, *sizes in cases:
        program = lowered_for_gpu(weighted(*sizes)[0], multiprocessors, "sm_90a", TF32)
        kernel = program.kernels()[-1]
        sums, = (s.buffer.shape for s in walk(kernel.body) if isinstance(s, Alloc) and s.buffer.space == "fragment")
        assert (sums[0] * sums[1], sums[2]) == tile and "matmul_group_tf32" in format_kernel(kernel)
        assert format_kernel(parse_kernel(format_kernel(kernel))) == format_kernel(kernel)
        programs.append(program)
    emulated = EmulatedPrograms(programs, architecture="sm_90a")
    for number, (_, _, rows, *sizes) in enumerate(cases):
        x = near_whole((rows if isinstance(rows, int) else 70, sizes[0]), np.random.default_rng(9))
        expected = np.maximum(np.rint(x) @ weighted(rows, *sizes)[1], -9)
        assert_array_equal(emulated.run(number, [x])[0], expected)
        if number == 2:
            assert_array_equal(run_program(programs[number], [x])[0], expected)
            x[5, 7] = np.uint32([0x7F800001]).view(np.float32)[0]
            assert np.isnan(emulated.run(number, [x])[0][5]).all()


def test_where_four_warps_multiply() -> None:
    """A matrix that is no constant is packed for them where there are rows and products enough to gain by it."""
    def words(rows: DimLike, constant: bool, columns: int = 512) -> set[str]:
        b = Builder()
        x, w = b.add(Param("x", F32, (rows, 256))), b.add(Param("w", F32, (256, columns)))
        w = lib.constant(b, np.ones((256, columns), np.float32)) if constant else w
        graph = Graph("product", [x] if constant else [x, w], [lib.matmul(b, x, w)])
        program = lowered_for_gpu(graph, 4, "sm_90a", TF32)
        return {word for word in MATMULS for kernel in program.kernels() if f" {word} " in format_kernel(kernel)}

    assert words(1024, False, 16384) == words(512, True) == words(symbol("M"), True) == {"matmul_group_tf32"}
    assert words(512, False, 32768) == words(1024, False, 4096) == words(symbol("M"), False) == {"matmul_tf32"}
    assert words(16, True) == {"matmul_tf32_left"}


def test_squares_of_a_matrix_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is packed by a kernel of its own is rounded there."""
    monkeypatch.setattr(packing, "LEAST_PACKED_PRODUCTS", 0)
    rng = np.random.default_rng(10)
    graph, values = matrices((1024, 160, 256))
    program = lowered_for_gpu(graph, 8, "sm_90a", TF32)
    assert len(program.kernels()) == 2
    values[1][3, 5], values[0][:] = np.uint32([0x7F800001]).view(np.float32)[0], near_whole((1024, 160), rng)
    with np.errstate(invalid="ignore"):
        expected, = evaluate_graph(run_passes(graph, TF32, capabilities_of("sm_90a"), QUIET, until="fold_packed")[0], values)
        found, = run_program(program, values)
    assert_array_equal(found, expected)
    assert np.isnan(found[:, 5]).all() and np.isfinite(found[:, 6]).all()


MUTANTS = [  # of the emitted text, and what the emulation says of each
    ("tw_wgmma_wait(0);", "", "under way|registers were changed"), ("__syncwarp();", "", "race"),
    ("tw_mbarrier_wait(&filled[stage], phase);", "", "yet to fill|nothing has stored"),
    ("tw_mbarrier_wait(&emptied[stage], phase ^ 1);", "", "race|yet to fill|was changed"),
    ("tw_copy_async_wait(3);", "tw_copy_async_wait(4);", "yet to fill|race")]


@needs_compiler
def test_faults_of_pipelines_with_registers() -> None:
    program = lowered_for_gpu(weighted(66, 200, 136)[0], 4, "sm_90a", TF32)
    module = emit_module(program, "sm_90a")
    made, = (kernel for kernel in module.kernels.values() if "packed_dot" in kernel.name)
    source = module.source.replace("t0 += 8", "t0 += 1")  # one block takes all tiles
    assert source != module.source
    text, texts = source[source.index("extern \"C\" __global__ void __launch_bounds__(256, 2)"):], []
    for number, (old, new, _) in enumerate(MUTANTS):
        assert old in text
        texts.append(text.replace(old, new).replace(made.name, f"mutant{number}"))
    emulated = emulate("\n".join([source, *texts]))
    arrays = [np.zeros(66 * 200, np.float32), np.zeros(2 * 224 * 128, np.float32), np.zeros(66 * 136, np.float32)]
    emulated.launch(made.name, 1, made.threads, arrays, shared_bytes=made.shared_bytes)
    for number, (_, _, message) in enumerate(MUTANTS):
        with pytest.raises(EmulationError, match=message):
            emulated.launch(f"mutant{number}", 1, made.threads, arrays, shared_bytes=made.shared_bytes)
