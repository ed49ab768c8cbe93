"""What the function of an ONNX operator works with: the builder, the opset, known values, broadcasting and errors.

Every operator is a function `name(c: Context, <inputs>, *, <attributes>)` whose parameters are the ONNX inputs and
attributes; an absent optional input is None. It returns a node, or a tuple of nodes, one an output; outputs that the
model does not use may be None. Where an opset moved an attribute to an input the parameter takes either form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from ...ir.dims import Dim, DimLike, bounds, compare, dim_max, symbols_of
from ...ir.errors import CompileError, UnsupportedError
from ...ir.graph import Array, Builder, Node
from ...ir.ops.compute import Elementwise
from ...ir.ops.control import Param
from ...ir.ops.shape import Concat, SizeOf, Slice, Take
from ...ir.types import F32, I64, DType, TensorType
from ...library import broadcast, cast, constant, full, reduce, reshape, scalar
from .known_values import KnownValues, may_hold_sizes
from .narrow import converted
from .tensors import element_dtype

# An operator's function, and a table of them by their ONNX names.
Operator = Callable[..., Any]
Operators = dict[str, Operator]
MOST_LOOKED_AT = 1 << 10     # nodes behind an argument, when a refusal asks which inputs decide it
MOST_SHOWN = 6              # numbers in a hint

# An argument that is an input in one opset and an attribute in another.
Integers = Node | Sequence[int] | int | None


class Listed(Struct, frozen=True):
    """A sequence: its elements, and their dtype where it is known."""

    elements: tuple[Node, ...]
    dtype: DType | None = None


class Counted(Struct, frozen=True):
    """A sequence whose elements have sizes that data decides: how many there are is known, where the condition holds."""

    count: int
    condition: Node
    refusal: UnsupportedError       # of what needs the elements


class Absent(Struct, frozen=True):
    """An optional value that is not there. One that is there is just that value."""


# What an operator takes and gives, where it is not just a tensor.
Value = Node | Listed | Counted | Absent


def describe(value: Value | None) -> str:
    """What a value is, for messages."""
    if isinstance(value, Listed):
        return f"a sequence of {len(value.elements)}"
    if isinstance(value, Counted):
        return f"a sequence of {value.count} whose sizes data decides"
    return f"a tensor {value.type}" if isinstance(value, Node) else "an empty optional value"


class Budget(Struct):
    """How many more nodes of bodies may be built anew for each round of a loop, in one import."""

    nodes: int = 1 << 13


class Traced(Struct):
    """A body on its way to a graph: its builder, its inputs, the captures all bodies of the node share, its results."""

    builder: Builder
    params: list[Node]
    captures: list[Node]
    results: list[Value]

    def param(self, label: str, type: TensorType) -> Node:
        return self.builder.add(Param(label, type.dtype, type.shape))


class Subgraph(Protocol):
    """The body of If, Loop or Scan: the importer's view of it."""

    name: str
    input_count: int
    output_count: int
    node_count: int

    def inline(self, c: Context, inputs: Sequence[Value]) -> tuple[Value, ...]:
        """The results, built in place with these inputs."""
        ...


# What a body's input is: a parameter of that type, or a constant.
BodyInput = TensorType | Array
Request = tuple[Subgraph, Sequence[BodyInput]]
TraceBodies = Callable[["Context", Sequence[Request]], tuple[list[Traced], list[Node]]]


class DecidedByData(UnsupportedError):
    """What must be known at import is decided by data. It may follow from what the model declares of later values, or be bound."""


class Undecided(UnsupportedError):
    """The sides of an If differ in type, and nothing known decides between them. `side(taken)`: the results of one side, which
    the call holds the condition against. What comes after the node may rule one of them out."""

    side: Callable[[bool], tuple[Value, ...]]


