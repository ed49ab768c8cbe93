"""The large arrays of a model file, found where they lie, so that parsing does not copy them.

Protobuf copies every field, and once more when it is read: three times the memory of the weights, and most of the time that
reading a large model takes. `without_payloads` goes through the outermost fields of the file and takes out the raw data of large
initializers. What is left is parsed as usual.

Assumes nothing of the bytes. Guarantees: parsing what is left and putting the payloads back gives what parsing the whole gives; a
file that is not laid out as expected is left whole, so the parser says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterator

LARGE = 1 << 16  # bytes
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # fields of ModelProto, GraphProto and TensorProto
BYTES = 2  # the wire type of what has a length
WIDTHS = {1: 8, 5: 4}  # of the wire types of fixed width
MOST_VARINT = 10  # bytes


class _Unexpected(Exception):
    """The bytes are no message, or one that merges several."""


def without_payloads(data: bytes) -> tuple[bytes, dict[int, memoryview]]:
    """The file with the raw data of large initializers emptied, and that data by the initializer's number."""
    if len(data) < LARGE:
        return data, {}
    payloads: dict[int, memoryview] = {}
    try:
        rest = _emptied(memoryview(data), (GRAPH, INITIALIZER, RAW_DATA), payloads)
    except _Unexpected:
        return data, {}
    return (b"".join(rest), payloads) if payloads else (data, {})


def _emptied(message: memoryview, path: tuple[int, ...], payloads: dict[int, memoryview]) -> list[bytes | memoryview]:
    """The message's bytes without what large fields at the path hold. Recursion follows the path."""
    parts: list[bytes | memoryview] = []
    copied = number = 0
    for field, tag_end, start, end in _fields(message):
        if field != path[0]:
            continue
        if number and path[0] != INITIALIZER:
            raise _Unexpected  # the last one counts, or they are merged
        if end - start >= LARGE and len(path) == 1:
            parts += [message[copied:tag_end], b"\0"]
            copied = end
            payloads[len(payloads)] = message[start:end]
        elif end - start >= LARGE:
            found: dict[int, memoryview] = {}
            inner = _emptied(message[start:end], path[1:], found)
            if found:
                parts += [message[copied:tag_end], _varint(sum(map(len, inner))), *inner]
                copied = end
                if path[0] == INITIALIZER:
                    found = dict.fromkeys([number], *found.values())  # a tensor has one payload
                payloads |= found
        number += 1
    return [*parts, message[copied:]]


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """The number of each field, where its tag ends, and where its content lies."""
    at, size = 0, len(message)
    while at < size:
        tag, tag_end = _read_varint(message, at)
        kind = tag & 7
        if kind == BYTES:
            length, start = _read_varint(message, tag_end)
            end = start + length
        elif kind in WIDTHS:
            start, end = tag_end, tag_end + WIDTHS[kind]
        elif kind == 0:
            start, end = tag_end, _read_varint(message, tag_end)[1]
        else:
            raise _Unexpected  # groups, which ONNX has not
        if end > size:
            raise _Unexpected
        yield tag >> 3, tag_end, start, end
        at = end


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = 0
    for shift, byte in enumerate(message[at:at + MOST_VARINT]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise _Unexpected


def _varint(value: int) -> bytes:
    """The shortest spelling."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


__all__ = ["without_payloads"]
