"""Schedules that share are executed: the same bits as unscheduled, the bytes that the checker counted, traps on what must not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comparing import assert_close, assert_identical
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scratchpads import Array, as_list, check_promise, compiled, operators, refusals, weights

import tilewright as tw
from tilewright.accelerator import compiling
from tilewright.accelerator.row_slices import rows_of, spans_of, with_rows
from tilewright.accelerator.sharing import shared
from tilewright.backends import reference
from tilewright.backends.scratchpad import Machine, ScratchpadModel
from tilewright.ir.errors import CompileError, RuntimeFailure, VerifyError
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.program import Free, Launch, Program, Reserve
from tilewright.options import Options, read_environment
from tilewright.scheduling.beyond import SWITCHES, what_is_allowed
from tilewright.scheduling.exact import solve, working_set
from tilewright.scheduling.problem import Operator, Tensor, make_problem
from tilewright.scheduling.recomputing import repeated
from tilewright.targets import SHARING, Scratchpad, parse_scratchpad

pytestmark = pytest.mark.usefixtures("quick_code")
F32 = np.float32


def kernels(program: Program) -> list[str]:
    return [step.kernel.name for step in program.steps if isinstance(step, Launch)]


def least(graph: tw.Graph, *allow: str) -> int:
    """Bytes of the largest operator with what is allowed, or of less room where that makes slices of it."""
    whole = operators(graph)
    room = working_set(shared(whole, what_is_allowed(allow), 1 << 20, 64).problem, 64)[0]
    tried = ((part, working_set(shared(whole, what_is_allowed(allow), part, 64).problem, 64)[0]) for part in (room // 2, room * 3 // 4))
    return next((needed for part, needed in tried if needed <= part), room) if "slices" in allow else room


def executed(graph: tw.Graph, budget: int, x: Array, **given: Any) -> compiling.ScheduledExecutable:
    """The executable, whose result was compared with that of the same kernels unscheduled, and whose bytes with the checker's."""
    executable = compiled(graph, budget, **given)
    found, work = executable.measure(x)
    assert_identical(as_list(found), as_list(tw.compile(graph)(x)))
    check_promise(executable, work)
    return executable


def executed_as_shared(graph: tw.Graph, x: Array, target: Scratchpad) -> compiling.ScheduledExecutable:
    """As `executed`, of a schedule that shares all it may, even where nothing is gained."""
    whole = operators(graph, parameters=target.parameters)
    allowed = what_is_allowed(target.allow)
    rich = shared(whole, allowed, target.bytes, target.alignment)
    room = max(target.bytes, working_set(rich.problem, target.alignment)[0])
    vast = replace(rich.problem, tensors=tuple(replace(t, bytes=t.bytes << 20) for t in rich.problem.tensors))  # is never the answer
    solution = solve(rich.problem, room, target.alignment, 0, allowed=allowed, compared=vast, change=lambda problem, *_: problem)
    given = replace(target, bytes=room)
    executable = compiling.executable_of(graph, rich, solution, given, Options(), read_environment())
    found, work = executable.measure(x)
    assert_identical(as_list(found), as_list(tw.compile(graph)(x)))
    check_promise(executable, work)
    return executable


# --- results over operands -------------------------------------------------------------------------------------------


def in_place(x: Any) -> Any:
    """A wide value that tanh may lie over, and an addend that the last product may."""
    wide = x @ weights(16, 64)
    return np.tanh(wide) @ weights(64, 16, seed=1) + x, (wide * 2).sum(axis=0)


def test_results_over_operands() -> None:
    graph = tw.trace(in_place, (tw.spec((24, 16), F32),))
    x = weights(24, 16, seed=5)
    x[0, 0], x[1, 1] = np.nan, np.inf
    room = least(graph, "in-place")
    assert room < least(graph)
    with pytest.raises(CompileError, match=f"needs {least(graph)} bytes at once but the scratchpad has {room}"):
        compiled(graph, room)
    executable = executed(graph, room, x, allow=("in-place",))
    assert any("_over_" in name for name in kernels(executable.program))
    assert_close(run_program(executable.program, [x], threads=2), as_list(executable(x)))


