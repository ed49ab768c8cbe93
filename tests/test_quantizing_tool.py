"""The quantizer as a whole: budgets on held-out data, never slower, what is left alone and why, data-free, diagnosis, every error.

Most tests run the interpreter, which compiles nothing, with times that the test makes up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from msgspec import json
from msgspec.structs import replace

import tilewright as tw
from tilewright.ir.dims import symbol
from tilewright.ir.errors import ArgumentError, Loc
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv, Dot
from tilewright.ir.ops.control import Param
from tilewright.ir.types import F32
from tilewright.library import apply, constant, like, mean
from tilewright.quantizing import RECIPES, Recipe, apply_plan, diagnose, tool
from tilewright.quantizing.choose import Contender, Judge, Search, gains
from tilewright.quantizing.layers import Layer
from tilewright.quantizing.metrics import cosine, disagreement, figures, loss_of, losses_of, metric_named, noise, sure_loss, typical_loss
from tilewright.quantizing.plan import LayerPlan
from tilewright.quantizing.tool import quantize


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Made:
    """Times that a test makes up: of layers in float and quantized, and of whole programs."""

    before, after, whole_before, whole_after = 10.0, 6.0, 30.0, 20.0
    slow: tuple[str, ...] = ()

    def __init__(self, *ignored: Any) -> None:
        del ignored

    def __call__(self, layer: Layer, shape: Sequence[int], plans: Sequence[LayerPlan]) -> list[float]:
        assert shape
        return [self.before, *((self.before * 2 if layer.label.endswith(self.slow or ("no such",)) else self.after) for _ in plans)]

    def whole(self, programs: Sequence[Any], samples: Sequence[Any], rounds: int = 1) -> list[float]:
        float_program, program = programs
        return [self.whole_before, self.whole_before if program is float_program else self.whole_after]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> type[Made]:
    """No machine code, and a timer for the test to set."""
    class Timer(Made):
        pass

    monkeypatch.setenv("TILEWRIGHT_BACKEND", "reference")
    monkeypatch.setattr(tool, "Timer", Timer)
    return Timer


def network(widths: Sequence[int] = (24, 32, 20, 6)) -> Graph:
    weights = [numbers((k, n), seed) / np.float32(np.sqrt(k)) for seed, (k, n) in enumerate(pairwise(widths))]
    biases = [numbers((n,), 10 + seed) for seed, n in enumerate(widths[1:])]

    def function(x: np.ndarray) -> np.ndarray:
        for weight, bias in zip(weights[:-1], biases[:-1]):
            x = np.maximum(x @ weight + bias, 0)
        return x @ weights[-1] + biases[-1]

    return tw.trace(function, args=(tw.spec(("n", widths[0]), "float32"),))


def samples(count: int = 12, width: int = 24, first: int = 0, rows: int = 5) -> list[dict[str, np.ndarray]]:
    return [{"x": numbers((rows, width), 100 + first + seed)} for seed in range(count)]


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize("goal", ["time", "size"])
def test_every_recipe_keeps_its_budget_on_held_out_data(recipe: str, goal: str, interpreted: type[Made]) -> None:
    graph, budget = network(), 0.02
    held = samples(4, first=50)
    result = quantize(graph, samples(), recipe=recipe, goal=goal, budget=budget, held_out=held)
    report = result.report
    assert report.after.loss <= budget and report.held_out == 4 and report.samples == 12
    assert result.graph == apply_plan(graph, result.plan)
    lost = [metric_named("cosine")[1](evaluate_graph(graph, list(one.values())), evaluate_graph(result.graph, list(one.values())))
            for one in held]
    assert abs(float(np.mean(lost)) - report.after.loss) < 1e-5
    assert [layer.label for layer in report.layers] == [layer.label for layer in result.plan.layers]
    if report.worth:
        assert report.after.bytes < report.before.bytes
        assert any(layer.precision != "f32" for layer in report.layers)
    assert all((layer.reason == "") == (layer.precision != "f32") for layer in report.layers)
    json.encode(report)
    if recipe in ("static int8", "dynamic int8", "weight-only int8", "bf16"):
        assert report.worth and not any(layer.reason for layer in report.layers)


def test_a_tight_budget_leaves_the_layers_that_lose_most(interpreted: type[Made]) -> None:
    graph = network()
    whole = quantize(graph, samples(), recipe="weight-only int4", budget=1.0).report
    part = quantize(graph, samples(), recipe="weight-only int4", budget=whole.predicted * 0.8)
    assert part.report.worth and part.report.after.loss <= part.report.budget
    left = [layer for layer in part.report.layers if layer.reason]
    assert left and all(layer.reason.startswith("the budget: as w4 it alone loses ") for layer in left)
    assert [layer.loss for layer in part.report.layers] == pytest.approx([layer.loss for layer in whole.layers])
    none = quantize(graph, samples(), recipe="weight-only int4", budget=0.0)
    assert not none.report.worth and none.graph is graph and not none.plan.quantized
    assert none.report.verdict.startswith("not worth it: no layer gains time within the budget")


def test_a_mixture_has_the_coarser_precision_where_it_loses_little(interpreted: type[Made]) -> None:
    recipe = Recipe("by hand", ("w8", "w4"), group=0, correct_bias=False)
    found = [quantize(network(), samples(), recipe=recipe, goal="size", budget=budget).report for budget in (1e-5, 1e-4, 5e-3, 1.0)]
    sizes = [report.after.bytes for report in found]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]
    assert {layer.precision for report in found for layer in report.layers} >= {"w8", "w4"}
    for report in found:
        front = [(point.loss, point.bytes) for point in report.front]
        assert front == sorted(front, key=lambda point: (point[0], -point[1])) and sum(point.chosen for point in report.front) == 1


def test_losses_of_layers_add_up(interpreted: type[Made]) -> None:
    """The linearity theorem, as far as a small network shows it."""
    data = samples(rows=100)
    report = quantize(network((24, 32, 32, 32, 6)), data, recipe="weight-only int4", budget=1.0, metric="snr").report
    assert all(layer.precision == "w4" for layer in report.layers)
    assert report.predicted == pytest.approx(sum(layer.loss for layer in report.layers))
    assert 0.5 * report.predicted < report.after.loss < 2 * report.predicted


def test_a_coarse_metric_has_layers_compared_by_what_they_turn(interpreted: type[Made]) -> None:
    """One layer of few bits changes hardly an answer, all together do."""
    graph = network((24, 32, 32, 32, 6))
    budgets = (1.0, 0.1, 0.0)
    found = [quantize(graph, samples(24), recipe=Recipe("few bits", ("w4",), group=0), metric=rough, budget=budget).report
             for budget in budgets]
    assert found[0].worth and found[0].after.loss > 0.1 and not found[0].rounds
    assert any("most layers alone lose nothing by rough" in warning for warning in found[0].warnings)
    assert found[1].worth and found[1].after.loss <= 0.1 and found[1].rounds
    assert found[2].after.loss == 0
    assert all(layer.loss < 0.25 for layer in found[1].layers) and all("turns the results by" in layer.reason for layer in found[1].layers
                                                                    if layer.reason)
    turned = [sum(not layer.reason for layer in report.layers) for report in found]
    assert turned[0] == 4 and turned == sorted(turned, reverse=True)


def test_losses_of_samples_are_joined_as_said() -> None:
    """The mean, what it may be with its standard error, and the geometric mean, which one sample that turns moves little."""
    losses = [0.0, 0.1, 0.2, 0.9]
    expected = [(np.array([loss]),) for loss in losses]

    def given(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> float:
        return float(first[0][0])

    assert loss_of(given, expected, expected) == pytest.approx(0.3)
    assert sure_loss(losses) == pytest.approx(0.3 + np.std(losses, ddof=1) / 2)
    assert typical_loss(losses) == pytest.approx(0.75 * (0.1 * 0.2 * 0.9) ** (1 / 3))
    broken = [(np.array([math.nan]),), *expected[1:]]
    assert loss_of(given, expected, broken) == sure_loss(losses_of(given, expected, broken)) == math.inf
    assert sure_loss(losses[2:3]) == 0.2 and sure_loss([]) == typical_loss([]) == 0


def rough(expected: tuple[np.ndarray, ...], found: tuple[np.ndarray, ...]) -> float:
    """1 where a sample lies far off, else 0."""
    return float(cosine(expected[0], found[0]) < 0.9998)


def test_the_sum_is_tightened_until_the_whole_keeps_the_budget(interpreted: type[Made]) -> None:
    def steep(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
        return noise(expected[0], found[0]) ** 3 * 1e6  # all layers together lose far more than the sum of each alone

    graph = network((24, 32, 32, 32, 6))
    whole = quantize(graph, samples(), recipe="weight-only int4", budget=1e9, metric=steep).report
    assert whole.after.loss > 2 * whole.predicted and whole.metric == "steep"
    budget = whole.predicted * 1.2
    report = quantize(graph, samples(), recipe="weight-only int4", budget=budget, metric=steep).report
    assert report.rounds >= 1 and report.after.loss <= budget


# --- never slower ----------------------------------------------------------------------------------------------------


def test_a_layer_that_gets_no_faster_is_left_alone(interpreted: type[Made]) -> None:
    graph = network()
    label = tool.find_layers(graph)[0][1].label
    interpreted.slow = (label,)
    report = quantize(graph, samples(), budget=0.5).report
    by_label = {layer.label: layer for layer in report.layers}
    assert by_label[label].reason == "it gets no faster: 10000000.0 µs in float, 20000000.0 µs as i8"
    assert by_label[label].seconds_after == by_label[label].seconds_before
    assert sum(layer.precision == "i8" for layer in report.layers) == 2 and report.worth
    smaller = quantize(graph, samples(), budget=0.5, goal="size").report
    assert all(layer.precision == "i8" for layer in smaller.layers)


def test_a_whole_that_gets_no_faster_is_not_worth_it(interpreted: type[Made]) -> None:
    interpreted.whole_after = interpreted.whole_before * 1.01
    graph = network()
    result = quantize(graph, samples(), budget=0.5)
    assert result.graph is graph and not result.plan.quantized and not result.plan.folds
    assert result.report.verdict.startswith("not worth it: with 3 of 3 layers quantized the model gains no time: 3e+04 ms in float, ")
    assert result.report.after.seconds > result.report.before.seconds
    assert {layer.reason for layer in result.report.layers} == {"the whole gains no time, though this layer alone does"}


def test_no_layer_gains(interpreted: type[Made]) -> None:
    interpreted.after = interpreted.before
    graph = network()
    result = quantize(graph, samples(), budget=0.5)
    assert result.graph is graph and not result.report.worth
    assert all(layer.reason.startswith("it gets no faster") and np.isnan(layer.loss) for layer in result.report.layers)


def test_gains_are_more_than_noise() -> None:
    plan = LayerPlan("a", "a", "dot", (1,), "")

    def timed(before: float, after: float) -> LayerPlan:
        return replace(plan, measured=replace(plan.measured, seconds_before=before, seconds_after=after, bytes_before=4, bytes_after=4))

    assert gains(timed(1.0, 0.9), "time") and not gains(timed(1.0, 0.99), "time") and gains(timed(float("nan"), float("nan")), "time")
    assert not gains(timed(1.0, 0.5), "size")


def test_machine_code_is_measured() -> None:
    """With real times, whatever they are here: the answer is never slower than float."""
    result = quantize(network((64, 96, 32)), samples(8, 64), budget=0.05)
    report = result.report
    assert all(layer.seconds_before > 0 and layer.seconds_after > 0 for layer in report.layers)
    assert not report.worth or report.after.seconds <= report.before.seconds
    x = samples(1, 64)[0]["x"]
    np.testing.assert_allclose(tw.compile(result.graph)(x), evaluate_graph(result.graph, [x])[0], rtol=0.05, atol=0.05)


# --- recipes in detail -----------------------------------------------------------------------------------------------


def all_quantized(recipe: Recipe, graph: Graph, data: Any) -> float:
    """What all layers quantized lose."""
    report = quantize(graph, data, recipe=recipe, budget=1e9, goal="size", metric="snr").report
    assert all(layer.precision != "f32" for layer in report.layers)
    return report.after.loss


def test_rounding_by_moments_loses_less_on_inputs_that_depend_on_each_other(interpreted: type[Made]) -> None:
    graph = network((48, 40, 6))
    mixing = numbers((48, 48), 77) * np.float32(0.6) + np.eye(48, dtype=np.float32)
    data = [{"x": numbers((100, 48), seed) @ mixing} for seed in range(12)]
    base = Recipe("by hand", ("w4",), group=0)
    lost = {rounding: all_quantized(replace(base, rounding=rounding), graph, data)
            for rounding in ("nearest", "gptq", "gptq asymmetric", "coordinate descent")}
    assert all(lost[rounding] < 0.8 * lost["nearest"] for rounding in lost if rounding != "nearest"), lost


def test_smoothing_loses_less_where_channels_have_outliers(interpreted: type[Made]) -> None:
    graph = network((48, 40, 6))
    sizes = np.exp(np.linspace(-4, 4, 48)).astype(np.float32)
    data = [{"x": numbers((20, 48), seed) * sizes} for seed in range(12)]
    weights = Recipe("by hand", ("i8",), ranges="min-max")
    plain = all_quantized(weights, graph, data)
    for smoothing in ("smoothquant", "logarithmic"):
        assert all_quantized(replace(weights, smoothing=smoothing), graph, data) < plain
    smoothing = replace(weights, smoothing="smoothquant")
    left_out = quantize(graph, data, recipe=replace(smoothing, multiply=False), goal="size", budget=1.0)
    assert left_out.plan.layers[0].smoothing is None
    # a plan names the constants of the model that it is for, whatever becomes of its layers
    constants = {layer.label: layer.constant.digest for layer in tool.find_layers(graph)[0]}
    for budget in (1e9, 0.0):
        plan = quantize(graph, data, recipe=smoothing, goal="size", budget=budget).plan
        assert {layer.label: layer.digest for layer in plan.layers} == constants
        assert all((layer.smoothing is not None) == (layer.quantized or layer.folded) for layer in plan.layers)


def test_bias_correction_loses_less_where_inputs_have_a_mean(interpreted: type[Made]) -> None:
    graph = network((48, 40, 6))
    data = [{"x": numbers((20, 48), seed) * np.float32(0.1) + 3} for seed in range(12)]
    recipe = Recipe("by hand", ("w4",), group=0, clip=False)
    assert all_quantized(recipe, graph, data) < 0.5 * all_quantized(replace(recipe, correct_bias=False), graph, data)


@pytest.mark.parametrize(("target", "most"), [("cpu:x86-64-v3", 64), ("cpu:sapphirerapids", 127), ("cpu:x86-64", 127)])
def test_the_target_says_how_wide_weights_may_be(target: str, most: int, interpreted: type[Made]) -> None:
    """Without an exact product of bytes, two of which fit 16 bits: 7 bits."""
    fitting = tool._fitting(RECIPES["static int8"], target)
    found = quantize(network(), samples(), recipe=fitting, budget=1.0, goal="size")
    assert max(int(np.abs(layer.weights.values.astype(np.int32)).max()) for layer in found.plan.layers if layer.weights is not None) == most


def test_weights_of_other_widths_are_refused() -> None:
    with pytest.raises(ArgumentError, match="byte_bits must be 7, 8, or 0 for what the target prefers, found 6"):
        Recipe("mine", ("i8",), byte_bits=6)


def test_a_constant_input_is_left_alone(interpreted: type[Made]) -> None:
    first, second = numbers((6, 8)), numbers((8, 4), 1)
    graph = tw.trace(lambda x: (np.minimum(x, -9) @ first, x[:, :4] @ second[:4]), args=(tw.spec((3, 6), "float32"),))
    report = quantize(graph, [{"x": numbers((3, 6), seed)} for seed in range(8)], budget=0.5).report
    assert [layer.reason for layer in report.layers] == ["its input is -9 everywhere in the calibration data", ""]


def convolutions() -> Graph:
    """With a bias and relu between a convolution, a depthwise one, one of a point, and a product behind a mean; open sizes."""
    b = Builder()

    def layer(x: Node, name: str, shape: tuple[int, ...], groups: int) -> Node:
        b.loc = Loc(name=name)
        pads = ((shape[2] // 2,) * 2,) * 2
        value = b.add(Conv((1, 1), pads, (1, 1), (1, 1), groups), x, constant(b, numbers(shape) * np.float32(2 / np.prod(shape[1:]) ** 0.5)))
        b.loc = Loc(name=f"{name} bias")
        value = apply(b, "add", value, constant(b, numbers((shape[0], 1, 1), shape[2] + groups)))
        b.loc = Loc(name=f"{name} relu")
        return apply(b, "max", value, like(b, 0, value))

    height = symbol("h")
    x = b.add(Param("x", F32, (1, 3, height, 6)))
    value = layer(layer(layer(x, "first", (8, 3, 3, 3), 1), "depthwise", (8, 1, 3, 3), 8), "point", (12, 8, 1, 1), 1)
    b.loc = Loc(name="last")
    value = b.add(Dot((1,), (0,)), mean(b, value, (2, 3)), constant(b, numbers((12, 4))))
    return Graph("convolutions", (x,), (value,))


@pytest.mark.parametrize("recipe", [
    RECIPES["static int8"], RECIPES["mixed"], RECIPES["w4a8"], replace(RECIPES["static int8"], activations="i8", ranges="entropy"),
    replace(RECIPES["static int8"], smoothing="smoothquant", rounding="gptq", ranges="min-max"),
    replace(RECIPES["static int8"], smoothing="logarithmic", multiply=False, rounding="gptq asymmetric", ranges="percentile"),
], ids=lambda recipe: f"{recipe.name} {recipe.rounding} {recipe.ranges}")
def test_convolutions(recipe: Recipe, interpreted: type[Made]) -> None:
    graph = convolutions()
    data = [{"x": numbers((1, 3, 4 + seed % 3, 6), seed) * np.float32([[[[5]], [[1]], [[0.2]]]])} for seed in range(12)]
    result = quantize(graph, data, recipe=recipe, budget=0.05)
    assert {layer.label for layer in result.plan.quantized} == {"first", "depthwise", "point", "last"}
    assert result.report.after.loss <= 0.02
    if recipe.smoothing:
        folded = {layer.label: layer.folded for layer in result.plan.layers if layer.smoothing is not None}
        assert folded == {"depthwise": True, "point": True, **({"first": False} if recipe.multiply else {})}, "the last is behind a mean"
        assert {fold.location for fold in result.plan.folds} >= {"first", "first bias", "depthwise", "depthwise bias", "point"}


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_quarter_of_the_samples_is_put_aside(interpreted: type[Made]) -> None:
    report = quantize(network(), samples(12), budget=0.5).report
    assert (report.samples, report.held_out, report.warnings) == (9, 3, ())
    few = quantize(network(), samples(3), budget=0.5).report
    assert (few.samples, few.held_out) == (3, 3)
    assert few.warnings == ("3 calibration samples are few: 8 or more are expected",
                            "the result is judged on the calibration samples: too few to put some aside")


def test_errors_call_samples_by_their_numbers_in_the_data(interpreted: type[Made]) -> None:
    """Also where every fourth was put aside."""
    weights = numbers((6, 3))
    graph = tw.trace(lambda x: np.log(x) @ weights, args=(tw.spec((2, 6), "float32"),))
    for bad in (0, 2, 5, 10):
        data = np.abs(numbers((12, 2, 6))) + 1
        data[bad, 0, 0] = 0
        with pytest.raises(ArgumentError, match=f"holds infinity in sample {bad}\n"):
            quantize(graph, data)


def test_without_data_everything_says_so(interpreted: type[Made]) -> None:
    result = quantize(network(), recipe="weight-only int4", data_free=True)
    report = result.report
    assert result.plan.data_free and report.data_free and report.samples == report.held_out == 0
    assert report.verdict == ("data-free: 3 of 3 layers quantized from weights alone; what the model's results lose is not known; "
                              "times not measured, since sizes are open (dims bind them)")
    assert all(np.isnan(layer.loss) and 0 < layer.layer_error < 0.1 for layer in report.layers)
    assert all(layer.weights is not None and layer.weights.rounding == "nearest" for layer in result.plan.layers)
    dynamic = quantize(network(), recipe="dynamic int8", data_free=True)
    x = samples(1)[0]["x"]
    assert cosine(evaluate_graph(network(), [x])[0], evaluate_graph(dynamic.graph, [x])[0]) > 0.999


def test_a_diagnosis_ranks_layers_by_what_they_lose(interpreted: type[Made]) -> None:
    weights = [numbers((24, 24), seed) for seed in range(3)]
    weights[1][3, 5] = 900.0  # a channel of its own scale loses all others' digits
    other = numbers((24, 4), 4).astype(np.float64)

    def function(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value = np.tanh(np.tanh(np.tanh(x @ weights[0]) @ weights[1].T) @ weights[2])
        return value, value.astype(np.float64) @ other

    graph = tw.trace(function, args=(tw.spec(("n", 24), "float32"),))
    found = diagnose(graph, samples())
    assert [layer.reason for layer in found] == ["", "", "", "it computes in f64"]
    assert found[0].loss > found[1].loss >= found[2].loss
    constant = [{"x": np.sign(one["x"]) * 1e9} for one in samples()]
    weight = numbers((24, 24))
    flat = tw.trace(lambda x: np.minimum(np.abs(x), 1) @ weight + x @ weight, args=(tw.spec(("n", 24), "float32"),))
    assert [layer.reason for layer in diagnose(flat, constant)] == ["", "its input is 1 everywhere in the calibration data"]
    again = diagnose(graph, samples(), recipe="weight-only int8", metric="snr")
    assert len(again) == 4 and again[0].precision == "w8"


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics() -> None:
    a = np.array([[3.0, 4.0], [1.0, 0.0]])
    assert cosine(a, 2 * a) == pytest.approx(1) and cosine(a, -a) == pytest.approx(-1)
    assert cosine(a * 0, a * 0) == 1 and cosine(a, a * 0) == 0
    assert noise(a, a) == 0 and noise(a, a * 0) == 1 and noise(a * 0, a) == float("inf") and noise(a * 0, a * 0) == 0
    assert disagreement(a, a[:, ::-1]) == 1 and disagreement(a, a) == 0 and disagreement(np.array(1.0), np.array(2.0)) == 0
    _, worst = metric_named("top-1")
    assert worst((a, a), (a, a[:, ::-1])) == 1
    assert worst((np.array([1, 2]),), (np.array([1, 3]),)) == 0.5, "of integers the share that differs"
    assert loss_of(worst, [(a,)], [(a * np.nan,)]) == float("inf")
    assert figures([(a,)], [(a,)]) == (pytest.approx(1), float("inf"), 1)


@pytest.mark.parametrize("name", ["cosine", "snr", "top-1"])
def test_infinities_of_the_float_model_must_be_met(name: str) -> None:
    """As masked places have them. NaN compares with nothing, which the sample's owner is told."""
    _, worst = metric_named(name)
    masked = np.array([[1.0, -np.inf, 3.0]])
    assert worst((masked,), (masked,)) == pytest.approx(0, abs=1e-12)
    assert worst((masked,), (np.array([[3.0, -np.inf, 1.0]]),)) > 0.1
    for found in ([[1.0, 0.0, 3.0]], [[1.0, np.inf, 3.0]], [[np.nan, -np.inf, 3.0]]):
        assert worst((masked,), (np.array(found),)) == float("inf")
    with pytest.raises(ArgumentError, match="the float model gives NaN: sample 1 of the 2 that losses are measured on"):
        loss_of(worst, [(masked,), (masked * np.nan,)], [(masked,), (masked,)])


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, text", [
    ({"calibration": None}, "quantize: no calibration data is given"),
    ({"calibration": samples(1)}, "calibration: there is one sample, from which the ranges of static activations cannot be told"),
    ({"calibration": samples(2), "held_out": []}, "held-out: there are no samples"),
    ({"goal": "speed"}, "quantize: goal 'speed' is not one of time, size"),
    ({"budget": -0.1}, "quantize: budget must be a loss of 0 or more, found -0.1"),
    ({"budget": float("nan")}, "quantize: budget must be a loss of 0 or more, found nan"),
    ({"budget": "0.5%"}, "quantize: budget must be a loss of 0 or more, found '0.5%'"),
    ({"metric": "mse"}, "quantize: metric 'mse' is not one of cosine, snr, top-1, nor a function"),
    ({"metric": lambda expected, found: float("nan")}, "quantize: the metric gave nan, expected a number of 0 or more"),
    ({"metric": lambda expected, found: None}, "quantize: the metric gave None, expected a number of 0 or more"),
    ({"recipe": "int9"}, "quantize: recipe 'int9' is not one of static int8"),
    ({"data_free": True}, "quantize: data-free means without data, found calibration or held-out samples"),
    ({"calibration": None, "data_free": True}, "quantize: recipe 'static int8' has static activations (i8), whose ranges only data can"),
])
def test_wrong_arguments(arguments: dict[str, Any], text: str, interpreted: type[Made]) -> None:
    given = {"calibration": samples(4), **arguments}
    with pytest.raises(ArgumentError) as caught:
        quantize(network((24, 6)), **given)
    assert text in str(caught.value)


