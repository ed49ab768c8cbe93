"""Programs compiled for several targets: which variant is used, saved libraries that choose, and what is refused.

What a machine has decides which variant it runs, so the expected one is found from its features, apart from the driver.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.cli import run
from tilewright.runtime import _native
from tilewright.runtime.artifact import PUBLIC_FUNCTIONS
from tilewright.runtime.elf_file import read_elf
from tilewright.variants import Code, best_first, split_targets

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
needs_x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="names CPUs of this architecture")
pytestmark = [needs_x86, pytest.mark.usefixtures("private_cache")]

LEVELS = ("cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:x86-64")  # the best one first
FEATURES_OF_LEVELS = ("avx512f,avx512bw,avx512cd,avx512dq,avx512vl", "avx2,fma,bmi,bmi2,f16c,lzcnt,movbe", "sse2")
BEST_HERE = next(level for level, features in zip(LEVELS, FEATURES_OF_LEVELS) if _native.missing_feature(features) is None)
RUNNABLE = LEVELS[LEVELS.index(BEST_HERE):]
FOREIGN = "cpu:x86-64+amx-int8,cpu:x86-64+amx-bf16"
without_amx = pytest.mark.skipif(_native.missing_feature("amx-tile") is None, reason="this CPU lacks nothing that the test compiles for")

random = np.random.default_rng(0)
WEIGHT, BIAS = random.standard_normal((130, 70)).astype(np.float32), random.standard_normal(70).astype(np.float32)


def layer(x: np.ndarray) -> np.ndarray:
    return np.tanh(x @ WEIGHT + BIAS)


def make_input(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 130)).astype(np.float32)


def compile_layer(target: str, **options) -> tw.Executable:
    return tw.compile(layer, args=(tw.spec(("batch", 130), "float32"),), target=target, name="layer", **options)


@pytest.fixture(scope="module")
def executable(private_cache):
    return compile_layer(",".join(reversed(LEVELS)))


@pytest.fixture(scope="module")
def folder(executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved library with its files."""
    place = tmp_path_factory.mktemp("saved")
    executable.save(place / "layer.so")
    return place


# --- in process ---


