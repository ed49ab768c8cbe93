"""Executable: a compiled model as a Python callable.

Guarantees: arguments are checked before anything runs, and errors name the argument, what was found and what was
expected; the interpreter's lock is released while the model runs; one executable may be called from many threads at
once (calls on several threads share the process-wide pool and take turns), and the process may fork before and after
use. Workspaces are kept and reused between calls.

Ownership: an executable owns its code or library and keeps its constants alive; results belong to the caller. It is
immutable after construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any, NoReturn

import numpy as np

from tilewright.ir.errors import ArgumentError, ArtifactError
from tilewright.runtime import _native
from tilewright.runtime.buffer import TensorInfo, convert_input
from tilewright.runtime.profile import CAPACITY, Profile, read_call

Array = np.ndarray[Any, Any]


class _Converter:
    """What the native side calls for an argument that is not a plain array: it knows the model's inputs."""

    __slots__ = ("inputs", "model")

    def __init__(self) -> None:
        self.model = ""
        self.inputs: tuple[TensorInfo, ...] = ()

    def bind(self, model: _native.Model) -> None:
        """Learn the model's inputs, which are known only once it is loaded."""
        self.model = model.name
        self.inputs = tuple(TensorInfo(*entry) for entry in model.inputs)

    def __call__(self, value: object, index: int) -> Array:
        return convert_input(self.model, self.inputs[index], value)


