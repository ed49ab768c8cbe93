"""x x^T with a bias for each column."""

from __future__ import annotations

from support import differs, small_integers


def witness() -> bool:
    x, bias = small_integers(100, 160), small_integers(100, seed=1)
    return differs(lambda x, bias: x @ x.T + bias, x, bias)
