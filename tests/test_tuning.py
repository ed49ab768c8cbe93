"""Tuning: what is measured, when another tile takes the place of the model's, records, and `compile --tune`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from test_cli import fail, succeed

import tilewright as tw
from tilewright import driver, tuning
from tilewright.build import build, capabilities
from tilewright.ir.caps import Caps, TunedTile
from tilewright.ir.graph import Builder, Constant, Graph
from tilewright.ir.ops.compute import Conv
from tilewright.ir.ops.control import Const, Param
from tilewright.ir.printer import save_text
from tilewright.ir.types import F32, F64
from tilewright.options import read_environment
from tilewright.runtime.executable import Executable
from tilewright.tiles import choose_tile, panel_columns
from tilewright.tuning import Entry, Record, candidates, fits, groups_of, load_record, measure_in_turn, read_record, tune

CAPS = capabilities("cpu")
LANES = CAPS.lanes(F32)
TARGET = tuning.empty_record("cpu").target
WEIGHT = np.random.default_rng(1).standard_normal((24, 40)).astype(np.float32)


def layer(x: np.ndarray) -> np.ndarray:
    return np.tanh(x @ WEIGHT)


def layer_graph(rows: int = 30) -> Graph:
    return tw.trace(layer, args=(tw.spec((rows, 24), "float32"),))


def other_tile() -> tuple[int, int]:
    """One that the model does not choose for the layer."""
    width = panel_columns(40, 30, F32, CAPS)
    usual = (choose_tile(width, 30, F32, CAPS).rows, width)
    return next(tile for tile in candidates(30, 40, F32, CAPS) if tile[0] != usual[0] and tile[1] != usual[1])


class Clock:
    """Measures nothing: gives the times of each turn in order, and counts what it was asked to run."""

    def __init__(self, *turns: Callable[[int], list[float]]) -> None:
        self.turns = list(turns)
        self.counts: list[int] = []

    def __call__(self, runs: Sequence[Callable[[], float]], ends: float) -> list[float]:
        assert all(run() > 0 for run in runs), "whatever is measured must run"
        self.counts.append(len(runs))
        return self.turns.pop(0)(len(runs))


def fastest(position: int, time: float) -> Callable[[int], list[float]]:
    return lambda count: [time if number == position else 1.0 for number in range(count)]


# --- candidates ---


@pytest.mark.parametrize("rows, columns", [(1, 8), (1, 1000), (2, 3), (5, 17), (128, 384), (10**6, 64)])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("caps", [CAPS, Caps(vector_bits=128), Caps(vector_bits=512, vector_registers=32)])
def test_candidates_fit(rows: int, columns: int, dtype, caps: Caps) -> None:
    found = candidates(rows, columns, dtype, caps)
    assert 1 <= len(found) <= 24 and len(set(found)) == len(found)
    assert all(fits(tile, columns, dtype, caps) and tile[0] <= rows for tile in found)


@pytest.mark.parametrize("tile", [(0, LANES), (3, 0), (3, LANES + 1), (100, LANES), (2, 100 * LANES), (1, 7 * LANES)])
def test_tiles_that_do_not_fit(tile: tuple[int, int]) -> None:
    assert not fits(tile, 40, F32, CAPS)


# --- what is tuned ---


def test_contractions_of_one_choice_are_measured_together() -> None:
    def network(x, y):
        return (x @ WEIGHT) @ WEIGHT.T @ WEIGHT, y @ np.concatenate([WEIGHT, WEIGHT])

    graph = tw.trace(network, args=(tw.spec((30, 24), "float32"), tw.spec((30, 48), "float32")))
    groups = groups_of(graph, tw.Options(), CAPS)
    assert [group.key for group in groups] == [(30, 40, "f32"), (30, 24, "f32")]
    assert len(groups[0].members) == 2 and groups[0].work == 30 * 40 * (2 * 24 + 48)


def test_symbolic_sizes_and_other_accumulators_are_left_alone() -> None:
    symbolic = tw.trace(layer, args=(tw.spec(("n", 24), "float32"),))
    assert groups_of(symbolic, tw.Options(), CAPS) == []
    half = tw.trace(lambda x: x @ WEIGHT.astype(np.float16), args=(tw.spec((30, 24), "float16"),))
    assert groups_of(half, tw.Options(), CAPS) == []
    with pytest.warns(UserWarning, match="there is nothing to tune: no contraction of static sizes"):
        assert tune(symbolic, "cpu", tw.Options(), 1, tuning.empty_record("cpu"), Clock()).entries == ()


def test_panels_that_winograd_uses_too_are_left_alone() -> None:
    def convolution(rows: int) -> Graph:
        b = Builder()
        x = b.add(Param("x", F32, (1, 64, rows, rows)))
        w = b.add(Const(Constant(np.ones((64, 64, 3, 3), np.float32))))
        return Graph("convolution", [x], [b.add(Conv((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1)), x, w)], ["y"])

    assert groups_of(convolution(30), tw.Options(), CAPS) == []
    plain, = groups_of(convolution(30), tw.Options(precision="strict"), CAPS)
    assert plain.key == (900, 64, "f32") and plain.height == 28 * 28


def test_contractions_in_loops_count() -> None:
    graph = tw.trace(lambda x: tw.scan(lambda s, v: (np.tanh(s @ WEIGHT @ WEIGHT.T) + v, s), x[0], x), args=(tw.spec((5, 6, 24), "float32"),))
    assert {group.key for group in groups_of(graph, tw.Options(), CAPS)} == {(6, 40, "f32"), (6, 24, "f32")}


# --- when another tile is used ---


def test_a_faster_tile_is_used() -> None:
    clock = Clock(fastest(3, 0.5), lambda count: [1.0, 0.5])
    record = tune(layer_graph(), "cpu", tw.Options(), 60, tuning.empty_record("cpu"), clock)
    entry, = record.entries
    assert entry.key == (30, 40, "f32") and entry.gain == 2 and entry.tile == candidates(30, 40, F32, CAPS)[2]
    assert clock.counts == [1 + len(candidates(30, 40, F32, CAPS)), 2]
    assert record.tiles() == (TunedTile(30, 40, "f32", *entry.tile),)


@pytest.mark.parametrize("turns", [
    (fastest(0, 0.5),),                                  # the model's choice is the best
    (fastest(3, 0.98),),                                 # not by 3 %
    (fastest(3, 0.5), lambda count: [1.0, 0.98]),        # not again
])
def test_else_the_models_choice_stays(turns) -> None:
    record = tune(layer_graph(), "cpu", tw.Options(), 60, tuning.empty_record("cpu"), Clock(*turns))
    assert record.entries[0].tile is None and record.entries[0].gain == 1 and record.tiles() == ()


def test_what_was_measured_is_not_measured_again() -> None:
    first = tune(layer_graph(), "cpu", tw.Options(), 60, tuning.empty_record("cpu"), Clock(fastest(0, 0.5)))
    assert tune(layer_graph(), "cpu", tw.Options(), 60, first, Clock()) == first
    more = tune(layer_graph(31), "cpu", tw.Options(), 60, first, Clock(fastest(0, 0.5)))
    assert [entry.key for entry in more.entries] == [(30, 40, "f32"), (31, 40, "f32")]


def test_other_contractions_of_the_same_choice_are_measured_anew() -> None:
    first = tune(layer_graph(), "cpu", tw.Options(), 60, tuning.empty_record("cpu"), Clock(fastest(3, 0.5), lambda count: [1.0, 0.5]))
    deeper = tw.trace(lambda x: x @ np.concatenate([WEIGHT, WEIGHT]), args=(tw.spec((30, 48), "float32"),))
    again = tune(deeper, "cpu", tw.Options(), 60, first, Clock(fastest(0, 0.5)))
    assert len(again.entries) == 1 and again.entries[0].tile is None


def test_no_time_no_measurement() -> None:
    assert tune(layer_graph(), "cpu", tw.Options(), 0, tuning.empty_record("cpu"), Clock()).entries == ()


def test_candidates_are_measured_in_turn() -> None:
    order: list[int] = []

    def run(number: int, *times: float) -> Callable[[], float]:
        left = list(times)

        def once() -> float:
            order.append(number)
            return left.pop(0)

        return once

    assert measure_in_turn([run(0, 3, 2, 4), run(1, 9, 9, 1)], 0.0) == [2, 1]
    assert order == [0, 1] * 3


# --- what a record does to the code ---


def test_the_compiler_follows_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tilewright.driver.sources_changed", lambda: False)
    tile, place = other_tile(), tmp_path / "record.json"
    tuning.save_record(Record(1, TARGET, (Entry(30, 40, "f32", tile, 1.5, ()),)), place)
    x = np.random.default_rng(0).standard_normal((30, 24)).astype(np.float32)

    def made(**options) -> tw.Executable:
        return tw.compile(layer, args=(tw.spec((30, 24), "float32"),), options=tw.Options(threads=1, **options))

    plain, tuned = made(), made(tune_record=place)
    monkeypatch.setattr(driver, "machine_rates", lambda threads, anew=False: None)
    tiles = [next(launch.facts.tile for launch in each.explain().launches if launch.facts.tile) for each in (plain, tuned)]
    assert tiles[1] == tile != tiles[0] and tuned.metadata["tuned_tiles"] == 1
    for each in (plain, tuned):
        np.testing.assert_allclose(each(x), layer(x), rtol=2e-5, atol=1e-6)
    assert not tuned.metadata["cached"] and made(tune_record=place).metadata["cached"], "the record is a part of the key"
    tuning.save_record(Record(1, TARGET, (Entry(30, 40, "f32", None, 1.0, ()),)), place)
    assert made(tune_record=place).object_code == plain.object_code


@pytest.mark.parametrize("rows, columns", [(1, 100), (7, 3), (30, 40), (64, 33)])
def test_every_candidate_computes_the_same(rows: int, columns: int) -> None:
    weight = np.random.default_rng(1).standard_normal((19, columns)).astype(np.float32)
    x = np.random.default_rng(0).standard_normal((rows, 19)).astype(np.float32)
    graph = tw.trace(lambda x: np.maximum(x @ weight, 0), args=(tw.spec((rows, 19), "float32"),))
    for tile in candidates(rows, columns, F32, CAPS)[::3]:
        built = build(graph, "cpu", tw.Options(), read_environment(), (TunedTile(rows, columns, "f32", *tile),))
        made = Executable.from_object(built.object_code, built.constants, threads=1)
        np.testing.assert_allclose(made(x), np.maximum(x @ weight, 0), rtol=2e-5, atol=1e-5, err_msg=str(tile))


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_follow_a_record(groups: int) -> None:
    b = Builder()
    x, w = b.add(Param("x", F32, (1, 32, 12, 12))), np.random.default_rng(0).standard_normal((96, 32 // groups, 3, 3)).astype(np.float32)
    graph = Graph("c", [x], [b.add(Conv((2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1), groups), x, b.add(Const(Constant(w))))], ["y"])
    group, = groups_of(graph, tw.Options(), CAPS)
    assert group.key == (14 * 14, 96 // groups, "f32") and group.height == 36
    record = tune(graph, "cpu", tw.Options(), 60, tuning.empty_record("cpu"), Clock(fastest(1, 0.5), lambda count: [1.0, 0.5]))
    values = np.random.default_rng(1).standard_normal((1, 32, 12, 12)).astype(np.float32)
    results = []
    for tuned in ((), record.tiles()):
        built = build(graph, "cpu", tw.Options(), read_environment(), tuned)
        results.append(Executable.from_object(built.object_code, built.constants, threads=1)(values))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)


# --- records that are none ---


@pytest.mark.parametrize("text, message", [
    ("", "is no tuning record"),
    ("[]", "is no tuning record"),
    ('{"version": 1, "target": "x", "entries": [], "more": 1}', "is no tuning record"),
    ('{"version": 9, "target": "x"}', "found a tuning record of version 9, expected 1"),
    ('{"version": 1, "target": "x"}', "found a tuning record for x, expected one for"),
])
def test_what_is_no_record(text: str, message: str) -> None:
    with pytest.raises(tw.CompileError, match=f"r.json: {message}"):
        read_record(text, "cpu", "r.json")


@pytest.mark.parametrize("dtype, tile", [("f32", (0, LANES)), ("f32", (3, LANES + 1)), ("f32", (99, LANES)), ("what", (1, LANES))])
def test_tiles_of_a_record_are_checked(dtype: str, tile: tuple[int, int]) -> None:
    text = Record(1, TARGET, (Entry(30, 40, dtype, tile, 1.5, ()),)).text()
    with pytest.raises(tw.CompileError, match=r"r\.json: the tile .* for 30 x 40 .* does not fit this target"):
        read_record(text, "cpu", "r.json")


def test_a_record_reads_back(tmp_path: Path) -> None:
    record = Record(1, TARGET, (Entry(30, 40, "f32", other_tile(), 1.5, ("a", "b")), Entry(3, 4, "f64", None, 1.0, ())))
    tuning.save_record(record, tmp_path / "r.json")
    assert load_record(tmp_path / "r.json", "cpu") == record
    with pytest.raises(tw.CompileError, match=r"none\.json: cannot be read"):
        load_record(tmp_path / "none.json", "cpu")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(tw.CompileError, match=r"bytes\.json: is no tuning record"):
        load_record(tmp_path / "bytes.json", "cpu")


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1", True])
def test_seconds_are_checked(seconds) -> None:
    with pytest.raises(tw.CompileError, match="options: tune must be seconds from 0"):
        tw.Options(tune=seconds)


# --- the command ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tilewright.driver.sources_changed", lambda: False)
    monkeypatch.chdir(tmp_path)
    save_text(layer_graph(), tmp_path / "layer.ir")
    return tmp_path


def test_compile_tunes_and_remembers(folder: Path, capsys) -> None:
    text = succeed(capsys, "compile", "layer.ir", "-o", "a.so", "--tune", "0.3", "--tune-record", "record.json", "--no-selftest")
    assert "tuned: " in text
    record = load_record(folder / "record.json", "cpu")
    assert [entry.key for entry in record.entries] == [(30, 40, "f32")]
    before = (folder / "record.json").read_text()
    data = json.loads(succeed(capsys, "compile", "layer.ir", "-o", "b.so", "--tune-record", "record.json", "--no-selftest", "--json"))
    assert data["cached"] and data["tuned_tiles"] == len(record.tiles()) and (folder / "record.json").read_text() == before
    assert (folder / "a.so").read_bytes()[:64] == (folder / "b.so").read_bytes()[:64]


def test_without_a_file_the_cache_remembers(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Record] = []

    def tuned(graph, target, options, seconds, known):
        asked.append(known)
        return Record(1, known.target, (Entry(30, 40, "f32", other_tile(), 1.5, ()),))

    monkeypatch.setattr(tuning, "tune", tuned)
    for name in ("a.so", "b.so"):
        succeed(capsys, "compile", "layer.ir", "-o", name, "--tune", "1", "--no-selftest")
    assert not asked[0].entries and len(asked[1].entries) == 1


@pytest.mark.parametrize("arguments, message, status", [
    (["--tune", "-1"], "Invalid value for '--tune'", 2),
    (["--tune", "soon"], "Invalid value for '--tune'", 2),
    (["--tune-record", "none.json"], "none.json: cannot be read", 1),
    (["--tune", "1", "--tune-record", "layer.ir"], "layer.ir: is no tuning record", 1),
    (["--tune", "1", "--target", "cpu:neoverse-n1"], "this machine does not run code for cpu:neoverse-n1", 1),
])
def test_bad_command_lines(folder: Path, capsys, arguments: list[str], message: str, status: int) -> None:
    assert message in fail(capsys, "compile", "layer.ir", *arguments, status=status)
