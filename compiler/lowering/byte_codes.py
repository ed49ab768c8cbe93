"""Products of bytes with weights of 2 or 4 bits (`weight_only_dot`), codes spelled out in registers as bytes.

A mask leaves four codes of a word, one in each of its bytes, which are four steps that follow one another: what the other codes need
is a shift by less than a byte. Codes are unsigned and activations signed, as the instructions have it, and no code is made signed: the
group's zero times the sum of its activations is what a sum begins with. An instruction multiplies four bytes of each column and adds
them up in 32 bits (vpdpbusd); or two within 16 bits (pmaddubsw), where products of such codes may be added up for some words before
they go on to 32 bits, and nothing is cut off. A group's sum is exact, and meets its scale once.

The few activations of one row may be floats: each is three bytes then, digits of a number that it is, in units of a power of two of its
group, rounded to 2**-21 of the greatest one. Three products of bytes are less work than the conversion of codes to floats that they save.

A tile of rows meets the codes of some panels while they are in registers; tiles of a block of rows follow one another. Rows
past the end are those at the end once more, and are not stored.

Assumes a `weight_only_dot` of such codes. Guarantees: as `lowering/weight_only.py` states.
"""

from __future__ import annotations

from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, ceildiv, dim_min, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, Prefetch, Stmt, Store
from ..ir.ops.weight_only import BYTE_CODES, WORD, WeightOnlyDot
from ..ir.types import F32, I8, I32, U8, U32
from ..tiles import Tile
from .coded_weights import LINE, Nest, Operands, op_of, words_ahead
from .contraction import TileWork, is_at_most, named_parts
from .inline import Inliner, loop_symbol, unflatten_index

BYTES = 4                 # of a word
DIGITS = 3                # bytes of an activation that is a float
DIGIT = 256.0
UNIT = 2.0**-21           # of the greatest power of two within a group: activations are whole numbers of it, below 2**22
MAGIC, MAGIC_BITS = 1.5 * 2.0**23, 0x4B400000  # added to such a number, it is in the lower bits of the sum, rounded
LEAST_POWER, EXPONENT = 0x00800000, 0x7F800000  # bits of float32: 2**-126; those of the exponent
ONES = 0x00010001         # two of 16 bits
MOST_PAIR = 32767 // (2 * 128)  # of codes: what products of two with any signed bytes may add up to in 16 bits
OTHER_REGISTERS = 3       # than sums, words and codes: a mask, an activation, a product
MOST_VECTORS = 8          # of columns side by side
MOST_NEAR = 4             # vectors of sums of 32 bits that stay in registers beside those of 16
BLOCK_ROWS = 64           # which meet panels one after the other
ENOUGH_SHARES = 16        # of the panels, for threads
MOST_BESIDE = 8           # blocks of panels for which sums of activations are prepared once
FEW_SHARES = 8            # where each share has digits prepared


class BytePlan(Struct, frozen=True):
    """A nest for `least` rows and more, at most `most` (0: any number): tiles of `rows` rows and `beside` panels, `high` of them below one
    another in a block. An activation is `digits` bytes. `pairs`: quads whose products add up within 16 bits (0: in 32 at
    once). `ahead`: how far words are prefetched (0: they are not, since a block of rows reads them again)."""

    lanes: int
    least: int
    most: int
    rows: int
    beside: int
    high: int
    digits: int
    pairs: int
    ahead: int


def takes_bytes(op: WeightOnlyDot, caps: Caps) -> bool:
    """Whether the target multiplies bytes as fast as such codes need it."""
    return op.bits in BYTE_CODES and (caps.has_byte_pairs or caps.has_quads)


