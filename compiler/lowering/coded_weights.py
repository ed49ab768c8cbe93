"""What the kernels of `weight_only_dot` share: the operands' buffers, and the loops that they are made of."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import DimLike, product
from ..ir.graph import Node
from ..ir.loop import Buffer, For, Stmt
from ..ir.ops.weight_only import WORD, WeightOnlyDot
from ..ir.types import F32, DType
from .contraction import named_parts
from .inline import Inliner, loop_symbol

LINE = 16  # words that memory brings at a time
NEAR = 0.25  # of the second level of memory: what a block of panels may take that is prefetched while the one before it is read
FEW_WORDS = 8  # to prefetch ahead of those that are read, where a block takes more


class Operands(Struct, frozen=True):
    """The buffers of the op's operands; `points` only where there are zero points."""

    lhs: Buffer
    words: Buffer
    scales: Buffer
    points: Buffer | None


def words_ahead(node: Node, beside: int, caps: Caps) -> int:
    """How many words of each column lie between those that are read and those that are prefetched, by a nest with so many panels
    side by side: the next block's, where it stays near until then."""
    _, words, width = node.inputs[1].shape
    assert isinstance(words, int) and isinstance(width, int)
    block = beside * words
    return block if block * width * (WORD // 8) <= NEAR * caps.level2_bytes else FEW_WORDS


def op_of(node: Node) -> WeightOnlyDot:
    assert isinstance(node.op, WeightOnlyDot)
    return node.op


class Nest:
    """What all nests know of the op, and how they spell loops over columns in vectors of `lanes`."""

    def __init__(self, node: Node, result: Node, out: Buffer, operands: Operands, inliner: Inliner, lanes: int) -> None:
        self.node, self.result, self.out, self.operands = node, result, out, operands
        self.inliner, self.names, self.op = inliner, inliner.names, op_of(node)
        panels, words, width = node.inputs[1].shape
        depth, groups = node.inputs[0].shape[-1], node.inputs[2].shape[1]
        assert isinstance(panels, int) and isinstance(words, int) and isinstance(width, int)
        assert isinstance(depth, int) and isinstance(groups, int)
        self.panels, self.words, self.width, self.depth, self.groups = panels, words, width, depth, groups
        self.rows = product(node.shape[:-1])
        self.of_word = WORD // self.op.bits
        self.mask = (1 << self.op.bits) - 1
        self.lanes = lanes

    def flat(self, buffer: Buffer) -> Buffer:
        return Buffer(buffer.name, buffer.dtype, (product(buffer.shape),), buffer.space)

    def load(self, inner: Inliner, buffer: Buffer, place: DimLike, dtype: DType = F32) -> Node:
        """An element of an operand as a float."""
        return inner.cast(inner.load(self.flat(buffer), (place,)), dtype)

    def each(self, columns: int, make: Callable[[Inliner, DimLike], None]) -> Stmt:
        """Statements for each of so many columns, in vectors that are spelled out."""
        vector, v = loop_symbol(self.names.fresh("v"), columns // self.lanes)
        lane, j = loop_symbol(self.names.fresh("j"), self.lanes)
        inner = self.inliner.inner()
        make(inner, v * self.lanes + j)
        return For(vector, columns // self.lanes, "unrolled", (For(lane, self.lanes, "vector", tuple(inner.block), self.lanes),))

    def serial(self, label: str, extent: DimLike, make: Callable[[DimLike], tuple[Stmt, ...]]) -> Stmt:
        variable, at = loop_symbol(self.names.fresh(label), extent)
        return For(variable, extent, "serial", make(at))

    def named(self, label: str, size: DimLike) -> tuple[list[Stmt], DimLike]:
        lets, (named,) = named_parts(self.inliner, [label], (size,))
        return lets, named
