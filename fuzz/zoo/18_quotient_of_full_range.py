"""The number of blocks of 8 in up to 8 elements."""

from __future__ import annotations

from support import tw

from tilewright.ir.dims import substitute


def witness() -> bool:
    size = tw.symbol("n", 0, 8)
    return int(substitute(size // 8, {"n": 8})) != 1
