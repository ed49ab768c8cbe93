"""ONNX models whose sizes show at run time only: one artifact for all of them, against ONNX Runtime.

Each runs in the interpreter and as machine code. Where ONNX Runtime refuses a size, or the artifact says that it serves another rank,
the call is an error, never a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the models are compared with ONNX Runtime (the test extra installs it)")

from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tilewright.ir.errors import IndexFailure, UnsupportedError
from tilewright.ir.interp import evaluate_graph

Shape = Sequence[int | str]


def model(nodes: Sequence[Any], inputs: dict[str, Shape], outputs: dict[str, Shape | None], constants: dict[str, np.ndarray] | None = None,
          opset: int = 17, types: dict[str, int] | None = None) -> bytes:
    def value(name: str, shape: Shape | None) -> Any:
        return helper.make_tensor_value_info(name, (types or {}).get(name, TensorProto.FLOAT), shape)

    initializers = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "open", [value(*row) for row in inputs.items()], [value(*row) for row in outputs.items()],
                              initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9).SerializeToString()


def session_of(data: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


class Artifact:
    """A model imported once with its sizes open, and compiled once."""

    def __init__(self, data: bytes, dims: dict[str, int] | None = None) -> None:
        self.graph = tw.from_onnx(data, dims=dims or {})
        self.executable = tw.compile(self.graph, options=tw.Options(cache=False, threads=1))
        self.session = session_of(data)

    def check(self, **feeds: np.ndarray) -> None:
        expected = self.session.run(None, feeds)
        for found in (self.executable.run(feeds).values(), evaluate_graph(self.graph, feeds)):
            for mine, theirs in zip(found, expected, strict=True):
                assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * max(np.abs(theirs).max(initial=0), 1e-6))

    def refuses(self, **feeds: np.ndarray) -> None:
        for run in (lambda: self.executable.run(feeds), lambda: evaluate_graph(self.graph, feeds)):
            with pytest.raises(IndexFailure):
                run()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


# --- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, pads", [("reflect", (0, 2, 0, 3)), ("reflect", (1, 0, 2, 0)), ("edge", (0, 4, 1, 1)), ("wrap", (0, 1, 0, 2))])
def test_padding_that_repeats_elements(mode: str, pads: tuple[int, ...]) -> None:
    nodes = [helper.make_node("Pad", ["x", "pads"], ["y"], mode=mode)]
    artifact = Artifact(model(nodes, {"x": ["a", "b"]}, {"y": None}, {"pads": np.array(pads, np.int64)}, opset=19))
    for shape in ((3, 4), (4, 9), (7, 4), (3, 33)):
        artifact.check(x=noise(*shape))


def test_padding_to_a_length_crops_what_is_longer() -> None:
    """As the front end of a speech model does: 20 - n elements come behind, which is less than none where n is more."""
    nodes = [helper.make_node("Shape", ["x"], ["n"], start=1), helper.make_node("Sub", ["wanted", "n"], ["more"]),
             helper.make_node("Concat", ["none", "more"], ["pads"], axis=0), helper.make_node("Pad", ["x", "pads"], ["y"])]
    constants = {"wanted": np.array([20], np.int64), "none": np.zeros(3, np.int64)}
    artifact = Artifact(model(nodes, {"x": ["b", "n"]}, {"y": ["b", 20]}, constants))
    assert str(artifact.graph.results[0].type) == "f32[b, 20]"
    for length in (1, 7, 19, 20, 21, 40):
        artifact.check(x=noise(3, length))


# --- axes of size 1 --------------------------------------------------------------------------------------------------


def squeezed(declared: Shape | None, *after: Any) -> bytes:
    nodes = [helper.make_node("Squeeze", ["x"], ["s"]), *(after or (helper.make_node("Sigmoid", ["s"], ["y"]),))]
    return model(nodes, {"x": ["b", 1, 3]}, {"y": declared})


def test_an_output_of_known_rank_says_which_axes_a_squeeze_drops() -> None:
    batches = Artifact(squeezed(["b", 3]))
    batches.check(x=noise(2, 1, 3))
    batches.check(x=noise(5, 1, 3))
    batches.refuses(x=noise(1, 1, 3))
    single = Artifact(squeezed([3]))
    single.check(x=noise(1, 1, 3))
    single.refuses(x=noise(2, 1, 3))


def test_a_node_behind_a_squeeze_says_so_too() -> None:
    artifact = Artifact(squeezed(None, helper.make_node("Transpose", ["s"], ["y"], perm=[1, 0])))
    artifact.check(x=noise(4, 1, 3))
    artifact.refuses(x=noise(1, 1, 3))


def test_a_squeeze_that_nothing_decides_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="a rank that its sizes decide"):
        tw.from_onnx(squeezed(None))
    Artifact(squeezed(None), dims={"b": 1}).check(x=noise(1, 1, 3))


# --- ranges and signals ----------------------------------------------------------------------------------------------


def test_a_range_of_floats_to_a_size() -> None:
    """As detectors make their grids."""
    nodes = [helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Gather", ["shape", "one"], ["n"]),
             helper.make_node("Cast", ["n"], ["limit"], to=TensorProto.FLOAT), helper.make_node("Range", ["from", "limit", "by"], ["places"]),
             helper.make_node("Add", ["x", "places"], ["y"])]
    constants = {"one": np.array(1, np.int64), "from": np.array(0, np.float32), "by": np.array(1, np.float32)}
    artifact = Artifact(model(nodes, {"x": ["b", "n"]}, {"y": ["b", "n"]}, constants))
    for shape in ((1, 1), (2, 7), (3, 40)):
        artifact.check(x=noise(*shape))


@pytest.mark.parametrize("rank", [2, 3])
def test_frames_of_a_signal_of_any_length(rank: int) -> None:
    nodes = [helper.make_node("STFT", ["x", "step", "window"], ["y"], onesided=1)]
    constants = {"step": np.array(5, np.int64), "window": np.hanning(12).astype(np.float32)}
    artifact = Artifact(model(nodes, {"x": ["b", "n", 1][:rank]}, {"y": None}, constants))
    for batch, length in ((1, 12), (2, 13), (3, 17), (1, 60), (2, 101)):
        artifact.check(x=noise(*(batch, length, 1)[:rank]))


def test_as_many_places_as_frames() -> None:
    """A mask of frames, counted by two ways that are not proved to be the same: no frames where the signal is too short."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["frames"], strides=[4]), helper.make_node("Shape", ["frames"], ["count"], start=2),
             helper.make_node("Squeeze", ["count"], ["number"]), helper.make_node("Range", ["zero", "number", "one"], ["places"]),
             helper.make_node("Less", ["places", "ends"], ["mask"]), helper.make_node("Where", ["mask", "frames", "fill"], ["y"])]
    constants = {"w": noise(3, 1, 9), "zero": np.array(0, np.int64), "one": np.array(1, np.int64), "fill": np.zeros(1, np.float32)}
    artifact = Artifact(model(nodes, {"x": ["b", 1, "n"], "ends": [1]}, {"y": None}, constants, types={"ends": TensorProto.INT64}))
    for length in (9, 10, 13, 40):
        artifact.check(x=noise(2, 1, length), ends=np.array([2]))
    artifact.refuses(x=noise(2, 1, 3), ends=np.array([2]))


