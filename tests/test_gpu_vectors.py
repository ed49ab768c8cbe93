"""Neighbouring elements that a GPU's thread loads and stores together, against the interpreter of graphs: in the loop interpreter, and as
CUDA source in the emulation, which faults where such an access is not aligned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import lowered_for_gpu, one, values
from tilewright import library as lib
from tilewright.ir.dims import symbol
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import Alloc, For, Load, MatmulTile, expression_nodes, expressions_of, walk
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.compute import Cast, Conv, ReduceWindow
from tilewright.ir.ops.control import Param, Scan
from tilewright.ir.ops.shape import Concat, Reshape, Slice, Transpose
from tilewright.ir.program import Program
from tilewright.ir.types import BF16, F16, F32, F64, I8

pytestmark = needs_compiler
ROWS, BATCH = symbol("R"), symbol("B")


# one multiprocessor, so that small tensors have elements enough for all threads
lowered = partial(lowered_for_gpu, multiprocessors=1)


def lanes(program: Program) -> list[int]:
    return [s.lanes for kernel in program.kernels() for s in walk(kernel.body) if isinstance(s, For) and s.kind == "vector"]


def check(cases: list[tuple[Graph, dict[str, int], list[int]]]) -> None:
    """Each graph's program gives what the graph means, and has vector loops of so many lanes."""
    programs = [lowered(graph) for graph, _, _ in cases]
    emulated = EmulatedPrograms(programs)
    rng = np.random.default_rng(1)
    for number, (graph, sizes, expected_lanes) in enumerate(cases):
        assert lanes(programs[number]) == expected_lanes, graph
        given = [values(p.dtype, tuple(n if isinstance(n, int) else sizes[str(n)] for n in p.shape), rng) for p in graph.params]
        for found in (run_program(programs[number], given), emulated.run(number, given)):
            for x, y in zip(evaluate_graph(graph, given), found, strict=True):
                digits = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-5}.get(x.dtype, 1e-2)
                np.testing.assert_allclose(y.astype(np.float64), x.astype(np.float64), rtol=digits, atol=digits)


def plain(b: Builder, x: Node) -> Node:
    return lib.apply(b, "max", lib.apply(b, "add", x, x), lib.constant(b, 1, x.dtype))


def along(count: int) -> Callable[[Builder, Node], Node]:
    """Adds a row to each row."""
    return lambda b, x: lib.apply(b, "add", x, lib.constant(b, np.arange(count).astype(x.dtype.numpy)))


def test_elements() -> None:
    check([
        (one((64, 40), plain, F16), {}, [8]), (one((64, 40), plain, F32), {}, [4]), (one((64, 40), plain, F64), {}, [2]),
        (one((64, 40), plain, I8), {}, [8]), (one((64, 44), plain, BF16), {}, [8]),
        (one((64, 40), lambda b, x: b.add(Cast(F32), x), F16), {}, [8]),
        (one((64, 40), lambda b, x: lib.apply(b, "lt", x, lib.constant(b, 0.0, F32)), F32), {}, [8]),
        # rows that vectors divide, and such that a vector may lie in two of, whose elements come one by one
        (one((ROWS, 40), along(40), F16), {"R": 33}, [8]), (one((64, 35), along(35), F16), {}, [8]), (one((65, 34), along(34), F16), {}, [2]),
        # a number of elements that is not known, and few of them
        (one((ROWS,), plain), {"R": 50}, []), (one((8, 8), plain), {}, []),
    ])


def test_elements_from_elsewhere() -> None:
    """Parts of rows, rows of several arrays in one, and what is read across memory."""
    check([
        (one((64, 48), lambda b, x: plain(b, b.add(Slice((0, 8), (64, 40), (1, 1)), x)), F16), {}, [8]),
        (one((64, 48), lambda b, x: plain(b, b.add(Slice((0, 3), (64, 40), (1, 1)), x)), F16), {}, [8]),
        (one((64, 16), lambda b, x: b.add(Concat(1), plain(b, x), x), F32), {}, [4, 4]),
        (one((8, 12, 16), lambda b, x: plain(b, b.add(Transpose((1, 0, 2)), x)), F32), {}, [4]),
        (one((64, 40), lambda b, x: b.add(Reshape((40, 64)), plain(b, b.add(Transpose((1, 0)), x))), F32), {}, []),
    ])


