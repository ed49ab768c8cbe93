"""Products of bytes on one pinned core, as shares of what the core can do at most.

What it does: products of uint8 with constant int8 into int32, of square sizes, against the limit for exact sums of such products
(`limits_int8.c`: VNNI, or pairs of 16 bits without it). The same product in float32 stands beside each. `weight_only.py` has products with
weights of few bits.

Assumes a C compiler (`cc`). `--clock thread` counts the time of this thread alone, for a machine whose other cores are busy.

    python -m benchmarks.quantization_kernels --output kernels.json
    python -m benchmarks.quantization_kernels --seconds 0.5 --clock thread
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import tilewright as tw
from benchmarks.compare import print_row
from benchmarks.kernel_peers import CLOCKS, seconds_of
from benchmarks.numpy_functions import machine
from tilewright.ir.graph import Builder, Constant, Graph
from tilewright.ir.ops.compute import Dot
from tilewright.ir.ops.control import Const, Param
from tilewright.ir.types import I8, I32, U8

OPTIONS = tw.Options(threads=1, cache=False)
SQUARES = (256, 384, 512, 768, 1024, 1536, 2048)
ROUNDS = 4_000_000
LIMIT_CALLS = 5


@dataclass
class Row:
    """One kernel: its time and that of the same product in float32, what it did a second, and the limit for that."""

    name: str
    seconds: float
    float_seconds: float
    rate: float
    limit: float

    @property
    def share(self) -> float:
        return self.rate / self.limit if self.limit else float("nan")


def int8_limit(folder: Path, clock: Callable[[], float]) -> float:
    """Operations a second, two a product."""
    library = folder / "limits_int8.so"
    source = Path(__file__).with_name("limits_int8.c")
    subprocess.run(["cc", "-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    code = ctypes.CDLL(str(library))
    code.tw_int8_products.restype, code.tw_int8_products.argtypes = ctypes.c_int64, [ctypes.c_int64, ctypes.POINTER(ctypes.c_int32)]
    best = 0.0
    for _ in range(LIMIT_CALLS):
        start = clock()
        products = code.tw_int8_products(ROUNDS, ctypes.byref(ctypes.c_int32()))
        best = max(best, 2 * products / (clock() - start))
    return best


def product_of_bytes(size: int) -> tuple[Graph, np.ndarray]:
    """uint8 times constant int8 into int32, and the left operand."""
    random = np.random.default_rng(size)
    builder = Builder()
    x = builder.add(Param("x", U8, (size, size)))
    w = builder.add(Const(Constant(random.integers(-127, 128, (size, size), np.int8), I8)))
    return (Graph("bytes", (x,), (builder.add(Dot((1,), (0,), result=I32), x, w),), ("y",)),
            random.integers(0, 256, (size, size), np.uint8))


def product_of_floats(rows: int, depth: int, columns: int) -> tuple[Graph, np.ndarray]:
    random = np.random.default_rng(rows)
    w = random.standard_normal((depth, columns), np.float32)
    graph = tw.trace(lambda x: x @ w, args=(tw.spec((rows, depth), "float32"),))
    return getattr(graph, "graph", graph), random.standard_normal((rows, depth), np.float32)


def timed(graph: Graph, x: np.ndarray, clock: Callable[[], float], seconds: float) -> float:
    program = tw.compile(graph, target="cpu", options=OPTIONS)
    return median(seconds_of(partial(program, x), clock, seconds))


def products(folder: Path, clock: Callable[[], float], seconds: float) -> Iterator[Row]:
    limit = int8_limit(folder, clock)
    for size in SQUARES:
        taken = timed(*product_of_bytes(size), clock, seconds)
        plain = timed(*product_of_floats(size, size, size), clock, seconds)
        yield Row(f"{size}x{size}x{size}", taken, plain, 2.0 * size**3 / taken, limit)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each kernel (default: %(default)s)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="write everything as JSON to this file")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found: list[dict[str, Any]] = []
    print_row(["product", "ms", "float32 ms", "faster", "Gop/s", "of the limit"])
    print_row(["---"] * 6)
    with tempfile.TemporaryDirectory(prefix="tilewright-quantization-kernels-") as folder:
        for row in products(Path(folder), CLOCKS[arguments.clock], arguments.seconds):
            print_row([row.name, f"{row.seconds * 1e3:.3f}", f"{row.float_seconds * 1e3:.3f}", f"{row.float_seconds / row.seconds:.2f}",
                       f"{row.rate / 1e9:.1f}", f"{row.share:.0%}"])
            sys.stdout.flush()
            found.append(asdict(row) | {"share": row.share})
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": machine(), "clock": arguments.clock, "kernels": found}, indent=1) + "\n")
        print(f"\nwrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
