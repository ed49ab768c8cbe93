"""`tilewright schedule`: what it says, its page, and every kind of bad input. Problems of graphs."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest

import tilewright as tw
from tilewright import cli
from tilewright.cli_schedule import Bytes
from tilewright.ir.errors import CompileError
from tilewright.ir.parser import parse
from tilewright.scheduling.checker import check
from tilewright.scheduling.exact import solve
from tilewright.scheduling.importing import problem_of
from tilewright.scheduling.problem import LARGEST, with_parameters

MLP = """graph @mlp(%x: f32[16, 64]) -> (output0) {
  %a: f32[16, 64] = exp %x
  %b: f32[16, 64] = neg %a
  %c: f32[16, 64] = tanh %a
  %d: f32[16, 64] = add %b, %c
  %r: f32[64, 16] = reshape %d {shape=(64, 16)}
  %y: f32[64, 16] = exp %r
  return %y
}
"""
OPEN = MLP.replace("16, 64", "n, 64").replace("64, 16", "64, n").replace("@mlp(", "@mlp[n: 0..64](")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.ir"
    path.write_text(MLP)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.run(["schedule", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# --- problems of graphs --------------------------------------------------------------------------------------------------------


def test_views_share_the_tensor_of_their_operand() -> None:
    problem = problem_of(parse(MLP))
    assert [o.kind for o in problem.operators] == ["exp", "neg", "tanh", "add", "exp"]
    assert [t.bytes for t in problem.tensors] == [4096] * 6
    assert problem.tensors[problem.results[0]].name == "output0"


def test_constants_are_parameters() -> None:
    graph = parse("graph @g(%x: f32[4]) -> (y, w, x) {\n  %w: f32[4] = const [1.0, 2.0, 3.0, 4.0]\n  %y: f32[4] = add %x, %w\n  return %y, %w, %x\n}\n")
    problem = problem_of(graph)
    assert [t.kind for t in problem.tensors] == ["input", "parameter", "value"]
    assert problem.compulsory == 16 + 16 + 16
    ignored = with_parameters(problem, "ignored")
    assert ignored.compulsory == 32 and ignored.operators[0].inputs == (0,)
    assert solve(problem, 192, 64).proven and solve(with_parameters(problem, "resident"), 192, 64).proven


def test_what_parameters_alone_decide_is_a_parameter() -> None:
    """As imported; in a fused group it is computed, since passes would have folded what is dear."""
    graph = parse("""graph @g(%x: f32[4]) -> (y) {
      %w: f32[4] = const [1.0, 2.0, 3.0, 4.0]
      %v: f32[4] = exp %w
      %i: i64[4] = iota {dtype=i64, shape=(4,), axis=0}
      %j: f32[4] = cast %i {dtype=f32}
      %k: f32[4] = add %v, %j
      %y: f32[4] = add %x, %k
      return %y
    }""")
    problem = problem_of(graph)
    assert [o.kind for o in problem.operators] == ["add"]
    assert problem.compulsory == 16 + 16 + 16
    assert with_parameters(problem, "ignored").compulsory == 32


def test_sizes_must_be_known() -> None:
    with pytest.raises(CompileError, match="mlp: the size n of x is not known") as caught:
        problem_of(parse(OPEN.replace("0..64", "0..")))
    assert "--dims n=SIZE" in str(caught.value)
    graph = parse(OPEN)
    assert [t.bytes for t in problem_of(graph, {"n": 0}).tensors] == [0] * 6
    assert solve(problem_of(graph, {"n": 1}), 1024).proven


def test_bounds_are_taken_at_the_largest() -> None:
    """A schedule for the bounds, at the addresses that it has, is one for every smaller size."""
    graph = parse(OPEN)
    problem = problem_of(graph)
    assert [t.bytes for t in problem.tensors] == [t.bytes for t in problem_of(graph, {"n": 64}).tensors] == [64 * 64 * 4] * 6
    assert [o.operations for o in problem.operators] == [o.operations for o in problem_of(graph, {"n": 64}).operators]
    schedule = solve(problem, 3 * 64 * 64 * 4, 64).schedule
    for n in (0, 1, 63):
        smaller = problem_of(graph, {"n": n})
        assert check(smaller, schedule, 3 * 64 * 64 * 4, 64).moved == 2 * n * 64 * 4 == smaller.compulsory
    both = parse("graph @g[n: 0..8](%x: f32[n, 16]) -> (y) {\n  %c: f32[2*n, 16] = concat %x, %x {axis=0}\n  %y: f32[2*n, 16] = exp %c\n"
                 "  return %y\n}\n")
    assert not problem_of(both, shared=True).operators[0].concat and problem_of(both, {"n": 4}, shared=True).operators[0].concat


def test_a_traced_model_has_a_schedule() -> None:
    rng = np.random.default_rng(1)
    graph = tw.trace(lambda x, w: np.tanh(x @ w) + x, args=(tw.spec((8, 8), "float32"), rng.standard_normal((8, 8)).astype(np.float32)))
    assert solve(problem_of(graph), 1 << 20).proven


# --- the command ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["fused", "imported"])
def test_what_it_says(model: Path, granularity: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, model, "--scratchpad", "12KiB", "--granularity", granularity)
    assert status == 0
    assert "compulsory  8192" in out and "optimal: the checker counted the schedule's bytes, the bound is by" in out
    status, out, _ = run(capsys, model, "--scratchpad", "12KiB", "--granularity", granularity, "--json", "--time-limit", 0)
    data = json.loads(out)
    assert status == 0 and data["optimal"] and data["excess"] == data["excess_bound"] == data["gap"] == 0
    assert data["moved"] == data["read"] + data["written"] == data["compulsory"] == 8192
    for row in (data, *data["baselines"]):
        assert row["cycles_computing"] < row["cycles"] <= row["cycles_serial"]
    assert data["peak"] <= data["scratchpad"] == 12288 and {row["name"].split(", ")[1] for row in data["baselines"]} >= {"Belady"}


def test_what_a_schedule_may_do_beyond(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results lie over operands and cheap tensors are computed again, so that less is needed; schedules are executed like that too."""
    needed = []
    for allowed in ((), ("--allow", "in-place"), ("--allow", "all")):
        arguments = ["schedule", str(model), "--scratchpad", "12KiB", "--granularity", "imported", "--time-limit", "0", "--json", *allowed]
        assert cli.run(arguments) == 0
        needed.append(json.loads(capsys.readouterr().out)["least_peak"])
    assert needed[0] > needed[1] >= needed[2]
    executed = []
    for allowed in ((), ("--allow", "in-place", "--allow", "recompute")):
        assert cli.run(["schedule", str(model), "--scratchpad", "12KiB", "--execute", "random", "--time-limit", "0", "--json", *allowed]) == 0
        executed.append(json.loads(capsys.readouterr().out))
        assert executed[-1]["executed"]["moved"] == executed[-1]["moved"] and executed[-1]["executed"]["peak"] == executed[-1]["peak"]
    assert executed[0]["largest_operator"] >= executed[1]["largest_operator"]


