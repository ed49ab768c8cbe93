"""The search held against two integer programs: the problem without addresses, and COSMA's formulation with them."""

from __future__ import annotations

import pytest

from benchmarks.exhaustive_schedules import least_excess, random_problem
from tilewright.scheduling.problem import INPUT, Tensor, make_problem
from tilewright.scheduling.search import Limits, relaxed
from tilewright.scheduling.space import Space

pytest.importorskip("highspy")

from tilewright.scheduling.integer_program import least_by_program


@pytest.mark.parametrize("seed", [3, 8, 13, 14, 20, 21])
def test_the_program_without_addresses_agrees_with_the_search(seed: int) -> None:
    problem, budget = random_problem(seed, 6)
    space = Space(problem, budget, 1)
    program = least_by_program(space, 60)
    assert program.proven and program.excess == relaxed(space, Limits()).ends[0].cost
    assert sorted(program.order) == list(range(len(problem.operators)))


@pytest.mark.parametrize("seed", [3, 4, 6])
def test_the_program_with_addresses_agrees_with_exhaustive_search(seed: int) -> None:
    problem, budget = random_problem(seed, 5)
    program = least_by_program(Space(problem, budget, 1), 60, addresses=True)
    assert program.proven and program.excess == least_excess(problem, budget, program.excess)


def test_a_program_without_time_has_a_bound_only() -> None:
    problem, budget = random_problem(3, 8)
    program = least_by_program(Space(problem, budget, 1), 0)
    assert program.excess is None or program.bound <= program.excess


def test_nothing_to_run() -> None:
    assert least_by_program(Space(make_problem("empty", [Tensor("x", 1, INPUT)], [], [0]), 4, 1)).excess == 0
