"""Products of words that hold several narrow numbers each (`dot_pairs`, `dot_quads`, `dot_bfloats` and their like) as LLVM IR.

Guarantees: the numbers that `ir/ops/scalar.py` states, on scalars and vectors. One or three instructions where the target has
them for vectors so wide (`MathOptions.pairs_bits`, `quads_bits`), shifts and products elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.backends.llvm.emit_math_calls import call_math
from tilewright.backends.llvm.emit_text import Function, Value, float_text, mangled, shaped, splat_text
from tilewright.ir.types import F32, I32

PAIRS = {128: "llvm.x86.sse2.pmadd.wd", 256: "llvm.x86.avx2.pmadd.wd", 512: "llvm.x86.avx512.pmaddw.d.512"}
QUADS = {128: "llvm.x86.avx512.vpdpbusd.128", 256: "llvm.x86.avx512.vpdpbusd.256", 512: "llvm.x86.avx512.vpdpbusd.512"}
BFLOATS = {bits: f"llvm.x86.avx512bf16.dpbf16ps.{bits}" for bits in (128, 256, 512)}
BYTES = {128: "llvm.x86.ssse3.pmadd.ub.sw.128", 256: "llvm.x86.avx2.pmadd.ub.sw", 512: "llvm.x86.avx512.pmaddubs.w.512"}


class _Words:
    """Instructions on vectors of i32, as texts."""

    def __init__(self, code: Function, like: Value) -> None:
        self.code, self.lanes, self.kind = code, like.lanes, like.type

    def combined(self, instruction: str, left: str, right: str) -> str:
        return self.code.pure(f"{instruction} {self.kind} {left}, {right}")

    def number(self, value: int) -> str:
        return splat_text(str(value), "i32", self.lanes)

    def parts(self, word: str, bits: int) -> tuple[str, str]:
        """The type and text of a word's parts."""
        kind = f"<{32 // bits * max(self.lanes, 1)} x i{bits}>"
        return kind, self.code.pure(f"bitcast {self.kind} {word} to {kind}")

    def part(self, word: str, place: int, bits: int, signed: bool) -> str:
        """One part of each word, in 32 bits."""
        if place + bits < 32:
            word = self.combined("shl", word, self.number(32 - bits - place))
        return self.combined("ashr" if signed else "lshr", word, self.number(32 - bits))

    def products(self, a: Value, b: Value, bits: int) -> list[str]:
        """The products of all parts; bytes of the first word are unsigned."""
        return [self.combined("mul", self.part(a.text, place, bits, bits > 8), self.part(b.text, place, bits, True))
                for place in range(0, 32, bits)]

    def total(self, addends: list[str], last: str) -> Value:
        for addend in addends:
            last = self.combined("add", last, addend)
        return Value(last, I32, self.lanes)


def _dot_pairs(code: Function, operands: list[Value]) -> Value:
    a, b, total = operands
    words, bits = _Words(code, a), 32 * a.lanes
    if bits not in PAIRS or bits > code.module.options.pairs_bits:
        return words.total(words.products(a, b, 16), total.text)
    products = code.call_pure(PAIRS[bits], a.type, words.parts(a.text, 16), words.parts(b.text, 16))
    return words.total([products], total.text)


def _dot_quads(code: Function, operands: list[Value]) -> Value:
    a, b, total = operands
    words, bits = _Words(code, a), 32 * a.lanes
    if bits not in QUADS or bits > code.module.options.quads_bits:
        return words.total(words.products(a, b, 8), total.text)
    return Value(code.call_pure(QUADS[bits], a.type, (total.type, total.text), words.parts(a.text, 8), words.parts(b.text, 8)),
                 I32, a.lanes)


def _dot_quads_saturating(code: Function, operands: list[Value]) -> Value:
    a, b, total = operands
    words, bits = _Words(code, a), 32 * a.lanes
    if bits in BYTES and bits <= code.module.options.byte_pairs_bits:
        kind = f"<{2 * a.lanes} x i16>"
        pairs = code.call_pure(BYTES[bits], kind, words.parts(a.text, 8), words.parts(b.text, 8))
        ones = splat_text("1", "i16", 2 * a.lanes)
        return words.total([code.call_pure(PAIRS[bits], a.type, (kind, pairs), (kind, ones))], total.text)
    return words.total(_limited_pairs(code, words, a, b), total.text)


def _limited_pairs(code: Function, words: _Words, a: Value, b: Value) -> list[str]:
    """The sums of the products of two neighbouring bytes each, limited to 16 bits, in 32."""
    products = words.products(a, b, 8)
    limited = []
    for left, right in (products[:2], products[2:]):
        pair = words.combined("add", left, right)
        for condition, limit in (("slt", words.number(-32768)), ("sgt", words.number(32767))):
            outside = code.pure(f"icmp {condition} {a.type} {pair}, {limit}")
            pair = code.pure(f"select {shaped('i1', a.lanes)} {outside}, {a.type} {limit}, {a.type} {pair}")
        limited.append(pair)
    return limited


