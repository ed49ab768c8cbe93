"""Where a kernel reads and writes at given sizes: every index of every access, held against the buffer that it belongs to.

The iterations of all loops around an access are written out as arrays, and its index is computed for all of them at once, so
nothing is proved or bounded and nothing of the verifier is used. Conditions on indices leave out the iterations that do not
run; what hangs on data (a condition, an index that was loaded, a `while`) is not followed, since kernels have checks for it
that only a run shows. Kernels with too many iterations are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.dims import Atom, DimLike, Symbol
from ..ir.graph import Node
from ..ir.loop import (
    Alloc,
    Check,
    For,
    If,
    IndexValue,
    Kernel,
    Let,
    Literal,
    Load,
    Local,
    Stmt,
    Store,
    While,
    expression_nodes,
    expressions_of,
)
from ..ir.ops.compute import Cast, Elementwise
from .subject import Refused

MOST_POINTS = 1 << 14  # iterations of one statement
Numbers = Any          # an int, or an array of one int an iteration
Variables = Mapping[str, Numbers]
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "add": np.add, "sub": np.subtract, "mul": np.multiply,
    "max": np.maximum, "min": np.minimum, "select": np.where,
}


class Unknown(Exception):
    """What is asked for hangs on data."""


class TooMuch(Exception):
    """There are more iterations than are written out."""


class _Ends(Exception):
    """A check of the kernel fails: nothing behind it runs."""


def access_fault(kernel: Kernel, sizes: Mapping[str, int]) -> str:
    """The first access that leaves its buffer, '' if there is none. TooMuch where that cannot be said; Refused where a check
    of sizes ends the kernel."""
    shapes = {buffer.name: buffer.shape for buffer in kernel.buffers}
    walker = _Walker(shapes)
    try:
        walker.block(kernel.body, sizes, 1)
    except _Ends:
        raise Refused(f"memory plan: {kernel.name} refuses these sizes") from None
    return walker.fault


def amount(size: DimLike, variables: Variables) -> Numbers:
    """The size for every iteration. Unknown where a variable of it is."""
    if isinstance(size, int):
        return size
    total: Numbers = 0
    for monomial, coefficient in size.terms:
        product: Numbers = coefficient
        for atom, power in monomial:
            product = product * _atom(atom, variables) ** power
        total = total + product
    return total


def _atom(atom: Atom, variables: Variables) -> Numbers:
    if isinstance(atom, Symbol):
        if atom.name not in variables:
            raise Unknown
        return variables[atom.name]
    left, right = amount(atom.left, variables), amount(atom.right, variables)
    if atom.kind == "min":
        return np.minimum(left, right)
    if np.any(np.asarray(right) < 1):
        raise Unknown
    return left // right if atom.kind == "floordiv" else left % right


def value_of(root: Node, variables: Variables) -> Numbers:
    """A truth value or number for every iteration. Unknown where it hangs on data."""
    values: dict[int, Numbers] = {}
    for node in expression_nodes(root):
        operands = [values[id(i)] for i in node.inputs]
        match node.op:
            case Literal(value=value):
                found = value
            case IndexValue(size=size):
                found = amount(size, variables)
            case Local(variable=name) if name in variables:
                found = variables[name]
            case Cast() if not node.dtype.is_float and node.dtype.bits >= 32 and not node.inputs[0].dtype.is_float:
                found = operands[0]
            case Elementwise(function=function) if function in FUNCTIONS and not node.inputs[-1].dtype.is_float:
                found = FUNCTIONS[function](*operands)
            case _:
                raise Unknown
        values[id(node)] = found
    return values[id(root)]


class _Walker:
    """One walk through a kernel. `fault`: the first access that leaves its buffer."""

    def __init__(self, shapes: dict[str, tuple[DimLike, ...]]) -> None:
        self.shapes = shapes
        self.fault = ""

    def block(self, body: Sequence[Stmt], variables: Variables, count: int) -> None:
        """The statements, for `count` iterations."""
        variables = dict(variables)
        for statement in body:
            if self.fault or not count:
                return
            if not isinstance(statement, While):
                self.loads(statement, variables)
            match statement:
                case Store(buffer=name, index=index):
                    self.access(name, index, variables)
                case Alloc(buffer=buffer):
                    self.shapes[buffer.name] = buffer.shape
                case Let(name=name, value=value, symbol=symbol):
                    try:
                        variables[name if symbol is None else symbol.name] = value_of(value, variables)
                    except Unknown:
                        continue
                case Check(condition=condition):
                    try:
                        if not np.all(value_of(condition, variables)):
                            raise _Ends
                    except Unknown:
                        continue
                case For():
                    self.loop(statement, variables, count)
                case If():
                    self.branch(statement, variables, count)

    def loop(self, loop: For, variables: Variables, count: int) -> None:
        try:
            extent = np.maximum(np.broadcast_to(np.asarray(amount(loop.extent, variables), np.int64), (count,)), 0)
        except Unknown:
            return
        total = int(extent.sum())
        if total > MOST_POINTS:
            raise TooMuch
        first = np.repeat(np.cumsum(extent) - extent, extent)
        inner = {name: np.repeat(v, extent) if np.ndim(v) else v for name, v in variables.items()}
        self.block(loop.body, {**inner, loop.symbol.name: np.arange(total) - first}, total)

    def branch(self, statement: If, variables: Variables, count: int) -> None:
        try:
            taken = np.broadcast_to(np.asarray(value_of(statement.condition, variables), bool), (count,))
        except Unknown:
            return
        for block, chosen in ((statement.then, taken), (statement.otherwise, ~taken)):
            if chosen.any():
                self.block(block, {name: v[chosen] if np.ndim(v) else v for name, v in variables.items()}, int(chosen.sum()))

    def loads(self, statement: Stmt, variables: Variables) -> None:
        for root in expressions_of(statement):
            for node in expression_nodes(root):
                if isinstance(node.op, Load):
                    self.access(node.op.buffer, node.op.index, variables)

    def access(self, name: str, index: tuple[DimLike, ...], variables: Variables) -> None:
        try:
            extents = [amount(n, variables) for n in self.shapes[name]]
            places = [amount(n, variables) for n in index]
        except Unknown:
            return
        if len(index) != len(extents):
            flat: Numbers = 1
            for extent in extents:
                flat = flat * extent
            extents = [flat]
        for position, (place, extent) in enumerate(zip(places, extents, strict=True)):
            if not self.fault and np.any((np.asarray(place) < 0) | (np.asarray(place) >= extent)):
                self.fault = (f"%{name}[{', '.join(map(str, index))}] takes {np.min(place)} to {np.max(place)} on axis {position} of "
                              f"{np.max(extent)}")
