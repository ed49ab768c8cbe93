"""Bytes moved beyond the compulsory ones: ours, the bound, and the baselines, for each network, setting and budget.

    python -m benchmarks.scheduling [--seconds 10] [--items 1 4] [--granularity fused imported] [--parameters ignored streamed]
                                    [--budgets largest mean peak half] [--only NAME ...] [--models FILE.onnx ...] [--real]
                                    [--switches]

Budgets: M_R, what the largest operator needs; M_P, the least peak of any order; their mean; and half of M_R, which no schedule of whole
operators has. A row is degenerate where M_R = M_P or where the baseline moves nothing beyond the compulsory bytes; means are given over the
others, and over all rows where the baseline moves something. Every schedule and baseline went through the checker.

Baselines, each with the default order and that of least peak: `linear`, addresses as operators come in a linear arena, with Belady's
replacement or what costs least at the moment (those of COSMA); `planned`, which knows the future: Belady's replacement or the best there is
for the order, all addresses planned as TFLite's planner does. `whole`: ours, whole operators that share nothing, and its bound. `beyond`:
ours with everything allowed (`tilewright.scheduling.beyond`), and its bound. `--switches` adds what each switch alone gives, and what is
left without it. Time is of the processor, one core, for `whole` and `beyond`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import onnx
from msgspec import Struct
from msgspec.structs import replace

from tilewright.cli_shared import load_graph
from tilewright.driver import compile_half
from tilewright.ir.dims import symbols_of
from tilewright.ir.errors import CompileError
from tilewright.ir.ops.control import Param
from tilewright.options import Options
from tilewright.scheduling.aliasing import separate
from tilewright.scheduling.beyond import EVERYTHING, NOTHING, SWITCHES, Allowed
from tilewright.scheduling.exact import Solution, solve, working_set
from tilewright.scheduling.heuristics import least_peak
from tilewright.scheduling.importing import problem_of
from tilewright.scheduling.problem import Problem, with_parameters
from tilewright.scheduling.space import Space

from .models import MODELS, bind_sizes
from .networks import ALIGNMENT, human_made, network
from .searched import searched

BUDGETS = ("largest", "mean", "peak", "half")


class Row(Struct):
    """A budget of a network in a setting; no `whole` where the budget is below its largest operator, no `beyond` where it is below any."""

    name: str
    setting: str
    budget: str
    bytes: int
    degenerate: bool
    whole: Solution | None
    beyond: Solution | None
    seconds: tuple[float, float]
    switches: dict[str, int]

    def baseline(self, kind: str) -> int:
        """Excess bytes of the best baseline of a kind."""
        return min((a.excess for name, a in self.whole.baselines if kind in name), default=0) if self.whole is not None else 0

    def change(self, kind: str, ours: Solution | None) -> float:
        """In percent, against the best baseline of a kind."""
        return 100 * ((0 if ours is None else ours.account.excess) / self.baseline(kind) - 1)


def budgets(problem: Problem) -> dict[str, int]:
    """What each budget is in bytes."""
    largest = working_set(problem, ALIGNMENT)[0]
    peak = least_peak(Space(problem, 1 << 46, ALIGNMENT)).units * ALIGNMENT
    return {"largest": largest, "mean": (largest + peak) // 2 // ALIGNMENT * ALIGNMENT, "peak": peak,
            "half": largest // 2 // ALIGNMENT * ALIGNMENT}


def timed(problem: Problem, budget: int, seconds: float, allowed: Allowed, compared: Problem | None) -> tuple[Solution | None, float]:
    """The solution, None where there is none, and the time that it took."""
    began = time.process_time()
    try:
        found = solve(problem, budget, ALIGNMENT, seconds, allowed=allowed, compared=compared)
    except CompileError:
        found = None
    return found, time.process_time() - began


class Case(Struct):
    """A network in a setting: whole operators that share nothing, results that may lie over operands, nothing copied to be concatenated."""

    name: str
    setting: str
    plain: Problem
    in_place: Problem
    joined: Problem


def measured(case: Case, budget: str, options: argparse.Namespace) -> Row:
    known = budgets(case.plain)
    size = known[budget]
    whole, first = timed(case.plain, size, options.seconds, NOTHING, None)
    beyond, second = timed(case.joined, size, options.seconds, EVERYTHING, case.plain)
    switches = {}
    for switch in SWITCHES if options.switches else ():
        for label, allowed in ((f"only {switch}", replace(NOTHING, **{switch: True})),
                               (f"without {switch}", replace(EVERYTHING, **{switch: False}))):
            found, _ = timed(case.joined if allowed.concat else case.in_place, size, options.seconds, allowed, case.plain)
            switches[label] = -1 if found is None else found.account.excess
    found_row = Row(case.name, case.setting, budget, size, False, whole, beyond, (first, second), switches)
    found_row.degenerate = known["largest"] == known["peak"] or found_row.baseline("linear") == 0
    return found_row


def line(row: Row) -> str:
    def told(solution: Solution | None) -> str:
        if solution is None:
            return f"{'none':>10} {'-':>10} {'-':7}"
        return f"{solution.account.excess:>10} {solution.bound:>10} {'proven' if solution.proven else 'open':7}"

    note = "degenerate " if row.degenerate else ""
    if row.baseline("linear"):
        note += " ".join(f"{row.change('linear', s):+.0f} %" for s in (row.whole, row.beyond))
    switches = "".join(f"\n    {label}: {excess if excess >= 0 else 'none'}" for label, excess in row.switches.items())
    return (f"{row.name:28} {row.setting:26} {row.budget:8} {row.bytes:>10} {row.baseline('linear'):>10} {row.baseline('planned'):>10} "
            f"{told(row.whole)} {row.seconds[0]:6.2f} s {told(row.beyond)} {row.seconds[1]:6.2f} s  {note}{switches}")


def summary(found: list[Row]) -> Iterator[str]:
    """A line for each group of networks, budget and kind of schedule."""
    groups = {"human-made": set(human_made()), "searched": set(searched())}
    groups["models"] = {r.name for r in found} - groups["human-made"] - groups["searched"]
    for (title, names), budget, kind in product(groups.items(), BUDGETS, ("whole", "beyond")):
        here = [r for r in found if r.name in names and r.budget == budget]
        solved = [(r, s) for r in here if (s := r.whole if kind == "whole" else r.beyond) is not None]
        if not solved:
            continue
        times = sorted(r.seconds[kind == "beyond"] for r, s in solved if s.proven) or [0.0]
        text = (f"{title}, {budget}, {kind}: {len(here)} rows, {len(solved)} with a schedule, {len(times)} proven, "
                f"{sum(s.account.excess == 0 for _, s in solved)} that move nothing more, "
                f"median {times[len(times) // 2]:.2f} s, worst {times[-1]:.2f} s")
        for word, counted in (("not degenerate", [(r, s) for r, s in solved if not r.degenerate]), ("all", solved)):
            for baseline in ("linear", "planned"):
                changes = [r.change(baseline, s) for r, s in counted if r.baseline(baseline)]
                if changes:
                    text += f"; {word}, against {baseline}: {sum(changes) / len(changes):+.0f} % ({len(changes)})"
        yield text


def cases(options: argparse.Namespace) -> Iterator[Case]:
    for name, make in {**human_made(), **searched()}.items():
        if options.models or options.real or options.only and name not in options.only:
            continue
        for granularity, item, parameters in product(options.granularity, options.items, options.parameters):
            problems = (network(make, item, granularity, parameters, shared) for shared in ("nothing", "operands", "all"))
            yield Case(name, f"{granularity} {8 * item} bits, {parameters}", *problems)
    files = [(path.name, path, None) for path in options.models]
    for title, path, sizes in [*files, *(real_models() if options.real else ())]:
        for granularity, parameters in product(options.granularity, options.parameters):
            problem = with_parameters(imported(path, granularity, sizes), parameters)
            yield Case(title, f"{granularity}, {parameters}", separate(problem), problem, problem)


def real_models() -> Iterator[tuple[str, Path, dict[str, int] | None]]:
    """The real models at the sizes that times are measured at, and the `light` models of the onnx package."""
    for model in MODELS:
        path = model.path()
        yield model.title, path, bind_sizes(path, model.shapes)
    for path in sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx")):
        yield path.stem, path, None


def imported(path: Path, granularity: str, sizes: dict[str, int] | None) -> Problem:
    """The problem of an ONNX file at those sizes; where none are given, those that it leaves open are 1."""
    graph = load_graph(path, [f"{name}={size}" for name, size in (sizes or {}).items()])
    if sizes is None:
        names = {symbol.name for node in graph.nodes() if isinstance(node.op, Param) for symbol in symbols_of(*node.tensor.shape)}
        graph = load_graph(path, [f"{name}=1" for name in names]) if names else graph
    return problem_of(compile_half().enter(graph, "", "", "cpu", Options()) if granularity == "fused" else graph, shared=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--items", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--granularity", nargs="+", default=["fused", "imported"])
    parser.add_argument("--parameters", nargs="+", default=["ignored"])
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--models", nargs="+", type=Path, default=[], help="ONNX files instead of the networks")
    parser.add_argument("--real", action="store_true", help="the measured models, and the light ones of the onnx package, instead")
    parser.add_argument("--switches", action="store_true", help="what each switch gives")
    options = parser.parse_args()
    heads = " ".join(f"{head:>10}" for head in ("bytes", "linear", "planned", "whole", "bound"))
    print(f"{'network':28} {'setting':26} {'budget':8} {heads} {'':7} {'':8} {'beyond':>10} {'bound':>10}")
    found = []
    for case in cases(options):
        known = budgets(case.plain)
        for budget in options.budgets:
            if budget in ("mean", "peak") and known["largest"] == known["peak"] and "largest" in options.budgets:
                continue  # the same as the largest operator
            found.append(measured(case, budget, options))
            print(line(found[-1]), flush=True)
    print("\n".join(summary(found)))


if __name__ == "__main__":
    main()
