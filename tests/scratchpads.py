"""What the tests of the target with a scratchpad share: compiling for it, its operators, and what a run must have counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from comparing import assert_identical
from msgspec.structs import replace

import tilewright as tw
from tilewright.accelerator import compiling
from tilewright.backends.scratchpad import Work
from tilewright.ir.errors import RuntimeFailure, VerifyError
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.program import Launch, Program
from tilewright.options import Options, read_environment
from tilewright.targets import Scratchpad

Array = np.ndarray[Any, Any]


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 8


def compiled(graph: tw.Graph, budget: int, **settings: Any) -> compiling.ScheduledExecutable:
    executable = tw.compile(graph, target=Scratchpad(budget, **{"time_limit": 0.1, **settings}))
    assert isinstance(executable, compiling.ScheduledExecutable)
    return executable


def operators(graph: tw.Graph, **settings: Any) -> Any:
    return compiling.prepare(graph, Scratchpad(1 << 20, **settings), Options(), read_environment())


def as_list(result: Any) -> list[Array]:
    return list(result) if isinstance(result, tuple) else [result]


def check_promise(executable: compiling.ScheduledExecutable, work: Work) -> None:
    """What was counted is what the schedule said."""
    account = executable.solution.account
    assert (work.read, work.written, work.compulsory, work.peak) == (account.read, account.written, account.compulsory, account.peak)
    assert work.computing <= work.cycles <= work.computing + work.transferring
    assert work.launches == sum(isinstance(step, Launch) for step in executable.program.steps)


def changed_at_random(steps: list[Any], rng: np.random.Generator) -> list[Any]:
    """A step gone, twice, in the place of its neighbour, or at another address."""
    number = int(rng.integers(len(steps)))
    step = steps[number]
    match int(rng.integers(4)):
        case 0:
            return steps[:number] + steps[number + 1:]
        case 1:
            return [*steps[:number], step, *steps[number:]]
        case 2 if number:
            return [*steps[:number - 1], step, steps[number - 1], *steps[number + 1:]]
    if isinstance(step, Launch):
        return steps
    return [*steps[:number], replace(step, address=step.address + 64 * int(rng.integers(-3, 4))), *steps[number + 1:]]


def refusals(program: Program, run: Callable[[Program], list[Array]], rounds: int) -> int:
    """How often verifier and accelerator refuse a program with changed steps, which they do alike; what both accept gives the same bits. (A
    launch is where it was, so that its code is its own.)"""
    rng, refused, expected = np.random.default_rng(0), 0, run(program)
    launches = [step for step in program.steps if isinstance(step, Launch)]
    for _ in range(rounds):
        other = replace(program, steps=tuple(changed_at_random(list(program.steps), rng)))
        if [step for step in other.steps if isinstance(step, Launch)] != launches:
            continue
        accepted = True
        try:
            verify_program(other)
        except VerifyError:
            accepted = False
        try:
            found = run(other)
        except RuntimeFailure:
            refused += 1
            assert not accepted
        else:
            assert accepted
            assert_identical(found, expected)
    return refused
