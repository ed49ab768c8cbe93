"""Products of a matrix with its own transpose (passes/pack_operands.py, lowering/contraction.py): half of the result is
computed, the other half is a copy. As machine code and in the loop interpreter, which checks bounds and races."""

from __future__ import annotations

import numpy as np
import pytest

from tests.comparing import assert_close, assert_identical
from tests.compiled import QUIET, compiled, run_compiled
from tilewright import library as lib
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.compute import PackedDot
from tilewright.ir.ops.control import Param
from tilewright.ir.types import F32
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.passes.pack_operands import pack_operands
from tilewright.pipeline import run_passes

CAPS = Caps(vector_bits=128, vector_registers=16)


def product(shape: tuple[DimLike, ...], turned_first: bool = True, bias: bool = False, functions: tuple[str, ...] = ()) -> Graph:
    """x^T @ x, or x @ x^T, with an epilogue that treats rows and columns differently where a bias is asked for."""
    b = Builder()
    x = b.add(Param("x", F32, shape))
    turned = lib.transpose(b, x, [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
    made = lib.matmul(b, turned, x) if turned_first else lib.matmul(b, x, turned)
    params = [x]
    if bias:
        params.append(b.add(Param("bias", F32, made.shape[-1:])))
        made = lib.apply(b, "add", made, lib.broadcast(b, params[-1], made.shape))
    for name in functions:
        made = lib.apply(b, name, made)
    return Graph("product", params, [made])


def is_symmetric(graph: Graph) -> bool:
    dots = [node.op for node in pack_operands(graph, Options(), CAPS).nodes() if isinstance(node.op, PackedDot)]
    return any(op.symmetric for op in dots)


def inputs_of(graph: Graph, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(shapes[0]))
    return [rng.standard_normal(shape).astype(np.float32) for shape, _ in zip(shapes, graph.params)]


@pytest.mark.parametrize("turned_first", [True, False])
def test_every_edge_natively(turned_first: bool) -> None:
    """Sizes around those of a tile, one and none, with sizes known and not: halves of the same bits, on two threads too."""
    general = compiled(product((symbol("K"), symbol("N")), turned_first), threads=2)
    for depth, width in ((130, 1), (129, 15), (140, 16), (128, 33), (131, 50), (700, 97), (0, 5), (3, 40), (200, 0)):
        shape = (depth, width) if turned_first else (width, depth)
        graph = product(shape, turned_first)
        inputs = inputs_of(graph, shape)
        found, = run_compiled(general, inputs)
        assert_close([found], evaluate_graph(graph, inputs))
        assert_identical([found.T.copy()], [found])
        static, = run_compiled(compiled(graph), inputs)
        assert_close([static], [found])
        assert_identical([static.T.copy()], [static])


@pytest.mark.parametrize("functions", [(), ("sigmoid", "erf")], ids=["short", "long"])
@pytest.mark.parametrize("shape", [(128, 37), (2, 130, 19)])
def test_an_epilogue_knows_its_row_and_column(shape: tuple[int, ...], functions: tuple[str, ...]) -> None:
    for sizes in (shape, tuple(symbol(f"s{a}") for a in range(len(shape)))):
        graph = product(sizes, bias=True, functions=functions)
        plain = product(shape, bias=True, functions=functions)
        inputs = inputs_of(graph, shape, shape[-1:])
        assert is_symmetric(graph)
        assert_close(run_compiled(compiled(graph, threads=2), inputs), evaluate_graph(plain, inputs))
        program = lower_program(run_passes(graph, Options(), CAPS, QUIET)[0], CAPS)[0]
        verify_program(program)
        if not functions:
            assert_close(run_program(program, inputs), evaluate_graph(plain, inputs))


def test_not_a_number_and_infinities() -> None:
    graph = product((150, 40))
    x, = inputs_of(graph, (150, 40))
    x[3, 5], x[7, 20], x[9, 33] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        assert_close(run_compiled(compiled(graph), [x]), evaluate_graph(graph, [x]))


def test_what_is_symmetric() -> None:
    assert is_symmetric(product((200, 64)))
    assert is_symmetric(product((64, 200), turned_first=False))
    assert is_symmetric(product((symbol("K"), symbol("N"))))
    assert not is_symmetric(product((16, 64)))   # copying an element is no less than computing it
    assert not is_symmetric(product((200, 12)))  # no tile lies below the diagonal
    b = Builder()
    x, y = b.add(Param("x", F32, (200, 64))), b.add(Param("y", F32, (200, 64)))
    assert not is_symmetric(Graph("other", [x, y], [lib.matmul(b, lib.transpose(b, x, [1, 0]), y)]))
    square = b.add(Param("z", F32, (200, 200)))
    assert not is_symmetric(Graph("power", [square], [lib.matmul(b, square, square)]))
