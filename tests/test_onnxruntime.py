"""The drop-in for onnxruntime against onnxruntime itself: what a session says, gives and refuses, on small models."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="models are built with it")
pytest.importorskip("onnxruntime", reason="the drop-in is compared with it")

import onnxruntime
from onnx import TensorProto, helper

import tilewright.onnxruntime as ort
from tilewright.onnxruntime import providers, session
from tilewright.onnxruntime.capi import onnxruntime_pybind11_state

ROOT = Path(__file__).resolve().parents[1]
F32 = np.float32
PEERS = (onnxruntime, ort)


@pytest.fixture(autouse=True)
def folder_of_the_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    onnxruntime.set_default_logger_severity(4)
    yield
    session._warned.clear()


def value(name: str, kind: int, shape: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(inputs: list[Any], outputs: list[Any], nodes: list[Any], initializers: tuple[Any, ...] = (), ir_version: int = 8) -> Any:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=list(initializers), doc_string="of the graph")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version, producer_name="tests",
                              doc_string="of the model")
    model.metadata_props.add(key="key", value="of the metadata")
    return model


def small() -> bytes:
    """z = x + y, and its elements in a row."""
    return bytes(model_of(
        [value("x", TensorProto.FLOAT, ["N", 3]), value("y", TensorProto.FLOAT, ["N", None])],
        [value("z", TensorProto.FLOAT, ["N", 3]), value("w", TensorProto.FLOAT, None)],
        [helper.make_node("Add", ["x", "y"], ["z"], "add"), helper.make_node("Reshape", ["z", "s"], ["w"], "row")],
        (helper.make_tensor("s", TensorProto.INT64, [1], [-1]),)).SerializeToString())


X = np.arange(6, dtype=F32).reshape(2, 3)
FEED = {"x": X, "y": X + 1}


@pytest.fixture(scope="module")
def sessions() -> tuple[Any, Any]:
    return onnxruntime.InferenceSession(small()), ort.InferenceSession(small())


def outcome(run: Callable[[], Any]) -> Any:
    """Results as plain data, or the type of the exception and the beginning of its text."""
    try:
        found = run()
    except Exception as error:
        return type(error).__name__, str(error).split("\n")[0]
    return [(array.dtype.name, array.tolist()) for array in found]


def same_error(run: Callable[[Any], Any], *, words: int | None = None) -> None:
    """Both raise an exception of one name, with the same beginning of so many words (None: all of the first line)."""
    expected, found = (outcome(lambda peer=peer: run(peer)) for peer in PEERS)
    assert isinstance(expected, tuple) and isinstance(found, tuple), (expected, found)
    assert found[0] == expected[0], (expected, found)
    assert found[1].split()[:words] == expected[1].split()[:words]


# --- what a session says ---------------------------------------------------------------------------------------------


def test_arguments_and_metadata(sessions: tuple[Any, Any]) -> None:
    expected, found = sessions
    for method in ("get_inputs", "get_outputs", "get_overridable_initializers"):
        assert [str(a) for a in getattr(found, method)()] == [str(a) for a in getattr(expected, method)()]
    for name in ("producer_name", "graph_name", "domain", "description", "graph_description", "version", "custom_metadata_map"):
        assert getattr(found.get_modelmeta(), name) == getattr(expected.get_modelmeta(), name)
    assert found.get_providers() == expected.get_providers() == ["CPUExecutionProvider"]
    assert found.get_provider_options() == expected.get_provider_options()
    assert found.get_session_options() is None


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8,
                                  TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT64])
def test_types_are_spelled_alike(kind: int) -> None:
    data = model_of([value("x", kind, ["a", 2])], [value("y", kind, None)],
                    [helper.make_node("Identity", ["x"], ["y"])]).SerializeToString()
    expected, found = (peer.InferenceSession(data) for peer in PEERS)
    assert str(found.get_inputs()[0]) == str(expected.get_inputs()[0])
    assert str(found.get_outputs()[0]) == str(expected.get_outputs()[0])
    x = np.ones((3, 2), helper.tensor_dtype_to_np_dtype(kind))
    assert outcome(lambda: found.run(None, {"x": x})) == outcome(lambda: expected.run(None, {"x": x}))


# --- what it gives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [None, [], ["w"], ["w", "z"], ["z", "z"], ("z",)])
def test_outputs_by_name(sessions: tuple[Any, Any], names: Any) -> None:
    assert outcome(lambda: sessions[1].run(names, FEED)) == outcome(lambda: sessions[0].run(names, FEED))


@pytest.mark.parametrize("feed", [
    {"x": X[:0], "y": X[:0]},                                # no rows
    {"x": X[:1], "y": X},                                    # two sizes under one name
    {"x": [[1, 2, 3]], "y": X},                              # lists
    {"x": X[:, ::-1], "y": np.asfortranarray(X)},            # other orders in memory
    {"x": np.array([[np.nan, np.inf, -0.0]], F32), "y": np.array([[1, -np.inf, 0.0]], F32)},
    {"x": X[::-1, ::-1], "y": X[:, :1]},
], ids=["empty", "sizes", "list", "order", "special", "views"])
def test_results(sessions: tuple[Any, Any], feed: dict[str, Any]) -> None:
    expected, found = sessions
    np.testing.assert_equal(found.run(None, feed), expected.run(None, feed))


def test_bytes_in_the_other_order(sessions: tuple[Any, Any]) -> None:
    """ONNX Runtime takes them as they lie, which gives other numbers."""
    assert np.array_equal(sessions[1].run(["z"], {"x": X.astype(">f4"), "y": X})[0], X + X)


def test_results_belong_to_the_caller(sessions: tuple[Any, Any]) -> None:
    first = sessions[1].run(["z"], FEED)[0]
    kept = first.copy()
    sessions[1].run(["z"], {"x": X * 2, "y": X})
    assert np.array_equal(first, kept) and first.flags.writeable


def test_inputs_of_any_rank() -> None:
    data = model_of([value("x", TensorProto.FLOAT, None)], [value("y", TensorProto.FLOAT, None)],
                    [helper.make_node("Relu", ["x"], ["y"])]).SerializeToString()
    expected, found = (peer.InferenceSession(data) for peer in PEERS)
    for shape in ((), (3,), (2, 0), (2, 3, 4)):
        x = np.full(shape, -0.5, F32)
        assert outcome(lambda x=x: found.run(None, {"x": x})) == outcome(lambda x=x: expected.run(None, {"x": x}))


def test_overridden_initializers() -> None:
    large = np.arange(40000, dtype=F32).reshape(2, 20000)  # its data lies apart when the file is read
    data = model_of([value("x", TensorProto.FLOAT, [2, "n"]), value("scale", TensorProto.FLOAT, [1])],
                    [value("y", TensorProto.FLOAT, [2, "n"])],
                    [helper.make_node("Mul", ["x", "scale"], ["a"]), helper.make_node("Add", ["a", "large"], ["y"])],
                    (helper.make_tensor("scale", TensorProto.FLOAT, [1], [2.0]),
                     helper.make_tensor("large", TensorProto.FLOAT, large.shape, large.tobytes(), raw=True))).SerializeToString()
    expected, found = (peer.InferenceSession(data) for peer in PEERS)
    assert [str(a) for a in found.get_overridable_initializers()] == [str(a) for a in expected.get_overridable_initializers()]
    x = np.ones((2, 20000), F32)
    for feed in ({"x": x}, {"x": x, "scale": np.array([5], F32)}, {"x": x}):
        np.testing.assert_array_equal(found.run(None, feed)[0], expected.run(None, feed)[0])


def branching() -> bytes:
    """Two branches that give different ranks, by the value of an input."""
    then = helper.make_graph([helper.make_node("Identity", ["x"], ["t"])], "then", [], [value("t", TensorProto.FLOAT, None)])
    other = helper.make_graph([helper.make_node("Unsqueeze", ["x", "axes"], ["e"])], "else", [], [value("e", TensorProto.FLOAT, None)])
    return bytes(model_of(
        [value("x", TensorProto.FLOAT, ["n"]), value("rate", TensorProto.INT64, [])], [value("y", TensorProto.FLOAT, None)],
        [helper.make_node("Equal", ["rate", "wanted"], ["c"]),
         helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        (helper.make_tensor("axes", TensorProto.INT64, [1], [0]),
         helper.make_tensor("wanted", TensorProto.INT64, [], [16000]))).SerializeToString())


def test_branches_of_different_ranks() -> None:
    expected, found = (peer.InferenceSession(branching()) for peer in PEERS)
    for rate in (16000, 8000, 16000):
        feed = {"x": X[0], "rate": np.array(rate)}
        assert outcome(lambda feed=feed: found.run(None, feed)) == outcome(lambda feed=feed: expected.run(None, feed))


def test_many_threads(sessions: tuple[Any, Any]) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: found.append((n, sessions[1].run(["z"], {"x": X * n, "y": X[:, :1]})[0])))
               for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for n, z in found:
        np.testing.assert_array_equal(z, X * n + X[:, :1])


def test_run_async(sessions: tuple[Any, Any]) -> None:
    for feed, works in ((FEED, True), ({"x": X.astype(np.float64), "y": X}, False)):
        done, met = threading.Event(), []

        def callback(results: Any, data: Any, error: str, met: list[Any] = met, done: threading.Event = done) -> None:
            met.append((results, data, error))
            done.set()

        sessions[1].run_async(["z"], feed, callback, "data")
        assert done.wait(60)
        results, data, error = met[0]
        assert data == "data" and bool(results) == works and ("INVALID_ARGUMENT" in error) == (not works)


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "feed", "words"), [
    (["q"], FEED, None), (["s"], FEED, None), (None, {"x": X}, None), (None, {**FEED, "k": X}, None),
    (None, {**FEED, "x": X.astype(np.float64)}, None), (None, {**FEED, "x": X.astype(np.int32)}, None),
    (None, {**FEED, "x": X[0]}, None), (None, {**FEED, "x": X[:, :2]}, None), (None, {**FEED, "x": 1.0}, None),
    (None, {**FEED, "x": F32(1)}, None), (None, {**FEED, "x": None}, 3), (None, {**FEED, "x": np.ones((4, 3), F32)}, 3),
    ("z", FEED, 3), (None, [X, X], None),
])
def test_refused_calls(sessions: tuple[Any, Any], names: Any, feed: Any, words: int | None) -> None:
    same_error(lambda peer: sessions[PEERS.index(peer)].run(names, feed), words=words)


def test_indices_outside() -> None:
    data = model_of([value("x", TensorProto.FLOAT, ["n"]), value("i", TensorProto.INT64, ["m"])], [value("y", TensorProto.FLOAT, ["m"])],
                    [helper.make_node("Gather", ["x", "i"], ["y"], "pick")]).SerializeToString()
    same_error(lambda peer: peer.InferenceSession(data).run(None, {"x": X[0], "i": np.array([7])}), words=5)


def test_terminated_runs(sessions: tuple[Any, Any]) -> None:
    def run(peer: Any) -> Any:
        options = peer.RunOptions()
        options.terminate = True
        return sessions[PEERS.index(peer)].run(None, FEED, options)

    same_error(run)


def broken(**changes: Any) -> bytes:
    node = {"op": "Add", "inputs": ["x", "y"], "kind": TensorProto.FLOAT, "size": 2, **changes}
    return bytes(model_of([value("x", TensorProto.FLOAT, [2]), value("y", node["kind"], [node["size"]])],
                          [value("z", TensorProto.FLOAT, [2])],
                          [helper.make_node(node["op"], node["inputs"], ["z"], "bad")]).SerializeToString())


@pytest.mark.parametrize(("source", "words"), [
    ("/no/such/model.onnx", None), (b"garbage", 5), (b"", None), (3, None), (None, None), (broken(op="NoSuchOp"), 11),
    (broken(kind=TensorProto.INT32), 5), (broken(size=3), 5),
], ids=["path", "garbage", "empty", "number", "none", "operator", "dtypes", "shapes"])
def test_refused_models(source: Any, words: int | None) -> None:
    same_error(lambda peer: peer.InferenceSession(source), words=words)


def test_refused_files(tmp_path: Path) -> None:
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, words in (("garbage.onnx", 5), ("empty.onnx", None), ("", 5)):
        same_error(lambda peer, name=name: peer.InferenceSession(str(tmp_path / name)), words=words)


def test_what_is_not_supported_names_the_node() -> None:
    data = model_of([value("x", TensorProto.FLOAT, [2])], [value("z", TensorProto.FLOAT, [2])],
                    [helper.make_node("Bernoulli", ["x"], ["z"], "coin")]).SerializeToString()
    with pytest.raises(Exception, match=r"^\[ONNXRuntimeError\] : 9 : NOT_IMPLEMENTED : .*coin.*random") as caught:
        ort.InferenceSession(data)
    assert type(caught.value).__name__ == "NotImplemented"


def test_models_are_found_by_path_and_by_bytes(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.bin"):
        path = tmp_path / name
        path.write_bytes(small())
        for source in (path, str(path)):
            assert np.array_equal(ort.InferenceSession(source).run(["z"], FEED)[0], X + X + 1)


# --- providers and options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "warned"), [
    ((["CPUExecutionProvider"],), False), (([("CPUExecutionProvider", {"a": 1})],), False), ((["CPUExecutionProvider"], [{}]), False),
    (([],), False), ((["CUDAExecutionProvider", "CPUExecutionProvider"],), True), (([3],), True),
])
def test_providers(arguments: tuple[Any, ...], warned: bool) -> None:
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        found = ort.InferenceSession(small(), None, *arguments)
    assert found.get_providers() == ["CPUExecutionProvider"] and bool(met) == warned


def test_malformed_providers_without_fallback() -> None:
    for providers_given, options in (([3], None), (3, None), (["CPUExecutionProvider"], []), (["CPUExecutionProvider"], [3])):
        with pytest.raises(ValueError, match="provider"):
            ort.InferenceSession(small(), None, providers_given, options, enable_fallback=0)


def test_defaults_of_options() -> None:
    for name in ("SessionOptions", "RunOptions"):
        expected, found = (getattr(peer, name)() for peer in PEERS)
        attributes = [a for a in dir(expected) if not a.startswith("_") and not callable(getattr(expected, a))]
        for attribute in attributes:
            assert repr(getattr(found, attribute)) == repr(getattr(expected, attribute)), attribute
            setattr(found, attribute, getattr(found, attribute))
        with pytest.raises(AttributeError):
            found.no_such_option = 1
    for attribute, wrong in (("intra_op_num_threads", "x"), ("graph_optimization_level", 99), ("enable_mem_pattern", "yes")):
        for peer in PEERS:
            with pytest.raises(TypeError, match="incompatible"):
                setattr(peer.SessionOptions(), attribute, wrong)


def test_ignored_options_are_named_once() -> None:
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    options.optimized_model_filepath = "/tmp/model.onnx"
    options.intra_op_num_threads = 1
    with pytest.warns(UserWarning, match=r"without effect: enable_mem_pattern, optimized_model_filepath$"):
        found = ort.InferenceSession(small(), options)
    assert found._programs.open.threads == 1 and found.get_session_options() is options
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ort.InferenceSession(small(), options)
        session._warned.clear()
        options.log_severity_level = 3
        ort.InferenceSession(small(), options)
        providers.set_default_logger_severity(3)
        options.log_severity_level = -1
        ort.InferenceSession(small(), options)
        providers.set_default_logger_severity(2)


def test_options_that_change_the_model() -> None:
    data = model_of([value("x", TensorProto.FLOAT, ["n", 2])], [value("y", TensorProto.FLOAT, ["n", 2])],
                    [helper.make_node("Mul", ["x", "scale"], ["y"])],
                    (helper.make_tensor("scale", TensorProto.FLOAT, [1], [2.0]),)).SerializeToString()
    results = []
    for peer in PEERS:
        options = peer.SessionOptions()
        options.add_free_dimension_override_by_name("n", 3)
        scale = peer.OrtValue.ortvalue_from_numpy(np.array([5], F32))
        options.add_initializer("scale", scale)
        found = peer.InferenceSession(data, options)
        results.append(([a.shape for a in found.get_inputs()], outcome(lambda found=found: found.run(None, {"x": np.ones((3, 2), F32)}))))
        assert outcome(lambda found=found: found.run(None, {"x": np.ones((2, 2), F32)}))[0] == "InvalidArgument"
    assert results[0] == results[1]


def test_config_entries() -> None:
    for peer in PEERS:
        options = peer.SessionOptions()
        options.add_session_config_entry("key", "value")
        assert options.get_session_config_entry("key") == "value"
        with pytest.raises(RuntimeError, match="does not have configuration with key: other"):
            options.get_session_config_entry("other")
    with pytest.raises(Exception, match="custom operators"):
        ort.SessionOptions().register_custom_ops_library("library.so")


# --- values and bindings ---------------------------------------------------------------------------------------------


def test_values() -> None:
    for peer in PEERS:
        found = peer.OrtValue.ortvalue_from_numpy(X.copy())
        assert (found.shape(), found.data_type(), found.element_type(), found.device_name()) == ([2, 3], "tensor(float)", 1, "cpu")
        assert found.is_tensor() and found.has_value() and not found.is_sparse_tensor() and not found.is_tensor_sequence()
        assert found.tensor_size_in_bytes() == 24 and found.data_ptr() == found.numpy().ctypes.data
        found.update_inplace(X * 2)
        assert np.array_equal(found.numpy(), X * 2)
        with pytest.raises(RuntimeError, match="does not match the size"):
            found.update_inplace(X[:1])
        made = peer.OrtValue.ortvalue_from_shape_and_type([2, 3], np.int64)
        assert made.shape() == [2, 3] and made.data_type() == "tensor(int64)" and peer.OrtValue.ortvalue_from_shape_and_type([1], 10)
    with pytest.raises(RuntimeError, match="only the CPU"):
        ort.OrtValue.ortvalue_from_numpy(X, "cuda", 0)


def test_binding(sessions: tuple[Any, Any]) -> None:
    for peer, found in zip(PEERS, sessions):
        binding, x = found.io_binding(), X.copy()
        binding.bind_cpu_input("x", x)
        binding.bind_ortvalue_input("y", peer.OrtValue.ortvalue_from_numpy(X))
        binding.bind_output("w")
        binding.bind_output("z")
        found.run_with_iobinding(binding)
        assert [a.tolist() for a in binding.copy_outputs_to_cpu()] == [(X + X).ravel().tolist(), (X + X).tolist()]
        assert [v.shape() for v in binding.get_outputs()] == [[6], [2, 3]]
        binding.clear_binding_outputs()
        into = np.zeros((2, 3), F32)
        binding.bind_input("x", "cpu", 0, F32, (2, 3), x.ctypes.data)
        binding.bind_output("z", "cpu", 0, F32, (2, 3), into.ctypes.data)
        x += 1
        found.run_with_iobinding(binding)
        assert np.array_equal(into, X + X + 1)
        kept = peer.OrtValue.ortvalue_from_numpy(np.zeros((2, 3), F32))
        binding.bind_ortvalue_output("z", kept)
        found.run_with_iobinding(binding)
        assert np.array_equal(kept.numpy(), X + X + 1)


def test_refused_bindings(sessions: tuple[Any, Any]) -> None:
    for peer, found in zip(PEERS, sessions):
        binding = found.io_binding()
        with pytest.raises(RuntimeError, match="Failed to find NodeArg with name: q"):
            binding.bind_cpu_input("q", X)
        binding.bind_cpu_input("x", X)
        binding.bind_cpu_input("y", X)
        with pytest.raises(RuntimeError, match="At least one output should be requested"):
            found.run_with_iobinding(binding)
        binding.bind_cpu_input("x", X.astype(np.float64))
        binding.bind_output("z")
        with pytest.raises(RuntimeError, match=r"^Error in execution: Unexpected input data type\. Actual: \(tensor\(double\)\)"):
            found.run_with_iobinding(binding)
        binding.bind_cpu_input("x", X)
        binding.bind_ortvalue_output("z", peer.OrtValue.ortvalue_from_numpy(np.zeros((3, 3), F32)))
        with pytest.raises(RuntimeError, match="Error in execution: .*z"):
            found.run_with_iobinding(binding)


def test_runs_with_values(sessions: tuple[Any, Any]) -> None:
    feed = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in FEED.items()}
    found = sessions[1].run_with_ort_values(["z"], feed)
    assert np.array_equal(found[0].numpy(), X + X + 1)
    assert np.array_equal(sessions[1].run(["z"], feed)[0], X + X + 1)


# --- in the place of onnxruntime -------------------------------------------------------------------------------------

PROGRAM = """
import sys
import numpy as np
import onnxruntime
from onnxruntime import InferenceSession
from onnxruntime.capi import onnxruntime_pybind11_state as state
from onnxruntime.capi.onnxruntime_inference_collection import OrtValue
import onnxruntime.capi._pybind_state as again
assert onnxruntime.capi.onnxruntime_pybind11_state.Fail is state.Fail is again.Fail
session = InferenceSession(sys.argv[1])
print(InferenceSession.__module__, session.run(["z"], {name: np.ones((1, 3), np.float32) for name in "xy"})[0].tolist(), sys.argv[2:])
try:
    InferenceSession("missing.onnx")
