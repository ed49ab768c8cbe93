"""Runs a float program over calibration samples and keeps what quantizing must know of each layer's input: sums, no data.

The program is the graph with the layers' inputs as additional results, compiled by the driver. Kept are, of each value that
layers read, its histogram and extremes, the largest size in each channel and the largest shape met; of each layer, where asked
for, the mean of what its weights are multiplied with (for corrections of biases) and its second moments X^T X (for rounding).

Guarantees: a NaN or infinity in a layer's input is an error that names layer and sample; memory does not grow with samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..driver import compile_graph
from ..ir.errors import ArgumentError, IndexFailure
from ..ir.graph import Array, Graph, Node
from ..options import Options
from .layers import Layer, sources
from .ranges import Histogram
from .samples import Sample

DEEPEST = 8192  # contractions deeper than this get no second moments, which would take a quarter of a gigabyte
ROWS, ROWS_OF_DEPTH = 8192, 4  # rows that moments are taken of, and at least so many times the depth: more say little that is new


class Moments:
    """Sums over the rows of a layer's input: `mean` [groups, K], and second moments [groups, K, K] where they are kept.

    Inputs whose squares float32 cannot hold keep none, and their weights are rounded to nearest.

    For the asymmetric variant of GPTQ the sums are those of X_q, the input in the quantized program; `crossed` holds X_q^T X and
    `plain_sums` those of X then.
    """

    def __init__(self, layer: Layer, squares: bool) -> None:
        self.count = 0
        self.sums = np.zeros((layer.groups, layer.depth))
        keeps = squares and layer.depth <= DEEPEST
        self.squares = np.zeros((layer.groups, layer.depth, layer.depth), np.float32) if keeps else None
        self.crossed: Array | None = None
        self.plain_sums: Array | None = None

    @property
    def mean(self) -> Array:
        return self.sums / max(self.count, 1)

    @property
    def plain_mean(self) -> Array:
        """The mean in the float program, also where the sums are those of a quantized one."""
        return self.mean if self.plain_sums is None else self.plain_sums / max(self.count, 1)

    def add(self, rows: Array) -> None:
        """Takes in rows [groups, rows, K]."""
        self.count += rows.shape[1]
        self.sums += rows.sum(axis=1, dtype=np.float64)
        if self.squares is None:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            # one matrix with itself is half the work, where NumPy sees that it is one
            self.squares += (rows[0].T @ rows[0])[np.newaxis] if len(rows) == 1 else rows.transpose(0, 2, 1) @ rows
        if not np.isfinite(np.diagonal(self.squares, axis1=-2, axis2=-1)).all():
            self.squares = self.crossed = None

    def add_pair(self, quantized: Array, plain: Array) -> None:
        """Takes in the rows that a quantized program has in place of plain ones."""
        self.add(quantized)
        sums = plain.sum(axis=1, dtype=np.float64)
        self.plain_sums = sums if self.plain_sums is None else self.plain_sums + sums
        if self.squares is not None:
            crossed = quantized.transpose(0, 2, 1) @ plain
            self.crossed = crossed if self.crossed is None else self.crossed + crossed


class Input:
    """What was seen of a value that layers read. `lowest` and `highest` are the extremes in each channel of the first of them, 0
    among them; `sums` those of squares, over `places`."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.histogram = Histogram()
        self.lowest = np.zeros(layer.channels, np.float32)
        self.highest = np.zeros(layer.channels, np.float32)
        self.sums = np.zeros(layer.channels)
        self.places = 0
        self.shape: tuple[int, ...] = ()

    @property
    def largest(self) -> Array:
        """The greatest size in each channel."""
        return np.maximum(-self.lowest, self.highest)

    @property
    def mean_squares(self) -> Array:
        """Of each channel."""
        return self.sums / max(self.places, 1)

    def add(self, x: Array, sample: int, histogram: bool = True) -> None:
        if not np.isfinite(x).all():
            kind = "NaN" if np.isnan(x).any() else "infinity"
            raise ArgumentError(f"calibration: the input of layer '{self.layer.label}' holds {kind} in sample {sample}",
                                hint="the float model overflows or divides by zero there: leave the sample out, or check the model")
        if histogram:
            self.histogram.add(x)
        places = self.layer.channels_last(x)
        if places.size:
            self.lowest = np.minimum(self.lowest, places.min(axis=0))
            self.highest = np.maximum(self.highest, places.max(axis=0))
            self.sums += np.einsum("pc,pc->c", places, places)
            self.places += len(places)
        if x.size >= int(np.prod(self.shape)) or not self.shape:
            self.shape = x.shape


class Statistics:
    """All that calibration found, by labels of layers."""

    def __init__(self, layers: Sequence[Layer], moments: bool) -> None:
        self.shared, self.values = sources(layers)
        first = {layer.label: layer for layer in layers}
        self.inputs = {label: Input(first[label]) for label in dict.fromkeys(self.shared.values())}
        self.renew_moments(layers, moments)
        self.samples = 0

    def renew_moments(self, layers: Sequence[Layer], squares: bool) -> None:
        """Moments without rows. Layers that multiply the same rows share theirs: `rows_of` has one layer for each."""
        made: dict[Any, tuple[Layer, Moments]] = {}
        for layer in layers:
            made.setdefault((self.shared[layer.label], layer.reading), (layer, Moments(layer, squares)))
        self.rows_of = tuple(made.values())
        self.moments = {layer.label: made[self.shared[layer.label], layer.reading][1] for layer in layers}

    def of(self, layer: Layer) -> Input:
        return self.inputs[self.shared[layer.label]]


def with_inputs(graph: Graph, values: Sequence[Node]) -> Graph:
    """The graph with what layers read as additional results."""
    names = (*graph.result_names, *(f"layer input {i}" for i in range(len(values))))
    return Graph(graph.name, graph.params, (*graph.results, *values), names)


def collect(graph: Graph, layers: Sequence[Layer], samples: Sequence[Sample], *, means: bool = True, moments: bool = False,
            histograms: bool = True, target: str = "cpu", options: Options | None = None,
            progress: Callable[[str], None] | None = None, numbers: Sequence[int] = ()) -> Statistics:
    """The statistics of the layers' inputs over the samples. `means` and `moments`: what is kept of each layer's rows; without
    `histograms` no range can be chosen from them. `numbers`: what errors call the samples; else their places."""
    statistics = Statistics(layers, moments)
    program = compile_graph(with_inputs(graph, statistics.values), target, options or Options())
    labels = list(statistics.inputs)
    for place, (number, sample) in enumerate(zip(numbers or range(len(samples)), samples, strict=True)):
        try:
            results = results_of_call(program, sample)[len(graph.results):]
        except IndexFailure as error:
            raise ArgumentError(f"calibration: sample {number}: {error.message}") from error
        for label, x in zip(labels, results):
            statistics.inputs[label].add(x, number, histograms)
        if means or moments:
            read = dict(zip(labels, results))
            for layer, sums in statistics.rows_of:
                most = -(-max(ROWS, ROWS_OF_DEPTH * layer.depth) // len(samples))
                sums.add(layer.rows(read[statistics.shared[layer.label]], most))
        statistics.samples += 1
        if progress is not None:
            progress(f"calibration: sample {place + 1} of {len(samples)}")
    return statistics


def results_of_call(program: Any, sample: Sample) -> tuple[Array, ...]:
    """All results of a call, also where there is one; a sample has its arrays in the order of the inputs."""
    results = program(*sample.values())
    return results if isinstance(results, tuple) else (results,)
