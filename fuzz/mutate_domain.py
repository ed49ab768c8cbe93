"""Mutators of graphs that know what compilers for tensors get wrong: chains of movements, predication, control flow, round
trips through dtypes, the order of reductions, views of one value, sizes known late.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .. import library
from ..ir.dims import bounds, symbol
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Cast, Reduce
from ..ir.ops.shape import Broadcast, Concat, Reshape, Slice
from ..ir.types import ARRAY_DTYPES, BOOL, F64, I8, TensorType
from .generate_bodies import controlled
from .generate_movements import MOVEMENTS, moved, suits
from .rebuild import adapted, before, chosen, rebuilt, tensors, with_sizes
from .sizes import LONG, UPPER


def movement(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value is moved and moved back: transposes, reshapes, slices of pads, reversals, broadcasts; or moved only."""
    def make(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        kind = int(rng.integers(6))
        if kind == 0 and x.rank > 1:
            perm = [int(a) for a in rng.permutation(x.rank)]
            moved = library.transpose(b, x, perm)
            back = perm if rng.random() < 0.3 else [perm.index(a) for a in range(x.rank)]  # rarely the wrong way round
            return library.transpose(b, library.scalar(b, "neg", moved) if _numeric(x) else moved, back)
        if kind == 1:
            flat = b.add(Reshape((math.prod(x.shape, start=1),)), x) if all(isinstance(n, int) for n in x.shape) else x
            return b.add(Reshape(x.shape), flat) if flat.rank == 1 and rng.random() < 0.6 else flat
        if kind == 2 and x.rank:
            low, high = ([int(n) for n in rng.integers(0, 3, x.rank)] for _ in range(2))
            padded = library.pad(b, x, low, high, int(rng.integers(0, 2)))
            start = low if rng.random() < 0.7 else [0] * x.rank
            return b.add(Slice(tuple(start), x.shape, (1,) * x.rank), padded)
        if kind == 3 and x.rank:
            axis = int(rng.integers(x.rank))
            if bounds(x.shape[axis])[0] >= 1:
                return library.slice_axis(b, x, axis, x.shape[axis] - 1, x.shape[axis], -1)
        if kind == 4 and x.rank < 4:
            return b.add(Broadcast((chosen(rng, (1, 2, 3)), *x.shape)), x)
        if x.rank:
            axis = int(rng.integers(x.rank))
            return library.slice_axis(b, b.add(Concat(axis), x, x), axis, x.shape[axis] if rng.random() < 0.5 else 0, x.shape[axis])
        return x

    return rebuilt(graph, {id(chosen(rng, tensors(graph))): make})


def _numeric(x: Node) -> bool:
    return not x.dtype.is_bool


def chain(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value is moved two to four times, most often in one way: what passes merge or cancel."""
    kinds = list(MOVEMENTS)
    kind = chosen(rng, kinds)
    node = chosen(rng, [n for n in tensors(graph) if suits(kind, n)] or tensors(graph))

    def make(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        pool = [x, *before(graph, node, values)]
        for _ in range(int(rng.integers(2, 5))):
            x = moved(b, rng, x, kind if rng.random() < 0.7 else chosen(rng, kinds), pool)
            if _numeric(x) and rng.random() < 0.2:
                x = library.scalar(b, "neg", x)
        return x

    return rebuilt(graph, {id(node): make})


def predicate(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value becomes a choice, element by element, between itself and another."""
    node = chosen(rng, tensors(graph))

    def make(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        pool = [x, *before(graph, node, values)]
        other = adapted(b, chosen(rng, pool), x.tensor)
        condition = adapted(b, chosen(rng, [v for v in pool if v.dtype.is_bool] or pool), TensorType(BOOL, x.shape))
        return library.scalar(b, "select", condition, *((x, other) if rng.random() < 0.5 else (other, x)))

    return rebuilt(graph, {id(node): make})


def control(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value goes through a loop, a scan or a branch of its own, with other values as states and captures."""
    node = chosen(rng, tensors(graph))
    return rebuilt(graph, {id(node): lambda b, x, values: controlled(b, rng, x, [x, *before(graph, node, values)])})


def round_trip(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value goes through another dtype and back, some as quantization does it: scaled, rounded, clipped."""
    def make(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        if x.dtype.is_float and rng.random() < 0.3:
            scale = library.like(b, chosen(rng, (0.5, 0.25, 2.0)), x)
            scaled = library.scalar(b, "round", library.scalar(b, "div", x, scale))
            kept = library.scalar(b, "min", library.scalar(b, "max", scaled, library.like(b, -128, x)), library.like(b, 127, x))
            return library.scalar(b, "mul", b.add(Cast(x.dtype), b.add(Cast(I8), kept)), scale)
        return b.add(Cast(x.dtype), b.add(Cast(chosen(rng, (F64, *ARRAY_DTYPES))), x))

    return rebuilt(graph, {id(chosen(rng, tensors(graph))): make})


def reduction(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A reduction over several axes becomes several, in any order; or a value is reduced and broadcast again."""
    nodes = [n for n in graph.nodes() if isinstance(n.op, Reduce) and len(n.op.axes) > 1]
    if nodes and rng.random() < 0.7:
        node = chosen(rng, nodes)
        op = node.op
        assert isinstance(op, Reduce)

        def split(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
            made = values[id(node.inputs[0])]
            left = list(op.axes)
            while left:
                axis = left.pop(int(rng.integers(len(left))))
                made = b.add(Reduce(op.kind, (axis,)), made)
                left = [a - (a > axis) for a in left]
            return made

        return rebuilt(graph, {id(node): split})
    wide = [n for n in tensors(graph) if n.rank and not n.dtype.is_bool]
    if not wide:
        return None

    def around(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        axes = [a for a in range(x.rank) if rng.random() < 0.5 and bounds(x.shape[a])[0] >= 1] or [0]
        reduced = library.reduce(b, chosen(rng, ("sum", "max", "min")), x, axes, keep=True)
        return library.scalar(b, chosen(rng, ("sub", "add", "max")), x, b.add(Broadcast(x.shape), reduced))

    return rebuilt(graph, {id(chosen(rng, wide)): around})


def alias(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value is cut in two views, of which one is changed, and put together again; or written into a part of another."""
    wide = [n for n in tensors(graph) if n.rank and isinstance(n.shape[0], int) and n.shape[0] > 1]
    if not wide:
        return None

    def make(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        size = int(x.shape[0])
        cut = int(rng.integers(1, size))
        first, second = library.slice_axis(b, x, 0, 0, cut), library.slice_axis(b, x, 0, cut, size - cut)
        if _numeric(x) and rng.random() < 0.6:
            first = library.scalar(b, "abs", first)
        return b.add(Concat(0), *((first, second) if rng.random() < 0.6 else (second, first)))

    return rebuilt(graph, {id(chosen(rng, wide)): make})


def open_size(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """One number among the sizes becomes a symbol, wherever it stands; or a symbol becomes a number."""
    known = graph.symbols
    if known and rng.random() < 0.4:
        old = chosen(rng, known)
        return with_sizes(graph, {old.name: max(old.lower, old.multiple_of)}, {})
    numbers = sorted({n for p in graph.params for n in p.shape if isinstance(n, int) and n > 0})
    if not numbers:
        return None
    number = chosen(rng, numbers)
    name = next(n for n in "NMLKJ" if all(s.name != n for s in known))
    upper = chosen(rng, [n for n in (number, number, *UPPER) if n >= number])
    return with_sizes(graph, {}, {number: symbol(name, 1 if rng.random() < 0.7 else 0, upper)})


def new_extent(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """One number among the sizes becomes another, wherever it stands: 0, 1, and what tiles and vectors leave over."""
    numbers = sorted({n for p in graph.params for n in p.shape if isinstance(n, int)})
    if not numbers:
        return None
    return with_sizes(graph, {}, {chosen(rng, numbers): chosen(rng, (0, 1, 2, 4, 7, 8, 9, 16, 17, 33, *LONG))})
