"""The exact small program behind the choice of precisions: of each layer one option, of least total cost, with the losses' sum in a budget.

That layers' losses add up is the linearity theorem (Malinovskii et al., HIGGS: Pushing the limits of large language model quantization
via the linearity theorem, 2024). What remains is the multiple-choice knapsack problem. It is solved by dynamic programming over Pareto
fronts of (loss, cost), layer by layer (Nemhauser and Ullmann, 1969); a partial choice is dropped where the linear relaxation of the rest
cannot bring it below the best whole choice known (Pisinger, A minimal algorithm for the multiple-choice knapsack problem, 1995).

Assumes losses of 0 or more and that some option of each layer has loss 0, so that there always is a choice. Guarantees the optimum, but for
1e-9 of the costs summed, and of equal ones the same in every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from msgspec import Struct

from ..ir.graph import Array

SLACK = 1e-9  # relative: below it sums of floats in another order differ anyway


class Option(Struct, frozen=True):
    """What one choice for a layer loses and costs."""

    loss: float
    cost: float


class Choice(Struct, frozen=True):
    """An option of each layer, by its place, with the sums."""

    options: tuple[int, ...]
    loss: float
    cost: float


class _Rest:
    """The layers from some place on, relaxed: every cost between two neighbours of a layer's convex hull can be had."""

    def __init__(self, layers: Sequence[Sequence[Option]]) -> None:
        steps: list[tuple[float, float]] = []
        self.base = 0.0
        for options in layers:
            hull = _hull(options)
            self.base += hull[0].cost
            steps += [(after.loss - before.loss, after.cost - before.cost) for before, after in pairwise(hull)]
        steps.sort(key=lambda step: step[1] / step[0])
        self.losses = np.concatenate([[0.0], np.cumsum([loss for loss, _ in steps])])
        self.costs = np.concatenate([[0.0], np.cumsum([cost for _, cost in steps])])

    def least(self, budget: Array) -> Array:
        """What the rest costs at least within each budget."""
        return np.asarray(self.base + np.interp(budget, self.losses, self.costs))

    def reached(self, budget: Array) -> Array:
        """What some choice for the rest costs within each budget."""
        return np.asarray(self.base + self.costs[np.searchsorted(self.losses, budget, "right") - 1])


def _hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull, from loss 0 to the least cost."""
    hull: list[Option] = []
    for option in sorted((o for o in options if math.isfinite(o.loss)), key=lambda o: (o.loss, o.cost)):
        if hull and option.cost >= hull[-1].cost:
            continue
        while len(hull) >= 2 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(left: Option, right: Option) -> float:
    return (right.cost - left.cost) / (right.loss - left.loss)


def solve(layers: Sequence[Sequence[Option]], budget: float) -> Choice:
    """The choice of least cost whose losses sum to at most `budget`; of equal costs one of less loss."""
    rests = [_Rest(layers[place:]) for place in range(len(layers) + 1)]
    losses, costs = np.zeros(1), np.zeros(1)
    best = float(rests[0].reached(np.array([budget]))[0])
    slack = SLACK * sum(max(abs(option.cost) for option in options) for options in layers)
    trail: list[tuple[Array, Array]] = []
    for place, options in enumerate(layers):
        count = len(losses)
        finite = [number for number, option in enumerate(options) if math.isfinite(option.loss)]
        losses = np.concatenate([losses + options[number].loss for number in finite])
        costs = np.concatenate([costs + options[number].cost for number in finite])
        parents, chosen = np.tile(np.arange(count), len(finite)), np.repeat(finite, count)
        kept = _undominated(losses, costs)
        kept = kept[losses[kept] <= budget * (1 + SLACK)]
        rest, left = rests[place + 1], np.maximum(budget - losses[kept], 0.0)
        best = min(best, float((costs[kept] + rest.reached(left)).min(initial=best)))
        kept = kept[costs[kept] + rest.least(left) <= best + slack]
        losses, costs = losses[kept], costs[kept]
        trail.append((parents[kept], chosen[kept]))
    last = int(np.lexsort((losses, costs))[0])
    picked, state = [], last
    for parents, chosen in reversed(trail):
        picked.append(int(chosen[state]))
        state = int(parents[state])
    return Choice(tuple(reversed(picked)), float(losses[last]), float(costs[last]))


def _undominated(losses: Array, costs: Array) -> Array:
    """Places, by rising loss, of those that no other has both less loss and less cost than."""
    order = np.lexsort((costs, losses))
    lowest = np.minimum.accumulate(costs[order])
    first = np.concatenate([[True], costs[order][1:] < lowest[:-1]])
    return np.asarray(order[first])


def front(layers: Sequence[Sequence[Option]], points: int = 12) -> tuple[Choice, ...]:
    """Choices from nothing lost to the least cost, at budgets a constant factor apart: the Pareto front, as far as so many show it."""
    whole = [min(options, key=lambda o: (o.cost, o.loss)) for options in layers]
    most = sum(option.loss for option in whole if math.isfinite(option.loss))
    least = min((option.loss for options in layers for option in options if option.loss > 0), default=0.0)
    budgets = [0.0, *np.geomspace(least, most, points - 1)] if most > least > 0 else [0.0, most]
    found = {choice.options: choice for choice in (solve(layers, float(budget)) for budget in budgets)}
    return tuple(sorted(found.values(), key=lambda choice: choice.loss))
