"""Better orders by moving one operator at a time, with what must move with it, to where less is alive; each with a good replacement.

Local search by insertion, as in scheduling of machines, over what costs: operators beside which most is missing are moved, to the places
around which least lives, each to the best, as long as that gains. It finds what cutting an order in parts cannot: an operator
that belongs a hundred others earlier.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from .covering import covering, stays
from .search import End
from .space import Space

MOVED = 12   # operators that are tried, those beside which most is missing
PLACES = 12  # to which each is moved, those around which least lives


def improve(space: Space, order: Sequence[int], deadline: float) -> Iterator[End]:
    """Ways for better and better orders from one on, until no move gains or time runs out."""
    order, best, gained = list(order), covering(space, order, 0), True
    while best is not None and gained:
        way = covering(space, order)
        if way is not None:
            yield End(way[0], (space.all, 0, 0), 0, way[1])
        gained = False
        for operator in _tight(space, order):
            found, cost = order, best[0]
            for other in _moves(space, order, order.index(operator)):
                if time.monotonic() > deadline:
                    return
                made = covering(space, other, 0)
                if made is not None and made[0] < cost:
                    found, cost, best = other, made[0], made
            gained, order = gained or found is not order, found


def _tight(space: Space, order: Sequence[int]) -> list[int]:
    """The operators beside which most is missing, if all were kept."""
    _, lacking = stays(space, order)
    places = sorted((place for place, units in enumerate(lacking) if units > 0), key=lambda place: -lacking[place])
    return [order[place] for place in places[:MOVED]]


def _moves(space: Space, order: list[int], place: int) -> Iterator[list[int]]:
    """Orders with the operator at a place elsewhere."""
    alive = _alive(space, order)
    for behind in (*sorted(range(-1, place - 1), key=lambda p: alive[p])[:PLACES],
                   *sorted(range(place + 1, len(order)), key=lambda p: alive[p])[:PLACES]):
        yield moved(space, order, place, behind)


def moved(space: Space, order: list[int], place: int, behind: int) -> list[int]:
    """The order with the operator at a place put behind another place: with those that it needs, or that need it, from in between."""
    one = order[place]
    if behind < place:
        taken = [o for o in order[behind + 1:place + 1] if o == one or space.above[one] >> o & 1]
        return [*order[:behind + 1], *taken, *(o for o in order[behind + 1:] if o not in taken)]
    taken = [o for o in order[place:behind + 1] if o == one or space.below[one] >> o & 1]
    return [*(o for o in order[:behind + 1] if o not in taken), *taken, *order[behind + 1:]]


def _alive(space: Space, order: Sequence[int]) -> list[int]:
    """Units that live behind each operator; and at last, before the first."""
    found, done, lived = [], 0, 0
    for operator in order:
        done |= 1 << operator
        lived = space.read_later(lived | space.need[operator], operator, done)
        found.append(space.total(lived))
    return [*found, 0]
