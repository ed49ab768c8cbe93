"""Changing a model file: its nodes found by name, its constants read, replaced and added, and the whole written again.

The outermost graph is edited; functions and the graphs inside nodes stay as they are, and what they read is kept. Large arrays are
not parsed: they stay where they lie until they are written, into the file or, where that would outgrow what protobuf can hold, into
one file of data beside it.

Assumes a file that an import accepts the names of (`check_names`). Guarantees: new values have names of their own; nodes are in an
order in which each value is made before it is read; what nobody reads any more of the constants that were replaced is not
written; a file is written whole or not at all, under its name from the first moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from ..ir.errors import CompileError, UnsupportedError
from ..ir.graph import Array, Constant
from .onnx_files import Source, check_names, node_name, opsets_of, read_model, reads
from .onnx_messages import AttributeProto, ModelProto
from .onnx_messages import NodeProto as Node
from .onnx_ops.tensors import DTYPES, ELEMENT_TYPES, EXTERNAL, PACKED_BITS, checked_shape, decode_tensor, element_dtype, stored_bytes

CODES = {dtype.numpy: code for code, dtype in DTYPES.items()}
IR_VERSIONS = {13: 7, 21: 10, 25: 13}  # the oldest version of the format that knows an opset, of the opsets that are asked for
UNLISTED = 4  # the version of the format from which initializers need not be inputs
EMBEDDED = 1_900_000_000  # bytes of arrays that a file of protobuf holds, with room for the rest below its 2 GiB
ALIGNMENT = 4096  # of arrays in a file of data, so that it can be mapped
COMPUTED = ("Cast", "ConstantOfShape")  # of constants, what models have weights of
MOVES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


class Origin(Struct, frozen=True, eq=False):
    """A constant that a node reads: the name of the initializer, or of what a Constant node makes, or one of COMPUTED of a constant;
    and the orders of axes that Transpose nodes between give it, in the order in which they run; None where nodes between change its
    shape."""

    name: str
    perms: tuple[tuple[int, ...], ...] | None


class _Data(Struct, frozen=True, eq=False):
    """The bytes of an initializer that are not in the model: in memory already, or in another file."""

    size: int
    held: memoryview | None
    location: str = ""
    offset: int = 0


class ModelEditor:
    """A model file in memory, to be changed and written."""

    def __init__(self, source: Source) -> None:
        self.model, self.label, self.folder, payloads = read_model(source)
        if isinstance(source, ModelProto):
            self.model = ModelProto()
            self.model.CopyFrom(source)
        check_names(self.model.graph, self.label, frozenset())
        self.data: dict[str, _Data] = {self.graph.initializer[number].name: _Data(len(held), held) for number, held in payloads.items()}
        for tensor in self.graph.initializer:
            if tensor.data_location == EXTERNAL:
                self._take_out(tensor)
        self._index()

    def _index(self) -> None:
        graph = self.graph
        self.nodes: list[Node] = list(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.names = {*self.initializers, *self.makers, *(value.name for value in (*graph.input, *graph.value_info))}
        self.results = {value.name for value in graph.output}
        self.readers: dict[str, list[int]] = {}
        for number, node in enumerate(self.nodes):
            for name in dict.fromkeys(reads(node)):
                self.readers.setdefault(name, []).append(number)
        self.names.update(self.readers)
        self.names.update(node.name for node in self.nodes)
        self.before: dict[int, list[Node]] = {}
        self.after: dict[int, list[Node]] = {}
        self.replaced: set[str] = set()

    @property
    def graph(self) -> Any:
        return self.model.graph

    def _take_out(self, tensor: Any) -> None:
        """Notes where external data lies; the tensor is one of this file from now on."""
        what = f"tensor {tensor.name!r} of {self.label}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        offset = entries.get("offset", "0")
        if not offset.isascii() or not offset.isdigit():
            raise CompileError(f"{what}: the external offset {offset[:40]!r} is no number of bytes that a file has")
        needed = stored_bytes(element_dtype(tensor.data_type, what), math.prod(checked_shape(list(tensor.dims), what)))
        self.data[tensor.name] = _Data(needed, None, entries.get("location", ""), int(offset))
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = b""

    def _bytes_of(self, name: str) -> bytes | memoryview:
        data = self.data[name]
        if data.held is not None:
            return data.held
        return self.folder.read(data.location, data.offset, data.size, f"tensor {name!r} of {self.label}")

    # --- versions

    def require_opset(self, version: int) -> None:
        """Brings the nodes to that version of the standard operators, where the file is older. Before anything is edited."""
        found = opsets_of(self.model, self.label).get("", 1)
        if found < version:
            self.model = self._converted(found, version)
            self._index()
        self.model.ir_version = max(self.model.ir_version, IR_VERSIONS[version])

    def _converted(self, found: int, version: int) -> ModelProto:
        from onnx import version_converter

        # files of the format before this one list initializers among the inputs, or should: the converter takes their word for it
        self.model.ir_version = max(self.model.ir_version, UNLISTED)
        try:
            model: ModelProto = version_converter.convert_version(self.model, version)
        except Exception as error:  # whatever the converter raises: it has no family of errors
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise UnsupportedError(f"{self.label}: the model is of opset {found}, {version} is needed, and converting it failed: "
                                   f"{reason[0]}", hint=f"export the model for opset {version}") from None
        return model

    # --- finding

    def find_nodes(self, name: str, op: str) -> list[int]:
        """The numbers of the nodes of that name and operator."""
        return [number for number, node in enumerate(self.nodes) if node.op_type == op and node_name(node) == name]

    def origin(self, name: str) -> Origin | None:
        """The constant behind a value, through nodes that only move its elements; None where something else makes it."""
        perms: list[tuple[int, ...]] | None = []
        while True:
            if name in self.initializers:
                return Origin(name, None if perms is None else tuple(reversed(perms)))
            maker = self.makers.get(name)
            if maker is None or maker.domain not in ("", "ai.onnx"):
                return None
            if maker.op_type == "Constant":
                return Origin(name, None if perms is None else tuple(reversed(perms))) if _constant_tensor(maker) is not None else None
            if maker.op_type in COMPUTED:
                inner = self.origin(maker.input[0])
                known = inner is not None and inner.perms is not None and not (maker.op_type == "Cast" and _cast_dtype(maker) is None)
                return Origin(name, None if perms is None else tuple(reversed(perms))) if known else None
            if maker.op_type not in MOVES:
                return None
            if maker.op_type == "Transpose" and perms is not None:
                perms.append(_permutation(maker))
            elif maker.op_type != "Identity":
                perms = None
            name = maker.input[0]

    def array(self, origin: Origin) -> Array:
        """The elements of a constant."""
        maker = self._computing(origin)
        if maker is not None:
            return self._computed(maker)
        tensor = self._tensor(origin)
        payload = memoryview(self._bytes_of(tensor.name)) if origin.name in self.initializers and tensor.name in self.data else None
        return decode_tensor(tensor, self.folder, self.label, payload)

    def shape(self, origin: Origin) -> tuple[int, ...]:
        return tuple(self._tensor(origin).dims) if self._computing(origin) is None else self.array(origin).shape

    def digest(self, origin: Origin) -> str:
        """What names the constant in a graph that was imported from the file."""
        if self._computing(origin) is not None:
            return Constant(self.array(origin)).digest
        dtype = element_dtype(self._tensor(origin).data_type, f"tensor {origin.name!r}")
        return Constant(self.array(origin), dtype).digest

    def _computing(self, origin: Origin) -> Node | None:
        """The node that computes the constant of others, where one does."""
        maker = None if origin.name in self.initializers else self.makers[origin.name]
        return maker if maker is not None and maker.op_type in COMPUTED else None

    def _computed(self, maker: Node) -> Array:
        inner = self.origin(maker.input[0])
        assert inner is not None and inner.perms is not None
        operand = moved(self.array(inner), inner.perms)
        if maker.op_type == "Cast":
            return operand.astype(_cast_dtype(maker))
        tensor = _constant_tensor(maker)
        element = np.zeros(1, np.float32) if tensor is None else decode_tensor(tensor, self.folder, self.label, None)
        return np.full(operand.tolist(), element.reshape(-1)[0])

    def _tensor(self, origin: Origin) -> Any:
        if origin.name in self.initializers:
            return self.initializers[origin.name]
        return _constant_tensor(self.makers[origin.name])

    def only_reader(self, name: str) -> int | None:
        """The number of the one node that reads a value which is no result of the graph; None where that is not so."""
        return self.readers[name][0] if len(self.readers.get(name, ())) == 1 and name not in self.results else None

    # --- changing

    def fresh(self, wanted: str) -> str:
        """A name that nothing has: the wanted one, or with a number behind it."""
        name, number = wanted, 1
        while name in self.names:
            number += 1
            name = f"{wanted}_{number}"
        self.names.add(name)
        return name

    def add_constant(self, wanted: str, array: Array, dtype: str = "") -> str:
        """A new initializer; its name. `dtype`: the name of a dtype that several NumPy dtypes could stand for (int4, int2)."""
        name = self.fresh(wanted)
        tensor = self.graph.initializer.add()
        tensor.name = name
        tensor.data_type = _code_named(dtype) if dtype else CODES[array.dtype]
        tensor.dims.extend(array.shape)
        tensor.raw_data = packed(array, PACKED_BITS.get(dtype, 8)) if dtype else np.ascontiguousarray(array).tobytes()
        self.initializers[name] = tensor
        return name

    def add_node(self, place: int, op: str, inputs: Sequence[str], wanted: str, *, after: bool = False, makes: str = "",
                 **attributes: int) -> str:
        """A new node right before (or after) the one of that number; the name of what it makes, which may be said (`makes`)."""
        node = Node()
        node.op_type, fresh = op, self.fresh(wanted)
        name = makes or fresh
        node.name = fresh
        node.input.extend(inputs)
        node.output.append(name)
        for key, value in attributes.items():
            attribute = node.attribute.add()
            attribute.name, attribute.type, attribute.i = key, AttributeProto.INT, value
        (self.after if after else self.before).setdefault(place, []).append(node)
        self.makers[name] = node
        return name

    def rename_output(self, place: int, wanted: str) -> tuple[str, str]:
        """Gives the first output of a node another name, so that a node behind it can make the old one: (new, old)."""
        node = self.nodes[place]
        old, new = node.output[0], self.fresh(wanted)
        node.output[0] = new
        self.makers[new] = node
        return new, old

    def read_instead(self, place: int, slot: int, name: str) -> None:
        """The node's input of that number is another value from now on; an input that it did not have is added."""
        node = self.nodes[place]
        while len(node.input) <= slot:
            node.input.append("")
        self.replaced.add(node.input[slot])
        node.input[slot] = name

    # --- writing

    def finish(self) -> None:
        """Puts the new nodes at their places, and drops replaced constants that nothing reads any more."""
        nodes = [node for number, own in enumerate(self.nodes)
                 for node in (*self.before.get(number, ()), own, *self.after.get(number, ()))]
        dropped, waiting = set(), [name for name in self.replaced if name]
        used = _counted(name for node in nodes for name in reads(node))
        while waiting:
            name = waiting.pop()
            maker = self.makers.get(name)
            if used.get(name) or name in self.results or name in dropped:
                continue
            if name not in self.initializers if maker is None else maker.op_type not in (*MOVES, *COMPUTED, "Constant"):
                continue
            dropped.add(name)
            for operand in () if maker is None else maker.input:
                used[operand] = used.get(operand, 1) - 1
                waiting.append(operand)
        nodes = [node for node in nodes if not (node.output and node.output[0] in dropped)]
        _keep(self.graph.initializer, lambda tensor: tensor.name not in dropped)
        _keep(self.graph.input, lambda value: value.name not in dropped)
        _keep(self.graph.value_info, lambda value: value.name not in dropped)
        before = len(self.graph.node)
        self.graph.node.extend(nodes)
        del self.graph.node[:before]
        self._index()

    def bytes_of_arrays(self) -> int:
        return sum(self.data[t.name].size if t.name in self.data else len(t.raw_data) for t in self.graph.initializer)

    def serialized(self) -> bytes:
        """The model as bytes, its arrays in it."""
        for tensor in self.graph.initializer:
            if tensor.name in self.data:
                tensor.raw_data = bytes(self._bytes_of(tensor.name))
                del self.data[tensor.name]
        return bytes(self.model.SerializeToString())

    def write(self, path: Path, replacing: Any) -> tuple[Path, ...]:
        """The files written: the model, and beside it the data where a file of protobuf cannot hold it. `replacing`: a context that
        gives a temporary name for a path and puts the file in its place at the end."""
        if self.bytes_of_arrays() <= EMBEDDED:
            with replacing(path) as temporary:
                temporary.write_bytes(self.serialized())
            return (path,)
        beside = path.with_name(path.name + ".data")
        with ExitStack() as stack:
            model_file, data_file = stack.enter_context(replacing(path)), stack.enter_context(replacing(beside))
            with data_file.open("wb") as file:
                self._write_data(file, beside.name)
            model_file.write_bytes(self.model.SerializeToString())
        return (path, beside)

    def _write_data(self, file: Any, location: str) -> None:
        """All arrays of some size into one file, each at a place that can be mapped."""
        for tensor in self.graph.initializer:
            content = self._bytes_of(tensor.name) if tensor.name in self.data else tensor.raw_data
            if len(content) < ALIGNMENT:
                tensor.raw_data = bytes(content)
                continue
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            entries = {"location": location, "offset": str(file.tell()), "length": str(len(content))}
            file.write(content)
            tensor.ClearField("raw_data")
            tensor.data_location = EXTERNAL
            for key, value in entries.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value


