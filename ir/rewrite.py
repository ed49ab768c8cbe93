"""Rewriting: a walk that rebuilds what changed, and identities written as functions.

`rewrite_graph` is the only walk that passes need: it offers every node with its rewritten operands to a `visit`
function and returns the same graph object when nothing changed. Equal nodes merge and what no result needs disappears,
because the graph is rebuilt from its results.

A `Rule` is an identity of scalar functions, written as a function that returns (before, after):

    Rule("mul_one", "exact", lambda x: (x * 1, x))

Its parameters are pattern variables: `x`, `y`, `z` match any value, names that begin with `k` uniform constants, names
that begin with `c` bools. Numbers match constants of exactly that value (0 is not -0.0), also where the constant is
broadcast. Commutative functions match in both orders. The float contract says where the identity holds for floats:
`exact` (to the bit, NaN for NaN), `reassoc` (up to rounding and the sign of zero), `bounded` (up to `bound` units in the
last place), `finite` (not for NaN or infinity). For integers and bools every rule is exact.

Guarantees: a rule lowers the pair (cost, canonical rank) of what it matches, which is checked where it is defined, so
that applying rules ends. A replacement has the type of what it replaces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import permutations
from typing import Union

import numpy as np
from msgspec import Struct
from msgspec.structs import fields, replace

from .dims import DimLike
from .errors import CompileError, InternalError
from .graph import Builder, Constant, Graph, Node, Op
from .ops.compute import Elementwise
from .ops.control import Const, Get, MakeTuple
from .ops.scalar import SCALARS
from .ops.shape import Broadcast, Reshape, Transpose
from .types import BOOL, DType, TensorType

Visit = Callable[[Builder, Node, tuple[Node, ...]], Node | tuple[Node, ...] | None]
MAX_ROUNDS = 100
MOVES = (Broadcast, Reshape, Transpose)
KNOWING = (Elementwise, *MOVES)


def rewrite_graph(graph: Graph, visit: Visit, name: str, bodies: bool = False) -> Graph:
    """The graph with nodes replaced by what `visit(builder, node, inputs)` gives for them.

    `node` is the node of the old graph, `inputs` its operands in the new one. None keeps the node (on its new operands);
    a tuple stands for a node with several results. With `bodies`, the bodies of kept nodes are rewritten too. `name` is
    the pass, for errors: InternalError where a replacement has another type.
    """
    return _Rewriting(visit, name, bodies, set()).graph(graph)


def rewrite_until_stable(graph: Graph, visit: Visit, name: str, bodies: bool = False) -> Graph:
    """`rewrite_graph` again and again until nothing changes; InternalError where that does not end. What `visit` makes of a
    node must follow from its op and its new operands alone: it sees those that it left as they are once only."""
    settled: set[Node] = set()
    for _ in range(MAX_ROUNDS):
        rewritten = _Rewriting(visit, name, bodies, settled).graph(graph)
        if rewritten is graph:
            return graph
        graph = rewritten
    raise InternalError(f"{name}: still changing graph {graph.name} after {MAX_ROUNDS} rounds",
                        hint="please report this with the graph's text")


class _Rewriting:
    """One round. `settled`: nodes of the new graph that `visit` left as they are, in this round or one before."""

    def __init__(self, visit: Visit, name: str, bodies: bool, settled: set[Node]) -> None:
        self.visit = visit
        self.name = name
        self.bodies = bodies
        self.settled = settled
        self.rewritten: dict[int, tuple[Graph, Graph]] = {}  # the old graph is held so that its id stays taken

    def graph(self, graph: Graph) -> Graph:
        """Recursion follows the nesting of bodies only."""
        builder = Builder()
        values: dict[Node, Node] = {p: p for p in graph.params}
        for node in graph.nodes():
            if node in values:
                continue
            inputs = tuple([values[i] for i in node.inputs])
            if node in self.settled and inputs == node.inputs:
                values[node] = builder.keep(node)
                continue
            builder.loc = node.loc
            if isinstance(node.op, Get) and isinstance(inputs[0].op, MakeTuple):
                values[node] = inputs[0].inputs[node.op.index]  # an item of a tuple that is made here needs no projection
                continue
            made = self.visit(builder, node, inputs)
            if made is None:
                values[node] = self.kept(builder, node, inputs)
                continue
            if isinstance(made, tuple):
                made = builder.add(MakeTuple(), *made)
            if made.type is not node.type and made.type != node.type:
                raise InternalError(f"{self.name}: {node.op.spelling} of type {node.type} was replaced by "
                                    f"{made.op.spelling} of type {made.type}", loc=node.loc,
                                    hint="please report this with the graph's text")
            values[node] = made
        results = tuple([values[r] for r in graph.results])
        if results == graph.results:
            return graph
        return Graph(graph.name, graph.params, results, graph.result_names)

    def kept(self, builder: Builder, node: Node, inputs: tuple[Node, ...]) -> Node:
        op = self.with_bodies(node.op) if self.bodies else node.op
        if op is not node.op:
            return builder.add(op, *inputs, loc=node.loc)
        # replacements have the types of what they replace
        made = builder.keep(node) if inputs == node.inputs else builder.renew(node, inputs)
        self.settled.add(made)
        return made

    def with_bodies(self, op: Op) -> Op:
        changes = {}
        for name in _names_of_bodies(type(op)):
            body = getattr(op, name)
            if id(body) not in self.rewritten:
                self.rewritten[id(body)] = (body, self.graph(body))
            if self.rewritten[id(body)][1] is not body:
                changes[name] = self.rewritten[id(body)][1]
        return replace(op, **changes) if changes else op


@lru_cache(maxsize=256)
def _names_of_bodies(op_class: type[Op]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(op_class) if field.type is Graph)


# --- patterns --------------------------------------------------------------------------------------------------------

Operand = Union["Pattern", int, float, bool]


class Pattern(Struct, frozen=True):
    """A scalar expression with variables. Operators make calls of scalar functions."""

    def __add__(self, other: Operand) -> Pattern:
        return call("add", self, other)

    def __radd__(self, other: Operand) -> Pattern:
        return call("add", other, self)

    def __sub__(self, other: Operand) -> Pattern:
        return call("sub", self, other)

    def __rsub__(self, other: Operand) -> Pattern:
        return call("sub", other, self)

    def __mul__(self, other: Operand) -> Pattern:
        return call("mul", self, other)

    def __rmul__(self, other: Operand) -> Pattern:
        return call("mul", other, self)

    def __truediv__(self, other: Operand) -> Pattern:
        return call("div", self, other)

    def __rtruediv__(self, other: Operand) -> Pattern:
        return call("div", other, self)

    def __floordiv__(self, other: Operand) -> Pattern:
        return call("floordiv", self, other)

    def __mod__(self, other: Operand) -> Pattern:
        return call("mod", self, other)

    def __pow__(self, other: Operand) -> Pattern:
        return call("pow", self, other)

    def __and__(self, other: Operand) -> Pattern:
        return call("and", self, other)

    def __or__(self, other: Operand) -> Pattern:
        return call("or", self, other)

    def __xor__(self, other: Operand) -> Pattern:
        return call("xor", self, other)

    def __lshift__(self, other: Operand) -> Pattern:
        return call("shl", self, other)

    def __rshift__(self, other: Operand) -> Pattern:
        return call("shr", self, other)

    def __neg__(self) -> Pattern:
        return call("neg", self)

    def __invert__(self) -> Pattern:
        return call("not", self)

    def __abs__(self) -> Pattern:
        return call("abs", self)


class Variable(Pattern, frozen=True):
    """Matches any value; one name, one value."""

    name: str

    @property
    def is_constant(self) -> bool:
        return self.name.startswith("k")

    @property
    def is_condition(self) -> bool:
        return self.name.startswith("c")

    def __str__(self) -> str:
        return self.name


class Literal(Pattern, frozen=True):
    """Matches a uniform constant of exactly this value in the dtype at hand."""

    value: int | float | bool

    def __str__(self) -> str:
        return str(self.value)


class Call(Pattern, frozen=True):
    """A scalar function of patterns."""

    function: str
    arguments: tuple[Pattern, ...]

    def __str__(self) -> str:
        return f"{self.function}({', '.join(map(str, self.arguments))})"


def call(function: str, *arguments: Operand) -> Pattern:
    """The scalar function of that name: what operators do not spell (`call("max", x, 0)`)."""
    if function not in SCALARS or len(arguments) != SCALARS[function].arity:
        raise CompileError(f"{function!r} is no scalar function of {len(arguments)} operands")
    return Call(function, tuple(a if isinstance(a, Pattern) else Literal(a) for a in arguments))


# relative cost of one element; what is not listed costs 2
COSTS: dict[str, int] = {
    "neg": 1, "not": 1, "abs": 1, "isnan": 1,
    "div": 8, "sqrt": 8, "floordiv": 12, "mod": 12, "rem": 12, "pow": 60, "atan2": 40, "hypot": 16, "erf": 30, "sigmoid": 24,
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "tanh", "cbrt"), 20),
    **dict.fromkeys(("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"), 30),
}
# of two spellings of one thing at one cost, the canonical one has the lower rank
RANKS: dict[str, int] = {"gt": 1, "ge": 1}


def is_constant(pattern: Pattern) -> bool:
    """Whether the pattern is known at compile time, so that constant folding removes it."""
    match pattern:
        case Literal():
            return True
        case Variable():
            return pattern.is_constant
        case Call(_, arguments):
            return all(map(is_constant, arguments))
    return False


def measure(pattern: Pattern) -> tuple[int, int]:
    """(cost, canonical rank), which every rule lowers."""
    if not isinstance(pattern, Call) or is_constant(pattern):
        return 0, 0
    parts = [measure(a) for a in pattern.arguments]
    return (COSTS.get(pattern.function, 2) + sum(c for c, _ in parts),
            RANKS.get(pattern.function, 0) + sum(r for _, r in parts))


# --- rules -----------------------------------------------------------------------------------------------------------

CONTRACTS = ("exact", "reassoc", "bounded", "finite")
# contracts that a precision allows for floats; `finite` would change what NumPy gives for NaN and infinity
ALLOWED: dict[str, frozenset[str]] = {
    "strict": frozenset({"exact"}),
    "plain": frozenset({"exact", "reassoc", "bounded"}),
    "default": frozenset({"exact", "reassoc", "bounded"}),
}
Condition = Callable[["Match"], bool]


class Match(Struct, frozen=True):
    """What a rule matched: its variables' nodes, and their dtype (that of conditions aside)."""

    dtype: DType
    nodes: Mapping[str, Node]

    def value(self, name: str) -> np.generic:
        """The element of a uniform constant."""
        found = uniform_value(self.nodes[name])
        assert found is not None
        return found


