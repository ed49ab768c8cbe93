"""`tilewright fuzz`: search for wrong code, and replay what was found."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from .cli_shared import answer, write_out
from .fuzz.settings import MODES, Settings
from .fuzz.supervisor import Account, free_cores, fuzz, outcome_of, regression_files
from .ir.errors import UnsupportedError, cannot_write
from .runtime.artifact import write_bytes

SUBJECTS = ("graph", "cuda", "kernel", "dims", "bytes")
DEFAULT_SECONDS = 60.0
SHOWN = 12  # rows of a table of yields


@click.command("fuzz")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Time budget.  [default: 60, unless --iterations]")
@click.option("--iterations", type=click.IntRange(1), help="Budget in programs, over all workers.")
@click.option("--seed", type=click.IntRange(0), help="Seed of all random choices.  [default: from the clock, and printed]")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes.  [default: a core each]")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False),
              help="Corpus and findings; a run goes on where the last one there ended.  [default: a new temporary one]")
@click.option("--subject", "subjects", multiple=True, type=click.Choice(SUBJECTS), help="What to fuzz.  [default: all]")
@click.option("--model", "models", multiple=True, type=click.Path(exists=True, dir_okay=False),
              help="Pieces of this model (.onnx, .ir) are seeds too; may be repeated.")
@click.option("--mode", type=click.Choice(tuple(MODES)), default="joint", show_default=True, help="For comparisons: leave parts out.")
@click.option("--patience", type=click.IntRange(1), default=4, show_default=True,
              help="Mutations of a program in a row without new coverage, before its passes are mutated.")
@click.option("--native-share", type=click.FloatRange(0, 1), default=Settings().native_share, show_default=True,
              help="Share of programs that become machine code, besides seeds and what gained coverage; 0: none does.")
@click.option("--hang-seconds", type=click.FloatRange(1), default=Settings().hang_seconds, show_default=True,
              help="A program that takes longer is a finding.")
@click.option("--memory", "memory_bytes", type=click.IntRange(1 << 28), help="Bytes of address space of a worker.")
@click.option("--stop-at-first", is_flag=True, help="End with the first finding.")
@click.option("--no-reduce", is_flag=True, help="Leave findings as they were found.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML report.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
              help="Write the account as JSON (-: stdout).")
@click.option("--replay", "replayed", multiple=True, type=click.Path(path_type=Path, exists=True),
              help="Check a file, or all files of a folder, instead; may be repeated.")
def fuzz_command(seconds: float | None, iterations: int | None, seed: int | None, workers: int | None, folder: Path | None,
                 subjects: Sequence[str], models: Sequence[str], mode: str, patience: int, native_share: float, hang_seconds: float,
                 memory_bytes: int | None, stop_at_first: bool, no_reduce: bool, report: Path | None, json_path: Path | None,
                 replayed: Sequence[Path]) -> None:
    """Search for programs that the compiler gets wrong, guided by coverage.

    Programs and sequences of passes are mutated together; every pass is checked by evaluating the program before and after
    it, lowered kernels by their interpreter, and a share of programs as machine code. Exit status 1: something was found.
    """
    render = None if report is None else load_report()
    if replayed:
        sys.exit(replay([file for path in replayed for file in regression_files(path)], json_path))
    settings = Settings(
        seconds=seconds or (0.0 if iterations else DEFAULT_SECONDS), iterations=iterations or 0,
        seed=int(time.time()) if seed is None else seed, mode=mode, subjects=tuple(subjects) or SUBJECTS, patience=patience,
        native_share=native_share, hang_seconds=hang_seconds, memory_bytes=memory_bytes or 0, stop_at_first=stop_at_first,
        models=tuple(map(os.path.abspath, models)), reduce=not no_reduce, workers=workers or free_cores())
    place = Path(tempfile.mkdtemp(prefix="tilewright-fuzz-")) if folder is None else folder
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(place, error) from None
    click.echo(f"seed {settings.seed}, {settings.workers} workers, folder {place}", err=True)
    line = _Line()
    account = fuzz(place, settings, line.show)
    line.clear()
    data = {"settings": msgspec.to_builtins(settings), "folder": str(place), **msgspec.to_builtins(account)}
    if json_path is not None and str(json_path) != "-":
        write_bytes(json_path, msgspec.json.format(msgspec.json.encode(data)))
    if render is not None and report is not None:
        write_bytes(report, render(settings, account).encode())
    answer(json_path is not None and str(json_path) == "-", data, list(summary(account)))
    if account.interrupted:
        raise KeyboardInterrupt
    sys.exit(1 if account.findings else 0)


def load_report() -> Callable[[Settings, Account], str]:
    """What makes the page, found before hours are spent."""
    try:
        from .fuzz.report import render
    except ImportError as error:
        raise UnsupportedError(f"--report needs {error.name}", hint="pip install 'tilewright[fuzz]'") from None
    return render


class _Line:
    """The line of progress, on a terminal only."""

    def __init__(self) -> None:
        self.shown = 0.0
        self.enabled = sys.stderr.isatty()

    def show(self, account: Account) -> None:
        if self.enabled and time.monotonic() - self.shown > 0.25:
            self.shown = time.monotonic()
            click.echo("\r\033[K" + headline(account), err=True, nl=False)

    def clear(self) -> None:
        if self.enabled:
            click.echo("\r\033[K", err=True, nl=False)


def headline(account: Account) -> str:
    rate = account.programs / account.seconds if account.seconds else 0.0
    return (f"{account.seconds:.1f} s: {account.programs} programs ({rate:.0f} a second), {account.arcs} arcs of coverage, "
            f"{account.corpus} in the corpus, {len(account.findings)} findings")


def summary(account: Account) -> list[str]:
    """What was done and found, for people."""
    lines = [headline(account)]
    for table in ("mutators", "passes"):
        rows = sorted(account.yields(table).items(), key=lambda item: (-item[1].gained, -item[1].tried))[:SHOWN]
        if rows:
            lines.append(f"{table:28}{'tried':>9}{'gained':>9}{'found':>9}")
            lines += [f"  {name:26}{row.tried:9}{row.gained:9}{row.found:9}" for name, row in rows]
    lines += [f"not readable, left alone: {name}: {why}" for name, why in sorted(account.unreadable.items())]
    for finding in account.findings:
        lines += [f"found after {finding.seconds:.1f} s: {finding.signature}", f"  {finding.message.splitlines()[0]}",
                  f"  {finding.label}.ir, size {finding.size}"]
    return lines


def replay(files: Sequence[Path], json_path: Path | None) -> int:
    """Checks each file in a process of its own; 1 where one fails."""
    outcomes: list[dict[str, Any]] = []
    for file in files:
        outcome = {"file": str(file), **outcome_of(file)}
        outcomes.append(outcome)
        if json_path is None:
            said = outcome.get("signature") or outcome.get("message") or ""
            write_out(f"{file}: {outcome['outcome']}{': ' + said if said else ''}\n")
    if json_path is not None:
        text = msgspec.json.format(msgspec.json.encode(outcomes))
        if str(json_path) == "-":
            write_out(text.decode() + "\n")
        else:
            write_bytes(json_path, text)
    return 1 if any(outcome["outcome"] == "failure" for outcome in outcomes) else 0
