"""x / 3 is not x * (1 / 3)."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.arange(1, 200, dtype=np.float32)
    return differs(lambda x: x / np.float32(3), x)
