"""What tensors may share, beyond whole operators that each fill memory of their own: results over operands, and no copies to concatenate.

`without_copies` takes out operators that lay tensors one behind the other: who reads the result reads its parts, which must lie side by
side then (`Operator.joined`). That is possible where the parts are whole units, where no tensor is wanted beside two different ones,
and where the result is not one of the whole problem. Compulsory bytes stay as they are. `separate` takes back what operators allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from msgspec.structs import replace

from .problem import PARAMETER, Operator, Problem, renumbered


def separate(problem: Problem) -> Problem:
    """The problem in which no result lies over an operand."""
    operators = tuple(replace(o, in_place=()) for o in problem.operators)
    return Problem(problem.name, problem.tensors, operators, problem.results, problem.pinned)


def without_copies(problem: Problem, alignment: int) -> Problem:
    """The problem without those operators that only concatenate and need not be."""
    parts: dict[int, tuple[int, ...]] = {}  # what stands for a tensor that is not there any more
    right: dict[int, int] = {}
    left: dict[int, int] = {}
    for operator in problem.operators:
        result = operator.outputs[0]
        row = [t for operand in operator.inputs for t in parts.get(operand, (operand,)) if problem.tensors[t].bytes]
        if operator.concat and _may_go(problem, operator, row, alignment) and _fits(row, right, left):
            parts[result] = tuple(row)
            for one, other in pairwise(row):
                right[one], left[other] = other, one
    operators = [_reading_parts(operator, parts) for operator in problem.operators if operator.outputs[:1] not in [(t,) for t in parts]]
    return renumbered(problem, operators, set(range(len(problem.tensors))) - set(parts))


def _may_go(problem: Problem, operator: Operator, row: Sequence[int], alignment: int) -> bool:
    result = operator.outputs[0]
    readers = [problem.operators[n] for n in problem.consumers[result]]
    return (bool(readers) and result not in problem.results and len(set(row)) == len(row) > 0
            and sum(problem.tensors[t].bytes for t in row) == problem.tensors[result].bytes
            and all(problem.tensors[t].bytes % alignment == 0 for t in row[:-1])
            and all(problem.tensors[t].kind != PARAMETER for t in row)
            and all(any(problem.tensors[t].bytes for t in reader.outputs) for reader in readers))


def _fits(row: Sequence[int], right: dict[int, int], left: dict[int, int]) -> bool:
    """Neighbours are those that they have already, and none is a neighbour of itself all around."""
    if any(right.get(one, other) != other or left.get(other, one) != one for one, other in pairwise(row)):
        return False
    last, after = row[-1], right | dict(pairwise(row))
    while last in after:
        last = after[last]
        if last == row[-1]:
            return False
    return True


def _reading_parts(operator: Operator, parts: dict[int, tuple[int, ...]]) -> Operator:
    """The operator with parts for what is gone."""
    gone = [t for t in operator.inputs if t in parts]
    if not gone:
        return operator
    inputs = dict.fromkeys(t for operand in operator.inputs for t in parts.get(operand, (operand,)))
    joined = tuple(tuple(t for member in group for t in parts.get(member, (member,))) for group in operator.joined)
    read_as_parts = {t for operand in gone for t in parts[operand]}
    in_place = tuple(t for t in operator.in_place if t not in parts and t not in read_as_parts)
    return replace(operator, inputs=tuple(inputs), in_place=in_place,
                   joined=(*joined, *(parts[t] for t in gone if len(parts[t]) > 1)))
