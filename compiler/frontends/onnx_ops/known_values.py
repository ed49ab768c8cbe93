"""What an integer-like value is known to hold at import: arithmetic on sizes, followed through the nodes that do it.

Exported models compute shapes with tensors: Shape, Gather, Add, Concat, Reshape. `KnownValues.of(node)` reads such a
chain back. A known value is a NumPy array of the node's shape: of the node's own dtype where every element is a number,
of dtype object where some element is a `Dim` (the others are Python ints, or `Ratio` for a quotient inside float
arithmetic). `None` means: decided by data, or too large to be worth knowing.

Assumes: sizes stay below 2**31 and, inside float32 arithmetic, below 2**24, so that casts between the integer dtypes
and to float change nothing.
Guarantees: what is returned is the value for every binding of the symbols; nothing is guessed. Walks are iterative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from msgspec import Struct

from ...ir.dims import Dim, DimLike, bounds, ceildiv, compare, dim_max, dim_min
from ...ir.errors import TilewrightError
from ...ir.graph import Array, Node
from ...ir.ops.compute import Cast, Cumulative, Elementwise, Reduce
from ...ir.ops.control import Composite, Fusion, Get, If, MakeTuple, Param, Scan, While
from ...ir.ops.shape import Broadcast, Concat, GatherND, Pad, Reshape, ScatterND, SizeOf, Slice, Take, TakeAlong, Transpose, UpdateSlice
from ...ir.types import I32, I64, DType, TensorType

LIMIT = 1 << 14                 # elements: shapes and index tables, not weights
MOST_CONTENTS = 64              # elements of an input whose contents may be known: shapes, axes and counts
LARGEST_DENOMINATOR = 1 << 10   # a float factor must be a fraction this simple to be followed exactly


class Ratio(Struct, frozen=True):
    """numerator / denominator inside float arithmetic on sizes, before a floor, ceil or cast makes it a size again."""

    numerator: DimLike
    denominator: int


class Open(Struct, frozen=True):
    """An element of which nothing is known, beside others that are: it may be moved, and what is computed of it is as open."""


OPEN = Open()
Element = int | bool | float | Dim | Ratio | Open

# These only move elements, so their NumPy meaning serves arrays of objects as well.
MOVES = (Broadcast, Concat, GatherND, Pad, Reshape, Slice, Take, TakeAlong, Transpose, UpdateSlice)
OPAQUE = (Param, Composite, Fusion, If, While, Scan, MakeTuple, Get)


class Unknown(Exception):
    """Raised inside this module where an element is not decided at compile time."""


class KnownValues:
    """Answers for the nodes of one import; remembers what it worked out."""

    def __init__(self) -> None:
        self._values: dict[Node, Array | None] = {}

    def assume(self, node: Node, value: Array) -> None:
        """Declares what a parameter of a body holds."""
        self._values[node] = value

    def of(self, node: Node) -> Array | None:
        """The value as an array (see the module's text), or None."""
        value = self._found(node)
        return None if value is None or value.dtype == object and any(e is OPEN for e in value.flat) else value

    def _found(self, node: Node) -> Array | None:
        """The value, some elements of which may be open."""
        stack = [node]
        while stack:
            top = stack[-1]
            if top in self._values:
                stack.pop()
                continue
            if not _is_candidate(top):
                self._values[top] = _no_elements(top)
                continue
            pending = [x for x in top.inputs if x not in self._values]
            if pending and not any(self._values.get(x, ()) is None for x in top.inputs):
                stack.append(pending[0])
                continue
            operands = [self._values.get(x) for x in top.inputs]
            self._values[top] = None if any(v is None for v in operands) else _evaluate(top, operands)
        return self._values[node]


def may_hold_sizes(node: Node) -> bool:
    """Whether an input is of the kind that shapes are given as: a few integers, as many as its type says."""
    shape = node.tensor.shape
    if node.dtype not in (I32, I64) or len(shape) > 1:
        return False
    return not shape or isinstance(shape[0], int) and 0 < shape[0] <= MOST_CONTENTS


def _is_candidate(node: Node) -> bool:
    if isinstance(node.op, OPAQUE) or node.op.effect or not isinstance(node.type, TensorType):
        return False
    elements = 1
    for size in node.type.shape:
        if not isinstance(size, int):
            return False
        elements *= size
    return elements <= LIMIT


def _no_elements(node: Node) -> Array | None:
    """What holds no element is known, wherever it comes from."""
    if not isinstance(node.type, TensorType) or not node.type.is_static or 0 not in node.type.shape:
        return None
    return np.empty(node.type.static_shape, node.dtype.numpy)


def _evaluate(node: Node, operands: Sequence[Any]) -> Array | None:
    try:
        if any(v.dtype == object for v in operands) or isinstance(node.op, SizeOf):
            return _narrow(_symbolic(node, operands), node.dtype)
        return np.asarray(node.op.evaluate(operands, {}))
    except (Unknown, TilewrightError, NotImplementedError):
        return None


def _narrow(value: Array, dtype: DType) -> Array:
    """Back to the plain dtype where no element is symbolic."""
    if any(isinstance(e, (Dim, Ratio, Open)) for e in value.flat):
        return value
    return value.astype(dtype.numpy)


def _objects(elements: Sequence[Element], shape: tuple[int, ...]) -> Array:
    result = np.empty(len(elements), dtype=object)
    for place, element in enumerate(elements):
        result[place] = element
    return result.reshape(shape)


def _elements(value: Array) -> list[Element]:
    return list(value.flat) if value.dtype == object else value.reshape(-1).tolist()


def _symbolic(node: Node, operands: Sequence[Array]) -> Array:
    shape = node.tensor.static_shape
    match node.op:
        case SizeOf(size=size):
            return _objects([size], shape)
        case Elementwise(function=name):
            return _map_elements(name, operands, shape, node.dtype)
        case Cast(dtype=dtype):
            return _objects([_apply(lambda e: _cast(e, dtype, node.inputs[0].dtype), e) for e in _elements(operands[0])], shape)
        case Reduce(kind=kind, axes=axes) if kind in FOLDS:
            return _reduce(kind, axes, operands[0], shape)
        case Cumulative(kind=kind, axis=axis, exclusive=False, reverse=False) if kind in FOLDS:
            return _accumulate(kind, axis, operands[0])
        case op if isinstance(op, MOVES) or isinstance(op, ScatterND) and op.kind == "set":
            _need_plain_indices(op, operands)
            return np.asarray(op.evaluate(operands, {}), dtype=object)
    raise Unknown


def _need_plain_indices(op: object, operands: Sequence[Array]) -> None:
    places = operands[1:2] if isinstance(op, (Take, TakeAlong, GatherND, ScatterND)) else ()
    if any(p.dtype == object for p in places):
        raise Unknown


def _reduce(kind: str, axes: tuple[int, ...], value: Array, shape: tuple[int, ...]) -> Array:
    rest = [a for a in range(value.ndim) if a not in axes]
    rows = np.transpose(value, (*rest, *axes)).reshape(int(np.prod(shape)), -1)
    return _objects([_fold(kind, _elements(row)) for row in rows], shape)


def _fold(kind: str, elements: Sequence[Element]) -> Element:
    if not elements:
        if kind in ("max", "min"):
            raise Unknown
        return 1 if kind == "prod" else 0
    total = elements[0]
    for element in elements[1:]:
        total = _apply(FOLDS[kind], total, element)
    return total


def _apply(function: Callable[..., Element], *operands: Element) -> Element:
    return OPEN if any(x is OPEN for x in operands) else function(*operands)


def _accumulate(kind: str, axis: int, value: Array) -> Array:
    lines = np.moveaxis(value.astype(object), axis, -1)
    result = np.empty(lines.shape, dtype=object)
    for place in np.ndindex(*lines.shape[:-1]):
        for last in range(lines.shape[-1]):
            element = lines[(*place, last)]
            result[(*place, last)] = _apply(FOLDS[kind], result[(*place, last - 1)], element) if last else element
    return np.moveaxis(result, -1, axis)


def _map_elements(name: str, operands: Sequence[Array], shape: tuple[int, ...], dtype: DType) -> Array:
    table = FLOAT_FUNCTIONS if dtype.is_float else INTEGER_FUNCTIONS
    function = table.get(name) or FUNCTIONS.get(name)
    if function is None:
        raise Unknown
    columns = [_elements(v) for v in operands]
    return _objects([_apply(function, *row) for row in zip(*columns)], shape)


# --- one element -----------------------------------------------------------------------------------------------------


def _ratio(x: Element) -> Ratio:
    """Any finite element as numerator over denominator; Unknown for a float that is no simple fraction."""
    if isinstance(x, Open):
        raise Unknown
    if isinstance(x, Ratio):
        return x
    if isinstance(x, float):
        if x != x or x in (float("inf"), float("-inf")):
            raise Unknown
        fraction = Fraction(x)
        if fraction.denominator > LARGEST_DENOMINATOR:
            raise Unknown
        return Ratio(fraction.numerator, fraction.denominator)
    return Ratio(x, 1)


def _quotient(numerator: DimLike, denominator: int) -> Element:
    if denominator < 0:
        numerator, denominator = -numerator, -denominator
    if denominator == 1:
        return numerator
    if numerator % denominator == 0:
        return numerator // denominator
    return Ratio(numerator, denominator)


def _add(x: Element, y: Element) -> Element:
    a, b = _ratio(x), _ratio(y)
    return _quotient(a.numerator * b.denominator + b.numerator * a.denominator, a.denominator * b.denominator)


def _neg(x: Element) -> Element:
    a = _ratio(x)
    return _quotient(-a.numerator, a.denominator)


def _sub(x: Element, y: Element) -> Element:
    return _add(x, _neg(y))


def _mul(x: Element, y: Element) -> Element:
    a, b = _ratio(x), _ratio(y)
    return _quotient(a.numerator * b.numerator, a.denominator * b.denominator)


def _div(x: Element, y: Element) -> Element:
    a, b = _ratio(x), _ratio(y)
    if isinstance(b.numerator, int) and b.numerator:
        return _quotient(a.numerator * b.denominator, a.denominator * b.numerator)
    if a == b:
        return _positive(b.numerator) and 1
    raise Unknown


def _positive(x: DimLike) -> bool:
    if bounds(x)[0] > 0:
        return True
    raise Unknown


def _size(x: Element) -> DimLike:
    if isinstance(x, (int, Dim)):
        return x
    raise Unknown


def _floordiv(x: Element, y: Element) -> Element:
    divisor = _size(y)
    _positive(divisor)
    return _size(x) // divisor


def _mod(x: Element, y: Element) -> Element:
    divisor = _size(y)
    _positive(divisor)
    return _size(x) % divisor


def _rem(x: Element, y: Element) -> Element:
    return _mod(_not_negative(x), y)


def _not_negative(x: Element) -> DimLike:
    size = _size(x)
    if bounds(size)[0] < 0:
        raise Unknown
    return size


def _min(x: Element, y: Element) -> Element:
    return dim_min(_size(x), _size(y))


def _max(x: Element, y: Element) -> Element:
    return dim_max(_size(x), _size(y))


def _floor(x: Element) -> Element:
    a = _ratio(x)
    return a.numerator // a.denominator


def _ceil(x: Element) -> Element:
    a = _ratio(x)
    return ceildiv(a.numerator, a.denominator)


def _trunc(x: Element) -> Element:
    a = _ratio(x)
    _not_negative(a.numerator)
    return a.numerator // a.denominator


def _whole(x: Element) -> Element:
    """Rounding of what has no fraction."""
    return _size(x)


def _order(x: Element, y: Element) -> int:
    order = compare(_size(x), _size(y))
    if order is None:
        raise Unknown
    return order


def _equal(x: Element, y: Element) -> bool:
    return _order(x, y) == 0


def _at_most(x: Element, y: Element) -> bool:
    low, high = bounds(_size(y) - _size(x))
    if low >= 0 or high < 0:
        return low >= 0
    raise Unknown


def _less(x: Element, y: Element) -> bool:
    return not _at_most(y, x)


def _select(condition: Element, x: Element, y: Element) -> Element:
    if isinstance(condition, (Dim, Ratio)):
        raise Unknown
    return x if condition else y


def _sign(x: Element) -> Element:
    return _order(x, 0)


def _cast(x: Element, dtype: DType, source: DType) -> Element:
    if not isinstance(x, (Dim, Ratio)):
        return x
    if dtype.is_bool:
        return not _equal(x, 0)
    if source.is_float and not dtype.is_float:
        x = _trunc(x)
    if dtype.bits < 32 or isinstance(x, Ratio) and not dtype.is_float:
        raise Unknown
    return x


# what to combine in a reduction, what holds for both kinds of numbers, and what only for one
FOLDS: dict[str, Callable[[Any, Any], Element]] = {"sum": _add, "prod": _mul, "max": _max, "min": _min}
FUNCTIONS: dict[str, Callable[..., Element]] = {
    "add": _add, "sub": _sub, "mul": _mul, "neg": _neg, "max": _max, "min": _min, "fmax": _max, "fmin": _min,
    "abs": _not_negative, "sign": _sign, "select": _select,
    "eq": _equal, "ne": lambda x, y: not _equal(x, y), "lt": _less, "le": _at_most,
    "gt": lambda x, y: _less(y, x), "ge": lambda x, y: _at_most(y, x),
}
INTEGER_FUNCTIONS: dict[str, Callable[..., Element]] = {"floordiv": _floordiv, "mod": _mod, "rem": _rem}
FLOAT_FUNCTIONS: dict[str, Callable[..., Element]] = {
    "div": _div, "floor": _floor, "ceil": _ceil, "trunc": _trunc, "round": _whole,
    "floordiv": lambda x, y: _floor(_div(x, y)),
}
