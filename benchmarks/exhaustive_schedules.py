"""Agreement with exhaustive search: small random problems, solved once by trying every order, eviction and address, once by `solve`.

    python -m benchmarks.exhaustive_schedules [--graphs 1000] [--operators 8] [--seed 0] [--shared]

The exhaustive search is a plain shortest path over (operators done, address of every tensor in the scratchpad, tensors off the
chip), with an operator, a fetch to an address or an eviction a step. It shares nothing with the solver. What must hold for every
problem: no schedule of ours is better than the best there is, none is called optimal that is not, and no bound is above it.
How often ours is the best, and how often it is proven, is printed. With `--shared`, results may lie over operands, and some operands must
lie side by side.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import pairwise

from msgspec.structs import replace

from tilewright.scheduling.beyond import Allowed
from tilewright.scheduling.exact import Solution, solve, working_set
from tilewright.scheduling.problem import INPUT, VALUE, Operator, Problem, Tensor, make_problem

Places = frozenset[tuple[int, int]]  # tensor, address
State = tuple[frozenset[int], Places, frozenset[int]]


def random_problem(seed: int, most_operators: int = 8, shared: bool = False) -> tuple[Problem, int]:
    """A problem with tensors of a few bytes, and a budget from the largest operator up."""
    draw = random.Random(seed)
    tensors = [Tensor(f"x{n}", draw.randint(1, 3), INPUT) for n in range(draw.randint(1, 2))]
    operators = []
    for number in range(draw.randint(2, most_operators)):
        operands = draw.sample(range(len(tensors)), min(len(tensors), draw.choice((1, 1, 2, 2, 3))))
        outputs = []
        for _ in range(2 if draw.random() < 0.15 else 1):
            tensors.append(Tensor(f"t{len(tensors)}", 0 if draw.random() < 0.05 else draw.randint(1, 4), VALUE))
            outputs.append(len(tensors) - 1)
        row = Operator(f"o{number}", tuple(operands), tuple(outputs))
        operators.append(sharing(row, tensors, draw) if shared else row)
    read = {t for operator in operators for t in operator.inputs}
    results = [t for t, tensor in enumerate(tensors) if tensor.kind == VALUE and (t not in read or draw.random() < 0.1)]
    problem = make_problem(f"random {seed}", tensors, operators, results)
    return problem, working_set(problem, 1)[0] + draw.choice((0, 0, 0, 0, 1))


def sharing(row: Operator, tensors: list[Tensor], draw: random.Random) -> Operator:
    """An operator that may overwrite some operands, and wants some side by side."""
    result = tensors[row.outputs[0]].bytes
    over = tuple(t for t in row.inputs if tensors[t].bytes >= result and draw.random() < 0.7)
    real = [t for t in row.inputs if tensors[t].bytes]
    joined = (tuple(draw.sample(real, 2)),) if len(real) > 1 and result and draw.random() < 0.4 else ()
    return replace(row, in_place=over, joined=joined)


def least_excess(problem: Problem, budget: int, known: int) -> int:
    """Bytes beyond the compulsory ones of the best schedule there is, alignment 1. `known`: what some schedule is said to reach;
    dearer ways are left out, and AssertionError says that there is none."""
    stored = frozenset(t for t, tensor in enumerate(problem.tensors) if tensor.kind != VALUE)
    start: State = (frozenset(), frozenset(), stored)
    best = {start: 0}
    heap: list[tuple[int, int, int, State]] = [(0, 0, 0, start)]
    ties = 0
    while heap:
        _, _, _, state = heappop(heap)
        cost = best[state]
        if len(state[0]) == len(problem.operators):
            return cost - problem.compulsory
        for step, following in steps(problem, budget, state):
            if cost + step < best.get(following, sys.maxsize):
                best[following] = cost + step
                hoped = cost + step + to_come(problem, following)
                if hoped <= problem.compulsory + known:
                    ties += 1
                    heappush(heap, (hoped, -len(following[0]), ties, following))
    raise AssertionError(f"{problem.name}: no schedule moves as few as {known} bytes beyond the compulsory ones")


def to_come(problem: Problem, state: State) -> int:
    """Bytes that are moved from here on in any case: results not computed, inputs that no operator has read and that are not there."""
    done, places, off_chip = state
    resident = {t for t, _ in places}
    return sum(tensor.bytes for t, tensor in enumerate(problem.tensors)
               if tensor.kind == VALUE and t in problem.results and t not in off_chip
               or tensor.kind != VALUE and problem.consumers[t] and t not in resident and not done & set(problem.consumers[t]))


def steps(problem: Problem, budget: int, state: State) -> Iterator[tuple[int, State]]:
    """What can happen next, with the bytes that it moves. Results are written when they are computed."""
    done, places, off_chip = state
    resident = {t for t, _ in places}
    for number, operator in enumerate(problem.operators):
        if number in done or any(problem.producer[t] >= 0 and problem.producer[t] not in done for t in operator.inputs):
            continue
        missing = [t for t in operator.inputs if t not in resident]
        for t in missing:
            if t in off_chip:
                for address in free_addresses(problem, budget, places, problem.tensors[t].bytes):
                    yield problem.tensors[t].bytes, (done, places | {(t, address)}, off_chip)
        if not missing:
            for overwritten, added in runs(problem, budget, places, operator):
                if not side_by_side(problem, operator, dict(places | added)):
                    continue
                after = done | {number}
                written = {t for t in operator.outputs if t in problem.results}
                written |= {t for t in overwritten - off_chip if any(c not in after for c in problem.consumers[t])}
                alive = frozenset((t, a) for t, a in added if any(c not in after for c in problem.consumers[t]))
                yield sum(problem.tensors[t].bytes for t in written), (after, alive, off_chip | written)
    for t, address in places:
        cost = 0 if t in off_chip else problem.tensors[t].bytes
        yield cost, (done, places - {(t, address)}, off_chip | {t})


def runs(problem: Problem, budget: int, places: Places, operator: Operator) -> Iterator[tuple[frozenset[int], Places]]:
    """All ways to place an operator's results: what is overwritten, and what lies where then."""
    for added in placements(problem, budget, places, operator.outputs):
        yield frozenset(), added
    for t, address in places:
        first = operator.outputs[0] if operator.outputs else -1
        if t in operator.in_place and problem.tensors[t].bytes >= problem.tensors[first].bytes > 0:
            for added in placements(problem, budget, places | {(first, address)}, operator.outputs[1:]):
                yield frozenset({t}), added - {(t, address)}