# --- branches --------------------------------------------------------------------------------------------------------


def two_rates() -> bytes:
    """One branch for frames of 6, another for frames of 4: products that exist at one size each."""
    def side(name: str, weights: str) -> Any:
        return helper.make_graph([helper.make_node("MatMul", ["x", weights], [name])], name, [], [onnx.ValueInfoProto(name=name)])

    nodes = [helper.make_node("Equal", ["rate", "fast"], ["is_fast"]),
             helper.make_node("If", ["is_fast"], ["y"], then_branch=side("long", "six"), else_branch=side("short", "four"))]
    constants = {"six": noise(6, 5), "four": noise(4, 5), "fast": np.array(16000, np.int64)}
    return model(nodes, {"x": ["b", "n"], "rate": []}, {"y": ["b", 5]}, constants, types={"rate": TensorProto.INT64})


@pytest.mark.parametrize("width, rate, other", [(6, 16000, 8000), (4, 8000, 16000)])
def test_a_branch_that_a_size_rules_out(width: int, rate: int, other: int) -> None:
    artifact = Artifact(two_rates(), dims={"n": width})
    artifact.check(x=noise(1, width), rate=np.array(rate))
    artifact.check(x=noise(3, width), rate=np.array(rate))
    artifact.refuses(x=noise(3, width), rate=np.array(other))
