"""Scalar expressions from graph nodes: what one element of a fused value is, as a function of its index.

`Inliner.value(node, index)` appends the statements it needs (lets, checks, inner loops) to the current block and
returns the expression. Injective ops only move the index; reductions, windows and contractions become inner loops over
an accumulator, unless the caller has bound their value (`bind`).

Assumes: the nodes form a fused group (`compiler/passes/fuse.py`), whose size bounds the depth of recursion here.
Guarantees: every index is within its buffer, by construction or by a check placed before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct, field

from ..ir.dims import DimLike, Symbol, bounds, dim_max, dim_min, product, size_of
from ..ir.errors import CompileError
from ..ir.graph import Builder, Node
from ..ir.loop import SPACES, Alloc, Buffer, Check, For, IndexValue, Let, Literal, Load, Local, Stmt, Store, loop_variable
from ..ir.ops.compute import (
    COMBINE,
    ArgReduce,
    Bitcast,
    Cast,
    Conv,
    Dot,
    Elementwise,
    Reduce,
    ReduceWindow,
    accumulator_dtype,
    reduction_identity,
)
from ..ir.ops.control import Const
from ..ir.ops.shape import Broadcast, Concat, GatherND, Iota, Reshape, SizeOf, Slice, Take, TakeAlong, Transpose
from ..ir.types import I64, INDEX, U64, DType

Index = tuple[DimLike, ...]
ERROR_INDEX, ERROR_INDEX_UNSIGNED = -1, -9  # TW_ERROR_INDEX and TW_ERROR_INDEX_UNSIGNED of csrc/abi.h
UNROLL_LIMIT = 32  # taps of a window that are spelled out rather than looped over


def loop_symbol(name: str, extent: DimLike) -> tuple[Symbol, DimLike]:
    """A loop variable: its symbol with bounds, and the size that stands for it in index expressions (0 where the loop
    has one iteration)."""
    found = loop_variable(name, extent)
    return found, 0 if found.upper == 0 else size_of(found)


def without_unit_axes(index: Sequence[DimLike], shape: Sequence[DimLike]) -> Index:
    """The index with 0 on axes of size 1, whatever variable stands there."""
    return tuple(0 if n == 1 else i for i, n in zip(index, shape, strict=True))


def flatten_index(index: Sequence[DimLike], shape: Sequence[DimLike]) -> DimLike:
    """The position in C order."""
    flat: DimLike = 0
    for i, n in zip(index, shape, strict=True):
        flat = flat * n + i
    return flat


def unflatten_index(flat: DimLike, shape: Sequence[DimLike]) -> Index:
    """The index in C order; sizes of 1 give 0, and so do several axes without elements."""
    if len(shape) > 1 and any(n == 0 for n in shape):
        return (0,) * len(shape)
    index: list[DimLike] = []
    rest = flat
    for axis in range(len(shape) - 1, 0, -1):
        size = shape[axis]
        outer_all_one = all(n == 1 for n in shape[:axis])
        index.append(0 if size == 1 else rest if outer_all_one else rest % size)
        rest = rest if size == 1 else 0 if outer_all_one else rest // size
    index.append(rest if shape and shape[0] != 1 else 0)
    return tuple(reversed(index)) if shape else ()


def reshape_index(index: Sequence[DimLike], after: Sequence[DimLike], before: Sequence[DimLike]) -> Index:
    """The index into `before` of the element at `index` of `after`, matching runs of axes with equal products so that
    only what was really merged or split is divided."""
    result: list[DimLike] = []
    i = j = 0
    while i < len(after) or j < len(before):
        start_i, start_j = i, j
        left: DimLike = 1
        right: DimLike = 1
        if i < len(after):
            left, i = after[i], i + 1
        if j < len(before):
            right, j = before[j], j + 1
        while left != right:
            if i >= len(after) and j >= len(before):
                if 0 in after and 0 in before:  # nothing is read: any index does
                    return (0,) * len(before)
                raise CompileError(f"reshape: {after} and {before} do not match")
            if j >= len(before) or i < len(after) and _grows_first(left, right):
                left, i = left * after[i], i + 1
            else:
                right, j = right * before[j], j + 1
        flat = flatten_index(index[start_i:i], after[start_i:i])
        result.extend(unflatten_index(flat, before[start_j:j]))
    return tuple(result)


def _grows_first(left: DimLike, right: DimLike) -> bool:
    """Which side of a run takes the next axis: the one that divides the other, else the one with fewer factors."""
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    degree = [0 if isinstance(n, int) else max(sum(p for _, p in m) for m, _ in n.terms) for n in (left, right)]
    if degree[0] != degree[1]:
        return degree[0] < degree[1]
    return bounds(left)[0] <= bounds(right)[0]


class Names(Struct):
    """Fresh names within one kernel."""

    used: dict[str, int] = field(default_factory=dict)

    def fresh(self, stem: str) -> str:
        while True:
            count = self.used.get(stem, 0)
            self.used[stem] = count + 1
            name = f"{stem}{count}" if count or stem in "ijkt" else stem
            if name == stem or self.used.setdefault(name, 0) == 0:  # not so where a size is called n4
                return name


class Inliner:
    """Makes scalar expressions for the nodes of one kernel."""

    def __init__(self, buffers: Mapping[Node, Buffer], names: Names, fused: bool = True) -> None:
        self.buffers = buffers
        self.names = names
        self.fused = fused  # the target multiplies and adds in one instruction
        self.builder = Builder()
        self.block: list[Stmt] = []
        self._memo: dict[tuple[int, Index], Node] = {}
        self._bound: dict[Node, tuple[Index, Callable[[], Node], bool]] = {}
        self._checked: dict[tuple[Node, DimLike], DimLike] = {}

    # --- small pieces ------------------------------------------------------------------------------------------------

    def literal(self, value: int | float | bool, dtype: DType) -> Node:
        return self.builder.add(Literal(value, dtype))

    def scalar(self, function: str, *operands: Node) -> Node:
        return self.builder.add(Elementwise(function), *operands)

    def multiply_add(self, x: Node, y: Node, total: Node) -> Node:
        """A step of a sum of products, rounded once only where that takes no more than rounding twice: without the instruction
        it takes tens of them."""
        fused = self.fused and total.dtype.is_float
        return self.scalar("fma", x, y, total) if fused else self.scalar("add", self.scalar("mul", x, y), total)

    def cast(self, x: Node, dtype: DType) -> Node:
        return x if x.dtype == dtype else self.builder.add(Cast(dtype), x)

    def bitcast(self, x: Node, dtype: DType) -> Node:
        return x if x.dtype == dtype else self.builder.add(Bitcast(dtype), x)

    def load(self, buffer: Buffer, index: Index) -> Node:
        """An element; parameters of a kernel are addressed flat, allocations by axis."""
        place = index if buffer.space in SPACES else (flatten_index(index, buffer.shape),)
        return self.builder.add(Load(buffer.name, place, buffer.dtype))

    def index(self, size: DimLike) -> Node:
        return self.builder.add(IndexValue(size))

    def within(self, place: DimLike, size: DimLike) -> Node:
        """Whether a place lies on an axis of that size."""
        at = self.index(place)
        return self.scalar("and", self.scalar("ge", at, self.literal(0, INDEX)), self.scalar("lt", at, self.index(size)))

    def bind(self, node: Node, index: Index, make: Callable[[], Node], elsewhere: bool = False) -> None:
        """Gives the node a ready value at this index; asking for it at another index is an error, unless it can be computed
        `elsewhere`."""
        self._bound[node] = (without_unit_axes(index, node.shape), make, elsewhere)

    def inner(self) -> Inliner:
        """An inliner for a nested block, which sees what is bound here."""
        other = Inliner(self.buffers, self.names, self.fused)
        other._bound = dict(self._bound)
        return other

    # --- values ------------------------------------------------------------------------------------------------------

    def value(self, node: Node, index: Index) -> Node:
        """The element of `node` at `index` (one size an axis)."""
        key = (id(node), index)
        known = self._memo.get(key)
        if known is None:
            known = self._value(node, index)
            self._memo[key] = known
        return known

    def _value(self, node: Node, index: Index) -> Node:
        if node in self._bound:
            at, make, elsewhere = self._bound[node]
            if at == without_unit_axes(index, node.shape):
                return make()
            if not elsewhere:
                raise CompileError(f"{node.op.spelling}: bound at {at}, read at {index}", loc=node.loc)
        if node in self.buffers:
            return self.load(self.buffers[node], index)
        match node.op:
            case Const(value):
                if value.array.size != 1:
                    raise CompileError("a constant array must be a buffer of the kernel", loc=node.loc)
                return self.literal(_python_scalar(value.array), node.dtype)
            case Elementwise() | Cast() | Bitcast():
                return self.builder.add(node.op, *(self.value(x, index) for x in node.inputs))
        moved = self._moved(node, index)
        if moved is not None:
            return self.value(node.inputs[0], moved)
        match node.op:
            case Concat(axis):
                return self._side_by_side(node, axis, index)
            case Iota(dtype, _, axis):
                return self.cast(self.index(index[axis]), dtype)
            case SizeOf(size):
                return self.cast(self.index(size), I64)
            case Reduce() | ReduceWindow() | Conv() | Dot():
                return self._accumulate(node, index)
            case ArgReduce():
                return self._arg_reduce(node, index)
        raise CompileError(f"{node.op.spelling} cannot be computed element by element", loc=node.loc)

    def _side_by_side(self, node: Node, axis: int, index: Index) -> Node:
        """An element of operands put side by side, none of them empty: of the one that has it, where that is known, and else
        chosen from the nearest ones of all."""
        starts = list(itertools.accumulate((part.shape[axis] for part in node.inputs), initial=0))
        chosen: Node | None = None
        for part, start, end in reversed(list(zip(node.inputs, starts, starts[1:]))):
            place = index[axis] - start
            if bounds(end - 1 - index[axis])[1] < 0:  # behind it
                continue
            before = bounds(place)[0] < 0
            if before and bounds(place)[1] < 0:
                continue
            if chosen is not None or before:
                place = dim_min(dim_max(place, 0), part.shape[axis] - 1)
            value = self.value(part, (*index[:axis], place, *index[axis + 1:]))
            chosen = value if chosen is None else self.scalar(
                "select", self.scalar("lt", self.index(index[axis]), self.index(end)), value, chosen)
        assert chosen is not None
        return chosen

    def _moved(self, node: Node, index: Index) -> Index | None:
        """The operand's index for ops that only move elements."""
        match node.op:
            case Broadcast():
                source = node.inputs[0].shape
                tail = index[len(index) - len(source):]
                return tuple(0 if n == 1 else i for i, n in zip(tail, source))
            case Reshape():
                return reshape_index(index, node.shape, node.inputs[0].shape)
            case Transpose(perm):
                result: list[DimLike] = [0] * len(perm)
                for axis, source_axis in enumerate(perm):
                    result[source_axis] = index[axis]
                return tuple(result)
            case Slice(start, _, step):
                return tuple(s + i * by for s, i, by in zip(start, index, step))
            case Take(axis):
                x, indices = node.inputs
                middle = index[axis:axis + indices.rank]
                place = self._data_index(node, indices, middle, x.shape[axis])
                return (*index[:axis], place, *index[axis + indices.rank:])
            case TakeAlong(axis):
                x, indices = node.inputs
                place = self._data_index(node, indices, index, x.shape[axis])
                return (*index[:axis], place, *index[axis + 1:])
            case GatherND(batch):
                x, indices = node.inputs
                grid = index[:indices.rank - 1]
                depth = int(indices.shape[-1])
                places = [self._data_index(node, indices, (*grid, k), x.shape[batch + k]) for k in range(depth)]
                return (*index[:batch], *places, *index[len(grid):])
        return None

    def _data_index(self, node: Node, indices: Node, at: Index, size: DimLike) -> DimLike:
        """A checked index that data decides, as a size for index expressions."""
        return self.checked(node, self.value(indices, at), size)

    def checked(self, node: Node, value: Node, size: DimLike) -> DimLike:
        """A value as an index into an axis of `size`, behind a check that it is one; once for each value and size."""
        known = self._checked.get((value, size))
        if known is not None:
            return known
        found = loop_variable(self.names.fresh("at"), size)
        local = self.builder.add(Local(found.name, INDEX))
        inside = self.scalar("and", self.scalar("ge", local, self.literal(0, INDEX)),
                             self.scalar("lt", local, self.index(size)))
        self.block.append(Let(found.name, self.cast(value, INDEX), found))
        message = f"{node.op.spelling}: index out of range at {node.loc}"
        if value.dtype == U64:  # beyond 2**63 it is outside as a negative index, and reported as what it is
            self.block.append(Check(inside, ERROR_INDEX_UNSIGNED, message, value, self.index(size)))
        else:
            self.block.append(Check(inside, ERROR_INDEX, message, local, self.index(size)))
        return self._checked.setdefault((value, size), size_of(found))

    # --- inner loops -------------------------------------------------------------------------------------------------

    def _accumulate(self, node: Node, index: Index) -> Node:
        dtype = accumulator_dtype(node.dtype)
        kind = node.op.kind if isinstance(node.op, (Reduce, ReduceWindow)) else "sum"
        accumulator = Buffer(self.names.fresh("sum" if kind == "sum" else kind), dtype, (), "register")
        identity = Store(accumulator.name, (), self.literal(reduction_identity(kind, dtype), dtype))
        inside = self.inner()
        extents, make = term_of(node, index)
        symbols = [loop_symbol(self.names.fresh("k"), n) for n in extents]
        unrolled = all(isinstance(n, int) for n in extents) and int(product(extents)) <= UNROLL_LIMIT
        # a long sum is a sum of sums, one of each round of the outermost loop: fewer roundings meet one total
        nested = len(extents) > 1 and not unrolled
        partial = Buffer(self.names.fresh("part"), dtype, (), "register") if nested else accumulator
        combine, value = make(inside, tuple(s for _, s in symbols), partial)
        body: tuple[Stmt, ...] = (*inside.block, Store(partial.name, (), value, combine))
        loops = list(zip((found for found, _ in symbols), extents))
        for found, extent in reversed(loops[1:] if nested else loops):
            body = (For(found, extent, "unrolled" if unrolled else "serial", body),)
        if nested:
            start = Store(partial.name, (), identity.value)
            total = Store(accumulator.name, (), self.load(partial, ()), COMBINE[kind])
            body = (For(loops[0][0], loops[0][1], "serial", (Alloc(partial), start, *body, total)),)
        self.block += [Alloc(accumulator), identity, *body]
        return self.latch(self.cast(self.load(accumulator, ()), node.dtype))

    def latch(self, value: Node) -> Node:
        """The value as it is now, whatever the memory it reads holds later."""
        name = self.names.fresh("v")
        self.block.append(Let(name, value))
        return self.builder.add(Local(name, value.dtype))

    def latch_value(self, node: Node, index: Index) -> Node:
        """The element of `node` under a name, so that several statements share one computation."""
        value = self.latch(self.value(node, index))
        self._memo[(id(node), index)] = value
        return value

    def _arg_reduce(self, node: Node, index: Index) -> Node:
        op = node.op
        assert isinstance(op, ArgReduce)
        x = node.inputs[0]
        best = Buffer(self.names.fresh("best"), x.dtype, (), "register")
        place = Buffer(self.names.fresh("place"), I64, (), "register")

        def at(position: DimLike) -> Index:
            return (*index[:op.axis], position, *index[op.axis:])

        self.block += [Alloc(best), Alloc(place), Store(best.name, (), self.value(x, at(0))),
                       Store(place.name, (), self.literal(0, I64))]
        inside = self.inner()
        found, k = loop_symbol(self.names.fresh("k"), x.shape[op.axis])
        name = inside.names.fresh("v")
        inside.block.append(Let(name, inside.value(x, at(k))))
        value = inside.builder.add(Local(name, x.dtype))
        old = inside.load(best, ())
        better = inside.scalar("gt" if op.kind == "max" else "lt", value, old)
        if x.dtype.is_float:  # the first NaN is the best: nothing is better than it, and it is not worse than anything
            not_worse = inside.scalar("not", inside.scalar("le", *((value, old) if op.kind == "max" else (old, value))))
            better = inside.scalar("and", not_worse, inside.scalar("not", inside.scalar("isnan", old)))
        here = inside.cast(inside.index(k), I64)
        inside.block.append(Store(place.name, (), inside.scalar("select", better, here, inside.load(place, ()))))
        inside.block.append(Store(best.name, (), inside.scalar("select", better, value, old)))
        self.block.append(For(found, x.shape[op.axis], "serial", tuple(inside.block)))
        return self.latch(self.load(place, ()))


