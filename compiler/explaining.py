"""What the compiler made of a program, for people: each launch with its source, its strategy, what it costs and takes.

Joins the facts that lowering wrote down (`launch_facts.py`), the model of the machine (`cost.py`) and, where there is one,
a profile. Guarantees: every figure is at one set of sizes, which the report names; nothing is measured here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct, json, to_builtins

from .cost import Demand, Forecast, Rates, forecast
from .ir.dims import parse_dim
from .ir.errors import ArgumentError, TilewrightError, UnsupportedError
from .launch_facts import KEY, Launches, LaunchRecord, read_launches
from .runtime.profile import Profile

NAME = re.compile(r"[^\W\d]\w*")
LEAST_USEFUL = 0.9   # of a register tile's work, below which it is worth a word
LEAST_OF_LIMIT = 0.01
MOST_SOURCES = 6     # of a launch, in text
FEW_LANES = 0.5      # of a vector register's, below which it is too


class LaunchExplanation(Struct, frozen=True):
    """A launch: its facts, seconds of one run as predicted and as measured, and what is known of why it is not faster."""

    number: int
    facts: LaunchRecord
    forecast: Forecast | None
    measured: float | None
    notes: tuple[str, ...]

    @property
    def runs(self) -> int:
        """How often a call runs it; once, where data decides."""
        return 1 if self.facts.rounds is None else self.facts.rounds

    @property
    def share_of_limit(self) -> float | None:
        """How near the measured time, else the predicted one, comes to the limit of the machine; 1 is the limit."""
        taken = self.measured or (self.forecast.predicted if self.forecast is not None else 0.0)
        return None if self.forecast is None or not taken else self.forecast.limit / taken


class Arena(Struct, frozen=True):
    """`bytes` of the values between kernels; no plan for this order of them needs less than `bound`, for any order not less than
    `order_bound` (None: that was not looked at)."""

    bytes: int
    bound: int
    order_bound: int | None = None

    def __str__(self) -> str:
        text = f"{self.bytes} bytes, "
        if self.bytes == self.order_bound:
            return text + "proven least for any order"
        if self.bytes == self.bound:
            text += "proven least for this order"
        else:
            text += f"at most {_share_above(self.bytes, self.bound)} above the least for this order, {self.bound} bytes or more"
        if self.order_bound is not None:
            text += f"; at most {_share_above(self.bytes, self.order_bound)} above the least for any order"
        return text


def _share_above(size: int, bound: int) -> str:
    return f"{100 * (size - bound) / max(bound, 1):.2f} %"


class Explanation(Struct, frozen=True):
    """A program at given sizes. Prints as text; `to_data` gives it for JSON."""

    name: str
    target: str
    sizes: dict[str, int]
    launches: tuple[LaunchExplanation, ...]
    kernels: int
    rates: Rates | None
    calls: int
    arena: Arena | None = None  # static sizes only

    @property
    def limit(self) -> float | None:
        """Seconds of a call at the limit of the machine."""
        return self._sum([None if launch.forecast is None else launch.forecast.limit * launch.runs for launch in self.launches])

    @property
    def predicted(self) -> float | None:
        return self._sum([None if launch.forecast is None else launch.forecast.predicted * launch.runs for launch in self.launches])

    @property
    def measured(self) -> float | None:
        return self._sum([None if launch.measured is None else launch.measured * launch.runs for launch in self.launches])

    @staticmethod
    def _sum(seconds: Sequence[float | None]) -> float | None:
        known = [value for value in seconds if value is not None]
        return sum(known) if known else None

    def slowest(self) -> tuple[LaunchExplanation, ...]:
        """The launches by the time that a call spends in them, as measured, else as predicted."""
        def taken(launch: LaunchExplanation) -> float:
            return launch.runs * (launch.measured or (launch.forecast.predicted if launch.forecast is not None else 0.0))

        return tuple(sorted(self.launches, key=lambda launch: -taken(launch)))

    def text(self, most: int | None = None) -> str:
        """As text; with `most`, of the slowest launches only."""
        shown = self.launches if most is None else self.slowest()[:most]
        lines = [*_head(self), *(line for launch in shown for line in ("", *_launch_lines(launch, self.rates)))]
        if len(shown) < len(self.launches):
            lines += ["", f"{len(self.launches) - len(shown)} more launches"]
        return "\n".join(lines)

    def to_data(self) -> dict[str, Any]:
        launches = []
        for launch in self.launches:
            data: dict[str, Any] = {"number": launch.number, **to_builtins(launch.facts), "operations": launch.facts.operations,
                                    "measured_seconds": launch.measured, "share_of_limit": launch.share_of_limit,
                                    "notes": list(launch.notes)}
            if launch.forecast is not None:
                data |= {"predicted_seconds": launch.forecast.predicted, "limit_seconds": launch.forecast.limit,
                         "bound": launch.forecast.bound}
            launches.append(data)
        return {"name": self.name, "target": self.target, "sizes": self.sizes, "kernels": self.kernels, "calls": self.calls,
                "limit_seconds": self.limit, "predicted_seconds": self.predicted, "measured_seconds": self.measured,
                "arena": None if self.arena is None else {**to_builtins(self.arena), "proven": self.arena.bytes == self.arena.bound},
                "machine": None if self.rates is None else to_builtins(self.rates), "launches": launches}

    def __str__(self) -> str:
        return self.text()


# --- making ----------------------------------------------------------------------------------------------------------


def launches_at(metadata: Mapping[str, Any], shapes: Sequence[Sequence[int]]) -> Launches:
    """The launches at the sizes of a call with inputs of these shapes."""
    return read_launches(metadata, sizes_of(metadata, shapes))


def explanation_of(metadata: Mapping[str, Any], values: Sequence[Any], sizes: Mapping[str, int], rates: Rates | None,
                   profile: Profile | None) -> Explanation:
    """The explanation at the sizes of the values, if there are any, else at the given ones; sizes that nobody gave are small."""
    if "schedule" in metadata:
        raise UnsupportedError(f"{metadata['name']}: explain: the predictions are of CPUs, and this runs on a simulated accelerator",
                               hint="tilewright schedule says what moves, `executable.measure` what a call did")
    if KEY not in metadata:
        raise UnsupportedError("explain: the program is interpreted, so nothing was chosen for a machine",
                               hint="unset TILEWRIGHT_BACKEND and compile again")
    names = size_names(metadata)
    unknown = sorted(set(sizes) - set(names))
    if unknown:
        raise ArgumentError(f"{metadata['name']}: explain: there is no size {unknown[0]}, expected one of {', '.join(names) or '(none)'}")
    shapes = [np.shape(value) for value in values] or metadata["sample_shapes"][-1]
    binding = {**sizes_of(metadata, shapes), **sizes}
    launches = read_launches(metadata, binding)
    measured = [None] * len(launches.records) if profile is None else [
        seconds / runs if runs else None for seconds, runs in profile.launches()]
    explained = []
    for number, (record, seconds) in enumerate(zip(launches.records, measured)):
        found = None if rates is None else forecast(demand_of(record), rates)
        explained.append(LaunchExplanation(number, record, found, seconds, notes_on(record, rates)))
    return Explanation(metadata["name"], metadata["target"], binding, tuple(explained), len(metadata["kernels"]), rates,
                       0 if profile is None else len(profile.calls), _arena_of(metadata))


def _arena_of(metadata: Mapping[str, Any]) -> Arena | None:
    bound = metadata.get("workspace_lower_bound")
    return None if bound is None else Arena(int(metadata["workspace"]), int(bound), metadata.get("workspace_order_bound"))


def size_names(metadata: Mapping[str, Any]) -> list[str]:
    """The symbols of the inputs' sizes, in order."""
    texts = [size for _, _, shape in metadata["inputs"] for size in shape if isinstance(size, str)]
    return list(dict.fromkeys(name for text in texts for name in NAME.findall(text) if name != "min"))


