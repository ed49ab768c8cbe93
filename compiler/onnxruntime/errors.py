"""ONNX Runtime's exceptions, and which of them each error of ours becomes.

Programs catch these by type and look for the status in the text: `[ONNXRuntimeError] : <code> : <NAME> : <message>`. As in ONNX
Runtime each is a plain Exception; they have no common base. The message of ours, which names the node, stands behind the status.

Guarantees: an error of ours never leaves a session as itself; its cause is kept.
"""

from __future__ import annotations

from ..ir.errors import UNKNOWN, ArgumentError, CompileError, IndexFailure, TilewrightError, UnsupportedError


class Fail(Exception):
    """Status 1: something in the model or the run went wrong."""


class InvalidArgument(Exception):
    """Status 2: an input, an output's name or the model does not fit."""


class NoSuchFile(Exception):
    """Status 3: the path of the model leads nowhere."""


class NoModel(Exception):
    """Status 4."""


class EngineError(Exception):
    """Status 5."""


class RuntimeException(Exception):
    """Status 6."""


class InvalidProtobuf(Exception):
    """Status 7: the file is no model."""


class ModelLoaded(Exception):
    """Status 8."""


class NotImplemented(Exception):
    """Status 9: the model is valid and uses something that is not supported."""


class InvalidGraph(Exception):
    """Status 10: the model says what no model may."""


class EPFail(Exception):
    """Status 11."""


class ModelLoadCanceled(Exception):
    """Status 12."""


class ModelRequiresCompilation(Exception):
    """Status 13."""


class NotFound(Exception):
    """Status 14."""


class DeviceReset(Exception):
    """Status 15."""


STATUS: dict[type[Exception], tuple[int, str]] = {
    Fail: (1, "FAIL"), InvalidArgument: (2, "INVALID_ARGUMENT"), NoSuchFile: (3, "NO_SUCHFILE"),
    InvalidProtobuf: (7, "INVALID_PROTOBUF"), NotImplemented: (9, "NOT_IMPLEMENTED"), InvalidGraph: (10, "INVALID_GRAPH"),
}


def status(kind: type[Exception], message: str) -> Exception:
    """The exception with its status before the message, as ONNX Runtime spells it."""
    code, name = STATUS[kind]
    return kind(f"[ONNXRuntimeError] : {code} : {name} : {message}")


def from_compiling(error: TilewrightError) -> Exception:
    """What a model raises that cannot be compiled: of a node (its dtypes or shapes), or of the model as a whole."""
    if isinstance(error, UnsupportedError):
        return status(NotImplemented, str(error))
    if isinstance(error, CompileError) and error.loc == UNKNOWN:
        return status(InvalidGraph, f"This is an invalid model. {error}")
    return status(Fail, str(error))


def from_running(error: TilewrightError) -> Exception:
    """What a call that ended in an error raises."""
    kind = InvalidArgument if isinstance(error, (ArgumentError, IndexFailure)) else Fail
    return status(kind, f"Non-zero status code returned while running the model. Status Message: {error}")
