"""How a compiled program is called must not matter: where its arguments lie, what memory held before, who calls beside.

Given an executable, inputs that it accepts and the results of a first call, it is called again in other ways, and every
result must have the same bits:

- after calls with other inputs, whose values the workspace still holds, on one and on two threads, several times;
- with `out=` arrays full of other bytes, in the middle of memory whose bytes around must stay;
- with inputs and `out=` arrays that are strided, reversed, in Fortran's order, misaligned, of the other byte order, and
  inputs that are read-only;
- with an `out=` array over an input, wholly or in part;
- from two threads at once.

Inputs keep their bytes, unless `out=` lies over them. What cannot be right is refused: `out=` arrays that share memory, or
that are read-only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from ..ir.errors import ArgumentError, TilewrightError
from ..ir.program import Branch, Loop, Program, Repeat
from ..runtime.executable import Executable
from .subject import Failure

Array = np.ndarray[Any, Any]
KIND, STAGE = "call", "runtime"
POISON = 0xA5  # what memory holds before a call
AROUND = 64    # bytes on both sides of an array of `out=`
ROUNDS = 3     # of calls on two threads


def check_calls(executable: Executable, inputs: Sequence[Array], expected: Sequence[Array], rng: np.random.Generator,
                others: Sequence[Array] | None = None) -> None:
    """Raises Failure for the first way of calling that gives something else than `expected`. `others`: inputs of the same shapes for
    which the program ends; what it gives for them is no matter."""
    before = [np.array(array) for array in inputs]
    check = _Calls(executable, before, expected, rng)
    check.after_other_inputs(before if others is None else others)
    check.layouts()
    check.out_layouts()
    check.overlapping()
    check.refusals()
    check.side_by_side()
    executable(*inputs)
    if not _same(inputs, before):
        raise Failure(KIND, STAGE, "a call changed its inputs")


class _Calls:
    """One executable with its inputs and results."""

    def __init__(self, executable: Executable, inputs: Sequence[Array], expected: Sequence[Array], rng: np.random.Generator) -> None:
        self.one, self.two = executable.with_threads(1), executable.with_threads(2)
        self.inputs, self.expected, self.rng = list(inputs), list(expected), rng

    def compare(self, what: str, found: Sequence[Array]) -> None:
        for position, (a, b) in enumerate(zip(self.expected, found, strict=True)):
            if not _same([a], [b]):
                raise Failure(KIND, STAGE, f"{what}: result {position} has other bits than those of the first call")

    def after_other_inputs(self, others: Sequence[Array]) -> None:
        """Memory that held the right values must not help."""
        for executable, threads in ((self.one, 1), *((self.two, 2),) * ROUNDS):
            with suppress(TilewrightError):
                executable(*others)
            raw = [_surrounded(array, self.rng) for array in self.expected]
            outs = [view for _, view in raw]
            found = _results(executable(*self.inputs, out=tuple(outs)))
            if any(a is not b for a, b in zip(found, outs)):
                raise Failure(KIND, STAGE, "a call with out= gives another array than it was given")
            self.compare(f"on {threads} threads, after a call with other inputs", found)
            if any(not _untouched(memory, view) for memory, view in raw):
                raise Failure(KIND, STAGE, f"on {threads} threads: bytes beside an array of out= are written to")

    def layouts(self) -> None:
        for name, changed in LAYOUTS.items():
            self.compare(f"inputs that are {name}", _results(self.one(*map(changed, self.inputs))))
        fixed = [array.copy() for array in self.inputs]
        for array in fixed:
            array.flags.writeable = False
        self.compare("inputs that are read-only", _results(self.one(*fixed)))

    def out_layouts(self) -> None:
        for name, changed in LAYOUTS.items():
            outs = tuple(changed(_poisoned(array)) for array in self.expected)
            self.one(*self.inputs, out=outs)
            self.compare(f"arrays of out= that are {name}", [np.asarray(out, dtype=a.dtype) for out, a in zip(outs, self.expected)])

    def overlapping(self) -> None:
        """One array of out= over one input: at the same place, and at some other place that meets it."""
        pairs = [(i, o) for i, a in enumerate(self.inputs) for o, b in enumerate(self.expected) if a.nbytes and b.nbytes]
        if not pairs:
            return
        given, result = pairs[int(self.rng.integers(len(pairs)))]
        a, b = self.inputs[given], self.expected[result]
        step = max(a.itemsize, b.itemsize)
        for shift in (0, int(self.rng.integers(-(b.nbytes // step), a.nbytes // step + 1)) * step):
            memory = np.full(a.nbytes + 2 * b.nbytes + 2 * step, POISON, np.uint8)
            start = -(-b.nbytes // step) * step
            source, target = _view(memory, a, start), _view(memory, b, max(start + shift, 0))
            source[...] = a
            inputs = [source if i == given else array for i, array in enumerate(self.inputs)]
            outs = tuple(target if o == result else _poisoned(array) for o, array in enumerate(self.expected))
            what = f"result {result} over input {given}, {shift} bytes behind its begin"
            self.compare(what, _results(self.one(*inputs, out=outs)))

    def refusals(self) -> None:
        filled = [o for o, array in enumerate(self.expected) if array.nbytes]
        if not filled:
            return
        outs = [_poisoned(array) for array in self.expected]
        outs[filled[0]].flags.writeable = False
        self.refused("an array of out= that is read-only", outs)
        outs = [_poisoned(array) for array in self.expected]
        if len(filled) > 1:
            first, second = filled[:2]
            memory = np.zeros(max(outs[first].nbytes, outs[second].nbytes), np.uint8)
            outs[first], outs[second] = _view(memory, outs[first], 0), _view(memory, outs[second], 0)
            self.refused("arrays of out= that share memory", outs)

    def refused(self, what: str, outs: Sequence[Array]) -> None:
        try:
            self.one(*self.inputs, out=tuple(outs))
        except ArgumentError:
            return
        raise Failure(KIND, STAGE, f"{what} are taken, expected an ArgumentError")

    def side_by_side(self) -> None:
        """Calls at once, each with arrays of its own."""
        def calls(executable: Executable) -> list[tuple[Array, ...]]:
            mine = [array.copy() for array in self.inputs]
            return [_results(executable(*mine)) for _ in range(2)]

        with ThreadPoolExecutor(2) as pool:
            for found in [made.result() for made in [pool.submit(calls, e) for e in (self.one, self.two)]]:
                for results in found:
                    self.compare("called from two threads at once", results)


# --- arrays ----------------------------------------------------------------------------------------------------------


def _results(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


def _same(left: Sequence[Array], right: Sequence[Array]) -> bool:
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


def _view(memory: Array, like: Array, offset: int) -> Array:
    """An array with the other's shape and dtype in the memory."""
    return np.ndarray(like.shape, like.dtype, buffer=memory.data, offset=offset)


