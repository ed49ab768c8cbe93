"""ONNX control flow: If, Loop, Scan.

An If whose condition is known becomes its branch; one whose branches differ in type, or of which one breaks a rule at the sizes
given, becomes the branch that is left or that the nodes after it admit, and the call checks the condition. A Loop that runs a known
number of times becomes a `scan`, another one a `while`. Both branches, and a state before and after a step, must have the same dtype
and shape; values of outer scopes become captures.

Where data decides how often a Loop with scan outputs runs, it runs as often as the model declares those outputs to be long, and
whether the loop ends just there is checked at run time. A Loop whose states are sequences, or whose body needs its number to be
known, is built round by round, as far as a budget of the whole import allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from msgspec.structs import replace

from ...ir.dims import DimLike, compare
from ...ir.errors import CompileError, UnsupportedError
from ...ir.graph import Builder, Graph, Node
from ...ir.ops.control import If, Scan, While
from ...ir.ops.shape import Concat, Iota
from ...ir.types import BOOL, I64, TensorType
from ...library import expand, results_of, scalar, size_value, transpose
from .context import Context, Counted, Listed, Operators, Subgraph, Traced, Undecided, Value, describe, not_negative
from .reduction import flip

SCALAR_BOOL, SCALAR_I64 = TensorType(BOOL, ()), TensorType(I64, ())


def if_(c: Context, condition: Node, *, then_branch: Subgraph, else_branch: Subgraph) -> tuple[Value, ...]:
    value = c.value(condition)
    if value is not None and value.dtype != object and value.size == 1:
        return (then_branch if value.reshape(-1)[0] else else_branch).inline(c, ())
    if then_branch.output_count != else_branch.output_count:
        c.fail(f"the branches give {then_branch.output_count} and {else_branch.output_count} outputs, expected as many")
    held = len(c.left_over)
    try:
        traced, captures = c.trace([(then_branch, ()), (else_branch, ())])
    except UnsupportedError:
        raise
    except CompileError as error:  # a branch that these sizes rule out
        del c.left_over[held:]
        raise _undecided(c, condition, then_branch, else_branch, f"what comes after: {error.message}") from error
    then, other = traced
    for position, (left, right) in enumerate(zip(then.results, other.results, strict=True)):
        if _form(left) != _form(right):
            raise _undecided(c, condition, then_branch, else_branch, f"output {position}: {_told(left)} and {_told(right)}")
    bodies = [Graph(name, t.captures, [x for value in t.results for x in _tensors(value)])
              for name, t in (("then", then), ("else", other))]
    if not bodies[0].results:
        return tuple(then.results)
    made = iter(results_of(c.b, c.b.add(If(*bodies), c.reshape(condition, ()), *captures)))
    return tuple(_rebuilt(value, made) for value in then.results)


def _undecided(c: Context, condition: Node, then_branch: Subgraph, else_branch: Subgraph, what: str) -> Undecided:
    error = Undecided(f"{c.op_type}: the branches give different types for {what}", loc=c.b.loc,
                      hint="bind the dims or constants that decide the condition")

    def side(taken: bool) -> tuple[Value, ...]:
        holds = condition if taken else c.scalar("not", condition)
        made = (then_branch if taken else else_branch).inline(c, ())
        return tuple(c.require(value, holds) for value in _all_tensors(c, made, "an output of one of the branches"))
    error.side = side
    return error


# --- values that may be sequences ------------------------------------------------------------------------------------


def _tensors(value: Value) -> tuple[Node, ...]:
    """The tensors that a value consists of."""
    if isinstance(value, Listed):
        return value.elements
    if isinstance(value, Counted):
        return (value.condition,)
    return (value,) if isinstance(value, Node) else ()


def _form(value: Value) -> tuple[object, ...]:
    """What two values must share to be one."""
    return type(value), value.count if isinstance(value, Counted) else 0, tuple(x.type for x in _tensors(value))


def _told(value: Value) -> str:
    return str(value.type) if isinstance(value, Node) else describe(value)


def _rebuilt(value: Value, tensors: Iterator[Node]) -> Value:
    """The value with the next tensors in place of its own."""
    if isinstance(value, Listed):
        return Listed(tuple(next(tensors) for _ in value.elements), value.dtype)
    if isinstance(value, Counted):
        return Counted(value.count, next(tensors), value.refusal)
    return next(tensors) if isinstance(value, Node) else value


def _all_tensors(c: Context, values: Sequence[Value], what: str) -> list[Node]:
    found = [x for x in values if isinstance(x, Node)]
    if len(found) != len(values):
        c.unsupported(f"{what} is a sequence or an optional value")
    return found


# --- loops -----------------------------------------------------------------------------------------------------------


def _checked_states(c: Context, traced: Traced, results: Sequence[Value], initial: Sequence[Node]) -> list[Node]:
    """The body's next states under the types of the initial ones."""
    inner = replace(c, b=traced.builder)
    found = []
    for position, (after, before) in enumerate(zip(_all_tensors(c, results, "a state after a step"), initial, strict=True)):
        if after.dtype != before.dtype or after.rank != before.rank or any(
                compare(m, n) in (-1, 1) for m, n in zip(after.shape, before.shape)):
            c.unsupported(f"state {position} changes its type in the body: {before.type} becomes {after.type}")
        found.append(inner.refine(after, before.shape))
    return found


