"""The emulated CUDA driver as a library, which takes the place of NVIDIA's where there is no GPU.

Built once from emulated_driver.cpp into the cache folder of the emulation, by the digest of its text, under the name of NVIDIA's library:
a process that has loaded it (`Control`), or finds its folder first (LD_LIBRARY_PATH), has it as its driver. `Control` also sets what
its devices are and which of its functions fail, for tests.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from tilewright.backends.cuda.emulate import EmulationError, _cache_folder, _compiler

FOLDER = Path(__file__).resolve().parent
SOURCES = ("emulated_driver.cpp", "emulation.h")
NAME = "libcuda.so.1"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", f"-Wl,-soname,{NAME}")


def driver_library() -> Path:
    """The library, built where it is not there yet."""
    compiler = _compiler()
    key = blake3("\0".join((*((FOLDER / name).read_text() for name in SOURCES), compiler, *FLAGS)).encode()).hexdigest()[:32]
    library = _cache_folder() / f"driver_{key}" / NAME
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=_cache_folder()) as folder:
        made = Path(folder) / library.name
        finished = subprocess.run([compiler, *FLAGS, str(FOLDER / SOURCES[0]), "-o", str(made), "-ldl"], capture_output=True, text=True,
                                  check=False)
        if finished.returncode:
            raise EmulationError(f"the emulated driver does not compile: {finished.stderr.strip()}")
        library.parent.mkdir(exist_ok=True)
        os.replace(made, library)
    return library


class Control:
    """The emulated driver of this process, which the runtime opens as well, unless it has opened one before."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
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
