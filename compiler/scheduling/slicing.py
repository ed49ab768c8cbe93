"""Operators that run slice by slice together, so that what one hands to the other is never whole: a model below its largest operator.

Where a tensor is read by one operator alone, and both can go along one axis (`Operator.slices`: batch, rows, channels, heads), the two
become one operator that makes a slice of the tensor and uses it at once. It needs room for a slice (with the extra rows that a window
reaches over) instead of the tensor: workspace, a result that nobody reads. `sliced` joins chains of operators like that, again and
again, where an operator and what lives beside it exceed the room, and joining lessens the most that is needed at once. What is computed
is the same, in the same order along every other axis; compulsory bytes stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from .heuristics import least_peak
from .problem import Operator, Problem, Sliced, Tensor, make_problem, renumbered, rounded, totals
from .space import Space, bits

SLICES = 16  # of a tensor at most: smaller ones save little room and cost time
LENGTH = 5   # operators that are joined at once
ROUNDS = 12
PREFIX = "slice of "  # the place of a slice is called by the tensor


class Chain(Struct):
    """Operators, each the only reader of the one before; the operator that they become. `between`: the tensors between them, each with its
    bytes, the rows that a slice needs beside its own (all that the windows behind it reach over), and its rows."""

    members: tuple[int, ...]
    between: tuple[tuple[int, int, int, int], ...]
    operator: Operator

    @property
    def workspace(self) -> list[int]:
        """The bytes of a slice of each tensor between."""
        count = min(self.operator.slices[0].count, SLICES)
        return [min(size, size * (-(-extent // count) + extra) // max(1, extent)) for _, size, extra, extent in self.between]


def sliced(problem: Problem, budget: int, alignment: int, over: bool = True) -> Problem:
    """The problem with operators joined where it would not fit otherwise. `over`: whether the result of a chain may lie over an operand."""
    for _ in range(ROUNDS):
        chosen = _best_chains(problem, budget, alignment, over)
        if not chosen:
            break
        problem = _joined(problem, chosen)
    return problem


def _best_chains(problem: Problem, budget: int, alignment: int, over: bool) -> list[Chain]:
    """Chains that have no operator in common, those that gain most first."""
    space = Space(problem, budget, alignment)
    beside = _beside(space)
    needed = [units + besides for units, besides in zip(space.least_units, beside)]
    gains = []
    for start in range(len(problem.operators)):
        for chain in _chains(problem, start, over):
            most = max(needed[n] for n in chain.members)
            if most > space.room:
                units = _units(problem, chain, space, alignment) + max(beside[n] for n in chain.members)
                gains.append((max(units, space.room) - most, len(chain.members), start, chain))
    taken: set[int] = set()
    chosen = []
    for gain, _, _, chain in sorted(gains, key=lambda row: row[:3]):
        if gain < 0 and not taken.intersection(chain.members):
            taken.update(chain.members)
            chosen.append(chain)
    return chosen


def _beside(space: Space) -> list[int]:
    """Units that live beside what each operator needs, in the order of least peak with nothing leaving."""
    found, done, alive = [0] * len(space.need), 0, 0
    for operator in least_peak(space).order:
        found[operator] = space.total(alive & ~space.need[operator])
        done |= 1 << operator
        alive |= space.need[operator]
        for t in bits(space.need[operator]):
            if not space.consumers[t] & ~done:
                alive &= ~(1 << t)
    return found


def _chains(problem: Problem, start: int, over: bool) -> Iterator[Chain]:
    """The chains that begin with an operator."""
    chain = Chain((start,), (), problem.operators[start])
    while len(chain.members) < LENGTH and chain.operator.outputs:
        tensor = chain.operator.outputs[0]
        readers = problem.consumers[tensor]
        if len(readers) != 1 or tensor in problem.results:
            return
        longer = _extended(problem, chain, readers[0], tensor)
        if longer is None:
            return
        chain = longer if over else replace(longer, operator=replace(longer.operator, in_place=()))
        yield chain


def _extended(problem: Problem, chain: Chain, reader: int, tensor: int) -> Chain | None:
    """A chain with one operator more, along the axis that takes least workspace; None where there is no such axis."""
    first, second = chain.operator, problem.operators[reader]
    best: Chain | None = None
    if any(tensor in group for group in second.joined):
        return None
    for one in first.slices:
        for other in second.slices:
            rows = {t: (extra, extent) for t, extra, extent in other.operands}
            if one.axis == other.axis and tensor in rows:
                extra, extent = rows[tensor]
                count = min(one.count, other.count, SLICES)
                grown = extra or min(one.count, SLICES) != count
                if len(first.outputs) > 1 and grown or len(second.outputs) > 1 and min(other.count, SLICES) != count:
                    continue  # what was joined before keeps the slices that it has
                between = tuple((t, size, more + -(-extra * rows_there // max(1, extent)), rows_there)
                                for t, size, more, rows_there in chain.between)
                longer = Chain((*chain.members, reader), (*between, (tensor, problem.tensors[tensor].bytes, extra, extent)),
                               _merged(problem, first, second, tensor, one, other))
                if best is None or sum(longer.workspace) < sum(best.workspace):
                    best = longer
    return best


def _merged(problem: Problem, first: Operator, second: Operator, tensor: int, one: Sliced, other: Sliced) -> Operator:
    """Two operators as one, along an axis of both."""
    reached, rows = next((extra, extent) for t, extra, extent in other.operands if t == tensor)
    before = {t: (extra + -(-reached * extent // max(1, rows)), extent) for t, extra, extent in one.operands}
    behind = {t: (extra, extent) for t, extra, extent in other.operands if t != tensor}
    whole = {*first.inputs} - set(before) | {*second.inputs} - set(behind) - {tensor}
    inputs = tuple(dict.fromkeys((*first.inputs, *(t for t in second.inputs if t != tensor))))
    operands = tuple((t, *max(before.get(t, (0, 1)), behind.get(t, (0, 1)))) for t in inputs if t not in whole)
    # a result may lie over an operand of which each slice is read for the last time before that slice of the result is there
    size = problem.tensors[second.outputs[0]].bytes
    early = {t for t, (extra, _) in before.items() if not extra and problem.tensors[t].bytes == size}
    in_place = tuple(t for t in inputs if (t in second.in_place or t not in second.inputs and t in early)
                     and (t not in first.inputs or t in early))
    return Operator(f"{first.name}, {second.name}", inputs, (*second.outputs, *first.outputs[1:]), f"{first.kind}+{second.kind}", False,
                    in_place, (*first.joined, *second.joined), False, (Sliced(one.axis, min(one.count, other.count), operands),),
                    *totals((first, second)))


def _units(problem: Problem, chain: Chain, space: Space, alignment: int) -> int:
    """Units that a chain needs as one operator."""
    operator = chain.operator
    units = sum(space.units[t] for t in {*operator.inputs, *operator.outputs})
    units += sum(rounded(size, alignment) // alignment for size in chain.workspace)
    result = space.units[operator.outputs[0]]
    return units - (result if any(space.units[t] >= result for t in operator.in_place) else 0)


def _joined(problem: Problem, chosen: list[Chain]) -> Problem:
    tensors, operators = list(problem.tensors), dict(enumerate(problem.operators))
    for chain in chosen:
        slices = range(len(tensors), len(tensors) + len(chain.workspace))
        tensors += [Tensor(f"{PREFIX}{problem.tensors[t].name}", size) for (t, *_), size in zip(chain.between, chain.workspace)]
        for number in chain.members[:-1]:
            del operators[number]
        operators[chain.members[-1]] = replace(chain.operator, outputs=(*chain.operator.outputs, *slices))
    gone = {t for chain in chosen for t, *_ in chain.between}
    whole = make_problem(problem.name, tensors, operators.values(), problem.results, problem.pinned)
    return renumbered(whole, whole.operators, set(range(len(tensors))) - gone)