def test_windows() -> None:
    """Of channels that lie side by side: a vector of sums a thread. What windows along memory read overlaps, and stays an element a thread."""
    def depthwise(b: Builder, x: Node) -> Node:
        channels = x.shape[-1]
        assert isinstance(channels, int)
        w = lib.constant(b, np.arange(9 * channels).reshape(3, 3, 1, channels) % 5 - 2).op.value.array.astype(x.dtype.numpy)
        made = b.add(Conv((2, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), channels, True), x, lib.constant(b, w))
        return lib.apply(b, "max", made, lib.constant(b, 0, x.dtype))

    def pooled(window: tuple[int, ...]) -> Callable[[Builder, Node], Node]:
        return lambda b, x: b.add(ReduceWindow("max", window, window, ((0, 0),) * 4, (1,) * 4), x)

    check([
        # padded along the last axis before, then three loops: zeros, products, and what follows
        (one((2, 9, 8, 40), depthwise, F16), {}, [4, 4, 8, 8, 8, 8]), (one((BATCH, 9, 8, 12), depthwise, F32), {"B": 2}, [4, 4, 4, 4, 4, 4]),
        (one((2, 9, 8, 20), pooled((1, 2, 2, 1)), BF16), {}, [4, 4, 4]), (one((2, 9, 8, 34), pooled((1, 1, 1, 2)), F32), {}, []),
    ])


def test_rows() -> None:
    def softmax(b: Builder, x: Node) -> Node:
        return lib.softmax(b, x, len(x.shape) - 1)

    def norm(b: Builder, x: Node) -> Node:
        one_and_a_half = lib.constant(b, 1.5, F32)
        return lib.layer_norm(b, x, one_and_a_half, one_and_a_half, (1,), 1e-5)

    check([
        (one((ROWS, 16), softmax, F16), {"R": 5}, [2, 2, 2]), (one((3, 72), softmax), {}, [2, 2, 2]),
        (one((ROWS, 264), softmax, F16), {"R": 3}, [8, 8, 8]), (one((3, 2060), softmax), {}, [4, 4, 4]),
        (one((ROWS, 136), norm), {"R": 9}, [4, 4, 4]), (one((3, 131), softmax), {}, []), (one((ROWS, BATCH), softmax), {"R": 3, "B": 64}, []),
    ])


def rounds(width: int) -> Graph:
    """Adds the rows of x to a state, one after the other, and keeps each sum."""
    inner = Builder()
    state, row = inner.add(Param("state", F32, (width,))), inner.add(Param("row", F32, (width,)))
    total = lib.apply(inner, "add", state, row)
    body = Graph("body", [state, row], [total, lib.apply(inner, "mul", total, row)])
    return one((3, width), lambda b, x: tuple(lib.results_of(b, b.add(Scan(body, 1, 1, 3), lib.full(b, 0, F32, (width,)), x))))


def test_rows_of_a_scan_begin_where_they_lie() -> None:
    """Vectors are for places that are multiples of 16 bytes in every round alone."""
    check([(rounds(1032), {}, [4, 4, 4]), (rounds(1030), {}, [2, 2])])


def test_results_of_products_go_in_pairs() -> None:
    """Where rows have an even number of columns; what is read with them may lie side by side too, or not."""
    def product(columns: int) -> Graph:
        b = Builder()
        x, w, row, column = (b.add(Param(name, F16, shape)) for name, shape in zip("xwrc", ((70, 40), (40, columns), (columns,), (70, 1))))
        return Graph("product", [x, w, row, column], [lib.apply(b, "mul", lib.apply(b, "add", lib.matmul(b, x, w), row), column)])

    check([(product(70), {}, [8, 2]), (product(71), {}, [8])])


