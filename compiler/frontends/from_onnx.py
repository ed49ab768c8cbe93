"""Reads an ONNX model into the graph IR: `from_onnx(path_or_bytes_or_ModelProto)`.

What it does: parses the protobuf (nothing else of the onnx package runs on the file), checks it, walks its nodes in
their order and calls one function of `onnx_ops/` for each. Sizes are followed through the model's shape arithmetic
(`onnx_ops/known_values.py`), so a Reshape by a computed shape gets sizes, not data. Local functions are inlined, nodes
that no output needs are left out, inputs that have an initializer are constants.

Dims: a symbolic dim of an input becomes a symbol of at least 1, named after the model's name for it (`dim_param`) or,
where it has none, `<input>_<axis>`; `dims` binds either name to a number, a `Dim` (which may allow 0 or state bounds)
or a new name.

Guarantees: a model that cannot be read ends in a CompileError that says what, where and what was expected; what is
valid but not supported in an UnsupportedError; all operators that are unknown are listed at once. Every node of the
graph carries the ONNX node's name as its location.
"""

from __future__ import annotations

import inspect
import keyword
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError
from msgspec import Struct, field

from ..ir.dims import RESERVED, Dim, DimLike, symbol
from ..ir.errors import CompileError, Loc, UnsupportedError
from ..ir.graph import Builder, Graph, Node
from ..ir.ops.control import Const, Param
from ..ir.types import TensorType
from ..library import constant
from .onnx_messages import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, newest_opset
from .onnx_ops.context import Context, Operator, Request, Traced
from .onnx_ops.known_values import KnownValues
from .onnx_ops.payloads import without_payloads
from .onnx_ops.table import DOMAINS, REFUSED
from .onnx_ops.tensors import Folder, checked_shape, decode_tensor, element_dtype

Source: TypeAlias = str | os.PathLike[str] | bytes | ModelProto
DimBinding: TypeAlias = int | Dim | str
DEEPEST = 64        # functions and subgraphs inside one another


def from_onnx(source: Source, dims: Mapping[str, DimBinding] | None = None,
              outputs: Sequence[str] | None = None) -> Graph:
    """The model as a graph. `dims` binds symbolic dims by name; `outputs` keeps only these, in this order."""
    model, label, folder, payloads = read_model(source)
    importer = Importer(model, label, folder, dict(dims or {}), payloads)
    return importer.run(outputs)


Payloads: TypeAlias = Mapping[int, memoryview]


def read_model(source: Source) -> tuple[ModelProto, str, Folder, Payloads]:
    """The parsed model, what to call it in messages, where its external data may lie, and the data of large initializers by their
    numbers, which is not in the model then."""
    if isinstance(source, ModelProto):
        return source, "model", Folder(None), {}
    if isinstance(source, (bytes, bytearray, memoryview)):
        model, payloads = _parse(bytes(source), "model")
        return model, "model", Folder(None), payloads
    path = Path(os.fspath(source))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CompileError(f"{path}: cannot be read: {error.strerror or error}") from None
    model, payloads = _parse(data, path.name)
    return model, path.name, Folder(path.parent), payloads


def _parse(data: bytes, label: str) -> tuple[ModelProto, Payloads]:
    model = ModelProto()
    rest, payloads = without_payloads(data)
    try:
        model.ParseFromString(rest)
    except DecodeError as error:
        raise CompileError(f"{label}: not an ONNX model, or a truncated one: {error} ({len(data)} bytes)") from None
    if not data or not model.HasField("graph"):
        raise CompileError(f"{label}: not an ONNX model: it has no graph ({len(data)} bytes)")
    check_text(model, label)
    return model, payloads


# --- scopes ----------------------------------------------------------------------------------------------------------


class Scope(Struct):
    """Names and their nodes. A scope with a builder of its own takes outer values as captures."""

    builder: Builder
    parent: Scope | None = None
    names: dict[str, Node] = field(default_factory=dict)
    captured: Captures | None = None

    def find(self, name: str) -> Node | None:
        scope: Scope | None = self
        passed: list[Scope] = []
        while scope is not None and name not in scope.names:
            passed.append(scope)
            scope = scope.parent
        if scope is None:
            return None
        node = scope.names[name]
        for inner in reversed(passed):
            if inner.captured is not None:
                node = inner.captured.inside(inner.builder, node)
        return node


