"""The LLVM backend on kernels written by hand in the loop IR, against NumPy and the scalar functions' own meaning."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.backends.llvm.backend import LlvmBackend
from tilewright.backends.llvm.compile import CompiledObject, compile_program
from tilewright.backends.llvm.emit_model import ModelFacts
from tilewright.backends.llvm.targets import resolve_target
from tilewright.build import build
from tilewright.ir.dims import Dim, DimLike, Symbol, dim_min, symbol
from tilewright.ir.errors import ArgumentError, CompileError, IndexFailure, InternalError, RuntimeFailure, UnsupportedError
from tilewright.ir.graph import Builder, Constant, Graph, Node, Op
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop import (
    Alloc,
    Buffer,
    Check,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Literal,
    Load,
    Local,
    Stmt,
    Store,
    While,
)
from tilewright.ir.ops.compute import Bitcast, Cast, Elementwise, cast_array
from tilewright.ir.ops.control import Param
from tilewright.ir.ops.scalar import SCALARS, evaluate_scalar, result_dtype
from tilewright.ir.ops.table import ALL_OPS
from tilewright.ir.program import Branch, Launch, Loop, Place, Program, Repeat, Step
from tilewright.ir.types import (
    ARRAY_DTYPES,
    BF16,
    BOOL,
    DTYPES,
    F16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    INDEX,
    U8,
    DType,
    TensorType,
)
from tilewright.options import Environment, Options
from tilewright.runtime.executable import Executable

HOST = resolve_target("cpu")
BASELINE = resolve_target("cpu:x86-64")
ERROR_INDEX = -1
QUIET = Environment(debug=0, dump=None, verify=1, backend="", cache_directory=None)


# ---- building kernels and programs ----


def node(op: Op, *inputs: Node) -> Node:
    return Node(op, inputs, op.infer(*[x.type for x in inputs]))


def apply(function: str, *inputs: Node) -> Node:
    return node(Elementwise(function), *inputs)


def load(buffer: str, *index: DimLike, dtype: DType = F32) -> Node:
    return node(Load(buffer, index, dtype))


def number(value: float, dtype: DType = F32) -> Node:
    return node(Literal(value, dtype))


def position(size: DimLike) -> Node:
    return node(IndexValue(size))


def named(size: DimLike) -> Symbol:
    assert isinstance(size, Dim)
    atom = size.terms[0][0][0][0]
    assert isinstance(atom, Symbol)
    return atom


def loop(variable: DimLike, extent: DimLike, kind: str, *body: Stmt, lanes: int = 8) -> For:
    return For(named(variable), extent, kind, body, lanes if kind == "vector" else 0)


def single(kernel: Kernel) -> Program:
    """A program that launches the kernel once on its buffers; inputs and outputs by their access."""
    inputs = [b for b in kernel.buffers if b.space == "in"]
    outputs = [b for b in kernel.buffers if b.space == "out"]
    places = tuple(Place("input", inputs.index(b)) if b.space == "in" else Place("output", outputs.index(b))
                   for b in kernel.buffers)
    sizes = tuple(Dim(((((s, 1),), 1),)) for s in kernel.symbols)
    kinds = [tuple((b.name, TensorType(b.dtype, b.shape)) for b in group) for group in (inputs, outputs)]
    return Program(kernel.name, kinds[0], kinds[1], (), 0, 0, (Launch(kernel, places, sizes),), kernel.symbols)


def kernel(buffers: Sequence[Buffer], symbols: Sequence[DimLike], *body: Stmt, name: str = "k") -> Kernel:
    return Kernel(name, tuple(buffers), tuple(named(s) for s in symbols), body)


def executable(program: Program | Kernel, target: Any = HOST, threads: int = 1) -> Executable:
    program = single(program) if isinstance(program, Kernel) else program
    return Executable.from_object(compile_program(program, target).object_code, threads=threads)


N, M, K = symbol("N"), symbol("M"), symbol("K")
i, j, k = symbol("i"), symbol("j"), symbol("k")
RANDOM = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def vector(name: str, dtype: DType = F32, access: str = "in", size: DimLike = N) -> Buffer:
    return Buffer(name, dtype, (size,), access)


def same(found: np.ndarray, expected: np.ndarray, signs: bool = True, ulps: float = 0) -> None:
    """Equal bits, but for the payload and sign of NaN (and of zeros, without `signs`); or within `ulps`."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if found.dtype.kind in "biu":
        np.testing.assert_array_equal(found, expected)
        return
    with np.errstate(all="ignore"):
        a, b = found.astype(np.float64), expected.astype(np.float64)
    info = np.finfo(np.float64) if found.dtype == np.float64 else np.finfo(np.float32)
    epsilon = {2: 2.0**-10}.get(found.dtype.itemsize, float(info.eps))
    if found.dtype == BF16.numpy:
        epsilon = 2.0**-7
    tiny = {2: 2.0**-24}.get(found.dtype.itemsize, float(info.smallest_subnormal))
    with np.errstate(all="ignore"):
        near = np.abs(a - b) <= ulps * np.maximum(epsilon * np.abs(b), tiny) if ulps else np.zeros(a.shape, bool)
    good = (a == b) | (np.isnan(a) & np.isnan(b)) | near
    if signs:
        good &= np.isnan(b) | (np.signbit(a) == np.signbit(b)) | near
    bad = np.flatnonzero(~good)
    assert not bad.size, f"{bad.size} differ, first at {bad[0]}: {found.flat[bad[0]]!r}, expected {expected.flat[bad[0]]!r}"


# ---- vector loops and their tails ----


def add_kernel(lanes: int = 8) -> Kernel:
    body = loop(i, N, "vector", Store("c", (i,), apply("add", load("a", i), load("b", i))), lanes=lanes)
    return kernel([vector("a"), vector("b"), vector("c", access="out")], [N], body)


@pytest.mark.parametrize("lanes", [1, 4, 8, 12, 16])
def test_elementwise_with_every_tail(lanes: int) -> None:
    run = executable(add_kernel(lanes))
    for size in range(41):
        a, b = floats(size), floats(size)
        np.testing.assert_array_equal(run(a, b), a + b)


