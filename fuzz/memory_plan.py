"""An independent checker of memory plans: is every value of a lowered program still there when it is read?

Takes a `Program` alone and follows its steps at given sizes: in every segment (inputs, outputs, constants, the workspace)
it keeps which launch stored which bytes last, and what of that has been cut by a later store. It knows nothing of how the
plan was made; sizes are evaluated here, not by the arithmetic that the planner compares them with. Checked:

- places lie within their segment at these sizes; those of the workspace and of constants begin at multiples of 64 bytes
  (slices of a step of a `repeat` at multiples of their element), inputs and constants are never stored to;
- what a launch stores to overlaps none of its other buffers; a buffer that it both reads and replaces (`inout`) is read
  only in a block that stores to it at the very index, before it does;
- what is read was stored, whole, as elements of that dtype, by a launch that ran on every way here, and nothing has been
  stored over a part of it since; the outputs are whole at the end;
- every index of every access lies within its buffer, as far as it does not hang on data (`footprints.py`);
- launches without a barrier between share no bytes that one of them stores, unless a single thread runs both.

Both sides of branches are followed, and loops until nothing changes. Sizes that the program cannot be called with (an
extent is negative, a size is outside of what a kernel declares and a check stands before it) are `Refused`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from msgspec import Struct, field

from ..ir.dims import Atom, DimLike, Symbol, symbols_of
from ..ir.loop import Check, For, Kernel, Load, Stmt, Store, blocks_of, expression_nodes, expressions_of, walk
from ..ir.program import Branch, Launch, Loop, Place, Program, Repeat, Step
from .footprints import TooMuch, access_fault
from .subject import Failure, Refused

ALIGNMENT = 64
MOST_STEPS = 20_000   # followed at one choice of sizes
MOST_ROUNDS = 16      # of a loop until its state no longer changes
MOST_SIZES = 6        # of an unbounded symbol, beyond its least one
KIND, STAGE = "memory plan", "lower"
SegmentName = tuple[str, int]
Binding = Mapping[str, int]


class Stored(Struct, frozen=True):
    """A value in memory: who stored it, the bytes that it takes as a whole, its dtype, and whether it is one slice of many."""

    writer: str
    start: int
    end: int
    dtype: str
    slice: bool = False


class Piece(Struct, frozen=True):
    """Bytes of a segment with the values that may lie there. `cut`: who stored over another part of them, '' if nobody did."""

    start: int
    end: int
    values: frozenset[Stored]
    cut: str = ""


Memory = dict[SegmentName, tuple[Piece, ...]]


class KernelFacts(Struct, frozen=True):
    """What is known of a kernel's text: a load that might see what another iteration stored ('' if there is none), whether only
    one thread stores to parameters, and whether it may end the call."""

    fault: str
    alone: bool
    checks: bool


class Access(Struct, frozen=True):
    """What a launch touches: a buffer's name and access, its segment and bytes."""

    what: str
    space: str
    segment: SegmentName
    start: int
    end: int
    dtype: str
    slice: bool

    @property
    def stores(self) -> bool:
        return self.space != "in"

    def meets(self, other: Access) -> bool:
        return self.segment == other.segment and max(self.start, other.start) < min(self.end, other.end)


# --- sizes -----------------------------------------------------------------------------------------------------------


def number(size: DimLike, binding: Binding) -> int:
    """The size at a binding, in Python's integers. Refused where it divides by less than one."""
    if isinstance(size, int):
        return size
    total = 0
    for monomial, coefficient in size.terms:
        for atom, power in monomial:
            coefficient *= _atom(atom, binding) ** power
        total += coefficient
    return total


def _atom(atom: Atom, binding: Binding) -> int:
    if isinstance(atom, Symbol):
        return binding[atom.name]
    left, right = number(atom.left, binding), number(atom.right, binding)
    if atom.kind == "min":
        return min(left, right)
    if right < 1:
        raise Refused(f"memory plan: a size is divided by {right}")
    return left // right if atom.kind == "floordiv" else left % right


