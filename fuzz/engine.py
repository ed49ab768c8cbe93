"""The loop of one worker: take a case, change it, check it, keep it where it reached something new.

The rule of joint mutation (Tzer, OOPSLA 2022, section 3): the program of a corpus entry is mutated until `patience` mutations
in a row gained no coverage, then its sequence of passes once. What gained is stored without the passes that changed nothing.

`settings.MODES` are the steps of the ablation: what is left out of the engine, and nothing else.
"""

from __future__ import annotations

import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from .corpus import Corpus, Entry, case_text, finding_text, write
from .coverage import Coverage
from .reduce import reduced
from .settings import MODES, Finding, Settings, Tally
from .subject import AnySubject, Failure, Refused, Verdict

REDUCTION_SECONDS = 20.0
MUTANTS_A_SEED = 2


class _Hang(BaseException):
    """A check takes too long. Not an Exception: no handler of the program under test shall catch it."""


class Fuzzer:
    """One worker. `found` is called with every failure of a new signature, once it is reduced and written."""

    def __init__(self, subjects: Sequence[AnySubject], corpus: Corpus, settings: Settings, worker: int,
                 found: Callable[[Finding], None], coverage: Coverage | None = None) -> None:
        self.subjects = subjects
        self.corpus = corpus
        self.settings = settings
        self.mode = MODES[settings.mode]
        self.worker = worker
        self.found = found
        self.rng = np.random.default_rng([settings.seed, worker])
        self.coverage = Coverage() if coverage is None else coverage
        self.tally = Tally()
        self.signatures: Counter[str] = Counter()
        self.started = time.monotonic()
        self.allowed = {s.name: frozenset(m for m in s.mutators() if self.mode.domain or not m.startswith("domain."))
                        for s in subjects}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def over(self) -> bool:
        """Whether the budget is spent, or the first failure was all that was asked for."""
        settings = self.settings
        return bool(settings.seconds and self.seconds >= settings.seconds
                    or settings.iterations and self.tally.programs >= settings.iterations
                    or settings.stop_at_first and self.signatures)

    def run(self) -> Iterator[Tally]:
        """Fuzzes until the budget is spent; the tally after each program, for whoever shows progress."""
        try:
            yield from self.programs()
        finally:
            self.coverage.stop()

    def programs(self) -> Iterator[Tally]:
        yield from self.resumed()
        seeds = self.seeds()
        while not self.over():
            subject, case, mutator, parent = next(seeds, None) or self.next()
            gained = self.program(subject, case, mutator)
            if parent is not None:
                parent.streak = 0 if gained else parent.streak + 1
            yield self.tally
            if self.tally.programs % 256 == 0:
                for entry in list(self.corpus.refresh()):
                    self.program(entry.subject, entry.case, "corpus", keep=False)

    def resumed(self) -> Iterator[Tally]:
        """What lies in the folder already is run once, to know what it reaches."""
        for entry in list(self.corpus.refresh()):
            if self.over():
                return
            self.program(entry.subject, entry.case, "corpus", keep=False)
            yield self.tally

    def seeds(self) -> Iterator[tuple[AnySubject, Any, str, Entry | None] | None]:
        """The seeds of all subjects in turn, divided among the workers, where nothing was known; after each, None for a while: the
        search begins while there are seeds left."""
        if self.corpus.entries:
            return
        waiting = [(subject, subject.seeds()) for subject in self.subjects]
        number = 0
        while waiting:
            for subject, cases in list(waiting):
                case = next(cases, None)
                if case is None:
                    waiting.remove((subject, cases))
                    continue
                number += 1
                if number % self.settings.workers == self.worker:
                    yield subject, case, "seed", None
                    for _ in range(MUTANTS_A_SEED):
                        yield None

    def next(self) -> tuple[AnySubject, Any, str, Entry | None]:
        """The next case, how it was made, and from which entry."""
        rng = self.rng
        if not self.mode.mutate or not self.corpus.entries or rng.random() < self.settings.fresh_share:
            subject = self.subjects[int(rng.integers(len(self.subjects)))]
            return subject, self.sequenced(subject, subject.generate(rng)), "generate", None
        entry = self.corpus.pick(rng)
        donor = self.corpus.pick(rng)
        part = donor.case if donor.subject is entry.subject else None
        if self.mode.passes == "joint" and entry.streak >= self.settings.patience:
            entry.streak = 0
            case, kind = entry.subject.mutate_passes(entry.case, rng, part)
            return entry.subject, case, f"passes.{kind}", entry
        made = self.mutated(entry, part)
        if made is None:
            return entry.subject, self.sequenced(entry.subject, entry.subject.generate(rng)), "generate", None
        return entry.subject, self.sequenced(entry.subject, made[0]), made[1], entry

    def mutated(self, entry: Entry, part: Any) -> tuple[Any, str] | None:
        """A mutant. What a type rule fails by, instead of refusing, is a finding; it is kept with the case that was mutated."""
        try:
            return entry.subject.mutate_program(entry.case, self.rng, part, self.allowed[entry.subject.name])
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            failure = Failure("crash", "type rules", f"{type(error).__name__}: {error} ({Path(place.filename).name}: {place.name})")
            self.failed(entry.subject, entry.case, failure, native=False, reduce=False)
            return None

    def sequenced(self, subject: AnySubject, case: Any) -> Any:
        """The case with the passes that the mode wants."""
        if self.mode.passes == "fixed":
            return subject.with_pipeline(case)
        return subject.with_random_passes(case, self.rng) if self.mode.passes == "random" else case

    def program(self, subject: AnySubject, case: Any, mutator: str, keep: bool = True) -> bool:
        """Checks one case; whether it gained coverage."""
        tally, mode = self.tally, self.mode
        native = bool(self.rng.random() < self.settings.native_share)
        if native:  # machine code may end the process
            write(self.corpus.folder / f"current-{self.worker}.case", case_text(subject, case))
        record = tally.of(tally.mutators, mutator)
        tally.programs, tally.native, record.tried = tally.programs + 1, tally.native + native, record.tried + 1
        verdict, failure = self.checked(subject, case, native, tally)
        gained = self.coverage.gained() > 0
        if failure is not None:
            record.found += 1
            tally.of(tally.passes, failure.stage).found += 1
            self.failed(subject, case, failure, native)
        if verdict is not None:
            for name in verdict.changed:
                record_of_pass = tally.of(tally.passes, name)
                record_of_pass.tried += 1
                record_of_pass.gained += gained
        record.gained += gained
        if verdict is not None and keep and (gained if mode.coverage else mode.mutate and len(self.corpus.entries) < 4096):
            self.corpus.add(subject, subject.without_passes(case, verdict.changed) if mode.passes == "joint" else case)
        tally.arcs, tally.corpus = self.coverage.total, len(self.corpus.entries)
        if not tally.curve or self.seconds - tally.curve[-1][0] > max(0.5, self.seconds / 200):
            tally.curve.append((round(self.seconds, 2), tally.programs, tally.arcs, tally.corpus))
        return gained

    def checked(self, subject: AnySubject, case: Any, native: bool, tally: Tally) -> tuple[Verdict | None, Failure | None]:
        self.coverage.mark()
        try:
            with self.coverage, limited(self.settings.hang_seconds):
                return subject.check(case, native), None
        except Refused as refused:
            tally.refused += 1
            reason = str(refused).split(":")[0][:40]
            tally.refusals[reason] = tally.refusals.get(reason, 0) + 1
        except Failure as failure:
            return None, failure
        except _Hang:
            return None, Failure("hang", "unknown", f"no result after {self.settings.hang_seconds:.0f} seconds")
        return None, None

    def failed(self, subject: AnySubject, case: Any, failure: Failure, native: bool, reduce: bool = True) -> None:
        """Reduces, writes and reports a failure whose signature is new."""
        self.signatures[failure.signature] += 1
        folder = self.corpus.folder / "findings"
        target = folder / f"{failure.label}.ir"
        if self.signatures[failure.signature] > 1 or target.exists():
            return
        seconds, programs = self.seconds, self.tally.programs
        write(folder / f"{failure.label}.full.ir", finding_text(subject, case, failure, f"{failure.label}.full.ir"))

        def check(candidate: Any) -> None:
            with limited(self.settings.hang_seconds):
                subject.check(candidate, native)

        if self.settings.reduce and reduce and failure.kind != "hang":
            with suppress(_Hang):  # a candidate that hangs ends the reduction
                case, failure = reduced(subject, case, failure, check, REDUCTION_SECONDS)
        text = finding_text(subject, case, failure, target.name)
        write(target, text)
        self.found(Finding(failure.label, failure.signature, failure.kind, failure.stage, failure.message, round(seconds, 2),
                           programs, subject.size(case), text))


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends what runs in Python for too long. (Machine code that does not return is ended from outside, with the process.)"""
    def expired(number: int, frame: FrameType | None) -> NoReturn:
        raise _Hang

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
