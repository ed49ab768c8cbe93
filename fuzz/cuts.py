"""Seeds from real models: pieces of a graph of some nodes each, with large sizes made small.

A piece ends at one node; what it reads from further away becomes a parameter, and so do large constants. Sizes are exchanged
wherever they stand, the same number by the same one, which most often leaves a piece that still fits together; those that do
not are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from ..ir.dims import DimLike, symbols_of
from ..ir.errors import TilewrightError
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.control import Const, Param
from ..ir.types import TensorType
from .rebuild import acceptable, with_sizes

NODES = 10           # of a piece
LARGEST_CONSTANT = 64
LARGEST_SIZE = 12
SMALL_SIZES = (6, 4, 8, 3, 9, 5, 7, 2)


def pieces(graph: Graph, rng: np.random.Generator, count: int) -> Iterator[Graph]:
    """Up to `count` different pieces that are acceptable cases."""
    ends = [n for n in graph.nodes() if isinstance(n.type, TensorType) and n.inputs]
    seen: set[str] = set()
    for place in rng.permutation(len(ends)):
        if len(seen) >= count:
            return
        for change in (lambda piece: piece, bound):
            try:
                piece = shrunk(change(cut(ends[int(place)])))
            except (TilewrightError, ZeroDivisionError):
                continue
            if acceptable(piece):
                if piece.fingerprint not in seen:
                    seen.add(piece.fingerprint)
                    yield piece
                break


def cut(end: Node) -> Graph:
    """The nodes next before `end`, as a graph of their own."""
    inside: list[Node] = []
    waiting = [end]
    while waiting and len(inside) < NODES:
        node = waiting.pop(0)
        if node not in inside and not isinstance(node.op, Param):
            inside.append(node)
            waiting.extend(node.inputs)
    kept = {id(n) for n in inside if not (isinstance(n.op, Const) and n.op.value.array.size > LARGEST_CONSTANT)}
    builder = Builder()
    values: dict[int, Node] = {}
    params: list[Node] = []
    for node in Graph("piece", (), [end]).nodes():
        if id(node) in kept and all(id(i) in values for i in node.inputs):
            values[id(node)] = builder.add(node.op, *(values[id(i)] for i in node.inputs))
        elif isinstance(node.type, TensorType):
            values[id(node)] = builder.add(Param(f"x{len(params)}", node.dtype, node.shape))
            params.append(values[id(node)])
    result = values[id(end)]
    used = set(Graph("piece", (), [result]).nodes())
    return Graph("piece", [p for p in params if p in used], [result])


def shrunk(graph: Graph) -> Graph:
    """The graph with each large number among its sizes exchanged for a small one. Products stay products: heads of a width
    and what they are together."""
    numbers = sorted({n for node in graph.nodes() if isinstance(node.type, TensorType) for n in node.shape if isinstance(n, int)})
    small: dict[int, DimLike] = {n: n for n in numbers if n <= LARGEST_SIZE}
    fresh = itertools.cycle(SMALL_SIZES)
    for number in numbers:
        if number > LARGEST_SIZE:
            parts = [(a, number // a) for a in (*small, 2, 3, 4) if 1 < a < number and number % a == 0 and number // a in small]
            small[number] = small.get(parts[0][0], parts[0][0]) * small[parts[0][1]] if parts else next(fresh)
    return with_sizes(graph, {}, {n: small[n] for n in numbers if small[n] != n})


def bound(graph: Graph) -> Graph:
    """The graph with a small number in place of each symbol, also those that no parameter of it binds."""
    found = symbols_of(*(n for node in graph.nodes() if isinstance(node.type, TensorType) for n in node.shape))
    return with_sizes(graph, {s.name: -(-max(s.lower, 3) // s.multiple_of) * s.multiple_of for s in found}, {})
