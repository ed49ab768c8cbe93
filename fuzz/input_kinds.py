"""Inputs for graphs, of several kinds: which values a program meets decides what it can show.

    plain    small whole numbers, for which sums and products are exact
    special  the same with some NaN, infinities and -0.0
    extreme  rows along any axis and whole arrays of one special value, and the ends of integers
    normal   floats that fill their mantissas
    borders  numbers at the borders of dtypes: half way between neighbours of a narrower float and next to there, the ends of
             integers and beyond, the least and the greatest floats, distances of shifts about the width
    sided    small whole numbers of one sign, or truth values that are nearly all the same: what is wrongly let into a reduction
             (a zero, a value that no element has) shows
    distinct whole numbers that are all different, as far as the dtype has so many: the extreme of a long axis is one element's, and
             whichever element is taken instead of another shows

Guarantees: the same generator gives the same inputs; each array has the dtype and shape of its parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..ir.dims import evaluate
from ..ir.graph import Graph
from ..ir.types import ARRAY_DTYPES, DType, dtype_of
from .generate import random_array, random_binding
from .shadow_values import FORMATS, Array, Format
from .subject import Refused

INPUT_KINDS = ("plain", "special", "extreme", "normal", "borders", "sided", "distinct")
SHARES = (0.25, 0.15, 0.1, 0.15, 0.15, 0.1, 0.1)
OFFSETS = (-1.0, -0.5, 0.0, 0.5, 1.0, 45.0)  # from the end of an integer dtype; the last wraps to something else
WIDTHS = (8, 16, 32, 64)


def random_kind(rng: np.random.Generator) -> str:
    return INPUT_KINDS[int(rng.choice(len(INPUT_KINDS), p=SHARES))]


def inputs_of_kind(graph: Graph, rng: np.random.Generator, kind: str) -> list[Array]:
    """Inputs of one of `INPUT_KINDS`. Refused where the sizes that are drawn make one of a parameter's negative."""
    binding = random_binding(graph, rng)
    shapes = [[evaluate(n, binding) for n in p.shape] for p in graph.params]
    for param, shape in zip(graph.params, shapes):
        if min(shape, default=0) < 0:
            raise Refused(f"no array has the sizes {shape}, as {param.type} asks for")
    return [array_of_kind(p.dtype, shape, rng, kind) for p, shape in zip(graph.params, shapes)]


def array_of_kind(dtype: DType, shape: Sequence[int], rng: np.random.Generator, kind: str) -> Array:
    if dtype.is_stored:
        return _stored(dtype, shape, rng, kind)
    array = random_array(dtype, shape, rng, kind == "special")
    makers = {"extreme": _make_extreme, "normal": _make_normal, "borders": _make_borders, "sided": make_sided, "distinct": _make_distinct}
    if kind in makers and array.size and (not dtype.is_bool or kind == "sided"):
        makers[kind](array, rng)
    return array


def _stored(dtype: DType, shape: Sequence[int], rng: np.random.Generator, kind: str) -> Array:
    """Small whole numbers of a dtype that is looked at by its bits alone, or any of its bytes."""
    if kind in ("plain", "sided", "distinct"):
        return np.asarray(rng.integers(-3, 4, tuple(shape))).astype(dtype.numpy)
    return np.asarray(rng.integers(0, 256, tuple(shape), np.uint8)).view(dtype.numpy)


def _is_float(array: Array) -> bool:
    return array.dtype in FORMATS