@pytest.mark.parametrize("size", [1, 3, 7, 8, 9, 16, 31, 33, 64, 100])
def test_static_extents(size: int) -> None:
    body = loop(i, size, "vector", Store("c", (i,), apply("mul", load("a", i), number(3.0))))
    run = executable(kernel([vector("a", size=size), vector("c", access="out", size=size)], [], body))
    a = floats(size)
    np.testing.assert_array_equal(run(a), a * 3)


@pytest.mark.parametrize("dtype", ARRAY_DTYPES, ids=str)
def test_copy_of_every_dtype(dtype: DType) -> None:
    body = loop(i, N, "vector", Store("c", (i,), load("a", i, dtype=dtype)))
    run = executable(kernel([vector("a", dtype), vector("c", dtype, "out")], [N], body))
    for size in (0, 1, 7, 8, 29):
        a = cast_array(RANDOM.integers(0, 100, size), dtype)
        same(run(a), a)


class Guarded:
    """Memory that ends where a page without access begins."""

    def __init__(self, elements: int, dtype: Any) -> None:
        page = mmap.PAGESIZE
        bytes_needed = elements * np.dtype(dtype).itemsize
        pages = -(-max(bytes_needed, 1) // page)
        self.memory = mmap.mmap(-1, (pages + 1) * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        assert libc.mprotect(base + pages * page, page, 0) == 0
        start = pages * page - bytes_needed
        self.array = np.frombuffer(self.memory, dtype, elements, start)


@pytest.mark.parametrize("dtype", [F32, F64, I32, I8, F16, BOOL], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_nothing_past_the_end_is_touched(dtype: DType, stride: int) -> None:
    body = loop(i, N, "vector", Store("c", (i * stride,), load("a", i * stride, dtype=dtype)))
    run = executable(kernel([vector("a", dtype, size=N * stride), vector("c", dtype, "out", size=N * stride)], [N], body))
    for size in range(1, 20):
        source, target = Guarded(size * stride, dtype.numpy), Guarded(size * stride, dtype.numpy)
        source.array[:] = cast_array(np.arange(size * stride) % 2, dtype)
        run(source.array, out=target.array)
        same(target.array[::stride], source.array[::stride])


def test_outputs_are_written_under_the_mask_only() -> None:
    """The tail of one row must not write into the next."""
    body = loop(i, M, "serial", loop(j, N, "vector", Store("c", (i, j), load("a", i, j))),
                Store("c", (i, 0), number(-1.0)))
    run = executable(kernel([Buffer("a", F32, (M, N), "in"), Buffer("c", F32, (M, N), "out")], [M, N], body))
    a = floats(5, 13)
    expected = a.copy()
    expected[:, 0] = -1
    np.testing.assert_array_equal(run(a), expected)


# ---- scalar functions and casts ----


def special_values(dtype: DType, count: int) -> np.ndarray:
    random = np.random.default_rng(count)
    if dtype.is_bool:
        return random.integers(0, 2, count).astype(bool)
    if dtype.is_float:
        edges = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 3.7, 1e-40, 65504.0, 65519.0, 65520.0,
                 1e30, -1e30, 6e-8, 5.960464e-08, 2**24 + 1.0]
        wide = np.concatenate([edges, random.standard_normal(count) * 10.0 ** random.integers(-4, 4, count)])[:count]
        with np.errstate(all="ignore"):
            return random.permutation(wide).astype(dtype.numpy)
    info = np.iinfo(dtype.numpy)
    edges = [0, 1, 2, 3, 7, info.min, info.max, info.max - 1, info.min + 1, dtype.bits, dtype.bits - 1]
    edges += [-1, -2, -dtype.bits] if dtype.is_signed else []
    small = random.integers(max(info.min, -9), 10, count // 2)
    large = random.integers(info.min, info.max, count, dtype=dtype.numpy)
    return random.permutation(np.concatenate([np.array(edges, dtype.numpy), small.astype(dtype.numpy), large])[:count])


def scalar_program(dtype: DType, functions: Sequence[str], lanes: int, count: int) -> Program:
    """One kernel a function, from three inputs (and one of bool for `select`) to one output each."""
    steps, outputs = [], []
    buffers = [vector("x", dtype, size=count), vector("y", dtype, size=count), vector("z", dtype, size=count),
               vector("m", BOOL, size=count)]
    for number_, name in enumerate(functions):
        arity = SCALARS[name].arity
        operands = [load(b, i, dtype=dtype) for b in "xyz"[:arity]]
        if name == "select":
            operands = [load("m", i, dtype=BOOL), *operands[:2]]
        value = apply(name, *operands)
        out = vector("out", value.dtype, "out", count)
        body = loop(i, count, "vector" if lanes else "serial", Store("out", (i,), value), lanes=lanes)
        places = (*(Place("input", n) for n in range(4)), Place("output", number_))
        steps.append(Launch(kernel([*buffers, out], [], body, name=name), places, ()))
        outputs.append((name, TensorType(value.dtype, (count,))))
    inputs = tuple((b.name, TensorType(b.dtype, b.shape)) for b in buffers)
    return Program("scalars", inputs, tuple(outputs), (), 0, 0, tuple(steps))


def functions_of(dtype: DType) -> list[str]:
    found = []
    for name, row in SCALARS.items():
        try:
            result_dtype(name, [BOOL, dtype, dtype] if name == "select" else [dtype] * row.arity)
        except CompileError:
            continue
        found.append(name)
    return found


EXACT = {"add", "sub", "mul", "div", "max", "min", "fmax", "fmin", "copysign", "neg", "abs", "sign", "sqrt", "floor", "ceil", "trunc",
         "round", "isnan", "isinf", "select", "eq", "ne", "lt", "le", "gt", "ge"}
UNSIGNED_ZERO = {"max", "min", "fmax", "fmin"}


@pytest.mark.slow
@pytest.mark.parametrize("target", [HOST, BASELINE], ids=["host", "baseline"])
@pytest.mark.parametrize("lanes", [0, 8])
@pytest.mark.parametrize("dtype", ARRAY_DTYPES, ids=str)
def test_scalar_functions(dtype: DType, lanes: int, target: Any) -> None:
    count, functions = 301, functions_of(dtype)
    run = executable(scalar_program(dtype, functions, lanes, count), target)
    x, y, z = (np.random.default_rng(seed).permutation(special_values(dtype, count)) for seed in range(3))
    if dtype.is_integer:
        y[: count // 2] = cast_array(np.arange(count // 2) % 70 - 3, dtype)
    m = np.random.default_rng(3).integers(0, 2, count).astype(bool)
    for name, found in zip(functions, run(x, y, z, m)):
        operands = [m, x, y] if name == "select" else [x, y, z][: SCALARS[name].arity]
        expected = evaluate_scalar(name, operands)
        exact = not dtype.is_float or name in EXACT
        try:
            same(found, expected, name not in UNSIGNED_ZERO and exact, 0 if exact else 8)
        except AssertionError as error:
            raise AssertionError(f"{name} on {dtype}: {error}") from None


@pytest.mark.parametrize("target", [HOST, BASELINE], ids=["host", "baseline"])
@pytest.mark.parametrize("lanes", [0, 8, 12])
@pytest.mark.parametrize("source", ARRAY_DTYPES, ids=str)
def test_casts(source: DType, lanes: int, target: Any) -> None:
    count = 203
    steps = []
    for number_, dtype in enumerate(ARRAY_DTYPES):
        value = node(Cast(dtype), load("x", i, dtype=source))
        body = loop(i, count, "vector" if lanes else "serial", Store("out", (i,), value), lanes=lanes)
        cast = kernel([vector("x", source, size=count), vector("out", dtype, "out", count)], [], body, name=f"to_{dtype}")
        steps.append(Launch(cast, (Place("input"), Place("output", number_)), ()))
    program = Program("casts", (("x", TensorType(source, (count,))),),
                      tuple((str(d), TensorType(d, (count,))) for d in ARRAY_DTYPES), (), 0, 0, tuple(steps))
    x = special_values(source, count)
    for dtype, found in zip(ARRAY_DTYPES, executable(program, target)(x)):
        try:
            same(found, cast_array(x, dtype))
        except AssertionError as error:
            raise AssertionError(f"{source} to {dtype}: {error}") from None


@pytest.mark.parametrize("target", [HOST, BASELINE], ids=["host", "baseline"])
def test_float16_conversions_of_every_bit_pattern(target: Any) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    for dtype in (F16, BF16):
        widen = loop(i, 65536, "vector", Store("c", (i,), node(Cast(F32), load("a", i, dtype=dtype))))
        narrow = loop(i, 65536, "vector", Store("c", (i,), node(Cast(dtype), load("a", i))))
        values = bits.view(dtype.numpy)
        buffers = [vector("a", dtype, size=65536), vector("c", F32, "out", 65536)]
        found = executable(kernel(buffers, [], widen), target)(values)
        same(found, values.astype(np.float32))
        # A float32 beside each, at the middle between two, and just above and below that.
        wide = values.astype(np.float32)
        back = executable(kernel([vector("a", F32, size=65536), vector("c", dtype, "out", 65536)], [], narrow), target)
        with np.errstate(all="ignore"):
            for shift in (0, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001):
                nudged = (wide.view(np.uint32) + np.uint32(shift)).view(np.float32)
                same(back(nudged), nudged.astype(dtype.numpy))


def test_float64_to_float16_rounds_once() -> None:
    x = np.array([1 + 2**-11 + 2**-30, 1 + 2**-11 - 2**-30, 1 + 2**-11, 65519.999999, 65520.0, 2.0**-25 * (1 + 2**-30), 1e-320, -1e300])
    body = loop(i, N, "vector", Store("c", (i,), node(Cast(F16), load("a", i, dtype=F64))))
    with np.errstate(all="ignore"):
        same(executable(kernel([vector("a", F64), vector("c", F16, "out")], [N], body))(x), x.astype(np.float16))


def test_bitcasts() -> None:
    body = loop(i, N, "vector", Store("c", (i,), node(Bitcast(I32), load("a", i))))
    run = executable(kernel([vector("a"), vector("c", I32, "out")], [N], body))
    a = special_values(F32, 100)
    np.testing.assert_array_equal(run(a), a.view(np.int32))
    body = loop(i, N, "vector", Store("c", (i,), node(Bitcast(DTYPES["u16"]), load("a", i, dtype=BF16))))
    run = executable(kernel([vector("a", BF16), vector("c", DTYPES["u16"], "out")], [N], body))
    a = np.arange(65536, dtype=np.uint16).view(BF16.numpy)
    np.testing.assert_array_equal(run(a), a.view(np.uint16))


# ---- reductions ----


@pytest.mark.parametrize("combine", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("dtype", [F32, F64, I32, I64, U8, BF16], ids=str)
def test_reduction_of_rows(combine: str, dtype: DType) -> None:
    start = {"add": 0, "mul": 1, "max": dtype.lowest, "min": dtype.highest}[combine]
    row = (Store("acc", (0,), number(start, dtype)),
           loop(j, N, "vector", Store("acc", (0,), load("a", i, j, dtype=dtype), combine)),
           Store("c", (i,), load("acc", 0, dtype=dtype)))
    body = loop(i, M, "parallel", Alloc(Buffer("acc", dtype, (1,), "register")), *row)
    run = executable(kernel([Buffer("a", dtype, (M, N), "in"), vector("c", dtype, "out", M)], [M, N], body), threads=2)
    for size in (0, 1, 5, 8, 31, 32, 33, 100, 257):
        a = cast_array(RANDOM.uniform(0.9, 1.1, (3, size)) if combine == "mul" else RANDOM.integers(-50, 50, (3, size)), dtype)
        numpy = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[combine]
        if dtype == BF16 and combine in ("add", "mul"):
            continue
        expected = numpy.reduce(a, axis=1, initial=dtype.numpy.type(start), dtype=a.dtype)
        same(run(a), expected, combine not in ("max", "min"), 200 if dtype.is_float and combine == "mul" else 0)


def test_maximum_of_a_row_keeps_nan() -> None:
    body = (Store("c", (0,), number(-np.inf)), loop(j, N, "vector", Store("c", (0,), load("a", j), "max")))
    run = executable(kernel([vector("a"), vector("c", access="out", size=1)], [N], *body))
    for size, place in itertools.product((1, 8, 40, 77), (0, 7, 30, 76)):
        a = floats(size)
        if place < size:
            a[place] = np.nan
        same(run(a), a.max(keepdims=True))


def test_bool_reductions() -> None:
    for combine, start, numpy in (("and", True, np.all), ("or", False, np.any)):
        body = (Store("c", (0,), number(start, BOOL)), loop(j, N, "vector", Store("c", (0,), load("a", j, dtype=BOOL), combine)))
        run = executable(kernel([vector("a", BOOL), vector("c", BOOL, "out", 1)], [N], *body))
        for size in (0, 1, 9, 64, 70):
            for a in (np.ones(size, bool), np.zeros(size, bool), np.arange(size) != size - 1):
                assert run(a)[0] == numpy(a)


def test_fused_sum_of_products() -> None:
    product = apply("fma", load("a", j), load("b", j), number(0.0))
    body = (Store("c", (0,), number(0.0)), loop(j, N, "vector", Store("c", (0,), product, "add")))
    program = single(kernel([vector("a"), vector("b"), vector("c", access="out", size=1)], [N], *body))
    compiled = compile_program(program, HOST)
    assert "llvm.fma.v8f32" in compiled.llvm_ir and "fmul <8" not in compiled.llvm_ir
    run = Executable.from_object(compiled.object_code)
    for size in (0, 1, 8, 33, 1000):
        a, b = floats(size), floats(size)
        np.testing.assert_allclose(run(a, b)[0], a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5)


def test_columns_are_summed_across_a_vector_loop_of_rows() -> None:
    """A place that depends on a loop inside the vector loop is combined at once."""
    body = (loop(j, N, "serial", Store("c", (j,), number(0.0))),
            loop(i, M, "vector", loop(j, N, "serial", Store("c", (j,), load("a", i, j), "add"))))
    run = executable(kernel([Buffer("a", F32, (M, N), "in"), vector("c", access="out")], [M, N], *body))
    a = floats(21, 6)
    np.testing.assert_allclose(run(a), a.sum(0), rtol=1e-5, atol=1e-6)


def test_softmax_row() -> None:
    peak, total = Buffer("peak", F32, (1,), "register"), Buffer("total", F32, (1,), "register")
    shifted = apply("exp", apply("sub", load("a", i, j), load("peak", 0)))
    body = loop(i, M, "parallel", Alloc(peak), Alloc(total), Store("peak", (0,), number(-np.inf)),
                loop(j, N, "vector", Store("peak", (0,), load("a", i, j), "max")), Store("total", (0,), number(0.0)),
                loop(j, N, "vector", Let("e", shifted), Store("c", (i, j), node(Local("e", F32))),
                     Store("total", (0,), node(Local("e", F32)), "add")),
                loop(j, N, "vector", Store("c", (i, j), apply("div", load("c", i, j), load("total", 0)))))
    run = executable(kernel([Buffer("a", F32, (M, N), "in"), Buffer("c", F32, (M, N), "out")], [M, N], body), threads=2)
    a = floats(7, 45)
    e = np.exp(a - a.max(1, keepdims=True))
    np.testing.assert_allclose(run(a), e / e.sum(1, keepdims=True), rtol=1e-5)


# ---- gathers, scatters, checks ----


def take_program() -> Program:
    """c[i, j] = table[ids[i], j], with each index checked."""
    row = symbol("row", 0)
    value = node(Cast(INDEX), load("ids", i, dtype=I64))
    inside = apply("and", apply("ge", node(Local("t", INDEX)), number(0, INDEX)), apply("lt", node(Local("t", INDEX)), position(M)))
    body = loop(i, N, "parallel", Let("t", value),
                Check(inside, ERROR_INDEX, "take: index out of range at model.py:12", node(Local("t", INDEX)), position(M)),
                Let("r", node(Local("t", INDEX)), named(row)),
                loop(j, K, "vector", Store("c", (i, j), load("table", row, j))))
    return single(kernel([vector("ids", I64), Buffer("table", F32, (M, K), "in"), Buffer("c", F32, (N, K), "out")],
                         [N, M, K], body, name="take"))


@pytest.mark.parametrize("threads", [1, 2])
def test_take_rows_with_checks(threads: int) -> None:
    run = executable(take_program(), threads=threads)
    table, ids = floats(11, 13), RANDOM.integers(0, 11, 29)
    np.testing.assert_array_equal(run(ids, table), table[ids])
    for bad in (-1, 11, 2**62, -2**63):
        ids[17] = bad
        with pytest.raises(IndexFailure, match="model.py:12") as caught:
            run(ids, table)
        assert str(bad) in str(caught.value) and "11" in str(caught.value)


def test_checks_in_a_vector_loop_ignore_inactive_lanes() -> None:
    row = symbol("row", 0)
    local = node(Local("t", INDEX))
    inside = apply("and", apply("ge", local, number(0, INDEX)), apply("lt", local, position(M)))
    body = loop(i, N, "vector", Let("t", node(Cast(INDEX), load("ids", i, dtype=I64))),
                Check(inside, ERROR_INDEX, "gather: bad index", local, position(M)), Let("r", local, named(row)),
                Store("c", (i,), load("table", row)))
    run = executable(kernel([vector("ids", I64), vector("table", size=M), vector("c", access="out")], [N, M], body))
    table = floats(9)
    for size in (0, 1, 5, 8, 13, 40):
        ids = RANDOM.integers(0, 9, size)
        np.testing.assert_array_equal(run(ids, table), table[ids])
        for place in range(size):
            wrong = ids.copy()
            wrong[place] = 9 + place
            with pytest.raises(IndexFailure, match=str(9 + place)):
                run(wrong, table)


def test_strided_and_reversed_accesses() -> None:
    body = loop(i, M, "serial", loop(j, N, "vector", Store("c", (j, i), load("a", M - 1 - i, N - 1 - j))))
    run = executable(kernel([Buffer("a", F32, (M, N), "in"), Buffer("c", F32, (N, M), "out")], [M, N], body))
    for rows, columns in ((1, 1), (3, 8), (5, 19), (9, 33)):
        a = floats(rows, columns)
        np.testing.assert_array_equal(run(a), a[::-1, ::-1].T)


def test_division_of_the_vector_variable() -> None:
    value = apply("add", load("a", i // 3 % 5), node(Cast(F32), position(dim_min(i % 7, 4))))
    body = loop(i, N, "vector", Store("c", (i,), apply("add", value, load("b", i))))
    run = executable(kernel([vector("a", size=5), vector("b"), vector("c", access="out")], [N], body))
    a, b, n = floats(5), floats(50), np.arange(50)
    np.testing.assert_array_equal(run(a, b), a[n // 3 % 5] + np.minimum(n % 7, 4).astype(np.float32) + b)


@pytest.mark.parametrize("part, offset, by_chunk", [(16, 0, True), (24, 8, True), (8, 16, True), (12, 0, False), (16, 4, False), (4, 0, False)])
@pytest.mark.parametrize("size", [N, 61])
def test_parts_of_a_row_that_are_whole_vectors_are_read_as_vectors(part: int, offset: int, by_chunk: bool, size: DimLike) -> None:
    """Of 8 lanes: the place within a part goes on from lane to lane, and the part's number is one for all. What is stored is not read."""
    at = i + 24 * j + offset
    value = apply("add", apply("mul", load("a", at % part), load("b", at // part)), load("e", i))
    body = loop(j, 3, "serial", loop(i, size, "vector", Store("c", (j, i), value), Store("d", (at // part,), number(1, I32), "add")))
    clear = loop(k, 60, "serial", Store("d", (k,), number(0, I32)))
    buffers = [vector("a", size=24), vector("b", size=60), Buffer("c", F32, (3, size), "out"), vector("d", I32, "out", 60), vector("e", size=size)]
    made = compile_program(single(kernel(buffers, [] if size == 61 else [N], clear, body)), HOST)
    assert (re.search(r"insertelement <8 x float> .* i64 7", made.llvm_ir) is None) == by_chunk
    run = Executable.from_object(made.object_code, threads=1)
    a, b = floats(24), floats(60)
    for length in (61,) if size == 61 else (0, 1, 8, 23, 61):
        n, e = np.arange(length) + 24 * np.arange(3)[:, None] + offset, floats(length)
        found = run(a, b, e)
        np.testing.assert_array_equal(found[0], a[n % part] * b[n // part] + e)
        np.testing.assert_array_equal(found[1], np.bincount((n // part).ravel(), minlength=60))


def test_histogram_combines_lanes_that_meet() -> None:
    bin_ = symbol("bin", 0, 6)
    body = (loop(j, 7, "serial", Store("c", (j,), number(0, I32))),
            loop(i, N, "vector", Let("b", node(Cast(INDEX), load("a", i, dtype=U8)), named(bin_)),
                 Store("c", (bin_,), number(1, I32), "add")))
    run = executable(kernel([vector("a", U8), vector("c", I32, "out", 7)], [N], *body))
    for size in (0, 3, 8, 61):
        a = RANDOM.integers(0, 7, size).astype(np.uint8)
        np.testing.assert_array_equal(run(a), np.bincount(a, minlength=7))


# ---- register tiles ----


def tile_kernel(rows: int = 6, columns: int = 16, lanes: int = 8) -> Kernel:
    """C[rows, columns] = A^T B with packed operands, accumulators in a register buffer."""
    accumulate = apply("fma", load("a", k, i), load("b", k, j), load("acc", i, j))

    def tile(value: Node, buffer: str) -> For:
        return loop(i, rows, "unrolled", loop(j, columns, "vector", Store(buffer, (i, j), value), lanes=lanes))

    return kernel(
        [Buffer("a", F32, (K, rows), "in"), Buffer("b", F32, (K, columns), "in"), Buffer("c", F32, (rows, columns), "out")], [K],
        Alloc(Buffer("acc", F32, (rows, columns), "register")), tile(number(0.0), "acc"),
        loop(k, K, "serial", tile(accumulate, "acc")), tile(load("acc", i, j), "c"), name="tile")


@pytest.mark.parametrize(("rows", "columns"), [(6, 16), (5, 16), (4, 13), (1, 3), (6, 8)])
def test_register_tile(rows: int, columns: int) -> None:
    run = executable(tile_kernel(rows, columns))
    for size in (0, 1, 2, 65):
        a, b = floats(size, rows), floats(size, columns)
        np.testing.assert_allclose(run(a, b), a.T.astype(np.float64) @ b, rtol=1e-4, atol=1e-5)


def test_the_inner_loop_of_a_tile_has_no_stack_access() -> None:
    target = resolve_target("cpu:znver3")
    text = compile_program(single(tile_kernel()), target).assembly
    body = text[text.index("tw_kernel0:"):]
    body = body[: body.index(".Lfunc_end")]
    assert body.count("vfmadd") == 12 and "rsp" not in body and body.count("vbroadcastss") == 6


def test_a_register_buffer_that_stays_in_memory_is_refused() -> None:
    """An index that a serial loop decides cannot be a register."""
    body = (Alloc(Buffer("acc", F32, (8,), "register")), loop(i, 8, "serial", Store("acc", (i,), load("a", i))),
            loop(i, 8, "serial", Store("c", (i,), load("acc", 7 - i))))
    program = single(kernel([vector("a", size=8), vector("c", access="out", size=8)], [], *body, name="bad"))
    with pytest.raises(InternalError, match="register buffer not promoted.*bad"):
        compile_program(program, HOST)


def test_local_buffers() -> None:
    scratch = Buffer("scratch", F32, (300,), "local")
    body = loop(i, M, "parallel", Alloc(scratch), loop(j, N, "vector", Store("scratch", (j,), load("a", i, j))),
                loop(j, N, "vector", Store("c", (i, j), load("scratch", N - 1 - j))))
    run = executable(kernel([Buffer("a", F32, (M, N), "in"), Buffer("c", F32, (M, N), "out")], [M, N], body), threads=2)
    a = floats(9, 211)
    np.testing.assert_array_equal(run(a), a[:, ::-1])


def test_large_local_buffers_are_apart_for_each_thread() -> None:
    """More than fits on the stack: two of them, in memory that the runtime gives each thread with the workspace."""
    buffers = [Buffer(name, F32, (20000,), "local") for name in ("big", "more")]
    fill = [loop(j, N, "vector", Store(name, (j,), value))
            for name, value in (("big", load("a", i, j)), ("more", apply("neg", load("a", i, j))))]
    body = loop(i, M, "parallel", *map(Alloc, buffers), *fill,
                loop(j, N, "vector", Store("c", (i, j), apply("sub", load("big", N - 1 - j), load("more", j)))))
    made = kernel([Buffer("a", F32, (M, N), "in"), Buffer("c", F32, (M, N), "out")], [M, N], body)
    a = floats(64, 2001)
    for threads in (1, 3):
        run = executable(made, threads=threads)
        np.testing.assert_array_equal(run(a), a[:, ::-1] + a)
        assert run.plan(a.shape)[1] >= 2 * 80000


def test_a_large_local_buffer_of_a_vector_loop_is_refused() -> None:
    """Each lane would have its own."""
    big = loop(i, N, "vector", Alloc(Buffer("big", F32, (20000,), "local")), Store("c", (i,), load("a", i)), lanes=8)
    with pytest.raises(InternalError, match="640000 bytes"):
        compile_program(single(kernel([vector("a"), vector("c", access="out")], [N], big)), HOST)


def test_edges_of_a_tile_stay_in_registers() -> None:
    """An extent that only launch sizes decide, but that is at most one vector."""
    tile = (loop(i, 4, "unrolled", loop(j, 8, "vector", Store("acc", (i, j), load("a", i, j)))),
            loop(i, 4, "unrolled", loop(j, dim_min(8, N), "vector", Store("c", (i, j), load("acc", i, j)))))
    buffers = [Buffer("a", F32, (4, 8), "in"), Buffer("b", F32, (N,), "in"), Buffer("c", F32, (4, N), "out")]
    run = executable(kernel(buffers, [N], Alloc(Buffer("acc", F32, (4, 8), "register")), *tile))
    a = floats(4, 8)
    for size in range(9):
        np.testing.assert_array_equal(run(a, floats(size)), a[:, :size])


def test_memory_allocated_in_a_vector_loop_belongs_to_a_lane() -> None:
    state = Buffer("state", F32, (2,), "register")
    step = apply("add", load("state", 0), load("state", 1))
    body = loop(i, N, "vector", Alloc(state), Store("state", (0,), load("a", i)), Store("state", (1,), number(1.0)),
                loop(j, 5, "serial", Store("state", (0,), step), Store("state", (1,), number(1.0), "add")),
                Store("c", (i,), load("state", 0)))
    run = executable(kernel([vector("a"), vector("c", access="out")], [N], body))
    for size in (0, 3, 8, 45):
        a = floats(size)
        np.testing.assert_allclose(run(a), a + 15, rtol=1e-5)


# ---- control flow in kernels ----


def test_if_while_and_let() -> None:
    """Collatz steps of each number, and a uniform `if` around a vector loop."""
    state, steps = Buffer("state", I64, (1,), "register"), Buffer("steps", I64, (1,), "register")
    value = load("state", 0, dtype=I64)
    odd = apply("eq", apply("mod", value, number(2, I64)), number(1, I64))
    body = loop(i, N, "parallel", Alloc(state), Alloc(steps), Store("state", (0,), load("a", i, dtype=I64)),
                Store("steps", (0,), number(0, I64)),
                While(apply("gt", value, number(1, I64)), (
                    If(odd, (Store("state", (0,), apply("add", apply("mul", value, number(3, I64)), number(1, I64))),),
                       (Store("state", (0,), apply("floordiv", value, number(2, I64))),)),
                    Store("steps", (0,), number(1, I64), "add"))),
                Store("c", (i,), load("steps", 0, dtype=I64)))
    run = executable(kernel([vector("a", I64), vector("c", I64, "out")], [N], body), threads=2)

    def collatz(n: int) -> int:
        count = 0
        while n > 1:
            n, count = (3 * n + 1 if n % 2 else n // 2), count + 1
        return count

    a = np.arange(1, 60)
    np.testing.assert_array_equal(run(a), [collatz(int(n)) for n in a])


def test_a_condition_that_differs_between_lanes_is_refused() -> None:
    body = loop(i, N, "vector", If(apply("gt", load("a", i), number(0.0)), (Store("c", (i,), load("a", i)),)))
    with pytest.raises(InternalError, match="differs between lanes.*|in kernel k"):
        compile_program(single(kernel([vector("a"), vector("c", access="out")], [N], body)), HOST)


def test_an_extent_that_differs_between_lanes_is_refused() -> None:
    body = loop(i, N, "vector", loop(j, i, "serial", Store("c", (i,), load("a", j), "add")))
    with pytest.raises(InternalError, match="extent i of the loop over j differs"):
        compile_program(single(kernel([vector("a"), vector("c", access="out")], [N], body)), HOST)


def test_guards_of_unrolled_loops_are_decided_here() -> None:
    guarded = If(apply("lt", position(i), number(2, INDEX)), (Store("c", (i,), load("a", i)),), (Store("c", (i,), number(7.0)),))
    program = single(kernel([vector("a", size=4), vector("c", access="out", size=4)], [], loop(i, 4, "unrolled", guarded)))
    compiled = compile_program(program, HOST)
    assert "then" not in compiled.llvm_ir[compiled.llvm_ir.index("@tw_kernel0"):].split("\n}")[0]
    np.testing.assert_array_equal(Executable.from_object(compiled.object_code, threads=1)(np.ones(4, np.float32)), [1, 1, 7, 7])


def test_division_by_a_size_that_may_be_zero_does_not_trap() -> None:
    """The quotient is computed before a loop that does not run."""
    body = loop(i, N, "serial", loop(j, N, "vector", Store("c", (i, j), load("a", (M // N + i) % M, j % N))))
    run = executable(kernel([Buffer("a", F32, (M, N), "in"), Buffer("c", F32, (N, N), "out")], [M, N], body))
    assert run(floats(4, 0)).shape == (0, 0)
    assert run(floats(0, 0)).shape == (0, 0)
    a = floats(4, 2)
    np.testing.assert_array_equal(run(a), a[[2, 3]])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_parallel_loops_run_each_iteration_once(threads: int) -> None:
    count = Store("c", (i,), apply("add", load("a", i, dtype=I32), number(1, I32)))
    run = executable(kernel([vector("a", I32), vector("c", I32, "out")], [N], loop(i, N, "parallel", count)), threads=threads)
    for size in (0, 1, 2, 5, 6, 7, 100):
        a = RANDOM.integers(0, 9, size).astype(np.int32)
        np.testing.assert_array_equal(run(a), a + 1)


# ---- programs ----


def scale_kernel(factor: float) -> Kernel:
    body = loop(i, N, "vector", Store("c", (i,), apply("mul", load("a", i), number(factor))))
    return kernel([vector("a"), vector("c", access="out")], [N], body, name=f"scale{factor:g}")


def whole_type(size: DimLike = N, dtype: DType = F32) -> TensorType:
    return TensorType(dtype, (size,))


@pytest.mark.parametrize("threads", [1, 2])
def test_steps_constants_and_workspace(threads: int) -> None:
    """Two kernels through the workspace, and a constant read at its offset."""
    parallel = loop(i, N, "parallel", Store("c", (i,), apply("add", load("a", i), load("w", i % 4))))
    plus = kernel([vector("a"), vector("w", size=4), vector("c", access="out")], [N], parallel, name="plus")
    w = Constant(floats(4))
    steps = (Launch(plus, (Place("input"), Place("constant", 0, 64), Place("workspace")), (N,)),
             Launch(plus, (Place("workspace"), Place("constant", 0, 64), Place("workspace", 0, 64 * ((N * 4 + 63) // 64))), (N,)),
             Launch(plus, (Place("workspace", 0, 64 * ((N * 4 + 63) // 64)), Place("constant", 0, 64), Place("output")), (N,)))
    program = Program("steps", (("x", whole_type()),), (("y", whole_type()),), ((64, w),), 80,
                      128 * ((N * 4 + 63) // 64), steps, (named(N),))
    segment = np.zeros(80, np.uint8)
    segment[64:] = w.array.view(np.uint8)
    compiled = compile_program(program, HOST)
    run = Executable.from_object(compiled.object_code, segment, threads=threads)
    for size in (1, 4, 100, 1001):
        x = floats(size)
        tiled = np.resize(w.array, size)
        np.testing.assert_array_equal(run(x), ((x + tiled) + tiled) + tiled)
        assert run.plan((size,)) == ([(size,)], 128 * ((size * 4 + 63) // 64))
    assert run.kernels == ("plus",)
    assert len(run.profile(floats(5)).kernels) == 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_repeat_with_offsets(reverse: bool, threads: int) -> None:
    """A running sum over rows, forwards or backwards: row t of y = row t of x + the state."""
    t = symbol("t")
    update = loop(j, N, "parallel", Store("s", (j,), apply("add", load("s", j), load("a", j))), Store("c", (j,), load("s", j)))
    step = kernel([vector("a"), vector("s", access="inout"), vector("c", access="out")], [N], update, name="step")
    zero = kernel([vector("s", access="out")], [N], loop(j, N, "parallel", Store("s", (j,), number(0.0))), name="zero")
    steps = (Launch(zero, (Place("workspace"),), (N,)),
             Repeat(named(t), M, (Launch(step, (Place("input", 0, t * N * 4), Place("workspace"), Place("output", 0, t * N * 4)),
                                         (N,)),), reverse))
    kind = TensorType(F32, (M, N))
    program = Program("scan", (("x", kind),), (("y", kind),), (), 0, N * 4, steps, (named(M), named(N)))
    run = executable(program, threads=threads)
    x = RANDOM.integers(-9, 9, (7, 13)).astype(np.float32)
    expected = np.cumsum(x[::-1], 0)[::-1] if reverse else np.cumsum(x, 0)
    np.testing.assert_array_equal(run(x), expected)
    assert run(x[:0]).shape == (0, 13)


@pytest.mark.parametrize("threads", [1, 2])
def test_loop_and_branch(threads: int) -> None:
    """Doubles x until its first element is at least 100; then halves it when flag is set."""
    copy = kernel([vector("a"), vector("c", access="out")], [N], loop(i, N, "parallel", Store("c", (i,), load("a", i))), name="copy")
    double, half = (kernel([vector("a", access="inout")], [N],
                           loop(i, N, "parallel", Store("a", (i,), apply("mul", load("a", i), number(f)))), name=name)
                    for f, name in ((2.0, "double"), (0.5, "half")))
    test = kernel([vector("a"), vector("c", BOOL, "out", 1)], [N], Store("c", (0,), apply("lt", load("a", 0), number(100.0))),
                  name="test")
    condition = Place("workspace")
    steps: tuple[Step, ...] = (
        Launch(copy, (Place("input"), Place("output")), (N,)),
        Loop((Launch(test, (Place("output"), condition), (N,), barrier=False),), condition,
             (Launch(double, (Place("output"),), (N,)),)),
        Branch(Place("input", 1), (Launch(half, (Place("output"),), (N,), barrier=False),), ()))
    program = Program("loop", (("x", whole_type()), ("flag", TensorType(BOOL, ()))), (("y", whole_type()),), (), 0, 64, steps,
                      (named(N),))
    run = executable(program, threads=threads)
    x = np.array([3.0, 1.0, -2.0] * 5, np.float32)
    np.testing.assert_array_equal(run(x, np.array(False)), x * 64)
    np.testing.assert_array_equal(run(x, np.array(True)), x * 32)


def test_plan_checks_every_dim() -> None:
    b = symbol("B", 2, 64, 2)
    copy = kernel([Buffer("a", F32, (N, 3), "in"), Buffer("c", F32, (N, 3), "out")], [N],
                  loop(i, N, "parallel", loop(j, 3, "vector", Store("c", (i, j), load("a", i, j)), lanes=4)))
    program = Program(
        "plan", (("x", TensorType(F32, (b, 3))), ("y", TensorType(F32, (b, b + 1))), ("z", TensorType(F32, (M * 4 + 2,)))),
        (("c", TensorType(F32, (b, 3))), ("d", TensorType(F32, (M,)))), (), 0, 0,
        (Launch(copy, (Place("input"), Place("output")), (b,)),), (named(b), named(M)))
    run = executable(program)
    assert run.plan((4, 3), (4, 5), (10,)) == ([(4, 3), (2,)], 0)
    wrong = {"axis 1": ((4, 2), (4, 5), (10,)), "axis 0.*expected a multiple of 2": ((5, 3), (5, 6), (10,)), "expected at least 2": ((0, 3), (0, 1), (10,)),
             "expected at most 64": ((66, 3), (66, 67), (10,)), "'y', axis 1": ((4, 3), (4, 4), (10,)), "'y', axis 0": ((4, 3), (6, 5), (10,)),
             "'z'.* 11": ((4, 3), (4, 5), (11,))}
    for text, shapes in wrong.items():
        with pytest.raises((ArgumentError, RuntimeFailure), match=text):
            run.plan(*shapes)


def test_plan_refuses_sizes_beyond_62_bits() -> None:
    program = Program("huge", (("x", TensorType(F32, (N, 0))), ("y", TensorType(F32, (M, 0)))), (("z", TensorType(F32, (N, M))),), (),
                      0, N * M * 64, (), (named(N), named(M)))
    run = executable(program)
    assert run.plan((10, 0), (20, 0)) == ([(10, 20)], 12800)
    for sizes in ((2**40, 2**40), (2**31, 2**31), (2**62, 4)):
        with pytest.raises((ArgumentError, RuntimeFailure, MemoryError)):
            run.plan((sizes[0], 0), (sizes[1], 0))


def test_a_size_that_no_input_determines_is_refused() -> None:
    program = Program("free", (("x", whole_type(N * M)),), (("y", whole_type(N)),), (), 0, 0, (), (named(N), named(M)))
    with pytest.raises(UnsupportedError, match="M, N"):
        compile_program(program, HOST)


def test_scalars_and_empty_tensors() -> None:
    body = (Store("c", (), apply("add", load("a"), number(1.0))),)
    run = executable(kernel([Buffer("a", F32, (), "in"), Buffer("c", F32, (), "out")], [], *body))
    assert run(np.float32(2.5)) == 3.5


# ---- the object ----


def test_bytes_depend_on_the_program_alone() -> None:
    first = LlvmBackend(HOST).compile(take_program())
    for _ in range(3):
        assert LlvmBackend(HOST).compile(take_program()).object_code == first.object_code
    assert first.optimized and first.assembly


def test_public_functions_of_a_library() -> None:
    facts = ModelFacts(version="1", constants_digest="ab", golden_offset=64, golden_bytes=128)
    compiled = LlvmBackend(HOST, facts).compile(take_program(), name_prefix="my_model")
    assert compiled.symbol == "my_model_model"
    assert Executable.from_object(compiled.object_code, symbol=compiled.symbol).inputs[0].name == "ids"
    with pytest.raises(CompileError, match="no C identifier"):
        compile_program(take_program(), HOST, name_prefix="my model")


def test_names_from_the_user_reach_no_symbol() -> None:
    """Names with quotes and control characters stay in string constants."""
    nasty = 'x" } define void @f() {\n\0\x01ü'
    plain = add_kernel()
    program = single(Kernel(nasty, plain.buffers, plain.symbols, plain.body))
    program = Program(nasty, tuple((nasty, kind) for _, kind in program.inputs[:1]) + program.inputs[1:], program.outputs, (), 0, 0,
                      program.steps, program.symbols)
    run = executable(program)
    a, b = floats(9), floats(9)
    np.testing.assert_array_equal(run(a, b), a + b)
    assert "ü" in run.name


def test_capabilities() -> None:
    caps = LlvmBackend(resolve_target("cpu:znver3")).capabilities
    assert (caps.vector_bits, caps.lanes(F32), caps.lanes(F64), caps.lanes(I8), caps.lanes(F16)) == (256, 8, 4, 32, 8)
    caps = LlvmBackend(resolve_target("cpu:znver4")).capabilities
    assert (caps.vector_bits, caps.vector_registers, caps.has_mask_registers) == (512, 32, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4", "znver4", "sapphirerapids", "generic"])
def test_every_function_compiles_for_other_cpus(name: str) -> None:
    """No library call on any target, whatever it lacks."""
    target = resolve_target(f"cpu:{name}")
    lanes = LlvmBackend(target).capabilities.lanes(F32)
    compiled = compile_program(scalar_program(F32, functions_of(F32), lanes, 100), target)
    assert isinstance(compiled, CompiledObject)


# ---- what lowering makes ----


@pytest.mark.slow
@pytest.mark.parametrize("op", ALL_OPS, ids=lambda op: op.__name__)
def test_samples_of_every_op_through_lowering(op: type[Op]) -> None:
    """Each sample as a graph of one node: native code against the graph's interpreter, on one and on two threads."""
    for sample in op.samples():
        builder = Builder()
        params = [builder.add(Param(f"p{n}", t.dtype, t.shape)) for n, t in enumerate(sample.types)]
        graph = Graph("sample", params, [builder.add(sample.op, *params)])
        random = np.random.default_rng(1)
        inputs = []
        for kind, limits in itertools.zip_longest(sample.types, sample.ranges):
            low, high = limits or (-4, 4)
            inputs.append(cast_array(random.integers(low, high + 1, kind.static_shape), kind.dtype))
        expected = evaluate_graph(graph, inputs)
        built = build(graph, "cpu", Options(), QUIET)
        for threads in (1, 2):
            run = Executable.from_object(built.object_code, built.constants, symbol="tw_model", threads=threads)
            found = run(*inputs)
            for x, y in zip(expected, found if isinstance(found, tuple) else (found,), strict=True):
                tolerance = 0 if x.dtype.kind in "biu" else 1e-2 if x.dtype.itemsize == 2 else 1e-5
                assert x.dtype == y.dtype and x.shape == y.shape
                np.testing.assert_allclose(y.astype(np.float64), x.astype(np.float64), tolerance, tolerance, err_msg=str(sample.op))


@pytest.mark.parametrize(("wide", "narrow"), [(I16, I8), (I32, I8), (I32, I16), (I64, I8), (I64, I32), (F32, I8), (F32, F16)])
@pytest.mark.parametrize("given", [True, False], ids=["static", "open"])
def test_a_cast_stores_nothing_beside_its_last_element(wide: DType, narrow: DType, given: bool) -> None:
    """Of each rest of a vector, of which LLVM makes one store of an element where it knows that there is one."""
    for count in (1, 9, 17, 33, 50):
        b = Builder()
        x = b.add(Param("x", wide, (count if given else symbol("N", 1, 64),)))
        f = tw.compile(Graph("g", [x], [b.add(Cast(narrow), x)]), options=tw.Options(threads=1))
        whole = np.full((3 * 64, narrow.bytes), 77, np.uint8)
        out = whole[64:64 + count].reshape(-1).view(narrow.numpy)
        values = np.arange(count).astype(wide.numpy)
        f(values, out=out)
        np.testing.assert_array_equal(out, values.astype(narrow.numpy))
        assert (whole[:64] == 77).all() and (whole[64 + count:] == 77).all()
