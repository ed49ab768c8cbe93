"""Graphs as a subject of fuzzing: a case is a graph, a sequence of passes, and what decides its inputs and target.

The check follows the program through the compiler and names the first stage that breaks a promise:

1. every step of the sequence: no crash, a graph that verifies, the same results as the graph that was given (`shadow.py`
   says how far apart legal results may lie), and nothing left to do for an idempotent pass;
2. with `native`, what the pipeline still does until the graph can be lowered, in the same way; lowering, by the loop
   interpreter with its checks of bounds, races and uninitialised memory; machine code, on one and two threads to the same
   bits; the same bytes when compiled again; the same code with inputs of every kind, and other sizes where they are symbolic. Code for
   CPUs that are not here is made and not run.
   For a GPU, where machine code is CUDA source that is emulated, kernels take no more shared memory than a block has.

What a program does with inputs that it refuses (an index out of range) is not compared.
"""

from __future__ import annotations

import base64
import io
import re
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any
from zipfile import BadZipFile

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.errors import CompileError, InternalError, RuntimeFailure, TilewrightError, UnsupportedError, VerifyError
from ..ir.graph import Constant, Graph, Node
from ..ir.interp import evaluate_graph
from ..ir.loop_gpu import shared_bytes_of_block
from ..ir.loop_interp import run_program
from ..ir.parser import parse
from ..ir.printer import constants_of, format_graph
from ..ir.program import Program
from ..ir.types import dtype_of
from ..ir.verify import verify
from . import native as machine
from .calls import check_calls, reversed_inputs
from .cuts import pieces
from .failing import must_fail
from .families import SCALAR, grown_graph, new_graph, seed_graphs
from .generate_blocks import table_graph
from .generate_functions import function_seeds
from .input_kinds import INPUT_KINDS, inputs_of_kind, random_kind
from .keys import check_bounds, check_keys, check_options
from .memory_plan import bindings_of, check_plan
from .mutate import MUTATORS, mutate
from .rebuild import MOST_WORK, work_of
from .sequences import (
    Step,
    Steps,
    completed,
    contract_of,
    format_steps,
    is_idempotent,
    legal,
    mutate_steps,
    options_of,
    parse_steps,
    random_steps,
    run_step,
    with_tiles,
)
from .shadow import Shadow, compare, shadow
from .simplify import simpler
from .subject import Failure, Refused, Verdict

PIECES = 100  # of a model
TABLE_SEEDS, TABLE_SHARE = 8, 0.01  # graphs of large tables, and their share of new ones
TF32_SHARE = 0.3  # of cases for GPUs
# the default does all that the others do but keep the signs of zeros, NaN and infinities
PRECISION_SHARES = {"default": 0.45, "plain": 0.15, "strict": 0.4}
PLAN_SIZES = 3  # that a memory plan is checked at
TEXT_EVERY, TWICE_EVERY, SAME_CODE_EVERY, KEYS_EVERY, OPTIONS_EVERY = 8, 3, 16, 16, 4  # seeds by which a costly promise is checked: of
# the listed seeds, which are odd multiples of the first, all have their text read, half other options, an eighth other keys
LOWERED_EVERY = 3  # seeds by which programs that do not become machine code are lowered
DAMAGED = (BadZipFile, zlib.error, EOFError, OSError, RuntimeError, SyntaxError)  # what zipfile and NumPy raise on bad archives
_FIELD = re.compile(r"# (\w+): ?(.*)")
_PLACE = re.compile(r"tilewright[/\\](.+\.py)$")


class GraphCase(Struct, frozen=True):
    """A graph, what is done to it, and what decides its inputs (`seed`, `inputs`: one of `INPUT_KINDS`) and code (`target`,
    `small_caches`, `tf32`: whether products of float32 may round their operands to that)."""

    graph: Graph
    steps: Steps = ()
    precision: str = "default"
    target: str = "cpu"
    small_caches: bool = False
    seed: int = 0
    inputs: str = "plain"
    tf32: bool = False

    @property
    def is_lowered(self) -> bool:
        """Whether its kernels are checked even where it does not become machine code."""
        return self.seed % LOWERED_EVERY == 2


