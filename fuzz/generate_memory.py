"""Graphs whose values lie in memory, and graphs of parts that are nearly equal.

Where a value lies is decided by when it is read last, how many bytes it has, and what is known of its size beside those of others:
`memory_graph` has values of several sizes, which are multiples and parts of one number or symbol, some dead after the next step,
some read again at the end, some read in two orders by who may replace them. Which parts of a program share a kernel is decided
by what tells them apart: `twin_graph` makes one part two or three times, each time with another single choice.

Guarantees: graphs of up to four results; no number is more than `GROWTH` times the largest of the operands where they are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from .. import library
from ..ir.dims import DimLike, bounds
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Cast, Cumulative, Elementwise, Reduce
from ..ir.ops.control import Param
from ..ir.ops.shape import Concat
from ..ir.types import F32, F64, I32, I64, DType, TensorType
from .mutate_memory import reordered, stored
from .rebuild import chosen
from .sizes import random_symbol

T = TypeVar("T")
LENGTHS = (1, 2, 3, 5, 8, 17, 40)
COLUMNS = (1, 2, 3, 8)
MOST_LENGTH = 100
DTYPES: tuple[DType, ...] = (F32, F32, F64, I32, I64)
STEPS = 6
GROWTH = 4.0 ** STEPS


# --- values in memory --------------------------------------------------------------------------------------------------


def memory_graph(rng: np.random.Generator) -> Graph:
    """Values that kernels of their own compute, one after the other, from any of those before."""
    b = Builder()
    length = random_symbol(rng) if rng.random() < 0.5 else chosen(rng, LENGTHS)
    rest = (chosen(rng, COLUMNS),) if rng.random() < 0.3 else ()
    params = [b.add(Param("x0", chosen(rng, DTYPES), (length, *rest)))]
    values = [stored(b, rng, params[0])]
    for _ in range(int(rng.integers(2, STEPS + 1))):
        x = values[-1] if rng.random() < 0.6 else chosen(rng, values)
        values.append(_following(b, rng, x, values))
    kept = [values[-1], *(v for v in values[:-1] if rng.random() < 0.15)]
    return Graph("memory", params, list(dict.fromkeys(kept))[:4])


def _following(b: Builder, rng: np.random.Generator, x: Node, values: Sequence[Node]) -> Node:
    """A value of another size, of another dtype, or from the elements of two at one place or at several."""
    draw = rng.random()
    if draw < 0.3:
        made = _resized(b, rng, x)
    elif draw < 0.36:
        made = b.add(Cast(chosen(rng, DTYPES)), x)
    elif draw < 0.66:
        pair = [x, reordered(b, rng, x)]
        made = _joined(b, rng, pair if rng.random() < 0.5 else pair[::-1])
    else:
        same = [v for v in values if v.type == x.type and v is not x]
        made = _joined(b, rng, [x, chosen(rng, same)]) if same else library.scalar(b, chosen(rng, ("neg", "abs")), x)
    return stored(b, rng, made) if rng.random() < 0.7 else made


def _joined(b: Builder, rng: np.random.Generator, pair: Sequence[Node]) -> Node:
    return b.add(Elementwise(chosen(rng, ("sub", "add", "max", "min"))), *pair)


def _resized(b: Builder, rng: np.random.Generator, x: Node) -> Node:
    """Some copies of a value one behind the other, or a part of it."""
    size: DimLike = x.shape[0]
    least, most = bounds(size)
    if rng.random() < 0.5 and most <= MOST_LENGTH:
        return b.add(Concat(0), *[x] * int(rng.integers(2, 5)))
    if rng.random() < 0.3:
        return library.slice_axis(b, x, 0, 0, size // 2) if rng.random() < 0.5 or least < 1 else library.slice_axis(b, x, 0, 1, size - 1)
    if least < 2 or rng.random() < 0.3:
        return b.add(Cumulative("sum" if rng.random() < 0.5 else "max", 0, False, bool(rng.integers(2))), x)
    count = int(rng.integers(1, int(least)))
    return library.slice_axis(b, x, 0, int(rng.integers(0, int(least) - count + 1)), count)


# --- parts that are nearly equal ---------------------------------------------------------------------------------------


class _Tape:
    """Choices in order: drawn the first time, and played again, one of them changed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.choices: list[int] = []
        self.counts: list[int] = []
        self.at = 0

    def one(self, options: Sequence[T]) -> T:
        """The next choice; one that was made among fewer or more options is made among these."""
        if self.at == len(self.choices):
            self.choices.append(int(self.rng.integers(len(options))))
            self.counts.append(len(options))
        self.at += 1
        return options[self.choices[self.at - 1] % len(options)]

    def varied(self, fixed: int) -> _Tape:
        """The choices from the beginning, with one behind the first `fixed` changed where there are such."""
        other = _Tape(self.rng)
        other.choices, other.counts = list(self.choices), list(self.counts)
        free = [place for place in range(fixed, len(self.choices)) if self.counts[place] > 1]
        if free:
            place = chosen(self.rng, free)
            other.choices[place] = (self.choices[place] + int(self.rng.integers(1, self.counts[place]))) % self.counts[place]
        return other