class Rule:
    """An identity of scalar functions. `kinds`: the dtype kinds that its variables (but conditions) may have, of 'biuf'.

    `bound` goes with the contract `bounded`: units in the last place. Raises CompileError where it would not go downhill.
    """

    def __init__(self, name: str, contract: str, function: Callable[..., tuple[Operand, Operand]], kinds: str = "iuf",
                 when: Condition | None = None, bound: float = 0) -> None:
        if contract not in CONTRACTS or (contract == "bounded") != (bound > 0):
            raise CompileError(f"rule {name}: contract {contract!r} with bound {bound}")
        code = function.__code__
        before, after = function(*map(Variable, code.co_varnames[:code.co_argcount]))
        if not isinstance(before, Call):
            raise CompileError(f"rule {name}: {before} is no call of a scalar function")
        after = after if isinstance(after, Pattern) else Literal(after)
        if measure(after) >= measure(before):
            raise CompileError(f"rule {name}: {after} is no cheaper than {before}")
        self.name, self.contract, self.function = name, contract, function
        self.kinds, self.when, self.bound = kinds, when, bound
        self.before: Call = before
        self.after: Pattern = after
        # what operands must have, which is looked at before the pattern is
        variables = [a for a in before.arguments if isinstance(a, Variable)]
        self.functions = frozenset([a.function for a in before.arguments if isinstance(a, Call)])
        self.literals = tuple([a.value for a in before.arguments if isinstance(a, Literal)])
        self.needs_constant = bool(self.literals) or any(a.is_constant for a in variables)
        self.repeats = len(set(variables)) < len(variables)  # one value stands in two places

    def allows(self, dtype: DType, precision: str) -> bool:
        """Whether the rule may be applied to operands of this dtype."""
        return dtype.kind in self.kinds and (not dtype.is_float or self.contract in ALLOWED[precision])

    def apply(self, builder: Builder, op: Op, inputs: Sequence[Node], precision: str) -> Node | None:
        """The right side, built on what the left side matched; None where it does not match, or all operands are known. `op` is
        the rule's function."""
        for nodes in _match_arguments(self.before, inputs, {}):
            dtypes = [x.dtype for name, x in nodes.items() if not Variable(name).is_condition]
            found = Match(dtypes[-1] if dtypes else BOOL, nodes)
            if self.allows(found.dtype, precision) and (self.when is None or self.when(found)):
                if is_known(inputs):  # rarely asked here, as few rules match, and it takes longer than they do
                    return None
                result = op.infer(*(i.type for i in inputs))
                assert isinstance(result, TensorType)
                return build(builder, self.after, nodes, result.dtype, inputs[0].shape)
        return None

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}  [{self.contract}]"


