"""Takes constant factors behind contractions out of what is computed for each element.

A contraction with constant weights whose result is only multiplied, divided and moved by constants of a channel (a batch
normalization, a scaled score) becomes the contraction with weights that hold the factors, and one addition.

Contract: reassoc, since each weight is rounded once more, and finite, since a sum that overflows may be made small before.
Weights that would no longer be finite or normal are left as they are, and bfloat16 beside bfloat16, which is multiplied faster than
what they would become. `precision="plain"` and `"strict"` forbid it: a contraction is the sum that it is.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from ..ir.graph import Array, Builder, Constant, Graph, Node
from ..ir.ops.compute import Conv, Dot, Elementwise
from ..ir.ops.control import Const
from ..ir.ops.shape import Broadcast
from ..ir.rewrite import rewrite_graph, uniform_value
from ..ir.types import F32, F64
from ..library import broadcast, constant, scalar
from ..options import Options
from .pack_bfloats import is_made_of_bfloats
from .winograd import known_array


class _Chain(Struct):
    """What follows a contraction: the last of `steps` is its result times `scale` plus `offset`, numbers of each channel or one
    number for all."""

    core: Node
    steps: list[Node]
    scale: Array
    offset: Array
    weights: Array


def fold_scales(graph: Graph, options: Options) -> Graph:
    """See the module's text."""
    if options.precision != "default" or not any(isinstance(node.op, (Conv, Dot)) for node in graph.nodes()):
        return graph
    users = graph.users()
    chains = [c for c in (_chain(node, graph, users) for node in graph.nodes() if isinstance(node.op, (Conv, Dot))) if c]
    cores = {c.core: c for c in chains}
    steps = {step: c for c in chains for step in c.steps}

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        if node in cores and not (cores[node].scale == 1).all():
            return b.add(node.op, inputs[0], b.add(Const(Constant(cores[node].weights))))
        if node in steps:
            chain = steps[node]
            before = chain.steps[chain.steps.index(node) - 1] if node is not chain.steps[0] else chain.core
            value = inputs[node.inputs.index(before)]
            return _moved(b, chain, value) if node is chain.steps[-1] else value
        return None

    return rewrite_graph(graph, visit, "fold_scales")


# --- factors and offsets of channels -----------------------------------------------------------------------------------


def _chain(core: Node, graph: Graph, users: dict[Node, list[Node]]) -> _Chain | None:
    """The steps behind a contraction, and the weights that hold their factors; None where there is none, or one offset."""
    weights, axis = _weights(core)
    if weights is None:
        return None
    scale, offset = np.ones(1), np.zeros(1)
    steps: list[Node] = []
    found = None
    node, results = core, set(graph.results)
    while node not in results and len(users[node]) == 1:
        node, before = users[node][0], node
        step = _affine(node, before, axis)
        if step is None:
            break
        factor, moved = step
        with np.errstate(all="ignore"):
            scale, offset = scale * factor, offset * factor + moved
        steps.append(node)
        if found is not None or len(steps) > 1 or not (factor == 1).all():
            found = len(steps), scale, offset
    if found is None:
        return None
    count, scale, offset = found
    scaled: Array | None = weights
    if not (scale == 1).all():
        scaled = None if is_made_of_bfloats(core.inputs[0]) else scaled_weights(weights, scale, axis[1])
    fits = scaled is not None and np.isfinite(offset.astype(weights.dtype)).all()
    return _Chain(core, steps[:count], scale, offset, scaled) if scaled is not None and fits else None


def _weights(core: Node) -> tuple[Array | None, tuple[int, int]]:
    """The constant right operand, where it can hold factors; and the axis of the channels in the result and in the weights."""
    op, w = core.op, core.inputs[1]
    if core.dtype not in (F32, F64):
        return None, (0, 0)
    if isinstance(op, Conv):
        axes = (core.rank - 1, w.rank - 1) if op.channels_last else (1, 0)
    else:
        assert isinstance(op, Dot)
        free = [a for a in range(w.rank) if a not in op.rhs_batch + op.rhs_contract]
        if not free:
            return None, (0, 0)
        axes = (core.rank - 1, free[-1])
    return known_array(w), axes


def _affine(node: Node, before: Node, axes: tuple[int, int]) -> tuple[Array, Array] | None:
    """The factor and offset of a step for each channel."""
    if not isinstance(node.op, Elementwise) or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is before
    known = _of_channels(node.inputs[1] if first else node.inputs[0], axes[0])
    if known is None:
        return None
    match node.op.function:
        case "mul":
            return known, np.zeros(1)
        case "add":
            return np.ones(1), known
        case "sub":
            return (np.ones(1), -known) if first else (-np.ones(1), known)
        case "div" if first and (known != 0).all():
            return 1 / known, np.zeros(1)
    return None


def _of_channels(node: Node, axis: int) -> Array | None:
    """The constant as one number, or one for each place along the axis; None where it is neither."""
    element = uniform_value(node)
    if element is not None:
        return np.array([element], np.float64)
    source = node.inputs[0] if isinstance(node.op, Broadcast) else node
    if not isinstance(source.op, Const):
        return None
    place = axis - (node.rank - source.rank)
    if any(n != 1 for a, n in enumerate(source.shape) if a != place):
        return None
    return source.op.value.array.reshape(-1).astype(np.float64)


def scaled_weights(weights: Array, scale: Array, axis: int) -> Array | None:
    """The weights times the factors along an axis, rounded once; None where one would be infinite, or lose digits to underflow."""
    shape = [1] * weights.ndim
    shape[axis] = -1
    least = np.finfo(weights.dtype).tiny
    with np.errstate(all="ignore"):
        made = (weights * scale.reshape(shape)).astype(weights.dtype)
    lost = (abs(made) < least) & (abs(weights) >= least) & (scale.reshape(shape) != 0)
    return made if np.isfinite(made).all() and not lost.any() else None


def _moved(b: Builder, chain: _Chain, value: Node) -> Node:
    """The value plus the offsets."""
    if not chain.offset.any():
        return value
    _, axes = _weights(chain.core)
    shape = [1] * value.rank
    shape[axes[0]] = len(chain.offset)
    offset = constant(b, chain.offset.reshape(shape), value.dtype)
    return scalar(b, "add", value, broadcast(b, offset, value.shape))


__all__ = ["fold_scales", "scaled_weights"]
