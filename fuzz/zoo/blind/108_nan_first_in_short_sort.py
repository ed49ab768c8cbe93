"""A NaN among numbers."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    return differs(lambda x: np.sort(x), np.array([3.0, np.nan, 1.0, 2.0], np.float32))
