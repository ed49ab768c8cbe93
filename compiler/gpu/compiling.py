"""The compile half for GPUs: a graph to CUDA source, images of it and the host's object, loaded as an executable.

Imported only for a target `cuda` or `cuda:sm_90`. The first is the device of this machine; where there is none it is the oldest
architecture that is supported, whose code can be shown and saved, and a call says that there is no device. Of several, with commas
between them, the code holds images for each.

Guarantees: equal graphs, options and targets give equal objects, which the cache keeps as it keeps those of CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .. import saving_cuda
from ..backends.cuda.backend import EMULATED, OLDEST, CudaBackend, architecture_named
from ..backends.cuda.compile import toolkit_version
from ..backends.cuda.emit import emit_module
from ..backends.cuda.module import CudaModule
from ..backends.cuda.standalone import Standalone, make_standalone
from ..backends.llvm.emit_model import ModelFacts
from ..build import (
    Clock,
    check_memory,
    describe_tensors,
    dump_constants,
    dump_program,
    fill_segment,
    internal,
    lower_least,
    sample_shapes,
    segment_digest,
)
from ..collector import collector_paused
from ..explaining import explanation_of, launches_at
from ..ir.errors import CompileError, TilewrightError
from ..ir.graph import Graph
from ..ir.interp import bind_shapes, evaluate_graph
from ..ir.loop_gpu import shared_bytes_of_block
from ..ir.program import Program
from ..ir.verify import verify
from ..launch_facts import KEY as LAUNCHES
from ..launch_facts import describe_launches
from ..options import MATMUL_PRECISIONS, Environment, Options
from ..pipeline import run_passes, stage_names, write_dump
from ..runtime.cache import Cache, Key, source_digest, sources_changed
from ..runtime.cuda import CudaExecutable, device_architecture
from ..variants import Code
from ..version import __version__

PREFIX = "tw"


def is_device(target: object) -> bool:
    """Whether a target is a GPU."""
    return isinstance(target, str) and (target == "cuda" or target.startswith("cuda:"))


@lru_cache(maxsize=16)
def architectures_of(target: str) -> tuple[str, ...]:
    """What to compile for: `sm_90`, or 'emulated' where the driver is. Of several the oldest comes first: kernels are made for it, and
    compiled for each."""
    names = [_architecture_of(part.strip()) for part in target.split(",")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CompileError(f"target: found cuda:{twice} twice in {target!r}", hint="leave one of them out")
    if EMULATED in names and len(names) > 1:
        raise CompileError(f"target: found cuda:{EMULATED} beside others in {target!r}, expected it alone")
    return tuple(sorted(names, key=lambda name: (0, False) if name == EMULATED else
                        (architecture_named(name).number, architecture_named(name).specific)))


def _architecture_of(target: str) -> str:
    kind, colon, name = target.partition(":")
    if kind != "cuda":
        raise CompileError(f"target: found {target!r} beside GPUs, expected cuda:sm_90 and its like",
                           hint="compile for CPUs and GPUs on their own")
    if colon:
        return name if name == EMULATED else str(architecture_named(name))
    try:
        return device_architecture()
    except TilewrightError:
        return OLDEST


def compile_for_device(graph: Graph, target: str, options: Options, environment: Environment, cache: Cache | None, pack: Any,
                       settle: Callable[[], Graph] | None = None) -> CudaExecutable:
    """The executable of a graph on a GPU, from the cache or built."""
    architectures = architectures_of(target)
    dumping = environment.dump is not None or bool(environment.verify)
    if cache is not None and not dumping:
        found = cache.find(key_of(graph, architectures, options))
        if found is not None:
            return _loaded(found.object_code, found.constants, {**found.metadata, "cached": True}, options, pack)
    graph = graph if settle is None else settle()
    verify(graph)
    object_code, constants, digest, metadata = build(graph, architectures, options, environment, cache)
    if cache is not None and not sources_changed():
        cache.store(key_of(graph, architectures, options), object_code, constants, digest, metadata)
    return _loaded(object_code, constants, {**metadata, "cached": False}, options, pack)


def key_of(graph: Graph, architectures: tuple[str, ...], options: Options) -> Key:
    """Everything that the code of a graph depends on."""
    return Key(graph.name, (("source", source_digest()), ("toolkit", str(toolkit_version())), ("options", options.code_key()),
                            ("target", _target_text(architectures)), ("graph", graph.fingerprint)))


def _target_text(architectures: tuple[str, ...]) -> str:
    return ",".join(f"cuda:{name}" for name in architectures)


def _loaded(object_code: bytes, constants: Any, metadata: dict[str, Any], options: Options, pack: Any) -> CudaExecutable:
    code = Code(object_code, constants, metadata)
    return CudaExecutable.from_object(object_code, constants, symbol=f"{PREFIX}_model", threads=options.threads, metadata=metadata,
                                      save_with=partial(saving_cuda.save, code), pack=pack, facts_with=_facts_at, explain_with=explain)


def _facts_at(executable: CudaExecutable, shapes: Sequence[Sequence[int]]) -> Any:
    """What stands behind `executable.profile`: the program's launches at the sizes of a call."""
    return launches_at(executable.metadata, shapes).for_profile()


