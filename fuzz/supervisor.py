"""Runs workers and outlives them: budget, progress, deaths, the final account.

A worker that dies by a signal, or does not answer for too long, is a finding: the case that it was running lies in
`current-N.case`. It is replaced by another one. Time is a worker's own, since on a busy machine the clock says nothing. Ctrl-C ends the
workers; what they had found and kept is on disk already.

Needs nothing of the compiler: whatever runs programs is in the workers.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from ..ir.errors import CompileError, RuntimeFailure
from ..runtime.artifact import write_bytes
from .settings import Finding, Settings, Tally, Yield
from .subject import Failure
from .time_limit import processor_seconds

GRACE_SECONDS = 30.0  # to start, to reduce what was found, to end
CASE_SECONDS = 60  # for one case in a process of its own
MOST_WAITING = 10  # times as long by the clock as a limit of processor time: other processes are at work, or a lock is never free
TRIAL = ".trial"  # what the file of a candidate ends with, while a failure is reduced
COMMAND = (sys.executable, "-m", "tilewright.fuzz.worker")


class Account(Struct):
    """What all workers did together."""

    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    tallies: dict[int, Tally] = field(default_factory=dict)
    deaths: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def programs(self) -> int:
        return sum(tally.programs for tally in self.tallies.values())

    @property
    def arcs(self) -> int:
        return max((tally.arcs for tally in self.tallies.values()), default=0)

    @property
    def corpus(self) -> int:
        return max((tally.corpus for tally in self.tallies.values()), default=0)

    def yields(self, table: str) -> dict[str, Yield]:
        """What came of each mutator or pass (`table`: the field of tallies), all workers together."""
        total: dict[str, Yield] = {}
        for tally in self.tallies.values():
            for name, part in getattr(tally, table).items():
                whole = total.setdefault(name, Yield())
                whole.tried, whole.gained, whole.found = (
                    whole.tried + part.tried, whole.gained + part.gained, whole.found + part.found)
        return total


class _Worker:
    """A process and what was last heard of it."""

    def __init__(self, index: int, folder: Path, settings: Settings, events: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        self.index = index
        self.ended = False
        self.done = False  # it has told its account, and has only to end
        self.killed = ""
        self.log = open(folder / f"worker-{index}.log", "ab")  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen([*COMMAND, "run", str(folder), msgspec.json.encode(settings).decode(), str(index)],
                                        stdout=subprocess.PIPE, stderr=self.log, start_new_session=True)
        self.hear()
        threading.Thread(target=self.listen, args=(events,), daemon=True).start()

    def hear(self) -> None:
        self.heard, self.spent = time.monotonic(), processor_seconds(self.process.pid)

    @property
    def silent(self) -> float:
        """Seconds of processor time since it was heard of."""
        return max(processor_seconds(self.process.pid) - self.spent, (time.monotonic() - self.heard) / MOST_WAITING)

    def listen(self, events: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                events.put((self, json.loads(line)))
            except ValueError:
                continue  # what a program under test printed
        self.process.wait()
        self.log.close()
        events.put((self, None))

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)


def fuzz(folder: Path, settings: Settings, heard: Callable[[Account], None]) -> Account:
    """Fuzzes within the budget; `heard` is called some times a second. KeyboardInterrupt ends it early, with the account."""
    account, began = Account(), time.monotonic()
    events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    workers = {i: _Worker(i, folder, shared(settings, i), events) for i in range(settings.workers)}
    try:
        while any(not worker.ended for worker in workers.values()):
            try:
                worker, event = events.get(timeout=0.25)
            except queue.Empty:
                pass
            else:
                if event is not None:
                    worker.hear()
                    worker.done = worker.done or event.get("event") == "done"
                    _note(account, worker, event)
                else:
                    worker.ended = True
                    follower = _buried(account, worker, folder, settings, time.monotonic() - began, events)
                    if follower is not None:
                        workers[worker.index] = follower
            account.seconds = time.monotonic() - began
            _watch(workers, settings)
            if settings.stop_at_first and account.findings:
                _stop(workers)
            heard(account)
    except KeyboardInterrupt:
        account.interrupted = True
    finally:
        _stop(workers)
        account.seconds = time.monotonic() - began
    return account


def shared(settings: Settings, index: int) -> Settings:
    """The part of the budget of one worker."""
    if not settings.iterations:
        return settings
    part = settings.iterations // settings.workers + (index < settings.iterations % settings.workers)
    return msgspec.structs.replace(settings, iterations=part)


def _note(account: Account, worker: _Worker, event: Mapping[str, Any]) -> None:
    fields = {name: value for name, value in event.items() if name != "event"}
    match event.get("event"):
        case "progress":
            tally = account.tallies.setdefault(worker.index, Tally())
            for name, value in fields.items():
                setattr(tally, name, value)
        case "finding":
            finding = msgspec.convert(fields, Finding)
            if all(known.signature != finding.signature for known in account.findings):
                account.findings.append(finding)
        case "done":
            account.tallies[worker.index] = msgspec.convert(fields["tally"], Tally)
            account.unreadable.update(fields["unreadable"])


def _watch(workers: Mapping[int, _Worker], settings: Settings) -> None:
    """Ends workers that have not been heard of: machine code that does not return."""
    for worker in workers.values():
        if not worker.ended and not worker.killed and worker.silent > 2 * settings.hang_seconds + GRACE_SECONDS:
            worker.killed = "hang"
            worker.stop(signal.SIGKILL)


def _buried(account: Account, worker: _Worker, folder: Path, settings: Settings, seconds: float,
            events: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> _Worker | None:
    """Notes why a worker ended; one that goes on in its place where it died before the budget was spent."""
    status = worker.process.returncode
    if status == 0 or status == -signal.SIGTERM:
        return None
    if status > 0:
        raise RuntimeFailure(f"a worker of the fuzzer ended with status {status}",
                             hint=f"its messages are in {folder / f'worker-{worker.index}.log'}")
    account.deaths += 1
    _report_death(account, worker, folder, settings, seconds)
    left = settings.seconds - seconds if settings.seconds else 0.0
    if worker.done or settings.stop_at_first or settings.seconds and left < 1 or account.deaths > 100:
        return None
    done = account.tallies.get(worker.index, Tally()).programs
    changed = msgspec.structs.replace(shared(settings, worker.index), seconds=left, seed=settings.seed + 1_000_003 * account.deaths)
    if settings.iterations:
        if changed.iterations <= done:
            return None
        changed = msgspec.structs.replace(changed, iterations=changed.iterations - done)
    return _Worker(worker.index, folder, changed, events)


def _report_death(account: Account, worker: _Worker, folder: Path, settings: Settings, seconds: float) -> None:
    """A finding of what the worker was running, reduced where it ends a process of its own by the same signal. Where it does not,
    somebody may have ended the worker, or what ran before left something behind."""
    current = folder / f"current-{worker.index}.case"
    failure = end_of(-worker.process.returncode, worker.killed)
    if worker.done:
        failure = Failure(failure.kind, "exit", f"{failure.message}, after its last program")
    if not current.exists() or _is_known(account, failure):
        return
    text, size = current.read_text(encoding="utf-8"), 0
    reproduced = failure.kind == "signal" and outcome_of(current).get("signature") == failure.signature
    if failure.kind == "signal" and not reproduced:
        failure = Failure(failure.kind, failure.stage, f"{failure.message}, not so when its case ran in a process of its own")
        if _is_known(account, failure):
            return
    target = folder / "findings" / f"{failure.label}.ir"
    write_bytes(target.with_suffix(".full.ir"), text.encode())
    if settings.reduce and reproduced:
        made = _reduced(target.with_suffix(".full.ir"), failure)
        if made.get("text"):
            text, size = made["text"], made["size"]
    write_bytes(target, text.encode())
    programs = account.tallies[worker.index].programs if worker.index in account.tallies else 0
    account.findings.append(Finding(failure.label, failure.signature, failure.kind, failure.stage, failure.message, round(seconds, 2),
                                    programs, size, text))


def _is_known(account: Account, failure: Failure) -> bool:
    return any(known.signature == failure.signature for known in account.findings)


def _reduced(file: Path, failure: Failure) -> dict[str, Any]:
    """What a process of its own makes of the case in the file; its last trial does not stay, however it ends."""
    try:
        return _asked("reduce", str(file), failure.signature, seconds=300)
    finally:
        file.with_suffix(TRIAL).unlink(missing_ok=True)


def end_of(number: int, killed: str = "") -> Failure:
    """The failure of a process that ended by a signal."""
    if killed or number == signal.SIGXCPU:
        return Failure("hang", "machine code", "the process did not answer and was ended")
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return Failure("signal", "machine code", f"the process ended by {name}")


def outcome_of(file: Path) -> dict[str, Any]:
    """The verdict on the case of a file, from a process of its own, which takes `CASE_SECONDS` of processor time at most."""
    return _asked("check", str(file), seconds=CASE_SECONDS * MOST_WAITING)


def _asked(*arguments: str, seconds: float) -> dict[str, Any]:
    try:
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        failure = end_of(0, killed="hang")
    else:
        if done.returncode == 0:
            answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return answer
        if done.returncode > 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise CompileError(said[-1] if said else f"the worker ended with status {done.returncode}")
        failure = end_of(-done.returncode)
    return {"outcome": "failure", "signature": failure.signature, "kind": failure.kind, "stage": failure.stage, "message": failure.message}


def _stop(workers: Mapping[int, _Worker]) -> None:
    for worker in workers.values():
        worker.stop()
    for worker in workers.values():
        try:
            worker.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.stop(signal.SIGKILL)
            worker.process.wait()


def regression_files(folder: Path) -> Iterator[Path]:
    """The cases in a folder, or the file itself."""
    if folder.is_dir():
        yield from sorted(p for p in folder.iterdir() if p.suffix in (".ir", ".case") and not p.name.endswith(".full.ir"))
    else:
        yield folder


def free_cores() -> int:
    return len(os.sched_getaffinity(0))
