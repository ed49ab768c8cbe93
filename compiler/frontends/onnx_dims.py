"""The symbols of an ONNX import: the model's names of sizes made identifiers, and what the caller binds them to.

Assumes the names are text. Guarantees: two names never become one symbol; a binding that the model has no dim for is an error.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ..ir.dims import RESERVED, Dim, DimLike, symbol
from ..ir.errors import CompileError, UnsupportedError
from ..ir.graph import Node
from .onnx_contents import Contents
from .onnx_messages import ValueInfoProto
from .onnx_ops.known_values import MOST_CONTENTS, may_hold_sizes
from .onnx_ops.sequences import MOST_ELEMENTS

DimBinding: TypeAlias = int | Dim | str | tuple[int | None, ...] | list[int | None]


class DimNames:
    """The symbols of an import: the model's names made identifiers, and what the caller binds them to."""

    def __init__(self, label: str, bindings: dict[str, DimBinding]) -> None:
        self.label = label
        self.bindings = bindings
        self.used: set[str] = set()
        self.sizes: dict[str, DimLike] = {}
        self.originals: dict[str, str] = {}

    def size(self, dim: Any, input_name: str, axis: int, shared: bool = True) -> DimLike:
        """The size of an input's axis: a number, or the symbol for its name; for one of its own where names are not shared."""
        if dim.WhichOneof("value") == "dim_value" and dim.dim_value != -1:
            return int(dim.dim_value)
        original = dim.dim_param if dim.WhichOneof("value") == "dim_param" and dim.dim_param not in ("", "?") else ""
        name = original if original and shared else f"{input_name}_{axis}"
        if name not in self.sizes:
            self.sizes[name] = self._new(name)
        return self.sizes[name]

    def declared(self, dim: Any, value_name: str, axis: int) -> DimLike | None:
        """A size that the model declares for a value inside: a number, or a dim of the inputs; else what the caller binds it to, by
        its own name or that of the value and the axis."""
        if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0:
            return int(dim.dim_value)
        shared = dim.dim_param if dim.WhichOneof("value") == "dim_param" else ""
        if not isinstance(shared, str):     # which nothing has checked of a value inside
            return None
        if shared in self.sizes:
            return self.sizes[shared]
        if not self.bindings:
            return None
        own = f"{value_name}_{axis}"
        key = next((key for key in (shared, identifier(shared), own, identifier(own)) if key and key in self.bindings), None)
        if key is None:
            return None
        value = self.bindings[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise CompileError(f"{self.label}: dims[{key!r}] is a size that data decides, and must be a number, found {value!r}")
        self.used.add(key)
        return value

    def contents(self, name: str, node: Node) -> Contents | None:
        """What an input holds, where the caller says so by a tuple or a list."""
        key = next((key for key in (name, identifier(name)) if isinstance(self.bindings.get(key), (tuple, list))), None)
        if key is None:
            return None
        value: Any = self.bindings[key]
        what = f"{self.label}: dims[{key!r}] = {value!r} says what input {name!r} holds"
        if not may_hold_sizes(node):
            raise CompileError(f"{what}; that is possible for vectors and scalars of up to {MOST_CONTENTS} integers, found {node.type}")
        if len(value) != node.tensor.elements:
            raise CompileError(f"{what}; found {len(value)} numbers, expected {node.tensor.elements}")
        limits = np.iinfo(node.dtype.numpy)
        if not all(n is None or isinstance(n, int) and not isinstance(n, bool) and limits.min <= n <= limits.max for n in value):
            raise CompileError(f"{what}; expected numbers of {node.dtype}, or None for what is not known")
        self.used.add(key)
        return tuple(value)

    def count(self, name: str, what: str, most: int = MOST_ELEMENTS) -> int:
        """A number that must be bound: how many elements a sequence among the inputs has, whether an optional input is there, how
        many axes an input has."""
        key = next((key for key in (name, identifier(name)) if key in self.bindings), None)
        if key is None:
            raise UnsupportedError(f"{self.label}: {what}, which must be known at compile time", hint=f"bind dims={{{name!r}: number}}")
        value = self.bindings[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise CompileError(f"{self.label}: dims[{key!r}] must be a number from 0 to {most}, found {value!r}")
        self.used.add(key)
        return value

    def _new(self, name: str) -> DimLike:
        plain = identifier(name) or "dim"
        while self.originals.setdefault(plain, name) != name:       # two names that become one identifier
            plain += "_"
        for key in (name, plain):
            if key in self.bindings:
                self.used.add(key)
                return self._bound(key, self.bindings[key])
        return symbol(plain, lower=1)

    def _bound(self, key: str, value: DimBinding) -> DimLike:
        if isinstance(value, bool) or not isinstance(value, (int, Dim, str)):
            raise CompileError(f"{self.label}: dims[{key!r}] must be a number, a Dim or a name, found {value!r}")
        if isinstance(value, int) and value < 0:
            raise CompileError(f"{self.label}: dims[{key!r}] = {value} is negative")
        return symbol(value, lower=1) if isinstance(value, str) else value

    def check_all_used(self, declared: Mapping[str, ValueInfoProto]) -> None:
        """CompileError where a binding has nothing to bind among the inputs and the declared values."""
        if self.bindings.keys() > self.used:
            for name, value in declared.items():
                for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                    self.declared(dim, name, axis)
        unused = sorted(set(self.bindings) - self.used)
        if unused:
            known = ", ".join(sorted(self.sizes)) or "none"
            raise CompileError(f"{self.label}: dims binds {', '.join(map(repr, unused))}, which the model does not have",
                               hint=f"its symbolic dims are: {known}")


def identifier(name: str) -> str:
    """The name with everything that an identifier cannot hold replaced by underscores; no word with a meaning."""
    plain = re.sub(r"[^0-9A-Za-z_]", "_", name)
    if keyword.iskeyword(plain) or plain in RESERVED:
        return f"{plain}_"
    return f"_{plain}" if plain[:1].isdigit() else plain
