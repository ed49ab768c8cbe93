"""Windows that do not fit into an axis whose size shows at run time only: a clear failure, before any memory is laid out by it.

As machine code and in the loop interpreter, which sees what lies outside of the workspace; what the interpreter of graphs refuses,
the others refuse too. In a branch that is not taken nothing fails, and nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.comparing import assert_close
from tests.compiled import QUIET, compiled, run_compiled
from tilewright import library as lib
from tilewright.build import capabilities
from tilewright.ir.dims import DimLike, bounds, dim_max, dim_min, evaluate, symbol
from tilewright.ir.errors import IndexFailure
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.compute import Conv, ReduceWindow
from tilewright.ir.ops.control import If, Param
from tilewright.ir.ops.shape import Pad, Slice
from tilewright.ir.program import Program
from tilewright.ir.types import BOOL, F32
from tilewright.library import results_of
from tilewright.lowering.abstract import Sizes
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

TAPS = 5


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-2, 3, shape).astype(np.float32)


def convolved(b: Builder, x: Node, groups: int = 1, axes: int = 1, stride: int = 1) -> Node:
    """A convolution without padding, between other operations; x is [n, 4, ...]."""
    kernel = lib.constant(b, weights(8 if groups == 1 else 4, 4 // groups, *(TAPS,) * axes))
    op = Conv((stride,) * axes, ((0, 0),) * axes, (1,) * axes, (1,) * axes, groups)
    return lib.apply(b, "abs", b.add(op, lib.apply(b, "exp", x), kernel))


def pooled(b: Builder, x: Node) -> Node:
    return b.add(ReduceWindow("max", (1, 1, TAPS), (1, 1, 2), ((0, 0),) * 3, (1, 1, 1)), lib.apply(b, "exp", x))


def graph_of(kind: str, length: DimLike) -> Graph:
    b = Builder()
    x = b.add(Param("x", F32, (2, 4, length, 9) if kind == "plane" else (2, 4, length)))
    makers = {"plain": lambda: convolved(b, x), "strided": lambda: convolved(b, x, stride=2), "depthwise": lambda: convolved(b, x, 4),
              "plane": lambda: convolved(b, x, axes=2), "pooling": lambda: pooled(b, x),
              "twice": lambda: convolved(b, lib.slice_axis(b, convolved(b, x), 1, 0, 4))}
    made = makers[kind]()
    return Graph("short", [x], [lib.reduce(b, "sum", made, tuple(range(2, made.rank)))])


def program_of(graph: Graph) -> Program:
    caps = capabilities("cpu")
    return lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0]


@pytest.mark.parametrize("kind", ["plain", "strided", "depthwise", "plane", "pooling", "twice"])
def test_what_is_too_short_is_refused(kind: str) -> None:
    graph = graph_of(kind, symbol("length", 1))
    program, executable = program_of(graph), compiled(graph, threads=2)
    refused = 0
    for length in (1, 2, 3, 4, 5, 6, 8, 9, 12):
        x = np.random.default_rng(length).standard_normal((2, 4, length, *graph.params[0].shape[3:])).astype(np.float32)
        try:
            expected = evaluate_graph(graph, [x])
        except IndexFailure:
            refused += 1
            with pytest.raises(IndexFailure, match="window does not fit into its axis"):
                run_compiled(executable, [x])
            with pytest.raises(IndexFailure, match="window does not fit into its axis"):
                run_program(program, [x])
            continue
        assert_close(run_compiled(executable, [x]), expected)
        assert_close(run_program(program, [x]), expected)
    assert refused > 0


def test_sizes_that_always_fit_are_not_checked() -> None:
    names = {kernel.name for kernel in program_of(graph_of("plain", symbol("length", TAPS - 1))).kernels()}
    assert not any(name.startswith("check_sizes") for name in names)


def test_a_branch_that_is_not_taken_needs_no_room() -> None:
    """Its sizes are less than nothing there; what other values lie beside it stays as it is."""
    length = symbol("length", 1)
    outer = Builder()
    condition, x = outer.add(Param("long", BOOL, ())), outer.add(Param("x", F32, (2, 4, length)))

    def side(name: str, long: bool) -> Graph:
        b = Builder()
        inner = b.add(Param("x0", F32, x.shape))
        if not long:
            return Graph(name, [inner], [lib.reduce(b, "sum", lib.apply(b, "sin", lib.apply(b, "exp", inner)), (1, 2))])
        first = convolved(b, inner, stride=2)
        again = lib.apply(b, "sqrt", lib.reduce(b, "max", first, (1,), keep=True))
        return Graph(name, [inner], [lib.reduce(b, "sum", lib.apply(b, "mul", first, lib.broadcast(b, again, first.shape)), (1, 2))])

    made, = results_of(outer, outer.add(If(side("then", True), side("else", False)), condition, x))
    graph = Graph("sides", [condition, x], [made])
    program, executable = program_of(graph), compiled(graph)
    for size in (1, 2, 4, 7, 13):
        inputs = [np.array(False), np.random.default_rng(size).standard_normal((2, 4, size)).astype(np.float32)]
        expected = evaluate_graph(graph, inputs)
        assert_close(run_compiled(executable, inputs), expected)
        assert_close(run_program(program, inputs), expected)
    inputs = [np.array(True), np.ones((2, 4, 1), np.float32)]
    for run in (lambda: run_compiled(executable, inputs), lambda: run_program(program, inputs)):
        with pytest.raises(IndexFailure, match="window does not fit"):
            run()
    inputs = [np.array(True), np.random.default_rng(0).standard_normal((2, 4, 11)).astype(np.float32)]
    assert_close(run_compiled(executable, inputs), evaluate_graph(graph, inputs))


# --- sizes that may be less than nothing on the way ------------------------------------------------------------------


def test_what_is_cut_to_a_length_and_filled_up_to_it() -> None:
    """min(n - 20, 0) is never positive; as a name of its own in a kernel it must not count as a size from zero on."""
    n = symbol("n", 1)
    b = Builder()
    x = b.add(Param("x", F32, (3, n)))
    kept = lib.slice_axis(b, x, 1, 0, dim_min(n, 20))
    graph = Graph("cut", [x], [b.add(Pad((0, 0), (0, dim_max(20 - n, 0))), kept, lib.constant(b, 1.0, F32))])
    program, executable = program_of(graph), compiled(graph)
    for size in (1, 5, 19, 20, 21, 40):
        inputs = [np.random.default_rng(size).standard_normal((3, size)).astype(np.float32)]
        expected = evaluate_graph(graph, inputs)
        assert_close(run_compiled(executable, inputs), expected)
        assert_close(run_program(program, inputs), expected)


@pytest.mark.parametrize("value, low", [
    (lambda n, m: dim_min(n - 20, 0), -19), (lambda n, m: dim_min(n - m, 0), None), (lambda n, m: (n - m) // 3, None),
    (lambda n, m: dim_min(2 * n, 7) - 5, -3), (lambda n, m: (dim_min(n, 9) - 4) * m, None),
])
def test_names_of_sizes_keep_their_bounds(value, low: int | None) -> None:  # type: ignore[no-untyped-def]  # parametrized
    n, m = symbol("n", 1), symbol("m", 1)
    sizes = Sizes(frozenset({"n", "m"}))
    size = value(n, m)
    named = sizes.abstract(size)
    least = bounds(named)[0]
    assert least <= bounds(size)[0] if low is None else least == low
    for numbers in ({"n": a, "m": b} for a in (1, 2, 5, 19, 21, 30) for b in (1, 3, 20, 40)):
        meaning = {name: evaluate(found, numbers) for name, found in sizes.meaning.items()}
        assert all(found >= 0 for found in meaning.values())
        assert evaluate(named, {**numbers, **meaning}) == evaluate(size, numbers) == evaluate(sizes.concrete(named), numbers)


def test_slices_that_only_a_call_can_check_stay_apart() -> None:
    """One to size 1 and one back hold a size against 1: merged, the second would be the operand as it is."""
    n = symbol("n", 1)
    b = Builder()
    x = b.add(Param("x", F32, (n, 3)))
    one = lib.slice_axis(b, x, 0, 0, 1)
    graph = Graph("held", [x], [lib.apply(b, "exp", lib.slice_axis(b, b.add(Slice((0, 0), (n, 3), (1, 1)), one), 0, 0, 1))])
    program, executable = program_of(graph), compiled(graph)
    for size in (1, 2, 5):
        inputs = [np.ones((size, 3), np.float32)]
        for run in (lambda: evaluate_graph(graph, inputs), lambda: run_compiled(executable, inputs), lambda: run_program(program, inputs)):
            if size > 1:
                with pytest.raises(IndexFailure):
                    run()
            else:
                assert_close(run(), [np.exp(inputs[0])])
