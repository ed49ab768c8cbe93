"""Commands that compile, run, show and time a model: compile, run, inspect, bench."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np

from .cli_accelerator import measure_work, work_data, work_lines
from .cli_shared import (
    DROPPED_CALLS,
    MODEL,
    Bytes,
    answer,
    byte_text,
    compile_options,
    is_library,
    json_option,
    load_executable,
    load_graph,
    progress,
    random_inputs,
    read_pairs,
    read_sizes,
)
from .driver import compile_graph, gpu_compiler, is_gpu
from .ir.errors import ArgumentError, ArtifactError
from .ir.graph import Graph
from .launch_facts import KEY as LAUNCHES
from .options import MOST_SECONDS, Options, read_environment
from .runtime.artifact import replacing
from .runtime.cache import DEFAULT_LIMIT
from .saving import check_library_path

LONGEST_SIZE = 100


# --- compile ---------------------------------------------------------------------------------------------------------


@click.command("compile")
@click.argument("model", type=MODEL)
@click.option("-o", "--output", type=MODEL, help="Library to write (.so, or .a).  [default: the model's name with .so]")
@compile_options
@click.option("--name", help="Prefix of the C functions.  [default: the output's name]")
@click.option("--embed", is_flag=True, help="Put the weights into the library instead of a file beside it.")
@click.option("--static", is_flag=True, help="Write a static archive.")
@click.option("--no-selftest", is_flag=True, help="Record no golden call.")
@click.option("--tune", type=click.FloatRange(0, MOST_SECONDS), default=0.0, metavar="SECONDS",
              help="Measure register tiles for so long; what another tile makes faster by 3 % uses it. What was measured before is "
                   "kept and not measured again. Needs static sizes (--dims).")
@click.option("--tune-record", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.json",
              help="Where measurements are kept. Without --tune it is read only: the same file gives the same code.  [default: the cache]")
@click.option("--cache-bytes", type=click.IntRange(0), default=DEFAULT_LIMIT, show_default=True,
              help="How large the compile cache may become.")
@click.option("--max-memory", type=Bytes(), metavar="SIZE",
              help="What the values between kernels may take in a call (the peak arena), as in 8MiB. Where the order of kernels or their "
                   "places cannot keep to it, say which operators prove that.")
@click.option("--emit", type=click.Choice(["library", "source"]), default="library", show_default=True,
              help="For CUDA, source: a .cu file that runs the model once and checks itself, with its data in a file beside it.")
@json_option
def compile_command(model: Path, output: Path | None, dims: Sequence[str], target: str, threads: int, precision: str,
                    matmul_precision: str, no_cache: bool, name: str | None, embed: bool, static: bool, no_selftest: bool, tune: float,
                    tune_record: Path | None, cache_bytes: int, max_memory: int | None, emit: str, as_json: bool) -> None:
    """Compile MODEL (.onnx, or .ir) to a C library with a header, and a file of weights."""
    if emit == "source":
        options = Options(precision=precision, matmul_precision=matmul_precision, max_memory=max_memory or 0)
        write_source(output or Path(model.stem.replace("-", "_") + ".cu"), load_graph(model, dims), target, options, as_json)
        return
    place = output or Path(model.stem.replace("-", "_") + (".a" if static else ".so"))
    check_writable(place)
    check_library_path(place, static or place.suffix == ".a")
    graph = load_graph(model, dims)
    options = Options(threads=threads, precision=precision, matmul_precision=matmul_precision, cache=not no_cache,
                      cache_bytes=cache_bytes, tune=tune, tune_record=tune_record or "", max_memory=max_memory or 0)
    with progress(f"compiling {model.name}"):
        executable = compile_graph(graph, target, options)
    with progress(f"writing {place}"):
        saved = executable.save(place, name=name, embed=embed, static=True if static else None, selftest=not no_selftest)
    facts = executable.metadata
    files = {str(file): file.stat().st_size for file in saved.files}
    data = {"files": files, "selftest": saved.selftest, **{name: fact for name, fact in facts.items() if name != LAUNCHES}}
    how = "from the cache" if facts["cached"] else f"compiled in {facts['compile_seconds']:.2f} s"
    several = len(executable.variants) > 1
    lines = [f"{graph.name}: {len(executable.kernels)} kernels for {facts['target']}, {how}",
             *([f"  variants: {', '.join(executable.variants)}; the first of these that a CPU can run is used"] if several else []),
             f"  peak arena: {workspace_text(facts)}",
             *([f"  tuned: {facts['tuned_tiles']} tiles were measured to be faster than the model's"] if tune or tune_record else []),
             *(f"  {byte_text(size):>12}  {file}" for file, size in files.items())]
    answer(as_json, data, lines)


def write_source(place: Path, graph: Graph, target: str, options: Options, as_json: bool) -> None:
    """The kernels of a graph as a .cu file that checks itself, and its data."""
    if not is_gpu(target):
        raise click.UsageError(f"--emit source needs a target that is compiled from source: found {target}, expected cuda or cuda:sm_90")
    check_writable(place)
    data_place = place.with_suffix(".data")
    with progress(f"compiling {graph.name}"):
        made = gpu_compiler().standalone_source(graph, target, options, read_environment(), data_place.name)
    with replacing(place) as temporary:
        temporary.write_text(made.source, encoding="utf-8")
    with replacing(data_place) as temporary:
        temporary.write_bytes(made.data)
    files = {str(file): file.stat().st_size for file in (place, data_place)}
    lines = [f"{graph.name}: nvcc {' '.join(made.options)} -o {place.stem} {place.name} && ./{place.stem}",
             *(f"  {byte_text(size):>12}  {file}" for file, size in files.items())]
    answer(as_json, {"files": files}, lines)


def check_writable(output: Path) -> None:
    """Fails before the work rather than after it, and never puts a file where something else stands."""
    if output.exists() and not output.is_dir() and not output.is_file():
        raise ArtifactError(f"{output}: is a device or a pipe, expected the path of a file to write")
    if output.is_dir():
        raise ArtifactError(f"{output}: is a folder, expected the path of the library to write")
    if not output.absolute().parent.is_dir():
        raise ArtifactError(f"{output}: cannot be written: there is no folder {output.parent}", hint="create it first")


def workspace_text(facts: Mapping[str, Any]) -> str:
    """The peak of a call's memory, as far as it is known before the sizes are."""
    workspace = facts.get("workspace")
    if isinstance(workspace, int):
        return byte_text(workspace)
    text = f"{workspace} bytes" if workspace is not None else ""
    return text if 0 < len(text) <= LONGEST_SIZE else "decided by the sizes of a call"