def test_an_input_that_is_overwritten_is_fetched_again() -> None:
    """With room for little more than a value: tanh lies over the input, whose bytes return for the sine."""
    graph = tw.trace(lambda x: (np.sort(np.tanh(x), axis=0), np.sort(np.exp(x), axis=0)), (tw.spec((32, 8), F32),))
    executable = executed(graph, least(graph, "in-place"), weights(32, 8), allow=("in-place",))
    account = executable.solution.account
    assert account.read >= 2 * 1024 or not any("_over_" in name for name in kernels(executable.program))


def test_what_may_not_be_overwritten() -> None:
    """An operand that is read elsewhere too, in another order, or as a part of a larger one."""
    for function in (lambda x: np.tanh(x) + x[::-1], lambda x: tw.softmax(x, axis=-1)):
        graph = tw.trace(function, (tw.spec((12, 16), F32),))
        assert not any(operator.in_place for operator in shared(operators(graph), what_is_allowed(["in-place"]), 1 << 20, 64).problem.operators)


# --- concatenation without copies ------------------------------------------------------------------------------------


def joined(x: Any) -> Any:
    rows = np.concatenate([x @ weights(16, 32), np.maximum(x @ weights(16, 32, seed=1), 0)], axis=0)
    return tw.softmax(rows @ weights(32, 16, seed=2), axis=-1)


def test_a_concatenation_is_no_launch() -> None:
    graph = tw.trace(joined, (tw.spec((32, 16), F32),))
    room = least(graph, "concat")
    assert room < least(graph)
    executable = executed(graph, room, weights(32, 16), allow=("concat",))
    assert "concat" not in kernels(executable.program) and executable.solution.account.excess == 0
    assert "concat" in kernels(compiled(graph, least(graph), allow=("in-place",)).program)


def test_parts_that_are_no_whole_units_are_copied() -> None:
    graph = tw.trace(joined, (tw.spec((31, 16), F32),))
    executable = executed(graph, 1 << 20, weights(31, 16), allow=("concat",), alignment=256)
    assert "concat" in kernels(executable.program)


def test_a_part_is_not_overwritten_while_the_whole_is_read() -> None:
    """The sum may lie over the product where nothing is joined; not where a part of what is joined is that product."""
    def function(x: Any) -> Any:
        left = x @ weights(16, 16)
        both = np.concatenate([left, x @ weights(16, 16, seed=1)], axis=0)
        return both[::-1].reshape(2, 32, 16)[0] * left

    graph = tw.trace(function, (tw.spec((32, 16), F32),))
    for allow in (("concat",), ("in-place",), ("in-place", "concat")):
        executed(graph, least(graph, *allow), weights(32, 16), allow=allow)


# --- cheap values again ----------------------------------------------------------------------------------------------


def again(x: Any) -> Any:
    """The sine of a value is needed at the beginning and at the end, the value itself at the end too."""
    first = x @ weights(24, 24)
    wave = np.sin(first)
    middle = np.tanh(wave @ weights(24, 72, seed=1)) @ weights(72, 24, seed=2)
    return tw.softmax(middle @ weights(24, 72, seed=3), axis=-1) @ weights(72, 24, seed=4) + wave @ weights(24, 24, seed=5), first.sum(axis=0)


def test_a_cheap_value_is_launched_again() -> None:
    graph = tw.trace(again, (tw.spec((33, 24), F32),))
    x = weights(33, 24)
    found = shared(operators(graph), what_is_allowed(["recompute"]), 1 << 20, 64).problem
    assert any(name.endswith(" again 1") for name in (operator.name for operator in found.operators))
    for budget in (least(graph), least(graph) + 3328):
        plain, rich = (executed(graph, budget, x, allow=allow) for allow in ((), ("recompute",)))
        assert rich.solution.account.excess <= plain.solution.account.excess


