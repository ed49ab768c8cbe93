"""`quantize` and `diagnose`: from a float model and calibration data to a quantized one, with a report of what it cost.

The steps: read the samples and put some aside; find the layers; fold smoothing into neighbours; collect statistics; make of each
layer what the recipe's precisions allow; measure what each loses and how long it takes; choose under the budget; judge the whole on
what was put aside.

Guarantees: the answer is never slower than the float model (or never larger, where size is the goal), nor does it lose more than
the budget on the held-out samples; where that cannot be had, it is the float model, and the report says so with the figures.
Without data nothing is measured at the results, and plan, report and verdict say that it is data-free.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..driver import compile_half, load_model
from ..ir.errors import ArgumentError
from ..ir.graph import Graph
from ..options import Options
from .applying import apply_plan, fold_graph
from .calibration import Statistics, collect
from .candidates import candidate, candidates, left_alone
from .choose import ANY, GOALS, Contender, Judge, Outcome, Progress, Search, gains, is_coarse, search, with_losses, with_times
from .equalize import find_smoothing, smoothed
from .layers import Layer, Left, find_layers, with_constants
from .metrics import Metric, metric_named
from .plan import LayerPlan, Measured, Plan
from .probe import Probe
from .recipes import PRECISIONS, Recipe, recipe_named, without_data
from .report import LayerReport, Report, WholeReport
from .samples import FEW, Sample, read_samples
from .timing import Timer

HELD_OUT = 4     # of so many samples one is put aside, where no held-out data is given
PROBED = (6, 64)      # samples that the layers' losses are measured on, evenly spread: so many at least and at most
PROBE_SECONDS = 40.0  # that this shall take, about, where the fewest do not take longer
BUDGET = 0.005

Fit = Callable[[LayerPlan], LayerPlan | str]

__all__ = ["Quantized", "diagnose", "quantize"]


class Quantized(Struct, frozen=True, eq=False):
    """What `quantize` gives: the graph to compile, the plan that made it, and the report."""

    graph: Graph
    plan: Plan
    report: Report


class _Settings(Struct, frozen=True, eq=False):
    recipe: Recipe
    metric_name: str
    metric: Metric
    goal: str
    budget: float
    target: str
    options: Options
    progress: Progress
    fit: Fit


def quantize(source: Graph | str | os.PathLike[str], calibration: Any = None, *, recipe: Recipe | str = "static int8",
             budget: float = BUDGET, metric: str | Metric = "cosine", goal: str = "time", held_out: Any = None, data_free: bool = False,
             target: str = "cpu", options: Options | None = None, progress: Progress | None = None, fit: Fit | None = None) -> Quantized:
    """A quantized form of a float graph or model file, with plan and report.

    `calibration`: samples of the model's inputs (samples.py says in what forms). `held_out`: samples that only judge the result; without
    them every fourth of the calibration samples is put aside for it. `budget`: the loss allowed, by `metric` ("cosine", "snr", "top-1" or a
    function of (expected, found) results). `goal`: "time" or "size". `data_free`: from weights alone, without calibration.
    `target` must be a CPU that runs here, since times and losses are measured. `fit`: gives a layer's plan as the output can hold it, or
    says why that cannot be; `write_onnx.fitting` makes one for a file.
    """
    settings = _settings(recipe, metric, goal, budget, target, options, progress, fit)
    graph = _graph_of(source, settings.goal)
    if data_free:
        if calibration is not None or held_out is not None:
            raise ArgumentError("quantize: data-free means without data, found calibration or held-out samples")
        return _from_weights(graph, settings)
    prepared = _prepare(graph, calibration, held_out, settings)
    judge = Judge(graph, prepared.judged, settings.metric, Timer(target, settings.options), target, settings.options)
    contenders = _measured(prepared, settings, judge.timer)
    if is_coarse(contenders):
        prepared = replace(prepared, warnings=(*prepared.warnings, f"most layers alone lose nothing by {settings.metric_name}: they were "
                                               "compared, and so is what could be had, by the angle that they turn the results by"))
    outcome = search(contenders, settings.goal, settings.budget, prepared.plan, judge, settings.progress)
    return Quantized(outcome.graph, outcome.plan, _report(outcome, settings, prepared))


def diagnose(source: Graph | str | os.PathLike[str], calibration: Any, *, recipe: Recipe | str = "static int8",
             metric: str | Metric = "cosine", target: str = "cpu", options: Options | None = None,
             progress: Progress | None = None) -> tuple[LayerReport, ...]:
    """The layers of a model by the loss that each causes when it alone is quantized, the worst first; those that cannot be quantized
    last, with the reason. Of a recipe with several precisions the first is taken."""
    settings = _settings(recipe, metric, "size", math.inf, target, options, progress)
    first = replace(settings.recipe, precisions=settings.recipe.precisions[:1])
    settings = replace(settings, recipe=first, goal=ANY)
    prepared = _prepare(_graph_of(source, settings.goal), calibration, None, settings)
    contenders = _lossy(prepared, settings)
    found = {contender.layer.label: contender.plans[0] if contender.plans else left_alone(contender.layer, "; ".join(contender.refused))
             for contender in contenders}
    layers = [_layer_report(found.get(layer.label, layer)) for layer in prepared.plan.layers]
    return tuple(sorted(layers, key=lambda layer: (bool(layer.reason), -layer.loss if layer.loss == layer.loss else 0.0)))


class _Prepared(Struct, frozen=True, eq=False):
    """Everything up to the measuring. `equal` is the float graph with smoothing folded in, which `contenders` belong to; `plan` leaves
    every layer alone."""

    equal: Graph
    contenders: list[Contender]
    plan: Plan
    samples: tuple[Sample, ...]
    judged: tuple[Sample, ...]
    statistics: Statistics | None
    warnings: tuple[str, ...]


# --- arguments and data ----------------------------------------------------------------------------------------------


def _settings(recipe: Recipe | str, metric: str | Metric, goal: str, budget: float, target: str, options: Options | None,
              progress: Progress | None, fit: Fit | None = None) -> _Settings:
    if goal not in GOALS:
        raise ArgumentError(f"quantize: goal {goal!r} is not one of {', '.join(GOALS)}")
    given: object = budget
    if not isinstance(given, (int, float)) or isinstance(given, bool) or not given >= 0:
        raise ArgumentError(f"quantize: budget must be a loss of 0 or more, found {budget!r}", hint="0.005 allows half a percent")
    name, function = metric_named(metric)
    fitting = _fitting(recipe_named(recipe), target)
    return _Settings(fitting, name, function, goal, float(budget), target, options or Options(), progress or _silent, fit or _as_it_is)


def _fitting(recipe: Recipe, target: str) -> Recipe:
    """The recipe with the bits of weights that the target multiplies fastest."""
    if recipe.byte_bits:
        return recipe
    caps = compile_half().capabilities(target)
    return replace(recipe, byte_bits=7 if caps.has_byte_pairs and not caps.has_quads else 8)


def _silent(message: str) -> None:
    del message


def _as_it_is(plan: LayerPlan) -> LayerPlan:
    return plan


def _graph_of(source: Graph | str | os.PathLike[str], goal: str) -> Graph:
    """The graph, which has something that the goal may speak for."""
    graph = with_constants(source if isinstance(source, Graph) else load_model(source))
    layers, left = find_layers(graph, tables=True)
    if all(layer.is_table and goal == "time" for layer in layers):
        why = f": '{left[0].label}' is left alone: {left[0].reason}" if left else ""
        nothing = f"quantize: {graph.name} has no contraction with constant weights{' that can be quantized' if left else ''}"
        if not layers:
            raise ArgumentError(f"{nothing}, and no table whose rows are taken{why}")
        raise ArgumentError(f"{nothing}{why}; '{layers[0].label}' takes rows of a table, which is no faster where they are narrower",
                            hint="goal 'size' makes tables smaller")
    return graph


def _split(graph: Graph, calibration: Any, held_out: Any, recipe: Recipe) -> tuple[tuple[Sample, ...], tuple[Sample, ...], tuple[str, ...]]:
    """The samples to calibrate with, those that judge, and warnings."""
    if calibration is None:
        raise ArgumentError("quantize: no calibration data is given", hint="samples of the model's inputs, or data_free=True")
    samples = read_samples(graph, calibration)
    if len(samples) == 1 and recipe.needs_data:
        raise ArgumentError("calibration: there is one sample, from which the ranges of static activations cannot be told",
                            hint=f"give {FEW} or more, or take the recipe 'dynamic int8'")
    warnings = [f"{len(samples)} calibration samples are few: {FEW} or more are expected"] if len(samples) < FEW else []
    if held_out is not None:
        return samples, read_samples(graph, held_out, "held-out"), tuple(warnings)
    if len(samples) < HELD_OUT:
        return samples, samples, (*warnings, "the result is judged on the calibration samples: too few to put some aside")
    judged = samples[HELD_OUT - 1::HELD_OUT]
    return tuple(samples[number] for number in _kept_numbers(len(samples))), judged, tuple(warnings)


def _kept_numbers(count: int) -> list[int]:
    """Which of so many samples are not put aside."""
    return [number for number in range(count) if number % HELD_OUT != HELD_OUT - 1]


# --- preparing -------------------------------------------------------------------------------------------------------


def _prepare(graph: Graph, calibration: Any, held_out: Any, settings: _Settings) -> _Prepared:
    """Samples, smoothing, statistics and what each layer may become."""
    recipe = settings.recipe
    samples, judged, warnings = _split(graph, calibration, held_out, recipe)
    apart = held_out is None and judged is not samples
    numbers = _kept_numbers(len(samples) + len(judged)) if apart else ()
    layers, left = find_layers(graph)
    plan = _nothing(graph, find_layers(graph, tables=settings.goal != "time")[0], left, recipe, len(samples))

    def statistics_of(of: Graph, its: Sequence[Layer], means: bool, moments: bool, histograms: bool = True) -> Statistics:
        return collect(of, its, samples, means=means, moments=moments, histograms=histograms, target=settings.target,
                       options=settings.options, progress=settings.progress, numbers=numbers)

    equal, its = graph, layers
    if recipe.smoothing and layers:
        found = find_smoothing(graph, layers, statistics_of(graph, layers, False, False, False), recipe)
        if not found.factors:
            warnings = (*warnings, "smoothing was left out: nothing gains by it, or nothing before the layers can take up its factors")
        plan = replace(plan, folds=found.folds, layers=tuple(
            replace(layer, smoothing=found.factors[layer.label], folded=layer.label not in found.others)
            if layer.label in found.factors else layer for layer in plan.layers))
        folded = fold_graph(graph, found.folds)
        equal = smoothed(folded, find_layers(folded)[0], found)
        its, _ = find_layers(equal)
    statistics = statistics_of(equal, its, recipe.correct_bias, recipe.needs_moments)
    if recipe.rounding == "gptq asymmetric":
        _add_asymmetry(equal, its, samples, statistics, settings)
    if settings.goal != "time":  # rows that are copied take no less time where they are narrower
        its = find_layers(equal, tables=True)[0]
    contenders = _contenders(its, plan, settings, statistics)
    warnings = (*warnings, *_left_out(contenders))
    return _Prepared(equal, contenders, plan, samples, judged, statistics, warnings)


def _nothing(graph: Graph, layers: Sequence[Layer], left: Sequence[Left], recipe: Recipe, samples: int) -> Plan:
    """The plan that leaves every layer alone."""
    alone = [(layer.place, left_alone(layer, "")) for layer in layers]
    alone += [(other.place, LayerPlan(other.label, other.location, other.kind, other.shape, other.digest, reason=other.reason))
              for other in left]
    return Plan(graph.name, graph.fingerprint, recipe.name, tuple(plan for _, plan in sorted(alone, key=lambda pair: pair[0])),
                samples=samples, data_free=samples == 0)


def _contenders(layers: Sequence[Layer], plan: Plan, settings: _Settings, statistics: Statistics | None) -> list[Contender]:
    """Each layer at each precision of the recipe that the output can hold. Plans name the constants of the model, also where smoothing
    changed them."""
    found = []
    for layer in layers:
        original = plan.layer(layer.label)
        plans: list[LayerPlan] = []
        refused: list[str] = []
        for precision in settings.recipe.precisions:
            made = candidates(layer, precision, settings.recipe, statistics)
            if isinstance(made, str):
                refused.append(made)
                continue
            if plans and made[0].precision == plans[-1].precision:
                continue  # of a table, for which two precisions may be one
            for given in made:
                fitted = settings.fit(replace(given, digest=original.digest, smoothing=original.smoothing, folded=original.folded))
                plans += [] if isinstance(fitted, str) else [fitted]
                refused += [fitted] if isinstance(fitted, str) else []
        found.append(Contender(layer, tuple(plans), tuple(dict.fromkeys(refused))))
    return found


def _left_out(contenders: Sequence[Contender]) -> list[str]:
    """Why a precision is left out in every layer, though others are not."""
    if not any(contender.plans for contender in contenders):
        return []
    common = [reason for reason in contenders[0].refused if all(reason in contender.refused for contender in contenders)]
    return [f"a precision of the recipe is left out: {reason}" for reason in common]


def _add_asymmetry(graph: Graph, layers: Sequence[Layer], samples: Sequence[Sample], statistics: Statistics, settings: _Settings) -> None:
    """Moments of the inputs that layers have when the layers before them are quantized, in place of those in float: one value after
    another in the order in which they are computed, since each depends on how the layers before it were rounded."""
    recipe = settings.recipe
    probe = Probe(graph, layers, _kinds(recipe), settings.target, settings.options, statistics.values)
    statistics.renew_moments(layers, True)
    plans: dict[str, LayerPlan] = {}
    for number, label in enumerate(statistics.inputs):
        place = len(graph.results) + number
        for sample in samples:
            plain, quantized = (probe.run([sample], chosen)[0][place] for chosen in ({}, plans))
            for layer, moments in statistics.rows_of:
                if statistics.shared[layer.label] == label:
                    moments.add_pair(layer.rows(quantized), layer.rows(plain))
        for layer in layers:
            if statistics.shared[layer.label] == label:
                made = candidate(layer, recipe.precisions[0], recipe, statistics)
                if not isinstance(made, str):
                    plans[layer.label] = made
        settings.progress(f"asymmetry: value {number + 1} of {len(statistics.inputs)}")


def _kinds(recipe: Recipe) -> list[str]:
    """The switches that a probe needs for the recipe's precisions."""
    return ["bf16" if PRECISIONS[name][0] == "bf16" else PRECISIONS[name][1] for name in recipe.precisions]


