"""Exponentials, logarithms, hyperbolic functions, powers and the error function over `Lanes`.

What it does: each function takes and returns lanes of float32 or float64; those marked float64 are reached from float32 by
`via_double` in `math.py`. Methods: argument reduction by multiples of ln 2 in two parts (Cody and Waite, "Software Manual for the
Elementary Functions", 1980); minimax polynomials from `math_tables.py`; exponent and significand by integer operations (Muller,
"Elementary Functions", 3rd edition, chapters 9 and 11); log1p by the correction of Kahan and of fdlibm; logarithm and power in
double-double (Dekker 1971; Tang 1990); erfc by the mapped argument of Shepherd and Laframboise (Mathematics of Computation 36, 1981).
Assumes: round to nearest, subnormals on. Guarantees: C99 special values; the error of each function stands in `math.py`.
"""

from __future__ import annotations

import math

from tilewright.backends.llvm import math_tables as tables
from tilewright.backends.llvm.lanes import (
    Lanes,
    Number,
    exact_product,
    exact_sum,
    exact_sum_ordered,
    fma,
    polynomial,
    unless_rare,
)

# ln 2 = high + low; k * high is exact for every exponent k, so no FMA is needed for it.
LN2_32 = (0.693115234375, 3.194618329871446e-05)
LN2_64 = (0.6931471803691238, 1.9082149292705877e-10)
LN2_LONG_64 = (0.6931471805598903, 5.497923018708371e-14)             # high has 42 bits: for the double-double logarithm
INVERSE_LN2 = (1.4423828125, 0.00031222839606925845, 1.4426950365304947, 4.3584687174185184e-09)
INVERSE_LN10 = (0.4342041015625, 9.038033749675378e-05, 0.434294480830431, 1.0728208431540585e-09)
LOG10_2 = (0.301025390625, 4.605039066518657e-06, 0.30102999566361177, 3.694239077158931e-13)
SQRT_HALF = math.sqrt(0.5)
TWO_THIRDS = (2 / 3, 3.700743415417188e-17)                            # 2/3 in double-double


def pick(x: Lanes, single: Number, double: Number) -> Number:
    """The constant for the format of `x`."""
    return single if x.is_single else double


# ---- exponentials ----


def reduce_by_ln2(x: Lanes, low: Lanes | None = None) -> tuple[Lanes, Lanes, Lanes]:
    """(z, n, r): x + low = n ln 2 + r, |r| <= ln 2 / 2, and z = n + magic, whose low bits are the integer n."""
    high_part, low_part = LN2_32 if x.is_single else LN2_64
    z = fma(x, 1 / math.log(2), x.format.magic)
    n = z - x.format.magic
    r = fma(n, -low_part, fma(n, -high_part, x))
    return z, n, r if low is None else r + low


def exp_minus_one(r: Lanes) -> Lanes:
    """exp(r) - 1 for |r| <= ln 2 / 2, to the accuracy that exp needs."""
    tail = polynomial(r, tables.EXP_32 if r.is_single else tables.EXP_64)
    return fma(tail, r * r, r)                        # the square last: it would take a register all the way


def exp_minus_one_relative(r: Lanes) -> Lanes:
    """The same with small relative error: one degree more."""
    tail = polynomial(r, tables.EXPM1_32 if r.is_single else tables.EXPM1_64)
    return fma(tail, r * r, r)


def power_of_two(z: Lanes, plus: int = 0) -> Lanes:
    """2^(n + plus) where z = n + magic; the exponent must be that of a normal number."""
    shape = z.format
    return ((z.bits() << shape.fraction) + ((shape.bias + plus) << shape.fraction)).as_float()


def two_powers(z: Lanes) -> tuple[Lanes, Lanes]:
    """Two normal powers of two whose product is 2^n where z = n + magic: what is scaled by the one and then by the other overflows
    or becomes subnormal in the second step only, and is rounded once. The second is half the range of exponents in the direction of
    n, so a value near 1 and |n| up to 3/2 of the bias will do."""
    shape = z.format
    half = (shape.bias + 1) // 2 << shape.fraction
    power = z.bits() << shape.fraction
    step = (power < 0).select(power.splat(shape.one + half), shape.one - half)
    return (power + step).as_float(), (2 * shape.one - step).as_float()


def scale_by_power(p: Lanes, z: Lanes) -> Lanes:
    """p * 2^n where z = n + magic."""
    first, second = two_powers(z)
    return p * first * second