def _make_extreme(array: Array, rng: np.random.Generator) -> None:
    """In place: some rows along one of the axes of one special value each, or of one of their own, and some of these elsewhere; or one
    value everywhere. (Infinities twice as often: a row of them is what a reduction must begin with.)"""
    values: Sequence[float] = (np.nan, np.inf, -np.inf, np.inf, -np.inf, -0.0, 0.0)
    if not _is_float(array):
        ends = np.iinfo(array.dtype)
        values = (ends.min, ends.max, ends.min + 1, 0, ends.max // 2, 1)
    if rng.random() < 0.3 or not array.ndim:
        array[...] = values[int(rng.integers(len(values)))]
        return
    rows = np.moveaxis(array, int(rng.integers(array.ndim)), -1)
    for place in np.ndindex(rows.shape[:-1]):
        value = values[int(rng.integers(len(values)))]
        if rng.random() < 0.5:
            rows[place] = value if rng.random() < 0.8 or not rows.shape[-1] else rows[place][0]
        elif rng.random() < 0.5:
            rows[place][int(rng.integers(rows.shape[-1]))] = value


def _make_normal(array: Array, rng: np.random.Generator) -> None:
    """In place: floats of all magnitudes around one."""
    if _is_float(array):
        array[...] = (rng.standard_normal(array.shape) * 2.0 ** rng.integers(-3, 4, array.shape)).astype(array.dtype)


def make_sided(array: Array, rng: np.random.Generator) -> None:
    """In place: every number above or below zero; one truth value but for one element in some."""
    positive = array.dtype.kind == "u" or bool(rng.random() < 0.4)
    if array.dtype == np.bool_:
        array[...] = rng.random(array.shape) < (0.02 if positive else 0.98)
    else:
        size = np.abs(array) + np.ones_like(array)
        array[...] = size if positive else -size


def _make_distinct(array: Array, rng: np.random.Generator) -> None:
    """In place: the whole numbers around zero in any order, once each; those of narrow dtypes again and again."""
    many = min(array.size, 2 ** FORMATS[array.dtype].bits if _is_float(array) else 2 ** (8 * array.itemsize))
    first = 0 if array.dtype.kind == "u" else -(many // 2)
    array[...] = (first + rng.permutation(array.size) % many).reshape(array.shape).astype(array.dtype)


def _make_borders(array: Array, rng: np.random.Generator) -> None:
    """In place: most elements become such numbers, of one sort in an array so that its other elements are of a similar size."""
    dtype = dtype_of(array.dtype)
    replaced = rng.random(array.shape) < 0.75
    narrower = [form.bits for form in FORMATS.values() if dtype.is_float and form.bits < FORMATS[dtype.numpy].bits]
    if narrower and rng.random() < 0.6:
        made = _half_way(rng.choice(narrower, size=array.shape), FORMATS[dtype.numpy].bits, rng)
    else:
        sorts = _sorts(dtype)
        numbers = sorts[int(rng.integers(len(sorts)))]
        made = numbers[rng.integers(numbers.size, size=array.shape)]
    np.copyto(array, np.asarray(made).astype(array.dtype), where=replaced)


def _half_way(bits: Array, own: int, rng: np.random.Generator) -> Array:
    """Numbers half way between two neighbours of a narrower format, or the least step away from there. `bits`, `own`: of the
    significands of the narrower formats, one for each element, and of the array's own."""
    shape = bits.shape
    significand = rng.integers(2 ** (bits - 1), 2 ** bits)
    middle = significand + 0.5 + 2.0 ** (bits - own) * rng.integers(-1, 2, shape)
    return np.asarray(middle * rng.choice((-1.0, 1.0), shape) * 2.0 ** (rng.integers(-3, 6, shape) - bits + 1.0))


@lru_cache(maxsize=len(ARRAY_DTYPES))
def _sorts(dtype: DType) -> tuple[Array, ...]:
    """Sorts of numbers at borders that the dtype holds."""
    if not dtype.is_float:
        low, high = (int(end) for end in (np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max))
        powers = {sign * 2 ** n for bits in WIDTHS for n, sign in ((bits, 1), (bits - 1, 1), (bits - 1, -1))}
        near = [{n + offset for n in numbers for offset in (-1, 0, 1)} for numbers in ({0, low, high, *powers}, {0, *WIDTHS})]
        return tuple(np.array([n for n in sorted(numbers) if low <= n <= high], dtype.numpy) for numbers in (*near, {dtype.bits, 1}))
    form = FORMATS[dtype.numpy]
    whole = [sign * end + offset for bits in WIDTHS for sign in (-1, 1) for end in (2.0 ** bits, 2.0 ** (bits - 1)) for offset in OFFSETS]
    halves = [sign * (n + 0.5) for sign in (-1, 1) for n in range(6)]
    limits = [sign * n for sign in (-1, 1) for known in FORMATS.values() if known.bits <= form.bits for n in _limits(known)]
    return tuple(np.array([n for n in numbers if abs(n) <= form.largest]).astype(dtype.numpy) for numbers in (whole, halves, limits))


def _limits(form: Format) -> tuple[float, ...]:
    """The least and the greatest numbers of a format, and those from where on they are rounded to."""
    last_step = form.largest * form.epsilon / (2 - form.epsilon)
    return (form.smallest, form.smallest / 2, form.smallest * 1.5, form.normal, form.normal - form.smallest, form.largest,
            form.largest + min(last_step / 2, np.finfo(np.float64).max - form.largest), 0.0)
