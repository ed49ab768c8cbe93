"""Tensors of a model file as NumPy arrays: initializers, attributes, and external data.

A file is data of strangers: every size, offset and length is checked before anything is allocated or read, external
data must lie inside the model's folder (symbolic links resolved), and what does not fit is a CompileError that names
the tensor. Assumes protobuf objects with ONNX's field names; imports nothing of the onnx package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from ...ir.errors import CompileError, UnsupportedError
from ...ir.types import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType
from ...ir.types import DTYPES as OURS

# ONNX's number of an element type -> its name there, ours, the protobuf field for elements that are not raw
ELEMENT_TYPES: dict[int, tuple[str, DType | None, str]] = {
    1: ("FLOAT", F32, "float_data"), 2: ("UINT8", U8, "int32_data"), 3: ("INT8", I8, "int32_data"),
    4: ("UINT16", U16, "int32_data"), 5: ("INT16", I16, "int32_data"), 6: ("INT32", I32, "int32_data"),
    7: ("INT64", I64, "int64_data"), 8: ("STRING", None, ""), 9: ("BOOL", BOOL, "int32_data"),
    10: ("FLOAT16", F16, "int32_data"), 11: ("DOUBLE", F64, "double_data"), 12: ("UINT32", U32, "uint64_data"),
    13: ("UINT64", U64, "uint64_data"), 14: ("COMPLEX64", None, ""), 15: ("COMPLEX128", None, ""),
    16: ("BFLOAT16", BF16, "int32_data"), 17: ("FLOAT8E4M3FN", OURS["f8e4m3fn"], "int32_data"),
    18: ("FLOAT8E4M3FNUZ", OURS["f8e4m3fnuz"], "int32_data"), 19: ("FLOAT8E5M2", OURS["f8e5m2"], "int32_data"),
    20: ("FLOAT8E5M2FNUZ", OURS["f8e5m2fnuz"], "int32_data"), 21: ("UINT4", OURS["uint4"], "int32_data"),
    22: ("INT4", OURS["int4"], "int32_data"), 23: ("FLOAT4E2M1", OURS["f4e2m1"], "int32_data"),
    24: ("FLOAT8E8M0", OURS["f8e8m0"], "int32_data"), 25: ("UINT2", OURS["uint2"], "int32_data"),
    26: ("INT2", OURS["int2"], "int32_data"), 27: ("FLOAT6E2M3", None, ""), 28: ("FLOAT6E3M2", None, ""),
}
# bits of an element in a file, where they are less than a byte; the first element lies lowest
PACKED_BITS = {"uint4": 4, "int4": 4, "f4e2m1": 4, "uint2": 2, "int2": 2}
DTYPES: dict[int, DType] = {code: dtype for code, (_, dtype, _) in ELEMENT_TYPES.items() if dtype is not None}
LARGEST = 1 << 48       # elements of one tensor
MOST_AXES = 64          # of one, as in NumPy
EXTERNAL = 1            # TensorProto.EXTERNAL


def element_dtype(code: int, what: str) -> DType:
    """The dtype for ONNX's number; `what` says whose."""
    if code not in ELEMENT_TYPES:
        raise CompileError(f"{what} has the unknown element type {code}")
    name, dtype, _ = ELEMENT_TYPES[code]
    if dtype is None:
        raise UnsupportedError(f"{what} has element type {name}, which is not supported",
                               hint=f"supported are {', '.join(ELEMENT_TYPES[c][0] for c in DTYPES)}")
    return dtype


def checked_shape(sizes: list[int], what: str) -> tuple[int, ...]:
    """The sizes as a shape; CompileError for a negative one, or for more axes or elements than any tensor may have."""
    if len(sizes) > MOST_AXES:
        raise UnsupportedError(f"{what} has {len(sizes)} axes; up to {MOST_AXES} are supported")
    total = 1
    for size in sizes:
        if size < 0:
            raise CompileError(f"{what} has a negative size: {sizes}")
        total *= max(size, 1)
    if total > LARGEST:
        raise CompileError(f"{what} has sizes {sizes}: more than 2**48 elements")
    return tuple(sizes)