class Executable:
    """A compiled model. Call it with arrays by position or by name; one output comes back as an array, several as a tuple.

    `threads`: 0 uses what the process may use (affinity, cgroup quota). `object_code`, `constants` and `metadata` are what
    saving needs; `save_with`, `facts_with` and `explain_with` are the driver's functions behind `save`, `profile` and
    `explain`. `pack` puts the outputs together as the compiled function returned them (a dict, a list).
    """

    def __init__(
        self,
        model: _native.Model,
        *,
        threads: int = 0,
        object_code: bytes | None = None,
        metadata: Mapping[str, Any] | None = None,
        save_with: Callable[..., Any] | None = None,
        pack: Callable[[Sequence[Array]], Any] | None = None,
        facts_with: Callable[..., Any] | None = None,
        explain_with: Callable[..., Any] | None = None,
    ) -> None:
        if threads < 0:
            raise ArgumentError(f"threads: found {threads}, expected 0 (all) or a positive number")
        self._model = model
        self._run = model.run
        self._threads = threads
        self._save_with = save_with
        self._pack = pack
        self._facts_with = facts_with
        self._explain_with = explain_with
        self.object_code = object_code
        self.metadata = dict(metadata or {})
        self.name: str = model.name
        self.inputs = tuple(TensorInfo(*entry) for entry in model.inputs)
        self.outputs = tuple(TensorInfo(*entry) for entry in model.outputs)
        self.kernels: tuple[str, ...] = tuple(model.kernels)
        self._names = {info.name: index for index, info in enumerate(self.inputs)}

    @classmethod
    def from_object(
        cls,
        object_code: bytes,
        constants: object = None,
        *,
        symbol: str = "tw_model",
        threads: int = 0,
        metadata: Mapping[str, Any] | None = None,
        save_with: Callable[..., Any] | None = None,
        pack: Callable[[Sequence[Array]], Any] | None = None,
        facts_with: Callable[..., Any] | None = None,
        explain_with: Callable[..., Any] | None = None,
    ) -> Executable:
        """Load relocatable object code. `constants`: an opened `_native.Constants`, or a buffer (copied unless it is
        aligned to 64 bytes); None when the model has none or embeds them."""
        converter = _Converter()
        model = _native.Model.from_object(object_code, symbol, _as_constants(constants), converter)
        converter.bind(model)
        return cls(model, threads=threads, object_code=object_code, metadata=metadata, save_with=save_with, pack=pack,
                   facts_with=facts_with, explain_with=explain_with)

    @classmethod
    def from_library(
        cls,
        path: str | PathLike[str],
        symbol: str,
        constants: object = None,
        *,
        threads: int = 0,
        metadata: Mapping[str, Any] | None = None,
        variant: str = "",
    ) -> Executable:
        """Load a shared library that exports `symbol`: a `<name>_describe` function or a tw_model constant. `variant`: the
        target of the one to use, '' for the best that this CPU can run."""
        converter = _Converter()
        model = _native.Model.from_library(fspath(path), symbol, _as_constants(constants), converter, variant)
        converter.bind(model)
        return cls(model, threads=threads, metadata=metadata)

    def __call__(self, *args: object, out: Array | Sequence[Array | None] | None = None, **named: object) -> Any:
        if named:
            args = self._merge(args, named)
        if self._pack is None:
            return self._run(args, out, self._threads)
        result = self._run(args, out, self._threads)
        return self._pack(result if isinstance(result, tuple) else (result,))

    def run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        """One call by names: {input: array} to {output: array}."""
        if not isinstance(inputs, Mapping):
            raise ArgumentError(f"{self.name}: run: found {type(inputs).__name__}, expected a dict of arrays by input name",
                                hint="call the executable itself with arrays by position")
        result = self._run(self._merge((), inputs), None, self._threads)
        results = result if isinstance(result, tuple) else (result,)
        return {info.name: array for info, array in zip(self.outputs, results)}

    def profile(self, *args: object, calls: int = 1, out: Array | Sequence[Array | None] | None = None, **named: object) -> Profile:
        """Calls with the time of every launch on every thread; print it, or see `Profile.by` and `Profile.trace`."""
        wanted: object = calls
        if not isinstance(wanted, int) or wanted < 1:
            raise ArgumentError(f"{self.name}: profile: found {wanted!r} calls, expected 1 or more")
        values: Sequence[Any] = self._merge(args, named) if named else args
        found = []
        result: object = None
        for _ in range(calls):
            result, nanoseconds, tracks = self._model.profile(values, out, self._threads, CAPACITY)
            found.append(read_call(tracks, nanoseconds))
        facts = None if self._facts_with is None else self._facts_with(self, [np.shape(value) for value in values])
        return Profile(self.name, result, self.threads, self.kernels, tuple(found), facts)

    def explain(self, *args: object, sizes: Mapping[str, int] | None = None, calls: int = 0, **named: object) -> Any:
        """What the compiler made of the program: for each launch its source, strategy, tiles, layouts, what it moves and
        computes, and what a model of this machine predicts. Print it, or read its `launches`.

        Symbolic sizes come from example arguments, or from `sizes` by name, else they are some small ones. With `calls`, so
        many calls with the arguments are measured beside."""
        if self._explain_with is None:
            raise ArtifactError(f"{self.name}: cannot be explained: it was loaded from an artifact, or is interpreted",
                                hint="compile the program and ask what that gives")
        values = self._merge(args, named) if named else args
        return self._explain_with(self, values, dict(sizes or {}), calls)

    def plan(self, *shapes: Sequence[int]) -> tuple[list[tuple[int, ...]], int]:
        """The outputs' shapes and the bytes of workspace for inputs of these shapes."""
        output_shapes, workspace = self._model.plan([list(shape) for shape in shapes])
        return output_shapes, workspace

    @property
    def threads(self) -> int:
        return self._threads or _native.default_threads()

    def with_threads(self, threads: int) -> Executable:
        """The same model on another number of threads; code and constants are shared."""
        return Executable(
            self._model,
            threads=threads,
            object_code=self.object_code,
            metadata=self.metadata,
            save_with=self._save_with,
            pack=self._pack,
            facts_with=self._facts_with,
            explain_with=self._explain_with,
        )

    @property
    def constants(self) -> _native.Constants | None:
        """The constants segment (buffer protocol), when it is not embedded."""
        return self._model.constants

    @property
    def constants_digest(self) -> str:
        return self._model.constants_digest or ""

    @property
    def features(self) -> tuple[str, ...]:
        """CPU features that the code uses."""
        return tuple(name for name in self._model.features.split(",") if name)

    @property
    def target(self) -> str:
        """What the code was compiled for."""
        return str(self.metadata.get("target", self._model.target))

    @property
    def variants(self) -> tuple[str, ...]:
        """The targets for which the program was compiled, the best one first; this is the executable of one of them."""
        compiled = self.metadata.get("variants") or [target for target, _ in self._model.variants]
        return tuple(compiled) if len(compiled) > 1 else (self.target,)

    @property
    def workspace_bytes(self) -> int | None:
        """Peak workspace of a call, known before the first one; None when it depends on the sizes (see `plan`)."""
        return self._model.static_workspace if self._model.static_workspace >= 0 else None

    @property
    def code_bytes(self) -> int:
        """Size of the code in memory; 0 for a shared library."""
        return self._model.code_bytes

    def selftest(self) -> str:
        """Run the recorded golden call; raises when an output differs. Returns a remark, empty when there is none."""
        return self._model.selftest(self._threads)

    def save(self, path: str | PathLike[str], **options: Any) -> Any:
        """Write an ahead-of-time artifact: a shared library with its header and weights beside it."""
        if self._save_with is None:
            raise ArtifactError(
                f"{self.name}: cannot be saved: it was itself loaded from an artifact",
                hint="copy that artifact's files, or compile the program again and save the result",
            )
        return self._save_with(self, fspath(path), **options)

    def _merge(self, args: Sequence[object], named: Mapping[str, object]) -> tuple[object, ...]:
        """All arguments in the order of the inputs."""
        if len(args) + len(named) == len(self._names):
            known = {**dict(zip(self._names, args)), **named}
            if known.keys() == self._names.keys():
                return tuple([known[name] for name in self._names])
        self._refuse(args, named)

    def _refuse(self, args: Sequence[object], named: Mapping[str, object]) -> NoReturn:
        """Says what is wrong with arguments that do not fit. (The text of what is expected takes longer than small models.)"""
        expected = ", ".join(map(str, self.inputs))
        if len(args) > len(self.inputs):
            raise ArgumentError(f"{self.name}: found {len(args)} inputs, expected {len(self.inputs)} ({expected})")
        values = dict(zip(self._names, args))
        for name, value in named.items():
            if name not in self._names:
                raise ArgumentError(f"{self.name}: found input '{name}', expected one of: {expected}")
            if name in values:
                raise ArgumentError(f"{self.name}: input '{name}' is given by position and by name")
            values[name] = value
        missing = [name for name in self._names if name not in values]
        raise ArgumentError(f"{self.name}: missing input{'s' * (len(missing) > 1)} {', '.join(missing)}; expected {expected}")

    def __repr__(self) -> str:
        inputs, outputs = ", ".join(map(str, self.inputs)), ", ".join(map(str, self.outputs))
        return f"<Executable {self.name}({inputs}) -> ({outputs}), {len(self.kernels)} kernels>"


def _as_constants(constants: object) -> _native.Constants | None:
    if constants is None or isinstance(constants, _native.Constants):
        return constants
    return _native.Constants.from_buffer(constants)
