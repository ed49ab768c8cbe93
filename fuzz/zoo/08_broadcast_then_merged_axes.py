"""A column repeated along rows, then flattened, in one kernel."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.arange(6, dtype=np.float32).reshape(1, 6, 1)
    y = np.arange(30, dtype=np.float32)
    return differs(lambda x, y: np.broadcast_to(x, (1, 6, 5)).reshape(30) + y, x, y)
