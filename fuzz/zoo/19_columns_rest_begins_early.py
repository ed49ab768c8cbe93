"""Sums down 70 rows."""

from __future__ import annotations

from support import differs, small_integers


def witness() -> bool:
    return differs(lambda x: x.sum(axis=0), small_integers(70, 64))