def test_pairs_are_for_parameters_that_begin_at_multiples_of_16_bytes() -> None:
    """The rows of a scan that are added to products begin anywhere."""
    b = Builder()
    state, row, w = (b.add(Param(name, F16, shape)) for name, shape in (("state", (8, 64)), ("row", (71,)), ("w", (64, 70))))
    added = lib.apply(b, "add", lib.matmul(b, state, w), b.add(Slice((0,), (70,), (1,)), row))
    body = Graph("body", [state, row, w], [lib.apply(b, "add", state, state), added])
    b = Builder()
    params = [b.add(Param(name, F16, shape)) for name, shape in (("start", (8, 64)), ("rows", (3, 71)), ("w", (64, 70)))]
    graph = Graph("rounds", params, lib.results_of(b, b.add(Scan(body, 1, 1, 3), *params)))
    program = lowered(graph)
    kernel, = (k for k in program.kernels() if any(isinstance(s, MatmulTile) for s in walk(k.body)))
    assert not any(isinstance(s, For) and s.kind == "vector" for s in walk(kernel.body))
    assert any(isinstance(s, For) and s.symbol.name == "pair" and s.kind == "unrolled" for s in walk(kernel.body))
    rng = np.random.default_rng(4)
    given = [rng.integers(-2, 3, p.shape).astype(np.float16) for p in params]
    for found in (run_program(program, given), EmulatedPrograms([program]).run(0, given)):
        for x, y in zip(evaluate_graph(graph, given), found, strict=True):
            np.testing.assert_array_equal(y, x)


def test_rows_are_read_once() -> None:
    """What several loops along a row read stays in registers, one element or several of a thread, unless there are too many or any number."""
    def norm(b: Builder, x: Node) -> Node:
        return lib.layer_norm(b, x, lib.constant(b, 1.5, x.dtype), lib.constant(b, 0.5, x.dtype), (1,), 1e-5)

    def of_sum(b: Builder, x: Node) -> Node:
        return lib.softmax(b, lib.apply(b, "add", x, lib.apply(b, "mul", x, x)), 1)

    cases = [(one((ROWS, 100), lambda b, x: lib.softmax(b, x, 1)), 2, 1), (one((3, 4096), norm, F16), 8, 1), (one((5, 33), of_sum), 1, 1),
             (one((2, 256 * 36), lambda b, x: lib.softmax(b, x, 1)), 4, 3), (one((3, symbol("N", 1)), norm), 0, 0)]
    programs = [lowered(graph) for graph, _, _ in cases]
    emulated, rng = EmulatedPrograms(programs), np.random.default_rng(2)
    for number, (graph, count, times) in enumerate(cases):
        kernel, = programs[number].kernels()
        kept = [s.buffer for s in walk(kernel.body) if isinstance(s, Alloc) and s.buffer.name.startswith("kept")]
        loads = [n for s in walk(kernel.body) for root in expressions_of(s) for n in expression_nodes(root)
                 if isinstance(n.op, Load) and n.op.buffer == "x0"]
        assert bool(kept) == (times == 1) and (times == 0 or len(loads) == times)
        assert count in lanes(programs[number]) or count < 2
        shape = tuple(n if isinstance(n, int) else 45 for n in graph.params[0].shape)
        given = [rng.standard_normal(shape).astype(graph.params[0].dtype.numpy)]
        digits = 1e-5 if graph.params[0].dtype == F32 else 1e-2  # sums in float32 in another order; results of up to 8 in float16
        for found in (run_program(programs[number], given), emulated.run(number, given)) if shape[1] < 1000 else (emulated.run(number, given),):
            np.testing.assert_allclose(found[0].astype(np.float64), evaluate_graph(graph, given)[0].astype(np.float64), rtol=digits, atol=digits)
