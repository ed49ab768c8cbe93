"""Taking place -1 must fail at run time."""

from __future__ import annotations

from support import compile_graph, np, parse, tw

GRAPH = """graph @g(%x: f32[4]) -> (y) {
  %0: i64[1] = const [-1]
  %1: f32[1] = take %x, %0 {axis=0}
  return %1
}"""


def witness() -> bool:
    executable = compile_graph(parse(GRAPH), "cpu", tw.Options(cache=False))
    try:
        executable(np.arange(4, dtype=np.float32))
    except tw.RuntimeFailure:
        return False
    return True
