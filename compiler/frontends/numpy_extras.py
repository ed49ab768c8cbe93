"""Functions that NumPy lacks, for plain NumPy arrays and for traced ones alike.

On plain arrays they compute with NumPy; on traced ones they become one primitive or composite that backends know. Integers
count as float64, as in NumPy's own functions of this kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import library
from ..ir.graph import Node
from ..ir.ops.scalar import evaluate_scalar
from ..ir.types import F64
from .numpy_errors import TraceTypeError
from .numpy_tracer import TracedArray, Tracer
from .numpy_ufuncs import normalize_axes


def _tracer_of(*values: Any) -> Tracer | None:
    return next((v.tracer for v in values if isinstance(v, TracedArray)), None)


def _float_array(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array if array.dtype.kind in "fV" else array.astype(np.float64)


def _float_node(t: Tracer, x: Any) -> Node:
    node = t.node(x)
    return node if node.dtype.is_float else library.cast(t.b, node, F64)


def _wrap(t: Tracer, node: Node) -> TracedArray:
    return t.array(node, scalar=not node.rank)


def _scalar_function(name: str, x: Any) -> Any:
    t = _tracer_of(x)
    if t is not None:
        return t.call(lambda t: _wrap(t, library.scalar(t.b, name, _float_node(t, x))))
    array = _float_array(x)
    return evaluate_scalar(name, [array])[()]


def erf(x: Any) -> Any:
    """The error function."""
    return _scalar_function("erf", x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), without overflow."""
    return _scalar_function("sigmoid", x)


def relu(x: Any) -> Any:
    """max(x, 0)."""
    return np.maximum(x, 0)


def silu(x: Any) -> Any:
    """x sigmoid(x) (Elfwing et al., 2017), also called swish."""
    return x * sigmoid(x)


def gelu(x: Any) -> Any:
    """x/2 (1 + erf(x / sqrt 2)) (Hendrycks and Gimpel, 2016)."""
    t = _tracer_of(x)
    if t is not None:
        return t.call(lambda t: _wrap(t, library.gelu(t.b, _float_node(t, x))))
    array = _float_array(x)
    half, root = array.dtype.type(0.5), array.dtype.type(0.7071067811865476)
    return (array * half * (erf(array * root) + array.dtype.type(1)))[()]


def softmax(x: Any, axis: int = -1) -> Any:
    """exp(x - max) / sum along an axis."""
    t = _tracer_of(x)
    if t is not None:
        return t.call(_softmax, x, axis)
    array = _float_array(x)
    exponentials = np.exp(array - array.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def _softmax(t: Tracer, x: Any, axis: int) -> TracedArray:
    node = _float_node(t, x)
    return t.array(library.softmax(t.b, node, normalize_axes(axis, node.rank)[0]))


def log_softmax(x: Any, axis: int = -1) -> Any:
    """log(softmax(x)) without underflow."""
    shifted = x - np.max(x, axis=axis, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) without overflow; infinities come through."""
    largest = np.max(x, axis=axis, keepdims=True)
    shift = np.where(np.isfinite(largest), largest, np.zeros((), dtype=largest.dtype))
    total = np.log(np.sum(np.exp(x - shift), axis=axis, keepdims=keepdims))
    return total + (shift if keepdims else np.squeeze(shift, axis=axis if axis is not None else None))


def layer_norm(x: Any, scale: Any, bias: Any, axis: int | Sequence[int] = -1, epsilon: float = 1e-5) -> Any:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the axes (Ba et al., 2016); operands of one float dtype."""
    t = _tracer_of(x, scale, bias)
    if t is not None:
        return t.call(_layer_norm, x, scale, bias, axis, epsilon)
    array = _float_array(x)
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else axis
    centred = array - array.mean(axis=axes, keepdims=True)
    variance = (centred * centred).mean(axis=axes, keepdims=True)
    return centred / np.sqrt(variance + array.dtype.type(epsilon)) * scale + bias


def _layer_norm(t: Tracer, x: Any, scale: Any, bias: Any, axis: Any, epsilon: float) -> TracedArray:
    node, factor, shift = _float_node(t, x), t.node(scale), t.node(bias)
    if not node.dtype == factor.dtype == shift.dtype:
        raise TraceTypeError(f"layer_norm: dtypes differ: x {node.dtype.numpy}, scale {factor.dtype.numpy}, bias "
                             f"{shift.dtype.numpy}", hint="convert them to one with astype")  # fmt: skip
    shape = t.broadcast_shapes(node.shape, factor.shape, shift.shape)
    if shape != node.shape:
        raise TraceTypeError(f"layer_norm: scale {factor.tensor} and bias {shift.tensor} do not fit x {node.tensor}")
    axes = normalize_axes(axis, node.rank)
    return t.array(library.layer_norm(t.b, node, factor, shift, axes, epsilon))


def rms_norm(x: Any, scale: Any, axis: int = -1, epsilon: float = 1e-6) -> Any:
    """x / sqrt(mean(x^2) + epsilon) * scale (Zhang and Sennrich, 2019)."""
    return x / np.sqrt(np.mean(x * x, axis=axis, keepdims=True) + epsilon) * scale


def one_hot(indices: Any, depth: int, dtype: Any = np.float32) -> Any:
    """1 at each index of a new last axis of size `depth`, 0 elsewhere; an index outside gives zeros."""
    places = np.arange(depth)
    return (np.expand_dims(indices, -1) == places).astype(dtype)


# public name -> function; tilewright hands these on
EXTRAS: dict[str, Callable[..., Any]] = {
    "erf": erf, "gelu": gelu, "layer_norm": layer_norm, "log_softmax": log_softmax, "logsumexp": logsumexp,
    "one_hot": one_hot, "relu": relu, "rms_norm": rms_norm, "sigmoid": sigmoid, "silu": silu, "softmax": softmax,
}  # fmt: skip
