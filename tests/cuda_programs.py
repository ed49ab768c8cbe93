"""Programs for a GPU run without one, with what the tests of a process have compiled."""

from __future__ import annotations

from collections.abc import Sequence

from tests.emulated import emulation_cache
from tilewright.backends.cuda import emulated_programs
from tilewright.backends.cuda.emulated_programs import joined_source as joined_source
from tilewright.ir.program import Program


class EmulatedPrograms(emulated_programs.EmulatedPrograms):
    """As there, with the emulation of the tests."""

    def __init__(self, programs: Sequence[Program], check: bool = True, architecture: str = "sm_80") -> None:
        super().__init__(programs, check, architecture, emulation_cache())
