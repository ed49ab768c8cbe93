"""Is what every step of a scheduled program touches in the scratchpad? Plays the transfers and launches in their order.

Assumes a program with a scratchpad. Guarantees, for one that it accepts: there is no symbolic size but the counters of repeats; values
lie at aligned addresses within the scratchpad and no two share a byte of their aligned places; a launch reads whole or parts of
values that are there, or several that lie side by side as one; it stores to what is free, to a value that a launch makes and that was
not copied off the chip, or over a whole value that it reads too, which is another value from then on; what it stores to is no other
operand of it; values neither begin nor end within control flow, whatever its conditions are, and none is replaced; kernels see the
scratchpad and the constants alone; a fetch copies what is off the chip; at the end every output was spilled. That a part of a reserved
value was stored to before it is read is for the interpreter to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from msgspec import Struct, field

from .dims import DimLike, Symbol, bounds, evaluate, product, size_of, substitute
from .errors import VerifyError
from .loop import Buffer
from .program import Branch, Fetch, Free, Launch, Loop, Place, Program, Repeat, Reserve, Spill, Step

MOST_BYTES = 2**48  # of a scratchpad: more than a machine can address
MOST_ALIGNMENT = 2**20


class Value(Struct):
    """A value in the scratchpad: its bytes, the first byte behind its aligned place, whether a launch made it, and whether it
    was copied off the chip."""

    bytes: int
    end: int
    made: bool
    kept: bool = False


def buffer_bytes(launch: Launch, buffer: Buffer) -> int:
    """What a launch whose sizes are numbers touches of a buffer's memory, at most."""
    sizes = {symbol.name: evaluate(size, {}) for symbol, size in zip(launch.kernel.symbols, launch.sizes)}
    return evaluate(product(buffer.shape), sizes) * buffer.dtype.bytes


def verify_residency(program: Program) -> None:
    """Raises VerifyError for the first step that is not right."""
    _Play(program).run()


