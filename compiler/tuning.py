"""Measures which register tile is fastest for each contraction of a program, and remembers it.

A contraction of static sizes is compiled alone with each of a few dozen tiles (rows of accumulators, columns of a panel) and
run on one thread, the candidates in turn, so that whatever else the machine does meets all of them; the least time of each
counts. A tile takes the place of the model's choice (`tiles.py`) only if it is faster by 3 % at least, and again so when the two
are measured against one another alone. What was found is a record: an input of the build like any other, so that the same record
gives the same code, on any machine.

Assumes that this machine runs the target's code. Guarantees: never more than the seconds given, by one shape's measurement;
what there was no time for stays as the model chose it and is measured by the next run. Symbolic sizes, and contractions that
accumulate in another dtype, are not tuned.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from .build import OBJECT_PREFIX, capabilities, generate, lower_checked, resolved, segment_digest, target_text
from .cost import count
from .ir.caps import Caps, TunedTile
from .ir.dims import DimLike, ceildiv, product
from .ir.errors import CompileError
from .ir.graph import Builder, Graph, Node, attribute_names
from .ir.ops.compute import PackedConv, PackedDot, accumulator_dtype
from .ir.ops.control import Param
from .ir.ops.winograd import WinogradConv
from .ir.types import DTYPES, DType, TensorType
from .options import Environment, Options
from .pipeline import run_passes
from .runtime.artifact import write_bytes
from .runtime.executable import Executable

VERSION = 1
WORTH = 0.97          # of the time of the model's choice, below which another tile takes its place
LEAST_ROUNDS = 3
MOST_ROUNDS = 40
CONFIRMING_ROUNDS = 8
FEW_PRODUCTS = 6      # accumulators below which no tile hides the latency of its own sums
MOST_VECTORS = 4
NARROW_VECTORS = 8    # where there is one row
MOST_COPIES = 64      # of the weights, which runs take in turn
SHORTER = 3           # tiles tried for a width: the highest that fit
QUIET = Environment(0, None, 0, "llvm", None)

Key = tuple[int, int, str]  # rows of the left operand, columns of the result, dtype
Measure = Callable[[Sequence[Callable[[], float]], float], list[float]]


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """Contractions that were measured together, since one choice serves them (`TunedTile`); `measured` names each. `tile`: rows
    and columns of what is to be used, None where the model's choice stays; `gain`: how much longer that took."""

    rows: int
    columns: int
    dtype: str
    tile: tuple[int, int] | None
    gain: float
    measured: tuple[str, ...]

    @property
    def key(self) -> Key:
        return self.rows, self.columns, self.dtype


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured for a target."""

    version: int
    target: str
    entries: tuple[Entry, ...] = ()

    def tiles(self) -> tuple[TunedTile, ...]:
        """What the compiler is to use, in an order that does not depend on that of measuring."""
        return tuple(TunedTile(*entry.key, *entry.tile) for entry in sorted(self.entries, key=lambda entry: entry.key)
                     if entry.tile is not None)

    def text(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"


# --- records ---------------------------------------------------------------------------------------------------------


def empty_record(target: str) -> Record:
    return Record(VERSION, target_text(target).partition(" ")[2])


def read_record(text: str, target: str, where: str) -> Record:
    """A record from text; CompileError where it is none, or one for another target."""
    try:
        record = msgspec.json.decode(text, type=Record)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise CompileError(f"{where}: is no tuning record: {error}", hint="let --tune SECONDS write a new one") from None
    wanted = empty_record(target)
    if record.version != VERSION:
        raise CompileError(f"{where}: found a tuning record of version {record.version}, expected {VERSION}", hint="tune again")
    if record.target != wanted.target:
        raise CompileError(f"{where}: found a tuning record for {record.target}, expected one for {wanted.target}",
                           hint="a record serves the target that it was measured on")
    caps = capabilities(target)
    for entry in record.entries:
        if entry.dtype not in DTYPES or entry.tile is not None and not fits(entry.tile, entry.columns, DTYPES[entry.dtype], caps):
            raise CompileError(f"{where}: the tile {entry.tile} for {entry.rows} x {entry.columns} {entry.dtype} does not fit this target",
                               hint="tune again")
    return record


def load_record(path: Path, target: str) -> Record:
    try:
        return read_record(path.read_text(encoding="utf-8"), target, str(path))
    except OSError as error:
        raise CompileError(f"{path}: cannot be read: {error.strerror or error}", hint="--tune SECONDS writes it") from None
    except UnicodeError:
        raise CompileError(f"{path}: is no tuning record: it is no text", hint="let --tune SECONDS write a new one") from None


def save_record(record: Record, path: Path) -> None:
    write_bytes(path, record.text().encode())


# --- what can be tuned -----------------------------------------------------------------------------------------------


class Group(Struct, eq=False):
    """The contractions of a program that one choice serves: the different ones among them, and all their multiply-adds.
    `height`: the least number of rows that any of their results has."""

    key: Key
    members: dict[str, Node]
    work: int
    height: int


def groups_of(graph: Graph, options: Options, caps: Caps) -> list[Group]:
    """The contractions of static sizes, those with the most work first; without those whose panels Winograd's algorithm uses too,
    which is not measured."""
    packed, _ = run_passes(graph, options, caps, QUIET, until="pack_operands")
    found: dict[Key, Group] = {}
    left_out: set[Key] = set()
    graphs = [packed]
    for inner in graphs:
        for node in inner.nodes():
            values = (getattr(node.op, name) for name in attribute_names(type(node.op)))
            graphs.extend(value for value in values if isinstance(value, Graph))
            if not isinstance(node.op, (PackedDot, PackedConv, WinogradConv)):
                continue
            batch = node.op.batch if isinstance(node.op, PackedDot) else 0
            height = product(node.shape[batch:-1])
            rows = height if isinstance(node.op, PackedDot) else product(node.inputs[0].shape[:-1])
            columns, work = _columns(node), count(node)[1]
            if not (isinstance(rows, int) and isinstance(height, int) and isinstance(columns, int) and isinstance(work, int)):
                continue
            key = (rows, columns, str(node.dtype))
            if isinstance(node.op, WinogradConv) or accumulator_dtype(node.dtype) != node.dtype or node.op.step > 1:
                left_out.add(key)
            elif work and all(isinstance(n, int) for operand in node.inputs for n in operand.shape):
                group = found.setdefault(key, Group(key, {}, 0, height))
                group.members.setdefault(_name(node), node)
                group.work, group.height = group.work + work, min(group.height, height)
    return sorted((group for key, group in found.items() if key not in left_out), key=lambda group: -group.work)


def _columns(node: Node) -> DimLike:
    """What panels are chosen for: the columns of a group."""
    return node.shape[-1] // (node.op.groups if isinstance(node.op, (PackedConv, WinogradConv)) else 1)


def _name(node: Node) -> str:
    """A contraction by all that decides its time but the panels."""
    depth = node.inputs[1].shape[-2]
    strides = f" strides {node.op.strides}" if isinstance(node.op, PackedConv) else ""
    return f"{node.op.spelling} {node.inputs[0].type} depth {depth}{strides} {node.type}"


def candidates(rows: int, columns: int, dtype: DType, caps: Caps) -> tuple[tuple[int, int], ...]:
    """Tiles worth a try: each width of a panel that the columns fill, with the highest tiles that fit the registers."""
    lanes = caps.lanes(dtype)
    widest = NARROW_VECTORS if rows == 1 else MOST_VECTORS
    found = []
    for vectors in range(1, min(widest, -(-columns // lanes)) + 1):
        most = max(1, min(rows, (caps.vector_registers - 1 - vectors) // vectors))
        heights = [height for height in range(most, max(0, most - SHORTER), -1) if height * vectors >= FEW_PRODUCTS or height == rows]
        found += [(height, vectors * lanes) for height in heights or [most]]
    return tuple(found)


def fits(tile: tuple[int, int], columns: int, dtype: DType, caps: Caps) -> bool:
    """Whether a tile stays in the registers, beside a row of the panel and the broadcast of the left operand."""
    rows, width = tile
    vectors, rest = divmod(width, caps.lanes(dtype))
    return rest == 0 < vectors and rows > 0 and (vectors == 1 or width < columns + caps.lanes(dtype)) \
        and (rows * vectors + vectors + 1 <= caps.vector_registers or rows == 1 and vectors <= NARROW_VECTORS)


# --- measuring -------------------------------------------------------------------------------------------------------


def tune(graph: Graph, target: str, options: Options, seconds: float, known: Record, measure: Measure | None = None) -> Record:
    """The record with what the graph's contractions gave in so many seconds."""
    caps = capabilities(target)
    ends = time.monotonic() + seconds
    entries = {entry.key: entry for entry in known.entries}
    groups = groups_of(graph, options, caps)
    if not groups:
        warnings.warn(f"{graph.name}: there is nothing to tune: no contraction of static sizes; dims={{...}} fixes symbolic ones",
                      stacklevel=2)
    waiting = [group for group in groups if group.key not in entries or not set(group.members) <= set(entries[group.key].measured)]
    for position, group in enumerate(waiting):
        left = ends - time.monotonic()
        if left <= 0:
            break
        entries[group.key] = _tune_one(group, target, caps, left / (len(waiting) - position), measure or measure_in_turn)
    return replace(known, entries=tuple(entries.values()))


