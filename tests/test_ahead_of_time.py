"""Saved artifacts: called from C, exported symbols, what they need, several in one program, the same bytes, bad paths."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from examples import mlp
from tilewright.runtime import linking
from tilewright.runtime.artifact import PUBLIC_FUNCTIONS
from tilewright.runtime.elf_file import read_elf
from tilewright.runtime.relocatable import Description, specialize

ROOT = Path(__file__).parent.parent
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
pytestmark = pytest.mark.usefixtures("private_cache")


@pytest.fixture(scope="module")
def executable(private_cache):
    return tw.compile(mlp.mlp, args=(tw.spec(("batch", mlp.FEATURES), "float32"), *mlp.make_weights()))


@pytest.fixture(scope="module")
def plain(private_cache):
    """A program without constants."""
    return tw.compile(lambda x, y: np.exp(x) + y, args=(tw.spec(("n",), "float32"),) * 2, name="plain")


def compile_c(folder: Path, *arguments: str) -> None:
    subprocess.run(["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-I", folder, *arguments, "-pthread"], check=True, cwd=folder)


def rows(text: str) -> np.ndarray:
    return np.array([[float(word) for word in line.split()] for line in text.splitlines()], np.float32)


# --- from C ---


@needs_cc
@pytest.mark.parametrize("embed", [False, True], ids=["sidecar", "embedded"])
def test_the_c_example_runs(tmp_path: Path, executable, embed: bool) -> None:
    saved = executable.save(tmp_path / "mlp.so", embed=embed)
    assert saved.selftest and (saved.weights is None) == embed
    assert {path.name for path in tmp_path.iterdir()} == {"mlp.so", "mlp.h"} | (set() if embed else {"mlp.weights"})
    compile_c(tmp_path, str(ROOT / "examples" / "c" / "mlp.c"), "mlp.so", "-Wl,-rpath,$ORIGIN", "-o", "mlp")
    answer = subprocess.run([tmp_path / "mlp", "3"], check=True, capture_output=True, text=True).stdout
    found = rows("\n".join(answer.splitlines()[-3:]))
    np.testing.assert_allclose(found, executable(mlp.make_input(3)), atol=1e-6)


@needs_cc
def test_the_c_example_runs_from_a_static_archive(tmp_path: Path, executable) -> None:
    executable.save(tmp_path / "mlp.a")
    compile_c(tmp_path, str(ROOT / "examples" / "c" / "mlp.c"), "mlp.a", "-o", "mlp")
    answer = subprocess.run([tmp_path / "mlp", "2"], check=True, capture_output=True, text=True).stdout
    np.testing.assert_allclose(rows("\n".join(answer.splitlines()[-2:])), executable(mlp.make_input(2)), atol=1e-6)


TWO_MODELS = """
#include <stdio.h>
#include <string.h>
#include "first.h"
#include "second.h"
int main(void) {
  char error[512] = "";
  tw_context context;
  memset(&context, 0, sizeof context);
  context.abi_version = TW_ABI_VERSION;
  context.error = error;
  context.error_capacity = sizeof error;
  tw_constants one, two;
  if (first_open(&context, NULL, &one) || second_open(&context, NULL, &two)) return puts(error), 1;
  if (first_selftest(&context, one.data) || second_selftest(&context, two.data)) return puts(error), 2;
  float x[2] = {1, 2}, y[2] = {0, 0};
  const void *inputs[] = {x};
  void *outputs[] = {y};
  int64_t shapes[] = {2};
  if (first_run(&context, inputs, outputs, shapes, one.data, NULL)) return puts(error), 3;
  printf("%g %g\\n", y[0], y[1]);
  if (second_run(&context, inputs, outputs, shapes, two.data, NULL)) return puts(error), 4;
  printf("%g %g\\n", y[0], y[1]);
  first_close(&one);
  second_close(&two);
  return 0;
}
"""


@needs_cc
@pytest.mark.parametrize("suffix", [".so", ".a"])
def test_two_models_live_in_one_program(tmp_path: Path, suffix: str) -> None:
    """Of the same function names, so that every symbol that is not hidden would clash."""
    table = np.arange(100, dtype=np.float32)
    for name, scale in (("first", 10), ("second", 100)):
        factor = np.float32(scale)
        program = tw.compile(lambda x, factor=factor: x * factor + table[:1], name="model", args=(tw.spec(("n",), "float32"),))
        program.save(tmp_path / f"{name}{suffix}")
    (tmp_path / "main.c").write_text(TWO_MODELS)
    compile_c(tmp_path, "main.c", f"first{suffix}", f"second{suffix}", "-Wl,-rpath,$ORIGIN", "-o", "main")
    answer = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True).stdout
    assert answer.split() == ["10", "20", "100", "200"]


# --- what is in the files ---


def test_exports_are_the_public_functions_only(tmp_path: Path, executable) -> None:
    executable.save(tmp_path / "mlp.so")
    elf = read_elf((tmp_path / "mlp.so").read_bytes(), "mlp.so")
    assert sorted(elf.exported()) == sorted(f"mlp_{function}" for function in PUBLIC_FUNCTIONS)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_needs_the_c_library_only(tmp_path: Path, executable) -> None:
    executable.save(tmp_path / "mlp.so")
    text = subprocess.run(["readelf", "-d", tmp_path / "mlp.so"], check=True, capture_output=True, text=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2"}
    assert "TEXTREL" not in text


@pytest.mark.parametrize("options", [{}, {"embed": True}, {"static": True}], ids=["shared", "embedded", "static"])
def test_the_same_program_gives_the_same_bytes(tmp_path: Path, executable, options: dict) -> None:
    files = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        saved = executable.save(folder / ("mlp.a" if options.get("static") else "mlp.so"), **options)
        files.append([path.read_bytes() for path in saved.files])
    assert files[0] == files[1]


def test_a_hit_saves_the_same_bytes(tmp_path: Path, executable) -> None:
    again = tw.compile(mlp.mlp, args=(tw.spec(("batch", mlp.FEATURES), "float32"), *mlp.make_weights()))
    assert again.metadata["cached"]
    for folder, program in ((tmp_path / "one", executable), (tmp_path / "two", again)):
        folder.mkdir()
        program.save(folder / "mlp.so")
    for name in ("mlp.so", "mlp.h", "mlp.weights"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_saving_imports_no_llvm_after_a_hit(tmp_path: Path) -> None:
    code = f"""
