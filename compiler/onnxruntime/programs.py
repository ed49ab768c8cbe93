"""The compiled forms of one model: one for all sizes, and others for calls that it does not serve.

A session compiles its model once with the symbolic sizes open (found in the cache by the file's bytes). Some calls need another
form, made for exactly their sizes: a size of 0, inputs whose sizes differ where the model gives them one name, inputs whose rank
the model leaves open, initializers that the call overrides, and operators that need sizes to be numbers. Where that is not enough,
small inputs of integers (a sampling rate, a shape) are taken as constants, since branches and sizes may hang on them. ONNX Runtime
looks at none of this before it runs a node, so neither may a session refuse it. These forms are kept, the ones used longest ago are
dropped.

Guarantees: a call is served by a form whose assumptions it meets, or ends in one of ONNX Runtime's exceptions that names the node.
Safe from many threads: one compiles, the others wait.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeAlias

from msgspec.structs import replace

from .. import driver
from ..ir.errors import UNKNOWN, ArgumentError, CompileError, RuntimeFailure, TilewrightError, UnsupportedError
from ..ir.ops.control import Param
from ..options import Options
from .errors import from_compiling, from_running
from .models import Changes, Description, ModelFile
from .values import Array

TARGET = "cpu"
MOST_FORMS = 64
MOST_SETTINGS = 16  # elements of an input that may be taken as a constant

Form: TypeAlias = tuple[tuple[str, ...], Any]  # the names of its inputs in their order, and the executable


class Programs:
    """`call` runs the model on arrays by the names of inputs."""

    def __init__(self, file: ModelFile, changes: Changes, description: Description, options: Options) -> None:
        self._file = file
        self._changes = changes
        self._options = options
        self._names = tuple(argument.name for argument in description.inputs)
        self._lock = threading.Lock()
        self._forms: OrderedDict[Any, Form] = OrderedDict()
        self._by_value: dict[Any, TilewrightError] = {}  # shapes that need values, and why
        self.open: Any = None
        self._compile_open(description)

    def _compile_open(self, description: Description) -> None:
        """The form for all sizes. A model that needs sizes to be numbers waits for its first call, unless they are."""
        try:
            path = self._file.path
            if path is not None and path.endswith(".onnx") and self._changes.is_nothing:
                self.open = driver.compile_file(path, TARGET, self._options)
            else:
                self.open = driver.compile_graph(self._file.graph(self._changes), TARGET, self._options)
        except TilewrightError as error:
            unknown = self._file.unknown_operators() if isinstance(error, CompileError) else None
            if unknown is not None:
                raise unknown from error
            of_a_node = isinstance(error, UnsupportedError) or (isinstance(error, CompileError) and error.loc != UNKNOWN)
            if not of_a_node or _is_fixed(description):
                raise from_compiling(error) from error

    def call(self, feed: dict[str, Array]) -> Sequence[Array]:
        """The results in the order of the model's outputs."""
        if self.open is not None and len(feed) == len(self._names):
            try:
                return _tuple(self.open(*[feed[name] for name in self._names]))
            except (ArgumentError, RuntimeFailure):
                pass  # perhaps sizes that it was not compiled for; the form for them says what is wrong if something is
        names, executable = self._form(feed)
        try:
            return _tuple(executable(*[feed[name] for name in names]))
        except TilewrightError as error:
            raise from_running(error) from error

    def _form(self, feed: dict[str, Array]) -> Form:
        """What is compiled for exactly these sizes, and for these values of small integers where sizes do not do."""
        shapes = tuple((name, array.shape) for name, array in sorted(feed.items()))
        with self._lock:
            if shapes not in self._by_value:
                try:
                    return self._kept(shapes, feed, {})
                except TilewrightError as error:
                    if not _settings(feed):
                        raise from_compiling(error) from error
                    self._by_value[shapes] = error
            values = _settings(feed)
            try:
                return self._kept((shapes, *(array.tobytes() for _, array in sorted(values.items()))), feed, values)
            except TilewrightError:
                first = self._by_value[shapes]
                raise from_compiling(first) from first

    def _kept(self, key: Any, feed: dict[str, Array], values: dict[str, Array]) -> Form:
        """The form under that key, compiled if there is none."""
        if key not in self._forms:
            overridden = frozenset(feed.keys() - set(self._names))
            shapes = {name: array.shape for name, array in feed.items()}
            graph = self._file.graph(replace(self._changes, shapes=shapes, values=values, overridden=overridden))
            executable = driver.compile_graph(graph, TARGET, self._options)
            self._forms[key] = tuple(param.op.label for param in graph.params if isinstance(param.op, Param)), executable
            while len(self._forms) > MOST_FORMS:
                self._forms.popitem(last=False)
        self._forms.move_to_end(key)
        return self._forms[key]


def _is_fixed(description: Description) -> bool:
    """Whether a call can say nothing that the model does not say already: every size is a number, no input a single one."""
    return all(argument.shape and all(isinstance(size, int) for size in argument.shape) for argument in description.inputs)


def _settings(feed: dict[str, Array]) -> dict[str, Array]:
    """The inputs that may say how to compute instead of what to compute with."""
    return {name: array for name, array in feed.items() if array.dtype.kind in "iub" and array.size <= MOST_SETTINGS}


def _tuple(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)
