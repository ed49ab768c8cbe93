"""What tests of lowering for CPUs and GPUs share: graphs with their inputs, and programs in the loop interpreter against what graphs mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from msgspec.structs import replace

from tilewright import library as lib
from tilewright.backends.cuda.backend import capabilities_of
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph, Node, Sample
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import For
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.table import ALL_OPS
from tilewright.ir.program import Program
from tilewright.ir.types import BOOL, F32, DType
from tilewright.lowering.lower import lower_program
from tilewright.options import Environment, Options
from tilewright.pipeline import run_passes

GPU = capabilities_of("sm_80")
QUIET = Environment(debug=0, dump=None, verify=1, backend="", cache_directory=None)
SAMPLES = [(f"{sample.op.spelling}-{number}", sample) for op in ALL_OPS for number, sample in enumerate(op.samples())]
ROW_SHAPES: list[tuple[DimLike, ...]] = [(3, 20), (1, 33), (2, 2, 17), (symbol("B"), symbol("S", 1))]


def first_samples(most: int) -> Iterator[tuple[str, Sample]]:
    """The first samples of each op, with their names."""
    taken: dict[type, int] = {}
    for name, sample in SAMPLES:
        kind = type(sample.op)
        taken[kind] = taken.get(kind, 0) + 1
        if taken[kind] <= most:
            yield name, sample


def values(dtype: DType, shape: tuple[int, ...], rng: np.random.Generator, bounds: tuple[int, int] | None = None) -> np.ndarray:
    """Small whole numbers."""
    low, high = bounds or (-4, 4)
    made = rng.integers(low, high + 1, size=shape)
    if dtype == BOOL:
        return made % 2 == 0
    return made.astype(dtype.numpy)


def sample_case(sample: Sample, rng: np.random.Generator) -> tuple[Graph, list[np.ndarray]]:
    """The sample's op alone as a graph, with inputs in the sample's ranges."""
    b = Builder()
    params = [b.add(Param(f"p{i}", t.dtype, t.shape)) for i, t in enumerate(sample.types)]
    ranges = sample.ranges or (None,) * len(params)
    return (Graph("sample", params, [b.add(sample.op, *params)]),
            [values(t.dtype, t.static_shape, rng, r) for t, r in zip(sample.types, ranges)])


def one(shape: Sequence[DimLike], build: Callable[[Builder, Node], Node | tuple[Node, ...]], dtype: DType = F32) -> Graph:
    """A graph of one input."""
    b = Builder()
    x = b.add(Param("x", dtype, tuple(shape)))
    made = build(b, x)
    return Graph("case", [x], list(made) if isinstance(made, tuple) else [made])


def mlp_case() -> tuple[Graph, list[np.ndarray]]:
    """A layer of an open batch, and inputs of several sizes: none, and fewer and more rows than a tile has."""
    rng = np.random.default_rng(2)
    w = rng.integers(-2, 3, (20, 40)).astype(np.float32)
    bias = rng.integers(-2, 3, 40).astype(np.float32)

    def build(b: Builder, x: Node) -> Node:
        h = lib.apply(b, "add", lib.matmul(b, x, lib.constant(b, w)), lib.constant(b, bias))
        return lib.apply(b, "max", h, lib.constant(b, 0.0, F32))

    return one((symbol("B"), 20), build), [values(F32, (batch, 20), rng) for batch in (0, 1, 5, 6, 13)]


def row_case(shape: tuple[DimLike, ...]) -> tuple[Graph, np.ndarray]:
    """Softmax of a layer norm along the last axis; open sizes are 19."""
    last = len(shape) - 1

    def build(b: Builder, x: Node) -> Node:
        scale = lib.constant(b, 1.5, F32)
        return lib.softmax(b, lib.layer_norm(b, x, scale, scale, (last,), 1e-5), last)

    return one(shape, build), values(F32, tuple(n if isinstance(n, int) else 19 for n in shape), np.random.default_rng(3))


def lowered_for_gpu(graph: Graph, multiprocessors: int | None = None, architecture: str = "sm_80",
                    options: Options | None = None) -> Program:
    """A program of blocks; `multiprocessors`: as many as the GPU is to have."""
    caps = capabilities_of(architecture)
    caps = caps if multiprocessors is None else replace(caps, multiprocessors=multiprocessors)
    fused, _ = run_passes(graph, options or Options(), caps, QUIET)
    program = lower_program(fused, caps)[0]
    for kernel in program.kernels():
        assert all(isinstance(s, For) and s.kind == "block" for s in kernel.body)
    return program


def assert_means(program: Program, graph: Graph, inputs: list[np.ndarray]) -> None:
    """The loop interpreter gives what the graph means."""
    assert_results(run_program(program, inputs), evaluate_graph(graph, inputs))


def assert_results(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float | None = None, label: str = "") -> None:
    """Integers are equal. Sums are reassociated: values are small, so floats may differ by a few units in the last place of the dtype."""
    for y, x in zip(found, expected, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape, label
        if x.dtype.kind in "biu":
            np.testing.assert_array_equal(y, x, err_msg=label)
        else:
            digits = tolerance or (1e-2 if x.dtype.itemsize == 2 else 1e-5)
            np.testing.assert_allclose(y.astype(np.float64), x.astype(np.float64), rtol=digits, atol=digits, err_msg=label)
