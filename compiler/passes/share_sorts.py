"""Sorts as few arrays as possible: what follows from the places that sort an array is not sorted anew.

The values in order are read at the places that sort them, where these are asked for too. The places that sort a permutation
are its inverse, which one pass writes: `argsort(argsort(x))`, the ranks of elements.

Guarantees: the same bits, equal elements and NaN included, since that is how a sort is defined (`ir/ops/compute.py`).
"""

from __future__ import annotations

from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import ArgSort, Sort
from ..ir.ops.shape import Iota, ScatterAlong, TakeAlong
from ..ir.rewrite import rewrite_graph
from ..ir.types import I64
from ..options import Options


def share_sorts(graph: Graph, options: Options) -> Graph:
    """See the module's text. Contract: exact."""
    del options
    sorted_places = {(n.inputs[0], n.op.axis, n.op.descending) for n in graph.nodes() if isinstance(n.op, ArgSort)}
    shared = {n for n in graph.nodes() if isinstance(n.op, Sort) and (n.inputs[0], n.op.axis, n.op.descending) in sorted_places}

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        match node.op:
            case Sort(axis, descending) if node in shared:
                return b.add(TakeAlong(axis), inputs[0], b.add(ArgSort(axis, descending), inputs[0]))
            case ArgSort(axis, False) if isinstance(node.inputs[0].op, ArgSort) and node.inputs[0].op.axis == axis:
                places = inputs[0]
                return b.add(ScatterAlong(axis, "set"), places, places, b.add(Iota(I64, places.shape, axis)))
        return None

    return rewrite_graph(graph, visit, "share_sorts")
