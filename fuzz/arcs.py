"""What coverage counts: arcs, the edges of control flow that a branch decides.

An arc is an outcome of a conditional jump (both of an `if`, entering and leaving a `for`, each operand of an `and`), the
entry of a function, or the entry of an exception handler; whatever else runs follows from these. Its name is made of file,
lines, function and places in the bytecode, so it is the same in every process that runs the same sources on the same
version of Python. Two functions of one name on one line (two lambdas) share their arcs where their code is alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

ENTRY = 0  # in the place of the line that an arc comes from: a function was called
HANDLER = -1  # likewise: an exception arrived


class Arc(NamedTuple):
    """`branch` tells arcs between the same lines apart: function and offsets, for comparing only."""

    file: str
    source: int
    target: int
    branch: str

    @property
    def text(self) -> str:
        """One line that `parse_arc` reads back."""
        return f"{self.file}\t{self.source}\t{self.target}\t{self.branch}"


def parse_arc(text: str) -> Arc:
    """ValueError where the text is no arc's."""
    file, source, target, branch = text.rstrip("\n").split("\t")
    return Arc(file, int(source), int(target), branch)


def entry_arc(file: str, line: int, function: str) -> Arc:
    return Arc(file, ENTRY, line, function)


def branch_arc(file: str, source: int, target: int, function: str, offset: int, destination: int) -> Arc:
    """`offset` of the jump and of where it leads."""
    return Arc(file, source, target, f"{function}:{offset}>{destination}")


class Watched:
    """The source files below some folders. A file's name begins with what stands for its folder: `compiler/passes/fuse.py`."""

    def __init__(self, folders: Mapping[str | os.PathLike[str], str | None] | Mapping[str, str | None]) -> None:
        """Folder -> the beginning of names, None where nothing is watched; the innermost decides."""
        real = {os.path.realpath(folder): name for folder, name in folders.items()}
        self._folders = sorted(real.items(), key=lambda item: -len(item[0]))
        self._names: dict[str, str | None] = {}  # file as code objects have it -> name, None where it is not watched

    def name(self, file: str) -> str | None:
        """The name of a watched file; None for all others. Cheap from the second question on."""
        try:
            return self._names[file]
        except KeyError:
            return self._names.setdefault(file, self._find(file))

    def _find(self, file: str) -> str | None:
        if not os.path.isabs(file):  # `<string>` and the like
            return None
        real = os.path.realpath(file)
        for folder, name in self._folders:
            if real.startswith(folder + os.sep):
                return None if name is None else name + real[len(folder):]
        return None
