"""NumPy's products of arrays, on traced ones: dot, inner, outer, tensordot, einsum and what is written with them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import library
from ..ir.dims import DimLike
from ..ir.graph import Node
from ..ir.ops.compute import Dot
from ..ir.types import BOOL, I32, DType, dtype_of
from .numpy_errors import TraceTypeError, TraceValueError
from .numpy_tracer import TracedArray, Tracer, shape_text
from .numpy_ufuncs import matmul, normalize_axes, promotion_type, store


def common_dtype(*values: Any) -> DType:
    """NumPy's result_type of the operands, which are arrays: Python scalars are not weak."""
    return dtype_of(np.result_type(*(np.dtype(promotion_type(v)) for v in values)))


def _contract(t: Tracer, op: Dot, x: Node, y: Node) -> Node:
    """A contraction; bool operands count pairs and ask whether there is one."""
    if not x.dtype.is_bool:
        return t.b.add(op, x, y)
    return library.cast(t.b, t.b.add(op, library.cast(t.b, x, I32), library.cast(t.b, y, I32)), BOOL)


def _array(t: Tracer, node: Node) -> TracedArray:
    return t.array(node, scalar=not node.rank)


def dot(t: Tracer, a: Any, b: Any, out: Any = None) -> Any:
    x, y = t.as_array(a), t.as_array(b)
    if not x.ndim or not y.ndim:
        return np.multiply(x, y, out=out)
    dtype = common_dtype(a, b)
    if x.ndim <= 2 and y.ndim <= 2:
        return store(t, matmul(t, t.node(x, dtype), t.node(y, dtype)), out)
    axis = max(y.ndim - 2, 0)
    _match(t, "dot", x, x.ndim - 1, y, axis)
    return store(t, _array(t, _contract(t, Dot((x.ndim - 1,), (axis,)), t.node(x, dtype), t.node(y, dtype))), out)


def _match(t: Tracer, name: str, x: TracedArray, i: int, y: TracedArray, j: int) -> None:
    t.unify(x.dims[i], y.dims[j], f"{name}: shapes {shape_text(x.dims)} and {shape_text(y.dims)} not aligned: "
            f"{x.dims[i]} (dim {i}) != {y.dims[j]} (dim {j})")  # fmt: skip


def vdot(t: Tracer, a: Any, b: Any) -> Any:
    return dot(t, np.ravel(t.as_array(a)), np.ravel(t.as_array(b)))


def inner(t: Tracer, a: Any, b: Any) -> Any:
    x, y = t.as_array(a), t.as_array(b)
    if not x.ndim or not y.ndim:
        return np.multiply(x, y)
    _match(t, "inner", x, x.ndim - 1, y, y.ndim - 1)
    dtype = common_dtype(a, b)
    return _array(t, _contract(t, Dot((x.ndim - 1,), (y.ndim - 1,)), t.node(x, dtype), t.node(y, dtype)))


def outer(t: Tracer, a: Any, b: Any, out: Any = None) -> Any:
    x, y = np.ravel(t.as_array(a)), np.ravel(t.as_array(b))
    return np.multiply(x[:, None], y[None, :], out=out)


def tensordot(t: Tracer, a: Any, b: Any, axes: Any = 2) -> Any:
    x, y = t.as_array(a), t.as_array(b)
    if isinstance(axes, (int, np.integer)):
        left = list(range(x.ndim - int(axes), x.ndim))
        right = list(range(int(axes)))
    else:
        first, second = axes
        left = list(first) if isinstance(first, (tuple, list)) else [first]
        right = list(second) if isinstance(second, (tuple, list)) else [second]
    if len(left) != len(right) or len(left) > min(x.ndim, y.ndim):
        raise TraceValueError("tensordot: shape-mismatch for sum: the axes differ in number")
    left = [normalize_axes(i, x.ndim)[0] for i in left]
    right = [normalize_axes(i, y.ndim)[0] for i in right]
    for i, j in zip(left, right):
        _match(t, "tensordot: shape-mismatch for sum", x, i, y, j)
    dtype = common_dtype(a, b)
    return _array(t, _contract(t, Dot(tuple(left), tuple(right)), t.node(x, dtype), t.node(y, dtype)))


