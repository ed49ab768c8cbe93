"""Where the names of an ONNX import live: scopes with their captures, frames of nodes, bodies of control flow.

Assumes that names were checked (`onnx_files.check_names`). Guarantees: what a body reads of an outer scope becomes one capture,
whose order all bodies of a node share; constants are made again inside instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field

from ..ir.graph import Builder, Node
from ..ir.ops.control import Const, Param
from .onnx_messages import AttributeProto, GraphProto, ValueInfoProto
from .onnx_ops.context import Absent, Context, Counted, Listed, Value
from .onnx_ops.known_values import KnownValues


class Scope(Struct):
    """Names and their nodes. A scope with a builder of its own takes outer values as captures."""

    builder: Builder
    parent: Scope | None = None
    names: dict[str, Value] = field(default_factory=dict)
    captured: Captures | None = None

    def find(self, name: str) -> Value | None:
        scope: Scope | None = self
        passed: list[Scope] = []
        while scope is not None and name not in scope.names:
            passed.append(scope)
            scope = scope.parent
        if scope is None:
            return None
        value = scope.names[name]
        for inner in reversed(passed):
            if inner.captured is not None:
                value = inner.captured.value_inside(inner.builder, value)
        return value

    def define(self, names: Sequence[str], values: Sequence[Value | None]) -> None:
        """Outputs of a node by their names; those that the model leaves without a name, or nobody makes, are none."""
        for name, value in zip(names, values):
            if name and value is not None:
                self.names[name] = value


class Captures(Struct):
    """The outer values that the bodies of one node use, in the order that all of them share."""

    outer: list[Node]
    known: KnownValues
    inner: dict[Node, Node] = field(default_factory=dict)

    def value_inside(self, builder: Builder, value: Value) -> Value:
        """As `inside`, for each element of a sequence too."""
        if isinstance(value, Listed):
            return Listed(tuple(self.inside(builder, x) for x in value.elements), value.dtype)
        if isinstance(value, Counted):
            return Counted(value.count, self.inside(builder, value.condition), value.refusal)
        return value if isinstance(value, Absent) else self.inside(builder, value)

    def inside(self, builder: Builder, node: Node) -> Node:
        """The node of the body that stands for an outer one: a constant again, or a parameter."""
        if node in self.inner:
            return self.inner[node]
        if isinstance(node.op, Const):
            self.inner[node] = builder.add(node.op)
            return self.inner[node]
        if node not in self.outer:
            self.outer.append(node)
        made = builder.add(Param(f"capture{self.outer.index(node)}", node.dtype, node.shape))
        value = self.known.of(node)
        if value is not None:
            self.known.assume(made, value)
        self.inner[node] = made
        return made


class Frame(Struct, frozen=True):
    """What holds for the nodes of one list: their scope, opsets, the attributes of the function they belong to."""

    scope: Scope
    opsets: Mapping[str, int]
    attributes: Mapping[str, AttributeProto] | None = None
    path: str = ""
    depth: int = 0
    functions: tuple[str, ...] = ()
    declared: Mapping[str, ValueInfoProto] | None = None


class Body(Struct, frozen=True):
    """A subgraph as the operators see it (`context.Subgraph`)."""

    graph: GraphProto
    frame: Frame
    run: Callable[[Body, Scope, Sequence[Value]], list[Value]]

    @property
    def name(self) -> str:
        return str(self.graph.name)

    @property
    def input_count(self) -> int:
        return len(self.graph.input)

    @property
    def output_count(self) -> int:
        return len(self.graph.output)

    @property
    def node_count(self) -> int:
        return len(self.graph.node)

    def inline(self, c: Context, inputs: Sequence[Value]) -> tuple[Value, ...]:
        return tuple(self.run(self, Scope(c.b, self.frame.scope), inputs))
