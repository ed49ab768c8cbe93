"""An array from the end, into itself."""

from __future__ import annotations

from support import is_wrong, np, tw


def witness() -> bool:
    x = np.arange(100, dtype=np.float32)
    executable = tw.compile(lambda x: x[::-1] + x, args=(tw.spec((100,), "float32"),), options=tw.Options(cache=False, threads=1))
    expected = x[::-1] + x
    executable(x, out=x)
    return is_wrong(x, expected)
