"""What a product loses when it is rounded."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.linspace(1, 2, 64, dtype=np.float32)
    return differs(lambda x, y, z: x * y + z, x, x[::-1].copy(), -x * x[::-1])