def test_repeated_operators() -> None:
    """One for each reader, chains as a whole; never a result, nor one that grows what is alive."""
    tensors = [Tensor("x", 64), Tensor("a", 64), Tensor("b", 64), Tensor("y", 64), Tensor("z", 64), Tensor("half", 32)]
    rows = [Operator("begin", (), (0,)), Operator("f", (0,), (1,), light=True), Operator("g", (1,), (2,), light=True),
            Operator("p", (2,), (3,)), Operator("q", (2, 5), (4,)), Operator("less", (0,), (5,), light=True)]
    found = repeated(make_problem("chain", tensors, rows, [3, 4]))
    assert found.operators == {"g again 1": "g", "f again 1": "f"} and found.tensors == {"b again 1": "b", "a again 1": "a"}
    reads = {o.name: {found.problem.tensors[t].name for t in o.inputs} for o in found.problem.operators}
    assert reads["q"] == {"b again 1", "half"} and reads["p"] == {"b"} and reads["g again 1"] == {"a again 1"}
    assert found.problem.compulsory == make_problem("chain", tensors, rows, [3, 4]).compulsory
    assert repeated(make_problem("chain", tensors, rows, [2, 3, 4])).operators == {}


# --- slices ----------------------------------------------------------------------------------------------------------


def feed_forward(x: Any) -> Any:
    """What is between the products takes four times as much as what comes and goes."""
    return tw.softmax(tw.gelu(x @ weights(24, 96)) @ weights(96, 24, seed=1) + x, axis=-1) * x


def test_a_chain_runs_slice_by_slice() -> None:
    """33 rows in 11 slices of 3, and 34 in 11 and one of a single row; a member reads whole operands too."""
    for rows in (33, 34):
        graph = tw.trace(feed_forward, (tw.spec((rows, 24), F32),))
        x = weights(rows, 24, seed=3)
        x[0, 0], x[1, 1] = np.nan, np.inf
        room = least(graph, "slices")
        assert room < least(graph) * 0.6
        with pytest.raises(CompileError, match="bytes at once but the scratchpad has"):
            compiled(graph, room, allow=("in-place", "concat", "recompute"))
        executable = executed(graph, room, x, allow=("slices",))
        assert sum(isinstance(step, Reserve) for step in executable.program.steps) >= 2  # the result, and a slice each
        assert len(kernels(executable.program)) > 2 * 11
        assert_close(run_program(executable.program, [x], threads=2), as_list(executable(x)))


def attention(x: Any) -> Any:
    """Heads wider than what comes and goes, no row of which sees a later one."""
    rows, heads, width = x.shape[0], 4, 16
    q, k, v = ((x @ weights(16, heads * width, seed=n)).reshape(rows, heads, width).transpose(1, 0, 2) for n in range(3))
    scores = np.where(np.arange(rows)[:, None] >= np.arange(rows), q @ k.transpose(0, 2, 1) / 4, F32(-np.inf))
    return (tw.softmax(scores, axis=-1) @ v).transpose(1, 0, 2).reshape(rows, heads * width) @ weights(heads * width, 16, seed=5)


def test_attention_runs_by_rows_of_queries() -> None:
    """From the queries to the product behind it, a few rows at a time; all keys and values are there."""
    graph = tw.trace(attention, (tw.spec((50, 16), F32),))
    room = least(graph, "slices")
    assert room < least(graph) * 0.7
    executable = executed(graph, room, weights(50, 16, seed=3), allow=("slices",))
    attended = [step for step in executable.program.steps if isinstance(step, Launch) and step.facts.choice.strategy == "attention"]
    assert len(attended) > 10


def test_slices_through_views_and_of_many_axes() -> None:
    """Rows of tokens that are a batch of one; a product with what all rows need; rows that a reshape divides are no rows."""
    def function(x: Any, y: Any) -> Any:
        wide = np.maximum((x @ weights(16, 64)).reshape(1, 24, 64) @ y.T, 0)
        return (np.tanh(wide) @ weights(40, 16, seed=2)).reshape(12, 2, 16).sum(axis=1)

    graph = tw.trace(function, (tw.spec((24, 16), F32), tw.spec((40, 64), F32)))
    x, y = weights(24, 16), weights(40, 64, seed=1)
    room = least(graph, "slices")
    executable = compiled(graph, room, allow=("slices",))
    found, work = executable.measure(x, y)
    assert_identical(as_list(found), as_list(tw.compile(graph)(x, y)))
    check_promise(executable, work)
    assert any(isinstance(step, Reserve) for step in executable.program.steps) == (room < least(graph))


