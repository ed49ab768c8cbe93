"""Sizes that are quotients, remainders or minima become plain symbols before kernels are made.

The output of a stack of strided convolutions has sizes like `(((x + 1) // 2) + 1) // 2`. A kernel does not need to know
how such a size came about: each atom that is not a symbol is given a name, the kernel takes it as an argument, and the
program computes it once at the launch. Kernels become smaller, quicker to make, and equal more often.

Guarantees: polynomial relations between sizes are kept; `Sizes.concrete` gives the sizes in the program's own symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from ..ir.dims import Composed, Dim, DimLike, bounds, dim_max, size_of, substitute, symbol
from ..ir.graph import Graph, Node, Op, attribute_names
from ..ir.types import TensorType, TupleType, Type


class Sizes(Struct):
    """The names given so far. `taken`: names of the program's own symbols."""

    taken: frozenset[str]
    names: dict[Composed, DimLike] = field(default_factory=dict)
    meaning: dict[str, DimLike] = field(default_factory=dict)

    def abstract(self, size: DimLike) -> DimLike:
        """The size with every atom that is not a symbol named."""
        if isinstance(size, int):
            return size
        total: DimLike = 0
        for monomial, coefficient in size.terms:
            product: DimLike = coefficient
            for atom, power in monomial:
                factor = self._named(atom) if isinstance(atom, Composed) else size_of(atom)
                for _ in range(power):
                    product = product * factor
            total = total + product
        return total

    def _named(self, atom: Composed) -> DimLike:
        """A symbol is never negative: what may be is one less a number, or what lies above zero less what lies below."""
        if atom not in self.names:
            value = size_of(atom)
            low, high = bounds(value)
            if high <= 0:
                self.names[atom] = -self._symbol(-value)
            elif low == -float("inf"):
                self.names[atom] = self._symbol(dim_max(value, 0)) - self._symbol(dim_max(-value, 0))
            else:
                least = min(int(low), 0)
                self.names[atom] = self._symbol(value - least) + least
        return self.names[atom]

    def _symbol(self, value: DimLike) -> DimLike:
        """A new symbol for a size that is not negative."""
        low, high = bounds(value)
        name = self._fresh()
        self.meaning[name] = value
        return symbol(name, max(int(low), 0), None if high == float("inf") else int(high))

    def _fresh(self) -> str:
        count = len(self.meaning)
        while f"n{count}" in self.taken or f"n{count}" in self.meaning:
            count += 1
        return f"n{count}"

    def concrete(self, size: DimLike) -> DimLike:
        """The size in the program's own symbols."""
        return substitute(size, self.meaning) if self.meaning else size


def abstract_graph(graph: Graph, sizes: Sizes) -> Graph:
    """The graph with every size in types and attributes abstracted; the same object where none is symbolic."""
    if not graph.symbols and not any(isinstance(d, Dim) for n in graph.nodes() for d in _sizes_of(n.type)):
        return graph
    made: dict[Node, Node] = {}
    for node in graph.nodes():
        inputs = tuple(made[i] for i in node.inputs)
        made[node] = Node(_abstract_op(node.op, sizes), inputs, _abstract_type(node.type, sizes), node.loc)
    return Graph(graph.name, [made[p] for p in graph.params], [made[r] for r in graph.results], graph.result_names)


def _sizes_of(type: Type) -> Sequence[DimLike]:
    return type.shape if isinstance(type, TensorType) else [d for t in type.items for d in _sizes_of(t)]


def _abstract_type(type: Type, sizes: Sizes) -> Type:
    if isinstance(type, TupleType):
        return TupleType(tuple(_abstract_type(t, sizes) for t in type.items))
    return TensorType(type.dtype, tuple(sizes.abstract(d) for d in type.shape))


def _abstract_op(op: Op, sizes: Sizes) -> Op:
    changes = {}
    for name in attribute_names(type(op)):
        value = getattr(op, name)
        abstracted = _abstract_value(value, sizes)
        if abstracted is not value:
            changes[name] = abstracted
    return replace(op, **changes) if changes else op


def _abstract_value(value: Any, sizes: Sizes) -> Any:
    if isinstance(value, Dim):
        return sizes.abstract(value)
    if isinstance(value, Graph):
        return abstract_graph(value, sizes)
    if isinstance(value, tuple) and value:
        parts = tuple(_abstract_value(v, sizes) for v in value)
        return parts if any(a is not b for a, b in zip(parts, value)) else value
    return value
