"""Graphs that apply many scalar functions and casts to values directly, each as a result of its own; and constants of all kinds.

What machine code makes of a function depends on the function, the dtypes and whether it stands in a vector; what the function
shows depends on the values that it meets. In graphs that grow at random a function mostly meets what others left of the inputs,
and its value goes through others before anybody looks. Here nothing stands between.

Guarantees: the graphs are well typed; every function of the table and every pair of dtypes of a cast has a chance, also those that
are newer than this module.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from .. import library
from ..ir.dims import DimLike, symbol
from ..ir.errors import CompileError, TilewrightError
from ..ir.graph import Builder, Constant, Graph, Node
from ..ir.ops.compute import Bitcast, Cast, Elementwise
from ..ir.ops.control import Const, Param
from ..ir.ops.scalar import SCALARS, result_dtype
from ..ir.ops.shape import Broadcast
from ..ir.types import ARRAY_DTYPES, BOOL, U32, DType
from .input_kinds import INPUT_KINDS, array_of_kind, random_kind
from .rebuild import MOST_RESULTS, adapted, chosen, tensors

# no axis, one element, less than a vector, some vectors and a rest
SHAPES: tuple[tuple[DimLike, ...], ...] = ((), (1,), (3,), (17,), (64,), (5, 9), (2, 1, 33), (symbol("N0to40", 0, 40),),
                                          (3, symbol("N1to20", 1, 20)))
SEED_SHAPE = (33,)  # some vectors and a rest
SEED_CONSTANT = (6,)  # few enough to be spelled out in text
KNOWN = 0.25  # share of the graphs in which an operand may be a number that is known
NARROWING = 0.25  # share of the values that are cast before they are a result
COMPOSED = 0.3    # share of the functions that take what another gave


FIXED: dict[str, tuple[DType, ...]] = {"select": (BOOL,), "bfloats": (U32, U32)}  # dtypes of the first operands that no other decides


def functions_of(dtype: DType) -> list[str]:
    """The scalar functions that take operands of this dtype, last at least."""
    return [name for name, row in SCALARS.items() if _takes(name, row.arity, dtype)]


def _takes(name: str, arity: int, dtype: DType) -> bool:
    try:
        result_dtype(name, [*FIXED.get(SCALARS[name].rule, ()), *[dtype] * arity][:arity])
    except CompileError:
        return False
    return True


FUNCTIONS: dict[DType, list[str]] = {dtype: functions_of(dtype) for dtype in ARRAY_DTYPES}


def function_graph(rng: np.random.Generator) -> Graph:
    """Two or three parameters of one shape and mostly one dtype, and as many results as a case may have."""
    shape, dtype = chosen(rng, SHAPES), chosen(rng, ARRAY_DTYPES)
    builder = Builder()
    dtypes = [dtype, dtype, chosen(rng, ARRAY_DTYPES)][:int(rng.integers(2, 4))]
    params = [builder.add(Param(f"x{i}", d, shape)) for i, d in enumerate(dtypes)]
    known = [_number(builder, rng, dtype, shape)] if rng.random() < KNOWN else []
    results: list[Node] = []
    for _ in range(int(rng.integers(2, MOST_RESULTS + 1))):
        x = chosen(rng, results if results and rng.random() < COMPOSED else params)
        results.append(applied(builder, rng, x, [*params, *known, *results]))
    return Graph("functions", params, list(dict.fromkeys(results)))


def _number(b: Builder, rng: np.random.Generator, dtype: DType, shape: Sequence[DimLike]) -> Node:
    """One number of any kind in all places."""
    array = array_of_kind(dtype, (), rng, random_kind(rng))
    return b.add(Broadcast(tuple(shape)), b.add(Const(Constant(array, dtype)))) if shape else b.add(Const(Constant(array, dtype)))


def constant_seeds() -> Iterator[Graph]:
    """For each dtype a graph of constants, one of each kind of inputs."""
    rng = np.random.default_rng(0)
    for dtype in ARRAY_DTYPES:
        builder = Builder()
        arrays = [Constant(array_of_kind(dtype, SEED_CONSTANT, rng, kind), dtype) for kind in INPUT_KINDS]
        yield Graph("constants", [], list(dict.fromkeys(builder.add(Const(array)) for array in arrays))[:MOST_RESULTS])


def function_seeds() -> Iterator[Graph]:
    """Constants of every dtype and kind, and every function on every dtype that it takes, and every cast, some to a graph: the first
    of all dtypes, then the next."""
    yield from constant_seeds()
    parts = {dtype: _parted([*(d for d in ARRAY_DTYPES if d != dtype), *FUNCTIONS[dtype]]) for dtype in ARRAY_DTYPES}
    for groups in itertools.zip_longest(*parts.values(), fillvalue=()):
        for dtype, group in zip(parts, groups):
            builder = Builder()
            params = [builder.add(Param(f"x{i}", dtype, SEED_SHAPE)) for i in range(3)]
            results = [builder.add(Cast(f), params[0]) if isinstance(f, DType) else _function(builder, f, params) for f in group]
            if results:
                yield Graph("functions", params, results)


def _parted(items: Sequence[str | DType]) -> list[Sequence[str | DType]]:
    return [items[start:start + MOST_RESULTS] for start in range(0, len(items), MOST_RESULTS)]


def _function(b: Builder, name: str, operands: Sequence[Node]) -> Node:
    """The function of as many of the operands as it takes; `select` takes a comparison of the first two for its condition, words of
    bfloat16 are their bits."""
    row = SCALARS[name]
    if row.rule == "bfloats":
        words = [b.add(Bitcast(U32), x) for x in operands[:2]]
        return b.add(Elementwise(name), *words, operands[-1] if len(operands) < 3 else operands[2])
    if row.rule == "select":
        return b.add(Elementwise(name), library.scalar(b, "lt", operands[1], operands[0]), *operands[:2])
    return b.add(Elementwise(name), *operands[:row.arity])


def applied(b: Builder, rng: np.random.Generator, x: Node, pool: Sequence[Node]) -> Node:
    """A cast of the value, or a function of it and of others brought to its type."""
    draw = rng.random()
    if draw < 0.3:
        return b.add(Cast(chosen(rng, [d for d in ARRAY_DTYPES if d != x.dtype])), x)
    if draw < 0.35:
        same = [d for d in ARRAY_DTYPES if d.bits == x.dtype.bits and d != x.dtype and not (d.is_bool or x.dtype.is_bool)]
        return b.add(Bitcast(chosen(rng, same)), x) if same else x
    name = chosen(rng, FUNCTIONS[x.dtype])
    row = SCALARS[name]
    # others of its dtype have values of its kind; of the rest only what a cast leaves is seen
    others = [n for n in pool if n.dtype == x.dtype] or list(pool)
    operands = [x, *(adapted(b, chosen(rng, others), x.tensor) for _ in range(row.arity - 1))]
    if rng.random() < 0.5:
        operands.reverse()
    made = _function(b, name, operands)
    if rng.random() < NARROWING:
        return b.add(Cast(chosen(rng, ARRAY_DTYPES)), made)
    return made


def more_functions(graph: Graph, rng: np.random.Generator, donor: Graph) -> Graph | None:
    """Some functions of a value, a parameter more often than not, become results; others are no longer, where there are too many."""
    pool = [n for n in tensors(graph) if n.dtype in FUNCTIONS]
    if not pool:
        return None
    params = [n for n in pool if isinstance(n.op, Param)]
    builder = Builder()
    for node in graph.nodes():
        builder.keep(node)
    made = []
    for _ in range(int(rng.integers(1, 4))):
        x = chosen(rng, params if params and rng.random() < 0.7 else pool)
        try:
            made.append(applied(builder, rng, x, [n for n in pool if n.shape == x.shape]))
        except TilewrightError:
            continue  # no value of the pool can be brought to its type
    results = list(dict.fromkeys([*graph.results, *made]))
    return Graph(graph.name, graph.params, results[-MOST_RESULTS:])
