"""What a model file says of itself, as ONNX Runtime tells it: inputs and outputs with names, shapes and types, and its metadata.

`ModelFile` reads the file with the front end's reader, and can be changed before it is imported: sizes given to inputs, arrays in
place of initializers, initializers made inputs. The parsed model is not kept, the source is.

Guarantees: a file that cannot be read raises ONNX Runtime's exception for that, `NoSuchFile` or `InvalidProtobuf` among them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from ..collector import collector_paused
from ..frontends.from_onnx import Importer
from ..frontends.onnx_dims import identifier
from ..frontends.onnx_files import read_model
from ..frontends.onnx_messages import GraphProto, ModelProto
from ..frontends.onnx_ops.table import DOMAINS, REFUSED
from ..ir.errors import CompileError
from ..ir.graph import Graph
from .errors import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile, NotImplemented, status
from .names import element_number, tensor_text
from .values import Array, as_plain

Size = int | str | None
NEWEST_VERSION = 2 ** 63 - 1  # what ONNX Runtime says of a model without a version
FIRST_OVERRIDABLE = 4         # the version of the format since which initializers need not be inputs


class NodeArg(Struct, frozen=True):
    """An input or output. Sizes are numbers, the model's names of symbolic ones, and None where it has no name."""

    name: str
    type: str
    shape: list[Size]


class ModelMetadata(Struct, frozen=True):
    """Who made the model, and what they noted."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


class Changes(Struct, frozen=True):
    """What differs from the file: symbolic sizes by name or denotation, initializers by name, sizes of inputs, inputs that are constant,
    and which initializers are inputs."""

    dims: Mapping[str, int] = field(default_factory=dict)
    denotations: Mapping[str, int] = field(default_factory=dict)
    initializers: Mapping[str, Array] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: Mapping[str, Array] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()

    @property
    def is_nothing(self) -> bool:
        return self == Changes()


class Description(Struct, frozen=True):
    """What a session tells of its model. `dim_names`: the model's names of sizes by those that the compiler uses."""

    inputs: tuple[NodeArg, ...]
    outputs: tuple[NodeArg, ...]
    overridable: tuple[NodeArg, ...]
    metadata: ModelMetadata
    dim_names: dict[str, str]


class ModelFile:
    """A model by its path or its bytes."""

    def __init__(self, source: str | bytes) -> None:
        self.source = source
        self.path = source if isinstance(source, str) else None

    def description(self, changes: Changes) -> Description:
        model, *_ = self._read()
        _change(model, {}, changes)
        graph = model.graph
        given = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        inputs = [value for value in graph.input if value.name not in given]
        defaults = [value for value in graph.input if value.name in given] if model.ir_version >= FIRST_OVERRIDABLE else []
        names = {dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim if dim.dim_param}
        return Description(tuple(map(node_arg, inputs)), tuple(map(node_arg, graph.output)), tuple(map(node_arg, defaults)),
                           _metadata(model), {identifier(name): name for name in names})

    @collector_paused()
    def graph(self, changes: Changes) -> Graph:
        """The model, changed, in the IR."""
        model, label, folder, payloads = self._read()
        kept = dict(payloads)
        _change(model, kept, changes)
        return Importer(model, label, folder, {}, kept).run(None)

    def unknown_operators(self) -> Exception | None:
        """The error of a model with operators that nobody here knows; None where all are known."""
        model, *_ = self._read()
        own = {(function.domain, function.name) for function in model.functions}
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        stack: list[Any] = [model.graph, *model.functions]
        while stack:
            for node in stack.pop().node:
                stack += [graph for a in node.attribute for graph in ([a.g] if a.HasField("g") else [*a.graphs])]
                if (node.domain, node.op_type) in own or node.op_type in DOMAINS.get(node.domain, {}):
                    continue
                if node.op_type in REFUSED or node.domain not in ("", "ai.onnx"):
                    reason = REFUSED.get(node.op_type, f"the operator {node.domain}::{node.op_type} is not supported")
                    return status(NotImplemented, f"Could not find an implementation for {node.op_type}({opsets.get(node.domain, 1)}) "
                                  f"node with name '{node.name}': {reason}")
                version = opsets.get(node.domain, 1)
                return status(InvalidGraph, f'This is an invalid model. In Node, ("{node.name}", {node.op_type}, "{node.domain}", -1) , '
                              f"Error No Op registered for {node.op_type} with domain_version of {version}")
        return None

    def _read(self) -> Any:
        where = "" if self.path is None else f"Load model from {self.path} failed:"
        if self.path is not None and not os.path.exists(self.path):
            raise status(NoSuchFile, f"{where}Load model {self.path} failed. File doesn't exist")
        if self.path is not None and self.path.endswith(".ort"):
            raise status(NotImplemented, f"{where}the ORT format is not supported; give the ONNX file that it was made from")
        try:
            return read_model(self.source)
        except CompileError as error:
            if "it has no graph" in error.message:
                raise status(InvalidArgument, f"{where}No graph was found in the protobuf.") from error
            raise status(InvalidProtobuf, f"{where}Protobuf parsing failed. {error}") from error


