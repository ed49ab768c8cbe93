"""Replacement as a covering problem, and operators that are moved in an order: what is promised is what the checker counts, never below
the best there is, and found where cutting an order in parts does not."""

from __future__ import annotations

import random
import time

import pytest

from benchmarks.exhaustive_schedules import random_problem
from tilewright.scheduling.checker import check
from tilewright.scheduling.covering import covering
from tilewright.scheduling.exact import solve
from tilewright.scheduling.forecast import Forecast
from tilewright.scheduling.heuristics import belady, best_for_order
from tilewright.scheduling.moving import improve, moved
from tilewright.scheduling.placing import place, stays_of, steps_of
from tilewright.scheduling.problem import INPUT, Operator, Problem, Tensor, make_problem
from tilewright.scheduling.search import Limits, Move, relaxed
from tilewright.scheduling.space import Space


def cost_of(space: Space, moves: tuple[Move, ...]) -> int:
    """What the moves of a way cost, one after the other; each operator fits, and runs behind those it needs."""
    state, cost = (0, 0, 0), 0
    for operator, evicted in ((move.operator, move.evicted) for move in moves):
        assert not space.before[operator] & ~state[0] and not evicted & ~state[1]
        assert space.during(state[0], operator, state[1] & ~evicted) <= space.rooms[operator]
        cost += space.price(state, operator, evicted)
        state = space.after(state, operator, evicted)
    assert state[0] == space.all
    return cost


def late_weight(layers: int = 30) -> tuple[Problem, int]:
    """A chain whose results are all read at the end, beside what is made of nothing through something wide: best made at the beginning,
    while little is there, though nothing needs it before the end."""
    tensors, operators = [Tensor("x", 64, INPUT)], []
    for n in range(layers):
        tensors.append(Tensor(f"h{n}", 64))
        operators.append(Operator(f"layer{n}", (n,), (n + 1,)))
    tensors += [Tensor("made", 1024), Tensor("weight", 64), Tensor("y", 64)]
    operators += [Operator("make", (), (layers + 1,)), Operator("shrink", (layers + 1,), (layers + 2,)),
                  Operator("end", (*range(1, layers + 1), layers + 2), (layers + 3,))]
    return make_problem("late", tensors, operators, [layers + 3]), 64 * (layers + 2)


@pytest.mark.parametrize("shared", [False, True])
def test_covering_is_a_replacement(shared: bool) -> None:
    best = other = 0
    for seed in range(60):
        problem, budget = random_problem(seed, 14, shared=shared)
        space = Space(problem, budget, 1)
        order = tuple(range(len(problem.operators)))
        made, least = covering(space, order), best_for_order(space, order)
        if made is None:
            assert shared  # a result that must lie over an operand which returns
            continue
        assert least is not None and cost_of(space, made[1]) == made[0] >= least.cost
        best, other = best + (made[0] == least.cost), other + 1
        account = check(problem, steps_of(space, order, *place(space, stays_of(space, made[1])), 1), budget, 1)
        assert account.excess >= made[0]
    assert best > 0.7 * other > 25


def test_moving_keeps_what_operators_need() -> None:
    rng = random.Random(1)
    for seed in range(20):
        problem, budget = random_problem(seed, 14)
        space = Space(problem, budget, 1)
        order = list(range(len(problem.operators)))
        for _ in range(10):
            one, other = rng.sample(range(len(order)), 2)
            order = moved(space, order, one, other)
            assert sorted(order) == list(range(len(order)))
            cost_of(Space(problem, 1 << 40, 1), tuple(Move(operator, 0) for operator in order))
        costs = [cost_of(space, way.moves) for way in improve(space, order, time.monotonic() + 5)]
        assert not costs or min(costs) >= relaxed(space, Limits()).ends[0].cost


def test_an_operator_that_belongs_far_before() -> None:
    problem, budget = late_weight()
    space = Space(problem, budget, 64)
    order = [*(n for n, o in enumerate(problem.operators) if o.name.startswith("layer")),
             *(n for n, o in enumerate(problem.operators) if o.name in ("make", "shrink")), len(problem.operators) - 1]
    assert cost_of(space, belady(space, order)) > 1024
    *_, best = improve(space, order, time.monotonic() + 5)
    assert best.cost == cost_of(space, best.moves) == 0
    assert solve(problem, budget, 64).account.excess == 0


def test_what_crosses_several_operators_costs_once() -> None:
    """A tensor that crosses two wide operators is counted at one of them; what else must leave at the other is added."""
    tensors = [Tensor("x", 64, INPUT), Tensor("a", 128), Tensor("b", 128), Tensor("c", 64), Tensor("wide", 448), Tensor("d", 64),
               Tensor("e", 64), Tensor("wider", 512), Tensor("f", 64), Tensor("y", 64)]
    operators = [Operator("split", (0,), (1, 2, 3)), Operator("widen", (3,), (4,)), Operator("narrow", (4,), (5,)),
                 Operator("use", (1, 5), (6,)), Operator("again", (6,), (7,)), Operator("less", (7,), (8,)), Operator("end", (2, 8), (9,))]
    space = Space(make_problem("two", tensors, operators, [9]), 640, 64)
    bound = Forecast(space, space.all).remaining((0, 0, 0))
    assert bound == relaxed(space, Limits()).ends[0].cost == 2 * 128
    roomy = Space(make_problem("two", tensors, operators, [9]), 576, 64)
    assert Forecast(roomy, roomy.all).remaining((0, 0, 0)) == relaxed(roomy, Limits()).ends[0].cost == 4 * 128
