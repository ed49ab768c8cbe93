"""Products with weights of a few bits: the op, its kernels, what the pass claims, models of ONNX, and the room that weights take."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks import weight_only as benchmark
from benchmarks.ggml_product import q4_0_blocks
from tests.comparing import assert_close, assert_identical
from tests.compiled import QUIET, compiled, run_compiled, runs_here
from tilewright import library as lib
from tilewright.driver import compile as compile_graph
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.errors import CompileError
from tilewright.ir.graph import Array, Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.control import Fusion, Param
from tilewright.ir.ops.weight_only import WORD, WeightOnlyDot, codes_of_words, words_of_codes
from tilewright.ir.types import BF16, F16, F32, I32, U8, DType, TensorType
from tilewright.library_quantized import dequantize
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.passes.weight_only import keep_weights_narrow
from tilewright.pipeline import run_passes

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CAPS = Caps(vector_bits=128, vector_registers=16)


class Weights:
    """Random codes with their scales and zero points, as operands of the op and as the numbers that they stand for."""

    def __init__(self, depth: int, columns: int, bits: int, group: int, points: DType | None, tile: int = 16, zero: int | None = None) -> None:
        rng = np.random.default_rng(depth + columns + bits)
        panels, groups = -(-columns // tile), -(-depth // group)
        self.op = WeightOnlyDot(columns, bits, group, (0 if points else 1 << bits - 1) if zero is None else zero)
        codes = rng.integers(0, 1 << bits, (panels, groups * group, tile)).astype(np.uint8)
        self.operands = [words_of_codes(codes, bits), rng.uniform(0.5, 1.5, (panels, groups, tile)).astype(np.float32)]
        if points is not None:
            self.operands.append((rng.integers(0, 1 << bits, (panels, groups, tile)) - (0.5 if points is F32 else 0)).astype(points.numpy))
        self.dense = self.op.weights(depth, *self.operands).astype(np.float64)
        self.largest = (2 * (1 << bits) + abs(self.op.zero)) * float(self.operands[1].max())


def product_graph(weights: Weights, shape: tuple[DimLike, ...], dtype: DType = F32, bias: bool = False) -> Graph:
    b = Builder()
    x = b.add(Param("x", dtype, shape))
    y = b.add(weights.op, x, *(lib.constant(b, array) for array in weights.operands))
    if bias:
        added = lib.broadcast(b, lib.constant(b, np.linspace(-1, 1, weights.op.columns), dtype), y.shape)
        y = lib.apply(b, "max", lib.apply(b, "add", y, added), lib.constant(b, 0, dtype))
    return Graph("product", [x], [y])


def activations(shape: tuple[int, ...], dtype: DType = F32) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype.numpy)


def assert_near(found: Array, weights: Weights, x: Array) -> None:
    """Within the rounding of sums of codes, and of the result's dtype."""
    wide = x.astype(np.float64)
    exact = wide @ weights.dense
    room = (8 + x.shape[-1] ** 0.5) * 2.0**-23 * weights.largest * np.abs(wide).sum(-1, keepdims=True)
    room = room + {2: 2.0**-8, 4: 2.0**-23}[x.dtype.itemsize] * np.abs(exact)
    assert found.dtype == x.dtype and (np.abs(found.astype(np.float64) - exact) <= room).all()


