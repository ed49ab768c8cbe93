"""The corpus on disk: cases that gained coverage, one file each, and what failed.

    FOLDER/corpus/SUBJECT-DIGEST.case     text of a case (`Subject.format`)
    FOLDER/findings/LABEL.ir              a failure, reduced, with the command that replays it
    FOLDER/findings/LABEL.full.ir         the same as it was found
    FOLDER/current-N.case                 what worker N is running machine code of

Files appear whole or not at all, so a kill at any moment loses the program in flight only, and several workers share a
folder: each reads what the others add. A file that cannot be read is left where it is, reported once and not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from ..ir.errors import CompileError, TilewrightError, cannot_write
from ..runtime.artifact import write_bytes
from .subject import AnySubject, Failure

FIRST = "# tilewright fuzz, format 1: "
REMARK = "#! "


class Entry(Struct):
    """A case of the corpus. `streak`: mutations in a row that gained nothing."""

    subject: AnySubject
    case: Any
    streak: int = 0


class Corpus:
    """Entries in memory, and their files. `unreadable` maps files that are damaged to what is wrong with them."""

    def __init__(self, folder: Path, subjects: Mapping[str, AnySubject]) -> None:
        self.folder = folder
        self.subjects = subjects
        self.entries: list[Entry] = []
        self._of: dict[str, list[Entry]] = {name: [] for name in subjects}
        self.unreadable: dict[str, str] = {}
        self._known: set[str] = set()
        make_folder(folder / "corpus")
        make_folder(folder / "findings")

    def refresh(self) -> Iterator[Entry]:
        """Entries that lie on disk and are not known yet; they belong to the corpus once they are given."""
        for path in sorted((self.folder / "corpus").glob("*.case")):
            if path.name in self._known:
                continue
            self._known.add(path.name)
            try:
                subject = self.subjects.get(path.name.split("-")[0])
                if subject is None:
                    continue  # of a kind that is not fuzzed in this run
                entry = Entry(*read_case(path.read_text(encoding="utf-8"), self.subjects, path.name))
            except (OSError, UnicodeDecodeError, TilewrightError) as error:
                self.unreadable[path.name] = str(error).splitlines()[0]
                continue
            self._keep(entry)
            yield entry

    def add(self, subject: AnySubject, case: Any) -> Entry:
        """Keeps a case, in memory and on disk."""
        text = case_text(subject, case)
        name = f"{subject.name}-{hashlib.blake2s(text.encode(), digest_size=10).hexdigest()}.case"
        entry = Entry(subject, case)
        self._keep(entry)
        if name not in self._known:
            self._known.add(name)
            write(self.folder / "corpus" / name, text)
        return entry

    def _keep(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._of[entry.subject.name].append(entry)

    def pick(self, rng: np.random.Generator, subject: AnySubject) -> Entry | None:
        """An entry of the subject, the newer half with twice the chance; None where it has none."""
        entries = self._of[subject.name]
        if not entries:
            return None
        place = int(rng.integers(len(entries)))
        return entries[max(place, int(rng.integers(len(entries)))) if rng.random() < 0.5 else place]


def case_text(subject: AnySubject, case: Any, *said: str) -> str:
    """A file of one case: what kind it is, what is to be said of it, and its text."""
    return "\n".join([FIRST + subject.name, *(REMARK + line for text in said for line in text.splitlines()), subject.format(case)])


def finding_text(subject: AnySubject, case: Any, failure: Failure, name: str) -> str:
    """A regression file: the case under the command that replays it and what failed."""
    return case_text(subject, case, f"replay with `tilewright fuzz --replay {name}`", f"signature: {failure.signature}", failure.message)


def read_case(text: str, subjects: Mapping[str, AnySubject], file: str) -> tuple[AnySubject, Any]:
    """The case of a file. CompileError where it holds none."""
    first, _, rest = text.partition("\n")
    subject = subjects.get(first.removeprefix(FIRST)) if first.startswith(FIRST) else None
    if subject is None:
        raise CompileError(f"{file}: no case of the fuzzer: expected {FIRST!r} and one of {', '.join(subjects)} in the first line, found "
                           f"{first[:60]!r}")
    return subject, subject.parse("\n".join(line for line in rest.split("\n") if not line.startswith(REMARK)))


def write(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
