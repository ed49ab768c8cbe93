"""Lowering against the interpreter of graphs: every op's samples and typical fused groups, run by the loop interpreter,
which also checks bounds, races and uninitialised reads. No machine code is involved."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lowering_checks import QUIET, ROW_SHAPES, SAMPLES, assert_means, mlp_case, one, row_case, sample_case, values
from tilewright import library as lib
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.errors import IndexFailure
from tilewright.ir.graph import Builder, Graph, Sample
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import Kernel
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.compute import Conv, Cumulative, Dot, ReduceWindow, Sort
from tilewright.ir.ops.control import Fusion, If, Param, Scan, While
from tilewright.ir.ops.shape import Concat, GatherND, Pad, ScatterND, Slice, Take, Transpose
from tilewright.ir.program import Launch, Repeat
from tilewright.ir.schedule import Schedule, apply_legal, apply_schedule, format_schedule, parse_schedule
from tilewright.ir.types import BOOL, F32, I64, TensorType
from tilewright.lowering import kernels
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

CAPS = Caps(vector_bits=128, vector_registers=16)


@pytest.fixture(autouse=True)
def every_schedule_is_legal_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all tests of this file: each schedule that lowering chooses is legal, and makes the same kernel from its text."""
    def checked(plain: Kernel, schedule: Schedule) -> tuple[Kernel, Schedule]:
        kernel = apply_schedule(plain, schedule)
        again = apply_schedule(parse_kernel(format_kernel(plain)), parse_schedule(format_schedule(schedule)))
        assert format_kernel(again) == format_kernel(kernel)
        assert apply_legal(plain, schedule)[1] == schedule
        return kernel, schedule

    monkeypatch.setattr(kernels, "apply_legal", checked)


def lowered(graph: Graph):
    fused, _ = run_passes(graph, Options(), CAPS, QUIET)
    return lower_program(fused, CAPS)[0]


def agree(graph: Graph, inputs: list[np.ndarray]) -> None:
    """The program gives what the graph means."""
    assert_means(lowered(graph), graph, inputs)


@pytest.mark.parametrize("sample", [s for _, s in SAMPLES], ids=[n for n, _ in SAMPLES])
def test_every_sample(sample: Sample) -> None:
    agree(*sample_case(sample, np.random.default_rng(1)))


def test_mlp_with_symbolic_batch() -> None:
    graph, batches = mlp_case()
    program = lowered(graph)
    for x in batches:
        assert_means(program, graph, [x])


@pytest.mark.parametrize("shape", ROW_SHAPES)
def test_softmax_and_layer_norm(shape: tuple[DimLike, ...]) -> None:
    graph, x = row_case(shape)
    agree(graph, [x])


def test_row_group_with_two_results() -> None:
    def build(b, x):
        total = lib.reduce(b, "sum", x, (1,), keep=True)
        return lib.apply(b, "div", x, lib.apply(b, "add", total, lib.constant(b, 100.0, F32))), total

    agree(one((4, 24), build), [values(F32, (4, 24), np.random.default_rng(4))])


def test_attention() -> None:
    def build(b, x):
        heads = lib.transpose(b, lib.reshape(b, x, (2, 7, 3, 4)), (0, 2, 1, 3))
        scores = lib.matmul(b, heads, lib.transpose(b, heads, (0, 1, 3, 2)))
        weights = lib.softmax(b, lib.apply(b, "mul", scores, lib.constant(b, 0.125, F32)), 3)
        return lib.reshape(b, lib.transpose(b, lib.matmul(b, weights, heads), (0, 2, 1, 3)), (2, 7, 12))

    agree(one((2, 7, 12), build), [values(F32, (2, 7, 12), np.random.default_rng(5))])


def test_gelu_epilogue_is_one_kernel() -> None:
    w = np.random.default_rng(6).integers(-1, 2, (16, 24)).astype(np.float32)
    graph = one((9, 16), lambda b, x: lib.gelu(b, lib.matmul(b, x, lib.constant(b, w))))
    assert len(lowered(graph).steps) == 1
    agree(graph, [values(F32, (9, 16), np.random.default_rng(7))])


