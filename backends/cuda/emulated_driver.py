"""The emulated CUDA driver as a library, which takes the place of NVIDIA's where there is no GPU.

Built from emulated_driver.cpp under the name of NVIDIA's library (`host_compiler.py`): a process that has loaded it (`Control`), or finds
its folder first (LD_LIBRARY_PATH), has it as its driver. `Control` also sets what its devices are and which of its functions
fail, for tests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tilewright.backends.cuda.host_compiler import FOLDER, compile_kept, host_compiler, load_library, run_compiler
from tilewright.runtime.cache import Cache

SOURCES = ("emulated_driver.cpp", "emulation.h")
NAME = "libcuda.so.1"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", f"-Wl,-soname,{NAME}")


def driver_library(cache: Cache | None = None) -> Path:
    """The library, in a folder of its own; it is there until the process ends."""
    parts = (*((FOLDER / name).read_text() for name in SOURCES), host_compiler(), *FLAGS)
    return compile_kept("emulated driver", NAME, parts, _write, cache)


def _write(made: Path) -> None:
    run_compiler([*FLAGS, str(FOLDER / SOURCES[0]), "-o", made.name, "-ldl"], made.parent)


class Control:
    """The emulated driver of this process, which the runtime opens as well, unless it has opened one before."""

    def __init__(self, library: Path) -> None:
        self._library = load_library(library)
        self._library.tw_emulated_calls.restype = ctypes.c_long
        self._library.tw_emulated_used.restype = ctypes.c_ulonglong

    def set(self, **settings: object) -> None:
        """devices, version, capability, memory (bytes); recover=1 and count=0 forget a failure and the calls."""
        self._library.tw_emulated_configure(",".join(f"{name}={value}" for name, value in settings.items()).encode())

    def fail(self, function: str, error: int, after: int = 0) -> None:
        """Lets a call of the function fail, after so many that do not."""
        self.set(fail=f"{function}:{after}:{error}")

    def calls(self, function: str) -> int:
        return int(self._library.tw_emulated_calls(function.encode()))

    def new_stream(self, device: int = 0) -> int:
        """A stream as another library would make it: the default one and it wait for each other."""
        context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        self._library.cuCtxPushCurrent_v2(context)
        self._library.cuStreamCreate(ctypes.byref(stream), 0)
        self._library.cuCtxPopCurrent_v2(ctypes.byref(context))
        return int(stream.value or 0)

    @contextmanager
    def capturing(self, stream: int, device: int = 0) -> Iterator[None]:
        """A capture of the stream by somebody else, whose graph is thrown away."""
        context, graph = ctypes.c_void_p(), ctypes.c_void_p()
        self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        self._library.cuCtxPushCurrent_v2(context)
        self._library.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), 2)
        try:
            yield
        finally:
            self._library.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
            self._library.cuGraphDestroy(graph)
            self._library.cuCtxPopCurrent_v2(ctypes.byref(context))

    @property
    def used(self) -> int:
        """Bytes of device memory that are allocated."""
        return int(self._library.tw_emulated_used())
