"""37 rows on two threads."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.arange(37 * 50, dtype=np.float32).reshape(37, 50) + 1
    return any(differs(lambda x: x.sum(axis=1) + 1, x + k, threads=2) for k in range(3))
