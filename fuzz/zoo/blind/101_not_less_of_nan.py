"""Nothing is less than NaN, and NaN is not at most anything."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.array([1.0, np.nan, 2.0, np.nan], np.float32)
    y = np.array([2.0, 1.0, np.nan, np.nan], np.float32)
    return differs(lambda x, y: ~(x < y), x, y)
