"""ONNX Resize and Upsample, one axis after the other.

Each axis that changes is resampled by taps: for every output place a few input places and their weights, computed by
ordinary nodes from the output's index, so that symbolic sizes work too. Nearest has one tap; growth by a whole number
is a repetition and needs no index at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ...ir.dims import Dim, DimLike
from ...ir.graph import Node
from ...ir.ops.shape import Iota, Take
from ...ir.types import F32, I64, DType
from ...library import broadcast, expand, size_value
from .by_data import all_of, element, matches, vector
from .context import Context, Integers, Operators

MODES = ("nearest", "linear", "cubic")
COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
               "tf_half_pixel_for_nn", "tf_crop_and_resize")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
LARGEST_SCALE = 1 << 20
POLICIES = ("stretch", "not_larger", "not_smaller")


Number = float | Node


class Axis(Struct, frozen=True):
    """One axis to resample. `scale` is a number where it is known, else `factor` where data decides it, else both sizes give
    it; `scaled`: the model gave it."""

    place: int
    before: DimLike
    after: DimLike
    scale: float | None
    scaled: bool = True
    window: tuple[Number, Number] = (0.0, 1.0)
    factor: Node | None = None


class Method(Struct, frozen=True):
    """How to resample, for all axes."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    extrapolation: float
    antialias: bool


def _scaled(c: Context, size: DimLike, scale: float) -> DimLike:
    """floor(size * scale): in float32, as is customary (10 * 0.7 is 7); exact for sizes that are symbols."""
    if not 0 < scale < LARGEST_SCALE:
        c.fail(f"the scale {scale} is not between 0 and {LARGEST_SCALE}")
    if isinstance(size, int):
        return math.floor(np.float32(size) * np.float32(scale))
    fraction = Fraction(scale)
    if fraction.denominator > 1 << 10:
        c.unsupported(f"the symbolic size {size} times {scale} is no exact size", hint="bind the dim")
    return size * fraction.numerator // fraction.denominator


def resize(c: Context, x: Node, roi: Node | None = None, scales: Node | None = None, sizes: Integers = None, *,
           antialias: int = 0, axes: Sequence[int] | None = None, coordinate_transformation_mode: str = "half_pixel",
           cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0,
           keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest",
           nearest_mode: str = "round_prefer_floor") -> Node:
    if c.opset < 11:        # inputs X, scales; coordinates as Upsample's
        return upsample(c, x, roi, mode=mode)
    method = Method(c.choice(mode, "mode", MODES), c.choice(coordinate_transformation_mode, "coordinates", COORDINATES),
                    c.choice(nearest_mode, "nearest_mode", NEAREST), cubic_coeff_a, bool(exclude_outside),
                    extrapolation_value, bool(antialias))
    places = tuple(range(x.rank)) if axes is None else c.axes(axes, x.rank)
    c.choice(keep_aspect_ratio_policy, "keep_aspect_ratio_policy", POLICIES)
    x, targets = _targets(c, x, places, scales, sizes, keep_aspect_ratio_policy)
    if method.coordinates == "tf_crop_and_resize":
        windows = _windows(c, roi, places)
        targets = [replace(axis, window=windows[axis.place]) for axis in targets]
    return _resample(c, x, targets, method)


def upsample(c: Context, x: Node, scales: Node | Sequence[float] | None = None, *, mode: str = "nearest",
             height_scale: float = 1.0, width_scale: float = 1.0) -> Node:
    method = Method(c.choice(mode, "mode", ("nearest", "linear", "bilinear")).removeprefix("bi"), "asymmetric", "floor",
                    -0.75, False, 0.0, False)
    if scales is not None and not isinstance(scales, Node):
        scales = c.constant(list(scales), F32)
    elif scales is None:
        scales = c.constant([1.0, 1.0, height_scale, width_scale], F32)
    x, targets = _by_scales(c, x, range(x.rank), scales)
    return _resample(c, x, targets, method)


def _windows(c: Context, roi: Node | None, places: Sequence[int]) -> dict[int, tuple[Number, Number]]:
    if roi is None:
        c.fail("the coordinates tf_crop_and_resize need the input roi")
    if roi.shape != (2 * len(places),):
        c.fail(f"roi {roi.type} has not two entries for each of {len(places)} axes")
    value = c.value(roi)
    known = value is not None and value.dtype != object
    ends: list[Number] = [float(v) for v in value] if value is not None and known else [
        element(c, c.cast(roi, F32), i) for i in range(2 * len(places))]
    return {a: (ends[i], ends[i + len(places)]) for i, a in enumerate(places)}


