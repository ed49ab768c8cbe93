"""What kind of file is this? Magika's network looks at the first and the last bytes and names the content type.

Assumes the package `magika` for the model file and its list of types (its code is not used). Guarantees the same
features and the same rule of decision as Magika 1.0 at high confidence, so the same answers.

    python -m examples.filetype README.md picture.png --backend onnxruntime
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from examples import backends


@dataclass(frozen=True)
class Layout:
    """What of a file the network sees, and how its scores are judged: the model's own configuration."""

    head: int  # bytes from the beginning
    tail: int  # bytes from the end
    block: int  # how far into the file whitespace is skipped
    shortest: int  # below this many bytes the network is not asked
    padding: int  # the token that stands for "no byte"
    labels: tuple[str, ...]
    thresholds: dict[str, float]
    threshold: float  # for labels without one of their own
    renamed: dict[str, str]
    texts: frozenset[str]  # labels of types that are text


def model_folder() -> Path:
    """Where the installed package `magika` keeps its model; found without importing the package."""
    package = find_spec("magika")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "filetype: the package magika, which carries the model, is not installed; "
            "run `make venv`, or `pip install --no-deps -r tests/models.txt`"
        )
    return Path(package.origin).parent / "models" / "standard_v3_3"


def load_layout() -> Layout:
    """Reads the model's configuration and, from the list of all types, which of them are text."""
    raw = json.loads((model_folder() / "config.min.json").read_text())
    kinds = json.loads((model_folder().parents[1] / "config" / "content_types_kb.min.json").read_text())
    return Layout(
        head=raw["beg_size"],
        tail=raw["end_size"],
        block=raw["block_size"],
        shortest=raw["min_file_size_for_dl"],
        padding=raw["padding_token"],
        labels=tuple(raw["target_labels_space"]),
        thresholds=raw["thresholds"],
        threshold=raw["medium_confidence_threshold"],
        renamed=raw["overwrite_map"],
        texts=frozenset(label for label, kind in kinds.items() if kind["is_text"]),
    )


def features(content: bytes, layout: Layout) -> np.ndarray:
    """The head without leading whitespace, padded behind; the tail without trailing whitespace, padded before."""
    head = content[: layout.block].lstrip()[: layout.head]
    tail = content[max(len(content) - layout.block, 0) :].rstrip()[-layout.tail :]
    tokens = np.full(layout.head + layout.tail, layout.padding, np.int32)
    tokens[: len(head)] = np.frombuffer(head, np.uint8)
    tokens[len(tokens) - len(tail) :] = np.frombuffer(tail, np.uint8)
    return tokens


def decide(scores: np.ndarray, layout: Layout) -> tuple[str, float]:
    """The best label where its score reaches the label's threshold, else plainly text or unknown."""
    best = int(scores.argmax())
    label, score = layout.labels[best], float(scores[best])
    final = layout.renamed.get(label, label)
    if score < layout.thresholds.get(label, layout.threshold):
        return ("txt" if final in layout.texts else "unknown"), score
    return final, score


def judge_without_network(content: bytes, layout: Layout) -> str:
    """What can be said of a file with too few bytes."""
    if not content:
        return "empty"
    try:
        content[: layout.block].decode("utf-8")
    except UnicodeDecodeError:
        return "unknown"
    return "txt"


class Classifier:
    """File contents to (content type, score)."""

    def __init__(self, backend: str) -> None:
        self.layout = load_layout()
        self.model = backends.load(model_folder() / "model.onnx", backend)

    def __call__(self, contents: list[bytes]) -> list[tuple[str, float]]:
        rows = [features(content, self.layout) for content in contents]
        # With only padding at this place there are too few bytes for a judgement by the network.
        asked = [index for index, row in enumerate(rows) if row[self.layout.shortest - 1] != self.layout.padding]
        answers = [(judge_without_network(content, self.layout), 1.0) for content in contents]
        if asked:
            (scores,) = self.model({"bytes": np.stack([rows[index] for index in asked])})
            for index, row in zip(asked, scores, strict=True):
                answers[index] = decide(row, self.layout)
        return answers


def samples() -> list[Path]:
    """Files that every checkout and every Linux has."""
    root = Path(__file__).resolve().parents[1]
    wanted = [
        root / "README.md",
        root / "Makefile",
        root / "pyproject.toml",
        root / "csrc" / "abi.h",
        Path(__file__),
        model_folder() / "model.onnx",
        model_folder() / "config.min.json",
        Path("/bin/sh"),
    ]
    return [path for path in wanted if path.is_file()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="files to look at (default: a few of this checkout)")
    backends.add_argument(parser)
    arguments = parser.parse_args()
    files = arguments.files or samples()
    classify = Classifier(arguments.backend)
    for path, (label, score) in zip(files, classify([path.read_bytes() for path in files]), strict=True):
        print(f"{label:>16}  {score:6.1%}  {path}")


if __name__ == "__main__":
    main()
