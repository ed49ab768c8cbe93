"""What the commands share: their common options, progress on a terminal, models by path, answers as text or JSON."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from click.core import ParameterSource

from .driver import compile_file, load_model
from .ir.errors import ArgumentError, RuntimeFailure, TilewrightError
from .loading import load
from .options import MATMUL_PRECISIONS, PRECISIONS, Options
from .runtime import _native
from .runtime.buffer import TensorInfo
from .targets import parse_bytes

Command = TypeVar("Command", bound=Callable[..., Any])
MODEL = click.Path(dir_okay=True, path_type=Path)
DROPPED_CALLS = 3  # before any is timed
LARGEST_SIZE = 2**48  # of an axis; more bytes than a machine can address
SIZES_TO_TRY = (1, 2, 4, 8, 16, 32, 64, 128, 224, 256, 320)

json_option = click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
dims_option = click.option("--dims", multiple=True, metavar="NAME=SIZE",
                           help="Fix a symbolic size of the model; may be repeated. The others stay symbolic. With commas, as in "
                                "shape=10,?,3 or k=5, it says what a small input of integers holds.")
target_option = click.option("--target", default="cpu", show_default=True,
                             help="What to compile for: cpu, cpu:<name>, features added and removed by +name and -name.")
targets_option = click.option("--target", default="cpu", show_default=True,
                              help="What to compile for: cpu, cpu:<name>, features added and removed by +name and -name. Several, "
                                   "with commas between them, are variants of which a machine uses the best that it can run. Or "
                                   "scratchpad:SIZE, a simulated accelerator (docs/scheduling.md).")
threads_option = click.option("--threads", type=click.IntRange(0), default=0, help="Threads of a call.  [default: all]")
precision_option = click.option("--precision", type=click.Choice(PRECISIONS), default=PRECISIONS[0], show_default=True,
                                help="plain: no Winograd convolutions; strict: only exact rewrites and reordered sums.")
matmul_precision_option = click.option(
    "--matmul-precision", type=click.Choice(MATMUL_PRECISIONS), default=MATMUL_PRECISIONS[0], show_default=True,
    help="tf32: products and convolutions of float32 may round operands to 10 bits of fraction, where a target has units for that (GPUs).")
cache_option = click.option("--no-cache", is_flag=True, help="Neither look into the compile cache nor add to it.")


class Bytes(click.ParamType):  # type: ignore[type-arg]  # the class has parameters in newer versions of click alone
    """A number of bytes: 524288, 512KiB, 1.5MB."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def compile_options(command: Command) -> Command:
    """The options of commands that compile a model."""
    for option in (cache_option, matmul_precision_option, precision_option, threads_option, targets_option, dims_option):
        command = option(command)
    return command


def read_pairs(pairs: Sequence[str], what: str) -> dict[str, str]:
    """name=value options as a dict."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            raise click.UsageError(f"{what}: found {pair!r}, expected NAME=VALUE")
        if name in found:
            raise click.UsageError(f"{what}: {name} is given twice")
        found[name] = value
    return found


def read_sizes(pairs: Sequence[str], what: str) -> dict[str, int]:
    return {name: _read_size(name, value, value, what) for name, value in read_pairs(pairs, what).items()}


def _read_size(name: str, value: str, whole: str, what: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 18 or int(value) > LARGEST_SIZE:
        raise click.UsageError(f"{what}: found {name}={whole}, expected a number from 0 to {LARGEST_SIZE}")
    return int(value)


def read_dims(pairs: Sequence[str]) -> dict[str, int | tuple[int | None, ...]]:
    """Sizes, and what small inputs of integers hold: numbers with a comma behind each, `?` for one that is not known."""
    return {name: tuple(None if n == "?" else _read_size(name, n, value, "--dims") for n in value.removesuffix(",").split(","))
            if "," in value else _read_size(name, value, value, "--dims") for name, value in read_pairs(pairs, "--dims").items()}


@contextmanager
def progress(message: str) -> Iterator[None]:
    """Says what is being done while it takes its time; on a terminal only, and the line is gone afterwards."""
    if not sys.stderr.isatty():
        yield
        return
    began = time.monotonic()
    click.echo(f"{message} ...", err=True, nl=False)
    try:
        yield
    finally:
        click.echo("\r\033[K", err=True, nl=False)
        if time.monotonic() - began > 1:
            click.echo(f"{message}: {time.monotonic() - began:.1f} s", err=True)


def answer(as_json: bool, data: Any, lines: Sequence[str]) -> None:
    """The command's answer on stdout."""
    write_out((json.dumps(data, indent=2) if as_json else "\n".join(lines)) + "\n")


