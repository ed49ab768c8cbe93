"""What emission hands on: the source of a program's kernels, how each is launched, and the images made of that source.

Plain records; emission makes them, `compile.py` and `host.py` take them.
"""

from __future__ import annotations

from msgspec import Struct

from tilewright.ir.dims import DimLike
from tilewright.ir.loop import Kernel

STATIC_SHARED = 49152  # bytes of shared memory that a block has anyway; more must be asked for when a kernel is launched


class CudaKernel(Struct, frozen=True, eq=False):
    """One `__global__` function.

    Its parameters: a pointer for each buffer of `kernel`, then `tw_failure *` where it `fails`, then `long long` for each of the
    kernel's symbols. `grid`: blocks along x, over those symbols; nothing is launched where it is 0. `shared_bytes`: dynamic shared
    memory; 0: all of it is static."""

    name: str
    kernel: Kernel
    grid: DimLike
    threads: int
    shared_bytes: int
    fails: bool


class CudaModule(Struct, frozen=True, eq=False):
    """The kernels of a program: `source` is one .cu text, `kernels` has one for each of `program.kernels()` by its id, `sites` are the
    messages of failures, by number."""

    source: str
    kernels: dict[int, CudaKernel]
    sites: tuple[str, ...]


class Image(Struct, frozen=True):
    """The source compiled. `architecture`: 'sm_90a' for a cubin, 'compute_80' for PTX, 'emulated' for the library of an emulation."""

    architecture: str
    data: bytes
