"""A schedule as a program: launches and control flow at addresses of the scratchpad, and the transfers between them.

Assumes a schedule that the checker accepted. Guarantees a program that `verify_program` accepts: what was spilled has a place of its
own off the chip, results in the outputs; tensors without bytes are nowhere.
"""

from __future__ import annotations

from ..ir.errors import InternalError
from ..ir.program import Fetch, Free, Place, Program, Reserve, Scratchpad, Spill, Step
from ..lowering.lower import Spot, finish_drafts
from ..scheduling import problem as scheduled
from .operators import Operators, has_control, key_of, offset_before

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
                outputs, group = self.operators.problem.operators[number].outputs, self.operators.groups[number]
                self.addresses.update(zip(outputs, addresses))
                if has_control(group):
                    self.steps += [Reserve(self.addresses[t], self.tensors[t].bytes) for t in outputs if self.tensors[t].bytes]
                self.steps += finish_drafts(group, self.place)
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

    def off_chip(self, tensor: int) -> Place:
        """Where it lies off the chip; a value that is no output gets bytes of its own."""
        if tensor not in self.places:
            self.places[tensor] = Place("workspace", 0, self.workspace_bytes)
            self.workspace_bytes += -(-self.tensors[tensor].bytes // ALIGNMENT) * ALIGNMENT
        return self.places[tensor]

    def place(self, spot: Spot) -> Place:
        tensor = self.operators.tensors.get(key_of(spot))
        if tensor is None:  # constants in a memory of their own
            return Place("constant", 0, spot.offset)
        within = spot.offset - offset_before(spot) if spot.space == "constant" else spot.offset
        before = 0 if spot.storage is None else spot.storage.offset  # in an arena
        return Place("scratchpad", 0, self.addresses.get(tensor, 0) + before + within)
