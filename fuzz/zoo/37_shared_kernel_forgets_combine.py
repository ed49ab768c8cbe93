"""The same rows multiplied and added up."""

from __future__ import annotations

from support import differs, np, tw


def witness() -> bool:
    def function(x):
        return tw.scan(lambda s, v: (s, v.sum(axis=1)), x[0, 0, 0], x)[1], tw.scan(lambda s, v: (s, v.prod(axis=1)), x[0, 0, 0], x)[1]

    return differs(function, np.arange(48, dtype=np.float32).reshape(2, 8, 3))
