"""The meaning of a graph: NumPy, node by node. Slow and plain; every backend is tested against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .dims import Dim, DimLike, Symbol, evaluate, symbols_of
from .errors import ArgumentError, IndexFailure, TilewrightError
from .graph import Binding, Graph, Node
from .ops.control import Composite, Fusion, If, Param, Scan, While
from .types import TensorType

Values = tuple[Any, ...]


def bind_shapes(graph: Graph, arrays: Sequence[np.ndarray]) -> dict[str, int]:
    """The sizes of the symbols that these inputs imply; ArgumentError where they contradict types or bounds."""
    binding: dict[str, int] = {}
    pending: list[tuple[str, int, DimLike, int]] = []
    for node, array in zip(graph.params, arrays, strict=True):
        label = node.op.label if isinstance(node.op, Param) else "?"
        expected = node.tensor
        if array.dtype != expected.dtype.numpy or array.ndim != expected.rank:
            raise ArgumentError(f"{graph.name}: input {label} must be {expected}, found {array.dtype}{list(array.shape)}")
        for axis, (size, found) in enumerate(zip(expected.shape, array.shape)):
            symbol = _plain_symbol(size)
            if symbol is not None and symbol.name not in binding:
                _check_bounds(graph, label, axis, symbol, found)
                binding[symbol.name] = found
            else:
                pending.append((label, axis, size, found))
    for label, axis, size, found in pending:
        value = evaluate(size, binding)
        if value != found:
            wanted = f"{value}" if isinstance(size, int) else f"{size} = {value}"
            raise ArgumentError(f"{graph.name}: axis {axis} of input {label} must be {wanted}, found {found}")
    return binding


def _plain_symbol(size: DimLike) -> Symbol | None:
    names = symbols_of(size)
    return names[0] if isinstance(size, Dim) and len(names) == 1 and str(size) == names[0].name else None


def _check_bounds(graph: Graph, label: str, axis: int, symbol: Symbol, found: int) -> None:
    upper_ok = symbol.upper is None or found <= symbol.upper
    if found < symbol.lower or not upper_ok or found % symbol.multiple_of:
        raise ArgumentError(f"{graph.name}: axis {axis} of input {label} must be {symbol.declaration()}, found {found}")


def evaluate_graph(graph: Graph, inputs: Sequence[Any] | Mapping[str, Any], binding: Binding | None = None) -> Values:
    """The results for these inputs (by position or by name). Raises what the program's own checks raise."""
    if isinstance(inputs, Mapping):
        inputs = [inputs[p.op.label] for p in graph.params if isinstance(p.op, Param)]
    arrays = list(inputs)
    sizes = bind_shapes(graph, arrays) if binding is None else binding
    values: dict[int, Any] = {id(p): a for p, a in zip(graph.params, arrays, strict=True)}
    remaining = {id(node): 0 for node in graph.nodes()}
    for node in graph.nodes():
        for operand in node.inputs:
            remaining[id(operand)] += 1
    kept = {id(r) for r in graph.results}
    for node in graph.nodes():
        if id(node) not in values:
            values[id(node)] = evaluate_node(node, [values[id(i)] for i in node.inputs], sizes)
        for operand in node.inputs:
            remaining[id(operand)] -= 1
            if not remaining[id(operand)] and id(operand) not in kept:
                values.pop(id(operand), None)
    return tuple(values[id(r)] for r in graph.results)


def evaluate_node(node: Node, inputs: Sequence[Any], binding: Binding) -> Any:
    """One node's value; an error gets the node's location."""
    try:
        match node.op:
            case Composite(body=body) | Fusion(body=body):
                return _one(evaluate_graph(body, inputs, binding))
            case If(then_body, else_body):
                return _one(evaluate_graph(then_body if bool(inputs[0]) else else_body, inputs[1:], binding))
            case While() as op:
                return _evaluate_while(op, inputs, binding)
            case Scan() as op:
                return _evaluate_scan(op, inputs, binding)
        value = node.op.evaluate(inputs, binding)
        if isinstance(node.type, TensorType):
            return np.asarray(value)
        return value
    except (TilewrightError, IndexFailure) as error:
        error.at(node.loc)
        raise


def _one(values: Values) -> Any:
    return values[0] if len(values) == 1 else values


def _evaluate_while(op: While, inputs: Sequence[Any], binding: Binding) -> Any:
    states, captures = list(inputs[:op.count]), list(inputs[op.count:])
    while bool(evaluate_graph(op.condition, [*states, *captures], binding)[0]):
        states = list(evaluate_graph(op.body, [*states, *captures], binding))
    return _one(tuple(states))


def _evaluate_scan(op: Scan, inputs: Sequence[Any], binding: Binding) -> Any:
    middle = op.states + op.scanned
    states, scanned, captures = list(inputs[:op.states]), inputs[op.states:middle], list(inputs[middle:])
    length = evaluate(op.length, binding)
    stacked: list[np.ndarray] = []
    for result in op.body.results[op.states:]:
        shape = [evaluate(d, binding) for d in result.shape]
        stacked.append(np.zeros((length, *shape), dtype=result.dtype.numpy))
    for step in reversed(range(length)) if op.reverse else range(length):
        values = evaluate_graph(op.body, [*states, *(a[step] for a in scanned), *captures], binding)
        states = list(values[:op.states])
        for array, value in zip(stacked, values[op.states:]):
            array[step] = value
    return _one((*states, *stacked))
