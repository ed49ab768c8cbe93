"""The reference backend: graphs and programs run by their interpreters, behind the interface of compiled models.

Every other backend is tested against it. A `ReferenceModel` takes the place of the native `Model` in an `Executable`:
same arguments, checks, `out=` and errors, so that a caller sees no difference but the speed. From a graph it evaluates
the graph's meaning in NumPy; from a program it runs the kernels with checks of bounds, initialisation and races.

It makes no object code: what is compiled with it cannot be saved. Stateless, so safe from any thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from tilewright.ir.caps import Caps
from tilewright.ir.dims import DimLike, evaluate, is_static
from tilewright.ir.errors import ArgumentError, UnsupportedError
from tilewright.ir.graph import Graph, Node
from tilewright.ir.interp import bind_shapes, evaluate_graph
from tilewright.ir.loop_interp import run_program
from tilewright.ir.loop_verify import verify_program
from tilewright.ir.ops.control import Param
from tilewright.ir.program import Program
from tilewright.ir.types import TensorType
from tilewright.runtime.buffer import TensorInfo, convert_input

Array = np.ndarray[Any, Any]
Descriptor = tuple[str, np.dtype[Any], tuple[int | str, ...]]
# of a plain machine: schedules made for it have small vectors and small tiles, which keeps interpretation short
PLAIN = Caps(vector_bits=128, vector_registers=16, has_fma=True, has_masked_memory=False, has_mask_registers=False,
             has_pairs=False, has_byte_pairs=False, has_quads=False, has_bf16=False, level1_bytes=32768, level2_bytes=262144,
             level3_bytes=0)


class ReferenceBackend:
    """`compile` gives a model to run; asking it for object code is an error that says so."""

    name = "reference"
    capabilities = PLAIN

    def compile(self, program: Program, *, name_prefix: str = "") -> ReferenceModel:
        """The program as a model. A prefix asks for a library, which an interpreter cannot give."""
        if name_prefix:
            _no_code(name_prefix)
        return ReferenceModel(program)


def _no_code(name: str) -> NoReturn:
    raise UnsupportedError(f"{name}: the reference backend interprets programs and makes no object code",
                           hint="compile for a target such as 'cpu' to save or link the result")


class ReferenceModel:
    """What `Executable` runs: the attributes and methods of the native `Model`."""

    constants = None
    constants_digest = None
    constants_bytes = 0
    constants_embedded = True
    code_bytes = 0
    golden_bytes = 0
    features = ""
    target = "reference"
    variants = (("reference", ""),)
    version = None
    abi_version = 0

    def __init__(self, source: Graph | Program) -> None:
        self.source = source
        self.name = source.name
        self._input_types, self._output_types = _signature(source)
        if isinstance(source, Program):
            verify_program(source)
        self.inputs = [_describe(name, type) for name, type in self._input_types]
        self.outputs = [_describe(name, type) for name, type in self._output_types]
        self._infos = [TensorInfo(*entry) for entry in self.inputs]
        self.sites: list[str] = []
        self.kernels = [k.name for k in source.kernels()] if isinstance(source, Program) else []

    @property
    def object_code(self) -> bytes:
        _no_code(self.name)

    @property
    def symbol(self) -> str:
        _no_code(self.name)

    @property
    def static_workspace(self) -> int:
        """Bytes, or -1 where they depend on sizes; evaluating a graph plans no memory."""
        size = self.source.workspace_bytes if isinstance(self.source, Program) else -1
        return size if isinstance(size, int) else -1

    def run(self, arguments: Sequence[object], out: object, threads: int) -> Any:
        """One call: an array for one output, a tuple for several. `threads` changes no result; a program is checked for
        races between two threads at least."""
        arrays = self._arrays(arguments)
        binding = self._binding(arrays)
        if isinstance(self.source, Program):
            results = run_program(self.source, arrays, threads=max(2, min(threads, 8)))
        else:
            results = [np.asarray(v) for v in evaluate_graph(self.source, arrays, binding)]
        # a result must be the caller's own: a graph that returns an input hands on that very array
        fresh = [np.array(r, order="C", copy=True) if any(np.may_share_memory(r, a) for a in arrays) else np.ascontiguousarray(r)
                 .reshape(r.shape) for r in results]
        return self._deliver(fresh, out)

    def profile(self, arguments: Sequence[object], out: object, threads: int, capacity: int) -> tuple[Any, list[int], list[bytes]]:
        """The result, and the time of the whole call shared evenly by the kernels: an interpreter's times mean little. What
        threads did when is not noted."""
        start = time.perf_counter_ns()
        result = self.run(arguments, out, threads)
        each = (time.perf_counter_ns() - start) // max(1, len(self.kernels))
        return result, [each] * len(self.kernels), []

    def plan(self, shapes: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], int]:
        """The outputs' shapes and the bytes of workspace for inputs of these shapes."""
        if len(shapes) != len(self.inputs):
            raise ArgumentError(f"{self.name}: found {len(shapes)} shapes, expected {len(self.inputs)}")
        arrays = [np.broadcast_to(np.zeros((), type.dtype.numpy), tuple(shape))
                  for (_, type), shape in zip(self._input_types, shapes)]
        binding = self._binding(arrays)
        outputs = [tuple(evaluate(n, binding) for n in type.shape) for _, type in self._output_types]
        workspace: DimLike = self.source.workspace_bytes if isinstance(self.source, Program) else 0
        return outputs, evaluate(workspace, binding)

    def selftest(self, threads: int) -> str:
        return "the reference backend records no golden call"

    # --- arguments and results ---

    def _arrays(self, arguments: Sequence[object]) -> list[Array]:
        if len(arguments) != len(self._infos):
            expected = ", ".join(map(str, self._infos))
            raise ArgumentError(f"{self.name}: found {len(arguments)} inputs, expected {len(self._infos)} ({expected})")
        return [convert_input(self.name, info, value) for info, value in zip(self._infos, arguments)]

    def _binding(self, arrays: Sequence[Array]) -> dict[str, int]:
        params = [Node(Param(name, type.dtype, type.shape), (), type) for name, type in self._input_types]
        return bind_shapes(Graph(self.name, params, []), arrays)

    def _deliver(self, results: list[Array], out: object) -> Any:
        if out is not None:
            given = (out,) if isinstance(out, np.ndarray) else out
            if not isinstance(given, (tuple, list)):
                raise ArgumentError(f"{self.name}: out: found {type(out).__name__}, expected an array or a tuple of arrays")
            if len(given) != len(results):
                raise ArgumentError(f"{self.name}: out: found {len(given)} arrays, expected {len(results)}")
            for position, target in enumerate(given):
                if target is not None:
                    self._check_out(position, target, results[position])
                    self._check_shared(position, target, given[:position])
            for position, target in enumerate(given):
                if target is not None:
                    target[...] = results[position]
                    results[position] = target
        return results[0] if len(results) == 1 else tuple(results)

    def _check_out(self, position: int, target: object, result: Array) -> None:
        """All are checked before any is written."""
        name = self._output_types[position][0]
        wanted = f"{result.dtype.name}[{', '.join(map(str, result.shape))}]"
        if not isinstance(target, np.ndarray):
            raise ArgumentError(f"{self.name}: out for output '{name}': found {type(target).__name__}, expected an array: {wanted}")
        if target.dtype != result.dtype or target.shape != result.shape:
            found = f"{target.dtype.name}[{', '.join(map(str, target.shape))}]"
            raise ArgumentError(f"{self.name}: out for output '{name}': found {found}, expected {wanted}")
        if not target.flags.writeable:
            raise ArgumentError(f"{self.name}: out for output '{name}': the array is read only, expected a writable {wanted}")

    def _check_shared(self, position: int, target: Array, before: Sequence[Array | None]) -> None:
        for other, array in enumerate(before):
            if array is not None and np.shares_memory(target, array):
                names = [name for name, _ in self._output_types]
                raise ArgumentError(f"{self.name}: out for output '{names[position]}': found memory of the array for output "
                                    f"'{names[other]}', expected an array of its own for each output")


def _signature(source: Graph | Program) -> tuple[list[tuple[str, TensorType]], list[tuple[str, TensorType]]]:
    if isinstance(source, Program):
        return list(source.inputs), list(source.outputs)
    inputs = [(p.op.label, p.tensor) for p in source.params if isinstance(p.op, Param)]
    return inputs, [(name, result.tensor) for name, result in zip(source.result_names, source.results)]


def _describe(name: str, type: TensorType) -> Descriptor:
    sizes = tuple(n if isinstance(n, int) and is_static(n) else str(n) for n in type.shape)
    return name, type.dtype.numpy, sizes
