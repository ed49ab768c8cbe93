"""Schedules: never wrong, never said to be optimal where they are not, and as good as exhaustive search on small problems."""

from __future__ import annotations

import random
import time

import pytest

from benchmarks.exhaustive_schedules import compare, random_problem
from benchmarks.networks import human_made, network
from benchmarks.searched import searched
from tilewright.ir.errors import CompileError
from tilewright.scheduling import exact
from tilewright.scheduling.addressed import search_addressed
from tilewright.scheduling.aliasing import separate
from tilewright.scheduling.bodies import by_search, by_size
from tilewright.scheduling.checker import check
from tilewright.scheduling.divide import improve
from tilewright.scheduling.exact import check_budget, solve, working_set
from tilewright.scheduling.forecast import Forecast, cheapest
from tilewright.scheduling.heuristics import baselines, belady, best_for_order, known_orders, least_peak
from tilewright.scheduling.placing import place, stays_of, steps_of
from tilewright.scheduling.problem import INPUT, Operator, Problem, Tensor, make_problem, with_parameters
from tilewright.scheduling.search import Limits, Relaxed, beam, relaxed, search
from tilewright.scheduling.space import Space, bits, cuts


def large_problem(seed: int, operators: int = 40) -> tuple[Problem, int]:
    """A random problem beyond exhaustive search, with sizes that are no multiples of the alignment."""
    draw = random.Random(seed)
    tensors = [Tensor("x", 100, INPUT)]
    rows = []
    for number in range(operators):
        near = range(max(0, len(tensors) - 8), len(tensors))
        operands = draw.sample(near, min(len(near), draw.choice((1, 1, 2, 3))))
        tensors.append(Tensor(f"t{number}", draw.randint(1, 400)))
        rows.append(Operator(f"o{number}", tuple(operands), (len(tensors) - 1,)))
    read = {t for row in rows for t in row.inputs}
    problem = make_problem(f"large {seed}", tensors, rows, [t for t in range(1, len(tensors)) if t not in read])
    return problem, working_set(problem, 64)[0]


# --- against exhaustive search -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [*range(30), 166, 357])
def test_small_problems_agree_with_exhaustive_search(seed: int) -> None:
    """166 and 357: the residency that is best without addresses has no packing."""
    least, solution = compare(seed, 8 if seed in (166, 357) else 6, seconds=60)
    assert solution.account.excess == solution.bound == least


