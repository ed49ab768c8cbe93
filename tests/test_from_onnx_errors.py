"""Bad ONNX files: each ends in one error that says what, where, and what was expected; nothing is read outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tilewright.frontends.from_onnx import from_onnx
from tilewright.ir.errors import CompileError, UnsupportedError

FLOAT = TensorProto.FLOAT


def value(name: str, shape: Any = (2, 3), dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes: list[Any], inputs: list[Any] | None = None, outputs: list[str] | None = None, initializers: Any = (), **more: Any) -> Any:
    results = [onnx.ValueInfoProto(name=name) for name in (["y"] if outputs is None else outputs)]
    graph = helper.make_graph(nodes, "g", [value("x")] if inputs is None else inputs, results, list(initializers))
    more.setdefault("opset_imports", [helper.make_opsetid("", 17)])
    return helper.make_model(graph, **more)


def node(op: str, inputs: list[str], outputs: list[str], name: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, name=name, **attributes)


RELU = node("Relu", ["x"], ["y"], "relu")


def refused(source: Any, *parts: str, kind: type[CompileError] = CompileError, **options: Any) -> CompileError:
    """The error of importing it, which must hold all these texts."""
    with pytest.raises(kind) as caught:
        from_onnx(source, **options)
    for part in parts:
        assert part in str(caught.value)
    return caught.value


def test_missing_file() -> None:
    refused("/nowhere/model.onnx", "/nowhere/model.onnx", "cannot be read")


def test_not_a_protobuf() -> None:
    refused(b"\xff\xff\xff\xff this is no model", "not an ONNX model")


def test_empty_file() -> None:
    refused(b"", "no graph")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_file(share: float) -> None:
    data = model([node("Add", ["x", "w"], ["y"])], initializers=[numpy_helper.from_array(np.ones((2, 3), np.float32), "w")])
    whole = data.SerializeToString()
    refused(whole[: int(len(whole) * share)])


def test_no_opset() -> None:
    broken = model([RELU])
    del broken.opset_import[:]
    refused(broken, "opset_import")


@pytest.mark.parametrize("version", [0, -1, onnx.defs.onnx_opset_version() + 1, 999])
def test_opset_that_is_not_known(version: int) -> None:
    expected = f"found opset {version} of the standard domain, expected 1 to {onnx.defs.onnx_opset_version()}"
    refused(model([RELU], opset_imports=[helper.make_opsetid("", version)]), expected)
    function = helper.make_function("local", "f", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", version)])
    broken = model([helper.make_node("f", ["x"], ["y"], domain="local")], functions=[function],
                   opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("local", 1)])
    refused(broken, expected, "function local")


def test_no_outputs() -> None:
    refused(model([RELU], outputs=[]), "no outputs")


def test_unknown_operators_are_listed_at_once() -> None:
    nodes = [node("Frobnicate", ["x"], ["a"], "first"), node("Frobnicate", ["a"], ["b"], "second"),
             node("StringSplit", ["b"], ["y"], "third")]
    refused(model(nodes), "Frobnicate x2: first, second", "StringSplit x1: third", "strings are not supported", kind=UnsupportedError)


def test_unknown_domain() -> None:
    refused(model([helper.make_node("Relu", ["x"], ["y"], domain="com.example")]), "com.example::Relu", kind=UnsupportedError)


def test_operator_in_a_subgraph_is_listed() -> None:
    body = helper.make_graph([node("Mystery", ["x"], ["t"], "inside")], "then", [], [onnx.ValueInfoProto(name="t")])
    nodes = [node("If", ["c"], ["y"], then_branch=body, else_branch=body)]
    refused(model(nodes, [value("x"), value("c", (), TensorProto.BOOL)]), "Mystery", "inside", kind=UnsupportedError)


def test_read_before_definition() -> None:
    refused(model([node("Relu", ["a"], ["y"], "early"), node("Relu", ["x"], ["a"], "late")]), "'early'", "'late'", "out of order")


def test_cycle_through_itself() -> None:
    refused(model([node("Relu", ["y"], ["y"], "ouroboros")]), "'ouroboros'", "cycle")


def test_undefined_input() -> None:
    refused(model([node("Add", ["x", "ghost"], ["y"], "adder")]), "'adder'", "'ghost'", "no input, initializer or node")


def test_undefined_output() -> None:
    refused(model([RELU], outputs=["z"]), "'z'", "no node")


def test_output_defined_twice() -> None:
    refused(model([RELU, node("Abs", ["x"], ["y"], "again")]), "'again'", "already")


def test_duplicate_initializer() -> None:
    twice = [numpy_helper.from_array(np.ones(3, np.float32), "w")] * 2
    refused(model([node("Add", ["x", "w"], ["y"])], initializers=twice), "'w'", "2 times")


def test_input_defined_twice() -> None:
    refused(model([RELU], [value("x"), value("x")]), "'x'", "2 times")


def test_initializer_of_wrong_size() -> None:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[5], raw_data=b"\0" * 12)
    refused(model([node("Add", ["x", "w"], ["y"])], initializers=[tensor]), "'w'", "20 bytes", "found 12")


def test_initializer_with_too_few_elements() -> None:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[5], float_data=[1, 2])
    refused(model([node("Add", ["x", "w"], ["y"])], initializers=[tensor]), "'w'", "5 elements", "found 2")


def test_initializer_that_overflows() -> None:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[1 << 40, 1 << 40])
    refused(model([node("Add", ["x", "w"], ["y"])], initializers=[tensor]), "'w'", "2**48")


def test_initializer_with_negative_size() -> None:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[-3])
    refused(model([node("Add", ["x", "w"], ["y"])], initializers=[tensor]), "'w'", "negative")


def test_input_that_overflows() -> None:
    refused(model([RELU], [value("x", (1 << 40, 1 << 40))]), "'x'", "2**48")


def test_input_with_negative_size() -> None:
    refused(model([RELU], [value("x", (-7, 2))]), "'x'", "negative")


def test_unknown_element_type() -> None:
    refused(model([RELU], [value("x", (2,), 99)]), "'x'", "unknown element type 99")


def test_strings_are_refused_by_name() -> None:
    refused(model([RELU], [value("x", (2,), TensorProto.STRING)]), "'x'", "STRING", kind=UnsupportedError)


def test_string_tensor_is_refused() -> None:
    tensor = helper.make_tensor("w", TensorProto.STRING, [1], [b"hello"])
    refused(model([RELU, node("Identity", ["w"], ["z"])], initializers=[tensor]), "'w'", "STRING", kind=UnsupportedError)


def test_input_without_rank() -> None:
    refused(model([RELU], [helper.make_tensor_value_info("x", FLOAT, None)]), "'x'", "no shape", kind=UnsupportedError)


def test_sequence_input() -> None:
    info = helper.make_tensor_sequence_value_info("x", FLOAT, [2])
    refused(model([RELU], [info]), "'x'", "sequence", kind=UnsupportedError)


def test_sparse_constant() -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "v"), numpy_helper.from_array(np.zeros(1, np.int64), "i"), [4]
    )
    refused(model([node("Constant", [], ["y"], "c", sparse_value=sparse)]), "sparse_value", "SPARSE_TENSOR", kind=UnsupportedError)


def test_attribute_unknown() -> None:
    refused(model([node("Relu", ["x"], ["y"], "relu", sharpness=3)]), "sharpness", "'relu'", kind=UnsupportedError)


def test_attribute_of_wrong_kind() -> None:
    refused(model([node("Softmax", ["x"], ["y"], "soft", axis="last")]), "'axis'", "wrong kind", "'soft'")


def test_attribute_missing() -> None:
    refused(model([node("MaxPool", ["x"], ["y"], "pool")], [value("x", (1, 2, 8))]), "kernel_shape", "missing", "'pool'")


def test_too_many_inputs() -> None:
    refused(model([node("Relu", ["x", "x"], ["y"], "relu")]), "at most 1", "'relu'")


def test_missing_operand() -> None:
    refused(model([node("Add", ["x"], ["y"], "half")]), "missing", "'half'")


def test_axis_outside() -> None:
    refused(model([node("Softmax", ["x"], ["y"], "soft", axis=5)]), "axis 5", "-2..1", "'soft'")


def test_shapes_that_do_not_broadcast() -> None:
    refused(model([node("Add", ["x", "w"], ["y"], "adder")], [value("x"), value("w", (5,))]), "broadcast", "3", "5", "'adder'")


def test_dtypes_that_differ() -> None:
    refused(model([node("Add", ["x", "w"], ["y"], "adder")], [value("x"), value("w", (3,), TensorProto.INT64)]), "f32 vs i64", "'adder'")


def test_shape_computed_from_data() -> None:
    nodes = [node("Reshape", ["x", "s"], ["y"], "shaper")]
    refused(
        model(nodes, [value("x"), value("s", (2,), TensorProto.INT64)]), "'shape'", "computed from data", "'shaper'", kind=UnsupportedError
    )


def test_impossible_reshape() -> None:
    shape = numpy_helper.from_array(np.array([4, -1]), "s")
    refused(model([node("Reshape", ["x", "s"], ["y"], "shaper")], initializers=[shape]), "does not divide", "'shaper'")


def test_unknown_dim_binding() -> None:
    refused(model([RELU], [value("x", ("batch", 3))]), "'bach'", "batch", dims={"bach": 2})


def test_negative_dim_binding() -> None:
    refused(model([RELU], [value("x", ("batch", 3))]), "negative", dims={"batch": -2})


def test_unknown_output_wanted() -> None:
    refused(model([RELU]), "'z'", "outputs are y", outputs=["z"])


def test_function_that_calls_itself() -> None:
    call = helper.make_node("loop", ["a"], ["b"], domain="local")
    function = helper.make_function("local", "loop", ["a"], ["b"], [call], [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)])
    broken = model(
        [helper.make_node("loop", ["x"], ["y"], domain="local")],
        functions=[function],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )
    refused(broken, "calls itself")


def test_wrong_text_in_attribute() -> None:
    bad = AttributeProto(name="auto_pad", type=AttributeProto.STRING, s=b"\xff\xfe")
    pool = node("MaxPool", ["x"], ["y"], "pool", kernel_shape=[2])
    pool.attribute.append(bad)
    refused(model([pool], [value("x", (1, 2, 8))]), "UTF-8")


# --- external data ---------------------------------------------------------------------------------------------------


def external(folder: Path, location: str, **entries: str) -> Path:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=text)
    path = folder / "model.onnx"
    path.write_bytes(model([node("Add", ["x", "w"], ["y"])], initializers=[tensor]).SerializeToString())
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 4 + np.array([1, 2, 3], np.float32).tobytes())
    graph = from_onnx(external(tmp_path, "weights.bin", offset="4", length="12"))
    constants = [n.op.value.array for n in graph.nodes() if n.op.name == "const"]
    np.testing.assert_array_equal(constants[0], [1, 2, 3])


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "sub/../../outside.bin", "", "a\\b"])
def test_external_data_outside(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(b"\0" * 12)
    refused(external(folder, location), "'w'", "folder")


def test_external_data_through_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(b"\0" * 12)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    refused(external(folder, "link.bin"), "outside the model's folder")


def test_external_data_missing(tmp_path: Path) -> None:
    refused(external(tmp_path, "weights.bin"), "weights.bin", "missing")


def test_external_data_past_the_end(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 12)
    refused(external(tmp_path, "weights.bin", offset="4"), "bytes 4..16", "has 12 bytes")


def test_external_data_of_wrong_length(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 12)
    refused(external(tmp_path, "weights.bin", length="8"), "12 bytes", "has 8")


def test_external_data_with_a_negative_offset(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 12)
    refused(external(tmp_path, "weights.bin", offset="-4"), "is no number of bytes")


def test_external_data_of_a_model_in_memory(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 12)
    refused(external(tmp_path, "weights.bin").read_bytes(), "given as bytes")


def test_name_that_is_no_text() -> None:
    data = model([node("Relu", ["x"], ["y"], "a_node_name")]).SerializeToString()
    refused(data.replace(b"a_node_name", b"\xff\xfe_node_nam"), "UTF-8")


def test_random_damage_ends_in_an_error() -> None:
    """Flipped bytes give a model that still works or one of our errors; nothing else escapes."""
    damage = np.random.default_rng(3)
    shape = numpy_helper.from_array(np.array([3, 2]), "s")
    whole = model([node("Reshape", ["x", "s"], ["a"]), node("Softmax", ["a"], ["y"], axis=1)], initializers=[shape]).SerializeToString()
    for _ in range(2000):
        data = bytearray(whole)
        for place in damage.integers(0, len(data), 3):
            data[place] = damage.integers(0, 256)
        try:
            from_onnx(bytes(data))
        except CompileError:
            continue
