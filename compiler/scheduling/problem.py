"""What is to be scheduled, and what a schedule is: plain records that solvers, checker and reports share.

A `Problem` has tensors with their bytes and operators in an order in which they can run. Graph inputs and parameters lie
off the chip at the beginning, results must lie there at the end. An operator runs with all its operands and results in the
scratchpad. Tensors are never changed, so what was written off the chip once need not be written again; a result may take the place
of an operand where the operator allows that (`in_place`), and the operand is gone then.

A `Schedule` is a list of steps; `Run` says where the results of an operator lie. Solvers add no fields: whatever is true
of a schedule is to be seen from its steps. `make_problem` guarantees that operators stand in an order in which they can run,
that each tensor has at most one producer, and that sizes are known; it raises CompileError otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from msgspec import Struct
from msgspec.structs import replace

from ..ir.errors import CompileError

VALUE, INPUT, PARAMETER = "value", "input", "parameter"
PARAMETERS = ("ignored", "streamed", "resident")
LARGEST = 2**48  # bytes of a tensor or a budget: more than a machine can address


class Tensor(Struct, frozen=True):
    """`kind`: computed by an operator, or off the chip from the beginning as an input or a parameter."""

    name: str
    bytes: int
    kind: str = VALUE


class Sliced(Struct, frozen=True):
    """An operator can make its first result in up to `count` slices along an axis, one after the other. Of the operands listed each slice
    needs as large a part only, and `extra` of their `extent` rows beside it: (operand, extra, extent). Others are needed whole."""

    axis: str
    count: int
    operands: tuple[tuple[int, int, int], ...] = ()


class Operator(Struct, frozen=True):
    """What runs in one step. `inputs` and `outputs` are positions among the problem's tensors, each once.

    `light`: as cheap as copying, element by element, so that it may be computed where its operand is.
    `in_place`: operands over which the first result may be written, from their first byte on. What is overwritten is gone.
    `joined`: rows of operands or results that are read or written as one: they must lie side by side, in this order.
    `concat`: it does nothing but lay its operands one behind the other in its result.
    `operations`: floating operations, a multiply-add counting two. `elsewhere`: bytes that it reads and that are no tensors here. Both
    are for cycles alone.
    `slices`: how it can run slice by slice. An operator that was made of several so has workspace among its results, which nobody reads.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kind: str = ""
    light: bool = False
    in_place: tuple[int, ...] = ()
    joined: tuple[tuple[int, ...], ...] = ()
    concat: bool = False
    slices: tuple[Sliced, ...] = ()
    operations: int = 0
    elsewhere: int = 0

    def with_tensors(self, place: Mapping[int, int]) -> Operator:
        """The operator with its tensors renumbered; those that `place` does not have are no operands any more."""
        return replace(self, inputs=tuple(place[t] for t in self.inputs if t in place), outputs=tuple(place[t] for t in self.outputs),
                       in_place=tuple(place[t] for t in self.in_place if t in place),
                       joined=tuple(tuple(place[t] for t in row) for row in self.joined),
                       slices=tuple(replace(s, operands=tuple((place[t], extra, extent) for t, extra, extent in s.operands if t in place))
                                    for s in self.slices))


class Problem(Struct, frozen=True, dict=True):
    """`results` must be off the chip at the end; `pinned` parameters are in the scratchpad whenever an operator runs."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    results: tuple[int, ...]
    pinned: tuple[int, ...] = ()

    @cached_property
    def producer(self) -> tuple[int, ...]:
        """For each tensor the operator that computes it, or -1."""
        found = [-1] * len(self.tensors)
        for number, operator in enumerate(self.operators):
            for tensor in operator.outputs:
                found[tensor] = number
        return tuple(found)

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each tensor the operators that read it."""
        found: list[list[int]] = [[] for _ in self.tensors]
        for number, operator in enumerate(self.operators):
            for tensor in operator.inputs:
                found[tensor].append(number)
        return tuple(map(tuple, found))

    @property
    def compulsory(self) -> int:
        """Bytes that every schedule moves: each input that is read and each pinned one, once, and each result that is computed."""
        read = {t for operator in self.operators for t in operator.inputs if self.tensors[t].kind != VALUE} | set(self.pinned)
        written = {t for t in self.results if self.tensors[t].kind == VALUE}
        return sum(self.tensors[t].bytes for t in (*read, *written))


# --- schedules -----------------------------------------------------------------------------------------------------------


class Run(Struct, frozen=True, tag="run"):
    """An operator runs; its results lie at `addresses`, in the order of its outputs."""

    operator: int
    addresses: tuple[int, ...]


class Fetch(Struct, frozen=True, tag="fetch"):
    """A tensor is copied from off the chip to an address."""

    tensor: int
    address: int


