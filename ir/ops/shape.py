"""Ops that move elements: shapes, slices, gathers and scatters. Nothing here computes with the values.

Indices of `take`, `take_along`, `gather_nd` and the scatters are integers in 0 <= i < size of their axis (front ends
add the wrap of negative ones). An index outside is an error status at run time, IndexFailure here; never a wild access.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ..dims import DimLike, bounds, compare, evaluate, product, provably_at_most
from ..errors import ArgumentError, CompileError, IndexFailure
from ..graph import Array, Binding, Op, Sample
from ..types import F32, I32, I64, DType, TensorType, Type


def tensor_operand(op: Op, type: Type, position: int = 0) -> TensorType:
    """The operand's type, which must be a tensor."""
    if not isinstance(type, TensorType):
        raise CompileError(f"{op.spelling}: operand {position} must be a tensor, found {type}")
    if type.dtype.is_stored and not op.stores:
        raise CompileError(f"{op.spelling}: operand {position} is {type}, of a dtype that is only stored, not computed with")
    return type


def operands(op: Op, types: Sequence[Type], count: int) -> tuple[TensorType, ...]:
    if len(types) != count:
        raise CompileError(f"{op.spelling}: takes {count} operands, found {len(types)}")
    return tuple(tensor_operand(op, t, i) for i, t in enumerate(types))


def check_axis(op: Op, axis: int, rank: int) -> int:
    if not 0 <= axis < rank:
        raise CompileError(f"{op.spelling}: axis {axis} is outside 0..{rank - 1}")
    return axis


def check_sizes(op: Op, shape: Sequence[DimLike]) -> None:
    """Rejects sizes that are negative for every binding."""
    for axis, size in enumerate(shape):
        if bounds(size)[1] < 0:
            raise CompileError(f"{op.spelling}: the size {size} of axis {axis} is negative")


def evaluate_all(sizes: Sequence[DimLike], binding: Binding) -> tuple[int, ...]:
    """The numbers, whatever their sign: places where windows begin."""
    return tuple(evaluate(n, binding) for n in sizes)


def evaluate_shape(shape: Sequence[DimLike], binding: Binding) -> tuple[int, ...]:
    """The numbers. ArgumentError where one is negative: the inputs are too small for the program."""
    sizes = evaluate_all(shape, binding)
    if min(sizes, default=0) < 0:
        place = next(i for i, n in enumerate(sizes) if n < 0)
        raise ArgumentError(f"axis {place} would have {shape[place]} = {sizes[place]} elements: the inputs are too small")
    return sizes


class Broadcast(Op, frozen=True):
    """Repeats along new leading axes and along axes of size 1, as NumPy's broadcast_to."""

    name: ClassVar[str] = "broadcast"
    stores: ClassVar[bool] = True
    injective: ClassVar[bool] = True
    shape: tuple[DimLike, ...]

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        check_sizes(self, self.shape)
        if x.rank > len(self.shape):
            raise CompileError(f"broadcast: rank {x.rank} does not fit into rank {len(self.shape)}")
        offset = len(self.shape) - x.rank
        for axis, size in enumerate(x.shape):
            if size != 1 and size != self.shape[offset + axis]:
                raise CompileError(f"broadcast: size {size} of axis {axis} is neither 1 nor {self.shape[offset + axis]}")
        return TensorType(x.dtype, self.shape)

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        return np.broadcast_to(inputs[0], evaluate_shape(self.shape, binding))

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls((4, 3)), (TensorType(F32, (3,)),)), Sample(cls((2, 4, 3)), (TensorType(F32, (4, 1)),)),
                Sample(cls((5,)), (TensorType(I32, ()),)))


class Reshape(Op, frozen=True):
    """The same elements in C order under another shape."""

    name: ClassVar[str] = "reshape"
    stores: ClassVar[bool] = True
    injective: ClassVar[bool] = True
    shape: tuple[DimLike, ...]

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        check_sizes(self, self.shape)
        before, after = product(x.shape), product(self.shape)
        if before != after:
            raise CompileError(f"reshape: {x} has {before} elements, the new shape ({_sizes(self.shape)}) has {after}")
        return TensorType(x.dtype, self.shape)

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        return np.reshape(inputs[0], evaluate_shape(self.shape, binding))

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls((6, 2)), (TensorType(F32, (3, 4)),)), Sample(cls((1, 12)), (TensorType(I64, (12,)),)))


