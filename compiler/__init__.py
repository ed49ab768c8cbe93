"""Tilewright: a tensor-program compiler. `import tilewright as tw; f = tw.compile(function_or_graph)`.

Names are handed on lazily (PEP 562): loading a saved artifact must not import the compiler.
"""

from __future__ import annotations

import importlib
from typing import Any

from .version import __version__

# public name -> module that defines it
_PUBLIC = {
    "compile": "driver", "trace": "frontends.from_numpy", "spec": "frontends.from_numpy",
    "from_onnx": "driver", "load": "loading", "parse": "ir.parser", "load_text": "ir.parser", "save_text": "ir.printer",
    "Options": "options", "quantize": "quantizing.tool",
    "cond": "frontends.from_numpy", "while_loop": "frontends.from_numpy", "scan": "frontends.from_numpy",
    "Graph": "ir.graph", "Dim": "ir.dims", "symbol": "ir.dims",
    **dict.fromkeys(("erf", "gelu", "layer_norm", "log_softmax", "logsumexp", "one_hot", "relu", "rms_norm", "sigmoid", "silu",
                     "softmax"), "frontends.from_numpy"),
    "Executable": "runtime.executable",
    "TilewrightError": "ir.errors", "CompileError": "ir.errors", "UnsupportedError": "ir.errors",
    "ArgumentError": "ir.errors", "RuntimeFailure": "ir.errors", "ArtifactError": "ir.errors",
}

_MODULES = ("targets",)

__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tilewright' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
