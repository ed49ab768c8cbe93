"""Scalar functions and casts on single NumPy scalars (Python integers for indices), for the interpreter of kernels.

Each gives what `evaluate_scalar` or `cast_array` gives for an array of one element, to the bit, in a fraction of the time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from .ops.scalar import SCALARS, evaluate_scalar
from .types import DTYPES, INDEX, DType


def scalar_caller(name: str, dtype: DType) -> Callable[..., Any]:
    """The function on NumPy scalars whose last operand has this dtype (Python integers for index)."""
    row = SCALARS[name]
    if name == "select":
        return _select
    if dtype.is_bool and name == "not":
        return operator.not_
    if dtype == INDEX:
        return _INDEX_DIRECT.get(name) or _through_arrays(name, INDEX, row.rule in ("compare", "test"))
    if not (dtype.is_float and dtype.bits == 16):
        if name in _DIRECT and not dtype.is_bool:
            return _DIRECT[name]
        if name == "fma" and dtype.bits == 32:
            return _fused_float32
        if isinstance(row.numpy, np.ufunc):
            return row.numpy
    return _through_arrays(name, dtype, True)


def _select(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


def _fused_float32(a: Any, b: Any, c: Any) -> Any:
    """Python's floats are doubles, which hold the product. Where they do not hold the sum, the definition's care is needed for
    one rounding (the error of a sum: Knuth, Two-Sum)."""
    product, addend = float(a) * float(b), float(c)
    total = product + addend
    part = total - product
    if (product - (total - part)) + (addend - part):
        return np.float32(evaluate_scalar("fma", [np.asarray(v, np.float32) for v in (a, b, c)]))
    return np.float32(total)


# NumPy's scalars wrap integers and round floats as its arrays do
_DIRECT: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "neg": operator.neg,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "and": operator.and_, "or": operator.or_, "xor": operator.xor,
}
_INDEX_DIRECT: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg, "abs": abs, "max": max, "min": min,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}


def _through_arrays(name: str, dtype: DType, plain: bool) -> Callable[..., Any]:
    first = DTYPES["bool"].numpy

    def call(*values: Any) -> Any:
        arrays = [np.asarray(v, dtype=dtype.numpy) for v in values]
        if name == "select":
            arrays[0] = np.asarray(values[0], dtype=first)
        elif name == "dot_bfloats":
            arrays[:2] = [np.asarray(v, dtype=DTYPES["u32"].numpy) for v in values[:2]]
        result = np.asarray(evaluate_scalar(name, arrays))[()]
        return result if plain else int(result)

    return call


def cast_caller(source: DType, target: DType) -> Callable[[Any], Any]:
    """The cast of one NumPy scalar."""
    if source == INDEX and target in (INDEX, DTYPES["i64"]):
        return int if target == INDEX else np.int64
    if target == INDEX and (source.is_bool or (source.kind == "i")):
        return int
    kind: Any = target.numpy.type
    if target.is_bool:
        return lambda value: kind(value != 0)
    if source.is_bool:
        return lambda value: kind(bool(value))
    if source.is_float and target.is_integer:
        return _truncating(target)
    if target == INDEX:
        return lambda value: int(value.astype(np.int64))
    if source == INDEX:
        return lambda value: np.int64(value).astype(kind)
    return lambda value: value.astype(kind)  # a scalar's own conversion, which is that of arrays


def _truncating(target: DType) -> Callable[[Any], Any]:
    """A float to an integer: towards zero, at most to the dtype's ends; NaN gives 0."""
    kind: Callable[[Any], Any] = int if target == INDEX else target.numpy.type
    lowest, highest = int(target.lowest), int(target.highest)

    def call(value: Any) -> Any:
        number = float(value)
        if lowest < number < highest:
            return kind(int(number))
        return kind(0 if number != number else lowest if number <= lowest else highest)

    return call


def bitcast_caller(source: DType, target: DType) -> Callable[[Any], Any]:
    def call(value: Any) -> Any:
        result = np.asarray(value, dtype=source.numpy).reshape(1).view(target.numpy)[0]
        return int(result) if target == INDEX else result

    return call
