"""What this machine can do at most, measured: arithmetic of a thread, bandwidth of each level of memory, the time of a launch.

Three small kernels in the loop IR, compiled as any other: one multiplies and adds in registers, the others read and copy
arrays of several sizes. Each figure is the best of several runs, so that neighbours on the machine do not enter as long as they
leave it alone once. Takes about a second; the driver keeps the result in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .build import OBJECT_PREFIX, capabilities, generate, resolved, segment_digest
from .cost import Level, Rates
from .ir.loop_parser import parse_program
from .ir.types import F32
from .runtime.executable import Executable

ACCUMULATORS = 12            # as many as hide the latency of two multiply-adds a cycle, and fit into 16 registers
READERS = 8                  # sums that do not wait for one another
ROUNDS = 20000
CHUNK = 2048
LARGEST_ARRAY = 128 << 20    # bytes walked over for the bandwidth of memory: some times the last level, if that is not huge
SECONDS = 0.05               # of each measurement
ELEMENT = 4
BEYOND = 1 << 62             # what memory holds

PRODUCTS = """
kernel @products[](%x0: in f32[{lanes}], %y0: out f32[{total}]) {{
  for %t in 0..1 parallel {{
    alloc %acc: f32[{accumulators}, {lanes}] register
    alloc %factor: f32[{lanes}] register
    for %j in 0..{lanes} vector({lanes}) {{
      %factor[j] = load %x0[j]
    }}
    for %r in 0..{accumulators} unrolled {{
      for %j1 in 0..{lanes} vector({lanes}) {{
        %acc[r, j1] = f32 0.0
      }}
    }}
    for %k in 0..{rounds} {{
      for %r1 in 0..{accumulators} unrolled {{
        for %j2 in 0..{lanes} vector({lanes}) {{
          %acc[r1, j2] = {product}
        }}
      }}
    }}
    for %r2 in 0..{accumulators} unrolled {{
      for %j3 in 0..{lanes} vector({lanes}) {{
        %y0[{lanes}*r2 + j3] = load %acc[r2, j3]
      }}
    }}
  }}
}}

program @products(%x: f32[{lanes}]) -> (%y: f32[{total}]) {{
  constants 0
  workspace 0
  launch @products[](input 0, output 0)
}}
"""
FUSED = "fma(load %factor[j2], load %factor[j2], load %acc[r1, j2])"
APART = "add(mul(load %factor[j2], load %factor[j2]), load %acc[r1, j2])"

READ = """
kernel @read[n: 1..](%x0: in f32[{chunk}*n], %y0: out f32[{total}*n]) {{
  for %c in 0..n parallel {{
    alloc %acc: f32[{accumulators}, {lanes}] register
    for %r in 0..{accumulators} unrolled {{
      for %j in 0..{lanes} vector({lanes}) {{
        %acc[r, j] = f32 0.0
      }}
    }}
    for %k in 0..{steps} {{
      for %r1 in 0..{accumulators} unrolled {{
        for %j1 in 0..{lanes} vector({lanes}) {{
          %acc[r1, j1] = add(load %x0[{chunk}*c + {total}*k + {lanes}*r1 + j1], load %acc[r1, j1])
        }}
      }}
    }}
    for %r2 in 0..{accumulators} unrolled {{
      for %j2 in 0..{lanes} vector({lanes}) {{
        %y0[{total}*c + {lanes}*r2 + j2] = load %acc[r2, j2]
      }}
    }}
  }}
}}

program @read[n: 1..](%x: f32[{chunk}*n]) -> (%y: f32[{total}*n]) {{
  constants 0
  workspace 0
  launch @read[n](input 0, output 0)
}}
"""

COPY = """
kernel @copy[n: 1..](%x0: in f32[{chunk}*n], %y0: out f32[{chunk}*n]) {{
  for %c in 0..n parallel {{
    for %i in 0..{chunk} vector({lanes}) {{
      %y0[{chunk}*c + i] = add(load %x0[{chunk}*c + i], f32 1.0)
    }}
  }}
}}

