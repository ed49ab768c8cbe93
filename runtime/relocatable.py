"""Turns the object code of a compiled model into that of an ahead-of-time artifact, without compiling again.

What changes between the two is the model's description (csrc/abi.h: tw_model) and the names of symbols: the prefix of
the public functions, the model's name, its constants (more bytes when a golden section was added; inside the object
when they are embedded). `specialize` edits these in the relocatable file: changed tables are appended to it, and new
texts and embedded constants come as one new section. Of several variants of a model, each is such an object: their
descriptions point to one another, and one of them has the public functions.

Assumes an ELF64 little-endian object with RELA relocations that defines `<prefix>_model` with its fields for pointers
relocated; anything else is an ArtifactError. Stateless. The same input gives the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from msgspec import Struct

from tilewright.ir.errors import ArtifactError
from tilewright.runtime.elf_file import HEADER, SECTION, SYMBOL

RELOCATION = struct.Struct("<QQq")
SYMBOL_TABLE, STRING_TABLE, PROGRAM_DATA, RELOCATIONS, EXTENDED_INDICES = 2, 3, 1, 4, 18
ALLOCATED, GLOBAL_OBJECT, HIDDEN = 2, 0x11, 2
ALIGNMENT = 64

LOCAL, GLOBAL_UNDEFINED = 0, 0x10

# Offsets of fields of tw_model.
NAME, TARGET, CONSTANTS_BYTES, CONSTANTS_DIGEST, CONSTANTS, GOLDEN_OFFSET, GOLDEN_BYTES = 8, 16, 64, 72, 80, 136, 144
FIRST_VARIANT, NEXT_VARIANT, MODEL_SIZE = 160, 168, 176


class Section(Struct):
    """A section's header fields, and its content where that has changed."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int
    content: bytes | None = None


class Description(Struct, frozen=True):
    """What an artifact says of itself that the in-process object does not. `target`: '' leaves what it says; `embedded`: the
    constants, or None; `variants`: the prefixes of the symbols of all variants, the best one first, with that of this object
    at `position`; none for a model without others, whose symbols begin with its name."""

    name: str
    constants_bytes: int
    constants_digest: str
    golden_offset: int = 0
    golden_bytes: int = 0
    embedded: bytes | memoryview | None = None
    target: str = ""
    variants: tuple[str, ...] = ()
    position: int = 0

    @property
    def prefix(self) -> str:
        return self.variants[self.position] if self.variants else self.name


def specialize(object_code: bytes, prefix: str, description: Description) -> bytes:
    """The object with every symbol `<prefix>_*` renamed to `<description.prefix>_*` and the description filled in."""
    try:
        return _Editor(object_code, prefix, description).run()
    except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"object code: cannot be made an artifact: {error}") from error


