"""OrtValue, OrtDevice and OrtMemoryInfo: arrays and where they lie. All memory is the CPU's.

An OrtValue that is made of an array shares its memory, as in ONNX Runtime, where that is contiguous; `numpy()` gives a view.

Guarantees: no device but the CPU is ever claimed; asking for another is an error that says so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .names import OrtAllocatorType, OrtDeviceMemoryType, OrtMemType, element_number, numpy_dtype, tensor_text

Array = np.ndarray[Any, Any]


def require_cpu(device_type: str) -> None:
    """RuntimeError for a device that is not the CPU's memory."""
    if device_type.lower() != "cpu":
        raise RuntimeError(f"device type {device_type!r}: this build has only the CPU")


class OrtDevice:
    """A place for arrays."""

    def __init__(self, device: OrtDevice | None = None, device_id: int = 0) -> None:
        self._id: int = device._id if isinstance(device, OrtDevice) else device_id

    @staticmethod
    def make(ort_device_name: str, device_id: int, vendor_id: int = -1) -> OrtDevice:
        del vendor_id
        require_cpu(ort_device_name)
        return OrtDevice(device_id=device_id)

    def device_type(self) -> int:
        return 0

    def device_id(self) -> int:
        return self._id

    def device_mem_type(self) -> int:
        return 0

    def device_vendor_id(self) -> int:
        return 0


class OrtMemoryInfo:
    """Where an allocator takes its memory from."""

    def __init__(self, name: str = "Cpu", allocator_type: OrtAllocatorType = OrtAllocatorType.ORT_DEVICE_ALLOCATOR, device_id: int = 0,
                 mem_type: OrtMemType = OrtMemType.DEFAULT) -> None:
        self.name, self.allocator_type, self.device_id, self.mem_type = name, allocator_type, device_id, mem_type
        self.device_mem_type = OrtDeviceMemoryType.DEFAULT
        self.device_vendor_id = 0


class OrtValue:
    """A tensor."""

    def __init__(self, ortvalue: OrtValue | Array, numpy_obj: Array | None = None) -> None:
        self._array: Array = ortvalue._array if isinstance(ortvalue, OrtValue) else ortvalue
        self._owner = numpy_obj

    @staticmethod
    def ortvalue_from_numpy(numpy_obj: Array, /, device_type: str = "cpu", device_id: int = 0, vendor_id: int = -1) -> OrtValue:
        """Shares the memory of a contiguous array."""
        del device_id, vendor_id
        require_cpu(device_type)
        if not isinstance(numpy_obj, np.ndarray):
            raise TypeError(f"ortvalue_from_numpy: found {type(numpy_obj).__name__}, expected an array: incompatible function arguments")
        if element_number(numpy_obj.dtype) == 0:
            raise RuntimeError(f"Numpy_type {numpy_obj.dtype} can't be converted to an element type of ONNX")
        return OrtValue(as_plain(numpy_obj), numpy_obj)

    @staticmethod
    def ortvalue_from_numpy_with_onnx_type(data: Array, /, onnx_element_type: int) -> OrtValue:
        """The array's bytes as elements of that type."""
        dtype = numpy_dtype(onnx_element_type)
        if dtype.itemsize != data.dtype.itemsize:
            raise RuntimeError(f"elements of {data.dtype} have {data.dtype.itemsize} bytes, those of type {onnx_element_type} "
                               f"{dtype.itemsize}")
        return OrtValue(as_plain(data).view(dtype), data)

    @staticmethod
    def ortvalue_from_shape_and_type(shape: Sequence[int], element_type: Any, device_type: str = "cpu", device_id: int = 0,
                                     vendor_id: int = -1, memory_info: OrtMemoryInfo | None = None) -> OrtValue:
        """Memory to be written to."""
        del device_id, vendor_id, memory_info
        require_cpu(device_type)
        return OrtValue(np.zeros(tuple(shape), numpy_dtype(element_type)))

    @staticmethod
    def from_dlpack(data: Any, /) -> OrtValue:
        """Shares the memory of any tensor on the CPU."""
        return OrtValue(np.from_dlpack(data))

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self._array.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()

    def numpy(self) -> Array:
        """A view of the memory."""
        return self._array.view()

    def update_inplace(self, data: Array) -> None:
        """Writes other elements into the memory."""
        if data.size * data.dtype.itemsize != self._array.nbytes:
            raise RuntimeError("The input size of numpy arrays does not match the size of the OrtValue.")
        self._array[...] = np.asarray(data).reshape(self._array.shape)

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def data_type(self) -> str:
        return tensor_text(element_number(self._array.dtype))

    def element_type(self) -> int:
        return element_number(self._array.dtype)

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)

    def tensor_size_in_bytes(self) -> int:
        return int(self._array.nbytes)

    def device_name(self) -> str:
        return "cpu"

    def has_value(self) -> bool:
        return True

    def is_tensor(self) -> bool:
        return True

    def is_sparse_tensor(self) -> bool:
        return False

    def is_tensor_sequence(self) -> bool:
        return False


class OrtValueVector(list[OrtValue]):
    """A list of tensors."""

    def push_back(self, value: OrtValue) -> None:
        self.append(value)

    def reserve(self, count: int) -> None:
        """Lists grow by themselves."""
        del count

    def shrink_to_fit(self) -> None:
        """Nothing to do."""

    def element_type_at(self, index: int) -> int:
        return self[index].element_type()

    def __iter__(self) -> Iterator[OrtValue]:
        return super().__iter__()


def as_plain(array: Array) -> Array:
    """The array as native code reads it: contiguous, aligned, of the machine's order of bytes. Not a copy where it is that."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.require(native, requirements=("C", "A")) if native.ndim else np.asarray(native)


def array_at(address: int, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """The memory at an address that the program answers for."""
    sizes = tuple(int(size) for size in shape)
    count = int(np.prod(sizes, dtype=np.int64)) * dtype.itemsize
    if count == 0:
        return np.zeros(sizes, dtype)
    memory = memoryview((ctypes.c_char * count).from_address(address)).cast("B")
    return np.frombuffer(memory, np.uint8).view(dtype).reshape(sizes)


def copy_tensors(sources: Iterable[OrtValue], targets: Iterable[OrtValue], stream: Any = None) -> None:
    """Copies each tensor's elements into the one at its place."""
    del stream
    for source, target in zip(sources, targets, strict=True):
        target.update_inplace(source.numpy())
