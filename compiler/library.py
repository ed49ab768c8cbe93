"""Functions over primitives: what front ends and passes build programs with.

Every function takes the builder first and returns nodes. The first half are conveniences (constants, broadcasting,
index wrapping); the second half are composites: one `Composite` node whose body is the function's meaning in
primitives, so that a pass or a backend may claim it as a whole, and `decompose` can always open it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .ir.dims import DimLike
from .ir.errors import CompileError
from .ir.graph import Builder, Constant, Graph, Node
from .ir.ops.compute import Cast, Dot, Elementwise, Reduce
from .ir.ops.control import Composite, Const, Get, Param
from .ir.ops.shape import Broadcast, Iota, Pad, Reshape, SizeOf, Slice, Take, Transpose
from .ir.types import I64, DType, TupleType


def constant(b: Builder, value: object, dtype: DType | None = None) -> Node:
    """A constant of the given dtype, or of the array's own."""
    array = np.asarray(value) if dtype is None else np.asarray(value).astype(dtype.numpy)
    return b.add(Const(Constant(array)))


def scalar(b: Builder, function: str, *operands: Node) -> Node:
    """A scalar function on operands of equal shape and dtype."""
    return b.add(Elementwise(function), *operands)


def cast(b: Builder, x: Node, dtype: DType) -> Node:
    return x if x.dtype == dtype else b.add(Cast(dtype), x)


def full(b: Builder, value: object, dtype: DType, shape: Sequence[DimLike]) -> Node:
    """`value` everywhere."""
    return broadcast(b, constant(b, value, dtype), shape)


def size_value(b: Builder, size: DimLike, dtype: DType = I64) -> Node:
    """A size as a scalar value."""
    if isinstance(size, int):
        return constant(b, size, dtype)
    return cast(b, b.add(SizeOf(size)), dtype)


def reshape(b: Builder, x: Node, shape: Sequence[DimLike]) -> Node:
    return x if x.shape == tuple(shape) else b.add(Reshape(tuple(shape)), x)


def transpose(b: Builder, x: Node, perm: Sequence[int]) -> Node:
    return x if list(perm) == list(range(x.rank)) else b.add(Transpose(tuple(perm)), x)


def broadcast(b: Builder, x: Node, shape: Sequence[DimLike]) -> Node:
    """NumPy's broadcast_to."""
    return x if x.shape == tuple(shape) else b.add(Broadcast(tuple(shape)), x)


def broadcast_shapes(*shapes: Sequence[DimLike]) -> tuple[DimLike, ...]:
    """NumPy's rule; symbolic sizes must be equal or meet a 1. CompileError names the axis and both sizes."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[DimLike] = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            if result[axis] == 1:
                result[axis] = size
            elif size not in (1, result[axis]):
                texts = " and ".join(f"({', '.join(map(str, s))})" for s in shapes)
                raise CompileError(f"shapes {texts} do not broadcast: {result[axis]} vs {size} on axis {axis - rank}")
    return tuple(result)


def broadcast_together(b: Builder, *operands: Node) -> tuple[Node, ...]:
    shape = broadcast_shapes(*(x.shape for x in operands))
    return tuple(broadcast(b, x, shape) for x in operands)


def apply(b: Builder, function: str, *operands: Node) -> Node:
    """A scalar function with broadcasting; dtypes must agree already."""
    return b.add(Elementwise(function), *broadcast_together(b, *operands))


def like(b: Builder, value: float | int | bool, x: Node) -> Node:
    """`value` in the dtype of x, as a scalar that broadcasts."""
    return constant(b, value, x.dtype)


def expand(b: Builder, x: Node, axes: Sequence[int]) -> Node:
    """New axes of size 1 at these places of the result."""
    rank = x.rank + len(axes)
    sizes = iter(x.shape)
    return reshape(b, x, [1 if a in axes else next(sizes) for a in range(rank)])


def squeeze(b: Builder, x: Node, axes: Sequence[int]) -> Node:
    return reshape(b, x, [n for a, n in enumerate(x.shape) if a not in axes])


def reduce(b: Builder, kind: str, x: Node, axes: Sequence[int], keep: bool = False) -> Node:
    """A reduction; `keep` leaves the axes with size 1."""
    ordered = tuple(sorted(axes))
    value = b.add(Reduce(kind, ordered), x) if ordered else x
    return expand(b, value, ordered) if keep and ordered else value


def mean(b: Builder, x: Node, axes: Sequence[int], keep: bool = False) -> Node:
    count: DimLike = 1
    for axis in axes:
        count = count * x.shape[axis]
    total = reduce(b, "sum", x, axes, keep)
    return apply(b, "div", total, size_value(b, count, x.dtype))


def matmul(b: Builder, x: Node, y: Node, result: DType | None = None) -> Node:
    """NumPy's matmul on operands of one dtype, or of narrow integers into `result`: vectors, broadcast batch axes."""
    if x.rank == 0 or y.rank == 0:
        raise CompileError("matmul: needs operands of rank 1 or more, found a scalar")
    if x.rank == 1 or y.rank == 1 or y.rank == 2:
        op = Dot((x.rank - 1,), (max(y.rank - 2, 0),), result=result)
        return b.add(op, x, y) if y.rank <= 2 else _vector_matmul(b, x, y, result)
    batch = broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x = broadcast(b, x, (*batch, *x.shape[-2:]))
    y = broadcast(b, y, (*batch, *y.shape[-2:]))
    axes = tuple(range(len(batch)))
    return b.add(Dot((x.rank - 1,), (y.rank - 2,), axes, axes, result), x, y)


