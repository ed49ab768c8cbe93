"""The places of equal elements."""

from __future__ import annotations

from support import graph_differs, np

GRAPH = """graph @g(%x: i32[2, 6]) -> (y) {
  %0: i64[2, 6] = arg_sort %x {axis=1, descending=true}
  return %0
}"""


def witness() -> bool:
    return graph_differs(GRAPH, np.array([[1, 2, 1, 2, 1, 2], [5, 5, 5, 5, 5, 5]], np.int32))