def test_one_sample_will_do_where_no_range_is_needed(interpreted: type[Made]) -> None:
    report = quantize(network((24, 6)), samples(1), recipe="dynamic int8", budget=0.5).report
    assert report.warnings[0] == "1 calibration samples are few: 8 or more are expected"


def test_a_graph_without_layers_is_refused() -> None:
    graph = tw.trace(lambda x: np.tanh(x), args=(tw.spec((3,), "float32"),))
    with pytest.raises(ArgumentError, match="has no contraction with constant weights, and no table whose rows are taken$"):
        quantize(graph, numbers((4, 3)))
    weights = numbers((3, 3))
    left = tw.trace(lambda x: weights @ x, args=(tw.spec((3, 2), "float32"),))
    with pytest.raises(ArgumentError, match="is left alone: its constant is the left operand"):
        quantize(left, numbers((4, 3, 2)))


def test_it_is_public() -> None:
    assert tw.quantize is quantize


def test_a_search_without_contenders_chooses_nothing(interpreted: type[Made]) -> None:
    graph = network((24, 6))
    prepared = tool._prepare(graph, samples(4), None, tool._settings("static int8", "cosine", "time", 0.5, "cpu", None, None))
    refused = [Contender(contender.layer, (), ("it is too small",)) for contender in prepared.contenders]
    options = Search(refused, "time", prepared.plan)
    plan = options.plan(options.cheapest())
    assert [layer.reason for layer in plan.layers] == ["it is too small"]
    assert Judge(graph, prepared.judged, metric_named("cosine")[1], interpreted(), "cpu", tw.Options()).judge(graph)[0] == 0