class Captures(Struct):
    """The outer values that the bodies of one node use, in the order that all of them share."""

    outer: list[Node]
    known: KnownValues
    inner: dict[Node, Node] = field(default_factory=dict)

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
    importer: Importer

    @property
    def name(self) -> str:
        return str(self.graph.name)

    @property
    def input_count(self) -> int:
        return len(self.graph.input)

    @property
    def output_count(self) -> int:
        return len(self.graph.output)

    def inline(self, c: Context, inputs: Sequence[Node]) -> tuple[Node, ...]:
        return tuple(self.importer.run_body(self, Scope(c.b, self.frame.scope), inputs))


# --- the importer ----------------------------------------------------------------------------------------------------


class Importer:
    """One import: the model, its functions, the dims in use."""

    def __init__(self, model: ModelProto, label: str, folder: Folder, dims: dict[str, DimBinding], payloads: Payloads) -> None:
        self.model = model
        self.label = label
        self.folder = folder
        self.payloads = payloads
        self.known = KnownValues()
        self.functions = {_function_key(f.domain, f.name, f.overload): f for f in model.functions}
        self.dims = DimNames(label, dims)

    def run(self, outputs: Sequence[str] | None) -> Graph:
        graph = self.model.graph
        opsets = self._opsets()
        check_names(graph, self.label, frozenset())
        wanted = self._wanted_outputs(graph, outputs)
        nodes = needed_nodes(graph.node, wanted)
        self._check_known_operators(nodes, opsets)
        builder = Builder(Loc(name=self.label))
        scope = Scope(builder)
        params = self._inputs(graph, builder, scope)
        self._initializers(graph, builder, scope, self.payloads)
        self.dims.check_all_used()
        self._run_nodes(nodes, Frame(scope, opsets, declared=declared_values(graph)), frozenset(wanted))
        results = [self._result(scope, name) for name in wanted]
        return Graph(identifier(graph.name) or "model", params, results, wanted)

    def _opsets(self) -> dict[str, int]:
        opsets = opsets_of(self.model, self.label)
        if "" not in opsets and any(_domain(n.domain) == "" for n in self.model.graph.node):
            raise CompileError(f"{self.label}: the model names no opset of the standard domain (opset_import)")
        return opsets

    def _wanted_outputs(self, graph: GraphProto, outputs: Sequence[str] | None) -> list[str]:
        own = [value.name for value in graph.output]
        if outputs is None:
            if not own:
                raise CompileError(f"{self.label}: the model has no outputs")
            return own
        made = {*own, *(name for n in graph.node for name in n.output if name), *(v.name for v in graph.input)}
        for name in outputs:
            if name not in made:
                raise CompileError(f"{self.label}: no value is called {name!r}; outputs are {', '.join(own)}")
        return list(outputs)

    def _inputs(self, graph: GraphProto, builder: Builder, scope: Scope) -> list[Node]:
        defaults = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        params = []
        for value in graph.input:
            if value.name in defaults:
                continue
            type = self._input_type(value)
            node = builder.add(Param(value.name, type.dtype, type.shape), loc=Loc(name=f"{self.label}: input {value.name!r}"))
            scope.names[value.name] = node
            params.append(node)
        return params

    def _input_type(self, value: ValueInfoProto) -> TensorType:
        what = f"{self.label}: input {value.name!r}"
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            if kind is None:
                raise CompileError(f"{what} has no type")
            raise UnsupportedError(f"{what} is a {kind.removesuffix('_type')}; only tensors are supported as inputs")
        tensor = value.type.tensor_type
        dtype = element_dtype(tensor.elem_type, what)
        if not tensor.HasField("shape"):
            raise UnsupportedError(f"{what} has no shape, not even a rank", hint="export the model with input shapes")
        numbers = [d.dim_value for d in tensor.shape.dim if d.WhichOneof("value") == "dim_value" and d.dim_value != -1]
        checked_shape(numbers, what)
        sizes = [self.dims.size(d, value.name, axis) for axis, d in enumerate(tensor.shape.dim)]
        return TensorType(dtype, tuple(sizes))

    def _initializers(self, graph: GraphProto, builder: Builder, scope: Scope, payloads: Payloads) -> None:
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise UnsupportedError(f"{self.label}: initializer {name!r} is sparse, which is not supported")
        for number, tensor in enumerate(graph.initializer):
            array = decode_tensor(tensor, self.folder, self.label, payloads.get(number))
            builder.loc = Loc(name=f"{self.label}: initializer {tensor.name!r}")
            scope.names[tensor.name] = constant(builder, array)

    def _result(self, scope: Scope, name: str) -> Node:
        node = scope.find(name)
        if node is None:
            raise CompileError(f"{self.label}: output {name!r} is made by no node")
        return node

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _check_known_operators(self, nodes: Sequence[NodeProto], opsets: Mapping[str, int]) -> None:
        """UnsupportedError that lists every operator that nobody here knows, with the nodes that use it."""
        unknown: dict[str, list[str]] = {}
        seen: set[str] = set()
        stack = list(reversed(nodes))
        while stack:
            node = stack.pop()
            key = _function_key(node.domain, node.op_type, node.overload)
            if key in self.functions:
                if key not in seen:
                    seen.add(key)
                    stack.extend(reversed(self.functions[key].node))
            elif node.op_type not in DOMAINS.get(_domain(node.domain), {}):
                name = f"{node.domain}::{node.op_type}" if _domain(node.domain) else node.op_type
                unknown.setdefault(name, []).append(_node_name(node))
            for graph in _subgraphs(node):
                stack.extend(reversed(graph.node))
        if unknown:
            lines = tuple(_unknown_line(op, names) for op, names in sorted(unknown.items()))
            raise UnsupportedError(f"{self.label}: {len(unknown)} operator{'s are' if len(unknown) > 1 else ' is'} not "
                                   f"supported: {', '.join(sorted(unknown))}", notes=lines)

    def _run_nodes(self, nodes: Sequence[NodeProto], frame: Frame, results: frozenset[str]) -> None:
        used = Counter(name for node in nodes for name in _reads(node))
        for node in nodes:
            where = Loc(name=f"{self.label}: {frame.path}node '{_node_name(node)}' ({node.op_type})")
            frame.scope.builder.loc = where
            try:
                values = self._run_node(node, frame, lambda n: bool(n) and (used[n] > 0 or n in results))
            except CompileError as error:
                raise error.at(where) from error.__cause__
            for name, value in zip(node.output, values):
                if name and value is not None:
                    frame.scope.names[name] = value

    def _run_node(self, node: NodeProto, frame: Frame, is_used: Callable[[str], bool]) -> Sequence[Node | None]:
        inputs = [self._operand(node, name, frame) for name in node.input]
        key = _function_key(node.domain, node.op_type, node.overload)
        if key in self.functions:
            return self._call_function(key, node, inputs, frame)
        domain = _domain(node.domain)
        operator = DOMAINS.get(domain, {}).get(node.op_type)
        if operator is None:
            raise UnsupportedError(f"{node.op_type}: this operator is not supported")
        if domain not in frame.opsets:
            raise CompileError(f"{node.op_type}: the domain {node.domain or 'ai.onnx'!r} has no opset here (opset_import)")
        context = Context(frame.scope.builder, self.known, frame.opsets[domain], node.op_type, len(node.output),
                          tuple(map(is_used, node.output)), self._trace_bodies,
                          tuple(self._declared_shape(frame, name) for name in node.output))
        attributes = {a.name: a for a in node.attribute}
        decoded = {name: self._attribute(a, frame) for name, a in attributes.items()}
        made = call_operator(context, operator, inputs, {k: v for k, v in decoded.items() if v is not None})
        values: Sequence[Node | None] = made if isinstance(made, tuple) else (made,)
        for place, name in enumerate(node.output):
            if is_used(name) and (place >= len(values) or values[place] is None):
                context.unsupported(f"output {place} ({name!r}) is not supported")
        return values

    def _declared_shape(self, frame: Frame, name: str) -> tuple[DimLike | None, ...] | None:
        """What the model declares of a value's shape; None for a size that is neither a number nor one of the inputs'."""
        value = (frame.declared or {}).get(name)
        if value is None or not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            return None
        return tuple(self.dims.declared(dim) for dim in value.type.tensor_type.shape.dim)

    def _operand(self, node: NodeProto, name: str, frame: Frame) -> Node | None:
        if not name:
            return None
        found = frame.scope.find(name)
        if found is None:
            raise CompileError(f"{node.op_type}: the input {name!r} is defined nowhere before this node")
        return found

    def _attribute(self, attribute: AttributeProto, frame: Frame) -> Any:
        """The attribute as a Python value; None where it refers to one that the function's caller left out."""
        if attribute.ref_attr_name:
            given = (frame.attributes or {}).get(attribute.ref_attr_name)
            if given is None:
                return None
            attribute = given
        match attribute.type:
            case AttributeProto.FLOAT:
                return float(attribute.f)
            case AttributeProto.INT:
                return int(attribute.i)
            case AttributeProto.STRING:
                return _text(attribute.s, attribute.name)
            case AttributeProto.TENSOR:
                return decode_tensor(attribute.t, self.folder, f"attribute {attribute.name!r}")
            case AttributeProto.GRAPH:
                return Body(attribute.g, frame, self)
            case AttributeProto.FLOATS:
                return tuple(float(v) for v in attribute.floats)
            case AttributeProto.INTS:
                return tuple(int(v) for v in attribute.ints)
            case AttributeProto.STRINGS:
                return tuple(_text(v, attribute.name) for v in attribute.strings)
        kind = AttributeProto.AttributeType.Name(attribute.type) if attribute.type in \
            AttributeProto.AttributeType.values() else attribute.type
        raise UnsupportedError(f"attribute {attribute.name!r} of kind {kind} is not supported")

    # --- functions and bodies -----------------------------------------------------------------------------------------

    def _call_function(self, key: str, node: NodeProto, inputs: Sequence[Node | None],
                       frame: Frame) -> list[Node | None]:
        function: FunctionProto = self.functions[key]
        if key in frame.functions or frame.depth >= DEEPEST:
            raise CompileError(f"the function {key} calls itself: {' -> '.join((*frame.functions, key))}")
        if len(inputs) > len(function.input):
            raise CompileError(f"the function {key} takes {len(function.input)} inputs, is given {len(inputs)}")
        scope = Scope(frame.scope.builder)
        scope.names.update({name: x for name, x in zip(function.input, inputs) if x is not None})
        attributes = {a.name: a for a in function.attribute_proto}
        for a in node.attribute:
            given = (frame.attributes or {}).get(a.ref_attr_name) if a.ref_attr_name else a
            if given is not None:
                attributes[a.name] = given
        opsets = opsets_of(function, f"the function {key}")
        path = f"{frame.path}node '{_node_name(node)}' / "
        inner = Frame(scope, {**frame.opsets, **opsets}, attributes, path, frame.depth + 1, (*frame.functions, key),
                      {value.name: value for value in function.value_info})
        self._run_nodes(function.node, inner, frozenset(function.output))
        return [scope.find(name) for name in function.output]

    def run_body(self, body: Body, scope: Scope, inputs: Sequence[Node]) -> list[Node]:
        """The body's nodes in this scope; its results."""
        graph, outer = body.graph, body.frame
        if outer.depth >= DEEPEST:
            raise CompileError(f"the subgraph {graph.name!r} lies deeper than {DEEPEST} levels")
        if len(inputs) != len(graph.input):
            raise CompileError(f"the subgraph {graph.name!r} takes {len(graph.input)} inputs, is given {len(inputs)}")
        scope.names.update({value.name: x for value, x in zip(graph.input, inputs)})
        kept, path = scope.builder.loc, f"{outer.path}subgraph '{graph.name}' / "
        self._initializers(graph, scope.builder, scope, {})
        wanted = [value.name for value in graph.output]
        frame = Frame(scope, outer.opsets, outer.attributes, path, outer.depth + 1, outer.functions, declared_values(graph))
        self._run_nodes(needed_nodes(graph.node, wanted), frame, frozenset(wanted))
        scope.builder.loc = kept
        return [self._result(scope, name) for name in wanted]

    def _trace_bodies(self, c: Context, requests: Sequence[Request]) -> tuple[list[Traced], list[Node]]:
        """Each body in a builder of its own, with the same captures as parameters."""
        outer: list[Node] = []
        traced: list[Traced] = []
        tables: list[Captures] = []
        for subgraph, given in requests:
            assert isinstance(subgraph, Body)
            builder = Builder(c.b.loc)
            params = [builder.add(Param(f"x{i}", t.dtype, t.shape)) if isinstance(t, TensorType)
                      else constant(builder, t) for i, t in enumerate(given)]
            captures = Captures(outer, self.known)
            results = self.run_body(subgraph, Scope(builder, subgraph.frame.scope, captured=captures), params)
            traced.append(Traced(builder, params, [], results))
            tables.append(captures)
        for body, captures in zip(traced, tables):
            body.captures = [captures.inside(body.builder, node) for node in outer]
        return traced, outer


