"""Every second element replaced."""

from __future__ import annotations

from support import graph_differs, np

GRAPH = """graph @g(%x: f32[9, 8], %u: f32[4, 8]) -> (y) {
  %0: f32[9, 8] = update_slice %x, %u {start=(1, 0), step=(2, 1)}
  return %0
}"""


def witness() -> bool:
    x = np.arange(72, dtype=np.float32).reshape(9, 8)
    return any(graph_differs(GRAPH, x + k, -np.ones((4, 8), np.float32)) for k in range(3))
