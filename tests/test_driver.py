"""compile: from functions, graphs and files to something to call; retracing, results, errors, dumps, late imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright import driver
from tilewright.build import build
from tilewright.ir.loop_parser import parse_kernel
from tilewright.ir.loop_text import format_kernel
from tilewright.ir.parser import load_text
from tilewright.ir.printer import save_text
from tilewright.ir.schedule import apply_schedule, parse_schedule
from tilewright.options import read_environment
from tilewright.saving import ForeignExecutable

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 8
BIAS = np.array([1, 2, 3], dtype=np.float32)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))


def dense(x, w, b):
    return np.maximum(x @ w + b, 0)


def sample(batch: int = 5) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 4), dtype=np.float32)


def dense_graph() -> tw.Graph:
    return tw.trace(dense, args=(tw.spec(("batch", 4), "float32"), WEIGHT, BIAS))


# --- what is compiled ---


def test_function_with_arguments() -> None:
    executable = tw.compile(dense, args=(tw.spec(("batch", 4), "float32"), WEIGHT, BIAS))
    for batch in (0, 1, 5, 300):
        x = sample(batch)
        np.testing.assert_allclose(executable(x), dense(x, WEIGHT, BIAS), rtol=1e-5, atol=1e-6)
    assert [str(info) for info in executable.inputs] == ["x: float32[batch, 4]"]
    assert executable.run({"x": sample()})["output0"].shape == (5, 3)


def test_graph_and_name() -> None:
    executable = tw.compile(dense_graph(), name="first")
    assert executable.name == "first"
    np.testing.assert_allclose(executable(sample()), dense(sample(), WEIGHT, BIAS), rtol=1e-5)


def test_file_of_text(tmp_path: Path) -> None:
    save_text(dense_graph(), tmp_path / "dense.ir")
    executable = tw.compile(tmp_path / "dense.ir")
    np.testing.assert_allclose(executable(sample()), dense(sample(), WEIGHT, BIAS), rtol=1e-5)


def test_threads_and_strict_precision() -> None:
    executable = tw.compile(dense_graph(), options=tw.Options(threads=2, precision="strict"))
    assert executable.threads == 2
    one = executable.with_threads(1)(sample(50))
    np.testing.assert_array_equal(executable(sample(50)), one)


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize("make", [
    lambda a, b: {"sum": a + b, "parts": [a, (b,)]},
    lambda a, b: [a + 1, b + 1],
    lambda a, b: (a + 1,),
    lambda a, b: Pair(a + 1, b * 2),
    lambda a, b: (a + 1, b + 1),
    lambda a, b: a + b,
], ids=["dict", "list", "single", "named", "tuple", "array"])
def test_structure_of_results(make) -> None:
    x = np.arange(6, dtype=np.float32)
    spec = tw.spec(("n",), "float32")
    for call in (tw.compile(make, args=(spec, spec)), tw.compile(make)):
        same_structure(call(x, x), make(x, x))


def same_structure(found, expected) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            same_structure(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected):
            same_structure(ours, theirs)
    else:
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


def test_structure_survives_threads() -> None:
    executable = tw.compile(lambda x: {"y": x + 1}, args=(tw.spec(("n",), "float32"),))
    assert set(executable.with_threads(1)(np.zeros(3, np.float32))) == {"y"}


# --- functions without arguments: traced at the call ---


def test_one_version_serves_all_sizes_and_each_dtype_and_rank_has_its_own() -> None:
    f = tw.compile(lambda x: x * 2 + 1)
    for shape in ((5,), (7,), (200,)):
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        np.testing.assert_array_equal(f(x), x * 2 + 1)
    assert len(f.executables) == 1
    for x in (np.arange(5, dtype=np.int64), np.ones((3, 4), np.float32), np.ones((5, 4), np.float32)):
        y = f(x)
        np.testing.assert_array_equal(y, x * 2 + 1)
        assert y.dtype == (x * 2 + 1).dtype
    assert len(f.executables) == 3


def test_a_comparison_of_sizes_is_traced_again_where_it_comes_out_otherwise() -> None:
    def halves(x, y):
        return x + y if x.shape[0] == y.shape[0] else x.sum() + y

    f = tw.compile(halves)
    a, b = np.arange(4, dtype=np.float32), np.arange(6, dtype=np.float32)
    for x, y in ((a, a), (a, b), (b, b), (b, a), (a, a)):
        np.testing.assert_allclose(f(x, y), halves(x, y))
    assert len(f.executables) == 2


def test_size_one_broadcasts() -> None:
    f = tw.compile(lambda x, y: x + y)
    for left, right in (((3, 4), (3, 4)), ((3, 4), (1, 4)), ((1, 4), (3, 4)), ((3, 4), (3, 1)), ((2, 4), (2, 4))):
        x, y = np.ones(left, np.float32), np.full(right, 2, np.float32)
        np.testing.assert_array_equal(f(x, y), x + y)


def test_keywords_defaults_and_static_arguments() -> None:
    def scaled(x, factor=2, *, mode="up"):
        return x * factor if mode == "up" else x / factor

    f, x = tw.compile(scaled), np.arange(4, dtype=np.float32)
    for args, kwargs in (((x,), {}), ((x, 3), {}), ((x,), {"factor": 3}), ((x,), {"mode": "down"}), ((), {"x": x, "mode": "down"})):
        np.testing.assert_array_equal(f(*args, **kwargs), scaled(*args, **kwargs))
    with pytest.raises(tw.ArgumentError, match="factr"):
        f(x, factr=3)


def test_scalar_results_are_numpy_scalars() -> None:
    f = tw.compile(lambda x: x.sum())
    result = f(np.arange(4, dtype=np.float32))
    assert isinstance(result, np.float32) and result == 6


def test_nested_arguments() -> None:
    f = tw.compile(lambda params, x: x @ params["w"] + params["b"])
    params = {"w": WEIGHT, "b": BIAS}
    np.testing.assert_allclose(f(params, sample()), sample() @ WEIGHT + BIAS, rtol=1e-5)


def test_graph_for_shows_the_graph() -> None:
    f = tw.compile(dense)
    assert "dense" in str(f.graph_for(sample(), WEIGHT, BIAS)) and len(f.executables) == 1


def test_arguments_that_are_not_contiguous() -> None:
    f, x = tw.compile(lambda x: x + 1), np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (x.T, x[::2], x[:, ::-1], np.asfortranarray(x)):
        np.testing.assert_array_equal(f(view), view + 1)


def test_many_threads_share_one_compilation() -> None:
    traces = []

    def counted(x):
        traces.append(1)
        return x + 1

    f, x, results = tw.compile(counted), np.arange(5, dtype=np.float32), []
    threads = [threading.Thread(target=lambda: results.append(f(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(f.executables) == 1 and len(results) == 8
    for result in results:
        np.testing.assert_array_equal(result, x + 1)


def test_an_error_while_tracing_leaves_the_function_usable() -> None:
    def picky(x):
        if x.ndim == 2:
            raise ValueError("no matrices")
        return x + 1

    f = tw.compile(picky)
    with pytest.raises(ValueError, match="no matrices"):
        f(np.ones((2, 2), np.float32))
    np.testing.assert_array_equal(f(np.ones(3, np.float32)), np.full(3, 2, np.float32))


# --- the reference backends ---


@pytest.mark.parametrize("backend", ["reference", "reference-loops"])
def test_interpreters_stand_in_for_compiled_code(backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", backend)
    executable = tw.compile(dense_graph())
    np.testing.assert_allclose(executable(sample()), dense(sample(), WEIGHT, BIAS), rtol=1e-5)
    with pytest.raises(tw.UnsupportedError, match="interpreted"):
        executable.save(tmp_path / "dense.so")


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_BACKEND", "gpu")
    with pytest.raises(tw.CompileError, match="'gpu' is not one of llvm, reference"):
        tw.compile(dense_graph())


# --- what cannot be compiled ---


@pytest.mark.parametrize("call, message", [
    (lambda: tw.compile(3), "found a int, expected a function, a graph, or the path"),
    (lambda: tw.compile(dense_graph(), args=(1,)), "a graph declares its own inputs"),
    (lambda: tw.compile(dense, args=sample()), "args must be a tuple"),
    (lambda: tw.compile("no/such.onnx"), "there is no such file"),
    (lambda: tw.compile("pyproject.toml"), "found the suffix '.toml', expected .onnx or .ir"),
    (lambda: tw.compile(dense_graph(), target="cpu:zen9"), "unknown CPU"),
    (lambda: tw.compile(dense_graph(), target="cpu+sse9"), "target"),
    (lambda: tw.compile(dense_graph(), target="tpu"), "target"),
    (lambda: tw.Options(precision="sloppy"), "precision 'sloppy'"),
    (lambda: tw.Options(threads=-1), "threads must be 0 or more"),
    (lambda: tw.Options(cache_bytes=-1), "cache_bytes must be 0 or more"),
])
def test_errors(call, message: str) -> None:
    with pytest.raises(tw.TilewrightError, match=message):
        call()


def test_a_model_that_needs_more_memory_than_there_is_is_refused_with_the_figure() -> None:
    def large(x):
        y = np.sort(x)  # its own kernels, so y is a value in memory
        return np.sort(y + 1)[:3]

    with pytest.raises(tw.CompileError, match=r"large: needs \d{14,} bytes of memory .* only \d+ are available"):
        tw.compile(large, args=(tw.spec((2**44,), "float32"),))


def test_a_platform_other_than_linux_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(tw.CompileError, match="platform darwin is not supported, expected linux"):
        tw.compile(dense_graph())


def test_onnx_is_asked_for_by_name_when_it_is_missing() -> None:
    code = """