# --- dims ------------------------------------------------------------------------------------------------------------


class DimNames:
    """The symbols of an import: the model's names made identifiers, and what the caller binds them to."""

    def __init__(self, label: str, bindings: dict[str, DimBinding]) -> None:
        self.label = label
        self.bindings = bindings
        self.used: set[str] = set()
        self.sizes: dict[str, DimLike] = {}
        self.originals: dict[str, str] = {}

    def size(self, dim: Any, input_name: str, axis: int) -> DimLike:
        """The size of an input's axis: a number, or the symbol for its name."""
        if dim.WhichOneof("value") == "dim_value" and dim.dim_value != -1:
            return int(dim.dim_value)
        original = dim.dim_param if dim.WhichOneof("value") == "dim_param" and dim.dim_param not in ("", "?") else ""
        name = original or f"{input_name}_{axis}"
        if name not in self.sizes:
            self.sizes[name] = self._new(name)
        return self.sizes[name]

    def declared(self, dim: Any) -> DimLike | None:
        """A size that the model declares for a value inside: a number, or a dim of the inputs."""
        if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0:
            return int(dim.dim_value)
        return self.sizes.get(dim.dim_param) if dim.WhichOneof("value") == "dim_param" else None

    def _new(self, name: str) -> DimLike:
        plain = identifier(name) or "dim"
        while self.originals.setdefault(plain, name) != name:       # two names that become one identifier
            plain += "_"
        for key in (name, plain):
            if key in self.bindings:
                self.used.add(key)
                return self._bound(key, self.bindings[key])
        return symbol(plain, lower=1)

    def _bound(self, key: str, value: DimBinding) -> DimLike:
        if isinstance(value, bool) or not isinstance(value, (int, Dim, str)):
            raise CompileError(f"{self.label}: dims[{key!r}] must be a number, a Dim or a name, found {value!r}")
        if isinstance(value, int) and value < 0:
            raise CompileError(f"{self.label}: dims[{key!r}] = {value} is negative")
        return symbol(value, lower=1) if isinstance(value, str) else value

    def check_all_used(self) -> None:
        unused = sorted(set(self.bindings) - self.used)
        if unused:
            known = ", ".join(sorted(self.sizes)) or "none"
            raise CompileError(f"{self.label}: dims binds {', '.join(map(repr, unused))}, which the model does not have",
                               hint=f"its symbolic dims are: {known}")


