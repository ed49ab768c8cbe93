"""A correctly rounded fused multiply-add over `Lanes`, also without the instruction.

What it does: `fused` is FMA. float32 goes through float64, which holds the product. For float64 the product and the sums are error-free
(Dekker's two-product, Knuth's two-sum), and the two errors are summed to odd before they meet the leading part (Boldo and Melquiond,
"Emulation of FMA and correctly rounded sums", IEEE Transactions on Computers 57, 2008). That asks for a product whose error is
representable and for sums in range. Vectors with a lane outside of that enter a second block: it works on significands near 1 with the
exponents apart, as wide as they become, and rounds a second time to odd, so that results which are not normal are rounded once too.
Guarantees: a * b + c rounded to nearest even once, for all operands; NaN, infinities and signs of zeros are those of IEEE 754.
"""

from __future__ import annotations

import math

from tilewright.backends.llvm.lanes import Lanes, exact_product, exact_sum, fma, refine_where
from tilewright.backends.llvm.math_division import scale_up

SMALLEST_PRODUCT = 2.0**-967      # twice the least whose 106 bits are all multiples of 2^-1074
FARTHEST = -200                   # powers of two between two terms: the smaller one only says that the other one is not all
EXPONENTS = (-1300, 1200)         # beyond these every result is zero or infinite
NO_EXPONENT = -5000               # of zero: below all others


def add_to_odd(a: Lanes, b: Lanes) -> Lanes:
    """a + b, rounded to the neighbour with an odd significand where it is not exact."""
    total, error = exact_sum(a, b)
    bits = total.bits()
    even = (bits & 1).equals(0)
    inexact = (error > 0.0) | (error < 0.0)
    away = ~((error < 0.0) ^ (total < 0.0))
    return (even & inexact).select(bits + away.select(bits.splat(1), -1), bits).as_float()


def leading_and_rest(product: Lanes, product_low: Lanes, c: Lanes) -> tuple[Lanes, Lanes]:
    """(leading, rest): product + product_low + c but for the bits of rest that rounding to odd has joined."""
    total, total_low = exact_sum(c, product_low)
    high, high_low = exact_sum(product, total)
    return high, add_to_odd(total_low, high_low)


def greater(a: Lanes, b: Lanes | int) -> Lanes:
    return (a > b).select(a, b)


def significand_and_exponent(x: Lanes) -> tuple[Lanes, Lanes]:
    """x = significand * 2^exponent with a significand of 1 to 2 and its sign; zeros, infinities and NaN are their own significand."""
    shape = x.format
    subnormal = x.absolute() < shape.smallest_normal
    normal = subnormal.select(x * 2.0**54, x)
    biased = normal.absolute().bits() >> shape.fraction
    exponent = biased - subnormal.select(biased.splat(shape.bias + 54), shape.bias)
    significand = (normal.bits() & (shape.sign | shape.fraction_mask) | shape.one).as_float()
    zero = x.equals(0.0)
    keeps = zero | ~(x.absolute() < math.inf)
    return keeps.select(x, significand), zero.select(NO_EXPONENT, exponent)


def fused_anywhere(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """float64: a * b + c rounded once, for operands of any exponent."""
    (a, a_exponent), (b, b_exponent), (c, c_exponent) = (significand_and_exponent(x) for x in (a, b, c))
    shape = a.format
    exponent = greater(a_exponent + b_exponent, c_exponent)    # of the result, about
    down = [((greater(own - exponent, FARTHEST) + shape.bias) << shape.fraction).as_float()
            for own in (a_exponent + b_exponent, c_exponent)]
    product, product_low = (part * down[0] for part in exact_product(a, b))
    c = c * down[1]
    lead, rest = exact_sum(*leading_and_rest(product, product_low, c))
    exponent = greater(exponent, EXPONENTS[0])
    exponent = (exponent > EXPONENTS[1]).select(EXPONENTS[1], exponent)
    # Where the result is not normal, a sum with its smallest normal number, brought to this scale, rounds at the right place.
    smallest = (greater(1 - exponent, 1) << shape.fraction).as_float()
    anchored, lost = exact_sum(smallest.with_sign_of(lead), lead)
    rounded = (anchored + add_to_odd(lost, rest)) - smallest.with_sign_of(lead)
    result = scale_up((lead.absolute() < smallest).select(rounded, lead), exponent).with_sign_of(lead)
    # Zeros have the sign of a rounded sum. The errors of infinities are no numbers.
    return (lead.equals(0.0) | ~(lead.absolute() < math.inf)).select(product + c, result)


def fused(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """a * b + c rounded once, also without the instruction."""
    if a.options.has_fma:
        return fma(a, b, c)
    if a.is_single:                                   # the product is exact in float64
        return add_to_odd(a.widen() * b.widen(), c.widen()).narrow()
    product, product_low = exact_product(a, b)
    lead, rest = leading_and_rest(product, product_low, c)
    result = lead + rest
    # Exact zeros have the sign of a rounded sum; that of a product which is zero itself is exact.
    result = result.equals(0.0).select(product + c, result)
    # Whatever overflows on the way leaves an infinity or NaN.
    small = product.absolute() < SMALLEST_PRODUCT
    beyond = ~(result.absolute() < math.inf)

    def anywhere() -> list[Lanes]:
        rare = beyond | (small & ~(a.equals(0.0) | b.equals(0.0)))
        return refine_where(rare, [result], lambda: [fused_anywhere(a, b, c)])

    return refine_where(small | beyond, [result], anywhere)[0]
