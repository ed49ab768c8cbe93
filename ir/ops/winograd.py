"""Convolutions by Winograd's algorithm, as `pack_operands` makes them where they are faster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ..dims import bounds, product
from ..errors import CompileError, IndexFailure
from ..graph import Array, Binding, Op, Sample
from ..types import F32, TensorType, Type
from ..winograd import MOST_POINTS, Rows, Winograd, apply_rows, in_order, winograd
from .shape import operands


def _applied(rows: Rows, values: Array) -> Array:
    """The rows on the first axis, which becomes the last one. Zeros of the matrix meet nothing, so no infinity either."""
    def combine(terms: Sequence[tuple[float, Array]]) -> Array:
        total, *rest = [value * value.dtype.type(factor) for factor, value in in_order(terms)]
        for value in rest:
            total += value
        return np.asarray(total)

    lines: list[Array] = [*values]
    made: list[Array] = apply_rows(rows, lines, combine)
    return np.stack(made, axis=-1)


class WinogradConv(Op, frozen=True):
    """Channels-last convolution of stride and dilation 1 by tiles of `results` along each axis; no padding.

    x [N, *spatial, C], u [points, groups * ceil(O / groups / tile), C / groups, tile] (the weights as G makes them, points in C
    order of the axes, in panels of columns) -> [N, *out, O], O = `channels`. Along an axis of `kernel` 1 `results` is 1. Differs
    from the plain convolution as `ir/winograd.py` says; a NaN or an infinity reaches all results of the tiles that read it.
    Tiles that reach past the end of an axis read its last element again.
    """

    name: ClassVar[str] = "winograd_conv"
    kernel: tuple[int, ...]
    results: tuple[int, ...]
    channels: int
    groups: int = 1

    @property
    def axes(self) -> tuple[Winograd, ...]:
        """The algorithm along each spatial axis."""
        return tuple(winograd(m, r) for m, r in zip(self.results, self.kernel))

    def infer(self, *types: Type) -> Type:
        x, u = operands(self, types, 2)
        good = self.groups > 0 and len(self.kernel) == len(self.results) == x.rank - 2 and u.rank == 4 and x.dtype == u.dtype
        good = good and x.dtype.is_float
        if not good or any(m < 1 or r < 1 or m + r - 1 > MOST_POINTS or r == 1 < m for m, r in zip(self.results, self.kernel)):
            raise CompileError(f"winograd_conv: {x} and {u} do not fit kernel {self.kernel}, results {self.results}")
        points, tile, depth = product(axis.points for axis in self.axes), u.shape[3], u.shape[2]
        panels = self.groups * -(-self.channels // self.groups // tile) if isinstance(tile, int) and tile else -1
        fits = isinstance(depth, int) and depth > 0 and u.shape[:2] == (points, panels) and depth * self.groups == x.shape[-1]
        if not fits or self.channels % self.groups:
            raise CompileError(f"winograd_conv: {u} does not fit {x}, kernel {self.kernel}, results {self.results}, "
                               f"channels {self.channels}, groups {self.groups}")
        sizes = [n - (k - 1) for n, k in zip(x.shape[1:-1], self.kernel)]
        if any(bounds(n)[1] < 0 for n in sizes):
            raise CompileError(f"winograd_conv: the kernel {self.kernel} is larger than the input {x}")
        return TensorType(x.dtype, (x.shape[0], *sizes, self.channels))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x, u = inputs
        rank, axes, dtype = len(self.kernel), self.axes, x.dtype
        wide = np.float32 if dtype.itemsize == 2 else dtype
        shape = [n - k + 1 for n, k in zip(x.shape[1:-1], self.kernel)]
        if min(shape) < 0:
            raise IndexFailure(f"a window of {self.kernel} does not fit into the axes {x.shape[1:-1]}")
        if 0 in (x.shape[0], *shape):
            return np.zeros((x.shape[0], *shape, self.channels), dtype)
        tiles = [-(-n // axis.results) for n, axis in zip(shape, axes)]
        missing = [t * axis.results + axis.taps - 1 - n for t, axis, n in zip(tiles, axes, x.shape[1:-1])]
        padded = np.pad(x.astype(wide), [(0, 0), *((0, n) for n in missing), (0, 0)], mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, [axis.points for axis in axes], tuple(range(1, rank + 1)))
        value = windows[(slice(None), *(slice(None, None, axis.results) for axis in axes))]
        with np.errstate(all="ignore"):
            for axis in axes:  # [N, *tiles, C, *elements] -> [N, *tiles, C, *points], one axis at a time
                value = _applied(axis.input, np.moveaxis(value, rank + 2, 0))
            points, count, channels, tile = u.shape  # sizes are spelled out: NumPy cannot tell them where there are no channels
            rows = value.reshape(x.shape[0] * math.prod(tiles), self.groups, channels, points).transpose(3, 1, 0, 2)
            panels = u.astype(wide).reshape(points, self.groups, count // self.groups, channels, tile)
            dense = np.moveaxis(panels, 3, 2).reshape(points, self.groups, channels, count // self.groups * tile)
            dense = dense[..., :self.channels // self.groups]
            value = np.moveaxis(rows @ dense, 1, 2)  # [points, tiles, groups, O]
            value = value.reshape(*(axis.points for axis in axes), x.shape[0], *tiles, self.channels)
            for axis in axes:  # [*points, N, *tiles, O] -> [N, *tiles, O, *results]
                value = _applied(axis.output, value)
        order = [0, *(a for i in range(rank) for a in (1 + i, rank + 2 + i)), rank + 1]
        value = value.transpose(order).reshape(x.shape[0], *(t * axis.results for t, axis in zip(tiles, axes)), self.channels)
        return np.ascontiguousarray(value[(slice(None), *(slice(n) for n in shape))]).astype(dtype)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls((3, 3), (2, 4), 6), (TensorType(F32, (2, 6, 7, 4)), TensorType(F32, (24, 1, 4, 8)))),
                Sample(cls((5, 1), (4, 1), 20), (TensorType(F32, (1, 9, 3, 4)), TensorType(F32, (8, 2, 4, 16)))),
                Sample(cls((3,), (2,), 20, 2), (TensorType(F32, (1, 9, 6)), TensorType(F32, (4, 4, 3, 8)))))
