"""Quantized models beside their peers': time, size and accuracy of each, on the same inputs.

What it does: for each model, quantizes it (static and dynamic int8, bfloat16) with calibration data of this machine
(`quantization_data.py`), has ONNX Runtime's own tools quantize it on the same data, and times all of them, and the float models,
in processes driven in turn as `compare.py` does. Beside each time stands what it computes: every held-out sample goes through every
contender and is held against ONNX Runtime in float. OpenVINO is given the QDQ files of both, ours and ONNX Runtime's.

Assumes Linux, the packages of the extra [benchmark], and that nothing else runs meanwhile; `--clock process` counts what the threads
of each process take, for a machine that is busy. Guarantees: no held-out sample was seen by
calibration, rounding or the choice of precisions; what a contender cannot do is an error in its row, not the end of the table.

    python -m benchmarks.quantization --models minilm,minilm@8x128 --seconds 5 --output quantization.json
    python -m benchmarks.quantization --models magika --contenders ours,ours-static,ort-static --heldout 100
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import compare, models, quantization_data
from benchmarks.worker import CLOCKS
from examples import ocr

Arrays = dict[str, np.ndarray]
# what our quantizer may lose, by the agreement below: of sentences the cosine, of other models the share of samples that come out otherwise
BUDGETS = {"minilm": 0.004, "recognition": 0.01, "classifier": 0.01, "detection": 0.01, "magika": 0.01}
AGREEMENT = "agreement"
MOST_CALIBRATION = 64  # samples that ranges are found from, by all; ours judges its choice by the rest
NEAR = 2  # pixels that a box may lie off


@dataclass(frozen=True)
class Contender:
    """A file of some kind on some system. `file`: float, the recipe of ours in `.ir` or `.onnx`, or ONNX Runtime's own kind."""

    system: str
    file: str
    precision: str = "f32"


CONTENDERS: dict[str, Contender] = {
    "ours": Contender("tilewright", "float"),
    "ours-static": Contender("tilewright", "static int8.ir"),
    "ours-dynamic": Contender("tilewright", "dynamic int8.ir"),
    "ours-bf16": Contender("tilewright", "bf16.ir"),
    "ours-mixed": Contender("tilewright", "mixed.ir"),
    "ort": Contender("onnxruntime", "float"),
    "ort-static": Contender("onnxruntime", "ort static"),
    "ort-static-all": Contender("onnxruntime", "ort static all"),
    "ort-dynamic": Contender("onnxruntime", "ort dynamic"),
    "ort-our-file": Contender("onnxruntime", "static int8.onnx"),
    "openvino": Contender("openvino", "float"),
    "openvino-static": Contender("openvino", "ort static"),
    "openvino-static-all": Contender("openvino", "ort static all"),
    "openvino-our-file": Contender("openvino", "static int8.onnx"),
    "openvino-bf16": Contender("openvino", "float", "bf16"),
}
REFERENCE = "ort"
LEAST_AGREEMENT = 0.5  # below it a peer's results are worth nothing, nor is its time
# what is compared: (ours, the peers of which the fastest counts)
STATIC = ("ort-static", "ort-static-all", "ort-our-file", "openvino-static", "openvino-static-all", "openvino-our-file")
RATIOS: dict[str, tuple[str, tuple[str, ...]]] = {
    "static int8 against the best peer": ("ours-static", STATIC),
    "mixed precisions against the best static int8 of a peer": ("ours-mixed", STATIC),
    "dynamic int8 against ONNX Runtime": ("ours-dynamic", ("ort-dynamic",)),
    "bfloat16 against OpenVINO": ("ours-bf16", ("openvino-bf16",)),
    "static int8 against our float": ("ours-static", ("ours",)),
    "mixed precisions against our float": ("ours-mixed", ("ours",)),
}


# --- the files -------------------------------------------------------------------------------------------------------


