"""IOBinding: arrays bound to the inputs and outputs of a session, for many runs.

Inputs are read, and bound outputs written, where they lie, also at addresses that the program answers for. An output that is bound
without memory gets new memory in every run.

Assumes that memory at an address stays until the run ends. Guarantees: results are computed before any bound memory is written, so
an output may lie where an input does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .names import numpy_dtype
from .values import Array, OrtValue, OrtValueVector, array_at, require_cpu


class IOBinding:
    """What is bound to one session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs: dict[str, OrtValue] = {}
        self._bound: dict[str, OrtValue | None] = {}
        self._outputs: list[OrtValue] = []

    def bind_cpu_input(self, name: str, arr_on_cpu: Array) -> None:
        """The array is not copied."""
        self._require_known(name)
        self._inputs[name] = OrtValue.ortvalue_from_numpy(arr_on_cpu)

    def bind_input(self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int) -> None:
        del device_id
        self._require_known(name)
        require_cpu(device_type)
        self._inputs[name] = OrtValue(array_at(buffer_ptr, shape, numpy_dtype(element_type)))

    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None:
        self._require_known(name)
        self._inputs[name] = ortvalue

    def bind_output(self, name: str, device_type: str = "cpu", device_id: int = 0, element_type: Any = None,
                    shape: Sequence[int] | None = None, buffer_ptr: int | None = None) -> None:
        """Without an address the run takes new memory."""
        del device_id
        require_cpu(device_type)
        if buffer_ptr is None:
            self._bound[name] = None
        elif element_type is None or shape is None:
            raise ValueError("`element_type` and `shape` are to be provided if pre-allocated memory is provided")
        else:
            self._bound[name] = OrtValue(array_at(buffer_ptr, shape, numpy_dtype(element_type)))

    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None:
        self._bound[name] = ortvalue

    def synchronize_inputs(self) -> None:
        """Nothing is copied elsewhere."""

    def synchronize_outputs(self) -> None:
        """A run has ended when it returns."""

    def get_outputs(self) -> list[OrtValue]:
        """The results of the last run, in the order in which they were bound."""
        return list(self._outputs)

    def get_outputs_as_ortvaluevector(self) -> OrtValueVector:
        return OrtValueVector(self._outputs)

    def copy_outputs_to_cpu(self) -> list[Array]:
        return [np.array(value.numpy()) for value in self._outputs]

    def clear_binding_inputs(self) -> None:
        self._inputs.clear()

    def clear_binding_outputs(self) -> None:
        self._bound.clear()
        self._outputs = []

    def _require_known(self, name: str) -> None:
        if name not in self._session._arguments:
            raise RuntimeError(f"Failed to find NodeArg with name: {name} in the def list")

    def _run(self, call: Callable[[Sequence[str], Mapping[str, OrtValue]], Sequence[Array]]) -> None:
        """Runs what is bound; `call` takes names of outputs, and inputs."""
        if not self._bound:
            raise RuntimeError("Error in execution: At least one output should be requested.")
        missing = [argument.name for argument in self._session.get_inputs() if argument.name not in self._inputs]
        if missing:
            raise RuntimeError(f"Error in execution: Missing Input: {missing[0]}")
        names = self._session._wanted(list(self._bound))
        results = call(names, self._inputs)
        self._outputs = [_placed(name, array, self._bound[name]) for name, array in zip(names, results)]


def _placed(name: str, array: Array, place: OrtValue | None) -> OrtValue:
    """The result in the memory that is bound to it."""
    if place is None:
        return OrtValue(array)
    target = place.numpy()
    if target.shape != array.shape or target.dtype != array.dtype:
        raise RuntimeError(f"Error in execution: The output OrtValue provided for output '{name}' has shape {list(target.shape)} of "
                           f"{target.dtype} but the computed output is {list(array.shape)} of {array.dtype}")
    target[...] = array
    return place


class SessionIOBinding(IOBinding):
    """The name of it in the extension module."""
