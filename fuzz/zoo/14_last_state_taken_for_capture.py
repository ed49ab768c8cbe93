"""A state that is doubled, and added to another one."""

from __future__ import annotations

from support import differs, np, tw


def witness() -> bool:
    def function(x):
        return tw.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + 1, s[1] + np.exp(s[2]), s[2] * 0.5), (np.float32(0) * x[0], x, x))[1]

    return differs(function, np.array([1.0, 2.0, 0.5], np.float32), tolerance=1e-5)