def filled_problem(seed: int, most: int) -> tuple[Problem, int]:
    """A chain with short skips, whose operators also read what operators without operands make, some of it twice."""
    draw = random.Random(seed)
    tensors, rows, values = [Tensor("x", draw.randint(1, 3), INPUT)], [], [0]

    def add(name: str, operands: list[int]) -> int:
        tensors.append(Tensor(f"{name}{len(rows)}", draw.randint(1, 4)))
        rows.append(Operator(f"{name}{len(rows)}", tuple(operands), (len(tensors) - 1,)))
        return len(tensors) - 1

    for _ in range(most // 2):
        operands = draw.sample(values[-3:], min(len(values[-3:]), draw.choice((1, 1, 2))))
        for _ in range(draw.choice((0, 1, 1, 2)) if len(rows) < most else 0):
            operands.append(add("filled", []))
            if draw.random() < 0.3:
                values.insert(max(0, len(values) - 1), operands[-1])
        values.append(add("o", operands))
    read = {t for row in rows for t in row.inputs}
    draw.shuffle(rows)
    problem = make_problem(f"filled {seed}", tensors, rows, [t for t in range(1, len(tensors)) if t not in read])
    return problem, working_set(problem, 1)[0] + draw.choice((0, 0, 1))


def test_operators_without_operands_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same optimum as where they may run at any time, with fewer states."""
    moving, states = 0, [0, 0]
    for seed in range(80):
        problem, budget = filled_problem(seed, 14)
        spaces = [Space(problem, budget, 1)]
        with monkeypatch.context() as patch:
            patch.setattr(Space, "_late", lambda self: iter(()))
            spaces.append(Space(problem, budget, 1))
        found = [relaxed(space, Limits(states=20_000)) for space in spaces]
        costs = [one.ends[0].cost for one in found if one.ends and one.missing >= one.ends[0].cost]
        if len(costs) == 2:
            assert costs[0] == costs[1]
            moving += costs[0] > 0
            states = [a + one.states for a, one in zip(states, found)]
    assert moving >= 5 and 2 * states[0] < states[1]


def test_addresses_are_in_the_search_where_packing_fails() -> None:
    problem, budget = random_problem(166)
    space = Space(problem, budget, 1)
    found = search_addressed(space, Limits(cost=4))
    assert found is not None and found.cost == 0
    assert check(problem, steps_of(space, found.order, found.stays, found.addresses, 1), budget).excess == 0


# --- parts -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_every_way_becomes_a_schedule_that_the_checker_accepts(seed: int) -> None:
    problem, budget = large_problem(seed)
    space = Space(problem, budget, 64)
    peak = least_peak(space)
    assert peak.bound <= peak.units
    for order in (tuple(range(len(problem.operators))), peak.order):
        best = best_for_order(space, order)
        assert best is not None
        for moves in (belady(space, order), best.moves):
            for pack in (by_search, by_size):
                account = check(problem, steps_of(space, order, *place(space, stays_of(space, moves), pack), 64), budget, 64)
                assert account.excess >= best.cost >= Forecast(space, space.all).remaining((0, 0, 0))
    for baseline in baselines(space, 64, known_orders(space, peak)):
        check(problem, baseline.schedule, budget, 64)


def test_least_peak_is_what_needs_no_transfers() -> None:
    """At the least peak nothing moves beyond the compulsory bytes, and one unit below something does (without addresses)."""
    for seed in range(30):
        problem, _ = random_problem(seed)
        space = Space(problem, 1 << 20, 1)
        peak = least_peak(space)
        assert peak.bound == peak.units
        assert relaxed(Space(problem, peak.units, 1), Limits()).ends[0].cost == 0
        if peak.units > working_set(problem, 1)[0]:
            assert relaxed(Space(problem, peak.units - 1, 1), Limits()).ends[0].cost > 0


@pytest.mark.parametrize("seed", range(20))
def test_the_forecast_and_the_cuts_are_sound(seed: int) -> None:
    """A search without cuts finds what the search from cut to cut finds, and no forecast on the way is above what remains."""
    problem, budget = random_problem(seed)
    space = Space(problem, budget, 1)
    whole = search(space, space.all, [(0, (0, 0, 0))], Limits())
    parts = relaxed(space, Limits())
    assert whole.ends[0].cost == parts.ends[0].cost == whole.bound == parts.bound
    forecast, state, cost = Forecast(space, space.all), (0, 0, 0), 0
    for move in whole.ends[0].moves:
        assert cost + forecast.remaining(state) <= whole.ends[0].cost
        cost += space.total_bytes(move.evicted) + space.total_bytes(move.evicted & ~state[2])
        state = space.after(state, move.operator, move.evicted)
    assert cost == whole.ends[0].cost and state[0] == space.all
    assert beam(space, space.all, [(0, (0, 0, 0))], 4, Limits())[0].cost >= cost


def test_limits_of_a_search() -> None:
    problem, budget = large_problem(1)
    space = Space(problem, budget, 64)
    least = relaxed(space, Limits(states=200_000))
    assert least.ends and least.bound == least.ends[0].cost
    few = search(space, space.all, [(0, (0, 0, 0))], Limits(states=10))
    assert not few.ends and few.bound <= least.bound
    late = search(space, space.all, [(0, (0, 0, 0))], Limits(deadline=time.monotonic() - 1))
    assert not late.ends and late.bound <= least.bound
    pieces = Relaxed(space)
    bounds = [pieces.go_on(Limits(states=states)).bound for states in range(10, 200_000, 1000) if pieces.goals]
    assert len(bounds) > 1 and bounds == sorted(bounds) and bounds[-1] == least.bound and not pieces.go_on(Limits(), whole=False).missing < least.bound
    capped = relaxed(space, Limits(states=200_000, cost=least.bound))
    assert not capped.ends and capped.bound == least.bound


def test_cheapest_sets() -> None:
    assert cheapest([(4, 8), (3, 3), (3, 3)], 4) == 6
    assert cheapest([(4, 5), (3, 3), (3, 3)], 4) == 5
    assert cheapest([(1, 1)] * 20, 7) == 7
    assert cheapest([(1, 1)], 2) > 1 << 50


@pytest.mark.parametrize("seed", range(4))
def test_divide_and_conquer_is_never_worse_than_where_it_began(seed: int) -> None:
    problem, budget = large_problem(seed, 60)
    space = Space(problem, budget, 64)
    known = best_for_order(space, range(len(problem.operators)))
    assert known is not None
    costs = [known.cost]
    for way in (part.way for part in improve(space, [known], time.monotonic() + 1) if part.way is not None):
        assert way.cost < costs[-1]
        costs.append(way.cost)
        account = check(problem, steps_of(space, [m.operator for m in way.moves], *place(space, stays_of(space, way.moves)), 64), budget, 64)
        assert account.excess >= way.cost


# --- the whole ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(human_made()))
@pytest.mark.parametrize("granularity", ["fused", pytest.param("imported", marks=pytest.mark.slow)])
def test_networks(name: str, granularity: str) -> None:
    """At the largest operator every human-made network has a schedule at once, at the least peak one that moves nothing more."""
    problem = network(human_made()[name], 1, granularity)
    largest = working_set(problem, 64)[0]
    solution = solve(problem, largest, 64, 0)
    assert solution.account.excess >= solution.bound and solution.account.peak <= largest
    peaked = solve(problem, solution.peak, 64, 0)
    assert solution.peak_bound <= solution.peak and peaked.account.excess == 0 and peaked.proven
    assert solution.peak == solution.peak_bound or name == "Transformer"  # too many orders of its two sides to prove it


def test_a_network_of_dense_blocks_is_proven_in_floats() -> None:
    problem = network(human_made()["DenseNet-121"], 4)
    solution = solve(problem, working_set(problem, 64)[0], 64, 30)
    assert solution.proven and solution.account.excess == 1605632


def test_searched_networks_have_the_operators_of_their_cells() -> None:
    counts = {name: len(network(make, 1, "imported").operators) for name, make in searched().items()}
    assert counts == {"PNASNet-5": 899, "AmoebaNet-D": 517, "NASNet-A": 1219, "DARTS": 729}


def test_parameters_are_streamed_or_stay() -> None:
    make = human_made()["ResNet-50"]
    weights = sum(t.bytes for t in make(1).tensors if t.kind == "parameter")
    streamed = network(make, 1, parameters="streamed")
    solution = solve(streamed, working_set(streamed, 64)[0], 64, 5)
    assert solution.account.compulsory == 150528 + 1000 + weights
    resident = separate(with_parameters(make(1), "resident"))
    needed = working_set(resident, 64)[0]
    solution = solve(resident, needed, 64, 5)
    assert needed > weights and solution.account.compulsory == 150528 + 1000 + weights


def test_budgets_that_cannot_be() -> None:
    problem, budget = large_problem(3)
    with pytest.raises(CompileError, match=r"operator o\d+ needs \d+ bytes at once but the scratchpad has"):
        solve(problem, budget - 64)
    for wrong in (0, -1, 1 << 60):
        with pytest.raises(CompileError, match="expected 1 to"):
            check_budget(problem, wrong, 64)
    with pytest.raises(CompileError, match="alignment: found 48, expected a power of two"):
        check_budget(problem, budget, 48)


def test_nothing_to_compute() -> None:
    solution = solve(make_problem("empty", [Tensor("x", 4, INPUT)], [], [0]), 64)
    assert solution.proven and solution.account.moved == 0 and not solution.schedule.steps


def test_interrupting_gives_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, budget = next(row for row in map(large_problem, range(20)) if not solve(*row, seconds=0).proven)

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exact._Work, "go_on", interrupt)
    solution = solve(problem, budget)
    assert solution.interrupted and check(problem, solution.schedule, budget, 64) == solution.account


def test_equal_problems_have_equal_schedules() -> None:
    problem, budget = large_problem(2)
    assert solve(problem, budget, seconds=0).schedule == solve(problem, budget, seconds=0).schedule


def test_cuts_are_what_every_order_comes_through() -> None:
    for size, expected in ((2, [[0], [0, 1, 2, 3]]), (1, [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]])):  # equal ones may run as they stand
        tensors = [Tensor("x", 1, INPUT), *(Tensor(name, size if name == "b" else 1) for name in "abcd")]
        operators = [Operator("a", (0,), (1,)), Operator("b", (1,), (2,)), Operator("c", (1,), (3,)), Operator("d", (2, 3), (4,))]
        space = Space(make_problem("diamond", tensors, operators, [4]), 8, 1)
        assert [list(bits(cut)) for cut in cuts(space)] == expected
