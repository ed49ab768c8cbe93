"""NaN before larger numbers."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.array([[1, np.nan, 7, 2], [np.nan, 1, 2, 3]], np.float32)
    return differs(lambda x: x.argmax(axis=1), x)
