"""A contraction over two axes that stand in another order on the left."""

from __future__ import annotations

from support import graph_differs, small_integers

GRAPH = """graph @g(%x: f32[3, 4, 5], %w: f32[5, 4, 6]) -> (y) {
  %0: f32[3, 6] = dot %x, %w {lhs_contract=(2, 1), rhs_contract=(0, 1)}
  return %0
}"""


def witness() -> bool:
    return graph_differs(GRAPH, small_integers(3, 4, 5), small_integers(5, 4, 6, seed=1))
