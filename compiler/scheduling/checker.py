"""Is a schedule right, and how many bytes does it move? Plays it step by step on the problem's own records.

Shares nothing with what makes schedules, and believes nothing but the steps. Guarantees, for a schedule that it accepts:
every operator runs once, behind those whose results it reads; whatever it touches lies in the scratchpad, at aligned addresses
within the budget, and no two tensors share a byte of their aligned places, but for a result that begins where an operand lies that
its operator may overwrite, which is gone then; what is joined lies side by side; a fetch copies what is off the chip; at the end all
results are there; pinned tensors are there at every run, fetched once. A tensor takes whole units of the alignment.
"""

from __future__ import annotations

from itertools import pairwise

from msgspec import Struct

from ..ir.errors import CompileError
from .problem import VALUE, Fetch, Operator, Problem, Run, Schedule, Spill


class WrongSchedule(CompileError):
    """A schedule that is not right; the message names the step."""


class Account(Struct, frozen=True):
    """What a schedule costs, counted. `peak`: the highest byte that is ever taken, by aligned places."""

    read: int
    written: int
    compulsory: int
    peak: int

    @property
    def moved(self) -> int:
        return self.read + self.written

    @property
    def excess(self) -> int:
        """Bytes beyond those that every schedule moves."""
        return self.moved - self.compulsory


def check(problem: Problem, schedule: Schedule, budget: int, alignment: int = 1) -> Account:
    """The account of a schedule that is right; WrongSchedule otherwise."""
    play = _Play(problem, budget, alignment)
    for number, step in enumerate(schedule.steps):
        play.where = f"step {number}"
        if isinstance(step, Run):
            play.run(step)
        elif isinstance(step, Fetch):
            play.fetch(step)
        elif isinstance(step, Spill):
            play.spill(step.tensor)
        else:
            play.free(step.tensor)
    return play.account()


class _Play:
    """The memory while a schedule runs."""

    def __init__(self, problem: Problem, budget: int, alignment: int) -> None:
        self.problem, self.budget, self.alignment = problem, budget, alignment
        self.places: dict[int, tuple[int, int]] = {}  # tensor -> first byte, first byte behind it
        self.off_chip = {t for t, tensor in enumerate(problem.tensors) if tensor.kind != VALUE}
        self.done: set[int] = set()
        self.fetched_pinned: set[int] = set()
        self.read = self.written = self.peak = 0
        self.where = ""

    def fail(self, message: str) -> WrongSchedule:
        return WrongSchedule(f"{self.where}: {message}")

    def name(self, tensor: int) -> str:
        return self.problem.tensors[tensor].name

    def known(self, tensor: int) -> None:
        if not 0 <= tensor < len(self.problem.tensors):
            raise self.fail(f"there is no tensor {tensor}")

    def place(self, tensor: int, address: int, over: int = -1) -> None:
        size = self.problem.tensors[tensor].bytes
        end = address + (size + self.alignment - 1) // self.alignment * self.alignment
        if tensor in self.places:
            raise self.fail(f"{self.name(tensor)} is in the scratchpad already")
        if address % self.alignment:
            raise self.fail(f"{self.name(tensor)} lies at {address}, which is no multiple of {self.alignment}")
        if address < 0 or end > self.budget:
            raise self.fail(f"{self.name(tensor)} lies at {address} to {end}, outside of the {self.budget} bytes that there are")
        for other, (begin, behind) in self.places.items():
            if address < behind and begin < end and other != over:
                raise self.fail(f"{self.name(tensor)} at {address} to {end} overlaps {self.name(other)} at {begin} to {behind}")
        self.places[tensor] = (address, end)
        self.peak = max(self.peak, end)

    def run(self, step: Run) -> None:
        if not 0 <= step.operator < len(self.problem.operators):
            raise self.fail(f"there is no operator {step.operator}")
        operator = self.problem.operators[step.operator]
        if step.operator in self.done:
            raise self.fail(f"{operator.name} ran before")
        for tensor in (*operator.inputs, *self.problem.pinned):
            if tensor not in self.places:
                raise self.fail(f"{operator.name} needs {self.name(tensor)}, which is not in the scratchpad")
        if len(step.addresses) != len(operator.outputs):
            raise self.fail(f"{operator.name} has {len(operator.outputs)} results, but {len(step.addresses)} addresses are given")
        before = dict(self.places)
        over = self.overwritten(operator, step)
        for number, (tensor, address) in enumerate(zip(operator.outputs, step.addresses)):
            self.place(tensor, address, over if number == 0 else -1)
        if over >= 0:
            del self.places[over]
        for group in operator.joined:
            self.side_by_side(operator, group, before | self.places)
        self.done.add(step.operator)

    def overwritten(self, operator: Operator, step: Run) -> int:
        """The operand that the first result begins with and may take the place of (-1: none): it is gone behind the operator."""
        size = self.problem.tensors[operator.outputs[0]].bytes if operator.outputs else 0
        return next((t for t in operator.in_place if t in self.places and self.places[t][0] == step.addresses[0]
                     and 0 < size <= self.problem.tensors[t].bytes), -1)

    def side_by_side(self, operator: Operator, group: tuple[int, ...], places: dict[int, tuple[int, int]]) -> None:
        for left, right in pairwise(group):
            end, begin = places[left][0] + self.problem.tensors[left].bytes, places[right][0]
            if begin != end:
                raise self.fail(f"{operator.name} takes {self.name(left)} and {self.name(right)} as one, but they lie up to {end} and "
                                f"from {begin} on")

    def fetch(self, step: Fetch) -> None:
        self.known(step.tensor)
        if step.tensor not in self.off_chip:
            raise self.fail(f"{self.name(step.tensor)} is fetched, but is not off the chip")
        if step.tensor in self.problem.pinned:
            if step.tensor in self.fetched_pinned:
                raise self.fail(f"{self.name(step.tensor)} is pinned, but fetched twice")
            self.fetched_pinned.add(step.tensor)
        self.place(step.tensor, step.address)
        self.read += self.problem.tensors[step.tensor].bytes

    def spill(self, tensor: int) -> None:
        self.known(tensor)
        if tensor not in self.places:
            raise self.fail(f"{self.name(tensor)} is spilled, but is not in the scratchpad")
        if tensor in self.off_chip:
            raise self.fail(f"{self.name(tensor)} is spilled, but is off the chip already")
        self.off_chip.add(tensor)
        self.written += self.problem.tensors[tensor].bytes

    def free(self, tensor: int) -> None:
        self.known(tensor)
        if tensor not in self.places:
            raise self.fail(f"{self.name(tensor)} is freed, but is not in the scratchpad")
        del self.places[tensor]

    def account(self) -> Account:
        self.where = "at the end"
        for number, operator in enumerate(self.problem.operators):
            if number not in self.done:
                raise self.fail(f"{operator.name} never ran")
        for tensor in self.problem.results:
            if tensor not in self.off_chip:
                raise self.fail(f"the result {self.name(tensor)} is not off the chip")
        sizes = [tensor.bytes for tensor in self.problem.tensors]
        used = {t for operator in self.problem.operators for t in operator.inputs} | set(self.problem.pinned)
        compulsory = sum(size for t, size in enumerate(sizes) if self.problem.tensors[t].kind != VALUE and t in used)
        compulsory += sum(sizes[t] for t in self.problem.results if self.problem.tensors[t].kind == VALUE)
        return Account(self.read, self.written, compulsory, self.peak)