class Files:
    """Makes each kind of file of a model once, when it is asked for."""

    def __init__(self, model: models.Model, folder: Path, calibration: Arrays, goal: str, budget: float, metric: Any) -> None:
        self.model, self.folder, self.calibration, self.goal, self.budget, self.metric = model, folder, calibration, goal, budget, metric
        self.made: dict[str, Path | str] = {"float": model.path()}
        self.reports: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, kind: str) -> Path:
        """The file; RuntimeError, with the reason, where there is none."""
        if kind not in self.made:
            try:
                if kind.startswith("ort "):
                    self.made[kind] = self.by_onnxruntime(kind)
                else:
                    self.by_us(Path(kind).stem)
            except Exception as error:  # whatever a tool raises is a result to report
                self.made[kind] = f"{type(error).__name__}: {error}"
        found = self.made.get(kind, "it is not written")
        if isinstance(found, str):
            raise RuntimeError(found)
        return found

    def by_us(self, recipe: str) -> None:
        """The graph in text, and where that can be said the QDQ file, of one run."""
        import tilewright as tw
        from tilewright.quantizing import quantize
        from tilewright.quantizing.texts import plain
        from tilewright.quantizing.write_onnx import write_onnx

        graph = tw.from_onnx(str(self.model.path()), dims=models.bind_sizes(self.model.path(), self.model.shapes))
        samples = batches(self.calibration, self.model.shapes)
        rows = [{name: array[number] for name, array in samples.items()} for number in range(length(samples))]
        few = min(MOST_CALIBRATION, max(len(rows) // 2, 1))
        found = quantize(graph, rows[:few], held_out=rows[few:] or None, recipe=recipe, goal=self.goal, budget=self.budget,
                         metric=self.metric)
        self.reports[recipe] = plain(found.report)
        if not found.report.worth:
            self.made[f"{recipe}.ir"] = self.made[f"{recipe}.onnx"] = found.report.verdict
            return
        text = self.folder / f"{recipe.replace(' ', '-')}.ir"
        tw.save_text(found.graph, str(text))
        self.made[f"{recipe}.ir"] = text
        if recipe == "static int8":
            self.made[f"{recipe}.onnx"] = write_onnx(self.model.path(), found.plan, text.with_suffix(".onnx"))[0]

    def by_onnxruntime(self, kind: str) -> Path:
        """By the tools of ONNX Runtime as their documentation advises: cleaned up before, scales for each channel; static ones of
        products and convolutions alone, or of all operators that the tool knows."""
        import onnx
        from onnxruntime import quantization as tools
        from onnxruntime.quantization.shape_inference import quant_pre_process

        plain = models.write_static(self.model.path(), self.model.shapes, self.folder / "static.onnx")
        source = onnx.load(plain)
        if next(entry.version for entry in source.opset_import if entry.domain in ("", "ai.onnx")) < 13:  # scales of channels need it
            onnx.save(onnx.version_converter.convert_version(source, 13), plain)
        cleaned, target = self.folder / "cleaned.onnx", self.folder / f"{kind.replace(' ', '-')}.onnx"
        quant_pre_process(str(plain), str(cleaned), skip_symbolic_shape=True)
        narrow = {"per_channel": True, "weight_type": tools.QuantType.QInt8, "reduce_range": not has_vnni()}
        if kind == "ort dynamic":
            tools.quantize_dynamic(str(cleaned), str(target), **narrow)
        else:
            samples = batches(self.calibration, self.model.shapes)
            ops = None if kind.endswith("all") else ["MatMul", "Gemm", "Conv"]  # all: also sums, softmax and the like
            for more in ({}, {"QDQDisableWeightAdjustForInt32Bias": True}):  # its step for biases fails on some models
                try:
                    tools.quantize_static(str(cleaned), str(target), Reader(samples), activation_type=tools.QuantType.QUInt8,
                                          op_types_to_quantize=ops, extra_options=more, **narrow)
                    break
                except ValueError:
                    if more:
                        raise
        return target


class Reader:
    """Samples one by one, as ONNX Runtime's calibration asks for them."""

    def __init__(self, samples: Arrays) -> None:
        few = min(MOST_CALIBRATION, length(samples))
        self.waiting = iter([{name: array[number] for name, array in samples.items()} for number in range(few)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.waiting, None)


def has_vnni() -> bool:
    """Without it ONNX Runtime advises 7 bits, since its sums of two products saturate at 16 bits."""
    return "vnni" in Path("/proc/cpuinfo").read_text()


def batches(rows: Arrays, shapes: models.Shapes) -> Arrays:
    """Rows put together to the shapes of a model, along a new first axis; what is left over is dropped."""
    return {name: array[: len(array) // shapes[name][0] * shapes[name][0]].reshape(-1, *shapes[name]) for name, array in rows.items()}


def length(samples: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(samples.values())))


def size_of_file(path: Path) -> int:
    """With what lies beside it."""
    return sum(file.stat().st_size for file in (path, Path(f"{path}.npz"), Path(f"{path}.data")) if file.is_file())


# --- accuracy --------------------------------------------------------------------------------------------------------


def agreement(model: str, expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """The mean cosine of sentences' vectors, or the share of samples with the same text, lines or type."""
    wanted, got = expected[-1], found[-1]
    if model.startswith("minilm"):
        a, b = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (wanted, got))
        return float(np.mean((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))))
    wanted, got = wanted.reshape(-1, *wanted.shape[2:]), got.reshape(-1, *got.shape[2:])  # samples and batch
    if model.startswith("recognition"):
        return share(text_of(a) == text_of(b) for a, b in zip(wanted, got, strict=True))
    if model.startswith("detection"):
        return share(same_boxes(ocr.find_lines(a[0]), ocr.find_lines(b[0])) for a, b in zip(wanted, got, strict=True))
    return share(wanted.argmax(-1) == got.argmax(-1))


def lost(model: str) -> Any:
    """What a sample loses by the agreement, as a metric of the quantizer."""

    def disagreement(expected: tuple[np.ndarray, ...], found: tuple[np.ndarray, ...]) -> float:
        return max(0.0, 1 - agreement(model, [expected[-1][np.newaxis]], [found[-1][np.newaxis]]))

    return disagreement


def share(answers: Iterable[Any]) -> float:
    return float(np.mean(list(answers)))


def text_of(scores: np.ndarray) -> list[int]:
    """What `ocr.decode` shows, as numbers of characters."""
    best = scores.argmax(axis=1)
    return [int(index) for index, before in zip(best, [-1, *best[:-1]], strict=True) if index != 0 and index != before]


def same_boxes(wanted: list[ocr.Box], found: list[ocr.Box]) -> bool:
    """As many lines, each where it should be but for a few pixels."""
    edges = [[(box.left, box.top, box.right, box.bottom) for box in boxes] for boxes in (wanted, found)]
    return len(wanted) == len(found) and (not wanted or int(np.abs(np.subtract(*edges)).max()) <= NEAR)


# --- measuring -------------------------------------------------------------------------------------------------------


class Bench(compare.Bench):
    """Contenders instead of systems; with what each computes on the held-out samples."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        super().__init__(arguments, folder)
        self.clock: str = arguments.clock

    def begin(self, name: str, contender: Contender, file: Path, model: models.Model,
              inputs: Path) -> tuple[compare.System, dict[str, Any]]:
        """A fresh process that compiled the file and ran it once."""
        static, sizes = file, {}
        if file.suffix == ".onnx":
            static = models.write_static(file, model.shapes, self.folder / f"{model.name}-{name}-static.onnx")
            sizes = models.bind_sizes(file, model.shapes)
        system = compare.System(name, self.cores, self.folder / f"cache-{model.name}-{name}")
        try:
            answer = system.ask(system=contender.system, load=False, threads=self.threads, precision=contender.precision, clock=self.clock,
                                path=str(file), static_path=str(static), sizes=sizes, inputs=str(inputs),
                                artifact=str(self.folder / f"{name}.artifact"),
                                outputs=str(self.folder / f"{model.name}-{name}-once.npz"))
        except RuntimeError:
            system.close()
            raise
        return system, answer

    def results(self, system: compare.System, held_out: Path) -> list[np.ndarray]:
        outputs = self.folder / f"{system.name}-held-out.npz"
        system.ask(do="run", inputs=str(held_out), outputs=str(outputs))
        with np.load(outputs) as archive:
            found = [archive[key] for key in archive.files]
        outputs.unlink()
        return found

    def measure(self, model: models.Model, files: Files, held_out: Arrays) -> dict[str, Any]:
        """All figures of one model; a contender that fails has its error instead."""
        inputs, samples = self.folder / f"{model.name}-inputs.npz", self.folder / f"{model.name}-held-out.npz"
        np.savez(inputs, **model.make_inputs())
        np.savez(samples, **batches(held_out, model.shapes))
        rows: dict[str, Any] = {}
        running: list[compare.System] = []
        expected: list[np.ndarray] | None = None
        for name in sorted(self.systems, key=lambda name: name != REFERENCE):
            note(f"{model.title}: {name}")
            contender = CONTENDERS[name]
            try:
                file = files.find(contender.file)
                system, answer = self.begin(name, contender, file, model, inputs)
                running.append(system)
                found = self.results(system, samples)
                expected = found if name == REFERENCE else expected
                known = expected is not None
                rows[name] = answer | {"bytes": size_of_file(file), "agreement": agreement(model.name, expected, found) if known else None}
            except (RuntimeError, ValueError, OSError) as error:
                rows[name] = rows.get(name, {}) | {"error": str(error)}
        note(f"{model.title}: times")
        turns, restless = self.take_turns([system for system in running if "error" not in rows[system.name]])
        for system in running:
            if system.name in turns:
                rows[system.name] |= compare.summarize(turns[system.name])
            system.close()
        return {"title": model.title, "contenders": rows, "ratios": ratios(rows), "restless": sorted(set(restless)),
                "reports": files.reports, "samples": length(batches(held_out, model.shapes))}


def ratios(rows: Mapping[str, Any]) -> dict[str, float | None]:
    """The better peer's median over ours, for each comparison whose sides were measured. Peers that compute something else do not
    count."""
    found: dict[str, float | None] = {}
    for title, (ours, peers) in RATIOS.items():
        times = [rows[peer]["median_ms"] for peer in peers if "median_ms" in rows.get(peer, {}) and is_sound(rows[peer])]
        mine = rows.get(ours, {}).get("median_ms")
        found[title] = min(times) / mine if times and mine else None
    return found


def is_sound(row: Mapping[str, Any]) -> bool:
    """Whether the results are near those of the float model, as far as that is known."""
    same = row.get("agreement")
    return same is None or same >= LEAST_AGREEMENT


def note(message: str) -> None:
    if sys.stderr.isatty():
        print(message, file=sys.stderr)


# --- the table -------------------------------------------------------------------------------------------------------


def print_results(results: Mapping[str, Any]) -> None:
    for result in results.values():
        rows = result["contenders"]
        print(f"\n{result['title']}, agreement with ONNX Runtime in float on {result['samples']} held-out samples\n")
        compare.print_row(["", "ms a call", "file MB", "agreement", "first result s"])
        compare.print_row(["---"] * 5)
        for name, row in rows.items():
            if "median_ms" not in row:
                compare.print_row([name, "failed", "", "", ""])
                print(f"    {row.get('error', '').splitlines()[0]}")
                continue
            spread = 50 * (row["highest_turn_ms"] - row["lowest_turn_ms"]) / row["median_ms"]
            same = "-" if row["agreement"] is None else f"{row['agreement']:.5f}" + " COLLAPSED" * (not is_sound(row))
            compare.print_row([name, f"{row['median_ms']:.3f} ±{spread:.0f}%", f"{row['bytes'] / 1e6:.2f}", same,
                               f"{row['first_result_seconds']:.2f}"])
        for title, value in result["ratios"].items():
            if value is not None:
                print(f"{title}: {value:.2f}")
        if result["restless"]:
            print(f"NOT IDLE while others ran: {', '.join(result['restless'])}; these times are in doubt")


def parse_arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=names, default=["minilm", "minilm@8x128", "recognition", "detection", "magika"],
                        help="name or name@shape (default: those of the targets)")
    parser.add_argument("--contenders", dest="systems", type=names, default=list(CONTENDERS),
                        help=f"of {','.join(CONTENDERS)} (default: all)")
    parser.add_argument("--threads", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each contender and model (default: 5)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="default: %(default)s")
    parser.add_argument("--calibration", type=int, help="samples (default: by model)")
    parser.add_argument("--heldout", type=int, help="samples (default: by model)")
    parser.add_argument("--goal", choices=("time", "size"), default="time", help="of our quantizer (default: time)")
    parser.add_argument("--budget", type=float, help="of our quantizer (default: by model)")
    parser.add_argument("--metric", default=AGREEMENT, help="of our quantizer: cosine, snr, top-1 (default: the table's %(default)s)")
    parser.add_argument("--data", type=Path, default=quantization_data.DEFAULT_FOLDER, help="where samples and models are kept")
    parser.add_argument("--output", type=Path, help="write everything as JSON to this file")
    arguments = parser.parse_args()
    for name in arguments.systems:
        if name not in CONTENDERS:
            parser.error(f"--contenders: no contender {name!r}; there are {', '.join(CONTENDERS)}")
    try:
        arguments.models = [models.find(name) for name in arguments.models]
    except ValueError as error:
        parser.error(f"--models: {error}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    here = compare.machine()
    print(f"{here['processor']}, {here['cores']} cores, {here['system']}, Python {here['python']}, numpy {here['numpy']}")
    print(f"{arguments.threads} thread(s), at least {arguments.seconds} s each; load before: {here['load_average']:.2f}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tilewright-quantization-") as folder:
        bench = Bench(arguments, Path(folder))
        for model in arguments.models:
            data = quantization_data.read(model.name.partition("_")[0], arguments.data)
            kept = {side: {name: array[:count] for name, array in data[side].items()}
                    for side, count in (("calibration", arguments.calibration), ("heldout", arguments.heldout))}
            budget = BUDGETS[model.name.partition("_")[0]] if arguments.budget is None else arguments.budget
            metric = lost(model.name) if arguments.metric == AGREEMENT else arguments.metric
            files = Files(model, arguments.data / model.name, kept["calibration"], arguments.goal, budget, metric)
            results[model.name] = bench.measure(model, files, kept["heldout"])
    print_results(results)
    if arguments.output:
        here |= {"threads": arguments.threads, "seconds": arguments.seconds, "goal": arguments.goal, "budget": arguments.budget or BUDGETS,
                 "metric": arguments.metric}
        arguments.output.write_text(json.dumps({"machine": here, "models": results}, indent=1) + "\n")
        print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main()
