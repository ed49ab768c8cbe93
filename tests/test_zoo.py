"""The bug zoo: its diffs fit this tree, its headers say what they must, and witnesses tell a wrong compiler from a right one.

A sample of witnesses is run here; `make zoo` runs all of them.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path

import pytest

from tilewright.fuzz import zoo_runner
from tilewright.fuzz.zoo_runner import ZOO, Bug, apply_diff, check_witnesses, copied_tree, fuzz_command, main, read_bug, read_zoo
from tilewright.ir.errors import CompileError

SAMPLE = ("select_of_not_keeps_sides", "dependence_at_distance_one", "nine_digits_of_a_double")
STALE_SHARE = 0.1  # of the diffs; moved lines alone must not fail the suite


def test_there_are_enough_bugs_of_all_parts() -> None:
    bugs = read_zoo()
    assert len(bugs) >= 40
    assert len({bug.name.partition("_")[2] for bug in bugs}) == len(bugs)
    assert max(Counter(bug.kind for bug in bugs).values()) <= len(bugs) // 8
    assert sum(bug.model == "own" for bug in bugs) <= len(bugs) // 4
    assert {bug.needs for bug in bugs} == {"python", "rebuild"}


def test_every_diff_has_a_witness_and_every_witness_a_diff() -> None:
    named = {bug.name for bug in read_zoo()}
    assert {path.stem for path in ZOO.glob("[0-9]*.py")} == named
    for name in named:
        assert "def witness() -> bool:" in (ZOO / f"{name}.py").read_text(encoding="utf-8")


def test_diffs_fit_the_tree() -> None:
    """Those that do not are named; `make zoo` is then to be made good again."""
    bugs = read_zoo()
    with copied_tree() as place:
        stale = [bug.name for bug in bugs if apply_diff(bug, place, dry_run=True)]
    if stale:
        warnings.warn(f"diffs of the zoo that no longer apply: {', '.join(stale)}", stacklevel=1)
    assert len(stale) <= STALE_SHARE * len(bugs), stale


def test_a_diff_is_applied_to_the_copy_alone() -> None:
    bug = _sample()[0]
    target = next(line[6:] for line in bug.diff.read_text().splitlines() if line.startswith("+++ b/"))
    before = (zoo_runner.TREE / target).read_bytes()
    with copied_tree() as place:
        assert not (place / "fuzz" / "zoo").exists()
        assert (place / target).read_bytes() == before
        if not apply_diff(bug, place):
            assert (place / target).read_bytes() != before
            assert apply_diff(bug, place) != ""  # not twice
    assert (zoo_runner.TREE / target).read_bytes() == before
    assert not place.exists()


@pytest.mark.slow
def test_witnesses_see_the_bug_and_nothing_else() -> None:
    for check in check_witnesses(_sample(), workers=1):
        assert check.outcome in ("good", "stale"), check


def test_a_stale_diff_is_reported_by_name(tmp_path: Path) -> None:
    bug = _write(tmp_path, "--- a/ir/dims.py\n+++ b/ir/dims.py\n@@ -1 +1 @@\n-no such line\n+another\n")
    with copied_tree() as place:
        check = zoo_runner.prepare(bug, place)
    assert check is not None and (check.name, check.outcome) == ("01_some", "stale") and "FAILED" in check.message


def test_a_diff_whose_lines_have_moved_is_renewed(tmp_path: Path) -> None:
    """Here they are made to have moved: the diff counts its lines from elsewhere."""
    bug = _sample()[0]
    text = bug.diff.read_text()
    moved = Bug(tmp_path, bug.name, bug.title, bug.kind, bug.model, bug.needs)
    moved.diff.write_text(re.sub(r"@@ -(\d+)", lambda found: f"@@ -{int(found[1]) + 3}", text))
    assert moved.diff.read_text() != text
    assert zoo_runner.renew(moved) == ""
    with copied_tree() as place:
        assert apply_diff(moved, place) == ""
    assert moved.diff.read_text().count("@@ -") == text.count("@@ -") and read_bug(moved.diff).title == bug.title


@pytest.mark.parametrize("head, message", [
    ("# title: x\n", "the first lines must be"),
    ("# title: x\n# class: y\n# needs: python\n# model: own\n", "the first lines must be"),
    ("# title: x\n# class: \n# model: own\n# needs: python\n", "the first lines must be"),
    ("# title: x\n# class: y\n# model: own\n# needs: luck\n", "needs must be python or rebuild"),
    ("# title: x\n# class: y\n# model: somewhere\n# needs: python\n", "model a URL or own"),
])
def test_bad_headers_are_refused(tmp_path: Path, head: str, message: str) -> None:
    (tmp_path / "01_some.diff").write_text(head)
    with pytest.raises(CompileError, match=message):
        read_bug(tmp_path / "01_some.diff")


def test_no_zoo_and_no_such_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no_such_bug"]) == 2
    assert "found no diff whose name begins with no_such_bug" in capsys.readouterr().err
    assert main(["--zoo", str(tmp_path / "nowhere")]) == 2
    assert "there is no zoo here" in capsys.readouterr().err


def test_patch_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zoo_runner.shutil, "which", lambda name: None)
    with pytest.raises(CompileError, match="the program `patch` is not installed"):
        apply_diff(_sample()[0], tmp_path)


def test_the_command_of_a_hunt_is_one_that_exists(tmp_path: Path) -> None:
    """Its options, parsed by the command line that it calls."""
    from tilewright.cli_fuzz import fuzz_command as command

    arguments = fuzz_command(1.5, 7, tmp_path, ["--mode", "joint"])[4:]
    context = command.make_context("fuzz", arguments)
    assert (context.params["seconds"], context.params["seed"], context.params["stop_at_first"]) == (1.5, 7, True)


def _sample() -> list[Bug]:
    return [bug for bug in read_zoo() if bug.name.partition("_")[2] in SAMPLE]


def _write(folder: Path, diff: str) -> Bug:
    path = folder / "01_some.diff"
    path.write_text("# title: x\n# class: y\n# model: own\n# needs: python\n" + diff)
    return read_bug(path)
