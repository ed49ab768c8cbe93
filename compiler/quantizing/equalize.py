"""Smoothing: the spread of an input's channels is moved into the weights, and the mean error of a layer into its bias.

A layer X W is the same as (X / s) (s W) for positive factors s of the channels. With s large where a channel of X is large, X
has fewer outliers to make room for, and weights, whose scales are their channels' own, take them better.

- SmoothQuant (Xiao et al., 2022): s = max|X|^a / max|W|^(1 - a), each over the channel.
- logarithmic (FPTQ, Li et al., 2023): s = max|X| / log2(2 + max|X|).
- best: of these the one of the least noise, with several a, or none, by an estimate that knows ranges and steps.

The division is folded into what makes X, through sums, products with constants and relu, down to the scale and bias of a normalization,
or the weights of the layer before. Where that cannot be, because something else reads X or because what makes it is not linear, it is
a multiplication before X is quantized, or is left out, as the recipe says, and where X is a mean over places (`_is_pooled`).

Bias correction (Nagel et al., Data-free quantization through weight equalization and bias correction, 2019): what rounding the
weights adds to the result on average is known from the mean of X, and is subtracted.

Guarantees: the graph with the folds computes what the float graph does, but for roundings; factors are powers of two, so that
even these are the same wherever nothing overflows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..ir.errors import UNKNOWN
from ..ir.graph import Array, Builder, Graph, Node
from ..ir.ops.compute import Conv, Elementwise, Reduce
from ..ir.ops.control import Composite, Const
from ..ir.ops.shape import Broadcast, Reshape
from ..ir.rewrite import rewrite_graph
from ..library import apply, constant
from .calibration import Input, Statistics
from .layers import Layer
from .plan import Fold
from .recipes import Recipe

Folds = tuple[Fold, ...]
STRENGTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # of SmoothQuant, that are tried
DEEPEST_CHAIN = 8  # nodes between a layer and what takes up its factors
NORMALIZATIONS = {"layer_norm": (1, 2), "rms_norm": (1,)}  # composite -> operands that scale and shift its channels


def best_factors(recipe: Recipe, seen: Input, weights: Array, group: Sequence[Layer]) -> Array | None:
    """The factors of the least noise estimated; None where that is least without any."""
    tried = [smoothing_factors(replace(recipe, smoothing="smoothquant", strength=strength), seen.largest, weights)
             for strength in STRENGTHS]
    tried.append(smoothing_factors(replace(recipe, smoothing="logarithmic"), seen.largest, weights))
    best = min(tried, key=lambda factors: estimated_noise(seen, factors, group))
    return best if estimated_noise(seen, best, group) < estimated_noise(seen, np.ones_like(best), group) else None


def estimated_noise(seen: Input, factors: Array, group: Sequence[Layer]) -> float:
    """The squared error of the layers' results, as if rounding added to each number independently, evenly within its step: the input in
    256 steps over its range, the weights of an output channel in 254 over twice the largest."""
    step = (float((seen.highest / factors).max()) - float((seen.lowest / factors).min())) / 255
    noise = 0.0
    for layer in group:
        channels = layer.row_channels()
        weights = layer.matrix() * factors[channels][:, :, np.newaxis]
        steps = np.abs(weights).max(axis=1) / 127
        squares = (seen.mean_squares / factors.astype(np.float64) ** 2)[channels]
        noise += step ** 2 * float(np.square(weights, dtype=np.float64).sum())
        noise += float((squares.sum(axis=1)[:, np.newaxis] * steps.astype(np.float64) ** 2).sum())
    return noise / 12


def smoothing_factors(recipe: Recipe, inputs: Array, weights: Array) -> Array:
    """Factors from the largest sizes in each channel of the input and of the weights, 1 for a channel that is always 0."""
    used = (inputs > 0) & (weights > 0)
    inputs, weights = np.where(used, inputs, 1.0).astype(np.float64), np.where(used, weights, 1.0).astype(np.float64)
    if recipe.smoothing == "smoothquant":
        factors = inputs ** recipe.strength / weights ** (1 - recipe.strength)
    else:
        factors = inputs / np.log2(2 + inputs)
    factors = np.where(used, factors, 1.0)
    # around 1 on average, so that neither side leaves the range of normal numbers; and powers of two, which round nothing
    factors = factors / np.exp(np.log(factors).mean()) if factors.size else factors
    return np.exp2(np.round(np.log2(factors))).astype(np.float32)


class Smoothing(Struct, frozen=True, eq=False):
    """The factors of layers by label, and the folds of those that neighbours take up; the `others` are multiplied at run time."""

    factors: dict[str, Array]
    folds: Folds
    others: frozenset[str]


def find_smoothing(graph: Graph, layers: Sequence[Layer], statistics: Statistics, recipe: Recipe) -> Smoothing:
    """The factors of all layers that can be smoothed."""
    users = graph.users()
    readers: dict[Node, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.source, []).append(layer)
    finder = _Finder(graph, users, layers)
    folds: list[Fold] = []
    factors: dict[str, Array] = {}
    others: set[str] = set()
    for source, group in readers.items():
        if not _are_alike(group):
            continue
        weights = np.max([_largest_weights(layer) for layer in group], axis=0)
        seen = statistics.of(group[0])
        found = (best_factors(recipe, seen, weights, group) if recipe.smoothing == "best"
                 else smoothing_factors(recipe, seen.largest, weights))
        if found is None:
            continue
        taken = finder.take_up(source, found, group)
        if taken is None and (not recipe.multiply or _is_pooled(source)):
            continue
        if taken is None:
            others.update(layer.label for layer in group)
        folds += taken or ()
        factors.update((layer.label, found) for layer in group)
    return Smoothing(factors, tuple(folds), frozenset(others))


def _is_pooled(node: Node) -> bool:
    """Whether a value is a mean over places, or a movement of one. OpenVINO (2026.4) multiplies wrong channels of such ones."""
    for _ in range(DEEPEST_CHAIN):
        if isinstance(node.op, Reduce):
            return True
        if not isinstance(node.op, Reshape) and node.op != Elementwise("div"):
            return False
        node = node.inputs[0]
    return False


def smoothed(graph: Graph, layers: Sequence[Layer], smoothing: Smoothing) -> Graph:
    """The float graph in which layers whose smoothing is not folded divide their inputs, and have the factors in their weights."""
    chosen = {layer.node: layer for layer in layers if layer.label in smoothing.others}

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        layer = chosen.get(node)
        if layer is None:
            return None
        factors = smoothing.factors[layer.label]
        x = apply(b, "mul", inputs[0], constant(b, (1.0 / factors).reshape(layer.channel_shape())))
        weights = layer.stored(layer.matrix() * factors[layer.row_channels()][:, :, np.newaxis])
        return b.add(node.op, x, constant(b, layer.as_read(weights)))

    return rewrite_graph(graph, visit, "smooth") if chosen else graph


def _are_alike(group: Sequence[Layer]) -> bool:
    """Whether layers have one row of weights for each channel of what they read, along the same axis."""
    return all(layer.can_smooth and not layer.as_operand and layer.channel_shape() == group[0].channel_shape() for layer in group)


def _largest_weights(layer: Layer) -> Array:
    """The largest weight of each channel of the input."""
    largest = np.zeros(layer.channels, np.float32)
    np.maximum.at(largest, layer.row_channels().reshape(-1), np.abs(layer.matrix()).max(axis=2).reshape(-1))
    return largest


class _Finder:
    """Looks for what can take up factors. Each constant is changed at one place only, which its fold names."""

    def __init__(self, graph: Graph, users: Mapping[Node, Sequence[Node]], layers: Sequence[Layer]) -> None:
        self.users = users
        self.layers = {layer.node: layer for layer in layers}
        self.reads: dict[tuple[str, str], int] = {}
        self.results = set(graph.results)
        for node in graph.nodes():
            for operand in dict.fromkeys(node.inputs):
                if isinstance(operand.op, Const):
                    key = str(node.loc), operand.op.value.digest
                    self.reads[key] = self.reads.get(key, 0) + 1

    def take_up(self, source: Node, factors: Array, group: Sequence[Layer]) -> list[Fold] | None:
        """The folds that divide `source` by factors and multiply the weights of the layers that read it; None where it cannot be."""
        mine = {layer.node for layer in group}
        if source in self.results or any(user not in mine for user in self.users[source]):
            return None
        shape = group[0].channel_shape()
        before = self._divided(source, (1.0 / factors).reshape(shape))
        if before is None:
            return None
        after = []
        for layer in group:
            wide = factors[layer.row_channels()][:, :, np.newaxis]
            matrix = np.broadcast_to(wide, (layer.groups, layer.depth, layer.width // layer.groups))
            after.append(self._fold(layer.reader, layer.node.inputs[1] if layer.reader is layer.node else layer.reader.inputs[0],
                                    _narrowed(layer.stored(np.ascontiguousarray(matrix)))))
        return None if any(fold is None for fold in after) else [*before, *filter(None, after)]

    def _fold(self, reader: Node, operand: Node, factor: Array) -> Fold | None:
        """The fold of a constant that is read at one place, or None."""
        if not isinstance(operand.op, Const) or reader.loc == UNKNOWN:
            return None
        key = str(reader.loc), operand.op.value.digest
        return Fold(*key, factor.astype(np.float32)) if self.reads[key] == 1 else None

    def _divided(self, node: Node, factor: Array) -> list[Fold] | None:
        """The folds that multiply a value by `factor`, which broadcasts against it."""
        folds: list[Fold] = []
        for _ in range(DEEPEST_CHAIN):
            layer = self.layers.get(node)
            if layer is not None:
                fold = self._weights_before(layer, factor)
                return None if fold is None else [*folds, fold]
            match node.op:
                case Composite(label=label) if label in NORMALIZATIONS:
                    made = [self._shaped(node, node.inputs[place], factor) for place in NORMALIZATIONS[label]]
                    return None if any(fold is None for fold in made) else [*folds, *filter(None, made)]
                case Elementwise("add" | "sub" | "mul" | "max" as function):
                    rest, own = self._constant_side(node)
                    if rest is None or own is None:
                        return None
                    if function == "max":
                        if not _is_zero(own):
                            return None
                    else:
                        made_here = self._broadcast(node, own, factor)
                        if made_here is None:
                            return None
                        folds.append(made_here)
                    if function == "mul":
                        return folds
                    node = rest
                case _:
                    return None
            if len(self.users[node]) != 1 or node in self.results:
                return None
        return None

    def _constant_side(self, node: Node) -> tuple[Node | None, Node | None]:
        """The operand that is computed, and the one that is a constant, which may be spread; None for what is not there."""
        left, right = node.inputs
        if _behind(right) is not None:
            return left, right
        if _behind(left) is not None and node.op != Elementwise("sub"):
            return right, left
        return None, None

    def _broadcast(self, node: Node, operand: Node, factor: Array) -> Fold | None:
        """The fold of a constant that `node` reads, itself or through a broadcast of its own."""
        reader = node
        while not isinstance(operand.op, Const):
            if len(self.users[operand]) != 1:
                return None
            reader, operand = operand, operand.inputs[0]
            if isinstance(reader.op, Reshape):
                return None
        return self._shaped(reader, operand, factor)

    def _shaped(self, reader: Node, operand: Node, factor: Array) -> Fold | None:
        """The fold of a constant whose shape the factor fits, with leading axes of size 1 left out."""
        if not isinstance(operand.op, Const):
            return None
        shape = operand.op.value.array.shape
        lead = factor.ndim - len(shape)
        if lead < 0:
            factor = factor.reshape((1,) * -lead + factor.shape)
        elif any(n != 1 for n in factor.shape[:lead]):
            return None
        else:
            factor = factor.reshape(factor.shape[lead:])
        fits = all(ours in (1, theirs) for ours, theirs in zip(factor.shape, shape))
        return self._fold(reader, operand, factor) if fits else None

    def _weights_before(self, layer: Layer, factor: Array) -> Fold | None:
        """The fold that multiplies the output channels of the layer before."""
        first = isinstance(layer.node.op, Conv) and not layer.node.op.channels_last
        if layer.as_operand or factor.size != layer.width or factor.shape[1 if first else -1] != factor.size:
            return None
        wide = np.broadcast_to(factor.reshape(layer.groups, 1, -1), (layer.groups, layer.depth, layer.width // layer.groups))
        operand = layer.node.inputs[1] if layer.reader is layer.node else layer.reader.inputs[0]
        return self._fold(layer.reader, operand, _narrowed(layer.stored(np.ascontiguousarray(wide))))


def _behind(node: Node) -> Array | None:
    """The constant behind broadcasts and reshapes."""
    while isinstance(node.op, (Broadcast, Reshape)):
        node = node.inputs[0]
    return node.op.value.array if isinstance(node.op, Const) else None


def _is_zero(node: Node) -> bool:
    value = _behind(node)
    return value is not None and not value.any()


def _narrowed(array: Array) -> Array:
    """With size 1 along the axes where nothing changes."""
    for axis in range(array.ndim):
        first = array.take([0], axis) if array.shape[axis] else array
        if array.shape[axis] > 1 and np.array_equal(np.broadcast_to(first, array.shape), array):
            array = first
    return np.ascontiguousarray(array)


def bias_correction(mean: Array, weights: Array, mean_quantized: Array, quantized: Array) -> Array:
    """What to add to a layer's result [groups * N]: the mean of X W less that of X_q W_q, by means of rows [groups, K]. Where only the
    weights were quantized both means are the same."""
    wanted = np.einsum("gk,gkn->gn", mean, weights.astype(np.float64))
    found = np.einsum("gk,gkn->gn", mean_quantized, quantized.astype(np.float64))
    return np.asarray((wanted - found).reshape(-1), np.float32)
