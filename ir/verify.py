"""Checks that a graph keeps the rules of the graph level. Changes nothing; returns nothing; raises VerifyError.

What holds for a graph that passes:
- Nodes form no cycle. Every `param` that is reached is one of the graph's own params: bodies capture by operand only.
- Params have distinct, non-empty labels and no operands; result names are distinct.
- Every op is in the op table, allowed at the level asked for, and its attributes are of the declared kinds.
- Every node's type is the one that the op infers from its operands.
- Constants hold read-only C-contiguous arrays of their dtype.
- Every symbol is bound by a plain size of a param of the outermost graph, and one name has one declaration.
- Bodies keep the same rules and nest at most `MAX_NESTING` deep.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from .dims import Composed, Dim, Symbol, bounds, symbols_of
from .errors import CompileError, VerifyError
from .graph import Constant, Graph, Node, Op, attribute_names, attribute_problem
from .ops.compute import PackedConv, PackedDot
from .ops.control import Composite, Fusion, Param
from .ops.table import ALL_OPS
from .ops.weight_only import WeightOnlyDot
from .ops.winograd import WinogradConv
from .printer import attribute_values, format_node
from .types import TensorType, TupleType, Type

MAX_NESTING = 64
_KNOWN = frozenset(ALL_OPS)
_MADE_BY_PASSES: frozenset[type[Op]] = frozenset({Fusion, PackedDot, PackedConv, WinogradConv, WeightOnlyDot})
# level -> ops that it does not allow: "source" is what front ends make, "primitive" what `decompose` leaves
LEVELS: dict[str, frozenset[type[Op]]] = {
    "graph": frozenset(),
    "source": _MADE_BY_PASSES,
    "primitive": _MADE_BY_PASSES | {Composite},
}


def verify(graph: Graph, level: str = "graph", known: dict[int, Node] | None = None) -> None:
    """Raises VerifyError for the first rule that the graph or a body within it breaks. `known`: the nodes of earlier versions of the
    graph that passed at this level, by id; what a node must keep by itself is not checked again, and new ones are added."""
    if level not in LEVELS:
        raise CompileError(f"verify: level {level!r} is not one of {', '.join(LEVELS)}")
    declared: dict[str, Symbol] = {}
    seen: set[int] = set()
    stack: list[tuple[Graph, int]] = [(graph, 0)]
    while stack:
        current, depth = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if depth > MAX_NESTING:
            raise VerifyError(f"graph {graph.name}: bodies nest deeper than {MAX_NESTING} levels")
        _check_structure(current)
        if current is graph:
            declared = _bound_symbols(graph)
        for node in current.nodes():
            if known is None or id(node) not in known:
                _check_node(current, node, LEVELS[level], level)
                if known is not None:
                    known[id(node)] = node
            for value in attribute_values(node.type, node.op, bodies=False):
                if isinstance(value, Graph):
                    stack.append((value, depth + 1))
                elif isinstance(value, Dim):
                    _check_symbols(current, node, value, declared)


def _fail(graph: Graph, node: Node | None, message: str, hint: str = "") -> NoReturn:
    if node is None:
        raise VerifyError(f"graph {graph.name}: {message}", hint=hint)
    operands = tuple(f"operand {i}: {x.type}   {x.op.spelling}  {x.loc}" for i, x in enumerate(node.inputs))
    raise VerifyError(f"graph {graph.name}: {message}", loc=node.loc, notes=(_show(node), *operands), hint=hint)


def _show(node: Node) -> str:
    """The node's line; a broken attribute may have none."""
    try:
        return "node " + format_node(node).split("\n", 1)[0]
    except CompileError:
        return f"node {node!r}"


def _check_structure(graph: Graph) -> None:
    """What must hold before the graph may be walked: nodes, no cycle, no foreign params, distinct names."""
    labels: set[str] = set()
    params: tuple[Any, ...] = graph.params  # what was handed to Graph is not known to be nodes
    for param in params:
        if not isinstance(param, Node) or not isinstance(param.op, Param):
            _fail(graph, param if isinstance(param, Node) else None, f"parameter {param!r} is no param")
        if param.inputs:
            _fail(graph, param, "a param has operands")
        if not param.op.label or param.op.label in labels:
            what = "is empty" if not param.op.label else "occurs twice"
            _fail(graph, param, f"the label {param.op.label!r} of a param {what}", "params are told apart by their labels")
        labels.add(param.op.label)
    if len(set(graph.result_names)) != len(graph.result_names):
        _fail(graph, None, f"result names are not distinct: {', '.join(graph.result_names)}")
    _check_reachable(graph)


