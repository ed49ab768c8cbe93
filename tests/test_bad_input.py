"""What a user may do wrong, as a user does it: each ends in one clear error, and nothing is lost. One test a diagnostic."""

from __future__ import annotations

import os
import resource
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
from tilewright.ir.printer import save_text

WEIGHT = np.arange(400, dtype=np.float32).reshape(4, 100) / 100
X = np.ones((3, 4), np.float32)


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a command, with a model in text."""
    monkeypatch.chdir(tmp_path)
    save_text(layer_graph(), tmp_path / "layer.ir")
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
    os.mkfifo("z.ir")
    assert "z.ir: is a device or a pipe" in complain(capsys, "opt", "layer.ir", "-o", "z.ir")
    assert "z.ir: is a device or a pipe" in complain(capsys, "opt", "layer.ir", "--emit", "asm", "-o", "z.ir")
    assert sorted(path.name for path in folder.iterdir() if path.is_fifo()) == ["pipe.so", "y.npy", "z.ir"]
    assert ".: is a folder" in complain(capsys, "opt", "layer.ir", "-o", ".")


def test_a_failed_link_names_the_file_and_the_linker(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "cc").write_text("#!/bin/sh\necho no more room >&2; exit 1\n")
    (folder / "bin" / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin") + os.pathsep + os.environ["PATH"])
    text = complain(capsys, "compile", "layer.ir", "-o", "out.so")
    assert "linking failed with status 1" in text and "no more room" in text and "disk full" not in text
    assert not [path for path in folder.iterdir() if "out" in path.name]


def test_a_full_disk_names_the_file_that_was_asked_for(folder: Path) -> None:
    answer = program("compile", "layer.ir", "-o", "out.so", cwd=folder, stdout=subprocess.PIPE,
                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512)))
    assert answer.returncode == 1 and "cannot be written" in answer.stderr and ".part" not in answer.stderr
    assert not [path for path in folder.iterdir() if "out" in path.name]


@pytest.mark.parametrize("arguments, name, allowed", [
    (("opt", "layer.ir", "-o", "new.ir"), "new.ir.npz", 512),
    (("opt", "layer.ir", "-o", "new.ir"), "new.ir", 2000),
    (("opt", "layer.ir", "--emit", "asm", "-o", "new.s"), "new.s", 512),
    (("opt", "layer.ir", "--emit", "loop", "-o", "new.loop"), "new.loop.npz", 512),
    (("run", "layer.ir", "--random", "--size", "batch=9", "--output", "y.npy"), "y.npy", 512),
    (("compile", "layer.ir", "-o", "out.so"), "out.weights", 512),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value))
def test_a_full_disk_is_told_with_the_file(folder: Path, arguments: tuple[str, ...], name: str, allowed: int) -> None:
    before = sorted(folder.iterdir())
    if allowed > 512:  # room for the constants, not for the text
        (folder / "long.ir").write_text(chain(100))
        before, arguments = sorted(folder.iterdir()), ("opt", "long.ir", *arguments[2:])
    answer = on_a_small_disk(folder, allowed, *arguments)
    assert answer.returncode == 1 and answer.stderr.startswith(f"tilewright: ArtifactError: {name}: cannot be written: File too large\n")
    assert "hint: make room" in answer.stderr and sorted(folder.iterdir()) == before


def test_a_full_disk_under_the_dumps_is_told_with_the_file(folder: Path) -> None:
    answer = on_a_small_disk(folder, 512, "run", "layer.ir", "--random", TILEWRIGHT_IR_DUMP="stages")
    assert answer.returncode == 1 and "stages/00_input.ir.npz: cannot be written: File too large" in answer.stderr
    (folder / "long.ir").write_text(chain(100))
    answer = on_a_small_disk(folder, 2000, "run", "long.ir", "--random", TILEWRIGHT_IR_DUMP="stages")
    assert answer.returncode == 1 and "stages/00_input.ir: cannot be written: File too large" in answer.stderr


def chain(length: int) -> str:
    """The text of a graph of so many nodes."""
    nodes = "".join(f"  %{i + 1}: f32[4] = sin %{i}\n" for i in range(length))
    return f"graph @chain(%x: f32[4]) -> (y) {{\n  %0: f32[4] = sin %x\n{nodes}  return %{length}\n}}\n"


def on_a_small_disk(folder: Path, largest: int, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that cannot write files beyond so many bytes."""
    return program(*arguments, cwd=folder, stdout=subprocess.PIPE, env={**os.environ, **environment, "TILEWRIGHT_CACHE_DIR": ""},
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)))


