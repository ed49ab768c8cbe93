"""Tiles of windows (compiler/lowering/windows.py): depthwise convolutions and pooling against the interpreter of graphs, as
machine code and in the loop interpreter, which checks bounds and races."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.comparing import assert_identical
from tests.compiled import QUIET, compiled, run_compiled
from tilewright import library as lib
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import Alloc, For, Let, walk
from tilewright.ir.loop_interp import run_kernel, run_program
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.compute import Conv, ReduceWindow
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, DType
from tilewright.lowering.lower import lower_program
from tilewright.lowering.share import _Generalized, _Reader
from tilewright.lowering.windows import Along, choose_columns
from tilewright.options import Options
from tilewright.pipeline import run_passes

CAPS = Caps(vector_bits=128, vector_registers=16)


def with_epilogue(b: Builder, x: Node, extra: Node | None) -> Node:
    """bias, relu and the like, all exact on small integers."""
    if x.dtype.is_float:
        half = lib.constant(b, 0.5, x.dtype)
        x = lib.apply(b, "max", lib.apply(b, "mul", x, half), lib.constant(b, -3.0, x.dtype))
    return x if extra is None else lib.apply(b, "add", x, extra)


def depthwise(shape: tuple[DimLike, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilation: tuple[int, ...],
              padding: int = 0, dtype: DType = F32, epilogue: bool = True) -> Graph:
    """Of x [N, *spatial, C] with a bias for each channel."""
    b = Builder()
    rank, channels = len(kernel), shape[-1]
    assert isinstance(channels, int)
    x = b.add(Param("x", dtype, shape))
    w = b.add(Param("w", dtype, (*kernel, 1, channels)))
    bias = b.add(Param("bias", dtype, (channels,)))
    y = b.add(Conv(strides, ((padding, padding),) * rank, dilation, (1,) * rank, channels, True), x, w)
    made = with_epilogue(b, y, lib.broadcast(b, bias, y.shape)) if epilogue else y
    return Graph("depthwise", [x, w, bias], [made])


def constant_depthwise(shape: tuple[DimLike, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilation: tuple[int, ...],
                       padding: tuple[tuple[int, int], ...], extreme: float = 0.0) -> Graph:
    """With weights that are known; the first of them may be an extreme one."""
    b = Builder()
    channels = shape[-1]
    assert isinstance(channels, int)
    weights = np.random.default_rng(1).integers(-4, 5, (*kernel, 1, channels)).astype(np.float32)
    weights.reshape(-1)[0] += extreme
    x = b.add(Param("x", F32, shape))
    y = b.add(Conv(strides, padding, dilation, (1,) * len(kernel), channels, True), x, lib.constant(b, weights))
    return Graph("depthwise", [x], [with_epilogue(b, y, None)])


def pooling(kind: str, shape: tuple[DimLike, ...], window: tuple[int, ...], strides: tuple[int, ...],
            dilation: tuple[int, ...], padding: int = 0, dtype: DType = F32) -> Graph:
    b = Builder()
    x = b.add(Param("x", dtype, shape))
    pads = ((0, 0), *(((padding, padding),) * len(window)), (0, 0))
    y = b.add(ReduceWindow(kind, (1, *window, 1), (1, *strides, 1), pads, (1, *dilation, 1)), x)
    return Graph("pooling", [x], [with_epilogue(b, y, None)])


def inputs_of(graph: Graph, sizes: dict[str, int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-4, 5, [n if isinstance(n, int) else sizes[str(n)] for n in p.shape]).astype(p.dtype.numpy)
            for p in graph.params]


def lowered(graph: Graph, caps: Caps = CAPS) -> Program:
    return lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0]


def accumulators(program: Program) -> list[int]:
    """The sizes of register buffers that belong to the lanes of a vector loop: one for each tile."""
    return [s.buffer.shape[0] for kernel in program.kernels() for loop in walk(kernel.body)
            if isinstance(loop, For) and loop.kind == "vector" for s in loop.body
            if isinstance(s, Alloc) and s.buffer.shape and isinstance(s.buffer.shape[0], int)]


def agree_natively(graph: Graph, inputs: list[np.ndarray]) -> None:
    expected = evaluate_graph(graph, inputs)
    assert_identical(run_compiled(compiled(graph), inputs), expected, signed_zeros=False)


def agree_as_loops(graph: Graph, inputs: list[np.ndarray]) -> Program:
    program = lowered(graph)
    verify_program(program)
    assert_identical(run_program(program, inputs), evaluate_graph(graph, inputs), signed_zeros=False)
    return program


def width_for(out: int, kernel: int, stride: int, dilation: int) -> int:
    return (out - 1) * stride + (kernel - 1) * dilation + 1


AXIS = st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 2))


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """A shape that fits, kernel, strides, dilation, and which sizes are symbols."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    axes = [draw(AXIS) for _ in range(rank)]
    if rank == 3:
        axes = [(min(k, 3), s, 1) for k, s, _ in axes]
    outs = [draw(st.integers(1, 4)) for _ in range(rank - 1)] + [draw(st.sampled_from([1, 2, 3, 7, 8, 10, 13, 20, 23, 31]))]
    spatial = [width_for(n, *axis) + draw(st.integers(0, axis[1] - 1)) for n, axis in zip(outs, axes)]
    shape = (draw(st.integers(1, 2)), *spatial, draw(st.sampled_from([1, 3, 8, 13, 16, 40])))
    symbolic = (*(draw(st.booleans()) for _ in shape[:-1]), False)
    return shape, *zip(*axes), symbolic  # type: ignore[return-value]  # zip loses how many there are


