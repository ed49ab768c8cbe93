"""What a backend is: capabilities that schedules are chosen from, and programs to code.

The compiler knows no backend by name: lowering reads `Caps`, and the driver hands the `Program` to `Backend.compile`. Backends import
`ir` and `runtime` only.
"""

from __future__ import annotations

from typing import Protocol

from tilewright.ir.caps import Caps
from tilewright.ir.program import Program


class Compiled(Protocol):
    """A program as code that the runtime loads (`Executable.from_object`) and the linker takes."""

    @property
    def object_code(self) -> bytes: ...

    @property
    def symbol(self) -> str:
        """The name of its `tw_model` constant."""


class Backend(Protocol):
    """One way to turn programs into code."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Caps: ...

    def compile(self, program: Program, *, name_prefix: str = "") -> Compiled:
        """Code for the program. With a prefix: an object for a library with public functions of that name."""
