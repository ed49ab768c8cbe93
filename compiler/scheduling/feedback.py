"""What a failed packing says to the search: less room for those operators beside which something found no place.

Where addresses force a stay of a tensor apart that the residency had whole, some operator in between had room for it in bytes, but no
packing was found. The search is asked again with that operator's room one unit below what the residency used there, so that it
must find another order or let another tensor go. These cuts are guesses: they forbid other residencies too that might be packed, so what
is found with them is no bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .bodies import Stay
from .placing import stays_of
from .search import Move
from .space import Space


def strained(space: Space, moves: Sequence[Move], placed: Sequence[Stay]) -> dict[int, int]:
    """Units to be taken from the room of operators, for a way and the stays that it became when it was placed."""
    used = units_used(space, moves)
    kept = {(stay.tensor, pair) for stay in placed for pair in zip(stay.uses, stay.uses[1:])}
    found: dict[int, int] = {}
    for stay in stays_of(space, moves):
        for left, right in zip(stay.uses, stay.uses[1:]):
            between = range(left + 1, right)
            if (stay.tensor, (left, right)) not in kept and between:
                moment = max(between, key=lambda m: (used[m], -m))
                found[moves[moment].operator] = space.room - used[moment] + 1
    return found


def units_used(space: Space, moves: Sequence[Move]) -> list[int]:
    """What lies in the scratchpad while each operator of a way runs."""
    state, found = (0, 0, 0), []
    for move in moves:
        done, resident, _ = state
        gone = move.evicted & space.over[move.operator]
        units = space.during(done, move.operator, resident & ~move.evicted)
        found.append(units - (space.saved[move.operator] if gone and not space.dying(done, move.operator) else 0))
        state = space.after(state, move.operator, move.evicted)
    return found


def tightened(rooms: Mapping[int, int], more: Mapping[int, int], space: Space) -> dict[int, int]:
    """Rooms with those cuts too, as far as each operator still fits."""
    found = dict(rooms)
    for operator, units in more.items():
        found[operator] = min(max(found.get(operator, 0), units), space.room - space.least_units[operator])
    return found
