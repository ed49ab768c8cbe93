"""Reduction: the program and the sequence of passes made smaller together, for as long as they fail in the same way.

Greedy: the first simpler case with the same signature replaces the case, and it begins again (delta debugging with cuts that
keep programs well-typed, see `Subject.smaller`). Ends where nothing simpler fails, or when the time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .subject import AnySubject, Failure, Refused, crash

Check = Callable[[Any], None]


def reduced(subject: AnySubject, case: Any, failure: Failure, check: Check, seconds: float) -> tuple[Any, Failure]:
    """The smallest case found that fails with the same signature, and its failure. `check` raises what it finds."""
    end = time.monotonic() + seconds
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for candidate in subject.smaller(case):
            if time.monotonic() > end:
                break
            found = failure_of(candidate, check)
            if found is not None and found.signature == failure.signature:
                case, failure, progress = candidate, found, True
                break
    return case, failure


def failure_of(case: Any, check: Check) -> Failure | None:
    """What `check` finds wrong with the case; None where it finds nothing, or refuses it."""
    try:
        check(case)
    except Failure as failure:
        return failure
    except Refused:
        return None
    except Exception as error:
        return crash("unknown", error)
    return None
