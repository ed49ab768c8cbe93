"""Cycles of a schedule, by the cost model of the simulated accelerator (csrc/simulator/timing.h), without running anything.

Two engines, one that computes and one that transfers, each doing its steps in order. A step begins when its engine is free, what it
reads is there, whoever used its bytes before is done, and the other engine is busy in none of the banks that it touches. A transfer
takes a latency and its bytes at a rate; an operator its operations at a rate, or the bytes that it touches at 64 a bank and cycle.
What is not known beforehand is taken as it is written: one round of a loop that data ends, the dearer side of a branch.

Assumes a schedule that the checker accepted. Shares no code with the simulator, which counts the same while a program runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct

from .prefetching import overlapped
from .problem import Fetch, Operator, Problem, Run, Schedule, Spill, rounded

BANK_BYTES = 64  # that an operator reads and writes in a bank and cycle
Range = tuple[int, int]


class Engines(Struct, frozen=True):
    """What the model knows of an accelerator: `tilewright.targets.Scratchpad` has what each means."""

    banks: int
    dma_bytes_per_cycle: int
    dma_latency: int
    operations_per_cycle: int


class Cycles(Struct, frozen=True):
    """`beside`: with the two engines at work beside each other; `computing` and `transferring`: those in which each is."""

    beside: int
    computing: int
    transferring: int

    @property
    def serial(self) -> int:
        """With one step after the other."""
        return self.computing + self.transferring


class Value(Struct):
    """A tensor in the scratchpad: its bytes, the end of its aligned place, when it is there and until when it is used."""

    place: Range
    end: int
    ready: int
    used: int


def computing_cycles(operations: int, touched: int, operations_per_cycle: int, banks: int) -> int:
    """What an operator or a launch takes: its operations, or the bytes that it touches, whichever is more."""
    return max(1, -(-operations // operations_per_cycle), -(-touched // (BANK_BYTES * banks)))


def cycles(problem: Problem, schedule: Schedule, budget: int, alignment: int, engines: Engines) -> Cycles:
    """Of the schedule as it stands."""
    model = _Model(problem, budget // alignment * alignment, alignment, engines)
    for step in schedule.steps:
        model.step(step)
    return Cycles(max(model.compute_end, model.transfer_end), model.computing, model.transferring)


def best_cycles(problem: Problem, schedule: Schedule, budget: int, alignment: int, engines: Engines) -> Cycles:
    """Of the schedule, or of what `prefetching` makes of it, where that takes fewer: the same bytes."""
    plain = cycles(problem, schedule, budget, alignment, engines)
    sooner = overlapped(problem, schedule, budget, alignment, engines.banks)
    return min(plain, cycles(problem, sooner, budget, alignment, engines), key=lambda found: found.beside)


class _Model:
    """Both engines, and what lies in the scratchpad. `left`: places of what is gone, and until when they are in use."""

    def __init__(self, problem: Problem, size: int, alignment: int, engines: Engines) -> None:
        self.problem, self.alignment, self.engines = problem, alignment, engines
        self.bank_bytes = max(alignment, rounded((size + engines.banks - 1) // engines.banks, alignment))
        self.values: dict[int, Value] = {}
        self.left: list[tuple[Range, int]] = []
        self.bank_computing, self.bank_transferring = [0] * engines.banks, [0] * engines.banks
        self.compute_end = self.transfer_end = self.computing = self.transferring = 0

    def step(self, step: object) -> None:
        match step:
            case Run(operator=number, addresses=addresses):
                self.run(self.problem.operators[number], addresses)
            case Fetch(tensor=tensor, address=address) if self.problem.tensors[tensor].bytes:
                value = self.place(tensor, address)
                value.ready = value.used = self.transfer(value.place, value.ready)
            case Spill(tensor=tensor) if tensor in self.values:
                value = self.values[tensor]
                value.used = max(value.used, self.transfer(value.place, value.ready))
            case _ if getattr(step, "tensor", -1) in self.values:
                self.leave(getattr(step, "tensor", -1))

    def run(self, operator: Operator, addresses: tuple[int, ...]) -> None:
        read = [self.values[t] for t in operator.inputs if t in self.values]
        for t in operator.in_place:
            if t in self.values and self.values[t].place[0] == addresses[0] and self.problem.tensors[operator.outputs[0]].bytes:
                self.leave(t)
        made = [self.place(t, address) for t, address in zip(operator.outputs, addresses) if self.problem.tensors[t].bytes]
        touched = sum(value.place[1] - value.place[0] for value in (*read, *made)) + operator.elsewhere
        needed = computing_cycles(operator.operations, touched, self.engines.operations_per_cycle, self.engines.banks)
        start = max((self.compute_end, *(value.ready for value in (*read, *made)),
                     *(self.bank_transferring[bank] for value in (*read, *made) for bank in self.banks(value.place))))
        self.compute_end = start + needed
        self.computing += needed
        for value in (*read, *made):
            value.used = max(value.used, self.compute_end)
            self.occupy(self.bank_computing, value.place, self.compute_end)
        for value in made:
            value.ready = self.compute_end

    def transfer(self, place: Range, earliest: int) -> int:
        """The moment at which it ends."""
        rate = self.engines.dma_bytes_per_cycle
        needed = self.engines.dma_latency + (place[1] - place[0] + rate - 1) // rate
        self.transfer_end = max((self.transfer_end, earliest, *(self.bank_computing[bank] for bank in self.banks(place)))) + needed
        self.transferring += needed
        self.occupy(self.bank_transferring, place, self.transfer_end)
        return self.transfer_end

    def place(self, tensor: int, address: int) -> Value:
        """The tensor at its address, there as soon as the bytes are vacant."""
        size = self.problem.tensors[tensor].bytes
        place = address, address + size
        vacant = max((until for gone, until in self.left if gone[0] < place[1] and place[0] < gone[1]), default=0)
        self.values[tensor] = Value(place, address + rounded(size, self.alignment), vacant, vacant)
        return self.values[tensor]

    def leave(self, tensor: int) -> None:
        value = self.values.pop(tensor)
        place = value.place[0], value.end
        self.left = [*_outside(self.left, place), (place, max(value.ready, value.used))]

    def banks(self, place: Range) -> Iterable[int]:
        last = self.engines.banks - 1
        return range(min(place[0] // self.bank_bytes, last), min((place[1] - 1) // self.bank_bytes, last) + 1)

    def occupy(self, busy: list[int], place: Range, until: int) -> None:
        for bank in self.banks(place):
            busy[bank] = max(busy[bank], until)


def _outside(left: Iterable[tuple[Range, int]], place: Range) -> Iterator[tuple[Range, int]]:
    """What lies within the place is over: it was vacant when what is there now came."""
    return (row for row in left if not (place[0] <= row[0][0] and row[0][1] <= place[1]))
