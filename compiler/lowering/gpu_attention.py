"""Attention on a GPU's matrix units as one kernel: float16 and bfloat16, any keys, whatever leads from products to scores.

A block takes some rows of queries of one place in the batch through all keys, a part of a panel at a time: the scores are products in
fragments, go through the epilogue (scale, mask) to shared memory, and become weights by the online softmax (Milakov and Gimelshein
2018; Dao et al., FlashAttention, 2022), which are multiplied with the values and added to fragments of the result. Two threads share a
row of scores. A row's largest score, the sum of its exponentials and the result are float32; scores are as exact as the graph's, and
weights have the dtype of the values. What the sum divides is the result, not each weight. The values of a part are copied while its scores
are computed, the next keys while these are weighed.

Keys that a mask hides from all rows of a block by their numbers (`gpu_masks.py`: causal attention) are not looked at, so neither scores
nor values there that are NaN show; blocks with most keys begin first. Heads that share keys and values read the same ones
(`attention.repeated`).

Assumes what `attention.unit_attention` found. Rows past the last one are computed as copies of it and not stored; keys past the last one
have weight zero and values zero. A row without any score above minus infinity is NaN, as the softmax of nothing else is.
"""

from __future__ import annotations

from ..attention import Attention, repeated
from ..ir.dims import DimLike, bounds, ceildiv, dim_max, dim_min, divides, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, Collect, Commit, CopyAsync, For, If, Load, MatmulTile, Stmt, Store, Wait
from ..ir.ops.compute import Elementwise, PackedDot
from ..ir.ops.shape import Broadcast, Transpose
from ..ir.types import F32, DType, TensorType
from .contraction import named_parts
from .gpu_masks import KeyLimit, key_limit
from .inline import Index, Inliner, flatten_index, loop_symbol, reshape_index, unflatten_index

WARPS, WARP_ROWS = 4, 16
ROWS = WARPS * WARP_ROWS
THREADS = 32 * WARPS
SHARE = THREADS // ROWS  # threads of a row
MOST_KEYS = 64           # at a time: more leave room for fewer blocks on a multiprocessor
COPIED = 8               # elements of 16 bits that are copied at a time


