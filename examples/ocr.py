"""Reads the text on an image: PP-OCRv4 finds the lines, then names the characters of each.

Assumes the packages `rapidocr-onnxruntime` for the two model files (its code is not used), `onnx` to read the list of
characters from the second, and Pillow for images; text in horizontal lines, dark or light. Guarantees lines from top
to bottom with a confidence for each.

    python -m examples.ocr --backend onnxruntime            # renders a page, then reads it
    python -m examples.ocr --image scan.png
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import networkx
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples import backends

PIXEL_THRESHOLD = 0.3  # a pixel above it belongs to text
BOX_THRESHOLD = 0.5  # a box below it on average is no text
GROWTH = 1.6  # the network marks a shrunken core of each line; boxes grow back by area * this / perimeter
SMALLEST_SIDE = 3
STRIDE = 32  # the detector's sizes are multiples of it
HEIGHT = 48  # of a line, for the recogniser
NARROWEST = 320

PAGE = (
    "Tilewright reads this page.",
    "Invoice 2047 over 1,250.00 EUR",
    "Fox & dog, 24 hours, 50% off",
    "Compiled ahead of time",
)


@dataclass(frozen=True)
class Box:
    """Pixels left <= x < right, top <= y < bottom."""

    left: int
    top: int
    right: int
    bottom: int


def model_path(name: str) -> Path:
    package = find_spec("rapidocr_onnxruntime")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "ocr: the package rapidocr-onnxruntime, which carries the models, is not installed; "
            "run `make venv`, or `pip install --no-deps -r tests/models.txt`"
        )
    return Path(package.origin).parent / "models" / name


def render(lines: tuple[str, ...] = PAGE, size: int = 28) -> Image.Image:
    """Black text on white, one line below the other."""
    font = ImageFont.load_default(size)
    width = 48 + max(int(font.getlength(line)) for line in lines)
    page = Image.new("RGB", (width, 24 + 2 * size * len(lines)), "white")
    draw = ImageDraw.Draw(page)
    for index, line in enumerate(lines):
        draw.text((24, 24 + 2 * size * index), line, fill="black", font=font)
    return page


def pixels(image: Image.Image) -> np.ndarray:
    """(3, height, width), blue first as the models were trained, from -1 to 1."""
    rgb = np.asarray(image.convert("RGB"), np.float32)
    return np.ascontiguousarray(rgb[:, :, ::-1].transpose(2, 0, 1)) / 127.5 - 1


def runs(row: np.ndarray) -> list[tuple[int, int]]:
    """(begin, end) of each stretch of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def connected_boxes(mask: np.ndarray) -> list[Box]:
    """The bounding box of every connected region: stretches of neighbouring rows belong together where they touch."""
    touching = networkx.Graph()
    above: list[tuple[int, int, int]] = []
    for y, row in enumerate(mask):
        here = [(y, begin, end) for begin, end in runs(row)]
        touching.add_nodes_from(here)
        touching.add_edges_from(
            (one, other) for one, other in itertools.product(above, here) if one[1] <= other[2] and other[1] <= one[2]
        )
        above = here
    boxes = []
    for region in networkx.connected_components(touching):
        rows, begins, ends = zip(*region, strict=True)
        boxes.append(Box(min(begins), min(rows), max(ends), max(rows) + 1))
    return boxes


def find_lines(probabilities: np.ndarray) -> list[Box]:
    """Boxes around the text lines of the detector's map (height, width), in its pixels, from top to bottom."""
    height, width = probabilities.shape
    found = []
    for box in connected_boxes(probabilities > PIXEL_THRESHOLD):
        across, down = box.right - box.left, box.bottom - box.top
        if min(across, down) < SMALLEST_SIDE:
            continue
        if probabilities[box.top : box.bottom, box.left : box.right].mean() < BOX_THRESHOLD:
            continue
        grow = round(across * down * GROWTH / (2 * (across + down)))
        left, top = max(box.left - grow, 0), max(box.top - grow, 0)
        found.append(Box(left, top, min(box.right + grow, width), min(box.bottom + grow, height)))
    return sorted(found, key=lambda box: (box.top, box.left))


class Reader:
    """Images to lines of text."""

    def __init__(self, backend: str) -> None:
        detector = model_path("ch_PP-OCRv4_det_infer.onnx")
        recogniser = model_path("ch_PP-OCRv4_rec_infer.onnx")
        self.detect = backends.load(detector, backend)
        self.recognise = backends.load(recogniser, backend)
        self.characters = read_characters(recogniser)

    def boxes(self, image: Image.Image) -> list[Box]:
        """Where the lines are, in the image's own pixels."""
        across, down = (max(STRIDE, round(side / STRIDE) * STRIDE) for side in image.size)
        scaled = image.resize((across, down), Image.Resampling.BILINEAR)
        (map_,) = self.detect({"x": pixels(scaled)[np.newaxis]})
        horizontal, vertical = image.width / across, image.height / down
        return [
            Box(
                int(box.left * horizontal),
                int(box.top * vertical),
                min(image.width, int(np.ceil(box.right * horizontal))),
                min(image.height, int(np.ceil(box.bottom * vertical))),
            )
            for box in find_lines(map_[0, 0])
        ]

    def line(self, image: Image.Image) -> tuple[str, float]:
        """The text of an image that holds one line, and the mean confidence of its characters."""
        width = max(1, round(HEIGHT * image.width / image.height))
        strip = np.zeros((1, 3, HEIGHT, max(width, NARROWEST)), np.float32)
        strip[0, :, :, :width] = pixels(image.resize((width, HEIGHT), Image.Resampling.BILINEAR))
        (scores,) = self.recognise({"x": strip})
        return decode(scores[0], self.characters)

    def __call__(self, image: Image.Image) -> list[tuple[str, float]]:
        return [self.line(image.crop((box.left, box.top, box.right, box.bottom))) for box in self.boxes(image)]


def read_characters(path: Path) -> list[str]:
    """What the recogniser's outputs stand for: nothing, then the characters in the model's metadata, then a space."""
    import onnx

    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    if "character" not in entries:
        raise ValueError(f"ocr: {path} has no metadata entry `character`, found {sorted(entries)}; use a PP-OCR model")
    return ["", *entries["character"].splitlines(), " "]


def decode(scores: np.ndarray, characters: list[str]) -> tuple[str, float]:
    """(steps, characters) -> the text: the best of each step, repetitions merged, steps of nothing dropped."""
    best = scores.argmax(axis=1)
    kept = best != 0
    kept[1:] &= best[1:] != best[:-1]
    confidence = float(scores.max(axis=1)[kept].mean()) if kept.any() else 0.0
    return "".join(characters[index] for index in best[kept]), confidence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, help="an image to read (default: a page rendered here)")
    backends.add_argument(parser)
    arguments = parser.parse_args()
    image = Image.open(arguments.image) if arguments.image else render()
    lines = Reader(arguments.backend)(image)
    for text, confidence in lines:
        print(f"{confidence:6.1%}  {text}")
    if not arguments.image:
        right = sum(text == expected for (text, _), expected in zip(lines, PAGE, strict=False))
        print(f"{right} of {len(PAGE)} lines read exactly as they were written")


if __name__ == "__main__":
    main()
