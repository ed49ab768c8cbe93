"""Products with constant weights that are integers times scales keep the integers: `dot` becomes `weight_only_dot`.

What a front end makes of quantized weights (blocks of a few bits, integers per channel) is arithmetic on constants: integers less
their zero points, as floats, times scales, moved to where the contraction wants them. It would be folded into a matrix of floats.
This pass runs before that. It looks for the product, evaluates both factors, and finds by their values how many steps share a scale
(a group), how many bits the integers of a group span, and from which number on. So it does not matter who made the graph, and it is
exact: each weight is (code - zero) * scale with the very integers and scales of the graph.

Left as floats: groups that do not fill whole words or are shorter than LEAST_GROUP, spans of more than 8 bits, scales that are not
finite, float64, and products that many rows have with a matrix that stays in the second level of memory, where decoding would only cost
time; on a GPU those of so many rows that its units limit them.

Contract: finite and bounded. A weight is not rounded before it is multiplied; sums of a group are of codes, less the group's zero
times the sum of its activations (`ir/ops/weight_only.py`). Only `precision="default"` allows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import bounds, product
from ..ir.errors import TilewrightError
from ..ir.graph import Array, Builder, Graph, Node
from ..ir.ops.compute import Cast, Dot, Elementwise
from ..ir.ops.control import Const, Param
from ..ir.ops.shape import Broadcast, Reshape, Slice, Transpose
from ..ir.ops.weight_only import CODE_BITS, FLOATS, WORD, WeightOnlyDot, words_of_codes
from ..ir.rewrite import rewrite_graph
from ..ir.types import F16, F32, TensorType
from ..library import constant, reshape, transpose
from ..library_quantized import is_dequantize
from ..options import Options
from ..tiles import gpu_code_columns

LEAST_GROUP = 16     # steps that share a scale
LEAST_WEIGHTS = 256  # that are worth a kernel of their own
MANY_ROWS = 32       # which gain nothing by weights that are near anyway
MANY_ROWS_OF_UNITS = 256  # which a GPU multiplies no slower with wide weights
MOST_NODES = 64      # that weights are made of
ROUNDING = 2.0**-20  # of a zero point that is no whole number
MOVES = (Transpose, Reshape, Slice, Broadcast)


def keep_weights_narrow(graph: Graph, options: Options, caps: Caps) -> Graph:
    """See the module's text."""
    if options.precision != "default":
        return graph

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        return _narrow_dot(b, node.op, inputs[0], inputs[1], caps) if isinstance(node.op, Dot) else None

    return rewrite_graph(graph, visit, "weight_only", bodies=True)


def _narrow_dot(b: Builder, op: Dot, lhs: Node, rhs: Node, caps: Caps) -> Node | None:
    if op.lhs_batch or op.result is not None or lhs.dtype not in FLOATS:
        return None
    if not rhs.tensor.is_static or 0 in (*lhs.shape, *rhs.shape):
        return None
    free_left = [a for a in range(lhs.rank) if a not in op.lhs_contract]
    free_right = [a for a in range(rhs.rank) if a not in op.rhs_contract]
    rows, columns = tuple(lhs.shape[a] for a in free_left), tuple(rhs.shape[a] for a in free_right)
    size = int(product(rhs.shape))
    if size < LEAST_WEIGHTS or _gains_nothing(bounds(product(rows))[0], size, caps):
        return None
    factors = factors_of(rhs)
    if factors is None:
        return None
    order = [*op.rhs_contract, *free_right]
    depth, width = int(product(rhs.shape[a] for a in op.rhs_contract)), int(product(columns))
    integers, scales = (np.transpose(a, order).reshape(depth, width) for a in factors)
    codes = codes_of(integers, scales)
    if codes is None:
        return None
    left = reshape(b, transpose(b, lhs, [*free_left, *op.lhs_contract]), (*rows, depth))
    return reshape(b, packed_codes(b, left, codes, width, caps), (*rows, *columns))


