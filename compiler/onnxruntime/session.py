"""InferenceSession: a model, compiled once, that is run by the names of its inputs.

Checks what ONNX Runtime checks before a run, with its exceptions and its words: names of inputs and outputs, element types, ranks,
sizes that the model fixes. A size without a number may be any, as there.

Guarantees: results are new arrays that belong to the caller. Safe from many threads.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.errors import TilewrightError
from ..options import Options
from .binding import IOBinding
from .errors import Fail, InvalidArgument, ModelLoadCanceled, NotImplemented, status
from .models import Changes, Description, ModelFile, ModelMetadata, NodeArg, Size
from .names import ELEMENTS, element_number, tensor_text
from .options import WARNING, RunOptions, SessionOptions
from .programs import Programs
from .providers import CPU, default_severity, normalized
from .values import Array, OrtMemoryInfo, OrtValue, OrtValueVector

Feed = Mapping[str, Any]
NUMBERS = {text: number for number, (text, _) in ELEMENTS.items()}
_warned: set[str] = set()


class Session:
    """What every kind of session does; programs use `InferenceSession`."""


class InferenceSession(Session):
    """A model that can be run. `path_or_bytes`: the file, or what is in it."""

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: SessionOptions | None = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(path_or_bytes, (str, os.PathLike)):
            source: str | bytes = os.fspath(path_or_bytes)
        elif isinstance(path_or_bytes, bytes):
            source = path_or_bytes
        else:
            raise TypeError(f"Unable to load from type '{type(path_or_bytes)}'")
        if sess_options is not None and not isinstance(sess_options, SessionOptions):
            raise TypeError(f"sess_options: found {type(sess_options).__name__}, expected SessionOptions: incompatible function arguments")
        self._sess_options = sess_options
        self._enable_fallback = int(kwargs.get("enable_fallback", 1)) == 1
        settings = sess_options or SessionOptions()
        if getattr(settings, "_cancelled", False):
            raise ModelLoadCanceled("[ONNXRuntimeError] : 12 : MODEL_LOAD_CANCELED : the flag of the options is set")
        self._providers, self._provider_options = normalized(providers, provider_options, self._enable_fallback)
        _warn_of_ignored(settings)
        self._started = time.monotonic_ns()
        initializers = {name: value.numpy() for name, value in settings._initializers.items()}
        changes = Changes(dict(settings._dims), dict(settings._denotations), initializers)
        file = ModelFile(source)
        description = file.description(changes)
        try:
            options = Options(threads=max(0, settings.intra_op_num_threads))
            self._programs = Programs(file, changes, description, options)
        except TilewrightError as error:
            raise status(Fail, str(error)) from error
        self._describe(description)

    def _describe(self, description: Description) -> None:
        self._inputs_meta = list(description.inputs)
        self._outputs_meta = _inferred(description, self._programs.open)
        self._overridable_initializers = list(description.overridable)
        self._model_meta = description.metadata
        self._arguments = {argument.name: argument for argument in (*description.inputs, *description.overridable)}
        self._output_places = {argument.name: place for place, argument in enumerate(description.outputs)}

    # --- what it is ---------------------------------------------------------------------------------------------------

    def get_inputs(self) -> Sequence[NodeArg]:
        return self._inputs_meta

    def get_outputs(self) -> Sequence[NodeArg]:
        return self._outputs_meta

    def get_overridable_initializers(self) -> Sequence[NodeArg]:
        """Initializers that are inputs too: a call may give others."""
        return self._overridable_initializers

    def get_modelmeta(self) -> ModelMetadata:
        return self._model_meta

    def get_session_options(self) -> SessionOptions | None:
        return self._sess_options

    def get_providers(self) -> Sequence[str]:
        return self._providers

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return self._provider_options

    def set_providers(self, providers: Sequence[Any] | None = None, provider_options: Sequence[Any] | None = None) -> None:
        """Checked and kept; everything runs on the CPU."""
        self._providers, self._provider_options = normalized(providers, provider_options, self._enable_fallback)

    def disable_fallback(self) -> None:
        self._enable_fallback = False

    def enable_fallback(self) -> None:
        self._enable_fallback = True

    def get_input_memory_infos(self) -> Sequence[OrtMemoryInfo]:
        return [OrtMemoryInfo() for _ in self._inputs_meta]

    def get_output_memory_infos(self) -> Sequence[OrtMemoryInfo]:
        return [OrtMemoryInfo() for _ in self._outputs_meta]

    def get_input_epdevices(self) -> Sequence[Any]:
        """None: no devices are told apart."""
        return [None for _ in self._inputs_meta]

    def get_provider_graph_assignment_info(self) -> Sequence[Any]:
        return []

    def end_profiling(self) -> str:
        """No file is written: `tilewright profile` says more."""
        return ""

    def get_profiling_start_time_ns(self) -> int:
        return self._started

    def get_tuning_results(self) -> list[Any]:
        return []

    def set_tuning_results(self, results: Any, *, error_on_invalid: bool = False) -> None:
        del results, error_on_invalid

    def set_ep_dynamic_options(self, options: Mapping[str, str]) -> None:
        del options

    def release_captured_graph(self, graph_annotation_id: int = 0) -> None:
        del graph_annotation_id

    # --- runs ---------------------------------------------------------------------------------------------------------

    def run(self, output_names: Sequence[str] | None, input_feed: Feed, run_options: RunOptions | None = None) -> list[Array]:
        """One call: arrays by the names of inputs, to the named outputs (all, where none are named)."""
        self._require_inputs(list(input_feed.keys()))
        names = self._wanted(output_names)
        _check_run_options(run_options)
        feed = {name: self._converted(name, value) for name, value in input_feed.items()}
        return self._results(names, feed)

    def _results(self, names: Iterable[str], feed: dict[str, Array]) -> list[Array]:
        results = self._programs.call(feed)
        return [results[self._output_places[name]] for name in names]

    def _require_inputs(self, names: list[str]) -> None:
        missing = [argument.name for argument in self._inputs_meta if argument.name not in names]
        if missing:
            raise ValueError(f"Required inputs ({missing}) are missing from input feed ({names}).")

    def _wanted(self, output_names: Sequence[str] | None) -> Sequence[str]:
        if not output_names:
            return list(self._output_places)
        if isinstance(output_names, str) or not all(isinstance(name, str) for name in output_names):
            raise TypeError(f"run(): incompatible function arguments: found output_names {output_names!r}, expected a sequence of names")
        for name in output_names:
            if name not in self._output_places:
                raise status(InvalidArgument, f"Invalid output name:{name}")
        return output_names

    def _converted(self, name: str, value: Any) -> Array:
        """An input as an array, checked as far as the model says what it must be."""
        argument = self._arguments.get(name)
        if argument is None:
            raise status(InvalidArgument, f"Invalid input name: {name}")
        array = _array_of(name, value, argument)
        number = element_number(array.dtype)
        if tensor_text(number) != argument.type:
            raise status(InvalidArgument, f"Unexpected input data type. Actual: ({tensor_text(number)}) , expected: ({argument.type})")
        if not argument.shape:
            return array
        if array.ndim != len(argument.shape):
            raise status(InvalidArgument, f"Invalid rank for input: {name} Got: {array.ndim} Expected: {len(argument.shape)} "
                         "Please fix either the inputs/outputs or the model.")
        wrong = [(axis, found, size) for axis, (found, size) in enumerate(zip(array.shape, argument.shape))
                 if isinstance(size, int) and found != size]
        if wrong:
            lines = "".join(f" index: {axis} Got: {found} Expected: {size}\n" for axis, found, size in wrong)
            raise status(InvalidArgument, f"Got invalid dimensions for input: {name} for the following indices\n{lines}"
                         " Please fix either the inputs/outputs or the model.")
        return array

    def run_async(self, output_names: Sequence[str] | None, input_feed: Feed, callback: Callable[..., Any], user_data: Any,
                  run_options: RunOptions | None = None) -> None:
        """One call in a thread of its own; `callback(results, user_data, error)` is called there."""
        self._require_inputs(list(input_feed.keys()))
        names = self._wanted(output_names)

        def work() -> None:
            try:
                results, error = self.run(names, input_feed, run_options), ""
            except Exception as raised:  # handed on as text, as the callback expects it
                results, error = [], str(raised)
            callback(results, user_data, error)

        threading.Thread(target=work, daemon=True).start()

    def run_with_ort_values(self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, OrtValue],
                            run_options: RunOptions | None = None) -> list[OrtValue]:
        return [OrtValue(array) for array in self.run(output_names, input_dict_ort_values, run_options)]

    def run_with_ortvaluevector(self, run_options: RunOptions | None, feed_names: Sequence[str], feeds: Sequence[OrtValue],
                                fetch_names: Sequence[str], fetches: OrtValueVector, fetch_devices: Sequence[Any]) -> None:
        """As `run`, with lists of values; results are appended to `fetches`, or written to those that are there."""
        del fetch_devices
        results = self.run(fetch_names, dict(zip(feed_names, feeds, strict=True)), run_options)
        given = list(fetches)
        fetches[:] = [OrtValue(array) for array in results]
        for place, value in enumerate(given):
            value.update_inplace(results[place])
            fetches[place] = value

    # --- bindings -----------------------------------------------------------------------------------------------------

    def io_binding(self) -> IOBinding:
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions | None = None) -> None:
        """One call on what is bound."""
        if iobinding._session is not self:
            raise ValueError("IOBinding must be used with the session that created it.")
        try:
            _check_run_options(run_options)
            iobinding._run(lambda names, feed: self._results(names, {name: self._converted(name, v) for name, v in feed.items()}))
        except (InvalidArgument, Fail, NotImplemented) as error:
            raise RuntimeError(f"Error in execution: {str(error).split(' : ', 3)[-1]}") from error

    def create_ortvalue_from_shape_and_type(self, shape: Sequence[int], element_type: Any, device_type: str, device_id: int = 0,
                                            vendor_id: int = -1) -> OrtValue:
        return OrtValue.ortvalue_from_shape_and_type(shape, element_type, device_type, device_id, vendor_id)


def _array_of(name: str, value: Any, argument: NodeArg) -> Array:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, OrtValue):
        return value.numpy()
    if isinstance(value, list):
        number = NUMBERS.get(argument.type.removeprefix("tensor(").removesuffix(")"), 0)
        return np.array(value, dtype=ELEMENTS[number][1] if number in ELEMENTS else None)
    if value is None:
        raise status(Fail, f"Missing Input: {name}")
    raise RuntimeError(f"Unable to handle object of type {type(value)}")


def _check_run_options(run_options: RunOptions | None) -> None:
    if run_options is None:
        return
    if not isinstance(run_options, RunOptions):
        raise TypeError(f"run(): incompatible function arguments: found {type(run_options).__name__}, expected RunOptions")
    if run_options.terminate:
        raise status(Fail, "Exiting due to terminate flag being set to true.")


def _inferred(description: Description, executable: Any) -> list[NodeArg]:
    """The outputs, with sizes that the model leaves open and the compiler found."""
    if executable is None:
        return list(description.outputs)
    outputs = []
    for argument, info in zip(description.outputs, executable.outputs):
        found: list[Size] = [size if isinstance(size, int) else description.dim_names.get(size) for size in info.shape]
        shape: Sequence[Size] = argument.shape if len(argument.shape) == len(found) else [None] * len(found)
        merged = [size if isinstance(size, int) or own is None else own for own, size in zip(shape, found)]
        outputs.append(NodeArg(argument.name, argument.type or tensor_text(element_number(info.dtype)), merged))
    return outputs


def _warn_of_ignored(settings: SessionOptions) -> None:
    """One warning for all that was set without effect, and each name once in a process."""
    severity = settings.log_severity_level if settings.log_severity_level >= 0 else default_severity()
    ignored = [name for name in settings.ignored() if name not in _warned]
    if ignored and severity <= WARNING:
        _warned.update(ignored)
        warnings.warn(f"tilewright.onnxruntime accepts these session options without effect: {', '.join(ignored)}", stacklevel=3)


__all__ = ["CPU", "InferenceSession", "Session"]
