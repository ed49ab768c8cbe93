"""Windows over random values: reductions of windows with any stride, padding and dilation, most often along images whose channels
are the last axis, which is how a compiler lays them out, and most often alike along all axes of places.

Guarantees: each window fits into the padded axis at all sizes; the result has at most as many elements as the padded operand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from .. import library
from ..ir.dims import DimLike, bounds
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import ReduceWindow
from ..ir.ops.control import Param
from ..ir.types import F32, F64, I32, DType
from .rebuild import chosen

KINDS = ("max", "min", "sum")
PLACES, CHANNELS = (4, 8, 9, 12, 13, 16, 17), (1, 2, 3, 4, 5, 8)
DTYPES: tuple[DType, ...] = (F32, F32, F32, F64, I32)
TAPS = (1, 2, 2, 3, 3, 3, 5)
Along = tuple[int, int, tuple[int, int], int]  # window, stride, padding, dilation


def window_graph(rng: np.random.Generator) -> Graph:
    """One or two windows over an image, with functions of one operand between and behind them."""
    b = Builder()
    x = image = b.add(Param("x0", chosen(rng, DTYPES), tuple(image_shape(rng))))
    for _ in range(int(rng.integers(1, 3))):
        made = windowed(b, rng, x)
        x = x if made is None else made[0]
        if rng.random() < 0.4:
            x = library.scalar(b, chosen(rng, ("neg", "abs")), x)
    return Graph("windows", [image], [x])


def window_seeds() -> Iterator[Graph]:
    """Windows with and without strides, padding and dilation, along the last axes and before one of channels, each reduced in every way."""
    for taps, stride, padding, dilation, channels in itertools.product((2, 3), (1, 2), ((0, 0), (1, 0)), (1, 2), (1, 8)):
        b = Builder()
        x = b.add(Param("x0", F32, (2, 9, 13, channels)))
        window, strides, dilations = ((1, n, n, 1) for n in (taps, stride, dilation))
        ops = [ReduceWindow(kind, window, strides, ((0, 0), padding, padding, (0, 0)), dilations) for kind in KINDS]
        yield Graph("windows", [x], [b.add(op, x) for op in ops])


def image_shape(rng: np.random.Generator) -> list[DimLike]:
    """A shape with one or two axes of places before one of channels."""
    places: list[DimLike] = [chosen(rng, PLACES) for _ in range(2 if rng.random() < 0.8 else 1)]
    batch: list[DimLike] = [int(rng.integers(1, 3))] if rng.random() < 0.5 else []
    return [*batch, *places, chosen(rng, CHANNELS)]


def windowed(b: Builder, rng: np.random.Generator, x: Node, kinds: Sequence[str] = KINDS) -> tuple[Node, int] | None:
    """The value's windows reduced, and how many elements one holds; None where no axis has room for a window."""
    last = x.rank - 1 if x.rank > 1 and rng.random() < 0.7 else x.rank
    batch = x.rank > 3 or rng.random() < 0.3
    alike = _drawn(rng) if rng.random() < 0.6 else None
    parts = [_fitting(int(bounds(n)[0]), alike or _drawn(rng)) if batch <= axis < last else _fitting(0, _drawn(rng))
             for axis, n in enumerate(x.shape)]
    if all(part[0] == 1 for part in parts):
        return None
    window, strides, padding, dilation = zip(*parts, strict=True)
    kind = "or" if x.dtype.is_bool else chosen(rng, kinds)
    return b.add(ReduceWindow(kind, window, strides, padding, dilation), x), int(np.prod(window))


def _drawn(rng: np.random.Generator) -> Along:
    taps = chosen(rng, TAPS)
    low, high = (int(n) for n in rng.integers(0, taps, 2)) if rng.random() < 0.3 else (0, 0)
    return taps, int(rng.integers(1, 3)) if rng.random() < 0.4 else 1, (low, high), int(rng.integers(1, 3)) if rng.random() < 0.6 else 1


def _fitting(least: int, drawn: Along) -> Along:
    """The window on an axis of at least so many elements; one of a single element where it has no room."""
    taps, _, _, dilation = drawn
    return drawn if (taps - 1) * dilation < least else (1, 1, (0, 0), 1)
