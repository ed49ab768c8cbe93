"""Numbers half way between two neighbours."""

from __future__ import annotations

from support import graph_differs, np

GRAPH = """graph @g(%x: f32[16]) -> (y) {
  %0: bf16[16] = cast %x {dtype=bf16}
  %1: f32[16] = cast %0 {dtype=f32}
  return %1
}"""


def witness() -> bool:
    return graph_differs(GRAPH, np.arange(256, 272, dtype=np.float32) + np.float32(1))