def _keep(field: Any, wanted: Any) -> None:
    """Takes entries out of a repeated field."""
    for number in reversed(range(len(field))):
        if not wanted(field[number]):
            del field[number]


def _counted(names: Iterator[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return found


def _constant_tensor(node: Node) -> Any:
    """The tensor of a Constant node; None where it holds something else."""
    return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)


def _cast_dtype(node: Node) -> np.dtype | None:
    """What a Cast node makes of floats; None where it makes something else."""
    code = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
    found = DTYPES.get(code)
    return found.numpy if found is not None and found.is_float else None


def _permutation(node: Node) -> tuple[int, ...]:
    """What a Transpose does; empty where it turns the axes around."""
    return tuple(next((attribute.ints for attribute in node.attribute if attribute.name == "perm"), ()))


def moved(array: Array, perms: Iterable[tuple[int, ...]]) -> Array:
    """The array as Transpose nodes leave it."""
    for perm in perms:
        array = array.transpose(perm or None)
    return np.ascontiguousarray(array)


def _code_named(dtype: str) -> int:
    return next(code for code, (_, found, _) in ELEMENT_TYPES.items() if found is not None and found.name == dtype)


def packed(array: Array, bits: int) -> bytes:
    """Integers of fewer than 8 bits as a file holds them, the first one lowest in its byte."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if bits == 8:
        return flat.tobytes()
    count = 8 // bits
    flat = np.concatenate([flat, np.zeros(-flat.size % count, np.uint8)]).reshape(-1, count) & np.uint8((1 << bits) - 1)
    joined: Array = np.bitwise_or.reduce(flat << np.arange(0, 8, bits, dtype=np.uint8), axis=1).astype(np.uint8)
    return joined.tobytes()


__all__ = ["ModelEditor", "Origin", "moved", "packed"]
