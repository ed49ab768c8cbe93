"""Graphs as canonical text, and text files with their constants beside them.

`format_graph` spells everything that gives a graph its meaning, so that `parse(format_graph(g))` has the fingerprint of
`g`, and printing it again gives the same text. The grammar stands in `docs/ir.md`. Params are named by their labels, all
other nodes by number in the order of first need. Constants of up to 16 elements are spelled exactly (every float reads
back to the same bits); larger ones are named by the first 16 digits of their digest and live in a sidecar file.

Assumes nothing of the graph's validity beyond being free of cycles: what `verify` rejects still prints.
Guarantees: files appear whole or not at all (written beside and renamed), and one that cannot be written is named.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np

from .dims import Dim, Symbol, symbols_of
from .errors import UNKNOWN, ArtifactError, CompileError, cannot_write
from .graph import Constant, Graph, Node, Op, attribute_defaults, attribute_names, encode
from .types import DTYPES, DType, TensorType, TupleType, Type

SPELLED_ELEMENTS = 16
DIGEST_DIGITS = 16
WORD = re.compile(r"[^\W\d]\w*")
PLAIN_NAME = re.compile(r"[^\W\d][\w.]*")
FLOAT_TEXT = re.compile(r"-?(\d+\.\d+(e[+-]?\d+)?|\d+e[+-]?\d+)")
KEYWORDS = frozenset({"true", "false", "none", "inf", "nan", *DTYPES})


def format_graph(graph: Graph, locations: bool = False) -> str:
    """The graph's text, ending with a newline; `locations` adds where each node came from as comments."""
    symbols = graph_symbols(graph)
    writer = _Writer(frozenset(symbols), locations)
    declared = ", ".join(symbols[name].declaration() for name in sorted(symbols))
    return writer.graph(graph, "", f"[{declared}]" if declared else "") + "\n"


Graph.text = format_graph


def format_node(node: Node) -> str:
    """One node as the line that a graph would show, with `%0`, `%1`, ... for its operands: for messages."""
    writer = _Writer(frozenset(), False)
    operands = ", ".join(_operand_name(i, x) for i, x in enumerate(node.inputs))
    return f"{node.op.spelling}({operands}){writer.attributes(node.op, '')}: {node.type}"


def _operand_name(position: int, operand: Node) -> str:
    label = _label(operand)
    return f"%{position}" if label is None else f"%{quote(label)}"


def _label(node: Node) -> str | None:
    """What a param is called; None for other nodes. (Ops are a layer above: text knows two of them by name.)"""
    return getattr(node.op, "label", None) if node.op.name == "param" else None


def _literal(node: Node) -> Constant | None:
    return getattr(node.op, "value", None) if node.op.name == "const" else None


def graph_symbols(graph: Graph) -> dict[str, Symbol]:
    """Every symbol that occurs in the graph or in a body within it, by name."""
    found: dict[str, Symbol] = {}
    for value in attribute_values(graph):
        if isinstance(value, Dim):
            found.update((s.name, s) for s in symbols_of(value))
    return found


def constants_of(graph: Graph) -> dict[str, Constant]:
    """The constants in the graph and its bodies that text names by digest, by digest."""
    return {v.digest: v for v in attribute_values(graph)
            if isinstance(v, Constant) and v.array.size > SPELLED_ELEMENTS}


def attribute_values(*roots: Graph | Type | Op, bodies: bool = True) -> Iterator[Any]:
    """Every elementary value in the types and attributes of these; `bodies`: of the graphs within them too, which else are elementary."""
    stack: list[Any] = list(roots)
    seen: set[int] = set()
    while stack:
        value = stack.pop()
        match value:
            case Graph() if bodies:
                if id(value) not in seen:
                    seen.add(id(value))
                    for node in value.nodes():
                        stack.append(node.type)
                        stack.append(node.op)
            case TensorType():
                stack.append(value.shape)
            case TupleType():
                stack.append(value.items)
            case tuple():
                stack.extend(value)
            case Op():
                stack.extend(getattr(value, name) for name in attribute_names(type(value)))
            case _:
                yield value


