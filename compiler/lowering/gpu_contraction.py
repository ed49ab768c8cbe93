"""Matrix products on a GPU's matrix units: `packed_dot` of float16, bfloat16, bytes, and float32 rounded to tf32, with an epilogue.

A block computes a tile of the result: `rows` of the left operand and one panel of the right one, `depth` steps at a time. Both parts lie in
shared memory, in several stages: while warps multiply one, the next ones are copied (`copy_async`). A warp keeps its part of the
tile in a fragment, sums in float32 or int32, and applies the epilogue to it, to pairs of elements that lie side by side where it can.
Rows of shared memory are longer than the part by 16 bytes, so that the eight rows that a warp reads at a time lie in different banks (the
matrices are read 16 bytes a row).

Rows past the last one are copies of it, which nothing stores; panels are full, with zeros past the last column. Steps that are no
multiple of `depth`, or of what 16 bytes hold, are brought by ordinary loads, zeros after the last one. A right operand that is no constant
may be no panels, but the matrix that it was (`may_stay_plain`): then columns past the last ones are those, and steps of bytes lie in
shared memory as units read them (`BYTE_STEPS`). Where tiles are few and deep, the steps are cut into parts (`gpu_split.py`).

Where the target multiplies matrices in shared memory by four warps at once (`Caps.has_group_products`), large products go that way, as
`pack_operands` has chosen by panels in squares: a warp has 16 rows and all columns of the tile. A pipeline brings the operands: four more
warps copy the left one, and a part of a panel is one copy by the copy engine, since its squares lie as the units want them. Panels have
whole parts, with zeros past the last step; what the left operand lacks there is stored as zeros. A right operand that is no constant
is no panels, but the matrix that it was: those warps copy its pieces to their places in squares. There are as many blocks as run at the
same time, which take tiles in turns: operands of the next tile come while results of one are computed and stored.

Blocks that run at the same time should share what they read in the second level of memory: they go down a few tiles of rows for each panel.

Assumes `gpu_tile` gave a tile. Guarantees one sum an element, always in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, ceildiv, dim_max, dim_min, divides, product, substitute
from ..ir.graph import Node
from ..ir.loop import (
    PIPELINE,
    Alloc,
    Buffer,
    Commit,
    CopyAsync,
    CopyBulk,
    For,
    If,
    Let,
    Load,
    MatmulTile,
    Stmt,
    Store,
    Wait,
    variable_size,
)
from ..ir.loop_gpu import (
    COPYING_THREADS,
    GROUP_BYTES,
    GROUP_ROWS,
    barrier_bytes,
    blocks_together,
    group_steps,
    row_of_step,
    square_of,
)
from ..ir.loop_vectors import first_neighbour
from ..ir.ops.compute import FLOATS8, PackedConv, PackedDot, accumulator_dtype
from ..ir.ops.shape import Pad
from ..ir.types import BF16, F16, F32, I8, I32, U8, DType, TensorType
from ..tiles import (
    GPU_PANELS,
    copied_together,
    gpu_panel_columns,
    group_panel_columns,
    group_tile,
    is_plain_matrix,
    may_stay_plain,
    takes_windows,
)
from .contraction import named_parts
from .gpu_split import Round, choose_parts, part_rounds
from .gpu_vectors import vector_loop
from .gpu_windows import HeldPlaces, has_open_windows
from .inline import Inliner, flatten_index, loop_symbol, reshape_index, unflatten_index
from .left_operand import batch_axes, contracted, groups_of, row_operand, tap_places, window_places

# dtypes of both operands and the steps in a word of the right one, and the unit that takes them
OPERANDS = {(F16, F16, 1): "f16", (BF16, BF16, 1): "bf16", (F32, F32, 1): "f32",
            **{(left, right, 4): "i8" for left in (U8, I8) for right in (I32, I8)},
            **{(dtype, right, 4): str(dtype) for dtype in FLOATS8 for right in (I32, dtype)}}
COPIED = 16         # bytes that are copied at a time
ROW_BYTES = 64      # of a row of the left operand in shared memory
STAGES = 4          # of shared memory
GROUP_STAGES = {(128, 256): 4, (128, 128): 6, (64, 128): 4}  # where four warps multiply together; of the last tile two blocks have room
MANY_TILES = 4      # of a multiprocessor, from which on narrow ones are high: fewer leave some idle at the end
GROUPED_ROWS = 8    # tiles of rows that blocks go down before the next panel
# of `depth` steps in microseconds: what three stages wait for memory, and elements of 64 bytes of steps that units take (A100, its figures)
ROUND_TIME, ELEMENTS_A_MICROSECOND = 0.2, 45000


class GpuTile(Struct, frozen=True):
    """What a block computes: `rows` x `columns` of the result, `depth` steps at a time, by warps that lie `down` x `across`; of the steps
    one of `parts`. `grouped`: each four warps multiply together, in so many `blocks` that run at the same time; `plain`: the right operand
    is no panels, but a matrix."""

    rows: int
    columns: int
    depth: int
    down: int
    across: int
    parts: int = 1
    grouped: bool = False
    plain: bool = False
    blocks: int = 0

    @property
    def stages(self) -> int:
        return GROUP_STAGES[self.rows, self.columns] if self.grouped else STAGES

    @property
    def threads(self) -> int:
        return 32 * self.down * self.across


def gpu_tile(node: Node, result: Node, caps: Caps) -> GpuTile | None:
    """The tile for a contraction; None for those that go another way."""
    op = node.op
    if not isinstance(op, (PackedDot, PackedConv)):
        return None
    caps = caps.with_tf32() if op.tf32 else caps
    left, right = node.inputs
    rows, columns, plain, in_groups = product(node.shape[batch_axes(op):-1]), right.shape[-1], False, False
    taken = I8 if left.dtype == U8 else left.dtype
    if isinstance(op, PackedDot):
        plain = is_plain_matrix(op, right.tensor)
        may_group = plain and op.step == 1 and not op.tf32
        in_groups = may_group and group_panel_columns(node.shape[-1], rows, left.shape[-1], left.dtype, caps) is not None
        if op.symmetric:
            return None
    if op.square > 1 or in_groups:
        return None if isinstance(result.op, Pad) else _group_tile(node, op, caps)
    if isinstance(op, PackedConv) and not takes_windows(op, left.tensor, right.tensor, caps):
        return None
    if plain:
        columns = gpu_panel_columns(node.shape[-1], rows, taken, caps) or 0
    fits = not plain or may_stay_plain(node.shape[-1], left.shape[-1], taken, caps)
    unit = OPERANDS.get((left.dtype, right.dtype, op.step))
    if unit not in caps.matrix_units or columns not in GPU_PANELS or not fits:
        return None
    depth = ROW_BYTES // left.dtype.bytes
    assert isinstance(columns, int)
    most = bounds(rows)[1]

    def most_tiles(high: int) -> float:
        panels = ceildiv(node.shape[-1] // groups_of(op), columns) * groups_of(op)
        return bounds(panels * product(node.shape[:batch_axes(op)]) * ceildiv(rows, high))[1]

    # rows without a bound, which may be few, take tiles half as high: a warp's part of the tile, and so what it reads, is as large
    if columns == 128 and 64 < most < math.inf and most_tiles(128) >= caps.multiprocessors:
        return GpuTile(128, 128, depth, 2, 4, plain=plain)
    if columns == 64 and 64 < most < math.inf and most_tiles(128) >= MANY_TILES * caps.multiprocessors:
        return GpuTile(128, 64, depth, 2, 2, plain=plain)
    if columns >= 64:
        tile = GpuTile(64, columns, depth, 2, 2, plain=plain) if most > 32 else GpuTile(32, columns, depth, 1, 4, plain=plain)
    else:
        tile = GpuTile(64 if most > 32 else 32, columns, depth, 2 if most > 32 else 1, 2, plain=plain)
    busy = tile.rows * columns / ELEMENTS_A_MICROSECOND
    read = sum(product(x.shape) * x.dtype.bytes for x in (left, right))
    sums = product(node.shape) * accumulator_dtype(node.dtype).bytes
    rounds, each = ceildiv(contracted(node), depth), Round(max(ROUND_TIME, busy), busy)
    return replace(tile, parts=choose_parts(most_tiles(tile.rows), rounds, each, read, sums, caps))


def _group_tile(node: Node, op: PackedDot | PackedConv, caps: Caps) -> GpuTile | None:
    """The tile where warps multiply in groups of four: panels are in squares, of whole parts."""
    left, right = node.inputs
    columns, steps = right.shape[-1], right.shape[-2]
    depth, pieces = group_steps(left.dtype), COPIED // left.dtype.bytes
    assert isinstance(columns, int)
    plain, square = op.square == 1, square_of(right.dtype.bytes)
    whole = (columns % square == 0 or not plain) and (divides(depth // op.step, steps) or plain) and divides(pieces, left.shape[-1]) \
        and groups_of(op) == 1
    fits = (plain or op.square == square) and OPERANDS.get((left.dtype, right.dtype, op.step)) in caps.matrix_units and whole
    if not caps.has_group_products or not fits:
        return None
    tile = group_tile(node.shape[-1], product(node.shape[batch_axes(op):-1]), caps, 0 if plain else columns)
    if tile is None:
        return None
    found = GpuTile(*tile, depth, tile[0] // GROUP_ROWS, 1, grouped=True, plain=plain)
    of_stage = GROUP_BYTES * (found.rows + found.columns)  # both have as many steps, whose bytes are a row
    together = blocks_together(found.stages * of_stage + barrier_bytes(found.stages))
    return replace(found, blocks=caps.multiprocessors * together)


def lower_gpu_contraction(node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner, tile: GpuTile) -> Stmt:
    """The loop over blocks of `node` (packed_dot) and the epilogue that leads from it to `result`; of several parts the sums alone,
    [parts, *shape]."""
    return _Work(node, result, out, lhs, rhs, inliner, tile).lower()


class _Work:
    """The statements of one block."""

    def __init__(self, node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner, tile: GpuTile) -> None:
        assert isinstance(node.op, (PackedDot, PackedConv))
        self.pad = result if isinstance(result.op, Pad) else None
        self.result = result.inputs[0] if self.pad is not None else result
        self.node, self.out, self.lhs, self.rhs, self.inliner, self.tile = node, out, lhs, rhs, inliner, tile
        self.batch_shape = node.shape[:batch_axes(node.op)]
        self.groups, self.columns = groups_of(node.op), node.shape[-1] // groups_of(node.op)
        self.steps = contracted(node)
        self.is_window = isinstance(node.op, PackedConv)
        names = inliner.names
        left, right = (x.dtype for x in node.inputs)
        self.step = 1 if tile.plain else node.op.step  # steps of an element of the right operand
        self.in_bytes = tile.plain and right.bytes == 1
        self.right_depth = tile.depth // self.step
        copied = copied_together(node.op, node.inputs[0].tensor) if isinstance(node.op, PackedConv) else COPIED
        self.copied = copied // left.bytes, COPIED // right.bytes  # elements
        # what fills a bank, words and float32, lanes read one by one on the right, which 8 more than whole rows of banks keep apart
        padding = (0, 0) if tile.grouped else (COPIED // left.bytes, 8 if right.bytes == 4 else self.copied[1])
        self.left = Buffer(names.fresh("left"), left, (tile.stages * tile.rows, tile.depth + padding[0]), "shared")
        self.right = Buffer(names.fresh("right"), right, (tile.stages * self.right_depth, tile.columns + padding[1]), "shared")
        warps = tile.down * tile.across
        self.dtype = accumulator_dtype(node.dtype)
        self.sums = Buffer(names.fresh("sums"), self.dtype, (warps, tile.rows // tile.down, tile.columns // tile.across), "fragment")
        self.copies = divides(self.copied[0], self.steps)

    def lower(self) -> Stmt:
        tile, names = self.tile, self.inliner.names
        rows = product(self.node.shape[len(self.batch_shape):-1])
        panels, row_tiles = ceildiv(self.columns, tile.columns), ceildiv(rows, tile.rows)
        groups = divides(GROUPED_ROWS, row_tiles)
        order = (row_tiles // GROUPED_ROWS, panels, GROUPED_ROWS) if groups else (1, panels, row_tiles)
        shape = (tile.parts, self.groups, *self.batch_shape, *order)
        count = product(shape)
        variable, at = loop_symbol(names.fresh("t"), count)
        lets, parts = named_parts(self.inliner, ["part", "channels", *(f"b{a}_" for a in range(len(self.batch_shape))), "group", "panel",
                                                   "tile"], unflatten_index(at, shape))
        self.part, self.group, *batch, group, self.panel, down = parts
        self.batch = tuple(batch)
        self.operand = row_operand(self.node, self.batch, self.group)
        self.first_row = (group * order[2] + down) * tile.rows
        self.rows = rows
        memory: tuple[Stmt, ...] = (Alloc(self.left), Alloc(self.right), Alloc(self.sums))
        self.held = None
        if has_open_windows(self.node) and not tile.grouped:
            self.held = HeldPlaces(self.node, self.operand, self.inliner, tile.threads, tile.rows, tile.depth // self.copied[0])
            memory += self.held.fill(self._row)
        contract = (self._pipeline(),) if tile.grouped else self._contract()
        return For(variable, count, "block", (*lets, *memory, self._clear(), *contract, self._epilogue()), tile.blocks)

    # --- the contraction ---

    def _contract(self) -> tuple[Stmt, ...]:
        depth, parts = self.tile.depth, self.tile.parts
        rounds, rest = ceildiv(self.steps, depth), not divides(depth, self.steps) and not self.is_window
        first, end = part_rounds(self.part, parts, rounds)
        if not self.copies:
            return (self._loaded_steps(first, end - first),)
        # the last part has the round that is not whole
        whole = end - first if not rest else self.steps // depth - first if parts == 1 else end - first - (self.part + 1) // parts
        inliner, names = self.inliner, self.inliner.names
        statements: list[Stmt] = []
        ahead_of, stages = self.tile.stages - 1, self.tile.stages
        stage, s = loop_symbol(names.fresh("s"), ahead_of)
        ahead = inliner.scalar("lt", inliner.index(s), inliner.index(whole))
        statements.append(For(stage, ahead_of, "serial", (self._copy(first + s, s, ahead), Commit())))
        variable, step = loop_symbol(names.fresh("k"), whole)
        following = step + ahead_of
        more = inliner.scalar("lt", inliner.index(following), inliner.index(whole))
        body = (Wait(stages - 2), self._copy(first + following, following % stages, more), Commit(), self._multiply(step % stages))
        statements.append(For(variable, whole, "serial", body))
        if rest:
            statements.append(Wait(0))
            statements.append(self._loaded_steps(first + whole, end - first - whole))
        return tuple(statements)

    def _pipeline(self) -> Stmt:
        """All steps: the copies of a round run ahead of its products."""
        tile, inliner, n = self.tile, self.inliner, self.copied[0]
        rounds = ceildiv(self.node.inputs[1].shape[-2], self.right_depth)
        variable, step = loop_symbol(inliner.names.fresh("k"), rounds)
        stage = step % tile.stages
        part = self.right_depth * tile.columns
        panel = CopyBulk(self.right.name, (stage * self.right_depth, 0), self.rhs.name, (self._right(step * self.right_depth),), part)
        thread, t = loop_symbol(inliner.names.fresh("c"), COPYING_THREADS)

        def from_left(row: DimLike, piece: DimLike) -> Stmt:
            return self._piece_of_row((stage * tile.rows + row, piece * n), row, step * tile.depth + piece * n)

        def from_right(square: DimLike, row: DimLike) -> Stmt:
            """Row of a square, where squares lie one after another; columns past the last one are some that are there."""
            down, across = unflatten_index(square, (tile.depth // n, tile.columns // n))
            at, columns = step * tile.depth + down * n + row, self.node.shape[-1]
            column = dim_min(self.panel * tile.columns + across * n, columns - n)
            place = (stage * part + square * n * n + row * n,)
            return self._or_zeros(CopyAsync(self.right.name, place, self.rhs.name, (self._plain_right(at) + column,), n), at)

        pieces = self._pieces(t, tile.rows, tile.depth // n, from_left, COPYING_THREADS)
        if tile.plain:
            pieces += self._pieces(t, part // (n * n), n, from_right, COPYING_THREADS)
        copies = For(thread, COPYING_THREADS, "thread", tuple(pieces))
        return For(variable, rounds, PIPELINE, (*([] if tile.plain else [panel]), copies, self._multiply(stage)), tile.stages)

    def _copy(self, step: DimLike, stage: DimLike, when: Node) -> Stmt:
        """Begins to copy the operands of a step into a stage. The condition stands within the loop over threads, so that the one barrier
        before it serves what was waited for as well."""
        tile, inliner = self.tile, self.inliner
        thread, t = loop_symbol(inliner.names.fresh("c"), tile.threads)
        n, m = self.copied

        def from_right(row: DimLike, piece: DimLike) -> Stmt:
            at, place = step * self.right_depth + row, (stage * self.right_depth + self._row_of(row), piece * m)
            copied = CopyAsync(self.right.name, place, self.rhs.name, (self._right_element(at, piece * m, m),), m)
            return self._or_zeros(copied, at * self.step)

        def from_held(row: DimLike, piece: DimLike, base: DimLike, places: list[DimLike]) -> list[Stmt]:
            return [self._piece_of_left((stage * tile.rows + row, piece * n), base, places, step * tile.depth + piece * n)]

        def from_left(row: DimLike, piece: DimLike) -> Stmt:
            return self._piece_of_row((stage * tile.rows + row, piece * n), row, step * tile.depth + piece * n)

        body = [self.held.copy(t, from_held)] if self.held is not None else self._pieces(t, tile.rows, tile.depth // n, from_left)
        body += self._pieces(t, self.right_depth, tile.columns // m, from_right)
        return For(thread, tile.threads, "thread", (If(when, tuple(body)),))

    def _piece_of_row(self, place: tuple[DimLike, ...], row: DimLike, step: DimLike) -> CopyAsync:
        return self._piece_of_left(place, self.operand.base(self._row(row)), window_places(self.node, self._row(row)), step)

    def _piece_of_left(self, place: tuple[DimLike, ...], base: DimLike, places: Sequence[DimLike], step: DimLike) -> CopyAsync:
        """A piece of the left operand, zeros where a window, that begins at `places`, hangs over the edge."""
        inliner, zero = self.inliner, self.inliner.index(0)
        copied = CopyAsync(self.left.name, place, self.lhs.name, (base + self.operand.element(step),), self.copied[0])
        for begin, (tap, size) in zip(places, tap_places(self.node, step), strict=True):
            at = inliner.index(begin + tap)
            for inside in (inliner.scalar("ge", at, zero), inliner.scalar("lt", at, inliner.index(size))):
                copied = self._given(copied, inside)
        return self._or_zeros(copied, step)

    def _or_zeros(self, copied: CopyAsync, step: DimLike) -> CopyAsync:
        """A piece of a step; zeros past the last one, where rounds are copied that are not whole."""
        if divides(self.tile.depth, self.steps) or not (self.tile.grouped or self.is_window):
            return copied
        return self._given(copied, self.inliner.scalar("lt", self.inliner.index(step), self.inliner.index(self.steps)))

    def _given(self, copied: CopyAsync, condition: Node) -> CopyAsync:
        known = copied.condition
        return replace(copied, condition=condition if known is None else self.inliner.scalar("and", known, condition))

    def _pieces(self, thread: DimLike, rows: int, pieces: int, make: object, threads: int = 0) -> list[Stmt]:
        """What all threads, or so many, do together for each piece of each row, neighbouring threads for neighbouring pieces."""
        assert callable(make)
        count, threads = rows * pieces, threads or self.tile.threads
        turns = max(1, count // threads)
        variable, turn = loop_symbol(self.inliner.names.fresh("i"), turns)
        lets, (row, piece) = named_parts(self.inliner, ["row", "piece"], unflatten_index(turn * threads + thread, (rows, pieces)))
        body = (*lets, *_as_statements(make(row, piece)))
        if count < threads:
            inside = self.inliner.scalar("lt", self.inliner.index(thread), self.inliner.index(count))
            lets, (row, piece) = named_parts(self.inliner, ["row", "piece"], unflatten_index(dim_min(thread, count - 1), (rows, pieces)))
            return [If(inside, (*lets, *_as_statements(make(row, piece))))]
        assert count % threads == 0
        return [For(variable, turns, "unrolled", body)]

    def _left(self, row: DimLike, step: DimLike) -> DimLike:
        """Where an element of the left operand lies; past the last row, of that one."""
        return self.operand.base(self._row(row)) + self.operand.element(step)

    def _row(self, row: DimLike) -> DimLike:
        return dim_min(self.first_row + row, self.rows - 1)

    def _right(self, step: DimLike) -> DimLike:
        """Where the row of the panel for a step begins."""
        panels, depth, width = self.node.inputs[1].shape[-3:]
        batch = flatten_index(self.batch, self.batch_shape) + self.group
        return ((batch * panels + self.panel) * depth + step) * width

    def _plain_right(self, step: DimLike) -> DimLike:
        """Where a step of a right operand begins that is no panels."""
        depth, width = self.node.inputs[1].shape[-2:]
        return (flatten_index(self.batch, self.batch_shape) * depth + step) * width

    def _right_element(self, step: DimLike, column: DimLike, count: int = 1) -> DimLike:
        """Where so many columns of the tile lie for a step; past the last one of a matrix that is no panels, those."""
        if not self.tile.plain:
            return self._right(step) + column
        return self._plain_right(step) + dim_min(self.panel * self.tile.columns + column, self.node.shape[-1] - count)

    def _row_of(self, step: DimLike) -> DimLike:
        """The row of shared memory, of those of a stage, that a step of the right operand has."""
        return row_of_step(step) if self.in_bytes else step

    def _loaded_steps(self, first: DimLike, count: DimLike) -> Stmt:
        """Steps whose operands are brought by ordinary loads, zeros past the last one."""
        tile, inliner = self.tile, self.inliner
        variable, number = loop_symbol(inliner.names.fresh("k"), count)
        thread, t = loop_symbol(inliner.names.fresh("c"), tile.threads)
        begin, words = (first + number) * tile.depth, (first + number) * self.right_depth
        body = [*self._pieces(t, tile.rows, tile.depth, lambda row, step: self._load(
            self.left, (row, step), self.lhs, (begin + step, self.steps), lambda at: self._left(row, at)))]
        body += self._pieces(t, self.right_depth, tile.columns, lambda step, column: self._load(
            self.right, (self._row_of(step), column), self.rhs, (words + step, self.node.inputs[1].shape[-2]),
            lambda at: self._right_element(at, column)))
        return For(variable, count, "serial", (For(thread, tile.threads, "thread", tuple(body)), self._multiply(0)))

    def _load(self, target: Buffer, place: tuple[DimLike, ...], source: Buffer, within: tuple[DimLike, DimLike], where: object) -> Stmt:
        """Stores the element of a step, of so many steps in all."""
        assert callable(where)
        step, steps = within
        inliner = self.inliner
        flat = Buffer(source.name, source.dtype, (product(source.shape),), source.space)
        inside = inliner.scalar("lt", inliner.index(step), inliner.index(steps))
        zero = self._zero(target.dtype)
        clamped = dim_max(dim_min(step, steps - 1), 0)
        return If(inside, (Store(target.name, place, inliner.inner().load(flat, (where(clamped),))),), (Store(target.name, place, zero),))

    def _zero(self, dtype: DType) -> Node:
        inliner = self.inliner
        return inliner.bitcast(inliner.literal(0, U8), dtype) if dtype.is_stored else inliner.literal(0.0 if dtype.is_float else 0, dtype)

    def _warp_loop(self) -> tuple[tuple[For, DimLike], DimLike, DimLike]:
        """A loop over warps, and where a warp's part of the tile begins."""
        tile = self.tile
        warp, w = loop_symbol(self.inliner.names.fresh("w"), tile.down * tile.across)
        down, across = (w // tile.across, w % tile.across) if tile.across > 1 else (w, 0)
        _, rows, columns = self.sums.shape
        return (For(warp, tile.down * tile.across, "warp", ()), w), down * rows, across * columns

    def _multiply(self, stage: DimLike) -> Stmt:
        (loop, _), row, column = self._warp_loop()
        tile, op = self.tile, self.node.op
        assert isinstance(op, (PackedDot, PackedConv))
        product_of = MatmulTile(self.sums.name, self.left.name, (stage * tile.rows + row, 0), self.right.name,
                                (stage * self.right_depth, column), tile.depth, tile.grouped, tf32=op.tf32)
        return For(loop.symbol, loop.extent, "warp", (product_of,))

    # --- the fragments ---

    def _clear(self) -> Stmt:
        (loop, w), _, _ = self._warp_loop()
        _, rows, columns = self.sums.shape
        assert isinstance(rows, int) and isinstance(columns, int)
        lane, e = loop_symbol(self.inliner.names.fresh("e"), rows * columns)
        store = Store(self.sums.name, (w, e // columns, e % columns), self.inliner.literal(0.0 if self.dtype.is_float else 0, self.dtype))
        return For(loop.symbol, loop.extent, "warp", (For(lane, rows * columns, "lane", (store,)),))

    def _epilogue(self) -> Stmt:
        """What is computed of the sums, where they belong to the result."""
        (loop, w), first_row, first_column = self._warp_loop()
        _, rows, columns = self.sums.shape
        assert isinstance(rows, int) and isinstance(columns, int)
        inliner = self.inliner
        lane, e = loop_symbol(inliner.names.fresh("e"), rows * columns)
        at = (self.first_row + first_row + e // columns, self.panel * self.tile.columns + first_column + e % columns)
        lets, (row, column) = named_parts(inliner, ["row", "column"], at)
        body: tuple[Stmt, ...] = self._store((w, e // columns, e % columns), row, column)
        element = For(lane, rows * columns, "lane", (*lets, *body))
        pair = self._pair(element)
        if pair is not None:
            lets, body, (row, column) = [], (pair,), (substitute(size, {lane.name: e * 2}) for size in at)
            element = For(lane, rows * columns // 2, "lane", ())
        for place, size, tile in ((row, self.rows, self.tile.rows), (column, self.columns, self.tile.columns)):
            if not divides(tile, size):
                body = (If(inliner.scalar("lt", inliner.index(place), inliner.index(size)), body),)
        return For(loop.symbol, loop.extent, "warp", (replace(element, body=(*lets, *body)),))

    def _pair(self, element: For) -> For | None:
        """Two neighbouring elements, which a lane has both, as a vector loop over what is done for one; None where they are not stored
        beside one another."""
        if not divides(2, self.columns) or not all(isinstance(s, (Let, Store)) for s in element.body):
            return None
        name = self.inliner.names.fresh("pair")
        pair = vector_loop(element, 2, variable_size(element.symbol), name)
        return pair if all(first_neighbour(s.index, pair) is not None for s in pair.body if isinstance(s, Store)) else None

    def _store(self, element: Sequence[DimLike], row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
        """The element (row, column) of the result, of the sum at `element` of the fragments."""
        node, column = self.node, self.group * self.columns + column
        target = flatten_index((*self.batch, row), (*self.batch_shape, self.rows)) * node.shape[-1] + column
        sums = Node(Load(self.sums.name, tuple(element), self.dtype), (), TensorType(self.dtype, ()))
        if self.tile.parts > 1:
            return (Store(self.out.name, (self.part * product(node.shape) + target,), sums),)
        index = (*self.batch, *unflatten_index(row, node.shape[len(self.batch):-1]), column)
        inner = self.inliner.inner()
        value = inner.cast(sums, node.dtype)
        inner.bind(node, index, lambda: value)
        place = reshape_index(index, node.shape, self.result.shape)
        stored = inner.value(self.result, place)
        if self.pad is not None:
            assert isinstance(self.pad.op, Pad)
            target = flatten_index(tuple(i + low for i, low in zip(place, self.pad.op.low)), self.pad.shape)
        return (*inner.block, Store(self.out.name, (target,), stored))


def _as_statements(made: Stmt | Sequence[Stmt]) -> tuple[Stmt, ...]:
    return tuple(made) if isinstance(made, Sequence) else (made,)


__all__ = ["GpuTile", "gpu_tile", "lower_gpu_contraction"]