def loop(c: Context, trip_count: Node | None, condition: Node | None, *initial: Value,
         body: Subgraph) -> tuple[Value, ...]:
    scans = body.output_count - 1 - len(initial)
    if body.input_count != 2 + len(initial) or scans < 0:
        c.fail(f"the body takes {body.input_count} inputs and gives {body.output_count} outputs; with {len(initial)} "
               f"states it must take {2 + len(initial)} and give {1 + len(initial)} or more")
    for what, given in (("trip count", trip_count), ("condition", condition)):
        if given is not None and compare(given.tensor.elements, 1) in (-1, 1):
            c.fail(f"the {what} must be one element, found {given.type}")
    count = None if trip_count is None else c.value(trip_count)
    rounds = _declared_length(c, len(initial), scans) if count is None else count.reshape(-1).tolist()[0]
    refusal: UnsupportedError | None = None
    states = [x for x in initial if isinstance(x, Node)]
    if len(states) == len(initial):
        try:
            return _traced_loop(c, body, trip_count, condition, states, scans)
        except UnsupportedError as error:
            refusal = error
    if isinstance(rounds, int):
        try:
            return _unrolled_loop(c, body, trip_count, condition, initial, rounds)
        except UnsupportedError as error:
            raise refusal or error from None
    if refusal is not None:
        raise refusal
    c.decided_by_data("its states are sequences or optional values, and the number of its rounds is not known at compile time",
                      trip_count)


def _declared_length(c: Context, first: int, scans: int) -> DimLike | None:
    """How long the model declares the scan outputs to be."""
    shapes = [shape for shape in c.declared[first:first + scans] if shape]
    return next((shape[0] for shape in shapes if shape[0] is not None), None)


def _traced_loop(c: Context, body: Subgraph, trip_count: Node | None, condition: Node | None, initial: Sequence[Node],
                 scans: int) -> tuple[Node, ...]:
    """One body for all rounds."""
    if _known_bool(c, condition, True):
        traced, captures = c.trace([(body, (SCALAR_I64, np.array(True), *(x.tensor for x in initial)))])
        if _known_bool(c, c.tensor(traced[0].results[0]), False):
            counts = None if trip_count is None else c.value(trip_count)
            if counts is not None:
                return _counted_loop(c, traced[0], captures, counts.reshape(-1).tolist()[0], initial)
            if trip_count is None:
                c.unsupported("neither the trip count nor the condition ends this loop")
    if not scans:
        return _while_loop(c, body, trip_count, condition, initial)
    length = _declared_length(c, len(initial), scans)
    if length is None:
        c.decided_by_data("the size of its scan outputs is decided by data (trip count or condition), and the model does not declare it",
                          trip_count, output=len(initial), axis=0)
    return _declared_loop(c, body, trip_count, condition, initial, length)