def quote(name: str) -> str:
    """A name as it follows `%` or `@`: bare where it is a plain word with dots, quoted elsewhere."""
    return name if PLAIN_NAME.fullmatch(name) else json.dumps(name)


class _Writer:
    """Recursion here follows the nesting of bodies and tuples, never the number of nodes."""

    def __init__(self, symbols: frozenset[str], locations: bool) -> None:
        self.symbols = symbols
        self.locations = locations

    def graph(self, graph: Graph, indent: str, symbols: str = "") -> str:
        names = _node_names(graph)
        params = ", ".join(f"%{names[id(p)]}: {p.type}" for p in graph.params)
        results = ", ".join(n if WORD.fullmatch(n) else json.dumps(n) for n in graph.result_names)
        lines = [f"graph @{quote(graph.name)}{symbols}({params}) -> ({results}) {{"]
        inner = indent + "  "
        own = {id(p) for p in graph.params}
        for node in graph.nodes():
            if id(node) not in own:
                lines.append(inner + self.node(node, names, inner))
        returned = ", ".join(f"%{names[id(r)]}" for r in graph.results)
        lines.append(f"{inner}return {returned}".rstrip())
        lines.append(indent + "}")
        return "\n".join(lines)

    def node(self, node: Node, names: Mapping[int, str], indent: str) -> str:
        head = f"%{names[id(node)]}: {node.type} = {node.op.spelling}"
        literal = _literal(node)
        if literal is not None:
            text = f"{head} {format_elements(literal)}"
        else:
            operands = ", ".join(f"%{names[id(i)]}" for i in node.inputs)
            text = f"{head} {operands}".rstrip() + self.attributes(node.op, indent)
        if self.locations and node.loc != UNKNOWN:
            text += "  # " + "".join(c if c.isprintable() else "?" for c in str(node.loc))
        return text

    def attributes(self, op: Op, indent: str) -> str:
        """` {name=value, ...}`, without those that have their default value; empty where none is left."""
        parts = []
        defaults = attribute_defaults(type(op))
        for name in attribute_names(type(op)):
            value = getattr(op, name)
            if isinstance(value, str) and value == op.spelling != op.name:  # an op that is spelled by an attribute
                continue
            if name in defaults and encode(defaults[name]) == encode(value):
                continue
            parts.append(f"{name}={self.value(value, indent)}")
        return f" {{{', '.join(parts)}}}" if parts else ""

    def value(self, value: Any, indent: str) -> str:
        match value:
            case None | bool():
                return self.keyword({None: "none", True: "true", False: "false"}[value])
            case int():
                return int.__repr__(value)
            case float():
                return format_float(value)
            case str():
                bare = WORD.fullmatch(value) and value not in KEYWORDS and value not in self.symbols
                return value if bare else json.dumps(value)
            case DType():
                return self.keyword(value.name)
            case Dim():
                return str(value)
            case tuple():
                inner = ", ".join(self.value(v, indent) for v in value)
                return f"({inner},)" if len(value) == 1 else f"({inner})"
            case Graph():
                return self.graph(value, indent)
            case Constant():
                kind = TensorType(value.dtype, value.array.shape)
                return f"const {kind} {format_elements(value)}"
            case TensorType():
                return str(value)
            case TupleType():
                return f"types{value}"
            case Op():
                return f"op {value.spelling}{self.attributes(value, indent)}"
        raise CompileError(f"an attribute of type {type(value).__name__} has no text: {value!r}")

    def keyword(self, word: str) -> str:
        """A bare word means a symbol first; a keyword of the same name is set off."""
        return f"\\{word}" if word in self.symbols else word


