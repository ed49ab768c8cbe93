"""The largest number occurs twice."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.array([[3, 1, 3, 2], [0, 0, 0, 0]], np.int32)
    return differs(lambda x: x.argmax(axis=1), x)
