"""1 / -0.0 is minus infinity."""

from __future__ import annotations

from support import graph_differs, np

GRAPH = """graph @g(%x: f32[4]) -> (y) {
  %0: f32[4] = const [0.0, -0.0, 0.0, -0.0]
  %1: f32[4] = neg %0
  %2: f32[4] = copysign %x, %1
  return %2
}"""


def witness() -> bool:
    return graph_differs(GRAPH, np.array([1.0, 2.0, 3.0, 4.0], np.float32))