def _add_byte_pairs(code: Function, operands: list[Value]) -> Value:
    a, b, total = operands
    words, bits, count = _Words(code, a), 32 * a.lanes, 2 * max(a.lanes, 1)
    kind = f"<{count} x i16>"
    if bits in BYTES and bits <= code.module.options.byte_pairs_bits:
        pairs = code.call_pure(BYTES[bits], kind, words.parts(a.text, 8), words.parts(b.text, 8))
    else:
        low, high = _limited_pairs(code, words, a, b)
        both = words.combined("or", words.combined("shl", high, words.number(16)), words.combined("and", low, words.number(0xFFFF)))
        pairs = words.parts(both, 16)[1]
    added = code.pure(f"add {kind} {pairs}, {words.parts(total.text, 16)[1]}")
    return Value(code.pure(f"bitcast {kind} {added} to {total.type}"), I32, a.lanes)


def _flushed(code: Function, bits: str, lanes: int) -> str:
    """The bits of float32, zero of the same sign in place of a subnormal."""
    kind = shaped("i32", lanes)
    number = [splat_text(str(n), "i32", lanes) for n in (0x7FFFFFFF, 0x00800000, -0x80000000)]
    small = code.pure(f"icmp ult {kind} {code.pure(f'and {kind} {bits}, {number[0]}')}, {number[1]}")
    zero = code.pure(f"and {kind} {bits}, {number[2]}")
    return code.pure(f"select {shaped('i1', lanes)} {small}, {kind} {zero}, {kind} {bits}")


def _dot_bfloats(code: Function, operands: list[Value]) -> Value:
    a, b, total = operands
    words, bits, kind = _Words(code, a), 32 * a.lanes, shaped("float", a.lanes)
    if bits in BFLOATS and bits <= code.module.options.bfloats_bits:
        halves = f"<{2 * a.lanes} x bfloat>"
        pairs = [(halves, code.pure(f"bitcast {a.type} {word.text} to {halves}")) for word in (a, b)]
        return Value(code.call_pure(BFLOATS[bits], kind, (kind, total.text), *pairs), F32, a.lanes)
    found = code.pure(f"bitcast {a.type} {_flushed(code, code.pure(f'bitcast {kind} {total.text} to {a.type}'), a.lanes)} to {kind}")
    for place in (16, 0):
        parts = []
        for word in (a, b):
            move, by = ("and", -0x10000) if place else ("shl", 16)
            upper = words.combined(move, word.text, words.number(by))
            parts.append(code.pure(f"bitcast {a.type} {_flushed(code, upper, a.lanes)} to {kind}"))
        found = _flushed_multiply_add(code, parts[0], parts[1], found, a.lanes)
    return Value(found, F32, a.lanes)


def _flushed_multiply_add(code: Function, x: str, y: str, addend: str, lanes: int) -> str:
    """x * y + addend rounded to 24 bits, a zero of the same sign where that is less than the least normal number. The same sum times 2**32
    says which that is, since its exponent is not too low; where it overflows, the sum is no small number or an exact zero."""
    kind, bits = shaped("float", lanes), shaped("i32", lanes)

    def multiply_add(*operands: str) -> str:
        if code.module.options.has_fma:
            return code.call_pure(f"llvm.fma.{mangled('float', lanes)}", kind, *((kind, part) for part in operands))
        return call_math(code, "fma", "float", lanes, operands)

    def constant(value: float) -> str:
        return splat_text(float_text(value, F32), "float", lanes)

    found = multiply_add(x, y, addend)
    raised = [code.pure(f"fmul {kind} {part}, {constant(2.0**32)}") for part in (x, addend)]
    large = multiply_add(raised[0], y, raised[1])
    size = code.call_pure(f"llvm.fabs.{mangled('float', lanes)}", kind, (kind, large))
    small = code.pure(f"fcmp olt {kind} {size}, {constant(2.0 ** (32 - 126))}")
    sign = code.pure(f"and {bits} {code.pure(f'bitcast {kind} {found} to {bits}')}, {splat_text('-2147483648', 'i32', lanes)}")
    return code.pure(f"select {shaped('i1', lanes)} {small}, {kind} {code.pure(f'bitcast {bits} {sign} to {kind}')}, {kind} {found}")


def _widen_pairs(code: Function, operands: list[Value]) -> Value:
    """Two bytes of each word, in the order of memory, which is that of the halves of the result."""
    x, = operands
    count = 2 * max(x.lanes, 1)
    held = code.pure(f"bitcast {x.type} {x.text} to <{count} x i8>")
    wide = code.pure(f"sext <{count} x i8> {held} to <{count} x i16>")
    return Value(code.pure(f"bitcast <{count} x i16> {wide} to {shaped('i32', x.lanes)}"), I32, x.lanes)


WORD_EMITTERS: dict[str, Callable[[Function, list[Value]], Value]] = {
    "dot_pairs": _dot_pairs, "dot_quads": _dot_quads, "dot_quads_saturating": _dot_quads_saturating,
    "add_byte_pairs": _add_byte_pairs, "dot_bfloats": _dot_bfloats, "widen_pairs": _widen_pairs,
}
