"""Families of graphs that are dense in control flow, movements, layers and rules; constants for parameters; programs that must fail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tilewright.fuzz.failing import must_fail
from tilewright.fuzz.generate_bodies import ROUNDS, control_graph
from tilewright.fuzz.generate_layers import layer_graph
from tilewright.fuzz.generate_movements import MOVEMENTS, movement_graph
from tilewright.fuzz.graphs import PRECISION_SHARES, GraphCase, GraphSubject
from tilewright.fuzz.mutate_patterns import known, rule_before, rule_graph
from tilewright.fuzz.rebuild import acceptable
from tilewright.fuzz.sequences import completed, parse_steps
from tilewright.fuzz.subject import Failure, Refused
from tilewright.ir.graph import Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.ops.compute import Conv, Dot
from tilewright.ir.ops.control import Const, If, Scan, While
from tilewright.ir.parser import parse
from tilewright.ir.verify import verify
from tilewright.options import PRECISIONS
from tilewright.passes.canonicalize import RULES
from tilewright.pipeline import PASSES

FAMILIES = (control_graph, movement_graph, layer_graph, rule_graph)
TAKE = """graph @g(%x: f32[4, 3]) -> (y) {
  %0: i64[1] = const [PLACE]
  %1: f32[1, 3] = take %x, %0 {axis=0}
  return %1
}"""
X = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("make", FAMILIES)
def test_families_give_acceptable_graphs(make: Callable[[np.random.Generator], Graph]) -> None:
    graphs = [make(np.random.default_rng(seed)) for seed in range(60)]
    assert [make(np.random.default_rng(seed)).fingerprint for seed in range(60)] == [g.fingerprint for g in graphs]
    for graph in graphs:
        verify(graph)
    assert sum(map(acceptable, graphs)) > 50


@pytest.mark.parametrize("make", FAMILIES)
def test_the_pipeline_keeps_what_families_mean(make: Callable[[np.random.Generator], Graph]) -> None:
    subject, right = GraphSubject(), 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        graph = make(rng)
        if not acceptable(graph):
            continue
        case = subject.around(graph, tuple(completed(())), rng)
        try:
            subject.check(case, native=False)
            right += 1
        except Refused:
            pass
    assert right > 6


def test_control_flow_reads_some_of_its_operands() -> None:
    """Bodies leave captures unread, and states change places."""
    nodes = [n for seed in range(80) for n in control_graph(np.random.default_rng(seed)).nodes()]
    bodies = [body for n in nodes for body in ([n.op.then_body, n.op.else_body] if isinstance(n.op, If) else
                                                [n.op.body] if isinstance(n.op, (While, Scan)) else [])]
    unread = [b for b in bodies if any(p not in b.results and not b.users()[p] for p in b.params)]
    assert {type(n.op) for n in nodes} >= {If, While, Scan} and len(unread) > 20
    loops = [n.op for n in nodes if isinstance(n.op, While)]
    exchanged = [op for op in loops if any(r in op.body.params[:op.count] and op.body.params.index(r) != i
                                           for i, r in enumerate(op.body.results))]
    assert len(exchanged) > 5


def test_loops_end_soon() -> None:
    assert ROUNDS < 8
    for seed in range(40):
        graph = control_graph(np.random.default_rng(seed))
        inputs = [np.ones([int(n) for n in p.shape]).astype(p.dtype.numpy) for p in graph.params]
        with np.errstate(all="ignore"):
            evaluate_graph(graph, inputs)


def test_movements_of_every_kind_are_made() -> None:
    found = {n.op.spelling for seed in range(100) for n in movement_graph(np.random.default_rng(seed)).nodes()}
    assert found >= {"transpose", "reshape", "broadcast", "slice", "pad", "concat", "update_slice", "take"}
    assert len(MOVEMENTS) == 9


def test_layers_have_known_weights_and_one_matrix_on_both_sides() -> None:
    nodes = [n for seed in range(120) for n in layer_graph(np.random.default_rng(seed)).nodes()]
    contractions = [n for n in nodes if isinstance(n.op, (Conv, Dot))]
    assert sum(isinstance(n.inputs[1].op, Const) for n in contractions) > 40
    assert any(n.inputs[0] is n.inputs[1] for n in contractions)
    assert any(isinstance(n.op, Conv) and n.op.groups > 1 for n in contractions)


def test_left_sides_of_rules_are_found_by_the_pass() -> None:
    """Most rules fire on what is made for them."""
    canonicalize = next(step for step in PASSES if step.name == "canonicalize")
    from tilewright.fuzz.native import caps_of
    from tilewright.options import Options

    changed = 0
    for seed in range(30):
        graph = rule_graph(np.random.default_rng(seed))
        changed += canonicalize.run(graph, Options(precision="default"), caps_of("cpu", False)) is not graph
    assert changed > 20 and len(RULES.rules) > 50


def test_a_rule_stands_where_a_value_stood() -> None:
    graph = parse(TAKE.replace("PLACE", "1"))
    made = [rule_before(graph, np.random.default_rng(seed), graph) for seed in range(20)]
    for mutant in made:
        assert mutant is not None
        verify(mutant)
        assert [r.type for r in mutant.results] == [r.type for r in graph.results]


def test_parameters_become_constants_and_constants_parameters() -> None:
    graph = parse("""graph @g(%x: f32[4], %y: f32[4]) -> (z) {
  %0: f32[4] = add %x, %y
  return %0
}""")
    seen = []
    for seed in range(40):
        made = known(graph, np.random.default_rng(seed), graph)
        assert made is not None and len(made.params) == 1
        verify(made)
        seen += [n.op.value.array for n in made.nodes() if isinstance(n.op, Const)]
        again = known(made, np.random.default_rng(seed), made)
        assert again is None or len(again.params) == 2
    zeros = [a for a in seen if (a == 0).all() and np.signbit(a).any() and not np.signbit(a).all()]
    assert zeros, "no constant of zeros of both signs"


def test_an_index_outside_must_fail_after_every_pass() -> None:
    subject = GraphSubject()
    for place in (-1, 4):
        graph = parse(TAKE.replace("PLACE", str(place)))
        assert must_fail(graph, [X], "default")
        for native in (False, True):
            with pytest.raises(Refused, match="refuses its inputs"):
                subject.check(GraphCase(graph, parse_steps("canonicalize fold_constants")), native)
    assert not must_fail(parse(TAKE.replace("PLACE", "3")), [X], "default")


def test_a_pass_that_loses_a_failure_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = parse(TAKE.replace("PLACE", "0"))
    monkeypatch.setattr("tilewright.fuzz.graphs.run_step", lambda *arguments: inside)
    with pytest.raises(Failure, match="where an index is out of range"):
        GraphSubject().check(GraphCase(parse(TAKE.replace("PLACE", "-1")), parse_steps("canonicalize")), native=False)


def test_a_failure_that_no_result_hangs_on_may_be_lost() -> None:
    """Only elements that were in range, or none, are read of what was taken."""
    graph = parse("""graph @g(%x: i32[4]) -> (y) {
  %0: i64[2] = const [-1, 2]
  %1: i32[2] = take %x, %0 {axis=0}
  %2: i32[1] = slice %1 {start=(1,), size=(1,), step=(1,)}
  return %2
}""")
    assert not must_fail(graph, [np.arange(4, dtype=np.int32)], "default")


def test_a_failure_that_hangs_on_rounding_says_nothing() -> None:
    graph = parse("""graph @g(%x: f32[4], %a: f32[2, 2]) -> (y) {
  %0: f32[2, 2] = exp %a
  %1: f32[2] = reduce %0 {kind=sum, axes=(1,)}
  %2: i64[2] = cast %1 {dtype=i64}
  %3: f32[2] = take %x, %2 {axis=0}
  return %3
}""")
    inputs = [np.arange(4, dtype=np.float32), np.full((2, 2), 0.6931472, np.float32)]
    assert not must_fail(graph, inputs, "default")


def test_every_precision_has_a_share() -> None:
    assert set(PRECISION_SHARES) == set(PRECISIONS) and np.isclose(sum(PRECISION_SHARES.values()), 1)
