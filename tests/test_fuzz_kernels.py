"""Fuzzing of kernels: what is generated and mutated keeps the rules, planted faults are found and made small, and nothing is
reported that is no fault."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from tilewright.fuzz import kernel_native
from tilewright.fuzz.generate_kernels import random_kernel
from tilewright.fuzz.generate_nests import random_nest
from tilewright.fuzz.kernel_drafts import Draft
from tilewright.fuzz.kernel_edits import statements_in, with_fuel
from tilewright.fuzz.kernel_native import Run, check_native, doubtful_buffers, program_of
from tilewright.fuzz.kernel_oracles import (
    arguments_of,
    check_text,
    differing,
    first_run,
    fits,
    interpreted,
    side_by_side,
    sums_are_exact,
)
from tilewright.fuzz.kernel_schedules import drawn_schedule
from tilewright.fuzz.kernel_values import Values
from tilewright.fuzz.kernels import KernelCase, KernelSubject, fitting, more_runs, serial
from tilewright.fuzz.mutate_kernels import MUTATORS
from tilewright.fuzz.subject import Failure, Refused
from tilewright.ir import loop_text, schedule
from tilewright.ir.errors import CompileError, ParseError, TilewrightError
from tilewright.ir.loop import For, Kernel, Load, Store, expression_nodes, walk
from tilewright.ir.loop_interp import run_kernel
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_proofs import unproved_indices
from tilewright.ir.loop_scalars import scalar_caller
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.loop_verify import verify_kernel
from tilewright.ir.ops.scalar import evaluate_scalar
from tilewright.ir.schedule import Step, parse_schedule
from tilewright.ir.types import F16, F32, DType

SUBJECT = KernelSubject()
ALL = frozenset(SUBJECT.mutators())
ADD = "kernel @add[N](%x: in f32[N], %y: out f32[N]) {\n  for %i in 0..N {\n    %y[i] = add(load %x[i], f32 1.0)\n  }\n}\n"
SUM = "kernel @sum(%x: in f32[4, 3], %y: inout f32[4]) {{ for %i in 0..4 {{ for %k in 0..3 {kind} {{ %y[i] add= {value} }} }} }}"


def case_of(text: str, steps: str = "", sizes: tuple[tuple[str, int], ...] = (), seed: int = 1) -> KernelCase:
    return KernelCase(parse_kernel(text), parse_schedule(steps), seed, sizes)


def generated(count: int, start: int = 0) -> list[KernelCase]:
    return [SUBJECT.generate(np.random.default_rng(start + n)) for n in range(count)]


# --- generation ------------------------------------------------------------------------------------------------------


def test_random_kernels_keep_the_rules_and_every_promise() -> None:
    kinds = set()
    for seed in range(60):
        kernel = random_kernel(np.random.default_rng(seed))
        verify_kernel(kernel)
        assert not unproved_indices(kernel)
        case = fitting(kernel, np.random.default_rng(seed))
        if case is not None:
            first_run(kernel, arguments_of(kernel, case.binding(), case.seed, False), case.binding())
        kinds |= {s.kind for s in walk(kernel.body) if isinstance(s, For)} | {type(s).__name__ for s in walk(kernel.body)}
    assert kinds >= {"serial", "parallel", "vector", "unrolled", "For", "If", "While", "Let", "Alloc", "Store", "Check", "Prefetch"}


def test_generation_follows_from_the_generator_alone() -> None:
    first, second = (format_kernel(random_kernel(np.random.default_rng(5))) for _ in range(2))
    assert first == second


def test_small_nests_keep_the_rules_and_every_promise() -> None:
    """All loops are serial, iterations meet in memory, and what schedules leave of them means the same."""
    primitives = set()
    met = 0
    for seed in range(60):
        kernel = random_nest(np.random.default_rng(seed))
        verify_kernel(kernel)
        assert format_kernel(random_nest(np.random.default_rng(seed))) == format_kernel(kernel)
        assert {s.kind for s in walk(kernel.body) if isinstance(s, For)} == {"serial"}
        met += any(isinstance(n.op, Load) and n.op.buffer == s.buffer and n.op.index != s.index for s in walk(kernel.body)
                   if isinstance(s, Store) for n in expression_nodes(s.value))
        case = fitting(kernel, np.random.default_rng(seed))
        assert case is not None
        case = SUBJECT.with_random_passes(case, np.random.default_rng(seed))
        primitives |= set(SUBJECT.check(case, False).changed)
    assert met > 20
    assert primitives >= {"split", "fuse", "vectorize", "reorder", "parallelize", "unroll"}


def test_seeds_are_what_lowering_makes() -> None:
    seeds = list(itertools.islice(SUBJECT.seeds(), 40))
    texts = [format_kernel(case.kernel) for case in seeds]
    assert len(set(texts)) == len(texts)
    for case in seeds:
        try:
            SUBJECT.check(case, False)
        except Refused as refused:  # an index that data decides
            assert "refuses its inputs" in str(refused)


def test_while_loops_get_an_end() -> None:
    kernel = with_fuel(parse_kernel("kernel @k(%y: inout i32[1]) { while ge(load %y[0], i32 -9) { %y[0] = i32 0 } }"))
    verify_kernel(kernel)
    assert format_kernel(with_fuel(kernel)) == format_kernel(kernel)
    run_kernel(kernel, [np.zeros(1, np.int32)], {})


# --- mutation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MUTATORS)
def test_every_mutator_makes_other_kernels(name: str) -> None:
    changed = 0
    made = [fitting(random_kernel(rng), rng) for rng in map(np.random.default_rng, range(30))]
    cases = [case for case in made if case is not None]
    for number, (case, donor) in enumerate(zip(cases, reversed(cases))):
        try:
            kernel = MUTATORS[name](Draft(case.kernel, Values(np.random.default_rng(number)), donor.kernel))
        except TilewrightError:
            continue
        new = None if kernel is None else fitting(kernel, np.random.default_rng(0), case)
        changed += new is not None and format_kernel(new.kernel) != format_kernel(case.kernel)
        if new is not None:
            check_text(new.kernel)
    if name != "domain.change_space":  # seldom anything that may be a register
        assert changed >= 2


def test_mutants_are_well_typed_and_nothing_is_reported() -> None:
    rng = np.random.default_rng(3)
    cases, outcomes = generated(12, 100), {"right": 0, "refused": 0}
    for _ in range(100):
        case, donor = (cases[int(rng.integers(len(cases)))] for _ in range(2))
        made = SUBJECT.mutate_program(case, rng, donor, ALL)
        if made is None:
            continue
        case = SUBJECT.mutate_passes(made[0], rng, donor)[0]
        verify_kernel(case.kernel)
        try:
            SUBJECT.check(case, False)
            outcomes["right"] += 1
            cases.append(case)
        except Refused:
            outcomes["refused"] += 1
    assert outcomes["right"] > 4 * outcomes["refused"]


def test_only_allowed_mutators_are_used() -> None:
    rng = np.random.default_rng(0)
    case = generated(1)[0]
    for _ in range(10):
        made = SUBJECT.mutate_program(case, rng, None, frozenset({"operand", "domain.hints"}))
        assert made is None or made[1] in ("operand", "domain.hints")


def test_schedules_are_drawn_and_shortened() -> None:
    rng = np.random.default_rng(1)
    drawn = set()
    for case in generated(12, 30):
        case = SUBJECT.with_random_passes(case, rng)
        assert all(map(fits, case.schedule))
        kept = SUBJECT.without_passes(case, SUBJECT.check(case, False).changed)
        assert len(kept.schedule) <= len(case.schedule)
        drawn |= {step.primitive for step in kept.schedule}
        assert not SUBJECT.with_pipeline(case).schedule
    assert len(drawn) >= 5


def test_steps_follow_each_other_on_the_same_loops() -> None:
    """A block is made of a loop, and then a vector, or a part of threads, of the block."""
    drawn = [drawn_schedule(parse_kernel(ADD), Values(np.random.default_rng(seed))) for seed in range(60)]
    assert any(step.primitive == "vectorize" and "_inner" in str(step) for schedule in drawn for step in schedule)
    assert any(step.primitive == "parallelize" and "_outer" in str(step) for schedule in drawn for step in schedule)


# --- planted faults --------------------------------------------------------------------------------------------------


def wrong_split(kernel: Kernel, loop: str, factor: int, tail: str = "min", inner_name: str = "") -> Kernel:
    """Leaves the last iteration out where blocks do not come out even."""
    text = format_kernel(schedule.split(kernel, loop, factor, "guard", inner_name))
    return parse_kernel(re.sub(r"index\(N\)", "index(N - 1)", text) if "if lt" in text else text)


def test_a_wrong_primitive_is_named_and_the_case_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(schedule.PRIMITIVES, "split", wrong_split)
    case = case_of(ADD.replace("  for", "  prefetch %x[0]\n  for", 1), "unroll(i) split(i, 4) vectorize(i_inner, 4)", (("N", 6),))

    def fails(candidate: KernelCase) -> bool:
        try:
            SUBJECT.check(candidate, False)
        except Refused:
            return False
        except Failure as failure:
            return failure.signature == "result in split"
        return False

    with pytest.raises(Failure, match=r"split\(i, 4, guard\)|split\(i, 4\).*element 5") as caught:
        SUBJECT.check(case, False)
    assert (caught.value.kind, caught.value.stage) == ("result", "split")
    while True:
        smaller = next((c for c in SUBJECT.smaller(case) if SUBJECT.size(c) <= SUBJECT.size(case)
                        and SUBJECT.format(c) != SUBJECT.format(case) and fails(c)), None)
        if smaller is None or len(SUBJECT.format(smaller)) >= len(SUBJECT.format(case)):
            break
        case = smaller
    assert [step.primitive for step in case.schedule] == ["split"]
    assert statements_in(case.kernel) == 2


def test_a_race_that_a_primitive_lets_in_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "need_independent", lambda *arguments: None)
    text = "kernel @k(%y: inout i32[8]) { for %i in 0..7 { %y[i + 1] = load %y[i] } }"
    for steps, stage in (("parallelize(i)", "parallelize"), ("vectorize(i, 4)", "vectorize")):
        with pytest.raises(Failure, match="result in " + stage):
            SUBJECT.check(case_of(text, steps), False)


def test_exceptions_of_primitives_are_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(kernel: Kernel, loop: str) -> Kernel:
        raise TypeError("planted")

    monkeypatch.setitem(schedule.PRIMITIVES, "unroll", broken)
    with pytest.raises(Failure, match="crash in unroll: TypeError: planted"):
        SUBJECT.check(case_of(ADD.replace("0..N", "0..4"), "unroll(i)", (("N", 4),)), False)


def test_a_printer_that_loses_something_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_text, "_format_literal", lambda value, dtype: "2.0")
    with pytest.raises(Failure, match="text in printer: what is parsed differs"):
        SUBJECT.check(case_of(ADD, "", (("N", 3),)), False)


def test_wrong_machine_code_is_found() -> None:
    case = case_of(ADD, "", (("N", 5),))
    arguments = arguments_of(case.kernel, {"N": 5}, 1, False)
    expected = interpreted(case.kernel, arguments, {"N": 5})
    runs = [Run(arguments, expected, {"N": 5})]
    assert check_native(case.kernel, runs, 0)
    expected[1][3] += 1
    for seed, target in enumerate(kernel_native.TARGETS):
        with pytest.raises(Failure, match=f"result in llvm: {target}: %y, element 3"):
            check_native(case.kernel, runs, seed)


def test_threads_wait_for_what_is_stored_late() -> None:
    """Where threads share a kernel, what its results hold before is stored late, by one of them; and all of it is."""
    kernel = parse_kernel("kernel @k(%x: in f32[9], %y: inout f32[9]) {"
                          " for %i in 0..9 parallel { %y[i] = sub(load %x[i], load %y[i]) } }")
    fill, _ = program_of(kernel).kernels()
    assert any(s.symbol.name == "round" for s in walk(fill.body) if isinstance(s, For))
    arguments = arguments_of(kernel, {}, 1, False)
    assert check_native(kernel, [Run(arguments, interpreted(kernel, arguments, {}), {})], 0)
    fill, _ = program_of(serial(kernel)).kernels()
    assert not any(s.symbol.name == "round" for s in walk(fill.body) if isinstance(s, For))


def test_machine_code_runs_with_other_inputs_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is right for the inputs of the case alone is wrong."""
    case = case_of(ADD, "unroll(i)", (("N", 3),))
    assert len({tuple(sorted(more.sizes.items())) for more in more_runs(case, [])}) > 1
    original = kernel_native.run

    def wrong_at_other_sizes(executable: Any, inputs: Any, threads: int) -> Any:
        results = original(executable, inputs, threads)
        return results if inputs[0].size == 3 else tuple(r + 1 for r in results)

    monkeypatch.setattr(kernel_native, "run", wrong_at_other_sizes)
    with pytest.raises(Failure, match="result in llvm"):
        SUBJECT.check(case, native=True)


