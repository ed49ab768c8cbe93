"""Right operands that several neighbouring places of a batch share, as heads of attention share keys and values, are packed once.

What repeats them stands behind the packing then, where a kernel that reads panels may read the same ones (`attention.repeated`).
"""

from __future__ import annotations

from ..ir.dims import DimLike, product
from ..ir.graph import Builder, Node
from ..ir.ops.compute import Dot
from ..ir.ops.shape import Broadcast, Reshape, Transpose
from ..library import broadcast, reshape, transpose
from .panels import pack_columns


def pack_repeated(b: Builder, op: Dot, rhs: Node, tile: int) -> Node | None:
    """The right operand of a product in panels of `tile` columns, [*batch, panels, K, tile], where it repeats places of its batch."""
    batch = len(op.rhs_batch)
    found = _repeated(b, rhs, batch) if op.rhs_batch == tuple(range(batch)) else None
    if found is None:
        return None
    source, times = found
    columns = [a for a in range(rhs.rank) if a not in op.rhs_batch + op.rhs_contract]
    depth, width = (product(rhs.shape[a] for a in axes) for axes in (op.rhs_contract, columns))
    matrices = reshape(b, transpose(b, source, [*op.rhs_batch, *op.rhs_contract, *columns]), (*source.shape[:batch], depth, width))
    packed = pack_columns(b, matrices, batch, tile)
    lead, panels = packed.shape[:batch], packed.shape[batch:]
    spread = broadcast(b, reshape(b, packed, (*lead, 1, *panels)), (*lead, times, *panels))
    return reshape(b, spread, (*lead[:-1], lead[-1] * times, *panels))


def _repeated(b: Builder, x: Node, batch: int) -> tuple[Node, DimLike] | None:
    """The value without repetitions where each place of its last batch axis is there several times, neighbours; and how often."""
    if isinstance(x.op, Transpose) and x.op.perm[:batch] == tuple(range(batch)):
        inner = _repeated(b, x.inputs[0], batch)
        return None if inner is None else (transpose(b, inner[0], x.op.perm), inner[1])
    if batch and isinstance(x.op, Broadcast) and x.inputs[0].shape == (*x.shape[:batch - 1], 1, *x.shape[batch:]) != x.shape:
        return x.inputs[0], x.shape[batch - 1]
    if batch == 0 or not isinstance(x.op, Reshape) or not isinstance(x.inputs[0].op, Broadcast):
        return None
    spread, source = x.inputs[0], x.inputs[0].inputs[0]
    if spread.rank != x.rank + 1 or source.rank != spread.rank:
        return None
    times, lead, rest = spread.shape[batch], spread.shape[:batch], spread.shape[batch + 1:]
    if times == 1 or x.shape != (*lead[:-1], lead[-1] * times, *rest) or source.shape != (*lead, 1, *rest):
        return None
    return reshape(b, source, (*lead, *rest)), times


__all__ = ["pack_repeated"]