except state.NoSuchFile as error:
    print("no such file")
"""


def test_programs_run_unmodified(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(small())
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for arguments in ([str(program)], ["-m", "program"]):
        result = subprocess.run([sys.executable, "-m", "tilewright.onnxruntime", *arguments, "model.onnx", "--flag"], cwd=tmp_path,
                                capture_output=True, text=True, check=True)
        assert result.stdout == "tilewright.onnxruntime.session [[2.0, 2.0, 2.0]] ['--flag']\nno such file\n"


def test_programs_that_are_not_there() -> None:
    for arguments, text in ((["no_such_program.py"], "there is no such file or command"), ([], "usage"), (["-m"], "usage")):
        result = subprocess.run([sys.executable, "-m", "tilewright.onnxruntime", *arguments], capture_output=True, text=True)
        assert result.returncode and text in result.stderr and "Traceback" not in result.stderr


def documented_gaps() -> set[str]:
    text = (ROOT / "docs" / "onnxruntime.md").read_text()
    listed = text.split("<!-- missing -->")[1].split("<!-- end -->")[0]
    return set(re.findall(r"`([\w.]+)`", listed))


OF_THE_IMPORT = ("contextlib", "import_capi_exception", "onnxruntime_validation")  # what its __init__ happens to leave behind
INSTANCES = {"SessionOptions": ort.SessionOptions()._values, "RunOptions": ort.RunOptions()._values,
             "OrtMemoryInfo": vars(ort.OrtMemoryInfo())}


def attributes_of(module: Any) -> set[str]:
    """The public attributes of a module's classes, as class.attribute."""
    found = {f"{name}.{attribute}" for name, attributes in INSTANCES.items() for attribute in attributes if module is ort}
    for name, member in vars(module).items():
        if isinstance(member, type) and not name.startswith("_"):
            attributes = {*dir(member), *getattr(member, "__members__", ()), *(("name", "value") if issubclass(member, Enum) else ())}
            found |= {f"{name}.{attribute}" for attribute in attributes if not attribute.startswith("_")}
    return found


def names_of(*modules: Any) -> set[str]:
    return {name for module in modules for name in dir(module) if not name.startswith("_") and name not in OF_THE_IMPORT}


def test_what_is_missing_is_documented() -> None:
    """Every public name of onnxruntime and its extension module is here or in the list of docs/onnxruntime.md, up to the version that it is
    for; and nothing in the list is here."""
    here = names_of(ort, onnxruntime_pybind11_state)
    missing = names_of(onnxruntime, onnxruntime.capi.onnxruntime_pybind11_state) - here
    missing |= {name for name in attributes_of(onnxruntime) - attributes_of(ort) if name.partition(".")[0] in here}
    newest = re.search(r"of ONNX Runtime ([\d.]+) and those before", (ROOT / "docs" / "onnxruntime.md").read_text())
    assert newest is not None
    installed, known = ([int(part) for part in version.split(".")[:2]] for version in (onnxruntime.__version__, newest[1]))
    if installed <= known:
        assert not missing - documented_gaps()
    assert len(missing & documented_gaps()) > 30 and not documented_gaps() & (here | attributes_of(ort))
