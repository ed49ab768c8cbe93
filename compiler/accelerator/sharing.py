"""What launches may share, beyond operators that each fill memory of their own: the problem with it, and what each operator launches then.

A result lies over an operand where the kernel can be made to store each element where it read it (`lowering.in_place`); a
concatenation of neighbours is no launch, and who reads it reads its parts side by side; a cheap value is launched again before each
that reads it; a chain of operators runs slice by slice (`slices.py`), whose result then lies over no operand. Assumes a problem of
`operators_of`, whose operators and tensors have names of their own. Guarantees: every operator of the new problem launches what
operators of the old one did, on values of the same bytes or slices of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..ir.loop import Kernel
from ..lowering.in_place import writes_over
from ..lowering.lower import Draft, Drafts
from ..scheduling.aliasing import without_copies
from ..scheduling.beyond import Allowed
from ..scheduling.exact import working_set
from ..scheduling.permissions import concatenated, is_light
from ..scheduling.problem import Operator, Problem
from ..scheduling.recomputing import repeated
from ..scheduling.slicing import PREFIX, sliced
from .operators import Key, Member, Operators, key_of, launches_of
from .slices import Parts, named_alike, parts_of, permitted_slices, with_counts


def shared(operators: Operators, allowed: Allowed, budget: int, alignment: int) -> Operators:
    """The operators with what is allowed."""
    over: dict[tuple[str, int], Kernel] = {}
    names = {draft.kernel.name for group in operators.groups for draft in launches_of(group)}
    rows = [_permitted(operator, group, operators, allowed, over, names)
            for operator, group in zip(operators.problem.operators, operators.groups)]
    whole = operators.problem
    permitted = Problem(whole.name, whole.tensors, tuple(named_alike(whole, rows)), whole.results, whole.pinned)
    problem = without_copies(permitted, alignment) if allowed.concat else permitted
    trace = _Trace(operators, permitted)
    if allowed.recompute:
        added = repeated(problem)
        problem, trace.operator_origins, trace.tensor_origins = added.problem, added.operators, added.tensors
    if allowed.slices:
        problem = trace.sliced(problem, budget, alignment)
    return trace.operators_of(problem, over)


# --- permissions -----------------------------------------------------------------------------------------------------


def _permitted(operator: Operator, group: Drafts, operators: Operators, allowed: Allowed, over: dict[tuple[str, int], Kernel],
               names: set[str]) -> Operator:
    """The operator with what it may share; kernels that store over an operand go to `over`."""
    draft = group[0]
    if len(group) != 1 or len(operator.outputs) != 1 or not isinstance(draft, Draft):
        return operator
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
    slices = permitted_slices(operators, draft) if allowed.slices else ()
    return replace(operator, in_place=tuple(in_place), concat=joins, light=is_light(draft.node), slices=slices,
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


class _Trace(Struct):
    """From operators and tensors of a rewritten problem to those of the one that was `permitted`, by their names. The origins: of what
    was added, the name of what it repeats. `parts`: what chains launch for slices, by name and number of slices; where they can not, the
    member that does not."""

    operators: Operators
    permitted: Problem
    operator_origins: dict[str, str] = {}
    tensor_origins: dict[str, str] = {}
    parts: dict[tuple[str, int], Parts | int] = {}

    def sliced(self, problem: Problem, budget: int, alignment: int) -> Problem:
        """Chains slice by slice. Where windows make them take more than was foreseen, shorter ones are tried, as for more room."""
        found = self.sliced_for(problem, budget, alignment)
        for more in (2, 4):
            if working_set(found, alignment)[0] > budget:
                found = min(found, self.sliced_for(problem, more * budget, alignment), key=lambda made: working_set(made, alignment)[0])
        return found

    def sliced_for(self, problem: Problem, budget: int, alignment: int) -> Problem:
        """Of operators that have kernels for slices: where one has none, fewer along all that axis are tried, and it is whole where it has
        none for two."""
        counts: dict[str, int] = {}
        whole = set[str]()
        while True:
            found = sliced(with_counts(problem, counts, whole), budget, alignment, over=False)
            chains = [operator for operator in found.operators if _is_chain(operator)]
            missing = next((operator for operator in chains if isinstance(self.parts_of(operator), int)), None)
            if missing is None:
                return self.with_rooms(found, chains)
            how, number = missing.slices[0], self.parts_of(missing)
            assert isinstance(number, int)
            if how.count > 2:
                counts[how.axis] = how.count // 2
            else:
                whole.add(_members(missing)[number])
                counts.pop(how.axis, None)

    def parts_of(self, chain: Operator) -> Parts | int:
        key = chain.name, chain.slices[0].count
        if key not in self.parts:
            drafts = [draft for name in _members(chain) for draft in launches_of(self.operators.groups[self.number(name)])]
            self.parts[key] = parts_of(self.operators.drafted, drafts, key[1])
        return self.parts[key]

    def with_rooms(self, problem: Problem, chains: Sequence[Operator]) -> Problem:
        """The problem with what slices within its chains take: windows of several members reach over more rows than those of one."""
        tensors = list(problem.tensors)
        for chain in chains:
            made = self.parts_of(chain)
            assert isinstance(made, Parts)
            sizes = {self.permitted.tensors[self.operators.tensors[key]].name: size for key, size in made.local.items()}
            for t in chain.outputs[1:]:
                tensors[t] = replace(tensors[t], bytes=sizes[self.origin(tensors[t].name)])
        return replace(problem, tensors=tuple(tensors))

    def number(self, name: str) -> int:
        origin = self.operator_origins.get(name, name)
        return next(n for n, operator in enumerate(self.permitted.operators) if operator.name == origin)

    def operators_of(self, problem: Problem, over: dict[tuple[str, int], Kernel]) -> Operators:
        """What each operator of the problem launches."""
        groups: list[Drafts] = []
        places: list[dict[Key, int]] = []
        chains: dict[int, list[Member]] = {}
        for number, operator in enumerate(problem.operators):
            names = _members(operator)
            numbers = [self.number(name) for name in names]
            found = [self.places(problem, operator, n) for n in numbers]
            groups.append([draft for n in numbers for draft in self.operators.groups[n]])
            places.append(found[0])
            if _is_chain(operator):
                made = self.parts_of(operator)
                assert isinstance(made, Parts)
                chains[number] = [Member(there, parts) for there, parts in zip(found, made.members)]
        left = {tensor.name: t for t, tensor in enumerate(problem.tensors)}
        tensors = {key: left[name] for key, t in self.operators.tensors.items() if (name := self.permitted.tensors[t].name) in left}
        return Operators(self.operators.drafted, problem, groups, tensors, places, over, chains)

    def places(self, problem: Problem, operator: Operator, number: int) -> dict[Key, int]:
        """Where the spots of an operator that was permitted lie, among the operands and results of one that it is now, or is in."""
        there = {self.origin(problem.tensors[t].name): t for t in (*operator.inputs, *operator.outputs)}
        before = self.permitted.operators[number]
        touched = {*before.inputs, *before.outputs}
        return {key: self.stand_in(t, there) for key, t in self.operators.tensors.items() if t in touched}

    def origin(self, name: str) -> str:
        if name.startswith(PREFIX):
            return self.origin(name.removeprefix(PREFIX))
        return self.tensor_origins.get(name, name)

    def stand_in(self, tensor: int, there: Mapping[str, int]) -> int:
        """The tensor at whose address a tensor begins: of one that is not there any more, the first of its parts."""
        while self.permitted.tensors[tensor].name not in there:
            operands = self.permitted.operators[self.permitted.producer[tensor]].inputs
            tensor = next(t for t in operands if self.permitted.tensors[t].bytes)
        return there[self.permitted.tensors[tensor].name]


def _is_chain(operator: Operator) -> bool:
    return len(_members(operator)) > 1


def _members(operator: Operator) -> list[str]:
    return operator.name.split(", ")
