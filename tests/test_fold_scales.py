"""Factors behind contractions (compiler/passes/fold_scales.py), factors and gates before them (compiler/passes/forward_scales.py,
pack_operands.py), against the interpreter of graphs, through the whole compiler."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.comparing import assert_close
from tests.compiled import QUIET, compiled, run_compiled
from tilewright import library as lib
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv, Dot, Elementwise, PackedConv, PackedDot
from tilewright.ir.ops.control import Fusion, Param
from tilewright.ir.ops.shape import Broadcast
from tilewright.ir.types import F16, F32, DType
from tilewright.options import Options
from tilewright.passes.fold_scales import fold_scales
from tilewright.passes.forward_scales import forward_scales
from tilewright.pipeline import run_passes

Step = tuple[str, object]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def chain(b: Builder, core: Node, steps: list[Step], axis: int) -> Node:
    """Each step with a number, or with one for each channel along the axis."""
    for function, value in steps:
        array = np.asarray(value, core.dtype.numpy)
        if array.ndim:
            array = array.reshape([-1 if a == axis else 1 for a in range(core.rank)])
        core = b.add(Elementwise(function), core, lib.broadcast(b, lib.constant(b, array), core.shape))
    return core


def convolution(shape: tuple[DimLike, ...], weights: np.ndarray, steps: list[Step], groups: int = 1, dtype: DType = F32,
                last: bool = False) -> Graph:
    b = Builder()
    x = b.add(Param("x", dtype, shape))
    w = lib.constant(b, weights, dtype)
    core = b.add(Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), groups, last), x, w)
    return Graph("convolution", [x], [chain(b, core, steps, 3 if last else 1)])


def product(rows: DimLike, weights: np.ndarray, steps: list[Step], dtype: DType = F32) -> Graph:
    b = Builder()
    x = b.add(Param("x", dtype, (rows, weights.shape[0])))
    return Graph("product", [x], [chain(b, b.add(Dot((1,), (0,)), x, lib.constant(b, weights, dtype)), steps, 1)])


def functions(graph: Graph) -> list[str]:
    return [n.op.function for n in graph.nodes() if isinstance(n.op, Elementwise)]


def agree(graph: Graph, *arrays: np.ndarray, scale: float = 1.0) -> None:
    with np.errstate(all="ignore"):
        assert_close(run_compiled(compiled(graph), arrays), evaluate_graph(graph, arrays), scale)


STEPS: list[list[Step]] = [
    [("mul", [2.5, -1.0, 0.0, 3.0, 1e-3]), ("add", [1.0, 2.0, 3.0, -4.0, 0.0])],
    [("add", [1.0, 2.0, 3.0, -4.0, 0.0]), ("mul", 0.3), ("sub", 7.0)],
    [("div", [2.5, -1.0, 7.0, 3.0, 1e-3])], [("mul", 3.0), ("div", 5.0), ("mul", [1.0, 2.0, 3.0, 4.0, 5.0])], [("add", 1.0), ("add", 2.0)]]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("rows", [1, 2, 37, symbol("n", 1)], ids=str)
def test_behind_a_product(steps: list[Step], rows: DimLike) -> None:
    graph = product(rows, normal(7, 5), steps)
    folded = fold_scales(graph, Options())
    assert functions(folded) in (["add"], [])
    assert fold_scales(folded, Options()) is folded
    agree(graph, normal(rows if isinstance(rows, int) else 9, 7, seed=1))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("groups, channels, last", [(1, 3, False), (5, 1, False), (5, 1, True), (1, 4, True)])
def test_behind_a_convolution(steps: list[Step], groups: int, channels: int, last: bool) -> None:
    weights = normal(3, 3, channels, 5) if last else normal(5, channels, 3, 3)
    shape = (1, 6, 7, groups * channels) if last else (1, groups * channels, 6, 7)
    graph = convolution(shape, weights, steps, groups, last=last)
    assert functions(fold_scales(graph, Options())) in (["add"], [])
    agree(graph, normal(*shape, seed=1))


def test_infinities_and_no_numbers_arrive() -> None:
    x = normal(6, 7)
    x[1, 2], x[2, 3], x[3, 4] = np.inf, np.nan, -np.inf
    agree(product(6, normal(7, 5), STEPS[0]), x)
    agree(product(6, normal(7, 5), [("max", 0.0), ("min", 6.0), ("div", 6.0)]), x)


@pytest.mark.parametrize("weights, factor", [(1e30, 1e30), (np.inf, 0.5), (np.nan, 0.5), (1e-30, 1e-30), (1.0, np.inf)])
def test_weights_that_would_lose_their_value_stay(weights: float, factor: float) -> None:
    graph = product(3, np.full((4, 5), weights, np.float32), [("mul", factor)])
    assert fold_scales(graph, Options()) is graph


@pytest.mark.parametrize("precision", ["plain", "strict"])
def test_a_plain_contraction_is_the_sum_that_it_is(precision: str) -> None:
    graph = product(3, normal(4, 5), [("mul", 3.0), ("div", 7.0)])
    assert fold_scales(graph, Options(precision=precision)) is graph


def test_halves_and_weights_that_are_not_known_stay() -> None:
    graph = product(3, normal(4, 5), [("mul", 3.0)], F16)
    assert fold_scales(graph, Options()) is graph
    b = Builder()
    x, w = b.add(Param("x", F32, (3, 4))), b.add(Param("w", F32, (4, 5)))
    graph = Graph("g", [x, w], [chain(b, b.add(Dot((1,), (0,)), x, w), [("mul", 3.0)], 1)])
    assert fold_scales(graph, Options()) is graph


def test_factors_of_rows_stay() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (3, 4)))
    core = b.add(Dot((1,), (0,)), x, lib.constant(b, normal(4, 5)))
    graph = Graph("g", [x], [chain(b, core, [("mul", [1.0, 2.0, 3.0])], 0)])
    assert fold_scales(graph, Options()) is graph
    agree(graph, normal(3, 4, seed=1))


def hard_swish(b: Builder, x: Node) -> Node:
    gate = chain(b, x, [("add", 3.0), ("max", 0.0), ("min", 6.0)], 0)
    return chain(b, b.add(Elementwise("mul"), x, gate), [("div", 6.0)], 0)


# --- factors before contractions -------------------------------------------------------------------------------------------


def before(make: Callable[[Builder, Node], Node], shape: tuple[DimLike, ...] = (9, 4), factor: float = 0.25,
           weights: np.ndarray | None = None) -> Graph:
    """A product of what `make` leads to from a gated value times a factor."""
    b = Builder()
    x = b.add(Param("x", F32, shape))
    scaled = chain(b, lib.apply(b, "mul", x, lib.apply(b, "max", x, lib.constant(b, 0.0, F32))), [("mul", factor)], 0)
    left = make(b, scaled)
    w = lib.constant(b, normal(int(left.shape[-1]), 5) if weights is None else weights)
    return Graph("before", [x], [b.add(Dot((left.rank - 1,), (0,)), left, w)])


def multiplied(graph: Graph) -> int:
    return functions(forward_scales(graph, Options())).count("mul")


LINEAR: list[Callable[[Builder, Node], Node]] = [
    lambda b, x: x, lambda b, x: lib.transpose(b, lib.reshape(b, x, (3, 3, 4)), [2, 0, 1]),
    lambda b, x: lib.pad(b, x, [1, 0], [0, 2]), lambda b, x: lib.slice_axis(b, x, 0, 2, 5),
    lambda b, x: lib.broadcast(b, lib.reduce(b, "sum", x, (0,), keep=True), x.shape),
    lambda b, x: lib.apply(b, "add", x, lib.apply(b, "div", x, lib.constant(b, 3.0, F32)))]


@pytest.mark.parametrize("make", LINEAR)
def test_factors_go_through_linear_steps(make: Callable[[Builder, Node], Node]) -> None:
    graph = before(make)
    moved = forward_scales(graph, Options())
    assert functions(moved).count("mul") == 1 and forward_scales(moved, Options()) is moved
    x = normal(9, 4, seed=1)
    assert_close(evaluate_graph(moved, [x]), evaluate_graph(graph, [x]))
    agree(graph, x)


@pytest.mark.parametrize("make", [
    lambda b, x: lib.pad(b, x, [1, 0], [0, 2], 1.0), lambda b, x: lib.apply(b, "min", x, lib.constant(b, 1.0, F32)),
    lambda b, x: lib.apply(b, "add", x, lib.constant(b, 1.0, F32)), lambda b, x: lib.apply(b, "div", lib.constant(b, 1.0, F32), x),
    lambda b, x: lib.apply(b, "add", lib.apply(b, "abs", x), x), lambda b, x: lib.reduce(b, "max", x, (0,), keep=True)])
def test_factors_stay_before_other_steps(make: Callable[[Builder, Node], Node]) -> None:
    graph = before(make)
    assert forward_scales(graph, Options()) is graph


def test_factors_that_meet_stay() -> None:
    """The square of a scaled value has the square of the factor."""
    graph = before(lambda b, x: lib.apply(b, "mul", x, x))
    assert forward_scales(graph, Options()) is graph


def test_factors_of_results_stay() -> None:
    graph = before(lambda b, x: x)
    both = Graph("both", graph.params, [*graph.results, graph.results[0].inputs[0]])
    assert forward_scales(both, Options()) is both


@pytest.mark.parametrize("factor, weights", [(1e30, 1e30), (1e-30, 1e-30), (0.5, np.inf), (np.inf, 1.0), (0.0, 1.0)])
def test_factors_that_weights_cannot_hold_stay(factor: float, weights: float) -> None:
    graph = before(lambda b, x: x, factor=factor, weights=np.full((4, 5), weights, np.float32))
    assert forward_scales(graph, Options()) is graph


@pytest.mark.parametrize("precision", ["plain", "strict"])
def test_plain_factors_stay(precision: str) -> None:
    graph = before(lambda b, x: x)
    assert forward_scales(graph, Options(precision=precision)) is graph


def test_two_factors_for_one_convolution() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (1, 6, 7, 4)))
    y = hard_swish(b, x)
    y = lib.apply(b, "mul", y, lib.constant(b, 3.0, F32))
    y = lib.apply(b, "mul", y, lib.apply(b, "sigmoid", x))
    y = lib.apply(b, "mul", y, lib.constant(b, 0.5, F32))
    w = lib.constant(b, normal(3, 3, 1, 4))
    graph = Graph("g", [x], [b.add(Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 4, True), y, w)])
    assert multiplied(graph) == 2
    agree(graph, normal(1, 6, 7, 4, seed=1))


# --- gates ---------------------------------------------------------------------------------------------------------------


def gated(rows: DimLike, depth: int, width: int, change: Callable[[Builder, Node], Node] | None = None, constant: bool = True) -> Graph:
    """(x * gate) @ w with a gate of each step."""
    b = Builder()
    x, gate = b.add(Param("x", F32, (rows, depth))), b.add(Param("gate", F32, (1, depth)))
    w = lib.constant(b, normal(depth, width)) if constant else b.add(Param("w", F32, (depth, width)))
    left = lib.apply(b, "mul", x, lib.broadcast(b, gate, x.shape))
    left = left if change is None else change(b, left)
    return Graph("gated", [x, gate, *([] if constant else [w])], [b.add(Dot((1,), (0,)), left, w)])


def full_products(graph: Graph, rows: int) -> int:
    """The products of all rows that kernels other than contractions compute."""
    fused, _ = run_passes(graph, Options(), Caps(), QUIET)
    bodies = [n.op.body for n in fused.nodes() if isinstance(n.op, Fusion) and not any(
        isinstance(m.op, (PackedDot, PackedConv)) for m in n.op.body.nodes())]
    return sum(n.shape[0] == rows for body in bodies for n in body.nodes() if isinstance(n.op, Elementwise) and n.op.function == "mul")


@pytest.mark.parametrize("rows, depth, width, moved", [(64, 12, 16, True), (65, 7, 5, True), (8, 12, 16, False), (1, 7, 5, False)])
@pytest.mark.parametrize("constant", [True, False])
def test_gates_go_to_the_smaller_operand(rows: int, depth: int, width: int, moved: bool, constant: bool) -> None:
    graph = gated(rows, depth, width, constant=constant)
    assert full_products(graph, rows) == (0 if moved else 1)
    more = [] if constant else [normal(depth, width, seed=3)]
    agree(graph, normal(rows, depth, seed=1), normal(1, depth, seed=2), *more)


def test_gates_of_values_that_others_read_stay() -> None:
    graph = gated(64, 12, 16)
    dot, = graph.results
    both = Graph("both", graph.params, [dot, dot.inputs[0]])
    agree(both, normal(64, 12, seed=1), normal(1, 12, seed=2))
    assert full_products(both, 64) == 1


def test_gates_of_rows_stay() -> None:
    b = Builder()
    x, gate = b.add(Param("x", F32, (64, 12))), b.add(Param("gate", F32, (64, 1)))
    left = lib.apply(b, "mul", x, b.add(Broadcast(x.shape), gate))
    graph = Graph("g", [x, gate], [b.add(Dot((1,), (0,)), left, lib.constant(b, normal(12, 8)))])
    agree(graph, normal(64, 12, seed=1), normal(64, 1, seed=2))


def test_symbolic_rows_and_gates() -> None:
    graph = gated(symbol("n", 0), 12, 16)
    for rows in (0, 1, 3, 50):
        agree(graph, normal(rows, 12, seed=1), normal(1, 12, seed=2))
    agree(gated(symbol("n", 64), 12, 16), normal(70, 12, seed=1), normal(1, 12, seed=2))