def _vector_matmul(b: Builder, x: Node, y: Node, result: DType | None) -> Node:
    row = expand(b, x, (0,))
    return squeeze(b, matmul(b, row, y, result), (y.rank - 2,))


def wrap_indices(b: Builder, indices: Node, size: DimLike) -> Node:
    """Adds the axis' size to negative indices, as NumPy reads them; what is still outside fails at run time."""
    if indices.dtype.kind == "u":
        return indices
    indices = cast(b, indices, I64)
    zero, extent = constant(b, 0, I64), size_value(b, size)
    negative = apply(b, "lt", indices, zero)
    return scalar(b, "select", negative, *broadcast_together(b, apply(b, "add", indices, extent), indices))


def take(b: Builder, x: Node, indices: Node, axis: int) -> Node:
    """NumPy's take: negative indices count from the end."""
    return b.add(Take(axis), x, wrap_indices(b, indices, x.shape[axis]))


def slice_axis(b: Builder, x: Node, axis: int, start: DimLike, size: DimLike, step: int = 1) -> Node:
    starts: list[DimLike] = [0] * x.rank
    sizes, steps = list(x.shape), [1] * x.rank
    starts[axis], sizes[axis], steps[axis] = start, size, step
    whole = start == 0 and size == x.shape[axis] and step == 1
    return x if whole else b.add(Slice(tuple(starts), tuple(sizes), tuple(steps)), x)


def slice_parts(b: Builder, x: Node, axis: int, sizes: Sequence[DimLike]) -> tuple[Node, ...]:
    """Parts of these sizes one after the other, from the beginning of the axis."""
    parts: list[Node] = []
    start: DimLike = 0
    for n in sizes:
        parts.append(slice_axis(b, x, axis, start, n))
        start = start + n
    return tuple(parts)


def pad(b: Builder, x: Node, low: Sequence[DimLike], high: Sequence[DimLike], value: float | int | bool = 0) -> Node:
    if all(n == 0 for n in (*low, *high)):
        return x
    return b.add(Pad(tuple(low), tuple(high)), x, like(b, value, x))


def composite(b: Builder, label: str, make: Callable[..., Node | tuple[Node, ...]], *operands: Node,
              **attributes: object) -> Node:
    """One node for `make(body_builder, *params, **attributes)`, which is traced into the body."""
    inner = Builder(b.loc)
    params = [inner.add(Param(f"x{i}", x.dtype, x.shape)) for i, x in enumerate(operands)]
    made = make(inner, *params, **attributes)
    results = made if isinstance(made, tuple) else (made,)
    body = Graph(label, params, results)
    return b.add(Composite(label, body, tuple(sorted(attributes.items()))), *operands)


def results_of(b: Builder, node: Node) -> tuple[Node, ...]:
    """The items of a tuple, or the value itself."""
    if not isinstance(node.type, TupleType):
        return (node,)
    return tuple(b.add(Get(i), node) for i in range(len(node.type.items)))


# --- composites ------------------------------------------------------------------------------------------------------


def _softmax(b: Builder, x: Node, axis: int) -> Node:
    shifted = apply(b, "sub", x, reduce(b, "max", x, (axis,), keep=True))
    exponential = scalar(b, "exp", shifted)
    return apply(b, "div", exponential, reduce(b, "sum", exponential, (axis,), keep=True))


def softmax(b: Builder, x: Node, axis: int) -> Node:
    """exp(x - max) / sum along `axis` (0 <= axis < rank)."""
    return composite(b, "softmax", _softmax, x, axis=axis)


