"""Arrays in memory of a CUDA device: ours, and those of other libraries, taken over without a copy.

Others come by DLPack (torch, CuPy, JAX) or by `__cuda_array_interface__` (Numba); `DeviceArray` is ours and offers both. Streams
are numbers here: the handle of the driver, 0 for the default one.

Assumes that a library whose tensor is given is imported already, and asks it, by its name, for its current stream alone.
Guarantees: an array that is not C-contiguous, of another dtype or on another device is refused with one clear error; memory lives
as long as any array over it. A result's memory is used again by later calls in its stream, as frameworks do with theirs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from msgspec import Struct

from tilewright.ir.errors import ArgumentError, DeviceError
from tilewright.runtime import _cuda
from tilewright.runtime.buffer import DEVICE_NAMES, TensorInfo

CUDA, MANAGED = 2, 13  # device types of DLPack
LEGACY_STREAM = 1      # how DLPack spells the default stream
ALIGNMENT = 16         # bytes that kernels may load at a time
# NumPy's name -> (code, bits) of DLPack
DLPACK_TYPES = {
    "bool": (6, 8), "int8": (0, 8), "int16": (0, 16), "int32": (0, 32), "int64": (0, 64), "uint8": (1, 8), "uint16": (1, 16),
    "uint32": (1, 32), "uint64": (1, 64), "float16": (2, 16), "bfloat16": (4, 16), "float32": (2, 32), "float64": (2, 64),
    "float8_e4m3fn": (10, 8), "float8_e4m3fnuz": (11, 8), "float8_e5m2": (12, 8), "float8_e5m2fnuz": (13, 8), "float8_e8m0fnu": (14, 8),
}
DLPACK_NAMES = {kind: name for name, kind in DLPACK_TYPES.items()}


class DeviceMemory:
    """An allocation of ours, given back when nobody holds it any more."""

    __slots__ = ("address", "device")

    def __init__(self, device: int, stream: int, count: int) -> None:
        self.device = device
        self.address = _cuda.allocate(device, stream, count)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            _cuda.release(self.device, self.address)


class DeviceArray:
    """A C-contiguous array in memory of a CUDA device. `torch.from_dlpack(array)` and `cupy.from_dlpack(array)` share its memory;
    `numpy()` copies it, after what is in its stream."""

    __slots__ = ("_owner", "address", "device", "dtype", "shape", "stream")

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], device: int, stream: int, address: int, owner: object) -> None:
        self.dtype = dtype
        self.shape = shape
        self.device = device
        self.stream = stream
        self.address = address
        self._owner = owner

    @classmethod
    def empty(cls, dtype: np.dtype[Any], shape: tuple[int, ...], device: int = 0, stream: int = 0) -> DeviceArray:
        memory = DeviceMemory(device, stream, math.prod(shape) * dtype.itemsize)
        return cls(dtype, shape, device, stream, memory.address, memory)

    @classmethod
    def from_numpy(cls, array: np.ndarray[Any, Any], device: int = 0, stream: int = 0) -> DeviceArray:
        result = cls.empty(array.dtype, array.shape, device, stream)
        _cuda.copy_in(device, result.address, np.ascontiguousarray(array), stream)
        return result

    def numpy(self) -> np.ndarray[Any, Any]:
        result = np.empty(self.shape, self.dtype)
        _cuda.copy_out(self.device, self.address, result, self.stream)
        return result

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(self, *, stream: int | None = None, **rest: object) -> object:
        """`stream`: the consumer's; where it is another one than ours, what is in ours is waited for."""
        del rest  # max_version, dl_device, copy: a plain capsule answers all of them
        if self.dtype.name not in DLPACK_TYPES:
            raise BufferError(f"DLPack has no type for {self.dtype.name}")
        if stream not in (-1, self.stream) and not (self.stream == 0 and stream in (None, LEGACY_STREAM)):
            self.wait()
        return _cuda.make_dlpack(self.address, self.device, self.shape, *DLPACK_TYPES[self.dtype.name], self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3,
                "strides": None, "stream": self.stream or LEGACY_STREAM}

    def wait(self) -> None:
        """Returns when what is in the array's stream is done."""
        _cuda.copy_out(self.device, self.address, np.empty(min(self.nbytes, 1), np.uint8), self.stream)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype.name}[{', '.join(map(str, self.shape))}] on cuda:{self.device}>"


class Tensor(Struct, frozen=True):
    """What a call needs of an argument on a device. `keeper` holds its memory."""

    address: int
    device: int
    shape: tuple[int, ...]
    keeper: object


def is_on_device(value: object) -> bool:
    """Whether an argument lies in memory of a GPU (of CUDA or not, which `import_tensor` tells)."""
    if isinstance(value, DeviceArray):
        return True
    if isinstance(value, np.ndarray) or value is None:
        return False
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) not in (1, 3)
    return hasattr(value, "__cuda_array_interface__")


