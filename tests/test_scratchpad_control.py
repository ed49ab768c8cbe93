"""Control flow on the target with a scratchpad: an operator whose bodies run on resident values, counted as it runs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from comparing import assert_close, assert_identical
from test_scratchpad_target import as_list, weights

import tilewright as tw
from tilewright.accelerator import compiling
from tilewright.backends import reference
from tilewright.backends.scratchpad import ScratchpadModel
from tilewright.ir.errors import ParseError, RuntimeFailure, VerifyError
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_parser import parse_program
from tilewright.ir.loop_text import format_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.program import Branch, Loop, Repeat, Reserve, nested_launches
from tilewright.options import Options, read_environment
from tilewright.scheduling.exact import working_set
from tilewright.targets import Scratchpad

F32 = np.float32
Array = np.ndarray[Any, Any]


pytestmark = pytest.mark.usefixtures("quick_code_in_file")


def branch(x: Any) -> Any:
    y = np.exp(x)
    chosen = tw.cond(x.sum() > 0, lambda a, b: a @ weights(24, 24) + b, lambda a, b: np.sin(b) * 2, x, y)
    return chosen + y, chosen.sum(axis=0)


def few_rounds(x: Any) -> Any:
    """Small states are copied."""
    state = tw.while_loop(lambda s: s[1] < 5, lambda s: (np.tanh(s[0]) + x[0], s[1] + 1), (x[1] * 2, np.sum(x) * 0))
    return state[0] @ weights(24, 8) + state[1]


def large_states(x: Any) -> Any:
    """Memory of large states is exchanged from round to round; captures are what lies around."""
    y, w = np.exp(x), x @ weights(24, 48, seed=3)
    state = tw.while_loop(lambda s: s.max() < 40, lambda s: s + np.abs(tw.softmax(s, axis=-1) * w) + 1,
                          np.concatenate([y, y], axis=1))
    return state[:, 24:] @ weights(24, 24) + y


def recurrent(x: Any) -> Any:
    """A scan whose slices are read from an input and stored side by side, one backwards within, conditions of which are slices."""
    def step(state: Any, row: Any) -> Any:
        new = np.tanh(state @ weights(24, 24) + row[0])
        inner, ys = tw.scan(lambda s, r: (s + r * new.sum(), np.exp(s)), new[:1] * 0, row[0].reshape(24, 1), reverse=True)
        return new, (tw.cond(row[1], lambda a: a * 2, lambda a: a - 1, inner) + ys.sum(), ys)

    state, (a, b) = tw.scan(step, x[0] * 0, (x, x[:, 0] > 0))
    return state, a, b.reshape(b.shape[0], -1) + x


PROGRAMS = {"branch": branch, "few_rounds": few_rounds, "large_states": large_states, "recurrent": recurrent}


def inputs() -> list[Array]:
    return [weights(33, 24, seed=1) * 8, -np.abs(weights(33, 24, seed=2))]


def problem_of(graph: tw.Graph, **settings: Any) -> Any:
    return compiling.prepare(graph, Scratchpad(1 << 20, **settings), Options(), read_environment()).problem


@pytest.mark.parametrize("name, parameters", [*((name, "ignored") for name in PROGRAMS), ("recurrent", "streamed")])
def test_bits_bytes_and_text(name: str, parameters: str) -> None:
    """At the largest operator: the bits of the CPU, the bytes that were promised, and the same from the text in the interpreter."""
    graph = tw.trace(PROGRAMS[name], (tw.spec((33, 24), F32),))
    least = working_set(problem_of(graph, parameters=parameters), 64)[0]
    executable = tw.compile(graph, target=Scratchpad(least, time_limit=0.1, parameters=parameters))
    assert isinstance(executable, compiling.ScheduledExecutable)
    account, plain = executable.solution.account, tw.compile(graph)
    constants = [constant for _, constant in executable.program.constants]
    program = parse_program(format_program(executable.program), constants)
    for x in inputs():
        found, work = executable.measure(x)
        assert_identical(as_list(found), as_list(plain(x)))
        assert_close(as_list(found), evaluate_graph(graph, [x]))
        assert_close(run_program(program, [x]), as_list(found))
        assert (work.read, work.written, work.compulsory, work.peak) == (account.read, account.written, account.compulsory, account.peak)
    assert work.peak <= least
    assert any(isinstance(step, (Branch, Loop, Repeat)) for step in program.steps)


def test_what_bodies_compute_shares_an_arena() -> None:
    """The operator needs less than all that its body computes, and no more than its arena beside operands and results."""
    def step(state: Any, row: Any) -> Any:
        for seed in range(6):
            state = np.tanh(state @ weights(64, 64, seed=seed))
        return state + row, state[:1]

    graph = tw.trace(lambda x: tw.scan(step, x[0] * 0, x), (tw.spec((3, 16, 64), F32),))
    problem = problem_of(graph)
    scan = next(operator for operator in problem.operators if operator.kind == "scan")
    arena, = (t for t in scan.outputs if not problem.consumers[t] and t not in problem.results)
    values = 16 * 64 * 4
    assert 2 * values <= problem.tensors[arena].bytes <= 4 * values


def test_cycles_are_of_the_rounds_that_ran() -> None:
    graph = tw.trace(lambda x: tw.while_loop(lambda s: s[0, 0] < 9, lambda s: s + 1, x), (tw.spec((32, 64), F32),))
    executable = tw.compile(graph, target=Scratchpad(1 << 20, time_limit=0))
    works = [executable.measure(np.full((32, 64), value, F32))[1] for value in (9, 0, -10)]
    launches = [work.launches for work in works]
    assert launches[0] < launches[1] and launches[2] - launches[1] == 10 * 2  # the condition and the body
    assert works[0].cycles < works[1].cycles < works[2].cycles and len({work.moved for work in works}) == 1


# A running sum of rows, downwards; then doubled as long as its first element is below 100.
TEXT = """\
kernel @clear(%y: out f32[16]) {
  for %i in 0..16 {
    %y[i] = f32 0.0
  }
}