def _layer_norm(b: Builder, x: Node, scale: Node, bias: Node, axes: tuple[int, ...], epsilon: float) -> Node:
    centred = apply(b, "sub", x, mean(b, x, axes, keep=True))
    variance = mean(b, scalar(b, "mul", centred, centred), axes, keep=True)
    deviation = scalar(b, "sqrt", apply(b, "add", variance, like(b, epsilon, x)))
    return apply(b, "add", apply(b, "mul", apply(b, "div", centred, deviation), scale), bias)


def layer_norm(b: Builder, x: Node, scale: Node, bias: Node, axes: Sequence[int], epsilon: float) -> Node:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over `axes` (Ba et al., Layer Normalization, 2016)."""
    return composite(b, "layer_norm", _layer_norm, x, scale, bias, axes=tuple(axes), epsilon=float(epsilon))


def _gelu(b: Builder, x: Node) -> Node:
    half = apply(b, "mul", x, like(b, 0.5, x))
    argument = apply(b, "mul", x, like(b, 0.7071067811865476, x))
    return scalar(b, "mul", half, apply(b, "add", scalar(b, "erf", argument), like(b, 1.0, x)))


def gelu(b: Builder, x: Node) -> Node:
    """x/2 (1 + erf(x / sqrt 2)) (Hendrycks and Gimpel, 2016)."""
    return composite(b, "gelu", _gelu, x)


def decompose(b: Builder, op: Composite, operands: Sequence[Node]) -> tuple[Node, ...]:
    """The results of the composite's body, built on these operands."""
    return inline(b, op.body, operands)


def inline(b: Builder, body: Graph, operands: Sequence[Node]) -> tuple[Node, ...]:
    """The body's nodes rebuilt in `b` with the operands in place of its params."""
    values: dict[int, Node] = {id(p): x for p, x in zip(body.params, operands, strict=True)}
    for node in body.nodes():
        if id(node) not in values:
            values[id(node)] = b.add(node.op, *(values[id(i)] for i in node.inputs), loc=node.loc)
    return tuple(values[id(r)] for r in body.results)




# --- activations -----------------------------------------------------------------------------------------------------


def _log_softmax(b: Builder, x: Node, axis: int) -> Node:
    shifted = apply(b, "sub", x, reduce(b, "max", x, (axis,), keep=True))
    total = reduce(b, "sum", scalar(b, "exp", shifted), (axis,), keep=True)
    return apply(b, "sub", shifted, scalar(b, "log", total))


def log_softmax(b: Builder, x: Node, axis: int) -> Node:
    """x - max - log(sum(exp(x - max))) along `axis` (0 <= axis < rank)."""
    return composite(b, "log_softmax", _log_softmax, x, axis=axis)


def _gelu_tanh(b: Builder, x: Node) -> Node:
    cube = scalar(b, "mul", x, scalar(b, "mul", x, x))
    inner = apply(b, "add", x, apply(b, "mul", cube, like(b, 0.044715, x)))
    argument = apply(b, "mul", inner, like(b, 0.7978845608028654, x))
    half = apply(b, "mul", x, like(b, 0.5, x))
    return scalar(b, "mul", half, apply(b, "add", scalar(b, "tanh", argument), like(b, 1.0, x)))


