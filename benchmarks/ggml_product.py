"""A matrix product of llama.cpp's library ggml, called in this process: float32 rows times a weight in its format Q4_0.

What it does: `GgmlProduct` opens libggml-base and libggml-cpu, puts the weight where llama.cpp would and plans a graph of one `mul_mat`
on one thread, so that a call is nothing but that product. Which buffer a weight lies in is asked as llama.cpp does by default: the first
of the CPU's extra buffer types that supports the product, or the plain one. On x86 with AVX2 that is CPU_REPACK, which lays Q4_0 out as
8 rows side by side (Q4_0_8x8). ggml rounds activations to bytes in blocks of 32 itself (Q8_0).

Assumes a build of ggml (docs/quantization.md says how; tried with 0.25.3). Guarantees that a call copies nothing but what ggml itself does.

Source of the format: `block_q4_0` in ggml-common.h and `dequantize_row_q4_0` in ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray

BLOCK = 32                   # weights that share a scale
BLOCK_DTYPE = np.dtype([("scale", "<f2"), ("codes", "u1", BLOCK // 2)])
ZERO = 8                     # of a code
TYPE_F32, TYPE_Q4_0 = 0, 2   # enum ggml_type
USAGE_WEIGHTS = 1            # enum ggml_backend_buffer_usage
MEMORY = 1 << 20             # bytes for the descriptions of tensors and a graph

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t


class _InitParams(ctypes.Structure):
    """struct ggml_init_params, which is passed by value."""

    _fields_ = [("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool)]


_BASE: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_version": (ctypes.c_char_p, ()),
    "ggml_init": (_POINTER, (_InitParams,)),
    "ggml_free": (None, (_POINTER,)),
    "ggml_new_tensor_2d": (_POINTER, (_POINTER, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)),
    "ggml_mul_mat": (_POINTER, (_POINTER, _POINTER, _POINTER)),
    "ggml_new_graph": (_POINTER, (_POINTER,)),
    "ggml_build_forward_expand": (None, (_POINTER, _POINTER)),
    "ggml_backend_reg_dev_get": (_POINTER, (_POINTER, _SIZE)),
    "ggml_backend_reg_get_proc_address": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "ggml_backend_dev_buffer_type": (_POINTER, (_POINTER,)),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, (_POINTER, _POINTER)),
    "ggml_backend_buft_name": (ctypes.c_char_p, (_POINTER,)),
    "ggml_backend_buft_get_alloc_size": (_SIZE, (_POINTER, _POINTER)),
    "ggml_backend_buft_alloc_buffer": (_POINTER, (_POINTER, _SIZE)),
    "ggml_backend_buffer_set_usage": (None, (_POINTER, ctypes.c_int)),
    "ggml_backend_buffer_get_base": (_POINTER, (_POINTER,)),
    "ggml_backend_buffer_free": (None, (_POINTER,)),
    "ggml_backend_tensor_alloc": (ctypes.c_int, (_POINTER, _POINTER, _POINTER)),
    "ggml_backend_tensor_set": (None, (_POINTER, _POINTER, _SIZE, _SIZE)),
    "ggml_backend_tensor_get": (None, (_POINTER, _POINTER, _SIZE, _SIZE)),
    "ggml_backend_graph_plan_create": (_POINTER, (_POINTER, _POINTER)),
    "ggml_backend_graph_plan_compute": (ctypes.c_int, (_POINTER, _POINTER)),
    "ggml_backend_graph_plan_free": (None, (_POINTER, _POINTER)),
    "ggml_backend_free": (None, (_POINTER,)),
}
_CPU: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_backend_cpu_init": (_POINTER, ()),
    "ggml_backend_cpu_reg": (_POINTER, ()),
    "ggml_backend_cpu_set_n_threads": (None, (_POINTER, ctypes.c_int)),
}


def q4_0_blocks(integers: Array, scales: Array) -> Array:
    """Weights [K, N] = integers (-8 to 7) times scales [K / 32, N], rounded to float16, as blocks [N, K / 32] of a ggml tensor, whose rows
    are columns here. The first half of a block's codes lies in the low four bits of its bytes, the second half in the upper ones."""
    depth, columns = integers.shape
    codes = (integers.T.reshape(columns, depth // BLOCK, 2, BLOCK // 2) + ZERO).astype(np.uint8)
    blocks = np.empty((columns, depth // BLOCK), BLOCK_DTYPE)
    blocks["scale"] = scales.T
    blocks["codes"] = codes[:, :, 0] | codes[:, :, 1] << 4
    return blocks


def open_library(folder: Path) -> dict[str, Any]:
    """The functions of ggml in `folder`, by name."""
    functions = {}
    for name, table in (("libggml-base.so", _BASE), ("libggml-cpu.so", _CPU)):
        path = folder / name
        if not path.exists():
            raise FileNotFoundError(f"no {name} in {folder}: build the targets ggml-base and ggml-cpu of llama.cpp (docs/quantization.md)")
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)  # the second finds the first by its name, wherever it was moved
        for function, (result, arguments) in table.items():
            functions[function] = getattr(library, function)
            functions[function].restype, functions[function].argtypes = result, arguments
    return functions


class GgmlProduct:
    """x [M, K] float32 times integers [K, N] of 4 bits with scales [K / 32, N] as Q4_0, on one thread. `buffer` is the name of the type of
    buffer that holds the weight. FileNotFoundError where `folder` lacks a library."""

    def __init__(self, folder: Path, x: Array, integers: Array, scales: Array) -> None:
        self.code = code = open_library(folder)
        self.version = code["ggml_version"]().decode()
        (self.rows, depth), self.columns = x.shape, integers.shape[1]
        self.backend = code["ggml_backend_cpu_init"]()
        code["ggml_backend_cpu_set_n_threads"](self.backend, 1)
        self.contexts: list[int] = []
        self.buffers: list[int] = []
        device = code["ggml_backend_reg_dev_get"](code["ggml_backend_cpu_reg"](), 0)
        plain = code["ggml_backend_dev_buffer_type"](device)
        for kind in (*self._extra_buffer_types(device), plain):
            context = code["ggml_init"](_InitParams(MEMORY, None, True))
            self.contexts.append(context)
            weight = code["ggml_new_tensor_2d"](context, TYPE_Q4_0, depth, self.columns)
            left = code["ggml_new_tensor_2d"](context, TYPE_F32, depth, self.rows)
            self.result = code["ggml_mul_mat"](context, weight, left)
            self._place(weight, kind, USAGE_WEIGHTS)
            if code["ggml_backend_dev_supports_op"](device, self.result):
                break
        self.buffer = code["ggml_backend_buft_name"](kind).decode()
        self._place(left, plain)
        self._place(self.result, plain)
        for tensor, array in ((weight, q4_0_blocks(integers, scales)), (left, x)):
            array = np.ascontiguousarray(array)
            code["ggml_backend_tensor_set"](tensor, array.ctypes.data, 0, array.nbytes)
        graph = code["ggml_new_graph"](context)
        code["ggml_build_forward_expand"](graph, self.result)
        self.plan = code["ggml_backend_graph_plan_create"](self.backend, graph)

    def _extra_buffer_types(self, device: int) -> list[int]:
        """What llama.cpp asks before it takes the plain one, in that order."""
        place = self.code["ggml_backend_reg_get_proc_address"](self.code["ggml_backend_cpu_reg"](), b"ggml_backend_dev_get_extra_bufts")
        if not place:
            return []
        found = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(place)(device)
        kinds: list[int] = []
        while found[len(kinds)] is not None:
            kinds.append(found[len(kinds)])
        return kinds

    def _place(self, tensor: int, kind: int, usage: int = 0) -> None:
        """Memory of the kind for a tensor."""
        buffer = self.code["ggml_backend_buft_alloc_buffer"](kind, self.code["ggml_backend_buft_get_alloc_size"](kind, tensor))
        if not buffer:
            raise MemoryError(f"ggml has no memory for a tensor in {self.code['ggml_backend_buft_name'](kind).decode()}")
        self.buffers.append(buffer)
        self.code["ggml_backend_buffer_set_usage"](buffer, usage)
        self.code["ggml_backend_tensor_alloc"](buffer, tensor, self.code["ggml_backend_buffer_get_base"](buffer))

    def __call__(self) -> None:
        status = self.code["ggml_backend_graph_plan_compute"](self.backend, self.plan)
        if status:
            raise RuntimeError(f"ggml_graph_compute: status {status}")

    def values(self) -> Array:
        """The result [M, N] of the last call."""
        out = np.empty((self.rows, self.columns), np.float32)
        self.code["ggml_backend_tensor_get"](self.result, out.ctypes.data, 0, out.nbytes)
        return out

    def close(self) -> None:
        self.code["ggml_backend_graph_plan_free"](self.backend, self.plan)
        for buffer in self.buffers:
            self.code["ggml_backend_buffer_free"](buffer)
        for context in self.contexts:
            self.code["ggml_free"](context)
        self.code["ggml_backend_free"](self.backend)
