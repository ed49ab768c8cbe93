"""Checks every function of the device header on the device against its emulation, with the kernels of the tests.

The emulation is what tests hold kernels to, so this is what shows that it tells the truth: equal bits, but for the sums inside of matrix
instructions of floats, which hardware rounds in ways of its own, and the last bits of the C library's functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from benchmarks.gpu_driver import Device
from tilewright.backends.cuda.compile import compile_source
from tilewright.backends.cuda.emulate import emulate, shared_library
from tilewright.runtime.cache import Cache

Array = np.ndarray
SOURCE = Path(__file__).parent.parent / "tests" / "data" / "cuda_device.cu"
INTEGERS = {"i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64, "u8": np.uint8, "u16": np.uint16, "u32": np.uint32,
            "u64": np.uint64}


@dataclass(frozen=True)
class Wrapper:
    """A launch of a kernel of the source. `tolerance`: of float results, relative to the largest; 0: equal bits (any NaN for a NaN)."""

    kernel: str
    block: int
    make: Callable[[np.random.Generator], list[object]]
    result: np.dtype
    tolerance: float = 0.0
    grid: int = 1
    shared_bytes: int = 0
    needs: str = "sm_80"    # the least architecture, or the only one where it ends in a letter

    def serves(self, architecture: str) -> bool:
        """Whether the source has the kernel on an architecture."""
        if architecture == "emulated" or self.needs == architecture:
            return True
        return self.needs[-1].isdigit() and int(self.needs[3:]) <= int(architecture[3:].rstrip("af"))


def wrappers() -> list[Wrapper]:
    """All kernels of the source."""
    single, whole = np.dtype(np.float32), np.dtype(np.int32)
    found: list[Wrapper] = []
    for name, dtype, count in (("f16", np.float16, 2), ("bf16", None, 2), ("tf32", np.float32, 1), ("e4m3", None, 4), ("e5m2", None, 4)):
        found.append(Wrapper(f"mma_{name}", 32, lambda r, d=dtype, n=count: _float_words(r, d, n), single, 1e-6,
                             needs="sm_89" if count == 4 else "sm_80"))
    for name in ("s8", "s8_of_16_steps", "u8", "u8s8", "s8u8"):
        found.append(Wrapper(f"mma_{name}", 32, lambda r: [_words(r, 128), _words(r, 64), _words(r, 128).view(np.int32)], whole))
    for columns, dtype in ((64, np.float16), (128, ml_dtypes.bfloat16), (256, ml_dtypes.bfloat16)):
        found.append(Wrapper(f"wgmma_{columns}", 128, lambda r, n=columns, d=dtype: [
            *(r.standard_normal((m, 64)).astype(d).view(np.uint16) for m in (64, n)), np.zeros((64, n), np.float32)], single, 1e-6,
            shared_bytes=8192 + 128 * columns, needs="sm_90a"))
    for name, columns, dtype in (("s8", 64, np.int8), ("u8s8", 128, np.int8), ("e4m3", 256, ml_dtypes.float8_e4m3fn),
                                 ("e5m2", 64, ml_dtypes.float8_e5m2)):
        sums = whole if "s8" in name else single
        found.append(Wrapper(f"wgmma_{name}", 128, lambda r, n=columns, d=dtype, s=sums: [
            *(r.integers(0, 5, (m, 128)).astype(d).view(np.uint8) for m in (64, n)), np.zeros((64, n), s)], sums,
            shared_bytes=8192 + 128 * columns, needs="sm_90a"))
    for columns in (64, 128, 256):
        found.append(Wrapper(f"wgmma_tf32_{columns}", 128, lambda r, n=columns: [
            *(r.standard_normal((m, 32), np.float32) for m in (64, n)), np.zeros((64, n), np.float32), 0], single, 1e-6,
            shared_bytes=8192 + 128 * columns, needs="sm_90a"))
    found.append(Wrapper("bulk_copies", 64, lambda r: [_floats(r)[:640].copy(), np.zeros(640, np.float32), 640], single, shared_bytes=1040,
                         needs="sm_90"))
    found.append(Wrapper("bytes", 64, lambda r: [_words(r, 64), _words(r, 64), _words(r, 64) & 0x77777777, np.zeros(64, np.uint32)], whole))
    found.append(Wrapper("matrices", 32, lambda r: [_words(r, 128).view(np.uint16), *(np.zeros(128, np.uint32) for _ in range(3))], whole,
                         needs="sm_90"))
    for name, word in (("f16", np.uint16), ("bf16", np.uint16), ("e4m3", np.uint8), ("e5m2", np.uint8)):
        bits = np.arange(2 ** (8 * np.dtype(word).itemsize)).astype(word)
        found.append(Wrapper(f"widen_{name}", 64, lambda r, b=bits: [b.copy(), np.zeros(b.size, np.float32), b.size], single,
                             needs="sm_89" if word == np.uint8 else "sm_80"))
        found.append(Wrapper(f"narrow_{name}", 64, lambda r, w=word: [_floats(r), np.zeros(4096, w), 4096], np.dtype(word),
                             needs="sm_89" if word == np.uint8 else "sm_80"))
    found.append(Wrapper("narrow_doubles", 64, lambda r: [_floats(r).astype(np.float64) * (1 + 2.0**-30), np.zeros(4096, np.uint16),
                                                          np.zeros(4096, np.uint16), 4096], np.dtype(np.uint16)))
    found.append(Wrapper("pack", 8, lambda r: [_floats(r)[:8].copy(), np.zeros(24, np.uint32)], whole))
    found.append(Wrapper("shuffles", 64, lambda r: [np.zeros(512, np.int64)], np.dtype(np.int64)))
    found.append(Wrapper("atomics", 64, lambda r: [np.zeros(6, np.int32), np.float32([0, 1, -5, 5]), np.zeros(4, np.float16),
                                                   np.zeros(8, np.uint8)], np.dtype(np.uint8), grid=3))
    found.append(Wrapper("vectors", 32, lambda r: [r.integers(0, 256, 5120, np.uint8), np.zeros(5120, np.uint8)], np.dtype(np.uint8)))
    found.append(Wrapper("pipeline", 32, lambda r: [_floats(r)[:1000].copy(), np.zeros(1000, np.float32), 1000], single, shared_bytes=1536))
    found.append(Wrapper("producer", 64, lambda r: [_floats(r)[:32].copy(), np.zeros(32, np.float32)], single, shared_bytes=128))
    found.append(Wrapper("last_block", 32, lambda r: [np.zeros(8, np.float32), np.zeros(1, np.float32), np.zeros(1, np.uint32)], single,
                         grid=8))
    for name, dtype in INTEGERS.items():
        found.append(Wrapper(f"integers_{name}", 32, lambda r, d=dtype: _pairs(r, np.dtype(d)), np.dtype(dtype)))
    for name, dtype in (("f32", np.float32), ("f64", np.float64)):
        found.append(Wrapper(f"floats_{name}", 32, lambda r, d=dtype: _pairs(r, np.dtype(d)), np.dtype(dtype), 1e-6))
    found.append(Wrapper("casts", 32, lambda r: [_floats(r).astype(np.float64), np.zeros(8 * 4096, np.int64), 4096], np.dtype(np.int64)))
    return found


def check_wrappers(device: Device, architecture: str, cache: Cache | None) -> list[tuple[str, str]]:
    """For each kernel its name and what is wrong with it on the device, if anything. `cache`: where the emulation is kept."""
    text = SOURCE.read_text()
    emulated = emulate(text, cache=cache)
    image = shared_library(text, cache=cache).read_bytes() if architecture == "emulated" else compile_source(text, architecture)
    module = device.load(image)
    known = set(emulated.kernels)
    results = []
    for case in wrappers():
        assert case.kernel in known
        if not case.serves(architecture):
            continue
        expected, found = (case.make(np.random.default_rng(7)) for _ in range(2))
        emulated.launch(case.kernel, case.grid, case.block, expected, case.shared_bytes)
        device.launch(module, case.kernel, case.grid, case.block, found, case.shared_bytes)
        wrong = [text for number, pair in enumerate(zip(expected, found)) if isinstance(pair[0], np.ndarray)
                 and (text := _difference(pair[0], pair[1], case.tolerance))]
        results.append((case.kernel, "; ".join(wrong)))
    return results


def _difference(expected: Array, found: Array, tolerance: float) -> str:
    if expected.dtype.kind != "f" or tolerance == 0.0:
        differs = (expected != found) & ~((expected != expected) & (found != found))
    else:
        with np.errstate(invalid="ignore"):
            scale = np.max(np.abs(expected[np.isfinite(expected)]), initial=1.0) if expected.dtype == np.float32 else np.abs(expected)
            near = np.abs(expected - found) <= tolerance * np.maximum(np.abs(expected), scale if np.ndim(scale) == 0 else 0)
        differs = ~(near | (expected == found) | ((expected != expected) & (found != found)))
    if not differs.any():
        return ""
    first = int(np.argmax(differs.reshape(-1)))
    one, other = found.reshape(-1)[first], expected.reshape(-1)[first]
    return f"{int(differs.sum())} of {expected.size} differ, first {first}: {one}, expected {other}"


def _words(random: np.random.Generator, count: int) -> Array:
    return random.integers(0, 2**32, count, dtype=np.uint32)


def _float_words(random: np.random.Generator, dtype: object, count: int) -> list[object]:
    """Operands of a product of floats: values near 1, whatever the format, of which the top bits of the exponent stay clear."""
    if dtype is not None:
        return [random.standard_normal(n * count).astype(dtype).view(np.uint32) for n in (128, 64)] + \
            [random.standard_normal(128).astype(np.float32)]
    masks = {2: (0x3FFF3FFF, 0x3F003F00), 4: (0xBFBFBFBF, 0)}
    keep, least = masks[count]
    return [(_words(random, n) & np.uint32(keep)) | np.uint32(least) for n in (128, 64)] + [random.standard_normal(128).astype(np.float32)]


def _floats(random: np.random.Generator) -> Array:
    """4096 floats of all magnitudes, with what is special among them; no signalling NaN, which a cast makes quiet."""
    values = random.integers(0, 2**32, 4096, dtype=np.uint32).view(np.float32).copy()
    values[:2048] = random.standard_normal(2048) * np.exp2(random.integers(-30, 20, 2048))
    values[np.isnan(values)] = np.nan
    values[2048:2056] = (0.0, -0.0, np.nan, np.inf, -np.inf, 65520.0, 448.0, 1e-45)
    values[4000:] = 0.0
    return values


def _pairs(random: np.random.Generator, dtype: np.dtype) -> list[object]:
    if dtype.kind == "f":
        edge = np.array([-np.inf, -7.5, -1.0, -0.0, 0.0, 0.3, 1.0, 3.0, 1e30, np.inf, np.nan], dtype)
    else:
        info = np.iinfo(dtype)
        chosen = [info.min, info.max, info.max - 1, 0, 1, 2, 3, 7, 13, 31, 63, 64]
        edge = np.unique(np.array(chosen, dtype=object).astype(dtype))
    a, b = (np.ascontiguousarray(side.reshape(-1)) for side in np.meshgrid(edge, edge))
    return [a, b, np.zeros(8 * a.size, dtype), a.size]
