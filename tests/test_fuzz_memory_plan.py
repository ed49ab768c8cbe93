"""The checker of memory plans: plans that lowering makes are right, and each way to make them wrong is seen."""

from __future__ import annotations

import time

import numpy as np
import pytest
from msgspec.structs import replace

import tilewright as tw
from benchmarks.models import MODELS, Model
from benchmarks.numpy_programs import PROGRAMS
from tilewright.fuzz import native
from tilewright.fuzz.footprints import TooMuch, access_fault
from tilewright.fuzz.generate import random_graph, sample_graph
from tilewright.fuzz.memory_plan import Piece, Stored, bindings_of, check_plan, number, stored_over
from tilewright.fuzz.subject import Failure, Refused
from tilewright.ir.dims import ceildiv, dim_min, evaluate, symbol
from tilewright.ir.errors import TilewrightError
from tilewright.ir.graph import Graph
from tilewright.ir.loop_parser import parse_kernel, parse_program
from tilewright.ir.ops.table import ALL_OPS
from tilewright.ir.program import Launch, Program
from tilewright.lowering import in_place, memory
from tilewright.options import Environment, Options
from tilewright.pipeline import run_passes

QUIET = Environment(debug=0, dump=None, verify=0, backend="", cache_directory=None)
CHAIN = """
kernel @twice[n: 1..64](%x: in f32[n], %y: out f32[n]) {
  for %i in 0..n parallel {
    %y[i] = add(load %x[i], load %x[i])
  }
}

kernel @part[n: 1..64, k: 1..64](%x: in f32[k], %y: out f32[n]) {
  for %i in 0..n parallel {
    %y[i] = f32 0.0
  }
}

kernel @sum[n: 1..64](%x: in f32[n], %y: in f32[n], %z: out f32[n]) {
  for %i in 0..n parallel {
    %z[i] = add(load %x[i], load %y[i])
  }
}

kernel @flag(%y: out bool[]) {
  %y[] = bool true
}

kernel @over[n: 1..64](%x: inout f32[n]) {
  for %i in 0..n parallel {
    %x[i] = neg(load %x[INDEX])
  }
}

program @p[n: 1..64](%x: f32[n]) -> (%z: f32[n]) {
  constants 0
  workspace 192*((4*n + 63) // 64)
STEPS
}
"""
SLOT = "64*((4*n + 63) // 64)"
RIGHT = f"""launch @twice[n](input 0, workspace 0)
launch @twice[n](workspace 0, workspace {SLOT})
launch @over[n](workspace {SLOT})
launch @sum[n](workspace 0, workspace {SLOT}, output 0)"""


def program_of(steps: str, index: str = "i") -> Program:
    return parse_program(CHAIN.replace("STEPS", steps).replace("INDEX", index))


def check(program: Program) -> int:
    return check_plan(program, list(bindings_of(program, np.random.default_rng(0), 5)))


def lowered(graph: Graph, target: str = "cpu:x86-64-v3", small: bool = False) -> Program:
    caps = native.caps_of(target, small)
    return native.lowered(run_passes(graph, Options(), caps, QUIET)[0], caps)


def test_stores_cut_what_they_take_a_part_of() -> None:
    """Against a list of all bytes."""
    rng = np.random.default_rng(4)
    for _ in range(60):
        pieces: tuple[Piece, ...] = ()
        owners: list[Stored | None] = [None] * 24
        for number_of_store in range(12):
            start, end = sorted(int(n) for n in rng.choice(25, 2, replace=False))
            value = Stored(str(number_of_store), start, end, "u8")
            pieces = stored_over(pieces, value)
            owners[start:end] = [value] * (end - start)
            assert [p.start for p in pieces] == sorted(p.start for p in pieces)
            found = {byte: p for p in pieces for byte in range(p.start, p.end)}
            assert len(found) == sum(p.end - p.start for p in pieces)
            assert [set(found[byte].values) if byte in found else {None} for byte in range(24)] == [{x} for x in owners]
            for byte, piece in found.items():
                whole = owners[byte]
                assert whole is not None and bool(piece.cut) == (owners.count(whole) < whole.end - whole.start)


