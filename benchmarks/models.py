"""The six real models that are measured: where their files are, what goes in, and what counts as the same answer.

Assumes the packages of tests/models.txt. Guarantees inputs that are real (a sentence, rendered text, this file's bytes,
a synthesised voice) and the same in every run; other sizes may be asked for by changing `shapes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from benchmarks import build_minilm
from examples import filetype, minilm, ocr, voice

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

BUILT = Path(__file__).resolve().parents[1] / "build" / "models"


@dataclass(frozen=True)
class Model:
    """One model at one size. `path` finds or builds the file; `answer` maps outputs to what must be identical."""

    name: str
    title: str
    path: Callable[[], Path]
    shapes: Shapes
    inputs: Callable[[Shapes], Arrays]
    answer: Callable[[list[np.ndarray]], np.ndarray] | None

    def make_inputs(self) -> Arrays:
        """The input arrays, checked against `shapes`."""
        arrays = self.inputs(self.shapes)
        found = {name: array.shape for name, array in arrays.items()}
        if found != dict(self.shapes):
            raise ValueError(f"benchmark inputs of {self.name}: expected shapes {dict(self.shapes)}, found {found}")
        return arrays


def minilm_file() -> Path:
    return build_minilm.write_model(BUILT / "minilm.onnx")


def minilm_inputs(shapes: Shapes) -> Arrays:
    """As many sentences as the batch has, each filled up to the full length with more of itself."""
    batch, length = shapes["input_ids"]
    sentences = [f"Sentence {row}: a compiler turns a program into machine code. " * length for row in range(batch)]
    token_ids, attention_mask = minilm.Tokenizer(max_length=length)(sentences, length)
    return {"input_ids": token_ids, "attention_mask": attention_mask}


def recognition_inputs(shapes: Shapes) -> Arrays:
    """A rendered line of text in every row."""
    batch, _, height, width = shapes["x"]
    line = ocr.render(("Tensor programs 2047",)).resize((width, height))
    return {"x": np.repeat(ocr.pixels(line)[np.newaxis], batch, axis=0)}


def detection_inputs(shapes: Shapes) -> Arrays:
    """A rendered page."""
    batch, _, height, width = shapes["x"]
    return {"x": np.repeat(ocr.pixels(ocr.render().resize((width, height)))[np.newaxis], batch, axis=0)}


def magika_inputs(shapes: Shapes) -> Arrays:
    """The bytes of this file."""
    row = filetype.features(Path(__file__).read_bytes(), filetype.load_layout())
    return {"bytes": np.repeat(row[np.newaxis], shapes["bytes"][0], axis=0)}


def silero_inputs(shapes: Shapes) -> Arrays:
    """Steps from the middle of a synthesised voice, and an empty memory."""
    steps = shapes["input"][0]
    audio, (begin, _) = voice.synthesize()
    first = int(begin * voice.RATE / voice.FRAME) + 8
    state = np.zeros((1, 1, voice.STATE), np.float32)
    return {"input": voice.frames(audio)[first : first + steps].copy(), "h": state, "c": state.copy()}


def best_of_last_axis(outputs: list[np.ndarray]) -> np.ndarray:
    """The class, or for the recogniser the character of each step."""
    return outputs[0].argmax(axis=-1)


def text_pixels(outputs: list[np.ndarray]) -> np.ndarray:
    """How many boxes there are and where, to the pixel."""
    boxes = ocr.find_lines(outputs[0][0, 0])
    return np.array([(box.left, box.top, box.right, box.bottom) for box in boxes])


def is_speech(outputs: list[np.ndarray]) -> np.ndarray:
    return outputs[0] > 0.5


def ocr_file(name: str) -> Callable[[], Path]:
    return lambda: ocr.model_path(name)


# The order is that of the table in which results are reported.
MODELS: tuple[Model, ...] = (
    Model(
        name="minilm",
        title="MiniLM 1x128",
        path=minilm_file,
        shapes={"input_ids": (1, 128), "attention_mask": (1, 128)},
        inputs=minilm_inputs,
        answer=None,
    ),
    Model(
        name="recognition",
        title="PP-OCRv4 recognition 48x320",
        path=ocr_file("ch_PP-OCRv4_rec_infer.onnx"),
        shapes={"x": (1, 3, 48, 320)},
        inputs=recognition_inputs,
        answer=best_of_last_axis,
    ),
    Model(
        name="detection",
        title="PP-OCRv4 detection 320x320",
        path=ocr_file("ch_PP-OCRv4_det_infer.onnx"),
        shapes={"x": (1, 3, 320, 320)},
        inputs=detection_inputs,
        answer=text_pixels,
    ),
    Model(
        name="classifier",
        title="PP-OCR classifier 48x192",
        path=ocr_file("ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        shapes={"x": (1, 3, 48, 192)},
        inputs=recognition_inputs,
        answer=best_of_last_axis,
    ),
    Model(
        name="magika",
        title="Magika 2048",
        path=lambda: filetype.model_folder() / "model.onnx",
        shapes={"bytes": (1, 2048)},
        inputs=magika_inputs,
        answer=best_of_last_axis,
    ),
    Model(
        name="silero",
        title="Silero VAD sequence 576",
        path=voice.model_path,
        shapes={"input": (1, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
        inputs=silero_inputs,
        answer=is_speech,
    ),
)


# sizes that the table does not have, as `find` reads them
OTHER_SIZES: tuple[str, ...] = (
    "minilm@1x16", "minilm@1x512", "minilm@8x128", "recognition@1x3x48x160", "recognition@1x3x48x333", "recognition@1x3x48x640",
    "recognition@4x3x48x320", "detection@1x3x160x160", "detection@1x3x352x224", "detection@1x3x640x640", "classifier@1x3x48x160",
    "classifier@6x3x48x192", "magika@4x2048",
)


def find(name: str) -> Model:
    """The model of a name, or `name@shape` with another shape for all inputs of that rank, as in `minilm@8x64`."""
    plain, _, shape = name.partition("@")
    model = next((model for model in MODELS if model.name == plain), None)
    if model is None:
        raise ValueError(f"no model {plain!r}; there are {', '.join(model.name for model in MODELS)}")
    if not shape:
        return model
    try:
        sizes = tuple(int(size) for size in shape.split("x"))
    except ValueError:
        raise ValueError(f"{name}: found the shape {shape!r}, expected sizes with x between them, as in 1x3x48x320") from None
    shapes = {input: sizes if len(old) == len(sizes) else old for input, old in model.shapes.items()}
    if sizes not in shapes.values():
        raise ValueError(f"{name}: no input of {plain} has {len(sizes)} axes")
    return replace(model, name=f"{plain}_{shape}", title=f"{model.title.rpartition(' ')[0]} {shape}", shapes=shapes)


def bind_sizes(path: Path, shapes: Shapes) -> dict[str, int]:
    """The sizes of the file's symbolic dims, by name, that give its inputs these shapes.

    A dim without a name, or named `?` as Paddle's exporter does for several unrelated ones, goes by `input_axis`, as in
    `x_2`. Any other name with two sizes is refused.
    """
    sizes: dict[str, int] = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        if value.name not in shapes:
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value >= 0:
                continue
            named = dim.dim_param not in ("", "?")
            name, size = dim.dim_param if named else f"{value.name}_{axis}", shapes[value.name][axis]
            if sizes.setdefault(name, size) != size:
                raise ValueError(f"{path.name}: dim {name} would be both {sizes[name]} and {size}; see input {value.name}")
    return sizes


def write_static(path: Path, shapes: Shapes, target: Path) -> Path:
    """A copy of the file whose inputs have exactly these shapes: for systems that specialize only on what is written."""
    model = onnx.load(path)
    for value in model.graph.input:
        if value.name in shapes:
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = size
    for value in model.graph.output:  # their sizes follow
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    onnx.save(model, target)
    return target


def compare(model: Model, expected: list[np.ndarray], found: list[np.ndarray]) -> tuple[float, bool]:
    """(largest absolute error over the output's largest value, over all outputs; whether the answer is the same)."""
    if len(expected) != len(found):
        raise ValueError(f"{model.name}: expected {len(expected)} outputs, found {len(found)}")
    worst = 0.0
    for number, (want, have) in enumerate(zip(expected, found, strict=True)):
        if want.shape != have.shape or want.dtype != have.dtype:
            raise ValueError(
                f"{model.name} output {number}: expected {want.dtype}{list(want.shape)}, "
                f"found {have.dtype}{list(have.shape)}"
            )
        if not np.isfinite(have).all():
            return float("inf"), False
        largest = float(np.abs(want).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(want - have).max(initial=0)) / largest)
    same = model.answer is None or np.array_equal(model.answer(expected), model.answer(found))
    return worst, same