def identifier(name: str) -> str:
    """The name with everything that an identifier cannot hold replaced by underscores; no word with a meaning."""
    plain = re.sub(r"[^0-9A-Za-z_]", "_", name)
    if keyword.iskeyword(plain) or plain in RESERVED:
        return f"{plain}_"
    return f"_{plain}" if plain[:1].isdigit() else plain


# --- reading the protobuf --------------------------------------------------------------------------------------------


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _function_key(domain: str, name: str, overload: str) -> str:
    return f"{_domain(domain)}::{name}" + (f":{overload}" if overload else "")


def _node_name(node: NodeProto) -> str:
    """The node's name or, where it has none, that of its first output."""
    return node.name or next((name for name in node.output if name), "unnamed")


def _unknown_line(op: str, names: Sequence[str]) -> str:
    """`NonZero x2: node_1, node_7 (the size of its result is decided by data)`."""
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{op} x{len(names)}: {shown}" + (f" ({REFUSED[op]})" if op in REFUSED else "")


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise CompileError(f"attribute {what!r} is not text in UTF-8: {raw[:40]!r}") from None


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _reads(node: NodeProto) -> Iterator[str]:
    """Every name the node reads, those that its subgraphs take from outside included."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield from (name for name in current.input if name)
        for graph in _subgraphs(current):
            stack.extend(graph.node)
            yield from (value.name for value in graph.output)


def opsets_of(source: ModelProto | FunctionProto, label: str) -> dict[str, int]:
    """Versions by domain; that of the standard domain must be one that is known."""
    opsets = {_domain(entry.domain): entry.version for entry in source.opset_import}
    newest = newest_opset(opsets.get("", 1))
    if "" in opsets and not 1 <= opsets[""] <= newest:
        raise CompileError(f"{label}: found opset {opsets['']} of the standard domain, expected 1 to {newest}, the newest that the "
                           "installed onnx package knows", hint=f"export the model for opset {newest}, or pip install --upgrade onnx")
    return opsets


def needed_nodes(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """The nodes that the outputs depend on, in the model's order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(name in wanted for name in node.output):
            kept.append(node)
            wanted.update(_reads(node))
    return kept[::-1]


