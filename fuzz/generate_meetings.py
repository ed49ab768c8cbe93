"""Movements beside computations, and graphs again with a size that is known late: what compilers fuse, and what they prove of sizes.

A movement is folded into the index by which a kernel reads or stores; whether that is right depends on what the kernel does along the
axes that moved. So every movement stands in front of every computation, with a function of one operand before it, and behind it. And
what is right for a number of elements may not be for any: so listed graphs come once more with a symbol for one of their numbers.

Guarantees: the same graphs each time, well typed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .. import library
from ..ir.errors import TilewrightError
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import ArgReduce, Cumulative, Dot, ReduceWindow, Sort
from ..ir.ops.control import Param
from ..ir.types import F32, I32
from .generate_movements import MOVEMENTS, moved
from .mutate_domain import open_size
from .rebuild import acceptable

SHAPES = ((4, 5, 6), (3, 1, 17))
OPENINGS = 3  # tries to find a number that can be left open
Compute = Callable[[Builder, Node], Node]


def _product(b: Builder, x: Node) -> Node:
    """With weights along the last axis, which are made of a counter here."""
    depth = x.shape[-1]
    weights = library.cast(b, library.constant(b, np.arange(3 * int(depth)).reshape(int(depth), 3) % 5 - 2, I32), x.dtype)
    return b.add(Dot((x.rank - 1,), (0,)), x, weights)


def _window(b: Builder, x: Node) -> Node:
    size = tuple(2 if isinstance(n, int) and n > 1 else 1 for n in x.shape)
    ones = (1,) * x.rank
    return b.add(ReduceWindow("max", size, ones, ((0, 0),) * x.rank, ones), x)


COMPUTATIONS: tuple[Compute, ...] = (
    lambda b, x: library.reduce(b, "sum", x, (x.rank - 1,)),
    lambda b, x: library.reduce(b, "max", x, (0,), keep=True),
    lambda b, x: library.softmax(b, x, x.rank - 1),
    _product,
    _window,
    lambda b, x: b.add(Cumulative("sum", 0, False, False), x),
    lambda b, x: b.add(ArgReduce("max", x.rank - 1), x),
    lambda b, x: b.add(Sort(x.rank - 1, False), x),
)


def meeting_seeds() -> Iterator[Graph]:
    """Every movement in front of every computation and behind it, for each shape."""
    rng = np.random.default_rng(0)
    for kind, shape, first in itertools.product(MOVEMENTS, SHAPES, range(0, len(COMPUTATIONS), 2)):
        b = Builder()
        params = [b.add(Param(f"x{i}", F32, tuple(int(n) for n in rng.permutation(shape)))) for i in range(2)]
        x = params[0]
        results: list[Node] = []
        for compute in COMPUTATIONS[first:first + 2]:
            before = moved(b, rng, library.scalar(b, "neg", x), kind, params)
            results += _computed(b, compute, before) if before.rank else []
            results += [moved(b, rng, made, kind, params) for made in _computed(b, compute, x)]
        yield Graph("meetings", params, list(dict.fromkeys(results)) or [x])


def _computed(b: Builder, compute: Compute, x: Node) -> list[Node]:
    """Nothing where the value has no axis for that."""
    try:
        return [compute(b, x)]
    except TilewrightError:
        return []


def opened(graphs: Sequence[Graph]) -> Iterator[Graph]:
    """Those of the graphs again in which a number can become a symbol."""
    rng = np.random.default_rng(0)
    for graph in graphs:
        for _ in range(OPENINGS):
            try:
                made = None if graph.symbols else open_size(graph, rng, graph)
            except TilewrightError:
                continue  # another place needs the number
            if made is not None and made.symbols and acceptable(made):
                yield made
            break
