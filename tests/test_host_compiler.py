"""What the emulation compiles: where its files lie, for how long, and what they are made of."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compilers import needs_compiler
from tilewright.backends.cuda import host_compiler
from tilewright.backends.cuda.host_compiler import FOLDER, EmulationError, compile_kept, load_library, run_compiler
from tilewright.runtime.cache import Cache


@pytest.fixture
def new_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets the folder of this process, as if another one began."""
    begin = functools.partial(monkeypatch.setattr, host_compiler, "_process_folder")
    made = host_compiler._process_folder.__wrapped__
    begin(functools.cache(made))
    return lambda: begin(functools.cache(made))


def test_files_are_kept_in_the_cache(tmp_path: Path, new_process: Callable[[], None]) -> None:
    written = []

    def write(place: Path) -> None:
        written.append(place)
        place.write_bytes(b"made" * 1000)

    cache = Cache(tmp_path)
    first = compile_kept("emulation", "one.o", ("a", "b"), write, cache)
    assert compile_kept("emulation", "one.o", ("a", "b"), write, None) == first and len(written) == 1  # this process has it
    new_process()
    second = compile_kept("emulation", "one.o", ("a", "b"), write, cache)
    assert second != first and second.read_bytes() == first.read_bytes() == b"made" * 1000 and second.name == "one.o"
    assert len(written) == 1 and [entry.name for entry in cache.entries()] == ["emulation"]
    compile_kept("emulation", "one.o", ("a", "c"), write, cache)
    assert len(written) == 2 and len(cache.entries()) == 2
    compile_kept("emulation", "one.o", ("a", "d"), write, Cache(tmp_path, limit=4500))
    assert len(cache.entries()) == 1
    new_process()
    compile_kept("emulation", "one.o", ("a", "b"), write, None)
    assert len(written) == 4 and len(cache.entries()) == 1  # nothing is kept where there is no cache
    assert not [place for place in written if place.exists()]


def test_what_fails_leaves_nothing(tmp_path: Path, new_process: Callable[[], None]) -> None:
    def write(place: Path) -> None:
        place.write_bytes(b"half")
        raise EmulationError("refused")

    with pytest.raises(EmulationError, match="refused"):
        compile_kept("emulation", "one.o", ("x",), write, Cache(tmp_path))
    assert Cache(tmp_path).entries() == []
    assert compile_kept("emulation", "one.o", ("x",), Path.touch, None).exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, new_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(EmulationError, match="(?s)files of the emulation cannot be written: .*absent.*TMPDIR names"):
        compile_kept("emulation", "one.o", ("x",), Path.touch, None)


def test_a_full_disk(tmp_path: Path, new_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'fatal error: error writing to made.s: No space left on device' >&2\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setattr(host_compiler, "host_compiler", lambda: str(compiler))
    with pytest.raises(EmulationError, match="(?s)files of the emulation cannot be written: .*No space left on device.*TMPDIR names"):
        compile_kept("emulation", "one.o", ("x",), lambda place: run_compiler(["-c"], place.parent), None)


def test_a_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "kernels.so").write_bytes(b"no library")
    with pytest.raises(EmulationError, match="(?s)a library of the emulation cannot be loaded: .*kernels.so"):
        load_library(tmp_path / "kernels.so")


def test_the_folder_goes_with_its_process() -> None:
    """Not with one that it forked."""
    code = """
import os
from pathlib import Path
from tilewright.backends.cuda.host_compiler import compile_kept
place = compile_kept("emulation", "one.o", ("x",), Path.touch, None)
child = os.fork()
if child == 0:
    assert compile_kept("emulation", "one.o", ("x",), Path.touch, None).parents[1] != place.parents[1]
    raise SystemExit
assert os.waitpid(child, 0)[1] == 0 and place.exists()
print(place.parents[1])
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(finished.stdout.strip()).exists()


@needs_compiler
def test_equal_sources_give_equal_files(tmp_path: Path) -> None:
    """Whatever folder they are compiled in, which they do not name, nor that of the package."""
    made = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "source.cpp").write_text('#include "emulation.h"\nint f(int x) { return x + 1; }\n')
        run_compiler(["-g", "-c", "source.cpp", "-o", "made.o"], folder)
        made.append((folder / "made.o").read_bytes())
    assert made[0] == made[1] and str(tmp_path).encode() not in made[0] and str(FOLDER).encode() not in made[0]
