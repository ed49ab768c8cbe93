"""The meaning of kernels and programs: runs them element by element and checks everything that no proof covers.

A kernel is translated once into a Python function (`loop_translate.py`), which is kept as long as the kernel lives; elements are
NumPy scalars, so every operation has exactly the meaning of `evaluate_scalar` and `cast_array`. What is checked:

- every index lies within its axis, and every symbol within its declared bounds;
- no element is read that nothing has stored to (parameters marked `out`, allocations, bytes of the workspace);
- no two iterations of a parallel or vector loop touch one element when one of them stores, except combining stores of
  one kind in a vector loop, and atomic ones; from local memory no iteration of a parallel loop reads what another stored;
- the same for blocks, threads, warps and lanes of a GPU, where one thread loop ends before the next begins; what a
  `copy_async` copies is not set until the `wait` for its group;
- with `threads` > 1, no two threads touch one element of a parameter without a barrier between, where thread t takes
  the iterations i of a parallel loop of n with i * threads // n == t;
- in a program: places lie within their segment and are aligned, stored buffers of a launch overlap no other, and bytes
  are not read after a launch has overwritten a part of the buffer they belonged to.

A broken rule is a VerifyError: the program is at fault, not its input. A `check` that fails raises IndexFailure or
RuntimeFailure with its message and numbers. Loops run in order on one thread, which is one of the orders allowed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn
from weakref import WeakKeyDictionary

import numpy as np
from msgspec import Struct, field

from .dims import evaluate, product
from .errors import ArgumentError, VerifyError
from .graph import Graph, Node
from .interp import bind_shapes
from .loop import Buffer, Kernel
from .loop_text import format_place
from .loop_translate import Mode, Translator
from .loop_verify import verify_kernel, verify_program
from .ops.control import Param
from .program import Branch, Fetch, Free, Launch, Loop, Place, Program, Repeat, Reserve, Spill, Step

MAX_THREADS = 62  # threads are bits of a 64-bit mask


# --- kernels ---------------------------------------------------------------------------------------------------------

_TRANSLATED: WeakKeyDictionary[Kernel, dict[Mode, Callable[..., None]]] = WeakKeyDictionary()


class _Argument(Struct):
    """A buffer's memory in one run: `flat` elements, which of them are `known` (set), and the threads that stored to
    and loaded each (empty for one thread)."""

    flat: np.ndarray
    known: bytearray
    stored_by: list[int] = field(default_factory=list)
    loaded_by: list[int] = field(default_factory=list)


def _execute(kernel: Kernel, arguments: Sequence[_Argument], sizes: Mapping[str, int], threads: int, checked: bool) -> None:
    if not 1 <= threads <= MAX_THREADS:
        raise ArgumentError(f"kernel {kernel.name}: {threads} threads, expected 1 to {MAX_THREADS}")
    unset = tuple(0 in a.known for a in arguments)
    mode = Mode(checked, checked and threads > 1, unset)
    known = _TRANSLATED.setdefault(kernel, {})
    if mode not in known:
        if not known:
            verify_kernel(kernel)
        known[mode] = Translator(kernel, mode).translate()
    _check_symbols(kernel, sizes)
    memories = []
    for argument in arguments:
        if mode.threads:
            argument.stored_by = [0] * argument.flat.size
            argument.loaded_by = [0] * argument.flat.size
        memories.append((argument.flat, argument.known, argument.stored_by, argument.loaded_by))
    try:
        with np.errstate(all="ignore"):
            known[mode](memories, dict(sizes), threads)
    except ZeroDivisionError:
        raise VerifyError(f"kernel {kernel.name}: a size is divided by zero", loc=kernel.loc) from None
    except OverflowError as error:
        raise VerifyError(f"kernel {kernel.name}: an index left 64 bits: {error}", loc=kernel.loc) from None


def _check_symbols(kernel: Kernel, sizes: Mapping[str, int]) -> None:
    for symbol in kernel.symbols:
        if symbol.name not in sizes:
            raise ArgumentError(f"kernel {kernel.name}: size {symbol.name} is not given; given are {', '.join(sizes) or 'none'}")
        value = sizes[symbol.name]
        if value < symbol.lower or (symbol.upper is not None and value > symbol.upper) or value % symbol.multiple_of:
            raise ArgumentError(f"kernel {kernel.name}: size {symbol.declaration()} is given as {value}")


def run_kernel(kernel: Kernel, arrays: Sequence[np.ndarray], sizes: Mapping[str, int], threads: int = 1,
               checked: bool = True) -> None:
    """Runs the kernel on arrays in the order of its parameters, in place. What `out` arrays hold before counts as
    uninitialised. Indices are always checked; initialisation and races only where `checked`."""
    if len(arrays) != len(kernel.buffers):
        raise ArgumentError(f"kernel {kernel.name}: {len(arrays)} arrays for {len(kernel.buffers)} buffers")
    arguments: list[_Argument] = []
    for buffer, array in zip(kernel.buffers, arrays):
        expected = tuple(evaluate(n, sizes) for n in buffer.shape)
        if array.dtype != buffer.dtype.numpy or array.shape != expected or not array.flags.c_contiguous:
            raise ArgumentError(f"kernel {kernel.name}: %{buffer.name} must be a C-contiguous {buffer.dtype}{list(expected)}, "
                                f"found {array.dtype}{list(array.shape)}")
        if buffer.space != "in" and not array.flags.writeable:
            raise ArgumentError(f"kernel {kernel.name}: %{buffer.name} is stored to, but the array is read-only")
        known = bytearray(array.size) if buffer.space == "out" else bytearray(b"\1" * array.size)
        arguments.append(_Argument(array.reshape(-1), known))
    _execute(kernel, arguments, sizes, threads, checked)


# --- programs --------------------------------------------------------------------------------------------------------


class _Segment(Struct):
    """Bytes of an input, an output, the constants or the workspace. `writer`: for each byte the number of the buffer
    that was stored there last (0: none); `spans`: where that buffer lay; `stored_by`, `loaded_by`: threads since the last barrier."""

    label: str
    data: np.ndarray
    writer: np.ndarray
    stored_by: np.ndarray
    loaded_by: np.ndarray
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)

    def barrier(self) -> None:
        self.stored_by[:] = 0
        self.loaded_by[:] = 0


def _segment(label: str, data: np.ndarray, initialised: bool, threads: int) -> _Segment:
    masks = data.size if threads > 1 else 0
    return _Segment(label, data, np.full(data.size, -1 if initialised else 0, dtype=np.int64),
                    np.zeros(masks, dtype=np.int64), np.zeros(masks, dtype=np.int64))


def run_program(program: Program, inputs: Sequence[np.ndarray], threads: int = 1, checked: bool = True) -> list[np.ndarray]:
    """The outputs for these inputs. The sizes of the program's symbols follow from the inputs' shapes; ArgumentError
    where these contradict the types."""
    return ProgramRun(program, inputs, threads, checked).outputs()


class ProgramRun:
    """One run of a program. What runs kernels in another way takes the place of `launch`."""

    def __init__(self, program: Program, inputs: Sequence[np.ndarray], threads: int, checked: bool) -> None:
        verify_program(program)
        self.program, self.threads, self.checked = program, threads, checked
        if len(inputs) != len(program.inputs):
            raise ArgumentError(f"{program.name}: {len(inputs)} inputs are given, expected {len(program.inputs)}")
        params = [Node(Param(name, t.dtype, t.shape), (), t) for name, t in program.inputs]
        self.binding = bind_shapes(Graph(program.name, params, []), list(inputs))
        self.stores = 0
        self.inputs = [_segment(f"input {name}", np.ascontiguousarray(a).reshape(-1).view(np.uint8), True, threads)
                       for (name, _), a in zip(program.inputs, inputs)]
        self.shapes = [tuple(evaluate(n, self.binding) for n in t.shape) for _, t in program.outputs]
        self.results = [_segment(f"output {name}", np.zeros(int(np.prod(shape, dtype=np.int64)) * t.dtype.bytes, np.uint8),
                                 False, threads) for (name, t), shape in zip(program.outputs, self.shapes)]
        constants = np.zeros(program.constants_bytes, dtype=np.uint8)
        self.constants = _segment("constants", constants, False, threads)
        for offset, constant in program.constants:
            raw = constant.array.reshape(-1).view(np.uint8)
            constants[offset:offset + raw.size] = raw
            self.constants.writer[offset:offset + raw.size] = -1
        size = evaluate(program.workspace_bytes, self.binding)
        self.workspace = _segment("workspace", np.zeros(size, dtype=np.uint8), False, threads)
        chip = 0 if program.scratchpad is None else program.scratchpad.bytes
        self.scratchpad = _segment("the scratchpad", np.zeros(chip, dtype=np.uint8), False, threads)
        self.lengths: dict[int, int] = {}  # of values in the scratchpad, as far as transfers and launches gave them addresses

    def fail(self, message: str) -> NoReturn:
        raise VerifyError(f"program {self.program.name}: {message}")

    def outputs(self) -> list[np.ndarray]:
        self.steps(self.program.steps, self.binding)
        found: list[np.ndarray] = []
        for (name, type), shape, segment in zip(self.program.outputs, self.shapes, self.results):
            if self.checked and segment.data.size and segment.writer.min() <= 0:
                first = int(np.argmin(segment.writer))
                self.fail(f"output {name}: byte {first} of {segment.data.size} is not stored to or is stale")
            found.append(segment.data.view(type.dtype.numpy).reshape(shape))
        return found

    def steps(self, steps: Sequence[Step], binding: Mapping[str, int]) -> None:
        for step in steps:
            match step:
                case Launch():
                    self.launch(step, binding)
                case Repeat(symbol=symbol, extent=extent, steps=body, reverse=reverse):
                    count = evaluate(extent, binding)
                    if symbol.upper is not None and count - 1 > symbol.upper:
                        self.fail(f"repeat {symbol.name} runs to {count - 1}, but is declared {symbol.declaration()}")
                    for i in reversed(range(count)) if reverse else range(count):
                        self.steps(body, {**binding, symbol.name: i})
                case Loop(condition_steps=first, condition=condition, steps=body):
                    self.steps(first, binding)
                    while self.truth(condition, binding):
                        self.steps(body, binding)
                        self.steps(first, binding)
                case Branch(condition=condition, then=then, otherwise=otherwise):
                    self.steps(then if self.truth(condition, binding) else otherwise, binding)
                case Fetch(source=source, address=address, bytes=size):
                    self.copy(source, Place("scratchpad", 0, address), size)
                    self.lengths[address] = size
                case Spill(address=address, target=target, bytes=size):
                    self.copy(Place("scratchpad", 0, address), target, size)
                case Reserve(address=address, bytes=size):
                    self.lengths[address] = size
                case Free(address=address):
                    self.forget(address)

    def copy(self, source: Place, target: Place, size: int) -> None:
        """What nothing has stored to stays so."""
        read, start = self.locate(source, size, {}, "a transfer")
        written, at = self.locate(target, size, {}, "a transfer")
        written.data[at:at + size] = read.data[start:start + size]
        self.stores += 1
        written.writer[at:at + size] = np.where(read.writer[start:start + size] == 0, 0, self.stores)
        written.spans[self.stores] = (at, at + size)

    def forget(self, address: int) -> None:
        """The bytes of a value that ended count as never stored to; what launches gave addresses within it was a part of it."""
        end = address + self.lengths[address]
        self.scratchpad.writer[address:end] = 0
        self.lengths = {at: size for at, size in self.lengths.items() if at != address and not address <= at < end}

    def truth(self, place: Place, binding: Mapping[str, int]) -> bool:
        """The bool at the place, which every thread reads."""
        segment, start = self.locate(place, 1, binding, "condition")
        if self.checked and segment.writer[start] == 0:
            self.fail(f"condition at {format_place(place)} is read, but nothing has stored to it")
        if self.threads > 1 and segment.stored_by[start]:
            self.fail(f"condition at {format_place(place)} is read by all threads without a barrier after its launch")
        return bool(segment.data[start])

    def locate(self, place: Place, size: int, binding: Mapping[str, int], what: str) -> tuple[_Segment, int]:
        segments = {"input": self.inputs, "output": self.results, "constant": [self.constants],
                    "workspace": [self.workspace], "scratchpad": [self.scratchpad]}[place.space]
        segment = segments[place.number]
        start = evaluate(place.offset, binding)
        if not 0 <= start <= start + size <= segment.data.size:
            self.fail(f"{what} takes bytes {start} to {start + size} of {segment.label}, which has {segment.data.size}")
        return segment, start

    # --- launches ---

    def launch(self, launch: Launch, binding: Mapping[str, int]) -> None:
        kernel = launch.kernel
        sizes = {s.name: evaluate(n, binding) for s, n in zip(kernel.symbols, launch.sizes)}
        arguments: list[_Argument] = []
        spans: list[tuple[Buffer, _Segment, int, int]] = []
        for buffer, place in zip(kernel.buffers, launch.places):
            size = evaluate(product(buffer.shape), sizes) * buffer.dtype.bytes
            what = f"launch {kernel.name}: %{buffer.name}"
            segment, start = self.locate(place, size, binding, what)
            if start % buffer.dtype.bytes:
                self.fail(f"{what} of {buffer.dtype} lies at byte {start} of {segment.label}, expected a multiple of "
                          f"{buffer.dtype.bytes}")
            if segment is self.scratchpad and buffer.space == "out":
                self.lengths.setdefault(start, size)
            spans.append((buffer, segment, start, start + size))
            arguments.append(self.argument(buffer, segment, start, start + size))
        self.check_overlap(kernel, spans)
        _execute(kernel, arguments, sizes, self.threads, self.checked)
        for argument, (buffer, segment, start, end) in zip(arguments, spans):
            if self.threads > 1 and self.checked:
                self.cross_threads(kernel, argument, buffer, segment, start, end)
        for argument, (buffer, segment, start, end) in zip(arguments, spans):
            if buffer.space != "in":
                self.record(argument, buffer, segment, start, end)
        if launch.barrier and self.threads > 1:
            for segment in (*self.inputs, *self.results, self.constants, self.workspace, self.scratchpad):
                segment.barrier()

    def argument(self, buffer: Buffer, segment: _Segment, start: int, end: int) -> _Argument:
        flat = segment.data[start:end].view(buffer.dtype.numpy)
        if buffer.space == "out":
            return _Argument(flat, bytearray(flat.size))
        known = (segment.writer[start:end].reshape(-1, buffer.dtype.bytes) != 0).all(axis=1)
        return _Argument(flat, bytearray(known.tobytes()))

    def check_overlap(self, kernel: Kernel, spans: Sequence[tuple[Buffer, _Segment, int, int]]) -> None:
        for a, b in itertools.combinations(spans, 2):
            if a[1] is b[1] and max(a[2], b[2]) < min(a[3], b[3]) and not a[0].space == b[0].space == "in":
                self.fail(f"launch {kernel.name}: %{a[0].name} (bytes {a[2]} to {a[3]}) and %{b[0].name} ({b[2]} to {b[3]}) "
                          f"overlap in {a[1].label} and one is stored to")

    def record(self, argument: _Argument, buffer: Buffer, segment: _Segment, start: int, end: int) -> None:
        """Marks what was stored. Where that cut a part off another launch's buffer, the rest of that buffer is stale."""
        known = np.frombuffer(bytes(argument.known), dtype=np.uint8).astype(bool)
        if not self.checked:
            known = np.ones_like(known)
        stored = np.repeat(known, buffer.dtype.bytes)
        for writer in np.unique(segment.writer[start:end][stored]):
            first, last = segment.spans.get(int(writer), (start, end))
            inside, around = start <= first and last <= end, first <= start and end <= last
            if not inside and not around:
                segment.writer[segment.writer == writer] = 0
        self.stores += 1
        segment.writer[start:end][stored] = self.stores
        segment.spans[self.stores] = (start, end)

    def cross_threads(self, kernel: Kernel, argument: _Argument, buffer: Buffer, segment: _Segment, start: int,
                      end: int) -> None:
        """Launches without a barrier between: no byte may cross from one thread to another."""
        stored = np.repeat(np.asarray(argument.stored_by, dtype=np.int64), buffer.dtype.bytes)
        loaded = np.repeat(np.asarray(argument.loaded_by, dtype=np.int64), buffer.dtype.bytes)
        before_stored, before_loaded = segment.stored_by[start:end], segment.loaded_by[start:end]
        bad = _two_threads(before_stored | before_loaded, stored) | _two_threads(before_stored, loaded)
        if bad.any():
            self.fail(f"launch {kernel.name}: two threads touch byte {start + int(np.argmax(bad))} of {segment.label} "
                      f"(%{buffer.name}) without a barrier between and one stores to it")
        before_stored |= stored
        before_loaded |= loaded


def _two_threads(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where one thread of `first` and a different one of `second` meet."""
    single = (first == second) & ((first & (first - 1)) == 0)
    return np.asarray((first != 0) & (second != 0) & ~single)
