"""The facts of a program's launches (`ir/facts.py`) as JSON beside its code, and read back at given sizes.

They are kept as one compressed text, which costs a look into the cache nothing: it is read when somebody asks. Sizes that
are symbolic stay text until then. Guarantees: what is read at the sizes of a call has plain numbers only.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from msgspec import Struct

from .ir.dims import DimLike, parse_dim
from .ir.errors import ArgumentError, Loc, TilewrightError
from .ir.facts import Facts, Operand, Work
from .ir.program import Branch, Launch, Loop, Program, Repeat, Step
from .runtime import profile

KEY = "launches"  # of a program's metadata
ONNX_NODE = re.compile(r"(?:.*: )?node (?P<name>'.*') \((?P<op>\w+)\)")


class Buffer(Struct, frozen=True):
    """An operand or result of a launch: `type` as text with its sizes, where it lies, how it is laid out."""

    name: str
    type: str
    elements: int
    space: str
    layout: str


class Source(Struct, frozen=True):
    """A node of the source within a launch: where it stands, its op there, floating operations, slots of arithmetic units, and
    its share of the launch."""

    name: str
    op: str
    operations: int
    slots: int
    share: float


class LaunchRecord(Struct, frozen=True):
    """A launch at given sizes. `kernel` counts the program's kernels; `rounds`: how often a call runs it, None where data
    decides; `shared`: launches that the kernel's code serves; `few`: its tile is one for few rows; see `ir/facts.py` for the rest."""

    kernel: int
    name: str
    strategy: str
    rounds: int | None
    shared: int
    tile: tuple[int, int] | None
    few: bool
    columns: int
    rows: int
    details: tuple[str, ...]
    general: bool
    in_place: bool
    schedule: tuple[str, ...]
    refused: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    sources: tuple[Source, ...]
    contract: str
    parallel: tuple[int, ...]
    lanes: int
    bits: int
    read: int
    written: int
    registers: tuple[str, ...]

    @property
    def operations(self) -> int:
        return sum(source.operations for source in self.sources)

    @property
    def slots(self) -> int:
        return sum(source.slots for source in self.sources)


# --- writing ---------------------------------------------------------------------------------------------------------


def describe_launches(program: Program) -> str:
    """All launches and their order, for a program's metadata."""
    numbers = {id(kernel): number for number, kernel in enumerate(program.kernels())}
    rows: list[dict[str, Any]] = []
    steps = _steps(program.steps, numbers, rows)
    return base64.b64encode(zlib.compress(json.dumps({"steps": steps, "rows": rows}).encode(), 1)).decode()


def _steps(steps: Sequence[Step], numbers: Mapping[int, int], rows: list[dict[str, Any]]) -> list[Any]:
    """As `profile.flow_of` reads them; rows are added to on the way."""
    found: list[Any] = []
    for step in steps:
        match step:
            case Launch(kernel=kernel, facts=facts):
                found.append(len(rows))
                rows.append({"kernel": numbers[id(kernel)], "name": kernel.name, **({} if facts is None else _facts_row(facts))})
            case Repeat(extent=extent, steps=inner):
                found.append(["repeat", _size(extent), _steps(inner, numbers, rows)])
            case Loop(condition_steps=first, steps=inner):
                found.append(["while", _steps(first, numbers, rows), _steps(inner, numbers, rows)])
            case Branch(then=then, otherwise=otherwise):
                found.append(["if", _steps(then, numbers, rows), _steps(otherwise, numbers, rows)])
    return found


def _facts_row(facts: Facts) -> dict[str, Any]:
    choice = facts.choice
    return {
        "strategy": choice.strategy, "tile": choice.tile, "low_tiles": choice.low_tiles, "rows": _size(facts.rows),
        "details": choice.details, "general": choice.general, "in_place": choice.in_place,
        "schedule": choice.schedule, "refused": choice.refused, "contract": facts.contract, "lanes": facts.lanes,
        "bits": facts.bits, "registers": facts.registers, "parallel": [_size(n) for n in facts.parallel],
        "read": _size(facts.read), "written": _size(facts.written),
        "buffers": [_buffer_row(operand) for operand in facts.operands], "work": [_work_row(work) for work in facts.work],
    }


def _buffer_row(operand: Operand) -> list[Any]:
    return [operand.name, operand.dtype, [_size(n) for n in operand.shape], operand.space, operand.layout]


def _work_row(work: Work) -> list[Any]:
    return [*source_of(work.loc, work.op), _size(work.operations), _size(work.slots), _size(work.weight)]


