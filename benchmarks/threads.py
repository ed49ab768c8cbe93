"""What threads cost: a fork and join of two, and a barrier between two launches, while both spin.

What it does: times calls of a tiny program with one launch, and of one with many that depend on one another, on one thread and
on two, in turns. Fork and join is what the second thread adds to one launch; a barrier what it adds to each further one. Prints
the ping-pong latency of the two cores before and after, since both figures follow it.

Assumes that nothing else runs meanwhile, and two cores.

    python -m benchmarks.threads --output results.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

import tilewright as tw
from benchmarks.compare import build_pingpong, machine

LAUNCHES = 101
CALLS = 400   # of one turn
TURNS = 15


def chain(launches: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """As many products with a small matrix, each a launch that one thread has to itself, so that nothing is gained."""
    def multiply(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        for _ in range(launches):
            x = x @ w
        return x

    return multiply


def nanoseconds(function: Callable[..., object], arguments: tuple[np.ndarray, ...], out: np.ndarray) -> float:
    """The median time of a call among those of one turn."""
    found = []
    clock = time.perf_counter_ns
    for _ in range(CALLS):
        begin = clock()
        function(*arguments, out=out)
        found.append(clock() - begin)
    return median(found)


def measure() -> dict[str, float]:
    x, w = np.ones((1, 16), np.float32), np.eye(16, dtype=np.float32)
    specs = (tw.spec(x.shape, "float32"), w)
    times: dict[tuple[int, int], list[float]] = {}
    programs = {(launches, threads): tw.compile(chain(launches), args=specs, options=tw.Options(threads=threads))
                for launches in (1, LAUNCHES) for threads in (1, 2)}
    out = np.empty_like(x)
    for _ in range(TURNS):
        for key, program in programs.items():
            times.setdefault(key, []).append(nanoseconds(program, (x,), out))
    found = {key: median(taken) for key, taken in times.items()}
    added = {launches: found[launches, 2] - found[launches, 1] for launches in (1, LAUNCHES)}
    return {"call_ns": found[1, 1], "fork_join_ns": added[1], "barrier_ns": (added[LAUNCHES] - added[1]) / (LAUNCHES - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="write everything as JSON to this file")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[-2:]
    if len(cores) < 2:
        raise SystemExit(f"found {len(cores)} core that this process may use, expected two")
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory(prefix="tilewright-benchmark-") as folder:
        meter = build_pingpong(Path(folder))
        before = meter.tw_pingpong(*cores) if meter else float("nan")
        found = measure()
        after = meter.tw_pingpong(*cores) if meter else float("nan")
    print(f"ping-pong {before:.0f} ns before, {after:.0f} ns after")
    print(f"call on one thread {found['call_ns']:.0f} ns")
    print(f"fork and join of two {found['fork_join_ns']:.0f} ns, barrier {found['barrier_ns']:.0f} ns")
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": machine(), "pingpong_ns": [before, after], **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
