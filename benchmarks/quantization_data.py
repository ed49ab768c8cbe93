"""Calibration and held-out inputs for the models that are quantized, from what a machine of this kind has without a network.

What it does: sentences from the descriptions of Debian's packages (or, where there are none, from the documentation in Python's
own library) as token ids; rendered lines and pages of those sentences in every font found, in several sizes and colours, as
pixels; the beginnings and ends of installed files of many types as bytes. Each goes to one of two sides by a hash of what it is.

Assumes the packages of tests/models.txt. Guarantees: no sentence, line, page or file of one side is on the other; the same
files on the machine give the same arrays, whatever was drawn before; exactly the wanted number of each, or an error that says
what is missing.

    python -m benchmarks.quantization_data --folder build/quantization
    python -m benchmarks.quantization_data --models minilm --calibration 64 --heldout 500
"""

from __future__ import annotations

import argparse
import ast
import itertools
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from examples import filetype, minilm, ocr

Arrays = dict[str, np.ndarray]

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_FOLDER = ROOT / "build" / "quantization"
SIDES = ("calibration", "heldout")
CALIBRATION_SHARE = 4  # one in so many is for calibration
PACKAGE_STATUS = Path("/var/lib/dpkg/status")
FONT_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".local/share/fonts")
FILE_FOLDERS = (Path("/usr/share"), Path("/usr/lib"), Path("/usr/bin"), Path("/usr/include"), Path("/etc"), Path(sys.prefix), ROOT)
FEWEST_LETTERS, MOST_LETTERS = 12, 900  # of a text that is a sentence or a paragraph
LETTER_SIZES = (16, 20, 24, 28, 34, 40)
LARGEST_FILE = 1 << 24
FILES_OF_A_TYPE = 24  # at most, on both sides together
FILES_LOOKED_AT = 400_000


def digest(content: str | bytes) -> bytes:
    """Fixed for all time, unlike Python's own hash."""
    return blake2b(content.encode() if isinstance(content, str) else content, digest_size=8).digest()


def side_of(content: str | bytes) -> str:
    return SIDES[digest(content)[0] % CALIBRATION_SHARE > 0]


# --- text ------------------------------------------------------------------------------------------------------------


def package_descriptions() -> str:
    """What the package index and the list of installed packages say, in their own form."""
    try:
        index = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        index = ""
    return index + (PACKAGE_STATUS.read_text(errors="replace") if PACKAGE_STATUS.is_file() else "")


def description_texts(listing: str) -> Iterator[list[str]]:
    """The title and the paragraphs of each description."""
    for match in re.finditer(r"^Description(?:-en)?: (.*)\n((?: .*\n)*)", listing, re.MULTILINE):
        title, body = match.groups()
        yield [title, *(" ".join(part.split()) for part in re.split(r"^ \.\n", body, flags=re.MULTILINE) if part.strip())]


