"""Two reductions of rows that a block takes together."""

from __future__ import annotations

from support import device_differs, small_integers

GRAPH = """graph @g(%x: f32[3, 5000]) -> (z) {
  %0: f32[3] = reduce %x {kind=sum, axes=(1,)}
  %1: f32[3, 1] = reshape %0 {shape=(3, 1)}
  %2: f32[3, 5000] = broadcast %1 {shape=(3, 5000)}
  %3: f32[3, 5000] = sub %x, %2
  %4: f32[3, 5000] = abs %3
  %5: f32[3] = reduce %4 {kind=sum, axes=(1,)}
  return %5
}"""


def witness() -> bool:
    return device_differs(GRAPH, small_integers(3, 5000))
