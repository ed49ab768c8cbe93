"""What a run of the quantizer found, as plain records: numbers, texts and tuples of them, for JSON, pages and tests.

Times are seconds of one thread at the sizes of the calibration data, the least of several runs; bytes are those of the layers'
weights with scales and zero points. A figure that was not measured is NaN. `loss` is always that of the metric in use: 0 where
nothing changed, larger where more did (metrics.py).
"""

from __future__ import annotations

from msgspec import Struct

NAN = float("nan")


class LayerReport(Struct, frozen=True):
    """One layer, in the order in which they are computed. `loss` is what quantizing this layer alone does to the results;
    `layer_error` the squared error of its own result over its square; `reason` says why a layer was left alone, else ''."""

    label: str
    location: str
    kind: str
    shape: tuple[int, ...]
    precision: str
    reason: str
    loss: float = NAN
    layer_error: float = NAN
    seconds_before: float = NAN
    seconds_after: float = NAN
    bytes_before: int = 0
    bytes_after: int = 0


class WholeReport(Struct, frozen=True):
    """The whole model against itself in float, on held-out samples. `agreement` is the share of equal places of the greatest
    value along the last axis; `snr` is in decibels. For the float model the loss is 0 and the cosine 1."""

    seconds: float = NAN
    bytes: int = 0
    loss: float = NAN
    cosine: float = NAN
    snr: float = NAN
    agreement: float = NAN


class FrontPoint(Struct, frozen=True):
    """A point of the Pareto front as the sum of the layers predicts it: the least cost at that loss, by the angle where the metric is
    too coarse for layers alone (a warning says so then)."""

    loss: float
    seconds: float
    bytes: int
    quantized: int
    chosen: bool = False


class Report(Struct, frozen=True):
    """All of it.

    worth       whether the result is a quantized model; if not, the graph is the float one and `verdict` says why
    verdict     one sentence with the figures
    goal        "time" or "size", which no layer and no model may make worse
    budget      the loss allowed, and `predicted` what the sum of the layers' losses says
    samples, held_out   numbers of samples; ranges and rounding saw the first only
    rounds      how often the budget of the sum was tightened until the whole kept its own
    data_free   True where there was no data: nothing was measured at the results, and `verdict` says so
    """

    model: str
    recipe: str
    metric: str
    goal: str
    budget: float
    worth: bool
    verdict: str
    before: WholeReport
    after: WholeReport
    layers: tuple[LayerReport, ...]
    front: tuple[FrontPoint, ...] = ()
    predicted: float = NAN
    samples: int = 0
    held_out: int = 0
    rounds: int = 0
    data_free: bool = False
    warnings: tuple[str, ...] = ()
