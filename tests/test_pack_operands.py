"""Transposed convolutions become plain ones whose results interleave: the meaning stays, and nothing multiplies zeros."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from compiled import TOLERANCE, assert_near, compiled, run_compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.backends.reference import PLAIN
from tilewright.ir.dims import DimLike, product, symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv, PackedConv
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Transpose
from tilewright.ir.types import F32, F64, DType
from tilewright.ir.verify import verify
from tilewright.library import broadcast, constant, reshape, scalar
from tilewright.options import Environment, Options
from tilewright.passes.choose_layout import choose_layout
from tilewright.passes.pack_operands import pack_operands
from tilewright.pipeline import run_passes

Pair = tuple[int, int]
ENVIRONMENT = Environment(debug=0, dump=None, verify=2, backend="llvm", cache_directory=None)


def graph_of(op: Conv, x: tuple[DimLike, ...], w: tuple[int, ...], dtype: DType = F32, known: bool = False) -> Graph:
    """One convolution, channels first, of an input and of a weight, which is a constant where `known`."""
    b = Builder()
    image = b.add(Param("x", dtype, x))
    if known:
        kernel: Node = constant(b, numbers(np.random.default_rng(1), w, dtype))
        return Graph("g", [image], [b.add(op, image, kernel)])
    kernel = b.add(Param("w", dtype, w))
    return Graph("g", [image, kernel], [b.add(op, image, kernel)])


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    return rng.integers(-4, 5, size=shape).astype(dtype.numpy)


def packed(graph: Graph, options: Options | None = None) -> Graph:
    options = options or Options()
    after = pack_operands(choose_layout(graph, options), options, PLAIN)
    verify(after)
    return after


def counts(graph: Graph) -> Counter[str]:
    return Counter(node.op.name for node in graph.nodes())


def multiplications(graph: Graph) -> int:
    """How many a graph of packed contractions makes."""
    total = 0
    for node in graph.nodes():
        if node.op.name == "packed_dot":
            total += int(product(node.shape) * node.inputs[0].shape[-1])
        if isinstance(node.op, PackedConv):
            total += int(product(node.shape) * product(node.op.kernel) * node.inputs[0].shape[-1])
    return total


def transposed(kernel: tuple[int, ...], dilation: tuple[int, ...], pads: tuple[Pair, ...], groups: int = 1,
               strides: tuple[int, ...] = (), spread: tuple[int, ...] = ()) -> Conv:
    """The convolution of ConvTranspose: `dilation` is its stride, `pads` what it crops."""
    spread = spread or (1,) * len(kernel)
    padding = tuple((d * (k - 1) - low, d * (k - 1) - high) for k, d, (low, high) in zip(kernel, spread, pads))
    return Conv(strides or (1,) * len(kernel), padding, spread, dilation, groups)


class Drawn:
    """A transposed convolution with the sizes of its operands; those of the input also as symbols."""

    def __init__(self, data: st.DataObject) -> None:
        draw = data.draw
        rank = draw(st.integers(1, 3))
        axes = []
        for _ in range(rank):
            kernel, spread = draw(st.integers(1, 6)), draw(st.integers(1, 4))
            low, high, every = draw(st.integers(0, 7)), draw(st.integers(0, 7)), draw(st.integers(1, 5 if rank < 3 else 3))
            stride = draw(st.sampled_from((1, 1, 1, 1, 1, 2)))
            reach = spread * (kernel - 1)
            least = next(n for n in range(1, 30) if (n - 1) * every + 1 + low + high > reach)
            axes.append((kernel, spread, (low, high), every, stride, least))
        kernel, spread, pads, every, strides, self.least = zip(*axes)
        self.groups, per_group, out = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
        self.op = Conv(strides, pads, spread, every, self.groups)
        self.channels = self.groups * per_group
        self.weight = (self.groups * out, per_group, *kernel)
        self.draw = draw

    def input_shape(self) -> tuple[int, ...]:
        more = st.integers(0, 4)
        return (self.draw(st.integers(1, 2)), self.channels, *(n + self.draw(more) for n in self.least))

    def symbols(self) -> tuple[DimLike, ...]:
        return (symbol("N"), self.channels, *(symbol(f"n{a}", n) for a, n in enumerate(self.least)))


@settings(max_examples=400)
@given(data=st.data())
def test_the_meaning_stays(data: st.DataObject) -> None:
    drawn = Drawn(data)
    shape = drawn.input_shape()
    graph = graph_of(drawn.op, shape, drawn.weight, F64)
    rng = np.random.default_rng(0)
    arrays = [numbers(rng, shape, F64), numbers(rng, drawn.weight, F64)]
    after = packed(graph)
    np.testing.assert_array_equal(evaluate_graph(after, arrays)[0], evaluate_graph(graph, arrays)[0])


@pytest.mark.slow
@settings(max_examples=200)
@given(data=st.data())
def test_the_meaning_stays_at_every_size(data: st.DataObject) -> None:
    drawn = Drawn(data)
    graph = graph_of(drawn.op, drawn.symbols(), drawn.weight, F64)
    after = packed(graph)
    rng = np.random.default_rng(0)
    weight = numbers(rng, drawn.weight, F64)
    for _ in range(3):
        arrays = [numbers(rng, drawn.input_shape(), F64), weight]
        np.testing.assert_array_equal(evaluate_graph(after, arrays)[0], evaluate_graph(graph, arrays)[0])


@settings(max_examples=100)
@given(data=st.data())
def test_a_nan_reaches_no_further(data: st.DataObject) -> None:
    drawn = Drawn(data)
    shape = drawn.input_shape()
    graph = graph_of(drawn.op, shape, drawn.weight, F64)
    rng = np.random.default_rng(0)
    arrays = [numbers(rng, shape, F64), numbers(rng, drawn.weight, F64)]
    flat = arrays[0].reshape(-1)
    for value in (np.nan, np.inf, -np.inf):
        flat[rng.integers(flat.size)] = value
    np.testing.assert_array_equal(evaluate_graph(packed(graph), arrays)[0], evaluate_graph(graph, arrays)[0])


@settings(max_examples=100)
@given(data=st.data())
def test_each_tap_is_multiplied_once_for_each_element(data: st.DataObject) -> None:
    """No product of an output has a zero for certain; so there are never more than where zeros are written."""
    kernel, every = data.draw(st.tuples(*[st.integers(1, 6)] * 2)), data.draw(st.tuples(*[st.integers(2, 4)] * 2))
    pads = data.draw(st.tuples(*[st.tuples(*[st.integers(0, 8)] * 2)] * 2))
    op = Conv((1, 1), pads, (1, 1), every)
    graph = graph_of(op, (2, 3, 9, 7), (2, 3, *kernel))
    after, zeros = packed(graph), packed(graph, Options(precision="strict"))
    assert "update_slice" not in counts(after)
    outputs = [-(-(out + (k - 1 - low) % e) // e) for out, k, (low, _), e in zip(graph.results[0].shape[2:], kernel, pads, every)]
    assert multiplications(after) == 2 * 3 * 2 * product(outputs) * product(kernel) <= multiplications(zeros)


@pytest.mark.parametrize(("op", "channels", "kernel", "expected"), [
    (transposed((2, 2), (2, 2), ((0, 0), (0, 0))), 4, (4, 2, 2), {"packed_dot": 1}),
    (transposed((4, 4), (2, 2), ((1, 1), (1, 1))), 4, (4, 4, 4), {"packed_conv": 1}),
    (transposed((3, 3), (2, 2), ((1, 0), (1, 0))), 4, (4, 3, 3), {"packed_conv": 3, "packed_dot": 1}),
    (transposed((1, 1), (2, 2), ((0, 0), (0, 0))), 4, (4, 1, 1), {"packed_dot": 1}),
    (transposed((8,), (4,), ((2, 2),)), 4, (4, 8), {"packed_conv": 1}),
    (transposed((4, 4), (2, 2), ((1, 1), (1, 1)), 4), 4, (1, 4, 4), {"conv": 4}),
    (transposed((16, 16), (8, 8), ((4, 4), (4, 4)), 4), 4, (1, 16, 16), {"conv": 1}),
], ids=["2x2", "4x4", "3x3", "1x1", "1d", "depthwise", "depthwise-by-8"])
def test_no_zeros_are_written(op: Conv, channels: int, kernel: tuple[int, ...], expected: dict[str, int]) -> None:
    rank = len(kernel) - 1
    graph = graph_of(op, (1, channels, *(5, 6)[:rank]), (channels, *kernel), known=True)
    after, _ = run_passes(graph, Options(), PLAIN, ENVIRONMENT, until="fold_packed")
    found = counts(after)
    assert {name: found[name] for name in ("packed_dot", "packed_conv", "conv") if found[name]} == expected
    assert found["update_slice"] == 0 and found["take"] == 0  # the weights are rearranged at compile time


def test_a_dot_reads_the_input_as_it_is() -> None:
    """The 2x2 kernel at stride 2: one product of matrices, 4 times fewer multiplications than with zeros."""
    op = transposed((2, 2), (2, 2), ((0, 0), (0, 0)))
    graph = graph_of(op, (1, 24, 10, 12), (24, 24, 2, 2), known=True)
    after, _ = run_passes(graph, Options(), PLAIN, ENVIRONMENT, until="fold_packed")
    assert "pad" not in counts(after) and "slice" not in counts(after)
    assert multiplications(after) == 20 * 24 * 24 * 24


def test_strict_and_strided_ones_write_zeros() -> None:
    op = transposed((2, 2), (2, 2), ((0, 0), (0, 0)))
    shapes = ((1, 4, 5, 6), (4, 4, 2, 2))
    assert counts(packed(graph_of(op, *shapes), Options(precision="strict")))["update_slice"] == 1
    strided = transposed((2, 2), (2, 2), ((0, 0), (0, 0)), strides=(1, 2))
    assert counts(packed(graph_of(strided, *shapes)))["update_slice"] == 1


COMPILED = [
    (transposed((2, 2), (2, 2), ((0, 0), (0, 0))), (24, 24, 2, 2)),
    (transposed((4, 4), (2, 2), ((1, 1), (1, 1))), (8, 24, 4, 4)),
    (transposed((3, 3), (2, 2), ((1, 0), (1, 0))), (20, 24, 3, 3)),
    (transposed((3, 2), (2, 4), ((1, 1), (0, 0)), 2, spread=(2, 1)), (6, 12, 3, 2)),
    (transposed((4, 4), (2, 2), ((1, 1), (1, 1)), 24), (24, 1, 4, 4)),
    (transposed((5, 5), (3, 1), ((1, 2), (0, 1))), (3, 24, 5, 5)),
    (transposed((16,), (8,), ((4, 4),)), (16, 24, 16)),
    (transposed((2, 3, 2), (2, 2, 1), ((0, 0), (1, 1), (1, 0))), (5, 24, 2, 3, 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("case", range(len(COMPILED)))
def test_machine_code_agrees(case: int, symbolic: bool) -> None:
    op, weight = COMPILED[case]
    rank = len(weight) - 2
    shape: tuple[DimLike, ...] = (2, 24, *(5, 6, 3)[:rank])
    if symbolic:
        shape = (symbol("N"), 24, *(symbol(f"n{a}", 1) for a in range(rank)))
    graph = graph_of(op, shape, weight, known=case % 2 == 0)
    after = Graph("g", graph.params, [scalar(Builder(), "abs", graph.results[0])])
    executable = compiled(after)
    rng = np.random.default_rng(case)
    for sizes in [(5, 6, 3), (1, 2, 1), (9, 4, 2)][:3 if symbolic else 1]:
        arrays = [numbers(rng, (2, 24, *sizes[:rank]), F32), numbers(rng, weight, F32)][:len(graph.params)]
        assert_near(run_compiled(executable, arrays), evaluate_graph(after, arrays), TOLERANCE["f32"])


# --- layout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(6, 5), (symbol("h"), symbol("w"))])
def test_resampling_by_whole_factors_stays_channels_last(sizes: tuple[DimLike, DimLike]) -> None:
    """Nearest neighbours, as front ends make them of broadcasts between two convolutions: nothing is transposed there."""
    b, rng = Builder(), np.random.default_rng(2)
    h, w = sizes
    x = b.add(Param("x", F32, (1, 4, h, w)))
    conv = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)
    kernels = [constant(b, numbers(rng, (4, 4, 3, 3), F32)) for _ in range(2)]
    y = b.add(conv, x, kernels[0])
    y = reshape(b, broadcast(b, reshape(b, y, (1, 4, h, 1, w, 1)), (1, 4, h, 2, w, 2)), (1, 4, 2 * h, 2 * w))
    graph = Graph("g", [x], [b.add(conv, y, kernels[1])])
    after = choose_layout(graph, Options())
    weights = {id(n) for n in after.nodes() if isinstance(n.op, Conv) for n in [n.inputs[1]]}
    moved = [n for n in after.nodes() if isinstance(n.op, Transpose) and id(n) not in weights]
    assert len(moved) == 2  # before the first convolution and behind the last
    data = [rng.standard_normal((1, 4, 6, 5)).astype(np.float32)]
    np.testing.assert_allclose(evaluate_graph(after, data)[0], evaluate_graph(graph, data)[0], rtol=1e-5, atol=1e-4)


def test_a_reshape_of_channels_is_not_of_spatial_axes() -> None:
    b, rng = Builder(), np.random.default_rng(2)
    x = b.add(Param("x", F32, (1, 4, 6, 5)))
    conv = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 1)
    y = b.add(conv, x, constant(b, numbers(rng, (4, 4, 3, 3), F32)))
    graph = Graph("g", [x], [reshape(b, y, (1, 2, 12, 5)), reshape(b, y, (1, 4, 5, 6)), reshape(b, y, (4, 30))])
    after = choose_layout(graph, Options())
    data = [rng.standard_normal((1, 4, 6, 5)).astype(np.float32)]
    for found, expected in zip(evaluate_graph(after, data), evaluate_graph(graph, data), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


# --- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape, kernel, out, groups, strides, dilation, padding", [
    ((1, 6, 9, 8), (3, 3), 10, 2, (1, 1), (1, 1), 1), ((2, 12, 7, 6), (1, 1), 36, 3, (1, 1), (1, 1), 0),
    ((1, 8, 11, 10), (5, 2), 64, 4, (2, 1), (1, 2), 2), ((1, 15, 14, 1), (3, 1), 5, 5, (1, 1), (2, 1), 0),
    ((3, 4, 5, 5), (2, 2), 34, 2, (2, 2), (1, 1), 0),
])
@pytest.mark.parametrize("symbolic", [False, True])
def test_groups_of_several_channels(shape: tuple[int, ...], kernel: tuple[int, int], out: int, groups: int, strides: tuple[int, int],
                                    dilation: tuple[int, int], padding: int, symbolic: bool, threads: int) -> None:
    """Kernels of integers, so that every order of sums gives the same; with a bias behind them."""
    b, rng = Builder(), np.random.default_rng(4)
    n, c, h, w = shape
    x = b.add(Param("x", F32, (symbol("n", 1), c, symbol("h", 9), symbol("w", 9)) if symbolic else shape))
    conv = Conv(strides, ((padding, padding),) * 2, dilation, (1, 1), groups)
    weights = constant(b, numbers(rng, (out, c // groups, *kernel), F32))
    y = b.add(conv, x, weights)
    y = scalar(b, "add", y, broadcast(b, constant(b, numbers(rng, (out, 1, 1), F32)), y.shape))
    graph = Graph("g", [x], [y])
    made = [node.op for node in packed(graph).nodes() if isinstance(node.op, PackedConv)]
    assert [op.groups for op in made] == [groups]
    sizes = (n, c, max(h, 9), max(w, 9)) if symbolic else shape
    data = [numbers(rng, sizes, F32)]
    found = run_compiled(compiled(graph, threads=threads), data)
    np.testing.assert_array_equal(found[0], evaluate_graph(graph, data)[0])


def test_a_channel_a_group_stays_direct() -> None:
    """For vectors along channels (`lowering/windows.py`)."""
    b = Builder()
    x = b.add(Param("x", F32, (1, 8, 9, 9)))
    y = b.add(Conv((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 8), x, constant(b, np.ones((8, 1, 3, 3), np.float32)))
    assert counts(packed(Graph("g", [x], [y])))["conv"] == 1
