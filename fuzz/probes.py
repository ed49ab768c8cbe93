"""Branch coverage on CPython 3.11: probes in the code of the watched functions, which take themselves out when they are met.

`PyEval_SetTrace` is no way to be fast here: from the moment that a thread is traced, the interpreter calls out for every
instruction of every function and specializes none, which alone makes the compiler 2.2 times slower. Probes cost what
reaches them for the first time; covered code runs at nearly full speed, and unwatched code is not touched.

While started, all functions of the watched files run instrumented code: those that exist, by exchanging their `__code__`, and
those of modules imported meanwhile, by their loader. `stop` gives them their own code back. What runs already when it is
exchanged (a frame, a generator) goes on as it was.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, FunctionType, ModuleType

from . import bytecode
from ._coverage import Log, Probe
from .arcs import Arc, Watched


class Collector:
    """The arcs of the watched files that the thread ran which started or resumed this last."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._log = Log()
        self._arcs: list[Arc] = []
        self._numbers: dict[Arc, int] = {}
        self._instrumented: dict[int, tuple[CodeType, CodeType]] = {}  # id of either -> (own, with probes); keeps both alive
        self._finder = _Finder(self)

    def start(self) -> None:
        sys.meta_path.insert(0, self._finder)
        for function in self._functions():
            function.__code__ = self.instrumented(function.__code__)
        self.resume()

    def stop(self) -> None:
        self.pause()
        sys.meta_path.remove(self._finder)
        for function in self._functions():
            function.__code__ = self._instrumented.get(id(function.__code__), (function.__code__,))[0]

    def resume(self) -> None:
        self._log.record()

    def pause(self) -> None:
        self._log.pause()

    def __len__(self) -> int:
        return len(self._log)

    def since(self, mark: int) -> list[Arc]:
        return [self._arcs[number] for number in self._log.since(mark)]

    def merge(self, arcs: Iterable[Arc]) -> None:
        for arc in arcs:
            self._log.note(self._number(arc))

    def instrumented(self, code: CodeType) -> CodeType:
        """The code with probes, the same each time; code that is not watched, or has them, as it is."""
        known = self._instrumented.get(id(code))
        if known is not None:
            return known[1]
        file = self._watched.name(code.co_filename)
        if file is None:
            return code
        made = bytecode.instrument(code, file, self._probe, self.instrumented)
        self._instrumented[id(code)] = self._instrumented[id(made)] = (code, made)
        return made

    def is_watched(self, file: str | None) -> bool:
        return file is not None and self._watched.name(file) is not None

    def _functions(self) -> Iterator[FunctionType]:
        """All functions of the watched files, wherever they are kept. The exact type, since asking a proxy for its class may
        run anything."""
        for found in gc.get_objects():
            if type(found) is FunctionType and self.is_watched(found.__code__.co_filename):
                yield found

    def _probe(self, arc: Arc) -> Probe:
        return self._log.probe(self._number(arc))

    def _number(self, arc: Arc) -> int:
        number = self._numbers.setdefault(arc, len(self._arcs))
        if number == len(self._arcs):
            self._arcs.append(arc)
        return number


class _Loader(SourceFileLoader):
    """Runs a module whose functions are made from instrumented code."""

    def __init__(self, name: str, path: str, collector: Collector) -> None:
        super().__init__(name, path)
        self._collector = collector

    def get_code(self, fullname: str) -> CodeType | None:
        code = super().get_code(fullname)
        return code if code is None else self._collector.instrumented(code)


class _Finder(MetaPathFinder):
    """Finds what the others find, and gives watched modules a loader that instruments them."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target)) is not None), None)
        if spec is not None and type(spec.loader) is SourceFileLoader and self._collector.is_watched(spec.origin):
            spec.loader = _Loader(spec.loader.name, spec.loader.path, self._collector)
        return spec
