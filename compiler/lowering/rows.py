"""Row kernels: softmax, layer norm and their like in one pass over each row.

A group whose reductions all run over the same trailing axes. For each row (parallel) the reductions are computed in
order, each by a vector loop over the row; then the results are written by one more. An expensive value that several of
these loops need (the exponential of a softmax) is kept in a row buffer when the row's size is known and small.
The loops are built serial; their vectors are steps of the schedule, with reductions reassociated.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.dims import DimLike, Symbol, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, Literal, Stmt, Store
from ..ir.ops.compute import COMBINE, Cast, Elementwise, Reduce, accumulator_dtype, reduction_identity
from ..ir.schedule import Step
from ..ir.types import DType
from .elements import Loops, Nest, around
from .inline import Index, Inliner, Names, flatten_index, loop_symbol, unflatten_index

ROW_BUFFER_BYTES = 32768
EXPENSIVE = frozenset({"exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos",
                       "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "pow",
                       "cbrt", "hypot", "div", "sqrt", "floordiv", "mod", "rem"})


def row_split(reduction: Node) -> int | None:
    """The number of leading axes that a reduction keeps, when it reduces all the others and they are trailing."""
    op = reduction.op
    if not isinstance(op, Reduce) or not op.axes:
        return None
    rank = reduction.inputs[0].rank
    outer = rank - len(op.axes)
    return outer if op.axes == tuple(range(outer, rank)) else None


class RowKernel:
    """The statements of one row kernel."""

    def __init__(self, inliner: Inliner, nodes: Sequence[Node], results: Sequence[tuple[Node, Buffer]], lanes: int) -> None:
        self.root = inliner
        self.names: Names = inliner.names
        self.nodes = nodes
        self.results = results
        self.lanes = lanes
        self.reductions = [n for n in nodes if isinstance(n.op, Reduce)]
        first = self.reductions[0]
        outer = row_split(first)
        assert outer is not None
        self.outer, self.inner = first.inputs[0].shape[:outer], first.inputs[0].shape[outer:]
        self.row_size = product(self.inner)
        self.hoisted: set[Node] = set()
        self.vectors: list[Step] = []

    def lower(self) -> Nest:
        axes = [(*loop_symbol(self.names.fresh("i"), n), n) for n in self.outer]
        row = tuple(at for _, at, _ in axes)
        kept = self._kept_values()
        body: list[Stmt] = []
        written: dict[Node, Buffer] = {}
        for reduction in self.reductions:
            body.extend(self._reduce(reduction, row, kept, written))
        body.extend(self._write_results(row, kept, written))
        loops: Loops = [(s, n) for s, _, n in axes if n != 1]
        return around(loops, tuple(body), self.names, tuple(self.vectors))

    def _along(self) -> tuple[Symbol, DimLike]:
        """The variable of a loop over the row, which is to run in vectors."""
        variable, at = loop_symbol(self.names.fresh("k"), self.row_size)
        self.vectors.append(Step("vectorize", (variable.name, self.lanes, True)))
        return variable, at

    def _kept_values(self) -> dict[Node, Buffer]:
        """Expensive values that more than one loop over the row reads, each with its row buffer."""
        if not isinstance(self.row_size, int):
            return {}
        loops: dict[Node, int] = {}
        for root in [*self.reductions, *(n for n, _ in self.results)]:
            for node in self._needed(root):
                loops[node] = loops.get(node, 0) + 1
        kept: dict[Node, Buffer] = {}
        room = ROW_BUFFER_BYTES
        full = (*self.outer, *self.inner)
        for node in self.nodes:
            expensive = isinstance(node.op, Elementwise) and node.op.function in EXPENSIVE
            bytes_needed = self.row_size * node.dtype.bytes if expensive else 0
            if expensive and node.shape == full and loops.get(node, 0) > 1 and bytes_needed <= room:
                kept[node] = Buffer(self.names.fresh("row"), node.dtype, (self.row_size,), "local")
                room -= bytes_needed
        return kept

    def _needed(self, root: Node) -> set[Node]:
        """Nodes of the group that computing `root` at one place evaluates, stopping at the reductions before it."""
        members, found, stack = set(self.nodes), set(), [root]
        while stack:
            node = stack.pop()
            if node in found or node not in members or (isinstance(node.op, Reduce) and node is not root):
                continue
            found.add(node)
            stack.extend(node.inputs)
        return found

    def _hoist(self, root: Node, row: Index) -> list[Stmt]:
        """Lets of the values that are the same along the row and that the loop for `root` needs."""
        self.root.block = []
        needed = self._needed(root)
        for node in self.nodes:
            narrow = node.shape == self.outer or node.shape == (*self.outer, *(1 for _ in self.inner))
            if node not in needed or not narrow or node in self.hoisted or not isinstance(node.op, (Elementwise, Cast)):
                continue
            index = row if node.shape == self.outer else (*row, *(0 for _ in self.inner))
            value = self.root.latch_value(node, index)
            self.root.bind(node, index, lambda value=value: value)  # type: ignore[misc]
            self.hoisted.add(node)
        return list(self.root.block)

    def _inside(self, row: Index, written: dict[Node, Buffer], at: DimLike) -> Inliner:
        """An inliner for one loop over the row: values already kept are read from their row buffers."""
        inside = self.root.inner()
        index = (*row, *unflatten_index(at, self.inner))
        for node, buffer in written.items():
            inside.bind(node, index, lambda buffer=buffer: inside.load(buffer, (at,)))  # type: ignore[misc]
        return inside

    def _keep(self, inside: Inliner, row: Index, at: DimLike, kept: dict[Node, Buffer], written: dict[Node, Buffer],
              root: Node) -> list[tuple[Node, Buffer]]:
        """Stores of the values that this loop is the first to need."""
        needed = self._needed(root)
        first = [(n, b) for n, b in kept.items() if n in needed and n not in written]
        index = (*row, *unflatten_index(at, self.inner))
        for node, buffer in first:
            inside.block.append(Store(buffer.name, (at,), inside.latch_value(node, index)))
        return first

    def _reduce(self, reduction: Node, row: Index, kept: dict[Node, Buffer], written: dict[Node, Buffer]) -> list[Stmt]:
        op = reduction.op
        assert isinstance(op, Reduce)
        dtype = accumulator_dtype(reduction.dtype)
        accumulator = Buffer(self.names.fresh(op.kind), dtype, (), "register")
        variable, at = self._along()
        hoisted = self._hoist(reduction, row)
        inside = self._inside(row, written, at)
        new = self._keep(inside, row, at, kept, written, reduction)
        value = inside.cast(inside.value(reduction.inputs[0], (*row, *unflatten_index(at, self.inner))), dtype)
        inside.block.append(Store(accumulator.name, (), value, COMBINE[op.kind]))
        before: list[Stmt] = [*hoisted, *(Alloc(buffer) for _, buffer in new)]
        written.update(new)
        before += [Alloc(accumulator), Store(accumulator.name, (), _identity(self.root, op.kind, dtype))]
        before.append(For(variable, self.row_size, "serial", tuple(inside.block)))
        self.root.block = []
        result = self.root.latch(self.root.cast(self.root.load(accumulator, ()), reduction.dtype))
        before.extend(self.root.block)
        self.root.bind(reduction, row, lambda: result)
        return before

    def _write_results(self, row: Index, kept: dict[Node, Buffer], written: dict[Node, Buffer]) -> list[Stmt]:
        statements: list[Stmt] = []
        full = (*self.outer, *self.inner)
        whole = [(n, b) for n, b in self.results if n.shape == full]
        for node, buffer in self.results:
            if node.shape != full:
                inside = self.root.inner()
                index = row if node.shape == self.outer else (*row, *(0 for _ in self.inner))
                value = inside.value(node, index)
                place = flatten_index(index, buffer.shape)
                statements.extend((*inside.block, Store(buffer.name, (place,), value)))
        if whole:
            variable, at = self._along()
            for node, _ in whole:
                statements.extend(self._hoist(node, row))
            inside = self._inside(row, written, at)
            index = (*row, *unflatten_index(at, self.inner))
            stores = [Store(b.name, (flatten_index(index, b.shape),), inside.value(n, index)) for n, b in whole]
            statements.append(For(variable, self.row_size, "serial", (*inside.block, *stores)))
        return statements


def _identity(inliner: Inliner, kind: str, dtype: DType) -> Node:
    return inliner.builder.add(Literal(reduction_identity(kind, dtype), dtype))
