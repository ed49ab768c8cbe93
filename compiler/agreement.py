"""How far two arrays lie apart, and whether that is within a bound: what `tilewright verify` says of each output.

The error is the greatest difference relative to the greatest finite magnitude that is expected: elements that nearly cancel
are not held to more digits than the sums that they come from. Integers, booleans and stored formats must be equal unless a
tolerance is given. NaN must stand where NaN is expected, and an infinity where the same one is.

The bounds without a tolerance are multiples of a dtype's unit in the last place: what a reordered sum, a polynomial of a
function, and the differences between libraries come to; more for a whole model, where errors add up.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from msgspec import Struct

FEW_BITS = 16                        # formats of so many bits round at each step, where others keep more
NODE_UNITS = {"narrow": 8, "wide": 256}
MODEL_UNITS = {"narrow": 32, "wide": 1024}


class Difference(Struct, frozen=True):
    """What two values differ in. `error`: relative to the greatest magnitude; `units`: in units in the last place of the single
    elements, at most; `problem`: what is wrong beyond the size of errors; `worst`: where the error is greatest."""

    error: float
    bound: float
    units: float
    worst: tuple[int, ...] = ()
    found: str = ""
    expected: str = ""
    problem: str = ""

    @property
    def agrees(self) -> bool:
        return not self.problem and self.error <= self.bound

    def text(self) -> str:
        if self.problem:
            return self.problem
        place = f" at [{', '.join(map(str, self.worst))}]: found {self.found}, expected {self.expected}" if self.error else ""
        return f"error {self.error:.3g} of the largest value (bound {self.bound:.3g}), {self.units:.3g} units in the last place{place}"


def bound_of(dtype: np.dtype[Any], tolerance: float | None, whole_model: bool) -> float:
    """The greatest error that counts as agreement."""
    if tolerance is not None:
        return tolerance
    unit = unit_of(dtype)
    units = MODEL_UNITS if whole_model else NODE_UNITS
    return unit * units["narrow" if dtype.itemsize * 8 <= FEW_BITS else "wide"]


def unit_of(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next number; 0 for what is no float that one computes with."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).eps)
    return 2.0**-7 if dtype.name == "bfloat16" else 0.0


def compare(found: Any, expected: Any, tolerance: float | None = None, whole_model: bool = False) -> Difference:
    """How far `found` lies from `expected`."""
    if not isinstance(found, np.ndarray) or not isinstance(expected, np.ndarray):
        return _wrong(f"found a {type(found).__name__}, expected a {type(expected).__name__}")
    if found.dtype != expected.dtype:
        return _wrong(f"found dtype {found.dtype}, expected {expected.dtype}")
    if found.shape != expected.shape:
        return _wrong(f"found shape {list(found.shape)}, expected {list(expected.shape)}")
    bound = bound_of(expected.dtype, tolerance, whole_model)
    if not found.size:
        return Difference(0.0, bound, 0.0)
    if expected.dtype.kind in "OUS":
        return Difference(0.0, bound, 0.0) if np.array_equal(found, expected) else _wrong("found other text than expected")
    left, right = found.astype(np.float64), expected.astype(np.float64)
    apart = np.isnan(left) != np.isnan(right)
    infinite = (np.isinf(left) | np.isinf(right)) & (left != right) & ~apart & ~np.isnan(left)
    for what, places in (("NaN", apart), ("infinity", infinite)):
        if places.any():
            place = np.unravel_index(int(np.argmax(places)), places.shape)
            return _wrong(f"{int(places.sum())} elements of {places.size} are {what} on one side only, the first at "
                          f"[{', '.join(map(str, place))}]: found {found[place]}, expected {expected[place]}")
    return _finite_difference(found, expected, left, right, bound)


def _finite_difference(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], left: np.ndarray[Any, Any],
                       right: np.ndarray[Any, Any], bound: float) -> Difference:
    finite = np.isfinite(right)
    if expected.dtype.kind in "iu" and expected.dtype.itemsize == 8:      # beyond 2**53 floats would hide a difference
        distance = np.where(found > expected, found - expected, expected - found).view(np.uint64).astype(np.float64)
    else:
        distance = np.where(finite, np.abs(np.where(finite, left, 0) - np.where(finite, right, 0)), 0)
    largest = float(np.abs(right[finite]).max()) if finite.any() else 0.0
    worst = np.unravel_index(int(np.argmax(distance)), distance.shape)
    error = float(distance[worst]) / (largest or 1.0)
    unit = unit_of(expected.dtype)
    spacing = unit * np.exp2(np.floor(np.log2(np.maximum(np.abs(np.where(finite, right, 0)), _smallest(expected.dtype))))) if unit else 1.0
    return Difference(error, bound, float((distance / spacing).max()), tuple(map(int, worst)), str(found[worst]), str(expected[worst]))


def _smallest(dtype: np.dtype[Any]) -> float:
    """The smallest normal number: below it all numbers lie equally far apart."""
    return float(np.finfo(dtype).tiny) if dtype.kind == "f" else 2.0**-126


def _wrong(problem: str) -> Difference:
    return Difference(math.inf, 0.0, math.inf, problem=problem)


__all__ = ["Difference", "compare"]
