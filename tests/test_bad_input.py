"""What a user may do wrong, as a user does it: each ends in one clear error, and nothing is lost. One test a diagnostic."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.cli import run
from tilewright.ir.errors import ArgumentError, ArtifactError, ParseError
from tilewright.ir.printer import dump

WEIGHT = np.arange(400, dtype=np.float32).reshape(4, 100) / 100
X = np.ones((3, 4), np.float32)


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a command, with a model in text."""
    monkeypatch.chdir(tmp_path)
    dump(layer_graph(), tmp_path / "layer.ir")
    return tmp_path


def layer(x):
    return np.tanh(x @ WEIGHT)


def layer_graph() -> tw.Graph:
    return tw.trace(layer, args=(tw.spec(("batch", 4), "float32"),), name="layer")


def complain(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 1) -> str:
    """What a command that must fail says."""
    found = run([str(argument) for argument in arguments])
    answer = capsys.readouterr()
    assert found == status, answer.out + answer.err
    assert "Traceback" not in answer.err and "internal error" not in answer.err and answer.out == ""
    return answer.err


def program(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tilewright", *map(str, arguments)], stderr=subprocess.PIPE, text=True, **options)


# --- files that must not be lost ---


def test_a_library_is_not_written_over_the_model(folder: Path, capsys) -> None:
    before = (folder / "layer.ir").read_bytes()
    assert "found the suffix '.ir', expected .so" in complain(capsys, "compile", "layer.ir", "-o", "layer.ir")
    assert (folder / "layer.ir").read_bytes() == before
    with pytest.raises(ArtifactError, match=r"found the suffix '.npz', expected .so"):
        tw.compile(layer_graph()).save("weights.npz")
    assert "expected .a" in complain(capsys, "compile", "layer.ir", "-o", "out.so", "--static")


def test_a_device_is_not_replaced_by_a_file(folder: Path, capsys) -> None:
    os.mkfifo("pipe.so")
    assert "is a device or a pipe" in complain(capsys, "compile", "layer.ir", "-o", "pipe.so")
    os.mkfifo("y.npy")
    assert "is a device or a pipe" in complain(capsys, "run", "layer.ir", "--random", "--output", "y.npy")
    assert sorted(path.name for path in folder.iterdir() if path.is_fifo()) == ["pipe.so", "y.npy"]


def test_a_failed_link_names_the_file_and_the_linker(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "cc").write_text("#!/bin/sh\necho no more room >&2; exit 1\n")
    (folder / "bin" / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin") + os.pathsep + os.environ["PATH"])
    text = complain(capsys, "compile", "layer.ir", "-o", "out.so")
    assert "linking failed with status 1" in text and "no more room" in text and "disk full" not in text
    assert not [path for path in folder.iterdir() if "out" in path.name]


def test_a_full_disk_names_the_file_that_was_asked_for(folder: Path) -> None:
    import resource

    answer = program("compile", "layer.ir", "-o", "out.so", cwd=folder, stdout=subprocess.PIPE,
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512)))
    assert answer.returncode == 1 and "cannot be written" in answer.stderr and ".part" not in answer.stderr
    assert not [path for path in folder.iterdir() if "out" in path.name]


