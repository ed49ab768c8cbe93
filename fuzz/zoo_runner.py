"""The bug zoo: known miscompiles as diffs against this tree, and what finds them.

`fuzz/zoo/` holds one diff a bug, `NN_name.diff`, modelled on a bug that a real compiler had, and beside it a *witness*,
`NN_name.py`, whose `witness()` is true where the compiler gives a wrong result. A diff is applied to a throw-away copy of
the tree, never to the tree itself; production code has no hook for it.

`python -m tilewright.fuzz.zoo_runner` checks that every diff applies, and that its witness is false in the clean copy and
true in the patched one. With `--hunt SECONDS` it measures instead how long `tilewright fuzz` takes to find each.

Assumes a source tree (the zoo is in no wheel) and the program `patch`; diffs of C++ also need the compiler that built the
extension. Guarantees: the tree is only read, but for the diffs that `--renew` writes; a diff that no longer applies is reported as
stale, by name; copies are removed, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ..ir.errors import CompileError

TREE = Path(__file__).resolve().parents[1]
ZOO = TREE / "fuzz" / "zoo"
HEADERS = ("title", "class", "model", "needs")
NEEDS = ("python", "rebuild")
CHANGED, CONTEXT = "+++ b/", 2  # how a diff names a changed file; lines of context, few so that they seldom go stale
FOLDERS = ("ir", "backends", "runtime", "fuzz")  # of the package, beside `compiler`, which is its root
BUILD_FILES = ("setup.py", "pyproject.toml", "README.md")
CONTROL = "the clean tree"
WITNESS_SECONDS, BUILD_SECONDS, GRACE_SECONDS = 300.0, 600.0, 120.0
LOOK = """
import runpy, sys
import tilewright
sys.path[:0] = sys.argv[3:]
sys.dont_write_bytecode = True
assert tilewright.__file__.startswith(sys.argv[1]), f"imported {tilewright.__file__}, expected the copy in {sys.argv[1]}"
print("wrong" if runpy.run_path(sys.argv[2])["witness"]() else "right")
"""


class Bug(Struct, frozen=True):
    """A diff of a zoo. `model`: the real bug that it follows, or `own`; `needs`: `python`, or `rebuild` for C++."""

    folder: Path
    name: str
    title: str
    kind: str
    model: str
    needs: str

    @property
    def diff(self) -> Path:
        return self.folder / f"{self.name}.diff"

    @property
    def witness(self) -> Path:
        return self.folder / f"{self.name}.py"


class Check(Struct, frozen=True):
    """What became of a bug: `good`, `stale` (the diff does not apply), `blind` (the witness sees nothing in the patched copy),
    `noisy` (it cries in the clean one), or `broken` (a build or the witness failed; `message` says how)."""

    name: str
    outcome: str
    message: str = ""


class Hunt(Struct, frozen=True):
    """What `tilewright fuzz` made of a bug: `seconds` until the first finding, None where there is none. `cpu_seconds`: of the
    whole search, its start included, which says more on a machine that does other things too."""

    name: str
    seed: int
    seconds: float | None
    signature: str = ""
    cpu_seconds: float = 0.0
    message: str = ""


# --- the zoo ---------------------------------------------------------------------------------------------------------


def read_bug(path: Path) -> Bug:
    """The header of a diff: lines `# key: value`, each key of HEADERS once and in that order."""
    lines = path.read_text(encoding="utf-8").splitlines()[:len(HEADERS)]
    found = [line[2:].partition(": ") for line in lines if line.startswith("# ")]
    if [key for key, _, _ in found] != list(HEADERS) or not all(value for _, _, value in found):
        raise CompileError(f"{path}: the first lines must be {', '.join(f'`# {key}: ...`' for key in HEADERS)}, found {lines}")
    title, kind, model, needs = (value for _, _, value in found)
    if needs not in NEEDS or not (model == "own" or model.startswith("https://")):
        raise CompileError(f"{path}: needs must be {' or '.join(NEEDS)} and model a URL or own, found {needs!r} and {model!r}")
    return Bug(path.parent, path.stem, title, kind, model, needs)


def read_zoo(names: Sequence[str] = (), folder: Path = ZOO) -> list[Bug]:
    """All bugs in order, or those whose names begin with one of `names`."""
    if not folder.is_dir():
        raise CompileError(f"{folder}: there is no zoo here; that of the project is part of the source tree only")
    bugs = [read_bug(path) for path in sorted(folder.resolve().glob("*.diff"))]
    chosen = [bug for bug in bugs if not names or bug.name.startswith(tuple(names))]
    if not chosen:
        raise CompileError(f"{folder}: found no diff whose name begins with {' or '.join(names) or 'anything'}")
    return chosen


# --- copies ----------------------------------------------------------------------------------------------------------


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A folder with the package as `tilewright/`, and links so that the paths of the repository lead into it."""
    with tempfile.TemporaryDirectory(prefix="tilewright-zoo-") as folder:
        place = Path(folder).resolve()
        skipped = shutil.ignore_patterns("zoo", "*.tmp", ".*")
        shutil.copytree(TREE / "compiler", place / "tilewright", ignore=skipped)
        (place / "compiler").symlink_to("tilewright")
        for name in FOLDERS:
            shutil.copytree(TREE / name, place / "tilewright" / name, ignore=skipped)
            (place / name).symlink_to(f"tilewright/{name}")
        shutil.copytree(TREE / "csrc", place / "csrc", ignore=skipped)
        for name in BUILD_FILES:
            if (TREE / name).is_file():
                shutil.copy2(TREE / name, place / name)
        yield place


