"""The NumPy functions that traced arrays know: FUNCTIONS (by `__array_function__`) and METHODS (of ndarray).

Functions with a file of their own come from there; those that are short compositions of others stand here, written with
NumPy itself, whose calls come back to the tracer. What is in neither table is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.ops.compute import ArgSort, Sort
from . import numpy_compositions as compositions
from . import numpy_creation as creation
from . import numpy_joining as joining
from . import numpy_linear as linear
from . import numpy_reductions as reductions
from . import numpy_shaping as shaping
from . import numpy_taking as taking
from .numpy_errors import TraceTypeError
from .numpy_indexing import get_item, set_item
from .numpy_tracer import Rules, TracedArray, Tracer, settle
from .numpy_ufuncs import normalize_axes, ufunc_rule

NOTHING = np._NoValue


# --- methods of ndarray ----------------------------------------------------------------------------------------------


def method_reshape(t: Tracer, a: TracedArray, *shape: Any, order: str = "C", copy: Any = None) -> Any:
    wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return shaping.reshape(t, a, wanted, order, copy=copy)


def method_transpose(t: Tracer, a: TracedArray, *axes: Any) -> Any:
    if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))):
        return shaping.transpose(t, a, axes[0])
    return shaping.transpose(t, a, axes or None)


def method_sort(t: Tracer, a: TracedArray, axis: int = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> None:
    t.assign(a, t.b.add(Sort(normalize_axes(axis, a.ndim)[0]), t.node(a)))


def method_argsort(t: Tracer, a: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
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
    return taking.choose(t, a, choices, out, mode)


def method_compress(t: Tracer, a: TracedArray, condition: Any, axis: Any = None, out: Any = None) -> Any:
    return taking.compress(t, condition, a, axis, out)


def method_repeat(t: Tracer, a: TracedArray, repeats: Any, axis: Any = None) -> Any:
    return joining.repeat(t, a, repeats, axis)


def method_byteswap(t: Tracer, a: TracedArray, inplace: bool = False) -> Any:
    raise TraceTypeError("byteswap is not supported on traced arrays")


FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    # questions
    np.shape: compositions.shape,
    np.ndim: compositions.ndim,
    np.size: compositions.size,
    np.result_type: compositions.result_type,
    np.can_cast: compositions.can_cast,
    np.iscomplexobj: compositions.says(False),
    np.isrealobj: compositions.says(True),
    np.iscomplex: compositions.is_bool_question,
    np.isreal: compositions.always_true,
    np.min_scalar_type: lambda t, a: t.as_array(a).dtype,
    np.common_type: compositions.result_type,
    # reductions
    np.sum: reductions.reduction(np.add),
    np.prod: reductions.reduction(np.multiply),
    np.max: reductions.extremum(np.maximum),
    np.amax: reductions.extremum(np.maximum),
    np.min: reductions.extremum(np.minimum),
    np.amin: reductions.extremum(np.minimum),
    np.any: reductions.truth(np.logical_or),
    np.all: reductions.truth(np.logical_and),
    np.mean: reductions.mean,
    np.var: reductions.variance,
    np.std: reductions.deviation,
    np.ptp: reductions.ptp,
    np.argmax: reductions.arg_extremum("max"),
    np.argmin: reductions.arg_extremum("min"),
    np.count_nonzero: reductions.count_nonzero,
    np.average: reductions.average,
    np.cumsum: reductions.running(np.add),
    np.cumprod: reductions.running(np.multiply),
    np.nansum: reductions.without_nan(np.sum, 0),
    np.nanprod: reductions.without_nan(np.prod, 1),
    np.nancumsum: reductions.without_nan(np.cumsum, 0),
    np.nancumprod: reductions.without_nan(np.cumprod, 1),
    np.nanmean: reductions.nanmean,
    np.nanvar: reductions.nanvar,
    np.nanstd: reductions.nanstd,
    np.nanmax: reductions.nan_extremum(np.fmax),
    np.nanmin: reductions.nan_extremum(np.fmin),
    np.nanargmax: reductions.nan_arg_extremum(np.argmax, -np.inf),
    np.nanargmin: reductions.nan_arg_extremum(np.argmin, np.inf),
    np.median: reductions.median,
    np.quantile: reductions.quantile,
    np.percentile: reductions.percentile,
    np.clip: reductions.clip,
    # order
    np.sort: reductions.sort,
    np.argsort: reductions.argsort,
    np.partition: reductions.partition,
    np.argpartition: reductions.argpartition,
    np.lexsort: reductions.lexsort,
    np.searchsorted: reductions.searchsorted,
    np.digitize: reductions.digitize,
    # shape
    np.reshape: shaping.reshape,
    np.ravel: shaping.ravel,
    np.transpose: shaping.transpose,
    np.swapaxes: shaping.swapaxes,
    np.moveaxis: shaping.moveaxis,
    np.rollaxis: shaping.rollaxis,
    np.expand_dims: shaping.expand_dims,
    np.squeeze: shaping.squeeze,
    np.broadcast_to: shaping.broadcast_to,
    np.broadcast_arrays: shaping.broadcast_arrays,
    np.atleast_1d: shaping.atleast(1),
    np.atleast_2d: shaping.atleast(2),
    np.atleast_3d: shaping.atleast(3),
    np.copy: shaping.copy_of,
    # joining, splitting, repeating
    np.concatenate: joining.concatenate,
    np.stack: joining.stack,
    np.vstack: joining.vstack,
    np.hstack: joining.hstack,
    np.dstack: joining.dstack,
    np.column_stack: joining.column_stack,
    np.block: joining.block,
    np.append: lambda t, arr, values, axis=None: joining.concatenate(
        t, [arr, values] if axis is not None else [np.ravel(t.as_array(arr)), np.ravel(t.as_array(values))], axis or 0
    ),
    np.split: joining.split,
    np.array_split: joining.array_split,
    np.hsplit: joining.split_along(1),
    np.vsplit: joining.split_along(0),
    np.dsplit: joining.split_along(2),
    np.flip: joining.flip,
    np.fliplr: lambda t, m: joining.flip(t, m, 1),
    np.flipud: lambda t, m: joining.flip(t, m, 0),
    np.rot90: joining.rot90,
    np.roll: joining.roll,
    np.tile: joining.tile,
    np.repeat: joining.repeat,
    np.pad: joining.pad,
    np.resize: compositions.resize,
    # taking
    np.take: taking.take,
    np.take_along_axis: taking.take_along_axis,
    np.put_along_axis: taking.put_along_axis,
    np.choose: taking.choose,
    np.compress: taking.compress,
    np.where: taking.where,
    np.select: compositions.select,
    np.piecewise: compositions.piecewise,
    np.put: compositions.put,
    np.putmask: compositions.putmask,
    np.copyto: compositions.copyto,
    # diagonals and creation
    np.diagonal: creation.diagonal,
    np.trace: creation.trace,
    np.diag: creation.diag,
    np.diagflat: creation.diagflat,
    np.tril: creation.tril,
    np.triu: creation.triu,
    np.fill_diagonal: creation.fill_diagonal,
    np.vander: compositions.vander,
    np.zeros_like: creation.filled_like(0),
    np.ones_like: creation.filled_like(1),
    np.empty_like: creation.filled_like(0),
    np.full_like: creation.full_like,
    np.zeros: creation.filled(0),
    np.ones: creation.filled(1),
    np.empty: creation.filled(0),
    np.full: creation.full,
    np.arange: creation.arange,
    np.eye: creation.identity_matrix,
    np.identity: creation.identity_matrix,
    np.linspace: creation.linspace,
    np.meshgrid: creation.meshgrid,
    np.array: creation.as_traced_copy,
    np.asarray: creation.as_traced,
    np.asanyarray: creation.as_traced,
    np.ascontiguousarray: creation.as_traced,
    np.require: creation.as_traced,
    # products
    np.dot: linear.dot,
    np.vdot: linear.vdot,
    np.inner: linear.inner,
    np.outer: linear.outer,
    np.tensordot: linear.tensordot,
    np.einsum: linear.einsum,
    np.kron: linear.kron,
    np.cross: linear.cross,
    np.linalg.norm: linear.norm,
    np.linalg.matrix_power: linear.matrix_power,
    np.linalg.multi_dot: linear.multi_dot,
    # elementwise
    np.round: compositions.round_to,
    np.around: compositions.round_to,
    np.fix: compositions.fix,
    np.isclose: compositions.isclose,
    np.allclose: compositions.allclose,
    np.array_equal: compositions.array_equal,
    np.array_equiv: compositions.array_equiv,
    np.nan_to_num: compositions.nan_to_num,
    np.real: compositions.itself,
    np.imag: lambda t, val: np.zeros_like(val),
    np.real_if_close: compositions.itself,
    np.isposinf: compositions.is_infinite(1),
    np.isneginf: compositions.is_infinite(-1),
    np.sinc: compositions.sinc,
    np.interp: compositions.interp,
    np.angle: lambda t, z, deg=False: np.where(t.as_array(z) < 0, 180.0 if deg else np.pi, 0.0),
    # differences and statistics
    np.diff: compositions.diff,
    np.ediff1d: compositions.ediff1d,
    np.gradient: compositions.gradient,
    np.convolve: compositions.convolve,
    np.correlate: compositions.correlate,
    np.cov: compositions.cov,
    np.corrcoef: compositions.corrcoef,
    np.polyval: compositions.polyval,
    np.unwrap: compositions.unwrap,
    np.apply_along_axis: compositions.apply_along_axis,
    np.apply_over_axes: compositions.apply_over_axes,
    # sizes that data decides
    np.nonzero: compositions.data_dependent("nonzero", compositions.BY_WHERE),
    np.flatnonzero: compositions.data_dependent("flatnonzero", compositions.BY_WHERE),
    np.argwhere: compositions.data_dependent("argwhere", compositions.BY_WHERE),
    np.extract: compositions.data_dependent("extract", compositions.BY_WHERE),
    np.unique: compositions.data_dependent("unique", compositions.BY_SORT),
    np.union1d: compositions.data_dependent("union1d", compositions.BY_SORT),
    np.intersect1d: compositions.data_dependent("intersect1d", compositions.BY_SORT),
    np.setdiff1d: compositions.data_dependent("setdiff1d", compositions.BY_SORT),
    np.trim_zeros: compositions.data_dependent("trim_zeros", compositions.BY_WHERE),
    np.bincount: compositions.bincount,
    np.histogram: compositions.data_dependent(
        "histogram",
        "counts of fixed edges: np.sum((x >= low) & (x < high)) for each bin, or "
        "np.add.at(np.zeros(n, np.int64, like=x), np.searchsorted(edges, x), 1)",
    ),
    np.delete: compositions.data_dependent("delete", "join slices with np.concatenate"),
    np.insert: compositions.data_dependent("insert", "join slices with np.concatenate"),
}


# functions that not every NumPy since 2.0 has, or that have a second name
_BY_NAME: dict[str, Callable[..., Any]] = {
    "isin": compositions.isin,
    "trapezoid": compositions.trapezoid,
    "trapz": compositions.trapezoid,
    "row_stack": joining.vstack,
    "unstack": joining.unstack,
    "matrix_transpose": lambda t, x: shaping.swapaxes(t, x, -1, -2),
    "concat": joining.concatenate,
    "permute_dims": shaping.transpose,
    "astype": shaping.astype,
    "cumulative_sum": lambda t, x, /, *, axis=None, dtype=None, out=None, include_initial=False: compositions.cumulative(
        t, np.add, x, axis, dtype, out, include_initial
    ),
    "cumulative_prod": lambda t, x, /, *, axis=None, dtype=None, out=None, include_initial=False: compositions.cumulative(
        t, np.multiply, x, axis, dtype, out, include_initial
    ),
}


_LINALG: dict[str, Callable[..., Any]] = {
    "matmul": lambda t, x1, x2: np.matmul(x1, x2),
    "vecdot": lambda t, x1, x2, axis=-1: np.sum(
        np.multiply(np.moveaxis(t.as_array(x1), axis, -1), np.moveaxis(t.as_array(x2), axis, -1)), axis=-1
    ),
    "cross": lambda t, x1, x2, axis=-1: linear.cross(t, x1, x2, axis=axis),
    "outer": linear.outer,
    "tensordot": lambda t, x1, x2, axes=2: linear.tensordot(t, x1, x2, axes),
    "matrix_transpose": lambda t, x: shaping.swapaxes(t, x, -1, -2),
    "vector_norm": linear.vector_norm,
    "matrix_norm": linear.matrix_norm,
    "diagonal": lambda t, x, offset=0: creation.diagonal(t, x, offset, -2, -1),
    "trace": lambda t, x, offset=0, dtype=None: creation.trace(t, x, offset, -2, -1, dtype),
}
FUNCTIONS.update({getattr(np, name): rule for name, rule in _BY_NAME.items() if hasattr(np, name)})
FUNCTIONS.update({getattr(np.linalg, n): rule for n, rule in _LINALG.items() if hasattr(np.linalg, n)})

_SAME_AS_FUNCTION: dict[str, Callable[..., Any]] = {
    "sum": np.sum,
    "prod": np.prod,
    "max": np.max,
    "min": np.min,
    "any": np.any,
    "all": np.all,
    "mean": np.mean,
    "var": np.var,
    "std": np.std,
    "argmax": np.argmax,
    "argmin": np.argmin,
    "cumsum": np.cumsum,
    "cumprod": np.cumprod,
    "ravel": np.ravel,
    "swapaxes": np.swapaxes,
    "squeeze": np.squeeze,
    "take": np.take,
    "diagonal": np.diagonal,
    "trace": np.trace,
    "dot": np.dot,
    "round": np.round,
    "searchsorted": np.searchsorted,
    "put": np.put,
    "nonzero": np.nonzero,
}
METHODS: dict[str, Callable[..., Any]] = {
    **{name: FUNCTIONS[function] for name, function in _SAME_AS_FUNCTION.items()},
    "reshape": method_reshape,
    "transpose": method_transpose,
    "sort": method_sort,
    "argsort": method_argsort,
    "fill": method_fill,
    "clip": method_clip,
    "choose": method_choose,
    "compress": method_compress,
    "repeat": method_repeat,
    "astype": shaping.astype,
    "copy": shaping.method_copy,
    "flatten": shaping.flatten,
    "conj": compositions.itself,
    "conjugate": compositions.itself,
    "byteswap": method_byteswap,
    "itemset": method_itemset,
    "partition": lambda t, a, kth, axis=-1, kind=None, order=None: method_sort(t, a, axis),
    "argpartition": lambda t, a, kth, axis=-1, kind=None, order=None: method_argsort(t, a, axis),
    "__array_namespace__": lambda t, a, api_version=None: np,
}


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
