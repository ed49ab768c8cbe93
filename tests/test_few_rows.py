"""Contractions of which the number of rows is not known (compiler/lowering/few_rows.py): lower tiles for few of them.

Against the interpreter of graphs, as machine code and in the loop interpreter, which checks bounds and races. A row has the same
bits in a batch of any size and on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from tests.comparing import assert_close, assert_identical
from tests.compiled import QUIET, run_compiled, target_of
from tilewright import library as lib
from tilewright.backends.llvm.backend import LlvmBackend
from tilewright.build import fill_segment
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import Alloc, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.compute import Conv, Dot
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.shape import Pad
from tilewright.ir.program import Program
from tilewright.ir.types import F16, F32, F64, I32, DType
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes
from tilewright.runtime.executable import Executable
from tilewright.tiles import Tile, choose_low_tiles

BACKEND = LlvmBackend(target_of("cpu"))
CAPS = BACKEND.capabilities


def dense(rows: DimLike, columns: int, dtype: DType = F32, functions: tuple[str, ...] = (), border: bool = False) -> Graph:
    """The functions of x @ w + bias, within a border of ones."""
    b = Builder()
    rng = np.random.default_rng(3)
    x = b.add(Param("x", dtype, (rows, 3, 9) if border else (rows, 9)))
    w = lib.constant(b, rng.integers(-3, 4, (9, columns)).astype(dtype.numpy))
    y = lib.apply(b, "add", b.add(Dot((x.rank - 1,), (0,), (), ()), x, w), lib.constant(b, rng.integers(-3, 4, columns).astype(dtype.numpy)))
    for name in functions:
        y = lib.apply(b, name, y)
    if border:
        y = b.add(Pad((0, 1, 0), (0, 2, 0)), y, lib.constant(b, 1, dtype))
    return Graph("dense", [x], [y])


def product_in_batches(rows: DimLike) -> Graph:
    b = Builder()
    x, y = b.add(Param("x", F32, (3, rows, 5))), b.add(Param("y", F32, (3, 5, 37)))
    return Graph("batches", [x, y], [b.add(Dot((2,), (1,), (0,), (0,)), x, y)])


def convolution(rows: DimLike, kernel: int, length: int, groups: int = 1, pad: bool = False) -> Graph:
    """A convolution along one axis, of which a batch has few places."""
    b = Builder()
    x = b.add(Param("x", F32, (rows, length, 8)))
    w = lib.constant(b, np.random.default_rng(5).integers(-2, 3, (kernel, 8 // groups, 40)).astype(np.float32))
    y: Node = lib.apply(b, "abs", b.add(Conv((1,), ((0, 0),), (1,), (1,), groups, True), x, w))
    if pad:
        y = b.add(Pad((0, 1, 0), (0, 1, 0)), y, lib.constant(b, 0, F32))
    return Graph("convolution", [x], [y])


def inputs_of(graph: Graph, rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(rows)
    shapes = [tuple(n if isinstance(n, int) else rows for n in p.shape) for p in graph.params]
    return [rng.integers(-4, 5, shape).astype(p.dtype.numpy) for p, shape in zip(graph.params, shapes)]


def program_of(graph: Graph, caps: Caps = CAPS) -> Program:
    return lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0]


def executables_of(program: Program) -> list[Executable]:
    """The program on one, two and three threads."""
    code, segment = BACKEND.compile(program), fill_segment(program)
    return [Executable.from_object(code.object_code, segment, symbol=code.symbol, threads=threads) for threads in (1, 2, 3)]


def heights(program: Program) -> set[int]:
    """The rows of all register tiles."""
    return {int(s.buffer.shape[0]) for kernel in program.kernels() for s in walk(kernel.body)
            if isinstance(s, Alloc) and s.buffer.space == "register" and len(s.buffer.shape) == 2}


GRAPHS = {
    "plain": lambda rows: dense(rows, 70),
    "one panel": lambda rows: dense(rows, 5),
    "two panels": lambda rows: dense(rows, 24, F64),
    "integers": lambda rows: dense(rows, 37, I32),
    "halves": lambda rows: dense(rows, 33, F16),
    "border": lambda rows: dense(rows, 37, border=True),
    "batches": product_in_batches,
    "convolution": lambda rows: convolution(rows, 3, 4),
    "one place": lambda rows: convolution(rows, 3, 3, pad=True),
    "four places": lambda rows: convolution(rows, 3, 6),
    "groups": lambda rows: convolution(rows, 3, 3, groups=2),
    "padded": lambda rows: convolution(rows, 2, 3, pad=True),
}


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("name", GRAPHS)
def test_any_number_of_rows(name: str, least: int) -> None:
    graph = GRAPHS[name](symbol("rows", least))
    program = program_of(graph)
    verify_program(program)
    executables = executables_of(program)
    for rows in range(least, 14):
        inputs = inputs_of(graph, rows)
        expected = evaluate_graph(graph, inputs)
        for executable in executables:
            assert_identical(run_compiled(executable, inputs), expected, signed_zeros=False)
        if rows in (0, 1, 2, 3, 5, 7):
            assert_identical(run_program(program, inputs), expected, signed_zeros=False)


@pytest.mark.parametrize("functions", [(), ("sigmoid", "erf")], ids=["short", "long"])
def test_a_row_has_the_same_bits_in_a_batch_of_any_size(functions: tuple[str, ...]) -> None:
    graph = dense(symbol("rows"), 70, functions=functions)
    executables = executables_of(program_of(graph))
    x = np.random.default_rng(2).standard_normal((13, 9)).astype(np.float32)
    x[3, 3], x[7, 5], x[12, 0] = np.nan, np.inf, -np.inf
    whole = run_compiled(executables[0], [x])[0]
    assert np.isfinite(np.delete(whole, [3, 7, 12], axis=0)).all()
    with np.errstate(invalid="ignore"):
        assert_close([whole], evaluate_graph(graph, [x]))
    for rows in range(1, 14):
        for first in {0, 13 - rows}:
            for executable in executables:
                assert_identical(run_compiled(executable, [x[first:first + rows]]), [whole[first:first + rows]])


def test_lower_tiles_take_several_panels() -> None:
    caps = Caps(vector_bits=256, vector_registers=16)
    tile, rows, panels = Tile(6, 16, 8), symbol("rows", 1), symbol("panels")
    assert choose_low_tiles(tile, rows, panels, caps, True) == (Tile(2, 32, 8), Tile(4, 16, 8))
    assert choose_low_tiles(tile, rows, panels, caps, False) == (Tile(2, 32, 8),)
    assert choose_low_tiles(tile, rows, 1, caps, True) == (Tile(4, 16, 8),)
    assert choose_low_tiles(tile, 4 * rows, panels, caps, True) == (Tile(4, 16, 8),)
    assert choose_low_tiles(tile, 5 * rows, panels, caps, True) == choose_low_tiles(tile, 1, panels, caps, True) == ()
    assert choose_low_tiles(Tile(4, 24, 8), rows, panels, caps, True) == (Tile(2, 24, 8),)
    assert choose_low_tiles(Tile(4, 24, 8), rows, panels, caps, False) == ()


def test_only_where_there_may_be_few_rows() -> None:
    caps = Caps(vector_bits=256, vector_registers=16)
    assert heights(program_of(dense(symbol("rows", 1), 64), caps)) == {2, 6}
    assert heights(program_of(dense(symbol("rows", 5), 64), caps)) == {6}
    assert heights(program_of(convolution(symbol("rows", 1), 3, 8), caps)) == {10}
    assert heights(program_of(convolution(symbol("rows", 1), 3, 4), caps)) == {2, 4, 10}
    assert heights(program_of(convolution(symbol("rows", 1), 3, 6), caps)) == {4, 10}


def signal(batch: DimLike, length: DimLike) -> Graph:
    """A convolution along an open axis: a signal is often short."""
    b = Builder()
    x = b.add(Param("x", F32, (batch, length, 8)))
    w = lib.constant(b, np.random.default_rng(5).integers(-2, 3, (3, 8, 40)).astype(np.float32))
    y = lib.apply(b, "abs", b.add(Conv((2,), ((1, 1),), (1,), (1,), 1, True), x, w))
    return Graph("signal", [x], [b.add(Pad((0, 1, 0), (0, 1, 0)), y, lib.constant(b, 0, F32))])


def test_a_signal_of_any_length() -> None:
    caps = Caps(vector_bits=256, vector_registers=16)
    assert heights(program_of(signal(symbol("batch", 1), symbol("length", 1)), caps)) >= {2, 4}
    program = program_of(signal(symbol("batch", 1), symbol("length", 1)))
    executables = executables_of(program)
    for batch, length in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 3), (3, 2), (1, 7), (5, 1), (4, 9), (1, 33)):
        inputs = [np.random.default_rng(length).integers(-4, 5, (batch, length, 8)).astype(np.float32)]
        expected = evaluate_graph(signal(symbol("batch", 1), symbol("length", 1)), inputs)
        for executable in executables:
            assert_identical(run_compiled(executable, inputs), expected, signed_zeros=False)
        assert_identical(run_program(program, inputs), expected, signed_zeros=False)


def test_an_image_is_not_expected_to_be_small() -> None:
    b = Builder()
    x = b.add(Param("x", F32, (1, symbol("height", 1), symbol("width", 1), 8)))
    w = lib.constant(b, np.ones((3, 3, 8, 40), np.float32))
    y = b.add(Conv((2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1), 1, True), x, w)
    assert len(heights(program_of(Graph("image", [x], [y]), Caps(vector_bits=256, vector_registers=16)))) == 1
