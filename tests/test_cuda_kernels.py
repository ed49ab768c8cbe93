"""CUDA source against the interpreter of graphs, without a GPU: kernels run in the emulation, which watches every access.

All programs of a test are compiled together. Scalar functions of a dtype are one kernel.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tests.cuda_programs import EmulatedPrograms
from tests.emulated import emulate, emulated_driver
from tests.lowering_checks import assert_results, first_samples, one, sample_case, values
from tests.lowering_checks import lowered_for_gpu as lowered
from tilewright import library as lib
from tilewright.backends.cuda.emit import emit_module
from tilewright.backends.cuda.emit_kernel import emit_kernel
from tilewright.gpu.compiling import standalone_source
from tilewright.ir.dims import symbol
from tilewright.ir.errors import CompileError, IndexFailure
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.ops.compute import Bitcast, Cast, Conv, Elementwise
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.scalar import SCALARS, result_dtype
from tilewright.ir.ops.shape import Pad, Take, Transpose
from tilewright.ir.types import ARRAY_DTYPES, BF16, BOOL, F16, F32, F64, I32, I64, U32, U64, DType
from tilewright.options import Environment, Options
from tilewright.runtime.cache import Cache, sources_changed

QUIET = Environment(debug=0, dump=None, verify=0, backend="llvm", cache_directory=None)
TOLERANCES = {F16: 4e-3, BF16: 2e-2, F32: 4e-6, F64: 1e-12}
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, 1e-40, 1e30, -1e30, np.inf, -np.inf, np.nan, 88.0, -104.0, 7.0)


def agree(graphs: Sequence[Graph], inputs: Sequence[Sequence[np.ndarray]], tolerance: float | None = None) -> None:
    """Each program gives what its graph means."""
    made = EmulatedPrograms([lowered(graph) for graph in graphs])
    for number, (graph, given) in enumerate(zip(graphs, inputs, strict=True)):
        assert_results(made.run(number, given), evaluate_graph(graph, list(given)), tolerance, str(graph))


def test_samples_of_every_op() -> None:
    rng = np.random.default_rng(1)
    cases = [sample_case(sample, rng) for _, sample in first_samples(2) if not isinstance(sample.op, Elementwise)]
    agree([graph for graph, _ in cases], [inputs for _, inputs in cases])


def numbers(dtype: DType, count: int, rng: np.random.Generator) -> np.ndarray:
    """Special ones among others."""
    if dtype == BOOL:
        return rng.integers(0, 2, count).astype(bool)
    if dtype.is_float:
        made = rng.normal(0, 3, count)
        made[:len(SPECIAL)] = rng.permutation(SPECIAL)
        with np.errstate(all="ignore"):
            return made.astype(dtype.numpy)
    info = np.iinfo(dtype.numpy)
    made = rng.integers(info.min, info.max, count, dtype=dtype.numpy, endpoint=True)
    made[::3] = rng.integers(max(info.min, -9), 10, len(made[::3]), dtype=dtype.numpy)
    made[:4] = info.min, info.max, 0, 1
    return made


def functions_of(dtype: DType) -> Graph:
    """Every scalar function of the dtype, and its casts and bitcasts, of three inputs and a condition."""
    b = Builder()
    xs = [b.add(Param(f"x{i}", dtype, (64,))) for i in range(3)]
    condition = b.add(Param("c", BOOL, (64,)))
    results: list[Node] = []
    for name, row in SCALARS.items():
        operands = [condition, *xs[:2]] if name == "select" else xs[:row.arity]
        try:
            result_dtype(name, [x.dtype for x in operands])
        except CompileError:
            continue
        results.append(b.add(Elementwise(name), *operands))
    for other in ARRAY_DTYPES:
        if other != dtype:
            results.append(b.add(Cast(other), xs[0]))
        if other != dtype and other.bits == dtype.bits and BOOL not in (dtype, other):
            results.append(b.add(Bitcast(other), xs[0]))
    return Graph(f"functions_of_{dtype}", [*xs, condition], results)


def test_every_scalar_function() -> None:
    rng = np.random.default_rng(2)
    graphs = [functions_of(dtype) for dtype in ARRAY_DTYPES]
    made = EmulatedPrograms([lowered(graph) for graph in graphs])
    for number, (graph, dtype) in enumerate(zip(graphs, ARRAY_DTYPES)):
        inputs = [*(numbers(dtype, 64, rng) for _ in range(3)), rng.integers(0, 2, 64).astype(bool)]
        with np.errstate(all="ignore"):
            pairs = zip(graph.results, evaluate_graph(graph, inputs), made.run(number, inputs), strict=True)
        for node, expected, found in pairs:
            label = f"{node.op.spelling} of {dtype}"
            digits = TOLERANCES.get(node.dtype)
            if digits is None:
                np.testing.assert_array_equal(found, expected, err_msg=label)
            elif isinstance(node.op, Bitcast):  # a NaN may come out as another one
                same = found.view(np.uint8).reshape(64, -1) == expected.view(np.uint8).reshape(64, -1)
                with np.errstate(all="ignore"):
                    both = np.isnan(found.astype(np.float64)) & np.isnan(expected.astype(np.float64))
                assert (same.all(axis=1) | both).all(), label
            else:
                np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=digits, atol=1e-44, err_msg=label)


def matmul(rows, depth, columns, batch=(), dtype: DType = F32) -> Graph:
    b = Builder()
    x, w = b.add(Param("x", dtype, (*batch, rows, depth))), b.add(Param("w", dtype, (*batch, depth, columns)))
    bias = lib.constant(b, 1.5, dtype)
    return Graph("matmul", [x, w], [lib.apply(b, "max", lib.apply(b, "add", lib.matmul(b, x, w), bias), lib.constant(b, 0.0, dtype))])


def convolution(shape, kernel, pad=0, groups=1, out=8, around=0) -> Graph:
    b = Builder()
    x, w = b.add(Param("x", F32, shape)), b.add(Param("w", F32, (out, shape[1] // groups, kernel, kernel)))
    made = b.add(Conv((1, 1), ((pad, pad), (pad, pad)), (1, 1), (1, 1), groups), x, w)
    made = lib.apply(b, "max", made, lib.constant(b, 0.0, F32))
    if around:
        made = b.add(Pad((0, 0, around, around), (0, 0, around, around)), made, lib.constant(b, 0.25, F32))
    return Graph("convolution", [x, w], [made])


def inputs_of(graph: Graph, sizes: dict[str, int], rng: np.random.Generator) -> list[np.ndarray]:
    return [values(p.dtype, tuple(n if isinstance(n, int) else sizes[str(n)] for n in p.shape), rng) for p in graph.params]


def test_contractions() -> None:
    cases = [(matmul(5, 7, 9), {}), (matmul(33, 40, 70), {}), (matmul(4, 16, 64, (3,)), {}), (matmul(6, 5, 3, (), F64), {}),
             (matmul(symbol("M"), 33, 20), {"M": 21}), (matmul(9, symbol("K"), 17), {"K": 18}), (matmul(2, symbol("K"), 17), {"K": 0}),
             (matmul(3, 8, symbol("N")), {"N": 70}), (convolution((2, 3, 7, 8), 3, 1), {}), (convolution((1, 8, 5, 5), 3, 1, 2), {}),
             (convolution((1, 4, 5, 5), 1, 0, 1, 20, 1), {})]
    rng = np.random.default_rng(3)
    agree([graph for graph, _ in cases], [inputs_of(graph, sizes, rng) for graph, sizes in cases])


def test_rows_and_elements() -> None:
    rows, length = symbol("R"), symbol("L")

    def norm(b: Builder, x: Node) -> Node:
        scale = lib.constant(b, 1.5, F32)
        return lib.layer_norm(b, x, scale, scale, (len(x.shape) - 1,), 1e-5)

    def softmax(b: Builder, x: Node) -> Node:
        return lib.softmax(b, x, len(x.shape) - 1)

    shapes = [(3, 5), (5, 20), (2, 3, 100), (2, 2500), (rows, length), (1, 1)]
    graphs = [one(shape, build) for shape in shapes for build in (softmax, norm)]
    graphs += [one((3, 70), lambda b, x: lib.reduce(b, kind, x, (1,), keep=False), dtype)
               for kind, dtype in (("sum", F16), ("max", I32), ("min", F64), ("prod", F32))]
    graphs += [one(shape, lambda b, x: lib.apply(b, "neg", b.add(Transpose(order), x)))
               for shape, order in (((40, 70), (1, 0)), ((3, 33, 20), (0, 2, 1)), ((rows, length), (1, 0)), ((20, 3, 40), (2, 1, 0)))]
    graphs += [one((2, 32768), lambda b, x: lib.apply(b, "neg", lib.reduce(b, "max", x, (1,), keep=False))),  # in parts
               one((32768,), lambda b, x: lib.reduce(b, "sum", x, (0,), keep=True), F16)]
    graphs += [one((6, 4, 5), lambda b, x: b.add(Transpose((2, 0, 1)), x)), one((rows, 3), lambda b, x: lib.apply(b, "exp", x))]
    rng = np.random.default_rng(4)
    agree(graphs, [inputs_of(graph, {"R": 9, "L": 45}, rng) for graph in graphs])


def test_nan_and_infinity_in_rows() -> None:
    graph = one((4, 40), lambda b, x: (lib.reduce(b, "max", x, (1,), keep=False), lib.reduce(b, "sum", x, (1,), keep=False)))
    x = np.ones((4, 40), np.float32)
    x[0, 33], x[1, 2], x[2, 39] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        agree([graph], [[x]])


def test_empty_sizes() -> None:
    graph = one((symbol("R"), symbol("L")), lambda b, x: (lib.softmax(b, x, 1), lib.reduce(b, "sum", x, (1,), keep=False)))
    made = EmulatedPrograms([lowered(graph)])
    for shape in ((0, 3), (3, 0), (0, 0), (1, 1)):
        x = np.ones(shape, np.float32)
        for expected, found in zip(evaluate_graph(graph, [x]), made.run(0, [x])):
            np.testing.assert_array_equal(found, expected)


def test_an_index_out_of_range_is_reported() -> None:
    b = Builder()
    x, at = b.add(Param("x", F32, (4,))), b.add(Param("at", I64, (3,)))
    made = EmulatedPrograms([lowered(Graph("take", [x, at], [b.add(Take(0), x, at)]))])
    data = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(made.run(0, [data, np.array([3, 0, 1])])[0], [3, 0, 1])
    with pytest.raises(IndexFailure, match="found 4, expected"):
        made.run(0, [data, np.array([3, 4, 1])])


@pytest.mark.parametrize("dtype, wrong", [(I64, 2**32), (I64, -2**32), (I64, 2**53 + 1), (U64, 2**63), (U64, 2**32 + 3), (U32, 2**32 - 1)])
def test_an_index_beyond_an_int_is_out_of_range(dtype: DType, wrong: int) -> None:
    """It was an `int` before it was checked: multiples of 2**32 were 0."""
    b = Builder()
    x, at = b.add(Param("x", F32, (4,))), b.add(Param("at", dtype, (3,)))
    made = EmulatedPrograms([lowered(Graph("take", [x, at], [b.add(Take(0), x, at)]))])
    data = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(made.run(0, [data, np.array([3, 0, 1], dtype.numpy)])[0], [3, 0, 1])
    with pytest.raises(IndexFailure, match=f"found ({wrong}|{wrong - 2**64}), expected"):  # as bits, which the runtime reads as they are
        made.run(0, [data, np.array([3, wrong, 1], dtype.numpy)])


def test_a_barrier_follows_each_wait_for_what_threads_read() -> None:
    """Of two groups of copies the first wait leaves one under way; threads read, of each, what another one has copied."""
    text = """kernel @waits(%x: in f32[256], %y: out f32[32], %z: out f32[32]) {
  for %b in 0..1 block {
    alloc %first: f32[128] shared
    alloc %second: f32[128] shared
    for %t in 0..32 thread {
      copy_async %first[4*t] = %x[4*t], 4
    }
    commit
    for %t1 in 0..32 thread {
      copy_async %second[4*t1] = %x[4*t1 + 128], 4
    }
    commit
    wait 1
    for %u in 0..32 thread {
      %y[u] = load %first[-u + 31]
    }
    wait 0
    for %u1 in 0..32 thread {
      %z[u1] = load %second[-u1 + 31]
    }
  }
}
"""
    _, source = emit_kernel(parse_kernel(text), "waits", {})
    assert source.count("__syncthreads();") == 2
    x, y, z = np.arange(256, dtype=np.float32), np.zeros(32, np.float32), np.zeros(32, np.float32)
    emulate('#include "device.h"\n' + source).launch("waits", 1, 32, [x, y, z])
    np.testing.assert_array_equal([y, z], [range(31, -1, -1), range(159, 127, -1)])


def test_nothing_is_declared_that_its_block_does_not_read() -> None:
    """A loop that fills a fragment needs no place in it; the loop that stores it does."""
    source = emit_module(lowered(matmul(64, 64, 64, (), F16)), "sm_80").source
    lines = source[source.index("extern"):].splitlines()
    places = 0
    for number, line in enumerate(lines):
        if declared := re.match(r"( *)const \w+ (\w+) = ", line):
            rest = itertools.takewhile(lambda x, depth=declared[1]: x.startswith(depth), lines[number + 1:])
            assert any(re.search(rf"\b{declared[2]}\b", one) for one in rest), line
            places += declared[2].endswith("_row")
    assert places == 1 and "] = 0.0f;" in source


def test_a_matrix_product_reads_well() -> None:
    """Elements of fragments have a row and a column, no number that is divided again; blocks hold more than a block; values are rounded once."""
    source = emit_module(lowered(matmul(64, 64, 64, (), F16)), "sm_80").source
    epilogue = source[source.rindex("#pragma unroll\n    for"):]
    assert "const int e1_row = v2 / 16 * 16 + v2 / 2 % 2 * 8 + threadIdx.x % 32 / 4;" in epilogue and " e1 " not in epilogue
    assert not re.search(r"\{\n *\{\n(?:(?!\n *\}\n *\}).)*\n *\}\n *\}", epilogue, re.S) and "tw_to_float16(tw_round" not in source


def test_source_reads_well() -> None:
    """The text of a kernel, so that a change of it is seen."""
    source = emit_module(lowered(one((5, 100), lambda b, x: lib.reduce(b, "sum", x, (1,), keep=False))), "sm_80").source
    assert source.endswith('''\
extern "C" __global__ void __launch_bounds__(256) kernel_reduce(const float *__restrict__ x0, float *__restrict__ y0) {
  float sum;
  {
    const int thread = threadIdx.x;
    sum = 0.0f;
    if (thread / 32 < 5) {
      const int i0 = thread / 32;
      for (int v_step = 0; v_step < 2; ++v_step) {
        if (v_step * 32 + thread % 32 < 50) {
          __align__(16) float x0_1[2];
          tw_load_vector(x0_1, &x0[i0 * 100 + v_step * 64 + thread % 32 * 2]);
          #pragma unroll
          for (int k0 = 0; k0 < 2; ++k0) {
            sum += x0_1[k0];
          }
        }
      }
    }
  }
  sum = tw_warp_add(sum, 32);
  {
    const int thread = threadIdx.x;
    if (thread / 32 < 5) {
      const int i0 = thread / 32;
      const float v = sum;
      if (thread % 32 == 0) {
        y0[i0] = v;
      }
    }
  }
}
'''), source


def test_a_standalone_source_is_whole() -> None:
    graph = one((symbol("R"), 20), lambda b, x: lib.softmax(b, x, 1))
    made = standalone_source(graph, "cuda:sm_90", Options(), QUIET, "model.data")
    assert "#include \"device" not in made.source and 'read_file("model.data"' in made.source
    assert "kernel_reduce_div_exp_mul<<<1, 256, 0>>>(" in made.source
    x = np.frombuffer(made.data, np.float32, 60).reshape(3, 20)
    expected = np.frombuffer(made.data, np.float32, 60, 256)
    np.testing.assert_allclose(evaluate_graph(graph, [x])[0].reshape(-1), expected)


def test_a_target_that_is_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a function to a call, through the driver that the emulation stands behind."""
    emulated_driver()
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path))

    def layer(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return np.maximum(x @ w, 0.5)

    compiled = tw.compile(layer, target="cuda:emulated")
    rng = np.random.default_rng(0)
    for rows in (3, 5):
        x, w = rng.normal(size=(rows, 8)).astype(np.float32), rng.normal(size=(8, 4)).astype(np.float32)
        np.testing.assert_allclose(compiled(x, w), layer(x, w), rtol=1e-5)
    executable, = compiled.executables
    assert "__global__" in executable.source() and not executable.metadata["cached"]
    again = tw.compile(layer, target="cuda:emulated")
    np.testing.assert_allclose(again(x, w), layer(x, w), rtol=1e-5)
    assert next(iter(again.executables)).metadata["cached"] or sources_changed()
    assert "emulation" in {entry.name for entry in Cache(tmp_path).entries()} or sources_changed()


def test_an_architecture_that_nobody_knows() -> None:
    with pytest.raises(CompileError, match="unknown CUDA architecture 'sm_7'"):
        tw.compile(one((3,), lambda b, x: lib.apply(b, "exp", x)), target="cuda:sm_7")