def named(shape: tuple[int, ...], symbolic: tuple[bool, ...]) -> tuple[tuple[DimLike, ...], dict[str, int]]:
    sizes = {f"s{a}": n for a, n in enumerate(shape)}
    return tuple(symbol(f"s{a}", n) if unknown else n for a, (n, unknown) in enumerate(zip(shape, symbolic))), sizes


@pytest.mark.slow
@settings(max_examples=50)
@given(cases(), st.integers(0, 2))
def test_depthwise_natively(case, padding) -> None:  # type: ignore[no-untyped-def]  # drawn
    shape, kernel, strides, dilation, symbolic = case
    declared, sizes = named(shape, symbolic)
    graph = depthwise(declared, kernel, strides, dilation, padding)
    agree_natively(graph, inputs_of(graph, sizes))


@pytest.mark.slow
@settings(max_examples=60)
@given(cases(), st.lists(st.integers(0, 7), min_size=6, max_size=6))
def test_known_weights_natively(case, pads) -> None:  # type: ignore[no-untyped-def]  # drawn
    shape, kernel, strides, dilation, symbolic = case
    declared, sizes = named(shape, symbolic)
    padding = tuple((min(low, d * k), min(high, d * k)) for low, high, k, d in zip(pads, pads[3:], kernel, dilation))
    graph = constant_depthwise(declared, kernel, strides, dilation, padding)
    agree_natively(graph, inputs_of(graph, sizes))


@pytest.mark.parametrize("shape, kernel, strides, dilation, padding", [
    ((1, 2, 12, 8), (5, 5), (1, 1), (1, 1), ((2, 2), (2, 2))),   # no row has all its taps
    ((1, 3, 20, 6), (3, 3), (2, 2), (1, 1), ((1, 0), (1, 1))),
    ((2, 7, 9, 8), (3, 3), (1, 1), (3, 2), ((3, 4), (2, 2))),
    ((1, 4, 1, 9), (3, 3), (1, 1), (1, 1), ((5, 5), (1, 1))),    # tiles along the rows; rows of padding alone
    ((1, 2, 9, 4), (1, 3), (1, 1), (1, 1), ((3, 2), (1, 1))),    # rows that no tap reads
    ((1, 3, 4, 6, 8), (3, 3, 3), (1, 2, 1), (1, 1, 1), ((1, 1), (0, 1), (1, 1)))])
def test_rows_of_padding(shape, kernel, strides, dilation, padding) -> None:  # type: ignore[no-untyped-def]  # parametrized
    graph = constant_depthwise(shape, kernel, strides, dilation, padding)
    agree_as_loops(graph, inputs_of(graph, {}))
    agree_natively(graph, inputs_of(graph, {}))