# --- the op ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_words_hold_the_steps_of_a_column_from_the_lowest_bits_on(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, 32, 5)).astype(np.uint8)
    words = words_of_codes(codes, bits)
    assert words.shape == (3, 32 * bits // WORD, 5) and words.dtype == np.int32
    np.testing.assert_array_equal(codes_of_words(words, bits), codes)
    assert int(words.view(np.uint32)[0, 0, 0]) & (1 << bits) - 1 == codes[0, 0, 0]


def test_its_meaning_is_to_dequantize_and_multiply() -> None:
    weights, x = Weights(20, 11, 4, 8, U8), activations((2, 3, 20))
    codes = np.moveaxis(codes_of_words(weights.operands[0], 4), 1, 0).reshape(24, 16)[:20, :11].astype(np.float32)
    scales, points = (np.repeat(np.moveaxis(a, 1, 0).reshape(3, 16), 8, axis=0)[:20, :11].astype(np.float32) for a in weights.operands[1:])
    np.testing.assert_allclose(weights.op.evaluate([x, *weights.operands], {}), x @ ((codes - points) * scales), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op, types, complaint", [
    (WeightOnlyDot(8, 3, 32), [(F32, (2, 32)), (I32, (1, 3, 8)), (F32, (1, 1, 8))], "do not fill words"),
    (WeightOnlyDot(8, 4, 12), [(F32, (2, 32)), (I32, (1, 3, 8)), (F32, (1, 1, 8))], "do not fill words"),
    (WeightOnlyDot(8, 4, 32), [(F32, (2, 33)), (I32, (1, 4, 8)), (F32, (1, 1, 8))], "do not fit columns 8"),
    (WeightOnlyDot(9, 4, 32), [(F32, (2, 32)), (I32, (1, 4, 8)), (F32, (1, 1, 8))], "do not fit columns 9"),
    (WeightOnlyDot(8, 4, 32), [(F32, (2, 32)), (U8, (1, 4, 8)), (F32, (1, 1, 8))], "words i32"),
    (WeightOnlyDot(8, 4, 32), [(F32, (2, 32)), (I32, (1, 4, 8)), (F32, (1, 1, 8)), (U8, (1, 2, 8))], "do not fit columns 8"),
    (WeightOnlyDot(8, 4, 32), [(F32, (2, 32)), (I32, (1, 4, 8))], "takes 3 or 4 operands, found 2"),
])
def test_what_does_not_fit_is_refused(op: WeightOnlyDot, types: list[tuple[DType, tuple[int, ...]]], complaint: str) -> None:
    with pytest.raises(CompileError, match=complaint):
        op.infer(*(TensorType(*t) for t in types))


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [None, U8, F32])
@pytest.mark.parametrize("bits, group, depth, columns", [(4, 16, 64, 40), (4, 32, 100, 33), (2, 16, 40, 5), (8, 32, 70, 70), (8, 4, 9, 1),
                                                         (4, 1024, 1000, 17), (2, 256, 513, 64)])
def test_kernels_agree_with_the_exact_product(bits: int, group: int, depth: int, columns: int, points: DType | None) -> None:
    """Few rows, several tiles of few rows, one and several tiles of many rows."""
    weights = Weights(depth, columns, bits, group, points)
    for rows in (1, 2, 5, 8, 9, 70):
        x = activations((rows, depth))
        found, = run_compiled(compiled(product_graph(weights, x.shape)), [x])
        assert_near(found, weights, x)


def test_a_zero_that_all_codes_have_stands_beside_zero_points() -> None:
    for bits in (4, 8):
        weights = Weights(64, 24, bits, 32, F32, zero=3)
        for rows in (2, 12):
            x = activations((rows, 64))
            assert_near(run_compiled(compiled(product_graph(weights, x.shape)), [x])[0], weights, x)


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_activations_of_half_precision(dtype: DType) -> None:
    weights = Weights(100, 33, 4, 32, U8)
    for rows in (1, 3, 17):
        x = activations((rows, 100), dtype)
        assert_near(run_compiled(compiled(product_graph(weights, x.shape, dtype)), [x])[0], weights, x)


def test_any_number_of_rows_is_served_by_one_kernel_and_threads_do_not_show() -> None:
    weights, rows = Weights(200, 50, 4, 64, U8), symbol("m")
    graph = product_graph(weights, (rows, 200), bias=True)
    one, three = (compiled(graph, threads=threads) for threads in (1, 3))
    bias = np.linspace(-1, 1, 50).astype(np.float32)
    for count in (0, 1, 2, 5, 70):
        x = activations((count, 200))
        found = run_compiled(one, [x])
        assert_identical(found, run_compiled(three, [x]))
        assert_close(found, [np.maximum((x @ weights.dense).astype(np.float32) + bias, 0)])


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
def test_other_widths_of_vectors(target: str) -> None:
    weights = Weights(96, 40, 4, 32, U8)
    for rows in (1, 6, 20):
        x = activations((rows, 96))
        executable_graph = product_graph(weights, x.shape)
        if runs_here(target):
            assert_near(run_compiled(compiled(executable_graph, target), [x])[0], weights, x)


@pytest.mark.parametrize("rows", [1, 5, 9, symbol("m")])
def test_the_loops_read_and_write_where_they_may(rows: DimLike) -> None:
    """In the interpreter of loops, which sees what machine code survives by luck; with narrow vectors and a pad behind."""
    weights = Weights(21, 11, 4, 8, F32, tile=8)
    b = Builder()
    x = b.add(Param("x", F32, (rows, 21)))
    y = b.add(weights.op, x, *(lib.constant(b, array) for array in weights.operands))
    graph = Graph("padded", [x], [lib.pad(b, y, [1, 0], [2, 0], 0.5)])
    fused, _ = run_passes(graph, Options(), CAPS, QUIET)
    program, _ = lower_program(fused, CAPS)
    verify_program(program)
    for count in (rows,) if isinstance(rows, int) else (0, 1, 2, 7):
        given = activations((count, 21))
        expected = np.pad(weights.op.evaluate([given, *weights.operands], {}), ((1, 2), (0, 0)), constant_values=0.5)
        assert_close(run_program(program, [given]), [expected])


