"""What is to be scheduled, and what a schedule is: plain records that solvers, checker and reports share.

A `Problem` has tensors with their bytes and operators in an order in which they can run. Graph inputs and parameters lie
off the chip at the beginning, results must lie there at the end. An operator runs with all its operands and results in the
scratchpad. Tensors are never changed in place, so what was written off the chip once need not be written again.

A `Schedule` is a list of steps; `Run` says where the results of an operator lie. Solvers add no fields: whatever is true
of a schedule is to be seen from its steps. `make_problem` guarantees that operators stand in an order in which they can run,
that each tensor has at most one producer, and that sizes are known; it raises CompileError otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from msgspec import Struct

from ..ir.errors import CompileError

VALUE, INPUT, PARAMETER = "value", "input", "parameter"
PARAMETERS = ("ignored", "streamed", "resident")
LARGEST = 2**48  # bytes of a tensor or a budget: more than a machine can address


class Tensor(Struct, frozen=True):
    """`kind`: computed by an operator, or off the chip from the beginning as an input or a parameter."""

    name: str
    bytes: int
    kind: str = VALUE


class Operator(Struct, frozen=True):
    """What runs in one step. `inputs` and `outputs` are positions among the problem's tensors, each once.

    `light`: as cheap as copying, element by element, so that it may be computed where its operand is.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kind: str = ""
    light: bool = False


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
    rows = [Operator(o.name, tuple(dict.fromkeys(o.inputs)), tuple(dict.fromkeys(o.outputs)), o.kind, o.light) for o in operators]
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
    for number, operator in enumerate(problem.operators):
        if not operator.light:
            continue
        for tensor in operator.inputs:
            before = problem.producer[tensor]
            if before >= 0 and problem.consumers[tensor] == (number,) and tensor not in problem.results \
                    and len(problem.operators[before].outputs) == 1 and _may_join(problem, group, number, group[before]):
                group[number] = group[before]
                break
    members: dict[int, list[int]] = {}
    for number, leader in enumerate(group):
        members.setdefault(leader, []).append(number)
    operators, kept = [], set(problem.results)
    for parts in members.values():
        made = {t for n in parts for t in problem.operators[n].outputs}
        outputs = [t for t in made if t in problem.results or any(c not in parts for c in problem.consumers[t])]
        inputs = list(dict.fromkeys(t for n in parts for t in problem.operators[n].inputs if t not in made))
        kept |= {*outputs, *inputs}
        first = problem.operators[parts[0]]
        kind = "+".join(problem.operators[n].kind for n in parts)
        operators.append(Operator(first.name, tuple(inputs), tuple(sorted(outputs)), kind, all(problem.operators[n].light for n in parts)))
    return _renumbered(problem, operators, kept)


def _may_join(problem: Problem, group: Sequence[int], number: int, leader: int) -> bool:
    """No other operand of the operator depends on the group that it would join: else the two would wait for each other."""
    pending = [problem.producer[t] for t in problem.operators[number].inputs]
    seen = set[int]()
    inside = {n for n in range(number) if group[n] == leader}
    pending = [p for p in pending if p >= 0 and p not in inside]
    while pending:
        here = pending.pop()
        if here in inside:
            return False
        if here in seen:
            continue
        seen.add(here)
        whole = [n for n in range(number) if group[n] == group[here]]
        seen.update(whole)
        pending += [problem.producer[t] for n in whole for t in problem.operators[n].inputs
                    if problem.producer[t] >= 0 and problem.producer[t] not in seen]
    return True


def _renumbered(problem: Problem, operators: Sequence[Operator], kept: set[int]) -> Problem:
    """The problem with these operators and only the tensors that are kept."""
    place = {old: new for new, old in enumerate(sorted(kept))}
    rows = [Operator(o.name, tuple(place[t] for t in o.inputs), tuple(place[t] for t in o.outputs), o.kind, o.light) for o in operators]
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
    operators = [Operator(o.name, tuple(t for t in o.inputs if t not in parameters), o.outputs, o.kind, o.light) for o in problem.operators]
    kept = {t for t in range(len(problem.tensors)) if t not in parameters or t in problem.results}
    return _renumbered(problem, operators, kept)
