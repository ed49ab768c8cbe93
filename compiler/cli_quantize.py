"""The command that makes a model smaller and faster: quantize."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import msgspec

from .cli_model import check_writable
from .cli_onnx import Verdict
from .cli_shared import (
    MODEL,
    answer,
    byte_text,
    cache_option,
    dims_option,
    json_option,
    load_graph,
    precision_option,
    progress,
    target_option,
    threads_option,
)
from .driver import compile_graph
from .ir.errors import UnsupportedError
from .ir.printer import save_text, sidecar_path
from .options import Options
from .runtime.artifact import write_bytes
from .saving import check_library_path

DATA = click.Path(path_type=Path)
OUTPUTS = (".onnx", ".ir", ".so", ".a")
REPORTS = (".html", ".json")
GOALS = ("time", "size")


@click.command("quantize")
@click.argument("model", type=MODEL)
@click.option("-o", "--output", type=MODEL, help="What to write: .onnx with QuantizeLinear and DequantizeLinear nodes, for any runtime; "
                                                 ".ir; or a compiled library, .so or .a.  [default: nothing, only say what could be had]")
@click.option("--calibration", type=DATA, metavar="FILE.npz", help="Samples of the inputs, by name, along a first axis.")
@click.option("--held-out", type=DATA, metavar="FILE.npz", help="Samples that judge the result.  [default: every fourth of the others]")
@click.option("--data-free", is_flag=True, help="From weights alone: no activations are quantized beforehand, and no accuracy is known.")
@click.option("--recipe", default="static int8", show_default=True, help="'static int8', 'static int8 plain', 'dynamic int8', "
              "'weight-only int8', 'weight-only int4', 'weight-only int2', 'w4a8', 'llm_int8', 'bf16' or 'mixed'.")
@click.option("--budget", default="0.5%", show_default=True, metavar="LOSS", help="The loss allowed on held-out samples: 0.5% or 0.005.")
@click.option("--metric", default="cosine", show_default=True, metavar="METRIC",
              help="What a loss is: cosine, snr, top-1, or FILE.py:FUNCTION, which is given the expected and the found results of a "
                   "sample, two tuples of arrays.")
@click.option("--goal", type=click.Choice(GOALS), default=GOALS[0], show_default=True, help="What no layer may make worse.")
@click.option("--ranges", help="How the ranges of activations are chosen: 'min-max', 'percentile', 'mean squared error', 'entropy' "
                               "or 'best'.  [default: by recipe]")
@click.option("--rounding", help="'nearest', 'gptq', 'gptq asymmetric' or 'coordinate descent'.  [default: by recipe]")
@click.option("--smoothing", help="'smoothquant', 'logarithmic', 'best' or 'none'.  [default: by recipe]")
@click.option("--group", type=click.IntRange(0),
              help="Weights of less than 8 bits that share a scale, 16 or more; 0: all of a channel.  [default: by recipe]")
@click.option("--byte-bits", type=click.Choice(("auto", "7", "8")), default="auto", show_default=True,
              help="Bits of 8-bit weights that meet 8-bit activations; 7 are faster on CPUs without VNNI, which auto knows of.")
@click.option("--unsigned-weights", is_flag=True, help="In an ONNX model, weights of 8 bits as uint8 about 128, for runtimes whose "
                                                       "kernels for signed ones saturate: ONNX Runtime on CPUs without VNNI.")
@click.option("--report", "reports", type=DATA, multiple=True, metavar="FILE", help="Write the report, as .html or .json; may be repeated.")
@click.option("--diagnose", is_flag=True, help="Only rank the layers by the loss that each causes when it alone is quantized.")
@cache_option
@precision_option
@threads_option
@target_option
@dims_option
@json_option
def quantize_command(model: Path, output: Path | None, calibration: Path | None, held_out: Path | None, data_free: bool, recipe: str,
                     budget: str, metric: str, goal: str, ranges: str | None, rounding: str | None, smoothing: str | None,
                     group: int | None, byte_bits: str, unsigned_weights: bool, reports: Sequence[Path], diagnose: bool, no_cache: bool,
                     precision: str, threads: int, target: str, dims: Sequence[str], as_json: bool) -> None:
    """Quantize MODEL (.onnx, or .ir): find for each layer integers, ranges and a precision, within a budget on what the results lose.

    A layer is quantized only where it gains time (or size, where that is the goal), and the whole is judged on samples that nothing
    was fitted to. Where nothing is gained, nothing is written, the answer says so with the figures, and the exit status is 1.
    """
    _check_combination(calibration, held_out, data_free, diagnose, output, reports)
    for place in (*reports, *([] if output is None else [output])):
        check_writable(place)
    _check_output(model, output)
    if unsigned_weights and (output is None or output.suffix != ".onnx"):
        raise click.UsageError("--unsigned-weights is about how an ONNX model is written: give --output FILE.onnx")
    render = _load_page() if any(place.suffix == ".html" for place in reports) else None
    quantizing = _quantizing()
    chosen = _changed(quantizing.recipe_named(recipe), ranges, rounding, smoothing, group, byte_bits)
    options = Options(threads=threads, precision=precision, cache=not no_cache)
    how = {"recipe": chosen, "metric": read_metric(metric), "target": target, "options": options}
    fit = _writer().fitting(model, chosen.precisions) if output is not None and output.suffix == ".onnx" else None
    graph = load_graph(model, dims)
    line = _Line()
    try:
        if diagnose:
            layers = quantizing.diagnose(graph, calibration, progress=line.show, **how)
            line.clear()
            answer(as_json, quantizing.plain(layers), quantizing.ranking_lines(layers))
            return
        found = quantizing.quantize(graph, calibration, held_out=held_out, data_free=data_free, budget=read_budget(budget), goal=goal,
                                    progress=line.show, fit=fit, **how)
    finally:
        line.clear()
    written = _write_reports(reports, found.report, quantizing.plain, render)
    if output is not None and found.report.worth:
        written += _write_output(model, output, found, target, options, unsigned_weights)
    data = {"written": {str(place): place.stat().st_size for place in written}, "report": quantizing.plain(found.report)}
    answer(as_json, data, [*(f"warning: {warning}" for warning in found.report.warnings), *quantizing.report_lines(found.report),
                           *(f"{byte_text(place.stat().st_size):>12}  {place}" for place in written)])
    if not found.report.worth:
        raise Verdict(f"{output} is not written: quantizing {model.name} is not worth it" if output is not None else "")


# --- the command line ------------------------------------------------------------------------------------------------


def _check_combination(calibration: Path | None, held_out: Path | None, data_free: bool, diagnose: bool, output: Path | None,
                       reports: Sequence[Path]) -> None:
    if data_free and (calibration is not None or held_out is not None):
        raise click.UsageError("--data-free means without data: leave out --calibration and --held-out")
    if data_free and diagnose:
        raise click.UsageError("--diagnose measures what layers lose on data: it needs --calibration, not --data-free")
    if calibration is None and not data_free:
        raise click.UsageError("--calibration is missing: samples of the model's inputs, as numpy.savez writes them (or give --data-free)")
    if diagnose and (output is not None or reports or held_out is not None):
        raise click.UsageError("--diagnose only ranks the layers: leave out --output, --report and --held-out (--json gives the ranking)")
    for place in reports:
        if place.suffix not in REPORTS:
            raise click.UsageError(f"--report {place}: found the suffix {place.suffix!r}, expected {' or '.join(REPORTS)}")


def _check_output(model: Path, output: Path | None) -> None:
    """Refuses before the work what cannot be written after it."""
    if output is None:
        return
    if output.suffix not in OUTPUTS and ".so" not in output.suffixes:
        raise click.UsageError(f"--output {output}: found the suffix {output.suffix!r}, expected {', '.join(OUTPUTS)}")
    if output.suffix == ".onnx" and model.suffix != ".onnx":
        raise click.UsageError(f"--output {output}: an ONNX model is written from an ONNX model, found {model}; write .ir or .so")
    if output.suffix == model.suffix and output.exists() and output.resolve() == model.resolve():
        raise click.UsageError(f"--output {output}: is the model itself, which would be lost")
    if output.suffix not in (".onnx", ".ir"):
        check_library_path(output, output.suffix == ".a")


def read_budget(text: str) -> float:
    """A loss: `0.5%` or `0.005`."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if number != text.strip() else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise click.UsageError(f"--budget: found {text!r}, expected a loss of 0 or more, as in 0.5% or 0.005")
    return value