def _sizes(shape: Sequence[DimLike]) -> str:
    return ", ".join(map(str, shape))


class Transpose(Op, frozen=True):
    """Axis `i` of the result is axis `perm[i]` of the operand."""

    name: ClassVar[str] = "transpose"
    stores: ClassVar[bool] = True
    injective: ClassVar[bool] = True
    perm: tuple[int, ...]

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        if sorted(self.perm) != list(range(x.rank)):
            raise CompileError(f"transpose: {self.perm} is no permutation of the {x.rank} axes")
        return TensorType(x.dtype, tuple(x.shape[p] for p in self.perm))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        return np.transpose(inputs[0], self.perm)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls((1, 0)), (TensorType(F32, (3, 4)),)), Sample(cls((2, 0, 1)), (TensorType(I32, (2, 3, 4)),)))


class Slice(Op, frozen=True):
    """result[i] = operand[start + i * step] on each axis, 0 <= i < size; a step may be negative."""

    name: ClassVar[str] = "slice"
    stores: ClassVar[bool] = True
    injective: ClassVar[bool] = True
    start: tuple[DimLike, ...]
    size: tuple[DimLike, ...]
    step: tuple[int, ...]

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        check_slice(self, x.shape, self.start, self.size, self.step)
        return TensorType(x.dtype, self.size)

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        starts, sizes = evaluate_all(self.start, binding), evaluate_shape(self.size, binding)
        return inputs[0][slice_window(starts, sizes, self.step, inputs[0].shape)]

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls((1, 0), (2, 2), (1, 2)), (TensorType(F32, (4, 3)),)),
                Sample(cls((4,), (5,), (-1,)), (TensorType(I32, (5,)),)))


def check_slice(op: Op, shape: Sequence[DimLike], start: Sequence[DimLike], size: Sequence[DimLike],
                step: Sequence[int]) -> None:
    """The window must be proved to lie inside wherever its size is not proved to be zero."""
    if not len(start) == len(size) == len(step) == len(shape):
        raise CompileError(f"{op.spelling}: start, size and step must have {len(shape)} entries")
    for axis, (n, s, count, by) in enumerate(zip(shape, start, size, step)):
        if by == 0:
            raise CompileError(f"{op.spelling}: the step of axis {axis} is zero")
        if s == 0 and by == 1 and count == n:
            continue  # the whole axis, whatever its size
        if bounds(count)[0] < 0:
            raise CompileError(f"{op.spelling}: the size {count} of axis {axis} may be negative")
        if count == 0:
            continue
        last = s + (count - 1) * by
        low, high = (s, last) if by > 0 else (last, s)
        outside = compare(low, 0) == -1 or compare(high, n) in (0, 1) and not _may_be_empty(count)
        if outside:
            raise CompileError(f"{op.spelling}: axis {axis} reads {low}..{high} of a size {n}")


def unproved_windows(shape: Sequence[DimLike], start: Sequence[DimLike], size: Sequence[DimLike],
                     step: Sequence[int]) -> list[tuple[DimLike, DimLike, DimLike, DimLike]]:
    """(least place, greatest place, number of places, size of the axis) of every axis on which the bounds of the sizes
    do not prove that the window lies inside: those need a check at run time."""
    found = []
    for n, s, count, by in zip(shape, start, size, step):
        last = s + (count - 1) * by
        low, high = (s, last) if by > 0 else (last, s)
        proved = count == 0 or bounds(low)[0] >= 0 and bounds(n - 1 - high)[0] >= 0
        # an empty window may begin anywhere: low and high need to hold only where there is a place at all
        if not proved and not (s == 0 and by == 1 and count == n):
            found.append((low, high, count, n))
    return found


def _may_be_empty(count: DimLike) -> bool:
    return bounds(count)[0] <= 0