def test_rows_of_padding_are_not_written() -> None:
    program = lowered(constant_depthwise((1, 3, 16, 8), (5, 5), (1, 1), (1, 1), ((2, 2), (2, 2))))
    assert any(isinstance(s, Let) and s.name.startswith("taps") for k in program.kernels() for s in walk(k.body))
    assert {b.shape for k in program.kernels() for b in k.buffers} == {(3 * 16 * 8,), (3 * 20 * 8,), (5 * 5 * 8,)}


def test_rows_of_padding_by_symbols() -> None:
    rows, columns = symbol("h", 1), symbol("w", 1)
    graph = constant_depthwise((1, rows, columns, 8), (5, 3), (2, 1), (1, 1), ((2, 2), (1, 1)))
    for sizes in ({"h": 1, "w": 1}, {"h": 2, "w": 9}, {"h": 9, "w": 20}):
        inputs = inputs_of(graph, sizes)
        agree_as_loops(graph, inputs)
        agree_natively(graph, inputs)


@pytest.mark.parametrize("extreme", [np.inf, np.nan])
def test_weights_that_are_no_numbers_meet_the_padding(extreme: float) -> None:
    graph = constant_depthwise((1, 3, 9, 8), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), extreme)
    agree_natively(graph, inputs_of(graph, {}))


