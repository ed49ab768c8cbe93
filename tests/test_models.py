"""The real models, from file to C library, against ONNX Runtime: as a user would, by the command line and by the API.

Bounds of agreement: every output within 1e-4 of its largest value, and the same answer (class, text, boxes) where the
model has one. Models come from the packages of tests/models.txt.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the models are compared with ONNX Runtime (the test extra installs it)")

import onnxruntime

import tilewright as tw
from benchmarks.models import MODELS, Model

pytestmark = pytest.mark.slow
WITHOUT_CACHE = tw.Options(cache=False)


def peer(model: Model, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model.path()), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def bindings(model: Model) -> dict[str, int]:
    """The dims that the model leaves open, bound to the sizes of the benchmark."""
    graph = tw.from_onnx(model.path())
    found: dict[str, int] = {}
    for param in graph.params:
        for size, number in zip(param.shape, model.shapes[param.op.label], strict=True):
            if not isinstance(size, int):
                found[str(size)] = number
    return found


def check(model: Model, expected: list[np.ndarray], found: list[np.ndarray]) -> None:
    for x, y in zip(expected, found, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        assert np.abs(x - y).max() <= 1e-4 * np.abs(x).max()
    if model.answer is not None:
        np.testing.assert_array_equal(model.answer(found), model.answer(expected))


@pytest.fixture(scope="module", params=MODELS, ids=[m.name for m in MODELS])
def case(request: pytest.FixtureRequest) -> tuple[Model, dict[str, np.ndarray], list[np.ndarray]]:
    model = request.param
    inputs = model.make_inputs()
    return model, inputs, peer(model, inputs)


def test_specialized_in_process(case) -> None:
    model, inputs, expected = case
    executable = tw.compile(tw.from_onnx(model.path(), dims=bindings(model)), options=WITHOUT_CACHE)
    found = list(executable.run(inputs).values())
    check(model, expected, found)
    for threads in (1, 2):
        again = list(executable.with_threads(threads).run(inputs).values())
        assert all(x.tobytes() == y.tobytes() for x, y in zip(found, again, strict=True)), "results depend on threads"


def test_one_artifact_for_all_sizes(case) -> None:
    model, inputs, expected = case
    executable = tw.compile(tw.from_onnx(model.path()), options=WITHOUT_CACHE)
    check(model, expected, list(executable.run(inputs).values()))


def test_command_line(case, tmp_path: Path) -> None:
    """`tilewright compile` to a library, its own selftest, then `tilewright run` on the library."""
    model, inputs, expected = case
    library = tmp_path / "model.so"
    dims = [part for name, size in bindings(model).items() for part in ("--dims", f"{name}={size}")]
    command = [sys.executable, "-m", "tilewright"]
    subprocess.run([*command, "compile", str(model.path()), "-o", str(library), *dims], check=True, capture_output=True)
    arguments = []
    for name, array in inputs.items():
        np.save(tmp_path / f"{name}.npy", array)
        arguments += ["--input", f"{name}={tmp_path / name}.npy"]
    loaded = tw.load(library)
    names = [info.name for info in loaded.outputs]
    for number, name in enumerate(names):
        arguments += ["--output", f"{name}={tmp_path}/out{number}.npy"]
    subprocess.run([*command, "run", str(library), *arguments], check=True, capture_output=True)
    check(model, expected, [np.load(tmp_path / f"out{number}.npy") for number in range(len(names))])
    loaded.selftest()
