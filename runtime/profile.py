"""What a profiled call tells: which launch took how long, what each thread did when, and whose time that was.

A profiled call leaves for each thread a track of events (csrc/run.h): the starts and ends of its waits, and on the calling
thread the number of the kernel after each launch. `read_call` makes stretches of time of them. Which launch of the program
an event belongs to follows from the order in which the program may launch its kernels (`Flow`): kernels serve many
launches, and loops run a launch many times.

Guarantees: every event is attributed, to the launch that the order allows or, where tracks are incomplete, to the first
one of its kernel; times are those of the calling thread, from the end of one launch to the end of the next. Knows plain
numbers only: what a launch computes is handed in (`LaunchFacts`), and may be missing (artifacts do not carry it).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct, field

from tilewright.ir.errors import ArgumentError

START, ARRIVE, LEAVE = -1, -2, -3   # tw_event_kind; others are the number of a kernel that has ended
CAPACITY = 1 << 16                  # events kept of one thread's call
WAITING = "wait"
GROUPINGS = ("kernel", "node", "op")


class Source(Struct, frozen=True):
    """A node of the source in a launch: its name, its op, the floating operations, and its share of the launch's time."""

    name: str
    op: str
    operations: int
    share: float


class LaunchFacts(Struct, frozen=True):
    """What a launch does, in numbers. `kernel` counts the program's kernels; `bytes`: read and written at least."""

    kernel: int
    strategy: str
    sources: tuple[Source, ...] = ()
    operations: int = 0
    bytes: int = 0


class Flow(Struct, frozen=True):
    """The orders in which launches may follow one another: those that may come first, and after each those that may be
    next."""

    first: tuple[int, ...]
    following: tuple[tuple[int, ...], ...]


class Facts(Struct, frozen=True):
    """The launches of a program at given sizes."""

    launches: tuple[LaunchFacts, ...]
    flow: Flow


class Piece(Struct, frozen=True):
    """A stretch of a thread's time, in nanoseconds of the system's clock. `kernels`: what ran, several where threads do not
    meet in between; none while it waits or between launches. `position`: of the first of them in the order of the call."""

    start: int
    end: int
    kernels: tuple[int, ...] = ()
    waits: bool = False
    position: int = -1


class Call(Struct, frozen=True):
    """One call: `launches` as (kernel, start, end) in order, and the tracks of the threads."""

    launches: tuple[tuple[int, int, int], ...]
    tracks: tuple[tuple[Piece, ...], ...] = ()

    @property
    def seconds(self) -> float:
        return sum(end - start for _, start, end in self.launches) * 1e-9


class KernelTime(Struct, frozen=True):
    """Time of one kernel in a profiled call, as the calling thread saw it."""

    name: str
    seconds: float