Term = Callable[[Inliner, Index, Buffer], tuple[str, Node]]


def term_of(node: Node, index: Index) -> tuple[tuple[DimLike, ...], Term]:
    """What a reduction adds up at each step: the extents of its inner loops, and a maker of (combine, value)."""
    match node.op:
        case Reduce():
            return _reduce_term(node, index)
        case ReduceWindow():
            return _window_term(node, index)
        case Conv():
            return _conv_term(node, index)
        case Dot():
            return _dot_term(node, index)
    raise CompileError(f"{node.op.spelling} is no reduction")


def _reduce_term(node: Node, index: Index) -> tuple[tuple[DimLike, ...], Term]:
    op, x = node.op, node.inputs[0]
    assert isinstance(op, Reduce)

    def make(inliner: Inliner, at: Index, accumulator: Buffer) -> tuple[str, Node]:
        inner, outer = iter(at), iter(index)
        place = tuple(next(inner) if a in op.axes else next(outer) for a in range(x.rank))
        return COMBINE[op.kind], inliner.cast(inliner.value(x, place), accumulator.dtype)

    return tuple(x.shape[a] for a in op.axes), make


def _window_term(node: Node, index: Index) -> tuple[tuple[DimLike, ...], Term]:
    op, x = node.op, node.inputs[0]
    assert isinstance(op, ReduceWindow)
    if any(p != (0, 0) for p in op.padding):
        raise CompileError("reduce_window: padding must be made explicit before lowering", loc=node.loc)
    axes = [a for a, n in enumerate(op.window) if n != 1]

    def make(inliner: Inliner, at: Index, accumulator: Buffer) -> tuple[str, Node]:
        place = [i * s for i, s in zip(index, op.strides)]
        for axis, k in zip(axes, at):
            place[axis] = place[axis] + k * op.dilation[axis]
        return COMBINE[op.kind], inliner.cast(inliner.value(x, tuple(place)), accumulator.dtype)

    return tuple(op.window[a] for a in axes), make


