"""The extension module's names under the name by which ONNX Runtime's own Python code imports them."""

from __future__ import annotations

from .onnxruntime_pybind11_state import *  # noqa: F403 - __all__ there lists every name, which a list here would only repeat
