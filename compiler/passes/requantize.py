"""Rounding to steps of a scale without a division, and without bytes that nothing keeps.

A core divides at a fifth of the rate at which it multiplies, and `quantize` divides each element. Where the scale is known, and
neither it nor its reciprocal lies near the ends of the range, elements are multiplied by the reciprocal instead; numbers that they
were multiplied or divided by just before go into it. What is quantized and dequantized at once never becomes an integer: it
is rounded and limited as a float. The pass `lower_quantized` asks for all of it.

Contract: bounded. The quotient is off by a few units in the last place, so that a number between two steps may go to the other one;
what is a whole number of steps already stays that. NaN becomes the least step and infinities the last ones, as before. A zero
that never was an integer may be a negative one.
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Builder, Graph, Node
from ..ir.ops.compute import Elementwise
from ..ir.rewrite import rewrite_graph, uniform_value
from ..ir.types import F32
from ..library import apply, cast, constant, scalar
from ..library_quantized import is_dequantize, is_quantize, saturated
from .share_divisors import find_decisive
from .winograd import known_array

FAR = 2.0**64  # scales up to here, and their reciprocals, are normal numbers


def requantize(graph: Graph, name: str) -> Graph:
    """See the module's text; `name` is that of the pass."""
    return rewrite_graph(rewrite_graph(graph, _round_trip, name), _without_division, name)


def multiply_by_reciprocals(graph: Graph, name: str) -> Graph:
    """Quotients by numbers as products, of a graph whose contractions are still those of floats."""
    decisive = find_decisive(graph)
    return rewrite_graph(graph, lambda b, node, inputs: None if node in decisive else _quotient(b, node, inputs), name)


def _quotient(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
    """x / number as a product."""
    if not isinstance(node.op, Elementwise) or node.op.function != "div" or node.dtype != F32:
        return None
    number = uniform_value(inputs[1])
    if number is None or not _is_normal(np.asarray(number)):
        return None
    return apply(b, "mul", inputs[0], constant(b, 1 / np.float64(number), F32))


def _round_trip(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
    """What is quantized and dequantized at once, as a float."""
    if not is_dequantize(node) or not is_quantize(inputs[0]):
        return None
    x, *parameters = inputs[0].inputs
    if parameters != list(inputs[1:]) or x.dtype != F32 or node.dtype != F32:
        return None
    scale, *points = parameters
    limits = np.iinfo(inputs[0].dtype.numpy)
    point = uniform_value(points[0]) if points else np.int64(0)
    whole = _in_steps(b, x, scale) or apply(b, "div", x, scale)
    if point is not None:  # rounding goes to a limit exactly where the number is beyond it
        for function, limit in (("fmax", limits.min), ("fmin", limits.max)):
            whole = apply(b, function, whole, constant(b, int(limit) - int(point), F32))
        return apply(b, "mul", scalar(b, "round", whole), scale)
    shift = cast(b, points[0], F32)
    whole = apply(b, "add", scalar(b, "round", whole), shift)
    for function, limit in (("fmax", limits.min), ("fmin", limits.max)):
        whole = apply(b, function, whole, constant(b, int(limit), F32))
    return apply(b, "mul", apply(b, "sub", whole, shift), scale)


def _without_division(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
    """`quantize` by a known scale."""
    if not is_quantize(node) or inputs[0].dtype != F32:
        return None
    x, scale, *points = inputs
    steps = _in_steps(b, x, scale)
    if steps is None:
        return None
    whole = scalar(b, "round", steps)
    return saturated(b, apply(b, "add", whole, cast(b, points[0], F32)) if points else whole, node.dtype)


def _in_steps(b: Builder, x: Node, scale: Node) -> Node | None:
    """x / scale as a product; None where the scale is not known, or has no exact enough reciprocal."""
    array = known_array(scale)
    if array is None:
        number = uniform_value(scale)
        array = None if number is None else np.asarray(number)
    if array is None or not _is_normal(array):
        return None
    factors = 1 / array.astype(np.float64)
    while (inner := _multiplied(x)) is not None and _is_normal(factors * inner[1]):
        x, factors = inner[0], factors * inner[1]
    return apply(b, "mul", x, constant(b, factors.astype(np.float32), F32))


def _is_normal(factors: np.ndarray) -> bool:
    return bool(np.all((np.abs(factors) >= 1 / FAR) & (np.abs(factors) <= FAR)))


def _multiplied(x: Node) -> tuple[Node, float] | None:
    """What a product or quotient by a number is made of: the other operand, and its factor."""
    if not isinstance(x.op, Elementwise) or x.op.function not in ("mul", "div"):
        return None
    left, right = x.inputs
    number = uniform_value(right)
    if number is None and x.op.function == "mul":
        left, number = right, uniform_value(left)
    if number is None or number == 0:
        return None
    return left, float(number) if x.op.function == "mul" else 1 / float(number)
