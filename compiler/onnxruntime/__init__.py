"""A drop-in for onnxruntime: `import tilewright.onnxruntime as ort`, with the classes, functions and exceptions that programs use.

`python -m tilewright.onnxruntime program.py` runs a program that imports onnxruntime on this package instead. docs/onnxruntime.md
says what is covered, what has no effect, and what is missing.
"""

from __future__ import annotations

from .binding import IOBinding, SessionIOBinding
from .models import ModelMetadata, NodeArg
from .names import (
    ExecutionMode,
    ExecutionOrder,
    GraphOptimizationLevel,
    OrtAllocatorType,
    OrtDeviceMemoryType,
    OrtDeviceVendorId,
    OrtExecutionProviderDevicePolicy,
    OrtHardwareDeviceType,
    OrtMemoryInfoDeviceType,
    OrtMemType,
)
from .options import RunOptions, SessionOptions
from .providers import (
    VERSION,
    create_and_register_allocator,
    create_and_register_allocator_v2,
    disable_telemetry_events,
    enable_telemetry_events,
    get_all_providers,
    get_available_providers,
    get_build_info,
    get_device,
    get_ep_devices,
    get_version_string,
    has_collective_ops,
    preload_dlls,
    print_debug_info,
    register_execution_provider_library,
    set_default_logger_severity,
    set_default_logger_verbosity,
    set_global_thread_pool_sizes,
    set_seed,
    unregister_execution_provider_library,
)
from .session import InferenceSession
from .values import OrtDevice, OrtMemoryInfo, OrtValue, copy_tensors

__version__ = version = VERSION
package_name = "onnxruntime"
cuda_version = None

__all__ = [
    "ExecutionMode", "ExecutionOrder", "GraphOptimizationLevel", "IOBinding", "InferenceSession", "ModelMetadata", "NodeArg",
    "OrtAllocatorType", "OrtDevice", "OrtDeviceMemoryType", "OrtDeviceVendorId", "OrtExecutionProviderDevicePolicy",
    "OrtHardwareDeviceType", "OrtMemType", "OrtMemoryInfo", "OrtMemoryInfoDeviceType", "OrtValue", "RunOptions", "SessionIOBinding",
    "SessionOptions", "copy_tensors", "create_and_register_allocator", "create_and_register_allocator_v2", "cuda_version",
    "disable_telemetry_events", "enable_telemetry_events", "get_all_providers", "get_available_providers", "get_build_info", "get_device",
    "get_ep_devices", "get_version_string", "has_collective_ops", "package_name", "preload_dlls", "print_debug_info",
    "register_execution_provider_library", "set_default_logger_severity", "set_default_logger_verbosity",
    "set_global_thread_pool_sizes", "set_seed", "unregister_execution_provider_library", "version",
]
