"""Transposed sums of transposed sums."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    def function(x):
        a = np.cumsum(x, axis=0)
        b = np.cumsum(a.T, axis=0)
        c = np.cumsum(b.T, axis=1)
        return np.cumsum(c.T, axis=1)

    return differs(function, np.ones((12, 12), np.float32))