def bindings_of(program: Program, rng: np.random.Generator, count: int) -> Iterator[dict[str, int]]:
    """Sizes within the bounds of the program's symbols: the least, the greatest, then random ones."""
    if not program.symbols:
        yield {}
        return
    for turn in range(count):
        found = {}
        for declared in program.symbols:
            step = declared.multiple_of
            first = -(-declared.lower // step)
            last = first + MOST_SIZES if declared.upper is None else declared.upper // step
            chosen = (first, last)[turn] if turn < 2 else int(rng.integers(first, last + 1))
            found[declared.name] = chosen * step
        yield found


# --- memory ----------------------------------------------------------------------------------------------------------


def overlapping(pieces: Sequence[Piece], start: int, end: int) -> Sequence[Piece]:
    return pieces[slice(*_places(pieces, start, end))]


def _places(pieces: Sequence[Piece], start: int, end: int) -> tuple[int, int]:
    """Which of the pieces, which lie in order, meet these bytes."""
    return bisect_right(pieces, start, key=lambda p: p.end), bisect_left(pieces, end, key=lambda p: p.start)


def stored_over(pieces: tuple[Piece, ...], value: Stored) -> tuple[Piece, ...]:
    """The pieces after a store; what is left of values that it took a part of is cut. Only pieces within these values are looked at: a
    loop may store as many slices as it has steps."""
    start, end = value.start, value.end
    hurt = {v for p in overlapping(pieces, start, end) for v in p.values}
    first, last = _places(pieces, min([start, *(v.start for v in hurt)]), max([end, *(v.end for v in hurt)]))
    near = [Piece(start, end, frozenset((value,)))]
    for piece in pieces[first:last]:
        cut = piece.cut or (value.writer if not hurt.isdisjoint(piece.values) else "")
        for low, high in ((piece.start, min(piece.end, start)), (max(piece.start, end), piece.end)):
            if low < high:
                near.append(Piece(low, high, piece.values, cut))
    return (*pieces[:first], *sorted(near, key=lambda p: p.start), *pieces[last:])


def joined(left: Memory, right: Memory) -> Memory:
    """What is there whichever way led here: bytes that both have, with the values of either."""
    found: Memory = {}
    for segment in left.keys() & right.keys():
        pieces = []
        for a in left[segment]:
            for b in overlapping(right[segment], a.start, a.end):
                pieces.append(Piece(max(a.start, b.start), min(a.end, b.end), a.values | b.values, a.cut or b.cut))
        found[segment] = tuple(pieces)
    return found


# --- kernels ---------------------------------------------------------------------------------------------------------


def facts_of(kernel: Kernel) -> KernelFacts:
    faults = [_block_fault(kernel.body, buffer.name) for buffer in kernel.buffers if buffer.space == "inout"]
    return KernelFacts(next(filter(None, faults), ""), not any(isinstance(s, For) and s.kind == "parallel" for s in kernel.body),
                       any(isinstance(s, Check) for s in walk(kernel.body)))


def _block_fault(body: Sequence[Stmt], name: str) -> str:
    """Which load of the buffer has no store at its index behind it in its block, as the only one there; '' if none."""
    stored: list[tuple[DimLike, ...]] = []
    later = [s.index for s in body if isinstance(s, Store) and s.buffer == name]
    for statement in body:
        read = [n.op.index for root in expressions_of(statement) for n in expression_nodes(root)
                if isinstance(n.op, Load) and n.op.buffer == name]
        for index in read:
            if index in stored or later != [index]:
                return f"%{name}{[str(i) for i in index]} is read, but its block replaces {[[str(i) for i in s] for s in later]}"
        if isinstance(statement, Store) and statement.buffer == name:
            stored.append(statement.index)
        for block in blocks_of(statement):
            fault = _block_fault(block, name)
            if fault:
                return fault
    return ""


# --- the check -------------------------------------------------------------------------------------------------------


def check_plan(program: Program, bindings: Sequence[Binding]) -> int:
    """Follows the program at each of these sizes; how many of them it can be called with. Failure names what is wrong."""
    kernels = {id(kernel): facts_of(kernel) for kernel in program.kernels()}
    followed = 0
    for binding in bindings:
        try:
            _Follower(program, binding, kernels).follow()
        except Refused:
            continue
        followed += 1
    return followed


class _Follower(Struct):
    """One walk through a program. `since`: what was touched after the last barrier, and whether by one thread alone;
    `kernels`: what is known of each; `checked`: whether one that may end the call has run."""

    program: Program
    binding: Binding
    kernels: dict[int, KernelFacts]
    memory: Memory = field(default_factory=dict)
    sizes: dict[SegmentName, int] = field(default_factory=dict)
    walked: set[tuple[int, ...]] = field(default_factory=set)
    since: list[tuple[Access, bool]] = field(default_factory=list)
    steps_left: int = MOST_STEPS
    checked: bool = False

    def fail(self, message: str) -> None:
        sizes = ", ".join(f"{name} = {size}" for name, size in self.binding.items())
        raise Failure(KIND, STAGE, message + (f" (for {sizes})" if sizes else ""))

    def follow(self) -> None:
        program, binding = self.program, self.binding
        for space, tensors in (("input", program.inputs), ("output", program.outputs)):
            for position, (name, kind) in enumerate(tensors):
                shape = [number(n, binding) for n in kind.shape]
                if min(shape, default=0) < 0:
                    raise Refused(f"memory plan: {name} has a negative size")
                size = math.prod(shape) * kind.dtype.bytes
                self.sizes[space, position] = size
                self.memory[space, position] = ()
                if space == "input" and size:
                    self.memory[space, position] = (Piece(0, size, frozenset((Stored(f"input {name}", 0, size, kind.dtype.name),))),)
        self.constants()
        self.sizes["workspace", 0] = number(program.workspace_bytes, binding)
        self.memory["workspace", 0] = ()
        self.run(program.steps, binding)
        for position, (name, kind) in enumerate(program.outputs):
            size = self.sizes["output", position]
            if size:
                self.read(Access(f"output {name} at the end", "in", ("output", position), 0, size, kind.dtype.name, False))

    def constants(self) -> None:
        pieces: list[Piece] = []
        for offset, constant in self.program.constants:
            size = int(constant.array.nbytes)
            if offset % ALIGNMENT or pieces and offset < pieces[-1].end:
                self.fail(f"the constant at {offset} is not aligned, or begins before the one before it ends")
            if size:
                pieces.append(Piece(offset, offset + size, frozenset((Stored("constant", offset, offset + size, constant.dtype.name),))))
        self.sizes["constant", 0] = self.program.constants_bytes
        self.memory["constant", 0] = tuple(pieces)

    # --- steps ---

    def run(self, steps: Sequence[Step], binding: Binding) -> None:
        for step in steps:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise Refused(f"memory plan: more than {MOST_STEPS} steps")
            match step:
                case Launch():
                    self.launch(step, binding)
                case Repeat(symbol=symbol, extent=extent, steps=body, reverse=reverse):
                    turns = range(number(extent, binding))
                    for turn in reversed(turns) if reverse else turns:
                        self.run(body, {**binding, symbol.name: turn})
                case Loop(condition_steps=first, condition=condition, steps=body):
                    self.loop(first, condition, body, binding)
                case Branch(condition=condition, then=then, otherwise=otherwise):
                    self.decide(condition, binding)
                    before, since = self.memory, list(self.since)
                    self.run(then, binding)
                    after, after_since = self.memory, self.since
                    self.memory, self.since = before, since
                    self.run(otherwise, binding)
                    self.memory, self.since = joined(after, self.memory), [*after_since, *self.since]

    def loop(self, first: Sequence[Step], condition: Place, body: Sequence[Step], binding: Binding) -> None:
        self.run(first, binding)
        self.decide(condition, binding)
        for _ in range(MOST_ROUNDS):
            before = self.memory
            self.run(body, binding)
            self.run(first, binding)
            self.decide(condition, binding)
            self.memory = joined(before, self.memory)
            if self.memory == before:
                return
        raise Refused("memory plan: a loop does not settle")

    def decide(self, place: Place, binding: Binding) -> None:
        access = self.access("a condition", "in", place, 1, "bool", binding)
        self.read(access)
        if any(other.stores and other.meets(access) for other, _ in self.since):
            self.fail(f"the condition at {_said(access)} is read by all threads without a barrier after its launch")

    # --- launches ---

    def access(self, what: str, space: str, place: Place, size: int, dtype: str, binding: Binding) -> Access:
        segment = (place.space, place.number)
        start = number(place.offset, binding)
        known = {symbol.name for symbol in self.program.symbols}
        repeated = any(symbol.name not in known for symbol in symbols_of(place.offset))
        access = Access(what, space, segment, start, start + size, dtype, repeated)
        if segment not in self.sizes:
            self.fail(f"{what} lies in {place.space} {place.number}, which there is not")
        if not 0 <= start <= start + size <= self.sizes[segment]:
            self.fail(f"{_said(access)} is not within the {self.sizes[segment]} bytes that there are")
        if access.stores and place.space in ("input", "constant"):
            self.fail(f"{_said(access)} is stored to")
        return access

    def launch(self, launch: Launch, binding: Binding) -> None:
        kernel = launch.kernel
        sizes = self.kernel_sizes(launch, binding)
        accesses: list[Access] = []
        for buffer, place in zip(kernel.buffers, launch.places, strict=True):
            shape = [number(n, sizes) for n in buffer.shape]
            if min(shape, default=0) < 0:
                raise Refused(f"memory plan: a buffer of {kernel.name} has a negative size")
            size = math.prod(shape) * buffer.dtype.bytes
            access = self.access(f"%{buffer.name} of {kernel.name}", buffer.space, place, size, buffer.dtype.name, binding)
            wanted = ALIGNMENT if place.space in ("constant", "workspace") and not access.slice else buffer.dtype.bytes
            if access.start % wanted:
                self.fail(f"{_said(access)} begins at no multiple of {wanted}")
            accesses.append(access)
        self.apart(kernel, accesses)
        self.inside(kernel, sizes)
        for access in accesses:
            if access.space != "out" and access.end > access.start:
                self.read(access)
        for access in accesses:
            if access.stores and access.end > access.start:
                value = Stored(f"%{access.what[1:]}", access.start, access.end, access.dtype, access.slice)
                self.memory = {**self.memory, access.segment: stored_over(self.memory[access.segment], value)}
        self.meet(launch, accesses)

    def kernel_sizes(self, launch: Launch, binding: Binding) -> dict[str, int]:
        kernel, sizes = launch.kernel, {}
        for symbol, size in zip(kernel.symbols, launch.sizes, strict=True):
            value = sizes[symbol.name] = number(size, binding)
            if not symbol.lower <= value or symbol.upper is not None and value > symbol.upper or value % symbol.multiple_of:
                if self.checked:
                    raise Refused("memory plan: the call may have ended before")
                self.fail(f"{kernel.name} is given {value} for {symbol.declaration()}")
        self.checked = self.checked or self.kernels[id(kernel)].checks
        return sizes

    def inside(self, kernel: Kernel, sizes: Mapping[str, int]) -> None:
        """What the kernel touches lies within its buffers; looked at once for the same sizes."""
        known = (id(kernel), *sizes.values())
        if known in self.walked:
            return
        self.walked.add(known)
        try:
            fault = access_fault(kernel, sizes)
        except TooMuch:
            return
        if fault:
            given = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            self.fail(f"{kernel.name} leaves a buffer{f' for {given}' if given else ''}: {fault}")

    def apart(self, kernel: Kernel, accesses: Sequence[Access]) -> None:
        """What the launch stores to is nobody else's, and read only where that is harmless."""
        fault = self.kernels[id(kernel)].fault
        if fault:
            self.fail(f"{kernel.name} writes over what it reads: {fault}")
        for position, access in enumerate(accesses):
            for other in accesses[:position]:
                if (access.stores or other.stores) and access.meets(other):
                    self.fail(f"{_said(access)} and {_said(other)} overlap in one launch, and one is stored to")

    def meet(self, launch: Launch, accesses: Sequence[Access]) -> None:
        """Launches since the last barrier: their threads may run at any time."""
        alone = self.kernels[id(launch.kernel)].alone
        for access in accesses:
            for other, other_alone in self.since:
                if access.meets(other) and (access.stores or other.stores) and not (alone and other_alone):
                    self.fail(f"{_said(access)} and {_said(other)} share bytes that one stores, without a barrier between")
        self.since = [] if launch.barrier else [*self.since, *((access, alone) for access in accesses)]

    def read(self, access: Access) -> None:
        """What lies there is one whole value, or slices that make one up."""
        end = access.start
        for piece in overlapping(self.memory[access.segment], access.start, access.end):
            if piece.start > end:
                break
            end = piece.end
            if piece.cut:
                self.fail(f"{_said(access)} reads what {_names(piece)} stored, but {piece.cut} was stored over a part of it")
            for value in piece.values:
                self.fits(access, value)
        if end < access.end:
            self.fail(f"{_said(access)} reads byte {end}, which nothing has stored to")

    def fits(self, access: Access, value: Stored) -> None:
        if value.dtype != access.dtype:
            self.fail(f"{_said(access)} reads {access.dtype} where {value.writer} stored {value.dtype}")
        whole = value.start == access.start and value.end == access.end
        part = access.slice and value.start <= access.start and access.end <= value.end
        parts = value.slice and access.start <= value.start and value.end <= access.end
        if not (whole or part or parts):
            self.fail(f"{_said(access)} reads a value of {value.writer} that takes bytes {value.start} to {value.end}")


def _names(piece: Piece) -> str:
    return " or ".join(sorted(value.writer for value in piece.values))


def _said(access: Access) -> str:
    space, position = access.segment
    return f"{access.what} (bytes {access.start} to {access.end} of {space}{f' {position}' if space in ('input', 'output') else ''})"
