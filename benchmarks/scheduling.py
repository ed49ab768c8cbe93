"""Bytes moved beyond the compulsory ones: ours, the bound, and the best baseline, for each network and budget.

    python -m benchmarks.scheduling [--seconds 10] [--items 1 4] [--granularity fused imported] [--parameters ignored streamed]
                                    [--budgets largest mean peak] [--only NAME ...]

Budgets: M_R, what the largest operator needs; M_P, the least peak of any order; and their mean. A row is degenerate where M_R = M_P or
where the best baseline moves nothing beyond the compulsory bytes; means are over the others. Every schedule and baseline went
through the checker. Baselines: TFLite's linear arena with the default order or that of least peak, with Belady's replacement
(`Belady`) or the best there is for the order (`best`). Time is of the processor, one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

from msgspec import Struct

from tilewright.scheduling.exact import Solution, solve, working_set
from tilewright.scheduling.heuristics import least_peak
from tilewright.scheduling.problem import Problem
from tilewright.scheduling.space import Space

from .networks import human_made, network
from .searched import searched

ALIGNMENT = 64
BUDGETS = ("largest", "mean", "peak")


class Row(Struct):
    name: str
    setting: str
    budget: str
    bytes: int
    solution: Solution
    degenerate: bool
    seconds: float

    def best(self, rule: str = "") -> int:
        """Excess bytes of the best baseline, of those with this replacement."""
        return min(account.excess for name, account in self.solution.baselines if rule in name)

    def saved(self, rule: str = "") -> float:
        return 1 - self.solution.account.excess / self.best(rule) if self.best(rule) else 0.0


def budgets(problem: Problem) -> dict[str, int]:
    """What each budget is in bytes."""
    largest = working_set(problem, ALIGNMENT)[0]
    peak = least_peak(Space(problem, 1 << 46, ALIGNMENT)).units * ALIGNMENT
    return {"largest": largest, "mean": (largest + peak) // 2 // ALIGNMENT * ALIGNMENT, "peak": peak}


def rows(name: str, make: Callable[[int], Problem], options: argparse.Namespace) -> Iterator[Row]:
    for granularity in options.granularity:
        for item in options.items:
            for parameters in options.parameters:
                problem = network(make, item, granularity, parameters)
                known = budgets(problem)
                for budget in options.budgets:
                    if budget != "largest" and known["largest"] == known["peak"]:
                        continue  # all three are one
                    began = time.process_time()
                    solution = solve(problem, known[budget], ALIGNMENT, options.seconds)
                    seconds = time.process_time() - began
                    row = Row(name, f"{granularity} {8 * item} bits, {parameters}", budget, known[budget], solution, False, seconds)
                    row.degenerate = known["largest"] == known["peak"] or row.best() == 0
                    yield row


def line(row: Row) -> str:
    solution = row.solution
    proof = "proven" if solution.proven else f"gap {100 * solution.gap / max(1, solution.account.excess):.1f} %"
    note = "degenerate" if row.degenerate else f"{-100 * row.saved('Belady'):+.0f} % {-100 * row.saved():+.0f} %"
    return (f"{row.name:13} {row.setting:26} {row.budget:8} {row.bytes:>10} {solution.account.compulsory:>10} {row.best('Belady'):>10} "
            f"{row.best():>10} {solution.account.excess:>10} {solution.bound:>10}  {proof:10} {row.seconds:6.2f} s  {note}")


def summary(found: list[Row]) -> Iterator[str]:
    for title, names in (("human-made", human_made()), ("searched", searched())):
        for budget in BUDGETS:
            here = [row for row in found if row.name in names and row.budget == budget]
            counted = [row for row in here if not row.degenerate]
            if not here:
                continue
            proven = sum(row.solution.proven for row in here)
            times = sorted(row.seconds for row in here if row.solution.proven) or [0.0]
            text = (f"{title}, {budget}: {len(here)} rows, {len(here) - len(counted)} degenerate, {proven} proven, "
                    f"median {times[len(times) // 2]:.2f} s, worst {times[-1]:.2f} s")
            if counted:
                text += "; mean change against the best baseline with Belady {:+.0f} %, of all {:+.0f} %".format(
                    *(-100 * sum(row.saved(rule) for row in counted) / len(counted) for rule in ("Belady", "")))
            yield text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--items", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--granularity", nargs="+", default=["fused", "imported"])
    parser.add_argument("--parameters", nargs="+", default=["ignored"])
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--only", nargs="+", default=[])
    options = parser.parse_args()
    heads = ("bytes", "compulsory", "Belady", "best", "ours", "bound")
    print(f"{'network':13} {'setting':26} {'budget':8} {' '.join(f'{head:>10}' for head in heads)}")
    found = []
    for name, make in {**human_made(), **searched()}.items():
        if not options.only or name in options.only:
            for row in rows(name, make, options):
                found.append(row)
                print(line(row), flush=True)
    print("\n".join(summary(found)))


if __name__ == "__main__":
    main()
