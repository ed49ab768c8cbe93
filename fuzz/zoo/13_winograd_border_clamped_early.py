"""A result whose width no tile divides."""

from __future__ import annotations

from support import graph_differs, small_integers

WEIGHTS = small_integers(32, 32, 3, 3, seed=1)
GRAPH = """graph @g(%x: f32[1, 32, 25, 25]) -> (y) {
  %0: f32[32, 32, 3, 3] = const #weights
  %1: f32[1, 32, 23, 23] = conv %x, %0 {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), input_dilation=(1, 1)}
  return %1
}"""


def witness() -> bool:
    from tilewright.ir.graph import Constant

    constant = Constant(WEIGHTS)
    text = GRAPH.replace("#weights", f"#{constant.digest[:16]}")
    return graph_differs(text, small_integers(1, 32, 25, 25), tolerance=1e-3, constants={constant.digest: constant})
