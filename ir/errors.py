"""The error family and source locations.

Every error a user can meet is a `TilewrightError`. Its text is one message in the form *op: rule violated: found vs
expected*, then notes: the user's line, the operands with their origin, a hint. Internal errors (`InternalError`) are
of another type and say which pass and which dump to attach.
"""

from __future__ import annotations

import errno
import linecache
import sys
from functools import lru_cache
from itertools import islice
from types import CodeType, FrameType

from msgspec import Struct

PACKAGE_PREFIXES = ("tilewright.",)


class Loc(Struct, frozen=True):
    """Where a node came from: a line and expression of a user's file, or the name of a node in a model file.

    `column` and `end_column` are UTF-8 byte offsets as CPython reports them (-1: unknown). `merged` holds the
    locations of nodes that a pass folded into this one.
    """

    file: str = ""
    line: int = 0
    column: int = -1
    end_column: int = -1
    function: str = ""
    name: str = ""
    merged: tuple[Loc, ...] = ()

    def __str__(self) -> str:
        if self.name:
            return self.name
        if not self.file:
            return "unknown location"
        short = self.file.rsplit("/", 1)[-1]
        return f"{short}:{self.line}"

    def describe(self) -> str:
        """Two lines where the source is at hand: the line of code and a marker under the expression."""
        if self.name or not self.file:
            return f"  at {self}"
        where = f"  {self.file}:{self.line}" + (f" in {self.function}" if self.function else "") + ":"
        text = linecache.getline(self.file, self.line).rstrip("\n")
        if not text.strip():
            return where
        indent = len(text) - len(text.lstrip())
        code = text.strip()
        lines = [f"{where}   {code}"]
        if self.column >= indent and self.end_column > self.column:
            start = len(where) + 3 + self.column - indent
            width = min(self.end_column, len(text)) - self.column
            lines.append(" " * start + "^" * max(width, 1))
        return "\n".join(lines)


UNKNOWN = Loc()


def merge_locs(*locs: Loc) -> Loc:
    """One location that stands for several: the first known one, with the rest behind it in `merged`."""
    known = list(dict.fromkeys(loc for loc in locs if loc != UNKNOWN))
    if not known:
        return UNKNOWN
    first, rest = known[0], known[1:]
    if not rest:
        return first
    merged = dict.fromkeys(first.merged + tuple(rest))
    return Loc(first.file, first.line, first.column, first.end_column, first.function, first.name, tuple(merged)[:8])


def caller_loc(depth: int = 1) -> Loc:
    """Location of the first frame outside this package (and outside NumPy), with the exact expression."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        inside = (module == "tilewright" or module.startswith(PACKAGE_PREFIXES)
                  or module == "numpy" or module.startswith("numpy."))
        if not inside:
            return _frame_loc(frame)
        frame = frame.f_back
    return UNKNOWN


def _frame_loc(frame: FrameType) -> Loc:
    return _instruction_loc(frame.f_code, frame.f_lasti, frame.f_lineno)


@lru_cache(maxsize=4096)
def _instruction_loc(code: CodeType, instruction: int, line_number: int) -> Loc:
    """Cached, because walking `co_positions` costs as much as making a node, and a loop asks for the same place often."""
    column = end_column = -1
    position = next(islice(code.co_positions(), instruction // 2, None), None)
    if position is not None:
        line, end_line, start, end = position
        if line == end_line and start is not None and end is not None:
            column, end_column = start, end
    return Loc(code.co_filename, line_number, column, end_column, code.co_name)


class TilewrightError(Exception):
    """Base of everything this package raises on purpose. `message` is the first paragraph without notes."""

    def __init__(self, message: str, *, loc: Loc = UNKNOWN, notes: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.loc = loc
        self.notes = notes
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.loc != UNKNOWN:
            parts.append(self.loc.describe())
        parts.extend(f"  {note}" for note in self.notes)
        if self.hint:
            parts.append(f"  hint: {self.hint}")
        return "\n".join(parts)

    def at(self, loc: Loc) -> TilewrightError:
        """The same error with a location, unless it has one."""
        if self.loc == UNKNOWN:
            self.loc = loc
        return self


class CompileError(TilewrightError):
    """The program, the model or the options cannot be compiled: the user's input is at fault, and the text says where."""


class UnsupportedError(CompileError):
    """The program is valid but uses something not supported yet; the text names what is."""


class ParseError(CompileError):
    """Text of the IR that does not parse; carries line and column (counted from 1) and shows the line."""

    def __init__(self, message: str, *, line: int = 0, column: int = 0, loc: Loc = UNKNOWN, notes: tuple[str, ...] = (),
                 hint: str = "") -> None:
        super().__init__(message, loc=loc, notes=notes, hint=hint)
        self.line = line
        self.column = column


class VerifyError(CompileError):
    """A graph or kernel that breaks a rule of the IR."""


class ScheduleError(CompileError):
    """A schedule primitive applied where it is not legal."""


class InternalError(TilewrightError):
    """A fault of the compiler itself; names the pass and what to attach to a report."""


class ArgumentError(TilewrightError, TypeError, ValueError):
    """A call with arguments that do not fit: number, name, dtype, rank or size."""


class RuntimeFailure(TilewrightError, RuntimeError):
    """A run that ended with an error status."""


class IndexFailure(RuntimeFailure, IndexError):
    """A run that met an index outside its axis."""


class DeviceError(RuntimeFailure):
    """A GPU that is not there, whose driver does not serve, or that a kernel left unusable."""


class ArtifactError(TilewrightError, OSError):
    """A saved artifact that is corrupt, of another version or for another CPU; a file that cannot be written."""

    def __init__(self, message: str, *, loc: Loc = UNKNOWN, notes: tuple[str, ...] = (), hint: str = "") -> None:
        TilewrightError.__init__(self, message, loc=loc, notes=notes, hint=hint)

    __str__ = TilewrightError.__str__


def cannot_write(path: object, error: OSError) -> ArtifactError:
    """The error of a file or folder that could not be written: which one, and why."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return ArtifactError(f"{path}: cannot be written: {error.strerror or error}",
                         hint="make room there, or choose another folder" if full else "choose a folder that exists and is writable")