class RuleSet:
    """Rules by the function at their root, in the order given."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        names = [rule.name for rule in rules]
        if len(set(names)) != len(names):
            raise CompileError(f"two rules have one name: {sorted(n for n in names if names.count(n) > 1)[0]}")
        self._by_function: dict[str, list[Rule]] = {}
        for rule in self.rules:
            self._by_function.setdefault(rule.before.function, []).append(rule)

    def apply(self, builder: Builder, op: Op, inputs: Sequence[Node], precision: str,
              fired: Counter[str] | None = None) -> Node | None:
        """What the first rule that matches makes; `fired` counts rules by name."""
        rules = self._by_function.get(op.function, ()) if isinstance(op, Elementwise) else ()
        if not rules:
            return None
        functions = {x.op.function for x in inputs if isinstance(x.op, Elementwise)}
        repeats = len(set(inputs)) < len(inputs)
        constants: list[Node] | None = None
        for rule in rules:
            if not rule.functions <= functions or rule.repeats and not repeats:
                continue
            if rule.needs_constant:
                if constants is None:
                    constants = [x for x in inputs if uniform_value(x) is not None]
                if not constants or not all(any(is_literal(x, value) for x in constants) for value in rule.literals):
                    continue
            made = rule.apply(builder, op, inputs, precision)
            if made is not None:
                if fired is not None:
                    fired[rule.name] += 1
                return made
        return None


def uniform_value(node: Node) -> np.generic | None:
    """The element that a constant consists of throughout, also through broadcasts, reshapes and transposes."""
    while isinstance(node.op, MOVES):
        node = node.inputs[0]
    if not isinstance(node.op, Const) or not node.op.value.array.size:
        return None
    flat = node.op.value.array.reshape(-1)
    first: np.generic = flat[0]
    if flat.size > 1:
        bits = flat.view(f"u{flat.dtype.itemsize}")
        if bits[-1] != bits[0] or not (bits == bits[0]).all():
            return None
    return first


def is_known(nodes: Sequence[Node]) -> bool:
    """Whether the values are made of constants alone: constant folding evaluates them, and no rule need apply.

    Without this, a rule that computes a new constant (`1 / k`) could match what it has just made.
    """
    stack = list(nodes)
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if id(node) in seen or isinstance(node.op, Const):
            continue
        if not node.inputs or not isinstance(node.op, KNOWING):
            return False
        seen.add(id(node))
        stack.extend(node.inputs)
    return True


def is_literal(node: Node, value: int | float | bool) -> bool:
    """Whether the node is a uniform constant of exactly this value: 0 is +0.0, and True is bool's only."""
    found = uniform_value(node)
    return found is not None and found.tobytes() == _bytes_of(node.dtype, value, repr(value))


