"""Products of bytes with weights of a few bits: kernels on several targets, what the pass claims, and one row of floats as three bytes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks import weight_only as benchmark
from tests.comparing import assert_close, assert_identical
from tests.compiled import QUIET, compiled, run_compiled
from tilewright import library as lib
from tilewright.build import enter, lower, program_text
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.errors import CompileError
from tilewright.ir.graph import Array, Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.compute import PackedDot
from tilewright.ir.ops.control import Fusion, Param
from tilewright.ir.ops.scalar import evaluate_scalar
from tilewright.ir.ops.weight_only import WeightOnlyDot, step_of_place, words_of_codes
from tilewright.ir.types import F16, F32, I8, I32, U8, DType, TensorType
from tilewright.library_quantized import dequantize, quantize
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.passes.narrow_products import narrow_products
from tilewright.pipeline import left_as_floats, run_passes

PAIRS = Caps(vector_bits=128, has_pairs=True, has_byte_pairs=True)
QUADS = Caps(vector_bits=256, vector_registers=32, has_pairs=True, has_byte_pairs=True, has_quads=True)
PLAIN = Caps(vector_bits=128)


def operands(op: WeightOnlyDot, depth: int, points: DType | None, tile: int = 16) -> list[Array]:
    rng = np.random.default_rng(depth + op.columns)
    panels, groups = -(-op.columns // tile), -(-depth // op.group)
    codes = rng.integers(0, 1 << op.bits, (panels, groups * op.group, tile)).astype(np.uint8)
    found = [words_of_codes(codes, op.bits), rng.uniform(0.005, 0.015, (panels, groups, tile)).astype(np.float32)]
    if points is not None:
        found.append((rng.integers(0, 1 << op.bits, (panels, groups, tile)) - (0.5 if points is F32 else 0)).astype(points.numpy))
    return found


Case = tuple[int, int, int, int, int, DType | None]  # bits, group, steps, columns, zero, zero points
CASES: list[Case] = [(4, 16, 48, 21, 8, None), (4, 24, 48, 16, 0, U8), (4, 48, 48, 5, 3, F32), (2, 16, 48, 33, 2, None), (2, 48, 48, 16, 0, I8)]


def products(rows: DimLike, dtype: DType = I8, tile: int = 16, cases: Sequence[Case] = CASES) -> Graph:
    """All cases, of one left operand."""
    b = Builder()
    x = b.add(Param("x", dtype, (rows, 48)))
    results = []
    for bits, group, depth, columns, zero, points in cases:
        op = WeightOnlyDot(columns, bits, group, zero)
        results.append(b.add(op, x, *(lib.constant(b, array) for array in operands(op, depth, points, tile))))
    return Graph("products", [x], results)


def some_bytes(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).integers(-128, 128, shape).astype(np.int8)


# --- the op ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_four_steps_that_follow_one_another_lie_at_one_place_of_four_bytes(bits: int) -> None:
    steps = [step_of_place(place, bits) for place in range(32 // bits)]
    assert sorted(steps) == list(range(32 // bits))
    assert steps[::8 // bits] == [0, 1, 2, 3]


def test_bytes_take_whole_groups_of_codes_of_at_most_four_bits() -> None:
    def result(op: WeightOnlyDot, depth: int) -> object:
        return op.infer(TensorType(I8, (2, depth)), TensorType(I32, (1, 4 * op.bits // 4, 8)), TensorType(F32, (1, 1, 8)))

    assert result(WeightOnlyDot(8, 4, 32), 32) == TensorType(F32, (2, 8))
    with pytest.raises(CompileError, match="do not fit columns 8"):
        result(WeightOnlyDot(8, 4, 32), 31)
    with pytest.raises(CompileError, match="i8 and codes of 2 or 4 bits"):
        result(WeightOnlyDot(8, 8, 16), 16)


def test_sums_of_bytes_and_codes_fit_32_bits() -> None:
    def result(zero: int) -> object:
        return WeightOnlyDot(8, 4, 32, zero).infer(TensorType(I8, (2, 32)), TensorType(I32, (1, 4, 8)), TensorType(F32, (1, 1, 8)))

    most = (2**31 - 1) // (32 * 128) - 16
    assert result(most) == result(-most) == TensorType(F32, (2, 8))
    for zero in (most + 1, -most - 1, -2**31):
        with pytest.raises(CompileError, match="whose sums fit 32 bits, found .* groups of 32 codes of 4 bits less"):
            result(zero)


def test_pairs_of_bytes_are_added_to_halves_of_words() -> None:
    most, least = np.array([-1], np.int32), np.array([-2139062144], np.int32)  # four bytes 255, four bytes -128
    a, b, c = (np.array([n], np.int32) for n in (0x04030201, 0x05FF0602, 0x0001FFFF))
    assert evaluate_scalar("add_byte_pairs", [a, b, c]).tolist() == [((1 + 4 * 5 - 3) << 16) + (1 * 2 + 2 * 6 - 1)]
    wrapped = np.array([0x7FFF0001], np.int32)
    assert evaluate_scalar("add_byte_pairs", [most, least, wrapped]).tolist() == [np.int32(-1 << 16) + 0x8001]


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 5, 70])
def test_kernels_agree_with_the_exact_product(rows: int) -> None:
    graph, x = products(rows), some_bytes(rows, 48)
    assert_close(run_compiled(compiled(graph), [x]), evaluate_graph(graph, [x]))


def test_any_number_of_rows_and_threads_that_do_not_show() -> None:
    graph = products(symbol("m"))
    one, three = (compiled(graph, threads=threads) for threads in (1, 3))
    for rows in (0, 1, 2, 5, 70):
        x = some_bytes(rows, 48)
        found = run_compiled(one, [x])
        assert_identical(found, run_compiled(three, [x]))
        assert_close(found, evaluate_graph(graph, [x]))


@pytest.mark.parametrize("caps", [PAIRS, QUADS, PLAIN])
@pytest.mark.parametrize("rows", [1, symbol("m")])
def test_the_loops_read_and_write_where_they_may(rows: DimLike, caps: Caps) -> None:
    graph = products(rows, tile=8, cases=[(4, 24, 48, 11, 0, U8), (2, 16, 48, 9, 2, None)])
    fused, _ = run_passes(graph, Options(), caps, QUIET)
    program, _ = lower_program(fused, caps)
    verify_program(program)
    for count in (rows,) if isinstance(rows, int) else (2,):
        x = some_bytes(count, 48)
        assert_close(run_program(program, [x]), evaluate_graph(graph, [x]))


def test_the_greatest_products_are_not_cut_off() -> None:
    """All codes and activations at their limits: sums within 16 bits are as large as they may be."""
    for bits, group in ((4, 64), (2, 192)):
        op, b = WeightOnlyDot(16, bits, group, 0), Builder()
        words = words_of_codes(np.full((1, 192, 16), (1 << bits) - 1, np.uint8), bits)
        x = b.add(Param("x", I8, (3, 192)))
        graph = Graph("most", [x], [b.add(op, x, lib.constant(b, words), lib.constant(b, np.ones((1, 192 // group, 16), np.float32)))])
        given = np.stack([np.full(192, n, np.int8) for n in (-128, 127, 1)])
        expected = given.astype(np.float32).sum(1, keepdims=True) * np.full((1, 16), (1 << bits) - 1, np.float32)
        assert_identical(run_compiled(compiled(graph), [given]), [expected])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_greatest_zeros_are_not_cut_off(sign: int) -> None:
    zero = sign * ((2**31 - 1) // (48 * 128) - 16)
    graph, x = products(2, cases=[(4, 48, 48, 5, zero, None)]), np.full((2, 48), -128, np.int8)
    x[1] = 127
    assert_close(run_compiled(compiled(graph), [x]), evaluate_graph(graph, [x]))


@pytest.mark.parametrize("target, instruction, absent", [
    ("cpu:x86-64-v3", "vpmaddubsw", "vpdpbusd"), ("cpu:sapphirerapids", "vpdpbusd", "vpmaddubsw"), ("cpu:znver4", "vpdpbusd", "vpmaddubsw")])
@pytest.mark.parametrize("dtype", [I8, F32])
def test_targets_use_their_instructions(target: str, instruction: str, absent: str, dtype: DType) -> None:
    graph = products(1, dtype)
    text = program_text(lower(enter(graph, "", "", target, Options()), target), "asm", target)
    assert instruction in text and absent not in text
    assert dtype is F32 or "vcvtdq2ps" in text and "vpmulld" not in text


# --- one row of floats -----------------------------------------------------------------------------------------------


def test_a_row_of_floats_is_as_exact_as_its_sums() -> None:
    """Within the roundings of sums of codes, for numbers of any size, and of very different sizes in one group."""
    graph = products(1, F32)
    executable = compiled(graph)
    x = np.random.default_rng(0).standard_normal((1, 48)).astype(np.float32)
    spread = x * np.float32(2.0) ** np.random.default_rng(1).integers(-30, 1, (1, 48)).astype(np.float32)
    for given in (x, spread, x * np.float32(2.0**-130), x * np.float32(2.0**118), np.zeros_like(x)):
        for (bits, group, depth, columns, zero, points), found in zip(CASES, run_compiled(executable, [given])):
            op = WeightOnlyDot(columns, bits, group, zero)
            arrays = operands(op, depth, points)
            exact = given.astype(np.float64) @ op.weights(depth, *arrays)
            largest = (2 * (1 << bits) + zero) * 0.015
            room = 16 * 2.0**-23 * largest * np.abs(given.astype(np.float64)).sum() + 96 * 2.0**-149
            assert (np.abs(found - exact) <= room).all()


def test_a_row_with_numbers_that_are_none_shows_it() -> None:
    graph = products(1, F32)
    executable = compiled(graph)
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones((1, 48), np.float32)
        x[0, 17] = bad
        assert all(not np.isfinite(y).any() for y in run_compiled(executable, [x]))


def test_half_precision_and_steps_that_fill_no_group() -> None:
    rng, b = np.random.default_rng(0), Builder()
    x = b.add(Param("x", F16, (1, 41)))
    op = WeightOnlyDot(21, 4, 16, 8)
    arrays = operands(op, 41, None)
    graph = Graph("half", [x], [b.add(op, x, *(lib.constant(b, array) for array in arrays))])
    given = rng.standard_normal((1, 41)).astype(np.float16)
    assert_close(run_compiled(compiled(graph), [given]), evaluate_graph(graph, [given]))


# --- the pass --------------------------------------------------------------------------------------------------------


def rounded(b: Builder, x: Node, kind: str) -> Node:
    """Activations in bytes and back: with a scale a row, or one scale and zero point."""
    if kind == "rows":
        return benchmark.rounded_to_bytes(b, x)
    dtype, point = {"signed": (I8, None), "unsigned": (U8, 117), "shifted": (I8, -9)}[kind]
    scale, zero = lib.constant(b, 0.02, F32), None if point is None else lib.constant(b, point, dtype)
    return dequantize(b, quantize(b, x, scale, zero, dtype), scale, zero)


def layer(rows: DimLike, kind: str, depth: int = 96, columns: int = 21, group: int = 32, symmetric: bool = True, bits: int = 4) -> Graph:
    rng, b = np.random.default_rng(depth), Builder()
    x = b.add(Param("x", F32, (rows, depth)))
    integers = rng.integers(-(1 << bits - 1), 1 << bits - 1, (depth, columns)).astype(np.int8)
    scales, points = rng.uniform(0.01, 0.1, (-(-depth // group), columns)), rng.integers(-8, 8, (-(-depth // group), columns))
    if group < depth:
        scales, points = (np.repeat(a, group, axis=0)[:depth] for a in (scales, points))
    w = dequantize(b, lib.constant(b, integers), lib.constant(b, scales, F32), None if symmetric else lib.constant(b, points, I8))
    return Graph("layer", [x], [lib.matmul(b, rounded(b, x, kind), w)])


def claimed(graph: Graph, precision: str = "default", caps: Caps = PAIRS) -> list[WeightOnlyDot]:
    found = narrow_products(graph, Options(precision=precision), caps)
    return [node.op for node in found.nodes() if isinstance(node.op, WeightOnlyDot) and node.inputs[0].dtype == I8]


@pytest.mark.parametrize("kind, rows, symmetric, depth", [("rows", 3, True, 96), ("rows", symbol("m"), False, 100), ("signed", 1, True, 100),
                                                          ("unsigned", 5, False, 96), ("shifted", 2, True, 96)])
def test_quantized_activations_meet_codes_as_bytes(kind: str, rows: DimLike, symmetric: bool, depth: int) -> None:
    graph = layer(rows, kind, depth, symmetric=symmetric)
    assert [(op.bits, op.group) for op in claimed(graph)] == [(4, 32)]
    assert left_as_floats(graph, Options(), PAIRS) == []
    executable = compiled(graph)
    for count in (rows,) if isinstance(rows, int) else (1, 4):
        x = np.random.default_rng(1).standard_normal((count, depth)).astype(np.float32)
        x[0] = 0 if kind != "rows" else x[0]
        assert_close(run_compiled(executable, [x]), evaluate_graph(graph, [x]), scale=4)


def test_what_is_not_claimed() -> None:
    graph = layer(3, "rows")
    assert claimed(graph) and claimed(graph, caps=QUADS)
    assert not claimed(graph, caps=PLAIN), "no instruction for bytes"
    assert not any(claimed(graph, precision) for precision in ("plain", "strict"))
    assert not claimed(layer(3, "rows", bits=8)), "weights of 8 bits by group"
    assert not claimed(layer(3, "rows", group=8)), "groups of 8"
    assert not claimed(layer(3, "rows", group=96)), "one scale a column, of bytes"
    fused, _ = run_passes(layer(3, "rows", group=96), Options(), PAIRS, QUIET)
    inside = [node for fusion in fused.nodes() if isinstance(fusion.op, Fusion) for node in fusion.op.body.nodes()]
    assert [node.op.step for node in inside if isinstance(node.op, PackedDot)] == [4]


def test_one_kernel_computes_scales_and_what_follows() -> None:
    graph = layer(3, "rows")
    b = Builder()
    y = lib.apply(b, "max", lib.apply(b, "add", graph.results[0], lib.constant(b, np.linspace(-1, 1, 21), F32)), lib.constant(b, 0, F32))
    fused, _ = run_passes(Graph("relu", graph.params, [y]), Options(), PAIRS, QUIET)
    assert [node.op.strategy for node in fused.nodes() if isinstance(node.op, Fusion)] == ["rows", "contraction"]


def test_the_benchmark_knows_quantized_activations() -> None:
    ticks = itertools.count()
    row = benchmark.measure(4, 1, 64, 16, lambda: float(next(ticks)), lambda: None, {"read": 1e10, "float32": 1e11}, calls=2, activations="int8")
    assert 1e-5 < row["error"] < 0.05
