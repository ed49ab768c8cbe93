"""Ops that give a graph its form: parameters, constants, tuples, control flow, composites and fused groups.

Bodies are graphs with explicit captures: the operands of the node are the body's params, in order. `if` evaluates one
side only. `while` and `scan` carry state by value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ..dims import DimLike
from ..errors import CompileError
from ..graph import Array, Binding, Constant, Graph, Op, Sample
from ..types import BOOL, DType, TensorType, TupleType, Type
from .shape import operands, tensor_operand

Evaluator = Callable[[Graph, Sequence[Any], Binding], tuple[Any, ...]]


class Param(Op, frozen=True):
    """An input of the graph."""

    name: ClassVar[str] = "param"
    label: str
    dtype: DType
    shape: tuple[DimLike, ...]

    def infer(self, *types: Type) -> Type:
        operands(self, types, 0)
        return TensorType(self.dtype, self.shape)


class Const(Op, frozen=True):
    """A value known at compile time."""

    name: ClassVar[str] = "const"
    value: Constant

    def infer(self, *types: Type) -> Type:
        operands(self, types, 0)
        return TensorType(self.value.dtype, tuple(int(n) for n in self.value.array.shape))

    def evaluate(self, inputs: Sequence[Any], binding: Binding) -> Array:
        return self.value.array

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(Constant(np.array([1.5, -2.0], dtype=np.float32))), ()),)


class MakeTuple(Op, frozen=True):
    """Several values as one."""

    name: ClassVar[str] = "tuple"

    def infer(self, *types: Type) -> Type:
        return TupleType(types)

    def evaluate(self, inputs: Sequence[Any], binding: Binding) -> tuple[Any, ...]:
        return tuple(inputs)


class Get(Op, frozen=True):
    """One item of a tuple."""

    name: ClassVar[str] = "get"
    index: int

    def infer(self, *types: Type) -> Type:
        if len(types) != 1 or not isinstance(types[0], TupleType):
            raise CompileError(f"get: needs one tuple, found {types}")
        if not 0 <= self.index < len(types[0].items):
            raise CompileError(f"get: item {self.index} of a tuple of {len(types[0].items)}")
        return types[0].items[self.index]

    def evaluate(self, inputs: Sequence[Any], binding: Binding) -> Any:
        return inputs[0][self.index]


def result_type(results: Sequence[Type]) -> Type:
    return results[0] if len(results) == 1 else TupleType(tuple(results))


def check_body(op: Op, body: Graph, types: Sequence[Type]) -> tuple[Type, ...]:
    """The results' types of a body whose params must be of the given types."""
    found = tuple(p.type for p in body.params)
    if found != tuple(types):
        raise CompileError(f"{op.spelling}: body {body.name} takes {_list(found)}, is given {_list(types)}")
    return tuple(r.type for r in body.results)


def _list(types: Sequence[Type]) -> str:
    return "(" + ", ".join(map(str, types)) + ")"


class Composite(Op, frozen=True):
    """A library function as one node: `label` names it, `body` is its meaning in primitives.

    `attributes` repeats, for passes and backends that claim it, what the body was made from (axis, epsilon, ...).
    """

    name: ClassVar[str] = "call"
    label: str
    body: Graph
    attributes: tuple[tuple[str, Any], ...] = ()

    def infer(self, *types: Type) -> Type:
        return result_type(check_body(self, self.body, types))


class Fusion(Op, frozen=True):
    """A group of nodes that becomes one kernel. `strategy` says which lowering: see `compiler/passes/fuse.py`."""

    name: ClassVar[str] = "fusion"
    strategy: str
    body: Graph

    def infer(self, *types: Type) -> Type:
        return result_type(check_body(self, self.body, types))


class If(Op, frozen=True):
    """Operands: a bool scalar, then the captures, which both bodies take. One body runs."""

    name: ClassVar[str] = "if"
    then_body: Graph
    else_body: Graph

    def infer(self, *types: Type) -> Type:
        if not types or types[0] != TensorType(BOOL, ()):
            raise CompileError(f"if: the condition must be bool[], found {types[0] if types else 'nothing'}")
        then, other = check_body(self, self.then_body, types[1:]), check_body(self, self.else_body, types[1:])
        if then != other:
            raise CompileError(f"if: the sides differ: {_list(then)} vs {_list(other)}")
        return result_type(then)


class While(Op, frozen=True):
    """Operands: `count` states, then captures. Runs `body` while `condition` gives true; both take all operands."""

    name: ClassVar[str] = "while"
    condition: Graph
    body: Graph
    count: int

    def infer(self, *types: Type) -> Type:
        condition, states = check_body(self, self.condition, types), check_body(self, self.body, types)
        if condition != (TensorType(BOOL, ()),):
            raise CompileError(f"while: the condition must give bool[], found {_list(condition)}")
        if states != tuple(types[:self.count]):
            raise CompileError(f"while: the body turns {_list(types[:self.count])} into {_list(states)}")
        return result_type(states)


class Scan(Op, frozen=True):
    """Runs `body` once for each place of the first axis of the scanned operands.

    Operands: `states` initial states, `scanned` arrays [length, ...], then captures. The body takes states, one slice
    of each scanned array, captures; gives the next states, then per-step results, which are stacked to [length, ...].
    `reverse` runs from the last place to the first (results stay at their place).
    """

    name: ClassVar[str] = "scan"
    body: Graph
    states: int
    scanned: int
    length: DimLike
    reverse: bool = False

    def infer(self, *types: Type) -> Type:
        middle = self.states + self.scanned
        slices: list[Type] = []
        for position, type in enumerate(types[self.states:middle]):
            tensor = tensor_operand(self, type, self.states + position)
            if not tensor.shape or tensor.shape[0] != self.length:
                raise CompileError(f"scan: operand {self.states + position} must have {self.length} as first size, "
                                   f"found {tensor}")
            slices.append(TensorType(tensor.dtype, tensor.shape[1:]))
        results = check_body(self, self.body, (*types[:self.states], *slices, *types[middle:]))
        if results[:self.states] != tuple(types[:self.states]):
            raise CompileError(f"scan: the body turns states {_list(types[:self.states])} into "
                               f"{_list(results[:self.states])}")
        stacked = []
        for type in results[self.states:]:
            tensor = tensor_operand(self, type)
            stacked.append(TensorType(tensor.dtype, (self.length, *tensor.shape)))
        return result_type((*results[:self.states], *stacked))