def _conv_term(node: Node, index: Index) -> tuple[tuple[DimLike, ...], Term]:
    op, (x, w) = node.op, node.inputs
    assert isinstance(op, Conv)
    if any(e != 1 for e in op.input_dilation):
        raise CompileError("conv: input dilation must be made explicit before lowering", loc=node.loc)
    sizes, kernel, _, per_group, out = op.parts(x.tensor, w.tensor)
    last = op.channels_last
    channel = index[-1] if last else index[1]
    spatial = index[1:-1] if last else index[2:]
    group: DimLike = 0 if op.groups == 1 else channel // (out // op.groups)

    def make(inliner: Inliner, at: Index, accumulator: Buffer) -> tuple[str, Node]:
        taps, c = at[:-1], at[-1]
        place = [i * s + k * d - low for i, s, k, d, (low, _) in zip(spatial, op.strides, taps, op.dilation, op.padding)]
        outside = [a for a, pads in enumerate(op.padding) if pads != (0, 0)]
        inside = [inliner.within(place[a], sizes[a]) for a in outside]
        for a in outside:  # an element that exists; what is outside counts as zero
            place[a] = dim_min(dim_max(place[a], 0), sizes[a] - 1)
        source = group * per_group + c
        left = inliner.value(x, (index[0], *place, source) if last else (index[0], source, *place))
        for known in inside:
            left = inliner.scalar("select", known, left, inliner.literal(0.0 if x.dtype.is_float else 0, x.dtype))
        right = (*taps, c, channel) if last else (channel, c, *taps)
        return _product(inliner, left, inliner.value(w, right), accumulator)

    return (*kernel, per_group), make