def _targets(c: Context, x: Node, places: Sequence[int], scales: Node | None, sizes: Integers,
             policy: str) -> tuple[Node, list[Axis]]:
    """For each axis the new size and the scale; the input, with what must be checked of it at run time."""
    if scales is not None and (sizes is None or 0 not in scales.shape):
        return _by_scales(c, x, places, scales)
    if isinstance(sizes, Node) and not c.all_known(sizes):
        declared = c.declared_shape("sizes", rank=x.rank, given=sizes)
        wanted: Sequence[DimLike] = [declared[a] for a in places]
        if policy != "stretch":
            return _kept_ratio_by_data(c, x, places, sizes, wanted, policy)
        x = c.require(x, matches(c, vector(c, sizes), wanted))
    else:
        wanted = c.sizes(sizes, "sizes")
    if len(wanted) != len(places):
        c.fail(f"sizes has {len(wanted)} entries for {len(places)} axes")
    if policy != "stretch":
        return x, _kept_ratio(c, x, places, wanted, policy)
    found = []
    for a, n in zip(places, wanted):
        before = x.shape[a]
        scale = n / before if isinstance(n, int) and isinstance(before, int) and before else None
        if n == before:
            scale = 1.0
        found.append(Axis(a, before, n, scale, False))
    return x, found


def _by_scales(c: Context, x: Node, places: Sequence[int], scales: Node) -> tuple[Node, list[Axis]]:
    """Sizes of floor(size * scale)."""
    value = c.value(scales)
    if scales.shape != (len(places),):
        c.fail(f"scales {scales.type} has not one entry for each of {len(places)} axes")
    if value is None:
        shape = c.declared_shape("scales", rank=x.rank)
        if len(shape) != x.rank:
            c.fail(f"the result is declared with {len(shape)} axes, {x.type} has {x.rank}")
        factors = [element(c, c.cast(scales, F32), i) for i in range(len(places))]
        valid = [c.scalar("eq", c.scalar("floor", c.scalar("mul", _float(c, x.shape[a]), s)), _float(c, shape[a]))
                 for a, s in zip(places, factors)]
        return c.require(x, all_of(c, valid)), [Axis(a, x.shape[a], shape[a], None, factor=s)
                                                for a, s in zip(places, factors)]
    if value.dtype == object:
        c.unsupported("the scales depend on symbolic sizes", hint="bind the dims, or give sizes instead of scales")
    known = [float(s) for s in value]
    return x, [Axis(a, x.shape[a], _scaled(c, x.shape[a], s), s) for a, s in zip(places, known)]


def _kept_ratio_by_data(c: Context, x: Node, places: Sequence[int], sizes: Node, wanted: Sequence[DimLike],
                        policy: str) -> tuple[Node, list[Axis]]:
    """One scale for all axes, the least or the greatest that the sizes ask for."""
    given = c.cast(vector(c, sizes), F32)
    scale: Node | None = None
    for i, a in enumerate(places):
        ratio = c.scalar("div", element(c, given, i), _float(c, x.shape[a]))
        scale = ratio if scale is None else c.scalar("min" if policy == "not_larger" else "max", scale, ratio)
    assert scale is not None
    half = c.constant(0.5, F32)
    valid = [c.scalar("eq", c.scalar("floor", c.scalar("add", c.scalar("mul", scale, _float(c, x.shape[a])), half)), _float(c, n))
             for a, n in zip(places, wanted)]
    return c.require(x, all_of(c, valid)), [Axis(a, x.shape[a], n, None, False, factor=scale) for a, n in zip(places, wanted)]


def _kept_ratio(c: Context, x: Node, places: Sequence[int], wanted: Sequence[DimLike], policy: str) -> list[Axis]:
    ratios, extents = [], []
    for a, n in zip(places, wanted):
        before = x.shape[a]
        if not isinstance(n, int) or not isinstance(before, int):
            c.unsupported(f"keep_aspect_ratio_policy {policy!r} needs sizes that are known", hint="bind the dims")
        extents.append(before)
        ratios.append(n / before)
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [Axis(a, n, math.floor(scale * n + 0.5), scale, False) for a, n in zip(places, extents)]


# --- resampling ------------------------------------------------------------------------------------------------------


def _resample(c: Context, x: Node, axes: Sequence[Axis], method: Method) -> Node:
    outside: list[Node] = []
    shape = x.shape
    dtype = x.dtype
    if method.mode != "nearest":
        x = c.cast(x, F32) if not dtype.is_float or dtype.bits < 32 else x
    for axis in axes:
        crops = method.coordinates == "tf_crop_and_resize"
        if axis.scale == 1.0 and axis.after == axis.before and not (crops and axis.window != (0.0, 1.0)):
            continue
        shape = (*shape[:axis.place], axis.after, *shape[axis.place + 1:])
        times = _repetition(axis, method)
        if times is not None:
            x = _repeat(c, x, axis.place, times)
            continue
        position = _position(c, axis, method)
        if crops:
            outside.append(_along(c, _is_outside(c, position, axis), axis.place, x.rank))
        x = _interpolate(c, x, axis, position, method)
    for mask in outside:
        x = c.apply("select", mask, c.like(method.extrapolation, x), x)
    return c.refine(_cast_back(c, x, dtype), shape)


