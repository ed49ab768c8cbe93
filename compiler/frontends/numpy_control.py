"""tw.cond, tw.while_loop and tw.scan: control flow that works on plain NumPy values and on traced ones.

On plain values the functions just run. On traced ones each body is followed once, in a scope of its own: what it reads from
outside becomes a capture, what it is given it may write, what it returns must keep structure, shape and dtype. A Python
number in a state takes the dtype that the body gives it. Bodies own their arguments: writing into them changes nothing
outside (plain runs copy them for that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from msgspec import Struct

from .. import library
from ..ir.dims import DimLike
from ..ir.errors import TilewrightError, caller_loc
from ..ir.graph import Graph, Node
from ..ir.ops.control import If, Param, Scan, While
from ..ir.types import BOOL, TensorType
from .argument_trees import Leaf, Structure, flatten, joined, map_leaves
from .numpy_errors import TraceTypeError, TraceValueError
from .numpy_tracer import Scope, Size, Storage, TracedArray, Tracer, WeakScalar, as_dim


def _tracer_of(*values: Any) -> Tracer | None:
    for leaf in flatten(values)[0]:
        if isinstance(leaf.value, (TracedArray, Size)):
            return leaf.value.tracer
    return None


def _owned(value: Any) -> Any:
    """Arrays copied, so that a body may write into them."""
    return map_leaves(value, lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf)


# --- bodies ----------------------------------------------------------------------------------------------------------


class _Value(Struct):
    """A leaf that enters a body: its type, and the Python type where it is a weak scalar."""

    tensor: TensorType
    weak: type | None


class _Body(Struct):
    """A body that was followed: its params and results (nodes of its scope), and their structure."""

    scope: Scope
    params: list[Node]
    results: list[Node]
    weak: list[type | None]
    structure: Structure
    leaves: list[Leaf]

    def graph(self, name: str, outside: Sequence[Node], results: Sequence[Node] | None = None) -> Graph:
        """The body with a param for each capture of the whole operation, its own or not."""
        captures = []
        for index, node in enumerate(outside):
            own = self.scope.captures.get(node)
            op = Param(f"unused{index}", node.dtype, node.shape)
            captures.append(own if own is not None else self.scope.builder.add(op))
        return Graph(name, [*self.params, *captures], self.results if results is None else results)


def _entering(t: Tracer, value: Any) -> tuple[Node, _Value]:
    node = t.node(value if not isinstance(value, (bool, int, float)) else np.asarray(value))
    weak = value.kind if isinstance(value, WeakScalar) else int if isinstance(value, Size) else type(value)
    return node, _Value(node.tensor, weak if weak in (int, float) else None)


def _follow(t: Tracer, function: Callable[..., Any], structure: Structure, values: Sequence[_Value]) -> _Body:
    """Runs the body on fresh params. `structure` is that of the tuple of its arguments."""
    scope = t.new_scope()
    t.scopes.append(scope)
    try:
        params, arguments = [], []
        for index, value in enumerate(values):
            param = scope.builder.add(Param(f"value{index}", value.tensor.dtype, value.tensor.shape))
            params.append(param)
            arguments.append(TracedArray(t, Storage(scope, param)) if value.weak is None else t.weak(param, value.weak))
        returned = t.in_user_code(function, *structure.rebuild(iter(arguments)))
        leaves, shape = flatten(returned)
        found = [_entering(t, leaf.value) for leaf in leaves]
    finally:
        scope.open = False
        t.scopes.pop()
    return _Body(scope, params, [node for node, _ in found], [v.weak for _, v in found], shape, leaves)


def _outside(*bodies: _Body) -> list[Node]:
    return list(dict.fromkeys(node for body in bodies for node in body.scope.captures))


def _results(t: Tracer, node: Node, weak: Sequence[type | None]) -> list[TracedArray]:
    items = library.results_of(t.b, node)
    return [t.weak(n, w) if w is not None else t.array(n) for n, w in zip(items, weak)]


def _built(t: Tracer, make: Callable[[], Any]) -> Any:
    """Runs the building of a node with the line of the call on errors of the IR."""
    try:
        return make()
    except TilewrightError as error:
        raise error.at(t.loc) from None


def _as_condition(t: Tracer, node: Node, name: str) -> Node:
    if any(n != 1 for n in node.shape):
        raise TraceTypeError(f"{name}: the condition must be one truth value, found {node.tensor}", loc=t.loc,
                             hint="reduce it with np.any or np.all")  # fmt: skip
    return library.cast(t.b, library.reshape(t.b, node, ()), BOOL)


# --- cond ------------------------------------------------------------------------------------------------------------


def cond(predicate: Any, then_function: Callable[..., Any], else_function: Callable[..., Any], *operands: Any) -> Any:
    """then_function(*operands) where the predicate is true, else else_function(*operands); only one of them runs."""
    t = _tracer_of(predicate)
    if t is None:
        return (then_function if predicate else else_function)(*_owned(operands))
    t.locate()
    return _built(t, lambda: _traced_cond(t, predicate, then_function, else_function, operands))


def _traced_cond(t: Tracer, predicate: Any, then_function: Any, else_function: Any, operands: tuple[Any, ...]) -> Any:
    condition = _as_condition(t, t.node(predicate), "cond")
    leaves, structure = flatten(operands)
    entering = [_entering(t, leaf.value) for leaf in leaves]
    sides = [_follow(t, f, structure, [v for _, v in entering]) for f in (then_function, else_function)]
    then, other = sides
    if then.structure != other.structure:
        raise TraceTypeError(f"cond: the sides return different structures: {then.structure} and {other.structure}", loc=t.loc)
    weak = [_agree(t, then, other, i) for i in range(len(then.results))]
    if not then.results:
        return then.structure.rebuild(iter(()))
    outside = _outside(then, other)
    op = If(then.graph("then", outside), other.graph("otherwise", outside))
    node = t.b.add(op, condition, *(n for n, _ in entering), *outside)
    return then.structure.rebuild(iter(_results(t, node, weak)))


def _agree(t: Tracer, then: _Body, other: _Body, index: int) -> type | None:
    """Brings one result of both sides to one type: Python numbers adapt, sizes of the example may be unified."""
    left, right = then.results[index], other.results[index]
    where = joined(then.leaves[index].path).lstrip("_") or "result"
    complaint = f"cond: the sides return different types for {where}: {left.tensor} and {right.tensor}"
    if left.rank != right.rank:
        raise TraceTypeError(complaint, loc=t.loc, hint="return arrays of one shape from both sides")
    for m, n in zip(left.shape, right.shape):
        t.unify(m, n, complaint)
    if left.dtype != right.dtype:
        for side, target in ((then, right), (other, left)):
            if side.weak[index] is int or side.weak[index] is float and target.dtype.is_float:
                side.results[index] = library.cast(side.scope.builder, side.results[index], target.dtype)
                return None
        raise TraceTypeError(complaint, loc=t.loc, hint=f"convert one of them with astype({left.dtype.numpy})")
    return then.weak[index] if then.weak[index] is other.weak[index] else None


# --- while_loop ------------------------------------------------------------------------------------------------------


def while_loop(condition: Callable[[Any], Any], body: Callable[[Any], Any], state: Any) -> Any:
    """state = body(state) as long as condition(state) is true; the last state."""
    t = _tracer_of(state)
    if t is None:
        state = _owned(state)
        while True:
            more = condition(state)
            t = _tracer_of(more)
            if t is not None:
                break
            if not more:
                return state
            state = body(state)
    found = t
    found.locate()
    return _built(found, lambda: _traced_while(found, condition, body, state))


def _traced_while(t: Tracer, condition: Callable[[Any], Any], body: Callable[[Any], Any], state: Any) -> Any:
    leaves, structure = flatten((state,))
    nodes, values = _split(t, leaves)
    followed = _settled_state(t, "while_loop", body, structure, structure.children[0], leaves, values, 0)
    nodes = [library.cast(t.b, n, v.tensor.dtype) for n, v in zip(nodes, values)]
    test = _follow(t, condition, structure, values)
    if len(test.results) != 1:
        raise TraceTypeError(f"while_loop: the condition must return one truth value, found {test.structure}", loc=t.loc)
    t.scopes.append(test.scope)
    try:
        more = _as_condition(t, test.results[0], "while_loop")
    finally:
        t.scopes.pop()
    if not values:
        raise TraceTypeError("while_loop: the state holds no arrays", loc=t.loc, hint="pass what changes as the state")
    outside = _outside(test, followed)
    op = While(test.graph("condition", outside, [more]), followed.graph("body", outside), len(values))
    made = t.b.add(op, *nodes, *outside)
    return structure.rebuild(iter(_results(t, made, [v.weak for v in values])))[0]


def _split(t: Tracer, leaves: Sequence[Leaf]) -> tuple[list[Node], list[_Value]]:
    found = [_entering(t, leaf.value) for leaf in leaves]
    return [n for n, _ in found], [v for _, v in found]


def _settled_state(t: Tracer, name: str, body: Callable[..., Any], arguments: Structure, state: Structure,
                   leaves: Sequence[Leaf], values: list[_Value], extra: int) -> _Body:  # fmt: skip
    """Follows the body until its state keeps its types: Python numbers of the first state take the dtype of the next.

    `values` holds the state's leaves, then `extra` more; it is changed in place.
    """
    count = len(values) - extra
    for _ in range(3):
        followed = _follow(t, body, arguments, values)
        returned = followed.structure if name == "while_loop" else _carry(t, followed)
        if returned != state:
            raise TraceTypeError(f"{name}: the body turns a state {state} into {returned}", loc=t.loc,
                                 hint="return a state of the same structure")  # fmt: skip
        changed = False
        for index in range(count):
            changed |= _next_state(t, name, followed, index, leaves, values)
        if not changed:
            return followed
    raise TraceTypeError(f"{name}: the dtypes of the state do not settle", loc=t.loc, hint="give the first state its dtype")


def _carry(t: Tracer, followed: _Body) -> Structure:
    if followed.structure.kind not in ("tuple", "named") or len(followed.structure.children) != 2:
        raise TraceTypeError(f"scan: the body must return (state, result), found {followed.structure}", loc=t.loc,
                             hint="return (state, None) where there is no result of each step")  # fmt: skip
    return followed.structure.children[0]


def _next_state(t: Tracer, name: str, followed: _Body, index: int, leaves: Sequence[Leaf], values: list[_Value]) -> bool:
    """Compares one leaf of the next state with this one; True where the body must be followed again."""
    value, result, weak = values[index], followed.results[index], followed.weak[index]
    where = joined(leaves[index].path[1:]).lstrip("_") or "the state"
    complaint = f"{name}: the body turns {where} from {value.tensor} into {result.tensor}"
    if len(value.tensor.shape) != result.rank:
        raise TraceTypeError(complaint, loc=t.loc, hint="a state keeps its shape")
    for m, n in zip(value.tensor.shape, result.shape):
        t.unify(m, n, complaint)
    if value.tensor.dtype == result.dtype:
        if value.weak is not None and weak is None:
            values[index] = _Value(value.tensor, None)
            return True
        return False
    if value.weak is not None:
        values[index] = _Value(TensorType(result.dtype, value.tensor.shape), weak)
        return True
    if weak is int and not value.tensor.dtype.is_bool or weak is float and value.tensor.dtype.is_float:
        followed.results[index] = library.cast(followed.scope.builder, result, value.tensor.dtype)
        return False
    hint = f"convert it in the body with astype({value.tensor.dtype.numpy}), or start with {result.dtype.numpy}"
    raise TraceTypeError(complaint, loc=t.loc, hint=hint)


# --- scan ------------------------------------------------------------------------------------------------------------


def scan(function: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any = None, length: Any = None,
         reverse: bool = False) -> Any:  # fmt: skip
    """state, y = function(state, x) for each x along the first axis of `xs`: the last state and the stacked ys.

    `xs` may be nested (each array gives its slice) or None with a `length`. `reverse` goes from the last x to the first;
    ys stay at their x's place.
    """
    t = _tracer_of(init, xs, length)
    if t is None:
        return _plain_scan(function, init, xs, length, reverse)
    t.locate()
    return _built(t, lambda: _traced_scan(t, function, init, xs, length, reverse))


def _plain_scan(function: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any, length: Any, reverse: bool) -> Any:
    sizes = {len(leaf.value) for leaf in flatten(xs)[0]} | ({int(length)} if length is not None else set())
    if len(sizes) != 1:
        complaint = f"the arrays differ in length: {sorted(sizes)}" if sizes else "xs is empty and there is no length"
        raise TraceValueError(f"scan: {complaint}", loc=caller_loc())
    steps = range(sizes.pop())
    state, results = _owned(init), []
    for step in reversed(steps) if reverse else steps:
        state, y = function(state, _owned(map_leaves(xs, itemgetter(step))))
        results.append(_owned(y))
    if reverse:
        results.reverse()
    if not results:
        raise TraceValueError("scan: no steps to run, so the shape of the results is not known", loc=caller_loc())
    parts = [flatten(y)[0] for y in results]
    stacked = [np.stack([p[i].value for p in parts]) for i in range(len(parts[0]))]
    return state, flatten(results[0])[1].rebuild(iter(stacked))


def _traced_scan(t: Tracer, function: Any, init: Any, xs: Any, length: Any, reverse: bool) -> Any:
    leaves, structure = flatten((init, xs))
    count = structure.children[0].leaf_count
    nodes, values = _split(t, leaves)
    steps = _scan_length(t, nodes[count:], length)
    for index in range(count, len(values)):
        values[index] = _Value(TensorType(nodes[index].dtype, nodes[index].shape[1:]), None)
    followed = _settled_state(t, "scan", function, structure, structure.children[0], leaves, values, len(values) - count)
    nodes[:count] = [library.cast(t.b, n, v.tensor.dtype) for n, v in zip(nodes[:count], values)]
    outside = _outside(followed)
    if not followed.results:
        return followed.structure.rebuild(iter(()))
    op = Scan(followed.graph("step", outside), count, len(values) - count, steps, reverse)
    made = t.b.add(op, *nodes, *outside)
    weak = [v.weak for v in values[:count]] + [None] * (len(followed.results) - count)
    return followed.structure.rebuild(iter(_results(t, made, weak)))


def _scan_length(t: Tracer, scanned: Sequence[Node], length: Any) -> DimLike:
    steps = None if length is None else as_dim(length)
    if length is not None and steps is None:
        raise TraceTypeError(f"scan: the length must be a number or a size, found {length!r}", loc=t.loc, hint="use tw.while_loop")
    for node in scanned:
        if not node.rank:
            raise TraceTypeError("scan: a scalar among xs has no axis to go along", loc=t.loc, hint="pass it in the state")
        if steps is not None:
            t.unify(steps, node.shape[0], f"scan: the arrays differ in length: {steps} and {node.shape[0]}")
        steps = node.shape[0]
    if steps is None:
        raise TraceTypeError("scan: xs holds no arrays and there is no length", loc=t.loc, hint="give length=")
    return steps
