"""The driver: what a user compiles meets the front ends, the cache, the compiler and the runtime here, and only here.

`compile` takes a NumPy function, a graph, or the path of a model and gives something to call. On the way: verify, form
the key of everything that the code depends on, look into the cache, else build.

Guarantees: nothing of the compile half (`build.py`: passes, lowering, LLVM) is imported before something must be
compiled, nor onnx before a model file is read; compiling never fails because of the cache; a call of a compiled
function gives the plain function's result in its structure.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from blake3 import blake3
from msgspec.structs import replace

from .collector import collector_paused
from .compiled_function import CompiledFunction
from .frontends.from_numpy import Traced, trace_specs
from .ir.caps import TunedTile
from .ir.errors import ArgumentError, CompileError, UnsupportedError
from .ir.graph import Graph
from .ir.ops.control import Param
from .ir.types import TensorType
from .ir.verify import verify
from .machine import check_platform, llvm_version, machine_text
from .options import Environment, Options, read_environment
from .runtime import _native
from .runtime.cache import Cache, Key, source_digest, sources_changed
from .runtime.executable import Executable
from .targets import Scratchpad, is_scratchpad, parse_scratchpad
from .variants import Code, best_first, check_targets, labelled, split_targets

PathText = str | os.PathLike[str]
Source = Callable[..., Any] | Graph | PathText
Target = str | Scratchpad
INTERPRETERS = ("reference", "reference-loops")  # of graphs, of programs
BACKENDS = ("llvm", *INTERPRETERS)
SYMBOL = "tw_model"
DIGEST_THREADS = 2  # in a pool of its own, not the library's: that one would not survive a fork
RATES_VERSION = 1  # of how a machine is measured
INTERPRETED = {"cached": False, "target": "the interpreter", "workspace": 0, "compile_seconds": 0.0, "stages": {}}


def compile(
    source: Source,
    target: Target = "cpu",
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    options: Options | None = None,
    name: str | None = None,
) -> Any:
    """Compile a NumPy function, a graph, or a model file (.onnx, or .ir as text).

    With `args` (and `kwargs`) a function is traced once: `tw.spec(...)` among them are inputs, all else is constant; the
    result is an `Executable`. Without, the result is traced at the first call for each dtype and rank. `target`: "cpu"
    (this machine), "cpu:<name>", features added and removed by +name and -name; several, with commas between them, give the
    best variant that this machine can run, and are saved as one library; "cuda" (the GPU of this machine), "cuda:sm_90"; or
    `tw.targets.Scratchpad(bytes=...)`, a simulated accelerator. `name` renames the program.
    """
    check_platform()
    options = options or Options()
    if isinstance(source, Graph):
        _refuse_arguments("a graph", args, kwargs)
        return compile_graph(source, target, options, name=name)
    if isinstance(source, (str, os.PathLike)):
        _refuse_arguments("a model file", args, kwargs)
        return compile_file(source, target, options, name=name)
    if not callable(source):
        raise ArgumentError(f"compile: found a {type(source).__name__}, expected a function, a graph, or the path of a model",
                            hint="tw.compile(function), tw.compile(tw.from_onnx(path))")
    if args is None and kwargs is None:
        return CompiledFunction(source, partial(compile_graph, target=target, options=options), name)
    traced = trace_specs(source, _as_tuple(args), dict(kwargs or {}), name)
    return compile_graph(traced.graph, target, options, settle=traced.settle, pack=None if _is_plain(traced) else traced.pack)


@collector_paused()
def from_onnx(source: Any, dims: Mapping[str, Any] | None = None, outputs: Sequence[str] | None = None) -> Graph:
    """The model as a graph. `source`: a path, bytes, or a loaded model; `dims` binds symbolic dims by name, the others stay
    symbolic; `outputs` keeps only these. Needs the extra [onnx]."""
    graph: Graph = _onnx_front_end().from_onnx(source, dims, outputs)
    return graph


def load_model(path: PathText, dims: Mapping[str, Any] | None = None) -> Graph:
    """A graph from a file: ONNX, or the text of the IR (.ir)."""
    place = Path(path)
    if not place.is_file():
        raise CompileError(f"{place}: {'is a folder' if place.is_dir() else 'there is no such file'}, expected a model")
    if place.suffix == ".ir":
        if dims:
            raise ArgumentError(f"{place}: dims are bound while importing an ONNX model; a graph in text declares its own")
        graph: Graph = _text_front_end().load_text(place)
        return graph
    if place.suffix == ".onnx":
        return from_onnx(place, dims)
    raise CompileError(f"{place}: found the suffix {place.suffix!r}, expected .onnx or .ir")


def compile_file(path: PathText, target: Target, options: Options, *, dims: Mapping[str, Any] | None = None,
                 name: str | None = None) -> Any:
    """The executable of a model file. An ONNX file that was compiled before is found by its bytes, without reading it as a
    model; not one with constants in files beside it, whose bytes are not all."""
    if isinstance(target, Scratchpad) or is_scratchpad(target) or is_gpu(target):
        return compile_graph(load_model(path, dims), target, options, name=name)
    environment = read_environment()
    place = Path(path)
    plain = name is None and not (options.tune or options.tune_record) and len(split_targets(target)) == 1
    cache = open_cache(environment, options) if options.cache and plain else None  # the record of tuning is a part of the key
    digest = None
    if cache is not None and place.suffix == ".onnx" and environment.backend not in INTERPRETERS:
        digest = _file_digest(place)
    if cache is None or digest is None:
        return compile_graph(load_model(path, dims), target, options, name=name)
    bound = sorted((size, str(value)) for size, value in (dims or {}).items())
    subject = f"onnx {source_digest()} {digest} {bound}"
    fingerprint, _, title = (cache.recall(subject) or "").partition(" ")
    if fingerprint:
        key = key_of(title, fingerprint, target, options, cache)
        found = _find(cache, key, environment)
        if found is not None:
            return _executable((found,), options, None)
    graph = load_model(path, dims)
    executable = compile_graph(graph, target, options)
    if _is_whole(place, digest):
        cache.note(subject, f"{graph.fingerprint} {graph.name}")
    return executable


def _file_digest(place: Path) -> str | None:
    """None where the file cannot be read; reading it as a model says why."""
    try:
        return blake3(max_threads=DIGEST_THREADS).update_mmap(place).hexdigest() if place.is_file() else None
    except OSError:
        return None


def _is_whole(place: Path, digest: str) -> bool:
    """Whether the file is still the one that was compiled, and has no constants in other files (whose key is `location`)."""
    try:
        data = place.read_bytes()
    except OSError:
        return False
    return b"location" not in data and blake3(data).hexdigest() == digest


def compile_graph(graph: Graph, target: Target, options: Options, *, settle: Callable[[], Graph] | None = None, pack: Any = None,
                  name: str | None = None) -> Any:
    """The executable of a graph; for a target that this machine cannot run, what saves it. Of several targets it is the best
    that this machine can run. `settle` gives the graph to compile where this one only serves to look into the cache
    (`Traced.settle`)."""
    if name is not None:
        graph = Graph(name, graph.params, graph.results, graph.result_names)
    environment = read_environment()
    if environment.backend not in BACKENDS:
        raise CompileError(f"TILEWRIGHT_BACKEND={environment.backend!r} is not one of {', '.join(BACKENDS)}")
    if environment.backend in INTERPRETERS:
        graph = graph if settle is None else settle()
        verify(graph)
        model = compile_half().interpreted(graph, environment.backend, options, environment)
        return Executable(model, threads=options.threads, metadata=dict(INTERPRETED, backend=environment.backend),
                          save_with=_refuse_saving, pack=pack)
    if isinstance(target, Scratchpad) or is_scratchpad(target):
        scratchpad = target if isinstance(target, Scratchpad) else parse_scratchpad(target)
        return accelerator().compile_scheduled(graph if settle is None else settle(), scratchpad, options, environment, pack)
    cache = open_cache(environment, options) if options.cache else None
    if is_gpu(target):
        return gpu_compiler().compile_for_device(graph, target, options, environment, cache, pack, settle)
    targets = split_targets(target)
    if len(targets) == 1:
        return _executable((_code(graph, target, options, environment, cache, settle),), options, pack)
    if options.tune or options.tune_record:
        raise CompileError(f"{graph.name}: tune: found the targets {', '.join(targets)}, expected one: tiles are measured for one CPU",
                           hint="leave out tune, or compile for each target on its own")
    check_targets(targets, partial(resolved_text, cache=cache))
    graph = graph if settle is None else settle()
    codes = [labelled(_code(graph, one, options, _dumping_to(environment, one), cache), one) for one in targets]
    return _executable(best_first(codes), options, pack)


def _dumping_to(environment: Environment, target: str) -> Environment:
    """With a folder for the target inside the one for dumps."""
    folder = None if environment.dump is None else environment.dump / re.sub(r"[^\w.+-]", "_", target)
    return replace(environment, dump=folder)


def _code(graph: Graph, target: str, options: Options, environment: Environment, cache: Cache | None,
          settle: Callable[[], Graph] | None = None) -> Code:
    """A graph's code for one target, from the cache or built."""
    tuned: tuple[TunedTile, ...] = ()
    if options.tune or options.tune_record:
        graph, settle = graph if settle is None else settle(), None
        tuned = _tuned(graph, target, options).tiles()
    key = key_of(graph.name, graph.fingerprint, target, options, cache, tuned) if cache is not None else None
    if cache is not None and key is not None:
        found = _find(cache, key, environment)
        if found is not None:
            return found
    settled = graph if settle is None else settle()
    if settled is not graph:
        return _code(settled, target, options, environment, cache)
    _refuse_index(graph)
    verify(graph)  # a graph that was found above was verified when it was compiled: its key is the digest of all it says
    built = compile_half().build(graph, target, options, environment, tuned)
    if cache is not None and key is not None and not sources_changed():
        cache.store(compile_half().add_facts(key, graph), built.object_code, built.constants, built.constants_digest, built.metadata)
    return Code(built.object_code, built.constants, {**built.metadata, "cached": False})


