"""Times single kernels on one pinned core and says what share of the core's limits each reaches.

What it does: measures the limits first, with small loops of its own (`limits.c`): multiply-adds in registers, reads from
memory, and each mix of reads and writes that a kernel here has, plain and past the caches, over arrays far larger than
the last cache. Then each kernel, compiled for its sizes: the median, the fastest call, the spread (the middle half over
the median), and its share: of the multiply-add limit where it computes, of the limit for its mix where it moves memory, and where it
does much of both also of the longer of the two times (`roofline`). What the two are worth changes with the neighbours of a virtual
machine, so that the limits are measured again before each group, and that of a mix before each kernel that has it.
With `--peers`, products of two operands given at run time are compared with other systems too, each in a process of its own
(`kernel_peers.py`): they take turns with ours, some rounds of them. Last, what a call costs, from Python and from C.
Softmax, layer norm and transposes have a roofline besides, and a kernel by hand (`rooflines.py`): their share of either is printed, too.

Assumes a C compiler (`cc`) and that nothing else runs meanwhile. `--clock thread` counts the time of this thread alone, for a
machine whose other cores are busy; memory is shared with them all the same.

    python -m benchmarks.kernels --output kernels.json
    python -m benchmarks.kernels --only matmul,skinny --seconds 0.5 --clock thread
    python -m benchmarks.kernels --only run-time --peers mkl --peers-python /path/to/venv/bin/python
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean, mean, median, quantiles
from typing import Any

import numpy as np

import tilewright as tw
from benchmarks.kernel_peers import CLOCKS, PEERS, Peer, seconds_of
from benchmarks.numpy_functions import BLAS_THREADS, machine
from benchmarks.rooflines import Roofline, Rooflines

Array = np.ndarray
OPTIONS = tw.Options(threads=1, cache=False)
BEYOND_CACHES = 64 << 20   # bytes of an array, twice the last cache or more where that is known
PEAK_ROUNDS = 2_000_000
LIMIT_CALLS = 5
ROUNDS = 5                 # of turns, where there are peers
PEAK_VECTORS = 12          # of limits.c
SQUARES = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
TRANSFORMERS = ((128, 384, 384), (128, 384, 1536), (128, 1536, 384), (128, 768, 768), (128, 768, 3072), (128, 3072, 768), (512, 1024, 1024))


@dataclass(frozen=True)
class Case:
    """A kernel: the function, its inputs, and what it does at least. `operations` counts a multiply-add as two; `sources`
    are the arrays as large as the result that it reads, none: it only reads `moved` bytes."""

    group: str
    name: str
    function: Callable[..., Any]
    inputs: tuple[Array, ...]
    operations: float = 0.0
    moved: float = 0.0
    sources: int | None = None
    turned: tuple[bool, bool] | None = None  # of a product that peers are given, too: which operands lie transposed

    @property
    def dtype(self) -> str:
        return str(self.inputs[0].dtype)


# --- limits ----------------------------------------------------------------------------------------------------------


class Limits:
    """The core's limits, by loops compiled for it: operations and bytes a second."""

    def __init__(self, folder: Path, vector_bytes: int, clock: Callable[[], float], last_cache: int) -> None:
        library, source = folder / "limits.so", Path(__file__).with_name("limits.c")
        subprocess.run(["cc", "-std=gnu11", "-O3", "-march=native", f"-DVECTOR_BYTES={vector_bytes}", "-shared", "-fPIC", str(source),
                        "-o", str(library)], check=True)
        self.code = ctypes.CDLL(str(library))
        for name, kind in (("float32", ctypes.c_float), ("float64", ctypes.c_double)):
            peak = getattr(self.code, f"tw_peak_{name}")
            peak.restype, peak.argtypes = kind, [ctypes.c_int64, kind]
        self.code.tw_read.restype, self.code.tw_read.argtypes = ctypes.c_float, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self.code.tw_mix.restype, self.code.tw_mix.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3]
        self.vector_bytes, self.clock = vector_bytes, clock
        self.bytes = max(BEYOND_CACHES, 2 * last_cache)
        self.memory = np.ones(5 * self.bytes + 4096, np.uint8)
        self.place = -(-self.memory.ctypes.data // 4096) * 4096

    def best(self, function: Callable[..., Any], *operands: float) -> float:
        found = []
        for _ in range(LIMIT_CALLS):
            start = self.clock()
            function(*operands)
            found.append(self.clock() - start)
        return min(found)

    def peak(self, dtype: str) -> float:
        """Operations a second in registers, two a multiply-add."""
        peak, lanes = getattr(self.code, f"tw_peak_{dtype}"), self.vector_bytes // np.dtype(dtype).itemsize
        return 2 * lanes * PEAK_VECTORS * PEAK_ROUNDS / self.best(peak, PEAK_ROUNDS, 0.5)

    def read(self, arrays: int = 1) -> float:
        """Bytes a second read from memory, by as many streams as are fastest: of one array again and again, part of which the last
        cache may still hold, or of several."""
        size = arrays * self.bytes
        return max(size / self.best(self.code.tw_read, self.place, size, streams) for streams in (1, 2, 4, 6, 8))

    def mix(self, sources: int) -> float:
        """Bytes a second read and written, with so many arrays read for one written."""
        to = self.place + 4 * self.bytes
        return max((sources + 1) * self.bytes / self.best(self.code.tw_mix, to, self.place, self.bytes, sources, past)
                   for past in (0, 1))


# --- kernels ---------------------------------------------------------------------------------------------------------


def normal(shape: Sequence[int], dtype: str = "float32") -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype="float32").astype(dtype)


