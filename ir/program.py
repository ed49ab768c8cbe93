"""A compiled module before code generation: kernels, the order they are launched in, and where their buffers lie.

A `Program` is what backends take. Its steps run in order on every thread of the team; after each launch the threads
meet at a barrier, unless `barrier` is false. Offsets and sizes are in bytes and may be symbolic; `plan` computes them.

A program with a `scratchpad` is one for an accelerator whose kernels see that memory and the constants alone: whatever they
touch lies at an address there, and `Fetch`, `Reserve`, `Spill` and `Free` between launches say what comes, begins, leaves and ends
(`ir/residency.py`). Its sizes are numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct, field

from .dims import DimLike, Symbol
from .facts import Facts
from .graph import Constant
from .loop import Kernel
from .types import TensorType


class Place(Struct, frozen=True):
    """A buffer's memory: `space` is 'input', 'output', 'constant', 'workspace' or 'scratchpad'; `number` counts inputs or
    outputs; `offset` is in bytes from the start of that input or output, of the constants segment, of the workspace or of the
    scratchpad."""

    space: str
    number: int = 0
    offset: DimLike = 0


class Launch(Struct, frozen=True, eq=False):
    """Runs a kernel on all threads. `places` in the order of its buffers; `sizes` gives each of its symbols.
    `facts`: what is known of it, for people."""

    kernel: Kernel
    places: tuple[Place, ...]
    sizes: tuple[DimLike, ...]
    barrier: bool = True
    facts: Facts | None = None


class Repeat(Struct, frozen=True, eq=False):
    """Runs the steps with `symbol` = 0 .. extent - 1 (downwards if `reverse`), as offsets of their places may use it."""

    symbol: Symbol
    extent: DimLike
    steps: tuple[Step, ...]
    reverse: bool = False


class Loop(Struct, frozen=True, eq=False):
    """Runs `condition_steps`; while the bool at `condition` is true runs `steps` and the condition again."""

    condition_steps: tuple[Step, ...]
    condition: Place
    steps: tuple[Step, ...]


class Branch(Struct, frozen=True, eq=False):
    """Runs `then` where the bool at `condition` is true, else `otherwise`."""

    condition: Place
    then: tuple[Step, ...]
    otherwise: tuple[Step, ...]


class Fetch(Struct, frozen=True):
    """Copies bytes from a place off the chip to an address of the scratchpad, where they are a value until a `Free`."""

    source: Place
    address: int
    bytes: int


class Reserve(Struct, frozen=True):
    """Begins a value at an address that launches store to part by part: several launches, or those of control flow. Nothing moves."""

    address: int
    bytes: int


class Spill(Struct, frozen=True):
    """Copies the value at an address off the chip; it stays where it is too."""

    address: int
    target: Place
    bytes: int


class Free(Struct, frozen=True):
    """Ends the value at an address: others may have its bytes."""

    address: int


class Scratchpad(Struct, frozen=True):
    """The memory that an accelerator's kernels see. Values lie at multiples of `alignment` and take whole units of it."""

    bytes: int
    alignment: int


Transfer = Fetch | Reserve | Spill | Free
Step = Launch | Repeat | Loop | Branch | Transfer


class Program(Struct, frozen=True, eq=False):
    """`inputs` and `outputs`: (name, type). `constants`: (offset in the segment, value), offsets multiples of 64. With a
    `scratchpad` the workspace lies off the chip and holds what was spilled."""

    name: str
    inputs: tuple[tuple[str, TensorType], ...]
    outputs: tuple[tuple[str, TensorType], ...]
    constants: tuple[tuple[int, Constant], ...]
    constants_bytes: int
    workspace_bytes: DimLike
    steps: tuple[Step, ...]
    symbols: tuple[Symbol, ...] = field(default=())
    scratchpad: Scratchpad | None = None

    def kernels(self) -> tuple[Kernel, ...]:
        """Each kernel once, in the order of first launch."""
        found: dict[int, Kernel] = {}
        for launch in self.launches():
            found.setdefault(id(launch.kernel), launch.kernel)
        return tuple(found.values())

    def launches(self) -> Iterator[Launch]:
        """Every launch, in order."""
        stack: list[Step] = list(reversed(self.steps))
        while stack:
            step = stack.pop()
            match step:
                case Launch():
                    yield step
                case Repeat(steps=steps):
                    stack.extend(reversed(steps))
                case Loop(condition_steps=first, steps=steps):
                    stack.extend(reversed((*first, *steps)))
                case Branch(then=then, otherwise=otherwise):
                    stack.extend(reversed((*then, *otherwise)))


def nested_launches(steps: Sequence[Step], counters: tuple[Symbol, ...] = ()) -> Iterator[tuple[Launch, tuple[Symbol, ...]]]:
    """Each launch of the steps once, in the order of the text, with the symbols of the repeats around it, outermost first."""
    for step in steps:
        match step:
            case Launch():
                yield step, counters
            case Repeat(symbol=symbol, steps=body):
                yield from nested_launches(body, (*counters, symbol))
            case Loop(condition_steps=first, steps=body):
                yield from nested_launches((*first, *body), counters)
            case Branch(then=then, otherwise=otherwise):
                yield from nested_launches((*then, *otherwise), counters)
