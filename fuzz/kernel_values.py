"""Random expressions of kernels: of a wanted dtype, over what a scope offers, with indices that are shown to lie within.

Values stay small whole numbers for the most part, so that floats are exact; whatever is not, the oracle finds out by
itself. Index expressions take only functions that cannot leave 64 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from msgspec import Struct

from ..ir.dims import DimLike, bounds, dim_min, product
from ..ir.errors import CompileError
from ..ir.graph import Node
from ..ir.loop import Buffer, IndexValue, Literal, Load, Local
from ..ir.ops.compute import Bitcast, Cast, Elementwise
from ..ir.ops.scalar import SCALARS, result_dtype
from ..ir.types import ARRAY_DTYPES, BOOL, F32, F64, I32, I64, INDEX, DType
from .kernel_edits import Scope, node

T = TypeVar("T")
USUAL = (F32, F32, F32, F32, F64, I32, I32, I64, BOOL)
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
# functions that machine code computes to the bit
EXACT = frozenset({"add", "sub", "mul", "div", "max", "min", "fmax", "fmin", "copysign", "neg", "abs", "sign", "sqrt", "floor",
                   "ceil", "trunc", "round", "isnan", "isinf", "select", "fma", *COMPARE})
PLAIN = ("add", "add", "sub", "mul", "max", "min")  # keep whole numbers whole, in every dtype of numbers
OF_INDEX = ("add", "sub", "max", "min")
SPECIAL = (0.5, -0.0, float("nan"), float("inf"), float("-inf"))


def functions_on(dtype: DType) -> list[str]:
    """The scalar functions that take and give this dtype, `select` left out."""
    if dtype == INDEX:
        return list(OF_INDEX)
    return [name for name, row in SCALARS.items() if row.rule not in ("compare", "test", "select") and _fits(name, row.arity, dtype)]


def _fits(name: str, arity: int, dtype: DType) -> bool:
    try:
        return result_dtype(name, [dtype] * arity) == dtype
    except CompileError:
        return False


FUNCTIONS: dict[DType, list[str]] = {dtype: functions_on(dtype) for dtype in (*ARRAY_DTYPES, INDEX)}
COMMON: dict[DType, list[str]] = {dtype: [n for n in found if not dtype.is_float or n in EXACT] for dtype, found in FUNCTIONS.items()}


class Values(Struct):
    """A source of random expressions."""

    rng: np.random.Generator

    def one(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return [items[int(i)] for i in self.rng.permutation(len(items))]

    # --- indices ---

    def position(self, scope: Scope, extent: DimLike, varying: bool = True) -> DimLike | None:
        """A size that is shown to lie in 0 .. extent - 1."""
        candidates: list[DimLike] = []
        if varying:
            for size in self.shuffled(list(scope.sizes.values()))[:2]:
                candidates += self.places(size, extent)
        candidates = self.shuffled(candidates)[:5]
        if self.chance(0.15) or not candidates:
            candidates.insert(0, int(self.rng.integers(max(1, extent if isinstance(extent, int) else 1))))
        candidates += [0, extent - 1]
        return next((c for c in candidates if scope.inside(c, extent)), None)

    def places(self, size: DimLike, extent: DimLike) -> list[DimLike]:
        """Indices into an axis that follow a size."""
        found = [size, size, size, extent - 1 - size, size + 1, dim_min(size, extent - 1)]
        if bounds(extent)[0] >= 1 and bounds(size)[0] >= 0:
            found.append(size % extent)
            if self.chance(0.3):
                found += [(size * int(self.rng.integers(2, 5)) + 1) % extent, size // 2]
        return found

    def index(self, scope: Scope, buffer: Buffer) -> tuple[DimLike, ...] | None:
        """An index into the buffer."""
        first = scope.first.get(buffer.name)
        if len(buffer.shape) != 1 and first is None and self.chance(0.1):
            flat = self.position(scope, product(buffer.shape))
            if flat is not None:
                return (flat,)
        found: list[DimLike] = [] if first is None else [first]
        for extent in buffer.shape[len(found):]:
            place = self.position(scope, extent, buffer.space != "register")
            if place is None:
                return None
            found.append(place)
        return tuple(found)

    # --- leaves ---

    def load(self, scope: Scope, dtype: DType | None, tries: int = 3) -> Node | None:
        """A load of that dtype (None: any) from a buffer that has been stored to."""
        fitting = [b for b in scope.buffers.values() if b.name in scope.fresh and (dtype is None or b.dtype == dtype)]
        for _ in range(tries if fitting else 0):
            buffer = self.one(fitting)
            index = self.index(scope, buffer)
            if index is not None:
                return node(Load(buffer.name, index, buffer.dtype))
        return None

    def literal(self, dtype: DType) -> Node:
        if dtype.is_bool:
            return node(Literal(self.chance(0.5), dtype))
        low = 0 if dtype.kind in "ux" else -3
        number = int(self.rng.integers(low, 5))
        if not dtype.is_float:
            return node(Literal(number, dtype))
        return node(Literal(self.one(SPECIAL) if self.chance(0.04) else float(number), dtype))

    def leaf(self, scope: Scope, dtype: DType) -> Node:
        draw = self.rng.random()
        if draw < 0.6 and dtype != INDEX:
            found = self.load(scope, dtype)
            if found is None and draw < 0.3:
                other = self.load(scope, None)
                found = None if other is None or other.dtype == INDEX else node(Cast(dtype), other)
            if found is not None:
                return found
        lets = [name for name, kind in scope.values.items() if kind == dtype]
        if lets and draw < 0.8:
            return node(Local(self.one(lets), dtype))
        if scope.sizes and (dtype == INDEX or draw > 0.9):
            place = node(IndexValue(self.one(list(scope.sizes.values()))))
            return place if dtype == INDEX else node(Cast(dtype), place)
        return self.literal(dtype)

    # --- expressions ---

    def expression(self, scope: Scope, dtype: DType, depth: int = 2) -> Node:
        if depth == 0 or self.chance(0.2):
            return self.leaf(scope, dtype)
        draw = self.rng.random()
        if dtype.is_bool and draw < 0.6:
            return self.condition(scope, depth - 1)
        if draw < 0.08:
            return node(Elementwise("select"), self.expression(scope, BOOL, depth - 1), self.expression(scope, dtype, depth - 1),
                        self.expression(scope, dtype, depth - 1))
        if draw < 0.16 and dtype != INDEX:
            return self.round_trip(self.expression(scope, dtype, depth - 1))
        name = self.function(dtype)
        return node(Elementwise(name), *(self.expression(scope, dtype, depth - 1) for _ in range(SCALARS[name].arity)))

    def function(self, dtype: DType) -> str:
        draw = self.rng.random()
        if draw < 0.65 and not dtype.is_bool and dtype != INDEX:
            return self.one(PLAIN)
        return self.one((COMMON if draw < 0.95 else FUNCTIONS)[dtype])

    def function_of_two(self, dtype: DType) -> str:
        while True:
            name = self.function(dtype)
            if SCALARS[name].arity == 2:
                return name

    def condition(self, scope: Scope, depth: int = 1) -> Node:
        """A comparison."""
        dtype = self.one((F32, I32, INDEX, INDEX))
        return node(Elementwise(self.one(COMPARE)), self.expression(scope, dtype, depth), self.expression(scope, dtype, depth))

    def provable(self, scope: Scope) -> Node:
        """A condition that the scope shows to hold."""
        size: DimLike = self.one([0, *scope.sizes.values()])
        around = [(loop.symbol.name, loop.extent) for loop in scope.loops]
        ends = [extent for name, extent in around if str(size) == name]
        if ends and self.chance(0.6):
            return node(Elementwise("lt"), node(IndexValue(size)), node(IndexValue(ends[0])))
        return node(Elementwise("ge"), node(IndexValue(size)), node(Literal(0, INDEX)))

    def round_trip(self, value: Node) -> Node:
        """The value through another dtype and back: exact where that one holds it."""
        dtype = value.dtype
        if dtype == INDEX:
            return node(Cast(INDEX), node(Cast(I64), value))
        same = [d for d in ARRAY_DTYPES if d.bits == dtype.bits and d.is_bool == dtype.is_bool and d != dtype]
        if same and self.chance(0.3):
            return node(Bitcast(dtype), node(Bitcast(self.one(same)), value))
        return node(Cast(dtype), node(Cast(self.one(ARRAY_DTYPES)), value))