@pytest.mark.parametrize("function, operands", [
    (lambda x: np.exp(x) * np.arange(5, dtype=F32), (True,)),
    (lambda x: x - x.mean(axis=1, keepdims=True), (True,)),
    (lambda x: (x.T * 2).T[:, ::-1], (True,)),
    (lambda x: np.pad(x[:, 1:], ((0, 0), (2, 1))) + 1, (True,)),
    (lambda x: x * x[2:3], None),                # a row of all rows
    (lambda x: x - x.max(axis=0), (True,)),    # the largest are a group of their own, which all rows need
    (lambda x: x[::-1] * 2, None),
    (lambda x: x.T * 2, None),
    (lambda x: np.pad(x * 2, ((1, 0), (0, 0))), (True,)),
    (lambda x: np.pad(x * 2, ((0, 3), (0, 1))) + 1, (True,)),
])
def test_rows_of_a_group(function: Any, operands: tuple[bool, ...] | None) -> None:
    """The group for some rows gives these rows, evaluated by the interpreter."""
    drafts = operators(tw.trace(function, (tw.spec((6, 5), F32),))).drafted.drafts
    rows = rows_of(drafts[-1].node)
    if operands is None:
        assert rows is None or not any(rows.operands)
        return
    assert rows is not None and rows.operands[:1] == operands
    values = [weights(*param.shape, seed=n) for n, param in enumerate(rows.node.op.body.params)]
    whole, = evaluate_graph(rows.node.op.body, values)
    for first, count in ((0, 4), (4, 2), (5, 1)):
        spans = spans_of(rows, (first, first + count))
        assert spans is not None
        given = [v[slice(*spans[param])] if param in spans else v for v, param in zip(values, rows.node.op.body.params)]
        part, = evaluate_graph(with_rows(rows, spans).op.body, given)
        assert_identical([part], [whole[first:first + count]])


# --- all of them -----------------------------------------------------------------------------------------------------


def random_graph(rng: np.random.Generator) -> tuple[tw.Graph, tuple[int, int]]:
    """Values of a width made of earlier ones: products, cheap ones, concatenations, softmax. The last two are results."""
    rows, width = 16 * int(rng.integers(1, 3)), 8 * int(rng.integers(1, 4))

    def function(x: Any) -> Any:
        values = [x]
        for number in range(int(rng.integers(4, 9))):
            left, right = (values[int(rng.integers(max(0, len(values) - 4), len(values)))] for _ in range(2))
            match int(rng.integers(0, 6)):
                case 0:
                    values.append(left @ weights(width, width, seed=number))
                case 1:
                    values.append(tw.gelu(left @ weights(width, 5 * width, seed=number)) @ weights(5 * width, width))
                case 2:
                    values.append(np.concatenate([left, np.maximum(right @ weights(width, width, seed=number), 0)], axis=0)[::-1][:rows])
                case 3 if left.shape == right.shape:
                    values.append(np.tanh(left) * right)
                case 4:
                    values.append(np.concatenate([left, right @ weights(width, width, seed=number)], axis=0) @ weights(width, width))
                    values.append(values[-1].reshape(-1, rows, width).sum(axis=0))
                case _:
                    values.append(tw.softmax(np.sin(left), axis=-1))
        return values[-1], values[-2]

    return tw.trace(function, (tw.spec((rows, width), F32),)), (rows, width)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**16), st.sets(st.sampled_from(SHARING), min_size=1), st.sampled_from(["ignored", "streamed", "resident"]),
       st.floats(0.3, 1))
def test_random_graphs(seed: int, allow: set[str], parameters: str, part: float) -> None:
    graph, shape = random_graph(np.random.default_rng(seed))
    x = weights(*shape, seed=1)
    room = int(least(graph, "in-place") * part)
    executable = executed_as_shared(graph, x, Scratchpad(room, parameters=parameters, allow=tuple(sorted(allow))))
    assert_close(as_list(executable(x)), evaluate_graph(graph, [x]))


def model_of(program: Program, generated: Any = None) -> ScratchpadModel:
    """The simulator of a program that nobody verified."""
    code = generated or compiling.build.generate(program, compiling.build.resolved("cpu"), "", prefix="")
    return ScratchpadModel(program, code.object_code, code.symbol, compiling.build.fill_segment(program), Machine(1, 16, 0),
                           [1] * len(kernels(program)), "scratchpad")


