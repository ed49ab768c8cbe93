"""Applies a plan to the ONNX file that it was made for: a model of QuantizeLinear and DequantizeLinear nodes, as other runtimes read it.

What is left alone stays as the file has it. A quantized layer's weights become an initializer of 8, 4 or 2 bits with a
DequantizeLinear, a scale for each channel or block; its input goes through QuantizeLinear and DequantizeLinear, shared by layers
that read it alike; smoothing that no neighbour took up is a Mul; a correction goes into the bias. Where the result of a convolution or a
Gemm goes straight into a QuantizeLinear, its bias is integers of 32 bits, in steps of the products: other runtimes compute such a
layer in integers only then. Weights planned as bfloat16 are stored so, and the input goes through two Casts.

Assumes a plan of the graph that importing this file gives. Guarantees: the file means what `apply_plan` makes of the graph, but for
the rounding of such biases, which is far below that of the products; a layer that such nodes cannot express is an error that
names it, and nothing is written then. `fitting` says beforehand what a file can hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from ..frontends.onnx_editing import ModelEditor, Origin, moved
from ..frontends.onnx_files import Source
from ..ir.errors import ArgumentError, UnsupportedError
from ..ir.graph import Array
from ..runtime.artifact import replacing
from .plan import Fold, LayerPlan, Plan, WeightPlan, merged
from .recipes import PRECISIONS

CONTRACTIONS = ("MatMul", "Gemm", "Conv")  # whose first input is what the layer reads, as it is
BIASED = {"Gemm": 2, "Conv": 2}  # the input that is the bias
BF16, FLOAT = 16, 1  # ONNX's numbers of dtypes
FLOAT_ATTRIBUTE = 1  # and of a kind of attributes
LARGEST_BIAS = 2.0**30  # in steps; beyond it an int32 leaves no room for the products
OTHERWISE = "write .ir or .so instead, or take a recipe with static ranges, or one of weights alone"
PER_AXIS, BLOCKED, TWO_BITS = 13, 21, 25  # the opsets that brought scales for each channel; 4 bits and blocks; 2 bits
_NODE = re.compile(r"(?P<path>.*)node '(?P<name>.*)' \((?P<op>\w+)\)$")


def write_onnx(source: Source, plan: Plan, path: Path, *, unsigned_weights: bool = False) -> tuple[Path, ...]:
    """The files written: the model, and beside it its data where one file cannot hold it. `unsigned_weights`: the bytes that are
    multiplied with unsigned activations are uint8 about a zero point of 128, which stands for the same numbers."""
    return edited(source, plan, unsigned_weights).write(path, replacing)


def edited(source: Source, plan: Plan, unsigned_weights: bool = False) -> ModelEditor:
    """The model with the plan applied, not written yet."""
    editor = ModelEditor(source)
    for layer in plan.quantized:
        _refuse(layer, _inexpressible(layer))
    editor.require_opset(max([PER_AXIS, *(_opset_of(layer.weights) for layer in plan.quantized if layer.weights is not None)]))
    placed = sorted(_placed(editor, plan), key=lambda found: found[0])
    for place, slot, origin, layer in placed:
        _refuse(layer, _unwritable(editor, place, slot, origin, layer))
    for fold in merged(plan.folds):
        _fold(editor, fold, {(place, slot) for place, slot, _, _ in placed})
    static = {editor.nodes[place].input[0] for place, _, _, layer in placed
              if layer.activation is not None and layer.activation.kind == "static"}
    writer = _Writer(editor, static)
    for place, slot, origin, layer in placed:
        writer.write_layer(place, slot, origin, _with_unsigned_weights(layer) if unsigned_weights else layer)
    editor.finish()
    return editor


def fitting(source: Source, precisions: Sequence[str]) -> Callable[[LayerPlan], LayerPlan | str]:
    """What gives a layer's plan as this file can hold it, without a correction that has no place there, or says why it cannot hold it.

    UnsupportedError where none of the precisions can be written, or the file cannot be brought to the opset that they need.
    """
    if all(PRECISIONS[name][1] == "dynamic" for name in precisions):
        raise UnsupportedError(f"of every layer: {_of_each_row(', '.join(precisions))}", hint=OTHERWISE)
    editor = ModelEditor(source)
    editor.require_opset(max(_opset_for(PRECISIONS[name][0], False) for name in precisions))
    digests: dict[str, str] = {}

    def fit(layer: LayerPlan) -> LayerPlan | str:
        reason = _inexpressible(layer)
        if reason:
            return reason
        try:
            place, slot, origin = _place_of(editor, layer, set(), digests)
        except ArgumentError:
            return "no node of the file reads its weights as they are"
        if not _is_contracted(editor.nodes[place], slot):
            layer = replace(layer, correction=None)
        return _unwritable(editor, place, slot, origin, layer) or layer

    return fit


# --- what cannot be written ------------------------------------------------------------------------------------------


def _refuse(layer: LayerPlan, reason: str) -> None:
    if reason:
        raise UnsupportedError(f"layer {layer.label}: {reason}", hint=OTHERWISE)


def _of_each_row(precision: str) -> str:
    return f"its input has a range for each row, found at run time ({precision}), which no QuantizeLinear can say"


def _inexpressible(layer: LayerPlan) -> str:
    """Why no file could hold the plan; empty where one could."""
    if layer.activation is not None and layer.activation.kind == "dynamic":
        return _of_each_row(layer.precision)
    match = _NODE.match(layer.location)
    if match is not None and match["path"].endswith(" / "):
        return "it is inside a graph of another node or a function, where a plan is not written"
    return ""


def _unwritable(editor: ModelEditor, place: int, slot: int, origin: Origin, layer: LayerPlan) -> str:
    """Why the plan cannot be written at the layer's node; empty where it can."""
    node, weights = editor.nodes[place], layer.weights
    assert weights is not None
    if not _is_contracted(node, slot) and (_touches_input(layer) or layer.correction is not None or origin.name != node.input[slot]):
        return f"of a {node.op_type} node only weights can be written, not what it does to its input"
    if (weights.as_operand or origin.perms is None) and not (_is_contracted(node, slot) and (weights.as_operand or weights.order)):
        return f"its weights are read in another shape than the {node.op_type} node has them"
    axes = 0 if weights.scale is None or weights.group else sum(size != 1 for size in weights.scale.shape)
    return f"its scales change along {axes} axes, a DequantizeLinear has one" if axes > 1 else ""


