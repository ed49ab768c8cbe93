"""Graphs of layers as networks have them: convolutions and products with weights, and what stands behind them.

How a contraction is computed hangs on more than the op: on weights that are known at compile time, on how deep and how wide it is, on
both sides being one matrix, on groups, on what can be computed while a tile is in registers. Sizes are those at which ways part:
multiples of vectors and tiles, one more, one less. Behind a contraction stand a bias of its channels, an activation, a sum with
another value, a reduction, a pooling, a change of layout.

Guarantees: the graphs are well typed and end in one to three results; no contraction has more than `MOST_PRODUCTS` products.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .. import library
from ..ir.dims import DimLike
from ..ir.errors import TilewrightError
from ..ir.graph import Builder, Constant, Graph, Node
from ..ir.ops.compute import Conv, Dot, Elementwise, Reduce, ReduceWindow
from ..ir.ops.control import Const, Param
from ..ir.ops.shape import Broadcast, Transpose
from ..ir.types import F32, F64, DType, dtype_of
from .rebuild import MOST_PRODUCTS, chosen, small

EXTENTS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 160, 192, 255, 256)
CHANNELS, MANY_CHANNELS = (1, 2, 3, 4, 5, 8, 9, 12), (16, 24, 24, 31, 32, 32, 33, 40)
MIRRORED, DEEP = (16, 17, 24, 31, 32, 33, 40, 47, 48), (128, 129, 131)  # of products by themselves, of which half is copied
TRIES = 12
KNOWN_SHARE = 0.7  # of the weights, that are constants
DTYPES = (F32, F32, F32, F64, F64, dtype_of("f16"), dtype_of("bf16"))


def layer_graph(rng: np.random.Generator) -> Graph:
    """One or two contractions, each with some ops behind it."""
    draft = _Draft(rng)
    value = draft.contraction()
    for count in range(int(rng.integers(1, 3))):
        if count:
            value = draft.projected(value)
        for _ in range(int(rng.integers(0, 4))):
            made = chosen(rng, FOLLOWERS)(draft, value)
            value = made if small(made.shape) else value
    return Graph("layers", draft.params, list(dict.fromkeys([*draft.seen[-2:], value])))


def layer_seeds() -> Iterator[Graph]:
    """Every kind of contraction with everything that may stand behind it."""
    rng = np.random.default_rng(0)
    for contraction, follower in itertools.product(2 * CONTRACTIONS, dict.fromkeys(FOLLOWERS)):
        draft = _Draft(rng)
        value = contraction(draft)
        made = follower(draft, value)
        yield Graph("layers", draft.params, list(dict.fromkeys([*draft.seen, made if small(made.shape) else value])))


class _Draft:
    """A graph in the making. `channels`: the axis of the newest value on which biases and scales vary."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.b = Builder()
        self.dtype: DType = chosen(rng, DTYPES)
        self.params: list[Node] = []
        self.seen: list[Node] = []
        self.channels = 0

    def param(self, shape: Sequence[DimLike]) -> Node:
        self.params.append(self.b.add(Param(f"x{len(self.params)}", self.dtype, tuple(shape))))
        return self.params[-1]

    def weights(self, shape: Sequence[DimLike], known: bool = False) -> Node:
        """Known at compile time, or not. Small whole numbers keep sums exact; halves of them still do."""
        rng = self.rng
        if not known and rng.random() >= KNOWN_SHARE or not all(isinstance(n, int) for n in shape):
            return self.param(shape)
        whole = rng.integers(-3, 4, tuple(int(n) for n in shape)) * chosen(rng, (1.0, 1.0, 0.5))
        array = whole if rng.random() < 0.7 else rng.standard_normal(whole.shape)
        return self.b.add(Const(Constant(np.asarray(array, self.dtype.numpy), self.dtype)))

    # --- contractions ---

    def contraction(self) -> Node:
        return chosen(self.rng, (*CONTRACTIONS, _Draft.usual_conv, _Draft.gram))(self)

    def sizes(self, count: int, products: Callable[[Sequence[int]], int], shapes: Callable[[Sequence[int]], Sequence[Sequence[int]]]
              ) -> list[int]:
        """Extents with few enough products and elements."""
        for number in range(TRIES):
            most = len(EXTENTS) - number * len(EXTENTS) // (TRIES + 2)
            found = [EXTENTS[int(self.rng.integers(most))] for _ in range(count)]
            if products(found) <= MOST_PRODUCTS and all(map(small, shapes(found))):
                return found
        return [4] * count

    def product(self) -> Node:
        """[..., M, K] by [..., K, N], either one given transposed."""
        rng = self.rng
        batch = [int(rng.integers(1, 4))] if rng.random() < 0.3 else []
        wide = math.prod(batch)
        rows, depth, columns = self.sizes(3, lambda n: wide * math.prod(n), lambda n: (
            (*batch, n[0], n[1]), (*batch, n[1], n[2]), (*batch, n[0], n[2])))
        x = self.param([*batch, rows, depth])
        turned = bool(rng.integers(2))
        w = self.weights([*batch, *((columns, depth) if turned else (depth, columns))])
        first = len(batch)
        self.channels = first + 1
        return self.b.add(Dot((first + 1,), (first + int(turned),), tuple(range(first)), tuple(range(first))), x, w)

    def gram(self) -> Node:
        """A matrix by itself, turned: its rows or its columns with each other. A bias shows which of both an element belongs to."""
        if self.rng.random() < 0.6:
            made = self.square(chosen(self.rng, MIRRORED), chosen(self.rng, DEEP))
            return self.biased(made) if self.rng.random() < 0.7 else made
        rows, depth = self.sizes(2, lambda n: n[0] * n[0] * n[1], lambda n: ((n[0], n[1]), (n[0], n[0])))
        return self.square(*((min(rows, depth), max(rows, depth)) if self.rng.random() < 0.6 else (rows, depth)))

    def square(self, rows: int, depth: int) -> Node:
        axis = int(self.rng.integers(2))
        x = self.param([rows, depth] if axis else [depth, rows])
        self.channels = 1
        if self.rng.random() < 0.5:
            return self.b.add(Dot((axis,), (axis,)), x, x)
        return self.b.add(Dot((axis,), (1 - axis,)), x, self.b.add(Transpose((1, 0)), x))

    def usual_conv(self) -> Node:
        """What most layers of networks are, and fast algorithms are for: many channels, every place, weights that are known."""
        self.dtype = F32 if self.rng.random() < 0.7 else self.dtype
        return self.conv(usual=True)

    def conv(self, usual: bool = False) -> Node:
        """Of one or two spatial axes, with groups, strides and dilations."""
        rng = self.rng
        batch, into, out, spatial, kernel, groups = self.conv_sizes(usual)
        rank, plain, same, last = len(kernel), usual or rng.random() < 0.6, rng.random() < 0.5, rng.random() < 0.3
        strides, dilation, spread = ([1] * rank if plain or rng.random() < 0.4 else [int(n) for n in rng.integers(1, 3, rank)]
                                     for _ in range(3))
        padding = tuple((k // 2, k // 2) if same else (int(rng.integers(0, k + 1)), int(rng.integers(0, k + 1))) for k in kernel)
        dilation = [d if n > d * (k - 1) else 1 for d, k, n in zip(dilation, kernel, spatial)]
        x = self.param((batch, *spatial, into) if last else (batch, into, *spatial))
        w = self.weights((*kernel, into // groups, out) if last else (out, into // groups, *kernel), usual)
        self.channels = rank + 1 if last else 1
        return self.b.add(Conv(tuple(strides), padding, tuple(dilation), tuple(spread), groups, last), x, w)

    def conv_sizes(self, usual: bool) -> tuple[int, int, int, list[int], list[int], int]:
        """Batch, channels in and out, spatial axes, kernel and groups; many channels as often as few, since algorithms differ."""
        rng = self.rng
        many = usual or rng.random() < 0.4
        rank = 2 if rng.random() < (0.3 if many else 0.6) else 1  # with many channels an image is too much
        channels = MANY_CHANNELS if many else CHANNELS
        for _ in range(TRIES):
            kernel = [chosen(rng, (3, 3, 3, 3, 5) if usual else (1, 2, 3, 3, 4, 5, 7)) for _ in range(rank)]
            reach = ((24, 80) if rank == 1 else (3, 11)) if usual else (0, 32) if rank == 1 else (0, 14)
            spatial = [k + int(rng.integers(*reach)) for k in kernel]
            batch, into, out = chosen(rng, (1, 1, 1, 2, 3)), chosen(rng, channels), chosen(rng, channels)
            groups = 1 if usual else chosen(rng, (1, 1, 1, into, 2 if into % 2 == 0 else 1))
            out += -out % groups
            if batch * into * out // groups * math.prod((*spatial, *kernel)) <= MOST_PRODUCTS and \
                    small((batch, into, *spatial)) and small((batch, out, *spatial)) and small((out, into // groups, *kernel)):
                return batch, into, out, spatial, kernel, groups
        return 1, 4, 4, [6] * rank, [3] * rank, 1

    def projected(self, x: Node) -> Node:
        """One more product, along the last axis of the value."""
        depth = x.shape[-1] if x.rank else 0
        columns = chosen(self.rng, (*CHANNELS, *MANY_CHANNELS))
        if not isinstance(depth, int) or depth == 0 or not small((depth, columns)) or not small((*x.shape[:-1], columns)):
            return x
        self.channels = x.rank - 1
        return self.b.add(Dot((x.rank - 1,), (0,)), x, self.weights((depth, columns)))

    # --- what stands behind them ---

    def along_channels(self, x: Node) -> Node:
        """Weights that vary along the channels, or along another axis, or not at all, as wide as x."""
        axis = self.channels if self.rng.random() < 0.8 else int(self.rng.integers(max(x.rank, 1)))
        if axis >= x.rank:
            return self.b.add(Broadcast(x.shape), self.weights(()))
        shape = [n if a == axis else 1 for a, n in enumerate(x.shape)]
        return library.broadcast(self.b, self.weights(shape), x.shape)

    def biased(self, x: Node) -> Node:
        return library.scalar(self.b, chosen(self.rng, ("add", "add", "sub")), x, self.along_channels(x))

    def scaled(self, x: Node) -> Node:
        if self.rng.random() < 0.4:
            return library.apply(self.b, "mul", x, library.like(self.b, chosen(self.rng, (0.5, 2.0, -1.0, 0.125)), x))
        return library.scalar(self.b, "mul", x, self.along_channels(x))

    def activated(self, x: Node) -> Node:
        function = chosen(self.rng, ("relu", "relu", "clip", "sigmoid", "tanh", "neg", "abs"))
        if function == "relu":
            return library.apply(self.b, "max", x, library.like(self.b, 0.0, x))
        if function == "clip":
            above = library.apply(self.b, "max", x, library.like(self.b, -6.0, x))
            return library.apply(self.b, "min", above, library.like(self.b, 6.0, x))
        return self.b.add(Elementwise(function), x)

    def added(self, x: Node) -> Node:
        """A sum with a value of the whole shape."""
        same = [p for p in self.params if p.shape == x.shape]
        other = chosen(self.rng, same) if same and self.rng.random() < 0.5 else self.param(x.shape)
        return library.scalar(self.b, "add", *((x, other) if self.rng.random() < 0.5 else (other, x)))

    def reduced(self, x: Node) -> Node:
        """Over some axes, kept as axes of one element or not."""
        axes = [a for a in range(x.rank) if self.rng.random() < 0.5]
        if not axes:
            return x
        kind = chosen(self.rng, ("sum", "max", "min"))
        if self.rng.random() < 0.4:
            return library.reduce(self.b, kind, x, axes, keep=True)
        return self.b.add(Reduce(kind, tuple(axes)), x)

    def pooled(self, x: Node) -> Node:
        """A window over all axes but the first and the channels."""
        free = [a not in (0, self.channels) for a in range(x.rank)]
        if not any(free):
            return x
        window = tuple(int(self.rng.integers(1, 4)) if f else 1 for f in free)
        strides = tuple(int(self.rng.integers(1, 3)) if f else 1 for f in free)
        padding = tuple((int(self.rng.integers(0, n)), int(self.rng.integers(0, n))) for n in window)
        try:
            return self.b.add(ReduceWindow(chosen(self.rng, ("max", "min", "sum")), window, strides, padding, (1,) * x.rank), x)
        except TilewrightError:
            return x  # the window is larger than an axis

    def moved(self, x: Node) -> Node:
        """Another order of the axes."""
        if x.rank < 2:
            return x
        perm = [int(a) for a in self.rng.permutation(x.rank)]
        self.channels = perm.index(self.channels) if self.channels < x.rank else self.channels
        return library.transpose(self.b, x, perm)

    def kept(self, x: Node) -> Node:
        """The value is a result too."""
        self.seen.append(x)
        return x


CONTRACTIONS: tuple[Callable[[_Draft], Node], ...] = (_Draft.conv, _Draft.usual_conv, _Draft.product, _Draft.gram)
FOLLOWERS: tuple[Callable[[_Draft, Node], Node], ...] = (
    _Draft.biased, _Draft.biased, _Draft.scaled, _Draft.activated, _Draft.activated, _Draft.added, _Draft.reduced, _Draft.reduced,
    _Draft.pooled, _Draft.moved, _Draft.kept)
