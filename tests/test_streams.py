"""Rows, elements and transposes beyond the caches: stores past them (compiler/lowering/streams.py), the next row prefetched
(rows.py), tiles transposed in registers (backends/llvm/emit_transposed.py). On a machine with tiny caches, so that small arrays
take every way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from tests.compiled import QUIET, assert_near, run_compiled, target_of, tolerance_of
from tests.kernel_checks import traced
from tilewright.backends.llvm.backend import LlvmBackend
from tilewright.backends.llvm.emit import emit_program
from tilewright.backends.llvm.emit_model import ModelFacts
from tilewright.build import fill_segment
from tilewright.ir.errors import ParseError, VerifyError
from tilewright.ir.graph import Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import Alloc, For, Prefetch, Store, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_proofs import linear_factor
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.loop_verify import verify_kernel, verify_program
from tilewright.ir.program import Program
from tilewright.lowering import crossings, elements, rows
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes
from tilewright.runtime.executable import Executable

RNG = np.random.default_rng(0)
TINY = 2048  # bytes of the last cache
DTYPES = ["bool", "int8", "int16", "float16", "float32", "float64"]


def lowered(graph: Graph, target: str = "cpu", last_cache: int = TINY) -> tuple[LlvmBackend, Program]:
    backend = LlvmBackend(replace(target_of(target), level3_bytes=last_cache))
    program = lower_program(run_passes(graph, Options(), backend.capabilities, QUIET)[0], backend.capabilities)[0]
    verify_program(program)
    return backend, program


def streams(program: Program) -> list[Store]:
    return [s for kernel in program.kernels() for s in walk(kernel.body) if isinstance(s, Store) and s.stream]


def check(function: Callable[..., Any], *arrays: np.ndarray, symbolic: bool = False) -> Program:
    """Machine code on one thread and three, and loops, against the interpreter of graphs; results at aligned places and others."""
    graph = traced(function, arrays, symbolic)
    with np.errstate(all="ignore"):
        expected = evaluate_graph(graph, list(arrays))
    backend, program = lowered(graph)
    code = backend.compile(program)
    executable = Executable.from_object(code.object_code, fill_segment(program), symbol=code.symbol, threads=1)
    found = run_compiled(executable, list(arrays))
    assert_near(found, expected, tolerance_of(graph))
    for ours, theirs in zip(run_compiled(executable.with_threads(3), list(arrays)), found):
        assert ours.tobytes() == theirs.tobytes()
    if len(found) == 1:
        room = np.zeros(found[0].nbytes + 128, np.uint8)
        for start in (found[0].itemsize, 16, 32, 48, 64):
            placed = room[start:start + found[0].nbytes].view(found[0].dtype).reshape(found[0].shape)
            executable(*arrays, out=placed)
            assert placed.tobytes() == found[0].tobytes()
    with np.errstate(all="ignore"):
        assert_near(run_program(program, list(arrays)), expected, tolerance_of(graph))
    return program


def values(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    found = RNG.standard_normal(shape) * 50
    found.flat[:3] = (np.nan, np.inf, -np.inf) if dtype.startswith("float") else 0
    return found.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2048, 6007])
def test_large_results_are_streamed(dtype: str, size: int) -> None:
    program = check(lambda x: x.copy() if dtype == "bool" else x + x, values((size,), dtype))
    assert len(streams(program)) == (size * np.dtype(dtype).itemsize >= TINY)


def test_results_that_a_cache_holds_and_those_of_unknown_size_are_not() -> None:
    assert not streams(check(lambda x: x + 1, values((TINY // 4 - 1,), "float32")))
    assert not streams(check(lambda x: x + 1, values((5000,), "float32"), symbolic=True))
    assert not streams(lowered(traced(lambda x: x + 1, (values((5000,), "float32"),), False), last_cache=0)[1])


def test_parts_of_lines_are_not_streamed() -> None:
    assert not streams(check(lambda x: x.T.copy(), values((63, 128), "float32")))
    assert not streams(check(lambda x: x[:, :, None] + np.zeros(3, np.float32), values((64, 32), "float32")))


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x: Any) -> Any:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(9, 512), (2, 3, 777), (1, 4096)])
@pytest.mark.parametrize("function", [softmax, layer_norm])
def test_rows(function: Callable[..., Any], shape: tuple[int, ...], dtype: str, symbolic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "AHEAD_ALL", 0)
    program = check(function, RNG.standard_normal(shape).astype(dtype), symbolic=symbolic)
    ahead = [s for kernel in program.kernels() for s in walk(kernel.body) if isinstance(s, Prefetch)]
    row_bytes = shape[-1] * np.dtype(dtype).itemsize
    assert bool(ahead) == (not symbolic and row_bytes >= rows.AHEAD_ROW and shape[0] > 1)
    assert bool(streams(program)) == (not symbolic and row_bytes >= 1024)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 3, 778), (1, 4096), (5, 777)])
def test_halves_of_the_next_row_are_prefetched_by_two_loops(shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of even rows that are computed faster than read: in vectors of some registers, one prefetch for two lines at most."""
    monkeypatch.setattr(rows, "AHEAD_ALL", 0)
    monkeypatch.setattr(rows, "AHEAD_HALVES", 0)
    program = check(layer_norm, RNG.standard_normal(shape).astype(dtype))
    loops = [s for kernel in program.kernels() for s in walk(kernel.body) if isinstance(s, For) and s.kind == "vector"]
    ahead = [[s for s in loop.body if isinstance(s, Prefetch)] for loop in loops]
    far = shape[-1] * np.dtype(dtype).itemsize >= rows.AHEAD_ROW and shape[0] > 1
    assert [bool(found) for found in ahead] == [False, far, far]
    for loop, found in zip(loops[1:], ahead[1:]):
        assert [linear_factor(s.index[0], loop.symbol) for s in found] == [None if shape[-1] % 2 == 0 else 1] * len(found)
    reduced = check(lambda x: (x - x.mean(axis=-1, keepdims=True)).std(axis=-1), RNG.standard_normal(shape).astype(dtype))
    assert all(s.lanes <= 16 for kernel in reduced.kernels() for s in walk(kernel.body) if isinstance(s, For) and s.kind == "vector")