def gelu_tanh(b: Builder, x: Node) -> Node:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the approximation of `gelu`."""
    return composite(b, "gelu_tanh", _gelu_tanh, x)


def _elu(b: Builder, x: Node, alpha: float) -> Node:
    low = apply(b, "mul", scalar(b, "expm1", apply(b, "min", x, like(b, 0, x))), like(b, alpha, x))
    return apply(b, "select", apply(b, "lt", x, like(b, 0, x)), low, x)


def elu(b: Builder, x: Node, alpha: float = 1.0) -> Node:
    """x, or alpha (exp(x) - 1) where x < 0 (Clevert et al., 2016)."""
    return composite(b, "elu", _elu, x, alpha=float(alpha))


def _selu(b: Builder, x: Node, alpha: float, gamma: float) -> Node:
    return apply(b, "mul", _elu(b, x, alpha), like(b, gamma, x))


def selu(b: Builder, x: Node, alpha: float, gamma: float) -> Node:
    """gamma elu(x, alpha) (Klambauer et al., 2017)."""
    return composite(b, "selu", _selu, x, alpha=float(alpha), gamma=float(gamma))


def _celu(b: Builder, x: Node, alpha: float) -> Node:
    low = apply(b, "mul", scalar(b, "expm1", apply(b, "div", apply(b, "min", x, like(b, 0, x)), like(b, alpha, x))),
                like(b, alpha, x))
    return apply(b, "select", apply(b, "lt", x, like(b, 0, x)), low, x)


def celu(b: Builder, x: Node, alpha: float = 1.0) -> Node:
    """x, or alpha (exp(x / alpha) - 1) where x < 0 (Barron, 2017)."""
    return composite(b, "celu", _celu, x, alpha=float(alpha))


def leaky_relu(b: Builder, x: Node, alpha: float = 0.01) -> Node:
    """x, or alpha x where x < 0."""
    return apply(b, "select", apply(b, "lt", x, like(b, 0, x)), apply(b, "mul", x, like(b, alpha, x)), x)


def hard_sigmoid(b: Builder, x: Node, alpha: float = 0.2, beta: float = 0.5) -> Node:
    """alpha x + beta, clipped to 0..1."""
    line = apply(b, "add", apply(b, "mul", x, like(b, alpha, x)), like(b, beta, x))
    return apply(b, "min", apply(b, "max", line, like(b, 0, x)), like(b, 1, x))


def hard_swish(b: Builder, x: Node) -> Node:
    """x hard_sigmoid(x, 1/6, 1/2) (Howard et al., Searching for MobileNetV3, 2019)."""
    return scalar(b, "mul", x, hard_sigmoid(b, x, 1 / 6, 0.5))


def swish(b: Builder, x: Node, alpha: float = 1.0) -> Node:
    """x sigmoid(alpha x)."""
    scaled = x if alpha == 1.0 else apply(b, "mul", x, like(b, alpha, x))
    return scalar(b, "mul", x, scalar(b, "sigmoid", scaled))


def _softplus(b: Builder, x: Node) -> Node:
    # log(1 + exp(x)) without overflow for large x: max(x, 0) + log1p(exp(-|x|))
    tail = scalar(b, "log1p", scalar(b, "exp", scalar(b, "neg", scalar(b, "abs", x))))
    return scalar(b, "add", apply(b, "max", x, like(b, 0, x)), tail)


def softplus(b: Builder, x: Node) -> Node:
    """log(1 + exp(x))."""
    return composite(b, "softplus", _softplus, x)


def _mish(b: Builder, x: Node) -> Node:
    return scalar(b, "mul", x, scalar(b, "tanh", _softplus(b, x)))


def mish(b: Builder, x: Node) -> Node:
    """x tanh(softplus(x)) (Misra, 2019)."""
    return composite(b, "mish", _mish, x)


def softsign(b: Builder, x: Node) -> Node:
    """x / (1 + |x|)."""
    return scalar(b, "div", x, apply(b, "add", like(b, 1, x), scalar(b, "abs", x)))


# --- normalizations --------------------------------------------------------------------------------------------------


def _rms_norm(b: Builder, x: Node, scale: Node, axes: tuple[int, ...], epsilon: float) -> Node:
    square = mean(b, scalar(b, "mul", x, x), axes, keep=True)
    size = scalar(b, "sqrt", apply(b, "add", square, like(b, epsilon, x)))
    return apply(b, "mul", apply(b, "div", x, size), scale)


def rms_norm(b: Builder, x: Node, scale: Node, axes: Sequence[int], epsilon: float) -> Node:
    """x / sqrt(mean(x^2) + epsilon) * scale over `axes` (Zhang and Sennrich, 2019)."""
    return composite(b, "rms_norm", _rms_norm, x, scale, axes=tuple(axes), epsilon=float(epsilon))


# --- einsum ----------------------------------------------------------------------------------------------------------


def parse_einsum(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Labels of each operand and of the result. The axes of an ellipsis are labelled '...0', '...1' from its last."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise CompileError(f"einsum: {equation!r} has {len(terms)} terms for {len(ranks)} operands")
    labels = [_einsum_labels(term, rank, equation) for term, rank in zip(terms, ranks)]
    widest = max((sum(label.startswith("...") for label in term) for term in labels), default=0)
    ellipsis = [f"...{i}" for i in reversed(range(widest))]
    if arrow:
        result = _einsum_labels(right, len(right.replace("...", "")) + (widest if "..." in right else 0), equation)
        unknown = [label for label in result if not any(label in term for term in labels)]
        if unknown or len(set(result)) != len(result):
            raise CompileError(f"einsum: the result of {equation!r} names {unknown[0] if unknown else 'an axis twice'}, "
                               f"which {'no operand has' if unknown else 'is not possible'}")
        return labels, result
    plain = [label for term in labels for label in term if not label.startswith("...")]
    return labels, [*ellipsis, *sorted(label for label in set(plain) if plain.count(label) == 1)]


def _einsum_labels(term: str, rank: int, equation: str) -> list[str]:
    before, dots, after = term.partition("...")
    if not (before + after).isalpha() and before + after:
        raise CompileError(f"einsum: {term!r} in {equation!r} holds more than letters and one ellipsis")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or hidden and not dots:
        raise CompileError(f"einsum: {term!r} in {equation!r} does not fit an operand of rank {rank}")
    return [*before, *(f"...{i}" for i in reversed(range(hidden))), *after]


def einsum(b: Builder, equation: str, *operands: Node) -> Node:
    """NumPy's einsum on operands of one dtype, contracted from left to right."""
    labels, result = parse_einsum(equation, [x.rank for x in operands])
    sizes: dict[str, DimLike] = {}
    for term, x in zip(labels, operands):
        for label, size in zip(term, x.shape):
            if sizes.setdefault(label, size) == 1:
                sizes[label] = size
    terms = [_einsum_operand(b, x, term, sizes) for x, term in zip(operands, labels)]
    value, known = terms[0]
    for place, (x, term) in enumerate(terms[1:], 1):
        later = {label for _, rest in terms[place + 1:] for label in rest} | set(result)
        value, known = _einsum_sum(b, value, known, later | set(term))
        x, term = _einsum_sum(b, x, term, later | set(known))
        value, known = _einsum_pair(b, value, known, x, term, later)
    value, known = _einsum_sum(b, value, known, set(result))
    for label in result:
        if label not in known:          # every operand has size 1 there
            value, known = expand(b, value, (value.rank,)), [*known, label]
    return transpose(b, value, [known.index(label) for label in result])