def _find(cache: Cache, key: Key, environment: Environment) -> Code | None:
    """The code from the cache, or None; whoever asks for dumps or checks wants the passes to run."""
    if environment.dump is not None or environment.verify:
        return None
    entry = cache.find(key)
    if entry is None:
        return None
    return Code(entry.object_code, entry.constants, {**entry.metadata, "cached": True})


def _tuned(graph: Graph, target: str, options: Options) -> Any:
    """The tuning record to compile with: the one of the file, or of the cache, with what `options.tune` seconds add to it."""
    verify(graph)
    tuning = _tuning()
    place = Path(options.tune_record) if options.tune_record else None
    cache = open_cache(read_environment(), options)
    subject = f"tuning\n{source_digest()}\n{resolved_text(target, cache)}\n{machine_text()}"
    if place is not None:
        record = tuning.empty_record(target) if options.tune and not place.exists() else tuning.load_record(place, target)
    else:
        text = cache.recall(subject) if cache is not None else None
        record = tuning.empty_record(target) if text is None else tuning.read_record(text, target, "the cache")
    if not options.tune:
        return record
    if not resolved_text(target, cache).startswith("host "):
        raise CompileError(f"{graph.name}: tune: this machine does not run code for {target}",
                           hint="tune on such a machine, and compile with its record: tune_record=FILE")
    found = tuning.tune(graph, target, options, options.tune, record)
    if found == record:
        return record
    if place is not None:
        tuning.save_record(found, place)
    elif cache is not None:
        cache.note(subject, found.text())
    return found


