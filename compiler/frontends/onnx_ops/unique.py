"""ONNX Unique: the different elements of a tensor, or the different slices along an axis.

Equal elements are brought together by a stable sort, so the first of each group is the first occurrence. How many groups there are
is what the model declares for the outputs; a different number is an error at run time.

Guarantees: as NumPy's `unique`: NaNs are one element, and last, but slices that hold a NaN equal nothing; 0 and -0 are equal.
"""

from __future__ import annotations

from ...ir.dims import DimLike, product
from ...ir.graph import Node
from ...ir.ops.compute import ArgSort, Cumulative
from ...ir.ops.shape import Concat, Iota, Take
from ...ir.types import BOOL, I64
from ...library import reduce, size_value, slice_axis, transpose
from .by_data import number
from .context import Context, Operators
from .selection import chosen_places

MOST_COLUMNS = 64       # elements of a slice; one sort for each
OUTPUTS = (0, 1, 3)     # whose sizes are the number of groups


def unique(c: Context, x: Node, *, axis: int | None = None, sorted: int = 1) -> tuple[Node, ...]:
    place = 0 if axis is None else c.axis(axis, x.rank)
    count = _declared_count(c, place)
    flat = c.reshape(x, (product(x.shape),)) if axis is None else transpose(
        c.b, x, (place, *(a for a in range(x.rank) if a != place)))
    length = flat.shape[0]
    rows = c.reshape(flat, (length, product(flat.shape[1:])))
    order = _lexicographic(c, rows)
    begins = _begins(c, c.b.add(Take(0), rows, order), axis is None)
    heads = chosen_places(c, begins, count)                      # where the groups begin, in order
    group = c.apply("sub", c.b.add(Cumulative("sum", 0), c.cast(begins, I64)), number(c, 1))
    ends = c.b.add(Concat(0), slice_axis(c.b, heads, 0, 1, count - 1), c.reshape(size_value(c.b, length), (1,))) \
        if count != 0 else heads
    first, counts = c.b.add(Take(0), order, heads), c.scalar("sub", ends, heads)
    inverse = c.b.add(Take(0), group, _sorted_places(c, order))
    if not sorted:
        appearance = _sorted_places(c, first)
        first, counts = (c.b.add(Take(0), v, appearance) for v in (first, counts))
        inverse = c.b.add(Take(0), _sorted_places(c, appearance), inverse)
    found = c.b.add(Take(0), flat, first)
    if axis is not None:
        found = transpose(c.b, found, (*range(1, place + 1), 0, *range(place + 1, x.rank)))
    return found, first, inverse, counts


def _declared_count(c: Context, axis: int) -> DimLike:
    shapes = [(shape, axis if output == 0 else 0) for output, shape in enumerate(c.declared) if output in OUTPUTS and shape]
    count = next((shape[place] for shape, place in shapes if place < len(shape) and shape[place] is not None), None)
    if count is None:
        output = next((i for i in OUTPUTS if i < len(c.outputs) and c.outputs[i]), None)
        c.decided_by_data("the number of different elements is decided by data, and the model does not declare it",
                          output=output, axis=axis if output == 0 else 0)
    return count


def _sorted_places(c: Context, x: Node) -> Node:
    return c.b.add(ArgSort(0), c.cast(x, I64) if x.dtype == BOOL else x)


def _lexicographic(c: Context, rows: Node) -> Node:
    """The places of the rows in order: the last column is sorted first, since each sort keeps what is equal in place."""
    columns = rows.shape[1]
    if not isinstance(columns, int) or columns > MOST_COLUMNS:
        c.unsupported(f"slices of {columns} elements; up to {MOST_COLUMNS} are supported")
    order = c.b.add(Iota(I64, (rows.shape[0],), 0))
    for column in reversed(range(columns)):
        values = c.reshape(slice_axis(c.b, rows, 1, column, 1), (rows.shape[0],))
        moved = c.b.add(Take(0), values, order) if column + 1 < columns else values
        order = c.b.add(Take(0), order, _sorted_places(c, moved))
    return order


def _begins(c: Context, rows: Node, one_nan: bool) -> Node:
    """Whether each row differs from that before it."""
    place = c.b.add(Iota(I64, (rows.shape[0],), 0))
    before = c.b.add(Take(0), rows, c.apply("max", c.apply("sub", place, number(c, 1)), number(c, 0)))
    same = c.scalar("eq", rows, before)
    if one_nan and rows.dtype.is_float:
        same = c.scalar("or", same, c.scalar("and", c.scalar("ne", rows, rows), c.scalar("ne", before, before)))
    differs = c.scalar("not", reduce(c.b, "and", same, (1,)))
    return c.scalar("or", differs, c.apply("eq", place, number(c, 0)))


OPS: Operators = {"Unique": unique}