def twin_graph(rng: np.random.Generator) -> Graph:
    """A part of a program two or three times, each on arrays of its own, as a rule, and with one choice that is another one."""
    b = Builder()
    tape = _Tape(rng)
    params: list[Node] = []
    own = rng.random() < 0.7
    results = []
    for _ in range(int(rng.integers(2, 4))):
        results.append(_Part(b, tape, params, own).made())
        fixed = 4 if rng.random() < 0.8 else 0  # most differ behind the op that they have in common, not in what that is
        tape = tape.varied(fixed)
    return Graph("twins", params, list(dict.fromkeys(results)))


class _Part:
    """What a tape says: an op and what stands behind it. `params`: of the whole graph."""

    def __init__(self, b: Builder, tape: _Tape, params: list[Node], own: bool) -> None:
        self.b, self.tape, self.params, self.own = b, tape, params, own
        self.read: list[Node] = []

    def param(self, dtype: DType, shape: tuple[DimLike, ...]) -> Node:
        """A param that this part has not read: one of another part of its type, or a new one."""
        wanted = TensorType(dtype, shape)
        found = None if self.own else next((p for p in self.params if p.type == wanted and p not in self.read), None)
        if found is None:
            found = self.b.add(Param(f"x{len(self.params)}", dtype, shape))
            self.params.append(found)
        self.read.append(found)
        return found

    def made(self) -> Node:
        one, b = self.tape.one, self.b
        dtype, form = one((F32, F32, F64)), one(("product", "product", "product", "rows", "scan", "elements"))
        rows, columns = one((1, 3, 8, 12, 17)), one((4, 8, 12, 19))
        x = self.param(dtype, (rows, columns))
        if form == "product":
            x = library.matmul(b, x, self.param(dtype, (columns, one((1, 8, 12, 20)))))
        elif form == "scan":
            x = b.add(Cumulative(one(("sum", "max", "min")), one((0, 1)), False, one((False, True))), x)
        for _ in range(one((1, 1, 2, 3))):
            x = self.followed(x)
        return b.add(Reduce(one(("sum", "max", "min")), (one((0, 1)),)), x) if form == "rows" else x

    def followed(self, x: Node) -> Node:
        """A function of the value and an array, a row or a number, in either order; or of itself."""
        one, b = self.tape.one, self.b
        function, other, swapped = one(("sub", "add", "mul", "max", "min")), one(("array", "row", "number", "none")), one((False, True))
        number = one((2, 3, -1, 0.5))
        if other == "none":
            return library.scalar(b, one(("neg", "abs", "sign")), x)
        if other == "number":
            y = library.broadcast(b, library.like(b, number, x), x.shape)
        else:
            y = library.broadcast(b, self.param(x.dtype, x.shape[other == "row":]), x.shape)
        return b.add(Elementwise(function), *((y, x) if swapped else (x, y)))
