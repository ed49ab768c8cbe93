"""Times products with weights of a few bits on one pinned core, beyond the caches, beside the same product with floats.

What it does: for each number of bits and rows it compiles a product whose weights are integers times a scale a group, and the same
product with these weights as floats. With `--activations int8` the narrow one rounds its activations to bytes at run time, by row, as
the recipe w4a8 does, with `--activations bfloat16` both products are of such numbers; 16 bits are bfloat16 weights, without scales. The two
take turns; before each call eight times the last cache is read, which pushes all else out (twice is not enough), so that weights come
from memory as they do in a model that is larger. It prints the fastest call of each, what share of the limit of reading as much memory
the narrow weights are read at (measured again for each row, as neighbours of a virtual machine change it), and what share of the limit
of multiply-adds is reached. A call begins with the program and its caller out of the caches, too: 15 microseconds of it.
With `--ggml` llama.cpp's product takes its turn as well (`ggml_product.py`): the very same weights for all three, of 4 bits in groups of 32
with scales that are float16, as Q4_0 has them. It rounds activations to bytes in blocks of 32, ours by row; errors of both are relative
to the largest result in float64.

Assumes a C compiler (`cc`), and 2 GB of memory.

    taskset -c 1 python -m benchmarks.weight_only --clock thread
    taskset -c 1 python -m benchmarks.weight_only --clock thread --bits 4 --activations int8
    python -m benchmarks.weight_only --bits 4 --rows 1,8 --size 4096 --group 128
    taskset -c 1 python -m benchmarks.weight_only --clock thread --rows 1 --size 8192 --activations int8 --ggml /path/to/llama.cpp/build/bin
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tilewright as tw
from benchmarks.ggml_product import BLOCK, GgmlProduct, open_library
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
LARGEST_GGML_ERROR = 0.01  # of the largest result: bytes in blocks of 32 are off by at most 0.4 % of their block's greatest each


def rounded_to_bytes(b: Builder, x: Node) -> Node:
    """x in units of its rows' largest numbers over 127."""
    scale = apply(b, "div", reduce(b, "max", scalar(b, "abs", x), (1,), keep=True), constant(b, 127.0, F32))
    return dequantize(b, quantize(b, x, scale, None, I8), scale)


class Weights(NamedTuple):
    """Integers [groups, group, N] of a few bits and scales [groups, 1, N]."""

    integers: Array
    scales: Array

    @property
    def dense(self) -> Array:
        """[K, N], float32."""
        return (self.integers * self.scales).reshape(-1, self.scales.shape[-1])


