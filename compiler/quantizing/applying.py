"""Applies a plan to the graph that it was made for: each quantized layer reads `dequantize(quantize(x))` and `dequantize(weights)`.

Layers that read one value share its `quantize`, since equal nodes are one. Weights become constants in the layout in which the
contraction reads them. What is done in integers from there on is the compiler's to decide: the graph says it in floats.

Guarantees: results have their names and types; what a plan leaves alone stays as it is; a plan for another graph is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..ir.errors import ArgumentError
from ..ir.graph import Array, Builder, Constant, Graph, Node
from ..ir.ops.control import Const, Param
from ..ir.rewrite import rewrite_graph
from ..ir.types import BF16, F32, I8, U8, DType, dtype_named
from ..library import apply as apply_scalar
from ..library import cast, constant, like, reduce, reshape, scalar
from ..library_quantized import dequantize, quantize, widened
from .layers import Layer, find_layers, with_constants
from .outliers import rest_of, with_columns
from .plan import ActivationPlan, Fold, LayerPlan, Plan, WeightPlan, merged

ROW_LEVELS = 127.0  # of activations whose range is found at run time


def apply_plan(graph: Graph, plan: Plan) -> Graph:
    """The graph with the plan's layers quantized. ArgumentError where the plan belongs to another graph."""
    graph = with_constants(graph)
    if plan.fingerprint != graph.fingerprint:
        raise ArgumentError(f"quantize: the plan was made for another graph than {graph.name}: {plan.graph}",
                            hint="make a plan for this one: sizes and constants are part of it")
    folded = fold_graph(graph, plan.folds)
    planned = {layer.label: layer for layer in plan.quantized}
    plans = {layer.node: (layer, planned[layer.label]) for layer in find_layers(folded, tables=True)[0] if layer.label in planned}

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        found = plans.get(node)
        if found is None:
            return None
        return taken_rows(b, *found, inputs[1]) if found[0].is_table else contraction(b, *found, inputs[0])

    return rewrite_graph(folded, visit, "quantize")


def fold_graph(graph: Graph, folds: Sequence[Fold]) -> Graph:
    """The graph with constants that took up factors, where the node at a fold's place reads the constant of its digest."""
    factors: dict[str, dict[str, Array]] = {}
    for fold in merged(folds):
        factors.setdefault(fold.location, {})[fold.digest] = fold.factor

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        here = factors.get(str(node.loc))
        changed = inputs if here is None else tuple(_multiplied(b, operand, here) for operand in inputs)
        return None if changed == inputs else b.add(node.op, *changed, loc=node.loc)

    return rewrite_graph(graph, visit, "fold smoothing") if factors else graph


def _multiplied(b: Builder, operand: Node, factors: Mapping[str, Array]) -> Node:
    """A constant times its factor; what is none, or has none, as it is."""
    if not isinstance(operand.op, Const) or operand.op.value.digest not in factors:
        return operand
    array = operand.op.value.array
    return constant(b, (array * factors[operand.op.value.digest]).astype(array.dtype))


# --- one layer -------------------------------------------------------------------------------------------------------


def contraction(b: Builder, layer: Layer, plan: LayerPlan, x: Node) -> Node:
    """The layer on x as the plan says."""
    assert plan.weights is not None and plan.activation is not None
    if plan.smoothing is not None and not plan.folded:
        factors = (1.0 / plan.smoothing).astype(np.float32).reshape(layer.channel_shape())
        x = apply_scalar(b, "mul", x, constant(b, factors))
    weights = weights_node(b, layer, plan.weights)
    if weights.dtype == BF16:
        value = b.add(layer.node.op, cast(b, cast(b, x, BF16), F32), cast(b, weights, F32))
    else:
        rest = x if plan.outliers is None else rest_of(b, layer, plan.outliers, x)
        value = b.add(layer.node.op, activation_node(b, layer, plan.activation, rest), weights)
        value = value if plan.outliers is None else with_columns(b, layer, plan.outliers, x, value)
    if plan.correction is not None:
        value = apply_scalar(b, "add", value, constant(b, plan.correction))
    return value


