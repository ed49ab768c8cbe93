"""Which of two operators comes first in every schedule that is cheaper than a known one.

Where one order of the two already costs too much by the bounds, only the other is left, and relations that all orders share become more:
bounds rise with each, and the search has fewer sets of operators to look at. Such probing is called shaving in machine scheduling (Martin
and Shmoys, A New Approach to Computing Optimal Schedules for the Job-Shop Scheduling Problem, IPCO 1996). Operators that leave
the least room are probed, two by two, as long as that decides some.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from .forecast import Forecast
from .returning import returning
from .space import Space

PROBED = 32  # operators, those that leave the least room
FIRST = 16   # probes, after which it is given up where none decides anything
IDLE = 48    # later: probes that decide nothing, one after the other


def decided(space: Space, cost: int, deadline: float) -> Space:
    """The space with those orders that every schedule below the cost keeps. Not for schedules of that cost or above."""
    idle, most = 0, FIRST
    while idle < most:
        before = space
        for one, other in _pairs(space):
            if time.monotonic() > deadline or idle >= most:
                return space
            if not space.related(one, other):
                tried = space.ordered(one, other)
                idle += 1
                if max(Forecast(tried, tried.all).remaining((0, 0, 0)), returning(tried)) >= cost:
                    space, idle, most = space.ordered(other, one), 0, IDLE
        if space is before:
            break
    return space


def _pairs(space: Space) -> Iterator[tuple[int, int]]:
    """Two operators in both orders, those that leave the least room first."""
    tight = sorted(range(len(space.before)), key=lambda o: space.rooms[o] - space.least_units[o])[:PROBED]
    for place, one in enumerate(tight):
        for other in tight[:place]:
            yield one, other
            yield other, one