def kron(t: Tracer, a: Any, b: Any) -> Any:
    x, y = t.as_array(a), t.as_array(b)
    rank = max(x.ndim, y.ndim)
    x = np.reshape(x, (*(1,) * (rank - x.ndim), *x.shape))
    y = np.reshape(y, (*(1,) * (rank - y.ndim), *y.shape))
    wide = np.reshape(x, tuple(n for size in x.shape for n in (size, 1)))
    tall = np.reshape(y, tuple(n for size in y.shape for n in (1, size)))
    return np.reshape(wide * tall, tuple(m * n for m, n in zip(x.shape, y.shape)))


def cross(t: Tracer, a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: Any = None) -> Any:
    if axis is not None:
        axisa = axisb = axisc = axis
    x, y = np.moveaxis(t.as_array(a), axisa, -1), np.moveaxis(t.as_array(b), axisb, -1)
    for value in (x, y):
        if value.shape[-1] != 3:
            raise TraceValueError("incompatible dimensions for cross product (dimension must be 3)", hint="pad with a zero")
    parts = [x[..., i] * y[..., j] - x[..., j] * y[..., i] for i, j in ((1, 2), (2, 0), (0, 1))]
    return np.moveaxis(np.stack(parts, axis=-1), -1, axisc)


# --- einsum ----------------------------------------------------------------------------------------------------------


def einsum(t: Tracer, *operands: Any, out: Any = None, dtype: Any = None, order: str = "K", casting: Any = "safe",
           optimize: Any = False) -> Any:  # fmt: skip
    """np.einsum: letters, '...', implicit and explicit results, repeated letters (diagonals), the list form."""
    if isinstance(operands[0], str):
        text, values = operands[0].replace(" ", ""), list(operands[1:])
    else:
        text, values = _subscripts_of_lists(operands)
    arrays = [t.as_array(v) for v in values]
    inputs, result = _parse_subscripts(text, [a.ndim for a in arrays])
    kind = dtype_of(dtype) if dtype is not None else common_dtype(*values)
    terms = [_simplify(t, t.node(a, kind), labels) for a, labels in zip(arrays, inputs)]
    terms = _align_sizes(t, terms, inputs, arrays)
    while len(terms) > 1:
        i, j = _next_pair(terms, result)
        second, first = terms.pop(j), terms.pop(i)
        needed = set(result).union(*(labels for _, labels in terms)) if terms else set(result)
        terms.append(_multiply(t, first, second, needed))
    node, labels = _sum_out(t, *terms[0], set(result))
    sizes = dict(zip(labels, node.shape))
    value = library.transpose(t.b, node, [labels.index(c) for c in result if c in sizes])
    missing = [i for i, c in enumerate(result) if c not in sizes]
    value = library.expand(t.b, value, missing) if missing else value
    return store(t, _array(t, value), out, casting)


