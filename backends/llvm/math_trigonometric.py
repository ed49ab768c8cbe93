"""Trigonometric functions and their inverses over `Lanes`, for every finite argument.

What it does: sin, cos and tan reduce the argument to [-pi/4, pi/4] and a quadrant: up to a limit by pi/2 in several parts (Cody and
Waite 1980; Muller, "Elementary Functions", chapter 11), beyond it exactly, by multiplying the significand with that window of
2/pi's bits which matters (Payne and Hanek, "Radian reduction for trigonometric functions", SIGNUM 18, 1983), in a block that is
jumped over when no lane needs it. atan2 divides the smaller by the larger coordinate and folds at tan(pi/8).
Assumes: round to nearest, subnormals on. Guarantees: C99 special values; the error of each function stands in `math.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tilewright.backends.llvm import math_tables as tables
from tilewright.backends.llvm.lanes import (
    FLOAT32,
    FLOAT64,
    Lanes,
    exact_product,
    exact_sum,
    exact_sum_ordered,
    fma,
    polynomial,
    refine_where,
)

PARTS_32 = (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15)      # pi/2 in three floats
PARTS_64 = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487111665e-21, 8.4784276603689e-32)   # 33, 33, 33, 53 bits
HALF_PI_32 = (1.5707963705062866, -4.371138828673793e-08)
HALF_PI_64 = (1.5707963267948966, 6.123233995736766e-17)
LIMIT_32 = 2.0**16          # n times the third part still leaves 24 good bits next to a multiple of pi/2
LIMIT_64 = 2.0**20          # n times a part of 33 bits is exact
WORD = 0xFFFFFFFF


# ---- argument reduction ----


def reduce_single(x: Lanes) -> tuple[Lanes, Lanes]:
    """(quadrant, r) for float32 |x| < LIMIT_32: in float32 with FMA (the first step is exact), else through float64."""
    if x.options.has_fma:
        z = fma(x, 2 / math.pi, FLOAT32.magic)
        n = z - FLOAT32.magic
        r = x
        for part in PARTS_32:
            r = fma(n, -part, r)
        return z.bits(), r
    wide = x.widen()
    z = wide * (2 / math.pi) + FLOAT64.magic
    n = z - FLOAT64.magic
    r = (wide - n * PARTS_64[0]) - n * PARTS_64[1]
    return z.bits().resize(32), r.narrow()


def reduce_double(x: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """(quadrant, r, r_low) for float64 |x| < LIMIT_64; every product but the last is exact."""
    z = fma(x, 2 / math.pi, FLOAT64.magic)
    n = z - FLOAT64.magic
    r, error_1 = exact_sum(x - n * PARTS_64[0], -(n * PARTS_64[1]))
    r, error_2 = exact_sum(r, -(n * PARTS_64[2]))
    r, low = exact_sum_ordered(r, (error_1 + error_2) - n * PARTS_64[3])
    return z.bits(), r, low


def window(position: Lanes, words: Sequence[int], count: int, top: int) -> list[Lanes]:
    """`count` 32-bit words of the bit string `words` from bit `position` (a lane of i64; its word is below 2^(top + 1)).

    A barrel shifter: selects instead of a table in memory, because addresses differ by lane.
    """
    index, shift = position >> 5, position & 31
    chosen = [position.splat(word) for word in words]
    zero = position.splat(0)
    for bit in range(top, -1, -1):
        take = ~((index & (1 << bit)).equals(0))
        needed = count + 1 + (1 << bit) - 1
        padded = chosen + [zero] * (needed + (1 << bit) - len(chosen))
        chosen = [take.select(padded[i + (1 << bit)], padded[i]) for i in range(needed)]
    return [(((chosen[i] << 32) | chosen[i + 1]) << shift) >> 32 for i in range(count)]


def multiply_modulo(significand: Sequence[Lanes], words: Sequence[Lanes]) -> list[Lanes]:
    """The product of two integers in 32-bit limbs, least significant first, modulo 2^(32 len(words))."""
    columns: list[list[Lanes]] = [[] for _ in range(len(words) + 1)]
    for i, a in enumerate(significand):
        for j, b in enumerate(words):
            if i + j < len(words):
                product = a * b
                columns[i + j].append(product & WORD)
                columns[i + j + 1].append(product >> 32)
    limbs, carry = [], words[0].splat(0)
    for column in columns[: len(words)]:
        total = carry
        for entry in column:
            total = total + entry
        limbs.append(total & WORD)
        carry = total >> 32
    return limbs


def payne_hanek(x: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """(quadrant as i64, fraction limbs summed, its low part): |x| * 2/pi = quadrant + fraction modulo 4, in float64.

    With |x| = m 2^e, bits of 2/pi of weight above 2^(1 - e) add multiples of 4, so the window starts at the bit of weight 2^(1 - e); three
    words leave 2^-70 for float32 (closest approach to a multiple of pi/2: 2^-30), six leave 2^-137 for float64 (2^-62).
    """
    shape = x.format
    single = x.is_single
    bits = x.absolute().bits()
    bits = bits.resize(64) if single else bits
    exponent = bits >> shape.fraction
    significand = (bits & shape.fraction_mask) | (1 << shape.fraction)
    position = exponent + (62 - shape.bias - shape.fraction)          # 64 zeros stand before the binary point
    count, top, used = (3, 2, 9) if single else (6, 5, 40)
    words = window(position, [0, 0, *tables.TWO_OVER_PI][:used], count, top)
    limbs = [significand] if single else [significand & WORD, significand >> 32]
    product = multiply_modulo(limbs, words[::-1])
    quadrant = product[-1] >> 30
    fraction = [((product[i] << 2) | (product[i - 1] >> 30 if i else 0)) & WORD for i in range(count)]
    negative = fraction[-1] >> 31
    mask = -negative & WORD                           # the complement is the negation to 2^-94 or 2^-190
    terms = [
        (limb ^ mask).low_magic_to_float() * 2.0 ** (-32 * (count - i)) for i, limb in enumerate(fraction)
    ][::-1]
    high, low = terms[0], terms[0].splat(0.0)
    for term in terms[1:]:
        high, error = exact_sum_ordered(high, term)
        low = low + error
    sign = negative << 63
    return quadrant + negative, (high.bits() ^ sign).as_float(), (low.bits() ^ sign).as_float()


def reduce_large(x: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """(quadrant, r, r_low) in float64 for any finite x."""
    quadrant, high, low = payne_hanek(x)
    r, error = exact_product(high, high.splat(HALF_PI_64[0]))
    r, low = exact_sum_ordered(r, error + fma(high, HALF_PI_64[1], low * HALF_PI_64[0]))
    wide = x.widen() if x.is_single else x
    below = wide < 0.0
    return below.select(-quadrant, quadrant), below.select(-r, r), below.select(-low, low)


def reduce_angle(x: Lanes) -> tuple[Lanes, Lanes, Lanes | None]:
    """(quadrant, r, r_low): x = quadrant pi/2 + r + r_low modulo 2 pi; infinity gives NaN. r_low is None in float32."""
    magnitude = x.absolute()
    far = (magnitude >= (LIMIT_32 if x.is_single else LIMIT_64)) & (magnitude < math.inf)
    if x.is_single:

        def compute_single() -> Sequence[Lanes]:
            quadrant, r, _ = reduce_large(x)
            return quadrant.resize(32), r.narrow()

        quadrant, r = refine_where(far, reduce_single(x), compute_single)
        return quadrant, r, None
    quadrant, r, low = refine_where(far, reduce_double(x), lambda: reduce_large(x))
    return quadrant, r, low


# ---- sine, cosine, tangent ----


def sine_of_reduced(r: Lanes, low: Lanes | None) -> Lanes:
    z = r * r
    p = polynomial(z, tables.SIN_32 if r.is_single else tables.SIN_64)
    if low is None:
        return fma(r * z, p, r)
    return r + fma(r * z, p, fma(low, z * -0.5, low))


def cosine_of_reduced(r: Lanes, low: Lanes | None) -> Lanes:
    z = r * r
    p = polynomial(z, tables.COS_32 if r.is_single else tables.COS_64)
    half = z * 0.5
    leading = 1.0 - half
    tail = z * z * p
    if low is not None:
        tail = tail - r * low
    return leading + (((1.0 - leading) - half) + tail)


def odd_quadrant(quadrant: Lanes) -> Lanes:
    return ~((quadrant & 1).equals(0))


def sine_in_quadrant(quadrant: Lanes, r: Lanes, low: Lanes | None) -> Lanes:
    result = odd_quadrant(quadrant).select(cosine_of_reduced(r, low), sine_of_reduced(r, low))
    return (result.bits() ^ ((quadrant & 2) << (r.format.bits - 2))).as_float()


def tiny(x: Lanes) -> Lanes:
    """Where sin(x) = tan(x) = x to rounding; it also keeps -0 and subnormals."""
    return x.absolute() < (2.0**-13 if x.is_single else 2.0**-27)


def sin(x: Lanes) -> Lanes:
    return tiny(x).select(x, sine_in_quadrant(*reduce_angle(x)))


def cos(x: Lanes) -> Lanes:
    quadrant, r, low = reduce_angle(x)
    return sine_in_quadrant(quadrant + 1, r, low)


def tan(x: Lanes) -> Lanes:
    quadrant, r, low = reduce_angle(x)
    sine, cosine = sine_of_reduced(r, low), cosine_of_reduced(r, low)
    odd = odd_quadrant(quadrant)
    return tiny(x).select(x, odd.select(-cosine, sine) / odd.select(sine, cosine))


# ---- inverses ----


def half_pi(x: Lanes) -> tuple[float, float]:
    return HALF_PI_32 if x.is_single else HALF_PI_64


def arcsine_core(magnitude: Lanes) -> tuple[Lanes, Lanes]:
    """(folded, p): p = asin(magnitude), or where folded (above 1/2) asin(sqrt((1 - magnitude) / 2))."""
    folded = magnitude >= 0.5
    z = folded.select((1.0 - magnitude) * 0.5, magnitude * magnitude)
    s = folded.select(z.sqrt(), magnitude)
    return folded, fma(s * z, polynomial(z, tables.ASIN_32 if z.is_single else tables.ASIN_64), s)


def asin(x: Lanes) -> Lanes:
    folded, p = arcsine_core(x.absolute())
    high, low = half_pi(x)
    return folded.select(high - (p * 2.0 - low), p).with_sign_of(x)


def acos(x: Lanes) -> Lanes:
    folded, p = arcsine_core(x.absolute())
    high, low = half_pi(x)
    outer = p * 2.0
    outer = (x < 0.0).select(2 * high - (outer - 2 * low), outer)
    return folded.select(outer, high - (p.with_sign_of(x) - low))


def arctangent_of_ratio(low: Lanes, high: Lanes, may_overflow: bool) -> Lanes:
    """atan(low / high) for 0 <= low <= high; above tan(pi/8) it is pi/4 + atan((low - high) / (low + high))."""
    folded = low > high * math.tan(math.pi / 8)
    near, far = low, high
    if may_overflow:                                  # both are large or both small where folded
        scale = (high > 1.0).select(0.25, high.splat(4.0))
        near, far = low * scale, high * scale
    t = folded.select(near - far, low) / folded.select(near + far, high)
    z = t * t
    p = fma(t * z, polynomial(z, tables.ATAN_32 if t.is_single else tables.ATAN_64), t)
    quarter, rest = (part / 2 for part in half_pi(t))
    return folded.select(quarter + (p + rest), p)


def atan(x: Lanes) -> Lanes:
    a = x.absolute()
    steep = a > 1.0
    angle = arctangent_of_ratio(steep.select(1.0, a), steep.select(a, 1.0), may_overflow=False)
    high, low = half_pi(x)
    return steep.select(high - (angle - low), angle).with_sign_of(x)


def atan2(y: Lanes, x: Lanes) -> Lanes:
    a, b = y.absolute(), x.absolute()
    steep = a > b
    smaller, larger = steep.select(b, a), steep.select(a, b)
    both_infinite = smaller.equals(math.inf) & larger.equals(math.inf)
    larger = (both_infinite | larger.equals(0.0)).select(1.0, larger)
    smaller = both_infinite.select(1.0, smaller)
    angle = arctangent_of_ratio(smaller, larger, may_overflow=True)
    high, low = half_pi(x)
    left = x.bits() < 0
    flipped = steep ^ left
    base = steep.select(high, left.select(x.splat(2 * high), 0.0))
    base_low = steep.select(low, left.select(x.splat(2 * low), 0.0))
    angle = flipped.select(-angle, angle)
    return (base + (angle + base_low)).with_sign_of(y)
