"""A running sum must not become a vector loop."""

from __future__ import annotations

from tilewright.ir.errors import ScheduleError
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.schedule import vectorize

KERNEL = """kernel @k(%x: in f32[9], %y: inout f32[10]) {
  for %i in 0..9 {
    %y[i + 1] = add(load %y[i], load %x[i])
  }
}"""


def witness() -> bool:
    try:
        vectorize(parse_kernel(KERNEL), "i", 4)
    except ScheduleError:
        return False
    return True
