"""The compile cache: hits, misses and their reasons, several processes, damage, bounds, folders that cannot be used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright import driver
from tilewright.key_facts import add_facts
from tilewright.options import read_environment
from tilewright.runtime import cache as cache_module
from tilewright.runtime.cache import Cache, Key

WEIGHT = np.arange(5000, dtype=np.float32).reshape(50, 100) / 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tilewright.driver.sources_changed", lambda: False)  # whatever an editor does meanwhile
    return tmp_path / "cache"


def graph(weight: np.ndarray = WEIGHT, offset: float = 1.0) -> tw.Graph:
    return tw.trace(lambda x: x @ weight + np.float32(offset), args=(tw.spec(("n", 50), "float32"),), name="model")


def compiled(**changes) -> bool:
    """Whether a compile was a hit; its result is right either way."""
    weight = changes.pop("weight", WEIGHT)
    offset = changes.pop("offset", 1.0)
    executable = tw.compile(graph(weight, offset), **changes)
    x = np.ones((2, 50), np.float32)
    np.testing.assert_allclose(executable(x), x @ weight + np.float32(offset), rtol=1e-4)
    return executable.metadata["cached"]


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "entries").iterdir()) if (folder / "entries").exists() else []


# --- hits and misses ---


def test_the_second_compile_is_a_hit(folder: Path) -> None:
    assert [compiled(), compiled()] == [False, True]
    assert len(entries(folder)) == 1


@pytest.mark.parametrize("changes, reason", [
    ({"offset": 2.0}, "the program changed"),
    ({"weight": WEIGHT + 1}, "the values of constants changed"),
    ({"options": tw.Options(precision="strict")}, "the options changed: precision=default -> precision=strict"),
    ({"target": "cpu:x86-64-v2"}, r"the target changed: .+ -> .*x86-64-v2.*"),
], ids=["program", "constants", "options", "target"])
def test_what_matters_makes_a_miss_and_the_reason_is_told(folder: Path, changes: dict, reason: str) -> None:
    assert not compiled()
    assert not compiled(**changes)
    assert compiled(**changes) and compiled()
    newest = max(Cache(folder).entries(), key=lambda entry: entry.created)
    assert re.fullmatch(reason, newest.reason), newest.reason


def test_what_does_not_matter_makes_no_miss(folder: Path) -> None:
    assert not compiled()
    assert compiled(options=tw.Options(threads=1)) and compiled(options=tw.Options(cache_bytes=1 << 30))


def test_the_source_of_tilewright_matters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compiled()
    monkeypatch.setattr("tilewright.driver.source_digest", lambda: "another version")
    assert not compiled()
    newest = max(Cache(folder).entries(), key=lambda entry: entry.created)
    assert newest.reason == "tilewright itself changed"


def test_sources_that_are_no_python_matter() -> None:
    """Headers that kernels of GPUs are compiled with, and the emulation."""
    folder = Path(cache_module.__file__).parent.parent / "backends" / "cuda"
    found = set(cache_module._source_files(str(folder)))
    assert {str(path) for path in folder.iterdir() if path.is_file()} <= found and str(folder / "device.h") in found


def test_code_of_changed_sources_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.driver.sources_changed", cache_module.sources_changed)
    monkeypatch.setattr(cache_module, "STARTED", 0.0)  # so that every file is newer
    assert [compiled(), compiled()] == [False, False] and entries(folder) == []
    monkeypatch.setattr(cache_module, "STARTED", time.time() + 1000)
    assert [compiled(), compiled()] == [False, True]


def test_explain_says_nothing_of_a_hit(folder: Path) -> None:
    compiled()
    cache = driver.open_cache(read_environment(), tw.Options())
    assert cache is not None
    key = driver.key_of(graph().name, graph().fingerprint, "cpu", tw.Options(), cache)
    assert cache.explain(add_facts(key, graph())) == []


def test_the_cache_can_be_turned_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compiled(options=tw.Options(cache=False))
    assert not folder.exists()
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", "")
    assert [compiled(), compiled()] == [False, False]


def test_dumps_and_checks_compile_anew(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled()
    monkeypatch.setenv("TILEWRIGHT_IR_DUMP", str(tmp_path / "dump"))
    assert not compiled() and (tmp_path / "dump" / "00_input.ir").exists()


def test_a_hit_imports_neither_llvm_nor_networkx(folder: Path) -> None:
    code = """
import sys
import numpy as np, tilewright as tw
f = tw.compile(lambda x: np.maximum(x * 2, 1), args=(tw.spec(("n",), "float32"),))
assert f(np.ones(3, np.float32))[0] == 2
print(f.metadata["cached"], [name for name in ("llvmlite", "networkx", "onnx", "tilewright.build") if name in sys.modules])
"""
    answers = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout for _ in range(2)]
    assert answers[0].startswith("False") and answers[1].strip() == "True []"


def test_several_processes_at_once(folder: Path) -> None:
    code = """
import numpy as np, tilewright as tw
for offset in (1, 2):
    w = np.arange(5000, dtype=np.float32).reshape(50, 100)
    f = tw.compile(lambda x: x @ w + np.float32(offset), args=(tw.spec(("n", 50), "float32"),))
    x = np.ones((2, 50), np.float32)
    np.testing.assert_allclose(f(x), x @ w + offset, rtol=1e-4)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        assert process.wait(120) == 0, process.stderr.read()
    assert len(entries(folder)) == 2 and not list((folder / "temporary").iterdir())


