"""Graphs on GPUs as a subject of fuzzing: cases are those of `graphs.py` for other targets, with the same promises.

Lowering divides work among blocks and threads there, and packs operands for matrix units; the loop interpreter finds races between
threads, and CUDA source is written of each program that is lowered. What is run is emulated, on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from . import native as machine
from .graphs import GraphCase, GraphSubject


class DeviceSubject(GraphSubject):
    """See `Subject`."""

    name = "cuda"
    share = 2  # they take twice the time of a graph on a CPU
    seeds_as = "late"
    targets = machine.DEVICE_TARGETS

    def seeds(self, domain: bool = True) -> Iterator[GraphCase]:
        """Those of graphs, on each target in turn, one in two on a GPU that small programs fill, and one in three with products in tf32."""
        for number, case in enumerate(super().seeds(domain)):
            rest = number // len(self.targets)
            yield replace(case, target=self.targets[number % len(self.targets)], small_caches=rest % 2 == 1, tf32=rest // 2 % 3 == 2)