def _refuse_index(graph: Graph) -> None:
    """Callers have no arrays of `index`, which is a dtype of programs."""
    for what, name, node in (*(("input", p.op.label, p) for p in graph.params if isinstance(p.op, Param)),
                             *(("output", name, node) for name, node in zip(graph.result_names, graph.results))):
        if isinstance(node.type, TensorType) and node.type.dtype.kind == "x":
            raise CompileError(f"{graph.name}: {what} '{name}' is {node.type}; index is a dtype within programs only", hint="use i64")


def _executable(codes: tuple[Code, ...], options: Options, pack: Any) -> Any:
    """Loads the first object code that this machine can run; what it cannot run can still be saved."""
    code = next(filter(_runs_here, codes), None)
    metadata = (code or codes[0]).metadata
    if len(codes) > 1:
        metadata = {**metadata, "variants": [one.metadata["target"] for one in codes],
                    "cached": all(one.metadata["cached"] for one in codes),
                    "compile_seconds": sum(one.metadata["compile_seconds"] for one in codes if not one.metadata["cached"])}
    if code is None:
        return _saving().ForeignExecutable(codes, metadata, explain)
    return Executable.from_object(code.object_code, code.constants, symbol=SYMBOL, threads=options.threads, metadata=metadata,
                                  save_with=partial(_save, codes), pack=pack, facts_with=_facts_at, explain_with=explain)