# --- measuring -------------------------------------------------------------------------------------------------------


def _lossy(prepared: _Prepared, settings: _Settings) -> list[Contender]:
    """The contenders with the loss of each alone."""
    layers = [contender.layer for contender in prepared.contenders]
    probe = Probe(prepared.equal, layers, _kinds(settings.recipe), settings.target, settings.options)
    samples = _probed(prepared, probe, settings.goal)
    return with_losses(prepared.contenders, probe, samples, settings.metric, settings.goal, settings.progress)


def _probed(prepared: _Prepared, probe: Probe, goal: str) -> list[Sample]:
    """The samples to measure losses on: as many as the time allows."""
    probe.run(prepared.samples[:1], {})  # a first call takes longer
    begin = time.perf_counter()
    probe.run(prepared.samples[:1], {})
    seconds = (time.perf_counter() - begin) * sum(gains(plan, goal) for contender in prepared.contenders for plan in contender.plans)
    count = int(min(max(PROBED[0], PROBE_SECONDS / max(seconds, 1e-9)), PROBED[1], len(prepared.samples)))
    return [prepared.samples[place] for place in np.linspace(0, len(prepared.samples) - 1, count).astype(int)]


def _measured(prepared: _Prepared, settings: _Settings, timer: Timer) -> list[Contender]:
    """The contenders with times, and with losses where one of them gains."""
    statistics = prepared.statistics
    assert statistics is not None
    shapes = {contender.layer.label: statistics.of(contender.layer).shape for contender in prepared.contenders
              if not contender.layer.is_table}
    contenders = with_times(prepared.contenders, shapes, timer, settings.progress)
    if not any(gains(plan, settings.goal) for contender in contenders for plan in contender.plans):
        return contenders  # nothing will be chosen, whatever is lost
    return _lossy(replace(prepared, contenders=contenders), settings)