def _check_reachable(graph: Graph) -> None:
    own = {id(p) for p in graph.params}
    open_nodes: set[int] = set()
    closed: set[int] = set()
    for result in graph.results:
        stack: list[tuple[Any, int]] = [(result, 0)]
        while stack:
            node, position = stack.pop()
            if not isinstance(node, Node):
                _fail(graph, None, f"{node!r} stands where a node belongs")
            if position == 0:
                if id(node) in closed:
                    continue
                if id(node) in open_nodes:
                    _fail(graph, node, f"{node.op.spelling} depends on itself")
                if isinstance(node.op, Param) and id(node) not in own:
                    _fail(graph, node, f"a node reads %{node.op.label}, which is no param of this graph",
                          "a body takes what it needs of the outer graph as operands")
                open_nodes.add(id(node))
            if position < len(node.inputs):
                stack.append((node, position + 1))
                stack.append((node.inputs[position], 0))
            else:
                open_nodes.discard(id(node))
                closed.add(id(node))


def _bound_symbols(graph: Graph) -> dict[str, Symbol]:
    """The symbols that stand alone as a size of a param: calling the graph gives them a value."""
    found: dict[str, Symbol] = {}
    for param in graph.params:
        for size in param.type.shape if isinstance(param.type, TensorType) else ():
            names = symbols_of(size)
            if len(names) != 1 or str(size) != names[0].name:
                continue
            before = found.setdefault(names[0].name, names[0])
            if before != names[0]:
                _fail(graph, param, _two_declarations(before, names[0]))
    return found


def _two_declarations(first: Symbol, second: Symbol) -> str:
    return f"size {first.name} has two declarations: {first.declaration()} and {second.declaration()}"


def _check_symbols(graph: Graph, node: Node, size: Dim, declared: dict[str, Symbol]) -> None:
    for symbol in _all_symbols(size):
        if symbol.name not in declared:
            _fail(graph, node, f"nothing binds size {symbol.name} (in {size})",
                  "a symbol must stand alone as a size of some param of the outermost graph")
        if declared[symbol.name] != symbol:
            _fail(graph, node, _two_declarations(declared[symbol.name], symbol))


def _all_symbols(size: Dim) -> Iterable[Symbol]:
    """Every symbol, also where one size holds two of the same name (`symbols_of` keeps one a name)."""
    stack: list[Any] = [size]
    while stack:
        value = stack.pop()
        if isinstance(value, Symbol):
            yield value
        elif isinstance(value, Composed):
            stack.extend((value.left, value.right))
        elif isinstance(value, Dim):
            stack.extend(atom for monomial, _ in value.terms for atom, _ in monomial)


def _check_node(graph: Graph, node: Node, refused: frozenset[type[Op]], level: str) -> None:
    op = node.op
    if type(op) not in _KNOWN:
        _fail(graph, node, f"op {type(op).__name__} is not in the op table", "see docs/add-an-op.md")
    if type(op) in refused:
        _fail(graph, node, f"{op.spelling} is not allowed at level {level!r}")
    problem = attribute_problem(op)
    if problem:
        _fail(graph, node, problem)
    for name in attribute_names(type(op)):
        value = getattr(op, name)
        if isinstance(value, Constant):
            _check_constant(graph, node, value)
    try:
        inferred = op.infer(*(i.type for i in node.inputs))
    except CompileError as error:
        _fail(graph, node, f"the operands do not fit: {error.message}")
    if inferred != node.type:
        _fail(graph, node, f"{op.spelling} is typed {node.type}, but gives {inferred}")
    _check_sizes(graph, node, node.type)


def _check_constant(graph: Graph, node: Node, constant: Constant) -> None:
    array = constant.array
    if array.dtype != constant.dtype.numpy:
        _fail(graph, node, f"a constant of {constant.dtype} holds an array of {array.dtype}")
    if array.flags.writeable or not array.flags.c_contiguous:
        _fail(graph, node, "a constant's array is writeable or not C-contiguous", "make it with Constant(array)")


def _check_sizes(graph: Graph, node: Node, type: Type) -> None:
    stack: list[Type] = [type]
    while stack:
        part = stack.pop()
        if isinstance(part, TupleType):
            stack.extend(part.items)
            continue
        for size in part.shape:
            if isinstance(size, bool) or not isinstance(size, int | Dim):
                _fail(graph, node, f"a size is {size!r}, neither an integer nor symbolic")
            if bounds(size)[1] < 0:
                _fail(graph, node, f"a size is negative: {size}")
