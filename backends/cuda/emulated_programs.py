"""Programs for a GPU run without one: launches go through the emulation of their CUDA source, all else is as in the loop
interpreter. Many programs may share one source, since a C++ compiler takes most of its time to start."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.dims import evaluate
from ...ir.errors import IndexFailure, RuntimeFailure
from ...ir.loop_interp import ProgramRun
from ...ir.loop_translate import INDEX_ERRORS
from ...ir.program import Launch, Program
from ...runtime.cache import Cache
from .emit import emit_module
from .emulate import EmulatedModule, shared_library
from .module import CudaModule

HEAD = '#include "device.h"\n'
FAILURE = np.dtype([("code", np.int32), ("site", np.int32), ("found", np.int64), ("expected", np.int64)])


class EmulatedPrograms:
    """Programs whose kernels are compiled together, at the first run. `check`: accesses are watched. `cache`: where what is compiled
    is kept."""

    def __init__(self, programs: Sequence[Program], check: bool = True, architecture: str = "sm_80", cache: Cache | None = None) -> None:
        self.programs = list(programs)
        self.modules = [emit_module(program, architecture) for program in programs]
        self.source = joined_source(self.modules)
        self.check = check
        self.cache = cache
        self.loaded: EmulatedModule | None = None

    def load(self) -> EmulatedModule:
        """The kernels of all, ready to be launched."""
        if self.loaded is None:
            self.loaded = EmulatedModule(shared_library(self.source, self.check, self.cache), self.source)
        return self.loaded

    def unload(self) -> None:
        """Gives back what they take in memory and, but for the cache, on disk; another run compiles them again."""
        if self.loaded is not None:
            self.loaded.unload()
            self.loaded = None

    def run(self, number: int, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs of a program."""
        return _EmulatedRun(self, number, inputs).outputs()


def joined_source(modules: Sequence[CudaModule]) -> str:
    """The kernels of all in one source: kernel NAME of module 3 is p3_NAME."""
    texts = (module.source.partition(HEAD)[2] for module in modules)
    return HEAD + "\n".join(re.sub(r"(__global__ void __launch_bounds__\([\d, ]+\) )(\w+)\(", rf"\g<1>p{number}_\2(", text)
                            for number, text in enumerate(texts))


class _EmulatedRun(ProgramRun):
    """One run. What kernels store is not followed by byte: the emulation watches."""

    def __init__(self, made: EmulatedPrograms, number: int, inputs: Sequence[np.ndarray]) -> None:
        super().__init__(made.programs[number], inputs, 1, False)
        self.made, self.number, self.module = made, number, made.modules[number]

    def launch(self, launch: Launch, binding: Mapping[str, int]) -> None:
        made = self.module.kernels[id(launch.kernel)]
        sizes = {s.name: evaluate(n, binding) for s, n in zip(launch.kernel.symbols, launch.sizes)}
        arguments: list[object] = []
        for buffer, place in zip(launch.kernel.buffers, launch.places):
            count = int(np.prod([evaluate(n, sizes) for n in buffer.shape], dtype=np.int64))
            size = count * buffer.dtype.bytes
            segment, start = self.locate(place, size, binding, f"launch {launch.kernel.name}: %{buffer.name}")
            is_half = buffer.dtype.is_float and buffer.dtype.bits == 16
            array = segment.data[start:start + size].view(np.uint8 if is_half else buffer.dtype.numpy)
            if buffer.space == "in":
                array = array.view()
                array.flags.writeable = False
            arguments.append(array)
        failure = np.zeros(1, FAILURE)
        arguments += [failure.view(np.uint8)] if made.fails else []
        arguments += [sizes[s.name] for s in launch.kernel.symbols]
        grid = evaluate(made.grid, sizes)
        if grid > 0:
            self.made.load().launch(f"p{self.number}_{made.name}", grid, made.threads, arguments, made.shared_bytes)
        code, site, found, expected = failure[0].tolist()
        if code:
            raise (IndexFailure if code in INDEX_ERRORS else RuntimeFailure)(
                f"{self.module.sites[site]}: found {found}, expected {expected}")
