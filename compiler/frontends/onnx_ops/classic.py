"""Operators of the domain `ai.onnx.ml` that work on tensors of numbers: ArrayFeatureExtractor, Binarizer, LabelEncoder.

Trees are in `trees.py`. Vectorizers and whatever maps strings is not supported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir.graph import Array, Node
from ...ir.ops.shape import Take
from ...library import constant, wrap_indices
from .context import Context, Operators

MOST_KEYS = 1 << 10     # each is compared with every element


def array_feature_extractor(c: Context, x: Node, y: Node) -> Node:
    """The columns of the last axis that y names; a vector is one row."""
    if not x.rank:
        c.fail("a scalar has no features")
    rows = c.reshape(x, (1, *x.shape)) if x.rank == 1 else x
    places = wrap_indices(c.b, c.reshape(y, (y.tensor.elements,)), rows.shape[-1])
    return c.b.add(Take(rows.rank - 1), rows, places)


def binarizer(c: Context, x: Node, *, threshold: float = 0.0) -> Node:
    return c.cast(c.apply("gt", x, c.like(threshold, x)), x.dtype)


def label_encoder(c: Context, x: Node, *, keys_int64s: Sequence[int] | None = None, keys_floats: Sequence[float] | None = None,
                  keys_strings: Sequence[str] | None = None, keys_tensor: Array | None = None,
                  values_int64s: Sequence[int] | None = None, values_floats: Sequence[float] | None = None,
                  values_strings: Sequence[str] | None = None, values_tensor: Array | None = None,
                  default_int64: int = -1, default_float: float = -0.0, default_string: str = "_Unused",
                  default_tensor: Array | None = None) -> Node:
    """The value that stands beside the key that an element equals (the last of equal keys; NaN equals NaN), else the default."""
    if keys_strings is not None or values_strings is not None:
        c.unsupported("strings are not supported")
    keys = _one_of(c, "keys", keys_int64s, keys_floats, keys_tensor)
    values = _one_of(c, "values", values_int64s, values_floats, values_tensor)
    if keys.shape != values.shape:
        c.fail(f"{keys.size} keys, but {values.size} values")
    if keys.size > MOST_KEYS:
        c.unsupported(f"{keys.size} keys; up to {MOST_KEYS} are supported")
    default = np.asarray(default_int64 if values_int64s is not None else default_float, values.dtype)
    if values_tensor is not None and default_tensor is not None:
        default = default_tensor.reshape(-1)[:1].astype(values.dtype).reshape(())
    result = c.full(default.item(), constant(c.b, values).dtype, x.shape)
    for key, value in zip(keys, values):
        same = c.apply("ne", x, x) if key != key else c.apply("eq", x, c.like(key.item(), x))
        result = c.apply("select", same, constant(c.b, value), result)
    return result


def _one_of(c: Context, what: str, integers: Sequence[int] | None, floats: Sequence[float] | None, tensor: Array | None) -> Array:
    given = [np.asarray(v, dtype) for v, dtype in ((integers, np.int64), (floats, np.float32)) if v is not None]
    given += [tensor.reshape(-1)] if tensor is not None else []
    if len(given) != 1:
        c.fail(f"exactly one of the attributes {what}_int64s, {what}_floats and {what}_tensor is needed, found {len(given)}")
    return given[0]


OPS: Operators = {"ArrayFeatureExtractor": array_feature_extractor, "Binarizer": binarizer, "LabelEncoder": label_encoder}
