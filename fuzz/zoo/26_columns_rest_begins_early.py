"""Sums down 70 rows."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.arange(70 * 64, dtype=np.float32).reshape(70, 64) % 17
    return differs(lambda x: x.sum(axis=0), x)
