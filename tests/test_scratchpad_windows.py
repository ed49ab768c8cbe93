"""Slices of rows that windows reach across: convolutions and pools in chains, with the bits of the whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from comparing import assert_close
from scratchpads import as_list, weights
from test_scratchpad_sharing import executed, executed_as_shared, kernels, least

import tilewright as tw
from tilewright import library as lib
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv, ReduceWindow
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Reserve
from tilewright.ir.types import F32
from tilewright.targets import Scratchpad

pytestmark = pytest.mark.usefixtures("quick_code")
Build = Callable[[Builder, Node], Node]
ONE = (1, 1)


def graph_of(build: Build, rows: int, channels: int = 4) -> Graph:
    b = Builder()
    x = b.add(Param("x", F32, (1, rows, 20, channels)))
    return Graph("pictures", [x], [build(b, x)])


def conv(b: Builder, x: Node, channels: int, kernel: int, stride: int = 1, padding: tuple[int, int] = (0, 0), dilation: int = 1) -> Node:
    """A convolution of rows and columns alike, of each channel alone where `channels` is 0."""
    inner = int(x.shape[-1])
    each = channels == 0
    kernels = lib.constant(b, weights(kernel, kernel, 1 if each else inner, channels or inner, seed=kernel))
    return b.add(Conv((stride,) * 2, (padding,) * 2, (dilation,) * 2, ONE, inner if each else 1, True), x, kernels)


def relu(b: Builder, x: Node) -> Node:
    return lib.apply(b, "max", x, lib.constant(b, 0.0, F32))


def pool(b: Builder, x: Node, kind: str, size: int, stride: int, padding: tuple[int, int]) -> Node:
    none = (0, 0)
    return b.add(ReduceWindow(kind, (1, size, size, 1), (1, stride, stride, 1), (none, padding, padding, none), (1,) * 4), x)


def separable(b: Builder, x: Node) -> Node:
    """The windows of single channels pad their rows themselves."""
    wide = relu(b, conv(b, x, 32, 1))
    return conv(b, relu(b, conv(b, wide, 0, 3, 2, (1, 1))), 4, 1)


def pooled(b: Builder, x: Node) -> Node:
    return pool(b, relu(b, conv(b, x, 32, 3, 1, (1, 1))), "max", 3, 2, (1, 0))


def windows_of_windows(b: Builder, x: Node) -> Node:
    """What the first makes is padded where it is stored, and read with strides and gaps."""
    y = relu(b, conv(b, x, 24, 5, 1, (2, 1)))
    y = conv(b, y, 24, 2, 2, (2, 2), 2)
    return pool(b, relu(b, y), "sum", 2, 1, (0, 1))


@pytest.mark.parametrize("build, rows, part", [
    (separable, 37, 0.5), (pooled, 24, 0.5), (windows_of_windows, 31, 0.9)])
def test_chains_of_windows(build: Build, rows: int, part: float) -> None:
    graph = graph_of(build, rows)
    room = least(graph, "slices")
    assert room < part * least(graph)
    x = weights(1, rows, 20, 4, seed=9)
    x[0, 3, 4, 0], x[0, -1, 5, 1] = np.nan, np.inf
    executable = executed(graph, room, x, allow=("slices",))
    assert len(kernels(executable.program)) > 10
    assert_close(as_list(executable(x)), evaluate_graph(graph, [x]))


def random_chain(rng: np.random.Generator) -> Build:
    """Convolutions and pools of any reach one behind the other; small pictures stay as they are."""
    def build(b: Builder, x: Node) -> Node:
        for _ in range(int(rng.integers(2, 5))):
            kernel, stride, low, high = (int(n) for n in rng.integers((1, 1, 0, 0), (5, 3, 3, 3)))
            if min(int(n) for n in x.shape[1:3]) < kernel * 2 + 3:
                kernel = stride = 1
            match int(rng.integers(4)):
                case 0:
                    x = conv(b, x, 0, kernel, stride, (low, high))
                case 1:
                    x = pool(b, x, str(rng.choice(["max", "sum"])), kernel, stride, (low, high))
                case _:
                    x = conv(b, x, int(rng.choice([4, 24, 40])), kernel, stride, (low, high), int(rng.integers(1, 3)))
            x = relu(b, x) if rng.random() < 0.6 else x
            x = lib.pad(b, x, (0, 2, 1, 0), (0, 1, 0, 0), 0.5) if rng.random() < 0.2 else x
        return x
    return build


def test_random_chains() -> None:
    sliced = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rows, channels = int(rng.integers(14, 60)), int(rng.choice([3, 8]))
        graph = graph_of(random_chain(rng), rows, channels)
        x = weights(1, rows, 20, channels, seed=seed)
        executable = executed_as_shared(graph, x, Scratchpad(least(graph) // 128 * 64, time_limit=0, allow=("slices",)))
        assert_close(as_list(executable(x)), evaluate_graph(graph, [x]))
        sliced += any(isinstance(step, Reserve) for step in executable.program.steps)
    assert sliced >= 2


def test_what_works_on_tiles_of_rows_stays_whole() -> None:
    """Winograd's tiles would lie elsewhere in a slice, and round otherwise."""
    graph = graph_of(lambda b, x: relu(b, conv(b, relu(b, conv(b, x, 32, 3, 1, (1, 1))), 32, 3, 1, (1, 1))), 24)
    executable = executed(graph, least(graph, "slices"), weights(1, 24, 20, 4), allow=("slices",))
    assert any("winograd" in name for name in tw.compile(graph).kernels)
    assert sum("winograd" in name for name in kernels(executable.program)) == 1
