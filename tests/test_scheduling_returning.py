"""What must come back between operators: never above the least there is, and equal to it where a chain reads what was made once; and the
orders that this decides: none that the best schedules need is lost."""

from __future__ import annotations

import random
from itertools import chain, combinations

import pytest

from benchmarks.exhaustive_schedules import least_excess, random_problem
from benchmarks.networks import human_made, network
from tilewright.scheduling.beyond import Allowed, changed
from tilewright.scheduling.deciding import decided
from tilewright.scheduling.exact import solve, working_set
from tilewright.scheduling.forecast import Forecast
from tilewright.scheduling.problem import INPUT, Operator, Problem, Tensor, make_problem
from tilewright.scheduling.returning import Supply, returning, separated
from tilewright.scheduling.search import Limits, relaxed
from tilewright.scheduling.space import Space


def remembered_problem(seed: int, layers: int) -> tuple[Problem, int]:
    """A decoder: each layer reads what some operators make of one memory whenever they like, then goes through a wide tensor beside which
    there is little room."""
    draw = random.Random(seed)
    tensors, rows = [Tensor("source", draw.randint(1, 2), INPUT), Tensor("target", draw.randint(1, 2), INPUT)], []

    def add(name: str, size: int, *operands: int) -> int:
        tensors.append(Tensor(f"{name}{len(rows)}", size))
        rows.append(Operator(f"{name}{len(rows)}", operands, (len(tensors) - 1,)))
        return len(tensors) - 1

    memory, x = add("memory", draw.randint(1, 3), 0), 1
    width, wide = draw.randint(1, 2), draw.randint(5, 7)
    for _ in range(layers):
        keys = [add("key", draw.randint(1, 3), memory) for _ in range(draw.choice((1, 1, 2)))]
        x = add("attend", width, x, *keys)
        x = add("narrow", width, add("wide", wide, x), x)
    problem = make_problem(f"remembered {seed}", tensors, rows, [x])
    return problem, working_set(problem, 1)[0] + draw.choice((0, 0, 0, 1))


def sided_problem(seed: int) -> tuple[Problem, int]:
    """Chains that meet at the end, each of which goes through wide tensors and keeps a narrow one: which goes first is to be decided."""
    draw = random.Random(seed)
    tensors, rows = [Tensor("x", 1, INPUT)], []

    def add(size: int, *operands: int) -> int:
        tensors.append(Tensor(f"t{len(rows)}", size))
        rows.append(Operator(f"o{len(rows)}", operands, (len(tensors) - 1,)))
        return len(tensors) - 1

    kept = [add(draw.randint(1, 4), add(draw.randint(2, 6), *(add(draw.randint(2, 6), 0) for _ in range(draw.choice((1, 1, 2))))))
            for _ in range(draw.randint(2, 4))]
    last = add(1, *draw.sample(kept, 2))
    result = add(1, last, *kept)
    problem = make_problem(f"sided {seed}", tensors, rows, [result])
    return problem, working_set(problem, 1)[0]


def least_of(space: Space) -> int:
    """The optimum without addresses."""
    found = relaxed(space, Limits())
    assert found.ends and found.bound == found.ends[0].cost
    return found.bound


@pytest.mark.parametrize("shared", [False, True])
def test_the_bound_is_not_above_the_least(shared: bool) -> None:
    """With results over operands and operands side by side too. It is higher than that of what crosses operators at times."""
    reached = higher = 0
    for seed in range(400):
        problem, budget = random_problem(seed, 8, shared)
        problem = changed(problem, budget, 1, Allowed(in_place=shared))
        space = Space(problem, budget, 1)
        bound, crossing = returning(space), Forecast(space, space.all).remaining((0, 0, 0))
        if bound:
            least = least_of(space)
            assert bound <= least
            reached += bound == least
            higher += bound > crossing
    assert reached >= 10 and higher >= 4


