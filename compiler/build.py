"""The compile half of the driver: passes, lowering, code generation. Imported only when something must be compiled.

What it does: takes a verified graph to object code and its constants segment, leaving every stage as text when
TILEWRIGHT_IR_DUMP asks for it, and saying how long each stage took and what the memory plan came to.

Guarantees: a program that cannot fit into memory is refused before any is taken, with the figure; nothing here knows
about caches, files of artifacts or arguments of calls.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from .backends.llvm.backend import capabilities_of
from .backends.llvm.compile import CompiledObject, compile_program
from .backends.llvm.emit_model import ModelFacts
from .backends.llvm.targets import Target, host_supports, known_cpus, resolve_target
from .backends.reference import PLAIN, ReferenceModel
from .collector import collector_paused
from .ir.caps import Caps, TunedTile
from .ir.dims import evaluate
from .ir.errors import CompileError, InternalError, Loc, TilewrightError
from .ir.graph import Constant, Graph
from .ir.loop_parser import parse_program
from .ir.loop_text import format_kernel, format_program
from .ir.loop_verify import verify_program
from .ir.parser import load_constants
from .ir.printer import SPELLED_ELEMENTS, constants_of, save_constants, sidecar_path
from .ir.program import Program
from .ir.schedule import format_schedule
from .ir.types import TensorType
from .ir.verify import verify
from .key_facts import add_facts as add_facts  # for the driver, which imports this half late
from .launch_facts import KEY as LAUNCHES
from .launch_facts import describe_launches
from .lowering.lower import Drafted, Placement, Statistics, lower_program, place_as_drafted
from .options import Environment, Options, read_environment
from .ordering import place_least
from .pipeline import left_as_floats, make_dump_folder, run_passes, stage_names, write_dump
from .runtime import _native
from .version import __version__

ALIGNMENT = 64
SAMPLE_SIZES = (3, 4, 32, 64)
LARGEST_LEADING = 4
OBJECT_PREFIX = "tw"  # of the symbols of object code; saving replaces it with the artifact's name


class Built(Struct, frozen=True):
    """A compiled program. `constants` is the segment, aligned to 64 bytes, or None; `metadata` is for people and JSON."""

    object_code: bytes
    constants: np.ndarray[Any, Any] | None
    constants_digest: str
    metadata: dict[str, Any]


class Clock:
    """Times of consecutive stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.started = self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self.last
        self.last = now

    @property
    def total(self) -> float:
        return self.last - self.started


@lru_cache(maxsize=256)
def resolved(text: str) -> Target:
    return resolve_target(text)


def capabilities(text: str) -> Caps:
    """What a target offers."""
    return capabilities_of(resolved(text))


def target_text(text: str) -> str:
    """The target as canonical text, with `host` before it when this machine can run its code."""
    target = resolved(text)
    return ("host " if not host_supports(target) else "other ") + target.canonical_text


@collector_paused()
def build(graph: Graph, target_name: str, options: Options, environment: Environment, tuned: tuple[TunedTile, ...] = ()) -> Built:
    """Compile a verified graph."""
    target = resolved(target_name)
    caps = replace(capabilities_of(target), tuned=tuned)
    clock = Clock()
    dump_constants(environment, graph)
    optimized, report = run_passes(graph, options, caps, environment)
    clock.lap("passes")
    program, statistics = lower_least(optimized, caps, options)
    clock.lap("lower")
    dump_program(environment, caps, program, statistics)
    check_memory(program)
    digest = segment_digest(program)
    clock.lap("digest")
    with ThreadPoolExecutor(1) as beside:  # neither copying nor LLVM holds Python's lock
        filled = beside.submit(fill_segment, program)
        compiled = generate(program, target, digest)
        clock.lap("code")
        constants = filled.result()
    clock.lap("constants")
    dump_code(environment, caps, compiled)
    stages = {stage.name: stage.seconds for stage in report.stages}
    metadata = describe(program, statistics, target)
    metadata["constants_digest"] = digest if program.constants_bytes else ""
    metadata["compile_seconds"] = clock.total
    metadata["stages"] = {**stages, **{name: seconds for name, seconds in clock.seconds.items() if name != "passes"}}
    metadata["sample_shapes"] = sample_shapes(graph)
    metadata["tuned_tiles"] = len(tuned)
    dump_times(environment, graph, target_name, options, metadata)
    return Built(compiled.object_code, constants, digest if program.constants_bytes else "", metadata)


def interpreted(graph: Graph, backend: str, options: Options, environment: Environment) -> ReferenceModel:
    """The graph behind the interface of a loaded model: 'reference' interprets it as it is, 'reference-loops' after passes
    and lowering, with every check that the loop interpreter has."""
    if backend == "reference":
        return ReferenceModel(graph)
    caps = PLAIN
    optimized, _ = run_passes(graph, options, caps, environment)
    program, statistics = lower_checked(optimized, caps)
    dump_program(environment, caps, program, statistics)
    return ReferenceModel(program)


