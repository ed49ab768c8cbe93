"""ONNX operators that combine or order the elements of axes: ReduceX, ArgMax, CumSum, TopK, Softmax.

Axes come as an attribute or, from opset 13 (ReduceSum) and 18 (the others) on, as an input that must be known.
"""

from __future__ import annotations

from collections.abc import Callable

from ...ir.dims import product
from ...ir.graph import Node
from ...ir.ops.compute import ArgReduce, ArgSort, Cumulative
from ...ir.ops.shape import Iota, TakeAlong
from ...ir.types import BOOL, I64
from ...library import expand, mean, reduce, size_value, slice_axis
from ...library import log_softmax as log_softmax_along
from ...library import softmax as softmax_along
from .by_data import along_axis_by_data, matches, reduce_by_data, vector
from .context import Context, Integers, Operators

Combine = Callable[[Context, Node, tuple[int, ...], bool], Node]


def reduction(combine: Combine) -> Callable[..., Node]:
    """An operator Reduce*, with its axes worked out."""
    def build(c: Context, data: Node, axes: Integers = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Node:
        if isinstance(axes, Node) and not c.all_known(axes):
            return reduce_by_data(c, data, axes, bool(keepdims), combine)
        wanted = c.integers(axes, "axes")
        if not wanted and noop_with_empty_axes:
            return combine(c, data, (), True)
        places = tuple(sorted(c.axes(wanted, data.rank))) if wanted else tuple(range(data.rank))
        return combine(c, data, places, bool(keepdims))
    return build


def _plain(kind: str) -> Combine:
    def combine(c: Context, x: Node, axes: tuple[int, ...], keep: bool) -> Node:
        if kind in ("max", "min") and x.dtype == BOOL:
            return reduce(c.b, "or" if kind == "max" else "and", x, axes, keep)
        return reduce(c.b, kind, x, axes, keep)
    return combine


def _mean(c: Context, x: Node, axes: tuple[int, ...], keep: bool) -> Node:
    if x.dtype.is_float:
        return mean(c.b, x, axes, keep)
    total = reduce(c.b, "sum", x, axes, keep)
    count = size_value(c.b, product(x.shape[a] for a in axes), x.dtype)
    whole = c.apply("sub", total, c.apply("rem", total, count))
    return c.apply("floordiv", whole, count)


def _sum_square(c: Context, x: Node, axes: tuple[int, ...], keep: bool) -> Node:
    return reduce(c.b, "sum", c.scalar("mul", x, x), axes, keep)


def _norm_one(c: Context, x: Node, axes: tuple[int, ...], keep: bool) -> Node:
    return reduce(c.b, "sum", c.scalar("abs", x), axes, keep)


def _norm_two(c: Context, x: Node, axes: tuple[int, ...], keep: bool) -> Node:
    wide = c.wide(x)
    return c.cast(c.scalar("sqrt", _sum_square(c, wide, axes, keep)), x.dtype)


def _log_sum(c: Context, x: Node, axes: tuple[int, ...], keep: bool) -> Node:
    return c.scalar("log", reduce(c.b, "sum", x, axes, keep))


def _log_sum_exp(c: Context, x: Node, axes: tuple[int, ...], keep: bool) -> Node:
    """Shifted by the maximum, so that it does not overflow; an infinite maximum shifts by nothing."""
    top = reduce(c.b, "max", x, axes, keep=True)
    top = c.apply("select", c.scalar("isinf", top), c.like(0, top), top)
    total = reduce(c.b, "sum", c.scalar("exp", c.apply("sub", x, top)), axes, keep=True)
    value = c.scalar("add", c.scalar("log", total), top)
    return value if keep else c.reshape(value, [n for a, n in enumerate(x.shape) if a not in axes])


def arg_reduction(kind: str) -> Callable[..., Node]:
    def build(c: Context, data: Node, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Node:
        place = c.axis(axis, data.rank)
        if select_last_index:
            extent = data.shape[place]
            flipped = flip(c, data, place)
            found = c.b.add(ArgReduce(kind, place), flipped)
            found = c.apply("sub", size_value(c.b, extent - 1), found)
        else:
            found = c.b.add(ArgReduce(kind, place), data)
        return expand(c.b, found, (place,)) if keepdims else found
    return build


def flip(c: Context, x: Node, axis: int) -> Node:
    """Reversed along one axis."""
    return slice_axis(c.b, x, axis, x.shape[axis] - 1, x.shape[axis], -1)


def cumulative(kind: str) -> Callable[..., Node]:
    def build(c: Context, x: Node, axis: Node, *, exclusive: int = 0, reverse: int = 0) -> Node:
        def compute(place: int) -> Node:
            return c.b.add(Cumulative(kind, place, bool(exclusive), bool(reverse)), x)

        if not c.all_known(axis):
            return along_axis_by_data(c, x, axis, compute)
        return compute(c.axis(c.integer(axis, "axis"), x.rank))
    return build


def top_k(c: Context, x: Node, k: Integers, *, axis: int = -1, largest: int = 1,
          sorted: int = 1) -> tuple[Node, Node]:
    """Values and places of the k greatest (or least), in order; of equal elements the first wins."""
    place = c.axis(axis, x.rank)
    if isinstance(k, Node) and not c.all_known(k):
        count = c.declared_shape("k", rank=x.rank, given=k)[place]
        x = c.require(x, matches(c, vector(c, k), (count,)))
    else:
        count = c.size(k, "k")
    order = slice_axis(c.b, c.b.add(ArgSort(place, bool(largest)), x), place, 0, count)
    return c.b.add(TakeAlong(place), x, order), order


def _along(function: Callable[..., Node]) -> Callable[..., Node]:
    """Softmax and its kin: before opset 13 over all axes from `axis` on, flattened."""
    def build(c: Context, x: Node, *, axis: int | None = None) -> Node:
        if c.opset >= 13:
            return function(c, x, c.axis(-1 if axis is None else axis, x.rank)) if x.rank else function(
                c, c.reshape(x, (1,)), 0)
        first = c.axis(1 if axis is None else axis, x.rank) if x.rank > 1 else 0
        if first == x.rank - 1:
            return function(c, x, first)
        flat = c.reshape(x, (product(x.shape[:first]), product(x.shape[first:])))
        return c.reshape(function(c, flat, 1), x.shape)
    return build


def _softmax(c: Context, x: Node, axis: int) -> Node:
    return softmax_along(c.b, x, axis)


def _log_softmax(c: Context, x: Node, axis: int) -> Node:
    return log_softmax_along(c.b, x, axis)


def _hardmax(c: Context, x: Node, axis: int) -> Node:
    first = expand(c.b, c.b.add(ArgReduce("max", axis), x), (axis,))
    return c.cast(c.apply("eq", first, c.b.add(Iota(I64, x.shape, axis))), x.dtype)


OPS: Operators = {
    "ArgMax": arg_reduction("max"), "ArgMin": arg_reduction("min"), "CumProd": cumulative("prod"),
    "CumSum": cumulative("sum"), "Hardmax": _along(_hardmax), "LogSoftmax": _along(_log_softmax),
    "ReduceL1": reduction(_norm_one), "ReduceL2": reduction(_norm_two), "ReduceLogSum": reduction(_log_sum),
    "ReduceLogSumExp": reduction(_log_sum_exp), "ReduceMax": reduction(_plain("max")), "ReduceMean": reduction(_mean),
    "ReduceMin": reduction(_plain("min")), "ReduceProd": reduction(_plain("prod")),
    "ReduceSum": reduction(_plain("sum")), "ReduceSumSquare": reduction(_sum_square), "Softmax": _along(_softmax),
    "TopK": top_k,
}
