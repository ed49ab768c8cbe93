"""Zeros around ones."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.full((2, 2), 5, np.float32)
    return differs(lambda x: np.pad(np.pad(x, 1, constant_values=1), 1, constant_values=0), x)
