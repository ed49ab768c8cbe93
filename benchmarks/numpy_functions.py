"""Times the twenty NumPy functions of `numpy_programs.py`: plain NumPy against ours, sizes symbolic and specialized.

What it does: for each function, dtype and mode: the seconds to compile without a cache, the median of the calls, NumPy's
median over ours (more is better), and the largest error against NumPy, relative to the largest value of each result.
Calls of NumPy and ours take turns, so that a change of the clock meets both; each call has fresh results, and the inputs are
one of several sets, so that nothing can be remembered. With `--peers` also JAX and numba, each in a process of its own
(`numpy_peers.py`), whose interpreter may be another than this one's; what a peer does not take is "n/a".

Assumes that nothing else runs meanwhile; on a busy machine `--clock processor` counts what one thread computes. NumPy's
own threads follow the environment (OPENBLAS_NUM_THREADS); it is set to ours before NumPy is imported, by starting anew.

    python -m benchmarks.numpy_functions --threads 1 --output results.json
    python -m benchmarks.numpy_functions --only softmax,heat --dtypes float32 --small
    python -m benchmarks.numpy_functions --peers jax,numba --peers-python /path/to/venv/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean, median, quantiles
from typing import Any

import numpy as np

import tilewright as tw
from benchmarks.numpy_peers import CLOCKS, LEAST_CALLS, PEERS, SETS, WARM_CALLS, largest_error
from benchmarks.numpy_programs import PROGRAMS, Program

MODES = ("dynamic", "specialized")
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def compile_program(program: Program, inputs: Sequence[np.ndarray], mode: str, threads: int) -> tuple[Callable[..., Any], float]:
    """The compiled function and the seconds until it has given its first result, the call itself left out."""
    options = tw.Options(threads=threads, cache=False)
    start = time.perf_counter()
    if mode == "dynamic":
        compiled = tw.compile(program.function, options=options)
    else:
        specs = [tw.spec(array.shape, str(array.dtype)) for array in inputs]
        compiled = tw.compile(program.function, args=specs, options=options)
    compiled(*inputs)
    first = time.perf_counter() - start
    start = time.perf_counter()
    compiled(*inputs)
    return compiled, first - (time.perf_counter() - start)


def times_in_turn(functions: Sequence[Callable[..., Any]], sets: Sequence[Sequence[np.ndarray]], seconds: float,
                  clock: Callable[[], float]) -> list[list[float]]:
    """The seconds of each call of each function, at least `seconds` and LEAST_CALLS calls of each."""
    found: list[list[float]] = [[] for _ in functions]
    for function in functions:
        for number in range(WARM_CALLS):
            function(*sets[number % len(sets)])
    while any(sum(taken) < seconds or len(taken) < LEAST_CALLS for taken in found):
        inputs = sets[len(found[0]) % len(sets)]
        for function, taken in zip(functions, found):
            function(*inputs)  # its memory and code come back into the caches
            start = clock()
            function(*inputs)
            taken.append(clock() - start)
    return found


class Peer:
    """A process that measures another system; see `numpy_peers.py`."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.arguments = name, arguments
        command = [arguments.peers_python, str(Path(__file__).with_name("numpy_peers.py")), name, str(arguments.threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def measure(self, function: str, dtype: str) -> dict[str, Any]:
        """The times of a function, or why there are none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {"function": function, "dtype": dtype, "small": self.arguments.small, "seconds": self.arguments.seconds,
                   "clock": self.arguments.clock}
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return json.loads(answer) if answer else {"failed": f"{self.name} does not run in {self.arguments.peers_python}"}  # type: ignore[no-any-return]  # JSON

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(program: Program, dtype: str, peers: Sequence[Peer], arguments: argparse.Namespace) -> dict[str, Any]:
    sets = [program.inputs(dtype, arguments.small, seed) for seed in range(SETS)]
    row: dict[str, Any] = {"function": program.name, "dtype": dtype}
    functions: dict[str, Callable[..., Any]] = {"numpy": program.function}
    expected = program.function(*sets[0])
    for mode in MODES:
        compiled, seconds = compile_program(program, sets[0], mode, arguments.threads)
        functions[mode] = compiled
        executable = compiled if mode == "specialized" else compiled.executables[0]  # type: ignore[attr-defined]  # by mode
        row[mode] = {"compile_seconds": seconds, "error": largest_error(compiled(*sets[0]), expected),
                     "kernels": len(executable.kernels)}
    for name, taken in zip(functions, times_in_turn(list(functions.values()), sets, arguments.seconds,
                                                    CLOCKS[arguments.clock])):
        low, middle, high = quantiles(taken, n=4)
        row.setdefault(name, {}).update(seconds=median(taken), spread=(high - low) / middle, calls=len(taken))
    for mode in MODES:
        row[mode]["ratio"] = row["numpy"]["seconds"] / row[mode]["seconds"]
    row["peers"] = {peer.name: peer.measure(program.name, dtype) for peer in peers}
    best = min((found["seconds"] for found in row["peers"].values() if "seconds" in found), default=None)
    if best is not None:
        for mode in MODES:
            row[mode]["peer_ratio"] = best / row[mode]["seconds"]
    return row


HEADER = (f"{'function':<19} {'dtype':<8} {'NumPy ms':>9} | {'ms':>8} {'ratio':>6} {'error':>8} {'compile s':>9}  dynamic"
          f" | {'ms':>8} {'ratio':>6} {'error':>8} {'compile s':>9}  specialized")


def line(row: dict[str, Any]) -> str:
    text = f"{row['function']:<19} {row['dtype']:<8} {row['numpy']['seconds'] * 1e3:9.3f}"
    for mode in MODES:
        m = row[mode]
        text += f" | {m['seconds'] * 1e3:8.3f} {m['ratio']:6.2f} {m['error']:8.1e} {m['compile_seconds']:9.2f}" + " " * (len(mode) + 2)
    for name, found in row["peers"].items():
        text = f"{text.rstrip()} | {name} " + (f"{found['seconds'] * 1e3:.3f} ms" if "seconds" in found else "n/a")
    if "peer_ratio" in row[MODES[0]]:
        text += ", ratio to the best " + " ".join(f"{row[mode]['peer_ratio']:.2f}" for mode in MODES)
    return text.rstrip()


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found = {}
    for mode in MODES:
        ratios, to_peers = ([row[mode][key] for row in rows if key in row[mode]] for key in ("ratio", "peer_ratio"))
        found[mode] = {"geometric_mean": geometric_mean(ratios), "least": min(ratios),
                       "longest_compile_seconds": max(row[mode]["compile_seconds"] for row in rows)}
        if to_peers:
            found[mode] |= {"geometric_mean_to_best_peer": geometric_mean(to_peers), "least_to_best_peer": min(to_peers)}
    return found


def machine() -> dict[str, Any]:
    model = next((text.partition(":")[2].strip() for text in Path("/proc/cpuinfo").read_text().splitlines()
                  if text.startswith("model name")), platform.processor())
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], "python": platform.python_version(),
            "numpy": np.__version__, "tilewright": tw.__version__}


def pin_numpy(threads: int) -> None:
    """Starts this command anew where NumPy's matrix products would use another number of threads than ours."""
    count = str(threads or len(os.sched_getaffinity(0)))
    if any(os.environ.get(name) != count for name in BLAS_THREADS):
        os.environ.update(dict.fromkeys(BLAS_THREADS, count))
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.numpy_functions", *sys.argv[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="functions, separated by commas (default: all)")
    parser.add_argument("--dtypes", default="float32,float64", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of ours and of NumPy's matrix products; 0: all (default: 1)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of calls of each side (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="the small inputs of the tests")
    parser.add_argument("--clock", choices=list(CLOCKS), default="elapsed", help="which time of a call (default: %(default)s)")
    parser.add_argument("--peers", default="", help=f"also measure these: {','.join(PEERS)} (extra `benchmark-numpy`)")
    parser.add_argument("--peers-python", default=sys.executable, help="the interpreter that has them (default: this one)")
    parser.add_argument("--output", type=Path, help="JSON with everything measured")
    arguments = parser.parse_args()
    names = [program.name for program in PROGRAMS]
    only = [name for name in arguments.only.split(",") if name] or names
    unknown = [name for name in only if name not in names]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; functions are {', '.join(names)}")
    wanted = [name for name in arguments.peers.split(",") if name]
    unknown = [name for name in wanted if name not in PEERS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; peers are {', '.join(PEERS)}")
    pin_numpy(arguments.threads)
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()) + f", threads {arguments.threads}")
    if about["load"] > 0.5:
        print(f"the machine is busy (load {about['load']:.1f}): these times are no measurements", file=sys.stderr)
    print(HEADER)
    peers = [Peer(name, arguments) for name in wanted]
    rows = []
    for program in PROGRAMS:
        dtypes = arguments.dtypes.split(",") if program.name in only else []
        for dtype in dtypes if program.takes_floats else dtypes[:1]:
            rows.append(measure(program, dtype, peers, arguments))
            print(line(rows[-1]), flush=True)
    for peer in peers:
        peer.close()
    for mode, figures in summary(rows).items():
        print(f"{mode}: " + ", ".join(f"{key.replace('_', ' ')} {value:.2f}" for key, value in figures.items()))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"machine": about, "threads": arguments.threads, "rows": rows,
                                                "summary": summary(rows)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