def test_many_slices_are_stored_in_little_time() -> None:
    """Each store went through all that was stored before: loops of some thousand steps hung."""
    pieces: tuple[Piece, ...] = ()
    began = time.process_time()
    for step in range(6000):
        pieces = stored_over(pieces, Stored("step", step, step + 1, "u8", True))
    assert len(pieces) == 6000 and time.process_time() - began < 2


def test_a_right_plan_is_right_at_every_size() -> None:
    assert check(program_of(RIGHT)) == 5


@pytest.mark.parametrize("steps, message", [
    ("launch @twice[n](input 0, workspace 0)", "reads byte 0, which nothing has stored to"),
    ("launch @twice[n](workspace 0, output 0)", "reads byte 0, which nothing has stored to"),
    (RIGHT.replace(f"workspace 0, workspace {SLOT})", "workspace 0, workspace 0)", 1), "overlap in one launch"),
    (RIGHT.replace(f"workspace 0, workspace {SLOT})", "workspace 0, workspace 64)", 1), "overlap in one launch"),
    (RIGHT.replace("launch @over", "launch @flag(workspace 0)\nlaunch @over"), "reads f32 where %y of flag stored bool"),
    (RIGHT.replace("workspace 0", "workspace 16"), "begins at no multiple of 64"),
    (RIGHT.replace(SLOT, "192*((4*n + 63) // 64)"), "is not within the"),
    (RIGHT.replace("output 0", "input 0"), "is stored to"),
    (RIGHT.replace("launch @sum[n]", "launch @part[n, n + 1]").replace(f"workspace 0, workspace {SLOT}, ", "input 0, "),
     "is not within the"),
    ("launch @twice[n](input 0, workspace 0)\nlaunch @part[n, ((n + 1) // 2)](workspace 0, output 0)", "that takes bytes 0 to"),
    (RIGHT.replace("launch @sum", "launch @part[n, n](input 0, workspace 64)\nlaunch @sum"), "was stored over a part of it"),
    ("branch workspace 0 {\n}\n" + RIGHT, "which nothing has stored to"),
    ("launch @flag(workspace 0)\nbranch workspace 0 {\nlaunch @twice[n](input 0, output 0)\n}", "which nothing has stored to"),
])
def test_a_wrong_plan_is_seen(steps: str, message: str) -> None:
    with pytest.raises(Failure, match="memory plan in lower") as caught:
        check(program_of(steps))
    assert message in caught.value.message


@pytest.mark.parametrize("index", ["n - i - 1", "0"])
def test_writing_over_what_another_iteration_reads_is_seen(index: str) -> None:
    with pytest.raises(Failure, match="writes over what it reads"):
        check(program_of(RIGHT, index))


KERNEL = """kernel @k[n: 1..64](%x: in f32[n], %y: in i64[n], %z: out f32[n]) {
  for %i in 0..((n + 3) // 4) parallel {
    for %j in 0..4 {
      let %at: 0..63 = cast(load %y[0], index)
      if lt(index(4*i + j), index(n)) {
        %z[4*i + j] = add(load %x[PLACE], load %x[at])
      }
    }
  }
}"""


@pytest.mark.parametrize("place, fault", [
    ("4*i + j", ""), ("n - 4*i - j - 1", ""), ("min(4*i + j + 1, n - 1)", ""), ("(4*i + j) // 2", ""), ("(4*i + j + 1) % n", ""),
    ("4*i + j + 1", "%x[4*i + j + 1] takes 1 to 64 on axis 0 of 64"), ("n - 4*i - j - 2", "takes -1 to 62"), ("5*i + j", "takes 0 to"),
])
def test_accesses_are_held_against_their_buffers(place: str, fault: str) -> None:
    kernel = parse_kernel(KERNEL.replace("PLACE", place))
    assert bool(access_fault(kernel, {"n": 64})) == bool(fault)
    assert fault in access_fault(kernel, {"n": 64})
    assert access_fault(kernel, {"n": 1}) == "" or fault