def write_out(text: str) -> None:
    """Text to stdout; an error says that it was there."""
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from None


def byte_text(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


# --- models ----------------------------------------------------------------------------------------------------------


def is_library(path: Path) -> bool:
    return ".so" in path.suffixes[-3:]


def load_graph(path: Path, dims: Sequence[str]) -> Any:
    """The graph of a model file."""
    sizes = read_dims(dims)
    with progress(f"reading {path.name}"):
        return load_model(path, sizes or None)


def load_executable(path: Path, *, dims: Sequence[str], target: str, threads: int, precision: str, no_cache: bool,
                    matmul_precision: str = MATMUL_PRECISIONS[0]) -> Any:
    """Something to call: a saved library loaded, or a model compiled."""
    if is_library(path):
        refuse_compile_options(path)
        return load(path, threads=threads)
    options = Options(threads=threads, precision=precision, matmul_precision=matmul_precision, cache=not no_cache)
    sizes = read_dims(dims)
    with progress(f"compiling {path.name}"):
        return compile_file(path, target, options, dims=sizes or None)


def refuse_compile_options(path: Path) -> None:
    """A library is compiled already: what only a compilation heeds must not be given with it."""
    context = click.get_current_context()
    for option in ("dims", "target", "precision", "matmul_precision", "no_cache"):
        if context.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            sizes = "; --size says which sizes random inputs have" * (option == "dims")
            raise click.UsageError(f"--{option.replace('_', '-')} is for compiling a model, but {path} is a compiled library: "
                                   f"leave it out, or give the model{sizes}")


# --- inputs ----------------------------------------------------------------------------------------------------------


def random_inputs(executable: Any, sizes: Mapping[str, int], seed: int,
                  given: Mapping[str, np.ndarray[Any, Any]] | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs that the model runs with: normal floats, and integers 0 and 1, since they may be indices. `given` inputs stay
    as they are. Sizes that nobody gave are as small as the model can do with."""
    refused: TilewrightError | None = None
    for shapes in input_shapes(executable, sizes):
        inputs = {**random_values(executable, shapes, seed), **(given or {})}
        try:
            executable.run(inputs)
        except RuntimeFailure as error:
            refused = refused or error
            continue
        return inputs
    if refused is not None:
        if symbolic_names(executable):
            refused.hint = "random inputs of the sizes tried do not suit the model; say them: --size NAME=SIZE"
        raise refused
    names = ", ".join(symbolic_names(executable))
    raise ArgumentError(f"{executable.name}: found no sizes that it accepts for {names}", hint="say them: --size NAME=SIZE, for each")


def random_values(executable: Any, shapes: Sequence[Sequence[int]], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    inputs = {}
    needed = sum(math.prod(shape) * max(info.dtype.itemsize, 8) for info, shape in zip(executable.inputs, shapes))  # drawn in 8 bytes
    available = _native.available_memory()
    if needed > available:
        raise ArgumentError(f"{executable.name}: random inputs of these sizes need {needed} bytes, but only {available} bytes of memory "
                            "are available", hint="use smaller sizes")
    for info, shape in zip(executable.inputs, shapes):
        if info.dtype.kind in "biu":
            inputs[info.name] = generator.integers(0, 2, tuple(shape)).astype(info.dtype)
        else:
            inputs[info.name] = generator.standard_normal(tuple(shape)).astype(info.dtype)
    return inputs


def symbolic_names(executable: Any) -> list[str]:
    return list(dict.fromkeys(size for info in executable.inputs for size in info.shape if isinstance(size, str)))


def input_shapes(executable: Any, sizes: Mapping[str, int]) -> Iterator[list[tuple[int, ...]]]:
    """Shapes to try, one for each input, with the given sizes."""
    infos: Sequence[TensorInfo] = executable.inputs
    names = symbolic_names(executable)
    unknown = [name for name in sizes if name not in names]
    if unknown:
        raise ArgumentError(f"--size: {executable.name} has no symbolic size {unknown[0]}, found vs {', '.join(names) or 'none'}")
    if not sizes:
        for sample in executable.metadata.get("sample_shapes", ()):
            yield [tuple(shape) for shape in sample]
    open_names = [name for name in names if name not in sizes]
    for size in SIZES_TO_TRY if open_names else (1,):
        binding = {name: sizes.get(name, size) for name in names}
        shapes = [tuple(binding[n] if isinstance(n, str) else n for n in info.shape) for info in infos]
        try:
            executable.plan(*shapes)
        except ArgumentError:
            if not open_names:
                raise
            continue
        yield shapes
