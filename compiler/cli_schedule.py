"""`tilewright schedule`: order, addresses and transfers for a memory managed by software, with a certificate."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from .cli_accelerator import RANDOM, Execution, measure_work, read_inputs, save_program, work_data, work_lines
from .cli_pack import pack_file
from .cli_shared import Bytes, answer, byte_text, dims_option, json_option, load_graph, read_sizes
from .driver import compile_half
from .ir.dims import symbols_of
from .ir.errors import UnsupportedError
from .options import Options
from .runtime.artifact import write_bytes
from .scheduling.beyond import what_is_allowed
from .scheduling.exact import Progress, Solution, solve
from .scheduling.importing import problem_of
from .scheduling.problem import PARAMETERS, Problem, with_parameters
from .scheduling.timing import Cycles, Engines, best_cycles
from .targets import MOST_SECONDS, SHARING, Scratchpad

GRANULARITIES = ("fused", "imported")
Render = Callable[[Problem, Solution, int, int, Sequence[Cycles]], str]


@click.command("schedule")
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--pack", "pack", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.csv",
              help="Instead of a model: items with lifetimes (columns id, lower, upper, size; alignment, hint) that are given addresses.")
@click.option("--capacity", type=Bytes(), metavar="SIZE", help="With --pack: what the items must fit into.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.csv",
              help="With --pack: where the items with their offsets go.  [default: stdout]")
@click.option("--scratchpad", type=Bytes(), metavar="SIZE", help="Its size, as in 524288, 512KiB or 1.5MB.")
@click.option("--time-limit", type=click.FloatRange(0), default=10.0, show_default=True, metavar="SECONDS",
              help="After what is instant, search this long for a better schedule and a proof. 0: take what is instant.")
@click.option("--granularity", type=click.Choice(GRANULARITIES), default=GRANULARITIES[0], show_default=True,
              help="What one step runs: a fused group, or an operator as imported.")
@click.option("--alignment", type=click.IntRange(1), default=64, show_default=True, metavar="BYTES",
              help="Of addresses; a tensor takes whole units of it.")
@click.option("--parameters", type=click.Choice(PARAMETERS), default="ignored", show_default=True,
              help="Weights: elsewhere; fetched like inputs; or in the scratchpad throughout.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.html", help="Write a page with the memory map.")
@click.option("--execute", metavar=f"FILE.npz|{RANDOM}",
              help=f"Run the schedule on the simulated accelerator: on inputs by name, or `{RANDOM}` ones.")
@click.option("--program", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.loop",
              help="Write the schedule as a program: launches at addresses, fetches, spills.")
@click.option("--allow", "allowed", type=click.Choice([*SHARING, "all"]), multiple=True,
              help="Beyond whole operators that share nothing: results over operands, concatenation without copies, cheap tensors "
                   "computed again where they are read, chains of operators slice by slice. May be given more than once; with "
                   "--execute and --program, what the launches of the model can do of it.")
@dims_option
@json_option
def schedule_command(model: Path | None, pack: Path | None, capacity: int | None, output: Path | None, scratchpad: int | None,
                     time_limit: float, granularity: str, alignment: int, parameters: str, report: Path | None, execute: str | None,
                     program: Path | None, allowed: Sequence[str], dims: Sequence[str], as_json: bool) -> None:
    """Choose the order of the operators of MODEL, the address of every tensor, and what leaves a scratchpad and returns, so that
    the fewest bytes move; say how good that is.

    Compulsory bytes are those that every schedule moves: inputs once, results once. Ctrl-C ends the search with the best so far.
    """
    if pack is not None:
        pack_file(pack, capacity, output, time_limit, as_json)
        return
    if model is None or scratchpad is None:
        raise click.UsageError(f"{'MODEL' if model is None else '--scratchpad SIZE'} is missing", click.get_current_context())
    if capacity is not None or output is not None:
        raise click.UsageError("--capacity and --output go with --pack FILE.csv", click.get_current_context())
    render = None if report is None else load_report()
    in_text = model.suffix != ".onnx"  # text of the IR declares its sizes: they are bound here
    graph = load_graph(model, () if in_text else dims)
    largest = largest_sizes(graph, read_sizes(dims, "--dims") if in_text else {})
    execution = None
    search: Callable[[Progress], Solution]
    if execute is not None or program is not None:
        if granularity != "fused":
            raise click.UsageError("--execute and --program run fused groups: leave out --granularity", click.get_current_context())
        target = Scratchpad(scratchpad, alignment=alignment, parameters=parameters, time_limit=min(time_limit, MOST_SECONDS),
                            allow=tuple(allowed))
        execution = Execution(graph, target)
        search = execution.solve
    else:
        if granularity == "fused":
            graph = compile_half().enter(graph, "", "", "cpu", Options())
        given = with_parameters(problem_of(graph, read_sizes(dims, "--dims") if in_text else None, bool(allowed)), parameters)
        search = partial(solve, given, scratchpad, alignment, time_limit, allowed=what_is_allowed(allowed))
    line = _Line()
    try:
        solution = search(line.show)
    finally:
        line.clear()
    executable = None if execution is None else execution.executable(solution)
    if executable is not None:
        solution = executable.solution
    counted = cycles_of(solution, scratchpad, alignment)
    if render is not None and report is not None:
        write_bytes(report, render(solution.problem, solution, scratchpad, alignment, counted).encode())
    problem = solution.problem
    data, lines = solution_data(problem, solution, scratchpad, alignment, counted), solution_lines(problem, solution, scratchpad, counted)
    if largest:
        data["largest_sizes"] = largest
        lines.insert(1, f"sizes         as large as their bounds: {', '.join(f'{name} = {size}' for name, size in largest.items())}")
    if executable is not None:
        if program is not None:
            save_program(executable, program)
            lines.append(f"wrote {program}")
        if execute is not None:
            work = measure_work(executable, read_inputs(executable, execute))
            data["executed"] = work_data(work)
            lines += work_lines(work)
    answer(as_json, data, lines)
    if solution.interrupted:
        raise KeyboardInterrupt


def largest_sizes(graph: Any, given: Mapping[str, int]) -> dict[str, int]:
    """Sizes of inputs that are not given, and the largest that their bounds allow; those without an upper bound are refused later."""
    symbols = symbols_of(*(axis for param in graph.params for axis in param.tensor.shape))
    return {symbol.name: symbol.upper for symbol in symbols if symbol.name not in given and symbol.upper is not None}


def load_report() -> Render:
    """What makes the page, found before time is spent."""
    try:
        from .scheduling.report import render
    except ImportError as error:
        raise UnsupportedError(f"--report needs {error.name}", hint="pip install 'tilewright[schedule]'") from None
    return render


def cycles_of(solution: Solution, budget: int, alignment: int) -> list[Cycles]:
    """Of the schedule, and of each baseline, on the accelerator that `tilewright.targets.Scratchpad` is by default."""
    target = Scratchpad(budget)
    engines = Engines(target.banks, target.dma_bytes_per_cycle, target.dma_latency, target.operations_per_cycle)
    return [best_cycles(problem, schedule, budget, alignment, engines)
            for problem, schedule in ((solution.problem, solution.schedule), *((solution.plain, other) for other in solution.compared))]


def cycle_data(counted: Cycles) -> dict[str, int]:
    return {"cycles": counted.beside, "cycles_serial": counted.serial, "cycles_computing": counted.computing}


def solution_data(problem: Problem, solution: Solution, budget: int, alignment: int, counted: Sequence[Cycles]) -> dict[str, Any]:
    account = solution.account
    return {
        "model": problem.name, "operators": len(problem.operators), "tensors": len(problem.tensors), "scratchpad": budget,
        "alignment": alignment, "moved": account.moved, "read": account.read, "written": account.written,
        "compulsory": account.compulsory, "excess": account.excess, "excess_bound": solution.bound, "gap": solution.gap,
        "optimal": solution.proven, "proven_by": solution.proven_by if solution.proven else None, "method": solution.method,
        "peak": account.peak, "largest_operator": solution.largest, "least_peak": solution.peak,
        "least_peak_bound": solution.peak_bound, "interrupted": solution.interrupted, "seconds": round(solution.seconds, 3),
        **cycle_data(counted[0]),
        "baselines": [{"name": name, "excess": other.excess, "peak": other.peak, **cycle_data(cycles)}
                      for (name, other), cycles in zip(solution.baselines, counted[1:])],
    }


def solution_lines(problem: Problem, solution: Solution, budget: int, counted: Sequence[Cycles]) -> list[str]:
    account = solution.account
    verdict = (f"optimal: the checker counted the schedule's bytes, the bound is by {solution.proven_by}" if solution.proven
               else f"not proven: at most {byte_text(solution.gap)} above the least there is (bound by {solution.proven_by})")
    proven = "" if solution.peak_bound == solution.peak else f" (at least {solution.peak_bound})"
    lines = [
        f"{problem.name}: {len(problem.operators)} operators, {len(problem.tensors)} tensors, scratchpad of {budget} bytes",
        f"moved         {account.moved} bytes: {account.read} in, {account.written} out",
        f"  compulsory  {account.compulsory}",
        f"  beyond      {account.excess}, by {solution.method}",
        f"  bound       {solution.bound}",
        f"{verdict}",
        f"peak          {account.peak} bytes of {budget}",
        f"needed        {solution.largest} by the largest operator, {solution.peak} to move nothing beyond{proven}",
    ]
    lines.append(f"cycles        {counted[0].beside} by the cost model with transfers beside computing, {counted[0].serial} one after the "
                 f"other, {counted[0].computing} of them computing")
    if solution.baselines:
        lines.append("others, bytes beyond the compulsory ones, and cycles with transfers beside computing:")
        lines += [f"  {other.excess:>12} {cycles.beside:>12}  {name}" for (name, other), cycles in zip(solution.baselines, counted[1:])]
    return lines


class _Line:
    """The line of progress, on a terminal only."""

    def __init__(self) -> None:
        self.shown = 0.0
        self.enabled = sys.stderr.isatty()

    def show(self, doing: str, excess: int, bound: int) -> None:
        if self.enabled and time.monotonic() - self.shown > 0.1:
            self.shown = time.monotonic()
            click.echo(f"\r\033[K{doing}: {excess} bytes beyond the compulsory ones, at least {bound} (Ctrl-C takes it)", err=True,
                       nl=False)

    def clear(self) -> None:
        if self.enabled:
            click.echo("\r\033[K", err=True, nl=False)
