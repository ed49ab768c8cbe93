"""A product on matrix units with many stages."""

from __future__ import annotations

from support import device_differs, small_integers

GRAPH = """graph @g(%x: f16[32, 256], %y: f16[256, 32]) -> (z) {
  %0: f16[32, 32] = dot %x, %y {lhs_contract=(1,), rhs_contract=(0,)}
  return %0
}"""


def witness() -> bool:
    return device_differs(GRAPH, small_integers(32, 256, dtype="float16"), small_integers(256, 32, seed=1, dtype="float16"))
