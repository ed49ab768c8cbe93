"""Explanations: the facts that lowering writes down, what they cost, the model of the machine, `tilewright explain`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_cli import fail, succeed

import tilewright as tw
from tilewright import calibration, driver
from tilewright.cost import Demand, Level, Rates, contract, count, forecast
from tilewright.explaining import Explanation, LaunchExplanation, notes_on, rates_from, rates_text, sizes_of, useful_share
from tilewright.ir.errors import Loc
from tilewright.ir.graph import Builder, Constant, Graph
from tilewright.ir.ops.compute import Cast, Conv, Dot, Elementwise, PackedConv, Reduce, ReduceWindow, Sort
from tilewright.ir.ops.control import Const, Param
from tilewright.ir.ops.shape import Broadcast, Transpose
from tilewright.ir.ops.winograd import WinogradConv
from tilewright.ir.printer import save_text
from tilewright.ir.types import F16, F32, I32
from tilewright.launch_facts import KEY, LaunchRecord, source_of
from tilewright.launch_facts import Source as Launched

RATES = Rates(2, 50e9, 8, (Level(1 << 20, 100e9, 100e9), Level(1 << 62, 10e9, 5e9)), 1e-6)


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test but one measures this machine."""
    monkeypatch.setattr(driver, "machine_rates", lambda threads, anew=False: RATES)


def explain(function, *specs, sizes=None, **options) -> Explanation:
    made = tw.compile(function, args=specs, options=tw.Options(cache=False, **options))
    return made.explain(sizes=sizes)


def only(explanation: Explanation, strategy: str) -> LaunchExplanation:
    found = [launch for launch in explanation.launches if launch.facts.strategy == strategy]
    assert len(found) == 1, [launch.facts.strategy for launch in explanation.launches]
    return found[0]


# --- what a node costs ---


def node_of(op, *shapes, dtype=F32):
    b = Builder()
    return b.add(op, *(b.add(Param(f"x{i}", dtype, shape)) for i, shape in enumerate(shapes)))