def test_two_depthwise_convolutions_that_share_a_kernel() -> None:
    """Kernels that are alike but for their numbers are made one, which must not take one limit of rows for the other."""
    b = Builder()
    x = y = b.add(Param("x", F32, (1, 4, 12, 16)))
    for number, taps in enumerate((5, 3, 5)):
        weights = np.random.default_rng(number).integers(-2, 3, (taps, 3, 1, 16)).astype(np.float32)
        y = b.add(Conv((1, 1), ((taps // 2,) * 2, (1, 1)), (1, 1), (1, 1), 16, True), y, lib.constant(b, weights))
        y = lib.apply(b, "max", lib.apply(b, "mul", y, lib.constant(b, 0.25 + number, F32)), lib.constant(b, -3.0, F32))
    graph = Graph("chain", [x], [y])
    inputs = inputs_of(graph, {})
    agree_natively(graph, inputs)
    agree_as_loops(graph, inputs)


@pytest.mark.slow
@settings(max_examples=30)
@given(cases(), st.sampled_from(["max", "min", "sum"]), st.sampled_from([F32, F32, F64, I32, F16]), st.integers(0, 1))
def test_pooling_natively(case, kind, dtype, padding) -> None:  # type: ignore[no-untyped-def]  # drawn
    shape, window, strides, dilation, symbolic = case
    declared, sizes = named(shape, symbolic)
    graph = pooling(kind, declared, window, strides, dilation, padding, dtype)
    agree_natively(graph, inputs_of(graph, sizes))


@pytest.mark.parametrize("shape, kernel, strides, dilation", [
    ((1, 8, 20, 8), (3, 3), (1, 1), (1, 1)), ((2, 6, 15, 6), (3, 3), (1, 2), (2, 1)), ((1, 12, 13, 9), (5, 1), (1, 1), (1, 1)),
    ((1, 40, 4), (7,), (1,), (1,)), ((1, 4, 5, 16, 4), (2, 3, 3), (1, 1, 1), (1, 1, 1)), ((1, 6, 17, 44), (5, 5), (1, 1), (1, 1)),
    ((1, 9, 3, 8), (3, 3), (2, 1), (1, 1)), ((1, 37, 7, 4), (3, 3), (1, 1), (1, 1))])
def test_loops_of_depthwise(shape, kernel, strides, dilation) -> None:  # type: ignore[no-untyped-def]  # drawn
    for symbolic in (False, True):
        declared, sizes = named(shape, (*(symbolic for _ in shape[:-1]), False))
        graph = depthwise(declared, kernel, strides, dilation)
        assert accumulators(agree_as_loops(graph, inputs_of(graph, sizes)))


@pytest.mark.parametrize("kind", ["max", "sum"])
@pytest.mark.parametrize("shape, window, strides, dilation", [
    ((1, 8, 20, 8), (3, 3), (1, 1), (1, 1)), ((2, 9, 13, 6), (5, 5), (2, 2), (1, 1)), ((1, 9, 20, 4), (4, 3), (1, 1), (1, 2))])
def test_loops_of_pooling(kind, shape, window, strides, dilation) -> None:  # type: ignore[no-untyped-def]  # drawn
    for symbolic in (False, True):
        declared, sizes = named(shape, (*(symbolic for _ in shape[:-1]), False))
        graph = pooling(kind, declared, window, strides, dilation)
        assert accumulators(agree_as_loops(graph, inputs_of(graph, sizes)))


def test_loops_with_groups_of_channels_and_a_tail() -> None:
    """More channels than the first level of memory holds are done in groups; what no vector fills belongs to the last."""
    small = Caps(vector_bits=128, vector_registers=16, level1_bytes=8192)
    graph = depthwise((1, 6, 9, 21), (3, 3), (1, 1), (1, 1))
    program = lowered(graph, small)
    inputs = inputs_of(graph, {})
    assert_identical(run_program(program, inputs), evaluate_graph(graph, inputs), signed_zeros=False)
    assert len(accumulators(program)) >= 2


def test_channels_may_be_symbolic() -> None:
    for channels in (1, 3, 8, 21):
        graph = pooling("max", (1, 6, 15, symbol("C")), (3, 3), (1, 1), (1, 1))
        inputs = inputs_of(graph, {"C": channels})
        agree_as_loops(graph, inputs)
        agree_natively(graph, inputs)


@pytest.mark.parametrize("width", [6, 9, 10, 11, 13, 20, 21, 22, 29])
def test_a_result_does_not_depend_on_the_tile_or_the_thread(width: int) -> None:
    """The same bits from whole tiles, narrower and single ones, from wider inputs, and on two threads."""
    rng = np.random.default_rng(width)
    wide = rng.standard_normal((2, 9, 40, 20)).astype(np.float32)
    w, bias = rng.standard_normal((5, 5, 1, 20)).astype(np.float32), rng.standard_normal(20).astype(np.float32)
    x = np.ascontiguousarray(wide[:, :, :width])
    static = depthwise(x.shape, (5, 5), (1, 1), (1, 1))
    general = depthwise((symbol("N"), symbol("H", 5), symbol("W", 5), 20), (5, 5), (1, 1), (1, 1))
    expected = run_compiled(compiled(static), [x, w, bias])
    assert_identical(run_compiled(compiled(static, threads=2), [x, w, bias]), expected)
    executable = compiled(general, threads=2)
    assert_identical(run_compiled(executable, [x, w, bias]), expected)
    full, = run_compiled(executable, [wide, w, bias])
    assert_identical([full[:, :, :width - 4]], expected)


@pytest.mark.parametrize("kind", ["max", "min", "sum"])
def test_not_a_number_and_infinities(kind: str) -> None:
    x = np.random.default_rng(1).standard_normal((1, 9, 25, 12)).astype(np.float32)
    x[0, ::4, ::5, ::3], x[0, 1::5, 2::7, 1::4], x[0, 3::6, ::6, 2::5] = np.nan, np.inf, -np.inf
    graph = pooling(kind, x.shape, (3, 3), (1, 1), (1, 1))
    expected, = evaluate_graph(graph, [x])
    found, = run_compiled(compiled(graph), [x])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind, dtype", [("max", I8), ("min", U8), ("sum", I64), ("or", BOOL), ("max", BF16)])
def test_pooling_of_other_dtypes(kind: str, dtype: DType) -> None:
    graph = pooling(kind, (1, 9, 23, 37), (3, 3), (1, 1), (1, 1), 1, dtype)
    inputs = [np.abs(x.astype(np.float32)).astype(dtype.numpy) if dtype == U8 else x for x in inputs_of(graph, {})]
    agree_natively(graph, inputs)
    agree_as_loops(graph, inputs)


@pytest.mark.parametrize("dtype", [F16, F64])
def test_other_dtypes(dtype: DType) -> None:
    graph = depthwise((1, 7, 23, 13), (3, 3), (1, 1), (1, 1), 1, dtype)
    agree_natively(graph, inputs_of(graph, {}))


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v4"])
def test_other_targets_compile(target: str) -> None:
    """With and without a fused multiply-add, and with 32 registers."""
    from tilewright.backends.llvm.backend import LlvmBackend
    from tilewright.backends.llvm.targets import resolve_target
    backend = LlvmBackend(resolve_target(target))
    graph = depthwise((1, 7, 33, 40), (5, 5), (1, 1), (1, 1))
    program = lowered(graph, backend.capabilities)
    assert accumulators(program)
    assert backend.compile(program).object_code


def test_a_residual_is_added_in_place_of_it() -> None:
    """An operand of the epilogue that dies there may be overwritten: each element is read just where it is replaced."""
    b = Builder()
    x, w = b.add(Param("x", F32, (1, 8, 23, 16))), b.add(Param("w", F32, (3, 3, 1, 16)))
    skip = lib.apply(b, "exp", lib.softmax(b, x, 3))
    y = b.add(Conv((1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), 16, True), x, w)
    graph = Graph("residual", [x, w], [lib.apply(b, "mul", lib.apply(b, "add", y, skip), lib.constant(b, 2.0, F32))])
    inputs = inputs_of(graph, {})
    expected, = evaluate_graph(graph, inputs)
    np.testing.assert_allclose(run_program(lowered(graph), inputs)[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run_compiled(compiled(graph), inputs)[0], expected, rtol=1e-5, atol=1e-5)


def test_layers_that_differ_in_extents_share_a_kernel() -> None:
    b = Builder()
    w = b.add(Param("w", F32, (3, 3, 1, 8)))
    inputs = [b.add(Param(f"x{n}", F32, (1, n, m, 8))) for n, m in ((22, 22), (34, 42))]
    conv = Conv((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), 8, True)
    graph = Graph("two", [w, *inputs], [b.add(conv, x, w) for x in inputs])
    program = lowered(graph)
    assert len(program.kernels()) == 1 and len(program.steps) == 2
    agree_as_loops(graph, inputs_of(graph, {}))


@pytest.mark.parametrize("graph", [
    pooling("max", (1, 8, 20, 8), (2, 2), (2, 2), (1, 1)),   # no input is read twice
    pooling("max", (1, 8, 20, 1), (3, 3), (1, 1), (1, 1)),   # vectors run along another axis
    depthwise((1, 5, 5, 8), (5, 5), (1, 1), (1, 1)),         # one result
    depthwise((1, 5, 90, 8), (5, 30), (1, 1), (1, 1))])      # more taps than registers
def test_what_tiles_do_not_help(graph: Graph) -> None:
    assert not accumulators(agree_as_loops(graph, inputs_of(graph, {})))


def test_the_choice_of_columns() -> None:
    """Tiles fill the registers, divide a width, and shrink where inputs fall onto each other in memory."""
    def columns(taps: int, stride: int, width: DimLike, step: int = 64, weighted: bool = True) -> int:
        return choose_columns(Along(taps, stride, 1), width, 15 - taps, taps, step, weighted, 32768)

    assert columns(5, 1, 80) == 10 and columns(5, 1, symbol("W")) == 10
    assert columns(3, 1, 13) in (7, 13 - 1) and columns(3, 1, 2) == 2
    assert columns(3, 1, 80, 2048) < columns(3, 1, 80, 64)
    assert columns(2, 2, 80, weighted=False) == 1 < columns(3, 1, 80, weighted=False)


LIMITS = """\
kernel @limits(%x: in f32[64], %y: out f32[64]) {
  for %i in 0..8 parallel {
    for %j in 0..8 {
      %y[8*i + j] = load %x[min(-j + 7, FIRST) + 2*min(-j + 7, SECOND) + 8*i]
    }
  }
}
"""


def test_limits_that_differ_in_numbers_alone_stay_apart_where_kernels_are_shared() -> None:
    kernels = [parse_kernel(LIMITS.replace("FIRST", str(first)).replace("SECOND", str(second)))
               for first, second in ((1, 2), (2, 1))]
    readers = [_Reader(kernel) for kernel in kernels]
    assert readers[0].skeleton == readers[1].skeleton
    general = _Generalized(kernels[0], readers)
    x = np.arange(64, dtype=np.float32)
    for kernel, values in zip(kernels, general.values):
        found, expected = np.zeros_like(x), np.zeros_like(x)
        run_kernel(general.kernel, [x, found], {name: int(str(size)) for name, size in values.items()})
        run_kernel(kernel, [x, expected], {})
        np.testing.assert_array_equal(found, expected)