# Operators whose result has the shape of their first input, whatever the data.
KEEP_SHAPE = frozenset(("Abs", "Cast", "CastLike", "Ceil", "Exp", "Floor", "Identity", "Log", "Neg", "Reciprocal", "Relu", "Round",
                        "Sigmoid", "Softmax", "Sqrt", "Tanh"))


def declared_values(graph: GraphProto) -> dict[str, ValueInfoProto]:
    """What the graph declares of its values, by name, and of those that must have the same shape."""
    found = {value.name: value for value in (*graph.value_info, *graph.output)}
    for node in reversed(graph.node):
        if node.op_type in KEEP_SHAPE and node.input and len(node.output) == 1 and node.output[0] in found:
            found.setdefault(node.input[0], found[node.output[0]])
    return found


def check_text(model: ModelProto, label: str) -> None:
    """Every name is text. (Protobuf hands out bytes where a string is no UTF-8.)"""
    found: list[Any] = [entry.domain for entry in model.opset_import]
    stack: list[Any] = [model.graph, *model.functions]
    while stack:
        owner = stack.pop()
        found.append(owner.name)
        for node in owner.node:
            found += [node.name, node.op_type, node.domain, node.overload, *node.input, *node.output]
            found += [text for a in node.attribute for text in (a.name, a.ref_attr_name)]
            stack.extend(_subgraphs(node))
        if isinstance(owner, GraphProto):
            found += [v.name for v in (*owner.input, *owner.output)] + [t.name for t in owner.initializer]
            found += [d.dim_param for v in owner.input for d in v.type.tensor_type.shape.dim]
        else:
            found += [owner.domain, owner.overload, *owner.input, *owner.output, *owner.attribute]
    for text in found:
        if not isinstance(text, str):
            raise CompileError(f"{label}: the name {text[:40]!r} is not text in UTF-8")


