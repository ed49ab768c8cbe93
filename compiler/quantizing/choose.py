"""The choice of a precision for each layer: what each would lose and cost, and the least cost within a budget that holds on held-out data.

Each layer's loss is measured at the model's results with this layer alone quantized (probe.py); the losses add up (budget.py). The
choice is then compiled and measured as a whole on samples that nothing before has seen, and the budget of the sum is tightened until the
whole keeps its own.

A metric may be too coarse for that: one layer changes no answer, all together do (top-1, texts that are the same). Then layers are
compared by how far they turn the results instead, and the most that they may turn is searched for.

Guarantees: a layer is quantized only where that makes the goal smaller, its time or its bytes; so is the whole, or nothing is quantized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..driver import compile_graph
from ..ir.graph import Graph
from ..options import Options
from .applying import apply_plan
from .budget import Choice, Option, front, solve
from .calibration import results_of_call
from .layers import Layer
from .metrics import Metric, Results, figures, loss_of, losses_of, mean_loss, metric_named, sure_loss, typical_loss
from .plan import LayerPlan, Measured, Plan
from .probe import Probe
from .report import FrontPoint, WholeReport
from .samples import Sample
from .timing import Timer

GAIN = 0.97          # of the time in float, which a layer, and the whole, must stay below when quantized: less is noise
ROUNDS = 6           # in which the budget of the sum is tightened
TIGHTENED = 0.95     # of what would just do, if the whole lost as much more than the sum as it just did
LEAST_STEP, MOST_STEP = 0.02, 0.5  # what is left of a sum of turns that was too much
REFINED = 5          # rounds between a sum of turns that was too much and one that was not
TIMED = 4            # held-out samples that the whole is timed on
RANGED = 16         # samples that decide between ranges
GOALS = ("time", "size")
ANY = "any"          # of a diagnosis, which chooses nothing
NOTHING = -1.0       # a sum that no layer can keep that loses anything, or nothing

Progress = Callable[[str], None]
Measure = Callable[[Layer, Sequence[int], Sequence[LayerPlan]], list[float]]


class Contender(Struct, frozen=True, eq=False):
    """A layer with what it may become; `refused` says why it cannot, for each precision that it cannot."""

    layer: Layer
    plans: tuple[LayerPlan, ...]
    refused: tuple[str, ...] = ()


class Outcome(Struct, frozen=True, eq=False):
    """What was chosen, with the figures of the whole, in float and after."""

    plan: Plan
    graph: Graph
    before: WholeReport
    after: WholeReport
    front: tuple[FrontPoint, ...]
    predicted: float
    rounds: int
    worth: bool
    verdict: str


# --- figures of each layer -------------------------------------------------------------------------------------------


def with_losses(contenders: Sequence[Contender], probe: Probe, samples: Sequence[Sample], metric: Metric, goal: str,
                progress: Progress) -> list[Contender]:
    """The contenders with `measured.error`, the loss at the results with this layer alone quantized, for plans that the goal allows."""
    expected = probe.keep(samples)
    angle = metric_named("cosine")[1]

    def lost(plans: Mapping[str, LayerPlan]) -> tuple[float, float]:
        """By the metric; of what is the same by a coarse one, by the angle."""
        results = probe.run(samples[:RANGED], plans)
        return loss_of(metric, expected[:RANGED], results), typical_loss(losses_of(angle, expected[:RANGED], results))

    contenders = _with_best_ranges(contenders, goal, progress, lost)
    found = []
    for number, contender in enumerate(contenders):
        label = contender.layer.label
        plans = []
        for plan in contender.plans:
            if not gains(plan, goal):
                plans.append(plan)
                continue
            results = probe.run(samples, {label: plan})
            lost_by, turned_by = losses_of(metric, expected, results), losses_of(angle, expected, results)
            unmoved = sum(turn > 0 and loss == 0 for loss, turn in zip(lost_by, turned_by)) / len(samples)
            plans.append(replace(plan, measured=replace(plan.measured, error=mean_loss(lost_by), turn=typical_loss(turned_by),
                                                        unmoved=unmoved)))
        found.append(replace(contender, plans=tuple(plans)))
        progress(f"losses: layer {number + 1} of {len(contenders)}, {label}")
    return found


def _with_best_ranges(contenders: Sequence[Contender], goal: str, progress: Progress,
                      lost: Callable[[Mapping[str, LayerPlan]], tuple[float, float]]) -> list[Contender]:
    """Of plans that differ in the range of their input, those of the method that loses least with all layers that read it quantized;
    the first where none of these will be."""
    groups: dict[tuple[str, str], dict[str, dict[str, LayerPlan]]] = {}
    for contender in contenders:
        for plan in contender.plans:
            if plan.activation is not None:
                methods = groups.setdefault((plan.activation.shared, plan.precision), {})
                methods.setdefault(plan.activation.method, {})[plan.label] = plan
    best = {}
    for number, (key, methods) in enumerate(groups.items()):
        useful = {method: {label: plan for label, plan in plans.items() if gains(plan, goal)} for method, plans in methods.items()}
        measured = len(methods) > 1 and all(useful.values())
        best[key] = min(methods, key=lambda method: lost(useful[method])) if measured else next(iter(methods))
        progress(f"ranges: value {number + 1} of {len(groups)}")
    return [replace(contender, plans=tuple(
        plan for plan in contender.plans
        if plan.activation is None or plan.activation.method == best[plan.activation.shared, plan.precision])) for contender in contenders]


def with_times(contenders: Sequence[Contender], shapes: Mapping[str, tuple[int, ...]], measure: Measure,
               progress: Progress) -> list[Contender]:
    """The contenders with the seconds that each layer takes in float and quantized; those of unknown shape stay unmeasured."""
    found = []
    for number, contender in enumerate(contenders):
        shape = shapes.get(contender.layer.label)
        if shape is None or not contender.plans:
            found.append(contender)
            continue
        distinct = {plan.precision: plan for plan in reversed(contender.plans)}  # ranges make no difference
        before, *after = measure(contender.layer, shape, tuple(distinct.values()))
        seconds = dict(zip(distinct, after))
        plans = [replace(plan, measured=replace(plan.measured, seconds_before=before, seconds_after=seconds[plan.precision]))
                 for plan in contender.plans]
        found.append(replace(contender, plans=tuple(plans)))
        progress(f"times: layer {number + 1} of {len(contenders)}, {contender.layer.label}")
    return found


def gains(plan: LayerPlan, goal: str) -> bool:
    """Whether the layer is better off quantized; times that are not known do not speak against it."""
    m = plan.measured
    if goal == ANY:
        return True
    if goal == "size":
        return m.bytes_after < m.bytes_before
    return not m.seconds_after >= m.seconds_before * GAIN


def cost_of(measured: Measured, goal: str, quantized: bool) -> float:
    if goal == "size":
        return float(measured.bytes_after if quantized else measured.bytes_before)
    seconds = measured.seconds_after if quantized else measured.seconds_before
    return seconds if math.isfinite(seconds) else 0.0


# --- the choice ------------------------------------------------------------------------------------------------------


def is_coarse(contenders: Sequence[Contender]) -> bool:
    """Whether the metric says of most samples, whose results layers turn, that they lose nothing."""
    unmoved = [plan.measured.unmoved for contender in contenders for plan in contender.plans if plan.measured.turn > 0]
    return 2 * sum(unmoved) > len(unmoved)


class Search:
    """The options of all layers under a goal, and plans made of choices among them. Losses are turns where the metric `coarse`."""

    def __init__(self, contenders: Sequence[Contender], goal: str, empty: Plan) -> None:
        self.contenders = contenders
        self.goal = goal
        self.empty = empty
        self.coarse = is_coarse(contenders)
        self.plans = [[plan for plan in contender.plans if gains(plan, goal)] for contender in contenders]
        self.options = [[Option(0.0, self._float_cost(contender)),
                         *(Option(self._loss(plan), cost_of(plan.measured, goal, True)) for plan in plans)]
                        for contender, plans in zip(contenders, self.plans)]

    def _loss(self, plan: LayerPlan) -> float:
        """What the layer alone loses; 0 where it was not measured."""
        found = plan.measured.turn if self.coarse else plan.measured.error
        return 0.0 if math.isnan(found) else found

    def _float_cost(self, contender: Contender) -> float:
        if not contender.plans:
            return 0.0
        return cost_of(contender.plans[0].measured, self.goal, False)

    def plan(self, choice: Choice, reason: str = "") -> Plan:
        """The plan of a choice, in which every layer left alone has its reason: `reason`, where it could have been quantized."""
        layers = {layer.label: layer for layer in self.empty.layers}
        for contender, plans, option in zip(self.contenders, self.plans, choice.options):
            label = contender.layer.label
            layers[label] = plans[option - 1] if option else self._left(contender, plans, reason)
        return replace(self.empty, layers=tuple(layers.values()))

    def _left(self, contender: Contender, plans: Sequence[LayerPlan], given: str) -> LayerPlan:
        reason, measured = self._reason(contender, plans)
        alone = self.empty.layer(contender.layer.label)
        kept = alone.measured if measured is None else replace(
            measured, seconds_after=measured.seconds_before, bytes_after=measured.bytes_before)
        # in float, factors are divided by only where neighbours took them up
        return replace(alone, reason=given if given and plans else reason, measured=kept,
                       smoothing=alone.smoothing if alone.folded else None)

    def _reason(self, contender: Contender, plans: Sequence[LayerPlan]) -> tuple[str, Measured | None]:
        if not contender.plans:
            return "; ".join(contender.refused), None
        if plans:
            least = min(plans, key=self._loss)
            how = "turns the results by" if self.coarse else "loses"
            return f"the budget: as {least.precision} it alone {how} {self._loss(least):.3g}", least.measured
        best = min(contender.plans, key=lambda plan: cost_of(plan.measured, self.goal, True))
        m = best.measured
        if self.goal == "size":
            return f"it gets no smaller: {m.bytes_before} bytes in float, {m.bytes_after} as {best.precision}", m
        return (f"it gets no faster: {m.seconds_before * 1e6:.1f} µs in float, "
                f"{m.seconds_after * 1e6:.1f} µs as {best.precision}"), m

    def cheapest(self) -> Choice:
        """The least cost, whatever is lost."""
        places = tuple(min(range(len(options)), key=lambda place: (options[place].cost, place == 0)) for options in self.options)
        return Choice(places, math.nan, sum(options[place].cost for options, place in zip(self.options, places)))

    def front(self, chosen: Choice) -> tuple[FrontPoint, ...]:
        """The Pareto front of the sums, with the point chosen."""
        found = {choice.options: choice for choice in (*front(self.options), chosen)}
        points = sorted(found.values(), key=lambda choice: choice.loss)
        return tuple(self._point(choice, choice.options == chosen.options) for choice in points)

    def _point(self, choice: Choice, chosen: bool) -> FrontPoint:
        seconds, size = 0.0, 0
        for contender, plans, option in zip(self.contenders, self.plans, choice.options):
            if contender.plans:
                measured = plans[option - 1].measured if option else contender.plans[0].measured
                seconds += cost_of(measured, "time", option > 0)
                size += measured.bytes_after if option else measured.bytes_before
            else:
                size += contender.layer.constant.array.nbytes
        return FrontPoint(choice.loss, seconds, size, sum(option > 0 for option in choice.options), chosen)


class Judge:
    """Compiles whole graphs and measures them on held-out samples against the float one."""

    def __init__(self, graph: Graph, samples: Sequence[Sample], metric: Metric, timer: Timer, target: str, options: Options) -> None:
        self.graph, self.samples, self.metric = graph, samples, metric
        self.timer, self.target, self.options = timer, target, options
        self.program = self._compiled(graph)
        self.expected = self._run(self.program)

    def _compiled(self, graph: Graph) -> Any:
        return compile_graph(graph, self.target, replace(self.options, threads=1))

    def _run(self, program: Any) -> list[Results]:
        return [results_of_call(program, sample) for sample in self.samples]

    def judge(self, graph: Graph) -> tuple[float, float, Any, list[Results]]:
        """The loss of a graph, without and with its standard error, its program and its results."""
        program = self._compiled(graph)
        found = self._run(program)
        losses = losses_of(self.metric, self.expected, found)
        return mean_loss(losses), sure_loss(losses), program, found

    def times(self, program: Any) -> tuple[float, float]:
        """Seconds of a call in float and of the program, on a few samples."""
        before, after = self.timer.whole([self.program, program], self.samples[:TIMED])
        return before, after


class _Tried(Struct, frozen=True, eq=False):
    """A choice compiled and judged."""

    choice: Choice
    plan: Plan
    graph: Graph
    loss: float
    sure: float
    program: Any
    results: list[Results]


def search(contenders: Sequence[Contender], goal: str, budget: float, empty: Plan, judge: Judge, progress: Progress) -> Outcome:
    """The best plan within the budget on the judge's samples, or the float graph where nothing is gained."""
    options = Search(contenders, goal, empty)

    def attempt(limit: float, known: _Tried | None = None) -> _Tried:
        choice = solve(options.options, limit) if limit >= 0 else Choice((0,) * len(contenders), 0.0, 0.0)
        if known is not None and choice.options == known.choice.options:
            return known
        if not any(choice.options):
            return _Tried(choice, options.plan(choice), judge.graph, 0.0, 0.0, judge.program, judge.expected)
        plan = options.plan(choice)
        graph = apply_plan(judge.graph, plan)
        loss, sure, program, found = judge.judge(graph)
        progress(f"whole: {len(plan.quantized)} layers quantized, loss {loss:.3g} of {budget:.3g}")
        return _Tried(choice, plan, graph, loss, sure, program, found)

    tried, rounds = (_least_turn if options.coarse else _within)(attempt, budget)
    before, after = judge.times(tried.program)
    return _judged(options, tried.choice, tried.plan, tried.graph, judge, (before, after, tried.loss), tried.results, rounds)


