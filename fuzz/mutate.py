"""Mutators of graphs: each gives another well-typed graph, or None where it does not fit.

Most replace one value by another of the same type, so that everything behind it stays as it is: whatever a mutator makes is
brought to the type that is wanted (`adapted`). What they draw from are the ops' own declarations and samples, so that an op
is mutated from the day it is declared.

Guarantees: a mutant passes `verify`; it has at most `MOST_NODES` nodes of at most `MOST_ELEMENTS` elements; its loops end (no
mutator changes what a `while` counts with).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from msgspec.structs import replace

from .. import library
from ..ir.dims import Dim, symbols_of
from ..ir.errors import TilewrightError
from ..ir.graph import Builder, Constant, Graph, Node, Op, attribute_names
from ..ir.ops.compute import Cast, Elementwise
from ..ir.ops.control import Composite, Const, If, MakeTuple, Param, Scan, While
from ..ir.ops.scalar import SCALARS
from ..ir.ops.table import ALL_OPS
from ..ir.rewrite import Variable
from ..ir.types import ARRAY_DTYPES, BOOL, F32, I32, DType, TensorType
from ..passes.canonicalize import RULES
from . import mutate_domain as domain
from . import mutate_memory as memory
from . import mutate_patterns as patterns
from .generate import grow
from .generate_arithmetic import arithmetic
from .generate_functions import more_functions
from .rebuild import acceptable, adapted, before, chosen, rebuilt, small, tensors
from .sequences import expand

TRIED_RULES = 24
SPECIAL = (0, 1, -1, 2, 0.5, -0.0, math.nan, math.inf, -math.inf, 1e30, 1e-30, 127, 128, 255, 2 ** 31 - 1, -2 ** 31, 2 ** 53,
           1 / 3, math.pi, -1e-45, 65520, 3.4028235677973366e38)
Mutator = Callable[[Graph, np.random.Generator, Graph], Graph | None]


def mutate(graph: Graph, rng: np.random.Generator, donor: Graph | None, allowed: frozenset[str]) -> tuple[Graph, str] | None:
    """A mutant and the name of its mutator, one of those allowed; None where none of some tries fits."""
    names = [name for name in MUTATORS if name in allowed]
    for _ in range(8 if names else 0):
        name = names[int(rng.integers(len(names)))]
        try:
            mutant = MUTATORS[name](graph, rng, graph if donor is None else donor)
        except TilewrightError:
            continue  # types do not fit together in a way that the mutator did not foresee
        if mutant is not None and acceptable(mutant) and mutant.fingerprint != graph.fingerprint:
            return mutant, name
    return None


# --- general -----------------------------------------------------------------------------------------------------------


def insert(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value goes through one more op, with other values as its other operands."""
    node = chosen(rng, tensors(graph))

    def make(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        pool = [x, x, *before(graph, node, values)]
        op, types = chosen(rng, _patterns())
        place = int(rng.integers(len(types)))
        operands = [adapted(b, x if i == place else chosen(rng, pool), t) for i, t in enumerate(types)]
        return _some_item(b, rng, b.add(op, *operands))

    def make_elementwise(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        function = chosen(rng, [f for f in SCALARS.values() if f.rule != "select"])
        operands = [x, *(adapted(b, chosen(rng, [x, *before(graph, node, values)]), x.tensor) for _ in range(function.arity - 1))]
        return _applied(b, rng, function.name, operands)

    return rebuilt(graph, {id(node): make if rng.random() < 0.4 else make_elementwise})


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[Op, tuple[TensorType, ...]], ...]:
    """Ops with types of operands that suit them: the samples, whatever values they are meant for."""
    return tuple((sample.op, sample.types) for op in ALL_OPS if op is not Elementwise for sample in op.samples()
                 if sample.types and not any(sample.ranges) and not isinstance(sample.op, (MakeTuple, Composite)))


def _applied(b: Builder, rng: np.random.Generator, function: str, operands: Sequence[Node]) -> Node:
    """A scalar function; where the dtype does not suit it, of operands cast to one that does."""
    for dtype in (operands[0].dtype, F32, I32, BOOL):
        try:
            return b.add(Elementwise(function), *(x if x.dtype == dtype else b.add(Cast(dtype), x) for x in operands))
        except TilewrightError:
            continue
    return operands[0]


def _some_item(b: Builder, rng: np.random.Generator, node: Node) -> Node:
    return chosen(rng, library.results_of(b, node))


def delete(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """An op is left out: one of its operands takes its place."""
    nodes = [n for n in tensors(graph) if any(isinstance(i.type, TensorType) for i in n.inputs)]
    if not nodes:
        return None
    node = chosen(rng, nodes)
    operand = chosen(rng, [i for i in node.inputs if isinstance(i.type, TensorType)])
    return rebuilt(graph, {id(node): lambda b, x, values: values[id(operand)]})


def rewire(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value becomes another one that stands before it."""
    node = chosen(rng, tensors(graph))
    return rebuilt(graph, {id(node): lambda b, x, values: chosen(rng, [*before(graph, node, values), x])})


def flip_operator(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A scalar function becomes another of as many operands."""
    nodes = [n for n in graph.nodes() if isinstance(n.op, Elementwise)]
    if not nodes:
        return None
    node = chosen(rng, nodes)
    names = [f.name for f in SCALARS.values() if f.arity == len(node.inputs) and f.rule != "select"]
    if not names:
        return None
    function = chosen(rng, names)
    return rebuilt(graph, {id(node): lambda b, x, values: _applied(
        b, rng, function, [values[id(i)] for i in node.inputs])})


def flip_attribute(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """An attribute of an op changes, to anything that its type rule takes."""
    nodes = [n for n in graph.nodes() if n.inputs and not isinstance(n.op, (Elementwise, While)) and attribute_names(type(n.op))
             and isinstance(n.type, TensorType)]
    if not nodes:
        return None
    node = chosen(rng, nodes)
    for _ in range(6):
        name = chosen(rng, attribute_names(type(node.op)))
        op = replace(node.op, **{name: _another(getattr(node.op, name), rng, type(node.op), name)})
        try:
            kind = op.infer(*(i.type for i in node.inputs))
        except (TilewrightError, TypeError, ValueError, IndexError, ZeroDivisionError):
            continue
        if op != node.op and isinstance(kind, TensorType) and small(kind.shape):
            return _with_op(graph, node, op)
    return None


def _with_op(graph: Graph, node: Node, op: Op) -> Graph:
    return rebuilt(graph, {id(node): lambda b, x, values: b.add(op, *(values[id(i)] for i in node.inputs))})


def _another(value: Any, rng: np.random.Generator, op_class: type[Op], name: str) -> Any:
    """A value of the kind of an attribute."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return int(value + rng.integers(-2, 3))
    if isinstance(value, float):
        return float(value * chosen(rng, (0.5, 2.0, -1.0)))
    if isinstance(value, DType):
        return chosen(rng, ARRAY_DTYPES)
    if isinstance(value, str):
        return chosen(rng, [getattr(s.op, name) for s in op_class.samples() if isinstance(s.op, op_class)] or [value])
    if isinstance(value, Dim):
        return value + int(rng.integers(-1, 2))
    if isinstance(value, tuple) and value:
        items = list(value)
        place = int(rng.integers(len(items)))
        if rng.random() < 0.3 and len(items) > 1:
            other = int(rng.integers(len(items)))
            items[place], items[other] = items[other], items[place]
        else:
            items[place] = _another(items[place], rng, op_class, name)
        return tuple(items)
    return value


def change_constant(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """Some elements of a constant, or all of them, become special values."""
    nodes = [n for n in graph.nodes() if isinstance(n.op, Const) and n.op.value.array.size]
    if not nodes:
        return None
    node = chosen(rng, nodes)
    assert isinstance(node.op, Const)
    array = node.op.value.array.copy()
    with np.errstate(all="ignore"):
        value = np.asarray(chosen(rng, SPECIAL)).astype(array.dtype) if array.dtype.kind not in "iu" else \
            np.asarray(int(np.clip(np.nan_to_num(chosen(rng, SPECIAL)), -2.0 ** 62, 2.0 ** 62))).astype(array.dtype)
    if rng.random() < 0.5:
        array[...] = value
    else:
        array.reshape(-1)[int(rng.integers(array.size))] = value
    constant = Constant(array, node.op.value.dtype)
    return rebuilt(graph, {id(node): lambda b, x, values: b.add(Const(constant))})


def splice(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value becomes one that another program computes, from values of this one."""
    node = chosen(rng, tensors(graph))
    wanted = chosen(rng, tensors(donor))
    names = {s.name for s in graph.symbols}
    if not {s.name for n in donor.nodes() if isinstance(n.type, TensorType) for s in symbols_of(*n.shape)} <= names or \
            any(_clashes(s, graph) for s in donor.symbols):
        return None

    def make(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        pool = [x, x, *before(graph, node, values)]
        inner: dict[int, Node] = {}
        for other in Graph("part", donor.params, [wanted]).nodes():
            if isinstance(other.op, Param):
                inner[id(other)] = adapted(b, chosen(rng, pool), other.tensor)
            else:
                inner[id(other)] = b.add(other.op, *(inner[id(i)] for i in other.inputs))
        return inner[id(wanted)]

    return rebuilt(graph, {id(node): make})


def _clashes(declared: Any, graph: Graph) -> bool:
    return any(s.name == declared.name and s.declaration() != declared.declaration() for s in graph.symbols)


def more_results(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """An inner value becomes a result too, or a result is one no longer."""
    results = list(graph.results)
    if len(results) > 1 and rng.random() < 0.5:
        del results[int(rng.integers(len(results)))]
    else:
        inner = [n for n in tensors(graph) if n not in results]
        if not inner:
            return None
        results.insert(int(rng.integers(len(results) + 1)), chosen(rng, inner))
    return Graph(graph.name, graph.params, results)


def grown(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """Some more steps of the generator on top."""
    return grow(graph, rng, int(rng.integers(1, 4)))


def inside(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A mutation of a body. (Those of `while` stay: they decide when it ends.)"""
    nodes = [n for n in graph.nodes() if isinstance(n.op, (If, Scan, Composite))]
    if not nodes:
        return None
    node = chosen(rng, nodes)
    names = [name for name in attribute_names(type(node.op)) if isinstance(getattr(node.op, name), Graph)]
    name = chosen(rng, names)
    body: Graph = getattr(node.op, name)
    made = MUTATORS[chosen(rng, ("insert", "delete", "rewire", "flip_operator", "flip_attribute", "change_constant"))](body, rng, donor)
    if made is None or made.params != body.params:
        return None
    op = replace(node.op, **{name: made})
    builder, values = Builder(), {}
    for other in graph.nodes():
        if isinstance(other.op, Param):
            values[id(other)] = builder.keep(other)
        else:
            values[id(other)] = builder.add(op if other is node else other.op, *(values[id(i)] for i in other.inputs))
    return Graph(graph.name, graph.params, [values[id(r)] for r in graph.results], graph.result_names)


def rule_backward(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A verified rule applied backwards somewhere: the same meaning, and something for `canonicalize` to find."""
    # right sides that are one value match everywhere and would leave the others no chance
    rules = [rule for rule in RULES.rules if rng.random() < 0.3 or not isinstance(rule.after, Variable)]
    for number in rng.permutation(len(rules))[:TRIED_RULES]:
        made = expand(graph, rules[int(number)], int(rng.integers(64)), "default")
        if made is not graph:
            return made
    return None


MUTATORS: dict[str, Mutator] = {
    "insert": insert, "delete": delete, "rewire": rewire, "flip_operator": flip_operator, "flip_attribute": flip_attribute,
    "change_constant": change_constant, "splice": splice, "more_results": more_results, "grow": grown, "inside": inside,
    "domain.movement": domain.movement, "domain.chain": domain.chain, "domain.predicate": domain.predicate,
    "domain.control": domain.control, "domain.round_trip": domain.round_trip, "domain.reduction": domain.reduction,
    "domain.alias": domain.alias, "domain.rule_backward": rule_backward, "domain.open_size": domain.open_size,
    "domain.new_extent": domain.new_extent, "domain.functions": more_functions, "domain.arithmetic": arithmetic,
    "domain.apart": memory.apart, "domain.with_itself": memory.with_itself, "domain.twin": memory.twin,
    "domain.rule_before": patterns.rule_before, "domain.known": patterns.known,
}