import sys
sys.modules["onnx"] = None
import tilewright as tw
from tilewright import driver
try:
    tw.from_onnx("model.onnx")
except tw.UnsupportedError as error:
    assert "pip install tilewright[onnx]" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_code_for_another_cpu_is_saved_but_not_called(tmp_path: Path) -> None:
    executable = tw.compile(dense_graph(), target="cpu:pantherlake+fma4")
    if not isinstance(executable, ForeignExecutable):
        pytest.skip("this machine is one")
    with pytest.raises(tw.ArtifactError, match="compiled for cpu:pantherlake, which this machine cannot run"):
        executable(sample())
    executable.save(tmp_path / "dense.so")
    with pytest.raises(tw.ArtifactError, match="compiled for a CPU with"):
        tw.load(tmp_path / "dense.so")


def test_code_for_another_architecture_cannot_be_linked_here(tmp_path: Path) -> None:
    executable = tw.compile(dense_graph(), target="cpu:apple-m1")
    with pytest.raises(tw.ArtifactError, match="compiled for aarch64"):
        executable.save(tmp_path / "dense.so")
    assert not list(tmp_path.glob("*dense*"))


# --- reports ---


def test_metadata() -> None:
    facts = tw.compile(dense_graph()).metadata
    assert facts["compile_seconds"] > 0 and facts["stages"]["code"] > 0 and facts["stages"]["fuse"] > 0
    assert facts["kernels"] and facts["target"].startswith("cpu:")
    assert json.loads(json.dumps(facts)) == facts


