"""The operators of a lowered graph, and the problem of scheduling them.

An operator is a launch, an `if`, `while` or `scan` with all that its bodies launch, or consecutive ones that store to the same value (a
kernel and what prepares for it). A tensor is a value of the workspace, an input, an output, or a constant where constants are scheduled
too. What bodies compute for themselves is packed into one arena by its lifetimes, a result of the operator that nobody reads; states,
slices and captures are there whole. Assumes launches in an order in which they can run. Guarantees: each tensor has one operator that
stores to it, and none stores over an operand, but for the states of loops within.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..ir.dims import evaluate, is_static, product, symbols_of
from ..ir.errors import CompileError
from ..ir.facts import Facts
from ..ir.graph import Graph
from ..ir.loop import Kernel
from ..ir.ops.control import Param
from ..ir.program import Launch
from ..ir.residency import buffer_bytes
from ..lowering.lower import Draft, DraftBlock, Drafted, Drafts, Spot
from ..lowering.memory import Storage, assign_offsets
from ..scheduling.problem import INPUT, PARAMETER, VALUE, Operator, Problem, Tensor, make_problem, with_parameters
from ..scheduling.timing import computing_cycles

Key = tuple[str, int]  # of a spot: its space, and the number, the offset of a constant, or which storage


class Part(Struct, frozen=True):
    """A launch for a slice of rows, and for each of its buffers the bytes before these rows."""

    begins: tuple[int, ...]
    draft: Draft


class Member(Struct, frozen=True):
    """What an operator of a chain launches, slice by slice. `places`: for each spot the tensor at whose address it begins."""

    places: dict[Key, int]
    parts: tuple[Part, ...]


class Operators(Struct):
    """`groups`: the launches and control flow of each of the problem's operators. `tensors`: the number of each spot that is scheduled;
    `places`: for each operator the tensor at whose address a spot begins. `over`: kernels that store over an operand, by the name of the
    one that does not and the operand's position among its buffers. `chains`: what operators launch that run slice by slice."""

    drafted: Drafted
    problem: Problem
    groups: list[Drafts]
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
    return spot.space, offset_before(spot) if spot.space == "constant" else spot.number


def offset_before(spot: Spot) -> int:
    """Of a spot's place before any repeat around it went on."""
    return evaluate(spot.offset, {symbol.name: 0 for symbol in symbols_of(spot.offset)})


def has_control(group: Drafts) -> bool:
    return any(isinstance(draft, DraftBlock) for draft in group)


def launches_of(drafts: Drafts) -> Iterator[Draft]:
    """All launches, those of bodies too."""
    for draft in drafts:
        if isinstance(draft, Draft):
            yield draft
        else:
            for part in draft.parts:
                yield from launches_of(part)


def touched(drafts: Drafts) -> Iterator[tuple[Spot, bool]]:
    """Every spot that is read or stored to, and whether it is stored to."""
    for draft in drafts:
        if isinstance(draft, Draft):
            yield from ((spot, buffer.space != "in") for buffer, spot in zip(draft.kernel.buffers, draft.spots))
            continue
        if draft.condition is not None:
            yield draft.condition, False
        for part in draft.parts:
            yield from touched(part)


def operators_of(drafted: Drafted, parameters: str) -> Operators:
    """The problem, with constants as `parameters` says (`scheduling.problem.with_parameters`)."""
    groups = [[drafted.drafts[number] for number in group] for group in _groups(drafted.drafts)]
    tensors: dict[Key, int] = {}
    rows: list[Tensor] = []
    for storages in _private(groups):
        arena = evaluate(assign_offsets(storages).size, {})
        tensors.update(dict.fromkeys((("workspace", id(storage)) for storage in storages), len(rows)))
        rows.append(Tensor(f"{storages[0].label}@{storages[0].first} and others", arena, VALUE))
    names = {row.name for row in rows}
    for key, tensor in _tensors(drafted, parameters != "ignored"):
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


