"""Convolutions on a GPU's matrix units, against the interpreter of graphs: in the loop interpreter, and as CUDA source in the emulation.

All convolutions of a test are results of one graph, so that their kernels are one source.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec import Struct

from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import lowered_for_gpu as lowered
from tilewright import library as lib
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import CopyAsync, MatmulTile, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.compute import Conv
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Pad
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, F16, F32, I8, I32, U8, DType
from tilewright.library_quantized import dequantize, quantize


class Case(Struct, frozen=True):
    """A convolution of x [N, C, *spatial] with a kernel, C and the kernel's channels in `groups`."""

    shape: tuple[DimLike, ...]
    kernel: tuple[int, ...]
    out: int
    strides: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    spread: int = 1
    groups: int = 1
    known: bool = True

    def build(self, b: Builder, x: Node, w: Node, result: DType | None = None) -> Node:
        each = len(self.kernel)
        op = Conv((self.strides,) * each, (self.padding,) * each, (self.dilation,) * each, (self.spread,) * each, self.groups, False, result)
        return b.add(op, x, w)

    @property
    def weights(self) -> tuple[int, ...]:
        channels = self.shape[1]
        assert isinstance(channels, int)
        return (self.out, channels // self.groups, *self.kernel)


CASES = [
    Case((2, 16, 7, 9), (3, 3), 32, padding=(1, 1)),                           # pieces of 16 bytes, rows and columns of several images
    Case((1, 3, 11, 10), (5, 3), 40, strides=2, padding=(2, 1)),               # channels that are lengthened, edges on each side
    Case((1, 12, 6, 5), (2, 3), 72, dilation=2),                               # pieces of 8 bytes, more columns than a panel
    Case((3, 1, 40), (4,), 16, strides=3, padding=(0, 2)),                     # one channel, one axis
    Case((1, 8, 4, 5, 3), (2, 2, 3), 16, padding=(1, 0)),                      # three axes
    Case((1, 8, 5, 4), (3, 3), 24, spread=2, padding=(2, 1)),                  # transposed
    Case((2, 16, 5, 5), (3, 3), 32, groups=2, padding=(1, 1), known=False),    # groups, weights at run time
    Case((1, 36, 4, 6), (1, 1), 20, strides=2, known=False),                   # one tap, not all places
    Case((1, 64, 2, 3), (3, 3), 16, padding=(1, 1)),                           # few rows, parts of the steps
]


def convolutions(cases: Sequence[Case], dtype: DType, weights: DType | None = None, result: DType | None = None) -> Graph:
    """Small whole numbers, so that sums are exact in any order; a bias and a maximum behind each that is of floats."""
    b, rng = Builder(), np.random.default_rng(1)
    params, results = [], []
    for number, case in enumerate(cases):
        params.append(b.add(Param(f"x{number}", dtype, case.shape)))
        kind = weights or dtype
        if case.known:
            w = lib.constant(b, rng.integers(-2, 3, case.weights).astype(kind.numpy))
        else:
            w = b.add(Param(f"w{number}", kind, case.weights))
            params.append(w)
        made = case.build(b, next(p for p in reversed(params) if p is not w), w, result)
        if result is None:
            bias = lib.constant(b, rng.integers(-2, 3, (case.out, *[1] * len(case.kernel))).astype(dtype.numpy))
            made = lib.apply(b, "max", lib.apply(b, "add", made, lib.broadcast(b, bias, made.shape)), lib.constant(b, -2.0, dtype))
        results.append(made)
    return Graph("convolutions", params, results)


def numbers(graph: Graph, sizes: dict[str, int] | None = None, whole: bool = False) -> list[np.ndarray]:
    """Inputs: small whole numbers, or of bytes all there are."""
    rng = np.random.default_rng(2)
    found = []
    for param in graph.params:
        shape = tuple(n if isinstance(n, int) else (sizes or {})[str(n)] for n in param.shape)
        low, high = (np.iinfo(param.dtype.numpy).min, np.iinfo(param.dtype.numpy).max) if whole else (-2, 2)
        found.append(rng.integers(low, high, shape, endpoint=True).astype(param.dtype.numpy))
    return found


def on_units(program: Program) -> int:
    return sum(any(isinstance(s, MatmulTile) for s in walk(kernel.body)) for kernel in program.kernels())


def check(graph: Graph, values: Sequence[np.ndarray], count: int, multiprocessors: int | None = None, architecture: str = "sm_80") -> Program:
    program = lowered(graph, multiprocessors, architecture)
    assert on_units(program) == count
    expected = evaluate_graph(graph, list(values))
    for found in (run_program(program, list(values)), EmulatedPrograms([program], architecture=architecture).run(0, values)):
        for number, (x, y) in enumerate(zip(expected, found, strict=True)):
            np.testing.assert_array_equal(y, x, str(number))
    return program


@needs_compiler
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_convolutions_of_every_kind(dtype: DType) -> None:
    cases = CASES if dtype == F16 else CASES[:2]
    graph = convolutions(cases, dtype)
    check(graph, numbers(graph), sum(4 if case.spread > 1 else 1 for case in cases))
