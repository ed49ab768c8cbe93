"""Programs as machine code in this process: what a check runs beside the interpreters.

For CPUs it is what LLVM makes. For GPUs it is the CUDA source, compiled for the emulation (`backends/cuda/emulated_programs.py`), which
watches what kernels touch and finds races. Nothing is cached and nothing is shared between calls. Code that is wrong may end the
process; the engine's workers expect that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import ClassVar

import numpy as np
from msgspec.structs import replace

from ..backends.cuda.backend import LIMITS, capabilities_of
from ..backends.cuda.emulate import runtime_objects
from ..backends.cuda.emulated_programs import EmulatedPrograms
from ..backends.llvm.targets import host_supports
from ..build import capabilities, fill_segment, generate, lower_checked, resolved, segment_digest
from ..gpu.compiling import architectures_of, emitted, is_device
from ..ir.caps import Caps
from ..ir.graph import Graph
from ..ir.program import Program
from ..options import read_environment
from ..runtime.cache import Cache
from ..runtime.executable import Executable

REAL_CODE_EVERY = 8  # seeds; one in four of the listed ones, which are odd multiples of eight
TARGETS = ("cpu", "cpu:x86-64-v3", "cpu:x86-64")
OTHER_CPUS = ("cpu:alderlake", "cpu:sapphirerapids", "cpu:neoverse-v1")  # whose code is made here and mostly runs elsewhere
DEVICE_TARGETS = ("cuda:sm_80", "cuda:sm_90a")
# caches so small that small programs are computed in blocks; what code does follows from the figures, so it runs anywhere
SMALL_CACHES = {"level1_bytes": 2048, "level2_bytes": 8192, "level3_bytes": 16384}
# a GPU so small that small programs fill it, and take the largest tiles
SMALL_DEVICE = {"multiprocessors": 2, "level2_bytes": 8192}
LEAST_SHARED = min(shared for shared, _ in LIMITS.values())  # that any has, but for those with products of four warps


@lru_cache(maxsize=16)
def caps_of(target: str, small_caches: bool) -> Caps:
    """The capabilities that passes and lowering are told of."""
    if is_device(target):
        caps = capabilities_of(architectures_of(target)[0])
        small = replace(caps, **SMALL_DEVICE, shared_bytes=caps.shared_bytes if caps.has_group_products else LEAST_SHARED)
        return small if small_caches else caps
    caps = capabilities(target)
    return replace(caps, **SMALL_CACHES) if small_caches else caps


def lowered(graph: Graph, caps: Caps) -> Program:
    """The program of a fused graph."""
    return lower_checked(graph, caps)[0]


class Code(ABC):
    """A program as machine code.

    stage        who made it
    runs_in      who runs it
    threads      the numbers of threads that it is run with
    more_inputs  how many it is run with besides those of the case, of each kind in turn
    text         what was made, the same for the same program
    """

    stage: ClassVar[str]
    runs_in: ClassVar[str]
    threads: ClassVar[tuple[int, ...]]
    more_inputs: ClassVar[int]
    text: bytes

    @abstractmethod
    def load(self) -> None:
        """Gets ready to run."""

    @abstractmethod
    def run(self, inputs: Sequence[np.ndarray], threads: int) -> tuple[np.ndarray, ...]:
        """The results."""

    @abstractmethod
    def unload(self) -> None:
        """Gives back what it takes."""


class HostCode(Code):
    """By LLVM. What it generates at its lowest level takes a third of the time and is wrong where ours is wrong; the seed chooses programs
    that are compiled as users have them."""

    stage = "llvm"
    runs_in = "runtime"
    threads = (1, 2)
    more_inputs = 14  # each kind twice: a run takes a hundredth of the time of compiling

    def __init__(self, program: Program, target: str, seed: int) -> None:
        self.program = program
        self.text, self.symbol = object_code(program, target, seed)
        self.executable: Executable | None = None

    def load(self) -> None:
        self.executable = loaded(self.program, self.text, self.symbol)

    def run(self, inputs: Sequence[np.ndarray], threads: int) -> tuple[np.ndarray, ...]:
        assert self.executable is not None, "load() comes first"
        return run(self.executable, inputs, threads)

    def unload(self) -> None:
        self.executable = None


class DeviceCode(Code):
    """By emulation. A C++ compiler takes a tenth of a second to begin; emulated threads are slow."""

    stage = "cuda"
    runs_in = "emulation"
    threads = (1,)
    more_inputs = 7

    def __init__(self, program: Program, target: str) -> None:
        self.programs = EmulatedPrograms([program], architecture=architectures_of(target)[0])
        self.text = self.programs.source.encode()

    def load(self) -> None:
        make_emulation()
        self.programs.load()

    def run(self, inputs: Sequence[np.ndarray], threads: int) -> tuple[np.ndarray, ...]:
        self.load()
        return tuple(self.programs.run(0, inputs))

    def unload(self) -> None:
        self.programs.unload()


@cache
def runs_here(target: str) -> bool:
    """Whether code for a target can be run."""
    return is_device(target) or not host_supports(resolved(target))


def source(program: Program, target: str) -> str:
    """The source of a program on a GPU."""
    return emitted(program, architectures_of(target)[0]).source


def stage_of(target: str) -> str:
    """Who makes machine code for a target."""
    return DeviceCode.stage if is_device(target) else HostCode.stage


def made(program: Program, target: str, seed: int) -> Code:
    """The code of a program; the seed decides how good it is."""
    return DeviceCode(program, target) if is_device(target) else HostCode(program, target, seed)


@cache
def make_emulation() -> None:
    """What all emulated programs share, which takes some seconds where the cache does not have it."""
    directory = read_environment().cache_directory
    runtime_objects(Cache(directory) if directory is not None else None)


def object_code(program: Program, target: str, seed: int) -> tuple[bytes, str]:
    """Machine code of a CPU and the symbol to enter it by."""
    quick = seed // REAL_CODE_EVERY % REAL_CODE_EVERY != 1
    compiled = generate(program, resolved(target), segment_digest(program), quick)
    return compiled.object_code, compiled.symbol


def loaded(program: Program, code: bytes, symbol: str) -> Executable:
    return Executable.from_object(code, fill_segment(program), symbol=symbol, threads=1)


def run(executable: Executable, inputs: Sequence[np.ndarray], threads: int) -> tuple[np.ndarray, ...]:
    """The results, always as a tuple."""
    result = executable.with_threads(threads)(*inputs)
    return result if isinstance(result, tuple) else (result,)
