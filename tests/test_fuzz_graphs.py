"""Fuzzing of graphs: cases, their mutators and sequences, the check and its oracles, reduction."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from tilewright import library as lib
from tilewright.fuzz import cuts, sequences
from tilewright.fuzz import native as machine
from tilewright.fuzz.cuts import pieces
from tilewright.fuzz.generate import random_graph
from tilewright.fuzz.graphs import GraphCase, GraphSubject
from tilewright.fuzz.mutate import MUTATORS
from tilewright.fuzz.rebuild import acceptable
from tilewright.fuzz.reduce import reduced
from tilewright.fuzz.sequences import Step, completed, expand, legal, parse_steps, random_steps
from tilewright.fuzz.subject import Failure, Refused
from tilewright.ir.dims import symbol
from tilewright.ir.errors import CompileError, TilewrightError
from tilewright.ir.graph import Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_text import format_program
from tilewright.ir.ops.compute import Conv, PackedConv, PackedDot
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import GatherND
from tilewright.ir.ops.winograd import WinogradConv
from tilewright.ir.program import Program
from tilewright.ir.rewrite import Rule
from tilewright.ir.types import F32, I64, TensorType, dtype_named
from tilewright.ir.verify import verify
from tilewright.passes.canonicalize import RULES
from tilewright.pipeline import PASSES
from tilewright.runtime.executable import Executable

SUBJECT = GraphSubject()


def graph_of(make: Callable[..., object], *types: TensorType) -> Graph:
    b = Builder()
    params = [b.add(Param(f"x{i}", t.dtype, t.shape)) for i, t in enumerate(types)]
    made = make(b, *params)
    return Graph("g", params, made if isinstance(made, tuple) else [made])


# --- cases -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_cases_read_back(seed: int) -> None:
    case = SUBJECT.generate(np.random.default_rng(seed))
    again = SUBJECT.parse(SUBJECT.format(case))
    assert again == case and again.graph.fingerprint == case.graph.fingerprint


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i64"])
def test_large_constants_are_in_the_text(dtype: str) -> None:
    values = np.arange(40).astype(dtype_named(dtype).numpy)
    graph = graph_of(lambda b, x: lib.apply(b, "add", x, lib.constant(b, values, dtype_named(dtype))), TensorType(dtype_named(dtype), (40,)))
    again = SUBJECT.parse(SUBJECT.format(GraphCase(graph)))
    assert again.graph.fingerprint == graph.fingerprint


@pytest.mark.parametrize(("damage", "message"), [
    (lambda text: text.replace("passes: ", "passes: no_such_pass "), "unknown pass 'no_such_pass'"),
    (lambda text: text.replace("# seed: ", "# seed: x"), "header of a case is damaged"),
    (lambda text: text.replace("# precision", "# precison"), "header of a case is damaged"),
    (lambda text: text[:-40], "expected|needs|unknown"),
])
def test_damaged_cases_are_refused(damage: Callable[[str], str], message: str) -> None:
    text = SUBJECT.format(SUBJECT.generate(np.random.default_rng(3)))
    with pytest.raises(CompileError, match=message):
        SUBJECT.parse(damage(text))


def test_damaged_constants_are_refused() -> None:
    """Whatever is wrong with the archive: one error of the family."""
    graph = graph_of(lambda b, x: lib.apply(b, "add", x, lib.constant(b, np.arange(40), F32)), TensorType(F32, (40,)))
    head, packed, tail = re.split(r"(?<=# constants: )(\S+)", SUBJECT.format(GraphCase(graph)))
    raw, rng = base64.b64decode(packed), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(raw)
        damaged[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
        try:
            SUBJECT.parse(head + base64.b64encode(bytes(damaged)).decode() + tail)
        except TilewrightError:
            refused += 1
    assert refused > 100


def test_seeds_pass() -> None:
    """Few refuse their inputs: those that take from outside of an axis, and must fail after every pass too. (`make fuzz` goes through
    all of them.)"""
    cases = list(SUBJECT.seeds())[::7]
    refused = 0
    for case in cases:
        try:
            SUBJECT.check(case, native=False)
        except Refused:
            refused += 1
    assert refused < len(cases) / 10


# --- mutators ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MUTATORS)
def test_mutants_are_well_typed(name: str) -> None:
    rng = np.random.default_rng(1)
    made = 0
    for _ in range(20):
        case, donor = SUBJECT.generate(rng), SUBJECT.generate(rng)
        found = SUBJECT.mutate_program(case, rng, donor, frozenset({name}))
        if found is not None:
            mutant, label = found
            assert label == name and acceptable(mutant.graph) and mutant.graph != case.graph
            made += 1
    assert made


def test_no_mutator_allowed_gives_none() -> None:
    rng = np.random.default_rng(0)
    assert SUBJECT.mutate_program(SUBJECT.generate(rng), rng, None, frozenset()) is None


@pytest.mark.parametrize("seed", range(8))
def test_mutants_compile(seed: int) -> None:
    """No false report on mutants of mutants, as machine code too."""
    rng = np.random.default_rng(seed)
    case = SUBJECT.generate(rng)
    for number in range(12):
        found = SUBJECT.mutate_program(case, rng, SUBJECT.generate(rng), frozenset(MUTATORS))
        if found is None:
            continue
        case, _ = SUBJECT.mutate_passes(found[0], rng, SUBJECT.generate(rng))
        try:
            SUBJECT.check(case, native=number % 6 == 5)
        except Refused:
            continue


# --- sequences ---------------------------------------------------------------------------------------------------------


def test_sequences_keep_the_needs_of_passes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        steps = random_steps(rng)
        assert legal(steps) == steps
        assert parse_steps(sequences.format_steps(steps)) == steps
    assert legal([Step("fuse")]) == ()
    assert [s.name for s in legal([Step("fuse"), Step("decompose"), Step("pack_operands"), Step("fuse"), Step("canonicalize")])] == [
        "decompose", "pack_operands", "fuse"]


def test_the_pipeline_is_a_legal_sequence() -> None:
    assert legal(tuple(completed(()))) == tuple(Step(p.name) for p in PASSES)


@pytest.mark.parametrize("rule", RULES.rules, ids=lambda rule: rule.name)
def test_rules_expand(rule: Rule) -> None:
    """Wherever a rule is applied backwards, the graph verifies; if it is exact, it means the same."""
    expanded = 0
    for seed in range(40):
        graph = random_graph(seed, 6)
        after = expand(graph, rule, seed, "default")
        if after is graph:
            continue
        verify(after)
        expanded += 1
        if rule.contract == "exact":
            SUBJECT.check(GraphCase(graph, (Step("expand:" + rule.name, seed),), seed=seed, inputs="special"), native=False)
        if expanded == 8:
            break
    # what stands for its right side in random graphs is rare for some (a constant 0 or True, a special function)
    assert expanded or rule.contract == "finite" or rule.name not in {"mul_one", "add_zero", "neg_neg", "max_self"}


# --- the check ---------------------------------------------------------------------------------------------------------


def broken(name: str, change: Callable[[Graph], Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a pass do something wrong."""
    known = sequences._BY_NAME[name]
    wrong = replace(known, run=lambda graph, options, caps: change(known.run(graph, options, caps)))
    monkeypatch.setattr(sequences, "_BY_NAME", {**sequences._BY_NAME, name: wrong})


