"""What tests of kernels share: a NumPy function as machine code and in the loop interpreter, against the interpreter of graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.compiled import QUIET, assert_near, compiled, run_compiled, tolerance_of
from tilewright.frontends.from_numpy import spec, trace
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.program import Program
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

CAPS = Caps(vector_bits=128, vector_registers=16)


def traced(function: Callable[..., Any], arrays: tuple[np.ndarray, ...], symbolic: bool) -> Graph:
    """The graph. Where sizes are symbolic, equal ones have one name, and are known to be at least 2 where they are."""
    def shape(array: np.ndarray) -> tuple[DimLike, ...]:
        return tuple(symbol(f"n{size}", min(size, 2)) for size in array.shape) if symbolic else array.shape

    return trace(function, [spec(shape(a), a.dtype) for a in arrays])


def program_of(graph: Graph) -> Program:
    program = lower_program(run_passes(graph, Options(), CAPS, QUIET)[0], CAPS)[0]
    verify_program(program)
    return program


def check_kernels(function: Callable[..., Any], *arrays: np.ndarray, symbolic: bool, as_loops: bool = True) -> Program:
    """All witnesses agree: one thread and two bit for bit, others within the tolerance; the program for further looks."""
    graph = traced(function, arrays, symbolic)
    with np.errstate(all="ignore"):
        expected = evaluate_graph(graph, list(arrays))
    executable = compiled(graph)
    found = run_compiled(executable, list(arrays))
    assert_near(found, expected, tolerance_of(graph))
    for ours, theirs in zip(run_compiled(executable.with_threads(2), list(arrays)), found):
        assert ours.tobytes() == theirs.tobytes()
    program = program_of(graph)
    if as_loops:
        with np.errstate(all="ignore"):
            assert_near(run_program(program, list(arrays)), expected, tolerance_of(graph))
    return program
