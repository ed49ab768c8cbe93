"""The largest of every second element."""

from __future__ import annotations

from support import graph_differs, small_integers

GRAPH = """graph @g(%x: f32[1, 12, 16, 24]) -> (y) {
  %0: f32[1, 8, 12, 24] = reduce_window %x {kind=max, window=(1, 3, 3, 1), strides=(1, 1, 1, 1),
                                            padding=((0, 0), (0, 0), (0, 0), (0, 0)), dilation=(1, 2, 2, 1)}
  return %0
}"""


def witness() -> bool:
    return graph_differs(GRAPH, small_integers(1, 12, 16, 24))