def convolution(x, w, strides=(1, 1), padding=((1, 1), (1, 1)), groups=1):
    def build(b, node):
        conv = b.add(Conv(strides, padding, (1, 1), (1, 1), groups), node, lib.constant(b, w))
        scaled = lib.apply(b, "mul", conv, lib.constant(b, 2.0, F32))
        return lib.apply(b, "max", scaled, lib.constant(b, 0.0, F32))

    return one(x, build)


@pytest.mark.parametrize("groups, out", [(1, 20), (4, 4), (2, 6)])
def test_convolution_chain(groups: int, out: int) -> None:
    rng = np.random.default_rng(8)
    w = rng.integers(-1, 2, (out, 4 // groups, 3, 3)).astype(np.float32)
    agree(convolution((2, 4, 6, 7), w, (2, 1), groups=groups), [values(F32, (2, 4, 6, 7), rng)])


def test_squeeze_excite_block() -> None:
    rng = np.random.default_rng(9)
    w = rng.integers(-1, 2, (8, 4, 3, 3)).astype(np.float32)
    v = rng.integers(-1, 2, (8, 8, 1, 1)).astype(np.float32)
    one_by_one = Conv((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1))

    def build(b, x):
        y = b.add(Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)), x, lib.constant(b, w))
        pooled = lib.mean(b, y, (2, 3), keep=True)
        gate = lib.scalar(b, "sigmoid", b.add(one_by_one, pooled, lib.constant(b, v)))
        return lib.apply(b, "mul", y, gate)

    agree(one((1, 4, 5, 6), build), [values(F32, (1, 4, 5, 6), rng)])


def test_pooling_with_padding_and_concat() -> None:
    def build(b, x):
        window = ReduceWindow("max", (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (1, 1)), (1, 1, 1, 1))
        pooled = b.add(window, x)
        return b.add(Concat(1), pooled, lib.scalar(b, "neg", pooled))

    agree(one((1, 3, 6, 8), build), [values(F32, (1, 3, 6, 8), np.random.default_rng(10))])


def test_embedding_lookup_fails_out_of_range() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    graph = one((5,), lambda b, x: b.add(Take(0), lib.constant(b, table), x), I64)
    agree(graph, [np.array([0, 3, 1, 2, 3])])
    with pytest.raises(IndexFailure):
        run_program(lowered(graph), [np.array([0, 3, 4, 2, 3])])


def test_symbolic_window_is_checked() -> None:
    """The bounds of n do not prove that x[0:4] lies inside: with fewer elements it fails, and reads nothing."""
    n = symbol("n", 2)
    graph = one((n,), lambda b, x: b.add(Slice((0,), (4,), (1,)), x))
    agree(graph, [np.arange(6, dtype=np.float32)])
    with pytest.raises(IndexFailure, match="window leaves its axis"):
        run_program(lowered(graph), [np.arange(3, dtype=np.float32)])


@pytest.mark.parametrize("size", [0, 1, 2, 3, 8, 13])
def test_sort_cumulative_scatter_sizes(size: int) -> None:
    def build(b, x):
        ordered = b.add(Sort(0, True), x)
        return ordered, b.add(Cumulative("sum", 0, reverse=True), x)

    agree(one((size,), build), [values(F32, (size,), np.random.default_rng(11))])


def test_scatter_on_a_result() -> None:
    def build(b, x):
        places = lib.constant(b, np.array([[1], [1], [0]]))
        return b.add(ScatterND("add"), lib.scalar(b, "neg", x), places, lib.scalar(b, "exp", b.add(
            Slice((0, 0), (3, 4), (1, 1)), x)))

    agree(one((5, 4), build), [values(F32, (5, 4), np.random.default_rng(12))])


def test_integer_and_double_dots() -> None:
    rng = np.random.default_rng(13)
    b = Builder()
    x, y = (b.add(Param(n, I64, s)) for n, s in (("x", (3, 5)), ("y", (5, 4))))
    agree(Graph("dots", [x, y], [b.add(Dot((1,), (0,)), x, y)]), [values(I64, (3, 5), rng), values(I64, (5, 4), rng)])


def test_result_that_is_an_input_or_repeated() -> None:
    def build(b, x):
        y = lib.scalar(b, "neg", x)
        return x, y, y, lib.reshape(b, y, (6,)), lib.constant(b, 3.0, F32)

    agree(one((2, 3), build), [values(F32, (2, 3), np.random.default_rng(14))])


