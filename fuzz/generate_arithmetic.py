"""Graphs of formulas: sums of products and the like, which compilers contract, distribute and take in another order.

Each operation rounds once, in the order that is written, in every precision: a product and a sum that become one operation, a common
factor that is taken out or a difference that is taken before a product show in the last place, for inputs that fill their mantissas.
Random graphs seldom hold two such operations in a row.

Guarantees: the graphs are well typed; formulas of integers use what wraps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .. import library
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Elementwise
from ..ir.ops.control import Param
from ..ir.types import ARRAY_DTYPES, BF16, F16, F32, F64, I8, I32, U16, DType
from .generate_functions import SEED_SHAPE, SHAPES
from .rebuild import adapted, before, chosen, rebuilt, tensors

DTYPES = (F32, F32, F32, F64, F64, F16, BF16, I32, I8, U16)
# quotients may be taken by way of a reciprocal, which hides what else happens in a formula
FUNCTIONS = ("add", "add", "add", "add", "sub", "sub", "mul", "mul", "mul", "mul", "neg", "max")
OF_FLOATS = (*FUNCTIONS, "div", "sqrt")
LEAF = 0.15  # chance that a formula ends before its depth


def formula(b: Builder, rng: np.random.Generator, leaves: Sequence[Node], depth: int) -> Node:
    """A tree of arithmetic over values of one type."""
    if depth == 0 or rng.random() < LEAF:
        return chosen(rng, leaves)
    name = chosen(rng, OF_FLOATS if leaves[0].dtype.is_float else FUNCTIONS)
    if name in ("neg", "sqrt"):
        return library.scalar(b, name, formula(b, rng, leaves, depth - 1))
    return library.scalar(b, name, formula(b, rng, leaves, depth - 1), formula(b, rng, leaves, depth - 1))


def arithmetic_graph(rng: np.random.Generator, dtype: DType | None = None) -> Graph:
    """One to three formulas of two to four parameters; a later one may use those before it."""
    dtype, shape = dtype or chosen(rng, DTYPES), chosen(rng, SHAPES)
    builder = Builder()
    params = [builder.add(Param(f"x{i}", dtype, shape)) for i in range(int(rng.integers(2, 5)))]
    results: list[Node] = []
    for _ in range(int(rng.integers(1, 4))):
        results.append(formula(builder, rng, [*params, *results], int(rng.integers(2, 5))))
    return Graph("formulas", params, list(dict.fromkeys(results)))


def formula_seeds() -> Iterator[Graph]:
    """A product in a sum, one in a difference, and some formulas, of every dtype of floats; the same each time."""
    rng = np.random.default_rng(0)
    for dtype in (d for d in ARRAY_DTYPES if d.is_float):
        builder = Builder()
        x, y, z = params = [builder.add(Param(f"x{i}", dtype, SEED_SHAPE)) for i in range(3)]
        results = [library.scalar(builder, "add", library.scalar(builder, "mul", x, y), z),
                   library.scalar(builder, "sub", x, library.scalar(builder, "mul", y, z)),
                   *(formula(builder, rng, params, 3) for _ in range(3))]
        yield Graph("formulas", params, list(dict.fromkeys(results)))


def arithmetic(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """A value becomes a formula of itself and of others before it."""
    nodes = [n for n in tensors(graph) if not n.dtype.is_bool]
    if not nodes:
        return None
    node = chosen(rng, nodes)

    def make(b: Builder, x: Node, values: Mapping[int, Node]) -> Node:
        pool = before(graph, node, values)
        same = [v for v in pool if v.type == x.type] or [adapted(b, chosen(rng, pool), x.tensor)] if pool else []
        product = b.add(Elementwise("mul"), x, chosen(rng, [x, *same]))
        return formula(b, rng, [x, product, *same[-3:]], 2)

    return rebuilt(graph, {id(node): make})