def side_by_side(problem: Problem, operator: Operator, address: dict[int, int]) -> bool:
    return all(address[a] + problem.tensors[a].bytes == address[b] for group in operator.joined for a, b in pairwise(group))


def placements(problem: Problem, budget: int, places: Places, outputs: tuple[int, ...]) -> Iterator[Places]:
    """All ways to place an operator's results."""
    if not outputs:
        yield places
        return
    for address in free_addresses(problem, budget, places, problem.tensors[outputs[0]].bytes):
        yield from placements(problem, budget, places | {(outputs[0], address)}, outputs[1:])


def free_addresses(problem: Problem, budget: int, places: Places, size: int) -> list[int]:
    if not size:
        return [0]
    taken = {byte for t, address in places for byte in range(address, address + problem.tensors[t].bytes)}
    return [a for a in range(budget - size + 1) if not any(byte in taken for byte in range(a, a + size))]


def compare(seed: int, most_operators: int = 8, seconds: float = 5.0, shared: bool = False) -> tuple[int, Solution]:
    """The least excess and our solution; AssertionError where the two cannot both be right."""
    problem, budget = random_problem(seed, most_operators, shared)
    solution = solve(problem, budget, 1, seconds, allowed=Allowed(in_place=shared))
    least = least_excess(problem, budget, solution.account.excess)
    assert solution.bound <= least, f"seed {seed}: the bound {solution.bound} is above the least, {least}"
    return least, solution


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--operators", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", action="store_true", help="results over operands, operands side by side")
    options = parser.parse_args()
    reached = proven = moving = 0
    began = time.process_time()
    for seed in range(options.seed, options.seed + options.graphs):
        least, solution = compare(seed, options.operators, shared=options.shared)
        reached += solution.account.excess == least
        proven += solution.proven
        moving += least > 0
        if solution.account.excess != least or not solution.proven:
            print(f"seed {seed}: {solution.account.excess} bytes, least {least}, bound {solution.bound}")
    print(f"{options.graphs} problems, {moving} of which must move more than the compulsory bytes: {reached} reached the least, "
          f"{proven} proven, {time.process_time() - began:.0f} s")


if __name__ == "__main__":
    main()
