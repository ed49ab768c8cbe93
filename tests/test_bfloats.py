"""Contractions with constant weights that are bfloat16: words of two, the instruction for them, and what bfloat16 means without it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from msgspec.structs import replace

from tests.comparing import assert_close, assert_identical
from tests.compiled import QUIET, compiled, run_compiled, runs_here
from tilewright import library as lib
from tilewright.build import enter, lower, program_text
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.errors import CompileError
from tilewright.ir.graph import Array, Builder, Graph
from tilewright.ir.interp import evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.compute import Conv, Elementwise, PackedConv, PackedDot
from tilewright.ir.ops.control import Fusion, Param
from tilewright.ir.ops.scalar import evaluate_scalar, result_dtype
from tilewright.ir.types import BF16, F32, I32, U32, DType, TensorType
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.passes import pack_bfloats
from tilewright.pipeline import run_passes

PLAIN = Caps(vector_bits=128)
WORDS = Caps(vector_bits=256, vector_registers=32, has_bf16=True)


@pytest.fixture(autouse=True)
def few_weights_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small matrices take this way."""
    monkeypatch.setattr(pack_bfloats, "LEAST_WEIGHTS", 1 << 11)


def rounded(array: Array) -> Array:
    return array.astype(BF16.numpy).astype(np.float32)


def weights(*shape: int) -> Array:
    return rounded(np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32) * np.float32(0.1))


def product(rows: DimLike, depth: int, columns: int, dtype: DType = F32, narrow_left: bool = False, bias: bool = False) -> Graph:
    """In float32 with weights that are bfloat16, perhaps of activations that are rounded to it; or in bfloat16."""
    b = Builder()
    x = b.add(Param("x", F32, (rows, depth)))
    left = lib.cast(b, x, BF16) if narrow_left or dtype == BF16 else x
    y = lib.matmul(b, lib.cast(b, left, dtype), lib.constant(b, weights(depth, columns).astype(dtype.numpy)))
    y = lib.cast(b, y, F32)
    return Graph("product", [x], [lib.apply(b, "add", y, lib.constant(b, np.linspace(-1, 1, columns), F32)) if bias else y])


def convolution(dtype: DType, channels: int = 32, stride: int = 2) -> Graph:
    b = Builder()
    x = b.add(Param("x", F32, (1, 9, 8, channels)))
    w = lib.constant(b, weights(3, 3, channels, 40).astype(dtype.numpy))
    op = Conv((stride, stride), ((1, 1), (0, 1)), (1, 1), (1, 1), 1, True)
    return Graph("convolution", [x], [lib.cast(b, b.add(op, lib.cast(b, x, dtype), w), F32)])


