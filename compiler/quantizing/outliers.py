"""Outlier columns of an input in float beside the rest in bytes (Dettmers et al., LLM.int8(), 2022).

The rows of some inputs, those of large transformers above all, have a few columns that are many times larger than all others, and the
same ones in every row. A scale that makes room for them leaves the rest a few levels. So these columns are found from calibration:
their products are taken in float32, and zeros stand in their place where a row is rounded to bytes. Few columns are spelled out as
products that are added to the sum of integers, which makes them part of its kernel (`passes/fuse.py`); more are a product of their own.

A column is an outlier where its largest number in the calibration data is more than THRESHOLD times the root mean square of the whole
input; the paper's 6 is an absolute number, for inputs of which that is about 1. At most a part of all columns are.

Guarantees: with no outliers the layer is that of "i8 dynamic"; weights of outliers are the float ones.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from ..ir.graph import Array, Builder, Node
from ..ir.ops.compute import Dot
from ..ir.ops.shape import Take
from ..ir.types import I64
from ..library import apply, constant, reshape, slice_axis
from .calibration import Input
from .layers import Layer

THRESHOLD = 6.0   # root mean squares of the input
MOST_SHARE = 0.1  # of the columns
MOST_SPELLED = 8  # columns that are added as products of their own


def outlier_columns(layer: Layer, seen: Input) -> Array | str:
    """The places along the contraction that are computed in float, in order; or why there can be none."""
    if not isinstance(layer.node.op, Dot) or not layer.can_group:
        return "only products with one contracted axis have columns that are computed in float"
    if not seen.places:
        return "its input is empty in the calibration data"
    size = float(np.sqrt(seen.mean_squares.mean()))
    found = np.flatnonzero(seen.largest > THRESHOLD * size)
    largest = found[np.argsort(-seen.largest[found], kind="stable")][:int(MOST_SHARE * layer.depth)]
    return np.sort(largest).astype(np.int64)


def without(layer: Layer, columns: Array) -> Layer:
    """The layer with zeros for weights of these columns."""
    operand = layer.operand.copy()
    operand[_at(layer, columns)] = 0
    return replace(layer, operand=operand)


def with_float_weights(layer: Layer, columns: Array, operand: Array) -> Array:
    """Weights in the layout of the operand, with those of these columns as the layer has them in float."""
    found = operand.copy()
    found[_at(layer, columns)] = layer.operand[_at(layer, columns)]
    return found


def _at(layer: Layer, columns: Array) -> tuple[slice | Array, ...]:
    """Where the weights of columns lie in the operand."""
    return (*[slice(None)] * layer.contracted_axis, columns)


def rest_of(b: Builder, layer: Layer, columns: Array, x: Node) -> Node:
    """The input with zeros in place of these columns."""
    kept = np.ones(layer.depth, np.float32)
    kept[columns] = 0
    return apply(b, "mul", x, constant(b, kept.reshape(layer.channel_shape())))


def with_columns(b: Builder, layer: Layer, columns: Array, x: Node, rest: Node) -> Node:
    """The result of the rest, and the float products of these columns."""
    op = layer.node.op
    assert isinstance(op, Dot)
    axis, weights = op.lhs_contract[0], np.ascontiguousarray(layer.operand[_at(layer, columns)])
    if len(columns) > MOST_SPELLED:
        some = b.add(Take(axis), x, constant(b, columns, I64))
        return apply(b, "add", rest, b.add(op, some, constant(b, weights)))
    free = [n for a, n in enumerate(x.shape) if a != axis]
    for i, column in enumerate(columns.tolist()):
        one = reshape(b, slice_axis(b, x, axis, column, 1), (*free, *[1] * (weights.ndim - 1)))
        rest = apply(b, "add", rest, apply(b, "mul", one, constant(b, weights.take(i, axis=layer.contracted_axis))))
    return rest
