"""Remainders and floor division over `Lanes`.

What it does: `fmod` subtracts multiples of the divisor, as many bits of the quotient at a time as one exact product allows, in a loop
that all lanes share (one turn for quotients below 2^50; the method of long division in the spirit of fdlibm's e_fmod.c, with
floating quotients). `floor_mod` and `floor_divide` are NumPy's `remainder` and `floor_divide` (npy_divmod), step by step.
Guarantees: fmod is exact for all operands.
"""

from __future__ import annotations

import math

from tilewright.backends.llvm.lanes import Lanes, exact_sum, fma

SPLIT = 27                  # bits cleared to have two halves of a float64


def divisor_exponent(d: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """(normal, exponent, shift): d = normal * 2^-shift with a normal significand; exponent is d's own, biased, perhaps negative."""
    subnormal = d < d.format.smallest_normal
    normal = subnormal.select(d * 2.0**54, d)
    exponent = normal.bits() >> d.format.fraction
    shift = subnormal.select(exponent.splat(54), 0)
    return normal, exponent - shift, shift


def scale_up(normal: Lanes, exponent: Lanes) -> Lanes:
    """normal * 2^exponent for an exponent of -2044 to 2046, where the result is representable; in two steps to reach every exponent."""
    first = ((exponent + 4096) >> 1) - 2048
    second = exponent - first
    shape = normal.format
    factors = [((part << shape.fraction) + shape.one).as_float() for part in (first, second)]
    return normal * factors[0] * factors[1]


def subtract_multiple(r: Lanes, quotient: Lanes, d: Lanes) -> Lanes:
    """r - quotient * d, exact because the result is representable."""
    if r.options.has_fma:
        return fma(-quotient, d, r)
    high = (d.bits() & -(1 << SPLIT)).as_float()
    total, error = exact_sum(r, -(quotient * high))
    return (total - quotient * (d - high)) + error


def reduce_once(r: Lanes, normal: Lanes, exponent: Lanes, shift: Lanes) -> Lanes:
    """r modulo d 2^e for the e >= 0 that makes the quotient just fit: at most 50 bits with FMA, 20 without."""
    step = 50 if r.options.has_fma else 20
    own = r.bits() >> r.format.fraction
    raise_by = own - exponent - step
    # A subnormal r says too large an exponent; its quotient fits without scaling, since d is subnormal too.
    raise_by = ((raise_by < 0) | own.equals(0)).select(raise_by.splat(0), raise_by)
    scaled = scale_up(normal, raise_by - shift)
    rest = subtract_multiple(r, (r / scaled).truncate(), scaled)
    return (rest < 0.0).select(rest + scaled, rest)   # the rounded quotient may be one too large


def remainder_of_positive(a: Lanes, d: Lanes) -> Lanes:
    """a modulo d for finite a >= 0, d > 0: a loop until it holds in every lane; the builder then stands in a new block."""
    builder = a.builder
    normal, exponent, shift = divisor_exponent(d)
    before = builder.block
    enter = (a >= d).any()
    body = builder.append_basic_block("fmod.reduce")
    done = builder.append_basic_block("fmod.done")
    builder.cbranch(enter, body, done)
    builder.position_at_end(body)
    phi = builder.phi(a.value.type)
    rest = reduce_once(a.new(phi), normal, exponent, shift)
    again = (rest >= d).any()
    phi.add_incoming(a.value, before)
    phi.add_incoming(rest.value, builder.block)
    last = builder.block
    builder.cbranch(again, body, done)
    builder.position_at_end(done)
    result = builder.phi(a.value.type)
    result.add_incoming(a.value, before)
    result.add_incoming(rest.value, last)
    return a.new(result)


def fmod(x: Lanes, y: Lanes) -> Lanes:
    """float64: C's fmod, exact."""
    a, d = x.absolute(), y.absolute()
    regular = (a < math.inf) & (d > 0.0) & (d < math.inf)
    rest = remainder_of_positive(regular.select(a, 0.0), regular.select(d, 1.0))
    keeps = (a < math.inf) & d.equals(math.inf)
    return regular.select(rest, keeps.select(a, math.nan)).with_sign_of(x)


def floor_mod_from(y: Lanes, rest: Lanes) -> tuple[Lanes, Lanes]:
    """(adjusted, remainder): C's remainder made to have the sign of the divisor, as Python does; NaN where y is 0."""
    zero = rest.equals(0.0)
    adjusted = ((y < 0.0) ^ (rest < 0.0)) & ~zero
    moved = adjusted.select(rest + y, rest)
    moved = zero.select(rest.splat(0.0).with_sign_of(y), moved)
    return adjusted, y.equals(0.0).select(math.nan, moved)


def floor_divide_from(x: Lanes, y: Lanes, rest: Lanes) -> Lanes:
    """NumPy's floor_divide: (x - rest) / y is nearly an integer; snapped to it."""
    adjusted, _ = floor_mod_from(y, rest)
    quotient = (x - rest) / y
    quotient = adjusted.select(quotient - 1.0, quotient)
    floor = quotient.floor()
    floor = (quotient - floor > 0.5).select(floor + 1.0, floor)
    ratio = x / y
    floor = quotient.equals(0.0).select(quotient.splat(0.0).with_sign_of(ratio), floor)
    return y.equals(0.0).select(ratio, floor)
