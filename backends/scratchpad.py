"""Programs for a scratchpad behind the interface of a loaded model: run by the simulated accelerator of csrc/simulator/.

A call gives the simulator the steps, the inputs and room for the outputs; it runs the launches one by one on one thread, in a
scratchpad of exactly the program's size, and moves what `fetch` and `spill` say. Guarantees: what a launch touches outside of its
operands ends in RuntimeFailure; the bytes and cycles of `Work` were counted while the program ran.
Assumes object code of that program. Stateless between calls, so safe from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from tilewright.backends._simulator import Simulator
from tilewright.backends.reference import Array, ReferenceModel
from tilewright.ir.dims import evaluate
from tilewright.ir.errors import InternalError
from tilewright.ir.program import Fetch, Free, Launch, Place, Program, Reserve, Spill, Step
from tilewright.ir.residency import buffer_bytes

FETCH, SPILL, FREE, LAUNCH, RESERVE = range(5)  # simulator::kind
SPACES = ("input", "output", "constant", "workspace")  # simulator::space
Row = tuple[int, int, int, int, int, int, int, list[tuple[int, int, bool, bool]], str]


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
                                   list(rows_of(program.steps, cycles)))

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


def rows_of(steps: Sequence[Step], cycles: Sequence[int]) -> Iterator[Row]:
    """The steps as the simulator takes them."""
    launches = 0
    for step in steps:
        match step:
            case Fetch(source=source, address=address, bytes=size):
                yield _transfer(FETCH, source, address, size, "fetch")
            case Spill(address=address, target=target, bytes=size):
                yield _transfer(SPILL, target, address, size, "spill")
            case Reserve(address=address, bytes=size):
                yield RESERVE, 0, 0, 0, address, size, 0, [], "reserve"
            case Free(address=address):
                yield FREE, 0, 0, 0, address, 0, 0, [], "free"
            case Launch(kernel=kernel, places=places):
                operands = [(evaluate(place.offset, {}), buffer_bytes(step, buffer), buffer.space != "out", buffer.space != "in")
                            for buffer, place in zip(kernel.buffers, places) if place.space == "scratchpad"]
                yield LAUNCH, 0, launches, 0, 0, 0, cycles[launches], operands, kernel.name
                launches += 1
            case _:
                raise InternalError(f"the simulator has no step {type(step).__name__}")


def _transfer(kind: int, place: Place, address: int, size: int, label: str) -> Row:
    return kind, SPACES.index(place.space), place.number, evaluate(place.offset, {}), address, size, 0, [], label
