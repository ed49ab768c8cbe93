"""Groups that end with a pad: what they compute is stored where it lies within the padding (`_with_padding` of
compiler/passes/fuse.py), against the interpreter of graphs, as machine code and in the loop interpreter, which checks
bounds and races."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.comparing import assert_identical
from tests.compiled import QUIET, compiled, run_compiled
from tilewright import library as lib
from tilewright.backends.llvm.emit_memory import Accesses
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.compute import Conv, ReduceWindow
from tilewright.ir.ops.control import Fusion, Param
from tilewright.ir.ops.shape import Concat, Pad
from tilewright.ir.types import F32, I32, DType
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

CAPS = Caps(vector_bits=128, vector_registers=16)
Shape = tuple[DimLike, ...]


def weights(b: Builder, *shape: int, seed: int = 1) -> Node:
    return lib.constant(b, np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32))


def relu(b: Builder, x: Node) -> Node:
    return lib.apply(b, "max", x, lib.constant(b, 0.0, F32))


def graph_of(shape: Shape, build: Callable[[Builder, Node], Node | tuple[Node, ...]], dtype: DType = F32) -> Graph:
    b = Builder()
    x = b.add(Param("x", dtype, shape))
    made = build(b, x)
    return Graph("padded", [x], list(made) if isinstance(made, tuple) else [made])


def dense(b: Builder, x: Node, columns: int, seed: int = 1) -> Node:
    """dot -> bias -> relu"""
    depth = x.shape[-1]
    assert isinstance(depth, int)
    y = lib.matmul(b, x, weights(b, depth, columns, seed=seed))
    return relu(b, lib.apply(b, "add", y, weights(b, columns, seed=seed + 1)))


def groups(graph: Graph) -> list[tuple[str, list[str]]]:
    """Of each group its strategy and the ops that shape it."""
    fused, _ = run_passes(graph, Options(), CAPS, QUIET)
    kept = ("packed_dot", "packed_conv", "pad", "concat", "conv", "reduce_window")
    return [(n.op.strategy, [x.op.name for x in n.op.body.nodes() if x.op.name in kept])
            for n in fused.nodes() if isinstance(n.op, Fusion)]


def is_stored_through(graph: Graph) -> bool:
    found = [names for _, names in groups(graph) if "pad" in names]
    return bool(found) and all("packed_dot" in names or "packed_conv" in names for names in found)


def agree(graph: Graph, *sizes: dict[str, int]) -> None:
    """The loops, and machine code of one and two threads, give what the graph means."""
    program = lower_program(run_passes(graph, Options(), CAPS, QUIET)[0], CAPS)[0]
    verify_program(program)
    executables = [compiled(graph, threads=n) for n in (1, 2)]
    rng = np.random.default_rng(5)
    for binding in sizes or ({},):
        inputs = [rng.integers(-3, 4, [n if isinstance(n, int) else binding[str(n)] for n in p.shape]).astype(p.dtype.numpy)
                  for p in graph.params]
        expected = evaluate_graph(graph, inputs)
        assert_identical(run_program(program, inputs), expected, signed_zeros=False)
        for executable in executables:
            assert_identical(run_compiled(executable, inputs), expected, signed_zeros=False)


@pytest.fixture
def no_scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    def scatter(*_: object) -> None:
        raise AssertionError("a store that is not contiguous")

    monkeypatch.setattr(Accesses, "scatter", scatter)


H, W, N = symbol("H", 1), symbol("W", 1), symbol("N", 0)
PADDINGS = {
    "around": ((0, 1, 1, 0), (0, 1, 1, 0)),
    "asymmetric": ((0, 2, 0, 0), (0, 1, 3, 0)),
    "columns only": ((0, 0, 2, 0), (0, 0, 1, 0)),
    "rows only": ((0, 1, 0, 0), (0, 2, 0, 0)),
    "channels": ((0, 0, 0, 3), (0, 0, 0, 2)),
    "batch": ((1, 0, 0, 0), (2, 0, 0, 0)),
    "all": ((1, 2, 1, 2), (2, 1, 2, 3)),
}


@pytest.mark.slow
@pytest.mark.usefixtures("no_scatter")
@pytest.mark.parametrize("shape", [(1, 5, 7, 6), (2, 3, 2, 6), (N, H, W, 6)], ids=["static", "narrow", "symbolic"])
@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS.keys())
@pytest.mark.parametrize("columns", [16, 21])
def test_dot(shape: Shape, padding: tuple[tuple[int, ...], tuple[int, ...]], columns: int) -> None:
    graph = graph_of(shape, lambda b, x: lib.pad(b, dense(b, x, columns), *padding, 1.5))
    assert is_stored_through(graph)
    symbolic = any(not isinstance(n, int) for n in shape)
    agree(graph, *({"N": n, "H": h, "W": w} for n, h, w in ((1, 5, 7), (2, 3, 1), (1, 1, 20), (3, 4, 4), (0, 2, 2)) if symbolic))


@pytest.mark.slow
@pytest.mark.usefixtures("no_scatter")
@pytest.mark.parametrize("shape", [(2, 9, 8, 3), (1, H, W, 3)], ids=["static", "symbolic"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_convolutions_one_behind_the_other(shape: Shape, strides: tuple[int, int]) -> None:
    """conv -> relu -> pad -> conv -> relu -> pad -> depthwise conv"""
    def build(b: Builder, x: Node) -> Node:
        plain, ones = ((1, 1), (1, 1)), (1, 1)
        y = relu(b, b.add(Conv(strides, plain, ones, ones, 1, True), x, weights(b, 3, 3, 3, 20)))
        y = relu(b, b.add(Conv(ones, ((0, 2), (1, 0)), ones, ones, 1, True), y, weights(b, 3, 2, 20, 8)))
        return b.add(Conv(ones, plain, ones, ones, 8, True), y, weights(b, 3, 3, 1, 8))

    graph = graph_of(shape, build)
    assert [names for _, names in groups(graph)][1:3] == [["packed_conv", "pad"]] * 2
    agree(graph, *({"H": h, "W": w} for h, w in ((9, 8), (1, 1), (3, 17)) if shape[1] is H))


def test_axes_of_one_between() -> None:
    """Axes of size 1 come and go before the pad, and get padding themselves."""
    def build(b: Builder, x: Node) -> Node:
        y = lib.reshape(b, dense(b, x, 18), (4, 1, 5, 1, 18))
        return lib.pad(b, y, (1, 0, 2, 1, 0), (0, 2, 1, 1, 4), -2.0)

    graph = graph_of((1, 4, 5, 6), build)
    assert is_stored_through(graph)
    agree(graph)


@pytest.mark.parametrize("rows", [(1, 1), (1, 3), (0, 0), (0, 2)])
def test_few_rows(rows: tuple[int, int]) -> None:
    agree(graph_of((*rows, 6), lambda b, x: lib.pad(b, dense(b, x, 18), (1, 2, 0), (3, 0, 1))))


def test_batched_dot() -> None:
    def build(b: Builder, x: Node) -> Node:
        y = lib.matmul(b, x, lib.transpose(b, x, (0, 1, 3, 2)))
        return lib.pad(b, y, (1, 0, 2, 0), (0, 2, 1, 3))

    for shape in ((2, 3, 9, 5), (N, 2, W, 5)):
        graph = graph_of(shape, build)
        agree(graph, *({"N": n, "W": w} for n, w in ((2, 9), (1, 1), (0, 4)) if shape[0] is N))


def test_padding_that_is_symbolic() -> None:
    graph = graph_of((H, W, 6), lambda b, x: b.add(Pad((W, 1, 0), (H, 0, W)), dense(b, x, 9), lib.constant(b, 7.0, F32)))
    assert is_stored_through(graph)
    agree(graph, {"H": 3, "W": 5}, {"H": 1, "W": 1}, {"H": 6, "W": 2})


def test_a_value_with_other_readers_stays() -> None:
    """It would be computed twice, or be read with a border."""
    def build(b: Builder, x: Node) -> tuple[Node, ...]:
        y, z = dense(b, x, 16), dense(b, x, 16, seed=7)
        other = lib.pad(b, z, (0, 1, 0), (0, 0, 0))
        return lib.pad(b, y, (0, 1, 0), (0, 1, 0)), y, lib.pad(b, z, (1, 1, 0), (0, 0, 0)), other

    graph = graph_of((3, 4, 6), build)
    assert sorted(names for _, names in groups(graph)) == [["packed_dot"], ["packed_dot"], ["pad"], ["pad"], ["pad"]]
    agree(graph)


def test_equal_pads_are_one() -> None:
    def build(b: Builder, x: Node) -> tuple[Node, ...]:
        y = dense(b, x, 16)
        first, second = (lib.pad(b, y, (0, 1, 0), (0, 1, 0)) for _ in range(2))
        return dense(b, first, 16), lib.apply(b, "mul", second, second)

    graph = graph_of((3, 4, 6), build)
    assert is_stored_through(graph)
    agree(graph)


@pytest.mark.slow
def test_paddings_that_differ_share_a_kernel() -> None:
    def build(b: Builder, x: Node) -> Node:
        for width in (1, 2, 3):
            x = lib.pad(b, dense(b, x, 16, seed=width), (0, width, width, 0), (0, width, width, 0))
        return x

    graph = graph_of((1, 31, 36, 16), build)  # sizes of which all three take the same register tile
    assert is_stored_through(graph)
    program = lower_program(run_passes(graph, Options(), CAPS, QUIET)[0], CAPS)[0]
    assert len(program.kernels()) == 1 and len(program.steps) == 3
    agree(graph)


def test_residual_and_mask() -> None:
    """The epilogue reads values of the shape without the border."""
    def build(b: Builder, x: Node) -> Node:
        y = lib.apply(b, "add", dense(b, x, 6), x)
        return lib.pad(b, y, (0, 1, 2, 0), (0, 0, 1, 0), float("-inf"))

    for shape in ((2, 3, 4, 6), (N, H, W, 6)):
        agree(graph_of(shape, build), *({"N": 2, "H": h, "W": w} for h, w in ((3, 4), (1, 2)) if shape[0] is N))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (N, H, W, 4)], ids=["static", "symbolic"])
def test_concat(shape: Shape) -> None:
    def build(b: Builder, x: Node) -> Node:
        parts = [lib.apply(b, "mul", x, x), b.add(ReduceWindow("max", (1, 1, 1, 1), (1, 1, 1, 1), ((0, 0),) * 4, (1,) * 4), x)]
        return lib.pad(b, b.add(Concat(3), *parts, x), (0, 1, 2, 0), (1, 2, 0, 1), 3.0)

    graph = graph_of(shape, build)
    assert ("elements", ["concat", "pad"]) in groups(graph)
    agree(graph, *({"N": 2, "H": h, "W": w} for h, w in ((3, 4), (1, 2)) if shape[0] is N))


def test_integers() -> None:
    """A dot of integers is no packed one."""
    def build(b: Builder, x: Node) -> Node:
        y = lib.matmul(b, x, lib.constant(b, np.arange(18, dtype=np.int32).reshape(6, 3)))
        return lib.pad(b, y, (1, 0), (0, 1), 4)

    agree(graph_of((5, 6), build, I32))
