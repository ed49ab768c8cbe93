"""ONNX control flow: If, Loop, Scan.

An If whose condition is known becomes its branch. A Loop that runs a known number of times becomes a `scan`, another
one a `while`. Both branches, and a state before and after a step, must have the same dtype and shape; values of outer
scopes become captures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from ...ir.dims import DimLike, compare
from ...ir.graph import Builder, Graph, Node
from ...ir.ops.control import If, Scan, While
from ...ir.ops.shape import Iota
from ...ir.types import BOOL, I64, TensorType
from ...library import results_of, scalar, transpose
from .context import Context, Operators, Subgraph, Traced, not_negative
from .reduction import flip

SCALAR_BOOL, SCALAR_I64 = TensorType(BOOL, ()), TensorType(I64, ())


def if_(c: Context, condition: Node, *, then_branch: Subgraph, else_branch: Subgraph) -> tuple[Node, ...]:
    value = c.value(condition)
    if value is not None and value.dtype != object and value.size == 1:
        return (then_branch if value.reshape(-1)[0] else else_branch).inline(c, ())
    traced, captures = c.trace([(then_branch, ()), (else_branch, ())])
    then, other = traced
    for position, (left, right) in enumerate(zip(then.results, other.results, strict=True)):
        if left.type != right.type:
            c.unsupported(f"the branches give different types for output {position}: {left.type} and {right.type}",
                          hint="bind the dims or constants that decide the condition")
    bodies = [Graph(name, t.captures, t.results) for name, t in (("then", then), ("else", other))]
    return results_of(c.b, c.b.add(If(*bodies), c.reshape(condition, ()), *captures))


def _checked_states(c: Context, traced: Traced, results: Sequence[Node], initial: Sequence[Node]) -> list[Node]:
    """The body's next states under the types of the initial ones."""
    inner = replace(c, b=traced.builder)
    found = []
    for position, (after, before) in enumerate(zip(results, initial, strict=True)):
        if after.dtype != before.dtype or after.rank != before.rank or any(
                compare(m, n) in (-1, 1) for m, n in zip(after.shape, before.shape)):
            c.unsupported(f"state {position} changes its type in the body: {before.type} becomes {after.type}")
        found.append(inner.refine(after, before.shape))
    return found


def loop(c: Context, trip_count: Node | None, condition: Node | None, *initial: Node,
         body: Subgraph) -> tuple[Node, ...]:
    scans = body.output_count - 1 - len(initial)
    if body.input_count != 2 + len(initial) or scans < 0:
        c.fail(f"the body takes {body.input_count} inputs and gives {body.output_count} outputs; with {len(initial)} "
               f"states it must take {2 + len(initial)} and give {1 + len(initial)} or more")
    state_types = [x.tensor for x in initial]
    begins = _known_bool(c, condition, True)
    if begins:
        traced, captures = c.trace([(body, (SCALAR_I64, np.array(True), *state_types))])
        if c.value(traced[0].results[0]) is not None and bool(np.all(c.value(traced[0].results[0]))):
            counts = None if trip_count is None else c.value(trip_count)
            if counts is not None:
                return _counted_loop(c, traced[0], captures, counts.reshape(-1).tolist()[0], initial, scans)
            if trip_count is None:
                c.unsupported("neither the trip count nor the condition ends this loop")
    if scans:
        c.unsupported("the size of its scan outputs is decided by data (trip count or condition)")
    return _while_loop(c, body, trip_count, condition, initial)


def _known_bool(c: Context, node: Node | None, default: bool) -> bool:
    value = c.value(node)
    return default if node is None else value is not None and value.dtype != object and bool(value.all())


def _counted_loop(c: Context, traced: Traced, captures: Sequence[Node], count: DimLike, initial: Sequence[Node],
                  scans: int) -> tuple[Node, ...]:
    number, _, *states = traced.params
    after = _checked_states(c, traced, traced.results[1:1 + len(initial)], initial)
    length = not_negative(count)
    step = Graph("step", (*states, number, *traced.captures), (*after, *traced.results[1 + len(initial):]))
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
    proceed = inner.reshape(traced.results[0], ())
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


def scan(c: Context, *operands: Node | None, body: Subgraph, num_scan_inputs: int,
         scan_input_axes: Sequence[int] | None = None, scan_input_directions: Sequence[int] | None = None,
         scan_output_axes: Sequence[int] | None = None, scan_output_directions: Sequence[int] | None = None,
         directions: Sequence[int] | None = None) -> tuple[Node, ...]:
    if c.opset < 9:
        c.unsupported("the form of opset 8, with a batch axis, is not supported")
    inputs = [x for x in operands if x is not None]
    if len(inputs) != len(operands):
        c.fail("an input is missing")
    states = len(inputs) - num_scan_inputs
    scans = body.output_count - states
    if states < 0 or scans < 0 or body.input_count != len(inputs):
        c.fail(f"the body takes {body.input_count} inputs and gives {body.output_count} outputs, the node has "
               f"{len(inputs)} inputs, {num_scan_inputs} of them scanned")
    sequences = [_leading(c, x, *_entry(c, i, scan_input_axes, scan_input_directions))
                 for i, x in enumerate(inputs[states:])]
    if not sequences:
        c.fail("needs at least one scanned input")
    length = sequences[0].shape[0]
    sequences = [c.refine(x, (length, *x.shape[1:])) for x in sequences]
    types = [*(x.tensor for x in inputs[:states]), *(TensorType(x.dtype, x.shape[1:]) for x in sequences)]
    (traced,), captures = c.trace([(body, tuple(types))])
    after = _checked_states(c, traced, traced.results[:states], inputs[:states])
    step = Graph("step", (*traced.params, *traced.captures), (*after, *traced.results[states:]))
    op = Scan(step, states, len(sequences), length)
    results = results_of(c.b, c.b.add(op, *inputs[:states], *sequences, *captures))
    stacked = [_placed(c, x, *_entry(c, i, scan_output_axes, scan_output_directions))
               for i, x in enumerate(results[states:])]
    return (*results[:states], *stacked)


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