def _groups(drafts: Drafts) -> list[range]:
    """Launches that store to one value, with all between them."""
    first: dict[Key, int] = {}
    reaches = list(range(len(drafts)))  # for each launch the last one that belongs to its operator, as far as it alone says
    for number, draft in enumerate(drafts):
        for spot, stored in touched([draft]):
            if stored:
                reaches[first.setdefault(key_of(spot), number)] = number
    found: list[range] = []
    begin = end = 0
    for number in range(len(drafts)):
        if number > end:
            found.append(range(begin, end + 1))
            begin = number
        end = max(end, reaches[number])
    return [*found, range(begin, end + 1)] if drafts else []


def _private(groups: Sequence[Drafts]) -> Iterator[list[Storage]]:
    """For each operator with control flow the storages that no other one touches."""
    users: dict[int, set[int]] = {}
    found: dict[int, dict[int, Storage]] = {}
    for number, group in enumerate(groups):
        for spot, _ in touched(group):
            if spot.storage is not None:
                users.setdefault(id(spot.storage), set()).add(number)
                found.setdefault(number, {})[id(spot.storage)] = spot.storage
    for number, group in enumerate(groups):
        storages = [storage for key, storage in found.get(number, {}).items() if users[key] == {number}]
        if storages and has_control(group):
            yield storages


def _tensors(drafted: Drafted, with_constants: bool) -> Iterator[tuple[Key, Tensor]]:
    """What launches touch, in the order in which they do; inputs and outputs first."""
    for kind, space, entries in ((INPUT, "input", drafted.inputs), (VALUE, "output", drafted.outputs)):
        for number, (name, type) in enumerate(entries):
            yield (space, number), Tensor(name, evaluate(product(type.shape), {}) * type.dtype.bytes, kind)
    constants = {offset: constant.array.nbytes for offset, constant in drafted.constants}
    for spot, _ in touched(drafted.drafts):
        if spot.storage is not None:
            assert is_static(spot.storage.size)
            yield key_of(spot), Tensor(f"{spot.storage.label}@{spot.storage.first}", int(spot.storage.size), VALUE)
        elif spot.space == "constant" and with_constants:
            _, offset = key_of(spot)
            yield key_of(spot), Tensor(f"constant_{offset}", constants[offset], PARAMETER)


def _operator(number: int, group: Drafts, tensors: dict[Key, int]) -> Operator:
    places = [(tensors[key_of(spot)], stored) for spot, stored in touched(group) if key_of(spot) in tensors]
    outputs = tuple(dict.fromkeys(tensor for tensor, stored in places if stored))
    inputs = tuple(t for t in dict.fromkeys(tensor for tensor, stored in places if not stored) if t not in outputs)
    last = next((draft for draft in group if isinstance(draft, DraftBlock)), group[-1])
    name, kind = (last.label, last.label) if isinstance(last, DraftBlock) else (last.kernel.name, last.facts.choice.strategy)
    elsewhere = {key_of(spot): size for spot, size in _constants_read(group) if key_of(spot) not in tensors}
    operations = sum(map(operations_of, group))
    return Operator(f"{name} #{number}", inputs, outputs, kind, operations=operations, elsewhere=sum(elsewhere.values()))


def _constants_read(drafts: Drafts) -> Iterator[tuple[Spot, int]]:
    for draft in launches_of(drafts):
        launch = Launch(draft.kernel, (), draft.sizes)
        pairs = zip(draft.kernel.buffers, draft.spots)
        yield from ((spot, buffer_bytes(launch, buffer)) for buffer, spot in pairs if spot.space == "constant")


def operations_of(draft: Draft | DraftBlock) -> int:
    """Floating operations; of control flow those of its rounds, of the dearer side, of one round of a loop that data ends."""
    if isinstance(draft, Draft):
        return _operations(draft.facts)
    parts = [sum(map(operations_of, part)) for part in draft.parts]
    return evaluate(draft.rounds, {}) * (max(parts) if draft.label == "if" else sum(parts))


def _operations(facts: Facts) -> int:
    return sum(evaluate(part.operations, {}) for part in facts.work)


def cycles_of(launch: Launch, touched: int, operations_per_cycle: int, banks: int) -> int:
    """What a launch takes."""
    operations = 0 if launch.facts is None else _operations(launch.facts)
    return computing_cycles(operations, touched, operations_per_cycle, banks)
