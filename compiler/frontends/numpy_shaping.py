"""NumPy's functions that change shape, order of axes and dtype, on traced arrays.

What NumPy returns as a view is a view here too (see numpy_views); what it copies is a copy. Each rule has the parameters of
the NumPy function it stands for, after the tracer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import library
from ..ir.dims import DimLike, evaluate, exact_quotient, product
from ..ir.types import dtype_of
from .numpy_errors import TraceError, TraceTypeError, TraceValueError
from .numpy_tracer import TracedArray, Tracer, as_dim, shape_text
from .numpy_ufuncs import normalize_axes
from .numpy_views import C_LAYOUT, Permutation, Repeated, Reshaped, layout_of, reshaped_layout, strides_of


def dims_of(t: Tracer, shape: Any) -> tuple[DimLike, ...]:
    """A shape argument: a size or a sequence of sizes."""
    items = shape if isinstance(shape, (tuple, list, np.ndarray)) else (shape,)
    found = []
    for item in items:
        dim = as_dim(item)
        if dim is None and isinstance(item, TracedArray):
            raise TraceTypeError("a shape with a traced size: sizes must not depend on the data")
        found.append(int(item.__index__()) if dim is None else t.current(dim))
    return tuple(found)


# --- shape -----------------------------------------------------------------------------------------------------------


def reshape(t: Tracer, a: Any, /, shape: Any = None, order: str = "C", *, newshape: Any = None, copy: Any = None) -> Any:
    array = t.as_array(a)
    wanted = dims_of(t, newshape if shape is None else shape)
    if order not in ("C", "F", "A"):
        raise TraceValueError(f"order must be one of 'C', 'F', or 'A' (got {order!r})")
    after = _filled_shape(t, array, wanted)
    if order == "F":
        reverse = np.transpose(reshape(t, np.transpose(array), t.sizes(after[::-1])))
        return reverse.copy() if copy else reverse
    layout = None if copy else reshaped_layout(array.layout, array.dims, after)
    if layout is None:
        if copy is False:
            raise TraceValueError("Unable to avoid creating a copy while reshaping.")
        return t.array(library.reshape(t.b, t.node(array), after))
    uncertain = layout.strides is None and not layout.contiguous
    return array.view(Reshaped(after), C_LAYOUT if uncertain else layout, uncertain)


def _filled_shape(t: Tracer, array: TracedArray, wanted: tuple[DimLike, ...]) -> tuple[DimLike, ...]:
    """The new shape with -1 worked out; the number of elements must agree."""
    complaint = f"cannot reshape array of size {array.type.elements} into shape {shape_text(wanted)}"
    holes = [i for i, n in enumerate(wanted) if isinstance(n, int) and n == -1]
    if len(holes) > 1:
        raise TraceValueError("can only specify one unknown dimension")
    total = t.current(array.type.elements)
    if not holes:
        after = product(wanted)
        if after != total:
            t.unify(total, after, complaint)
        return wanted
    known = product(n for i, n in enumerate(wanted) if i not in holes)
    filled = exact_quotient(total, known) if known != 0 else None
    if filled is None:
        filled = _make_quotient(t, total, known, complaint)
    return tuple(filled if i in holes else n for i, n in enumerate(wanted))


def _make_quotient(t: Tracer, total: DimLike, known: DimLike, complaint: str) -> DimLike:
    if isinstance(total, int) and isinstance(known, int):
        raise TraceValueError(complaint)
    if t.observed is None:
        raise TraceError(
            f"{complaint}: that {known} divides {total} is not known at compile time",
            hint="declare it: tw.symbol(name, multiple_of=...) as the size in tw.spec, or give all sizes",
        )
    divisor = evaluate(known, t.observed)
    if not divisor or evaluate(total, t.observed) % divisor:
        raise TraceValueError(complaint)
    if isinstance(known, int):
        t.make_divisible(total, known)
    raise t.restart(t.specialize(total, known))


def ravel(t: Tracer, a: Any, order: str = "C") -> Any:
    """A view of a contiguous array, else a copy: unlike reshape(-1), NumPy's ravel gives no strided view."""
    array = t.as_array(a)
    return reshape(t, array, -1, "C" if order == "K" else order, copy=None if array.layout.contiguous or _unknown(array) else True)


def _unknown(array: TracedArray) -> bool:
    return array.layout.strides is None and not array.layout.contiguous


def flatten(t: Tracer, a: TracedArray, order: str = "C") -> Any:
    return copy_of(t, ravel(t, a, order))


def transpose(t: Tracer, a: Any, axes: Any = None) -> Any:
    array = t.as_array(a)
    if axes is None:
        perm = tuple(reversed(range(array.ndim)))
    else:
        perm = np.lib.array_utils.normalize_axis_tuple(tuple(axes), array.ndim)
        if len(perm) != array.ndim:
            raise TraceValueError("axes don't match array")
    strides = strides_of(array.layout, array.dims)
    layout = layout_of([array.dims[p] for p in perm], None if strides is None else tuple(strides[p] for p in perm))
    return array.view(Permutation(tuple(perm)), layout)


