"""A program for multiples of 8 is no program for all sizes."""

from __future__ import annotations

from support import is_wrong, np, tw


def witness() -> bool:
    def compiled(size):
        return tw.compile(lambda x: np.cumsum(x) * 2, args=(tw.spec((size,), "float32"),), name="key")

    compiled(tw.symbol("n", 8, 64, 8))
    x = np.arange(13, dtype=np.float32)
    try:
        return is_wrong(compiled(tw.symbol("n", 1, 64))(x), np.cumsum(x) * 2)
    except tw.ArgumentError:
        return True
