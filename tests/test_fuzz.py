"""The fuzzer as a tool: budgets, corpus, workers that die, findings, replay, the command line."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec import Struct

from tilewright.fuzz import supervisor
from tilewright.fuzz.corpus import Corpus, case_text, read_case
from tilewright.fuzz.coverage import Coverage
from tilewright.fuzz.engine import Fuzzer, Trial
from tilewright.fuzz.report import render
from tilewright.fuzz.settings import MODES, Finding, Settings, Tally, Yield
from tilewright.fuzz.subject import Failure, Refused, Verdict
from tilewright.fuzz.supervisor import Account, end_of, outcome_of, shared
from tilewright.fuzz.time_limit import processor_seconds
from tilewright.fuzz.worker import SUBJECTS
from tilewright.ir.errors import CompileError

REGRESSIONS = sorted((Path(__file__).parent / "regressions").glob("*.ir"))


class NumberCase(Struct, frozen=True):
    value: int
    steps: tuple[str, ...] = ()


class Numbers:
    """A subject of numbers: those from 100 on fail, negative ones are refused."""

    name = "number"
    share = 1
    fresh = 1 / 4
    seeds_as = "code"

    def __init__(self) -> None:
        self.checked: list[NumberCase] = []

    def seeds(self, domain: bool = True) -> Iterator[NumberCase]:
        yield from (NumberCase(n) for n in range(5))

    def generate(self, rng: np.random.Generator, domain: bool = True) -> NumberCase:
        return NumberCase(int(rng.integers(-5, 20)))

    def mutators(self) -> tuple[str, ...]:
        return ("double", "domain.more")

    def mutate_program(self, case: NumberCase, rng: np.random.Generator, donor: NumberCase | None,
                       allowed: frozenset[str]) -> tuple[NumberCase, str] | None:
        name = sorted(allowed)[int(rng.integers(len(allowed)))]
        return NumberCase(case.value * 2 if name == "double" else case.value + 9, case.steps), name

    def mutate_passes(self, case: NumberCase, rng: np.random.Generator, donor: NumberCase | None) -> tuple[NumberCase, str]:
        return NumberCase(case.value, (*case.steps, "noted", "idle")[-4:]), "add"

    def with_pipeline(self, case: NumberCase) -> NumberCase:
        return NumberCase(case.value, ("noted",))

    def with_random_passes(self, case: NumberCase, rng: np.random.Generator) -> NumberCase:
        return NumberCase(case.value, ("noted",) * int(rng.integers(3)))

    def without_passes(self, case: NumberCase, changed: tuple[str, ...]) -> NumberCase:
        return NumberCase(case.value, tuple(s for s in case.steps if s in changed))

    def check(self, case: NumberCase, native: bool) -> Verdict:
        self.checked.append(case)
        if case.value < 0:
            raise Refused("number: negative")
        if case.value >= 100:
            raise Failure("result", "numbers", f"expected less than 100, found {case.value}")
        return Verdict(("noted",) if "noted" in case.steps else (), native)

    def smaller(self, case: NumberCase) -> Iterator[NumberCase]:
        if case.steps:
            yield NumberCase(case.value)
        yield from (NumberCase(n) for n in (0, case.value // 2, case.value - 1) if 0 <= n < case.value)

    def size(self, case: NumberCase) -> int:
        return case.value + len(case.steps)

    def format(self, case: NumberCase) -> str:
        return json.dumps([case.value, case.steps]) + "\n"

    def parse(self, text: str) -> NumberCase:
        try:
            value, steps = json.loads(text)
            return NumberCase(int(value), tuple(steps))
        except (ValueError, TypeError) as error:
            raise CompileError(f"no number: {error}") from None


def fuzzer(folder: Path, **settings: Any) -> tuple[Fuzzer, Numbers, list[Finding]]:
    subject, found = Numbers(), []
    corpus = Corpus(folder, {"number": subject})
    return Fuzzer([subject], corpus, Settings(**{"iterations": 300, **settings}), 0, found.append, Coverage({})), subject, found


def drained(made: Fuzzer) -> Tally:
    for _ in made.run():
        pass
    return made.tally


# --- the loop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_keeps_to_its_budget(mode: str, tmp_path: Path) -> None:
    made, subject, _ = fuzzer(tmp_path, mode=mode, reduce=False)
    tally = drained(made)
    assert tally.programs == 300 == len(subject.checked)
    assert sum(row.tried for row in tally.mutators.values()) == 300
    if not MODES[mode].domain:
        assert "domain.more" not in tally.mutators


def test_a_failure_is_reduced_written_and_told_once(tmp_path: Path) -> None:
    made, subject, found = fuzzer(tmp_path, mode="general-blind")
    drained(made)
    finding, = found
    assert finding.signature == "result in numbers" and made.signatures[finding.signature] > 1
    assert finding.size == 100, "the least number that fails, without steps"
    text = (tmp_path / "findings" / f"{finding.label}.ir").read_text()
    assert f"--replay {finding.label}.ir" in text and "#! expected less than 100, found 100" in text
    again, case = read_case(text, {"number": subject}, "file")
    assert again is subject and case == NumberCase(100)
    assert (tmp_path / "findings" / f"{finding.label}.full.ir").exists()


def test_what_passes_show_is_reduced_without_machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, subject, found = fuzzer(tmp_path, mode="general-blind", native_share=1.0, stop_at_first=True)
    asked: list[bool] = []
    original = subject.check
    monkeypatch.setattr(subject, "check", lambda case, native: asked.append(native) or original(case, native))
    drained(made)
    assert found[0].size == 100 and asked[:asked.index(False)] == [True] * made.tally.programs and not any(asked[made.tally.programs:])


def test_it_ends_at_the_first_finding(tmp_path: Path) -> None:
    made, _, found = fuzzer(tmp_path, mode="general-blind", stop_at_first=True, iterations=10_000)
    assert drained(made).programs < 10_000 and len(found) == 1


def test_the_same_seed_does_the_same(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        made, subject, _ = fuzzer(tmp_path / name, mode="general-blind", seed=7)
        drained(made)
        runs.append(subject.checked)
    assert runs[0] == runs[1]


def test_what_gains_by_its_passes_becomes_machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, subject, _ = fuzzer(tmp_path, iterations=40, native_share=1e-9)
    monkeypatch.setattr(made.coverage, "gained", lambda: 1)
    trials: list[Trial] = []
    original = made.program
    monkeypatch.setattr(made, "program", lambda trial: trials.append(trial) or original(trial))
    drained(made)
    seeds = [trial for trial in trials if trial.maker == "seed"]
    assert [trial.case for trial in seeds] == 2 * list(subject.seeds())  # by their passes, then as machine code
    assert [trial.native for trial in seeds] == [False] * (len(seeds) // 2) + [True] * (len(seeds) // 2)
    waiting = [trial.case for trial in trials if trial.native is None and trial.case.value >= 0]
    promoted = [trial for trial in trials if trial.maker == "as machine code"]
    assert promoted and all(trial.native and not trial.keep for trial in promoted)
    assert [trial.case for trial in promoted] == [NumberCase(c.value, ()) for c in waiting[:len(promoted)]]
    assert made.tally.native == len(seeds) // 2 + len(promoted)


def test_nothing_becomes_machine_code_without_a_share(tmp_path: Path) -> None:
    made, _, _ = fuzzer(tmp_path, native_share=0.0)
    assert drained(made).native == 0


def test_time_is_a_budget(tmp_path: Path) -> None:
    made, _, _ = fuzzer(tmp_path, iterations=0, seconds=0.5, reduce=False)
    began = time.monotonic()
    drained(made)
    assert made.tally.programs and time.monotonic() - began < 30


def test_passes_are_mutated_after_barren_mutations(tmp_path: Path) -> None:
    made, subject, _ = fuzzer(tmp_path, reduce=False)
    made.corpus.add(subject, NumberCase(3))
    tally = drained(made)
    mutations = sum(tally.mutators[name].tried for name in ("double", "domain.more"))
    assert mutations / 5 < tally.mutators["passes.add"].tried < mutations / 3  # one after each 4


def test_a_type_rule_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, subject, found = fuzzer(tmp_path, mode="general-blind", stop_at_first=True)

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("modulo by zero")

    monkeypatch.setattr(subject, "mutate_program", fail)
    drained(made)
    assert found[0].signature == "crash in type rules: ZeroDivisionError: modulo by zero (test_fuzz.py: fail)"


def test_a_hang_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, subject, found = fuzzer(tmp_path, hang_seconds=0.2, stop_at_first=True)

    def endless(case: NumberCase, native: bool) -> Verdict:
        while True:  # the limit is of processor time
            pass

    monkeypatch.setattr(subject, "check", endless)
    drained(made)
    assert found[0].kind == "hang"


# --- the corpus --------------------------------------------------------------------------------------------------------


def test_a_corpus_is_taken_up_again(tmp_path: Path) -> None:
    subject = Numbers()
    first = Corpus(tmp_path, {"number": subject})
    for value in (3, 4):
        first.add(subject, NumberCase(value, ("noted",)))
    second = Corpus(tmp_path, {"number": subject})
    assert sorted(entry.case.value for entry in second.refresh()) == [3, 4]
    assert list(second.refresh()) == []
    first.add(subject, NumberCase(5))
    assert [entry.case.value for entry in second.refresh()] == [5]


def test_damaged_files_are_left_alone_and_named(tmp_path: Path) -> None:
    subject = Numbers()
    Corpus(tmp_path, {"number": subject}).add(subject, NumberCase(3))
    good = next((tmp_path / "corpus").iterdir())
    (tmp_path / "corpus" / "number-cut.case").write_text(good.read_text()[:-4])
    (tmp_path / "corpus" / "number-old.case").write_text(good.read_text().replace("format 1", "format 0"))
    (tmp_path / "corpus" / "number-bytes.case").write_bytes(b"\xff\xfe")
    corpus = Corpus(tmp_path, {"number": subject})
    assert [entry.case.value for entry in corpus.refresh()] == [3]
    assert sorted(corpus.unreadable) == ["number-bytes.case", "number-cut.case", "number-old.case"]
    assert "expected '# tilewright fuzz, format 1: '" in corpus.unreadable["number-old.case"]
    assert len(list((tmp_path / "corpus").iterdir())) == 4


def test_signatures_join_what_has_one_cause() -> None:
    crash = [Failure("crash", "fuse", f"KeyError: '{name}' of %{n} (compiler/passes/fuse.py: claim)") for n, name in enumerate("ab")]
    assert crash[0].signature == crash[1].signature and crash[0].label == crash[1].label
    assert Failure("result", "fuse", "x").signature == Failure("result", "fuse", "y").signature
    assert Failure("result", "fuse", "x").signature != Failure("result", "lower", "x").signature


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_subjects_read_what_they_write(subject: Any) -> None:
    rng = np.random.default_rng(4)
    for case in (subject.generate(rng), subject.mutate_passes(subject.generate(rng), rng, None)[0], next(iter(subject.seeds()))):
        text = case_text(subject, case, "said\ntwice")
        found, again = read_case(text, SUBJECTS, "file")
        assert found is subject and subject.format(again) == subject.format(case)
    for damaged in ("", "# tilewright fuzz, format 1: nothing\n", "# tilewright fuzz, format 1: " + subject.name + "\n\n"):
        with pytest.raises(CompileError):
            read_case(damaged, SUBJECTS, "file")


# --- processes ---------------------------------------------------------------------------------------------------------


def command(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tilewright", "fuzz", *arguments], capture_output=True, text=True, timeout=300,
                          check=False, **more)


def test_a_run_of_the_command(tmp_path: Path) -> None:
    done = command("--iterations", "12", "--seed", "3", "--workers", "2", "--subject", "graph", "--folder", str(tmp_path / "f"),
                   "--json", str(tmp_path / "account.json"), "--report", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stdout + done.stderr
    account = json.loads((tmp_path / "account.json").read_text())
    assert sum(t["programs"] for t in account["tallies"].values()) == 12 and account["settings"]["seed"] == 3
    assert "0 findings" in done.stdout and "seed 3" in done.stderr
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert list((tmp_path / "f" / "corpus").glob("graph-*.case"))


@pytest.mark.parametrize(("arguments", "message"), [
    (["--seconds", "0"], "--seconds"),
    (["--iterations", "0"], "--iterations"),
    (["--mode", "wild"], "--mode"),
    (["--subject", "music"], "--subject"),
    (["--replay", "no-such-file"], "does not exist"),
])
def test_bad_command_lines(arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("--iterations", "1", "--folder", str(tmp_path / "file" / "below"))
    assert done.returncode == 1 and "cannot be written" in done.stderr and "Traceback" not in done.stderr


def test_a_replayed_file_without_a_case(tmp_path: Path) -> None:
    (tmp_path / "x.ir").write_text("graph @g")
    done = command("--replay", str(tmp_path / "x.ir"))
    assert done.returncode == 1 and "no case of the fuzzer" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_loses_nothing_that_was_found(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-m", "tilewright", "fuzz", "--seconds", "120", "--workers", "1", "--subject", "graph", "--folder",
                           str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 100
        while not list((tmp_path / "corpus").glob("*.case")) and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert "programs" in out
    kept = list((tmp_path / "corpus").glob("*.case"))
    assert kept and all(read_case(p.read_text(), SUBJECTS, p.name) for p in kept)


def test_a_worker_that_dies_is_a_finding() -> None:
    failure = end_of(signal.SIGSEGV)
    assert failure.kind == "signal" and "SIGSEGV" in failure.message
    assert end_of(0, killed="hang").kind == "hang"


@pytest.mark.parametrize(("waits", "limit", "least", "most"), [("while True: pass", 0.5, 0.0, 4.9), ("import time; time.sleep(60)", 0.15, 1.4, 30.0)])
def test_a_worker_hangs_by_its_own_time(waits: str, limit: float, least: float, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock only after ten times as long."""
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, "-c", waits))
    settings, began = Settings(hang_seconds=limit / 2), time.monotonic()
    worker = supervisor._Worker(0, tmp_path, settings, queue.Queue())
    while not worker.killed and time.monotonic() - began < most:
        supervisor._watch({0: worker}, settings)
        time.sleep(0.01)
    taken, killed = time.monotonic() - began, worker.killed
    worker.stop(signal.SIGKILL)
    worker.process.wait()
    assert killed == "hang" and least < taken < most