def test_permissions_of_nodes() -> None:
    graph = parse("""graph @g(%x: f32[4, 8], %y: f32[4, 8]) -> (output0) {
      %a: f32[4, 8] = add %x, %y
      %t: f32[8, 4] = transpose %a {perm=(1, 0)}
      %c: f32[16, 4] = concat %t, %t {axis=0}
      %d: f32[16, 8] = concat %c, %c {axis=1}
      return %d
    }""")
    operators = problem_of(graph, shared=True).operators
    assert [(o.kind, o.in_place, o.light, o.concat) for o in operators] == [
        ("add", (0, 1), True, False), ("transpose", (), False, False), ("concat", (), False, True), ("concat", (), False, False)]
    assert not any(o.in_place or o.light or o.concat for o in problem_of(graph).operators)


def test_the_page(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    page = tmp_path / "page.html"
    model.write_text(MLP.replace("@mlp", "@a"))
    status, _, _ = run(capsys, model, "--scratchpad", "12KiB", "--granularity", "imported", "--report", page)
    text = page.read_text()
    assert status == 0 and text.count('<rect class="stay"') == 6 and "<title>x: fetched, 4096 bytes</title>" in text
    assert "<title>output0: spilled, 4096 bytes</title>" in text and "Optimal." in text and "http" not in text
    assert "<th>cycles</th><th>serial</th>" in text


def test_a_budget_below_every_schedule_names_the_operator(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, model, "--scratchpad", "12287", "--granularity", "imported")
    assert status == 1 and "operator add_3 " in err and "needs 12288 bytes at once but the scratchpad has 12224" in err


@pytest.mark.parametrize("arguments, message", [
    (("--scratchpad", "0"), "found '0', expected 1 to"),
    (("--scratchpad", "-5"), "found '-5', expected bytes as in"),
    (("--scratchpad", "12 parsecs"), "found '12 parsecs', expected bytes as in 524288, 512KiB or 1.5MB"),
    (("--scratchpad", "1e9"), "found '1e9', expected bytes as in"),
    (("--scratchpad", "0.3"), "found '0.3', expected 1 to"),
    (("--scratchpad", "999999999GiB"), f"expected 1 to {LARGEST} whole bytes"),
    (("--scratchpad", "1MB", "--time-limit", "-1"), "-1"),
    (("--scratchpad", "1MB", "--granularity", "coarse"), "'coarse'"),
    (("--scratchpad", "1MB", "--parameters", "gone"), "'gone'"),
    ((), "--scratchpad"),
])
def test_what_is_not_understood(model: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, model, *arguments)
    assert status == 2 and message in err


def test_other_bad_input(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, model, "--scratchpad", "1MB", "--alignment", "48")
    assert status == 1 and "alignment: found 48, expected a power of two" in err
    status, _, err = run(capsys, model, "--scratchpad", "1MB", "--time-limit", "nan")
    assert status == 1 and "the time limit is nan seconds, expected 0 or more" in err
    (tmp_path / "open.ir").write_text(OPEN.replace("0..64", "0.."))
    status, _, err = run(capsys, tmp_path / "open.ir", "--scratchpad", "1MB", "--granularity", "imported")
    assert status == 1 and "the size n of x is not known" in err
    status, out, _ = run(capsys, tmp_path / "open.ir", "--scratchpad", "1MB", "--granularity", "imported", "--dims", "n=3")
    assert status == 0 and "compulsory  1536" in out
    (tmp_path / "bounded.ir").write_text(OPEN)
    for granularity in ("imported", "fused"):
        status, out, _ = run(capsys, tmp_path / "bounded.ir", "--scratchpad", "1MB", "--granularity", granularity)
        assert status == 0 and "sizes         as large as their bounds: n = 64" in out and "compulsory  32768" in out
    status, _, err = run(capsys, tmp_path / "bounded.ir", "--scratchpad", "1MB", "--execute", "random")
    assert status == 1 and "the size n of input x is not known" in err
    status, _, err = run(capsys, tmp_path / "none.onnx", "--scratchpad", "1MB")
    assert status != 0 and "none.onnx" in err


def test_sizes_in_words() -> None:
    kind = Bytes()
    assert [kind.convert(text, None, None) for text in ("524288", "512KiB", "1.5MB", "2 gib", "7b")] == [524288, 524288, 1500000, 2 << 30, 7]
    with pytest.raises(click.BadParameter):
        kind.convert("1.0000000001", None, None)


def test_bodies_of_control_flow_need_room_and_constants() -> None:
    """A scan takes its states, twice, its slices whole, and what its body computes for itself, 64 bytes at least each."""
    weights = np.linspace(0, 1, 32, dtype=np.float32)

    def step(state: object, row: object) -> tuple[object, object]:
        return state + np.exp(row) * weights, np.exp(row)

    graph = tw.trace(lambda s, x: tw.scan(step, s, x), (tw.spec((32,), np.float32), tw.spec((5, 32), np.float32)))
    problem = problem_of(graph)
    scan, = problem.operators
    assert sorted(problem.tensors[t].bytes for t in scan.inputs) == [128, 128, 640]
    assert [problem.tensors[t].bytes for t in scan.outputs] == [128, 640, 128 + 128]  # the next state, and the product
    assert solve(problem, 1 << 20).account.moved == problem.compulsory