def lower_checked(graph: Graph, caps: Caps, place: Callable[[Drafted], Placement] = place_as_drafted) -> tuple[Program, Statistics]:
    """Lowering, with what it did not foresee reported as a fault of ours."""
    try:
        return lower_program(graph, caps, place)
    except TilewrightError:
        raise
    except Exception as error:
        raise internal("lowering", graph.name, error) from error


def lower_least(graph: Graph, caps: Caps, options: Options) -> tuple[Program, Statistics]:
    """Lowering with launches in the order for the least memory between them; CompileError where that is above `max_memory`."""
    return lower_checked(graph, caps, partial(place_least, limit=options.max_memory))


def generate(program: Program, target: Target, digest: str, quick: bool = False, prefix: str = OBJECT_PREFIX) -> CompiledObject:
    """Object code that serves both in process and, specialized, in an artifact. `quick`: made in a third of the time, and slow.
    Without a prefix it serves in process alone."""
    facts = ModelFacts(version=__version__, constants_digest=digest if program.constants_bytes else "")
    try:
        return compile_program(program, target, facts=facts, name_prefix=prefix, quick=quick)
    except TilewrightError:
        raise
    except Exception as error:
        raise internal("the llvm backend", program.name, error) from error


def internal(stage: str, name: str, error: Exception) -> InternalError:
    return InternalError(f"{stage} failed on {name}: {type(error).__name__}: {error}",
                         hint="set TILEWRIGHT_IR_DUMP=dir and report the folder that it fills")


# --- one stage at a time: `tilewright opt` and `tilewright targets` -----------------------------------------------------


def stages_of() -> tuple[str, ...]:
    return stage_names()


def enter(graph: Graph, start: str, until: str, target_name: str, options: Options) -> Graph:
    """The graph after some of the passes."""
    verify(graph)
    return run_passes(graph, options, capabilities_of(resolved(target_name)), read_environment(), until=until, start=start)[0]


def floats_of_quantized(graph: Graph, target_name: str, options: Options) -> list[tuple[Loc, str]]:
    """Contractions that have a dequantized operand and are computed in floats: where they come from, and why."""
    return left_as_floats(graph, options, capabilities_of(resolved(target_name)))


def lower(graph: Graph, target_name: str) -> Program:
    """The program of a graph that went through all passes."""
    return lower_checked(graph, capabilities_of(resolved(target_name)))[0]


def program_text(program: Program, form: str, target_name: str) -> str:
    """A program as text: 'loop', or generated code as 'llvm', 'optimized' or 'asm'."""
    if form == "loop":
        return format_program(program)
    compiled = generate(program, resolved(target_name), segment_digest(program))
    text: str = {"llvm": lambda: compiled.llvm_ir, "optimized": lambda: compiled.optimized, "asm": lambda: compiled.assembly}[form]()
    return text


def load_program(path: Path) -> Program:
    """A program from text, with its large constants from the file beside it."""
    sidecar = sidecar_path(path)
    constants = load_constants(sidecar) if sidecar.exists() else {}
    program = parse_program(path.read_text(encoding="utf-8"), constants)
    verify_program(program)
    return program


def save_program_constants(program: Program, path: Path) -> None:
    """The file beside the text of a program."""
    constants = [constant for _, constant in program.constants if constant.array.size > SPELLED_ELEMENTS]
    if constants:
        save_constants(sidecar_path(path), constants)


def describe_target(text: str) -> dict[str, Any]:
    """What a target stands for."""
    target = resolved(text)
    return {"text": str(target), "architecture": target.architecture, "features": list(target.features),
            "vector_bits": target.vector_bits, "caches": [target.level1_bytes, target.level2_bytes, target.level3_bytes],
            "missing": host_supports(target)}


def describe_targets() -> list[dict[str, Any]]:
    """Every CPU that a target may name."""
    host = resolved("cpu")
    rows = []
    for cpu in known_cpus():
        target = resolved(f"cpu:{cpu.name}")
        rows.append({"name": cpu.name, "architecture": cpu.architecture, "features": list(target.features),
                     "vector_bits": target.vector_bits, "host": cpu.name == host.cpu, "runs_here": not host_supports(target)})
    return rows


# --- constants -------------------------------------------------------------------------------------------------------


def segment_digest(program: Program) -> str:
    """A digest of the segment's content: of the places, and the digests, of its constants."""
    state = blake3(f"{program.constants_bytes}\n".encode())
    for offset, constant in program.constants:
        state.update(f"{offset} {constant.digest}\n".encode())
    return state.hexdigest()