@pytest.mark.parametrize("op, shapes, operations, slots", [
    (Elementwise("add"), [(3, 4), (3, 4)], 12, 12),
    (Elementwise("exp"), [(3, 4)], 12, 96),
    (Dot((1,), (0,)), [(5, 7), (7, 19)], 2 * 5 * 7 * 19, 5 * 7 * 19),
    (Dot((2,), (2,), (0,), (0,)), [(2, 3, 4), (2, 5, 4)], 2 * 2 * 3 * 5 * 4, 2 * 3 * 5 * 4),
    (Conv((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 2), [(1, 4, 6, 6), (6, 2, 3, 3)], 2 * 6 * 16 * 18, 6 * 16 * 18),
    (Conv((1,), ((0, 0),), (1,), (1,), 1, True), [(1, 6, 4), (3, 4, 5)], 2 * 4 * 5 * 12, 4 * 5 * 12),
    (PackedConv((3, 3), (1, 1), (1, 1), 6), [(2, 6, 7, 4), (1, 36, 16)], 2 * 2 * 4 * 5 * 6 * 36, 2 * 4 * 5 * 6 * 36),
    (PackedConv((3, 2), (1, 1), (1, 1), 30, 3), [(2, 5, 6, 6), (3, 2, 12, 8)], 2 * 2 * 3 * 5 * 30 * 12, 2 * 3 * 5 * 30 * 12),
    (WinogradConv((3, 3), (2, 4), 6), [(2, 6, 7, 4), (24, 1, 4, 8)], 2 * 2 * 2 * 2 * 24 * 4 * 6, 2 * 2 * 2 * 24 * 4 * 6),
    (Reduce("sum", (0,)), [(5, 6)], 30, 30),
    (ReduceWindow("max", (1, 1, 2, 2), (1, 1, 2, 2), ((0, 0),) * 4, (1, 1, 1, 1)), [(1, 3, 4, 4)], 48, 48),
    (Sort(1), [(4, 10)], 0, 400),
    (Sort(1), [(4, 1000)], 0, 4 * 1000 * 128),
    (Cast(F16), [(5,)], 0, 5),
    (Transpose((1, 0)), [(5, 6)], 0, 0),
    (Broadcast((5, 6)), [(6,)], 0, 0),
])
def test_counts(op, shapes, operations: int, slots: int) -> None:
    assert count(node_of(op, *shapes))[:2] == (operations, slots)


def test_integers_are_no_floating_operations() -> None:
    assert count(node_of(Elementwise("add"), (3,), (3,), dtype=I32)) == (0, 3, 3)
    assert count(node_of(Reduce("sum", (0,)), (8,), dtype=I32)) == (0, 8, 8)


def test_moving_memory_weighs_its_elements() -> None:
    assert count(node_of(Transpose((1, 0)), (5, 6))) == (0, 0, 30)


@pytest.mark.parametrize("op, shapes, dtype, expected", [
    (Elementwise("exp"), [(3,)], F32, "exact"), (Reduce("max", (0,)), [(5, 6)], F32, "exact"), (Reduce("sum", (0,)), [(5, 6)], I32, "exact"),
    (Reduce("sum", (0,)), [(5, 6)], F32, "reassoc"), (Dot((1,), (0,)), [(5, 7), (7, 3)], F32, "reassoc"),
    (Dot((1,), (0,)), [(5, 7), (7, 3)], I32, "exact"), (WinogradConv((3, 3), (2, 4), 6), [(2, 6, 7, 4), (24, 1, 4, 8)], F32, "bounded"),
])
def test_contracts(op, shapes, dtype, expected: str) -> None:
    assert contract([node_of(op, *shapes, dtype=dtype)]) == expected


# --- the model of the machine ---


def test_a_launch_takes_as_long_as_its_slower_side() -> None:
    computing = forecast(Demand(10**9, 32, 4000, 4000, 8, 100), RATES)
    assert computing.bound == "compute" and computing.limit == pytest.approx(10e-3) and computing.predicted == pytest.approx(10e-3 + 1e-6)
    moving = forecast(Demand(1000, 32, 10**7, 10**7, 8, 100), RATES)
    assert moving.bound == "memory" and moving.limit == pytest.approx(3e-3)
    near = forecast(Demand(1000, 32, 500_000, 500_000, 8, 100), RATES)
    assert near.limit == pytest.approx(1e-5), "what fits the second level is as fast as that"
    assert forecast(Demand(10, 32, 40, 40, 8, 100), RATES).bound == "launch"


def test_what_was_chosen_lengthens_the_prediction_not_the_limit() -> None:
    best = forecast(Demand(10**9, 32, 0, 0, 8, 100), RATES)
    for worse in (Demand(10**9, 32, 0, 0, 4, 100), Demand(10**9, 32, 0, 0, 8, 1), Demand(10**9, 32, 0, 0, 8, 100, 0.5)):
        found = forecast(worse, RATES)
        assert found.limit == best.limit and found.predicted == pytest.approx(2 * best.predicted, rel=1e-3)
    assert forecast(Demand(10**9, 64, 0, 0, 4, 100), RATES).limit == pytest.approx(2 * best.limit), "half the lanes in float64"
    assert forecast(Demand(0, 32, 0, 0, 0, 0), RATES).predicted == RATES.launch


def test_this_machine_is_measured() -> None:
    found = calibration.measure_rates(1)
    assert found.threads == 1 and found.lanes >= 4 and 1e8 < found.products < 1e13 and 0 < found.launch < 1e-2
    assert len(found.levels) >= 2 and [level.holds for level in found.levels] == sorted(level.holds for level in found.levels)
    assert all(1e7 < rate < 1e14 for level in found.levels for rate in (level.reading, level.writing))
    assert rates_from(rates_text(found)) == found


def test_the_measurement_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path))
    measured = []
    monkeypatch.setattr(calibration, "measure_rates", lambda threads: measured.append(threads) or RATES)
    assert driver.machine_rates(2) == driver.machine_rates(2) == RATES and measured == [2]
    assert driver.machine_rates(2, anew=True) == RATES and measured == [2, 2]
    driver.machine_rates(3)
    assert measured == [2, 2, 3], "each number of threads has rates of its own"
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", "")
    driver.machine_rates(2)
    assert measured == [2, 2, 3, 2], "without a cache there is nowhere to keep it"


