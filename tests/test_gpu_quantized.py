"""Quantized layers on a GPU's matrix units: bytes in, bytes out, in one kernel, with a scale for each channel; to the bit what the graph means."""

from __future__ import annotations

import numpy as np

from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import lowered_for_gpu as lowered
from tilewright import library as lib
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import MatmulTile, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.control import Param
from tilewright.ir.types import F32, I8, U8, DType
from tilewright.library_quantized import dequantize, quantize

ZERO_POINTS = {U8: 131, I8: -3}
# dtypes of operand and result, rows, steps, columns, and whether a maximum with zero stands between
LAYERS = [(U8, U8, 40, 72, 48, True), (I8, I8, 33, 80, 70, False), (U8, I8, 5, 128, 64, False), (I8, U8, 65, 44, 33, True)]


def layer(left: DType, out: DType, m: int, k: int, n: int, limited: bool) -> Graph:
    """quantize(max(dequantize(x) @ dequantize(w) + bias, 0)): zero points on both sides, scales of weights by channel."""
    b, rng = Builder(), np.random.default_rng(m + n)

    def number(value: float, dtype: DType) -> Node:
        return lib.constant(b, value, dtype)

    x = b.add(Param("x", left, (m, k)))
    weights = dequantize(b, lib.constant(b, rng.integers(-127, 128, (k, n)).astype(np.int8)),
                         lib.constant(b, rng.uniform(0.001, 0.01, (1, n)).astype(np.float32)))
    total = lib.matmul(b, dequantize(b, x, number(0.05, F32), number(ZERO_POINTS[left], left)), weights)
    total = lib.apply(b, "add", total, lib.broadcast(b, lib.constant(b, rng.standard_normal(n).astype(np.float32)), total.shape))
    if limited:
        total = lib.apply(b, "max", total, lib.broadcast(b, number(0.0, F32), total.shape))
    return Graph("layer", [x], [quantize(b, total, number(0.1, F32), number(3, out), out)])


@needs_compiler
def test_layers_are_one_kernel_of_bytes() -> None:
    graphs = [layer(*given) for given in LAYERS]
    programs = [lowered(graph) for graph in graphs]
    emulated = EmulatedPrograms(programs)
    for number, (graph, program) in enumerate(zip(graphs, programs)):
        kernel, = program.kernels()
        assert any(isinstance(s, MatmulTile) for s in walk(kernel.body)) and kernel.buffers[-1].dtype == LAYERS[number][1]
        limits = np.iinfo(graph.params[0].dtype.numpy)
        x = np.random.default_rng(2).integers(limits.min, limits.max, graph.params[0].tensor.static_shape, graph.params[0].dtype.numpy, True)
        expected, = evaluate_graph(graph, [x])
        assert len(np.unique(expected)) > 20
        for found in (run_program(program, [x]), emulated.run(number, [x])):
            assert found[0].dtype == expected.dtype
            np.testing.assert_array_equal(found[0], expected)
