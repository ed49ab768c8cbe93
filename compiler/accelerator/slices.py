"""Chains of operators slice by slice: what each member launches for each slice of rows, with kernels lowered for these.

Assumes operators of one launch each that `scheduling.slicing` joined along rows. Guarantees: slices of the chain's result in the order of
its rows, each row in one of them; what one member hands to others lies in a place of its own that holds all rows that these need for a
slice. Where windows reach over the border between two slices, the rows there are computed for both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..ir.graph import Node
from ..ir.ops.control import Fusion
from ..lowering.lower import Draft, Drafted
from ..scheduling.problem import LARGEST, Operator, Problem, Sliced
from ..scheduling.slicing import SLICES
from .operators import Key, Operators, Part, key_of
from .row_slices import Rows, Span, alike, has_windows, row_axis, row_bytes, rows_of, spans_of, with_rows


class Parts(Struct, frozen=True):
    """What the members of a chain launch for each slice, and the bytes of a slice of each result but the last."""

    members: list[tuple[Part, ...]]
    local: dict[Key, int]


def permitted_slices(operators: Operators, draft: Draft) -> tuple[Sliced, ...]:
    """How an operator of one launch can run slice by slice. The axis is called by the rows of the result."""
    rows = rows_of(draft.node)
    if rows is None or len(draft.spots) != len(rows.operands) + 1:
        return ()
    tensors = [operators.tensors.get(key_of(spot), -1) for spot in draft.spots]
    sizes = [type.elements * type.dtype.bytes for type in (*(i.tensor for i in draft.node.inputs), draft.node.tensor)]
    for spot, tensor, size in zip(draft.spots, tensors, sizes):
        if tensor >= 0 and (spot.offset != 0 or operators.problem.tensors[tensor].bytes != size or not size):
            return ()
    whole = {tensor for tensor, some in zip(tensors, rows.operands) if not some}
    extra = _beside(rows)
    operands: dict[int, tuple[int, int, int]] = {}
    for number, tensor in enumerate(tensors[:-1]):
        if tensor >= 0 and tensor not in whole:
            more = max(extra[number], operands.get(tensor, (0, 0, 0))[1])
            operands[tensor] = tensor, more, extents_of(rows)[number]
    return (Sliced(f"{rows.extent} rows", min(rows.extent, SLICES), tuple(operands.values())),)


def extents_of(rows: Rows) -> list[int]:
    """Rows of each operand, 1 of one that is needed whole."""
    assert isinstance(rows.node.op, Fusion)
    return [int(p.shape[row_axis(p)]) if some else 1 for p, some in zip(rows.node.op.body.params, rows.operands)]


def _beside(rows: Rows) -> list[int]:
    """For each operand the rows that a slice needs at most beyond an equal share of them."""
    assert isinstance(rows.node.op, Fusion)
    params, extents = rows.node.op.body.params, extents_of(rows)
    found = [0] * len(params)
    if not has_windows(rows):
        return found
    for count in range(2, min(rows.extent, SLICES) + 1):
        for span in slices_of(rows.extent, count):
            spans = spans_of(rows, span) or {}
            for number, (param, extent) in enumerate(zip(params, extents)):
                begin, end = spans.get(param, (0, 0))
                found[number] = max(found[number], end - begin - -(-extent // count))
    return found


def slices_of(extent: int, count: int) -> list[Span]:
    """Up to so many slices, all but the last of one height."""
    height = -(-extent // count)
    return [(first, min(first + height, extent)) for first in range(0, extent, height)]


def parts_of(drafted: Drafted, drafts: Sequence[Draft], count: int) -> Parts | int:
    """The launches of a chain for all of up to so many slices. A number: of a member that can not run so, as lowering may make more than
    one launch of few rows, or readers of a value may need other rows of it."""
    made_by = {key_of(draft.spots[-1]): number for number, draft in enumerate(drafts[:-1])}
    last = rows_of(drafts[-1].node)
    assert last is not None
    needed: dict[Key, list[Span]] = {key_of(drafts[-1].spots[-1]): slices_of(last.extent, count)}
    launched: list[list[tuple[Draft, list[Span]]]] = []
    local: dict[Key, int] = {}
    for number in range(len(drafts) - 1, -1, -1):
        draft = drafts[number]
        rows, key = rows_of(draft.node), key_of(draft.spots[-1])
        if rows is None or key not in needed:
            return number
        assert isinstance(rows.node.op, Fusion)
        made: dict[tuple[object, ...], Draft | None] = {}
        launched.append([])
        for place, span in enumerate(needed[key]):
            spans = spans_of(rows, span)
            if spans is None:
                return number
            kind = alike(rows, spans)
            if kind not in made:
                made[kind] = _lowered(drafted, draft, rows, spans)
            one = made[kind]
            if one is None:
                return number
            read = [spans.get(param, (0, 0)) for param in rows.node.op.body.params]
            launched[-1].append((one, [*read, span]))
            for spot, some, there in zip(draft.spots, rows.operands, read):
                if key_of(spot) in made_by:
                    if not some:
                        return number
                    known = needed.setdefault(key_of(spot), [(LARGEST, 0)] * len(needed[key]))
                    known[place] = min(known[place][0], there[0]), max(known[place][1], there[1])
        if key in made_by:
            local[key] = max(end - begin for begin, end in needed[key]) * row_bytes(draft.node.tensor, rows.extent)
    begins = {key: [begin for begin, _ in spans] for key, spans in needed.items() if key in made_by}
    return Parts([_placed(draft, parts, begins) for draft, parts in zip(drafts, reversed(launched))], local)


def _placed(draft: Draft, parts: Iterable[tuple[Draft, list[Span]]], begins: Mapping[Key, list[int]]) -> tuple[Part, ...]:
    """Where each buffer of each part begins, in what holds all of it or a slice."""
    rows = rows_of(draft.node)
    assert rows is not None
    types = (*(i.tensor for i in draft.node.inputs), draft.node.tensor)
    steps = [row_bytes(type, extent) if some else 0
             for type, extent, some in zip(types, (*extents_of(rows), rows.extent), (*rows.operands, True))]
    first = [begins.get(key_of(spot), []) for spot in draft.spots]  # of what a place holds, slice by slice

    def part(number: int, one: Draft, spans: Sequence[Span]) -> Part:
        return Part(tuple(step * (begin - (held[number] if held else 0)) for step, (begin, _), held in zip(steps, spans, first)), one)

    return tuple(part(number, one, spans) for number, (one, spans) in enumerate(parts))


def _lowered(drafted: Drafted, draft: Draft, rows: Rows, spans: Mapping[Node, Span]) -> Draft | None:
    made = drafted.launches(with_rows(rows, spans), draft.spots[:-1], draft.spots[-1:])
    one = made[0]
    return one if len(made) == 1 and isinstance(one, Draft) and one.spots == draft.spots else None


def named_alike(problem: Problem, rows: Sequence[Operator]) -> list[Operator]:
    """Operators with one axis for all that hand rows to one another, as `permitted_slices` gives them."""
    leader = list(range(len(rows)))
    for number, operator in enumerate(rows):
        for tensor, _, extent in (operand for how in operator.slices for operand in how.operands):
            maker = problem.producer[tensor]
            if maker >= 0 and any(how.axis == f"{extent} rows" for how in rows[maker].slices):
                one, other = leader[number], leader[maker]
                leader = [other if number == one else number for number in leader]
    return [replace(operator, slices=tuple(replace(how, axis=f"rows of {rows[one].name}") for how in operator.slices))
            for operator, one in zip(rows, leader)]


def with_counts(problem: Problem, counts: Mapping[str, int], whole: Collection[str]) -> Problem:
    """The problem with so many slices along each axis (`SLICES` where none are given); operators that are named stay `whole`."""
    rows = tuple(replace(o, slices=() if o.name in whole else tuple(replace(s, count=min(s.count, counts.get(s.axis, SLICES)))
                                                                    for s in o.slices)) for o in problem.operators)
    return Problem(problem.name, problem.tensors, rows, problem.results, problem.pinned)
