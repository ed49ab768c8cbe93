"""Kernels of blocks, threads and warps: text, rules, and meaning in the loop interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.ir.errors import CompileError, VerifyError
from tilewright.ir.loop_gpu import block_loops, shared_bytes, shared_bytes_of_block, threads_of
from tilewright.ir.loop_interp import run_kernel
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.loop_verify import verify_kernel
from tilewright.ir.ops.weight_only import words_of_codes

REVERSE = """kernel @reverse[n: 1..](%x: in f32[n], %y: out f32[n]) {
  for %b in 0..((n + 3) // 4) block {
    alloc %tile: f32[4] shared
    for %t in 0..4 thread {
      if lt(index(4*b + t), index(n)) {
        %tile[t] = load %x[4*b + t]
      } else {
        %tile[t] = f32 0.0
      }
    }
    for %u in 0..4 thread {
      if lt(index(4*b - u + 3), index(n)) {
        %y[4*b - u + 3] = load %tile[-u + 3]
      }
    }
  }
}
"""
SUMS = """kernel @sums(%x: in f32[64], %y: out f32[64], %z: inout f32[1]) {
  for %b in 0..1 block {
    alloc %sum: f32[64] register
    for %t in 0..64 thread {
      %sum[t] = load %x[t]
    }
    collect add %sum over 32
    for %u in 0..64 thread {
      %y[u] = load %sum[u]
      atomic %z[0] add= load %x[u]
    }
  }
}
"""
PRODUCT = """kernel @product(%x: in f32[256], %w: in f32[128], %y: out f32[512]) {
  for %b in 0..1 block {
    alloc %left: f32[32, 8] shared
    alloc %right: f32[8, 16] shared
    alloc %sums: f32[2, 16, 16] fragment
    for %t in 0..64 thread {
      copy_async %left[(t // 2), 4*(t % 2)] = %x[4*t], 4
      if lt(index(t), index(32)) {
        copy_async %right[(t // 4), 4*(t % 4)] = %w[4*t], 4
      }
    }
    commit
    for %w0 in 0..2 warp {
      for %e in 0..256 lane {
        %sums[w0, (e // 16), (e % 16)] = f32 0.0
      }
    }
    wait 0
    for %w1 in 0..2 warp {
      matmul_tile %sums, %left[16*w1, 0], %right[0, 0], 8
    }
    for %w2 in 0..2 warp {
      for %e2 in 0..256 lane {
        %y[e2 + 256*w2] = load %sums[w2, (e2 // 16), (e2 % 16)]
      }
    }
  }
}
"""


CODES = (PRODUCT.replace("%x: in f32[256]", "%x: in i8[1024]").replace("%w: in f32[128]", "%w: in i32[64]").replace("f32[512]", "i32[512]")
         .replace("%left: f32[32, 8]", "%left: i8[32, 32]").replace("%right: f32[8, 16]", "%right: i32[4, 16]")
         .replace("%sums: f32", "%sums: i32").replace("f32 0.0", "i32 0").replace("%left[(t // 2), 4*(t % 2)] = %x[4*t], 4",
                                                                                  "%left[(t // 2), 16*(t % 2)] = %x[16*t], 16")
         .replace("index(32)", "index(16)").replace("matmul_tile %sums, %left[16*w1, 0], %right[0, 0], 8",
                                                    "matmul_codes %sums, %left[16*w1, 0], %right[0, 0], 32, 4, 8"))


TF32 = PRODUCT.replace("matmul_tile", "matmul_tf32")
ZEROS = PRODUCT.replace("= %x[4*t], 4", "= %x[4*t + 8], 4 given lt(index(t), index(62))")  # rows from 1 on, and one of zeros


@pytest.mark.parametrize("text", [REVERSE, SUMS, PRODUCT, TF32, CODES, ZEROS], ids=["reverse", "sums", "product", "tf32", "codes", "zeros"])
def test_text(text: str) -> None:
    kernel = parse_kernel(text)
    verify_kernel(kernel)
    assert format_kernel(kernel) == text


def test_what_a_kernel_takes() -> None:
    kernel = parse_kernel(PRODUCT)
    assert threads_of(kernel) == 64
    assert shared_bytes(kernel.body) == shared_bytes_of_block(kernel) == 1024 + 512
    assert [loop.extent for loop in block_loops(kernel)] == [1]


@pytest.mark.parametrize("n", [1, 4, 7])
def test_threads_exchange_shared_memory(n: int) -> None:
    x, y = np.arange(n, dtype=np.float32), np.zeros(n, np.float32)
    run_kernel(parse_kernel(REVERSE), [x, y], {"n": n})
    np.testing.assert_array_equal(y, x)


def test_collect_and_atomic() -> None:
    x, y, z = np.arange(64, dtype=np.float32), np.zeros(64, np.float32), np.ones(1, np.float32)
    run_kernel(parse_kernel(SUMS), [x, y, z], {})
    np.testing.assert_array_equal(y, np.repeat([x[:32].sum(), x[32:].sum()], 32))
    assert z[0] == 1 + x.sum()


@pytest.mark.parametrize("checked", [True, False])
def test_products_of_copies(checked: bool) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-4, 5, n).astype(np.float32) for n in (256, 128))
    y = np.zeros(512, np.float32)
    run_kernel(parse_kernel(PRODUCT), [x, w, y], {}, checked=checked)
    np.testing.assert_array_equal(y.reshape(32, 16), x.reshape(32, 8) @ w.reshape(8, 16))


def test_products_of_operands_that_are_rounded() -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-4, 5, n).astype(np.float32) for n in (256, 128))
    y = np.zeros(512, np.float32)
    run_kernel(parse_kernel(TF32), [x * np.float32(1 + 2.0**-12), w * np.float32(1 - 2.0**-13), y], {})
    np.testing.assert_array_equal(y.reshape(32, 16), x.reshape(32, 8) @ w.reshape(8, 16))
    halves = TF32.replace("in f32", "in f16").replace("f32[32, 8]", "f16[32, 8]").replace("f32[8, 16]", "f16[8, 16]")
    with pytest.raises(VerifyError, match="matmul_tf32 adds f16 times f16 to f32, expected f32 for all"):
        verify_kernel(parse_kernel(halves))


@pytest.mark.parametrize("checked", [True, False])
def test_copies_of_what_is_not_there_are_zeros(checked: bool) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-4, 5, n).astype(np.float32) for n in (256, 128))
    y = np.zeros(512, np.float32)
    run_kernel(parse_kernel(ZEROS), [x, w, y], {}, checked=checked)
    rows = np.concatenate([x.reshape(32, 8)[1:], np.zeros((1, 8), np.float32)])
    np.testing.assert_array_equal(y.reshape(32, 16), rows @ w.reshape(8, 16))
    with pytest.raises(VerifyError, match="outside|%x"):
        run_kernel(parse_kernel(ZEROS.replace("index(62)", "index(63)")), [x, w, y], {})
    with pytest.raises(VerifyError, match="copy_async"):
        verify_kernel(parse_kernel(ZEROS.replace("lt(index(t), index(62))", "index(t)")))


@pytest.mark.parametrize("bits, zero", [(4, 8), (4, 0), (2, 128)])
def test_products_with_codes(bits: int, zero: int) -> None:
    rng = np.random.default_rng(0)
    x, codes = rng.integers(-128, 128, 1024).astype(np.int8), rng.integers(0, 1 << bits, (32, 16))
    w = np.zeros(64, np.int32)
    packed = words_of_codes(codes[None].astype(np.uint8), bits).reshape(-1)
    w[:packed.size] = packed
    y = np.zeros(512, np.int32)
    run_kernel(parse_kernel(CODES.replace("32, 4, 8", f"32, {bits}, {zero}")), [x, w, y], {})
    np.testing.assert_array_equal(y.reshape(32, 16), x.reshape(32, 32).astype(np.int32) @ (codes.astype(np.int32) - zero))


@pytest.mark.parametrize("old, new, message", [
    ("for %u in 0..4 thread {\n      if lt(index(4*b - u + 3), index(n)) {\n        %y[4*b - u + 3] = load %tile[-u + 3]",
     "for %u in 0..4 thread {\n      if lt(index(4*b - u + 3), index(n)) {\n        %y[4*b] = load %tile[-u + 3]", "iterations 0 and 1 of loop u touch"),
    ("%tile[t] = f32 0.0", "%tile[0] = f32 0.0", "iterations 0 and 1 of loop t touch"),
    ("%y[4*b - u + 3] = load", "%y[-u + 3] = load", "of loop b touch"),
], ids=["threads", "shared", "blocks"])
def test_races(old: str, new: str, message: str) -> None:
    assert old in REVERSE
    kernel = parse_kernel(REVERSE.replace(old, new))
    with pytest.raises(VerifyError, match=message):
        run_kernel(kernel, [np.zeros(5, np.float32), np.zeros(5, np.float32)], {"n": 5})


@pytest.mark.parametrize("text, message", [
    (SUMS.replace("atomic %z", "%z"), "touch element 0 of %z"),
    (SUMS.replace("      %sum[t] = load %x[t]\n", "      if lt(index(t), index(63)) {\n        %sum[t] = load %x[t]\n      }\n"),
     "element 63 of %sum is read, but nothing"),
    (PRODUCT.replace("    wait 0\n", ""), "%left is read, but nothing"),
    (PRODUCT.replace("    wait 0\n", "    wait 1\n"), "%left is read, but nothing"),
    (PRODUCT.replace("%left[16*w1, 0]", "%left[20*w1, 0]"), "outside axis 0 of 32"),
], ids=["not atomic", "unset", "no wait", "late wait", "outside"])
def test_faults(text: str, message: str) -> None:
    kernel = parse_kernel(text)
    arrays = [np.zeros(int(b.shape[0]), np.float32) for b in kernel.buffers]
    with pytest.raises(VerifyError, match=message):
        run_kernel(kernel, arrays, {})


@pytest.mark.parametrize("old, new, message", [
    ("for %t in 0..64 thread", "for %t in 0..64 lane", "lane loop t stands in a block loop, expected a warp loop"),
    ("for %t in 0..64 thread", "for %t in 0..2000 thread", "has the extent 2000, expected a static one of 1 to 1024"),
    ("for %b in 0..1 block", "for %b in 0..1 parallel", "alloc|stands in no block"),
    ("%sum[t] = load %x[t]", "%sum[0] = load %x[t]", "expected one size an axis, first the variable of the thread loop"),
    ("collect add %sum over 32", "collect add %sum over 48", "collect over 48 of 64 threads"),
    ("collect add %sum over 32", "collect sub %sum over 32", "collect combines by 'sub'"),
    ("    collect add %sum over 32\n", "    %y[0] = f32 0.0\n", "%y is stored to in a block loop, outside the threads"),
    ("    collect add %sum over 32\n", "    alloc %m: f32[4] local\n", "local buffer %m is allocated between the threads"),
    ("    collect add %sum over 32\n", "    wait 9\n", "wait leaves 9 groups"),
    ("atomic %z[0] add= load %x[u]", "atomic %z[0] = load %x[u]", "atomic store to %z, expected one that combines"),
    ("      %sum[t] = load %x[t]\n", "      alloc %m: f32[4] shared\n      %sum[t] = load %x[t]\n", "shared buffer %m is allocated in a thread loop"),
], ids=lambda value: "" if isinstance(value, str) and len(value) > 40 else str(value))
def test_rules(old: str, new: str, message: str) -> None:
    assert old in SUMS
    with pytest.raises(VerifyError, match=message):
        verify_kernel(parse_kernel(SUMS.replace(old, new)))


@pytest.mark.parametrize("old, new, message", [
    ("= %x[4*t], 4", "= %x[4*t], 3", "copy_async of 12 bytes"),
    ("matmul_tile %sums, %left", "matmul_tile %left, %left", "expected a fragment"),
    ("      matmul_tile %sums, %left[16*w1, 0], %right[0, 0], 8\n", "      commit\n", "commit stands in a warp loop"),
    ("load %sums[w2, (e2 // 16), (e2 % 16)]", "load %sums[0, (e2 // 16), (e2 % 16)]", "first the variable of the warp loop"),
    ("%left[16*w1, 0], %right", "%left[16*w1], %right", "matmul_tile|index of %left"),
])
def test_rules_of_matrices(old: str, new: str, message: str) -> None:
    assert old in PRODUCT
    with pytest.raises(VerifyError, match=message):
        verify_kernel(parse_kernel(PRODUCT.replace(old, new)))


@pytest.mark.parametrize("old, new, message", [
    ("32, 4, 8", "32, 8, 8", "codes of 8 bits, expected i8, 2 or 4 bits"), ("32, 4, 8", "12, 4, 8", "multiplies 12 steps .* whole words"),
    ("32, 4, 8", "32, 4, 129", "subtracts 129, expected 0 to 128"), ("32, 4, 8", "64, 4, 8", "outside|part"),
    ("32, 4, 8", "32, 4", "expected"),
])
def test_rules_of_codes(old: str, new: str, message: str) -> None:
    assert old in CODES
    with pytest.raises((VerifyError, CompileError), match=message):
        kernel = parse_kernel(CODES.replace(old, new))
        verify_kernel(kernel)
        run_kernel(kernel, [np.zeros(1024, np.int8), np.zeros(64, np.int32), np.zeros(512, np.int32)], {})