def _runs_here(code: Code) -> bool:
    return code.metadata["architecture"] == os.uname().machine and _native.missing_feature(",".join(code.metadata["features"])) is None


def _facts_at(executable: Executable, shapes: Sequence[Sequence[int]]) -> Any:
    """What stands behind `executable.profile`: the program's launches at the sizes of a call."""
    return _explaining().launches_at(executable.metadata, shapes).for_profile()


def explain(executable: Any, values: Sequence[Any] = (), sizes: Mapping[str, int] | None = None, calls: int = 0) -> Any:
    """What stands behind `executable.explain`; also for what was compiled for another machine, which has no prediction."""
    profile = executable.profile(*values, calls=calls) if calls else None
    runs_here = isinstance(executable, Executable)
    rates = machine_rates(executable.threads) if runs_here else None
    return _explaining().explanation_of(executable.metadata, values, sizes or {}, rates, profile)


def floats_of_quantized(graph: Graph, target: str, options: Options) -> list[tuple[str, str]]:
    """Contractions that a graph, as imported, has quantized and that are computed in floats: where they come from, and why."""
    found = compile_half().floats_of_quantized(graph, split_targets(target)[0], options)
    return [(str(loc), reason) for loc, reason in found]


def machine_rates(threads: int, anew: bool = False) -> Any:
    """What this machine can do at most; measured once, `anew` where asked for, and kept in the cache."""
    cache = open_cache(read_environment(), Options())
    subject = f"rates {RATES_VERSION}\n{threads} threads\n{machine_text()}"
    text = cache.recall(subject) if cache is not None and not anew else None
    if text is not None:
        return _explaining().rates_from(text)
    rates = _calibration().measure_rates(threads)
    if cache is not None:
        cache.note(subject, _explaining().rates_text(rates))
    return rates


def _save(codes: tuple[Code, ...], executable: Executable, path: str, **options: Any) -> Any:
    """What stands behind `executable.save`, which is one of the codes loaded."""
    return _saving().save(codes, path, runner=executable, **options)


def _refuse_saving(executable: Executable, path: str, **options: Any) -> Any:
    del path, options
    raise UnsupportedError(f"{executable.name}: cannot be saved: it is interpreted, so there is no code",
                           hint="unset TILEWRIGHT_BACKEND and compile again")


def _is_plain(traced: Traced) -> bool:
    """Whether the function returns what an executable gives anyway: one array, or a tuple of several."""
    result = traced.result
    return result.kind == "leaf" or (result.kind == "tuple" and len(result.children) > 1
                                     and all(child.kind == "leaf" for child in result.children))


