"""What launches may share, beyond operators that each fill memory of their own: the problem with it, and what each operator launches then.

A result lies over an operand where the kernel can be made to store each element where it read it (`lowering.in_place`); a
concatenation of neighbours is no launch, and who reads it reads its parts side by side; a cheap value is launched again before each
that reads it. Assumes a problem of `operators_of`, whose operators and tensors have names of their own. Guarantees: every operator of the
new problem launches what an operator of the old one did, on values of the same bytes, in `places`.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from ..ir.loop import Kernel
from ..lowering.in_place import writes_over
from ..lowering.lower import Draft
from ..scheduling.aliasing import without_copies
from ..scheduling.beyond import Allowed
from ..scheduling.permissions import concatenated, is_light
from ..scheduling.problem import Operator, Problem
from ..scheduling.recomputing import repeated
from .operators import Key, Operators, key_of


def shared(operators: Operators, allowed: Allowed, alignment: int) -> Operators:
    """The operators with what is allowed."""
    over: dict[tuple[str, int], Kernel] = {}
    names = {draft.kernel.name for group in operators.groups for draft in group}
    rows = [_permitted(operator, group, operators, allowed, over, names)
            for operator, group in zip(operators.problem.operators, operators.groups)]
    whole = operators.problem
    permitted = Problem(whole.name, whole.tensors, tuple(rows), whole.results, whole.pinned)
    problem = without_copies(permitted, alignment) if allowed.concat else permitted
    added = repeated(problem) if allowed.recompute else None
    if added is not None:
        problem = added.problem
    return _traced(operators, permitted, problem, added.operators if added else {}, added.tensors if added else {}, over)


# --- permissions -----------------------------------------------------------------------------------------------------


def _permitted(operator: Operator, group: list[Draft], operators: Operators, allowed: Allowed, over: dict[tuple[str, int], Kernel],
               names: set[str]) -> Operator:
    """The operator with what it may share; kernels that store over an operand go to `over`."""
    if len(group) != 1 or len(operator.outputs) != 1:
        return operator
    draft, = group
    in_place: list[int] = []
    for position, tensor in _replaceable(draft, operators, operator.outputs[0]) if allowed.in_place else ():
        key = draft.kernel.name, position
        if key not in over:
            made = _stored_over(draft.kernel, position, names)
            if made is None:
                continue
            over[key] = made
        in_place.append(tensor)
    order = [operators.tensors.get(key_of(draft.spots[position]), -1) for position in concatenated(draft.node)]
    joins = sorted(order) == sorted(operator.inputs)
    return replace(operator, in_place=tuple(in_place), concat=joins, light=is_light(draft.node),
                   inputs=tuple(order) if joins else operator.inputs)


def _replaceable(draft: Draft, operators: Operators, result: int) -> list[tuple[int, int]]:
    """Buffers (by position) that are all of a tensor of the result's size, which no other buffer is of; and the tensors."""
    keys = [key_of(spot) for spot in draft.spots]
    sizes = operators.problem.tensors
    found = []
    for position, (key, spot) in enumerate(zip(keys[:-1], draft.spots)):
        tensor = operators.tensors.get(key, -1)
        if tensor >= 0 and keys.count(key) == 1 and spot.offset == 0 and sizes[tensor].bytes == sizes[result].bytes:
            found.append((position, tensor))
    return found


def _stored_over(kernel: Kernel, position: int, names: set[str]) -> Kernel | None:
    """The kernel with its result, the last buffer, in the place of an operand; None where it might read what it replaced."""
    operand, result = kernel.buffers[position], kernel.buffers[-1]
    if [buffer.space for buffer in kernel.buffers] != ["in"] * (len(kernel.buffers) - 1) + ["out"]:
        return None
    if (operand.dtype, operand.shape) != (result.dtype, result.shape):
        return None
    name = f"{kernel.name}_over_{operand.name}"
    while name in names:
        name += "_"
    made = writes_over(kernel, operand.name, result.name, name)
    if made is not None:
        names.add(name)
    return made


# --- what operators launch -------------------------------------------------------------------------------------------


def _traced(operators: Operators, permitted: Problem, problem: Problem, repeats: Mapping[str, str], copies: Mapping[str, str],
            over: dict[tuple[str, int], Kernel]) -> Operators:
    """What each operator of the new problem launches, and on which tensors, by the names of both."""
    numbers = {operator.name: number for number, operator in enumerate(operators.problem.operators)}
    groups: list[list[Draft]] = []
    places: list[dict[Key, int]] = []
    for operator in problem.operators:
        number = numbers[repeats.get(operator.name, operator.name)]
        groups.append(operators.groups[number])
        there = {_origin(problem, copies, t): t for t in (*operator.inputs, *operator.outputs)}
        before = permitted.operators[number]
        touched = {*before.inputs, *before.outputs}
        places.append({key: _stand_in(permitted, t, there) for key, t in operators.places[number].items() if t in touched})
    left = {_origin(problem, {}, t): t for t in range(len(problem.tensors))}
    tensors = {key: left[name] for key, t in operators.tensors.items() if (name := permitted.tensors[t].name) in left}
    return Operators(operators.drafted, problem, groups, tensors, places, over)


def _origin(problem: Problem, copies: Mapping[str, str], tensor: int) -> str:
    name = problem.tensors[tensor].name
    return copies.get(name, name)


def _stand_in(permitted: Problem, tensor: int, there: Mapping[str, int]) -> int:
    """The tensor at whose address a tensor begins: of one that is not there any more, the first of its parts."""
    while permitted.tensors[tensor].name not in there:
        operands = permitted.operators[permitted.producer[tensor]].inputs
        tensor = next(t for t in operands if permitted.tensors[t].bytes)
    return there[permitted.tensors[tensor].name]