def _is_contracted(node: Any, slot: int) -> bool:
    """Whether the node multiplies its first input, as it is, with the constant in that slot."""
    return node.op_type in CONTRACTIONS and node.domain in ("", "ai.onnx") and slot == 1


def _touches_input(layer: LayerPlan) -> bool:
    """Whether something is done to what the layer reads beside its weights; the places of a table's rows stay as they are."""
    assert layer.activation is not None
    return layer.kind != "table" and (layer.activation.kind != "float" or layer.activation.dtype == "bf16" or layer.smoothing is not None)


def _with_unsigned_weights(layer: LayerPlan) -> LayerPlan:
    """The same layer with signed bytes as unsigned ones, where its activations are unsigned bytes."""
    weights, activation = layer.weights, layer.activation
    if weights is None or weights.dtype != "i8" or weights.scale is None or activation is None or activation.dtype != "u8":
        return layer
    point = np.zeros(weights.scale.shape, np.int8) if weights.zero_point is None else weights.zero_point
    values, point = ((array.view(np.uint8) ^ np.uint8(128)) for array in (weights.values, point))
    return replace(layer, weights=replace(weights, dtype="u8", values=values, zero_point=point))


def _opset_of(weights: WeightPlan) -> int:
    return _opset_for(weights.dtype, bool(weights.group))


def _opset_for(dtype: str, grouped: bool) -> int:
    return TWO_BITS if dtype == "int2" else BLOCKED if dtype == "int4" or grouped else PER_AXIS


# --- finding ---------------------------------------------------------------------------------------------------------


def _placed(editor: ModelEditor, plan: Plan) -> list[tuple[int, int, Origin, LayerPlan]]:
    """For each quantized layer: its node's number, the number of the input that is its constant, and that constant."""
    taken: set[tuple[int, int]] = set()
    digests: dict[str, str] = {}
    found = []
    for layer in plan.quantized:
        place, slot, origin = _place_of(editor, layer, taken, digests)
        taken.add((place, slot))
        found.append((place, slot, origin, layer))
    return found


