"""Graphs that move values: what passes merge, cancel and turn around, and lowering folds into the index of whatever reads it.

A movement that is wrong alone is seen by any sample. What compilers get wrong is two of them together: a slice of a slice with a
step, a reshape of a broadcast, pads of two values, a window written into what was just read from there. So movements stand next
to each other here, with every kind of argument, on extents that tell axes apart or are all the same.

Guarantees: the graphs are well typed, with constant places for `take`, rarely just outside of the axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from .. import library
from ..ir.dims import DimLike, bounds, symbol
from ..ir.errors import TilewrightError
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.control import Param
from ..ir.ops.shape import Broadcast, Concat, Pad, Reshape, Slice, Take, Transpose, UpdateSlice
from ..ir.types import ARRAY_DTYPES, F16, F32, F64, I64, TensorType
from .rebuild import MOST_RESULTS, adapted, chosen, small

EXTENTS = (1, 1, 2, 3, 4, 5, 8, 9)
MOST_RANK = 5
PAD_VALUES = (0, 1, 2, -1, -0.0, math.inf)
SEED_SHAPES = ((4, 5, 6), (1, 4, 6), (3, 3, 3))
OUTSIDE = 0.1  # share of constant places that lie just outside
CROSSED = (64, 64, 65, 72, 90, 127, 128)  # sides of arrays that no small cache holds: such are transposed in blocks
CROSSED_DTYPES = (F32, F32, F64, I64, F16)


def movement_graph(rng: np.random.Generator) -> Graph:
    """One or two parameters, and up to five movements one after the other, few of them with a computation between."""
    b = Builder()
    dtype = F32 if rng.random() < 0.5 else chosen(rng, ARRAY_DTYPES)
    sizes: list[DimLike] = [chosen(rng, EXTENTS)] if rng.random() < 0.3 else [*EXTENTS]  # axes of one size look alike
    if rng.random() < 0.15:
        sizes.append(symbol("N", 1, 9))
    shape = [chosen(rng, sizes) for _ in range(int(rng.integers(1, 5)))]
    while not small(shape):
        shape.pop()
    params = [b.add(Param(f"x{i}", dtype, tuple(shape))) for i in range(int(rng.integers(1, 3)))]
    x, seen = params[0], []
    kind = chosen(rng, list(MOVEMENTS))
    for _ in range(int(rng.integers(2, 6))):
        x = moved(b, rng, x, kind if rng.random() < 0.4 else chosen(rng, list(MOVEMENTS)), params)
        if rng.random() < 0.25:
            x = _changed(b, rng, x, params)
        if rng.random() < 0.15:
            seen.append(x)
    if rng.random() < 0.4:
        x = _changed(b, rng, x, params)
    return Graph("movements", params, list(dict.fromkeys([*seen, x])))


def crossed_graph(rng: np.random.Generator) -> Graph:
    """One or two transposes of arrays with two long sides, each a result, with a movement or a computation behind it now and then."""
    b = Builder()
    shape = [int(chosen(rng, CROSSED)) for _ in range(2)]
    while not small(shape):
        shape[int(np.argmax(shape))] = 64
    if rng.random() < 0.3 and small((2, *shape)):
        shape.insert(int(rng.integers(3)), 2)
    params = [b.add(Param("x0", chosen(rng, CROSSED_DTYPES), tuple(shape)))]
    results = []
    for _ in range(int(rng.integers(1, 3))):
        x = _transpose(b, rng, params[0], params)
        if rng.random() < 0.3:
            x = moved(b, rng, x, chosen(rng, list(MOVEMENTS)), params)
        results.append(_changed(b, rng, x, params) if rng.random() < 0.2 else x)
    return Graph("crossed", params, list(dict.fromkeys(results)))


def movement_seeds() -> Iterator[Graph]:
    """Every movement after every other one, for each shape: what is wrong of two in a row is seldom wrong for all arguments."""
    rng = np.random.default_rng(0)
    pairs = list(itertools.product(MOVEMENTS, MOVEMENTS))
    for first, shape in itertools.product(range(0, len(pairs), MOST_RESULTS), 2 * SEED_SHAPES):
        b = Builder()
        params = [b.add(Param(f"x{i}", F32, tuple(int(n) for n in rng.permutation(shape)))) for i in range(2)]
        results: list[Node] = []
        for kinds in pairs[first:first + MOST_RESULTS]:
            x = params[0]
            for kind in kinds:
                x = moved(b, rng, x, kind, params)
            results.append(x)
        yield Graph("movements", params, list(dict.fromkeys(results)))


def _changed(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """A computation that keeps all elements apart."""
    if x.dtype.is_bool:
        return library.scalar(b, "not", x)
    if rng.random() < 0.5:
        return library.scalar(b, "neg", x)
    return library.scalar(b, "sub", x, adapted(b, chosen(rng, list(pool)), x.tensor))


def moved(b: Builder, rng: np.random.Generator, x: Node, kind: str, pool: Sequence[Node]) -> Node:
    """The value after one movement; as it is where it has no axis for that, or would become too large."""
    try:
        made = MOVEMENTS[kind](b, rng, x, pool)
    except TilewrightError:
        return x  # sizes of which not enough is known
    return made if made.rank <= MOST_RANK and small(made.shape) else x


def suits(kind: str, x: Node) -> bool:
    """Whether such a movement of the value has something to move."""
    return x.rank > (1 if kind == "transpose" else 0) or kind in ("broadcast", "flatten")


# --- the movements -------------------------------------------------------------------------------------------------------


def _transpose(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    if x.rank < 2:
        return x
    permutation = rng.permutation(x.rank)
    if (permutation == np.arange(x.rank)).all():  # the identity shows nothing
        permutation = np.roll(permutation, 1)
    return b.add(Transpose(tuple(map(int, permutation))), x)


def _reshape(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """Axes merged, all or some, or divided, or both; an axis of one element put in or taken out."""
    shape = list(x.shape)
    draw = rng.random()
    if draw < 0.5 and len(shape) > 1:
        first, last = (0, len(shape)) if rng.random() < 0.4 else sorted(int(n) for n in rng.choice(len(shape) + 1, 2, replace=False))
        shape[first:last] = [math.prod(shape[first + 1:last], start=shape[first])]
    divided = [(a, k) for a, n in enumerate(shape) for k in (2, 3, 4, 5) if isinstance(n, int) and n > k and n % k == 0]
    ones = [a for a, n in enumerate(shape) if n == 1]
    if 0.3 < draw < 0.7 and divided:
        axis, part = chosen(rng, divided)
        size = shape[axis]
        shape[axis:axis + 1] = [part, size // part] if rng.random() < 0.5 else [size // part, part]
    elif 0.7 < draw < 0.85 and ones:
        del shape[chosen(rng, ones)]
    elif draw > 0.5:
        shape.insert(int(rng.integers(len(shape) + 1)), 1)
    return b.add(Reshape(tuple(shape)), x)


def _broadcast(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    lead = [chosen(rng, (1, 2, 3))] if rng.random() < 0.6 else []
    return b.add(Broadcast((*lead, *(chosen(rng, (1, 2, 4, 5)) if n == 1 else n for n in x.shape))), x)


def _flattened(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """What is repeated along an axis, or cut out, with axes merged behind it, an axis of one element among them: an index is divided into
    those of the axes again, and each axis is another case."""
    shape = list(x.shape)
    for _ in range(int(rng.integers(1, 3))):
        shape.insert(int(rng.integers(len(shape) + 1)) if rng.random() < 0.6 else 0, 1)
    made = b.add(Reshape(tuple(shape)), x) if rng.random() < 0.7 or 1 not in x.shape else x
    if rng.random() < 0.7:
        ones = [a for a, n in enumerate(made.shape) if n == 1]
        axis, count = chosen(rng, ones), chosen(rng, (2, 3, 5))
        made = b.add(Broadcast(tuple(count if a == axis else n for a, n in enumerate(made.shape))), made)
    else:
        made = _slice(b, rng, made, pool)
    first, last = (0, made.rank) if rng.random() < 0.7 else sorted(int(n) for n in rng.choice(made.rank + 1, 2, replace=False))
    merged = math.prod(made.shape[first + 1:last], start=made.shape[first])
    return b.add(Reshape((*made.shape[:first], merged, *made.shape[last:])), made)


def _window(rng: np.random.Generator, extent: DimLike) -> tuple[DimLike, DimLike, int]:
    """Start, size and step of a window of an axis."""
    if not isinstance(extent, int):
        whole = rng.random() < 0.5 or bounds(extent)[0] < 1
        return (0, extent, 1) if whole else (extent - 1, extent, -1) if rng.random() < 0.5 else (1, extent - 1, 1)
    if extent == 0 or rng.random() < 0.3:
        return 0, extent, 1
    step = chosen(rng, (1, 1, 1, 2, 3, -1, -2))
    size = int(rng.integers(1, (extent - 1) // abs(step) + 2))
    reach = (size - 1) * abs(step)
    start = int(rng.integers(0, extent - reach))
    return start if step > 0 else start + reach, size, step


def _slice(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    if not x.rank:
        return x
    start, size, step = zip(*(_window(rng, n) for n in x.shape))
    return b.add(Slice(start, size, step), x)


def _pad(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    low, high = ([int(n) for n in rng.integers(0, 3, x.rank)] for _ in range(2))
    value = chosen(rng, PAD_VALUES[:6 if x.dtype.is_float else 4 if x.dtype.kind == "i" else 3])
    return b.add(Pad(tuple(low), tuple(high)), x, library.constant(b, bool(value) if x.dtype.is_bool else value, x.dtype)) if x.rank else x


def _concat(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    if not x.rank:
        return x
    parts = [x, *(x if rng.random() < 0.5 else adapted(b, chosen(rng, list(pool)), x.tensor) for _ in range(int(rng.integers(1, 3))))]
    return b.add(Concat(int(rng.integers(x.rank))), *(parts[int(i)] for i in rng.permutation(len(parts))))


def _update(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """A window of the value is written: with another value, or with what was there, changed or not."""
    if not x.rank:
        return x
    start, size, step = zip(*(_window(rng, n) for n in x.shape))
    if any(n < 0 for n in step):
        start, step = tuple(0 for _ in size), tuple(1 for _ in size)
    if rng.random() < 0.4:
        update = b.add(Slice(start, size, step), x)
        update = _changed(b, rng, update, pool) if rng.random() < 0.7 else update
    else:
        update = adapted(b, chosen(rng, list(pool)), TensorType(x.dtype, size))
    return b.add(UpdateSlice(start, step), x, update)


def _take(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """Some places of an axis, known at compile time."""
    axes = [a for a, n in enumerate(x.shape) if bounds(n)[0] >= 1]
    if not axes:
        return x
    axis = chosen(rng, axes)
    extent = int(bounds(x.shape[axis])[0])
    count = int(rng.integers(0, 4))
    places = rng.integers(0, extent, size=(max(count, 1),))
    if rng.random() < OUTSIDE:
        places[int(rng.integers(places.size))] = chosen(rng, (-1, extent))
    return b.add(Take(axis), x, library.constant(b, places if count else places[0], I64))


Movement = Callable[[Builder, np.random.Generator, Node, Sequence[Node]], Node]
MOVEMENTS: Mapping[str, Movement] = {
    "transpose": _transpose, "reshape": _reshape, "broadcast": _broadcast, "slice": _slice, "pad": _pad, "concat": _concat,
    "update": _update, "take": _take, "flatten": _flattened,
}
