"""Times products with weights of a few bits on one pinned core, beyond the caches, beside the same product with floats.

What it does: for each number of bits and rows it compiles a product whose weights are integers times a scale a group, and the same
product with these weights as floats. With `--activations int8` the narrow one rounds its activations to bytes at run time, by row, as
the recipe w4a8 does, with `--activations bfloat16` both products are of such numbers; 16 bits are bfloat16 weights, without scales. The two
take turns; before each call eight times the last cache is read, which pushes all else out (twice is not enough), so that weights come
from memory as they do in a model that is larger. It prints the fastest call of each, what share of the limit of reading as much memory
the narrow weights are read at (measured again for each row, as neighbours of a virtual machine change it), and what share of the limit
of multiply-adds is reached. A call begins with the program and its caller out of the caches, too: 15 microseconds of it.

Assumes a C compiler (`cc`), and 2 GB of memory.

    taskset -c 1 python -m benchmarks.weight_only --clock thread
    taskset -c 1 python -m benchmarks.weight_only --clock thread --bits 4 --activations int8
    python -m benchmarks.weight_only --bits 4 --rows 1,8 --size 4096 --group 128
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tilewright as tw
from benchmarks.kernel_peers import CLOCKS
from benchmarks.kernels import OPTIONS, Array, Limits
from tilewright.backends.llvm.targets import resolve_target
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.ops.control import Param
from tilewright.ir.types import BF16, F32, I8
from tilewright.library import apply, cast, constant, matmul, reduce, reshape, scalar
from tilewright.library_quantized import dequantize, quantize

CALLS = 15
SCALE_BYTES = 4
BFLOAT = 16  # bits
FAR = 4      # arrays of twice the last cache


def rounded_to_bytes(b: Builder, x: Node) -> Node:
    """x in units of its rows' largest numbers over 127."""
    scale = apply(b, "div", reduce(b, "max", scalar(b, "abs", x), (1,), keep=True), constant(b, 127.0, F32))
    return dequantize(b, quantize(b, x, scale, None, I8), scale)


def products(bits: int, rows: int, size: int, group: int, activations: str = "float") -> tuple[Graph, Graph, Array]:
    """[rows, size] times [size, size] with narrow weights and with floats, and the left operand."""
    rng = np.random.default_rng(bits)
    if bits == BFLOAT:
        exact = rng.standard_normal((size, size), dtype=np.float32).astype(BF16.numpy).astype(np.float32)
        matrices = (exact, np.nextafter(exact, np.float32(np.inf)))  # the latter are no bfloat16
        return *(_plain_product(matrix, rows) for matrix in matrices), rng.standard_normal((rows, size), dtype=np.float32)
    half = 1 << bits - 1
    integers = rng.integers(-half, half, (size // group, group, size)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, (size // group, 1, size)).astype(np.float32)
    dense = (integers * scales).reshape(size, size)
    graphs = []
    dtype = BF16 if activations == "bfloat16" else F32
    for narrow in (True, False):
        b = Builder()
        x = b.add(Param("x", dtype, (rows, size)))
        w = reshape(b, dequantize(b, constant(b, integers), constant(b, scales)), (size, size)) if narrow else constant(b, dense)
        left, w = (rounded_to_bytes(b, x) if narrow and activations == "int8" else x), cast(b, w, dtype)
        graphs.append(Graph("narrow" if narrow else "floats", [x], [matmul(b, left, w)]))
    return graphs[0], graphs[1], rng.standard_normal((rows, size), dtype=np.float32).astype(dtype.numpy)


def _plain_product(matrix: Array, rows: int) -> Graph:
    b = Builder()
    x = b.add(Param("x", F32, (rows, len(matrix))))
    return Graph("product", [x], [matmul(b, x, constant(b, matrix))])


def measure(bits: int, rows: int, size: int, group: int, clock: Callable[[], float], forget: Callable[[], Any],
            limits: dict[str, float], calls: int = CALLS, activations: str = "float") -> dict[str, float]:
    """Seconds of both products, and shares of the limits: "read" in bytes and "float32" in operations a second."""
    narrow, floats, x = products(bits, rows, size, group, activations)
    ours, theirs = (tw.compile(graph, options=OPTIONS) for graph in (narrow, floats))
    out, expected = np.empty((rows, size), x.dtype), np.empty((rows, size), x.dtype)
    times: dict[str, list[float]] = {"narrow": [], "floats": []}
    for _ in range(calls):
        for name, function, to in (("narrow", ours, out), ("floats", theirs, expected)):
            forget()
            start = clock()
            function(x, out=to)
            times[name].append(clock() - start)
    seconds = min(times["narrow"])
    moved = size * size * bits / 8 + (size // group * size * SCALE_BYTES if bits != BFLOAT else 0)
    return {"bits": bits, "rows": rows, "seconds": seconds, "floats": min(times["floats"]), "rate": moved / seconds,
            "of reading": moved / seconds / limits["read"], "of computing": 2.0 * rows * size * size / seconds / limits["float32"],
            "error": float(np.abs(out.astype(np.float32) - expected).max() / np.abs(expected).max())}


def line(row: dict[str, float]) -> str:
    kind = "bf16" if row["bits"] == BFLOAT else f"int{row['bits']:.0f}"
    return (f"{kind} {row['rows']:4.0f} rows {row['seconds'] * 1e3:9.3f} ms  {row['rate'] / 1e9:5.1f} GB/s  "
            f"{row['of reading']:6.1%} of reading  {row['of computing']:6.1%} of computing  "
            f"floats / ours {row['floats'] / row['seconds']:5.2f}  error {row['error']:.0e}")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="default: %(default)s")
    parser.add_argument("--bits", type=numbers, default=(8, 4, 2), help="separated by commas (default: 8,4,2)")
    parser.add_argument("--rows", type=numbers, default=(1, 4, 8, 64), help="separated by commas (default: 1,4,8,64)")
    parser.add_argument("--size", type=int, default=4096, help="of the matrix, which is square (default: %(default)s)")
    parser.add_argument("--group", type=int, default=64, help="steps that share a scale (default: %(default)s)")
    parser.add_argument("--activations", choices=("float", "bfloat16", "int8"), default="float",
                        help="of the narrow product (default: %(default)s)")
    arguments = parser.parse_args(argv)
    clock, target = CLOCKS[arguments.clock], resolve_target("cpu")
    with tempfile.TemporaryDirectory(prefix="tilewright-weight-only-") as folder:
        limits = Limits(Path(folder), target.vector_bits // 8, clock, target.level3_bytes)

        def forget() -> None:
            limits.code.tw_read(limits.place, FAR * limits.bytes, 4)

        for bits in arguments.bits:
            for rows in arguments.rows:
                found = {"read": limits.read(FAR), "float32": limits.peak("float32")}
                row = measure(bits, rows, arguments.size, arguments.group, clock, forget, found,
                              activations=arguments.activations)
                print(f"{line(row)}  (limits {found['read'] / 1e9:.1f} GB/s, {found['float32'] / 1e9:.0f} GFLOP/s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