@lru_cache(maxsize=1024)
def _bytes_of(dtype: DType, value: int | float | bool, spelled: str) -> bytes | None:
    """The number in memory; None where the dtype does not have it. `spelled` tells apart what is equal: 0.0 and -0.0."""
    del spelled
    if dtype.is_bool != isinstance(value, bool) or not dtype.is_bool and not _holds(dtype, value):
        return None
    return np.asarray(value).astype(dtype.numpy).tobytes()


def _holds(dtype: DType, value: int | float) -> bool:
    if dtype.is_float:
        return True
    return value == int(value) and dtype.lowest <= value <= dtype.highest


def _match_arguments(pattern: Call, inputs: Sequence[Node], found: dict[str, Node]) -> Iterator[dict[str, Node]]:
    """Every way to match the arguments. Recursion follows the size of a rule."""
    orders = permutations(inputs) if SCALARS[pattern.function].commutative else (tuple(inputs),)
    for order in orders:
        states = [found]
        for argument, node in zip(pattern.arguments, order):
            states = [after for before in states for after in match_pattern(argument, node, before)]
        yield from states


def match_pattern(pattern: Pattern, node: Node, found: dict[str, Node] | None = None) -> Iterator[dict[str, Node]]:
    """Every way in which the node is an instance of the pattern, given what some variables stand for already."""
    found = {} if found is None else found
    match pattern:
        case Variable(name):
            if name in found:
                if found[name] is node:
                    yield found
            elif not pattern.is_constant or uniform_value(node) is not None:
                yield {**found, name: node}
        case Literal(value):
            if is_literal(node, value):
                yield found
        case Call(function):
            if isinstance(node.op, Elementwise) and node.op.function == function:
                yield from _match_arguments(pattern, node.inputs, found)