def slice_window(starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int],
                 shape: Sequence[int]) -> tuple[slice, ...]:
    """The Python slices of a window; IndexFailure where a symbolic one turns out to leave the array."""
    window = []
    for start, size, step, extent in zip(starts, sizes, steps, shape):
        last = start + (size - 1) * step
        if size > 0 and not (0 <= start < extent and 0 <= last < extent):
            raise IndexFailure(f"slice: {start}..{last} leaves an axis of size {extent}")
        if size == 0:
            window.append(slice(0, 0, 1))
            continue
        stop = start + size * step
        window.append(slice(start, None if stop < 0 else stop, step))
    return tuple(window)


class UpdateSlice(Op, frozen=True):
    """The first operand with the window start + i * step replaced by the second operand."""

    name: ClassVar[str] = "update_slice"
    stores: ClassVar[bool] = True
    start: tuple[DimLike, ...]
    step: tuple[int, ...]

    def infer(self, *types: Type) -> Type:
        x, update = operands(self, types, 2)
        if x.dtype != update.dtype:
            raise CompileError(f"update_slice: dtypes differ: {x.dtype} vs {update.dtype}")
        check_slice(self, x.shape, self.start, update.shape, self.step)
        return x

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        result = np.array(inputs[0])
        window = slice_window(evaluate_all(self.start, binding), inputs[1].shape, self.step, result.shape)
        result[window] = inputs[1]
        return result

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls((1, 0), (1, 2)), (TensorType(F32, (4, 3)), TensorType(F32, (2, 2)))),)


class Concat(Op, frozen=True):
    """The operands one after the other along `axis`."""

    name: ClassVar[str] = "concat"
    stores: ClassVar[bool] = True
    axis: int

    def infer(self, *types: Type) -> Type:
        if not types:
            raise CompileError("concat: needs at least one operand")
        parts = operands(self, types, len(types))
        first = parts[0]
        check_axis(self, self.axis, first.rank)
        total: DimLike = 0
        for part in parts:
            rest = part.shape[:self.axis] + part.shape[self.axis + 1:]
            if part.dtype != first.dtype or part.rank != first.rank \
                    or rest != first.shape[:self.axis] + first.shape[self.axis + 1:]:
                raise CompileError(f"concat: {part} does not fit to {first} along axis {self.axis}")
            total = total + part.shape[self.axis]
        return TensorType(first.dtype, (*first.shape[:self.axis], total, *first.shape[self.axis + 1:]))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        return np.concatenate(inputs, axis=self.axis)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(1), (TensorType(F32, (2, 3)), TensorType(F32, (2, 4)))),
                Sample(cls(0), (TensorType(I32, (2,)), TensorType(I32, (1,)), TensorType(I32, (3,)))))


class Pad(Op, frozen=True):
    """Adds `low` elements before and `high` after each axis, all equal to the second operand (a scalar)."""

    name: ClassVar[str] = "pad"
    low: tuple[DimLike, ...]
    high: tuple[DimLike, ...]

    def infer(self, *types: Type) -> Type:
        x, value = operands(self, types, 2)
        if value.shape != () or value.dtype != x.dtype:
            raise CompileError(f"pad: the padding value must be {x.dtype}[], found {value}")
        if not len(self.low) == len(self.high) == x.rank:
            raise CompileError(f"pad: low and high must have {x.rank} entries")
        if any(bounds(n)[0] < 0 for n in (*self.low, *self.high)):
            raise CompileError("pad: the padding may be negative; use slice to crop")
        return TensorType(x.dtype, tuple(a + n + b for a, n, b in zip(self.low, x.shape, self.high)))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        widths = list(zip(evaluate_shape(self.low, binding), evaluate_shape(self.high, binding)))
        return np.pad(inputs[0], widths, constant_values=inputs[1]) if widths else inputs[0]

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls((1, 0), (2, 1)), (TensorType(F32, (2, 3)), TensorType(F32, ()))),)