class GraphSubject:
    """Graphs on CPUs: see `Subject`."""

    name = "graph"
    share = 6
    fresh = 0.4  # the families are dense in what goes wrong, mutants in what has not been reached
    seeds_as = "code"
    targets: tuple[str, ...] = (*2 * machine.TARGETS, *machine.OTHER_CPUS)
    oldest: tuple[str, ...] = machine.TARGETS[-1:]  # for which scalar functions are seeds once more: it has no vectors for many

    def __init__(self, models: Sequence[Graph] = ()) -> None:
        """`models`: graphs whose pieces are seeds too."""
        self.models = tuple(models)

    def seeds(self, domain: bool = True) -> Iterator[GraphCase]:
        """Every sample of every op, what the families begin with, and pieces of the models. The seed of each is one that has its text
        read back, and that of every third has its program lowered."""
        for number, graph in enumerate(seed_graphs(domain)):
            yield GraphCase(graph, legal(tuple(completed(()))), seed=TEXT_EVERY * (2 * number + 1),
                            inputs="special" if graph.name in SCALAR else "plain")
        for target in self.oldest:
            for number, graph in enumerate(function_seeds()):
                yield GraphCase(graph, legal(tuple(completed(()))), target=target, seed=TEXT_EVERY * (2 * number + 1), inputs="special")
        for number in range(TABLE_SEEDS if domain else 0):
            yield GraphCase(table_graph(np.random.default_rng(number)), legal(tuple(completed(()))), seed=TEXT_EVERY * (2 * number + 1))
        for model in self.models:
            for number, piece in enumerate(pieces(model, np.random.default_rng(0), PIECES)):
                yield GraphCase(piece, legal(tuple(completed(()))), seed=number)

    def generate(self, rng: np.random.Generator, domain: bool = True) -> GraphCase:
        graph = grown_graph(rng) if not domain else table_graph(rng) if rng.random() < TABLE_SHARE else new_graph(rng)
        return self.around(graph, random_steps(rng), rng)

    def around(self, graph: Graph, steps: Steps, rng: np.random.Generator) -> GraphCase:
        """A case with everything else drawn anew."""
        case = GraphCase(graph, steps, str(rng.choice(list(PRECISION_SHARES), p=list(PRECISION_SHARES.values()))),
                         self.targets[int(rng.integers(len(self.targets)))], bool(rng.random() < 0.4),
                         int(rng.integers(1 << 16)), random_kind(rng))
        return replace(case, tf32=bool(rng.random() < TF32_SHARE)) if case.target in machine.DEVICE_TARGETS else case

    def mutators(self) -> tuple[str, ...]:
        return tuple(MUTATORS)

    def mutate_program(self, case: GraphCase, rng: np.random.Generator, donor: GraphCase | None,
                       allowed: frozenset[str]) -> tuple[GraphCase, str] | None:
        made = mutate(case.graph, rng, None if donor is None else donor.graph, allowed)
        return None if made is None else (self.around(made[0], case.steps, rng), made[1])

    def mutate_passes(self, case: GraphCase, rng: np.random.Generator, donor: GraphCase | None) -> tuple[GraphCase, str]:
        steps, kind = mutate_steps(case.steps, rng, () if donor is None else donor.steps)
        return self.around(case.graph, steps, rng), kind

    def with_pipeline(self, case: GraphCase) -> GraphCase:
        return replace(case, steps=legal(tuple(completed(()))))

    def with_random_passes(self, case: GraphCase, rng: np.random.Generator) -> GraphCase:
        return replace(case, steps=random_steps(rng))

    def without_passes(self, case: GraphCase, changed: tuple[str, ...]) -> GraphCase:
        return replace(case, steps=legal([step for step in case.steps if step.name in changed]))

    def check(self, case: GraphCase, native: bool) -> Verdict:
        with np.errstate(all="ignore"):
            try:
                return _Check(case).run(native)
            except _MustFail as expected:
                _FailingCheck(case).run(native)
                raise Refused(str(expected)) from None  # nothing behind its failure was seen: no program to mutate

    def smaller(self, case: GraphCase) -> Iterator[GraphCase]:
        if case.steps:
            yield replace(case, steps=())
        for number in range(len(case.steps)):
            yield replace(case, steps=legal([*case.steps[:number], *case.steps[number + 1:]]))
        for graph in simpler(case.graph):
            yield replace(case, graph=graph)
        for change in ({"inputs": "plain"}, {"seed": 0}, {"small_caches": False}, {"target": self.targets[0]}, {"precision": "default"},
                       {"tf32": False}):
            if any(getattr(case, name) != value for name, value in change.items()):
                yield replace(case, **change)

    def size(self, case: GraphCase) -> int:
        return len(case.graph.nodes()) + len(case.steps)

    def format(self, case: GraphCase) -> str:
        lines = [f"# passes: {format_steps(case.steps)}", f"# precision: {case.precision}", f"# target: {case.target}",
                 f"# caches: {'small' if case.small_caches else 'real'}", f"# seed: {case.seed}",
                 f"# inputs: {case.inputs}", *["# products: tf32"] * case.tf32]
        constants = constants_of(case.graph)
        if constants:
            packed = io.BytesIO()
            arrays: dict[str, Any] = {f"{name}_{c.dtype}": c.array.view(np.uint16) if c.dtype.name == "bf16" else c.array
                                      for name, c in constants.items()}
            np.savez_compressed(packed, **arrays)
            lines.append(f"# constants: {base64.b64encode(packed.getvalue()).decode()}")
        return "\n".join(lines) + "\n" + format_graph(case.graph)

    def parse(self, text: str) -> GraphCase:
        fields: dict[str, str] = {found.group(1): found.group(2) for found in map(_FIELD.match, text.splitlines()) if found}
        try:
            graph = parse(text, _read_constants(fields.get("constants", "")))
            verify(graph)
            return GraphCase(graph, legal(parse_steps(fields["passes"])), fields["precision"], fields["target"],
                             fields["caches"] == "small", int(fields["seed"]), _known_kind(fields["inputs"]),
                             fields.get("products") == "tf32")
        except (KeyError, ValueError) as error:
            raise CompileError(f"the header of a case is damaged: {type(error).__name__}: {error}") from None


