"""Graphs of blocks of transformers, and of what quantized ones have: what kernels of their own are for.

Attention with masks, biases and heads that share keys; products with weights of a few bits in groups, of floats and of bytes; products
of float8; tables whose rows are taken; convolutions of bytes with a scale for each place. Such kernels are chosen where sizes are large
enough, so sizes lie about the least ones. `table_graph` takes rows of large tables, `wide_graph` makes what blocks and matrix units of a
GPU are for: products and convolutions of up to millions of multiply-adds, deep products of few results, and long rows.

Guarantees: the graphs are well typed and have one to three results; almost all of `block_graph` are within the limits of all cases.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .. import library
from ..ir.dims import DimLike
from ..ir.graph import Builder, Constant, Graph, Node
from ..ir.ops.compute import FLOATS8, Bitcast, Cast, Conv, Dot
from ..ir.ops.control import Const, Param
from ..ir.ops.shape import Iota, Slice, Take
from ..ir.types import BF16, BOOL, F16, F32, I8, I64, U8, DType
from ..library_quantized import dequantize
from .rebuild import chosen

HALVES = (F16, BF16)
SCALES = (0.25, 0.5, 1.0, 1.0, 2.0)
SEEDS = 6  # of each kind of block


class Sizes:
    """Extents to choose from: of small graphs, or of wide ones."""

    def __init__(self, wide: bool) -> None:
        self.rows = (1, 16, 17, 64, 65, 100, 130) if wide else (16, 16, 17, 20, 24)
        self.keys = (48, 64, 65, 128, 130) if wide else (48, 48, 50, 64)
        self.heads = (16, 32, 48, 64, 80) if wide else (4, 8, 8, 16)
        self.batch = (1, 1, 2, 3) if wide else (1, 1, 2)
        self.few = (1, 3, 5, 16, 17, 40) if wide else (1, 2, 4, 5, 9)
        self.columns = (8, 33, 64, 130) if wide else (8, 15, 16, 24, 33)
        self.groups = (16, 32, 32, 64) if wide else (16, 16, 32)
        self.most_groups = 5 if wide else 3


def block_graph(rng: np.random.Generator) -> Graph:
    """One block."""
    return _Draft(rng, Sizes(False)).graph(chosen(rng, BLOCKS))


def block_seeds() -> Iterator[Graph]:
    """Each kind of block some times."""
    for number, (make, _) in enumerate(itertools.product(dict.fromkeys(BLOCKS), range(SEEDS))):
        yield _Draft(np.random.default_rng(number), Sizes(False)).graph(make)


def wide_graph(rng: np.random.Generator) -> Graph:
    """One block, product or row of sizes that a GPU is for."""
    return _Draft(rng, Sizes(True)).graph(chosen(rng, WIDE_BLOCKS))


def wide_seeds() -> Iterator[Graph]:
    for number, (make, _) in enumerate(itertools.product(dict.fromkeys(WIDE_BLOCKS), range(SEEDS))):
        yield _Draft(np.random.default_rng(number), Sizes(True)).graph(make)


def table_graph(rng: np.random.Generator) -> Graph:
    """Rows of a table that is too large to be folded into floats, and for the loop interpreter."""
    return _Draft(rng, Sizes(False)).graph(_Draft.large_table)


class _Draft:
    def __init__(self, rng: np.random.Generator, sizes: Sizes) -> None:
        self.rng, self.b, self.sizes = rng, Builder(), sizes
        self.params: list[Node] = []
        self.more: list[Node] = []  # results beside the last value

    def graph(self, make: Callable[[_Draft], Node]) -> Graph:
        value = make(self)
        if self.chance(0.5):
            value = self.followed(value)
        return Graph("blocks", self.params, list(dict.fromkeys([*self.more, value])))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def param(self, dtype: DType, shape: Sequence[DimLike]) -> Node:
        self.params.append(self.b.add(Param(f"x{len(self.params)}", dtype, tuple(shape))))
        return self.params[-1]

    def whole(self, dtype: DType, shape: Sequence[int], least: int, most: int) -> Node:
        """Known whole numbers, which keep sums exact."""
        return self.b.add(Const(Constant(self.rng.integers(least, most + 1, tuple(shape)).astype(dtype.numpy), dtype)))

    def scales(self, shape: Sequence[int]) -> np.ndarray:
        return self.rng.choice(SCALES, tuple(shape)).astype(np.float32)

    # --- attention ---

    def attention(self) -> Node:
        """Scores, a mask perhaps, probabilities, and what they weigh."""
        rng, b, sizes = self.rng, self.b, self.sizes
        dtype = chosen(rng, (*HALVES, F32))
        lead, shared = [int(chosen(rng, sizes.batch))], int(chosen(rng, (1, 1, 1, 2)))
        rows, keys, head = (int(chosen(rng, of)) for of in (sizes.rows, sizes.keys, sizes.heads))
        width = head if self.chance(0.8) else int(chosen(rng, sizes.heads))
        queries = self.param(dtype, [*lead[:-1], lead[-1] * shared, rows, head])
        first = len(lead)
        turned = self.chance(0.5)  # keys as [head, keys]
        k = self.repeated(self.param(dtype, [*lead, *((head, keys) if turned else (keys, head))]), shared)
        v = self.repeated(self.param(dtype, [*lead, keys, width]), shared)
        batch = tuple(range(first))
        scores = b.add(Dot((first + 1,), (first if turned else first + 1,), batch, batch), queries, k)
        if self.chance(0.7):
            scores = library.apply(b, "mul", scores, library.like(b, chosen(rng, (0.25, 0.125, 1.0)), scores))
        scores = self.masked(scores, rows, keys)
        weights = library.softmax(b, scores, scores.rank - 1) if self.chance(0.7) else self.softmax(scores)
        return b.add(Dot((first + 1,), (first,), batch, batch), weights, v)

    def repeated(self, x: Node, times: int) -> Node:
        """What some neighbouring heads share."""
        if times == 1:
            return x
        lead, *rest = x.shape
        spread = library.broadcast(self.b, library.reshape(self.b, x, (lead, 1, *rest)), (lead, times, *rest))
        return library.reshape(self.b, spread, (lead * times, *rest))

    def masked(self, scores: Node, rows: int, keys: int) -> Node:
        b, rng = self.b, self.rng
        kind = int(rng.integers(5))
        if kind == 0:
            return scores
        if kind == 1:  # of each pair, as numbers
            bias = self.param(scores.dtype, (rows, keys) if self.chance(0.5) else (1, keys))
            return library.apply(b, "add", scores, library.broadcast(b, bias, scores.shape))
        if kind == 2:  # given
            seen = library.broadcast(b, self.param(BOOL, (rows, keys)), scores.shape)
            return library.apply(b, "select", seen, scores, library.like(b, chosen(rng, (-1e4, float("-inf"))), scores))
        row, key = (library.broadcast(b, b.add(Iota(I64, (rows, keys), axis)), scores.shape) for axis in (0, 1))
        offset = int(chosen(rng, (0, 0, 1, keys - rows, -1)))
        limit = library.apply(b, "add", row, library.like(b, offset, row))
        seen = library.apply(b, *(("ge", limit, key) if self.chance(0.5) else ("le", key, limit)))
        if kind == 3:
            return library.apply(b, "select", seen, scores, library.like(b, float("-inf"), scores))
        hidden = library.apply(b, "select", seen, library.like(b, 0.0, scores), library.like(b, float("-inf"), scores))
        return library.apply(b, "add", scores, hidden)

    def softmax(self, x: Node) -> Node:
        """By hand: divided by the sum, or multiplied by its inverse."""
        b, last = self.b, x.rank - 1
        largest = library.reduce(b, "max", x, (last,), keep=True)
        raised = library.apply(b, "exp", library.apply(b, "sub", x, library.broadcast(b, largest, x.shape)))
        total = library.reduce(b, "sum", raised, (last,), keep=True)
        if self.chance(0.5):
            self.more.append(total)
            return library.apply(b, "div", raised, library.broadcast(b, total, x.shape))
        inverse = library.apply(b, "div", library.like(b, 1.0, total), total)
        return library.apply(b, "mul", raised, library.broadcast(b, inverse, x.shape))

    # --- weights of a few bits ---

    def coded(self, most_bits: int = 8) -> tuple[Node, int]:
        """Weights [steps, columns] of float32 that are codes times scales of groups, and the number of steps."""
        rng, b, sizes = self.rng, self.b, self.sizes
        bits = int(chosen(rng, [n for n in (2, 4, 4, 8) if n <= most_bits]))
        group, count = int(chosen(rng, sizes.groups)), int(rng.integers(1, sizes.most_groups + 1))
        columns = int(chosen(rng, sizes.columns))
        codes = library.cast(b, self.whole(U8, (count, group, columns), 0, 2 ** bits - 1), F32)
        if self.chance(0.7):
            zeros = rng.integers(0, 2 ** bits, (count, 1, columns) if self.chance(0.6) else (1, 1, 1)).astype(np.float32)
            codes = library.apply(b, "sub", codes, library.broadcast(b, library.constant(b, zeros, F32), codes.shape))
        scales = library.constant(b, self.scales((count, 1, columns)), F32)
        values = library.apply(b, "mul", codes, library.broadcast(b, scales, codes.shape))
        return library.reshape(b, values, (count * group, columns)), count * group

    def weight_only(self) -> Node:
        rng, b = self.rng, self.b
        weights, steps = self.coded()
        dtype = chosen(rng, (F32, *HALVES))
        rows = int(chosen(rng, self.sizes.few))
        return library.matmul(b, self.param(dtype, (rows, steps)), library.cast(b, weights, dtype))

    def bytes_and_codes(self) -> Node:
        """Activations of bytes with one scale, or one for each row."""
        rng, b = self.rng, self.b
        weights, steps = self.coded(most_bits=4)
        rows, dtype = int(chosen(rng, self.sizes.few)), chosen(rng, (I8, U8))
        scale = library.constant(b, self.scales((rows, 1) if self.chance(0.5) else ()), F32) if self.chance(0.6) else self.param(F32, ())
        point = self.whole(dtype, (), 0, 100) if self.chance(0.5) else None
        return library.matmul(b, dequantize(b, self.param(dtype, (rows, steps)), scale, point), weights)

    # --- others ---

    def floats8(self) -> Node:
        """Values that a table has for each byte, as front ends look up float8."""
        rng, b = self.rng, self.b
        dtype = chosen(rng, FLOATS8)
        rows, steps, columns = (int(chosen(rng, of)) for of in (self.sizes.few, self.sizes.groups, self.sizes.columns))
        every = np.arange(256, dtype=np.uint8).view(dtype.numpy).astype(np.float32)

        def value(x: Node) -> Node:
            return b.add(Take(0), library.constant(b, every), b.add(Bitcast(U8), x))

        left = value(self.param(dtype, (rows, steps)))
        right = value(self.param(dtype, (steps, columns))) if self.chance(0.4) else self.whole(F32, (steps, columns), -3, 3)
        if self.chance(0.5):
            left = library.apply(b, "mul", left, library.like(b, chosen(rng, SCALES), left))
        return library.matmul(b, left, right)

    def table(self) -> Node:
        """Rows of bytes that span few bits, with a scale each or one for all."""
        return self.rows_of(64, int(chosen(self.rng, (16, 32, 64, 65))))

    def large_table(self) -> Node:
        return self.rows_of(int(chosen(self.rng, (520, 700))), int(chosen(self.rng, (48, 64, 65, 96))))

    def rows_of(self, names: int, width: int) -> Node:
        """Rows of what is computed of constants, of which something else reads some now and then."""
        rng, b = self.rng, self.b
        if self.chance(0.2):
            table = b.add(Cast(F32), self.whole(BF16, (names, width), -9, 9))
        else:
            least, bits = int(chosen(rng, (0, 0, 3))), int(chosen(rng, (2, 4, 4, 8)))
            codes = self.whole(U8, (names, width), least, min(255, least + 2 ** bits - 1))
            shape = chosen(rng, ((), (names, 1), (1, width)))
            point = self.whole(U8, shape, 0, 2 ** bits - 1) if self.chance(0.5) else None
            scale, *points = (library.broadcast(b, x, (names, width)) if x.shape else x
                              for x in (library.constant(b, self.scales(shape), F32), *([] if point is None else [point])))
            table = dequantize(b, codes, scale, *points)
        if self.chance(0.2):
            table = b.add(Slice((0, 1), (names, width - 1), (1, 1)), table)
        elif self.chance(0.2) and width % 2 == 0:
            table = library.reshape(b, table, (names, 2, width // 2))
        if self.chance(0.15):
            self.more.append(b.add(Slice((3,) + (0,) * (table.rank - 1), (2, *table.shape[1:]), (1,) * table.rank), table))
        places = library.apply(b, "and", self.param(I64, (int(chosen(rng, (1, 3, 7))),)), library.constant(b, 63))
        return library.take(b, table, places, 0)

    def places(self) -> Node:
        """A convolution of bytes whose scale differs from place to place."""
        rng, b = self.rng, self.b
        channels, out, high, wide = int(chosen(rng, (64, 66))), int(chosen(rng, (4, 9))), 3, int(chosen(rng, (4, 5)))
        dtype = chosen(rng, (I8, U8))
        scale = library.constant(b, self.scales((1, 1, high, wide)), F32)
        left = dequantize(b, self.param(dtype, (1, channels, high, wide)), library.broadcast(b, scale, (1, channels, high, wide)))
        kernel = chosen(rng, ((1, 1), (1, 2), (2, 2)))
        weights = dequantize(b, self.whole(I8, (out, channels, *kernel), -63, 63), library.constant(b, self.scales((out, 1, 1, 1)), F32))
        step, pad = int(chosen(rng, (1, 1, 2))), int(rng.integers(2))
        return b.add(Conv((step, 1), ((pad, 0), (0, pad)), (1, 1), (1, 1)), left, weights)

    def units(self) -> Node:
        """A product that fills the tiles of matrix units: halves, bytes, float8."""
        rng, b = self.rng, self.b
        rows, steps, columns = (int(chosen(rng, of)) for of in (
            (1, 16, 64, 65, 128, 130), (129, 136, 144, 192, 256), (129, 136, 144, 256, 264)))
        lead = [2] if self.chance(0.2) else []
        kind = int(rng.integers(3))
        dtype = chosen(rng, HALVES) if kind < 2 else chosen(rng, (I8, U8))
        x = self.param(dtype, [*lead, rows, steps])
        turned = self.chance(0.4)
        shape = [*lead, *((columns, steps) if turned else (steps, columns))]
        held = I8 if kind == 2 else dtype
        w = self.whole(held, shape, -3, 3) if self.chance(0.6) else self.param(held, shape)
        first, batch = len(lead), tuple(range(len(lead)))
        if kind < 2:
            return b.add(Dot((first + 1,), (first + int(turned),), batch, batch), x, w)
        left = dequantize(b, x, library.constant(b, 0.5, F32), self.whole(dtype, (), 0, 100) if self.chance(0.3) else None)
        return b.add(Dot((first + 1,), (first + int(turned),), batch, batch), left, dequantize(b, w, library.constant(b, 0.25, F32)))

    def windows(self) -> Node:
        """A convolution with channels enough for matrix units: of halves, float32 or bytes, with everything that an operator has."""
        rng, b = self.rng, self.b
        kind, last, groups = int(rng.integers(4)), self.chance(0.4), int(chosen(rng, (1, 1, 1, 2)))
        rank = int(chosen(rng, (1, 2, 2)))
        into, out = int(chosen(rng, (1, 3, 8, 16, 17, 32))), int(chosen(rng, (8, 33, 64, 130, 136)))
        kernel = [int(n) for n in rng.integers(1, 4, rank)]
        dilation = [int(chosen(rng, (1, 1, 2))) for _ in kernel]
        spatial = [(k - 1) * d + int(rng.integers(1, 9)) for k, d in zip(kernel, dilation)]
        strides = tuple(int(chosen(rng, (1, 1, 2))) for _ in kernel)
        spread = tuple(int(chosen(rng, (1, 1, 1, 2))) for _ in kernel)
        padding = tuple((int(rng.integers(0, k + 1)), int(rng.integers(0, k + 1))) for k in kernel)
        batch = int(chosen(rng, (1, 2)))
        dtype = (*HALVES, F32)[kind] if kind < 3 else chosen(rng, (I8, U8))
        held = I8 if kind == 3 else dtype
        x = self.param(dtype, (batch, *spatial, groups * into) if last else (batch, groups * into, *spatial))
        shape = (*kernel, into, groups * out) if last else (groups * out, into, *kernel)
        w = self.whole(held, shape, -3, 3) if self.chance(0.7) else self.param(held, shape)
        if kind == 3:
            x = dequantize(b, x, library.constant(b, 0.5, F32), self.whole(dtype, (), 0, 100) if self.chance(0.4) else None)
            w = dequantize(b, w, library.constant(b, 0.25, F32))
        return b.add(Conv(strides, padding, tuple(dilation), spread, groups, last), x, w)

    def deep(self) -> Node:
        """A product of few rows and columns and many steps, which are cut into parts."""
        rng, b = self.rng, self.b
        rows, columns, steps = (int(chosen(rng, of)) for of in ((1, 3, 4), (2, 4, 9, 33), (1000, 1600, 2048, 3001)))
        dtype = chosen(rng, (*HALVES, F32, F32, I8))
        x, w = self.param(dtype, (rows, steps)), self.param(dtype, (steps, columns))
        if dtype == I8:
            x, w = (dequantize(b, value, library.constant(b, 0.5, F32)) for value in (x, w))
        return b.add(Dot((1,), (0,)), x, w)

    def long_rows(self) -> Node:
        """What several sums and extremes of long rows make of them, each row by the threads of a block."""
        rng, b = self.rng, self.b
        dtype, width = chosen(rng, (F32, F32, *HALVES)), int(chosen(rng, (1000, 1025, 2048, 3001, 5000)))
        x = self.param(dtype, (int(rng.integers(1, 4)), width))
        kind = int(rng.integers(4))
        if kind == 0:
            return library.softmax(b, x, 1)
        if kind == 1:
            scale, bias = (self.param(dtype, (width,)) for _ in range(2))
            return library.layer_norm(b, x, scale, bias, (1,), 1e-3)
        first, second = (chosen(rng, ("sum", "max", "min")) for _ in range(2))
        apart = library.apply(b, "sub", x, library.broadcast(b, library.reduce(b, first, x, (1,), keep=True), x.shape))
        if kind == 2:
            return library.reduce(b, second, library.scalar(b, "abs", apart), (1,), keep=True)
        spread = library.broadcast(b, library.reduce(b, second, library.scalar(b, "abs", apart), (1,), keep=True), x.shape)
        return library.apply(b, "mul", apart, spread)

    def followed(self, x: Node) -> Node:
        """What stands behind it: a bias, an activation, a sum, a cast, another order."""
        rng, b = self.rng, self.b
        kind = int(rng.integers(5))
        if kind == 0:
            bias = self.param(x.dtype, (x.shape[-1],))
            return library.apply(b, "add", x, library.broadcast(b, bias, x.shape))
        if kind == 1:
            return library.apply(b, "max", x, library.like(b, 0.0, x))
        if kind == 2:
            return library.apply(b, "add", x, self.param(x.dtype, x.shape))
        if kind == 3:
            return library.cast(b, x, chosen(rng, (F16, F32)))
        return library.transpose(b, x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])


BLOCKS: tuple[Callable[[_Draft], Node], ...] = (
    _Draft.attention, _Draft.attention, _Draft.weight_only, _Draft.bytes_and_codes, _Draft.floats8, _Draft.table, _Draft.places)
WIDE_BLOCKS: tuple[Callable[[_Draft], Node], ...] = (
    _Draft.attention, _Draft.attention, _Draft.weight_only, _Draft.bytes_and_codes, _Draft.floats8, _Draft.units, _Draft.units,
    _Draft.windows, _Draft.windows, _Draft.deep, _Draft.long_rows)