def read_metric(text: str) -> str | Callable[..., float]:
    """The name of a metric, or a function of a Python file."""
    path, colon, name = text.rpartition(":")
    if text.endswith(".py"):
        raise click.UsageError(f"--metric {text}: which function of the file? Expected {text}:FUNCTION")
    if not colon:
        return text
    if not Path(path).is_file():
        raise click.UsageError(f"--metric {text}: there is no file {path!r}")
    try:
        found = runpy.run_path(path).get(name)
    except Exception as error:  # whatever the user's file raises
        raise click.UsageError(f"--metric {text}: running {path} failed: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise click.UsageError(f"--metric {text}: {path} has no function {name!r}")
    return found  # type: ignore[no-any-return]  # callable, as checked; what it gives is checked where it is called


def _changed(recipe: Any, ranges: str | None, rounding: str | None, smoothing: str | None, group: int | None,
             byte_bits: str) -> Any:
    """The recipe with what the command line says otherwise."""
    given = {"ranges": ranges, "rounding": rounding, "smoothing": "" if smoothing == "none" else smoothing, "group": group,
             "byte_bits": None if byte_bits == "auto" else int(byte_bits)}
    return msgspec.structs.replace(recipe, **{name: value for name, value in given.items() if value is not None})


class _Line:
    """The line of progress, on a terminal only."""

    def __init__(self) -> None:
        self.enabled = sys.stderr.isatty()

    def show(self, message: str) -> None:
        if self.enabled:
            click.echo(f"\r\033[K{message}", err=True, nl=False)

    def clear(self) -> None:
        if self.enabled:
            click.echo("\r\033[K", err=True, nl=False)


# --- files -----------------------------------------------------------------------------------------------------------


def _write_output(model: Path, output: Path, found: Any, target: str, options: Options, unsigned_weights: bool) -> list[Path]:
    """The quantized model, as its suffix says; the files written."""
    with progress(f"writing {output}"):
        if output.suffix == ".onnx":
            return list(_writer().write_onnx(model, found.plan, output, unsigned_weights=unsigned_weights))
        if output.suffix == ".ir":
            save_text(found.graph, output)
            return [place for place in (output, sidecar_path(output)) if place.is_file()]
        executable = compile_graph(found.graph, target, options)
        return list(executable.save(output, static=True if output.suffix == ".a" else None).files)


def _write_reports(places: Sequence[Path], report: Any, plain: Callable[[Any], Any], render: Callable[[Any], str] | None) -> list[Path]:
    for place in places:
        if render is not None and place.suffix == ".html":
            write_bytes(place, render(report).encode())
        else:
            write_bytes(place, msgspec.json.format(msgspec.json.encode(plain(report))))
    return list(places)


# --- late imports ----------------------------------------------------------------------------------------------------


def _quantizing() -> SimpleNamespace:
    """Compiles and runs programs: only when a model is quantized."""
    from .quantizing import diagnose, quantize
    from .quantizing.recipes import recipe_named
    from .quantizing.texts import plain, ranking_lines, report_lines

    return SimpleNamespace(quantize=quantize, diagnose=diagnose, recipe_named=recipe_named, plain=plain, ranking_lines=ranking_lines,
                           report_lines=report_lines)


def _writer() -> ModuleType:
    """Needs the extra [onnx]."""
    from .quantizing import write_onnx

    return write_onnx


def _load_page() -> Callable[[Any], str]:
    """What makes the page, found before the work."""
    try:
        from .quantizing.page import render
    except ImportError as error:
        raise UnsupportedError(f"--report as HTML needs {error.name}", hint="pip install 'tilewright[quantize]'") from None
    return render