# --- run -------------------------------------------------------------------------------------------------------------


@click.command("run")
@click.argument("model", type=MODEL)
@click.option("--input", "inputs", multiple=True, metavar="NAME=FILE.npy", help="An input; may be repeated.")
@click.option("--random", is_flag=True, help="Random values for inputs that are not given.")
@click.option("--output", "outputs", multiple=True, metavar="[NAME=]FILE.npy", help="Where to write an output.")
@click.option("--size", "sizes", multiple=True, metavar="NAME=SIZE", help="A symbolic size of random inputs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random inputs.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Calls; the last one's outputs count.")
@compile_options
@json_option
def run_command(model: Path, inputs: Sequence[str], random: bool, outputs: Sequence[str], sizes: Sequence[str], seed: int,
                repeat: int, dims: Sequence[str], target: str, threads: int, precision: str, matmul_precision: str, no_cache: bool,
                as_json: bool) -> None:
    """Run MODEL (.onnx, .ir, or a compiled .so) once, on arrays from files or random ones."""
    executable = load_executable(model, dims=dims, target=target, threads=threads, precision=precision, no_cache=no_cache,
                                 matmul_precision=matmul_precision)
    places = output_places(outputs, [info.name for info in executable.outputs])
    values = gather_inputs(executable, read_pairs(inputs, "--input"), random, read_sizes(sizes, "--size"), seed)
    times = []
    results: dict[str, np.ndarray[Any, Any]] = {}
    for _ in range(repeat):
        began = time.perf_counter()
        results = executable.run(values)
        times.append(time.perf_counter() - began)
    for name, place in places.items():
        write_array(place, results[name])
    data = {"outputs": {name: describe_array(array) for name, array in results.items()}, "seconds": times,
            "written": {name: str(place) for name, place in places.items()}}
    lines = [*(array_text(name, array) for name, array in results.items()),
             f"{min(times) * 1e3:.3f} ms" + (f" (the fastest of {repeat})" if repeat > 1 else ""),
             *(f"wrote {place}" for place in places.values())]
    if "schedule" in executable.metadata:
        work = measure_work(executable, values)
        data |= {"schedule": executable.metadata["schedule"], "executed": work_data(work)}
        lines += work_lines(work)
    answer(as_json, data, lines)


