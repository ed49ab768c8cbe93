"""What the threads of a block do together, run element by element for `loop_translate`.

Memory is a pair: the elements of a buffer, and for each whether it is set (None where that is not followed). Sums of floats are
taken in the order of the threads, which is one of those allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .loop_gpu import BYTE_STEPS, square_of
from .ops.compute import cut_to_tf32, panels_of_squares, round_to_tf32
from .ops.weight_only import WORD, codes_of_words

Array = np.ndarray[Any, Any]
# elements, which of them are set, the shape, the first element's indices, the buffer's name
Part = tuple[Array, bytearray | None, tuple[int, int], tuple[int, int], str]
Copy = tuple[Array, bytearray | None, int, Any]


class Faults(Protocol):
    """What complains of an access."""

    def outside(self, buffer: str, axis: int, index: int, size: int) -> None: ...

    def unset(self, buffer: str, element: int) -> None: ...


def collect(memory: Array, known: bytearray | None, shape: tuple[int, ...], width: int, combine: Callable[[Any, Any], Any],
            unset: Callable[[int], None]) -> None:
    """Every thread's registers become the combination of its group's."""
    if known is not None and 0 in known:
        unset(known.index(0))
    threads = memory.reshape(shape[0], -1)
    for first in range(0, shape[0], width):
        for position in range(threads.shape[1]):
            total = threads[first, position]
            for thread in range(first + 1, first + width):
                total = combine(total, threads[thread, position])
            threads[first:first + width, position] = total


def add_products(accumulator: tuple[Array, bytearray | None, tuple[int, int, int], int, str], left: Part, right: Part, depth: int,
                 grouped: bool, codes: tuple[int, int], tf32: str, faults: Faults) -> None:
    """Adds the product of two parts to the fragment of a warp. `codes`: bits of those that the right operand holds (0: none), and their
    zero. `tf32`: operands that are rounded to that."""
    memory, known, (warps, rows, columns), warp, name = accumulator
    size = rows * columns
    start = warp * size
    if known is not None and 0 in known[start:start + size]:
        faults.unset(name, known.index(0, start))
    a = _part(left, (rows, depth), faults).astype(memory.dtype)
    bits, zero = codes
    if bits:
        words = np.ascontiguousarray(_part(right, (depth * bits // WORD, columns), faults))
        b = codes_of_words(words[None], bits)[0].astype(np.int32) - zero
    elif left[0].dtype.itemsize == right[0].dtype.itemsize == 1:
        b = np.empty((depth, columns), right[0].dtype)
        b.reshape(depth // 16, 16, columns)[:, BYTE_STEPS] = _part(right, (depth, columns), faults).reshape(depth // 16, 16, columns)
    elif left[0].dtype.itemsize == 1:  # words of four signed bytes each, or of four of the left operand's float8
        words = _part(right, (depth // 4, columns), faults)
        words = panels_of_squares(words, square_of(words.dtype.itemsize), True) if grouped else words
        held = np.int8 if left[0].dtype.kind in "iu" else left[0].dtype
        b = np.moveaxis(np.ascontiguousarray(words).view(held).reshape(depth // 4, columns, 4), -1, 1).reshape(depth, columns)
    else:
        b = _part(right, (depth, columns), faults)
        b = panels_of_squares(b, square_of(b.dtype.itemsize), tf32 != "") if grouped else b
    b = b.astype(memory.dtype)
    if tf32:
        a, b = round_to_tf32(a), (round_to_tf32 if tf32 == "both" else cut_to_tf32)(b)
    memory.reshape(warps, rows, columns)[warp] += a @ b


def _part(part: Part, extents: tuple[int, int], faults: Faults) -> Array:
    memory, known, shape, first, name = part
    for axis in range(2):
        for index in (first[axis], first[axis] + extents[axis] - 1):
            if not 0 <= index < shape[axis]:
                faults.outside(name, axis, index, shape[axis])
    area = tuple(slice(f, f + n) for f, n in zip(first, extents))
    if known is not None:
        flags = np.frombuffer(known, np.uint8).reshape(shape)[area]
        if not flags.all():
            row, column = np.argwhere(flags == 0)[0]
            faults.unset(name, int((first[0] + row) * shape[1] + first[1] + column))
    return memory.reshape(shape)[area]


def copy_bulk(target: tuple[Array, bytearray | None], place: int, source: tuple[Array, bytearray | None], origin: int, count: int,
              unset: Callable[[int], None]) -> None:
    """Copies neighbouring elements, which are all within their buffers."""
    memory, known = target
    values, given = source
    if given is not None and 0 in given[origin:origin + count]:
        unset(given.index(0, origin))
    memory[place:place + count] = values[origin:origin + count]
    if known is not None:
        known[place:place + count] = b"\1" * count


def finish_copies(groups: list[list[Copy]], left: int) -> None:
    """Makes what the groups have copied visible, but for the last ones."""
    while len(groups) > left:
        for memory, known, element, value in groups.pop(0):
            memory[element] = value
            if known is not None:
                known[element] = 1
