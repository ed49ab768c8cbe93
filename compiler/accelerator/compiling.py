"""A graph compiled for an accelerator with a scratchpad: passes, operators, schedule, program, code, and the simulator that runs it.

Kernels are those of the CPU that the simulator runs on. Guarantees: the schedule went through its checker, the program through the
verifier; a budget that no schedule meets is an error that names the operator. Nothing is cached: how good a schedule is may
depend on the time that there was.
"""

from __future__ import annotations

import time
from typing import Any

from msgspec.structs import replace

from .. import build
from ..backends.scratchpad import Machine, ScratchpadModel, Work
from ..ir.errors import CompileError, UnsupportedError
from ..ir.graph import Graph
from ..ir.loop_verify import verify_program
from ..ir.program import Program, nested_launches
from ..ir.residency import buffer_bytes
from ..ir.verify import verify
from ..lowering.lower import Statistics, draft_program
from ..lowering.share import share_kernels
from ..options import Environment, Options
from ..pipeline import run_passes
from ..runtime.executable import Executable
from ..scheduling.aliasing import separate
from ..scheduling.beyond import NOTHING, what_is_allowed
from ..scheduling.checker import WrongSchedule, check
from ..scheduling.exact import Progress, Solution, solve
from ..scheduling.prefetching import overlapped
from ..scheduling.problem import Problem
from ..targets import Scratchpad
from .operators import Operators, cycles_of, operators_of, refuse_open_sizes
from .sharing import shared
from .steps import program_of

HOST = "cpu"


class ScheduledExecutable(Executable):
    """An executable that the simulated accelerator runs. `program` is the schedule as steps, `solution` what is known of it."""

    program: Program
    solution: Solution

    def measure(self, *args: object) -> tuple[Any, Work]:
        """A call's result, and what the accelerator did for it."""
        model: Any = self._model
        result, work = model.measure(args)
        return result, work


def compile_scheduled(graph: Graph, target: Scratchpad, options: Options, environment: Environment, pack: Any = None,
                      progress: Progress | None = None) -> ScheduledExecutable:
    """The graph as something to call."""
    began = time.perf_counter()
    operators, solution = schedule_of(prepare(graph, target, options, environment), target, progress)
    executable = executable_of(graph, operators, solution, target, options, environment, pack)
    executable.metadata["compile_seconds"] = time.perf_counter() - began
    return executable


def prepare(graph: Graph, target: Scratchpad, options: Options, environment: Environment) -> Operators:
    """The operators that are to be scheduled."""
    verify(graph)
    refuse_open_sizes(graph)
    optimized, _ = run_passes(graph, options, build.capabilities(HOST), environment)
    return operators_of(draft_program(optimized, build.capabilities(HOST)), target.parameters)


def schedule_of(operators: Operators, target: Scratchpad, progress: Progress | None = None) -> tuple[Operators, Solution]:
    """The best schedule with what the target allows, and the operators that it is of."""
    allowed = what_is_allowed(target.allow)
    if allowed == NOTHING:
        return operators, solve(operators.problem, target.bytes, target.alignment, target.time_limit, progress)
    rich = shared(operators, allowed, target.bytes, target.alignment)
    solution = solve(rich.problem, target.bytes, target.alignment, target.time_limit, progress, allowed, operators.problem,
                     lambda problem, *_: problem)
    return rich if solution.problem is rich.problem else operators, solution


def executable_of(graph: Graph, operators: Operators, solution: Solution, target: Scratchpad, options: Options, environment: Environment,
                  pack: Any = None) -> ScheduledExecutable:
    """What runs a schedule, with transfers beside computing where that is wanted and there is room."""
    if target.prefetch:
        problem = _as_scheduled(solution, target)
        schedule = overlapped(problem, solution.schedule, target.bytes, target.alignment, target.banks)
        account = check(problem, schedule, target.bytes, target.alignment)
        solution = replace(solution, schedule=schedule, account=account)
    program = share_kernels(program_of(operators, solution.schedule, target.bytes, target.alignment))
    verify_program(program)
    if options.max_memory and isinstance(program.workspace_bytes, int) and program.workspace_bytes > options.max_memory:
        raise CompileError(f"{graph.name}: {program.workspace_bytes} bytes are spilled off the chip, but max_memory is "
                           f"{options.max_memory}", hint="give more, or a larger scratchpad")
    build.dump_program(environment, build.capabilities(HOST), program, Statistics())
    build.check_memory(program)
    digest = build.segment_digest(program)
    compiled = build.generate(program, build.resolved(HOST), digest, prefix="")
    build.dump_code(environment, build.capabilities(HOST), compiled)
    machine = Machine(target.banks, target.dma_bytes_per_cycle, target.dma_latency)
    model: Any = ScratchpadModel(program, compiled.object_code, compiled.symbol, build.fill_segment(program), machine,
                            _cycles(program, target), str(target))
    metadata = {"name": graph.name, "target": str(target), "cached": False, "workspace": program.workspace_bytes,
                "compile_seconds": 0.0, "stages": {}, "kernels": [k.name for k in program.kernels()],
                "sample_shapes": build.sample_shapes(graph), "schedule": summary(solution)}
    executable = ScheduledExecutable(model, threads=options.threads, metadata=metadata, save_with=_refuse_saving, pack=pack,
                                     explain_with=_refuse_explaining)
    executable.program, executable.solution = program, solution
    return executable


def _as_scheduled(solution: Solution, target: Scratchpad) -> Problem:
    """The problem without permissions to store over operands, if the schedule makes no use of any."""
    try:
        check(separate(solution.problem), solution.schedule, target.bytes, target.alignment)
    except WrongSchedule:
        return solution.problem
    return separate(solution.problem)


def summary(solution: Solution) -> dict[str, Any]:
    """What is known of a schedule, as JSON."""
    account = solution.account
    return {"moved": account.moved, "compulsory": account.compulsory, "excess": account.excess, "excess_bound": solution.bound,
            "optimal": solution.proven, "peak": account.peak, "largest_operator": solution.largest, "least_peak": solution.peak,
            "method": solution.method}


def _cycles(program: Program, target: Scratchpad) -> list[int]:
    """What each launch takes when it runs, in the order of the text."""
    found = []
    for launch, _ in nested_launches(program.steps):
        touched = sum(buffer_bytes(launch, buffer) * (2 if buffer.space == "inout" else 1) for buffer in launch.kernel.buffers)
        found.append(cycles_of(launch, touched, target.operations_per_cycle, target.banks))
    return found


def _refuse_explaining(executable: Executable, *arguments: Any) -> Any:
    del arguments
    raise UnsupportedError(f"{executable.name}: cannot be explained: the predictions are of CPUs, and this runs on a simulated accelerator",
                           hint="executable.solution is the schedule, executable.measure(...) says what a call did")


def _refuse_saving(executable: Executable, path: str, **options: Any) -> Any:
    del path, options
    raise UnsupportedError(f"{executable.name}: cannot be saved: the accelerator is a simulated one",
                           hint="executable.program is its program; tilewright schedule writes it as text")


__all__ = ["ScheduledExecutable", "compile_scheduled", "executable_of", "prepare", "schedule_of", "summary"]
