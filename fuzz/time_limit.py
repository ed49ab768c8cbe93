"""An end for what takes too long, by the time of the process: on a busy machine the clock says nothing.

Assumes the main thread, and nobody else who uses SIGPROF. Ends Python alone: machine code that does not return, and what waits for ever,
are ended from outside, with the process.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
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