def check_names(graph: GraphProto, label: str, outer: frozenset[str]) -> None:
    """Every value is defined once, and before it is read."""
    stack: list[tuple[GraphProto, frozenset[str], str]] = [(graph, outer, "")]
    while stack:
        current, known, path = stack.pop()
        if path.count("/") > DEEPEST:
            raise CompileError(f"{label}: subgraphs lie deeper than {DEEPEST} levels")
        defined = _entry_names(current, label)
        makers = {name: node for node in current.node for name in node.output if name}
        for node in current.node:
            for name in node.input:
                if name and name not in defined and name not in known:
                    raise _undefined(label, path, node, name, makers)
            for inner in _subgraphs(node):
                stack.append((inner, known | defined, f"{path}subgraph of '{_node_name(node)}' / "))
            for name in node.output:
                if name and name in defined:
                    raise CompileError(f"{label}: {path}node '{_node_name(node)}' ({node.op_type}) defines {name!r}, which "
                                       f"is defined already")
                defined.add(name)
        for value in current.output:
            if value.name not in defined and value.name not in known:
                raise CompileError(f"{label}: {path}output {value.name!r} is made by no node")


def _entry_names(graph: GraphProto, label: str) -> set[str]:
    defined: set[str] = set()
    for what, names in (("input", [v.name for v in graph.input]), ("initializer", [t.name for t in graph.initializer])):
        for name, count in Counter(names).items():
            if count > 1:
                raise CompileError(f"{label}: {what} {name!r} is defined {count} times")
        defined.update(names)
    return defined | {t.values.name for t in graph.sparse_initializer}


def _undefined(label: str, path: str, node: NodeProto, name: str, makers: Mapping[str, NodeProto]) -> CompileError:
    here = f"{label}: {path}node '{_node_name(node)}' ({node.op_type}) reads {name!r}"
    maker = makers.get(name)
    if maker is None:
        return CompileError(f"{here}, which no input, initializer or node defines")
    if maker is node:
        return CompileError(f"{here}, which is its own output: the graph has a cycle")
    return CompileError(f"{here} before node '{_node_name(maker)}' ({maker.op_type}) defines it: the nodes are out of "
                        f"order or form a cycle")


