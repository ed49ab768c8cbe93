"""Every second element, from the third of these on."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    x = np.arange(20, dtype=np.int32)
    return differs(lambda x: x[1::2][2:5], x)