def refused(program: Program, x: Array, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the verifier, and by the simulator, which is not told so."""
    with pytest.raises(VerifyError):
        verify_program(program)
    with monkeypatch.context() as patch:
        patch.setattr(reference, "verify_program", lambda program: None)
        model = model_of(program)
    with pytest.raises(RuntimeFailure, match=words):
        model.run([x], None, 1)


def test_a_wrong_launch_over_an_operand_traps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it replaces must be there, whole, and no other operand of it."""
    graph = tw.trace(in_place, (tw.spec((24, 16), F32),))
    x = weights(24, 16)
    program = executed(graph, least(graph, "in-place"), x, allow=("in-place",)).program
    model_of(program).run([x], None, 1)
    steps = program.steps
    number = next(n for n, step in enumerate(steps) if isinstance(step, Launch) and "_over_" in step.kernel.name)
    launch = steps[number]
    assert isinstance(launch, Launch)
    place = launch.places[-1]
    aside = replace(launch, places=(*launch.places[:-1], replace(place, offset=int(place.offset) + 64)))
    for wrong, words in (((Free(int(place.offset)), launch), "which hold no value"), ((aside,), "which hold no value|none of its operands")):
        refused(replace(program, steps=(*steps[:number], *wrong, *steps[number + 1:])), x, words, monkeypatch)
    last = max(n for n, step in enumerate(steps) if isinstance(step, Launch) and len(step.places) > 2 and "_over_" in step.kernel.name)
    launch = steps[last]
    assert isinstance(launch, Launch)
    twice = replace(launch, places=(*launch.places[:-1], launch.places[0]))
    refused(replace(program, steps=(*steps[:last], twice, *steps[last + 1:])), x, "which are of two operands", monkeypatch)


def test_neighbours_that_are_not_there_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is read with its neighbour as one, and the neighbour is gone."""
    graph = tw.trace(joined, (tw.spec((32, 16), F32),))
    program = compiled(graph, least(graph, "concat"), allow=("concat",)).program
    steps = list(program.steps)
    reading = max(n for n, step in enumerate(steps) if isinstance(step, Launch) and "packed_dot" in step.kernel.name)
    steps.insert(reading, steps.pop(next(n for n in range(reading, len(steps)) if isinstance(steps[n], Free))))
    refused(replace(program, steps=tuple(steps)), weights(32, 16), "which hold no value", monkeypatch)


def test_verifier_and_accelerator_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """On steps that are gone, twice, swapped or elsewhere, in a schedule that shares; what both accept gives the same bits."""
    def function(x: Any) -> Any:
        wide = tw.gelu(joined(x) @ weights(16, 64, seed=3)) @ weights(64, 16, seed=4)
        return wide, np.tanh(np.sort(x, axis=0))

    graph = tw.trace(function, (tw.spec((32, 16), F32),))
    x = weights(32, 16)
    program = executed_as_shared(graph, x, Scratchpad(least(graph) // 2, allow=("all",))).program
    assert any(isinstance(step, Reserve) for step in program.steps) and any("_over_" in name for name in kernels(program))
    code = compiling.build.generate(program, compiling.build.resolved("cpu"), "", prefix="")
    monkeypatch.setattr(reference, "verify_program", lambda program: None)
    assert refusals(program, lambda other: as_list(model_of(other, code).run([x], None, 1)), 120) > 10


# --- the target and bad input ----------------------------------------------------------------------------------------


def test_target_text() -> None:
    assert tuple(name.replace("_", "-") for name in SWITCHES) == SHARING
    target = Scratchpad(4096, allow=("in-place", "concat"))
    assert str(target) == "scratchpad:4096:allow=in-place+concat" and parse_scratchpad(str(target)) == target
    assert parse_scratchpad("scratchpad:4KiB:allow=all") == Scratchpad(4096, allow=("all",))
    for text in ("scratchpad:4KiB:allow=", "scratchpad:4KiB:allow=in-place,concat", "scratchpad:4KiB:allow=copies"):
        with pytest.raises(CompileError, match="allow must be a tuple of names .*, each of in-place, concat, recompute, slices or all, found"):
            parse_scratchpad(text)
