"""Convolutions on a GPU's matrix units, against the interpreter of graphs: in the loop interpreter, and as CUDA source in the emulation.

All convolutions of a test are results of one graph, so that their kernels are one source.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec import Struct
from msgspec.structs import replace

from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import QUIET
from tests.lowering_checks import lowered_for_gpu as lowered
from tilewright import library as lib
from tilewright.backends.cuda.backend import capabilities_of
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.errors import CompileError, UnsupportedError
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import Alloc, MatmulTile, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.compute import Conv, PackedConv
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Pad
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, F16, F32, I8, I32, INDEX, U8, DType
from tilewright.library_quantized import dequantize, quantize
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.passes.fuse import fuse
from tilewright.pipeline import run_passes


class Case(Struct, frozen=True):
    """A convolution of x [N, C, *spatial] with a kernel, C and the kernel's channels in `groups`."""

    shape: tuple[DimLike, ...]
    kernel: tuple[int, ...]
    out: int
    strides: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    spread: int = 1
    groups: int = 1
    known: bool = True

    def build(self, b: Builder, x: Node, w: Node, result: DType | None = None) -> Node:
        each = len(self.kernel)
        op = Conv((self.strides,) * each, (self.padding,) * each, (self.dilation,) * each, (self.spread,) * each, self.groups, False, result)
        return b.add(op, x, w)

    @property
    def weights(self) -> tuple[int, ...]:
        channels = self.shape[1]
        assert isinstance(channels, int)
        return (self.out, channels // self.groups, *self.kernel)


CASES = [
    Case((2, 16, 7, 9), (3, 3), 32, padding=(1, 1)),                           # pieces of 16 bytes, rows and columns of several images
    Case((1, 3, 11, 10), (5, 3), 40, strides=2, padding=(2, 1)),               # channels that are lengthened, edges on each side
    Case((1, 12, 6, 5), (2, 3), 72, dilation=2),                               # pieces of 8 bytes, more columns than a panel
    Case((3, 1, 40), (4,), 16, strides=3, padding=(0, 2)),                     # one channel, one axis
    Case((1, 8, 4, 5, 3), (2, 2, 3), 16, padding=(1, 0)),                      # three axes
    Case((1, 8, 5, 4), (3, 3), 24, spread=2, padding=(2, 1)),                  # transposed
    Case((2, 16, 5, 5), (3, 3), 32, groups=2, padding=(1, 1), known=False),    # groups, weights at run time
    Case((1, 36, 4, 6), (1, 1), 20, strides=2, known=False),                   # one tap, not all places
    Case((1, 12, 4, 5), (2, 2), 6, groups=3),                                  # few columns
    Case((1, 64, 2, 3), (3, 3), 16, padding=(1, 1)),                           # few rows, parts of the steps
]


def convolutions(cases: Sequence[Case], dtype: DType, weights: DType | None = None, result: DType | None = None) -> Graph:
    """Small whole numbers, so that sums are exact in any order; a bias and a maximum behind each that is of floats."""
    b, rng = Builder(), np.random.default_rng(1)
    params, results = [], []
    for number, case in enumerate(cases):
        params.append(b.add(Param(f"x{number}", dtype, case.shape)))
        kind = weights or dtype
        if case.known:
            w = lib.constant(b, rng.integers(-2, 3, case.weights).astype(kind.numpy))
        else:
            w = b.add(Param(f"w{number}", kind, case.weights))
            params.append(w)
        made = case.build(b, next(p for p in reversed(params) if p is not w), w, result)
        if result is None:
            bias = lib.constant(b, rng.integers(-2, 3, (case.out, *[1] * len(case.kernel))).astype(dtype.numpy))
            made = lib.apply(b, "max", lib.apply(b, "add", made, lib.broadcast(b, bias, made.shape)), lib.constant(b, -2.0, dtype))
        results.append(made)
    return Graph("convolutions", params, results)


def numbers(graph: Graph, sizes: dict[str, int] | None = None, whole: bool = False) -> list[np.ndarray]:
    """Inputs: small whole numbers, or of bytes all there are."""
    rng = np.random.default_rng(2)
    found = []
    for param in graph.params:
        shape = tuple(n if isinstance(n, int) else (sizes or {})[str(n)] for n in param.shape)
        low, high = (np.iinfo(param.dtype.numpy).min, np.iinfo(param.dtype.numpy).max) if whole else (-2, 2)
        found.append(rng.integers(low, high, shape, endpoint=True).astype(param.dtype.numpy))
    return found


def on_units(program: Program) -> int:
    return sum(any(isinstance(s, MatmulTile) for s in walk(kernel.body)) for kernel in program.kernels())


def check(graph: Graph, values: Sequence[np.ndarray], count: int, multiprocessors: int | None = None, architecture: str = "sm_80") -> Program:
    program = lowered(graph, multiprocessors, architecture)
    assert on_units(program) == count
    expected = evaluate_graph(graph, list(values))
    for found in (run_program(program, list(values)), EmulatedPrograms([program], architecture=architecture).run(0, values)):
        for number, (x, y) in enumerate(zip(expected, found, strict=True)):
            np.testing.assert_array_equal(y, x, str(number))
    return program


@needs_compiler
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_convolutions_of_every_kind(dtype: DType) -> None:
    cases = CASES if dtype == F16 else CASES[:2]
    graph = convolutions(cases, dtype)
    check(graph, numbers(graph), sum(4 if case.spread > 1 else 1 for case in cases))


@needs_compiler
@pytest.mark.parametrize(("left", "weights"), [(U8, I8), (I8, I8)])
def test_convolutions_of_bytes(left: DType, weights: DType) -> None:
    """All values that bytes have: sums are exact in any order."""
    cases = CASES if left == U8 else CASES[1:3] + CASES[6:7]
    graph = convolutions(cases, left, weights, I32)
    check(graph, numbers(graph, whole=True), sum(4 if case.spread > 1 else 1 for case in cases))


@needs_compiler
@pytest.mark.parametrize("dtype", [F16, F32])
def test_open_sizes(dtype: DType) -> None:
    batch, high, wide = symbol("B"), symbol("H", 2), symbol("W", 3)
    graph = convolutions([Case((batch, 8, high, wide), (3, 3), 16, padding=(1, 1), strides=2), Case((1, 3, high), (2,), 16)], dtype)
    program = lowered(graph)
    assert on_units(program) == (2 if dtype == F16 else 0)
    kept = [s.buffer for k in program.kernels() for s in walk(k.body) if isinstance(s, Alloc) and s.buffer.dtype == INDEX]
    assert len(kept) == (4 if dtype == F16 else 2)  # where windows begin, and along which axes what is padded
    emulated = EmulatedPrograms([program])
    for sizes in ({"B": 2, "H": 9, "W": 7}, {"B": 1, "H": 2, "W": 3}, {"B": 0, "H": 3, "W": 4}):
        values = numbers(graph, sizes)
        expected = evaluate_graph(graph, values)
        for found in (run_program(program, values), emulated.run(0, values)):
            for x, y in zip(expected, found, strict=True):
                np.testing.assert_array_equal(y, x)


def layers(b: Builder, x: Node, plan: Sequence[tuple[int, int]], around: float = 0.0) -> Node:
    """Convolutions behind one another by (taps an axis, channels out), what goes in added to the last one, limited to 0 to 2, and what they
    read padded."""
    made, rng, dtype = x, np.random.default_rng(3), x.dtype
    for number, (size, out) in enumerate(plan):
        w = lib.constant(b, rng.integers(-1, 2, (out, made.shape[1], size, size)).astype(dtype.numpy))
        edge, inside = size // 2, 0 if around else size // 2
        padded = made if edge == inside else b.add(Pad((0, 0, edge, edge), (0, 0, edge, edge)), made, lib.constant(b, around, dtype))
        made = b.add(Conv((1, 1), ((inside, inside),) * 2, (1, 1), (1, 1), 1, False), padded, w)
        made = lib.apply(b, "add", made, x) if number == len(plan) - 1 else made
        made = lib.apply(b, "min", lib.apply(b, "max", made, lib.constant(b, 0.0, dtype)), lib.constant(b, 2.0, dtype))
    return made


@needs_compiler
@pytest.mark.parametrize(("plan", "around"), [([(3, 32), (3, 32), (1, 40)], 0.0), ([(1, 48), (3, 40), (3, 40)], 0.25)])
def test_one_kernel_a_convolution(plan: list[tuple[int, int]], around: float) -> None:
    """They stay channels-last; zeros around what is read are not written, other numbers are by the kernel before (of a product, too); what
    is added is read where it lies."""
    b = Builder()
    x = b.add(Param("x", F16, (2, 6, 5, 40)))
    made = lib.transpose(b, layers(b, lib.transpose(b, x, [0, 3, 1, 2]), plan, around), [0, 2, 3, 1])
    graph = Graph("chain", [x], [made])
    program = check(graph, numbers(graph), 3)
    assert len(program.kernels()) == 3


@needs_compiler
def test_high_tiles_where_there_is_work_for_all_multiprocessors() -> None:
    graph = convolutions([Case((1, 16, 12, 13), (3, 3), 136, padding=(1, 0)), Case((1, 32, 12, 12), (3, 3), 144, groups=1, strides=1)], F16)
    check(graph, numbers(graph), 2, multiprocessors=1)
    narrow = convolutions([Case((1, 16, 24, 24), (3, 3), 56, padding=(1, 0))], F16)
    program = check(narrow, numbers(narrow), 1, multiprocessors=1)
    assert (4, 64, 32) in [s.buffer.shape for k in program.kernels() for s in walk(k.body) if isinstance(s, Alloc)]  # 128 x 64


ZERO_POINTS = {U8: 131, I8: -3}


def layer(case: Case, left: DType, out: DType) -> Graph:
    """quantize(max(conv(dequantize(x), dequantize(w)) + bias, 0)): zero points on both sides, scales of weights by channel."""
    b, rng = Builder(), np.random.default_rng(case.out)

    def number(value: float, dtype: DType) -> Node:
        return lib.constant(b, value, dtype)

    x, ones = b.add(Param("x", left, case.shape)), [1] * (len(case.kernel) + 1)
    weights = dequantize(b, lib.constant(b, rng.integers(-127, 128, case.weights).astype(np.int8)),
                         lib.constant(b, rng.uniform(0.001, 0.01, (case.out, *ones)).astype(np.float32)))
    total = case.build(b, dequantize(b, x, number(0.05, F32), number(ZERO_POINTS[left], left)), weights)
    bias = lib.constant(b, rng.standard_normal((case.out, *ones[1:])).astype(np.float32))
    total = lib.apply(b, "add", total, lib.broadcast(b, bias, total.shape))
    total = lib.apply(b, "max", total, lib.broadcast(b, number(0.0, F32), total.shape))
    return Graph("layer", [x], [quantize(b, total, number(0.1, F32), number(3, out), out)])


@needs_compiler
def test_quantized_layers() -> None:
    """Bytes in, bytes out; what is padded are zeros, which are the zero point of the bytes."""
    graphs = [layer(Case((1, 16, 6, 7), (3, 3), 24, padding=(1, 1)), U8, I8), layer(Case((2, 3, 9, 9), (3, 3), 16, strides=2, padding=(1, 0)), U8, U8),
              layer(Case((1, 32, 5, 4), (3, 2), 32, padding=(1, 1), groups=2), I8, U8), layer(Case((1, 20, 5, 6), (1, 1), 40), U8, U8),
              layer(Case((1, 1, 9, 10), (3, 4), 7), I8, I8)]
    programs = [lowered(graph) for graph in graphs]
    emulated = EmulatedPrograms(programs)
    for number, (graph, program) in enumerate(zip(graphs, programs)):
        assert on_units(program) == 1
        values = numbers(graph, whole=True)
        expected, = evaluate_graph(graph, values)
        assert len(np.unique(expected)) > 20
        for found in (run_program(program, values), emulated.run(number, values)):
            np.testing.assert_array_equal(found[0], expected)


GROUPED = [Case((2, 16, 13, 14), (3, 3), 136, padding=(1, 0), strides=2), Case((1, 48, 6, 20), (1, 3), 256, dilation=2, known=False)]


@needs_compiler
@pytest.mark.parametrize(("dtype", "weights", "result"), [(F16, F16, None), (BF16, BF16, None), (U8, I8, I32), (I8, I8, I32)])
def test_four_warps_at_a_time(dtype: DType, weights: DType, result: DType | None) -> None:
    graph = convolutions(GROUPED, dtype, weights, result)
    program = check(graph, numbers(graph, whole=result is not None), 2, multiprocessors=2, architecture="sm_90a")
    assert sum(s.grouped for k in program.kernels() for s in walk(k.body) if isinstance(s, MatmulTile)) == 2


def test_channels_that_are_added_hold_no_infinities() -> None:
    """What is padded along the image does not reach the channels beside it."""
    b = Builder()
    x = b.add(Param("x", F16, (1, 6, 5, 3)))
    padded = b.add(Pad((0, 1, 1, 0), (0, 0, 1, 0)), x, lib.constant(b, float("inf"), F16))
    w = lib.constant(b, np.ones((2, 2, 3, 16), np.float16))
    graph = Graph("infinite", [x], [b.add(Conv((1, 1), ((0, 0),) * 2, (1, 1), (1, 1), 1, True), padded, w)])
    program, values = lowered(graph), numbers(graph)
    assert on_units(program) == 1
    expected, = evaluate_graph(graph, values)
    assert np.isfinite(expected).any() and np.isinf(expected).any()
    np.testing.assert_array_equal(run_program(program, values)[0], expected)


def test_padding_is_written_where_no_units_take_it() -> None:
    b, rng = Builder(), np.random.default_rng(4)
    op = PackedConv((3, 2), (1, 1), (1, 1), 20, padding=((1, 1), (0, 1)), square=8)
    x, w = b.add(Param("x", F16, (1, 5, 4, 8))), b.add(Param("w", F16, (1, 64, 64)))
    graph = Graph("packed", [x, w], [b.add(op, x, w)])
    values = [rng.integers(-2, 3, p.tensor.static_shape).astype(np.float16) for p in (x, w)]
    expected, = evaluate_graph(graph, values)
    for caps in (Caps(), capabilities_of("sm_80"), replace(capabilities_of("sm_80"), matrix_units=())):
        fused, _ = run_passes(graph, Options(), caps, QUIET)
        np.testing.assert_array_equal(run_program(lower_program(fused, caps)[0], values)[0], expected)
    for made, how in ((op, "in squares of 8"), (replace(op, square=1), "and writes no padding")):
        w = b.add(Param("w", F16, (1, 64 if made.square > 1 else 48, 64)))
        late = fuse(Graph("packed", [x, w], [b.add(made, x, w)]), Options())
        with pytest.raises(UnsupportedError, match=f"packed_conv: no kernel of this target takes f16.* {how}"):
            lower_program(late, Caps())
    for wrong in (replace(op, padding=((1, 1),)), replace(op, padding=((-1, 0), (0, 0))), replace(op, padding=((0, 0), (0, 0)))):
        with pytest.raises(CompileError, match="expected two sizes an axis"):
            wrong.infer(x.tensor, w.tensor)
