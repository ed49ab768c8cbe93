"""ONNX operators that compute element by element: arithmetic, comparisons, logic, casts, activations.

Assumes operands of the dtypes that the standard allows; mixed dtypes are refused by the IR's own type rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...ir.dims import Dim
from ...ir.graph import Node
from ...ir.ops.compute import Bitcast
from ...ir.types import F32, F64, I64, U8
from ...library import celu, elu, gelu, gelu_tanh, hard_sigmoid, hard_swish, leaky_relu, mish, selu, softplus, softsign, swish
from .context import Context, Operators, lower_bound
from .narrow import ROUND_MODES, converted

Function = Callable[..., Node]


def unary(function: str) -> Function:
    """An operator that is one scalar function."""
    def build(c: Context, x: Node) -> Node:
        return c.scalar(function, x)
    return build


def legacy_unary(function: str) -> Function:
    """As `unary`; opset 1 named inputs that may be overwritten."""
    def build(c: Context, x: Node, *, consumed_inputs: tuple[int, ...] = ()) -> Node:
        return c.scalar(function, x)
    return build


def binary(function: str) -> Function:
    """An operator that is one scalar function of two operands, with broadcasting."""
    def build(c: Context, a: Node, b: Node) -> Node:
        return c.apply(function, a, b)
    return build


def legacy_binary(function: str) -> Function:
    """As `binary`; below opset 7 broadcasting was asked for by attributes."""
    def build(c: Context, a: Node, b: Node, *, axis: int | None = None, broadcast: int = 0,
              consumed_inputs: tuple[int, ...] = ()) -> Node:
        return c.apply(function, a, _aligned(c, a, b, axis))
    return build


def _aligned(c: Context, a: Node, b: Node, axis: int | None) -> Node:
    """Before opset 7: `b` matches the axes of `a` that begin at `axis`."""
    if axis is None:
        return b
    first = c.axis(axis, a.rank)
    trailing = a.rank - first - b.rank
    if trailing < 0:
        c.fail(f"axis {axis} leaves no room for {b.type} in {a.type}")
    return c.reshape(b, (*b.shape, *[1] * trailing))


def variadic(function: str) -> Function:
    """An operator that combines any number of operands, with broadcasting."""
    def build(c: Context, first: Node, *rest: Node, consumed_inputs: tuple[int, ...] = ()) -> Node:
        total = first
        for x in rest:
            total = c.apply(function, total, x)
        return total
    return build


def mean(c: Context, first: Node, *rest: Node, consumed_inputs: tuple[int, ...] = ()) -> Node:
    total = variadic("add")(c, first, *rest)
    return c.apply("div", total, c.like(1 + len(rest), total))


def division(c: Context, a: Node, b: Node, *, axis: int | None = None, broadcast: int = 0,
             consumed_inputs: tuple[int, ...] = ()) -> Node:
    """Integers truncate towards zero."""
    b = _aligned(c, a, b, axis)
    if a.dtype.is_float:
        return c.apply("div", a, b)
    if a.dtype.kind == "u" or _never_negative(c, a) and _never_negative(c, b):
        return c.apply("floordiv", a, b)
    whole = c.apply("sub", a, c.apply("rem", a, b))
    return c.apply("floordiv", whole, b)


def _never_negative(c: Context, x: Node) -> bool:
    """Proved from a known value (arithmetic on sizes stays simple that way)."""
    value = c.value(x)
    return value is not None and all(e >= 0 if isinstance(e, (int, np.integer)) else isinstance(e, Dim) and lower_bound(e) >= 0
                                     for e in value.flat)


def modulo(c: Context, a: Node, b: Node, *, fmod: int = 0) -> Node:
    return c.apply("rem" if fmod else "mod", a, b)


def power(c: Context, x: Node, y: Node, *, axis: int | None = None, broadcast: int = 0) -> Node:
    """The result has the base's dtype; an integer base with a float exponent is computed in float64."""
    y = _aligned(c, x, y, axis)
    if x.dtype == y.dtype:
        return c.apply("pow", x, y)
    if x.dtype.is_float:
        if y.dtype.is_float and y.dtype.bits > x.dtype.bits:
            return c.cast(c.apply("pow", c.cast(x, y.dtype), y), x.dtype)
        return c.apply("pow", x, c.cast(y, x.dtype))
    if y.dtype.is_float:
        return c.cast(c.apply("pow", c.cast(x, F64), c.cast(y, F64)), x.dtype)
    wide = I64
    return c.cast(c.apply("pow", c.cast(x, wide), c.cast(y, wide)), x.dtype)


