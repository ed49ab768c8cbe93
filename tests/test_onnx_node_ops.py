"""ONNX operators on sizes that the standard's own cases do not have, against its reference implementation and NumPy.

Every argument is an input of the model; the result's shape is declared, as exporters do. Each case runs in the interpreter and
as machine code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import tilewright as tw
from tilewright.frontends.onnx_ops.narrow import FORMATS
from tilewright.ir.errors import IndexFailure
from tilewright.ir.types import dtype_named
from tilewright.library_quantized import STORED_BITS

pytestmark = pytest.mark.usefixtures("quick_code")

OPSET = 23
random = np.random.default_rng(11)
BACKENDS = ("reference", "llvm")


def floats(*shape: int) -> np.ndarray:
    return random.uniform(-2, 2, shape).astype(np.float32)


def vector(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model_of(op: str, inputs: Sequence[Any], outputs: Sequence[tuple[Any, Sequence[int] | None]], opset: int = OPSET, domain: str = "",
             **attributes: Any) -> Any:
    """One node; `outputs` are dtypes and declared shapes."""
    def value(name: str, dtype: Any, shape: Any) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    results = [f"y{i}" for i in range(len(outputs))]
    graph = helper.make_graph([helper.make_node(op, names, results, domain=domain, **attributes)], "one",
                              [value(n, x.dtype, x.shape) for n, x in zip(names, inputs) if x is not None],
                              [value(n, dtype, shape) for n, (dtype, shape) in zip(results, outputs)])
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def run(model: Any, inputs: Sequence[Any], backend: str, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    executable = tw.compile(tw.from_onnx(model.SerializeToString()), options=tw.Options(cache=False, threads=1))
    made = executable(*[x for x in inputs if x is not None])
    return list(made) if isinstance(made, tuple) else [made]


def check(op: str, inputs: Sequence[Any], monkeypatch: pytest.MonkeyPatch, count: int = 1, tolerance: float = 1e-5, opset: int = OPSET,
          **attributes: Any) -> None:
    """Both backends give what the reference implementation gives."""
    open_model = model_of(op, inputs, [(np.float32, None)] * count, opset, **attributes)
    feeds = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    with np.errstate(all="ignore"):
        expected = [np.asarray(x) for x in ReferenceEvaluator(open_model).run(None, feeds)]
    model = model_of(op, inputs, [(x.dtype, x.shape) for x in expected], opset, **attributes)
    for backend in BACKENDS:
        for mine, theirs in zip(run(model, inputs, backend, monkeypatch), expected, strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance, err_msg=f"{op} {backend}")


CUBE = floats(3, 3, 3)
BY_DATA: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "reduce, one candidate": ("ReduceSum", [floats(2, 5, 7), vector(1)], {"keepdims": 0}),
    "reduce, axes that only data tells apart": ("ReduceMean", [CUBE, vector(-2)], {"keepdims": 0}),
    "reduce, two axes": ("ReduceMax", [CUBE, vector(2, 0)], {"keepdims": 1}),
    "reduce, sizes of one": ("ReduceSumSquare", [floats(1, 4, 1), vector(2)], {"keepdims": 1}),
    "reduce, no axes": ("ReduceL1", [floats(3, 2), vector()], {"keepdims": 0}),
    "slice": ("Slice", [floats(7, 9), vector(1, -2), vector(6, -20), vector(0, 1), vector(2, -3)], {}),
    "slice, swapped axes": ("Slice", [floats(7, 9), vector(-3, 1), vector(100, 5), vector(-1, 0)], {}),
    "slice, nothing": ("Slice", [floats(5), vector(4), vector(2)], {}),
    "reshape": ("Reshape", [floats(3, 10), vector(0, -1, 2)], {}),
    "expand": ("Expand", [floats(3, 1), vector(2, 1, 5)], {}),
    "tile": ("Tile", [floats(3, 2), vector(2, 3)], {}),
    "squeeze": ("Squeeze", [floats(1, 3, 1), vector(-1)], {}),
    "unsqueeze": ("Unsqueeze", [floats(3, 3), vector(-1, 0)], {}),
    "range, backwards": ("Range", [np.array(9, np.int32), np.array(-2, np.int32), np.array(-3, np.int32)], {}),
    "range, floats": ("Range", [np.array(0.5, np.float32), np.array(3.1, np.float32), np.array(0.7, np.float32)], {}),
    "filling": ("ConstantOfShape", [vector(3, 0, 2)], {}),
    "cumulative": ("CumSum", [floats(3, 5), np.array(-1, np.int64)], {"exclusive": 1}),
    "pad": ("Pad", [floats(3, 4), vector(1, 0, 2, 3), np.array(7, np.float32)], {}),
    "pad, axes": ("Pad", [floats(3, 4), vector(2, 1), None, vector(-1)], {"mode": "edge"}),
    "pad, reflected": ("Pad", [floats(4, 5), vector(2, 3, 1, 0)], {"mode": "reflect"}),
    "pad, around": ("Pad", [floats(4, 5), vector(2, 3, 1, 0)], {"mode": "wrap"}),
    "crop": ("CenterCropPad", [floats(7, 4), vector(3, 9)], {}),
    "nonzero": ("NonZero", [np.array([[0, 3, 0], [1, 0, 2]], np.int32)], {}),
    "compress": ("Compress", [floats(5, 3), np.array([False, True, True])], {"axis": 0}),
    "resize, scales": ("Resize", [floats(1, 1, 5, 7), None, np.array([1, 1, 1.7, 0.6], np.float32)], {"mode": "linear"}),
    "resize, corners": ("Resize", [floats(1, 1, 5, 7), None, np.array([1, 1, 2.3, 0.6], np.float32)],
                        {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    "resize, cubic": ("Resize", [floats(1, 1, 5, 7), None, None, vector(1, 1, 9, 4)], {"mode": "cubic"}),
    "resize, antialias": ("Resize", [floats(1, 1, 8, 9), None, np.array([1, 1, 0.4, 0.6], np.float32)], {"mode": "linear", "antialias": 1}),
    "resize, kept ratio": ("Resize", [floats(1, 1, 6, 4), None, None, vector(9, 8)],
                           {"mode": "nearest", "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}),
}


@pytest.mark.parametrize("name", BY_DATA)
def test_arguments_that_data_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, inputs, attributes = BY_DATA[name]
    check(op, inputs, monkeypatch, tolerance=1e-5, **attributes)


def test_pad_crops_by_data(monkeypatch: pytest.MonkeyPatch) -> None:
    x, widths = floats(3, 4), vector(1, -1, -2, 3)
    model = model_of("Pad", [x, widths], [(np.float32, (2, 6))])
    for backend in BACKENDS:
        np.testing.assert_array_equal(run(model, [x, widths], backend, monkeypatch)[0], np.pad(x[:1, 1:], ((1, 0), (0, 3))))


def test_split_by_data(monkeypatch: pytest.MonkeyPatch) -> None:
    check("Split", [floats(2, 7), vector(3, 0, 4)], monkeypatch, count=3, axis=1)


def test_top_k_by_data(monkeypatch: pytest.MonkeyPatch) -> None:
    check("TopK", [floats(3, 7), vector(4)], monkeypatch, count=2, largest=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "good", "bad", "shape"), [
    ("Reshape", vector(2, 6), vector(4, 3), (2, 6)), ("Expand", vector(2, 3, 4), vector(5, 3, 4), (2, 3, 4)),
    ("Tile", vector(2, 1), vector(1, 1), (6, 4)), ("ReduceSum", vector(1), vector(0), (3, 1)),
    ("Unsqueeze", vector(0), vector(2), (1, 3, 4)), ("CumSum", np.array(1), np.array(2), (3, 4)),
])
def test_what_the_model_declares_is_not_believed(op: str, good: np.ndarray, bad: np.ndarray, shape: tuple[int, ...], backend: str,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    x = floats(3, 4)
    model = model_of(op, [x, good], [(np.float32, shape)])
    run(model, [x, good], backend, monkeypatch)
    with pytest.raises(IndexFailure):
        run(model, [x, bad], backend, monkeypatch)


def test_undeclared_sizes_are_refused() -> None:
    model = model_of("Reshape", [floats(3, 4), vector(2, 6)], [(np.float32, None)])
    with pytest.raises(tw.UnsupportedError, match="does not declare"):
        tw.from_onnx(model.SerializeToString())


def test_what_would_take_too_much_is_refused() -> None:
    for model, part in (
        (model_of("ReduceSum", [np.zeros((1,) * 20, np.float32), vector(3)], [(np.float32, (1,) * 20)]), "axes"),
        (model_of("DFT", [np.zeros((1, 4099, 1), np.float32)], [(np.float32, (1, 4099, 2))]), "prime factors"),
    ):
        with pytest.raises(tw.UnsupportedError, match=part):
            tw.from_onnx(model.SerializeToString())


# --- narrow dtypes ---------------------------------------------------------------------------------------------------


def awkward(dtype: Any) -> np.ndarray:
    """Every float16, ties and their neighbours, and what overflows."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(dtype)
    finite = halves[np.isfinite(halves)]
    # float64 goes through float32 in ml_dtypes, which rounds what lies this near to a tie twice
    near = np.concatenate([np.nextafter(finite, dtype(s)) for s in (-np.inf, np.inf)]) if dtype == np.float32 else finite
    wide = (random.standard_normal(4096) * 2.0 ** random.integers(-20, 20, 4096)).astype(dtype)
    return np.concatenate([halves, near, wide])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("name", FORMATS)
