"""The least of CUDA's driver that a benchmark needs to run single kernels: images, memory, launches. By ctypes, for NumPy arrays.

The library is the one that TILEWRIGHT_CUDA_DRIVER names, else libcuda.so.1. Every failure is an error with the driver's own name for it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
DYNAMIC_SHARED = 8  # attribute of a function: the most that launches may ask for


class DriverError(RuntimeError):
    """What the driver refused."""


class Device:
    """The first device, with its primary context current in this thread."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(os.environ.get("TILEWRIGHT_CUDA_DRIVER") or "libcuda.so.1")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxPushCurrent_v2", context)
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, 128, device)
        self.name = name.value.decode()

    def call(self, function: str, *arguments: object) -> None:
        status = getattr(self.library, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self.library.cuGetErrorName(status, ctypes.byref(text))
            raise DriverError(f"{function}: {(text.value or b'unknown').decode()} ({status})")

    def load(self, image: bytes) -> ctypes.c_void_p:
        """A module of an image: a cubin, or the library of an emulation."""
        module = ctypes.c_void_p()
        self.call("cuModuleLoadDataEx", ctypes.byref(module), image, 0, None, None)
        return module

    def launch(self, module: ctypes.c_void_p, name: str, grid: int, block: int, arguments: Sequence[object], shared_bytes: int = 0) -> None:
        """Runs a kernel on arrays, which are copied to the device and back, and whole numbers."""
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        if shared_bytes:
            self.call("cuFuncSetAttribute", function, DYNAMIC_SHARED, shared_bytes)
        copies: list[tuple[ctypes.c_uint64, Array]] = []
        values: list[ctypes.c_uint64 | ctypes.c_longlong] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                memory = ctypes.c_uint64()
                self.call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(max(16, argument.nbytes)))
                self.call("cuMemcpyHtoDAsync_v2", memory, ctypes.c_void_p(argument.ctypes.data), ctypes.c_size_t(argument.nbytes), None)
                copies.append((memory, argument))
                values.append(memory)
            else:
                assert isinstance(argument, int)
                values.append(ctypes.c_longlong(argument))
        places = (ctypes.c_void_p * len(values))(*[ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in values])
        self.call("cuLaunchKernel", function, grid, 1, 1, block, 1, 1, shared_bytes, None, places, None)
        for memory, array in copies:
            self.call("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(array.ctypes.data), memory, ctypes.c_size_t(array.nbytes), None)
        self.call("cuCtxSynchronize")
        for memory, _ in copies:
            self.call("cuMemFree_v2", memory)