def by_constant(m: int, k: int, n: int, group: str = "matmul", dtype: str = "float32") -> Case:
    """A product with a constant right operand, packed once and for all; by the bytes of that where it is skinny."""
    w = normal((k, n), dtype)
    name = f"{m}x{k}x{n} {dtype}"
    moved = float(w.nbytes) if group == "skinny" else 0.0
    return Case(group, name, lambda x: x @ w, (normal((m, k), dtype),), 2.0 * m * k * n, moved)


def matmuls() -> Iterator[Case]:
    for size in SQUARES:
        yield by_constant(size, size, size)
    for shape in TRANSFORMERS:
        yield by_constant(*shape)
    for size in (256, 512, 1024):
        yield by_constant(size, size, size, dtype="float64", group="matmul float64")


def products_at_run_time() -> Iterator[Case]:
    for size in SQUARES[::2]:
        x, y, operations = normal((size, size)), normal((size, size)), 2.0 * size**3
        yield Case("run time", f"x @ y {size}", lambda x, y: x @ y, (x, y), operations, turned=(False, False))
        yield Case("run time", f"x.T @ y {size}", lambda x, y: x.T @ y, (x, y), operations, turned=(True, False))
        yield Case("run time", f"x @ y.T {size}", lambda x, y: x @ y.T, (x, y), operations, turned=(False, True))


def skinny() -> Iterator[Case]:
    for rows in (1, 4, 8):
        yield by_constant(rows, 4096, 4096, "skinny")


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(1e-5))


def moving() -> Iterator[Case]:
    """What memory alone should limit: large arrays."""
    rows, columns = 16384, 1024
    x, y, z = (normal((rows, columns)) for _ in range(3))
    functions: list[tuple[str, Callable[..., Any], tuple[Array, ...]]] = [
        ("softmax", softmax, (x,)), ("layer norm", layer_norm, (x,)),
        ("a chain of one array", lambda x: np.maximum(x * np.float32(0.5) + np.float32(1), 0), (x,)),
        ("a chain of two", lambda x, y: x * y + x, (x, y)),
        ("a chain of three", lambda x, y, z: x * y + z, (x, y, z)),
        ("transpose", lambda x: x.T.copy(), (x,)),
        ("transpose of the middle", lambda x: x.reshape(128, 128, 16, 64).transpose(0, 2, 1, 3).copy(), (x,))]
    for name, function, inputs in functions:
        yield Case("memory", name, function, inputs, moved=float(x.nbytes * (len(inputs) + 1)), sources=len(inputs))


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {"matmul": matmuls, "run-time": products_at_run_time, "skinny": skinny, "memory": moving}