kernel @add(%x: in f32[16], %s: inout f32[16], %y: out f32[16]) {
  for %i in 0..16 {
    %s[i] = add(load %x[i], load %s[i])
    %y[i] = load %s[i]
  }
}

kernel @below(%s: in f32[16], %c: out bool[1]) {
  %c[0] = lt(load %s[0], f32 100.0)
}

kernel @double(%s: inout f32[16]) {
  for %i in 0..16 {
    %s[i] = mul(load %s[i], f32 2.0)
  }
}

program @main(%a: f32[3, 16]) -> (%sums: f32[3, 16], %last: f32[16]) {
  constants 0
  workspace 0
  scratchpad 512 alignment 64
  fetch input 0 to 0 bytes 192
  reserve 192 bytes 192
  reserve 384 bytes 64
  launch @clear(scratchpad 384)
  repeat %t in 0..3 reverse {
    launch @add(scratchpad 64*t, scratchpad 384, scratchpad 64*t + 192)
  }
  spill 192 to output 0 bytes 192
  free 0
  reserve 448 bytes 1
  loop {
    launch @below(scratchpad 384, scratchpad 448)
  } while scratchpad 448 {
    launch @double(scratchpad 384)
  }
  spill 384 to output 1 bytes 64
}
"""


def test_steps() -> None:
    program = parse_program(TEXT)
    verify_program(program)
    assert format_program(program) == TEXT and Reserve(448, 1) in program.steps
    assert [(launch.kernel.name, [s.name for s in counters]) for launch, counters in nested_launches(program.steps)] == [
        ("clear", []), ("add", ["t"]), ("below", []), ("double", [])]
    x = np.arange(1, 49, dtype=F32).reshape(3, 16)
    sums, last = run_program(program, [x])
    np.testing.assert_array_equal(sums, x[::-1].cumsum(axis=0)[::-1])
    np.testing.assert_array_equal(last, sums[0] * 2)


REFUSED = [
    ("reserve 192 bytes 192", "reserve 192 bytes 128", "stores to 192 to 384, which are no part of one value"),
    ("reserve 192 bytes 192", "reserve 128 bytes 192", "overlaps"),
    ("} while scratchpad 448 {", "} while scratchpad 0 {", "a condition is read at scratchpad 0, where no value is"),
    ("  spill 192 to output 0 bytes 192\n  free 0\n", "  spill 384 to output 1 bytes 64\n  free 0\n", "not for others: it was spilled to change"),
    ("  reserve 448 bytes 1\n", "", "stores to 448 to 449, which are no part"),
    ("  reserve 384 bytes 64\n  launch @clear(scratchpad 384)\n", "  fetch input 0 to 384 bytes 64\n", "not for a launch to change"),
    ("  }\n  spill 192", "    launch @clear(scratchpad 448)\n  }\n  spill 192", "stores to 448 to 512, which are no part"),
]


@pytest.mark.parametrize("old, new, words", [
    *REFUSED,
    ("in 0..3 reverse", "in 0..4 reverse", "%y lies at 192 to 448, which %x overlaps"),
    ("reserve 384 bytes 64", "reserve 384 bytes -64", "bytes"),
    ("    launch @double(scratchpad 384)\n", "    launch @double(scratchpad 384)\n    free 384\n", "no transfers within control flow"),
    ("64*t, scratchpad 384", "64*t, scratchpad 0", "which %x overlaps, and one of them is stored to"),
])
def test_verifier(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises((VerifyError, ParseError), match=words):
        verify_program(parse_program(TEXT.replace(old, new)))


@pytest.mark.parametrize("old, new, words", REFUSED)
def test_the_accelerator_traps(old: str, new: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told nothing of what the verifier found."""
    monkeypatch.setattr(reference, "verify_program", lambda program: None)
    with pytest.raises(RuntimeFailure, match=r"(step \d+ \(\w+\)|at the end): "):
        model_of(TEXT.replace(old, new)).run([np.ones((3, 16), F32)], None, 1)