def given(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def contractions(graph: Graph, caps: Caps, precision: str = "default") -> list[tuple[int, DType]]:
    """Steps of a word and the dtype of the left operand, of each contraction."""
    fused, _ = run_passes(graph, Options(precision=precision), caps, QUIET)
    bodies = [node.op.body for node in fused.nodes() if isinstance(node.op, Fusion)]
    return [(node.op.step, node.inputs[0].dtype) for body in bodies for node in body.nodes() if isinstance(node.op, (PackedDot, PackedConv))]


# --- the function ----------------------------------------------------------------------------------------------------


def with_zeros(x: float) -> float:
    """x, a zero of its sign where it is no normal float32."""
    return math.copysign(0.0, x) if abs(x) < 2.0**-126 else x


def multiply_add(x: float, y: float, c: float) -> float:
    """One step of vdpbf16ps, in exact arithmetic: a result is rounded to 24 bits to nearest even, whatever its exponent; what is then no
    normal number is a zero, as in all instructions of x86 that flush (Intel SDM volume 1, 4.9.1.5: tiny after rounding)."""
    x, y, c = map(with_zeros, (x, y, c))
    in_double = x * y + c  # the product is exact
    if not math.isfinite(in_double) or not (exact := Fraction(x) * Fraction(y) + Fraction(c)):
        return in_double
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length() - 24
    exponent += abs(exact) >= Fraction(2) ** (exponent + 24)
    nearest = round(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent
    if abs(nearest) >= 2**128:
        return math.copysign(math.inf, nearest)
    return with_zeros(math.copysign(float(abs(nearest)), exact))


def by_the_definition(a: Array, b: Array, c: Array) -> Array:
    """The upper products first, then the lower ones (Intel SDM volume 2, VDPBF16PS, Operation: DAZ, FTZ, RNE)."""
    for half in (0xFFFF0000, 0x0000FFFF):
        shift = np.uint32(0 if half > 0xFFFF else 16)
        x, y = (((word & np.uint32(half)) << shift).view(np.float32).astype(float).tolist() for word in (a, b))
        c = np.array(list(map(multiply_add, x, y, c.astype(float).tolist())), np.float32)
    return c


def words_and_sums(count: int = 2000) -> tuple[Array, Array, Array]:
    """Random bits, numbers whose sums lie about the least normal one, and special ones."""
    rng = np.random.default_rng(3)
    random = [rng.integers(0, 1 << 32, count, dtype=np.uint32) for _ in range(3)]
    signs_and_bits = [rng.integers(0, 1 << 32, count, dtype=np.uint32) & np.uint32(mask) for mask in (0x807F807F, 0x807F807F, 0x807FFFFF)]
    about_the_least = [bits + (np.uint32(127 - 63) * np.uint32(1 << 23 | 1 << 7) if i < 2 else rng.integers(1, 5, count, dtype=np.uint32) << np.uint32(23))
                       for i, bits in enumerate(signs_and_bits)]
    special = np.array([0, 1, 0x7F, 0x80, 0x81, 0x1F80, 0x3F80, 0x3F81, 0x5F80, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0], np.uint32)
    special = np.concatenate([special, special | np.uint32(0x8000)])
    pairs = [rng.choice(special, count) | rng.choice(special, count) << np.uint32(16) for _ in range(2)]
    sums = rng.choice(special, count) << np.uint32(16) | rng.choice(np.array([0, 1, 0xFFFF], np.uint32), count)
    # just below the least normal number: 2**-126 less some quarters of the last place that a subnormal number has
    parts = np.arange(1, 17, dtype=np.float32) * np.float32(2.0**-4 * 2.0**-75)
    edge = [(parts.view(np.uint32) >> np.uint32(shift)) for shift in (0, 16)]
    other = np.float32(-(2.0**-75)).view(np.uint32)
    edges = [np.concatenate(edge), np.repeat([other, other >> np.uint32(16)], 16).astype(np.uint32), np.full(32, np.float32(2.0**-126).view(np.uint32))]
    a, b, c = (np.concatenate(parts) for parts in zip(random, about_the_least, [*pairs, sums], edges))
    return a, b, c.view(np.float32)


def test_words_of_bfloats_are_multiplied_and_added_one_after_the_other() -> None:
    """By the definition; by the instruction where this machine has it; by what stands for it on other targets."""
    a, b, c = words_and_sums()
    with np.errstate(all="ignore"):
        expected = by_the_definition(a, b, c)
        assert_identical([evaluate_scalar("dot_bfloats", [a, b, c])], [expected])
    assert 16 < np.isnan(expected).sum() < len(expected) / 2 and (expected == 0).sum() > 100
    builder = Builder()
    params = [builder.add(Param(name, dtype, a.shape)) for name, dtype in (("a", U32), ("b", U32), ("c", F32))]
    graph = Graph("words", params, [builder.add(Elementwise("dot_bfloats"), *params)])
    assert "vdpbf16ps" in program_text(lower(enter(graph, "", "", "cpu:znver4", Options()), "cpu:znver4"), "asm", "cpu:znver4")
    for target in ("cpu:x86-64", "cpu:x86-64-v3", "cpu:znver4"):
        if runs_here(target):
            assert_identical(run_compiled(compiled(graph, target), [a, b, c]), [expected])
    with pytest.raises(CompileError, match="two words of u32 and an f32"):
        result_dtype("dot_bfloats", [U32, I32, F32])


def test_what_words_of_bfloats_meet() -> None:
    words = TensorType(U32, (2, 7, 16))
    for left in (F32, BF16):
        assert PackedDot(0, 19, step=2).infer(TensorType(left, (5, 14)), words) == TensorType(F32, (5, 19))
    with pytest.raises(CompileError, match="2 elements in u32 with bf16 or f32"):
        PackedDot(0, 19, step=2).infer(TensorType(I32, (5, 14)), words)


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5, 70])
def test_products_are_those_of_float32(rows: int) -> None:
    graph = product(rows, 131, 75, bias=True)
    x = given(rows, 131)
    assert_close(run_compiled(compiled(graph), [x]), evaluate_graph(graph, [x]))