def gather_inputs(executable: Any, files: Mapping[str, str], random: bool, sizes: Mapping[str, int],
                  seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of a call: from files, and random ones where that was asked for."""
    names = [info.name for info in executable.inputs]
    unknown = [name for name in files if name not in names]
    if unknown:
        raise ArgumentError(f"--input: {executable.name} has no input {unknown[0]}; expected {', '.join(map(str, executable.inputs))}")
    missing = [info for info in executable.inputs if info.name not in files]
    if missing and not random:
        raise ArgumentError(f"{executable.name}: no value for {', '.join(map(str, missing))}",
                            hint="--input NAME=FILE.npy gives one, --random makes all that are left")
    values = {name: read_array(name, Path(file)) for name, file in files.items()}
    if missing:
        known = sizes_of_given(executable, values)
        values = random_inputs(executable, {**known, **sizes}, seed, values)
    return values


def sizes_of_given(executable: Any, values: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """Symbolic sizes that the given inputs decide."""
    found: dict[str, int] = {}
    for info in executable.inputs:
        if info.name in values and values[info.name].ndim == info.rank:
            found |= {n: extent for n, extent in zip(info.shape, values[info.name].shape) if isinstance(n, str)}
    return found


def read_array(name: str, path: Path) -> np.ndarray[Any, Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        problem = getattr(error, "strerror", None) or ("it holds Python objects, or is no array file" if "pickle" in str(error) else error)
        raise ArgumentError(f"--input {name}: {path}: {problem}", hint="expected a file that numpy.save wrote") from None
    if not isinstance(array, np.ndarray):
        raise ArgumentError(f"--input {name}: {path}: holds several arrays, expected one (.npy)")
    return array


def write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """A .npy file, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        # Not the file itself: NumPy would open it a second time in C and lose sight of a write that fails at the end.
        np.lib.format.write_array(SimpleNamespace(write=file.write), array, allow_pickle=False)


def output_places(pairs: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Where each output goes. A bare file name will do for a model of one output."""
    found: dict[str, Path] = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals:
            if len(names) != 1:
                raise click.UsageError(f"--output: found {pair!r}, expected NAME=FILE.npy: there are several outputs ({', '.join(names)})")
            name, file = names[0], pair
        if name not in names:
            raise click.UsageError(f"--output: there is no output {name!r}, expected one of {', '.join(names)}")
        check_writable(Path(file))
        found[name] = Path(file)
    return found


def describe_array(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Shape, dtype, and figures that tell two results apart."""
    data: dict[str, Any] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    if array.size:
        wide = array.astype(np.float64)
        with np.errstate(all="ignore"):
            figures = {"min": float(wide.min()), "max": float(wide.max()), "mean": float(wide.mean())}
        data |= {key: value if np.isfinite(value) else str(value) for key, value in figures.items()}
    return data


def array_text(name: str, array: np.ndarray[Any, Any]) -> str:
    facts = describe_array(array)
    shape = ", ".join(map(str, array.shape))
    figures = "".join(f"  {key} {facts[key]:.6g}" if isinstance(facts[key], float) else f"  {key} {facts[key]}"
                      for key in ("min", "max", "mean") if key in facts)
    small = f"  = {np.array2string(array, precision=6, separator=', ')}" if array.size <= 8 else ""
    return f"{name}: {array.dtype.name}[{shape}]{figures}{small}"


# --- inspect ---------------------------------------------------------------------------------------------------------


@click.command("inspect")
@click.argument("model", type=MODEL)
@compile_options
@click.option("--no-compile", is_flag=True, help="Show the model only, not what it compiles to.")
@json_option
def inspect_command(model: Path, dims: Sequence[str], target: str, threads: int, precision: str, matmul_precision: str, no_cache: bool,
                    no_compile: bool, as_json: bool) -> None:
    """Show what MODEL is made of: inputs, outputs, ops, and the kernels and memory it compiles to."""
    data: dict[str, Any] = {}
    if is_library(model):
        executable = load_executable(model, dims=dims, target=target, threads=threads, precision=precision, no_cache=no_cache,
                                     matmul_precision=matmul_precision)
    else:
        graph = load_graph(model, dims)
        data = describe_graph(graph)
        executable = None
        if not no_compile:
            with progress(f"compiling {model.name}"):
                executable = compile_graph(graph, target, Options(threads=threads, precision=precision, matmul_precision=matmul_precision,
                                                                  cache=not no_cache))
    if executable is not None:
        data |= describe_executable(executable)
    answer(as_json, data, inspection_lines(data))


def describe_graph(graph: Any) -> dict[str, Any]:
    constants = {node.op.value.digest: node.op.value for node in graph.nodes() if node.op.spelling == "const"}
    return {
        "name": graph.name,
        "inputs": [f"{param.op.label}: {param.type}" for param in graph.params],
        "outputs": [f"{name}: {node.type}" for name, node in zip(graph.result_names, graph.results)],
        "nodes": len(graph.nodes()),
        "ops": dict(Counter(node.op.spelling for node in graph.nodes()).most_common()),
        "parameters": sum(constant.array.size for constant in constants.values()),
        "parameter_bytes": sum(constant.array.nbytes for constant in constants.values()),
    }


def describe_executable(executable: Any) -> dict[str, Any]:
    facts = executable.metadata
    workspace = facts.get("workspace", getattr(executable, "workspace_bytes", None))
    model: Any = getattr(executable, "_model", None)
    data = {
        "name": executable.name,
        "inputs": [str(info) for info in executable.inputs],
        "outputs": [str(info) for info in executable.outputs],
        "target": executable.target,
        "variants": list(executable.variants),
        "kernels": list(executable.kernels),
        "features": list(executable.features),
        "peak_arena": workspace,
        "constants_bytes": facts.get("constants_bytes", getattr(model, "constants_bytes", None)),
    }
    if facts.get("workspace_lower_bound") is not None:
        data["peak_arena_lower_bound"] = facts["workspace_lower_bound"]
    if facts.get("stages"):
        data["stages"] = facts["stages"]
    if "path" in facts:
        data |= {"version": model.version, "abi_version": model.abi_version, "selftest_bytes": model.golden_bytes}
    return data


def inspection_lines(data: Mapping[str, Any]) -> list[str]:
    lines = [str(data["name"]), "  inputs"]
    lines += [f"    {text}" for text in data["inputs"]]
    lines += ["  outputs", *(f"    {text}" for text in data["outputs"])]
    if "ops" in data:
        lines += [f"  {data['nodes']} nodes, {data['parameters']} parameters ({byte_text(data['parameter_bytes'])})"]
        lines += [f"    {count:6}  {spelling}" for spelling, count in data["ops"].items()]
    if "kernels" in data:
        lines += [f"  {len(data['kernels'])} kernels", *(f"    {name}" for name in data["kernels"])]
        lines += [f"  peak arena: {workspace_text({'workspace': data['peak_arena']})}"]
        if "peak_arena_lower_bound" in data:
            lines += [f"    no plan for this order needs less than {byte_text(data['peak_arena_lower_bound'])}"]
        if data["constants_bytes"] is not None:
            lines += [f"  constants: {byte_text(data['constants_bytes'])}"]
        lines += [f"  compiled for {data['target']}"]
        if len(data["variants"]) > 1:
            lines += [f"  variants, the best one first: {', '.join(data['variants'])}"]
        lines += [f"  CPU features: {', '.join(data['features'])}"]
    if "version" in data:
        lines += [f"  written by tilewright {data['version']}, ABI version {data['abi_version']}, "
                  f"{'a' if data['selftest_bytes'] else 'no'} self-test"]
    return lines


# --- bench -----------------------------------------------------------------------------------------------------------


@click.command("bench")
@click.argument("model", type=MODEL)
@compile_options
@click.option("--seconds", type=click.FloatRange(0.001), default=2.0, show_default=True, help="How long to measure.")
@click.option("--size", "sizes", multiple=True, metavar="NAME=SIZE", help="A symbolic size of the inputs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random inputs.")
@click.option("--kernels", "show_kernels", is_flag=True, help="Also the time of every kernel, in a call of its own.")
@json_option
def bench_command(model: Path, dims: Sequence[str], target: str, threads: int, precision: str, matmul_precision: str,
                  no_cache: bool, seconds: float, sizes: Sequence[str], seed: int, show_kernels: bool, as_json: bool) -> None:
    """Time MODEL (.onnx, .ir, or a compiled .so) on random inputs: the median and the least of its calls."""
    executable = load_executable(model, dims=dims, target=target, threads=threads, precision=precision, no_cache=no_cache,
                                 matmul_precision=matmul_precision)
    inputs = random_inputs(executable, read_sizes(sizes, "--size"), seed)
    values = [inputs[info.name] for info in executable.inputs]
    with progress(f"timing {model.name} for {seconds:g} s"):
        times = measure(executable, values, seconds)
    median, least = float(np.median(times)), min(times)
    data: dict[str, Any] = {"name": executable.name, "threads": executable.threads, "calls": len(times), "median_seconds": median,
                            "least_seconds": least, "shapes": {name: list(array.shape) for name, array in inputs.items()}}
    lines = [f"{executable.name}: median {median * 1e3:.4f} ms, least {least * 1e3:.4f} ms, of {len(times)} calls on "
             f"{executable.threads} thread{'s' * (executable.threads > 1)}",
             *(f"  {name}: {array.dtype.name}[{', '.join(map(str, array.shape))}]" for name, array in inputs.items())]
    if show_kernels:
        profile = executable.profile(*values)
        data["kernels"] = [{"name": kernel.name, "seconds": kernel.seconds} for kernel in profile.kernels]
        lines += str(profile).splitlines()
    answer(as_json, data, lines)


def measure(executable: Any, values: Sequence[np.ndarray[Any, Any]], seconds: float) -> list[float]:
    """The seconds of each call, after a few that are not counted."""
    for _ in range(DROPPED_CALLS):
        executable(*values)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        executable(*values)
        times.append(time.perf_counter() - began)
    return times