def test_what_a_check_ends_is_not_followed() -> None:
    body = KERNEL.replace("  for %i", "  check lt(index(n), index 9), -3, \"size\", index(n), index 9\n  for %i", 1).replace("PLACE", "i + 99")
    with pytest.raises(Refused):
        access_fault(parse_kernel(body), {"n": 64})
    assert "takes 99 to 99" in access_fault(parse_kernel(body), {"n": 4})
    with pytest.raises(TooMuch):
        access_fault(parse_kernel(KERNEL.replace("n: 1..64", "n").replace("PLACE", "0")), {"n": 1 << 20})


def test_a_missing_barrier_is_seen() -> None:
    program = program_of(RIGHT)
    first, *rest = program.steps
    assert isinstance(first, Launch)
    with pytest.raises(Failure, match="without a barrier between"):
        check(replace(program, steps=(replace(first, barrier=False), *rest)))
    last = rest[-1]
    assert isinstance(last, Launch)
    assert check(replace(program, steps=(first, *rest[:-1], replace(last, barrier=False)))) == 5, "nothing follows it"


def test_a_condition_behind_no_barrier_is_seen() -> None:
    program = program_of("launch @flag(workspace 0)\nbranch workspace 0 {\nlaunch @twice[n](input 0, output 0)\n} else {\n"
                         "launch @twice[n](input 0, output 0)\n}")
    assert check(program) == 5
    flag = program.steps[0]
    assert isinstance(flag, Launch)
    with pytest.raises(Failure, match="read by all threads without a barrier"):
        check(replace(program, steps=(replace(flag, barrier=False), *program.steps[1:])))


def test_what_lowering_makes_is_right() -> None:
    """Of every op, and of random graphs."""
    rng, tried = np.random.default_rng(0), 0
    graphs = [sample_graph(sample) for op in ALL_OPS for sample in op.samples()[:2]] + [random_graph(n, size=10) for n in range(30)]
    for position, graph in enumerate(graphs):
        try:
            program = lowered(graph, native.TARGETS[position % 3], position % 4 == 0)
        except TilewrightError:
            continue  # an op that is not supported
        tried += check_plan(program, list(bindings_of(program, rng, 4)))
    assert tried > 100


def test_a_lifetime_one_step_short_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.Storage, "end", property(lambda self: max(self.last, self.first + 1)))
    function = lambda x: np.cumsum(np.cumsum(np.cumsum(x, axis=0).T, axis=0).T, axis=1)  # noqa: E731
    with pytest.raises(Failure, match="memory plan"):
        check(lowered(tw.trace(function, args=(tw.spec((12, 12), "float32"),))))


def test_in_place_where_other_places_are_read_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "_reads_what_it_replaces", lambda block, operand, result: True)

    def function(x):  # type: ignore[no-untyped-def]
        sums = np.cumsum(x)
        return (sums + sums[::-1]).cumsum()

    with pytest.raises(Failure, match="writes over what it reads"):
        check(lowered(tw.trace(function, args=(tw.spec((50,), "float32"),))))


def test_sizes_are_those_of_the_compiler() -> None:
    n, m = symbol("n", 1, 40), symbol("m", 0, 9)
    for size in (n * m + 3, (n + 5) // 3 * m, n % 4 + ceildiv(m, 2), dim_min(n, m * m) - 2 * n):
        for binding in ({"n": 1, "m": 0}, {"n": 7, "m": 9}, {"n": 40, "m": 3}):
            assert number(size, binding) == evaluate(size, binding)
    with pytest.raises(Refused):
        number(n // m, {"n": 4, "m": 0})


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_plans_of_numpy_programs(program) -> None:  # type: ignore[no-untyped-def]
    specs = [tw.spec(a.shape, str(a.dtype)) for a in program.inputs("float32")]
    assert check(lowered(tw.trace(program.function, args=specs))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_plans_of_real_models(model: Model) -> None:
    """With their symbolic sizes, at several."""
    pytest.importorskip("onnx")
    try:
        graph = tw.from_onnx(model.path())
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    program = lowered(graph)
    real = {}
    for param in graph.params:
        for size, found in zip(param.shape, model.shapes[param.op.label], strict=True):
            if not isinstance(size, int):
                real[str(size)] = found
    assert check_plan(program, [real, *bindings_of(program, np.random.default_rng(0), 4)]) > 0