def test_casts_to_narrow_floats(name: str, saturate: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = dtype_named(name).numpy
    for dtype in (np.float32, np.float64):
        x = awkward(dtype)
        with np.errstate(all="ignore"):
            greatest = dtype(ml_dtypes.finfo(target).max)
            expected = (np.clip(x, -greatest, greatest) if saturate else x).astype(target)
        model = model_of("Cast", [x], [(target, x.shape)], to=helper.np_dtype_to_tensor_dtype(target), saturate=saturate)
        made = run(model, [x], backend, monkeypatch)[0]
        assert made.dtype == target
        number = ~np.isnan(x if name == "f4e2m1" else expected.astype(np.float32))      # float4 has no NaN to give
        np.testing.assert_array_equal(np.isnan(made.astype(np.float32)), ~number & (name != "f4e2m1"))
        np.testing.assert_array_equal(made.view(np.uint8)[number], expected.view(np.uint8)[number])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*FORMATS, *STORED_BITS, "f8e8m0"])
def test_narrow_values_are_read(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(256, dtype=np.uint8).view(dtype_named(name).numpy).reshape(4, 64)
    model = model_of("Cast", [x], [(np.float32, x.shape)], to=TensorProto.FLOAT)
    np.testing.assert_array_equal(run(model, [x], backend, monkeypatch)[0], x.astype(np.float32))
    turned = model_of("Transpose", [x], [(x.dtype, x.shape[::-1])])
    assert run(turned, [x], backend, monkeypatch)[0].tobytes() == np.ascontiguousarray(x.T).tobytes()


@pytest.mark.parametrize("name", STORED_BITS)
def test_narrow_integers_wrap_and_quantize(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = dtype_named(name).numpy
    code = helper.np_dtype_to_tensor_dtype(target)
    whole = np.arange(-40, 40, dtype=np.int32)
    cast = model_of("Cast", [whole], [(target, whole.shape)], to=code)
    x, scale = floats(5, 9) * 4, np.array(0.37, np.float32)
    limits = ml_dtypes.iinfo(target)
    expected = np.clip(np.rint(x / scale), float(limits.min), float(limits.max)).astype(target)
    quantize = model_of("QuantizeLinear", [x, scale], [(target, x.shape)], output_dtype=code)
    for backend in BACKENDS:
        np.testing.assert_array_equal(run(cast, [whole], backend, monkeypatch)[0].astype(int), whole.astype(target).astype(int))
        np.testing.assert_array_equal(run(quantize, [x, scale], backend, monkeypatch)[0].astype(int), expected.astype(int))


def test_nothing_computes_with_narrow_values() -> None:
    x = np.zeros(3, ml_dtypes.float8_e5m2)
    with pytest.raises(tw.UnsupportedError, match="not computed with"):
        tw.from_onnx(model_of("Exp", [x], [(x.dtype, x.shape)]).SerializeToString())


def test_packed_initializers() -> None:
    values = np.arange(-8, 7).reshape(3, 5)
    tensor = onnx.numpy_helper.from_array(values.astype(ml_dtypes.int4), "w")
    listed = helper.make_tensor("v", TensorProto.INT4, (3, 5), values.reshape(-1).tolist())
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (3, 5)) for n in ("a", "b")]
    nodes = [helper.make_node("Cast", [source], [name], to=TensorProto.FLOAT) for source, name in (("w", "a"), ("v", "b"))]
    graph = helper.make_graph(nodes, "g", [], results, [tensor, listed])
    made = tw.compile(tw.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]).SerializeToString()),
                      options=tw.Options(cache=False))()
    for found in made:
        np.testing.assert_array_equal(found, values)