def body_of(name, types, build):
    b = Builder()
    params = [b.add(Param(f"s{i}", t.dtype, t.shape)) for i, t in enumerate(types)]
    made = build(b, *params)
    return Graph(name, params, list(made) if isinstance(made, tuple) else [made])


VECTOR, MATRIX = TensorType(F32, (4,)), TensorType(F32, (4, 4))


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_packs_captured_weights_once(reverse: bool) -> None:
    """h = tanh-free recurrence; the captured matrix is packed before the loop, not in it."""
    body = body_of("step", (VECTOR, VECTOR, MATRIX), lambda b, h, x, w: (
        (n := lib.apply(b, "add", lib.reshape(b, lib.matmul(b, lib.reshape(b, h, (1, 4)), w), (4,)), x)), lib.scalar(b, "neg", n)))
    b = Builder()
    h, xs, w = b.add(Param("h", F32, (4,))), b.add(Param("xs", F32, (5, 4))), b.add(Param("w", F32, (4, 4)))
    both = b.add(Scan(body, 1, 1, 5, reverse), h, xs, w)
    graph = Graph("scan", [h, xs, w], lib.results_of(b, both))
    repeat = next(s for s in lowered(graph).steps if isinstance(s, Repeat))
    assert len(repeat.steps) <= 4 and not any("pad" in s.kernel.name or "transpose" in s.kernel.name for s in repeat.steps)
    rng = np.random.default_rng(20)
    agree(graph, [values(F32, s, rng, (-1, 1)) for s in ((4,), (5, 4), (4, 4))])


def test_while_counts_and_if_takes_one_side() -> None:
    number = TensorType(I64, ())
    less = body_of("less", (number, VECTOR), lambda b, i, x: lib.apply(b, "lt", i, lib.constant(b, 7, I64)))
    step = body_of("step", (number, VECTOR), lambda b, i, x: (
        lib.apply(b, "add", i, lib.constant(b, 1, I64)), lib.apply(b, "add", x, lib.constant(b, 2.0, F32))))
    negate = body_of("negate", (VECTOR,), lambda b, x: lib.scalar(b, "neg", x))
    same = body_of("same", (VECTOR,), lambda b, x: x)
    b = Builder()
    x, flag = b.add(Param("x", F32, (4,))), b.add(Param("flag", BOOL, ()))
    start = lib.constant(b, 0, I64)
    _, summed = lib.results_of(b, b.add(While(less, step, 2), start, x))
    graph = Graph("flow", [x, flag], [b.add(If(negate, same), flag, summed), summed])
    for side in (True, False):
        agree(graph, [values(F32, (4,), np.random.default_rng(21)), np.array(side)])


def test_loop_that_swaps_its_states() -> None:
    """A state may become another's next value: the copies at the end of a round must not read what they overwrite."""
    number = TensorType(I64, ())
    less = body_of("less", (number, VECTOR, VECTOR), lambda b, i, x, y: lib.apply(b, "lt", i, lib.constant(b, 3, I64)))
    swap = body_of("swap", (number, VECTOR, VECTOR), lambda b, i, x, y: (
        lib.apply(b, "add", i, lib.constant(b, 1, I64)), y, x))
    b = Builder()
    x, y = b.add(Param("x", F32, (4,))), b.add(Param("y", F32, (4,)))
    graph = Graph("swap", [x, y], lib.results_of(b, b.add(While(less, swap, 3), lib.constant(b, 0, I64), x, y))[1:])
    rng = np.random.default_rng(22)
    agree(graph, [values(F32, (4,), rng), values(F32, (4,), rng)])


def test_zero_size() -> None:
    agree(one((0, 4), lambda b, x: lib.softmax(b, x, 1)), [np.zeros((0, 4), np.float32)])


def test_elementwise_kernels_write_over_a_dying_operand() -> None:
    """relu of a running sum lies where the sum lay; the value that is still needed is not overwritten."""
    def build(b, x):
        first = b.add(Cumulative("sum", 0), x)
        second = b.add(Cumulative("sum", 1), lib.scalar(b, "exp", first))
        return b.add(Cumulative("max", 0), lib.scalar(b, "mul", second, lib.scalar(b, "neg", first)))

    graph = one((16, 16), build)
    program = lowered(graph)
    assert program.workspace_bytes == 3 * 16 * 16 * 4
    assert any(b.space == "inout" for k in program.kernels() for b in k.buffers)
    agree(graph, [values(F32, (16, 16), np.random.default_rng(15), (0, 1))])


