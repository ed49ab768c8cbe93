"""The NumPy functions that traced arrays know: FUNCTIONS (by `__array_function__`) and METHODS (of ndarray).

Functions with a file of their own come from there; those that are short compositions of others stand here, written with
NumPy itself, whose calls come back to the tracer. What is in neither table is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.ops.compute import ArgSort, Sort
from . import numpy_linear as linear
from . import numpy_reductions as reductions
from . import numpy_shaping as shaping
from .numpy_errors import TraceTypeError
from .numpy_indexing import get_item, set_item
from .numpy_tracer import Rules, TracedArray, Tracer, settle
from .numpy_ufuncs import normalize_axes, ufunc_rule

NOTHING = np._NoValue
from .numpy_compositions import shape, ndim, size, result_type, can_cast, says, is_bool_question, always_true, itself, round_to, fix, isclose, allclose, array_equal, array_equiv, nan_to_num, is_infinite, sinc, interp, select, piecewise, diff, ediff1d, gradient, trapezoid, convolve, correlate, cov, corrcoef, vander, polyval, bincount, copyto, putmask, put, apply_along_axis, apply_over_axes, resize, unwrap, data_dependent, isin, cumulative, BY_WHERE, BY_SORT


# --- methods of ndarray ----------------------------------------------------------------------------------------------


def method_reshape(t: Tracer, a: TracedArray, *shape: Any, order: str = "C", copy: Any = None) -> Any:
    wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return shaping.reshape(t, a, wanted, order, copy=copy)


def method_transpose(t: Tracer, a: TracedArray, *axes: Any) -> Any:
    if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))):
        axes = axes[0]
    return shaping.transpose(t, a, axes or None)


def method_sort(t: Tracer, a: TracedArray, axis: int = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> None:
    t.assign(a, t.b.add(Sort(normalize_axes(axis, a.ndim)[0]), t.node(a)))


def method_argsort(t: Tracer, a: TracedArray, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    if axis is None:
        a, axis = np.ravel(a), 0
    return t.array(t.b.add(ArgSort(normalize_axes(axis, a.ndim)[0]), t.node(a)))


def method_fill(t: Tracer, a: TracedArray, value: Any) -> None:
    set_item(t, a, Ellipsis, value)


def method_clip(t: Tracer, a: TracedArray, min: Any = None, max: Any = None, out: Any = None, **kwargs: Any) -> Any:
    return reductions.clip(t, a, min, max, out, **kwargs)


def method_itemset(t: Tracer, a: TracedArray, *args: Any) -> None:
    raise TraceTypeError("itemset was removed in NumPy 2.0", hint="write x[index] = value")


def method_choose(t: Tracer, a: TracedArray, choices: Any, out: Any = None, mode: str = "raise") -> Any:
    return shaping.choose(t, a, choices, out, mode)


def method_compress(t: Tracer, a: TracedArray, condition: Any, axis: Any = None, out: Any = None) -> Any:
    return shaping.compress(t, condition, a, axis, out)


def method_repeat(t: Tracer, a: TracedArray, repeats: Any, axis: Any = None) -> Any:
    return shaping.repeat(t, a, repeats, axis)


def method_byteswap(t: Tracer, a: TracedArray, inplace: bool = False) -> Any:
    raise TraceTypeError("byteswap is not supported on traced arrays")


FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    # questions
    np.shape: shape, np.ndim: ndim, np.size: size, np.result_type: result_type, np.can_cast: can_cast,
    np.iscomplexobj: says(False), np.isrealobj: says(True), np.iscomplex: is_bool_question, np.isreal: always_true,
    np.min_scalar_type: lambda t, a: t.as_array(a).dtype, np.common_type: result_type,
    # reductions
    np.sum: reductions.reduction(np.add), np.prod: reductions.reduction(np.multiply),
    np.max: reductions.extremum(np.maximum), np.amax: reductions.extremum(np.maximum),
    np.min: reductions.extremum(np.minimum), np.amin: reductions.extremum(np.minimum),
    np.any: reductions.truth(np.logical_or), np.all: reductions.truth(np.logical_and),
    np.mean: reductions.mean, np.var: reductions.variance, np.std: reductions.deviation, np.ptp: reductions.ptp,
    np.argmax: reductions.arg_extremum("max"), np.argmin: reductions.arg_extremum("min"),
    np.count_nonzero: reductions.count_nonzero, np.average: reductions.average,
    np.cumsum: reductions.running(np.add), np.cumprod: reductions.running(np.multiply),
    np.nansum: reductions.without_nan(np.sum, 0), np.nanprod: reductions.without_nan(np.prod, 1),
    np.nancumsum: reductions.without_nan(np.cumsum, 0), np.nancumprod: reductions.without_nan(np.cumprod, 1),
    np.nanmean: reductions.nanmean, np.nanvar: reductions.nanvar, np.nanstd: reductions.nanstd,
    np.nanmax: reductions.nan_extremum(np.fmax), np.nanmin: reductions.nan_extremum(np.fmin),
    np.nanargmax: reductions.nan_arg_extremum(np.argmax, -np.inf),
    np.nanargmin: reductions.nan_arg_extremum(np.argmin, np.inf),
    np.median: reductions.median, np.quantile: reductions.quantile, np.percentile: reductions.percentile,
    np.clip: reductions.clip,
    # order
    np.sort: reductions.sort, np.argsort: reductions.argsort, np.partition: reductions.partition,
    np.argpartition: reductions.argpartition, np.lexsort: reductions.lexsort,
    np.searchsorted: reductions.searchsorted, np.digitize: reductions.digitize,
    # shape
    np.reshape: shaping.reshape, np.ravel: shaping.ravel, np.transpose: shaping.transpose,
    np.swapaxes: shaping.swapaxes, np.moveaxis: shaping.moveaxis, np.rollaxis: shaping.rollaxis,
    np.expand_dims: shaping.expand_dims, np.squeeze: shaping.squeeze, np.broadcast_to: shaping.broadcast_to,
    np.broadcast_arrays: shaping.broadcast_arrays, np.atleast_1d: shaping.atleast(1), np.atleast_2d: shaping.atleast(2),
    np.atleast_3d: shaping.atleast(3), np.copy: shaping.copy_of,
    # joining, splitting, repeating
    np.concatenate: shaping.concatenate, np.stack: shaping.stack, np.vstack: shaping.vstack, np.hstack: shaping.hstack,
    np.dstack: shaping.dstack, np.column_stack: shaping.column_stack, np.block: shaping.block,
    np.append: lambda t, arr, values, axis=None: shaping.concatenate(
        t, [arr, values] if axis is not None else [np.ravel(t.as_array(arr)), np.ravel(t.as_array(values))], axis or 0),
    np.split: shaping.split, np.array_split: shaping.array_split, np.hsplit: shaping.split_along(1),
    np.vsplit: shaping.split_along(0), np.dsplit: shaping.split_along(2),
    np.flip: shaping.flip, np.fliplr: lambda t, m: shaping.flip(t, m, 1), np.flipud: lambda t, m: shaping.flip(t, m, 0),
    np.rot90: shaping.rot90, np.roll: shaping.roll, np.tile: shaping.tile, np.repeat: shaping.repeat, np.pad: shaping.pad,
    np.resize: resize,
    # taking
    np.take: shaping.take, np.take_along_axis: shaping.take_along_axis, np.put_along_axis: shaping.put_along_axis,
    np.choose: shaping.choose, np.compress: shaping.compress, np.where: shaping.where, np.select: select,
    np.piecewise: piecewise, np.put: put, np.putmask: putmask, np.copyto: copyto,
    # diagonals and creation
    np.diagonal: shaping.diagonal, np.trace: shaping.trace, np.diag: shaping.diag, np.diagflat: shaping.diagflat,
    np.tril: shaping.tril, np.triu: shaping.triu, np.fill_diagonal: shaping.fill_diagonal, np.vander: vander,
    np.zeros_like: shaping.filled_like(0), np.ones_like: shaping.filled_like(1), np.empty_like: shaping.filled_like(0),
    np.full_like: shaping.full_like, np.zeros: shaping.filled(0), np.ones: shaping.filled(1), np.empty: shaping.filled(0),
    np.full: shaping.full, np.arange: shaping.arange, np.eye: shaping.identity_matrix, np.identity: shaping.identity_matrix,
    np.linspace: shaping.linspace, np.meshgrid: shaping.meshgrid,
    np.array: shaping.as_traced_copy, np.asarray: shaping.as_traced, np.asanyarray: shaping.as_traced,
    np.ascontiguousarray: shaping.as_traced, np.require: shaping.as_traced,
    # products
    np.dot: linear.dot, np.vdot: linear.vdot, np.inner: linear.inner, np.outer: linear.outer,
    np.tensordot: linear.tensordot, np.einsum: linear.einsum, np.kron: linear.kron, np.cross: linear.cross,
    np.linalg.norm: linear.norm, np.linalg.matrix_power: linear.matrix_power, np.linalg.multi_dot: linear.multi_dot,
    # elementwise
    np.round: round_to, np.around: round_to, np.fix: fix, np.isclose: isclose, np.allclose: allclose,
    np.array_equal: array_equal, np.array_equiv: array_equiv, np.nan_to_num: nan_to_num, np.real: itself,
    np.imag: lambda t, val: np.zeros_like(val), np.real_if_close: itself, np.isposinf: is_infinite(1),
    np.isneginf: is_infinite(-1), np.sinc: sinc, np.interp: interp,
    np.angle: lambda t, z, deg=False: np.where(t.as_array(z) < 0, 180.0 if deg else np.pi, 0.0),
    # differences and statistics
    np.diff: diff, np.ediff1d: ediff1d, np.gradient: gradient, np.convolve: convolve, np.correlate: correlate,
    np.cov: cov, np.corrcoef: corrcoef, np.polyval: polyval, np.unwrap: unwrap,
    np.apply_along_axis: apply_along_axis, np.apply_over_axes: apply_over_axes,
    # sizes that data decides
    np.nonzero: data_dependent("nonzero", BY_WHERE), np.flatnonzero: data_dependent("flatnonzero", BY_WHERE),
    np.argwhere: data_dependent("argwhere", BY_WHERE), np.extract: data_dependent("extract", BY_WHERE),
    np.unique: data_dependent("unique", BY_SORT), np.union1d: data_dependent("union1d", BY_SORT),
    np.intersect1d: data_dependent("intersect1d", BY_SORT), np.setdiff1d: data_dependent("setdiff1d", BY_SORT),
    np.trim_zeros: data_dependent("trim_zeros", BY_WHERE), np.bincount: bincount,
    np.histogram: data_dependent("histogram", "counts of fixed edges: np.sum((x >= low) & (x < high)) for each bin, or "
                                 "np.add.at(np.zeros(n, np.int64, like=x), np.searchsorted(edges, x), 1)"),
    np.delete: data_dependent("delete", "join slices with np.concatenate"),
    np.insert: data_dependent("insert", "join slices with np.concatenate"),
}  # fmt: skip


# functions that not every NumPy since 2.0 has, or that have a second name
_BY_NAME: dict[str, Callable[..., Any]] = {
    "isin": isin, "trapezoid": trapezoid, "trapz": trapezoid, "row_stack": shaping.vstack, "unstack": shaping.unstack,
    "matrix_transpose": lambda t, x: shaping.swapaxes(t, x, -1, -2), "concat": shaping.concatenate,
    "permute_dims": shaping.transpose, "astype": shaping.astype,
    "cumulative_sum": lambda t, x, /, *, axis=None, dtype=None, out=None, include_initial=False: cumulative(
        t, np.add, x, axis, dtype, out, include_initial),
    "cumulative_prod": lambda t, x, /, *, axis=None, dtype=None, out=None, include_initial=False: cumulative(
        t, np.multiply, x, axis, dtype, out, include_initial),
}  # fmt: skip


_LINALG: dict[str, Callable[..., Any]] = {
    "matmul": lambda t, x1, x2: np.matmul(x1, x2), "vecdot": lambda t, x1, x2, axis=-1: np.sum(
        np.multiply(np.moveaxis(t.as_array(x1), axis, -1), np.moveaxis(t.as_array(x2), axis, -1)), axis=-1),
    "cross": lambda t, x1, x2, axis=-1: linear.cross(t, x1, x2, axis=axis), "outer": linear.outer,
    "tensordot": lambda t, x1, x2, axes=2: linear.tensordot(t, x1, x2, axes),
    "matrix_transpose": lambda t, x: shaping.swapaxes(t, x, -1, -2), "vector_norm": linear.vector_norm,
    "matrix_norm": linear.matrix_norm, "diagonal": lambda t, x, offset=0: shaping.diagonal(t, x, offset, -2, -1),
    "trace": lambda t, x, offset=0, dtype=None: shaping.trace(t, x, offset, -2, -1, dtype),
}  # fmt: skip
FUNCTIONS.update({getattr(np, name): rule for name, rule in _BY_NAME.items() if hasattr(np, name)})
FUNCTIONS.update({getattr(np.linalg, n): rule for n, rule in _LINALG.items() if hasattr(np.linalg, n)})

_SAME_AS_FUNCTION = {
    "sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min, "any": np.any, "all": np.all, "mean": np.mean,
    "var": np.var, "std": np.std, "argmax": np.argmax, "argmin": np.argmin, "cumsum": np.cumsum, "cumprod": np.cumprod,
    "ravel": np.ravel, "swapaxes": np.swapaxes, "squeeze": np.squeeze, "take": np.take, "diagonal": np.diagonal,
    "trace": np.trace, "dot": np.dot, "round": np.round, "searchsorted": np.searchsorted, "put": np.put,
    "nonzero": np.nonzero,
}  # fmt: skip
METHODS: dict[str, Callable[..., Any]] = {
    **{name: FUNCTIONS[function] for name, function in _SAME_AS_FUNCTION.items()},
    "reshape": method_reshape, "transpose": method_transpose, "sort": method_sort, "argsort": method_argsort,
    "fill": method_fill, "clip": method_clip, "choose": method_choose, "compress": method_compress,
    "repeat": method_repeat, "astype": shaping.astype, "copy": shaping.method_copy, "flatten": shaping.flatten,
    "conj": itself, "conjugate": itself, "byteswap": method_byteswap, "itemset": method_itemset,
    "partition": lambda t, a, kth, axis=-1, kind=None, order=None: method_sort(t, a, axis),
    "argpartition": lambda t, a, kth, axis=-1, kind=None, order=None: method_argsort(t, a, axis),
    "__array_namespace__": lambda t, a, api_version=None: np,
}  # fmt: skip


def settled(rule: Callable[..., Any]) -> Callable[..., Any]:
    def method(t: Tracer, *args: Any, **kwargs: Any) -> Any:
        return settle(t, rule(t, *args, **kwargs), (*args, *kwargs.values()))

    return method


IN_C_ORDER = frozenset(("reshape", "transpose", "ravel", "copy", "flatten", "swapaxes", "squeeze", "sort", "fill", "put"))
RULES = Rules(
    ufunc=ufunc_rule,
    functions=FUNCTIONS,
    get_item=get_item,
    set_item=set_item,
    methods={name: rule if name in IN_C_ORDER else settled(rule) for name, rule in METHODS.items()},
    ordered=frozenset((np.reshape, np.ravel)),
)
