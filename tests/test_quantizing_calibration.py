"""Calibration: the forms of samples and every error of theirs, histograms and ranges, the statistics of layers' inputs, smoothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.testing import assert_allclose, assert_array_equal

import tilewright as tw
from tilewright.ir.errors import ArgumentError, Loc
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv, Dot
from tilewright.ir.ops.control import Param
from tilewright.ir.types import F32
from tilewright.library import apply, constant, layer_norm, like, scalar
from tilewright.quantizing.applying import fold_graph
from tilewright.quantizing.calibration import collect
from tilewright.quantizing.candidates import candidate
from tilewright.quantizing.equalize import bias_correction, estimated_noise, find_smoothing, smoothed, smoothing_factors
from tilewright.quantizing.layers import find_layers
from tilewright.quantizing.ranges import HALF, Histogram, choose_range, error_of, grid_of
from tilewright.quantizing.recipes import RECIPES, Recipe, recipe_named, without_data
from tilewright.quantizing.samples import read_samples

U8, I8 = (0, 255), (-128, 127)


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def two_inputs() -> Graph:
    weights = numbers((4, 3))
    return tw.trace(lambda x, scale: (x * scale) @ weights, args=(tw.spec(("n", 4), "float32"), tw.spec((4,), "float32")))


def stacked(**changes: Any) -> dict[str, Any]:
    return {"x": numbers((5, 2, 4)), "scale": numbers((5, 4), 1), **changes}


# --- samples ---------------------------------------------------------------------------------------------------------


def test_samples_come_in_several_forms(tmp_path: Path) -> None:
    graph, data = two_inputs(), stacked()
    np.savez(tmp_path / "data.npz", **data)
    dicts = [{name: array[i] for name, array in data.items()} for i in range(5)]
    forms = [data, tmp_path / "data.npz", str(tmp_path / "data.npz"), dicts, iter(dicts), [tuple(one.values()) for one in dicts]]
    for form in forms:
        samples = read_samples(graph, form)
        assert [list(sample) for sample in samples] == [["x", "scale"]] * 5
        for sample, expected in zip(samples, dicts):
            assert_array_equal(sample["x"], expected["x"])
            assert_array_equal(sample["scale"], expected["scale"])


def test_arrays_of_the_input_s_own_rank_are_cut_along_an_open_axis() -> None:
    weights = numbers((4, 3))
    graph = tw.trace(lambda x: x @ weights, args=(tw.spec(("n", 4), "float32"),))
    samples = read_samples(graph, numbers((6, 4)))
    assert [sample["x"].shape for sample in samples] == [(1, 4)] * 6
    fixed = tw.trace(lambda x: x @ weights, args=(tw.spec((2, 4), "float32"),))
    assert [sample["x"].shape for sample in read_samples(fixed, numbers((3, 2, 4)))] == [(2, 4)] * 3
    with pytest.raises(ArgumentError, match=r"calibration: 'x' is float32\[6, 4\], expected samples of f32\[2, 4\] along a first axis"):
        read_samples(fixed, numbers((6, 4)))


def with_number(value: float) -> np.ndarray:
    array = numbers((5, 2, 4))
    array[3, 0, 1] = value
    return array


def test_narrower_numbers_are_widened_where_that_is_exact() -> None:
    graph = two_inputs()
    sample = read_samples(graph, stacked(x=numbers((5, 2, 4)).astype(np.float16)))[0]
    assert sample["x"].dtype == np.float32


WRONG: list[tuple[str, Callable[[], Any], str]] = [
    ("none", list, "calibration: there are no samples"),
    ("no samples in arrays", lambda: stacked(x=np.zeros((0, 2, 4), np.float32), scale=np.zeros((0, 4), np.float32)),
     "calibration: there are no samples"),
    ("missing", lambda: {"x": numbers((5, 2, 4))}, "calibration: input 'scale' is missing, found x"),
    ("missing in a sample", lambda: [{"x": numbers((2, 4)), "scale": numbers((4,))}, {"scale": numbers((4,))}],
     "calibration: sample 1: input 'x' is missing, found scale"),
    ("unknown", lambda: stacked(mask=np.zeros(5)), "calibration: 'mask' is no input of the model, whose inputs are x, scale"),
    ("NaN", lambda: stacked(x=with_number(np.nan)), "calibration: sample 3: input 'x' holds NaN, which no range can hold"),
    ("infinity", lambda: stacked(x=with_number(-np.inf)), "calibration: sample 3: input 'x' holds infinity, which no range can hold"),
    ("wider", lambda: stacked(x=numbers((5, 2, 4)).astype(np.float64)),
     "calibration: sample 0: input 'x' must be f32[n, 4], found float64[2, 4]\n  hint: convert the data: array.astype(numpy.float32)"),
    ("shape", lambda: stacked(scale=numbers((5, 3))), "axis 0 of input scale must be 4, found 3"),
    ("rank", lambda: stacked(scale=numbers((5, 1, 1, 4))), "calibration: 'scale' is float32[5, 1, 1, 4], expected samples of f32[4]"),
    ("counts", lambda: stacked(scale=numbers((4, 4))), "calibration: inputs have different numbers of samples: x 5, scale 4"),
    ("all equal", lambda: stacked(x=np.repeat(numbers((1, 2, 4)), 5, 0), scale=np.repeat(numbers((1, 4)), 5, 0)),
     "calibration: all 5 samples are equal, expected data that varies"),
    ("constant", lambda: [{"x": np.zeros((n, 4), np.float32), "scale": np.ones(4, np.float32)} for n in (1, 2, 3)],
     "calibration: the data is constant: 'x' is 0.0, 'scale' is 1.0 everywhere"),
    ("arrays", lambda: [(numbers((2, 4)),)], "calibration: sample 0: found 1 arrays for the inputs x, scale"),
    ("one array", lambda: numbers((5, 2, 4)), "calibration: found one array for 2 inputs, expected a dict of arrays by input name"),
    ("no data", lambda: 7, "calibration: found int, expected an .npz file, a dict of stacked arrays, or an iterable of samples"),
    ("ragged", lambda: [([[1.0], [1.0, 2.0]], numbers((4,)))],
     "calibration: sample 0: input 'x' is a list that no array can be made of, expected equal sizes along each axis"),
    ("text", lambda: stacked(x=np.full((5, 2, 4), "1.0")), "calibration: sample 0: input 'x' must be f32[n, 4], found <U3[2, 4]"),
    ("no file", lambda: "/nowhere/data.npz", "calibration: /nowhere/data.npz cannot be read: there is no such file"),
]


@pytest.mark.parametrize("make, text", [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_wrong_data_is_one_clear_error(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_samples(two_inputs(), make())
    assert text in str(caught.value)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 damaged"])
def test_a_damaged_file_is_one_clear_error(content: bytes, tmp_path: Path) -> None:
    place = tmp_path / "data.npz"
    place.write_bytes(content)
    with pytest.raises(ArgumentError, match="cannot be read: it is no .npz file of plain arrays"):
        read_samples(two_inputs(), place)
    np.savez_compressed(place, x=numbers((5, 2, 4)), scale=numbers((5, 4)))
    whole = place.read_bytes()
    for damaged in (whole[:len(whole) // 2], whole[:-30], whole[:80] + bytes(40) + whole[120:]):
        place.write_bytes(damaged)
        with pytest.raises(ArgumentError, match="cannot be read: it is no .npz file of plain arrays"):
            read_samples(two_inputs(), place)
    np.save(tmp_path / "one.npy", numbers((3,)))
    with pytest.raises(ArgumentError, match="holds one array, expected an .npz file with an array for each input"):
        read_samples(two_inputs(), tmp_path / "one.npy")


# --- ranges ----------------------------------------------------------------------------------------------------------


def histogram_of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def test_a_histogram_grows_with_what_it_sees() -> None:
    parts = [numbers((1000,), seed) * np.float32(10.0 ** power) for seed, power in enumerate((-6, 0, 3, -2))]
    whole = np.concatenate(parts)
    histogram = histogram_of(*parts)
    assert histogram.counts.sum() == histogram.total == whole.size
    assert (histogram.low, histogram.high) == (whole.min(), whole.max())
    assert_allclose(histogram.mean_square, np.mean(whole.astype(np.float64) ** 2), rtol=1e-6)
    width = histogram.middles[1] - histogram.middles[0]
    assert HALF * width / 2 <= np.abs(whole).max() <= HALF * width
    for cut in (-500.0, 0.0, 700.0):
        edge = np.round(cut / width) * width
        assert abs(int(histogram.counts[histogram.middles < edge].sum()) - int((whole < edge).sum())) <= 0.002 * whole.size


def test_the_order_of_values_does_not_matter() -> None:
    parts = [numbers((500,), seed) * np.float32(scale) for seed, scale in enumerate((0.01, 100, 1, 7))]
    first, second = histogram_of(*parts), histogram_of(*reversed(parts))
    assert first.exponent == second.exponent
    assert np.abs(first.counts - second.counts).sum() <= 4


@pytest.mark.parametrize("values", [np.zeros(3, np.float32), np.zeros(0, np.float32), np.full(4, 1e-42, np.float32),
                                    np.full(4, 3e38, np.float32)])
def test_extreme_values_have_ranges(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    for method in ("min-max", "percentile", "mean squared error", "entropy"):
        low, high = choose_range(histogram, method, U8, False, 99.99)
        scale, point = grid_of(low, high, U8, False)
        assert low <= 0 <= high and np.isfinite(scale) and scale > 0 and 0 <= point <= 255


def test_zero_is_exact_in_every_grid() -> None:
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-7.0, -1.0), (0.0, 0.0), (-1e-3, 1e3)):
        for levels, symmetric in ((U8, False), (I8, True)):
            scale, point = grid_of(low, high, levels, symmetric)
            assert levels[0] <= point <= levels[1]
            assert (np.clip(np.round(0 / scale) + point, *levels) - point) * scale == 0


@pytest.mark.parametrize("symmetric, levels", [(False, U8), (True, I8)])
def test_outliers_are_cut_off_where_that_loses_less(symmetric: bool, levels: tuple[int, int]) -> None:
    values = np.concatenate([numbers((200_000,)), np.float32([60, -40])])
    histogram = histogram_of(values)
    lost = {}
    for method in ("min-max", "percentile", "mean squared error", "entropy"):
        low, high = choose_range(histogram, method, levels, symmetric, 99.99)
        scale, point = grid_of(low, high, levels, symmetric)
        kept = (np.clip(np.round(values / scale) + point, *levels) - point) * scale
        lost[method] = float(np.mean((values - kept) ** 2))
        assert_allclose(error_of(histogram, scale, point, levels), lost[method], rtol=0.02)
    assert choose_range(histogram, "min-max", levels, symmetric, 99.99) == (-40, 60)
    assert lost["mean squared error"] == min(lost.values()) < lost["min-max"]
    assert choose_range(histogram, "percentile", levels, symmetric, 99.9)[1] < 6
    assert choose_range(histogram, "entropy", levels, symmetric, 99.9)[1] < 60


def test_the_range_of_least_error_is_as_good_as_any_other() -> None:
    histogram = histogram_of(np.maximum(numbers((20_000,)), 0) ** 3)
    low, high = choose_range(histogram, "mean squared error", U8, False, 99.99)
    best = error_of(histogram, *grid_of(low, high, U8, False), U8)
    every = [error_of(histogram, *grid_of(0.0, histogram.high * share, U8, False), U8) for share in np.linspace(0.05, 1, 200)]
    assert low == 0 and best <= min(every) * 1.05


# --- statistics ------------------------------------------------------------------------------------------------------


def convolution_and_product() -> Graph:
    kernel, weights = numbers((4, 3, 3, 3)), numbers((4, 5), 1)

    b = Builder(Loc(name="here"))
    x = b.add(Param("x", F32, (2, 3, 6, 5)))
    convolved = b.add(Conv((2, 1), ((1, 1), (0, 1)), (1, 1), (1, 1)), x, constant(b, kernel))
    return Graph("both", (x,), (b.add(Dot((1,), (0,)), scalar(b, "tanh", convolved), constant(b, weights)),))


def test_statistics_are_those_of_all_samples_together() -> None:
    graph = convolution_and_product()
    layers, _ = find_layers(graph)
    samples = read_samples(graph, [numbers((2, 3, 6, 5), seed) for seed in range(3)])
    statistics = collect(graph, layers, samples, moments=True)
    for layer in layers:
        read = [evaluate_graph(Graph("input", graph.params, (layer.source,)), [sample["x"]])[0] for sample in samples]
        rows = np.concatenate([layer.rows(x) for x in read], axis=1).astype(np.float64)
        seen, moments = statistics.of(layer), statistics.moments[layer.label]
        assert_allclose([seen.histogram.low, seen.histogram.high], [min(x.min() for x in read), max(x.max() for x in read)], rtol=1e-5)
        axis = tuple(a for a in range(4) if a != 1)
        assert_allclose(seen.largest, np.max([np.abs(x).max(axis) for x in read], axis=0), rtol=1e-5)
        assert_allclose(seen.mean_squares, np.mean(np.square(read), axis=(0, *(a + 1 for a in axis[:read[0].ndim - 1]))), rtol=1e-4)
        assert seen.shape == read[0].shape and moments.count == rows.shape[1]
        assert_allclose(moments.mean, rows.mean(axis=1), atol=1e-5)
        assert moments.squares is not None
        assert_allclose(moments.squares, rows.transpose(0, 2, 1) @ rows, rtol=1e-4, atol=1e-3)


def test_moments_that_no_float_holds_are_left_out(recwarn: pytest.WarningsRecorder) -> None:
    """Squares of such inputs are infinite: weights are rounded to nearest then, without a warning from NumPy on the way."""
    graph = convolution_and_product()
    layers, _ = find_layers(graph)
    data = [numbers((2, 3, 6, 5), seed) for seed in range(3)]
    data[1] *= np.float32(1e25)
    statistics = collect(graph, layers, read_samples(graph, data), moments=True)
    first, second = (statistics.moments[layer.label] for layer in layers)
    assert first.squares is None and second.squares is not None and np.isfinite(second.squares).all()
    plan = candidate(layers[0], "i8", RECIPES["static int8"], statistics)
    assert not isinstance(plan, str) and plan.weights is not None and plan.weights.rounding == "nearest"
    assert not recwarn.list


def test_layers_that_read_the_same_rows_share_their_moments() -> None:
    left, right = numbers((6, 3)), numbers((6, 2), 1)
    graph = tw.trace(lambda x: (x @ left, x @ right), args=(tw.spec((4, 6), "float32"),))
    layers, _ = find_layers(graph)
    statistics = collect(graph, layers, read_samples(graph, numbers((3, 4, 6))), moments=True)
    first, second = (statistics.moments[layer.label] for layer in layers)
    assert first is second and first.count == 12


@pytest.mark.parametrize("value, kind", [(0.0, "infinity"), (-1.0, "NaN")])
def test_what_is_not_finite_within_the_model_names_the_layer(value: float, kind: str) -> None:
    weights = numbers((4, 3))
    graph = tw.trace(lambda x: np.log(x) @ weights, args=(tw.spec((2, 4), "float32"),))
    data = np.abs(numbers((3, 2, 4))) + 1
    data[1, 0, 0] = value
    layers, _ = find_layers(graph)
    with pytest.raises(ArgumentError, match=rf"calibration: the input of layer '{layers[0].label}' holds {kind} in sample 1"):
        collect(graph, layers, read_samples(graph, data))


def test_an_index_that_is_no_row_names_the_sample() -> None:
    table, weights = numbers((9, 4)), numbers((4, 3))
    graph = tw.trace(lambda places: np.take(table, places, axis=0) @ weights, args=(tw.spec((2,), "int64"),))
    samples = read_samples(graph, np.array([[0, 1], [8, 9], [2, 2]]))
    with pytest.raises(ArgumentError, match="calibration: sample 1: take: index out of range.*9 is out of bounds"):
        collect(graph, find_layers(graph)[0], samples)


def test_bias_correction_is_the_mean_error() -> None:
    rows, difference = numbers((1, 50, 6)) + 1, numbers((1, 6, 3), 1) * np.float32(0.01)
    weights, mean = numbers((1, 6, 3), 2), rows.mean(axis=1)
    found = bias_correction(mean, weights, mean, weights - difference)
    assert_allclose(found, np.mean(rows[0] @ difference[0], axis=0), rtol=1e-4)
    shifted = bias_correction(mean, weights, mean + 1, weights)
    assert_allclose(shifted, -weights[0].sum(axis=0), rtol=1e-4)


# --- smoothing -------------------------------------------------------------------------------------------------------


def normalized(b: Builder, x: Node) -> Node:
    b.loc = Loc(name="norm")
    return layer_norm(b, x, constant(b, numbers((8,)) + 2), constant(b, numbers((8,), 1)), (1,), 1e-5)


def before_a_layer(how: str) -> tuple[Graph, bool]:
    """A graph whose last layer reads what is made so, and whether factors of its channels can be folded into that."""
    b = Builder()
    x = b.add(Param("x", F32, (6, 8)))
    spread = constant(b, np.exp(numbers((8,), 2) * 2).astype(np.float32))
    results = []
    if how == "norm":
        value, folds = normalized(b, x), True
    elif how == "norm read twice":
        value, folds = normalized(b, x), False
        results.append(scalar(b, "tanh", value))
    elif how == "norm as result":
        value, folds = normalized(b, x), False
        results.append(value)
    elif how == "product":
        b.loc = Loc(name="mul")
        value, folds = apply(b, "mul", scalar(b, "tanh", x), spread), True
    elif how in ("layer", "relu", "layer and tanh"):
        b.loc = Loc(name="earlier")
        value = b.add(Dot((1,), (0,)), x, constant(b, numbers((8, 8), 3)))
        b.loc = Loc(name="bias")
        value = apply(b, "add", value, constant(b, numbers((8,), 4)))
        b.loc = Loc(name="activation")
        value = apply(b, "max", value, like(b, 0, value)) if how == "relu" else value
        value = scalar(b, "tanh", value) if how == "layer and tanh" else value
        folds = how != "layer and tanh"
    else:
        value, folds = x, False
    b.loc = Loc(name="last")
    results.append(b.add(Dot((1,), (0,)), value, constant(b, numbers((8, 5), 5))))
    b.loc = Loc(name="beside")
    if how == "norm":
        results.append(b.add(Dot((1,), (0,)), value, constant(b, numbers((8, 3), 6))))
    return Graph(how, (x,), results), folds


WAYS = ["norm", "norm read twice", "norm as result", "product", "layer", "relu", "layer and tanh", "input"]


@pytest.mark.parametrize("method", ["smoothquant", "logarithmic", "best"])
@pytest.mark.parametrize("how", WAYS)
def test_smoothing_changes_no_result(how: str, method: str) -> None:
    graph, folds = before_a_layer(how)
    layers, _ = find_layers(graph)
    samples = read_samples(graph, [numbers((6, 8), seed) * np.exp(np.arange(8, dtype=np.float32)) for seed in range(3)])
    statistics = collect(graph, layers, samples, means=False)
    for multiply in (False, True):
        recipe = Recipe("by hand", ("i8",), smoothing=method, multiply=multiply)
        found = find_smoothing(graph, layers, statistics, recipe)
        last = found.factors.get("last")
        if method == "best" and last is None:
            continue  # nothing to be gained
        assert (last is not None and "last" not in found.others) == folds
        assert multiply == ("last" in found.factors) or folds
        equal = smoothed(fold_graph(graph, found.folds), find_layers(fold_graph(graph, found.folds))[0], found)
        for plain, smooth in zip(evaluate_graph(graph, list(samples[0].values())), evaluate_graph(equal, list(samples[0].values()))):
            assert_allclose(smooth, plain, rtol=1e-4, atol=1e-4)
        if last is not None:
            assert np.all(np.log2(last) == np.round(np.log2(last))), "powers of two, which round nothing"


def test_smoothing_evens_out_the_channels() -> None:
    graph, _ = before_a_layer("norm")
    layers, _ = find_layers(graph)
    samples = read_samples(graph, [numbers((6, 8), seed) for seed in range(3)])
    statistics = collect(graph, layers, samples, means=False)
    recipe = Recipe("by hand", ("i8",), smoothing="smoothquant", strength=1.0)
    equal = fold_graph(graph, find_smoothing(graph, layers, statistics, recipe).folds)
    after = collect(equal, find_layers(equal)[0], samples, means=False)
    before, even = statistics.inputs["last"].largest, after.inputs["last"].largest
    assert even.max() / even.min() <= 2.01 < before.max() / before.min()


def test_the_best_smoothing_follows_the_noise() -> None:
    """Where channels are alike nothing is gained by any; where one is far larger, what is estimated is what is lost."""
    weights = numbers((32, 24))
    graph = tw.trace(lambda x: x @ weights, args=(tw.spec((64, 32), "float32"),))
    layers, _ = find_layers(graph)
    recipe = Recipe("by hand", ("i8",), smoothing="best", ranges="min-max", clip=False, correct_bias=False)
    even = collect(graph, layers, read_samples(graph, np.sign(numbers((3, 64, 32)))), means=False)
    assert not find_smoothing(graph, layers, even, recipe).factors
    sizes = np.exp(np.linspace(0, 4, 32)).astype(np.float32)
    samples = read_samples(graph, numbers((3, 64, 32)) * sizes)
    statistics = collect(graph, layers, samples, means=False)
    chosen = find_smoothing(graph, layers, statistics, recipe).factors[layers[0].label]
    lost = {}
    for name, factors in (("chosen", chosen), ("none", np.ones_like(chosen)), ("all", sizes)):
        estimate = estimated_noise(statistics.of(layers[0]), factors, layers)
        x = np.concatenate([sample["x"] for sample in samples]) / factors
        scale, point = grid_of(float(x.min()), float(x.max()), U8, False)
        kept = (np.clip(np.round(x / scale) + point, *U8) - point) * scale
        matrix = weights * factors[:, np.newaxis]
        steps = np.abs(matrix).max(axis=0) / 127
        result = kept @ (np.round(matrix / steps) * steps)
        lost[name] = float(np.mean(np.sum((result - x @ matrix) ** 2, axis=1)))
        assert_allclose(estimate, lost[name], rtol=0.2)
    assert lost["chosen"] < min(0.5 * lost["none"], lost["all"])


def test_channels_that_are_never_used_have_the_factor_one() -> None:
    recipe = replace(RECIPES["static int8"], smoothing="smoothquant")
    factors = smoothing_factors(recipe, np.array([0, 4, 4], np.float32), np.array([1, 1, 0], np.float32))
    assert np.isfinite(factors).all() and (factors > 0).all()
    assert smoothing_factors(recipe, np.zeros(3, np.float32), np.zeros(3, np.float32)).tolist() == [1, 1, 1]


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, text", [
    ({"precisions": ("int8",)}, "recipe x: precision 'int8' is not one of i8, i8 dynamic, w8, w4, w2, w4a8, bf16, i8 outliers"),
    ({"precisions": ()}, "recipe x: no precision is given"),
    ({"ranges": "max"}, "recipe x: ranges 'max' is not one of min-max, percentile, mean squared error, entropy"),
    ({"rounding": "up"}, "recipe x: rounding 'up' is not one of nearest, gptq, gptq asymmetric, coordinate descent"),
    ({"smoothing": "strong"}, "recipe x: smoothing 'strong' is not one of smoothquant, logarithmic, best"),
    ({"activations": "u4"}, "recipe x: activations 'u4' is not one of u8, i8"),
    ({"percentile": 40.0}, "recipe x: percentile must be over 50 and at most 100, found 40.0"),
    ({"strength": 1.5}, "recipe x: strength must be from 0 to 1, found 1.5"),
    ({"group": -1}, "recipe x: group must be 0, one scale a channel, or 16 or more, found -1"),
])
def test_wrong_recipes(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Recipe(**{"name": "x", "precisions": ("i8",), **fields})
    assert text in str(caught.value)


def test_recipes_by_name() -> None:
    assert recipe_named("w4a8").precisions == ("w4a8",)
    with pytest.raises(ArgumentError, match="quantize: recipe 'int3' is not one of static int8, dynamic int8"):
        recipe_named("int3")
    assert without_data(RECIPES["weight-only int4"]).rounding == "nearest"
    with pytest.raises(ArgumentError, match=r"quantize: recipe 'static int8' has static activations \(i8\), whose ranges only data can tell"):
        without_data(RECIPES["static int8"])