def _place_of(editor: ModelEditor, layer: LayerPlan, taken: set[tuple[int, int]], digests: dict[str, str]) -> tuple[int, int, Origin]:
    match = _NODE.match(layer.location)
    for place in () if match is None else editor.find_nodes(match["name"], match["op"]):
        for slot, name in enumerate(editor.nodes[place].input):
            origin = editor.origin(name)
            if origin is None or (place, slot) in taken or editor.shape(origin) != layer.shape:
                continue
            if origin.name not in digests:
                digests[origin.name] = editor.digest(origin)
            if digests[origin.name] == layer.digest:
                return place, slot, origin
    raise ArgumentError(f"layer {layer.label}: {editor.label} has no node at {layer.location!r} that reads the constant of "
                        f"{list(layer.shape)}", hint="the plan belongs to another file, or the file has changed since")


def _fold(editor: ModelEditor, fold: Fold, quantized: set[tuple[int, int]]) -> None:
    """A constant takes up smoothing factors, for the one node that the fold names; the weights of a layer that is quantized have them."""
    match = _NODE.match(fold.location)
    for place in () if match is None else editor.find_nodes(match["name"], match["op"]):
        for slot, name in enumerate(editor.nodes[place].input):
            origin = editor.origin(name)
            if origin is not None and editor.digest(origin) == fold.digest:
                if (place, slot) in quantized:
                    return
                if origin.perms is None:
                    raise UnsupportedError(f"{fold.location}: takes up smoothing in a constant whose shape other nodes change first",
                                           hint="leave smoothing out (--smoothing none)")
                array = editor.array(origin)
                smoothed = moved((array * fold.factor).astype(array.dtype), origin.perms)
                editor.read_instead(place, slot, editor.add_constant(f"{name}_smoothed", smoothed))
                return
    raise ArgumentError(f"{editor.label} has no node at {fold.location!r} that reads the constant which takes up smoothing",
                        hint="the plan belongs to another file, or the file has changed since")


# --- writing ---------------------------------------------------------------------------------------------------------


