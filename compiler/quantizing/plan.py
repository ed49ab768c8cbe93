"""What quantizing decides, as plain records: one `LayerPlan` for each contraction with constant weights, and a `Plan` of them all.

A *layer* is a `Dot` or `Conv` of a float graph whose right operand is a constant (which may stand behind transposes and
reshapes). Whoever applies a plan, to a graph (`layers.py`) or to a model file, needs nothing but these records.

What a quantized layer computes, with x its input and W its constant, `smoothing` and `correction` where they are given:

    X = x / smoothing                      along the channels of the input
    X = (clip(round_half_even(X / scale) + zero_point) - zero_point) * scale     by `activation`; the float X where it is "float"
    W = (values - zero_point) * scale      by `weights`; values are those of W * smoothing already
    result = X W + correction

Guarantees: arrays are C-contiguous and not shared with the model; the dtype of `values` and of a zero point is the NumPy
dtype of the dtype named (`ml_dtypes.int4` for "int4"); scales are float32, positive and finite.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from msgspec import Struct

FLOAT = "float"
WEIGHT_DTYPES = ("i8", "int4", "int2", "bf16")
ACTIVATION_DTYPES = ("u8", "i8")


class WeightPlan(Struct, frozen=True, eq=False):
    """The constant of a layer, quantized, in the layout of the constant as the model stores it.

    dtype       "i8", "int4", "int2"; or "bf16", where `values` are bfloat16 and there is no scale
    values      shape of the model's constant; or of the contraction's operand, where `as_operand`
    scale       float32 that broadcasts against values: the same rank, 1 along axes where it does not change. With a `group`
                its size along `group_axis` is that of values divided by `group`: each entry stands for `group` elements
    zero_point  of the dtype and the shape of scale; None where it is 0 everywhere (symmetric)
    group       elements along group_axis that share a scale, a divisor of that axis' size; 0: one scale for a channel
    group_axis  the axis of values that is contracted; 0 without groups
    channel_axes the axes of values that are the layer's output channels
    rounding    "nearest", "gptq", "gptq asymmetric", "coordinate descent"
    order       the axes of values as the contraction reads them, without axes of size 1 that it has not; empty where as_operand
    as_operand  whether the arrays are in the layout of the contraction's right operand, since reshapes stand between it and
                the constant
    """

    dtype: str
    values: np.ndarray
    scale: np.ndarray | None
    zero_point: np.ndarray | None = None
    group: int = 0
    group_axis: int = 0
    channel_axes: tuple[int, ...] = ()
    rounding: str = "nearest"
    as_operand: bool = False
    order: tuple[int, ...] = ()


class ActivationPlan(Struct, frozen=True, eq=False):
    """How the input of a layer is quantized.

    kind        "static": scale and zero_point are known and one for the whole tensor; "dynamic": they are found at run time,
                for each row (all places but the contracted ones), symmetric for "i8"; "float": it stays as it is
    dtype       "u8" or "i8"; "float" or "bf16" where kind is "float"
    scale       float32 scalar array for "static", else None
    zero_point  scalar array of the dtype for "static", else None
    low, high   the range that the scale stands for; 0 lies within
    method      how the range was chosen: "min-max", "percentile", "mean squared error", "entropy"; "" where none was
    shared      layers with the same text here read the same tensor, quantized once. It is the label of the first of them
    """

    kind: str
    dtype: str = FLOAT
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None
    low: float = 0.0
    high: float = 0.0
    method: str = ""
    shared: str = ""


class Measured(Struct, frozen=True):
    """Figures of a layer; NaN where they were not measured.

    error           what quantizing this layer alone does to the model's results (the metric's loss: see choose.py)
    turn            what it typically does by the angle to the float results, which is never coarse (metrics.py: cosine, typical_loss)
    unmoved         the share of samples that lose nothing though their results turn
    layer_error     squared error of the layer's own result over its square, on the calibration data
    seconds_before, seconds_after  of the model with this layer in float and quantized, the others in float
    bytes_before, bytes_after      of the constant, scales and zero points counted
    """

    error: float = float("nan")
    turn: float = float("nan")
    unmoved: float = float("nan")
    layer_error: float = float("nan")
    seconds_before: float = float("nan")
    seconds_after: float = float("nan")
    bytes_before: int = 0
    bytes_after: int = 0


class LayerPlan(Struct, frozen=True, eq=False):
    """What was decided for one layer.

    label       unique in the plan: the ONNX node's name where there is one, else the line of the source; with #2, #3, ... where
                several layers come from one place
    location    the same without that number
    kind        "dot" or "conv"
    shape       of the constant, as the model stores it
    digest      of the constant (`Constant.digest`): two layers with equal ones share it
    precision   the name of what was chosen: "f32", "bf16", "i8", "i8 dynamic", "w8", "w4", "w2", "w4a8", "i8 outliers"
    weights, activation   None where the layer is left alone
    reason      why it was left alone; "" where it was not
    smoothing   factors of the input's channels (one for each, along the contracted axis or the axis of channels), or None
    folded      whether the graph before the layer divides by them already (see `Plan.folds`); else the input is divided
    correction  float32, broadcasts against the layer's result and is added to it; or None
    outliers    places along the contraction whose products are taken in float (`outliers.py`); None where there are none
    """

    label: str
    location: str
    kind: str
    shape: tuple[int, ...]
    digest: str
    precision: str = "f32"
    weights: WeightPlan | None = None
    activation: ActivationPlan | None = None
    reason: str = ""
    smoothing: np.ndarray | None = None
    folded: bool = False
    correction: np.ndarray | None = None
    outliers: np.ndarray | None = None
    measured: Measured = Measured()

    @property
    def quantized(self) -> bool:
        return self.weights is not None


class Fold(Struct, frozen=True, eq=False):
    """A constant of the model that takes up smoothing factors: where the node at `location` reads the constant of that digest,
    it reads constant * factor from now on (factor broadcasts against it). The weights of a quantized layer hold its factors already."""

    location: str
    digest: str
    factor: np.ndarray


def merged(folds: Iterable[Fold]) -> tuple[Fold, ...]:
    """The folds with one for each constant at a place, which may take up factors of two layers: of the one behind it and its own."""
    found: dict[tuple[str, str], Fold] = {}
    for fold in folds:
        key = fold.location, fold.digest
        found[key] = Fold(*key, np.asarray(found[key].factor * fold.factor)) if key in found else fold
    return tuple(found.values())


class Plan(Struct, frozen=True, eq=False):
    """All layers of a graph, in the order in which they are computed, quantized and left alone.

    graph       its name, and `fingerprint` that of the float graph
    recipe      the recipe's name (recipes.py)
    samples     how many calibration samples the numbers rest on
    data_free   whether no data was seen: ranges and errors follow from weights alone, and say little about accuracy
    """

    graph: str
    fingerprint: str
    recipe: str
    layers: tuple[LayerPlan, ...]
    folds: tuple[Fold, ...] = ()
    samples: int = 0
    data_free: bool = False

    def layer(self, label: str) -> LayerPlan:
        """The layer of that label; KeyError where there is none."""
        for layer in self.layers:
            if layer.label == label:
                return layer
        raise KeyError(label)

    @property
    def quantized(self) -> tuple[LayerPlan, ...]:
        return tuple(layer for layer in self.layers if layer.quantized)


def dequantized(weights: WeightPlan) -> np.ndarray:
    """The float32 constant that quantized weights stand for, in their own layout."""
    values: Any = weights.values.astype(np.float32)
    if weights.scale is None:
        return np.asarray(values)
    scale, point = weights.scale, weights.zero_point
    if weights.group:
        scale = np.repeat(scale, weights.group, weights.group_axis)
        point = None if point is None else np.repeat(point, weights.group, weights.group_axis)
    if point is not None:
        values = values - point.astype(np.float32)
    return np.asarray(values * scale)


def stored_bytes(weights: WeightPlan) -> int:
    """Bytes of the constant with scales and zero points, narrow integers packed."""
    bits = {"i8": 8, "int4": 4, "int2": 2, "bf16": 16}[weights.dtype]
    total = (weights.values.size * bits + 7) // 8
    total += 0 if weights.scale is None else weights.scale.nbytes
    return total + (0 if weights.zero_point is None else (weights.zero_point.size * bits + 7) // 8)
