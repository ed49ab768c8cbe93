"""Runs an ONNX model with tilewright or with ONNX Runtime, so that every example can show both.

`load(path, backend, sizes)` gives a function from named input arrays to the list of output arrays. Assumes the extra
`[onnx]` for tilewright and the package onnxruntime for ONNX Runtime; each is imported only when it is asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

NAMES = ("tilewright", "onnxruntime")

Model = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--backend` to an example's command line."""
    parser.add_argument("--backend", choices=NAMES, default=NAMES[0], help="what runs the model (default: %(default)s)")


def load(path: Path, backend: str, sizes: Mapping[str, int] | None = None) -> Model:
    """The model as a function. `sizes` fixes symbolic dims by name; the others stay symbolic."""
    if backend == "tilewright":
        import tilewright as tw

        executable = tw.compile(tw.from_onnx(str(path), dims=dict(sizes or {})))
        return lambda inputs: list(executable.run(dict(inputs)).values())
    if backend == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # the models' own loose ends are no news to who runs an example
        for name, size in (sizes or {}).items():
            options.add_free_dimension_override_by_name(name, size)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, dict(inputs))
    raise ValueError(f"backend: expected one of {', '.join(NAMES)}, found {backend!r}")
