"""Sums of what comes behind."""

from __future__ import annotations

from support import graph_differs, small_integers

GRAPH = """graph @g(%x: f32[3, 7]) -> (y) {
  %0: f32[3, 7] = cumulative %x {kind=sum, axis=1, exclusive=true, reverse=true}
  return %0
}"""


def witness() -> bool:
    return graph_differs(GRAPH, small_integers(3, 7))
