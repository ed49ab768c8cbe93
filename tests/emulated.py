"""The emulation for the tests of a process: its driver, loaded once, before anything else asks for a driver, and its kernels.

What the host's compiler makes is kept in the cache of whoever runs the tests, whatever cache a test has; of several processes of a run one
compiles the emulation itself, while the others wait.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from functools import cache
from pathlib import Path

from tilewright.backends.cuda import emulate as emulation
from tilewright.backends.cuda.emulate import EmulatedModule
from tilewright.backends.cuda.emulated_driver import Control, driver_library
from tilewright.options import read_environment
from tilewright.runtime.cache import Cache

DIRECTORY = read_environment().cache_directory  # before a test changes it


@cache
def emulation_cache() -> Cache | None:
    """The cache, after which this process has the emulation itself."""
    kept = Cache(DIRECTORY) if DIRECTORY is not None else None
    with (Path(tempfile.gettempdir()) / f"tilewright-tests-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        emulation.runtime_objects(kept)
    return kept


def emulate(source: str, check: bool = True) -> EmulatedModule:
    """The kernels of a source, ready to be launched."""
    return emulation.emulate(source, check, emulation_cache())


def emulated_image(source: str) -> bytes:
    """A source as an image for the emulated driver."""
    return emulation.shared_library(source, True, emulation_cache()).read_bytes()


@cache
def driver_file() -> Path:
    """The emulated driver's library."""
    return driver_library(emulation_cache())


@cache
def emulated_driver() -> Control:
    """The driver that the runtime uses in this process from now on; its settings are of a device of sm_90 with 1 GiB."""
    return Control(driver_file())
