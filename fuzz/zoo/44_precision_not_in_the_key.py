"""x + 0.0 keeps the sign of no zero under `strict`."""

from __future__ import annotations

from support import is_wrong, np, tw


def witness() -> bool:
    x = np.array([-0.0, 0.0, 1.0], np.float32)
    found = []
    for precision in ("default", "strict"):
        options = tw.Options(precision=precision)
        executable = tw.compile(lambda x: x + np.float32(0), args=(tw.spec((3,), "float32"),), options=options, name="key")
        found.append(executable(x))
    return is_wrong(found[1], x + np.float32(0))
