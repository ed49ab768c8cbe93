"""atan2(0, -0) is pi."""

from __future__ import annotations

from support import differs, np


def witness() -> bool:
    y = np.array([0.0, -0.0, 0.0, 1.0], np.float32)
    x = np.array([-0.0, -0.0, 0.0, -1.0], np.float32)
    return differs(np.arctan2, y, x, tolerance=1e-6)