def _from_weights(graph: Graph, settings: _Settings) -> Quantized:
    """Without data: every layer that the goal speaks for, as far as that is known."""
    recipe = without_data(settings.recipe)
    layers, left = find_layers(graph, tables=settings.goal != "time")
    empty = _nothing(graph, layers, left, recipe, 0)
    contenders = _contenders(layers, empty, replace(settings, recipe=recipe), None)
    shapes = {layer.label: layer.source.tensor.static_shape for layer in layers if layer.source.tensor.is_static and not layer.is_table}
    contenders = with_times(contenders, shapes, Timer(settings.target, settings.options), settings.progress)
    options = Search(contenders, settings.goal, empty)
    plan = options.plan(options.cheapest())
    timed = "times of layers measured alone" if shapes else "times not measured, since sizes are open (dims bind them)"
    verdict = (f"data-free: {len(plan.quantized)} of {len(plan.layers)} layers quantized from weights alone; what the model's results lose "
               f"is not known; {timed}")
    size = [sum(getattr(layer.measured, name) for layer in plan.layers) for name in ("bytes_before", "bytes_after")]
    outcome = Outcome(plan, apply_plan(graph, plan), WholeReport(bytes=size[0]), WholeReport(bytes=size[1]), (), math.nan, 0,
                      bool(plan.quantized), verdict)
    return Quantized(outcome.graph, plan, _report(outcome, replace(settings, recipe=recipe), None))


# --- the report ------------------------------------------------------------------------------------------------------


def _report(outcome: Outcome, settings: _Settings, prepared: _Prepared | None) -> Report:
    return Report(
        outcome.plan.graph, settings.recipe.name, settings.metric_name, settings.goal, settings.budget, outcome.worth, outcome.verdict,
        outcome.before, outcome.after, tuple(map(_layer_report, outcome.plan.layers)), outcome.front, outcome.predicted,
        len(prepared.samples) if prepared else 0, len(prepared.judged) if prepared else 0, outcome.rounds, prepared is None,
        prepared.warnings if prepared else ())


def _layer_report(layer: LayerPlan) -> LayerReport:
    m: Measured = layer.measured
    return LayerReport(layer.label, layer.location, layer.kind, layer.shape, layer.precision, layer.reason, m.error, m.layer_error,
                       m.seconds_before, m.seconds_after, m.bytes_before, m.bytes_after)
