"""Products of bytes with weights of 2 or 4 bits on a GPU's matrix units (`weight_only_dot` of i8).

Activations, words, scales and zero points of a stage are copied to shared memory as they are, in several stages. Units multiply signed
bytes; warps decode what they are to multiply in registers (`matmul_codes`), so codes take their own bytes of shared memory and no barrier
stands between decoding and multiplying. The sum of a group is an int32 in the fragment, exact; at the group's end it becomes a float,
meets its scale, and is added to the tile's sums.

Few rows wait for memory, so all warps of a block share one tile of rows and columns, and have a slice of the contraction each: whole groups
that follow one another. Their sums are added in order in shared memory. More rows have tiles of several warps, and two slices or one.

A zero that all codes have is subtracted as they are decoded, where it fits. Other zeros, and zero points, times the group's sum of
activations are subtracted from its sum; units find that sum as well, by codes that are all one.

Rows and steps past the last one have activations zero; panels past the last one are copies of it, which nothing stores.

Assumes `choose_byte_tiles` gave tiles: groups are multiples of what units take at a time. Guarantees the sum of each group exact, and
those of all groups always added in the same order; without slices that of the groups, with the same roundings as `byte_codes.py`.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, dim_min, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, Commit, CopyAsync, For, If, MatmulTile, Stmt, Store, Wait
from ..ir.loop_gpu import MOST_ZERO
from ..ir.ops.weight_only import BYTE_CODES, WORD, WeightOnlyDot
from ..ir.types import F32, I8, I32
from ..tiles import OPEN_SIZE
from .coded_weights import Operands, op_of
from .gpu_unit_nests import COPIED, STAGES, Place, UnitNest, UnitTile
from .inline import Inliner, loop_symbol

UNIT_STEPS = 32        # that matrix units take at a time; where groups are no multiples of those, half as many
LEAST_THREADS = 128
FEW_ROWS = 16          # a tile's, where the number of rows is open
# rows and columns of a tile, how its warps lie, slices, and steps of a slice in a stage
FEW, SOME, HALF = (16, 32, 1, 1, 8, 64), (32, 32, 1, 1, 4, 128), (64, 32, 2, 1, 4, 64)
MORE, MANY = (64, 64, 2, 2, 2, 64), (128, 128, 2, 4, 1, 64)
NARROW = 16            # columns of a tile of few rows, where wider ones would leave most multiprocessors without a block


class ByteTile(UnitTile, frozen=True, kw_only=True):
    """With `runs` runs of `run` steps of each slice in a stage; a group is one run, or several stages."""

    run: int
    runs: int

    @property
    def steps(self) -> int:
        """Of a slice in a stage."""
        return self.run * self.runs

    def shared_bytes(self, op: WeightOnlyDot) -> int:
        """At most: what stages take (scales and zero points of four bytes), and sums of slices."""
        steps = self.steps * self.slices
        stage = self.rows * (steps + COPIED) + steps * op.bits // 8 * (self.columns + 8) + 8 * self.slices * self.runs * self.columns
        ones = self.run * op.bits // 8 * 24 + 4 * self.slices * self.rows
        return STAGES * stage + ones + (4 * self.slices * self.rows * self.columns if self.slices > 1 else 0)


def choose_byte_tiles(node: Node, caps: Caps) -> tuple[ByteTile, ...]:
    """Tiles for the number of rows that there may be: where it is open one for few rows, and another one. None where units do not
    take such operands."""
    op, width = op_of(node), node.inputs[1].shape[-1]
    bytewise = node.inputs[0].dtype == I8 and str(I8) in caps.matrix_units and op.bits in BYTE_CODES
    if not bytewise or op.group % (UNIT_STEPS // 2) or not isinstance(width, int) or FEW[1] % width or width % 8:
        return ()
    least, most = bounds(product(node.shape[:-1]))
    if most <= FEW_ROWS or least == most:
        return (_tile(node, most, caps),)
    many = _tile(node, most, caps)
    return (many,) if least > FEW_ROWS else (replace(_tile(node, FEW_ROWS, caps), most=FEW_ROWS), replace(many, least=FEW_ROWS + 1))


def _decoded_zero(node: Node) -> int:
    """What is subtracted from codes as they are decoded."""
    zero = op_of(node).zero
    return zero if len(node.inputs) == 3 and 0 <= zero <= MOST_ZERO else 0


def _needs_sums(node: Node) -> bool:
    """Whether a group's sum of activations is needed: for zero points, or a zero that is not subtracted from codes."""
    return len(node.inputs) > 3 or _decoded_zero(node) != op_of(node).zero


