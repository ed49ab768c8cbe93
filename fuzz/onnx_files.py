"""Hostile ONNX files in great number: each must end in a graph or in one clear error, within seconds and bounded memory.

    python -m tilewright.fuzz.onnx_files [--count 100000] [--workers 1] [--seed 0] [--first NUMBER] [--folder DIR] [--only NUMBER]

What it does: file number N of a seed is made of a valid model by damage to its bytes, edits by its structure (`onnx_edits.py`), or is
a small file that asks for much (`onnx_bombs.py`). It is imported, what comes of it is verified, and one in a hundred of all files is
compiled to machine code. At the end, or after Ctrl-C, stands the account; `--first` goes on where a run ended. `--only` makes one file,
keeps it and says what becomes of it.

What counts as wrong: an exception that is not of the family, or an internal one; a death; more than IMPORT_SECONDS of processor time to
import, COMPILE_SECONDS to compile; more than MEMORY bytes beyond what the process has before; a text longer than LONGEST; a file that
is written, a program that is run, a file that is opened for reading outside of the model's folder.

Assumes Linux: limits are set in forked processes, which have everything imported before. Guarantees: what dies or hangs is one
finding, and the count goes on; findings lie in the folder as files, named after what went wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from msgspec import Struct

from ..driver import compile_graph
from ..frontends.from_onnx import from_onnx
from ..frontends.onnx_messages import newest_opset
from ..ir.errors import InternalError, TilewrightError, UnsupportedError
from ..ir.graph import Graph
from ..ir.verify import verify
from ..options import Options
from .graphs import guarded
from .onnx_account import Account
from .onnx_bombs import bomb
from .onnx_edits import damaged_text, edited, edited_bytes, merged
from .onnx_seeds import Seeds, gathered
from .parsers import flip_bits, remove, repeat, set_byte, set_integer, splice, truncate
from .rebuild import chosen
from .subject import Failure
from .time_limit import TimeIsUp, limited

IMPORT_SECONDS, COMPILE_SECONDS, SILENT_SECONDS = 5.0, 60.0, 300.0
MEMORY = 2 << 30
MOST_BYTES = 4 << 20    # of a file: names that were made long stand there often
LONGEST = 1 << 16       # characters of an error
COMPILED_SHARE = 0.01
DAMAGE = (flip_bits, flip_bits, set_byte, set_byte, set_integer, remove, repeat, truncate, splice)


class Outcome(Struct, frozen=True):
    """What became of one file. `state`: imported, refused or failed; `reason`: the error's text; `label`: the kind of a failure."""

    number: int
    made: str
    state: str
    reason: str = ""
    label: str = ""
    seconds: float = 0.0
    compiled: str = ""
    compile_seconds: float = 0.0
    peak: int = 0


# --- making ---------------------------------------------------------------------------------------------------------------


def hostile_file(seeds: Seeds, seed: int, number: int) -> tuple[bytes, str]:
    """File `number` of a seed, and how it was made."""
    rng = np.random.default_rng([seed, number])
    kind = rng.random()
    if kind < 0.003 and seeds.large:
        data = chosen(rng, seeds.large)
        for _ in range(int(rng.integers(1, 9))):
            data = flip_bits(data, rng, b"") if rng.random() < 0.5 else set_byte(data, rng, b"")
        return data, "bytes of large models"
    if kind < 0.16:
        model = bomb(rng)
        if kind > 0.09:
            edited(model, rng)
        made: bytes = model.SerializeToString()
        return made[:MOST_BYTES], "models that ask for much"
    data, donor = chosen(rng, seeds.small), chosen(rng, seeds.small)
    if kind < 0.45:
        for _ in range(int(chosen(rng, (1, 1, 1, 2, 4)))):
            data = chosen(rng, DAMAGE)(data, rng, donor)
        return data, "bytes of small models"
    data = edited_bytes(data, rng, donor)[:MOST_BYTES]
    if rng.random() < 0.03:
        data = damaged_text(data, rng) if rng.random() < 0.7 else merged((data, donor))
    return data, "structure of small models"


def furnished(folder: Path) -> Path:
    """The folder for models, with what external data may name: files, links that lead out or in circles, devices, pipes."""
    inside = folder / "model"
    (inside / "folder").mkdir(parents=True)
    (inside / "weights.bin").write_bytes(bytes(range(64)))
    (folder / "outside.bin").write_bytes(bytes(64))
    for name, target in (("link.bin", "../outside.bin"), ("loop.bin", "loop.bin"), ("device", "/dev/zero")):
        (inside / name).symlink_to(target)
    os.mkfifo(inside / "pipe")
    with (inside / "sparse.bin").open("wb") as file:
        file.truncate(1 << 38)
    return inside


