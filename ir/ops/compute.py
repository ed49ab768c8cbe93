"""Ops that compute: elementwise functions, casts, reductions, scans, sorting, contractions and windows.

Float contracts: elementwise functions and casts round once, in their dtype. Sums and products of reductions,
contractions and windows may be reassociated; their accumulator is float32 for float16 and bfloat16, the dtype itself
otherwise (integers wrap), and the sign of a zero result is free. Maximum and minimum propagate NaN. An empty reduction
gives the identity: 0, 1, the lowest value for max, the highest for min, true for all (`and`), false for any (`or`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..dims import DimLike, bounds, ceildiv, divides, evaluate, product
from ..errors import CompileError, IndexFailure, RuntimeFailure
from ..graph import Array, Binding, Op, Sample
from ..types import BF16, BOOL, F32, F64, I8, I16, I32, I64, U8, U32, DType, TensorType, Type, dtype_named, dtype_of
from .scalar import SCALARS, evaluate_scalar, result_dtype
from .shape import check_axis, operands

# the dtypes of a sample, by rule
SAMPLED = {"bits": (BOOL, I32), "integer": (I32,), "float": (F32, F64), "test": (F32,), "words": (I32,), "widen": (I16,),
           "bfloats": (F32,)}


class Elementwise(Op, frozen=True):
    """A scalar function on each element; operands have equal shapes (broadcasts are explicit)."""

    name: ClassVar[str] = "elementwise"
    injective: ClassVar[bool] = True
    function: str

    @property
    def spelling(self) -> str:
        return self.function

    def infer(self, *types: Type) -> Type:
        parts = operands(self, types, len(types))
        dtype = result_dtype(self.function, [t.dtype for t in parts])
        for part in parts[1:]:
            if part.shape != parts[0].shape:
                raise CompileError(f"{self.function}: shapes differ: {parts[0]} vs {part}")
        return TensorType(dtype, parts[0].shape)

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        value: Array = evaluate_scalar(self.function, inputs)
        return value

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        found = []
        for row in SCALARS.values():
            dtypes = SAMPLED.get(row.rule, (F32, I64))
            for dtype in dtypes:
                types = [TensorType(dtype, (3, 5))] * row.arity
                if row.rule == "select":
                    types[0] = TensorType(BOOL, (3, 5))
                if row.rule == "bfloats":
                    types[:2] = [TensorType(U32, (3, 5))] * 2
                found.append(Sample(cls(row.name), tuple(types)))
        return tuple(found)


class Cast(Op, frozen=True):
    """To another dtype: floats round to nearest even; to bool is `!= 0`; float to integer truncates and saturates,
    NaN gives 0; integer to integer wraps."""

    name: ClassVar[str] = "cast"
    injective: ClassVar[bool] = True
    dtype: DType

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        if self.dtype.is_stored:
            raise CompileError(f"cast: {self.dtype} is only stored; its bits are made from u8 by bitcast")
        return TensorType(self.dtype, x.shape)

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        return cast_array(inputs[0], self.dtype)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        pairs = ((F32, I32), (I64, F32), (F32, F64), (BOOL, F32), (F32, BOOL), (I64, I32))
        return tuple(Sample(cls(to), (TensorType(source, (3, 5)),)) for source, to in pairs)


def cast_array(array: Array, dtype: DType) -> Array:
    """NumPy meaning of `Cast`."""
    target = dtype.numpy
    is_float = array.dtype.kind not in "biu"
    with np.errstate(all="ignore"):
        if dtype.is_bool:
            return np.asarray(array != 0)
        if not (is_float and dtype.is_integer):
            return array.astype(target)
        limits = np.iinfo(target)
        wide = array.astype(np.float64)
        whole = np.trunc(np.where(np.isnan(wide), 0.0, wide))
        inside = (whole > float(limits.min)) & (whole < float(limits.max))
        plain = np.where(inside, whole, 0.0).astype(target)
        # as arrays of the target: a Python integer past int64 is no scalar that every NumPy takes
        lowest, highest = np.array(limits.min, dtype=target), np.array(limits.max, dtype=target)
        return np.where(inside, plain, np.where(whole <= float(limits.min), lowest, highest)).astype(target)


class Bitcast(Op, frozen=True):
    """The same bits as another dtype of the same width."""

    name: ClassVar[str] = "bitcast"
    injective: ClassVar[bool] = True
    stores: ClassVar[bool] = True
    dtype: DType

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        if x.dtype.bits != self.dtype.bits or x.dtype.is_bool != self.dtype.is_bool:
            raise CompileError(f"bitcast: {x.dtype} and {self.dtype} differ in width or one is bool")
        return TensorType(self.dtype, x.shape)

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        return np.ascontiguousarray(inputs[0]).reshape(inputs[0].shape).view(self.dtype.numpy)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(I32), (TensorType(F32, (7,)),)),)


REDUCTIONS: dict[str, Any] = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum,
                              "and": np.logical_and, "or": np.logical_or}
# the scalar function that combines two partial results
COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min", "and": "and", "or": "or"}


def reduction_identity(kind: str, dtype: DType) -> int | float | bool:
    """What an empty reduction gives."""
    if kind in ("sum", "prod"):
        return (0.0, 1.0)[kind == "prod"] if dtype.is_float else (0, 1)[kind == "prod"]
    if kind in ("and", "or"):
        return kind == "and"
    return dtype.lowest if kind == "max" else dtype.highest


def accumulator_dtype(dtype: DType) -> DType:
    return F32 if dtype.is_float and dtype.bits < 32 else dtype


def check_reduction(op: Op, kind: str, dtype: DType) -> None:
    if kind not in REDUCTIONS:
        raise CompileError(f"{op.spelling}: kind {kind!r} is not one of {', '.join(REDUCTIONS)}")
    if kind in ("and", "or") and not dtype.is_bool:
        raise CompileError(f"{op.spelling}: {kind} needs bool, found {dtype}")
    if kind in ("sum", "prod") and dtype.is_bool:
        raise CompileError(f"{op.spelling}: {kind} needs a number, found bool")


class Reduce(Op, frozen=True):
    """Combines all elements along `axes`, which disappear."""

    name: ClassVar[str] = "reduce"
    kind: str
    axes: tuple[int, ...]

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        check_reduction(self, self.kind, x.dtype)
        if list(self.axes) != sorted(set(self.axes)):
            raise CompileError(f"reduce: axes {self.axes} must be distinct and ascending")
        for axis in self.axes:
            check_axis(self, axis, x.rank)
        return TensorType(x.dtype, tuple(n for a, n in enumerate(x.shape) if a not in self.axes))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x = inputs[0]
        wide = x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x
        dtype = wide.dtype
        initial = np.asarray(reduction_identity(self.kind, dtype_of(dtype)), dtype=dtype)
        with np.errstate(all="ignore"):
            if self.kind in ("sum", "prod"):
                value = REDUCTIONS[self.kind].reduce(wide, axis=self.axes, dtype=dtype)
            else:
                value = REDUCTIONS[self.kind].reduce(wide, axis=self.axes, initial=initial)
        return np.asarray(value).astype(x.dtype)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        kinds = [("sum", F32), ("prod", F32), ("max", F32), ("min", I32), ("and", BOOL), ("or", BOOL), ("sum", I64)]
        axes = [(1,), (0,), (0, 1)]
        return tuple(Sample(cls(k, a), (TensorType(d, (4, 5)),)) for k, d in kinds for a in axes)


class ArgReduce(Op, frozen=True):
    """The place (int64) of the first maximum or minimum along `axis`; a NaN counts as the extreme. Not for empty axes."""

    name: ClassVar[str] = "arg_reduce"
    kind: str
    axis: int

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        if self.kind not in ("max", "min"):
            raise CompileError(f"arg_reduce: kind {self.kind!r} is not max or min")
        check_axis(self, self.axis, x.rank)
        if x.shape[self.axis] == 0:
            raise CompileError("arg_reduce: the axis is empty")
        return TensorType(I64, x.shape[:self.axis] + x.shape[self.axis + 1:])

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x = inputs[0]
        x = x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x
        if x.shape[self.axis] == 0:
            if x.size == 0 and np.prod([n for a, n in enumerate(x.shape) if a != self.axis]) == 0:
                return np.zeros(x.shape[:self.axis] + x.shape[self.axis + 1:], dtype=np.int64)
            raise RuntimeFailure("arg_reduce: the axis is empty")
        find = np.argmax if self.kind == "max" else np.argmin
        return np.asarray(find(x, axis=self.axis), dtype=np.int64)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return tuple(Sample(cls(k, a), (TensorType(d, (4, 5)),)) for k in ("max", "min") for a in (0, 1) for d in (F32, I32))


class Cumulative(Op, frozen=True):
    """Running sum, prod, max or min along `axis`. `exclusive` leaves the element itself out; `reverse` runs backwards."""

    name: ClassVar[str] = "cumulative"
    kind: str
    axis: int
    exclusive: bool = False
    reverse: bool = False

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        check_reduction(self, self.kind, x.dtype)
        check_axis(self, self.axis, x.rank)
        return x

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x = inputs[0]
        wide = x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x
        wide = np.flip(wide, self.axis) if self.reverse else wide
        with np.errstate(all="ignore"):
            value = REDUCTIONS[self.kind].accumulate(wide, axis=self.axis, dtype=wide.dtype)
        if self.exclusive and x.shape[self.axis]:
            first = np.full_like(np.take(value, [0], self.axis), reduction_identity(self.kind, dtype_of(wide.dtype)))
            value = np.concatenate([first, np.take(value, range(x.shape[self.axis] - 1), self.axis)], self.axis)
        return np.asarray(np.flip(value, self.axis) if self.reverse else value).astype(x.dtype)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        x = (TensorType(F32, (3, 5)),)
        return (Sample(cls("sum", 1), x), Sample(cls("sum", 0, True), x), Sample(cls("max", 1, False, True), x),
                Sample(cls("prod", 1), (TensorType(I32, (3, 5)),)))


class Sort(Op, frozen=True):
    """Values in ascending (or descending) order along `axis`; NaN is greater than every number."""

    name: ClassVar[str] = "sort"
    axis: int
    descending: bool = False

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        check_axis(self, self.axis, x.rank)
        return x

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        places = _sort_places(inputs[0], self.axis, self.descending)
        return np.take_along_axis(inputs[0], places, self.axis)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(1), (TensorType(F32, (3, 7)),)), Sample(cls(0, True), (TensorType(I32, (6, 2)),)))


class ArgSort(Op, frozen=True):
    """The places (int64) that sort along `axis`; equal elements keep their order."""

    name: ClassVar[str] = "arg_sort"
    axis: int
    descending: bool = False

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        check_axis(self, self.axis, x.rank)
        return TensorType(I64, x.shape)

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        return _sort_places(inputs[0], self.axis, self.descending)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(1), (TensorType(F32, (3, 7)),)), Sample(cls(0, True), (TensorType(I32, (6, 2)),)))


def _sort_places(x: Array, axis: int, descending: bool) -> Array:
    x = x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x
    if not descending:
        return np.argsort(x, axis=axis, kind="stable").astype(np.int64)
    flipped = np.flip(x, axis)
    places = np.flip(np.argsort(flipped, axis=axis, kind="stable"), axis)
    return np.asarray(x.shape[axis] - 1 - places).astype(np.int64)


def matmul_arrays(subscripts: str, left: Array, right: Array) -> Array:
    """einsum with our accumulator rule: float32 for float16 and bfloat16, wrapping integers, `or of and` for bool."""
    dtype = left.dtype
    if dtype.itemsize == 2 and dtype.kind not in "iu":
        with np.errstate(all="ignore"):
            wide = np.einsum(subscripts, left.astype(np.float32), right.astype(np.float32), optimize=True)
            return np.asarray(wide).astype(dtype)
    with np.errstate(all="ignore"):
        return np.asarray(np.einsum(subscripts, left, right, optimize=dtype.kind == "f"), dtype=dtype)


def round_to_tf32(x: Array) -> Array:
    """float32 with 10 bits of fraction, to nearest, ties away from zero (cvt.rna.tf32.f32 of the PTX ISA). Subnormal numbers lose as many
    bits; what is too large becomes infinite; infinities stay, and NaN is one that `cut_to_tf32` leaves one."""
    bits = np.ascontiguousarray(x).reshape(x.shape).view(np.uint32)
    with np.errstate(all="ignore"):
        return np.where(np.isfinite(x), cut_to_tf32((bits + np.uint32(1 << 12)).view(np.float32)), x + x)


def cut_to_tf32(x: Array) -> Array:
    """float32 without its last 13 bits, as matrix units take it (PTX ISA, mma): a NaN that has no others becomes infinite."""
    bits = np.ascontiguousarray(x).reshape(x.shape).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def contraction_dtype(op: Op, lhs: DType, rhs: DType, result: DType | None) -> DType:
    """The dtype that a contraction of these operands gives."""
    if result is None:
        if lhs != rhs or lhs.is_bool:
            raise CompileError(f"{op.spelling}: needs two operands of one number dtype, found {lhs} and {rhs}")
        return lhs
    if result != I32 or lhs not in NARROW or rhs not in NARROW:
        raise CompileError(f"{op.spelling}: a sum in {result} is of i8, u8 or i16 into i32, found {lhs} and {rhs}")
    return result


NARROW = (I8, U8, I16)  # what is multiplied into sums of another dtype
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Dot(Op, frozen=True):
    """General contraction: result axes are batch, then free axes of lhs, then free axes of rhs (XLA's dot_general).

    `result`: i32 where narrow integers (i8, u8, i16, each operand its own) are multiplied and summed in int32; none where
    everything has one dtype."""

    name: ClassVar[str] = "dot"
    lhs_contract: tuple[int, ...]
    rhs_contract: tuple[int, ...]
    lhs_batch: tuple[int, ...] = ()
    rhs_batch: tuple[int, ...] = ()
    result: DType | None = None

    def infer(self, *types: Type) -> Type:
        lhs, rhs = operands(self, types, 2)
        dtype = contraction_dtype(self, lhs.dtype, rhs.dtype, self.result)
        for label, ours, theirs in (("contracting", self.lhs_contract, self.rhs_contract),
                                    ("batch", self.lhs_batch, self.rhs_batch)):
            if len(ours) != len(theirs):
                raise CompileError(f"dot: {label} axes differ in number: {ours} vs {theirs}")
            for a, b in zip(ours, theirs):
                check_axis(self, a, lhs.rank)
                check_axis(self, b, rhs.rank)
                if lhs.shape[a] != rhs.shape[b]:
                    raise CompileError(f"dot: {label} dims differ: {lhs.shape[a]} (lhs axis {a}) vs "
                                       f"{rhs.shape[b]} (rhs axis {b})")
        used_left, used_right = self.lhs_batch + self.lhs_contract, self.rhs_batch + self.rhs_contract
        if len(set(used_left)) != len(used_left) or len(set(used_right)) != len(used_right):
            raise CompileError("dot: an axis is named twice")
        shape = [lhs.shape[a] for a in self.lhs_batch]
        shape += [n for a, n in enumerate(lhs.shape) if a not in used_left]
        shape += [n for a, n in enumerate(rhs.shape) if a not in used_right]
        return TensorType(dtype, tuple(shape))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        lhs, rhs = inputs if self.result is None else (x.astype(self.result.numpy) for x in inputs)
        left = list(_LETTERS[:lhs.ndim])
        right = list(_LETTERS[lhs.ndim:lhs.ndim + rhs.ndim])
        for a, b in zip(self.lhs_batch + self.lhs_contract, self.rhs_batch + self.rhs_contract):
            right[b] = left[a]
        out = [left[a] for a in self.lhs_batch]
        out += [c for a, c in enumerate(left) if a not in self.lhs_batch + self.lhs_contract]
        out += [c for b, c in enumerate(right) if b not in self.rhs_batch + self.rhs_contract]
        return matmul_arrays(f"{''.join(left)},{''.join(right)}->{''.join(out)}", lhs, rhs)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls((1,), (0,)), (TensorType(F32, (5, 7)), TensorType(F32, (7, 19)))),
                Sample(cls((2,), (2,), (0,), (0,)), (TensorType(F32, (2, 3, 4)), TensorType(F32, (2, 5, 4)))),
                Sample(cls((0,), (0,)), (TensorType(I32, (6,)), TensorType(I32, (6,)))),
                Sample(cls((1,), (0,), result=I32), (TensorType(U8, (5, 7)), TensorType(I8, (7, 19)))),
                Sample(cls((2,), (2,), (0,), (0,), I32), (TensorType(I16, (2, 3, 4)), TensorType(I8, (2, 5, 4)))))


# words of a packed operand: (elements of the contraction that one holds, its dtype) -> the dtypes of the left operand and of what it holds
WORDS = {(2, I16): ((I16,), I8), (2, I32): ((I16,), I16), (4, I32): ((U8, I8), I8)}
FLOATS8 = tuple(dtype_named(name) for name in ("f8e4m3fn", "f8e5m2"))  # left operands of words of four of them in i32; sums are float32
TF32_ROUNDED = ("", "both", "left")  # operands that a contraction rounds to tf32
BFLOATS = (BF16, F32)  # left operands of words of two bfloat16, which are u32; sums are float32 then


def packed_dtype(op: Op, lhs: DType, rhs: DType, step: int) -> DType:
    """The dtype that a contraction with a packed right operand gives."""
    if step == 1:
        if lhs != rhs or not lhs.is_float and not lhs.is_integer:
            raise CompileError(f"{op.spelling}: dtypes differ or are bool: {lhs} vs {rhs}")
        return lhs
    if step == 2 and rhs == U32 and lhs in BFLOATS:
        return F32
    if step == 4 and rhs == I32 and lhs in FLOATS8:
        return F32
    if (step, rhs) not in WORDS or lhs not in WORDS[step, rhs][0]:
        known = "; ".join(f"{n} elements in {word} with {' or '.join(map(str, left))}" for (n, word), (left, _) in WORDS.items())
        known += f"; 4 elements in i32 with {' or '.join(map(str, FLOATS8))}"
        known += f"; 2 elements in u32 with {' or '.join(map(str, BFLOATS))}"
        raise CompileError(f"{op.spelling}: words of {step} elements in {rhs} do not fit {lhs}; there are {known}")
    return I32


def check_saturation(op: Op, lhs: DType, step: int, saturates: bool, narrow: int, words: DimLike) -> None:
    if saturates and (step != 4 or lhs != U8):
        raise CompileError(f"{op.spelling}: only sums of the products of four unsigned bytes saturate, found words of {step} with {lhs}")
    if narrow < 1 or narrow > 1 and not (saturates and divides(narrow, words)):
        raise CompileError(f"{op.spelling}: {narrow} words are added within 16 bits of {words}, which must be a multiple and saturate")


def saturating_sums(rows: Array, columns: Array, narrow: int) -> Array:
    """[*batch, M, K] bytes times [*batch, K, N], the products of two neighbours added within 16 bits, and those of `narrow` words."""
    left = rows.astype(np.int32).reshape(*rows.shape[:-1], rows.shape[-1] // 2, 2)
    right = columns.astype(np.int32).reshape(*columns.shape[:-2], columns.shape[-2] // 2, 2, columns.shape[-1])
    pairs = np.clip(np.einsum("...mkp,...kpn->...mkn", left, right), -32768, 32767)
    apart = pairs.reshape(*pairs.shape[:-2], pairs.shape[-2] // (2 * narrow), narrow, 2, pairs.shape[-1])
    sums: Array = apart.sum(axis=-3).astype(np.int16).sum(axis=(-3, -2), dtype=np.int32)
    return sums


def unpacked_words(words: Array, step: int) -> Array:
    """[.., steps, columns] words -> [.., steps * step, columns] in int32, or float32."""
    if step == 1:
        return words
    if words.dtype == np.uint32:
        halves = np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], axis=-2).view(np.float32)
        return halves.reshape(*words.shape[:-2], words.shape[-2] * step, words.shape[-1])
    held = WORDS[step, dtype_of(words.dtype)][1].numpy
    parts = np.ascontiguousarray(words).view(held).reshape(*words.shape, step).astype(np.int32)
    return np.moveaxis(parts, -1, -2).reshape(*words.shape[:-2], words.shape[-2] * step, words.shape[-1])


def panels_of_squares(panels: Array, square: int, by_columns: bool) -> Array:
    """[.., K, tile] whose memory is [.., K / square, tile / square, square, square] -> the same elements in C order. `by_columns`: the last
    axis of a square goes down."""
    *lead, depth, tile = panels.shape
    apart = panels.reshape(*lead, depth // square, tile // square, square, square)
    apart = np.swapaxes(apart, -2, -1) if by_columns else apart
    return np.swapaxes(apart, -3, -2).reshape(panels.shape)


def check_squares(op: Op, panels: TensorType, square: int, saturates: bool) -> None:
    """Panels may lie in squares of so many rows and columns."""
    if saturates or square < 2 or not all(divides(square, size) for size in panels.shape[-2:]):
        raise CompileError(f"{op.spelling}: {panels} in squares of {square}, expected panels of whole squares")


class PackedDot(Op, frozen=True):
    """Matmul with a right operand in panels, as `pack_operands` makes it.

    lhs [*batch, *rows, K], rhs [*batch, ceil(N / tile), K, tile] -> [*batch, *rows, N] with N = `columns`. The columns
    past N in the last panel are zero in rhs and do not appear in the result.

    `symmetric`: the product of the transpose of what rhs packs with that, lhs being rhs itself -> [*batch, N, N]. It is its own
    transpose to the bit.

    `step`: how many elements along K a word of rhs holds, which is [*batch, ceil(N / tile), K / step, tile] then. Integers alone
    are packed so (`WORDS`), and the sums are int32; or float8 of one format on both sides (`FLOATS8`), whose sums are float32; or
    bfloat16, whose sums are float32 (a target may count subnormal numbers as zeros where the left operand is bfloat16, too). What
    makes words of four may also be what it was, one panel [*batch, 1, K, N] of i8, or of lhs's float8 (`in_bytes`).
    `saturates`: of words of four bytes the products of two neighbours are added within 16 bits, as some instructions do, and to
    those the ones of as many words as `narrow` says, which wrap; passes let it only where that changes nothing.

    `square`: more than 1 where a panel [K, tile], of words [K / step, tile], lies in squares of so many rows and columns, each by itself,
    one beside another before the next ones below; in a square of words columns lie one after another. Then rhs may have more steps than
    lhs, which are whole words, of zeros that are multiplied by nothing.

    `tf32`: 'both' operands, float32, are rounded first (`round_to_tf32`), or the 'left' one, and the right one, which has been rounded as
    it was packed, loses its last bits (`cut_to_tf32`). Products are exact then, sums float32. In a square columns lie one after another.
    """

    name: ClassVar[str] = "packed_dot"
    stores: ClassVar[bool] = True
    batch: int
    columns: DimLike
    symmetric: bool = False
    step: int = 1
    saturates: bool = False
    narrow: int = 1
    square: int = 1
    tf32: str = ""

    @property
    def by_columns(self) -> bool:
        """Whether columns lie one after another in a square."""
        return self.step > 1 or self.tf32 != ""

    def in_bytes(self, lhs: DType, rhs: DType) -> bool:
        """Whether the right operand is bytes that no words have been made of."""
        return self.step == 4 and self.square == 1 and (lhs in (U8, I8) and rhs == I8 or lhs in FLOATS8 and rhs == lhs)

    def infer(self, *types: Type) -> Type:
        lhs, rhs = operands(self, types, 2)
        in_bytes = self.in_bytes(lhs.dtype, rhs.dtype)
        dtype = packed_dtype(self, lhs.dtype, I32 if in_bytes else rhs.dtype, self.step)
        check_saturation(self, lhs.dtype, self.step, self.saturates, self.narrow, rhs.shape[-2] if rhs.rank > 1 else 0)
        if self.tf32 and (dtype != F32 or self.step != 1 or self.symmetric or self.tf32 not in TF32_ROUNDED[1 if self.square == 1 else 2:]):
            raise CompileError(f"packed_dot: rounds {self.tf32!r} of {lhs} and {rhs} to tf32, expected 'both' or 'left' of f32, 'left' in "
                               "squares, and no symmetric result")
        tile = rhs.shape[-1] if rhs.rank else None
        if rhs.rank != self.batch + 3 or lhs.rank < self.batch + 1 or not isinstance(tile, int) or tile < 1:
            raise CompileError(f"packed_dot: {lhs} and {rhs} do not fit {self.batch} batch axes")
        if self.square != 1:
            if self.symmetric:
                raise CompileError("packed_dot: a symmetric product of panels in squares")
            check_squares(self, rhs, self.square, self.saturates)
        step = 1 if in_bytes else self.step
        depth, steps = lhs.shape[-1], rhs.shape[-2] * step
        enough = depth == steps
        if self.square > 1:
            enough = depth == ceildiv(depth, step) * step and bounds(steps - depth)[0] >= 0
        fits = lhs == rhs if self.symmetric else lhs.shape[:self.batch] == rhs.shape[:self.batch] and enough
        if not fits or rhs.shape[-3] != ceildiv(self.columns, tile):
            raise CompileError(f"packed_dot: {lhs} and {rhs} do not fit, columns {self.columns}")
        lead = (*lhs.shape[:self.batch], self.columns) if self.symmetric else lhs.shape[:-1]
        return TensorType(dtype, (*lead, self.columns))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        lhs, rhs = inputs
        if self.square > 1:
            rhs = panels_of_squares(rhs, self.square, self.by_columns)[..., :-(-lhs.shape[-1] // self.step), :]
        in_bytes = self.in_bytes(dtype_of(lhs.dtype), dtype_of(rhs.dtype))
        rhs = unpacked_words(rhs, self.step) if not in_bytes else rhs.astype(np.int32) if rhs.dtype == np.int8 else rhs
        if dtype_of(lhs.dtype) in FLOATS8:
            with np.errstate(all="ignore"):
                rhs = rhs if in_bytes else rhs.astype(np.int8).view(lhs.dtype)
                lhs, rhs = lhs.astype(np.float32), rhs.astype(np.float32)
        lhs = lhs if self.step == 1 else lhs.astype(rhs.dtype)
        if self.tf32:
            lhs, rhs = round_to_tf32(lhs), (round_to_tf32 if self.tf32 == "both" else cut_to_tf32)(rhs)
        b = self.batch
        columns = evaluate(self.columns, binding)
        dense = np.moveaxis(rhs, -3, -2).reshape(*rhs.shape[:b], rhs.shape[-2], rhs.shape[-3] * rhs.shape[-1])[..., :columns]
        grid = _LETTERS[:b]
        if self.symmetric:
            upper: Array = np.triu(matmul_arrays(f"{grid}xy,{grid}yz->{grid}xz", np.swapaxes(dense, -1, -2), dense))
            mirrored: Array = upper + np.swapaxes(np.triu(upper, 1), -1, -2)
            return mirrored
        rows = lhs.reshape(*lhs.shape[:b], int(np.prod(lhs.shape[b:-1])), lhs.shape[-1])
        if self.saturates:
            return saturating_sums(rows, dense, self.narrow).reshape(*lhs.shape[:-1], columns)
        value = matmul_arrays(f"{grid}xy,{grid}yz->{grid}xz", rows, dense)
        return value.reshape(*lhs.shape[:-1], columns)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls(0, 19), (TensorType(F32, (5, 7)), TensorType(F32, (2, 7, 16)))),
                Sample(cls(1, 5), (TensorType(F32, (2, 3, 4)), TensorType(F32, (2, 1, 4, 8)))),
                Sample(cls(0, 19, step=2), (TensorType(I16, (5, 14)), TensorType(I32, (2, 7, 16)))),
                Sample(cls(0, 19, step=2), (TensorType(F32, (5, 14)), TensorType(U32, (2, 7, 16)))),
                Sample(cls(1, 5, step=2), (TensorType(BF16, (2, 3, 4)), TensorType(U32, (2, 1, 2, 8)))),
                Sample(cls(1, 5, step=2), (TensorType(I16, (2, 3, 4)), TensorType(I16, (2, 1, 2, 8)))),
                Sample(cls(0, 19, step=4), (TensorType(U8, (5, 12)), TensorType(I32, (2, 3, 16)))),
                Sample(cls(0, 19, step=4), (TensorType(I8, (5, 12)), TensorType(I32, (2, 3, 16)))),
                Sample(cls(1, 5, step=4, saturates=True), (TensorType(U8, (2, 3, 8)), TensorType(I32, (2, 1, 2, 8)))),
                Sample(cls(0, 19, False, 4, True, 2), (TensorType(U8, (5, 16)), TensorType(I32, (2, 4, 16)))),
                Sample(cls(0, 19, tf32="both"), (TensorType(F32, (5, 7)), TensorType(F32, (1, 7, 32)))),
                Sample(cls(1, 13, square=4, tf32="left"), (TensorType(F32, (2, 3, 6)), TensorType(F32, (2, 2, 8, 8)))),
                Sample(cls(1, 13, square=4), (TensorType(F32, (2, 3, 6)), TensorType(F32, (2, 2, 8, 8)))),
                Sample(cls(0, 13, step=4, square=4), (TensorType(I8, (5, 12)), TensorType(I32, (2, 4, 8)))))


class Conv(Op, frozen=True):
    """Cross-correlation over any number of spatial axes.

    x [N, C, *spatial], w [O, C / groups, *kernel] -> [N, O, *out]; `channels_last`: x [N, *spatial, C],
    w [*kernel, C / groups, O] -> [N, *out, O]. `padding` gives (low, high) an axis; `dilation` spreads the kernel,
    `input_dilation` puts zeros between the elements of x (transposed convolution). `result`: as of `Dot`.
    """

    name: ClassVar[str] = "conv"
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]
    groups: int = 1
    channels_last: bool = False
    result: DType | None = None

    def infer(self, *types: Type) -> Type:
        x, w = operands(self, types, 2)
        rank = len(self.strides)
        dtype = contraction_dtype(self, x.dtype, w.dtype, self.result)
        if x.rank != rank + 2 or w.rank != rank + 2 or self.result is None and not x.dtype.is_float:
            raise CompileError(f"conv: {x} and {w} do not fit {rank} spatial axes of one float dtype")
        if not len(self.padding) == len(self.dilation) == len(self.input_dilation) == rank:
            raise CompileError(f"conv: strides, padding and dilations must have {rank} entries")
        spatial, kernel, channels, per_group, out = self.parts(x, w)
        if self.groups < 1 or per_group * self.groups != channels or not isinstance(out, int) or out % self.groups:
            raise CompileError(f"conv: {channels} channels in, {per_group} a group, {out} out do not fit "
                               f"{self.groups} groups")
        sizes = []
        for n, k, s, (low, high), d, e in zip(spatial, kernel, self.strides, self.padding, self.dilation,
                                              self.input_dilation):
            if not isinstance(k, int) or k < 1 or s < 1 or d < 1 or e < 1 or low < 0 or high < 0:
                raise CompileError("conv: kernel sizes, strides, dilations must be positive, padding not negative")
            size = ((n - 1) * e + 1 + low + high - ((k - 1) * d + 1)) // s + 1
            if bounds(size)[1] < 0:
                raise CompileError(f"conv: the kernel ({k}, dilation {d}) is larger than the padded input ({n})")
            sizes.append(size)
        shape = (x.shape[0], *sizes, out) if self.channels_last else (x.shape[0], out, *sizes)
        return TensorType(dtype, shape)

    def parts(self, x: TensorType, w: TensorType) -> tuple[tuple[DimLike, ...], tuple[DimLike, ...], DimLike, DimLike, DimLike]:
        """spatial sizes, kernel sizes, channels in, channels a group, channels out."""
        if self.channels_last:
            return x.shape[1:-1], w.shape[:-2], x.shape[-1], w.shape[-2], w.shape[-1]
        return x.shape[2:], w.shape[2:], x.shape[1], w.shape[1], w.shape[0]

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x, w = inputs
        rank = len(self.strides)
        dtype = x.dtype if self.result is None else self.result.numpy
        if self.channels_last:
            x, w = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))
        wide = np.float32 if dtype.itemsize == 2 else dtype
        x, w = x.astype(wide), w.astype(wide)
        padded = _dilate_and_pad(x, self.input_dilation, self.padding)
        windows = window_view(padded, w.shape[2:], self.strides, self.dilation)
        n, out_sizes = x.shape[0], windows.shape[2:2 + rank]
        g = self.groups
        windows = windows.reshape(n, g, x.shape[1] // g, *windows.shape[2:])
        kernel = w.reshape(g, w.shape[0] // g, *w.shape[1:])
        out, taps = _LETTERS[:rank], _LETTERS[rank:2 * rank]
        with np.errstate(all="ignore"):
            value = np.einsum(f"NGC{out}{taps},GOC{taps}->NGO{out}", windows, kernel, optimize=True)
            value = value.reshape(n, w.shape[0], *out_sizes).astype(dtype)
        return np.ascontiguousarray(np.moveaxis(value, 1, -1)) if self.channels_last else value

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        one, two = (1, 1), (2, 2)
        pads = ((1, 1), (0, 1))
        x, w = TensorType(F32, (2, 4, 6, 7)), TensorType(F32, (6, 4, 3, 3))
        grouped, last = TensorType(F32, (4, 1, 3, 3)), TensorType(F32, (3, 3, 4, 6))
        return (Sample(cls(one, pads, one, one), (x, w)), Sample(cls(two, pads, one, one), (x, w)),
                Sample(cls(one, pads, two, one), (x, w)), Sample(cls(one, pads, one, two), (x, w)),
                Sample(cls(one, pads, one, one, 4), (x, grouped)),
                Sample(cls(one, pads, one, one, 1, True), (TensorType(F32, (2, 6, 7, 4)), last)),
                Sample(cls(one, pads, one, one, 1, True, I32), (TensorType(U8, (2, 6, 7, 4)), TensorType(I8, (3, 3, 4, 6)))),
                Sample(cls(one, pads, one, one, 4, result=I32), (TensorType(I16, (2, 4, 6, 7)), TensorType(I8, (4, 1, 3, 3)))))


def _dilate_and_pad(x: Array, input_dilation: Sequence[int], padding: Sequence[tuple[int, int]],
                    fill: Any = 0) -> Array:
    spatial = [(n - 1) * e + 1 for n, e in zip(x.shape[2:], input_dilation)]  # below 0 where there are no elements to spread
    sizes = [low + n + high for n, (low, high) in zip(spatial, padding)]
    if min(sizes, default=0) < 0:
        raise IndexFailure(f"a window does not fit into axes of sizes {sizes}")
    result = np.full((*x.shape[:2], *sizes), fill, dtype=x.dtype)
    place = tuple(slice(low, low + max(n, 0), e) for n, (low, _), e in zip(spatial, padding, input_dilation))
    result[(slice(None), slice(None), *place)] = x
    return result


def window_view(x: Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Array:
    """[N, C, *spatial] -> [N, C, *out, *window], without a copy."""
    rank = len(window)
    spans = tuple((k - 1) * d + 1 for k, d in zip(window, dilation))
    out = [(n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, strides)]
    if min(out, default=0) < 0:
        raise IndexFailure(f"a window of {spans} does not fit into the axes {x.shape[2:]}")
    if 0 in out:  # NumPy's view wants room for one window at least
        return np.zeros((*x.shape[:2], *out, *window), x.dtype)
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, s) for s in strides)
    spread = tuple(slice(None, None, d) for d in dilation)
    return view[(slice(None), slice(None), *steps, *spread)]


class PackedConv(Op, frozen=True):
    """Channels-last convolution with the kernel in panels, as `pack_operands` makes it.

    x [N, *spatial, C], w [ceil(O / tile), taps * C, tile] (taps in C order of `kernel`) -> [N, *out, O], O = `channels`. With
    groups w is [groups, ceil(O / groups / tile), taps * C / groups, tile]. `step`, `saturates` and `narrow`: as of `PackedDot`; the
    elements of a word are channels of one tap, and words that are added in 16 bits channels of taps along the last axis. `square` too:
    w may have more rows then, of zeros. `padding`: zeros before and behind each spatial axis; nothing where there are none.
    `tf32`: 'left', as of `PackedDot`.
    """

    name: ClassVar[str] = "packed_conv"
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    channels: int
    groups: int = 1
    step: int = 1
    saturates: bool = False
    narrow: int = 1
    square: int = 1
    padding: tuple[tuple[int, int], ...] = ()
    tf32: str = ""

    @property
    def by_columns(self) -> bool:
        """Whether columns lie one after another in a square."""
        return self.step > 1 or self.tf32 != ""

    @property
    def is_joined(self) -> bool:
        """Whether the taps along the last axis lie beside one another, with all their channels."""
        return self.dilation[-1] == 1 and self.groups == 1

    def padded_sizes(self, x: TensorType) -> tuple[DimLike, ...]:
        """Spatial sizes with the padding."""
        return tuple(n + low + high for n, (low, high) in zip(x.shape[1:-1], self.padding or ((0, 0),) * len(self.kernel)))

    def infer(self, *types: Type) -> Type:
        x, w = operands(self, types, 2)
        grouped = self.groups != 1
        channels = x.shape[-1] if x.rank else 0
        words = channels * (self.kernel[-1] if self.kernel and self.is_joined else 1) // max(self.step * self.groups, 1)
        check_saturation(self, x.dtype, self.step, self.saturates, self.narrow, words)
        dtype = packed_dtype(self, x.dtype, w.dtype, self.step)
        if x.rank != len(self.kernel) + 2 or w.rank != 3 + grouped or self.step == 1 and not x.dtype.is_float:
            raise CompileError(f"packed_conv: {x} and {w} do not fit")
        if min((*self.kernel, *self.strides, *self.dilation, self.channels, self.groups)) < 1 or w.shape[-1] == 0 or \
                not len(self.kernel) == len(self.strides) == len(self.dilation):
            raise CompileError("packed_conv: kernel, strides, dilation, channels and groups must be positive, one for each axis")
        widths = [width for pair in self.padding for width in pair]
        if self.padding and (len(self.padding) != len(self.kernel) or min(widths) < 0 or max(widths) == 0 or self.saturates):
            raise CompileError(f"packed_conv: padding {self.padding}, expected two sizes an axis, none negative, or nothing for zeros")
        if self.tf32 and (dtype != F32 or self.step != 1 or self.tf32 != "left"):
            raise CompileError(f"packed_conv: rounds {self.tf32!r} of {x} and {w} to tf32, expected 'left' of f32")
        *groups, panels, depth, tile = w.shape
        of_group = self.channels // self.groups
        surplus = depth * self.step * self.groups - product(self.kernel) * x.shape[-1]
        if self.square != 1:
            check_squares(self, w, self.square, self.saturates)
        fits = (isinstance(tile, int) and (surplus == 0 or self.square > 1 and bounds(surplus)[0] >= 0)
                and divides(self.step * self.groups, x.shape[-1])
                and self.channels % self.groups == 0 and panels == -(-of_group // tile) and (not grouped or groups == [self.groups]))
        if not fits:
            raise CompileError(f"packed_conv: {x} and {w} do not fit kernel {self.kernel}, channels {self.channels}, "
                               f"groups {self.groups}")
        sizes = [(n - ((k - 1) * d + 1)) // s + 1
                 for n, k, s, d in zip(self.padded_sizes(x), self.kernel, self.strides, self.dilation)]
        return TensorType(dtype, (x.shape[0], *sizes, self.channels))

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x, w = inputs
        if self.square > 1:
            depth = int(np.prod(self.kernel)) * x.shape[-1] // self.groups // self.step
            w = panels_of_squares(w, self.square, self.by_columns)[..., :depth, :]
        w = unpacked_words(w, self.step)
        x = x.astype(w.dtype) if w.dtype == np.float32 else x
        x, w = (round_to_tf32(x), cut_to_tf32(w)) if self.tf32 else (x, w)
        depth, of_group = w.shape[-2], self.channels // self.groups
        panels = np.moveaxis(w.reshape(self.groups, *w.shape[-3:]), 2, 0)  # [depth, groups, panels, tile]
        dense = panels.reshape(depth, self.groups, panels.shape[2] * panels.shape[3])[..., :of_group]
        kernel = dense.reshape(*self.kernel, x.shape[-1] // self.groups, self.channels)
        rank = len(self.kernel)
        if self.saturates:
            return self._saturating(x, kernel)
        result = I32 if np.issubdtype(w.dtype, np.integer) and self.step != 1 else None
        plain = Conv(self.strides, self.padding or ((0, 0),) * rank, self.dilation, (1,) * rank, self.groups, True, result)
        return plain.evaluate((x, kernel), binding)

    def _saturating(self, x: Array, kernel: Array) -> Array:
        windows = window_view(np.moveaxis(x, -1, 1), self.kernel, self.strides, self.dilation)  # [N, C, *out, *window]
        rank, channels, of_group = len(self.kernel), x.shape[-1] // self.groups, self.channels // self.groups
        rows = np.moveaxis(windows, 1, -1)
        out, depth = rows.shape[:rank + 1], int(np.prod(self.kernel)) * channels
        sums = [saturating_sums(rows[..., g * channels:(g + 1) * channels].reshape(int(np.prod(out)), depth),
                                kernel[..., g * of_group:(g + 1) * of_group].reshape(depth, of_group), self.narrow)
                for g in range(self.groups)]
        return np.concatenate(sums, axis=-1).reshape(*out, self.channels)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        return (Sample(cls((3, 3), (1, 1), (1, 1), 6), (TensorType(F32, (2, 6, 7, 4)), TensorType(F32, (1, 36, 16)))),
                Sample(cls((1, 3), (2, 1), (1, 2), 20), (TensorType(F32, (1, 5, 9, 4)), TensorType(F32, (2, 12, 16)))),
                Sample(cls((3, 2), (1, 1), (1, 1), 30, 3), (TensorType(F32, (2, 5, 6, 6)), TensorType(F32, (3, 2, 12, 8)))),
                Sample(cls((3, 3), (1, 1), (1, 1), 6, 1, 2), (TensorType(I16, (2, 6, 7, 4)), TensorType(I16, (1, 18, 16)))),
                Sample(cls((3, 3), (1, 1), (1, 1), 6, 1, 2), (TensorType(F32, (2, 6, 7, 4)), TensorType(U32, (1, 18, 16)))),
                Sample(cls((2, 3), (1, 2), (1, 1), 6, 2, 4), (TensorType(U8, (2, 6, 7, 8)), TensorType(I32, (2, 1, 6, 8)))),
                Sample(cls((2, 3), (1, 2), (1, 1), 6, 2, 4, True), (TensorType(U8, (2, 6, 7, 8)), TensorType(I32, (2, 1, 6, 8)))),
                Sample(cls((2, 2), (1, 1), (1, 1), 6, 1, 4, True, 2), (TensorType(U8, (2, 5, 6, 4)), TensorType(I32, (1, 4, 16)))),
                Sample(cls((2, 3), (1, 1), (1, 1), 13, square=4), (TensorType(F32, (2, 5, 6, 3)), TensorType(F32, (2, 20, 8)))),
                Sample(cls((3,), (1,), (1,), 13, step=4, square=4), (TensorType(I8, (2, 6, 4)), TensorType(I32, (2, 4, 8)))),
                Sample(cls((2, 3), (2, 1), (1, 1), 13, padding=((0, 0), (1, 1)), tf32="left"),
                       (TensorType(F32, (2, 5, 6, 4)), TensorType(F32, (1, 24, 32)))),
                Sample(cls((3, 2), (2, 1), (1, 2), 6, 2, padding=((1, 2), (0, 1))),
                       (TensorType(F32, (2, 5, 6, 4)), TensorType(F32, (2, 1, 12, 8)))))


class ReduceWindow(Op, frozen=True):
    """Combines the elements of each window along every axis; padding counts as the identity of the reduction."""

    name: ClassVar[str] = "reduce_window"
    kind: str
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def infer(self, *types: Type) -> Type:
        x, = operands(self, types, 1)
        check_reduction(self, self.kind, x.dtype)
        if not len(self.window) == len(self.strides) == len(self.padding) == len(self.dilation) == x.rank:
            raise CompileError(f"reduce_window: window, strides, padding, dilation must have {x.rank} entries")
        if min((*self.window, *self.strides, *self.dilation), default=1) < 1 or any(min(p) < 0 for p in self.padding):
            raise CompileError("reduce_window: window, strides, dilation must be positive, padding not negative")
        sizes = tuple((n + low + high - ((k - 1) * d + 1)) // s + 1 for n, k, s, (low, high), d
                      in zip(x.shape, self.window, self.strides, self.padding, self.dilation))
        if any(bounds(n)[1] < 0 for n in sizes):
            raise CompileError(f"reduce_window: the window {self.window} is larger than the padded input {x}")
        return TensorType(x.dtype, sizes)

    def evaluate(self, inputs: Sequence[Array], binding: Binding) -> Array:
        x = inputs[0]
        wide = x.astype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind not in "iu" else x
        fill = reduction_identity(self.kind, dtype_of(wide.dtype))
        padded = _dilate_and_pad(wide[None, None], (1,) * x.ndim, self.padding, fill)
        windows = window_view(padded, self.window, self.strides, self.dilation)[0, 0]
        axes = tuple(range(x.ndim, 2 * x.ndim))
        with np.errstate(all="ignore"):
            value = REDUCTIONS[self.kind].reduce(windows, axis=axes, dtype=wide.dtype) if self.kind in (
                "sum", "prod") else REDUCTIONS[self.kind].reduce(windows, axis=axes, initial=fill)
        return np.asarray(value).astype(x.dtype)

    @classmethod
    def samples(cls) -> tuple[Sample, ...]:
        x = (TensorType(F32, (2, 5, 6)),)
        return (Sample(cls("max", (1, 2, 3), (1, 2, 1), ((0, 0), (0, 1), (1, 1)), (1, 1, 1)), x),
                Sample(cls("sum", (1, 3, 2), (1, 1, 2), ((0, 0), (1, 1), (0, 0)), (1, 1, 2)), x))