def _dot_term(node: Node, index: Index) -> tuple[tuple[DimLike, ...], Term]:
    op, (lhs, rhs) = node.op, node.inputs
    assert isinstance(op, Dot)
    batch = len(op.lhs_batch)
    free_left = [a for a in range(lhs.rank) if a not in op.lhs_batch + op.lhs_contract]

    def make(inliner: Inliner, at: Index, accumulator: Buffer) -> tuple[str, Node]:
        left: dict[int, DimLike] = dict(zip(op.lhs_batch, index)) | dict(zip(op.lhs_contract, at))
        right: dict[int, DimLike] = dict(zip(op.rhs_batch, index)) | dict(zip(op.rhs_contract, at))
        left |= dict(zip(free_left, index[batch:]))
        free_right = [a for a in range(rhs.rank) if a not in right]
        right |= dict(zip(free_right, index[batch + len(free_left):]))
        x = inliner.value(lhs, tuple(left[a] for a in range(lhs.rank)))
        y = inliner.value(rhs, tuple(right[a] for a in range(rhs.rank)))
        return _product(inliner, x, y, accumulator)

    return tuple(lhs.shape[a] for a in op.lhs_contract), make


def _product(inliner: Inliner, x: Node, y: Node, accumulator: Buffer) -> tuple[str, Node]:
    """What adds x * y to the accumulator: a fused multiply-add for floats (a plain store then) where there is one, else
    a combining add."""
    x, y = inliner.cast(x, accumulator.dtype), inliner.cast(y, accumulator.dtype)
    if accumulator.dtype.is_float and inliner.fused:
        return "", inliner.scalar("fma", x, y, inliner.load(accumulator, ()))
    return "add", inliner.scalar("mul", x, y)


def _python_scalar(array: np.ndarray) -> int | float | bool:
    value = array.reshape(-1)[0]
    if array.dtype == np.bool_:
        return bool(value)
    if array.dtype.kind in "iu":
        return int(value)
    return float(value)


