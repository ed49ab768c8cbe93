"""Errors of the NumPy front end: ours in text and place, NumPy's in type.

Where NumPy raises TypeError, ValueError, IndexError or OverflowError, tracing raises a `TraceError` that is also of that
type, so that a user's own `except` clauses keep working. `translated` turns a raw NumPy error into one of these.
"""

from __future__ import annotations

import ast
import linecache

import numpy as np

from ..ir.errors import CompileError, Loc


class TraceError(CompileError):
    """A NumPy program that cannot be traced; the text names the line and the working form."""


class TraceTypeError(TraceError, TypeError):
    """Where NumPy raises TypeError."""


class TraceValueError(TraceError, ValueError):
    """Where NumPy raises ValueError."""


class TraceIndexError(TraceError, IndexError):
    """Where NumPy raises IndexError."""


class TraceAxisError(TraceError, ValueError, IndexError):
    """Where NumPy raises AxisError."""


class TraceOverflowError(TraceError, OverflowError):
    """Where NumPy raises OverflowError."""


class TraceAttributeError(TraceError, AttributeError):
    """An attribute of arrays that traced ones lack."""


_KINDS: tuple[tuple[type[Exception], type[TraceError]], ...] = (
    (np.exceptions.AxisError, TraceAxisError),
    (IndexError, TraceIndexError),
    (OverflowError, TraceOverflowError),
    (ValueError, TraceValueError),
    (TypeError, TraceTypeError),
    (AttributeError, TraceAttributeError),
)


def translated(error: Exception) -> TraceError:
    """NumPy's own complaint as an error of ours, of the same kind."""
    for raw, ours in _KINDS:
        if isinstance(error, raw):
            return ours(str(error))
    return TraceError(f"{type(error).__name__}: {error}")


def behind(error: BaseException) -> TraceError | None:
    """Our error where NumPy caught it and raised one of its own instead (it does so for float() of a sequence)."""
    cause = error.__cause__
    return cause if isinstance(cause, TraceError) and not isinstance(error, CompileError) else None


NO_VALUES = "a traced array has no values while the function is compiled"


def conversion_error(what: str, loc: Loc) -> TraceTypeError:
    """For NumPy or Python asking a traced array for its values; the hint gives the form of that very line that works."""
    return TraceTypeError(f"{what}: {NO_VALUES}", loc=loc, hint=_conversion_hint(loc))


_GENERAL_HINT = (
    "index a constant table with np.take(table, indices, axis=0); write into np.zeros_like(x) or "
    "np.zeros_like(x, shape=...), not into a concrete array; leave out np.asarray; join arrays with np.stack"
)


def _conversion_hint(loc: Loc) -> str:
    tree = _statement_at(loc)
    if tree is None:
        return _GENERAL_HINT
    target = tree.targets[0] if isinstance(tree, ast.Assign) else tree.target if isinstance(tree, ast.AugAssign) else None
    call = _converting_call(tree)
    if call is not None:
        return call
    subscript = _subscript_under(loc, tree)
    if subscript is not None and subscript is not target:
        table, index = ast.unparse(subscript.value), ast.unparse(subscript.slice)
        return f"{table} is a concrete array and {index} is traced: write np.take({table}, {index}, axis=0)"
    if isinstance(target, ast.Subscript):
        name = ast.unparse(target.value)
        return f"{name} is a concrete array: make it a traced one with np.zeros_like(x) or np.zeros_like(x, shape=...)"
    return _GENERAL_HINT


def _statement_at(loc: Loc) -> ast.stmt | None:
    text = linecache.getline(loc.file, loc.line).strip()
    for source in (text, text.rstrip(":") + ": pass"):
        try:
            return ast.parse(source).body[0]
        except (SyntaxError, ValueError, IndexError):
            continue
    return None


def _converting_call(tree: ast.stmt) -> str | None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            name, argument = node.func.attr, ast.unparse(node.args[0])
            if name in np.sctypeDict and isinstance(node.func.value, ast.Name):
                return f"convert a traced value with {argument}.astype({ast.unparse(node.func)})"
            if name in ("asarray", "array", "ascontiguousarray", "asanyarray"):
                if isinstance(node.args[0], (ast.List, ast.Tuple)):
                    return f"join traced values with np.stack({argument})"
                return f"{argument} is an array already: leave out np.{name} (or write {argument}.copy())"
    return None


def _subscript_under(loc: Loc, tree: ast.stmt) -> ast.Subscript | None:
    """The subscript that the marked columns of the line show."""
    text = linecache.getline(loc.file, loc.line)
    shown = text[loc.column : loc.end_column].strip() if loc.column >= 0 else ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.get_source_segment(text.strip(), node) == shown:
            return node
    return None