def random_weights(bits: int, size: int, group: int, half_scales: bool = False) -> Weights:
    """[size, size]; with `half_scales` each scale is a float16, as a float32."""
    rng = np.random.default_rng(bits)
    half = 1 << bits - 1
    integers = rng.integers(-half, half, (size // group, group, size)).astype(np.int8)
    scales = rng.uniform(0.01, 0.02, (size // group, 1, size)).astype(np.float32)
    return Weights(integers, scales.astype(np.float16).astype(np.float32) if half_scales else scales)


def products(weights: Weights, rows: int, activations: str = "float") -> tuple[Graph, Graph, Array]:
    """[rows, size] times [size, size] with narrow weights and with floats, and the left operand."""
    dense, graphs = weights.dense, []
    size = len(dense)
    dtype = BF16 if activations == "bfloat16" else F32
    for narrow in (True, False):
        b = Builder()
        x = b.add(Param("x", dtype, (rows, size)))
        w = reshape(b, dequantize(b, *(constant(b, a) for a in weights)), dense.shape) if narrow else constant(b, dense)
        left, w = (rounded_to_bytes(b, x) if narrow and activations == "int8" else x), cast(b, w, dtype)
        graphs.append(Graph("narrow" if narrow else "floats", [x], [matmul(b, left, w)]))
    return graphs[0], graphs[1], _left(rows, size).astype(dtype.numpy)


def products_of_bfloats(rows: int, size: int) -> tuple[Graph, Graph, Array]:
    """The same with weights that are bfloat16 and others that are not."""
    exact = np.random.default_rng(BFLOAT).standard_normal((size, size), dtype=np.float32).astype(BF16.numpy).astype(np.float32)
    return _plain_product(exact, rows), _plain_product(np.nextafter(exact, np.float32(np.inf)), rows), _left(rows, size)


def _left(rows: int, size: int) -> Array:
    return np.random.default_rng(rows).standard_normal((rows, size), dtype=np.float32)


def _plain_product(matrix: Array, rows: int) -> Graph:
    b = Builder()
    x = b.add(Param("x", F32, (rows, len(matrix))))
    return Graph("product", [x], [matmul(b, x, constant(b, matrix))])


def measure(bits: int, rows: int, size: int, group: int, clock: Callable[[], float], forget: Callable[[], Any],
            limits: dict[str, float], calls: int = CALLS, activations: str = "float",
            peer: Callable[[Array, Array, Array], GgmlProduct] | None = None) -> dict[str, float]:
    """Seconds of the products, and shares of the limits: "read" in bytes and "float32" in operations a second. `peer` makes a product of
    the left operand, the integers [size, size] and the scales [groups, size]."""
    if bits == BFLOAT:
        narrow, floats, x = products_of_bfloats(rows, size)
        moved = size * size * 2
    else:
        weights = random_weights(bits, size, group, peer is not None)
        narrow, floats, x = products(weights, rows, activations)
        moved = size * size * bits // 8 + size // group * size * (2 if peer else SCALE_BYTES)
    ours, theirs = (tw.compile(graph, options=OPTIONS) for graph in (narrow, floats))
    out, expected = np.empty((rows, size), x.dtype), np.empty((rows, size), x.dtype)
    turns: dict[str, Callable[[], Any]] = {"seconds": lambda: ours(x, out=out), "floats": lambda: theirs(x, out=expected)}
    if peer:
        turns["ggml"] = other = peer(x, weights.integers.reshape(size, size), weights.scales[:, 0])
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(calls):
        for name, call in turns.items():
            forget()
            start = clock()
            call()
            times[name].append(clock() - start)
    row = {name: min(taken) for name, taken in times.items()}
    if peer:
        exact = x.astype(np.float64) @ weights.dense.astype(np.float64)
        row["ggml error"] = relative_error(other.values(), exact)
        other.close()
        if row["ggml error"] > LARGEST_GGML_ERROR:
            raise ValueError(f"ggml's product {rows}x{size}x{size} is wrong by {row['ggml error']:.1e} of its largest result, "
                             f"where bytes in blocks of {BLOCK} explain {LARGEST_GGML_ERROR}: is this build of ggml sound?")
    else:
        exact = expected.astype(np.float64)
    rate = moved / row["seconds"]
    return row | {"bits": bits, "rows": rows, "rate": rate, "of reading": rate / limits["read"],
                  "of computing": 2.0 * rows * size * size / row["seconds"] / limits["float32"], "error": relative_error(out, exact)}


def relative_error(found: Array, exact: Array) -> float:
    """The largest error over the largest number."""
    return float(np.abs(found.astype(np.float64) - exact).max() / np.abs(exact).max())


def line(row: dict[str, float]) -> str:
    kind = "bf16" if row["bits"] == BFLOAT else f"int{row['bits']:.0f}"
    peer = f"  ggml / ours {row['ggml'] / row['seconds']:5.2f}  its error {row['ggml error']:.0e}" if "ggml" in row else ""
    return (f"{kind} {row['rows']:4.0f} rows {row['seconds'] * 1e3:9.3f} ms  {row['rate'] / 1e9:5.1f} GB/s  "
            f"{row['of reading']:6.1%} of reading  {row['of computing']:6.1%} of computing  "
            f"floats / ours {row['floats'] / row['seconds']:5.2f}  error {row['error']:.0e}{peer}")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="default: %(default)s")
    parser.add_argument("--bits", type=numbers, help="separated by commas (default: 8,4,2; with --ggml 4)")
    parser.add_argument("--rows", type=numbers, default=(1, 4, 8, 64), help="separated by commas (default: 1,4,8,64)")
    parser.add_argument("--size", type=numbers, default=(4096,), help="of the matrix, which is square; separated by commas (default: 4096)")
    parser.add_argument("--group", type=int, help="steps that share a scale (default: 64; with --ggml 32)")
    parser.add_argument("--activations", choices=("float", "bfloat16", "int8"), default="float",
                        help="of the narrow product (default: %(default)s)")
    parser.add_argument("--ggml", type=Path, metavar="FOLDER",
                        help="compare with llama.cpp: where its libggml-base.so and libggml-cpu.so lie")
    arguments = parser.parse_args(argv)
    clock, target, peer = CLOCKS[arguments.clock], resolve_target("cpu"), None
    if arguments.ggml:
        if arguments.bits not in (None, (4,)) or arguments.group not in (None, BLOCK) or arguments.activations == "bfloat16":
            parser.error(f"--ggml: Q4_0 has 4 bits in groups of {BLOCK} and float32 activations; leave out --bits, --group and bfloat16")
        try:
            open_library(arguments.ggml)
        except OSError as error:
            parser.error(f"--ggml: {error}")
        peer = partial(GgmlProduct, arguments.ggml)
    bits_of_all = arguments.bits or ((4,) if peer else (8, 4, 2))
    group = arguments.group or (BLOCK if peer else 64)
    with tempfile.TemporaryDirectory(prefix="tilewright-weight-only-") as folder:
        limits = Limits(Path(folder), target.vector_bits // 8, clock, target.level3_bytes)

        def forget() -> None:
            limits.code.tw_read(limits.place, FAR * limits.bytes, 4)

        for bits, rows, size in itertools.product(bits_of_all, arguments.rows, arguments.size):
            found = {"read": limits.read(FAR), "float32": limits.peak("float32")}
            row = measure(bits, rows, size, group, clock, forget, found, activations=arguments.activations, peer=peer)
            print(f"{size:5} {line(row)}  (limits {found['read'] / 1e9:.1f} GB/s, {found['float32'] / 1e9:.0f} GFLOP/s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
