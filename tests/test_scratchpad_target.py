"""The target with a scratchpad: results bit-equal to the same kernels unscheduled, counted bytes as promised, traps, bad input."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from comparing import assert_close, assert_identical
from msgspec.structs import replace
from scratchpads import as_list, check_promise, compiled, operators, refusals, weights

import tilewright as tw
from tilewright import cli
from tilewright.accelerator import compiling
from tilewright.accelerator.operators import operators_of
from tilewright.backends import reference
from tilewright.backends.scratchpad import ScratchpadModel
from tilewright.ir.errors import CompileError, RuntimeFailure, TilewrightError, VerifyError
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_parser import parse_program
from tilewright.ir.loop_text import format_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.program import Fetch, Free, Launch, Program, Spill
from tilewright.options import Options
from tilewright.scheduling.checker import check
from tilewright.scheduling.exact import solve, working_set
from tilewright.scheduling.prefetching import overlapped
from tilewright.scheduling.problem import INPUT, VALUE, Operator, Run, Tensor, make_problem
from tilewright.targets import Scratchpad, is_scratchpad, parse_scratchpad

F32 = np.float32


pytestmark = pytest.mark.usefixtures("quick_code_in_file")


def block(x: Any) -> Any:
    """A block of a transformer with a long skip, and a result that later operators read."""
    hidden = tw.softmax((x @ weights(32, 32)) @ (x @ weights(32, 32, seed=1)).T, axis=-1) @ (x @ weights(32, 48, seed=2))
    wide = tw.gelu(hidden @ weights(48, 96, seed=3))
    narrow = np.tanh(wide) @ weights(96, 32, seed=4) + x
    return narrow, (wide * 2).sum(axis=0), narrow.reshape(-1)[::3] * 0.5


def cells(x: Any) -> Any:
    """Like a searched cell: several branches over the same two values, joined."""
    a, b = np.exp(x @ weights(24, 24)), np.maximum(x @ weights(24, 24, seed=5), 0)
    c = np.sin(a @ weights(24, 40, seed=6)) @ weights(40, 24, seed=7) + b
    d = (b @ weights(24, 24, seed=8)) * a
    return np.concatenate([c, d @ weights(24, 16, seed=9), a[:, :7]], axis=1).astype(np.float64)


def skip(x: Any) -> Any:
    """A value that is needed again on the far side of something wide."""
    kept = np.exp(x @ weights(24, 24))
    narrow = np.maximum(kept @ weights(24, 90, seed=1), 0) @ weights(90, 24, seed=2)
    return tw.softmax(np.sin(narrow @ weights(24, 90, seed=3)) @ weights(90, 24, seed=4), axis=-1) * kept


PROGRAMS = {"block": (block, (20, 32)), "cells": (cells, (33, 24)), "skip": (skip, (33, 24))}


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_bits_and_bytes(name: str) -> None:
    """From the largest operator up to where nothing moves beyond the compulsory bytes."""
    function, shape = PROGRAMS[name]
    graph = tw.trace(function, (tw.spec(shape, F32),))
    x = weights(*shape, seed=10) * 8
    x[0, 0], x[1, 1] = np.nan, np.inf
    expected = as_list(tw.compile(graph)(x))
    problem = operators(graph).problem
    least = working_set(problem, 64)[0]
    peak = solve(problem, 1 << 24, 64, 0).peak
    excesses = []
    for budget in (least, (least + peak) // 2, peak) if name == "skip" else (least, peak + 64):
        executable = compiled(graph, budget)
        found, work = executable.measure(x)
        assert_identical(as_list(found), expected)
        check_promise(executable, work)
        excesses.append(work.excess)
        assert work.peak <= budget
    assert excesses == sorted(excesses, reverse=True) and excesses[-1] == 0
    with pytest.raises(CompileError, match=rf"operator \w+ #\d+ needs {least} bytes at once but the scratchpad has {(least - 1) // 64 * 64}"):
        compiled(graph, least - 1)


@pytest.mark.parametrize("parameters", ["streamed", "resident"])
def test_parameters(parameters: str) -> None:
    graph = tw.trace(skip, (tw.spec((33, 24), F32),))
    x = weights(33, 24, seed=3)
    executable = compiled(graph, 64 * 1024, parameters=parameters)
    found, work = executable.measure(x)
    assert_identical(as_list(found), as_list(tw.compile(graph)(x)))
    check_promise(executable, work)
    assert not any(place.space == "constant" for step in executable.program.steps if isinstance(step, Launch) for place in step.places)
    assert work.compulsory > sum(constant.array.nbytes for _, constant in executable.program.constants)


def test_program_is_text_that_runs_in_the_interpreter() -> None:
    graph = tw.trace(lambda x: (np.exp(x) + x[::-1], x.sum(axis=0) * np.exp(x)), (tw.spec((5, 3), F32),))
    executable = compiled(graph, 256)
    program = parse_program(format_program(executable.program))
    verify_program(program)
    x = weights(5, 3)
    assert_close(run_program(program, [x], threads=2), as_list(executable(x)))


def random_graph(rng: np.random.Generator) -> tuple[tw.Graph, tuple[int, int]]:
    """Values of one of three widths, each made of one or two earlier ones; the last two and a random one are results."""
    rows, widths = int(rng.integers(1, 12)), [int(n) for n in rng.integers(1, 30, 3)]

    def function(x: Any) -> Any:
        values = [x]
        for number in range(int(rng.integers(4, 12))):
            left, right = (values[int(rng.integers(max(0, len(values) - 4), len(values)))] for _ in range(2))
            kind = int(rng.integers(0, 5))
            if kind == 0 or left.shape != right.shape:
                values.append(left @ weights(left.shape[1], widths[int(rng.integers(3))], seed=number))
            elif kind == 1:
                values.append(tw.softmax(left - right, axis=-1))
            elif kind == 2:
                values.append(np.concatenate([left, right[:, ::-1]], axis=1))
            else:
                values.append(left.sum(axis=0) * right)
        return (values[-1], values[-2], values[int(rng.integers(len(values)))])

    return tw.trace(function, (tw.spec((rows, widths[0]), F32),)), (rows, widths[0])


def test_random_graphs_and_budgets() -> None:
    rng = np.random.default_rng(7)
    for _ in range(6):
        graph, shape = random_graph(rng)
        problem = operators(graph).problem
        least, peak = working_set(problem, 64)[0], solve(problem, 1 << 24, 64, 0).peak
        x = weights(*shape, seed=1)
        executable = compiled(graph, int(rng.integers(least, peak + 1)), banks=int(rng.integers(1, 9)))
        found, work = executable.measure(x)
        assert_identical(as_list(found), as_list(tw.compile(graph)(x)))
        assert_close(as_list(found), evaluate_graph(graph, [x]))
        check_promise(executable, work)


@pytest.mark.parametrize("function, shape", [
    (lambda x: x, (3, 4)),                                 # a result that is an input
    (lambda x: (x + 1, x + 1), (3, 4)),                    # one value, two results
    (lambda x: (np.exp(x), np.ones((2, 2), F32)), (3, 4)),   # a result that is a constant
    (lambda x: np.exp(x), (0, 4)),                         # nothing to compute
    (lambda x: (np.exp(x), x.sum(axis=0)), (0, 4)),
    (lambda x: np.exp(x), (1, 1)),
    (lambda x: np.sort(x, axis=0)[::-1], (37, 3)),         # kernels that prepare for others
])
def test_corners(function: Any, shape: tuple[int, ...]) -> None:
    graph = tw.trace(function, (tw.spec(shape, F32),))
    x = weights(*shape)
    executable = compiled(graph, 8192)
    found, work = executable.measure(x)
    assert_identical(as_list(found), as_list(tw.compile(graph)(x)))
    check_promise(executable, work)


def test_calls_on_several_threads() -> None:
    executable = compiled(tw.trace(block, (tw.spec((20, 32), F32),)), 1 << 20)
    x = weights(20, 32)
    expected, found = as_list(executable(x)), []
    threads = [threading.Thread(target=lambda: found.append(as_list(executable(x)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for one in found:
        assert_identical(one, expected)
    buffer = np.empty_like(expected[0])
    assert executable(x, out=(buffer, None, None))[0] is buffer
    assert_identical([buffer], expected[:1])


@pytest.mark.slow
def test_transfers_beside_computing() -> None:
    """The same bytes and bits in fewer cycles, where there is room and a bank is free; nothing changes with one bank."""
    graph = tw.trace(skip, (tw.spec((33, 24), F32),))
    x = weights(33, 24)
    works = []
    for settings in ({"prefetch": False}, {}, {"banks": 1}):
        executable = compiled(graph, 48 * 1024, parameters="streamed", operations_per_cycle=32, **settings)
        result, work = executable.measure(x)
        check_promise(executable, work)
        works.append((work, as_list(result)))
    (plain, expected), (beside, found), (single, _) = works
    assert_identical(found, expected)
    assert beside.moved == plain.moved and beside.computing == plain.computing
    assert beside.cycles < plain.computing + plain.transferring / 2 < plain.cycles <= single.cycles


def test_prefetching_keeps_the_checker_content() -> None:
    """Random problems with spills and returns: the same bytes, never more than there is room for."""
    rng, moved = np.random.default_rng(3), 0
    for _ in range(30):
        tensors, rows = [Tensor("input", 64 * int(rng.integers(1, 9)), INPUT)], []
        for number in range(int(rng.integers(4, 12))):
            inputs = {int(t) for t in rng.integers(0, len(tensors), 2)}
            tensors.append(Tensor(f"value {number}", 64 * int(rng.integers(0, 9)), VALUE))
            rows.append(Operator(f"operator {number}", tuple(sorted(inputs)), (len(tensors) - 1,)))
        problem = make_problem("random", tensors, rows, [len(tensors) - 1, 2])
        budget = int(working_set(problem, 64)[0] * rng.uniform(1, 2)) // 64 * 64
        schedule = solve(problem, budget, 64, 0).schedule
        found = overlapped(problem, schedule, budget, 64, int(rng.integers(2, 9)))
        assert check(problem, found, budget, 64).moved == check(problem, schedule, budget, 64).moved
        assert [step.operator for step in found.steps if isinstance(step, Run)] == [step.operator for step in schedule.steps if isinstance(step, Run)]
        moved += found != schedule
    assert moved > 5


# --- traps -----------------------------------------------------------------------------------------------------------


class Spilling(NamedTuple):
    """A program with spills, the operators that it runs, and its code."""

    program: Program
    operators: Any
    target: Scratchpad
    code: Any

    def model(self, program: Program, code: Any = None) -> ScratchpadModel:
        """The steps of a program with code that may be of another."""
        launches = sum(isinstance(step, Launch) for step in program.steps)
        chosen = code or self.code
        return ScratchpadModel(program, chosen.object_code, chosen.symbol, compiling.build.fill_segment(program),
                               compiling.Machine(1, 16, 0), [1] * launches, str(self.target))


def code_of(program: Program) -> Any:
    return compiling.build.generate(program, compiling.build.resolved("cpu"), "", prefix="")


@pytest.fixture(scope="module")
def spilling() -> Spilling:
    graph = tw.trace(skip, (tw.spec((33, 24), F32),))
    made = operators(graph)
    target = Scratchpad(working_set(made.problem, 64)[0], time_limit=0.1)
    schedule = solve(made.problem, target.bytes, 64, 0.2).schedule
    program = compiling.share_kernels(compiling.program_of(made, schedule, target.bytes, 64))
    assert any(isinstance(step, Spill) and step.target.space == "workspace" for step in program.steps)
    return Spilling(program, made, target, code_of(program))


def corrupted(program: Program, how: str) -> Program:
    """The program with one step changed."""
    steps = list(program.steps)
    fetches, spills, frees, launches = ([n for n, step in enumerate(steps) if isinstance(step, kind)] for kind in (Fetch, Spill, Free, Launch))
    match how:
        case "no fetch":
            del steps[fetches[-1]]
        case "no spill":
            del steps[spills[0]]
        case "early free":
            last = next(n for n in reversed(frees) if n > launches[-1])
            steps.insert(launches[-1], steps.pop(last))
        case "no free":
            del steps[frees[0]]
        case "other address":
            step = steps[fetches[-1]]
            assert isinstance(step, Fetch)
            steps[fetches[-1]] = Fetch(step.source, step.address + 64, step.bytes)
        case "half":
            step = steps[fetches[0]]
            assert isinstance(step, Fetch)
            steps[fetches[0]] = Fetch(step.source, step.address, step.bytes // 2)
        case "no result":
            del steps[spills[-1]]
    return replace(program, steps=tuple(steps))


@pytest.mark.parametrize("how", ["no fetch", "no spill", "early free", "no free", "other address", "half", "no result"])
def test_corrupted_schedules(how: str, spilling: Spilling, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier refuses each; and the accelerator, which is not told so, traps. The launches' code is the same."""
    program = corrupted(spilling.program, how)
    with pytest.raises(VerifyError):
        verify_program(program)
    monkeypatch.setattr(reference, "verify_program", lambda program: None)
    with pytest.raises(RuntimeFailure, match=r"(step \d+ \(\w+\)|at the end): "):
        spilling.model(program).run([weights(33, 24)], None, 1)
    spilling.model(spilling.program).run([weights(33, 24)], None, 1)