class Row(Struct, frozen=True):
    """A line of a table: seconds and launches of a call. Operations and bytes are 0 where they are not known."""

    name: str
    seconds: float
    share: float
    launches: float
    operations: float = 0
    bytes: float = 0

    @property
    def operations_per_second(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0


class Profile(Struct, frozen=True):
    """Profiled calls: the last one's result, what each took, and tables of whose time that was. Prints as a table."""

    name: str
    result: Any
    threads: int
    kernel_names: tuple[str, ...]
    calls: tuple[Call, ...]
    facts: Facts | None = None

    @property
    def seconds(self) -> float:
        """The time of a call: the sum of what its launches take in the median."""
        return sum(row.seconds for row in self.by("kernel"))

    @property
    def kernels(self) -> tuple[KernelTime, ...]:
        """The time of every kernel in a call, in the order of the program."""
        rows = {row.name: row.seconds for row in self.by("kernel")}
        return tuple(KernelTime(name, rows.get(name, 0.0)) for name in self.kernel_names)

    def launches(self) -> tuple[tuple[float, float], ...]:
        """Seconds and runs of each launch of the program in a call, each in the median of the calls; without facts, of each
        kernel."""
        count = len(self.kernel_names) if self.facts is None else len(self.facts.launches)
        seconds = np.zeros((len(self.calls), count))
        runs = np.zeros((len(self.calls), count))
        for number, call in enumerate(self.calls):
            for place, (_, start, end) in zip(self.places(call), call.launches):
                seconds[number, place] += (end - start) * 1e-9
                runs[number, place] += 1
        return tuple((float(a), float(b)) for a, b in zip(np.median(seconds, axis=0), np.median(runs, axis=0)))

    def places(self, call: Call) -> list[int]:
        """Which launch of the program each launch of a call is; without facts, which kernel."""
        kernels = [kernel for kernel, _, _ in call.launches]
        return kernels if self.facts is None else follow(self.facts, kernels)

    def by(self, grouping: str) -> tuple[Row, ...]:
        """A table by 'kernel', by 'node' of the source or by its 'op', the slowest first."""
        if grouping not in GROUPINGS:
            raise ArgumentError(f"by: found {grouping!r}, expected one of {', '.join(GROUPINGS)}")
        totals: dict[str, list[float]] = {}
        for place, (seconds, runs) in enumerate(self.launches()):
            for name, share, operations, moved in self._parts(place, grouping):
                entry = totals.setdefault(name, [0.0, 0.0, 0.0, 0.0])
                for index, value in enumerate((seconds * share, runs, operations * runs, moved * runs)):
                    entry[index] += value
        whole = sum(entry[0] for entry in totals.values()) or 1.0
        rows = [Row(name, entry[0], entry[0] / whole, *entry[1:]) for name, entry in totals.items()]
        return tuple(sorted(rows, key=lambda row: -row.seconds))

    def _parts(self, place: int, grouping: str) -> Iterable[tuple[str, float, float, float]]:
        """Whose a launch is: name, share of its time, operations, bytes."""
        if self.facts is None:
            yield (self.kernel_names[place] if grouping == "kernel" else "unknown"), 1.0, 0.0, 0.0
            return
        launch = self.facts.launches[place]
        if grouping == "kernel":
            yield self.kernel_names[launch.kernel], 1.0, launch.operations, launch.bytes
            return
        if not launch.sources:
            yield f"({launch.strategy})", 1.0, launch.operations, launch.bytes
        merged: dict[str, tuple[float, float]] = {}
        for source in launch.sources:
            name = source.name if grouping == "node" else source.op
            share, operations = merged.get(name, (0.0, 0.0))
            merged[name] = share + source.share, operations + source.operations
        for name, (share, operations) in merged.items():
            yield name, share, operations, launch.bytes * share

    def table(self, grouping: str = "kernel", most: int | None = None) -> str:
        """The table as text."""
        return "\n".join(table_lines(self.by(grouping), grouping, self.facts is not None, most))

    def trace(self) -> dict[str, Any]:
        """All calls as Chrome trace events, a track for each thread, which Perfetto and chrome://tracing open."""
        return trace_of(self)

    def headline(self) -> str:
        """The time of a call, in a line."""
        median = statistics.median(call.seconds for call in self.calls)
        counted = f"median of {len(self.calls)} calls" if len(self.calls) > 1 else "one call"
        return f"{self.name}: {median * 1e3:.4f} ms, {counted} on {self.threads} thread{'s' * (self.threads > 1)}"

    def __str__(self) -> str:
        return f"{self.headline()}\n{self.table()}"


# --- events ----------------------------------------------------------------------------------------------------------


def read_call(tracks: Sequence[bytes], nanoseconds: Sequence[int]) -> Call:
    """A call from the events of its threads. Where there are none (an interpreter), or they found no room, from the time of
    each kernel, as if each had been launched once, in order."""
    events = [np.frombuffer(track, np.int64).reshape(-1, 2).tolist() for track in tracks]
    if not events or any(len(track) >= CAPACITY for track in events):
        ends = np.cumsum([0, *nanoseconds]).tolist()
        return Call(tuple((kernel, start, end) for kernel, (start, end) in enumerate(itertools.pairwise(ends))))
    launches, caller, met = _read_caller(events[0])
    others = tuple(_read_other(track, met) for track in events[1:])
    return Call(tuple(launches), (tuple(caller), *others))


class _Meeting(Struct):
    """When the calling thread worked and waited for the others; the kernels that ran since the last meeting become known
    behind it. `position`: of the first of them in the order of the call."""

    began: int
    arrived: int
    left: int
    kernels: tuple[int, ...] = ()
    position: int = -1


def _read_caller(events: Sequence[Sequence[int]]) -> tuple[list[tuple[int, int, int]], list[Piece], list[_Meeting]]:
    """The launches, the calling thread's pieces, and the meetings of the threads."""
    launches: list[tuple[int, int, int]] = []
    pieces: list[Piece] = []
    meetings: list[_Meeting] = []
    began = last = events[0][0] if events else 0
    loose = 0            # launches since the last meeting, after which the threads did not meet
    is_open = False      # the last meeting may yet be the end of a launch; else a condition was read there
    for time, what in events:
        if what == ARRIVE:
            kernels = tuple(kernel for kernel, _, _ in launches[len(launches) - loose:])
            meetings.append(_Meeting(began, time, time, kernels, len(launches) - loose if loose else -1))
            is_open = True
        elif what == LEAVE and meetings:
            meetings[-1].left = began = time
        elif what >= 0:
            if is_open:
                meeting, is_open = meetings[-1], False
                meeting.position = meeting.position if loose else len(launches)
                meeting.kernels = (*meeting.kernels, what)
                pieces.append(Piece(meeting.began, meeting.arrived, (what,), position=len(launches)))
                loose = 0
            else:
                pieces.append(Piece(began, time, (what,), position=len(launches)))
                began, loose = time, loose + 1
            launches.append((what, last, time))
            last = time
    waits = [Piece(meeting.arrived, meeting.left, waits=True) for meeting in meetings]
    return launches, sorted([*pieces, *waits], key=lambda piece: piece.start), meetings


def _read_other(events: Sequence[Sequence[int]], meetings: Sequence[_Meeting]) -> tuple[Piece, ...]:
    """Another thread's pieces: it meets the calling thread as often, and in the same order."""
    pieces: list[Piece] = []
    began = arrived = events[0][0] if events else 0
    following = iter(meetings)
    for time, what in events:
        if what == ARRIVE:
            arrived = time
        elif what == LEAVE:
            meeting = next(following, _Meeting(0, 0, 0))
            if meeting.kernels:
                pieces.append(Piece(began, arrived, meeting.kernels, position=meeting.position))
            pieces.append(Piece(arrived, time, waits=True))
            began = time
    return tuple(pieces)


# --- which launch of the program an event is -----------------------------------------------------------------------------


def follow(facts: Facts, kernels: Sequence[int]) -> list[int]:
    """The launch of the program that each launched kernel is, by an order that the flow allows. Where it allows none, the
    first launch of the kernel."""
    back: list[dict[int, int]] = []  # of each event: the launches that it may be, and one that may have been before
    candidates: Mapping[int, int] = dict.fromkeys(facts.flow.first, -1)
    for kernel in kernels:
        possible = {place: before for place, before in candidates.items() if facts.launches[place].kernel == kernel}
        if not possible:
            first = {launch.kernel: place for place, launch in reversed([*enumerate(facts.launches)])}
            return [first.get(kernel, 0) for kernel in kernels]
        back.append(possible)
        candidates = {place: before for before in reversed(possible) for place in reversed(facts.flow.following[before])}
    places: list[int] = []
    place = next(iter(back[-1])) if back else -1
    for possible in reversed(back):
        places.append(place)
        place = possible[place]
    return places[::-1]


class _Block(Struct):
    """A part of a program: what may come first and last in it, and whether it may launch nothing."""

    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    empty: bool = True


def flow_of(steps: Sequence[Any], count: int) -> Flow:
    """The flow of a program of `count` launches from its steps as JSON: the number of a launch; ["repeat", extent, steps];
    ["while", condition steps, steps]; ["if", steps, steps]."""
    following: list[dict[int, None]] = [{} for _ in range(count)]

    def link(before: _Block, after: _Block) -> None:
        for place in before.last:
            following[place].update(dict.fromkeys(after.first))

    def sequence(left: _Block, right: _Block) -> _Block:
        link(left, right)
        return _Block([*left.first, *(right.first if left.empty else ())], [*right.last, *(left.last if right.empty else ())],
                      left.empty and right.empty)

    def block(parts: Sequence[Any]) -> _Block:
        found = _Block()
        for part in parts:
            found = sequence(found, single(part))
        return found

    def single(step: Any) -> _Block:
        if isinstance(step, int):
            return _Block([step], [step], False)
        kind, one, two = step
        if kind == "if":
            then, other = block(one), block(two)
            return _Block([*then.first, *other.first], [*then.last, *other.last], then.empty or other.empty)
        condition, body = (block(one) if kind == "while" else _Block()), block(two)
        round_ = sequence(body, condition)
        link(round_, round_)
        return sequence(condition, _Block(round_.first, round_.last, True))

    whole = block(steps)
    return Flow(tuple(dict.fromkeys(whole.first)), tuple(map(tuple, following)))


# --- text and traces -------------------------------------------------------------------------------------------------


def table_lines(rows: Sequence[Row], grouping: str, rates: bool, most: int | None = None) -> list[str]:
    """Lines of text; `rates` says whether operations and bytes are known."""
    shown = rows if most is None else rows[:most]
    head = f"{'ms':>10} {'share':>7} {'launches':>8}" + (f" {'GFLOP/s':>8} {'GB/s':>7}" if rates else "") + f"  {grouping}"
    lines = [head]
    for row in shown:
        rate = f" {row.operations_per_second * 1e-9:8.2f} {row.bytes_per_second * 1e-9:7.2f}" if rates else ""
        lines.append(f"{row.seconds * 1e3:10.4f} {100 * row.share:5.1f} % {row.launches:8g}{rate}  {row.name}")
    if len(shown) < len(rows):
        rest = rows[len(shown):]
        lines.append(f"{sum(row.seconds for row in rest) * 1e3:10.4f} {100 * sum(row.share for row in rest):5.1f} %  in {len(rest)} more")
    lines.append(f"{sum(row.seconds for row in rows) * 1e3:10.4f} ms total")
    return lines


def trace_of(profile: Profile) -> dict[str, Any]:
    """See `Profile.trace`."""
    calls_track = profile.threads
    events = [_meta("process_name", 0, profile.name)]
    events += [_meta("thread_name", thread, f"thread {thread}" + " (caller)" * (thread == 0)) for thread in range(profile.threads)]
    events.append(_meta("thread_name", calls_track, "calls"))
    calls = [call for call in profile.calls if call.launches]
    origin = min((piece.start for call in calls for track in (*call.tracks, (_whole(call),)) for piece in track), default=0)
    for number, call in enumerate(calls):
        events.append(_span(calls_track, _whole(call), origin, f"call {number}", "call", {}))
        events += _call_events(profile, call, origin)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"model": profile.name, "threads": profile.threads}}