def test_a_captured_value_is_not_overwritten_in_a_loop() -> None:
    body = body_of("step", (VECTOR, VECTOR), lambda b, h, c: lib.scalar(b, "add", h, lib.scalar(b, "exp", c)))
    less = body_of("less", (VECTOR, VECTOR), lambda b, h, c: lib.apply(b, "lt", lib.reduce(b, "max", h, (0,)), lib.constant(b, 9.0, F32)))
    b = Builder()
    x = b.add(Param("x", F32, (4,)))
    c = b.add(Cumulative("sum", 0), x)
    graph = Graph("loop", [x], [b.add(While(less, body, 1), x, c)])
    agree(graph, [np.array([0.5, 0.25, 0.125, 0], dtype=np.float32)])


def test_static_arena_is_tight() -> None:
    """A chain needs two buffers at a time, whatever its length."""
    def build(b, x):
        for axis in range(8):
            x = b.add(Cumulative("sum", axis % 2), x)
        return x

    graph = one((16, 16), build)
    assert lowered(graph).workspace_bytes == 2 * 16 * 16 * 4


# --- what fusion keeps -----------------------------------------------------------------------------------------------


def test_gathers_read_columns_of_indices_where_they_are() -> None:
    b = Builder()
    n = symbol("n", 1, 9)
    x = b.add(Param("x", F32, (4, 5)))
    row, column = (b.add(Param(name, I64, (n, 1))) for name in ("row", "column"))
    places = b.add(Concat(1), lib.scalar(b, "abs", row), column)
    graph = Graph("g", [x, row, column], [b.add(GatherND(0), x, places)])
    assert len(lowered(graph).kernels()) == 1
    inputs = [np.arange(20, dtype=np.float32).reshape(4, 5), np.array([[0], [2], [1]]), np.array([[4], [0], [3]])]
    agree(graph, inputs)
    with pytest.raises(IndexFailure):
        run_program(lowered(graph), [inputs[0], inputs[1] + 2, inputs[2]])


def test_columns_of_indices_that_are_also_a_result_are_stored() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (4, 5)))
    row, column = (b.add(Param(name, I64, (3, 1))) for name in ("row", "column"))
    places = b.add(Concat(1), row, column)
    graph = Graph("g", [x, row, column], [b.add(GatherND(0), x, places), places])
    agree(graph, [np.arange(20, dtype=np.float32).reshape(4, 5), np.array([[0], [2], [1]]), np.array([[4], [0], [3]])])


def test_a_costly_value_read_at_several_places_is_computed_once() -> None:
    b = Builder()
    n = symbol("n", 8, None)
    x = b.add(Param("x", F32, (n,)))
    root = lib.scalar(b, "exp", x)
    parts = [b.add(Slice((k,), (n - 4,), (1,)), root) for k in range(4)]
    total = parts[0]
    for part in parts[1:]:
        total = lib.scalar(b, "add", total, part)
    graph = Graph("g", [x], [total])
    assert len(lowered(graph).kernels()) == 2
    agree(graph, [np.linspace(-1, 1, 11, dtype=np.float32)])


def test_rows_that_lie_across_memory_are_reduced_side_by_side() -> None:
    """x.T @ v reads x along its rows: the vector loop runs over the results."""
    b = Builder()
    x, v = b.add(Param("x", F32, (40, 24))), b.add(Param("v", F32, (40,)))
    turned = b.add(Transpose((1, 0)), x)
    graph = Graph("g", [x, v], [b.add(Dot((1,), (0,)), turned, v)])
    fused, _ = run_passes(graph, Options(), CAPS, QUIET)
    assert [n.op.strategy for n in fused.nodes() if isinstance(n.op, Fusion)] == ["elements"]
    rng = np.random.default_rng(3)
    agree(graph, [values(F32, (40, 24), rng), values(F32, (40,), rng)])


