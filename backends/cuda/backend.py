"""The CUDA backend behind the interface that all backends share, and what its targets stand for.

A target is `cuda` (the device of this machine, or where there is none the oldest architecture) or `cuda:sm_90`.
"""

from __future__ import annotations

import re

from msgspec import Struct
from msgspec.structs import replace

from tilewright.backends.cuda.compile import compile_source, toolkit_version
from tilewright.backends.cuda.emit import emit_module
from tilewright.backends.cuda.emulate import shared_library
from tilewright.backends.cuda.host import compile_host
from tilewright.backends.cuda.module import CudaModule, Image
from tilewright.backends.llvm.compile import CompiledObject
from tilewright.backends.llvm.emit_model import ModelFacts
from tilewright.ir.caps import Caps
from tilewright.ir.errors import CompileError
from tilewright.ir.program import Program
from tilewright.runtime.cache import Cache

OLDEST = "sm_80"
EMULATED = "emulated"
NARROW_FLOATS = ("f8e4m3fn", "f8e5m2")
MATRIX_UNITS = {80: ("f16", "bf16", "tf32", "i8"), **dict.fromkeys((90, 100), ("f16", "bf16", "tf32", "i8", *NARROW_FLOATS))}
# shared memory of a block in bytes at most, and multiprocessors of the card that most have
LIMITS = {80: (166912, 108), 86: (101376, 84), 87: (166912, 16), 89: (101376, 128), 90: (232448, 132), 100: (232448, 148),
          103: (232448, 148), 110: (232448, 20), 120: (101376, 170), 121: (101376, 48)}


class Architecture(Struct, frozen=True):
    """A compute capability: `number` is 90 of sm_90, `specific` whether its own instructions may be used (sm_90a)."""

    number: int
    specific: bool = False

    def __str__(self) -> str:
        return f"sm_{self.number}{'a' if self.specific else ''}"


HOPPER = Architecture(90, True)  # whose matrix instructions no other has


def architecture_named(text: str) -> Architecture:
    """`sm_90`, `sm_90a`."""
    found = re.fullmatch(r"sm_(\d+)(a?)", text)
    if found is None or int(found[1]) not in LIMITS:
        known = ", ".join(f"sm_{number}" for number in LIMITS)
        raise CompileError(f"unknown CUDA architecture {text!r}", hint=f"known are {known}, and sm_90a and its like")
    return Architecture(int(found[1]), found[2] == "a")


def capabilities_of(text: str) -> Caps:
    """What the architecture offers."""
    architecture = architecture_named(text)
    number = architecture.number
    shared, multiprocessors = LIMITS[number]
    units = MATRIX_UNITS[max(known for known in MATRIX_UNITS if known <= number)]
    return Caps(
        vector_bits=128, vector_registers=16, has_fma=True, has_masked_memory=False, has_quads=True, level1_bytes=32768,
        level2_bytes=262144,
        threads_per_warp=32, threads_per_block=1024, multiprocessors=multiprocessors, shared_bytes=shared, registers_per_thread=255,
        matrix_units=units, has_group_products=architecture == HOPPER)


class CudaBackend(Struct, frozen=True):
    """`architecture`: 'sm_90', or 'emulated' for the emulation behind the emulated driver. `others`: later ones that the same source is
    compiled for as well. `cache`: where the emulation keeps what it compiles."""

    architecture: str
    others: tuple[str, ...] = ()
    cache: Cache | None = None
    name: str = "cuda"

    @property
    def capabilities(self) -> Caps:
        found = capabilities_of(OLDEST if self.architecture == EMULATED else self.architecture)
        return replace(found, has_group_products=found.has_group_products and not self.others)

    def compile(self, program: Program, *, name_prefix: str = "") -> CompiledObject:
        """The host's object with the images of the kernels in it."""
        return self.compile_module(program, emit_module(program, self.architecture), ModelFacts(), name_prefix or "tw")

    def compile_module(self, program: Program, module: CudaModule, facts: ModelFacts, name_prefix: str) -> CompiledObject:
        return compile_host(program, module, self.images(module), facts=facts, name_prefix=name_prefix, toolkit=toolkit_version())

    def images(self, module: CudaModule) -> tuple[Image, ...]:
        """The source compiled: for the architectures themselves, and as PTX for all later ones."""
        if not module.kernels:
            return ()
        if self.architecture == EMULATED:
            return (Image(EMULATED, shared_library(module.source, True, self.cache).read_bytes()),)
        cubins = tuple(Image(name, compile_source(module.source, name)) for name in (self.architecture, *self.others))
        if architecture_named(self.architecture).specific:  # whose PTX serves no other
            return cubins
        ptx = compile_source(module.source, self.architecture, "ptx")
        return (*cubins, Image(self.architecture.replace("sm_", "compute_"), ptx))