program @copy[n: 1..](%x: f32[{chunk}*n]) -> (%y: f32[{chunk}*n]) {{
  constants 0
  workspace 0
  launch @copy[n](input 0, output 0)
}}
"""


def measure_rates(threads: int) -> Rates:
    """The rates of so many threads of this machine. Arithmetic and the levels that a core has for itself are those of one
    thread times their number; what threads share is measured on all of them, and no less than what one gets alone."""
    caps = capabilities("cpu")
    lanes = caps.lanes(F32)
    total = ACCUMULATORS * lanes
    products = _executable(PRODUCTS.format(lanes=lanes, accumulators=ACCUMULATORS, total=total, rounds=ROUNDS,
                                           product=FUSED if caps.has_fma else APART))
    factor, sums = np.full(lanes, 1e-3, np.float32), np.empty(total, np.float32)
    arithmetic = _least(lambda: _seconds(products, factor, sums))
    sums_of_chunks = READERS * lanes
    readers = _executable(READ.format(lanes=lanes, chunk=CHUNK, accumulators=READERS, total=sums_of_chunks, steps=CHUNK // sums_of_chunks))
    walks = _Walks(readers, _executable(COPY.format(lanes=lanes, chunk=CHUNK)), sums_of_chunks, threads)
    levels = [walks.level(caps.level2_bytes * threads, caps.level2_bytes // 2, False)]
    if caps.level3_bytes > caps.level2_bytes * threads:
        levels.append(walks.level(caps.level3_bytes, caps.level3_bytes // 2, True))
    levels.append(walks.level(BEYOND, min(LARGEST_ARRAY, 4 * max(caps.level2_bytes * threads, caps.level3_bytes)), True))
    return Rates(threads, total * ROUNDS / arithmetic, lanes, tuple(levels), walks.launches[threads])


class _Walks:
    """Walks over arrays, by one thread and by all."""

    def __init__(self, readers: Executable, copier: Executable, sums: int, threads: int) -> None:
        self.readers, self.copier, self.sums, self.threads = readers, copier, sums, threads
        self.launches = {count: self.launch(count) for count in {1, threads}}

    def level(self, holds: int, footprint: int, shared: bool) -> Level:
        """What is read and written of so many bytes in a second, on all threads."""
        counts = (1, self.threads) if shared and self.threads > 1 else (1,)
        scale = 1 if shared else self.threads
        reading = max(self.read(footprint, threads) for threads in counts)
        copying = max(self.copy(footprint, threads) for threads in counts)
        writing_time = max(1 / copying - 1 / (2 * reading), 1 / (8 * reading))  # for each byte of a copy, half of which are written
        return Level(holds, scale * reading, scale / (2 * writing_time))

    def read(self, footprint: int, threads: int) -> float:
        chunks = max(1, footprint // (ELEMENT * CHUNK))
        values, sums = _memory(chunks * CHUNK), _memory(chunks * self.sums)
        reader = self.readers.with_threads(threads)
        return values.nbytes / self.beyond_launch(_least(lambda: _seconds(reader, values, sums)), threads)

    def copy(self, footprint: int, threads: int) -> float:
        """Bytes read and written a second, half of them each."""
        chunks = max(1, footprint // (2 * ELEMENT * CHUNK))
        values, results = _memory(chunks * CHUNK), _memory(chunks * CHUNK)
        copier = self.copier.with_threads(threads)
        return 2 * values.nbytes / self.beyond_launch(_least(lambda: _seconds(copier, values, results)), threads)

    def beyond_launch(self, seconds: float, threads: int) -> float:
        return max(seconds - self.launches[threads], seconds / 2)

    def launch(self, threads: int) -> float:
        """A launch that has next to nothing to do."""
        one, other = _memory(CHUNK), _memory(CHUNK)
        copier = self.copier.with_threads(threads)
        return _least(lambda: _seconds(copier, one, other))


def _memory(elements: int) -> np.ndarray[Any, Any]:
    """Memory that the system has given: what nothing was written to may be one page of zeros."""
    return np.ones(elements, np.float32)


def _executable(text: str) -> Executable:
    """On one thread."""
    program = parse_program(text)
    compiled = generate(program, resolved("cpu"), segment_digest(program))
    return Executable.from_object(compiled.object_code, symbol=f"{OBJECT_PREFIX}_model", threads=1)


def _seconds(executable: Executable, values: Any, results: Any) -> float:
    return executable.profile(values, out=results).seconds


def _least(measure: Callable[[], float]) -> float:
    """The least of runs for a while, five at least."""
    found: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(found) < 5 or time.perf_counter() < end:
        found.append(measure())
    return min(found)