# --- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 12, 30, 97, 100])
@pytest.mark.parametrize("kind", ["real", "complex", "inverse", "onesided", "half inverse"])
def test_dft(n: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "half inverse" and n == 1:
        pytest.skip("one frequency is half of no signal")
    x = floats(2, n, 1 if kind in ("real", "onesided") else 2)
    attributes = {"inverse": int("inverse" in kind), "onesided": int(kind in ("onesided", "half inverse"))}
    check("DFT", [x], monkeypatch, tolerance=3e-5, **attributes)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(mode: str, padding: str, corners: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, grid = floats(2, 3, 5, 4), floats(2, 3, 7, 2)
    check("GridSample", [x, grid], monkeypatch, mode=mode, padding_mode=padding, align_corners=corners)


@pytest.mark.parametrize("backend", BACKENDS)
def test_grid_sample_reads_inside_whatever_the_grid_holds(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = floats(1, 1, 3, 4)
    grid = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0], np.float32).reshape(1, 1, 3, 2)
    for padding in ("zeros", "border", "reflection"):
        model = model_of("GridSample", [x, grid], [(np.float32, (1, 1, 1, 3))], padding_mode=padding)
        assert run(model, [x, grid], backend, monkeypatch)[0].shape == (1, 1, 1, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_det(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = floats(2, 3, size, size)
    x[0, 0] = 0                         # singular
    x[1, 0, 0, 0] = 0                   # needs another row first
    model = model_of("Det", [x], [(np.float32, (2, 3))])
    for backend in BACKENDS:
        np.testing.assert_allclose(run(model, [x], backend, monkeypatch)[0], np.linalg.det(x.astype(np.float64)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("centred", [0, 1])
def test_non_max_suppression(centred: int, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = random.uniform(0, 1, (2, 13, 4)).astype(np.float32)
    scores = random.uniform(0, 1, (2, 3, 13)).astype(np.float32)
    limits = [vector(5), np.array([0.3], np.float32), np.array([0.2], np.float32)]
    check("NonMaxSuppression", [boxes, scores, *limits], monkeypatch, center_point_box=centred)


def test_max_pool_places(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random.permutation(2 * 3 * 7 * 5).astype(np.float32).reshape(2, 3, 7, 5)
    model = model_of("MaxPool", [x], [(np.float32, None), (np.int64, None)], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])
    for backend in BACKENDS:
        values, places = run(model, [x], backend, monkeypatch)
        np.testing.assert_array_equal(x.reshape(-1)[places], values)


def test_col2im_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    check("Col2Im", [floats(2, 3 * 6, 12), vector(5, 5), vector(2, 3)], monkeypatch)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses(reduction: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = floats(3, 5, 7), random.integers(0, 5, (3, 7))
    labels[0, 0] = -1
    inputs = [scores, labels] + ([np.abs(floats(5))] if weighted else [])
    check("SoftmaxCrossEntropyLoss", inputs, monkeypatch, count=2, reduction=reduction, ignore_index=-1)
    labels[0, 0] = 2
    check("NegativeLogLikelihoodLoss", inputs, monkeypatch, reduction=reduction, ignore_index=2)


@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1}, {"softcap": 1.5, "scale": 0.3, "qk_matmul_output_mode": 1}, {"qk_matmul_output_mode": 3}])
def test_attention(attributes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = floats(2, 6, 5, 7), floats(2, 3, 4, 7), floats(2, 3, 4, 3)
    mask = random.integers(0, 2, (5, 7)).astype(bool)
    past = [floats(2, 3, 3, 7), floats(2, 3, 3, 3)]
    check("Attention", [q, k, v, mask, *past], monkeypatch, count=4, **attributes)


def test_rotary_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    x, places = floats(2, 5, 3 * 8), random.integers(0, 9, (2, 5))
    for interleaved in (0, 1):
        check("RotaryEmbedding", [x, floats(9, 2), floats(9, 2), places], monkeypatch, num_heads=3, interleaved=interleaved,
              rotary_embedding_dim=4)


def test_conv_integer_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    x = random.integers(0, 256, (2, 40, 9, 7)).astype(np.uint8)
    w = random.integers(0, 256, (6, 20, 3, 3)).astype(np.uint8)
    check("ConvInteger", [x, w, np.array(200, np.uint8)], monkeypatch, tolerance=0, group=2, pads=[1, 0, 1, 2], strides=[1, 2])
