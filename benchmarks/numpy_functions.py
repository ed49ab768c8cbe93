"""Times the twenty NumPy functions of `numpy_programs.py`: plain NumPy against ours, sizes symbolic and specialized.

What it does: for each function, dtype and mode: the seconds to compile without a cache, the median of the calls, NumPy's
median over ours (more is better), and the largest error against NumPy, relative to the largest value of each result.
Calls of NumPy and ours take turns, so that a change of the clock meets both; each call has fresh results, and the inputs are
one of several sets, so that nothing can be remembered.

Assumes that nothing else runs meanwhile. NumPy's own threads follow the environment (OPENBLAS_NUM_THREADS); it is set to
ours before NumPy is imported, by starting anew.

    python -m benchmarks.numpy_functions --threads 1 --output results.json
    python -m benchmarks.numpy_functions --only softmax,heat --dtypes float32 --small
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean, median, quantiles
from typing import Any

import numpy as np

import tilewright as tw
from benchmarks.numpy_programs import PROGRAMS, Program

MODES = ("dynamic", "specialized")
SETS = 2          # of inputs that calls take in turn
LEAST_CALLS = 5   # of each side, however long they take
WARM_CALLS = 2
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def leaves(result: Any) -> tuple[np.ndarray, ...]:
    return tuple(map(np.asarray, result if isinstance(result, tuple) else (result,)))


def largest_error(found: Any, expected: Any) -> float:
    """Relative to the largest value of each result; for integers the share of elements that differ."""
    error = 0.0
    for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            raise ValueError(f"found {ours.dtype}{list(ours.shape)}, expected {theirs.dtype}{list(theirs.shape)}")
        if ours.dtype.kind in "biu":
            error = max(error, float((ours != theirs).mean()))
        else:
            scale = max(float(np.abs(theirs).max()), np.finfo(theirs.dtype).tiny)
            error = max(error, float(np.abs(ours.astype(np.float64) - theirs).max()) / scale)
    return error


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


def times_in_turn(functions: Sequence[Callable[..., Any]], sets: Sequence[Sequence[np.ndarray]], seconds: float) -> list[list[float]]:
    """The seconds of each call of each function, at least `seconds` and LEAST_CALLS calls of each."""
    found: list[list[float]] = [[] for _ in functions]
    for function in functions:
        for number in range(WARM_CALLS):
            function(*sets[number % len(sets)])
    while any(sum(taken) < seconds or len(taken) < LEAST_CALLS for taken in found):
        inputs = sets[len(found[0]) % len(sets)]
        for function, taken in zip(functions, found):
            function(*inputs)  # its memory and code come back into the caches
            start = time.perf_counter()
            function(*inputs)
            taken.append(time.perf_counter() - start)
    return found


def measure(program: Program, dtype: str, arguments: argparse.Namespace) -> dict[str, Any]:
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
    for name, taken in zip(functions, times_in_turn(list(functions.values()), sets, arguments.seconds)):
        low, middle, high = quantiles(taken, n=4)
        row.setdefault(name, {}).update(seconds=median(taken), spread=(high - low) / middle, calls=len(taken))
    for mode in MODES:
        row[mode]["ratio"] = row["numpy"]["seconds"] / row[mode]["seconds"]
    return row


HEADER = (f"{'function':<19} {'dtype':<8} {'NumPy ms':>9} | {'ms':>8} {'ratio':>6} {'error':>8} {'compile s':>9}  dynamic"
          f" | {'ms':>8} {'ratio':>6} {'error':>8} {'compile s':>9}  specialized")


def line(row: dict[str, Any]) -> str:
    text = f"{row['function']:<19} {row['dtype']:<8} {row['numpy']['seconds'] * 1e3:9.3f}"
    for mode in MODES:
        m = row[mode]
        text += f" | {m['seconds'] * 1e3:8.3f} {m['ratio']:6.2f} {m['error']:8.1e} {m['compile_seconds']:9.2f}" + " " * (len(mode) + 2)
    return text.rstrip()


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {mode: {"geometric_mean": geometric_mean(row[mode]["ratio"] for row in rows),
                   "least": min(row[mode]["ratio"] for row in rows),
                   "longest_compile_seconds": max(row[mode]["compile_seconds"] for row in rows)} for mode in MODES}


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
    parser.add_argument("--output", type=Path, help="JSON with everything measured")
    arguments = parser.parse_args()
    names = [program.name for program in PROGRAMS]
    only = [name for name in arguments.only.split(",") if name] or names
    unknown = [name for name in only if name not in names]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; functions are {', '.join(names)}")
    pin_numpy(arguments.threads)
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()) + f", threads {arguments.threads}")
    if about["load"] > 0.5:
        print(f"the machine is busy (load {about['load']:.1f}): these times are no measurements", file=sys.stderr)
    print(HEADER)
    rows = []
    for program in PROGRAMS:
        dtypes = arguments.dtypes.split(",") if program.name in only else []
        for dtype in dtypes if program.takes_floats else dtypes[:1]:
            rows.append(measure(program, dtype, arguments))
            print(line(rows[-1]), flush=True)
    for mode, figures in summary(rows).items():
        print(f"{mode}: " + ", ".join(f"{key.replace('_', ' ')} {value:.2f}" for key, value in figures.items()))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"machine": about, "threads": arguments.threads, "rows": rows,
                                                "summary": summary(rows)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