def reciprocal(c: Context, x: Node, *, consumed_inputs: tuple[int, ...] = ()) -> Node:
    return c.apply("div", c.like(1, x), x)


def relu(c: Context, x: Node, *, consumed_inputs: tuple[int, ...] = ()) -> Node:
    return c.apply("max", x, c.like(0, x))


def clip(c: Context, x: Node, min: Node | float | None = None, max: Node | float | None = None, *,
         consumed_inputs: tuple[int, ...] = ()) -> Node:
    """Where the bounds cross, the upper one wins."""
    for function, bound in (("max", min), ("min", max)):
        if bound is not None:
            limit = bound if isinstance(bound, Node) else c.like(bound, x)
            x = c.apply(function, x, limit if limit.rank == 0 else c.reshape(limit, ()))
    return x


def bit_shift(c: Context, x: Node, y: Node, *, direction: str) -> Node:
    functions = {"LEFT": "shl", "RIGHT": "shr"}
    return c.apply(functions[c.choice(direction, "direction", tuple(functions))], x, y)


def is_inf(c: Context, x: Node, *, detect_negative: int = 1, detect_positive: int = 1) -> Node:
    infinite = c.scalar("isinf", x)
    if detect_negative and detect_positive:
        return infinite
    if not detect_negative and not detect_positive:
        return c.full(False, infinite.dtype, x.shape)
    sided = c.apply("gt" if detect_positive else "lt", x, c.like(0, x))
    return c.scalar("and", infinite, sided)


def where(c: Context, condition: Node, x: Node, y: Node) -> Node:
    return c.apply("select", condition, x, y)


def cast(c: Context, x: Node, *, to: int | str, saturate: int = 1, round_mode: str = "up") -> Node:
    """Float to integer truncates; values outside the integer's range saturate (the standard leaves them open)."""
    if isinstance(to, str):
        c.unsupported("the spelling of 'to' before opset 6 is not supported")
    return converted(c.b, x, c.dtype(to), bool(saturate), c.choice(round_mode, "round_mode", ROUND_MODES))


def cast_like(c: Context, x: Node, target: Node, *, saturate: int = 1, round_mode: str = "up") -> Node:
    return converted(c.b, x, target.dtype, bool(saturate), c.choice(round_mode, "round_mode", ROUND_MODES))


def bit_cast(c: Context, x: Node, *, to: int) -> Node:
    dtype = c.dtype(to)
    if dtype == x.dtype:
        return x
    if dtype.is_bool:
        c.unsupported("bits other than 0 and 1 are no bool")
    if x.dtype.is_bool:
        x = c.cast(x, U8)
    return x if dtype == x.dtype else c.b.add(Bitcast(dtype), x)


def selu_(c: Context, x: Node, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875,
          consumed_inputs: tuple[int, ...] = ()) -> Node:
    return selu(c.b, x, alpha, gamma)


def elu_(c: Context, x: Node, *, alpha: float = 1.0, consumed_inputs: tuple[int, ...] = ()) -> Node:
    return elu(c.b, x, alpha)


def celu_(c: Context, x: Node, *, alpha: float = 1.0) -> Node:
    return celu(c.b, x, alpha)


def leaky_relu_(c: Context, x: Node, *, alpha: float = 0.01, consumed_inputs: tuple[int, ...] = ()) -> Node:
    return leaky_relu(c.b, x, alpha)


def prelu(c: Context, x: Node, slope: Node, *, consumed_inputs: tuple[int, ...] = ()) -> Node:
    if c.opset < 7 and slope.rank == 1 and x.rank > 1:
        slope = c.reshape(slope, (*slope.shape, *[1] * (x.rank - 2)))
    return c.apply("select", c.apply("lt", x, c.like(0, x)), c.apply("mul", x, slope), x)


def thresholded_relu(c: Context, x: Node, *, alpha: float = 1.0) -> Node:
    return c.apply("select", c.apply("gt", x, c.like(alpha, x)), x, c.like(0, x))


def hard_sigmoid_(c: Context, x: Node, *, alpha: float = 0.2, beta: float = 0.5,
                  consumed_inputs: tuple[int, ...] = ()) -> Node:
    return hard_sigmoid(c.b, x, alpha, beta)


def hard_swish_(c: Context, x: Node) -> Node:
    return hard_swish(c.b, x)