class Iota(Op, frozen=True):
    """Counts 0, 1, 2, ... along `axis`."""

    name: ClassVar[str] = "iota"
    injective: ClassVar[bool] = True
    dtype: DType
    shape: tuple[DimLike, ...]
    axis: int

    def infer(self, *types: Type) -> Type:
        operands(self, types, 0)
        check_sizes(self, self.shape)
        check_axis(self, self.axis, len(self.shape))
        if self.dtype.is_bool:
            raise CompileError("iota: needs a number, found bool")
        return TensorType(self.dtype, self.shape)

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        shape = evaluate_shape(self.shape, binding)
        if 0 in shape:      # however large the others are
            return np.empty(shape, self.dtype.numpy)
        count = np.arange(shape[self.axis]).astype(self.dtype.numpy)
        column = count.reshape([-1 if a == self.axis else 1 for a in range(len(shape))])
        return np.broadcast_to(column, shape)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(I64, (2, 5), 1), ()), Sample(cls(F32, (4,), 0), ()))


class SizeOf(Op, frozen=True):
    """A symbolic size as an int64 scalar."""

    name: ClassVar[str] = "size"
    size: DimLike

    def infer(self, *types: Type) -> Type:
        operands(self, types, 0)
        return TensorType(I64, ())

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        return np.asarray(evaluate(self.size, binding), dtype=np.int64)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(7), ()),)


def _check_indices(op: Op, indices: TensorType) -> None:
    if not indices.dtype.is_integer:
        raise CompileError(f"{op.spelling}: indices must be integers, found {indices.dtype}")


def _check_range(name: str, indices: Array, size: int) -> None:
    if indices.size:
        wrong = (indices < 0) | (indices >= size)
        if wrong.any():
            raise IndexFailure(f"{name}: index {indices[wrong].flat[0]} is out of range for an axis of size {size}")


class Take(Op, frozen=True):
    """Whole slices of the first operand along `axis`, at the places the second operand gives (NumPy's take)."""

    name: ClassVar[str] = "take"
    stores: ClassVar[bool] = True
    axis: int

    def infer(self, *types: Type) -> Type:
        x, indices = operands(self, types, 2)
        check_axis(self, self.axis, x.rank)
        _check_indices(self, indices)
        return TensorType(x.dtype, (*x.shape[:self.axis], *indices.shape, *x.shape[self.axis + 1:]))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x, indices = inputs
        _check_range("take", indices, x.shape[self.axis])
        return np.take(x, indices.astype(np.int64), axis=self.axis)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(0), (TensorType(F32, (5, 3)), TensorType(I64, (2, 2))), (None, (0, 4))),
                Sample(cls(1), (TensorType(F32, (2, 4)), TensorType(I32, (3,))), (None, (0, 3))))


class TakeAlong(Op, frozen=True):
    """result[.., i, ..] = operand[.., indices[.., i, ..], ..] along `axis` (NumPy's take_along_axis)."""

    name: ClassVar[str] = "take_along"
    stores: ClassVar[bool] = True
    axis: int

    def infer(self, *types: Type) -> Type:
        x, indices = operands(self, types, 2)
        check_axis(self, self.axis, x.rank)
        _check_indices(self, indices)
        if indices.rank != x.rank or any(a != self.axis and not provably_at_most(i, n) for a, (i, n)
                                         in enumerate(zip(indices.shape, x.shape))):
            raise CompileError(f"take_along: indices {indices} do not fit {x} beside axis {self.axis}")
        return TensorType(x.dtype, indices.shape)

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x, indices = inputs
        _check_range("take_along", indices, x.shape[self.axis])
        window = tuple(slice(None) if a == self.axis else slice(0, n) for a, n in enumerate(indices.shape))
        return np.take_along_axis(x[window], indices.astype(np.int64), axis=self.axis)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(1), (TensorType(F32, (3, 4)), TensorType(I64, (3, 2))), (None, (0, 3))),)


