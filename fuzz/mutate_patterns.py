"""Mutators that make what passes look for: the left side of a rewrite rule, and values known at compile time.

A rule matches an expression, a dtype and often a number; constant folding, packing and fast algorithms want constants. Neither comes
about by chance often enough to see what a rule does to a special number, or folding to an array of zeros of both signs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .. import library
from ..ir.graph import Builder, Constant, Graph, Node
from ..ir.ops.compute import Elementwise
from ..ir.ops.control import Const, Param
from ..ir.ops.scalar import SCALARS
from ..ir.rewrite import Rule, build, variables_of
from ..ir.types import ARRAY_DTYPES, BOOL, F32, F64, I32, U8, DType, TensorType
from ..passes.canonicalize import RULES
from .generate_functions import FUNCTIONS
from .input_kinds import array_of_kind, random_kind
from .rebuild import MOST_RESULTS, adapted, before, chosen, rebuilt, tensors
from .shadow_values import Array

NUMBERS = (0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 0.25, 4.0, 3.0, 0.1, 10.0, 127.0, -128.0, 1024.0, 2.0 ** -126, 2.0 ** 127, float("inf"),
           float("nan"))
WHOLE = (0, 1, -1, 2, -2, 3, 4, 7, 8, 16, 127, -128)
# for constants: what == takes for one number, what it takes for none, one number everywhere, two numbers
ALIKE = ((0, -0.0), (0, -0.0), (0, -0.0, 1), (1, -1), (float("nan"), 1), (float("inf"), float("-inf")), (2, 2), (0, 0), (1, 1), (0, 1))
ALIKE_SHARE, ALIKE_OPERANDS = 0.4, 0.35  # of constants that parameters become, of operands of rules
SHAPES = ((), (3,), (17,), (4, 9))
SEED_SHAPE = (17,)
SEED_ALIKE = ((0.0, -0.0), (float("nan"), 1.0), (1.0, 1.0))
STAND_INS: Mapping[str, tuple[DType, ...]] = {"f": (F32, F64), "i": (I32,), "u": (U8,), "b": (BOOL,)}


def rule_before(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """The left side of a rewrite rule stands where a value stood, and reads it and others."""
    rule = chosen(rng, RULES.rules)
    fitting = [n for n in tensors(graph) if n.dtype.kind in rule.kinds]
    node = chosen(rng, fitting or tensors(graph))

    def make(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        if x.dtype.kind not in rule.kinds:
            x = adapted(b, x, TensorType(chosen(rng, STAND_INS[chosen(rng, list(rule.kinds))]), x.shape))
        return left_side(b, rng, rule, x, before(graph, node, values))

    return rebuilt(graph, {id(node): make})


def rule_graph(rng: np.random.Generator) -> Graph:
    """The left sides of some rules for one dtype, each a result, of parameters and of each other."""
    b = Builder()
    dtype = chosen(rng, ARRAY_DTYPES)
    shape = chosen(rng, SHAPES)
    params = [b.add(Param(f"x{i}", d, shape)) for i, d in enumerate((dtype, dtype, BOOL))]
    rules = [rule for rule in RULES.rules if dtype.kind in rule.kinds]
    results: list[Node] = []
    for _ in range(MOST_RESULTS):
        operands = [n for n in results if n.dtype == dtype]
        x = chosen(rng, operands if operands and rng.random() < 0.2 else params[:2])
        results.append(left_side(b, rng, chosen(rng, rules), x, [*params, *results]))
    return Graph("rules", params, list(dict.fromkeys(results)))


def rule_seeds() -> Iterator[Graph]:
    """The left side of every rule, for a dtype of each kind that it is for: some in a graph, each a result."""
    rng = np.random.default_rng(0)
    for kind, dtypes in STAND_INS.items():
        rules = [rule for rule in RULES.rules if kind in rule.kinds]
        for first in range(0, len(rules), MOST_RESULTS):
            b = Builder()
            params = [b.add(Param(f"x{i}", d, SEED_SHAPE)) for i, d in enumerate((dtypes[0], dtypes[0], BOOL))]
            made = [left_side(b, rng, rule, params[0], params) for rule in rules[first:first + MOST_RESULTS]]
            yield Graph("rules", params, list(dict.fromkeys(made)))


def known_seeds() -> Iterator[Graph]:
    """Every function of two numbers with a constant for one of them, of numbers that look alike: as they are, or after what folding leaves
    of them."""
    rng = np.random.default_rng(0)
    names = [name for name in FUNCTIONS[F32] if SCALARS[name].arity == 2]
    for numbers in SEED_ALIKE:
        for first in range(0, len(names), MOST_RESULTS):
            b = Builder()
            x = b.add(Param("x0", F32, SEED_SHAPE))
            known = b.add(Const(Constant(rng.choice(numbers, size=SEED_SHAPE).astype(np.float32), F32)))
            results = []
            for number, name in enumerate(names[first:first + MOST_RESULTS]):
                other = library.scalar(b, "neg", known) if number % 2 else known
                results.append(b.add(Elementwise(name), *((x, other) if number % 3 else (other, x))))
            yield Graph("known", [x], results)


def left_side(b: Builder, rng: np.random.Generator, rule: Rule, x: Node, pool: Sequence[Node]) -> Node:
    """The left side of the rule, with x for its first value and others of the pool brought to the type of x for the rest."""
    operands: dict[str, Node] = {}
    for variable in variables_of(rule.before):
        if variable.is_condition:
            operands[variable.name] = _condition(b, rng, x, pool)
        elif variable.is_constant:
            operands[variable.name] = _everywhere(b, rng, x)
        else:
            operands[variable.name] = _other(b, rng, x, pool) if x in operands.values() else x
    return build(b, rule.before, operands, x.dtype, x.shape)


def _other(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """A value of the type of x, mostly not x: what is exchanged by mistake is seen where the two differ."""
    others = [n for n in pool if n is not x and n.dtype == x.dtype] or [n for n in pool if n is not x]
    draw = rng.random()
    if draw < 0.15:
        return x
    if draw < 0.7 and others:
        return adapted(b, chosen(rng, others), x.tensor)
    return _everywhere(b, rng, x)


def _condition(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    bools = [n for n in pool if n.dtype.is_bool]
    if bools and rng.random() < 0.6:
        return adapted(b, chosen(rng, bools), TensorType(BOOL, x.shape))
    return library.scalar(b, chosen(rng, ("lt", "le", "eq", "ne")), x, _other(b, rng, x, pool))


def _everywhere(b: Builder, rng: np.random.Generator, x: Node) -> Node:
    """A number as an array like x; one that the dtype does not hold is what a cast makes of it. Now and then numbers that look like one
    number: a rule for a constant must tell them apart."""
    if x.rank and x.tensor.is_static and rng.random() < ALIKE_OPERANDS:
        return b.add(Const(Constant(_alike(x.tensor, rng), x.dtype)))
    with np.errstate(all="ignore"):
        return library.full(b, _number(rng, x.dtype), x.dtype, x.shape)


def _number(rng: np.random.Generator, dtype: DType) -> float | int | bool:
    if dtype.is_float:
        return float(chosen(rng, NUMBERS))
    if dtype.is_bool:
        return bool(rng.integers(2))
    return int(chosen(rng, [n for n in WHOLE if dtype.lowest <= n <= dtype.highest]))


def known(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """Some parameters become constants, as weights and tables are, so that at least one is left; or a constant becomes a parameter."""
    static = [p for p in graph.params if p.tensor.is_static]
    constants = [n for n in graph.nodes() if isinstance(n.op, Const) and n.op.value.array.size > 1]
    if constants and rng.random() < 0.25:
        node = chosen(rng, constants)
        label = f"known{len(graph.params)}"
        if any(isinstance(p.op, Param) and p.op.label == label for p in graph.params):
            return None
        return _exchanged(graph, {id(node): Param(label, node.dtype, node.shape)})
    if not static or len(graph.params) < 2:
        return None
    picked = [p for p in static if rng.random() < 0.6][:len(graph.params) - 1] or [chosen(rng, static)]
    kind, alike = random_kind(rng), rng.random() < ALIKE_SHARE
    arrays = [_alike(p.tensor, rng) if alike else array_of_kind(p.dtype, p.tensor.static_shape, rng, kind) for p in picked]
    return _exchanged(graph, {id(p): Const(Constant(array, p.dtype)) for p, array in zip(picked, arrays)})


def _alike(type: TensorType, rng: np.random.Generator) -> Array:
    """An array of two or three numbers that look alike."""
    with np.errstate(all="ignore"):  # numbers that the dtype does not hold
        return rng.choice(chosen(rng, ALIKE), size=type.static_shape).astype(type.dtype.numpy)


def _exchanged(graph: Graph, changes: Mapping[int, Const | Param]) -> Graph:
    """The graph with params as constants, or constants as params."""
    b = Builder()
    values: dict[int, Node] = {}
    for node in graph.nodes():
        op = changes.get(id(node))
        if op is not None:
            values[id(node)] = b.add(op)
        else:
            values[id(node)] = b.keep(node) if isinstance(node.op, Param) else b.add(node.op, *(values[id(i)] for i in node.inputs))
    params = [values[id(p)] for p in graph.params if id(p) not in changes]
    made = [values[place] for place, op in changes.items() if isinstance(op, Param)]
    return Graph(graph.name, [*params, *made], [values[id(r)] for r in graph.results], graph.result_names)
