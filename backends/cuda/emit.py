"""A program's kernels as one CUDA C++ source.

Takes kernels in the form that `compiler/lowering/gpu.py` gives them; equal programs get equal text. The source calls the device
header alone, which is compiled by nvcc or NVRTC and, as host C++, by the emulation.
"""

from __future__ import annotations

import re

from tilewright.backends.cuda.emit_kernel import emit_kernel
from tilewright.backends.cuda.module import CudaKernel, CudaModule
from tilewright.ir.program import Program

LONGEST_NAME = 60


def emit_module(program: Program, architecture: str) -> CudaModule:
    """The source of all kernels, each once, in the order in which they are first launched."""
    sites: dict[str, int] = {}
    kernels: dict[int, CudaKernel] = {}
    texts: list[str] = []
    taken: set[str] = set()
    for kernel in program.kernels():
        made, text = emit_kernel(kernel, _symbol(kernel.name, taken), sites)
        kernels[id(kernel)] = made
        texts.append(text)
    name = "".join(c if c.isprintable() and c != "\\" else "?" for c in program.name)
    head = f'// Kernels of {name}, for {architecture}.\n\n#include "device.h"\n'
    return CudaModule("\n".join([head, *texts]), kernels, tuple(sites))


def _symbol(name: str, taken: set[str]) -> str:
    """A C name that is not taken."""
    stem = "kernel_" + re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[:LONGEST_NAME]
    chosen, number = stem, 2
    while chosen in taken:
        chosen, number = f"{stem}_{number}", number + 1
    taken.add(chosen)
    return chosen