def import_tensor(label: str, info: TensorInfo, value: Any, stream: int) -> Tensor:
    """The memory of a tensor on a CUDA device, after what its library has in other streams. `label`: what an error says it is."""
    tensor = _imported(label, info, value, stream)
    if tensor.address % ALIGNMENT and math.prod(tensor.shape):
        beyond = tensor.address % ALIGNMENT
        raise ArgumentError(f"{label}: the tensor begins {beyond} bytes after a multiple of {ALIGNMENT}, as many as kernels copy at a time",
                            hint="copy it first, for example value.clone()")
    return tensor


def _imported(label: str, info: TensorInfo, value: Any, stream: int) -> Tensor:
    if isinstance(value, DeviceArray):
        if value.stream != stream:
            value.wait()
        _check(label, info, name_of(value.dtype), value.shape)
        return Tensor(value.address, value.device, value.shape, value)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _import_dlpack(label, info, value, stream)
    return _import_interface(label, info, value)


def _import_dlpack(label: str, info: TensorInfo, value: Any, stream: int) -> Tensor:
    kind, number = (int(part) for part in value.__dlpack_device__())
    if kind not in (CUDA, MANAGED):
        raise ArgumentError(f"{label}: the tensor is on {DEVICE_NAMES.get(kind, f'device type {kind}')}:{number}, expected a CUDA device",
                            hint="move it first, for example value.cuda()")
    try:
        capsule = value.__dlpack__(stream=stream or LEGACY_STREAM)
        address, (_, number), shape, strides, dtype, keeper = _cuda.open_dlpack(capsule)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"{label}: cannot take the {type(value).__name__} by DLPack: {error}", hint=f"expected {info}") from error
    code, bits, lanes = dtype
    name = DLPACK_NAMES.get((code, bits), f"DLPack type {code} of {bits} bits") if lanes == 1 else f"vectors of {lanes} elements"
    _check(label, info, name, shape)
    _check_contiguous(label, shape, strides, 1)
    return Tensor(address, number, shape, keeper)


def _import_interface(label: str, info: TensorInfo, value: Any) -> Tensor:
    description = value.__cuda_array_interface__
    dtype, shape = np.dtype(description["typestr"]), tuple(description["shape"])
    _check(label, info, dtype.name, shape)
    _check_contiguous(label, shape, description.get("strides"), dtype.itemsize)
    address = int(description["data"][0])
    number = _cuda.device_of(address) if math.prod(shape) else 0
    if number < 0:
        raise ArgumentError(f"{label}: the array does not lie in memory of a CUDA device")
    return Tensor(address, number, shape, value)


@lru_cache(maxsize=64)
def name_of(dtype: np.dtype[Any]) -> str:
    """NumPy takes microseconds for it."""
    return dtype.name


def _check(label: str, info: TensorInfo, name: str, shape: Sequence[int]) -> None:
    if name == name_of(info.dtype) and len(shape) == info.rank:
        return
    found = f"{name}[{', '.join(map(str, shape))}]"
    if name != info.dtype.name:
        raise ArgumentError(f"{label}: found {found}, expected {info}", hint=f"convert it to {info.dtype.name} first")
    raise ArgumentError(f"{label}: found rank {len(shape)} ({found}), expected rank {info.rank} ({info})")


def _check_contiguous(label: str, shape: Sequence[int], strides: Sequence[int] | None, unit: int) -> None:
    if strides is None or 0 in shape:
        return
    step = unit
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != step:
            raise ArgumentError(f"{label}: the tensor is not contiguous: found shape {tuple(shape)} with strides {tuple(strides)}",
                                hint="make it so first: value.contiguous()")
        step *= size


def stream_number(stream: object) -> int:
    """The driver's handle of a stream: a number, or what torch, CuPy and CUDA's own package have."""
    if isinstance(stream, int):
        return 0 if stream in (0, LEGACY_STREAM) else stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise ArgumentError(f"stream: found {type(stream).__name__}, expected a stream of torch or CuPy, or the number of one")


def library_of(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def current_stream(value: object, device: int) -> int:
    """The stream that the library of a tensor works in now."""
    if isinstance(value, DeviceArray):
        return value.stream
    library = sys.modules.get(library_of(value))
    if library_of(value) == "torch" and library is not None:
        return int(library.cuda.current_stream(device).cuda_stream)
    if library_of(value) == "cupy" and library is not None:
        return int(library.cuda.get_current_stream().ptr)
    return 0


def like(value: object, result: DeviceArray) -> Any:
    """The result as a tensor of the library that `value` is from; ours where that has none."""
    library = sys.modules.get(library_of(value))
    if library_of(value) in ("torch", "cupy") and library is not None:
        return library.from_dlpack(result)
    return result


def device_architecture(number: int = 0) -> str:
    """What to compile for on a device of this machine: 'sm_90'; 'emulated' for the emulated driver."""
    return str(_cuda.describe_device(number)["architecture"])


def require_device(label: str, wanted: int, found: int) -> None:
    if wanted != found:
        raise DeviceError(f"{label}: the tensor is on cuda:{found}, expected cuda:{wanted}", hint="copy it to that device first")