def _known_kind(name: str) -> str:
    if name not in INPUT_KINDS:
        raise ValueError(f"inputs {name!r} are none of {', '.join(INPUT_KINDS)}")
    return name


def _read_constants(text: str) -> dict[str, Constant]:
    if not text:
        return {}
    try:
        with np.load(io.BytesIO(base64.b64decode(text, validate=True))) as stored:
            arrays = {entry: stored[entry] for entry in stored.files}
    except DAMAGED as error:
        raise ValueError(f"the constants cannot be unpacked: {error}") from None
    found = {}
    for entry, array in arrays.items():
        name, _, spelling = entry.rpartition("_")
        dtype = dtype_of(spelling)
        found[name] = Constant(array.view(dtype.numpy) if dtype.name == "bf16" else array, dtype)
    return found


# --- the check ---------------------------------------------------------------------------------------------------------


@contextmanager
def guarded(stage: str) -> Iterator[None]:
    """Errors of a stage as what they are to a fuzzer: what is not supported is refused; all else is a crash."""
    try:
        yield
    except (Failure, Refused):
        raise
    except UnsupportedError as error:
        raise Refused(f"{stage}: {error.message}") from None
    except MemoryError as error:
        raise Failure("memory", stage, str(error) or "out of memory") from error
    except VerifyError as error:
        raise Failure("verifier", stage, error.message) from error
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InternalError) and error.__cause__ else error
        raise Failure("crash", stage, f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''} "
                                      f"({_place_of(cause)})") from error


