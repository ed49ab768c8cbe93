"""How far may a legal evaluation of a graph lie from the interpreter's? Translation validation without false reports.

`shadow` evaluates a graph as `ir/interp.py` does and keeps beside each value a bound of what correct passes and backends may
change: nothing where all is exact (integers; floats that hold small whole numbers), a few roundings elsewhere, everything
where a decision hangs on a rounded number. `compare` holds results against it.

What is legal: elementwise functions round once, in their dtype; sums are reordered; precision `default` and `plain` apply
rules that reassociate or are bounded, whereupon zeros have no sign and what may overflow is not compared; `default` may
compute convolutions by Winograd's algorithm. Under `strict`, NaN, infinities and the sign of zero count wherever no sum was
reordered on the way.

Assumes: inputs that the program accepts. Errors of the program itself are raised as the interpreter raises them.
Guarantees: a new op or scalar function needs no line here; it goes by a generic rule (`shadow_unknown.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.dims import evaluate
from ..ir.errors import IndexFailure, TilewrightError
from ..ir.graph import Binding, Graph, Node
from ..ir.interp import bind_shapes
from ..ir.ops.compute import Conv, Dot
from ..ir.ops.control import Composite, Fusion, Get, If, MakeTuple, Param, Scan, While
from ..library_quantized import is_dequantize
from ..passes.lower_quantized import may_meet_sums
from .shadow_contractions import perhaps_in_tf32
from .shadow_ops import chooses_extremes, indices_of, trace_op
from .shadow_values import INFINITE, Array, Item, Traced, all_tainted, are_known, are_signless, are_tied, meet_as_zeros, settled


class Shadow:
    """The results of a graph, with bounds.

    `may_fail`: a decision that rounding may turn chooses a place or a side, so that a legal evaluation may fail where this one
    did not, or run on.
    """

    def __init__(self, results: Sequence[Traced], names: Sequence[str], may_fail: bool) -> None:
        self.results = tuple(results)
        self.names = tuple(names)
        self.may_fail = may_fail

    @property
    def values(self) -> tuple[Array, ...]:
        return tuple(x.value for x in self.results)

    @property
    def bounds(self) -> tuple[Array, ...]:
        return tuple(x.bounds for x in self.results)

    @property
    def checked(self) -> float:
        """The share of the elements of all results that have a bound, 1 where there is no element."""
        total = sum(x.value.size for x in self.results)
        tainted = sum(int(np.isinf(x.bound).sum()) for x in self.results if x.bound is not None)
        return (total - tainted) / total if total else 1.0


def shadow(graph: Graph, inputs: Sequence[Any] | Mapping[str, Any], binding: Binding | None = None,
           precision: str = "default", tf32: bool = False) -> Shadow:
    """The results for these inputs (by position or by name), each element with its bound. `tf32`: products of float32 may round their
    operands to that."""
    if isinstance(inputs, Mapping):
        inputs = [inputs[p.op.label] for p in graph.params if isinstance(p.op, Param)]
    arrays = list(inputs)
    walk = _Walk(bind_shapes(graph, arrays) if binding is None else binding, precision, tf32)
    results = walk.graph(graph, [Traced(np.asarray(a), given=True) for a in arrays])
    return Shadow(results, graph.result_names, walk.may_fail)


class _Walk:
    """One evaluation: the sizes, the precisions, and whether something undecided chose a way."""

    def __init__(self, binding: Binding, precision: str, tf32: bool) -> None:
        self.binding = binding
        self.precision = precision
        self.tf32 = tf32
        self.may_fail = False

    def graph(self, graph: Graph, inputs: Sequence[Item]) -> tuple[Item, ...]:
        values: dict[int, Item] = {id(p): x for p, x in zip(graph.params, inputs, strict=True)}
        for node in graph.nodes():
            if id(node) not in values:
                values[id(node)] = self.node(node, [values[id(i)] for i in node.inputs])
        return tuple(values[id(r)] for r in graph.results)

    def node(self, node: Node, inputs: list[Item]) -> Item:
        """One node's value; an error gets the node's location."""
        try:
            match node.op:
                case MakeTuple():
                    return tuple(inputs)
                case Get(index):
                    return inputs[0][index]
                case Composite(body=body) | Fusion(body=body):
                    made = _one(self.graph(body, inputs))
                    return self.dequantized(node, made, inputs[1]) if is_dequantize(node) else made
                case If() as op:
                    return self.branch(op, inputs)
                case While() as op:
                    return self.repeat(op, inputs)
                case Scan() as op:
                    return self.scan(op, inputs)
            if any(x.bound is not None for x in indices_of(node.op, inputs)):
                self.may_fail = True
            if self.tf32 and isinstance(node.op, (Dot, Conv)):
                inputs = [perhaps_in_tf32(x, self.precision) for x in inputs]
            made = trace_op(node.op, inputs, self.binding, self.precision)
            if isinstance(made, Traced):
                made.tied = are_tied(inputs) or chooses_extremes(node.op) and meet_as_zeros(inputs)
            return made
        except (TilewrightError, IndexFailure) as error:
            error.at(node.loc)
            raise

    def dequantized(self, node: Node, made: Traced, scale: Traced) -> Traced:
        """A scale that is not known at compile time may multiply the sum of a contraction and not each term: where it is infinite or NaN,
        nothing is said."""
        if self.precision != "strict" and may_meet_sums(node.inputs[1]):
            finite = np.broadcast_to(np.isfinite(scale.value), made.value.shape)
            made.bound = settled(np.where(finite, made.bounds, INFINITE))
        return made

    def branch(self, op: If, inputs: list[Item]) -> Item:
        condition = inputs[0]
        results = self.graph(op.then_body if bool(condition.value) else op.else_body, inputs[1:])
        if condition.bound is not None:
            self.may_fail = True
            results = tuple(all_tainted(x.value) for x in results)
        return _one(results)

    def repeat(self, op: While, inputs: list[Item]) -> Item:
        states, captures = list(inputs[:op.count]), list(inputs[op.count:])
        decided = True
        while True:
            condition, = self.graph(op.condition, [*states, *captures])
            decided = decided and condition.bound is None
            if not bool(condition.value):
                break
            states = list(self.graph(op.body, [*states, *captures]))
        if not decided:
            self.may_fail = True
            states = [all_tainted(x.value) for x in states]
        return _one(tuple(states))

    def scan(self, op: Scan, inputs: list[Item]) -> Item:
        middle = op.states + op.scanned
        states, scanned, captures = list(inputs[:op.states]), inputs[op.states:middle], list(inputs[middle:])
        length = evaluate(op.length, self.binding)
        steps: list[tuple[Item, ...]] = []
        for step in reversed(range(length)) if op.reverse else range(length):
            values = self.graph(op.body, [*states, *(_at(x, step) for x in scanned), *captures])
            states = list(values[:op.states])
            steps.append(values[op.states:])
        if op.reverse:
            steps.reverse()
        stacked = [self.stacked(node, [values[i] for values in steps]) for i, node in enumerate(op.body.results[op.states:])]
        return _one((*states, *stacked))

    def stacked(self, node: Node, parts: list[Traced]) -> Traced:
        """The results of all steps as one value."""
        if not parts:
            return Traced(np.zeros((0, *(evaluate(d, self.binding) for d in node.shape)), node.dtype.numpy))
        bound = None if all(x.bound is None for x in parts) else np.stack([x.bounds for x in parts])
        made = Traced(np.stack([x.value for x in parts]), bound, are_signless(parts), are_known(parts), tied=are_tied(parts))
        if parts[0].is_float and all(x.unit is not None for x in parts):
            units = [x.unit for x in parts if x.unit is not None]
            made.unit, made.mass, made.rounds = min(units), max(x.mass for x in parts), max(x.rounds for x in parts)
        return made


def _one(values: tuple[Item, ...]) -> Item:
    return values[0] if len(values) == 1 else values


def _at(x: Traced, step: int) -> Traced:
    bound = None if x.bound is None else np.asarray(x.bound[step])
    return Traced(np.asarray(x.value[step]), bound, x.signless, x.known, x.unit, x.mass, x.rounds, tied=x.tied)


# --- holding results against it -----------------------------------------------------------------------------------------


def compare(expected: Shadow, found: Sequence[Any]) -> str | None:
    """Where and by how much the first wrong result is outside; None where all are right."""
    if len(found) != len(expected.results):
        return f"{len(found)} results, expected {len(expected.results)}"
    for name, known, array in zip(expected.names, expected.results, found):
        problem = _compare_one(known, np.asarray(array))
        if problem is not None:
            return f"result {name}: {problem}"
    return None


def _compare_one(expected: Traced, found: Array) -> str | None:
    value, bound = expected.value, expected.bound
    if found.dtype != value.dtype or found.shape != value.shape:
        return f"{found.dtype}{list(found.shape)}, expected {value.dtype}{list(value.shape)}"
    if not value.size or _same_bits(value, found):
        return None
    wrong = _outside(expected, found)
    if not wrong.any():
        return None
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    allowed = 0.0 if bound is None or expected.given else float(bound[place])
    count = int(wrong.sum())
    more = f"; {count} of {value.size} elements are outside" if count > 1 else ""
    return f"{found[place]!s} at {list(place)}, expected {value[place]!s} within {allowed:.3g}{more}"


def _same_bits(value: Array, found: Array) -> bool:
    return bool(np.array_equal(np.ascontiguousarray(value).reshape(-1).view(np.uint8),
                               np.ascontiguousarray(found).reshape(-1).view(np.uint8)))


def _outside(expected: Traced, found: Array) -> Array:
    value, bound = expected.value, expected.bound
    if not expected.is_float:
        wrong = value != found
        return np.asarray(wrong if bound is None else wrong & (bound < INFINITE))
    same = (value == found) & (np.signbit(value) == np.signbit(found)) | np.isnan(value) & np.isnan(found)
    if expected.signless:
        same |= (value == 0) & (found == 0)
    if bound is None:
        return np.asarray(~same)
    with np.errstate(all="ignore"):
        near = np.isfinite(value) & (np.abs(value.astype(np.float64) - found.astype(np.float64)) <= bound) & (bound > 0)
        near &= not expected.given
    return np.asarray(~(same | near | (bound == INFINITE)))
