"""A schedule as one HTML page: the memory map (address over time, a rectangle a stay), transfers, and what others would move.

Needs jinja2 (extra `[schedule]`). The page loads nothing from elsewhere. What it draws is read from the steps of the schedule, by a
walk of its own; names of tensors are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from msgspec import Struct

from .exact import Solution
from .problem import VALUE, Fetch, Free, Problem, Run, Schedule, Spill, rounded
from .timing import Cycles

WIDTH, HEIGHT = 1100.0, 420.0
COLOURS = {"input": "#4c8c4a", "parameter": "#8a6fb0", "result": "#c0504d", "value": "#5b84b1"}


class Box(Struct):
    """One stay on the map, in pixels."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str


class Mark(Struct):
    """A transfer: where, and whether it comes in."""

    x: float
    y: float
    height: float
    inward: bool
    title: str


def drawing(problem: Problem, schedule: Schedule, budget: int, alignment: int) -> tuple[list[Box], list[Mark]]:
    """The rectangles and the transfers of the map."""
    moments = max(1, len(problem.operators))
    across, up = WIDTH / moments, HEIGHT / budget
    live: dict[int, tuple[int, int]] = {}
    boxes: list[Box] = []
    marks: list[Mark] = []
    moment = 0  # operators run so far

    def place(tensor: int, address: int, begin: int) -> None:
        live[tensor] = (address, begin)

    def end(tensor: int) -> None:
        address, begin = live.pop(tensor)
        size = rounded(problem.tensors[tensor].bytes, alignment)
        height = size * up
        title = (f"{problem.tensors[tensor].name}: {problem.tensors[tensor].bytes} bytes at {address}, "
                 f"steps {begin} to {max(begin, moment - 1)}")
        boxes.append(Box(begin * across, HEIGHT - address * up - height, max(moment - begin, 0.15) * across, height,
                         colour_of(problem, tensor), title))

    def mark(tensor: int, inward: bool, at: int) -> None:
        address = live[tensor][0]
        height = rounded(problem.tensors[tensor].bytes, alignment) * up
        verb = "fetched" if inward else "spilled"
        marks.append(Mark(at * across, HEIGHT - address * up - height, height, inward,
                          f"{problem.tensors[tensor].name}: {verb}, {problem.tensors[tensor].bytes} bytes"))

    for step in schedule.steps:
        if isinstance(step, Run):
            for tensor, address in zip(problem.operators[step.operator].outputs, step.addresses):
                place(tensor, address, moment)
            moment += 1
        elif isinstance(step, Fetch):
            place(step.tensor, step.address, moment)
            mark(step.tensor, True, moment)
        elif isinstance(step, Spill):
            mark(step.tensor, False, moment)
        elif isinstance(step, Free):
            end(step.tensor)
    for tensor in list(live):
        end(tensor)
    return boxes, marks


def colour_of(problem: Problem, tensor: int) -> str:
    kind = problem.tensors[tensor].kind
    return COLOURS["result" if kind == VALUE and tensor in problem.results else kind]


def render(problem: Problem, solution: Solution, budget: int, alignment: int, counted: Sequence[Cycles]) -> str:
    """The page. `counted`: cycles of the schedule, then of each baseline."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    boxes, marks = drawing(problem, solution.schedule, budget, alignment)
    order = [problem.operators[step.operator] for step in solution.schedule.steps if isinstance(step, Run)]
    rows = [(*row, cycles) for row, cycles in zip([("this schedule", solution.account), *solution.baselines], counted, strict=True)]
    return environment.get_template("report.html").render(
        problem=problem, solution=solution, account=solution.account, budget=budget, alignment=alignment, boxes=boxes, marks=marks,
        width=WIDTH, height=HEIGHT, step=WIDTH / max(1, len(order)), order=order, rows=rows, colours=COLOURS,
        counted=counted, most=max((account.excess for _, account, _ in rows), default=0) or 1)
