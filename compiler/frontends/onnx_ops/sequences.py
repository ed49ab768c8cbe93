"""ONNX sequences and optional values, followed at import: a sequence is the list of its elements, each with a type of its own.

Nothing of them is left in the graph. How many elements a sequence has is known at import, and so is whether an optional value is
there; UnsupportedError where data decides either. Of a sequence whose elements have sizes that data decides only the length can be
asked. A position may be decided by data where all elements have one type.

Guarantees: the results are as the standard says; a position outside of the sequence is an error, at run time where data decides it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir.dims import Dim, DimLike, compare
from ...ir.graph import Node
from ...ir.ops.shape import Concat, Take
from ...ir.types import BOOL, I64, DType
from ...library import expand, reduce, slice_axis, squeeze, wrap_indices
from .by_data import number, size, vector
from .context import Absent, Context, Counted, Listed, Operators, Subgraph, Value, describe

MOST_ELEMENTS = 1 << 12    # of a sequence; each is a value of its own


def elements_of(c: Context, value: Value | None) -> tuple[Node, ...]:
    if isinstance(value, Counted):
        raise value.refusal
    if not isinstance(value, Listed):
        c.fail(f"a sequence is needed, found {describe(value)}")
    return value.elements


def listed(c: Context, elements: Sequence[Node], dtype: DType | None = None) -> Listed:
    """A sequence of these, all of one dtype."""
    if len(elements) > MOST_ELEMENTS:
        c.unsupported(f"the sequence would have {len(elements)} elements, more than {MOST_ELEMENTS}")
    dtypes = {x.dtype for x in elements} | ({dtype} if dtype is not None else set())
    if len(dtypes) > 1:
        c.fail(f"the elements of a sequence have different dtypes: {', '.join(sorted(map(str, dtypes)))}")
    return Listed(tuple(elements), dtypes.pop() if dtypes else None)


def _known_place(c: Context, position: Node, count: int, last: int) -> int:
    """A position that must be known, from 0 to `last`; negative ones are counted from the back of `count` elements."""
    found = c.integers(position, "position")
    if len(found) != 1:
        c.fail(f"'position' must be one number, found {len(found)}")
    if not -count <= found[0] <= last:
        c.fail(f"the position {found[0]} is outside {-count}..{last}")
    return found[0] if found[0] >= 0 else found[0] + count


# --- making and taking apart -----------------------------------------------------------------------------------------


def sequence_construct(c: Context, *inputs: Value) -> Listed:
    return listed(c, [c.tensor(x) for x in inputs])


def sequence_empty(c: Context, *, dtype: int = 1) -> Listed:
    return Listed((), c.dtype(dtype))


def sequence_at(c: Context, input_sequence: Value, position: Node) -> Node:
    elements = elements_of(c, input_sequence)
    if not elements:
        c.fail("the sequence has no elements")
    if c.value(position) is not None:
        return elements[_known_place(c, position, len(elements), len(elements) - 1)]
    if any(x.type != elements[0].type for x in elements):
        c.unsupported("the position is computed from data, and the elements have different types",
                      hint="give the position as a constant")
    whole = c.b.add(Concat(0), *[expand(c.b, x, (0,)) for x in elements])
    place = wrap_indices(c.b, c.reshape(c.cast(position, I64), ()), len(elements))
    return c.b.add(Take(0), whole, place)


def sequence_insert(c: Context, input_sequence: Value, tensor: Value, position: Node | None = None) -> Listed:
    elements = list(elements_of(c, input_sequence))
    count = len(elements)
    elements.insert(count if position is None else _known_place(c, position, count, count), c.tensor(tensor))
    assert isinstance(input_sequence, Listed)
    return listed(c, elements, input_sequence.dtype)


def sequence_erase(c: Context, input_sequence: Value, position: Node | None = None) -> Listed:
    elements = list(elements_of(c, input_sequence))
    if not elements:
        c.fail("the sequence has no elements")
    del elements[-1 if position is None else _known_place(c, position, len(elements), len(elements) - 1)]
    assert isinstance(input_sequence, Listed)
    return Listed(tuple(elements), input_sequence.dtype)


def sequence_length(c: Context, input_sequence: Value) -> Node:
    if isinstance(input_sequence, Counted):
        count = c.require(c.constant(input_sequence.count, I64), input_sequence.condition)
        c.known.assume(count, np.array(input_sequence.count, dtype=np.int64))
        c.left_over.append((c.b, input_sequence.condition))     # for where only sizes hang on it
        return count
    return c.constant(len(elements_of(c, input_sequence)), I64)


# --- splitting and joining -------------------------------------------------------------------------------------------


def split_to_sequence(c: Context, x: Node, split: Node | None = None, *, axis: int = 0, keepdims: int = 1) -> Listed | Counted:
    place = c.axis(axis, x.rank)
    if split is not None and split.rank and not c.all_known(split) and isinstance(split.tensor.elements, int):
        return _counted_parts(c, x.shape[place], split, split.tensor.elements)
    sizes = _part_sizes(c, x.shape[place], split)
    total = sum(sizes[1:], sizes[0]) if sizes else 0
    if compare(total, x.shape[place]) in (-1, 1):
        c.fail(f"the parts {tuple(sizes)} add up to {total}, axis {axis} has {x.shape[place]}")
    x = c.refine(x, [total if a == place else n for a, n in enumerate(x.shape)])
    parts: list[Node] = []
    start: DimLike = 0
    for n in sizes:
        part = slice_axis(c.b, x, place, start, n)
        parts.append(part if keepdims or split is not None else squeeze(c.b, part, (place,)))
        start = start + n
    return Listed(tuple(parts), x.dtype)


def _counted_parts(c: Context, extent: DimLike, split: Node, count: int) -> Counted:
    """As many parts as sizes are listed, none of which is known; they must add up."""
    sizes = vector(c, split)
    fits = c.scalar("eq", reduce(c.b, "sum", sizes, (0,)), size(c, extent))
    condition = c.scalar("and", fits, reduce(c.b, "and", c.apply("ge", sizes, number(c, 0)), (0,)))
    refusal = c.decided("input 'split' is computed from data, and the sizes of the elements hang on it", split)
    return Counted(count, condition, refusal)


def _part_sizes(c: Context, extent: DimLike, split: Node | None) -> list[DimLike]:
    """How long the parts are: as listed, or as many of one length as there are, and what remains."""
    if split is not None and split.rank:
        sizes = list(c.sizes(split, "split"))
        if any(isinstance(n, int) and n < 0 for n in sizes):
            c.fail(f"'split' holds negative sizes: {tuple(sizes)}")
        return sizes
    (part,) = (1,) if split is None else c.integers(split, "split")
    c.positive(part, "'split'")
    if isinstance(extent, Dim):
        c.unsupported(f"the axis has the symbolic size {extent}, which decides how many elements the sequence has",
                      hint="bind the dim with dims={...}")
    if extent > part * MOST_ELEMENTS:
        c.unsupported(f"the sequence would have more than {MOST_ELEMENTS} elements")
    whole: list[DimLike] = [part] * (extent // part)
    return [*whole, extent % part] if extent % part else whole


def concat_from_sequence(c: Context, input_sequence: Value, *, axis: int, new_axis: int = 0) -> Node:
    elements = elements_of(c, input_sequence)
    if not elements:
        c.fail("the sequence has no elements")
    ranks = {x.rank for x in elements}
    if len(ranks) > 1:
        c.fail(f"the elements have different ranks: {', '.join(map(str, sorted(ranks)))}")
    place = c.axis(axis, elements[0].rank + bool(new_axis))
    if new_axis:
        elements = tuple(expand(c.b, x, (place,)) for x in elements)
    first = elements[0].shape
    aligned = [c.refine(x, [n if a == place else first[a] for a, n in enumerate(x.shape)]) for x in elements]
    return c.b.add(Concat(place), *aligned)


def sequence_map(c: Context, input_sequence: Value, *additional_inputs: Value, body: Subgraph) -> tuple[Listed, ...]:
    count = len(elements_of(c, input_sequence))
    operands = (input_sequence, *additional_inputs)
    for place, value in enumerate(operands):
        if isinstance(value, Listed) and len(value.elements) != count:
            c.fail(f"input {place} has {len(value.elements)} elements, the first has {count}")
    columns: list[list[Node]] = [[] for _ in range(body.output_count)]
    for turn in range(count):
        c.unroll(body)
        given = [x.elements[turn] if isinstance(x, Listed) else x for x in operands]
        for column, result in zip(columns, body.inline(c, given), strict=True):
            column.append(c.tensor(result))
    return tuple(listed(c, column) for column in columns)


# --- optional values -------------------------------------------------------------------------------------------------


def optional(c: Context, value: Value | None = None, *, type: object = None) -> Value:
    if value is None and type is None:
        c.fail("has neither an input nor a type")
    return Absent() if value is None else value


def optional_has_element(c: Context, value: Value | None = None) -> Node:
    return c.constant(value is not None and not isinstance(value, Absent), BOOL)


def optional_get_element(c: Context, value: Value) -> Value:
    if isinstance(value, Absent):
        c.fail("the optional value is empty")
    return value


OPS: Operators = {
    "ConcatFromSequence": concat_from_sequence, "Optional": optional, "OptionalGetElement": optional_get_element,
    "OptionalHasElement": optional_has_element, "SequenceAt": sequence_at, "SequenceConstruct": sequence_construct,
    "SequenceEmpty": sequence_empty, "SequenceErase": sequence_erase, "SequenceInsert": sequence_insert,
    "SequenceLength": sequence_length, "SequenceMap": sequence_map, "SplitToSequence": split_to_sequence,
}
