"""Opens composites into the primitives of their bodies.

Guarantees: afterwards no `call` is left but those with a label in `keep`, neither in the graph nor in its bodies (nor in
the bodies of those kept, whose own meaning stays in primitives). The meaning does not change: a body is the definition.
"""

from __future__ import annotations

from collections.abc import Collection

from ..ir.graph import Builder, Graph, Node
from ..ir.ops.control import Composite
from ..ir.rewrite import rewrite_until_stable
from ..library import inline
from ..options import Options


def decompose(graph: Graph, options: Options, keep: Collection[str] = ()) -> Graph:
    """The graph with every composite opened whose label is not in `keep`."""
    kept = frozenset(keep)

    def visit(builder: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | tuple[Node, ...] | None:
        if not isinstance(node.op, Composite) or node.op.label in kept:
            return None
        results = inline(builder, node.op.body, inputs)
        return results[0] if len(results) == 1 else results

    return rewrite_until_stable(graph, visit, "decompose", bodies=True)
