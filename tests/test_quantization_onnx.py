"""Plans written into ONNX files: what other runtimes compute from them, what is shared, what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the runtime that results are held against is not installed")

from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tilewright.frontends import onnx_editing
from tilewright.frontends.onnx_editing import packed
from tilewright.ir.interp import evaluate_graph
from tilewright.quantizing import Recipe, quantize
from tilewright.quantizing.applying import apply_plan
from tilewright.quantizing.layers import find_layers, with_constants
from tilewright.quantizing.plan import ActivationPlan, Fold, LayerPlan, Plan, WeightPlan, merged
from tilewright.quantizing.recipes import recipe_named
from tilewright.quantizing.write_onnx import fitting, write_onnx

FLOAT = TensorProto.FLOAT
STEP = np.float32(0.05)
RANDOM = np.random.default_rng(7)
NARROW = {"i8": (np.dtype(np.int8), 127), "int4": (np.dtype(ml_dtypes.int4), 7), "int2": (np.dtype(ml_dtypes.int2), 1)}


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def node(op: str, inputs: list[str], output: str, name: str | None = None, **attributes: Any) -> Any:
    return helper.make_node(op, inputs, [output], name=f"{op}:{output}" if name is None else name, **attributes)


def model(nodes: list[Any], x: tuple[Any, ...], constants: dict[str, np.ndarray], *, opset: int = 17, outputs: tuple[str, ...] = ("y",),
          inputs: dict[str, tuple[Any, ...]] | None = None) -> Any:
    values = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in {"x": x, **(inputs or {})}.items()]
    graph = helper.make_graph(nodes, "g", values, [onnx.ValueInfoProto(name=name) for name in outputs],
                              [numpy_helper.from_array(array, name) for name, array in constants.items()])
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)]))


def saved(folder: Path, source: Any, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(source.SerializeToString())
    return path


def weights_of(layer: Any, dtype: str, group: int) -> WeightPlan:
    matrix = layer.matrix()
    if dtype == "bf16":
        return WeightPlan("bf16", layer.stored(matrix).astype(ml_dtypes.bfloat16), None, channel_axes=layer.channel_axes,
                          as_operand=layer.as_operand, order=layer.order or ())
    narrow, top = NARROW[dtype]
    blocks = matrix.reshape(len(matrix), -1, group or matrix.shape[1], matrix.shape[2])
    scale = np.abs(blocks).max(axis=2) / top
    values = np.clip(np.rint(blocks / scale[:, :, np.newaxis]), -top, top).reshape(matrix.shape)
    return WeightPlan(dtype, layer.stored(values).astype(narrow), layer.stored(scale).astype(np.float32), None, group,
                      layer.group_axis if group else 0, layer.channel_axes, "nearest", layer.as_operand, layer.order or ())


def activation_of(kind: str) -> ActivationPlan:
    if kind in ("u8", "i8"):
        point = np.array(120, np.uint8) if kind == "u8" else np.array(0, np.int8)
        return ActivationPlan("static", kind, np.array(STEP), point)
    return ActivationPlan("float", "bf16" if kind == "bf16" else "float")


def plan_of(graph: Any, dtype: str = "i8", activation: str = "u8", group: int = 0, correct: bool = True,
            change: Callable[[LayerPlan], LayerPlan] = lambda layer: layer) -> Plan:
    """A plan that rounds every layer to nearest, with a random correction."""
    layers, graph = [], with_constants(graph)
    for layer in find_layers(graph)[0]:
        shape = [1] * layer.node.rank
        if shape:
            shape[1 if layer.kind == "conv" else -1] = layer.width
        correction = normal(*shape) / 8 if correct else None
        layers.append(change(LayerPlan(layer.label, layer.location, layer.kind, layer.constant.array.shape, layer.constant.digest, "i8",
                                       weights_of(layer, dtype, group if layer.can_group else 0), activation_of(activation),
                                       correction=correction)))
    return Plan(graph.name, graph.fingerprint, "by hand", tuple(layers))


def run(path: Path, inputs: dict[str, np.ndarray], optimized: bool = False) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, inputs)


def written(folder: Path, source: Any, inputs: dict[str, np.ndarray], tolerance: float = 1e-5, **how: Any) -> Any:
    """Writes the model with a plan and holds ONNX Runtime's results, and those of our own import, against the plan's meaning. `tolerance`, of
    the largest result: sums of floats have another order there; more where one step of a quantization may differ."""
    path = saved(folder, source)
    graph = tw.from_onnx(path)
    plan = plan_of(graph, **how)
    place = folder / "quantized.onnx"
    assert write_onnx(path, plan, place) == (place,)
    found = onnx.load(place)
    onnx.checker.check_model(found)
    expected = evaluate_graph(apply_plan(graph, plan), list(inputs.values()))
    reach = max(float(np.abs(array).max(initial=1)) for array in expected)
    again = evaluate_graph(tw.from_onnx(place), list(inputs.values()))
    for ours, theirs, wanted in zip(again, run(place, inputs), expected, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance * reach)
        np.testing.assert_allclose(theirs, wanted, rtol=0, atol=tolerance * reach)
    assert not {tensor.name for tensor in found.graph.initializer} & {"w", "w2"}, "a float weight is still there"
    return found


def ops(found: Any) -> Counter[str]:
    return Counter(item.op_type for item in found.graph.node)


MODELS: dict[str, Callable[[], tuple[Any, dict[str, np.ndarray]]]] = {
    "a product and its bias": lambda: (model([node("MatMul", ["x", "w"], "p"), node("Add", ["b", "p"], "y")], ("n", 8),
                                             {"w": normal(8, 6), "b": normal(6)}), {"x": normal(5, 8)}),
    "a product alone": lambda: (model([node("MatMul", ["x", "w"], "y")], (2, "n", 8), {"w": normal(8, 6)}), {"x": normal(2, 3, 8)}),
    "a vector of weights": lambda: (model([node("MatMul", ["x", "w"], "y")], (3, 8), {"w": normal(8)}), {"x": normal(3, 8)}),
    "one channel": lambda: (model([node("MatMul", ["x", "w"], "y")], (3, 8), {"w": normal(8, 1)}), {"x": normal(3, 8)}),
    "a Gemm": lambda: (model([node("Gemm", ["x", "w", "b"], "y", transB=1, alpha=0.5, beta=2.0)], (3, 8),
                             {"w": normal(6, 8), "b": normal(6)}), {"x": normal(3, 8)}),
    "a Gemm on the transposed, without a bias": lambda: (model([node("Gemm", ["x", "w"], "y", transA=1)], (8, 3), {"w": normal(8, 6)}),
                                                         {"x": normal(8, 3)}),
    "a Gemm whose bias is computed": lambda: (model([node("Relu", ["b"], "c"), node("Gemm", ["x", "w", "c"], "y")], (3, 8),
                                                    {"w": normal(8, 6), "b": normal(6)}), {"x": normal(3, 8)}),
    "a Gemm that ignores its bias": lambda: (model([node("Gemm", ["x", "w", "b"], "y", beta=0.0)], (3, 8),
                                                   {"w": normal(8, 6), "b": normal(6)}), {"x": normal(3, 8)}),
    "a convolution": lambda: (model([node("Conv", ["x", "w", "b"], "y", pads=[1, 1, 1, 1])], (1, 4, "h", 5),
                                    {"w": normal(6, 4, 3, 3), "b": normal(6)}), {"x": normal(1, 4, 6, 5)}),
    "a depthwise convolution": lambda: (model([node("Conv", ["x", "w"], "y", group=4)], (2, 4, 5, 5), {"w": normal(4, 1, 3, 3)}),
                                        {"x": normal(2, 4, 5, 5)}),
    "a convolution of a signal": lambda: (model([node("Conv", ["x", "w", "b"], "y", strides=[2])], (1, 4, 9),
                                                {"w": normal(6, 4, 3), "b": normal(6)}), {"x": normal(1, 4, 9)}),
    "weights that are transposed": lambda: (model([node("Transpose", ["w"], "t", perm=[1, 0]), node("Identity", ["t"], "i"),
                                                   node("MatMul", ["x", "i"], "y")], (3, 8), {"w": normal(6, 8)}), {"x": normal(3, 8)}),
    "weights whose axes are turned around": lambda: (model([node("Transpose", ["w"], "t"), node("MatMul", ["x", "t"], "y")], (3, 8),
                                                           {"w": normal(6, 8)}), {"x": normal(3, 8)}),
    "weights of another shape": lambda: (model([node("Reshape", ["w", "s"], "t"), node("MatMul", ["x", "t"], "y")], (3, 8),
                                               {"w": normal(4, 2, 6), "s": np.array([8, 6])}), {"x": normal(3, 8)}),
    "weights without an axis of size 1": lambda: (model([node("Squeeze", ["w", "s"], "t"), node("Transpose", ["t"], "u"),
                                                         node("MatMul", ["x", "u"], "y")], (3, 8), {"w": normal(6, 1, 8), "s": np.array([1])}),
                                                  {"x": normal(3, 8)}),
    "two layers, one behind the other": lambda: (
        model([node("Conv", ["x", "w", "b"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "w2"], "y")], (1, 3, 6, 6),
              {"w": normal(4, 3, 3, 3), "b": normal(4), "w2": normal(2, 4, 1, 1)}), {"x": normal(1, 3, 6, 6)}),
}


@pytest.mark.parametrize("activation", ["u8", "i8", "float"])
@pytest.mark.parametrize("name", MODELS)
def test_other_runtimes_compute_what_the_plan_says(tmp_path: Path, name: str, activation: str) -> None:
    source, inputs = MODELS[name]()
    # the bias of the first of two layers is integers then, off by half a step of the products, which a later rounding may widen
    tolerance = 0.02 if name.startswith("two") else 1e-5
    found = written(tmp_path, source, inputs, tolerance, activation=activation)
    assert ops(found)["QuantizeLinear"] == (0 if activation == "float" else 2 if name.startswith("two") else 1)
    assert next(iter(found.opset_import)).version == 17


@pytest.mark.parametrize("name", ["a product and its bias", "a Gemm", "weights that are transposed", "weights of another shape"])
@pytest.mark.parametrize(("dtype", "activation", "group"), [("int4", "float", 4), ("int4", "float", 0), ("int4", "u8", 2), ("i8", "float", 4)])
def test_blocks_and_narrow_integers(tmp_path: Path, name: str, dtype: str, activation: str, group: int) -> None:
    source, inputs = MODELS[name]()
    found = written(tmp_path, source, inputs, dtype=dtype, activation=activation, group=group)
    assert next(iter(found.opset_import)).version == 21 and found.ir_version == 10
    weights = next(tensor for tensor in found.graph.initializer if tensor.name.endswith("weights_quantized"))
    assert weights.data_type == (TensorProto.INT4 if dtype == "int4" else TensorProto.INT8)
    assert len(weights.raw_data) == (24 if dtype == "int4" else 48)


def test_weights_of_two_bits(tmp_path: Path) -> None:
    source, inputs = MODELS["a product and its bias"]()
    path = saved(tmp_path, source)
    graph = tw.from_onnx(path)
    plan = plan_of(graph, "int2", "float", 4)
    write_onnx(path, plan, tmp_path / "narrow.onnx")
    found = onnx.load(tmp_path / "narrow.onnx")
    assert next(iter(found.opset_import)).version == 25
    weights = next(tensor for tensor in found.graph.initializer if tensor.data_type == 26)
    assert len(weights.raw_data) == 12
    expected = evaluate_graph(apply_plan(graph, plan), list(inputs.values()))
    np.testing.assert_allclose(evaluate_graph(tw.from_onnx(tmp_path / "narrow.onnx"), list(inputs.values()))[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("name", ["a product alone", "a convolution"])
def test_bfloat16_is_stored_and_cast(tmp_path: Path, name: str) -> None:
    source, inputs = MODELS[name]()
    found = written(tmp_path, source, inputs, 1e-2, dtype="bf16", activation="bf16")
    assert ops(found)["Cast"] == 3 and "DequantizeLinear" not in ops(found)


@pytest.mark.parametrize("name", ["a product and its bias", "a convolution", "a Gemm"])
def test_weights_may_be_unsigned(tmp_path: Path, name: str) -> None:
    source, inputs = MODELS[name]()
    path = saved(tmp_path, source)
    graph = tw.from_onnx(path)
    plan = plan_of(graph)
    write_onnx(path, plan, tmp_path / "q.onnx", unsigned_weights=True)
    found = onnx.load(tmp_path / "q.onnx")
    assert {t.data_type for t in found.graph.initializer if "weights" in t.name} == {FLOAT, TensorProto.UINT8}
    expected = evaluate_graph(apply_plan(graph, plan), list(inputs.values()))[0]
    np.testing.assert_allclose(run(tmp_path / "q.onnx", inputs, optimized=True)[0], expected, atol=1e-4)  # also by its own kernels
    np.testing.assert_allclose(evaluate_graph(tw.from_onnx(tmp_path / "q.onnx"), list(inputs.values()))[0], expected, atol=1e-4)
    write_onnx(path, plan_of(graph, activation="i8"), tmp_path / "q.onnx", unsigned_weights=True)
    assert TensorProto.UINT8 not in {t.data_type for t in onnx.load(tmp_path / "q.onnx").graph.initializer}


def test_packed_integers_begin_at_the_lowest_bits() -> None:
    assert packed(np.array([1, -1, 7], ml_dtypes.int4), 4) == bytes([0xF1, 0x07])
    assert packed(np.array([1, -1, 0, -2, 1], ml_dtypes.int2), 2) == bytes([0b10_00_11_01, 0b01])


# --- what is shared, and where corrections go --------------------------------------------------------------------------


def test_one_quantize_for_layers_that_read_alike_and_one_array_for_equal_weights(tmp_path: Path) -> None:
    w = normal(8, 8)
    source = model([node("MatMul", ["x", "w"], "p"), node("MatMul", ["x", "w"], "q"), node("MatMul", ["x", "w2"], "r"),
                    node("Sum", ["p", "q", "r"], "y")], (3, 8), {"w": w, "w2": normal(8, 8)})
    # equal nodes are one in a graph: the file's second product is another layer's only through its correction, so it stays float
    path = saved(tmp_path, source)
    graph = tw.from_onnx(path)
    assert len(find_layers(graph)[0]) == 2
    source.graph.node[1].input[0] = "z"
    source.graph.input.append(helper.make_tensor_value_info("z", FLOAT, (3, 8)))
    found = written(tmp_path, source, {"x": normal(3, 8), "z": normal(3, 8)}, correct=False)
    assert ops(found) == {"QuantizeLinear": 2, "DequantizeLinear": 4, "MatMul": 3, "Sum": 1}
    assert sum(tensor.data_type == TensorProto.INT8 and len(tensor.raw_data) == 64 for tensor in found.graph.initializer) == 2


def test_a_weight_that_others_read_stays_for_them(tmp_path: Path) -> None:
    source = model([node("MatMul", ["x", "w"], "p"), node("Gather", ["w", "i"], "g"), node("Add", ["p", "g"], "y")], (3, 8),
                   {"w": normal(8, 8), "i": np.array([1, 2, 0])})
    path = saved(tmp_path, source)
    plan = plan_of(tw.from_onnx(path))
    write_onnx(path, plan, tmp_path / "q.onnx")
    assert "w" in {tensor.name for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    run(tmp_path / "q.onnx", {"x": normal(3, 8)})


def test_constants_of_nodes_are_dropped_with_the_nodes(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(normal(8, 6), "")
    source = model([helper.make_node("Constant", [], ["w"], value=weights), node("Transpose", ["x"], "t"),
                    node("MatMul", ["t", "w"], "y")], (8, 3), {})
    found = written(tmp_path, source, {"x": normal(8, 3)})
    assert "Constant" not in ops(found) and ops(found)["Transpose"] == 1


def test_weights_that_are_cast_or_repeated_are_constants(tmp_path: Path) -> None:
    """float16 in the file, before a transpose and behind one, and one number of a shape; what made them goes with them."""
    half = {name: normal(*shape).astype(np.float16) for name, shape in (("h", (8, 8)), ("t", (6, 8)), ("k", (4, 6)))}
    source = model([
        node("Cast", ["h"], "w0", to=FLOAT), node("MatMul", ["x", "w0"], "a"),
        node("Cast", ["t"], "u", to=FLOAT), node("Transpose", ["u"], "w1", perm=[1, 0]), node("MatMul", ["a", "w1"], "b"),
        node("Transpose", ["k"], "r", perm=[1, 0]), node("Cast", ["r"], "w2", to=FLOAT), node("MatMul", ["b", "w2"], "c"),
        node("ConstantOfShape", ["shape"], "w3", value=numpy_helper.from_array(np.array([0.25], np.float32))), node("MatMul", ["c", "w3"], "y")],
        (5, 8), {**half, "shape": np.array([4, 3])})
    found = written(tmp_path, source, {"x": normal(5, 8)}, activation="float")
    assert not {tensor.name for tensor in found.graph.initializer} & {*half, "shape"}
    assert not {"Cast", "ConstantOfShape"} & ops(found).keys() and ops(found)["DequantizeLinear"] == 4
    graph = tw.from_onnx(saved(tmp_path, source))
    assert not find_layers(graph)[0] and len(find_layers(with_constants(graph))[0]) == 4
    report = quantize(graph, recipe="weight-only int8", data_free=True, goal="size").report
    assert [layer.shape for layer in report.layers if not layer.reason] == [(8, 8), (6, 8), (6, 4), (4, 3)]


def test_a_correction_joins_the_bias_or_stands_behind(tmp_path: Path) -> None:
    source, inputs = MODELS["a product and its bias"]()
    assert ops(written(tmp_path, source, inputs))["Add"] == 1
    source, inputs = MODELS["a product alone"]()
    assert ops(written(tmp_path, source, inputs))["Add"] == 1
    # where the product is also a result, or is added to something of another size, the bias is not the layer's own
    source = model([node("MatMul", ["x", "w"], "p"), node("Add", ["b", "p"], "y")], (3, 8), {"w": normal(8, 6), "b": normal(6)},
                   outputs=("y", "p"))
    assert ops(written(tmp_path, source, {"x": normal(3, 8)}))["Add"] == 2
    source = model([node("MatMul", ["x", "w"], "p"), node("Add", ["b", "p"], "y")], (3, 8), {"w": normal(8, 6), "b": normal(1)})
    assert ops(written(tmp_path, source, {"x": normal(3, 8)}))["Add"] == 2


def test_a_bias_is_integers_where_its_result_is_quantized(tmp_path: Path) -> None:
    source, inputs = MODELS["two layers, one behind the other"]()
    found = written(tmp_path, source, inputs, 0.02)
    biases = [tensor for tensor in found.graph.initializer if "bias" in tensor.name]
    assert {tensor.data_type for tensor in biases} == {TensorProto.INT32, FLOAT}
    source, inputs = MODELS["a convolution"]()
    assert not [t for t in written(tmp_path, source, inputs).graph.initializer if t.data_type == TensorProto.INT32]


def test_a_bias_beyond_integers_stays_a_float(tmp_path: Path) -> None:
    w = normal(4, 3, 3, 3)
    w[1] *= 1e-12
    source = model([node("Conv", ["x", "w", "b"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "w2"], "y")], (1, 3, 6, 6),
                   {"w": w, "b": normal(4), "w2": normal(2, 4, 1, 1)})
    found = written(tmp_path, source, {"x": normal(1, 3, 6, 6)})
    assert not [t for t in found.graph.initializer if t.data_type == TensorProto.INT32]


# --- smoothing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a product alone", "a Gemm on the transposed, without a bias", "a convolution"])
def test_smoothing_that_nobody_took_up_is_a_product(tmp_path: Path, name: str) -> None:
    source, inputs = MODELS[name]()
    channels = 4 if name == "a convolution" else 8
    factors = RANDOM.uniform(0.5, 2, channels).astype(np.float32)
    found = written(tmp_path, source, inputs, change=lambda layer: replace(layer, smoothing=factors))
    assert ops(found)["Mul"] == 1


def test_smoothing_is_folded_where_the_plan_says(tmp_path: Path) -> None:
    source = model([node("LayerNormalization", ["x", "s", "t"], "n"), node("MatMul", ["n", "w"], "p"), node("Mul", ["x", "s"], "m"),
                    node("MatMul", ["m", "w2"], "q"), node("Add", ["p", "q"], "y")], (3, 8),
                   {"s": normal(8), "t": normal(8), "w": normal(8, 6), "w2": normal(8, 6)})
    path = saved(tmp_path, source)
    graph = tw.from_onnx(path)
    factors = RANDOM.uniform(0.5, 2, 8).astype(np.float32)
    plan = plan_of(graph, change=lambda layer: replace(layer, smoothing=factors, folded=True) if layer.label == "MatMul:p" else layer)
    location = plan.layers[0].location.replace("MatMul:p", "LayerNormalization:n").replace("(MatMul)", "(LayerNormalization)")
    digests = {c.op.value.array.tobytes(): c.op.value.digest for c in graph.nodes() if c.op.spelling == "const"}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    plan = replace(plan, folds=tuple(Fold(location, digests[constants[name].tobytes()], 1 / factors) for name in "st"))
    write_onnx(path, plan, tmp_path / "q.onnx")
    x = normal(3, 8)
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    np.testing.assert_allclose(kept["s_smoothed"], constants["s"] / factors, rtol=1e-6)
    np.testing.assert_array_equal(kept["s"], constants["s"])  # which the Mul still reads
    expected = evaluate_graph(apply_plan(graph, plan), [x])[0]
    np.testing.assert_allclose(run(tmp_path / "q.onnx", {"x": x})[0], expected, atol=2e-2)
    absent = replace(plan, folds=(replace(plan.folds[0], digest="none"),))
    with pytest.raises(tw.ArgumentError, match="reads the constant which takes up smoothing"):
        write_onnx(path, absent, tmp_path / "r.onnx")


# --- files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [(0, 1, 2), (1,), ()])
def test_a_constant_takes_up_the_smoothing_of_two_layers(tmp_path: Path, quantized: tuple[int, ...]) -> None:
    """Its own and that of the layer behind it, whether it is quantized then or not."""
    constants = {"w": normal(6, 6), "w2": normal(6, 6), "w3": normal(6, 4)}
    nodes = [node("MatMul", ["x", "w"], "a"), node("Relu", ["a"], "b"), node("MatMul", ["b", "w2"], "c"), node("Relu", ["c"], "d"),
             node("MatMul", ["d", "w3"], "y")]
    path = saved(tmp_path, model(nodes, ("n", 6), constants))
    graph = tw.from_onnx(path)
    recipe = Recipe("strong", ("w8",), smoothing="smoothquant", strength=1.0)
    data = [{"x": normal(5, 6) * np.float32([1, 1, 1, 1, 9, 30])} for _ in range(9)]
    plan = quantize(graph, data, recipe=recipe, goal="size", budget=1.0, options=tw.Options(threads=1)).plan
    assert len(plan.folds) == 4 and len(merged(plan.folds)) == 3
    plan = replace(plan, layers=tuple(layer if number in quantized else replace(layer, weights=None, activation=None, correction=None,
                                      smoothing=layer.smoothing if layer.folded else None) for number, layer in enumerate(plan.layers)))
    write_onnx(path, plan, tmp_path / "small.onnx")
    expected = evaluate_graph(apply_plan(graph, plan), [data[0]["x"]])[0]
    for found in (run(tmp_path / "small.onnx", data[0])[0], evaluate_graph(tw.from_onnx(tmp_path / "small.onnx"), [data[0]["x"]])[0]):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(expected, evaluate_graph(graph, [data[0]["x"]])[0], rtol=0, atol=0.05 * np.abs(expected).max())


PEERS: dict[str, Callable[[], tuple[Any, tuple[int, ...], str]]] = {
    "two products": lambda: (model(
        [node("MatMul", ["x", "w"], "a"), node("Add", ["a", "bias"], "b"), node("Relu", ["b"], "c"), node("MatMul", ["c", "w2"], "y")],
        (7, 24), {"w": normal(24, 32) / 5, "bias": normal(32), "w2": normal(32, 8) / 6}), (7, 24), "static int8"),
    "a mean before a product": lambda: (model(
        [node("Abs", ["x"], "t"), node("ReduceMean", ["t"], "p", axes=[1], keepdims=0), node("MatMul", ["p", "w"], "y")],
        ("n", 6, 24), {"w": normal(24, 8)}), (5, 6, 24), "static int8"),
    "convolutions": lambda: (model(
        [node("Conv", ["x", "w", "b"], "a", strides=[2, 2]), node("Relu", ["a"], "r"), node("Conv", ["r", "d"], "c", group=8, pads=[1, 1, 1, 1]),
         node("Add", ["c", "r"], "s"), node("GlobalAveragePool", ["s"], "g"), node("Conv", ["g", "e"], "y")],
        ("n", 6, 9, 9), {"w": normal(8, 6, 3, 3), "b": normal(8), "d": normal(8, 1, 3, 3), "e": normal(10, 8, 1, 1)}), (2, 6, 9, 9), "static int8"),
    "a recurrent layer": lambda: (model(
        [node("LSTM", ["x", "w", "r"], "l", hidden_size=8), node("Reshape", ["l", "s"], "q"), node("MatMul", ["q", "v"], "y")],
        (4, 3, 6), {"w": normal(1, 32, 6) / 2, "r": normal(1, 32, 8) / 3, "s": np.array([4, 3, 8]), "v": normal(8, 5)}), (4, 3, 6), "weight-only int8"),
}


@pytest.mark.parametrize("name", PEERS)
def test_openvino_computes_the_same(tmp_path: Path, name: str) -> None:
    """What the quantizer writes by default, read by other runtimes: within steps of what we make of it. Channels differ, so that inputs
    are smoothed."""
    openvino = pytest.importorskip("openvino", reason="the runtime that results are held against is not installed")
    source, shape, recipe = PEERS[name]()
    path = saved(tmp_path, source)
    graph = tw.from_onnx(path)
    channels = shape[1 if len(shape) == 4 else -1]
    spread = np.exp(2 * normal(channels)).reshape(-1, *[1] * (2 if len(shape) == 4 else 0))
    data = [{"x": normal(*shape) * spread} for _ in range(16)]
    found = quantize(graph, data, recipe=recipe, goal="size", budget=1.0, options=tw.Options(threads=1),
                     fit=fitting(path, recipe_named(recipe).precisions))
    (place,) = write_onnx(path, found.plan, tmp_path / "small.onnx")
    x = data[0]["x"]
    ours = evaluate_graph(found.graph, [x])[0]
    results = [next(iter(openvino.Core().compile_model(str(place), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x]).values())),
               tw.compile(found.graph, options=tw.Options(threads=1))(x), run(place, {"x": x})[0]]
    for theirs in results:
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=0.02 * np.abs(ours).max())


@pytest.mark.parametrize("version", [3, 6])
def test_an_older_model_is_converted(tmp_path: Path, version: int) -> None:
    source = model([node("Conv", ["x", "w"], "c"), node("Squeeze", ["c"], "y", axes=[2, 3])], (1, 3, 4, 4), {"w": normal(5, 3, 4, 4)}, opset=11)
    source.ir_version = version  # 3: initializers should be inputs, too
    found = written(tmp_path, source, {"x": normal(1, 3, 4, 4)})
    assert next(iter(found.opset_import)).version == 13 and found.ir_version == 7


def test_a_model_that_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    source = model([node("Upsample", ["x", "s"], "u", mode="nearest"), node("Conv", ["u", "w"], "y")], (1, 3, 4, 4),
                   {"s": np.ones(4, np.float32), "w": normal(5, 3, 1, 1)}, opset=9)
    path = saved(tmp_path, source)
    plan = plan_of(tw.from_onnx(path))
    source.graph.node[0].op_type = "Nothing"
    source.graph.node[0].domain = ""
    saved(tmp_path, source)
    with pytest.raises(tw.UnsupportedError, match="the model is of opset 9, 13 is needed, and converting it failed"):
        write_onnx(path, plan, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("opset", [12, 17])
def test_large_and_external_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int) -> None:
    x = normal(2, 160)
    source = model([node("MatMul", ["x", "w"], "p"), node("Add", ["p", "big"], "y")], (2, 160), {"w": normal(160, 200), "big": normal(2, 200)}, opset=opset)
    path = saved(tmp_path, source)
    outside = tmp_path / "outside"
    outside.mkdir()
    onnx.save(source, outside / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    plan = plan_of(tw.from_onnx(path), correct=False)
    expected = evaluate_graph(apply_plan(tw.from_onnx(path), plan), [x])[0]
    for number, file in enumerate((path, outside / "m.onnx")):
        write_onnx(file, plan, tmp_path / f"one{number}.onnx")
        np.testing.assert_allclose(run(tmp_path / f"one{number}.onnx", {"x": x})[0], expected, atol=1e-4)
    monkeypatch.setattr(onnx_editing, "EMBEDDED", 1000)
    monkeypatch.setattr(onnx_editing, "ALIGNMENT", 64)
    assert [file.name for file in write_onnx(outside / "m.onnx", plan, tmp_path / "two.onnx")] == ["two.onnx", "two.onnx.data"]
    assert (tmp_path / "two.onnx").stat().st_size < 4000 < 32000 < (tmp_path / "two.onnx.data").stat().st_size
    np.testing.assert_allclose(run(tmp_path / "two.onnx", {"x": x})[0], expected, atol=1e-4)
    np.testing.assert_allclose(evaluate_graph(tw.from_onnx(tmp_path / "two.onnx"), [x])[0], expected, atol=1e-4)


def test_new_names_make_way_for_old_ones(tmp_path: Path) -> None:
    source = model([node("Relu", ["x"], "x_quantized", "MatMul:y_weights"), node("MatMul", ["x_quantized", "w"], "y")], (3, 8), {"w": normal(8, 6)})
    found = written(tmp_path, source, {"x": normal(3, 8)}, correct=False)
    names = [item.name for item in found.graph.node] + [name for item in found.graph.node for name in item.output]
    assert Counter(names)["MatMul:y_weights"] == 1 and "MatMul:y_weights_2" in names


def test_nodes_without_names_and_layers_of_one_name(tmp_path: Path) -> None:
    source = model([node("MatMul", ["x", "w"], "p", ""), node("MatMul", ["p", "w2"], "q", "same"), node("MatMul", ["q", "w3"], "y", "same")],
                   (3, 8), {"w": normal(8, 8), "w2": normal(8, 8), "w3": normal(8, 8)})
    path = saved(tmp_path, source)
    plan = plan_of(tw.from_onnx(path))
    assert [layer.label for layer in plan.layers] == ["p", "same", "same#2"]
    write_onnx(path, plan, tmp_path / "q.onnx")  # which ONNX Runtime refuses, like the model itself
    x = normal(3, 8)
    expected = evaluate_graph(apply_plan(tw.from_onnx(path), plan), [x])[0]
    np.testing.assert_allclose(evaluate_graph(tw.from_onnx(tmp_path / "q.onnx"), [x])[0], expected, atol=1e-5)


# --- refusals --------------------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, plan: Plan, path: Path, message: str, error: type[Exception] = tw.UnsupportedError) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        write_onnx(path, plan, tmp_path / "q.onnx")
    assert sorted(tmp_path.iterdir()) == before


def test_what_quantize_linear_cannot_say(tmp_path: Path) -> None:
    path = saved(tmp_path, MODELS["a product alone"]()[0])
    graph = tw.from_onnx(path)
    plan = plan_of(graph, change=lambda layer: replace(layer, activation=ActivationPlan("dynamic", "i8"), precision="i8 dynamic"))
    refused(tmp_path, plan, path, "layer MatMul:y: its input has a range for each row, found at run time .i8 dynamic., which no "
                                  "QuantizeLinear can say")
    plan = plan_of(graph, change=lambda layer: replace(layer, location=layer.location.replace("node 'MatMul:y'", "subgraph 'g' / node 'MatMul:y'")))
    refused(tmp_path, plan, path, "layer MatMul:y: it is inside a graph of another node or a function")


def test_layers_that_a_file_cannot_hold_are_left_alone(tmp_path: Path) -> None:
    """An LSTM has weights alone there, a Reshape hides a constant, a table has no input; what is known before the work is said before it."""
    hidden, constants = 8, {"w": normal(1, 32, 6), "r": normal(1, 32, 8), "v": normal(8, 4), "u": normal(2, 2, 5), "s": np.array([4, 5])}
    source = model([node("LSTM", ["x", "w", "r"], "l", "lstm", hidden_size=hidden), node("MatMul", ["l", "v"], "m", "product"),
                    node("Reshape", ["u", "s"], "t"), node("MatMul", ["m", "t"], "y", "behind")], (3, "n", 6), constants)
    path = saved(tmp_path, source)
    data = [{"x": normal(3, 2, 6)} for _ in range(9)]
    how: dict[str, Any] = {"goal": "size", "budget": 1.0, "options": tw.Options(threads=1)}
    found = quantize(path, data, recipe="static int8", fit=fitting(path, ("i8",)), **how)
    reasons = {layer.label: layer.reason for layer in found.plan.layers}
    assert reasons.pop("product") == "" and reasons.pop("behind") == ""
    assert reasons and all("of a LSTM node only weights can be written" in reason or "inside" in reason for reason in reasons.values())
    free = quantize(path, data, recipe="weight-only int8", fit=fitting(path, ("w8",)), **how)
    assert "lstm" in {layer.label for layer in free.plan.quantized}
    mixed = quantize(path, data, recipe="mixed", fit=fitting(path, ("i8", "i8 dynamic", "bf16")), **how)
    assert any("a precision of the recipe is left out: its input has a range for each row" in text for text in mixed.report.warnings)
    for result in (found, free, mixed):
        write_onnx(path, result.plan, tmp_path / "q.onnx")
        expected = evaluate_graph(result.graph, [data[0]["x"]])[0]
        (theirs,) = run(tmp_path / "q.onnx", data[0])
        assert theirs.shape == expected.shape
        np.testing.assert_allclose(theirs, expected, atol=1e-2 * np.abs(expected).max())
    with pytest.raises(tw.UnsupportedError, match="of every layer: its input has a range for each row"):
        fitting(path, ("i8 dynamic", "w4a8"))


@pytest.mark.parametrize("recipe", ["bf16", "static int8", "weight-only int4"])
def test_a_table_before_a_product(tmp_path: Path, recipe: str) -> None:
    source = model([node("Cast", ["x"], "i", to=TensorProto.INT64), node("Gather", ["t", "i"], "e"), node("MatMul", ["e", "w"], "y")], ("n",),
                   {"t": normal(50, 32), "w": normal(32, 8)})
    path = saved(tmp_path, source)
    data = [{"x": RANDOM.integers(0, 50, 6).astype(np.float32)} for _ in range(9)]
    found = quantize(path, data, recipe=recipe, goal="size", budget=1.0, options=tw.Options(threads=1))
    assert {layer.kind for layer in found.plan.quantized} == {"table", "dot"}
    write_onnx(path, found.plan, tmp_path / "q.onnx")
    expected = evaluate_graph(found.graph, [data[0]["x"]])[0]
    np.testing.assert_allclose(run(tmp_path / "q.onnx", data[0])[0], expected, atol=1e-2 * np.abs(expected).max())


def test_smoothing_is_taken_up_behind_a_transpose(tmp_path: Path) -> None:
    """As exporters leave the weights of the layer before: a Transpose stands between them and their constant."""
    constants = {"w": normal(6, 6), "w2": normal(6, 4)}
    path = saved(tmp_path, model([node("Transpose", ["w"], "t", perm=[1, 0]), node("MatMul", ["x", "t"], "a"), node("Relu", ["a"], "b"),
                                  node("MatMul", ["b", "w2"], "y")], ("n", 6), constants))
    data = [{"x": normal(5, 6) * np.float32([1, 1, 1, 1, 9, 30])} for _ in range(9)]
    recipe = Recipe("strong", ("w8",), smoothing="smoothquant", strength=1.0)
    plan = quantize(path, data, recipe=recipe, goal="size", budget=1.0, options=tw.Options(threads=1)).plan
    last = replace(plan, layers=tuple(layer if layer.label == plan.layers[-1].label else replace(
        layer, weights=None, activation=None, correction=None, smoothing=None) for layer in plan.layers))
    assert last.folds and len(last.quantized) == 1
    write_onnx(path, last, tmp_path / "q.onnx")
    expected = evaluate_graph(apply_plan(tw.from_onnx(path), last), [data[0]["x"]])[0]
    np.testing.assert_allclose(run(tmp_path / "q.onnx", data[0])[0], expected, atol=1e-5 * np.abs(expected).max())


def test_a_plan_of_another_file(tmp_path: Path) -> None:
    path = saved(tmp_path, MODELS["a product alone"]()[0])
    plan = plan_of(tw.from_onnx(path))
    for changed in (replace(plan.layers[0], digest="0"), replace(plan.layers[0], location="elsewhere"),
                    replace(plan.layers[0], shape=(1, 2))):
        refused(tmp_path, replace(plan, layers=(changed,)), path, "layer MatMul:y: model.onnx has no node at .* that reads the constant", tw.ArgumentError)


def test_of_other_operators_only_weights_are_written(tmp_path: Path) -> None:
    source = model([node("Einsum", ["x", "w"], "y", equation="nk,km->nm")], (3, 8), {"w": normal(8, 6)})
    path = saved(tmp_path, source)
    refused(tmp_path, plan_of(tw.from_onnx(path)), path, "of a Einsum node only weights can be written, not what it does to its input")
    written(tmp_path, source, {"x": normal(3, 8)}, activation="float", correct=False)


def test_scales_along_several_axes(tmp_path: Path) -> None:
    path = saved(tmp_path, MODELS["a product alone"]()[0])
    plan = plan_of(tw.from_onnx(path))
    weights = plan.layers[0].weights
    assert weights is not None
    wide = replace(weights, scale=np.ones(weights.values.shape, np.float32))
    refused(tmp_path, replace(plan, layers=(replace(plan.layers[0], weights=wide),)), path, "its scales change along 2 axes, a DequantizeLinear has one")
