"""A function that is traced and compiled at the first call for each dtype and rank.

Guarantees: a graph serves a call only if everything that tracing looked at (dtypes, ranks, static arguments, and every
comparison of sizes) comes out as it did then, else the function is traced again; results have the structure of the plain
function's, and a result without axes is a NumPy scalar, as NumPy's own functions give it. Safe from many threads: one of
them compiles, the others wait for that. Holds on to static arguments, never to arrays.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from .frontends.argument_trees import flatten
from .frontends.from_numpy import Traced, call_key, is_array, trace_call
from .ir.errors import ArgumentError
from .ir.graph import Graph

MOST_SHORTCUTS = 4096


class Version(Struct, frozen=True, eq=False):
    """One trace of the function. `held`: its static arguments, whose identity the key may use."""

    traced: Traced
    executable: Any
    held: tuple[Any, ...]

    def __call__(self, arrays: Sequence[Any], out: Any = None) -> Any:
        results = self.executable(*arrays) if out is None else self.executable(*arrays, out=out)
        leaves = results if isinstance(results, tuple) else (results,)
        return self.traced.pack([leaf if leaf.ndim or out is not None else leaf[()] for leaf in leaves])


class CompiledFunction:
    """Call it like the function; `out=` gives arrays for the results, unless the function has an `out` of its own.
    `graph_for(*args)` shows the graph behind a call, `executables` what was compiled."""

    def __init__(self, function: Callable[..., Any], compile_graph: Callable[..., Any], name: str | None = None) -> None:
        self.function = function
        self.__wrapped__ = function
        self.__name__ = name or getattr(function, "__name__", type(function).__name__)
        self.__doc__ = getattr(function, "__doc__", None)
        self._compile_graph = compile_graph
        self._name = name
        self._takes_out = _takes(function, "out")
        self._lock = threading.Lock()
        self._versions: dict[tuple[Any, ...], list[Version]] = {}
        # Exact dtypes and shapes of plain arrays given by position -> their version: no tracing key to be formed.
        self._shortcuts: dict[tuple[Any, ...], Version] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None) if kwargs and not self._takes_out else None
        shortcut = _shortcut(args) if not kwargs else None
        version = self._shortcuts.get(shortcut) if shortcut is not None else None
        if version is not None:
            return version(args, out)
        version = self._version(args, kwargs)
        if shortcut is not None:
            if len(self._shortcuts) >= MOST_SHORTCUTS:
                self._shortcuts.clear()
            self._shortcuts[shortcut] = version
        return version(version.traced.arrays(args, kwargs), out)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One call by names: {argument: value} to {output: array}."""
        if not isinstance(inputs, Mapping):
            raise ArgumentError(f"{self.__name__}: run: found {type(inputs).__name__}, expected a dict of values by argument name")
        version = self._version((), inputs)
        results = version.executable(*version.traced.arrays((), inputs))
        leaves = results if isinstance(results, tuple) else (results,)
        return {info.name: leaf for info, leaf in zip(version.executable.outputs, leaves)}

    def profile(self, *args: Any, calls: int = 1, **kwargs: Any) -> Any:
        """Such calls with the time of every launch; see `Executable.profile`."""
        version = self._version(args, kwargs)
        return version.executable.profile(*version.traced.arrays(args, kwargs), calls=calls)

    def explain(self, *args: Any, calls: int = 0, **kwargs: Any) -> Any:
        """What serves such a call; see `Executable.explain`."""
        version = self._version(args, kwargs)
        return version.executable.explain(*version.traced.arrays(args, kwargs), calls=calls)

    def save(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write what was compiled as an ahead-of-time artifact; see `Executable.save`. It must be one program."""
        found = self.executables
        if len(found) != 1:
            raise ArgumentError(
                f"{self.__name__}: save: compiled {len(found)} times so far, once for each dtype and rank that it was called with; "
                "an artifact holds one program", hint="give the inputs: tw.compile(function, args=(tw.spec(shape, dtype), ...))")
        return found[0].save(path, **options)

    def graph_for(self, *args: Any, **kwargs: Any) -> Graph:
        """The graph that serves such a call."""
        return self._version(args, kwargs).traced.settle()

    @property
    def executables(self) -> tuple[Any, ...]:
        """What was compiled so far, in order."""
        with self._lock:
            return tuple(version.executable for versions in self._versions.values() for version in versions)

    def _version(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Version:
        key = call_key(self.function, args, kwargs)
        version = self._find(key, args, kwargs)
        if version is not None:
            return version
        with self._lock:
            version = self._find(key, args, kwargs)
            if version is None:
                traced = trace_call(self.function, args, kwargs, self._name)
                held = tuple(leaf.value for leaf in flatten((args, dict(kwargs)))[0] if not is_array(leaf.value))
                version = Version(traced, self._compile_graph(traced.graph, settle=traced.settle), held)
                self._versions.setdefault(key, []).append(version)
            return version

    def _find(self, key: tuple[Any, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Version | None:
        candidates = tuple(self._versions.get(key, ()))
        if not candidates:
            return None
        arrays = candidates[0].traced.arrays(args, kwargs)  # the key decides which arguments are arrays
        return next((version for version in candidates if version.traced.fits(arrays)), None)

    def __repr__(self) -> str:
        return f"<CompiledFunction {self.__name__}, {len(self.executables)} compiled>"


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether the function has an argument of this name, or takes any."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _shortcut(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What decides the version where all arguments are plain arrays; None where some are not."""
    found = []
    for value in args:
        if type(value) is not np.ndarray:
            return None
        found.append((value.dtype, value.shape))
    return tuple(found)