# --- facts ---


def test_facts_of_a_contraction() -> None:
    w = np.ones((48, 40), np.float32)
    found = explain(lambda x: np.tanh(x @ w + 1), tw.spec((100, 48), "float32"))
    launch = only(found, "contraction")
    facts = launch.facts
    rows, columns = facts.tile
    assert rows >= 1 and columns % 8 == 0 and facts.lanes >= 4 and facts.contract == "reassoc" and facts.general
    assert facts.operations == 100 * 40 * (2 * 48 + 1 + 1) and facts.slots == 100 * 40 * (48 + 1 + 12)
    packed = -(-40 // columns) * columns * 48
    assert facts.read == 4 * (100 * 48 + packed) + sum(4 for b in facts.buffers if b.type in ("f32[1]", "f32[]"))
    assert facts.written == 4 * 100 * 40 and 1 <= facts.parallel[0] <= -(-100 // rows) * -(-40 // columns)
    left, right, *_, result = sorted(facts.buffers, key=lambda b: (b.name != "x0", b.space != "constant", b.name))
    assert right.space == "constant" and right.layout == f"panels of {columns} columns" and result.space == "output"
    assert left.space == "input" and left.type == "f32[100, 48]" and not left.layout
    assert {source.op for source in facts.sources} == {"packed_dot", "tanh", "add"}
    assert sum(source.share for source in facts.sources) == pytest.approx(1)
    line = test_facts_of_a_contraction.__code__.co_firstlineno + 2
    assert {source.name for source in facts.sources} == {f"test_explain.py:{line}"}


def scattered(x: np.ndarray, i: np.ndarray) -> np.ndarray:
    y = x.copy()
    y[i] = 0
    return y


@pytest.mark.parametrize("strategy, function, specs", [
    ("rows", lambda x: tw.softmax(x), [((9, 64), "float32")]),
    ("columns", lambda x: x.sum(axis=0), [((100, 64), "float32")]),
    ("cumulative", lambda x: np.cumsum(x, axis=-1), [((10, 64), "float32")]),
    ("sort", lambda x: np.sort(x, axis=-1), [((10, 64), "float32")]),
    ("sort", lambda x: np.argsort(x, axis=-1), [((10, 64), "float32")]),
    ("elements", lambda x: np.exp(x) + 1, [((10, 64), "float32")]),
    ("elements", lambda x: x.T, [((10, 64), "float32")]),
    ("scatter", scattered, [((10, 64), "float32"), ((5,), "int64")]),
])
def test_strategies(strategy: str, function, specs) -> None:
    found = explain(function, *(tw.spec(*s) for s in specs))
    facts = only(found, strategy).facts
    assert facts.sources and facts.read > 0 and facts.written > 0 and facts.buffers[-1].space == "output"
    json.dumps(found.to_data())
    assert strategy in found.text()


def test_convolutions_and_windows() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (1, 64, 30, 30)))
    weights, deep = (b.add(Const(Constant(np.ones((64, count, 3, 3), np.float32)))) for count in (64, 1))
    one, none = (1, 1), ((0, 0), (0, 0))
    y = b.add(Conv(one, none, one, one), x, weights)
    z = b.add(Conv(one, none, one, one, 64), y, deep)
    graph = Graph("convolutions", [x], [z], ["z"])
    strategies = {launch.facts.strategy: launch.facts for launch in tw.compile(graph, options=tw.Options(cache=False)).explain().launches}
    assert {"windows", "winograd"} <= set(strategies) and strategies["winograd"].contract == "bounded"
    plain = tw.compile(graph, options=tw.Options(cache=False, precision="strict")).explain()
    assert only(plain, "contraction").facts.operations == 2 * 28 * 28 * 64 * 64 * 9
    windows = only(plain, "windows").facts
    assert windows.operations == 2 * 26 * 26 * 64 * 9 and windows.registers


def test_rows_that_are_picked_count_as_read() -> None:
    facts = only(explain(lambda x, i: x[i], tw.spec((1000, 64), "float32"), tw.spec((5,), "int64")), "elements").facts
    assert facts.read == 5 * 64 * 4 + 5 * 8 and facts.written == 5 * 64 * 4


