"""Attention as one kernel: a thread takes a block of rows from the product of queries and keys through the softmax to the product
with the values, in memory of its own.

The keys are taken in blocks. A block's scores are summed in register tiles, as `contraction` does it, and put into memory of
the thread that stays in the second level; each of its rows then goes through what leads from the product to the scores, the
softmax, and meets the values in register tiles again. What the sum of exponentials divides is the result, not each weight.

Where the keys are one block, a row's softmax is the plain one. Where they are several, or nobody knows, it is the online softmax
(Milakov and Gimelshein 2018; Dao et al., FlashAttention, 2022): what was summed so far is scaled whenever a larger score comes.
A row whose scores are all minus infinity so far takes part as zeros, and is NaN at last as the softmax of nothing else is.

Assumes an attention as `compiler/attention.py` finds it, with its packed operands as buffers, and heads of static size. Rows are
those of one place in the batch, so what they read of keys and values is near. Rows past the last one are computed as copies
of it and not stored. Guarantees that a row is computed alike in whichever block and thread it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from ..attention import POINTWISE, Attention
from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, ceildiv, dim_min, divides, product
from ..ir.facts import Choice
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, If, Stmt, Store
from ..ir.ops.compute import Elementwise, PackedDot
from ..ir.ops.shape import Broadcast, Reshape, Transpose
from ..ir.types import DType
from ..tiles import Tile, choose_paired_tiles
from .contraction import named_parts
from .inline import Index, Inliner, flatten_index, loop_symbol, reshape_index, unflatten_index

CHAINS = 4            # vectors side by side along a row, as exp waits for itself
LEAST_BLOCKS = 8      # of rows, for threads to share
MOST_KEYS = 1024      # that are one block
USUAL_KEYS = 512      # of a block where there are several
USUAL_ROWS = 64       # of a block, of which the scores
SCORES_SHARE = 0.25   # take at most so much of the second level of memory
LOW_ROWS = 2          # of a tile for as many rows, where their number is open
APART = 16            # elements between two rows of scores beyond their own, so that rows of a tile lie in different sets of a cache


class Plan(Struct, frozen=True):
    """How an attention is taken: `rows` and `keys` of a block, the register tiles of both products, which are equally high;
    `online`: there may be several blocks of keys."""

    rows: int
    keys: int
    first: Tile
    last: Tile
    online: bool

    def choice(self) -> Choice:
        detail = f"blocks of {self.rows} rows x {self.keys} keys"
        return Choice("attention", (self.first.rows, self.first.columns), details=(detail,))


def choose_plan(attention: Attention, caps: Caps) -> Plan:
    """The plan follows from sizes and the target. Keys of a block, which decide about roundings, do not hang on the rows or the batch."""
    first, last = attention.first, attention.last
    assert isinstance(first.op, PackedDot)
    batch, rows, keys = first.shape[:first.op.batch], product(first.shape[first.op.batch:-1]), first.shape[-1]
    widths = [n.inputs[1].shape[-1] for n in (first, last)]
    assert isinstance(widths[0], int) and isinstance(widths[1], int)
    tile, below = choose_paired_tiles((widths[0], widths[1]), rows, first.dtype, caps)
    whole = isinstance(keys, int) and keys <= MOST_KEYS
    block = -(-(keys if isinstance(keys, int) and whole else USUAL_KEYS) // widths[0]) * widths[0]
    count = min(USUAL_ROWS, int(SCORES_SHARE * caps.level2_bytes) // (block * first.dtype.bytes))
    if isinstance(rows, int):
        places = max(1, int(bounds(product(batch))[0]))
        count = min(count, -(-rows // -(-LEAST_BLOCKS // places)))
    return Plan(max(1, count // tile.rows) * tile.rows, block, tile, below, not whole)


class AttentionKernel:
    """The statements of one kernel."""

    def __init__(self, attention: Attention, result: Node, out: Buffer, inliner: Inliner, plan: Plan) -> None:
        self.attention, self.result, self.out, self.inliner, self.plan = attention, result, out, inliner, plan
        self.names = inliner.names
        first, last = attention.first, attention.last
        assert isinstance(first.op, PackedDot)
        self.dtype = first.dtype
        self.grid, self.row_axes = first.shape[:first.op.batch], first.shape[first.op.batch:-1]
        self.rows, self.keys = product(self.row_axes), first.shape[-1]
        self.depth, self.columns = first.inputs[0].shape[-1], last.shape[-1]
        width = ceildiv(self.columns, plan.last.columns) * plan.last.columns
        self.queries = self._local("queries", (plan.rows, self.depth))
        self.scores = self._local("scores", (plan.rows, plan.keys + APART))
        self.sums = self._local("sums", (plan.rows, width))
        self.largest, self.total = self._local("largest", (plan.rows,)), self._local("total", (plan.rows,))
        self.best = self._local("best", (plan.rows,)) if plan.online else self.largest  # of this block of keys
        self.shared = [(n, self._local("shared", (plan.keys,), n.dtype)) for n in self._along_keys()]
        self.batch: Index = ()
        self.block: DimLike = 0

    def _local(self, name: str, shape: Index, dtype: DType | None = None) -> Buffer:
        return Buffer(self.names.fresh(name), dtype or self.dtype, shape, "local")

    def _along_keys(self) -> list[Node]:
        """What is computed for the keys alone and read by all rows: masks and the like."""
        found: dict[Node, None] = {}
        stack = [self.attention.scores]
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in seen or node is self.attention.first:
                continue
            seen.add(node)
            if isinstance(node.op, Broadcast) and self._is_computed_for_keys(node.inputs[0]):
                found[node.inputs[0]] = None
            elif isinstance(node.op, POINTWISE):
                stack.extend(node.inputs)
        return list(found)

    def _is_computed_for_keys(self, node: Node) -> bool:
        rows = node.shape[-1 - len(self.row_axes):-1]
        fits = node.shape[-1:] == (self.keys,) and all(n == 1 for n in rows)
        while isinstance(node.op, (Reshape, Broadcast)):
            node = node.inputs[0]
        return fits and isinstance(node.op, POINTWISE)

    def lower(self) -> Stmt:
        """The loop over blocks of rows."""
        shape = (*self.grid, ceildiv(self.rows, self.plan.rows))
        variable, at = loop_symbol(self.names.fresh("t"), product(shape))
        labels = [*(f"b{a}_" for a in range(len(self.grid))), "block"]
        lets, (*batch, self.block) = named_parts(self.inliner, labels, unflatten_index(at, shape))
        self.batch = tuple(batch)
        more, (self.count,) = named_parts(self.inliner, ["rows"], (dim_min(self.plan.rows, self.rows - self.block * self.plan.rows),))
        tiles, (self.tiles,) = named_parts(self.inliner, ["tiles"], (ceildiv(self.count, self.plan.first.rows),))
        of_rows = (self.largest, *((self.best,) if self.plan.online else ()), self.total)
        buffers = (self.queries, self.scores, self.sums, *of_rows, *(b for _, b in self.shared))
        memory = map(Alloc, buffers)
        begin = (self._begin(),) if self.plan.online else ()
        body = (*lets, *more, *tiles, *memory, self._copy_queries(), *begin, *self._over_keys(), self._give())
        return For(variable, product(shape), "parallel", body)

    # --- the queries, and the beginning -------------------------------------------------------------------------------

    def _place(self, row: DimLike, column: DimLike) -> Index:
        """The index of an element of a product."""
        return (*self.batch, *unflatten_index(row, self.row_axes), column)

    def _copy_queries(self) -> Stmt:
        """Rows of the left operand side by side, whatever they are computed from; the last one again where there are no more."""
        row, r = loop_symbol(self.names.fresh("r"), self.tiles * self.plan.first.rows)
        lane, k = loop_symbol(self.names.fresh("k"), self.depth)
        place = self.block * self.plan.rows + r
        if not divides(self.plan.first.rows, self.rows):
            place = dim_min(place, self.rows - 1)
        lets, (place,) = named_parts(self.inliner, ["row"], (place,))
        inner = self.inliner.inner()
        value = inner.value(self.attention.first.inputs[0], self._place(place, k))
        body = (*inner.block, Store(self.queries.name, (r, k), value))
        return For(row, self.tiles * self.plan.first.rows, "serial", (*lets, For(lane, self.depth, "vector", body, self.plan.first.lanes)))

    def _begin(self) -> Stmt:
        """Nothing is summed yet."""
        row, r = loop_symbol(self.names.fresh("r"), self.tiles * self.plan.first.rows)
        lane, c = loop_symbol(self.names.fresh("c"), self.sums.shape[1])
        zero, lowest = self.inliner.literal(0.0, self.dtype), self.inliner.literal(float("-inf"), self.dtype)
        vectors = For(lane, self.sums.shape[1], "vector", (Store(self.sums.name, (r, c), zero),), self.plan.last.lanes)
        return For(row, self.tiles * self.plan.first.rows, "serial",
                   (Store(self.largest.name, (r,), lowest), Store(self.total.name, (r,), zero), vectors))

    # --- blocks of keys -----------------------------------------------------------------------------------------------

    def _over_keys(self) -> tuple[Stmt, ...]:
        plan = self.plan
        if not plan.online:
            return self._block_of_keys(0, self.keys)
        variable, number = loop_symbol(self.names.fresh("part"), ceildiv(self.keys, plan.keys))
        lets, (start,) = named_parts(self.inliner, ["start"], (number * plan.keys,))
        more, (count,) = named_parts(self.inliner, ["keys"], (dim_min(plan.keys, self.keys - start),))
        return (For(variable, ceildiv(self.keys, plan.keys), "serial", (*lets, *more, *self._block_of_keys(start, count))),)

    def _block_of_keys(self, start: DimLike, count: DimLike) -> tuple[Stmt, ...]:
        """The scores of all rows, each row's softmax, and what the weights give of the values. A row's exponentials wait for its largest
        score: all rows' are found first, so that rows do not wait for one another."""
        steps = []
        for make in (self._largest_of_row, self._weights_of_row):
            row, r = loop_symbol(self.names.fresh("r"), self.count)
            steps.append(For(row, self.count, "serial", tuple(make(r, start, count))))
        return self._score(start, count), *self._share(start, count), *steps, self._weigh(start, count)

    def _share(self, start: DimLike, count: DimLike) -> list[Stmt]:
        """What the rows of a block share along the keys."""
        found: list[Stmt] = []
        for node, buffer in self.shared:
            lane, k = loop_symbol(self.names.fresh("k"), count)
            inner = self.inliner.inner()
            value = inner.value(node, self._place_of(node, 0, start + k))
            found.append(For(lane, count, "vector", (*inner.block, Store(buffer.name, (k,), value)), self.plan.first.lanes))
        return found

    def _place_of(self, node: Node, row: DimLike, column: DimLike) -> Index:
        """The index of an element of what is broadcast to the scores."""
        index = self._place(row, column)
        return tuple(0 if n == 1 else i for i, n in zip(index[len(index) - node.rank:], node.shape))

    def _score(self, start: DimLike, count: DimLike) -> Stmt:
        """The sums of queries times keys, for whole panels."""
        tile = self.plan.first
        panel, p = loop_symbol(self.names.fresh("p"), ceildiv(count, tile.columns))
        panels = ceildiv(self.keys, tile.columns)
        base = (flatten_index(self.batch, self.grid) * panels + start // tile.columns + p) * self.depth
        return For(panel, ceildiv(count, tile.columns), "serial", (self._tiles(
            tile, self.depth, self.queries, self.attention.first.inputs[1], lambda k: (base + k) * tile.columns,
            self.scores, p * tile.columns, begin=False),))

    def _weigh(self, start: DimLike, count: DimLike) -> Stmt:
        """The sums of weights times values, added to what earlier blocks gave."""
        tile = self.plan.last
        panels = ceildiv(self.columns, tile.columns)
        panel, p = loop_symbol(self.names.fresh("p"), panels)
        base = (flatten_index(self.batch, self.grid) * panels + p) * self.keys + start
        return For(panel, panels, "serial", (self._tiles(
            tile, count, self.scores, self.attention.last.inputs[1], lambda k: (base + k) * tile.columns,
            self.sums, p * tile.columns, begin=self.plan.online),))

    def _tiles(self, tile: Tile, depth: DimLike, left: Buffer, right: Node, place: Callable[[DimLike], DimLike], target: Buffer,
               column: DimLike, begin: bool) -> Stmt:
        """All tiles of rows with one panel: `left` times what lies at `place` of the right operand, put into columns of the target,
        whose own values the sums `begin` with, or zero. One low tile where it shows at run time that it is enough."""
        whole = self._tiles_of(tile, self.tiles * (self.plan.first.rows // tile.rows), depth, left, right, place, target, column, begin)
        if isinstance(self.rows, int) or tile.rows <= LOW_ROWS:
            return whole
        few = self.inliner.scalar("le", self.inliner.index(self.count), self.inliner.index(LOW_ROWS))
        low = replace(tile, rows=LOW_ROWS)
        return If(few, (self._tiles_of(low, 1, depth, left, right, place, target, column, begin),), (whole,))

    def _tiles_of(self, tile: Tile, count: DimLike, depth: DimLike, left: Buffer, right: Node, place: Callable[[DimLike], DimLike],
                  target: Buffer, column: DimLike, begin: bool) -> Stmt:
        """So many tiles, one below the other."""
        number, t = loop_symbol(self.names.fresh("d"), count)
        step, k = loop_symbol(self.names.fresh("k"), depth)
        total = Buffer(self.names.fresh("acc"), self.dtype, (tile.rows, tile.columns), "register")
        inner, first = self.inliner.inner(), t * tile.rows
        packed = self.inliner.buffers[right]
        panels = Buffer(packed.name, packed.dtype, (product(packed.shape),), packed.space)
        zero = inner.literal(0.0, self.dtype)

        def update(r: DimLike, c: DimLike) -> Stmt:
            value = inner.multiply_add(inner.load(left, (first + r, k)), inner.load(panels, (place(k) + c,)), inner.load(total, (r, c)))
            return Store(total.name, (r, c), value)

        return For(number, count, "serial", (
            Alloc(total),
            self._each(tile, lambda r, c: Store(total.name, (r, c), inner.load(target, (first + r, column + c)) if begin else zero)),
            For(step, depth, "serial", (self._each(tile, update),)),
            self._each(tile, lambda r, c: Store(target.name, (first + r, column + c), inner.load(total, (r, c))))))

    def _each(self, tile: Tile, make: Callable[[DimLike, DimLike], Stmt]) -> Stmt:
        """A statement for each element of a register tile."""
        row, r = loop_symbol(self.names.fresh("r"), tile.rows)
        vector, v = loop_symbol(self.names.fresh("v"), tile.columns // tile.lanes)
        lane, j = loop_symbol(self.names.fresh("j"), tile.lanes)
        inside = For(lane, tile.lanes, "vector", (make(r, v * tile.lanes + j),), tile.lanes)
        return For(row, tile.rows, "unrolled", (For(vector, tile.columns // tile.lanes, "unrolled", (inside,)),))

    # --- the softmax of a row -----------------------------------------------------------------------------------------

    def _largest_of_row(self, row: DimLike, start: DimLike, count: DimLike) -> list[Stmt]:
        """The row's scores, and the largest of them."""
        attention, root = self.attention, self.inliner.inner()
        lets, (place,) = named_parts(self.inliner, ["row"], (self.block * self.plan.rows + row,))
        best = Buffer(self.names.fresh("best"), self.dtype, (), "register")
        root.block += [*lets, Alloc(best), Store(best.name, (), root.literal(float("-inf"), self.dtype))]

        def scored(inner: Inliner, k: DimLike) -> list[Stmt]:
            index = self._place(place, start + k)
            inner.bind(attention.first, index, lambda: inner.load(self.scores, (row, k)))
            for node, buffer in self.shared:
                inner.bind(node, self._place_of(node, place, start + k), partial(inner.load, buffer, (k,)))
            score = inner.value(attention.scores, index)
            if attention.scores is not attention.first:
                score = inner.latch(score)
                inner.block.append(Store(self.scores.name, (row, k), score))
            return [*inner.block, Store(best.name, (), score, "max")]

        return [*root.block, self._along(count, scored), Store(self.best.name, (row,), root.load(best, ()))]

    def _weights_of_row(self, row: DimLike, start: DimLike, count: DimLike) -> list[Stmt]:
        """The exponentials in the place of the row's scores; what was summed so far is scaled to the largest one now."""
        root, total = self.inliner.inner(), Buffer(self.names.fresh("sum"), self.dtype, (), "register")
        root.block += [Alloc(total), Store(total.name, (), root.literal(0.0, self.dtype))]
        largest = root.latch(root.load(self.best, (row,)))
        if self.plan.online:
            largest = self._rescale(root, row, start, largest)

        def weighed(inner: Inliner, k: DimLike) -> list[Stmt]:
            weight = inner.latch(inner.scalar("exp", inner.scalar("sub", inner.load(self.scores, (row, k)), largest)))
            return [*inner.block, Store(self.scores.name, (row, k), weight), Store(total.name, (), weight, "add")]

        root.block.append(self._along(count, weighed))
        summed = root.load(total, ())
        if self.plan.online:
            summed = root.scalar("add", root.load(self.total, (row,)), summed)
        return [*root.block, Store(self.total.name, (row,), summed)]

    def _rescale(self, root: Inliner, row: DimLike, start: DimLike, largest: Node) -> Node:
        """Scales what earlier blocks summed to the larger of the old and the new score; what exponentials are to be taken from."""
        old = root.latch(root.load(self.largest, (row,)))
        new = root.latch(root.scalar("max", old, largest))
        lowest = root.literal(float("-inf"), self.dtype)
        base = root.latch(root.scalar("select", root.scalar("eq", new, lowest), root.literal(0.0, self.dtype), new))
        inner = root.inner()
        factor = inner.latch(inner.scalar("exp", inner.scalar("sub", old, base)))
        lane, c = loop_symbol(self.names.fresh("c"), self.sums.shape[1])
        scaled = Store(self.sums.name, (row, c), inner.scalar("mul", inner.load(self.sums, (row, c)), factor))
        total = Store(self.total.name, (row,), inner.scalar("mul", inner.load(self.total, (row,)), factor))
        earlier = root.scalar("gt", root.index(start), root.index(0))
        root.block += [Store(self.largest.name, (row,), new), If(earlier, (
            *inner.block, total, For(lane, self.sums.shape[1], "vector", (scaled,), self.plan.last.lanes)))]
        return base

    def _along(self, count: DimLike, make: Callable[[Inliner, DimLike], list[Stmt]]) -> Stmt:
        """A loop along a row of scores, several vectors at a time."""
        lane, k = loop_symbol(self.names.fresh("k"), count)
        return For(lane, count, "vector", tuple(make(self.inliner.inner(), k)), self.plan.first.lanes * CHAINS)

    # --- the result ---------------------------------------------------------------------------------------------------

    def _give(self) -> Stmt:
        """Each row times what its weights have in common, through the epilogue to where it belongs."""
        row, r = loop_symbol(self.names.fresh("r"), self.count)
        lane, c = loop_symbol(self.names.fresh("c"), self.columns)
        lets, (place,) = named_parts(self.inliner, ["row"], (self.block * self.plan.rows + r,))
        root = self.inliner.inner()
        self._bind_row(root, r, place)
        factors = self._factors(root, place)
        inner = root.inner()
        index = self._place(place, c)
        value = self._weighted(inner, inner.load(self.sums, (r, c)), factors)
        inner.bind(self.attention.last, index, lambda: value)
        moved = isinstance(self.result.op, Transpose)
        exit = self.result.inputs[0] if moved else self.result
        at = reshape_index(index, self.attention.last.shape, exit.shape)
        stored = inner.value(exit, at)
        if isinstance(self.result.op, Transpose):
            at = tuple(at[axis] for axis in self.result.op.perm)
        store = Store(self.out.name, (flatten_index(at, self.result.shape),), stored)
        vectors = For(lane, self.columns, "vector", (*inner.block, store), self.plan.last.lanes)
        return For(row, self.count, "serial", (*lets, *root.block, vectors))

    def _bind_row(self, root: Inliner, row: DimLike, place: DimLike) -> None:
        """The largest score and the sum of a row, for what is computed of them."""
        index = self._place(place, 0)[:-1]
        largest = root.latch(root.load(self.largest, (row,)))
        total = root.load(self.total, (row,))
        if self.plan.online:
            lowest, nothing = root.literal(float("-inf"), self.dtype), root.literal(float("nan"), self.dtype)
            if bounds(self.keys)[0] < 1:  # without keys there is nothing to divide
                empty = root.scalar("le", root.index(self.keys), root.index(0))
                nothing = root.scalar("select", empty, root.literal(1.0, self.dtype), nothing)
            total = root.scalar("select", root.scalar("eq", largest, lowest), nothing, total)
        total = root.latch(total)
        root.bind(self.attention.largest, index, lambda: largest)
        root.bind(self.attention.total, index, lambda: total)

    def _factors(self, root: Inliner, place: DimLike) -> dict[Node, Node]:
        """What the steps read that is the same along a row, each computed once."""
        index, found = self._place(place, 0), {}
        carried = self.attention.exponentials
        for step in self.attention.steps:
            for operand in step.inputs:
                if operand is carried:
                    continue
                if isinstance(operand.op, Elementwise) and operand.op.function == "isnan" and operand.inputs[0] is carried:
                    total = root.value(self.attention.total, index[:-1])
                    found[operand] = root.latch(root.scalar("isnan", total))
                else:
                    found[operand] = root.latch(root.value(operand, index))
            carried = step
        return found

    def _weighted(self, inner: Inliner, value: Node, factors: dict[Node, Node]) -> Node:
        """What the steps make of a sum over exponentials instead of weights."""
        for step in self.attention.steps:
            value = inner.builder.add(step.op, *(factors.get(operand, value) for operand in step.inputs))
        return value