def test_a_dump_folder_that_cannot_be_made(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_IR_DUMP", "layer.ir")
    assert "TILEWRIGHT_IR_DUMP=layer.ir: cannot be written: File exists" in complain(capsys, "run", "layer.ir", "--random")


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


@pytest.mark.parametrize("arguments", [("targets",), ("opt", "layer.ir"), ("opt", "layer.ir", "--emit", "asm"), ("opt", "--list")],
                         ids=" ".join)
def test_stdout_on_a_full_disk(folder: Path, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        answer = program(*arguments, stdout=full)
    assert answer.returncode == 1 and "stdout: No space left" in answer.stderr and "Traceback" not in answer.stderr


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


@pytest.mark.parametrize("command", ["run", "bench", "inspect"])
@pytest.mark.parametrize("option", [("--target", "cpu"), ("--precision", "strict"), ("--matmul-precision", "tf32"),
                                    ("--no-cache",), ("--dims", "batch=3")], ids=lambda o: o[0])
def test_options_of_a_compilation_are_refused_with_a_library(folder: Path, capsys, command: str, option: tuple[str, ...]) -> None:
    assert run(["compile", "layer.ir", "-o", "layer.so"]) == 0
    capsys.readouterr()
    arguments = ["--random"] if command == "run" else []
    text = complain(capsys, command, "layer.so", *arguments, *option, status=2)
    assert f"{option[0]} is for compiling a model, but layer.so is a compiled library" in text


def test_sizes_of_text_are_its_own(folder: Path, capsys) -> None:
    assert "--dims is for reading an ONNX model" in complain(capsys, "opt", "-", "--dims", "batch=3", status=2)


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
    np.testing.assert_allclose(out, layer(X), rtol=1e-5)  # sums in another order
    found = f.run({"x": X})
    np.testing.assert_array_equal(found["output0"], out)
    with pytest.raises(ArgumentError, match="expected float32"):
        f(X, out=np.empty(3, np.float32))


def two_results(x):
    return np.sin(x), np.cos(x)


@pytest.mark.parametrize("backend", ["llvm", "reference"])
def test_arrays_for_two_results_share_no_memory(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    f = tw.compile(two_results, args=(tw.spec(("n",), "float32"),))
    x, memory = np.arange(4, dtype=np.float32), np.empty(8, np.float32)
    for first, second in ((memory[:4], memory[:4]), (memory[:4], memory[3:7]), (memory[::2], memory[2:6]), (memory[3::-1], memory[:4])):
        with pytest.raises(ArgumentError, match="out for output 'output1': found memory of the array for output 'output0'"):
            f(x, out=(first, second))
    for first, second in ((memory[:4], memory[4:]), (memory[::2], memory[1::2]), (memory[3::-1], memory[7:3:-1])):  # side by side
        f(x, out=(first, second))
        # our sin and cos are within 2 units in the last place of the exact values, as NumPy's are
        np.testing.assert_allclose(first, np.sin(x), rtol=1e-5)
        np.testing.assert_allclose(second, np.cos(x), rtol=1e-5)
    f(np.ones(0, np.float32), out=(memory[:0], memory[:0]))


@pytest.mark.parametrize("size, expected", [(0, "at least 2"), (10, "at most 8"), (5, "a multiple of 2")])
def test_a_size_outside_its_bounds(size: int, expected: str) -> None:
    f = tw.compile(tw.parse("graph @g[N: 2..8 % 2](%x: f32[N]) -> (r) {\n  %0: f32[N] = neg %x\n  return %0\n}\n"))
    with pytest.raises(ArgumentError, match=rf"input 'x', axis 0 \(N\): found size {size}, expected {expected}$"):
        f(np.ones(size, np.float32))


@pytest.mark.parametrize("backend", ["llvm", "reference", "reference-loops"])
@pytest.mark.parametrize("op", ["take %x, %i {axis=0}", "take_along %x, %i {axis=0}"], ids=["take", "take_along"])
def test_an_unsigned_index_is_reported_as_it_is(backend: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    f = tw.compile(tw.parse(f"graph @g(%x: f32[4], %i: u64[20]) -> (r) {{\n  %0: f32[20] = {op}\n  return %0\n}}\n"))
    places = np.arange(20, dtype=np.uint64) % 4
    assert f(np.arange(4, dtype=np.float32), places).tolist() == places.tolist()
    places[17] = 2**64 - 1
    with pytest.raises(IndexError, match=str(2**64 - 1)):
        f(np.arange(4, dtype=np.float32), places)


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
