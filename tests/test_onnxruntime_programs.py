"""Programs written for onnxruntime run unmodified on the drop-in and give the same answers: magika, RapidOCR, silero's wrapper.

Each runs in processes of its own, once as it is and once on the drop-in. What a program needs besides (opencv, torch) is not
always installed; the models that they carry are run by the drop-in in any case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the drop-in is compared with it")
pytest.importorskip("onnx", reason="models are read with its messages")
pytest.importorskip("magika", reason="models are installed by `make venv`")

import onnxruntime

import tilewright.onnxruntime as ort

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def both(program: list[str], folder: Path, cache: Path) -> tuple[str, str]:
    """What the program prints on onnxruntime, and on the drop-in."""
    environment = {**os.environ, "TILEWRIGHT_CACHE_DIR": str(cache)}
    found = []
    for before in ([], ["-m", "tilewright.onnxruntime"]):
        result = subprocess.run([sys.executable, *before, *program], cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        found.append(result.stdout)
    return found[0], found[1]


def missing(*modules: str) -> str:
    return ", ".join(name for name in modules if find_spec(name) is None)


@pytest.mark.skipif(bool(missing("magika", "click", "dotenv")), reason=f"not installed: {missing('magika', 'click', 'dotenv')}")
def test_magika(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "noise.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "table.csv").write_text("a,b,c\n" + "1,2,3\n" * 400)
    files = [*tmp_path.iterdir(), *(ROOT / name for name in ("README.md", "setup.py", "Makefile", "pyproject.toml", "csrc/abi.h",
                                                             "compiler/driver.py")), Path(sys.executable).resolve()]
    expected, found = (json.loads(text) for text in both(["-m", "magika.cli.magika_client", "--json", *map(str, files)], tmp_path, cache))
    assert len(found) == len(expected) == len(files)
    for theirs, ours in zip(expected, found):
        score, same = (entry["prediction"].pop("score") for entry in (theirs, ours))
        assert same == pytest.approx(score, abs=1e-5)
        assert ours == theirs


OCR = """
import json, sys
from rapidocr_onnxruntime import RapidOCR
engine = RapidOCR()
print(json.dumps([engine(path)[0] for path in sys.argv[1:]]))
"""


@pytest.mark.skipif(bool(missing("rapidocr_onnxruntime", "cv2", "pyclipper", "shapely", "yaml", "six", "PIL")),
                    reason=f"not installed: {missing('rapidocr_onnxruntime', 'cv2', 'pyclipper', 'shapely', 'yaml', 'six', 'PIL')}")
def test_rapidocr(tmp_path: Path, cache: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    pages = {"page.png": ((640, 320), ["Tilewright compiles", "tensor programs 2026", "The quick brown fox"]),
             "line.png": ((420, 90), ["Invoice no. 4711"]), "blank.png": ((200, 100), [])}
    for name, (size, lines) in pages.items():
        image = Image.new("RGB", size, "white")
        for number, line in enumerate(lines):
            ImageDraw.Draw(image).text((40, 25 + 90 * number), line, fill="black", font=ImageFont.load_default(size=32))
        image.save(tmp_path / name)
    (tmp_path / "program.py").write_text(OCR)
    expected, found = (json.loads(text.splitlines()[-1]) for text in both(["program.py", *pages], tmp_path, cache))
    assert len(expected[0]) == 3 and expected[2] is None
    for theirs, ours in zip(expected, found):
        assert [line[1] for line in ours or ()] == [line[1] for line in theirs or ()]
        for (corners, _, score), (others, _, same) in zip(theirs or (), ours or ()):
            assert float(same) == pytest.approx(float(score), abs=1e-3)
            np.testing.assert_allclose(others, corners, atol=1)


SILERO = """
import sys
import numpy as np
import torch
from silero_vad import load_silero_vad
wave = torch.from_numpy(np.load("wave.npy"))
for version in (15, 16):
    model = load_silero_vad(onnx=True, opset_version=version)
    for start in range(0, len(wave) - 511, 512):
        print(float(model(wave[start:start + 512], 16000)))
    print(*model.audio_forward(wave[None], 16000).ravel().tolist(), sep="\\n")
"""


def wave(rate: int) -> np.ndarray[Any, Any]:
    """A humming with pauses, and a little noise."""
    time = np.arange(2 * rate) / rate
    tones = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 8)) * (time % 0.8 < 0.5)
    return np.asarray(0.2 * tones + 0.01 * np.random.default_rng(0).standard_normal(time.size), np.float32)


@pytest.mark.skipif(bool(missing("silero_vad", "torch")), reason=f"not installed: {missing('silero_vad', 'torch')}")
def test_silero_wrapper(tmp_path: Path, cache: Path) -> None:
    np.save(tmp_path / "wave.npy", wave(16000))
    (tmp_path / "program.py").write_text(SILERO)
    expected, found = (np.array(text.split(), float) for text in both(["program.py"], tmp_path, cache))
    assert len(expected) > 200
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(find_spec("silero_vad") is None, reason="not installed: silero_vad")
@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_16k_op15", "silero_vad_half", "silero_vad_op18_ifless"])
def test_silero_models_over_a_stream(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What silero's wrapper does, without torch."""
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(cache))
    spec = find_spec("silero_vad")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "data" / f"{name}.onnx"
    sessions = [peer.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for peer in (onnxruntime, ort)]
    takes_rate = any(argument.name == "sr" for argument in sessions[0].get_inputs())
    for rate in (16000,) if "16k" in name or not takes_rate else (16000, 8000):
        frame = rate * 512 // 16000
        samples, found = wave(rate), []
        for session in sessions:
            state, context, speech = np.zeros((2, 1, 128), np.float32), np.zeros((1, frame // 8), np.float32), []
            for start in range(0, 40 * frame, frame):
                x = np.concatenate([context, samples[None, start:start + frame]], axis=1)
                feed = {"input": x, "state": state, **({"sr": np.array(rate, dtype=np.int64)} if takes_rate else {})}
                out, state = session.run(None, feed)
                context = x[:, -context.shape[1]:]
                speech.append(out.item())
            found.append(speech)
        # computed in half precision, which rounds the state in each of 40 steps
        np.testing.assert_allclose(found[1], found[0], atol=2e-3 if "half" in name else 1e-5)


def test_the_example(cache: Path) -> None:
    spec = find_spec("silero_vad")
    assert spec is not None and spec.origin is not None
    model = Path(spec.origin).parent / "data" / "silero_vad_16k_sequence.onnx"
    texts = both(["-m", "examples.drop_in", str(model), "--size", "4", "--calls", "1"], ROOT, cache)
    expected, found = (text.splitlines() for text in texts)
    assert found[0].startswith("tilewright.onnxruntime.session: ") and found[1:] == expected[1:]
