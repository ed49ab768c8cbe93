"""Convolutions by Winograd's algorithm: the matrices, the op, the choice, the kernels, and the bound of their error."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.comparing import assert_close, assert_identical
from tests.compiled import QUIET, compiled, run_compiled
from tilewright import library as lib
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.errors import CompileError
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.compute import Conv
from tilewright.ir.ops.control import Fusion, Param
from tilewright.ir.ops.winograd import WinogradConv
from tilewright.ir.types import F32, F64, DType, TensorType
from tilewright.ir.winograd import MOST_POINTS, apply_rows, count_steps, winograd
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.passes.winograd import MOST_AMPLIFICATION, choose_tiles, transform_weights
from tilewright.pipeline import run_passes

CAPS = Caps(vector_bits=128, vector_registers=16)
PAIRS = [(m, r) for m in range(1, 8) for r in range(2, 8) if m + r - 1 <= MOST_POINTS]


def plain_conv(rank: int) -> Conv:
    return Conv((1,) * rank, ((0, 0),) * rank, (1,) * rank, (1,) * rank, 1, True)


# --- the algorithm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("results, taps", PAIRS)
def test_the_matrices_compute_a_convolution_of_integers_to_the_bit(results: int, taps: int) -> None:
    """In float64, where all but G's thirds are exact."""
    axis, rng = winograd(results, taps), np.random.default_rng(results)
    x, w = rng.integers(-9, 9, axis.points), rng.integers(-9, 9, taps)
    products = (np.array(axis.weights) @ w) * (np.array(axis.input) @ x)
    found = np.array(axis.output) @ products
    np.testing.assert_allclose(found, [x[i:i + taps] @ w for i in range(results)], rtol=0, atol=1e-9)
    assert [len(axis.output), len(axis.weights), len(axis.input)] == [results, axis.points, axis.points]


@pytest.mark.parametrize("results, taps", PAIRS)
def test_rows_of_opposite_points_share_their_sums(results: int, taps: int) -> None:
    axis, rng = winograd(results, taps), np.random.default_rng(taps)
    for rows in (axis.input, axis.output):
        values = list(rng.standard_normal(len(rows[0])))
        found = apply_rows(rows, values, lambda terms: sum(f * v for f, v in terms))
        np.testing.assert_allclose(found, np.array(rows) @ values, rtol=0, atol=1e-12)
        apart = sum(max(sum(map(bool, row)) - 1, 0) + all(abs(f) != 1 for f in row if f) for row in rows)
        assert count_steps(rows) <= apart
        assert count_steps(rows) < apart or axis.points < MOST_POINTS or rows is axis.output


def test_the_tile_of_two_results_takes_the_steps_of_the_paper() -> None:
    """F(2, 3): 4 additions each way, by matrices that hold nothing but 0 and 1."""
    axis = winograd(2, 3)
    assert count_steps(axis.input) == count_steps(axis.output) == 4
    assert {abs(v) for row in (*axis.input, *axis.output) for v in row} == {0, 1}


# --- the op ----------------------------------------------------------------------------------------------------------


def operands_of(shape: tuple[int, ...], kernel: tuple[int, ...], results: tuple[int, ...], out: int, columns: int,
                dtype: str = "float64") -> tuple[WinogradConv, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(shape) + out)
    x, w = rng.standard_normal(shape).astype(dtype), rng.standard_normal((*kernel, shape[-1], out)).astype(dtype)
    op = WinogradConv(kernel, results, out)
    return op, x, w, transform_weights(w, op.axes, 1, columns)


