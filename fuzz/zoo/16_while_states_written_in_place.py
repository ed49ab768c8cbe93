"""Fibonacci's numbers: each state needs the old value of the other."""

from __future__ import annotations

from support import differs, np, tw


def witness() -> bool:
    def function(x):
        return tw.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, s[2], s[1] + s[2]), (np.float32(0) * x[0], x, x + 1))[1:]

    return differs(function, np.array([1.0, 2.0, 3.0], np.float32))