def test_lower_bound_of_the_arena() -> None:
    def chain(x):
        return np.sort(np.sort(x) + 1)

    facts = tw.compile(chain, args=(tw.spec((64,), "float32"),)).metadata
    assert 0 <= facts["workspace_lower_bound"] <= facts["workspace"]


def test_dump_leaves_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_IR_DUMP", str(tmp_path / "dump"))
    tw.compile(lambda x: x @ np.ones((50, 3), np.float32), args=(tw.spec(("n", 50), "float32"),), name="dumped")
    names = {path.name for path in (tmp_path / "dump").iterdir()}
    assert {"00_input.ir", "00_input.ir.npz", "timing.json", "repro.py"} <= names
    for suffix in ("_fuse.ir", "_program.loop", "_llvm.ll", "_optimized.ll", "_assembly.s"):
        assert any(name.endswith(suffix) for name in names), suffix
    assert any(name.startswith("kernel_000") for name in names)
    assert load_text(tmp_path / "dump" / "00_input.ir").name == "dumped"
    environment = {"PATH": "/usr/bin:/bin", "TILEWRIGHT_CACHE_DIR": ""}
    answer = subprocess.run([sys.executable, tmp_path / "dump" / "repro.py"], check=True, capture_output=True, text=True,
                            env=environment)
    assert "dumped" in answer.stdout


def test_dump_leaves_the_schedule_of_each_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_IR_DUMP", str(tmp_path))
    tw.compile(lambda x: x / np.sum(np.exp(x), axis=1, keepdims=True), args=(tw.spec(("n", 50), "float32"),))
    (path,) = tmp_path.glob("kernel_*.schedule")
    plain, found = (parse_kernel(path.with_suffix(end).read_text()) for end in (".plain.loop", ".loop"))
    assert format_kernel(apply_schedule(plain, parse_schedule(path.read_text()))) == format_kernel(found)


