"""Contractions into the form that lowering has register tiles for.

`dot` becomes `packed_dot` and `conv` becomes `packed_conv`: the left operand as rows that are contiguous along the
contraction, the right one cut into panels of a few vectors of columns (`compiler/lowering/contraction.py`). The packing
is made of ordinary ops (pad, reshape, transpose, slice, concat), so that constant folding packs weights at compile time
and fusion makes one kernel of it otherwise. A matrix times its own transpose is marked as symmetric. Panels in squares
(`PackedDot.square`) are put in order where no unit of the target takes squares. Products of float32 whose operands may be rounded
(`Options.matmul_precision`) are marked so where units multiply these (`PackedDot.tf32`); what is marked already and no unit
multiplies is rounded by operations of its own. Convolutions with padding get it
from `pad`. Depthwise ones stay direct, and with finite weights have it along the last axis only: taps that would
read rows of zeros are left out. Where each step of a contraction has a factor of its own (a gate of channels) and the
right operand is the smaller one, it is what gets the factors. Dots with a single column become a multiplication and a sum over rows.

A transposed convolution (one with input dilation) becomes plain ones over the operand as it is, whose results interleave
(`_interleaved`). Products with zeros that dilation puts between the elements are left out: an infinite weight makes no
NaN of them, as it makes none where ONNX scatters. Under `strict` the zeros are written instead (`_spread`).

Contract: reassoc, what `matmul_precision` allows, and finite for gates and for infinite weights of transposed convolutions as said.
Afterwards no conv or reduce_window has padding or input dilation, but for the rows of depthwise ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, ceildiv, product
from ..ir.graph import Builder, Graph, Node
from ..ir.loop_gpu import square_of
from ..ir.ops.compute import (
    Cast,
    Conv,
    Dot,
    Elementwise,
    PackedConv,
    PackedDot,
    ReduceWindow,
    accumulator_dtype,
    cast_array,
    reduction_identity,
)
from ..ir.ops.shape import Broadcast, Concat, Slice, Take, Transpose, UpdateSlice
from ..ir.rewrite import rewrite_graph
from ..ir.types import BF16, F32, I64, DType, TensorType
from ..library import apply, broadcast, cast, constant, full, pad, reduce, reshape, slice_axis, transpose
from ..options import Options
from ..tiles import gpu_panel_columns, group_panel_columns, may_stay_plain, panel_columns, takes_tf32
from .pack_bfloats import packed_bfloat_conv, packed_bfloats, widened
from .pack_floats8 import packed_floats8
from .pack_integers import largest, packed_integer_conv, packed_integers
from .pack_repeated import pack_repeated
from .pack_windows import for_target, packed_conv_on_gpu
from .panels import is_known, pack_columns, pack_squares, rows_of_squares
from .tf32 import rounded_to_tf32, with_rounded_operands
from .winograd import fast_convolution, known_array

MOST_PARTS = 16  # convolutions that one transposed convolution may become
GATE_WORTH = 2  # rows for a column, from which on factors of the steps belong to the right operand
# rows, and products in all, from which on four warps together gain more than packing a right operand of float32 takes, by an H200's
# datasheet: single warps reach 0.6 of the units' rate (Luo et al., Benchmarking and dissecting the Nvidia Hopper GPU architecture, 2024)
LEAST_PACKED_ROWS, LEAST_PACKED_PRODUCTS = 1024, 1 << 32
LEAST_MIRRORED = 128  # products for an element of a symmetric result, from which on copying half of it is less


def pack_operands(graph: Graph, options: Options, caps: Caps) -> Graph:
    """See the module's text."""
    if options.precision == "strict":
        caps = replace(caps, has_bf16=False)  # whose instruction takes subnormal numbers for zeros
    users = graph.users() if options.precision == "default" else {}
    once = {node for node, found in users.items() if len(found) == 1} - set(graph.results)

    def visit(b: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        match node.op:
            case Dot() as op if 0 in (*node.shape, *(inputs[0].shape[a] for a in op.lhs_contract)):
                return full(b, 0, node.dtype, node.shape)  # nothing to sum, or nowhere to put it
            case Dot(result=None) | Conv(result=None) if node.dtype == BF16 and not caps.is_gpu:
                operands = tuple(widened(b, x) for x in inputs)
                wide = visit(b, b.add(node.op, *operands), operands)
                return None if wide is None else cast(b, wide, BF16)
            case Dot() as op:
                return _pack_dot(b, op, inputs[0], inputs[1], units_of(options, caps), node.inputs[0] in once)
            case Conv() as op if any(e != 1 for e in op.input_dilation):
                apart = options.precision != "strict" and op.channels_last
                made = _interleaved(b, op, node.shape, inputs[0], inputs[1], options, caps) if apart else None
                return _dilated(b, op, inputs[0], inputs[1], options, caps) if made is None else made
            case Conv() as op:
                return _pack_conv(b, op, inputs[0], inputs[1], options, caps, node.inputs[0] in once)
            case ReduceWindow() as op if any(p != (0, 0) for p in op.padding):
                value = reduction_identity(op.kind, inputs[0].dtype)
                padded = pad(b, inputs[0], [p[0] for p in op.padding], [p[1] for p in op.padding], value)
                plain = ReduceWindow(op.kind, op.window, op.strides, ((0, 0),) * inputs[0].rank, op.dilation)
                return b.add(plain, padded)
            case PackedConv() as op if op.square > 1 or op.padding or op.tf32:
                return for_target(b, op, inputs[0], inputs[1], caps)
            case PackedDot() as op if op.square > 1 and not caps.has_group_products:
                depth = ceildiv(inputs[0].shape[-1], op.step)
                rows = rows_of_squares(b, inputs[1], op.square, op.by_columns, depth)
                made = b.add(replace(op, square=1), inputs[0], rows)
                return visit(b, made, made.inputs) or made
            case PackedDot() as op if op.tf32 and not takes_tf32(op, inputs[0].tensor, inputs[1].tensor, caps):
                return with_rounded_operands(b, op, *inputs)
        return None

    return rewrite_graph(graph, visit, "pack_operands", bodies=True)


def units_of(options: Options, caps: Caps) -> Caps:
    """The target, with float32 among the dtypes of its matrix units where operands may be rounded."""
    return caps.with_tf32() if options.matmul_precision == "tf32" else caps


def _pack_dot(b: Builder, op: Dot, lhs: Node, rhs: Node, caps: Caps, only: bool = False) -> Node | None:
    """`only`: nothing else reads the left operand. `caps` as `units_of` gives them."""
    free_left = [a for a in range(lhs.rank) if a not in op.lhs_batch + op.lhs_contract]
    free_right = [a for a in range(rhs.rank) if a not in op.rhs_batch + op.rhs_contract]
    batch = tuple(lhs.shape[a] for a in op.lhs_batch)
    rows = tuple(lhs.shape[a] for a in free_left)
    columns = tuple(rhs.shape[a] for a in free_right)
    depth = product(lhs.shape[a] for a in op.lhs_contract)
    left = reshape(b, transpose(b, lhs, [*op.lhs_batch, *free_left, *op.lhs_contract]), (*batch, *rows, depth))
    width = product(columns)
    right = reshape(b, transpose(b, rhs, [*op.rhs_batch, *op.rhs_contract, *free_right]), (*batch, depth, width))
    if width == 1:
        return _sum_of_products(b, left, right, len(batch), rows, columns, op.result)
    in_bytes = packed_floats8(b, op, lhs, rhs, caps)
    if in_bytes is not None:
        return in_bytes
    if op.result is not None:
        value = packed_integers(b, left, right, len(batch), caps)
        return reshape(b, value, (*batch, *rows, *columns))
    if not lhs.dtype.is_float:
        return None
    narrow = packed_bfloats(b, left, right, len(batch), caps)
    if narrow is not None:
        return reshape(b, narrow, (*batch, *rows, *columns))
    gated = _gated(lhs, op) if only and not batch and _is_less(width, rows) else None
    tf32 = lhs.dtype == F32 and str(F32) in caps.matrix_units
    symmetric = not tf32 and _is_symmetric(op, lhs, rhs, free_left, free_right)
    grouped = group_panel_columns(width, product(rows), depth, lhs.dtype, caps)
    if grouped is not None and gated is None and tf32 and (is_known(right) or _is_worth_squares(product(rows), width, depth)):
        squares = pack_squares(b, rounded_to_tf32(b, right), len(batch), grouped, True)
        value = b.add(PackedDot(len(batch), width, square=square_of(F32.bytes), tf32="left"), left, squares)
        return reshape(b, value, (*batch, *rows, *columns))
    if grouped is not None and gated is None and not symmetric and not tf32:
        square = square_of(lhs.dtype.bytes)
        if isinstance(width, int) and width % square == 0 and not is_known(right):  # copied as it is, piece by piece
            value = b.add(PackedDot(len(batch), width), left, reshape(b, right, (*batch, 1, depth, width)))
        else:
            value = b.add(PackedDot(len(batch), width, square=square), left, pack_squares(b, right, len(batch), grouped))
        return reshape(b, value, (*batch, *rows, *columns))
    tile = gpu_panel_columns(width, product(rows), lhs.dtype, caps) if caps.is_gpu else None
    plain = gated is None and not symmetric and may_stay_plain(width, depth, lhs.dtype, caps) and not is_known(right)
    if tile is None:
        tile = panel_columns(width, product(rows), accumulator_dtype(lhs.dtype), caps, depth)
    shared = pack_repeated(b, op, rhs, tile) if str(lhs.dtype) in caps.matrix_units and not tf32 else None
    if plain and shared is None:
        value = b.add(PackedDot(len(batch), width, tf32="both" if tf32 else ""), left, reshape(b, right, (*batch, 1, depth, width)))
        return reshape(b, value, (*batch, *rows, *columns))
    if tf32 and gated is None:
        right = rounded_to_tf32(b, right)
    packed = pack_columns(b, right, len(batch), tile) if shared is None else shared
    if gated is not None:
        x, gate = gated
        left = reshape(b, transpose(b, x, [*free_left, *op.lhs_contract]), left.shape)
        packed = apply(b, "mul", packed, broadcast(b, reshape(b, gate, (1, depth, 1)), packed.shape))
        packed = rounded_to_tf32(b, packed) if tf32 else packed
    symmetric = symmetric and _is_worth_mirroring(width, depth, tile)
    value = b.add(PackedDot(len(batch), width, symmetric, tf32="left" if tf32 else ""), packed if symmetric else left, packed)
    return reshape(b, value, (*batch, *rows, *columns))


def _is_worth_squares(rows: DimLike, width: DimLike, depth: DimLike) -> bool:
    """Whether a right operand of tf32 that is no constant gains by squares, which a kernel has to make first."""
    return bounds(rows)[0] >= LEAST_PACKED_ROWS and bounds(product((rows, width, depth)))[0] >= LEAST_PACKED_PRODUCTS


def _is_symmetric(op: Dot, lhs: Node, rhs: Node, free_left: list[int], free_right: list[int]) -> bool:
    """Whether a matrix is multiplied by its own transpose."""
    left = _moved(lhs, (*op.lhs_batch, *op.lhs_contract, *free_left))
    return len(free_left) == 1 and left == _moved(rhs, (*op.rhs_batch, *op.rhs_contract, *free_right))


def _gated(lhs: Node, op: Dot) -> tuple[Node, Node] | None:
    """The value and the gate, where the left operand is a value times one factor for each step of the contraction: the right
    operand can have that factor as well."""
    if not isinstance(lhs.op, Elementwise) or lhs.op.function != "mul" or not lhs.dtype.is_float:
        return None
    for x, gate in (lhs.inputs, lhs.inputs[::-1]):
        source = gate.inputs[0] if isinstance(gate.op, Broadcast) else None
        if source is None or product(source.shape) == 1 or isinstance(x.op, Broadcast):
            continue
        varied = [a + gate.rank - source.rank for a, n in enumerate(source.shape) if n != 1]
        if all(a in op.lhs_contract for a in varied) and len(op.lhs_contract) == 1:
            return x, source
    return None


def _is_less(width: DimLike, rows: Sequence[DimLike]) -> bool:
    """Whether a matrix of so many columns is surely smaller than one of so many rows."""
    return bounds(product(rows))[0] >= GATE_WORTH * bounds(width)[1]


def _moved(node: Node, axes: Sequence[int]) -> tuple[Node, list[int]]:
    """These axes of a node as axes of what it is a transpose of."""
    found = list(axes)
    while isinstance(node.op, Transpose):
        found = [node.op.perm[a] for a in found]
        node = node.inputs[0]
    return node, found


def _is_worth_mirroring(width: DimLike, depth: DimLike, tile: int) -> bool:
    """Whether some tiles lie below the diagonal, and computing one takes longer than copying it."""
    return not (isinstance(width, int) and width < 2 * tile or isinstance(depth, int) and depth < LEAST_MIRRORED)


def _sum_of_products(b: Builder, left: Node, right: Node, batch: int, rows: tuple[DimLike, ...],
                     columns: tuple[DimLike, ...], result: DType | None) -> Node:
    """One column: the products of each row with it, summed in the dtype that contractions accumulate in."""
    dtype, ones = result or left.dtype, (1,) * len(rows)
    left, right = (cast(b, x, accumulator_dtype(dtype)) for x in (left, right))
    row = reshape(b, right, (*right.shape[:batch], *ones, right.shape[batch]))
    products = apply(b, "mul", left, broadcast(b, row, left.shape))
    total = cast(b, reduce(b, "sum", products, (left.rank - 1,)), dtype)
    return reshape(b, total, (*left.shape[:-1], *columns))


def _pack_conv(b: Builder, op: Conv, x: Node, w: Node, options: Options, caps: Caps, only: bool = False) -> Node | None:
    if not op.channels_last:
        return None
    rank = len(op.strides)
    left_out = _rows_left_out(op, x, w)
    written = [(0, 0) if out else p for p, out in zip(op.padding, left_out)]
    kept = tuple(p if out else (0, 0) for p, out in zip(op.padding, left_out))
    x = pad(b, x, [0, *(p[0] for p in written), 0], [0, *(p[1] for p in written), 0])
    kernel, channels, out = w.shape[:-2], w.shape[-2], w.shape[-1]
    assert isinstance(out, int)
    taps = product(kernel)
    if op.groups != 1 and channels == 1:
        depthwise = Conv(op.strides, kept, op.dilation, (1,) * rank, op.groups, True)
        if op.result is None:
            return b.add(depthwise, x, w)
        if isinstance(taps, int) and taps * largest(x) * largest(w) <= 2 ** 24:
            return cast(b, b.add(depthwise, cast(b, x, F32), cast(b, w, F32)), op.result)  # exact, and multiplied in one instruction
        return b.add(replace(depthwise, result=op.result), x, w)
    if op.result is not None and (op.groups != 1 or taps != 1 or any(s != 1 for s in op.strides)):
        return packed_integer_conv(b, op, x, w, caps)
    if op.groups == 1 and taps == 1 and all(s == 1 for s in op.strides):
        return _pack_dot(b, Dot((x.rank - 1,), (0,), result=op.result), x, reshape(b, w, (channels, out)), units_of(options, caps), only)
    if caps.is_gpu:
        return packed_conv_on_gpu(b, op, x, w, units_of(options, caps))
    if op.groups != 1:
        return _pack_groups(b, op, x, w, options, caps)
    tile = panel_columns(out, product(x.shape[:-1]), accumulator_dtype(x.dtype), caps)
    fast = fast_convolution(b, op, x, w, tile, options, caps)
    if fast is not None:
        return fast
    narrow = packed_bfloat_conv(b, op, x, w, tile, caps)
    if narrow is not None:
        return narrow
    packed = pack_columns(b, reshape(b, w, (taps * channels, out)), 0, tile)
    sizes = tuple(int(k) for k in kernel)
    return b.add(PackedConv(sizes, op.strides, op.dilation, out), x, packed)


def _rows_left_out(op: Conv, x: Node, w: Node) -> list[bool]:
    """For each spatial axis whether a depthwise convolution leaves the taps out that would read its padding, instead of zeros
    being written there: all but the last one with results beside one another, along which tiles lie."""
    rank = len(op.strides)
    weights = known_array(w.inputs[0] if isinstance(w.op, Cast) else w)  # those of integers may be cast by now
    if op.groups == 1 or w.shape[-2] != 1 or weights is None or not np.isfinite(cast_array(weights, w.dtype)).all():
        return [False] * rank
    out = op.infer(x.type, w.type)
    assert isinstance(out, TensorType)
    several = [a for a, (k, n) in enumerate(zip(w.shape, out.shape[1:-1])) if k != 1 and bounds(n)[1] > 1]
    return [bool(several) and a < several[-1] and bounds(n)[0] >= 1 for a, n in enumerate(x.shape[1:-1])]


def _pack_groups(b: Builder, op: Conv, x: Node, w: Node, options: Options, caps: Caps) -> Node:
    """Several channels a group: panels of each group's kernel."""
    *kernel, channels, out = w.shape
    assert isinstance(out, int)
    depth, of_group = product((*kernel, channels)), out // op.groups
    tile = panel_columns(of_group, product(x.shape[:-1]), accumulator_dtype(x.dtype), caps)
    fast = fast_convolution(b, op, x, w, tile, options, caps)
    if fast is not None:
        return fast
    matrices = transpose(b, reshape(b, w, (depth, op.groups, of_group)), [1, 0, 2])
    sizes = tuple(int(k) for k in kernel)
    return b.add(PackedConv(sizes, op.strides, op.dilation, out, op.groups), x, pack_columns(b, matrices, 1, tile))


# --- transposed convolutions -----------------------------------------------------------------------------------------


class _Phase(Struct, frozen=True):
    """Outputs of one axis that read the same places of the operand, from a window with `dilation` over it.

    `taps[i][j]` is the tap of the kernel that place i of the window has for the j-th of the outputs; without a place
    they are zeros. The operand is padded by `low` and `high`, cut where these are negative.
    """

    taps: tuple[tuple[int, ...], ...]
    dilation: int
    low: int
    high: int


class _Axis(Struct, frozen=True):
    """An axis: its outputs interleave from `every` residues of `size` each; the first that counts is at `start`."""

    every: int
    start: int
    size: DimLike
    phases: tuple[_Phase, ...]  # one for all residues, or one for each

    @property
    def split(self) -> bool:
        return len(self.phases) > 1


def _interleaved(b: Builder, op: Conv, shape: tuple[DimLike, ...], x: Node, w: Node, options: Options,
                 caps: Caps) -> Node | None:
    """A transposed convolution without the zeros, or None where that is not possible.

    Along an axis with e = input_dilation, an output o = e * q + r - start multiplies only the taps that meet an element
    of x and not a zero between two. Which taps these are depends on the residue r alone, and where they read on q: for
    each r it is a plain convolution. Residues that read the same places become columns of one convolution, and that is
    all of them where the kernel is a multiple of e: 2 taps at e = 2 are a dot, 4 taps a window of 2. Other residues get
    a convolution each.

    Multiplications along an axis: k for each q, and k for each output where zeros are written. There are at most as
    many q as outputs and about one for e of them, so it is never more. One convolution for residues that read different
    places would need weights of zero, ceil(k / e) * e for each q, and carry a NaN of x to outputs that do not read it.
    """
    if 0 in shape:
        return full(b, 0, op.result or x.dtype, shape)
    together = op.groups == 1 or math.prod(op.input_dilation) > MOST_PARTS  # groups want their channels side by side
    axes = [_axis(op, a, int(k), n, out, together)
            for a, (k, n, out) in enumerate(zip(w.shape, x.shape[1:-1], shape[1:-1]))]
    if any(s != 1 and e != 1 for s, e in zip(op.strides, op.input_dilation)) \
            or math.prod(len(a.phases) for a in axes) > MOST_PARTS or not _are_windows(axes, x.shape[1:-1], shape[1:-1]):
        return None
    parts = [_part(b, op, axes, phases, x, w, options, caps) for phases in itertools.product(*(a.phases for a in axes))]
    rank, groups = len(axes), op.groups
    value = parts[0] if len(parts) == 1 else b.add(Concat(rank + 1), *parts)
    # [N, *sizes, *split residues, group, *residues in columns, channel of the group] -> [N, *(size, residue), channel]
    split, columns = ([a for a in range(rank) if axes[a].split == wanted] for wanted in (True, False))
    value = reshape(b, value, (shape[0], *(a.size for a in axes), *(axes[a].every for a in split), groups,
                               *(axes[a].every for a in columns), shape[-1] // groups))
    places = {a: rank + 1 + i for i, a in enumerate(split)} | {a: rank + 2 + len(split) + i for i, a in enumerate(columns)}
    order = [place for a in range(rank) for place in (1 + a, places[a])]
    value = transpose(b, value, [0, *order, rank + 1 + len(split), value.rank - 1])
    value = reshape(b, value, (shape[0], *(a.size * a.every for a in axes), shape[-1]))
    if value.shape == shape:
        return value
    return b.add(Slice((0, *(a.start for a in axes), 0), shape, (1,) * value.rank), value)


def _axis(op: Conv, axis: int, k: int, n: DimLike, out: DimLike, together: bool) -> _Axis:
    """How one axis is taken apart.

    With u = d * (k - 1 - t) for tap t and reach = d * (k - 1), output o reads x[i] where o + reach - low = e * i + u.
    `start` makes reach - low + o a multiple of e at o = -start: then u % e is the residue, and i = q + moved - u // e.
    """
    (low, high), d, e = op.padding[axis], op.dilation[axis], op.input_dilation[axis]
    reach = d * (k - 1)
    moved, start = divmod(reach - low, e)
    back = [[u // e for u in range(0, reach + 1, d) if u % e == r] for r in range(e)]
    together = together and all(places == back[0] for places in back) or e == 1
    phases = []
    for residues in ([range(e)] if together else [range(r, r + 1) for r in range(e)]):
        places = back[residues[0]]
        taps = tuple(tuple(k - 1 - (e * v + r) // d for r in residues) for v in reversed(places))
        step = places[1] - places[0] if len(places) > 1 else 1
        phases.append(_Phase(taps, step, places[-1] - moved, high // e - places[0]) if places else _Phase((), 1, 0, 0))
    return _Axis(e, start, out if e == 1 else n + high // e - moved, tuple(phases))


def _are_windows(axes: Sequence[_Axis], sizes: Sequence[DimLike], outs: Sequence[DimLike]) -> bool:
    """Whether all that is cut off leaves a size that is proved not to be negative, as `slice` asks for."""
    cut = [n + min(p.low, 0) + min(p.high, 0) for axis, n in zip(axes, sizes) for p in axis.phases if min(p.low, p.high) < 0]
    cut += [out for axis, out in zip(axes, outs) if axis.start != 0 or axis.size * axis.every != out]
    return all(bounds(size)[0] >= 0 for size in cut)


def _part(b: Builder, op: Conv, axes: Sequence[_Axis], phases: Sequence[_Phase], x: Node, w: Node, options: Options,
          caps: Caps) -> Node:
    """The convolution for one phase of each axis: [N, *sizes, 1, group, *residues in columns, channel of the group]."""
    rank, groups, out = len(axes), op.groups, w.shape[-1]
    counts = [1 if a.split else a.every for a in axes]
    shape = (x.shape[0], *(a.size for a in axes), 1, groups, *(c for a, c in zip(axes, counts) if not a.split), out // groups)
    if any(not phase.taps for phase in phases):
        return full(b, 0, op.result or x.dtype, shape)
    for axis, phase in enumerate(phases, 1):
        cut = min(phase.low, 0) + min(phase.high, 0)
        x = slice_axis(b, x, axis, max(-phase.low, 0), x.shape[axis] + cut) if cut else x
    x = pad(b, x, [0, *(max(p.low, 0) for p in phases), 0], [0, *(max(p.high, 0) for p in phases), 0])
    for axis in reversed(range(rank)):  # [*kernel, C, O] -> [*(place, residue), C, O]
        w = b.add(Take(axis), w, constant(b, phases[axis].taps, I64))
    window = [len(p.taps) for p in phases]
    w = reshape(b, w, (*w.shape[:-1], groups, out // groups))
    w = transpose(b, w, [*range(0, 2 * rank, 2), 2 * rank, 2 * rank + 1, *range(1, 2 * rank, 2), 2 * rank + 2])
    w = reshape(b, w, (*window, w.shape[rank], math.prod(counts) * out))
    plain = Conv(op.strides, ((0, 0),) * rank, tuple(p.dilation for p in phases), (1,) * rank, groups, True, op.result)
    value = _pack_conv(b, plain, x, w, options, caps)
    assert value is not None
    return reshape(b, value, shape)


def _dilated(b: Builder, op: Conv, x: Node, w: Node, options: Options, caps: Caps) -> Node | None:
    """A transposed convolution with the zeros between the elements and around them written."""
    rank = len(op.strides)
    plain = replace(op, padding=((0, 0),) * rank, input_dilation=(1,) * rank)
    spread = _spread(b, x, op)
    return _pack_conv(b, plain, spread, w, options, caps) if op.channels_last else b.add(plain, spread, w)


def _spread(b: Builder, x: Node, op: Conv) -> Node:
    """The operand with its padding, and zeros between its elements along the spatial axes."""
    first = 1 if op.channels_last else 2
    steps, padding = [1] * x.rank, [(0, 0)] * x.rank
    steps[first:first + len(op.strides)], padding[first:first + len(op.strides)] = op.input_dilation, op.padding
    shape = tuple(low + (n - 1) * e + 1 + high for n, e, (low, high) in zip(x.shape, steps, padding))
    return b.add(UpdateSlice(tuple(low for low, _ in padding), tuple(steps)), full(b, 0, x.dtype, shape), x)