def _einsum_operand(b: Builder, x: Node, term: list[str], sizes: dict[str, DimLike]) -> tuple[Node, list[str]]:
    """Without axes of size 1 (they broadcast) and with the diagonal of labels that stand twice."""
    for label in set(term):
        while term.count(label) > 1:
            first = term.index(label)
            second = term.index(label, first + 1)
            x, term = _diagonal(b, x, first, second), [t for a, t in enumerate(term) if a != second]
    for axis in reversed(range(len(term))):
        if x.shape[axis] != 1 and x.shape[axis] != sizes[term[axis]]:
            raise CompileError(f"einsum: axis {term[axis]} has sizes {sizes[term[axis]]} and {x.shape[axis]}")
    drop = [a for a, n in enumerate(x.shape) if n == 1]
    return squeeze(b, x, drop), [t for a, t in enumerate(term) if a not in drop]


def _diagonal(b: Builder, x: Node, first: int, second: int) -> Node:
    """The elements whose places on both axes are equal; they stay at the first one."""
    if x.shape[first] != x.shape[second]:
        raise CompileError(f"einsum: axes {first} and {second} of {x.type} have one label but two sizes")
    shape = tuple(n if a in (first, second) else 1 for a, n in enumerate(x.shape))
    row, column = b.add(Iota(I64, shape, first)), b.add(Iota(I64, shape, second))
    kept = apply(b, "select", scalar(b, "eq", row, column), x, like(b, 0, x))
    return reduce(b, "sum", kept, (second,))


def _einsum_sum(b: Builder, x: Node, term: list[str], needed: set[str]) -> tuple[Node, list[str]]:
    gone = [a for a, label in enumerate(term) if label not in needed]
    return reduce(b, "sum", x, gone), [label for label in term if label in needed]


def _einsum_pair(b: Builder, x: Node, left: list[str], y: Node, right: list[str],
                 later: set[str]) -> tuple[Node, list[str]]:
    shared = [label for label in left if label in right]
    summed = [label for label in shared if label not in later]
    batch = [label for label in shared if label in later]
    free = [label for label in right if label not in shared]
    if not summed:
        wide = [*left, *free]
        x = reshape(b, x, [*x.shape, *[1] * len(free)])
        order = [right.index(label) for label in wide if label in right]
        sizes = iter(y.shape[a] for a in order)
        y = reshape(b, transpose(b, y, order), [next(sizes) if label in right else 1 for label in wide])
        return apply(b, "mul", x, y), wide
    op = Dot(tuple(left.index(s) for s in summed), tuple(right.index(s) for s in summed),
             tuple(left.index(s) for s in batch), tuple(right.index(s) for s in batch))
    return b.add(op, x, y), [*batch, *(label for label in left if label not in shared), *free]
