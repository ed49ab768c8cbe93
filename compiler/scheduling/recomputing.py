"""Cheap tensors are computed again where they are read, instead of being kept: who reads one reads its operand and computes on the way.

`recomputed` takes out light operators (elementwise) of one operand that takes as much as their result: never more is alive than before, and
where the operand is read by others too, less. Each reader does the work once more. Compulsory bytes stay as they are.

`repeated` is for operators that are run as they are, so that none can compute another's on the way: a light one runs again before each
that reads its result, which needs room for the result and none for keeping it until then.
"""

from __future__ import annotations

from itertools import count

from msgspec import Struct
from msgspec.structs import replace

from .problem import Operator, Problem, make_problem, renumbered


class Repeated(Struct, frozen=True):
    """The problem, and for each operator and each tensor that was added, by its name, the name of the one that it repeats."""

    problem: Problem
    operators: dict[str, str]
    tensors: dict[str, str]


def recomputed(problem: Problem) -> Problem:
    """The problem without light operators that each reader can repeat."""
    instead: dict[int, tuple[int, ...]] = {}  # what is read for a tensor that is not there any more
    taken: dict[int, int] = {}             # operations that its readers do for it
    operators = []
    for operator in problem.operators:
        again = sum(taken[t] for t in operator.inputs if t in instead)
        operators.append(replace(_reading(operator, instead), operations=operator.operations + again))
        if _may_go(problem, operators[-1]):
            gone = operators.pop()
            instead[gone.outputs[0]] = operands_of(problem, operator, instead)
            taken[gone.outputs[0]] = gone.operations
    return renumbered(problem, operators, set(range(len(problem.tensors))) - set(instead))


def operands_of(problem: Problem, operator: Operator, instead: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    """The operands of an operator, in the order in which they lie where they are joined."""
    here = _reading(operator, instead)
    return here.joined[0] if here.joined else here.inputs


def _may_go(problem: Problem, operator: Operator) -> bool:
    whole = operator.joined[0] if operator.joined else operator.inputs
    result = operator.outputs[0] if len(operator.outputs) == 1 else -1
    readers = [problem.operators[n] for n in problem.consumers[result]] if result >= 0 else []
    return (operator.light and bool(readers) and result not in problem.results and set(whole) == set(operator.inputs)
            and (len(whole) == 1 or len(operator.joined) == 1) and not set(whole) & set(problem.pinned)
            and sum(problem.tensors[t].bytes for t in whole) == problem.tensors[result].bytes
            and not any(result in group for reader in readers for group in reader.joined)
            and (len(whole) == 1 or all(any(problem.tensors[t].bytes for t in reader.outputs) for reader in readers)))


def _reading(operator: Operator, instead: dict[int, tuple[int, ...]]) -> Operator:
    """The operator with operands for what is gone. It reads an operand of these as it read what is gone, and as it read that before."""
    gone = [t for t in operator.inputs if t in instead]
    if not gone:
        return operator
    after = {t: instead.get(t, (t,)) for t in operator.inputs}
    inputs = tuple(dict.fromkeys(t for row in after.values() for t in row))
    slices = []
    for how in operator.slices:
        listed = {t: (extra, extent) for t, extra, extent in how.operands}
        operands = {}
        for t in inputs:
            read = [old for old, row in after.items() if t in row]  # what this operand stands for
            if all(old in listed and len(after[old]) == 1 for old in read):
                operands[t] = max(listed[old] for old in read)
        slices.append(replace(how, operands=tuple((t, extra, extent) for t, (extra, extent) in operands.items())))
    in_place = tuple(t for t in inputs if all(old in operator.in_place and len(row) == 1 for old, row in after.items() if t in row))
    return replace(operator, inputs=inputs, in_place=in_place, slices=tuple(slices),
                   joined=(*operator.joined, *(instead[t] for t in gone if len(instead[t]) > 1)))


def repeated(problem: Problem) -> Repeated:
    """The problem with a light operator for each reader of its result. Names of operators and of tensors must be unique."""
    tensors, rows = list(problem.tensors), list(problem.operators)
    names = {t.name for t in tensors} | {o.name for o in rows}
    operators: dict[str, str] = {}
    made: dict[str, str] = {}
    for operator in reversed(problem.operators):  # so that what reads the result has been repeated before
        if not _may_run_again(problem, operator):
            continue
        result = operator.outputs[0]
        for reader in [row for row in rows if result in row.inputs][1:]:
            again, copy = _unused(names, operator.name), _unused(names, tensors[result].name)
            operators[again], made[copy] = operator.name, tensors[result].name
            place = {t: t for t in range(len(tensors))} | {result: len(tensors)}
            tensors.append(replace(tensors[result], name=copy))
            number = rows.index(reader)
            rows[number:number + 1] = [replace(operator, name=again, outputs=(place[result],)), reader.with_tensors(place)]
    return Repeated(make_problem(problem.name, tensors, rows, problem.results, problem.pinned), operators, made)


def _may_run_again(problem: Problem, operator: Operator) -> bool:
    """A light operator whose operand takes no more than its only result, which is no result of the problem."""
    return (operator.light and len(operator.inputs) == len(operator.outputs) == 1 and not operator.joined
            and operator.outputs[0] not in problem.results
            and problem.tensors[operator.inputs[0]].bytes <= problem.tensors[operator.outputs[0]].bytes)


def _unused(names: set[str], name: str) -> str:
    found = next(again for again in (f"{name} again {number}" for number in count(1)) if again not in names)
    names.add(found)
    return found
