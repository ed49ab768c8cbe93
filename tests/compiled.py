"""What tests need to run graphs as machine code: the whole compiler below the driver, without its cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tilewright.backends.llvm.backend import LlvmBackend
from tilewright.backends.llvm.targets import Target, host_supports, resolve_target
from tilewright.build import fill_segment
from tilewright.ir.graph import Graph
from tilewright.lowering.lower import lower_program
from tilewright.options import Environment, Options
from tilewright.pipeline import run_passes
from tilewright.runtime.executable import Executable

QUIET = Environment(debug=0, dump=None, verify=1, backend="llvm", cache_directory=None)


@lru_cache(maxsize=None)
def target_of(name: str) -> Target:
    return resolve_target(name)


def runs_here(name: str) -> bool:
    """Whether this machine can run code for the target."""
    return not host_supports(target_of(name))


def compiled(graph: Graph, target: str = "cpu", threads: int = 1, precision: str = "default") -> Executable:
    """The graph through passes, lowering and LLVM, loaded. Types are verified after each pass."""
    backend = LlvmBackend(target_of(target))
    fused, _ = run_passes(graph, Options(precision=precision), backend.capabilities, QUIET)
    program, _ = lower_program(fused, backend.capabilities)
    code = backend.compile(program)
    return Executable.from_object(code.object_code, fill_segment(program), symbol=code.symbol, threads=threads)


def run_compiled(executable: Executable, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The results for inputs by position, always as a tuple."""
    result = executable(*inputs)
    return result if isinstance(result, tuple) else (result,)
