"""Values with bounds: what an array holds, and how far from it any legal evaluation may lie, element by element.

A bound is absolute, in float64: 0 where every legal evaluation gives the same bits, infinity where nothing is known (the
element is *tainted*). `None` stands for zeros everywhere. A value that is not finite and whose bound is finite is certain:
every legal evaluation gives that infinity, or a NaN.

Sums and products are exact in any order where all terms are multiples of one power of two, the *unit*, and the sum of their
magnitudes, the *mass*, is at most 2^mantissa units. The mass does not shrink where terms cancel: (x + a) + b may be
computed as x + (a + b). `rounds` counts the operations that hide behind a mass: what a rewrite makes of them together
with an inexact factor (the factor moved into the terms) rounds so many times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from ..ir.types import DTYPES

Array = np.ndarray[Any, Any]
Bound = Array | None
INFINITE = float("inf")


class Format(Struct, frozen=True):
    """A float dtype in numbers: bits of the significand, distance of 1 to the next number, least and greatest magnitudes."""

    bits: int
    epsilon: float
    smallest: float
    normal: float
    largest: float


def _format(bits: int, least: int, normal: int, largest: float) -> Format:
    return Format(bits, 2.0 ** (1 - bits), 2.0 ** least, 2.0 ** normal, largest)


FORMATS: dict[Any, Format] = {
    DTYPES["f16"].numpy: _format(11, -24, -14, 65504.0),
    DTYPES["bf16"].numpy: _format(8, -133, -126, (2.0 - 2.0 ** -7) * 2.0 ** 127),
    DTYPES["f32"].numpy: _format(24, -149, -126, (2.0 - 2.0 ** -23) * 2.0 ** 127),
    DTYPES["f64"].numpy: _format(53, -1074, -1022, float(np.finfo(np.float64).max)),
}


def accumulator(dtype: Any) -> Format:
    """The format in which sums of this dtype are kept."""
    return FORMATS[np.dtype(np.float32)] if FORMATS[dtype].bits < 24 else FORMATS[dtype]


class Traced:
    """A value with its bound.

    `unit`, `mass`, `rounds` as above; `unit` is None where nobody asked yet (then no operation hides), 0 where there is none.
    `signless`: zeros may have either sign. `known`: may be a constant at compile time. `given`: made of parameters by arithmetic
    and movement alone, which nothing may reorder: wherever the value itself is a result and finite it has no bound. (What is
    computed from it may still be computed in other ways, and goes by the bound.) `tied`: a maximum or minimum of zeros of both signs
    is on the way, so that not even the same evaluation over other memory need give the same sign of zero.
    """

    __slots__ = ("value", "bound", "signless", "known", "unit", "mass", "rounds", "given", "tied")

    def __init__(self, value: Array, bound: Bound = None, signless: bool = False, known: bool = False,
                 unit: float | None = None, mass: float = 0.0, rounds: int = 0, given: bool = False, tied: bool = False) -> None:
        self.value = value
        self.bound = bound
        self.signless = signless
        self.known = known
        self.unit = unit
        self.mass = mass
        self.rounds = rounds
        self.given = given
        self.tied = tied

    @property
    def is_float(self) -> bool:
        return self.value.dtype in FORMATS

    @property
    def bounds(self) -> Array:
        """The bound as an array, also where it is zero."""
        return np.zeros(self.value.shape) if self.bound is None else self.bound

    def wide(self) -> Array:
        return self.value.astype(np.float64)


Item = Any  # a Traced, or a tuple of items


def lattice(x: Traced) -> tuple[float, float]:
    """The unit and the mass of a float value; unit 0 where it holds rounded numbers."""
    if x.unit is None:
        x.unit, x.mass = _lattice_of(x)
    return x.unit, x.mass


def _lattice_of(x: Traced) -> tuple[float, float]:
    if x.bound is not None and ((x.bound > 0) & (x.bound < INFINITE)).any():
        return 0.0, INFINITE
    wide = x.wide()
    magnitude = np.abs(wide)
    mass = float(magnitude.max(initial=0.0))
    if not mass < INFINITE:
        wide = wide[np.isfinite(wide)]
        mass = float(np.abs(wide).max(initial=0.0))
    if (np.rint(wide) == wide).all():
        return 1.0, mass
    mantissa, exponent = np.frexp(wide[wide != 0])
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = np.log2((whole & -whole).astype(np.float64))
    return float(np.ldexp(1.0, int((exponent - 53 + lowest).min()))), mass


def fits(unit: float, mass: float, form: Format) -> bool:
    """Whether every multiple of the unit up to the mass is a number of the format."""
    return form.smallest <= unit and mass <= unit * 2.0 ** form.bits and mass <= form.largest


def magnitude(x: Traced) -> Any:
    """How large the terms may be that a value was made from: the mass where terms hide, else each element's own size."""
    return x.mass if x.rounds else np.abs(x.wide())


