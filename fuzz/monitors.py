"""Branch coverage on CPython 3.12 and later, by `sys.monitoring`: each place asks for an event until it has told all that it can.

A function's entry asks once. A branch asks until both of its outcomes were seen, since these versions switch events off for
the branch and not for an outcome; one that always goes the same way keeps a small cost. Code that is not watched asks once.
Exception handlers are told apart by the branches within them only. An exception that a signal handler raises during the
callback of a branch may pass by the `finally` around that branch, since CPython then looks for handlers at another place.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from types import CodeType

from .arcs import Arc, Watched, branch_arc, entry_arc

if sys.version_info >= (3, 12):
    from sys import monitoring

    EVENTS = monitoring.events.PY_START | monitoring.events.BRANCH

    class _Code:
        """What is known of a watched code object; keeps it alive, so that its id stays its own."""

        __slots__ = ("code", "file", "lines", "led")

        def __init__(self, code: CodeType, file: str) -> None:
            self.code = code
            self.file = file
            self.lines = {offset: line or code.co_firstlineno for start, end, line in code.co_lines() for offset in range(start, end, 2)}
            self.led: dict[int, int] = {}  # offset of a branch -> where it led first

    class Collector:
        """The arcs of the watched files that the thread ran which started or resumed this last."""

        def __init__(self, watched: Watched) -> None:
            self._watched = watched
            self._seen: set[Arc] = set()
            self._order: list[Arc] = []
            self._codes: dict[int, _Code] = {}
            self._thread = 0  # 0: paused
            self._tool = -1

        def start(self) -> None:
            self._tool = next((tool for tool in (monitoring.COVERAGE_ID, 3, 4) if monitoring.get_tool(tool) is None), -1)
            if self._tool < 0:
                raise RuntimeError("coverage: found every tool of sys.monitoring in use, expected a free one")
            monitoring.use_tool_id(self._tool, "tilewright.fuzz")
            monitoring.register_callback(self._tool, monitoring.events.PY_START, self._on_start)
            monitoring.register_callback(self._tool, monitoring.events.BRANCH, self._on_branch)
            monitoring.set_events(self._tool, EVENTS)
            monitoring.restart_events()  # places that an earlier collector was done with
            self.resume()

        def stop(self) -> None:
            self.pause()
            monitoring.set_events(self._tool, 0)
            for event in (monitoring.events.PY_START, monitoring.events.BRANCH):
                monitoring.register_callback(self._tool, event, None)
            monitoring.free_tool_id(self._tool)

        def resume(self) -> None:
            self._thread = threading.get_ident()

        def pause(self) -> None:
            self._thread = 0

        def __len__(self) -> int:
            return len(self._order)

        def since(self, mark: int) -> list[Arc]:
            return self._order[mark:]

        def merge(self, arcs: Iterable[Arc]) -> None:
            for arc in arcs:
                self._note(arc)

        def _note(self, arc: Arc) -> None:
            if arc not in self._seen:
                self._seen.add(arc)
                self._order.append(arc)

        def _known(self, code: CodeType) -> _Code | None:
            """None where the code is not watched, or belongs to the body of a module or class."""
            known = self._codes.get(id(code))
            if known is None and code.co_flags & 1:  # CO_OPTIMIZED
                file = self._watched.name(code.co_filename)
                if file is not None:
                    known = self._codes[id(code)] = _Code(code, file)
            return known

        def _on_start(self, code: CodeType, offset: int) -> object:
            known = self._known(code)
            if known is None:
                return monitoring.DISABLE
            if threading.get_ident() != self._thread:
                return None
            self._note(entry_arc(known.file, code.co_firstlineno, code.co_qualname))
            return monitoring.DISABLE

        def _on_branch(self, code: CodeType, offset: int, destination: int) -> object:
            known = self._known(code)
            if known is None:
                return monitoring.DISABLE
            if threading.get_ident() != self._thread:
                return None
            led = known.led.get(offset)
            if led == destination:
                return None
            known.led.setdefault(offset, destination)
            self._note(branch_arc(known.file, known.lines[offset], known.lines[destination], code.co_qualname, offset, destination))
            return None if led is None else monitoring.DISABLE
