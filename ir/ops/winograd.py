"""Convolutions by Winograd's algorithm, as `pack_operands` makes them where they are faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ..dims import bounds, ceildiv, product
from ..errors import CompileError
from ..graph import Array, Binding, Op, Sample
from ..types import F32, TensorType, Type
from ..winograd import MOST_POINTS, Winograd, winograd
from .shape import operands


class WinogradConv(Op, frozen=True):
    """Channels-last convolution of stride and dilation 1 by tiles of `results` along each axis; no padding, no groups.

    x [N, *spatial, C], u [points, ceil(O / tile), C, tile] (the weights as G makes them, points in C order of the axes, in
    panels of columns) -> [N, *out, O], O = `channels`. Along an axis of `kernel` 1 `results` is 1. Differs from the plain
    convolution as `ir/winograd.py` says; a NaN or an infinity reaches all results of the tiles that read it. Tiles that reach
    past the end of an axis read its last element again.
    """

    name: ClassVar[str] = "winograd_conv"
    kernel: tuple[int, ...]
    results: tuple[int, ...]
    channels: int

    @property
    def axes(self) -> tuple[Winograd, ...]:
        """The algorithm along each spatial axis."""
        return tuple(winograd(m, r) for m, r in zip(self.results, self.kernel))

    def infer(self, *types: Type) -> Type:
        x, u = operands(self, types, 2)
        good = len(self.kernel) == len(self.results) == x.rank - 2 and u.rank == 4 and x.dtype == u.dtype and x.dtype.is_float
        if not good or any(m < 1 or r < 1 or m + r - 1 > MOST_POINTS or r == 1 < m for m, r in zip(self.results, self.kernel)):
            raise CompileError(f"winograd_conv: {x} and {u} do not fit kernel {self.kernel}, results {self.results}")
        points, tile = product(axis.points for axis in self.axes), u.shape[3]
        if not isinstance(tile, int) or u.shape != (points, ceildiv(self.channels, tile), x.shape[-1], tile):
            raise CompileError(f"winograd_conv: {u} does not fit {x}, kernel {self.kernel}, results {self.results}, "
                               f"channels {self.channels}")
        sizes = [n - (k - 1) for n, k in zip(x.shape[1:-1], self.kernel)]
        if any(bounds(n)[1] < 0 for n in sizes):
            raise CompileError(f"winograd_conv: the kernel {self.kernel} is larger than the input {x}")
        return TensorType(x.dtype, (x.shape[0], *sizes, self.channels))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x, u = inputs
        rank, axes, dtype = len(self.kernel), self.axes, x.dtype
        wide = np.float32 if dtype.itemsize == 2 else dtype
        shape = [n - k + 1 for n, k in zip(x.shape[1:-1], self.kernel)]
        if 0 in (x.shape[0], *shape):
            return np.zeros((x.shape[0], *shape, self.channels), dtype)
        tiles = [-(-n // axis.results) for n, axis in zip(shape, axes)]
        missing = [t * axis.results + axis.taps - 1 - n for t, axis, n in zip(tiles, axes, x.shape[1:-1])]
        padded = np.pad(x.astype(wide), [(0, 0), *((0, n) for n in missing), (0, 0)], mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, [axis.points for axis in axes], tuple(range(1, rank + 1)))
        value = windows[(slice(None), *(slice(None, None, axis.results) for axis in axes))]
        with np.errstate(all="ignore"):
            for axis in axes:  # [N, *tiles, C, *elements] -> [N, *tiles, C, *points], one axis at a time
                value = np.tensordot(value, np.array(axis.input, wide), ([rank + 2], [1]))
            rows = np.moveaxis(value.reshape(-1, x.shape[-1], u.shape[0]), 2, 0)
            dense = np.moveaxis(u.astype(wide), 2, 1).reshape(u.shape[0], u.shape[2], -1)[..., :self.channels]
            value = (rows @ dense).reshape(*(axis.points for axis in axes), x.shape[0], *tiles, self.channels)
            for axis in axes:  # [*points, N, *tiles, O] -> [N, *tiles, O, *results]
                value = np.tensordot(value, np.array(axis.output, wide), ([0], [1]))
        order = [0, *(a for i in range(rank) for a in (1 + i, rank + 2 + i)), rank + 1]
        value = value.transpose(order).reshape(x.shape[0], *(t * axis.results for t, axis in zip(tiles, axes)), self.channels)
        return np.ascontiguousarray(value[(slice(None), *(slice(n) for n in shape))]).astype(dtype)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls((3, 3), (2, 4), 6), (TensorType(F32, (2, 6, 7, 4)), TensorType(F32, (24, 1, 4, 8)))),
                Sample(cls((5, 1), (4, 1), 20), (TensorType(F32, (1, 9, 3, 4)), TensorType(F32, (8, 2, 4, 16)))))
