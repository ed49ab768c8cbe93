"""The same problem as an integer program for HiGHS: a cross-check of the search on small problems, with and without addresses.

Variables, as in COSMA (Combined Scheduling, Memory Allocation and Tensor Replacement, arXiv 2311.18246): an operator runs at a step,
a tensor is there during a step because it was kept, fetched or computed, and it is spilled at some time. Since tensors never
change, one spill suffices, right behind its computation. With addresses, a tensor that is kept keeps its place, and of two
that are there together one lies below the other: two rows with a large constant for each pair and step, which is why this
formulation is for small problems alone. Needs the extra `[schedule]` (highspy).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from ..ir.errors import UnsupportedError
from .problem import VALUE
from .space import Space, bits

FEASIBILITY = 1e-6


class Optimum(Struct, frozen=True):
    """Excess bytes of the best found (None: none was found in time), a bound below which there is nothing, and the order found."""

    excess: int | None
    bound: int
    order: tuple[int, ...]

    @property
    def proven(self) -> bool:
        return self.excess is not None and self.excess <= self.bound


class Rows:
    """An integer program while it is made: columns with bounds and costs, rows of (coefficient, column) pairs between two numbers."""

    def __init__(self) -> None:
        self.columns: list[tuple[float, float, float]] = []
        self.rows: list[tuple[float, float, Sequence[tuple[float, int]]]] = []

    def column(self, cost: float = 0, upper: float = 1) -> int:
        self.columns.append((cost, 0, upper))
        return len(self.columns) - 1

    def row(self, terms: Sequence[tuple[float, int]], lower: float = float("-inf"), upper: float = float("inf")) -> None:
        self.rows.append((lower, upper, terms))


class Formulation:
    """Columns by what they mean: `runs[o][t]`, `there[k][t]`, `kept[k][t]`, `fetched[k][t]`, `spilled[k]`, `address[k][t]`."""

    def __init__(self, space: Space, addresses: bool) -> None:
        self.space, self.rows = space, Rows()
        self.steps = range(len(space.need))
        self.tensors = [t for t in range(len(space.units)) if space.units[t]]
        self.runs = [[self.rows.column() for _ in self.steps] for _ in self.steps]
        self.there = {k: [self.rows.column() for _ in self.steps] for k in self.tensors}
        self.kept = {k: [self.rows.column() for _ in self.steps] for k in self.tensors}
        self.fetched = {k: [self.rows.column(space.bytes[k]) for _ in self.steps] for k in self.tensors}
        self.spilled = {k: self.rows.column(space.bytes[k]) for k in self.tensors if not space.stored >> k & 1}
        self._order()
        self._residency()
        if addresses:
            self._addresses()

    def _order(self) -> None:
        space, rows = self.space, self.rows
        for o in self.steps:
            rows.row([(1, c) for c in self.runs[o]], 1, 1)
            rows.row([(1, self.runs[other][o]) for other in self.steps], 1, 1)  # one operator a step
            for p in bits(space.before[o]):
                for t in self.steps:
                    rows.row([(1, self.runs[o][u]) for u in range(t + 1)] + [(-1, self.runs[p][u]) for u in range(t)], upper=0)

    def _residency(self) -> None:
        space, rows = self.space, self.rows
        for t in self.steps:
            rows.row([(space.units[k], self.there[k][t]) for k in self.tensors], upper=space.room)
            for o in self.steps:
                for k in bits(space.need[o]):
                    rows.row([(1, self.there[k][t]), (-1, self.runs[o][t])], 0)
        for k in self.tensors:
            maker = space.problem.producer[k]
            for t in self.steps:
                made = [] if maker < 0 else [(-1.0, self.runs[maker][t])]
                rows.row([(1, self.there[k][t]), (-1, self.kept[k][t]), (-1, self.fetched[k][t]), *made], upper=0)
                rows.row([(1, self.kept[k][t]), *([(-1.0, self.there[k][t - 1])] if t else [])], upper=0)
                if k in self.spilled:
                    rows.row([(1, self.fetched[k][t]), (-1, self.spilled[k])], upper=0)
                if maker >= 0:
                    rows.row([(1, self.fetched[k][t]), *((-1.0, self.runs[maker][u]) for u in range(t))], upper=0)

    def _addresses(self) -> None:
        space, rows, large = self.space, self.rows, self.space.room
        address = {k: [rows.column(upper=large - space.units[k]) for _ in self.steps] for k in self.tensors}
        for k in self.tensors:
            for t in self.steps[1:]:
                for sign in (1, -1):
                    rows.row([(sign, address[k][t]), (-sign, address[k][t - 1]), (large, self.kept[k][t])], upper=large)
            for other in self.tensors:
                if other <= k:
                    continue
                for t in self.steps:
                    below = rows.column()
                    both = [(large, self.there[k][t]), (large, self.there[other][t])]
                    rows.row([(1, address[k][t]), (-1, address[other][t]), (large, below), *both], upper=3 * large - space.units[k])
                    rows.row([(1, address[other][t]), (-1, address[k][t]), (-large, below), *both], upper=2 * large - space.units[other])


def least_by_program(space: Space, seconds: float = 10.0, addresses: bool = False) -> Optimum:
    """The least excess by HiGHS, without addresses or in COSMA's formulation with them."""
    if not len(space.need):
        return Optimum(0, 0, ())
    formulation = Formulation(space, addresses)
    highs = _loaded(formulation.rows, seconds)
    highs.run()
    info, values = highs.getInfo(), list(highs.getSolution().col_value)
    compulsory = sum(space.bytes[t] for t in formulation.tensors
                     if space.problem.tensors[t].kind != VALUE and space.consumers[t])
    bound = max(0, round(info.mip_dual_bound - FEASIBILITY) - compulsory) if info.mip_dual_bound > 0 else 0
    if not info.primal_solution_status or not values:
        return Optimum(None, bound, ())
    order = sorted(formulation.steps, key=lambda o: next(t for t in formulation.steps if values[formulation.runs[o][t]] > 0.5))
    return Optimum(round(info.objective_function_value) - compulsory, bound, tuple(order))


def _loaded(program: Rows, seconds: float) -> Any:
    """HiGHS with the program in it; all columns are whole numbers."""
    try:
        import highspy
    except ImportError:
        raise UnsupportedError("the integer program needs highspy, which is not installed",
                               hint="pip install 'tilewright[schedule]'") from None
    highs = highspy.Highs()
    for option, value in (("output_flag", False), ("time_limit", float(seconds)), ("threads", 1), ("mip_rel_gap", 0.0)):
        highs.setOptionValue(option, value)
    for column, (cost, lower, upper) in enumerate(program.columns):
        highs.addCol(cost, lower, upper, 0, [], [])
        highs.changeColIntegrality(column, highspy.HighsVarType.kInteger)
    for lower, upper, terms in program.rows:
        highs.addRow(lower, upper, len(terms), [column for _, column in terms], [float(factor) for factor, _ in terms])
    return highs