@pytest.mark.parametrize("shape, kernel, results, out, columns", [
    ((2, 9, 8, 5), (3, 3), (2, 2), 7, 4), ((1, 11, 6, 4), (3, 3), (4, 6), 8, 8), ((1, 12, 3, 4), (5, 1), (4, 1), 3, 8),
    ((3, 7, 2), (7,), (2,), 5, 4), ((1, 5, 6, 7, 3), (2, 3, 2), (2, 4, 6), 4, 4), ((1, 2, 9, 3), (3, 3), (2, 2), 4, 4),
])
def test_the_op_means_a_convolution(shape: tuple[int, ...], kernel: tuple[int, ...], results: tuple[int, ...], out: int,
                                    columns: int) -> None:
    op, x, w, u = operands_of(shape, kernel, results, out, columns)
    expected = plain_conv(len(kernel)).evaluate((x, w), {})
    found = op.evaluate((x, u), {})
    assert op.infer(TensorType(F64, shape), TensorType(F64, u.shape)).static_shape == found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("op, x, u, complaint", [
    (WinogradConv((3, 3), (2, 2), 6), (1, 6, 6, 4), (16, 1, 5, 8), "does not fit"),
    (WinogradConv((3, 3), (2, 2), 6), (1, 6, 6, 4), (12, 1, 4, 8), "does not fit"),
    (WinogradConv((3, 3), (2, 2), 9), (1, 6, 6, 4), (16, 1, 4, 8), "does not fit"),
    (WinogradConv((3, 3), (2, 7), 6), (1, 6, 6, 4), (36, 1, 4, 8), "do not fit"),
    (WinogradConv((3, 1), (2, 2), 6), (1, 6, 6, 4), (8, 1, 4, 8), "do not fit"),
    (WinogradConv((3, 3), (2, 2), 6), (1, 1, 6, 4), (16, 1, 4, 8), "larger than the input"),
])
def test_what_does_not_fit_is_refused(op: WinogradConv, x: tuple[int, ...], u: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(CompileError, match=complaint):
        op.infer(TensorType(F32, x), TensorType(F32, u))


# --- the choice ------------------------------------------------------------------------------------------------------


def convolution(shape: tuple[DimLike, ...], kernel: tuple[int, ...], out: int, padding: int = 1, dtype: DType = F32,
                constant: bool = True, scale: float = 0.1, exit_padding: int = 0, groups: int = 1, **changes: tuple[int, ...]) -> Graph:
    """Of x [N, *spatial, C] with weights, a bias, a residual of the result's shape, relu, and a pad at the end."""
    b, rng, rank = Builder(), np.random.default_rng(7), len(kernel)
    channels = shape[-1]
    assert isinstance(channels, int)
    x = b.add(Param("x", dtype, shape))
    array = (rng.standard_normal((*kernel, channels // groups, out)) * scale).astype(dtype.numpy)
    w = lib.constant(b, array, dtype) if constant else b.add(Param("w", dtype, array.shape))
    strides, dilation = changes.get("strides", (1,) * rank), changes.get("dilation", (1,) * rank)
    y = b.add(Conv(strides, ((padding, padding),) * rank, dilation, (1,) * rank, groups, True), x, w)
    bias = lib.broadcast(b, lib.constant(b, rng.standard_normal(out).astype(dtype.numpy), dtype), y.shape)
    y = lib.apply(b, "max", lib.apply(b, "add", y, bias), lib.constant(b, -0.5, dtype))
    if exit_padding:
        y = lib.pad(b, y, [0, *[exit_padding] * rank, 0], [0, *[exit_padding + 1] * rank, 0], 0.25)
    return Graph("convolution", [x] if constant else [x, w], [y])


def fused(graph: Graph, precision: str = "default", caps: Caps = CAPS) -> Graph:
    return run_passes(graph, Options(precision=precision), caps, QUIET)[0]


def chosen(graph: Graph, precision: str = "default") -> list[tuple[int, ...]]:
    """The results of a tile of each winograd_conv."""
    groups = [n.op.body for n in fused(graph, precision).nodes() if isinstance(n.op, Fusion)]
    return [n.op.results for body in groups for n in body.nodes() if isinstance(n.op, WinogradConv)]


LARGE = ((1, 24, 24, 64), (3, 3), 64)


def test_large_convolutions_are_computed_by_tiles() -> None:
    assert chosen(convolution(*LARGE)) == [(4, 4)]
    assert chosen(convolution((1, 64, 1, 64), (5, 1), 64, padding=0)) == [(4, 1)]
    assert chosen(convolution((symbol("n"), symbol("h", 1), symbol("w", 1), 64), (3, 3), 64)) == [(4, 4)]


@pytest.mark.parametrize("graph, why", [
    (convolution(*LARGE, strides=(2, 2)), "strides"),
    (convolution(*LARGE, dilation=(1, 2)), "dilation"),
    (convolution(*LARGE, constant=False), "weights of the call"),
    (convolution(*LARGE, scale=np.inf), "weights that are not finite"),
    (convolution(*LARGE, scale=7e37), "weights that would not be finite"),
    (convolution((1, 24, 24, 64), (1, 1), 64, padding=0), "one tap"),
    (convolution((1, 24, 24, 64), (9, 9), 64), "more taps than there are points"),
    (convolution((1, 24, 24, 1), (3, 3), 4), "few channels"),
])
def test_others_stay_what_they_are(graph: Graph, why: str) -> None:
    assert chosen(graph) == [], why


@pytest.mark.parametrize("precision", ["plain", "strict"])
def test_users_can_forbid_it(precision: str) -> None:
    assert chosen(convolution(*LARGE), precision) == []


def test_tiles_that_amplify_errors_too_much_are_not_taken() -> None:
    weights = (5, 5, 256, 256)
    axes = choose_tiles((1, 64, 64), weights, 1, 16, F32, Caps())
    assert axes is None or math.prod(axis.amplification for axis in axes) <= MOST_AMPLIFICATION


# --- the kernels -----------------------------------------------------------------------------------------------------


def forced(graph: Graph, monkeypatch: pytest.MonkeyPatch, results: tuple[int, ...]) -> None:
    """Makes the choice, whatever the size."""
    monkeypatch.setattr("tilewright.passes.winograd.choose_tiles",
                        lambda shape, weights, *_: tuple(winograd(m, k) for m, k in zip(results, weights)))
    assert chosen(graph) == [results]


SHAPES = [
    ((1, 6, 7, 4), (3, 3), (2, 4), 6, {}), ((2, 5, 5, 9), (3, 3), (2, 2), 17, {}), ((1, 9, 1, 5), (5, 1), (4, 1), 11, {"padding": 0}),
    ((1, 3, 3, 3), (3, 3), (4, 4), 3, {}), ((1, 8, 12), (3,), (6,), 9, {"dtype": F64}), ((1, 4, 5, 4, 8), (3, 2, 3), (2, 2, 2), 4, {}),
    ((2, 5, 6, 8), (3, 3), (4, 2), 8, {"exit_padding": 1}), ((1, 1, 1, 8), (2, 2), (2, 2), 8, {}),
    ((1, 7, 5, 6), (3, 3), (2, 2), 10, {"groups": 2}), ((1, 9, 12), (3,), (4,), 48, {"groups": 3}),
]


@pytest.mark.parametrize("shape, kernel, results, out, more", SHAPES)
@pytest.mark.parametrize("symbolic", [False, True])
def test_kernels_agree_with_the_interpreter(shape: tuple[int, ...], kernel: tuple[int, ...], results: tuple[int, ...], out: int,
                                            more: dict, symbolic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As loops, whose interpreter checks bounds and races, and as machine code: what few sums of short numbers round is small."""
    sizes = tuple(symbol(f"n{a}", 1) for a in range(len(shape) - 1)) if symbolic else shape[:-1]
    graph = convolution((*sizes, shape[-1]), kernel, out, **more)
    forced(graph, monkeypatch, results)
    inputs = [np.random.default_rng(3).standard_normal(shape).astype(graph.params[0].dtype.numpy)]
    expected = evaluate_graph(graph, inputs)
    program, _ = lower_program(fused(graph), CAPS)
    verify_program(program)
    assert_close(run_program(program, inputs), expected)
    assert_close(run_compiled(compiled(graph), inputs), expected)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3, 8, 30]), st.sampled_from([2, 8, 19, 40]))
def test_any_size_agrees(n: int, height: int, width: int, channels: int, out: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        graph = convolution((n, height, width, channels), (3, 3), out)
        forced(graph, patch, (4, 4))
        inputs = [np.random.default_rng(5).standard_normal((n, height, width, channels)).astype(np.float32)]
        assert_close(run_compiled(compiled(graph), inputs), evaluate_graph(graph, inputs))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    graph = convolution((1, 40, 36, 48), (3, 3), 40)
    assert chosen(graph)
    x = np.random.default_rng(2).standard_normal((1, 40, 36, 48)).astype(np.float32)
    first = run_compiled(compiled(graph, threads=1), [x])
    for threads in (2, 3):
        assert_identical(run_compiled(compiled(graph, threads=threads), [x]), first)


def test_a_large_block_lies_in_the_memory_of_each_thread() -> None:
    """More than the stack may hold: the runtime gives it, and plans for as many threads as there are."""
    code = compiled(convolution(*LARGE), threads=3)
    x = np.random.default_rng(2).standard_normal((1, 24, 24, 64)).astype(np.float32)
    assert_close(run_compiled(code, [x]), evaluate_graph(convolution(*LARGE), [x]))
    _, alone = code.plan(x.shape)
    assert alone > 64 * 1024


# --- the bound -------------------------------------------------------------------------------------------------------


def worst_inputs(axes: tuple, shape: tuple[int, ...], rng: np.random.Generator) -> list[np.ndarray]:
    """Random ones, and signs that make the terms of one product add up."""
    rows = [np.sign(np.array(axis.input)[axis.points // 2]) for axis in axes]
    signs = np.multiply.outer(*rows) if len(rows) == 2 else rows[0]
    repeated = np.tile(signs, [-(-n // s) for n, s in zip(shape[1:-1], signs.shape)])[tuple(slice(n) for n in shape[1:-1])]
    signed = np.broadcast_to(repeated[None, ..., None], shape) * rng.uniform(0.9, 1, shape)
    return [rng.standard_normal(shape), rng.uniform(0, 1, shape), signed]


@pytest.mark.parametrize("kernel, results", [((3, 3), (2, 2)), ((3, 3), (4, 4)), ((3, 3), (2, 4)), ((5, 1), (4, 1)), ((2, 2), (4, 4)),
                                             ((7, 1), (2, 1)), ((3, 1), (6, 1))])
def test_the_error_is_within_its_bound(kernel: tuple[int, int], results: tuple[int, int]) -> None:
    """Against float64; and no worse than a few times the plain sum on random numbers, which is what users see."""
    channels, out, rng = 64, 16, np.random.default_rng(11)
    shape = (1, 26, 24, channels)
    op = WinogradConv(kernel, results, out)
    roundoff = 2.0**-24
    amplification = math.prod(axis.amplification for axis in op.axes)
    terms = channels + 2 * sum(axis.points for axis in op.axes)
    for number, values in enumerate(worst_inputs(op.axes, shape, rng)):
        x, w = values.astype(np.float32), rng.standard_normal((*kernel, channels, out)).astype(np.float32)
        exact = plain_conv(2).evaluate((x.astype(np.float64), w.astype(np.float64)), {})
        found = op.evaluate((x, transform_weights(w, op.axes, 1, 8)), {})
        largest = plain_conv(2).evaluate((np.abs(x).astype(np.float64), np.abs(w).astype(np.float64)), {}).max()
        error = np.abs(found - exact).max()
        assert error <= amplification * terms * roundoff * largest
        if number == 0:
            plain = np.abs(plain_conv(2).evaluate((x, w), {}) - exact).max()
            assert error <= 40 * max(plain, roundoff * np.abs(exact).max())
