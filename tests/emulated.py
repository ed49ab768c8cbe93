"""The emulated CUDA driver for the tests of a process: loaded once, before anything else asks for a driver."""

from __future__ import annotations

from functools import cache

from tilewright.backends.cuda.emulated_driver import Control, driver_library


@cache
def emulated_driver() -> Control:
    """The driver that the runtime uses in this process from now on; its settings are of a device of sm_90 with 1 GiB."""
    return Control(driver_library())
