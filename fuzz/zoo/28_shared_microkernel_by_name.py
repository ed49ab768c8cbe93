"""A product less an array, and an array less a product."""

from __future__ import annotations

from support import differs, small_integers


def witness() -> bool:
    x, w, v, y = (small_integers(12, 12, seed=seed) for seed in range(4))
    return differs(lambda x, w, v, y: (x @ w - y, y - x @ v), x, w, v, y)
