"""How far results lie from those of the float model, as a loss: 0 where they are the same, larger where more is lost.

    cosine   1 - cosine of the angle between the results as vectors
    snr      squared error over the squared results: noise over signal
    top-1    the share of places, along the last axis, whose greatest value is elsewhere

or a function (expected, found) -> float of the results of one sample, two tuples of arrays. What a result of integers loses is the share of
those that differ. The loss of several results is that of the worst one, that of several samples their mean.

The first two are, for small errors, sums of squares: independent errors of layers add up in them.

Guarantees: a loss is a number of 0 or more; results that are not finite where the float model's are have an infinite one. Infinities of the
float model must be met, and count as 0 then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..ir.errors import ArgumentError
from ..ir.graph import Array

Results = tuple[Array, ...]
Metric = Callable[[Results, Results], float]


def _wide(array: Array) -> Array:
    return array.reshape(-1).astype(np.float64)


def cosine(expected: Array, found: Array) -> float:
    """The cosine of the angle between two arrays; 1 where both are 0, 0 where one is."""
    a, b = _wide(expected), _wide(found)
    sizes = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if sizes == 0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return min(1.0, float(a @ b) / sizes)


def noise(expected: Array, found: Array) -> float:
    """Squared error over the square of what is expected."""
    a, b = _wide(expected), _wide(found)
    error, signal = float(((a - b) ** 2).sum()), float((a ** 2).sum())
    return error / signal if signal else (0.0 if error == 0 else math.inf)


def disagreement(expected: Array, found: Array) -> float:
    """The share of places whose greatest value along the last axis is elsewhere."""
    if not expected.ndim or not expected.size:
        return 0.0
    return float(np.mean(np.argmax(expected, -1) != np.argmax(found, -1)))


def differing(expected: Array, found: Array) -> float:
    """The share of elements that are not equal."""
    return float(np.mean(expected != found)) if expected.size else 0.0


MEASURES: dict[str, Callable[[Array, Array], float]] = {
    "cosine": lambda expected, found: 1.0 - cosine(expected, found), "snr": noise, "top-1": disagreement,
}


def _of_finite(measure: Callable[[Array, Array], float], expected: Array, found: Array) -> float:
    """The measure, where infinities must be the same and then count as 0. ArgumentError where NaN is expected."""
    finite = np.isfinite(expected)
    if finite.all():
        return measure(expected, found)
    if np.isnan(expected).any():
        raise ArgumentError("quantize: the float model gives NaN", hint="leave such samples out, or check the model")
    if not np.array_equal(expected[~finite], found[~finite]) or not np.isfinite(found[finite]).all():
        return math.inf
    return measure(np.where(finite, expected, 0), np.where(finite, found, 0))


def metric_named(metric: str | Metric) -> tuple[str, Metric]:
    """The name and the function of a metric."""
    if callable(metric):
        return getattr(metric, "__name__", "function"), metric
    if metric not in MEASURES:
        raise ArgumentError(f"quantize: metric {metric!r} is not one of {', '.join(MEASURES)}, nor a function")
    measure = MEASURES[metric]

    def worst(expected: Results, found: Results) -> float:
        return max((differing(a, b) if a.dtype.kind in "iub" else _of_finite(measure, a, b) for a, b in zip(expected, found)), default=0.0)

    return metric, worst


def loss_of(metric: Metric, expected: Sequence[Results], found: Sequence[Results]) -> float:
    """The mean loss over samples. ArgumentError where the user's function gives no number."""
    return mean_loss(losses_of(metric, expected, found))


def mean_loss(losses: Sequence[float]) -> float:
    return float(np.mean(losses)) if losses else 0.0


def sure_loss(losses: Sequence[float]) -> float:
    """The mean and its standard error: what few samples cannot tell counts as lost."""
    if len(losses) < 2 or not np.isfinite(losses).all():
        return mean_loss(losses)
    return mean_loss(losses) + float(np.std(losses, ddof=1)) / math.sqrt(len(losses))


def typical_loss(losses: Sequence[float]) -> float:
    """The geometric mean of those that lose something, times their share: what a layer does to all samples, where a few that turn to
    another answer would outweigh the others in a mean."""
    lost = [loss for loss in losses if loss > 0]
    return float(np.exp(np.mean(np.log(lost)))) * len(lost) / len(losses) if lost else 0.0


def losses_of(metric: Metric, expected: Sequence[Results], found: Sequence[Results]) -> list[float]:
    """The loss of each sample; infinite where results are not finite and the float model's are."""
    losses = []
    for ours, theirs in zip(expected, found, strict=True):
        if any(np.isfinite(a).all() and not np.isfinite(b).all() for a, b in zip(ours, theirs) if a.dtype.kind not in "iub"):
            losses.append(math.inf)
            continue
        value = _called(metric, ours, theirs, f"sample {len(losses)} of the {len(expected)} that losses are measured on")
        if not isinstance(value, (int, float, np.number)) or not float(value) >= 0:
            raise ArgumentError(f"quantize: the metric gave {' '.join(repr(value).split()):.80}, expected a number of 0 or more: 0 where "
                                "nothing is lost")
        losses.append(float(value))
    return losses


def _called(metric: Metric, expected: Results, found: Results, sample: str) -> object:
    """What the metric gives. ArgumentError where a function of the user's fails."""
    try:
        return metric(expected, found)
    except ArgumentError as error:
        raise ArgumentError(f"{error.message}: {sample}", hint=error.hint) from None
    except Exception as error:  # whatever a function of the user's raises
        shapes = ", ".join(f"{array.dtype}{list(array.shape)}" for array in expected)
        raise ArgumentError(f"quantize: the metric {getattr(metric, '__name__', 'function')} failed: {type(error).__name__}: {error}",
                            hint=f"it is given the expected and the found results of a sample, two tuples of arrays: {shapes}") from error


def figures(expected: Sequence[Results], found: Sequence[Results]) -> tuple[float, float, float]:
    """Mean cosine, signal to noise in decibels, share of equal greatest places: each of the worst result, over samples."""
    lost = {name: loss_of(metric_named(name)[1], expected, found) for name in MEASURES}
    ratio = lost["snr"]
    return 1.0 - lost["cosine"], math.inf if ratio == 0 else -10 * math.log10(ratio), 1.0 - lost["top-1"]