def doubled(graph: Graph) -> Graph:
    b = Builder()
    for node in graph.nodes():
        b.keep(node)
    return Graph(graph.name, graph.params, [lib.scalar(b, "add", r, r) for r in graph.results], graph.result_names)


EXAMPLE = graph_of(lambda b, x, y: lib.scalar(b, "add", lib.scalar(b, "neg", x), y), TensorType(F32, (3, 4)), TensorType(F32, (3, 4)))


def test_a_wrong_pass_is_named_and_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    broken("canonicalize", doubled, monkeypatch)
    case = GraphCase(EXAMPLE, legal(tuple(completed(()))), seed=4)
    with pytest.raises(Failure) as caught:
        SUBJECT.check(case, native=False)
    assert (caught.value.kind, caught.value.stage) == ("result", "canonicalize")

    def check(candidate: GraphCase) -> None:
        SUBJECT.check(candidate, native=False)

    small, failure = reduced(SUBJECT, case, caught.value, check, 10)
    assert failure.signature == caught.value.signature
    assert [s.name for s in small.steps] == ["canonicalize"] and len(small.graph.nodes()) <= 2


def test_a_pass_that_is_not_idempotent_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(graph: Graph) -> Graph:
        return Graph(graph.name + "x", graph.params, graph.results, graph.result_names)

    broken("canonicalize", renamed, monkeypatch)
    with pytest.raises(Failure) as caught:
        SUBJECT.check(GraphCase(EXAMPLE, (Step("canonicalize"),), seed=3), native=False)
    assert caught.value.kind == "unstable"


