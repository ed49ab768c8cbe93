"""Attention on a GPU's matrix units: one kernel, against the graph in float64, in the loop interpreter and as CUDA source in the emulation."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import lowered_for_gpu as lowered
from tilewright import library as lib
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.loop import MatmulTile, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, F16, DType

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="kernels run on the host only where there is g++")


def attention(b: Builder, q: Node, k: Node, v: Node, mask: Node | None = None) -> Node:
    scores = lib.matmul(b, q, lib.transpose(b, k, (0, 1, 3, 2)))
    scores = lib.apply(b, "mul", scores, lib.constant(b, 0.125, q.dtype))
    if mask is not None:
        scores = lib.apply(b, "add", scores, mask)
    return lib.matmul(b, lib.softmax(b, scores, 3), v)


def graph_of(dtype: DType, queries: tuple, keys: tuple, mask: tuple | None = None, name: str = "attention") -> Graph:
    b = Builder()
    params = [b.add(Param(f"x{i}", dtype, shape)) for i, shape in enumerate((queries, keys, (*keys[:-1], keys[-1]), *([mask] if mask else [])))]
    return Graph(name, params, [attention(b, *params)])


def expected(values: list[np.ndarray]) -> np.ndarray:
    q, k, v, *mask = (x.astype(np.float64) for x in values)
    scores = q @ np.swapaxes(k, -1, -2) * 0.125 + (mask[0] if mask else 0.0)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ v


def is_one_kernel(program: Program) -> bool:
    """Whether products of scores and of values stand in one kernel."""
    return any(sum(isinstance(s, MatmulTile) for s in walk(k.body)) >= 2 and "packed" not in k.name or
               len({s.accumulator for s in walk(k.body) if isinstance(s, MatmulTile)}) >= 2 for k in program.kernels())


CASES = [  # queries, keys, mask
    (F16, (1, 2, 64, 64), (1, 2, 128, 64), None),
    (F16, (2, 1, 70, 64), (2, 1, 140, 64), (70, 140)),
    (BF16, (1, 1, 17, 32), (1, 1, 200, 32), None),
    (F16, (1, 1, 40, 128), (1, 1, 64, 128), (1, 1, 1, 64)),
]


@needs_compiler
def test_attention_of_many_kinds() -> None:
    programs, inputs = [], []
    for number, (dtype, queries, keys, mask) in enumerate(CASES):
        rng = np.random.default_rng(1)
        # as few multiprocessors as make panels wide, for some: parts of these are taken one after the other
        program = lowered(graph_of(dtype, queries, keys, mask), multiprocessors=1 if number % 2 else 108)
        assert is_one_kernel(program)
        values = [rng.standard_normal(shape).astype(dtype.numpy) for shape in (queries, keys, keys)]
        if mask is not None:
            hidden = np.triu(np.full(mask[-2:], -np.inf), 3) if len(mask) == 2 else np.where(np.arange(mask[-1]) % 3 == 0, -np.inf, 0.0).reshape(mask)
            values.append(hidden.astype(dtype.numpy))
        programs.append(program)
        inputs.append(values)
    emulated = EmulatedPrograms(programs)
    for number, values in enumerate(inputs):
        tolerance = 5e-3 if CASES[number][0] == F16 else 4e-2
        found, = emulated.run(number, values)
        np.testing.assert_allclose(found.astype(np.float64), expected(values), atol=tolerance, err_msg=str(CASES[number]))


def test_open_sizes_and_rows_without_scores() -> None:
    """In the interpreter, which sees races and reads of what nothing stored; a row of which all keys are hidden is NaN."""
    batch, rows, keys = symbol("B"), symbol("M"), symbol("K", 1)
    program = lowered(graph_of(F16, (batch, 1, rows, 16), (batch, 1, keys, 16), (rows, keys)))
    assert is_one_kernel(program)
    rng = np.random.default_rng(2)
    for b, m, k in ((1, 3, 5), (1, 65, 70)):
        values = [rng.standard_normal(shape).astype(np.float16) for shape in ((b, 1, m, 16), (b, 1, k, 16), (b, 1, k, 16))]
        mask = np.zeros((m, k), np.float16)
        mask[1] = -np.inf
        values.append(mask)
        found, = run_program(program, values)
        np.testing.assert_allclose(found.astype(np.float64), expected(values), atol=5e-3)
        assert np.isnan(found[:, :, 1]).all() and np.isfinite(found[:, :, 0]).all()