def fill_segment(program: Program) -> np.ndarray[Any, Any] | None:
    """All constants in one read-only buffer aligned to 64 bytes; None when there are none."""
    if not program.constants_bytes:
        return None
    memory = np.zeros(program.constants_bytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    segment = memory[start:start + program.constants_bytes]
    for offset, constant in program.constants:
        segment[offset:offset + constant.array.nbytes] = element_bytes(constant)
    segment.flags.writeable = False
    return segment


def element_bytes(constant: Constant) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(constant.array).reshape(-1).view(np.uint8)


def check_memory(program: Program) -> None:
    """Refuses a program that cannot fit, with the figure."""
    workspace = program.workspace_bytes if isinstance(program.workspace_bytes, int) else 0
    needed, available = program.constants_bytes + workspace, _native.available_memory()
    if needed > available:
        raise CompileError(
            f"{program.name}: needs {needed} bytes of memory ({program.constants_bytes} of constants, {workspace} of "
            f"workspace), but only {available} are available", hint="use smaller sizes, or a machine with more memory")


# --- reports ---------------------------------------------------------------------------------------------------------


def describe(program: Program, statistics: Statistics, target: Target) -> dict[str, Any]:
    """What the compiler knows of a program, as JSON."""
    return {
        "name": program.name,
        "target": str(target),
        "architecture": target.architecture,
        "features": list(target.features),
        "vector_bits": target.vector_bits,
        "inputs": describe_tensors(program.inputs),
        "outputs": describe_tensors(program.outputs),
        "kernels": [kernel.name for kernel in program.kernels()],
        LAUNCHES: describe_launches(program),
        "constants_bytes": program.constants_bytes,
        "workspace": program.workspace_bytes if isinstance(program.workspace_bytes, int) else str(program.workspace_bytes),
        "workspace_lower_bound": statistics.arena_bound,
        "workspace_order_bound": statistics.order_bound,
    }


def describe_tensors(entries: Sequence[tuple[str, TensorType]]) -> list[Any]:
    """[name, dtype, shape] of each, sizes as numbers or text."""
    return [[name, str(kind.dtype), [size if isinstance(size, int) else str(size) for size in kind.shape]]
            for name, kind in entries]


def sample_shapes(graph: Graph) -> list[list[list[int]]]:
    """Shapes that the program's types admit, small ones first: for a self-test, and for random inputs. (A model may refuse
    small sizes that its types admit: an image that five layers halve. The first axis of an input is most often a number of
    samples, which may stay small.)"""
    leading = {str(param.shape[0]) for param in graph.params if param.rank > 1}
    found = []
    for wanted in SAMPLE_SIZES:
        binding = {}
        for symbol in graph.symbols:
            step = symbol.multiple_of
            least = max(symbol.lower, min(wanted, LARGEST_LEADING) if symbol.name in leading else wanted)
            size = -(-least // step) * step
            binding[symbol.name] = size if symbol.upper is None else min(size, symbol.upper // step * step)
        found.append([[evaluate(size, binding) for size in param.shape] for param in graph.params])
    return [shapes for index, shapes in enumerate(found) if shapes not in found[:index]]


def dump_constants(environment: Environment, graph: Graph) -> None:
    """The large constants of the first stage beside its text, so that it can be read back."""
    constants = constants_of(graph)
    if environment.dump is not None and constants:
        make_dump_folder(environment.dump)
        save_constants(environment.dump / "00_input.ir.npz", constants.values())


def dump_program(environment: Environment, caps: Caps, program: Program, statistics: Statistics) -> None:
    """The loop stage: the whole program, then each kernel, with the plain loops and the schedule that it was made from. (A
    kernel that layers share, or that writes over an operand, was changed once more after that.)"""
    if environment.dump is None:
        return
    number = len(stage_names()) + 1
    write_dump(environment.dump, f"{number:02d}_program.loop", format_program(program, locations=True))
    for index, kernel in enumerate(program.kernels()):
        name = re.sub(r"\W+", "_", kernel.name)[:60]
        write_dump(environment.dump, f"kernel_{index:03d}_{name}.loop", format_kernel(kernel, locations=True))
        if kernel.name in statistics.plans:
            plain, schedule = statistics.plans[kernel.name]
            write_dump(environment.dump, f"kernel_{index:03d}_{name}.plain.loop", format_kernel(plain, locations=True))
            write_dump(environment.dump, f"kernel_{index:03d}_{name}.schedule", format_schedule(schedule))


def dump_code(environment: Environment, caps: Caps, compiled: CompiledObject) -> None:
    """LLVM IR before and after LLVM's passes, and assembly."""
    if environment.dump is None:
        return
    number = len(stage_names()) + 2
    write_dump(environment.dump, f"{number:02d}_llvm.ll", compiled.llvm_ir)
    write_dump(environment.dump, f"{number:02d}_optimized.ll", compiled.optimized)
    write_dump(environment.dump, f"{number:02d}_assembly.s", compiled.assembly)


def dump_times(environment: Environment, graph: Graph, target_name: str, options: Options, metadata: dict[str, Any]) -> None:
    """timing.json, and a program that repeats the compilation from its first stage."""
    if environment.dump is None:
        return
    write_dump(environment.dump, "timing.json", json.dumps(metadata, indent=1))
    write_dump(environment.dump, "repro.py", _REPRO.format(
        name=graph.name, target=target_name, precision=options.precision, threads=options.threads))


_REPRO = '''\
"""Compiles {name} again from 00_input.ir, the first stage of this folder (its large constants are in 00_input.ir.npz)."""

from pathlib import Path

import tilewright as tw

graph = tw.load_text(Path(__file__).with_name("00_input.ir"))
options = tw.Options(precision={precision!r}, threads={threads}, cache=False)
print(tw.compile(graph, target={target!r}, options=options))
'''
