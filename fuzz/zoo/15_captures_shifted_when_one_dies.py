"""An if whose bodies read the second capture only."""

from __future__ import annotations

from support import graph_differs, np

GRAPH = """graph @g(%c: bool[], %x: f32[4], %y: f32[4]) -> (z) {
  %0: f32[4] = if %c, %x, %y {then_body=graph @t(%a: f32[4], %b: f32[4]) -> (r) {
    %0: f32[4] = neg %b
    return %0
  }, else_body=graph @e(%a: f32[4], %b: f32[4]) -> (r) {
    %0: f32[4] = abs %b
    return %0
  }}
  return %0
}"""


def witness() -> bool:
    x, y = np.arange(4, dtype=np.float32), np.arange(4, 8, dtype=np.float32)
    return graph_differs(GRAPH, np.asarray(True), x, y)
