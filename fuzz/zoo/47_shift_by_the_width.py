"""A shift by 32 of 32 bits."""

from __future__ import annotations

from support import graph_differs, np

GRAPH = """graph @g(%x: i32[8], %n: i32[8]) -> (y) {
  %0: i32[8] = shl %x, %n
  return %0
}"""


def witness() -> bool:
    return graph_differs(GRAPH, np.arange(1, 9, dtype=np.int32), np.array([32, 1, 32, 0, 31, 32, 33, 2], np.int32))
