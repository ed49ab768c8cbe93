"""Cheap tensors are computed again where they are read, instead of being kept: who reads one reads its operand and computes on the way.

`recomputed` takes out light operators (elementwise) of one operand that takes as much as their result: never more is alive than before, and
where the operand is read by others too, less. Each reader does the work once more. Compulsory bytes stay as they are.
"""

from __future__ import annotations

from msgspec.structs import replace

from .problem import Operator, Problem, renumbered


def recomputed(problem: Problem) -> Problem:
    """The problem without light operators that each reader can repeat."""
    instead: dict[int, tuple[int, ...]] = {}  # what is read for a tensor that is not there any more
    repeated: dict[int, int] = {}             # operations that its readers do for it
    operators = []
    for operator in problem.operators:
        again = sum(repeated[t] for t in operator.inputs if t in instead)
        operators.append(replace(_reading(operator, instead), operations=operator.operations + again))
        if _may_go(problem, operators[-1]):
            gone = operators.pop()
            instead[gone.outputs[0]] = operands_of(problem, operator, instead)
            repeated[gone.outputs[0]] = gone.operations
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
