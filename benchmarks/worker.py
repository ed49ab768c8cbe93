"""One measured system in a process of its own; benchmarks/compare.py starts it and drives it over a pipe.

Reads one JSON object a line from stdin, answers with one a line on stdout. The first is the job; then
`{"do": "measure", "seconds": s}` runs the model for that long and gives each call's time, `{"do": "save"}` writes the
artifact, `{"do": "run", "inputs": file, "outputs": file}` runs it once on each of many samples. Between requests the
process waits in a read and uses no CPU.

Assumes to be pinned before it starts. Guarantees that clocks start after `import numpy`, that the first calls of every
measurement are dropped, and that whatever the system prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.systems import SYSTEMS, Job, Run

DROPPED_CALLS = 3
CLOCKS = {"wall": time.perf_counter_ns, "process": time.process_time_ns}  # of all threads of this process, for a busy machine


def resident_bytes() -> int:
    """The resident set of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmRSS line; resident memory can be measured on Linux only")


def measure(run: Run, seconds: float, clock: Callable[[], int] = time.perf_counter_ns) -> list[int]:
    """Nanoseconds of each call, for `seconds` of the clock and at least one call, after the dropped ones."""
    for _ in range(DROPPED_CALLS):
        run()
    times = []
    end = clock() + int(seconds * 1e9)
    begin = clock()
    while True:
        run()
        now = clock()
        times.append(now - begin)
        if now >= end:
            return times
        begin = clock()


class Worker:
    """The state between requests: one system, one job, one compiled model."""

    def __init__(self, request: dict[str, Any]) -> None:
        with np.load(request["inputs"]) as archive:
            inputs = {name: archive[name] for name in archive.files}
        self.job = Job(
            Path(request["path"]), Path(request["static_path"]), request["sizes"], inputs, request["threads"],
            request.get("precision", "f32"),
        )
        self.artifact = Path(request["artifact"])
        self.clock = CLOCKS[request.get("clock", "wall")]
        before = resident_bytes()
        begin = time.perf_counter()
        self.system = SYSTEMS[request["system"]]()
        imported = time.perf_counter()
        if request["load"]:
            self.compiled = self.system.load(self.artifact, self.job)
        else:
            self.compiled = self.system.compile(self.job)
        self.run: Run = self.system.bind(self.compiled, self.job)
        outputs = self.run()
        done = time.perf_counter()
        np.savez(request["outputs"], *outputs)
        self.answer = {
            "version": self.system.version,
            "import_seconds": imported - begin,
            "first_result_seconds": done - begin,
            "resident_bytes": resident_bytes(),
            "resident_bytes_before": before,
        }

    def serve(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "measure":
                return {"nanoseconds": measure(self.run, request["seconds"], self.clock)}
            case "save":
                self.system.save(self.compiled, self.artifact, self.job)
                return {}
            case "run":
                self.run_samples(Path(request["inputs"]), Path(request["outputs"]))
                return {}
            case unknown:
                raise ValueError(f"worker: unknown request {unknown!r}")


    def run_samples(self, inputs: Path, outputs: Path) -> None:
        """The outputs of each sample, along a new first axis, as that of the inputs."""
        with np.load(inputs) as archive:
            arrays = {name: archive[name] for name in archive.files}
        found = []
        for sample in range(len(next(iter(arrays.values())))):
            job = replace(self.job, inputs={name: array[sample].copy() for name, array in arrays.items()})
            found.append([array.copy() for array in self.system.bind(self.compiled, job)()])
        np.savez(outputs, *map(np.stack, zip(*found, strict=True)))


def redirect_prints() -> TextIO:
    """The pipe to the driver; from now on file descriptor 1, which libraries print to, is stderr."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return pipe


def main() -> None:
    pipe = redirect_prints()
    worker: Worker | None = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if worker is None:
                worker = Worker(request)
                answer: dict[str, Any] = worker.answer
            else:
                answer = worker.serve(request)
        except Exception as error:  # whatever a system raises is a result to report, not the end of the table
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=pipe, flush=True)


if __name__ == "__main__":
    main()