def test_rows_of_special_values() -> None:
    x = RNG.standard_normal((6, 600)).astype(np.float32)
    x[0, 5], x[1, 7], x[2, :], x[3, ::2], x[4, 3] = np.nan, np.inf, -np.inf, -np.inf, 3e38
    check(softmax, x)
    check(layer_norm, x)


def test_few_rows_and_small_arrays_are_not_prefetched() -> None:
    _, program = lowered(traced(softmax, (values((100, 1024), "float32"),), False))
    assert not [s for kernel in program.kernels() for s in walk(kernel.body) if isinstance(s, Prefetch)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (131, 77), (17, 400), (2, 33, 70), (0, 40)])
def test_transposes(shape: tuple[int, ...], dtype: str, symbolic: bool) -> None:
    check(lambda x: np.swapaxes(x, -1, -2).copy(), values(shape, dtype), symbolic=symbolic)


def test_transposes_within_chains() -> None:
    x, y = values((130, 70), "float32"), values((70, 130), "float32")
    check(lambda x, y: x.T * y + x.T, x, y)
    check(lambda x, y: np.exp(x.T * 0.01) - y, x, y)
    check(lambda x, y: (x.T + y, x.T - y), x, y)
    check(lambda x, y: x.T.astype(np.float64) * y, x, y)
    check(lambda x, y: (y < x.T), x, y)


def turned(program: Program) -> list[Alloc]:
    return [s for kernel in program.kernels() for s in walk(kernel.body) if isinstance(s, Alloc) and s.buffer.name.startswith("turned")]


@pytest.mark.parametrize("shape, dtype, perm", [((130, 200), "float64", (1, 0)), ((64, 64), "float32", (1, 0)), ((1100, 65), "int8", (1, 0)),
                                                ((3, 129, 66), "float64", (0, 2, 1)), ((300, 4, 20), "float32", (1, 2, 0))])
