"""Turns what callers pass into arrays that native code can read.

The native fast path takes plain C-contiguous, aligned arrays of the right dtype and rank and sends everything else
here. Memory is shared whenever its layout allows (NumPy views, the buffer protocol, `__array_interface__`, DLPack on
the CPU) and copied when it is strided, misaligned or byte-swapped. A dtype is never cast silently; only Python's own
scalars, which have no dtype, take that of the input (NumPy's rule for them), if they fit. Stateless, so safe from any
thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct

from tilewright.ir.errors import ArgumentError
from tilewright.runtime import _native

CPU_DEVICES = {1: "cpu", 3: "pinned host memory"}
DEVICE_NAMES = {
    2: "cuda",
    4: "opencl",
    7: "vulkan",
    8: "metal",
    9: "vpi",
    10: "rocm",
    11: "rocm pinned host memory",
    13: "cuda managed memory",
    14: "oneapi",
    15: "webgpu",
    16: "hexagon",
    17: "maia",
}


class TensorInfo(Struct, frozen=True):
    """An input or output: sizes are numbers, or names where the caller's arrays decide."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype.name}[{', '.join(map(str, self.shape))}]"


def describe_value(value: object) -> str:
    """What was found, for an error: dtype and shape of an array, else the type."""
    if isinstance(value, np.ndarray | np.generic):
        swapped = "" if value.dtype.isnative else "byte-swapped "
        return f"{swapped}{value.dtype.name}[{', '.join(map(str, value.shape))}]"
    return type(value).__name__


def convert_input(model: str, info: TensorInfo, value: object) -> np.ndarray[Any, Any]:
    """A C-contiguous, aligned, native array of exactly the input's dtype and rank, or an ArgumentError that names it."""
    array = import_array(model, info, value)
    native = array.dtype.newbyteorder("=")
    if native != info.dtype:
        hint = f"convert it: np.asarray(value).astype(np.{info.dtype.name})"
        if info.dtype.name == "bfloat16":
            hint = "convert it: np.asarray(value).astype(ml_dtypes.bfloat16)"
        raise ArgumentError(f"{model}: input '{info.name}': found {describe_value(array)}, expected {info}", hint=hint)
    if array.ndim != info.rank:
        raise ArgumentError(
            f"{model}: input '{info.name}': found rank {array.ndim} ({describe_value(array)}), expected rank {info.rank} ({info})"
        )
    if array.dtype.isnative and array.flags.c_contiguous and array.flags.aligned:
        return array
    return np.array(array, dtype=info.dtype, order="C", copy=True)


def import_array(model: str, info: TensorInfo, value: object) -> np.ndarray[Any, Any]:
    """The value as a base-class array of its own dtype, sharing memory where it can."""
    if isinstance(value, np.ma.MaskedArray):
        raise ArgumentError(
            f"{model}: input '{info.name}': found a masked array, whose mask would be lost",
            hint="pass value.filled(...) instead",
        )
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if isinstance(value, bool | int | float | complex):
        return convert_scalar(model, info, value)
    if hasattr(value, "__dlpack__"):
        return import_dlpack(model, info, value)
    if hasattr(value, "__array_interface__") or hasattr(value, "__array__"):
        return np.asarray(value)
    if hasattr(value, "__cuda_array_interface__"):
        raise ArgumentError(f"{model}: input '{info.name}': the array is on a cuda device", hint="copy it to the CPU first")
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError(
            f"{model}: input '{info.name}': found {type(value).__name__}, expected an array ({info})",
            hint=f"np.asarray(value, dtype='{info.dtype.name}') makes one",
        ) from None
    return np.asarray(view)


def convert_scalar(model: str, info: TensorInfo, value: bool | int | float | complex) -> np.ndarray[Any, Any]:
    """A Python scalar as a 0-d array of the input's dtype: it must be of the same or a lower kind and in range."""
    kind = "f" if info.dtype.name == "bfloat16" else info.dtype.kind
    takers = "b" if isinstance(value, bool) else "iuf" if isinstance(value, int) else "f" if isinstance(value, float) else ""
    allowed = kind in takers
    if not allowed:
        raise ArgumentError(f"{model}: input '{info.name}': found the Python {type(value).__name__} {value!r}, expected {info}")
    if kind in "iu":
        limits = np.iinfo(info.dtype)
        if not limits.min <= value <= limits.max:  # type: ignore[operator]
            raise ArgumentError(f"{model}: input '{info.name}': found {value}, which is out of range for {info.dtype.name}")
        return np.array(value, dtype=info.dtype)
    try:
        with np.errstate(over="ignore"):
            result = np.array(value, dtype=info.dtype)
    except OverflowError:
        result = np.array(np.inf, dtype=info.dtype)
    if kind == "f" and not np.isfinite(result) and abs(value) != float("inf") and value == value:
        raise ArgumentError(f"{model}: input '{info.name}': found {value}, which is out of range for {info.dtype.name}")
    return result


def import_dlpack(model: str, info: TensorInfo, value: Any) -> np.ndarray[Any, Any]:
    """A view of a CPU tensor of another library."""
    device, number = (int(part) for part in value.__dlpack_device__())
    if device not in CPU_DEVICES:
        name = DEVICE_NAMES.get(device, f"device type {device}")
        raise ArgumentError(
            f"{model}: input '{info.name}': the tensor is on {name}:{number}, expected the CPU",
            hint="move it first, for example value.cpu()",
        )
    try:
        if info.dtype.name == "bfloat16":
            return _native.import_dlpack_bfloat16(value.__dlpack__())
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"{model}: input '{info.name}': cannot take the {type(value).__name__} by DLPack: {error}",
            hint=f"expected {info}",
        ) from error
