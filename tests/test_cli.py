"""The command line: answers, JSON, exit statuses, files, interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.cli import cli, run
from tilewright.ir.printer import save_text

WEIGHT = np.arange(400, dtype=np.float32).reshape(4, 100) / 100


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """The working folder of a command, with a model in text."""
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(cache))
    monkeypatch.setattr("tilewright.driver.sources_changed", lambda: False)  # whatever an editor does meanwhile
    monkeypatch.chdir(tmp_path)
    graph = tw.trace(lambda x: np.tanh(x @ WEIGHT), args=(tw.spec(("batch", 4), "float32"),), name="layer")
    save_text(graph, tmp_path / "layer.ir")
    return tmp_path


def tilewright(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tilewright", *map(str, arguments)], capture_output=True, text=True)


def succeed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command answers on stdout."""
    status = run([str(argument) for argument in arguments])
    answer = capsys.readouterr()
    assert status == 0, answer.err
    return answer.out


def fail(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 1) -> str:
    """What a command complains of on stderr."""
    found = run([str(argument) for argument in arguments])
    answer = capsys.readouterr()
    assert found == status, answer.out + answer.err
    assert "Traceback" not in answer.err and "internal error" not in answer.err
    return answer.err


def expected(x: np.ndarray) -> np.ndarray:
    return np.tanh(x @ WEIGHT)


# --- help ---


@pytest.mark.parametrize("command", [[], *([name] for name in cli.commands), ["cache", "ls"], ["cache", "why"], ["cache", "clear"]],
                         ids=" ".join)
def test_every_command_explains_itself(capsys, command: list[str]) -> None:
    text = succeed(capsys, *command, "--help")
    assert text.startswith("Usage: tilewright") and len(text.splitlines()) > 4


def test_version(capsys) -> None:
    assert tw.__version__ in succeed(capsys, "--version")


def test_an_unknown_command(capsys) -> None:
    assert "No such command" in fail(capsys, "frobnicate", status=2)


# --- compile and run ---


def test_compile_then_run_the_library(folder: Path, capsys) -> None:
    answer = json.loads(succeed(capsys, "compile", "layer.ir", "-o", "out.so", "--json"))
    assert set(answer["files"]) == {"out.so", "out.h", "out.weights"} and answer["kernels"]
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    np.save(folder / "x.npy", x)
    for model in ("layer.ir", "out.so"):
        succeed(capsys, "run", model, "--input", "x=x.npy", "--output", "y.npy")
        np.testing.assert_allclose(np.load(folder / "y.npy"), expected(x), rtol=1e-5, atol=1e-6)


def test_compile_names_the_library_after_the_model(folder: Path, capsys) -> None:
    succeed(capsys, "compile", "layer.ir", "--embed")
    assert (folder / "layer.so").exists() and not (folder / "layer.weights").exists()
    succeed(capsys, "compile", "layer.ir", "--static", "--threads", "1")
    assert (folder / "layer.a").exists()


def test_random_inputs_repeat(folder: Path, capsys) -> None:
    first = json.loads(succeed(capsys, "run", "layer.ir", "--random", "--size", "batch=6", "--json"))
    assert first["outputs"]["output0"]["shape"] == [6, 100]
    again = json.loads(succeed(capsys, "run", "layer.ir", "--random", "--size", "batch=6", "--json", "--repeat", "3"))
    assert again["outputs"] == first["outputs"] and len(again["seconds"]) == 3
    other = json.loads(succeed(capsys, "run", "layer.ir", "--random", "--size", "batch=6", "--json", "--seed", "1"))
    assert other["outputs"] != first["outputs"]


def test_run_an_onnx_model(folder: Path, capsys) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder / "relu.onnx")
    answer = json.loads(succeed(capsys, "run", "relu.onnx", "--random", "--dims", "N=5", "--json"))
    assert answer["outputs"]["y"]["shape"] == [5, 3] and answer["outputs"]["y"]["min"] == 0
    succeed(capsys, "compile", "relu.onnx", "--dims", "N=2", "-o", "relu.so")
    assert tw.load(folder / "relu.so").inputs[0].shape == (2, 3)


# --- inspect and bench ---


