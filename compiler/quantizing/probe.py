"""One program that can quantize any of its layers: what each alone does to the results is measured without compiling again.

The layers' weights are inputs of the program, and so are switches, scales and corrections. Quantization is computed in float: the
integers are the same, and the sums differ from those of integer kernels by rounding alone. The program is in parts (dividing.py): of
samples that were met before (`keep`) only the parts run in which something is quantized, and those behind them.

Guarantees: with no plan given a layer computes what it does in the float graph, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..driver import compile_graph
from ..ir.graph import Array, Builder, Graph, Node
from ..ir.ops.compute import Dot
from ..ir.ops.control import Const, Param
from ..ir.rewrite import rewrite_graph
from ..ir.types import BF16, BOOL, F32
from ..library import apply, cast, like, scalar
from ..options import Options
from .applying import ROW_LEVELS, row_scale
from .dividing import depending, divide
from .layers import Layer
from .metrics import Results
from .outliers import with_float_weights
from .plan import LayerPlan, dequantized
from .samples import Sample

KINDS = ("static", "dynamic", "bf16")
PARTS = 8         # that a program is cut into at most: what lies before a change is then half of it on average
LEAST_LAYERS = 2  # of a part


class Switches:
    """The inputs that decide about one layer, and what they hold for a plan."""

    def __init__(self, layer: Layer, number: int, kinds: Sequence[str]) -> None:
        self.layer = layer
        kinds = () if layer.is_table else kinds
        self.kinds = [kind for kind in KINDS if kind in kinds]
        b = Builder()

        def param(what: str, dtype: Any, shape: Sequence[Any]) -> Node:
            return b.add(Param(f"{what} of layer {number}", dtype, tuple(shape)))

        self.weights = param("weights", F32, layer.operand.shape)
        self.correction = None if layer.is_table else param("correction", F32, layer.result_shape)
        self.grid = {name: param(name, F32, ()) for name in ("scale", "least", "greatest", "point")} if "static" in kinds else {}
        splits = "dynamic" in self.kinds and isinstance(layer.node.op, Dot) and layer.can_group
        self.kept = param("kept", F32, layer.channel_shape()) if splits else None  # 0 for columns that stay in float
        self.on = {kind: param(kind, BOOL, ()) for kind in self.kinds}

    @property
    def params(self) -> tuple[Node, ...]:
        correction = () if self.correction is None else (self.correction,)
        kept = () if self.kept is None else (self.kept,)
        return (self.weights, *correction, *kept, *self.grid.values(), *self.on.values())

    def values(self, plan: LayerPlan | None) -> list[Array]:
        """What the inputs hold: of the float layer where there is no plan."""
        weights, correction = self.layer.operand, None if self.correction is None else np.zeros(self.layer.result_shape, np.float32)
        scale, point, limits = 1.0, 0.0, (0.0, 0.0)
        kept = [] if self.kept is None else [np.ones(self.layer.depth, np.float32)]
        kind = ""
        if plan is not None and plan.weights is not None and plan.activation is not None:
            found = dequantized(plan.weights)
            weights = found if plan.weights.as_operand else self.layer.as_read(found)
            correction = correction if plan.correction is None else plan.correction
            if plan.outliers is not None:
                weights = with_float_weights(self.layer, plan.outliers, weights)
                kept[0][plan.outliers] = 0
            kind = "bf16" if plan.weights.dtype == "bf16" else plan.activation.kind
            if plan.activation.scale is not None and plan.activation.zero_point is not None:
                scale, point = float(plan.activation.scale), float(plan.activation.zero_point)
                info = np.iinfo(plan.activation.zero_point.dtype)
                limits = float(info.min), float(info.max)
        grid = [np.array(value, np.float32) for value in (scale, *limits, point)] if self.grid else []
        kept = [array.reshape(self.layer.channel_shape()) for array in kept]
        return [weights, *(() if correction is None else (correction,)), *kept, *grid, *(np.array(name == kind) for name in self.on)]

    def build(self, b: Builder, operands: Sequence[Node]) -> Node:
        """The layer, quantized as the inputs say."""
        if self.correction is None:
            return b.add(self.layer.node.op, self.weights, operands[1])
        x = operands[0]
        for kind, on in self.on.items():
            if kind == "static":
                grid = self.grid
                whole = apply(b, "add", scalar(b, "round", apply(b, "div", x, grid["scale"])), grid["point"])
                kept = apply(b, "sub", apply(b, "min", apply(b, "max", whole, grid["least"]), grid["greatest"]), grid["point"])
                changed = apply(b, "mul", kept, grid["scale"])
            elif kind == "dynamic":
                rest = x if self.kept is None else apply(b, "mul", x, self.kept)
                scale = row_scale(b, self.layer, rest)
                whole = scalar(b, "round", apply(b, "div", rest, scale))
                inside = apply(b, "min", apply(b, "max", whole, like(b, -ROW_LEVELS - 1, x)), like(b, ROW_LEVELS, x))
                changed = apply(b, "mul", inside, scale)
                changed = changed if self.kept is None else apply(b, "add", changed, apply(b, "sub", x, rest))
            else:
                changed = cast(b, cast(b, x, BF16), F32)
            x = apply(b, "select", on, changed, x)
        value = b.add(self.layer.node.op, x, self.weights)
        return apply(b, "add", value, self.correction)


class Probe:
    """A graph's layers under switches. `kinds`: the kinds of activations that plans will have ("float" needs no switch)."""

    def __init__(self, graph: Graph, layers: Sequence[Layer], kinds: Sequence[str], target: str, options: Options,
                 inputs: Sequence[Node] = ()) -> None:
        self.switches = {layer.label: Switches(layer, number, kinds) for number, layer in enumerate(layers)}
        by_node = {layer.node: self.switches[layer.label] for layer in layers}

        def visit(b: Builder, node: Node, operands: tuple[Node, ...]) -> Node | None:
            return by_node[node].build(b, operands) if node in by_node else None

        names = (*graph.result_names, *(f"layer input {i}" for i in range(len(inputs))))
        extra = [param for switches in self.switches.values() for param in switches.params]
        whole = rewrite_graph(Graph(graph.name, (*graph.params, *extra), (*graph.results, *inputs), names), visit, "probe")
        self.params, self.results = whole.params[:len(graph.params)], whole.results
        first = self._first_uses(whole)
        step = max(LEAST_LAYERS, -(-len(first) // PARTS))
        self.parts = divide(whole, self.params, sorted(first.values())[step::step])
        self.programs = [compile_graph(part.graph, target, options) for part in self.parts]
        self.begins = {label: next((number for number, part in enumerate(self.parts) if set(switches.params) & set(part.extra)), 0)
                       for label, switches in self.switches.items()}
        self._kept: dict[int, tuple[Sample, dict[Node, Array]]] = {}

    def _first_uses(self, whole: Graph) -> dict[str, int]:
        """Of each layer the place of the first node that its switches change, of those that the graph's own inputs decide."""
        owner = {param: label for label, switches in self.switches.items() for param in switches.params}
        moving = depending(whole, self.params)
        first: dict[str, int] = {}
        for place, node in enumerate(whole.nodes()):
            for value in node.inputs:
                if value not in owner:
                    continue
                if node in moving:
                    first.setdefault(owner[value], place)
                else:
                    owner[node] = owner[value]
        return first

    def keep(self, samples: Sequence[Sample]) -> list[Results]:
        """The results of each sample in float, whose values are kept for runs to come."""
        given = self._given({})
        for sample in samples:
            self._kept[id(sample)] = sample, self._values(sample, given, 0, {})
        return [self._results(self._kept[id(sample)][1]) for sample in samples]

    def run(self, samples: Sequence[Sample], plans: Mapping[str, LayerPlan]) -> list[Results]:
        """The results of each sample with the layers of `plans` quantized, the others in float; behind them the `inputs`."""
        given = self._given(plans)
        changed = min((self.begins[label] for label in plans), default=len(self.parts))
        found = []
        for sample in samples:
            _, known = self._kept.get(id(sample), (sample, None))
            values = self._values(sample, given, 0, {}) if known is None else self._values(sample, given, changed, known)
            found.append(self._results(values))
        return found

    def _given(self, plans: Mapping[str, LayerPlan]) -> dict[Node, Array]:
        """What the layers' switches hold."""
        return {param: value for label, switches in self.switches.items()
                for param, value in zip(switches.params, switches.values(plans.get(label)))}

    def _values(self, sample: Sample, given: Mapping[Node, Array], begin: int, known: Mapping[Node, Array]) -> dict[Node, Array]:
        """What the parts from `begin` on make of what those before made."""
        values = {**known, **dict(zip(self.params, sample.values()))}
        for part, program in zip(self.parts[begin:], self.programs[begin:]):
            made = program(*sample.values(), *(values[node] for node in part.reads), *(given[param] for param in part.extra))
            values.update(zip(part.makes, made if isinstance(made, tuple) else (made,)))
        return values

    def _results(self, values: Mapping[Node, Array]) -> Results:
        return tuple(node.op.value.array if isinstance(node.op, Const) else values[node] for node in self.results)
