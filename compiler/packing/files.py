"""Packing problems as files: the CSV of the MiniMalloc benchmark, one item a line.

Columns, in any order: id, lower, upper, size; where present alignment and hint (an offset, or -1 for none). Other columns, and ids,
are text that is kept. Written back, a file has the same lines and a last column `offset`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from ..ir.errors import ArgumentError
from .packer import LARGEST, Item

NEEDED = ("id", "lower", "upper", "size")
OFFSET = "offset"


class PackingFile(Struct, frozen=True):
    """`hints` has an offset for each item, or is empty."""

    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    items: tuple[Item, ...]
    hints: tuple[int, ...]

    def name(self, number: int) -> str:
        return self.lines[number][self.columns.index("id")]


def read_packing(path: Path) -> PackingFile:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ArgumentError(f"{path}: is no text, expected a CSV file with the columns {', '.join(NEEDED)}") from None
    try:
        table = [(number, [cell.strip() for cell in line]) for number, line in enumerate(csv.reader(io.StringIO(text)), 1) if line]
    except csv.Error as error:
        raise ArgumentError(f"{path}: {error}") from None
    columns = tuple(table[0][1]) if table else ()
    _check_columns(path, columns)
    lines, items, hints = [], [], []
    for number, cells in table[1:]:
        if len(cells) != len(columns):
            raise ArgumentError(f"{path}:{number}: {len(cells)} columns, expected {len(columns)} as in the first line")
        lines.append(tuple(cells))
        row = dict(zip(columns, cells))
        items.append(_item(f"{path}:{number}", row))
        hints.append(_number(f"{path}:{number}", row, "hint", -1) if row.get("hint") else -1)
    _check_total(path, items)
    return PackingFile(columns, tuple(lines), tuple(items), tuple(hints) if hints and min(hints) >= 0 else ())


def with_offsets(file: PackingFile, offsets: Sequence[int]) -> str:
    """The text of the file with a column `offset`, in the place of one that it had."""
    kept = [place for place, column in enumerate(file.columns) if column != OFFSET]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(file.columns[place] for place in kept), OFFSET])
    writer.writerows([*(line[place] for place in kept), str(offset)] for line, offset in zip(file.lines, offsets))
    return text.getvalue()


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [column for column in NEEDED if column not in columns]
    if missing:
        raise ArgumentError(f"{path}: has no column {missing[0]!r}, found {', '.join(columns) or 'nothing'}, expected the first line "
                            f"to name {', '.join(NEEDED)}")
    twice = [column for column in columns if list(columns).count(column) > 1]
    if twice:
        raise ArgumentError(f"{path}: has the column {twice[0]!r} twice")
    if "gaps" in columns:
        raise ArgumentError(f"{path}: has a column 'gaps': items that are not alive all the time are not supported",
                            hint="leave the column out: items then keep their memory from lower to upper")


def _item(where: str, row: dict[str, str]) -> Item:
    lower, upper = _number(where, row, "lower", -LARGEST), _number(where, row, "upper", -LARGEST)
    if lower >= upper:
        raise ArgumentError(f"{where}: lower is {lower} and upper is {upper}, expected upper > lower",
                            hint="upper is the first moment at which the item is no longer alive")
    return Item(lower, upper, _number(where, row, "size", 1), _number(where, row, "alignment", 1) if row.get("alignment") else 1)


def _number(where: str, row: dict[str, str], column: str, least: int) -> int:
    text = row[column]
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19 or not least <= int(text) <= LARGEST:
        raise ArgumentError(f"{where}: {column} is {text!r}, expected a whole number from {least} to {LARGEST}")
    return int(text)


def _check_total(path: Path, items: Sequence[Item]) -> None:
    total = sum(item.size + item.alignment for item in items)
    if total > LARGEST:
        raise ArgumentError(f"{path}: the sizes and alignments of all items sum to {total}, expected at most {LARGEST}")