class _Play(Struct):
    """The scratchpad while the steps are played. `values`: by address; `stored`: (space, number, offset) -> bytes that were spilled."""

    program: Program
    values: dict[int, Value] = field(default_factory=dict)
    stored: dict[tuple[str, int, int], int] = field(default_factory=dict)
    where: str = ""

    def fail(self, message: str) -> NoReturn:
        raise VerifyError(f"program {self.program.name}: {self.where}{message}")

    def run(self) -> None:
        self.check_memory()
        for number, step in enumerate(self.program.steps):
            self.where = f"step {number}: "
            self.step(step)
        self.where = "at the end: "
        for number, (name, type) in enumerate(self.program.outputs):
            size = evaluate(product(type.shape), {}) * type.dtype.bytes
            if size and self.stored.get(("output", number, 0)) != size:
                self.fail(f"output {name} was not spilled")

    def check_memory(self) -> None:
        program, memory = self.program, self.program.scratchpad
        assert memory is not None
        self.where = "the scratchpad: "
        if not 0 <= memory.bytes <= MOST_BYTES:
            self.fail(f"found {memory.bytes} bytes, expected 0 to {MOST_BYTES}")
        if not 0 < memory.alignment <= MOST_ALIGNMENT or memory.alignment & memory.alignment - 1:
            self.fail(f"found an alignment of {memory.alignment}, expected a power of two up to {MOST_ALIGNMENT}")
        if program.symbols or not isinstance(program.workspace_bytes, int):
            self.fail("a program with a scratchpad has no symbolic sizes")

    def step(self, step: Step) -> None:
        match step:
            case Launch():
                self.launch(step)
            case Fetch():
                self.fetch(step)
            case Spill():
                self.spill(step)
            case Reserve(address=address, bytes=size):
                self.reserve(address, size)
            case Free(address=address):
                if self.values.pop(address, None) is None:
                    self.fail(f"nothing lies at {address} that could be freed")
            case _:
                self.control((step,), {})

    # --- control flow ---

    def control(self, steps: Sequence[Step], counters: Mapping[str, DimLike]) -> None:
        """Steps of which nobody knows how often they run. `counters`: those of the repeats around them, with their bounds."""
        for step in steps:
            match step:
                case Launch():
                    self.launch(step, counters)
                case Repeat(symbol=symbol, extent=extent, steps=body):
                    last = self.number(extent) - 1
                    if last >= 0:
                        self.control(body, {**counters, symbol.name: size_of(Symbol(symbol.name, 0, last))})
                case Loop(condition_steps=first, condition=condition, steps=body):
                    self.control(first, counters)
                    self.condition(condition, counters)
                    self.control(body, counters)
                case Branch(condition=condition, then=then, otherwise=otherwise):
                    self.condition(condition, counters)
                    self.control(then, counters)
                    self.control(otherwise, counters)
                case _:
                    self.fail("there are no transfers within control flow")

    def condition(self, place: Place, counters: Mapping[str, DimLike]) -> None:
        begin, end = self.span(place, 1, counters)
        if place.space != "constant" and (place.space != "scratchpad" or self.value_around(begin, end) is None):
            self.fail(f"a condition is read at {place.space} {begin}, where no value is in the scratchpad")

    def span(self, place: Place, size: int, counters: Mapping[str, DimLike]) -> tuple[int, int]:
        """All bytes that are touched from the place on, whatever the counters are."""
        low, high = bounds(substitute(place.offset, counters))
        return self.number(low), self.number(high) + size

    # --- transfers ---

    def fetch(self, step: Fetch) -> None:
        key = self.off_chip(step.source, step.bytes)
        if step.source.space in ("output", "workspace") and self.stored.get(key) != step.bytes:
            self.fail(f"{step.bytes} bytes at {_spelled(key)} are fetched, but were not spilled there")
        self.place(step.address, step.bytes, made=False)

    def spill(self, step: Spill) -> None:
        if step.target.space not in ("output", "workspace"):
            self.fail(f"a value goes to an output or to the workspace, found {step.target.space}")
        value = self.values.get(step.address)
        if value is None or value.bytes != step.bytes:
            there = f"found {value.bytes}" if value is not None else "nothing is there"
            self.fail(f"{step.bytes} bytes at {step.address} are spilled, but {there}")
        key = self.off_chip(step.target, step.bytes)
        for other, size in self.stored.items():
            if other[:2] == key[:2] and other != key and other[2] < key[2] + step.bytes and key[2] < other[2] + size:
                self.fail(f"{_spelled(key)} to {key[2] + step.bytes} overlaps what was spilled to {_spelled(other)}")
        self.stored[key] = step.bytes
        value.kept = True

    def reserve(self, address: int, size: int) -> None:
        if size <= 0:
            self.fail(f"{size} bytes are reserved, expected one or more")
        self.place(address, size, made=True)

    def off_chip(self, place: Place, size: int) -> tuple[str, int, int]:
        """The place as a key; it is known to be within its space."""
        if place.space == "scratchpad":
            self.fail("a transfer is between the scratchpad and a place off the chip")
        offset = self.number(place.offset)
        if size < 0:
            self.fail(f"found {size} bytes")
        return place.space, place.number, offset

    def number(self, size: object) -> int:
        if not isinstance(size, int):
            self.fail(f"found the size {size}; a program with a scratchpad has numbers")
        return size

    def place(self, address: int, size: int, made: bool) -> None:
        memory = self.program.scratchpad
        assert memory is not None
        if not size:
            return
        end = address + -(-size // memory.alignment) * memory.alignment
        if address % memory.alignment:
            self.fail(f"a value lies at {address}, which is no multiple of {memory.alignment}")
        if address < 0 or end > memory.bytes:
            self.fail(f"a value lies at {address} to {end}, outside of the {memory.bytes} bytes of the scratchpad")
        for begin, other in self.values.items():
            if address < other.end and begin < end:
                self.fail(f"a value at {address} to {end} overlaps the one at {begin} to {other.end}")
        self.values[address] = Value(size, end, made)

    # --- launches ---

    def launch(self, launch: Launch, counters: Mapping[str, DimLike] | None = None) -> None:
        """`counters`: of a launch within control flow, which begins no value."""
        touched: list[tuple[Buffer, int, int]] = []
        for buffer, place in zip(launch.kernel.buffers, launch.places):
            what = f"launch {launch.kernel.name}: %{buffer.name}"
            if place.space == "constant" and buffer.space == "in":
                continue
            if place.space != "scratchpad":
                self.fail(f"{what} lies in {place.space} {place.number}, which kernels do not see")
            for size in launch.sizes:
                self.number(size)
            size = buffer_bytes(launch, buffer)
            begin, end = self.span(place, size, counters or {})
            if not size:
                continue
            for other, low, high in touched:
                if begin < high and low < end and not buffer.space == other.space == "in":
                    self.fail(f"{what} lies at {begin} to {end}, which %{other.name} overlaps, and one of them is stored to")
            touched.append((buffer, begin, end))
            if buffer.space != "in":
                self.store(what, buffer, begin, end, counters is not None)
            elif not self.holds(begin, end):
                self.fail(f"{what} reads {begin} to {end}, which are no part of one value there, or of some side by side")

    def store(self, what: str, buffer: Buffer, begin: int, end: int, controlled: bool) -> None:
        """`controlled`: within control flow."""
        value = self.value_around(begin, end)
        if value is None and buffer.space == "out" and not controlled:
            self.place(begin, end - begin, made=True)
        elif value is None:
            verb = "stores to" if buffer.space == "out" else "reads"
            self.fail(f"{what} {verb} {begin} to {end}, which are no part of one value in the scratchpad")
        elif buffer.space == "inout" and not controlled and self.values.get(begin) is value and value.bytes == end - begin:
            value.made, value.kept = True, False
        elif not value.made or value.kept:
            reason = "a launch" if not value.made else "others: it was spilled"
            self.fail(f"{what} stores to {begin} to {end}, which hold a value that is not for {reason} to change")

    def value_around(self, begin: int, end: int) -> Value | None:
        return next((value for at, value in self.values.items() if at <= begin and end <= at + value.bytes), None)

    def holds(self, begin: int, end: int) -> bool:
        """Whether the bytes are those of a value, or of values with none between them."""
        while begin < end:
            following = next((at + value.bytes for at, value in self.values.items() if at <= begin < at + value.bytes), None)
            if following is None:
                return False
            begin = following
        return True


def _spelled(key: tuple[str, int, int]) -> str:
    space, number, offset = key
    return f"{space} {number} at {offset}" if space in ("input", "output") else f"{space} {offset}"
