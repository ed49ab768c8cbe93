"""Fit the polynomials of `backends/llvm/math.py` and print them as `backends/llvm/math_tables.py`.

What it does: for each function below it finds the polynomial of least maximum weighted error on an interval by the second
algorithm of Remez (Muller, "Elementary Functions", 3rd edition, section 3.6), in 60 digits. Coefficients are rounded to the
working format one after the other, lowest degree first, and those left are fitted again against what the rounding lost (the
sequential form of the idea in Brisebarre and Chevillard, "Efficient polynomial L-infinity approximations", ARITH 2007), which matters
in float32 only.
Assumes: mpmath is installed (`pip install mpmath`; nothing else needs it).
Guarantees: deterministic output; the achieved error stands beside each table.

    python benchmarks/fit_math.py > backends/llvm/math_tables.py
"""
from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

import mpmath as mp

mp.mp.dps = 60
GRID = 400                                            # points on which extrema are sought
Function = Callable[[mp.mpf], mp.mpf]


@dataclass(frozen=True)
class Fit:
    """One table: `function` on [low, high] by a polynomial of `degree`, the error counted times `weight`."""

    name: str
    bits: int                                         # 32 or 64: the format of the coefficients
    function: Function
    low: mp.mpf
    high: mp.mpf
    degree: int
    weight: Function
    why: str
    refits: int = 3                                   # past these, the rounding of a coefficient does not show; 1 where 0 lies within


def rounded(value: mp.mpf, bits: int) -> mp.mpf:
    """`value` rounded to float32 or float64."""
    as_double = float(value)
    return mp.mpf(struct.unpack("f", struct.pack("f", as_double))[0] if bits == 32 else as_double)


def chebyshev(low: mp.mpf, high: mp.mpf, count: int) -> list[mp.mpf]:
    """The extrema of the Chebyshev polynomial of degree count - 1, on [low, high], ascending."""
    middle, radius = (low + high) / 2, (high - low) / 2
    return [middle - radius * mp.cos(mp.pi * i / (count - 1)) for i in range(count)]


def remez(target: list[mp.mpf], weight: list[mp.mpf], grid: list[mp.mpf], first: int, degree: int) -> tuple[list[mp.mpf], mp.mpf]:
    """The best sum of c_i x^i for i in first..degree to `target` on `grid`, and its error."""
    unknowns = degree - first + 2
    step = (len(grid) - 1) / (unknowns - 1)
    chosen = [round(i * step) for i in range(unknowns)]
    coefficients: list[mp.mpf] = []
    for _ in range(30):
        rows = [[grid[p] ** (first + j) for j in range(unknowns - 1)] + [(-1) ** i / weight[p]] for i, p in enumerate(chosen)]
        solution = list(mp.lu_solve(mp.matrix(rows), mp.matrix([target[p] for p in chosen])))
        coefficients = solution[:-1]
        error = [
            w * (t - x ** first * mp.polyval(coefficients[::-1], x)) for x, t, w in zip(grid, target, weight)
        ]
        following = alternating_extrema(error, unknowns)
        if following is None or following == chosen:
            break
        chosen = following
    return coefficients, max(abs(e) for e in error)


def alternating_extrema(error: list[mp.mpf], count: int) -> list[int] | None:
    """Positions of `count` extrema of alternating sign, or None where there are fewer (the fit is then exact to rounding)."""
    peaks: list[int] = []
    for position, value in enumerate(error):
        if peaks and (error[peaks[-1]] > 0) == (value > 0):
            if abs(value) > abs(error[peaks[-1]]):
                peaks[-1] = position
        else:
            peaks.append(position)
    while len(peaks) > count:                         # drop the smaller end: the alternation stays
        peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
    return peaks if len(peaks) == count else None


def fit(job: Fit) -> tuple[list[mp.mpf], mp.mpf]:
    """Coefficients of `job`, lowest degree first, rounded to its format, and the error reached with them."""
    grid = chebyshev(job.low, job.high, GRID)
    target = [job.function(x) for x in grid]
    weight = [abs(job.weight(x)) for x in grid]
    left, done = list(target), []
    refits = min(job.refits, job.degree + 1) if job.bits == 32 else 1
    for first in range(job.degree + 1):
        if first < refits:
            coefficients, _ = remez(left, weight, grid, first, job.degree)
        done.append(rounded(coefficients[0], job.bits))
        if first < refits:
            left = [t - done[-1] * x ** first for t, x in zip(left, grid)]
        coefficients = coefficients[1:]
    error = max(w * abs(t - mp.polyval(done[::-1], x)) for x, t, w in zip(grid, target, weight))
    return done, error


