"""The functions of the device header in emulation: values against NumPy in the layouts of the PTX ISA, and the faults that are found.

All kernels are one source, compiled once. `test_header_compiles` hands the same source to nvcc, where there is one.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.compilers import needs_compiler

pytestmark = needs_compiler

from tests.emulated import emulate
from tilewright.backends.cuda.emulate import EmulatedModule, EmulationError, find_kernels
from tilewright.ir.ops.compute import round_to_tf32

DATA = Path(__file__).parent / "data"
SOURCE = (DATA / "cuda_device.cu").read_text()
FAULTS = (DATA / "cuda_faults.cu").read_text()
HEADER = Path(__file__).parent.parent / "backends" / "cuda"


@pytest.fixture(scope="module")
def module() -> EmulatedModule:
    return emulate(SOURCE)


@pytest.fixture(scope="module")
def faults() -> EmulatedModule:
    return emulate(FAULTS)


def random_words(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)


# --- matrices: element (row, column) of an operand, where the PTX ISA says that it lies ---

LANES = np.arange(32)


def left_words(matrix: np.ndarray) -> np.ndarray:
    """Words [lane, 4] of a left operand of 16 rows of 32 bytes."""
    rows = np.ascontiguousarray(matrix).view(np.uint8).reshape(16, 32).view(np.uint32)
    g, t = LANES // 4, LANES % 4
    return np.stack([rows[g, t], rows[g + 8, t], rows[g, t + 4], rows[g + 8, t + 4]], 1).copy()


def right_words(matrix: np.ndarray) -> np.ndarray:
    """Words [lane, 2] of a right operand of 8 columns of 32 bytes."""
    columns = np.ascontiguousarray(matrix.T).view(np.uint8).reshape(8, 32).view(np.uint32)
    g, t = LANES // 4, LANES % 4
    return np.stack([columns[g, t], columns[g, t + 4]], 1).copy()


def accumulators(matrix: np.ndarray) -> np.ndarray:
    g, t = LANES // 4, LANES % 4
    return np.stack([matrix[g, 2 * t], matrix[g, 2 * t + 1], matrix[g + 8, 2 * t], matrix[g + 8, 2 * t + 1]], 1).copy()


FLOAT_PRODUCTS = {
    "mma_f16": (np.float16, 16), "mma_bf16": (ml_dtypes.bfloat16, 16), "mma_tf32": (np.float32, 8),
    "mma_e4m3": (ml_dtypes.float8_e4m3fn, 32), "mma_e5m2": (ml_dtypes.float8_e5m2, 32)}


@pytest.mark.parametrize("kernel", FLOAT_PRODUCTS)
def test_float_products(module: EmulatedModule, kernel: str) -> None:
    dtype, steps = FLOAT_PRODUCTS[kernel]
    random = np.random.default_rng(1)
    a, b = random.standard_normal((16, steps)).astype(dtype), random.standard_normal((steps, 8)).astype(dtype)
    c = random.standard_normal((16, 8)).astype(np.float32)
    if kernel == "mma_tf32":  # the unit drops the last 13 bits
        kept = np.uint32(0xFFFFE000)
        left, right = (a.view(np.uint32) & kept).view(np.float32), (b.view(np.uint32) & kept).view(np.float32)
    else:
        left, right = a, b
    sums = accumulators(c)
    module.launch(kernel, 1, 32, [left_words(a), right_words(b), sums])
    expected = (left.astype(np.float64) @ right.astype(np.float64) + c).astype(np.float32)
    np.testing.assert_array_equal(sums, accumulators(expected))


def test_product_with_nan_and_infinity(module: EmulatedModule) -> None:
    a, b = np.zeros((16, 16), np.float16), np.ones((16, 8), np.float16)
    a[3, 4], a[5, 0], a[5, 1], a[15, 15] = np.nan, np.inf, -np.inf, np.inf
    sums = np.zeros((32, 4), np.float32)
    module.launch("mma_f16", 1, 32, [left_words(a), right_words(b), sums])
    expected = np.zeros((16, 8), np.float32)
    expected[3] = expected[5] = np.nan
    expected[15] = np.inf
    np.testing.assert_array_equal(sums, accumulators(expected))


@pytest.mark.parametrize("kernel, left, right", [
    ("mma_s8", np.int8, np.int8), ("mma_s8_of_16_steps", np.int8, np.int8), ("mma_u8", np.uint8, np.uint8), ("mma_u8s8", np.uint8, np.int8), ("mma_s8u8", np.int8, np.uint8)])
def test_integer_products(module: EmulatedModule, kernel: str, left: type, right: type) -> None:
    a = random_words((16, 8), 2).view(left)
    b = random_words((32, 2), 3).view(right)
    c = random_words((16, 8), 4).view(np.int32)
    sums = accumulators(c)
    module.launch(kernel, 1, 32, [left_words(a), right_words(b), sums])
    steps = 16 if "16" in kernel else 32
    expected = (a[:, :steps].astype(np.int64) @ b[:steps].astype(np.int64) + c).astype(np.int32)
    np.testing.assert_array_equal(sums, accumulators(expected))


def test_matrices_of_shared_memory(module: EmulatedModule) -> None:
    """Register m of lane l holds elements (l / 4, 2 * (l % 4)) and the next of matrix m; transposed those of the columns."""
    matrices = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    plain, transposed, back = (np.zeros((32, 4), np.uint32) for _ in range(3))
    module.launch("matrices", 1, 32, [matrices, plain, transposed, back])
    for lane in range(32):
        for m in range(4):
            row, column = lane // 4, 2 * (lane % 4)
            expected = matrices[m, row, column] | np.uint32(matrices[m, row, column + 1]) << 16
            assert plain[lane, m] == expected
            assert transposed[lane, m] == matrices[m, column, row] | np.uint32(matrices[m, column + 1, row]) << 16
    np.testing.assert_array_equal(back.reshape(-1).view(np.uint16), matrices.reshape(-1))


def test_bytes_of_two_words(module: EmulatedModule) -> None:
    random, found = np.random.default_rng(2), np.zeros(64, np.uint32)
    first, second = (random.integers(0, 2**32, 64, np.uint32) for _ in range(2))
    places = random.integers(0, 8, (64, 4))
    module.launch("bytes", 1, 64, [first, second, (places << np.arange(0, 16, 4)).sum(1).astype(np.uint32), found])
    both = np.concatenate([first.view(np.uint8).reshape(64, 4), second.view(np.uint8).reshape(64, 4)], 1)
    np.testing.assert_array_equal(found.view(np.uint8).reshape(64, 4), np.take_along_axis(both, places, 1))


# --- conversions: every value of 16 and 8 bits, and the middle between neighbours ---

@pytest.mark.parametrize("kernel, dtype, word", [
    ("f16", np.float16, np.uint16), ("bf16", ml_dtypes.bfloat16, np.uint16), ("e4m3", ml_dtypes.float8_e4m3fn, np.uint8),
    ("e5m2", ml_dtypes.float8_e5m2, np.uint8)])
def test_conversions(module: EmulatedModule, kernel: str, dtype: type, word: type) -> None:
    bits = np.arange(2**(8 * np.dtype(word).itemsize)).astype(word)
    wide = np.zeros(bits.size, np.float32)
    module.launch(f"widen_{kernel}", 1, 64, [bits, wide, bits.size])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(wide, bits.view(dtype).astype(np.float32))
    finite = wide[np.isfinite(wide)]
    steps = np.sort(finite)
    middle = steps[1:] / 2 + steps[:-1] / 2
    values = np.concatenate([finite, middle, np.nextafter(middle, np.float32(9e9)),
                             np.float32([0.0, -0.0, 1e-45, -1e-40])]).astype(np.float32)
    narrow = np.zeros(values.size, word)
    module.launch(f"narrow_{kernel}", 1, 64, [values, narrow, values.size])
    np.testing.assert_array_equal(narrow, values.astype(dtype).view(word))
    special = np.zeros(4, word)
    module.launch(f"narrow_{kernel}", 1, 64, [np.float32([np.nan, np.inf, -np.inf, 3e38]), special, 4])
    converted = special.view(dtype).astype(np.float32)
    assert np.isnan(converted[0])
    largest = float(ml_dtypes.finfo(dtype).max)
    limit = np.inf if kernel in ("f16", "bf16") else largest  # 8 bits saturate
    assert converted[1] == limit and converted[2] == -limit
    assert converted[3] == (limit if kernel != "bf16" else np.float32(3e38).astype(dtype))


def test_conversions_of_doubles_round_as_in_numpy(module: EmulatedModule) -> None:
    random = np.random.default_rng(5)
    halves = random.integers(0, 2**15, 2000).astype(np.uint16)
    near = halves.view(np.float16).astype(np.float64)
    near = near[np.isfinite(near)]
    middle = near * (1 + 2.0**-11) * (1 + np.tile([0, 2.0**-40, -2.0**-40], near.size)[:near.size])
    values = np.concatenate([near, middle, random.standard_normal(500), [np.inf, 1e300, 1e-300, -0.0, 65519.99999999999]])
    f16, bf16 = np.zeros(values.size, np.uint16), np.zeros(values.size, np.uint16)
    module.launch("narrow_doubles", 1, 64, [values, f16, bf16, values.size])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(f16, values.astype(np.float16).view(np.uint16))
        np.testing.assert_array_equal(bf16, values.astype(ml_dtypes.bfloat16).view(np.uint16))  # by way of float32


def test_words_of_two_and_tf32(module: EmulatedModule) -> None:
    values = np.float32([1.0, -2.5, 3.14159, 65520.0, 1.00048828125, 1.000244140625, np.inf, -1e-3])
    words = np.zeros((3, values.size), np.uint32)
    module.launch("pack", 1, 8, [values, words])
    with np.errstate(over="ignore"):
        for row, dtype in ((0, np.float16), (1, ml_dtypes.bfloat16)):
            bits = values.astype(dtype).view(np.uint16).astype(np.uint32)
            np.testing.assert_array_equal(words[row], bits | np.roll(bits, -1) << 16)
    np.testing.assert_array_equal((words[2] & 0xFFFFE000).view(np.float32), round_to_tf32(values))  # units do not read the other bits
    values = np.uint32([0x7F800001, 0xFF801000, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800000, 0x7F7FF000, 0x7F7FEFFF, 0x00001FFF]).view(np.float32)
    module.launch("pack", 1, 8, [values, words])
    np.testing.assert_array_equal((words[2] & 0xFFFFE000).view(np.float32), round_to_tf32(values))


# --- warps, atomics, copies ---

def test_shuffles_and_votes(module: EmulatedModule) -> None:
    results = np.zeros((8, 64), np.int64)
    module.launch("shuffles", 1, 64, [results])
    lane = np.arange(64) % 32
    base = np.arange(64) - lane
    np.testing.assert_array_equal(results[0], base + (lane ^ 5))
    np.testing.assert_array_equal(results[1], base + np.where(lane + 3 < 32, lane + 3, lane))
    np.testing.assert_array_equal(results[2], base + np.where(lane % 16 >= 2, lane - 2, lane))
    np.testing.assert_array_equal(results[3], base + lane // 8 * 8 + 7)
    np.testing.assert_array_equal(results[4], np.full(64, 0x55555555))
    np.testing.assert_array_equal(results[5], [sum(range(i // 8 * 8, i // 8 * 8 + 8)) for i in range(64)])
    np.testing.assert_array_equal(results[6], [i // 32 * 32 + 31 for i in range(64)])
    np.testing.assert_array_equal(results[7], (np.arange(64) // 32 == 0).astype(np.int64))


def test_atomics(module: EmulatedModule) -> None:
    whole = np.zeros(6, np.int32)
    single, half, byte = np.float32([0, 1, -5, 5]), np.zeros(3, np.float16), np.zeros(5, np.uint8)
    module.launch("atomics", 3, 64, [whole, single, half, byte])
    assert whole.tolist() == [192, 63, -63, 0x3F, 0, 0]
    np.testing.assert_array_equal(single, np.float32([192, 1, 63, -63]))
    assert half.tolist() == [192.0, 63.0, 0.0] and byte.tolist() == [0, 192, 63, 0, 0]


def test_first_failure_wins(module: EmulatedModule) -> None:
    failure = np.zeros(3, np.int64)
    module.launch("fails", 2, 32, [failure])
    assert failure.view(np.int32)[:2].tolist() == [7, 3] and failure[1:].tolist() == [4, 99]


def test_pipeline_of_copies(module: EmulatedModule) -> None:
    """Three stages under way, the last one shorter than it is wide."""
    source = np.random.default_rng(6).standard_normal(1000).astype(np.float32)
    result = np.zeros(1000, np.float32)
    module.launch("pipeline", 1, 32, [source, result, 1000], shared_bytes=3 * 512)
    np.testing.assert_array_equal(result, source * 2)


def test_vectors_of_elements(module: EmulatedModule) -> None:
    source = np.random.default_rng(7).integers(0, 256, (5, 1024), np.uint8)
    result = np.zeros((5, 1024), np.uint8)
    module.launch("vectors", 1, 32, [source.reshape(-1), result.reshape(-1)])
    for number, count in enumerate((2, 4, 8, 16, 32)):
        np.testing.assert_array_equal(result[number, :32 * count].reshape(32, count), source[number, :32 * count].reshape(32, count)[:, ::-1])


def test_named_barriers(module: EmulatedModule) -> None:
    result = np.zeros(32, np.float32)
    module.launch("producer", 1, 64, [np.arange(32, dtype=np.float32), result], shared_bytes=128)
    np.testing.assert_array_equal(result, np.arange(32)[::-1])


def test_last_block_sums_what_the_others_stored(module: EmulatedModule) -> None:
    partial, result, count = np.zeros(8, np.float32), np.zeros(1, np.float32), np.zeros(1, np.uint32)
    module.launch("last_block", 8, 32, [partial, result, count])
    assert result[0] == sum(range(8)) * 32 + 8 * 496


def test_bulk_copies(module: EmulatedModule) -> None:
    """Two stages, brought by the copy engine, changed by the threads, and stored by the copy engine."""
    source = np.random.default_rng(8).standard_normal(640).astype(np.float32)
    result = np.zeros(640, np.float32)
    module.launch("bulk_copies", 1, 64, [source, result, 640], shared_bytes=1040)
    np.testing.assert_array_equal(result, source * 2)


@pytest.mark.parametrize("columns, dtype", [(64, np.float16), (128, ml_dtypes.bfloat16), (256, ml_dtypes.bfloat16)])
def test_products_of_four_warps(module: EmulatedModule, columns: int, dtype: type) -> None:
    """Small whole numbers: sums are exact. The largest takes one step of 16, the others go through all four of a row."""
    random = np.random.default_rng(9)
    left, right = (random.integers(-3, 4, (n, 64)).astype(dtype) for n in (64, columns))
    result = np.zeros((64, columns), np.float32)
    module.launch(f"wgmma_{columns}", 1, 128, [left.view(np.uint16), right.view(np.uint16), result], shared_bytes=8192 + columns * 128)
    steps = 16 if columns == 256 else 64
    np.testing.assert_array_equal(result, left[:, :steps].astype(np.float32) @ right[:, :steps].astype(np.float32).T)


@pytest.mark.parametrize("name, columns, left, right", [
    ("s8", 64, np.int8, np.int8), ("u8s8", 128, np.uint8, np.int8), ("e4m3", 256, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
    ("e5m2", 64, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2)])
def test_products_of_bytes_by_four_warps(module: EmulatedModule, name: str, columns: int, left: type, right: type) -> None:
    random = np.random.default_rng(10)
    a, b = (random.integers(0 if kind is np.uint8 else -4, 5, (n, 128)).astype(kind) for kind, n in ((left, 64), (right, columns)))
    result = np.zeros((64, columns), np.int32 if "s8" in name else np.float32)
    module.launch(f"wgmma_{name}", 1, 128, [*(x.view(np.uint8) for x in (a, b)), result], shared_bytes=8192 + columns * 128)
    np.testing.assert_array_equal(result, a.astype(result.dtype) @ b.astype(result.dtype).T)


@pytest.mark.parametrize("columns", [64, 128, 256])
def test_products_of_tf32_by_four_warps(module: EmulatedModule, columns: int) -> None:
    """The left operand comes from registers, which are read until the product has been waited for. The unit drops the last 13 bits."""
    random = np.random.default_rng(11)
    left, right = (random.integers(-3, 4, (n, 32)).astype(np.float32) for n in (64, columns))
    given = [(x.view(np.uint32) | np.where(x != 0, 0x1FFF, 0).astype(np.uint32)).view(np.float32) for x in (left, right)]
    result = np.zeros((64, columns), np.float32)
    module.launch(f"wgmma_tf32_{columns}", 1, 128, [*given, result, 0], shared_bytes=8192 + columns * 128)
    np.testing.assert_array_equal(result, left @ right.T)
    with pytest.raises(EmulationError, match="registers were changed while a product was reading them"):
        module.launch(f"wgmma_tf32_{columns}", 1, 128, [*given, result, 1], shared_bytes=8192 + columns * 128)


# --- scalar functions against the table of the IR ---

INTEGERS = {"i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64}
INTEGER_FUNCTIONS = ("floordiv", "mod", "rem", "pow", "shl", "shr", "max", "min")
FLOAT_FUNCTIONS = ("floordiv", "mod", "rem", "max", "min", "pow", "atan2", "copysign")


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_functions(module: EmulatedModule, name: str) -> None:
    from tilewright.ir.ops.scalar import SCALARS
    dtype = INTEGERS[name]
    info = np.iinfo(dtype)
    values = np.unique(np.array([info.min, info.min + 1, -7, -2, -1, 0, 1, 2, 3, 7, 8, 13, 31, 63, 64, 100, info.max - 1, info.max],
                                dtype=object).clip(info.min, info.max).astype(dtype))
    a, b = (np.ascontiguousarray(side.reshape(-1)) for side in np.meshgrid(values, values))
    results = np.zeros((len(INTEGER_FUNCTIONS), a.size), dtype)
    module.launch(f"integers_{name}", 1, 32, [a, b, results, a.size])
    with np.errstate(all="ignore"):
        for row, function in enumerate(INTEGER_FUNCTIONS):
            expected = SCALARS[function].numpy(a, b)
            np.testing.assert_array_equal(results[row], expected, err_msg=function)


@pytest.mark.parametrize("name, dtype", [("f32", np.float32), ("f64", np.float64)])
def test_float_functions(module: EmulatedModule, name: str, dtype: type) -> None:
    from tilewright.ir.ops.scalar import SCALARS
    values = np.array([-np.inf, -7.5, -3.0, -1.0, -0.3, -0.0, 0.0, 0.3, 1.0, 2.0, 3.0, 7.5, 1e30, np.inf, np.nan], dtype)
    a, b = (np.ascontiguousarray(side.reshape(-1)) for side in np.meshgrid(values, values))
    results = np.zeros((len(FLOAT_FUNCTIONS), a.size), dtype)
    module.launch(f"floats_{name}", 1, 32, [a, b, results, a.size])
    with np.errstate(all="ignore"):
        for row, function in enumerate(FLOAT_FUNCTIONS):
            expected = SCALARS[function].numpy(a, b)
            np.testing.assert_allclose(results[row], expected, rtol=4 * np.finfo(dtype).eps, err_msg=function)
            if function in ("floordiv", "mod", "copysign"):
                kept = ~np.isnan(expected)
                np.testing.assert_array_equal(np.signbit(results[row][kept]), np.signbit(expected[kept]), err_msg=function)


def test_casts_of_floats_to_integers(module: EmulatedModule) -> None:
    values = np.float64([np.nan, np.inf, -np.inf, 0.9, -0.9, 127.5, 128.0, -128.9, -129.0, 300.0, -1.0, 3e9, -3e9, 1e19, -1e19, 2e19])
    results = np.zeros((8, values.size), np.int64)
    module.launch("casts", 1, 32, [values, results, values.size])
    for row, dtype in enumerate(INTEGERS.values()):
        info = np.iinfo(dtype)
        expected = [0 if v != v else int(min(max(v, info.min), info.max)) if np.isinf(v) else min(max(int(v), info.min), info.max) for v in values]
        assert results[row].tolist() == np.array(expected, dtype=object).astype(dtype).astype(np.int64).tolist()


# --- faults ---

HOPPER = ("missing_mbarrier_wait", "wrong_byte_count", "too_many_arrivals", "missing_proxy_fence", "store_changed_under_way", "missing_wgmma_wait",
          "copy_over_operand")


@pytest.mark.parametrize("kernel, threads, message", [
    ("race_of_stores", 64, r"race: writes 4 bytes at byte 0 of tile, which thread \(0, 0, 0\) has stored with nothing between"),
    ("race_after_read", 64, r"race: .* tile, which thread \(\d+, 0, 0\) has (read|stored) with nothing between"),
    ("race_within_a_warp", 32, r"race: reads .* which thread"),
    ("race_in_global_memory", 64, r"race: reads 4 bytes at byte \d+ of array 0"),
    ("race_of_blocks", 32, r"block \(1, 0, 0\).*race: writes 4 bytes at byte 0 of array 0, which another block has stored"),
    ("uninitialised", 32, r"thread \(16, 0, 0\): reads 4 bytes at byte 64 of tile, which nothing has stored"),
    ("beyond_array", 32, r"thread \(31, 0, 0\): writes 4 bytes outside of all arrays: at byte 256 of array 0, which has 256"),
    ("before_array", 32, r"thread \(0, 0, 0\): reads 4 bytes outside of all arrays"),
    ("beyond_shared", 64, r"thread \(32, 0, 0\): writes 4 bytes outside of shared memory: at byte 128 of tile, which has 128"),
    ("beyond_dynamic", 64, r"thread \(32, 0, 0\): writes 4 bytes outside of the arrays in shared memory"),
    ("too_much_dynamic", 32, r"array tile ends at byte 4096 of shared memory; the launch asked for 128"),
    ("missing_wait", 32, r"reads 4 bytes at byte 0 of tile, which an asynchronous copy is yet to fill: a wait is missing"),
    ("missing_barrier_after_wait", 32, r"race: reads 4 bytes .* of tile"),
    ("copy_over_what_is_read", 32, r"race: .* tile, which thread \(\d+, 0, 0\) has (read|stored)"),
    ("no_wait_at_all", 32, r"returns while asynchronous copies are under way"),
    ("unaligned_copy", 32, r"not aligned"),
    ("unaligned_vector", 32, r"a vector of elements that does not begin at a multiple of its bytes"),
    ("vector_beyond_array", 32, r"thread \(16, 0, 0\): writes 16 bytes outside of all arrays"),
    ("divergent_barrier", 64, r"threads wait for one another and none can go on: 32 wait at a barrier of the block .*, 32 wait at barrier 1"),
    ("divergent_shuffle", 32, r"lane 16 is at a vote while others of its warp are at a shuffle"),
    ("lane_outside_mask", 32, r"lane 1 calls a function of a warp with mask 0x00000001, which leaves it out"),
    ("half_a_warp", 32, r"16 wait at a shuffle .*16 wait at a barrier of the block"),
    ("uneven_barrier", 64, r"barrier 2 for 40 threads, which is no whole number of warps"),
    ("missing_mbarrier_wait", 32, r"reads 4 bytes at byte \d+ of tile, which (an asynchronous copy is yet to fill|nothing has stored)"),
    ("wrong_byte_count", 32, r"threads wait for one another and none can go on: 32 wait at an mbarrier"),
    ("too_many_arrivals", 32, r"more arrivals at an mbarrier than it was initialised for"),
    ("missing_proxy_fence", 128, r"a unit reads 16 bytes at byte 0 of tile, which thread .* has stored without tw_async_proxy_fence"),
    ("store_changed_under_way", 32, r"shared memory was changed while a bulk copy was reading it"),
    ("missing_wgmma_wait", 128, r"returns while asynchronous copies are under way"),
    ("copy_over_operand", 128, r"reads 16 bytes at byte \d+ of tile, which an asynchronous copy is yet to fill: a wait is missing"),
    ("stores_to_input", 32, r"array 1, which is only read"),
])
def test_faults(faults: EmulatedModule, kernel: str, threads: int, message: str) -> None:
    memory, fixed = np.zeros(64, np.float32), np.zeros(64, np.float32)
    fixed.flags.writeable = False
    blocks = 2 if kernel == "race_of_blocks" else 1
    with pytest.raises(EmulationError, match=message) as caught:
        faults.launch(kernel, blocks, threads, [memory, fixed], shared_bytes=8320 if kernel in HOPPER else 128)
    assert f"kernel {kernel}, " in str(caught.value)
    assert "  line " in str(caught.value) or kernel in ("no_wait_at_all", "missing_wgmma_wait")  # which are found behind the last line


def test_no_fault_after_a_fault(faults: EmulatedModule) -> None:
    memory, fixed = np.zeros(64, np.float32), np.arange(64, dtype=np.float32)
    with pytest.raises(EmulationError):
        faults.launch("uninitialised", 1, 32, [memory, fixed])
    faults.launch("no_fault", 2, 64, [memory, fixed], shared_bytes=256)
    np.testing.assert_array_equal(memory, np.arange(64)[::-1])


def test_threads_that_returned_are_not_waited_for(faults: EmulatedModule) -> None:
    memory, fixed = np.zeros(64, np.float32), np.arange(64, dtype=np.float32)
    faults.launch("some_return", 1, 64, [memory, fixed])
    np.testing.assert_array_equal(memory, [0] * 32 + list(range(32, 64)))


def test_bad_launches(module: EmulatedModule) -> None:
    zeros = np.zeros(4, np.float32)
    for name, grid, block, arguments, message in (
            ("absent", 1, 32, [], "no kernel absent; there are "),
            ("fails", 1, 32, [], "kernel fails takes 1 arguments, found 0"),
            ("fails", 1, 2048, [zeros], "a block of 2048 threads; it has 1 to 1024"),
            ("fails", 0, 32, [zeros], "a grid without blocks"),
            ("fails", 1, 32, [3], "argument 0 is a int, the parameter a tw_failure *"),
            ("pipeline", 1, 32, [zeros, zeros, zeros], "argument 2 is an array, the parameter a long long"),
            ("fails", 1, 32, [np.zeros((4, 4))[:, 0]], "argument 0 is not contiguous")):
        with pytest.raises(EmulationError) as caught:
            module.launch(name, grid, block, arguments)
        assert message in str(caught.value)
    with pytest.raises(EmulationError, match="300000 bytes of shared memory; a block has 232448"):
        module.launch("fails", 1, 32, [zeros], shared_bytes=300000)


def test_a_source_that_does_not_compile_is_an_error_with_its_text() -> None:
    with pytest.raises(EmulationError, match="(?s)the host compiler refuses the source.*nonsense"):
        emulate('#include "device.h"\nextern "C" __global__ void broken(float *out) { nonsense(out); }\n')


def test_kernels_are_found_in_a_source() -> None:
    found = find_kernels('extern "C" __global__ void __launch_bounds__(128)\n  many(const float *__restrict__ a,\n       float *b, long long n) {}\n'
                         'extern "C" __global__ void none() {}')
    assert [(k.name, k.parameters) for k in found] == [("many", ("const float *__restrict__", "float *", "long long")), ("none", ())]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_100"])
def test_header_compiles(architecture: str, tmp_path: Path) -> None:
    """Every function of the header in use, for the device; what is not of an architecture is left out there."""
    source = tmp_path / "device.cu"
    source.write_text(SOURCE)
    finished = subprocess.run(["nvcc", "-std=c++17", "--fmad=false", f"-arch={architecture}", "-I", str(HEADER), "-cubin", "-Xptxas", "-v",
                               "-Werror", "all-warnings", "-o", str(tmp_path / "device.cubin"), str(source)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    spills = [line for line in finished.stderr.splitlines() if "spill" in line and " 0 bytes spill stores" not in line]
    assert not spills, spills
