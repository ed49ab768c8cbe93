"""The problem of a graph: an operator for each node that computes, a tensor for each value.

Views (`reshape`, a projection of a tuple, and what only names values) share the tensor of their operand. Constants are parameters, and so
is what nodes as imported compute from these alone: it is known ahead (passes leave in fused groups what is cheaper to compute).
A result that is an input or a constant moves nothing. `if`, `while` and `scan` are operators like others, with what their bodies compute
for themselves as a result that nobody reads, and the constants of these as operands. What operators may share is noted on them where that
is wanted (`permissions.py`); a schedule does it where it is allowed to. A symbolic size that the binding does not give is taken as large as
its bounds let it be: such a schedule serves every smaller one, at the same addresses. One without an upper bound is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import count
from math import prod

from ..cost import costs
from ..cost import count as count_work
from ..ir.dims import DimLike, bounds, substitute, symbols_of
from ..ir.errors import CompileError
from ..ir.graph import Graph, Node
from ..ir.ops.control import Const, Fusion, Get, If, MakeTuple, Param, Scan, While
from ..ir.ops.shape import Concat, Reshape
from ..ir.types import TensorType, TupleType, Type
from .permissions import permissions
from .problem import INPUT, PARAMETER, VALUE, Operator, Problem, Tensor, make_problem, rounded

ALIGNMENT = 64  # of what bodies compute for themselves


def problem_of(graph: Graph, sizes: Mapping[str, int] | None = None, shared: bool = False) -> Problem:
    """The problem, with parameters as tensors that are streamed (`with_parameters` says otherwise), and what may be `shared`."""
    reading = _Reading(graph, dict(sizes or {}), shared)
    results = reading.read()
    for name, node in zip(graph.result_names, graph.results):
        for t in reading.values[node]:
            tensor = reading.tensors[t]
            reading.tensors[t] = Tensor(name, tensor.bytes, tensor.kind) if tensor.kind == VALUE else tensor
    return make_problem(graph.name, reading.tensors, reading.operators, results)


class _Reading:
    """Tensors and operators found so far; `values`: the tensors of each node (several for a tuple), `constants`: by digest."""

    def __init__(self, graph: Graph, sizes: dict[str, int], shared: bool) -> None:
        self.graph, self.sizes, self.shared = graph, sizes, shared
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self.values: dict[Node, tuple[int, ...]] = {}
        self.constants: dict[str, int] = {}
        self.numbers = count()

    def read(self) -> list[int]:
        """Adds all nodes; the tensors of the results."""
        for node in self.graph.nodes():
            self.add(node)
        return [t for node in self.graph.results for t in self.values[node]]

    def add(self, node: Node) -> None:
        op = node.op
        operands = tuple(t for value in node.inputs for t in self.values[value])
        if isinstance(op, Param):
            self.values[node] = (self.tensor(op.label, node.tensor, INPUT),)
        elif isinstance(op, Const):
            self.values[node] = (self.constant(op.value.digest, op.value.array.nbytes),)
        elif isinstance(op, Get):
            self.values[node] = (self.values[node.inputs[0]][op.index],)
        elif isinstance(op, (Reshape, MakeTuple)):
            self.values[node] = operands[:1] if isinstance(op, Reshape) else operands
        elif not isinstance(op, Fusion) and not op.effect and all(self.tensors[t].kind == PARAMETER for t in operands):
            self.values[node] = tuple(self.tensor(f"constant_{next(self.numbers)}", t, PARAMETER) for t in flattened(node.type))
        else:
            name = f"{op.strategy if isinstance(op, Fusion) else op.spelling}_{next(self.numbers)}"
            source = re.search(r"node '([^']+)'", node.loc.name)
            if source is not None:
                name = f"{name} {source[1]}"
            types = flattened(node.type)
            outputs = tuple(self.tensor(name if len(types) == 1 else f"{name}.{n}", t, VALUE) for n, t in enumerate(types))
            self.values[node] = outputs
            needed, constants = self.inside(node)
            operands += tuple(self.constant(digest, size) for digest, size in constants.items())
            if needed:
                self.tensors.append(Tensor(f"{name} workspace", needed))
                outputs = (*outputs, len(self.tensors) - 1)
            leading = self.elements(types[0].shape[:op.axis]) if isinstance(op, Concat) else 1
            single = self.shared and len(operands) == len(node.inputs)  # no operand is a tuple
            allowed = permissions(node, operands, [t.bytes for t in self.tensors], outputs, leading) if single else {}
            if allowed and not self.known(node):
                allowed["concat"] = False  # what is smaller lies not side by side
            self.operators.append(Operator(name, operands, outputs, op.spelling, operations=self.operations(node), **allowed))

    def operations(self, node: Node) -> int:
        """Floating operations; of control flow those of a scan's rounds, of the dearer side, of one round of a loop that data ends."""
        match node.op:
            case Fusion(body=body):
                return self.operations_of(body)
            case If(then_body=then, else_body=other):
                return max(self.operations_of(then), self.operations_of(other))
            case While(condition=condition, body=body):
                return self.operations_of(condition) + self.operations_of(body)
            case Scan(body=body, length=length):
                return self.most(length, node.loc.name) * self.operations_of(body)
        return self.most(count_work(node)[0], node.loc.name) if costs(node) else 0

    def operations_of(self, body: Graph) -> int:
        return sum(map(self.operations, body.nodes()))

    def constant(self, digest: str, size: int) -> int:
        if digest not in self.constants:
            self.tensors.append(Tensor(f"constant_{next(self.numbers)}", size, PARAMETER))
            self.constants[digest] = len(self.tensors) - 1
        return self.constants[digest]

    def inside(self, node: Node) -> tuple[int, dict[str, int]]:
        """Bytes that the bodies of control flow need beside operands and results (what they compute, the next states of a loop, its
        condition), and the constants that they read: their bytes by digest."""
        states = 0
        match node.op:
            case If(then_body=then, else_body=other):
                bodies: tuple[Graph, ...] = (then, other)
            case While(condition=condition, body=body, count=states):
                bodies = (condition, body)
            case Scan(body=body, states=states):
                bodies = (body,)
            case _:
                return 0, {}
        readings = [_Reading(body, self.sizes, False) for body in bodies]
        needed = max(reading.most_alive() for reading in readings) + ALIGNMENT * isinstance(node.op, While)
        needed += sum(rounded(self.tensors[t].bytes, ALIGNMENT) for t in self.values[node][:states])
        return needed, {digest: reading.tensors[t].bytes for reading in readings for digest, t in reading.constants.items()}

    def most_alive(self) -> int:
        """Bytes of what the graph makes but its results, at most, in the order that it stands in; it is read here."""
        results = set(self.read())
        last = {t: number for number, operator in enumerate(self.operators) for t in (*operator.inputs, *operator.outputs)}
        most = alive = 0
        for number, operator in enumerate(self.operators):
            sizes = {t: rounded(self.tensors[t].bytes, ALIGNMENT) for t in {*operator.inputs, *operator.outputs} - results
                     if self.tensors[t].kind == VALUE}
            alive += sum(size for t, size in sizes.items() if t in operator.outputs)
            most = max(most, alive)
            alive -= sum(size for t, size in sizes.items() if last[t] == number)
        return most

    def tensor(self, name: str, type: TensorType, kind: str) -> int:
        size = type.dtype.numpy.itemsize * self.elements(type.shape, name)
        if size < 0:
            raise CompileError(f"{self.graph.name}: {name} is {type}, which has a negative size here")
        self.tensors.append(Tensor(name, size, kind))
        return len(self.tensors) - 1

    def elements(self, shape: Sequence[DimLike], name: str = "") -> int:
        return prod(self.most(axis, name) for axis in shape)

    def most(self, size: DimLike, name: str) -> int:
        """The size, or the largest that its bounds let it be."""
        found = substitute(size, self.sizes)
        largest = found if isinstance(found, int) else bounds(found)[1]
        if not isinstance(largest, int):
            symbols = symbols_of(found)
            symbol = next((s.name for s in symbols if s.upper is None), symbols[0].name)
            raise CompileError(f"{self.graph.name}: the size {symbol} of {name} is not known, and schedules are for given sizes",
                               hint=f"give it: --dims {symbol}=SIZE; with an upper bound, as in {symbol}: 0..64, it is taken at that")
        return largest

    def known(self, node: Node) -> bool:
        """Whether nothing was taken at its largest."""
        types = (type for value in (node, *node.inputs) for type in flattened(value.type))
        return all(symbol.name in self.sizes for type in types for symbol in symbols_of(*type.shape))


def flattened(type: Type) -> list[TensorType]:
    """The tensors of a type, tuples within tuples in order."""
    if isinstance(type, TupleType):
        return [inner for item in type.items for inner in flattened(item)]
    return [type]
