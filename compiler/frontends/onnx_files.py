"""An ONNX file as its protobuf message: parsing, the checks that hold for every model, and questions about nodes and names.

What it does: reads the bytes (`read_model`), sees to it that every name is text and every value is defined once before it is
read, and answers which nodes are needed, what they read, and which sizes the model declares.

Assumes nothing of the bytes. Guarantees: what is no model ends in a CompileError that says what, where and what was expected.
Subgraphs are walked without recursion, to a depth that is bounded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError

from ..ir.errors import CompileError
from .onnx_messages import FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto, newest_opset
from .onnx_ops.payloads import without_payloads
from .onnx_ops.table import REFUSED
from .onnx_ops.tensors import Folder

Source: TypeAlias = str | os.PathLike[str] | bytes | ModelProto
DEEPEST = 64        # functions and subgraphs inside one another
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


# --- names and nodes --------------------------------------------------------------------------------------------------


def domain_of(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def function_key(domain: str, name: str, overload: str) -> str:
    return f"{domain_of(domain)}::{name}" + (f":{overload}" if overload else "")


def node_name(node: NodeProto) -> str:
    """The node's name or, where it has none, that of its first output."""
    return node.name or next((name for name in node.output if name), "unnamed")


def unknown_line(op: str, names: Sequence[str]) -> str:
    """`StringSplit x2: node_1, node_7 (strings are not supported)`."""
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{op} x{len(names)}: {shown}" + (f" ({REFUSED[op]})" if op in REFUSED else "")


def decode_text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise CompileError(f"attribute {what!r} is not text in UTF-8: {raw[:40]!r}") from None


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: NodeProto) -> Iterator[str]:
    """Every name the node reads, those that its subgraphs take from outside included."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield from (name for name in current.input if name)
        for graph in subgraphs(current):
            stack.extend(graph.node)
            yield from (value.name for value in graph.output)


def opsets_of(source: ModelProto | FunctionProto, label: str) -> dict[str, int]:
    """Versions by domain; that of the standard domain must be one that is known."""
    opsets = {domain_of(entry.domain): entry.version for entry in source.opset_import}
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
            wanted.update(reads(node))
    return kept[::-1]


# Operators whose result has the shape of their first input, whatever the data, and those that broadcast their inputs.
KEEP_SHAPE = frozenset(("Abs", "Cast", "CastLike", "Ceil", "Cos", "Exp", "Floor", "Identity", "Log", "Neg", "Not", "Reciprocal", "Relu",
                        "Round", "Sigmoid", "Sin", "Softmax", "Sqrt", "Tanh"))
BROADCAST = frozenset(("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Where"))


def declared_values(graph: GraphProto) -> dict[str, ValueInfoProto]:
    """What the graph declares of its values, by name; of those that must have the same shape, that shape alone."""
    found = {value.name: value for value in (*graph.value_info, *graph.output)}
    alike = _alike(graph)
    shapes: dict[str, ValueInfoProto] = {}
    for name, value in found.items():
        if name in alike and value.type.tensor_type.HasField("shape") and alike[name] not in shapes:
            shapes[alike[name]] = ValueInfoProto(type=TypeProto(tensor_type=TypeProto.Tensor(shape=value.type.tensor_type.shape)))
    return {**{name: shapes[first] for name, first in alike.items() if first in shapes}, **found}


def _alike(graph: GraphProto) -> dict[str, str]:
    """For each value that a node makes, the first one that must have the same shape: operators that keep it, and those that
    broadcast what is alike, scalars aside, stand between them."""
    scalars = {t.name for t in graph.initializer if not t.dims}
    scalars |= {v.name for v in graph.input if v.type.tensor_type.HasField("shape") and not v.type.tensor_type.shape.dim}
    first: dict[str, str] = {}
    for node in graph.node:
        first.update((name, name) for name in node.output)
        if len(node.output) != 1 or domain_of(node.domain):
            continue
        name = node.output[0]
        shaping = node.input[:1] if node.op_type in KEEP_SHAPE else node.input if node.op_type in BROADCAST else ()
        if node.op_type == "Constant" and _is_scalar_constant(node) or shaping and all(x in scalars for x in shaping):
            scalars.add(name)
        else:
            others = {first.get(x, x) for x in shaping if x not in scalars}
            first[name] = others.pop() if len(others) == 1 else name
    return first


def _is_scalar_constant(node: NodeProto) -> bool:
    return any(a.name in ("value_float", "value_int") or (a.name == "value" and not a.t.dims) for a in node.attribute)


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
            stack.extend(subgraphs(node))
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
            for inner in subgraphs(node):
                stack.append((inner, known | defined, f"{path}subgraph of '{node_name(node)}' / "))
            for name in node.output:
                if name and name in defined:
                    raise CompileError(f"{label}: {path}node '{node_name(node)}' ({node.op_type}) defines {name!r}, which "
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
    here = f"{label}: {path}node '{node_name(node)}' ({node.op_type}) reads {name!r}"
    maker = makers.get(name)
    if maker is None:
        return CompileError(f"{here}, which no input, initializer or node defines")
    if maker is node:
        return CompileError(f"{here}, which is its own output: the graph has a cycle")
    return CompileError(f"{here} before node '{node_name(maker)}' ({maker.op_type}) defines it: the nodes are out of "
                        f"order or form a cycle")