def _tune_one(group: Group, target: str, caps: Caps, seconds: float, measure: Measure) -> Entry:
    rows, columns, dtype = group.key
    ends = time.monotonic() + seconds
    tiles: list[tuple[int, int] | None] = [None, *candidates(group.height, columns, DTYPES[dtype], caps)]  # None: the model's
    runs: list[Callable[[], float]] = []
    for tile in tiles:
        if len(runs) > 1 and time.monotonic() > ends - seconds / 2:
            break
        runs.append(_compiled(group, tile, target, caps))
    times = measure(runs, ends)
    best = min(range(len(runs)), key=times.__getitem__)
    gain, tile = 1.0, tiles[best]
    if tile is not None and times[best] < WORTH * times[0]:
        first, second = measure([runs[0], runs[best]], time.monotonic() + seconds / 4)
        gain = round(first / second, 3) if second < WORTH * first else 1.0
    return Entry(rows, columns, dtype, tile if gain > 1 else None, gain, tuple(sorted(group.members)))


def _compiled(group: Group, tile: tuple[int, int] | None, target: str, caps: Caps) -> Callable[[], float]:
    """The group's contractions alone with a tile, as something that runs each once and says how long that took."""
    tuned = caps if tile is None else replace(caps, tuned=(TunedTile(*group.key, *tile),))
    runs = [_compiled_node(node, None if tile is None else tile[1], target, tuned) for node in group.members.values()]
    return lambda: sum(run() for run in runs)