def test_transposes_go_by_blocks(shape: tuple[int, ...], dtype: str, perm: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole and of partial blocks in both directions, through memory of the thread, from which long pieces are streamed."""
    monkeypatch.setattr(crossings, "MOST_SIDE", 64)
    program = check(lambda x: x.transpose(perm).copy(), values(shape, dtype))
    assert len(turned(program)) == 1 and streams(program)


def test_what_is_turned_and_what_lies_in_order_meet() -> None:
    x, y, z = values((130, 70), "float32"), values((70, 130), "float32"), values((130, 70), "float64")
    assert len(turned(check(lambda x, y, z: (x.T * y + z.T, x.T - y), x, y, z))) == 2
    assert len(turned(check(lambda x, y: x.T * y + x.T, x, y))) == 1


def test_short_sides_and_near_arrays_are_not_turned_by_blocks() -> None:
    assert not turned(check(lambda x: x.T.copy(), values((63, 300), "float32")))
    assert not turned(check(lambda x: x.T.copy(), values((300, 63), "float32")))
    assert not turned(check(lambda x: x.T.copy(), values((70, 90), "float32"), symbolic=True))
    assert not turned(lowered(traced(lambda x: x.T.copy(), (values((70, 90), "float32"),), False), last_cache=1 << 20)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 37, 3, 64), (37, 5, 16), (1, 8, 2, 33), (3, 5, 2, 3, 16)])
def test_axes_in_the_middle_go_by_bands(shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is short and read out of order: the rest of each page that is read is read in the same band."""
    monkeypatch.setattr(elements, "NEAR_BAND_BYTES", 0)
    program = check(lambda x: np.swapaxes(x, -2, -3).copy(), values(shape, dtype))
    large = values(shape, dtype).nbytes >= TINY
    assert bool([s for kernel in program.kernels() for s in walk(kernel.body) if isinstance(s, Prefetch)]) == large


def test_bands_within_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "NEAR_BAND_BYTES", 0)
    x, y = values((2, 20, 3, 32), "float32"), values((2, 3, 20, 32), "float32")
    check(lambda x, y: x.transpose(0, 2, 1, 3) * y + 1, x, y)
    check(lambda x, y: (x.transpose(0, 2, 1, 3) + y, y - x.transpose(0, 2, 1, 3)), x, y)


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4", "cpu:cortex-a72"])
def test_a_fence_follows_what_is_streamed(target: str) -> None:
    graph = traced(lambda x: x + 1, (values((5000,), "float32"),), False)
    backend, program = lowered(graph, target)
    text = emit_program(program, backend.target, ModelFacts())
    streaming = target.startswith("cpu:x86")
    assert ("!nontemporal" in text) == streaming
    if streaming:
        lines = [line.strip() for line in text.splitlines()]
        assert lines[lines.index("call void @llvm.x86.sse.sfence()") + 1] == "ret i32 0"


@pytest.mark.parametrize("target, unpacks, gathers", [("cpu:x86-64", "unpcklps", "movss"), ("cpu:x86-64-v3", "vunpcklps", "vinsertps"), ("cpu:x86-64-v4", "vunpcklps", "vinsertps")])
def test_tiles_are_transposed_without_gathers(target: str, unpacks: str, gathers: str) -> None:
    backend, program = lowered(traced(lambda x: x.T.copy(), (values((64, 128), "float32"),), False), target)
    assembly = backend.compile(program).assembly
    assert unpacks in assembly and gathers not in assembly


STREAM = """\
kernel @filled[n](%x: in f32[n], %y: out f32[n]) {
  for %i in 0..n vector(8) {
    stream %y[i] = load %x[i]
  }
}
"""


def test_a_stream_is_text() -> None:
    kernel = parse_kernel(STREAM)
    verify_kernel(kernel)
    assert format_kernel(kernel) == STREAM
    assert [s.stream for s in walk(kernel.body) if isinstance(s, Store)] == [True]


@pytest.mark.parametrize(("before", "after", "message"), [
    ("%y[i] =", "%y[i] add=", "stream to %y, expected a plain store to a parameter"),
    ("stream %y[i]", "alloc %r: f32[1] local\n    stream %r[0]", "stream to %r, expected a plain store to a parameter")])
def test_only_plain_stores_to_parameters_are_streamed(before: str, after: str, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify_kernel(parse_kernel(STREAM.replace(before, after)))
    with pytest.raises(ParseError, match="a buffer such as %x"):
        parse_kernel(STREAM.replace("stream %y[i]", "stream y[i]"))


def test_what_is_read_is_not_streamed_in_place() -> None:
    """A kernel that stores over its operand keeps the hints, which then change nothing: the lines are in the caches already."""
    program = check(lambda x: np.cumsum(np.cumsum(x, axis=0) * 2 + 1, axis=0), RNG.standard_normal((6, 300)).astype(np.float32))
    within = [k for k in program.kernels() if any(b.space == "inout" for b in k.buffers)]
    assert any(isinstance(s, Store) and s.stream for k in within for s in walk(k.body))
