"""Formulas over LLVM values: a scalar or a vector, written with Python's operators.

What it does: `Lanes` wraps an `ir.Value` of float32, float64, an integer or i1 lanes, and every operator appends the one instruction
that it names, so that `math.py` reads like the formulas it implements. Python numbers become constants of the other side's type.
Assumes: the builder stands at the end of an open block; rounding is to nearest even (nobody changes MXCSR).
Guarantees: no fast-math flag is set, nothing is contracted or reassociated; what is emitted needs no library call on a target that
has what `MathOptions` says: without FMA `fma` is a product and a sum, without rounding instructions (SSE4.1) they are built from the
addition of 1.5 * 2^p (Muller, "Elementary Functions", section 11.1, "the magic number").
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from llvmlite import ir
from msgspec import Struct


class MathOptions(Struct, frozen=True):
    """What the target has; `Target` (targets.py) names the same facts."""

    has_fma: bool = True
    has_round: bool = True
    has_half: bool = True                             # conversions between float16 and float32 (F16C)
    pairs_bits: int = 0                               # the widest vector that pmaddwd takes; 0: none does
    byte_pairs_bits: int = 0                          # likewise pmaddubsw
    quads_bits: int = 0                               # likewise vpdpbusd
    bfloats_bits: int = 0                             # likewise vdpbf16ps
    has_avx512: bool = False                          # 16 floats of float32: looked up by place (vpermps), scaled by 2^n (vscalefps)


class Format(Struct, frozen=True):
    """The constants of an IEEE binary format, as integers on its bits or as floats."""

    bits: int
    fraction: int                                     # explicit bits of the significand
    bias: int

    @property
    def one(self) -> int:
        return self.bias << self.fraction

    @property
    def sign(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def infinity(self) -> int:
        return (2 * self.bias + 1) << self.fraction

    @property
    def fraction_mask(self) -> int:
        return (1 << self.fraction) - 1

    @property
    def magic(self) -> float:
        """1.5 * 2^fraction: a float added to it is rounded to an integer, which stands in the low bits of the sum."""
        return 1.5 * 2.0**self.fraction

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    def bits_of(self, value: float) -> int:
        single = self.bits == 32
        return int.from_bytes(struct.pack("<f" if single else "<d", value), "little")


FLOAT32 = Format(32, 23, 127)
FLOAT64 = Format(64, 52, 1023)
FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()
SIXTEEN = 16                                          # floats in a register of AVX-512

Number = int | float


class Lanes:
    """A value being computed, with the builder that computes it."""

    __slots__ = ("builder", "options", "value")

    def __init__(self, builder: ir.IRBuilder, options: MathOptions, value: ir.Value) -> None:
        self.builder = builder
        self.options = options
        self.value = value

    # ---- types ----

    @property
    def element(self) -> ir.Type:
        kind = self.value.type
        return kind.element if isinstance(kind, ir.VectorType) else kind

    @property
    def is_float(self) -> bool:
        return not isinstance(self.element, ir.IntType)

    @property
    def format(self) -> Format:
        return FLOAT32 if self.element == FLOAT else FLOAT64

    @property
    def is_single(self) -> bool:
        return bool(self.element == FLOAT)

    def shaped(self, element: ir.Type) -> ir.Type:
        """As many lanes as here, of `element`."""
        kind = self.value.type
        return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element

    def new(self, value: ir.Value) -> Lanes:
        return Lanes(self.builder, self.options, value)

    def splat(self, number: Number) -> Lanes:
        """The constant `number` in every lane; integers wrap to the width."""
        element, kind = self.element, self.value.type
        if isinstance(element, ir.IntType):
            number = int(number) & ((1 << element.width) - 1)
        else:
            number = float(number)
        constant = [ir.Constant(element, number)] * kind.count if isinstance(kind, ir.VectorType) else number
        return self.new(ir.Constant(kind, constant))

    def like(self, other: Lanes | Number) -> ir.Value:
        return other.value if isinstance(other, Lanes) else self.splat(other).value

    # ---- arithmetic: one instruction each ----

    def binary(self, float_name: str, int_name: str, other: Lanes | Number) -> Lanes:
        emit = getattr(self.builder, float_name if self.is_float else int_name)
        return self.new(emit(self.value, self.like(other)))

    def __add__(self, other: Lanes | Number) -> Lanes:
        return self.binary("fadd", "add", other)

    def __sub__(self, other: Lanes | Number) -> Lanes:
        return self.binary("fsub", "sub", other)

    def __mul__(self, other: Lanes | Number) -> Lanes:
        return self.binary("fmul", "mul", other)

    def __truediv__(self, other: Lanes | Number) -> Lanes:
        return self.new(self.builder.fdiv(self.value, self.like(other)))

    def __radd__(self, other: Number) -> Lanes:
        return self.splat(other) + self

    def __rsub__(self, other: Number) -> Lanes:
        return self.splat(other) - self

    def __rmul__(self, other: Number) -> Lanes:
        return self.splat(other) * self

    def __rtruediv__(self, other: Number) -> Lanes:
        return self.splat(other) / self

    def __neg__(self) -> Lanes:
        return self.new(self.builder.fneg(self.value) if self.is_float else self.builder.neg(self.value))

    def __and__(self, other: Lanes | Number) -> Lanes:
        return self.new(self.builder.and_(self.value, self.like(other)))

    def __or__(self, other: Lanes | Number) -> Lanes:
        return self.new(self.builder.or_(self.value, self.like(other)))

    def __xor__(self, other: Lanes | Number) -> Lanes:
        return self.new(self.builder.xor(self.value, self.like(other)))

    def __invert__(self) -> Lanes:
        return self ^ -1

    def __lshift__(self, other: Lanes | Number) -> Lanes:
        return self.new(self.builder.shl(self.value, self.like(other)))

    def __rshift__(self, other: Lanes | Number) -> Lanes:
        """Logical: zeros come in."""
        return self.new(self.builder.lshr(self.value, self.like(other)))

    # ---- comparison: ordered for floats (false with NaN), signed for integers ----

    def compare(self, operator: str, other: Lanes | Number) -> Lanes:
        emit = self.builder.fcmp_ordered if self.is_float else self.builder.icmp_signed
        return self.new(emit(operator, self.value, self.like(other)))

    def __lt__(self, other: Lanes | Number) -> Lanes:
        return self.compare("<", other)

    def __le__(self, other: Lanes | Number) -> Lanes:
        return self.compare("<=", other)

    def __gt__(self, other: Lanes | Number) -> Lanes:
        return self.compare(">", other)

    def __ge__(self, other: Lanes | Number) -> Lanes:
        return self.compare(">=", other)

    def equals(self, other: Lanes | Number) -> Lanes:
        return self.compare("==", other)

    def is_nan(self) -> Lanes:
        return self.new(self.builder.fcmp_unordered("uno", self.value, self.value))

    def select(self, where_true: Lanes | Number, where_false: Lanes | Number) -> Lanes:
        """This mask chooses lane by lane; one of the two must be `Lanes`."""
        model = where_true if isinstance(where_true, Lanes) else where_false
        assert isinstance(model, Lanes)
        return model.new(self.builder.select(self.value, model.like(where_true), model.like(where_false)))

    def clamp_low(self, bound: Number) -> Lanes:
        """max(self, bound), NaN kept: this order of operands is one `maxps`."""
        return (self.splat(bound) > self).select(bound, self)

    def clamp_high(self, bound: Number) -> Lanes:
        """min(self, bound), NaN kept."""
        return (self.splat(bound) < self).select(bound, self)

    # ---- bits and conversions ----

    def bits(self) -> Lanes:
        return self.new(self.builder.bitcast(self.value, self.shaped(ir.IntType(self.format.bits))))

    def as_float(self) -> Lanes:
        """The float whose bits these are."""
        return self.new(self.builder.bitcast(self.value, self.shaped(FLOAT if self.element.width == 32 else DOUBLE)))

    def low_magic_to_float(self) -> Lanes:
        """An integer in [0, 2^fraction) to a float of its width (AVX2 has no conversion from 64-bit integers)."""
        shape = FLOAT32 if self.element.width == 32 else FLOAT64
        anchor = 2.0**shape.fraction
        return (self | shape.bits_of(anchor)).as_float() - anchor

    def looked_up(self, table: Sequence[float]) -> Lanes:
        """Of 16 numbers in float32, the one whose place the low four bits of each 32-bit lane say."""
        floats = ir.VectorType(FLOAT, SIXTEEN)
        constant = ir.Constant(floats, [float(number) for number in table])
        return self.by_sixteen("permvar.sf.512", lambda part: [constant, part])

    def scaled(self, power: Lanes) -> Lanes:
        """This times 2^power in float32, rounded once, for a power that is whole; `power` is read by 16 lanes as this is."""
        mask, rounding = ir.Constant(ir.IntType(16), -1), ir.Constant(ir.IntType(32), 4)  # 4: as everything else
        return self.by_sixteen("mask.scalef.ps.512", lambda part, by: [part, by, part, mask, rounding], power)

    def by_sixteen(self, name: str, operands: Callable[..., list[ir.Value]], *others: Lanes) -> Lanes:
        """What an instruction of AVX-512 makes of 16 lanes each of this and of the others: floats."""
        assert self.options.has_avx512
        kind, builder, module = self.value.type, self.builder, self.builder.module
        values = [lanes.value for lanes in (self, *others)]
        count, result = (kind.count, None) if isinstance(kind, ir.VectorType) else (1, ir.Constant(ir.IntType(32), 0))
        if result is not None:
            values = [builder.insert_element(ir.Constant(ir.VectorType(v.type, SIXTEEN), ir.Undefined), v, result) for v in values]
        parts = []
        for low in range(0, count, SIXTEEN):
            given = operands(*(shuffled(builder, value, range(low, low + SIXTEEN)) for value in values))
            full = f"llvm.x86.avx512.{name}"
            function = module.globals.get(full)
            if function is None:
                signature = ir.FunctionType(ir.VectorType(FLOAT, SIXTEEN), [operand.type for operand in given])
                function = ir.Function(module, signature, full)
            parts.append(builder.call(function, given))
        if result is not None:
            return self.new(builder.extract_element(parts[0], result))
        while len(parts) > 1:
            parts = [joined(builder, *parts[n:n + 2]) for n in range(0, len(parts), 2)]
        return self.new(shuffled(builder, parts[0], range(count)))

    def widen(self) -> Lanes:
        return self.new(self.builder.fpext(self.value, self.shaped(DOUBLE)))

    def narrow(self) -> Lanes:
        return self.new(self.builder.fptrunc(self.value, self.shaped(FLOAT)))

    def resize(self, width: int) -> Lanes:
        """An integer truncated or zero-extended to `width` bits."""
        emit = self.builder.zext if width > self.element.width else self.builder.trunc
        return self.new(emit(self.value, self.shaped(ir.IntType(width))))

    # ---- instructions behind intrinsics ----

    def intrinsic(self, name: str, *operands: Lanes) -> Lanes:
        """Calls llvm.<name> overloaded on this type."""
        kind = self.value.type
        spelled = {"float": "f32", "double": "f64", "half": "f16"}[str(self.element)]
        if isinstance(kind, ir.VectorType):
            spelled = f"v{kind.count}{spelled}"
        full = f"llvm.{name}.{spelled}"
        module = self.builder.module
        function = module.globals.get(full)
        if function is None:
            function = ir.Function(module, ir.FunctionType(kind, [kind] * (1 + len(operands))), full)
        return self.new(self.builder.call(function, [self.value, *(operand.value for operand in operands)]))

    def absolute(self) -> Lanes:
        return self.intrinsic("fabs")

    def with_sign_of(self, other: Lanes) -> Lanes:
        return self.intrinsic("copysign", other)

    def sqrt(self) -> Lanes:
        return self.intrinsic("sqrt")

    def round_even(self) -> Lanes:
        if self.options.has_round:
            return self.intrinsic("roundeven")
        magnitude = self.absolute()
        anchor = 2.0**self.format.fraction
        return (magnitude < anchor).select((magnitude + anchor) - anchor, magnitude).with_sign_of(self)

    def truncate(self) -> Lanes:
        if self.options.has_round:
            return self.intrinsic("trunc")
        magnitude = self.absolute()
        nearest = magnitude.round_even()
        return (nearest - (nearest > magnitude).select(1.0, nearest.splat(0.0))).with_sign_of(self)

    def floor(self) -> Lanes:
        if self.options.has_round:
            return self.intrinsic("floor")
        nearest = self.round_even()
        return (nearest - (nearest > self).select(1.0, nearest.splat(0.0))).with_sign_of(self)

    def ceil(self) -> Lanes:
        if self.options.has_round:
            return self.intrinsic("ceil")
        nearest = self.round_even()
        return (nearest + (nearest < self).select(1.0, nearest.splat(0.0))).with_sign_of(self)

    # ---- control ----

    def any(self) -> ir.Value:
        """i1: whether some lane of this mask is set (a `movmskps` and a test)."""
        kind = self.value.type
        if not isinstance(kind, ir.VectorType):
            return self.value
        packed = self.builder.bitcast(self.value, ir.IntType(kind.count))
        return self.builder.icmp_unsigned("!=", packed, ir.Constant(packed.type, 0))


    def largest(self, lanes: int) -> Lanes:
        """The larger of the halves, lane by lane, while an even number of lanes is more than so many: one register of a few."""
        found = self
        while isinstance(found.value.type, ir.VectorType) and found.value.type.count > lanes and found.value.type.count % 2 == 0:
            half = found.value.type.count // 2
            parts = []
            for first in (0, half):
                places = ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(first, first + half)))
                parts.append(found.new(found.builder.shuffle_vector(found.value, found.value, places)))
            found = (parts[0] > parts[1]).select(*parts)
        return found


def shuffled(builder: ir.IRBuilder, value: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """These lanes of a vector; any value stands where there is none."""
    count = value.type.count
    if list(lanes) == list(range(count)):
        return value
    numbers = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), [lane if lane < count else count - 1 for lane in lanes])
    return builder.shuffle_vector(value, value, numbers)


def joined(builder: ir.IRBuilder, first: ir.Value, second: ir.Value | None = None) -> ir.Value:
    """The lanes of one vector and then of another, which is no longer."""
    if second is None:
        return first
    count, more = first.type.count, second.type.count
    numbers = ir.Constant(ir.VectorType(ir.IntType(32), count + more), list(range(count + more)))
    return builder.shuffle_vector(first, shuffled(builder, second, range(count)), numbers)


def fma(a: Lanes, b: Lanes | Number, c: Lanes | Number) -> Lanes:
    """a * b + c, rounded once where the target has FMA, else twice: nothing may depend on which, see `exact_product`."""
    b, c = a.new(a.like(b)), a.new(a.like(c))
    return a.intrinsic("fma", b, c) if a.options.has_fma else a * b + c


def polynomial(x: Lanes, coefficients: Sequence[float]) -> Lanes:
    """The polynomial with these coefficients, lowest degree first, by Horner's rule."""
    total = x.splat(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = fma(total, x, coefficient)
    return total


def exact_sum(a: Lanes, b: Lanes | Number) -> tuple[Lanes, Lanes]:
    """(s, e) with s = round(a + b) and s + e = a + b exactly (Knuth's two-sum)."""
    b = a.new(a.like(b))
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def exact_sum_ordered(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """The same for |a| >= |b| or a = 0 (Dekker's fast two-sum)."""
    total = a + b
    return total, b - (total - a)


def halves(a: Lanes) -> tuple[Lanes, Lanes]:
    """a = high + low, each of at most half of the bits, low signed: products of halves are exact.

    On the bits and not by Veltkamp's multiplication, which overflows for large `a`.
    """
    cut = a.format.fraction // 2 + 1
    high = ((a.bits() + (1 << (cut - 1))) & -(1 << cut)).as_float()
    return high, a - high


def exact_product(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """(p, e) with p = round(a * b) and p + e = a * b exactly unless e underflows (Dekker's two-product without FMA)."""
    product = a * b
    if a.options.has_fma:
        return product, fma(a, b, -product)
    a_high, a_low = halves(a)
    b_high, b_low = halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def refine_where(mask: Lanes, values: Sequence[Lanes], compute: Callable[[], Sequence[Lanes]]) -> list[Lanes]:
    """`values`, with the lanes in `mask` replaced by what `compute` emits: in a block that is jumped over when no lane needs it.

    The builder then stands at the end of a new block.
    """
    builder = mask.builder
    condition = mask.any()
    before = builder.block
    with builder.if_then(condition, likely=False):
        refined = [mask.select(new, old) for new, old in zip(compute(), values)]
        after = builder.block
    merged = []
    for old, new in zip(values, refined):
        phi = builder.phi(old.value.type)
        phi.add_incoming(old.value, before)
        phi.add_incoming(new.value, after)
        merged.append(old.new(phi))
    return merged


def unless_rare(mask: Lanes, rare: Callable[[], Lanes], usual: Callable[[], Lanes]) -> Lanes:
    """What `usual` emits, or where some lane is in `mask` what `rare` does, in a block of its own. The builder then stands at the end
    of a new block."""
    builder = mask.builder
    with builder.if_else(mask.any(), likely=False) as (then, otherwise):
        with then:
            first = rare()
            first_block = builder.block
        with otherwise:
            second = usual()
            second_block = builder.block
    phi = builder.phi(first.value.type)
    phi.add_incoming(first.value, first_block)
    phi.add_incoming(second.value, second_block)
    return first.new(phi)