def explain(executable: CudaExecutable, values: Sequence[Any] = (), sizes: Mapping[str, int] | None = None, calls: int = 0) -> Any:
    """What stands behind `executable.explain`. There is no prediction: the rates of devices are not measured yet."""
    profile = executable.profile(*values, calls=calls) if calls else None
    return explanation_of(executable.metadata, values, sizes or {}, None, profile)


@collector_paused()
def build(graph: Graph, architectures: tuple[str, ...], options: Options,
          environment: Environment, cache: Cache | None) -> tuple[bytes, Any, str, dict[str, Any]]:
    """Object code, constants and their digest, and metadata of a verified graph."""
    architecture, *others = architectures
    backend = CudaBackend(architecture, tuple(others), cache)
    clock = Clock()
    dump_constants(environment, graph)
    optimized, report = run_passes(graph, options, backend.capabilities, environment)
    clock.lap("passes")
    program, statistics = lower_least(optimized, backend.capabilities, options)
    clock.lap("lower")
    dump_program(environment, backend.capabilities, program, statistics)
    check_memory(program)
    check_shared(program, architectures)
    digest = segment_digest(program) if program.constants_bytes else ""
    module = emitted(program, architecture)
    if environment.dump is not None:
        write_dump(environment.dump, f"{len(stage_names()) + 2:02d}_kernels.cu", module.source)
    clock.lap("emit")
    facts = ModelFacts(target=_target_text(architectures), version=__version__, constants_digest=digest)
    compiled = backend.compile_module(program, module, facts, PREFIX)
    clock.lap("code")
    constants = fill_segment(program)
    clock.lap("constants")
    stages = {stage.name: stage.seconds for stage in report.stages}
    metadata = {
        "name": program.name, "target": _target_text(architectures), "architecture": architecture, "features": [], "vector_bits": 128,
        "inputs": describe_tensors(program.inputs), "outputs": describe_tensors(program.outputs),
        "kernels": [kernel.name for kernel in program.kernels()], LAUNCHES: describe_launches(program),
        "constants_bytes": program.constants_bytes, "constants_digest": digest,
        "workspace": program.workspace_bytes if isinstance(program.workspace_bytes, int) else str(program.workspace_bytes),
        "workspace_lower_bound": statistics.arena_bound, "workspace_order_bound": statistics.order_bound, "compile_seconds": clock.total,
        "stages": {**stages, **{name: seconds for name, seconds in clock.seconds.items() if name != "passes"}},
        "sample_shapes": sample_shapes(graph), "tuned_tiles": 0,
    }
    return compiled.object_code, constants, digest, metadata


def check_shared(program: Program, architectures: Sequence[str]) -> None:
    """CompileError where a block of a kernel takes more shared memory than one of the architectures has."""
    for architecture in architectures:
        most = CudaBackend(architecture).capabilities.shared_bytes
        for kernel in program.kernels():
            if (needed := shared_bytes_of_block(kernel)) > most:
                raise CompileError(f"{program.name}: a block of kernel {kernel.name} needs {needed} bytes of shared memory, but one of "
                                   f"{architecture} has {most}", loc=kernel.loc, hint=f"compile for {architecture} alone")


def emitted(program: Program, architecture: str) -> CudaModule:
    """The source of a program's kernels, with what emission did not foresee reported as a fault of ours."""
    try:
        return emit_module(program, architecture)
    except TilewrightError:
        raise
    except Exception as error:
        raise internal("the cuda backend", program.name, error) from error


def source_of(graph: Graph, target: str, options: Options, environment: Environment) -> tuple[Program, CudaModule]:
    """The program of a graph and its source, compiled by nobody."""
    if not is_device(target):
        raise CompileError(f"{graph.name}: found the target {target}, expected cuda or cuda:sm_90 and its like")
    architecture = architectures_of(target)[0]
    backend = CudaBackend(architecture)
    verify(graph)
    optimized, _ = run_passes(graph, options, backend.capabilities, environment)
    program = lower_least(optimized, backend.capabilities, options)[0]
    return program, emitted(program, architecture)


def standalone_source(graph: Graph, target: str, options: Options, environment: Environment, data_name: str) -> Standalone:
    """A .cu file of the graph at sample sizes that checks itself against the interpreter, and the file of data beside it."""
    program, module = source_of(graph, target, options, environment)
    architecture = architectures_of(target)[0]
    meaning = graph
    if options.matmul_precision != MATMUL_PRECISIONS[0]:  # roundings are in the graph once operands are packed
        meaning = run_passes(graph, options, CudaBackend(architecture).capabilities, environment, until="fold_packed")[0]
    refused: TilewrightError | None = None
    for shapes in sample_shapes(graph):
        inputs = _sample_inputs(graph, shapes)
        try:
            sizes = bind_shapes(graph, inputs)
            outputs = [np.asarray(value) for value in evaluate_graph(meaning, inputs, sizes)]
        except TilewrightError as error:
            refused = refused or error
            continue
        return make_standalone(program, module, sizes, inputs, outputs, data_name, OLDEST if architecture == EMULATED else architecture)
    raise refused or CompileError(f"{graph.name}: found no sizes that it accepts", hint="bind them: --dims NAME=SIZE")


def _sample_inputs(graph: Graph, shapes: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
    """Normal floats, and integers 0 and 1, since they may be indices; the same each time."""
    rng = np.random.default_rng(0)
    return [(rng.normal(0, 1, shape) if param.dtype.is_float else rng.integers(0, 2, shape)).astype(param.dtype.numpy)
            for param, shape in zip(graph.params, shapes)]
