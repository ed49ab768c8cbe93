"""A small value that dies, a larger one in its slot, and a third behind them."""

from __future__ import annotations

from support import differs, np, tw


def witness() -> bool:
    def function(x):
        a = np.cumsum(x)
        b = np.cumsum(np.concatenate([a, a, a, a]))
        c = np.cumsum(b[::-1])
        d = np.cumsum(c * 2)
        return np.cumsum(d + c)

    return differs(function, np.ones(300, np.float64), specs=[tw.spec(("n",), "float64")])
