"""Contractions of narrow integers: what is packed for which target, by the interpreters and as machine code, and what of them the
pass `lower_quantized` makes of dequantized operands."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import tilewright as tw
from tilewright import library as lib
from tilewright.build import enter, lower, program_text
from tilewright.ir.caps import Caps
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.compute import Conv, Dot, PackedConv, PackedDot
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.scalar import evaluate_scalar
from tilewright.ir.types import F32, I8, I16, I32, U8, DType
from tilewright.library_quantized import dequantize, difference, quantize
from tilewright.lowering.lower import lower_program
from tilewright.options import Environment, Options
from tilewright.passes.lower_quantized import left_as_floats, lower_quantized
from tilewright.pipeline import run_passes

QUIET = Environment(debug=0, dump=None, verify=1, backend="", cache_directory=None)
PAIRS = Caps(vector_bits=128, has_pairs=True)
BYTE_PAIRS = Caps(vector_bits=128, has_pairs=True, has_byte_pairs=True)
QUADS = Caps(vector_bits=128, has_pairs=True, has_byte_pairs=True, has_quads=True)
TARGETS = {"plain": Caps(vector_bits=128), "pairs": PAIRS, "byte_pairs": BYTE_PAIRS, "quads": QUADS}
RANGES = {U8: (0, 256), I8: (-128, 128), I16: (-255, 256)}


def integers(dtype: DType, shape: tuple[int, ...], seed: int = 0, most: int | None = None) -> np.ndarray:
    low, high = RANGES[dtype] if most is None else (-most, most + 1)
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype.numpy)


def product(left: DType, rows: object, right: np.ndarray, zero_point: int | None = None, known: bool = True) -> Graph:
    """[rows, K] times [K, N] into int32; bytes less a zero point where there is one."""
    b = Builder()
    x = b.add(Param("x", left, (rows, right.shape[0])))
    w = lib.constant(b, right) if known else b.add(Param("w", tw.ir.types.dtype_of(right.dtype), right.shape))
    shifted = x if zero_point is None else difference(b, x, lib.constant(b, zero_point, left))
    return Graph("g", [x] if known else [x, w], [b.add(Dot((1,), (0,), result=I32), shifted, w)])


def passed(graph: Graph, caps: Caps) -> Graph:
    return run_passes(graph, Options(), caps, QUIET)[0]


def contractions(graph: Graph) -> list[PackedDot | PackedConv]:
    found = [inner.op for node in graph.nodes() for inner in (node.op.body.nodes() if hasattr(node.op, "body") else [node])]
    return [op for op in found if isinstance(op, (PackedDot, PackedConv))]


def check_loops(graph: Graph, caps: Caps, inputs: list[np.ndarray]) -> None:
    expected, found = evaluate_graph(graph, inputs), run_program(lower_program(passed(graph, caps), caps)[0], inputs)
    for x, y in zip(expected, found, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("left", "right"), [(U8, I8), (I8, I8), (I16, I8), (U8, U8), (I16, I16)])
def test_integer_products_are_exact_in_loops(left: DType, right: DType, target: str) -> None:
    for rows, depth, columns in ((3, 10, 9), (1, 4, 17), (6, 7, 1)):
        weights = integers(right, (depth, columns), 1)
        for known in (True, False):
            graph = product(left, rows, weights, known=known)
            check_loops(graph, TARGETS[target], [integers(left, (rows, depth))] + ([] if known else [weights]))


@pytest.mark.parametrize("target", TARGETS)
def test_a_zero_point_is_subtracted_exactly(target: str) -> None:
    graph = product(U8, 5, integers(I8, (12, 10), 1, most=40), zero_point=131)
    check_loops(graph, TARGETS[target], [integers(U8, (5, 12))])


@pytest.mark.parametrize(("caps", "left", "most", "step", "saturates"), [
    (PAIRS, U8, 127, 2, False), (BYTE_PAIRS, U8, 127, 2, False), (BYTE_PAIRS, U8, 64, 4, True), (BYTE_PAIRS, I8, 64, 4, True),
    (BYTE_PAIRS, I16, 64, 2, False), (QUADS, U8, 127, 4, False), (QUADS, I16, 127, 2, False)])
def test_the_target_and_the_weights_decide_what_a_word_holds(caps: Caps, left: DType, most: int, step: int, saturates: bool) -> None:
    weights = np.full((8, 16), most, np.int8)
    op, = contractions(passed(product(left, 4, weights), caps))
    assert (op.step, op.saturates) == (step, saturates)


@pytest.mark.parametrize(("pair", "step"), [((64, 64), 4), ((65, 64), 2), ((-64, -64), 4), ((-64, -65), 2), ((127, -128), 4)])
def test_bytes_are_paired_only_where_their_sum_fits_16_bits(pair: tuple[int, int], step: int) -> None:
    weights = np.zeros((8, 16), np.int8)
    weights[2:4, 5] = pair
    graph = product(U8, 4, weights)
    assert contractions(passed(graph, BYTE_PAIRS))[0].step == step
    check_loops(graph, BYTE_PAIRS, [np.full((4, 8), 255, np.uint8)])


def test_a_zero_point_may_be_moved_before_it_is_subtracted() -> None:
    b = Builder()
    x = b.add(Param("x", U8, (1, 8, 4, 4)))
    spread = lib.broadcast(b, lib.reshape(b, lib.constant(b, 100, U8), (1, 1, 1, 1)), (1, 8, 4, 4))
    op = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1, False, I32)
    graph = Graph("g", [x], [b.add(op, difference(b, x, spread), lib.constant(b, integers(I8, (4, 8, 3, 3), 1, 64)))])
    assert [op.step for op in contractions(passed(graph, BYTE_PAIRS))] == [4]
    check_loops(graph, BYTE_PAIRS, [integers(U8, (1, 8, 4, 4))])


def test_a_zero_point_of_other_bytes_is_part_of_the_sum() -> None:
    """Two zero points that vary with the rows or are of another dtype: nothing is multiplied as bytes."""
    b = Builder()
    x, points = b.add(Param("x", U8, (4, 8))), b.add(Param("points", U8, (4, 1)))
    graph = Graph("g", [x, points], [b.add(Dot((1,), (0,), result=I32), difference(b, x, points), lib.constant(b, integers(I8, (8, 16))))])
    assert contractions(passed(graph, QUADS))[0].step == 2
    check_loops(graph, QUADS, [integers(U8, (4, 8)), integers(U8, (4, 1), 2)])


def conv_graph(op: Conv, x: tuple[int, ...], w: np.ndarray, zero_point: int | None) -> Graph:
    b = Builder()
    p = b.add(Param("x", U8, x))
    shifted = p if zero_point is None else difference(b, p, lib.constant(b, zero_point, U8))
    return Graph("g", [p], [b.add(op, shifted, lib.constant(b, w))])


CONVS = [(Conv((1, 1), ((1, 1), (0, 1)), (1, 1), (1, 1), 1, False, I32), (1, 6, 5, 6), (7, 6, 3, 3)),
         (Conv((2, 1), ((1, 1), (1, 1)), (1, 2), (1, 1), 2, False, I32), (1, 6, 7, 8), (4, 3, 3, 3)),
         (Conv((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 1, False, I32), (2, 5, 3, 4), (9, 5, 1, 1)),
         (Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 4, False, I32), (1, 4, 5, 5), (4, 1, 3, 3)),
         (Conv((1, 1), ((1, 0), (1, 0)), (1, 1), (2, 2), 1, False, I32), (1, 4, 3, 3), (5, 4, 2, 2))]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", range(len(CONVS)))
def test_integer_convolutions_are_exact_in_loops(number: int, target: str) -> None:
    op, x, w = CONVS[number]
    for zero_point, most in itertools.product((None, 100), (127, 40)):
        check_loops(conv_graph(op, x, integers(I8, w, 1, most), zero_point), TARGETS[target], [integers(U8, x)])


def test_machine_code_multiplies_exactly() -> None:
    for (left, right, most), (rows, depth, columns) in itertools.product(
            ((U8, I8, 127), (U8, I8, 63), (I8, I8, 64), (I16, I8, 127), (U8, U8, None)), ((5, 7, 19), (33, 131, 77), (1, 64, 32))):
        weights, x = integers(right, (depth, columns), 1, most), integers(left, (rows, depth))
        for known in (True, False):
            found = tw.compile(product(left, rows, weights, known=known))(*([x] if known else [x, weights]))
            np.testing.assert_array_equal(found, x.astype(np.int32) @ weights.astype(np.int32))
    for number, most in itertools.product(range(len(CONVS)), (127, 40)):
        op, shape, w = CONVS[number]
        graph, x = conv_graph(op, shape, integers(I8, w, 1, most), 77), integers(U8, shape)
        np.testing.assert_array_equal(tw.compile(graph)(x), evaluate_graph(graph, [x])[0])


def test_one_program_serves_all_numbers_of_rows() -> None:
    for most in (127, 63):
        weights = integers(I8, (40, 24), 1, most)
        run = tw.compile(product(U8, symbol("n"), weights, zero_point=9))
        for rows in (0, 1, 2, 3, 5, 17, 64):
            x = integers(U8, (rows, 40), rows)
            np.testing.assert_array_equal(run(x), (x.astype(np.int32) - 9) @ weights.astype(np.int32))


@pytest.mark.parametrize(("target", "most", "instruction", "absent"), [
    ("cpu:x86-64", 127, "pmaddwd", "pmaddubsw"), ("cpu:x86-64-v3", 127, "vpmaddwd", "vpmaddubsw"), ("cpu:x86-64-v3", 63, "vpmaddubsw", "vpdpbusd"),
    ("cpu:x86-64-v4", 127, "vpmaddwd", "vpdpbusd"), ("cpu:sapphirerapids", 127, "vpdpbusd", "vpmaddwd"), ("cpu:znver4", 127, "vpdpbusd", "vpmaddwd")])
def test_targets_use_their_instructions(target: str, most: int, instruction: str, absent: str) -> None:
    graph = product(U8, 64, np.full((64, 64), most, np.int8), zero_point=3)
    text = program_text(lower(enter(graph, "", "", target, Options()), target), "asm", target)
    assert instruction in text and absent not in text


def test_words_are_what_the_instructions_make_of_them() -> None:
    a = np.array([0x00020003, -1, 0x7FFF8000], np.int32)
    b = np.array([0x00050007, 0x7FFF0001, -2 ** 31 + 0x8000], np.int32)
    c = np.array([1, 2, 3], np.int32)
    pairs = [2 * 5 + 3 * 7 + 1, -0x7FFF - 1 + 2, 0x7FFF * -0x8000 + 0x8000 * 0x8000 + 3]
    assert evaluate_scalar("dot_pairs", [a, b, c]).tolist() == pairs
    most, least = np.array([-1], np.int32), np.array([-2139062144], np.int32)  # four bytes 255, four bytes -128
    assert evaluate_scalar("dot_quads", [most, least, c[:1]]).tolist() == [-4 * 255 * 128 + 1]
    assert evaluate_scalar("dot_quads_saturating", [most, least, c[:1]]).tolist() == [-2 * 32768 + 1]
    assert evaluate_scalar("widen_pairs", [np.array([0x01FF, -256], np.int16)]).tolist() == [0x0001FFFF, -65536]


# --- quantized graphs ------------------------------------------------------------------------------------------------


def real(b: Builder, name: str, dtype: DType, shape: tuple[int, ...], scale: np.ndarray, point: int | None) -> tuple[Node, Node]:
    x = b.add(Param(name, dtype, shape))
    return x, dequantize(b, x, lib.constant(b, scale, F32), None if point is None else lib.constant(b, point, dtype))


def test_dequantized_operands_are_multiplied_as_integers() -> None:
    b = Builder()
    x, left = real(b, "x", U8, (3, 5, 8), np.float32(0.5), 120)
    w, right = real(b, "w", I8, (16, 8), np.linspace(0.25, 2, 16, dtype=np.float32)[:, None], None)
    value = lib.matmul(b, left, lib.transpose(b, right, (1, 0)))
    graph = Graph("g", [x, w], [value])
    lowered = lower_quantized(graph, Options(), PAIRS)
    dots = [node.op for node in lowered.nodes() if isinstance(node.op, Dot)]
    assert [op.result for op in dots] == [I32]
    inputs = [integers(U8, (3, 5, 8)), integers(I8, (16, 8), 1)]
    # the sum of floats rounds for each of its terms, that of integers once
    np.testing.assert_allclose(evaluate_graph(lowered, inputs)[0], evaluate_graph(graph, inputs)[0], rtol=1e-5)
    np.testing.assert_allclose(tw.compile(graph)(*inputs), evaluate_graph(graph, inputs)[0], rtol=1e-5)


def test_a_padded_convolution_of_dequantized_operands_is_of_integers() -> None:
    b = Builder()
    x, left = real(b, "x", U8, (1, 8, 6, 6), np.float32(0.125), 7)
    w, right = real(b, "w", I8, (4, 8, 3, 3), np.array([1, 2, 0.5, 0.25], np.float32).reshape(4, 1, 1, 1), None)
    padded = lib.pad(b, left, [0, 0, 1, 0], [0, 0, 0, 1])
    graph = Graph("g", [x, w], [b.add(Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)), padded, right)])
    lowered = lower_quantized(graph, Options(), PAIRS)
    assert [node.op.result for node in lowered.nodes() if isinstance(node.op, Conv)] == [I32]
    inputs = [integers(U8, (1, 8, 6, 6)), integers(I8, (4, 8, 3, 3), 1)]
    np.testing.assert_array_equal(evaluate_graph(lowered, inputs)[0], evaluate_graph(graph, inputs)[0])  # powers of two: exact
    np.testing.assert_array_equal(tw.compile(graph)(*inputs), evaluate_graph(graph, inputs)[0])


@pytest.mark.parametrize(("caps", "options", "depth", "columns", "scales", "reason"), [
    (Caps(), Options(), 64, 16, (1, 1), "the target has no instruction that multiplies narrow integers"),
    (PAIRS, Options(precision="strict"), 64, 16, (1, 1), 'precision="strict" asks for the sum of floats'),
    (PAIRS, Options(), 4, 16, (1, 1), "a sum of 4 products is not worth its conversion"),
    (PAIRS, Options(), 64, 1, (1, 1), "one column is a sum over rows, which memory limits"),
    (PAIRS, Options(), 64, 16, (64, 1), "a scale varies along the contraction"),
    (PAIRS, Options(), 40_000, 16, (1, 1), "its sums might not fit into int32")])
def test_other_products_stay_floats_for_a_reason(caps: Caps, options: Options, depth: int, columns: int, scales: tuple[int, int],
                                                 reason: str) -> None:
    b = Builder()
    x, left = real(b, "x", U8, (2, depth), np.float32(0.5), 1)
    w, right = real(b, "w", U8, (depth, columns), np.ones(scales, np.float32), 3)
    graph = Graph("g", [x, w], [lib.matmul(b, left, right)])
    lowered = lower_quantized(graph, options, caps)
    assert [node.op.result for node in lowered.nodes() if isinstance(node.op, Dot)] == [None]
    assert [text for _, text in left_as_floats(graph, options, caps)] == [reason]


@pytest.mark.parametrize(("weights", "groups", "reason"), [
    ((8, 1, 3, 3), 8, "a depthwise convolution has too few products for each element"),
    ((8, 3, 3, 3), 1, "3 channels do not fill words of the integers"),
    ((96, 96, 3, 3), 1, "Winograd's algorithm saves more products than integers are faster")])
def test_other_convolutions_stay_floats_for_a_reason(weights: tuple[int, ...], groups: int, reason: str) -> None:
    b = Builder()
    x, left = real(b, "x", U8, (1, groups * weights[1], 48, 48), np.float32(0.5), 1)
    right = dequantize(b, lib.constant(b, integers(I8, weights)), lib.constant(b, 0.25, F32))
    graph = Graph("g", [x], [b.add(Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), groups), left, right)])
    caps = Caps(vector_bits=256, has_pairs=True)
    assert [text for _, text in left_as_floats(graph, Options(), caps)] == [reason]
    assert not any(node.dtype == I32 for node in lower_quantized(graph, Options(), caps).nodes())


def test_known_scales_that_are_not_finite_meet_each_term() -> None:
    """A sum of zero times infinity is no number, which some of its terms are not; said here without what the pass itself asks."""
    b = Builder()
    left, right = (real(b, name, I8, shape, np.full((1, 1), scale, np.float32), None)
                   for name, shape, scale in (("x", (4, 32), np.inf), ("w", (32, 16), 0.5)))
    graph = Graph("infinite", [left[0], right[0]], [lib.matmul(b, left[1], right[1])])
    assert [text for _, text in left_as_floats(graph, Options(), PAIRS)] == ["a scale is not finite"]
    inputs = [np.ones((4, 32), np.int8), np.ones((32, 16), np.int8)]
    assert np.isposinf(evaluate_graph(lower_quantized(graph, Options(), PAIRS), inputs)[0]).all()
    inputs[0][:, 0] = -1
    assert np.isnan(evaluate_graph(lower_quantized(graph, Options(), PAIRS), inputs)[0]).all()


def test_scales_whose_product_overflows_meet_each_term() -> None:
    """A sum of zero times an infinite product was NaN."""
    b = Builder()
    pairs = [real(b, name, I8, shape, np.full((1, 1), 1e20, np.float32), None) for name, shape in (("x", (4, 32)), ("w", (32, 16)))]
    graph = Graph("large", [param for param, _ in pairs], [lib.matmul(b, *(value for _, value in pairs))])
    assert [text for _, text in left_as_floats(graph, Options(), PAIRS)] == ["its scales are too large to be multiplied"]
    zeros, ones = np.zeros((4, 32), np.int8), np.ones((32, 16), np.int8)
    assert not evaluate_graph(lower_quantized(graph, Options(), PAIRS), [zeros, ones])[0].any()


def test_scales_whose_product_is_lost_meet_each_term() -> None:
    """A product of scales below the least normal number has few digits or none: sums times it came out as zeros."""
    b = Builder()
    pairs = [real(b, name, I8, shape, np.full((1, 1), 1e-22, np.float32), None) for name, shape in (("x", (4, 32)), ("w", (32, 16)))]
    graph = Graph("small", [param for param, _ in pairs], [lib.matmul(b, *(value for _, value in pairs))])
    assert [text for _, text in left_as_floats(graph, Options(), PAIRS)] == ["its scales are too small to be multiplied"]


def test_an_operand_of_floats_is_named() -> None:
    b = Builder()
    x, w = b.add(Param("x", F32, (4, 16))), dequantize(b, lib.constant(b, integers(I8, (16, 16))), lib.constant(b, 0.25, F32))
    graph = Graph("g", [x], [lib.matmul(b, x, w)])
    assert [text for _, text in left_as_floats(graph, Options(), PAIRS)] == ["its left operand is not made of bytes by `dequantize`"]


@pytest.mark.parametrize(("dtype", "point"), [(U8, 128), (I8, None), (I8, -3), (I16, 5)])
def test_a_round_trip_through_integers_is_the_same_number(dtype: DType, point: int | None) -> None:
    b = Builder()
    x = b.add(Param("x", F32, (16,)))
    scale, zero = lib.constant(b, 0.3, F32), None if point is None else lib.constant(b, point, dtype)
    graph = Graph("g", [x], [dequantize(b, quantize(b, x, scale, zero, dtype), scale, zero)])
    lowered = lower_quantized(graph, Options(), PAIRS)
    assert not any(node.dtype == dtype for node in lowered.nodes() if node.inputs != () or node in lowered.params)
    values = np.array([0, -0.0, 0.15, 0.45, 1e30, -1e30, np.inf, -np.inf, np.nan, 38.1, -38.4, 9830.1, 1e-40, 7.6, -0.15, 3], np.float32)
    expected = evaluate_graph(graph, [values])[0]
    np.testing.assert_array_equal(evaluate_graph(lowered, [values])[0], expected)
    np.testing.assert_array_equal(tw.compile(graph)(values), expected)


def test_bytes_between_layers_are_stored_as_bytes() -> None:
    """What one layer quantizes and the next one multiplies goes through memory as narrow integers."""
    b = Builder()
    x, left = real(b, "x", U8, (32, 64), np.float32(0.5), 120)
    for seed in (1, 2):
        weights = dequantize(b, lib.constant(b, integers(I8, (64, 64), seed, 63)), lib.constant(b, 2.0 ** -7, F32))
        left = quantize(b, lib.matmul(b, left, weights), lib.constant(b, 4.0, F32), lib.constant(b, 128, U8), U8)
        result = left
        left = dequantize(b, left, lib.constant(b, 4.0, F32), lib.constant(b, 128, U8))
    graph = Graph("g", [x], [result])
    program = lower_program(passed(graph, BYTE_PAIRS), BYTE_PAIRS)[0]
    assert all(buffer.dtype == U8 for kernel in program.kernels() for buffer in kernel.buffers if buffer.space == "out")
    data = integers(U8, (32, 64))
    np.testing.assert_array_equal(tw.compile(graph)(data), evaluate_graph(graph, [data])[0])