def test_the_accelerator_runs_steps() -> None:
    x = np.arange(1, 49, dtype=F32).reshape(3, 16)
    found, work = model_of(TEXT).measure([x])
    assert_identical(list(found), list(run_program(parse_program(TEXT), [x])))
    assert (work.launches, work.cycles > 9, work.peak) == (1 + 3 + 2 + 1, True, 512)


def model_of(text: str) -> ScratchpadModel:
    program = parse_program(text)
    code = compiling.build.generate(program, compiling.build.resolved("cpu"), "", prefix="")
    launches = len(list(nested_launches(program.steps)))
    constants = compiling.build.fill_segment(program) if program.constants_bytes else None
    return ScratchpadModel(program, code.object_code, code.symbol, constants, compiling.Machine(1, 16, 0), [1] * launches, "scratchpad")


def changed_steps(rng: np.random.Generator) -> str:
    """The program with a branch for its loop, one or two lines of it gone, twice, exchanged with the next, or with another address; not one
    that moves, of which the verifier knows all places together."""
    steps = TEXT[TEXT.index("  fetch input"):TEXT.index("  loop {")].splitlines()
    steps += ["  branch constant 0 {", "    launch @double(scratchpad 384)", "  }", "  spill 384 to output 1 bytes 64"]
    for _ in range(rng.integers(1, 3)):
        at = int(rng.integers(len(steps) - 1))
        numbers = [found.span() for found in re.finditer(r"(?<=to )\d+|(?<=reserve )\d+|(?<=spill )\d+|(?<=free )\d+|(?<=scratchpad )\d+\b(?!\*)",
                                                         steps[at])]
        match int(rng.integers(6)):
            case 0 if "{" not in steps[at] and "}" not in steps[at]:
                del steps[at]
            case 1 if "{" not in steps[at] and "}" not in steps[at]:
                steps.insert(at, steps[at])
            case 2:
                steps[at:at + 2] = steps[at:at + 2][::-1]
            case _ if numbers:
                begin, end = numbers[int(rng.integers(len(numbers)))]
                moved = int(steps[at][begin:end]) + 64 * int(rng.integers(-3, 4))
                steps[at] = f"{steps[at][:begin]}{moved}{steps[at][end:]}"
    head = TEXT[:TEXT.index("  fetch input")].replace("constants 0", "constants 64")
    return head + "  constant 0: bool[1] [true]\n" + "\n".join(steps) + "\n}\n"


def test_verifier_and_accelerator_agree_about_control_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs changed at random, all of whose steps run: both refuse, or both accept."""
    rng, refused = np.random.default_rng(0), 0
    rounds = 60
    for _ in range(rounds):
        text = changed_steps(rng)
        try:
            program = parse_program(text)
        except ParseError:
            continue
        words = ""
        try:
            verify_program(program)
        except VerifyError as error:
            words = str(error)
            if "kernels do not see" in words or "negative" in words:
                continue
        refused += bool(words)
        with monkeypatch.context() as patch:
            patch.setattr(reference, "verify_program", lambda program: None)
            model = model_of(text)
        try:
            model.run([np.ones((3, 16), F32)], None, 1)
        except RuntimeFailure:
            assert words, text
        else:
            assert not words, f"{words}\n{text}"
    assert 10 < refused < rounds - 5
