"""Graphs cut into parts, programs that reuse what lies before a change, and tables whose rows are quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.testing import assert_allclose, assert_array_equal

import tilewright as tw
from tilewright.ir.dims import symbol
from tilewright.ir.errors import ArgumentError
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Dot
from tilewright.ir.ops.control import Get, MakeTuple, Param
from tilewright.ir.types import F32
from tilewright.library import apply, constant
from tilewright.options import Options
from tilewright.quantizing import apply_plan, diagnose, quantize
from tilewright.quantizing.dividing import divide
from tilewright.quantizing.layers import find_layers
from tilewright.quantizing.plan import dequantized
from tilewright.quantizing.probe import Probe


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- parts -----------------------------------------------------------------------------------------------------------


def branched() -> Graph:
    """Values that are read far behind where they are made, results among them, and a size that is open."""
    weights = [numbers((6, 6), seed) for seed in range(3)]

    def function(x: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, ...]:
        first = np.maximum(x @ weights[0], 0)
        second = np.tanh(first @ weights[1]) * scale
        return first, second + first, (second.T @ x) @ weights[2], x

    return tw.trace(function, args=(tw.spec(("n", 6), "float32"), tw.spec((6,), "float32")))


def test_parts_compute_what_the_whole_does() -> None:
    graph = branched()
    inputs = [numbers((4, 6), 7), numbers((6,), 8)]
    expected = evaluate_graph(graph, inputs)
    nodes = graph.nodes()
    for places in ([], *([place] for place in range(len(nodes) + 1)), [3, 7, 9], range(len(nodes))):
        parts = divide(graph, graph.params, places)
        values = dict(zip(graph.params, inputs))
        for part in parts:
            assert not part.extra and all(value in values for value in part.reads)
            made = evaluate_graph(part.graph, [*inputs, *(values[node] for node in part.reads)])
            values.update(zip(part.makes, made))
        for result, array in zip(graph.results, expected):
            assert_array_equal(values[result], array)
    assert len(divide(graph, graph.params, range(len(nodes)))) > 6


def test_inputs_that_few_parts_read_are_given_to_these() -> None:
    graph = branched()
    parts = divide(graph, graph.params[:1], range(len(graph.nodes())))
    assert [part.extra for part in parts if part.extra] == [graph.params[1:]]


def test_no_cut_goes_through_a_tuple_or_a_size_that_nothing_tells() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (symbol("n"),)))
    pair = b.add(MakeTuple(), apply(b, "neg", x), apply(b, "abs", x))
    value = apply(b, "add", b.add(Get(0), pair), b.add(Get(1), pair))
    graph = Graph("pair", (x,), (apply(b, "exp", value),))
    places = {node.op.name: place for place, node in enumerate(graph.nodes())}
    assert len(divide(graph, graph.params, [places["get"]])) == 1
    assert len(divide(graph, graph.params, [len(graph.nodes()) - 1])) == 2
    assert len(divide(graph, (), [len(graph.nodes()) - 1])) == 1


def test_a_probe_runs_only_what_lies_behind_a_change() -> None:
    weights = [numbers((8, 8), seed) / 3 for seed in range(6)]

    def function(x: np.ndarray) -> np.ndarray:
        kept = x
        for weight in weights:
            x = np.tanh(x @ weight) + kept
        return x

    graph = tw.trace(function, args=(tw.spec(("n", 8), "float32"),))
    layers, _ = find_layers(graph)
    probe = Probe(graph, layers, ["dynamic"], "cpu", Options(threads=1))
    assert len(probe.parts) == 3 and sorted(set(probe.begins.values())) == [0, 1, 2]
    data = [{"x": numbers((rows, 8), rows)} for rows in (1, 3)]
    plain = probe.run(data, {})
    calls = []
    probe.programs = [lambda *given, number=number, program=program: (calls.append(number), program(*given))[1]  # type: ignore[misc,func-returns-value]
                      for number, program in enumerate(probe.programs)]
    last, plan = layers[-1].label, quantize(graph, recipe="dynamic int8", data_free=True, options=Options(threads=1)).plan
    only = replace(plan, layers=tuple(layer if layer.label == last else replace(layer, weights=None) for layer in plan.layers))
    for kept, ran in ((False, [0, 1, 2]), (True, [2])):
        if kept:
            for before, after in zip(plain, probe.keep(data), strict=True):
                assert_array_equal(before[0], after[0])
        calls.clear()
        found = probe.run(data[1:], {last: plan.layer(last)})[0][0]
        assert calls == ran and not np.array_equal(found, plain[1][0])
        assert_allclose(found, evaluate_graph(apply_plan(graph, only), [data[1]["x"]])[0], atol=1e-5)


# --- tables ----------------------------------------------------------------------------------------------------------


def embedding(rows: int = 40, width: int = 32) -> Graph:
    table, weights = numbers((rows, width), 1) * np.linspace(0.1, 9, rows, dtype=np.float32)[:, np.newaxis], numbers((width, 8), 2)

    def function(places: np.ndarray) -> np.ndarray:
        return np.tanh(np.take(table, places, axis=0)) @ weights

    return tw.trace(function, args=(tw.spec(("n",), "int64"),))


def places(count: int = 12, rows: int = 40) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(4)
    return [{"places": random.integers(0, rows, 1 + sample % 5)} for sample in range(count)]


@pytest.mark.parametrize("recipe, precision, bits", [("static int8", "w8", 8), ("weight-only int4", "w4", 4), ("weight-only int2", "w2", 2),
                                                     ("bf16", "bf16", 16), ("llm_int8", "w8", 8), ("w4a8", "w4", 4)])
def test_rows_of_a_table_are_quantized_for_size(recipe: str, precision: str, bits: int) -> None:
    graph = embedding()
    found = quantize(graph, places(), recipe=recipe, goal="size", budget=1.0, options=Options(threads=1))
    (table,) = [layer for layer in found.report.layers if layer.kind == "table"]
    assert table.precision == precision and not table.reason and table.loss > 0 and np.isnan(table.seconds_after)
    assert table.bytes_before == 40 * 32 * 4 and table.bytes_after <= 40 * 32 * bits // 8 + 40 * 4 * 2 + 40 * 2
    plan = found.plan.layer(table.label)
    assert plan.weights is not None
    (layer,) = [layer for layer in find_layers(graph, tables=True)[0] if layer.is_table]
    error = np.abs(dequantized(plan.weights) - layer.operand)
    steps = 2.0 ** (9 - bits if bits < 16 else -8) * np.abs(layer.operand).max(axis=1, keepdims=True)
    assert (error <= steps).all() and (bits == 16 or table.layer_error < {8: 1e-4, 4: 0.02, 2: 0.3}[bits])
    one = np.array([0, 39, 7, 7], np.int64)
    interpreted = evaluate_graph(found.graph, [one])[0]
    assert_allclose(tw.compile(found.graph, options=Options(threads=1))(one), interpreted, rtol=1e-4, atol=1e-4 * np.abs(interpreted).max())


def test_tables_are_left_alone_where_time_is_the_goal() -> None:
    graph = embedding()
    assert not any(layer.is_table for layer in find_layers(graph)[0])
    free = quantize(graph, recipe="dynamic int8", data_free=True, options=Options(threads=1))
    assert {layer.kind for layer in free.plan.layers} == {"dot"}
    small = quantize(graph, recipe="dynamic int8", data_free=True, goal="size", options=Options(threads=1))
    assert {layer.kind: layer.precision for layer in small.plan.layers} == {"table": "w8", "dot": "i8 dynamic"}


def test_a_model_that_is_nothing_but_a_table() -> None:
    """It gains size, with data and without; where time is the goal, the refusal says what would serve."""
    values = numbers((40, 32), 1)
    graph = tw.trace(lambda places: np.take(values, places, axis=0), args=(tw.spec(("n",), "int64"),))
    options = Options(threads=1)
    found = quantize(graph, places(), goal="size", options=options)
    assert found.report.worth and [layer.precision for layer in found.report.layers] == ["w8"] and not found.report.warnings
    assert 0 < found.report.after.loss < 1e-3 and found.report.after.bytes < found.report.before.bytes / 3
    free = quantize(graph, recipe="weight-only int4", goal="size", data_free=True, options=options)
    assert free.report.worth and free.report.after.bytes < free.report.before.bytes / 6
    (ranked,) = diagnose(graph, places(), options=options)
    assert ranked.kind == "table" and ranked.loss > 0
    for arguments in ({"calibration": places()}, {"recipe": "dynamic int8", "data_free": True}):
        with pytest.raises(ArgumentError, match="takes rows of a table, which is no faster where they are narrower") as raised:
            quantize(graph, options=options, **arguments)
        assert "goal 'size'" in str(raised.value)


def test_what_is_no_table() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (3,)))
    graph = Graph("none", (x,), (b.add(Dot((0,), (0,)), x, constant(b, numbers((3, 2)))),))
    assert [layer.kind for layer in find_layers(graph, tables=True)[0]] == ["dot"]
    broken = np.full((4, 3), np.nan, np.float32)
    taken = tw.trace(lambda places: np.take(broken, places, axis=0), args=(tw.spec((2,), "int64"),))
    assert find_layers(taken, tables=True) == ((), ())


def test_a_table_in_an_onnx_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the runtime that results are held against is not installed")
    from tilewright.quantizing.write_onnx import write_onnx

    arrays = {"table": numbers((40, 32), 1), "w": numbers((32, 8), 2)}
    helper = onnx.helper
    nodes = [helper.make_node("Gather", ["table", "places"], ["rows"], name="rows"),
             helper.make_node("Tanh", ["rows"], ["t"], name="tanh"), helper.make_node("MatMul", ["t", "w"], ["y"], name="product")]
    model = helper.make_model(helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("places", onnx.TensorProto.INT64, ("n",))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ("n", 8))],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]),
        ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    source = tmp_path / "model.onnx"
    source.write_bytes(model.SerializeToString())
    one = places(1)[0]["places"]
    for recipe in ("static int8", "weight-only int4"):
        found = quantize(source, places(), recipe=recipe, goal="size", budget=1.0, options=Options(threads=1))
        assert {layer.kind for layer in found.plan.quantized} == {"table", "dot"}
        (path,) = write_onnx(source, found.plan, tmp_path / "small.onnx")
        assert path.stat().st_size < source.stat().st_size / 2
        ours = evaluate_graph(found.graph, [one])[0]
        assert_allclose(evaluate_graph(tw.from_onnx(str(path)), [one])[0], ours, atol=2e-2)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert_allclose(session.run(None, {"places": one})[0], ours, atol=3e-2 * np.abs(ours).max())
