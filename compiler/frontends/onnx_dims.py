"""The symbols of an ONNX import: the model's names of sizes made identifiers, and what the caller binds them to.

Assumes the names are text. Guarantees: two names never become one symbol; a binding that the model has no dim for is an error.
"""

from __future__ import annotations

import keyword
import re
from typing import Any, TypeAlias

from ..ir.dims import RESERVED, Dim, DimLike, symbol
from ..ir.errors import CompileError, UnsupportedError
from .onnx_ops.sequences import MOST_ELEMENTS

DimBinding: TypeAlias = int | Dim | str


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

    def declared(self, dim: Any) -> DimLike | None:
        """A size that the model declares for a value inside: a number, or a dim of the inputs."""
        if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0:
            return int(dim.dim_value)
        return self.sizes.get(dim.dim_param) if dim.WhichOneof("value") == "dim_param" else None

    def count(self, name: str, what: str) -> int:
        """A number that must be bound: how many elements a sequence among the inputs has, or whether an optional input is there."""
        key = next((key for key in (name, identifier(name)) if key in self.bindings), None)
        if key is None:
            raise UnsupportedError(f"{self.label}: {what}, which must be known at compile time", hint=f"bind dims={{{name!r}: number}}")
        value = self.bindings[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_ELEMENTS:
            raise CompileError(f"{self.label}: dims[{key!r}] must be a number from 0 to {MOST_ELEMENTS}, found {value!r}")
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

    def check_all_used(self) -> None:
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