def test_a_case_that_takes_too_long_is_a_hang() -> None:
    assert end_of(signal.SIGXCPU).kind == "hang"


def test_processor_time_of_nothing() -> None:
    assert processor_seconds(os.getpid()) > 0.05 and processor_seconds(2**22 + 1) == 0


def test_a_worker_that_somebody_ends_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its case does not fail in a process of its own: that is said, and nothing is reduced."""
    ended: list[int] = []

    def end_once(workers: Any, settings: Settings) -> None:
        if not ended and (tmp_path / "current-0.case").exists():
            ended.append(workers[0].process.pid)
            os.kill(ended[0], signal.SIGSEGV)

    monkeypatch.setattr(supervisor, "_watch", end_once)
    monkeypatch.setattr(supervisor, "_reduced", None)
    account = supervisor.fuzz(tmp_path, Settings(iterations=9, seed=3, subjects=("graph",), native_share=1.0), lambda account: None)
    finding, = account.findings
    assert account.deaths == 1 and account.tallies[0].native
    assert finding.kind == "signal" and finding.message == "the process ended by SIGSEGV, not so when its case ran in a process of its own"
    assert sorted(p.name for p in (tmp_path / "findings").iterdir()) == [f"{finding.label}.full.ir", f"{finding.label}.ir"]


def test_a_death_that_comes_again_is_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "findings").mkdir()
    (tmp_path / "current-0.case").write_text("large")
    failure = end_of(signal.SIGSEGV)

    def answer(kind: str, file: str, *arguments: str, seconds: float) -> dict[str, Any]:
        if kind == "reduce":
            Path(file).with_suffix(supervisor.TRIAL).write_text("what was tried last")
            return {"text": "small", "size": 2}
        return {"outcome": "failure", "signature": failure.signature}

    monkeypatch.setattr(supervisor, "_asked", answer)
    account = Account()
    dead = SimpleNamespace(index=0, killed="", done=False, process=SimpleNamespace(returncode=-signal.SIGSEGV))
    for _ in range(2):
        supervisor._report_death(account, dead, tmp_path, Settings(), 1.0)  # type: ignore[arg-type]
    finding, = account.findings
    assert (finding.signature, finding.text, finding.size) == (failure.signature, "small", 2)
    assert sorted(p.suffix for p in (tmp_path / "findings").iterdir()) == [".ir", ".ir"]


def test_a_worker_that_does_not_end_is_no_hang_of_its_last_case(tmp_path: Path) -> None:
    (tmp_path / "findings").mkdir()
    (tmp_path / "current-0.case").write_text("case")
    account = Account()
    dead = SimpleNamespace(index=0, killed="hang", done=True, process=SimpleNamespace(returncode=-signal.SIGKILL))
    supervisor._report_death(account, dead, tmp_path, Settings(), 1.0)  # type: ignore[arg-type]
    finding, = account.findings
    assert (finding.kind, finding.stage) == ("hang", "exit") and "after its last program" in finding.message


def test_a_worker_ends_once_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long search freeing its objects took longer than the supervisor waited: that was a hang."""
    freed = tmp_path / "freed"
    script = f"import atexit, pathlib, sys\natexit.register(pathlib.Path({str(freed)!r}).touch)\n"
    script += "from tilewright.fuzz.worker import main\nmain(sys.argv[1:])"
    monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, "-c", script))
    account = supervisor.fuzz(tmp_path, Settings(iterations=2, subjects=("dims",)), lambda account: None)
    assert account.programs == 2 and not account.deaths and not account.findings and not freed.exists()


def test_budgets_are_divided() -> None:
    settings = Settings(iterations=10, workers=3)
    assert [shared(settings, i).iterations for i in range(3)] == [4, 3, 3]


def test_the_report_shows_what_was_found() -> None:
    account = Account(seconds=3.0, findings=[Finding("l", "s <b>", "result", "fuse", "m", 1.0, 5, 7, "graph <x>")],
                      tallies={0: Tally(programs=5, mutators={"insert": Yield(3, 2, 1)}, curve=[(0.0, 1, 2, 3), (1.0, 2, 4, 4)],
                                        refusals={"lower": 2})}, unreadable={"graph-x.case": "cut"})
    page = render(Settings(seed=11), account)
    for text in ("s &lt;b&gt;", "graph &lt;x&gt;", "insert", "Seed 11", "polyline", "lower", "graph-x.case"):
        assert text in page


# --- what was found ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_regressions_stay_fixed(path: Path) -> None:
    """Each in a process of its own, as `tilewright fuzz --replay` runs them: what ended one may do so again."""
    assert outcome_of(path)["outcome"] == "right"


def test_replay_says_right() -> None:
    assert outcome_of(REGRESSIONS[0])["outcome"] == "right"
