"""A kernel that reads what the other thread has just written, many times."""

from __future__ import annotations

from support import is_wrong, np, small_integers, tw


def witness() -> bool:
    def function(x):
        for _ in range(6):
            x = np.cumsum(x, axis=1)[::-1] * np.float32(0.5)
        return x

    x = small_integers(64, 400)
    executable = tw.compile(function, args=(tw.spec(x.shape, "float32"),), options=tw.Options(cache=False, threads=2))
    once = tw.compile(function, args=(tw.spec(x.shape, "float32"),), options=tw.Options(cache=False, threads=1))
    expected = once(x)
    return any(is_wrong(executable(x), expected) for _ in range(300))
