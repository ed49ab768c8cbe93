"""Commands that say where the time of a model goes, and what the compiler made of it: profile, explain."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from msgspec import to_builtins

from .cli_shared import (
    DROPPED_CALLS,
    MODEL,
    answer,
    compile_options,
    is_library,
    json_option,
    load_executable,
    load_graph,
    progress,
    random_inputs,
    read_sizes,
)
from .driver import explain, floats_of_quantized, machine_rates
from .options import Options
from .runtime.artifact import write_bytes
from .runtime.executable import Executable
from .runtime.profile import GROUPINGS, Profile

MOST_CALLS = 10_000  # what each thread did is kept of all of them
DEFAULT_ROWS = 40

size_option = click.option("--size", "sizes", multiple=True, metavar="NAME=SIZE", help="A symbolic size of the inputs.")
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random inputs.")


# --- profile ---------------------------------------------------------------------------------------------------------


@click.command("profile")
@click.argument("model", type=MODEL)
@compile_options
@click.option("--calls", type=click.IntRange(1, MOST_CALLS), default=20, show_default=True, help="Calls to measure.")
@click.option("--by", "grouping", type=click.Choice(GROUPINGS), default="kernel", show_default=True,
              help="Whose time: of kernels, of the source's nodes or lines, of their ops.")
@click.option("--top", type=click.IntRange(1), default=DEFAULT_ROWS, show_default=True, help="Rows to show.")
@click.option("--trace", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json",
              help="Also write what each thread did when, for Perfetto (ui.perfetto.dev) or chrome://tracing.")
@size_option
@seed_option
@json_option
def profile_command(model: Path, dims: Sequence[str], target: str, threads: int, precision: str, matmul_precision: str,
                    no_cache: bool, calls: int, grouping: str, top: int, trace: Path | None, sizes: Sequence[str], seed: int,
                    as_json: bool) -> None:
    """Say where the time of MODEL (.onnx, .ir, or a compiled .so) goes, on random inputs.

    Times are the median of the calls. A kernel's time is divided among the nodes that it computes by the operations that
    the compiler counted for each. A compiled library (.so) knows its kernels, but not their sources.
    """
    executable = load_executable(model, dims=dims, target=target, threads=threads, precision=precision, no_cache=no_cache,
                                 matmul_precision=matmul_precision)
    if is_library(model) and grouping != "kernel":
        raise click.UsageError(f"--by {grouping}: {model} is a compiled library, which does not know its sources; give the model")
    inputs = random_inputs(executable, read_sizes(sizes, "--size"), seed)
    values = [inputs[info.name] for info in executable.inputs]
    with progress(f"profiling {model.name}"):
        executable.profile(*values, calls=DROPPED_CALLS)
        profile = executable.profile(*values, calls=calls)
    if trace is not None:
        write_bytes(trace, json.dumps(profile.trace()).encode())
    lines = [profile.headline(), *(f"  {name}: {array.dtype.name}[{', '.join(map(str, array.shape))}]" for name, array in inputs.items()),
             profile.table(grouping, top), *([f"wrote {trace}"] if trace is not None else [])]
    answer(as_json, profile_data(profile, grouping, {name: list(array.shape) for name, array in inputs.items()}, trace), lines)


def profile_data(profile: Profile, grouping: str, shapes: dict[str, list[int]], trace: Path | None) -> dict[str, Any]:
    seconds = [call.seconds for call in profile.calls]
    rows = [{**to_builtins(row), "operations_per_second": row.operations_per_second, "bytes_per_second": row.bytes_per_second}
            for row in profile.by(grouping)]
    return {"name": profile.name, "threads": profile.threads, "calls": len(profile.calls), "median_seconds": statistics.median(seconds),
            "least_seconds": min(seconds), "shapes": shapes, "by": grouping, "rows": rows, "trace": None if trace is None else str(trace)}


# --- explain ---------------------------------------------------------------------------------------------------------


@click.command("explain")
@click.argument("model", type=MODEL)
@compile_options
@click.option("--measure", is_flag=True, help="Also run it on random inputs, and show measured times.")
@click.option("--calls", type=click.IntRange(1, MOST_CALLS), default=20, show_default=True, help="Calls to measure.")
@click.option("--calibrate", is_flag=True, help="Measure anew what this machine can do, which is kept otherwise.")
@click.option("--top", type=click.IntRange(1), help="Show only so many launches, the slowest.  [default: all, in order]")
@size_option
@seed_option
@json_option
def explain_command(model: Path, dims: Sequence[str], target: str, threads: int, precision: str, matmul_precision: str,
                    no_cache: bool, measure: bool, calls: int, calibrate: bool, top: int | None, sizes: Sequence[str], seed: int,
                    as_json: bool) -> None:
    """Say what the compiler made of MODEL (.onnx or .ir): for each launch of a kernel the source, the strategy, tiles,
    layouts and what is fused, what it moves and computes, the time that a model of this machine predicts, and its share of
    what the machine could do at most. --measure puts measured times beside.

    Symbolic sizes that --size does not give are some small ones.
    """
    if is_library(model):
        raise click.UsageError(f"{model} is a compiled library, which does not know how it was made; give the model")
    executable = load_executable(model, dims=dims, target=target, threads=threads, precision=precision, no_cache=no_cache,
                                 matmul_precision=matmul_precision)
    given = read_sizes(sizes, "--size")
    if calibrate:
        with progress("measuring this machine"):
            machine_rates(executable.threads if isinstance(executable, Executable) else threads, anew=True)
    if measure:
        if not isinstance(executable, Executable):
            raise click.UsageError(f"--measure: this machine does not run code for {target}")
        inputs = random_inputs(executable, given, seed)
        values = [inputs[info.name] for info in executable.inputs]
        with progress(f"profiling {model.name}"):
            executable.profile(*values, calls=DROPPED_CALLS)
            found = explain(executable, values, calls=calls)
    else:
        found = explain(executable, (), given)
    floats = floats_of_quantized(load_graph(model, dims), target, Options(precision=precision))
    answer(as_json, found.to_data() | {"left_as_floats": [{"where": where, "reason": reason} for where, reason in floats]},
           [found.text(top), *_floats_text(floats)])


def _floats_text(floats: Sequence[tuple[str, str]]) -> list[str]:
    if not floats:
        return []
    return ["", "quantized, but computed in floats:", *(f"   {where}: {reason}" for where, reason in floats)]
