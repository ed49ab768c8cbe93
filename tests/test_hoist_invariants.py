"""What a loop computes from its captures alone leaves it, also where the loop stands in a branch of an `if`."""

from __future__ import annotations

import numpy as np

from tests.comparing import assert_close
from tests.compiled import compiled, run_compiled
from tilewright import library as lib
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.control import If, Param, Scan
from tilewright.ir.types import BOOL, F32
from tilewright.library import results_of
from tilewright.options import Options
from tilewright.passes.hoist_invariants import hoist_invariants


def scanned(name: str, function: str) -> Graph:
    """A sum over steps of x times f(w), which no step changes."""
    b = Builder()
    x, w = b.add(Param("x", F32, (symbol("steps"), 5))), b.add(Param("w", F32, (5,)))
    inner = Builder()
    state, row, factor = (inner.add(Param(label, F32, (5,))) for label in ("state", "row", "factor"))
    product = lib.apply(inner, "mul", row, lib.apply(inner, function, factor))
    body = Graph("step", [state, row, factor], [lib.apply(inner, "add", state, product)])
    total, = results_of(b, b.add(Scan(body, 1, 1, symbol("steps")), lib.full(b, 0.0, F32, (5,)), x, w))
    return Graph(name, [x, w], [total])


def functions_of(graph: Graph) -> set[str]:
    return {node.op.function for node in graph.nodes() if hasattr(node.op, "function")}


def test_out_of_a_loop_in_a_branch() -> None:
    b = Builder()
    condition, x, w = b.add(Param("c", BOOL, ())), b.add(Param("x", F32, (symbol("steps"), 5))), b.add(Param("w", F32, (5,)))
    made, = results_of(b, b.add(If(scanned("then", "exp"), scanned("else", "sin")), condition, x, w))
    graph = Graph("sides", [condition, x, w], [made])
    moved = hoist_invariants(graph, Options())
    chosen, = (node.op for node in moved.nodes() if isinstance(node.op, If))
    for side, function in ((chosen.then_body, "exp"), (chosen.else_body, "sin")):
        loop, = (node.op for node in side.nodes() if isinstance(node.op, Scan))
        assert function in functions_of(side) and function not in functions_of(loop.body)
    assert hoist_invariants(moved, Options()) is moved
    executable = compiled(graph)
    for steps in (0, 1, 4):
        for value in (True, False):
            inputs = [np.array(value), *(np.random.default_rng(steps).standard_normal(n).astype(np.float32) for n in ((steps, 5), 5))]
            expected = evaluate_graph(graph, inputs)
            assert_close(evaluate_graph(moved, inputs), expected)
            assert_close(run_compiled(executable, inputs), expected)
