"""Rounding to tf32 by ordinary operations on bits: of right operands before they are packed for matrix units, and of both where no unit of
the target multiplies them (`PackedDot.tf32`).

Guarantees what `round_to_tf32` and `cut_to_tf32` mean; of constants, constants. Contract: exact, but for the order of sums.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..ir.graph import Builder, Node
from ..ir.ops.compute import Bitcast, PackedConv, PackedDot, round_to_tf32
from ..ir.types import F32, U32
from ..library import apply, constant
from .winograd import known_array

BELOW = 13  # bits of a float32 that tf32 has not


def rounded_to_tf32(b: Builder, x: Node) -> Node:
    """A float32 with 10 bits of fraction; infinities as they are."""
    array = known_array(x)
    if array is not None:
        return constant(b, round_to_tf32(array))
    half = b.add(Bitcast(F32), apply(b, "add", b.add(Bitcast(U32), x), constant(b, 1 << BELOW - 1, U32)))
    finite = apply(b, "lt", apply(b, "abs", x), constant(b, float("inf"), F32))
    return apply(b, "select", finite, cut_to_tf32(b, half), apply(b, "add", x, x))  # the sum of two NaN is one that units see


def cut_to_tf32(b: Builder, x: Node) -> Node:
    """A float32 without its last bits."""
    return b.add(Bitcast(F32), apply(b, "and", b.add(Bitcast(U32), x), constant(b, (1 << 32) - (1 << BELOW), U32)))


def with_rounded_operands(b: Builder, op: PackedDot | PackedConv, lhs: Node, rhs: Node) -> Node:
    """The same contraction of float32, of panels that lie row by row."""
    right = rounded_to_tf32(b, rhs) if op.tf32 == "both" else cut_to_tf32(b, rhs)
    return b.add(replace(op, tf32=""), rounded_to_tf32(b, lhs), right)


__all__ = ["rounded_to_tf32", "with_rounded_operands"]