def test_a_kernel_in_place_says_so() -> None:
    found = explain(lambda x: np.cumsum(np.cumsum(x, axis=-1) * 2 + 1, axis=0), tw.spec((16, 64), "float32"))
    assert any(launch.facts.in_place for launch in found.launches)
    launch = next(launch for launch in found.launches if launch.facts.in_place)
    assert [buffer.space for buffer in launch.facts.buffers] == ["workspace", "workspace"] and "in place" in str(found)


def test_layers_share_code() -> None:
    def layers(x, v, w):
        return np.tanh(np.tanh(np.tanh(x @ v) @ w) @ v)

    found = explain(layers, *(tw.spec((64, 64), "float32") for _ in range(3)))
    shared = [launch.facts for launch in found.launches if launch.facts.strategy == "contraction"]
    assert len(shared) == 3 and all(facts.shared == 3 for facts in shared) and len({facts.kernel for facts in shared}) == 1
    assert "code shared by 3 launches" in str(found)


def test_loops_and_branches() -> None:
    def program(x, c):
        y, _ = tw.scan(lambda s, v: (s + np.cumsum(v), s), x[0], x)
        return tw.cond(c, lambda v: v + 1, lambda v: np.sort(v), y)

    found = explain(program, tw.spec(("n", 64), "float32"), tw.spec((), "bool"), sizes={"n": 12})
    assert 12 in {launch.facts.rounds for launch in found.launches}
    sort = only(found, "sort")
    assert sort.facts.rounds is None and "runs as often as data decides; counted once" in sort.notes
    assert found.predicted == pytest.approx(sum(launch.forecast.predicted * launch.runs for launch in found.launches))


def test_facts_are_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tilewright.driver.sources_changed", lambda: False)

    def made() -> tw.Executable:
        return tw.compile(lambda x: tw.softmax(x @ x.T), args=(tw.spec(("n", 32), "float32"),), options=tw.Options(threads=1))

    first, again = made(), made()
    assert not first.metadata["cached"] and again.metadata["cached"]
    assert first.explain(sizes={"n": 7}) == again.explain(sizes={"n": 7})


def test_sources_of_onnx_files() -> None:
    assert source_of(Loc(name="model.onnx: node 'Conv@2' (Conv)"), "packed_conv") == ("'Conv@2' (Conv)", "Conv")
    assert source_of(Loc(name="model.onnx: initializer 'w'"), "transpose") == ("model.onnx: initializer 'w'", "transpose")
    assert source_of(Loc(file="/a/b.py", line=3), "exp") == ("b.py:3", "exp")


# --- sizes ---


