"""What blocks of 8 leave of up to 8 elements, as a number that the program computes."""

from __future__ import annotations

from support import differs, np, tw


def witness() -> bool:
    def function(x):
        return x.sum() + x.shape[0] % 8

    x = np.ones(8, np.float32)
    return differs(function, x, specs=[tw.spec((tw.symbol("n", 1, 8),), "float32")])