class Spill(Struct, frozen=True, tag="spill"):
    """A tensor is copied off the chip; it stays where it is too."""

    tensor: int


class Free(Struct, frozen=True, tag="free"):
    """The place of a tensor may be used by others."""

    tensor: int


Step = Run | Fetch | Spill | Free


class Schedule(Struct, frozen=True):
    """Steps in time; addresses are bytes from the beginning of the scratchpad."""

    steps: tuple[Step, ...]


# --- making problems -----------------------------------------------------------------------------------------------------


def rounded(size: int, alignment: int) -> int:
    """What a tensor of that many bytes takes: whole units of the alignment."""
    return -(-size // alignment) * alignment


def make_problem(name: str, tensors: Sequence[Tensor], operators: Iterable[Operator], results: Iterable[int],
                 pinned: Iterable[int] = ()) -> Problem:
    """The problem with its operators sorted so that each stands behind those it needs, else in the order given."""
    kept = tuple(dict.fromkeys(results))
    rows = [replace(o, inputs=tuple(dict.fromkeys(o.inputs)), outputs=tuple(dict.fromkeys(o.outputs))) for o in operators]
    _check_parts(tensors, rows)
    producer: dict[int, int] = {}
    for number, row in enumerate(rows):
        for tensor in row.outputs:
            if tensor in producer or tensors[tensor].kind != VALUE:
                other = rows[producer[tensor]].name if tensor in producer else f"nothing: it is an {tensors[tensor].kind}"
                raise CompileError(f"{tensors[tensor].name} is computed by {row.name} and by {other}")
            producer[tensor] = number
    for tensor in {t for row in rows for t in row.inputs} | set(kept):
        if tensors[tensor].kind == VALUE and tensor not in producer:
            raise CompileError(f"{tensors[tensor].name} is needed, but no operator computes it")
    return Problem(name, tuple(tensors), tuple(_sorted(rows, producer)), kept, tuple(dict.fromkeys(pinned)))


def _check_parts(tensors: Sequence[Tensor], rows: Sequence[Operator]) -> None:
    for tensor in tensors:
        if not 0 <= tensor.bytes <= LARGEST:
            raise CompileError(f"tensor {tensor.name} has {tensor.bytes} bytes, expected 0 to {LARGEST}")
    for row in rows:
        for number in (*row.inputs, *row.outputs):
            if not 0 <= number < len(tensors):
                raise CompileError(f"operator {row.name}: there is no tensor {number}, only {len(tensors)}")
        if set(row.in_place) - set(row.inputs) or row.in_place and not row.outputs:
            raise CompileError(f"operator {row.name}: only operands can be overwritten, and by a result")
        for group in row.joined:
            if set(group) - {*row.inputs, *row.outputs} or len(set(group)) != len(group) or not all(tensors[t].bytes for t in group):
                raise CompileError(f"operator {row.name}: what is joined must be operands or results with bytes, each once")
        if row.joined and not any(tensors[t].bytes for t in row.outputs):
            raise CompileError(f"operator {row.name}: operands are joined for nothing: no result has any bytes")


def _sorted(rows: Sequence[Operator], producer: dict[int, int]) -> list[Operator]:
    """Depth first from each operator in turn; CompileError with the operators of a cycle."""
    done, order, path = set[int](), list[int](), list[int]()
    for root in range(len(rows)):
        stack = [root]
        while stack:
            number = stack[-1]
            if number in done:
                stack.pop()
                continue
            if path and path[-1] == number:
                path.pop()
                stack.pop()
                done.add(number)
                order.append(number)
                continue
            path.append(number)
            waiting = [producer[t] for t in rows[number].inputs if t in producer and producer[t] not in done]
            met = next((w for w in waiting if w in path), None)
            if met is not None:
                cycle = [rows[n].name for n in (*path[path.index(met):], met)]
                raise CompileError(f"the operators need each other in a cycle: {' <- '.join(cycle)}")
            stack += reversed(waiting)
    return [rows[number] for number in order]


def fused(problem: Problem) -> Problem:
    """Light operators joined to the one before them, where they alone read its only result: one kernel each."""
    group = list(range(len(problem.operators)))  # the operator that each becomes a part of
    members = {number: [number] for number in group}
    for number, operator in enumerate(problem.operators):
        if not operator.light or operator.joined:
            continue
        for tensor in operator.inputs:
            before = problem.producer[tensor]
            if before >= 0 and problem.consumers[tensor] == (number,) and tensor not in problem.results \
                    and len(problem.operators[before].outputs) == 1 and _may_join(problem, group, members, number, group[before]):
                group[number] = group[before]
                members[group[before]] += members.pop(number)
                break
    operators, kept = [], set(problem.results)
    for parts in members.values():
        made = {t for n in parts for t in problem.operators[n].outputs}
        outputs = [t for t in made if t in problem.results or any(c not in parts for c in problem.consumers[t])]
        inputs = list(dict.fromkeys(t for n in parts for t in problem.operators[n].inputs if t not in made))
        kept |= {*outputs, *inputs}
        first = problem.operators[parts[0]]
        kind = "+".join(problem.operators[n].kind for n in parts)
        operators.append(Operator(first.name, tuple(inputs), tuple(sorted(outputs)), kind, all(problem.operators[n].light for n in parts),
                                  _overwritable(problem, parts, inputs, outputs), first.joined, first.concat and len(parts) == 1,
                                  _slices_of_group(problem, parts, made) if len(outputs) == 1 else (),
                                  *totals([problem.operators[n] for n in parts])))
    return renumbered(problem, operators, kept)


def totals(operators: Iterable[Operator]) -> tuple[int, int]:
    """Operations, and bytes read elsewhere, of operators that become one."""
    rows = list(operators)
    return sum(row.operations for row in rows), sum(row.elsewhere for row in rows)


def _overwritable(problem: Problem, parts: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]) -> tuple[int, ...]:
    """Operands of a group that its only result may lie over: all that read them in it could be written over them."""
    if len(outputs) != 1:
        return ()
    size = problem.tensors[outputs[0]].bytes
    return tuple(t for t in inputs if problem.tensors[t].bytes == size
                 and all(t in problem.operators[n].in_place for n in parts if t in problem.operators[n].inputs))