def times_in_turn(case: Case, ours: Callable[[], Any], shape: Sequence[int], peers: Sequence[Peer], clock: Callable[[], float],
                  seconds: float) -> dict[str, list[float]]:
    """The seconds of the calls of each system, ours under "ours"."""
    found: dict[str, list[float]] = {"ours": []}
    given = peers if case.turned is not None else ()
    rounds = ROUNDS if given else 1
    for _ in range(rounds):
        found["ours"] += seconds_of(ours, clock, seconds / rounds)
        for peer in given:
            assert case.turned is not None
            sizes = (shape[0], case.inputs[0].size // shape[0], shape[1])
            found.setdefault(peer.name, []).extend(peer.times(sizes, case.turned, case.dtype, seconds / rounds))
    return found


def undisturbed(taken: Sequence[float]) -> float:
    """What a call takes where nothing else uses caches and memory: the lowest tenth of them. The lowest one may be a fault of the
    clock."""
    return quantiles(taken, n=10)[0]


def measure(case: Case, limits: Limits, rates: dict[str, float], seconds: float, peers: Sequence[Peer] = (),
            roofline: Roofline | None = None) -> dict[str, Any]:
    specs = [tw.spec(array.shape, str(array.dtype)) for array in case.inputs]
    compiled = tw.compile(case.function, args=specs, options=OPTIONS)
    expected = np.asarray(case.function(*case.inputs))
    out = np.empty_like(expected)
    compiled(*case.inputs, out=out)
    error = float(np.abs(out - expected).max() / np.abs(expected).max())
    times = times_in_turn(case, lambda: compiled(*case.inputs, out=out), out.shape, peers, limits.clock, seconds)
    taken = times.pop("ours")
    low, middle, high = quantiles(taken, n=4)
    row = {"group": case.group, "name": case.name, "seconds": middle, "fastest": min(taken), "spread": (high - low) / middle,
           "calls": len(taken), "error": error}
    if case.moved:
        limit = rates["read"] if case.sources is None else rates[f"mix of {case.sources}"]
        row |= {"rate": case.moved / middle, "limit": limit, "unit": "GB/s"}
    else:
        row |= {"rate": case.operations / middle, "limit": rates[case.dtype], "unit": "GFLOP/s"}
    row["share"] = row["rate"] / row["limit"]
    if roofline is not None:
        row["of roofline"] = roofline.bound(case.moved / row["limit"]) / middle
        row["of hand"], row["computing"], row["by hand"] = roofline.by_hand / middle, roofline.computing, roofline.by_hand
    if case.moved and case.operations:
        row["roofline"] = max(case.moved / row["limit"], case.operations / rates[case.dtype]) / middle
    ratios = {name: {"ratio": median(theirs) / middle, "undisturbed": undisturbed(theirs) / undisturbed(taken)}
              for name, theirs in times.items() if theirs}
    return row | ({"peers": ratios} if ratios else {})


# --- calls -----------------------------------------------------------------------------------------------------------

CALLER = """\
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "small.h"
int main(void) {
  char message[512] = "";
  tw_context context;
  tw_constants weights;
  memset(&context, 0, sizeof context);
  context.abi_version = TW_ABI_VERSION;
  context.error = message;
  context.error_capacity = sizeof message;
  if (small_open(&context, NULL, &weights) != TW_OK) { return 1; }
  float x[8] = {1}, y[8];
  const void *inputs[1] = {x};
  void *outputs[1] = {y};
  long long shapes[1] = {8};
  int64_t sizes[1] = {shapes[0]};
  double best = 1;
  for (int round = 0; round < 50; round++) {
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (int call = 0; call < 10000; call++) {
      if (small_run(&context, inputs, outputs, sizes, weights.data, NULL) != TW_OK) { return 1; }
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    double taken = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
    best = taken < best ? taken : best;
  }
  printf("%.9f\\n", best / 10000);
  small_close(&weights);
  return 0;
}
"""


def measure_calls(folder: Path, clock: Callable[[], float], seconds: float) -> list[dict[str, Any]]:
    """What a call costs that computes next to nothing: from Python with one, four and eight arrays, and from C."""
    rows = []
    for count in (1, 4, 8):
        arrays = [np.ones(8, np.float32) for _ in range(count)]
        compiled = tw.compile(lambda *xs: sum(xs[1:], xs[0] + 1), args=[tw.spec((8,), "float32")] * count, options=OPTIONS)
        taken = seconds_of(partial(compiled, *arrays), clock, seconds)
        rows.append({"group": "call", "name": f"from Python, {count + 1} arrays", "seconds": median(taken),
                     "limit_seconds": 3e-6 + 0.3e-6 * (count + 1)})
    small = tw.compile(lambda x: x + 1, args=[tw.spec((8,), "float32")], options=OPTIONS)
    small.save(str(folder / "small.so"), name="small")
    (folder / "caller.c").write_text(CALLER)
    subprocess.run(["cc", "-std=gnu11", "-O2", "-I", str(folder), str(folder / "caller.c"), str(folder / "small.so"), "-pthread",
                    f"-Wl,-rpath,{folder}", "-o", str(folder / "caller")], check=True)
    printed = subprocess.run([str(folder / "caller")], check=True, capture_output=True, text=True).stdout
    rows.append({"group": "call", "name": "from C", "seconds": float(printed), "limit_seconds": 0.3e-6})
    return rows


# --- the report ------------------------------------------------------------------------------------------------------


def line(row: dict[str, Any]) -> str:
    if row["group"] == "call":
        return f"{row['group']:<15} {row['name']:<26} {row['seconds'] * 1e6:10.2f} us  (wanted: {row['limit_seconds'] * 1e6:.1f})"
    both = f" (roofline {row['roofline']:.1%})" if "roofline" in row else ""
    text = (f"{row['group']:<15} {row['name']:<26} {row['seconds'] * 1e3:10.3f} ms  "
            f"{row['rate'] / 1e9:7.1f} of {row['limit'] / 1e9:6.1f} "
            f"{row['unit']:<8} {row['share']:6.1%}{both}  ±{row['spread'] / 2:4.0%}  "
            f"fastest {row['fastest'] * 1e3:.3f}  error {row['error']:.0e}")
    if "of roofline" in row:
        text += f"  of the roofline {row['of roofline']:.1%}, of the best by hand {row['of hand']:.1%}"
    return text + "".join(f"  {name} / ours {found['ratio']:.2f}, undisturbed {found['undisturbed']:.2f}"
                          for name, found in row.get("peers", {}).items())


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean and the least share of each group; against each peer the geometric mean."""
    found: dict[str, float] = {}
    for group in dict.fromkeys(row["group"] for row in rows if "share" in row):
        shares = [row["share"] for row in rows if row["group"] == group]
        found |= {f"{group}: mean share": mean(shares), f"{group}: least": min(shares)}
    for name in dict.fromkeys(name for row in rows for name in row.get("peers", {})):
        for kind in ("ratio", "undisturbed"):
            ratios = [row["peers"][name][kind] for row in rows if name in row.get("peers", {})]
            found[f"{name} / ours: geometric mean ({kind})"] = geometric_mean(ratios)
    return found


def arguments_of(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"of {', '.join(GROUPS)}, call; separated by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of calls of each kernel (default: %(default)s)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="default: %(default)s")
    parser.add_argument("--peers", default="", help=f"also measure products at run time by these: {','.join(PEERS)}")
    parser.add_argument("--peers-python", default=sys.executable, help="the interpreter that has them (default: this one)")
    parser.add_argument("--output", type=Path, help="JSON with everything measured")
    arguments = parser.parse_args(argv)
    names = [*GROUPS, "call"]
    arguments.only = [name for name in arguments.only.split(",") if name] or names
    unknown = [name for name in arguments.only if name not in names]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; kernels are {', '.join(names)}")
    arguments.peers = [name for name in arguments.peers.split(",") if name]
    unknown = [name for name in arguments.peers if name not in PEERS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; peers are {', '.join(PEERS)}")
    return arguments


def pin() -> None:
    """To the last core that this process may use, with one thread for NumPy: starts anew where it was imported with more."""
    if any(os.environ.get(name) != "1" for name in BLAS_THREADS):
        os.environ.update(dict.fromkeys(BLAS_THREADS, "1"))
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.kernels", *sys.argv[1:]])
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> int:
    from tilewright.backends.llvm.targets import resolve_target

    arguments = arguments_of()
    pin()
    about, target, clock = machine(), resolve_target("cpu"), CLOCKS[arguments.clock]
    print(", ".join(f"{key} {value}" for key, value in about.items()) + f", {target}, clock {arguments.clock}")
    if about["load"] > 0.5:
        print(f"the machine is busy (load {about['load']:.1f}): these times are no measurements", file=sys.stderr)
    peers = [Peer(name, arguments.peers_python, arguments.clock) for name in arguments.peers]
    for peer in peers:
        print(f"{peer.name}: {peer.about}")
    rows: list[dict[str, Any]] = []
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="tilewright-kernels-") as folder:
        limits = Limits(Path(folder), target.vector_bits // 8, clock, target.level3_bytes)
        rooflines = Rooflines(Path(folder), clock)
        for group in (name for name in GROUPS if name in arguments.only):
            rates = {dtype: limits.peak(dtype) for dtype in ("float32", "float64")} | {"read": limits.read()}
            rates |= {f"mix of {sources}": limits.mix(sources) for sources in (1, 2, 3)} if group == "memory" else {}
            measured[group] = rates
            print("limits: " + ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in rates.items()) + " (G a second)")
            for case in GROUPS[group]():
                if case.sources is not None:
                    rates[f"mix of {case.sources}"] = limits.mix(case.sources)
                known = rooflines.measure(case.name) if group == "memory" and case.name in rooflines.kernels else None
                rows.append(measure(case, limits, rates, arguments.seconds, peers, known))
                print(line(rows[-1]), flush=True)
        for row in measure_calls(Path(folder), clock, arguments.seconds) if "call" in arguments.only else []:
            rows.append(row)
            print(line(row), flush=True)
    for peer in peers:
        peer.close()
    for name, figure in summary(rows).items():
        print(f"{name} {figure:.3f}")
    if arguments.output is not None:
        about |= {"clock": arguments.clock} | {peer.name: peer.about for peer in peers}
        arguments.output.write_text(json.dumps({"machine": about, "limits": measured, "rows": rows,
                                                "summary": summary(rows)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
