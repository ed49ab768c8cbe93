"""What a contraction's tile computes behind its sums (compiler/lowering/contraction.py): spelled out, or as loops over the
tile in memory where it is long or at an edge. As machine code and in the loop interpreter, which checks bounds and races."""

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
from tilewright.ir.loop import Alloc, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Program
from tilewright.ir.types import F32
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

CAPS = Caps(vector_bits=128, vector_registers=16)
EPILOGUES = {"short": ("abs",), "long": ("sigmoid", "erf")}


def product(rows: DimLike, depth: DimLike, columns: DimLike, functions: tuple[str, ...] = ()) -> Graph:
    """The functions, one after the other, of x @ y + bias."""
    b = Builder()
    x, y = b.add(Param("x", F32, (rows, depth))), b.add(Param("y", F32, (depth, columns)))
    bias = b.add(Param("bias", F32, (columns,)))
    made = lib.matmul(b, x, y)
    made = lib.apply(b, "add", made, lib.broadcast(b, bias, made.shape))
    for name in functions:
        made = lib.apply(b, name, made)
    return Graph("product", [x, y, bias], [made])


def inputs_of(rows: int, depth: int, columns: int) -> list[np.ndarray]:
    rng = np.random.default_rng(rows + 100 * columns)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((rows, depth), (depth, columns), (columns,))]


def lowered(graph: Graph) -> Program:
    return lower_program(run_passes(graph, Options(), CAPS, QUIET)[0], CAPS)[0]


@pytest.mark.parametrize("functions", EPILOGUES.values(), ids=EPILOGUES)
def test_every_edge_natively(functions: tuple[str, ...]) -> None:
    """Sizes around those of a tile, one of each and none, with sizes known and not: the same bits on two threads."""
    general = compiled(product(symbol("M"), symbol("K"), symbol("N"), functions), threads=2)
    for rows, depth, columns in ((1, 1, 1), (5, 3, 16), (6, 3, 17), (11, 2, 33), (4, 5, 15), (13, 4, 8), (7, 0, 9), (0, 3, 4), (3, 3, 0)):
        inputs = inputs_of(rows, depth, columns)
        found = run_compiled(general, inputs)
        assert_close(found, evaluate_graph(product(rows, depth, columns, functions), inputs))
        assert_identical(run_compiled(compiled(product(rows, depth, columns, functions)), inputs), found)


@pytest.mark.parametrize("functions", EPILOGUES.values(), ids=EPILOGUES)
@pytest.mark.parametrize("rows, columns", [(7, 11), (4, 8), (9, 1)])
def test_every_edge_as_loops(rows: int, columns: int, functions: tuple[str, ...]) -> None:
    inputs = inputs_of(rows, 3, columns)
    for graph in (product(rows, 3, columns, functions), product(symbol("M"), symbol("K"), symbol("N"), functions)):
        program = lowered(graph)
        verify_program(program)
        assert_close(run_program(program, inputs), evaluate_graph(product(rows, 3, columns, functions), inputs))


def test_not_a_number_and_infinities_stay_in_their_row_and_column() -> None:
    inputs = inputs_of(11, 3, 19)
    inputs[0][4] = np.nan
    inputs[2][18] = np.inf
    for functions in EPILOGUES.values():
        graph = product(11, 3, 19, functions)
        assert_close(run_compiled(compiled(graph), inputs), evaluate_graph(graph, inputs))


def test_long_epilogues_are_loops() -> None:
    """There is one copy of the code for all rows of a tile."""

    def keeps_tile_in_memory(graph: Graph) -> bool:
        return any(isinstance(s, Alloc) and s.buffer.space == "local" for k in lowered(graph).kernels() for s in walk(k.body))

    assert keeps_tile_in_memory(product(40, 30, 32, EPILOGUES["long"]))
    assert not keeps_tile_in_memory(product(40, 30, 32, EPILOGUES["short"]))
