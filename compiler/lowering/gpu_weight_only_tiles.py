"""Products with weights of a few bits on a GPU's matrix units: any rows of float16 or bfloat16.

A block computes a tile of rows and columns. Activations and words of codes are copied to shared memory as they are, in several stages,
while what came before is multiplied. Threads decode a stage's words into numbers of the activations' dtype: codes less their zero, which
that dtype holds exactly. Units multiply these by runs of steps that share scales, sums in float32; after each run its sums are scaled and
added to those of the tile. Zero points that vary are not subtracted from codes: the run's sum of activations, times the point, is
subtracted from its sum of products, before that is scaled.

Rows past the last one are zeros or copies of it, and panels past the last one copies, which nothing stores; steps past the last one have
activations zero.

Assumes `choose_code_tile` gave a tile: runs fill the units' steps. Guarantees one sum an element, always in the same order.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, ceildiv, dim_min, divides, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, Commit, CopyAsync, For, If, MatmulTile, Stmt, Store, Wait
from ..ir.ops.weight_only import WORD, step_of_place
from ..ir.types import BF16, F16, F32, I32
from ..tiles import OPEN_SIZE
from .coded_weights import Operands, op_of
from .gpu_unit_nests import COPIED, STAGES, Place, UnitNest, UnitTile
from .inline import Inliner, loop_symbol

UNIT_STEPS = 16           # that matrix units take at a time
LONGEST_RUN = 128
HIGHEST = 64              # rows of a tile
WIDEST, NARROWEST = 64, 32  # columns
WARPS = 4
BLOCKS_BESIDE = 2         # of a multiprocessor, which its shared memory has room for
STAGE_STEPS = {16: 256, 32: 128, HIGHEST: 64}  # by a tile's rows: where these are few, more of the weights must be under way
BLOCK_THREADS = {16: 256, 32: 128, HIGHEST: 128}  # that copy and decode, of which some have warps of the tile
MOST_EXACT_ZERO = 256     # codes less a zero up to that are numbers of bfloat16
MAGIC, MAGIC_BITS = 2.0**23, 0x4B000000  # a float that counts its last bit by ones


class CodeTile(UnitTile, frozen=True, kw_only=True):
    """With `runs` runs of `run` steps a stage."""

    run: int
    runs: int

    @property
    def steps(self) -> int:
        """Of a stage."""
        return self.run * self.runs

    def shared_bytes(self, bits: int) -> int:
        """What the stages of a block take: activations and what is decoded, of 16 bits, and codes."""
        return STAGES * (self.rows * self.steps * 2 + self.steps * bits // 8 * self.columns) + self.steps * self.columns * 2

    def after(self, least: int) -> CodeTile:
        return replace(self, least=least)


def choose_code_tile(node: Node, caps: Caps) -> CodeTile | None:
    """The tile for a product; None where units do not take its activations or the runs that its groups consist of."""
    op, width = op_of(node), node.inputs[1].shape[-1]
    dtype = node.inputs[0].dtype
    if dtype not in (F16, BF16) or str(dtype) not in caps.matrix_units or not isinstance(width, int) or NARROWEST % width or width % 4:
        return None
    most = bounds(product(node.shape[:-1]))[1]
    rows = next((n for n in (16, 32) if most <= n), HIGHEST)
    steps = STAGE_STEPS[rows]
    run = max((n for n in range(UNIT_STEPS, min(steps, LONGEST_RUN) + 1, UNIT_STEPS) if op.group % n == 0), default=0)
    if run == 0:
        return None
    tiles = -(-op.columns // WIDEST) * -(-(OPEN_SIZE if most == math.inf else int(most)) // rows)
    columns = WIDEST if tiles >= caps.multiprocessors else NARROWEST
    down = min(2, rows // UNIT_STEPS)
    tile = CodeTile(rows, columns, down, min(WARPS // down, columns // 16), BLOCK_THREADS[rows], run=run, runs=max(1, steps // run))
    while tile.runs > 1 and tile.shared_bytes(op.bits) * BLOCKS_BESIDE > caps.shared_bytes:
        tile = replace(tile, runs=tile.runs // 2)
    return tile


class CodeTiles(UnitNest):
    """One block loop."""

    tile: CodeTile

    def __init__(self, node: Node, result: Node, out: Buffer, operands: Operands, inliner: Inliner, tile: CodeTile) -> None:
        super().__init__(node, result, out, operands, inliner, tile)
        self.dtype = node.inputs[0].dtype
        fresh = self.names.fresh
        self.stage_words = tile.steps // self.of_word
        self.near = COPIED // self.dtype.bytes
        self.left = Buffer(fresh("left"), self.dtype, (STAGES * tile.rows, tile.steps + self.near), "shared")
        self.codes = Buffer(fresh("codes"), I32, (STAGES * self.stage_words, tile.columns), "shared")
        self.right = Buffer(fresh("right"), self.dtype, (tile.steps, tile.columns + self.near), "shared")
        self.row_sums = Buffer(fresh("row_sums"), F32, (tile.rows,), "shared")
        self.part = Buffer(fresh("part"), F32, self.sums.shape, "fragment")
        self.zero = self.op.zero if 0 <= self.op.zero <= MOST_EXACT_ZERO else 0  # that codes are decoded with
        self.needs_sums = operands.points is not None or self.zero != self.op.zero
        self.copies = self.depth % self.near == 0
        self.stages = ceildiv(self.groups * self.op.group, tile.steps)

    def lower(self) -> Stmt:
        shared = [self.left, self.codes, self.right, *([self.row_sums] if self.needs_sums else [])]
        memory = [Alloc(b) for b in (*shared, self.part, self.sums)]
        return self._blocks(lambda: (*memory, self._elements(self._clear), *self._contract(), self._elements(
            lambda element, _, row, column: self._give(self._element(self.sums, element), row, column))))

    # --- the contraction ---

    def _contract(self) -> tuple[Stmt, ...]:
        names, inliner = self.names, self.inliner
        stage, s = loop_symbol(names.fresh("s"), STAGES - 1)
        variable, step = loop_symbol(names.fresh("k"), self.stages)
        following = step + (STAGES - 1)
        more = inliner.scalar("lt", inliner.index(following), inliner.index(self.stages))
        ahead = inliner.scalar("lt", inliner.index(s), inliner.index(self.stages))
        body = (Wait(STAGES - 2), self._copy(following, following % STAGES, more), Commit(), self._decode(step % STAGES),
                *[s for run in range(self.tile.runs) for s in self._run(step, run)])
        return (For(stage, STAGES - 1, "serial", (self._copy(s, s, ahead), Commit())), For(variable, self.stages, "serial", body))

    def _copy(self, step: DimLike, stage: DimLike, when: Node) -> Stmt:
        """Begins to copy the activations and words of a stage."""
        tile, inliner = self.tile, self.inliner
        left, words, of = self.flat(self.operands.lhs), self.operands.words.name, COPIED // I32.bytes

        def activations(row: DimLike, piece: DimLike) -> tuple[Stmt, ...]:
            size = self.near if self.copies else 1
            at = step * tile.steps + piece * size
            place = (stage * tile.rows + row, piece * size)
            if self.copies:
                return (self._activations(self.left, place, left, row, at, size, divides(tile.steps, self.depth)),)
            source = dim_min(self.first_row + row, self.rows - 1) * self.depth
            bring = Store(self.left.name, place, inliner.inner().load(left, (source + dim_min(at, self.depth - 1),)))
            zero = Store(self.left.name, place, inliner.literal(0.0, self.dtype))
            return (bring,) if divides(tile.steps, self.depth) else self._where(at, self.depth, (bring,), (zero,))

        def of_codes(row: DimLike, piece: DimLike) -> tuple[Stmt, ...]:
            word = dim_min(step * self.stage_words + row, self.words - 1)
            panel, column = self._column(piece * of)
            return (CopyAsync(self.codes.name, (stage * self.stage_words + row, piece * of), words,
                              ((panel * self.words + word) * self.width + column,), of),)

        return self._threads(lambda t: (If(when, (
            self._pieces(t, tile.rows, tile.steps // (self.near if self.copies else 1), activations),
            self._pieces(t, self.stage_words, tile.columns // of, of_codes))),))

    def _decode(self, stage: DimLike) -> Stmt:
        """The words of a stage as codes less their zero."""
        def of_word(row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
            inner = self.inliner.inner()
            word = inner.latch(inner.load(self.codes, (stage * self.stage_words + row, column)))
            for place in range(WORD // self.op.bits):
                moved = inner.scalar("shr", word, inner.literal(self.op.bits * place, I32)) if place else word
                code = inner.scalar("and", moved, inner.literal(self.mask, I32))
                value = inner.bitcast(inner.scalar("or", code, inner.literal(MAGIC_BITS, I32)), F32)
                value = inner.scalar("sub", value, inner.literal(MAGIC + self.zero, F32))
                step = row * self.of_word + step_of_place(place, self.op.bits)
                inner.block.append(Store(self.right.name, (step, column), inner.cast(value, self.dtype)))
            return tuple(inner.block)

        return self._threads(lambda t: (self._pieces(t, self.stage_words, self.tile.columns, of_word),))

    def _run(self, step: DimLike, run: int) -> list[Stmt]:
        """The products of one run of a stage, scaled and added to the tile's sums."""
        tile, stage = self.tile, step % STAGES
        _, rows, columns = self.sums.shape
        multiply = self._warps(lambda w, _, down, across: (MatmulTile(
            self.part.name, self.left.name, (stage * tile.rows + down * rows, run * tile.run), self.right.name,
            (run * tile.run, across * columns), tile.run),))
        group = dim_min((step * tile.runs + run) // (self.op.group // tile.run), self.groups - 1)
        made: list[Stmt] = [self._sum_rows(stage * tile.rows, run)] if self.needs_sums else []
        return [*made, multiply, self._elements(lambda element, _, row, column: self._scale(group, element, row, column))]

    def _sum_rows(self, first: DimLike, run: int) -> Stmt:
        """What the activations of a run add up to, row by row."""
        total = Buffer(self.names.fresh("total"), F32, (), "register")
        thread, t = loop_symbol(self.names.fresh("c"), self.tile.threads)
        turn, i = loop_symbol(self.names.fresh("i"), -(-self.tile.rows // self.tile.threads))
        variable, k = loop_symbol(self.names.fresh("j"), self.tile.run)
        row = i * self.tile.threads + t
        inner = self.inliner.inner()
        value = inner.cast(inner.load(self.left, (first + row, run * self.tile.run + k)), F32)
        body: tuple[Stmt, ...] = (
            Alloc(total), Store(total.name, (), inner.literal(0.0, F32)),
            For(variable, self.tile.run, "unrolled", (Store(total.name, (), value, "add"),)),
            Store(self.row_sums.name, (row,), inner.load(total, ())))
        body = body if self.tile.rows % self.tile.threads == 0 else self._where(row, self.tile.rows, body)
        return For(thread, self.tile.threads, "thread", (For(turn, -(-self.tile.rows // self.tile.threads), "serial", body),))

    def _scale(self, group: DimLike, element: Place, row: DimLike, column: DimLike) -> list[Stmt]:
        inner = self.inliner.inner()
        panel, place = self._column(column)
        at = (panel * self.groups + group) * self.width + place
        value = self._element(self.part, element)
        if self.needs_sums:
            point = inner.literal(float(self.op.zero - self.zero), F32)
            if self.operands.points is not None:
                point = inner.scalar("add", self.load(inner, self.operands.points, at), point)
            value = inner.scalar("sub", value, inner.scalar("mul", point, inner.load(self.row_sums, (row,))))
        total = inner.multiply_add(value, self.load(inner, self.operands.scales, at), self._element(self.sums, element))
        return [*inner.block, Store(self.sums.name, element, total), Store(self.part.name, element, inner.literal(0.0, F32))]

    # --- the result ---

    def _clear(self, element: Place, part: DimLike, row: DimLike, column: DimLike) -> list[Stmt]:
        zero = self.inliner.literal(0.0, F32)
        return [Store(self.sums.name, element, zero), Store(self.part.name, element, zero)]


__all__ = ["CodeTile", "CodeTiles", "choose_code_tile"]
