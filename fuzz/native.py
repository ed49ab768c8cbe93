"""Programs as machine code in this process: what a check runs beside the interpreters.

Nothing is cached and nothing is shared between calls. Code that is wrong may end the process; the engine's workers expect
that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from msgspec.structs import replace

from ..build import capabilities, fill_segment, generate, lower_checked, resolved, segment_digest
from ..ir.caps import Caps
from ..ir.graph import Graph
from ..ir.program import Program
from ..runtime.executable import Executable

REAL_CODE_EVERY = 8  # seeds; one in four of the listed ones, which are odd multiples of eight
TARGETS = ("cpu", "cpu:x86-64-v3", "cpu:x86-64")
# caches so small that small programs are computed in blocks; what code does follows from the figures, so it runs anywhere
SMALL_CACHES = {"level1_bytes": 2048, "level2_bytes": 8192, "level3_bytes": 32768}


@lru_cache(maxsize=16)
def caps_of(target: str, small_caches: bool) -> Caps:
    """The capabilities that passes and lowering are told of."""
    caps = capabilities(target)
    return replace(caps, **SMALL_CACHES) if small_caches else caps


def lowered(graph: Graph, caps: Caps) -> Program:
    """The program of a fused graph."""
    return lower_checked(graph, caps)[0]


def object_code(program: Program, target: str, seed: int) -> tuple[bytes, str]:
    """Machine code and the symbol to enter it by. What LLVM generates at its lowest level takes a third of the time and is wrong where
    ours is wrong; the seed chooses programs that are compiled as users have them."""
    quick = seed // REAL_CODE_EVERY % REAL_CODE_EVERY != 1
    compiled = generate(program, resolved(target), segment_digest(program), quick)
    return compiled.object_code, compiled.symbol


def loaded(program: Program, code: bytes, symbol: str) -> Executable:
    return Executable.from_object(code, fill_segment(program), symbol=symbol, threads=1)


def run(executable: Executable, inputs: Sequence[np.ndarray], threads: int) -> tuple[np.ndarray, ...]:
    """The results, always as a tuple."""
    result = executable.with_threads(threads)(*inputs)
    return result if isinstance(result, tuple) else (result,)
