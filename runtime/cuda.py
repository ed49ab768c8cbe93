"""Executables on CUDA devices: a compiled model as a Python callable, for NumPy arrays and for tensors on a device.

NumPy arrays go through pinned memory to the device and back, and a call returns when its results are there. Tensors of torch, CuPy
and others are taken where they lie, by DLPack; the call returns at once, its results are ready in its stream. What was called
before with the same sizes and addresses is one launch of a graph.

Guarantees: arguments are checked before anything runs; a model is put on a device when it is first called there, once, also from
several threads; calls on one device take turns. A failure that a kernel found (an index out of range) is raised by the call with
NumPy arrays, else by `synchronize` or the next call in that stream.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any, NoReturn

import numpy as np

from tilewright.ir.errors import ArgumentError, ArtifactError
from tilewright.runtime import _cuda
from tilewright.runtime.buffer import TensorInfo, convert_input
from tilewright.runtime.cuda_array import (
    DeviceArray,
    Tensor,
    current_stream,
    import_tensor,
    is_on_device,
    like,
    require_device,
    stream_number,
)
from tilewright.runtime.cuda_array import device_architecture as device_architecture
from tilewright.runtime.executable import Executable
from tilewright.runtime.profile import Call, Piece, Profile

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
MICROSECOND = 1000  # nanoseconds


class CudaModel:
    """What a `CudaExecutable` runs: the attributes and methods of the native `Model` of CPUs, on devices."""

    golden_bytes = 0
    features = ""

    def __init__(self, native: _cuda.Model, constants: object) -> None:
        self.native = native
        self.constants = constants
        self.name = native.name
        self.target = native.target
        self.version = native.version
        self.abi_version = native.abi_version
        self.kernels = native.kernels
        self.sites = native.sites
        self.static_workspace = native.static_workspace
        self.constants_bytes = native.constants_bytes
        self.constants_digest = native.constants_digest
        self.constants_embedded = native.constants_embedded
        self.code_bytes = native.code_bytes
        self.variants = ((native.target, ""),)
        self.inputs = native.inputs
        self.outputs = native.outputs
        self._inputs = tuple(TensorInfo(*entry) for entry in self.inputs)
        self._outputs = tuple(TensorInfo(*entry) for entry in self.outputs)
        self._input_labels = [f"{self.name}: input '{info.name}'" for info in self._inputs]
        self._out_labels = [f"{self.name}: out for output '{info.name}'" for info in self._outputs]
        self._instances: dict[int, _cuda.Instance] = {}
        self._lock = threading.Lock()

    def instance(self, device: int) -> _cuda.Instance:
        """The model on the device."""
        found = self._instances.get(device)
        if found is None:
            with self._lock:
                found = self._instances.get(device)
                if found is None:
                    found = self._instances[device] = _cuda.Instance(self.native, device, self.constants)
        return found

    # --- calls ---

    def run(self, arguments: Sequence[object], out: object, threads: int) -> Any:
        """A call as an `Executable` makes it; `threads` is of no use here."""
        del threads
        return self.call(arguments, out, None, None)

    def call(self, arguments: Sequence[object], out: object, device: int | None, stream: object) -> Any:
        self._check_count(arguments)
        on_device = [is_on_device(value) for value in arguments]
        given = _listed(self.name, out, len(self._outputs))
        if any(on_device) or any(is_on_device(value) for value in given):
            return self._call_on_device(arguments, on_device, given, device, stream)
        if stream is not None:
            return self._call_copied(arguments, given, device or 0, stream)
        return self._call_on_host(arguments, given, device or 0)

    def _call_on_host(self, arguments: Sequence[object], given: Sequence[Any], device: int) -> Any:
        arrays = [convert_input(self.name, info, value) for info, value in zip(self._inputs, arguments)]
        dims = [size for array in arrays for size in array.shape]
        shapes, _ = self._plan(dims)
        for position, target in enumerate(given):
            if target is not None:
                self._check_host_out(position, target, shapes[position], given[:position])
        written = [target if target is not None and _is_plain(target) else np.empty(shape, info.dtype)
                   for target, shape, info in zip(given, shapes, self._outputs)]
        self.instance(device).run_host(arrays, written, dims)
        for position, target in enumerate(given):
            if target is not None and written[position] is not target:
                target[...] = written[position]
                written[position] = target
        return _one_or_all(written)

    def _call_copied(self, arguments: Sequence[object], given: Sequence[Any], device: int, stream: object) -> NoReturn:
        raise ArgumentError(f"{self.name}: stream: found one for arguments in host memory, whose call returns when it is done",
                            hint="leave it out, or give tensors on the device")

    def _call_on_device(self, arguments: Sequence[object], on_device: Sequence[bool], given: Sequence[Any], device: int | None,
                        stream: object) -> Any:
        """The call with tensors where they lie; nothing is waited for."""
        first = next((v for v, there in zip(arguments, on_device) if there), None)
        first = next((v for v in given if is_on_device(v)), None) if first is None else first
        place = self._device_of(first) if device is None else device
        number = current_stream(first, place) if stream is None else stream_number(stream)
        inputs = self._import_inputs(arguments, on_device, place, number)
        dims = [size for tensor in inputs for size in tensor.shape]
        shapes, _ = self._plan(dims)
        outputs, results = self._device_outputs(given, shapes, inputs, place, number)
        self.instance(place).run([t.address for t in inputs], [t.address for t in outputs], dims, number)
        return _one_or_all([target if target is not None else like(first, result) for target, result in zip(given, results)])

    def _device_of(self, value: Any) -> int:
        if hasattr(value, "__dlpack_device__"):
            return int(value.__dlpack_device__()[1])
        return max(_cuda.device_of(int(value.__cuda_array_interface__["data"][0])), 0)

    def _import_inputs(self, arguments: Sequence[object], on_device: Sequence[bool], device: int, stream: int) -> list[Tensor]:
        tensors = []
        for info, label, value, there in zip(self._inputs, self._input_labels, arguments, on_device):
            if there:
                tensor = import_tensor(label, info, value, stream)
                require_device(label, device, tensor.device)
            elif isinstance(value, bool | int | float | np.generic):
                array = DeviceArray.from_numpy(convert_input(self.name, info, value), device, stream)
                tensor = Tensor(array.address, device, array.shape, array)
            else:
                raise ArgumentError(f"{label}: found {type(value).__name__} in host memory, but others are on cuda:{device}",
                                    hint="give all on the device, or all in host memory")
            tensors.append(tensor)
        return tensors

    def _device_outputs(self, given: Sequence[Any], shapes: Sequence[Shape], inputs: Sequence[Tensor], device: int,
                        stream: int) -> tuple[list[Tensor], list[Any]]:
        """Where results go, and the arrays for those that have no place of the caller's."""
        tensors: list[Tensor] = []
        results: list[Any] = []
        taken = [(tensor.address, _bytes(info, tensor.shape), info) for info, tensor in zip(self._inputs, inputs)]
        for info, label, target, shape in zip(self._outputs, self._out_labels, given, shapes):
            if target is None:
                made = DeviceArray.empty(info.dtype, shape, device, stream)
                tensors.append(Tensor(made.address, device, shape, made))
                results.append(made)
                continue
            if not is_on_device(target):
                raise ArgumentError(f"{label}: found {type(target).__name__} in host memory, expected a tensor on cuda:{device}")
            tensor = import_tensor(label, info, target, stream)
            require_device(label, device, tensor.device)
            if tensor.shape != shape:
                raise ArgumentError(f"{label}: found shape {tensor.shape}, expected {shape}")
            size = _bytes(info, shape)
            for address, count, other in taken:
                if count and size and address < tensor.address + size and tensor.address < address + count:
                    raise ArgumentError(f"{label}: found memory of '{other.name}', expected memory of its own")
            taken.append((tensor.address, size, info))
            tensors.append(tensor)
            results.append(target)
        return tensors, results

    def profile(self, arguments: Sequence[object], device: int, stream: object) -> tuple[Any, Call]:
        """A call with the times of its launches, kernel after kernel; arrays of the host are copied before and after."""
        self._check_count(arguments)
        on_device = [is_on_device(value) for value in arguments]
        first = next((v for v, there in zip(arguments, on_device) if there), None)
        place = device if first is None else self._device_of(first)
        number = 0 if stream is None else stream_number(stream)
        moved = arguments
        if first is None:
            moved = [DeviceArray.from_numpy(convert_input(self.name, info, value), place, number)
                     for info, value in zip(self._inputs, arguments)]
            on_device = [True] * len(moved)
        inputs = self._import_inputs(moved, on_device, place, number)
        dims = [size for tensor in inputs for size in tensor.shape]
        shapes, _ = self._plan(dims)
        outputs, results = self._device_outputs([None] * len(shapes), shapes, inputs, place, number)
        rows = self.instance(place).profile([t.address for t in inputs], [t.address for t in outputs], dims, number)
        launches = tuple((kernel, round(start * MICROSECOND), round(end * MICROSECOND)) for kernel, start, end in rows)
        pieces = tuple(Piece(start, end, (kernel,), False, position) for position, (kernel, start, end) in enumerate(launches))
        returned = [result.numpy() if first is None else like(first, result) for result in results]
        return _one_or_all(returned), Call(launches, (pieces,))

    # --- sizes ---

    def plan(self, shapes: Sequence[Sequence[int]]) -> tuple[list[Shape], int]:
        """The outputs' shapes and the bytes of workspace for inputs of these shapes."""
        self._check_count(shapes)
        for info, shape in zip(self._inputs, shapes):
            if len(shape) != info.rank:
                raise ArgumentError(f"{self.name}: input '{info.name}': found rank {len(shape)}, expected {info}")
        return self._plan([size for shape in shapes for size in shape])

    def _plan(self, dims: Sequence[int]) -> tuple[list[Shape], int]:
        sizes, workspace = self.native.plan(dims)
        shapes, position = [], 0
        for info in self._outputs:
            shapes.append(tuple(sizes[position:position + info.rank]))
            position += info.rank
        return shapes, workspace

    def set_constants(self, constants: object) -> None:
        """Gives the model the constants that it was loaded without."""
        self.constants = constants

    def selftest(self, threads: int) -> str:
        del threads
        return "a model for CUDA records no golden call"

    # --- checks ---

    def _check_count(self, values: Sequence[object]) -> None:
        if len(values) != len(self._inputs):
            expected = ", ".join(map(str, self._inputs))
            raise ArgumentError(f"{self.name}: found {len(values)} inputs, expected {len(self._inputs)} ({expected})")

    def _check_host_out(self, position: int, target: object, shape: Shape, before: Sequence[Any]) -> None:
        info = self._outputs[position]
        label, wanted = self._out_labels[position], f"{info.dtype.name}[{', '.join(map(str, shape))}]"
        if not isinstance(target, np.ndarray):
            raise ArgumentError(f"{label}: found {type(target).__name__}, expected an array: {wanted}")
        if target.dtype != info.dtype or target.shape != shape:
            raise ArgumentError(f"{label}: found {target.dtype.name}[{', '.join(map(str, target.shape))}], expected {wanted}")
        if not target.flags.writeable:
            raise ArgumentError(f"{label}: the array is read only, expected a writable {wanted}")
        for other, array in enumerate(before):
            if array is not None and np.shares_memory(target, array):
                raise ArgumentError(f"{label}: found memory of the array for output '{self._outputs[other].name}', expected an array of "
                                    "its own for each output")


