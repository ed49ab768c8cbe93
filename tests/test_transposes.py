"""Tiles of transposes (compiler/lowering/elements.py) against NumPy, as machine code and in the loop interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from tests.comparing import assert_identical
from tests.compiled import QUIET, compiled, run_compiled
from tilewright import library as lib
from tilewright.ir.caps import Caps
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.loop import For, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Transpose
from tilewright.ir.types import F32
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape, perm", [((32, 64), (1, 0)), ((37, 21), (1, 0)), ((3, 40, 18), (0, 2, 1)), ((33, 5, 20), (2, 1, 0)),
                                         ((20, 3, 35), (2, 0, 1)), ((0, 40), (1, 0)), ((40, 3), (1, 0)), ((17, 1, 16), (2, 1, 0)),
                                         ((3, 9, 21), (1, 2, 0)), ((2, 5000), (1, 0)), ((2, 3, 7, 30), (0, 2, 3, 1)), ((1, 40), (1, 0))])
def test_transposes(shape: tuple[int, ...], perm: tuple[int, ...], symbolic: bool) -> None:
    b = Builder()
    x = b.add(Param("x", F32, tuple(symbol(f"s{a}") for a in range(len(shape))) if symbolic else shape))
    y = b.add(Transpose(perm), x)
    graph = Graph("transposed", [x], [lib.apply(b, "add", y, y)])
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = [np.ascontiguousarray((data + data).transpose(perm))]
    assert_identical(run_compiled(compiled(graph, threads=2), [data]), expected)
    caps = Caps(vector_bits=128, vector_registers=16)
    program = lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0]
    verify_program(program)
    assert_identical(run_program(program, [data]), expected)


@pytest.mark.parametrize("shape, perm, symbolic", [((3, 9, 21), (1, 2, 0), ()), ((1, 3, 7, 30), (0, 2, 3, 1), (2, 3)), ((3, 5000), (1, 0), ())])
def test_few_channels_are_brought_together_by_vectors_of_pixels(shape: tuple[int, ...], perm: tuple[int, ...],
                                                               symbolic: tuple[int, ...]) -> None:
    """Vectors along the axis behind which the channels come; padded and not."""
    b = Builder()
    x = b.add(Param("x", F32, tuple(symbol(f"s{a}") if a in symbolic else n for a, n in enumerate(shape))))
    y = lib.pad(b, b.add(Transpose(perm), x), [0, *[1] * (len(shape) - 2), 0], [0, *[2] * (len(shape) - 2), 0], 7.0)
    graph = Graph("pixels", [x], [y])
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    widths = [(0, 0), *[(1, 2)] * (len(shape) - 2), (0, 0)]
    expected = [np.pad(data.transpose(perm), widths, constant_values=7)]
    assert_identical(run_compiled(compiled(graph, threads=2), [data]), expected)
    caps = Caps(vector_bits=256, vector_registers=16)
    program = lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0]
    assert_identical(run_program(program, [data]), expected)
    loops = [s for kernel in program.kernels() for s in walk(kernel.body) if isinstance(s, For)]
    vectors = [loop.extent for loop in loops if loop.kind == "vector"]
    assert any(not isinstance(n, int) or n == shape[-1] for n in vectors)