def exp_from_parts(z: Lanes, r: Lanes) -> Lanes:
    """exp(n ln 2 + r) where z = n + magic: exp(r) - 1 is scaled by a power of two and that power added, so that the sum with 1 is
    no operation of its own; or by an instruction for that."""
    if z.is_single and z.options.has_avx512:
        return (exp_minus_one(r) + 1.0).scaled(z - z.format.magic)
    first, second = two_powers(z)
    return fma(exp_minus_one(r), first, first) * second


def exp_bounds(x: Lanes) -> tuple[float, float]:
    """Below the first exp rounds to 0, above the second it overflows; both keep 2^(n/2) normal."""
    return (-104.0, 89.0) if x.is_single else (-746.0, 710.0)


def exp(x: Lanes) -> Lanes:
    """Where all results are normal, n is added to the exponent, which is as exact as two products and takes less than half of that."""
    low, high = exp_bounds(x)

    def anywhere() -> Lanes:
        z, _, r = reduce_by_ln2(x.clamp_low(low).clamp_high(high))
        return exp_from_parts(z, r)

    def normal() -> Lanes:
        z, _, r = reduce_by_ln2(x)
        return ((exp_minus_one(r) + 1.0).bits() + (z.bits() << x.format.fraction)).as_float()

    if x.is_single and x.options.has_avx512:
        return anywhere()
    shape = x.format
    magnitude = (x.bits() & (shape.sign - 1)).largest(256 // shape.bits)
    return unless_rare(magnitude > shape.bits_of(pick(x, 86.0, 706.0)), anywhere, normal)


def exp_of_negative(x: Lanes) -> Lanes:
    """exp(x) for x <= 0 or NaN."""
    z, _, r = reduce_by_ln2(x.clamp_low(exp_bounds(x)[0]))
    return exp_from_parts(z, r)


def exp2(x: Lanes) -> Lanes:
    low, high = (-151.0, 129.0) if x.is_single else (-1076.0, 1025.0)
    x = x.clamp_low(low).clamp_high(high)
    z = x + x.format.magic
    n = z - x.format.magic
    return exp_from_parts(z, (x - n) * math.log(2))


def quarter_expm1(x: Lanes) -> tuple[Lanes, Lanes]:
    """(q, t) with 4q = t = expm1(x): q does not overflow before cosh does, t is exact to a relative error also near 0."""
    z, n, r = reduce_by_ln2(x)
    p = exp_minus_one_relative(r)
    scale = power_of_two(z, -2)
    quarter = fma(p, scale, scale - 0.25)             # p * scale is exact: no FMA needed
    return quarter, n.equals(0.0).select(p, quarter * 4.0)


def expm1(x: Lanes) -> Lanes:
    _, high = exp_bounds(x)
    _, result = quarter_expm1(x.clamp_low(pick(x, -18.0, -38.0)).clamp_high(high))
    return result.with_sign_of(x)


def sigmoid(x: Lanes) -> Lanes:
    """1 / (1 + exp(-x)), by exp(-|x|) so that nothing overflows and both tails keep their accuracy."""
    small = exp_of_negative(-x.absolute())
    return (x < 0.0).select(small, 1.0) / (small + 1.0)


def tanh(x: Lanes) -> Lanes:
    """expm1(2a) / (expm1(2a) + 2) with the sign of x; past the clamp it is 1 to rounding."""
    double_angle = x.absolute().clamp_high(pick(x, 10.0, 22.0)) * 2.0
    z, _, r = reduce_by_ln2(double_angle)
    p, scale = exp_minus_one_relative(r), power_of_two(z)
    t = fma(p, scale, scale - 1.0)
    return (t / (t + 2.0)).with_sign_of(x)


def sinh(x: Lanes) -> Lanes:
    magnitude = x.absolute()
    quarter, t = quarter_expm1(magnitude.clamp_high(pick(x, 89.5, 710.6)))
    large = magnitude > pick(x, 12.0, 24.0)           # exp(-2a) vanishes against 1
    return large.select(fma(quarter, 2.0, 0.5), (t + t / (t + 1.0)) * 0.5).with_sign_of(x)


def cosh(x: Lanes) -> Lanes:
    z, _, r = reduce_by_ln2(x.absolute().clamp_high(pick(x, 89.5, 710.6)))
    scale = power_of_two(z, -2)
    quarter = fma(exp_minus_one(r), scale, scale)     # exp(|x|) / 4: overflows only where cosh does
    return fma(quarter, 2.0, 0.125 / quarter)


# ---- logarithms ----


def split_exponent(x: Lanes) -> tuple[Lanes, Lanes]:
    """(k, m): x = 2^k m with m in [sqrt(1/2), sqrt(2)), for positive finite x, subnormal too; k is a float."""
    shape = x.format
    step = shape.fraction + 1
    subnormal = x < shape.smallest_normal
    normal = subnormal.select(x * 2.0**step, x)
    root = shape.bits_of(SQRT_HALF)
    shifted = normal.bits() + (shape.one - root)
    anchor = 2.0**shape.fraction                      # low_magic_to_float's, subtracted together with the bias
    biased = ((shifted >> shape.fraction) | shape.bits_of(anchor)).as_float()
    k = biased - subnormal.select(biased.splat(anchor + shape.bias + step), anchor + shape.bias)
    return k, ((shifted & shape.fraction_mask) + root).as_float()


def log_tail(f: Lanes) -> Lanes:
    """log(1 + f) - (f - f^2/2) for 1 + f in [sqrt(1/2), sqrt(2))."""
    if f.is_single:
        return f * (f * f) * polynomial(f, tables.LOG_32)
    s = f / (f + 2.0)
    z = s * s
    return s * fma(z, polynomial(z, tables.LOG_64), f * f * 0.5)


def log_from_parts(k: Lanes, f: Lanes, correction: Lanes | None = None) -> Lanes:
    """k ln 2 + log(1 + f) + correction. In float32 log(1 + f) is f + f^2 (f P(f) - 1/2), where each sum is part of a product; in
    float64 it is summed from the smallest term."""
    high, low = LN2_32 if f.is_single else LN2_64
    if f.is_single:
        curved = fma(f, polynomial(f, tables.LOG_32), -0.5)
        if correction is None:
            return fma(k, high, fma(f * f, curved, fma(k, low, f)))
        return fma(k, high, f + fma(f * f, curved, fma(k, low, correction)))
    small = fma(k, low, log_tail(f))
    if correction is not None:
        small = small + correction
    return fma(k, high, f - (f * f * 0.5 - small))


def log_limits(x: Lanes, result: Lanes) -> Lanes:
    """`result` for positive finite x; log's limits elsewhere."""
    result = (x < math.inf).select(result, x)         # infinity and NaN
    result = (x.bits() < 0).select(math.nan, result)
    return x.equals(0.0).select(-math.inf, result)


def log(x: Lanes) -> Lanes:
    k, m = split_exponent(x)
    return log_limits(x, log_from_parts(k, m - 1.0))


def log_scaled(f: Lanes, inverse: tuple[float, float, float, float]) -> tuple[Lanes, Lanes]:
    """log(1 + f) times the constant `inverse`, as an unevaluated sum (as in FreeBSD's e_log2.c)."""
    inverse_high, inverse_low = inverse[:2] if f.is_single else inverse[2:]
    half_square = f * f * 0.5
    keep = f.format.fraction // 2 + 1
    high = ((f - half_square).bits() & -(1 << keep)).as_float()       # short: its product with inverse_high is exact
    low = ((f - high) - half_square) + log_tail(f)
    return high * inverse_high, fma(low, inverse_high, (low + high) * inverse_low)


def log2(x: Lanes) -> Lanes:
    k, m = split_exponent(x)
    high, low = log_scaled(m - 1.0, INVERSE_LN2)
    total, rest = exact_sum_ordered(k, high)
    return log_limits(x, total + (rest + low))


def log10(x: Lanes) -> Lanes:
    k, m = split_exponent(x)
    high, low = log_scaled(m - 1.0, INVERSE_LN10)
    step_high, step_low = LOG10_2[:2] if x.is_single else LOG10_2[2:]
    total, rest = exact_sum(k * step_high, high)
    return log_limits(x, total + (rest + fma(k, step_low, low)))


def log1p_plus(x: Lanes, extra: Lanes | None = None) -> Lanes:
    """log(1 + x) + extra ln 2, for x > -1; the rounding error e of 1 + x returns as e / (1 + x)."""
    total, error = exact_sum(x.splat(1.0), x)
    k, m = split_exponent(total)
    result = log_from_parts(k if extra is None else k + extra, m - 1.0, error / total)
    return (x < math.inf).select(result, x)


def log1p(x: Lanes) -> Lanes:
    result = (x < -1.0).select(math.nan, log1p_plus(x).with_sign_of(x))
    return x.equals(-1.0).select(-math.inf, result)


def huge(x: Lanes) -> Lanes:
    """Where asinh and acosh are log(2x): 1/x^2 vanishes and x^2 might overflow."""
    return x > pick(x, 2.0**14, 2.0**28)


def asinh(x: Lanes) -> Lanes:
    a = x.absolute()
    large = huge(a)
    square = a * a
    argument = large.select(a - 1.0, a + square / (1.0 + (square + 1.0).sqrt()))
    return log1p_plus(argument, large.select(1.0, a.splat(0.0))).with_sign_of(x)


def acosh(x: Lanes) -> Lanes:
    large = huge(x)
    t = x - 1.0
    argument = large.select(t, t + (t * (x + 1.0)).sqrt())
    return (x < 1.0).select(math.nan, log1p_plus(argument, large.select(1.0, x.splat(0.0))))


def atanh(x: Lanes) -> Lanes:
    """log1p(2a / (1 - a)) / 2; below 1/2 the argument is 2a + 2a^2 / (1 - a), which rounds better."""
    a = x.absolute()
    twice, rest = a + a, 1.0 - a
    argument = (a < 0.5).select(fma(twice, a / rest, twice), twice / rest)
    result = (argument < -1.0).select(math.nan, log1p_plus(argument))
    return (result * 0.5).with_sign_of(x)


# ---- powers ----


def log_double_double(x: Lanes) -> tuple[Lanes, Lanes]:
    """(high, low): log(x) to about 2^-64 of itself, for positive finite float64 x.

    With s = f / (2 + f): log(1 + f) = 2s + s^3 (2/3 + s^2 q(s^2)), all but q in double-double.
    """
    k, m = split_exponent(x)
    f = m - 1.0
    d, d_low = exact_sum(m, 1.0)
    s = f / d
    product, error = exact_product(s, d)
    s_low = (((f - product) - error) - s * d_low) / d
    w, w_low = exact_product(s, s)
    w_low = fma(s * 2.0, s_low, w_low)
    inner, inner_low = exact_sum_ordered(w.splat(TWO_THIRDS[0]), w * polynomial(w, tables.LOG_TAIL_64))
    inner_low = inner_low + TWO_THIRDS[1]
    cube, cube_low = exact_product(s, w)
    cube_low = cube_low + fma(s, w_low, s_low * w)
    term, term_low = exact_product(cube, inner)
    term_low = term_low + fma(cube, inner_low, cube_low * inner)
    total, rest_1 = exact_sum_ordered(k * LN2_LONG_64[0], s * 2.0)
    total, rest_2 = exact_sum_ordered(total, term)
    return exact_sum_ordered(total, rest_1 + (rest_2 + (term_low + fma(k, LN2_LONG_64[1], s_low * 2.0))))


def pow_magnitude(base: Lanes, y: Lanes, for_single: bool) -> Lanes:
    """base^y for positive finite base: exp(y log(base)); from float32 operands a logarithm in one double is enough."""
    y = y.clamp_low(-(2.0**65)).clamp_high(2.0**65)   # past this the power is 0, 1 or infinite, and products stay finite
    low, high = exp_bounds(base)
    if for_single:
        k, m = split_exponent(base)
        power = y * log_from_parts(k, m - 1.0)
        z, _, r = reduce_by_ln2(power.clamp_low(low).clamp_high(high))
    else:
        log_high, log_low = log_double_double(base)
        power, error = exact_product(log_high, y)
        error = fma(log_low, y, error)
        error = (power.absolute() < 1000.0).select(error, 0.0)
        z, _, r = reduce_by_ln2(power.clamp_low(low).clamp_high(high), error)
    return exp_from_parts(z, r)


def pow_double(x: Lanes, y: Lanes, for_single: bool = False) -> Lanes:
    """x^y in float64 with the special values of C99 F.9.4.4."""
    base = x.absolute()
    result = pow_magnitude(base, y, for_single)
    # A base of 0 or infinity: 0 or infinity, by the sign of y.
    is_zero = base.equals(0.0)
    limit = (is_zero ^ (y < 0.0)).select(x.splat(0.0), math.inf)
    limit = base.equals(math.inf).select((y < 0.0).select(x.splat(0.0), math.inf), limit)
    result = (is_zero | base.equals(math.inf)).select(limit, result)
    # A negative base: the sign of an odd power, no real value for a power that is no integer.
    half = y * 0.5
    integer = y.truncate().equals(y)
    odd = integer & ~half.truncate().equals(half)
    result = (odd & (x.bits() < 0)).select(-result, result)
    undefined = (x < 0.0) & (base < math.inf) & ~integer
    result = undefined.select(math.nan, result)
    result = (x.is_nan() | y.is_nan()).select(math.nan, result)
    return (x.equals(1.0) | y.equals(0.0)).select(1.0, result)


def cbrt(x: Lanes) -> Lanes:
    """float64: x = 2^(3q) m with m in [0.35, 2.83]; two steps of Halley, and one of Newton on an exact residual."""
    a = x.absolute()
    k, m = split_exponent(a)
    z = fma(k, 1 / 3, x.format.magic)
    remainder = k - (z - x.format.magic) * 3.0
    m = m * (remainder > 0.0).select(2.0, (remainder < 0.0).select(m.splat(0.5), 1.0))
    t = polynomial(m, tables.CBRT_64)
    for _ in range(2):
        cube = t * t * t
        t = t * (fma(m, 2.0, cube) / fma(cube, 2.0, m))
    square, square_low = exact_product(t, t)
    cube, cube_low = exact_product(square, t)
    t = t - ((cube - m) + fma(square_low, t, cube_low)) / (square * 3.0)
    result = (t * power_of_two(z)).with_sign_of(x)
    return ((a > 0.0) & (a < math.inf)).select(result, x)


def hypot(x: Lanes, y: Lanes) -> Lanes:
    """float64: sqrt(x^2 + y^2), scaled by a power of two so that no square overflows or vanishes."""
    a, b = x.absolute(), y.absolute()
    infinite = a.equals(math.inf) | b.equals(math.inf)
    larger, smaller = (a < b).select(b, a), (a < b).select(a, b)
    big, small = larger > 2.0**500, larger < 2.0**-500
    scale = big.select(2.0**-600, small.select(x.splat(2.0**600), 1.0))
    back = big.select(2.0**600, small.select(x.splat(2.0**-600), 1.0))
    larger, smaller = larger * scale, smaller * scale
    return infinite.select(math.inf, fma(larger, larger, smaller * smaller).sqrt() * back)


# ---- the error function ----


def erfc_of_positive(a: Lanes) -> Lanes:
    """float64, a >= 0: exp(-a^2) P(t) / (1 + 2a), t = (a - 4) / (a + 4); the square is kept exactly."""
    a = a.clamp_high(28.0)
    square, error = exact_product(a, a)
    z, _, r = reduce_by_ln2(-square, -error)
    p = polynomial((a - 4.0) / (a + 4.0), tables.ERFC_64)
    return scale_by_power(fma(exp_minus_one(r), p, p) / fma(a, 2.0, 1.0), z)


def erf_of_small(x: Lanes, square: Lanes) -> Lanes:
    """erf(x) for |x| <= 1."""
    return fma(x, polynomial(square, tables.ERF_32 if x.is_single else tables.ERF_64), x)


def erfc(x: Lanes) -> Lanes:
    """float64; near 0 it is 1 - erf(x), whose rounding is better than that of the quotient."""
    a = x.absolute()
    result = erfc_of_positive(a)
    result = (x < 0.0).select(2.0 - result, result)
    return (a < 0.5).select(1.0 - erf_of_small(x, x * x), result)


def erf(x: Lanes) -> Lanes:
    """float32 with AVX-512: x / 2 + x P(t), P by sixteenths of [0, 4]. Otherwise x + x P(x^2) up to 1; beyond, 1 minus a
    polynomial (float32) or minus erfc (float64)."""
    if x.is_single and x.options.has_avx512:
        return erf_by_tables(x)
    a = x.absolute()
    if x.is_single:
        outer = 1.0 - polynomial(a.clamp_high(4.0) - 2.375, tables.ERF_OUTER_32)
    else:
        outer = 1.0 - erfc_of_positive(a)
    return (a < 1.0).select(erf_of_small(a, a * a), outer).with_sign_of(x)


def erf_by_tables(x: Lanes) -> Lanes:
    """float32: coefficients of the nearest of 16 places, `ERF_STEP` apart; from 3.97 on the result is 1."""
    x = x.clamp_low(-3.97).clamp_high(3.97)
    a = x.absolute()
    shifted = fma(a, 1 / tables.ERF_STEP, x.format.magic)
    place = shifted.bits()
    t = fma(shifted - x.format.magic, -tables.ERF_STEP, a)
    *others, total = (place.looked_up(table) for table in tables.ERF_TABLES_32)
    for coefficient in reversed(others):
        total = fma(total, t, coefficient)
    return fma(total, x, x * 0.5)
