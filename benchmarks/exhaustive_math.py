"""Measures functions of `backends/llvm/math.py` on every float32 (or every n-th): the greatest error, and where.

    python -m benchmarks.exhaustive_math exp log sin              # all 2^32 inputs, some two minutes a function
    python -m benchmarks.exhaustive_math --stride 257 --machine sse2   # all functions of one operand, a sample, SSE2 code

Progress goes to stderr; a line a function to stdout: name, greatest error in units in the last place, the input, wrong NaNs and zeros.
The reference is NumPy's in float64 (erf, erfc: our float64 function, which `tests/test_math.py` compares with long double); its own
error adds at most 2^-28 units. The exit status is 1 when a function exceeds the bound in `MATH`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.math_harness import MACHINES, Array, Loop, Machine, numpy_reference
from tilewright.backends.llvm.math import MATH

CHUNK = 1 << 18             # stays in the second-level cache


def unary_functions() -> list[str]:
    return [name for name, function in MATH.items() if function.operands == 1]


def float64_reference(name: str) -> Callable[[Array], Array]:
    return Loop(name, "float64", 4) if name in ("erf", "erfc") else numpy_reference(name)


def chunk_errors(found: Array, reference: Array) -> tuple[Array, int]:
    """Errors in units in the last place of float32, and the number of wrong NaNs and wrong signs of zero."""
    wide = np.clip(found.astype(np.float64), -(2.0**128), 2.0**128)
    reference = np.clip(reference, -(2.0**128), 2.0**128)
    leading = (reference.view(np.int64) & 0x7FF0000000000000).view(np.float64)      # 2^exponent
    unit = np.clip(leading, 2.0**-126, 2.0**127) * 2.0**-23
    error = np.abs(wide - reference) / unit
    nans = np.isnan(error)
    wrong = int(np.count_nonzero(np.isnan(wide) != np.isnan(reference)))
    zeros = (wide == 0) & (reference == 0)
    wrong += int(np.count_nonzero(np.signbit(wide[zeros]) != np.signbit(reference[zeros])))
    return np.where(nans, 0.0, error), wrong


def measure(name: str, stride: int, machine: Machine) -> tuple[float, float, int]:
    """(greatest error, its input, wrong specials)."""
    function = Loop(name, "float32", 8, machine)
    reference = float64_reference(name)
    greatest, where, wrong = -1.0, 0.0, 0
    span = CHUNK * stride
    started = time.monotonic()
    for number, first in enumerate(range(0, 1 << 32, span)):
        bits = np.arange(first, min(first + span, 1 << 32), stride, dtype=np.uint64).astype(np.uint32)
        x = bits.view(np.float32)
        with np.errstate(all="ignore"):
            error, bad = chunk_errors(function(x), reference(x.astype(np.float64)))
        wrong += bad
        position = int(np.argmax(error))
        if error[position] > greatest:
            greatest, where = float(error[position]), float(x[position])
        if number % 512 == 511:
            share = (first + span) / (1 << 32)
            print(f"{name}: {share:4.0%}, {time.monotonic() - started:.0f} s, {greatest:.4f}", file=sys.stderr, flush=True)
    return greatest, where, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help="functions of one operand (default: all)")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th float (odd numbers meet all exponents)")
    parser.add_argument("--machine", choices=MACHINES, default="avx2", help="whose code (default: %(default)s)")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(unary_functions())
    if unknown:
        parser.error(f"not a function of one operand: {', '.join(sorted(unknown))}; known: {', '.join(unary_functions())}")
    failed = False
    for name in arguments.names or unary_functions():
        greatest, where, wrong = measure(name, arguments.stride, MACHINES[arguments.machine])
        bound = MATH[name].ulps[0]
        failed |= greatest > bound or wrong > 0
        verdict = "ok" if greatest <= bound and not wrong else f"exceeds {bound}"
        print(f"{name:12s} {greatest:8.4f} ulp at {where!r:26} ({where.hex()}), {wrong} wrong NaN or zero: {verdict}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
