"""Which branches of the compiler a program ran that none before it did.

Python is watched by probes on 3.11 (`probes.py`) and by `sys.monitoring` from 3.12 on (`monitors.py`); both count the same
things (`arcs.py`), and covered code costs next to nothing. Where the C++ runtime was built by `make runtime-coverage` and
loaded (`edges.py`), its edges count too.

Recorded is the thread that started or resumed last; of the C++ runtime, all threads. One `Coverage` of a process may be
started at a time; edges of the runtime are kept for the process. Modules that are imported late are watched from then on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from types import TracebackType
from typing import Protocol

from .arcs import Arc, Watched
from .edges import FILE, Edges

if sys.version_info >= (3, 12):
    from .monitors import Collector
else:
    from .probes import Collector

_started: list[Coverage] = []  # at most one


class _Counter(Protocol):
    """What counts arcs in the order in which they are first seen."""

    def resume(self) -> None: ...
    def pause(self) -> None: ...
    def __len__(self) -> int: ...
    def since(self, mark: int) -> list[Arc]: ...
    def merge(self, arcs: Iterable[Arc]) -> None: ...


def compiler_folders() -> dict[str, str | None]:
    """The folders of this package and what names of their files begin with: the compiler, the IRs, the backends. None for
    what is not watched: installed, all are folders below the compiler's."""
    package = __package__.rpartition(".")[0]
    watched: dict[str, str | None] = {"": "compiler", ".ir": "ir", ".backends": "backends", ".runtime": None, ".fuzz": None}
    return {folder: name for part, name in watched.items()
            if (spec := find_spec(package + part)) is not None for folder in spec.submodule_search_locations or ()}


class Coverage:
    """A set of arcs that grows while it records.

    `with coverage:` records what runs within, and may be entered as often as wanted: only the first time is expensive, and
    what runs between two times is not recorded. `stop` takes all instruments out again.
    """

    def __init__(self, watch: Mapping[str | os.PathLike[str], str | None] | Mapping[str, str | None] | None = None) -> None:
        """`watch`: folders, and what the names of their files begin with (None: not watched); the compiler's by default."""
        self._collector = Collector(Watched(compiler_folders() if watch is None else watch))
        self._edges: Edges | None = None
        self._counters: list[_Counter] = [self._collector]
        self._marks = [0]

    @property
    def started(self) -> bool:
        return self in _started

    def start(self) -> None:
        """Puts the instruments in (a second or two, on the first time) and records."""
        if _started:
            raise RuntimeError("coverage: found another one started, expected one at a time: stop it first")
        if self._edges is None and (edges := Edges.of_runtime()) is not None:
            self._edges = edges
            self._counters.append(edges)
            self._marks.append(len(edges))
        self._collector.start()
        _started.append(self)
        self.resume()

    def stop(self) -> None:
        """Takes the instruments out. What was seen stays known."""
        if self in _started:
            self.pause()
            self._collector.stop()
            _started.remove(self)

    def resume(self) -> None:
        for counter in self._counters:
            counter.resume()

    def pause(self) -> None:
        for counter in self._counters:
            counter.pause()

    def __enter__(self) -> Coverage:
        if self.started:
            self.resume()
        else:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.pause()

    @property
    def total(self) -> int:
        """How many arcs are known."""
        return sum(map(len, self._counters))

    def mark(self) -> None:
        """From here on `gained` counts."""
        self._marks = [len(counter) for counter in self._counters]

    def gained(self) -> int:
        """How many arcs were seen since `mark` for the first time. Takes the same time however many there are."""
        return self.total - sum(self._marks)

    def gained_arcs(self) -> list[Arc]:
        """Which ones, in the order in which they were seen."""
        return [arc for counter, mark in zip(self._counters, self._marks) for arc in counter.since(mark)]

    def arcs(self) -> list[Arc]:
        """All that are known."""
        return [arc for counter in self._counters for arc in counter.since(0)]

    def merge(self, arcs: Iterable[Arc]) -> None:
        """Takes arcs for known that another process saw, or an earlier one. They are not gained: `gained` counts from here on."""
        parts: tuple[list[Arc], list[Arc]] = ([], [])
        for arc in arcs:
            parts[arc.file == FILE].append(arc)
        for counter, part in zip(self._counters, parts):
            counter.merge(part)
        self.mark()
