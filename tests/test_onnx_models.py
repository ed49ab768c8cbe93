"""Real models as they were exported, dynamic dims unbound: one compiled artifact for all sizes, against ONNX Runtime.

The models come from packages: the nine with generated weights that onnx ships, the exports of silero-vad with their Ifs, LSTMs and
float16, and those of the benchmarks, each at six sizes. Agreement: every output within 1e-4 of its largest value. What a model
refuses for some size, by its own Ifs and Squeezes, the artifact refuses too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the models are compared with ONNX Runtime (the test extra installs it)")

from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from benchmarks import models
from tilewright.ir.errors import CompileError, IndexFailure, UnsupportedError
from tilewright.ir.interp import evaluate_graph

OPTIONS = tw.Options(cache=False, threads=1)
Feeds = Mapping[str, np.ndarray]


@pytest.fixture(autouse=True)
def schedules_are_legal() -> None:
    """As users run them: where two sizes of a row are open, a step that is not shown to be legal is left out. (Elsewhere in the
    tests that is an error.)"""


def session_of(path: Path | bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"])


def assert_close(found: Any, expected: Any) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert np.abs(mine - theirs).max(initial=0) <= 1e-4 * max(np.abs(theirs).max(initial=0), 1e-6)


def compare(path: Path, every: Iterator[Feeds]) -> None:
    executable, session = tw.compile(tw.from_onnx(path), options=OPTIONS), session_of(path)
    for feeds in every:
        assert_close(executable.run(dict(feeds)).values(), session.run(None, dict(feeds)))


def package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"the package {name} is not installed")
    return Path(found.origin).parent


# --- silero-vad: If, LSTM, float16 -----------------------------------------------------------------------------------

SILERO = ("silero_vad", "silero_vad_16k_op15", "silero_vad_op18_ifless", "silero_vad_half")
# rate, samples, batch; what a voice detector is given, and other sizes that the models take
VOICE_SIZES = ((16000, 576, 1), (16000, 576, 4), (16000, 512, 3), (16000, 640, 2), (8000, 288, 1), (8000, 288, 7), (8000, 256, 2), (8000, 320, 5))


def silero_path(name: str) -> Path:
    path = package_folder("silero_vad") / "data" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"silero_vad has no {path.name}")
    return path


def silero_feeds(rate: int, samples: int, batch: int, with_rate: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(samples)
    feeds = {"input": random.normal(0, 0.1, (batch, samples)).astype(np.float32),
             "state": random.normal(0, 0.1, (2, batch, 128)).astype(np.float32)}
    return {**feeds, "sr": np.array(rate, np.int64)} if with_rate else feeds


@pytest.mark.slow
@pytest.mark.parametrize("name", SILERO)
def test_silero(name: str) -> None:
    compare(silero_path(name), (silero_feeds(*sizes, with_rate="half" not in name) for sizes in VOICE_SIZES))


def test_a_side_of_an_if_is_found_and_held_against_the_sizes() -> None:
    """One of the exports on the interpreter: its If squeezes an axis of size 1, and nothing else fits what comes after."""
    path = silero_path("silero_vad_16k_op15")
    graph, session = tw.from_onnx(path), session_of(path)
    for sizes in ((16000, 576, 2), (16000, 512, 1)):
        feeds = silero_feeds(*sizes, with_rate=True)
        assert_close(evaluate_graph(graph, feeds), session.run(None, feeds))
    long = silero_feeds(16000, 704, 1, with_rate=True)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        session.run(None, long)
    with pytest.raises(IndexFailure):
        evaluate_graph(graph, long)


# --- the models that onnx ships, and those of the benchmarks ---------------------------------------------------------

LIGHT = ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19", "zfnet512")


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_light_models(name: str) -> None:
    """Their one size, [1, 3, 224, 224]: the answer that is shipped with each, and pictures of noise."""
    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    executable, session = tw.compile(tw.from_onnx(path), options=OPTIONS), session_of(path)
    label = session.get_inputs()[0].name
    random = np.random.default_rng(3)
    for scale in (0.0, 1.0, 100.0):
        feeds = {label: (scale * random.random((1, 3, 224, 224))).astype(np.float32)}
        assert_close(executable.run(feeds).values(), session.run(None, feeds))


SPINE_SIZES = {
    "minilm": ("1x16", "1x128", "2x33", "3x7", "8x64", "1x200"),
    "recognition": ("1x3x48x160", "1x3x48x320", "1x3x48x333", "2x3x48x100", "3x3x48x77", "1x3x48x511"),
    "detection": ("1x3x160x160", "1x3x96x224", "1x3x352x224", "2x3x64x96", "1x3x320x320", "1x3x128x32"),
    "classifier": ("1x3x48x160", "1x3x48x192", "2x3x48x192", "5x3x48x100", "3x3x48x192", "1x3x48x64"),
    "magika": ("1x2048", "2x2048", "3x2048", "4x2048", "7x2048", "9x2048"),
    "silero": ("1x576", "2x576", "3x576", "7x576", "16x576", "20x576"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPINE_SIZES)
def test_benchmark_models(name: str) -> None:
    sizes = [models.find(f"{name}@{shape}") for shape in SPINE_SIZES[name]]
    compare(sizes[0].path(), (model.make_inputs() for model in sizes))


# --- functions and external data -------------------------------------------------------------------------------------

IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("local", 1)]


def model_with_functions() -> Any:
    """block(x) = gelu(x w + b), by way of a function that the function calls, with an attribute handed down."""
    scaled = helper.make_function("local", "scaled", ["x"], ["y"], [
        helper.make_node("Constant", [], ["factor"], value_float=0.5), helper.make_node("Mul", ["x", "factor"], ["half"]),
        helper.make_node("Softmax", ["half"], ["y"])], IMPORTS[:1], ["axis"])
    scaled.node[2].attribute.append(onnx.AttributeProto(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT))
    inner = helper.make_node("scaled", ["t"], ["y"], domain="local")
    inner.attribute.append(onnx.AttributeProto(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT))
    block = helper.make_function("local", "block", ["x", "w", "b"], ["y"], [
        helper.make_node("FusedMatMul", ["x", "w"], ["m"], domain="com.microsoft", alpha=2.0),
        helper.make_node("BiasGelu", ["m", "b"], ["t"], domain="com.microsoft"), inner], IMPORTS, ["axis"])
    random = np.random.default_rng(1)
    constants = [numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name) for name, shape in (("w", (6, 9)), ("b", (9,)))]
    nodes = [helper.make_node("block", ["x", "w", "b"], ["u"], domain="local", axis=1),
             helper.make_node("block", ["u", "v", "b"], ["y"], domain="local", axis=0)]
    constants.append(numpy_helper.from_array(random.normal(size=(9, 9)).astype(np.float32), "v"))
    graph = helper.make_graph(nodes, "functions", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 9])], constants)
    return helper.make_model(graph, opset_imports=IMPORTS, functions=[scaled, block], ir_version=9)


def test_model_local_functions() -> None:
    data = model_with_functions().SerializeToString()
    graph, session = tw.from_onnx(data), session_of(data)
    for rows in (1, 2, 5, 7, 16, 33):
        feeds = {"x": np.random.default_rng(rows).normal(size=(rows, 6)).astype(np.float32)}
        assert_close(evaluate_graph(graph, feeds), session.run(None, feeds))


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(model_with_functions(), path, save_as_external_data=True, all_tensors_to_one_file=True, location="weights.bin",
                    size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size
    feeds = {"x": np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)}
    assert_close(evaluate_graph(tw.from_onnx(path), feeds), session_of(path).run(None, feeds))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CompileError, match="missing or not a plain file"):
        tw.from_onnx(path)


# --- Ifs whose sides differ in type ----------------------------------------------------------------------------------


def model_with_if(*after: Any) -> bytes:
    """x [a, b] without its last axis where that has size 1, else as it is; then the nodes."""
    def side(name: str, *nodes: Any) -> Any:
        return helper.make_graph(list(nodes), name, [], [onnx.ValueInfoProto(name=name)])

    one = numpy_helper.from_array(np.array(1, np.int64), "one")
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Gather", ["shape", "one"], ["last"]),
        helper.make_node("Equal", ["last", "one"], ["is_one"]),
        helper.make_node("If", ["is_one"], ["u"], then_branch=side("squeezed", helper.make_node("Squeeze", ["x", "axes"], ["squeezed"])),
                         else_branch=side("same", helper.make_node("Identity", ["x"], ["same"]))), *after]
    graph = helper.make_graph(nodes, "sides", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b"])],
                              [onnx.ValueInfoProto(name="y")], [one, axes])
    return helper.make_model(graph, opset_imports=IMPORTS[:1], ir_version=9).SerializeToString()


def test_the_nodes_after_an_if_decide_between_its_sides() -> None:
    transposed = tw.from_onnx(model_with_if(helper.make_node("Transpose", ["u"], ["y"], perm=[1, 0])))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(evaluate_graph(transposed, [x])[0], x.T)
    with pytest.raises(IndexFailure):
        evaluate_graph(transposed, [x[:, :1]])
    again = tw.from_onnx(model_with_if(helper.make_node("Transpose", ["u"], ["y"], perm=[0])))
    np.testing.assert_array_equal(evaluate_graph(again, [x[:, :1]])[0], x[:, 0])
    with pytest.raises(IndexFailure):
        evaluate_graph(again, [x])


def test_sides_that_nothing_decides_between_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="the branches give different types for output 0"):
        tw.from_onnx(model_with_if(helper.make_node("Relu", ["u"], ["y"])))
    graph = tw.from_onnx(model_with_if(helper.make_node("Relu", ["u"], ["y"])), dims={"b": 1})
    assert graph.results[0].rank == 1


def test_sides_that_both_break_a_rule_are_an_error() -> None:
    with pytest.raises(CompileError, match="Transpose"):
        tw.from_onnx(model_with_if(helper.make_node("Transpose", ["u"], ["y"], perm=[0, 1, 2])))