class Context(Struct):
    """One ONNX node on its way into the graph."""

    b: Builder
    known: KnownValues
    opset: int
    op_type: str
    output_count: int
    wanted: tuple[bool, ...]
    trace_bodies: TraceBodies
    declared: tuple[tuple[DimLike | None, ...] | None, ...] = ()
    budget: Budget = field(default_factory=Budget)
    left_over: list[tuple[Builder, Node]] = field(default_factory=list)     # conditions of values without elements
    outputs: tuple[str, ...] = ()       # names

    # --- errors -------------------------------------------------------------------------------------------------------

    def fail(self, message: str, hint: str = "") -> NoReturn:
        """The model breaks a rule of the operator."""
        raise CompileError(f"{self.op_type}: {message}", loc=self.b.loc, hint=hint)

    def unsupported(self, message: str, hint: str = "") -> NoReturn:
        """The model is valid, but this is not supported."""
        raise UnsupportedError(f"{self.op_type}: {message}", loc=self.b.loc, hint=hint)

    def decided_by_data(self, message: str, *arguments: Integers, output: int | None = None, axis: int | None = None) -> NoReturn:
        """Raises what `decided` gives."""
        raise self.decided(message, *arguments, output=output, axis=axis)

    def decided(self, message: str, *arguments: Integers, output: int | None = None, axis: int | None = None) -> DecidedByData:
        """As `unsupported`, for what data decides; says what to bind or declare: what inputs hold that the arguments are computed from,
        or the sizes of an output (of one axis)."""
        advice = [f"bind what the input holds, dims={{{name!r}: {_numbers(count)}}}" for name, count in self._origins(arguments)]
        if output is not None and output < len(self.outputs):
            name, shape = self.outputs[output], self.declared[output]
            if shape is None:
                advice.append(f"declare the shape of {name!r} (value_info)")
            else:
                sizes = [f"'{name}_{a}': number" for a, n in enumerate(shape) if n is None and axis in (None, a)]
                advice.append(f"bind the sizes of the result, dims={{{', '.join(sizes)}}}")
        advice = advice or ["simplify the model, so that constants and sizes of inputs decide it"]
        return DecidedByData(f"{self.op_type}: {message}", loc=self.b.loc, hint=", or ".join(advice))

    def _origins(self, arguments: Sequence[Integers]) -> list[tuple[str, int]]:
        """The small inputs of integers that the arguments are computed from, with how many numbers they hold; empty where they are
        computed from other inputs too."""
        stack = [x for x in arguments if isinstance(x, Node)]
        seen: set[Node] = set(stack)
        found = []
        while stack and len(seen) <= MOST_LOOKED_AT:
            node = stack.pop()
            if isinstance(node.op, Param):
                if not may_hold_sizes(node):
                    return []
                found.append((node.op.label, node.tensor.static_shape[0] if node.rank else 1))
            fresh = [x for x in node.inputs if x not in seen]
            seen.update(fresh)
            stack += fresh
        return [] if stack else sorted(found)

    def wants(self, output: int) -> bool:
        """True where the model uses that output."""
        return output < len(self.wanted) and self.wanted[output]

    def tensor(self, value: Value) -> Node:
        """The value, which must be a tensor."""
        if not isinstance(value, Node):
            self.fail(f"a tensor is needed, found {describe(value)}")
        return value

    # --- attributes ---------------------------------------------------------------------------------------------------

    def axis(self, axis: int, rank: int, what: str = "axis") -> int:
        """The axis counted from the front."""
        if not -rank <= axis < rank:
            self.fail(f"{what} {axis} is outside -{rank}..{rank - 1}")
        return axis % rank if rank else 0

    def axes(self, axes: Sequence[int], rank: int) -> tuple[int, ...]:
        found = tuple(self.axis(int(a), rank) for a in axes)
        if len(set(found)) != len(found):
            self.fail(f"axes {tuple(axes)} name an axis twice")
        return found

    def check_rank(self, what: str, x: Node | None, *ranks: int) -> None:
        """An input that is given must have one of these ranks."""
        if x is not None and x.rank not in ranks:
            self.fail(f"input '{what}' must have rank {' or '.join(map(str, ranks))}, found {x.type}")

    def positive(self, value: int, what: str) -> int:
        if value < 1:
            self.fail(f"{what} must be positive, found {value}")
        return value

    def choice(self, value: str, what: str, allowed: Sequence[str]) -> str:
        if value not in allowed:
            self.fail(f"{what} {value!r} is not one of {', '.join(allowed)}")
        return value

    def dtype(self, code: int) -> DType:
        """The dtype for ONNX's number of an element type."""
        return element_dtype(code, f"the result of {self.op_type}")

    # --- known values -------------------------------------------------------------------------------------------------

    def value(self, node: Node | None) -> Array | None:
        """The contents where they are known (elements may be `Dim`)."""
        return None if node is None else self.known.of(node)

    def sizes(self, argument: Integers, what: str) -> tuple[DimLike, ...]:
        """A list of sizes that must be known; UnsupportedError says which input is not."""
        if not isinstance(argument, Node):
            return () if argument is None else (argument,) if isinstance(argument, int) else tuple(argument)
        value = self.known.of(argument)
        if value is None:
            self.decided_by_data(f"input '{what}' is computed from data; its contents must be known at compile time "
                                 f"(constants and arithmetic on sizes are)", argument)
        found = []
        for element in value.reshape(-1).tolist():
            if not isinstance(element, (int, Dim)):
                self.unsupported(f"input '{what}' holds {element}, which is not a size")
            found.append(element)
        return tuple(found)

    def integers(self, argument: Integers, what: str) -> tuple[int, ...]:
        """As `sizes`, and every one a plain number."""
        found = []
        for size in self.sizes(argument, what):
            if isinstance(size, Dim):
                self.unsupported(f"input '{what}' holds the symbolic size {size}; a number is needed here",
                                 hint=f"bind {', '.join(s.name for s in symbols_of(size))} with dims={{...}}")
            found.append(int(size))
        return tuple(found)

    def size(self, argument: Integers, what: str) -> DimLike:
        """The one element of such a list."""
        found = self.sizes(argument, what)
        if len(found) != 1:
            self.fail(f"input '{what}' must be one number, found {len(found)}")
        return found[0]

    def integer(self, argument: Integers, what: str) -> int:
        """The one element of such a list, a plain number."""
        self.size(argument, what)
        return self.integers(argument, what)[0]

    def number(self, node: Node | None, what: str, default: float) -> float:
        """A scalar that must be known."""
        if node is None:
            return default
        value = self.known.of(node)
        if value is None or value.size != 1 or value.dtype == object:
            self.unsupported(f"input '{what}' must be a constant scalar")
        return float(value.reshape(-1)[0])

    def all_known(self, *arguments: Integers) -> bool:
        """True where every list of sizes is known at import."""
        return all(not isinstance(a, Node) or self.known.of(a) is not None for a in arguments)

    def declared_shape(self, what: str, output: int = 0, rank: int | None = None, *, given: Integers = None) -> tuple[DimLike, ...]:
        """The shape that the model itself declares for an output, with that rank. What data decides is held against it at run
        time; DecidedByData where the model declares none. `given`: the argument that decides it."""
        shape = self.declared[output] if output < len(self.declared) else None
        found = tuple(n for n in shape or () if n is not None)
        if shape is None or len(found) != len(shape):
            self.decided_by_data(f"input '{what}' is computed from data, and the model does not declare the sizes of the result "
                                 f"that it decides", given, output=output)
        if rank is not None and len(found) != rank:
            self.fail(f"output {output} is declared with {len(found)} axes, expected {rank}")
        return found

    # --- building -----------------------------------------------------------------------------------------------------

    def constant(self, value: object, dtype: DType | None = None) -> Node:
        return constant(self.b, value, dtype)

    def like(self, value: float | int | bool, x: Node) -> Node:
        return constant(self.b, value, x.dtype)

    def sizes_value(self, sizes: Sequence[DimLike], dtype: DType = I64) -> Node:
        """A vector of sizes as a value."""
        if all(isinstance(n, int) for n in sizes):
            return constant(self.b, np.array(sizes, dtype=np.int64), dtype)
        parts: list[Node] = []
        numbers: list[int] = []
        for size in (*sizes, None):
            if isinstance(size, int):
                numbers.append(size)
                continue
            if numbers:
                parts.append(constant(self.b, np.array(numbers, dtype=np.int64)))
                numbers = []
            if size is not None:
                parts.append(reshape(self.b, self.b.add(SizeOf(size)), (1,)))
        joined = parts[0] if len(parts) == 1 else self.b.add(Concat(0), *parts)
        return cast(self.b, joined, dtype)

    def refine(self, x: Node, shape: Sequence[DimLike]) -> Node:
        """x under sizes that the model promises but that cannot be proved: checked at run time, never assumed."""
        shape = tuple(shape)
        if x.shape == shape:
            return x
        if x.rank != len(shape):
            self.fail(f"{x.type} has rank {x.rank}, expected the shape ({', '.join(map(str, shape))})")
        for axis, (found, expected) in enumerate(zip(x.shape, shape, strict=True)):
            if compare(found, expected) in (-1, 1):
                self.fail(f"axis {axis} has size {found}, expected {expected}")
        start, step = (0,) * x.rank, (1,) * x.rank
        # A slice fails where a size is too small. One to the shape and one back check equality, and nothing is moved.
        window = self.b.add(Slice(start, shape, step), x)
        back = tuple(map(not_negative, x.shape))
        return self.b.add(Slice(start, shape, step), self.b.add(Slice(start, back, step), window))

    def broadcast_shape(self, *shapes: Sequence[DimLike]) -> tuple[DimLike, ...]:
        """NumPy's rule. Symbolic sizes that are not proved equal are taken to be equal, which `broadcast_to` checks."""
        rank = max((len(s) for s in shapes), default=0)
        result: list[DimLike] = [1] * rank
        for shape in shapes:
            for axis, size in enumerate(shape, rank - len(shape)):
                result[axis] = self._common(result[axis], size, shapes)
        return tuple(result)

    def _common(self, left: DimLike, right: DimLike, shapes: Sequence[Sequence[DimLike]]) -> DimLike:
        if left == 1 or right == 1 or left == right:
            return right if left == 1 else left
        if compare(left, right) in (-1, 1):
            texts = " and ".join(f"({', '.join(map(str, s))})" for s in shapes)
            self.fail(f"shapes {texts} do not broadcast: {left} vs {right}")
        # a number, else what is never negative, else the shorter text: the same choice whatever the order of the operands
        return min(left, right, key=lambda n: (not isinstance(n, int), bounds(n)[0] < 0, len(str(n)), str(n)))

    def broadcast_to(self, x: Node, shape: Sequence[DimLike]) -> Node:
        offset = len(shape) - x.rank
        checked = [n if n == 1 else shape[offset + a] for a, n in enumerate(x.shape)]
        return broadcast(self.b, self.refine(x, checked), shape)

    def broadcast_together(self, *operands: Node) -> tuple[Node, ...]:
        shape = self.broadcast_shape(*(x.shape for x in operands))
        return tuple(self.broadcast_to(x, shape) for x in operands)

    def apply(self, function: str, *operands: Node) -> Node:
        """A scalar function with ONNX's (NumPy's) broadcasting."""
        return self.b.add(Elementwise(function), *self.broadcast_together(*operands))

    def scalar(self, function: str, *operands: Node) -> Node:
        return scalar(self.b, function, *operands)

    def cast(self, x: Node, dtype: DType) -> Node:
        return converted(self.b, x, dtype)

    def reshape(self, x: Node, shape: Sequence[DimLike]) -> Node:
        return reshape(self.b, x, shape)

    def full(self, value: object, dtype: DType, shape: Sequence[DimLike]) -> Node:
        return full(self.b, value, dtype, shape)

    def wide(self, x: Node) -> Node:
        """float16 and bfloat16 as float32, for what ONNX computes there."""
        return cast(self.b, x, F32) if x.dtype.is_float and x.dtype.bits < 32 else x

    def require(self, value: Node, condition: Node) -> Node:
        """The value; an error at run time where the condition, of any shape, does not hold everywhere."""
        if 0 in value.shape:
            self.left_over.append((self.b, condition))
        return required(self.b, value, condition)

    def need_float(self, x: Node, what: str) -> Node:
        if not x.dtype.is_float:
            self.fail(f"input '{what}' must be a float tensor, found {x.type}")
        return x

    def within(self, builder: Builder) -> Context:
        """The same node, building into the body that the builder makes."""
        return replace(self, b=builder)

    def unroll(self, body: Subgraph) -> None:
        """To be asked before a body is built once more for one more round; UnsupportedError where that is too often."""
        self.budget.nodes -= body.node_count + 1
        if self.budget.nodes < 0:
            self.unsupported(f"the rounds of {body.name!r} would be too many nodes, each built by itself")

    def trace(self, requests: Sequence[Request]) -> tuple[list[Traced], list[Node]]:
        """The bodies of this node, each with its inputs, and the outer values that they capture (in common order)."""
        return self.trace_bodies(self, requests)


def _numbers(count: int) -> str:
    return "(number,)" if count == 1 else f"({', '.join(['number'] * min(count, MOST_SHOWN))}{', ...' * (count > MOST_SHOWN)})"


def required(b: Builder, value: Node, condition: Node) -> Node:
    """As `Context.require`, where the value has elements: nothing is computed, so nothing is checked, for one that has none."""
    if condition.rank:
        condition = reduce(b, "and", condition, tuple(range(condition.rank)))
    # an index outside of an axis is the error that every backend has
    place = scalar(b, "select", condition, constant(b, 0, I64), constant(b, 1, I64))
    return b.add(Take(0), reshape(b, value, (1, *value.shape)), place)


def lower_bound(size: DimLike) -> float:
    return bounds(size)[0]


def not_negative(size: DimLike) -> DimLike:
    """The size, or 0 where it would be negative."""
    return size if bounds(size)[0] >= 0 else dim_max(size, 0)