def mish_(c: Context, x: Node) -> Node:
    return mish(c.b, x)


def swish_(c: Context, x: Node, *, alpha: float = 1.0) -> Node:
    return swish(c.b, x, alpha)


def swiglu(c: Context, a: Node, b: Node, *, alpha: float = 1.0) -> Node:
    """swish(a) b; nothing is broadcast."""
    return c.scalar("mul", swish(c.b, a, alpha), c.refine(b, a.shape))


def softplus_(c: Context, x: Node) -> Node:
    return softplus(c.b, x)


def softsign_(c: Context, x: Node) -> Node:
    return softsign(c.b, x)


def gelu_(c: Context, x: Node, *, approximate: str = "none") -> Node:
    tanh = c.choice(approximate, "approximate", ("none", "tanh")) == "tanh"
    return gelu_tanh(c.b, x) if tanh else gelu(c.b, x)


def shrink(c: Context, x: Node, *, bias: float = 0.0, lambd: float = 0.5) -> Node:
    """0 between -lambd and lambd, moved towards 0 by the bias outside."""
    zero = c.like(0, x)
    above = c.apply("select", c.apply("gt", x, _threshold(c, lambd, x)), c.apply("sub", x, c.like(bias, x)), zero)
    return c.apply("select", c.apply("lt", x, _threshold(c, -lambd, x)), c.apply("add", x, c.like(bias, x)), above)


def _threshold(c: Context, value: float, x: Node) -> Node:
    """A float bound for x; for integers the nearest whole number on the side of zero decides alike."""
    return c.like(value if x.dtype.is_float else math.trunc(value), x)


def erf(c: Context, x: Node) -> Node:
    return c.scalar("erf", x) if x.dtype.is_float else c.cast(c.scalar("erf", c.cast(x, F32)), x.dtype)


def bitwise(function: str) -> Function:
    def build(c: Context, a: Node, b: Node) -> Node:
        if not a.dtype.is_integer:
            c.fail(f"needs integers, found {a.type}")
        return c.apply(function, a, b)
    return build


OPS: Operators = {
    "Abs": legacy_unary("abs"), "Acos": unary("acos"), "Acosh": unary("acosh"), "Add": legacy_binary("add"),
    "And": legacy_binary("and"), "Asin": unary("asin"), "Asinh": unary("asinh"), "Atan": unary("atan"),
    "Atanh": unary("atanh"), "BitCast": bit_cast, "BitShift": bit_shift, "BitwiseAnd": bitwise("and"),
    "BitwiseNot": unary("not"), "BitwiseOr": bitwise("or"), "BitwiseXor": bitwise("xor"), "Cast": cast,
    "CastLike": cast_like, "Ceil": legacy_unary("ceil"), "Celu": celu_, "Clip": clip, "Cos": unary("cos"),
    "Cosh": unary("cosh"), "Div": division, "Elu": elu_, "Equal": legacy_binary("eq"), "Erf": erf, "Exp": legacy_unary("exp"),
    "Floor": legacy_unary("floor"), "Gelu": gelu_, "Greater": legacy_binary("gt"), "GreaterOrEqual": binary("ge"),
    "HardSigmoid": hard_sigmoid_, "HardSwish": hard_swish_, "IsInf": is_inf, "IsNaN": unary("isnan"),
    "LeakyRelu": leaky_relu_, "Less": legacy_binary("lt"), "LessOrEqual": binary("le"), "Log": legacy_unary("log"),
    "Max": variadic("max"), "Mean": mean, "Min": variadic("min"), "Mish": mish_, "Mod": modulo,
    "Mul": legacy_binary("mul"), "Neg": legacy_unary("neg"), "Not": unary("not"), "Or": legacy_binary("or"), "PRelu": prelu,
    "Pow": power, "Reciprocal": reciprocal, "Relu": relu, "Round": unary("round"), "Selu": selu_, "Shrink": shrink,
    "Sigmoid": legacy_unary("sigmoid"), "Sign": unary("sign"), "Sin": unary("sin"), "Sinh": unary("sinh"),
    "Softplus": softplus_, "Softsign": softsign_, "Sqrt": legacy_unary("sqrt"), "Sub": legacy_binary("sub"),
    "Sum": variadic("add"), "SwiGLU": swiglu, "Swish": swish_, "Tan": unary("tan"), "Tanh": legacy_unary("tanh"),
    "ThresholdedRelu": thresholded_relu, "Where": where, "Xor": legacy_binary("xor"),
}
