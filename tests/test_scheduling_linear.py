"""The linear arena with replacement that others use: right, within the room, and as fragmented as it is said to be."""

from __future__ import annotations

import pytest

from tests.test_scheduling import large_problem
from tilewright.scheduling.checker import check
from tilewright.scheduling.heuristics import LINEAR, baselines, known_orders, least_peak
from tilewright.scheduling.linear import RULES, gap, linear_schedule
from tilewright.scheduling.problem import INPUT, Fetch, Operator, Problem, Run, Spill, Tensor, make_problem
from tilewright.scheduling.space import Space


def residual() -> Problem:
    """A block that widens what it narrowed, and adds what came in: 4 units, 1, 1, 4, and 4 for the sum."""
    tensors = [Tensor("image", 1, INPUT), Tensor("x", 4), Tensor("a", 1), Tensor("b", 1), Tensor("c", 4), Tensor("y", 4)]
    operators = [Operator("stem", (0,), (1,)), Operator("narrow", (1,), (2,)), Operator("same", (2,), (3,)), Operator("wide", (3,), (4,)),
                 Operator("add", (1, 4), (5,))]
    return make_problem("residual", tensors, operators, [5])


@pytest.mark.parametrize("rule", list(RULES))
def test_fragmentation_costs_where_bytes_would_do(rule: str) -> None:
    """Nothing need move in 12 units, but what lies between the two operands leaves no room for their sum: one of the two leaves and
    returns where 13 units are there, both where 12 are."""
    problem = residual()
    schedule = linear_schedule(Space(problem, 13, 1), range(5), rule, 1)
    assert check(problem, schedule, 13).excess == 8
    assert [step.tensor for step in schedule.steps if isinstance(step, (Spill, Fetch))] == [0, 4, 4, 5]
    assert check(problem, linear_schedule(Space(problem, 12, 1), range(5), rule, 1), 12).excess == 16


def test_rules_differ() -> None:
    """For w of 3 either the tensor that is needed last leaves, 6, or two that are needed before it, 2 + 1."""
    sizes = {"i": 1, "far": 6, "near": 2, "next": 1, "w": 3, "p": 1, "q": 1, "r": 1}
    tensors = [Tensor(name, size, INPUT if name == "i" else "value") for name, size in sizes.items()]
    operators = [Operator("a", (0,), (1,)), Operator("b", (0,), (2,)), Operator("c", (0,), (3,)), Operator("d", (0,), (4,)),
                 Operator("e", (4,), (5,)), Operator("f", (2, 3), (6,)), Operator("g", (1,), (7,))]
    problem = make_problem("rules", tensors, operators, [5, 6, 7])
    space = Space(problem, 11, 1)
    excess = {rule: check(problem, linear_schedule(space, range(7), rule, 1), 11).excess for rule in RULES}
    assert excess["belady"] == 12 and excess["least"] < 12


def test_the_smallest_gap_that_is_large_enough() -> None:
    space = Space(residual(), 16, 1)
    assert gap({2: 4, 3: 6, 1: 9}, space, 1) == 5   # one unit between 5 and 6, two between 7 and 9, four at the front
    assert gap({2: 4, 3: 6, 1: 9}, space, 2) == 7
    assert gap({1: 0, 4: 4}, space, 8) == 8
    assert gap({1: 0, 4: 4}, space, 9) is None


@pytest.mark.parametrize("seed", range(6))
def test_all_baselines_are_schedules(seed: int) -> None:
    problem, budget = large_problem(seed)
    for room in (budget, budget * 5 // 4 // 64 * 64):
        space = Space(problem, room, 64)
        rows = baselines(space, 64, known_orders(space, least_peak(space)))
        assert sum(row.kind == LINEAR for row in rows) == 4
        for row in rows:
            account = check(problem, row.schedule, room, 64)
            assert account.excess >= 0 and len([s for s in row.schedule.steps if isinstance(s, Run)]) == len(problem.operators)