class CudaExecutable(Executable):
    """A model compiled for CUDA devices. Call it with NumPy arrays, or with tensors on a device (torch, CuPy, `DeviceArray`), whose
    results are tensors of the same library. `device`: the one for NumPy arrays."""

    def __init__(self, model: CudaModel, *, device: int | None = None, **rest: Any) -> None:
        super().__init__(model, **rest)  # type: ignore[arg-type]  # a model of _cuda has the face of one of _native
        self._on_devices = model
        self.device = device

    @classmethod
    def from_object(cls, object_code: bytes, constants: object = None, *, symbol: str = "tw_model", threads: int = 0,
                    metadata: Mapping[str, Any] | None = None, save_with: Callable[..., Any] | None = None,
                    pack: Callable[[Sequence[Array]], Any] | None = None, facts_with: Callable[..., Any] | None = None,
                    explain_with: Callable[..., Any] | None = None, device: int | None = None) -> CudaExecutable:
        """Load the object that `backends/cuda/host.py` made. `constants`: a buffer, which is copied to a device at the first call."""
        model = CudaModel(_cuda.Model.from_object(object_code, symbol.removesuffix("_model")), constants)
        return cls(model, device=device, threads=threads, object_code=object_code, metadata=metadata, save_with=save_with, pack=pack,
                   facts_with=facts_with, explain_with=explain_with)

    @classmethod
    def from_library(cls, path: str | PathLike[str], symbol: str, constants: object = None, *, threads: int = 0,
                     metadata: Mapping[str, Any] | None = None, variant: str = "", device: int | None = None) -> CudaExecutable:
        """Load a shared library that exports `symbol`, its `<name>_program` function."""
        if variant:
            raise ArtifactError(f"{fspath(path)}: found variant={variant!r}, but a library for CUDA chooses its code by the device")
        model = CudaModel(_cuda.Model.from_library(fspath(path), symbol), constants)
        return cls(model, device=device, threads=threads, metadata=metadata)

    def __call__(self, *args: object, out: Any = None, stream: object = None, **named: object) -> Any:
        values: Sequence[object] = self._merge(args, named) if named else args
        result = self._on_devices.call(values, out, self.device, stream)
        if self._pack is None:
            return result
        return self._pack(result if isinstance(result, tuple) else (result,))

    def synchronize(self, stream: object = None) -> None:
        """Waits for the calls in the stream, and raises what one of their kernels found."""
        number = 0 if stream is None else stream_number(stream)
        for instance in list(self._on_devices._instances.values()):
            instance.wait(number)

    def profile(self, *args: object, calls: int = 1, out: Any = None, stream: object = None, **named: object) -> Profile:
        """Calls with the time of every launch, by events of the device."""
        wanted: object = calls
        if not isinstance(wanted, int) or wanted < 1:
            raise ArgumentError(f"{self.name}: profile: found {wanted!r} calls, expected 1 or more")
        if out is not None:
            raise ArgumentError(f"{self.name}: profile: out= is not supported for CUDA; leave it out")
        values: Sequence[Any] = self._merge(args, named) if named else args
        found, result = [], None
        for _ in range(calls):
            result, call = self._on_devices.profile(values, self.device or 0, stream)
            found.append(call)
        facts = None if self._facts_with is None else self._facts_with(self, [np.shape(value) for value in values])
        return Profile(self.name, result, 1, self.kernels, tuple(found), facts)

    def on_device(self, number: int) -> CudaExecutable:
        """The same model for NumPy arrays on another device; code and constants are shared."""
        return CudaExecutable(self._on_devices, device=number, object_code=self.object_code, metadata=self.metadata,
                              save_with=self._save_with, pack=self._pack, facts_with=self._facts_with, explain_with=self._explain_with)

    def with_threads(self, threads: int) -> CudaExecutable:
        """The same: threads of the CPU do not take part."""
        if threads < 0:
            raise ArgumentError(f"threads: found {threads}, expected 0 (all) or a positive number")
        return self.on_device(self.device or 0)

    @property
    def threads(self) -> int:
        return 1

    @property
    def architectures(self) -> tuple[str, ...]:
        """What it holds code for: cubins as 'sm_90', PTX as 'compute_80'."""
        return tuple(self._on_devices.native.architectures)

    def source(self) -> str:
        """The CUDA C++ of the kernels."""
        return self._on_devices.native.source


def _bytes(info: TensorInfo, shape: Shape) -> int:
    return math.prod(shape) * info.dtype.itemsize


def _is_plain(array: Array) -> bool:
    return type(array) is np.ndarray and array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative


def _one_or_all(results: list[Any]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)


def _listed(name: str, out: object, count: int) -> Sequence[Any]:
    """What out= gives for each output; None where it gives nothing."""
    if out is None:
        return [None] * count
    given = out if isinstance(out, tuple | list) else (out,)
    if len(given) != count:
        raise ArgumentError(f"{name}: out: found {len(given)} arrays, expected {count}")
    return list(given)