def _gains_nothing(rows: float, size: int, caps: Caps) -> bool:
    """Whether there are so many rows that decoding would only cost time: where weights are near, or, on a GPU, where a product is bound by
    its units."""
    return rows >= MANY_ROWS_OF_UNITS if caps.is_gpu else rows >= MANY_ROWS and size * F32.bytes <= caps.level2_bytes


# --- finding the factors ---------------------------------------------------------------------------------------------


def factors_of(node: Node) -> tuple[Array, Array] | None:
    """The integers and the scales whose product a constant node is, both in its shape."""
    moves: list[Node] = []
    while isinstance(node.op, (*MOVES, Cast)):
        if isinstance(node.op, Cast) and not node.inputs[0].dtype.is_float:
            return None
        moves.append(node)
        node = node.inputs[0]
    try:
        found = _of_composite(node) if is_dequantize(node) else _of_product(node)
        if found is None:
            return None
        for move in reversed(moves):
            found = tuple(a if isinstance(move.op, Cast) else np.asarray(move.op.evaluate((a,), {})) for a in found)  # type: ignore[assignment]  # still two
    except TilewrightError:
        return None
    return found


def _of_product(node: Node) -> tuple[Array, Array] | None:
    """The factors of a product of constants, one of which is made of integers."""
    if not isinstance(node.op, Elementwise) or node.op.function != "mul" or node.dtype not in FLOATS:
        return None
    integers, scales = node.inputs
    if not _holds_integers(integers):
        integers, scales = scales, integers
    if not _holds_integers(integers) or _holds_integers(scales):
        return None
    order = constant_nodes(node)
    if order is None:
        return None
    values = _evaluate(order)
    return values[integers], values[scales]


def _of_composite(node: Node) -> tuple[Array, Array] | None:
    """The integers less their zero points, and the scales, of a `dequantize` of constants."""
    orders = [constant_nodes(x) for x in node.inputs]
    if node.dtype not in FLOATS or any(order is None for order in orders):
        return None
    value, scale, *points = (_evaluate(order)[x] for x, order in zip(node.inputs, orders) if order is not None)
    integers = value.astype(np.int32) - (points[0].astype(np.int32) if points else 0)
    return integers, np.broadcast_to(scale, integers.shape)


def constant_nodes(root: Node) -> list[Node] | None:
    """What a node is made of, operands first; None where that is not constants alone."""
    order: dict[Node, None] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        waiting = [i for i in node.inputs if i not in order]
        if isinstance(node.op, Param) or node.op.effect or not isinstance(node.type, TensorType) or not node.type.is_static:
            return None
        if len(order) + len(stack) > MOST_NODES:
            return None
        if waiting:
            stack += waiting
            continue
        stack.pop()
        order[node] = None
    return list(order)


def _evaluate(order: Sequence[Node]) -> dict[Node, Array]:
    values: dict[Node, Array] = {}
    for node in order:
        values[node] = np.asarray(node.op.evaluate([values[i] for i in node.inputs], {}))
    return values


def _holds_integers(node: Node) -> bool:
    """Whether a factor is integers as floats, moved and less a zero point perhaps."""
    while isinstance(node.op, MOVES) or isinstance(node.op, Elementwise) and node.op.function == "sub" or (
            isinstance(node.op, Cast) and node.inputs[0].dtype.is_float):
        node = node.inputs[0]
    return isinstance(node.op, Cast) or isinstance(node.op, Const) and node.dtype.is_integer


# --- codes -----------------------------------------------------------------------------------------------------------


class Codes(Struct):
    """Codes [groups * group, N], scales [groups, N], zero points like these or None; `zero` is the number that all have."""

    bits: int
    group: int
    zero: int
    codes: Array
    scales: Array
    points: Array | None