def test_inspect(folder: Path, capsys) -> None:
    data = json.loads(succeed(capsys, "inspect", "layer.ir", "--json"))
    assert data["ops"]["dot"] == 1 and data["parameters"] == 400 and data["kernels"] and "peak_arena" in data
    assert "kernels" not in json.loads(succeed(capsys, "inspect", "layer.ir", "--no-compile", "--json"))
    succeed(capsys, "compile", "layer.ir")
    assert "a self-test" in succeed(capsys, "inspect", "layer.so")
    assert "peak arena" in succeed(capsys, "inspect", "layer.ir")


def test_bench(folder: Path, capsys) -> None:
    arguments = ("bench", "layer.ir", "--size", "batch=3", "--seconds", "0.05", "--threads", "1", "--kernels", "--json")
    data = json.loads(succeed(capsys, *arguments))
    assert 0 < data["least_seconds"] <= data["median_seconds"] and data["threads"] == 1 and data["shapes"] == {"x": [3, 4]}
    assert [kernel["seconds"] >= 0 for kernel in data["kernels"]]


# --- opt ---


def test_stages_are_left_and_entered_in_text(folder: Path, capsys) -> None:
    passes = succeed(capsys, "opt", "--list").split()
    assert passes[0] == "narrow_products" and passes[-1] == "fuse"
    whole = succeed(capsys, "opt", "layer.ir", "--emit", "asm")
    middle = passes[len(passes) // 2]
    succeed(capsys, "opt", "layer.ir", "--until", middle, "-o", "middle.ir")
    succeed(capsys, "opt", "middle.ir", "--from", passes[passes.index(middle) + 1], "--emit", "loop", "-o", "last.loop")
    assert (folder / "last.loop").read_text() == succeed(capsys, "opt", "layer.ir", "--emit", "loop")
    assert succeed(capsys, "opt", "last.loop", "--emit", "asm") == whole


@pytest.mark.parametrize("form, mark", [("graph", "graph @layer"), ("loop", "program @layer"), ("llvm", "define"),
                                        ("optimized", "define"), ("asm", ".text")])
def test_forms(folder: Path, capsys, form: str, mark: str) -> None:
    assert mark in succeed(capsys, "opt", "layer.ir", "--emit", form)


def test_a_graph_from_stdin() -> None:
    text = "graph @g(%x: f32[4]) -> (y) {\n  %0: f32[4] = add %x, %x\n  return %0\n}\n"
    answer = subprocess.run([sys.executable, "-m", "tilewright", "opt", "-", "--until", "canonicalize"], input=text,
                            capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("graph @g")


# --- targets, cache, doctor ---


def test_targets(capsys) -> None:
    rows = json.loads(succeed(capsys, "targets", "--json"))
    assert sum(row["host"] for row in rows) <= 1 and {"x86-64-v3", "znver4", "neoverse-v1"} <= {row["name"] for row in rows}
    facts = json.loads(succeed(capsys, "targets", "cpu:x86-64-v3-avx2", "--json"))
    assert "avx" in facts["features"] and "avx2" not in facts["features"]
    assert "bit vectors" in succeed(capsys, "targets") and "this machine" in succeed(capsys, "targets", "cpu")


def test_cache_commands(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(folder / "cache"))
    assert succeed(capsys, "cache", "why").strip() == "the cache is empty"
    assert "never compiled" in succeed(capsys, "cache", "why", "layer.ir")
    succeed(capsys, "compile", "layer.ir")
    assert succeed(capsys, "cache", "why", "layer.ir").startswith("hit")
    for option in (("--precision", "strict"), ("--matmul-precision", "tf32")):
        assert "options changed" in succeed(capsys, "cache", "why", "layer.ir", *option)
    assert "layer" in succeed(capsys, "cache", "ls") and "layer" in succeed(capsys, "cache", "why")
    listed = json.loads(succeed(capsys, "cache", "ls", "--json"))
    assert listed["entries"][0]["name"] == "layer" and listed["bytes"] > 0
    assert json.loads(succeed(capsys, "cache", "clear", "--json"))["removed"] == 1
    assert json.loads(succeed(capsys, "cache", "ls", "--json"))["entries"] == []
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", "")
    assert "turned off" in fail(capsys, "cache", "ls")


def test_a_cache_that_cannot_be_used_is_one_line(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(folder / "layer.ir"))
    assert run(["run", "layer.ir", "--random"]) == 0
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tilewright: warning: the compile cache {folder / 'layer.ir'} cannot be used: ") and "File exists" in line
    assert "is no folder" in succeed(capsys, "doctor")


def test_doctor(folder: Path, capsys) -> None:
    data = json.loads(succeed(capsys, "doctor", "--json"))
    checks = {check["what"]: check for check in data["checks"]}
    assert {"platform", "cpu", "linker", "cache", "llvmlite", "onnx", "ziglang"} <= set(checks)
    assert checks["platform"]["found"].startswith("linux")
    assert "tilewright" in succeed(capsys, "doctor")


# --- mistakes ---


@pytest.mark.parametrize("arguments, message, status", [
    (["run", "missing.onnx"], "there is no such file", 1),
    (["run", "layer.ir"], "no value for x: float32[batch, 4]", 1),
    (["run", "layer.ir", "--input", "z=x.npy"], "has no input z", 1),
    (["run", "layer.ir", "--input", "x=missing.npy"], "No such file", 1),
    (["run", "layer.ir", "--input", "x=layer.ir"], "layer.ir", 1),
    (["run", "layer.ir", "--input", "x"], "expected NAME=VALUE", 2),
    (["run", "layer.ir", "--input", "x=wrong.npy"], "found float64[2, 4], expected x: float32[batch, 4]", 1),
    (["run", "layer.ir", "--random", "--size", "rows=3"], "has no symbolic size rows", 1),
    (["run", "layer.ir", "--random", "--output", "other=y.npy"], "there is no output 'other'", 2),
    (["run", "layer.ir", "--random", "--output", "missing/y.npy"], "there is no folder", 1),
    (["run", "layer.ir", "--random", "--target", "cpu:zen9"], "unknown CPU", 1),
    (["run", "broken.ir", "--random"], "ParseError", 1),
    (["run", "broken.so", "--random"], "not an ELF file", 1),
    (["run", "broken.onnx", "--random"], "not an ONNX model", 1),
    (["compile", "layer.ir", "-o", "missing/out.so"], "there is no folder", 1),
    (["compile", "layer.ir", "-o", "my-layer.so"], "expected a C identifier", 1),
    (["compile", "layer.ir", "--dims", "batch=two"], "expected a number", 2),
    (["compile", "layer.ir", "--target", "cpu:apple-m1"], "compiled for aarch64", 1),
    (["opt", "layer.ir", "--until", "nothing"], "unknown pass 'nothing'", 1),
    (["opt", "layer.ir", "--until", "fuse", "--emit", "asm"], "--until ends within the passes", 2),
    (["opt", "missing.loop", "--emit", "asm"], "there is no such file", 1),
    (["opt"], "missing argument MODEL", 2),
    (["targets", "cpu:zen9"], "unknown CPU", 1),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_mistakes_are_explained(folder: Path, capsys, arguments: list[str], message: str, status: int) -> None:
    np.save(folder / "wrong.npy", np.ones((2, 4)))
    for name in ("broken.ir", "broken.so", "broken.onnx"):
        (folder / name).write_bytes(b"graph @ nonsense \xc3\xa4")
    before = {path.name for path in folder.iterdir()}
    assert message in fail(capsys, *arguments, status=status)
    assert {path.name for path in folder.iterdir()} == before


def test_a_fault_of_ours_says_so(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments, **named):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("tilewright.cli_model.load_graph", broken)
    assert run(["compile", "layer.ir"]) == 1
    assert "internal error: ZeroDivisionError: oh" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["interrupt", "terminate"])
def test_a_command_that_is_stopped(folder: Path, number: int, status: int) -> None:
    process = subprocess.Popen([sys.executable, "-m", "tilewright", "bench", "layer.ir", "--seconds", "60"], stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    time.sleep(3)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == status and b"Traceback" not in complaint


def test_a_closed_pipe_is_no_error_message(folder: Path) -> None:
    command = f"{sys.executable} -m tilewright targets --json | head -1"
    answer = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in answer.stderr and "Exception" not in answer.stderr


def test_progress_is_for_terminals_only(folder: Path) -> None:
    answer = tilewright("run", "layer.ir", "--random")
    assert answer.returncode == 0 and answer.stderr == ""
