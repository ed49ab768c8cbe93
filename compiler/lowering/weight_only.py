"""Products with weights of a few bits (`weight_only_dot`): codes are decoded in registers, or near them.

Few rows: what takes time is reading the weights. A tile of all rows and several panels side by side walks down the words of its
panels. A code is masked where it lies in its word and becomes a float, a power of two too large: the activations were multiplied by
the inverse before, which is exact down to the smallest numbers. So eight codes cost a mask, a conversion and a multiply-add a row,
and a shift by half a word now and then. The sum of a group is kept apart; it begins with the group's zero times the sum of its
activations, and is scaled once. Codes of 8 bits have their zero subtracted instead, since sums of such large codes would lose digits
and memory takes longer anyway; but where there are so many rows that codes are decoded twice, each operation counts. Activations are
prepared by each thread, in its own memory. One row meets codes of 2 or 4 bits as bytes (`lowering/byte_codes.py`), where the target
multiplies these, and so do activations that are bytes, in any number of rows.

More rows: a part of a panel is decoded once, as the weights that the op says, into the thread's memory, and the register tiles of
ordinary contractions run over it.

Where the number of rows is not known, the kernel has a nest for one row and another one for more.

Assumes a `weight_only_dot`. Guarantees: no iteration over the contraction is split between threads, so results do not depend on
their number; one row may have other bits than the same row among several.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, ceildiv, dim_min, product, size_of
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, Let, Prefetch, Stmt, Store, loop_variable
from ..ir.ops.weight_only import WORD, WeightOnlyDot, step_of_place
from ..ir.types import F32, I8, I32
from ..tiles import PANEL_SHARES, Blocks, Tile, choose_blocks, choose_tile
from .byte_codes import ByteNest, BytePlan, choose_byte_plan, choose_byte_plans, takes_bytes
from .coded_weights import LINE, Nest, Operands, op_of, words_ahead
from .contraction import TileWork, is_at_most, named_parts
from .inline import Index, Inliner, loop_symbol, unflatten_index

MOST_FEW_ROWS = 8     # for which codes are decoded anew
MOST_AT_ONCE = 4      # rows that meet each code while it is in a register
OTHER_REGISTERS = 5   # than sums and words: masks, and a code
ENOUGH_CHAINS = 8     # of sums that do not wait for one another
ENOUGH_SHARES = 16    # of the panels, for threads
MOST_BESIDE = 8       # blocks of panels for which activations are prepared once
CHUNK = 16            # activations that are prepared at a time: the powers of two repeat


class Plan(Struct, frozen=True):
    """How the op is computed, in vectors of `lanes`: `few` rows (0: there is no nest for few rows) with so many panels `beside` one
    another and `sets` of sums, words prefetched `ahead`; the register tile and blocks of the nest for more rows (None: there is none)."""

    lanes: int
    few: int
    beside: int
    sets: int
    tile: Tile | None
    blocks: Blocks
    of_bytes: tuple[BytePlan, ...] = ()
    ahead: int = 0


def choose_plan(node: Node, caps: Caps) -> Plan:
    """Nests for the number of rows that there may be."""
    if node.inputs[0].dtype == I8:
        lanes = choose_tile(int(node.inputs[1].tensor.shape[2]), 1, I32, caps).lanes  # panels have a known width
        return Plan(lanes, 0, 0, 0, None, Blocks(1, 1), choose_byte_plans(node, lanes, caps))
    found = _plan_of_floats(node, caps)
    if found.few == 1 and takes_bytes(op_of(node), caps):
        rows = product(node.shape[:-1])
        plan = choose_byte_plan(node, found.lanes, caps, 1, 0, 0 if rows == 1 else 1)
        return replace(found, few=0, of_bytes=(plan,))
    return found


def _plan_of_floats(node: Node, caps: Caps) -> Plan:
    op, panels, width = op_of(node), node.inputs[1].shape[0], node.inputs[1].shape[2]
    assert isinstance(panels, int) and isinstance(width, int)
    rows, depth = product(node.shape[:-1]), node.inputs[0].shape[-1]
    low, high = bounds(rows)
    few = 0 if low > MOST_FEW_ROWS else rows if isinstance(rows, int) else 1 if low <= 1 else 0
    tile = choose_tile(width, rows, F32, caps)
    height = min(max(few, 1), MOST_AT_ONCE)
    room = caps.vector_registers - OTHER_REGISTERS
    beside = max(1, min(panels, room // (height + 1) * tile.lanes // width))
    chains = height * beside * width // tile.lanes
    sets = max(1, min((room - chains // height) // chains, -(-ENOUGH_CHAINS // chains), WORD // op.bits // 2))
    ahead = words_ahead(node, beside, caps)
    if high <= few:
        return Plan(tile.lanes, few, beside, sets, None, Blocks(1, 1), ahead=ahead)
    blocks = choose_blocks(1, rows, op.columns, depth, tile, F32, caps)
    near = int(min(PANEL_SHARES[0] * caps.level1_bytes, PANEL_SHARES[1] * caps.level2_bytes)) // (width * F32.bytes)
    blocks = Blocks(blocks.rows, blocks.panels, _part(op, node.inputs[1].shape[1], near))
    return Plan(tile.lanes, few, beside, sets, tile, blocks, ahead=ahead)


def _part(op: WeightOnlyDot, words: DimLike, near: int) -> int:
    """Steps of a part of the contraction: whole groups of at most `near` steps, or whole fractions of one group."""
    assert isinstance(words, int)
    of_word = WORD // op.bits
    unit = _unit(op, near) // of_word
    units = words // unit
    most = max(1, near // (unit * of_word))
    parts = -(-units // most)
    return -(-units // parts) * unit * of_word


def _unit(op: WeightOnlyDot, near: int) -> int:
    """The steps of a group, or of a whole fraction of one that has at most `near` steps."""
    of_word = WORD // op.bits
    words = op.group // of_word
    return next(n for n in range(words, 0, -1) if words % n == 0 and (n * of_word <= near or n == 1)) * of_word


def lower_weight_only(node: Node, result: Node, out: Buffer, operands: Operands, inliner: Inliner, plan: Plan) -> list[Stmt]:
    """The loop nests of `node` and the epilogue that leads from it to `result`; of a result that is padded, all but the borders."""
    nests: list[Stmt] = []
    for of_bytes in plan.of_bytes:
        nests.append(ByteNest(node, result, out, operands, inliner.inner(), of_bytes).lower())
    if plan.few:
        nests.append(_FewRows(node, result, out, operands, inliner, plan).lower())
    if plan.tile is not None:
        nests.append(_ManyRows(node, result, out, operands, inliner.inner(), plan).lower())
    return nests


class _Sums(Struct, frozen=True):
    """The registers of a tile of the nest for few rows: sums of its `rows`, in one or several sets, and words of codes."""

    accumulators: Buffer
    codes: Buffer
    rows: range


class _FloatNest(Nest):
    """With the plan."""

    def __init__(self, node: Node, result: Node, out: Buffer, operands: Operands, inliner: Inliner, plan: Plan) -> None:
        super().__init__(node, result, out, operands, inliner, plan.lanes)
        self.plan = plan


class _FewRows(_FloatNest):
    """All rows meet each code while it is in a register."""

    def lower(self) -> Stmt:
        few, wide = self.plan.few, self.plan.beside * self.width
        blocks = -(-self.panels // self.plan.beside)
        together = max(1, min(MOST_BESIDE, blocks // ENOUGH_SHARES))
        room = -(-self.groups * self.op.group // CHUNK) * CHUNK
        self.activations = Buffer(self.names.fresh("left"), F32, (few, room), "local")
        self.sums = Buffer(self.names.fresh("sums"), F32, (few, self.groups), "local")
        self.totals = Buffer(self.names.fresh("totals"), F32, (few, wide), "local")
        count: DimLike = -(-blocks // together)
        if not isinstance(self.rows, int):
            count = count * is_at_most(self.rows, few) * dim_min(self.rows, 1)
        variable, at = loop_symbol(self.names.fresh("t"), count)
        body = (Alloc(self.activations), *self._prepare(), Alloc(self.totals),
                self.serial("b", dim_min(together, blocks - at * together), lambda b: self._block(at * together + b)))
        return For(variable, count, "parallel", body)

    @property
    def _begins_with_zero(self) -> bool:
        """Whether the zero of all codes is part of what a group's sum begins with."""
        return self.op.bits < 8 or self.plan.few > MOST_AT_ONCE

    @property
    def _needs_sums(self) -> bool:
        return self.operands.points is not None or self.op.zero != 0 and self._begins_with_zero

    # --- activations -------------------------------------------------------------------------------------------------

    def _prepare(self) -> tuple[Stmt, ...]:
        """The activations, each divided by the power of two that its codes are too large by, and the sums of groups."""
        inner = self.inliner
        powers = Buffer(self.names.fresh("powers"), F32, (CHUNK,), "local")
        fill = [Store(powers.name, (j,), inner.literal(2.0 ** -(self.op.bits * (place % (self.of_word // 2))), F32))
                for place, j in ((place, first + step_of_place(place, self.op.bits)) for first in range(0, CHUNK, self.of_word)
                                 for place in range(self.of_word))]
        chunks, rest = divmod(self.depth, CHUNK)
        missing = -(-self.groups * self.op.group // CHUNK) * CHUNK - self.depth
        found: list[Stmt] = [Alloc(powers), *fill]
        for r in range(self.plan.few):
            if chunks:
                chunk, c = loop_symbol(self.names.fresh("c"), chunks)
                found.append(For(chunk, chunks, "serial", (self._prepared(powers, r, c * CHUNK, CHUNK),)))
            if rest:
                found.append(self._prepared(powers, r, chunks * CHUNK, rest))
            if missing:
                lane, j = loop_symbol(self.names.fresh("j"), missing)
                clear = Store(self.activations.name, (r, self.depth + j), inner.literal(0.0, F32))
                found.append(For(lane, missing, "vector", (clear,), self.lanes))
        return (*found, *(self._sum_groups() if self._needs_sums else ()))

    def _prepared(self, powers: Buffer, row: int, first: DimLike, count: int) -> Stmt:
        lane, j = loop_symbol(self.names.fresh("j"), count)
        inner = self.inliner.inner()
        value = self.load(inner, self.operands.lhs, row * self.depth + first + j)
        store = Store(self.activations.name, (row, first + j), inner.scalar("mul", value, inner.load(powers, (j,))))
        return For(lane, count, "vector", (store,), self.lanes)

    def _sum_groups(self) -> tuple[Stmt, ...]:
        """The negative sums of each row's groups."""
        def of_group(g: DimLike) -> tuple[Stmt, ...]:
            found: list[Stmt] = []
            for r in range(self.plan.few):
                total = Buffer(self.names.fresh("sum"), F32, (), "register")
                steps = dim_min(self.op.group, self.depth - g * self.op.group)
                lane, j = loop_symbol(self.names.fresh("j"), steps)
                inner = self.inliner.inner()
                value = self.load(inner, self.operands.lhs, r * self.depth + g * self.op.group + j)
                add = For(lane, steps, "vector", (Store(total.name, (), value, "add"),), self.lanes)
                found += [Alloc(total), Store(total.name, (), inner.literal(0.0, F32)), add,
                          Store(self.sums.name, (r, g), inner.scalar("neg", inner.load(total, ())))]
            return tuple(found)

        return (Alloc(self.sums), self.serial("g", self.groups, of_group))

    # --- products ----------------------------------------------------------------------------------------------------

    def _block(self, block: DimLike) -> tuple[Stmt, ...]:
        """Some panels side by side. Where there are fewer, the last one is read again."""
        few, wide = self.plan.few, self.plan.beside * self.width
        lets, first = self.named("panel", block * self.plan.beside)
        places: list[DimLike] = []
        for beside in range(self.plan.beside):
            more, place = self.named("panel", dim_min(first + beside, self.panels - 1) if beside else first)
            lets, places = [*lets, *more], [*places, place]

        def clear(inner: Inliner, column: DimLike) -> None:
            inner.block += [Store(self.totals.name, (r, column), inner.literal(0.0, F32)) for r in range(few)]

        tile = Tile(few, wide, self.lanes)
        work = TileWork(self.node, self.result, self.out, self.operands.lhs, self.operands.words, self.inliner, tile, (0,), first, 0)
        count = -(-few // MOST_AT_ONCE)
        parts = [range(few * i // count, few * (i + 1) // count) for i in range(count)]
        groups = self.serial("g", self.groups, lambda g: tuple(s for rows in parts for s in self._group(places, g, rows)))
        return (*lets, self.each(wide, clear), groups,
                *work.count_from(0), work.store_from_memory(self.totals, guarded=True))

    def _group(self, places: list[DimLike], g: DimLike, rows: range) -> tuple[Stmt, ...]:
        """The products of a group of steps with some of the rows."""
        wide = self.plan.beside * self.width
        tile = _Sums(Buffer(self.names.fresh("acc"), F32, (self.plan.sets * len(rows), wide), "register"),
                     Buffer(self.names.fresh("codes"), I32, (wide,), "register"), rows)
        words = self.op.group // self.of_word
        inner = self.inliner.inner()
        begins: list[Node] = []
        for r in rows:
            zero = float(self.op.zero) if self._begins_with_zero and self.operands.points is None else 1.0
            begin = (inner.scalar("mul", inner.load(self.sums, (r, g)), inner.literal(zero, F32)) if self._needs_sums
                     else inner.literal(0.0, F32))
            begins.append(inner.latch(begin))
        starts = [self._begin(tile, begins, place * self.groups + g, s * self.width) for s, place in enumerate(places)]
        ends = [self._finish(tile, place * self.groups + g, s * self.width) for s, place in enumerate(places)]
        loop = self.serial("w", words, lambda w: self._word(tile, places, g * words + w))
        return (Alloc(tile.accumulators), Alloc(tile.codes), *inner.block, *starts, loop, *ends)

    def _begin(self, tile: _Sums, begins: list[Node], group: DimLike, first: int) -> Stmt:
        """What a group's sums begin with, for the columns of a panel."""
        def make(inner: Inliner, column: DimLike) -> None:
            point = None
            if self.operands.points is not None:
                point = self.load(inner, self.operands.points, group * self.width + column)
                if self.op.zero and self._begins_with_zero:
                    point = inner.scalar("add", point, inner.literal(float(self.op.zero), F32))
                point = inner.latch(point)
            for place in range(self.plan.sets * len(begins)):
                begin = begins[place] if place < len(begins) else inner.literal(0.0, F32)
                value = begin if point is None or place >= len(begins) else inner.scalar("mul", point, begin)
                inner.block.append(Store(tile.accumulators.name, (place, first + column), value))

        return self.each(self.width, make)

    def _finish(self, tile: _Sums, group: DimLike, first: int) -> Stmt:
        """Scales a group's sums, for the columns of a panel."""
        def make(inner: Inliner, column: DimLike) -> None:
            scale = inner.latch(self.load(inner, self.operands.scales, group * self.width + column))
            for place, r in enumerate(tile.rows):
                total = inner.load(tile.accumulators, (place, first + column))
                for other in range(1, self.plan.sets):
                    part = inner.load(tile.accumulators, (other * len(tile.rows) + place, first + column))
                    total = inner.scalar("add", total, part)
                total = inner.multiply_add(total, scale, inner.load(self.totals, (r, first + column)))
                inner.block.append(Store(self.totals.name, (r, first + column), total))

        return self.each(self.width, make)

    def _word(self, tile: _Sums, places: list[DimLike], at: DimLike) -> tuple[Stmt, ...]:
        """The steps of a word of each column: those in its lower half, then those in its upper half."""
        found: list[Stmt] = []
        for s, place in enumerate(places):
            start = (place * self.words + at) * self.width
            if tile.rows.start == 0:
                ahead = start + self.plan.ahead * self.width
                found += [Prefetch(self.operands.words.name, (ahead + line,)) for line in range(0, self.width, LINE)]

            def take(inner: Inliner, column: DimLike, s: int = s, start: DimLike = start) -> None:
                word = inner.load(self.flat(self.operands.words), (start + column,))
                inner.block.append(Store(tile.codes.name, (s * self.width + column,), word))

            found.append(self.each(self.width, take))

        def take_upper_half(inner: Inliner, column: DimLike) -> None:
            upper = inner.scalar("shr", inner.load(tile.codes, (column,)), inner.literal(WORD // 2, I32))
            inner.block.append(Store(tile.codes.name, (column,), upper))

        half = self.of_word // 2
        for place in range(self.of_word):
            if place == half:
                found.append(self.each(self.plan.beside * self.width, take_upper_half))
            found += self._step(tile, at * self.of_word + step_of_place(place, self.op.bits), place % half)
        return tuple(found)

    def _step(self, tile: _Sums, at: DimLike, place: int) -> list[Stmt]:
        """The codes at a place of half a word meet the activations of the rows."""
        outer = self.inliner.inner()
        activations = [outer.latch(outer.load(self.activations, (r, at))) for r in tile.rows]
        shift = self.op.bits * place

        def make(inner: Inliner, column: DimLike) -> None:
            code = inner.scalar("and", inner.load(tile.codes, (column,)), inner.literal(self.mask << shift, I32))
            value = inner.cast(code, F32)
            if self.op.zero and not self._begins_with_zero:
                value = inner.scalar("sub", value, inner.literal(float(self.op.zero << shift), F32))
            value = inner.latch(value)
            for row, left in enumerate(activations, place % self.plan.sets * len(activations)):
                total = inner.multiply_add(left, value, inner.load(tile.accumulators, (row, column)))
                inner.block.append(Store(tile.accumulators.name, (row, column), total))

        return [*outer.block, self.each(self.plan.beside * self.width, make)]


class _DecodedTile(TileWork):
    """A register tile whose right operand is the part of a panel that was decoded."""

    def _panel(self, at: Index, panel: DimLike) -> DimLike:
        assert self.sums is not None
        return (self.operand.panel(at) - self.sums.number * self.sums.depth) * self.tile.columns


class _ManyRows(_FloatNest):
    """Parts of panels are decoded, and register tiles run over them."""

    def lower(self) -> Stmt:
        tile, blocks, names = self.plan.tile, self.plan.blocks, self.names
        assert tile is not None and isinstance(blocks.depth, int)
        row_tiles = ceildiv(self.rows, tile.rows)
        shape = (ceildiv(self.panels, blocks.panels), ceildiv(row_tiles, blocks.rows))
        few = max(self.plan.few, *(of_bytes.most for of_bytes in self.plan.of_bytes), 0)
        count = product(shape) * (1 if few == 0 else 1 - is_at_most(self.rows, few))
        variable, at = loop_symbol(names.fresh("t"), count)
        lets, (right, below) = named_parts(self.inliner, ["right", "below"], unflatten_index(at, shape))
        panels_here = dim_min(blocks.panels, self.panels - right * blocks.panels)
        rows_here = dim_min(blocks.rows, row_tiles - below * blocks.rows)
        (across, p), (down, r) = loop_symbol(names.fresh("p"), panels_here), loop_symbol(names.fresh("d"), rows_here)
        decoded = Buffer(names.fresh("decoded"), F32, (blocks.depth * self.width,), "local")
        here, (panel,) = named_parts(self.inliner, ["panel"], (right * blocks.panels + p,))
        there, (row_tile,) = named_parts(self.inliner, ["tile"], (below * blocks.rows + r,))
        work = _DecodedTile(self.node, self.result, self.out, self.operands.lhs, decoded, self.inliner, tile, (0,), panel, row_tile)
        work.blocks, work.down = blocks, r
        sums = work.sum_in_parts(p)
        begin = work.count_from(below * blocks.rows * tile.rows)
        decode = self._decode(decoded, panel, sums.number, blocks.depth)
        body: tuple[Stmt, ...] = (*here, decode, *begin, For(down, rows_here, "serial", (*there, *work.body())))
        body = (For(across, panels_here, "serial", body),)
        parts = For(sums.variable, sums.count, "serial", body)
        return For(variable, count, "parallel", (*lets, Alloc(sums.memory), Alloc(decoded), parts))

    def _decode(self, target: Buffer, panel: DimLike, part: DimLike, depth: int) -> Stmt:
        """A part of a panel as floats. It is a number of units, each of which lies within a group."""
        unit = _unit(self.op, depth)
        of_part, of_group, words = depth // unit, self.op.group // unit, unit // self.of_word
        units = self.words // words

        def of_unit(u: DimLike) -> tuple[Stmt, ...]:
            lets, at = self._counted("unit", part * of_part + u, units)
            more, group = self._counted("group", panel * self.groups + at // of_group, self.panels * self.groups)
            return (*lets, *more, self.serial("w", words, lambda w: self._decode_word(
                target, (u * words + w) * self.of_word, (panel * self.words + at * words + w) * self.width, group)))

        return self.serial("u", dim_min(of_part, units - part * of_part), of_unit)

    def _counted(self, label: str, size: DimLike, extent: DimLike) -> tuple[list[Stmt], DimLike]:
        """A let for a size that is below `extent`."""
        if isinstance(size, int):
            return [], size
        found = loop_variable(self.names.fresh(label), extent)
        return [Let(found.name, self.inliner.index(size), found)], size_of(found)

    def _decode_word(self, target: Buffer, step: DimLike, start: DimLike, group: DimLike) -> tuple[Stmt, ...]:
        """The steps of a word of each column of a panel, which begin at a step of the target. The next panel's are brought near."""
        def make(inner: Inliner, column: DimLike) -> None:
            word = inner.latch(inner.load(self.flat(self.operands.words), (start + column,)))
            scale = inner.latch(self.load(inner, self.operands.scales, group * self.width + column))
            point = None
            if self.operands.points is not None:
                point = inner.latch(self.load(inner, self.operands.points, group * self.width + column))
            for i in range(self.of_word):
                code = inner.scalar("shr", word, inner.literal(self.op.bits * i, I32)) if i else word
                value = inner.cast(inner.scalar("and", code, inner.literal(self.mask, I32)), F32)
                if self.op.zero:
                    value = inner.scalar("sub", value, inner.literal(float(self.op.zero), F32))
                if point is not None:
                    value = inner.scalar("sub", value, point)
                place = (step + step_of_place(i, self.op.bits)) * self.width + column
                inner.block.append(Store(target.name, (place,), inner.scalar("mul", value, scale)))

        ahead = start + self.words * self.width
        prefetches = (Prefetch(self.operands.words.name, (ahead + line,)) for line in range(0, self.width, LINE))
        return (*prefetches, self.each(self.width, make))
