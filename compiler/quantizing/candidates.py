"""What a layer becomes at a precision: its integers, scales, range and correction, by a recipe and the statistics of calibration.

Assumes statistics of the graph that the layers belong to, smoothing folded in. A layer that a precision does not suit, such as
one whose input is constant, gives a reason in place of a plan. Without statistics (data-free) weights alone are looked at.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from ..ir.graph import Array
from ..ir.types import dtype_named
from .calibration import Moments, Statistics
from .equalize import bias_correction
from .layers import Layer
from .narrowing import narrowed
from .outliers import outlier_columns, without
from .plan import ActivationPlan, LayerPlan, Measured, WeightPlan, dequantized, stored_bytes
from .ranges import choose_range, error_of, grid_of
from .recipes import LEAST_GROUP, PRECISION_OF_OUTLIERS, PRECISIONS, Recipe
from .rounding import (
    LEVELS,
    NARROW_LEVELS,
    Grid,
    asymmetric_target,
    coordinate_descent,
    damped,
    damping_of,
    gptq,
    gptq_bfloats,
    grid_for,
    nearest,
    output_error,
    values_of,
)

BEST_OF = ("min-max", "mean squared error")
# a table has no input: what its rows become at a precision
OF_TABLES = {"i8": "w8", "i8 dynamic": "w8", PRECISION_OF_OUTLIERS: "w8", "w4a8": "w4"}
ROOM = (1.0, 1.1, 1.25, 1.5, 2.0)  # times the step, that are tried where sums of four weights are too large
WORTH_TRYING = 0.8  # of the squared error by the first range, that a narrower one must stay below to be tried at the results
ACTIVATION_LEVELS = {"u8": (0, 255), "i8": (-128, 127)}


def left_alone(layer: Layer, reason: str) -> LayerPlan:
    """The plan of a layer that stays in float."""
    size = layer.constant.array.nbytes
    return LayerPlan(layer.label, layer.location, layer.kind, layer.constant.array.shape, layer.constant.digest, reason=reason,
                     measured=Measured(bytes_before=size, bytes_after=size))


def candidates(layer: Layer, precision: str, recipe: Recipe, statistics: Statistics | None) -> list[LayerPlan] | str:
    """The layer at a precision, with each range that its losses shall decide between; or why it cannot be."""
    if layer.is_table:
        made = candidate(layer, OF_TABLES.get(precision, precision), replace(recipe, correct_bias=False), None)
        return made if isinstance(made, str) else [made]
    methods = BEST_OF if recipe.ranges == "best" and PRECISIONS[precision][1] == "static" else (recipe.ranges,)
    first = candidate(layer, precision, replace(recipe, ranges=methods[0]), statistics)
    if isinstance(first, str):
        return first
    found = [first]
    for method in methods[1:]:
        activation = _activation(layer, "static", replace(recipe, ranges=method), statistics)
        assert not isinstance(activation, str) and statistics is not None and first.activation is not None
        before, after = (_lost(layer, chosen, statistics) for chosen in (first.activation, activation))
        if after < WORTH_TRYING * before:
            error = first.measured.layer_error - before + after
            found.append(replace(first, activation=activation, measured=replace(first.measured, layer_error=error)))
    return found


def candidate(layer: Layer, precision: str, recipe: Recipe, statistics: Statistics | None) -> LayerPlan | str:
    """The layer at a precision, or why it cannot be; where losses shall decide about its range, with the first of these."""
    dtype, kind = PRECISIONS[precision]
    moments = None if statistics is None else statistics.moments[layer.label]
    if dtype == "bf16":
        return _rounded(layer, precision, recipe, moments)
    activation = _activation(layer, kind, recipe, statistics)
    if isinstance(activation, str):
        return activation
    levels = NARROW_LEVELS if dtype == "i8" and kind != "float" and recipe.byte_bits == 7 else LEVELS[dtype]
    outliers: Array | None = None
    if precision == PRECISION_OF_OUTLIERS:
        found = "its outliers are not known without data" if statistics is None else outlier_columns(layer, statistics.of(layer))
        if isinstance(found, str):
            return found
        outliers, recipe = (found if found.size else None), replace(recipe, rounding="nearest")
    part = layer if outliers is None else without(layer, outliers)
    weights = quantized_weights(part, dtype, levels, recipe, moments)
    plan = LayerPlan(layer.label, layer.location, layer.kind, layer.constant.array.shape, layer.constant.digest, precision,
                     weights, activation)
    plain, kept = layer.matrix(), _matrix_of(layer, weights)
    if outliers is not None:
        kept[:, outliers] = plain[:, outliers]
    correction = _correction(layer, recipe, moments, kept)
    in_float = 0 if outliers is None else plain[:, outliers].nbytes
    measured = Measured(layer_error=_layer_error(layer, activation, plain - kept, moments, statistics),
                        bytes_before=layer.constant.array.nbytes, bytes_after=stored_bytes(weights) + in_float)
    return replace(plan, correction=correction, outliers=outliers, measured=measured)


def _rounded(layer: Layer, precision: str, recipe: Recipe, moments: Moments | None) -> LayerPlan:
    """In bfloat16: to nearest, or where the recipe looks at moments so that errors make up for one another."""
    dtype = dtype_named("bf16").numpy
    squares = None if moments is None or recipe.rounding == "nearest" else moments.squares
    if squares is None or moments is None or not moments.count:
        matrix, rounding = layer.matrix().astype(dtype), "nearest"
    else:
        matrix, rounding = gptq_bfloats(layer.matrix(), damped(squares, damping_of(moments.count, squares))), "gptq"
    weights = WeightPlan("bf16", layer.stored(matrix), None, channel_axes=layer.channel_axes, rounding=rounding,
                         as_operand=layer.as_operand, order=layer.order or ())
    return LayerPlan(layer.label, layer.location, layer.kind, layer.constant.array.shape, layer.constant.digest, precision, weights,
                     ActivationPlan("float", "bf16"), correction=_correction(layer, recipe, moments, matrix.astype(np.float32)),
                     measured=Measured(bytes_before=layer.constant.array.nbytes, bytes_after=stored_bytes(weights)))


def _correction(layer: Layer, recipe: Recipe, moments: Moments | None, kept: Array) -> Array | None:
    """What the layer's result is to be moved by, with these weights [groups, K, N]."""
    if not recipe.correct_bias or moments is None or not moments.count:
        return None
    return bias_correction(moments.plain_mean, layer.matrix(), moments.mean, kept).reshape(layer.result_shape)


