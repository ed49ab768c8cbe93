"""Chooses register tiles. A model of the core, no measurement: the tile with the most multiply-adds for each load that
fits into the vector registers and hides the latency of the multiply-add."""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from .ir.caps import Caps
from .ir.dims import DimLike
from .ir.types import DType


class Tile(Struct, frozen=True):
    """A register tile: `rows` x `columns` accumulators in vectors of `lanes`."""

    rows: int
    columns: int
    lanes: int


LATENCY_TILES = 10   # independent accumulators that hide the latency of two multiply-add units (4 cycles each)
USUAL_VECTORS = 2    # of a panel's columns; kernels of one width are shared, so another one must be worth its code
WORTH = 1.06


def panel_columns(columns: DimLike, rows: DimLike, dtype: DType, caps: Caps) -> int:
    """Columns of a packed panel, which the right operand is laid out for: two vectors, or what a narrow matrix fills, or
    another number of vectors that leaves less of the last panel empty."""
    lanes = caps.lanes(dtype)
    usual = 3 if caps.vector_registers >= 32 else USUAL_VECTORS
    if not isinstance(columns, int):
        return lanes * usual
    needed = max(1, -(-columns // lanes))
    if rows == 1 and needed >= 4:
        return lanes * (8 if needed >= 8 else 4)
    if needed <= usual:
        return lanes * needed
    best = max(range(1, usual + 2), key=lambda vectors: _share(columns, vectors, lanes, caps))
    worth = _share(columns, best, lanes, caps) > WORTH * _share(columns, usual, lanes, caps)
    return lanes * (best if worth else usual)


def _share(columns: int, vectors: int, lanes: int, caps: Caps) -> float:
    """The share of the peak that panels of so many vectors reach, empty columns counted out."""
    panels = -(-columns // (vectors * lanes))
    return columns / (panels * vectors * lanes) * _rate(_most_rows(vectors, caps), vectors)


def _most_rows(vectors: int, caps: Caps) -> int:
    """Rows of accumulators beside one register that broadcasts the left operand and those of the panel's row."""
    return max(1, (caps.vector_registers - 1 - vectors) // vectors)


@lru_cache(maxsize=1024)
def choose_tile(columns: int, rows: DimLike, dtype: DType, caps: Caps) -> Tile:
    """The tile for a panel of `columns` columns and a matrix of `rows` rows."""
    lanes = caps.lanes(dtype)
    vectors = columns // lanes
    most = _most_rows(vectors, caps)
    if not isinstance(rows, int):
        return Tile(most, columns, lanes)
    if rows <= most:
        return Tile(max(rows, 1), columns, lanes)

    def score(tile_rows: int) -> float:
        """Useful share of the work times the share of issue slots that multiply-adds get."""
        return rows / (-(-rows // tile_rows) * tile_rows) * _rate(tile_rows, vectors)

    return Tile(max(range(1, most + 1), key=score), columns, lanes)


def _rate(rows: int, vectors: int) -> float:
    """The share of issue slots that multiply-adds get: two of them and two loads a cycle; too few accumulators wait for
    their own results."""
    products = rows * vectors
    return products / 2 / max(products / 2, (vectors + rows) / 2, LATENCY_TILES / 2)


TILES_SHARE = 0.6   # of the second level of memory that the input of a block of Winograd's tiles may take
MOST_TILES = 64


def tiles_in_block(points: int, channels: int, dtype: DType, caps: Caps) -> int:
    """Tiles of Winograd's algorithm that are worked on together: their products meet the same weights, and their input stays
    near."""
    return max(1, min(MOST_TILES, int(TILES_SHARE * caps.level2_bytes) // (points * channels * dtype.bytes)))
