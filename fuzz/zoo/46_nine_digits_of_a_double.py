"""A constant that needs 16 digits."""

from __future__ import annotations

from support import parse

TEXT = """graph @g() -> (y) {
  %0: f64[] = const 0.1234567890123456
  return %0
}"""


def witness() -> bool:
    from tilewright.ir.printer import format_graph

    graph = parse(TEXT)
    return parse(format_graph(graph)).fingerprint != graph.fingerprint