def _compiled_node(node: Node, width: int | None, target: str, caps: Caps) -> Callable[[], float]:
    left, right = (operand.tensor for operand in node.inputs)
    if width is not None:
        right = TensorType(right.dtype, (*right.shape[:-3], ceildiv(_columns(node), width), right.shape[-2], width))
    b = Builder()
    params = [b.add(Param(name, kind.dtype, kind.shape)) for name, kind in (("left", left), ("right", right))]
    graph = Graph("contraction", params, [b.add(node.op, *params)], ["result"])
    fused, _ = run_passes(graph, Options(), caps, QUIET, start="fuse")
    program, _ = lower_checked(fused, caps)
    compiled = generate(program, resolved(target), segment_digest(program))
    executable = Executable.from_object(compiled.object_code, symbol=f"{OBJECT_PREFIX}_model", threads=1)
    rows, panels = (_random(param.tensor) for param in params)
    out = np.empty([n for n in node.shape if isinstance(n, int)], node.dtype.numpy)
    # In a program other layers run in between: what they left in the near levels are the rows, and not these weights.
    copies = itertools.cycle([panels.copy() for _ in range(min(MOST_COPIES, 2 * caps.level2_bytes // max(1, panels.nbytes) + 1))])
    return lambda: executable.profile(rows, next(copies), out=out).seconds


def _random(kind: TensorType) -> np.ndarray[Any, Any]:
    shape = [int(n) for n in kind.shape if isinstance(n, int)]
    return np.random.default_rng(0).standard_normal(shape, np.float32).astype(kind.dtype.numpy)


def measure_in_turn(runs: Sequence[Callable[[], float]], ends: float) -> list[float]:
    """The least time of each, run in turn until that moment."""
    least = [float("inf")] * len(runs)
    rounds = 0
    while rounds < LEAST_ROUNDS or rounds < MOST_ROUNDS and time.monotonic() < ends:
        for number, run in enumerate(runs):
            least[number] = min(least[number], run())
        rounds += 1
    return least