def test_what_a_chain_reads_of_a_memory_is_proven() -> None:
    """Against the search, and for the smallest against every order, eviction and address."""
    reached = crossed = 0
    for seed in range(60):
        problem, budget = remembered_problem(seed, 2 + seed % 3)
        space = Space(problem, budget, 1)
        bound, least = returning(space), least_of(space)
        assert bound <= least
        reached += bound == least > 0
        crossed += Forecast(space, space.all).remaining((0, 0, 0)) == least > 0
        if seed % 3 == 0 and len(problem.operators) <= 8:
            assert bound <= least_excess(problem, budget, solve(problem, budget, 1).account.excess)
    assert reached >= 40 and crossed <= reached // 4


def test_orders_are_decided_and_the_best_is_kept() -> None:
    """Asked for what is cheaper than the least and a byte, the search finds the least; asked for what is cheaper, it proves that there is
    nothing, with fewer states."""
    orders, states = 0, [0, 0]
    for seed in range(45):
        problem, budget = (sided_problem(seed), remembered_problem(seed, 3), random_problem(seed, 8, True))[seed % 3]
        space = Space(changed(problem, budget, 1, Allowed(in_place=True)), budget, 1)
        least = least_of(space)
        if least:
            enough = decided(space, least + 1, float("inf"))
            assert least_of(enough) == least
            orders += enough.below != space.below
            found = [relaxed(one, Limits(cost=least)) for one in (decided(space, least, float("inf")), space)]
            assert all(not one.ends and one.bound == least for one in found)
            states = [count + one.states for count, one in zip(states, found)]
    assert orders >= 3 and 2 * states[0] < states[1]


def test_a_decoder_too_long_for_a_search_is_proven_at_once() -> None:
    """The memory, 2 bytes, is written once and fetched again for each layer but the first; keys and values would take 4 each."""
    tensors, rows = [Tensor("source", 1, INPUT), Tensor("memory", 2), Tensor("x", 1)], [Operator("m", (0,), (1,)), Operator("x", (0,), (2,))]
    for layer in range(30):
        n, x = len(tensors), len(tensors) - 1
        tensors += [Tensor(f"{name}{layer}", size) for name, size in (("key", 2), ("value", 2), ("attended", 1), ("wide", 6), ("x", 1))]
        rows += [Operator(f"key{layer}", (1,), (n,)), Operator(f"value{layer}", (1,), (n + 1,)),
                 Operator(f"attend{layer}", (x, n, n + 1), (n + 2,)), Operator(f"widen{layer}", (n + 2,), (n + 3,)),
                 Operator(f"narrow{layer}", (n + 2, n + 3), (n + 4,))]
    problem = make_problem("decoder", tensors, rows, [len(tensors) - 1])
    solution = solve(problem, 8, 1)
    assert solution.proven and solution.account.excess == 2 * 30 and solution.proven_by == "what must come back"


@pytest.mark.parametrize("budget", [393_216, 425_984])
def test_the_transformer_is_proven(budget: int) -> None:
    solution = solve(network(human_made()["Transformer"], 1), budget, 64, 60)
    assert solution.proven and solution.account.excess == 393_216


def test_no_separator_costs_less_than_the_flow() -> None:
    """Against all sets of tensors, and each flow within its cost."""
    for seed in range(200):
        draw = random.Random(seed)
        count = draw.randint(2, 7)
        made_of: dict[int, list[int]] = {}
        for t in range(count - 1):
            made_of[t] = draw.sample(range(t + 1, count), draw.randint(0, min(2, count - t - 1)))
        sinks = {count - 1} | {t for t in range(count) if draw.random() < 0.2}
        supply = Supply(draw.sample(range(count), draw.randint(1, count)), {t: row for t, row in made_of.items() if t not in sinks}, sinks)
        cost = {t: draw.randint(0, 5) for t in range(count)}
        value, flow = separated(cost, supply)
        sets = chain.from_iterable(combinations(range(count), size) for size in range(count + 1))
        assert value == min(sum(cost[t] for t in taken) for taken in sets if separates(supply, set(taken)))
        assert all(0 <= flow[t] <= cost[t] for t in cost)


def separates(supply: Supply, taken: set[int]) -> bool:
    waiting = [t for t in supply.demanded if t not in taken]
    while waiting:
        t = waiting.pop()
        if t in supply.sinks:
            return False
        waiting += [other for other in supply.made_of[t] if other not in taken]
    return True
