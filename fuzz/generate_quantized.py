"""Graphs of layers of quantized numbers: dequantized operands that are moved on their way to a contraction, what is quantized and
dequantized at once, integer products with zero points.

Which instruction multiplies them hangs on dtypes, on whether weights are known and small, on zero points that are one number or
vary, on depths that are no multiple of a word. Scales are small numbers of few bits, so that most sums are exact.

Guarantees: well typed graphs of one to three results.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from .. import library
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Conv, Dot
from ..ir.ops.control import Param
from ..ir.types import F32, I8, I16, I32, U8, DType
from ..library_quantized import dequantize, difference, quantize
from .rebuild import chosen, small

SCALES = (1.0, 0.5, 2.0, 0.25, 3.0, 1.5)
DEPTHS = (7, 8, 9, 12, 15, 16, 17, 33, 64)
WIDTHS = (1, 2, 5, 8, 15, 16, 17, 24, 33)
LARGEST = (3, 63, 64, 65, 127)  # of weights: products of two neighbours fit into 16 bits up to 64
BYTES = (U8, U8, I8)


def quantized_graph(rng: np.random.Generator) -> Graph:
    return _Draft(rng).graph(int(rng.integers(len(LAYERS))))


def quantized_seeds() -> Iterator[Graph]:
    """Each kind of layer some times."""
    for number, (layer, _) in enumerate(itertools.product(range(len(LAYERS)), range(5))):
        yield _Draft(np.random.default_rng(number)).graph(layer)


class _Draft:
    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.b = rng, Builder()
        self.params: list[Node] = []

    def graph(self, layer: int) -> Graph:
        value = LAYERS[layer](self)
        results = [value]
        if self.rng.random() < 0.5 and value.dtype == F32 and small(value.shape):
            results.append(self.quantized(library.apply(self.b, "max", value, library.like(self.b, 0, value)), chosen(self.rng, BYTES)))
            if self.rng.random() < 0.5:
                scale = library.constant(self.b, chosen(self.rng, SCALES), F32)
                results.append(dequantize(self.b, quantize(self.b, value, scale, None, I8), scale))
        return Graph("quantized", self.params, results)

    def param(self, dtype: DType, shape: Sequence[int]) -> Node:
        self.params.append(self.b.add(Param(f"x{len(self.params)}", dtype, tuple(shape))))
        return self.params[-1]

    def scale(self, shape: Sequence[int] = ()) -> Node:
        return library.constant(self.b, self.rng.choice(SCALES, tuple(shape)), F32)

    def point(self, dtype: DType, shape: Sequence[int] = ()) -> Node | None:
        """A zero point: none, one that is known, or one that is given."""
        kind = self.rng.integers(3)
        if kind == 0:
            return None
        limits = np.iinfo(dtype.numpy)
        known = self.rng.integers(limits.min, limits.max + 1, tuple(shape)).astype(dtype.numpy)
        return library.constant(self.b, known) if kind == 1 else self.param(dtype, shape)

    def activations(self, shape: Sequence[int]) -> tuple[Node, Node | None]:
        """Bytes and their zero point: given, or made of floats."""
        dtype = chosen(self.rng, BYTES)
        if self.rng.random() < 0.5:
            return self.param(dtype, shape), self.point(dtype)
        point = self.point(dtype)
        return quantize(self.b, self.param(F32, shape), self.scale(), point, dtype), point

    def quantized(self, x: Node, dtype: DType) -> Node:
        return quantize(self.b, x, self.scale(), self.point(dtype), dtype)

    def weights(self, shape: Sequence[int]) -> Node:
        if self.rng.random() < 0.3:
            return self.param(chosen(self.rng, BYTES), shape)
        most = int(chosen(self.rng, LARGEST))
        dtype = chosen(self.rng, (I8, I8, U8))
        least = 0 if dtype == U8 else -most
        return library.constant(self.b, self.rng.integers(least, most + 1, tuple(shape)).astype(dtype.numpy))


def _product(draft: _Draft) -> Node:
    """A matrix product of dequantized operands, moved on the way."""
    rng, b = draft.rng, draft.b
    rows, depth, width = int(chosen(rng, (1, 2, 5, 9))), int(chosen(rng, DEPTHS)), int(chosen(rng, WIDTHS))
    shape = (2, rows, depth) if rng.random() < 0.3 else (rows, depth)
    q, point = draft.activations(shape)
    turned = bool(rng.random() < 0.5)
    w = draft.weights((width, depth) if turned else (depth, width))
    along = rng.random() < 0.1  # which cannot be taken out of the sum
    of_columns = ((width, 1) if turned else (width,)) if not along else ((depth,) if turned else (depth, 1))
    right = dequantize(b, w, draft.scale(of_columns if rng.random() < 0.6 else ()), draft.point(w.dtype))
    right = library.transpose(b, right, (1, 0)) if turned else right
    left = dequantize(b, q, draft.scale((rows, 1) if rng.random() < 0.2 else ()), point)
    if rng.random() < 0.3:
        left = library.reshape(b, left, (*left.shape[:-1], 1, depth))
    return library.matmul(b, left, right)


def _convolution(draft: _Draft) -> Node:
    rng, b = draft.rng, draft.b
    groups, channels, out = (int(chosen(rng, sizes)) for sizes in ((1, 1, 2), (1, 2, 3, 4, 6), (1, 4, 6, 9)))
    q, point = draft.activations((1, groups * channels, int(chosen(rng, (3, 5, 6))), 5))
    w = draft.weights((groups * out, channels, int(chosen(rng, (1, 3))), int(chosen(rng, (1, 2, 3)))))
    step = int(chosen(rng, (1, 1, 2)))
    padding = tuple((int(rng.integers(2)), int(rng.integers(2))) for _ in range(2))
    op = Conv((step, 1), padding, (1, 1), (1, 1), groups)
    return b.add(op, dequantize(b, q, draft.scale(), point), dequantize(b, w, draft.scale((groups * out, 1, 1, 1)), None))


def _integers(draft: _Draft) -> Node:
    """Products of bytes less their zero points, which may vary."""
    rng, b = draft.rng, draft.b
    rows, depth, width = int(chosen(rng, (1, 3, 6))), int(chosen(rng, DEPTHS)), int(chosen(rng, WIDTHS))
    q, point = draft.activations((rows, depth))
    w = draft.weights((depth, width))
    right = difference(b, w, draft.point(w.dtype, (width,) if rng.random() < 0.3 else ()))
    return b.add(Dot((1,), (0,), result=I32), difference(b, q, point), right)


def _round_trip(draft: _Draft) -> Node:
    rng, b = draft.rng, draft.b
    dtype = chosen(rng, (U8, I8, I16))
    x, scale, point = draft.param(F32, (int(chosen(rng, WIDTHS)), 7)), draft.scale((7,) if rng.random() < 0.3 else ()), draft.point(dtype)
    return dequantize(b, quantize(b, x, scale, point, dtype), scale, point)


LAYERS = (_product, _product, _convolution, _convolution, _integers, _round_trip)
