"""ONNX operators that read an image between its pixels: GridSample, AffineGrid, RoiAlign, DeformConv.

Each output place has some taps: flat places of the input, computed from coordinates in float32, with a weight and whether they
lie inside. Coordinates that are NaN or far outside read some pixel or nothing, never memory outside the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product as combinations

from msgspec import Struct

from ...ir.dims import DimLike, product
from ...ir.graph import Node
from ...ir.ops.compute import Dot
from ...ir.ops.shape import Concat, GatherND, Iota
from ...ir.types import F32, I64
from ...library import broadcast, expand, reduce, size_value, slice_axis, squeeze, transpose
from .by_data import matches, vector
from .context import Context, Integers, Operators

MODES = {"linear": "linear", "bilinear": "linear", "nearest": "nearest", "cubic": "cubic", "bicubic": "cubic"}
PADDINGS = ("zeros", "border", "reflection")
CUBIC = -0.75


class Tap(Struct, frozen=True):
    """A place on one axis (float32, limited to the axis), its weight, whether it counts."""

    place: Node
    weight: Node | None
    inside: Node | None


def _f(c: Context, n: DimLike | float) -> Node:
    return c.constant(n, F32) if isinstance(n, (int, float)) else size_value(c.b, n, F32)


def read_taps(c: Context, image: Node, axes: Sequence[Sequence[Tap]]) -> Node:
    """image [batch, *spatial, channels] at the taps of each axis [batch, *places] -> [batch, *places, channels]."""
    sizes, channels = image.shape[1:-1], image.shape[-1]
    flat = c.reshape(image, (image.shape[0], product(sizes), channels))
    total: Node | None = None
    for taps in combinations(*axes):
        index, weight, inside = c.constant(0, I64), None, None
        for tap, size in zip(taps, sizes, strict=True):
            index = c.apply("add", c.apply("mul", index, size_value(c.b, size)), c.cast(tap.place, I64))
            if tap.weight is not None:
                weight = tap.weight if weight is None else c.scalar("mul", weight, tap.weight)
            if tap.inside is not None:
                inside = tap.inside if inside is None else c.scalar("and", inside, tap.inside)
        value = c.b.add(GatherND(1), flat, expand(c.b, index, (index.rank,)))
        if inside is not None:
            value = c.apply("select", expand(c.b, inside, (inside.rank,)), value, c.like(0, value))
        if weight is not None:
            value = c.apply("mul", value, c.cast(expand(c.b, weight, (weight.rank,)), value.dtype))
        total = value if total is None else c.scalar("add", total, value)
    assert total is not None
    return total


def _limited(c: Context, place: Node, size: DimLike) -> Node:
    """Inside 0..size - 1; NaN becomes 0."""
    place = c.apply("select", c.scalar("isnan", place), _f(c, 0), place)
    return c.apply("max", c.apply("min", place, _f(c, size - 1)), _f(c, 0))


def _is_inside(c: Context, place: Node, size: DimLike) -> Node:
    return c.scalar("and", c.apply("ge", place, _f(c, 0)), c.apply("le", place, _f(c, size - 1)))


def _reflected(c: Context, place: Node, low: Node, high: Node) -> Node:
    """Folded back at both ends as often as needed; where they meet, that place."""
    span = c.scalar("sub", high, low)
    period = c.scalar("add", span, span)
    safe = c.scalar("select", c.scalar("gt", period, _f(c, 0)), period, _f(c, 1))
    offset = c.apply("mod", c.apply("sub", place, low), safe)
    return c.apply("add", c.apply("min", c.apply("min", offset, c.apply("sub", period, offset)), span), low)


# --- grids -----------------------------------------------------------------------------------------------------------


def grid_sample(c: Context, x: Node, grid: Node, *, align_corners: int = 0, mode: str = "linear",
                padding_mode: str = "zeros") -> Node:
    rank = x.rank - 2
    if rank < 1 or grid.rank != x.rank or grid.shape[-1] != rank:
        c.fail(f"the grid {grid.type} does not hold places in the {max(rank, 0)} spatial axes of {x.type}")
    kind = MODES[c.choice(mode, "mode", tuple(MODES))]
    c.choice(padding_mode, "padding_mode", PADDINGS)
    grid = c.cast(c.refine(grid, (x.shape[0], *grid.shape[1:])), F32)
    axes = []
    for axis, size in enumerate(x.shape[2:]):
        # the last coordinate belongs to the first axis
        normal = squeeze(c.b, slice_axis(c.b, grid, grid.rank - 1, rank - 1 - axis, 1), (grid.rank - 1,))
        ends = (_f(c, 0), _f(c, size - 1)) if align_corners else (_f(c, -0.5), c.scalar("sub", _f(c, size), _f(c, 0.5)))
        spread = c.scalar("sub", ends[1], ends[0])
        shifted = c.apply("div", c.apply("add", normal, _f(c, 1)), _f(c, 2))
        place = c.apply("add", c.apply("mul", shifted, spread), ends[0])
        place = c.scalar("round", place) if kind == "nearest" else place
        if padding_mode == "border":
            # up to half a pixel beyond the outermost centres is still inside
            within = c.scalar("and", c.apply("ge", place, ends[0]), c.apply("le", place, ends[1]))
            place = c.scalar("select", within, place, _limited(c, place, size))
        elif padding_mode == "reflection":
            place = _reflected(c, place, *ends)
        axes.append(_grid_taps(c, place, size, kind, padding_mode, ends))
    order = (0, *range(2, x.rank), 1)
    image = transpose(c.b, x if kind == "nearest" or x.dtype.is_float and x.dtype.bits >= 32 else c.cast(x, F32), order)
    value = read_taps(c, image, axes)
    return c.cast(transpose(c.b, value, (0, value.rank - 1, *range(1, value.rank - 1))), x.dtype)


def _grid_taps(c: Context, place: Node, size: DimLike, kind: str, padding: str, ends: tuple[Node, Node]) -> list[Tap]:
    base = c.scalar("floor", place)
    part = c.scalar("sub", place, base)
    one = _f(c, 1)
    weights: list[tuple[int, Node | None]]
    if kind == "nearest":
        base, weights = place, [(0, None)]
    elif kind == "linear":
        weights = [(0, c.apply("sub", one, part)), (1, part)]
    else:
        weights = [(-1, _cubic_far(c, c.apply("add", part, one))), (0, _cubic_near(c, part)),
                   (1, _cubic_near(c, c.apply("sub", one, part))), (2, _cubic_far(c, c.apply("sub", _f(c, 2), part)))]
    taps = []
    for offset, weight in weights:
        at = c.apply("add", base, _f(c, offset))
        inside = None
        if padding == "zeros":
            inside = _is_inside(c, at, size)
        elif padding == "reflection":
            at = c.scalar("trunc", _reflected(c, at, *ends))
        taps.append(Tap(_limited(c, at, size), weight, inside))
    return taps


def _polynomial(c: Context, x: Node, *coefficients: float) -> Node:
    total = c.full(coefficients[0], F32, x.shape)
    for coefficient in coefficients[1:]:
        total = c.apply("add", c.scalar("mul", total, x), _f(c, coefficient))
    return total


def _cubic_near(c: Context, distance: Node) -> Node:
    return _polynomial(c, distance, CUBIC + 2, -(CUBIC + 3), 0.0, 1.0)


def _cubic_far(c: Context, distance: Node) -> Node:
    return _polynomial(c, distance, CUBIC, -5 * CUBIC, 8 * CUBIC, -4 * CUBIC)


def affine_grid(c: Context, theta: Node, size: Integers, *, align_corners: int = 0) -> Node:
    """theta times the homogeneous coordinates (x, y, ..., 1) of every place of the output."""
    if theta.rank != 3:
        c.fail(f"theta must have 3 axes, found {theta.type}")
    if c.all_known(size):
        listed = c.sizes(size, "size")
        if len(listed) < 3:
            c.fail(f"input 'size' must have an entry for each of 4 or 5 axes, found {len(listed)}")
        batch, _, *spatial = listed
    else:
        batch, *spatial = c.declared_shape("size", rank=theta.shape[1] + 2 if isinstance(theta.shape[1], int) else 4, given=size)[:-1]
        given = vector(c, size)
        rest = slice_axis(c.b, given, 0, 2, len(spatial))
        same = c.scalar("and", matches(c, slice_axis(c.b, given, 0, 0, 1), (batch,)), matches(c, rest, spatial))
        theta = c.require(theta, same)
    rank = len(spatial)
    theta = c.refine(theta, (batch, rank, rank + 1))
    columns = []
    for axis in reversed(range(rank)):
        n, index = spatial[axis], c.b.add(Iota(F32, tuple(spatial), axis))
        if align_corners:
            steps = c.scalar("max", _f(c, n - 1), _f(c, 1))
            place = c.apply("sub", c.apply("div", c.apply("mul", index, _f(c, 2)), steps), _f(c, 1))
        else:
            middle = c.apply("add", c.apply("mul", index, _f(c, 2)), _f(c, 1))
            place = c.apply("sub", c.apply("div", middle, _f(c, n)), _f(c, 1))
        columns.append(place)
    columns.append(c.full(1, F32, spatial))
    points = c.b.add(Concat(rank), *[expand(c.b, x, (rank,)) for x in columns])
    flat = c.cast(c.reshape(points, (product(spatial), rank + 1)), theta.dtype)
    grid = transpose(c.b, c.b.add(Dot((2,), (1,)), theta, flat), (0, 2, 1))
    return c.reshape(grid, (batch, *spatial, rank))


# --- regions ---------------------------------------------------------------------------------------------------------


def roi_align(c: Context, x: Node, rois: Node, batch_indices: Node, *, coordinate_transformation_mode: str | None = None,
              mode: str = "avg", output_height: int = 1, output_width: int = 1, sampling_ratio: int = 0,
              spatial_scale: float = 1.0) -> Node:
    """Each region in bins, each bin the mean (or the maximum of the weighted corners) of `sampling_ratio`^2 samples."""
    c.choice(mode, "mode", ("avg", "max"))
    transformation = coordinate_transformation_mode or ("half_pixel" if c.opset >= 16 else "output_half_pixel")
    half = c.choice(transformation, "coordinate_transformation_mode", ("half_pixel", "output_half_pixel")) == "half_pixel"
    if x.rank != 4 or rois.rank != 2 or rois.shape[1] != 4:
        c.fail(f"needs an image of 4 axes and rois [count, 4], found {x.type} and {rois.type}")
    if sampling_ratio < 1:
        c.unsupported("sampling_ratio=0 takes as many samples as the size of a region asks for, which data decides")
    count, samples = rois.shape[0], sampling_ratio
    ends = [c.apply("sub", c.apply("mul", c.cast(slice_axis(c.b, rois, 1, i, 1), F32), _f(c, spatial_scale)),
                    _f(c, 0.5 if half else 0.0)) for i in range(4)]
    axes, bins = [], (output_height, output_width)
    for axis, (low, high) in enumerate(((ends[1], ends[3]), (ends[0], ends[2]))):
        extent = c.scalar("sub", high, low)
        extent = extent if half else c.apply("max", extent, _f(c, 1))
        step = c.apply("div", extent, _f(c, bins[axis] * samples))
        index = c.b.add(Iota(F32, (1, bins[axis] * samples), 1))
        place = c.apply("add", low, c.apply("mul", c.apply("add", index, _f(c, 0.5)), step))
        shape = (count, *((bins[0] * samples, 1) if axis == 0 else (1, bins[1] * samples)))
        grid = (count, bins[0] * samples, bins[1] * samples)
        axes.append(_region_taps(c, broadcast(c.b, c.reshape(place, shape), grid), x.shape[2 + axis]))
    own = gather_batches(c, transpose(c.b, x if x.dtype.bits >= 32 else c.cast(x, F32), (0, 2, 3, 1)), batch_indices, count)
    split = (count, bins[0], samples, bins[1], samples, x.shape[1])
    if mode == "avg":
        value = reduce(c.b, "sum", c.reshape(read_taps(c, own, axes), split), (2, 4))
        value = c.apply("div", value, c.like(samples * samples, value))
    else:
        corners = [read_taps(c, own, ((first,), (second,))) for first in axes[0] for second in axes[1]]
        greatest = corners[0]
        for corner in corners[1:]:
            greatest = c.scalar("max", greatest, corner)
        value = reduce(c.b, "max", c.reshape(greatest, split), (2, 4))
    return c.cast(transpose(c.b, value, (0, 3, 1, 2)), x.dtype)


def gather_batches(c: Context, image: Node, batch_indices: Node, count: DimLike) -> Node:
    """The image of each region."""
    from_batch = c.refine(c.cast(batch_indices, I64), (count,))
    return c.b.add(GatherND(0), image, expand(c.b, from_batch, (1,)))


def _region_taps(c: Context, place: Node, size: DimLike) -> list[Tap]:
    """Two neighbours; up to one pixel outside reads the border, beyond that nothing."""
    inside = c.scalar("and", c.apply("ge", place, _f(c, -1)), c.apply("le", place, _f(c, size)))
    place = _limited(c, place, size)
    low = c.scalar("floor", place)
    part = c.scalar("sub", place, low)
    return [Tap(low, c.apply("sub", _f(c, 1), part), inside), Tap(_limited(c, c.apply("add", low, _f(c, 1)), size), part, inside)]


# --- deformable convolution ------------------------------------------------------------------------------------------


def deform_conv(c: Context, x: Node, w: Node, offset: Node, bias: Node | None = None, mask: Node | None = None, *,
                dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
                offset_group: int = 1, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None) -> Node:
    """A convolution whose taps are moved by offsets that the model computes; pixels outside are zero."""
    if offset.rank != 4:
        c.fail(f"the offset must have 4 axes, found {offset.type}")
    if x.rank != 4 or w.rank != 4 or not all(isinstance(n, int) for n in (*w.shape, x.shape[1])):
        c.unsupported(f"only images with known channels and kernels are supported, found {x.type} and {w.type}")
    out, per_group, *kernel = (int(n) for n in w.shape)
    batch, channels, *sizes = x.shape
    steps, spread, before = tuple(strides or (1, 1)), tuple(dilations or (1, 1)), tuple(pads or (0,) * 4)
    if (len(steps), len(spread), len(before)) != (2, 2, 4):
        c.fail(f"strides, dilations and pads must have 2, 2 and 4 entries, found {len(steps)}, {len(spread)} and {len(before)}")
    height, width = offset.shape[2:]
    taps = math.prod(kernel)
    offset = c.cast(c.refine(offset, (batch, offset_group * taps * 2, height, width)), F32)
    parts = c.reshape(offset, (batch, offset_group, taps, 2, height, width))
    grid = (batch, offset_group, taps, height, width)
    axes = []
    for axis in range(2):
        moved = c.reshape(slice_axis(c.b, parts, 3, axis, 1), grid)
        at_tap = c.b.add(Iota(F32, (kernel[0], kernel[1]), axis))
        at_tap = c.reshape(c.apply("mul", at_tap, _f(c, spread[axis])), (taps, 1, 1))
        at_place = c.b.add(Iota(F32, (height, width), axis))
        at_place = c.apply("sub", c.apply("mul", at_place, _f(c, steps[axis])), _f(c, before[axis]))
        place = c.apply("add", moved, c.apply("add", at_tap, at_place))
        zeros = (_f(c, 0), _f(c, 0))
        flat = c.reshape(place, (batch * offset_group, taps, height, width))
        axes.append(_grid_taps(c, flat, sizes[axis], "linear", "zeros", zeros))
    if not isinstance(channels, int) or channels % offset_group or channels != per_group * group or out % group:
        c.fail(f"{x.type}, {w.type}, group {group} and offset_group {offset_group} do not fit")
    own = channels // offset_group
    # every offset group reads its own channels: it counts as a part of the batch
    image = c.reshape(x, (batch * offset_group, own, *sizes))
    image = transpose(c.b, image, (0, 2, 3, 1))
    value = read_taps(c, image, axes)    # [batch * groups, taps, height, width, own]
    if mask is not None:
        factor = c.reshape(c.refine(mask, (batch, offset_group * taps, height, width)),
                           (batch * offset_group, taps, height, width, 1))
        value = c.apply("mul", value, factor)
    value = c.reshape(value, (batch, offset_group, taps, height, width, own))
    value = c.reshape(transpose(c.b, value, (0, 3, 4, 1, 5, 2)), (batch, height, width, group, per_group * taps))
    weight = c.reshape(w, (group, out // group, per_group * taps))
    made = c.b.add(Dot((4,), (2,), (3,), (0,)), value, weight)    # [group, batch, height, width, out / group]
    made = c.reshape(transpose(c.b, made, (1, 0, 4, 2, 3)), (batch, out, height, width))
    return made if bias is None else c.apply("add", made, c.reshape(bias, (1, out, 1, 1)))


OPS: Operators = {"AffineGrid": affine_grid, "DeformConv": deform_conv, "GridSample": grid_sample, "RoiAlign": roi_align}
