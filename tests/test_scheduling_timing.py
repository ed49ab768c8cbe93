"""Cycles of schedules: held against the simulated accelerator, which counts them while it runs, and against sums by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from test_scratchpad_target import skip, weights

import tilewright as tw
from tilewright.accelerator import compiling
from tilewright.options import Options, read_environment
from tilewright.scheduling.beyond import EVERYTHING, changed
from tilewright.scheduling.exact import solve, working_set
from tilewright.scheduling.importing import problem_of
from tilewright.scheduling.problem import INPUT, Fetch, Free, Operator, Run, Schedule, Spill, Tensor, make_problem, with_parameters
from tilewright.scheduling.timing import Cycles, Engines, best_cycles, cycles
from tilewright.targets import Scratchpad

F32 = np.float32


@pytest.mark.parametrize("settings", [
    {}, {"parameters": "streamed", "banks": 3}, {"parameters": "resident"}, {"prefetch": False, "operations_per_cycle": 8, "dma_latency": 0},
])
def test_the_accelerator_counts_the_same(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They share no code. Each operator is a launch here."""
    monkeypatch.setattr(compiling.build, "generate", partial(compiling.build.generate, quick=True))
    graph = tw.trace(skip, (tw.spec((33, 24), F32),))
    operators = compiling.prepare(graph, Scratchpad(1 << 20, **settings), Options(), read_environment())
    assert all(len(group) == 1 for group in operators.groups)
    target = Scratchpad(working_set(operators.problem, 64)[0] + 64 * (settings.get("banks", 0) * 40), time_limit=0, **settings)
    executable = tw.compile(graph, target=target)
    assert isinstance(executable, compiling.ScheduledExecutable)
    work = executable.measure(weights(33, 24))[1]
    engines = Engines(target.banks, target.dma_bytes_per_cycle, target.dma_latency, target.operations_per_cycle)
    found = cycles(executable.solution.problem, executable.solution.schedule, target.bytes, target.alignment, engines)
    assert found == Cycles(work.cycles, work.computing, work.transferring)
    assert found.computing < found.beside <= found.serial


def test_by_hand() -> None:
    """A fetch of 64 bytes takes 10 + 4 cycles, an operator 5; the second fetch goes beside the first operator where the banks differ."""
    tensors = [Tensor("x", 64, INPUT), Tensor("z", 64, INPUT), Tensor("a", 64), Tensor("y", 64)]
    operators = [Operator("f", (0,), (2,), operations=50), Operator("g", (1, 2), (3,), in_place=(1,), operations=50)]
    problem = make_problem("hand", tensors, operators, [3])
    steps = (Fetch(0, 0), Run(0, (64,)), Fetch(1, 128), Run(1, (128,)), Spill(3), Free(0), Free(2), Free(3))
    schedule = Schedule(steps)
    assert cycles(problem, schedule, 256, 64, Engines(4, 16, 10, 10)) == Cycles(14 + 14 + 5 + 14, 10, 42)  # the fetch hides f
    assert cycles(problem, schedule, 256, 64, Engines(1, 16, 10, 10)) == Cycles(52, 10, 42)
    sooner = best_cycles(problem, schedule, 256, 64, Engines(4, 16, 10, 10))
    assert sooner.beside <= 47 and sooner.serial == 52


def test_operations_are_kept_by_every_rewriting() -> None:
    """What is joined adds up; what is computed again counts again; parameters that are no tensors are read all the same."""
    graph = tw.trace(lambda x: np.tanh(np.exp(x) @ weights(24, 16)) + (np.exp(x) @ weights(24, 16, seed=1)), (tw.spec((8, 24), F32),))
    problem = problem_of(graph, shared=True)
    dots, exponentials = 2 * (2 * 8 * 24 * 16), 8 * 24
    rest = 2 * 8 * 16
    assert sum(o.operations for o in problem.operators) == dots + exponentials + rest
    ignored = with_parameters(problem, "ignored")
    assert sum(o.elsewhere for o in ignored.operators) == 2 * 24 * 16 * 4
    rich = changed(ignored, 1 << 20, 64, EVERYTHING)
    assert sum(o.operations for o in rich.operators) >= dots + 2 * exponentials + rest
    assert solve(rich, 1 << 20, 64, 0).plain.name == problem.name


def test_operations_of_control_flow() -> None:
    """A scan's rounds, the dearer side of a branch, one round of a loop that data ends: as nodes and as launches."""
    def program(x: Any) -> Any:
        last, rows = tw.scan(lambda s, r: (s + r, s * r), x[0] * 0, x)
        chosen = tw.cond(last.sum() > 0, lambda v: v * 2 + 1, lambda v: v, last)
        return tw.while_loop(lambda s: s[0] < 9, lambda s: s + 1, chosen), rows

    graph = tw.trace(program, (tw.spec((7, 32), F32),))
    fused = compiling.prepare(graph, Scratchpad(1 << 20), Options(), read_environment()).problem
    for problem in (problem_of(graph), fused):
        of_kind = {operator.kind: operator.operations for operator in problem.operators}
        assert (of_kind["scan"], of_kind["if"]) == (7 * 2 * 32, 2 * 32)
        assert 32 <= of_kind["while"] <= 34