def _tile(node: Node, most: float, caps: Caps) -> ByteTile:
    """For at most so many rows."""
    op, (_, groups, width) = op_of(node), node.inputs[2].shape
    assert isinstance(groups, int) and isinstance(width, int)
    reckoned = OPEN_SIZE if most == math.inf else int(most)
    def fills(form: tuple[int, ...]) -> bool:
        """Whether all multiprocessors have a block."""
        return -(-op.columns // form[1]) * -(-reckoned // form[0]) >= caps.multiprocessors

    form = FEW if most <= FEW[0] else SOME if most <= SOME[0] else MORE if fills(MORE) else HALF
    if most > MORE[0] and fills(MANY) and not _needs_sums(node):  # for which there are no registers left
        form = MANY
    rows, columns, down, across, slices, most_steps = form
    unit = UNIT_STEPS if op.group % UNIT_STEPS == 0 else UNIT_STEPS // 2
    if form in (FEW, SOME) and 2 * -(-op.columns // columns) <= caps.multiprocessors and NARROW % width == 0:
        columns = NARROW
    while True:
        run = max(n for n in range(unit, max(most_steps, unit) + 1, unit) if op.group % n == 0)
        runs = max(1, most_steps // run) if run == op.group else 1
        of_slice = -(-groups // (slices * runs)) * runs
        used = -(-groups // of_slice)
        if used == 1 and form in (FEW, SOME):  # a group is not divided: warps lie side by side
            columns, across = form[1], 2
        warps = used * down * across
        tile = ByteTile(rows, columns, down, across, max(32 * warps, LEAST_THREADS), used, run=run, runs=runs)
        if tile.shared_bytes(op) <= caps.shared_bytes or slices == 1 and most_steps <= UNIT_STEPS:
            return tile
        slices, most_steps = (slices, most_steps // 2) if most_steps > UNIT_STEPS else (slices // 2, most_steps)


class ByteTiles(UnitNest):
    """One block loop."""

    tile: ByteTile

    def __init__(self, node: Node, result: Node, out: Buffer, operands: Operands, inliner: Inliner, tile: ByteTile) -> None:
        super().__init__(node, result, out, operands, inliner, tile)
        fresh = self.names.fresh
        self.groups_of_slice = -(-self.groups // (tile.slices * tile.runs)) * tile.runs
        self.slice_steps = self.groups_of_slice * self.op.group
        self.is_even = tile.slices * self.groups_of_slice == self.groups
        self.rounds = self.slice_steps // tile.steps
        self.stages_of_group = max(1, self.op.group // tile.steps)
        self.words_of_run = tile.run // self.of_word
        stage_words = tile.slices * tile.runs * self.words_of_run
        self.left = Buffer(fresh("left"), I8, (STAGES * tile.rows, tile.slices * tile.steps + COPIED), "shared")
        # 8 more than whole rows of banks keep apart what lanes read
        self.codes = Buffer(fresh("codes"), I32, (STAGES * stage_words, tile.columns + 8), "shared")
        self.copied = {name: (source, Buffer(fresh(name), source.dtype, (STAGES * tile.slices * tile.runs, tile.columns), "shared"))
                       for name, source in (("scales", operands.scales), ("points", operands.points)) if source is not None}
        self.part = Buffer(fresh("part"), I32, self.sums.shape, "fragment")
        self.zero, self.needs_sums = _decoded_zero(node), _needs_sums(node)
        self.ones = Buffer(fresh("ones"), I32, (self.words_of_run, NARROW + 8), "shared")
        self.row_part = Buffer(fresh("row_part"), I32, (*self.sums.shape[:2], NARROW), "fragment")
        self.row_sums = Buffer(fresh("row_sums"), I32, (tile.slices, tile.rows), "shared")
        self.partial = Buffer(fresh("partial"), F32, (tile.slices, tile.rows, tile.columns), "shared")

    def lower(self) -> Stmt:
        memory = [self.left, self.codes, *(target for _, target in self.copied.values()), self.part, self.sums]
        memory += [self.ones, self.row_part, self.row_sums] if self.needs_sums else []
        memory += [self.partial] if self.tile.slices > 1 else []
        return self._blocks(lambda: (*map(Alloc, memory), *self._clear(), *self._contract(), *self._finish()))

    def _clear(self) -> tuple[Stmt, ...]:
        def clear(element: Place, part: DimLike, row: DimLike, column: DimLike) -> list[Stmt]:
            zero, nothing = self.inliner.literal(0, I32), self.inliner.literal(0.0, F32)
            return [Store(self.sums.name, element, nothing), Store(self.part.name, element, zero)]

        cleared = self._elements(clear)
        if not self.needs_sums:
            return (cleared,)
        all_one = self.inliner.literal(sum(1 << place for place in range(0, WORD, self.op.bits)), I32)
        rows = self._elements(lambda element, *_: [Store(self.row_part.name, element, self.inliner.literal(0, I32))], NARROW)
        return (cleared, rows, self._threads(lambda t: (self._pieces(t, self.words_of_run, NARROW, lambda row, column: (
            Store(self.ones.name, (row, column), all_one),)),)))

    # --- copies ---

    def _contract(self) -> tuple[Stmt, ...]:
        names, inliner = self.names, self.inliner
        stage, s = loop_symbol(names.fresh("s"), STAGES - 1)
        variable, step = loop_symbol(names.fresh("k"), self.rounds)
        following = step + (STAGES - 1)
        more = inliner.scalar("lt", inliner.index(following), inliner.index(self.rounds))
        ahead = inliner.scalar("lt", inliner.index(s), inliner.index(self.rounds))
        body = (Wait(STAGES - 2), self._copy(following, following % STAGES, more), Commit(),
                *(statement for run in range(self.tile.runs) for statement in self._run(step, run)))
        return (For(stage, STAGES - 1, "serial", (self._copy(s, s, ahead), Commit())), For(variable, self.rounds, "serial", body))

    def _copy(self, step: DimLike, stage: DimLike, when: Node) -> Stmt:
        """Begins to copy what a stage multiplies: a part of each slice."""
        tile, left, n = self.tile, self.flat(self.operands.lhs), COPIED

        def activations(row: DimLike, piece: DimLike) -> tuple[Stmt, ...]:
            part, within = piece * n // tile.steps, piece * n % tile.steps
            at, place = part * self.slice_steps + step * tile.steps + within, (stage * tile.rows + row, piece * n)
            return (self._activations(self.left, place, left, row, at, n, self.is_even),)

        def words(row: DimLike, piece: DimLike) -> tuple[Stmt, ...]:
            count, words = tile.slices * tile.runs * self.words_of_run, tile.runs * self.words_of_run
            word = row // words * (self.slice_steps // self.of_word) + step * words + row % words
            word = word if self.is_even else dim_min(word, self.words - 1)
            return self._piece(self.codes, stage * count + row, piece, self.operands.words, word, self.words)

        def groups(source: Buffer, target: Buffer) -> Stmt:
            pieces = tile.columns // self._elements_of_piece(source)

            def of_group(row: DimLike, piece: DimLike) -> tuple[Stmt, ...]:
                group = self._group(row // tile.runs, step, row % tile.runs)
                group = group if self.is_even else dim_min(group, self.groups - 1)
                return self._piece(target, stage * (tile.slices * tile.runs) + row, piece, source, group, self.groups)

            return self._pieces(t, tile.slices * tile.runs, pieces, of_group)

        thread, t = loop_symbol(self.names.fresh("c"), tile.threads)
        copies = (self._pieces(t, tile.rows, tile.slices * tile.steps // n, activations),
                  self._pieces(t, tile.slices * tile.runs * self.words_of_run, tile.columns // (n // I32.bytes), words),
                  *(groups(source, target) for source, target in self.copied.values()))
        return For(thread, tile.threads, "thread", (If(when, copies),))

    def _elements_of_piece(self, source: Buffer) -> int:
        """What is copied of a panel's row at a time: at most 16 bytes."""
        return min(COPIED // source.dtype.bytes, self.width)

    def _piece(self, target: Buffer, row: DimLike, piece: DimLike, source: Buffer, at: DimLike, rows: int) -> tuple[Stmt, ...]:
        """Copies a piece of row `at` of the panels of an operand, each of so many rows."""
        n = self._elements_of_piece(source)
        panel, column = self._column(piece * n)
        return (CopyAsync(target.name, (row, piece * n), source.name, ((panel * rows + at) * self.width + column,), n),)

    def _group(self, part: DimLike, step: DimLike, run: DimLike) -> DimLike:
        """The group of a run of a slice; past the last one where there is none."""
        return part * self.groups_of_slice + (step // self.stages_of_group if self.stages_of_group > 1 else step * self.tile.runs + run)

    # --- products ---

    def _run(self, step: DimLike, run: int) -> list[Stmt]:
        """The products of a run of each slice; at the end of a group they are scaled and added to the tile's sums."""
        tile, stage = self.tile, step % STAGES
        _, rows, columns = self.sums.shape

        def multiply(w: DimLike, part: DimLike, down: DimLike, across: DimLike) -> tuple[Stmt, ...]:
            left = (stage * tile.rows + down * rows, (part * tile.runs + run) * tile.run)
            word = ((stage * tile.slices + part) * tile.runs + run) * self.words_of_run
            codes = MatmulTile(self.part.name, self.left.name, left, self.codes.name, (word, across * columns), tile.run,
                               bits=self.op.bits, zero=self.zero)
            ones = MatmulTile(self.row_part.name, self.left.name, left, self.ones.name, (0, 0), tile.run, bits=self.op.bits)
            return (codes, ones) if self.needs_sums else (codes,)

        ends = (*self._sum_rows(), self._elements(lambda element, part, row, column: self._scale(step, run, element, part, row, column)))
        if self.stages_of_group == 1:
            return [self._warps(multiply), *ends]
        inner = self.inliner
        last = inner.scalar("eq", inner.index((step + 1) % self.stages_of_group), inner.index(0))
        return [self._warps(multiply), If(last, ends)]

    def _sum_rows(self) -> tuple[Stmt, ...]:
        """The activations of a group added up, for all warps to see."""
        if not self.needs_sums:
            return ()

        def give(element: Place, part: DimLike, row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
            stored = Store(self.row_sums.name, (part, row), self._element(self.row_part, element))
            inner = self.inliner
            return (If(inner.scalar("eq", inner.index(column), inner.index(0)), (stored,)),
                    Store(self.row_part.name, element, inner.literal(0, I32)))

        return (self._elements(give, NARROW),)

    def _scale(self, step: DimLike, run: int, element: Place, part: DimLike, row: DimLike, column: DimLike) -> list[Stmt]:
        tile, inner = self.tile, self.inliner.inner()
        at = (step % STAGES * tile.slices + part) * tile.runs + run
        total = self._element(self.part, element)
        if self.needs_sums:
            sums = inner.load(self.row_sums, (part, row))
            if self.operands.points is None:
                value = inner.cast(inner.scalar("sub", total, inner.scalar("mul", sums, inner.literal(self.op.zero, I32))), F32)
            else:
                point = inner.scalar("add", self._of_group("points", inner, at, column), inner.literal(float(self.op.zero), F32))
                value = inner.multiply_add(point, inner.cast(inner.scalar("neg", sums), F32), inner.cast(total, F32))
        else:
            value = inner.cast(total, F32)
        total = inner.multiply_add(value, self._of_group("scales", inner, at, column), self._element(self.sums, element))
        added: tuple[Stmt, ...] = (Store(self.sums.name, element, total),)
        if not self.is_even:  # nothing is added for a group that is none, whatever its scale
            added = self._where(self._group(part, step, run), self.groups, added)
        return [*inner.block, *added, Store(self.part.name, element, inner.literal(0, I32))]

    def _of_group(self, name: str, inner: Inliner, at: DimLike, column: DimLike) -> Node:
        _, target = self.copied[name]
        return inner.cast(inner.load(target, (at, column)), F32)

    # --- the result ---

    def _finish(self) -> tuple[Stmt, ...]:
        """The sums of slices added up in order, and what follows."""
        tile = self.tile
        if tile.slices == 1:
            return (self._elements(lambda element, part, row, column: self._give(self._element(self.sums, element), row, column)),)
        share = self._elements(lambda element, part, row, column: [
            Store(self.partial.name, (part, row, column), self._element(self.sums, element))])

        def add(row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
            inner = self.inliner.inner()
            total = inner.load(self.partial, (0, row, column))
            for part in range(1, tile.slices):
                total = inner.scalar("add", total, inner.load(self.partial, (part, row, column)))
            total = inner.latch(total)
            return (*inner.block, *self._give(total, row, column))

        rows = min(self.rows, tile.rows) if isinstance(self.rows, int) else tile.rows
        return (share, self._threads(lambda t: (self._pieces(t, rows, tile.columns, add),)))


__all__ = ["ByteTile", "ByteTiles", "choose_byte_tiles"]
