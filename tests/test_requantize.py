"""Rounding to steps without divisions, known weights that are packed or dequantized at compile time: what passes make of them,
against the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tests.test_integers import BYTE_PAIRS, contractions, integers, passed, product, real
from tilewright import library as lib
from tilewright.ir.caps import Caps
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv, Dot, Elementwise
from tilewright.ir.ops.control import Composite, Param
from tilewright.ir.ops.winograd import WinogradConv
from tilewright.ir.types import F32, I8, I32, U8, DType
from tilewright.library_quantized import dequantize, difference, quantize
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.passes.lower_quantized import lower_quantized

VALUES = np.array([0, -0.0, 0.15, 0.45, 1e30, -1e30, np.inf, -np.inf, np.nan, 38.1, -38.4, 9830.1, 1e-40, 7.6, -0.15, 3], np.float32)


def quotients(graph: Graph) -> int:
    return sum(isinstance(node.op, Elementwise) and node.op.function == "div" for node in graph.nodes())


def stepped(scale: object, point: int | None, dtype: DType, before: float | None = None, rows: object = 16) -> Graph:
    """A quantized x, divided before, beside something that is dequantized."""
    b = Builder()
    x, byte = b.add(Param("x", F32, (rows,))), b.add(Param("byte", U8, ()))
    value = x if before is None else lib.apply(b, "div", x, lib.constant(b, before, F32))
    zero = None if point is None else lib.constant(b, point, dtype)
    whole = quantize(b, value, lib.constant(b, scale, F32), zero, dtype)
    return Graph("g", [x, byte], [whole, dequantize(b, byte, lib.constant(b, 0.5, F32))])


@pytest.mark.parametrize(("dtype", "point"), [(U8, 0), (U8, 255), (I8, None), (I8, -128)])
def test_a_known_scale_is_multiplied_by(dtype: DType, point: int | None) -> None:
    wide = np.random.default_rng(0).normal(0, 40, 4096).astype(np.float32)
    for scale, before in ((0.25, None), (0.3, None), (0.3, 6.0)):
        graph = stepped(scale, point, dtype, before, symbol("n"))
        lowered = lower_quantized(graph, Options(), BYTE_PAIRS)
        assert quotients(lowered) == 0
        run = tw.compile(graph)
        for values in (VALUES, wide, wide[:0]):
            inputs = [values, np.uint8(3)]
            expected = evaluate_graph(graph, inputs)[0]
            for found in (evaluate_graph(lowered, inputs)[0], run(*inputs)[0]):
                away = np.abs(found.astype(int) - expected)
                assert away.max(initial=0) <= (scale != 0.25) and (away != 0).mean() < 0.01 if values.size else found.size == 0
        steps = (np.arange(-100, 101) * np.float32(scale)).astype(np.float32)  # what is a whole number of steps stays that
        if before is None:
            np.testing.assert_array_equal(run(steps, np.uint8(0))[0], evaluate_graph(graph, [steps, np.uint8(0)])[0])


@pytest.mark.parametrize("scale", [0.0, 1e-30, np.inf, np.nan, np.linspace(0, 1, 16)])
def test_scales_without_reciprocals_are_divided_by(scale: object) -> None:
    graph = stepped(scale, 3, U8)
    lowered = lower_quantized(graph, Options(), BYTE_PAIRS)
    np.testing.assert_array_equal(evaluate_graph(lowered, [VALUES, np.uint8(3)])[0], evaluate_graph(graph, [VALUES, np.uint8(3)])[0])
    assert [node.op.label for node in lowered.nodes() if isinstance(node.op, Composite)] == ["quantize", "dequantize"]


def test_a_round_trip_may_have_a_zero_point_of_run_time() -> None:
    b = Builder()
    x, point, scale = b.add(Param("x", F32, (16,))), b.add(Param("point", I8, ())), lib.constant(b, 0.25, F32)
    graph = Graph("g", [x, point], [dequantize(b, quantize(b, x, scale, point, I8), scale, point)])
    lowered = lower_quantized(graph, Options(), BYTE_PAIRS)
    run = tw.compile(graph)
    for number in (-128, 0, 127):
        inputs = [VALUES, np.int8(number)]
        for found in (evaluate_graph(lowered, inputs)[0], run(*inputs)):
            np.testing.assert_array_equal(found, evaluate_graph(graph, inputs)[0])


def test_quotients_that_decisions_rest_on_stay() -> None:
    b = Builder()
    x, byte = b.add(Param("x", F32, (16,))), b.add(Param("byte", U8, ()))
    third = lib.apply(b, "div", x, lib.constant(b, 3, F32))
    sixth = lib.apply(b, "div", x, lib.constant(b, 6, F32))
    results = [lib.scalar(b, "floor", third), sixth, dequantize(b, byte, lib.constant(b, 0.5, F32))]
    graph = Graph("g", [x, byte], results)
    assert quotients(lower_quantized(graph, Options(), BYTE_PAIRS)) == 1
    assert quotients(lower_quantized(graph, Options(precision="plain"), BYTE_PAIRS)) == 2
    assert lower_quantized(graph, Options(precision="strict"), BYTE_PAIRS) is graph
    found, expected = tw.compile(graph)(VALUES, np.uint8(1)), evaluate_graph(graph, [VALUES, np.uint8(1)])
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=3e-7)


def test_known_weights_are_packed_at_compile_time() -> None:
    """Also those that are too large to be widened on the way, and bytes with a zero point of their own."""
    weights = integers(I8, (260, 300), 1, 63)
    b = Builder()
    x = b.add(Param("x", U8, (4, 260)))
    shifted = difference(b, lib.constant(b, (weights.astype(np.int16) + 128).astype(np.uint8)), lib.constant(b, 128, U8))
    other = Graph("g", [x], [b.add(Dot((1,), (0,), result=I32), difference(b, x, lib.constant(b, 9, U8)), shifted)])
    data = integers(U8, (4, 260))
    for graph in (product(U8, 4, weights, zero_point=9), other):
        packed = passed(graph, BYTE_PAIRS)
        assert [op.step for op in contractions(packed)] == [4]
        assert len(lower_program(packed, BYTE_PAIRS)[0].kernels()) == 1
        np.testing.assert_array_equal(tw.compile(graph)(data), (data.astype(np.int32) - 9) @ weights.astype(np.int32))


@pytest.mark.parametrize("point", [None, 3])
def test_weights_of_a_convolution_that_stays_in_floats_are_floats(point: int | None) -> None:
    b = Builder()
    x, left = real(b, "x", U8, (1, 96, 16, 16), np.float32(0.5), 1)
    scale: Node = lib.constant(b, np.linspace(0.1, 1, 32, dtype=np.float32).reshape(32, 1, 1, 1))
    w = lib.constant(b, integers(I8, (32, 96, 3, 3), 1))
    right = dequantize(b, w, scale, None if point is None else lib.constant(b, np.full((32, 1, 1, 1), point), I8))
    graph = Graph("g", [x], [b.add(Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)), left, right)])
    caps = Caps(vector_bits=256, has_pairs=True)
    assert any(isinstance(inner.op, WinogradConv) for node in passed(graph, caps).nodes()
               for inner in (node.op.body.nodes() if hasattr(node.op, "body") else [node]))
    lowered, data = lower_quantized(graph, Options(), caps), [integers(U8, (1, 96, 16, 16))]
    np.testing.assert_array_equal(evaluate_graph(lowered, data)[0], evaluate_graph(graph, data)[0])