class Folder(Struct, frozen=True):
    """Where external data may lie. None: a model from memory, which has no folder."""

    path: Path | None

    def read(self, location: str | bytes, offset: int, length: int, what: str) -> bytes:
        """`length` bytes of the file; everything about the place is checked first."""
        if self.path is None:
            raise CompileError(f"{what} lies in the file {location!r}, but the model was given as bytes",
                               hint="import the model by its path")
        if not isinstance(location, str):
            raise CompileError(f"{what} names the external file {location!r}, which is no text")
        root = self.path.resolve()
        pure = Path(location)
        if not location or pure.is_absolute() or "\\" in location or "\0" in location:
            raise CompileError(f"{what} names the external file {location!r}; a path inside the model's folder is needed")
        try:
            target = (root / pure).resolve()
            is_there = target.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name that no file can have
            reason = getattr(error, "strerror", None) or "its links form a circle"
            raise CompileError(f"{what} names the external file {location[:200]!r}, which cannot be found: {reason}") from None
        if not target.is_relative_to(root):
            raise CompileError(f"{what} names the external file {location!r}, which is outside the model's folder {root}")
        if not is_there:
            raise CompileError(f"{what} lies in the external file {target}, which is missing or not a plain file")
        size = target.stat().st_size
        if offset < 0 or offset + length > size:
            raise CompileError(f"{what} needs bytes {offset}..{offset + length} of {target}, which has {size} bytes")
        try:
            with target.open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise CompileError(f"{what} lies in the external file {target}, which cannot be read: {error.strerror}") from None
        except MemoryError:
            raise CompileError(f"{what} needs {length} bytes of {target}, which is more than there is memory") from None


def decode_tensor(tensor: Any, folder: Folder, owner: str = "", payload: memoryview | None = None) -> np.ndarray:
    """The tensor's elements. Its amount of data must be exactly what dtype and shape need. `payload`: its raw data, where that was
    taken out of it; the array is a view then."""
    what = f"tensor {tensor.name!r}" + (f" of {owner}" if owner else "") if tensor.name or not owner else \
        f"a tensor of {owner}"
    dtype = element_dtype(tensor.data_type, what)
    shape = checked_shape(list(tensor.dims), what)
    if tensor.HasField("segment"):
        raise UnsupportedError(f"{what} is stored in segments, which is not supported")
    count = 1
    for size in shape:
        count *= size
    raw: bytes | memoryview
    if tensor.data_location == EXTERNAL:
        raw = _external_bytes(tensor, folder, stored_bytes(dtype, count), what)
    elif tensor.HasField("raw_data"):
        raw = bytes(tensor.raw_data) if payload is None else payload
    else:
        return _typed_elements(tensor, dtype, shape, count, what)
    if len(raw) != stored_bytes(dtype, count):
        raise CompileError(f"{what}: {dtype}{list(shape)} needs {stored_bytes(dtype, count)} bytes, found {len(raw)}")
    if dtype.is_stored:
        return _unpacked(np.frombuffer(raw, dtype=np.uint8), dtype, count).reshape(shape)
    array = np.frombuffer(raw, dtype=np.uint8 if dtype.is_bool else dtype.numpy.newbyteorder("<"))
    return _native(array, dtype).reshape(shape)


def stored_bytes(dtype: DType, count: int) -> int:
    """What `count` elements take in a file."""
    return -(-count * PACKED_BITS[dtype.name] // 8) if dtype.name in PACKED_BITS else count * dtype.bytes


def _unpacked(data: np.ndarray, dtype: DType, count: int) -> np.ndarray:
    """One element a byte."""
    bits = PACKED_BITS.get(dtype.name, 8)
    if bits < 8:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        data = ((data[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)[:count]
    return np.ascontiguousarray(data).view(dtype.numpy)


def _native(array: np.ndarray, dtype: DType) -> np.ndarray:
    return np.not_equal(array, 0) if dtype.is_bool else array.astype(dtype.numpy, copy=False).view(dtype.numpy)


def _external_bytes(tensor: Any, folder: Folder, needed: int, what: str) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    numbers = {}
    for key, default in (("offset", 0), ("length", needed)):
        text = entries.get(key, str(default))
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise CompileError(f"{what}: the external {key} {text[:40]!r} is no number of bytes that a file has")
        numbers[key] = int(text)
    if numbers["length"] != needed:
        raise CompileError(f"{what}: dtype and shape need {needed} bytes, the external data has {numbers['length']}")
    return folder.read(entries.get("location", ""), numbers["offset"], needed, what)


def _typed_elements(tensor: Any, dtype: DType, shape: tuple[int, ...], count: int, what: str) -> np.ndarray:
    field = ELEMENT_TYPES[tensor.data_type][2]
    values: Sequence[Any] = getattr(tensor, field)
    expected = stored_bytes(dtype, count) if dtype.is_stored else count     # packed ones are bytes
    if len(values) != expected:
        raise CompileError(f"{what}: {dtype}{list(shape)} needs {expected} elements, found {len(values)} in {field}")
    if dtype.is_stored:
        return _unpacked(np.array(values, dtype=np.int64).astype(np.uint8), dtype, count).reshape(shape)
    if dtype.bits == 16 and dtype.is_float:      # stored as the bits of the number
        bits = np.array(values, dtype=np.int64).astype(np.uint16)
        return bits.view(dtype.numpy).reshape(shape)
    if dtype.is_bool:
        return np.asarray(np.array(values, dtype=np.int64).reshape(shape) != 0)
    wide = np.array(values, dtype=dtype.numpy if dtype.is_float or dtype.bits == 64 else np.int64)
    return wide.astype(dtype.numpy).reshape(shape)
