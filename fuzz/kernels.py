"""Kernels of the loop IR as a subject of fuzzing: a kernel, a schedule for it, the sizes and the seed of its inputs.

`check` holds the verifier, the printer and the parser, the loop interpreter, each primitive of schedules and the LLVM
backend to their promises (`kernel_oracles.py`). A case as text is the kernel's text after lines that begin with `# `.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import evaluate
from ..ir.errors import CompileError, ParseError, TilewrightError
from ..ir.graph import Graph
from ..ir.loop import Alloc, For, Kernel, Stmt, blocks_of
from ..ir.loop_parser import parse_kernel
from ..ir.loop_text import format_kernel
from ..ir.loop_verify import verify_kernel
from ..ir.ops.table import ALL_OPS
from ..ir.schedule import Schedule, Step, parse_schedule
from ..lowering.lower import lower_program
from ..options import Environment, Options
from ..pipeline import run_passes
from .generate import random_graph, sample_graph
from .generate_kernels import random_kernel
from .generate_nests import random_nest
from .kernel_drafts import Draft
from .kernel_edits import largest_allocation, rebuilt, statements_in, with_fuel, work_of
from .kernel_native import Run, check_device, check_native
from .kernel_oracles import (
    apply_step,
    arguments_of,
    check_schedule_text,
    check_step,
    check_text,
    check_whole_schedule,
    crashed,
    first_run,
)
from .kernel_schedules import changed_schedule, drawn_schedule, scheduled
from .kernel_values import Values
from .mutate_kernels import MUTATORS, mutated
from .reduce_kernels import smaller_kernels
from .subject import Refused, Verdict

MOST_WORK = 3000        # statements run, about
MOST_SCHEDULED_WORK = 4 * MOST_WORK  # after a step: a stage within loops copies its part again and again
MOST_STATEMENTS = 60
MOST_ELEMENTS = 4096    # of one buffer
SEED_GRAPHS = 24
SEED_CAPS = (Caps(vector_bits=128, vector_registers=16), Caps(vector_bits=256, vector_registers=16))
QUIET = Environment(debug=0, dump=None, verify=0, backend="", cache_directory=None)
MORE_RUNS = 4           # of machine code, with other inputs
DEVICE_EVERY = 16       # seeds by which kernels are emulated as a GPU's, which takes as long as ten are compiled
NESTS = 0.6             # share of the new kernels that are small nests, made for schedules
SCHEDULED = 0.7         # share of the other new kernels that begin with a schedule
UNBOUNDED = 7           # sizes of symbols without an upper bound end here


class KernelCase(Struct, frozen=True, eq=False):
    """`sizes`: of each symbol; `seed` and `special`: of the inputs (`special`: with NaN, infinities and -0.0)."""

    kernel: Kernel
    schedule: Schedule = ()
    seed: int = 0
    sizes: tuple[tuple[str, int], ...] = ()
    special: bool = False

    def binding(self) -> dict[str, int]:
        return dict(self.sizes)


class KernelSubject:
    """Implements `Subject`."""

    name = "kernel"
    share = 8   # they take a sixth of the time of a graph
    fresh = 0.6
    seeds_as = "passes"  # most are what graphs that are seeds are lowered to

    # --- cases ---

    def seeds(self, domain: bool = True) -> Iterator[KernelCase]:
        """The kernels that the ops' samples and some random graphs are lowered to, one of each form; also without what lowering
        has scheduled, so that there is something to schedule."""
        known: set[str] = set()
        rng = np.random.default_rng(0)
        for number, graph in enumerate(_seed_graphs()):
            caps = SEED_CAPS[number % len(SEED_CAPS)]
            try:
                kernels = lower_program(run_passes(graph, Options(), caps, QUIET)[0], caps)[0].kernels()
            except TilewrightError:
                continue  # what graphs do wrong is found by fuzzing graphs
            for kernel in kernels:
                for bare, version in enumerate((with_fuel(kernel), serial(with_fuel(kernel)))):
                    case, form = fitting(version, rng), _form(version)
                    if case is not None and form not in known:
                        known.add(form)
                        yield self.with_random_passes(case, rng) if bare else case

    def generate(self, rng: np.random.Generator, domain: bool = True) -> KernelCase:
        while True:
            small = domain and rng.random() < NESTS
            case = fitting(random_nest(rng) if small else random_kernel(rng), rng)
            if case is not None:
                return self.with_random_passes(case, rng) if small or rng.random() < SCHEDULED else case

    # --- mutation ---

    def mutators(self) -> tuple[str, ...]:
        return tuple(MUTATORS)

    def mutate_program(self, case: KernelCase, rng: np.random.Generator, donor: KernelCase | None,
                       allowed: frozenset[str]) -> tuple[KernelCase, str] | None:
        draft = Draft(case.kernel, Values(rng), None if donor is None else donor.kernel)
        for name, kernel in mutated(draft, allowed):
            new = fitting(kernel, rng, case)
            if new is not None:
                return new, name
        return None

    def mutate_passes(self, case: KernelCase, rng: np.random.Generator, donor: KernelCase | None) -> tuple[KernelCase, str]:
        other = () if donor is None else donor.schedule
        schedule, how = changed_schedule(case.kernel, case.schedule, other, Values(rng))
        return replace(case, schedule=schedule), how

    def with_pipeline(self, case: KernelCase) -> KernelCase:
        """Lowering has scheduled a kernel already."""
        return replace(case, schedule=())

    def with_random_passes(self, case: KernelCase, rng: np.random.Generator) -> KernelCase:
        return replace(case, schedule=drawn_schedule(case.kernel, Values(rng)))

    def without_passes(self, case: KernelCase, changed: tuple[str, ...]) -> KernelCase:
        """Steps that were refused changed nothing."""
        kept = tuple(step for step in case.schedule if step.primitive in changed)
        return replace(case, schedule=scheduled(case.kernel, kept)[1])

    # --- the check ---

    def check(self, case: KernelCase, native: bool) -> Verdict:
        kernel, sizes = case.kernel, case.binding()
        _check_case(case)
        check_schedule_text(case.schedule)
        arguments = arguments_of(kernel, sizes, case.seed, case.special)
        expected = first_run(kernel, arguments, sizes)
        now, taken = kernel, list[Taken]()
        for step in case.schedule:
            after = apply_step(now, step)
            if after is None or work_of(after.body, sizes) > MOST_SCHEDULED_WORK:
                continue
            expected = check_step(now, after, step, arguments, expected, sizes)
            taken.append(Taken(now, step, after))
            now = after
        check_text(now)
        ran = False
        if native:
            check_text(kernel)
            check_whole_schedule(kernel, tuple(t.step for t in taken), now)
            runs = [Run(arguments, expected, sizes), *more_runs(case, taken)]
            ran = check_native(now, runs, case.seed)
            if case.seed % DEVICE_EVERY == 1:
                check_device(now, runs)
        return Verdict(tuple(dict.fromkeys(t.step.primitive for t in taken)), ran)

    # --- reduction ---

    def smaller(self, case: KernelCase) -> Iterator[KernelCase]:
        for number in range(len(case.schedule)):
            yield replace(case, schedule=case.schedule[:number] + case.schedule[number + 1:])
        for kernel in smaller_kernels(case.kernel):
            new = _well_typed(replace(case, kernel=kernel, sizes=_sizes_kept(kernel, case)))
            if new is not None:
                yield new
        for number, (name, size) in enumerate(case.sizes):
            least = next(s.tight[0] for s in case.kernel.symbols if s.name == name)
            for other in dict.fromkeys((least, 1, size - 1)):
                if least <= other < size:
                    yield replace(case, sizes=(*case.sizes[:number], (name, other), *case.sizes[number + 1:]))
        if case.special:
            yield replace(case, special=False)

    def size(self, case: KernelCase) -> int:
        return statements_in(case.kernel) + len(case.schedule)

    # --- text ---

    def format(self, case: KernelCase) -> str:
        lines = [f"# step {step}" for step in case.schedule]
        lines.append(f"# seed {case.seed}" + (" special" if case.special else ""))
        lines += [f"# size {name} {size}" for name, size in case.sizes]
        return "\n".join([*lines, format_kernel(case.kernel)])

    def parse(self, text: str) -> KernelCase:
        schedule: Schedule = ()
        sizes: dict[str, int] = {}
        seed, special = 0, False
        for number, line in enumerate(text.split("\n"), 1):
            words = line.split()
            match words:
                case ["#", "step", *_]:
                    schedule += parse_schedule(line.split("step", 1)[1])
                case ["#", "seed", value, *rest] if value.isdecimal() and rest in ([], ["special"]):
                    seed, special = int(value), bool(rest)
                case ["#", "size", name, value] if value.isdecimal():
                    sizes[name] = int(value)
                case ["#", *_]:
                    raise ParseError(f"line {number}: {line[:80]!r} is no step, seed or size", line=number, column=1,
                                     hint="such as `# step split(i, 4)`, `# seed 3 special`, `# size N 5`")
        kernel = parse_kernel(text)
        given = tuple((s.name, sizes.pop(s.name)) for s in kernel.symbols if s.name in sizes)
        if sizes or len(given) != len(kernel.symbols):
            missing = [s.name for s in kernel.symbols if s.name not in dict(given)]
            raise CompileError(f"kernel {kernel.name}: sizes expected of {', '.join(missing) or 'no more symbols'}, found besides: "
                               f"{', '.join(sizes) or 'none'}", hint="one line `# size N 5` for each symbol")
        return KernelCase(kernel, schedule, seed, given, special)


# --- more inputs -----------------------------------------------------------------------------------------------------


class Taken(Struct, frozen=True):
    """A step of a schedule that was legal."""

    before: Kernel
    step: Step
    after: Kernel


def more_runs(case: KernelCase, taken: Sequence[Taken]) -> Iterator[Run]:
    """The schedule followed with other inputs, and other sizes where the kernel has some; none where a kernel refuses them."""
    for number in range(1, MORE_RUNS + 1):
        rng = np.random.default_rng((case.seed, number))
        sizes = {s.name: _random_size(s.name, s.tight, s.multiple_of, rng) for s in case.kernel.symbols}
        try:
            _check_sizes(case.kernel, sizes)
            arguments = arguments_of(case.kernel, sizes, case.seed + number, number % 2 == 0)
            expected = first_run(case.kernel, arguments, sizes)
        except Refused:
            continue
        for t in taken:
            expected = check_step(t.before, t.after, t.step, arguments, expected, sizes)
        yield Run(arguments, expected, sizes)


# --- seeds -----------------------------------------------------------------------------------------------------------


def _seed_graphs() -> Iterator[Graph]:
    for op in ALL_OPS:
        for sample in op.samples():
            yield sample_graph(sample)
    for number in range(SEED_GRAPHS):
        yield random_graph(number, size=8)


def serial(kernel: Kernel) -> Kernel:
    """The kernel with every loop in order."""
    def plain(statement: Stmt) -> Stmt:
        new = rebuilt(statement, [tuple(map(plain, block)) for block in blocks_of(statement)])
        if isinstance(new, Alloc):
            return Alloc(replace(new.buffer, space="local"))
        return replace(new, kind="serial", lanes=0) if isinstance(new, For) else new

    return replace(kernel, body=tuple(map(plain, kernel.body)))


def _form(kernel: Kernel) -> str:
    """The text without names, numbers, dtypes and functions: kernels that differ in nothing else are one seed."""
    return re.sub(r"\w+", "_", re.sub(r"\d+", "", format_kernel(kernel).replace("for ", "%%")).replace("vector", "%%%"))


# --- which kernels are taken -----------------------------------------------------------------------------------------


def fitting(kernel: Kernel, rng: np.random.Generator, old: KernelCase | None = None) -> KernelCase | None:
    """The kernel as a case with sizes for its symbols and, where there is no old case, a seed; None where it is too large or
    breaks a rule."""
    sizes = tuple((s.name, _random_size(s.name, s.tight, s.multiple_of, rng)) for s in kernel.symbols)
    if old is None:
        return _well_typed(KernelCase(kernel, (), int(rng.integers(1 << 30)), sizes, bool(rng.random() < 0.15)))
    if [s.name for s in kernel.symbols] == [name for name, _ in old.sizes] and rng.random() < 0.8:
        sizes = old.sizes
    return _well_typed(replace(old, kernel=kernel, sizes=sizes))


def _random_size(name: str, ends: tuple[int, float], step: int, rng: np.random.Generator) -> int:
    low, high = ends
    most = low + UNBOUNDED * step if high == float("inf") else min(int(high), low + UNBOUNDED * step)
    return int(rng.integers(low // step, most // step + 1)) * step


def _sizes_kept(kernel: Kernel, case: KernelCase) -> tuple[tuple[str, int], ...]:
    known = case.binding()
    return tuple((s.name, known.get(s.name, s.tight[0])) for s in kernel.symbols)


def _well_typed(case: KernelCase) -> KernelCase | None:
    try:
        _check_case(case)
    except Refused:
        return None
    return case


def _check_case(case: KernelCase) -> None:
    """Refused for what is too much to run, or breaks a rule that the verifier checks."""
    kernel, sizes = case.kernel, case.binding()
    try:
        verify_kernel(kernel)
    except CompileError as error:
        raise Refused(error.message) from None
    except Exception as error:
        raise crashed("loop verifier", error) from error
    _check_sizes(kernel, sizes)


def _check_sizes(kernel: Kernel, sizes: Mapping[str, int]) -> None:
    if statements_in(kernel) > MOST_STATEMENTS:
        raise Refused("too many statements")
    for symbol in kernel.symbols:
        if not symbol.tight[0] <= sizes[symbol.name] <= symbol.tight[1] or sizes[symbol.name] % symbol.multiple_of:
            raise Refused(f"{symbol.declaration()} is no {sizes[symbol.name]}")
    try:
        shapes = [[evaluate(n, sizes) for n in b.shape] for b in kernel.buffers]
        work = work_of(kernel.body, sizes)
    except CompileError as error:  # a division by zero
        raise Refused(error.message) from None
    if any(n < 0 for shape in shapes for n in shape) or any(math.prod(shape) > MOST_ELEMENTS for shape in shapes):
        raise Refused("a buffer has a negative size, or is too large")
    if largest_allocation(kernel, sizes) > MOST_ELEMENTS or work > MOST_WORK:
        raise Refused("too much work")

