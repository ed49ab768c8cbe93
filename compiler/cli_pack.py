"""`tilewright schedule --pack FILE.csv`: offsets for items with given lifetimes, or a proof that the capacity is too small."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .cli_shared import answer, write_out
from .ir.errors import UnsupportedError
from .packing import Item, Packing, fault_of, pack
from .packing.files import PackingFile, read_packing, with_offsets
from .runtime.artifact import write_bytes

OPTIONS = ("pack", "capacity", "output", "time_limit", "as_json")  # of the command `schedule` that --pack heeds


def pack_file(source: Path, capacity: int | None, output: Path | None, time_limit: float, as_json: bool) -> None:
    """Packs the items of a CSV file. Where no packing is found this is an error: whether one is impossible, and why, or time ran out."""
    _check_options()
    if capacity is None:
        raise click.UsageError("--capacity SIZE is missing: what must the items of --pack fit into?")
    file = read_packing(source)
    began = time.monotonic()
    found = _from_hints(file, capacity) or pack(file.items, capacity, seconds=time_limit)
    seconds = time.monotonic() - began
    if found.verdict != "packed":
        raise _refusal(source, file, capacity, found, seconds)
    fault = fault_of(file.items, found.offsets, capacity)
    if fault:
        raise AssertionError(f"the packing of {source} is wrong: {fault}")
    text = with_offsets(file, found.offsets)
    if output is None and not as_json:
        write_out(text)
        return
    if output is not None:
        write_bytes(output, text.encode())
    data: dict[str, Any] = {"file": str(source), "items": len(file.items), "capacity": capacity, "height": found.height,
                            "bound": found.bound, "nodes": found.nodes, "seconds": round(seconds, 3),
                            "offsets": list(found.offsets)}
    answer(as_json, data, [f"{source}: {len(file.items)} items packed into {found.height} of {capacity} bytes; no packing takes less "
                           f"than {found.bound} ({found.nodes} nodes, {seconds:.2f} s)", f"wrote {output}"])


def _check_options() -> None:
    """Refuses what says nothing of a file to pack."""
    context = click.get_current_context()
    for parameter in context.command.params:
        label = parameter.name or ""
        given = context.get_parameter_source(label) is ParameterSource.COMMANDLINE and context.params[label] is not None
        if given and label not in OPTIONS:
            name = parameter.opts[0] if isinstance(parameter, click.Option) else "MODEL"
            raise click.UsageError(f"{name} is for scheduling a model, --pack takes none: leave one of them out")


def _from_hints(file: PackingFile, capacity: int) -> Packing | None:
    """What the file itself proposes, if that is a packing."""
    if not file.hints or fault_of(file.items, file.hints, capacity):
        return None
    height = max(hint + item.size for hint, item in zip(file.hints, file.items))
    return Packing("packed", file.hints, height, fullest(file.items)[1], 0)


def _refusal(source: Path, file: PackingFile, capacity: int, found: Packing, seconds: float) -> Exception:
    moment, needed, numbers = fullest(file.items)
    if needed > capacity:
        names = ", ".join(file.name(number) for number in numbers[:8]) + ", ..." * (len(numbers) > 8)
        return UnsupportedError(f"{source}: no packing exists: at {moment} items of {needed} bytes are alive together, but the capacity is "
                                f"{capacity}", notes=(f"the items: {names}",))
    if found.verdict == "impossible":
        return UnsupportedError(f"{source}: no packing into {capacity} bytes exists, though never more than {needed} are alive together: "
                                f"all {found.nodes} nodes of the search tree were tried", hint="raise --capacity")
    return UnsupportedError(f"{source}: no packing into {capacity} bytes was found in {seconds:.1f} s ({found.nodes} nodes), nor a proof "
                            "that there is none", hint="raise --time-limit or --capacity")


def fullest(items: Sequence[Item]) -> tuple[int, int, list[int]]:
    """The moment at which most bytes are alive, these bytes, and the numbers of the items."""
    changes = sorted([(item.lower, 1, item.size) for item in items] + [(item.upper, 0, -item.size) for item in items])
    moment = most = alive = 0
    for at, _, size in changes:  # what ends at a moment comes before what begins there
        alive += size
        if alive > most:
            moment, most = at, alive
    return moment, most, [number for number, item in enumerate(items) if item.lower <= moment < item.upper]