def test_the_same_input_gives_the_same_bytes() -> None:
    built = [build(dense_graph(), "cpu", tw.Options(), read_environment()) for _ in range(2)]
    assert built[0].object_code == built[1].object_code
    assert built[0].constants is not None and built[1].constants is not None
    assert built[0].constants.tobytes() == built[1].constants.tobytes()
    assert built[0].constants.ctypes.data % 64 == 0


def test_verify_runs_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_VERIFY", "2")
    np.testing.assert_allclose(tw.compile(dense_graph())(sample()), dense(sample(), WEIGHT, BIAS), rtol=1e-5)


def large(value: float) -> np.ndarray:
    """A constant that is borrowed while tracing, not copied."""
    return np.full((64, 64), value, dtype=np.float32)


@pytest.mark.parametrize("again", [False, True])
def test_a_program_that_changes_its_constants(again: bool) -> None:
    """Found in the cache or not, each use means the values it met."""
    def program(x):
        weight = large(1)
        y = x @ weight
        weight[:] = 2
        return y, x @ weight

    x = large(0.5)
    for _ in range(2 if again else 1):
        first, second = tw.compile(program, args=(tw.spec((64, 64), "float32"),))(x)
        np.testing.assert_array_equal(first, large(32))
        np.testing.assert_array_equal(second, large(64))
    traced = tw.compile(program)
    np.testing.assert_array_equal(traced(x)[0], large(32))
    assert len(tw.compile(traced.graph_for(x))(x)) == 2


def test_a_constant_that_the_caller_changes_later() -> None:
    weight = large(1)
    x = large(0.5)
    graph = tw.trace(np.matmul, args=(tw.spec((64, 64), "float32"), weight))
    function = tw.compile(np.matmul, args=(tw.spec((64, 64), "float32"), weight))
    weight[:] = 3
    np.testing.assert_array_equal(function(x), large(32))
    np.testing.assert_array_equal(tw.compile(graph)(x), large(32))
    np.testing.assert_array_equal(tw.compile(np.matmul, args=(tw.spec((64, 64), "float32"), weight))(x), large(96))


def test_a_model_file_that_was_compiled_is_found_without_onnx(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    value = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    shape = ["n", 2]
    model = helper.make_model(helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "sum", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], [value]))
    path = tmp_path / "sum.onnx"
    save(model, path)
    code = ("import sys, numpy as np, tilewright as tw\n"
            "f = tw.compile(sys.argv[1])\n"
            "assert f(np.ones((3, 2), np.float32)).tolist() == [[2.0, 3.0]] * 3\n"
            "print(f.metadata['cached'], 'onnx' in sys.modules)")

    def run() -> str:
        return subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout.strip()

    assert [run(), run()] == ["False True", "True False"]


def _sum_file(path: Path, offset: float) -> Path:
    from onnx import TensorProto, helper, save

    value = helper.make_tensor("c", TensorProto.FLOAT, [3], [offset] * 3)
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "sum",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])], [value])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_a_file_replaced_while_it_is_compiled_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes were read before, its graph after: the first must not stand for the second."""
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    path, before = _sum_file(tmp_path / "sum.onnx", 1), tmp_path / "before.onnx"
    before.write_bytes(path.read_bytes())
    load = driver.load_model

    def replaced(*arguments: object) -> object:
        _sum_file(path, 5)
        return load(*arguments)

    x = np.zeros(3, np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "load_model", replaced)
        assert tw.compile(str(path))(x)[0] == 5
    assert tw.compile(str(before))(x)[0] == 1
    assert tw.compile(str(path))(x)[0] == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator reads every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    path = _sum_file(tmp_path / "sum.onnx", 1)
    path.chmod(0)
    with pytest.raises(tw.CompileError, match=r"sum\.onnx"):
        tw.compile(str(path))


def test_a_file_whose_bytes_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the test: the error of the digest is not the user's, that of reading the model is."""
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "sum.onnx"
    path.mkdir()
    with pytest.raises(tw.CompileError, match=r"sum\.onnx"):
        tw.compile(str(path))
