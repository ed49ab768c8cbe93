"""Chains of operators slice by slice: what each member launches for each slice of rows, with kernels lowered for that many.

Assumes operators of one launch each that `scheduling.slicing` joined along the same rows. Guarantees: slices in the order of the rows,
each row in one of them; what one member hands to the next lies in a place of its own that holds a slice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct
from msgspec.structs import replace

from ..lowering.lower import Draft, Drafted
from ..scheduling.problem import Problem, Sliced
from ..scheduling.slicing import SLICES
from .operators import Operators, Part, key_of
from .row_slices import Rows, row_bytes, rows_of, with_rows

PREFIX = "slice of "  # what scheduling.slicing calls the place of a slice


class Parts(Struct, frozen=True):
    """What an operator launches for each slice, and the bytes of a row of each of its buffers, 0 for one that all slices need."""

    parts: tuple[Part, ...]
    steps: tuple[int, ...]


def permitted_slices(operators: Operators, draft: Draft) -> tuple[Sliced, ...]:
    """How an operator of one launch can run slice by slice."""
    rows = rows_of(draft.node)
    if rows is None or len(draft.spots) != len(rows.operands) + 1:
        return ()
    tensors = [operators.tensors.get(key_of(spot), -1) for spot in draft.spots]
    sizes = [type.elements * type.dtype.bytes for type in (*(i.tensor for i in draft.node.inputs), draft.node.tensor)]
    for spot, tensor, size in zip(draft.spots, tensors, sizes):
        if tensor >= 0 and (spot.offset != 0 or operators.problem.tensors[tensor].bytes != size or not size):
            return ()
    whole = {tensor for tensor, same in zip(tensors, rows.operands) if not same}
    operands = {tensor: (tensor, 0, rows.extent) for tensor in tensors[:-1] if tensor >= 0 and tensor not in whole}
    return (Sliced(f"{rows.extent} rows", min(rows.extent, SLICES), tuple(operands.values())),)


def parts_of(drafted: Drafted, draft: Draft, count: int) -> Parts | None:
    """The launches for all of up to so many slices; None where lowering makes more than one of a slice, as it may of few rows."""
    rows = rows_of(draft.node)
    assert rows is not None
    height = -(-rows.extent // count)
    made: dict[int, Draft | None] = {}
    parts = []
    for first in range(0, rows.extent, height):
        some = min(height, rows.extent - first)
        if some not in made:
            made[some] = _lowered(drafted, draft, rows, some)
        one = made[some]
        if one is None:
            return None
        parts.append(Part(first, one))
    types = (*(i.tensor for i in draft.node.inputs), draft.node.tensor)
    return Parts(tuple(parts), tuple(row_bytes(type, rows.extent) if same else 0 for type, same in zip(types, (*rows.operands, True))))


def _lowered(drafted: Drafted, draft: Draft, rows: Rows, count: int) -> Draft | None:
    made = drafted.launches(with_rows(rows, count), draft.spots[:-1], draft.spots[-1:])
    one = made[0]
    return one if len(made) == 1 and isinstance(one, Draft) and one.spots == draft.spots else None


def with_counts(problem: Problem, counts: Mapping[str, int], whole: Collection[str]) -> Problem:
    """The problem with so many slices along each axis (`SLICES` where none are given); operators that are named stay `whole`."""
    rows = tuple(replace(o, slices=() if o.name in whole else tuple(replace(s, count=min(s.count, counts.get(s.axis, SLICES)))
                                                                    for s in o.slices)) for o in problem.operators)
    return Problem(problem.name, problem.tensors, rows, problem.results, problem.pinned)
