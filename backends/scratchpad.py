"""Programs for a scratchpad behind the interface of a loaded model: run by the simulated accelerator of csrc/simulator/.

A call gives the simulator the steps, the inputs and room for the outputs; it runs the launches one by one on one thread, in a
scratchpad of exactly the program's size, and moves what `fetch` and `spill` say. Guarantees: what a launch touches outside of its
operands ends in RuntimeFailure; the bytes and cycles of `Work` were counted while the program ran.
Assumes object code of that program. Stateless between calls, so safe from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from tilewright.backends._simulator import Simulator
from tilewright.backends.reference import Array, ReferenceModel
from tilewright.ir.dims import Symbol, evaluate
from tilewright.ir.errors import InternalError
from tilewright.ir.program import Branch, Fetch, Free, Launch, Loop, Place, Program, Repeat, Reserve, Spill, Step
from tilewright.ir.residency import buffer_bytes

FETCH, SPILL, FREE, LAUNCH, RESERVE, REPEAT, NEXT, UNLESS, JUMP = range(9)  # simulator::kind
SPACES = ("input", "output", "constant", "workspace")  # simulator::space
Moving = tuple[int, int, bool, bool, list[int]]  # an operand of a launch: simulator::moving_operand
Row = tuple[int, int, int, int, int, int, int, list[Moving], str]


class Machine(Struct, frozen=True):
    """What the cost model of csrc/simulator/timing.h knows of an accelerator."""

    banks: int
    dma_bytes_per_cycle: int
    dma_latency: int


class Work(Struct, frozen=True):
    """What the accelerator did in a call, counted by it. `compulsory`: inputs and constants for the first time, outputs for the
    first time. `computing` and `transferring`: cycles in which that engine was busy, of all `cycles`."""

    read: int
    written: int
    compulsory: int
    peak: int
    transfers: int
    launches: int
    cycles: int
    computing: int
    transferring: int

    @property
    def moved(self) -> int:
        return self.read + self.written

    @property
    def excess(self) -> int:
        """Bytes beyond those that every schedule moves."""
        return self.moved - self.compulsory

    @property
    def utilisation(self) -> float:
        """The share of the cycles in which something was computed."""
        return self.computing / self.cycles if self.cycles else 0.0


class ScratchpadModel(ReferenceModel):
    """What `Executable` runs. `cycles`: of each launch, in the order of the steps."""

    def __init__(self, program: Program, object_code: bytes, symbol: str, constants: Array | None, machine: Machine,
                 cycles: Sequence[int], target: str) -> None:
        super().__init__(program)
        memory = program.scratchpad
        if memory is None or not isinstance(program.workspace_bytes, int):
            raise InternalError(f"{program.name}: the simulator runs programs with a scratchpad alone")
        self.program = program
        self.target = target
        self.variants = ((target, ""),)
        self.constants_bytes = program.constants_bytes
        self.simulator = Simulator(object_code, symbol, constants, program.name, memory.bytes, memory.alignment, machine.banks,
                                   machine.dma_bytes_per_cycle, machine.dma_latency, program.workspace_bytes,
                                   _Rows(cycles).of(program.steps))

    @property
    def thread_bytes(self) -> int:
        """Memory of its own that a launch has beside the scratchpad: accumulators, packed parts of operands."""
        return self.simulator.thread_bytes

    def run(self, arguments: Sequence[object], out: object, threads: int) -> Any:
        return self._deliver(self.execute(arguments)[0], out)

    def measure(self, arguments: Sequence[object]) -> tuple[Any, Work]:
        """The result of a call, and what was done for it."""
        results, work = self.execute(arguments)
        return self._deliver(results, None), work

    def execute(self, arguments: Sequence[object]) -> tuple[list[Array], Work]:
        arrays = self._arrays(arguments)
        self._binding(arrays)
        results = [np.empty([evaluate(n, {}) for n in type.shape], type.dtype.numpy) for _, type in self.program.outputs]
        counted = self.simulator.run([_bytes_of(a) for a in arrays], [_bytes_of(r) for r in results])
        return results, Work(**counted)


def _bytes_of(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class _Rows:
    """The steps as the simulator takes them, control flow as steps that go elsewhere. `cycles`: of each launch in the text."""

    def __init__(self, cycles: Sequence[int]) -> None:
        self.cycles = cycles
        self.rows: list[Row] = []
        self.launches = 0

    def of(self, steps: Sequence[Step], counters: tuple[Symbol, ...] = ()) -> list[Row]:
        for step in steps:
            self.add(step, counters)
        return self.rows

    def add(self, step: Step, counters: tuple[Symbol, ...]) -> None:
        match step:
            case Fetch(source=source, address=address, bytes=size):
                self.transfer(FETCH, source, address, size, "fetch")
            case Spill(address=address, target=target, bytes=size):
                self.transfer(SPILL, target, address, size, "spill")
            case Reserve(address=address, bytes=size):
                self.plain(RESERVE, "reserve", address=address, size=size)
            case Free(address=address):
                self.plain(FREE, "free", address=address)
            case Launch():
                self.launch(step, counters)
            case Repeat(symbol=symbol, extent=extent, steps=body, reverse=reverse):
                begin = self.plain(REPEAT, "repeat", number=evaluate(extent, {}), offset=int(reverse))
                self.of(body, (*counters, symbol))
                self.plain(NEXT, "repeat", address=begin + 1)
                self.lead(begin)
            case Loop(condition_steps=first, condition=condition, steps=body):
                begin = len(self.rows)
                self.of(first, counters)
                leave = self.unless(condition, counters, "loop")
                self.of(body, counters)
                self.plain(JUMP, "loop", address=begin)
                self.lead(leave)
            case Branch(condition=condition, then=then, otherwise=otherwise):
                other = self.unless(condition, counters, "branch")
                self.of(then, counters)
                end = self.plain(JUMP, "branch")
                self.lead(other)
                self.of(otherwise, counters)
                self.lead(end)
            case _:
                raise InternalError(f"the simulator has no step {type(step).__name__}")

    def plain(self, kind: int, label: str, number: int = 0, offset: int = 0, address: int = 0, size: int = 0, space: int = 0,
              operands: Sequence[Moving] = ()) -> int:
        """Adds a step that takes no cycles of computing; its position."""
        self.rows.append((kind, space, number, offset, address, size, 0, list(operands), label))
        return len(self.rows) - 1

    def lead(self, position: int) -> None:
        """The step there goes to the next one that is added."""
        row = self.rows[position]
        self.rows[position] = (*row[:4], len(self.rows), *row[5:])

    def transfer(self, kind: int, place: Place, address: int, size: int, label: str) -> None:
        self.plain(kind, label, place.number, evaluate(place.offset, {}), address, size, SPACES.index(place.space))

    def unless(self, condition: Place, counters: tuple[Symbol, ...], label: str) -> int:
        return self.plain(UNLESS, label, int(condition.space == "constant"), operands=[_moving(condition, 1, (True, False), counters)])

    def launch(self, launch: Launch, counters: tuple[Symbol, ...]) -> None:
        operands = [_moving(place, buffer_bytes(launch, buffer), (buffer.space != "out", buffer.space != "in"), counters)
                    for buffer, place in zip(launch.kernel.buffers, launch.places) if place.space == "scratchpad"]
        self.rows.append((LAUNCH, 0, self.launches, 0, 0, 0, self.cycles[self.launches], operands, launch.kernel.name))
        self.launches += 1


def _moving(place: Place, size: int, used: tuple[bool, bool], counters: tuple[Symbol, ...]) -> Moving:
    """Where an operand lies, whether it is read and stored to (`used`), and how far it moves with each of the counters: offsets of places
    are linear in them."""
    start = {symbol.name: 0 for symbol in counters}
    first = evaluate(place.offset, start)
    strides = [evaluate(place.offset, {**start, symbol.name: 1}) - first for symbol in counters]
    return first, size, *used, strides