def test_the_best_variant_that_runs_here_is_called(executable) -> None:
    assert executable.variants == LEVELS and executable.target == BEST_HERE
    assert executable.metadata["variants"] == list(LEVELS)
    x = make_input(5)
    np.testing.assert_allclose(executable(x), layer(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(executable(x), compile_layer(BEST_HERE)(x))
    assert executable.with_threads(1).variants == LEVELS


def test_each_variant_is_in_the_cache_on_its_own(executable) -> None:
    assert compile_layer(",".join(LEVELS)).metadata["cached"]
    alone = compile_layer("cpu:x86-64")
    assert alone.metadata["cached"] and alone.variants == ("cpu:x86-64",)
    assert not compile_layer("cpu:x86-64,cpu:x86-64-v2").metadata["cached"]  # one of them


def test_a_function_without_example_arguments(private_cache) -> None:
    function = tw.compile(layer, target="cpu:x86-64,cpu:x86-64-v2")
    x = make_input(3)
    np.testing.assert_allclose(function(x), layer(x), rtol=1e-5, atol=1e-5)
    assert function.executables[0].variants == ("cpu:x86-64-v2", "cpu:x86-64")


@without_amx
def test_what_this_machine_cannot_run_is_saved(tmp_path: Path) -> None:
    foreign = compile_layer(FOREIGN)
    with pytest.raises(tw.ArtifactError, match=re.escape("layer: compiled for cpu:x86-64+amx-int8 and cpu:x86-64+amx-bf16, which this machine")):
        foreign(make_input(1))
    saved = foreign.save(tmp_path / "layer.so")
    assert not saved.selftest
    with pytest.raises(tw.ArtifactError, match=r"layer: compiled for cpu:x86-64\+amx-int8, cpu:x86-64\+amx-bf16; the last of these needs a "
                                               r"CPU with amx-\w+, which this one lacks"):
        tw.load(tmp_path / "layer.so")


def test_this_machine_among_the_targets() -> None:
    executable = compile_layer("cpu,cpu:x86-64")
    assert executable.variants[1] == "cpu:x86-64" and executable.variants[0] == compile_layer("cpu").target
    assert executable.target == executable.variants[0]


def test_the_interpreter_takes_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", "reference")
    x = make_input(2)
    np.testing.assert_allclose(compile_layer(",".join(LEVELS))(x), layer(x), rtol=1e-5, atol=1e-5)


def test_dumps_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_IR_DUMP", str(tmp_path))
    compile_layer("cpu:x86-64,cpu:x86-64-v3")
    assert {place.name for place in tmp_path.iterdir()} == {"cpu_x86-64", "cpu_x86-64-v3"}
    assert (tmp_path / "cpu_x86-64" / "timing.json").exists()


# --- saved ---


def test_a_library_chooses(folder: Path, executable) -> None:
    loaded = tw.load(folder / "layer.so")
    assert loaded.target == BEST_HERE and loaded.variants == LEVELS
    assert loaded.selftest() == ""
    for batch in (0, 1, 5, 33):
        np.testing.assert_array_equal(loaded(make_input(batch)), executable(make_input(batch)))


def test_a_variant_by_name(folder: Path) -> None:
    baseline, x = tw.load(folder / "layer.so", variant="cpu:x86-64"), make_input(9)
    assert baseline.target == "cpu:x86-64" and baseline.features == ("sse2",) and baseline.variants == LEVELS
    assert baseline.selftest() == ""
    np.testing.assert_array_equal(baseline(x), compile_layer("cpu:x86-64")(x))
    np.testing.assert_allclose(baseline(x), tw.load(folder / "layer.so")(x), rtol=1e-5, atol=1e-5)
    assert baseline.profile(x).kernels and baseline.plan((4, 130))[0] == [(4, 70)]
    with pytest.raises(tw.ArtifactError, match='layer: found variant="cpu:znver3", expected one of: cpu:x86-64-v4, cpu:x86-64-v3, cpu:x86-64'):
        tw.load(folder / "layer.so", variant="cpu:znver3")


@pytest.mark.skipif(_native.missing_feature("avx512bw") is None, reason="this CPU has AVX-512")
def test_a_variant_that_this_cpu_lacks(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(tw.ArtifactError, match="layer: compiled for a CPU with avx512.*, which this one lacks; compile it for this CPU"):
        tw.load(folder / "layer.so", variant="cpu:x86-64-v4")
    compile_layer("cpu:x86-64-v4").save(tmp_path / "alone.so")
    with pytest.raises(tw.ArtifactError, match="alone: compiled for a CPU with avx512"):
        tw.load(tmp_path / "alone.so")


def test_variants_side_by_side_on_many_threads(folder: Path) -> None:
    """Several of one library at once, each with its own constants and workspaces."""
    x, failures = make_input(17), []
    wanted = {level: compile_layer(level)(x) for level in RUNNABLE}

    def work(level: str) -> None:
        for _ in range(5):
            found = tw.load(folder / "layer.so", variant=level, threads=1)
            if not all(np.array_equal(found(x), wanted[level]) for _ in range(20)):
                failures.append(level)

    workers = [threading.Thread(target=work, args=(level,)) for level in RUNNABLE * 2]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


def test_constants_of_variants_are_parts_of_one_file(tmp_path: Path) -> None:
    """Equal ones are there once: x86-64-v2 packs as x86-64 does."""
    sizes = {}
    for name, targets in (("one", "cpu:x86-64"), ("same", "cpu:x86-64,cpu:x86-64-v2"), ("two", "cpu:x86-64,cpu:x86-64-v3")):
        saved = compile_layer(targets).save(tmp_path / f"{name}.so", selftest=False)
        sizes[name] = saved.weights.stat().st_size
        loaded = tw.load(tmp_path / f"{name}.so", variant="cpu:x86-64")
        np.testing.assert_array_equal(loaded(make_input(4)), compile_layer("cpu:x86-64")(make_input(4)))
    assert sizes["one"] == sizes["same"] < sizes["two"]


def test_damaged_parts_are_refused(folder: Path, tmp_path: Path) -> None:
    parts = (folder / "layer.weights").read_bytes()
    for size in (0, 100, 4096, len(parts) // 2, len(parts) - 1):
        (tmp_path / "cut.weights").write_bytes(parts[:size])
        with pytest.raises(tw.ArtifactError, match="truncated"):
            tw.load(folder / "layer.so", variant="cpu:x86-64", weights=tmp_path / "cut.weights")  # its part is the last
    (tmp_path / "changed.weights").write_bytes(parts[:-100] + bytes(100 * [7]))
    with pytest.raises(tw.ArtifactError, match="checksum differs"):
        tw.load(folder / "layer.so", variant="cpu:x86-64", weights=tmp_path / "changed.weights")


@pytest.mark.parametrize("options", [{}, {"embed": True}, {"static": True}], ids=["shared", "embedded", "static"])
def test_the_same_targets_give_the_same_bytes(tmp_path: Path, executable, options: dict) -> None:
    files = []
    for program, place in ((executable, tmp_path / "one"), (compile_layer(",".join(LEVELS)), tmp_path / "two")):
        place.mkdir()
        saved = program.save(place / ("layer.a" if options.get("static") else "layer.so"), **options)
        files.append([path.read_bytes() for path in saved.files])
    assert files[0] == files[1]


def test_embedded_constants(tmp_path: Path, executable) -> None:
    saved, x = executable.save(tmp_path / "layer.so", embed=True), make_input(3)
    assert saved.weights is None
    for level in RUNNABLE:
        loaded = tw.load(tmp_path / "layer.so", variant=level)
        assert loaded.selftest() == ""
        np.testing.assert_array_equal(loaded(x), compile_layer(level)(x))


def test_a_program_without_constants(tmp_path: Path) -> None:
    double = tw.compile(lambda x: x * 2, args=(tw.spec(("n",), "float32"),), target=",".join(LEVELS), name="double")
    assert double.save(tmp_path / "double.so").weights is None
    double.save(tmp_path / "bare.so", selftest=False)
    for name in ("double", "bare"):
        assert tw.load(tmp_path / f"{name}.so")(np.ones(3, np.float32)).tolist() == [2, 2, 2]


def test_only_the_public_functions_are_exported(folder: Path) -> None:
    elf = read_elf((folder / "layer.so").read_bytes(), "layer.so")
    assert sorted(elf.exported()) == sorted(f"layer_{function}" for function in PUBLIC_FUNCTIONS)


def test_the_header_names_the_variants(folder: Path) -> None:
    text = (folder / "layer.h").read_text()
    assert "Compiled for cpu:x86-64-v4, cpu:x86-64-v3, cpu:x86-64: the first of these that the CPU can run is used." in text


# --- from C ---


PROGRAM = """
#include <stdio.h>
#include <string.h>
#include "layer.h"
int main(int count, char **arguments) {
  char error[512] = "";
  tw_context context = {TW_ABI_VERSION};
  context.error = error;
  context.error_capacity = sizeof error;
  if (count > 1) context.variant = arguments[1];
  tw_constants constants;
  int status = layer_open(&context, NULL, &constants);
  if (status != TW_OK) return printf("%d %s\\n", status, error), 1;
  if (layer_selftest(&context, constants.data) != TW_OK) return puts(error), 2;
  const tw_model *model = layer_describe();
  printf("%s", model->target);
  for (model = model->first_variant; model != NULL; model = model->next_variant) printf(" %s", model->target);
  float x[130] = {1}, y[70];
  const void *inputs[] = {x};
  void *outputs[] = {y};
  int64_t shapes[] = {1, 130};
  if (layer_run(&context, inputs, outputs, shapes, constants.data, NULL) != TW_OK) return puts(error), 3;
  for (int i = 0; i < 70; i++) printf(" %.9g", y[i]);
  layer_close(&constants);
  return 0;
}
"""


@needs_cc
@pytest.mark.parametrize("library", ["layer.so", "layer.a"])
@pytest.mark.parametrize("embed", [False, True], ids=["sidecar", "embedded"])
def test_a_c_program(tmp_path: Path, executable, library: str, embed: bool) -> None:
    executable.save(tmp_path / library, embed=embed)
    (tmp_path / "main.c").write_text(PROGRAM)
    subprocess.run(["cc", "-std=c99", "-Wall", "-Werror", "main.c", library, "-pthread", "-Wl,-rpath,$ORIGIN", "-o", "main"], check=True, cwd=tmp_path)
    x = np.zeros((1, 130), np.float32)
    x[0, 0] = 1

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([tmp_path / "main", *arguments], capture_output=True, text=True)

    for arguments, level in (((), BEST_HERE), (("cpu:x86-64",), "cpu:x86-64")):
        words = call(*arguments).stdout.split()
        assert words[0] == BEST_HERE and tuple(words[1:4]) == LEVELS
        np.testing.assert_array_equal(np.array(words[4:], np.float32), compile_layer(level)(x)[0])
    refused = call("cpu:other")
    assert refused.returncode == 1
    assert refused.stdout == ("-4 layer: found the variant 'cpu:other' in the context, expected one of: cpu:x86-64-v4, cpu:x86-64-v3, cpu:x86-64\n")
    if LEVELS[0] != BEST_HERE:
        assert re.match(r"-6 layer: compiled for a CPU with avx512\w+, which this one lacks", call("cpu:x86-64-v4").stdout)


@needs_cc
@without_amx
def test_a_c_program_without_a_variant_for_this_cpu(tmp_path: Path) -> None:
    compile_layer(FOREIGN).save(tmp_path / "layer.so")
    (tmp_path / "main.c").write_text(PROGRAM)
    subprocess.run(["cc", "-std=c99", "main.c", "layer.so", "-pthread", "-Wl,-rpath,$ORIGIN", "-o", "main"], check=True, cwd=tmp_path)
    found = subprocess.run([tmp_path / "main"], capture_output=True, text=True)
    assert found.returncode == 1 and re.match(r"-6 layer: compiled for .*; the last of these needs a CPU with amx-\w+, which this one lacks", found.stdout)


# --- the list itself ---


@pytest.mark.parametrize("targets, message", [
    ("cpu:x86-64,,cpu:x86-64-v3", "target: found nothing between two commas in 'cpu:x86-64,,cpu:x86-64-v3'"),
    (",", "target: found nothing between two commas"),
    ("cpu:x86-64,cpu:x86-64", "target: found cpu:x86-64 twice: the second one would never be used"),
    ("cpu:x86-64-v3,cpu:x86-64-v3+fma", "target: found cpu:x86-64-v3 and cpu:x86-64-v3+fma, which need the same features"),
    ("cpu,cpu:native", "target: found cpu and cpu:native, which need the same features"),
    ("cpu:x86-64,cpu:neoverse-n1", "target: found cpu:x86-64 (x86_64) and cpu:neoverse-n1 (aarch64), expected targets of one architecture"),
    ("cpu:x86-64,cpu:x86-65", "target: unknown CPU 'x86-65' in 'cpu:x86-65'"),
    ("cpu:x86-64,gpu", "target: form not understood: 'gpu'"),
])
def test_bad_lists(targets: str, message: str) -> None:
    with pytest.raises(tw.CompileError, match=re.escape(message)):
        compile_layer(targets)


def test_a_list_is_text() -> None:
    with pytest.raises(tw.ArgumentError, match="target: found a tuple, expected text such as 'cpu' or 'cpu:x86-64,cpu:x86-64-v3'"):
        compile_layer(("cpu:x86-64", "cpu"))


def test_tuning_takes_one_target() -> None:
    with pytest.raises(tw.CompileError, match="layer: tune: found the targets cpu:x86-64, cpu:x86-64-v3, expected one"):
        compile_layer("cpu:x86-64,cpu:x86-64-v3", options=tw.Options(tune=1))


def test_lists_are_split() -> None:
    assert split_targets("cpu") == ("cpu",) and split_targets("cpu:x86-64, cpu") == ("cpu:x86-64", "cpu")


def test_more_demanding_variants_come_first() -> None:
    def code(bits: int, *features: str) -> Code:
        return Code(b"", None, {"vector_bits": bits, "features": features})

    some = [code(128, "sse2"), code(256, "sse2", "avx", "avx2"), code(512, "avx512f"), code(256, "sse2", "avx"), code(128, "sse2", "sse3")]
    assert best_first(some) == tuple(some[i] for i in (2, 1, 3, 4, 0))


# --- commands ---


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    tw.save_text(tw.trace(layer, (tw.spec(("batch", 130), "float32"),)), "layer.ir")
    assert run(["compile", "layer.ir", "-o", "layer.so", "--target", ",".join(LEVELS)]) == 0
    assert f"variants: {', '.join(LEVELS)}; the first of these that a CPU can run is used" in capsys.readouterr().out
    for model, options in (("layer.so", ()), ("layer.ir", ("--target", ",".join(LEVELS)))):
        assert run(["inspect", model, *options]) == 0
        shown = capsys.readouterr().out
        assert f"compiled for {BEST_HERE}\n" in shown and f"variants, the best one first: {', '.join(LEVELS)}" in shown
    assert run(["run", "layer.so", "--random"]) == 0
    assert run(["cache", "why", "layer.ir", "--target", ",".join(LEVELS)]) == 1
    assert f"target: found several targets, expected one: '{','.join(LEVELS)}'" in capsys.readouterr().err
