"""A running sum from the end."""

from __future__ import annotations

from support import parse

TEXT = """graph @g(%x: f32[4]) -> (y) {
  %0: f32[4] = cumulative %x {kind=sum, axis=0, reverse=true}
  return %0
}"""


def witness() -> bool:
    from tilewright.ir.printer import format_graph

    graph = parse(TEXT)
    return parse(format_graph(graph)).fingerprint != graph.fingerprint