def _whole(call: Call) -> Piece:
    return Piece(call.launches[0][1], call.launches[-1][2])


def _call_events(profile: Profile, call: Call, origin: int) -> Iterable[dict[str, Any]]:
    places = profile.places(call) if profile.facts is not None else []
    bare = tuple(Piece(start, end, (kernel,), position=position) for position, (kernel, start, end) in enumerate(call.launches))
    for thread, track in enumerate(call.tracks or (bare,)):
        for piece in track:
            if piece.waits:
                yield _span(thread, piece, origin, WAITING, WAITING, {})
                continue
            name = " + ".join(profile.kernel_names[kernel] for kernel in piece.kernels)
            if profile.facts is None:
                yield _span(thread, piece, origin, name, "kernel", {"position": piece.position})
                continue
            place = places[piece.position]
            launch = profile.facts.launches[place]
            nodes = list(dict.fromkeys(source.name for source in launch.sources))
            yield _span(thread, piece, origin, name, launch.strategy,
                        {"launch": place, "nodes": nodes, "operations": launch.operations, "bytes": launch.bytes})


def _meta(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": 1, "tid": thread, "name": what, "args": {"name": name}}


def _span(thread: int, piece: Piece, origin: int, name: str, category: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A complete event; its times are in microseconds."""
    return {"ph": "X", "pid": 1, "tid": thread, "name": name, "cat": category, "ts": (piece.start - origin) / 1e3,
            "dur": max(piece.end - piece.start, 0) / 1e3, "args": arguments}