class _Writer:
    """What layers share: inputs quantized alike, equal weights; and which values (of the file's names) are quantized at all."""

    def __init__(self, editor: ModelEditor, quantized: set[str]) -> None:
        self.editor, self.quantized = editor, quantized
        self.inputs: dict[tuple[Any, ...], str] = {}
        self.weights: dict[bytes, str] = {}

    def write_layer(self, place: int, slot: int, origin: Origin, layer: LayerPlan) -> None:
        editor, weights = self.editor, layer.weights
        node = editor.nodes[place]
        assert weights is not None
        editor.read_instead(place, slot, self.weight_value(place, layer, weights, origin))
        if _touches_input(layer):
            editor.read_instead(place, 0, self.input_value(place, node.input[0], layer))
        if _is_contracted(node, slot):
            self.write_bias(place, layer)

    def weight_value(self, place: int, layer: LayerPlan, plan: WeightPlan, origin: Origin) -> str:
        """What makes the weights in the layout in which the node reads them."""
        perms = origin.perms
        if plan.as_operand:
            perms = ()
        elif perms is None:
            perms = ((*plan.order, *(a for a in range(plan.values.ndim) if a not in plan.order)),)
        rank = len(plan.order) if origin.perms is None and not plan.as_operand else plan.values.ndim

        def read(array: Array | None) -> Array | None:
            return None if array is None else _first_axes(moved(array, perms), rank)

        values, scale, point = _first_axes(moved(plan.values, perms), rank), read(plan.scale), read(plan.zero_point)
        group_axis = int(moved_axes(plan.values.ndim, perms).index(plan.group_axis)) if plan.group else 0
        key = _key(values, scale, point, plan.dtype, plan.group)
        if key not in self.weights:
            self.weights[key] = self._weight_nodes(place, layer, plan, values, scale, point, group_axis)
        return self.weights[key]

    def _weight_nodes(self, place: int, layer: LayerPlan, plan: WeightPlan, values: Array, scale: Array | None, point: Array | None,
                      group_axis: int) -> str:
        editor, name = self.editor, f"{layer.label}_weights"
        stored = editor.add_constant(f"{name}_quantized", values, plan.dtype)
        if scale is None:
            return editor.add_node(place, "Cast", [stored], name, to=FLOAT)
        attributes: dict[str, Any] = {}
        shape: tuple[int, ...] = scale.shape
        if plan.group:
            shape = tuple(scale.shape[a] if a == group_axis else n for a, n in enumerate(values.shape))
            attributes = {"axis": group_axis, "block_size": plan.group}
        else:
            channels = [axis for axis, size in enumerate(scale.shape) if size != 1]
            shape, attributes = (scale.size,) if channels else (), {"axis": channels[0]} if channels else {}
        point = np.zeros(scale.shape, values.dtype) if point is None else point
        operands = [stored, editor.add_constant(f"{name}_scale", _shaped(scale, shape)),
                    editor.add_constant(f"{name}_zero_point", _shaped(point, shape), plan.dtype)]
        return editor.add_node(place, "DequantizeLinear", operands, name, **attributes)

    def input_value(self, place: int, name: str, layer: LayerPlan) -> str:
        """The layer's input as the plan changes it: smoothed, then rounded to steps or to bfloat16."""
        editor, plan = self.editor, layer.activation
        assert plan is not None
        if layer.smoothing is not None and not layer.folded:
            factors = self._spread_channels(place, layer)
            key: tuple[Any, ...] = ("smoothed", name, factors.tobytes())
            if key not in self.inputs:
                factor = editor.add_constant(f"{name}_smoothing", factors)
                self.inputs[key] = editor.add_node(place, "Mul", [name, factor], f"{name}_smoothed")
            name = self.inputs[key]
        if plan.dtype == "bf16":
            key = ("bf16", name)
            if key not in self.inputs:
                narrow = editor.add_node(place, "Cast", [name], f"{name}_bfloat16", to=BF16)
                self.inputs[key] = editor.add_node(place, "Cast", [narrow], f"{name}_rounded", to=FLOAT)
            return self.inputs[key]
        if plan.kind == "float":
            return name
        assert plan.scale is not None and plan.zero_point is not None
        key = ("static", name, plan.dtype, plan.scale.tobytes(), plan.zero_point.tobytes())
        if key not in self.inputs:
            scale = editor.add_constant(f"{name}_scale", plan.scale.reshape(()))
            point = editor.add_constant(f"{name}_zero_point", plan.zero_point.reshape(()))
            narrow = editor.add_node(place, "QuantizeLinear", [name, scale, point], f"{name}_quantized")
            self.inputs[key] = editor.add_node(place, "DequantizeLinear", [narrow, scale, point], f"{name}_dequantized")
        return self.inputs[key]

    def _spread_channels(self, place: int, layer: LayerPlan) -> Array:
        """One over the smoothing factors, as they broadcast against the input."""
        node = self.editor.nodes[place]
        assert layer.smoothing is not None
        factors = np.asarray((1.0 / layer.smoothing).astype(np.float32)).reshape(-1)
        if node.op_type == "Conv":
            return factors.reshape(-1, *[1] * (len(layer.shape) - 2))
        return factors.reshape(-1, 1) if node.op_type == "Gemm" and _attribute(node, "transA", 0) else factors

    # --- biases

    def write_bias(self, place: int, layer: LayerPlan) -> None:
        node = self.editor.nodes[place]
        correction = layer.correction
        alpha, beta = (_attribute(node, name, 1.0) for name in ("alpha", "beta")) if node.op_type == "Gemm" else (1.0, 1.0)
        if correction is not None:
            correction = np.asarray(correction * np.float32(alpha), np.float32)
        if node.op_type == "MatMul":
            if correction is not None and not self._into_following_add(place, correction):
                self._add_behind(place, correction)
            return
        slot = BIASED[node.op_type]
        name = node.input[slot] if len(node.input) > slot else ""
        origin = self.editor.origin(name) if name else None
        if name and origin is None or beta == 0.0 or origin is not None and origin.name != name:
            if correction is not None:
                self._add_behind(place, correction)
            return
        bias = None if origin is None else self.editor.array(origin)
        if correction is not None:
            flat = correction.reshape(-1) / np.float32(beta)
            bias = flat if bias is None else np.asarray(bias + flat, np.float32)
        if bias is not None:
            self._write_bias_value(place, slot, layer, bias, alpha == beta == 1.0, correction is not None)

    def _write_bias_value(self, place: int, slot: int, layer: LayerPlan, bias: Array, plain: bool, changed: bool) -> None:
        """As integers where that is possible, since other runtimes compute the layer in integers only then."""
        editor, name = self.editor, f"{layer.label}_bias"
        step = _step_of_products(layer, bias) if plain and self._is_quantized_behind(place) else None
        steps = np.rint(bias.astype(np.float64) / step) if step is not None else np.array(np.inf)
        if step is not None and (np.abs(steps) < LARGEST_BIAS).all():
            operands = [editor.add_constant(f"{name}_quantized", steps.astype(np.int32)), editor.add_constant(f"{name}_scale", step),
                        editor.add_constant(f"{name}_zero_point", np.zeros(step.shape, np.int32))]
            editor.read_instead(place, slot, editor.add_node(place, "DequantizeLinear", operands, name, axis=0))
        elif changed:
            editor.read_instead(place, slot, editor.add_constant(name, bias))

    def _is_quantized_behind(self, place: int) -> bool:
        """Whether the node's result is read by a QuantizeLinear, at most an activation function between that rounding is one with."""
        name = self.editor.nodes[place].output[0]
        reader = self.editor.only_reader(name)
        if reader is not None and self.editor.nodes[reader].op_type in ("Relu", "Clip"):
            name = self.editor.nodes[reader].output[0]
        return name in self.quantized

    def _into_following_add(self, place: int, correction: Array) -> bool:
        """Adds the correction to the constant that the one node behind the layer adds, where there is such a node."""
        editor = self.editor
        name = editor.nodes[place].output[0]
        reader = editor.only_reader(name)
        if reader is None or editor.nodes[reader].op_type != "Add" or editor.nodes[reader].domain not in ("", "ai.onnx"):
            return False
        for slot, operand in enumerate(editor.nodes[reader].input):
            origin = editor.origin(operand)
            if origin is not None and origin.name == operand:
                bias = editor.array(origin)
                if bias.dtype == np.float32 and bias.size == correction.size and bias.ndim == 1:
                    changed = np.asarray(bias + correction.reshape(-1), np.float32)
                    editor.read_instead(reader, slot, editor.add_constant(f"{operand}_corrected", changed))
                    return True
        return False

    def _add_behind(self, place: int, correction: Array) -> None:
        """An Add behind the node, which makes what the node made before."""
        new, old = self.editor.rename_output(place, f"{self.editor.nodes[place].output[0]}_uncorrected")
        term = self.editor.add_constant(f"{old}_correction", correction)
        self.editor.add_node(place, "Add", [new, term], f"{old}_corrected", after=True, makes=old)