def _within(attempt: Callable[..., _Tried], budget: float) -> tuple[_Tried, int]:
    """The choice whose losses sum to so much that the whole keeps the budget, and the rounds that it was tightened in."""
    tried, limit = attempt(budget), budget
    for number in range(1, ROUNDS + 2):
        if tried.loss <= budget:
            return tried, number - 1
        # if the whole loses more than the sum of its layers, the next one will likely too, as many times more
        last = number == ROUNDS or not math.isfinite(tried.loss)
        limit = 0.0 if last else TIGHTENED * min(limit, tried.choice.loss) * min(1.0, budget / tried.loss)
        tried = attempt(limit if number <= ROUNDS else NOTHING)
    return tried, ROUNDS + 1


def _least_turn(attempt: Callable[..., _Tried], budget: float) -> tuple[_Tried, int]:
    """The choice that turns the results as far as the budget of the metric allows, as far as some rounds find it: a turn is the
    square of an error, and answers change in proportion to errors. The best of several choices by a few samples is one that
    these happen to favour, so the standard error counts."""
    tried, high, low = attempt(math.inf), math.inf, math.inf
    rounds = 0
    while tried.sure > budget and rounds < ROUNDS:
        rounds, high = rounds + 1, tried.choice.loss
        low = high * min(MOST_STEP, max(LEAST_STEP, (budget / tried.sure) ** 2))
        tried = attempt(low)
    if tried.sure > budget:
        return attempt(NOTHING), rounds + 1
    for _ in range(REFINED if rounds else 0):
        rounds, between = rounds + 1, math.sqrt(low * high)
        middle = attempt(between, tried)
        if middle.sure <= budget:
            tried, low = middle, between
        else:
            high = middle.choice.loss
    return tried, rounds


