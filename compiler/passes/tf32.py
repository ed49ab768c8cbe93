"""Products whose operands are rounded to tf32, where no unit of the target multiplies these: the rounding is ordinary operations on bits.

Guarantees the meaning of `round_to_tf32`, whatever the bits of a NaN are. Contract: exact, but for the order of sums.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..ir.graph import Builder, Node
from ..ir.ops.compute import Bitcast, PackedDot
from ..ir.types import F32, U32
from ..library import apply, constant

BELOW = 13  # bits of a float32 that tf32 has not


def rounded_to_tf32(b: Builder, x: Node) -> Node:
    """A float32 with 10 bits of fraction; infinities and NaN as they are."""
    bits = apply(b, "add", b.add(Bitcast(U32), x), constant(b, 1 << BELOW - 1, U32))
    rounded = b.add(Bitcast(F32), apply(b, "and", bits, constant(b, (1 << 32) - (1 << BELOW), U32)))
    finite = apply(b, "lt", apply(b, "abs", x), constant(b, float("inf"), F32))
    return apply(b, "select", finite, rounded, x)


def with_rounded_operands(b: Builder, op: PackedDot, lhs: Node, rhs: Node) -> Node:
    """The same product of float32."""
    return b.add(replace(op, tf32=False), rounded_to_tf32(b, lhs), rounded_to_tf32(b, rhs))


__all__ = ["rounded_to_tf32", "with_rounded_operands"]
