"""What was chosen for a kernel and what a launch of it does, written down by the lowering that chose it.

For people and tools alone: nothing that compiles reads it. Sizes are in the symbols of the program.
"""

from __future__ import annotations

from msgspec import Struct

from .dims import DimLike
from .errors import Loc


class Choice(Struct, frozen=True):
    """How a kernel computes. `strategy`: which lowering made it; `tile`: rows and columns of its register tile, `low_tiles`: of
    those that it takes for fewer rows, the lowest first; `details`: what else that lowering decided; `general`: it serves all
    sizes; `schedule`: the steps taken; `refused`: steps that were chosen and left out, since they are not shown to keep the
    meaning; `in_place`: it writes over an operand that nothing reads afterwards."""

    strategy: str
    tile: tuple[int, int] | None = None
    general: bool = False
    schedule: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    in_place: bool = False
    details: tuple[str, ...] = ()
    low_tiles: tuple[tuple[int, int], ...] = ()


class Operand(Struct, frozen=True):
    """A buffer of a launch: its element type and shape as the graph sees them, where it lies (an input, an output, a
    constant, the workspace), and how, where that is not plain C order."""

    name: str
    dtype: str
    shape: tuple[DimLike, ...]
    space: str
    layout: str = ""


class Work(Struct, frozen=True):
    """What a node of the source does within a launch. `operations`: floating operations, a multiply-add counting two;
    `slots`: vector elements through an arithmetic unit, which time is predicted from; `weight`: what the launch's time is
    divided by."""

    loc: Loc
    op: str
    operations: DimLike
    slots: DimLike
    weight: DimLike


class Facts(Struct, frozen=True):
    """What a launch does. `parallel`: extents of the loops that threads share, none: serial; `lanes`: of its widest vector loop,
    0: none; `bits`: of the widest numbers that it computes with; `contract`: what its order of computing keeps; `read` and
    `written`: bytes, each counted once; `rows`: of one matrix of a contraction, which decide between its tiles."""

    choice: Choice
    operands: tuple[Operand, ...]
    work: tuple[Work, ...]
    contract: str
    parallel: tuple[DimLike, ...]
    lanes: int
    bits: int
    read: DimLike
    written: DimLike
    registers: tuple[str, ...] = ()
    rows: DimLike = 0
