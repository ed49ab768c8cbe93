"""Commands about this machine and what is kept on it: targets, cache, doctor."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from .cli_shared import answer, byte_text, dims_option, json_option, load_graph, matmul_precision_option, precision_option, target_option
from .driver import compile_half, key_of, open_cache
from .ir.errors import ArtifactError, CompileError, DeviceError
from .key_facts import add_facts
from .machine import cpu_name, llvm_version
from .options import Options, read_environment
from .runtime import _cuda, _native
from .runtime.cache import Cache
from .runtime.linking import RUNTIME_OBJECT, find_linker
from .version import __version__

# package -> what it is for, and how it is installed
OPTIONAL = {
    "onnx": ("reads ONNX models", "pip install tilewright[onnx]"),
    "ziglang": ("a linker where the system has none", "pip install tilewright[cross]"),
}
REQUIRED = ("click", "llvmlite", "ml_dtypes", "numpy")


# --- targets ---------------------------------------------------------------------------------------------------------


@click.command("targets")
@click.argument("target", required=False)
@json_option
def targets_command(target: str | None, as_json: bool) -> None:
    """List the CPUs that --target knows, or say what TARGET (such as cpu or cpu:x86-64-v3+avx512f) stands for."""
    if target is not None:
        facts = compile_half().describe_target(target)
        lines = [f"{facts['text']}: {facts['architecture']}, {facts['vector_bits']}-bit vectors, "
                 f"caches {' '.join(byte_text(size) for size in facts['caches'])}",
                 f"  {' '.join('+' + name for name in facts['features'])}",
                 "  this machine runs its code" if not facts["missing"] else f"  this machine lacks {', '.join(facts['missing'])}"]
        answer(as_json, facts, lines)
        return
    rows = compile_half().describe_targets()
    lines, architecture = [], ""
    for row in rows:
        if row["architecture"] != architecture:
            architecture = row["architecture"]
            lines.append(architecture)
        mark = "*" if row["host"] else "+" if row["runs_here"] else " "
        lines.append(f"  {mark} {row['name']:<20} {row['vector_bits']:4}-bit vectors")
    lines.append("\n* this machine    + its code runs on this machine    cpu is this machine with the features it has")
    answer(as_json, rows, lines)


# --- cache -----------------------------------------------------------------------------------------------------------


@click.group("cache")
def cache_group() -> None:
    """The compiled programs that are kept on disk."""


def the_cache() -> Cache:
    cache = open_cache(read_environment(), Options())
    if cache is None:
        raise CompileError("the cache is turned off: TILEWRIGHT_CACHE_DIR is empty", hint="unset it, or name a folder")
    return cache


@cache_group.command("ls")
@json_option
def cache_ls(as_json: bool) -> None:
    """List the entries, the one used last first."""
    cache = the_cache()
    entries = cache.entries()
    total = sum(entry.bytes for entry in entries)
    data = {"directory": str(cache.directory), "bytes": total,
            "entries": [{"key": entry.key, "name": entry.name, "bytes": entry.bytes, "used": entry.used, "created": entry.created,
                         "reason": entry.reason, "parts": entry.parts} for entry in entries]}
    lines = [f"{cache.directory}: {len(entries)} entries, {byte_text(total)}"]
    lines += [f"  {entry.key[:12]}  {byte_text(entry.bytes):>10}  {age_text(entry.used):>12}  {entry.name or '(unreadable)'}"
              for entry in entries]
    answer(as_json, data, lines)


def age_text(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"


@cache_group.command("why")
@click.argument("model", type=click.Path(path_type=Path), required=False)
@target_option
@dims_option
@precision_option
@matmul_precision_option
@json_option
def cache_why(model: Path | None, target: str, dims: Sequence[str], precision: str, matmul_precision: str, as_json: bool) -> None:
    """Say why compiling MODEL now would miss the cache; without MODEL, why each entry had to be compiled."""
    cache = the_cache()
    if model is None:
        entries = sorted(cache.entries(), key=lambda entry: -entry.created)
        data: Any = [{"key": entry.key, "name": entry.name, "created": entry.created, "reason": entry.reason} for entry in entries]
        lines = [f"{entry.key[:12]}  {age_text(entry.created):>12}  {entry.name}: {entry.reason}" for entry in entries]
        answer(as_json, data, lines or ["the cache is empty"])
        return
    graph = load_graph(model, dims)
    options = Options(precision=precision, matmul_precision=matmul_precision)
    key = add_facts(key_of(graph.name, graph.fingerprint, target, options, cache), graph)
    reasons = cache.explain(key)
    data = {"key": key.digest, "name": graph.name, "hit": not reasons, "reasons": reasons, "parts": dict((*key.parts, *key.facts))}
    answer(as_json, data, [f"miss: {reason}" for reason in reasons] or [f"hit: {key.digest[:12]}"])


@cache_group.command("clear")
@json_option
def cache_clear(as_json: bool) -> None:
    """Remove all entries."""
    cache = the_cache()
    count, size = cache.clear()
    answer(as_json, {"removed": count, "bytes": size}, [f"removed {count} entries, {byte_text(size)}"])


# --- doctor ----------------------------------------------------------------------------------------------------------


@click.command("doctor")
@json_option
@click.pass_context
def doctor_command(context: click.Context, as_json: bool) -> None:
    """Say what this machine offers and lacks. The exit status is 1 when something needed is missing."""
    checks = [*check_machine(), *check_gpus(), *check_packages(), *check_linker(), check_cache()]
    data = {"version": __version__, "checks": [{"what": what, "state": state, "found": found, "hint": hint}
                                               for what, state, found, hint in checks]}
    marks = {"good": "ok     ", "missing": "MISSING", "optional": "absent "}
    lines = [f"tilewright {__version__}"]
    for what, state, found, hint in checks:
        lines.append(f"  {marks[state]}  {what:<14} {found}" + (f"   ({hint})" if hint and state != "good" else ""))
    answer(as_json, data, lines)
    if any(state == "missing" for _, state, _, _ in checks):
        context.exit(1)


Check = tuple[str, str, str, str]  # what, state (good, missing, optional), what was found, what to do


def check_machine() -> list[Check]:
    platform = sys.platform
    found: list[Check] = [
        ("platform", "good" if platform == "linux" else "missing", f"{platform} {os.uname().machine}", "tilewright runs on Linux only"),
        ("python", "good", f"{sys.version.split()[0]} at {sys.executable}", ""),
        ("cpu", "good", cpu_name(), ""),
        ("threads", "good", f"{_native.default_threads()} may be used (affinity and cgroup quota)", ""),
        ("memory", "good", f"{byte_text(_native.available_memory())} available", ""),
        ("runtime", "good" if RUNTIME_OBJECT.is_file() else "missing", f"ABI version {_native.ABI_VERSION}, object {RUNTIME_OBJECT}",
         "install tilewright again"),
    ]
    try:
        facts = compile_half().describe_target("cpu")
        found.append(("target", "good", f"{facts['text']}, {facts['vector_bits']}-bit vectors: {' '.join(facts['features'])}", ""))
    except (CompileError, ImportError) as error:
        found.append(("target", "missing", str(error).partition("\n")[0], "this CPU cannot be compiled for"))
    return found


def check_gpus() -> list[Check]:
    """Asks the driver, where there is one."""
    try:
        devices = [_cuda.describe_device(number) for number in range(_cuda.device_count())]
    except DeviceError as error:
        return [("gpu", "optional", error.message.partition("; ")[0], "for target=\"cuda\" only")]
    return [("gpu", "good", f"{number}: {facts['name']}, {facts['architecture']}, {byte_text(facts['free_bytes'])} of "
             f"{byte_text(facts['memory_bytes'])} free, driver for CUDA {facts['driver'] // 1000}.{facts['driver'] % 1000 // 10}", "")
            for number, facts in enumerate(devices)]


def check_packages() -> list[Check]:
    found: list[Check] = []
    for package in REQUIRED:
        present = find_spec(package) is not None
        version = llvm_version() if package == "llvmlite" else "installed"
        found.append((package, "good" if present else "missing", version if present else "not installed", f"pip install {package}"))
    for package, (purpose, hint) in OPTIONAL.items():
        present = find_spec(package) is not None
        found.append((package, "good" if present else "optional", f"{'installed' if present else 'not installed'}: {purpose}", hint))
    return found


def check_linker() -> list[Check]:
    try:
        linker = find_linker()
    except ArtifactError as error:
        return [("linker", "optional", "none: libraries (.so) cannot be written", error.hint)]
    return [("linker", "good", " ".join(linker.command), "")]


def check_cache() -> Check:
    cache = open_cache(read_environment(), Options())
    if cache is None:
        return ("cache", "optional", "turned off (TILEWRIGHT_CACHE_DIR is empty)", "")
    entries = cache.entries()
    nearest = next(folder for folder in (cache.directory, *cache.directory.parents) if folder.exists())
    problem = "no folder" if not nearest.is_dir() else "" if os.access(nearest, os.W_OK) else "not writable"
    text = f"{cache.directory}: {len(entries)} entries, {byte_text(sum(entry.bytes for entry in entries))}"
    return ("cache", "optional" if problem else "good", text, f"{nearest} is {problem}: every compile starts anew")
