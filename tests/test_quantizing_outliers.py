"""Columns that are outliers stay in float beside bytes: how they are found, what the layer computes then, and in one kernel."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import tilewright as tw
from tests.compiled import QUIET
from tests.test_quantizing_layers import layer_of, plan_of
from tilewright.ir.caps import Caps
from tilewright.ir.graph import Array, Graph, Op
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv, Dot, PackedDot
from tilewright.ir.ops.control import Fusion
from tilewright.options import Options
from tilewright.pipeline import run_passes
from tilewright.quantizing import outliers
from tilewright.quantizing.applying import apply_plan
from tilewright.quantizing.calibration import collect
from tilewright.quantizing.candidates import candidate
from tilewright.quantizing.layers import find_layers
from tilewright.quantizing.plan import LayerPlan
from tilewright.quantizing.probe import Probe
from tilewright.quantizing.recipes import RECIPES

RULES = RECIPES["llm_int8"]
CAPS = Caps(has_pairs=True, has_byte_pairs=True)


def spread(shape: tuple[int, ...], axis: int, columns: list[int], seed: int = 0) -> Array:
    """Numbers of which these columns are forty times as large."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    np.moveaxis(x, axis, 0)[columns] *= 40
    return x


def planned(op: Op, x: Array, weights: Array, recipe: str = "llm_int8") -> tuple[Graph, Graph, LayerPlan | str]:
    graph, layer = layer_of(op, x.shape, weights)
    rules = RECIPES[recipe]
    plan = candidate(layer, rules.precisions[0], rules, collect(graph, [layer], [{"x": x}]))
    if isinstance(plan, str):
        return graph, graph, plan
    return graph, apply_plan(graph, plan_of(graph, plan)), plan


@pytest.mark.parametrize("op, shape, stored, axis", [
    (Dot((1,), (0,)), (5, 96), (96, 9), 1), (Dot((2,), (1,)), (2, 3, 96), (9, 96), 2), (Dot((0,), (0,)), (96, 5), (96, 3, 4), 0)])
@pytest.mark.parametrize("most", [8, 1])
def test_outliers_are_multiplied_in_float(op: Op, shape: tuple[int, ...], stored: tuple[int, ...], axis: int, most: int,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliers, "MOST_SPELLED", most)
    columns = [7, 61]
    x, weights = spread(shape, axis, columns), np.random.default_rng(1).standard_normal(stored).astype(np.float32)
    graph, quantized, plan = planned(op, x, weights)
    assert isinstance(plan, LayerPlan) and plan.outliers is not None
    assert_array_equal(plan.outliers, columns)
    exact, = evaluate_graph(graph, [x])
    meaning, = evaluate_graph(quantized, [x])
    dynamic, = evaluate_graph(planned(op, x, weights, "dynamic int8")[1], [x])
    lost, usual = (float(np.square(y - exact).mean()) for y in (meaning, dynamic))
    assert lost < usual / 50
    assert_allclose(np.asarray(tw.compile(quantized)(x)), meaning, atol=1e-3)
    probe = Probe(graph, find_layers(graph)[0], ["dynamic"], "cpu", Options())
    assert_allclose(probe.run([{"x": x}], {plan.label: plan})[0][0], meaning, atol=1e-3)
    assert_allclose(probe.run([{"x": x}], {})[0][0], exact, atol=1e-3)


def test_few_outliers_are_part_of_the_kernel_of_the_integers() -> None:
    columns = [7, 61]
    _, quantized, _ = planned(Dot((1,), (0,)), spread((5, 96), 1, columns), np.random.default_rng(1).standard_normal((96, 9)).astype(np.float32))
    fused, _ = run_passes(quantized, Options(), CAPS, QUIET)
    groups = [node.op for node in fused.nodes() if isinstance(node.op, Fusion)]
    assert [group.strategy for group in groups] == ["rows", "contraction"]
    assert [node.op.step for node in groups[1].body.nodes() if isinstance(node.op, PackedDot)] in ([2], [4])


def test_where_there_are_none_it_is_the_dynamic_recipe() -> None:
    x, weights = spread((5, 96), 1, []), np.random.default_rng(1).standard_normal((96, 9)).astype(np.float32)
    plan = planned(Dot((1,), (0,)), x, weights)[2]
    assert isinstance(plan, LayerPlan) and plan.outliers is None
    x = spread((5, 96), 1, list(range(0, 96, 2)))
    many = planned(Dot((1,), (0,)), x, weights)[2]
    assert isinstance(many, LayerPlan) and many.outliers is None, "half of the columns, which are no exception"


def test_what_has_no_columns_in_float() -> None:
    kernel = np.ones((6, 4, 3, 3), np.float32)
    convolution = Conv((1, 1), ((1, 1), (0, 1)), (1, 1), (1, 1))
    assert "one contracted axis" in str(planned(convolution, np.ones((2, 4, 6, 7), np.float32), kernel)[2])
    _, layer = layer_of(Dot((1,), (0,)), (5, 96), np.ones((96, 9), np.float32))
    assert candidate(layer, RULES.precisions[0], RULES, None) == "its outliers are not known without data"