def apply_diff(bug: Bug, place: Path, dry_run: bool = False) -> str:
    """Applies the diff in the copy; what `patch` says where it cannot, else an empty text."""
    program = shutil.which("patch")
    if program is None:
        raise CompileError("the program `patch` is not installed; the zoo needs it to apply its diffs")
    command = [program, "-p1", "--force", "--silent", "--fuzz=1", "--no-backup-if-mismatch", "--reject-file=-", "-d", str(place),
               "-i", str(bug.diff)]
    done = subprocess.run([*command, "--dry-run"] if dry_run else command, capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip() or f"patch ended with {done.returncode}"


def renew(bug: Bug) -> str:
    """Writes the diff anew, against the tree as it is now; what `patch` says where it cannot, else an empty text."""
    lines = bug.diff.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = [line.removeprefix(CHANGED).strip() for line in lines if line.startswith(CHANGED)]
    with copied_tree() as place:
        message = apply_diff(bug, place)
        if message:
            return message
        for name in changed:
            before, after = ((folder / name).read_text(encoding="utf-8").splitlines(keepends=True) for folder in (TREE, place))
            lines[len(HEADERS):] = [*([] if name == changed[0] else lines[len(HEADERS):]),
                                    *difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", n=CONTEXT)]
    bug.diff.write_text("".join(lines), encoding="utf-8")
    return ""


def rebuild(place: Path) -> str:
    """Builds the extension of the copy anew; the end of what the build said where it failed, else an empty text."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"]
    done = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, timeout=BUILD_SECONDS)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]


def environment(place: Path) -> dict[str, str]:
    """That of a process which sees the copy alone, with a cache of its own."""
    return {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.defpath)), "PYTHONPATH": str(place), "HOME": str(place),
            "TILEWRIGHT_CACHE_DIR": str(place / "cache"), "LC_ALL": "C.UTF-8"}


def prepare(bug: Bug, place: Path) -> Check | None:
    """Makes the copy a patched one; what is wrong where that fails."""
    message = apply_diff(bug, place)
    if message:
        return Check(bug.name, "stale", message)
    message = rebuild(place) if bug.needs == "rebuild" else ""
    return Check(bug.name, "broken", message) if message else None


# --- witnesses -------------------------------------------------------------------------------------------------------


def look(bug: Bug, place: Path) -> tuple[str, str]:
    """(`wrong`, `right` or `failed`, what it said) of the witness with the compiler in the copy."""
    command = [sys.executable, "-c", LOOK, str(place), str(bug.witness), str(bug.folder), str(ZOO)]
    try:
        done = subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, timeout=WITNESS_SECONDS)
    except subprocess.TimeoutExpired:
        return "failed", f"no answer after {WITNESS_SECONDS:.0f} s"
    said = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0 and said in ("wrong", "right"):
        return said, ""
    return "failed", f"exit status {done.returncode}: {done.stderr.strip()[-1500:]}"


def check_witness(bug: Bug, clean: Path) -> Check:
    """Looks with the clean copy and with a patched one."""
    said, message = look(bug, clean)
    if said != "right":
        return Check(bug.name, "noisy" if said == "wrong" else "broken", f"clean: {message}")
    with copied_tree() as place:
        failed = prepare(bug, place)
        if failed is not None:
            return failed
        said, message = look(bug, place)
    return Check(bug.name, {"wrong": "good", "right": "blind", "failed": "broken"}[said], f"patched: {message}" if message else "")


def check_witnesses(bugs: Sequence[Bug], workers: int = 2) -> Iterator[Check]:
    """Every bug's check, in order; two at a time, since nothing is timed."""
    with copied_tree() as clean, ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda bug: check_witness(bug, clean), bugs)


# --- hunts -----------------------------------------------------------------------------------------------------------


def fuzz_command(seconds: float, seed: int, folder: Path, arguments: Sequence[str]) -> list[str]:
    """The command that searches: the only place that knows its options."""
    return [sys.executable, "-m", "tilewright", "fuzz", "--seconds", f"{seconds:g}", "--seed", str(seed), "--workers", "1",
            "--stop-at-first", "--no-reduce", "--folder", str(folder), "--json", "-", *arguments]


def hunt(bug: Bug | None, seconds: float, seed: int, arguments: Sequence[str] = ()) -> Hunt:
    """Runs the fuzzer in a patched copy until it finds something or the time is over; without a bug in a clean one, as a
    control: what it finds there is found in patched copies too."""
    name = CONTROL if bug is None else bug.name
    with copied_tree() as place:
        failed = None if bug is None else prepare(bug, place)
        if failed is not None:
            return Hunt(name, seed, None, message=f"{failed.outcome}: {failed.message}")
        before = _child_seconds()
        try:
            done = subprocess.run(fuzz_command(seconds, seed, place / "found", arguments), cwd=place, env=environment(place),
                                  capture_output=True, text=True, timeout=seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return Hunt(name, seed, None, message="the fuzzer did not end in time")
        return replace(_read_account(name, seed, done), cpu_seconds=_child_seconds() - before)


def _child_seconds() -> float:
    """CPU time of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _read_account(name: str, seed: int, done: subprocess.CompletedProcess[str]) -> Hunt:
    """What the fuzzer's account in JSON says of its first finding."""
    try:
        findings = json.loads(done.stdout)["findings"]
    except (json.JSONDecodeError, KeyError):
        return Hunt(name, seed, None, message=f"exit status {done.returncode}: {done.stderr.strip()[-1500:]}")
    if not findings:
        return Hunt(name, seed, None)
    first = min(findings, key=lambda finding: finding["seconds"])
    return Hunt(name, seed, first["seconds"], first["signature"])


# --- the command -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all is as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tilewright.fuzz.zoo_runner", description="Checks or hunts the bugs of the zoo.",
                                     epilog="What follows `--` goes to `tilewright fuzz`.")
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 07; all without")
    parser.add_argument("--zoo", type=Path, default=ZOO, metavar="FOLDER", help="of another zoo (default: that of the tree)")
    parser.add_argument("--renew", action="store_true", help="write the diffs that still apply anew, against the tree as it is")
    parser.add_argument("--hunt", type=float, metavar="SECONDS", help="let the fuzzer search for each, so long at most")
    parser.add_argument("--control", action="store_true", help="with --hunt: search the clean tree first")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer (default: 0)")
    given = list(sys.argv[1:] if arguments is None else arguments)
    here = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:here])
    try:
        bugs = read_zoo(options.names, options.zoo)
        if options.renew:
            return 0 if _renew_all(bugs) else 1
        if options.hunt and options.control:
            _show(hunt(None, options.hunt, options.seed, given[here + 1:]))
        good = _hunt_all(bugs, options.hunt, options.seed, given[here + 1:]) if options.hunt else _check_all(bugs)
    except CompileError as error:
        print(f"zoo: {error}", file=sys.stderr)
        return 2
    return 0 if good else 1