def _known_bool(c: Context, node: Node | None, default: bool) -> bool:
    value = c.value(node)
    return default if node is None else value is not None and value.dtype != object and bool(value.all())


def _counted_loop(c: Context, traced: Traced, captures: Sequence[Node], count: DimLike,
                  initial: Sequence[Node]) -> tuple[Node, ...]:
    number, _, *states = traced.params
    after = _checked_states(c, traced, traced.results[1:1 + len(initial)], initial)
    length = not_negative(count)
    scans = _all_tensors(c, traced.results[1 + len(initial):], "a scan output")
    step = Graph("step", (*states, number, *traced.captures), (*after, *scans))
    numbers = c.b.add(Iota(I64, (length,), 0))
    op = Scan(step, len(initial), 1, length)
    return results_of(c.b, c.b.add(op, *initial, numbers, *captures))


def _while_loop(c: Context, body: Subgraph, trip_count: Node | None, condition: Node | None,
                initial: Sequence[Node]) -> tuple[Node, ...]:
    types = [SCALAR_I64, SCALAR_BOOL, *(x.tensor for x in initial)]
    (traced,), captures = c.trace([(body, tuple(types))])
    number, _, *_ = traced.params
    inner = replace(c, b=traced.builder)
    following = inner.apply("add", number, inner.constant(1, I64))
    after = _checked_states(c, traced, traced.results[1:], initial)
    proceed = inner.reshape(c.tensor(traced.results[0]), ())
    last = c.constant(np.iinfo(np.int64).max) if trip_count is None else c.reshape(c.cast(trip_count, I64), ())
    # the bound is one more capture
    limit = traced.param("limit", SCALAR_I64)
    step = Graph("step", (*traced.params, *traced.captures, limit), (following, proceed, *after))
    test = Traced(Builder(c.b.loc), [], [], [])
    given = [test.param(f"x{i}", p.tensor) for i, p in enumerate(step.params)]
    more = scalar(test.builder, "and", given[1], scalar(test.builder, "lt", given[0], given[-1]))
    begin = c.constant(True, BOOL) if condition is None else c.reshape(condition, ())
    op = While(Graph("more", given, (more,)), step, 2 + len(initial))
    return results_of(c.b, c.b.add(op, c.constant(0, I64), begin, *initial, *captures, last))[2:]


def _declared_loop(c: Context, body: Subgraph, trip_count: Node | None, condition: Node | None, initial: Sequence[Node],
                   length: DimLike) -> tuple[Node, ...]:
    """As many rounds as the model declares; that the loop ends after these is checked at run time."""
    (traced,), captures = c.trace([(body, (SCALAR_I64, SCALAR_BOOL, *(x.tensor for x in initial)))])
    number, proceed, *states = traced.params
    inner = replace(c, b=traced.builder)
    following, *results = _all_tensors(c, traced.results, "an output of the body")
    after = _checked_states(c, traced, results[:len(initial)], initial)
    kept = traced.param("kept", SCALAR_BOOL)     # whether the loop really came as far as this round
    step = Graph("step", (kept, proceed, *states, number, *traced.captures),
                 (inner.scalar("and", kept, proceed), inner.reshape(following, ()), *after, *results[len(initial):]))
    numbers = c.b.add(Iota(I64, (length,), 0))
    op = Scan(step, 2 + len(initial), 1, length)
    begin = c.constant(True, BOOL) if condition is None else c.reshape(condition, ())
    all_kept, goes_on, *made = results_of(c.b, c.b.add(op, c.constant(True, BOOL), begin, *initial, numbers, *captures))
    exact = _ends_after(c, length, all_kept, goes_on, trip_count)
    return tuple(c.require(x, exact) for x in made)