def build(builder: Builder, pattern: Pattern, nodes: Mapping[str, Node], dtype: DType, shape: Sequence[DimLike]) -> Node:
    """The pattern as nodes of this shape; `dtype` is what its result must be."""
    match pattern:
        case Variable(name):
            return nodes[name]
        case Literal(value):
            element = builder.add(Const(Constant(np.asarray(value).astype(dtype.numpy))))
            return element if not shape else builder.add(Broadcast(tuple(shape)), element)
        case Call(function, arguments):
            wanted = _argument_dtypes(function, arguments, nodes, dtype)
            operands = (build(builder, a, nodes, d, shape) for a, d in zip(arguments, wanted))
            return builder.add(Elementwise(function), *operands)
    raise CompileError(f"{pattern!r} is no pattern")


def _argument_dtypes(function: str, arguments: Sequence[Pattern], nodes: Mapping[str, Node], dtype: DType) -> list[DType]:
    rule = SCALARS[function].rule
    if rule == "select":
        return [BOOL, dtype, dtype]
    if rule in ("compare", "test"):
        known = [nodes[v.name].dtype for a in arguments for v in variables_of(a)]
        if not known:
            raise CompileError(f"{function} of literals only has no dtype")
        return [known[-1]] * len(arguments)
    return [dtype] * len(arguments)


def variables_of(pattern: Pattern) -> list[Variable]:
    """The variables in the order of their first occurrence."""
    match pattern:
        case Variable():
            return [pattern]
        case Call(_, arguments):
            return list(dict.fromkeys(v for a in arguments for v in variables_of(a)))
    return []
