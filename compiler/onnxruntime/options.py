"""SessionOptions and RunOptions: ONNX Runtime's settings, those that mean something here and those that do not.

Honoured: `intra_op_num_threads`, `use_deterministic_compute` (results are always the same on the same machine), free dimension
overrides, initializers given in place of the model's, `log_severity_level`, and of a run `terminate` and
`only_execute_path_to_fetches`. All else has the same attributes and defaults, is checked for its type and kept; `ignored` lists what
was set and has no effect, for one warning a session. What would change results and cannot be honoured (a library of custom
operators) is refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from .errors import Fail, NotImplemented, status
from .names import ExecutionMode, ExecutionOrder, GraphOptimizationLevel

WARNING = 2  # of the severities: verbose, info, warning, error, fatal

# attribute -> (its default, whether setting it is honoured or without consequence for a caller)
SESSION_SETTINGS: dict[str, tuple[Any, bool]] = {
    "enable_cpu_mem_arena": (True, False),
    "enable_mem_pattern": (True, False),
    "enable_mem_reuse": (True, False),
    "enable_profiling": (False, False),
    "execution_mode": (ExecutionMode.ORT_SEQUENTIAL, False),
    "execution_order": (ExecutionOrder.DEFAULT, False),
    "graph_optimization_level": (GraphOptimizationLevel.ORT_ENABLE_ALL, False),
    "inter_op_num_threads": (0, True),  # of no consequence where nodes run one after the other
    "intra_op_num_threads": (0, True),
    "log_severity_level": (-1, True),
    "log_verbosity_level": (0, True),
    "logid": ("", True),
    "optimized_model_filepath": ("", False),
    "profile_file_prefix": ("onnxruntime_profile_", True),
    "use_deterministic_compute": (False, True),
    "use_per_session_threads": (True, False),
}
RUN_SETTINGS: dict[str, tuple[Any, bool]] = {
    "log_severity_level": (-1, True),
    "log_verbosity_level": (0, True),
    "logid": ("", True),
    "only_execute_path_to_fetches": (False, True),
    "terminate": (False, True),
}


class _Settings:
    """Attributes of fixed names and types, as the classes of an extension module have them."""

    _table: ClassVar[dict[str, tuple[Any, bool]]] = {}

    def __init__(self) -> None:
        object.__setattr__(self, "_values", {name: default for name, (default, _) in self._table.items()})
        object.__setattr__(self, "_entries", {})

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._table:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        default = self._table[name][0]
        if isinstance(default, bool):
            fits = isinstance(value, bool)
        elif isinstance(default, int):
            fits = hasattr(value, "__index__")
            value = int(value) if fits else value
        else:
            fits = isinstance(value, type(default)) or (isinstance(default, str) and hasattr(value, "__fspath__"))
        if not fits:
            raise TypeError(f"{type(self).__name__}.{name}: found {value!r}, expected {type(default).__name__}: "
                            "incompatible function arguments")
        self._values[name] = str(value) if isinstance(default, str) else value

    def ignored(self) -> list[str]:
        """What was set to something else than its default and has no effect."""
        return [name for name, (default, honoured) in self._table.items() if not honoured and self._values[name] != default]


class SessionOptions(_Settings):
    """How to make a session."""

    _table = SESSION_SETTINGS

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("_dims", {}), ("_denotations", {}), ("_initializers", {}), ("_providers", []), ("_unheard", [])):
            object.__setattr__(self, name, value)

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Kept; no entry changes results."""
        self._entries[str(key)] = str(value)

    def get_session_config_entry(self, key: str) -> str:
        if key not in self._entries:
            raise RuntimeError(f"SessionOptions does not have configuration with key: {key}")
        return str(self._entries[key])

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Binds a symbolic dim: the code is specialized to that size."""
        self._dims[str(name)] = int(size)

    def add_free_dimension_override_by_denotation(self, denotation: str, size: int) -> None:
        """Binds every dim of the inputs that carries this denotation."""
        self._denotations[str(denotation)] = int(size)

    def add_initializer(self, name: str, value: Any) -> None:
        """The array to use in place of an initializer of the model."""
        self._initializers[str(name)] = value

    def add_external_initializers(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Arrays in place of initializers that the model says lie in other files."""
        if len(names) != len(values):
            raise RuntimeError(f"add_external_initializers: found {len(names)} names and {len(values)} values")
        for name, value in zip(names, values):
            self.add_initializer(name, value)

    def add_external_initializers_from_files_in_memory(self, *arguments: Any) -> None:
        del arguments
        raise status(NotImplemented, "add_external_initializers_from_files_in_memory is not supported; write the file beside the model, "
                     "or give arrays to add_external_initializers")

    def register_custom_ops_library(self, path: str) -> None:
        raise status(Fail, f"{path}: libraries of custom operators are code for ONNX Runtime and are not supported")

    def add_provider(self, name: str, options: dict[str, str]) -> None:
        """Kept; everything runs on the CPU."""
        del options
        self._providers.append(str(name))

    def add_provider_for_devices(self, devices: Sequence[Any], options: dict[str, str]) -> None:
        del devices, options
        self._unheard.append("add_provider_for_devices")

    def has_providers(self) -> bool:
        return bool(self._providers)

    def set_provider_selection_policy(self, policy: Any) -> None:
        del policy
        self._unheard.append("set_provider_selection_policy")

    def set_provider_selection_policy_delegate(self, delegate: Any) -> None:
        del delegate
        self._unheard.append("set_provider_selection_policy_delegate")

    def set_load_cancellation_flag(self, cancel: bool) -> None:
        """A session that is made while this is set is not made."""
        object.__setattr__(self, "_cancelled", bool(cancel))

    def set_ep_context_data_read_func(self, function: Any) -> None:
        del function
        self._unheard.append("set_ep_context_data_read_func")

    def clear_ep_context_data_read_func(self) -> None:
        """Nothing is read by it."""

    def ignored(self) -> list[str]:
        entries = [f"config entry {key!r}" for key in self._entries if not key.startswith("tilewright.")]
        return [*super().ignored(), *entries, *dict.fromkeys(self._unheard)]


class RunOptions(_Settings):
    """How to make one call. Setting `terminate` in another thread keeps later calls from beginning; a call that runs is finished."""

    _table = RUN_SETTINGS

    def add_run_config_entry(self, key: str, value: str) -> None:
        self._entries[str(key)] = str(value)

    def get_run_config_entry(self, key: str) -> str:
        if key not in self._entries:
            raise RuntimeError(f"RunOptions does not have configuration with key: {key}")
        return str(self._entries[key])

    def add_active_adapter(self, adapter: Any) -> None:
        del adapter
        raise status(NotImplemented, "adapters (LoRA) are not supported")