def test_no_linker(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    text = complain(capsys, "compile", "layer.ir", "-o", "out.so")
    assert "no linker found" in text and "hint: install one" in text
    assert not (folder / "out.h").exists()


# --- Ctrl-C and closed streams ---


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.4, 0.7])
def test_an_interrupt_leaves_nothing_and_says_so(folder: Path, seconds: float) -> None:
    process = subprocess.Popen([sys.executable, "-m", "tilewright", "compile", "layer.ir", "-o", "out.so", "--no-cache"],
                               cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "numpy" not in maps.read_text():  # Python has started, our modules are being read
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[1]
    written = {path.name for path in folder.iterdir()} - {"layer.ir", "layer.ir.npz"}
    if process.returncode == 0:
        assert written == {"out.so", "out.h", "out.weights"}
    else:
        assert process.returncode == 130 and text.strip() == "tilewright: interrupted" and not written


def test_stdout_closed_from_the_start() -> None:
    answer = program("targets", preexec_fn=lambda: os.close(1))
    assert "Traceback" not in answer.stderr


def test_stdout_on_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        answer = program("targets", stdout=full)
    assert answer.returncode == 1 and "No space left" in answer.stderr and "Traceback" not in answer.stderr


# --- figures on the command line ---


@pytest.mark.parametrize("size", ["-1", "x", "²", "9" * 25, "9" * 5000, "281474976710657"],
                         ids=["negative", "letter", "superscript", "long", "longest", "above"])
def test_a_size_that_is_none(folder: Path, capsys, size: str) -> None:
    assert "expected a number from 0 to" in complain(capsys, "run", "layer.ir", "--random", "--size", f"batch={size}", status=2)


def test_random_inputs_larger_than_the_memory(folder: Path, capsys) -> None:
    text = complain(capsys, "run", "layer.ir", "--random", "--size", f"batch={2**47}")
    assert f"need {2**47 * 4 * 8} bytes" in text and "bytes of memory are available" in text


def test_an_output_larger_than_the_memory_says_how_much(folder: Path, capsys) -> None:
    (folder / "wide.ir").write_text("graph @wide(%x: f32[1]) -> (y) {\n  %0: f32[17592186044416] = broadcast %x {shape=(17592186044416,)}\n"
                                    "  return %0\n}\n")
    text = complain(capsys, "run", "wide.ir", "--random")
    assert f"needs {2**46} bytes" in text and "--size" not in text


def test_a_file_that_is_no_array(folder: Path, capsys) -> None:
    (folder / "x.npy").write_text("hello")
    text = complain(capsys, "run", "layer.ir", "--input", "x=x.npy")
    assert "is no array file" in text and "allow_pickle" not in text


# --- stages in text ---


def test_passes_in_the_wrong_order(folder: Path, capsys) -> None:
    assert "fuse comes after decompose" in complain(capsys, "opt", "layer.ir", "--from", "fuse", "--until", "decompose")


def test_a_graph_behind_all_passes_is_lowered(folder: Path, capsys) -> None:
    assert run(["opt", "layer.ir", "--until", "fuse", "-o", "fused.ir"]) == 0
    assert run(["opt", "fused.ir", "--from", "lower", "--emit", "loop"]) == 0
    late = capsys.readouterr().out
    assert run(["opt", "layer.ir", "--emit", "loop"]) == 0
    assert capsys.readouterr().out == late
    assert "past all passes" in complain(capsys, "opt", "fused.ir", "--from", "lower", status=2)


def test_printed_text_needs_its_large_constants() -> None:
    graph = layer_graph()
    with pytest.raises(ParseError, match=r"is not among the constants given(.|\n)*parse\(text, graph\)"):
        tw.parse(str(graph))
    assert tw.parse(str(graph), graph) == graph


@pytest.mark.parametrize("text", ["(%x: index[4]) -> (y) {\n  return %x\n}\n",
                                  "(%x: i64[4]) -> (y) {\n  %0: index[4] = cast %x {dtype=index}\n  return %0\n}\n"])
def test_index_is_no_dtype_of_arguments(text: str) -> None:
    with pytest.raises(tw.CompileError, match=r"put '.' is index\[4\]; index is a dtype within programs only"):
        tw.compile(tw.parse("graph @g" + text))


# --- calls ---


def test_run_takes_a_mapping() -> None:
    with pytest.raises(ArgumentError, match="run: found ndarray, expected a dict"):
        tw.compile(layer_graph()).run(X)
    with pytest.raises(ArgumentError, match="run: found ndarray, expected a dict"):
        tw.compile(layer).run(X)


def test_a_traced_function_runs_by_name_into_given_arrays() -> None:
    f = tw.compile(layer)
    out = np.empty((3, 100), np.float32)
    assert f(X, out=out) is out
    np.testing.assert_allclose(out, layer(X), rtol=1e-5)
    found = f.run({"x": X})
    np.testing.assert_array_equal(found["output0"], out)
    with pytest.raises(ArgumentError, match="expected float32"):
        f(X, out=np.empty(3, np.float32))


def test_a_function_keeps_an_out_of_its_own() -> None:
    f = tw.compile(lambda x, out: x + out)
    np.testing.assert_array_equal(f(X, out=X), X + X)


def test_only_one_program_is_saved(tmp_path: Path) -> None:
    f = tw.compile(layer)
    with pytest.raises(ArgumentError, match=r"compiled 0 times so far(.|\n)*tw.spec"):
        f.save(tmp_path / "f.so")
    f(X)
    f.save(tmp_path / "f.so")
    np.testing.assert_array_equal(tw.load(tmp_path / "f.so")(X), f(X))
    f(X[0])
    with pytest.raises(ArgumentError, match="compiled 2 times so far"):
        f.save(tmp_path / "f.so")


@pytest.mark.parametrize("left, right", [((0, 3), (3, 0)), ((3, 0), (0, 3)), ((0, 3), (3, 4)), ((2, 3), (3, 0))])
def test_products_of_empty_matrices(left: tuple[int, int], right: tuple[int, int]) -> None:
    a, b = np.ones(left, np.float32), np.ones(right, np.float32)
    f = tw.compile(lambda a, b: a @ b + 1, args=(tw.spec(left, "float32"), tw.spec(right, "float32")))
    np.testing.assert_array_equal(f(a, b), a @ b + 1)
