"""A convolution of bytes whose scale differs from place to place, as one convolution of integers for each tap of the kernel.

Within a tap, all products of a row have one scale. So the result is the sum over taps of an exact sum of bytes times the scale of the
place that the tap reads (the vector-wise scales of Dettmers et al., LLM.int8(), 2022, section 2.1, for convolutions). Where channels
are many, what is added up in float is a small part of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as every

from ..ir.dims import DimLike
from ..ir.graph import Builder, Node
from ..ir.ops.compute import Conv
from ..ir.ops.shape import Slice
from ..ir.types import F32, I32, TensorType
from ..library import apply, broadcast, cast, pad


def tap_by_tap(b: Builder, op: Conv, value: Node, scale: Node, weights: Node) -> Node:
    """The convolution `op` of `value * scale` with `weights`, both of bytes without zero points: float32. The scale has rank and sizes of
    the value, or sizes of 1, as its channels have."""
    rank, first = len(op.strides), 1 if op.channels_last else 2
    whole = Conv(op.strides, op.padding, op.dilation, op.input_dilation, 1, op.channels_last, I32).infer(value.tensor, weights.tensor)
    assert isinstance(whole, TensorType)
    sizes = whole.shape[first:first + rank]
    low, high = ((*[0] * first, *(width[side] for width in op.padding), *[0] * (2 - first)) for side in (0, 1))
    channels = value.rank - 1 if op.channels_last else 1
    scale = broadcast(b, scale, tuple(1 if a == channels else n for a, n in enumerate(value.shape)))
    value, scale = pad(b, value, low, high), pad(b, scale, low, high, 1.0)  # beside it there is nothing but zeros
    ones = (1,) * rank
    product = Conv(ones, ((0, 0),) * rank, ones, ones, 1, op.channels_last, I32)
    kernel = 0 if op.channels_last else 2
    total: Node | None = None
    for tap in every(*(range(int(k)) for k in weights.shape[kernel:kernel + rank] if isinstance(k, int))):
        start = [t * d for t, d in zip(tap, op.dilation)]
        matrix = b.add(Slice(*_window(weights, tap, ones, ones, kernel)), weights)
        sums, factor = (b.add(Slice(*_window(x, start, sizes, op.strides, first)), x) for x in (value, scale))
        scaled = apply(b, "mul", cast(b, b.add(product, sums, matrix), F32), factor)
        total = scaled if total is None else apply(b, "add", total, scaled)
    assert total is not None
    return total


def _window(x: Node, start: Sequence[DimLike], sizes: Sequence[DimLike], steps: Sequence[int],
            first: int) -> tuple[tuple[DimLike, ...], tuple[DimLike, ...], tuple[int, ...]]:
    """Start, size and step of a slice along the spatial axes alone."""
    last = first + len(start)
    return ((*[0] * first, *start, *[0] * (x.rank - last)), (*x.shape[:first], *sizes, *x.shape[last:]),
            (*[1] * first, *steps, *[1] * (x.rank - last)))