def test_any_number_of_rows_and_threads_that_do_not_show() -> None:
    graph = product(symbol("m"), 128, 70, BF16)
    one, three = (compiled(graph, threads=threads) for threads in (1, 3))
    for rows in (0, 1, 2, 5, 70):
        x = given(rows, 128)
        found = run_compiled(one, [x])
        assert_identical(found, run_compiled(three, [x]))
        for ours, theirs in zip(found, evaluate_graph(graph, [x])):
            assert (np.abs(ours - theirs) <= 2.0**-7 * np.abs(theirs) + 1e-5).all(), "rounded to bfloat16, one unit apart"


def test_a_row_of_a_large_matrix() -> None:
    graph = product(1, 1024, 256)
    x = given(1, 1024)
    assert_close(run_compiled(compiled(graph), [x]), evaluate_graph(graph, [x]), scale=2)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_convolutions_read_words_of_channels(dtype: DType) -> None:
    graph, x = convolution(dtype), given(1, 9, 8, 32)
    assert contractions(graph, PLAIN) == [(2, F32)]
    assert contractions(graph, WORDS) == [(2, dtype)]
    found, expected = run_compiled(compiled(graph), [x])[0], evaluate_graph(graph, [x])[0]
    assert (np.abs(found - expected) <= (2.0**-7 if dtype == BF16 else 0) * np.abs(expected) + 1e-4).all()


@pytest.mark.parametrize("caps", [PLAIN, WORDS])
@pytest.mark.parametrize("rows", [1, 6, symbol("m")])
def test_the_loops_read_and_write_where_they_may(rows: DimLike, caps: Caps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_bfloats, "LEAST_WEIGHTS", 64)
    graph = product(rows, 9, 11, narrow_left=True)
    fused, _ = run_passes(graph, Options(), caps, QUIET)
    program, _ = lower_program(fused, caps)
    verify_program(program)
    x = given(rows if isinstance(rows, int) else 3, 9)
    assert_close(run_program(program, [x]), evaluate_graph(graph, [x]))


@pytest.mark.parametrize("target", ["cpu:sapphirerapids", "cpu:znver4"])
def test_targets_use_the_instruction(target: str) -> None:
    for graph in (product(8, 128, 80, narrow_left=True), product(8, 128, 80, BF16), convolution(BF16)):
        assert "vdpbf16ps" in program_text(lower(enter(graph, "", "", target, Options()), target), "asm", target)


# --- the pass --------------------------------------------------------------------------------------------------------


def test_few_weights_are_worth_words_where_there_is_the_instruction() -> None:
    assert contractions(product(40, 32, 32), WORDS) == [(1, F32)]
    assert contractions(product(40, 32, 32, narrow_left=True), WORDS) == [(2, BF16)]
    assert contractions(product(40, 32, 32, narrow_left=True), replace(WORDS, has_bf16=False)) == [(1, F32)]
    assert contractions(product(40, 16, 16, narrow_left=True), WORDS) == [(1, F32)]


def test_factors_behind_a_product_leave_its_bfloats() -> None:
    """They would make weights of float32 of them."""
    for narrow_left in (True, False):
        graph = product(40, 32, 32, narrow_left=narrow_left)
        b = Builder()
        factor = lib.constant(b, np.linspace(0.3, 0.9, 32), F32)
        scaled = Graph("scaled", graph.params, [lib.apply(b, "mul", graph.results[0], factor)])
        assert contractions(scaled, WORDS) == [(2, BF16) if narrow_left else (1, F32)]
        x = given(40, 32)
        assert_close(run_compiled(compiled(scaled), [x]), evaluate_graph(scaled, [x]))


def test_what_is_packed_in_words() -> None:
    assert contractions(product(4, 128, 80), PLAIN) == [(2, F32)], "floats that are bfloat16"
    assert contractions(product(4, 128, 80, BF16), PLAIN) == [(2, F32)]
    assert contractions(product(4, 128, 80, BF16), WORDS) == [(2, BF16)]
    assert contractions(product(4, 128, 80), WORDS) == [(2, F32)], "activations of float32 stay what they are"
    assert contractions(product(4, 128, 80, narrow_left=True), WORDS) == [(2, BF16)]
    assert contractions(product(4, 128, 80, narrow_left=True), WORDS, "strict") == [(2, F32)], "subnormal numbers are no zeros"
    assert contractions(product(4, 16, 80), PLAIN) == [(1, F32)], "few weights"
    b = Builder()
    x = b.add(Param("x", F32, (4, 128)))
    exact = weights(128, 80)
    exact[77, 3] += np.float32(1e-7)
    assert contractions(Graph("floats", [x], [lib.matmul(b, x, lib.constant(b, exact))]), PLAIN) == [(1, F32)], "one weight that is none"
