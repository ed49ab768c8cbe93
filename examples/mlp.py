"""The smallest whole use: a NumPy function, compiled, called, saved as a C library.

What it does: compiles two dense layers with a symbolic batch, compares with NumPy, writes mlp.so, mlp.h and mlp.weights,
and prints the results that the C program examples/c/mlp.c must print too.

    python -m examples.mlp demo-output
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

FEATURES, HIDDEN, CLASSES = 784, 128, 10


def mlp(x, w1, b1, w2, b2):
    """Two dense layers, rectified between them."""
    hidden = np.maximum(x @ w1 + b1, 0)
    return hidden @ w2 + b2


def make_weights() -> tuple[np.ndarray, ...]:
    """Fixed weights of a sensible size."""
    generator = np.random.default_rng(0)
    shapes = ((FEATURES, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
    return tuple(generator.normal(scale=0.05, size=shape).astype(np.float32) for shape in shapes)


def make_input(batch: int) -> np.ndarray:
    """The pattern that the C program feeds."""
    count = np.arange(batch * FEATURES) % 17
    return (count.astype(np.float32) / np.float32(16) - np.float32(0.5)).reshape(batch, FEATURES)


def main() -> None:
    import tilewright as tw

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write the library")
    parser.add_argument("--batch", type=int, default=3, help="rows to run (default: %(default)s)")
    arguments = parser.parse_args()
    weights = make_weights()
    executable = tw.compile(mlp, args=(tw.spec(("batch", FEATURES), "float32"), *weights))
    x = make_input(arguments.batch)
    found, expected = executable(x), mlp(x, *weights)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    executable.save(arguments.folder / "mlp.so")
    for row in found:
        print(" ".join(f"{value:.6f}" for value in row))
    print(f"largest difference from NumPy: {np.abs(found - expected).max():.1e}")


if __name__ == "__main__":
    main()
