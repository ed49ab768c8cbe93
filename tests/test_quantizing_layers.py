"""Layers of a graph as matrices, and plans applied to graphs: every layout of Dot and Conv against NumPy, and what is left alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tilewright as tw
from tilewright.ir.errors import ArgumentError, Loc
from tilewright.ir.graph import Builder, Graph, Node, Op
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv, Dot
from tilewright.ir.ops.control import Param, Scan
from tilewright.ir.ops.shape import Reshape, Slice, Transpose
from tilewright.ir.types import F32, F64
from tilewright.ir.verify import verify
from tilewright.library import apply, cast, composite, constant
from tilewright.library_quantized import dequantize
from tilewright.quantizing.applying import apply_plan, layer_alone
from tilewright.quantizing.calibration import collect
from tilewright.quantizing.candidates import candidate, group_size, left_alone
from tilewright.quantizing.layers import Layer, find_layers, sources, with_constants
from tilewright.quantizing.plan import LayerPlan, Plan, dequantized, stored_bytes
from tilewright.quantizing.recipes import RECIPES, Recipe
from tilewright.quantizing.samples import Sample

ONE, TWO = (1, 1), (2, 2)
# name, op, shape of the input, shape of the constant, what stands between constant and operand
CASES: list[tuple[str, Op, tuple[int, ...], tuple[int, ...], tuple[Op, ...]]] = [
    ("plain", Dot((1,), (0,)), (5, 48), (48, 9), ()),
    ("rank 3", Dot((2,), (0,)), (2, 3, 48), (48, 9), ()),
    ("rows of weights", Dot((1,), (1,)), (5, 48), (9, 48), ()),
    ("transposed", Dot((1,), (0,)), (5, 48), (9, 48), (Transpose((1, 0)),)),
    ("first axis", Dot((0,), (0,)), (48, 5), (48, 9), ()),
    ("two axes", Dot((1, 2), (0, 1)), (3, 6, 8), (6, 8, 5), ()),
    ("two axes exchanged", Dot((2, 1), (1, 0)), (3, 6, 8), (6, 8, 5), ()),
    ("two of channels", Dot((1,), (1,)), (3, 32), (4, 32, 5), ()),
    ("reshaped", Dot((1,), (0,)), (5, 48), (6, 8, 9), (Reshape((48, 9)),)),
    ("with an axis too many", Dot((1,), (0,)), (5, 48), (1, 48, 9), (Reshape((48, 9)),)),
    ("one axis of several", Dot((1,), (0,)), (5, 48), (9, 1, 48, 1), (Reshape((9, 48)), Transpose((1, 0)))),
    ("with an axis too few", Dot((1,), (0,)), (5, 48), (48,), (Reshape((48, 1)),)),
    ("one of each", Dot((1,), (0,)), (1, 1), (1, 1), ()),
    ("convolution", Conv(ONE, ((1, 1), (0, 1)), ONE, ONE), (2, 4, 6, 7), (6, 4, 3, 3), ()),
    ("strided", Conv(TWO, ((1, 1), (0, 1)), TWO, ONE), (2, 4, 8, 9), (6, 4, 3, 3), ()),
    ("groups", Conv(ONE, ((1, 1), (1, 1)), ONE, ONE, 2), (2, 4, 6, 7), (6, 2, 3, 3), ()),
    ("depthwise", Conv(ONE, ((1, 1), (1, 1)), ONE, ONE, 4), (2, 4, 6, 7), (8, 1, 3, 3), ()),
    ("channels last", Conv(ONE, ((1, 1), (1, 1)), ONE, ONE, 2, True), (2, 6, 7, 4), (3, 3, 2, 6), ()),
    ("one axis", Conv((2,), ((1, 1),), (1,), (1,)), (2, 4, 9), (6, 4, 3), ()),
    ("many channels", Conv((1,), ((1, 1),), (1,), (1,)), (2, 64, 9), (6, 64, 3), ()),
    ("many channels last", Conv(ONE, ((1, 0), (0, 1)), ONE, ONE, 1, True), (2, 3, 5, 64), (2, 2, 64, 7), ()),
]
NAMES = [case[0] for case in CASES]


def layer_of(op: Op, shape: Sequence[int], weights: np.ndarray, moves: Sequence[Op] = ()) -> tuple[Graph, Layer]:
    b = Builder(Loc(name="model.onnx: node 'first' (MatMul)"))
    x = b.add(Param("x", F32, tuple(shape)))
    operand = constant(b, weights)
    for move in moves:
        operand = b.add(move, operand)
    graph = Graph("one", (x,), (b.add(op, x, operand),), ("y",))
    (layer,), left = find_layers(graph)
    assert not left
    return graph, layer


def numbers(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def samples_of(shape: Sequence[int], count: int = 3) -> list[Sample]:
    return [{"x": numbers(shape, seed) + 0.3} for seed in range(count)]


def plan_of(graph: Graph, *layers: LayerPlan) -> Plan:
    return Plan(graph.name, graph.fingerprint, "by hand", layers)


def expected(layer: Layer, plan: LayerPlan, x: np.ndarray) -> np.ndarray:
    """What plan.py says that a layer computes, in NumPy."""
    assert plan.weights is not None and plan.activation is not None
    if plan.smoothing is not None and not plan.folded:
        x = x / plan.smoothing.reshape(layer.channel_shape())
    activation = plan.activation
    if activation.kind == "static":
        assert activation.scale is not None and activation.zero_point is not None
        info, point = np.iinfo(activation.zero_point.dtype), activation.zero_point.astype(np.float32)
        x = (np.clip(np.round(x / activation.scale) + point, info.min, info.max) - point) * activation.scale
    elif activation.kind == "dynamic":
        scale = np.abs(x).max(axis=layer.row_axes, keepdims=True) / np.float32(127)
        scale = np.where(scale > 0, scale, np.float32(1))
        x = np.round(x / scale) * scale
    weights = dequantized(plan.weights)
    value = layer.node.op.evaluate([x, weights if plan.weights.as_operand else layer.as_read(weights)], {})
    return value if plan.correction is None else value + plan.correction


@pytest.mark.parametrize("name, op, shape, stored, moves", CASES, ids=NAMES)
def test_a_layer_is_a_product_of_matrices(name: str, op: Op, shape: tuple[int, ...], stored: tuple[int, ...], moves: tuple[Op, ...]) -> None:
    weights, x = numbers(stored), numbers(shape, 1)
    graph, layer = layer_of(op, shape, weights, moves)
    matrix = layer.matrix()
    assert matrix.shape == (layer.groups, layer.depth, layer.width // layer.groups)
    result, = evaluate_graph(graph, [x])
    product = np.einsum("grk,gkn->rgn", layer.rows(x), matrix).reshape(-1, layer.width)
    last = result if isinstance(op, Dot) or op.channels_last else np.moveaxis(result, 1, -1)
    assert_allclose(product, last.reshape(-1, layer.width), atol=1e-4)
    back = layer.stored(matrix)
    assert_array_equal(back, layer.operand if layer.as_operand else weights)
    assert_array_equal(layer.to_matrix(back if layer.as_operand else layer.as_read(back)), matrix)


@pytest.mark.parametrize("recipe", ["static int8", "dynamic int8", "weight-only int8", "weight-only int4", "weight-only int2", "w4a8"])
@pytest.mark.parametrize("name, op, shape, stored, moves", CASES, ids=NAMES)
def test_a_plan_is_applied_in_every_layout(name: str, op: Op, shape: tuple[int, ...], stored: tuple[int, ...], moves: tuple[Op, ...],
                                           recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", "reference")
    weights, x = numbers(stored), numbers(shape, 1)
    graph, layer = layer_of(op, shape, weights, moves)
    rules = RECIPES[recipe]
    statistics = collect(graph, [layer], samples_of(shape), moments=rules.needs_moments)
    plan = candidate(layer, rules.precisions[0], rules, statistics)
    if isinstance(plan, str):
        assert layer.operand.size == 1 and "everywhere" in plan
        return
    assert plan.weights is not None
    assert plan.weights.values.shape == (layer.operand.shape if layer.as_operand else stored)
    assert stored_bytes(plan.weights) <= plan.weights.values.nbytes + 8 * layer.width * max(1, layer.depth // 16)
    quantized = apply_plan(graph, plan_of(graph, plan))
    verify(quantized)
    assert [r.type for r in quantized.results] == [r.type for r in graph.results]
    assert_allclose(evaluate_graph(quantized, [x])[0], expected(layer, plan, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", ["static int8", "dynamic int8", "weight-only int4", "w4a8", "bf16"])
@pytest.mark.parametrize("name", ["rank 3", "transposed", "depthwise", "strided", "many channels"])
def test_an_applied_plan_compiles(name: str, recipe: str) -> None:
    _, op, shape, stored, moves = CASES[NAMES.index(name)]
    graph, layer = layer_of(op, shape, numbers(stored), moves)
    rules = RECIPES[recipe]
    plan = candidate(layer, rules.precisions[0], rules, collect(graph, [layer], samples_of(shape), moments=rules.needs_moments))
    assert isinstance(plan, LayerPlan)
    quantized = apply_plan(graph, plan_of(graph, plan))
    x = numbers(shape, 1)
    meaning, = evaluate_graph(quantized, [x])
    step = 0.02 * float(np.abs(meaning).max())  # a sum that lies between two may round to either: in bfloat16 these are wide
    assert_allclose(tw.compile(quantized)(x), meaning, atol=step)
    alone = layer_alone(layer, shape, plan)
    assert_allclose(evaluate_graph(alone, [x])[0], meaning, atol=step)


@pytest.mark.parametrize(("name", "axes"), [("first axis", (0,)), ("convolution", (1, 2, 3)), ("groups", (1, 2, 3)), ("many channels", (1,)),
                                            ("many channels last", (3,))])
def test_what_has_a_range_of_its_own_at_run_time(name: str, axes: tuple[int, ...]) -> None:
    _, op, shape, stored, moves = CASES[NAMES.index(name)]
    assert layer_of(op, shape, numbers(stored), moves)[1].row_axes == axes


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_open_and_empty_sizes(rows: int) -> None:
    weights = numbers((33, 7))

    def function(x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ weights, 0) + 1

    graph = tw.trace(function, args=(tw.spec(("n", 33), "float32"),))
    (layer,), _ = find_layers(graph)
    for recipe in ("static int8", "w4a8"):
        rules = RECIPES[recipe]
        plan = candidate(layer, rules.precisions[0], rules, collect(graph, [layer], samples_of((4, 33)), moments=True))
        assert isinstance(plan, LayerPlan)
        quantized = apply_plan(graph, plan_of(graph, plan))
        x = numbers((rows, 33), 4)
        assert_allclose(tw.compile(quantized)(x), np.maximum(expected(layer, plan, x), 0) + 1, atol=1e-3)


def test_what_is_not_finite_stays_within_the_range_of_static_activations() -> None:
    graph, layer = layer_of(Dot((1,), (0,)), (5, 48), numbers((48, 9)))
    plan = candidate(layer, "i8", RECIPES["static int8"], collect(graph, [layer], samples_of((5, 48))))
    assert isinstance(plan, LayerPlan)
    x = numbers((5, 48))
    x[0, 0], x[1, 0], x[2, 0] = np.inf, -np.inf, 1e30
    quantized = apply_plan(graph, plan_of(graph, plan))
    assert_allclose(tw.compile(quantized)(x), evaluate_graph(quantized, [x])[0], atol=1e-3)
    assert np.isfinite(tw.compile(quantized)(x)).all()


# --- what is found ---------------------------------------------------------------------------------------------------


def test_layers_have_names_of_their_own_and_share_inputs() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (3, 8)))
    place = Loc(name="model.onnx: node '/block/Gemm.1' (Gemm)")
    first = b.add(Dot((1,), (0,)), x, constant(b, numbers((8, 8))), loc=place)
    second = b.add(Dot((1,), (0,)), x, constant(b, numbers((8, 8), 1)), loc=place)
    third = b.add(Dot((1,), (0,)), first, constant(b, numbers((8, 8))), loc=Loc("/home/me/model.py", 12))
    layers, _ = find_layers(Graph("three", (x,), (second, third)))
    assert {layer.label: layer.location for layer in layers} == {
        "/block/Gemm.1": "model.onnx: node '/block/Gemm.1' (Gemm)", "/block/Gemm.1#2": "model.onnx: node '/block/Gemm.1' (Gemm)",
        "model.py:12": "model.py:12"}
    shared, values = sources(layers)
    assert shared == {"/block/Gemm.1": "/block/Gemm.1", "/block/Gemm.1#2": "/block/Gemm.1", "model.py:12": "model.py:12"}
    assert len(values) == 2


def test_layers_of_one_input_share_its_quantization() -> None:
    weights = [numbers((16, 8), seed) for seed in range(3)]
    graph = tw.trace(lambda x: (x @ weights[0], x @ weights[1], x @ weights[2]), args=(tw.spec((4, 16), "float32"),))
    layers, _ = find_layers(graph)
    statistics = collect(graph, layers, samples_of((4, 16)))
    plans = [candidate(layer, "i8", RECIPES["static int8"], statistics) for layer in layers]
    quantized = apply_plan(graph, plan_of(graph, *plans))  # type: ignore[arg-type]
    assert sum(node.op.label == "quantize" for node in quantized.nodes() if node.op.name == "call") == 1


def nodes_left(make: str) -> tuple[Graph, str]:
    """A graph with a contraction of a constant that is no layer, and the reason."""
    b = Builder()
    weights = numbers((6, 4))
    if make == "left operand":
        x = b.add(Param("x", F32, (4, 3)))
        return Graph(make, (x,), (b.add(Dot((1,), (0,)), constant(b, weights), x),)), "its constant is the left operand"
    if make == "float64":
        x = b.add(Param("x", F64, (3, 6)))
        return Graph(make, (x,), (b.add(Dot((1,), (0,)), x, constant(b, weights.astype(np.float64))),)), "it computes in f64"
    if make == "batch":
        x = b.add(Param("x", F32, (2, 3, 6)))
        made = b.add(Dot((2,), (1,), (0,), (0,)), x, constant(b, numbers((2, 6, 4))))
        return Graph(make, (x,), (made,)), "it has a batch of weights"
    if make == "transposed convolution":
        x = b.add(Param("x", F32, (1, 4, 5)))
        made = b.add(Conv((1,), ((1, 1),), (1,), (2,)), x, constant(b, numbers((2, 4, 3))))
        return Graph(make, (x,), (made,)), "it is a transposed convolution"
    if make == "NaN":
        x = b.add(Param("x", F32, (3, 6)))
        weights[2, 3] = np.nan
        return Graph(make, (x,), (b.add(Dot((1,), (0,)), x, constant(b, weights)),)), "its weights are not all finite"
    if make == "quantized":
        x = b.add(Param("x", F32, (3, 6)))
        codes = dequantize(b, constant(b, weights.astype(np.int8)), constant(b, np.float32(0.5)))
        return Graph(make, (x,), (b.add(Dot((1,), (0,)), x, codes),)), "its weights are quantized already"
    if make == "scan":
        inner = Builder()
        state, part, captured = (inner.add(Param(name, F32, shape)) for name, shape in (("h", (6,)), ("x", (6,)), ("w", (6, 6))))
        body = Graph("step", (state, part, captured), (apply(inner, "add", inner.add(Dot((0,), (1,)), state, captured), part),))
        x = b.add(Param("x", F32, (3, 6)))
        made = b.add(Scan(body, 1, 1, 3), b.add(Param("h", F32, (6,))), x, b.add(Transpose((1, 0)), constant(b, numbers((6, 6)))))
        return Graph(make, (made.inputs[0], x), (made,)), "it is inside a scan"
    if make == "empty":
        x = b.add(Param("x", F32, (3, 0)))
        return Graph(make, (x,), (b.add(Dot((1,), (0,)), x, constant(b, numbers((0, 4)))),)), "its weights are empty"
    x = b.add(Param("x", F32, (3, 6)))

    def body(inner: Builder, value: Node) -> Node:
        return cast(inner, inner.add(Dot((1,), (0,)), value, constant(inner, weights)), F32)

    return Graph(make, (x,), (composite(b, "attention", body, x),)), "it is inside a call"


@pytest.mark.parametrize("make", ["left operand", "float64", "batch", "transposed convolution", "NaN", "quantized", "scan", "empty", "composite"])
def test_what_is_no_layer_says_why(make: str) -> None:
    graph, reason = nodes_left(make)
    layers, left = find_layers(graph)
    assert not layers
    assert [other.reason for other in left] == [reason]


def test_weights_that_are_part_of_a_constant_are_weights() -> None:
    """Of one direction of an LSTM, say: the part is a constant of its own."""
    both = numbers((2, 6, 4))
    b = Builder()
    x = b.add(Param("x", F32, (3, 6)))
    part = b.add(Reshape((6, 4)), b.add(Slice((1, 0, 0), (1, 6, 4), (1, 1, 1)), constant(b, both)))
    graph = with_constants(Graph("part", (x,), (b.add(Dot((1,), (0,)), x, part),)))
    (layer,), left = find_layers(graph)
    assert not left and layer.constant.array.shape == (1, 6, 4)
    assert_array_equal(layer.operand, both[1])


def test_products_of_two_values_are_not_listed() -> None:
    graph = tw.trace(lambda x, y: x @ y, args=(tw.spec((3, 4), "float32"), tw.spec((4, 5), "float32")))
    assert find_layers(graph) == ((), ())


def test_a_plan_for_another_graph_is_refused() -> None:
    graph, layer = layer_of(Dot((1,), (0,)), (5, 48), numbers((48, 9)))
    other, _ = layer_of(Dot((1,), (0,)), (6, 48), numbers((48, 9)))
    with pytest.raises(ArgumentError, match="quantize: the plan was made for another graph than one: one"):
        apply_plan(other, plan_of(graph, left_alone(layer, "")))
    assert apply_plan(graph, plan_of(graph, left_alone(layer, ""))) is graph


def test_groups_divide_the_contraction() -> None:
    assert group_size(384, 64) == 64
    assert group_size(100, 64) == 50
    assert group_size(97, 64) == 0      # a prime: one scale a channel
    assert group_size(64, 64) == 0      # one group is a channel
    assert group_size(384, 0) == 0


@pytest.mark.parametrize("group", [16, 32, 64])
def test_sizes_of_weights(group: int) -> None:
    """int8: 26 %; int4 in groups of 64: 15 % of float32."""
    graph, layer = layer_of(Dot((1,), (0,)), (2, 384), numbers((384, 384)))
    recipe = Recipe("by hand", ("w4",), group=group)
    plan = candidate(layer, "w4", recipe, None)
    assert isinstance(plan, LayerPlan) and plan.weights is not None and plan.weights.scale is not None
    assert plan.weights.scale.shape == (384 // group, 384) and plan.weights.group_axis == 0
    assert stored_bytes(plan.weights) == 384 * 384 // 2 + 4 * 384 * 384 // group
    if group == 64:
        assert stored_bytes(plan.weights) <= 0.15 * 4 * 384 * 384
    whole = candidate(layer, "w8", recipe, None)
    assert isinstance(whole, LayerPlan) and whole.weights is not None
    assert stored_bytes(whole.weights) <= 0.26 * 4 * 384 * 384
    del graph
