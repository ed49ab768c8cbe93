"""The operators of a lowered graph, and the problem of scheduling them.

An operator is a launch, or consecutive ones that store to the same value (a kernel and what prepares for it). A tensor is a value of
the workspace, an input, an output, or a constant where constants are scheduled too. Assumes launches in an order in which they can
run, without control flow. Guarantees: each tensor has one operator that stores to it, and none stores over an operand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..ir.dims import evaluate, is_static, product, symbols_of
from ..ir.errors import CompileError, UnsupportedError
from ..ir.graph import Graph
from ..ir.loop import Kernel
from ..ir.ops.control import Param
from ..ir.program import Launch
from ..lowering.lower import Draft, Drafted, Spot
from ..scheduling.problem import INPUT, PARAMETER, VALUE, Operator, Problem, Tensor, make_problem, with_parameters

Key = tuple[str, int]  # of a spot: its space, and the number, the offset of a constant, or which storage
BANK_BYTES = 64        # that an operator reads and writes in a bank and cycle


class Part(Struct, frozen=True):
    """A launch for a slice of rows, of which `first` is the first."""

    first: int
    draft: Draft


class Member(Struct, frozen=True):
    """What an operator of a chain launches, slice by slice. `places`: for each spot the tensor at whose address it begins; `steps`: for
    each buffer the bytes of a row, 0 for one that is needed whole; `local`: tensors that hold a slice alone."""

    places: dict[Key, int]
    parts: tuple[Part, ...]
    steps: tuple[int, ...]
    local: frozenset[int]


class Operators(Struct):
    """`groups`: the launches of each of the problem's operators. `tensors`: the number of each spot that is scheduled; `places`: for each
    operator the tensor at whose address a spot begins. `over`: kernels that store over an operand, by the name of the one that does
    not and the operand's position among its buffers. `chains`: what operators launch that run slice by slice."""

    drafted: Drafted
    problem: Problem
    groups: list[list[Draft]]
    tensors: dict[Key, int]
    places: list[dict[Key, int]]
    over: dict[tuple[str, int], Kernel] = {}
    chains: dict[int, list[Member]] = {}


def refuse_open_sizes(graph: Graph) -> None:
    """A schedule is for given sizes: CompileError names one that is not."""
    for param in graph.params:
        for symbol in symbols_of(*param.tensor.shape):
            name = param.op.label if isinstance(param.op, Param) else ""
            raise CompileError(f"{graph.name}: the size {symbol.name} of input {name} is not known, and schedules are for given sizes",
                               hint=f"give it: --dims {symbol.name}=SIZE, or tw.from_onnx(path, dims={{'{symbol.name}': SIZE}})")


def key_of(spot: Spot) -> Key:
    if spot.storage is not None:
        return "workspace", id(spot.storage)
    return spot.space, int(spot.offset) if spot.space == "constant" else spot.number


def operators_of(drafted: Drafted, parameters: str) -> Operators:
    """The problem, with constants as `parameters` says (`scheduling.problem.with_parameters`)."""
    drafts = [draft for draft in drafted.drafts if isinstance(draft, Draft)]
    if len(drafts) < len(drafted.drafts):
        raise UnsupportedError(f"{drafted.name}: a loop or a branch is no operator of a scratchpad",
                               hint="compile for the target cpu, or bind what it depends on")
    groups = [[drafts[number] for number in group] for group in _groups(drafts)]
    tensors: dict[Key, int] = {}
    rows: list[Tensor] = []
    names = set[str]()
    for key, tensor in _tensors(drafted, drafts, parameters != "ignored"):
        if key not in tensors:
            tensors[key] = len(rows)
            rows.append(replace(tensor, name=tensor.name if tensor.name not in names else f"{tensor.name} {len(rows)}"))
            names.add(rows[-1].name)
    operators = [_operator(number, group, tensors) for number, group in enumerate(groups)]
    made = {t for operator in operators for t in operator.outputs}
    results = [tensors["output", n] for n in range(len(drafted.outputs)) if ("output", n) in tensors]
    problem = make_problem(drafted.name, rows, operators, (t for t in results if rows[t].bytes or t in made))
    if parameters == "resident":
        problem = with_parameters(problem, parameters)
    order = [int(operator.name.rpartition("#")[2]) for operator in problem.operators]
    return Operators(drafted, problem, [groups[number] for number in order], tensors, [tensors] * len(order))


def _groups(drafts: Sequence[Draft]) -> list[range]:
    """Launches that store to one value, with all between them."""
    first: dict[Key, int] = {}
    reaches = list(range(len(drafts)))  # for each launch the last one that belongs to its operator, as far as it alone says
    for number, draft in enumerate(drafts):
        for buffer, spot in zip(draft.kernel.buffers, draft.spots):
            if buffer.space != "in":
                reaches[first.setdefault(key_of(spot), number)] = number
    found: list[range] = []
    begin = end = 0
    for number in range(len(drafts)):
        if number > end:
            found.append(range(begin, end + 1))
            begin = number
        end = max(end, reaches[number])
    return [*found, range(begin, end + 1)] if drafts else []


def _tensors(drafted: Drafted, drafts: Sequence[Draft], with_constants: bool) -> Iterator[tuple[Key, Tensor]]:
    """What launches touch, in the order in which they do; inputs and outputs first."""
    for kind, space, entries in ((INPUT, "input", drafted.inputs), (VALUE, "output", drafted.outputs)):
        for number, (name, type) in enumerate(entries):
            yield (space, number), Tensor(name, evaluate(product(type.shape), {}) * type.dtype.bytes, kind)
    constants = {offset: constant.array.nbytes for offset, constant in drafted.constants}
    for draft in drafts:
        for spot in draft.spots:
            if spot.storage is not None:
                assert is_static(spot.storage.size)
                yield key_of(spot), Tensor(f"{spot.storage.label}@{spot.storage.first}", int(spot.storage.size), VALUE)
            elif spot.space == "constant" and with_constants:
                offset = int(spot.offset)
                yield key_of(spot), Tensor(f"constant_{offset}", constants[offset], PARAMETER)


def _operator(number: int, group: Sequence[Draft], tensors: dict[Key, int]) -> Operator:
    read: list[int] = []
    stored: list[int] = []
    for draft in group:
        for buffer, spot in zip(draft.kernel.buffers, draft.spots):
            tensor = tensors.get(key_of(spot))
            if tensor is not None:
                (read if buffer.space == "in" else stored).append(tensor)
    outputs = tuple(dict.fromkeys(stored))
    inputs = tuple(t for t in dict.fromkeys(read) if t not in outputs)
    return Operator(f"{group[-1].kernel.name} #{number}", inputs, outputs, group[-1].facts.choice.strategy)


def cycles_of(launch: Launch, touched: int, operations_per_cycle: int, banks: int) -> int:
    """What a launch takes: its operations, or the bytes that it touches, whichever is more."""
    work = launch.facts.work if launch.facts is not None else ()
    operations = sum(evaluate(part.operations, {}) for part in work)
    return max(1, -(-operations // operations_per_cycle), -(-touched // (BANK_BYTES * banks)))
