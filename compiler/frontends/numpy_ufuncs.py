"""NumPy's ufuncs as nodes: dtypes by NumPy's own resolution (NEP 50), meaning by a table from ufunc to IR.

Assumes: NumPy's `ufunc.resolve_dtypes` tells the loop's dtypes, with `int` and `float` for Python scalars. Guarantees:
operands are cast to the loop's dtypes exactly as NumPy casts them, a Python integer that does not fit raises
OverflowError as NumPy does, and results differ from NumPy's at most in the last places of a function or a sum, and where
NumPy's own result is undefined (float to integer out of range; integers to negative integer powers give 0, 1 or -1).
Elements that `where=` leaves out without `out=` are 0 (NumPy leaves them undefined).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .. import library
from ..ir.dims import bounds
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Cumulative
from ..ir.ops.control import Param, Scan
from ..ir.ops.shape import Concat
from ..ir.types import BOOL, I32, I64, DType, dtype_of
from .numpy_errors import TraceOverflowError, TraceTypeError, TraceValueError
from .numpy_indexing import scatter
from .numpy_tracer import Size, TracedArray, Tracer, WeakScalar, settle, shape_text
from .numpy_ufunc_meaning import EMIT

# --- dtypes ----------------------------------------------------------------------------------------------------------


def promotion_type(value: Any) -> Any:
    """What the value counts as in promotion: a NumPy dtype, or the Python type of a weak scalar."""
    if isinstance(value, WeakScalar):
        return value.kind
    if isinstance(value, TracedArray):
        return value.dtype
    if isinstance(value, Size):
        return int
    if type(value) in (int, float, complex):
        return type(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype
    return np.asarray(value).dtype


def weak_sample(kind: Any) -> Any:
    """The promotion type as `np.result_type` takes it: a Python number for a weak scalar (a dtype may equal `int`)."""
    return kind(0) if kind is int or kind is float else kind


def _check_supported(dtypes: Sequence[Any], name: str) -> None:
    for dtype in dtypes:
        if dtype is complex or isinstance(dtype, np.dtype) and dtype.kind in "cOSUMm":
            raise TraceTypeError(
                f"{name}: dtype {getattr(dtype, '__name__', dtype)} is not supported",
                hint="supported are bool, int8 to int64, uint8 to uint64, float16, bfloat16, float32, float64",
            )


def resolve_loop(ufunc: np.ufunc, types: Sequence[Any], dtype: Any, casting: Any, signature: Any) -> list[DType]:
    """The loop's dtypes: operands, then results."""
    if dtype is None and signature is None:
        return _default_loop(ufunc, casting, *types)
    return _resolved_loop(ufunc, types, dtype, casting, signature)


@lru_cache(maxsize=1024, typed=True)  # typed: np.dtype(float) equals float, and means another promotion
def _default_loop(ufunc: np.ufunc, casting: Any, *types: Any) -> list[DType]:
    return _resolved_loop(ufunc, types, None, casting, None)


def _resolved_loop(ufunc: np.ufunc, types: Sequence[Any], dtype: Any, casting: Any, signature: Any) -> list[DType]:
    _check_supported(types, ufunc.__name__)
    if all(k is int or k is float for k in types):
        types = [np.dtype(k) for k in types]
    slots = (*types, *([None] * ufunc.nout))
    fixed = signature
    if dtype is not None:
        fixed = (None,) * ufunc.nin + (np.dtype(dtype),) * ufunc.nout
    if isinstance(fixed, str):
        left, _, right = fixed.partition("->")
        fixed = tuple(np.dtype(c) for c in left + right)
    options = {} if fixed is None else {"signature": fixed}
    found = ufunc.resolve_dtypes(slots, casting=casting, **options)
    _check_supported(found, ufunc.__name__)
    return [dtype_of(d) for d in found]


def check_integer(value: Any, dtype: DType) -> None:
    """NumPy's OverflowError for a Python integer that the dtype cannot hold; for a size, where its bounds do not exclude it."""
    if not dtype.is_integer:
        return
    limits = np.iinfo(dtype.numpy)
    if type(value) is int and not limits.min <= value <= limits.max:
        raise TraceOverflowError(f"Python integer {value} out of bounds for {dtype.numpy}")
    if isinstance(value, Size) and dtype.bits < 32 and bounds(value.dim)[1] > limits.max:
        raise TraceOverflowError(
            f"the size {value} may be out of bounds for {dtype.numpy}", hint=f"widen the array first, or bound {value}"
        )


