"""Commands for ONNX models that somebody else made: check (can it be compiled, and what would it take), verify (is it right)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import click

from .cli_model import sizes_of_given
from .cli_shared import (
    MODEL,
    answer,
    cache_option,
    dims_option,
    json_option,
    load_executable,
    precision_option,
    progress,
    random_inputs,
    read_dims,
    read_sizes,
    target_option,
    threads_option,
)
from .ir.errors import ArgumentError, CompileError, UnsupportedError
from .onnx_peers import PEERS, find_peer
from .options import Options

size_option = click.option("--size", "sizes", multiple=True, metavar="NAME=SIZE", help="A symbolic size; may be repeated.")


class Verdict(click.ClickException):
    """Ends a command with status 1; what there is to say was said, or is the message."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    def show(self, file: object = None) -> None:
        del file
        if self.message:
            click.echo(f"tilewright: {self.message}", err=True)


class BadFile(Verdict):
    """Ends it with the status of a command line that is not understood."""

    exit_code = 2


# --- check -----------------------------------------------------------------------------------------------------------


@click.command("check")
@click.argument("model", type=MODEL)
@dims_option
@size_option
@target_option
@threads_option
@precision_option
@json_option
def check_command(model: Path, dims: Sequence[str], sizes: Sequence[str], target: str, threads: int, precision: str,
                  as_json: bool) -> None:
    """Say whether MODEL (.onnx) can be compiled, without compiling or running it: its operators with counts and dtypes, the sizes
    that are left open, what runs slowly and why, every node that is refused, and what memory and time a call would take.

    Symbolic sizes that --size does not give are some small ones. Exit status: 0 if it can be compiled, 1 if not, 2 if the file
    is no valid model.
    """
    require_onnx(model)
    bound, given = read_dims(dims), read_sizes(sizes, "--size")
    try:
        with progress(f"checking {model.name}"):
            checking = _checking()
            report = checking.check(model, bound or None, given, target, Options(threads=threads, precision=precision))
    except ArgumentError as error:
        raise click.UsageError(str(error)) from None
    except UnsupportedError:  # of what is missing here, not of the file: the target, the package onnx
        raise
    except CompileError as error:
        raise BadFile(f"{type(error).__name__}: {error}") from None
    answer(as_json, report.to_data(), checking.check_lines(report))
    if not report.compiles:
        raise Verdict


def require_onnx(model: Path) -> None:
    if model.suffix != ".onnx" or not model.is_file():
        problem = "is a folder" if model.is_dir() else f"has the suffix {model.suffix!r}" if model.exists() else "does not exist"
        raise BadFile(f"{model}: {problem}, expected an ONNX model (.onnx)")


# --- verify ----------------------------------------------------------------------------------------------------------


@click.command("verify")
@click.argument("model", type=MODEL)
@click.option("--against", type=click.Choice(PEERS), default=PEERS[0], show_default=True,
              help="What to compare with: ONNX Runtime without its optimizations, or the reference evaluator of the onnx package.")
@click.option("--layers", is_flag=True, help="Also compare node by node, each given the peer's inputs, to the first that diverges.")
@click.option("--tolerance", type=click.FloatRange(0), help="The greatest error, relative to the largest value of an output.  "
                                                          "[default: by dtype, see docs/onnx.md]")
@click.option("--inputs", type=click.Path(path_type=Path), metavar="FILE.npz", help="Inputs by name; random ones for those that it lacks.")
@click.option("--extract", type=click.Path(file_okay=False, exists=True, path_type=Path), default=Path(), metavar="FOLDER",
              help="Where to write the node that diverges, with its inputs.  [default: here]")
@size_option
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random inputs.")
@threads_option
@precision_option
@cache_option
@json_option
def verify_command(model: Path, against: str, layers: bool, tolerance: float | None, inputs: Path | None, extract: Path,
                   sizes: Sequence[str], seed: int, threads: int, precision: str, no_cache: bool, as_json: bool) -> None:
    """Compare the outputs of MODEL (.onnx) with those of another implementation, on random inputs or those of a file.

    With --layers the first node that diverges on its own is named, with how far, and written as a small model beside its inputs.
    The peer is native code that reads the file in this process: leave out files that are not trusted. Exit status: 0 if all
    agrees, else 1.
    """
    require_onnx(model)
    given = read_sizes(sizes, "--size")
    peer = find_peer(against)
    executable = load_executable(model, dims=(), target="cpu", threads=threads, precision=precision, no_cache=no_cache)
    verifying = _verifying()
    values = {} if inputs is None else verifying.load_inputs(inputs, executable)
    if len(values) < len(executable.inputs):
        values = random_inputs(executable, {**sizes_of_given(executable, values), **given}, seed, values)
    with progress(f"running {model.name} on {against}"):
        outputs = verifying.verify_outputs(model, executable, peer, values, tolerance)
    found = None
    if layers:
        with progress(f"comparing the nodes of {model.name}"):
            found = verifying.verify_layers(model, peer, values, tolerance,
                                            Options(threads=threads, precision=precision, cache=not no_cache), extract)
    data = verifying.verify_data(model.name, against, outputs, found)
    answer(as_json, data, verifying.verify_lines(model.name, against, outputs, found))
    if not data["agrees"]:
        raise Verdict


# --- late imports ----------------------------------------------------------------------------------------------------


def _checking() -> ModuleType:
    """The compile half: only when a model is checked."""
    with _onnx_wanted():
        from . import checking

    return checking


def _verifying() -> ModuleType:
    """Takes ONNX files apart: needs the extra [onnx]."""
    with _onnx_wanted():
        from . import verifying

    return verifying


@contextmanager
def _onnx_wanted() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if not str(error.name).startswith(("onnx", "google")):
            raise
        raise UnsupportedError(f"reading an ONNX model needs the package {error.name}, which is not installed",
                               hint="pip install tilewright[onnx]") from None