def _judged(options: Search, choice: Choice, plan: Plan, graph: Graph, judge: Judge, measured: tuple[float, float, float],
            found: list[Results], rounds: int) -> Outcome:
    """The outcome with figures of the whole, which is the float graph where the goal did not get smaller."""
    seconds_before, seconds_after, loss = measured
    size_before = sum(layer.measured.bytes_before for layer in plan.layers)
    size_after = sum(layer.measured.bytes_after for layer in plan.layers)
    before = WholeReport(seconds_before, size_before, 0.0, 1.0, math.inf, 1.0)
    after = WholeReport(seconds_after, size_after, loss, *figures(judge.expected, found))
    share = f"{len(plan.quantized)} of {len(plan.layers)} layers quantized"
    texts = (f"{seconds_before * 1e3:.3g} ms in float, {seconds_after * 1e3:.3g} ms quantized; "
             f"{size_before} and {size_after} bytes of weights; loss {loss:.3g}")
    points = options.front(choice)
    smaller = size_after < size_before if options.goal == "size" else seconds_after < seconds_before * GAIN
    if not plan.quantized:
        return Outcome(_unsmoothed(plan), judge.graph, before, replace(before), points, choice.loss, rounds, False,
                       f"not worth it: no layer gains {options.goal} within the budget; {seconds_before * 1e3:.3g} ms in float")
    if not smaller:
        nothing = Choice((0,) * len(choice.options), 0.0, 0.0)
        reason = f"the whole gains no {options.goal}, though this layer alone does"
        return Outcome(_unsmoothed(options.plan(nothing, reason)), judge.graph, before, after, points, choice.loss, rounds, False,
                       f"not worth it: with {share} the model gains no {options.goal}: {texts}")
    return Outcome(plan, graph, before, after, points, choice.loss, rounds, True, f"{share}: {texts}")


def _unsmoothed(plan: Plan) -> Plan:
    """A plan of the float graph as it is, without the smoothing that quantizing would have had."""
    return replace(plan, folds=(), layers=tuple(replace(layer, smoothing=None, folded=False) for layer in plan.layers))