def _ends_after(c: Context, length: DimLike, kept: Node, goes_on: Node, trip_count: Node | None) -> Node:
    """Whether a loop has just that many rounds: it came so far, and its condition or its count ends it there."""
    if trip_count is None:
        return c.scalar("and", kept, c.scalar("not", goes_on))
    extent = size_value(c.b, length)
    limit = c.scalar("max", c.reshape(c.cast(trip_count, I64), ()), c.constant(0, I64))
    more = c.scalar("and", goes_on, c.scalar("lt", extent, limit))
    return c.scalar("and", c.scalar("and", kept, c.scalar("le", extent, limit)), c.scalar("not", more))


def _unrolled_loop(c: Context, body: Subgraph, trip_count: Node | None, condition: Node | None, initial: Sequence[Value],
                   rounds: int) -> tuple[Value, ...]:
    """The body once for each round, whose number is known there. Where the number of rounds is only declared, it is checked."""
    declared = trip_count is None or c.value(trip_count) is None
    kept = c.constant(True, BOOL)
    proceed = c.constant(True, BOOL) if condition is None else c.reshape(condition, ())
    states, number = list(initial), 0
    columns: list[list[Node]] = [[] for _ in range(body.output_count - 1 - len(initial))]
    while number < rounds:
        known = c.value(proceed)
        if known is not None and not known.all():
            break
        if known is None and not declared:
            c.decided_by_data("data decides whether it goes on, and its states change their types or are sequences", proceed)
        c.unroll(body)
        kept = c.scalar("and", kept, proceed)
        following, *values = body.inline(c, (c.constant(number, I64), proceed, *states))
        proceed = c.reshape(c.tensor(following), ())
        states = values[:len(initial)]
        for column, x in zip(columns, _all_tensors(c, values[len(initial):], "a scan output"), strict=True):
            column.append(x)
        number += 1
    if columns and not number:
        c.unsupported("it runs no round, so its scan outputs have no known shape")
    stacked = [_stacked(c, column) for column in columns]
    if not declared:
        return (*states, *stacked)
    exact = _ends_after(c, number, kept, proceed, trip_count)
    return tuple(_rebuilt(value, (c.require(x, exact) for x in _tensors(value))) for value in (*states, *stacked))


def _stacked(c: Context, column: Sequence[Node]) -> Node:
    first = column[0]
    if any(x.dtype != first.dtype for x in column):
        c.fail("a scan output changes its dtype from round to round")
    return c.b.add(Concat(0), *[expand(c.b, c.refine(x, first.shape), (0,)) for x in column])


# --- scans -----------------------------------------------------------------------------------------------------------


def scan(c: Context, *operands: Node | None, body: Subgraph, num_scan_inputs: int,
         scan_input_axes: Sequence[int] | None = None, scan_input_directions: Sequence[int] | None = None,
         scan_output_axes: Sequence[int] | None = None, scan_output_directions: Sequence[int] | None = None,
         directions: Sequence[int] | None = None) -> tuple[Node, ...]:
    if c.opset < 9:
        return _batched_scan(c, operands, body, num_scan_inputs, directions)
    inputs = [x for x in operands if x is not None]
    if len(inputs) != len(operands):
        c.fail("an input is missing")
    states = _scan_states(c, body, len(inputs), num_scan_inputs)
    sequences = [_leading(c, x, *_entry(c, i, scan_input_axes, scan_input_directions))
                 for i, x in enumerate(inputs[states:])]
    length = sequences[0].shape[0]
    sequences = [c.refine(x, (length, *x.shape[1:])) for x in sequences]
    op, captures = _scan_of(c, body, [x.tensor for x in inputs[:states]], [x.tensor for x in sequences])
    results = results_of(c.b, c.b.add(op, *inputs[:states], *sequences, *captures))
    stacked = [_placed(c, x, *_entry(c, i, scan_output_axes, scan_output_directions))
               for i, x in enumerate(results[states:])]
    return (*results[:states], *stacked)