# --- activations -----------------------------------------------------------------------------------------------------


def _activation(layer: Layer, kind: str, recipe: Recipe, statistics: Statistics | None) -> ActivationPlan | str:
    shared = layer.label if statistics is None else statistics.shared[layer.label]
    if kind == "float":
        return ActivationPlan("float", shared=shared)
    if kind == "dynamic":
        return ActivationPlan("dynamic", "i8", shared=shared)
    if statistics is None:
        return "its range is not known without data"
    histogram = statistics.of(layer).histogram
    if not histogram.total:
        return "its input is empty in the calibration data"
    if histogram.low == histogram.high:
        return f"its input is {histogram.low:g} everywhere in the calibration data"
    levels, symmetric = ACTIVATION_LEVELS[recipe.activations], recipe.activations == "i8"
    method = BEST_OF[0] if recipe.ranges == "best" else recipe.ranges
    low, high = choose_range(histogram, method, levels, symmetric, recipe.percentile)
    scale, point = grid_of(low, high, levels, symmetric)
    dtype = dtype_named(recipe.activations).numpy
    return ActivationPlan("static", recipe.activations, np.array(scale, np.float32), np.array(point, dtype), low, high,
                          method, shared)


# --- weights ---------------------------------------------------------------------------------------------------------


def quantized_weights(layer: Layer, dtype: str, levels: tuple[int, int], recipe: Recipe, moments: Moments | None) -> WeightPlan:
    """The layer's constant in integers between these, by the recipe's rounding where moments are at hand, else to nearest."""
    symmetric = recipe.symmetric or dtype == "i8"
    group = 0 if dtype == "i8" or not layer.can_group else group_size(layer.depth, recipe.group)
    matrices = layer.matrix()
    rows = 0 if moments is None else moments.count
    squares = None if moments is None or not rows else moments.squares
    importance = None if squares is None else np.diagonal(squares, axis1=-2, axis2=-1)
    crossed = moments.crossed if moments is not None and squares is not None and recipe.rounding == "gptq asymmetric" else None
    if squares is not None and crossed is not None:
        matrices = asymmetric_target(matrices, squares, crossed)
    grid = grid_for(matrices, levels, group, symmetric, recipe.clip, importance)
    channels = layer.depth if layer.kind == "dot" else layer.channels // layer.groups
    if levels == NARROW_LEVELS:
        grid = _with_room(matrices, grid, channels, importance)
    integers, rounding = _integers(matrices, grid, recipe.rounding, squares, rows)
    if levels == NARROW_LEVELS:
        integers = narrowed(integers, channels)
    rounding = rounding if crossed is None else recipe.rounding
    kind = dtype_named(dtype).numpy
    values = layer.stored(integers.astype(np.int8)).astype(kind)
    scale = layer.stored(grid.scale)
    zero_point = layer.stored(grid.point.astype(np.int8)).astype(kind) if grid.point.any() else None
    return WeightPlan(dtype, values, scale, zero_point, group, layer.group_axis if group else 0, layer.channel_axes, rounding,
                      layer.as_operand, layer.order or ())


