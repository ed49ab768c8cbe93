"""Graphs on GPUs as a subject of fuzzing: cases are those of `graphs.py` for other targets, with the same promises.

Lowering divides work among blocks and threads there, and packs operands for matrix units; the loop interpreter finds races between
threads, and CUDA source is written of each program that is lowered. What is run is emulated, on the CPU. Some graphs are as wide as
matrix units want them (`generate_blocks.wide_graph`); most of these are too much for the loop interpreter and for mutation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace

from . import native as machine
from .generate_blocks import wide_graph, wide_seeds
from .graphs import GraphCase, GraphSubject
from .sequences import completed, legal, random_steps

WIDE_SHARE = 0.3  # of the new graphs


class DeviceSubject(GraphSubject):
    """See `Subject`."""

    name = "cuda"
    share = 2  # they take twice the time of a graph on a CPU
    seeds_as = "late"
    targets = machine.DEVICE_TARGETS
    oldest = ()

    def seeds(self, domain: bool = True) -> Iterator[GraphCase]:
        """Those of graphs and wide ones, on each target in turn, one in two on a GPU that small programs fill, and one in three with
        products in tf32."""
        pipeline = legal(tuple(completed(())))
        wide = (GraphCase(graph, pipeline) for graph in wide_seeds()) if domain else ()
        for number, case in enumerate(itertools.chain(wide, super().seeds(domain))):
            rest = number // len(self.targets)
            yield replace(case, target=self.targets[number % len(self.targets)], small_caches=rest % 2 == 1, tf32=rest // 2 % 3 == 2)

    def generate(self, rng: np.random.Generator, domain: bool = True) -> GraphCase:
        if domain and rng.random() < WIDE_SHARE:
            return self.around(wide_graph(rng), random_steps(rng), rng)
        return super().generate(rng, domain)