def swapaxes(t: Tracer, a: Any, axis1: int, axis2: int) -> Any:
    array = t.as_array(a)
    order = list(range(array.ndim))
    i, j = normalize_axes(axis1, array.ndim)[0], normalize_axes(axis2, array.ndim)[0]
    order[i], order[j] = order[j], order[i]
    return transpose(t, array, order)


def moveaxis(t: Tracer, a: Any, source: Any, destination: Any) -> Any:
    array = t.as_array(a)
    normal = np.lib.array_utils.normalize_axis_tuple
    left = normal(source, array.ndim, "source")
    right = normal(destination, array.ndim, "destination")
    if len(left) != len(right):
        raise TraceValueError("`source` and `destination` arguments must have the same number of elements")
    order = [n for n in range(array.ndim) if n not in left]
    for place, axis in sorted(zip(right, left)):
        order.insert(place, axis)
    return transpose(t, array, order)


def rollaxis(t: Tracer, a: Any, axis: int, start: int = 0) -> Any:
    array = t.as_array(a)
    axis = normalize_axes(axis, array.ndim)[0]
    start = start + array.ndim if start < 0 else start
    return moveaxis(t, array, axis, start - 1 if axis < start else start)


def expand_dims(t: Tracer, a: Any, axis: Any) -> Any:
    array = t.as_array(a)
    listed = axis if isinstance(axis, (tuple, list)) else (axis,)
    places = np.lib.array_utils.normalize_axis_tuple(listed, array.ndim + len(listed))
    return array[tuple(None if i in places else slice(None) for i in range(array.ndim + len(listed)))]


def squeeze(t: Tracer, a: Any, axis: Any = None) -> Any:
    array = t.as_array(a)
    if axis is None:
        gone: tuple[int, ...] = tuple(i for i, n in enumerate(array.dims) if n == 1)
    else:
        gone = normalize_axes(axis, array.ndim)
        for i in gone:
            t.unify(array.dims[i], 1, f"cannot select an axis to squeeze out which has size not equal to one: axis {i} has "
                    f"size {array.dims[i]}")  # fmt: skip
    view = array[(*(0 if i in gone else slice(None) for i in range(array.ndim)), Ellipsis)]
    return view if gone else array


def broadcast_to(t: Tracer, array: Any, shape: Any, subok: bool = False) -> Any:
    source = t.as_array(array)
    wanted = dims_of(t, shape)
    if t.broadcast_shapes(source.dims, wanted) != wanted:
        raise TraceValueError("operands could not be broadcast together with remapped shapes [original->remapped]: "
                              f"{shape_text(source.dims)} and requested shape {shape_text(wanted)}")  # fmt: skip
    strides = strides_of(source.layout, source.dims)
    offset = len(wanted) - source.ndim
    spread = None if strides is None else tuple(
        0 if i < offset or source.dims[i - offset] != wanted[i] else strides[i - offset] for i in range(len(wanted)))  # fmt: skip
    return source.view(Repeated(wanted), layout_of(wanted, spread))


def broadcast_arrays(t: Tracer, *args: Any, subok: bool = False) -> Any:
    arrays = [t.as_array(a) for a in args]
    shape = t.sizes(t.broadcast_shapes(*(a.dims for a in arrays)))
    return tuple(broadcast_to(t, a, shape) for a in arrays)


def atleast(rank: int) -> Callable[..., Any]:
    """np.atleast_1d, 2d, 3d."""

    def one(t: Tracer, a: Any) -> Any:
        array = t.as_array(a)
        if array.ndim >= rank:
            return array
        if array.ndim == 0:
            return reshape(t, array, (1,) * rank)
        if rank == 2:
            return array[None, :]
        return array[None, :, None] if array.ndim == 1 else array[:, :, None]

    def rule(t: Tracer, *arrays: Any) -> Any:
        made = tuple(one(t, a) for a in arrays)
        return made[0] if len(made) == 1 else made

    return rule


# --- copies and casts ------------------------------------------------------------------------------------------------


def copy_of(t: Tracer, a: Any, order: str = "K", subok: bool = False) -> Any:
    return t.array(t.node(a))


def method_copy(t: Tracer, a: TracedArray, order: str = "C") -> Any:
    if order in ("F", "A", "K") and not a.layout.contiguous or order == "F":
        made = t.array(t.node(a))
        made.layout = layout_of(made.dims, None)
        return made
    return t.array(t.node(a))


def astype(t: Tracer, x: Any, dtype: Any, /, order: str = "K", casting: Any = "unsafe", subok: bool = True, *, copy: bool = True,
           device: Any = None) -> Any:  # fmt: skip
    array = t.as_array(x)
    target = dtype_of(dtype)
    if not np.can_cast(array.dtype, target.numpy, casting):
        raise TraceTypeError(f"Cannot cast array data from {array.dtype} to {target.numpy} according to the rule '{casting}'")
    if not copy and array.type.dtype == target:
        return array
    return t.array(library.cast(t.b, t.node(array), target), scalar=array.scalar)