def test_verifier_and_accelerator_agree(spilling: Spilling, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share no code. What both accept gives the same bits. (A launch is where it was, so that its code is its own.)"""
    monkeypatch.setattr(reference, "verify_program", lambda program: None)
    assert refusals(spilling.program, lambda program: as_list(spilling.model(program).run([weights(33, 24)], None, 1)), 80) > 20


def test_a_kernel_at_a_wrong_address_traps(spilling: Spilling) -> None:
    """Code that touches other bytes than the steps say: the code is of one program, the steps of another."""
    room = 4 * spilling.target.bytes
    other = compiling.program_of(spilling.operators, solve(spilling.operators.problem, room, 64, 0).schedule, room, 64)
    with pytest.raises(RuntimeFailure, match="none of its operands"):
        spilling.model(spilling.program, code_of(compiling.share_kernels(other))).run([weights(33, 24)], None, 1)


def test_an_index_out_of_bounds_is_an_error_as_on_a_cpu() -> None:
    graph = tw.trace(lambda x, i: np.exp(x)[i], (tw.spec((4, 8), F32), tw.spec((3,), np.int64)))
    executable = compiled(graph, 4096)
    indices = np.array([0, 9, 1])
    with pytest.raises(IndexError, match="index 9 is out of bounds for axis with size 4"):
        executable(weights(4, 8), indices)
    assert_identical(as_list(executable(weights(4, 8), indices % 4)), [np.asarray(tw.compile(graph)(weights(4, 8), indices % 4))])


# --- bad input -------------------------------------------------------------------------------------------------------


def test_open_sizes_are_named() -> None:
    with pytest.raises(CompileError, match="the size n of input x is not known") as caught:
        tw.compile(tw.trace(lambda x: np.exp(x), (tw.spec(("n", 4), F32),)), target="scratchpad:1MiB")
    assert "--dims n=SIZE" in caught.value.hint


def test_target_text() -> None:
    for target in (Scratchpad(4096), Scratchpad(1 << 20, banks=2, alignment=128, dma_bytes_per_cycle=8, dma_latency=0, operations_per_cycle=1,
                                                parameters="resident", prefetch=False, time_limit=0.5)):
        assert parse_scratchpad(str(target)) == target
    assert parse_scratchpad("scratchpad:1.5KiB:banks=3") == Scratchpad(1536, banks=3)
    assert is_scratchpad(" scratchpad:1") and not is_scratchpad("cpu") and tw.targets.Scratchpad is Scratchpad


@pytest.mark.parametrize("text, words", [
    ("scratchpad:", "found '', expected bytes as in"),
    ("scratchpad:0", "found '0', expected 1 to"),
    ("scratchpad:99999999GiB", "whole bytes"),
    ("scratchpad:1KiB:bank=3", "found 'bank=3', expected each of banks,"),
    ("scratchpad:1KiB:banks=3:banks=4", "at most once"),
    ("scratchpad:1KiB:banks=many", "banks: found 'many', expected a number"),
    ("scratchpad:1KiB:banks=0", "banks must be a whole number from 1"),
    ("scratchpad:1KiB:alignment=4", "alignment must be a whole number from 8"),
    ("scratchpad:1KiB:alignment=48", "alignment must be a power of two"),
    ("scratchpad:1KiB:parameters=gone", "parameters must be one of ignored, streamed, resident"),
    ("scratchpad:1KiB:prefetch=maybe", "prefetch: found 'maybe', expected true or false"),
    ("scratchpad:1KiB:time_limit=-1", "time_limit must be seconds"),
])
def test_target_errors(text: str, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        tw.compile(lambda x: x + 1, target=text, args=(tw.spec((4,), F32),))


def test_what_an_accelerator_does_not_have(tmp_path: Path) -> None:
    executable = compiled(tw.trace(lambda x: x + 1, (tw.spec((4,), F32),)), 4096)
    with pytest.raises(TilewrightError, match="the accelerator is a simulated one"):
        executable.save(tmp_path / "x.so")
    with pytest.raises(TilewrightError, match="the predictions are of CPUs"):
        executable.explain()
    assert executable.target.startswith("scratchpad:4096") and executable.plan((4,))[0] == [(4,)]


def test_spills_have_a_limit_too() -> None:
    graph = tw.trace(skip, (tw.spec((33, 24), F32),))
    least = working_set(operators(graph).problem, 64)[0]
    with pytest.raises(CompileError, match=r"\d+ bytes are spilled off the chip, but max_memory is 1"):
        tw.compile(graph, target=Scratchpad(least, time_limit=0), options=Options(max_memory=1))


def test_groups_of_launches_are_operators() -> None:
    """Each tensor has one operator that stores to it, whatever lowering makes of a node."""
    graph = tw.trace(lambda x: (np.sort(x, axis=-1), np.argsort(x, axis=0) + 1), (tw.spec((40, 9), F32),))
    found = operators(graph)
    assert sum(map(len, found.groups)) == len(found.drafted.drafts)
    assert len(found.groups) == len(found.problem.operators)
    stored = [t for operator in found.problem.operators for t in operator.outputs]
    assert len(stored) == len(set(stored))
    assert operators_of(found.drafted, "streamed").problem.name == found.problem.name


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    place = tmp_path / "m.ir"
    tw.save_text(tw.trace(lambda x: np.exp(x @ weights(16, 16)).sum(axis=0) + x, (tw.spec((8, 16), F32),)), place)
    return place


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.run(list(map(str, arguments)))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_schedule_executes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "in.npz", x=weights(8, 16))
    program = tmp_path / "m.loop"
    status, out, _ = command(capsys, "schedule", model, "--scratchpad", "2KiB", "--execute", tmp_path / "in.npz", "--program", program)
    assert status == 0 and "executed" in out and "cycles" in out and f"wrote {program}" in out
    assert "scratchpad 2048 alignment 64" in program.read_text()
    status, out, _ = command(capsys, "schedule", model, "--scratchpad", "2KiB", "--execute", "random", "--json")
    assert status == 0 and '"utilisation"' in out
    np.savez(tmp_path / "wrong.npz", y=weights(8, 16))
    status, _, err = command(capsys, "schedule", model, "--scratchpad", "2KiB", "--execute", tmp_path / "wrong.npz")
    assert status == 1 and "holds y, expected x" in err
    status, _, err = command(capsys, "schedule", model, "--scratchpad", "2KiB", "--execute", model)
    assert status == 1 and "expected a file that numpy.savez wrote" in err
    status, _, err = command(capsys, "schedule", model, "--scratchpad", "2KiB", "--execute", "random", "--granularity", "imported")
    assert status == 2 and "leave out --granularity" in err


def test_run_on_a_scratchpad(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(capsys, "run", model, "--target", "scratchpad:2KiB:time_limit=0.1", "--random")
    assert status == 0 and "utilisation" not in out and "cycles" in out
    status, _, err = command(capsys, "run", model, "--target", "scratchpad:512", "--random")
    assert status == 1 and "bytes at once but the scratchpad has 512" in err
    status, _, err = command(capsys, "explain", model, "--target", "scratchpad:2KiB:time_limit=0")
    assert status == 1 and "this runs on a simulated accelerator" in err