# --- calling an operator ---------------------------------------------------------------------------------------------


class Signature(Struct, frozen=True):
    """What an operator's function takes: inputs by name, whether more follow (perhaps absent ones), attributes by kind."""

    inputs: tuple[str, ...]
    required: int
    variadic: bool
    gaps: bool
    attributes: Mapping[str, str]
    required_attributes: frozenset[str]


@cache
def signature_of(operator: Operator) -> Signature:
    inputs: list[str] = []
    required, variadic, gaps = 0, False, False
    attributes: dict[str, str] = {}
    needed: set[str] = set()
    for parameter in list(inspect.signature(operator).parameters.values())[1:]:
        kind = str(parameter.annotation)
        if parameter.kind is parameter.VAR_POSITIONAL:
            variadic, gaps = True, "None" in kind
        elif parameter.kind is parameter.KEYWORD_ONLY:
            attributes[parameter.name] = kind
            if parameter.default is parameter.empty:
                needed.add(parameter.name)
        elif parameter.kind is not parameter.VAR_KEYWORD:
            inputs.append(parameter.name)
            required += parameter.default is parameter.empty and "None" not in kind
            attributes[parameter.name] = kind       # some opsets give an input as an attribute
    return Signature(tuple(inputs), required, variadic, gaps, attributes, frozenset(needed))


def _all(kinds: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, tuple) and all(isinstance(e, kinds) for e in v)


# operators that take the narrow formats, which are only stored
TAKES_STORED = frozenset(("Cast", "CastLike", "Concat", "DequantizeLinear", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
                          "Identity", "QuantizeLinear", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Transpose",
                          "Unsqueeze"))

# a part of an annotation -> what it admits as an attribute
KINDS: dict[str, Callable[[Any], bool]] = {
    "Sequence[int]": _all(int), "tuple[int, ...]": _all(int), "Sequence[float]": _all((int, float)),
    "Sequence[str]": _all(str), "Integers": lambda v: isinstance(v, int) or _all(int)(v),
    "Subgraph": lambda v: isinstance(v, Body), "Array": lambda v: isinstance(v, np.ndarray),
    "float": lambda v: isinstance(v, float), "str": lambda v: isinstance(v, str), "int": lambda v: isinstance(v, int),
}


def call_operator(c: Context, operator: Operator, inputs: Sequence[Node | None], attributes: Mapping[str, Any]) -> Any:
    """Calls the function with the node's inputs and attributes, all of which it must know."""
    signature = signature_of(operator)
    given = list(inputs)
    stored = next((x for x in inputs if x is not None and x.dtype.is_stored), None)
    if stored is not None and c.op_type not in TAKES_STORED:
        c.unsupported(f"values of {stored.dtype} are moved, cast, quantized and dequantized, not computed with",
                      hint="cast them first")
    while given and given[-1] is None:
        given.pop()
    if len(given) > len(signature.inputs) and not signature.variadic:
        c.fail(f"takes at most {len(signature.inputs)} inputs, found {len(given)}")
    for place, name in enumerate(signature.inputs[:signature.required]):
        if (place >= len(given) or given[place] is None) and name not in attributes:
            c.fail(f"the input '{name}' is missing")
    if not signature.gaps and any(x is None for x in given[len(signature.inputs):]):
        c.fail("an input in a list of inputs is missing")
    for name, value in attributes.items():
        _check_attribute(c, signature, name, value, len(given))
    missing = sorted(signature.required_attributes - set(attributes))
    if missing:
        c.fail(f"the attribute '{missing[0]}' is missing")
    return operator(c, *given, **attributes)


def _check_attribute(c: Context, signature: Signature, name: str, value: Any, given: int) -> None:
    if name not in signature.attributes:
        c.unsupported(f"the attribute '{name}' is not supported")
    if name in signature.inputs and signature.inputs.index(name) < given:
        c.fail(f"'{name}' is given as an attribute and as an input")
    annotation = signature.attributes[name]
    if not any(KINDS[part](value) for part in annotation.split(" | ") if part in KINDS):
        c.fail(f"the attribute '{name}' has the wrong kind: {str(value)[:60]} for {annotation}")
