"""Lets np.take be found by its indices while a function is traced.

NumPy asks for `__array_function__` on the relevant arguments of a function, and for `take` these are the table and `out`,
but not the indices: np.take(constant_table, traced_indices) would convert the indices. Since that call is how a compiled
function reads a table, the indices are made relevant too, for the time of a trace only; for arguments without
`__array_function__` of their own nothing changes. Safe with several traces at once, in one thread or many.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

from numpy._core import fromnumeric  # type: ignore[import-not-found, unused-ignore]


def _relevant_arguments(a: Any, indices: Any, axis: Any = None, out: Any = None, mode: Any = None) -> tuple[Any, ...]:
    return (a, indices, out)


_LOCK = threading.Lock()
_active: list[CodeType] = []  # NumPy's own code of the dispatcher, once for each trace under way


@contextmanager
def take_dispatches_on_indices() -> Iterator[None]:
    """While active, np.take(array, traced) reaches the tracer."""
    dispatcher = getattr(fromnumeric, "_take_dispatcher", None)
    if not isinstance(dispatcher, FunctionType):  # another NumPy: the user gets the error that names the working form
        yield
        return
    with _LOCK:
        _active.append(_active[0] if _active else dispatcher.__code__)
        dispatcher.__code__ = _relevant_arguments.__code__
    try:
        yield
    finally:
        with _LOCK:
            original = _active.pop()
            if not _active:
                dispatcher.__code__ = original
