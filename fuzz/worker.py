"""The process that runs what may crash: `python -m tilewright.fuzz.worker`.

    run FOLDER SETTINGS INDEX     fuzz; events as lines of JSON on stdout: progress, finding, done
    check FILE                    one case with machine code; {"outcome": "right" | "refused" | "failure", ...} on stdout
    reduce FILE SIGNATURE         the smallest case that still ends its process in this way; each is tried in a process of its own

Started by `supervisor.py`, which treats its death as a finding.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..driver import load_model
from .corpus import Corpus, case_text, finding_text, read_case
from .devices import DeviceSubject
from .dims import DimSubject
from .engine import REDUCTION_SECONDS, Fuzzer
from .graphs import GraphSubject
from .kernels import KernelSubject
from .parsers import ParserSubject
from .reduce import reduced
from .settings import Finding, Settings
from .subject import AnySubject, Failure, Refused, crash
from .supervisor import CASE_SECONDS, TRIAL, outcome_of

SUBJECTS: dict[str, AnySubject] = {subject.name: subject for subject in (GraphSubject(), DeviceSubject(), KernelSubject(), DimSubject(),
                                                                          ParserSubject())}
EVENT_SECONDS = 0.25


def emit(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def run(folder: Path, settings: Settings, index: int) -> None:
    """Fuzzes until the budget is spent or somebody ends the process, then ends it."""
    if settings.memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (settings.memory_bytes, settings.memory_bytes))
    models = [load_model(path) for path in settings.models]
    known = {**SUBJECTS, **{kind.name: kind(models) for kind in (GraphSubject, DeviceSubject)}}
    subjects = [known[name] for name in settings.subjects or tuple(known)]
    corpus = Corpus(folder, {s.name: s for s in subjects})

    def found(finding: Finding) -> None:
        emit("finding", **msgspec.to_builtins(finding))

    fuzzer = Fuzzer(subjects, corpus, settings, index, found)
    said = 0.0
    for tally in fuzzer.run():
        if time.monotonic() - said > EVENT_SECONDS:
            said = time.monotonic()
            emit("progress", programs=tally.programs, arcs=tally.arcs, corpus=tally.corpus, native=tally.native, refused=tally.refused)
    emit("done", tally=msgspec.to_builtins(fuzzer.tally), unreadable=corpus.unreadable, signatures=dict(fuzzer.signatures))
    os._exit(0)  # all is told and written; to free every object of a long search one by one takes longer than the supervisor waits


def check(file: Path) -> dict[str, Any]:
    """The verdict on the case of a file."""
    subject, case = read_case(file.read_text(encoding="utf-8"), SUBJECTS, str(file))
    try:
        subject.check(case, native=True)
    except Refused as refused:
        return {"outcome": "refused", "message": str(refused)}
    except Exception as error:
        failure = error if isinstance(error, Failure) else crash("unknown", error)
        return {"outcome": "failure", "signature": failure.signature, "kind": failure.kind, "stage": failure.stage,
                "message": failure.message}
    return {"outcome": "right"}


def reduce(file: Path, signature: str) -> dict[str, Any]:
    """The smallest case found that fails with the signature when it is run in a process of its own."""
    subject, case = read_case(file.read_text(encoding="utf-8"), SUBJECTS, str(file))
    trial = file.with_suffix(TRIAL)

    def attempt(candidate: Any) -> None:
        trial.write_text(case_text(subject, candidate), encoding="utf-8")
        outcome = outcome_of(trial)
        if outcome["outcome"] == "failure":
            raise Failure(outcome["kind"], outcome["stage"], outcome["message"])

    kind, _, rest = signature.partition(" in ")
    stage, _, message = rest.partition(": ")
    try:
        case, failure = reduced(subject, case, Failure(kind, stage, message), attempt, 2 * REDUCTION_SECONDS)
    finally:
        trial.unlink(missing_ok=True)
    return {"text": finding_text(subject, case, failure, f"{failure.label}.ir"), "size": subject.size(case)}


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case ["run", folder, settings, index]:
            run(Path(folder), msgspec.json.decode(settings.encode(), type=Settings), int(index))
        case ["check", file]:
            resource.setrlimit(resource.RLIMIT_CPU, (CASE_SECONDS, resource.RLIM_INFINITY))
            print(json.dumps(check(Path(file))))
        case ["reduce", file, signature]:
            print(json.dumps(reduce(Path(file), signature)))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
