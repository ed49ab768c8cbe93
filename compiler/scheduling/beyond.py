"""What a schedule may do beyond whole operators that run once, each result in memory of its own: switches, and the problem that they make.

Each switch is a rewriting of the problem that keeps its compulsory bytes, so that the same search, packer and checker do the rest:
results over operands that die (`in_place`, a permission on operators that `checker.py` enforces), concatenation without copies (`concat`),
cheap tensors computed again by whoever reads them (`recompute`), chains of operators that run slice by slice (`slices`).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from .aliasing import separate, without_copies
from .problem import Problem
from .recomputing import recomputed
from .slicing import sliced


class Allowed(Struct, frozen=True):
    """What a schedule may do."""

    in_place: bool = False
    concat: bool = False
    recompute: bool = False
    slices: bool = False


NOTHING = Allowed()
EVERYTHING = Allowed(True, True, True, True)
SWITCHES = Allowed.__struct_fields__


def what_is_allowed(names: Sequence[str]) -> Allowed:
    """The switches by their names, as in `in-place`; `all` is all of them."""
    chosen = SWITCHES if "all" in names else [name.replace("-", "_") for name in names]
    return Allowed(**dict.fromkeys(chosen, True))


def changed(problem: Problem, budget: int, alignment: int, allowed: Allowed) -> Problem:
    """The problem in which what is allowed has been done, or may be."""
    if not allowed.in_place:
        problem = separate(problem)
    if allowed.concat:
        problem = without_copies(problem, alignment)
    if allowed.recompute:
        problem = recomputed(problem)
    return sliced(problem, budget, alignment) if allowed.slices else problem
