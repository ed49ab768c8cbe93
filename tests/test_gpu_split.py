"""Contractions whose steps are cut into parts on a GPU, against the interpreter of graphs: in the loop interpreter, and as CUDA source in
the emulation. All of a test are results of one graph, so that their kernels are one source."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import GPU as CAPS
from tests.lowering_checks import lowered_for_gpu as lowered
from tests.test_cuda_kernels import convolution
from tests.test_gpu_contraction import integer_products, products
from tilewright import library as lib
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Launch, Program
from tilewright.ir.types import BF16, F16, F32, I8, U8, DType
from tilewright.lowering.gpu_split import LEAST_ROUNDS, MOST_PARTS, Round, choose_parts

pytestmark = needs_compiler


def cut(program: Program) -> int:
    """How many of its contractions are cut."""
    return sum(isinstance(step, Launch) and "_parts" in step.kernel.name for step in program.steps)


def check(graph: Graph, values: list[np.ndarray], count: int) -> None:
    program = lowered(graph)
    assert cut(program) == count
    expected = evaluate_graph(graph, values)
    for found in (run_program(program, values), EmulatedPrograms([program]).run(0, values)):
        for x, y in zip(expected, found, strict=True):
            np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(("dtype", "sizes"), [
    # whole rounds; a last one that is not whole; parts of unequal length; steps that 16 bytes do not hold; several tiles
    (F16, [(3, 1024, 20), (1, 1096, 40), (5, 1120, 16), (2, 1001, 9), (40, 704, 70)]), (BF16, [(3, 1032, 64)]),
    (F32, [(3, 320, 20), (2, 331, 9)])])
def test_deep_products_of_few_tiles(dtype: DType, sizes: list[tuple[int, int, int]]) -> None:
    graph, values = products(dtype, sizes)
    check(graph, values, len(sizes))


@pytest.mark.parametrize("left", [U8, I8])
def test_deep_products_of_bytes(left: DType) -> None:
    graph, values = integer_products([(5, 1440, 40)], left, I8)
    check(graph, values, 1)


def whole_numbers(graph: Graph, sizes: dict[str, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(-2, 3, tuple(n if isinstance(n, int) else sizes[str(n)] for n in p.shape)).astype(p.dtype.numpy) for p in graph.params]


@pytest.mark.parametrize("groups", [1, 2])
def test_deep_convolutions_with_borders(groups: int) -> None:
    """What is padded behind the sums, and windows at the edges."""
    graph = convolution((1, 64, 4, 5), 3, 1, groups, 8, around=1)
    check(graph, whole_numbers(graph, {}), 1)


def test_batches_of_bounded_rows() -> None:
    b = Builder()
    x, y = b.add(Param("x", F16, (2, symbol("M", 0, 8), 768))), b.add(Param("y", F16, (2, 768, 24)))
    graph = Graph("batched", [x, y], [lib.matmul(b, x, y)])
    program = lowered(graph)
    assert cut(program) == 1
    for rows in (0, 1, 8):
        values = whole_numbers(graph, {"M": rows})
        for found in (run_program(program, values), EmulatedPrograms([program]).run(0, values)):
            np.testing.assert_array_equal(found[0], evaluate_graph(graph, values)[0])


def test_what_is_not_cut() -> None:
    """Rows without a bound, enough tiles, and few steps."""
    b = Builder()
    pairs = [((symbol("M"), 4096), (4096, 64)), ((1024, 1024), (1024, 1024)), ((8, 96), (96, 64)), ((8, symbol("K")), (symbol("K"), 64))]
    params = [(b.add(Param(f"x{n}", F16, x)), b.add(Param(f"y{n}", F16, y))) for n, (x, y) in enumerate(pairs)]
    assert cut(lowered(Graph("whole", [p for pair in params for p in pair], [lib.matmul(b, *pair) for pair in params]))) == 0


def test_each_part_has_rounds_and_cutting_gains_time() -> None:
    for rounds in range(1, 200):
        for tiles in (1, 7, 50, 107, 200, 500):
            parts = choose_parts(tiles, rounds, Round(0.2, 0.1), 1 << 16, tiles * 4096, CAPS)
            most = -(-rounds // parts)
            assert 1 <= parts <= MOST_PARTS and (parts - 1) * most < rounds
            assert parts == 1 or rounds >= parts * LEAST_ROUNDS and (2 * rounds - most) * 0.2 > 2.0
    assert choose_parts(1, 100, Round(0.2, 0.1), 1 << 30, 4096, CAPS) == 1  # reading the operands takes longer than all rounds