class _Editor:
    def __init__(self, code: bytes, prefix: str, description: Description) -> None:
        self.code = code
        self.prefix = prefix
        self.description = description
        self.header = list(HEADER.unpack_from(code))
        offset, count = self.header[6], self.header[12]
        self.sections = [Section(*SECTION.unpack_from(code, offset + i * SECTION.size)) for i in range(count)]
        tables = [s for s in self.sections if s.type == SYMBOL_TABLE]
        if len(tables) != 1 or any(s.type == EXTENDED_INDICES for s in self.sections):
            raise ArtifactError(f"object code: found {len(tables)} symbol tables, expected one plain one")
        self.symbols = tables[0]
        self.strings = self.sections[self.symbols.link]

    def run(self) -> bytes:
        entries = self._symbol_entries()
        names = bytearray(self._content(self.strings))
        model = self._rename(entries, names)
        texts, places = self._texts()
        number = self._add_section(texts)
        added = len(entries)
        entries.append((len(names), GLOBAL_OBJECT, HIDDEN, number, 0, len(texts)))
        names += f"{self.description.prefix}_description\0".encode()
        pointers = {field: (added, place) for field, place in places.items()}
        self._describe(model[3], model[4], pointers | self._point_to_variants(entries, names))
        self.strings.content = bytes(names)
        self.symbols.content = b"".join(SYMBOL.pack(*entry) for entry in entries)
        return self._assemble()

    # --- reading -----------------------------------------------------------------------------------------------------

    def _content(self, section: Section) -> bytes:
        if section.content is not None:
            return section.content
        if section.offset + section.size > len(self.code):
            raise ArtifactError(f"object code: truncated: a section ends at byte {section.offset + section.size}")
        return self.code[section.offset:section.offset + section.size]

    def _symbol_entries(self) -> list[tuple[int, ...]]:
        return list(SYMBOL.iter_unpack(self._content(self.symbols)))

    # --- editing -----------------------------------------------------------------------------------------------------

    def _rename(self, entries: list[tuple[int, ...]], names: bytearray) -> tuple[int, ...]:
        """Gives the prefixed symbols that are defined here their new names; returns the model's entry."""
        model: tuple[int, ...] | None = None
        for index, entry in enumerate(entries):
            text = bytes(names[entry[0]:names.index(0, entry[0])]).decode()
            if not text.startswith(self.prefix + "_") or entry[3] == 0:
                continue
            if text == f"{self.prefix}_model":
                model = entry
            hidden = entry[1] >> 4 != LOCAL and self.description.prefix != self.description.name  # of a variant: not for callers
            entries[index] = (len(names), entry[1], HIDDEN if hidden else entry[2], *entry[3:])
            names += f"{self.description.prefix}_{text.removeprefix(self.prefix + '_')}\0".encode()
        if model is None or model[5] < MODEL_SIZE:
            raise ArtifactError(f"object code: it does not define a whole {self.prefix}_model",
                                hint="compile it for ahead-of-time use")
        return model

    def _texts(self) -> tuple[bytes, Mapping[int, int]]:
        """The new section's content, and for each pointer of the model where in it the pointed-to thing lies."""
        embedded = self.description.embedded
        content = bytearray()
        places: dict[int, int] = {}
        if embedded is not None:
            places[CONSTANTS] = 0
            content += embedded
        target = ((TARGET, self.description.target),) if self.description.target else ()
        for field, text in ((NAME, self.description.name), (CONSTANTS_DIGEST, self.description.constants_digest), *target):
            places[field] = len(content)
            content += text.encode() + b"\0"
        return bytes(content), places

    def _point_to_variants(self, entries: list[tuple[int, ...]], names: bytearray) -> dict[int, tuple[int, int]]:
        """Symbols for the first variant and the one after this, which other objects define; none where there are no others."""
        variants, position = self.description.variants, self.description.position
        found = {FIRST_VARIANT: variants[0]} if position > 0 else {}
        if position + 1 < len(variants):
            found[NEXT_VARIANT] = variants[position + 1]
        pointers = {}
        for field, prefix in found.items():
            pointers[field] = (len(entries), 0)
            entries.append((len(names), GLOBAL_UNDEFINED, HIDDEN, 0, 0, 0))
            names += f"{prefix}_model\0".encode()
        return pointers

    def _add_section(self, content: bytes) -> int:
        names = self.sections[self.header[13]]
        table = self._content(names)
        names.content = table + b".rodata.tilewright\0"
        self.sections.append(Section(len(table), PROGRAM_DATA, ALLOCATED, 0, 0, len(content), 0, 0, ALIGNMENT, 0, content))
        return len(self.sections) - 1

    def _describe(self, section_number: int, start: int, pointers: Mapping[int, tuple[int, int]]) -> None:
        """Writes the model's numbers, and its pointers: (symbol, distance from it) for each field."""
        section = self.sections[section_number]
        data = bytearray(self._content(section))
        description = self.description
        for field, value in ((CONSTANTS_BYTES, description.constants_bytes), (GOLDEN_OFFSET, description.golden_offset),
                             (GOLDEN_BYTES, description.golden_bytes)):
            struct.pack_into("<q", data, start + field, value)
        section.content = bytes(data)
        table = next((s for s in self.sections if s.type == RELOCATIONS and s.info == section_number), None)
        if table is None:
            raise ArtifactError("object code: the model's description has no relocations")
        rows = {row[0]: row for row in RELOCATION.iter_unpack(self._content(table))}
        if start + NAME not in rows:
            raise ArtifactError("object code: the model's name is not relocated")
        kind = rows[start + NAME][1] & 0xFFFFFFFF
        for field, (symbol, place) in pointers.items():
            rows[start + field] = (start + field, symbol << 32 | kind, place)
        table.content = b"".join(RELOCATION.pack(*rows[offset]) for offset in sorted(rows))

    # --- writing -----------------------------------------------------------------------------------------------------

    def _assemble(self) -> bytes:
        """The file: what was there, then the changed sections, then the table of sections."""
        parts, position = [self.code], len(self.code)
        for section in self.sections:
            if section.content is None:
                continue
            padding = -position % max(section.alignment, 1)
            parts += [b"\0" * padding, section.content]
            section.offset, section.size = position + padding, len(section.content)
            position = section.offset + section.size
        padding = -position % 8
        parts.append(b"\0" * padding)
        self.header[6], self.header[12] = position + padding, len(self.sections)
        for s in self.sections:
            parts.append(SECTION.pack(s.name, s.type, s.flags, s.address, s.offset, s.size, s.link, s.info, s.alignment,
                                      s.entry_size))
        parts[0] = HEADER.pack(*self.header) + self.code[HEADER.size:]
        return b"".join(parts)
