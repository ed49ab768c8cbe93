"""What ONNX Runtime says of itself and of the machine: execution providers, devices, version, the logger.

There is one provider, the CPU; what programs ask for besides is answered as ONNX Runtime's build without it answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

VERSION = "1.31.1"  # of ONNX Runtime's interface, which programs look at
CPU = "CPUExecutionProvider"
ALL_PROVIDERS = (
    "NvTensorRTRTXExecutionProvider", "TensorrtExecutionProvider", "CUDAExecutionProvider", "MIGraphXExecutionProvider",
    "OpenVINOExecutionProvider", "DnnlExecutionProvider", "VitisAIExecutionProvider", "QNNExecutionProvider", "NnapiExecutionProvider",
    "VSINPUExecutionProvider", "JsExecutionProvider", "CoreMLExecutionProvider", "ACLExecutionProvider", "DmlExecutionProvider",
    "RknpuExecutionProvider", "WebNNExecutionProvider", "WebGpuExecutionProvider", "XnnpackExecutionProvider", "CANNExecutionProvider",
    "AzureExecutionProvider", CPU)
_log = {"severity": 2, "verbosity": 0}


def get_available_providers() -> list[str]:
    return [CPU]


def get_all_providers() -> list[str]:
    return list(ALL_PROVIDERS)


def get_device() -> str:
    return "CPU"


def get_ep_devices() -> list[Any]:
    return []


def get_version_string() -> str:
    return VERSION


def get_build_info() -> str:
    return "ORT Build Info: Tilewright in the place of ONNX Runtime"


def has_collective_ops() -> bool:
    return False


def set_default_logger_severity(severity: int) -> None:
    """0 verbose to 4 fatal; from 3 on there are no warnings of ignored options."""
    if severity not in range(5):
        raise RuntimeError(f"Invalid logging severity. Expected 0 to 4, found {severity}")
    _log["severity"] = severity


def set_default_logger_verbosity(verbosity: int) -> None:
    _log["verbosity"] = verbosity


def default_severity() -> int:
    return _log["severity"]


def set_seed(seed: int) -> None:
    """Nothing here is random."""
    del seed


def set_global_thread_pool_sizes(intra_op_num_threads: int, inter_op_num_threads: int) -> None:
    """Threads are a matter of each session."""
    del intra_op_num_threads, inter_op_num_threads


def enable_telemetry_events() -> None:
    """There are none."""


def disable_telemetry_events() -> None:
    """There are none."""


def preload_dlls(cuda: bool = True, cudnn: bool = True, msvc: bool = True, directory: str | None = None) -> None:
    """Nothing is loaded: everything runs on the CPU."""
    del cuda, cudnn, msvc, directory


def print_debug_info() -> None:
    print(f"{get_build_info()}, the interface of version {VERSION}")


def create_and_register_allocator(memory_info: Any, arena_config: Any = None) -> None:
    """Memory is planned when a model is compiled; there is no allocator to set up."""
    del memory_info, arena_config


def create_and_register_allocator_v2(provider: str, memory_info: Any, options: Any, arena_config: Any = None) -> None:
    """As above."""
    del provider, memory_info, options, arena_config


def register_execution_provider_library(name: str, path: str) -> None:
    raise RuntimeError(f"{path}: execution providers are code for ONNX Runtime; {name} cannot be registered")


def unregister_execution_provider_library(name: str) -> None:
    raise RuntimeError(f"{name}: no such library is registered")


def normalized(providers: Sequence[Any] | None, options: Sequence[Any] | None,
               fall_back: bool) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The providers of a session, all that a program may write checked. What is malformed is an error, or a warning where the session
    may fall back to the CPU."""
    try:
        names = _checked_names(providers, options)
    except ValueError as error:
        if not fall_back:
            raise
        warnings.warn(f"{error} Falling back to {CPU}.", stacklevel=4)
        names = []
    for name in dict.fromkeys(names):
        if name != CPU:
            warnings.warn(f"Specified provider '{name}' is not in available provider names.Available providers: '{CPU}'", stacklevel=4)
        if names.count(name) > 1:
            warnings.warn(f"Duplicate provider '{name}' encountered, ignoring.", stacklevel=4)
    return [CPU], {CPU: {}}


def _checked_names(providers: Sequence[Any] | None, options: Sequence[Any] | None) -> list[str]:
    if providers is None:
        return []
    if not isinstance(providers, Sequence):
        raise ValueError("'providers' should be a sequence.")
    if options is not None:
        if not isinstance(options, Sequence):
            raise ValueError("'provider_options' should be a sequence.")
        if len(providers) != len(options):
            raise ValueError("'providers' and 'provider_options' should be the same length if both are given.")
        if not all(isinstance(provider, str) for provider in providers):
            raise ValueError("Only string values for 'providers' are supported if 'provider_options' is given.")
        if not all(isinstance(entry, dict) for entry in options):
            raise ValueError("'provider_options' values must be dicts.")
    names = []
    for provider in providers:
        pair = isinstance(provider, tuple) and len(provider) == 2 and isinstance(provider[0], str) and isinstance(provider[1], dict)
        if not isinstance(provider, str) and not pair:
            raise ValueError("'providers' values must be either strings or (string, dict) tuples.")
        names.append(provider if isinstance(provider, str) else provider[0])
    return names