def _cast_back(c: Context, x: Node, dtype: DType) -> Node:
    return x if x.dtype == dtype else c.cast(x, dtype)


def _repetition(axis: Axis, method: Method) -> int | None:
    """How often each element repeats, where resizing is no more than that."""
    if method.mode != "nearest" or axis.scale is None or axis.scale != int(axis.scale) or axis.scale < 1:
        return None
    if axis.after != axis.before * int(axis.scale):
        return None
    plain = method.coordinates == "asymmetric" and method.nearest == "floor"
    # the middle of an output element lies strictly inside its input element
    centred = method.coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric") \
        and method.nearest.startswith("round") and axis.scale > 1
    return int(axis.scale) if plain or centred else None


def _repeat(c: Context, x: Node, place: int, times: int) -> Node:
    spread = expand(c.b, x, (place + 1,))
    repeated = broadcast(c.b, spread, (*x.shape[:place + 1], times, *x.shape[place + 1:]))
    return c.reshape(repeated, (*x.shape[:place], x.shape[place] * times, *x.shape[place + 1:]))


def _float(c: Context, size: DimLike) -> Node:
    return size_value(c.b, size, F32) if isinstance(size, Dim) else c.constant(size, F32)


def _scale(c: Context, axis: Axis) -> Node:
    if axis.scale is not None:
        return c.constant(axis.scale, F32)
    if axis.factor is not None:
        return axis.factor
    return c.apply("div", _float(c, axis.after), _float(c, axis.before))


def _position(c: Context, axis: Axis, method: Method) -> Node:
    """Where in the input each output element lies: float32 [after]."""
    index = c.b.add(Iota(F32, (axis.after,), 0))
    half = c.constant(0.5, F32)
    scale = _scale(c, axis)
    match method.coordinates:
        case "asymmetric":
            return c.apply("div", index, scale)
        case "tf_half_pixel_for_nn":
            return c.apply("div", c.apply("add", index, half), scale)
        case "align_corners":
            if axis.after == 1:
                return c.full(0, F32, (1,))
            steps = c.apply("div", _float(c, axis.before - 1), c.apply("sub", _resized_length(c, axis), c.constant(1, F32)))
            return c.apply("mul", index, steps)
        case "tf_crop_and_resize":
            return _cropped_position(c, axis, index)
        case "pytorch_half_pixel" if axis.after == 1:
            return c.full(0, F32, (1,))
    centred = c.apply("div", c.apply("add", index, half), scale)
    if method.coordinates == "half_pixel_symmetric":
        centred = c.apply("add", centred, _symmetric_offset(c, axis))
    return c.apply("sub", centred, half)


def _symmetric_offset(c: Context, axis: Axis) -> Node:
    """What keeps the middle of the axis its middle although the resized size was rounded."""
    before, after = _float(c, axis.before), _float(c, axis.after)
    adjustment = c.apply("div", after, c.apply("mul", _scale(c, axis), before))
    middle = c.apply("div", before, c.constant(2, F32))
    return c.apply("mul", middle, c.apply("sub", c.constant(1, F32), adjustment))


def _resized_length(c: Context, axis: Axis) -> Node:
    """The length that align_corners goes by: before any rounding down, as the standard's own implementation has it, but for
    what only the rounding of the scale adds to a whole number."""
    if not axis.scaled or axis.scale is None and axis.factor is None:
        return _float(c, axis.after)
    if axis.scale is not None and isinstance(axis.before, int) and isinstance(axis.after, int):
        length = axis.before * axis.scale
        return c.constant(axis.after if abs(length - axis.after) <= 1e-6 * axis.after else length, F32)
    exact = c.scalar("mul", _float(c, axis.before), _scale(c, axis))
    whole = c.scalar("round", exact)
    near = c.scalar("le", c.scalar("abs", c.scalar("sub", exact, whole)), c.scalar("mul", whole, c.constant(1e-6, F32)))
    return c.scalar("select", near, whole, exact)


def _cropped_position(c: Context, axis: Axis, index: Node) -> Node:
    start, end = (n if isinstance(n, Node) else c.constant(n, F32) for n in axis.window)
    last = _float(c, axis.before - 1)
    if axis.after == 1:
        middle = c.apply("mul", last, c.scalar("mul", c.constant(0.5, F32), c.scalar("add", start, end)))
        return c.apply("add", c.full(0, F32, (1,)), middle)
    step = c.apply("div", c.apply("mul", last, c.scalar("sub", end, start)), _float(c, axis.after - 1))
    return c.apply("add", c.apply("mul", index, step), c.apply("mul", last, start))


