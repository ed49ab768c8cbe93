"""Graphs that reduce, sort and scan arrays along axes of any length.

What lowering makes of these depends on the length of the axis, on which axis it is, on how long the others are and on the dtype: spelled
out, a loop with or without vectors, by blocks, with a rest; along rows, down columns, of a few elements side by side; all pairs or
digit by digit. So one array has a long axis or one near the width of vectors, others are short, and each result is seen as it is.

Guarantees: graphs of up to four such ops on one or two arrays, every one a result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from .. import library
from ..ir.dims import DimLike, bounds
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import ArgReduce, ArgSort, Cumulative, Elementwise, Reduce, Sort
from ..ir.ops.control import Param
from ..ir.types import ARRAY_DTYPES, BF16, BOOL, F16, F32, F64, I32, I64, DType
from .rebuild import chosen
from .sizes import LONG, SHORT, UPPER, random_symbol

MOST = 5000  # elements of an array
DTYPES: tuple[DType, ...] = (F32, F32, F32, F64, F64, F16, BF16, I32, I64, BOOL)
SEED_DTYPES: tuple[DType, ...] = (F32, I32, F16, F64)
SEED_SHAPES: tuple[tuple[int, ...], ...] = ((70, 17), (9, 33), (130,), (2, 35, 3))  # axes with a rest: first, last and between
VECTORS = (4, 7, 8, 9, 16, 19)  # about the width of vectors


def axis_graph(rng: np.random.Generator) -> Graph:
    """Some ops along axes of one array, or of it and what a function of it and another gives."""
    b = Builder()
    dtype = chosen(rng, ARRAY_DTYPES) if rng.random() < 0.2 else chosen(rng, DTYPES)
    shape = axis_shape(rng)
    params = [b.add(Param("x0", dtype, shape))]
    x = params[0]
    if rng.random() < 0.3:
        params.append(b.add(Param("x1", dtype, shape)))
        x = b.add(Elementwise("xor" if dtype.is_bool else chosen(rng, ("add", "sub", "max"))), *params)
    results = [_result(b, rng, x) for _ in range(int(rng.integers(2, 5)))]
    return Graph("axes", params, list(dict.fromkeys(results)))


def axis_seeds() -> Iterator[Graph]:
    """Every op along every axis of some shapes, each a result: sums, extremes and their places, sorting and running sums."""
    for dtype, shape in itertools.product(SEED_DTYPES, SEED_SHAPES):
        for axis in range(len(shape)):
            for ops in ((Reduce("sum", (axis,)), Reduce("max", (axis,)), ArgReduce("min", axis), Cumulative("sum", axis, False, False)),
                        (ArgSort(axis, True), Sort(axis, False))):
                b = Builder()
                x = b.add(Param("x0", dtype, shape))
                yield Graph("axes", [x], [b.add(op, x) for op in ops])


def axis_shape(rng: np.random.Generator) -> tuple[DimLike, ...]:
    """One to three axes; one of them long, about the width of vectors, or a symbol."""
    sizes: list[DimLike] = [chosen(rng, chosen(rng, (LONG, VECTORS)))]
    if rng.random() < 0.2:
        sizes = [random_symbol(rng)]
    for _ in range(int(rng.integers(0, 3))):
        sizes.append(chosen(rng, chosen(rng, (SHORT, VECTORS, UPPER))))
    while math.prod(float(bounds(n)[1]) for n in sizes) > MOST:
        sizes.pop()
    return tuple(sizes[int(i)] for i in rng.permutation(len(sizes)))


def _result(b: Builder, rng: np.random.Generator, x: Node) -> Node:
    """One op along an axis that has an element, or a reduction of several; with a function behind it now and then."""
    axes = [a for a, n in enumerate(x.shape) if bounds(n)[0] >= 1]
    if not axes:
        return x
    axis, draw, dtype = chosen(rng, axes), rng.random(), x.dtype
    if draw < 0.5:
        several = tuple(a for a in axes if a == axis or rng.random() < 0.3)
        kinds = ("and", "or", "max", "min") if dtype.is_bool else ("sum", "max", "min") if dtype.is_float else ("sum", "prod", "max", "min")
        made = b.add(Reduce(chosen(rng, kinds), several), x)
    elif draw < 0.65:
        made = b.add(ArgReduce(chosen(rng, ("max", "min")), axis), x)
    elif draw < 0.8:
        made = b.add(ArgSort(axis, bool(rng.integers(2))), x)
    elif draw < 0.9 or dtype.is_bool:
        made = b.add(Sort(axis, bool(rng.integers(2))), x)
    else:
        made = b.add(Cumulative(chosen(rng, ("sum", "max", "min")), axis, False, bool(rng.integers(2))), x)
    return made if made.dtype.is_bool or rng.random() < 0.7 else library.scalar(b, "neg", made)