def _step_of_products(layer: LayerPlan, bias: Array) -> Array | None:
    """For each channel what one product of two integers stands for; None where the layer's products are none."""
    weights, activation = layer.weights, layer.activation
    assert weights is not None and activation is not None
    if activation.scale is None or weights.scale is None or weights.group or bias.ndim != 1 or weights.scale.size not in (1, bias.size):
        return None
    return np.asarray(activation.scale.reshape(()) * np.broadcast_to(weights.scale.reshape(-1), bias.shape), np.float32)


def moved_axes(rank: int, perms: tuple[tuple[int, ...], ...]) -> list[int]:
    """For each axis of a moved array the one that it was."""
    axes = np.arange(rank)
    for perm in perms:
        axes = axes[list(perm) if perm else slice(None, None, -1)]
    return [int(axis) for axis in axes]


def _first_axes(array: Array, rank: int) -> Array:
    """The array without axes of size 1 at its end."""
    return array.reshape(array.shape[:rank])


def _shaped(array: Array, shape: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(np.broadcast_to(array, shape) if len(shape) == array.ndim else array.reshape(shape))


def _attribute(node: Any, wanted: str, default: float) -> float:
    """A number that a node says, or what holds where it says nothing."""
    for attribute in node.attribute:
        if attribute.name == wanted:
            return float(attribute.f if attribute.type == FLOAT_ATTRIBUTE else attribute.i)
    return default


def _key(values: Array, scale: Array | None, point: Array | None, dtype: str, group: int) -> bytes:
    """What equal weights have in common."""
    state = blake2b(f"{dtype} {group} {values.shape}".encode(), digest_size=16)
    for array in (values, scale, point):
        state.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return state.digest()


__all__ = ["edited", "fitting", "write_onnx"]
