"""The largest of negative integers."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = -np.arange(1, 241, dtype=np.int32).reshape(4, 60)
    return differs(lambda x: x.max(axis=1), x)
