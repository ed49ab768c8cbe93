"""Tables whose rows are taken stay as narrow as their numbers are: embeddings of quantized models.

Two steps, both on `take` along the first axis of constants:

- Rows of what is computed of constants, element by element (integers times scales, bfloat16 as float32), are computed of rows of these
  constants. So only rows that are taken are dequantized, and the table is never one of floats.
- A table of bytes that span at most 4 or 2 bits is stored as so many: part after part of a row lies in the bits of the same bytes, from
  the lowest on, so that a shift and a mask make as many neighbours of one byte load.

Left as they are: tables that folding makes floats of anyway (SMALL_BYTES), rows shorter than LEAST_PART a part, tables of bytes that
something else reads too, and what is taken so often that computing the whole table once is less work.

Contract: exact. Assumes primitives.
"""

from __future__ import annotations

import math

import numpy as np

from ..ir.dims import DimLike, bounds, product
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Bitcast, Cast, Elementwise
from ..ir.ops.control import Const
from ..ir.ops.shape import Broadcast, Reshape, Slice, Take
from ..ir.rewrite import rewrite_graph
from ..ir.types import U8
from ..library import apply, broadcast, constant, reshape
from ..options import Options
from .fold_constants import SMALL_BYTES
from .weight_only import constant_nodes

TABLE_BITS = (2, 4)
LEAST_PART = 16  # elements of a row that lie in the same bits: what a vector has at least


def narrow_tables(graph: Graph, options: Options) -> Graph:
    """See the module's text."""
    graph = rewrite_graph(graph, _take_before, "narrow_tables")
    while (packed := rewrite_graph(graph, _Packing(graph).visit, "narrow_tables")) is not graph:
        graph = packed  # again, where parts are of even fewer bits
    return graph


# --- rows before what is computed ------------------------------------------------------------------------------------


def _take_before(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
    if not _takes_rows(node) or isinstance(inputs[0].op, Const) or not inputs[0].tensor.is_static:
        return None
    x, places = inputs
    size = math.prod(x.tensor.static_shape) * x.dtype.bytes
    if size <= SMALL_BYTES or bounds(product(places.shape))[0] >= x.tensor.static_shape[0]:
        return None
    order = constant_nodes(x)
    if order is None or sum(n.op.value.array.nbytes for n in order if isinstance(n.op, Const)) >= size:
        return None
    return _rows(b, x, places)


def _takes_rows(node: Node) -> bool:
    return isinstance(node.op, Take) and node.op.axis == 0


def _rows(b: Builder, root: Node, places: Node) -> Node | None:
    """The rows of a value, computed of rows; None where it is not computed row by row."""
    made: dict[Node, Node] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        read = _read_by_row(node)
        if read is None:
            return None
        waiting = [x for x in read if x not in made]
        if waiting:
            stack += waiting
        else:
            made[stack.pop()] = _row(b, node, [made[x] for x in read], places)
    return made[root]


def _read_by_row(node: Node) -> tuple[Node, ...] | None:
    """The operands whose rows make up those of the node, one for one; none of a constant and what is one row repeated."""
    count = node.shape[0]
    match node.op:
        case Const():
            return ()
        case Elementwise() | Cast() | Bitcast():
            return node.inputs
        case Broadcast():
            x, = node.inputs
            return (x,) if x.rank == node.rank and x.shape[0] == count else ()
        case Reshape():
            x, = node.inputs
            return (x,) if x.rank and x.shape[0] == count else None
        case Slice(starts, sizes, steps):
            return node.inputs if (starts[0], sizes[0], steps[0]) == (0, node.inputs[0].shape[0], 1) else None
        case Take(0):
            return node.inputs[1:]  # of a table of values, by a value for each place
    return None


def _row(b: Builder, node: Node, rows: list[Node], places: Node) -> Node:
    shape: tuple[DimLike, ...] = (*places.shape, *node.shape[1:])
    match node.op:
        case Const():
            return b.add(Take(0), node, places)
        case Broadcast():
            x = rows[0] if rows else node.inputs[0]
            if not rows and x.rank == node.rank:
                x = reshape(b, x, x.shape[1:])
            return broadcast(b, x, shape)
        case Reshape():
            return reshape(b, rows[0], shape)
        case Slice(starts, sizes, steps):
            ahead = len(places.shape)
            return b.add(Slice((0,) * ahead + starts[1:], places.shape + sizes[1:], (1,) * ahead + steps[1:]), rows[0])
        case Take(0):
            return b.add(node.op, node.inputs[0], rows[0])
    return b.add(node.op, *rows)


# --- few bits --------------------------------------------------------------------------------------------------------


class _Packing:
    def __init__(self, graph: Graph) -> None:
        nodes = graph.nodes()
        self.read_whole = {x for node in nodes for i, x in enumerate(node.inputs) if i or not _takes_rows(node)} | set(graph.results)

    def visit(self, b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if not _takes_rows(node) or node.inputs[0] in self.read_whole or not isinstance(inputs[0].op, Const):
            return None
        table = inputs[0].op.value
        if table.dtype.bytes != 1 or table.dtype.is_bool or table.array.ndim < 2 or table.array.nbytes <= SMALL_BYTES:
            return None
        count, *rest = table.array.shape
        values = table.array.reshape(count, math.prod(rest)).view(np.int8 if table.dtype.is_integer and table.dtype.is_signed else np.uint8)
        least = int(values.min())
        bits = next((bits for bits in TABLE_BITS if int(values.max()) - least < 1 << bits), 8)
        width = values.shape[1]
        while bits < 8 and (width % (8 // bits) or width // (8 // bits) < LEAST_PART):
            bits *= 2
        parts = 8 // bits
        if parts == 1:
            return None
        length = width // parts
        codes = (values.view(np.uint8) - np.uint8(least % 256)).reshape(count, parts, length)
        packed = codes[:, 0].copy()
        for part in range(1, parts):
            packed |= codes[:, part] << np.uint8(bits * part)
        rows = b.add(Take(0), constant(b, packed), inputs[1])
        lead = inputs[1].shape
        apart = broadcast(b, reshape(b, rows, (*lead, 1, length)), (*lead, parts, length))
        shifts = constant(b, np.arange(0, 8, bits, dtype=np.uint8)[:, np.newaxis])
        value = apply(b, "and", apply(b, "shr", apart, shifts), constant(b, (1 << bits) - 1, U8))
        if least:
            value = apply(b, "add", value, constant(b, least % 256, U8))
        value = reshape(b, value, (*lead, *rest))
        return value if table.dtype == U8 else b.add(Bitcast(table.dtype), value)