def _subscripts_of_lists(operands: Sequence[Any]) -> tuple[str, list[Any]]:
    def letters(subscript: Sequence[Any]) -> str:
        return "".join("..." if i is Ellipsis else string.ascii_letters[i] for i in subscript)

    values, parts = list(operands[0 : len(operands) // 2 * 2 : 2]), operands[1::2]
    text = ",".join(letters(p) for p in parts)
    return (text + "->" + letters(operands[-1]) if len(operands) % 2 else text), values


def _parse_subscripts(text: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Letters for each operand and the result, with '...' spelled by unused letters."""
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(ranks):
        raise TraceValueError(f"einsum: '{text}' names {len(parts)} operands, found {len(ranks)}")
    unused = [c for c in string.ascii_letters if c not in text]
    widest = max((rank - len(p.replace("...", "")) for p, rank in zip(parts, ranks) if "..." in p), default=0)
    spelled = "".join(unused[:widest])
    inputs = []
    for part, rank in zip(parts, ranks):
        letters = part.replace("...", "")
        count = rank - len(letters)
        if count < 0 or (count and "..." not in part) or not (letters.isalpha() or not letters):
            raise TraceValueError(f"einsum: subscripts '{part}' do not fit an operand of {rank} dimensions")
        inputs.append(part.replace("...", spelled[widest - count :] if count else ""))
    if arrow:
        result = right.replace("...", spelled)
        if len(set(result)) != len(result) or not set(result) <= set("".join(inputs)):
            raise TraceValueError(f"einsum: the result '{right}' repeats a letter or names one that no operand has")
        return inputs, result
    counted = left.replace("...", "").replace(",", "")
    return inputs, spelled + "".join(sorted(c for c in set(counted) if counted.count(c) == 1))


Term = tuple[Node, str]


def _simplify(t: Tracer, node: Node, labels: str) -> Term:
    """Takes the diagonal of every repeated letter."""
    for letter in dict.fromkeys(labels):
        while labels.count(letter) > 1:
            i = labels.index(letter)
            j = labels.index(letter, i + 1)
            t.unify(node.shape[i], node.shape[j], f"einsum: dimensions of '{letter}' differ: {node.shape[i]} vs {node.shape[j]}")
            diagonal = np.diagonal(t.array(node), 0, i, j)
            rest = "".join(c for k, c in enumerate(labels) if k not in (i, j))
            node, labels = t.node(diagonal), rest + letter
    return node, labels


def _align_sizes(t: Tracer, terms: list[Term], inputs: Sequence[str], arrays: Sequence[TracedArray]) -> list[Term]:
    """Letters mean one size; an operand of size 1 there does not take part."""
    sizes: dict[str, DimLike] = {}
    for (node, labels), name in zip(terms, inputs):
        for letter, size in zip(labels, node.shape):
            known = sizes.get(letter, 1)
            if known != 1 and size != 1:
                t.unify(known, size, f"einsum: operand '{name}' has size {size} for '{letter}', another has {known}")
            sizes[letter] = size if known == 1 else known
    aligned = []
    for node, labels in terms:
        single = [i for i, c in enumerate(labels) if node.shape[i] == 1 and sizes[c] != 1]
        aligned.append((library.squeeze(t.b, node, single), "".join(c for i, c in enumerate(labels) if i not in single)))
    return aligned


def _next_pair(terms: Sequence[Term], result: str) -> tuple[int, int]:
    """The pair whose product is smallest where all sizes are known; else the first two."""
    if len(terms) == 2:
        return 0, 1
    best: tuple[float, int, int] = (float("inf"), 0, 1)
    for i in range(len(terms)):
        for j in range(i + 1, len(terms)):
            cost = 1.0
            for size in {**dict(zip(terms[i][1], terms[i][0].shape)), **dict(zip(terms[j][1], terms[j][0].shape))}.values():
                if not isinstance(size, int):
                    return 0, 1
                cost *= size
            best = min(best, (cost, i, j))
    return best[1], best[2]


def _sum_out(t: Tracer, node: Node, labels: str, needed: set[str]) -> Term:
    gone = [i for i, c in enumerate(labels) if c not in needed]
    kind = "or" if node.dtype.is_bool else "sum"
    return library.reduce(t.b, kind, node, gone), "".join(c for c in labels if c in needed)


def _multiply(t: Tracer, first: Term, second: Term, needed: set[str]) -> Term:
    x, left = _sum_out(t, *first, needed | set(second[1]))
    y, right = _sum_out(t, *second, needed | set(first[1]))
    shared = [c for c in left if c in right]
    batch, contracted = [c for c in shared if c in needed], [c for c in shared if c not in needed]
    labels = "".join([*batch, *(c for c in left if c not in shared), *(c for c in right if c not in shared)])
    if not contracted:
        return _outer_product(t, x, left, y, right, labels), labels
    op = Dot(tuple(left.index(c) for c in contracted), tuple(right.index(c) for c in contracted),
             tuple(left.index(c) for c in batch), tuple(right.index(c) for c in batch))  # fmt: skip
    return _contract(t, op, x, y), labels


def _outer_product(t: Tracer, x: Node, left: str, y: Node, right: str, labels: str) -> Node:
    def spread(node: Node, own: str) -> Node:
        ordered = library.transpose(t.b, node, [own.index(c) for c in labels if c in own])
        return library.expand(t.b, ordered, [i for i, c in enumerate(labels) if c not in own])

    return library.apply(t.b, "and" if x.dtype.is_bool else "mul", spread(x, left), spread(y, right))


# --- norms and powers ------------------------------------------------------------------------------------------------


def _as_float(t: Tracer, x: Any) -> Any:
    array = t.as_array(x)
    return array if array.dtype.kind in "fV" else array.astype(np.float64)


def norm(t: Tracer, x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    array = _as_float(t, x)
    if axis is None:
        if ord is None:
            value = np.sqrt(np.sum(np.square(np.ravel(array))))
            return np.reshape(value, (1,) * array.ndim) if keepdims else value
        axis = tuple(range(array.ndim))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    if len(axes) == 1:
        return _vector_norm(array, 2 if ord is None else ord, axes[0], keepdims)
    if len(axes) == 2:
        return _matrix_norm(array, ord, tuple(normalize_axes(a, array.ndim)[0] for a in axes), keepdims)
    raise TraceValueError("Improper number of dimensions to norm.")


def _vector_norm(array: Any, ord: Any, axis: Any, keep: bool) -> Any:
    if isinstance(ord, str):
        raise TraceValueError(f"Invalid norm order '{ord}' for vectors")
    size = np.abs(array)
    if ord == np.inf:
        return np.max(size, axis=axis, keepdims=keep)
    if ord == -np.inf:
        return np.min(size, axis=axis, keepdims=keep)
    if ord == 0:
        return np.sum((array != 0).astype(array.dtype), axis=axis, keepdims=keep)
    if ord == 1:
        return np.sum(size, axis=axis, keepdims=keep)
    if ord == 2:
        return np.sqrt(np.sum(np.square(array), axis=axis, keepdims=keep))
    return np.sum(size**ord, axis=axis, keepdims=keep) ** (1.0 / ord)


def _matrix_norm(array: Any, ord: Any, axes: tuple[int, ...], keep: bool) -> Any:
    if ord in (None, "fro", "f"):
        return np.sqrt(np.sum(np.square(array), axis=axes, keepdims=keep))
    if ord in (1, -1, np.inf, -np.inf):
        summed, rest = axes if abs(ord) == 1 else axes[::-1]
        total = np.sum(np.abs(array), axis=summed, keepdims=True)
        value = (np.max if ord > 0 else np.min)(total, axis=rest, keepdims=True)
        return value if keep else np.squeeze(value, axis=axes)
    raise TraceTypeError(f"linalg.norm: the order {ord!r} of matrices needs singular values, which are not supported",
                         hint="use 'fro', 1, -1, inf or -inf")  # fmt: skip


def vector_norm(t: Tracer, x: Any, /, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Any:
    array = _as_float(t, x)
    if axis is None:
        value = _vector_norm(np.ravel(array), ord, 0, False)
        return np.reshape(value, (1,) * array.ndim) if keepdims else value
    if isinstance(axis, (tuple, list)):
        kept = [a for a in range(array.ndim) if a not in normalize_axes(axis, array.ndim)]
        moved = np.transpose(array, [*kept, *normalize_axes(axis, array.ndim)])
        flat = np.reshape(moved, (*moved.shape[: len(kept)], -1))
        value = _vector_norm(flat, ord, -1, False)
        return np.expand_dims(value, normalize_axes(axis, array.ndim)) if keepdims else value
    return _vector_norm(array, ord, axis, keepdims)


def matrix_norm(t: Tracer, x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Any:
    array = _as_float(t, x)
    return _matrix_norm(array, ord, (array.ndim - 2, array.ndim - 1), keepdims)


def matrix_power(t: Tracer, a: Any, n: Any) -> Any:
    array = t.as_array(a)
    if not isinstance(n, (int, np.integer)) or n < 0:
        raise TraceTypeError(f"linalg.matrix_power: the exponent must be an integer of 0 or more, found {n!r}")
    t.unify(array.dims[-1], array.dims[-2], "linalg.matrix_power: Last 2 dimensions of the array must be square")
    if not n:
        size = array.shape[-1]
        return np.broadcast_to(np.eye(size, dtype=array.dtype, like=array), array.shape).copy()
    result, square, left = None, array, int(n)
    while left:
        if left & 1:
            result = square if result is None else result @ square
        left >>= 1
        square = square @ square if left else square
    return result


def multi_dot(t: Tracer, arrays: Any, *, out: Any = None) -> Any:
    value = arrays[0]
    for other in arrays[1:]:
        value = np.dot(value, other)
    return store(t, value, out)
