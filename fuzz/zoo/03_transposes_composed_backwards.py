"""Two rotations of axes of one size, in an order that matters."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    return differs(lambda x: x.transpose(1, 0, 2).transpose(0, 2, 1), x)
