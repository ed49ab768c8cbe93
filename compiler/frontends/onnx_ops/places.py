"""ONNX operators that put columns and maxima back to their places, and Det.

MaxPool's indices, MaxUnpool and Col2Im name places of images by flat numbers; all of their sizes must be known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product as combinations

import numpy as np

from ...ir.dims import DimLike, product
from ...ir.graph import Array, Node
from ...ir.ops.compute import ArgReduce
from ...ir.ops.shape import Iota, ScatterND, Slice, TakeAlong
from ...ir.types import I64
from ...library import broadcast, expand, slice_axis, squeeze, transpose
from ...library import pad as pad_constant
from .by_data import choose, matches, vector
from .context import Context, Integers, Operators

MOST_PLACES = 1 << 26   # flat places that are listed at import
LARGEST_BLOCK = 4096    # whose factorings are tried


def known_sizes(c: Context, sizes: Sequence[DimLike], what: str) -> tuple[int, ...]:
    found = tuple(n for n in sizes if isinstance(n, int))
    if len(found) != len(sizes):
        c.unsupported(f"{what} ({', '.join(map(str, sizes))}) must have known sizes", hint="bind the dims")
    if math.prod(found) > MOST_PLACES:
        c.unsupported(f"{what} {found} has more than {MOST_PLACES} elements")
    return found


# --- maxima and their places -----------------------------------------------------------------------------------------


def window_places(c: Context, x: Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
                  padding: Sequence[tuple[DimLike, DimLike]], column_major: bool) -> Node:
    """The flat place in x of the maximum of each window: the first one, a NaN before any number."""
    sizes = known_sizes(c, x.shape, "the input")
    low, high = ([0, 0, *(p[i] for p in padding)] for i in (0, 1))
    flat = c.b.add(Iota(I64, (math.prod(sizes),), 0))
    if column_major:
        flat = c.reshape(flat, (sizes[0] * sizes[1], *sizes[:1:-1]))
        flat = transpose(c.b, flat, (0, *range(len(sizes) - 2, 0, -1)))
    places = pad_constant(c.b, c.reshape(flat, sizes), low, high, -1)
    padded = pad_constant(c.b, x, low, high, x.dtype.lowest)
    best: Node | None = None
    found: Node | None = None
    for taps in combinations(*map(range, kernel)):
        start = (0, 0, *(t * d for t, d in zip(taps, dilations)))
        counts = tuple((n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(places.shape[2:], kernel, dilations, strides))
        op = Slice(start, (*sizes[:2], *counts), (1, 1, *strides))
        value, place = c.b.add(op, padded), c.b.add(op, places)
        if best is None or found is None:
            best, found = value, place
            continue
        better = c.scalar("gt", value, best)
        if x.dtype.is_float:
            better = c.scalar("or", better, c.scalar("and", c.scalar("isnan", value), c.scalar("not", c.scalar("isnan", best))))
        first = c.apply("lt", found, c.constant(0, I64))
        better = c.scalar("and", c.scalar("or", better, first), c.apply("ge", place, c.constant(0, I64)))
        best, found = c.scalar("select", better, value, best), c.scalar("select", better, place, found)
    if found is None:
        c.fail("the kernel has no elements")
    return found


def max_unpool(c: Context, x: Node, places: Node, output_shape: Integers = None, *, kernel_shape: Sequence[int],
               pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Node:
    """Each element at its flat place in zeros, which an output shape may fill up with more of them."""
    rank = x.rank - 2
    steps, around = tuple(strides or (1,) * rank), tuple(pads or (0,) * 2 * rank)
    if not len(kernel_shape) == len(steps) == rank or len(around) != 2 * rank:
        c.fail(f"kernel_shape, strides and pads do not fit the {rank} spatial axes")
    sizes = known_sizes(c, x.shape, "the input")
    inferred = (*sizes[:2], *((n - 1) * s - around[a] - around[a + rank] + k
                              for a, (n, s, k) in enumerate(zip(sizes[2:], steps, kernel_shape))))
    flat = c.full(0, x.dtype, (math.prod(inferred),))
    indices = c.reshape(c.cast(c.refine(places, x.shape), I64), (math.prod(sizes), 1))
    y = c.reshape(c.b.add(ScatterND("set"), flat, indices, c.reshape(x, (math.prod(sizes),))), inferred)
    if output_shape is None:
        return y
    if c.all_known(output_shape):
        wanted = c.sizes(output_shape, "output_shape")
        if len(wanted) != x.rank:
            c.fail(f"input 'output_shape' must have {x.rank} entries, found {len(wanted)}")
    else:
        wanted = c.declared_shape("output_shape", rank=x.rank, given=output_shape)
        y = c.require(y, matches(c, vector(c, output_shape), wanted))
    missing = [m - n for m, n in zip(known_sizes(c, wanted, "output_shape"), inferred, strict=True)]
    if min(missing) < 0:
        c.unsupported(f"output_shape {tuple(wanted)} is smaller than the shape {inferred} that the places are in")
    return pad_constant(c.b, y, (0,) * y.rank, missing)


# --- columns ---------------------------------------------------------------------------------------------------------


def col2im(c: Context, x: Node, image_shape: Integers, block_shape: Integers, *, dilations: Sequence[int] | None = None,
           pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Node:
    """Adds up blocks [batch, channels * block, count] where they lie in the image."""
    if x.rank != 3:
        c.fail(f"needs columns [batch, channels * block, count], found {x.type}")
    batch, columns, count = known_sizes(c, x.shape, "the columns")
    if c.all_known(image_shape, block_shape):
        image, blocks = c.integers(image_shape, "image_shape"), [c.integers(block_shape, "block_shape")]
    else:
        shape = known_sizes(c, c.declared_shape("image_shape", given=image_shape), "the image")
        image = shape[2:]
        if len(shape) < 3 or not shape[1] or columns // shape[1] > LARGEST_BLOCK:
            c.unsupported(f"which blocks {x.type} is made of is computed from data; up to {LARGEST_BLOCK} elements are supported")
        x = c.require(x, matches(c, vector(c, image_shape), image))
        blocks = _factorings(columns // shape[1], len(image))
    rank = len(image)
    steps, spread, around = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank), tuple(pads or (0,) * 2 * rank)
    if not len(steps) == len(spread) == rank or len(around) != 2 * rank or min((*steps, *spread), default=1) < 1:
        c.fail(f"strides {steps}, dilations {spread} and pads {around} do not fit an image of {rank} axes")
    if any(len(block) != rank or min(block, default=1) < 1 for block in blocks):
        c.fail(f"blocks {blocks[0]} do not fit an image of {rank} axes")
    found = []
    for block in blocks:
        counts = [(n + around[a] + around[a + rank] - spread[a] * (k - 1) - 1) // steps[a] + 1
                  for a, (n, k) in enumerate(zip(image, block))]
        if math.prod(counts) != count or columns % math.prod(block) or min(counts, default=1) < 1:
            continue
        places = _block_places(image, block, counts, steps, spread, around)
        value = _added(c, x, places, batch, columns // math.prod(block), image)
        found.append((matches(c, vector(c, block_shape), block), value))
    if not found and c.all_known(image_shape, block_shape):
        c.fail(f"blocks {blocks[0]} of an image {tuple(image)} are not as many as {x.type} has")
    return choose(c, found, "block_shape")


def _factorings(number: int, count: int) -> list[tuple[int, ...]]:
    """Every way to write the number as a product of `count` factors, in order."""
    if count == 1:
        return [(number,)]
    return [(first, *rest) for first in range(1, number + 1) if number % first == 0
            for rest in _factorings(number // first, count - 1)]


def _block_places(image: Sequence[int], block: Sequence[int], counts: Sequence[int], strides: Sequence[int],
                  dilations: Sequence[int], pads: Sequence[int]) -> Array:
    """The flat place in the image of each element of each block; what lies in the padding is one past the end."""
    rank = len(image)
    flat = np.zeros((1,) * (2 * rank), dtype=np.int64)
    inside = np.ones_like(flat, dtype=bool)
    for a in range(rank):
        place = (np.arange(block[a])[:, None] * dilations[a] + np.arange(counts[a]) * strides[a] - pads[a])
        place = place.reshape([m if i in (a, a + rank) else 1 for i, m in enumerate((*block, *counts))])
        flat = flat * image[a] + place
        inside = inside & (place >= 0) & (place < image[a])
    return np.where(inside, flat, math.prod(image)).reshape(-1)


def _added(c: Context, x: Node, places: Array, batch: int, channels: int, image: Sequence[int]) -> Node:
    pixels = math.prod(image)
    rows = transpose(c.b, c.reshape(x, (batch * channels, len(places))), (1, 0))
    empty = c.full(0, x.dtype, (pixels + 1, batch * channels))
    total = c.b.add(ScatterND("add"), empty, c.constant(places[:, None]), rows)
    return c.reshape(transpose(c.b, slice_axis(c.b, total, 0, 0, pixels), (1, 0)), (batch, channels, *image))


# --- determinants ----------------------------------------------------------------------------------------------------

LARGEST_DET = 64


def det(c: Context, x: Node) -> Node:
    """By elimination, each column from its greatest element on."""
    size = x.shape[-1] if x.rank >= 2 else None
    if not isinstance(size, int) or x.shape[-2] != size:
        c.fail(f"needs square matrices of a known size, found {x.type}")
    if size > LARGEST_DET:
        c.unsupported(f"matrices of {size} rows; up to {LARGEST_DET} are supported")
    batch, dtype = product(x.shape[:-2]), x.dtype
    rows = c.wide(c.reshape(x, (batch, size, size)))
    total = c.full(1, rows.dtype, (batch,))
    for left in range(size, 0, -1):
        column = squeeze(c.b, slice_axis(c.b, rows, 2, 0, 1), (2,))
        at = expand(c.b, c.b.add(ArgReduce("max", 1), c.scalar("abs", column)), (1,))         # [batch, 1]
        pivot = squeeze(c.b, c.b.add(TakeAlong(1), column, at), (1,))
        sign = c.apply("select", c.apply("eq", squeeze(c.b, at, (1,)), c.constant(0, I64)), c.like(1, rows), c.like(-1, rows))
        total = c.scalar("mul", total, c.scalar("mul", pivot, sign))
        if left == 1:
            break
        chosen = c.b.add(TakeAlong(1), rows, broadcast(c.b, expand(c.b, at, (2,)), (batch, 1, left)))
        is_chosen = c.apply("eq", c.b.add(Iota(I64, (1, left, 1), 1)), expand(c.b, at, (2,)))
        first = slice_axis(c.b, rows, 1, 0, 1)
        rest = slice_axis(c.b, c.apply("select", is_chosen, first, rows), 1, 1, left - 1)
        safe = c.apply("select", c.apply("eq", pivot, c.like(0, pivot)), c.like(1, pivot), pivot)
        factors = c.apply("div", slice_axis(c.b, rest, 2, 0, 1), c.reshape(safe, (batch, 1, 1)))
        rows = slice_axis(c.b, c.apply("sub", rest, c.apply("mul", factors, chosen)), 2, 1, left - 1)
    return c.reshape(c.cast(total, dtype), x.shape[:-2])


OPS: Operators = {"Col2Im": col2im, "Det": det, "MaxUnpool": max_unpool}