def scaled_pads(b, x, factors, low):
    """Layers of one kind, with numbers of their own: each pads its input and scales it."""
    found = []
    for number, factor in enumerate(factors):
        rows = b.add(Slice((0, 0), (x.shape[0] - number, x.shape[1]), (1, 1)), x) if number else x
        made = lib.apply(b, "add", lib.apply(b, "mul", rows, lib.constant(b, factor, F32)), lib.constant(b, number + 0.5, F32))
        padded = b.add(Pad((low + number, 0), (number + 1, 0)), made, lib.constant(b, 0.0, F32))
        found.append(lib.apply(b, "max", lib.reduce(b, "sum", padded, (0,)), lib.constant(b, factor, F32)))
    return tuple(found)


@pytest.mark.parametrize("rows", [30, symbol("R", 5)])
def test_kernels_that_differ_in_numbers_are_one(rows) -> None:
    graph = one((rows, 96), lambda b, x: scaled_pads(b, x, (0.25, -1.5, 3.0), 2))
    program = lowered(graph)
    launches = [step for step in program.steps if isinstance(step, Launch)]
    assert len(program.kernels()) <= len(launches) // 2
    verify_program(program)
    agree(graph, [values(F32, (30, 96), np.random.default_rng(31))])


def test_numbers_that_decide_how_a_kernel_is_made_stay() -> None:
    """A short vector loop is spelled out: only the two wide kernels have all else in common."""
    b = Builder()
    column = b.add(Param("column", F32, (50, 1)))
    inputs = [b.add(Param(f"x{n}", F32, (50, n))) for n in (8, 16, 96, 80)]
    program = lowered(Graph("widths", [column, *inputs], [lib.apply(b, "mul", x, column) for x in inputs]))
    assert [len(kernel.symbols) > 0 for kernel in program.kernels()] == [False, False, True]


def test_float_numbers_are_passed_to_the_bit() -> None:
    """Also those that compare equal, or with nothing."""
    b = Builder()
    inputs = [b.add(Param(f"x{n}", F32, (n,))) for n in (100, 200, 300, 400)]
    constants = (0.0, -0.0, float("nan"), float("-inf"))
    results = [lib.apply(b, "select", lib.apply(b, "lt", x, lib.constant(b, 0.25, F32)), lib.constant(b, c, F32), x)
               for x, c in zip(inputs, constants)]
    graph = Graph("signs", inputs, results)
    program = lowered(graph)
    assert len(program.kernels()) == 1
    given = [np.linspace(-1, 1, n, dtype=np.float32) for n in (100, 200, 300, 400)]
    for x, y in zip(evaluate_graph(graph, given), run_program(program, given), strict=True):
        assert x.tobytes() == y.tobytes()


# --- schedules -------------------------------------------------------------------------------------------------------


def plans(graph: Graph) -> list[list[str]]:
    """The steps of each kernel that is not a contraction."""
    fused, _ = run_passes(graph, Options(), CAPS, QUIET)
    _, statistics = lower_program(fused, CAPS)
    return [list(map(str, schedule)) for _, schedule in statistics.plans.values()]


def test_schedules_of_the_strategies() -> None:
    twice = one((64, 48), lambda b, x: lib.apply(b, "add", x, x))
    assert plans(twice) == [["fuse(i0, i1)", "parallelize(i0)", "split(i0, 2048, min, i0_inner)", "vectorize(i0_inner, 4)"]]
    turned = one((5, 6, 7), lambda b, x: lib.transpose(b, x, (2, 0, 1)))
    assert plans(turned) == [["fuse(i1, i2)", "parallelize(i0)", "vectorize(i1, 4)"]]
    spread = one((3, 6, 7), lambda b, x: lib.transpose(b, x, (1, 0, 2)))
    assert plans(spread) == [["parallelize(i0)", "fuse(i0, i1)", "vectorize(i2, 4)"]]
    rows = one((symbol("B"), 20), lambda b, x: lib.softmax(b, x, 1))
    (steps,) = plans(rows)
    assert steps[0].startswith("parallelize(") and all(s.startswith("vectorize(k") and s.endswith(", 16, true)") for s in steps[1:])


def test_what_is_not_shown_to_be_legal_is_left_out() -> None:
    kernel = parse_kernel("""kernel @k(%y: inout f32[64]) {
      for %i in 0..63 { %y[i + 1] = load %y[i] }
    }""")
    made, taken = apply_legal(kernel, parse_schedule("parallelize(i) split(i, 8) vectorize(i_inner, 4)"))
    assert format_schedule(taken) == "split(i, 8)\n" and "parallel" not in format_kernel(made)
