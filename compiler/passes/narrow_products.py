"""Products of quantized activations with constant weights of at most 4 bits: bytes meet the codes as they are.

Weights of a few bits mostly have a scale for each group of some steps, so the sum of all products is no sum of integers; that of a
group is. Where the left operand of a `dot` is a `dequantize` of bytes whose scale is one number for each row, and the right one such
weights, `weight_only_dot` takes the bytes: sums of groups are exact and scaled, and the scale of the row multiplies the result (Frantar
et al. call such products W4A8). The graph says that activations are quantized; nothing here decides so.

Activations are multiplied as signed bytes. A zero point of theirs (unsigned bytes have one of 128 less) is subtracted by way of the
columns' sums of dequantized weights, which are constants.

Left as they are: weights that `lower_quantized` multiplies as bytes, since they are bytes in the graph and have one scale a column;
products that the target has no instruction for, as of GPUs those with groups of other than multiples of 16 steps; constant scales that
are not finite; codes whose sums an int32 does not hold, for their common zero; whatever `weight_only` leaves as floats for its groups.

Contract: finite and bounded, as of `weight_only`: sums of groups are exact where the float ones round each term.
Only `precision="default"` allows it.
"""

from __future__ import annotations

import numpy as np

from ..ir.caps import Caps
from ..ir.dims import DimLike, product
from ..ir.graph import Array, Builder, Graph, Node
from ..ir.ops.compute import Bitcast, Dot
from ..ir.ops.control import Const
from ..ir.ops.weight_only import BYTE_CODES, sums_fit
from ..ir.rewrite import rewrite_graph
from ..ir.types import F32, I8, U8
from ..library import apply, cast, constant, pad, reshape, transpose
from ..library_quantized import is_dequantize
from ..options import Options
from .lower_quantized import Form, form_of, may_meet_sums
from .weight_only import LEAST_WEIGHTS, Codes, codes_of, factors_of, packed_codes

SIGN = 128      # between an unsigned byte and a signed one
GPU_STEPS = 16  # that matrix units of GPUs multiply at a time, or more: groups consist of those


def narrow_products(graph: Graph, options: Options, caps: Caps) -> Graph:
    """See the module's text."""
    on_units = caps.is_gpu and str(I8) in caps.matrix_units
    if options.precision != "default" or not (on_units if caps.is_gpu else caps.has_byte_pairs or caps.has_quads):
        return graph

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        return _narrow(b, node.op, inputs[0], inputs[1], caps) if isinstance(node.op, Dot) else None

    return rewrite_graph(graph, visit, "narrow_products", bodies=True)


def _narrow(b: Builder, op: Dot, lhs: Node, rhs: Node, caps: Caps) -> Node | None:
    if op.lhs_batch or op.result is not None or lhs.dtype != F32 or not rhs.tensor.is_static or 0 in (*lhs.shape, *rhs.shape):
        return None
    if not _may_be_bytes(lhs) or int(product(rhs.shape)) < LEAST_WEIGHTS:
        return None
    left = form_of(b, lhs)
    if left is None or not may_meet_sums(left.scale):
        return None
    if any(x.shape[a] != 1 for x in (left.scale, left.zero_point) if x is not None for a in op.lhs_contract):
        return None
    free_right = [a for a in range(rhs.rank) if a not in op.rhs_contract]
    depth, columns = int(product(rhs.shape[a] for a in op.rhs_contract)), tuple(rhs.shape[a] for a in free_right)
    factors = factors_of(rhs)
    if factors is None:
        return None
    integers, scales = (np.transpose(a, [*op.rhs_contract, *free_right]).reshape(depth, int(product(columns))) for a in factors)
    if _is_of_bytes(b, op, rhs):
        return None
    codes = codes_of(integers, scales)
    if codes is None or codes.bits not in BYTE_CODES or caps.is_gpu and codes.group % GPU_STEPS:
        return None
    if not sums_fit(codes.bits, codes.group, codes.zero):
        return None
    with np.errstate(all="ignore"):
        sums = (integers.astype(np.float64) * scales).sum(0).astype(np.float32)
    return _of_bytes(b, op, left, codes, sums, columns, depth, caps)


def _may_be_bytes(x: Node) -> bool:
    """Whether a `dequantize` stands before the moves that lead to x: what is asked of every product must be quick."""
    while len(x.inputs) >= 1 and not is_dequantize(x):
        if x.op.spelling not in ("reshape", "transpose", "broadcast", "slice", "pad"):
            return False
        x = x.inputs[0]
    return is_dequantize(x)


def _is_of_bytes(b: Builder, op: Dot, rhs: Node) -> bool:
    """Whether weights are bytes in the graph, with one scale along the contraction."""
    form = form_of(b, rhs)
    return form is not None and isinstance(form.value.op, Const) and all(form.scale.shape[a] == 1 for a in op.rhs_contract)


def _of_bytes(b: Builder, op: Dot, left: Form, codes: Codes, sums: Array, columns: tuple[DimLike, ...], depth: int, caps: Caps) -> Node:
    """The product of bytes with codes, in floats. `sums`: of the weights by column."""
    free = [a for a in range(left.value.rank) if a not in op.lhs_contract]
    order = [*free, *op.lhs_contract]
    rows = tuple(left.value.shape[a] for a in free)

    def of_rows(x: Node) -> Node:
        """A parameter of the rows beside the result, in floats."""
        return cast(b, reshape(b, transpose(b, x, order), (*(x.shape[a] for a in free), 1)), F32)

    value, point = left.value, None if left.zero_point is None else of_rows(left.zero_point)
    if value.dtype == U8:
        value = b.add(Bitcast(I8), apply(b, "xor", value, constant(b, SIGN, U8)))
        point = constant(b, -SIGN, F32) if point is None else apply(b, "sub", point, constant(b, SIGN, F32))
    value = reshape(b, transpose(b, value, order), (*rows, depth))
    value = pad(b, value, [0] * value.rank, [*[0] * len(rows), -depth % codes.group])
    result = packed_codes(b, value, codes, len(sums), caps)
    if point is not None:
        result = apply(b, "sub", result, apply(b, "mul", point, constant(b, sums, F32)))
    return reshape(b, apply(b, "mul", result, of_rows(left.scale)), (*rows, *columns))
