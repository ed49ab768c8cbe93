"""How tests compare results: to the bit, or up to rounding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-4, "float64": 1e-9}


def assert_identical(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], signed_zeros: bool = True) -> None:
    """Equal dtype, shape and bits; any NaN equals any NaN, and without `signed_zeros` any zero any zero."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if ours.dtype.kind in "biu":
            np.testing.assert_array_equal(ours, theirs)
            continue
        both = np.isnan(ours) & np.isnan(theirs)
        if not signed_zeros:
            both |= (ours == 0) & (theirs == 0)
        bits = f"u{ours.dtype.itemsize}"
        same = np.ascontiguousarray(ours).view(bits) == np.ascontiguousarray(theirs).view(bits)
        assert (both | same).all(), f"{ours}\nis not\n{theirs}"


def assert_close(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], scale: float = 1) -> None:
    """Equal dtype and shape; floats within the dtype's tolerance times `scale`, NaN where NaN is, integers equal."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if ours.dtype.kind in "biu":
            np.testing.assert_array_equal(ours, theirs)
        else:
            tolerance = TOLERANCE[str(ours.dtype)] * scale
            np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), rtol=tolerance, atol=tolerance)