import sys
import numpy as np, tilewright as tw
f = tw.compile(lambda x, y: np.exp(x) * y, args=(tw.spec(("n",), "float32"),) * 2, name="product")
f.save({str(tmp_path / "product.so")!r})
print(f.metadata["cached"], "llvmlite" in sys.modules)
"""
    answers = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout for _ in range(2)]
    assert answers[1].split() == ["True", "False"]


# --- loading again ---


def test_load_and_run(tmp_path: Path, executable) -> None:
    executable.save(tmp_path / "mlp.so")
    loaded = tw.load(tmp_path / "mlp.so")
    assert loaded.selftest() == ""
    for batch in (0, 1, 7):
        np.testing.assert_array_equal(loaded(mlp.make_input(batch)), executable(mlp.make_input(batch)))
    assert loaded.inputs == executable.inputs and loaded.outputs == executable.outputs
    with pytest.raises(tw.ArtifactError, match="it was itself loaded from an artifact"):
        loaded.save(tmp_path / "copy.so")


def test_a_program_without_constants_needs_no_file_for_them(tmp_path: Path, plain) -> None:
    saved = plain.save(tmp_path / "plain.so")
    assert saved.weights is None and saved.selftest
    loaded = tw.load(tmp_path / "plain.so")
    assert loaded.selftest() == ""
    np.testing.assert_array_equal(loaded(np.zeros(3, np.float32), np.ones(3, np.float32)), np.full(3, 2, np.float32))


def test_without_a_selftest(tmp_path: Path, plain) -> None:
    saved = plain.save(tmp_path / "plain.so", selftest=False)
    assert not saved.selftest
    assert tw.load(tmp_path / "plain.so").selftest() != ""  # a remark that there is none


def test_a_replaced_library_is_loaded_anew(tmp_path: Path) -> None:
    """The dynamic loader would hand back the one it has under that path."""
    spec = tw.spec(("n",), "float32")
    x = np.ones(2, np.float32)
    kept = []
    for scale in (np.float32(2), np.float32(3)):
        tw.compile(lambda x, scale=scale: x * scale, args=(spec,), name="scale").save(tmp_path / "scale.so")
        kept.append(tw.load(tmp_path / "scale.so"))
    assert [f(x)[0] for f in kept] == [2, 3]


def test_the_selftest_finds_other_constants(tmp_path: Path, executable) -> None:
    executable.save(tmp_path / "mlp.so")
    data = bytearray((tmp_path / "mlp.weights").read_bytes())
    for place in range(4096, 4096 + 40000, 4):
        data[place + 3] ^= 0x80  # signs
    (tmp_path / "mlp.weights").write_bytes(data)
    with pytest.raises(tw.ArtifactError, match="checksum"):
        tw.load(tmp_path / "mlp.so")
    with pytest.raises(tw.RuntimeFailure):
        tw.load(tmp_path / "mlp.so", verify=False).selftest()


def test_loading_imports_the_runtime_only(tmp_path: Path, plain) -> None:
    plain.save(tmp_path / "plain.so")
    code = f"""