def test_the_smallest_activations_are_not_lost_and_large_ones_do_not_overflow_early() -> None:
    weights = Weights(64, 16, 4, 32, None)
    for factor in (2.0**-120, 2.0**100):
        x = activations((1, 64)) * np.float32(factor)
        found, = run_compiled(compiled(product_graph(weights, x.shape)), [x])
        np.testing.assert_allclose(found / factor, (x / factor).astype(np.float64) @ weights.dense, rtol=1e-4, atol=1e-4)


# --- the pass --------------------------------------------------------------------------------------------------------


def quantized(depth: int, columns: int, group: int, low: int = -8, high: int = 8, symmetric: bool = True) -> tuple[Array, Array, Array | None]:
    """Integers [K / group, group, N], scales [K / group, 1, N] and zero points."""
    rng = np.random.default_rng(depth)
    shape = (depth // group, 1, columns)
    return (rng.integers(low, high, (depth // group, group, columns)).astype(np.int8), rng.uniform(0.01, 0.1, shape).astype(np.float32),
            None if symmetric else rng.integers(low, high, shape).astype(np.int8))


def dequantized_product(integers: Array, scales: Array, points: Array | None, rows: DimLike, dtype: DType = F32) -> Graph:
    b = Builder()
    depth, columns = integers.shape[0] * integers.shape[1], integers.shape[2]
    x = b.add(Param("x", dtype, (rows, depth)))
    w = dequantize(b, lib.constant(b, integers), lib.constant(b, scales), None if points is None else lib.constant(b, points))
    w = lib.cast(b, lib.reshape(b, w, (depth, columns)), dtype)
    return Graph("product", [x], [lib.matmul(b, x, w)])


def claimed(graph: Graph, precision: str = "default", caps: Caps = CAPS) -> list[WeightOnlyDot]:
    found = run_passes(graph, Options(precision=precision), caps, QUIET, until="weight_only")[0]
    return [node.op for node in found.nodes() if isinstance(node.op, WeightOnlyDot)]


@pytest.mark.parametrize("low, high, symmetric, bits, zero", [
    (-8, 8, True, 4, 8), (-8, 8, False, 4, 0), (-2, 2, True, 2, 2), (-128, 128, True, 8, 128), (3, 19, True, 4, -3), (-5, 11, True, 4, 5)])
def test_the_fewest_bits_that_hold_the_integers_are_kept(low: int, high: int, symmetric: bool, bits: int, zero: int) -> None:
    graph = dequantized_product(*quantized(96, 24, 32, low, high, symmetric), 3)
    assert claimed(graph) == [WeightOnlyDot(24, bits, 32, zero)]
    x = activations((3, 96))
    assert_close(run_compiled(compiled(graph), [x]), evaluate_graph(graph, [x]))


@pytest.mark.parametrize("rows", [1, 20, symbol("m")])
@pytest.mark.parametrize("group", [16, 64, 192])
def test_groups_are_found_by_their_scales(group: int, rows: DimLike) -> None:
    graph = dequantized_product(*quantized(192, 130, group, symmetric=group == 16), rows)
    assert [op.group for op in claimed(graph)] == [group]
    executable = compiled(graph)
    for count in (rows,) if isinstance(rows, int) else (1, 2, 20):
        x = activations((count, 192))
        assert_close(run_compiled(executable, [x]), evaluate_graph(graph, [x]))


def test_what_gains_nothing_or_can_not_be_kept_stays_a_matrix_of_floats() -> None:
    integers, scales, _ = quantized(96, 24, 32)
    assert claimed(dequantized_product(integers, scales, None, 3))
    assert not any(claimed(dequantized_product(integers, scales, None, 3), precision) for precision in ("plain", "strict"))
    assert not claimed(dequantized_product(integers, scales, None, 64)), "many rows, and weights that are near"
    assert claimed(dequantized_product(integers, scales, None, 64), caps=Caps(level2_bytes=4096))
    short = quantized(96, 24, 8)
    assert not claimed(dequantized_product(*short, 3)), "groups of 8"
    scales = scales.copy()
    scales[0, 0, 0] = np.nan
    assert not claimed(dequantized_product(integers, scales, None, 3)), "a scale that is equal to no other one"
    scales[0, 0, 0] = np.inf
    assert not claimed(dequantized_product(integers, scales, None, 3)), "an infinite scale"
    b = Builder()
    x, w = b.add(Param("x", F32, (3, 32))), lib.constant(b, np.full((32, 16), 0.3, np.float32))
    scaled = lib.apply(b, "mul", w, lib.constant(b, np.linspace(1, 2, 16), F32))
    assert not claimed(Graph("floats", [x], [lib.matmul(b, x, scaled)])), "floats times factors"
    assert not claimed(Graph("none", [b.add(Param("y", F32, (3, 3)))], [b.add(Param("y", F32, (3, 3)))]))


def test_the_pass_changes_nothing_twice_and_one_kernel_computes_the_bias_too() -> None:
    integers, scales, _ = quantized(96, 24, 32)
    b = Builder()
    x = b.add(Param("x", F32, (3, 96)))
    w = lib.reshape(b, dequantize(b, lib.constant(b, integers), lib.constant(b, scales)), (96, 24))
    y = lib.apply(b, "add", lib.matmul(b, x, w), lib.constant(b, np.linspace(0, 1, 24), F32))
    graph = Graph("layer", [x], [lib.apply(b, "max", y, lib.constant(b, 0, F32))])
    once, _ = run_passes(graph, Options(), CAPS, QUIET, until="weight_only")
    assert keep_weights_narrow(once, Options(), CAPS) is once
    fused, _ = run_passes(graph, Options(), CAPS, QUIET)
    assert [node.op.strategy for node in fused.nodes() if isinstance(node.op, Fusion)] == ["contraction"]
    given = activations((3, 96))
    assert_close(run_compiled(compiled(graph), [given]), evaluate_graph(graph, [given]))


# --- models ----------------------------------------------------------------------------------------------------------


def model(nodes: list[onnx.NodeProto], x: tuple[int | str, ...], arrays: dict[str, Array | onnx.TensorProto],
          dtype: int = onnx.TensorProto.FLOAT) -> bytes:
    initializers = [a if isinstance(a, onnx.TensorProto) else onnx.numpy_helper.from_array(a, name) for name, a in arrays.items()]
    values = [onnx.helper.make_tensor_value_info("x", dtype, x)], [onnx.helper.make_tensor_value_info("y", dtype, None)]
    graph = onnx.helper.make_graph(nodes, "model", *values, initializers)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    text: bytes = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return text


def assert_as_onnxruntime(data: bytes, shapes: list[tuple[int, ...]], bits: int | None) -> None:
    """The same results, of a `weight_only_dot` of so many bits."""
    from tilewright import from_onnx
    graph = from_onnx(data)
    assert [op.bits for op in claimed(graph)] == ([] if bits is None else [bits])
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # else it quantizes activations
    session, executable = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"]), compiled(graph)
    for shape in shapes:
        x = activations(shape)
        assert_close(run_compiled(executable, [x]), session.run(None, {"x": x}), scale=3)


@pytest.mark.parametrize("bits, block, depth, points", [(4, 32, 256, True), (4, 16, 200, False), (2, 64, 256, True), (8, 128, 256, True),
                                                        (4, 256, 300, True), (8, 32, 64, False)])
def test_matmul_n_bits_keeps_its_bits(bits: int, block: int, depth: int, points: bool) -> None:
    rng, columns, blocks = np.random.default_rng(bits), 37, -(-depth // block)
    arrays = {"w": rng.integers(0, 256, (columns, blocks, block * bits // 8), dtype=np.uint8),
              "s": rng.uniform(0.01, 0.1, (columns, blocks)).astype(np.float32)}
    if points:
        arrays["z"] = rng.integers(0, 256, (columns, -(-blocks * bits // 8)), dtype=np.uint8)
    node = onnx.helper.make_node("MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", K=depth, N=columns, block_size=block, bits=bits)
    assert_as_onnxruntime(model([node], ("m", depth), arrays), [(1, depth), (3, depth), (33, depth)], bits)


@pytest.mark.parametrize("kind, bits", [("INT8", 8), ("UINT8", 8), ("INT4", 4), ("UINT4", 4)])
@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_dequantized_weights_of_matmul_and_gemm(kind: str, bits: int, blocked: bool, transposed: bool) -> None:
    """Blocks along the contraction, or a scale for each column."""
    rng, depth, columns, block = np.random.default_rng(bits), 96, 25, 32
    low, high = (-(1 << bits - 1), 1 << bits - 1) if kind.startswith("INT") else (0, 1 << bits)
    shape, parameters = (depth, columns), (depth // block, columns) if blocked else (columns,)
    integers = rng.integers(low, high, shape)
    points = rng.integers(low, high, parameters)
    if transposed:
        integers, points = integers.T, points.T
    element = getattr(onnx.TensorProto, kind)
    tensors = {name: onnx.helper.make_tensor(name, element, a.shape, a.reshape(-1).tolist()) for name, a in (("q", integers), ("z", points))}
    arrays = {"q": tensors["q"], "s": rng.uniform(0.01, 0.1, points.shape).astype(np.float32), "z": tensors["z"]}
    axis = 0 if blocked != transposed else 1
    nodes = [onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=axis, **({"block_size": block} if blocked else {})),
             onnx.helper.make_node("Gemm" if transposed else "MatMul", ["x", "w"], ["y"], **({"transB": 1} if transposed else {}))]
    assert_as_onnxruntime(model(nodes, ("m", depth), arrays), [(1, depth), (5, depth)], bits)


@pytest.mark.parametrize("bits, most", [(8, 0.275), (4, 0.15), (2, 0.09)])
def test_weights_take_the_room_of_their_bits(tmp_path: Path, bits: int, most: float) -> None:
    """In groups of 64, with zero points; the file of weights of an artifact."""
    depth, columns = 1024, 768
    low = 1 << bits - 1
    graph = dequantized_product(*quantized(depth, columns, 64, -low, low, symmetric=False), 1)
    compile_graph(graph, options=Options(cache=False)).save(str(tmp_path / "layer.so"))
    stored = sum(path.stat().st_size for path in tmp_path.iterdir() if path.suffix == ".weights")
    assert 0 < stored <= most * depth * columns * 4


def test_the_benchmark_says_what_share_of_the_limits_is_reached() -> None:
    forgotten: list[bool] = []
    ticks = itertools.count()
    row = benchmark.measure(4, 2, 64, 16, lambda: float(next(ticks)), lambda: forgotten.append(True), {"read": 1e10, "float32": 1e11}, calls=3)
    assert len(forgotten) == 6 and row["error"] < 1e-5 and row["rate"] == (64 * 64 / 2 + 4 * 64 * 4) / row["seconds"]
    assert row["of reading"] == row["rate"] / 1e10 and row["of computing"] == 2 * 2 * 64 * 64 / row["seconds"] / 1e11
    assert "int4    2 rows" in benchmark.line(row)


def test_blocks_of_the_peer_hold_the_same_weights() -> None:
    """By the definition of Q4_0, in ggml's `dequantize_row_q4_0`."""
    weights = benchmark.random_weights(4, 96, 32, half_scales=True)
    blocks = q4_0_blocks(weights.integers.reshape(96, 96), weights.scales[:, 0])
    assert blocks.shape == (96, 3) and blocks.dtype.itemsize == 18
    halves = [(codes.astype(int) - 8) * blocks["scale"].astype(np.float32)[..., None] for codes in (blocks["codes"] & 15, blocks["codes"] >> 4)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=-1).reshape(96, 96).T, weights.dense)


def test_the_benchmark_takes_turns_with_a_peer_and_refuses_its_wrong_results(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Peer:
        wrong = 0.0

        def __init__(self, x: Array, integers: Array, scales: Array) -> None:
            self.x, self.dense, self.calls = x, integers * np.repeat(scales, 32, axis=0), 0

        def __call__(self) -> None:
            self.calls += 1

        def values(self) -> Array:
            assert self.calls == 2
            return self.x @ self.dense + np.float32(self.wrong)

        def close(self) -> None:
            self.calls = 0

    ticks = itertools.count()

    def row() -> dict[str, float]:
        return benchmark.measure(4, 1, 64, 32, lambda: float(next(ticks)), lambda: None, {"read": 1e10, "float32": 1e11}, calls=2, peer=Peer)

    found = row()
    assert found["ggml error"] < 1e-5 and found["rate"] == (64 * 64 / 2 + 2 * 64 * 2) / found["seconds"]
    assert "ggml / ours  1.00" in benchmark.line(found)
    monkeypatch.setattr(Peer, "wrong", 1.0)
    with pytest.raises(ValueError, match="ggml's product 1x64x64 is wrong by"):
        row()
    for arguments, complaint in ((["--bits", "2"], "Q4_0 has 4 bits in groups of 32"), ([], "no libggml-base.so in nowhere: build the targets")):
        with pytest.raises(SystemExit):
            benchmark.main(["--ggml", "nowhere", *arguments])
        assert complaint in capsys.readouterr().err
