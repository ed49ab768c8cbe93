"""Other implementations of ONNX that `tilewright verify` compares with: onnxruntime, and the reference evaluator of the onnx package.

Both are imported when one is asked for. onnxruntime runs without its graph optimizations, so that it computes what the file
says, on the CPU and on one thread. Peers run native code of other packages on the file, in this process: a file that is not
trusted is for `tilewright check`.

Guarantees: a peer that is missing, or cannot run a model, ends in one error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .ir.errors import ArgumentError, UnsupportedError

PEERS = ("onnxruntime", "reference")
ONLY_FATAL = 4  # onnxruntime's severity: what matters comes as an exception


class Peer(Protocol):
    """Runs models. A model is a path, or a message that is serialized; sequences are lists of arrays."""

    name: str

    def run(self, model: Path | Any, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """The outputs by name."""
        ...


class OnnxRuntime:
    name = "onnxruntime"

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise _missing(self.name, error) from None
        self.package: Any = onnxruntime

    def run(self, model: Path | Any, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        options = self.package.SessionOptions()
        options.graph_optimization_level = self.package.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = ONLY_FATAL
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        try:
            session = self.package.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            return dict(zip(outputs, session.run(list(outputs), dict(inputs))))
        except Exception as error:
            raise _failed(self.name, model, error) from error


class Reference:
    name = "reference"

    def __init__(self) -> None:
        try:
            from onnx import load, reference
        except ModuleNotFoundError as error:
            raise _missing("onnx", error) from None
        self.load: Any = load
        self.evaluator: Any = reference.ReferenceEvaluator

    def run(self, model: Path | Any, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        try:
            evaluator = self.evaluator(self.load(model) if isinstance(model, Path) else model)
            return dict(zip(outputs, evaluator.run(list(outputs), dict(inputs))))
        except Exception as error:
            raise _failed("the reference of the onnx package", model, error) from error


def find_peer(name: str) -> Peer:
    if name not in PEERS:
        raise ArgumentError(f"verify: found the peer {name!r}, expected one of {', '.join(PEERS)}")
    return OnnxRuntime() if name == "onnxruntime" else Reference()


def _missing(name: str, error: ModuleNotFoundError) -> UnsupportedError:
    return UnsupportedError(f"verify: comparing with {name} needs the package {error.name}, which is not installed",
                            hint=f"pip install {name}, or compare with the other peer: --against {' or '.join(PEERS)}")


def _failed(name: str, model: Path | Any, error: Exception) -> UnsupportedError:
    what = model.name if isinstance(model, Path) else model.graph.name
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UnsupportedError(f"{name} cannot run {what}: {lines[0][:400]}")


__all__ = ["PEERS", "Peer", "find_peer"]