import sys
import tilewright as tw
tw.load({str(tmp_path / "plain.so")!r})
print(sorted(name for name in sys.modules if name.startswith(("llvmlite", "networkx", "onnx", "ml_dtypes", "tilewright"))))
"""
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "llvmlite" not in answer and "networkx" not in answer and "driver" not in answer and "ir.graph" not in answer


# --- what cannot be saved ---


def nothing_is_left(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def test_bad_names(tmp_path: Path, plain) -> None:
    with pytest.raises(tw.ArtifactError, match="expected a C identifier"):
        plain.save(tmp_path / "my-model.so")
    plain.save(tmp_path / "my-model.so", name="my_model")
    assert tw.load(tmp_path / "my-model.so").name == "my_model"


def test_bad_paths(tmp_path: Path, plain) -> None:
    with pytest.raises(tw.ArtifactError, match="cannot be written"):
        plain.save(tmp_path / "missing" / "plain.so")
    (tmp_path / "folder.so").mkdir()
    with pytest.raises(tw.ArtifactError, match="is a folder"):
        plain.save(tmp_path / "folder.so")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.so"]


def test_no_linker(tmp_path: Path, plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(linking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tw.ArtifactError, match="no linker found(.|\n)*apt install gcc"):
        plain.save(tmp_path / "plain.so")
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize("part", ["write_constants", "link_shared", "write_bytes"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "interrupt"])
def test_a_failure_on_the_way_leaves_no_file(tmp_path: Path, executable, monkeypatch, part: str, failure) -> None:
    def fail(*arguments, **named):
        raise failure

    monkeypatch.setattr(f"tilewright.saving.{part}", fail)
    with pytest.raises((tw.ArtifactError, KeyboardInterrupt)):
        executable.save(tmp_path / "mlp.so")
    assert nothing_is_left(tmp_path)


def test_what_is_no_object_is_refused() -> None:
    for data in (b"", b"\x7fELF", b"\x7fELF" + bytes(60), bytes(200)):
        with pytest.raises(tw.ArtifactError):
            specialize(data, "tw", Description("name", 0, ""))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_truncated_object_is_refused(executable, keep: float) -> None:
    code = executable.object_code
    with pytest.raises(tw.ArtifactError):
        specialize(code[: int(len(code) * keep)], "tw", Description("name", 0, ""))


# --- other CPUs ---


def test_saved_for_other_levels_of_this_architecture(tmp_path: Path) -> None:
    x = np.linspace(-2, 2, 33, dtype=np.float32)
    for level in ("x86-64-v2", "x86-64-v3"):
        f = tw.compile(lambda x: np.tanh(x) * 2, args=(tw.spec(("n",), "float32"),), target=f"cpu:{level}", name="level")
        f.save(tmp_path / "level.so")
        loaded = tw.load(tmp_path / "level.so")
        np.testing.assert_allclose(loaded(x), np.tanh(x) * 2, rtol=1e-5)
        assert ("avx2" in loaded.features) == (level == "x86-64-v3")
