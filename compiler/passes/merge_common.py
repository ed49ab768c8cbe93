"""Merges equal nodes: one op, equal attributes, the same operands. Ops with an `effect` are left alone.

Graphs made by a `Builder` have no equal nodes already; text and front ends may bring some.
Guarantees: no two nodes of one graph are equal, in bodies too; the meaning is unchanged to the bit.
"""

from __future__ import annotations

from ..ir.graph import Builder, Graph, Node
from ..ir.rewrite import rewrite_graph
from ..options import Options


def merge_common(graph: Graph, options: Options) -> Graph:
    """The graph with equal nodes merged; what no result needs is not there in any graph."""
    return rewrite_graph(graph, _keep, "merge_common", bodies=True)


def _keep(builder: Builder, node: Node, inputs: tuple[Node, ...]) -> None:
    """Every node stays; the walk merges."""