def away(function: Function, near_zero: mp.mpf, order: int = 1) -> Function:
    """`function` with its limit at 0, which its formula cannot give (and close to 0 would lose digits to cancellation)."""
    return lambda x: near_zero if abs(x) < mp.mpf(10) ** (-30 // order) else function(x)


LN2 = mp.log(2)
HALF_LN2 = LN2 / 2 * mp.mpf("1.0001")
ROOT = mp.sqrt(2)
QUARTER = (mp.pi / 4) ** 2 * mp.mpf("1.0001")
ERFC_CENTER = mp.mpf(4)


def scaled_complement(t: mp.mpf) -> mp.mpf:
    """(1 + 2x) exp(x^2) erfc(x) where t = (x - K) / (x + K)."""
    x = ERFC_CENTER * (1 + t) / (1 - t)
    return (1 + 2 * x) * mp.exp(x * x) * mp.erfc(x)


def log_series(z: mp.mpf) -> mp.mpf:
    """(log((1 + s) / (1 - s)) / s - 2) / s^2 where z = s^2."""
    s = mp.sqrt(z)
    return (mp.log((1 + s) / (1 - s)) / s - 2) / z


def root(function: Function) -> Function:
    """`function` as a function of the square of its argument."""
    return lambda z: function(mp.sqrt(z))


FITS = [
    *(
        Fit(f"EXP_{bits}", bits, away(lambda r: (mp.exp(r) - 1 - r) / r**2, mp.mpf("0.5")), -HALF_LN2, HALF_LN2, degree,
            lambda r: r**2 / mp.exp(r), "exp(r) = 1 + r + r^2 P(r)")
        for bits, degree in ((32, 4), (64, 9))
    ),
    Fit("EXPM1_32", 32, away(lambda r: (mp.exp(r) - 1 - r) / r**2, mp.mpf("0.5")), -HALF_LN2, HALF_LN2, 5,
        lambda r: r**2 / mp.expm1(r), "exp(r) - 1 = r + r^2 P(r)"),
    Fit("EXPM1_64", 64, away(lambda r: (mp.exp(r) - 1 - r) / r**2, mp.mpf("0.5")), -HALF_LN2, HALF_LN2, 10,
        lambda r: r**2 / mp.expm1(r), "exp(r) - 1 = r + r^2 P(r)"),
    Fit("LOG_32", 32, away(lambda f: (mp.log1p(f) - f + f * f / 2) / f**3, mp.mpf(1) / 3), 1 / ROOT - 1, ROOT - 1, 7,
        lambda f: f**3 / mp.log1p(f) if f else mp.mpf("1e-9"), "log(1 + f) = f - f^2/2 + f^3 P(f)"),
    Fit("LOG_64", 64, away(log_series, mp.mpf(2) / 3), mp.mpf(0), (3 - 2 * ROOT) ** 2, 6,
        lambda z: z + mp.mpf("1e-9"), "log((1 + s) / (1 - s)) = 2s + s z P(z), z = s^2"),
    Fit("LOG_TAIL_64", 64, away(lambda z: (log_series(z) - mp.mpf(2) / 3) / z, mp.mpf(2) / 5), mp.mpf(0), (3 - 2 * ROOT) ** 2, 7,
        lambda z: z * z + mp.mpf("1e-9"), "log((1 + s) / (1 - s)) = 2s + s z (2/3 + z P(z)): the part of pow kept in one double"),
    *(
        Fit(f"SIN_{bits}", bits, away(root(lambda r: (mp.sin(r) - r) / r**3), -mp.mpf(1) / 6), mp.mpf(0), QUARTER, degree,
            lambda z: z + mp.mpf("1e-9"), "sin(r) = r + r z P(z), z = r^2")
        for bits, degree in ((32, 3), (64, 5))
    ),
    *(
        Fit(f"COS_{bits}", bits, away(root(lambda r: (mp.cos(r) - 1 + r * r / 2) / r**4), mp.mpf(1) / 24), mp.mpf(0), QUARTER, degree,
            lambda z: z * z + mp.mpf("1e-9"), "cos(r) = 1 - z/2 + z^2 P(z), z = r^2")
        for bits, degree in ((32, 2), (64, 5))
    ),
    *(
        Fit(f"ASIN_{bits}", bits, away(root(lambda x: (mp.asin(x) / x - 1) / x**2), mp.mpf(1) / 6), mp.mpf(0), mp.mpf("0.2501"), degree,
            lambda z: z + mp.mpf("1e-9"), "asin(x) = x + x z P(z), z = x^2")
        for bits, degree in ((32, 4), (64, 12))
    ),
    *(
        Fit(f"ATAN_{bits}", bits, away(root(lambda x: (mp.atan(x) / x - 1) / x**2), -mp.mpf(1) / 3), mp.mpf(0), mp.mpf("0.17158"), degree,
            lambda z: z + mp.mpf("1e-9"), "atan(x) = x + x z P(z), z = x^2")
        for bits, degree in ((32, 4), (64, 11))
    ),
    *(
        Fit(f"ERF_{bits}", bits, away(root(lambda x: mp.erf(x) / x - 1), 2 / mp.sqrt(mp.pi) - 1), mp.mpf(0), mp.mpf(1), degree,
            lambda z: mp.mpf(1), "erf(x) = x + x P(z), z = x^2, |x| <= 1")
        for bits, degree in ((32, 6), (64, 13))
    ),
    Fit("ERF_OUTER_32", 32, lambda t: mp.erfc(t + mp.mpf("2.375")), mp.mpf("-1.375"), mp.mpf("1.625"), 15,
        lambda t: mp.mpf(1), "erf(x) = 1 - P(x - 2.375), 1 <= x <= 4"),
    Fit("ERFC_64", 64, scaled_complement, mp.mpf(-1), mp.mpf("0.78"), 24,
        lambda t: 1 / scaled_complement(t), "erfc(x) = exp(-x^2) P(t) / (1 + 2x), t = (x - 4) / (x + 4)"),
    Fit("CBRT_64", 64, mp.cbrt, mp.mpf("0.35"), mp.mpf("2.84"), 4, lambda x: 1 / mp.cbrt(x), "first guess of the cube root"),
]

ERF_STEP = mp.mpf(17199) / 65536                      # of those near 4 / 15.5 the one at whose multiples roundings of P(0) are least
ERF_REST = mp.mpf("0.5")                              # what is left apart: x times it is exact, and P smaller
WIDE = ERF_STEP / 2 * mp.mpf("1.0001")


def erf_near(n: int) -> Function:
    """erf(x) / x where t = x - n STEP."""
    def quotient(t: mp.mpf) -> mp.mpf:
        x = t + n * ERF_STEP
        return mp.erf(x) / x

    return quotient if n else away(quotient, 2 / mp.sqrt(mp.pi))


ERF_TABLES = [Fit(f"ERF_TABLES_32, place {n}", 32, lambda t, n=n: erf_near(n)(t) - ERF_REST, -WIDE if n else mp.mpf(0), WIDE, 5,
                  lambda t, n=n: 1 / erf_near(n)(t), "", 1) for n in range(16)]


def print_erf_tables() -> None:
    """The coefficients of one degree side by side, for all places."""
    found = []
    for job in ERF_TABLES:
        print(job.name, file=sys.stderr)
        found.append(fit(job))
    print(f"# erf(x) = x/2 + x P(t), t = x - n STEP, for n the nearest place: 2^{float(mp.log(max(error for _, error in found), 2)):.1f}")
    print(f"ERF_STEP = {float(ERF_STEP)!r}")
    print("ERF_TABLES_32 = (")
    for column in zip(*(coefficients for coefficients, _ in found)):
        print("    (")
        for first in range(0, 16, 4):
            print("        " + ", ".join(repr(float(value)) for value in column[first : first + 4]) + ",")
        print("    ),")
    print(")")


def main() -> None:
    print('"""Coefficients of the polynomials of `math.py`, lowest degree first: the output of `benchmarks/fit_math.py`.\n')
    print("The comment gives the form and the error reached, weighted as the form asks (relative to the function's value).\n"
          '"""\nfrom __future__ import annotations\n')
    for job in FITS:
        print(job.name, file=sys.stderr)
        coefficients, error = fit(job)
        print(f"# {job.why}: 2^{float(mp.log(error, 2)):.1f}")
        print(f"{job.name} = (")
        for value in coefficients:
            print(f"    {float(value)!r},")
        print(")")
    print_erf_tables()
    print("# 2/pi, its first 1280 binary places as 32-bit words, most significant first (Payne and Hanek's constant).")
    mp.mp.dps = 420
    two_over_pi = int(mp.floor(2 / mp.pi * mp.mpf(2) ** 1280))
    words = [(two_over_pi >> (1280 - 32 * (i + 1))) & 0xFFFFFFFF for i in range(40)]
    print("TWO_OVER_PI = (")
    for i in range(0, 40, 8):
        print("    " + ", ".join(f"0x{w:08X}" for w in words[i : i + 8]) + ",")
    print(")")


if __name__ == "__main__":
    main()
