"""Totality: whatever the op table and the fuzzer's generator can say, the whole compiler turns into machine code that
computes what the interpreter of graphs does, on any number of threads and for old and new CPUs alike.

Every failure prints the seed; `random_graph(seed)` gives the graph again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from comparing import assert_identical
from compiled import assert_near, compiled, run_compiled, runs_here, tolerance_of

from tilewright import library as lib
from tilewright.fuzz.generate import DEFAULT_DTYPES, random_graph, random_inputs, sample_graph
from tilewright.ir.dims import DimLike, evaluate, product, symbol
from tilewright.ir.graph import Builder, Graph, Node, Op
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import ArgReduce, ArgSort, Conv, Cumulative, Dot, ReduceWindow, Sort
from tilewright.ir.ops.control import Composite, Const, Fusion, Get, If, MakeTuple, Param, Scan, While
from tilewright.ir.ops.scalar import SCALARS
from tilewright.ir.ops.shape import Concat, Pad, ScatterND, SizeOf, Slice, Take, UpdateSlice
from tilewright.ir.ops.table import ALL_OPS
from tilewright.ir.printer import format_graph
from tilewright.ir.types import (
    ARRAY_DTYPES,
    BF16,
    BOOL,
    F16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    DType,
    TensorType,
)
from tilewright.lowering.abstract import Sizes, abstract_graph

OTHER_TARGETS = ("cpu:x86-64", "cpu:x86-64-v3")  # SSE2 without fused multiply-add; AVX2 without masks
CHUNK = 20  # random graphs of one test


def agree(graph: Graph, inputs: Sequence[np.ndarray], target: str = "cpu", label: str = "") -> None:
    """Machine code gives what the graph means, bit for bit the same on one and two threads."""
    try:
        with np.errstate(all="ignore"):
            expected = evaluate_graph(graph, inputs)
        check(compiled(graph, target), graph, inputs, expected)
    except BaseException as error:
        error.add_note(f"{label}\n{format_graph(graph)}")
        raise


def check(executable: object, graph: Graph, inputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    one = run_compiled(executable, inputs)
    assert_near(one, expected, tolerance_of(graph))
    assert_identical(run_compiled(executable.with_threads(2), inputs), one)


# --- every op ----------------------------------------------------------------------------------------------------------


def body_of(types: Sequence[TensorType], make: Callable[..., Node | tuple[Node, ...]]) -> Graph:
    b = Builder()
    params = [b.add(Param(f"s{i}", t.dtype, t.shape)) for i, t in enumerate(types)]
    made = make(b, *params)
    return Graph("body", params, made if isinstance(made, tuple) else [made])


def one(shape: Sequence[DimLike], make: Callable[..., Node | tuple[Node, ...]], dtype: DType = F32) -> Graph:
    """A graph of one input."""
    return body_of([TensorType(dtype, tuple(shape))], make)


NUMBER, VECTOR = TensorType(I64, ()), TensorType(F32, (5,))


def counted(b: Builder, x: Node) -> tuple[Node, ...]:
    condition = body_of([NUMBER, VECTOR], lambda b, i, v: lib.apply(b, "lt", i, lib.constant(b, 3, I64)))
    step = body_of([NUMBER, VECTOR], lambda b, i, v: (lib.apply(b, "add", i, lib.constant(b, 1, I64)), lib.scalar(b, "add", v, v)))
    return lib.results_of(b, b.add(While(condition, step, 2), lib.constant(b, 0, I64), x))


def branch(b: Builder, x: Node) -> Node:
    positive = lib.apply(b, "gt", lib.reduce(b, "sum", x, (0,)), lib.constant(b, 0.0, F32))
    return b.add(If(body_of([VECTOR], lambda b, v: lib.scalar(b, "neg", v)), body_of([VECTOR], lambda b, v: v)), positive, x)


def running(b: Builder, x: Node) -> tuple[Node, ...]:
    step = body_of([VECTOR, VECTOR], lambda b, s, v: (lib.scalar(b, "add", s, v), lib.scalar(b, "max", s, v)))
    return lib.results_of(b, b.add(Scan(step, 1, 1, 4), lib.full(b, 0, F32, (5,)), x))


def tupled(b: Builder, x: Node) -> Node:
    pair = b.add(MakeTuple(), x, lib.scalar(b, "neg", x))
    return b.add(Get(1), pair)


# the ops of form, which mean nothing by themselves
FORMS: dict[type[Op], Graph] = {
    Param: one((5,), lambda b, x: x),
    Const: one((5,), lambda b, x: (x, lib.constant(b, np.arange(40, dtype=np.float32)))),
    MakeTuple: one((5,), tupled),
    Get: one((5,), tupled),
    Composite: one((3, 5), lambda b, x: lib.softmax(b, x, 1)),
    Fusion: one((5,), lambda b, x: lib.scalar(b, "neg", x)),  # made by the pass `fuse` and by nothing else
    If: one((5,), branch),
    While: one((5,), counted),
    Scan: one((4, 5), running),
}


def samples_of(op: type[Op]) -> list[Graph]:
    return [sample_graph(sample) for sample in op.samples()]


@pytest.mark.parametrize("op", ALL_OPS, ids=lambda op: op.__name__)
def test_every_op_becomes_code(op: type[Op]) -> None:
    graphs = samples_of(op) + ([FORMS[op]] if op in FORMS else [])
    assert graphs, f"{op.__name__} needs a sample, or a graph in FORMS"
    for number, graph in enumerate(graphs):
        inputs, _ = random_inputs(graph, np.random.default_rng(number))
        agree(graph, inputs, label=f"sample {number} of {op.__name__}")


@pytest.mark.parametrize("target", OTHER_TARGETS)
@pytest.mark.slow
def test_every_op_on_other_cpus(target: str) -> None:
    if not runs_here(target):
        pytest.skip(f"this machine cannot run {target}")
    for op in ALL_OPS:
        for number, graph in enumerate(samples_of(op)):
            inputs, _ = random_inputs(graph, np.random.default_rng(number))
            agree(graph, inputs, target, f"sample {number} of {op.__name__} on {target}")


def test_every_scalar_function_has_a_sample() -> None:
    spelled = {sample.op.spelling for op in ALL_OPS for sample in op.samples()}
    assert set(SCALARS) <= spelled


# --- random graphs -----------------------------------------------------------------------------------------------------


def random_agree(seed: int, target: str = "cpu", dtypes: Sequence[DType] = DEFAULT_DTYPES, size: int = 12,
                 special: bool = False) -> None:
    """One random graph on two sets of inputs, which bind its symbols differently."""
    graph = random_graph(seed, size, dtypes)
    try:
        # a transposed convolution multiplies no zeros that are not there, so infinite weights make no NaN; strict ones do
        transposed = special and any(isinstance(n.op, Conv) and max(n.op.input_dilation) > 1 for n in graph.nodes())
        executable = compiled(graph, target, precision="strict" if transposed else "default")
        for draw in range(2 if graph.symbols else 1):
            inputs, _ = random_inputs(graph, np.random.default_rng((seed, draw)), special)
            with np.errstate(all="ignore"):
                expected = evaluate_graph(graph, inputs)
            check(executable, graph, inputs, expected)
    except BaseException as error:
        error.add_note(f"random_graph({seed}, {size}, {[str(d) for d in dtypes]}) on {target}\n{format_graph(graph)}")
        raise


def chunks(first: int, count: int) -> Iterator[range]:
    """Seeds in portions, each a test, so that tests on several processes share the work."""
    return (range(start, min(start + CHUNK, first + count)) for start in range(first, first + count, CHUNK))


def seeds(first: int, count: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("seeds", list(chunks(first, count)), ids=lambda r: f"{r.start}-{r.stop - 1}")


def test_a_few_random_graphs() -> None:
    """What a quick run has time for."""
    for seed in range(900_000, 900_008):
        random_agree(seed)


@pytest.mark.slow
@seeds(0, 200)
def test_random_graphs(seeds: range) -> None:
    for seed in seeds:
        random_agree(seed)


@pytest.mark.slow
@seeds(10_000, 20)
def test_large_random_graphs(seeds: range) -> None:
    for seed in seeds:
        random_agree(seed, size=30)


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [(F16, BF16, F32, BOOL), (I8, U8, I16, U16, F32), (U32, U64, I64, F64), ARRAY_DTYPES],
                         ids=lambda dtypes: "all" if len(dtypes) > 5 else "-".join(map(str, dtypes)))
def test_random_graphs_of_other_dtypes(dtypes: Sequence[DType]) -> None:
    for seed in range(20_000, 20_000 + CHUNK // 2):
        random_agree(seed, dtypes=dtypes)


@pytest.mark.slow
@seeds(30_000, 40)
def test_random_graphs_of_nan_and_infinity(seeds: range) -> None:
    """Every float input holds NaN, both infinities and -0.0."""
    for seed in seeds:
        random_agree(seed, special=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", OTHER_TARGETS)
@seeds(40_000, 20)
def test_random_graphs_on_other_cpus(seeds: range, target: str) -> None:
    if not runs_here(target):
        pytest.skip(f"this machine cannot run {target}")
    for seed in seeds:
        random_agree(seed, target)


class Bound(Sizes, kw_only=True):
    """Replaces symbols by numbers."""

    binding: dict[str, int]

    def abstract(self, size: DimLike) -> DimLike:
        return evaluate(size, self.binding)


@pytest.mark.slow
def test_symbolic_sizes_agree_with_static_ones() -> None:
    """The same graph with its sizes known: another schedule, the same results."""
    met = 0
    for seed in range(50_000, 50_000 + 2 * CHUNK):
        graph = random_graph(seed)
        if not graph.symbols:
            continue
        met += 1
        inputs, binding = random_inputs(graph, np.random.default_rng(seed))
        static = abstract_graph(graph, Bound(frozenset(binding), binding=binding))
        assert not static.symbols
        assert_near(run_compiled(compiled(static), inputs), run_compiled(compiled(graph), inputs), tolerance_of(graph))
    assert met > CHUNK


# --- chains of elementwise functions ---------------------------------------------------------------------------------------

CHAINS: dict[str, Callable[[Builder, Node, Node], Node]] = {
    "clip": lambda b, x, y: lib.apply(b, "min", lib.apply(b, "max", x, lib.like(b, -1.0, x)), y),
    "swish": lambda b, x, y: lib.apply(b, "mul", x, lib.scalar(b, "sigmoid", lib.apply(b, "mul", x, y))),
    "compare": lambda b, x, y: lib.scalar(b, "select", lib.apply(b, "lt", x, y), lib.apply(b, "div", x, y), lib.scalar(b, "neg", y)),
    "roots": lambda b, x, y: lib.apply(b, "hypot", lib.scalar(b, "sqrt", x), lib.scalar(b, "cbrt", y)),
    "logs": lambda b, x, y: lib.apply(b, "sub", lib.scalar(b, "log1p", x), lib.scalar(b, "exp", y)),
    "powers": lambda b, x, y: lib.apply(b, "add", lib.apply(b, "pow", x, y), lib.apply(b, "atan2", x, y)),
    "integers": lambda b, x, y: lib.apply(b, "add", lib.cast(b, lib.cast(b, x, I32), x.dtype), lib.scalar(b, "round", y)),
    "signs": lambda b, x, y: lib.apply(b, "div", lib.like(b, 1.0, x), lib.apply(b, "copysign", lib.scalar(b, "abs", x), y)),
    "quotients": lambda b, x, y: lib.apply(b, "add", lib.apply(b, "floordiv", x, y), lib.apply(b, "mod", x, y)),
    "tests": lambda b, x, y: lib.apply(b, "xor", lib.scalar(b, "isnan", x), lib.scalar(b, "isinf", y)),
    "largest": lambda b, x, y: lib.apply(b, "fmax", lib.apply(b, "fmin", x, y), lib.scalar(b, "tanh", y)),
}


@pytest.mark.parametrize("dtype", [F32, F64, F16], ids=str)
def test_chains_on_special_values(dtype: DType) -> None:
    """Every pair of special values, and of their neighbours, through chains that fuse: NaN, infinities and signs of zero
    survive, or do not, as the interpreter says."""
    limits = np.finfo(dtype.numpy)
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0, 7.5, 40.0, -1e3, limits.max, limits.min,
                       limits.tiny, -limits.smallest_subnormal], dtype.numpy)
    pairs = np.array(list(itertools.product(values, values)), dtype.numpy)
    kind = TensorType(dtype, (len(pairs),))
    graph = body_of([kind, kind], lambda b, x, y: tuple(make(b, x, y) for make in CHAINS.values()))
    inputs = [np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])]
    with np.errstate(all="ignore"):
        expected = evaluate_graph(graph, inputs)
    found = run_compiled(compiled(graph), inputs)
    for name, ours, theirs in zip(CHAINS, found, expected):
        assert_near([ours], [theirs], {F32: 1e-5, F64: 1e-13, F16: 2e-3}[dtype])
        if ours.dtype.kind == "f":
            zeros = ~np.isnan(theirs) & (theirs == 0)
            np.testing.assert_array_equal(np.signbit(ours[zeros]), np.signbit(theirs[zeros]), name)


@pytest.mark.parametrize("dtype", [d for d in ARRAY_DTYPES if d.is_integer], ids=str)
def test_integers_never_trap(dtype: DType) -> None:
    """Division by zero, its overflow, shifts past the width and wrapping sums, in one fused chain."""
    values = np.array([dtype.lowest, dtype.lowest + 1, dtype.highest, 0, 1, 2, 5, dtype.bits - 1, dtype.bits, dtype.bits + 3],
                      dtype.numpy)
    values = np.concatenate([values, values[:0] if dtype.kind == "u" else np.array([-1, -7], dtype.numpy)])
    pairs = np.array(list(itertools.product(values, values)), dtype.numpy)
    kind = TensorType(dtype, (len(pairs),))
    names = ("add", "mul", "floordiv", "mod", "rem", "shl", "shr", "min")
    graph = body_of([kind, kind], lambda b, x, y: tuple(lib.apply(b, name, x, y) for name in names))
    agree(graph, [np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])])


# --- contractions and windows: sizes around the edges of register tiles ------------------------------------------------------


def whole(shape: Sequence[int], dtype: DType, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(-2, 3, shape).astype(dtype.numpy)


def dot_graph(rows: DimLike, depth: DimLike, columns: DimLike, dtype: DType, weights: np.ndarray | None = None) -> Graph:
    """A matrix product with a bias and a function behind it."""
    b = Builder()
    x = b.add(Param("x", dtype, (rows, depth)))
    y = lib.constant(b, weights) if weights is not None else b.add(Param("y", dtype, (depth, columns)))
    bias = b.add(Param("bias", dtype, (columns,)))
    value = lib.apply(b, "add", b.add(Dot((1,), (0,)), x, y), bias)
    params = [x, bias] if weights is not None else [x, y, bias]
    return Graph("dot", params, [lib.scalar(b, "abs", value)])


DOT_SIZES = [(1, 3, 7), (1, 64, 200), (2, 16, 1), (5, 1, 49), (6, 65, 48), (7, 33, 16), (8, 16, 47), (13, 17, 97), (29, 5, 31),
             (64, 65, 130), (1, 1, 1), (3, 0, 4), (0, 3, 4), (3, 4, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I32, I8], ids=str)
@pytest.mark.parametrize("target", ["cpu", *OTHER_TARGETS])
def test_dots_at_the_edges_of_tiles(dtype: DType, target: str) -> None:
    if not runs_here(target):
        pytest.skip(f"this machine cannot run {target}")
    rng = np.random.default_rng(7)
    for rows, depth, columns in DOT_SIZES if dtype == F32 else DOT_SIZES[::3]:
        graph = dot_graph(rows, depth, columns, dtype)
        agree(graph, [whole(s, dtype, rng) for s in ((rows, depth), (depth, columns), (columns,))], target)


def test_dots_of_symbolic_sizes() -> None:
    """One program for all sizes, none and one among them; with operands from outside and with packed constants."""
    rng = np.random.default_rng(8)
    rows, depth, columns = symbol("M"), symbol("K"), symbol("N")
    anything = dot_graph(rows, depth, columns, F32)
    weights = whole((20, 50), F32, rng)
    fixed = dot_graph(rows, 20, 50, F32, weights)
    first, second = compiled(anything), compiled(fixed)
    for m, k, n in ((0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (1, 20, 50), (5, 7, 16), (6, 16, 33), (7, 31, 48), (25, 20, 97)):
        inputs = [whole(s, F32, rng) for s in ((m, k), (k, n), (n,))]
        check(first, anything, inputs, evaluate_graph(anything, inputs))
        inputs = [whole(s, F32, rng) for s in ((m, 20), (50,))]
        check(second, fixed, inputs, evaluate_graph(fixed, inputs))


def test_batched_and_transposed_dots() -> None:
    rng = np.random.default_rng(9)
    cases = [(Dot((2,), (1,), (0,), (0,)), (3, 5, 7), (3, 7, 18)), (Dot((1,), (2,), (0,), (0,)), (2, 9, 6), (2, 17, 9)),
             (Dot((0,), (0,)), (9, 4), (9, 21)), (Dot((1, 2), (0, 1)), (4, 3, 5), (3, 5, 19)), (Dot((), ()), (4,), (33,)),
             (Dot((0,), (0,)), (40,), (40,)), (Dot((1,), (0,)), (4, 40), (40,)), (Dot((0,), (1,)), (40,), (17, 40)),
             (Dot((3,), (3,), (0, 1), (0, 1)), (2, 3, 4, 8), (2, 3, 6, 8))]
    for op, left, right in cases:
        graph = body_of([TensorType(F32, left), TensorType(F32, right)], lambda b, x, y, op=op: b.add(op, x, y))
        agree(graph, [whole(left, F32, rng), whole(right, F32, rng)], label=str(op))


CONVOLUTIONS = [
    # spatial sizes, channels in and out, groups, kernel, stride, dilation, input dilation, padding
    ((9,), 3, 20, 1, 3, 1, 1, 1, (1, 1)), ((6, 7), 1, 1, 1, 1, 1, 1, 1, (0, 0)), ((6, 7), 16, 33, 1, 1, 1, 1, 1, (0, 0)),
    ((6, 7), 16, 33, 1, 1, 2, 1, 1, (1, 0)), ((6, 7), 3, 49, 1, 3, 2, 1, 1, (1, 0)), ((6, 7), 4, 18, 1, 3, 1, 2, 1, (2, 2)),
    ((6, 7), 4, 4, 4, 3, 1, 1, 1, (1, 1)), ((6, 7), 4, 8, 2, 2, 2, 1, 1, (1, 1)), ((5, 4), 3, 17, 1, 3, 1, 1, 2, (1, 1)),
    ((5, 4), 2, 5, 1, 2, 2, 2, 2, (2, 1)), ((4, 5, 3), 3, 16, 1, 2, 1, 1, 1, (1, 0)), ((4, 5, 3), 6, 6, 3, 3, 2, 1, 1, (1, 1)),
]


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64"])
def test_convolutions(channels_last: bool, target: str) -> None:
    rng = np.random.default_rng(10)
    for spatial, c, out, groups, kernel, stride, dilation, spread, padding in CONVOLUTIONS:
        rank = len(spatial)
        taps = (kernel,) * rank
        x = (2, *spatial, c) if channels_last else (2, c, *spatial)
        w = (*taps, c // groups, out) if channels_last else (out, c // groups, *taps)
        op = Conv((stride,) * rank, (padding,) * rank, (dilation,) * rank, (spread,) * rank, groups, channels_last)
        graph = body_of([TensorType(F32, x), TensorType(F32, w)], lambda b, x, w, op=op: lib.scalar(b, "abs", b.add(op, x, w)))
        agree(graph, [whole(x, F32, rng), whole(w, F32, rng)], target, str(op))


def test_convolution_of_symbolic_sizes() -> None:
    """Strides make sizes quotients of sizes."""
    rng = np.random.default_rng(11)
    height, width = symbol("H", 3), symbol("W", 3)
    weights = [whole(s, F32, rng) for s in ((8, 3, 3, 3), (20, 8, 3, 3))]
    op = Conv((2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1))

    def make(b: Builder, x: Node) -> Node:
        for w in weights:
            x = lib.apply(b, "max", b.add(op, x, lib.constant(b, w)), lib.constant(b, 0.0, F32))
        pooled = b.add(ReduceWindow("max", (1, 1, 2, 2), (1, 1, 1, 1), ((0, 0), (0, 0), (1, 0), (1, 0)), (1, 1, 1, 1)), x)
        return lib.mean(b, pooled, (2, 3))

    graph = one((symbol("N"), 3, height, width), make)
    executable = compiled(graph)
    for shape in ((1, 3, 3, 3), (2, 3, 8, 5), (0, 3, 4, 4), (1, 3, 17, 12)):
        inputs = [whole(shape, F32, rng)]
        check(executable, graph, inputs, evaluate_graph(graph, inputs))


# --- nothing, one, and many elements -----------------------------------------------------------------------------------------

ROWS: dict[str, Callable[[Builder, Node], Node | tuple[Node, ...]]] = {
    "softmax": lambda b, x: lib.softmax(b, x, 1),
    "softmax of columns": lambda b, x: lib.softmax(b, x, 0),
    "norm": lambda b, x: lib.layer_norm(b, x, lib.constant(b, 2.0, F32), lib.constant(b, 1.0, F32), (1,), 1e-3),
    "sums": lambda b, x: (lib.reduce(b, "sum", x, (1,)), lib.reduce(b, "sum", x, (0,)), lib.reduce(b, "sum", x, (0, 1))),
    "sort": lambda b, x: (b.add(Sort(1, True), x), b.add(ArgSort(0), x)),
    "cumulative": lambda b, x: (b.add(Cumulative("sum", 1), x), b.add(Cumulative("max", 0, reverse=True), x)),
    "concat": lambda b, x: b.add(Concat(1), x, lib.scalar(b, "neg", x), x),
    "pad": lambda b, x: b.add(Pad((1, 0), (2, 3)), x, lib.constant(b, 7.0, F32)),
    "transpose": lambda b, x: lib.reshape(b, lib.transpose(b, x, (1, 0)), (product(x.shape),)),
    "size": lambda b, x: lib.apply(b, "add", lib.cast(b, b.add(SizeOf(x.shape[1])), F32), x),
    "center": lambda b, x: lib.apply(b, "sub", x, lib.mean(b, x, (1,), keep=True)),
    "broadcast sum": lambda b, x: (lib.softmax(b, lib.broadcast(b, lib.reduce(b, "max", x, (0, 1)), (8,)), 0), x),
}
SHAPES = ((3, 17), (1, 1), (1, 40), (40, 1), (5, 64), (33, 100))
EMPTY = ((0, 4), (4, 0), (0, 0))
NEEDS_ELEMENTS = {"softmax", "softmax of columns", "norm", "sums", "center", "broadcast sum"}  # the largest of nothing, nothing / 0


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_any_length(name: str) -> None:
    """Each size by itself, and one program with symbolic sizes for all of them."""
    rng = np.random.default_rng(12)
    rows, columns = symbol("R"), symbol("C")
    graph = one((rows, columns), ROWS[name]) if name != "broadcast sum" else one((symbol("R", 1), symbol("C", 1)), ROWS[name])
    executable = compiled(graph)
    for shape in SHAPES + (() if name in NEEDS_ELEMENTS else EMPTY):
        inputs = [whole(shape, F32, rng)]
        with np.errstate(all="ignore"):
            expected = evaluate_graph(graph, inputs)
        check(executable, graph, inputs, expected)
        agree(one(shape, ROWS[name]), inputs)


def test_ops_without_elements() -> None:
    """Loops over nothing are made, divide by no size, and write nothing."""
    rng = np.random.default_rng(13)
    for shape in ((4, 0, 3, 3), (0, 2, 3, 1), (2, 3, 0, 4)):
        def make(b: Builder, x: Node) -> tuple[Node, ...]:
            flat = lib.reshape(b, x, (0,))
            window = b.add(Slice((0,) * 4, shape, (1,) * 4), x)
            return (flat, lib.scalar(b, "exp", window), b.add(Cumulative("sum", 2), x), b.add(ArgSort(3), x),
                    b.add(UpdateSlice((0,) * 4, (1,) * 4), x, window), lib.transpose(b, x, (3, 1, 0, 2)),
                    b.add(Pad((1, 0, 0, 0), (0, 1, 0, 2)), x, lib.constant(b, 1.0, F32)), lib.reduce(b, "sum", x, (1, 3)),
                    *([b.add(ArgReduce("max", 3), x)] if shape[3] else []), *([b.add(Take(2), x, lib.constant(b, [0, 1]))] if shape[2] > 1 else []))

        agree(one(shape, make), [whole(shape, F32, rng)], label=str(shape))


def test_a_result_of_a_body_is_not_written_over() -> None:
    """The new state is read once more after it was made; that reader must not store its own result in the same place."""
    vector = TensorType(F32, (40,))

    def step(b: Builder, state: Node, x: Node) -> tuple[Node, ...]:
        total = lib.apply(b, "add", state, x)
        return total, b.add(Sort(0), lib.scalar(b, "abs", total))

    body = body_of([vector, vector], step)
    graph = one((3, 40), lambda b, x: lib.results_of(b, b.add(Scan(body, 1, 1, 3), lib.full(b, 0, F32, (40,)), x)))
    agree(graph, [whole((3, 40), F32, np.random.default_rng(15))])


def test_memory_that_is_written_over() -> None:
    """Chains of stored values whose operands die, through views and tuples, some of them read again later."""
    def make(b: Builder, x: Node) -> tuple[Node, ...]:
        first = b.add(Cumulative("sum", 1), x)
        second = lib.apply(b, "add", first, lib.like(b, 1.0, first))
        third = b.add(Cumulative("max", 0), second)
        flat = lib.scalar(b, "neg", lib.reshape(b, third, (40,)))
        pair = b.add(MakeTuple(), flat, second)
        fourth = b.add(Sort(0), b.add(Get(0), pair))
        last = lib.apply(b, "add", lib.reshape(b, fourth, (5, 8)), b.add(Get(1), pair))
        return b.add(ArgSort(1), last), b.add(Cumulative("sum", 0), lib.apply(b, "mul", last, second))

    agree(one((5, 8), make), [whole((5, 8), F32, np.random.default_rng(16))])


def test_updates_of_one_place_many_times() -> None:
    """Order decides when two updates meet: the same with any number of threads."""
    places = np.array([[0], [2], [0], [1], [2], [0]])
    updates = np.arange(24, dtype=np.float32).reshape(6, 4)
    for kind in ("set", "add", "mul", "min", "max"):
        graph = one((3, 4), lambda b, x, kind=kind: b.add(ScatterND(kind), x, lib.constant(b, places), lib.constant(b, updates)))
        agree(graph, [whole((3, 4), F32, np.random.default_rng(14))], label=kind)


@pytest.mark.parametrize("precision", ["strict", "default"])
def test_precision_changes_rewrites_only(precision: str) -> None:
    graph = one((6, 33), lambda b, x: (lib.gelu(b, lib.softmax(b, x, 1)), lib.apply(b, "mul", x, lib.constant(b, 0.0, F32))))
    inputs = [np.where(np.arange(198).reshape(6, 33) % 50 == 49, np.inf, 1).astype(np.float32)]
    with np.errstate(all="ignore"):
        expected = evaluate_graph(graph, inputs)
    check(compiled(graph, precision=precision), graph, inputs, expected)