def choose_byte_plans(node: Node, lanes: int, caps: Caps) -> tuple[BytePlan, ...]:
    """The nests for the number of rows that there may be: one for a single row where there may be more, too."""
    rows = product(node.shape[:-1])
    least, most = bounds(rows)
    if isinstance(rows, int):
        return (choose_byte_plan(node, lanes, caps, rows, 0, 0),)
    found = [choose_byte_plan(node, lanes, caps, 1, 0, 1)] if least <= 1 else []
    return (*found, choose_byte_plan(node, lanes, caps, rows, 2, 0)) if most > 1 else tuple(found)


def choose_byte_plan(node: Node, lanes: int, caps: Caps, rows: DimLike, least: int, most: int) -> BytePlan:
    op, (panels, _, width) = op_of(node), node.inputs[1].shape
    assert isinstance(panels, int) and isinstance(width, int)
    digits = 1 if node.inputs[0].dtype == I8 else DIGITS
    pairs = MOST_PAIR // ((1 << op.bits) - 1) if caps.has_byte_pairs and not caps.has_quads else 0
    vectors, room = width // lanes, caps.vector_registers - OTHER_REGISTERS
    highest = max(1, (room - 2 * vectors) // (digits * vectors))
    height = highest
    if isinstance(rows, int):
        height = -(-max(rows, 1) // -(-max(rows, 1) // highest))
    beside = max(1, min(room // (height * digits + 2), MOST_VECTORS) // vectors)
    beside, one_tile = min(beside, panels), isinstance(rows, int) and rows <= height
    high = 1 if one_tile else max(1, BLOCK_ROWS // height)
    return BytePlan(lanes, least, most, height, beside, high, digits, pairs, words_ahead(node, beside, caps) if high == 1 else 0)


class _Registers(Struct, frozen=True):
    """What the tile keeps while it goes through a group: sums of each row and digit by column (`narrow` ones, within 16 bits, where
    there are such), words, and codes."""

    sums: Buffer
    narrow: Buffer | None
    words: Buffer
    codes: Buffer


class ByteNest(Nest):
    """Tiles of a block of rows meet some panels."""

    def __init__(self, node: Node, result: Node, out: Buffer, operands: Operands, inliner: Inliner, plan: BytePlan) -> None:
        super().__init__(node, result, out, operands, inliner, plan.lanes)
        self.plan, self.wide = plan, plan.beside * self.width
        self.places = 8 // self.op.bits  # of a code within a byte
        block = plan.high * plan.rows
        self.left = Buffer(self.names.fresh("left"), I8, (plan.digits, block, self.groups * self.op.group), "local")
        self.powers = Buffer(self.names.fresh("powers"), F32, (block, self.groups), "local")
        self.sums = Buffer(self.names.fresh("sums"), I32 if plan.digits == 1 else F32, (block, self.groups), "local")
        self.totals = Buffer(self.names.fresh("totals"), F32, (plan.rows, self.wide), "local")

    def lower(self) -> Stmt:
        plan = self.plan
        blocks = -(-self.panels // plan.beside)
        shares, most = (FEW_SHARES, blocks) if plan.digits > 1 else (ENOUGH_SHARES, MOST_BESIDE)
        together = max(1, min(most, blocks // shares))
        row_tiles = ceildiv(self.rows, plan.rows)
        shape = (ceildiv(row_tiles, plan.high), -(-blocks // together))
        count = product(shape)
        if plan.most:
            shape = (1, shape[1])
            count = shape[1] * is_at_most(self.rows, plan.most) * dim_min(self.rows, 1)
        elif plan.least:
            count = count * (1 - is_at_most(self.rows, plan.least - 1))
        variable, at = loop_symbol(self.names.fresh("t"), count)
        lets, (below, across) = named_parts(self.inliner, ["below", "across"], unflatten_index(at, shape))
        tiles_here = 1 if plan.high == 1 else dim_min(plan.high, row_tiles - below * plan.high)
        first = below * plan.high
        body = (*self._prepare(first * plan.rows, tiles_here * plan.rows), Alloc(self.totals), self.serial(
            "b", dim_min(together, blocks - across * together), lambda b: self._block(across * together + b, first, tiles_here)))
        return For(variable, count, "parallel", (*lets, *body))

    @property
    def _needs_sums(self) -> bool:
        return self.operands.points is not None or self.op.zero != 0

    # --- activations -------------------------------------------------------------------------------------------------

    def _row(self, row: DimLike) -> DimLike:
        """A row of the left operand: the last one in place of those past the end."""
        return row if isinstance(row, int) and isinstance(self.rows, int) and row < self.rows else dim_min(row, self.rows - 1)

    def _prepare(self, first: DimLike, count: DimLike) -> tuple[Stmt, ...]:
        """The digits of a block's activations where they are floats, and the negative sums of their groups."""
        has_digits = self.plan.digits > 1
        if not has_digits and not self._needs_sums:
            return ()
        make = self._digits if has_digits else self._sum

        def of_row(r: DimLike) -> tuple[Stmt, ...]:
            lets, row = self.named("row", self._row(first + r))
            whole, rest = divmod(self.depth, self.op.group)
            found = [self.serial("g", whole, lambda g: make(row, r, g, self.op.group))] if whole else []
            return (*lets, *found, *(make(row, r, whole, rest) if rest else ()))

        allocated = (Alloc(self.left), Alloc(self.powers)) if has_digits else ()
        return (*allocated, *((Alloc(self.sums),) if self._needs_sums else ()), self.serial("r", count, of_row))

    def _sum(self, row: DimLike, r: DimLike, g: DimLike, steps: int) -> tuple[Stmt, ...]:
        """The negative sum of a group of bytes."""
        lane, j = loop_symbol(self.names.fresh("j"), steps)
        inner, total = self.inliner.inner(), Buffer(self.names.fresh("sum"), I32, (), "register")
        value = self.load(inner, self.operands.lhs, row * self.depth + g * self.op.group + j, I32)
        add = For(lane, steps, "vector", (Store(total.name, (), value, "add"),), self.lanes)
        return (Alloc(total), Store(total.name, (), inner.literal(0, I32)), add,
                Store(self.sums.name, (r, g), inner.scalar("neg", inner.load(total, ()))))

    def _digits(self, row: DimLike, r: DimLike, g: DimLike, steps: int) -> tuple[Stmt, ...]:
        """A group of so many floats as whole numbers in three bytes each, in units of a power of two."""
        start = row * self.depth + g * self.op.group
        largest = Buffer(self.names.fresh("largest"), I32, (), "register")  # its bits: of numbers without a sign they are in order
        lane, j = loop_symbol(self.names.fresh("j"), steps)
        inner = self.inliner.inner()
        magnitude = inner.scalar("and", inner.bitcast(self.load(inner, self.operands.lhs, start + j), I32), inner.literal(0x7FFFFFFF, I32))
        found: list[Stmt] = [Alloc(largest), Store(largest.name, (), inner.literal(0, I32)),
                             For(lane, steps, "vector", (Store(largest.name, (), magnitude, "max"),), self.lanes)]
        outer = self.inliner.inner()
        greatest = outer.bitcast(outer.load(largest, ()), F32)
        bits = outer.scalar("and", outer.load(largest, ()), outer.literal(EXPONENT, I32))
        power = outer.latch(outer.bitcast(outer.scalar("max", bits, outer.literal(LEAST_POWER, I32)), F32))
        nothing = outer.scalar("sub", greatest, greatest)  # NaN where the group has an infinity, or one
        unit = outer.scalar("add", outer.scalar("mul", power, outer.literal(UNIT, F32)), nothing)
        outer.block.append(Store(self.powers.name, (r, g), unit))
        total = Buffer(self.names.fresh("sum"), F32, (), "register")
        outer.block += [Alloc(total), Store(total.name, (), outer.literal(0.0, F32))]
        lane, j = loop_symbol(self.names.fresh("j"), steps)
        inner = self.inliner.inner()
        whole = inner.scalar("div", self.load(inner, self.operands.lhs, start + j), power)
        shifted = inner.scalar("add", inner.scalar("mul", whole, inner.literal(1 / UNIT, F32)), inner.literal(MAGIC, F32))
        shifted = inner.latch(shifted)
        if self._needs_sums:
            inner.block.append(Store(total.name, (), inner.scalar("sub", shifted, inner.literal(MAGIC, F32)), "add"))
        whole = inner.latch(inner.scalar("sub", inner.bitcast(shifted, I32), inner.literal(MAGIC_BITS, I32)))
        for digit in range(self.plan.digits):
            low = inner.cast(inner.cast(whole, I8), I32) if digit + 1 < self.plan.digits else whole
            low = inner.latch(low)
            inner.block.append(Store(self.left.name, (digit, r, g * self.op.group + j), inner.cast(low, I8)))
            whole = inner.latch(inner.scalar("shr", inner.scalar("sub", whole, low), inner.literal(8, I32)))
        beside = BYTES if steps % (BYTES * self.lanes) == 0 else 1  # bytes of several vectors are stored as one
        found += [*outer.block, For(lane, steps, "vector", tuple(inner.block), self.lanes * beside)]
        inner = self.inliner.inner()
        found += [Store(self.sums.name, (r, g), inner.scalar("neg", inner.load(total, ())))] if self._needs_sums else []
        if steps < self.op.group:
            lane, j = loop_symbol(self.names.fresh("j"), self.op.group - steps)
            clear = tuple(Store(self.left.name, (digit, r, g * self.op.group + steps + j), inner.literal(0, I8))
                          for digit in range(self.plan.digits))
            found.append(For(lane, self.op.group - steps, "serial", clear))
        return tuple(found)

    # --- products ----------------------------------------------------------------------------------------------------

    def _block(self, block: DimLike, first: DimLike, count: DimLike) -> tuple[Stmt, ...]:
        """Some panels side by side meet tiles of rows from the first one on. Where there are fewer panels, the last one is read again."""
        lets, panel = self.named("panel", block * self.plan.beside)
        places: list[DimLike] = []
        for beside in range(self.plan.beside):
            more, place = self.named("panel", dim_min(panel + beside, self.panels - 1) if beside else panel)
            lets, places = [*lets, *more], [*places, place]
        tile = Tile(self.plan.rows, self.wide, self.lanes)
        down, d = loop_symbol(self.names.fresh("d"), count)
        more, at = self.named("tile", first + d)
        work = TileWork(self.node, self.result, self.out, self.operands.lhs, self.operands.words, self.inliner, tile, (0,), panel, at)
        begin = work.count_from(first * self.plan.rows)
        body = (*more, *self._tile(places, d * self.plan.rows, at * self.plan.rows), work.store_from_memory(self.totals, guarded=True))
        return (*lets, *begin, For(down, count, "serial", body))

    def _tile(self, places: list[DimLike], within: DimLike, first: DimLike) -> tuple[Stmt, ...]:
        """The totals of a tile, whose first row lies `within` its block."""
        lets: list[Stmt] = []
        rows: list[DimLike] = []
        for r in range(self.plan.rows if self.plan.digits == 1 else 0):
            more, start = self.named("start", self._row(first + r) * self.depth)
            lets, rows = [*lets, *more], [*rows, start]

        def clear(inner: Inliner, column: DimLike) -> None:
            inner.block += [Store(self.totals.name, (r, column), inner.literal(0.0, F32)) for r in range(self.plan.rows)]

        return (*lets, self.each(self.wide, clear), self.serial("g", self.groups, lambda g: self._group(places, rows, within, g)))

    def _registers(self) -> _Registers:
        """Where there is no room for sums of 32 bits beside those of 16, they wait in memory."""
        count, vectors = self.plan.rows * self.plan.digits, self.wide // self.lanes
        near = self.plan.pairs == 0 or count * vectors <= MOST_NEAR
        sums = Buffer(self.names.fresh("acc"), I32, (count, self.wide), "register" if near else "local")
        narrow = Buffer(self.names.fresh("pairs"), I32, (count, self.wide), "register") if self.plan.pairs else None
        words, codes = (Buffer(self.names.fresh(name), I32, (self.wide,), "register") for name in ("word", "codes"))
        return _Registers(sums, narrow, words, codes)

    def _group(self, places: list[DimLike], rows: list[DimLike], within: DimLike, g: DimLike) -> tuple[Stmt, ...]:
        """The products of a group of steps, scaled."""
        registers, words = self._registers(), self.op.group // self.of_word
        inner = self.inliner.inner()
        begins = [inner.latch(self._begin(inner, within + r, g)) for r in range(self.plan.rows) for _ in range(self.plan.digits)]

        def begin(inside: Inliner, column: DimLike) -> None:
            inside.block += [Store(registers.sums.name, (i, column), value) for i, value in enumerate(begins)]

        def of_word(w: DimLike) -> tuple[Stmt, ...]:
            return self._word(registers, places, rows, within, g * words + w)

        if registers.narrow is None:
            products: Stmt = self.serial("w", words, of_word)
        else:
            most = max(1, self.plan.pairs // self.places)
            part = next(n for n in range(min(most, words), 0, -1) if words % n == 0)
            products = self.serial("part", words // part, lambda c: (
                self.each(self.wide, lambda inside, column: self._clear_pairs(registers, inside, column)),
                self.serial("w", part, lambda w: of_word(c * part + w)),
                self.each(self.wide, lambda inside, column: self._add_pairs(registers, inside, column))))
        buffers = [b for b in (registers.sums, registers.narrow, registers.words, registers.codes) if b is not None]
        ends = [self._finish(registers, within, g, place * self.groups + g, s * self.width) for s, place in enumerate(places)]
        return (*map(Alloc, buffers), *inner.block, self.each(self.wide, begin), products, *ends)

    @property
    def _ends_with_zero(self) -> bool:
        """Whether zeros are multiplied with the sum of activations at the end of a group: what is not one number for all, or floats."""
        return self.operands.points is not None or self.plan.digits > 1 and self.op.zero != 0

    def _begin(self, inner: Inliner, row: DimLike, g: DimLike) -> Node:
        """What a group's sum begins with."""
        if self._ends_with_zero or self.op.zero == 0:
            return inner.literal(0, I32)
        return inner.scalar("mul", inner.load(self.sums, (row, g)), inner.literal(self.op.zero, I32))

    def _clear_pairs(self, registers: _Registers, inner: Inliner, column: DimLike) -> None:
        assert registers.narrow is not None
        count = self.plan.rows * self.plan.digits
        inner.block += [Store(registers.narrow.name, (i, column), inner.literal(0, I32)) for i in range(count)]

    def _add_pairs(self, registers: _Registers, inner: Inliner, column: DimLike) -> None:
        assert registers.narrow is not None
        for i in range(self.plan.rows * self.plan.digits):
            total = inner.scalar("dot_pairs", inner.load(registers.narrow, (i, column)), inner.literal(ONES, I32),
                                 inner.load(registers.sums, (i, column)))
            inner.block.append(Store(registers.sums.name, (i, column), total))

    def _word(self, registers: _Registers, places: list[DimLike], rows: list[DimLike], within: DimLike, at: DimLike) -> tuple[Stmt, ...]:
        """The codes of a word of each column meet the activations of their steps."""
        found: list[Stmt] = []
        for s, place in enumerate(places):
            start = (place * self.words + at) * self.width
            if self.plan.ahead:
                ahead = start + self.plan.ahead * self.width
                found += [Prefetch(self.operands.words.name, (ahead + line,)) for line in range(0, self.width, LINE)]

            def take(inner: Inliner, column: DimLike, s: int = s, start: DimLike = start) -> None:
                word = inner.load(self.flat(self.operands.words), (start + column,))
                inner.block.append(Store(registers.words.name, (s * self.width + column,), word))

            found.append(self.each(self.width, take))
        for place in range(self.places):
            found += self._quad(registers, rows, within, at * self.of_word + place * BYTES, place)
        return tuple(found)

    def _quad(self, registers: _Registers, rows: list[DimLike], within: DimLike, step: DimLike, place: int) -> list[Stmt]:
        """Four steps, whose codes lie at a place of their bytes."""
        mask = ((1 << self.op.bits) - 1) * 0x01010101

        def separate(inner: Inliner, column: DimLike) -> None:
            word = inner.load(registers.words, (column,))
            word = inner.scalar("shr", word, inner.literal(self.op.bits * place, I32)) if place else word
            inner.block.append(Store(registers.codes.name, (column,), inner.scalar("and", word, inner.literal(mask, I32))))

        found = [self.each(self.wide, separate)]
        sums = registers.sums if registers.narrow is None else registers.narrow
        function = "dot_quads" if registers.narrow is None else "add_byte_pairs"
        for i in range(self.plan.rows * self.plan.digits):
            r, digit = divmod(i, self.plan.digits)
            outer = self.inliner.inner()
            activations = outer.latch(self._four_bytes(outer, rows, within, r, digit, step))

            def add(inner: Inliner, column: DimLike, i: int = i, activations: Node = activations) -> None:
                total = inner.scalar(function, inner.load(registers.codes, (column,)), activations, inner.load(sums, (i, column)))
                inner.block.append(Store(sums.name, (i, column), total))

            found += [*outer.block, self.each(self.wide, add)]
        return found

    def _four_bytes(self, inner: Inliner, rows: list[DimLike], within: DimLike, r: int, digit: int, step: DimLike) -> Node:
        """The activations of four steps side by side: one load for the backend."""
        word = None
        for i in range(BYTES):
            element = (inner.load(self.left, (digit, within + r, step + i)) if self.plan.digits > 1
                       else inner.load(self.flat(self.operands.lhs), (rows[r] + step + i,)))
            part = inner.scalar("shl", inner.cast(inner.bitcast(element, U8), U32), inner.literal(i * WORD // BYTES, U32))
            word = part if word is None else inner.scalar("or", word, part)
        assert word is not None
        return inner.bitcast(word, I32)

    def _finish(self, registers: _Registers, within: DimLike, g: DimLike, group: DimLike, first: int) -> Stmt:
        """Scales a group's sums, for the columns of a panel."""
        def make(inner: Inliner, column: DimLike) -> None:
            scale = inner.latch(self.load(inner, self.operands.scales, group * self.width + column))
            point = inner.literal(float(self.op.zero), F32)
            if self.operands.points is not None:
                point = inner.latch(inner.scalar("add", self.load(inner, self.operands.points, group * self.width + column), point))
            for r in range(self.plan.rows):
                digits = [inner.load(registers.sums, (r * self.plan.digits + digit, first + column)) for digit in range(self.plan.digits)]
                value = self._of_digits(inner, digits)
                if self._ends_with_zero:
                    value = inner.multiply_add(point, inner.cast(inner.load(self.sums, (within + r, g)), F32), value)
                factor = scale
                if self.plan.digits > 1:
                    value, factor = inner.scalar("mul", value, scale), inner.load(self.powers, (within + r, g))
                total = inner.multiply_add(value, factor, inner.load(self.totals, (r, first + column)))
                inner.block.append(Store(self.totals.name, (r, first + column), total))

        return self.each(self.width, make)

    def _of_digits(self, inner: Inliner, digits: list[Node]) -> Node:
        """The float that sums of digits stand for, the lowest one first."""
        value = inner.cast(digits[-1], F32)
        for digit in reversed(digits[:-1]):
            value = inner.multiply_add(value, inner.literal(DIGIT, F32), inner.cast(digit, F32))
        return value