def node_arg(value: Any) -> NodeArg:
    """The entry of a value that the model declares."""
    tensor = value.type.tensor_type
    shape = [_size(dim) for dim in tensor.shape.dim] if value.type.WhichOneof("value") == "tensor_type" else []
    return NodeArg(value.name, type_text(value.type), shape)


def _size(dim: Any) -> Size:
    kind = dim.WhichOneof("value")
    if kind == "dim_value":
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) if kind == "dim_param" and dim.dim_param else None


def type_text(type: Any) -> str:
    """`tensor(float)`, `seq(tensor(int64))`."""
    match type.WhichOneof("value"):
        case "tensor_type":
            return tensor_text(type.tensor_type.elem_type)
        case "sparse_tensor_type":
            return f"sparse_{tensor_text(type.sparse_tensor_type.elem_type)}"
        case "sequence_type":
            return f"seq({type_text(type.sequence_type.elem_type)})"
        case "optional_type":
            return f"optional({type_text(type.optional_type.elem_type)})"
        case "map_type":
            key = tensor_text(type.map_type.key_type).removeprefix("tensor(").removesuffix(")")
            return f"map({key},{type_text(type.map_type.value_type)})"
    return ""


def _metadata(model: ModelProto) -> ModelMetadata:
    return ModelMetadata(model.producer_name, model.graph.name, model.domain, model.doc_string, model.graph.doc_string,
                         model.model_version if model.HasField("model_version") else NEWEST_VERSION,
                         {entry.key: entry.value for entry in model.metadata_props})


def _change(model: ModelProto, payloads: dict[int, memoryview], changes: Changes) -> None:
    graph = model.graph
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            bound = changes.dims.get(dim.dim_param, changes.denotations.get(dim.denotation))
            if bound is not None and dim.WhichOneof("value") != "dim_value":
                dim.dim_value = bound
        if value.name in changes.shapes:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            shape.SetInParent()  # a shape without axes is one
            for size in changes.shapes[value.name]:
                shape.dim.add(dim_value=size)
    _replace_initializers(graph, payloads, changes.initializers)
    for number in reversed(range(len(graph.initializer))):
        if graph.initializer[number].name in changes.overridden:
            del graph.initializer[number]
            moved = {place - (place > number): data for place, data in payloads.items() if place != number}
            payloads.clear()
            payloads.update(moved)
    _make_constant(graph, changes.values)


def _make_constant(graph: GraphProto, values: Mapping[str, Array]) -> None:
    """Inputs become initializers, behind all others: payloads keep their numbers."""
    for number in reversed(range(len(graph.input))):
        value = graph.input[number]
        if value.name in values:
            tensor = graph.initializer.add(name=value.name, data_type=value.type.tensor_type.elem_type)
            _fill(tensor, values[value.name])
            del graph.input[number]


def _fill(tensor: Any, array: Array) -> None:
    """Puts the elements into a tensor of that type which has none."""
    tensor.dims.extend(array.shape)
    tensor.raw_data = as_plain(array).tobytes()


def _replace_initializers(graph: GraphProto, payloads: dict[int, memoryview], arrays: Mapping[str, Array]) -> None:
    missing = arrays.keys() - {tensor.name for tensor in graph.initializer}
    if missing:
        raise status(Fail, f"the model has no initializer called {', '.join(sorted(missing))}")
    for number, tensor in enumerate(graph.initializer):
        if tensor.name not in arrays:
            continue
        array = as_plain(arrays[tensor.name])
        found, expected = (tensor_text(code) for code in (element_number(array.dtype), tensor.data_type))
        if found != expected or array.shape != tuple(tensor.dims):
            raise status(InvalidArgument, f"the array for initializer '{tensor.name}' is {found} of shape {list(array.shape)}, the model's "
                         f"{expected} of shape {list(tensor.dims)}")
        payloads.pop(number, None)
        name, code = tensor.name, tensor.data_type
        tensor.Clear()
        tensor.name, tensor.data_type = name, code
        _fill(tensor, array)