def documentation_texts(folder: Path) -> Iterator[list[str]]:
    """The documentation strings of the Python files in a folder, by paragraphs."""
    for path in sorted(folder.glob("*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                yield [" ".join(part.split()) for part in text.split("\n\n")]


def all_texts() -> dict[str, list[str]]:
    """Titles, sentences and paragraphs for each side, in the order of their hashes, the three kinds in turn."""
    found = list(description_texts(package_descriptions())) or list(documentation_texts(Path(sysconfig.get_path("stdlib"))))
    titles = [texts[0] for texts in found]
    paragraphs = [paragraph for texts in found for paragraph in texts[1:]]
    sentences = [sentence for paragraph in paragraphs for sentence in re.split(r"(?<=[.!?]) +(?=[A-Z])", paragraph)]
    sides: dict[str, list[str]] = {}
    taken: set[str] = set()
    for side in SIDES:
        kinds = []
        for texts in (titles, sentences, paragraphs):
            good = {text for text in texts if FEWEST_LETTERS <= len(text) <= MOST_LETTERS and side_of(text) == side}
            kinds.append(sorted(good - taken, key=digest))
            taken |= good
        sides[side] = [text for group in itertools.zip_longest(*kinds) for text in group if text is not None]
    return sides


def wanted(items: Sequence[str], count: int, what: str) -> Sequence[str]:
    if len(items) < count:
        raise SystemExit(f"quantization_data: found {len(items)} {what} on this machine, {count} are wanted; ask for fewer")
    return items[:count]


# --- sentences -------------------------------------------------------------------------------------------------------


def sentence_inputs(texts: Sequence[str], count: int, length: int = 128) -> Arrays:
    """Token ids and masks, each sentence padded or cut to the length."""
    token_ids, attention_mask = minilm.Tokenizer(max_length=length)(list(wanted(texts, count, "sentences")), length)
    return {"input_ids": token_ids, "attention_mask": attention_mask}


# --- rendered text ---------------------------------------------------------------------------------------------------


def font_files() -> list[Path]:
    """Every scalable font that has Latin letters."""
    found = {path for folder in FONT_FOLDERS if folder.is_dir() for path in folder.rglob("*")}
    return [path for path in sorted(found) if path.suffix.lower() in (".ttf", ".otf") and has_letters(path)]


def has_letters(path: Path) -> bool:
    """A missing letter is drawn as a box, the same one for all."""
    try:
        font = ImageFont.truetype(str(path), 24)
        return len({bytes(font.getmask(letter)) for letter in "aAgG5%"}) == 6
    except (OSError, ValueError):
        return False


def look_of(text: str) -> list[int]:
    """Numbers from 0 to 255 that decide how a text is drawn. Not of its digest, by which texts are in order."""
    return list(digest(f"look: {text}"))


def font_of(text: str, fonts: Sequence[Path], size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """One of the fonts by the text's hash; the one that Pillow brings where there is none."""
    return ImageFont.truetype(str(fonts[look_of(text)[0] % len(fonts)]), size) if fonts else ImageFont.load_default(size)


def colours_of(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Paper and ink by the text's hash: mostly dark on light, one in four light on dark."""
    numbers = look_of(text)
    light, dark = tuple(255 - number % 56 for number in numbers[2:5]), tuple(number % 80 for number in numbers[5:8])
    return (dark, light) if numbers[1] % 4 == 0 else (light, dark)


def fitting_line(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: float) -> str:
    """The words of the text, in order, that fit beside each other. Letters that a font may lack are left out."""
    line = ""
    for word in "".join(letter for letter in text if " " <= letter <= "~").split():
        longer = f"{line} {word}".strip()
        line = longer if font.getlength(longer) <= most else line
    return line


def size_of(text: str) -> int:
    return LETTER_SIZES[look_of(text)[1] % len(LETTER_SIZES)]


def line_pixels(text: str, fonts: Sequence[Path], height: int = 48, width: int = 320) -> np.ndarray:
    """One line as the recogniser gets it: scaled to the height, zero behind its end. As many words as fit."""
    size = size_of(text)
    font, (paper, ink) = font_of(text, fonts, size), colours_of(text)
    down = size + size // 4
    line = fitting_line(text, font, width * down / height - size // 2)
    image = Image.new("RGB", (int(font.getlength(line)) + size // 2, down), paper)
    ImageDraw.Draw(image).text((size // 4, 0), line, fill=ink, font=font)
    across = min(width, max(1, round(image.width * height / image.height)))
    strip = np.zeros((3, height, width), np.float32)
    strip[:, :, :across] = ocr.pixels(image.resize((across, height), Image.Resampling.BILINEAR))
    return strip


def page_pixels(texts: Sequence[str], fonts: Sequence[Path], side: int = 320) -> np.ndarray:
    """A page of several lines, each in a font and a size of its own, drawn larger and then scaled down."""
    paper, ink = colours_of(texts[0])
    drawn = side * 3 // 2
    page = Image.new("RGB", (drawn, drawn), paper)
    draw, top = ImageDraw.Draw(page), 16
    for text in texts:
        size, left = size_of(text), 16 + look_of(text)[6] % 64
        if top + 2 * size > drawn:
            break
        font = font_of(text, fonts, size)
        draw.text((left, top), fitting_line(text, font, drawn - left - 16), fill=ink, font=font)
        top += size + size // 2 + look_of(text)[7] % size
    return ocr.pixels(page.resize((side, side), Image.Resampling.BILINEAR))


LINES_OF_A_PAGE = 8


def line_inputs(texts: Sequence[str], count: int) -> Arrays:
    fonts = font_files()
    return {"x": np.stack([line_pixels(text, fonts) for text in wanted(texts, count, "sentences")])}


def page_inputs(texts: Sequence[str], count: int) -> Arrays:
    fonts, lines = font_files(), wanted(texts, LINES_OF_A_PAGE * count, "sentences")
    pages = [lines[start : start + LINES_OF_A_PAGE] for start in range(0, len(lines), LINES_OF_A_PAGE)]
    return {"x": np.stack([page_pixels(page, fonts) for page in pages])}


# --- files -----------------------------------------------------------------------------------------------------------


def installed_files(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """Plain files by their suffix, those without one as one kind, each kind in the order of the paths' hashes."""
    kinds: dict[str, list[Path]] = {}
    looked_at = 0
    for folder in folders:
        for parent, inner, names in os.walk(folder):
            inner.sort()
            inner[:] = [name for name in inner if not name.startswith(".") and name not in ("build", "__pycache__")]
            looked_at += len(names)
            for name in names:
                kinds.setdefault(Path(name).suffix.lower(), []).append(Path(parent, name))
            if looked_at > FILES_LOOKED_AT:
                break
    return {kind: sorted(set(paths), key=lambda path: digest(str(path))) for kind, paths in sorted(kinds.items())}


def file_rows(layout: filetype.Layout, enough: int) -> dict[str, list[np.ndarray]]:
    """What the network sees of files, for each side: rounds of one file of each kind, until both sides have enough."""
    kinds = {kind: paths[:FILES_OF_A_TYPE] for kind, paths in installed_files(FILE_FOLDERS).items()}
    rows: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
    seen: set[bytes] = set()
    for number in range(FILES_OF_A_TYPE):
        for kind in sorted(kinds, key=digest):
            if number >= len(kinds[kind]) or (content := file_content(kinds[kind][number])) is None:
                continue
            row = filetype.features(content, layout)
            name = digest(row.tobytes())
            if row[layout.shortest - 1] != layout.padding and name not in seen:
                seen.add(name)
                rows[side_of(row.tobytes())].append(row)
        if all(len(found) >= enough for found in rows.values()):
            break
    return rows


def file_content(path: Path) -> bytes | None:
    """None for what is no plain file of a fair size, or may not be read."""
    try:
        if path.is_symlink() or not path.is_file() or not 0 < path.stat().st_size <= LARGEST_FILE:
            return None
        return path.read_bytes()
    except OSError:
        return None


def file_inputs(rows: Sequence[np.ndarray], count: int) -> Arrays:
    if len(rows) < count:
        raise SystemExit(f"quantization_data: found {len(rows)} files on this machine, {count} are wanted; ask for fewer")
    return {"bytes": np.stack(rows[:count])}


# --- one command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSet:
    """How many samples a model gets on each side, and what makes them of a side's texts."""

    calibration: int
    heldout: int
    make: Callable[[Sequence[str], int], Arrays] | None  # None: of files


DATA: dict[str, DataSet] = {
    "minilm": DataSet(128, 500, sentence_inputs),
    "recognition": DataSet(464, 500, line_inputs),
    "classifier": DataSet(464, 500, lambda texts, count: {"x": np.ascontiguousarray(line_inputs(texts, count)["x"][..., :192])}),
    "detection": DataSet(64, 64, page_inputs),
    "magika": DataSet(256, 500, None),
}


def make(model: str, calibration: int | None = None, heldout: int | None = None) -> dict[str, Arrays]:
    """The inputs of a model for both sides."""
    data = DATA[model]
    counts = dict(zip(SIDES, (calibration or data.calibration, heldout or data.heldout), strict=True))
    if data.make is None:
        rows = file_rows(filetype.load_layout(), max(counts.values()))
        return {side: file_inputs(rows[side], count) for side, count in counts.items()}
    texts = all_texts()
    return {side: data.make(texts[side], count) for side, count in counts.items()}


def files_of(model: str, folder: Path = DEFAULT_FOLDER) -> dict[str, Path]:
    return {side: folder / model / f"{side}.npz" for side in SIDES}


def write(model: str, folder: Path = DEFAULT_FOLDER, calibration: int | None = None, heldout: int | None = None) -> dict[str, Path]:
    """Makes and writes both files, each whole or not at all."""
    places = files_of(model, folder)
    for side, arrays in make(model, calibration, heldout).items():
        places[side].parent.mkdir(parents=True, exist_ok=True)
        temporary = places[side].with_suffix(".part.npz")
        np.savez(temporary, **arrays)
        temporary.replace(places[side])
    return places


def read(model: str, folder: Path = DEFAULT_FOLDER) -> dict[str, Arrays]:
    """Both sides, written first where they are missing."""
    places = files_of(model, folder)
    if not all(path.is_file() for path in places.values()):
        write(model, folder)
    found = {}
    for side, path in places.items():
        with np.load(path) as archive:
            found[side] = {name: archive[name] for name in archive.files}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default=",".join(DATA), help="comma-separated (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where to write (default: %(default)s)")
    parser.add_argument("--calibration", type=int, help="samples for calibration (default: by model)")
    parser.add_argument("--heldout", type=int, help="samples held out (default: by model)")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    unknown = [name for name in names if name not in DATA]
    if unknown:
        parser.error(f"--models: no data for {unknown[0]}; there are {', '.join(DATA)}")
    for name in names:
        for side, path in write(name, arguments.folder, arguments.calibration, arguments.heldout).items():
            with np.load(path) as archive:
                shapes = ", ".join(f"{key} {archive[key].dtype}{list(archive[key].shape)}" for key in archive.files)
            print(f"{name:12} {side:12} {path}: {shapes}")


if __name__ == "__main__":
    main()
