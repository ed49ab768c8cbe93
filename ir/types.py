"""Element types as one table, and the types of values.

A row of `DTYPES` is all that the system knows of a dtype: NumPy's, C's and LLVM's spelling, its width and limits.
The formats of less than 16 bits that quantized models store are kept as ml_dtypes keeps them, a byte an element: values of
these are moved, and their bytes read as `u8`, but nothing computes with them.
`index` is the dtype of sizes and positions: 64 bits wide, with bounds that are proved so that it never wraps; it has
no arrays of its own in a user's program.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from msgspec import Struct

from .dims import Dim, DimLike, format_dim, is_static
from .errors import CompileError


class DType(Struct, frozen=True, eq=False):
    """One element type. There is one object for each, so they are compared by identity. `kind` is 'b' bool, 'i' signed, 'u' unsigned,
    'f' float, 'x' index, 's' stored only."""

    name: str
    kind: str
    bits: int
    numpy: np.dtype
    c: str
    llvm: str
    code: int

    @property
    def bytes(self) -> int:
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iux"

    @property
    def is_bool(self) -> bool:
        return self.kind == "b"

    @property
    def is_stored(self) -> bool:
        """Whether nothing computes with it: only its bytes are known."""
        return self.kind == "s"

    @property
    def is_signed(self) -> bool:
        return self.kind in "ifx"

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (dtype_named, (self.name,))

    @property
    def lowest(self) -> int | float | bool:
        """The least value: the identity of a maximum (minus infinity for floats)."""
        if self.is_float:
            return float("-inf")
        if self.is_bool:
            return False
        return int(np.iinfo(self.numpy).min)

    @property
    def highest(self) -> int | float | bool:
        """The greatest value: the identity of a minimum (infinity for floats)."""
        if self.is_float:
            return float("inf")
        if self.is_bool:
            return True
        return int(np.iinfo(self.numpy).max)


_BF16 = np.dtype(ml_dtypes.bfloat16)
# name, kind, bits, NumPy, C, LLVM, code in csrc/abi.h (-1: never crosses the ABI)
DTYPES: dict[str, DType] = {row[0]: DType(*row) for row in (
    ("bool", "b", 8, np.dtype(np.bool_), "bool", "i8", 0),
    ("i8", "i", 8, np.dtype(np.int8), "int8_t", "i8", 1),
    ("i16", "i", 16, np.dtype(np.int16), "int16_t", "i16", 2),
    ("i32", "i", 32, np.dtype(np.int32), "int32_t", "i32", 3),
    ("i64", "i", 64, np.dtype(np.int64), "int64_t", "i64", 4),
    ("u8", "u", 8, np.dtype(np.uint8), "uint8_t", "i8", 5),
    ("u16", "u", 16, np.dtype(np.uint16), "uint16_t", "i16", 6),
    ("u32", "u", 32, np.dtype(np.uint32), "uint32_t", "i32", 7),
    ("u64", "u", 64, np.dtype(np.uint64), "uint64_t", "i64", 8),
    ("f16", "f", 16, np.dtype(np.float16), "tw_float16", "half", 9),
    ("bf16", "f", 16, _BF16, "tw_bfloat16", "bfloat", 10),
    ("f32", "f", 32, np.dtype(np.float32), "float", "float", 11),
    ("f64", "f", 64, np.dtype(np.float64), "double", "double", 12),
    *((name, "s", 8, np.dtype(getattr(ml_dtypes, numpy)), "uint8_t", "i8", code) for code, (name, numpy) in enumerate((
        ("f8e4m3fn", "float8_e4m3fn"), ("f8e4m3fnuz", "float8_e4m3fnuz"), ("f8e5m2", "float8_e5m2"),
        ("f8e5m2fnuz", "float8_e5m2fnuz"), ("f8e8m0", "float8_e8m0fnu"), ("f4e2m1", "float4_e2m1fn"),
        ("int4", "int4"), ("uint4", "uint4"), ("int2", "int2"), ("uint2", "uint2")), 13)),
    ("index", "x", 64, np.dtype(np.int64), "int64_t", "i64", -1),
)}

BOOL, I8, I16, I32, I64 = (DTYPES[n] for n in ("bool", "i8", "i16", "i32", "i64"))
U8, U16, U32, U64 = (DTYPES[n] for n in ("u8", "u16", "u32", "u64"))
F16, BF16, F32, F64 = (DTYPES[n] for n in ("f16", "bf16", "f32", "f64"))
INDEX = DTYPES["index"]
ARRAY_DTYPES: tuple[DType, ...] = tuple(d for d in DTYPES.values() if d.kind not in "sx")
STORED_DTYPES: tuple[DType, ...] = tuple(d for d in DTYPES.values() if d.is_stored)
_BY_NUMPY = {d.numpy: d for d in (*ARRAY_DTYPES, *STORED_DTYPES)}


def dtype_named(name: str) -> DType:
    """The dtype of that name in the IR's text (`f32`)."""
    try:
        return DTYPES[name]
    except KeyError:
        raise CompileError(f"unknown dtype {name!r}; known are {', '.join(DTYPES)}") from None


def dtype_of(spelling: object) -> DType:
    """The dtype for a NumPy dtype, a NumPy spelling ('float32') or one of ours ('f32')."""
    if isinstance(spelling, DType):
        return spelling
    if isinstance(spelling, str) and spelling in DTYPES:
        return DTYPES[spelling]
    if isinstance(spelling, str) and spelling == "bfloat16":
        return BF16
    known = _BY_NUMPY.get(spelling) if isinstance(spelling, np.dtype) else None
    if known is not None:
        return known
    try:
        found = np.dtype(spelling)  # type: ignore[call-overload]
    except TypeError:
        raise CompileError(f"{spelling!r} is not a dtype") from None
    if found.newbyteorder("=") in _BY_NUMPY:
        return _BY_NUMPY[found.newbyteorder("=")]
    supported = ", ".join(str(d.numpy) for d in ARRAY_DTYPES)
    raise CompileError(f"dtype {found} is not supported; supported are {supported}")


class TensorType(Struct, frozen=True):
    """An array: dtype and shape. A size is an `int`, or a `Dim` where it is symbolic."""

    dtype: DType
    shape: tuple[DimLike, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(is_static(d) for d in self.shape)

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape as integers; an internal error where a size is symbolic."""
        for size in self.shape:
            if not isinstance(size, int):
                raise CompileError(f"a static shape is needed here, found {self}")
        return tuple(int(d) for d in self.shape)

    @property
    def elements(self) -> DimLike:
        total: DimLike = 1
        for size in self.shape:
            total = total * size
        return total

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(format_dim(d) for d in self.shape)}]"

    __repr__ = __str__


class TupleType(Struct, frozen=True):
    """The type of a node with several results."""

    items: tuple[Type, ...]

    def __str__(self) -> str:
        return f"({', '.join(str(t) for t in self.items)})"

    __repr__ = __str__


Type = TensorType | TupleType


def scalar_type(dtype: DType) -> TensorType:
    return TensorType(dtype, ())


__all__ = ["DType", "DTYPES", "TensorType", "TupleType", "Type", "Dim", "dtype_named", "dtype_of", "scalar_type"]
