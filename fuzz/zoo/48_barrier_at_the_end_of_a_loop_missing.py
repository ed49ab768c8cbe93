"""A product of steps that no copy takes: the next part is stored while others still read the last one."""

from __future__ import annotations

from support import device_differs, small_integers

GRAPH = """graph @g(%x: f16[48, 70], %y: f16[70, 40]) -> (z) {
  %0: f16[48, 40] = dot %x, %y {lhs_contract=(1,), rhs_contract=(0,)}
  return %0
}"""


def witness() -> bool:
    return device_differs(GRAPH, small_integers(48, 70, dtype="float16"), small_integers(70, 40, seed=1, dtype="float16"))