def _with_room(matrices: Array, grid: Grid, channels: int, importance: Array | None) -> Grid:
    """The grid with wider steps for those columns that lose less by them than by sums made to fit (narrowing.py)."""
    plain = nearest(matrices, grid)
    columns = np.flatnonzero((narrowed(plain.copy(), channels) != plain).any(axis=(0, 1)))
    if not columns.size:
        return grid
    weights, first, point = (array[..., columns] for array in (matrices, grid.scale, grid.point))
    weigh = 1.0 if importance is None else importance[..., np.newaxis]
    best, least = first, np.full(first.shape, np.inf)
    for factor in ROOM:
        wider = Grid((first * np.float32(factor)).astype(np.float32), point, grid.levels, grid.group)
        error = values_of(narrowed(nearest(weights, wider), channels), wider) - weights
        lost = (weigh * error ** 2).sum(axis=-2, keepdims=True)
        best, least = np.where(lost < least, wider.scale, best), np.minimum(lost, least)
    scale = grid.scale.copy()
    scale[..., columns] = best
    return Grid(scale, grid.point, grid.levels, grid.group)


def _integers(matrix: Array, grid: Grid, rounding: str, squares: Array | None, rows: int) -> tuple[Array, str]:
    """The integers, and by what they were found."""
    if rounding == "nearest" or squares is None:
        return nearest(matrix, grid), "nearest"
    moments = damped(squares, damping_of(rows, squares))
    if rounding == "coordinate descent":
        return coordinate_descent(matrix, grid, moments, nearest(matrix, grid)), rounding
    return gptq(matrix, grid, moments, by_size=True), "gptq"


def group_size(depth: int, wanted: int) -> int:
    """The group for a contraction: the greatest divisor up to `wanted` that is at least LEAST_GROUP, else 0, one for a channel."""
    if not wanted or wanted >= depth:
        return 0
    return next((size for size in range(wanted, LEAST_GROUP - 1, -1) if depth % size == 0), 0)


def _matrix_of(layer: Layer, weights: WeightPlan) -> Array:
    """The quantized weights as [groups, K, N]."""
    array = dequantized(weights)
    return layer.to_matrix(array if weights.as_operand else layer.as_read(array))


def _layer_error(layer: Layer, activation: ActivationPlan, difference: Array, moments: Moments | None,
                 statistics: Statistics | None) -> float:
    """The squared error of the result over its square: exact for weights where second moments are known, else as if the rows of
    the input had equal and independent elements; with that of activations, as their histogram says."""
    weights = layer.matrix().astype(np.float64)
    if moments is not None and moments.squares is not None:
        whole = output_error(weights, moments.squares)
        error = output_error(difference, moments.squares) / whole if whole else 0.0
    else:
        whole = float((weights ** 2).sum())
        error = float((difference ** 2).sum()) / whole if whole else 0.0
    return float(error) + (_lost(layer, activation, statistics) if statistics is not None else 0.0)


def _lost(layer: Layer, activation: ActivationPlan, statistics: Statistics) -> float:
    """The squared error of a static input over its square."""
    if activation.scale is None or activation.zero_point is None:
        return 0.0
    histogram = statistics.of(layer).histogram
    lost = error_of(histogram, float(activation.scale), int(activation.zero_point), ACTIVATION_LEVELS[activation.dtype])
    return lost / histogram.mean_square if histogram.mean_square else 0.0
