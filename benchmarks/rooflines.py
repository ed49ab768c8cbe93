"""What softmax, layer norm and transposes can reach on one core: its memory, its arithmetic, and the best that was written by hand.

What it does: each kernel of `rooflines.c` runs with everything in the first caches, which shows what computing takes, and over arrays
that no cache holds. The roofline is the longer of computing and of moving as many bytes: what a kernel would take for which the two
overlap wholly; the kernel by hand shows how near one comes.
`kernels.py` prints the share of it that compiled code reaches, beside the share of the limit of memory alone.

Assumes a C compiler (`cc`); a core without AVX2 and FMA has none of this (`Rooflines.kernels` is empty then).

    python -m benchmarks.rooflines --clock thread
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Array = np.ndarray
ROWS, COLUMNS = 16384, 1024
NEAR_ROWS = 2048            # of one row, again and again
NEAR_SIDE, NEAR_REPEATS = 32, 2048  # of a block of a transpose in the first level
BLOCK = (256, 128)          # of one beyond the caches
REPEATS = 7
LINE_BYTES = 64
POINTERS, SIZES = [ctypes.c_void_p] * 2, [ctypes.c_int64]


@dataclass(frozen=True)
class Roofline:
    """Seconds that 16384 x 1024 elements take: `computing` with all of them near, `by_hand` beyond the caches."""

    computing: float
    by_hand: float

    def bound(self, moving: float) -> float:
        """The seconds at least, where moving the bytes takes so many."""
        return max(self.computing, moving)


class Rooflines:
    """The kernels by hand, and what they take now."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        library, source = folder / "rooflines.so", Path(__file__).with_name("rooflines.c")
        subprocess.run(["cc", "-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", str(library), "-lm"], check=True)
        self.code, self.clock = ctypes.CDLL(str(library)), clock
        self.kernels: tuple[str, ...] = ("softmax", "layer norm", "transpose") if self.code.tw_has_rooflines() else ()
        for name, sizes in (("softmax", 4), ("layer_norm", 4), ("transpose", 6)):
            if self.kernels:
                function = getattr(self.code, f"tw_{name}")
                function.restype, function.argtypes = None, POINTERS + SIZES * sizes

    def far(self, name: str, to: Array, x: Array) -> None:
        """The kernel over `x`, past the caches."""
        rows, columns = x.shape
        sizes = (*BLOCK, 1, 1) if name == "transpose" else (columns, 1)
        getattr(self.code, f"tw_{name.replace(' ', '_')}")(to.ctypes.data, x.ctypes.data, rows, columns, *sizes)

    def near(self, name: str, to: Array, x: Array) -> int:
        """The kernel over a row or a block of `x`, again and again: how many elements that were."""
        places, columns = (to.ctypes.data, x.ctypes.data), x.shape[1]
        if name == "transpose":
            self.code.tw_transpose(*places, *[NEAR_SIDE] * 4, 0, NEAR_REPEATS)
            return NEAR_SIDE * NEAR_SIDE * NEAR_REPEATS
        getattr(self.code, f"tw_{name.replace(' ', '_')}")(*places, NEAR_ROWS, columns, 0, 0)
        return NEAR_ROWS * columns

    def measure(self, name: str) -> Roofline:
        x, to = aligned((ROWS, COLUMNS)), aligned((COLUMNS, ROWS) if name == "transpose" else (ROWS, COLUMNS))
        x[:] = np.random.default_rng(0).standard_normal(x.shape, dtype="float32")
        to[:] = 0
        near, far = [], []
        for _ in range(REPEATS):
            start = self.clock()
            elements = self.near(name, to, x)
            between = self.clock()
            self.far(name, to, x)
            near.append((between - start) * x.size / elements)
            far.append(self.clock() - between)
        return Roofline(min(near), min(far))


def aligned(shape: tuple[int, int]) -> Array:
    """An array that begins with a line of memory, unlike those of NumPy: a kernel that stores pieces is faster by a sixth."""
    size = shape[0] * shape[1] * 4
    memory = np.empty(size + LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start:start + size].view(np.float32).reshape(shape)


def main() -> int:
    from benchmarks.kernel_peers import CLOCKS
    from benchmarks.kernels import Limits
    from tilewright.backends.llvm.targets import resolve_target

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="default: %(default)s")
    clock, target = CLOCKS[parser.parse_args().clock], resolve_target("cpu")
    with tempfile.TemporaryDirectory(prefix="tilewright-rooflines-") as folder:
        limits = Limits(Path(folder), target.vector_bits // 8, clock, target.level3_bytes)
        rooflines = Rooflines(Path(folder), clock)
        if not rooflines.kernels:
            print("no roofline: the kernels by hand are for cores with AVX2 and FMA", file=sys.stderr)
        for name in rooflines.kernels:
            moving = 8.0 * ROWS * COLUMNS / limits.mix(1)
            found = rooflines.measure(name)
            bound = found.bound(moving)
            print(f"{name:<12} moving {moving * 1e3:6.3f} ms  computing {found.computing * 1e3:6.3f} ms  "
                  f"by hand {found.by_hand * 1e3:6.3f} ms: {bound / found.by_hand:.0%} of the roofline, "
                  f"{moving / found.by_hand:.0%} of the limit of memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