def codes_of(integers: Array, scales: Array) -> Codes | None:
    """Weights [K, N] = integers * scales as codes of the fewest bits; None where there are none, or where numbers are not finite, so that
    a scale may multiply a sum of codes."""
    depth = len(integers)
    changes = np.flatnonzero((scales[1:] != scales[:-1]).any(axis=1)) + 1
    group = math.gcd(*changes.tolist()) if len(changes) else depth
    if group < min(LEAST_GROUP, depth):
        return None
    values = integers.astype(np.float32)
    if not (np.isfinite(values).all() and np.isfinite(scales).all()):
        return None
    ends = range(0, depth, group)
    least, most = (function.reduceat(values, ends, axis=0) for function in (np.minimum, np.maximum))
    bits_of_all, bits_apart = _bits(float(most.max() - least.min())), _bits(float((most - least).max()))
    whole = bool((values == np.rint(values)).all())
    points: Array | None = None
    if whole and bits_of_all is not None and bits_of_all == bits_apart:
        bits, zero = bits_of_all, -int(least.min())
        middle = 1 << bits - 1
        if zero <= middle and most.max() < middle:
            zero = middle
        codes = values + zero
    elif bits_apart is not None:
        bits, zero = bits_apart, 128 if bits_apart == 8 else 0
        first = np.where((least > 0) & (most < 1 << bits), 0, least)  # zero points that are usual are narrow
        exact = values - np.repeat(first, group, axis=0)[:depth]
        codes = np.rint(exact)
        if np.abs(codes - exact).max() > ROUNDING * (1 << bits):
            return None
        points = -first - np.float32(zero)
    else:
        return None
    if group == depth:
        group = -(-depth // (WORD // bits)) * (WORD // bits)
    if group * bits % WORD:
        return None
    padded = np.zeros((len(least) * group, values.shape[1]), np.uint8)
    padded[:depth] = codes
    return Codes(bits, group, zero, padded, np.ascontiguousarray(scales[::min(group, depth)]), points)


def _bits(span: float) -> int | None:
    """The bits of codes for numbers that lie so far apart."""
    return next((bits for bits in CODE_BITS if span < 1 << bits), None)


def packed_codes(b: Builder, left: Node, found: Codes, width: int, caps: Caps) -> Node:
    """The op with its operands in panels of a few vectors of columns, as lowering has register tiles for."""
    lanes = caps.lanes(F32)
    vectors = min(3 if caps.vector_registers >= 32 else 2, -(-width // lanes))
    columns = gpu_code_columns(width, caps) if caps.is_gpu else lanes * vectors
    words = words_of_codes(_panels(found.codes, columns), found.bits)
    scales = found.scales
    if scales.dtype == F32.numpy and caps.has_fma and _is_narrow(scales):  # where halves cost nothing to read
        scales = scales.astype(F16.numpy)
    points = found.points
    if points is not None:
        whole = bool((points == np.rint(points)).all())
        for kind in (np.uint8, np.int8):
            if whole and np.iinfo(kind).min <= points.min() and points.max() <= np.iinfo(kind).max:
                points = points.astype(kind)
                break
    operands = [words, *(_panels(a, columns) for a in (scales, points) if a is not None)]
    return b.add(WeightOnlyDot(width, found.bits, found.group, found.zero), left, *(constant(b, a) for a in operands))


def _is_narrow(scales: Array) -> bool:
    """Whether halves hold the very same numbers."""
    with np.errstate(all="ignore"):
        return bool((scales.astype(F16.numpy).astype(F32.numpy) == scales).all())


def _panels(array: Array, columns: int) -> Array:
    """[steps, N] -> [panels, steps, columns], with zeros past N."""
    steps, width = array.shape
    count = -(-width // columns)
    padded = np.zeros((steps, count * columns), array.dtype)
    padded[:, :width] = array
    return np.ascontiguousarray(padded.reshape(steps, count, columns).transpose(1, 0, 2))