def _is_outside(c: Context, position: Node, axis: Axis) -> Node:
    below = c.apply("lt", position, c.constant(0, F32))
    return c.scalar("or", below, c.apply("gt", position, _float(c, axis.before - 1)))


def _along(c: Context, vector: Node, place: int, rank: int) -> Node:
    """A vector as a value that broadcasts along one axis."""
    return c.reshape(vector, [vector.shape[0] if a == place else 1 for a in range(rank)])


def _limited(c: Context, place: Node, axis: Axis) -> Node:
    """Input places as indices, moved to the nearest one inside."""
    last = _float(c, axis.before - 1)
    return c.cast(c.apply("min", c.apply("max", place, c.constant(0, F32)), last), I64)


def _nearest(c: Context, position: Node, method: str) -> Node:
    half = c.constant(0.5, F32)
    match method:
        case "floor":
            return c.scalar("floor", position)
        case "ceil":
            return c.scalar("ceil", position)
        case "round_prefer_floor":
            return c.scalar("ceil", c.apply("sub", position, half))
    return c.scalar("floor", c.apply("add", position, half))


def _interpolate(c: Context, x: Node, axis: Axis, position: Node, method: Method) -> Node:
    if method.mode == "nearest":
        return c.b.add(Take(axis.place), x, _limited(c, _nearest(c, position, method.nearest), axis))
    taps = _taps(c, axis, position, method)
    if method.exclude_outside or method.antialias:
        taps = _renormalized(c, taps, axis, drop=method.exclude_outside)
    total: Node | None = None
    for place, weight in taps:
        part = c.b.add(Take(axis.place), x, _limited(c, place, axis))
        part = c.apply("mul", part, c.cast(_along(c, weight, axis.place, x.rank), x.dtype))
        total = part if total is None else c.scalar("add", total, part)
    assert total is not None
    return total


Taps = list[tuple[Node, Node]]


def _taps(c: Context, axis: Axis, position: Node, method: Method) -> Taps:
    """Input places (float32, perhaps outside) with their weights."""
    support = 1 if method.mode == "linear" else 2
    kernel: Callable[[Context, Node], Node] = _triangle if method.mode == "linear" else _cubic(method.cubic)
    stretch, least = c.constant(1, F32), 1.0
    if method.antialias:
        least = _least_scale(c, axis)
        stretch = c.apply("min", _scale(c, axis), c.constant(1, F32))
    base = c.scalar("floor", position)
    reach = math.ceil(support / least)
    taps = []
    for offset in range(1 - reach, reach + 1):
        place = c.apply("add", base, c.constant(offset, F32))
        distance = c.scalar("abs", c.scalar("sub", position, place))
        taps.append((place, kernel(c, c.apply("mul", distance, stretch))))
    return taps


def _least_scale(c: Context, axis: Axis) -> float:
    """At most 1, and at most the scale: it decides how many taps there are."""
    if axis.scale is not None:
        return min(axis.scale, 1.0)
    if axis.factor is None or not isinstance(axis.before, int) or not isinstance(axis.after, int) or axis.after == 0:
        c.unsupported("antialias needs a scale that is known", hint="bind the dims")
    # data decides it, but size * scale does not lie half an element below the size after it
    return min((axis.after - 0.5) / axis.before, 1.0)


def _triangle(c: Context, distance: Node) -> Node:
    return c.apply("max", c.apply("sub", c.constant(1, F32), distance), c.constant(0, F32))


def _cubic(a: float) -> Callable[[Context, Node], Node]:
    """Keys' kernel: two cubics, on 0..1 and 1..2."""
    def polynomial(c: Context, d: Node, *coefficients: float) -> Node:
        total = c.full(coefficients[0], F32, d.shape)
        for coefficient in coefficients[1:]:
            total = c.apply("add", c.scalar("mul", total, d), c.constant(coefficient, F32))
        return total

    def kernel(c: Context, d: Node) -> Node:
        near = polynomial(c, d, a + 2, -(a + 3), 0.0, 1.0)
        far = polynomial(c, d, a, -5 * a, 8 * a, -4 * a)
        outer = c.apply("select", c.apply("lt", d, c.constant(2, F32)), far, c.constant(0, F32))
        return c.apply("select", c.apply("le", d, c.constant(1, F32)), near, outer)
    return kernel


def _renormalized(c: Context, taps: Taps, axis: Axis, drop: bool) -> Taps:
    """The weights add up to one; with `drop` taps outside the input weigh nothing."""
    kept = [(place, c.apply("select", _is_outside(c, place, axis), c.constant(0, F32), weight) if drop else weight)
            for place, weight in taps]
    total = kept[0][1]
    for _, weight in kept[1:]:
        total = c.scalar("add", total, weight)
    return [(place, c.scalar("div", weight, total)) for place, weight in kept]


OPS: Operators = {"Resize": resize, "Upsample": upsample}
