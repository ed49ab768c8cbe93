"""Kernels of blocks and threads against the interpreter of graphs: every op's samples, run by the loop interpreter, which sees races
between threads, reads of what nothing stored and indices out of bounds. No source is compiled."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lowering_checks import ROW_SHAPES, assert_means, first_samples, lowered_for_gpu, mlp_case, row_case, sample_case
from tilewright.ir.dims import DimLike
from tilewright.ir.graph import Sample

SAMPLES = list(first_samples(4))  # scalar functions are alike, and `test_cuda_kernels.py` computes them all


@pytest.mark.parametrize("sample", [s for _, s in SAMPLES], ids=[n for n, _ in SAMPLES])
def test_every_sample(sample: Sample) -> None:
    graph, inputs = sample_case(sample, np.random.default_rng(1))
    assert_means(lowered_for_gpu(graph), graph, inputs)


@pytest.mark.parametrize("shape", ROW_SHAPES)
def test_softmax_and_layer_norm(shape: tuple[DimLike, ...]) -> None:
    graph, x = row_case(shape)
    assert_means(lowered_for_gpu(graph), graph, [x])


def test_mlp_with_symbolic_batch() -> None:
    graph, batches = mlp_case()
    program = lowered_for_gpu(graph)
    for x in batches:
        assert_means(program, graph, [x])