def _renew_all(bugs: Sequence[Bug]) -> bool:
    stale = [(bug.name, message) for bug in bugs if (message := renew(bug))]
    for name, message in stale:
        print(f"{name:40} stale\n    {message}")
    print(f"{len(bugs) - len(stale)} of {len(bugs)} renewed")
    return not stale


def _check_all(bugs: Sequence[Bug]) -> bool:
    outcomes: list[str] = []
    for check in check_witnesses(bugs):
        outcomes.append(check.outcome)
        print(f"{check.name:40} {check.outcome}" + (f"\n    {check.message}" if check.message else ""), flush=True)
    print(f"{outcomes.count('good')} of {len(outcomes)} good")
    return outcomes.count("good") == len(outcomes)


def _show(result: Hunt) -> None:
    when = "not found" if result.seconds is None else f"{result.seconds:.1f} s"
    print(f"{result.name:40} {when:>10}  CPU {result.cpu_seconds:6.1f} s  {result.signature or result.message}", flush=True)


def _hunt_all(bugs: Sequence[Bug], seconds: float, seed: int, arguments: Sequence[str]) -> bool:
    """One after the other: they are timed."""
    found: list[float] = []
    for bug in bugs:
        result = hunt(bug, seconds, seed, arguments)
        if result.seconds is not None:
            found.append(result.seconds)
        _show(result)
    median = f"; median {sorted(found)[len(found) // 2]:.1f} s" if found else ""
    print(f"found {len(found)} of {len(bugs)}{median}")
    return len(found) == len(bugs)


if __name__ == "__main__":
    sys.exit(main())