def taken_rows(b: Builder, layer: Layer, plan: LayerPlan, places: Node) -> Node:
    """Rows of a table, of which only those taken are dequantized."""
    assert plan.weights is not None
    weights = plan.weights
    values = b.add(layer.node.op, _constant(b, weights.values, dtype_named(weights.dtype)), places)
    if weights.scale is None:
        return cast(b, values, F32)
    return _dequantized(b, values, b.add(layer.node.op, constant(b, weights.scale), places), None if weights.zero_point is None else b.add(
        layer.node.op, _constant(b, weights.zero_point, dtype_named(weights.dtype)), places), weights.group, values.rank - 1)


def activation_node(b: Builder, layer: Layer, plan: ActivationPlan, x: Node) -> Node:
    """What the contraction reads in place of x, in float32."""
    if plan.kind == "float":
        return x
    dtype = dtype_named(plan.dtype)
    if plan.kind == "static":
        assert plan.scale is not None and plan.zero_point is not None
        scale = constant(b, plan.scale)
        point = constant(b, plan.zero_point) if plan.zero_point.any() or dtype == U8 else None
        return dequantize(b, quantize(b, x, scale, point, dtype), scale, point)
    scale = row_scale(b, layer, x)
    return dequantize(b, quantize(b, x, scale, None, I8), scale)


def row_scale(b: Builder, layer: Layer, x: Node) -> Node:
    """The scale of each row of x: its greatest size is the last level; 1 for a row of zeros."""
    largest = reduce(b, "max", scalar(b, "abs", x), layer.row_axes, keep=True)
    scale = apply_scalar(b, "div", largest, like(b, ROW_LEVELS, x))
    return apply_scalar(b, "select", apply_scalar(b, "gt", scale, like(b, 0, x)), scale, like(b, 1, x))


def weights_node(b: Builder, layer: Layer, plan: WeightPlan) -> Node:
    """The weights as the contraction reads them: float32, or bfloat16."""

    def read(array: Array) -> Array:
        return array if plan.as_operand else layer.as_read(array)

    values = _constant(b, read(plan.values), dtype_named(plan.dtype))
    if plan.scale is None:
        return values
    point = None if plan.zero_point is None else _constant(b, read(plan.zero_point), dtype_named(plan.dtype))
    return _dequantized(b, values, constant(b, read(plan.scale)), point, plan.group, layer.contracted_axis)


def _dequantized(b: Builder, values: Node, scale: Node, point: Node | None, group: int, axis: int) -> Node:
    """What integers stand for, of which so many along the axis share a scale."""
    shape = values.shape
    if group:
        # the axis of the contraction in two, blocks and places in them: a scale a block broadcasts then
        values = reshape(b, values, (*shape[:axis], scale.shape[axis], group, *shape[axis + 1:]))
        apart = (*scale.shape[:axis + 1], 1, *scale.shape[axis + 1:])
        scale, point = reshape(b, scale, apart), None if point is None else reshape(b, point, apart)
    return reshape(b, dequantize(b, widened(b, values), scale, None if point is None else widened(b, point)), shape)


def _constant(b: Builder, array: Array, dtype: DType) -> Node:
    return b.add(Const(Constant(np.ascontiguousarray(array), dtype)))


def layer_alone(layer: Layer, shape: tuple[int, ...], plan: LayerPlan | None) -> Graph:
    """A graph of nothing but the layer on an input of that shape, as the plan says or in float: what is timed."""
    b = Builder()
    x = b.add(Param("x", F32, shape))
    if plan is None or plan.weights is None:
        value = b.add(layer.node.op, x, _constant(b, layer.operand, F32))
    else:
        value = contraction(b, layer, plan, x)
    return Graph("layer", (x,), (value,), ("result",))
