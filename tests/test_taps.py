"""Convolutions of bytes with a scale for each place: tap by tap in integers, in every layout, and what is left as floats."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright import library as lib
from tilewright.ir.caps import Caps
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv
from tilewright.ir.ops.control import Param
from tilewright.ir.types import F32, I8, I32, U8
from tilewright.library_quantized import dequantize
from tilewright.options import Options
from tilewright.passes.lower_quantized import left_as_floats, lower_quantized

ONE, TWO = (1, 1), (2, 2)
PAIRS = Caps(vector_bits=256, has_pairs=True)
CASES = {  # op, input, weights, scale
    "one axis": (Conv((1,), ((2, 1),), (1,), (1,)), (2, 64, 9), (5, 64, 3), (2, 1, 9)),
    "spread": (Conv((2,), ((0, 3),), (2,), (1,)), (1, 64, 12), (3, 64, 3), (1, 1, 12)),
    "rows alone": (Conv(TWO, ((1, 0), (0, 2)), ONE, ONE), (2, 66, 5, 6), (7, 66, 2, 3), (1, 1, 5, 1)),
    "points": (Conv(ONE, ((0, 0), (0, 0)), ONE, ONE), (2, 64, 3, 4), (9, 64, 1, 1), (2, 1, 3, 4)),
    "channels last": (Conv(ONE, ((1, 1), (1, 1)), TWO, ONE, 1, True), (2, 6, 5, 64), (2, 2, 64, 17), (2, 6, 5, 1)),
}


def product(op: Conv, shape: tuple[int, ...], weights: tuple[int, ...], scale: tuple[int, ...], zero_point: bool = False) -> Graph:
    rng = np.random.default_rng(len(shape))
    b = Builder()
    x, scales = b.add(Param("x", U8 if zero_point else I8, shape)), b.add(Param("scales", F32, scale))
    w = lib.constant(b, rng.integers(-127, 128, weights).astype(np.int8))
    per_channel = [1] * len(weights)
    per_channel[-1 if op.channels_last else 0] = weights[-1 if op.channels_last else 0]
    right = dequantize(b, w, lib.constant(b, rng.uniform(0.5, 2, per_channel).astype(np.float32)))
    left = dequantize(b, x, scales, lib.constant(b, 7, U8) if zero_point else None)
    return Graph("g", [x, scales], [b.add(op, left, right)])


def inputs(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    x, scales = graph.params
    return [rng.integers(-128, 128, x.shape).astype(np.int8), rng.uniform(0.1, 3, scales.shape).astype(np.float32)]


@pytest.mark.parametrize("name", CASES)
def test_each_tap_is_a_product_of_integers(name: str) -> None:
    graph = product(*CASES[name])
    data = inputs(graph)
    expected, = evaluate_graph(graph, data)
    lowered = lower_quantized(graph, Options(), PAIRS)
    convolutions = [node for node in lowered.nodes() if isinstance(node.op, Conv)]
    op, _, weights, _ = CASES[name]
    kernel = weights[:-2] if op.channels_last else weights[2:]
    assert len(convolutions) == np.prod(kernel) and all(node.dtype == I32 for node in convolutions)
    assert not left_as_floats(graph, Options(), PAIRS)
    for found in (evaluate_graph(lowered, data)[0], tw.compile(graph)(*data)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())  # the float sum rounds some hundred terms


def test_a_place_that_is_not_finite_spoils_what_reads_it_alone() -> None:
    graph = product(*CASES["one axis"])
    x, scales = inputs(graph)
    scales[0, 0, 4] = np.inf
    found, usual = tw.compile(graph)(x, scales), tw.compile(graph)(x, inputs(graph)[1])
    reads = np.zeros(found.shape, bool)
    reads[0, :, 4:7] = True  # output 4 + 2 - tap
    assert not np.isfinite(found[reads]).any()
    np.testing.assert_array_equal(found[~reads], usual[~reads])


@pytest.mark.parametrize(("op", "shape", "weights", "scale", "zero_point", "reason"), [
    (*CASES["one axis"], True, "a scale differs from place to place, and there is a zero point"),
    (CASES["one axis"][0], (2, 32, 9), (5, 32, 3), (2, 1, 9), False,
     "a scale differs from place to place, and the products of a tap are too few"),
    (Conv((1,), ((2, 1),), (1,), (1,), 2), (2, 128, 9), (6, 64, 3), (2, 1, 9), False,
     "a scale differs from place to place, and the products of a tap are too few"),
    (CASES["one axis"][0], (2, 64, 9), (5, 64, 3), (1, 64, 1), False, "a scale varies along the contraction")])
def test_others_stay_floats_for_a_reason(op: Conv, shape: tuple[int, ...], weights: tuple[int, ...], scale: tuple[int, ...],
                                         zero_point: bool, reason: str) -> None:
    graph = product(op, shape, weights, scale, zero_point)
    assert [text for _, text in left_as_floats(graph, Options(), PAIRS)] == [reason]
    assert not any(node.dtype == I32 for node in lower_quantized(graph, Options(), PAIRS).nodes() if isinstance(node.op, Conv))
