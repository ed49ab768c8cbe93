"""Sums of products for CPUs without fused multiply-add: two instructions a step there, never the exact function in software."""

from __future__ import annotations

import numpy as np
import pytest

from tests.comparing import assert_close
from tests.compiled import QUIET, compiled, run_compiled
from tilewright.build import capabilities
from tilewright.ir.graph import Builder, Constant, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import Store, expression_nodes, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.compute import Conv, Dot, Elementwise
from tilewright.ir.ops.control import Const, Param
from tilewright.ir.program import Program
from tilewright.ir.types import F32, F64
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

FUSED, APART = "cpu:x86-64-v3", "cpu:x86-64"


def graph_of(op, *shapes, dtype=F32) -> Graph:
    builder = Builder()
    params = [builder.add(Param(f"x{i}", dtype, shape)) for i, shape in enumerate(shapes)]
    return Graph("sums", tuple(params), (builder.add(op, *params),), ("y",))


def conv(size: int, groups: int = 1) -> Conv:
    return Conv((1, 1), ((size // 2, size // 2),) * 2, (1, 1), (1, 1), groups)


def winograd() -> Graph:
    """A convolution that is computed by tiles, whose transforms multiply by constants."""
    builder = Builder()
    x = builder.add(Param("x", F32, (1, 64, 26, 26)))
    weights = builder.add(Const(Constant(np.random.default_rng(1).standard_normal((64, 64, 3, 3)).astype(np.float32) / 24)))
    return Graph("tiles", (x,), (builder.add(conv(3), x, weights),), ("y",))


MATRIX = Dot((1,), (0,))
GRAPHS = {
    "matrices": lambda: graph_of(MATRIX, (13, 40), (40, 21)),
    "one row": lambda: graph_of(MATRIX, (1, 70), (70, 33)),
    "vectors": lambda: graph_of(Dot((0,), (0,)), (77,), (77,)),
    "float64": lambda: graph_of(MATRIX, (9, 20), (20, 17), dtype=F64),
    "no rows": lambda: graph_of(MATRIX, (0, 5), (5, 4)),
    "nothing to add": lambda: graph_of(MATRIX, (3, 0), (0, 4)),
    "convolution": lambda: graph_of(conv(3), (1, 8, 9, 11), (6, 8, 3, 3)),
    "depthwise": lambda: graph_of(conv(3, 16), (1, 16, 9, 11), (16, 1, 3, 3)),
    "winograd": winograd,
}


def lowered(graph: Graph, target: str) -> Program:
    caps = capabilities(target)
    return lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0]


def fused_steps(program: Program) -> int:
    return sum(isinstance(node.op, Elementwise) and node.op.function == "fma" for kernel in program.kernels()
               for statement in walk(kernel.body) if isinstance(statement, Store) for node in expression_nodes(statement.value))


@pytest.mark.parametrize("name", GRAPHS)
def test_steps_are_fused_only_where_that_is_an_instruction(name: str) -> None:
    graph = GRAPHS[name]()
    assert fused_steps(lowered(graph, APART)) == 0
    if name not in ("vectors", "no rows", "nothing to add"):  # a sum of a product of its own; nothing to multiply
        assert fused_steps(lowered(graph, FUSED)) > 0


@pytest.mark.parametrize("name", GRAPHS)
def test_results(name: str) -> None:
    graph, random = GRAPHS[name](), np.random.default_rng(0)
    inputs = [random.standard_normal(param.shape).astype(param.dtype.numpy) for param in graph.params]
    expected = evaluate_graph(graph, inputs)
    program = lowered(graph, APART)
    if name == "winograd":  # too long for the interpreter of loops; test_winograd.py has small ones
        assert any(launch.kernel.name.startswith("winograd") for launch in program.steps)
    else:
        assert_close(run_program(program, inputs), expected)
    for threads in (1, 2):
        assert_close(run_compiled(compiled(graph, APART, threads), inputs), expected)


def test_infinities_and_not_a_number() -> None:
    graph, inputs = GRAPHS["matrices"](), [np.ones((13, 40), np.float32), np.ones((40, 21), np.float32)]
    inputs[0][0, 3], inputs[0][1, 4], inputs[0][2, :2] = np.inf, np.nan, (np.inf, -np.inf)
    with np.errstate(invalid="ignore"):
        assert_close(run_compiled(compiled(graph, APART), inputs), evaluate_graph(graph, inputs))


def test_the_function_itself_stays_exact() -> None:
    graph = graph_of(Elementwise("fma"), (5,), (5,), (5,))
    value = np.float32(1 + 2**-12)
    inputs = [np.full(5, value), np.full(5, value), np.full(5, -value * value, np.float32)]
    found, = run_compiled(compiled(graph, APART), inputs)
    assert fused_steps(lowered(graph, APART)) == 1
    np.testing.assert_array_equal(found, np.full(5, 2.0**-24, np.float32))