class GpuAttention:
    """The statements of one kernel."""

    def __init__(self, attention: Attention, result: Node, out: Buffer, inliner: Inliner) -> None:
        self.attention, self.result, self.out, self.inliner, self.names = attention, result, out, inliner, inliner.names
        first, last = attention.first, attention.last
        assert isinstance(first.op, PackedDot)
        self.dtype = first.dtype
        self.grid, self.row_axes = first.shape[:first.op.batch], first.shape[first.op.batch:-1]
        self.rows, self.keys, self.columns = product(self.row_axes), first.shape[-1], last.shape[-1]
        depth, width, wide = first.inputs[0].shape[-1], first.inputs[1].shape[-1], last.inputs[1].shape[-1]
        assert isinstance(depth, int) and isinstance(width, int) and isinstance(wide, int) and isinstance(self.columns, int)
        self.depth, self.panel, self.wide, self.panels = depth, width, wide, -(-self.columns // wide)
        width = self.width = min(width, MOST_KEYS)
        self.queries = self._shared("queries", (ROWS, depth + COPIED))
        self.key_part = self._shared("keys", (depth, width + COPIED))
        self.values = [self._shared("values", (width, wide + COPIED)) for _ in range(self.panels)]
        self.scores = self._shared("scores", (ROWS, width + 1), F32)
        self.weights = self._shared("weights", (ROWS, width + COPIED))
        self.factors, self.largest, self.total = (self._shared(name, (ROWS,), F32) for name in ("factors", "largest", "total"))
        self.products = Buffer(self.names.fresh("products"), F32, (WARPS, WARP_ROWS, width), "fragment")
        self.sums = [Buffer(self.names.fresh("sums"), F32, (WARPS, WARP_ROWS, wide), "fragment") for _ in range(self.panels)]
        self.best, self.summed, self.part = (Buffer(self.names.fresh(name), F32, (THREADS,), "register")
                                             for name in ("best", "summed", "part"))
        self.batch: Index = ()
        self.first_row: DimLike = 0

    def _shared(self, name: str, shape: Index, dtype: DType | None = None) -> Buffer:
        return Buffer(self.names.fresh(name), dtype or self.dtype, shape, "shared")

    def lower(self) -> Stmt:
        """The loop over blocks of rows."""
        shape = (*self.grid, ceildiv(self.rows, ROWS))
        variable, at = loop_symbol(self.names.fresh("t"), product(shape))
        labels = [*(f"b{a}_" for a in range(len(self.grid))), "block"]
        limit = key_limit(self.attention.first, self.attention.scores, self.inliner)
        places = list(unflatten_index(at, shape))
        places[-1] = places[-1] if limit is None else shape[-1] - 1 - places[-1]
        lets, (*batch, block) = named_parts(self.inliner, labels, tuple(places))
        self.batch, self.first_row = tuple(batch), block * ROWS
        parts = ceildiv(self._seen(limit), self.width)
        memory = (self.queries, self.key_part, *self.values, self.scores, self.weights, self.factors, self.largest, self.total,
                  self.products, *self.sums, self.best, self.summed, self.part)
        part, p = loop_symbol(self.names.fresh("p"), parts)
        begun = [Wait(0)] if bounds(parts)[0] < 1 else []  # of a block that sees no key
        return For(variable, product(shape), "block", (
            *lets, *map(Alloc, memory), self._begin(), self._copy_keys(0, parts), Commit(),
            *[self._over(sums, self._zero) for sums in self.sums],
            For(part, parts, "serial", self._part_of_keys(p, parts)), *begun, *self._finish()))

    def _seen(self, limit: KeyLimit | None) -> DimLike:
        """The keys, from the first on, that rows of the block see."""
        if limit is None:
            return self.keys
        length = self.row_axes[-1]
        if len(self.row_axes) == 1:
            last = dim_min(self.first_row + ROWS, length) - 1
        else:
            last = self.first_row % length + ROWS - 1 if divides(ROWS, length) else length - 1
        return dim_max(dim_min(limit.at(last), self.keys), 0)

    # --- loops over threads and elements ------------------------------------------------------------------------------

    def _threads(self, make: object) -> For:
        """A loop over the threads of the block."""
        assert callable(make)
        thread, t = loop_symbol(self.names.fresh("c"), THREADS)
        return For(thread, THREADS, "thread", tuple(make(t)))

    def _over(self, fragment: Buffer, make: object) -> For:
        """A loop over the elements of a fragment: `make(fragment, element, row of the block, column)`."""
        assert callable(make)
        _, rows, columns = fragment.shape
        assert isinstance(rows, int) and isinstance(columns, int)
        warp, w = loop_symbol(self.names.fresh("w"), WARPS)
        lane, e = loop_symbol(self.names.fresh("e"), rows * columns)
        lets, (row, column) = named_parts(self.inliner, ["row", "column"], (w * WARP_ROWS + e // columns, e % columns))
        body = make(fragment, (w, e // columns, e % columns), row, column)
        return For(warp, WARPS, "warp", (For(lane, rows * columns, "lane", (*lets, *body)),))

    def _multiply(self, fragment: Buffer, left: Buffer, right: Buffer, depth: int) -> For:
        warp, w = loop_symbol(self.names.fresh("w"), WARPS)
        return For(warp, WARPS, "warp", (MatmulTile(fragment.name, left.name, (w * WARP_ROWS, 0), right.name, (0, 0), depth),))

    def _element(self, buffer: Buffer, index: Index) -> Node:
        return Node(Load(buffer.name, index, buffer.dtype), (), TensorType(buffer.dtype, ()))

    def _zero(self, fragment: Buffer, element: Index, row: DimLike, column: DimLike) -> list[Stmt]:
        return [Store(fragment.name, element, self.inliner.literal(0.0, F32))]

    def _place(self, row: DimLike, column: DimLike) -> Index:
        """The index of an element of a product."""
        return (*self.batch, *unflatten_index(row, self.row_axes), column)

    def _row(self, row: DimLike) -> DimLike:
        """The row of the result for a row of the block; the last one where there is none."""
        place = self.first_row + row
        return place if divides(ROWS, self.rows) else dim_min(place, self.rows - 1)

    # --- what is brought into shared memory ---------------------------------------------------------------------------

    def _begin(self) -> Stmt:
        """The queries, copied or whatever they are computed from; nothing is summed yet."""
        queries = self.attention.first.inputs[0]
        plain = self.inliner.buffers.get(queries)
        nothing, zero = self.inliner.literal(float("-inf"), F32), self.inliner.literal(0.0, F32)

        def body(t: DimLike) -> list[Stmt]:
            begin: list[Stmt] = [Store(self.best.name, (t,), nothing), Store(self.summed.name, (t,), zero)]
            if plain is not None:
                copies = self._pieces(t, ROWS, self.depth, lambda row, at: [CopyAsync(
                    self.queries.name, (row, at), plain.name, (flatten_index(self._place(self._row(row), at), queries.shape),), COPIED)])
                return [*copies, *begin]
            turn, i = loop_symbol(self.names.fresh("i"), ROWS * self.depth // THREADS)
            at = i * THREADS + t
            lets, (row, step) = named_parts(self.inliner, ["row", "step"], (at // self.depth, at % self.depth))
            more, (place,) = named_parts(self.inliner, ["place"], (self._row(row),))
            inner = self.inliner.inner()
            value = inner.value(self.attention.first.inputs[0], self._place(place, step))
            store = Store(self.queries.name, (row, step), value)
            return [For(turn, ROWS * self.depth // THREADS, "serial", (*lets, *more, *inner.block, store)), *begin]
        return self._threads(body)

    def _copy_keys(self, part: DimLike, parts: DimLike) -> Stmt:
        """Begins to copy a part of the keys, if it is one of so many."""
        first, keys = self._stored(self.attention.first.inputs[1])
        several = self.panel // self.width  # parts of a panel
        from_keys = (keys * ceildiv(self.keys, self.panel) + part // several) * self.depth

        def body(t: DimLike) -> list[Stmt]:
            made = self._pieces(t, self.depth, self.width, lambda row, at: [CopyAsync(
                self.key_part.name, (row, at), first.name, ((from_keys + row) * self.panel + part % several * self.width + at,), COPIED)])
            inside = self.inliner.scalar("lt", self.inliner.index(part), self.inliner.index(parts))
            return made if bounds(part)[1] < bounds(parts)[0] else [If(inside, tuple(made))]
        return self._threads(body)

    def _copy_values(self, part: DimLike) -> Stmt:
        """Begins to copy the rows of values that belong to a part of the keys; zeros past the last key."""
        last, values = self._stored(self.attention.last.inputs[1])

        def body(t: DimLike) -> list[Stmt]:
            made: list[Stmt] = []
            for number, target in enumerate(self.values):
                made += self._pieces(t, self.width, self.wide, lambda row, at, number=number, target=target: self._value_piece(
                    target, last, values * self.panels + number, part * self.width, row, at))
            return made
        return self._threads(body)

    def _stored(self, packed: Node) -> tuple[Buffer, DimLike]:
        """The buffer of a packed operand, and the block's place in its batch."""
        place: Index = self.batch
        for node in repeated(packed):
            if node in self.inliner.buffers:
                break
            source = node.inputs[0].shape[:-3]
            if isinstance(node.op, Broadcast):
                place = tuple(0 if n == 1 else i for i, n in zip(place[len(place) - len(source):], source))
            else:
                place = reshape_index(place, node.shape[:-3], source)
            packed = node.inputs[0]
        return self.inliner.buffers[packed], flatten_index(place, packed.shape[:-3])

    def _value_piece(self, target: Buffer, source: Buffer, panel: DimLike, start: DimLike, row: DimLike, at: DimLike) -> list[Stmt]:
        key = start + row
        if divides(self.width, self.keys):
            return [CopyAsync(target.name, (row, at), source.name, ((panel * self.keys + key) * self.wide + at,), COPIED)]
        inside = self.inliner.scalar("lt", self.inliner.index(key), self.inliner.index(self.keys))
        return [CopyAsync(target.name, (row, at), source.name, ((panel * self.keys + key) * self.wide + at,), COPIED, inside)]

    def _pieces(self, thread: DimLike, rows: int, columns: int, make: object) -> list[Stmt]:
        """What all threads do together for each 16 bytes of a part."""
        assert callable(make)
        pieces = columns // COPIED
        turns = rows * pieces // THREADS
        variable, i = loop_symbol(self.names.fresh("i"), turns)
        at = i * THREADS + thread
        lets, (row, piece) = named_parts(self.inliner, ["row", "piece"], (at // pieces, at % pieces))
        return [For(variable, turns, "serial", (*lets, *make(row, piece * COPIED)))]

    # --- a panel of keys ----------------------------------------------------------------------------------------------

    def _part_of_keys(self, part: DimLike, parts: DimLike) -> tuple[Stmt, ...]:
        """Values come while scores are computed, the next keys while these are weighed: each time one group of copies stays under way."""
        def scored(fragment: Buffer, element: Index, row: DimLike, column: DimLike) -> list[Stmt]:
            key = part * self.width + column
            whole = divides(self.width, self.keys)
            lets, (place, at) = named_parts(self.inliner, ["place", "key"], (self._row(row), key if whole else dim_min(key, self.keys - 1)))
            inner = self.inliner.inner()
            inner.block += lets
            product_of = inner.cast(self._element(fragment, element), self.dtype)
            index = self._place(place, at)
            inner.bind(self.attention.first, index, lambda: product_of)
            score = inner.cast(inner.value(self.attention.scores, index), F32)
            if not whole:
                inside = inner.scalar("lt", inner.index(key), inner.index(self.keys))
                score = inner.scalar("select", inside, score, inner.literal(float("-inf"), F32))
            return [*inner.block, Store(self.scores.name, (row, column), score)]

        def scaled(fragment: Buffer, element: Index, row: DimLike, column: DimLike) -> list[Stmt]:
            factor = self._element(self.factors, (row,))
            return [Store(fragment.name, element, self.inliner.scalar("mul", self._element(fragment, element), factor))]

        return (self._copy_values(part), Commit(), Wait(1), self._over(self.products, self._zero),
                self._multiply(self.products, self.queries, self.key_part, self.depth), self._over(self.products, scored),
                self._copy_keys(part + 1, parts), Commit(),
                self._threads(self._greatest), Collect(self.part.name, "max", SHARE), self._threads(self._weigh), Wait(1),
                *[self._over(sums, scaled) for sums in self.sums],
                *[self._multiply(sums, self.weights, values, self.width) for sums, values in zip(self.sums, self.values)])

    def _greatest(self, t: DimLike) -> list[Stmt]:
        """The largest of a thread's share of the scores of a row."""
        variable, c = loop_symbol(self.names.fresh("c"), self.width // SHARE)
        score = self._element(self.scores, (t // SHARE, c * SHARE + t % SHARE))
        return [Store(self.part.name, (t,), self.inliner.literal(float("-inf"), F32)),
                For(variable, self.width // SHARE, "serial", (Store(self.part.name, (t,), score, "max"),))]

    def _weigh(self, t: DimLike) -> list[Stmt]:
        """The exponentials in the place of the scores, and what scales all that was summed for a smaller score."""
        inner = self.inliner.inner()
        old = inner.latch(self._element(self.best, (t,)))
        new = inner.latch(inner.scalar("max", old, self._element(self.part, (t,))))
        zero = inner.literal(0.0, F32)
        base = inner.latch(inner.scalar("select", inner.scalar("eq", new, inner.literal(float("-inf"), F32)), zero, new))
        factor = inner.latch(inner.scalar("exp", inner.scalar("sub", old, base)))
        variable, c = loop_symbol(self.names.fresh("c"), self.width // SHARE)
        place = (t // SHARE, c * SHARE + t % SHARE)
        along = inner.inner()
        weight = along.latch(along.scalar("exp", along.scalar("sub", self._element(self.scores, place), base)))
        stores = (Store(self.weights.name, place, along.cast(weight, self.dtype)), Store(self.summed.name, (t,), weight, "add"))
        leads = inner.scalar("eq", inner.index(t % SHARE), inner.index(0))
        return [*inner.block, Store(self.best.name, (t,), new),
                Store(self.summed.name, (t,), inner.scalar("mul", self._element(self.summed, (t,)), factor)),
                If(leads, (Store(self.factors.name, (t // SHARE,), factor),)),
                For(variable, self.width // SHARE, "serial", (*along.block, *stores))]

    # --- the result ---------------------------------------------------------------------------------------------------

    def _finish(self) -> tuple[Stmt, ...]:
        def rows(t: DimLike) -> list[Stmt]:
            leads = self.inliner.scalar("eq", self.inliner.index(t % SHARE), self.inliner.index(0))
            return [If(leads, (Store(self.largest.name, (t // SHARE,), self._element(self.best, (t,))),
                               Store(self.total.name, (t // SHARE,), self._element(self.summed, (t,)))))]

        return (Collect(self.summed.name, "add", SHARE), self._threads(rows),
                *[self._over(sums, lambda *a, number=number: self._give(number, *a)) for number, sums in enumerate(self.sums)])

    def _give(self, number: int, fragment: Buffer, element: Index, row: DimLike, column: DimLike) -> list[Stmt]:
        """An element of the result, divided by the sum of its row's exponentials, through the epilogue to where it belongs."""
        inner = self.inliner.inner()
        column = number * self.wide + column
        lets, (place, at) = named_parts(self.inliner, ["place", "at"], (
            self._row(row), column if divides(self.wide, self.columns) else dim_min(column, self.columns - 1)))
        inner.block += lets
        largest = inner.latch(self._element(self.largest, (row,)))
        nothing = inner.scalar("eq", largest, inner.literal(float("-inf"), F32))
        total = inner.latch(inner.scalar("select", nothing, inner.literal(float("nan"), F32), self._element(self.total, (row,))))
        index = self._place(place, at)
        # divided already, it is as if the sum were one, or NaN where it is
        one = inner.scalar("select", inner.scalar("isnan", total), total, inner.literal(1.0, F32))
        inner.bind(self.attention.largest, index[:-1], lambda: inner.cast(largest, self.dtype))
        inner.bind(self.attention.total, index[:-1], lambda: inner.cast(one, self.dtype))
        value = inner.cast(inner.scalar("div", self._element(fragment, element), total), self.dtype)
        value = self._weighted(inner, value, total, index)
        inner.bind(self.attention.last, index, lambda: value)
        exit = self.result.inputs[0] if isinstance(self.result.op, Transpose) else self.result
        to = reshape_index(index, self.attention.last.shape, exit.shape)
        stored = inner.value(exit, to)
        if isinstance(self.result.op, Transpose):
            to = tuple(to[axis] for axis in self.result.op.perm)
        body: tuple[Stmt, ...] = (*inner.block, Store(self.out.name, (flatten_index(to, self.result.shape),), stored))
        for found, size, tile in ((self.first_row + row, self.rows, ROWS), (column, self.columns, self.wide)):
            if not divides(tile, size):
                body = (If(self.inliner.scalar("lt", self.inliner.index(found), self.inliner.index(size)), body),)
        return list(body)

    def _weighted(self, inner: Inliner, value: Node, total: Node, index: Index) -> Node:
        """What the steps make of a sum over exponentials instead of weights."""
        carried = self.attention.exponentials
        for step in self.attention.steps:
            operands = []
            for operand in step.inputs:
                if operand is carried:
                    operands.append(value)
                elif isinstance(operand.op, Elementwise) and operand.op.function == "isnan" and operand.inputs[0] is carried:
                    operands.append(inner.scalar("isnan", total))
                else:
                    operands.append(inner.value(operand, (*index[:-1], 0)))
            value, carried = inner.builder.add(step.op, *operands), step
        return value


__all__ = ["GpuAttention"]
