"""Profiles: events of threads, which launch an event belongs to, whose time it is, traces, `tilewright profile`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_cli import fail, succeed

import tilewright as tw
from tilewright.ir.printer import save_text
from tilewright.runtime.profile import (
    ARRIVE,
    CAPACITY,
    LEAVE,
    START,
    Call,
    Facts,
    Flow,
    LaunchFacts,
    Piece,
    Profile,
    Source,
    flow_of,
    follow,
    read_call,
)


def track(*events: tuple[int, int]) -> bytes:
    return np.array(events, np.int64).tobytes()


# --- events ---


def test_one_thread_leaves_the_ends_of_its_launches() -> None:
    call = read_call([track((100, START), (130, 0), (170, 1), (180, 0))], [40, 40])
    assert call.launches == ((0, 100, 130), (1, 130, 170), (0, 170, 180))
    assert call.tracks == ((Piece(100, 130, (0,), position=0), Piece(130, 170, (1,), position=1), Piece(170, 180, (0,), position=2)),)
    assert call.seconds == pytest.approx(80e-9)


def test_threads_meet_after_a_launch() -> None:
    caller = track((0, START), (50, ARRIVE), (60, LEAVE), (61, 3), (80, ARRIVE), (81, LEAVE), (82, 4))
    other = track((5, START), (60, ARRIVE), (60, LEAVE), (70, ARRIVE), (81, LEAVE))
    call = read_call([caller, other], [])
    assert call.launches == ((3, 0, 61), (4, 61, 82))
    assert call.tracks[0] == (Piece(0, 50, (3,), position=0), Piece(50, 60, waits=True), Piece(60, 80, (4,), position=1),
                              Piece(80, 81, waits=True))
    assert call.tracks[1] == (Piece(5, 60, (3,), position=0), Piece(60, 60, waits=True), Piece(60, 70, (4,), position=1),
                              Piece(70, 81, waits=True))


def test_meetings_at_a_condition_are_no_launch() -> None:
    caller = track((0, START), (10, ARRIVE), (11, LEAVE), (12, ARRIVE), (13, LEAVE), (30, ARRIVE), (31, LEAVE), (32, 7))
    other = track((0, START), (11, ARRIVE), (11, LEAVE), (12, ARRIVE), (13, LEAVE), (29, ARRIVE), (31, LEAVE))
    call = read_call([caller, other], [])
    assert call.launches == ((7, 0, 32),)
    assert [piece for piece in call.tracks[0] if not piece.waits] == [Piece(13, 30, (7,), position=0)]
    assert [piece for piece in call.tracks[1] if not piece.waits] == [Piece(13, 29, (7,), position=0)]


def test_launches_without_a_meeting_share_a_stretch_of_the_other_threads() -> None:
    caller = track((0, START), (10, 1), (20, 2), (40, ARRIVE), (45, LEAVE), (46, 3))
    other = track((0, START), (44, ARRIVE), (45, LEAVE))
    call = read_call([caller, other], [])
    assert [kernel for kernel, _, _ in call.launches] == [1, 2, 3]
    assert [piece.kernels for piece in call.tracks[0]] == [(1,), (2,), (3,), ()]
    assert call.tracks[1] == (Piece(0, 44, (1, 2, 3), position=0), Piece(44, 45, waits=True))


def test_without_room_the_times_of_kernels_are_left() -> None:
    full = np.zeros((CAPACITY, 2), np.int64).tobytes()
    for tracks in ([], [full]):
        call = read_call(tracks, [5, 0, 7])
        assert call.launches == ((0, 0, 5), (1, 5, 5), (2, 5, 12)) and call.tracks == ()


def test_an_empty_call() -> None:
    assert read_call([track((3, START))], []) == Call((), ((),))


# --- which launch an event is ---


def facts_of(kernels: list[int], steps: list) -> Facts:
    return Facts(tuple(LaunchFacts(kernel, "elements") for kernel in kernels), flow_of(steps, len(kernels)))


@pytest.mark.parametrize("kernels, steps, events, places", [
    ([0, 1, 0, 1], [0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 2, 3]),
    ([0, 0], [["repeat", 3, [0]], 1], [0, 0, 0, 0], [0, 0, 0, 1]),
    ([0, 1, 0], [0, ["repeat", 2, [1]], 2], [0, 0], [0, 2]),
    ([0, 1, 0], [0, ["repeat", 2, [1]], 2], [0, 1, 1, 0], [0, 1, 1, 2]),
    ([0, 1, 2], [["while", [0], [1]], 2], [0, 2], [0, 2]),
    ([0, 1, 2], [["while", [0], [1]], 2], [0, 1, 0, 1, 0, 2], [0, 1, 0, 1, 0, 2]),
    ([0, 1, 1, 2], [0, ["if", [1], []], 2, 3], [0, 1, 2], [0, 2, 3]),
    ([0, 1, 1, 2], [0, ["if", [1], []], 2, 3], [0, 1, 1, 2], [0, 1, 2, 3]),
    ([0, 1], [["if", [0], [1]]], [1], [1]),
    ([0, 1, 0, 1], [["while", [], [0, ["repeat", 2, [1]]]], 2, 3], [0, 1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 2, 3]),
    ([0], [0], [], []),
])
def test_events_follow_the_program(kernels: list[int], steps: list, events: list[int], places: list[int]) -> None:
    found = follow(facts_of(kernels, steps), events)
    # where a loop and what follows it launch the same kernels, any order that the program allows will do
    assert [kernels[place] for place in found] == events
    flow = flow_of(steps, len(kernels))
    allowed = [flow.first, *(flow.following[place] for place in found)]
    assert all(place in some for place, some in zip(found, allowed))
    if len(set(kernels)) == len(kernels) or steps == [0, 1, 2, 3]:
        assert found == places


def test_events_that_no_order_allows_go_to_the_first_launch_of_their_kernel() -> None:
    assert follow(facts_of([0, 1, 1], [0, 1, 2]), [1, 1, 0]) == [1, 1, 0]


# --- whose time it is ---


def profile_of(*calls: tuple[int, ...]) -> Profile:
    """Two launches of kernel `a` and one of `b`; each call gives the nanoseconds of its launches."""
    sources = (Source("x.py:1", "dot", 60, 0.75), Source("x.py:2", "tanh", 10, 0.25))
    again = (Source("x.py:2", "tanh", 20, 1.0),)
    facts = Facts((LaunchFacts(0, "contraction", sources, 70, 400), LaunchFacts(1, "check"), LaunchFacts(0, "elements", again, 20, 40)),
                  Flow((0,), ((1,), (2,), ())))
    made = []
    for times in calls:
        ends = np.cumsum([0, *times]).tolist()
        made.append(Call(tuple(zip((0, 1, 0), ends, ends[1:]))))
    return Profile("model", None, 1, ("a", "b"), tuple(made), facts)


def test_a_table_of_kernels_takes_the_median_of_each_launch() -> None:
    rows = profile_of((1000, 10, 100), (2000, 30, 200), (9000, 20, 300)).by("kernel")
    assert [(row.name, row.launches) for row in rows] == [("a", 2), ("b", 1)]
    assert rows[0].seconds == pytest.approx(2200e-9) and rows[1].seconds == pytest.approx(20e-9)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert rows[0].operations == 90 and rows[0].bytes == 440
    assert rows[0].operations_per_second == pytest.approx(90 / 2200e-9)


def test_time_is_divided_among_nodes_by_their_shares() -> None:
    profile = profile_of((1000, 10, 100))
    nodes = {row.name: row for row in profile.by("node")}
    assert nodes["x.py:1"].seconds == pytest.approx(750e-9) and nodes["x.py:1"].operations == 60
    assert nodes["x.py:2"].seconds == pytest.approx(350e-9) and nodes["x.py:2"].bytes == pytest.approx(140)
    assert nodes["(check)"].seconds == pytest.approx(10e-9)
    assert {row.name for row in profile.by("op")} == {"dot", "tanh", "(check)"}
    assert sum(row.seconds for row in profile.by("op")) == pytest.approx(profile.seconds)


def test_a_table_may_be_cut() -> None:
    lines = profile_of((1000, 10, 100)).table("node", 1).splitlines()
    assert len(lines) == 4 and lines[1].endswith("x.py:1") and lines[2].endswith("in 2 more") and lines[3].endswith("ms total")


def test_an_unknown_grouping() -> None:
    with pytest.raises(tw.ArgumentError, match="by: found 'line', expected one of kernel, node, op"):
        profile_of((1, 1, 1)).by("line")


# --- profiles of programs ---


def network(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    hidden = np.tanh(x @ w)
    return np.sort(hidden, axis=-1)[:, ::2] + 1


def inputs(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.standard_normal((rows, 48)).astype(np.float32), generator.standard_normal((48, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def executable() -> tw.Executable:
    specs = (tw.spec(("n", 48), "float32"), tw.spec((48, 32), "float32"))
    return tw.compile(network, args=specs, options=tw.Options(cache=False, threads=1))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_profile_of_a_program(executable: tw.Executable, threads: int) -> None:
    profile = executable.with_threads(threads).profile(*inputs(), calls=4)
    np.testing.assert_array_equal(profile.result, executable(*inputs()))
    assert len(profile.calls) == 4 and profile.threads == threads
    for call in profile.calls:
        assert len(call.tracks) == threads and len(call.launches) == len(profile.facts.launches)
        assert all(end >= start for _, start, end in call.launches)
    assert {kernel.name for kernel in profile.kernels} == set(executable.kernels) and all(k.seconds > 0 for k in profile.kernels)
    assert f"4 calls on {threads} thread" in str(profile) and "GFLOP/s" in str(profile)


def test_nodes_are_lines_of_the_source(executable: tw.Executable) -> None:
    profile = executable.profile(*inputs())
    line = network.__code__.co_firstlineno
    rows = {row.name: row for row in profile.by("node")}
    assert {f"test_profile.py:{line + 1}", f"test_profile.py:{line + 2}"} == set(rows)
    assert rows[f"test_profile.py:{line + 1}"].operations == 2 * 300 * 48 * 32 + 300 * 32
    assert {"packed_dot", "tanh", "sort"} <= {row.name for row in profile.by("op")}


def test_a_call_without_elements(executable: tw.Executable) -> None:
    profile = executable.profile(*inputs(0), calls=2)
    assert profile.result.shape == (0, 16)
    assert all(row.operations == 0 or row.name == "transpose" for row in profile.by("kernel"))


def test_results_may_be_written_to_given_memory(executable: tw.Executable) -> None:
    out = np.empty((300, 16), np.float32)
    assert executable.profile(*inputs(), out=out).result is out


def test_loops_are_counted_as_often_as_they_run() -> None:
    def rounds(x: np.ndarray, limit: np.ndarray) -> tuple:
        total, partial = tw.scan(lambda s, v: (s + v, s * v), x[0], x)
        return tw.while_loop(lambda s: s.sum() < limit, lambda s: s * 2 + 1, total), partial

    made = tw.compile(rounds, args=(tw.spec(("n", 8), "float64"), tw.spec((), "float64")), options=tw.Options(cache=False))
    for threads in (1, 2):
        profile = made.with_threads(threads).profile(np.ones((7, 8)), np.float64(8 * 9 * 2**5 - 9), calls=2)
        assert {row.name: row.launches for row in profile.by("op")}["lt"] == 6  # five rounds, and the end of the loop
        assert {runs for _, runs in profile.launches()} >= {1, 5, 6, 7}


def test_a_compiled_function_profiles_such_a_call() -> None:
    function = tw.compile(network, options=tw.Options(cache=False))
    profile = function.profile(*inputs(20), calls=3)
    np.testing.assert_array_equal(profile.result, function(*inputs(20)))
    assert len(profile.calls) == 3 and len(function.executables) == 1


@pytest.mark.parametrize("backend", ["reference", "reference-loops"])
def test_an_interpreter_has_times_without_facts(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    made = tw.compile(network, args=(tw.spec((3, 48), "float32"), tw.spec((48, 32), "float32")))
    profile = made.profile(*inputs(3), calls=2)
    assert profile.facts is None and len(profile.kernels) == len(made.kernels) and "ms" in str(profile)
    assert profile.trace()["traceEvents"]


def test_no_calls(executable: tw.Executable) -> None:
    for calls in (0, -1, 1.5):
        with pytest.raises(tw.ArgumentError, match=f"profile: found {calls} calls, expected 1 or more"):
            executable.profile(*inputs(), calls=calls)


# --- traces ---


def check_trace(trace: dict, threads: int) -> None:
    """The trace-event format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU."""
    assert set(trace) <= {"traceEvents", "displayTimeUnit", "otherData"} and trace["displayTimeUnit"] in ("ms", "ns")
    names: dict[int, str] = {}
    tracks: dict[int, list[tuple[float, float]]] = {}
    for event in trace["traceEvents"]:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int) and isinstance(event["name"], str) and event["name"]
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and isinstance(event["args"]["name"], str)
            if event["name"] == "thread_name":
                names[event["tid"]] = event["args"]["name"]
            continue
        assert event["ph"] == "X" and isinstance(event["cat"], str) and isinstance(event["args"], dict)
        assert all(isinstance(event[key], float) and event[key] >= 0 for key in ("ts", "dur"))
        tracks.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    assert set(tracks) == set(names) == set(range(threads + 1)) and names[threads] == "calls"
    for spans in tracks.values():
        assert all(end <= start + 1e-6 for (_, end), (start, _) in zip(sorted(spans), sorted(spans)[1:])), "stretches of a thread overlap"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_trace_has_a_track_for_each_thread(executable: tw.Executable, threads: int) -> None:
    profile = executable.with_threads(threads).profile(*inputs(), calls=3)
    trace = json.loads(json.dumps(profile.trace()))
    check_trace(trace, threads)
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in spans if event["cat"] == "call"] == ["call 0", "call 1", "call 2"]
    work = [event for event in spans if event["cat"] not in ("call", "wait")]
    assert len(work) == 3 * threads * len(profile.facts.launches)
    dot = next(event for event in work if event["cat"] == "contraction")
    assert dot["args"]["operations"] == 2 * 300 * 48 * 32 + 300 * 32 and dot["args"]["nodes"]
    assert any(event["cat"] == "wait" for event in spans) == (threads > 1)


# --- the command ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", "")
    monkeypatch.chdir(tmp_path)
    save_text(tw.trace(network, args=(tw.spec(("n", 48), "float32"), tw.spec((48, 32), "float32")), name="net"), tmp_path / "net.ir")
    return tmp_path


def test_the_command_answers_with_a_table(folder: Path, capsys) -> None:
    text = succeed(capsys, "profile", "net.ir", "--calls", 3, "--threads", 1, "--size", "n=20", "--top", 1)
    assert "median of 3 calls on 1 thread" in text and "x: float32[20, 48]" in text and "more" in text and "ms total" in text


@pytest.mark.parametrize("grouping", ["kernel", "node", "op"])
def test_the_command_answers_as_json(folder: Path, capsys, grouping: str) -> None:
    data = json.loads(succeed(capsys, "profile", "net.ir", "--calls", 2, "--threads", 2, "--size", "n=9", "--by", grouping, "--json",
                              "--trace", "trace.json"))
    assert data["by"] == grouping and data["calls"] == 2 and data["shapes"]["x"] == [9, 48] and data["trace"] == "trace.json"
    assert sum(row["share"] for row in data["rows"]) == pytest.approx(1) and data["least_seconds"] <= data["median_seconds"]
    check_trace(json.loads((folder / "trace.json").read_text()), 2)


def test_a_compiled_library_knows_its_kernels_only(folder: Path, capsys) -> None:
    succeed(capsys, "compile", "net.ir", "-o", "net.so", "--no-selftest")
    data = json.loads(succeed(capsys, "profile", "net.so", "--calls", 2, "--size", "n=9", "--json"))
    assert {row["name"] for row in data["rows"]} >= {"sort"} and not any(row["operations"] for row in data["rows"])
    assert "does not know its sources" in fail(capsys, "profile", "net.so", "--by", "node", status=2)


@pytest.mark.parametrize("arguments, message, status", [
    (["missing.ir"], "there is no such file", 1),
    (["net.ir", "--calls", "0"], "Invalid value for '--calls'", 2),
    (["net.ir", "--by", "line"], "Invalid value for '--by'", 2),
    (["net.ir", "--size", "m=3"], "no symbolic size m", 1),
    (["net.ir", "--size", "n=3", "--trace", "nowhere/trace.json"], "nowhere/trace.json", 1),
    (["net.ir", "--trace", "."], "is a directory", 2),
])
def test_bad_command_lines(folder: Path, capsys, arguments: list[str], message: str, status: int) -> None:
    assert message in fail(capsys, "profile", *arguments, status=status)
