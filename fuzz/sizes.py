"""Extents for random programs: what tiles, vectors, blocks and loops that are spelled out leave over, and symbols.

Lowering tells sizes apart by thresholds: an axis of no more than some elements is spelled out, the next longer one is a loop, one of
some vectors has a loop over vectors and a rest, a long one takes another algorithm. Proofs about a symbol tell its bounds apart in
the same way, and what is wrong there shows at the ends of its range alone. So extents lie at powers of two and beside them, one
long axis in a program at most, and sizes are at the ends of what a symbol allows half of the time.

Guarantees: symbols of one name have one declaration, in whichever program, so that programs with symbols can share parts.
"""

from __future__ import annotations

import numpy as np

from ..ir.dims import DimLike, Symbol, symbol

SHORT = (1, 2, 3, 5, 8, 17)
LONG = (31, 33, 40, 47, 64, 70, 100, 130)
UPPER = (1, 2, 3, 4, 6, 8, 9, 16, 17)
ENDS = 0.5  # chance of a size at an end of its range
UNBOUNDED = 5  # steps beyond its least size that a symbol without an upper bound takes at most


def extents(rng: np.random.Generator) -> list[int]:
    """The short ones, and in a third of all programs a long one."""
    return [*SHORT, *([LONG[int(rng.integers(len(LONG)))]] if rng.random() < 1 / 3 else [])]


def random_symbol(rng: np.random.Generator) -> DimLike:
    """A symbol of few or many sizes, with zero among them now and then; some are multiples of 4."""
    if rng.random() < 0.2:
        return symbol("C4to24", 4, 24, 4)
    lower, upper = int(rng.random() < 0.85), UPPER[int(rng.integers(1, len(UPPER)))]  # at most 1: by `domain.open_size`
    return symbol(f"N{lower}to{upper}", lower, upper)


def random_size(declared: Symbol, rng: np.random.Generator) -> int:
    """A size within the bounds of a symbol."""
    step = declared.multiple_of
    first = -(-declared.lower // step)
    last = first + UNBOUNDED if declared.upper is None else declared.upper // step
    if rng.random() < ENDS:
        return (first if rng.random() < 0.3 else last) * step
    return int(rng.integers(first, last + 1)) * step
