"""An end for what takes too long, by the time of the process: on a busy machine the clock says nothing.

Assumes the main thread, and nobody else who uses SIGPROF. Ends Python alone: machine code that does not return, and what waits for ever,
are ended from outside, with the process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn


class TimeIsUp(BaseException):
    """Not an Exception: no handler of the program under test shall catch it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TimeIsUp within what takes more processor time."""
    def expired(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeIsUp

    before = signal.signal(signal.SIGPROF, expired)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def processor_seconds(process: int) -> float:
    """What a process has taken of processors so far, all its threads together; 0 where there is none of that number."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    user, system = int(fields[11]), int(fields[12])  # those behind the name, see proc(5)
    return (user + system) / os.sysconf("SC_CLK_TCK")
