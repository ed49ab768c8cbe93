"""A loop of ten iterations in blocks of four, with a guard."""

from __future__ import annotations

from support import np

from tilewright.ir.loop_interp import run_kernel
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.schedule import split

KERNEL = """kernel @k(%x: in f32[10], %y: inout f32[10]) {
  for %i in 0..10 {
    %y[i] = load %x[i]
  }
}"""


def witness() -> bool:
    x, y = np.arange(10, dtype=np.float32), np.full(10, -1, np.float32)
    run_kernel(split(parse_kernel(KERNEL), "i", 4, "guard"), [x, y], {})
    return not np.array_equal(x, y)
