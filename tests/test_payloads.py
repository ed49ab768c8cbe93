"""Large arrays of model files: taken out before parsing, and nothing else changes by that."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import tilewright as tw
from tilewright.frontends.onnx_ops.payloads import LARGE, without_payloads

RNG = np.random.default_rng(0)
SIZES = (LARGE // 4, 3, LARGE // 4 - 1, LARGE, 0)  # large, small, just below, very large, empty


def model_of(arrays: list[np.ndarray]) -> ModelProto:
    """The sum of the first element of each array but empty ones, as a model."""
    initializers = [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(arrays)]
    nodes, total = [], "x"
    for i, array in enumerate(arrays):
        if array.size:
            nodes.append(helper.make_node("ReduceSum", [f"w{i}"], [f"s{i}"], keepdims=0))
            nodes.append(helper.make_node("Add", [total, f"s{i}"], [f"t{i}"]))
            total = f"t{i}"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("x", total))
    graph = helper.make_graph(nodes, "sums", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


ARRAYS = [RNG.integers(-3, 4, n).astype(np.float32) for n in SIZES]


def test_payloads_are_found_by_number_and_the_rest_parses():
    data = model_of(ARRAYS).SerializeToString()
    rest, payloads = without_payloads(data)
    assert sorted(payloads) == [0, 3]
    for number, payload in payloads.items():
        np.testing.assert_array_equal(np.frombuffer(payload, np.float32), ARRAYS[number])
    whole, parsed = ModelProto.FromString(data), ModelProto.FromString(rest)
    for number in payloads:
        assert parsed.graph.initializer[number].raw_data == b""
        parsed.graph.initializer[number].raw_data = bytes(payloads[number])
    assert parsed == whole


def test_models_from_bytes_files_and_protobuf_are_equal(tmp_path):
    model = model_of(ARRAYS)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    graphs = [tw.from_onnx(source) for source in (model, model.SerializeToString(), tmp_path / "model.onnx")]
    assert graphs[0].fingerprint == graphs[1].fingerprint
    expected = np.float32(2) + np.float32(sum(int(array.sum()) for array in ARRAYS))
    for graph in graphs:
        found = tw.compile(graph, options=tw.Options(cache=False))(np.float32(2))
        np.testing.assert_array_equal(found, expected)


def test_small_files_and_files_without_large_arrays_stay_whole():
    for arrays in ([], ARRAYS[1:2], ARRAYS[2:3] * 2):
        data = model_of(arrays).SerializeToString()
        assert without_payloads(data) == (data, {})


def test_merged_fields_stay_whole():
    """Protobuf merges a message that is there twice, and of data that is there twice the last counts."""
    data = model_of(ARRAYS).SerializeToString()
    twice = data + data
    assert without_payloads(twice) == (twice, {})


@pytest.mark.parametrize("cut", [1, 7, 100, LARGE, 2 * LARGE, 5 * LARGE])
def test_truncated_files_stay_whole_and_are_refused(cut):
    data = model_of(ARRAYS).SerializeToString()[:-cut]
    assert without_payloads(data) == (data, {})
    with pytest.raises(tw.CompileError, match="not an ONNX model, or a truncated one"):
        tw.from_onnx(data)


def test_random_damage_never_fails_elsewhere():
    """Whatever the bytes, either they stay whole or what is left and the payloads have their length."""
    data = model_of(ARRAYS).SerializeToString()
    for _ in range(200):
        damaged = bytearray(data)
        for place in RNG.integers(0, 400, 3):
            damaged[place] = RNG.integers(0, 256)
        rest, payloads = without_payloads(bytes(damaged))
        assert len(rest) + sum(map(len, payloads.values())) <= len(data)


def test_a_payload_of_the_wrong_length_is_named():
    model = model_of(ARRAYS)
    model.graph.initializer[0].dims[0] += 1
    with pytest.raises(tw.CompileError, match=r"'w0'.* needs 65540 bytes, found 65536"):
        tw.from_onnx(model.SerializeToString())


def test_messages_are_those_of_the_package():
    """In a new process, ours first: a model made by the package's helpers is read, and its classes are the same."""
    code = """
import sys
import tilewright as tw
from tilewright.frontends import onnx_messages
assert "onnx" not in sys.modules, "all of the package was imported"
import onnx
from onnx import TensorProto, helper
assert onnx.ModelProto is onnx_messages.ModelProto
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
assert len(tw.from_onnx(helper.make_model(graph)).nodes()) > 1
onnx.checker.check_model(helper.make_model(graph))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
