"""Just above the middle of two neighbours, by less than float32 can tell."""

from __future__ import annotations

from support import graph_differs, np

GRAPH = """graph @g(%x: f64[4]) -> (y) {
  %0: f16[4] = cast %x {dtype=f16}
  return %0
}"""


def witness() -> bool:
    middle = 1 + 2.0 ** -11
    return graph_differs(GRAPH, np.array([middle + 2.0 ** -40, middle, middle - 2.0 ** -40, 1.0]))
