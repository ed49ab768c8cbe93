"""Python's collector of cycles, paused while graphs and programs are made.

A compile makes some hundred thousand small objects that all live until it ends, and no cycles to speak of: the collector
would go through them again and again and free nothing, for a tenth of all time.
Guarantees: the collector is as it was before, whatever happens in between. What is left counts as old, so that the next
allocation does not begin with a pass over all of it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Within, only reference counts free memory. (Where several threads compile, the first one pauses and resumes.)"""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            if gc.get_freeze_count() == 0:  # nobody else has frozen anything, so this moves all objects to the oldest generation
                gc.freeze()
                gc.unfreeze()
            gc.enable()