def _place_of(error: BaseException) -> str:
    """The innermost of our own functions that the error went through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        found = _PLACE.search(frame.filename) or re.search(r"((?:compiler|ir|backends|runtime|fuzz)/.+\.py)$", frame.filename)
        if found:
            return f"{found.group(1)}: {frame.name}"
    return "unknown place"


def signs_differ(expected: Shadow, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> str:
    """Which zero has another sign, among elements that rounding does not touch; '' where none has. (Zeros without a sign of
    their own are what `expected` allows under most precisions, because some rules do; an exact pass may not. What NumPy makes of zeros
    of both signs in `fmin` and its like hangs on strides and places of the operands.)"""
    for name, known, x, y in zip(expected.names, expected.results, before, after, strict=True):
        if not known.is_float or known.tied:
            continue
        wrong = (x == 0) & (y == 0) & (np.signbit(x) != np.signbit(y)) & (True if known.bound is None else known.bound == 0)
        if wrong.any():
            return f"the sign of a zero of result {name} changed at {[int(i) for i in np.argwhere(wrong)[0]]}"
    return ""


class _Check:
    """One run of all oracles."""

    def __init__(self, case: GraphCase, caps: Caps | None = None) -> None:
        """`caps`: the target with the tiles that the steps choose, where that is known."""
        self.case = case
        with guarded("tiles"):
            self.caps = caps or with_tiles(case.steps, case.graph, case.precision, machine.caps_of(case.target, case.small_caches))
        self.rng = np.random.default_rng([case.seed, 1])
        self.inputs = inputs_of_kind(case.graph, np.random.default_rng(case.seed), case.inputs)
        self.expected = self.meaning()
        self.changed: list[str] = []
        self.open = ExitStack()  # what must be given back
        self.verified: dict[int, Node] = {}
        self.last: Sequence[np.ndarray] = self.expected.values  # what the program gave after the step before

    def meaning(self) -> Shadow:
        """What the graph gives for its inputs, with bounds. Refused where the program refuses them."""
        with guarded("interpreter"):
            try:
                return shadow(self.case.graph, self.inputs, precision=self.case.precision, tf32=self.case.tf32)
            except TilewrightError as error:
                if isinstance(error, InternalError):
                    raise
                kind = _MustFail if must_fail(self.case.graph, self.inputs, self.case.precision, self.case.tf32) else Refused
                raise kind(f"the program refuses its inputs: {error.message}") from None

    def run(self, native: bool, more_inputs: bool = True) -> Verdict:
        if self.case.seed % TEXT_EVERY == 0:
            self.text()
        options = options_of(self.case.precision, self.case.tf32)
        with guarded("cache"):
            check_bounds(self.case.graph, options, self.case.target, self.caps, self.rng)
        if self.case.seed // TEXT_EVERY % OPTIONS_EVERY == 1:
            with guarded("cache"):
                check_options(self.case.graph, options, self.case.target, self.caps, self.rng)
        if self.case.seed // TEXT_EVERY % KEYS_EVERY == 3:
            with guarded("cache"):
                check_keys(self.case.graph, self.case.precision, self.case.target, self.caps, self.rng)
        graph = self.case.graph
        for step in self.case.steps:
            graph = self.step(step, graph)
        if native:
            for step in completed(self.case.steps):
                graph = self.step(step, graph)
            with ExitStack() as self.open:
                code = self.lower(graph)
                if more_inputs and code is not None:
                    self.run_with_more_inputs(code)
        elif self.case.is_lowered:
            for step in completed(self.case.steps):
                graph = self.step(step, graph)
            program = self.interpret(graph)
            if self.caps.is_gpu:
                with guarded("cuda"):
                    machine.source(program, self.case.target)
        return Verdict(tuple(self.changed), native)

    def text(self) -> None:
        """Printing and parsing are inverse."""
        graph = self.case.graph
        with guarded("printer"):
            text = format_graph(graph)
        with guarded("parser"):
            again = parse(text, graph)
        if again.fingerprint != graph.fingerprint or format_graph(again) != text:
            raise Failure("text", "printer", "the text of the graph reads back as another graph")

    def step(self, step: Step, graph: Graph) -> Graph:
        name = step.name.split(":")[0]
        with guarded(step.name):
            after = run_step(step, graph, self.case.precision, self.caps, self.case.tf32)
        if after is graph:
            return graph
        self.changed.append(step.name)
        with guarded(step.name):
            verify(after, known=self.verified)
        self.same(step, after)
        if self.case.seed % TWICE_EVERY == 0 and is_idempotent(step):
            with guarded(name):
                again = run_step(step, after, self.case.precision, self.caps, self.case.tf32)
            if again.fingerprint != after.fingerprint:
                raise Failure("unstable", step.name, "a second run of the pass changes what it left")
        return after

    def same(self, step: Step, graph: Graph) -> None:
        with guarded(step.name):
            found = self.evaluated(lambda: evaluate_graph(graph, self.inputs))
        self.compare("result", step.name, found)
        if contract_of(step) == "exact":
            problem = signs_differ(self.expected, self.last, found)
            if problem and "copysign" not in format_graph(self.case.graph):  # it makes the sign of a NaN seen, which nothing promises
                raise Failure("result", step.name, f"the pass is declared exact, but {problem}")
        self.last = found

    def evaluated(self, run: Callable[[], Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
        """The results; Refused where they fail because rounding turned a decision that the program fails by."""
        try:
            return run()
        except TilewrightError as error:
            if self.expected.may_fail and not isinstance(error, InternalError):
                raise Refused(f"rounding decides whether the program fails: {error.message}") from None
            raise

    def compare(self, kind: str, stage: str, found: Sequence[np.ndarray]) -> None:
        problem = compare(self.expected, found)
        if problem is not None:
            raise Failure(kind, stage, problem)

    def interpret(self, graph: Graph) -> Program:
        """The kernels of a graph, by the loop interpreter: half of what is done to a program, for a fifth of the time."""
        with guarded("lower"):
            program = machine.lowered(graph, self.caps)
        self.check_shared(program)
        with guarded("memory plan"):
            check_plan(program, list(bindings_of(program, self.rng, PLAN_SIZES)))
        if work_of(self.case.graph.nodes()) <= MOST_WORK:
            with guarded("lower"):
                results = self.evaluated(lambda: run_program(program, self.inputs, threads=self.threads))
            self.compare("result", "lower", results)
        return program

    @property
    def threads(self) -> int:
        """Of the loop interpreter. A GPU's are within a kernel."""
        return 1 if self.caps.is_gpu else 2

    def check_shared(self, program: Program) -> None:
        """Lowering keeps to the shared memory that a block has."""
        for kernel in program.kernels() if self.caps.is_gpu else ():
            if (needed := shared_bytes_of_block(kernel)) > self.caps.shared_bytes:
                raise Failure("memory plan", "lower", f"a block of kernel {kernel.name} needs {needed} bytes of shared memory, at most "
                                                      f"{self.caps.shared_bytes} are there")

    def lower(self, graph: Graph) -> machine.Code | None:
        """The kernels, and their machine code in every way that it can be called; none where it runs elsewhere."""
        program = self.interpret(graph)
        code = self.code(program)
        if not machine.runs_here(self.case.target):
            return None
        results = self.execute(code)
        if isinstance(code, machine.HostCode) and code.executable is not None:
            with guarded("runtime"):
                check_calls(code.executable, self.inputs, results, self.rng, reversed_inputs(program, self.inputs))
        return code

    def code(self, program: Program) -> machine.Code:
        case = self.case
        stage = machine.stage_of(case.target)
        with guarded(stage):
            code = machine.made(program, case.target, case.seed)
        if case.seed % SAME_CODE_EVERY == 0:
            with guarded(stage):
                again = machine.made(machine.lowered(self.finished(), self.caps), case.target, case.seed)
            if again.text != code.text:
                raise Failure("bytes", stage, "compiling the same program twice gives other code")
        if machine.runs_here(case.target):
            with guarded(stage):
                code.load()
            self.open.callback(code.unload)
        return code

    def execute(self, code: machine.Code) -> Sequence[np.ndarray]:
        """The results of machine code, which are what the graph gives, to the same bits on one thread and on two."""
        first, *others = code.threads
        with guarded(code.runs_in):
            one = self.evaluated(lambda: code.run(self.inputs, first))
        self.compare("result", code.stage, one)
        for threads in others:
            with guarded(code.runs_in):
                many = self.evaluated(partial(code.run, self.inputs, threads))
            for number, (x, y) in enumerate(zip(one, many, strict=True)):
                if x.tobytes() != y.tobytes():
                    raise Failure("threads", code.stage, f"result {number} has other bits on {threads} threads than on one")
        return one

    def run_with_more_inputs(self, code: machine.Code) -> None:
        """The same machine code with inputs of each kind in turn. Where it fails, the program is followed from the beginning
        with these inputs, which names the stage that is to blame."""
        for number in range(1, code.more_inputs + 1):
            other = replace(self.case, seed=self.case.seed + number, inputs=INPUT_KINDS[number % len(INPUT_KINDS)])
            try:
                _Check(other, self.caps).execute(code)
            except Refused:
                continue
            except Failure:
                with suppress(Refused):  # then machine code is to blame, as far as can be said
                    _Check(other, self.caps).run(native=True, more_inputs=False)
                raise

    def finished(self) -> Graph:
        """The graph after all passes, made anew."""
        graph = self.case.graph
        for step in (*self.case.steps, *completed(self.case.steps)):
            graph = run_step(step, graph, self.case.precision, self.caps, self.case.tf32)
        return graph


class _MustFail(Refused):
    """The program refuses its inputs, and must do so after every pass."""


class _FailingCheck(_Check):
    """The oracles for a program that must fail."""

    def meaning(self) -> Shadow:
        return Shadow((), (), may_fail=False)

    def same(self, step: Step, graph: Graph) -> None:
        self.refused(step.name, lambda: evaluate_graph(graph, self.inputs))

    def refused(self, stage: str, run: Callable[[], object]) -> None:
        with guarded(stage):
            try:
                run()
            except RuntimeFailure:
                return
        raise Failure("result", stage, "the program gives results where an index is out of range")

    def interpret(self, graph: Graph) -> Program:
        with guarded("lower"):
            program = machine.lowered(graph, self.caps)
        self.refused("lower", lambda: run_program(program, self.inputs, threads=self.threads))
        return program

    def lower(self, graph: Graph) -> machine.Code | None:
        code = self.code(self.interpret(graph))
        if not machine.runs_here(self.case.target):
            return None
        self.refused(code.runs_in, lambda: code.run(self.inputs, code.threads[-1]))
        return code
