"""The table of operators in docs/onnx.md: it is current, and says what is refused."""

from __future__ import annotations

from importlib.metadata import version

import pytest

pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

import numpy as np
from onnx import TensorProto, helper

from benchmarks import onnx_support
from tilewright.frontends.from_onnx import from_onnx
from tilewright.frontends.onnx_ops.table import STANDARD
from tilewright.ir.interp import evaluate_graph

MEASURED = "1.23.2"  # the version whose definitions the document lists

pytestmark = pytest.mark.skipif(version("onnx") != MEASURED, reason=f"the definitions are those of onnx {MEASURED}")


def test_the_table_is_current() -> None:
    assert onnx_support.documented() == onnx_support.table(), "run python -m benchmarks.onnx_support --write"


def test_rows_tell_what_is_refused() -> None:
    schemas = onnx_support.definitions()
    assert onnx_support.row("Cos", schemas["Cos"]) == "| Cos | 7, 22 | all |  |"
    assert onnx_support.row("StringSplit", schemas["StringSplit"]) == "| StringSplit | 20 | none | strings are not supported |"
    assert "1 needs `paddings`" in onnx_support.row("Pad", schemas["Pad"])
    assert "`sparse_value`" in onnx_support.row("Constant", schemas["Constant"])


def test_every_operator_that_is_known_is_in_the_standard_or_written_into_its_domain() -> None:
    assert set(STANDARD) - set(onnx_support.definitions()) <= {"SimplifiedLayerNormalization"}


@pytest.mark.parametrize(("op", "function"), [
    ("Abs", np.abs), ("Ceil", np.ceil), ("Exp", np.exp), ("Floor", np.floor), ("Log", np.log), ("Neg", np.negative), ("Sqrt", np.sqrt),
    ("Tanh", np.tanh), ("Reciprocal", np.reciprocal)])
def test_the_definitions_of_opset_1_name_inputs_that_may_be_overwritten(op: str, function: np.ufunc) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], consumed_inputs=[0])], "one", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 1)], ir_version=3)
    x = np.array([0.5, 1.25, 7.0], np.float32)
    np.testing.assert_allclose(evaluate_graph(from_onnx(model), [x])[0], function(x), rtol=1e-6)
