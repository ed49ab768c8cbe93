"""One program that can quantize any of its layers: what each alone does to the results is measured without compiling again.

The layers' weights are inputs of the program, and so are switches, scales and corrections. Quantization is computed in float: the
integers are the same, and the sums differ from those of integer kernels by rounding alone.

Guarantees: with no plan given a layer computes what it does in the float graph, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..driver import compile_graph
from ..ir.graph import Array, Builder, Graph, Node
from ..ir.ops.control import Param
from ..ir.rewrite import rewrite_graph
from ..ir.types import BF16, BOOL, F32
from ..library import apply, cast, like, scalar
from ..options import Options
from .applying import ROW_LEVELS, row_scale
from .layers import Layer
from .metrics import Results
from .plan import LayerPlan, dequantized
from .samples import Sample

KINDS = ("static", "dynamic", "bf16")


class Switches:
    """The inputs that decide about one layer, and what they hold for a plan."""

    def __init__(self, layer: Layer, number: int, kinds: Sequence[str]) -> None:
        self.layer = layer
        self.kinds = [kind for kind in KINDS if kind in kinds]
        b = Builder()

        def param(what: str, dtype: Any, shape: Sequence[Any]) -> Node:
            return b.add(Param(f"{what} of layer {number}", dtype, tuple(shape)))

        self.weights = param("weights", F32, layer.operand.shape)
        self.correction = param("correction", F32, layer.result_shape)
        self.grid = {name: param(name, F32, ()) for name in ("scale", "least", "greatest", "point")} if "static" in kinds else {}
        self.on = {kind: param(kind, BOOL, ()) for kind in self.kinds}

    @property
    def params(self) -> tuple[Node, ...]:
        return (self.weights, self.correction, *self.grid.values(), *self.on.values())

    def values(self, plan: LayerPlan | None) -> list[Array]:
        """What the inputs hold: of the float layer where there is no plan."""
        weights, correction = self.layer.operand, np.zeros(self.layer.result_shape, np.float32)
        scale, point, limits = 1.0, 0.0, (0.0, 0.0)
        kind = ""
        if plan is not None and plan.weights is not None and plan.activation is not None:
            found = dequantized(plan.weights)
            weights = found if plan.weights.as_operand else self.layer.as_read(found)
            correction = correction if plan.correction is None else plan.correction
            kind = "bf16" if plan.weights.dtype == "bf16" else plan.activation.kind
            if plan.activation.scale is not None and plan.activation.zero_point is not None:
                scale, point = float(plan.activation.scale), float(plan.activation.zero_point)
                info = np.iinfo(plan.activation.zero_point.dtype)
                limits = float(info.min), float(info.max)
        grid = [np.array(value, np.float32) for value in (scale, *limits, point)] if self.grid else []
        return [weights, correction, *grid, *(np.array(name == kind) for name in self.on)]

    def build(self, b: Builder, x: Node) -> Node:
        """The layer on x, quantized as the inputs say."""
        for kind, on in self.on.items():
            if kind == "static":
                grid = self.grid
                whole = apply(b, "add", scalar(b, "round", apply(b, "div", x, grid["scale"])), grid["point"])
                kept = apply(b, "sub", apply(b, "min", apply(b, "max", whole, grid["least"]), grid["greatest"]), grid["point"])
                changed = apply(b, "mul", kept, grid["scale"])
            elif kind == "dynamic":
                scale = row_scale(b, self.layer, x)
                whole = scalar(b, "round", apply(b, "div", x, scale))
                inside = apply(b, "min", apply(b, "max", whole, like(b, -ROW_LEVELS - 1, x)), like(b, ROW_LEVELS, x))
                changed = apply(b, "mul", inside, scale)
            else:
                changed = cast(b, cast(b, x, BF16), F32)
            x = apply(b, "select", on, changed, x)
        value = b.add(self.layer.node.op, x, self.weights)
        if "bf16" in self.on:
            value = apply(b, "select", self.on["bf16"], cast(b, cast(b, value, BF16), F32), value)
        return apply(b, "add", value, self.correction)


class Probe:
    """A graph's layers under switches. `kinds`: the kinds of activations that plans will have ("float" needs no switch)."""

    def __init__(self, graph: Graph, layers: Sequence[Layer], kinds: Sequence[str], target: str, options: Options,
                 inputs: Sequence[Node] = ()) -> None:
        self.switches = {layer.label: Switches(layer, number, kinds) for number, layer in enumerate(layers)}
        self.inputs = len(inputs)
        by_node = {layer.node: self.switches[layer.label] for layer in layers}

        def visit(b: Builder, node: Node, operands: tuple[Node, ...]) -> Node | None:
            return by_node[node].build(b, operands[0]) if node in by_node else None

        names = (*graph.result_names, *(f"layer input {i}" for i in range(len(inputs))))
        extra = [param for switches in self.switches.values() for param in switches.params]
        whole = Graph(graph.name, (*graph.params, *extra), (*graph.results, *inputs), names)
        self.program = compile_graph(rewrite_graph(whole, visit, "probe"), target, options)

    def run(self, samples: Sequence[Sample], plans: Mapping[str, LayerPlan]) -> list[Results]:
        """The results of each sample with the layers of `plans` quantized, the others in float; behind them the `inputs`."""
        extra = [value for label, switches in self.switches.items() for value in switches.values(plans.get(label))]
        found = []
        for sample in samples:
            results = self.program(*sample.values(), *extra)
            found.append(results if isinstance(results, tuple) else (results,))
        return found