# --- no false reports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "words"), [
    ("for %i in 0..4 { %y[i + 1] = f32 0.0 }", "outside axis 0"),
    ("alloc %t: f32[4] local %y[0] = load %t[1]", "nothing has stored to it"),
    ("for %i in 0..3 parallel { %y[0] = f32 1.0 }", "iterations 0 and 1"),
    ("check eq(index 1, index 2), -1, \"planted\", index 1, index 2", "refuses its inputs: planted"),
])
def test_faults_of_the_kernel_itself_are_refused(body: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        SUBJECT.check(case_of(f"kernel @k(%y: inout f32[4]) {{ {body} }}"), False)


def test_parallel_loops_that_share_elements_are_refused_however_they_are_divided() -> None:
    """Equal divisions would hide that both touch them."""
    nest = "for %{0} in 0..4 parallel {{ %y[{0}] = f32 1.0 }}"
    case = case_of(f"kernel @k(%y: inout f32[4]) {{ {nest.format('i')} {nest.format('j')} }}", "split(i, 2)")
    assert side_by_side(case.kernel) is not None
    with pytest.raises(Refused, match="touch element 0"):
        SUBJECT.check(case, False)


@pytest.mark.parametrize(("value", "exact"), [
    ("load %x[i, k]", True), ("mul(load %x[i, k], load %x[i, k])", True), ("f32 16777216.0", False), ("f32 0.5", False),
    ("f32 -0.0", False), ("f32 inf", False), ("mul(f32 0.5, f32 4.0)", False), ("f32 4194304.0", True), ("f32 8388608.0", False),
    ("fma(f32 0.5, f32 2.0, f32 0.0)", False),
])
def test_which_sums_are_exact_in_any_order(value: str, exact: bool) -> None:
    kernel = parse_kernel(SUM.format(kind="vector(4)", value=value))
    assert sums_are_exact(kernel, arguments_of(kernel, {}, 2, False), {}) is exact


def test_sums_that_round_are_not_compared_after_reassociation() -> None:
    text = "kernel @k(%y: inout f32[1]) { for %i in 0..3 { for %k in 0..5 { %y[0] add= div(f32 1.0, cast(index(i + k + 1), f32)) } } }"
    SUBJECT.check(case_of(text, "reorder(i, k, true)"), False)
    SUBJECT.check(case_of(text, "reorder(i, k, true) vectorize(i, 4, true)"), True)


def test_what_machine_code_need_not_give_to_the_bit() -> None:
    kernel = parse_kernel("""kernel @k(%x: in f32[4], %a: out f32[4], %b: out f32[4], %c: out i32[4], %d: inout f32[4]) {
      for %i in 0..4 { %a[i] = exp(load %x[i]) %b[i] = sqrt(load %x[i])
        let %v = load %a[i]
        let %at: 0..3 = min(max(cast(%v, index), index 0), index 3)
        %d[at] = f32 1.0
        %c[i] = cast(lt(load %b[i], f32 1.0), i32) } }""")
    assert doubtful_buffers(kernel) == {"a", "v", "at", "d"}


def test_differences_are_of_bits_but_for_nan() -> None:
    kernel = parse_kernel("kernel @k(%y: inout f32[2]) { }")
    zeros, negative = np.zeros(2, np.float32), np.array([0.0, -0.0], np.float32)
    assert "element 1" in differing(kernel, [zeros], [negative])
    other = np.array([0x7FC00000, 0xFFC00001], np.uint32).view(np.float32)
    assert not differing(kernel, [other], [other[::-1].copy()])


# --- text ------------------------------------------------------------------------------------------------------------


def test_cases_as_text() -> None:
    rng = np.random.default_rng(4)
    for case in generated(10, 60):
        case = SUBJECT.with_random_passes(case, rng)
        text = SUBJECT.format(case)
        again = SUBJECT.parse(text)
        assert SUBJECT.format(again) == text
        assert (again.schedule, again.seed, again.sizes, again.special) == (case.schedule, case.seed, case.sizes, case.special)


@pytest.mark.parametrize(("text", "words"), [
    ("# planted\n" + ADD, "line 1: '# planted' is no step, seed or size"),
    ("# seed many\n" + ADD, "line 1: '# seed many' is no step"),
    (ADD, "sizes expected of N, found besides: none"),
    ("# size N 3\n# size M 3\n" + ADD, "sizes expected of no more symbols, found besides: M"),
    ("# step split(\n# size N 3\n" + ADD, "expected"),
    ("# size N 3\n" + ADD[:30], "line 2:.*expected"),
])
def test_damaged_text_of_cases(text: str, words: str) -> None:
    with pytest.raises((ParseError, CompileError), match=words):
        SUBJECT.parse(text)


def test_smaller_cases_are_smaller_and_well_typed() -> None:
    for case in generated(4, 20):
        case = SUBJECT.with_random_passes(case, np.random.default_rng(2))
        for smaller in itertools.islice(SUBJECT.smaller(case), 60):
            verify_kernel(smaller.kernel)
            assert SUBJECT.size(smaller) <= SUBJECT.size(case) + 4  # a loop unwrapped into several statements


def test_serial_kernels_mean_the_same() -> None:
    for case in generated(10, 70):
        arguments = arguments_of(case.kernel, case.binding(), case.seed, False)
        results = [first_run(k, arguments, case.binding()) for k in (case.kernel, serial(case.kernel))]
        assert not differing(case.kernel, *results)


# --- what fuzzing has found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F16, F32])
def test_fused_sums_of_single_numbers(dtype: DType) -> None:
    """They came out as arrays of one axis, which nothing can store."""
    operands = [dtype.numpy.type(v) for v in (3, 5, -7)]
    assert np.shape(scalar_caller("fma", dtype)(*operands)) == () == np.shape(evaluate_scalar("fma", [np.asarray(v) for v in operands]))
    assert scalar_caller("fma", dtype)(*operands) == 8


def test_fused_sums_of_single_numbers_round_once() -> None:
    """The sum is just past the middle of two float32, which a double does not show."""
    operands = [np.float32(v) for v in (1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60)]
    expected = np.float32(1 + 2.0**-11 + 2.0**-23)
    assert scalar_caller("fma", F32)(*operands) == expected == evaluate_scalar("fma", [np.asarray(v) for v in operands])
    for special in (np.inf, -np.inf, np.nan):
        assert np.array_equal(scalar_caller("fma", F32)(*operands[:2], np.float32(special)), special, equal_nan=True)


def test_arguments_of_steps_have_kinds() -> None:
    assert fits(Step("split", ("i", 4, "guard"))) and not fits(Step("split", ("i", "4"))) and not fits(Step("fuse", ("i",)))
