"""A constant that is a negative zero."""

from __future__ import annotations

from support import evaluate_graph, np, parse

TEXT = """graph @g() -> (y) {
  %0: f32[] = const -0.0
  return %0
}"""


def witness() -> bool:
    return not bool(np.signbit(evaluate_graph(parse(TEXT), ())[0]))
