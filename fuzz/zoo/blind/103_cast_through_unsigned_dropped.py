"""-1 as an unsigned byte is 255."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.array([-1, 0, 5, -128], np.int8)
    return differs(lambda x: x.astype(np.uint8).astype(np.int32), x)