def test_machine_code_that_is_wrong_for_other_inputs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = GraphCase(EXAMPLE, legal(tuple(completed(()))), seed=4)
    original = machine.run

    def wrong_for_infinities(executable: Executable, inputs: list[np.ndarray], threads: int) -> tuple[np.ndarray, ...]:
        results = original(executable, inputs, threads)
        return results if np.isfinite(inputs[0]).all() else tuple(r + np.float32(1) for r in results)

    SUBJECT.check(case, native=True)
    monkeypatch.setattr(machine, "run", wrong_for_infinities)
    with pytest.raises(Failure, match="result in llvm"):
        SUBJECT.check(case, native=True)


def test_a_pass_that_is_wrong_for_other_inputs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in what machine code gives, found by following the passes with those inputs."""
    def without_nan(graph: Graph) -> Graph:
        b = Builder()
        for node in graph.nodes():
            b.keep(node)
        results = [lib.apply(b, "select", lib.apply(b, "isnan", r), lib.like(b, 0, r), r) for r in graph.results]
        return Graph(graph.name, graph.params, results, graph.result_names)

    broken("share_sorts", without_nan, monkeypatch)
    with pytest.raises(Failure, match="result in share_sorts"):
        SUBJECT.check(GraphCase(EXAMPLE, legal(tuple(completed(()))), seed=4), native=True)


def test_a_crash_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: Graph) -> Graph:
        raise KeyError("lost")

    broken("decompose", fail, monkeypatch)
    with pytest.raises(Failure, match="crash in decompose: KeyError") as caught:
        SUBJECT.check(GraphCase(EXAMPLE, (Step("decompose"),)), native=False)
    assert caught.value.label.startswith("crash-decompose-")


def test_the_same_text_gives_the_same_verdict() -> None:
    case = SUBJECT.generate(np.random.default_rng(9))
    first = SUBJECT.check(case, native=False)
    assert SUBJECT.check(SUBJECT.parse(SUBJECT.format(case)), native=False).changed == first.changed


def test_packing_takes_register_tiles_as_its_argument() -> None:
    graph = graph_of(lambda b, x, w: lib.matmul(b, x, w), TensorType(F32, (40, 24)), TensorType(F32, (24, 48)))
    steps = {number: parse_steps(f"decompose pack_operands({number}) fuse") for number in range(6)}
    assert all(parse_steps(sequences.format_steps(s)) == s for s in steps.values())
    caps = {number: sequences.with_tiles(s, graph, "default", machine.caps_of("cpu:x86-64-v3", False)) for number, s in steps.items()}
    assert not caps[0].tuned and len({c.tuned for c in caps.values()}) == 6
    texts = set()
    for number, s in steps.items():
        packed = graph
        for step in s:
            packed = sequences.run_step(step, packed, "default", caps[number])
        texts.add(format_program(machine.lowered(packed, caps[number])))
        SUBJECT.check(GraphCase(graph, s, target="cpu:x86-64-v3"), native=number < 2)
    assert len(texts) >= 5


def test_code_for_other_cpus_is_made_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def note(program: Program, target: str, seed: int) -> tuple[bytes, str]:
        made.append(target)
        return original(program, target, seed)

    original = machine.object_code
    monkeypatch.setattr(machine, "object_code", note)
    monkeypatch.setattr(machine, "run", lambda *arguments: pytest.fail("code of another CPU ran"))
    graph = graph_of(lambda b, x, w: lib.matmul(b, x, w), TensorType(F32, (5, 24)), TensorType(F32, (24, 33)))
    SUBJECT.check(GraphCase(graph, target="cpu:neoverse-v1"), native=True)
    assert made and not machine.runs_here("cpu:neoverse-v1") and machine.runs_here("cpu") and machine.runs_here("cuda:sm_80")


# --- what fuzzing found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["default", "plain", "strict"])
def test_every_precision_knows_the_contracts_of_rules(precision: str) -> None:
    """`plain` had no row in the table of contracts: rules failed on floats."""
    graph = graph_of(lambda b, x: lib.apply(b, "mul", x, lib.like(b, 1, x)), TensorType(F32, (3,)))
    SUBJECT.check(GraphCase(graph, (Step("canonicalize"),), precision=precision), native=False)


@pytest.mark.parametrize(("op", "types"), [
    (PackedConv((3, 3), (1, 1), (-1, 1), 6), (TensorType(F32, (2, 6, 7, 4)), TensorType(F32, (1, 36, 16)))),
    (PackedConv((1,), (1,), (1,), 6), (TensorType(F32, (2, 6, 4)), TensorType(F32, (1, 4, 0)))),
    (PackedDot(0, 6), (TensorType(F32, (5, 4)), TensorType(F32, (1, 4, 0)))),
    (PackedConv((3, 3), (1, 1), (1, 1), 6, 0), (TensorType(F32, (2, 6, 7, 4)), TensorType(F32, (1, 36, 16)))),
    (WinogradConv((3, 3), (2, 4), 6), (TensorType(F32, (1, 6, 6, 0)), TensorType(F32, (24, 1, 0, 6)))),
    (Conv((1,), ((0, 0),), (1,), (1,), 0), (TensorType(F32, (2, 0, 7)), TensorType(F32, (0, 0, 3)))),
    (GatherND(-2), (TensorType(F32, (4, 3)), TensorType(I64, (5, 2)))),
])
def test_attributes_without_sense_are_refused(op: object, types: tuple[TensorType, ...]) -> None:
    """They were accepted, and failed inside NumPy."""
    with pytest.raises(CompileError):
        op.infer(*types)  # type: ignore[attr-defined]


def test_a_window_that_does_not_fit_is_an_error_of_the_family() -> None:
    n = symbol("N", 0, 6)
    graph = graph_of(lambda b, x, w: b.add(Conv((1,), ((0, 0),), (1,), (1,)), x, w), TensorType(F32, (1, 1, n)), TensorType(F32, (1, 1, 3)))
    with pytest.raises(TilewrightError, match="does not fit"):
        evaluate_graph(graph, [np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 3), np.float32)])


# --- pieces of models --------------------------------------------------------------------------------------------------


def test_pieces_of_a_graph_are_small_cases() -> None:
    def wide(b: Builder, x: object, w: object) -> object:
        y = lib.matmul(b, x, w)  # type: ignore[arg-type]
        y = lib.softmax(b, lib.reshape(b, y, (96, 12, 32)), 2)
        return lib.transpose(b, lib.gelu(b, y), (1, 0, 2))

    graph = graph_of(wide, TensorType(F32, (96, 700)), TensorType(F32, (700, 384)))
    found = list(pieces(graph, np.random.default_rng(0), 20))
    assert len(found) >= 4 and all(map(acceptable, found))
    assert any(len(piece.nodes()) > 5 for piece in found)
    subject = GraphSubject([graph])
    cases = list(subject.seeds())
    assert {piece.fingerprint for piece in found} <= {case.graph.fingerprint for case in cases}
    for piece in found:
        subject.check(GraphCase(piece, legal(tuple(completed(())))), native=False)


def test_symbols_that_a_piece_does_not_bind_become_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "NODES", 1)
    n = symbol("N", 4, 40, 4)
    graph = graph_of(lambda b, x: lib.scalar(b, "neg", lib.reshape(b, x, (3 * n,))), TensorType(F32, (n, 3)))
    found = list(pieces(graph, np.random.default_rng(0), 5))
    assert [p.shape for piece in found if not piece.symbols for p in piece.params] == [(12,)]
