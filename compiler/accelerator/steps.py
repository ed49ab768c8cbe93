"""A schedule as a program: launches and control flow at addresses of the scratchpad, and the transfers between them.

Assumes a schedule that the checker accepted. Guarantees a program that `verify_program` accepts: what was spilled has a place of its
own off the chip, results in the outputs; tensors without bytes are nowhere; a result that begins where an operand lies is stored
over it by a kernel made for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from ..ir.errors import InternalError
from ..ir.program import Fetch, Free, Launch, Place, Program, Reserve, Scratchpad, Spill, Step
from ..lowering.lower import Draft, Spot, finish_drafts
from ..scheduling import problem as scheduled
from .operators import Key, Member, Operators, Part, has_control, key_of, offset_before

ALIGNMENT = 64  # off the chip


def program_of(operators: Operators, schedule: scheduled.Schedule, size: int, alignment: int) -> Program:
    """The program; `size` and `alignment` are those of the scratchpad."""
    writer = _Writer(operators)
    for step in schedule.steps:
        writer.add(step)
    drafted = operators.drafted
    return Program(drafted.name, drafted.inputs, drafted.outputs, drafted.constants, drafted.constants_bytes, writer.workspace_bytes,
                   tuple(writer.steps), (), Scratchpad(size // alignment * alignment, alignment))


class _Writer:
    """Steps so far, where tensors lie in the scratchpad, and where they went off the chip."""

    def __init__(self, operators: Operators) -> None:
        self.operators = operators
        self.tensors = operators.problem.tensors
        self.steps: list[Step] = []
        self.addresses: dict[int, int] = {}
        self.places: dict[int, Place] = {}  # off the chip
        self.workspace_bytes = 0
        for (space, number), tensor in operators.tensors.items():
            if space == "constant":
                self.places[tensor] = Place("constant", 0, number)
            elif space != "workspace":
                self.places[tensor] = Place(space, number)

    def add(self, step: scheduled.Step) -> None:
        match step:
            case scheduled.Run(operator=number, addresses=addresses):
                operator, places = self.operators.problem.operators[number], self.operators.places[number]
                group, over = self.operators.groups[number], self.overwritten(operator, addresses)
                self.addresses.update(zip(operator.outputs, addresses))
                if number in self.operators.chains:
                    self.run_in_slices(operator, self.operators.chains[number])
                    return
                if has_control(group):
                    self.reserve(operator.outputs)
                if over < 0:
                    self.steps += finish_drafts(group, lambda spot: self.place(spot, places))
                else:  # a launch alone (`sharing.py`)
                    self.steps += [self.launch_over(draft, places, over) for draft in group if isinstance(draft, Draft)]
                self.addresses.pop(over, None)
            case scheduled.Fetch(tensor=tensor, address=address):
                self.addresses[tensor] = address
                if self.tensors[tensor].bytes:
                    self.steps.append(Fetch(self.off_chip(tensor), address, self.tensors[tensor].bytes))
            case scheduled.Spill(tensor=tensor):
                if self.tensors[tensor].bytes:
                    self.steps.append(Spill(self.addresses[tensor], self.off_chip(tensor), self.tensors[tensor].bytes))
            case scheduled.Free(tensor=tensor):
                address = self.addresses.pop(tensor)
                if self.tensors[tensor].bytes:
                    self.steps.append(Free(address))
            case _:
                raise InternalError(f"scratchpad: a schedule has no step {type(step).__name__}")

    def reserve(self, tensors: Sequence[int]) -> None:
        """What launches store to in parts."""
        self.steps += [Reserve(self.addresses[t], self.tensors[t].bytes) for t in tensors if self.tensors[t].bytes]

    def off_chip(self, tensor: int) -> Place:
        """Where it lies off the chip; a value that is no output gets bytes of its own."""
        if tensor not in self.places:
            self.places[tensor] = Place("workspace", 0, self.workspace_bytes)
            self.workspace_bytes += -(-self.tensors[tensor].bytes // ALIGNMENT) * ALIGNMENT
        return self.places[tensor]

    def overwritten(self, operator: scheduled.Operator, addresses: Sequence[int]) -> int:
        """The operand that the first result takes the place of; -1 where there is none."""
        return next((t for t in operator.in_place if self.tensors[t].bytes and self.addresses.get(t) == addresses[0]), -1)

    def launch(self, draft: Draft, tensors: Mapping[Key, int]) -> Launch:
        return Launch(draft.kernel, tuple(self.place(spot, tensors) for spot in draft.spots), draft.sizes, facts=draft.facts)

    def place(self, spot: Spot, tensors: Mapping[Key, int]) -> Place:
        tensor = tensors.get(key_of(spot))
        if tensor is None:  # constants in a memory of their own
            return Place("constant", 0, spot.offset)
        within = spot.offset - offset_before(spot) if spot.space == "constant" else spot.offset
        before = 0 if spot.storage is None else spot.storage.offset  # in an arena
        return Place("scratchpad", 0, self.addresses.get(tensor, 0) + before + within)

    def run_in_slices(self, operator: scheduled.Operator, chain: Sequence[Member]) -> None:
        """All members for a slice, then for the next one."""
        self.reserve(operator.outputs)
        for number in range(len(chain[0].parts)):
            self.steps += [self.launch_part(member, member.parts[number]) for member in chain]

    def launch_part(self, member: Member, part: Part) -> Launch:
        """A launch on a slice of its rows."""
        whole = self.launch(part.draft, member.places)
        return replace(whole, places=tuple(replace(place, offset=place.offset + begin) for place, begin in zip(whole.places, part.begins)))

    def launch_over(self, draft: Draft, tensors: Mapping[Key, int], over: int) -> Launch:
        """The launch whose result takes the place of an operand."""
        whole = self.launch(draft, tensors)
        position = next(n for n, spot in enumerate(draft.spots) if tensors.get(key_of(spot)) == over)
        kernel = self.operators.over[draft.kernel.name, position]
        facts = replace(draft.facts, choice=replace(draft.facts.choice, in_place=True))
        return replace(whole, kernel=kernel, places=(*whole.places[:position], *whole.places[position + 1:]), facts=facts)
