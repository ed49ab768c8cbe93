"""Runs the functions of `backends/llvm/math.py` over NumPy arrays and measures their error; for tests and `exhaustive_math.py`.

What it does: compiles one function into `void f(const T* in0, ..., T* out, int64 count)`, with a vector width and target features of
choice; gives references (float64 for float32, x87 long double for float64); counts errors in units in the last place.
Assumes: an x86-64 host for the long double references. NumPy has no erf: in float32 the reference is our own float64 function, which
the tests compare with `error_function`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from tilewright.backends.llvm.lanes import MathOptions
from tilewright.backends.llvm.math import MATH, emit_math

TYPES = {
    "float32": ir.FloatType(), "float64": ir.DoubleType(), "float16": ir.HalfType(), "uint16": ir.IntType(16),
}                                                     # uint16: the bits of bfloat16
Array = np.ndarray


@dataclass(frozen=True)
class Machine:
    """What to compile for: an LLVM CPU, features, and what the expansion may rely on."""

    name: str
    cpu: str
    features: str
    options: MathOptions


HOST = Machine("avx2", "x86-64-v3", "", MathOptions())
BASELINE = Machine("sse2", "x86-64", "", MathOptions(has_fma=False, has_round=False, has_half=False))
AVX512 = Machine("avx512", "x86-64-v4", "", MathOptions(has_avx512=True))
MACHINES = {machine.name: machine for machine in (HOST, BASELINE, AVX512)}


def loop_module(name: str, dtype: str, width: int, options: MathOptions) -> str:
    """The LLVM module of a loop over `name` in vectors of `width`; the count is a multiple of the width."""
    module = ir.Module("math")
    module.triple = llvm.get_process_triple()
    count_type, element = ir.IntType(64), TYPES[dtype]
    kind = ir.VectorType(element, width) if width > 1 else element
    operands = MATH[name].operands
    signature = ir.FunctionType(ir.VoidType(), [element.as_pointer()] * (operands + 1) + [count_type])
    function = ir.Function(module, signature, "loop")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    entry, body, done = builder.block, function.append_basic_block("body"), function.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(count_type)
    index.add_incoming(ir.Constant(count_type, 0), entry)
    alignment = element.width // 8 if isinstance(element, ir.IntType) else {"f": 4, "d": 8, "h": 2}[str(element)[0]]
    places = [builder.bitcast(builder.gep(pointer, [index]), kind.as_pointer()) for pointer in function.args[:-1]]
    loaded = [builder.load(place, align=alignment) for place in places[:-1]]
    builder.store(emit_math(builder, name, *loaded, options=options), places[-1], align=alignment)
    following = builder.add(index, ir.Constant(count_type, width))
    index.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, function.args[-1]), body, done)
    builder.position_at_end(done)
    builder.ret_void()
    return str(module)


def target_machine(machine: Machine) -> llvm.TargetMachine:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=3, jit=True)


def assembly(name: str, dtype: str, width: int, machine: Machine = HOST) -> str:
    module = llvm.parse_assembly(loop_module(name, dtype, width, machine.options))
    return target_machine(machine).emit_assembly(module)


class Loop:
    """A compiled function, called with arrays; keeps its engine alive."""

    def __init__(self, name: str, dtype: str = "float32", width: int = 8, machine: Machine = HOST) -> None:
        self.width = width
        module = llvm.parse_assembly(loop_module(name, dtype, width, machine.options))
        module.verify()
        self.engine = llvm.create_mcjit_compiler(module, target_machine(machine))
        self.engine.finalize_object()
        pointers = [ctypes.c_void_p] * (MATH[name].operands + 1)
        self.function = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_int64)(self.engine.get_function_address("loop"))

    def __call__(self, *operands: Array) -> Array:
        count = operands[0].size
        padded = -(-count // self.width) * self.width
        if padded != count:
            operands = tuple(np.concatenate([x, np.repeat(x[:1], padded - count)]) for x in operands)
        operands = tuple(np.ascontiguousarray(x) for x in operands)
        result = np.empty(padded, operands[0].dtype)
        self.function(*(x.ctypes.data for x in operands), result.ctypes.data, padded)
        return result[:count]


def errors_in_ulps(found: Array, reference: Array) -> Array:
    """|found - reference| in units in the last place of `found`'s format at the reference; infinite where only one is NaN.

    An infinite result counts as the first power of two that does not fit; zeros of different sign differ by infinity.
    """
    fraction, lowest, top = (23, -126, 128) if found.dtype == np.float32 else (52, -1022, 1024)
    wide = reference.dtype.type
    limit = np.ldexp(wide(1), top)
    with np.errstate(all="ignore"):
        clipped = np.clip(reference, -limit, limit)
        _, exponent = np.frexp(clipped)
        unit = np.maximum(exponent.astype(np.int64) - 1, lowest) - fraction
        unit = np.minimum(unit, top - 1 - fraction)
        value = np.clip(found.astype(wide), -limit, limit)
        error = np.ldexp(np.abs(value - clipped), -unit.astype(np.int32)).astype(np.float64)
    one_nan = np.isnan(found) != np.isnan(reference)
    error = np.where(np.isnan(found) & np.isnan(reference), 0.0, error)
    wrong_zero = (found == 0) & (reference == 0) & (np.signbit(found) != np.signbit(reference))
    return np.where(one_nan | wrong_zero, np.inf, error)


def sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, np.ones_like(x)) / (1 + small)


def split_gaussian(x: Array) -> Array:
    """exp(-x^2) in long double for float64 x, the square taken in two exact parts."""
    high = x.astype(np.float32).astype(np.longdouble)
    return np.exp(-high * high) * np.exp(-(x - high) * (x + high))


def error_function(name: str, x: Array) -> Array:
    """erf and erfc in long double: the series of positive terms below 2, the continued fraction above (DLMF 7.6.2, 7.9.1)."""
    x = np.asarray(x, np.longdouble)
    a = np.minimum(np.abs(x), 110)
    small = np.minimum(a, 2)
    term, total = small.copy(), small.copy()
    for n in range(1, 60):
        term = term * (2 * small * small) / (2 * n + 1)
        total = total + term
    root = np.sqrt(np.longdouble(4) * np.arctan(np.longdouble(1)))
    erf = 2 / root * split_gaussian(small) * total
    large = np.maximum(a, 2)
    fraction = large.copy()
    for n in range(150, 0, -1):
        fraction = large + np.longdouble(n) / 2 / fraction
    erfc = np.where(a < 2, 1 - erf, split_gaussian(large) / (root * fraction))
    erf = np.where(a < 2, erf, 1 - erfc)
    erf = np.where(np.isnan(x), x, np.copysign(erf, x))
    return erf if name == "erf" else np.where(np.isnan(x), x, np.where(x < 0, 1 + np.abs(erf), erfc))


def numpy_reference(name: str) -> Callable[..., Array]:
    renamed = {"fabs": np.abs, "round_even": np.rint, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
               "atan2": np.arctan2, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "pow": np.power,
               "sigmoid": sigmoid, "floor_mod": np.remainder, "fma": lambda a, b, c: a * b + c}
    return renamed[name] if name in renamed else getattr(np, name)


def reference(name: str, *operands: Array) -> Array:
    """`name` in the next wider format: float64 for float32 operands, long double for float64."""
    single = operands[0].dtype == np.float32
    with np.errstate(all="ignore"):
        if name in ("erf", "erfc"):
            return Loop(name, "float64")(operands[0].astype(np.float64)) if single else error_function(name, operands[0])
        wide = np.float64 if single else np.longdouble
        return numpy_reference(name)(*(x.astype(wide) for x in operands))


SPECIALS = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, np.inf, -np.inf, np.nan])


def sample(dtype: str, count: int, seed: int) -> Array:
    """All exponents and both signs with random significands, an even spread on [-120, 120], neighbours of 1, specials."""
    generator = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    integer = np.uint32 if kind.itemsize == 4 else np.uint64
    bits = generator.integers(0, 1 << (8 * kind.itemsize), count // 2, dtype=integer)
    with np.errstate(all="ignore"):
        near_one = (1 + generator.uniform(-1, 1, count // 8) * 2.0 ** -generator.integers(1, 30, count // 8)).astype(kind)
        spread = generator.uniform(-120, 120, count // 4).astype(kind)
        small = generator.uniform(-2, 2, count // 8).astype(kind)
        info = np.finfo(kind)
        edges = np.array([info.max, info.tiny, info.smallest_subnormal, info.tiny - info.smallest_subnormal], kind)
    multiples = (np.arange(1, 4000) * (np.pi / 2)).astype(kind)
    return np.concatenate([SPECIALS.astype(kind), edges, -edges, bits.view(kind), near_one, spread, small, multiples, -multiples])