class GatherND(Op, frozen=True):
    """indices[..., k] names a place on the k axes after the first `batch` ones; the rest of the axes come whole."""

    name: ClassVar[str] = "gather_nd"
    stores: ClassVar[bool] = True
    batch: int

    def infer(self, *types: Type) -> Type:
        x, indices = operands(self, types, 2)
        _check_indices(self, indices)
        depth = indices.shape[-1] if indices.rank else None
        if not isinstance(depth, int) or self.batch < 0 or self.batch + depth > x.rank or indices.rank <= self.batch:
            raise CompileError(f"gather_nd: indices {indices} do not fit {x} with {self.batch} batch axes")
        if indices.shape[:self.batch] != x.shape[:self.batch]:
            raise CompileError(f"gather_nd: batch axes differ: {indices} vs {x}")
        return TensorType(x.dtype, (*indices.shape[:-1], *x.shape[self.batch + depth:]))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x, indices = inputs
        depth = indices.shape[-1]
        for k in range(depth):
            _check_range("gather_nd", indices[..., k], x.shape[self.batch + k])
        places: list[Array] = []
        grid = indices.shape[:-1]
        for axis in range(self.batch):
            places.append(np.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(grid))]))
        places.extend(indices[..., k].astype(np.int64) for k in range(depth))
        return x[tuple(places)] if places else np.broadcast_to(x, grid + x.shape)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(0), (TensorType(F32, (4, 3)), TensorType(I64, (5, 2))), (None, (0, 2))),
                Sample(cls(1), (TensorType(F32, (2, 3, 4)), TensorType(I64, (2, 5, 1))), (None, (0, 2))))


_COMBINE = {"set": None, "add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}


def _check_kind(op: Op, kind: str) -> None:
    if kind not in _COMBINE:
        raise CompileError(f"{op.spelling}: kind {kind!r} is not one of {', '.join(_COMBINE)}")


class ScatterND(Op, frozen=True):
    """operand with updates written (`set`; the last one wins) or combined at the places of indices[..., k].

    Operands: x, indices [*grid, k], updates [*grid, *x.shape[k:]]. Applied in C order of the grid.
    """

    name: ClassVar[str] = "scatter_nd"
    kind: str

    def infer(self, *types: Type) -> Type:
        x, indices, updates = operands(self, types, 3)
        _check_kind(self, self.kind)
        _check_indices(self, indices)
        depth = indices.shape[-1] if indices.rank else None
        if not isinstance(depth, int) or depth > x.rank or x.dtype != updates.dtype \
                or updates.shape != (*indices.shape[:-1], *x.shape[depth:]):
            raise CompileError(f"scatter_nd: {x}, indices {indices} and updates {updates} do not fit")
        return x

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x, indices, updates = inputs
        result = np.array(x)
        for k in range(indices.shape[-1]):
            _check_range("scatter_nd", indices[..., k], x.shape[k])
        combine = _COMBINE[self.kind]
        for place in np.ndindex(*indices.shape[:-1]):
            target = tuple(int(i) for i in indices[place])
            with np.errstate(all="ignore"):
                result[target] = updates[place] if combine is None else combine(result[target], updates[place])
        return result

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        types = (TensorType(F32, (4, 3)), TensorType(I64, (5, 1)), TensorType(F32, (5, 3)))
        return tuple(Sample(cls(kind), types, (None, (0, 3), None)) for kind in _COMBINE)


class ScatterAlong(Op, frozen=True):
    """operand with updates[.., i, ..] written or combined at [.., indices[.., i, ..], ..] along `axis`, in C order."""

    name: ClassVar[str] = "scatter_along"
    axis: int
    kind: str

    def infer(self, *types: Type) -> Type:
        x, indices, updates = operands(self, types, 3)
        _check_kind(self, self.kind)
        check_axis(self, self.axis, x.rank)
        _check_indices(self, indices)
        fits = indices.rank == x.rank and all(a == self.axis or provably_at_most(i, n)
                                              for a, (i, n) in enumerate(zip(indices.shape, x.shape)))
        if not fits or updates.shape != indices.shape or updates.dtype != x.dtype:
            raise CompileError(f"scatter_along: {x}, indices {indices} and updates {updates} do not fit")
        return x

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x, indices, updates = inputs
        _check_range("scatter_along", indices, x.shape[self.axis])
        result = np.array(x)
        combine = _COMBINE[self.kind]
        for place in np.ndindex(*indices.shape):
            target = (*place[:self.axis], int(indices[place]), *place[self.axis + 1:])
            with np.errstate(all="ignore"):
                result[target] = updates[place] if combine is None else combine(result[target], updates[place])
        return result

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        types = (TensorType(F32, (3, 4)), TensorType(I64, (3, 2)), TensorType(F32, (3, 2)))
        return tuple(Sample(cls(1, kind), types, (None, (0, 3), None)) for kind in _COMBINE)


