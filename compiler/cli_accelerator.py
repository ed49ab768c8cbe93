"""What `tilewright schedule --execute` and `tilewright run --target scratchpad:SIZE` say of a run on the simulated accelerator."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .cli_shared import byte_text, random_inputs
from .driver import accelerator, compile_half
from .ir.errors import ArgumentError
from .options import Options, read_environment
from .runtime.artifact import write_bytes
from .targets import Scratchpad

RANDOM = "random"  # instead of a file of inputs


class Execution:
    """A model that is scheduled to be run: its operators first, an executable once there is a schedule."""

    def __init__(self, graph: Any, target: Scratchpad) -> None:
        self.graph, self.target = graph, target
        self.options, self.environment = Options(threads=1), read_environment()
        self.operators = accelerator().prepare(graph, target, self.options, self.environment)

    def solve(self, progress: Any) -> Any:
        """The best schedule with what the target allows."""
        self.operators, solution = accelerator().schedule_of(self.operators, self.target, progress)
        return solution

    def executable(self, solution: Any) -> Any:
        return accelerator().executable_of(self.graph, self.operators, solution, self.target, self.options, self.environment)


def save_program(executable: Any, path: Path) -> None:
    """The program as text, its large constants beside it."""
    write_bytes(path, compile_half().program_text(executable.program, "loop", "cpu").encode())
    compile_half().save_program_constants(executable.program, path)


def read_inputs(executable: Any, source: str) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of a call: arrays of a file by the names of the inputs, or random ones."""
    if source == RANDOM:
        return random_inputs(executable, {}, 0)
    try:
        with np.load(source, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ArgumentError(f"--execute {source}: {problem}", hint=f"expected a file that numpy.savez wrote, or `{RANDOM}`") from None
    names = [info.name for info in executable.inputs]
    if sorted(found) != sorted(names):
        raise ArgumentError(f"--execute {source}: holds {', '.join(sorted(found)) or 'nothing'}, expected {', '.join(names)}")
    return found


def measure_work(executable: Any, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """What the accelerator does for a call."""
    return executable.measure(*(inputs[info.name] for info in executable.inputs))[1]


def work_data(work: Any) -> dict[str, Any]:
    return {"moved": work.moved, "read": work.read, "written": work.written, "compulsory": work.compulsory, "excess": work.excess,
            "peak": work.peak, "transfers": work.transfers, "launches": work.launches, "cycles": work.cycles,
            "computing": work.computing, "transferring": work.transferring, "utilisation": round(work.utilisation, 4)}


def work_lines(work: Any) -> list[str]:
    waiting = work.cycles - work.computing
    return [
        f"executed      {work.launches} launches, {work.transfers} transfers: {byte_text(work.moved)} moved as counted, "
        f"{byte_text(work.excess)} beyond the compulsory ones",
        f"cycles        {work.cycles}: {work.computing} computing ({work.utilisation:.1%}), {waiting} waiting for transfers, which took "
        f"{work.transferring}",
    ]
