"""What the benchmark of GPUs runs: graphs, their inputs, what they move and compute at least, and the same in torch.

Sizes are those that people run; with `tiny` they are as small as the emulation likes them, and of every kind that the large ones are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import tilewright as tw
from tilewright import library as lib
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.ops.compute import Dot
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Iota
from tilewright.ir.types import BF16, F16, F32, I8, I32, DType

Array = np.ndarray
PLAIN, TF32 = tw.Options(cache=False), tw.Options(cache=False, matmul_precision="tf32")
Peer = Callable[[Any, Sequence[Any]], Callable[[], Any]]
# operations a second of an H200's units, dense, by its datasheet
PEAKS = {"f16": 989e12, "bf16": 989e12, "tf32": 494e12, "i8": 1979e12, "f8": 1979e12, "f32": 67e12, "memory": float("inf")}


@dataclass(frozen=True)
class Case:
    """`operations` counts a multiply-add as two; `moved` are the bytes of inputs and results; `against`: what the peer is. `given`: inputs
    that are not random numbers. `checked`: against the graph's meaning, whatever the size; `copied`: the peer is a copy of as much.
    `options`: how it is compiled; torch is told the same of products of float32."""

    group: str
    name: str
    graph: Graph
    operations: float
    moved: float
    unit: str
    against: str
    peer: Peer | None = None
    given: Callable[[], list[Array]] | None = None
    checked: bool = False
    copied: bool = False
    options: tw.Options = PLAIN

    def inputs(self, random: np.random.Generator) -> list[Array]:
        if self.given is not None:
            return self.given()
        made = []
        for param in self.graph.params:
            dtype, shape = param.dtype, param.tensor.static_shape
            if dtype.is_float or dtype.is_stored:
                made.append((random.standard_normal(shape, np.float32) * 0.5).astype(dtype.numpy))
            else:
                made.append(random.integers(-128, 128, shape).astype(dtype.numpy))
        return made


def cases(tiny: bool = False) -> Iterator[Case]:
    """All cases, group after group."""
    for dtype in (BF16, F16):
        sizes = [(n, n, n) for n in (1024, 2048, 4096, 8192)] + [(4096, 4096, 11008), (2048, 768, 3072)]
        for m, n, k in [(70, 64, 72), (128, 128, 64)] if tiny else sizes:
            yield _matmul(dtype, m, n, k)
    for n in (72,) if tiny else (1024, 2048, 4096, 8192):
        yield replace(_matmul(F32, n, n, n), group="tf32", name=f"matmul {n} x {n} x {n}", unit="tf32", options=TF32)
    m, n, k = (64, 64, 64) if tiny else (4096, 4096, 4096)
    for kind in ("bias_gelu", "residual", "layer_norm"):
        yield _with_epilogue(kind, BF16, m, n, k)
    yield from _memory_bound(tiny)
    for tokens in (16,) if tiny else (1024, 4096, 16384):
        for head in (64,) if tiny else (64, 128):
            for causal in (False, True):
                yield _attention(F16, 2 if tiny else max(1, 16384 // tokens), 2 if tiny else 16, tokens, head, causal)
    for tokens in (16,) if tiny else (4096,):
        yield _attention(BF16, 1 if tiny else 4, 4 if tiny else 32, tokens, 64 if tiny else 128, True, 4)
    for n in (64,) if tiny else (2048, 4096, 8192):
        yield _integer_matmul(n)


def graph_of(name: str, shapes: Sequence[tuple[tuple[int, ...], DType]], build: Callable[..., Node]) -> tuple[Graph, float]:
    """A graph of some inputs, and the bytes of those and its result."""
    b = Builder()
    params = [b.add(Param(f"x{i}", dtype, shape)) for i, (shape, dtype) in enumerate(shapes)]
    result = build(b, *params)
    graph = Graph(name, params, [result])
    moved = sum(float(np.prod(x.tensor.static_shape)) * x.dtype.bytes for x in (*params, result))
    return graph, moved


def _matmul(dtype: DType, m: int, n: int, k: int) -> Case:
    graph, moved = graph_of("matmul", [((m, k), dtype), ((k, n), dtype)], lib.matmul)
    return Case("matmul", f"{dtype} {m} x {n} x {k}", graph, 2.0 * m * n * k, moved, str(dtype), "cuBLAS",
                lambda torch, t: lambda: torch.matmul(t[0], t[1]))


def _with_epilogue(kind: str, dtype: DType, m: int, n: int, k: int) -> Case:
    def build(b: Builder, x: Node, w: Node, extra: Node) -> Node:
        total = lib.apply(b, "add", lib.matmul(b, x, w), extra)
        if kind == "bias_gelu":
            return lib.gelu(b, total)
        if kind == "layer_norm":
            one, zero = lib.constant(b, 1.0, dtype), lib.constant(b, 0.0, dtype)
            return lib.layer_norm(b, total, one, zero, (1,), 1e-5)
        return total

    graph, moved = graph_of(kind, [((m, k), dtype), ((k, n), dtype), ((n,) if kind == "bias_gelu" else (m, n), dtype)], build)

    def peer(torch: Any, t: Sequence[Any]) -> Callable[[], Any]:
        functional = torch.nn.functional

        def plain(x: Any, w: Any, extra: Any) -> Any:
            total = torch.matmul(x, w) + extra
            if kind == "bias_gelu":
                return functional.gelu(total)
            return functional.layer_norm(total, (n,)) if kind == "layer_norm" else total

        compiled = torch.compile(plain, mode="max-autotune-no-cudagraphs")
        return lambda: compiled(*t)

    return Case("epilogue", f"{kind} {dtype} {m} x {n} x {k}", graph, 2.0 * m * n * k, moved, str(dtype), "torch.compile", peer)


def _memory_bound(tiny: bool) -> Iterator[Case]:
    m, n = (5, 130) if tiny else (16384, 8192)
    plans: list[tuple[str, Callable[..., Node], Callable[[Any, Any], Any]]] = [
        ("softmax", lambda b, x: lib.softmax(b, x, 1), lambda torch, x: torch.softmax(x, 1)),
        ("layer_norm", lambda b, x: lib.layer_norm(b, x, lib.constant(b, 1.0, x.dtype), lib.constant(b, 0.0, x.dtype), (1,), 1e-5),
         lambda torch, x: torch.nn.functional.layer_norm(x, (n,))),
        ("chain", lambda b, x: lib.apply(b, "add", lib.gelu(b, x), lib.apply(b, "mul", x, x)),
         lambda torch, x: torch.nn.functional.gelu(x) + x * x),
        ("sum_rows", lambda b, x: lib.reduce(b, "sum", x, (1,)), lambda torch, x: x.sum(1)),
        ("sum_columns", lambda b, x: lib.reduce(b, "sum", x, (0,)), lambda torch, x: x.sum(0)),
        ("transpose", lambda b, x: lib.transpose(b, x, (1, 0)), lambda torch, x: x.t().contiguous())]
    for dtype in (F32, F16):
        for name, build, other in plans:
            graph, moved = graph_of(name, [((m, n), dtype)], build)
            yield Case("memory", f"{name} {dtype} {m} x {n}", graph, 0.0, moved, "memory", "torch",
                       lambda torch, t, other=other: lambda: other(torch, t[0]))


def _attention(dtype: DType, batch: int, heads: int, tokens: int, head: int, causal: bool, shared: int = 1) -> Case:
    """`shared`: heads that have the same keys and values."""
    def build(b: Builder, q: Node, k: Node, v: Node) -> Node:
        if shared > 1:
            own = (batch, heads // shared)
            k, v = (lib.reshape(b, lib.broadcast(b, lib.reshape(b, x, (*own, 1, tokens, head)), (*own, shared, tokens, head)), q.shape)
                    for x in (k, v))
        scores = lib.matmul(b, q, lib.transpose(b, k, (0, 1, 3, 2)))
        scores = lib.apply(b, "mul", scores, lib.constant(b, head ** -0.5, dtype))
        if causal:
            row, column = (b.add(Iota(I32, scores.shape, axis)) for axis in (2, 3))
            hidden = lib.broadcast(b, lib.constant(b, float("-inf"), dtype), scores.shape)
            scores = lib.apply(b, "select", lib.apply(b, "ge", row, column), scores, hidden)
        return lib.matmul(b, lib.softmax(b, scores, 3), v)

    graph, moved = graph_of("attention", [((batch, n, tokens, head), dtype) for n in (heads, heads // shared, heads // shared)], build)
    operations = 4.0 * batch * heads * tokens * tokens * head * (0.5 if causal else 1.0)
    kind = f"{' causal' if causal else ''}{f' shared by {shared}' if shared > 1 else ''}"
    return Case("attention", f"{dtype} {batch} x {heads} x {tokens} x {head}{kind}", graph, operations, moved,
                str(dtype), "scaled_dot_product_attention",
                lambda torch, t: lambda: torch.nn.functional.scaled_dot_product_attention(*t, is_causal=causal, enable_gqa=shared > 1))


def _integer_matmul(n: int) -> Case:
    graph, moved = graph_of("integers", [((n, n), I8), ((n, n), I8)], lambda b, x, w: b.add(Dot((1,), (0,), result=I32), x, w))
    return Case("integers", f"i8 {n} x {n} x {n}", graph, 2.0 * n ** 3, moved, "i8", "torch._int_mm",
                lambda torch, t: lambda: torch._int_mm(t[0], t[1]))
