"""What tests need to run graphs as machine code: the whole compiler below the driver, without its cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from tilewright.backends.llvm.backend import LlvmBackend
from tilewright.backends.llvm.compile import compile_program
from tilewright.backends.llvm.targets import Target, host_supports, resolve_target
from tilewright.build import fill_segment
from tilewright.ir.graph import Graph
from tilewright.ir.types import DType, TensorType
from tilewright.lowering.lower import lower_program
from tilewright.options import Environment, Options
from tilewright.pipeline import run_passes
from tilewright.runtime.executable import Executable

QUIET = Environment(debug=0, dump=None, verify=1, backend="llvm", cache_directory=None)
TOLERANCE = {"f64": 1e-9, "f32": 1e-4, "f16": 2e-2, "bf16": 1e-1}


@cache
def target_of(name: str) -> Target:
    return resolve_target(name)


def runs_here(name: str) -> bool:
    """Whether this machine can run code for the target."""
    return not host_supports(target_of(name))


def compiled(graph: Graph, target: str = "cpu", threads: int = 1, precision: str = "default") -> Executable:
    """The graph through passes, lowering and LLVM, loaded. Types are verified after each pass. Of two thirds of all graphs, LLVM generates
    code at its lowest level, which takes a third of the time and is wrong where our own code is."""
    backend = LlvmBackend(target_of(target))
    fused, _ = run_passes(graph, Options(precision=precision), backend.capabilities, QUIET)
    program, _ = lower_program(fused, backend.capabilities)
    code = compile_program(program, backend.target, quick=int(graph.fingerprint[:4], 16) % 3 > 0)
    return Executable.from_object(code.object_code, fill_segment(program), symbol=code.symbol, threads=threads)


def run_compiled(executable: Executable, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The results for inputs by position, always as a tuple."""
    result = executable(*inputs)
    return result if isinstance(result, tuple) else (result,)


def tolerance_of(graph: Graph) -> float:
    """How far apart results may be: what the narrowest float that the graph computes with allows. A float64 that was cast
    from a float32 is no better than that."""
    found = {dtype.name for dtype in _dtypes(graph)}
    return max((TOLERANCE[name] for name in found & TOLERANCE.keys()), default=0.0)


def _dtypes(graph: Graph) -> set[DType]:
    found: set[DType] = set()
    work = [graph]
    while work:
        for node in work.pop().nodes():
            if isinstance(node.type, TensorType):
                found.add(node.type.dtype)
            work.extend(value for value in vars(node.op).values() if isinstance(value, Graph))
    return found


def assert_near(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float) -> None:
    """Equal dtype and shape; integers and bools equal; floats within the tolerance, NaN where NaN is, infinities equal."""
    assert len(found) == len(expected)
    for number, (ours, theirs) in enumerate(zip(found, expected)):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, f"result {number}"
        if ours.dtype.kind in "biu":
            np.testing.assert_array_equal(ours, theirs, f"result {number}")
        else:
            np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=tolerance, atol=tolerance,
                                       err_msg=f"result {number}")
