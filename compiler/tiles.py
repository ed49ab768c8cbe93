"""Chooses register tiles, and the blocks of them that are worked on together.

A model of the core, unless measurement found better (`tuning.py`): the tile with the most multiply-adds for each load
that fits into the vector registers and hides the latency of the multiply-add; blocks of which the operands' parts stay in
the first two levels of memory.
"""

from __future__ import annotations

import math
from functools import lru_cache

from msgspec import Struct

from .ir.caps import Caps
from .ir.dims import DimLike, bounds, ceildiv, divides, product
from .ir.loop_gpu import COPIED_BYTES
from .ir.ops.compute import PackedConv, PackedDot
from .ir.types import F32, I8, U8, DType, TensorType


class Tile(Struct, frozen=True):
    """A register tile: `rows` x `columns` accumulators in vectors of `lanes`."""

    rows: int
    columns: int
    lanes: int


class Blocks(Struct, frozen=True):
    """How the tiles of a contraction follow one another. `rows` tiles one below the other and `panels` side by side are a
    block, which a thread takes through `depth` steps of the contraction before it goes on to further ones (0: through
    all). While a tile is computed, `ahead` elements of the next panel are prefetched a step (0: none), or of the next part
    of this one where all parts of a panel are taken `in_order`. `streams`: places of the contraction that one tile reads at
    a time, far apart."""

    rows: DimLike
    panels: DimLike
    depth: DimLike = 0
    ahead: int = 0
    streams: int = 1
    in_order: bool = False


MOST_ROWS, MOST_PANELS = 16, 32   # tiles of a block
# What a part of the contraction may take: of a panel, twice the first level of memory, since it is read in order, and an
# eighth of the second; of the left operand, a share of the second.
PANEL_SHARES, LEFT_SHARE = (2.0, 0.125), 0.3
ENOUGH_BLOCKS = 16   # for threads to share
UNKNOWN_PANELS = 8   # where the number of blocks is not known
LEAST_TILES = 4      # that prefetch a whole panel, where it is not known how many tiles of rows there are
LEAST_STEPS = 64     # of a part of the contraction
STREAMS = 4          # memory answers that many faster than one: each prefetcher follows one, up to the end of a page
MOST_STREAMED = 8    # rows that are one tile, or two, for this alone
PASSING_SHARE = 0.2  # of the first level of memory: a part of a panel that two tiles meet while the next one comes
STREAM_STEPS = 64    # of the contraction that are worth a stream
LATENCY_TILES = 10   # independent accumulators that hide the latency of two multiply-add units (4 cycles each)
MOST_ADDRESSES = 10  # of rows of the left operand that stay in registers
UNEVEN = 0.97        # of the rate where addresses of rows are divided out, a tile
USUAL_VECTORS = 2    # of a panel's columns; kernels of one width are shared, so another one must be worth its code
WORTH = 1.06
GPU_PANELS = (128, 64, 32)  # columns of a packed panel that a block of a GPU takes, where its matrix units multiply
GPU_CODE_PANELS = (32, 16, 8)  # and of panels of codes: a warp reads 512 bytes that lie beside one another of each
PLAIN_GPU_PANELS = (8, 16, 32, 64)  # and of those by plain multiply-adds
OPEN_SIZE = 512           # rows or columns that are reckoned with where there may be any number
# rows and columns of a block where four warps multiply together, and what share of the units' peak that reaches at most: narrower tiles
# read more of shared memory for each product
GROUP_TILES = {(128, 256): 1.0, (128, 128): 0.75, (64, 128): 0.65}
OPEN_GROUP_TILE = (128, 128)  # where a size is open, which may be small
LEAST_GROUP_SIZE = 129    # of steps and columns: both products of an attention are smaller (`attention.MOST_UNIT_HEAD`)
LEAST_GROUP_SHARE = 0.75  # of the multiprocessors that have a block
LOW_HEIGHTS = (2, 4)  # of tiles for few rows; a single row is bound by memory in a tile of two as well