# --- one file ---------------------------------------------------------------------------------------------------------------


class Watch:
    """Sees which files are opened and what else is asked of the system while a model is imported (an audit hook)."""

    WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    FORBIDDEN = re.compile(r"os\.(remove|rename|mkdir|rmdir|truncate|chmod|chown|link|symlink|system|exec|posix_spawn|fork|kill)|"
                           r"subprocess\.|socket\.|shutil\.|ctypes\.dlopen")
    CODE = (".py", ".pyc", ".so")

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve())
        self.active = False
        self.seen = ""
        sys.addaudithook(self.note)

    def __enter__(self) -> None:
        self.seen, self.active = "", True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Failure for what was seen, however the import ended."""
        self.active = False
        if self.seen:
            raise Failure("crash", "import", self.seen)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            path, mode, flags = arguments
            text = os.fsdecode(path) if isinstance(path, (str, bytes)) else str(path)
            writes = isinstance(flags, int) and flags & self.WRITES or isinstance(mode, str) and set(mode) & set("wax+")
            real = os.path.realpath(text)
            if writes or not (real.startswith(self.folder + os.sep) or text.endswith(self.CODE)):
                self.seen = f"opens {text!r} {'to write' if writes else 'outside of the folder'}"
        elif self.FORBIDDEN.match(event):
            self.seen = event


def placed(data: bytes, folder: Path) -> bytes | Path:
    """The bytes; or the path of a file, where the model may have others beside it."""
    if b"location" not in data:
        return data
    path = folder / "model.onnx"
    path.write_bytes(data)
    return path


def check_import(data: bytes, folder: Path, watch: Watch | None) -> tuple[Graph | None, str]:
    """The verified graph, or the text of the error that refuses it. Failure for all else."""
    with guarded("import"):
        source = placed(data, folder)
        try:
            with limited(IMPORT_SECONDS), watch or nullcontext():
                graph = from_onnx(source)
                verify(graph)
        except TimeIsUp:
            raise Failure("hang", "import", f"no result after {IMPORT_SECONDS:.0f} s of processor time") from None
        except InternalError:
            raise
        except TilewrightError as error:
            _check_text(error)
            return None, _reason(error)
    return graph, ""


def _reason(error: TilewrightError) -> str:
    return f"{'not supported: ' if isinstance(error, UnsupportedError) else ''}{error.message}"[:300]


def _check_text(error: TilewrightError) -> None:
    text = str(error)
    text.encode()
    if not error.message.strip():
        raise Failure("crash", "import", "the error has no text")
    if len(text) > LONGEST:
        raise Failure("crash", "import", f"the error has a text of over {LONGEST} characters")


def check_compile(graph: Graph) -> str:
    """How compiling ends: `compiled`, or the text of the error."""
    with guarded("compile"):
        try:
            with limited(COMPILE_SECONDS):
                compile_graph(graph, "cpu", Options(cache=False, threads=1))
        except TimeIsUp:
            raise Failure("hang", "compile", f"no result after {COMPILE_SECONDS:.0f} s of processor time") from None
        except InternalError:
            raise
        except TilewrightError as error:
            _check_text(error)
            return _reason(error)
    return "compiled"


def outcome_of(data: bytes, made: str, number: int, folder: Path, watch: Watch | None, compile_it: bool) -> Outcome:
    began = time.process_time()
    middle = state = reason = label = compiled = None
    try:
        graph, reason = check_import(data, folder, watch)
        middle = time.process_time()
        state = "refused" if graph is None else "imported"
        if graph is not None and compile_it:
            compiled = check_compile(graph)
    except Failure as failure:
        state, reason, label = "failed", failure.message[:2000], failure.label
    ended = time.process_time()
    middle = middle or ended
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return Outcome(number, made, state or "failed", reason or "", label or "", middle - began, compiled or "", ended - middle, peak)


# --- processes ----------------------------------------------------------------------------------------------------------------


def _work(seeds: Seeds, seed: int, numbers: Sequence[int], folder: Path, compiled: int, done: int, answers: Connection) -> None:
    """The files with these numbers; (number, None) before each, (number, outcome) after."""
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    np.seterr(all="ignore")
    watch = Watch(folder)
    for number in numbers:
        answers.send((number, None))
        data, made = hostile_file(seeds, seed, number)
        done += 1
        outcome = outcome_of(data, made, number, folder, watch, compiled < COMPILED_SHARE * done)
        compiled += outcome.compiled == "compiled"
        answers.send((number, outcome))
    answers.close()


class Worker:
    """A process with its share of the numbers; `end` says what it was at when it died."""

    def __init__(self, seeds: Seeds, seed: int, numbers: Sequence[int], folder: Path, compiled: int = 0, done: int = 0) -> None:
        context = multiprocessing.get_context("fork")
        self.numbers, self.folder, self.current = numbers, folder, numbers[0] if numbers else -1
        self.compiled, self.done, self.heard, self.killed = compiled, done, time.monotonic(), False
        self.answers, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(seeds, seed, numbers, folder, compiled, done, sender), daemon=True)
        self.process.start()
        sender.close()

    def end(self) -> Outcome | None:
        """The outcome of the file at which the process died; None where it came to its end."""
        self.process.join()
        if self.process.exitcode == 0:
            return None
        how = "hang" if self.killed else "signal"
        failure = Failure(how, "process", f"the process ended with status {self.process.exitcode}")
        return Outcome(self.current, "unknown", "failed", failure.message, failure.label)


def run(numbers: range, workers: int, seed: int, folder: Path, account: Account, say: Callable[[str], None]) -> None:
    """The files with these numbers; what is wrong is written to the folder, all is counted in the account."""
    seeds = gathered()
    newest_opset(1 << 30)  # so that what tells it is imported before files are watched
    say(f"{len(seeds.small)} small models and {len(seeds.large)} large ones to begin with; seed {seed}")
    said = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tilewright-onnx-files-") as scratch:
        alive = [Worker(seeds, seed, numbers[index::workers], furnished(Path(scratch) / str(index))) for index in range(workers)]
        while alive:
            ready = wait([worker.answers for worker in alive], timeout=5.0)
            for worker in list(alive):
                if worker.answers in ready:
                    ended = _heard(worker, account, seeds, seed, folder)
                    if ended is not None:
                        alive.remove(worker)
                        alive += ended
                elif time.monotonic() - worker.heard > SILENT_SECONDS and not worker.killed:
                    worker.killed = True
                    worker.process.kill()
            if time.monotonic() - said > 10:
                said = time.monotonic()
                say(account.line())


def _heard(worker: Worker, account: Account, seeds: Seeds, seed: int, folder: Path) -> list[Worker] | None:
    """Takes one message; the workers that follow where this one has ended."""
    worker.heard = time.monotonic()
    try:
        number, outcome = worker.answers.recv()
    except (EOFError, OSError):
        dead = worker.end()
        if dead is None:
            return []
        _note(dead, account, seeds, seed, folder)
        left = [n for n in worker.numbers if n > dead.number]
        return [Worker(seeds, seed, left, worker.folder, worker.compiled, worker.done + 1)] if left else []
    worker.current = number
    if outcome is not None:
        worker.done += 1
        worker.compiled += outcome.compiled == "compiled"
        _note(outcome, account, seeds, seed, folder)
    return None


def _note(outcome: Outcome, account: Account, seeds: Seeds, seed: int, folder: Path) -> None:
    first = account.add(outcome)
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        data, _ = hostile_file(seeds, seed, outcome.number)
        (folder / f"{outcome.label}.onnx").write_bytes(data)
        (folder / f"{outcome.label}.txt").write_text(f"seed {seed}, number {outcome.number}: {outcome.reason}\n", encoding="utf-8")


def only(seed: int, number: int, folder: Path, say: Callable[[str], None]) -> int:
    """Makes one file, keeps it, and says what becomes of it."""
    data, made = hostile_file(gathered(), seed, number)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{seed}-{number}.onnx"
    path.write_bytes(data)
    with tempfile.TemporaryDirectory() as scratch:
        outcome = outcome_of(data, made, number, furnished(Path(scratch) / "0"), None, True)
    say(f"{path} ({made}, {len(data)} bytes): {outcome.state} after {outcome.seconds:.2f} s; {outcome.compiled} {outcome.reason}")
    return int(outcome.state == "failed")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tilewright.fuzz.onnx_files", description="Imports hostile ONNX files.")
    for name, default in (("count", 100_000), ("workers", 1), ("seed", 0), ("first", 0), ("only", -1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, default=Path("onnx-findings"))
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if asked.only >= 0:
        return only(asked.seed, asked.only, asked.folder, print)
    account = Account()
    with suppress(KeyboardInterrupt):
        numbers = range(asked.first, asked.first + asked.count)
        run(numbers, max(1, asked.workers), asked.seed, asked.folder, account, lambda line: print(line, flush=True))
    print(account.text())
    return int(bool(account.failures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
