"""Few rows and columns, and many steps."""

from __future__ import annotations

from support import device_differs, small_integers

GRAPH = """graph @g(%x: f32[4, 3001], %y: f32[3001, 4]) -> (z) {
  %0: f32[4, 4] = dot %x, %y {lhs_contract=(1,), rhs_contract=(0,)}
  return %0
}"""


def witness() -> bool:
    return device_differs(GRAPH, small_integers(4, 3001), small_integers(3001, 4, seed=1))
