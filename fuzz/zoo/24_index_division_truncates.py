"""(n - 5) // 2 for n = 2."""

from __future__ import annotations

from support import differs, np, tw


def witness() -> bool:
    def function(x):
        return x + (x.shape[0] - 5) // 2

    return differs(function, np.zeros(2, np.float32), specs=[tw.spec(("n",), "float32")])
