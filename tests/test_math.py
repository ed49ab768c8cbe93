"""Vector math against wider references: errors in units in the last place, special values, and that nothing is called."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from llvmlite import ir

from benchmarks.exhaustive_math import measure
from benchmarks.math_harness import (
    AVX512,
    BASELINE,
    HOST,
    SPECIALS,
    Array,
    Loop,
    Machine,
    assembly,
    error_function,
    errors_in_ulps,
    reference,
    sample,
)
from tilewright.backends.llvm.math import MATH, emit_math
from tilewright.backends.llvm.targets import resolve_target
from tilewright.ir.ops.scalar import SCALARS

INF, NAN = math.inf, math.nan
EXACT_FROM_NUMPY = ("floor_mod", "floor_divide")      # defined by NumPy's own steps in the same precision
SAMPLED = [name for name in MATH if name not in ("fma", *EXACT_FROM_NUMPY)]
VARIANTS = [
    pytest.param(HOST, 8, id="avx2-8"), pytest.param(HOST, 1, id="avx2-1"),
    pytest.param(BASELINE, 8, id="sse2-8"), pytest.param(BASELINE, 1, id="sse2-1"),
]


def operands_of(name: str, dtype: str, count: int) -> list[Array]:
    """Samples; for two operands also every pair of special values."""
    operands = MATH[name].operands
    samples = [np.random.default_rng(7 + i).permutation(sample(dtype, count, seed=i)) for i in range(operands)]
    pairs = np.meshgrid(*[SPECIALS.astype(dtype)] * operands)
    return [np.concatenate([pair.ravel(), values]) for pair, values in zip(pairs, samples)]


def check(name: str, dtype: str, machine: Machine, width: int, count: int) -> None:
    operands = operands_of(name, dtype, count)
    found = Loop(name, dtype, width, machine)(*operands)
    errors = errors_in_ulps(found, reference(name, *operands))
    worst = int(np.argmax(errors))
    bound = MATH[name].ulps[0 if dtype == "float32" else 1]
    where = ", ".join(repr(x[worst]) for x in operands)
    assert errors[worst] <= bound, f"{name}({where}) = {found[worst]!r}: {errors[worst]:.4g} ulp > {bound}"


@pytest.mark.parametrize("name", SAMPLED)
def test_float32(name: str) -> None:
    check(name, "float32", HOST, 8, 20_000)


@pytest.mark.parametrize("name", SAMPLED)
def test_float64(name: str) -> None:
    check(name, "float64", HOST, 4, 20_000)


@pytest.mark.parametrize("name", SAMPLED)
def test_baseline_float32(name: str) -> None:
    check(name, "float32", BASELINE, 4, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("machine", "width"), VARIANTS)
@pytest.mark.parametrize("name", SAMPLED)
def test_many(name: str, dtype: str, machine: Machine, width: int) -> None:
    check(name, dtype, machine, width, 300_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exp", "log", "sin", "cos", "tanh", "erf", "sigmoid"])
def test_every_1009th_float(name: str) -> None:
    """The exhaustive measurement itself, on a sample that meets every exponent."""
    greatest, where, wrong = measure(name, 1009, HOST)
    assert wrong == 0
    assert greatest <= MATH[name].ulps[0], where


needs_avx512 = pytest.mark.skipif(not resolve_target("cpu").has_avx512, reason="this CPU has no AVX-512")


@needs_avx512
@pytest.mark.parametrize("name", [name for name in SAMPLED if MATH[name].operands == 1])
def test_avx512_float32(name: str) -> None:
    check(name, "float32", AVX512, 16, 20_000)


@needs_avx512
def test_lookups_in_tables() -> None:
    """The bits are those of any number of lanes, also at the ends of the tables."""
    x = np.concatenate([operands_of("erf", "float32", 20_000)[0], np.linspace(3.8, 4.2, 5000, dtype=np.float32)])
    found = Loop("erf", "float32", 16, AVX512)(x)
    assert errors_in_ulps(found, reference("erf", x)).max() <= MATH["erf"].ulps[0]
    assert np.nanmax(np.abs(found)) == 1 and (found[x > 4] == 1).all() and (found[x < -4] == -1).all()
    for width in (1, 4, 8, 12, 24, 48):
        assert same_bits(Loop("erf", "float32", width, AVX512)(x), found), width


@needs_avx512
@pytest.mark.parametrize("name", ["exp", "exp2"])
def test_an_instruction_scales_as_two_products_do(name: str) -> None:
    """From the least subnormal result to the greatest finite one, and beyond both."""
    x = np.concatenate([operands_of(name, "float32", 20_000)[0], np.linspace(-160, 140, 30_000, dtype=np.float32)])
    wanted = Loop(name, "float32", 8, HOST)(x)
    for width in (1, 8, 16, 48):
        assert same_bits(Loop(name, "float32", width, AVX512)(x), wanted), width


def same_bits(a: Array, b: Array) -> bool:
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


@pytest.mark.parametrize(("machine", "width"), VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EXACT_FROM_NUMPY)
def test_floor_division_has_the_bits_of_numpy(name: str, dtype: str, machine: Machine, width: int) -> None:
    x, y = operands_of(name, dtype, 20_000)
    small = np.random.default_rng(1).integers(-40, 40, (2, 4000)).astype(dtype)
    x, y = np.concatenate([x, small[0], small[0] / 10]), np.concatenate([y, small[1], small[1] / 10])
    with np.errstate(all="ignore"):
        wanted = (np.remainder if name == "floor_mod" else np.floor_divide)(x, y)
    found = Loop(name, dtype, width, machine)(x, y)
    same = (found == wanted) & (np.signbit(found) == np.signbit(wanted)) | np.isnan(found) & np.isnan(wanted)
    assert same.all(), [(x[i], y[i], found[i], wanted[i]) for i in np.flatnonzero(~same)[:3]]


@pytest.mark.parametrize("machine", [HOST, BASELINE], ids=lambda machine: machine.name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fma_rounds_once(dtype: str, machine: Machine) -> None:
    """Against exact fractions, with sums chosen to cancel."""
    generator = np.random.default_rng(3)
    a, b = (generator.uniform(-2, 2, 4000) * 2.0 ** generator.integers(-20, 20, 4000) for _ in range(2))
    a, b = a.astype(dtype), b.astype(dtype)
    scale = np.where(generator.integers(0, 2, 4000), 1, 2.0 ** generator.integers(-60, 30, 4000))
    c = (-(a.astype(np.float64) * b) * scale).astype(dtype)
    found = Loop("fma", dtype, 8, machine)(a, b, c)
    for x, y, z, result in zip(a, b, c, found):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(result)) - exact)
        for neighbour in np.nextafter(result, np.array([-INF, INF], dtype)):
            assert error <= abs(Fraction(float(neighbour)) - exact), (x, y, z, result)


@pytest.mark.parametrize("machine", [HOST, BASELINE], ids=lambda machine: machine.name)
def test_fma_specials(machine: Machine) -> None:
    grid = np.array([0.0, -0.0, 1.0, -1.0, 3.5, INF, -INF, NAN], np.float64)
    a, b, c = (x.ravel() for x in np.meshgrid(grid, grid, grid))
    with np.errstate(all="ignore"):
        wanted = a * b + c                            # exact on this grid
    for dtype in ("float32", "float64"):
        found = Loop("fma", dtype, 8, machine)(*(x.astype(dtype) for x in (a, b, c)))
        np.testing.assert_array_equal(found, wanted)
        numbers = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(wanted[numbers]))


def numbers_of_exponents(exponents: Array, generator: np.random.Generator, dtype: str) -> Array:
    """Numbers with these biased exponents, clipped to the finite ones, 0 for subnormals; significands full, short or half empty."""
    fraction, top, bits = (23, 254, np.uint32) if dtype == "float32" else (52, 2046, np.uint64)
    count = exponents.size
    masks = np.array([-1, 15 << (fraction - 4), -(1 << (fraction // 2))]).astype(bits)[generator.integers(0, 3, count)]
    significands = generator.integers(0, 1 << fraction, count).astype(bits) & masks
    signs = generator.integers(0, 2, count).astype(bits) << (bits(0).itemsize * 8 - 1)
    return (signs | np.clip(exponents, 0, top).astype(bits) << fraction | significands).view(dtype)


def fma_operands(dtype: str, count: int, seed: int) -> tuple[Array, Array, Array]:
    """Numbers of the whole range: products in the middle and at both ends, addends of about their size, some of which cancel them."""
    generator = np.random.default_rng(seed)
    top = 254 if dtype == "float32" else 2046
    first = generator.integers(0, top + 1, count)
    middle = generator.choice([0, top // 2, -top // 2], count) + generator.integers(-70, 71, count)
    second = np.clip(np.where(generator.random(count) < 0.25, generator.integers(0, top + 1, count), top - first + middle), 0, top)
    third = first + second - top // 2 + generator.integers(-110, 111, count)
    a, b, c = (numbers_of_exponents(exponents, generator, dtype) for exponents in (first, second, third))
    with np.errstate(all="ignore"):
        cancelling = -(a * b)
    return a, b, np.where((generator.random(count) < 0.3) & np.isfinite(cancelling), cancelling, c)


def rounded(exact: Fraction, dtype: str) -> float:
    """To nearest even, of exact arithmetic on integers: what does not depend on any floating-point unit."""
    fraction, lowest, top = (23, -149, 128) if dtype == "float32" else (52, -1074, 1024)
    size = abs(exact)
    unit = max(size.numerator.bit_length() - size.denominator.bit_length() - fraction - 1, lowest)
    while size >= 2 * Fraction(2)**(unit + fraction):
        unit += 1
    value = round(size / Fraction(2)**unit) * Fraction(2)**unit           # Python rounds halves to even
    sign = -1.0 if exact < 0 else 1.0                                     # the sum itself may be too large for a float
    return sign * (INF if value >= Fraction(2)**top else float(value))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("machine", "width"), VARIANTS)
def test_fma_is_exact_for_all_exponents(dtype: str, machine: Machine, width: int) -> None:
    """Overflowing and vanishing products, subnormal results, ties and cancellations; the operation's meaning is the same."""
    operands = fma_operands(dtype, 3000, seed=11)
    largest = float(np.finfo(dtype).max)
    edges = np.array([largest, -largest, 1.5, -2.0, 0.5, 2.0**-20, float(np.finfo(dtype).smallest_subnormal), 0.0], dtype)
    operands = tuple(np.concatenate([x, y.ravel()]) for x, y in zip(operands, np.meshgrid(edges, edges, edges)))
    found = Loop("fma", dtype, width, machine)(*operands)
    with np.errstate(all="ignore"):
        meaning = SCALARS["fma"].numpy(*operands)
    assert (found.view(f"u{found.itemsize}") == meaning.view(f"u{found.itemsize}")).all()
    for x, y, z, result in zip(*operands, found):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        wanted = rounded(exact, dtype)
        assert result == wanted and (not exact or np.signbit(result) == (exact < 0)), (x, y, z, result, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("width", [1, 2, 8])
def test_fma_has_the_bits_of_its_meaning(width: int, seed: int) -> None:
    operands = fma_operands("float64", 20_000, seed)
    with np.errstate(all="ignore"):
        meaning = SCALARS["fma"].numpy(*operands)
    assert (Loop("fma", "float64", width, BASELINE)(*operands).view(np.uint64) == meaning.view(np.uint64)).all()


C99 = {
    "exp": [(INF, INF), (-INF, 0.0), (0.0, 1.0), (-0.0, 1.0), (1e9, INF), (-1e9, 0.0)],
    "exp2": [(INF, INF), (-INF, 0.0), (10.0, 1024.0), (-149.0, 2.0**-149)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (2.0**-140, 2.0**-140)],
    "log": [(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (INF, INF), (-1.0, NAN), (-INF, NAN)],
    "log2": [(0.0, -INF), (2.0**-149, -149.0), (8.0, 3.0), (-1.0, NAN), (INF, INF)],
    "log10": [(0.0, -INF), (1000.0, 3.0), (1.0, 0.0), (INF, INF)],
    "log1p": [(-0.0, -0.0), (-1.0, -INF), (-2.0, NAN), (INF, INF), (2.0**-149, 2.0**-149)],
    "sin": [(-0.0, -0.0), (INF, NAN), (-INF, NAN), (2.0**-149, 2.0**-149)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN)],
    "tan": [(-0.0, -0.0), (INF, NAN)],
    "asin": [(-0.0, -0.0), (1.5, NAN), (-INF, NAN)],
    "acos": [(1.0, 0.0), (1.5, NAN), (-1.5, NAN)],
    "atan": [(-0.0, -0.0), (2.0**-149, 2.0**-149)],
    "sinh": [(-0.0, -0.0), (INF, INF), (-INF, -INF)],
    "cosh": [(-0.0, 1.0), (INF, INF), (-INF, INF)],
    "tanh": [(-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (2.0**-149, 2.0**-149)],
    "asinh": [(-0.0, -0.0), (INF, INF), (-INF, -INF)],
    "acosh": [(1.0, 0.0), (0.5, NAN), (-3.0, NAN), (INF, INF)],
    "atanh": [(-0.0, -0.0), (1.0, INF), (-1.0, -INF), (1.5, NAN), (INF, NAN)],
    "cbrt": [(-0.0, -0.0), (-27.0, -3.0), (INF, INF), (-INF, -INF)],
    "erf": [(-0.0, -0.0), (INF, 1.0), (-INF, -1.0)],
    "erfc": [(INF, 0.0), (-INF, 2.0), (0.0, 1.0)],
    "sigmoid": [(INF, 1.0), (-INF, 0.0), (0.0, 0.5)],
    "sqrt": [(-0.0, -0.0), (-1.0, NAN), (INF, INF)],
    "round_even": [(0.5, 0.0), (1.5, 2.0), (2.5, 2.0), (-0.5, -0.0), (-0.2, -0.0), (INF, INF)],
    "floor": [(-0.0, -0.0), (-0.5, -1.0), (0.5, 0.0)],
    "ceil": [(-0.5, -0.0), (0.5, 1.0)],
    "trunc": [(-0.5, -0.0), (-1.5, -1.0)],
}
C99_BINARY = {
    "pow": [
        (0.0, -1.0, INF), (-0.0, -1.0, -INF), (-0.0, -2.0, INF), (-0.0, 3.0, -0.0), (-0.0, 2.0, 0.0), (-1.0, INF, 1.0),
        (-1.0, -INF, 1.0), (1.0, NAN, 1.0), (NAN, 0.0, 1.0), (-8.0, 1 / 3, NAN), (0.5, -INF, INF), (2.0, -INF, 0.0),
        (0.5, INF, 0.0), (2.0, INF, INF), (-INF, -1.0, -0.0), (-INF, -2.0, 0.0), (-INF, 3.0, -INF), (-INF, 2.0, INF),
        (INF, -1.0, 0.0), (INF, 1.0, INF), (-2.0, 3.0, -8.0), (-2.0, 2.0, 4.0), (NAN, 1.0, NAN), (0.0, NAN, NAN), (0.0, INF, 0.0),
        (0.0, -INF, INF), (2.0, 1e30, INF), (2.0, -1e30, 0.0),
    ],
    "atan2": [
        (0.0, -0.0, math.pi), (-0.0, -0.0, -math.pi), (0.0, 0.0, 0.0), (-0.0, 0.0, -0.0), (-0.0, 1.0, -0.0), (-0.0, -1.0, -math.pi),
        (1.0, 0.0, math.pi / 2), (-1.0, -0.0, -math.pi / 2), (INF, INF, math.pi / 4), (-INF, INF, -math.pi / 4), (1.0, INF, 0.0),
        (INF, -INF, 3 * math.pi / 4), (1.0, -INF, math.pi), (INF, 1.0, math.pi / 2), (NAN, 1.0, NAN), (INF, NAN, NAN),
    ],
    "hypot": [(INF, NAN, INF), (NAN, -INF, INF), (NAN, 1.0, NAN), (-3.0, 4.0, 5.0), (0.0, -0.0, 0.0)],
    "fmod": [
        (5.0, 3.0, 2.0), (-5.0, 3.0, -2.0), (-6.0, 3.0, -0.0), (5.0, INF, 5.0), (INF, 5.0, NAN), (5.0, 0.0, NAN), (-0.0, 1.0, -0.0),
        (2.0**127, 3.0, 2.0), (2.0**-148, 2.0**-149, 0.0), (1.0, 3 * 2.0**-149, 2.0**-148), (NAN, 1.0, NAN),
    ],
    "floor_mod": [(-5.0, 3.0, 1.0), (5.0, -3.0, -1.0), (-6.0, 3.0, 0.0), (6.0, -3.0, -0.0), (1.0, 0.0, NAN), (-1.0, INF, INF)],
    "floor_divide": [(-5.0, 3.0, -2.0), (1.0, 0.0, INF), (-1.0, INF, -1.0), (0.0, 0.0, NAN), (-0.0, 2.0, -0.0)],
    "copysign": [(1.0, -0.0, -1.0), (-INF, 2.0, INF)],
}


@pytest.mark.parametrize(("machine", "width"), VARIANTS)
@pytest.mark.parametrize("name", [*C99, *C99_BINARY])
def test_special_values(name: str, machine: Machine, width: int) -> None:
    rows = (C99 | C99_BINARY)[name]
    for dtype in ("float32", "float64"):
        *operands, wanted = (np.array(column, dtype) for column in zip(*rows))
        found = Loop(name, dtype, width, machine)(*operands)
        np.testing.assert_array_equal(found, wanted, err_msg=dtype)
        numbers = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(wanted[numbers]), err_msg=dtype)
        nans = Loop(name, dtype, width, machine)(*[np.full(3, NAN, dtype)] * len(operands))
        assert np.isnan(nans).all() or name == "copysign"


@pytest.mark.parametrize("machine", [HOST, BASELINE], ids=lambda machine: machine.name)
@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_hardest_reductions(name: str, machine: Machine) -> None:
    """The floats nearest to multiples of pi/2 (Muller, section 11.3.2, and neighbours of the switches), and the greatest."""
    single = np.array([16367173 * 2.0**72, 13195035.0 * 2.0**24, 2.0**16, np.nextafter(np.float32(2**16), 0), 3.4028235e38], np.float32)
    double = np.array([
        6381956970095103 * 2.0**797, 5.419351e15, 2.0**20, np.nextafter(2.0**20, 0), 1.7976931348623157e308, 0.5 * math.pi,
    ])
    for x, bound in ((single, MATH[name].ulps[0]), (double, MATH[name].ulps[1])):
        x = np.concatenate([x, -x])
        found = Loop(name, x.dtype.name, 4, machine)(x)
        assert errors_in_ulps(found, reference(name, x)).max() <= bound


@pytest.mark.slow
@pytest.mark.parametrize("machine", [HOST, BASELINE, AVX512], ids=lambda machine: machine.name)
@pytest.mark.parametrize("name", MATH)
def test_calls_nothing(name: str, machine: Machine) -> None:
    widths = {"float32": (1, 8, 16), "float64": (1, 4), "float16": (8,), "uint16": (8,)}
    for dtype, counts in widths.items():
        for width in counts:
            text = assembly(name, dtype, width, machine)
            assert not re.search(r"\bcall|@PLT|@GOT", text), (dtype, width)


@pytest.mark.parametrize("machine", [HOST, BASELINE], ids=lambda machine: machine.name)
@pytest.mark.parametrize("name", ["fabs", "exp", "tanh", "sin", "pow"])
def test_narrow_formats_round_once(name: str, machine: Machine) -> None:
    """All 65536 patterns, computed in float32 and rounded once as NumPy and ml_dtypes round."""
    patterns = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    for kind, dtype in ((np.dtype(np.float16), "float16"), (np.dtype(ml_dtypes.bfloat16), "uint16")):
        with np.errstate(all="ignore"):
            x = patterns.view(kind)
            operands = [x, x[::-1]][: MATH[name].operands]
            wide = Loop(name, "float32", 8, machine)(*(operand.astype(np.float32) for operand in operands))
            wanted = wide.astype(kind)
        stored = [np.ascontiguousarray(operand).view(dtype) for operand in operands]
        found = Loop(name, dtype, 8, machine)(*stored).view(kind)
        same = (found.view(np.uint16) == wanted.view(np.uint16)) | np.isnan(found.astype(np.float32)) & np.isnan(wide)
        assert same.all()


def test_the_error_function_reference() -> None:
    """error_function, the reference of erf and erfc, against the C library in float64."""
    x = np.concatenate([np.linspace(-7, 26, 2001), [1e-300, 0.0, -0.0]])
    for name, exact in (("erf", math.erf), ("erfc", math.erfc)):
        wanted = np.array([exact(value) for value in x])
        assert errors_in_ulps(wanted, error_function(name, x)).max() < 6          # glibc: erfc has up to 5


def test_scalar_and_vector_agree() -> None:
    """Bit for bit: a loop's remainder may be computed one by one."""
    x = np.abs(sample("float32", 8192, 11))
    for name in MATH:
        operands = [x, x[::-1], x][: MATH[name].operands]
        one, eight = (Loop(name, "float32", width)(*operands) for width in (1, 8))
        assert ((one == eight) | np.isnan(one) & np.isnan(eight)).all(), name


def test_exp_stays_short() -> None:
    """What softmax costs: the loop over exp in 8 lanes of AVX2, up to the block for results that are not normal."""
    body = assembly("exp", "float32", 8).split(".LBB0_1:")[1].split(".LBB0_2:")[0]
    vector = [line for line in body.splitlines() if re.match(r"\tv(?!zeroupper|mov|broadcast|pbroadcast)", line)]
    assert 10 < len(vector) <= 17, vector


def test_misuse() -> None:
    function = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), [ir.FloatType(), ir.DoubleType(), ir.IntType(32)]), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    single, double, integer = function.args
    with pytest.raises(TypeError, match="pow: takes 2 operands, found 1"):
        emit_math(builder, "pow", single)
    with pytest.raises(TypeError, match="pow: operands of one type, found double, float"):
        emit_math(builder, "pow", single, double)
    with pytest.raises(TypeError, match="exp: operands of float, double, half or i16"):
        emit_math(builder, "exp", integer)
