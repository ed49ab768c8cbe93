"""Names and numbers of ONNX Runtime that programs pass around: enumerations, element types, devices.

Stateless. Element types are numbered as in ONNX (`TensorProto.DataType`). Enumerations carry ONNX Runtime's values.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from functools import lru_cache
from typing import Any

import numpy as np

from ..ir.types import STORED_DTYPES, dtype_of


class GraphOptimizationLevel(Enum):
    """How much to optimize: accepted, and all levels are one here."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(Enum):
    """Whether nodes that do not depend on one another run at once; here every kernel uses all threads."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class ExecutionOrder(Enum):
    DEFAULT = 0
    PRIORITY_BASED = 1
    MEMORY_EFFICIENT = 2


class OrtAllocatorType(Enum):
    INVALID = -1
    ORT_DEVICE_ALLOCATOR = 0
    ORT_ARENA_ALLOCATOR = 1


class OrtMemType(Enum):
    CPU_INPUT = -2
    CPU_OUTPUT = -1
    CPU = -1  # noqa: PIE796 - ONNX Runtime has two names for this number, and so an alias here
    DEFAULT = 0


class OrtDeviceMemoryType(Enum):
    DEFAULT = 0
    HOST_ACCESSIBLE = 5


class OrtMemoryInfoDeviceType(Enum):
    CPU = 0
    GPU = 1
    NPU = 3
    FPGA = 2


class OrtHardwareDeviceType(Enum):
    CPU = 0
    GPU = 1
    NPU = 2


class OrtExecutionProviderDevicePolicy(Enum):
    DEFAULT = 0
    PREFER_CPU = 1
    PREFER_NPU = 2
    PREFER_GPU = 3
    MAX_PERFORMANCE = 4
    MAX_EFFICIENCY = 5
    MIN_OVERALL_POWER = 6


class OrtDeviceVendorId(IntEnum):
    """Numbers of the PCI registry."""

    NONE = 0x0000
    AMD = 0x1002
    NVIDIA = 0x10DE
    ARM = 0x13B5
    MICROSOFT = 0x1414
    HUAWEI = 0x19E5
    QUALCOMM = 0x5143
    INTEL = 0x8086


# number -> (ONNX Runtime's spelling, NumPy's); narrow formats are ml_dtypes'
ELEMENTS: dict[int, tuple[str, str]] = {
    1: ("float", "float32"), 2: ("uint8", "uint8"), 3: ("int8", "int8"), 4: ("uint16", "uint16"), 5: ("int16", "int16"),
    6: ("int32", "int32"), 7: ("int64", "int64"), 8: ("string", "str"), 9: ("bool", "bool"), 10: ("float16", "float16"),
    11: ("double", "float64"), 12: ("uint32", "uint32"), 13: ("uint64", "uint64"), 14: ("complex64", "complex64"),
    15: ("complex128", "complex128"), 16: ("bfloat16", "bfloat16"), 17: ("float8e4m3fn", "float8_e4m3fn"),
    18: ("float8e4m3fnuz", "float8_e4m3fnuz"), 19: ("float8e5m2", "float8_e5m2"), 20: ("float8e5m2fnuz", "float8_e5m2fnuz"),
    21: ("uint4", "uint4"), 22: ("int4", "int4"), 23: ("float4e2m1", "float4_e2m1fn"), 24: ("float8e8m0", "float8_e8m0fnu"),
    25: ("uint2", "uint2"), 26: ("int2", "int2"),
}
STORED = {dtype.numpy.name: dtype.numpy for dtype in STORED_DTYPES}
_BY_NUMPY = {numpy_name: number for number, (_, numpy_name) in ELEMENTS.items()}


@lru_cache(maxsize=256)
def element_number(dtype: np.dtype[Any]) -> int:
    """The element type of a NumPy dtype; 0 where ONNX has none. Cached, because every call of a session asks, and names of dtypes are
    slow to make."""
    if dtype.kind in "US" or dtype.kind == "O":
        return 8
    return _BY_NUMPY.get(dtype.name, 0)


def tensor_text(number: int) -> str:
    """`tensor(float)`."""
    return f"tensor({ELEMENTS[number][0] if number in ELEMENTS else 'undefined'})"


def numpy_dtype(element: Any) -> np.dtype[Any]:
    """The dtype that a program names: NumPy's class or dtype, or ONNX's number."""
    if isinstance(element, int) and not isinstance(element, bool):
        if element not in ELEMENTS or element == 8:
            raise ValueError(f"element type {element}: expected the number of a numeric type of ONNX")
        name = ELEMENTS[element][1]
        return dtype_of(STORED.get(name, name)).numpy
    found: np.dtype[Any] = np.dtype(element)
    return found
