"""`tilewright quantize`: every option, what is written, how it ends."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tilewright.cli import run
from tilewright.quantizing.report import FrontPoint, LayerReport, Report, WholeReport
from tilewright.quantizing.texts import duration_text, loss_text, plain, ranking_lines, ratio_text, report_lines, size_text

SIZES = (24, 48, 16)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two layers and data for it."""
    folder = tmp_path_factory.mktemp("quantize")
    random = np.random.default_rng(3)
    first, second, third = SIZES
    constants = {"w": random.standard_normal((first, second)), "b": random.standard_normal(second),
                 "v": random.standard_normal((second, third))}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"], name="first"), helper.make_node("Add", ["p", "b"], ["a"], name="bias"),
             helper.make_node("Relu", ["a"], ["r"], name="relu"), helper.make_node("MatMul", ["r", "v"], ["y"], name="second")]
    graph = helper.make_graph(nodes, "two layers", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", first))],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", third))],
                              [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), folder / "model.onnx")
    for name, count in (("calibration", 96), ("heldout", 8)):
        np.savez(folder / f"{name}.npz", x=random.standard_normal((count, 2, first)).astype(np.float32))
    return folder


@pytest.fixture(autouse=True)
def here(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(files / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> tuple[str, str]:
    found = run(["quantize", *map(str, arguments)])
    answer = capsys.readouterr()
    assert found == status, answer.out + answer.err
    return answer.out, answer.err


def data(files: Path) -> list[object]:
    """The model with its data; goals of size do not hang on how fast this machine is now."""
    return [files / "model.onnx", "--calibration", files / "calibration.npz", "--goal", "size", "--threads", 1]


# --- what is written -----------------------------------------------------------------------------------------------------


def test_an_onnx_model_and_both_reports(files: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = command(capsys, *data(files), "--held-out", files / "heldout.npz", "--budget", "5%", "-o", "small.onnx",
                       "--report", "report.html", "--report", "report.json")
    assert "worth it" in out and "2 of 2 layers quantized" in out and "small.onnx" in out and not err
    found = onnx.load("small.onnx")
    onnx.checker.check_model(found)
    assert [node.op_type for node in found.graph.node].count("QuantizeLinear") == 2
    assert (here / "small.onnx").stat().st_size < (files / "model.onnx").stat().st_size
    page = (here / "report.html").read_text()
    assert "<svg" in page and "Worth it." in page and "first" in page and "http" not in page
    report = json.loads((here / "report.json").read_text())
    assert report["worth"] and report["held_out"] == 8 and report["samples"] == 96 and len(report["layers"]) == 2
    assert 0 < report["after"]["loss"] < 0.05 and report["after"]["bytes"] < report["before"]["bytes"]
    assert sorted(path.name for path in here.iterdir()) == ["report.html", "report.json", "small.onnx"]


def test_the_outputs_mean_the_same(files: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("small.onnx", "small.ir", "small.so"):
        command(capsys, *data(files), "--budget", "5%", "-o", name)
    with np.load(files / "heldout.npz") as archive:
        x = archive["x"][0]
    exact = tw.compile(tw.from_onnx(files / "model.onnx")).run({"x": x})["y"]
    results = [tw.compile(tw.from_onnx("small.onnx")).run({"x": x})["y"], tw.compile(tw.load_text("small.ir")).run({"x": x})["y"],
               tw.load("small.so").run({"x": x})["y"]]
    step = np.abs(exact).max() / 20
    for found in results:
        np.testing.assert_allclose(found, results[0], atol=1e-4)
        np.testing.assert_allclose(found, exact, atol=step)
    onnxruntime = pytest.importorskip("onnxruntime")
    command(capsys, *data(files), "--budget", "5%", "-o", "unsigned.onnx", "--unsigned-weights")
    theirs = onnxruntime.InferenceSession("unsigned.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(theirs, results[0], atol=step / 5)
    options = onnxruntime.SessionOptions()  # its own kernels add pairs of products in 16 bits where a CPU has no VNNI, and saturate
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    theirs = onnxruntime.InferenceSession("small.onnx", options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(theirs, results[0], atol=step / 5)


def test_json_and_a_graph_in_text(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tw.save_text(tw.from_onnx(files / "model.onnx", dims={"n": 2}), "model.ir")
    out, _ = command(capsys, "model.ir", *data(files)[1:], "--budget", "5%", "--json", "-o", "small.ir")
    answer = json.loads(out)
    assert set(answer["written"]) == {"small.ir", "small.ir.npz"} or set(answer["written"]) == {"small.ir"}
    assert answer["report"]["goal"] == "size" and answer["report"]["recipe"] == "static int8"


@pytest.mark.parametrize(("recipe", "more"), [
    ("weight-only int4", ["--group", 16, "--rounding", "nearest"]), ("weight-only int8", []), ("bf16", []),
    ("static int8", ["--ranges", "min-max", "--smoothing", "none", "--rounding", "gptq"]),
    ("static int8 plain", ["--byte-bits", 7]),
])
def test_recipes_and_what_they_are_made_of(files: Path, capsys: pytest.CaptureFixture[str], recipe: str, more: list[object]) -> None:
    out, _ = command(capsys, *data(files), "--recipe", recipe, "--budget", "50%", "--metric", "snr", "-o", "small.onnx", "--json", *more)
    report = json.loads(out)["report"]
    assert report["recipe"] == recipe and report["metric"] == "snr" and report["worth"]
    onnx.checker.check_model(onnx.load("small.onnx"))


def test_bytes_of_weights_have_the_bits_that_are_asked_for(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bits, most in ((7, 64), (8, 127)):
        command(capsys, *data(files), "--byte-bits", bits, "-o", "small.onnx")
        weights = [numpy_helper.to_array(tensor) for tensor in onnx.load("small.onnx").graph.initializer if tensor.data_type == TensorProto.INT8]
        assert max(int(np.abs(array.astype(np.int32)).max()) for array in weights if array.ndim == 2) == most
    _, err = command(capsys, *data(files), "--byte-bits", 6, status=2)
    assert "'6' is not one of 'auto', '7', '8'" in err


def test_without_data(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = command(capsys, files / "model.onnx", "--data-free", "--recipe", "weight-only int8", "--goal", "size", "-o", "small.onnx",
                     "--report", "report.html")
    assert "data-free" in out and Path("small.onnx").is_file()
    assert "Nothing is known of what the results lose" in Path("report.html").read_text()


def test_a_metric_of_ones_own_and_dims(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("metrics.py").write_text("import numpy as np\ndef largest(expected, found):\n    return np.abs(expected[0] - found[0]).max() / 1000\n")
    out, _ = command(capsys, *data(files), "--metric", "metrics.py:largest", "--dims", "n=2", "--json")
    assert json.loads(out)["report"]["metric"] == "largest"


def test_diagnosis(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = command(capsys, *data(files), "--diagnose")
    assert {line.split()[1] for line in out.splitlines()} == {"first", "second"}
    out, _ = command(capsys, *data(files), "--diagnose", "--json")
    layers = json.loads(out)
    assert [layer["loss"] for layer in layers] == sorted((layer["loss"] for layer in layers), reverse=True)


def test_what_is_not_worth_it_is_not_written(files: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = command(capsys, *data(files), "--budget", "0", "-o", "small.onnx", "--report", "report.json", "--report", "report.html", status=1)
    assert "not worth it" in out and "left alone: first and 1 more" in out or "left alone: first" in out
    assert err == "tilewright: small.onnx is not written: quantizing model.onnx is not worth it\n"
    assert not (here / "small.onnx").exists() and not json.loads((here / "report.json").read_text())["worth"]
    assert "Not worth it." in (here / "report.html").read_text()


# --- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "message"), [
    (["--calibration", "c.npz", "--data-free"], "--data-free means without data: leave out --calibration and --held-out"),
    (["--held-out", "c.npz", "--data-free"], "--data-free means without data"),
    (["--data-free", "--diagnose"], "it needs --calibration, not --data-free"),
    ([], "--calibration is missing"),
    (["--calibration", "c.npz", "--diagnose", "-o", "a.onnx"], "--diagnose only ranks the layers"),
    (["--calibration", "c.npz", "--report", "r.txt"], "--report r.txt: found the suffix '.txt', expected .html or .json"),
    (["--calibration", "c.npz", "-o", "a.tflite"], "--output a.tflite: found the suffix '.tflite', expected .onnx, .ir, .so, .a"),
    (["--calibration", "c.npz", "--budget", "much"], "--budget: found 'much', expected a loss of 0 or more, as in 0.5% or 0.005"),
    (["--calibration", "c.npz", "--budget", "-1%"], "--budget: found '-1%'"),
    (["--calibration", "c.npz", "--budget", "nan"], "--budget: found 'nan'"),
    (["--calibration", "c.npz", "--metric", "none.py:f"], "--metric none.py:f: there is no file 'none.py'"),
    (["--calibration", "c.npz", "--metric", "none.py"], "--metric none.py: which function of the file? Expected none.py:FUNCTION"),
    (["--calibration", "c.npz", "--group", "-1"], "-1 is not in the range x>=0"),
    (["--calibration", "c.npz", "--unsigned-weights", "-o", "a.ir"], "--unsigned-weights is about how an ONNX model is written"),
    (["--calibration", "c.npz", "--goal", "beauty"], "'beauty' is not one of 'time', 'size'"),
])
def test_command_lines_that_are_not_understood(files: Path, capsys: pytest.CaptureFixture[str], arguments: list[object], message: str) -> None:
    out, err = command(capsys, files / "model.onnx", *arguments, status=2)
    assert message in err and not out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--recipe", "int3"], "recipe 'int3' is not one of static int8, dynamic int8"),
    (["--metric", "taste"], "metric 'taste' is not one of cosine, snr, top-1"),
    (["--ranges", "wide"], "ranges 'wide' is not one of"),
    (["--rounding", "up"], "rounding 'up' is not one of"),
    (["--smoothing", "very"], "smoothing 'very' is not one of"),
    (["--calibration", "none.npz"], "none.npz cannot be read: there is no such file"),
    (["--group", 8], "group must be 0, one scale a channel, or 16 or more, found 8"),
    (["-o", "nowhere/a.onnx"], "there is no folder nowhere"),
])
def test_errors_are_one_message(files: Path, capsys: pytest.CaptureFixture[str], arguments: list[object], message: str) -> None:
    _, err = command(capsys, *data(files), *arguments, status=1)
    assert message in err and err.startswith("tilewright: ") and "Traceback" not in err


def test_outputs_that_would_destroy_or_cannot_be(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = command(capsys, *data(files), "-o", files / "model.onnx", status=2)
    assert "is the model itself, which would be lost" in err
    Path("model.ir").write_text("")
    _, err = command(capsys, "model.ir", *data(files)[1:], "-o", "a.onnx", status=2)
    assert "an ONNX model is written from an ONNX model, found model.ir; write .ir or .so" in err


def test_what_quantize_linear_cannot_say(files: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = command(capsys, *data(files), "--recipe", "dynamic int8", "--budget", "5%", "-o", "small.onnx", status=1)
    assert "found at run time (i8 dynamic), which no QuantizeLinear can say" in err and "write .ir or .so instead" in err
    assert not (here / "small.onnx").exists()


def test_a_metric_file_without_the_function(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("metrics.py").write_text("x = 1\n")
    _, err = command(capsys, *data(files), "--metric", "metrics.py:x", status=2)
    assert "metrics.py has no function 'x'" in err
    Path("metrics.py").write_text("import nothing_of_that_name\n")
    _, err = command(capsys, *data(files), "--metric", "metrics.py:x", status=2)
    assert "running metrics.py failed: ModuleNotFoundError: No module named 'nothing_of_that_name'" in err


def test_a_metric_that_fails_is_no_fault_of_ours(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("metrics.py").write_text("def ratio(expected, found):\n    return 1 / 0\ndef all_of_them(expected, found):\n    return expected[0]\n")
    _, err = command(capsys, *data(files), "--metric", "metrics.py:ratio", status=1)
    assert "the metric ratio failed: ZeroDivisionError: division by zero" in err and "float32[2, 16]" in err and "internal" not in err
    _, err = command(capsys, *data(files), "--metric", "metrics.py:all_of_them", status=1)
    assert "the metric gave array([[" in err and len(err) < 300


def test_a_page_needs_jinja(files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def refusing(name: str, *arguments: Any, **more: Any) -> Any:
        if name.endswith("page") or "page" in (arguments[2] or () if len(arguments) > 2 else ()):
            raise ImportError("no", name="jinja2")
        return plain_import(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    _, err = command(capsys, *data(files), "--report", "r.html", status=1)
    assert "--report as HTML needs jinja2" in err and "pip install 'tilewright[quantize]'" in err


# --- texts ---------------------------------------------------------------------------------------------------------------


def test_figures_as_text() -> None:
    nan, inf = float("nan"), float("inf")
    assert [duration_text(s) for s in (0.0123, 4e-5, nan)] == ["12.300 ms", "40.0 µs", "–"]
    assert [size_text(n) for n in (2500, 12_345_678)] == ["2.50 kB", "12.35 MB"]
    assert [loss_text(x) for x in (0, 0.005, 2e-7, nan, inf)] == ["0", "0.500 %", "2.0e-07", "–", "∞"]
    assert ratio_text((4.0, 1.0)) == "25.0 %" and ratio_text((0, 1)) == ratio_text((nan, 1)) == "–"


def report(**changes: Any) -> Report:
    layers = (LayerReport("a <b>", "place", "dot", (4, 4), "i8", "", 0.001, 0.01, 2e-3, 1e-3, 64, 20),
              LayerReport("c", "place", "conv", (1, 1, 3, 3), "f32", "it gets no faster"))
    values = {"model": "m", "recipe": "static int8", "metric": "cosine", "goal": "time", "budget": 0.005, "worth": True, "verdict": "fine",
              "before": WholeReport(2e-3, 100, 0.0, 1.0, float("inf"), 1.0), "after": WholeReport(1e-3, 50, 0.001, 0.999, 30.0, 0.99),
              "layers": layers, "front": (FrontPoint(0.0, 2e-3, 100, 0), FrontPoint(0.001, 1e-3, 50, 1, True)), "rounds": 2,
              "warnings": ("few samples",)}
    return Report(**{**values, **changes})


def test_the_page_escapes_names_and_shows_everything() -> None:
    page = pytest.importorskip("tilewright.quantizing.page")
    text = page.render(report())
    assert "a &lt;b&gt;" in text and "<b>" not in text and "it gets no faster" in text and "few samples" in text and "2 times" in text
    assert text.count("<circle") == 2 and 'class="chosen"' in text and "50.0 %" in text
    empty = page.render(report(front=(), layers=(), data_free=True))
    assert "No choice was searched." in empty and empty.count("None.") == 2
    many = page.render(report(goal="size", front=tuple(FrontPoint(n / 1000, 1.0, 1000 - n, n, n == 77) for n in range(500))))
    assert many.count("<circle") == 500 and many.count("<tr") < 80 and ", chosen" in many


def test_lines_and_data() -> None:
    lines = "\n".join(report_lines(report()))
    assert "worth it" in lines and "left alone: c: it gets no faster" in lines and "50.0 %" in lines
    assert plain(report())["before"]["snr"] is None and json.dumps(plain(report()), allow_nan=False)
    ranked = ranking_lines(report().layers)
    assert "0.100 %" in ranked[0] and "left alone" in ranked[1]
    assert len(ranking_lines([LayerReport("n" * 200, "", "dot", (2,), "i8", "")])[0]) < 140
