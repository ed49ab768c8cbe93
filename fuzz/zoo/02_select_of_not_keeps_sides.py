"""A choice by the opposite of a condition."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    c = np.array([True, False, True])
    x, y = np.array([1.0, 2.0, 3.0], np.float32), np.array([4.0, 5.0, 6.0], np.float32)
    return differs(lambda c, x, y: np.where(~c, x, y), c, x, y)
