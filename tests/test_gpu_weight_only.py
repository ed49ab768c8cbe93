"""Products with weights of a few bits on a GPU, against the exact product: in the loop interpreter, and as CUDA source in the emulation.

All products that the emulation runs are one source.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import GPU, QUIET
from tests.lowering_checks import lowered_for_gpu as lowered
from tests.test_weight_only import Weights, activations, assert_near, dequantized_product, product_graph, quantized
from tilewright import library as lib
from tilewright.backends.cuda.backend import capabilities_of
from tilewright.backends.cuda.emit import emit_module
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import For, MatmulTile, Store, walk
from tilewright.ir.loop_gpu import shared_bytes_of_block
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.control import Fusion, Param, Scan
from tilewright.ir.ops.weight_only import WeightOnlyDot
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, F16, F32, I8, I32, U8, DType
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

# dtype, rows, steps, columns, bits, group, zero points, columns of a panel; and whether matrix units take it
CASES = [
    (F32, 1, 1100, 40, 4, 44 * 8, None, 16, False),   # fewer steps than words have
    (F16, 3, 64, 33, 4, 16, U8, 32, False),           # an edge of columns
    (F32, 9, 300, 21, 2, 16, F32, 16, False),         # two blocks of rows, points that are no whole numbers
    (F32, 8, 1500, 16, 8, 300, I8, 8, False),         # several parts of the contraction
    (F16, 20, 100, 33, 4, 32, U8, 16, True),          # steps that 16 bytes do not hold, a run past the last step
    (BF16, 7, 704, 70, 8, 704, None, 32, True),       # several stages, edges of columns and rows
    (F16, 70, 160, 40, 4, 80, F32, 8, True),          # two tiles of rows, runs that no power of two is
    (F16, 6, 96, 12, 4, 24, None, 16, False),         # groups that the units' steps do not fill
]



def on_units(program: Program) -> bool:
    return any(isinstance(s, MatmulTile) for k in program.kernels() for s in walk(k.body))


@needs_compiler
def test_products_of_every_kind() -> None:
    programs, inputs, expected = [], [], []
    for number, (dtype, rows, depth, columns, bits, group, points, tile, units) in enumerate(CASES):
        weights = Weights(depth, columns, bits, group, points, tile)
        program = lowered(product_graph(weights, (rows, depth), dtype))
        assert on_units(program) == units
        x = activations((rows, depth), dtype)
        if number in (1, 4):  # the interpreter is slow
            assert_near(run_program(program, [x])[0], weights, x)
        programs.append(program)
        inputs.append(x)
        expected.append(weights)
    emulated = EmulatedPrograms(programs)
    assert emulated.source.count("tw_load_vector(") >= 5  # words are read 16 bytes at a time
    for number, (x, weights) in enumerate(zip(inputs, expected)):
        assert_near(emulated.run(number, [x])[0], weights, x)


@pytest.mark.parametrize("dtype, units", [(F32, False), (BF16, True)])
def test_any_number_of_rows_is_served_by_one_kernel(dtype: DType, units: bool) -> None:
    weights = Weights(48, 20, 4, 16, U8)
    program = lowered(product_graph(weights, (symbol("B"), symbol("M"), 48), dtype, bias=False))
    assert on_units(program) == units and len(program.kernels()) == 1
    for shape in ((1, 1, 48), (1, 2, 48), (3, 7, 48), (0, 4, 48)):
        x = activations(shape, dtype)
        assert_near(run_program(program, [x])[0], weights, x)


@pytest.mark.parametrize("zero", [3, 5000, -5000, 200])
def test_zeros_that_do_not_fit_beside_a_float_of_codes(zero: int) -> None:
    for dtype, rows in ((F32, 2), (F16, 6)):
        weights = Weights(64, 24, 4, 32, U8, zero=zero)
        x = activations((rows, 64), dtype)
        assert_near(run_program(lowered(product_graph(weights, x.shape, dtype)), [x])[0], weights, x)


def test_what_follows_is_computed_in_the_same_kernel() -> None:
    for rows in (2, 12):
        weights = Weights(64, 24, 4, 32, None)
        graph = product_graph(weights, (rows, 64), F16, bias=True)
        program = lowered(graph)
        assert len(program.kernels()) == 1
        x = activations((rows, 64), F16)
        np.testing.assert_allclose(run_program(program, [x])[0].astype(np.float64), evaluate_graph(graph, [x])[0].astype(np.float64),
                                   rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("rows, narrow", [(1, True), (64, True), (512, False)])
def test_the_pass_keeps_codes_where_units_do_not_limit_the_product(rows: int, narrow: bool) -> None:
    integers, scales, _ = quantized(64, 40, 32)
    graph = dequantized_product(integers, scales, None, rows, F16)
    fused, _ = run_passes(graph, Options(), GPU, QUIET)
    inside = [n.op for f in fused.nodes() if isinstance(f.op, Fusion) for n in f.op.body.nodes()]
    found = [op for op in inside if isinstance(op, WeightOnlyDot)]
    assert bool(found) == narrow and all(op.bits == 4 and op.group == 32 for op in found)
    if rows == 1:
        x = activations((1, 64), F16)
        y, = run_program(lowered(graph), [x])
        dense = (integers * scales.astype(np.float64)).reshape(64, 40)
        np.testing.assert_allclose(y.astype(np.float64), x.astype(np.float64) @ dense, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_90a"])
def test_tiles_fit_into_shared_memory(architecture: str) -> None:
    """Many columns, so that tiles are wide, codes of most bits, long groups."""
    caps = capabilities_of(architecture)
    for rows, bits in ((16, 8), (16, 4), (32, 8), (64, 8)):
        b = Builder()
        x, n = b.add(Param("x", F16, (rows, 512))), 16384
        words, scales = b.add(Param("words", I32, (n // 32, 512 * bits // 32, 32))), b.add(Param("scales", F16, (n // 32, 1, 32)))
        graph = Graph("wide", [x, words, scales], [b.add(WeightOnlyDot(n, bits, 512, 8), x, words, scales)])
        kernel, = lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0].kernels()
        assert 0 < shared_bytes_of_block(kernel) <= caps.shared_bytes


def test_words_at_odd_places_are_read_one_by_one() -> None:
    """Panels of six columns: no thread has four of them at a multiple of 16 bytes."""
    weights = Weights(32, 11, 4, 16, None, tile=6)
    program = lowered(product_graph(weights, (2, 32)))
    assert "tw_load_vector(" not in emit_module(program, "sm_80").source
    x = activations((2, 32))
    assert_near(run_program(program, [x])[0], weights, x)


@needs_compiler
def test_words_beside_rows_that_begin_anywhere_are_read_one_by_one() -> None:
    """Rows of 35 floats that a scan takes one after the other; rows of 36 begin at multiples of 16 bytes."""
    for depth, at_once in ((35, False), (36, True)):
        weights = Weights(depth, 20, 4, 40, None)
        inner = Builder()
        state, row = inner.add(Param("state", F32, (depth,))), inner.add(Param("row", F32, (depth,)))
        words = [lib.constant(inner, array) for array in weights.operands]
        body = Graph("body", [state, row], [lib.apply(inner, "add", state, row), inner.add(weights.op, row, *words)])
        b = Builder()
        params = [b.add(Param("start", F32, (depth,))), b.add(Param("rows", F32, (3, depth)))]
        program = lowered(Graph("rounds", params, lib.results_of(b, b.add(Scan(body, 1, 1, 3), *params))))
        vectors = [s for k in program.kernels() for s in walk(k.body) if isinstance(s, For) and s.kind == "vector"]
        assert any(isinstance(s, Store) and s.buffer.startswith("codes") for v in vectors for s in v.body) == at_once
        given = [np.zeros(depth, np.float32), activations((3, depth))]
        for found in (run_program(program, given), EmulatedPrograms([program]).run(0, given)):
            assert_near(found[1], weights, given[1])
