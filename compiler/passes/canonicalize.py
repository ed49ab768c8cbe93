"""Brings a graph into its simplest form: identities of scalar functions, and simplifications of data movement.

`RULES` are identities with a float contract (see `ir/rewrite.py`); `STRUCTURAL` maps an op to functions
`(builder, op, inputs) -> Node | None` that simplify it. Both lower a measure (cost of scalar functions; number of ops
that move data; for broadcasts, the number of elements that are computed on), so the pass ends.

Guarantees: the meaning is the same up to the float contracts that `options.precision` allows; run-time checks that can
fail stay; running the pass twice changes nothing more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ..ir.dims import DimLike, product, provably_at_most
from ..ir.graph import Builder, Constant, Graph, Node, Op
from ..ir.ops.compute import Bitcast, Cast, Elementwise, Reduce
from ..ir.ops.control import Const
from ..ir.ops.shape import Broadcast, Concat, Pad, Reshape, Slice, Take, Transpose, UpdateSlice
from ..ir.rewrite import MOVES, Match, Pattern, Rule, RuleSet, call, rewrite_until_stable, uniform_value
from ..ir.types import DType
from ..options import Options

Simplification = Callable[[Builder, Op, tuple[Node, ...]], Node | None]
MAX_STEPS = 64
UNIFORM = (Const, *MOVES)  # what a constant that is one element throughout, or one smaller shape, is made by


def canonicalize(graph: Graph, options: Options, fired: Counter[str] | None = None) -> Graph:
    """The graph in its simplest form, bodies included. `fired` counts the rules and simplifications applied, by name."""
    def visit(builder: Builder, node: Node, inputs: tuple[Node, ...]) -> Node | None:
        op: Op = node.op
        made: Node | None = None
        for _ in range(MAX_STEPS):
            step = _step(builder, op, inputs, options.precision, fired)
            if step is None:
                return made
            made, op, inputs = step, step.op, step.inputs
        return made

    return rewrite_until_stable(graph, visit, "canonicalize", bodies=True)


def _step(builder: Builder, op: Op, inputs: tuple[Node, ...], precision: str,
          fired: Counter[str] | None) -> Node | None:
    made = RULES.apply(builder, op, inputs, precision, fired)
    if made is not None:
        return made
    for simplify in STRUCTURAL.get(type(op), ()):
        made = simplify(builder, op, inputs)
        if made is not None:
            if fired is not None:
                fired[simplify.__name__] += 1
            return made
    return None


# --- identities ------------------------------------------------------------------------------------------------------


def _has_exact_reciprocal(match: Match) -> bool:
    """A power of two whose reciprocal is a normal number: dividing by it is multiplying by that."""
    value = float(match.value("k"))
    mantissa, _ = np.frexp(value)
    limits = {"f16": 14, "bf16": 126, "f32": 126, "f64": 1022}[match.dtype.name]
    return abs(mantissa) == 0.5 and 2.0 ** -limits <= abs(value) <= 2.0 ** limits


def _sum_cancels_nothing(match: Match) -> bool:
    """Constants of one sign whose sum is finite: (x + big) - big is a way to round, and must stay."""
    if not match.dtype.is_float:
        return True
    first, second = (float(match.value(n)) for n in ("k1", "k2"))
    with np.errstate(all="ignore"):
        total = np.add(match.value("k1"), match.value("k2")).astype(np.float64)
    return first * second >= 0 and bool(np.isfinite(total))


def _product_stays_normal(match: Match) -> bool:
    """The combined constant neither overflows nor loses bits to underflow."""
    if not match.dtype.is_float:
        return True
    factors = [abs(float(match.value(n))) for n in ("k1", "k2")]
    return all(2.0 ** -7 <= f <= 2.0 ** 7 or f == 0 for f in factors)


def _rounding_rules() -> list[Rule]:
    """Rounding twice to whole numbers is rounding once."""
    kinds = ("floor", "ceil", "trunc", "round")
    return [Rule(f"{second}_of_{first}", "exact", _rounded_twice(first, second), "f") for first in kinds for second in kinds]


def _rounded_twice(first: str, second: str) -> Callable[[Pattern], tuple[Pattern, Pattern]]:
    return lambda x: (call(second, call(first, x)), call(first, x))


_ARITHMETIC = (
    Rule("add_zero", "reassoc", lambda x: (x + 0, x)),  # -0.0 + 0 is 0.0
    Rule("add_negative_zero", "exact", lambda x: (x + -0.0, x), "f"),
    Rule("sub_zero", "exact", lambda x: (x - 0, x)),
    Rule("sub_self", "finite", lambda x: (x - x, 0)),
    Rule("sub_from_zero", "reassoc", lambda x: (0 - x, -x)),  # 0 - 0 is 0.0
    Rule("sub_from_negative_zero", "exact", lambda x: (-0.0 - x, -x), "f"),
    Rule("sub_neg", "exact", lambda x, y: (x - (-y), x + y)),
    Rule("add_neg", "exact", lambda x, y: (x + (-y), x - y)),
    Rule("neg_neg", "exact", lambda x: (call("neg", -x), x)),
    Rule("neg_sub", "reassoc", lambda x, y: (-(x - y), y - x)),  # -(x - x) is -0.0
    Rule("add_constants", "reassoc", lambda x, k1, k2: ((x + k1) + k2, x + (k1 + k2)), when=_sum_cancels_nothing),
    Rule("mul_one", "exact", lambda x: (x * 1, x)),
    Rule("mul_zero", "finite", lambda x: (x * 0, 0)),
    Rule("mul_minus_one", "exact", lambda x: (x * -1, -x), "if"),
    Rule("mul_neg_neg", "exact", lambda x, y: (-x * -y, x * y)),
    Rule("mul_neg_constant", "exact", lambda x, k: (-x * k, x * -k)),
    Rule("mul_constants", "reassoc", lambda x, k1, k2: ((x * k1) * k2, x * (k1 * k2)), when=_product_stays_normal),
    Rule("div_one", "exact", lambda x: (x / 1, x), "f"),
    Rule("div_power_of_two", "exact", lambda x, k: (x / k, x * (1 / k)), "f", when=_has_exact_reciprocal),
    Rule("div_neg_neg", "exact", lambda x, y: (-x / -y, x / y), "f"),
    Rule("floordiv_one", "exact", lambda x: (x // 1, x), "iu"),
    Rule("mod_one", "exact", lambda x: (x % 1, 0), "iu"),
    Rule("pow_zero", "exact", lambda x: (x ** 0, 1)),
    Rule("pow_one", "exact", lambda x: (x ** 1, x)),
    Rule("pow_two", "bounded", lambda x: (x ** 2, x * x), bound=1),
    Rule("pow_three", "bounded", lambda x: (x ** 3, x * x * x), bound=2),
    Rule("pow_minus_one", "bounded", lambda x: (x ** -1, 1 / x), "f", bound=1),
    Rule("pow_minus_three_halves", "bounded", lambda x: (
        x ** -1.5, call("select", call("eq", x, -math.inf), 0, (1 / x) * (1 / call("sqrt", x)))), "f", bound=3),
    Rule("abs_abs", "exact", lambda x: (abs(abs(x)), abs(x))),
    Rule("abs_neg", "exact", lambda x: (abs(-x), abs(x)), "if"),
    Rule("square_of_abs", "exact", lambda x: (abs(x) * abs(x), x * x)),
    Rule("logistic", "bounded", lambda x: (1 / (1 + call("exp", -x)), call("sigmoid", x)), "f", bound=8),
)

_ORDER = (
    Rule("max_self", "exact", lambda x: (call("max", x, x), x), "iufb"),
    Rule("min_self", "exact", lambda x: (call("min", x, x), x), "iufb"),
    Rule("max_again", "exact", lambda x, y: (call("max", call("max", x, y), y), call("max", x, y)), "iufb"),
    Rule("min_again", "exact", lambda x, y: (call("min", call("min", x, y), y), call("min", x, y)), "iufb"),
    Rule("eq_self", "finite", lambda x: (call("eq", x, x), True), "iufb"),
    Rule("ne_self", "finite", lambda x: (call("ne", x, x), False), "iub"),
    Rule("ne_self_is_nan", "exact", lambda x: (call("ne", x, x), call("isnan", x)), "f"),
    Rule("gt_is_lt", "exact", lambda x, y: (call("gt", x, y), call("lt", y, x)), "iufb"),
    Rule("ge_is_le", "exact", lambda x, y: (call("ge", x, y), call("le", y, x)), "iufb"),
    Rule("not_lt", "finite", lambda x, y: (~call("lt", x, y), call("le", y, x)), "iufb"),
    Rule("not_le", "finite", lambda x, y: (~call("le", x, y), call("lt", y, x)), "iufb"),
    Rule("not_eq", "exact", lambda x, y: (~call("eq", x, y), call("ne", x, y)), "iufb"),
    Rule("not_ne", "exact", lambda x, y: (~call("ne", x, y), call("eq", x, y)), "iufb"),
)

_BITS = (
    Rule("not_not", "exact", lambda x: (~(~x), x), "iub"),
    Rule("and_self", "exact", lambda x: (x & x, x), "iub"),
    Rule("or_self", "exact", lambda x: (x | x, x), "iub"),
    Rule("xor_self", "exact", lambda x: (x ^ x, 0), "iu"),
    Rule("xor_self_bool", "exact", lambda x: (x ^ x, False), "b"),
    Rule("and_zero", "exact", lambda x: (x & 0, 0), "iu"),
    Rule("or_zero", "exact", lambda x: (x | 0, x), "iu"),
    Rule("xor_zero", "exact", lambda x: (x ^ 0, x), "iu"),
    Rule("and_ones", "exact", lambda x: (x & -1, x), "i"),
    Rule("and_true", "exact", lambda x: (x & True, x), "b"),
    Rule("and_false", "exact", lambda x: (x & False, False), "b"),
    Rule("or_true", "exact", lambda x: (x | True, True), "b"),
    Rule("or_false", "exact", lambda x: (x | False, x), "b"),
    Rule("xor_false", "exact", lambda x: (x ^ False, x), "b"),
    Rule("xor_true", "exact", lambda x: (x ^ True, ~x), "b"),
    Rule("eq_true", "exact", lambda x: (call("eq", x, True), x), "b"),
    Rule("shl_zero", "exact", lambda x: (x << 0, x), "iu"),
    Rule("shr_zero", "exact", lambda x: (x >> 0, x), "iu"),
)

_SELECT = (
    Rule("select_same", "exact", lambda c, x: (call("select", c, x, x), x), "iufb"),
    Rule("select_true", "exact", lambda x, y: (call("select", True, x, y), x), "iufb"),
    Rule("select_false", "exact", lambda x, y: (call("select", False, x, y), y), "iufb"),
    Rule("select_not", "exact", lambda c, x, y: (call("select", ~c, x, y), call("select", c, y, x)), "iufb"),
    Rule("select_bools", "exact", lambda c: (call("select", c, True, False), c), "b"),
    Rule("select_bools_not", "exact", lambda c: (call("select", c, False, True), ~c), "b"),
)

RULES = RuleSet((*_ARITHMETIC, *_ORDER, *_BITS, *_SELECT, *_rounding_rules()))


# --- data movement ---------------------------------------------------------------------------------------------------


def drop_identity(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """A movement or cast that changes neither shape nor order nor dtype."""
    x = inputs[0]
    match op:
        case Reshape(shape) | Broadcast(shape) if shape == x.shape:
            return x
        case Transpose(perm) if perm == tuple(range(x.rank)):
            return x
        case UpdateSlice(start, step) if _is_own_window(start, step, x, inputs[1]):
            return x
        case Slice(start, size, step) if size == x.shape and all(s == 0 for s in start) and all(s == 1 for s in step):
            return x
        case Pad(low, high) if all(n == 0 for n in (*low, *high)):
            return x
        case Concat() if len(inputs) == 1:
            return x
        case Cast(dtype) | Bitcast(dtype) if dtype == x.dtype:
            return x
    return None


def _is_own_window(start: Sequence[DimLike], step: Sequence[int], x: Node, update: Node) -> bool:
    """Whether a window is put where it was taken from, which `x[i] += y` leads to."""
    op = update.op
    return isinstance(op, Slice) and update.inputs[0] is x and (op.start, op.step) == (start, step) and is_inside(op, x.shape)


def merge_with_operand(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """Two movements of one kind, one after the other, are one."""
    inner = inputs[0].op
    match op, inner:
        case Reshape(shape), Reshape():
            return b.add(Reshape(shape), inputs[0].inputs[0])
        case Broadcast(shape), Broadcast():
            return b.add(Broadcast(shape), inputs[0].inputs[0])
        case Transpose(perm), Transpose(first):
            return b.add(Transpose(tuple(first[p] for p in perm)), inputs[0].inputs[0])
        case Bitcast(dtype), Bitcast():
            return b.add(Bitcast(dtype), inputs[0].inputs[0])
        case Pad(low, high), Pad(low_before, high_before) if inputs[1] is inputs[0].inputs[1]:
            added = [tuple(x + y for x, y in zip(*pair)) for pair in ((low, low_before), (high, high_before))]
            return b.add(Pad(*added), *inputs[0].inputs)
        case Reduce(kind, axes), Reduce(same, first) if kind == same and kind in ("max", "min", "and", "or"):
            return _merge_reductions(b, kind, axes, first, inputs[0].inputs[0])
    return None


def _merge_reductions(b: Builder, kind: str, axes: Sequence[int], first: Sequence[int], x: Node) -> Node:
    left = [a for a in range(x.rank) if a not in first]
    return b.add(Reduce(kind, tuple(sorted((*first, *(left[a] for a in axes))))), x)


def merge_slices(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """A slice of a slice, where both are proved to lie inside: one that is not fails where it leaves the other, which may be less."""
    x = inputs[0]
    if not (isinstance(op, Slice) and isinstance(x.op, Slice)) or not is_inside(x.op, x.inputs[0].shape) or not is_inside(op, x.shape):
        return None
    start = tuple(s + t * by for s, t, by in zip(x.op.start, op.start, x.op.step))
    step = tuple(s * t for s, t in zip(x.op.step, op.step))
    return b.add(Slice(start, op.size, step), x.inputs[0])


def is_inside(op: Slice, shape: Sequence[DimLike]) -> bool:
    """Whether the window is proved to lie inside for all sizes, so that no run-time check depends on it."""
    return all(_axis_inside(*axis) for axis in zip(op.start, op.size, op.step, shape))


def _axis_inside(start: DimLike, size: DimLike, step: int, extent: DimLike) -> bool:
    if size == 0:
        return True
    last = start + (size - 1) * step
    low, high = (start, last) if step > 0 else (last, start)
    return provably_at_most(0, low) and provably_at_most(high, extent - 1)


def slice_of_concat(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """A slice that lies in one part of a concatenation reads that part."""
    joined = inputs[0]
    if not (isinstance(op, Slice) and isinstance(joined.op, Concat)) or op.size[joined.op.axis] == 0:
        return None
    axis = joined.op.axis
    start, step = op.start[axis], op.step[axis]
    last = start + (op.size[axis] - 1) * step
    low, high = (start, last) if step > 0 else (last, start)
    offset: DimLike = 0
    for part in joined.inputs:
        end = offset + part.shape[axis]
        if provably_at_most(offset, low) and provably_at_most(high + 1, end) and provably_at_most(low, high):
            starts = (*op.start[:axis], start - offset, *op.start[axis + 1:])
            return b.add(Slice(starts, op.size, op.step), part)
        offset = end
    return None


def slice_of_pad(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """A slice that reads no padding."""
    padded = inputs[0]
    if not (isinstance(op, Slice) and isinstance(padded.op, Pad)):
        return None
    x = padded.inputs[0]
    start = tuple(s - low for s, low in zip(op.start, padded.op.low))
    moved = Slice(start, op.size, op.step)
    whole = all(provably_at_most(1, n) for n in op.size)
    return b.add(moved, x) if whole and is_inside(moved, x.shape) else None


def slice_of_broadcast(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """Slicing before broadcasting moves less."""
    wide = inputs[0]
    if not (isinstance(op, Slice) and isinstance(wide.op, Broadcast)) or not is_inside(op, wide.shape):
        return None
    x = wide.inputs[0]
    first = wide.rank - x.rank
    repeated = [n == 1 and m != 1 for n, m in zip(x.shape, wide.shape[first:])]
    start = tuple(0 if r else s for r, s in zip(repeated, op.start[first:]))
    size = tuple(1 if r else n for r, n in zip(repeated, op.size[first:]))
    step = tuple(1 if r else s for r, s in zip(repeated, op.step[first:]))
    return b.add(Broadcast(op.size), b.add(Slice(start, size, step), x))


def move_single_element(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """However one repeated element is moved, it stays one repeated element."""
    wide = inputs[0]
    if not isinstance(wide.op, Broadcast) or isinstance(op, Slice) and not is_inside(op, wide.shape):
        return None
    x = wide.inputs[0]
    if any(n != 1 for n in x.shape):
        return None
    result = op.infer(*(i.type for i in inputs))
    return b.add(Broadcast(result.shape), b.add(Reshape(()), x) if x.rank else x)  # type: ignore[union-attr]


def reshape_for_transpose(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """A transpose that leaves the order of all axes but those of size 1 moves nothing."""
    x = inputs[0]
    if not isinstance(op, Transpose):
        return None
    moved = [p for p in op.perm if x.shape[p] != 1]
    return b.add(Reshape(tuple(x.shape[p] for p in op.perm)), x) if moved == sorted(moved) else None


def reshape_for_broadcast(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """A broadcast that only adds axes of size 1 repeats nothing."""
    x = inputs[0]
    if not isinstance(op, Broadcast) or product(op.shape) != product(x.shape):
        return None
    return b.add(Reshape(op.shape), x) if op.shape[len(op.shape) - x.rank:] == x.shape else None


def broadcast_of_reshape(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """Leading axes of size 1 need not be made before a broadcast, which makes them itself."""
    x = inputs[0]
    if not (isinstance(op, Broadcast) and isinstance(x.op, Reshape)):
        return None
    source = x.inputs[0]
    extra = x.rank - source.rank
    if extra < 0 or any(n != 1 for n in x.shape[:extra]) or x.shape[extra:] != source.shape:
        return None
    return b.add(Broadcast(op.shape), source)


def merge_casts(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """A cast that loses nothing needs not be made before another one."""
    x = inputs[0]
    if not (isinstance(op, Cast) and isinstance(x.op, Cast)):
        return None
    source = x.inputs[0]
    return b.add(Cast(op.dtype), source) if skips(source.dtype, x.dtype, op.dtype) else None


def skips(source: DType, middle: DType, target: DType) -> bool:
    """Whether casting to `middle` and then to `target` is casting to `target`, for every value of `source`."""
    if not holds_all(source, middle):
        return False
    # integers wrap, floats saturate: through a float they differ where the target is too narrow
    through_float = source.is_integer and middle.is_float and target.is_integer
    return not through_float or holds_all(source, target)


_MANTISSA = {"f16": (11, -24, 16), "bf16": (8, -133, 128), "f32": (24, -149, 128), "f64": (53, -1074, 1024)}


def holds_all(source: DType, target: DType) -> bool:
    """Whether every value of `source` is a value of `target`."""
    if source == target or source.is_bool:
        return True
    if target.is_bool:
        return False
    if source.is_integer and target.is_integer:
        return bool(target.lowest <= source.lowest and source.highest <= target.highest)
    if source.is_float != target.is_float and source.is_float:
        return False
    precision, _, largest = _MANTISSA[target.name]
    if source.is_integer:
        width = source.bits - (source.kind != "u")
        return width <= precision and width < largest
    ours, smallest, most = _MANTISSA[source.name]
    return ours <= precision and most <= largest and smallest >= _MANTISSA[target.name][1]


def flatten_concat(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """Parts that are concatenations along the same axis join in; empty parts leave."""
    assert isinstance(op, Concat)
    parts: list[Node] = []
    for part in inputs:
        parts.extend(part.inputs if part.op == op else (part,))
    filled = [p for p in parts if p.shape[op.axis] != 0] or parts[:1]
    if len(filled) == len(inputs):
        return None
    return b.add(op, *filled) if len(filled) > 1 else filled[0]


def reduce_single(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """A reduction over no axes, or over axes of size 1, takes the only element there is."""
    assert isinstance(op, Reduce)
    x = inputs[0]
    if any(x.shape[a] != 1 for a in op.axes):
        return None
    return b.add(Reshape(tuple(n for a, n in enumerate(x.shape) if a not in op.axes)), x) if op.axes else x


def take_constant(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """Taking one place that is known and inside is a slice."""
    assert isinstance(op, Take)
    x, indices = inputs
    if not isinstance(indices.op, Const) or indices.op.value.array.size != 1:
        return None
    place = int(indices.op.value.array.reshape(-1)[0])
    if place < 0 or not provably_at_most(place + 1, x.shape[op.axis]):
        return None
    start = tuple(place if a == op.axis else 0 for a in range(x.rank))
    size = tuple(1 if a == op.axis else n for a, n in enumerate(x.shape))
    one = b.add(Slice(start, size, (1,) * x.rank), x)
    shape = (*x.shape[:op.axis], *indices.shape, *x.shape[op.axis + 1:])
    return one if one.shape == shape else b.add(Reshape(shape), one)


def compute_before_broadcast(b: Builder, op: Op, inputs: tuple[Node, ...]) -> Node | None:
    """An elementwise op whose operands are all broadcast from one smaller shape works on that shape."""
    if any(not isinstance(x.op, UNIFORM) for x in inputs):
        return None
    shape = inputs[0].shape
    repeated = [uniform_value(x) is not None for x in inputs]
    sources = [x.inputs[0] for x, uniform in zip(inputs, repeated) if not uniform and isinstance(x.op, Broadcast)]
    small = sources[0].shape if sources else ()
    # decided before anything is built: a node that is made in vain would look like a change
    if shape == small or len(sources) + sum(repeated) != len(inputs) or any(s.shape != small for s in sources):
        return None
    operands = [_uniform(b, x, small) if uniform else x.inputs[0] for x, uniform in zip(inputs, repeated)]
    return b.add(Broadcast(shape), b.add(op, *operands))


def _uniform(b: Builder, x: Node, shape: Sequence[DimLike]) -> Node:
    """The uniform constant in another shape."""
    element = uniform_value(x)
    scalar = b.add(Const(Constant(np.asarray(element, dtype=x.dtype.numpy))))
    return scalar if not shape else b.add(Broadcast(tuple(shape)), scalar)


STRUCTURAL: dict[type[Op], tuple[Simplification, ...]] = {
    Reshape: (drop_identity, merge_with_operand, move_single_element),
    Broadcast: (drop_identity, merge_with_operand, reshape_for_broadcast, broadcast_of_reshape),
    Transpose: (drop_identity, merge_with_operand, move_single_element, reshape_for_transpose),
    Slice: (drop_identity, merge_slices, move_single_element, slice_of_broadcast, slice_of_concat, slice_of_pad),
    Pad: (drop_identity, merge_with_operand),
    UpdateSlice: (drop_identity,),
    Concat: (drop_identity, flatten_concat),
    Cast: (drop_identity, merge_casts, compute_before_broadcast),
    Bitcast: (drop_identity, merge_with_operand),
    Reduce: (reduce_single, merge_with_operand),
    Take: (take_constant,),
    Elementwise: (compute_before_broadcast,),
}
