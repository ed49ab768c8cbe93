"""Products of bytes with weights of 2 or 4 bits on a GPU's matrix units: in the loop interpreter, and as CUDA source in the emulation.

Scales are powers of two and sums small, so that products are exact in any order, but where bits are compared with those of a CPU. All
products that the emulation runs are one source.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.comparing import assert_close, assert_identical
from tests.compiled import compiled, run_compiled
from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import GPU, QUIET
from tests.lowering_checks import lowered_for_gpu as lowered
from tests.test_narrow_products import claimed, layer, operands, some_bytes
from tilewright import library as lib
from tilewright.backends.cuda.backend import capabilities_of
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Array, Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import MatmulTile, walk
from tilewright.ir.loop_gpu import shared_bytes, shared_bytes_of_block
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.weight_only import WeightOnlyDot
from tilewright.ir.program import Program
from tilewright.ir.types import F32, I8, I32, U8, DType
from tilewright.lowering.gpu_byte_codes import choose_byte_tiles
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

# rows, steps, columns, bits, group, zero, zero points, columns of a panel, multiprocessors
CASES = [
    (1, 288, 33, 4, 32, 8, None, 8, None),       # few rows, slices of which the last has a group less, an edge of columns
    (16, 128, 40, 4, 64, 0, U8, 16, None),       # two slices, zero points
    (3, 256, 16, 2, 128, 2, None, 16, None),     # groups of two stages
    (5, 96, 70, 4, 96, -3, None, 32, None),      # one group: no slices; a zero that is not subtracted from codes
    (30, 128, 20, 2, 32, 1, F32, 16, None),      # 32 rows, points that are no whole numbers
    (70, 192, 40, 4, 32, 8, None, 8, None),      # two tiles of rows
    (70, 256, 70, 4, 128, 200, I8, 32, 2),       # tiles of 64 x 64, several stages a group, a large zero beside points
    (130, 96, 140, 4, 32, 7, None, 32, 1),       # tiles of 128 x 128
    (2, 144, 33, 4, 16, 8, None, 8, None),       # groups of half of what units take at a time
    (20, 96, 40, 4, 48, 0, U8, 16, None), (70, 160, 40, 2, 80, 1, None, 8, None), (130, 48, 140, 4, 16, 7, None, 32, 1),
]


def exact_operands(op: WeightOnlyDot, depth: int, points: DType | None, tile: int) -> list[Array]:
    words, scales, *rest = operands(op, depth, points, tile)
    return [words, 2.0 ** np.random.default_rng(3).integers(-2, 2, scales.shape).astype(np.float32), *rest]


def product(rows: DimLike, op: WeightOnlyDot, arrays: list[Array], depth: int) -> Graph:
    b = Builder()
    x = b.add(Param("x", I8, (rows, depth)))
    return Graph("product", [x], [b.add(op, x, *(lib.constant(b, array) for array in arrays))])


def on_units(program: Program) -> bool:
    return any(isinstance(s, MatmulTile) and s.bits for k in program.kernels() for s in walk(k.body))


@needs_compiler
def test_products_of_every_kind_are_exact() -> None:
    programs, cases = [], []
    for number, (rows, depth, columns, bits, group, zero, points, tile, multiprocessors) in enumerate(CASES):
        op = WeightOnlyDot(columns, bits, group, zero)
        graph = product(rows, op, exact_operands(op, depth, points, tile), depth)
        program, x = lowered(graph, multiprocessors), some_bytes(rows, depth)
        x[0, :2] = -128, 127
        expected = evaluate_graph(graph, [x])
        assert on_units(program)
        if number in (0, 1, 3, 8):  # the interpreter is slow
            assert_identical(run_program(program, [x]), expected)
        programs.append(program)
        cases.append((x, expected))
    emulated = EmulatedPrograms(programs)
    for number, (x, expected) in enumerate(cases):
        assert_identical(emulated.run(number, [x]), expected)
        assert ("tw_mma_m16n8k16_s8" in emulated.modules[number].source) == (CASES[number][4] % 32 != 0)


@needs_compiler
@pytest.mark.parametrize("rows, group, points, multiprocessors", [(130, 32, None, 1), (20, 128, U8, None)])
def test_without_slices_the_bits_are_those_of_a_cpu(rows: int, group: int, points: DType | None, multiprocessors: int | None) -> None:
    """Sums of groups are exact, and meet their scales in one order with one rounding each."""
    op = WeightOnlyDot(40, 4, group, 0 if points else 8)
    graph, x = product(rows, op, operands(op, 128, points), 128), some_bytes(rows, 128)
    found = EmulatedPrograms([lowered(graph, multiprocessors)]).run(0, [x])
    assert_identical(found, run_compiled(compiled(graph), [x]))


@needs_compiler
def test_any_number_of_rows_is_served_by_one_kernel() -> None:
    """Whose nests have the same shared memory, one after the other."""
    op = WeightOnlyDot(40, 4, 32, 8)
    graph = product(symbol("M"), op, exact_operands(op, 96, None, 16), 96)
    program = lowered(graph)
    kernel, = program.kernels()
    assert shared_bytes_of_block(kernel) < shared_bytes(kernel.body)
    emulated = EmulatedPrograms([program])
    for rows in (0, 1, 16, 17, 70):
        x = some_bytes(rows, 96)
        assert_identical(emulated.run(0, [x]), evaluate_graph(graph, [x]))


@needs_compiler
def test_a_scale_that_is_not_finite_is_that_of_its_group_alone() -> None:
    op = WeightOnlyDot(16, 4, 32, 8)
    words, scales = exact_operands(op, 288, None, 16)
    scales[0, 8, 3] = np.inf  # of the last group; the last slice has one that is none
    graph, x = product(1, op, [np.full_like(words, -0x66666667), scales], 288), np.ones((1, 288), np.int8)
    expected = evaluate_graph(graph, [x])
    assert np.isinf(expected[0][0]).tolist() == [column == 3 for column in range(16)]
    assert_identical(EmulatedPrograms([lowered(graph)]).run(0, [x]), expected)


@pytest.mark.parametrize("kind, symmetric, rows", [("rows", True, 3), ("unsigned", False, 40), ("rows", True, 300)])
def test_the_pass_gives_bytes_to_units(kind: str, symmetric: bool, rows: int) -> None:
    graph = layer(rows, kind, symmetric=symmetric)
    assert [(op.bits, op.group) for op in claimed(graph, caps=GPU)] == [(4, 32)]
    program = lowered(graph)
    assert on_units(program)
    if rows == 3:
        x = np.random.default_rng(1).standard_normal((rows, 96)).astype(np.float32)
        assert_close(run_program(program, [x]), evaluate_graph(graph, [x]), scale=4)
        assert len(program.kernels()) == 2  # which quantizes, and which multiplies and scales


def test_groups_that_units_do_not_take_stay_as_they_are() -> None:
    assert not claimed(layer(3, "rows", group=24), caps=GPU) and claimed(layer(3, "rows", group=24))
    op = WeightOnlyDot(21, 4, 8, 8)  # made by hand: a CPU's kernel, a thread an iteration
    graph, x = product(2, op, exact_operands(op, 48, None, 16), 48), some_bytes(2, 48)
    program = lowered(graph)
    assert not on_units(program)
    assert_identical(run_program(program, [x]), evaluate_graph(graph, [x]))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_90a"])
def test_tiles_fit_into_shared_memory(architecture: str) -> None:
    caps, b = capabilities_of(architecture), Builder()
    for rows in (1, 16, 32, 64, 4096, symbol("M")):
        for bits, group, columns in ((2, 512, 256), (4, 32, 4096), (4, 128, 11008), (4, 4096, 4096)):
            x, panels = b.add(Param("x", I8, (rows, 4096))), columns // 16
            words = b.add(Param("words", I32, (panels, 4096 * bits // 32, 16)))
            scales, points = (b.add(Param(name, F32, (panels, 4096 // group, 16))) for name in ("scales", "points"))
            node = b.add(WeightOnlyDot(columns, bits, group, 0), x, words, scales, points)
            tiles = choose_byte_tiles(node, caps)
            assert tiles and all(group % tile.run == 0 and tile.threads >= 32 * tile.down * tile.across * tile.slices for tile in tiles)
            graph = Graph("wide", [x, words, scales, points], [node])
            kernel, = lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0].kernels()
            assert 0 < shared_bytes_of_block(kernel) <= caps.shared_bytes