def sizes_of(metadata: Mapping[str, Any], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """What the shapes of a call's inputs say of the symbols. A size of one symbol is a line in it (a * n + b)."""
    found: dict[str, int] = {}
    pairs = [(size, extent) for (_, _, shape), given in zip(metadata["inputs"], shapes) for size, extent in zip(shape, given)
             if isinstance(size, str)]
    for size, extent in sorted(pairs, key=lambda pair: not NAME.fullmatch(pair[0])):
        names = set(NAME.findall(size)) - {"min"}
        if len(names) != 1 or names <= set(found):
            continue
        name = names.pop()
        try:
            start, step = parse_dim(size, {name: 0}), parse_dim(size, {name: 1})
        except (TilewrightError, ZeroDivisionError):
            continue
        assert isinstance(start, int) and isinstance(step, int)
        if step > start:
            found[name] = (extent - start) // (step - start)
    return found


def demand_of(record: LaunchRecord) -> Demand:
    return Demand(record.slots, record.bits, record.read, record.written, record.lanes, max(record.parallel, default=1),
                  useful_share(record))


def useful_share(record: LaunchRecord) -> float:
    """The share of a register tile's rows and columns that hold results: the last tiles are not full."""
    if record.tile is None or not record.rows * record.columns:
        return 1.0
    rows, columns = record.tile
    return record.rows / (-(-record.rows // rows) * rows) * (record.columns / (-(-record.columns // columns) * columns))


def notes_on(record: LaunchRecord, rates: Rates | None) -> tuple[str, ...]:
    """What was not done, and why where it is known."""
    notes = [f"left out, not shown to keep the meaning: {step}" for step in record.refused]
    threads = 1 if rates is None else rates.threads
    if record.strategy != "check" and not record.parallel:
        notes.append("serial: no loop of it is divided between threads")
    elif record.strategy != "check" and 1 <= max(record.parallel) < threads:
        notes.append(f"{max(record.parallel)} iterations for {threads} threads")
    if record.slots and not record.lanes:
        notes.append("not vectorized")
    elif record.slots and rates is not None and record.lanes < FEW_LANES * rates.lanes * 32 / max(record.bits, 32):
        notes.append(f"vectors of {record.lanes} lanes")
    if useful_share(record) < LEAST_USEFUL:
        notes.append(f"{100 * useful_share(record):.0f} % of the register tiles hold results, the rest is edges")
    if record.rounds is None:
        notes.append("runs as often as data decides; counted once")
    return tuple(notes)


# --- text ------------------------------------------------------------------------------------------------------------


def _head(explanation: Explanation) -> list[str]:
    sizes = ", ".join(f"{name}={size}" for name, size in explanation.sizes.items())
    lines = [f"{explanation.name} for {explanation.target}{f' at {sizes}' if sizes else ''}: {len(explanation.launches)} launches of "
             f"{explanation.kernels} kernels"]
    if explanation.arena is not None:
        lines.append(f"  arena: {explanation.arena}")
    rates = explanation.rates
    if rates is None:
        return [*lines, "  no prediction: this machine does not run the target's code"]
    moved = ", ".join(f"{level.reading * 1e-9:.0f}" for level in rates.levels)
    lines.append(f"  machine: {rates.threads} thread{'s' * (rates.threads > 1)} of {2 * rates.products * 1e-9:.0f} GFLOP/s in float32, "
                 f"{moved} GB/s read from near to far")
    times = [("limit", explanation.limit), ("predicted", explanation.predicted), ("measured", explanation.measured)]
    lines.append("  a call: " + ", ".join(f"{what} {seconds * 1e3:.4f} ms" for what, seconds in times if seconds is not None))
    return lines


def _launch_lines(launch: LaunchExplanation, rates: Rates | None) -> list[str]:
    facts = launch.facts
    times = []
    if launch.measured is not None:
        times.append(f"measured {launch.measured * 1e3:.4f} ms")
    if launch.forecast is not None:
        times += [f"predicted {launch.forecast.predicted * 1e3:.4f} ms", f"bound by {launch.forecast.bound}"]
    if launch.share_of_limit is not None and launch.share_of_limit >= LEAST_OF_LIMIT:
        times.append(f"{100 * launch.share_of_limit:.0f} % of the limit")
    rounds = "" if facts.rounds == 1 else f", {facts.rounds} times" if facts.rounds is not None else ", repeated"
    lines = [f"{launch.number}: {facts.name}{rounds}   {', '.join(times)}".rstrip(), f"   {_how(facts)}"]
    lines.append(f"   {_operation_text(facts.operations)}, reads {_byte_text(facts.read)}, writes {_byte_text(facts.written)}; "
                 f"{facts.contract}")
    arrays = [buffer for buffer in facts.buffers if buffer.elements != 1]
    lines += [f"   {buffer.name}: {buffer.type} {buffer.space}{f', {buffer.layout}' if buffer.layout else ''}" for buffer in arrays]
    if len(arrays) < len(facts.buffers):
        lines.append(f"   and {len(facts.buffers) - len(arrays)} single elements")
    shares: dict[str, float] = {}
    for source in facts.sources:
        shares[source.name] = shares.get(source.name, 0.0) + source.share
    for name, share in sorted(shares.items(), key=lambda pair: -pair[1])[:MOST_SOURCES]:
        lines.append(f"   from {name}" + (f" ({100 * share:.0f} %)" if len(shares) > 1 else ""))
    if len(shares) > MOST_SOURCES:
        lines.append(f"   from {len(shares) - MOST_SOURCES} more")
    return [*lines, *(f"   note: {note}" for note in launch.notes)]


def _how(facts: LaunchRecord) -> str:
    """Strategy, tile, lanes, threads, schedule."""
    parts = [facts.strategy]
    if facts.tile is not None:
        parts.append(f"register tile {facts.tile[0]} x {facts.tile[1]}" + (" for few rows" if facts.few else ""))
    elif facts.registers:
        parts.append(f"in registers {', '.join(facts.registers)}")
    parts.append(f"{facts.lanes} lanes" if facts.lanes else "scalar")
    parts.append(f"parallel over {max(facts.parallel)}" if facts.parallel else "serial")
    parts += facts.details
    if facts.general:
        parts.append("any size")
    if facts.shared > 1:
        parts.append(f"code shared by {facts.shared} launches")
    if facts.in_place:
        parts.append("in place")
    if facts.schedule:
        parts.append(" ".join(facts.schedule))
    return ", ".join(parts)


def _operation_text(count: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}FLOP"
    return f"{count} FLOP"


def _byte_text(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


# --- the machine's rates as text, to be kept -----------------------------------------------------------------------------


def rates_text(rates: Rates) -> str:
    return json.encode(rates).decode()


def rates_from(text: str) -> Rates:
    return json.decode(text, type=Rates)


__all__ = ["KEY", "Explanation", "LaunchExplanation", "explanation_of", "launches_at", "rates_from", "rates_text"]
