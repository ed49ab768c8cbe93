"""The problem of a graph: an operator for each node that computes, a tensor for each value.

Views (`reshape`, a projection of a tuple, and what only names values) share the tensor of their operand. Constants are parameters.
A result that is an input or a constant moves nothing. What operators may share is noted on them where that is wanted (`permissions.py`);
a schedule does it where it is allowed to. Sizes must be known: a symbolic one that the binding does not give is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import count

from ..ir.dims import DimLike, evaluate, symbols_of
from ..ir.errors import CompileError
from ..ir.graph import Graph, Node
from ..ir.ops.control import Const, Fusion, Get, MakeTuple, Param
from ..ir.ops.shape import Concat, Reshape
from ..ir.types import TensorType, TupleType, Type
from .permissions import permissions
from .problem import INPUT, PARAMETER, VALUE, Operator, Problem, Tensor, make_problem


def problem_of(graph: Graph, sizes: Mapping[str, int] | None = None, shared: bool = False) -> Problem:
    """The problem, with parameters as tensors that are streamed (`with_parameters` says otherwise), and what may be `shared`."""
    reading = _Reading(graph, dict(sizes or {}), shared)
    for node in graph.nodes():
        reading.add(node)
    results = [t for node in graph.results for t in reading.values[node]]
    for name, node in zip(graph.result_names, graph.results):
        for t in reading.values[node]:
            tensor = reading.tensors[t]
            reading.tensors[t] = Tensor(name, tensor.bytes, tensor.kind) if tensor.kind == VALUE else tensor
    return make_problem(graph.name, reading.tensors, reading.operators, results)


class _Reading:
    """Tensors and operators found so far; `values`: the tensors of each node (several for a tuple)."""

    def __init__(self, graph: Graph, sizes: dict[str, int], shared: bool) -> None:
        self.graph, self.sizes, self.shared = graph, sizes, shared
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.values: dict[Node, tuple[int, ...]] = {}
        self.numbers = count()

    def add(self, node: Node) -> None:
        op = node.op
        operands = tuple(t for value in node.inputs for t in self.values[value])
        if isinstance(op, Param):
            self.values[node] = (self.tensor(op.label, node.tensor, INPUT),)
        elif isinstance(op, Const):
            self.values[node] = (self.tensor(f"constant_{next(self.numbers)}", node.tensor, PARAMETER),)
        elif isinstance(op, Get):
            self.values[node] = (self.values[node.inputs[0]][op.index],)
        elif isinstance(op, (Reshape, MakeTuple)):
            self.values[node] = operands[:1] if isinstance(op, Reshape) else operands
        else:
            name = f"{op.strategy if isinstance(op, Fusion) else op.spelling}_{next(self.numbers)}"
            source = re.search(r"node '([^']+)'", node.loc.name)
            if source is not None:
                name = f"{name} {source[1]}"
            types = flattened(node.type)
            outputs = tuple(self.tensor(name if len(types) == 1 else f"{name}.{n}", t, VALUE) for n, t in enumerate(types))
            self.values[node] = outputs
            leading = self.elements(types[0].shape[:op.axis]) if isinstance(op, Concat) else 1
            single = self.shared and len(operands) == len(node.inputs)  # no operand is a tuple
            allowed = permissions(node, operands, [t.bytes for t in self.tensors], outputs, leading) if single else {}
            self.operators.append(Operator(name, operands, outputs, op.spelling, **allowed))

    def tensor(self, name: str, type: TensorType, kind: str) -> int:
        for symbol in symbols_of(*type.shape):
            if symbol.name not in self.sizes:
                raise CompileError(f"{self.graph.name}: the size {symbol.name} of {name} is not known, and schedules are for given sizes",
                                   hint=f"give it: --dims {symbol.name}=SIZE")
        size = type.dtype.numpy.itemsize * self.elements(type.shape)
        if size < 0:
            raise CompileError(f"{self.graph.name}: {name} is {type}, which has a negative size here")
        self.tensors.append(Tensor(name, size, kind))
        return len(self.tensors) - 1

    def elements(self, shape: Sequence[DimLike]) -> int:
        count = 1
        for axis in shape:
            count *= evaluate(axis, self.sizes)
        return count


def flattened(type: Type) -> list[TensorType]:
    """The tensors of a type, tuples within tuples in order."""
    if isinstance(type, TupleType):
        return [inner for item in type.items for inner in flattened(item)]
    return [type]