def inherited(operands: Sequence[Traced]) -> tuple[float | None, float, int]:
    """Unit, mass and rounds of what holds elements of the operands."""
    if all(x.unit is None for x in operands):
        return None, 0.0, 0
    found = [lattice(x) for x in operands]
    return min(u for u, _ in found), max(m for _, m in found), max(x.rounds for x in operands)


def are_exact(operands: Iterable[Traced]) -> bool:
    return all(x.bound is None for x in operands)


def are_known(operands: Iterable[Traced]) -> bool:
    return all(x.known for x in operands)


def are_given(operands: Iterable[Traced]) -> bool:
    return all(x.given for x in operands)


def are_signless(operands: Iterable[Traced]) -> bool:
    return any(x.signless for x in operands)


def are_tied(operands: Iterable[Traced]) -> bool:
    return any(x.tied for x in operands)


def meet_as_zeros(operands: Sequence[Traced]) -> bool:
    """Whether there are zeros of both signs among these."""
    signs = [np.signbit(x.value[x.value == 0]) for x in operands if x.is_float]
    return any(s.any() for s in signs) and not all(s.all() for s in signs)


def settled(bound: Bound) -> Bound:
    """The bound with what is no number as infinity, and None for zeros."""
    if bound is None:
        return None
    bound = np.where(bound >= 0, bound, INFINITE)
    return bound if bound.any() else None


def within(value: Array, bound: Bound, form: Format) -> Bound:
    """Taints what another evaluation may overflow."""
    if bound is None:
        return None
    near = (np.abs(value.astype(np.float64)) + bound > form.largest) & np.isfinite(value)
    return np.where(near, INFINITE, bound) if near.any() else bound


def rounded(bound: Array, value: Array) -> Array:
    """The bound after rounding to the dtype of the value, where something was inexact before."""
    form = FORMATS[value.dtype]
    size = np.abs(value.astype(np.float64))
    more = np.where((bound > 0) & (size <= form.largest), form.epsilon * (size + bound) + form.smallest, 0.0)
    return np.asarray(bound + more)


def summed(value: Array, bound: Array, size: Array) -> Bound:
    """The bound of a sum: rounded to its dtype, certain where it is infinite or NaN for its terms' sake, tainted where
    terms of this size may overflow. `bound` is infinite or NaN where a term is tainted."""
    form, inner = FORMATS[value.dtype], accumulator(value.dtype)
    bound = np.where(bound >= 0, bound, INFINITE)
    bound = np.where(size + bound >= inner.largest, INFINITE, bound)
    finite = np.isfinite(value)
    by_rounding = ~finite & (form.bits < inner.bits) & (size * 1.01 >= form.largest)
    bound = np.where(by_rounding, INFINITE, np.where(finite, rounded(bound, value), np.where(bound < INFINITE, 0.0, INFINITE)))
    return settled(within(value, bound, form))


def tainted_by(operands: Sequence[Traced]) -> Bound:
    """For results that are no floats, of operands of equal shape: infinite where any operand is not exact."""
    found: Bound = None
    for x in operands:
        if x.bound is not None:
            wrong = x.bound > 0
            found = wrong if found is None else found | wrong
    return None if found is None else settled(np.where(found, INFINITE, 0.0))


def all_tainted(value: Array) -> Traced:
    """A value of which nothing is known."""
    return Traced(value, np.full(value.shape, INFINITE) if value.size else None, True)
