"""Few long rows on a GPU: a reduction in two steps, so that all multiprocessors take part.

Each row is cut into equal parts, which are rows of a first kernel; a second one reduces what these give and computes what follows. Sums of
narrow floats are kept in the dtype they are added in between.
"""

from __future__ import annotations

from ..ir.caps import Caps
from ..ir.dims import DimLike, product
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Cast, Reduce, accumulator_dtype
from ..ir.ops.control import Param
from ..ir.ops.shape import Reshape
from .rows import row_split

LEAST_ROW = 1 << 15   # elements that are worth a second kernel
LEAST_PART = 1 << 11
MOST_PARTS = 512


def in_parts(body: Graph, caps: Caps) -> tuple[Graph, Graph] | None:
    """The two steps of a group whose one reduction has few long rows. The first graph has some of the group's params, and as its result
    what is a param `parts` of the second, behind others of the group's."""
    reductions = [n for n in body.nodes() if isinstance(n.op, Reduce)]
    if len(reductions) != 1:
        return None
    reduction, = reductions
    outer = row_split(reduction)
    full = reduction.inputs[0].shape
    if outer is None or any(result.shape == full for result in body.results) or not all(isinstance(n, int) for n in full):
        return None
    rows, length = int(product(full[:outer])), int(product(full[outer:]))
    parts = MOST_PARTS
    while parts > 1 and (length % parts or length // parts < LEAST_PART):
        parts //= 2
    if length < LEAST_ROW or parts == 1 or not 1 <= rows <= caps.multiprocessors:
        return None
    return _steps(body, reduction, full[:outer], parts, length // parts)


def _steps(body: Graph, reduction: Node, outer: tuple[DimLike, ...], parts: int, length: int) -> tuple[Graph, Graph]:
    op, last = reduction.op, len(outer)
    assert isinstance(op, Reduce)
    dtype = accumulator_dtype(reduction.dtype)
    b = Builder(reduction.loc)
    value = b.add(Reshape((*outer, parts, length)), reduction.inputs[0])
    value = value if value.dtype == dtype else b.add(Cast(dtype), value)
    partial = b.add(Reduce(op.kind, (last + 1,)), value)
    first = Graph(f"{body.name}_parts", [p for p in body.params if p in set(Graph("", [], [partial]).nodes())], [partial])
    given = b.add(Param("parts", dtype, (*outer, parts)))
    total = b.add(Reduce(op.kind, (last,)), given)
    total = total if dtype == reduction.dtype else b.add(Cast(reduction.dtype), total)
    known: dict[Node, Node] = {reduction: total}
    for node in body.nodes():
        if node not in known:
            inputs = tuple(known.get(i, i) for i in node.inputs)
            known[node] = node if inputs == node.inputs else b.add(node.op, *inputs)
    results = [known[result] for result in body.results]
    used = set(Graph("", [], results).nodes())
    second = Graph(body.name, [*(p for p in body.params if p in used), given], results, body.result_names)
    return first, second


__all__ = ["in_parts"]