# --- cache -----------------------------------------------------------------------------------------------------------


def open_cache(environment: Environment, options: Options) -> Cache | None:
    """The cache on disk, or None where it is turned off."""
    if environment.cache_directory is None:
        return None
    return Cache(environment.cache_directory, limit=options.cache_bytes, report=partial(_report, environment.debug))


def _report(debug: int, message: str) -> None:
    if debug >= 1:
        print(f"tilewright: {message}", file=sys.stderr)


def key_of(name: str, fingerprint: str, target: str, options: Options, cache: Cache | None,
           tuned: tuple[TunedTile, ...] = ()) -> Key:
    """Everything that the code of a graph depends on, without the facts that explain a miss: they take longer than a hit."""
    return Key(name, (
        *((("tuning", blake3(repr(tuned).encode()).hexdigest()),) if tuned else ()),
        ("source", source_digest()),
        ("llvm", llvm_version()),
        ("options", options.code_key()),
        ("target", resolved_text(target, cache)),
        ("graph", fingerprint),
    ))


def resolved_text(target: str, cache: Cache | None) -> str:
    """The target with its features spelled out. LLVM knows this machine's; what it said is noted in the cache, so that a
    hit needs no LLVM."""
    return _resolved_text(target, machine_text(), llvm_version(), cache)


@lru_cache(maxsize=64)
def _resolved_text(target: str, machine: str, llvm: str, cache: Cache | None) -> str:
    subject = "\n".join(["target", target, source_digest(), llvm, machine])
    text = cache.recall(subject) if cache is not None else None
    if text is None:
        text = compile_half().target_text(target)
        if cache is not None:
            cache.note(subject, text)
    return text


# --- late imports ----------------------------------------------------------------------------------------------------


def compile_half() -> ModuleType:
    """Passes, lowering and LLVM: imported only when something is compiled."""
    from . import build

    return build


def is_gpu(target: object) -> bool:
    """Whether a target is a GPU, of which nothing is imported unless it is."""
    return isinstance(target, str) and target.partition(":")[0] == "cuda"


def gpu_compiler() -> ModuleType:
    """CUDA source and its compilers: imported only for a target that is a GPU."""
    from .gpu import compiling

    return compiling


def accelerator() -> ModuleType:
    """Schedules and the simulator: imported only for a target with a scratchpad."""
    from .accelerator import compiling

    return compiling


def _saving() -> ModuleType:
    """Headers, linking and the like: imported only when something is saved."""
    from . import saving

    return saving


def _explaining() -> ModuleType:
    """Reports: imported only when somebody asks."""
    from . import explaining

    return explaining


def _calibration() -> ModuleType:
    """Compiles and measures: for reports only, and once a machine."""
    from . import calibration

    return calibration


def _tuning() -> ModuleType:
    """Compiles and measures: only where that is asked for."""
    from . import tuning

    return tuning


def _text_front_end() -> ModuleType:
    """The parser of the IR's text: imported only when a file of it is read."""
    from .ir import parser

    return parser


def _onnx_front_end() -> ModuleType:
    try:
        from .frontends import from_onnx as front_end
    except ModuleNotFoundError as error:
        if error.name != "onnx" and not str(error.name).startswith(("onnx.", "google")):
            raise
        raise UnsupportedError(f"reading an ONNX model needs the package {error.name}, which is not installed",
                               hint="pip install tilewright[onnx]") from None
    return front_end


def _refuse_arguments(what: str, args: object, kwargs: object) -> None:
    if args is not None or kwargs is not None:
        raise ArgumentError(f"compile: args and kwargs describe the arguments of a function; {what} declares its own inputs")


def _as_tuple(args: Sequence[Any] | None) -> tuple[Any, ...]:
    if args is None:
        return ()
    if not isinstance(args, (tuple, list)):
        raise ArgumentError(f"compile: args must be a tuple of arguments, found a {type(args).__name__}",
                            hint="args=(x,) for one argument")
    return tuple(args)
