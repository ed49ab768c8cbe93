"""Rows of the benchmark of GPUs for convolutions, of sizes that ResNet-50 has (He et al., Deep Residual Learning for Image Recognition,
2016), channels last: in float16 with a bias and a maximum with zero, and as layers of bytes.

torch has no convolution of bytes for a GPU: those are compared with the same layer in float16, rounded to bytes at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu_cases import Case, graph_of
from tilewright import library as lib
from tilewright.ir.graph import Builder, Node
from tilewright.ir.ops.compute import Conv
from tilewright.ir.types import F16, F32, I8, DType
from tilewright.library_quantized import dequantize, quantize

# taps an axis, stride, places an axis, channels in and out
LAYERS = [(7, 2, 224, 3, 64), (1, 1, 56, 64, 256), (3, 1, 56, 64, 64), (3, 2, 28, 256, 256), (3, 1, 14, 256, 256)]
SCALES = 0.05, 0.5  # of the bytes of x and of the result


def convolution_cases(tiny: bool) -> Iterator[Case]:
    for dtype in (F16, I8):
        for batch in (2,) if tiny else (1, 32):
            for layer in [(3, 2, 7, 3, 16)] if tiny else LAYERS:
                yield _convolution(dtype, batch, *layer)


def _convolution(dtype: DType, batch: int, taps: int, stride: int, places: int, channels: int, out: int) -> Case:
    random, edge = np.random.default_rng(1), taps // 2
    scales = random.uniform(0.001, 0.01, (out, 1, 1, 1)).astype(np.float32)
    kernel = random.integers(-127, 128, (out, channels, taps, taps)).astype(np.int8)
    weights = (kernel * scales).astype(np.float16) if dtype == F16 else kernel
    bias = random.standard_normal((out, 1, 1)).astype(np.float16 if dtype == F16 else np.float32)

    def build(b: Builder, x: Node) -> Node:
        first, w = lib.transpose(b, x, (0, 3, 1, 2)), lib.constant(b, weights)
        if dtype == I8:
            first, w = dequantize(b, first, lib.constant(b, SCALES[0], F32), None), dequantize(b, w, lib.constant(b, scales))
        made = b.add(Conv((stride,) * 2, ((edge, edge),) * 2, (1, 1), (1, 1)), first, w)
        made = lib.apply(b, "add", made, lib.broadcast(b, lib.constant(b, bias), made.shape))
        made = lib.apply(b, "max", made, lib.broadcast(b, lib.constant(b, 0.0, made.dtype), made.shape))
        made = quantize(b, made, lib.constant(b, SCALES[1], F32), None, I8) if dtype == I8 else made
        return lib.transpose(b, made, (0, 2, 3, 1))

    graph, moved = graph_of("convolution", [((batch, places, places, channels), dtype)], build)
    results = batch * out * math.ceil(places / stride) ** 2

    def peer(torch: Any, t: Sequence[Any]) -> Callable[[], Any]:
        w = torch.from_numpy((kernel * scales).astype(np.float16)).cuda().to(memory_format=torch.channels_last)
        c = torch.from_numpy(bias.reshape(-1).astype(np.float16)).cuda()
        x = (t[0] if dtype == F16 else t[0].half() * SCALES[0]).permute(0, 3, 1, 2)

        def layer(x: Any) -> Any:
            made = torch.relu(torch.nn.functional.conv2d(x, w, c, stride, edge)).permute(0, 2, 3, 1)
            return made if dtype == F16 else torch.clamp(torch.round(made / SCALES[1]), -128, 127).to(torch.int8)

        compiled = torch.compile(layer, mode="max-autotune-no-cudagraphs")
        return lambda: compiled(x)

    name = f"{dtype} {batch} x {places} x {places} x {channels}, {taps} x {taps} to {out}{f' by {stride}' if stride > 1 else ''}"
    return Case("convolutions", name, graph, 2.0 * results * channels * taps * taps, moved + weights.nbytes, str(dtype),
                "torch.compile of conv2d in float16", peer)
