"""Random well-typed graphs and inputs for them, for differential tests.

Graphs are grown from parameters by steps: scalar functions, casts, reductions, data movement, contractions, gathers,
sorting, composites, control flow, and the ops' own samples. Every value carries whether it is *exact*: a whole number
that its dtype holds, however sums are ordered. Discontinuous functions (comparisons, rounding, sorting, casts to
integers) are applied to exact values only, and functions with a domain get arguments inside it, so that two correct
implementations differ by rounding at most.

Guarantees: the same seed gives the same graph and inputs; every graph passes `verify`; with inputs of `random_inputs` no
run-time check fails.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from msgspec import Struct

from .. import library
from ..ir.dims import Dim, DimLike, bounds, evaluate, symbols_of
from ..ir.graph import Builder, Graph, Node, Op, Sample
from ..ir.ops.compute import ArgReduce, ArgSort, Cast, Cumulative, Dot, Elementwise, Reduce, Sort
from ..ir.ops.control import Param
from ..ir.ops.shape import Broadcast, Concat, Iota, Pad, Reshape, Slice, Take, Transpose
from ..ir.ops.table import ALL_OPS
from ..ir.types import BOOL, F32, F64, I32, I64, DType, TensorType
from .generate_bodies import GROWTH, branched, looped, scanned
from .generate_windows import image_shape, windowed
from .sizes import extents, random_size, random_symbol

T = TypeVar("T")
DEFAULT_DTYPES: tuple[DType, ...] = (F32, F64, I32, I64, BOOL)
MANTISSA = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}
LARGEST = 300.0  # beyond this magnitude an inexact value is squashed before anything else is done with it
MOST_ELEMENTS = 4096
PARAM_LIMIT = {"f": 4, "i": 8, "u": 8, "b": 1, "x": 8}


class Value(Struct, frozen=True):
    """A node, whether it holds exact whole numbers, and a bound of their magnitude (floats only)."""

    node: Node
    exact: bool
    limit: float


def random_graph(seed: int | np.random.Generator, size: int = 12, dtypes: Sequence[DType] = DEFAULT_DTYPES,
                 symbolic: bool = True) -> Graph:
    """A graph made by `size` steps, with one to eight results. `symbolic` lets sizes be symbols."""
    rng = np.random.default_rng(seed)
    growth = _Growth(rng, dtypes, symbolic)
    for _ in range(size):
        growth.step()
    return growth.graph()


def grow(graph: Graph, rng: np.random.Generator, steps: int, dtypes: Sequence[DType] = DEFAULT_DTYPES) -> Graph:
    """The graph with some more steps on top of its values, which need not be exact."""
    growth = _Growth(rng, dtypes, bool(graph.symbols), graph)
    for _ in range(steps):
        growth.step()
    return growth.graph()


def random_inputs(graph: Graph, rng: np.random.Generator, special: bool = False) -> tuple[list[np.ndarray], dict[str, int]]:
    """Inputs with small whole numbers, and the sizes they bind. `special` mixes NaN, infinities and -0.0 into floats."""
    binding = random_binding(graph, rng)
    arrays = []
    for param in graph.params:
        shape = tuple(evaluate(n, binding) for n in param.shape)
        arrays.append(random_array(param.dtype, shape, rng, special))
    return arrays, binding


def random_binding(graph: Graph, rng: np.random.Generator) -> dict[str, int]:
    """A size for each symbol, within its bounds."""
    return {declared.name: random_size(declared, rng) for declared in symbols_of(*(n for p in graph.params for n in p.shape))}


def random_array(dtype: DType, shape: Sequence[int], rng: np.random.Generator, special: bool = False) -> np.ndarray:
    """Small whole numbers; bools for bool."""
    limit = PARAM_LIMIT[dtype.kind]
    low = 0 if dtype.kind in "ub" else -limit
    array = np.asarray(rng.integers(low, limit + 1, size=tuple(shape))).astype(dtype.numpy)
    if special and dtype.is_float and array.size:
        flat = array.reshape(-1)
        flat[(flat == 0) & (rng.random(flat.size) < 0.5)] = -0.0  # zeros of both signs meet
        for value in (np.nan, np.inf, -np.inf, -0.0):
            flat[int(rng.integers(flat.size))] = value
    return array


def sample_graph(sample: Sample) -> Graph:
    """The sample as a graph of one op; indices are brought into their range within the graph."""
    builder = Builder()
    params = [builder.add(Param(f"x{i}", t.dtype, t.shape)) for i, t in enumerate(sample.types)]
    ranges = (*sample.ranges, *[None] * (len(params) - len(sample.ranges)))
    operands = [p if r is None else _into_range(builder, p, r) for p, r in zip(params, ranges)]
    return Graph("sample", params, library.results_of(builder, builder.add(sample.op, *operands)))


def _into_range(b: Builder, x: Node, allowed: tuple[int, int]) -> Node:
    low, high = allowed
    inside = library.apply(b, "mod", x, library.constant(b, high - low + 1, x.dtype))
    return library.apply(b, "add", inside, library.constant(b, low, x.dtype))


# --- growing ---------------------------------------------------------------------------------------------------------

# functions of one inexact value x, with arguments inside their domain and results of moderate size
_SMOOTH: dict[str, str] = {
    "sin": "x", "cos": "x", "tanh": "x", "sigmoid": "x", "erf": "x", "atan": "x", "asinh": "x", "cbrt": "positive",
    "sqrt": "positive", "log": "positive", "log2": "positive", "log10": "positive", "log1p": "positive", "acosh": "positive",
    "exp": "unit", "exp2": "unit", "expm1": "unit", "sinh": "unit", "cosh": "unit", "tan": "unit", "asin": "half",
    "acos": "half", "atanh": "half",
}
_WHOLE = ("neg", "abs", "sign", "floor", "ceil", "trunc", "round")
_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")


class _Growth:
    def __init__(self, rng: np.random.Generator, dtypes: Sequence[DType], symbolic: bool, base: Graph | None = None) -> None:
        self.rng = rng
        self.dtypes = tuple(dtypes)
        self.builder = Builder()
        self.params: list[Node] = []
        self.pool: list[Value] = []
        sizes: list[DimLike] = [*extents(rng)]
        if base is not None:
            sizes += dict.fromkeys(n for p in base.params for n in p.shape if isinstance(n, Dim))
        elif symbolic:
            sizes += dict.fromkeys(random_symbol(rng) for _ in range(3))
        self.sizes = sizes
        self.steps: tuple[Callable[[], Value | None], ...] = (
            self.unary, self.unary, self.smooth, self.smooth, self.binary, self.binary, self.binary, self.compare,
            self.select, self.cast, self.reduce, self.reduce, self.broadcast, self.reshape, self.transpose, self.slice,
            self.pad, self.concat, self.dot, self.dot, self.take, self.sort, self.cumulative, self.arg, self.iota,
            self.composite, self.branch, self.repeat, self.scan, self.sample, self.shift, self.windows)
        if base is None:
            self.param(2)
        else:
            self.begin(base)

    def begin(self, base: Graph) -> None:
        """Takes over the values of a graph. What they hold is not known: floats count as inexact."""
        for node in base.nodes():
            self.builder.keep(node)
            if isinstance(node.op, Param):
                self.params.append(node)
            if isinstance(node.type, TensorType) and not node.dtype.is_stored:
                self.pool.append(Value(node, not node.dtype.is_float, PARAM_LIMIT[node.dtype.kind] ** 2))

    def step(self) -> None:
        """One op that fits; after some tries without one, a new parameter."""
        for _ in range(20):
            made = self.choice(self.steps)()
            if made is not None:
                self.pool.append(made)
                return
        self.param()

    def graph(self) -> Graph:
        used = {id(i) for v in self.pool for i in v.node.inputs}
        ends = [v.node for v in self.pool if id(v.node) not in used and v.node not in self.params]
        ends = list(dict.fromkeys(ends)) or [self.pool[-1].node]
        return Graph("random", self.params, ends[-8:])

    def choice(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def add(self, op: Op, *inputs: Node) -> Node:
        return self.builder.add(op, *inputs)

    def param(self, rank: int | None = None, dtype: DType | None = None, shape: Sequence[DimLike] | None = None) -> Value:
        if shape is None:
            rank = int(self.rng.integers(0, 4)) if rank is None else rank
            shape = [self.choice(self.sizes) for _ in range(rank)]
            while not self.small(shape):
                shape.remove(max(shape, key=lambda n: bounds(n)[1]))
        dtype = self.choice(self.dtypes) if dtype is None else dtype
        taken = {p.op.label for p in self.params if isinstance(p.op, Param)}
        label = next(f"x{i}" for i in itertools.count(len(taken)) if f"x{i}" not in taken)
        node = self.add(Param(label, dtype, tuple(shape)))
        self.params.append(node)
        value = Value(node, True, PARAM_LIMIT[dtype.kind])
        self.pool.append(value)
        return value

    def pick(self, accept: Callable[[Value], bool] = lambda v: True) -> Value | None:
        """A value of the pool, the newer the likelier."""
        fitting = [v for v in self.pool if accept(v)]
        if not fitting:
            return None
        place = len(fitting) - 1 - int(abs(self.rng.normal(0, max(2, len(fitting) / 3))))
        return fitting[max(place, 0)]

    def partner(self, x: Value, accept: Callable[[Value], bool] = lambda v: True) -> Value:
        """A value of x's dtype and shape: from the pool, or a scalar, vector or whole new parameter, broadcast."""
        same = self.pick(lambda v: v.node.type == x.node.type and accept(v))
        if same is not None and self.rng.random() < 0.6:
            return same
        kept = int(self.rng.integers(0, x.node.rank + 1))
        shape = [n if self.rng.random() < 0.7 else 1 for n in x.node.shape[x.node.rank - kept:]]
        new = self.param(dtype=x.node.dtype, shape=shape)
        return Value(library.broadcast(self.builder, new.node, x.node.shape), True, new.limit)

    def settled(self, node: Node, exact: bool, limit: float) -> Value:
        """The value with its bound; inexact values that grew too large are squashed."""
        dtype = node.dtype
        if not dtype.is_float:
            return Value(node, True, limit)
        exact = exact and limit <= 2 ** MANTISSA[dtype.name]
        if exact or limit <= LARGEST:
            return Value(node, exact, limit)
        return Value(self.add(Elementwise("tanh"), node), False, 1)

    # --- elementwise ---

    def unary(self) -> Value | None:
        x = self.pick(lambda v: v.exact)
        if x is None:
            return None
        if x.node.dtype.is_bool:
            return Value(self.add(Elementwise("not"), x.node), True, 1)
        function = self.choice(_WHOLE if x.node.dtype.is_float else _WHOLE[:3])
        return self.settled(self.add(Elementwise(str(function)), x.node), True, x.limit)

    def smooth(self) -> Value | None:
        x = self.pick(lambda v: v.node.dtype.is_float)
        if x is None:
            return None
        function = self.choice(list(_SMOOTH))
        argument, limit = self.domain(_SMOOTH[function], x)
        large = {"exp": 3, "exp2": 2, "expm1": 2, "sinh": 2, "cosh": 2, "tan": 2, "acos": 4}
        return self.settled(self.add(Elementwise(function), argument), False, max(large.get(function, 1), limit, 1))

    def domain(self, kind: str, x: Value) -> tuple[Node, float]:
        """An argument made of x: as it is, 1 + |x|, within -1..1 or within -1/2..1/2."""
        b, node = self.builder, x.node
        if kind == "x" and x.limit <= 64:
            return node, x.limit
        if kind == "positive":
            return library.apply(b, "add", library.scalar(b, "abs", node), library.like(b, 1.0, node)), x.limit + 1
        squashed = library.scalar(b, "sin" if x.limit <= 64 else "tanh", node)
        return (library.apply(b, "mul", squashed, library.like(b, 0.5, node)), 0.5) if kind == "half" else (squashed, 1)

    def binary(self) -> Value | None:
        x = self.pick()
        if x is None:
            return None
        y = self.partner(x)
        dtype = x.node.dtype
        if dtype.is_bool:
            return Value(self.add(Elementwise(self.choice(("and", "or", "xor", "max", "min"))), x.node, y.node), True, 1)
        names = ["add", "sub", "mul", "max", "min"]
        names += ["fmax", "fmin", "div", "hypot", "atan2", "copysign"] if dtype.is_float else \
            ["and", "or", "xor", "floordiv", "mod", "rem"]
        name = self.choice(names)
        return self.combined(name, x, y)

    def combined(self, name: str, x: Value, y: Value) -> Value:
        b, exact = self.builder, x.exact and y.exact
        if name == "div":
            divisor, _ = self.domain("positive", y)
            return self.settled(self.add(Elementwise("div"), x.node, divisor), False, x.limit)
        if name in ("atan2", "copysign"):
            # discontinuous where the second operand or the sign of zero decides: away from there only
            other, _ = self.domain("positive", y)
            return self.settled(self.add(Elementwise(name), x.node, other), exact and name == "copysign", max(x.limit, 4))
        limit = {"add": x.limit + y.limit, "sub": x.limit + y.limit, "mul": x.limit * y.limit,
                 "hypot": x.limit + y.limit}.get(name, max(x.limit, y.limit))
        return self.settled(library.scalar(b, name, x.node, y.node), exact and name != "hypot", limit)

    def shift(self) -> Value | None:
        x = self.pick(lambda v: v.node.dtype.is_integer)
        if x is None:
            return None
        return Value(self.add(Elementwise(self.choice(("shl", "shr"))), x.node, self.partner(x).node), True, x.limit)

    def compare(self) -> Value | None:
        x = self.pick(lambda v: v.exact)
        if x is None:
            return None
        y = self.partner(x, lambda v: v.exact)
        return Value(self.add(Elementwise(self.choice(_COMPARE)), x.node, y.node), True, 1)

    def select(self) -> Value | None:
        c = self.pick(lambda v: v.node.dtype.is_bool)
        x = self.pick(lambda v: c is not None and v.node.shape == c.node.shape)
        if c is None or x is None:
            return None
        y = self.partner(x)
        return self.settled(self.add(Elementwise("select"), c.node, x.node, y.node), x.exact and y.exact, max(x.limit, y.limit))

    def cast(self) -> Value | None:
        x = self.pick()
        target = self.choice(self.dtypes)
        if x is None or target == x.node.dtype or not x.exact and not target.is_float:
            return None
        limit = x.limit if x.node.dtype.is_float else 2.0 ** x.node.dtype.bits
        if target.is_float and limit > 2 ** MANTISSA[target.name]:
            return None  # wrapped integers: their size is not known
        return self.settled(self.add(Cast(target), x.node), x.exact, limit)

    # --- reductions and order ---

    def axis(self, x: Value) -> int | None:
        """An axis that has an element."""
        axes = [a for a, n in enumerate(x.node.shape) if bounds(n)[0] >= 1]
        return None if not axes else int(self.rng.choice(axes))

    def reduce(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank > 0)
        if x is None:
            return None
        axes = tuple(a for a in range(x.node.rank) if self.rng.random() < 0.5 and bounds(x.node.shape[a])[0] >= 1)
        if not axes:
            return None
        count = math.prod(float(bounds(x.node.shape[a])[1]) for a in axes)
        # products of many terms overflow, or are zero
        products = ("prod",) if not x.node.dtype.is_float or x.exact and count <= 8 else ()
        kind = self.choice(("and", "or", "max") if x.node.dtype.is_bool else ("sum", "max", "min", *products))
        node = self.add(Reduce(kind, axes), x.node)
        product_limit = max(x.limit, 1.0) ** min(count, 64) if x.limit <= 2 ** 15 else 2.0 ** 960  # a float holds both
        limit = {"sum": x.limit * count, "prod": product_limit}.get(kind, x.limit)
        return self.settled(node, x.exact, limit)

    def windows(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank > 1) if self.rng.random() < 0.4 else self.param(shape=image_shape(self.rng))
        made = windowed(self.builder, self.rng, x.node) if x is not None else None
        if x is None or made is None:
            return None
        return self.settled(made[0], x.exact, x.limit * made[1])

    def cumulative(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank > 0 and not v.node.dtype.is_bool)
        axis = self.axis(x) if x is not None else None
        if x is None or axis is None:
            return None
        kind = self.choice(("sum", "max", "min"))
        exclusive = kind == "sum" and bool(self.rng.integers(2))
        node = self.add(Cumulative(kind, axis, exclusive, bool(self.rng.integers(2))), x.node)
        return self.settled(node, x.exact, x.limit * float(bounds(x.node.shape[axis])[1]) if kind == "sum" else x.limit)

    def sort(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank > 0 and v.exact)
        axis = self.axis(x) if x is not None else None
        if x is None or axis is None:
            return None
        return Value(self.add(Sort(axis, bool(self.rng.integers(2))), x.node), x.exact, x.limit)

    def arg(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank > 0 and v.exact)
        axis = self.axis(x) if x is not None else None
        if x is None or axis is None:
            return None
        op = ArgSort(axis, bool(self.rng.integers(2))) if self.rng.random() < 0.5 else \
            ArgReduce(self.choice(("max", "min")), axis)
        return Value(self.add(op, x.node), True, 64)

    # --- movement ---

    def small(self, shape: Sequence[DimLike]) -> bool:
        return math.prod(float(bounds(n)[1]) for n in shape) <= MOST_ELEMENTS

    def broadcast(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank < 4)
        if x is None:
            return None
        sizes = self.known_sizes()
        lead = [self.choice(sizes)] if self.rng.random() < 0.6 and x.node.rank < 3 else []
        shape = (*lead, *(self.choice(sizes) if n == 1 else n for n in x.node.shape))
        if shape == x.node.shape or not self.small(shape):
            return None
        return Value(self.add(Broadcast(shape), x.node), x.exact, x.limit)

    def reshape(self) -> Value | None:
        x = self.pick()
        if x is None:
            return None
        shape = list(x.node.shape)
        if len(shape) >= 2 and self.rng.random() < 0.5:
            place = int(self.rng.integers(len(shape) - 1))
            shape[place:place + 2] = [shape[place] * shape[place + 1]]
        elif 8 in shape and self.rng.random() < 0.5:
            shape[shape.index(8):shape.index(8) + 1] = [2, 4]
        elif len(shape) < 4:
            shape.insert(int(self.rng.integers(len(shape) + 1)), 1)
        else:
            return None
        return Value(self.add(Reshape(tuple(shape)), x.node), x.exact, x.limit)

    def transpose(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank > 1)
        if x is None:
            return None
        perm = tuple(int(a) for a in self.rng.permutation(x.node.rank))
        return Value(self.add(Transpose(perm), x.node), x.exact, x.limit)

    def slice(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank > 0)
        if x is None:
            return None
        start: list[DimLike] = [0] * x.node.rank
        size, step = list(x.node.shape), [1] * x.node.rank
        for axis, extent in enumerate(x.node.shape):
            if self.rng.random() < 0.6 and bounds(extent)[0] >= 1:
                start[axis], size[axis], step[axis] = self.window(extent)
        return Value(self.add(Slice(tuple(start), tuple(size), tuple(step)), x.node), x.exact, x.limit)

    def window(self, extent: DimLike) -> tuple[DimLike, DimLike, int]:
        """A window on an axis that has an element: reversed, without the first, strided, or (static) any."""
        kind = int(self.rng.integers(4))
        if kind == 0:
            return extent - 1, extent, -1
        if kind == 1:
            return 1, extent - 1, 1
        if kind == 2 or not isinstance(extent, int):
            return 0, (extent + 1) // 2, 2
        start = int(self.rng.integers(extent))
        return start, int(self.rng.integers(1, extent - start + 1)), 1

    def pad(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank > 0)
        if x is None:
            return None
        low, high = (tuple(int(n) for n in self.rng.integers(0, 3, x.node.rank)) for _ in range(2))
        value = library.constant(self.builder, int(self.rng.integers(0, 2)), x.node.dtype)
        node = self.add(Pad(low, high), x.node, value)
        return Value(node, x.exact, max(x.limit, 1)) if self.small(node.shape) else None

    def concat(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank > 0)
        if x is None:
            return None
        y = self.partner(x)
        node = self.add(Concat(int(self.rng.integers(x.node.rank))), x.node, y.node, *([x.node] * int(self.rng.integers(2))))
        return Value(node, x.exact and y.exact, max(x.limit, y.limit)) if self.small(node.shape) else None

    def iota(self) -> Value | None:
        dtypes = [d for d in self.dtypes if not d.is_bool]
        if not dtypes:
            return None
        shape = tuple(self.choice(self.known_sizes()) for _ in range(int(self.rng.integers(1, 3))))
        axis = int(self.rng.integers(len(shape)))
        return Value(self.add(Iota(self.choice(dtypes), shape, axis)), True, 32)

    def known_sizes(self) -> list[DimLike]:
        """Numbers, and symbols that some parameter binds."""
        plain = [n for p in self.params for n in p.shape if isinstance(n, Dim) and n in self.sizes]
        return [n for n in self.sizes if isinstance(n, int)] + plain

    def take(self) -> Value | None:
        x = self.pick(lambda v: v.node.rank > 0)
        axis = self.axis(x) if x is not None else None
        if x is None or axis is None:
            return None
        b = self.builder
        if self.rng.random() < 0.5:
            places = self.rng.integers(0, int(bounds(x.node.shape[axis])[0]), size=int(self.rng.integers(1, 4)))
            indices = library.constant(b, places, I64)
        else:
            raw = self.param(int(self.rng.integers(0, 2)), I64).node
            extent = library.size_value(b, x.node.shape[axis])
            indices = library.apply(b, "mod", raw, extent)
        node = self.add(Take(axis), x.node, indices)
        return Value(node, x.exact, x.limit) if self.small(node.shape) else None

    # --- contractions, bodies, samples ---

    def dot(self) -> Value | None:
        x = self.pick(lambda v: 0 < v.node.rank <= 3 and not v.node.dtype.is_bool)
        if x is None:
            return None
        axis = int(self.rng.integers(x.node.rank))
        batch = [0] if x.node.rank == 3 and axis != 0 and self.rng.random() < 0.6 else []
        columns = self.choice(self.sizes)
        shape: list[DimLike] = [*(x.node.shape[a] for a in batch), x.node.shape[axis], columns]
        turned = bool(self.rng.integers(2))
        if turned:
            shape[-2:] = shape[:-3:-1]
        y = self.param(dtype=x.node.dtype, shape=shape)
        contract = len(shape) - (1 if turned else 2)
        node = self.add(Dot((axis,), (contract,), tuple(batch), tuple(batch)), x.node, y.node)
        limit = x.limit * y.limit * float(bounds(x.node.shape[axis])[1])
        return self.settled(node, x.exact, limit) if self.small(node.shape) else None

    def composite(self) -> Value | None:
        x = self.pick(lambda v: v.node.dtype.is_float and v.node.rank > 0)
        axis = self.axis(x) if x is not None else None
        if x is None or axis is None:
            return None
        b, kind = self.builder, int(self.rng.integers(3))
        if kind == 0:
            return Value(library.softmax(b, x.node, axis), False, 1)
        if kind == 1:
            return Value(library.gelu(b, x.node), False, x.limit)
        scale, bias = (self.param(dtype=x.node.dtype, shape=[x.node.shape[-1]]).node for _ in range(2))
        return Value(library.layer_norm(b, x.node, scale, bias, (x.node.rank - 1,), 1e-2), False, LARGEST)

    def branch(self) -> Value | None:
        return self.control(branched)

    def repeat(self) -> Value | None:
        return self.control(looped)

    def scan(self) -> Value | None:
        return self.control(scanned)

    def control(self, make: Callable[[Builder, np.random.Generator, Node, Sequence[Node]], Node]) -> Value | None:
        """Control flow over a value and exact ones beside it, which decide nothing that rounding may turn."""
        x = self.pick(lambda v: v.exact and (v.node.rank > 0 or make is not scanned))
        if x is None:
            return None
        if self.rng.random() < 0.5:
            self.param(0, BOOL)
        others = [v for v in self.pool if v.exact and (v.node.dtype == x.node.dtype or v.node.dtype.is_bool)][-8:]
        limit = max(1.0, x.limit, *(v.limit for v in others)) * GROWTH
        return self.settled(make(self.builder, self.rng, x.node, [x.node, *(v.node for v in others)]), True, limit)

    def sample(self) -> Value | None:
        """One of the ops' own samples, on new parameters."""
        samples = [s for op in ALL_OPS if op is not Elementwise for s in op.samples()
                   if all(t.dtype in self.dtypes or t.dtype == I64 for t in s.types)]
        chosen = self.choice(samples)
        operands = []
        for position, type in enumerate(chosen.types):
            node = self.param(dtype=type.dtype, shape=type.shape).node
            limits = chosen.ranges[position] if position < len(chosen.ranges) else None
            operands.append(node if limits is None else _into_range(self.builder, node, limits))
        node = self.add(chosen.op, *operands)
        if not isinstance(node.type, TensorType) or node.dtype not in self.dtypes:
            return None
        return self.settled(node, not node.dtype.is_float, LARGEST)