def _node_names(graph: Graph) -> dict[int, str]:
    names: dict[int, str] = {}
    taken: set[str] = set()
    for position, node in enumerate(graph.params):
        label = _label(node)
        label = f"param{position}" if label is None else label
        name = quote(label)
        while name in taken:  # only in graphs that `verify` rejects; they must still be readable
            label += "_"
            name = quote(label)
        taken.add(name)
        names[id(node)] = name
    for node in graph.nodes():
        if id(node) not in names:
            names[id(node)] = str(len(names) - len(graph.params))
    return names


def format_float(value: float) -> str:
    """A double that reads back to the same bits."""
    if math.isnan(value):
        bits = int.from_bytes(struct.pack(">d", value), "big")
        return "nan" if bits == 0x7FF8000000000000 else f"nan({bits:#x})"
    return float.__repr__(value)


def format_elements(constant: Constant) -> str:
    """`1.5`, `[1, 2]` in C order, or `#digest`."""
    array = constant.array
    if array.size > SPELLED_ELEMENTS:
        return f"#{constant.digest[:DIGEST_DIGITS]}"
    texts = [_format_element(x, constant.dtype) for x in array.reshape(-1)]
    return texts[0] if array.ndim == 0 else f"[{', '.join(texts)}]"


def _format_element(element: Any, dtype: DType) -> str:
    if dtype.is_bool:
        return "true" if element else "false"
    if dtype.is_stored:
        return str(np.asarray(element, dtype.numpy).tobytes()[0])  # nothing but its byte is known
    if not dtype.is_float:
        return str(int(element))
    value = float(element)
    if math.isnan(value):
        bits = int.from_bytes(np.asarray(element).astype(dtype.numpy).tobytes(), "little")
        return "nan" if bits == quiet_nan_bits(dtype) else f"nan({bits:#x})"
    for text in (str(np.asarray(element)[()]), f"{value:.9g}"):
        if FLOAT_TEXT.fullmatch(text) and _same_bits(text, element, dtype):
            return text
    return float.__repr__(value)


def _same_bits(text: str, element: Any, dtype: DType) -> bool:
    read = np.asarray(float(text)).astype(dtype.numpy)
    return read.tobytes() == np.asarray(element, dtype=dtype.numpy).tobytes()


def quiet_nan_bits(dtype: DType) -> int:
    """The bits that text `nan` stands for: positive, quiet, no payload."""
    return {"f16": 0x7E00, "bf16": 0x7FC0, "f32": 0x7FC00000, "f64": 0x7FF8000000000000}[dtype.name]


# --- files -----------------------------------------------------------------------------------------------------------


def sidecar_path(path: str | Path) -> Path:
    """Where the constants of the text at `path` are."""
    return Path(f"{path}.npz")


def save_text(graph: Graph, path: str | PathLike[str], locations: bool = False) -> None:
    """Writes the text to `path` and, where it names constants by digest, those to `path`.npz; `load_text` reads both."""
    path = Path(path)
    constants = constants_of(graph)
    if constants:
        save_constants(sidecar_path(path), constants.values())
    write_whole(path, lambda file: file.write(format_graph(graph, locations).encode()))


def save_constants(path: str | Path, constants: Iterable[Constant]) -> None:
    """One .npz with an entry `digest.dtype` a constant; dtypes that NumPy's format lacks are stored as unsigned bits."""
    arrays = {}
    for constant in constants:
        bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[constant.dtype.bytes]
        arrays[f"{constant.digest}.{constant.dtype}"] = constant.array.view(bits)
    write_whole(Path(path), lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def write_whole(path: Path, write: Any) -> None:
    """Calls `write(file)` on a temporary file beside `path`, then renames it; ArtifactError where that fails, and nothing is
    left behind."""
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path}: is {'a folder' if path.is_dir() else 'a device or a pipe'}, expected the path of a file to write")
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        with os.fdopen(handle, "wb") as file:
            _write_to(file, write)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _write_to(file: IO[bytes], write: Any) -> None:
    write(file)
    file.flush()
    os.fsync(file.fileno())
