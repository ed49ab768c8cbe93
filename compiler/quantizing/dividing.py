"""Cuts a graph into parts that run one after another, so that what comes before a change need not be computed again.

A part is a graph of its own: it reads the inputs of the whole and values of the parts before it, and gives the values that later parts
or the results need.

Assumes places in the order of `graph.nodes()`. Guarantees: the parts, run in order, compute each value that the whole computes, once. A
place where no cut can be, because a value that crosses it is no array, or of a size that the inputs do not tell, is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from msgspec import Struct

from ..ir.dims import symbols_of
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.control import Const, Param
from ..ir.types import TensorType


class Part(Struct, frozen=True, eq=False):
    """A part of a graph. Its params are all inputs of the whole that are asked for everywhere, then the `reads`, as inputs of its own,
    then the `extra` inputs of the whole that only some parts read; its results are the values of `makes`."""

    graph: Graph
    reads: tuple[Node, ...]
    extra: tuple[Node, ...]
    makes: tuple[Node, ...]


def divide(graph: Graph, everywhere: Sequence[Node], places: Iterable[int]) -> list[Part]:
    """The parts of a graph that begin at these places of its nodes, and at the first. `everywhere`: inputs that every part is given.
    What hangs on none of these is computed in the first part that needs it, wherever it stands."""
    nodes = graph.nodes()
    known = {symbol.name for param in everywhere for size in param.shape for symbol in symbols_of(size)}
    last = _last_uses(graph, nodes)
    starts = sorted({place for place in places if 0 < place < len(nodes) and _can_cut(nodes, last, place, known)})
    part_of: dict[Node, int] = {}
    users, moving = graph.users(), depending(graph, everywhere)
    for place, node in reversed(list(enumerate(nodes))):
        part_of[node] = bisect_right(starts, place) if node in moving else min((part_of[user] for user in users[node]), default=len(starts))
    members: list[list[Node]] = [[] for _ in range(len(starts) + 1)]
    for node in nodes:
        if not isinstance(node.op, (Param, Const)):
            members[part_of[node]].append(node)
    results = set(graph.results)
    return [_part(f"{graph.name} {number}", inner, everywhere, [
        node for node in inner if node in results or any(part_of[user] > number for user in users[node])])
        for number, inner in enumerate(members)]


def depending(graph: Graph, params: Sequence[Node]) -> set[Node]:
    """The nodes that some of the params decide."""
    found = set(params)
    for node in graph.nodes():
        if any(value in found for value in node.inputs):
            found.add(node)
    return found


def _last_uses(graph: Graph, nodes: Sequence[Node]) -> dict[Node, int]:
    """The place of the last node that reads each, which lies behind the end for results."""
    last = dict.fromkeys(nodes, -1)
    for place, node in enumerate(nodes):
        for value in node.inputs:
            last[value] = place
    last.update((node, len(nodes)) for node in graph.results)
    return last


def _can_cut(nodes: Sequence[Node], last: dict[Node, int], place: int, known: set[str]) -> bool:
    crossing = (node for node in nodes[:place] if last[node] >= place and not isinstance(node.op, (Param, Const)))
    return all(isinstance(node.type, TensorType) and all(symbol.name in known for size in node.shape for symbol in symbols_of(size))
               for node in crossing)


def _part(name: str, inner: Sequence[Node], everywhere: Sequence[Node], makes: Sequence[Node]) -> Part:
    b = Builder()
    new: dict[Node, Node] = {param: param for param in everywhere}
    reads: list[Node] = []
    extra: list[Node] = []
    for node in inner:
        for value in node.inputs:
            if value in new:
                continue
            if isinstance(value.op, Param):
                new[value] = value
                extra.append(value)
            elif isinstance(value.op, Const):
                new[value] = b.add(value.op, loc=value.loc)
            else:
                new[value] = b.add(Param(f"value {len(reads)}", value.dtype, value.shape))
                reads.append(value)
        new[node] = b.add(node.op, *(new[value] for value in node.inputs), loc=node.loc)
    params = (*everywhere, *(new[value] for value in reads), *extra)
    return Part(Graph(name, params, tuple(new[node] for node in makes)), tuple(reads), tuple(extra), tuple(makes))
