"""Reads symbols of ELF files, and finds out whether a shared library is whole before the system is asked to load it.

The dynamic loader maps a truncated file happily and dies later by a signal; so every range that its headers promise
is compared with the file's size here first. Bounds are checked; damage raises ArtifactError. Stateless.
"""

from __future__ import annotations

import struct

from msgspec import Struct

from tilewright.ir.errors import ArtifactError

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION = struct.Struct("<IIQQQQIIQQ")
SEGMENT = struct.Struct("<IIQQQQQQ")
SYMBOL = struct.Struct("<IBBHQQ")
SYMBOL_TABLE, DYNAMIC_SYMBOLS, NO_BITS = 2, 11, 8
MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}


class Symbol(Struct, frozen=True):
    name: str
    defined: bool
    hidden: bool
    local: bool


class ElfFile(Struct, frozen=True):
    """What is read of a file: machine, type (1 relocatable, 3 shared), symbols."""

    machine: str
    type: int
    symbols: tuple[Symbol, ...]

    def exported(self) -> list[str]:
        return [symbol.name for symbol in self.symbols if symbol.defined and not symbol.hidden and not symbol.local]


def read_elf(data: bytes | memoryview, what: str) -> ElfFile:
    """Parse an ELF file; `what` names it in errors. Prefers the dynamic symbols, which survive stripping."""
    try:
        return _read(memoryview(data), what)
    except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{what}: damaged ELF file: {error}") from error


def _read(data: memoryview, what: str) -> ElfFile:
    if bytes(data[:4]) != b"\x7fELF":
        raise ArtifactError(f"{what}: not an ELF file")
    if len(data) < HEADER.size:
        raise ArtifactError(f"{what}: truncated: {len(data)} bytes are too few for an ELF header")
    (
        identity,
        file_type,
        machine,
        _,
        _,
        segment_offset,
        section_offset,
        _,
        _,
        _,
        segment_count,
        _,
        section_count,
        _,
    ) = HEADER.unpack_from(data)
    if identity[4:6] != b"\x02\x01":
        raise ArtifactError(f"{what}: not a 64-bit little-endian ELF file")
    _check(data, section_offset, section_count * SECTION.size, what, "section table")
    _check(data, segment_offset, segment_count * SEGMENT.size, what, "segment table")
    for index in range(segment_count):
        _, _, offset, _, _, size, _, _ = SEGMENT.unpack_from(data, segment_offset + index * SEGMENT.size)
        _check(data, offset, size, what, f"segment {index}")
    sections = [SECTION.unpack_from(data, section_offset + index * SECTION.size) for index in range(section_count)]
    for index, section in enumerate(sections):
        if section[1] not in (0, NO_BITS):
            _check(data, section[4], section[5], what, f"section {index}")
    tables = [section for section in sections if section[1] in (SYMBOL_TABLE, DYNAMIC_SYMBOLS)]
    tables.sort(key=lambda section: section[1] != DYNAMIC_SYMBOLS)
    symbols = _read_symbols(data, tables[0], sections[tables[0][6]]) if tables else ()
    return ElfFile(MACHINES.get(machine, f"machine {machine}"), file_type, symbols)


def _check(data: memoryview, offset: int, size: int, what: str, part: str) -> None:
    if offset + size > len(data):
        raise ArtifactError(f"{what}: truncated: its {part} ends at byte {offset + size}, the file has {len(data)} bytes")


def _read_symbols(data: memoryview, table: tuple[int, ...], names: tuple[int, ...]) -> tuple[Symbol, ...]:
    strings = bytes(data[names[4] : names[4] + names[5]])
    symbols = []
    for offset in range(table[4] + SYMBOL.size, table[4] + table[5] - SYMBOL.size + 1, SYMBOL.size):
        name, info, other, section, _, _ = SYMBOL.unpack_from(data, offset)
        text = strings[name : strings.index(b"\0", name)].decode()
        symbols.append(Symbol(text, section != 0, other & 3 != 0, info >> 4 == 0))
    return tuple(symbols)
