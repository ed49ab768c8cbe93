"""-6 // 3 is -2."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    return differs(lambda x, y: x // y, np.array([-6, -7, 6, 8], np.int32), np.array([3, 3, -3, 4], np.int32))
