"""Parts of an ONNX model as models of their own, for `tilewright verify --layers`.

A piece is some nodes of the file's outermost graph, in order, with the initializers that they read and inputs for every
other value, typed by the arrays that will be passed. Constants that lie in other files are brought in. Functions and opsets
are those of the file, so a piece means what its nodes mean there.

Assumes a file that an import accepts the names of (`check_names`). Guarantees: running the pieces one after another, each with
the values that those before it gave, is running the model; the file is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.errors import UnsupportedError
from .onnx_files import Source, check_names, node_name, read_model, reads
from .onnx_messages import ModelProto, ValueInfoProto
from .onnx_messages import NodeProto as Node
from .onnx_ops.tensors import DTYPES, EXTERNAL, checked_shape, element_dtype, stored_bytes

CODES = {dtype.numpy: code for code, dtype in DTYPES.items()}
STRING = 8


class ModelParts:
    """A file, and what its nodes read."""

    def __init__(self, source: Source) -> None:
        self.model, self.label, self.folder, self.payloads = read_model(source)
        graph = self.model.graph
        check_names(graph, self.label, frozenset())
        self.nodes: tuple[Node, ...] = tuple(graph.node)
        self.outputs = tuple(value.name for value in graph.output)
        self.initializers = {tensor.name: number for number, tensor in enumerate(graph.initializer)}
        self.last_use: dict[str, int] = {}
        for number, node in enumerate(self.nodes):
            self.last_use.update(dict.fromkeys(reads(node), number))
        self.last_use.update(dict.fromkeys(self.outputs, len(self.nodes)))

    def made_by(self, nodes: Sequence[Node]) -> list[str]:
        """The values that the nodes make and somebody reads."""
        return [name for node in nodes for name in node.output if name and name in self.last_use]

    def read_by(self, nodes: Sequence[Node], known: Collection[str]) -> list[str]:
        """The known values that the nodes read."""
        return [name for name in dict.fromkeys(name for node in nodes for name in reads(node)) if name in known]

    def in_pieces(self, most: int) -> Iterator[tuple[int, tuple[Node, ...]]]:
        """The nodes in order, at most so many at a time, each group with the number of its first."""
        for start in range(0, len(self.nodes), most):
            yield start, self.nodes[start:start + most]

    def piece(self, nodes: Sequence[Node], inputs: Mapping[str, Any], outputs: Mapping[str, Any],
              constants: Mapping[str, np.ndarray[Any, Any]] | None = None) -> ModelProto:
        """The nodes as a model. `inputs` and `outputs`: values that say the types, None where nobody knows; `constants`: values
        that become initializers instead of inputs."""
        piece = ModelProto()
        piece.ir_version = self.model.ir_version
        piece.opset_import.extend(self.model.opset_import)
        piece.functions.extend(self.model.functions)
        graph = piece.graph
        graph.name = f"{self.label}: {node_name(nodes[0])}"
        graph.node.extend(nodes)
        for name in self.read_by(nodes, self.initializers):
            self._add_initializer(graph, name)
        for name, array in (constants or {}).items():
            _add_constant(graph, name, array)
        graph.input.extend(typed(name, value) for name, value in inputs.items())
        graph.output.extend(typed(name, value) for name, value in outputs.items())
        return piece

    def _add_initializer(self, graph: Any, name: str) -> None:
        number = self.initializers[name]
        stored = self.model.graph.initializer[number]
        tensor = graph.initializer.add()
        tensor.CopyFrom(stored)
        if number in self.payloads:
            tensor.raw_data = bytes(self.payloads[number])
        elif stored.data_location == EXTERNAL:
            self._bring_in(tensor)

    def _bring_in(self, tensor: Any) -> None:
        """Data of another file as the tensor's own; the same checks as in an import."""
        what = f"tensor {tensor.name!r} of {self.label}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        needed = stored_bytes(element_dtype(tensor.data_type, what), math.prod(checked_shape(list(tensor.dims), what)))
        offset = entries.get("offset", "0")
        tensor.raw_data = self.folder.read(entries.get("location", ""), int(offset) if offset.isdigit() else -1, needed, what)
        del tensor.external_data[:]
        tensor.data_location = 0


def typed(name: str, value: Any) -> ValueInfoProto:
    """The type of a value: an array, or a list of arrays for a sequence; a bare name for None."""
    info = ValueInfoProto()
    info.name = name
    if isinstance(value, list):
        first = value[0] if value else np.zeros((), np.float32)
        info.type.sequence_type.elem_type.tensor_type.elem_type = element_code(name, first.dtype)
    elif value is not None:
        info.type.tensor_type.elem_type = element_code(name, value.dtype)
        info.type.tensor_type.shape.SetInParent()
        for size in value.shape:
            info.type.tensor_type.shape.dim.add().dim_value = size
    return info


def element_code(name: str, dtype: np.dtype[Any]) -> int:
    """ONNX's number of an array's dtype."""
    if dtype in CODES:
        return CODES[dtype]
    if dtype.kind in "OUS":
        return STRING
    raise UnsupportedError(f"the value {name!r} is an array of {dtype}, which ONNX has no number for here")


def _add_constant(graph: Any, name: str, array: np.ndarray[Any, Any]) -> None:
    tensor = graph.initializer.add()
    tensor.name, tensor.data_type = name, element_code(name, array.dtype)
    tensor.dims.extend(array.shape)
    tensor.raw_data = np.ascontiguousarray(array).tobytes()


__all__ = ["ModelParts", "Node", "node_name"]