# --- damage ---


def damage_code(entry: Path) -> None:
    data = bytearray((entry / "code.o").read_bytes())
    data[len(data) // 2] ^= 1
    (entry / "code.o").write_bytes(data)


def damage_constants(entry: Path) -> None:
    data = bytearray((entry / "constants.weights").read_bytes())
    data[-100] ^= 1
    (entry / "constants.weights").write_bytes(data)


def truncate(name: str):
    return lambda entry: os.truncate(entry / name, (entry / name).stat().st_size // 2)


@pytest.mark.parametrize("harm", [
    damage_code, damage_constants, truncate("code.o"), truncate("constants.weights"), truncate("meta.json"),
    lambda entry: (entry / "code.o").unlink(), lambda entry: (entry / "constants.weights").unlink(),
    lambda entry: (entry / "meta.json").write_text("[]"), lambda entry: (entry / "meta.json").write_text("{}"),
    lambda entry: (entry / "meta.json").write_bytes(b"\xff\xfe"),
], ids=["code", "constants", "short-code", "short-constants", "short-meta", "no-code", "no-constants", "list", "empty", "bytes"])
def test_a_damaged_entry_is_removed_and_built_again(folder: Path, harm) -> None:
    compiled()
    (entry,) = entries(folder)
    harm(entry)
    assert not compiled()
    assert compiled() and len(entries(folder)) == 1


def test_a_damaged_note_is_found_out_again(folder: Path) -> None:
    compiled()
    for note in (folder / "notes").iterdir():
        note.write_text("0" * 64 + "\nhost another machine")
    driver._resolved_text.cache_clear()
    assert compiled()


# --- bounds ---


def fake(cache: Cache, name: str, size: int = 1000) -> Key:
    key = Key(name, (("graph", name),))
    assert cache.store(key, b"x" * size, None, "", {})
    return key


def test_entries_used_longest_ago_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit=5000)
    keys = []
    for name in "abc":
        keys.append(fake(cache, name))
        os.utime(cache.entries_folder / keys[-1].digest / "meta.json", (1000 + len(keys), 1000 + len(keys)))
    assert cache.find(keys[0]) is not None  # now the one used last
    fake(cache, "d"), fake(cache, "e")
    names = {entry.name for entry in cache.entries()}
    assert "a" in names and "e" in names and "b" not in names
    assert sum(entry.bytes for entry in cache.entries()) <= 5000


def test_an_entry_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    messages: list[str] = []
    cache = Cache(tmp_path / "cache", limit=500, report=messages.append)
    assert not cache.store(Key("big", ()), b"x" * 1000, None, "", {})
    assert cache.entries() == [] and "more than the whole cache may have" in messages[0]


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    fake(cache, "a")
    old, young = tmp_path / "cache" / "temporary" / "old", tmp_path / "cache" / "temporary" / "young"
    old.mkdir(), young.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    fake(cache, "b")
    assert not old.exists() and young.exists()


def test_clear(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    fake(cache, "a"), fake(cache, "b")
    count, size = cache.clear()
    assert count == 2 and size > 2000 and cache.entries() == [] and cache.clear() == (0, 0)


# --- folders that cannot be used ---


def test_a_folder_that_cannot_be_made_costs_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match="file.*: Not a directory; compilation goes on without it") as told:
        assert [compiled(), compiled()] == [False, False]
    assert len(told) == 1 and capfd.readouterr().err == ""
    monkeypatch.setenv("TILEWRIGHT_DEBUG", "1")
    compiled()
    assert "is not kept" in capfd.readouterr().err


def test_a_full_disk_costs_the_cache_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "write_constants", full)
    with pytest.warns(RuntimeWarning, match="cannot be used: No space left on device") as told:
        assert [compiled(), compiled()] == [False, False]
    assert len(told) == 1
    assert entries(folder) == [] and not list((folder / "temporary").iterdir())


def test_an_interrupt_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "write_constants", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compiled()
    assert entries(folder) == [] and not list((folder / "temporary").iterdir())


def test_code_that_others_could_have_put_there_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    compiled()
    folder.chmod(0o777)
    monkeypatch.setenv("TILEWRIGHT_DEBUG", "1")
    with pytest.warns(RuntimeWarning, match="belongs to another user or is writable by all; compilation goes on"):
        assert not compiled()
    assert "writable by all; it is not used" in capfd.readouterr().err


def test_the_key_covers_every_part() -> None:
    base = Key("model", (("graph", "1"), ("target", "2")))
    others = [Key("model", (("graph", "1"), ("target", "3"))), Key("model", (("graph", "12"), ("target", ""))), Key("model", ())]
    assert len({base.digest, *(other.digest for other in others)}) == 4
    assert Key("renamed", base.parts).digest == base.digest  # the graph's fingerprint has the name already


def test_meta_is_json_that_people_can_read(folder: Path) -> None:
    compiled()
    meta = json.loads((entries(folder)[0] / "meta.json").read_text())
    assert meta["name"] == "model" and meta["parts"]["options"] == "precision=default" and meta["metadata"]["kernels"]
