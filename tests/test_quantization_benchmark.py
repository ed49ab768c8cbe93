"""The data and the table of the quantization benchmark: what is on which side, what counts as the same, what is compared with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("PIL", reason="Pillow, which draws the texts, comes with the models of the tests")

from benchmarks import quantization, quantization_data
from benchmarks.quantization import CONTENDERS, RATIOS, agreement, batches, ratios
from benchmarks.quantization_data import SIDES, description_texts, digest, documentation_texts, file_content, fitting_line, side_of
from examples.ocr import Box

LISTING = """Package: a
Description: first of the packages
 It does this. It does that
 over two lines.
 .
 A second paragraph.
Tag: none

Package: b
Description-en: second of them
Size: 3
"""


def test_descriptions_are_titles_and_paragraphs() -> None:
    assert list(description_texts(LISTING)) == [
        ["first of the packages", "It does this. It does that over two lines.", "A second paragraph."], ["second of them"]]


def test_documentation_serves_where_there_are_no_packages(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""One line.\n\nAnother\nparagraph."""\ndef f():\n    "What f does."\n')
    (tmp_path / "b.py").write_text("this is no Python")
    assert list(documentation_texts(tmp_path)) == [["One line.", "Another paragraph."], ["What f does."]]


def test_sides_are_fixed_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "".join(f"Description: a package that is number {n} of many\n It says so. Nobody asked number {n}.\n\n" for n in range(400))
    monkeypatch.setattr(quantization_data, "package_descriptions", lambda: listing)
    texts = quantization_data.all_texts()
    assert set(texts) == set(SIDES) and not set(texts["calibration"]) & set(texts["heldout"])
    share = len(texts["calibration"]) / (len(texts["calibration"]) + len(texts["heldout"]))
    assert 0.2 < share < 0.3 and texts == quantization_data.all_texts()
    # for all time: another split would let held-out samples into calibration
    assert digest("a sentence").hex() == "c6f4c7a26936d1fa" and [side_of(text) for text in "abcdef"].count("calibration") == 3
    with pytest.raises(SystemExit, match="found 400 sentences on this machine, 401 are wanted"):
        quantization_data.wanted(["x"] * 400, 401, "sentences")


def test_rendered_text_is_the_same_each_time_and_differs_by_text() -> None:
    for draw in (lambda text: quantization_data.line_pixels(text, []), lambda text: quantization_data.page_pixels([text] * 8, [])):
        first, again, other = draw("The first of many lines"), draw("The first of many lines"), draw("Another of these lines")
        np.testing.assert_array_equal(first, again)
        assert first.dtype == np.float32 and first.shape == other.shape and np.abs(first).max() <= 1 and (first != other).any()


def test_a_line_takes_the_words_that_fit() -> None:
    class Font:
        def getlength(self, text: str) -> float:
            return len(text)

    font: Any = Font()
    assert fitting_line("one extraordinarily two thrée", font, 12) == "one two thre" and fitting_line("longest", font, 3) == ""


def test_only_plain_files_of_a_fair_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization_data, "LARGEST_FILE", 10)
    for name, content in (("empty", b""), ("good", b"12345"), ("large", b"12345678901")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "good")
    assert [file_content(tmp_path / name) for name in ("empty", "good", "large", "link", "missing")] == [None, b"12345", None, None, None]
    kinds = quantization_data.installed_files([tmp_path])
    assert len(kinds[""]) == 4


def test_an_unknown_model_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["quantization_data", "--models", "minilm,maxilm"])
    with pytest.raises(SystemExit):
        quantization_data.main()
    assert "no data for maxilm; there are minilm, recognition" in capsys.readouterr().err


# --- the table -----------------------------------------------------------------------------------------------------------


def test_every_comparison_is_of_contenders() -> None:
    assert all({ours, *peers} <= set(CONTENDERS) for ours, peers in RATIOS.values()) and quantization.REFERENCE in CONTENDERS
    rows = {"ours-static": {"median_ms": 2.0}, "ort-static": {"median_ms": 5.0}, "openvino-static": {"median_ms": 4.0, "agreement": 0.99},
            "ort-our-file": {"median_ms": 1.0, "agreement": 0.3}, "ours-dynamic": {"error": "none"}, "ort-dynamic": {"median_ms": 1.0}}
    found = ratios(rows)
    assert found["static int8 against the best peer"] == 2.0 and found["dynamic int8 against ONNX Runtime"] is None


def test_rows_become_batches() -> None:
    found = batches({"x": np.arange(14).reshape(7, 2)}, {"x": (3, 2)})
    assert found["x"].shape == (2, 3, 2) and found["x"][1, 0, 0] == 6


def test_what_counts_as_the_same() -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 2, 8))
    assert agreement("minilm_8x128", [vectors], [3 * vectors]) == pytest.approx(1)
    scores = np.zeros((2, 1, 3, 4))
    scores[..., 1] = 1
    changed = scores.copy()
    changed[0, 0, 1, 0] = 2  # nothing between two of the same letter: another text
    assert agreement("recognition", [scores], [changed]) == 0.5
    changed[0, 0, 1, 0], changed[0, 0, 0, 0] = 0, 2  # nothing before it: the same
    assert agreement("recognition", [scores], [changed]) == 1
    assert agreement("magika", [np.eye(4)[:, np.newaxis]], [np.eye(4)[:, np.newaxis][[0, 1, 3, 2]]]) == 0.5


def test_what_is_lost_is_what_does_not_agree() -> None:
    assert set(quantization.BUDGETS) == set(quantization_data.DATA)
    types = np.eye(4, dtype=np.float32)
    assert quantization.lost("magika")((types[:1],), (types[:1],)) == 0 and quantization.lost("magika")((types[:1],), (types[1:2],)) == 1
    vectors = np.random.default_rng(0).standard_normal((1, 8))
    assert quantization.lost("minilm")((vectors, vectors), (vectors, 2 * vectors)) == pytest.approx(0, abs=1e-12)


def test_boxes_may_be_off_by_few_pixels() -> None:
    box, near, far = Box(0, 0, 9, 9), Box(0, 1, 9, 11), Box(0, 0, 9, 12)
    assert quantization.same_boxes([box], [near]) and not quantization.same_boxes([box], [far])
    assert not quantization.same_boxes([box], []) and quantization.same_boxes([], [])


def test_what_a_tool_raises_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        shapes = None

        def path(self) -> Path:
            return tmp_path / "m.onnx"

    model: Any = Model()
    files = quantization.Files(model, tmp_path, {}, "time", 0.1, "cosine")
    assert files.find("float") == tmp_path / "m.onnx"
    monkeypatch.setattr(files, "by_us", lambda recipe: {}[recipe])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="KeyError: 'static int8'"):
            files.find("static int8.ir")
