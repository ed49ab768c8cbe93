"""How long layers and programs take: seconds of one thread, the least of several runs, programs in turn.

A layer is timed on its own: a graph of nothing else, at the largest shape that calibration met. The clock is that of the thread, so
that other processes on the machine count little; what is compared is measured in turn, so that both see the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from ..driver import compile_graph
from ..ir.graph import encode_op
from ..options import Options
from .applying import layer_alone
from .layers import Layer
from .plan import LayerPlan
from .samples import Sample

ROUNDS = 7
SPAN = 0.002  # seconds that a measurement takes at least, in as many calls as that needs
CALLS = 200


def least_seconds(calls: Sequence[Callable[[], Any]], rounds: int = ROUNDS) -> list[float]:
    """Seconds of a call of each, measured by turns."""
    counts = []
    for call in calls:
        call()
        begin = time.thread_time()
        call()
        counts.append(int(min(CALLS, max(1, SPAN / max(time.thread_time() - begin, 1e-7)))))
    least = [float("inf")] * len(calls)
    for _ in range(rounds):
        for place, (call, count) in enumerate(zip(calls, counts)):
            begin = time.thread_time()
            for _ in range(count):
                call()
            least[place] = min(least[place], (time.thread_time() - begin) / count)
    return least


class Timer:
    """Times layers in float and by plans; equal ones once."""

    def __init__(self, target: str, options: Options) -> None:
        self.target = target
        self.options = replace(options, threads=1)
        self._known: dict[Any, list[float]] = {}

    def __call__(self, layer: Layer, shape: Sequence[int], plans: Sequence[LayerPlan]) -> list[float]:
        """Seconds of the layer in float, then as each of the plans says, on an input of that shape."""
        variants = tuple((plan.precision, plan.weights.group if plan.weights else 0, plan.smoothing is None or plan.folded,
                          plan.correction is None, 0 if plan.outliers is None else len(plan.outliers)) for plan in plans)
        key = encode_op(layer.node.op), tuple(shape), layer.operand.shape, variants
        if key not in self._known:
            x = np.random.default_rng(0).standard_normal(tuple(shape), np.float32)
            programs = [compile_graph(layer_alone(layer, tuple(shape), plan), self.target, self.options) for plan in (None, *plans)]
            self._known[key] = least_seconds([lambda program=program: program(x) for program in programs])  # type: ignore[misc]  # a default binds it
        return self._known[key]

    def whole(self, programs: Sequence[Any], samples: Sequence[Sample], rounds: int = ROUNDS) -> list[float]:
        """Seconds of a call of each program, the mean over the samples."""

        def all_samples(program: Any) -> Callable[[], None]:
            def call() -> None:
                for sample in samples:
                    program(*sample.values())
            return call

        return [seconds / max(len(samples), 1) for seconds in least_seconds([all_samples(program) for program in programs], rounds)]
