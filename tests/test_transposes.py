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
                                         ((20, 3, 35), (2, 0, 1)), ((0, 40), (1, 0)), ((40, 3), (1, 0)), ((17, 1, 16), (2, 1, 0))])
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
