"""Contractions of which it shows only at run time how many rows they have: a nest for few of them.

A register tile that is as high as registers allow computes its full height for a single row. Here lower tiles, which take
several panels side by side, are chosen by the number of rows. They leave their sums in memory of the thread, from where one
epilogue serves them all: an epilogue is by far the most of a kernel's code.

Assumes no more rows than the highest of the tiles has; the nest does nothing where there are more, as `lower_contraction` does
where there are few. Guarantees the sums of that nest to the bit, as each element is summed in one order in tiles of any height: a
row's result does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..ir.dims import bounds, ceildiv, dim_min, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, If, Stmt
from ..ir.ops.compute import PackedConv, PackedDot
from ..tiles import Tile
from .contraction import TileWork, is_at_most, named_parts
from .inline import Inliner, loop_symbol, unflatten_index


def lower_few_rows(node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner, tiles: Sequence[Tile]) -> Stmt:
    """The loop nest of `node` and its epilogue, as `lower_contraction` has it, with one of the tiles, which are ordered by height
    and of which a lower one is wider."""
    names = inliner.names
    batch_shape = node.shape[:node.op.batch if isinstance(node.op, PackedDot) else 0]
    groups = node.op.groups if isinstance(node.op, PackedConv) else 1
    panels, _, width = node.inputs[1].shape[-3:]
    assert isinstance(width, int)
    whole = Tile(tiles[-1].rows, tiles[0].columns, tiles[0].lanes)
    wide = whole.columns // width
    rows = product(node.shape[len(batch_shape):-1])
    shape = (groups, *batch_shape, ceildiv(panels, wide))
    count = product(shape) * is_at_most(rows, whole.rows) * dim_min(rows, 1)
    variable, at = loop_symbol(names.fresh("t"), count)
    labels = ["group", *(f"b{a}_" for a in range(len(batch_shape))), "right"]
    lets, (group, *batch, right) = named_parts(inliner, labels, unflatten_index(at, shape))
    work_of = partial(TileWork, node, result, out, lhs, rhs, inliner)
    work = work_of(whole, (group, *batch), right * wide, 0)
    source = Buffer(names.fresh("tile"), work.dtype, (whole.rows, whole.columns), "local")
    least = int(max(1, bounds(rows)[0]))  # which may be unknown
    sums: list[tuple[Stmt, ...]] = []
    for tile in tiles:
        beside = tile.columns // width
        across, p = loop_symbol(names.fresh("p"), dim_min(wide // beside, ceildiv(panels - right * wide, beside)))
        here, (panel,) = named_parts(inliner, ["panel"], (right * wide + p * beside,))
        summed = work_of(tile, (group, *batch), panel, 0).sums_in_memory(source, p * tile.columns, clamped=least < tile.rows)
        sums.append((For(across, dim_min(wide // beside, ceildiv(panels - right * wide, beside)), "serial", (*here, *summed)),))
        least = tile.rows + 1
    chosen = sums.pop()
    for tile, lower in zip(reversed(tiles[:-1]), reversed(sums)):
        chosen = (If(inliner.scalar("le", inliner.index(rows), inliner.index(tile.rows)), lower, chosen),)
    stored = (*work.count_from(0), work.store_from_memory(source, guarded=True))
    return For(variable, count, "parallel", (*lets, Alloc(source), *chosen, *stored))
