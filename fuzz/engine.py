"""The loop of one worker: take a case, change it, check it, keep it where it reached something new.

The rule of joint mutation (Tzer, OOPSLA 2022, section 3): the program of a corpus entry is mutated until `patience` mutations
in a row gained no coverage, then its sequence of passes once. What gained is stored without the passes that changed nothing.

Machine code takes ten times as long as passes, so it is made of what is most likely to show something: of every seed, once all have
been through their passes; of what gained coverage by its passes; and of a share of all other programs. Only the end and
hangs depend on a clock, so a seed gives the same run again.

`settings.MODES` are the steps of the ablation: what is left out of the engine, and nothing else.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from msgspec import Struct

from .corpus import Corpus, Entry, case_text, finding_text, write
from .coverage import Coverage
from .reduce import failure_of, reduced
from .settings import MODES, Finding, Settings, Tally
from .subject import AnySubject, Failure, Refused, Verdict, crash
from .time_limit import TimeIsUp, limited

REDUCTION_SECONDS = 20.0


class Trial(Struct, frozen=True):
    """A case that is to be checked. `maker`: how it was made, for the tally; `parent`: the entry it was made from; `native`: whether
    as machine code, None where the share of all programs decides; `keep`: whether it becomes an entry where it gains."""

    subject: AnySubject
    case: Any
    maker: str
    parent: Entry | None = None
    native: bool | None = None
    keep: bool = True


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
        self.promoted: deque[Trial] = deque()
        self.started = time.monotonic()
        self.shares = np.array([s.share for s in subjects]) / sum(s.share for s in subjects)
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
            trial = next(seeds, None) or self.next()
            gained = self.program(trial)
            if trial.parent is not None:
                trial.parent.streak = 0 if gained else trial.parent.streak + 1
            yield self.tally
            if self.tally.programs % 256 == 0:
                for entry in list(self.corpus.refresh()):
                    self.program(known(entry))

    def resumed(self) -> Iterator[Tally]:
        """What lies in the folder already is run once, to know what it reaches."""
        for entry in list(self.corpus.refresh()):
            if self.over():
                return
            self.program(known(entry))
            yield self.tally

    def seeds(self) -> Iterator[Trial | None]:
        """The seeds of all subjects in turn, divided among the workers, where nothing was known: first by their passes, which takes
        a tenth of the time, then as machine code, as the subjects want it; there after each second one None, so that the search begins
        while there are seeds left. They bring passes of their own, where the mode has any but the pipeline's."""
        if self.corpus.entries:
            return
        known: set[str] = set()
        for native, kinds in self.rounds():
            waiting = [(subject, subject.seeds(self.mode.domain)) for subject in self.subjects if subject.seeds_as in kinds]
            keep = {subject.name for subject, _ in waiting} - known
            known |= keep
            number = 0
            while waiting:
                number += 1
                for subject, cases in list(waiting):
                    case = next(cases, None)
                    if case is None:
                        waiting.remove((subject, cases))
                    elif number % self.settings.workers == self.worker:
                        yield Trial(subject, self.sequenced(subject, case), "seed", native=native, keep=subject.name in keep)
                        if native and number // self.settings.workers % 2:
                            yield None

    def rounds(self) -> Iterator[tuple[bool, tuple[str, ...]]]:
        """Whether seeds become machine code, and those of which subjects (`Subject.seeds_as`)."""
        share = self.settings.native_share
        if 0 < share < 1:
            yield from ((False, ("passes", "code")), (True, ("code",)), (True, ("late",)))
        else:
            yield share > 0, ("passes", "code", "late")

    def next(self) -> Trial:
        """The next case: one that gained lately, as machine code; a new one; or a mutant."""
        rng = self.rng
        if self.promoted:
            return self.promoted.popleft()
        subject = self.subjects[int(rng.choice(len(self.subjects), p=self.shares))]
        entry = self.corpus.pick(rng, subject)
        if not self.mode.mutate or entry is None or rng.random() < subject.fresh:
            return Trial(subject, self.sequenced(subject, subject.generate(rng, self.mode.domain)), "generate")
        donor = self.corpus.pick(rng, subject)
        part = None if donor is None else donor.case
        if self.mode.passes == "joint" and entry.streak >= self.settings.patience:
            entry.streak = 0
            case, kind = subject.mutate_passes(entry.case, rng, part)
            return Trial(subject, case, f"passes.{kind}", entry)
        made = self.mutated(entry, part)
        if made is None:
            return Trial(subject, self.sequenced(subject, subject.generate(rng, self.mode.domain)), "generate", entry)
        return Trial(subject, self.sequenced(subject, made[0]), made[1], entry)

    def mutated(self, entry: Entry, part: Any) -> tuple[Any, str] | None:
        """A mutant. What a type rule fails by, instead of refusing, is a finding; it is kept with the case that was mutated."""
        try:
            return entry.subject.mutate_program(entry.case, self.rng, part, self.allowed[entry.subject.name])
        except Exception as error:
            self.failed(entry.subject, entry.case, crash("type rules", error), native=False, reduce=False)
            return None

    def sequenced(self, subject: AnySubject, case: Any) -> Any:
        """The case with the passes that the mode wants."""
        if self.mode.passes == "fixed":
            return subject.with_pipeline(case)
        return subject.with_random_passes(case, self.rng) if self.mode.passes == "random" else case

    def program(self, trial: Trial) -> bool:
        """Checks one case; whether it gained coverage."""
        tally, subject, case = self.tally, trial.subject, trial.case
        native = bool(self.rng.random() < self.settings.native_share) if trial.native is None else trial.native
        if native:  # machine code may end the process
            write(self.corpus.folder / f"current-{self.worker}.case", case_text(subject, case))
        record = tally.of(tally.mutators, trial.maker)
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
            if trial.keep:
                self.kept(trial, verdict, gained, native)
        record.gained += gained
        tally.arcs, tally.corpus = self.coverage.total, len(self.corpus.entries)
        if not tally.curve or self.seconds - tally.curve[-1][0] > max(0.5, self.seconds / 200):
            tally.curve.append((round(self.seconds, 2), tally.programs, tally.arcs, tally.corpus))
        return gained

    def kept(self, trial: Trial, verdict: Verdict, gained: bool, native: bool) -> None:
        """Takes a case that was right into the corpus, where the mode wants it; what gained by its passes is machine code next."""
        mode, subject, case = self.mode, trial.subject, trial.case
        if not (gained if mode.coverage else mode.mutate and len(self.corpus.entries) < 4096):
            return
        entry = self.corpus.add(subject, subject.without_passes(case, verdict.changed) if mode.passes == "joint" else case)
        if mode.coverage and not native and self.settings.native_share > 0 and not (trial.maker == "seed" and subject.seeds_as == "code"):
            self.promoted.append(Trial(subject, entry.case, "as machine code", native=True, keep=False))

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
        except TimeIsUp:
            return None, Failure("hang", "unknown", f"no result after {self.settings.hang_seconds:.0f} seconds")
        except Exception as error:  # which the subject did not expect: a finding all the same, and not the end
            return None, crash("unknown", error)
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

        def check(candidate: Any, native: bool) -> None:
            with limited(self.settings.hang_seconds):
                subject.check(candidate, native)

        if self.settings.reduce and reduce and failure.kind != "hang":
            with suppress(TimeIsUp):  # a candidate that hangs ends the reduction
                seen = failure_of(case, partial(check, native=False)) if native else None
                native = native and (seen is None or seen.signature != failure.signature)  # else ten times as many candidates are tried
                case, failure = reduced(subject, case, failure, partial(check, native=native), REDUCTION_SECONDS)
        text = finding_text(subject, case, failure, target.name)
        write(target, text)
        self.found(Finding(failure.label, failure.signature, failure.kind, failure.stage, failure.message, round(seconds, 2),
                           programs, subject.size(case), text))


def known(entry: Entry) -> Trial:
    """An entry that is in the corpus already."""
    return Trial(entry.subject, entry.case, "corpus", keep=False)
