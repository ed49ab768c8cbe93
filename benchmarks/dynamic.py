"""Times one artifact for all sizes against one specialized to the size, for every real model and two or more sizes.

What it does: compiles each model once with its dims open and once more for each size, gives both the same inputs, and calls them in
short turns, one after the other, on one thread. A turn's figure is the CPU time of a call; the ratio of a size is the median over the
pairs of turns of dynamic / specialized, so less is better. Ratios over the limit of the target are marked.

Assumes the packages of tests/models.txt; a model whose package is missing is said and left out. Guarantees that both artifacts gave
the same results within 1e-4, and that other load on the machine is not counted: it is CPU time, and turns are short.

    python -m benchmarks.dynamic
    python -m benchmarks.dynamic --models minilm,silero --turns 40 --output dynamic.json
    python -m benchmarks.dynamic --minilm minilm_torch.onnx     # the file of benchmarks/export_minilm.py beside the others
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np

import tilewright as tw
from benchmarks import models
from benchmarks.models import Arrays, Model, Shapes

LIMIT = 1.15
LARGEST_ERROR = 1e-4
TURN_SECONDS = 0.02
RATES = {576: 16000, 288: 8000}  # of a frame with its context, for the voice detector's exports

SIZES = {
    "minilm": ("1x16", "1x128", "2x33", "8x64"),
    "recognition": ("1x3x48x160", "1x3x48x320", "1x3x48x333", "4x3x48x320"),
    "detection": ("1x3x160x160", "1x3x320x320", "1x3x352x224"),
    "classifier": ("1x3x48x192", "6x3x48x192", "2x3x48x100"),
    "magika": ("1x2048", "4x2048"),
    "silero": ("1x576", "16x576"),
}
VOICE_FILES = ("silero_vad", "silero_vad_16k_op15", "silero_vad_op18_ifless", "silero_vad_half")
VOICE_SIZES = ((576, 1), (576, 4), (288, 1))  # samples, batch


def voice_file(name: str) -> Path:
    package = find_spec("silero_vad")
    path = Path(package.origin).parent / "data" / f"{name}.onnx" if package is not None and package.origin is not None else Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{name}.onnx: the package silero-vad is not installed or has no such file")
    return path


def voice_inputs(shapes: Shapes) -> Arrays:
    """Noise as loud as speech, a memory in use, and the rate where the model asks for it."""
    random = np.random.default_rng(3)
    arrays: Arrays = {name: random.normal(0, 0.1, shapes[name]).astype(np.float32) for name in ("input", "state")}
    if "sr" in shapes:
        arrays["sr"] = np.array(RATES[shapes["input"][1]], np.int64)
    return arrays


def voice_model(name: str, samples: int, batch: int) -> Model:
    """One of the voice detector's exports, with its own Ifs and LSTMs, as published."""
    shapes: dict[str, tuple[int, ...]] = {"input": (batch, samples), "state": (2, batch, 128)}
    if name != "silero_vad_half":
        shapes["sr"] = ()
    return Model(f"{name}_{batch}x{samples}", f"{name} {batch}x{samples}", functools.partial(voice_file, name), shapes, voice_inputs, None)


def families(minilm: Path | None) -> dict[str, list[Model]]:
    """The models by name, each with the sizes that one artifact of it serves."""
    found = {name: [models.find(f"{name}@{size}") for size in sizes] for name, sizes in SIZES.items()}
    if minilm is not None:
        found["minilm_torch"] = [Model(model.name, f"MiniLM from torch {size}", lambda: minilm, model.shapes, model.inputs, None)
                                 for model, size in zip(found["minilm"], SIZES["minilm"], strict=True)]
    for name in VOICE_FILES:
        has_one_rate = name in ("silero_vad_16k_op15", "silero_vad_half")
        found[name] = [voice_model(name, *size) for size in VOICE_SIZES if size[0] == 576 or not has_one_rate]
    return found


def turn(call: Callable[[], object], count: int) -> float:
    """Seconds of CPU time of one call, over `count` calls."""
    begin = time.thread_time()
    for _ in range(count):
        call()
    return (time.thread_time() - begin) / count


def take_turns(dynamic: Callable[[], object], special: Callable[[], object], turns: int) -> tuple[float, float, float]:
    """Medians of both, in seconds, and of the ratio within each pair of turns."""
    once = min(turn(special, 1) for _ in range(3))
    count = max(1, int(TURN_SECONDS / once))
    pairs = []
    for number in range(turns):  # whoever comes second finds the caches as the other left them, so the order alternates
        if number % 2:
            second, first = turn(special, count), turn(dynamic, count)
        else:
            first, second = turn(dynamic, count), turn(special, count)
        pairs.append((first, second))
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs), median(a / b for a, b in pairs)


def measure(name: str, sizes: Sequence[Model], turns: int) -> list[dict[str, object]]:
    """A row for each size of one model."""
    options = tw.Options(threads=1)
    path = sizes[0].path()
    one_for_all = tw.compile(tw.from_onnx(path), options=options)
    rows: list[dict[str, object]] = []
    for model in sizes:
        inputs = model.make_inputs()
        special = tw.compile(tw.from_onnx(path, dims=models.bind_sizes(path, model.shapes)), options=options)
        expected, found = list(special.run(inputs).values()), list(one_for_all.run(inputs).values())
        error, _ = models.compare(model, expected, found)
        if error > LARGEST_ERROR:
            raise SystemExit(f"{model.title}: the dynamic artifact differs from the specialized one by {error:.1e}")
        dynamic_seconds, special_seconds, ratio = take_turns(
            functools.partial(one_for_all.run, inputs), functools.partial(special.run, inputs), turns)
        rows.append({"model": name, "title": model.title, "dynamic_ms": dynamic_seconds * 1e3, "specialized_ms": special_seconds * 1e3,
                     "ratio": ratio, "error": error})
        mark = f" OVER {LIMIT}" if ratio > LIMIT else ""
        print(f"| {model.title} | {special_seconds * 1e3:.3f} | {dynamic_seconds * 1e3:.3f} | {ratio:.3f}{mark} |", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=lambda text: text.split(","), help="names, with commas between them (all)")
    parser.add_argument("--minilm", type=Path, help="the file that benchmarks/export_minilm.py wrote, measured too")
    parser.add_argument("--turns", type=int, default=21, help="pairs of turns for each size (21)")
    parser.add_argument("--output", type=Path, help="a file for the figures, as JSON")
    arguments = parser.parse_args()
    every = families(arguments.minilm)
    unknown = set(arguments.models or ()) - set(every)
    if unknown:
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    print("Milliseconds of CPU time a call, on one thread; ratio: dynamic / specialized.\n")
    print("| model | specialized | dynamic | ratio |\n| --- | --- | --- | --- |")
    rows: list[dict[str, object]] = []
    for name in arguments.models or every:
        try:
            rows += measure(name, every[name], arguments.turns)
        except FileNotFoundError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    ratios = [float(str(row["ratio"])) for row in rows]
    if ratios:
        over = sum(ratio > LIMIT for ratio in ratios)
        print(f"\ngeometric mean {geometric_mean(ratios):.3f}, largest {max(ratios):.3f}; {over} of {len(ratios)} over {LIMIT}")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
