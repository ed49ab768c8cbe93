"""Products of float8: bytes on the matrix units of GPUs that have them, values looked up everywhere else; against the product in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compilers import needs_compiler
from tests.cuda_programs import EmulatedPrograms
from tests.lowering_checks import QUIET
from tilewright import library as lib
from tilewright.backends.cuda.backend import capabilities_of
from tilewright.backends.cuda.emit import emit_module
from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, symbol
from tilewright.ir.errors import CompileError
from tilewright.ir.graph import Builder, Graph, Node
from tilewright.ir.loop_interp import run_program
from tilewright.ir.ops.compute import FLOATS8, Bitcast, PackedDot
from tilewright.ir.ops.control import Fusion, Param
from tilewright.ir.ops.shape import Take
from tilewright.ir.program import Program
from tilewright.ir.types import F16, F32, I8, I32, U8, DType, TensorType
from tilewright.lowering.lower import lower_program
from tilewright.options import Options
from tilewright.pipeline import run_passes

HOPPER, AMPERE, CPU = capabilities_of("sm_90a"), capabilities_of("sm_80"), Caps(vector_bits=256)
E4M3, E5M2 = FLOATS8


def value_of(b: Builder, x: Node, dtype: DType = F32) -> Node:
    """A float8 as a float, as front ends look it up."""
    every = np.arange(256, dtype=np.uint8).view(x.dtype.numpy).astype(np.float32)
    return lib.cast(b, b.add(Take(0), lib.constant(b, every), b.add(Bitcast(U8), x)), dtype)


def product_of(left: DType, right: DType, m: DimLike, k: DimLike, n: int, result: DType = F32, scaled: bool = False) -> Graph:
    b = Builder()
    x, w = b.add(Param("x", left, (m, k))), b.add(Param("w", right, (k, n)))
    values = [value_of(b, p, result) for p in (x, w)]
    if scaled:
        values = [lib.apply(b, "mul", v, lib.broadcast(b, lib.constant(b, s, result), v.shape)) for v, s in zip(values, (0.3, 7.0))]
    total = lib.matmul(b, *values)
    bias = lib.broadcast(b, lib.constant(b, np.linspace(-1, 1, n), result), total.shape)
    return Graph("floats8", [x, w], [lib.apply(b, "add", total, bias)])


def lowered(graph: Graph, caps: Caps) -> tuple[Program, list[Node]]:
    """The program, and its products of bytes."""
    fused, _ = run_passes(graph, Options(), caps, QUIET)
    inside = [n for f in fused.nodes() if isinstance(f.op, Fusion) for n in f.op.body.nodes()]
    return lower_program(fused, caps)[0], [n for n in inside if isinstance(n.op, PackedDot) and n.op.step == 4]


def random_bytes(dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype.numpy)


def wanted(x: np.ndarray, w: np.ndarray, scale: float = 1.0) -> np.ndarray:
    return x.astype(np.float64) @ w.astype(np.float64) * scale + np.linspace(-1, 1, w.shape[1])


CASES = [(E4M3, 40, 64, 48, F32, False), (E5M2, 33, 80, 70, F16, False), (E4M3, 5, 37, 9, F32, True),
         (E5M2, 3, 1440, 20, F32, False),  # whose steps are cut into parts
         (E4M3, 20, 136, 144, F32, True)]  # whose right operand is read as it is


@needs_compiler
def test_products_of_bytes_on_units() -> None:
    programs, inputs = [], []
    for dtype, m, k, n, result, scaled in CASES:
        program, found = lowered(product_of(dtype, dtype, m, k, n, result, scaled), HOPPER)
        assert len(found) == 1 and found[0].inputs[0].dtype == dtype
        assert f"tw_mma_m16n8k32_{'e4m3' if dtype == E4M3 else 'e5m2'}(" in emit_module(program, "sm_90a").source
        assert any(kernel.name.endswith("_parts") for kernel in program.kernels()) == (k > 1000)
        assert (len(program.kernels()) == 1) == (n == 144)
        programs.append(program)
        inputs.append([random_bytes(dtype, (m, k)), random_bytes(dtype, (k, n))])
    emulated = EmulatedPrograms(programs, architecture="sm_90a")
    for number, given in enumerate(inputs):
        _, _, _, _, result, scaled = CASES[number]
        expected = wanted(*given, 0.3 * 7.0 if scaled else 1.0)
        for y in (run_program(programs[number], given)[0], emulated.run(number, given)[0]):
            # sums of up to 1440 products in float32 in any order, some of which cancel; then rounded to the result's dtype
            rtol, atol = (1e-5, 1e-4) if result == F32 else (2e-3, 1e-2)
            np.testing.assert_allclose(y.astype(np.float64), expected, rtol=rtol, atol=atol)


def test_known_weights_that_the_format_holds_are_bytes() -> None:
    b, rng = Builder(), np.random.default_rng(1)
    x, dense = b.add(Param("x", E4M3, (symbol("M"), 32))), rng.integers(-4, 5, (32, 40)).astype(np.float32)
    graph = Graph("known", [x], [lib.matmul(b, value_of(b, x), lib.constant(b, dense))])
    program, found = lowered(graph, HOPPER)
    assert len(found) == 1 and len(program.kernels()) == 1
    given = random_bytes(E4M3, (7, 32))
    # 32 terms summed in float32 in another order
    np.testing.assert_allclose(run_program(program, [given])[0], given.astype(np.float64) @ dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("caps", [HOPPER, capabilities_of("sm_90a")])
def test_a_depth_that_is_open(caps: Caps) -> None:
    """Words were packed of as many steps as four divide, which nothing proved of the sum of a depth and what it lacks: lowering failed."""
    program, found = lowered(product_of(E4M3, E4M3, 20, symbol("K"), 40), caps)
    assert len(found) == 1
    for depth in (0, 3, 4, 37):
        given = [random_bytes(E4M3, (20, depth)), random_bytes(E4M3, (depth, 40))]
        # up to 37 terms summed in float32 in another order
        np.testing.assert_allclose(run_program(program, given)[0], wanted(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("left, right, caps", [(E4M3, E4M3, AMPERE), (E4M3, E5M2, HOPPER), (E5M2, E5M2, CPU)])
def test_everything_else_is_a_product_of_floats(left: DType, right: DType, caps: Caps) -> None:
    """No units, or two formats."""
    program, found = lowered(product_of(left, right, 20, 32, 40), caps)
    assert found == []
    given = [random_bytes(left, (20, 32)), random_bytes(right, (32, 40))]
    # 32 terms summed in float32 in another order
    np.testing.assert_allclose(run_program(program, given)[0], wanted(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS8)
@pytest.mark.parametrize("caps", [CPU, AMPERE])
def test_the_packed_product_means_the_same_without_units(dtype: DType, caps: Caps) -> None:
    """Every code meets every power of two, NaN and infinity included."""
    b = Builder()
    x, w = b.add(Param("x", dtype, (256, 4))), b.add(Param("w", I32, (1, 1, 8)))
    graph = Graph("packed", [x, w], [b.add(PackedDot(0, 8, step=4), x, w)])
    fused, _ = run_passes(graph, Options(), caps, QUIET)
    left = np.zeros((256, 4), np.uint8)
    left[:, 0] = np.arange(256)
    right = np.zeros((4, 8), dtype.numpy)
    right[0] = [1, 2, 0.5, -1, 16, 0.25, -4, 1]
    words = np.ascontiguousarray(right.T).view(np.int32).reshape(1, 1, 8)
    found, = run_program(lower_program(fused, caps)[0], [left.view(dtype.numpy), words])
    np.testing.assert_array_equal(found, left[:, :1].view(dtype.numpy).astype(np.float32) * right[:1].astype(np.float32))


def test_words_of_other_dtypes_are_refused() -> None:
    with pytest.raises(CompileError, match="4 elements in i32 with f8e4m3fn or f8e5m2"):
        PackedDot(0, 8, step=2).infer(TensorType(E4M3, (2, 4)), TensorType(I32, (1, 2, 8)))
    with pytest.raises(CompileError, match="four unsigned bytes saturate, found words of 4 with i8"):
        PackedDot(0, 8, step=4, saturates=True).infer(TensorType(I8, (2, 4)), TensorType(I32, (1, 1, 8)))