def _slices_of_group(problem: Problem, parts: Sequence[int], made: set[int]) -> tuple[Sliced, ...]:
    """How a group can run slice by slice: as all its operators can, what they hand on sliced too."""
    rows = [problem.operators[n] for n in parts]
    found = []
    for axis in {s.axis: None for s in rows[0].slices}:
        slices = [next((s for s in row.slices if s.axis == axis), None) for row in rows]
        operands: dict[int, tuple[int, int]] = {}
        whole = set[int]()
        for row, how in zip(rows, slices):
            listed = {} if how is None else {t: (extra, extent) for t, extra, extent in how.operands}
            whole |= set(row.inputs) - set(listed)
            operands |= {t: max(listed[t], operands.get(t, (0, 1))) for t in listed}
        if None not in slices and not made & whole:
            count = min(s.count for s in slices if s is not None)
            found.append(Sliced(axis, count, tuple((t, *operands[t]) for t in operands if t not in made | whole)))
    return tuple(found)


def _may_join(problem: Problem, group: Sequence[int], members: Mapping[int, Sequence[int]], number: int, leader: int) -> bool:
    """No other operand of the operator depends on the group that it would join: else the two would wait for each other."""
    pending = {group[p] for p in (problem.producer[t] for t in problem.operators[number].inputs) if p >= 0} - {leader}
    seen = set(pending)
    while pending:
        here = pending.pop()
        for member in members[here]:
            for tensor in problem.operators[member].inputs:
                before = problem.producer[tensor]
                if before < 0 or group[before] in seen:
                    continue
                if group[before] == leader:
                    return False
                seen.add(group[before])
                pending.add(group[before])
    return True


def renumbered(problem: Problem, operators: Sequence[Operator], kept: set[int]) -> Problem:
    """The problem with these operators and only the tensors that are kept."""
    place = {old: new for new, old in enumerate(sorted(kept))}
    rows = [o.with_tensors(place) for o in operators]
    return make_problem(problem.name, [problem.tensors[t] for t in sorted(kept)], rows, (place[t] for t in problem.results),
                        (place[t] for t in problem.pinned if t in place))


def with_parameters(problem: Problem, how: str) -> Problem:
    """Parameters `ignored` (they take no place and move nothing), `streamed` (like inputs) or `resident` (there throughout)."""
    parameters = {t for t, tensor in enumerate(problem.tensors) if tensor.kind == PARAMETER}
    if how == "streamed":
        return problem
    if how == "resident":
        used = {t for operator in problem.operators for t in operator.inputs}
        return Problem(problem.name, problem.tensors, problem.operators, problem.results, tuple(sorted(parameters & used)))
    if how != "ignored":
        raise CompileError(f"parameters: found {how!r}, expected one of {', '.join(PARAMETERS)}")
    kept = {t for t in range(len(problem.tensors)) if t not in parameters or t in problem.results}
    there = {t: t for t in range(len(problem.tensors)) if t not in parameters}
    elsewhere = [o.elsewhere + sum(problem.tensors[t].bytes for t in parameters.intersection(o.inputs)) for o in problem.operators]
    operators = [replace(o, joined=tuple(row for row in o.joined if not parameters.intersection(row)), elsewhere=n).with_tensors(there)
                 for o, n in zip(problem.operators, elsewhere)]
    return renumbered(problem, operators, kept)
