"""300 does not fit a signed byte."""

from __future__ import annotations

from support import graph_differs, np

GRAPH = """graph @g(%x: f32[32]) -> (y) {
  %0: i8[32] = cast %x {dtype=i8}
  return %0
}"""


def witness() -> bool:
    return graph_differs(GRAPH, np.array([300.0, -300.0, 5.0, 1000.0] * 8, np.float32))
