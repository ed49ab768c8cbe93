"""Chooses register tiles. A model of the core, no measurement: the tile with the most multiply-adds for each load that
fits into the vector registers and hides the latency of the multiply-add."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .ir.caps import Caps
from .ir.dims import DimLike
from .ir.types import DType


@dataclass(frozen=True)
class Tile:
    """A register tile: `rows` x `columns` accumulators in vectors of `lanes`."""

    rows: int
    columns: int
    lanes: int


LATENCY_TILES = 10  # independent accumulators that hide the latency of two multiply-add units (4 cycles each)


def panel_columns(columns: DimLike, rows: DimLike, dtype: DType, caps: Caps) -> int:
    """Columns of a packed panel, which the right operand is laid out for: two vectors, or what a narrow matrix fills."""
    lanes = caps.lanes(dtype)
    vectors = 3 if caps.vector_registers >= 32 else 2
    if isinstance(columns, int):
        needed = max(1, -(-columns // lanes))
        if rows == 1 and needed >= 4:
            vectors = 8 if needed >= 8 else 4
        return lanes * min(needed, vectors)
    return lanes * vectors


@lru_cache(maxsize=1024)
def choose_tile(columns: int, rows: DimLike, dtype: DType, caps: Caps) -> Tile:
    """The tile for a panel of `columns` columns and a matrix of `rows` rows."""
    lanes = caps.lanes(dtype)
    vectors = columns // lanes
    # one register broadcasts the left operand, `vectors` hold the row of the panel
    most = max(1, (caps.vector_registers - 1 - vectors) // vectors)
    if not isinstance(rows, int):
        return Tile(most, columns, lanes)
    if rows <= most:
        return Tile(max(rows, 1), columns, lanes)
    return Tile(max(range(1, most + 1), key=lambda r: _score(r, rows, vectors)), columns, lanes)


def _score(tile_rows: int, rows: int, vectors: int) -> float:
    """Useful share of the work times the share of issue slots that multiply-adds get."""
    tiles = -(-rows // tile_rows)
    useful = rows / (tiles * tile_rows)
    products = tile_rows * vectors
    # two multiply-adds and two loads a cycle; too few accumulators wait for their own results
    cycles = max(products / 2, (vectors + tile_rows) / 2, LATENCY_TILES / 2)
    return useful * products / 2 / cycles
