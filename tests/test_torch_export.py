"""A sentence encoder as torch.onnx.export writes it (dynamo exporter, batch and sequence open), against ONNX Runtime.

The file beside the tests was written by `benchmarks/export_minilm.py --small`; where torch is installed the test exports it anew, by
the exporter that is there. One compiled artifact serves all sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the models are compared with ONNX Runtime (the test extra installs it)")

import tilewright as tw
from tilewright.ir.interp import evaluate_graph

EXPORTED = Path(__file__).parent / "data" / "minilm_small.onnx"
WORDS = 50
SIZES = ((1, 1), (1, 2), (2, 1), (1, 16), (3, 7), (2, 33), (5, 13), (4, 64), (8, 17), (1, 128), (1, 200), (8, 200))


def feeds(sizes: tuple[tuple[int, int], ...]) -> Iterator[dict[str, np.ndarray]]:
    """Words, and masks of rows that end early, at least one word a row."""
    for batch, sequence in sizes:
        random = np.random.default_rng(100 * batch + sequence)
        words = random.integers(1, WORDS, (batch, sequence))
        ends = random.integers(1, sequence + 1, (batch, 1))
        yield {"input_ids": words, "attention_mask": (np.arange(sequence) < ends).astype(np.int64)}


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        assert np.abs(mine - theirs).max() <= 1e-5 * np.abs(theirs).max()


def check(path: Path) -> None:
    graph, session = tw.from_onnx(path), session_of(path)
    assert [str(param.type) for param in graph.params] == ["i64[batch, sequence]"] * 2
    executable = tw.compile(graph, options=tw.Options(cache=False, threads=1))
    for inputs in feeds(SIZES):
        assert_close(list(executable.run(inputs).values()), session.run(None, inputs))


def test_the_exported_file() -> None:
    check(EXPORTED)


def test_the_exported_file_on_the_interpreter() -> None:
    graph, session = tw.from_onnx(EXPORTED), session_of(EXPORTED)
    for inputs in feeds(SIZES[:6]):
        assert_close(list(evaluate_graph(graph, inputs)), session.run(None, inputs))


def test_bound_to_a_size() -> None:
    graph, session = tw.from_onnx(EXPORTED, dims={"batch": 3, "sequence": 7}), session_of(EXPORTED)
    assert not graph.symbols
    executable = tw.compile(graph, options=tw.Options(cache=False, threads=1))
    for inputs in feeds(((3, 7),)):
        assert_close(list(executable.run(inputs).values()), session.run(None, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("opset", [None, 18, 23])
def test_what_the_exporter_writes_now(opset: int | None, tmp_path: Path) -> None:
    for name in ("torch", "onnxscript"):
        pytest.importorskip(name, reason="torch and onnxscript export the model anew")
    from benchmarks import export_minilm

    check(export_minilm.export(export_minilm.small_encoder(), tmp_path / "small.onnx", opset))
