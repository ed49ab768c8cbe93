"""The protobuf messages of an ONNX file, without the rest of the onnx package.

Importing the package brings in its operators' schemas, checkers and helpers, none of which reads a file here, and takes five times
as long as the messages, which are a generated file of their own. So that file is run by itself.

Assumes what protobuf guarantees: a message has one class however often its file is run, so these classes are those of the package,
whichever is imported first. Guarantees: ModuleNotFoundError, with the name of what is missing, as for an import.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

GENERATED = "onnx_ml_pb2"
CERTAIN_OPSET = 25  # known to the oldest version of the package that the extra [onnx] allows


def _messages() -> ModuleType:
    package = None if "onnx" in sys.modules else find_spec("onnx")
    for folder in (package.submodule_search_locations if package is not None else None) or ():
        path = Path(folder) / f"{GENERATED}.py"
        spec = spec_from_file_location(GENERATED, path)
        if path.is_file() and spec is not None and spec.loader is not None:
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    import onnx  # imported before, laid out in another way, or missing

    whole: ModuleType = onnx
    return whole


def newest_opset(wanted: int) -> int:
    """The newest opset of the standard domain that is known, at least as far as `wanted` asks."""
    if wanted in range(1, CERTAIN_OPSET + 1):
        return CERTAIN_OPSET
    from onnx.defs import onnx_opset_version

    newest: int = onnx_opset_version()
    return newest


if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto
else:
    _found: Any = _messages()
    AttributeProto, FunctionProto, GraphProto = _found.AttributeProto, _found.FunctionProto, _found.GraphProto
    ModelProto, NodeProto, TypeProto, ValueInfoProto = _found.ModelProto, _found.NodeProto, _found.TypeProto, _found.ValueInfoProto

__all__ = ["AttributeProto", "FunctionProto", "GraphProto", "ModelProto", "NodeProto", "TypeProto", "ValueInfoProto",
           "newest_opset"]
