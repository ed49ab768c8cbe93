"""Tiles that are transposed in registers: a short serial loop around one vector, which read across each other.

What it does: `for i in 0..W { for j in 0..W vector(W) { ... load %x[i + stride*j] ... } }` reads a column of a square for each i, an
element a line of memory. The square is loaded by rows instead, as they lie, and its columns are made by interleaving registers.
Rows are loaded in parts of 16 bytes, which go into the halves (quarters) of a register as they are loaded, so that what is left to
interleave lies within 16 bytes, where one instruction does it.
Assumes: every i below W runs, with all lanes; the loop stores nothing to %x.
Guarantees: the same elements are read as by the loop, each once.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from tilewright.backends.llvm.emit_text import Function, shaped
from tilewright.ir.dims import Symbol, bounds
from tilewright.ir.loop import For, Let, Load, Store, expression_nodes, expressions_of
from tilewright.ir.loop_proofs import linear_factor

PART_BYTES = 16      # within which registers are interleaved by one instruction
MOST_LANES = 16      # whole squares stay in registers, or nearly so


class Across(Struct):
    """The serial loop of a tile, whose variable is now `position`; `columns`: of each access, those that are made already."""

    symbol: Symbol
    position: int = 0
    columns: dict[object, list[str]] = field(default_factory=dict)


def is_tile(loop: For) -> bool:
    """Whether the loop and the vector loop that is all its body run over a square of which something is read by columns."""
    inner = loop.body[0] if len(loop.body) == 1 else None
    if not isinstance(inner, For) or inner.kind != "vector" or not 2 <= inner.lanes <= MOST_LANES or inner.lanes & inner.lanes - 1:
        return False
    if bounds(loop.extent)[1] != inner.lanes or bounds(inner.extent)[1] != inner.lanes:
        return False
    return all(isinstance(s, (Store, Let)) for s in inner.body) and any(
        isinstance(node.op, Load) and len(node.op.index) == 1 and linear_factor(node.op.index[0], loop.symbol) == 1
        and linear_factor(node.op.index[0], inner.symbol) not in (None, 0, 1)
        for s in inner.body for root in expressions_of(s) for node in expression_nodes(root))


def part_of(element_bytes: int, lanes: int) -> int:
    """The elements of a row that are loaded at once, and the columns that are made together."""
    return min(lanes, PART_BYTES // element_bytes)


def columns_of(code: Function, element: str, rows: list[list[str]]) -> list[str]:
    """The columns of a part: `rows[i]` are the row i of each square of the part's width, one below the other."""
    width = len(rows)
    lanes = width * len(rows[0])
    registers = [_joined(code, element, width, parts) for parts in rows]
    step = width // 2
    kind = shaped(element, lanes)
    while step:
        pairs = [(registers[i], registers[i + width // 2]) for i in range(width // 2)]
        registers = [code.pure(f"shufflevector {kind} {one}, {kind} {other}, {places_text(_interleaved(width, lanes, high))}")
                     for one, other in pairs for high in (0, width // 2)]
        step //= 2
    return registers


def _joined(code: Function, element: str, width: int, parts: list[str]) -> str:
    while len(parts) > 1:
        kind, mask = shaped(element, width), places_text(range(2 * width))
        parts = [code.pure(f"shufflevector {kind} {one}, {kind} {other}, {mask}") for one, other in zip(parts[::2], parts[1::2])]
        width *= 2
    return parts[0]


def _interleaved(width: int, lanes: int, first: int) -> list[int]:
    """Of each part of two registers, half the elements from `first` on, in turns from the one and the other."""
    return [start + first + k + register * lanes for start in range(0, lanes, width) for k in range(width // 2) for register in (0, 1)]


def places_text(places: Sequence[int]) -> str:
    """The operand of a shuffle that says which elements it takes."""
    return f"<{len(places)} x i32> <{', '.join(f'i32 {place}' for place in places)}>"