def _poisoned(like: Array) -> Array:
    return _view(np.full(max(like.nbytes, 1), POISON, np.uint8), like, 0)


def _surrounded(like: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Memory, and an array in its middle that begins at any multiple of its elements."""
    memory = np.full(like.nbytes + 2 * AROUND, POISON, np.uint8)
    return memory, _view(memory, like, AROUND - like.itemsize * int(rng.integers(2)))


def _untouched(memory: Array, view: Array) -> bool:
    start = view.ctypes.data - memory.ctypes.data if view.nbytes else 0
    return bool((memory[:start] == POISON).all() and (memory[start + view.nbytes:] == POISON).all())


def _strided(array: Array) -> Array:
    if not array.ndim:
        return array
    wide = np.empty((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def reversed_inputs(program: Program, inputs: Sequence[Array]) -> list[Array] | None:
    """The inputs from the end along each axis: other inputs with the same elements, which programs refuse seldom. None where a
    loop of the program might not end for them."""
    steps = list(program.steps)
    while steps:
        match steps.pop():
            case Loop():
                return None
            case Repeat(steps=inner):
                steps += inner
            case Branch(then=then, otherwise=otherwise):
                steps += (*then, *otherwise)
    return [_reversed(array).copy(order="C") for array in inputs]


def _reversed(array: Array) -> Array:
    """From the end along each axis."""
    return array[(slice(None, None, -1),) * array.ndim] if array.ndim else array


def _misaligned(array: Array) -> Array:
    found = _view(np.empty(array.nbytes + 1, np.uint8), array, 1)
    found[...] = array
    return found


def _swapped(array: Array) -> Array:
    """Of the other byte order; ml_dtypes has none."""
    return array.astype(array.dtype.newbyteorder()) if array.dtype.kind in "iuf" and array.dtype.isbuiltin == 1 else array


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "strided": _strided,
    "reversed": lambda array: _reversed(_reversed(array).copy(order="C")),
    "in Fortran's order": lambda array: array.copy(order="F"),
    "misaligned": _misaligned,
    "of the other byte order": _swapped,
}