def _size(size: DimLike) -> int | str:
    return size if isinstance(size, int) else str(size)


def source_of(loc: Loc, op: str) -> tuple[str, str]:
    """The name of a node of the source, and its op: as an ONNX file has them, else the line of code and the op of the graph."""
    found = ONNX_NODE.fullmatch(loc.name)
    return (f"{found['name']} ({found['op']})", found["op"]) if found is not None else (str(loc), op)


# --- reading ---------------------------------------------------------------------------------------------------------


class Launches(Struct, frozen=True):
    """The launches of a program at given sizes, in its order, and which may follow which."""

    records: tuple[LaunchRecord, ...]
    flow: profile.Flow

    def for_profile(self) -> profile.Facts:
        return profile.Facts(tuple(_for_profile(record) for record in self.records), self.flow)


def read_launches(metadata: Mapping[str, Any], sizes: Mapping[str, int]) -> Launches:
    """The launches of a program at these sizes. ArgumentError where a size is missing."""
    data = json.loads(zlib.decompress(base64.b64decode(metadata[KEY])))
    rounds: dict[int, int | None] = {}
    _count_rounds(data["steps"], 1, sizes, rounds)
    serves = Counter(row["kernel"] for row in data["rows"])
    records = tuple(_record(row, rounds[number], serves[row["kernel"]], sizes) for number, row in enumerate(data["rows"]))
    return Launches(records, profile.flow_of(data["steps"], len(records)))


def _count_rounds(steps: Sequence[Any], times: int | None, sizes: Mapping[str, int], found: dict[int, int | None]) -> None:
    for step in steps:
        if isinstance(step, int):
            found[step] = times
            continue
        kind, one, two = step
        if kind == "repeat":
            extent = _number(one, sizes)
            _count_rounds(two, None if times is None else times * extent, sizes, found)
        else:
            _count_rounds(one, None, sizes, found)
            _count_rounds(two, None, sizes, found)


def _number(size: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    try:
        value = parse_dim(size, sizes)
    except (TilewrightError, ZeroDivisionError) as error:
        raise ArgumentError(f"the sizes {', '.join(sizes) or '(none)'} do not decide {size}", hint="give every symbolic size") from error
    assert isinstance(value, int)
    return value


def _record(row: Mapping[str, Any], rounds: int | None, serves: int, sizes: Mapping[str, int]) -> LaunchRecord:
    buffers = [(name, dtype, [_number(n, sizes) for n in shape], space, layout)
               for name, dtype, shape, space, layout in row.get("buffers", ())]
    work = [(name, op, *(_number(n, sizes) for n in numbers)) for name, op, *numbers in row.get("work", ())]
    whole = sum(entry[4] for entry in work) or 1
    result = buffers[-1][2] if buffers else []
    rows = _number(row.get("rows", 0), sizes)
    low = next((tuple(tile) for tile in row.get("low_tiles", ()) if rows <= tile[0]), None)
    tile, few = (tuple(row["tile"]), False) if low is None and row.get("tile") else (low, low is not None)
    return LaunchRecord(
        kernel=row["kernel"], name=row["name"], strategy=row.get("strategy", "unknown"), rounds=rounds, shared=serves,
        tile=tile, few=few, columns=result[-1] if result else 1, rows=rows or prod(result[:-1]),
        details=() if few else tuple(row.get("details", ())),
        general=row.get("general", False), in_place=row.get("in_place", False), schedule=tuple(row.get("schedule", ())),
        refused=tuple(row.get("refused", ())),
        buffers=tuple(Buffer(name, f"{dtype}[{', '.join(map(str, shape))}]", prod(shape), space, layout)
                      for name, dtype, shape, space, layout in buffers),
        sources=tuple(Source(name, op, operations, slots, weight / whole) for name, op, operations, slots, weight in work),
        contract=row.get("contract", "exact"), parallel=tuple(_number(n, sizes) for n in row.get("parallel", ())),
        lanes=row.get("lanes", 0), bits=row.get("bits", 32), read=_number(row.get("read", 0), sizes),
        written=_number(row.get("written", 0), sizes), registers=tuple(row.get("registers", ())),
    )


def _for_profile(record: LaunchRecord) -> profile.LaunchFacts:
    sources = tuple(profile.Source(s.name, s.op, s.operations, s.share) for s in record.sources)
    return profile.LaunchFacts(record.kernel, record.strategy, sources, record.operations, record.read + record.written)