def test_figures_are_those_of_the_sizes() -> None:
    made = tw.compile(lambda x: np.exp(x[::2]), args=(tw.spec(("n", 64), "float32"),), options=tw.Options(cache=False))
    for rows in (1, 8, 101):
        facts = only(made.explain(sizes={"n": rows}), "elements").facts
        assert facts.written == -(-rows // 2) * 64 * 4 and facts.operations == -(-rows // 2) * 64
        assert made.explain(np.zeros((rows, 64), np.float32)) == made.explain(sizes={"n": rows})
    assert made.explain().sizes["n"] > 0


def test_sizes_from_shapes() -> None:
    metadata = {"inputs": [["x", "f32", ["2*n + 1", 3]], ["y", "f32", ["m"]], ["z", "f32", ["m*n"]]]}
    assert sizes_of(metadata, [(11, 3), (4,), (20,)]) == {"n": 5, "m": 4}


def test_an_unknown_size() -> None:
    with pytest.raises(tw.ArgumentError, match="there is no size m, expected one of n"):
        explain(lambda x: x + 1, tw.spec(("n",), "float32"), sizes={"m": 3})


def test_the_tile_that_few_rows_take() -> None:
    """Which of its tiles a contraction of open size takes depends on the rows of the call."""
    w = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    made = tw.compile(lambda x: x @ w, args=[tw.spec(("n", 32), "float32")], options=tw.Options(cache=False, threads=1))
    tiles = {}
    for rows in (1, 2, 3, 7, 100):
        dot = only(made.explain(sizes={"n": rows}), "contraction").facts
        tiles[rows] = dot.tile
        assert dot.rows == rows and dot.few == (rows <= 2) and (rows > 2 or "for few rows" in str(made.explain(sizes={"n": rows})))
    assert tiles[1] == tiles[2] and tiles[1][0] == 2 and tiles[3] == tiles[100] and tiles[3][0] > 2 and tiles[1][1] >= tiles[3][1]


def test_nothing_to_compute() -> None:
    found = explain(lambda x: (x, x + 1), tw.spec((0, 4), "float32"))
    assert json.dumps(found.to_data()) and "0 launches" in str(found)
    found = explain(lambda x: np.exp(x), tw.spec(("n", 4), "float32"), sizes={"n": 0})
    assert found.launches[0].facts.operations == 0 and str(found)


# --- notes ---


def record(**changed) -> LaunchRecord:
    facts = {"kernel": 0, "name": "k", "strategy": "elements", "rounds": 1, "shared": 1, "tile": None, "few": False, "columns": 1,
             "rows": 1, "details": (), "general": False, "in_place": False, "schedule": (), "refused": (), "buffers": (), "sources": (), "contract": "exact",
             "parallel": (100,), "lanes": 8, "bits": 32, "read": 0, "written": 0, "registers": ()}
    return LaunchRecord(**{**facts, **changed})


@pytest.mark.parametrize("changed, note", [
    ({"refused": ("vectorize(i0, 8)",)}, "left out, not shown to keep the meaning: vectorize(i0, 8)"),
    ({"parallel": ()}, "serial: no loop of it is divided between threads"),
    ({"parallel": (1,)}, "1 iterations for 2 threads"),
    ({"tile": (6, 16), "rows": 7, "columns": 16}, "58 % of the register tiles hold results, the rest is edges"),
    ({"rounds": None}, "runs as often as data decides; counted once"),
    ({"lanes": 0, "sources": (Launched("x", "add", 5, 5, 1.0),)}, "not vectorized"),
    ({"lanes": 2, "sources": (Launched("x", "add", 5, 5, 1.0),)}, "vectors of 2 lanes"),
    ({"lanes": 4, "bits": 64, "sources": (Launched("x", "add", 5, 5, 1.0),)}, None),
    ({"strategy": "check", "parallel": (), "lanes": 0}, None),
    ({}, None),
])
def test_notes(changed, note: str | None) -> None:
    assert notes_on(record(**changed), RATES) == ((note,) if note else ())


def test_a_register_tile_is_useful_where_it_holds_results() -> None:
    assert useful_share(record(tile=(6, 16), rows=12, columns=32)) == 1
    assert useful_share(record(tile=(6, 16), rows=7, columns=17)) == pytest.approx(7 / 12 * 17 / 32)
    assert useful_share(record(tile=(6, 16), rows=0, columns=17)) == 1


# --- measured, elsewhere, not at all ---


def test_measured_times_stand_beside() -> None:
    made = tw.compile(lambda x: np.sort(np.exp(x), axis=-1), args=(tw.spec((50, 64), "float32"),), options=tw.Options(cache=False))
    x = np.ones((50, 64), np.float32)
    found = made.explain(x, calls=3)
    assert found.calls == 3 and all(launch.measured > 0 and launch.share_of_limit > 0 for launch in found.launches)
    assert found.measured == pytest.approx(sum(launch.measured for launch in found.launches)) and "measured" in str(found)
    assert found.slowest()[0].measured == max(launch.measured for launch in found.launches)
    assert made.explain(x).measured is None
    text = found.text(1)
    assert f"{len(found.launches) - 1} more launches" in text


def test_a_compiled_function_explains_such_a_call() -> None:
    function = tw.compile(lambda x: np.exp(x).sum(), options=tw.Options(cache=False))
    found = function.explain(np.ones((4, 5), np.float32), calls=1)
    assert found.calls == 1 and 20 in {launch.facts.operations for launch in found.launches} | {20}


def test_another_machine_has_no_prediction() -> None:
    made = tw.compile(lambda x: np.exp(x) + 1, args=(tw.spec((8, 8), "float32"),), target="cpu:neoverse-n1",
                      options=tw.Options(cache=False))
    found = made.explain()
    assert found.predicted is None and found.limit is None and "no prediction" in str(found)
    assert json.loads(json.dumps(found.to_data()))["machine"] is None and found.launches[0].facts.operations == 128


def test_an_interpreter_has_nothing_to_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", "reference")
    made = tw.compile(lambda x: x + 1, args=(tw.spec((3,), "float32"),))
    with pytest.raises(tw.ArtifactError, match="cannot be explained: it was loaded from an artifact, or is interpreted"):
        made.explain()


def test_an_artifact_has_nothing_to_explain(tmp_path: Path) -> None:
    tw.compile(lambda x: x + 1, args=(tw.spec((3,), "float32"),)).save(tmp_path / "add.so")
    with pytest.raises(tw.ArtifactError, match="cannot be explained"):
        tw.load(tmp_path / "add.so").explain()


# --- the command ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", "")
    monkeypatch.setattr("tilewright.cli_profile.machine_rates", lambda threads, anew=False: RATES)
    monkeypatch.chdir(tmp_path)
    graph = tw.trace(lambda x: tw.softmax(x @ np.ones((48, 40), np.float32)), args=(tw.spec(("n", 48), "float32"),), name="net")
    save_text(graph, tmp_path / "net.ir")
    return tmp_path


def test_the_command_answers_in_text(folder: Path, capsys) -> None:
    text = succeed(capsys, "explain", "net.ir", "--size", "n=100", "--threads", 2)
    assert "net for cpu" in text and "at n=100" in text and "2 threads of 100 GFLOP/s" in text
    assert "contraction, register tile" in text and "rows, " in text and "panels of" in text and "from net.ir:" in text
    text = succeed(capsys, "explain", "net.ir", "--size", "n=100", "--measure", "--calls", 2, "--top", 1, "--calibrate")
    assert "measured" in text and "more launches" in text


def test_the_command_answers_as_json(folder: Path, capsys) -> None:
    data = json.loads(succeed(capsys, "explain", "net.ir", "--size", "n=100", "--json", "--measure", "--calls", 2))
    assert data["sizes"] == {"n": 100} and data["calls"] == 2 and data["machine"]["threads"] == 2
    for launch in data["launches"]:
        assert launch["measured_seconds"] > 0 and launch["predicted_seconds"] >= launch["limit_seconds"] > 0
        assert launch["bound"] in ("compute", "memory", "launch") and launch["strategy"] and isinstance(launch["notes"], list)
    contraction = next(launch for launch in data["launches"] if launch["strategy"] == "contraction")
    assert contraction["tile"] and contraction["operations"] == 100 * 40 * 96 and len(contraction["buffers"]) == 3


def test_the_command_explains_code_for_other_machines(folder: Path, capsys) -> None:
    assert "no prediction" in succeed(capsys, "explain", "net.ir", "--target", "cpu:neoverse-n1")
    assert "does not run code for cpu:neoverse-n1" in fail(capsys, "explain", "net.ir", "--target", "cpu:neoverse-n1", "--measure", status=2)


def test_compiling_does_not_list_launches(folder: Path, capsys) -> None:
    assert KEY not in json.loads(succeed(capsys, "compile", "net.ir", "-o", "net.so", "--no-selftest", "--json"))


@pytest.mark.parametrize("arguments, message, status", [
    (["missing.onnx"], "there is no such file", 1),
    (["net.so"], "is a compiled library", 2),
    (["net.ir", "--size", "m=3"], "there is no size m, expected one of n", 1),
    (["net.ir", "--size", "n"], "expected NAME=VALUE", 2),
    (["net.ir", "--calls", "0"], "Invalid value for '--calls'", 2),
    (["net.ir", "--top", "0"], "Invalid value for '--top'", 2),
])
def test_bad_command_lines(folder: Path, capsys, arguments: list[str], message: str, status: int) -> None:
    assert message in fail(capsys, "explain", *arguments, status=status)


def test_an_interpreted_model(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", "reference")
    assert "the program is interpreted" in fail(capsys, "explain", "net.ir")
