"""Kernels of blocks and threads against the interpreter of graphs: every op's samples, run by the loop interpreter, which sees races
between threads, reads of what nothing stored and indices out of bounds. No source is compiled."""

from __future__ import annotations

import numpy as np
import pytest

from tests.test_lowering import CASES, values
from tilewright import library as lib
from tilewright.backends.cuda.backend import capabilities_of
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph, Sample
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import For
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Program
from tilewright.ir.types import F32
from tilewright.lowering.lower import lower_program
from tilewright.options import Environment, Options
from tilewright.pipeline import run_passes

CAPS = capabilities_of("sm_80")
SAMPLES = 4
QUIET = Environment(debug=0, dump=None, verify=0, backend="", cache_directory=None)


def lowered(graph: Graph) -> Program:
    fused, _ = run_passes(graph, Options(), CAPS, QUIET)
    program = lower_program(fused, CAPS)[0]
    for kernel in program.kernels():
        assert all(isinstance(s, For) and s.kind == "block" for s in kernel.body)
    return program


def agree(graph: Graph, inputs: list[np.ndarray]) -> None:
    """The program gives what the graph means."""
    expected = evaluate_graph(graph, inputs)
    found = run_program(lowered(graph), inputs)
    for x, y in zip(expected, found, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if x.dtype.kind in "biu":
            np.testing.assert_array_equal(y, x)
        else:
            # sums are reassociated: values are small, so a few units in the last place of the dtype
            digits = 1e-2 if x.dtype.itemsize == 2 else 1e-5
            np.testing.assert_allclose(y.astype(np.float64), x.astype(np.float64), rtol=digits, atol=digits)


def some_of_each() -> list[tuple[str, Sample]]:
    """The first samples of each op; scalar functions are alike, and `test_cuda_kernels.py` computes them all."""
    taken: dict[type, int] = {}
    found = []
    for name, sample in CASES:
        kind = type(sample.op)
        taken[kind] = taken.get(kind, 0) + 1
        if taken[kind] <= SAMPLES:
            found.append((name, sample))
    return found


@pytest.mark.parametrize("sample", [s for _, s in some_of_each()], ids=[n for n, _ in some_of_each()])
def test_every_sample(sample: Sample) -> None:
    b = Builder()
    params = [b.add(Param(f"p{i}", t.dtype, t.shape)) for i, t in enumerate(sample.types)]
    graph = Graph("sample", params, [b.add(sample.op, *params)])
    rng = np.random.default_rng(1)
    ranges = sample.ranges or (None,) * len(params)
    agree(graph, [values(t.dtype, t.static_shape, rng, r) for t, r in zip(sample.types, ranges)])


def one(shape, build, dtype=F32):
    """A graph of one input."""
    b = Builder()
    x = b.add(Param("x", dtype, shape))
    made = build(b, x)
    return Graph("case", [x], list(made) if isinstance(made, tuple) else [made])


@pytest.mark.parametrize("shape", [(3, 20), (1, 33), (2, 2, 17), (symbol("B"), symbol("S", 1))])
def test_softmax_and_layer_norm(shape) -> None:
    sizes = tuple(n if isinstance(n, int) else 19 for n in shape)
    last = len(shape) - 1

    def build(b, x):
        scale = lib.constant(b, 1.5, F32)
        return lib.softmax(b, lib.layer_norm(b, x, scale, scale, (last,), 1e-5), last)

    agree(one(shape, build), [values(F32, sizes, np.random.default_rng(3))])


def test_mlp_with_symbolic_batch() -> None:
    rng = np.random.default_rng(2)
    w = rng.integers(-2, 3, (20, 40)).astype(np.float32)
    bias = rng.integers(-2, 3, 40).astype(np.float32)

    def build(b, x):
        h = lib.apply(b, "add", lib.matmul(b, x, lib.constant(b, w)), lib.constant(b, bias))
        return lib.apply(b, "max", h, lib.constant(b, 0.0, F32))

    graph = one((symbol("B"), 20), build)
    for batch in (0, 1, 5, 13):
        agree(graph, [values(F32, (batch, 20), rng)])