def panel_columns(columns: DimLike, rows: DimLike, dtype: DType, caps: Caps, depth: DimLike = 1) -> int:
    """Columns of a packed panel, which the right operand is laid out for: two vectors, or what a narrow matrix fills, or
    another number of vectors that leaves less of the last panel empty."""
    for tuned in caps.tuned:
        if (tuned.rows, tuned.columns, tuned.dtype) == (rows, columns, str(dtype)):
            return tuned.tile_columns
    lanes = caps.lanes(dtype)
    usual = 3 if caps.vector_registers >= 32 else USUAL_VECTORS
    if not isinstance(columns, int):
        return lanes * usual
    needed = max(1, -(-columns // lanes))
    if rows == 1 and needed >= 4:
        return lanes * (8 if needed >= 8 else 4)
    if isinstance(rows, int) and rows > 1:
        vectors = _vectors_of_few_rows(columns, rows, usual, lanes, caps, _is_near(columns, depth, dtype, caps))
        if vectors > 0:
            return vectors * lanes
    if needed <= usual:
        return lanes * needed
    best = max(range(1, usual + 2), key=lambda vectors: _share(columns, vectors, lanes, caps))
    worth = _share(columns, best, lanes, caps) > WORTH * _share(columns, usual, lanes, caps)
    return lanes * (best if worth else usual)


def gpu_panel_columns(columns: DimLike, rows: DimLike, dtype: DType, caps: Caps) -> int | None:
    """Columns of a packed panel that a block takes: for matrix units wide ones, where they leave enough blocks for all
    multiprocessors (sizes without a bound are reckoned as `OPEN_SIZE`); for plain multiply-adds as many as there are, up to 64. None for
    what a GPU multiplies otherwise."""
    if not dtype.is_float and str(dtype) not in caps.matrix_units:
        return None
    if str(dtype) not in caps.matrix_units:
        return next(width for width in PLAIN_GPU_PANELS if width >= min(bounds(columns)[1], PLAIN_GPU_PANELS[-1]))
    most, high = (OPEN_SIZE if bounds(size)[1] == math.inf else int(bounds(size)[1]) for size in (columns, rows))
    for width in GPU_PANELS[:-1]:
        if most >= width and -(-most // width) * -(-high // 128) >= caps.multiprocessors:
            return width
    return 64 if most > GPU_PANELS[-1] else GPU_PANELS[-1]


def group_tile(columns: DimLike, rows: DimLike, caps: Caps, panel: int = 0) -> tuple[int, int] | None:
    """Rows and columns of the tile of a block whose warps multiply in groups of four, with a panel of so many columns if that is chosen:
    the one that takes least in all, blocks taking turns on the multiprocessors. None where there is too little for that."""
    wide, high = bounds(columns)[1], bounds(rows)[1]
    fitting = [tile for tile in GROUP_TILES if panel in (0, tile[1])]
    if math.inf in (wide, high):
        return OPEN_GROUP_TILE if OPEN_GROUP_TILE in fitting else next(iter(fitting), None)

    def blocks(tile: tuple[int, int]) -> int:
        return -(-int(wide) // tile[1]) * -(-int(high) // tile[0])

    def time(tile: tuple[int, int]) -> float:
        return math.ceil(blocks(tile) / caps.multiprocessors) * tile[0] * tile[1] / GROUP_TILES[tile]

    best = min(fitting, key=time, default=None)
    enough = high > min(low for low, _ in GROUP_TILES) and \
        any(blocks(tile) >= LEAST_GROUP_SHARE * caps.multiprocessors for tile in GROUP_TILES)
    return best if panel or enough else None


def group_panel_columns(columns: DimLike, rows: DimLike, steps: DimLike, dtype: DType, caps: Caps, least: int = 0) -> int | None:
    """Columns of a panel in squares, for products of four warps; None where a product goes another way. Rows of the left operand
    are copied 16 bytes at a time. `least`: columns that are worth it, where others are than of a product."""
    if not caps.has_group_products or str(dtype) not in caps.matrix_units or not divides(16 // dtype.bytes, steps):
        return None
    if bounds(steps)[0] < LEAST_GROUP_SIZE or bounds(columns)[0] < (least or LEAST_GROUP_SIZE):
        return None
    tile = group_tile(columns, rows, caps)
    return None if tile is None else tile[1]


def is_plain_matrix(op: PackedDot, right: TensorType) -> bool:
    """Whether a packed right operand is a matrix as it was, one panel that is wider than any that is packed for a block of a GPU."""
    columns, as_it_was = right.shape[-1], op.square == 1 and (op.step == 1 or right.dtype.bytes == 1)
    return as_it_was and not op.symmetric and right.shape[-3] == 1 and isinstance(columns, int) and columns > GPU_PANELS[0]


def may_stay_plain(columns: DimLike, steps: DimLike, dtype: DType, caps: Caps) -> bool:
    """Whether the matrix units' kernels read a right operand that is no constant as it is: its rows are pieces of 16 bytes, and it is no
    part of an attention, whose operands are smaller."""
    fits = isinstance(columns, int) and columns % (16 // dtype.bytes) == 0 and columns >= LEAST_GROUP_SIZE
    return caps.is_gpu and str(dtype) in caps.matrix_units and fits and bounds(steps)[0] >= LEAST_GROUP_SIZE


def takes_tf32(op: PackedDot, left: TensorType, right: TensorType, caps: Caps) -> bool:
    """Whether matrix units multiply such operands, rounded to tf32: the right one in panels for a block, in squares for products of four
    warps, or a matrix that they read as it is."""
    units = caps.with_tf32()
    fits = may_stay_plain(op.columns, left.shape[-1], F32, units) if is_plain_matrix(op, right) else right.shape[-1] in GPU_PANELS
    return str(F32) in units.matrix_units and (op.square > 1 and caps.has_group_products or fits)


def copied_together(op: PackedConv, x: TensorType) -> int:
    """How many bytes of a window lie beside one another and at a multiple of as many, wherever it begins: 16, 8, 4, or 0 where a copy of a
    GPU takes more."""
    return next((n for n in reversed(COPIED_BYTES) if divides(n * op.groups, x.shape[-1] * x.dtype.bytes)), 0)


def takes_windows(op: PackedConv, x: TensorType, w: TensorType, caps: Caps) -> bool:
    """Whether matrix units multiply the windows of a convolution that is packed so."""
    caps = caps.with_tf32() if op.tf32 else caps
    unit, copied = str(I8 if x.dtype == U8 else x.dtype), copied_together(op, x)
    fits = w.shape[-1] in GPU_PANELS if op.square == 1 else caps.has_group_products and op.groups == 1 and copied == COPIED_BYTES[-1]
    return caps.is_gpu and unit in caps.matrix_units and op.step == (4 if x.dtype.bytes == 1 else 1) and fits and copied > 0 \
        and (x.dtype != F32 or op.tf32 != "")


def gpu_code_columns(columns: int, caps: Caps) -> int:
    """Columns of a panel of weights of a few bits, which one block takes where there are few rows: as many as leave blocks for all
    multiprocessors."""
    return next((width for width in GPU_CODE_PANELS if -(-columns // width) >= caps.multiprocessors), GPU_CODE_PANELS[-1])


def _vectors_of_few_rows(columns: int, rows: int, usual: int, lanes: int, caps: Caps, near: bool) -> int:
    """Vectors of a panel's columns where all rows are one tile, so that the right operand is read once; or two tiles, which
    each part of a panel meets one after the other, where more rows than a tile usually has leave one too few accumulators.
    0: there are too many rows, or too few columns, for that."""
    most = _most_rows(usual, caps)
    if rows > (most if near else MOST_STREAMED):
        return 0
    half = -(-rows // 2)
    one, two = (_widest(columns, height, lanes, caps) for height in (rows, half))
    rate_of_two = rows / (2 * half) * _rate(half, two) if rows > most else 0.0
    return two if rate_of_two > WORTH * _rate(rows, one) else one


def _widest(columns: int, rows: int, lanes: int, caps: Caps) -> int:
    """The most vectors of which a tile of so many rows fits into the registers and few columns of the last panel are empty."""
    fitting = range((caps.vector_registers - 1) // (rows + 1), 0, -1)
    return next((n for n in fitting if -(-columns // (n * lanes)) * n * lanes <= WORTH * columns), 0)


def _is_near(columns: DimLike, depth: DimLike, dtype: DType, caps: Caps) -> bool:
    """Whether the right operand may lie in the second level of memory."""
    size = product((columns, depth, dtype.bytes))
    return not isinstance(size, int) or size <= caps.level2_bytes


def _share(columns: int, vectors: int, lanes: int, caps: Caps) -> float:
    """The share of the peak that panels of so many vectors reach, empty columns counted out."""
    panels = -(-columns // (vectors * lanes))
    return columns / (panels * vectors * lanes) * _rate(_most_rows(vectors, caps), vectors)


def _most_rows(vectors: int, caps: Caps, held: int = 0) -> int:
    """Rows of accumulators beside one register that broadcasts the left operand, those of the panel's row, and others that a step holds."""
    return max(1, (caps.vector_registers - 1 - vectors - held) // vectors)


@lru_cache(maxsize=1024)
def choose_tile(columns: int, rows: DimLike, dtype: DType, caps: Caps, whole: tuple[DimLike, DimLike] | None = None,
                run: DimLike = 0, words: int = 1) -> Tile:
    """The tile for a panel of `columns` columns and a matrix of `rows` rows. `whole`: the rows and columns that the panels were
    chosen for, where measurement may know better. `run`: rows that lie equally far apart, where not all do. `words`: of each column
    that are added in 16 bits at a time, with a sum on the way and ones that widen it."""
    lanes = caps.lanes(dtype)
    while columns % lanes:  # panels that were not packed for this target
        lanes //= 2
    for tuned in caps.tuned:
        if (tuned.rows, tuned.columns) == whole and (tuned.dtype, tuned.tile_columns) == (str(dtype), columns):
            return Tile(tuned.tile_rows, columns, lanes)
    vectors = columns // lanes
    most = _most_rows(vectors, caps, 0 if words == 1 else (words - 1) * (vectors + 1) + 2)
    if isinstance(rows, int) and rows <= most:
        return Tile(max(rows, 1), columns, lanes)

    def score(tile_rows: int) -> float:
        """Useful share of the work times the share of issue slots that multiply-adds get."""
        even = isinstance(run, int) and run > 0 and run % tile_rows == 0  # then one address serves all rows
        crowded = 0 if even else max(0, tile_rows - MOST_ADDRESSES)
        ease = 1.0 if even or run == 0 else UNEVEN
        useful = rows / (-(-rows // tile_rows) * tile_rows) if isinstance(rows, int) else 1.0
        return useful * _rate(tile_rows, vectors, crowded) * ease

    return Tile(max(reversed(range(1, most + 1)), key=score), columns, lanes)  # of equal ones the highest


def choose_paired_tiles(columns: tuple[int, int], rows: DimLike, dtype: DType, caps: Caps) -> tuple[Tile, Tile]:
    """The tiles of two contractions over the same rows, as much work each, for panels of so many columns. The second one's height
    divides the first one's, so that whole tiles of the one are whole tiles of the other."""
    lanes = [max(n for n in range(1, caps.lanes(dtype) + 1) if n & (n - 1) == 0 and width % n == 0) for width in columns]
    vectors = [width // n for width, n in zip(columns, lanes)]
    most = [_most_rows(count, caps) for count in vectors]

    def heights(high: int) -> tuple[int, int]:
        return high, max(n for n in range(1, min(high, most[1]) + 1) if high % n == 0)

    def time(high: int) -> float:
        wasted = -(-rows // high) * high / max(rows, 1) if isinstance(rows, int) else 1.0
        return wasted * sum(1 / _rate(height, count) for height, count in zip(heights(high), vectors))

    first, last = heights(min(reversed(range(1, most[0] + 1)), key=time))  # of equal ones the highest
    return Tile(first, columns[0], lanes[0]), Tile(last, columns[1], lanes[1])


def choose_low_tiles(tile: Tile, rows: DimLike, panels: DimLike, caps: Caps, narrow: bool) -> tuple[Tile, ...]:
    """Tiles for fewer rows than `tile` has, the lowest first, where it is not known that there are more: they take several
    panels side by side instead, so that there are accumulators enough. Those of a single panel gain least, and are left out
    unless `narrow` ones are asked for; so is what is no faster than the next one."""
    if isinstance(rows, int):
        return ()
    vectors = tile.columns // tile.lanes
    found: list[Tile] = []
    for height in reversed(LOW_HEIGHTS):
        beside = LOW_HEIGHTS[-1] // height
        while beside > 1 and (isinstance(panels, int) and panels < beside or _registers(height, beside * vectors) > caps.vector_registers):
            beside //= 2
        widens = beside * tile.columns > found[0].columns if found else narrow or beside > 1
        if bounds(rows)[0] <= height < tile.rows and widens:
            found.insert(0, Tile(height, beside * tile.columns, tile.lanes))
    return tuple(found)


def _registers(rows: int, vectors: int) -> int:
    """Registers of a tile: accumulators, one that broadcasts the left operand, and those of the panels' row."""
    return rows * vectors + 1 + vectors


def _rate(rows: int, vectors: int, crowded: int = 0) -> float:
    """The share of issue slots that multiply-adds get: two of them and two loads a cycle; too few accumulators wait for
    their own results. `crowded`: rows whose addresses are loaded too."""
    products = rows * vectors
    return products / 2 / max(products / 2, (vectors + rows + crowded) / 2, LATENCY_TILES / 2)


TILES_SHARE = 0.6   # of the second level of memory that the input of a block of Winograd's tiles may take
MOST_TILES = 64
MANY_ROWS = 1 << 20  # of a register tile whose number is free


def tiles_in_block(points: int, channels: int, dtype: DType, caps: Caps) -> int:
    """Tiles of Winograd's algorithm that are worked on together: their products meet the same weights, and their input stays
    near."""
    return max(1, min(MOST_TILES, int(TILES_SHARE * caps.level2_bytes) // (points * channels * dtype.bytes)))


def choose_blocks(batch: DimLike, rows: DimLike, columns: DimLike, depth: DimLike, tile: Tile, dtype: DType, caps: Caps) -> Blocks:
    """The blocks of a matrix product."""
    row_tiles, panels = ceildiv(rows, tile.rows), ceildiv(columns, tile.columns)
    if row_tiles == 1:
        far = batch == 1 and rows == tile.rows and isinstance(depth, int) and depth >= STREAMS * STREAM_STEPS
        return Blocks(1, 1, streams=STREAMS if far and not _is_near(columns, depth, dtype, caps) else 1)
    if batch == 1 and row_tiles == 2 and isinstance(depth, int) and not _is_near(columns, depth, dtype, caps):
        passing = int(PASSING_SHARE * caps.level1_bytes) // (tile.columns * dtype.bytes)
        return Blocks(2, 1, _even(depth, max(LEAST_STEPS, passing)), max(1, tile.columns // 2), in_order=True)
    room = min(PANEL_SHARES[0] * caps.level1_bytes, PANEL_SHARES[1] * caps.level2_bytes)
    near = max(LEAST_STEPS, int(room) // (tile.columns * dtype.bytes))
    parts = _even(depth, near) if isinstance(depth, int) else near
    steps = 0 if isinstance(depth, int) and depth <= near * 9 // 8 else parts
    most = int(caps.level2_bytes * LEFT_SHARE) // (tile.rows * max(parts, 1) * dtype.bytes)
    high, wide = _block(batch, row_tiles, panels, max(1, min(most, MOST_ROWS)))
    return Blocks(high, wide, steps, max(1, tile.columns // (high if isinstance(row_tiles, int) else min(high, LEAST_TILES))))


def choose_window_blocks(rows: DimLike, columns: int, depth: DimLike, tile: Tile, dtype: DType, caps: Caps) -> Blocks:
    """The blocks of a convolution, whose rows overlap: few rows where all panels stay in the second level of memory."""
    row_tiles, panels = ceildiv(rows, tile.rows), ceildiv(columns, tile.columns)
    stays = isinstance(depth, int) and 2 * columns * depth * dtype.bytes <= caps.level2_bytes
    high, wide = _block(1, row_tiles, panels, MOST_ROWS if stays else 4 * MOST_ROWS)
    return Blocks(high, wide)


def _block(batch: DimLike, row_tiles: DimLike, panels: DimLike, most: int) -> tuple[int, int]:
    """Tiles of a block each way, at most `most` of them high: of like size, and enough blocks."""
    high = _even(row_tiles, most) if isinstance(row_tiles, int) else most
    wide = _even(panels, MOST_PANELS) if isinstance(panels, int) else UNKNOWN_PANELS
    while wide > 1:
        blocks = product((batch, ceildiv(row_tiles, high), ceildiv(panels, wide)))
        if isinstance(blocks, int) and blocks >= ENOUGH_BLOCKS:
            break
        if not isinstance(blocks, int) and wide <= UNKNOWN_PANELS:
            break
        wide = (wide + 1) // 2
    return high, wide


def _even(count: int, most: int) -> int:
    """The size of parts, at most `most`, of which as few as possible and of like size make up `count`."""
    parts = max(1, -(-count // most))
    return max(1, -(-count // parts))