def _scan_states(c: Context, body: Subgraph, inputs: int, scanned: int) -> int:
    """How many of the inputs are states."""
    states = inputs - scanned
    if scanned < 1:
        c.fail("needs at least one scanned input")
    if states < 0 or body.output_count < states or body.input_count != inputs:
        c.fail(f"the body takes {body.input_count} inputs and gives {body.output_count} outputs, the node has "
               f"{inputs} inputs, {scanned} of them scanned")
    return states


def _scan_of(c: Context, body: Subgraph, states: Sequence[TensorType], sequences: Sequence[TensorType]) -> tuple[Scan, list[Node]]:
    """The `scan` over the first axis of sequences, and what its body captures."""
    types = [*states, *(TensorType(t.dtype, t.shape[1:]) for t in sequences)]
    (traced,), captures = c.trace([(body, tuple(types))])
    results = _all_tensors(c, traced.results, "an output of the body")
    after = _checked_states(c, traced, results[:len(states)], traced.params[:len(states)])
    step = Graph("step", (*traced.params, *traced.captures), (*after, *results[len(states):]))
    return Scan(step, len(states), len(sequences), sequences[0].shape[0]), captures


def _batched_scan(c: Context, operands: Sequence[Node | None], body: Subgraph, num_scan_inputs: int,
                  directions: Sequence[int] | None) -> tuple[Node, ...]:
    """The form of opset 8: every input and output has a batch axis in front, and each entry of the batch is a scan of its own."""
    if not operands or operands[0] is not None:
        c.unsupported("lengths of the sequences (sequence_lens) are not supported")
    inputs = [x for x in operands[1:] if x is not None]
    if len(inputs) != len(operands) - 1:
        c.fail("an input is missing")
    states = _scan_states(c, body, len(inputs), num_scan_inputs)
    for place, x in enumerate(inputs):
        if x.rank < (1 if place < states else 2):
            c.fail(f"input {place + 1} of rank {x.rank} has no batch axis, or no axis to scan behind it")
    batch, length = inputs[0].shape[0], inputs[states].shape[1]
    aligned = []
    for place, x in enumerate(inputs):
        scanned = place >= states
        x = c.refine(x, (batch, length, *x.shape[2:]) if scanned else (batch, *x.shape[1:]))
        aligned.append(flip(c, x, 1) if scanned and _entry(c, place - states, None, directions)[1] else x)
    types = [TensorType(x.dtype, x.shape[1:]) for x in aligned]
    op, captures = _scan_of(c, body, types[:states], types[states:])
    entry = Traced(Builder(c.b.loc), [], [], [])
    given = [entry.param(f"x{i}", t) for i, t in enumerate([*types, *(x.tensor for x in captures)])]
    made = results_of(entry.builder, entry.builder.add(op, *given))
    whole = Scan(Graph("entry", given, made), 0, len(aligned), batch)
    return results_of(c.b, c.b.add(whole, *aligned, *captures))


def _entry(c: Context, place: int, axes: Sequence[int] | None, directions: Sequence[int] | None) -> tuple[int, bool]:
    for what, values in (("axes", axes), ("directions", directions)):
        if values is not None and place >= len(values):
            c.fail(f"the scan {what} {tuple(values)} have no entry {place}")
    return axes[place] if axes else 0, bool(directions[place]) if directions else False


def _leading(c: Context, x: Node, axis: int, backwards: bool) -> Node:
    place = c.axis(axis, x.rank)
    x = transpose(c.b, x, (place, *(a for a in range(x.rank) if a != place)))
    return flip(c, x, 0) if backwards else x


def _placed(c: Context, x: Node, axis: int, backwards: bool) -> Node:
    place = c.axis(axis, x.rank)
    x = flip(c, x, 0) if backwards else x
    order = list(range(1, x.rank))
    order.insert(place, 0)
    return transpose(c.b, x, order)


OPS: Operators = {"If": if_, "Loop": loop, "Scan": scan}