# --- the call --------------------------------------------------------------------------------------------------------


def ufunc_rule(t: Tracer, ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `__array_ufunc__` asks for: the call itself or one of the ufunc's methods."""
    if method == "__call__":
        return settle(t, _call(t, ufunc, inputs, **kwargs), inputs)
    rules: dict[str, Callable[..., Any]] = {"reduce": reduce_ufunc, "accumulate": accumulate_ufunc, "outer": _outer, "at": _at}
    if method not in rules:
        raise TraceTypeError(f"np.{ufunc.__name__}.{method} is not supported on traced arrays", hint="use reduce on slices")
    return settle(t, rules[method](t, ufunc, *inputs, **kwargs), inputs)


def _call(t: Tracer, ufunc: np.ufunc, inputs: tuple[Any, ...], out: Any = None, where: Any = True, dtype: Any = None,
          casting: Any = "same_kind", signature: Any = None, sig: Any = None, order: str = "K", subok: bool = True,
          axes: Any = None, axis: Any = None, keepdims: bool = False) -> Any:  # fmt: skip
    if ufunc in (np.matmul, *PRODUCTS) and (axes is not None or keepdims):
        raise TraceTypeError(f"np.{ufunc.__name__}: axes= and keepdims= are not supported", hint="use np.einsum")
    if ufunc in PRODUCTS:
        return store(t, PRODUCTS[ufunc](*inputs), out, casting)
    types = [promotion_type(v) for v in inputs]
    known = _compare_with_distant_integer(t, ufunc, inputs)
    if known is not None:
        return store(t, known, out, casting)
    loop = resolve_loop(ufunc, types, dtype, casting, signature or sig)
    nodes = [_operand(t, v, d, ufunc) for v, d in zip(inputs, loop)]
    if ufunc is np.matmul:
        return store(t, _matmul(t, nodes, inputs), out, casting)
    emit = EMIT.get(ufunc)
    if emit is None:
        raise TraceTypeError(f"np.{ufunc.__name__} is not supported on traced arrays")
    shape = t.broadcast_shapes(*(n.shape for n in nodes))
    made = emit(t.b, *(library.broadcast(t.b, n, shape) for n in nodes))
    results = [library.cast(t.b, n, d) for n, d in zip(made if isinstance(made, tuple) else (made,), loop[ufunc.nin :])]
    arrays = [t.array(n, scalar=not n.rank) for n in results]
    if where is not True:
        arrays = [_select_where(t, where, a, o) for a, o in zip(arrays, out or (None,) * len(arrays))]
    stored = [store(t, a, o, casting) for a, o in zip(arrays, out if isinstance(out, tuple) else (out,) * len(arrays))]
    return stored[0] if ufunc.nout == 1 else tuple(stored)


def _operand(t: Tracer, value: Any, dtype: DType, ufunc: np.ufunc) -> Node:
    check_integer(value, dtype)
    return t.node(value, dtype)


def _compare_with_distant_integer(t: Tracer, ufunc: np.ufunc, inputs: Sequence[Any]) -> TracedArray | None:
    """An integer array against a Python integer past its dtype has a known answer instead of an overflow."""
    if ufunc not in _ORDERS or len(inputs) != 2:
        return None
    for place, value in enumerate(inputs):
        other = inputs[1 - place]
        kind = promotion_type(other)
        if type(value) is not int or not isinstance(kind, np.dtype) or kind.kind not in "iu":
            continue
        limits = np.iinfo(kind)
        if limits.min <= value <= limits.max:
            continue
        sign = (1 if value > limits.max else -1) * (1 if place else -1)
        node = t.node(other)
        return t.array(library.full(t.b, sign in _ORDERS[ufunc], BOOL, node.shape), scalar=not node.rank)
    return None


# the signs of `right - left` for which the comparison holds
_ORDERS: dict[np.ufunc, tuple[int, ...]] = {
    np.less: (1,),
    np.less_equal: (0, 1),
    np.greater: (-1,),
    np.greater_equal: (-1, 0),
    np.equal: (0,),
    np.not_equal: (-1, 1),
}


def _select_where(t: Tracer, where: Any, value: TracedArray, out: Any) -> TracedArray:
    condition = t.node(where, BOOL)
    shape = t.broadcast_shapes(condition.shape, value.dims)
    kept = t.node(out) if out is not None else library.full(t.b, 0, value.type.dtype, ())
    kept = library.broadcast(t.b, library.cast(t.b, kept, value.type.dtype), shape)
    chosen = library.scalar(t.b, "select", library.broadcast(t.b, condition, shape),
                            library.broadcast(t.b, t.node(value), shape), kept)  # fmt: skip
    return t.array(chosen, scalar=value.scalar and not shape)


def store(t: Tracer, value: Any, out: Any, casting: Any = "same_kind") -> Any:
    """The result, or `out` with the result written into it by NumPy's rules for casts and shapes."""
    if isinstance(out, tuple) and len(out) == 1:
        out = out[0]
    if out is None or out is ...:
        return value
    if not isinstance(out, TracedArray):
        raise TraceTypeError(
            "out= (or an in-place operation) names a concrete array, but the result is traced",
            hint="write c = c + x instead of c += x, or make the array with np.zeros_like(x)",
        )
    if out.scalar:
        return value
    if not np.can_cast(value.dtype, out.dtype, casting):
        raise TraceTypeError(f"Cannot cast output from {value.dtype} to {out.dtype} with casting rule '{casting}'",
                             hint=f"convert the result with astype({out.dtype}), or make the target wider")  # fmt: skip
    if t.broadcast_shapes(value.dims, out.dims) != out.dims:
        raise TraceValueError(f"non-broadcastable output operand with shape {shape_text(out.dims)} does not match the "
                              f"broadcast shape {shape_text(value.dims)}")  # fmt: skip
    node = library.cast(t.b, t.node(value), out.type.dtype)
    t.assign(out, library.broadcast(t.b, node, out.dims))
    return out


# --- methods of ufuncs -----------------------------------------------------------------------------------------------

_KINDS: dict[np.ufunc, str] = {np.add: "sum", np.multiply: "prod", np.maximum: "max", np.minimum: "min", np.logical_and: "and",
          np.logical_or: "or"}  # fmt: skip


def normalize_axes(axis: Any, rank: int) -> tuple[int, ...]:
    """NumPy's axis argument as ascending axes; None means all."""
    if axis is None:
        return tuple(range(rank))
    listed = axis if isinstance(axis, (tuple, list)) else (axis,)
    return tuple(sorted(np.lib.array_utils.normalize_axis_tuple(listed, rank)))


def reduce_ufunc(t: Tracer, ufunc: np.ufunc, array: Any, axis: Any = 0, dtype: Any = None, out: Any = None,
                 keepdims: Any = False, initial: Any = np._NoValue, where: Any = True) -> Any:  # fmt: skip
    """ufunc.reduce: one of the IR's reductions, or step by step along the axes for other functions."""
    keep = keepdims is not np._NoValue and bool(keepdims)
    node = t.node(array)
    axes = normalize_axes(axis, node.rank)
    loop = _reduction_dtype(ufunc, node.dtype, dtype)
    node = library.cast(t.b, node, loop)
    if where is not True and where is not np._NoValue:
        node = _mask_reduction(t, ufunc, node, where, initial)
    if initial is np._NoValue and ufunc in (np.maximum, np.minimum, np.fmax, np.fmin):
        _refuse_empty(ufunc, node, axes)
    value = _reduce_node(t, ufunc, node, axes, keep)
    if initial is not np._NoValue and initial is not None:
        check_integer(initial, value.dtype)
        value = t.node(ufunc(t.array(value), t.array(t.node(initial, value.dtype))))
    return store(t, t.array(value, scalar=not value.rank), out)


def _refuse_empty(ufunc: np.ufunc, node: Node, axes: tuple[int, ...]) -> None:
    if any(node.shape[a] == 0 for a in axes) and 0 not in (n for a, n in enumerate(node.shape) if a not in axes):
        complaint = f"zero-size array to reduction operation {ufunc.__name__} which has no identity"
        raise TraceValueError(complaint, hint="give initial=")


def _reduction_dtype(ufunc: np.ufunc, dtype: DType, asked: Any) -> DType:
    if asked is not None and asked is not np._NoValue:
        return dtype_of(asked)
    if ufunc.nin != 2 or ufunc.nout != 1:
        raise TraceValueError(f"reduce of {ufunc.__name__}: only binary functions reduce")
    found = ufunc.resolve_dtypes((None, dtype.numpy, None), reduction=True)
    return dtype_of(found[2] if ufunc in (np.logical_and, np.logical_or, np.logical_xor) else found[1])


def _identity(ufunc: np.ufunc, dtype: DType) -> Any:
    if ufunc in (np.maximum, np.fmax):
        return dtype.lowest
    if ufunc in (np.minimum, np.fmin):
        return dtype.highest
    return ufunc.identity


def _mask_reduction(t: Tracer, ufunc: np.ufunc, node: Node, where: Any, initial: Any) -> Node:
    identity = _identity(ufunc, node.dtype)
    if identity is None or ufunc.identity is None and initial is np._NoValue:
        raise TraceValueError(f"reduction operation '{ufunc.__name__}' does not have an identity, so to use a where mask "
                              "one has to specify 'initial'")  # fmt: skip
    condition = t.node(where, BOOL)
    shape = t.broadcast_shapes(condition.shape, node.shape)
    return library.scalar(t.b, "select", library.broadcast(t.b, condition, shape), library.broadcast(t.b, node, shape),
                          library.full(t.b, identity, node.dtype, shape))  # fmt: skip


def _reduce_node(t: Tracer, ufunc: np.ufunc, node: Node, axes: tuple[int, ...], keep: bool) -> Node:
    b = t.b
    kind = _KINDS.get(ufunc)
    if node.dtype.is_bool and kind is not None:
        kind = {"sum": "or", "prod": "and", "max": "or", "min": "and"}.get(kind, kind)
    if kind is not None:
        return library.reduce(b, kind, node, axes, keep)
    if ufunc in (np.fmax, np.fmin):
        return _reduce_without_nan(b, ufunc, node, axes, keep)
    if ufunc is np.logical_xor:
        count = library.reduce(b, "sum", library.cast(b, node, I64), axes, keep)
        return library.cast(b, library.apply(b, "mod", count, library.like(b, 2, count)), BOOL)
    return _reduce_in_steps(t, ufunc, node, axes, keep)


def _reduce_without_nan(b: Builder, ufunc: np.ufunc, node: Node, axes: tuple[int, ...], keep: bool) -> Node:
    kind = "max" if ufunc is np.fmax else "min"
    if not node.dtype.is_float:
        return library.reduce(b, "or" if kind == "max" else "and", node, axes, keep) if node.dtype.is_bool else \
            library.reduce(b, kind, node, axes, keep)  # fmt: skip
    absent = library.scalar(b, "isnan", node)
    edge = library.full(b, _identity(ufunc, node.dtype), node.dtype, node.shape)
    value = library.reduce(b, kind, library.scalar(b, "select", absent, edge, node), axes, keep)
    nothing = library.reduce(b, "and", absent, axes, keep)
    return library.scalar(b, "select", nothing, library.full(b, math.nan, node.dtype, value.shape), value)


def _reduce_in_steps(t: Tracer, ufunc: np.ufunc, node: Node, axes: tuple[int, ...], keep: bool) -> Node:
    if len(axes) > 1 and not _reorderable(ufunc):
        raise TraceValueError(f"reduction operation '{ufunc.__name__}' is not reorderable, so at most one axis may be specified")
    for axis in reversed(axes):
        rest = [a for a in range(node.rank) if a != axis]
        first = library.transpose(t.b, node, [axis, *rest])
        node = _fold(t, ufunc, first, stacked=False)
    return library.expand(t.b, node, axes) if keep and axes else node


def _reorderable(ufunc: np.ufunc) -> bool:
    return ufunc in (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.gcd, np.lcm, np.hypot, np.logaddexp, np.logaddexp2)


def _fold(t: Tracer, ufunc: np.ufunc, first: Node, stacked: bool) -> Node:
    """ufunc over the first axis from its first place on; `stacked`: all partial results, else the last."""
    b = t.b
    length = first.shape[0]
    if length == 0:
        if ufunc.identity is None or stacked:
            if stacked:
                return first
            raise TraceValueError(f"zero-size array to reduction operation {ufunc.__name__} which has no identity")
        return library.full(b, ufunc.identity, first.dtype, first.shape[1:])
    start = library.squeeze(b, library.slice_axis(b, first, 0, 0, 1), (0,))
    inner = Builder(b.loc)
    state = inner.add(Param("state", start.dtype, start.shape))
    item = inner.add(Param("item", start.dtype, start.shape))
    combined = library.cast(inner, EMIT[ufunc](inner, state, item), first.dtype)
    results = [combined, combined] if stacked else [combined]
    rest = library.slice_axis(b, first, 0, 1, length - 1)
    body = Graph(ufunc.__name__, [state, item], results)
    made = library.results_of(b, b.add(Scan(body, 1, 1, length - 1), start, rest))
    return b.add(Concat(0), library.expand(b, start, (0,)), made[1]) if stacked else made[0]


def accumulate_ufunc(t: Tracer, ufunc: np.ufunc, array: Any, axis: Any = 0, dtype: Any = None, out: Any = None) -> Any:
    """ufunc.accumulate: the IR's running sum, product, maximum, minimum, or step by step."""
    node = t.node(array)
    (axis,) = normalize_axes(axis, node.rank)
    node = library.cast(t.b, node, _reduction_dtype(ufunc, node.dtype, dtype))
    kind = _KINDS.get(ufunc)
    if kind in ("sum", "prod", "max", "min") and not node.dtype.is_bool:
        value = t.b.add(Cumulative(kind, axis), node)
    else:
        order = [axis, *(a for a in range(node.rank) if a != axis)]
        value = _fold(t, ufunc, library.transpose(t.b, node, order), stacked=True)
        value = library.transpose(t.b, value, sorted(range(node.rank), key=order.__getitem__))
    return store(t, t.array(value), out)


def _outer(t: Tracer, ufunc: np.ufunc, left: Any, right: Any, **kwargs: Any) -> Any:
    """Python scalars are arrays here, so they are not weak."""
    x, y = t.as_array(left), t.as_array(right)
    return _call(t, ufunc, (np.reshape(x, (*x.shape, *(1,) * y.ndim)), y), **kwargs)


_SCATTERS: dict[np.ufunc, str] = {np.add: "add", np.multiply: "mul", np.maximum: "max", np.minimum: "min"}


def _at(t: Tracer, ufunc: np.ufunc, target: Any, key: Any, *values: Any) -> None:
    """ufunc.at: unbuffered, so that repeated places combine."""
    if not isinstance(target, TracedArray):
        raise TraceTypeError(f"np.{ufunc.__name__}.at into a concrete array", hint="make it with np.zeros_like(x)")
    if ufunc is np.subtract and values:
        ufunc, values = np.add, (np.negative(t.as_array(values[0])),)
    if ufunc not in _SCATTERS or not values:
        raise TraceTypeError(f"np.{ufunc.__name__}.at is not supported", hint="use add, subtract, multiply, maximum or minimum")
    if not np.can_cast(np.result_type(target.dtype, promotion_type(values[0])), target.dtype, "same_kind"):
        raise TraceTypeError(f"Cannot cast ufunc '{ufunc.__name__}' output to {target.dtype}")
    if not scatter(t, target, key, t.node(values[0], target.type.dtype), _SCATTERS[ufunc]):
        target[key] = ufunc(target[key], values[0])


# --- products --------------------------------------------------------------------------------------------------------


def _matmul(t: Tracer, nodes: Sequence[Node], inputs: Sequence[Any]) -> TracedArray:
    return matmul(t, *nodes)


def matmul(t: Tracer, x: Node, y: Node) -> TracedArray:
    """np.matmul on nodes of one dtype. Bool counts pairs and asks whether there is one."""
    for place, operand in enumerate((x, y)):
        if not operand.rank:
            raise TraceValueError(f"matmul: input operand {place} does not have enough dimensions (has 0, needs 1)",
                                  hint="multiply by a scalar with *")  # fmt: skip
    inner = y.shape[-2] if y.rank > 1 else y.shape[0]
    t.unify(x.shape[-1], inner, f"matmul: the inner sizes differ: {shape_text(x.shape)} @ {shape_text(y.shape)}: "
            f"{x.shape[-1]} (left) vs {inner} (right)")  # fmt: skip
    if x.rank > 2 or y.rank > 2:
        t.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    if x.dtype.is_bool:
        counted = library.matmul(t.b, library.cast(t.b, x, I32), library.cast(t.b, y, I32))
        value = library.cast(t.b, counted, BOOL)
    else:
        value = library.matmul(t.b, x, y)
    return t.array(value, scalar=not value.rank)


def _vecdot(x: Any, y: Any) -> Any:
    return np.einsum("...i,...i->...", x, y)


def _matvec(x: Any, y: Any) -> Any:
    return np.einsum("...ij,...j->...i", x, y)


def _vecmat(x: Any, y: Any) -> Any:
    return np.einsum("...i,...ij->...j", x, y)


PRODUCTS: dict[np.ufunc, Callable[[Any, Any], Any]] = {
    getattr(np, name): rule for name, rule in (("vecdot", _vecdot), ("matvec", _matvec), ("vecmat", _vecmat)) if hasattr(np, name)
}
