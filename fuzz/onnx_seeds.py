"""Valid ONNX models to begin with: small ones of every operator, and the real ones that are installed.

What it does: gathers the fuzzer's own seeds, the node cases of the onnx package (which it makes in memory) and its files, a node of
each operator of com.microsoft, and every model that an installed package brings. Of models that are large, pieces are cut: their first
nodes, with what these need.

Assumes that reading what is installed is wanted. Guarantees: the same packages give the same models in the same order.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from ..frontends.onnx_messages import ModelProto
from .onnx_contributed import contributed_models
from .onnx_edits import parsed

OWN = Path(__file__).parent / "seeds"
SMALL = 6 << 10       # bytes: what is read in a few milliseconds
PIECE = 48 << 10
CONSTANT = 8 << 10    # bytes of a constant; a larger one is an input of a piece
CUTS = (2, 5, 12, 30)


class Seeds(Struct, frozen=True):
    """Small models, and large ones as they are, which are damaged seldom."""

    small: tuple[bytes, ...]
    large: tuple[bytes, ...]


def gathered() -> Seeds:
    """What is installed here."""
    files = [path.read_bytes() for path in (*sorted(OWN.glob("*.onnx")), *_installed())]
    large = [data for data in files if len(data) > SMALL]
    small = [data for data in files if len(data) <= SMALL]
    small += [*_node_cases(), *contributed_models()]
    small += [piece for data in large for piece in _pieces(data)]
    return Seeds(tuple(dict.fromkeys(small)), tuple(dict.fromkeys(large)))


def _installed() -> Iterator[Path]:
    """The models that packages brought, wherever this Python looks for packages."""
    for folder in dict.fromkeys(Path(entry) for entry in sys.path if entry.endswith("site-packages")):
        yield from sorted(folder.rglob("*.onnx"))


def _node_cases() -> Iterator[bytes]:
    """The cases of the operators; also with their inputs of whole numbers as constants, as exporters write shapes and axes."""
    try:
        node = importlib.import_module("onnx.backend.test.case.node")
    except ImportError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = node.collect_testcases(None)
    for case in cases:
        plain: bytes = case.model.SerializeToString()
        if len(plain) <= SMALL:
            yield plain
            bound = _with_constants(case.model, case.data_sets[0][0] if case.data_sets else ())
            if bound is not None:
                yield bound


def _with_constants(model: Any, values: Any) -> bytes | None:
    made = ModelProto()
    made.CopyFrom(model)
    found = False
    for declared, value in zip(made.graph.input, values):
        if isinstance(value, np.ndarray) and value.dtype in (np.int32, np.int64) and value.size <= 32:
            tensor = made.graph.initializer.add(name=declared.name, data_type=7 if value.dtype == np.int64 else 6, dims=value.shape)
            (tensor.int64_data if tensor.data_type == 7 else tensor.int32_data).extend(value.reshape(-1).tolist())
            found = True
    whole: bytes = made.SerializeToString()
    return whole if found else None


def _pieces(data: bytes) -> Iterator[bytes]:
    """The first nodes of a model, as models."""
    model = parsed(data)
    if model is None:
        return
    for count in CUTS:
        if count <= len(model.graph.node):
            piece = _beginning(model, count)
            if len(piece) <= PIECE:
                yield piece


def _beginning(model: Any, count: int) -> bytes:
    made = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = made.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node[:count])
    reads = {name for node in graph.node for name in node.input}
    graph.input.extend(value for value in model.graph.input if value.name in reads)
    known = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in reads:
            continue
        if tensor.ByteSize() <= CONSTANT:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            value = graph.input.add(name=tensor.name)
            value.type.tensor_type.elem_type = tensor.data_type
            for size in tensor.dims:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    for name in graph.node[-1].output:
        graph.output.add(name=name)
    whole: bytes = made.SerializeToString()
    return whole
