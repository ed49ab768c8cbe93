"""Rows of the benchmark of GPUs for narrow numbers: weights of a few bits, layers of bytes, float8.

Weights of a few bits are compared with a copy of as many bytes, which is what a product of few rows is bound by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu_cases import Array, Case, graph_of
from tilewright import library as lib
from tilewright.backends.cuda.backend import capabilities_of
from tilewright.ir.graph import Builder, Node
from tilewright.ir.ops.compute import Bitcast
from tilewright.ir.ops.shape import Take
from tilewright.ir.ops.weight_only import WeightOnlyDot
from tilewright.ir.types import BF16, F16, F32, I8, I32, U8, DType, dtype_named
from tilewright.library_quantized import dequantize, quantize
from tilewright.tiles import gpu_code_columns

E4M3 = dtype_named("f8e4m3fn")


def narrow_cases(tiny: bool) -> Iterator[Case]:
    for bits, group in ((4, 128), (8, 0)):
        for rows in (1, 3, 9) if tiny else (1, 2, 4, 8, 16, 32, 64):
            yield _coded(rows, 64 if tiny else 4096, bits, 32 if tiny and group else group)
    for rows in (3,) if tiny else (1, 16, 64, 4096):
        yield _coded(rows, 64 if tiny else 4096, 4, 32 if tiny else 128, I8)
    for n in (64,) if tiny else (2048, 4096, 8192):
        yield _layer(n)
    for n in (64,) if tiny else (1024, 2048, 4096, 8192):
        yield _floats8(n)


def _coded(rows: int, n: int, bits: int, group: int, dtype: DType = F16) -> Case:
    """float16 rows, or bytes, times n x n codes; `group` 0: a scale for a whole column."""
    tile, group = gpu_code_columns(n, capabilities_of("sm_90")), group or n
    panels = n // tile
    op = WeightOnlyDot(n, bits, group, 1 << bits - 1)
    graph, moved = graph_of("coded", [((rows, n), dtype), ((panels, n * bits // 32, tile), I32), ((panels, n // group, tile), F16)],
                            lambda b, *operands: b.add(op, *operands))

    def inputs() -> list[Array]:
        random = np.random.default_rng(1)
        limits = np.iinfo(np.int32)
        return [random.integers(-128, 128, (rows, n), np.int8) if dtype == I8 else random.standard_normal((rows, n)).astype(np.float16),
                random.integers(limits.min, limits.max, (panels, n * bits // 32, tile), np.int32, True),
                random.uniform(0.001, 0.01, (panels, n // group, tile)).astype(np.float16)]

    return Case("weights", f"i{bits} {dtype} {rows} x {n} x {n}", graph, 2.0 * rows * n * n, moved, str(dtype), "a copy", given=inputs,
                checked=True, copied=True)


def _layer(n: int) -> Case:
    """Bytes times bytes, a scale for each channel, a bias, a maximum with zero, and bytes again."""
    random = np.random.default_rng(1)
    weights, scales = random.integers(-127, 128, (n, n)).astype(np.int8), random.uniform(0.001, 0.01, (1, n)).astype(np.float32)
    bias = random.standard_normal(n).astype(np.float32)

    def build(b: Builder, x: Node) -> Node:
        made = dequantize(b, lib.constant(b, weights), lib.constant(b, scales))
        total = lib.matmul(b, dequantize(b, x, lib.constant(b, 0.05, F32), None), made)
        total = lib.apply(b, "add", total, lib.broadcast(b, lib.constant(b, bias), total.shape))
        total = lib.apply(b, "max", total, lib.broadcast(b, lib.constant(b, 0.0, F32), total.shape))
        return quantize(b, total, lib.constant(b, 0.1, F32), None, I8)

    graph, moved = graph_of("layer", [((n, n), I8)], build)

    def peer(torch: Any, t: Sequence[Any]) -> Callable[[], Any]:
        w, s, c = (torch.from_numpy(a).cuda() for a in (weights, scales * np.float32(0.05), bias))
        compiled = torch.compile(lambda x: torch.clamp(torch.round(torch.relu(torch._int_mm(x, w).float() * s + c) * 10.0), -128, 127)
                                 .to(torch.int8), mode="max-autotune-no-cudagraphs")
        return lambda: compiled(t[0])

    return Case("layers", f"i8 {n} x {n} x {n}", graph, 2.0 * n ** 3, moved + n * n, "i8", "torch.compile of _int_mm", peer)


def _floats8(n: int) -> Case:
    def build(b: Builder, x: Node, w: Node) -> Node:
        every = np.arange(256, dtype=np.uint8).view(E4M3.numpy).astype(np.float32)
        values = [lib.cast(b, b.add(Take(0), lib.constant(b, every), b.add(Bitcast(U8), p)), BF16) for p in (x, w)]
        return lib.matmul(b, *values)

    graph, moved = graph_of("floats8", [((n, n), E4M3), ((n, n), E4M3)], build)

    def peer(torch: Any, t: Sequence[Any]) -> Callable[[], Any]:
        one, columns = torch.ones((), device="cuda"), t[1].t().contiguous().t()  # which it wants down the columns
        return lambda: torch._scaled_mm(t[0], columns, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return Case("floats8", f"e4m3 {n} x {n} x {n}", graph, 2.0 * n ** 3, moved, "f8", "torch._scaled_mm", peer)
