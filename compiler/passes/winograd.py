"""Which convolutions Winograd's algorithm computes, and their weights in its form.

It pays where the products it saves cost more than taking input and output apart and together: kernels of 2 to 7 taps, stride
and dilation 1, constant weights, and enough channels on both sides. A model of the core decides (`_cycles`), for the tile
that it finds best, and only for a gain of `WORTH`.

Contract: bounded, as `ir/winograd.py` says, by tiles whose amplification is at most `MOST_AMPLIFICATION`; finite, since a
NaN or an infinity reaches the whole tile. `precision="plain"` and `"strict"` forbid it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod

import numpy as np

from ..ir.caps import Caps
from ..ir.dims import DimLike, product
from ..ir.graph import Array, Builder, Constant, Node
from ..ir.ops.compute import Conv
from ..ir.ops.control import Const
from ..ir.ops.shape import Reshape, Transpose
from ..ir.ops.winograd import WinogradConv
from ..ir.types import F32, F64, DType
from ..ir.winograd import MOST_POINTS, Winograd, count_steps, winograd
from ..options import Options
from ..tiles import MANY_ROWS, choose_tile, panel_columns, tiles_in_block

RESULTS = (2, 4, 6)       # along an axis with more than one tap
MOST_AMPLIFICATION = 1000.0
WORTH = 1.15
RATE = 0.92               # of the peak that the products of a tile reach
FAR = 6.0                 # bytes a cycle that arrive from beyond the second level of memory
IMAGE_SIZE = 64           # of a symbolic axis that is not the only one: that of an image
SEQUENCE_SIZE = 8         # of a symbolic axis alone: steps may come a few at a time


def fast_convolution(b: Builder, op: Conv, x: Node, w: Node, columns: int, options: Options, caps: Caps) -> Node | None:
    """The convolution of a padded x [N, *spatial, C] with w [*kernel, C / groups, O] by Winograd's algorithm, its weights in
    panels of `columns`; None where that is not allowed, possible, or faster."""
    plain = all(s == 1 for s in (*op.strides, *op.dilation))
    if not plain or options.precision != "default" or x.dtype not in (F32, F64) or caps.is_gpu:
        return None
    weights = known_array(w)
    sizes = tuple(n - (k - 1) for n, k in zip(x.shape[1:-1], w.shape[:-2]))
    if weights is None or 0 in (*weights.shape, x.shape[0], *sizes):
        return None
    axes = choose_tiles((x.shape[0], *sizes), weights.shape, op.groups, columns, x.dtype, caps)
    if axes is None:
        return None
    with np.errstate(all="ignore"):  # weights that are not finite, or no longer are
        transformed = transform_weights(weights, axes, op.groups, columns)
    if not np.isfinite(transformed).all():
        return None
    made = WinogradConv(weights.shape[:-2], tuple(axis.results for axis in axes), weights.shape[-1], op.groups)
    return b.add(made, x, b.add(Const(Constant(transformed))))


def known_array(node: Node) -> Array | None:
    """The array of a constant, also behind changes of its layout."""
    match node.op:
        case Const(value):
            return value.array
        case Transpose() | Reshape():
            array = known_array(node.inputs[0])
            return None if array is None else node.op.evaluate((array,), {})
    return None


def gain_of_tiles(op: Conv, x: tuple[DimLike, ...], result: tuple[DimLike, ...], weights: tuple[int, ...], options: Options,
                  caps: Caps) -> float:
    """How much faster than as a plain sum Winograd's algorithm computes a float32 convolution with constant weights [*kernel, C / groups,
    O]: 1 where it is not used. x and the result are [N, *spatial, C]."""
    plain = all(s == 1 for s in (*op.strides, *op.dilation, *op.input_dilation))
    if not plain or options.precision != "default" or caps.is_gpu or 0 in (*x, *result):
        return 1.0
    columns = panel_columns(weights[-1] // op.groups, product(x[:-1]), F32, caps)
    axes = choose_tiles(result[:-1], weights, op.groups, columns, F32, caps)
    if axes is None:
        return 1.0
    sizes = _usual(result[:-1])
    direct = prod(sizes) * prod(weights[:-2]) * _products(weights, op.groups, columns, F32, caps)
    return direct / _cycles(sizes, weights, op.groups, axes, columns, F32, caps)


def transform_weights(weights: Array, axes: Sequence[Winograd], groups: int, columns: int) -> Array:
    """[*kernel, C, O] -> [points, groups * panels, C, columns], rounded once."""
    value = weights.astype(np.float64)
    for number, axis in enumerate(axes):  # [*points, taps, *kernel, C, O] -> [*points, point, *kernel, C, O]
        taps = np.moveaxis(value, number, 0)
        points = [sum((factor * tap for factor, tap in zip(row, taps) if factor), start=np.zeros(())) for row in axis.weights]
        value = np.stack(points, axis=number)
    channels, out = weights.shape[-2], weights.shape[-1] // groups
    value = value.reshape(-1, channels, groups, out).transpose(0, 2, 1, 3)  # [points, groups, C, O]
    panels = -(-out // columns)
    padded = np.zeros((*value.shape[:3], panels * columns), weights.dtype)
    padded[..., :out] = value
    packed = padded.reshape(*value.shape[:3], panels, columns).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(packed).reshape(-1, groups * panels, channels, columns)


def choose_tiles(shape: tuple[DimLike, ...], weights: tuple[int, ...], groups: int, columns: int, dtype: DType,
                 caps: Caps) -> tuple[Winograd, ...] | None:
    """The tiles with which a result of `shape` (batch and spatial axes) takes the fewest cycles, None where the plain
    convolution does."""
    kernel = weights[:-2]
    able = [[winograd(m, k) for m in ((1,) if k == 1 else RESULTS) if m + k - 1 <= MOST_POINTS] for k in kernel]
    sizes = _usual(shape)
    direct = prod(sizes) * prod(kernel) * _products(weights, groups, columns, dtype, caps)
    found = [axes for axes in itertools.product(*able) if prod(a.amplification for a in axes) <= MOST_AMPLIFICATION]
    best = min(found, key=lambda axes: _cycles(sizes, weights, groups, axes, columns, dtype, caps), default=None)
    if best is None or _cycles(sizes, weights, groups, best, columns, dtype, caps) * WORTH > direct:
        return None
    return best


def _usual(shape: tuple[DimLike, ...]) -> list[int]:
    """Sizes to choose for, of a batch and spatial axes: a symbolic batch is one."""
    axes = sum(n != 1 for n in shape[1:])
    unknown = IMAGE_SIZE if axes > 1 else SEQUENCE_SIZE
    return [n if isinstance(n, int) else 1 if axis == 0 else unknown for axis, n in enumerate(shape)]


def _products(weights: tuple[int, ...], groups: int, columns: int, dtype: DType, caps: Caps) -> float:
    """Cycles of one row of products: two vectors a cycle."""
    lanes = caps.lanes(dtype)
    return groups * weights[-2] * -(-weights[-1] // groups // columns) * columns / lanes / 2 / RATE


def _cycles(sizes: Sequence[int], weights: tuple[int, ...], groups: int, axes: Sequence[Winograd], columns: int, dtype: DType,
            caps: Caps) -> float:
    """Cycles of the whole result."""
    channels, out = weights[-2] * groups, weights[-1]
    lanes = caps.lanes(dtype)
    points, results = prod(a.points for a in axes), prod(a.results for a in axes)
    rows = choose_tile(columns, MANY_ROWS, dtype, caps).rows
    tiles = -(-prod([sizes[0], *(-(-n // a.results) for n, a in zip(sizes[1:], axes))]) // rows) * rows
    # all elements are read, and written after each axis; registers do not hold them between
    moved = 1.5 * points * (1 + sum(a.taps > 1 for a in axes))
    into = sum(points // a.points * count_steps(a.input) for a in axes) / 2 + moved
    back = sum(points // a.points * count_steps(a.output) for a in axes) / 2 + moved + 2 * results
    tile = points * _products(weights, groups, columns, dtype, caps) + -(-channels // lanes) * into + -(-out // lanes) * back
    far = points * weights[-2] * out * dtype.bytes
    rounds = -(-tiles // tiles_in_block(points, channels, dtype, caps))
    return tiles * tile + (rounds * far / FAR if far > caps.level2_bytes // 2 else 0)
