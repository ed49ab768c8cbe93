"""The sum over the batch of a convolution whose other axes have one size."""

from __future__ import annotations

from support import graph_differs, small_integers

GRAPH = """graph @g(%x: f32[2, 5, 7, 7], %w: f32[5, 5, 3, 3]) -> (y) {
  %0: f32[2, 5, 5, 5] = conv %x, %w {strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), input_dilation=(1, 1)}
  %1: f32[5, 5, 5] = reduce %0 {kind=sum, axes=(0,)}
  return %1
}"""


def witness() -> bool:
    return graph_differs(GRAPH, small_integers(2, 5, 7, 7), small_integers(5, 5, 3, 3, seed=1))
