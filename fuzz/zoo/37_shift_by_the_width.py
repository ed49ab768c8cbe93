"""A shift by 32 of 32 bits, one number at a time."""

from __future__ import annotations

from support import graph_differs, np

GRAPH = """graph @g(%x: i32[], %n: i32[]) -> (y) {
  %0: i32[] = shl %x, %n
  return %0
}"""


def witness() -> bool:
    return graph_differs(GRAPH, np.array(5, np.int32), np.array(32, np.int32))
