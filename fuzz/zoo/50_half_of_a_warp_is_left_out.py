"""Sums of rows that a warp takes together."""

from __future__ import annotations

from support import device_differs, small_integers

GRAPH = """graph @g(%x: f32[5, 300]) -> (z) {
  %0: f32[5] = reduce %x {kind=sum, axes=(1,)}
  return %0
}"""


def witness() -> bool:
    return device_differs(GRAPH, small_integers(5, 300))
