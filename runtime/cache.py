"""The compile cache on disk: object code and constants by the digest of everything that they depend on.

    <directory>/entries/<key>/code.o            relocatable object code
                              constants.weights the constants segment (csrc/abi.h), where there is one
                              meta.json         what the key was made of, digests, sizes, and what the compiler reported
    <directory>/notes/<key>                     small texts that are slow to find out, such as this machine's features
    <directory>/temporary/                      entries being written, entries being deleted

Assumes nothing of the folder's content: an entry is used only if its code has the digest and its constants the
checksum that were recorded; one that does not is removed and counts as absent.
Guarantees: safe with several processes and threads at once (an entry appears by one rename, whole or not at all, and
of two writers the later one discards its work); bounded in size (the entries used longest ago go first); a folder that
cannot be written, is not ours or is on a full disk costs the cache and one warning, nothing else; an interrupt leaves no
partial entry. The code that is kept here is run: a folder that others can write to is not used.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blake3 import blake3
from msgspec import Struct, field, json

from tilewright.ir.errors import ArtifactError
from tilewright.runtime import _native
from tilewright.runtime.artifact import write_constants

DEFAULT_LIMIT = 4 << 30
FORMAT = 1
STARTED = time.time()
STALE_SECONDS = 3600.0  # what a killed process left in temporary/ is removed after this
PACKAGES = ("tilewright", "tilewright.ir", "tilewright.backends", "tilewright.runtime")
SOURCE_SUFFIXES = (".py", ".so", ".o", ".h", ".cpp")  # the last two: what kernels of GPUs are compiled with
CODE, CONSTANTS, META = "code.o", "constants.weights", "meta.json"

Report = Callable[[str], None]


class Entry(Struct, frozen=True):
    """A usable entry: its code, its constants mapped (None: it has none), and what the compiler reported."""

    key: str
    object_code: bytes
    constants: _native.Constants | None
    metadata: dict[str, Any]


class Listed(Struct, frozen=True):
    """An entry as the folder shows it, unchecked."""

    key: str
    name: str
    bytes: int
    used: float
    created: float
    parts: dict[str, str] = field(default_factory=dict)
    reason: str = ""


class Key(Struct, frozen=True):
    """What an entry depends on, by part, and the digest of it all. `facts` explain a miss but are not part of the digest."""

    name: str
    parts: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> str:
        return blake3(json.encode([FORMAT, self.parts])).hexdigest()


@lru_cache(maxsize=1)
def source_digest() -> str:
    """The digest of this package: every source file and native object, by content. 5 ms, once a process."""
    state = blake3()
    for package in PACKAGES:
        spec = find_spec(package)
        for folder in sorted((spec.submodule_search_locations or ()) if spec else ()):
            for path in sorted(_source_files(folder)):
                with open(path, "rb") as file:
                    content = file.read()
                state.update(f"{package}{path[len(folder):]}\0{len(content)}\0".encode())
                state.update(content)
    return state.hexdigest()


def sources_changed() -> bool:
    """Whether a source file is newer than this process: the code that runs may then not be the code that the digest
    tells of, and must not be kept under it."""
    for package in PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if any(os.stat(path).st_mtime > STARTED for path in _source_files(folder)):
                return True
    return False


def _source_files(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        for name in files:
            if name.endswith(SOURCE_SUFFIXES):
                yield os.path.join(parent, name)


def _silent(message: str) -> None:
    del message


_unusable: set[Path] = set()  # folders that were warned of


def _warn(folder: Path, cause: object) -> None:
    """Says once a process that a folder does not serve as cache."""
    if folder not in _unusable:
        _unusable.add(folder)
        warnings.warn(f"the compile cache {folder} cannot be used: {cause}; compilation goes on without it "
                      "(TILEWRIGHT_CACHE_DIR names another folder)", RuntimeWarning, stacklevel=2)


class Cache:
    """The cache in one folder. Immutable; holds no file open, so a process may fork and any thread may use it."""

    def __init__(self, directory: Path, limit: int = DEFAULT_LIMIT, report: Report = _silent) -> None:
        self.directory = Path(directory).absolute()
        self.limit = limit
        self.report = report
        self.entries_folder = self.directory / "entries"

    # --- use ---------------------------------------------------------------------------------------------------------

    def find(self, key: Key) -> Entry | None:
        """The entry of this key, or None. An entry that is damaged is removed."""
        folder = self.entries_folder / key.digest
        try:
            if not (folder / META).is_file() or not self._trusted():
                return None
            meta = json.decode((folder / META).read_bytes())
            code = (folder / CODE).read_bytes()
            if blake3(code).hexdigest() != meta["code_digest"]:
                raise ArtifactError(f"{folder / CODE}: its content is not what was written")
            constants = None
            if meta["constants_bytes"]:
                path = str(folder / CONSTANTS)
                constants = _native.Constants.open(path, meta["constants_bytes"], meta["constants_digest"])
            metadata = dict(meta["metadata"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.report(f"cache: entry {key.digest[:16]} is damaged and is removed: {error}")
            self._remove(folder)
            return None
        with suppress(OSError):
            os.utime(folder / META)
        return Entry(key.digest, code, constants, metadata)

    def store(self, key: Key, object_code: bytes, constants: Any, constants_digest: str, metadata: Mapping[str, Any]) -> bool:
        """Keeps a compiled program; False, with a report, where that cannot be done."""
        constants_bytes = 0 if constants is None else memoryview(constants).nbytes
        total = len(object_code) + constants_bytes
        if total > self.limit:
            self.report(f"cache: {key.name} has {total} bytes, more than the whole cache may have ({self.limit}); it is not kept")
            return False
        meta = {
            "format": FORMAT, "name": key.name, "parts": dict(key.parts), "facts": dict(key.facts), "created": time.time(),
            "reason": "; ".join(self.explain(key)), "code_digest": blake3(object_code).hexdigest(),
            "constants_bytes": constants_bytes, "constants_digest": constants_digest, "metadata": dict(metadata),
        }
        try:
            with self._temporary() as folder:
                (folder / CODE).write_bytes(object_code)
                if constants_bytes:
                    write_constants(folder / CONSTANTS, constants, constants_digest)
                (folder / META).write_bytes(json.encode(meta))
                self.entries_folder.mkdir(exist_ok=True)
                self._appear(folder, self.entries_folder / key.digest)
            self.shrink(self.limit, keep=key.digest)
        except OSError as error:
            self.report(f"cache: {key.name} is not kept: {getattr(error, 'message', error)}")
            _warn(self.directory, _cause(error))
            return False
        return True

    def recall(self, subject: str) -> str | None:
        """The text that was noted on a subject."""
        path = self._note(subject)
        try:
            if not path.is_file() or not self._trusted():
                return None
            digest, _, text = path.read_text().partition("\n")
        except (OSError, ValueError):
            return None
        return text if digest == blake3(text.encode()).hexdigest() else None

    def note(self, subject: str, text: str) -> None:
        """Keeps a small text. Failing to is no failure."""
        try:
            with self._temporary() as folder:
                path = self._note(subject)
                path.parent.mkdir(exist_ok=True)
                (folder / path.name).write_text(blake3(text.encode()).hexdigest() + "\n" + text)
                os.replace(folder / path.name, path)
        except OSError as error:
            self.report(f"cache: a note is not kept: {getattr(error, 'message', error)}")
            _warn(self.directory, _cause(error))

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def entries(self) -> list[Listed]:
        """All entries, the one used last first."""
        found = []
        with suppress(OSError):
            for folder in self.entries_folder.iterdir():
                with suppress(OSError):
                    found.append(_listed(folder))
        return sorted(found, key=lambda entry: (-entry.used, entry.key))

    def explain(self, key: Key) -> list[str]:
        """Why there is no entry of this key: how it differs from the nearest entry of the same name."""
        alike = [entry for entry in self.entries() if entry.name == key.name]
        if any(entry.key == key.digest for entry in alike):
            return []
        if not alike:
            return [f"{key.name} was never compiled, or its entry was removed"]
        wanted = {**dict(key.parts), **dict(key.facts)}
        nearest = min(alike, key=lambda entry: len(_differences(entry.parts, wanted)))
        return [_difference_text(part, nearest.parts.get(part), wanted.get(part)) for part in _differences(nearest.parts, wanted)]

    def clear(self) -> tuple[int, int]:
        """Removes all entries and notes; returns how many entries, and their bytes. ArtifactError where one stays."""
        entries = self.entries()
        for entry in entries:
            self._remove(self.entries_folder / entry.key)
        shutil.rmtree(self.directory / "notes", ignore_errors=True)
        left = self.entries()
        if left:
            raise ArtifactError(f"cache: {len(left)} entries of {self.entries_folder} could not be removed",
                                hint="is the folder yours, and writable?")
        return len(entries), sum(entry.bytes for entry in entries)

    def shrink(self, limit: int, keep: str = "") -> int:
        """Removes entries, those used longest ago first, until the rest fits; returns how many."""
        self._sweep()
        entries = self.entries()
        total, removed = sum(entry.bytes for entry in entries), 0
        for entry in reversed(entries):
            if total <= limit:
                break
            if entry.key != keep:
                self._remove(self.entries_folder / entry.key)
                total -= entry.bytes
                removed += 1
        return removed

    # --- files -------------------------------------------------------------------------------------------------------

    def _note(self, subject: str) -> Path:
        return self.directory / "notes" / blake3(subject.encode()).hexdigest()

    def _trusted(self) -> bool:
        """Whether nobody but us (and root) can put code into the folder."""
        state = self.directory.stat()
        user = os.geteuid()
        if (state.st_uid in (user, 0) or user == 0) and not state.st_mode & 0o002:
            return True
        self.report(f"cache: {self.directory} belongs to another user or is writable by all; it is not used")
        return False

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A folder of our own on the cache's file system, which is gone afterwards whatever happens."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._trusted():
            raise ArtifactError("it belongs to another user or is writable by all")
        base = self.directory / "temporary"
        base.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=base))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _appear(self, folder: Path, place: Path) -> None:
        """Makes a written folder an entry, unless another process was first."""
        try:
            os.rename(folder, place)
        except OSError:
            if not (place / META).is_file():
                raise

    def _remove(self, folder: Path) -> None:
        """Takes an entry away at once for all; readers that have it open or mapped keep it."""
        with suppress(OSError), self._temporary() as temporary:
            os.rename(folder, temporary / "removed")

    def _sweep(self) -> None:
        """Removes what killed processes left behind."""
        with suppress(OSError):
            for folder in (self.directory / "temporary").iterdir():
                with suppress(OSError):
                    if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                        shutil.rmtree(folder, ignore_errors=True)


def _cause(error: OSError) -> str:
    """What went wrong, and with which file where the system says."""
    if isinstance(error, ArtifactError):
        return error.message
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)


def _listed(folder: Path) -> Listed:
    """An entry as listed; one whose description cannot be read is listed without a name."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    used = folder.stat().st_mtime
    try:
        used = (folder / META).stat().st_mtime
        meta = json.decode((folder / META).read_bytes())
        parts = {str(part): str(value) for part, value in {**meta["parts"], **meta["facts"]}.items()}
        return Listed(folder.name, str(meta["name"]), size, used, float(meta["created"]), parts, str(meta["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Listed(folder.name, "", size, used, used)


def _differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    parts = [part for part in {**wanted, **found} if found.get(part) != wanted.get(part)]
    if "structure" in wanted and "structure" in found and "graph" in parts:
        # The graph's fingerprint covers its constants: say which of the two changed.
        parts = [part for part in parts if part != "graph"] or ["graph"]
    return parts


_MEANING = {
    "source": "tilewright itself changed",
    "llvm": "the version of LLVM changed",
    "graph": "the program changed",
    "structure": "the program changed",
    "constants": "the values of constants changed",
    "options": "the options changed",
    "target": "the target changed",
}


def _difference_text(part: str, found: str | None, wanted: str | None) -> str:
    text = _MEANING.get(part, f"{part} changed")
    if part in ("source", "graph", "structure", "constants"):
        return text
    removed, added = _word_changes(found or "", wanted or "")
    return f"{text}: {removed} -> {added}" if removed or added else text


def _word_changes(found: str, wanted: str) -> tuple[str, str]:
    """The words that only one of two texts has."""
    old, new = found.split(), wanted.split()
    return " ".join(w for w in old if w not in new) or "nothing", " ".join(w for w in new if w not in old) or "nothing"
