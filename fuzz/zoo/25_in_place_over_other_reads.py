"""An array plus itself from the end."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    def function(x):
        sums = np.cumsum(x)
        return (sums + sums[::-1]).cumsum()

    return differs(function, np.arange(50, dtype=np.float32))
